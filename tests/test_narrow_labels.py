"""Labels of eight bits and more classes than these hold: the results of wide ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ensjax
from ensjax import combine, data, nn, scores, weight_space
from ensjax.combine.learned.logistic import fit_logistic
from ensjax.data.multicolor import patch_colors
from ensjax.member_arrays import wide_labels
from ensjax.predictions import Predictions
from ensjax.scores.metrics import METRICS, VOTE_METRICS
from ensjax.train import SoftLabels, losses, smooth_labels

KINDS = {"uint8": [0, 40, 200, 255, 43, 1], "int8": [0, 40, 100, 127, 43, 1]}
# Every type at every number of classes, of which two or one are in the fast suite.
CASES = [(256, "uint8"), (300, "int8"), (256, "int8"), (300, "uint8")]


def of_every_type(num_fast):
    rest = (pytest.param(*case, marks=pytest.mark.slow) for case in CASES[num_fast:])
    return pytest.mark.parametrize("num_classes, kind", [*CASES[:num_fast], *rest])


def logits_of(num_classes, num_members=2):
    rng = np.random.default_rng(0)
    return rng.normal(size=(num_members, 6, num_classes)).astype(np.float32)


def equal_to_wide(function, kind):
    """Compares the results of labels of a narrow and of a wide type."""
    labels = np.array(KINDS[kind], kind)
    found, expected = (function(jnp.asarray(y)) for y in (labels, labels.astype(int)))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
    assert any(np.isfinite(x).any() for x in jax.tree.leaves(found))


@pytest.mark.parametrize("kind", KINDS)
def test_only_narrow_integers_become_wider(kind):
    labels = jnp.array(KINDS[kind], kind)
    assert wide_labels(labels).dtype == jnp.int32
    np.testing.assert_array_equal(wide_labels(labels), KINDS[kind])
    assert wide_labels(jnp.arange(3.0)).dtype == jnp.float32
    assert wide_labels(jnp.arange(3, dtype=jnp.uint32)).dtype == jnp.uint32


@of_every_type(2)
def test_losses(num_classes, kind):
    logits = jnp.asarray(logits_of(num_classes)[0])
    own = [
        losses.cross_entropy,
        losses.FocalLoss(),
        losses.LogitAdjustedLoss((1 / num_classes,) * num_classes),
        functools.partial(SoftLabels(), hyper={"label_smoothing": 0.1, "mixup": 0.5}),
    ]
    key = jax.random.key(0)

    @jax.jit
    def all_losses(labels):
        batch = (logits, labels)
        return [loss(lambda x: x, batch, key) for loss in own]

    equal_to_wide(all_losses, kind)
    targets = smooth_labels(jnp.array(KINDS[kind], kind), num_classes)
    np.testing.assert_array_equal(np.argmax(targets, 1), KINDS[kind])
    np.testing.assert_array_equal(np.sum(targets, 1), np.ones(6))
    stray = smooth_labels(jnp.array([-1], "int8"), num_classes)
    assert np.isnan(stray).all()


def of_metrics(names, logits):
    return jax.jit(lambda y: {name: METRICS[name](logits, y) for name in names})


@pytest.mark.slow  # a program of all scores for each type
@of_every_type(1)
def test_every_score_by_name(num_classes, kind):
    # 44,850 pairs of 300 classes in one of them, whose labels are read as in the others
    names = sorted(set(METRICS) - {"hand_till_auroc"})
    equal_to_wide(of_metrics(names, jnp.asarray(logits_of(num_classes))), kind)


@of_every_type(2)
def test_scores(num_classes, kind):
    logits = jnp.asarray(logits_of(num_classes))
    votes, sets = jnp.argmax(logits, -1), logits > 0
    of_members = [
        *(scores.normalized_disagreement, scores.double_fault),
        *(scores.label_probability_variance, scores.nll_decomposition),
    ]

    @jax.jit
    def all_scores(labels):
        return [
            *(METRICS[name](logits, labels) for name in ("nll", "brier", "accuracy")),
            VOTE_METRICS["accuracy"](votes, labels, num_classes=num_classes),
            *(score(logits, labels) for score in of_members),
            scores.confusion_matrix(logits, labels),
            scores.class_coverage(sets, labels),
        ]

    equal_to_wide(all_scores, kind)


@of_every_type(1)
def test_the_summary_and_evaluations(num_classes, kind):
    logits = jnp.asarray(logits_of(num_classes))

    def evaluations(labels):
        votes = Predictions.from_votes(jnp.argmax(logits, -1), num_classes=num_classes)
        found = [
            scores.evaluate(logits, labels, ["nll", "accuracy"]),
            scores.evaluate(votes, labels, ["accuracy"]),
            scores.evaluate_diversity(logits, labels, ["double_fault"]),
            scores.evaluate_sets(logits[0] > 0, labels, nominal=0.9),
            scores.score_summary(logits, labels),
        ]
        return jax.tree.map(np.asarray, jax.tree.leaves(found))

    equal_to_wide(evaluations, kind)


@of_every_type(1)
def test_what_is_fitted_on_labels(num_classes, kind):
    logits = jnp.asarray(logits_of(num_classes))
    x = jnp.arange(12.0).reshape(6, 2)
    weight = jnp.ones(6)

    def fits(labels):
        found = [
            combine.calibrate(logits, labels).temperature,
            combine.calibrate_members(logits, labels).temperature,
            combine.fit_isotonic_map(logits[0], labels, weight)(logits[0]),
            combine.fit_conformal_sets(
                combine.LacScore(), logits, labels, alpha=0.4
            ).threshold,
            combine.fit_conformal_sets_by_class(
                combine.LacScore(), logits, labels, alpha=0.5
            ).threshold,
            combine.fit_accuracy_vote(logits, labels).accuracy,
            combine.greedy_select(logits, labels, rounds=2).losses,
            combine.fit_dynamic_selection(logits, labels, x, num_neighbours=2).labels,
            combine.fit_convex_weights(logits, labels, loss="brier").weights,
            combine.bma_weights(logits, labels).weights,
            scores.fit_gaussians(x, labels, num_classes=num_classes, ridge=1.0).means,
            data.f_scores(x, labels, weight, num_classes),
        ]
        return found

    equal_to_wide(fits, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_colors(kind):
    colors = jnp.arange(300)[None]
    key = jax.random.key(0)
    equal_to_wide(lambda y: patch_colors(key, y, colors, 1.0), kind)


@pytest.mark.slow  # Newton's method with 300 columns
@pytest.mark.parametrize("kind", KINDS)
def test_logistic_regression(kind):
    x = jnp.arange(6.0)[:, None]

    def fit(labels):
        return fit_logistic(x, labels, jnp.ones(6), num_classes=300, l2=1.0)

    equal_to_wide(fit, kind)


def make_model(num_classes):
    return lambda rngs: nn.MLP(
        in_features=2, hidden=(3,), num_outputs=num_classes, rngs=rngs
    )


@of_every_type(1)
def test_weight_space(num_classes, kind):
    ensemble = ensjax.Ensemble.init(make_model(num_classes), num_members=2, seed=0)
    mesh = ensjax.make_mesh(member=1, devices=jax.devices()[:1])
    ensemble = ensemble.on_mesh(mesh)
    x = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)
    path = weight_space.alpha_path(3)
    names = ("accuracy", "error", "nll", "brier")

    def everything(labels):
        rows = (x, labels)
        return [
            weight_space.sweep(ensemble, path, {"a": rows}, scores=names).values,
            weight_space.greedy_soup(ensemble, rows, score="nll").weights,
            weight_space.learned_soup(ensemble, rows, num_epochs=1).weights,
        ]

    equal_to_wide(everything, kind)


@of_every_type(1)
def test_training(num_classes, kind):
    ensemble = ensjax.Ensemble.init(make_model(num_classes), num_members=2, seed=0)
    x = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)

    def train(labels):
        trained, log = ensjax.fit(
            ensemble,
            (x, np.asarray(labels)),
            loss=losses.cross_entropy,
            make_tx=lambda: optax.sgd(0.1),
            steps=1,
            batch_size=6,
            progress=False,
        )
        return trained.state["params"]

    equal_to_wide(train, kind)
