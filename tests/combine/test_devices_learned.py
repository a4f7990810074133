"""What is fitted gives the same on one device and on members split over eight."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from ensjax import combine, scores
from ensjax.predictions import Predictions

MEMBERS, ROWS, CLASSES = 8, 40, 3
RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, CLASSES, ROWS)
X = RNG.normal(size=(ROWS, 2)).astype(np.float32)
TARGETS = RNG.normal(size=ROWS).astype(np.float32)
GATES = RNG.uniform(size=(ROWS, MEMBERS)).astype(np.float32)
INBAG = RNG.multinomial(ROWS, np.ones(ROWS) / ROWS, size=MEMBERS)
MASK = RNG.uniform(size=(MEMBERS, ROWS)) < 0.8
STAGES = ((0, 1), (2, 3, 4), (5, 6, 7))


def ensemble_map(fit, **options):
    fit = functools.partial(fit, **options)
    return lambda x: combine.calibrate_ensemble(fit, x, LABELS)(x)


def cascade(x):
    fitted = combine.fit_cascade(x, LABELS, stages=STAGES, level=0.2, width=0.4)
    return fitted.windows.low, fitted.windows.high, fitted(x)


def jackknife(x):
    fitted = combine.fit_jackknife_after_bootstrap(x[..., 0], INBAG, TARGETS)
    return fitted(x[..., 0], alpha=0.2)


def sets(x):
    score = combine.ApsScore(is_random=False)
    return combine.fit_conformal_sets(score, x, LABELS, alpha=0.2).threshold


def predictions(x):
    return Predictions.from_logits(x, mask=MASK)


RULES = {
    "stacking": lambda x: combine.fit_stacking(x, LABELS)(x),
    "regression": lambda x: combine.fit_stacking_regression(
        x[..., 0], TARGETS, constraint="simplex"
    )(x[..., 0]),
    "greedy": lambda x: combine.greedy_select(x, LABELS, rounds=5)(x),
    "pruning": lambda x: combine.prune_members(x, LABELS).losses,
    "convex": lambda x: combine.fit_convex_weights(x, LABELS)(x),
    "masked_convex": lambda x: combine.fit_convex_weights(x, LABELS, mask=MASK)(x),
    "convex_brier": lambda x: combine.fit_convex_weights(x, LABELS, loss="brier")(x),
    "convex_by_class": lambda x: combine.fit_convex_weights(x, LABELS, per_class=True)(
        x
    ),
    "masked_by_class": lambda x: combine.fit_convex_weights(
        x, LABELS, per_class=True, mask=MASK
    )(x),
    "vote": lambda x: combine.fit_log_odds_vote(x, LABELS)(x),
    "bma": lambda x: combine.bma_weights(x, LABELS, temperature=10.0).weights,
    "thresholds": lambda x: (
        combine.fit_vote_thresholds(x[..., :2], LABELS % 2).log_odds
    ),
    "dynamic": lambda x: combine.fit_dynamic_selection(x, LABELS, X).weights(x, X),
    "dynamic_regression": lambda x: combine.fit_dynamic_regression(
        x[..., 0], TARGETS, X, rule="inverse"
    )(x[..., 0], X),
    "experts": lambda x: combine.mix_experts(x, GATES),
    "entropy_weights": combine.entropy_weights,
    "vector": ensemble_map(combine.fit_vector_scaling, l2=0.1),
    "matrix": ensemble_map(combine.fit_matrix_scaling, l2=0.01),
    "isotonic": ensemble_map(combine.fit_isotonic_map),
    "platt_of_each": lambda x: combine.calibrate_each_member(
        combine.fit_platt, x, LABELS
    )(x),
    "cascade": cascade,
    "sets": sets,
    "jackknife": jackknife,
    "influence": lambda x: combine.influence(combine.mean_probs, predictions(x)),
    "consensus_distance": lambda x: combine.consensus_distance(
        predictions(x), combine.mean_probs(predictions(x))
    ),
    "mask_nan": lambda x: combine.mean_probs(
        combine.mask_nan(predictions(x.at[1, 2, 0].set(jnp.nan)))
    ),
}


@pytest.fixture(scope="module")
def logits():
    """The same on one device and split, `[member, batch, class]`."""
    skill = np.linspace(0.5, 2, MEMBERS)[:, None, None]
    logits = RNG.normal(size=(MEMBERS, ROWS, CLASSES))
    logits = (logits + skill * np.eye(CLASSES)[LABELS]).astype(np.float32)
    mesh = jax.make_mesh((8,), ("member",), axis_types=(AxisType.Auto,))
    split = jax.device_put(logits, NamedSharding(mesh, P("member")))
    assert len(split.sharding.device_set) == 8
    return logits, split


def same(one, eight):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(eight), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", RULES)
def test_eight_devices_equal_one(name, logits):
    rule = jax.jit(RULES[name])
    same(*map(rule, logits))


@pytest.mark.slow
def test_evaluate_gives_the_same_numbers(logits):
    # Not compiled as one program: every operation costs, so that few will do.
    same(*(scores.evaluate(predictions(x), LABELS, ["nll"]) for x in logits))
    points = (scores.evaluate_points(x[..., 0], TARGETS, ["rmse"]) for x in logits)
    same(*points)


@pytest.mark.slow
def test_an_aggregator_of_quantiles_is_trained_to_the_same(logits):
    levels = (0.2, 0.5, 0.8)

    def fit(x):
        fitted = combine.fit_quantile_aggregator(
            x, TARGETS, levels=levels, kind="medium", steps=20, evaluate_every_steps=10
        )
        return fitted(x)

    same(*map(fit, logits))
