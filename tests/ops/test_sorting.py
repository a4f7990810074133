"""The sorting network and its blocks against NumPy; the CRPS by either sort."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ensjax import scores
from ensjax.ops import sorting


@pytest.mark.parametrize("members", [1, 2, 3, 8, 13])
def test_columns_are_sorted(members):
    x = np.random.default_rng(0).integers(-3, 4, size=(members, 37)).astype(np.float32)
    x[0, :2] = np.inf, -np.inf  # ties and infinities
    found = jax.jit(sorting.sort_network)(x)
    np.testing.assert_array_equal(found, np.sort(x, axis=0))


@pytest.mark.parametrize("columns", [1, 63, 64, 65, 128])
def test_blocks_of_columns_are_the_whole(columns, monkeypatch):
    monkeypatch.setattr(sorting, "_IN_CACHE", 4 * 64)  # blocks of 64
    x = np.random.default_rng(0).normal(size=(3, columns)).astype(np.float32)

    def function(x, y):
        return x.sum(axis=0), x[0] * y

    found = sorting.in_column_blocks(
        function, jnp.asarray(x), jnp.asarray(x[1]), members=3
    )
    for ours, theirs in zip(found, function(x, x[1]), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_terms_of_the_crps_are_the_same_by_either_sort(monkeypatch):
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(7, 300)).astype(np.float32)
    targets = rng.normal(size=300).astype(np.float32)
    mask = rng.uniform(size=samples.shape) < 0.8
    mask[:, 3] = False
    samples[2, 5], mask[2, 5] = np.nan, True
    samples[2, 6], mask[2, 6] = np.nan, False
    targets[9] = np.nan
    plain = jax.jit(scores.crps_terms)(samples, targets, mask=mask)
    monkeypatch.setattr(sorting, "_WORTH_A_NETWORK", 1)
    monkeypatch.setattr(sorting, "_IN_CACHE", 8 * 64)
    found = jax.jit(lambda *x: scores.crps_terms(*x, mask=mask))(samples, targets)
    np.testing.assert_allclose(found.error, plain.error, rtol=1e-6)
    np.testing.assert_allclose(found.pairs, plain.pairs, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found.num_members, plain.num_members)
    error, pairs = np.asarray(found.error), np.asarray(found.pairs)
    assert np.isnan(error[[3, 5, 9]]).all() and np.isnan(pairs[[5, 9]]).all()
    assert np.isfinite(error[6])

    def score(samples):
        return scores.crps_samples(samples, jnp.asarray(targets[:3]), fair=True)

    slope = jax.grad(score)(jnp.asarray(samples[:, :3]))
    monkeypatch.undo()
    expected = jax.grad(score)(jnp.asarray(samples[:, :3]))
    np.testing.assert_allclose(slope, expected, rtol=1e-5, atol=1e-7)
