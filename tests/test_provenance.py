"""Rows that were trained on, fitted on and tested on do not meet."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ensjax import combine
from ensjax.predictions import Predictions
from ensjax.provenance import FittedRows, LeakageError, Provenance, check_fitting_rows

ROWS = np.arange(10, 18)


def predictions(provenance, seed=0):
    rng = np.random.default_rng(seed)
    logits = jnp.asarray(rng.normal(size=(2, 8, 3)), jnp.float32)
    return Predictions.from_logits(logits, names=("tree", "knn"), provenance=provenance)


LABELS = np.arange(8) % 3


def test_rows_that_a_member_was_trained_on_are_named():
    provenance = Provenance.of(
        "wine", ROWS, trained_on=[np.arange(5), np.array([12, 17, 90])]
    )
    with pytest.raises(LeakageError, match="rows 12, 17 of 'wine': member 'knn' was"):
        combine.calibrate(predictions(provenance), LABELS)
    # A member that does not count has leaked nothing.
    counts = np.array([True, False])
    check_fitting_rows("the vote", provenance, counts=counts)
    shared = Provenance.of("wine", ROWS, trained_on=np.arange(14))
    with pytest.raises(LeakageError, match=r"rows 10, 11, 12, 13 .*'tree' \(and 1"):
        combine.calibrate(predictions(shared), LABELS)


def test_nothing_is_fitted_on_test_rows():
    with pytest.raises(LeakageError, match="'test' rows of 'wine'"):
        combine.calibrate(predictions(Provenance("wine", ROWS, "test")), LABELS)
    kept = Provenance("wine", ROWS, test_rows=np.array([3, 11]))
    with pytest.raises(LeakageError, match="row 11 of 'wine', which are kept"):
        combine.calibrate(predictions(kept), LABELS)


def test_what_was_fitted_on_a_row_is_not_tested_on_it():
    held_out = Provenance.of("wine", ROWS, trained_on=np.arange(10))
    fitted = FittedRows("the temperature", held_out)
    temperature = combine.Temperature(2.0, None, fitted)
    for allowed in (
        held_out,
        Provenance("wine", ROWS + 8, "test"),
    ):  # a look at the fit
        assert np.isfinite(temperature(predictions(allowed)).log_probs).all()
    elsewhere = Provenance("iris", ROWS, "test")
    assert np.isfinite(temperature(predictions(elsewhere)).log_probs).all()
    overlap = Provenance("wine", ROWS + 6, "test")
    with pytest.raises(LeakageError, match="the temperature was fitted on rows 16, 17"):
        temperature(predictions(overlap))


def test_equal_provenances_compile_once():
    count = 0

    def pooled(said):
        nonlocal count
        count += 1
        return combine.mean_probs(said)

    pooled = jax.jit(pooled)
    for seed in range(3):
        pooled(predictions(Provenance.of("wine", ROWS, trained_on=np.arange(3)), seed))
    assert count == 1
    pooled(predictions(Provenance.of("wine", ROWS, trained_on=np.arange(11))))
    assert count == 2


def test_some_rows_keep_what_is_known_of_them():
    whole = Provenance.of("wine", ROWS, trained_on=[np.array([10]), np.array([13])])
    part = whole.take(np.array([1, 3]), part="test")
    assert part.rows.tolist() == [11, 13] and part.part == "test"
    assert part.seen.tolist() == [[False, False], [False, True]]


def test_what_provenance_may_be():
    with pytest.raises(TypeError, match="rows must be .* integers .*; got float64"):
        Provenance("wine", np.array([0.5]))
    with pytest.raises(ValueError, match=r"rows must be .*; got shape \(2, 4\)"):
        Provenance("wine", ROWS.reshape(2, 4))
    with pytest.raises(ValueError, match="bools"):
        Provenance("wine", ROWS, seen=np.zeros((2, 3), bool))
    with pytest.raises(ValueError, match="got 5 rows"):
        predictions(Provenance("wine", np.arange(5)))
    with pytest.raises(ValueError, match="seen by 3 members"):
        predictions(Provenance.of("wine", ROWS, trained_on=[ROWS] * 3))


def test_rows_of_all_members_may_be_a_list():
    about = Provenance.of("wine", ROWS, trained_on=[10, 12])
    assert about.seen.tolist() == [[True, False, True] + [False] * 5]
    assert not Provenance.of("wine", ROWS, trained_on=[]).seen.any()
    with pytest.raises(ValueError, match='is called "test"; got'):
        Provenance("wine", ROWS, "Test")


MASK = np.arange(8) < 3


@pytest.mark.parametrize(
    "wrong, told",
    [
        (MASK, r"got a mask.*np\.flatnonzero\(mask\)"),
        (MASK.tolist(), r"got a mask.*np\.flatnonzero\(mask\)"),
        ({10, 12}, r"got a set.*sorted\("),
        (np.array([10.0, 12.0]), "got float64"),
        (["10", "12"], "got <U2"),
    ],
)
def test_a_mask_or_a_set_is_no_row_numbers(wrong, told):
    """Read as numbers, True and False are the rows 1 and 0: the guard was off."""
    cases = {
        "rows": lambda: Provenance.of("wine", wrong, trained_on=[]),
        "rows ": lambda: Provenance("wine", wrong),
        "test_rows": lambda: Provenance("wine", ROWS, test_rows=wrong),
        "test_rows ": lambda: Provenance.of("wine", ROWS, test_rows=wrong),
        "trained_on": lambda: Provenance.of("wine", ROWS, trained_on=wrong),
        "trained_on of member 1": lambda: Provenance.of(
            "wine", ROWS, trained_on=[np.array([10]), wrong]
        ),
    }
    for name, make in cases.items():
        with pytest.raises(TypeError, match=f"^{name.strip()} must be .*{told}"):
            make()


def test_the_rows_of_a_fit_are_a_provenance():
    with pytest.raises(
        TypeError, match="the temperature: .* a Provenance.*got ndarray"
    ):
        FittedRows("the temperature", ROWS)


def test_what_members_were_trained_on_is_unknown_unless_it_is_said():
    """One forgotten argument does not turn "unknown" into "has seen nothing"."""
    assert Provenance.of("wine", ROWS) == Provenance("wine", ROWS)
    nothing = Provenance.of("wine", ROWS, trained_on=[])
    assert nothing.seen.tolist() == [[False] * 8] and nothing.known is None
    made = FittedRows("the temperature", nothing).mark(Provenance.of("wine", ROWS + 9))
    assert made.known.tolist() == [False]


def test_members_of_a_fit_are_compared_where_both_are_known():
    fitted = FittedRows("the weights", names=("good", "noise"))
    told = r"fitted on the members \('good', 'noise'\), in this order; got .*"
    with pytest.raises(ValueError, match=told + r"\.select\(\['good', 'noise'\]\)"):
        fitted.check_members(["noise", "good"])
    with pytest.raises(ValueError, match=told + r"\.select\("):
        fitted.check_members(["noise", "third", "good"])
    with pytest.raises(ValueError, match=told + r"\('good', 'bad'\): .*replace\(names"):
        fitted.check_members(["good", "bad"])
    for same in (["good", "noise"], (), ["member 0", "member 1"]):
        fitted.check_members(same)
    FittedRows("the weights").check_members(["noise", "good"])
    numbered = FittedRows("the weights", names=("member 0", "member 1"))
    with pytest.raises(ValueError, match=r"\.select\(\['member 0', 'member 1'\]\)"):
        numbered.check_members(["member 1", "member 0"])
    numbered.check_members(["member 0", "member 1", "member 2"])  # shapes say so


def test_classes_and_levels_of_a_fit_are_compared_where_both_are_known():
    fitted = FittedRows("the sets", columns=("no", "yes"), levels=(0.1, 0.9))
    with pytest.raises(ValueError, match=r"\('no', 'yes'\).*got .*\('yes', 'no'\)"):
        fitted.check_columns(("yes", "no"))
    with pytest.raises(ValueError, match=r"\(0.1, 0.9\); got .*\(0.2, 0.8\)"):
        fitted.check_levels((0.2, 0.8))
    with pytest.raises(ValueError, match=r"got .*\(0.1, 0.5, 0.9\)"):
        fitted.check_levels((0.1, 0.5, 0.9))
    fitted.check_columns(None)
    fitted.check_levels(())
    fitted.check_levels(np.float32([0.1, 0.9]).tolist())
    FittedRows("the sets", columns=(0, 1)).check_columns(("0", "1"))


BAG = np.array([[1, 0, 2, 1, 1, 0, 0, 1], [0, 1, 1, 0, 0, 1, 0, 1]])  # row 7: all


@pytest.mark.parametrize(
    "fit",
    [
        pytest.param(combine.calibrate, marks=pytest.mark.slow),
        combine.calibrate_members,
        lambda said, y: combine.calibrate_ensemble(combine.fit_vector_scaling, said, y),
        lambda said, y: combine.fit_conformal_sets(
            combine.LacScore(), said, y, alpha=0.3
        ),
        lambda said, y: combine.fit_cascade(
            said, y, stages=((0,), (1,)), task="coverage_at_risk", level=0.3
        ),
        combine.fit_stacking,
        combine.fit_convex_weights,
    ],
)
def test_out_of_bag_rows_may_be_fitted_on(fit):
    """Members do not count on what they were trained on; where none does, no row."""
    trained_on = [ROWS[counts > 0] for counts in BAG]
    said = predictions(Provenance.of("wine", ROWS, trained_on=trained_on))
    with pytest.raises(LeakageError):
        fit(said, LABELS)
    said = said.replace(mask=jnp.asarray(BAG == 0))
    for leaf in jax.tree.leaves(fit(said, LABELS)):
        assert np.isfinite(leaf).all()


def test_members_that_are_numbered_from_0_are_anybody():
    chosen, all_of_them = ("member 2", "member 3"), ("member 0", "member 1")
    FittedRows("a fit", names=chosen).check_members(all_of_them)
    FittedRows("a fit", names=all_of_them).check_members(chosen)
    for names in (chosen[::-1], ("member 1", "member 2")):
        with pytest.raises(ValueError, match="in this order"):
            FittedRows("a fit", names=chosen).check_members(names)
    with pytest.raises(ValueError, match="in this order"):
        FittedRows("a fit", names=all_of_them).check_members(all_of_them[::-1])
    FittedRows("a fit", names=(1, 2)).check_members(("1", "2"))
