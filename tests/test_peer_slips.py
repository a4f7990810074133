"""Mistakes that published packages made, and that must not come back here.

Others of them are tested where the functions are: members' accuracies averaged instead
of predictions (flax), a second softmax and labels that were not encoded (DESlib) in
`test_sources`; features selected outside the folds (made-for-ASD) in
`data/test_pipeline`.
"""

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from scipy.special import log_softmax

import ensjax
from ensjax import combine, data, losses, scores
from ensjax.sources import from_sklearn


def test_bins_do_not_depend_on_the_number_of_rows_and_the_ece_compiles_once():
    # Fortuna spaced its edges from 1 / N (rows, not bins) to 1.
    num_traces = 0

    @jax.jit
    def ece(log_probs, labels):
        nonlocal num_traces
        num_traces += 1
        return scores.ece(log_probs, labels, num_bins=4)

    # Confidences on both sides of the edges 1 / 4, 1 / 2, 3 / 4.
    for seed in range(3):
        rng = np.random.default_rng(seed)
        log_probs = log_softmax(2.0 * rng.normal(size=(5, 4)), axis=-1)
        labels = (log_probs.argmax(-1) + np.arange(5) % 2) % 4
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


def test_the_conformal_threshold_of_few_rows_is_the_next_larger_rank():
    # torch-uncertainty's THR took the plain 1 - alpha quantile, which covers less.
    most, alpha = 25, 0.2
    number = np.arange(1, most + 1)
    ranks = combine.conformal_quantile(
        np.tile(number.astype(np.float32), (most, 1)),
        alpha,
        row_mask=number[None] <= number[:, None],
    )
    # Of n + 1 rows that come in any order, the new one is at most the r-th of the
    # others with probability r / (n + 1).
    for n, rank in zip(number, np.asarray(ranks)):
        if np.isinf(rank):
            assert n / (n + 1) < 1 - alpha
        else:
            covers, less = rank / (n + 1), (rank - 1) / (n + 1)
            assert covers >= 1 - alpha - 1e-9 and less < 1 - alpha - 1e-9


def _linear(rngs):
    return ensjax.nn.MLP(in_features=1, hidden=(), num_outputs=1, rngs=rngs)


@pytest.mark.slow
def test_out_of_fold_fits_keep_the_weights_of_their_rows():
    # scikit-learn's stacking forgot sample weights in the fits on folds; estimators
    # have their own test in combine/learned/test_folds.
    rng = np.random.default_rng(0)
    x = rng.normal(size=(12, 1)).astype(np.float32)
    y = (2 * x + rng.normal(size=(12, 1))).astype(np.float32)
    weight = rng.uniform(0.1, 3, 12)
    folds = combine.fold_of_rows(data.k_folds(12, 3, seed=0))
    fold_weights = combine.fold_weights(folds, 1, sample_weight=weight)
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
    for fold in range(3):
        own = np.where(folds == fold, 0.0, weight)
        solution = np.linalg.solve(design.T * own @ design, design.T * own @ y)
        np.testing.assert_allclose(found[fold], (design @ solution)[:, 0], atol=1e-4)


@pytest.mark.parametrize("ddof", [0, 1])
def test_the_divisor_of_a_spread_is_said_by_the_caller(ddof):
    # apax divides by M - 1 and MODNet by M; neither says so.
    points = np.random.default_rng(0).normal(size=(4, 6))
    found = scores.member_moments(points, ddof=ddof)
    np.testing.assert_allclose(found.std, points.std(axis=0, ddof=ddof), rtol=1e-5)
    with pytest.raises(TypeError, match="ddof"):
        scores.member_moments(points)


class _TwoOutputs(nnx.Module):
    """Forces and stresses of one shape, so that no error shows a mix-up."""

    def __init__(self, rngs):
        self.forces = nnx.Linear(2, 3, rngs=rngs)
        self.stress = nnx.Linear(2, 3, rngs=rngs)

    def __call__(self, x):
        jax.debug.callback(_count_rows, x)
        return {"forces": self.forces(x), "stress": self.stress(x)}


_rows_seen = []


def _count_rows(x):
    _rows_seen.append(len(x))


@pytest.fixture(scope="module")
def predicted():
    """An ensemble of two outputs, its inputs and predictions, and rows of forwards."""
    ensemble = ensjax.Ensemble.init(_TwoOutputs, num_members=8)
    x = np.random.default_rng(0).normal(size=(10, 2)).astype(np.float32)
    _rows_seen.clear()
    outputs = jax.block_until_ready(ensjax.predict(ensemble, x, batch_size=5))
    jax.effects_barrier()
    return ensemble, x, outputs, sum(_rows_seen)


def test_outputs_of_one_shape_do_not_overwrite_each_other(predicted):
    # apax wrote the ensemble's forces where its stresses belong.
    ensemble, x, outputs, _ = predicted
    found = jax.tree.map(lambda x: scores.member_moments(x, ddof=1), outputs)
    for name in ("forces", "stress"):
        alone = []
        for member in range(8):
            layer = getattr(ensemble[member], name)
            kernel, bias = np.asarray(layer.kernel[...]), np.asarray(layer.bias[...])
            alone.append(x @ kernel + bias)
        np.testing.assert_allclose(outputs[name], alone, atol=1e-5)
        mean, std = np.mean(alone, axis=0), np.std(alone, axis=0, ddof=1)
        np.testing.assert_allclose(found[name].mean, mean, atol=1e-5)
        np.testing.assert_allclose(found[name].std, std, atol=1e-5)


def test_members_are_run_once_for_a_prediction(predicted):
    # MAPIE ran every member twice for one prediction.
    *_, num_rows = predicted
    assert num_rows == 8 * 10


class _Counted:
    """A fitted classifier that counts how often it is asked."""

    classes_ = np.arange(3)

    def __init__(self, seed):
        self.rng, self.calls = np.random.default_rng(seed), 0

    def predict_proba(self, x):
        self.calls += 1
        return self.rng.dirichlet(np.ones(3), len(x))

    def predict(self, x):
        return self.predict_proba(x).argmax(axis=1)


@pytest.mark.slow
def test_all_that_is_made_of_predictions_asks_the_members_once():
    members = [_Counted(seed) for seed in range(3)]
    labels = np.arange(12) % 3
    said = from_sklearn(members, np.zeros((12, 1)))
    combine.calibrate(said, labels)(said)
    sets = combine.fit_conformal_sets(combine.LacScore(), said, labels, alpha=0.3)
    assert sets(said).shape == (12, 3)
    combine.majority_vote(said)
    assert [member.calls for member in members] == [1, 1, 1]
