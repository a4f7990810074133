"""What is fitted says so when no row counts; in a compiled program it is NaN."""

import jax
import numpy as np
import pytest

from ensjax import combine
from ensjax.predictions import Predictions

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(3, 6, 2)).astype(np.float32)
LABELS = np.arange(6) % 2
TARGETS = RNG.normal(size=6).astype(np.float32)

FITS = {
    "temperature": combine.calibrate,
    "members_temperatures": combine.calibrate_members,
    "map": lambda x, y, **k: combine.calibrate_ensemble(combine.fit_platt, x, y, **k),
    "maps": lambda x, y, **k: combine.calibrate_each_member(
        combine.fit_vector_scaling, x, y, **k
    ),
    "thresholds": combine.fit_vote_thresholds,
    "stacking": combine.fit_stacking,
    "convex": combine.fit_convex_weights,
    "brier": lambda x, y, **k: combine.fit_convex_weights(x, y, loss="brier", **k),
    "vote": combine.fit_accuracy_vote,
    "odds": combine.fit_log_odds_vote,
    "greedy": lambda x, y, **k: combine.greedy_select(x, y, rounds=2, **k),
    "pruning": combine.prune_members,
}
POINTS = {
    "regression": combine.fit_stacking_regression,
    "sigma": lambda x, y, **k: combine.fit_sigma_scale(x, x**2, y, **k),
}


@pytest.mark.parametrize("name", [*FITS, *POINTS])
def test_no_weight_at_all_is_refused(name):
    weight = np.zeros(6, np.float32)
    with pytest.raises(ValueError, match="needs at least one row that counts"):
        if name in FITS:
            FITS[name](LOGITS, LABELS, sample_weight=weight)
        else:
            POINTS[name](LOGITS[..., 0], TARGETS, sample_weight=weight)


@pytest.mark.parametrize(
    "name", [n for n in FITS if n not in ("brier", "vote", "odds")]
)
def test_rows_that_are_masked_for_every_member_are_no_rows(name):
    nobody = Predictions.from_logits(LOGITS, mask=np.zeros((3, 6), bool))
    with pytest.raises(ValueError, match="needs at least one row that counts"):
        FITS[name](nobody, LABELS)


# One of each kind of fit; the others share their code.
COMPILED = ("temperature", "thresholds", "stacking", "convex", "vote", "greedy")


@pytest.mark.parametrize("name", COMPILED)
def test_in_a_compiled_program_the_fit_is_nan(name):
    def fit(weight):
        fitted = FITS[name](LOGITS, LABELS, sample_weight=weight)
        return jax.tree.leaves(fitted)[0]

    assert np.isnan(jax.jit(fit)(np.zeros(6, np.float32))).all()


def test_a_selection_by_labels_that_are_no_class_is_nan_instead_of_the_first_member():
    chosen = combine.greedy_select(LOGITS, LABELS + 2, rounds=2)
    assert np.isnan(chosen.weights).all() and np.isnan(chosen.losses).all()


def test_a_bag_of_broken_members_chooses_nothing():
    broken = np.where(np.arange(3)[:, None, None] < 2, np.nan, LOGITS)
    options = dict(rounds=2, num_bags=6, bag_fraction=0.34, key=jax.random.key(0))
    chosen = combine.greedy_select(broken, LABELS, **options)  # one member in a bag
    assert 0 < np.isnan(chosen.losses[:, 0]).sum() < 6
    np.testing.assert_array_equal(chosen.weights, [0, 0, 1])
