"""Mistakes that published packages made, and that must not come back here."""

import jax
import numpy as np
import optax
import pytest
from scipy.special import log_softmax

import ensjax
from ensjax import data, losses, scores


def test_bins_do_not_depend_on_the_number_of_rows_and_the_ece_compiles_once():
    # Fortuna spaced its edges from 1 / N (rows, not bins) to 1.
    num_traces = 0

    @jax.jit
    def ece(log_probs, labels):
        nonlocal num_traces
        num_traces += 1
        return scores.ece(log_probs, labels, num_bins=4)

    # All rows lie below 1 / 2, where edges from 1 / N would leave a few-row set out.
    for seed in range(3):
        rng = np.random.default_rng(seed)
        log_probs = log_softmax(0.1 * rng.normal(size=(5, 4)), axis=-1)
        labels = rng.integers(0, 4, 5)
        probs = np.exp(log_probs)
        confidence, correct = probs.max(-1), probs.argmax(-1) == labels
        bins = np.ceil(confidence * 4).astype(int) - 1
        expected = sum(
            (bins == b).mean()
            * abs(confidence[bins == b].mean() - correct[bins == b].mean())
            for b in np.unique(bins)
        )
        np.testing.assert_allclose(ece(log_probs, labels), expected, rtol=1e-5)
    assert num_traces == 1
    edges = [
        scores.reliability_bins(log_probs[:n], labels[:n], num_bins=4).edges
        for n in (1, 5)
    ]
    for found in edges:
        np.testing.assert_allclose(found, [0, 0.25, 0.5, 0.75, 1], atol=1e-7)


def test_the_variance_of_one_member_is_its_own():
    # lightning-uq-box mixed standard deviations and variances.
    mean, variance = np.array([[1.0, -2.0]]), np.array([[0.09, 4.0]])
    found = scores.mixture_moments(mean, variance)
    np.testing.assert_allclose(found[0], mean[0], rtol=1e-6)
    np.testing.assert_allclose(found[1], variance[0], rtol=1e-6)
    # And of equal members, however many.
    found = scores.mixture_moments(np.repeat(mean, 5, 0), np.repeat(variance, 5, 0))
    np.testing.assert_allclose(found[1], variance[0], rtol=1e-6)


def _linear(rngs):
    return ensjax.nn.MLP(in_features=1, hidden=(), num_outputs=1, rngs=rngs)


@pytest.mark.slow
def test_out_of_fold_fits_keep_the_weights_of_their_rows():
    # scikit-learn's stacking forgot sample weights in the fits on folds.
    rng = np.random.default_rng(0)
    x = rng.normal(size=(12, 1)).astype(np.float32)
    y = (2 * x + rng.normal(size=(12, 1))).astype(np.float32)
    weight = rng.uniform(0.1, 3, 12)
    folds = data.k_folds(12, 3, seed=0)
    # One member per fold; its own test rows weigh nothing.
    fold_weights = np.stack(
        [weight * np.isin(np.arange(12), train) for train, _ in folds]
    )
    ensemble = ensjax.Ensemble.init(_linear, num_members=3)
    ensemble, _ = ensjax.fit(
        ensemble,
        (x, y),
        loss=losses.mean_squared_error,
        make_tx=optax.sgd,
        hyper=0.3,
        steps=300,
        batch_size=12,
        sampling="shared",
        loss_weights=fold_weights,
        steps_per_call=300,
        block=None,
        progress=False,
    )
    found = np.asarray(ensemble(x))[..., 0]
    design = np.concatenate([x, np.ones_like(x)], axis=1).astype(float)
    for member, own in enumerate(fold_weights):
        solution = np.linalg.solve(design.T * own @ design, design.T * own @ y)
        np.testing.assert_allclose(found[member], (design @ solution)[:, 0], atol=1e-4)


@pytest.mark.parametrize("ddof", [0, 1])
def test_the_divisor_of_a_spread_is_said_by_the_caller(ddof):
    # apax divides by M - 1 and MODNet by M; neither says so.
    points = np.random.default_rng(0).normal(size=(4, 6))
    found = scores.member_moments(points, ddof=ddof)
    np.testing.assert_allclose(found.std, points.std(axis=0, ddof=ddof), rtol=1e-5)
    with pytest.raises(TypeError, match="ddof"):
        scores.member_moments(points)


def test_moments_of_two_quantities_do_not_overwrite_each_other():
    # apax wrote the ensemble's forces where its stresses belong.
    rng = np.random.default_rng(0)
    outputs = {"forces": rng.normal(size=(3, 5, 2)), "stress": rng.normal(size=(3, 5))}
    found = jax.tree.map(lambda x: scores.member_moments(x, ddof=1), outputs)
    for name, values in outputs.items():
        np.testing.assert_allclose(found[name].mean, values.mean(axis=0), atol=1e-6)
        np.testing.assert_allclose(
            found[name].std, values.std(axis=0, ddof=1), rtol=1e-4
        )
