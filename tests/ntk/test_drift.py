"""Drift and alignment of tangent kernels: in memory, streamed, mistakes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ensjax
from ensjax import ntk
from ensjax.mapping import MeshProgram
from ensjax.planning import read_collectives

ONE = ensjax.make_mesh(member=1, devices=jax.devices()[:1])
SPREAD = ensjax.make_mesh(member=4, data=2)
X = np.random.default_rng(0).normal(size=(19, 4)).astype(np.float32)
TARGETS = np.eye(3, dtype=np.float32)[np.arange(19) % 3]


def make_model(rngs):
    return ensjax.nn.MLP(in_features=4, hidden=(6,), num_outputs=2, rngs=rngs)


@pytest.fixture(scope="module")
def members():
    return ensjax.Ensemble.init(make_model, num_members=3, seed=0, mesh=ONE)


@pytest.fixture(scope="module")
def moved(members):
    return with_params(members, jax.tree.map(lambda x: 1.1 * x + 0.01, members.params))


def with_params(ensemble, params):
    state = {**ensemble.state, "params": params}
    return dataclasses.replace(ensemble, state=state)


def kernels_of(ensemble):
    return np.asarray(ntk.empirical_ntk(ensemble, X, block_rows=19), np.float64)


def norm(kernels):
    return np.sqrt((kernels**2).sum(axis=(-2, -1)))


H = np.eye(19) - 1 / 19


def test_kernels_in_memory_compare_as_by_hand():
    a, b = np.array([[2.0, 1.0], [1.0, 2.0]]), np.array([[1.0, 0.0], [0.0, 1.0]])
    assert ntk.alignment(a, b, centre=False) == pytest.approx(4 / np.sqrt(20))
    # Centred, both are multiples of [[1, -1], [-1, 1]].
    assert ntk.alignment(a, b) == pytest.approx(1)
    np.testing.assert_allclose(ntk.centred(a), [[0.5, -0.5], [-0.5, 0.5]])
    assert ntk.relative_change(a, b) == pytest.approx(2 / np.sqrt(2))
    found = ntk.relative_change(np.stack([a, b]), b)
    np.testing.assert_allclose(found, [np.sqrt(2), 0], rtol=1e-6)
    between = ntk.alignment_between_members(np.stack([a, b]), centre=False)
    np.testing.assert_allclose(between[0, 1], 4 / np.sqrt(20), rtol=1e-6)
    labels = ntk.label_kernel(np.eye(2)[[0, 1, 1]])
    np.testing.assert_array_equal(labels, [[1, 0, 0], [0, 1, 1], [0, 1, 1]])
    # Scale and centre do not matter to centred alignment.
    kernel = np.cov(np.random.default_rng(0).normal(size=(5, 9)))
    shifted = 3 * kernel + 2
    assert ntk.alignment(kernel, shifted) == pytest.approx(1, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("mesh, block_rows", [(ONE, None), (SPREAD, 1), (SPREAD, 5)])
def test_streamed_drift_is_that_of_kernels_in_memory(members, moved, mesh, block_rows):
    first, second = kernels_of(members), kernels_of(moved)
    found = ntk.kernel_drift(
        members.on_mesh(mesh), moved.on_mesh(mesh), X, block_rows=block_rows
    )
    cosine = (first * second).sum(axis=(1, 2)) / norm(first) / norm(second)
    np.testing.assert_allclose(found.change, norm(second - first) / norm(first), 1e-5)
    np.testing.assert_allclose(found.scale, norm(second) / norm(first), 1e-5)
    # Small, and not a difference of large sums: relative to itself.
    np.testing.assert_allclose(found.distance, 1 - cosine, rtol=1e-3)
    assert (1 - cosine).max() < 0.01


def test_nothing_has_moved_where_weights_have_not(members):
    drift = ntk.kernel_drift(members, members, X)
    np.testing.assert_array_equal(drift.change, 0)
    np.testing.assert_array_equal(drift.distance, 0)
    np.testing.assert_array_equal(drift.scale, 1)


@pytest.mark.parametrize("mesh, block_rows", [(ONE, None), (SPREAD, 1), (SPREAD, 5)])
def test_streamed_alignment_is_that_of_kernels_in_memory(members, mesh, block_rows):
    own = members.on_mesh(mesh)
    found = ntk.kernel_alignment(own, X, TARGETS, block_rows=block_rows)
    kernels, labels = kernels_of(members), TARGETS.astype(np.float64) @ TARGETS.T

    def cosine(a, b):
        return np.einsum("...ij,...ij->...", a, b) / (norm(a) * norm(b))

    close = dict(rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.labels, cosine(kernels, labels), **close)
    centred, own = H @ kernels @ H, H @ labels @ H
    np.testing.assert_allclose(found.labels_centred, cosine(centred, own), **close)
    for values, k in ((found.members, kernels), (found.members_centred, centred)):
        np.testing.assert_allclose(values, cosine(k[:, None], k[None]), **close)
        np.testing.assert_allclose(np.diagonal(values), 1, **close)


def test_members_meet_in_one_gather_and_rows_in_sums(monkeypatch):
    four = ensjax.Ensemble.init(make_model, num_members=4, seed=0, mesh=SPREAD)
    calls = []
    monkeypatch.setattr(
        MeshProgram, "__call__", lambda self, *args: calls.append((self, args)) or {}
    )
    with pytest.raises(KeyError):  # the sums are not there
        ntk.kernel_alignment(four, X, TARGETS, block_rows=5)
    ((program, args),) = calls
    text = program.lower(*args).compile().as_text()
    found = read_collectives(text, (4, 2, 1))
    assert {(c.operation, c.axes) for c in found} == {
        ("all-gather", ("member",)),
        ("all-reduce", ("data",)),
    }
    counts = {c.operation: c.count for c in found}
    # A strip of all members; at the end its four sums over rows.
    assert counts["all-gather"] == 1 and counts["all-reduce"] <= 4


def test_a_member_that_is_not_finite_leaves_the_others_alone(members, moved):
    bad = jax.tree.map(lambda x: x.at[1].set(jnp.nan), members.params)
    spoiled = with_params(members, bad)
    drift = ntk.kernel_drift(spoiled, moved, X)
    expected = ntk.kernel_drift(members, moved, X)
    assert np.isnan(drift.change[1])
    np.testing.assert_array_equal(drift.change[::2], expected.change[::2])
    found = ntk.kernel_alignment(spoiled, X, TARGETS)
    whole = ntk.kernel_alignment(members, X, TARGETS)
    np.testing.assert_array_equal(found.labels[::2], whole.labels[::2])
    others = np.asarray(found.members_centred)[::2, ::2]
    np.testing.assert_array_equal(others, np.asarray(whole.members_centred)[::2, ::2])
    assert ntk.kernel_alignment(members, X).labels is None


def test_mistakes_are_told_before_any_work(members, moved):
    with pytest.raises(ValueError, match="same members in the same order"):
        ntk.kernel_drift(members, moved.select([1, 0, 2]), X)
    with pytest.raises(ValueError, match="on one mesh"):
        ntk.kernel_drift(members, moved.on_mesh(SPREAD), X)
    with pytest.raises(TypeError, match="initial must be an ensjax.Ensemble"):
        ntk.kernel_drift(members.params, moved, X)
    with pytest.raises(ValueError, match=r"targets must be .* with 19 rows"):
        ntk.kernel_alignment(members, X, TARGETS[:5])
    with pytest.raises(ValueError, match="targets must be"):
        ntk.kernel_alignment(members, X, TARGETS.argmax(axis=1))
    with pytest.raises(ValueError, match="targets must be finite; rows 0, 1, 2"):
        ntk.kernel_alignment(members, X, np.full(TARGETS.shape, np.nan))
    with pytest.raises(ValueError, match="method is one of"):
        ntk.kernel_alignment(members, X, method="finite")
    with pytest.raises(ValueError, match="found in the name of no parameter"):
        ntk.kernel_drift(members, moved, X, params="conv")
    with pytest.raises(ValueError, match="of the same rows"):
        ntk.alignment(np.eye(3), np.eye(4))
    with pytest.raises(ValueError, match=r"must be \[member, row, row'\]"):
        ntk.alignment_between_members(np.eye(3))
    with pytest.raises(ValueError, match="one-hot"):
        ntk.label_kernel(np.arange(3))
