"""Splits and folds share no row and no group, and predictions know what they saw."""

import numpy as np
import pytest

from ensjax import data
from ensjax.provenance import LeakageError, Provenance, check_fitting_rows

LABELS = np.repeat([0, 1, 2], [30, 50, 20])
GROUPS = np.random.default_rng(0).integers(0, 17, 100)


def test_parts_are_disjoint_of_the_asked_sizes_and_stratified():
    sizes = {"train": data.partition.REST, "validation": 0.25, "test": 20}
    split = data.split_rows("wine", 100, sizes, seed=1, labels=LABELS)
    assert {name: len(rows) for name, rows in split.parts.items()} == {
        "train": 55,
        "validation": 25,
        "test": 20,
    }
    rows = np.concatenate(list(split.parts.values()))
    assert sorted(rows) == list(range(100))
    for part in split.parts.values():
        counts = np.bincount(LABELS[part], minlength=3)
        assert np.abs(counts - len(part) * np.array([0.3, 0.5, 0.2])).max() <= 1
    again = data.split_rows("wine", 100, sizes, seed=1, labels=LABELS)
    assert all((split[name] == again[name]).all() for name in sizes)
    assert split.mask("test").sum() == 20
    some = data.split_rows("wine", 100, {"a": 0.5, "b": 0.125}, seed=0)
    assert (len(some["a"]), len(some["b"])) == (50, 12)  # 62.5 is 62 in all


def test_no_group_is_in_two_parts_and_sizes_are_met_nearly():
    sizes = {"train": 0.6, "validation": 0.2, "test": 0.2}
    split = data.split_rows("site", 100, sizes, seed=3, labels=LABELS, groups=GROUPS)
    held = [set(GROUPS[split[name]]) for name in sizes]
    assert not held[0] & held[1] and not held[0] & held[2] and not held[1] & held[2]
    largest = np.bincount(GROUPS).max()
    for name, size in sizes.items():
        assert abs(len(split[name]) - 100 * size) < largest
    left = data.split_rows("site", 100, {"a": 40, "b": 30}, seed=0, groups=GROUPS)
    assert 20 <= 100 - len(left["a"]) - len(left["b"]) <= 40


def test_folds_hold_every_row_out_once_by_class_or_by_group():
    folds = data.make_folds("wine", 100, 5, seed=0, labels=LABELS)
    assert (np.bincount(folds.fold_of_row) == 20).all()
    for split in folds:
        assert (np.bincount(LABELS[split["test"]]) == [6, 10, 4]).all()
        assert len(split["train"]) == 80
    by_group = data.make_folds("site", 100, 4, seed=0, groups=GROUPS)
    for split in by_group:
        assert not set(GROUPS[split["train"]]) & set(GROUPS[split["test"]])
        assert 15 <= len(split["test"]) <= 35
    sites = data.leave_one_group_out("site", GROUPS)
    assert len(sites) == len(np.unique(GROUPS))
    for site, split in zip(np.unique(GROUPS), sites):
        assert (split["test"] == np.flatnonzero(site == GROUPS)).all()


def test_a_fold_has_validation_rows_of_its_own():
    folds = data.make_folds("wine", 100, 5, seed=0, labels=LABELS)
    split = folds.split(2, validation_size=1 / 3, labels=LABELS)
    assert [len(split[p]) for p in ("train", "validation", "test")] == [53, 27, 20]
    grouped = data.make_folds("site", 100, 4, seed=0, groups=GROUPS)
    split = grouped.split(1, validation_size=0.3)
    assert not set(GROUPS[split["train"]]) & set(GROUPS[split["validation"]])


def test_parts_that_share_a_row_or_a_group_are_refused():
    with pytest.raises(LeakageError, match="train and test must share no row"):
        data.Split("wine", 9, {"train": np.arange(5), "test": np.arange(4, 9)})
    with pytest.raises(LeakageError, match="train and test must share no group.*of b"):
        data.Split(
            "wine",
            4,
            {"train": np.array([0, 1]), "test": np.array([2, 3])},
            groups=np.array(["a", "b", "b", "c"]),
        )
    with pytest.raises(LeakageError, match="0 and 1 must share no group"):
        data.Folds("wine", np.array([0, 0, 1, 1]), groups=np.array([0, 1, 1, 2]))
    with pytest.raises(LeakageError, match="1 and test must share no row"):
        data.Folds("wine", np.array([0, 0, 1]), test_rows=np.array([2]))
    with pytest.raises(ValueError, match="comes twice"):
        data.Split("wine", 9, {"train": np.array([1, 1])})
    with pytest.raises(ValueError, match="from 0 to 9"):
        data.Split("wine", 9, {"train": np.array([0, 9])})
    with pytest.raises(ValueError, match="every part needs a row"):
        data.split_rows("wine", 10, {"a": 8, "b": 5}, seed=0)
    with pytest.raises(ValueError, match="number of groups, 3"):
        data.make_folds("wine", 6, 4, seed=0, groups=np.array([0, 0, 1, 1, 2, 2]))


def test_a_mask_is_no_part_and_no_folds():
    mask = np.arange(9) < 5
    with pytest.raises(TypeError, match="the part 'train' .* got a mask.*flatnonzero"):
        data.Split("wine", 9, {"train": mask})
    with pytest.raises(TypeError, match="the part 'train' .* got a set"):
        data.Split("wine", 9, {"train": {1, 2}})
    for wrong in (mask, np.where(mask, 0.0, 1.5)):
        with pytest.raises(TypeError, match="fold_of_row must be .* integers"):
            data.Folds("wine", wrong)
    with pytest.raises(TypeError, match="part 'test' .* got a mask"):
        data.Folds("wine", np.arange(9) % 3, test_rows=mask)
    with pytest.raises(TypeError, match="b must be .* got a mask"):
        data.check_disjoint(np.arange(3), mask)
    # Its own mask of a part is for arrays; for provenance there is the part.
    split = data.split_rows("mine", 100, {"train": 60, "test": 20}, seed=0)
    with pytest.raises(TypeError, match="trained_on must be .* got a mask"):
        Provenance.of("mine", split["train"], trained_on=split.mask("train"))
    about = Provenance.of("mine", split["train"], trained_on=split["train"])
    assert about.seen.sum() == 60


def test_out_of_fold_rows_are_told_in_the_order_of_the_predictions():
    """A part is shuffled: its predictions are as long as those in ascending order."""
    split = data.split_rows("wine", 100, {"train": 0.8, "test": 0.2}, seed=0)
    folds = split.folds("train", 4, seed=0)
    assert (np.diff(split["train"]) < 0).any()
    about = folds.provenance(rows=split["train"])
    np.testing.assert_array_equal(about.rows, split["train"])
    assert not about.seen.any() and (about.test_rows == np.sort(split["test"])).all()
    some = folds.provenance(rows=split["train"][:5], part="out-of-fold")
    assert len(some.rows) == 5 and some.part == "out-of-fold"
    np.testing.assert_array_equal(folds.provenance().rows, np.sort(split["train"]))
    odd = split["test"][0]
    with pytest.raises(ValueError, match=f"in folds; row {odd} is in none"):
        folds.provenance(rows=np.append(split["train"], odd))
    with pytest.raises(ValueError, match="in folds; one comes twice"):
        folds.provenance(rows=split["train"][[0, 0]])
    with pytest.raises(TypeError, match="rows must be .* got a mask"):
        folds.provenance(rows=split.mask("train"))


def test_predictions_on_a_part_know_who_was_trained_on_it():
    sizes = {"train": 0.5, "validation": 0.3, "test": 0.2}
    split = data.split_rows("wine", 100, sizes, seed=0)
    check_fitting_rows("the vote", split.provenance("validation"))
    with pytest.raises(LeakageError, match="was trained on them"):
        check_fitting_rows("the vote", split.provenance("train"))
    both = split.provenance("validation", trained_on=("train", "validation"))
    with pytest.raises(LeakageError, match="30 in all.*was trained on them"):
        check_fitting_rows("the vote", both)
    with pytest.raises(LeakageError, match="test rows only test"):
        check_fitting_rows("the vote", split.provenance("test"))
    untrained = split.provenance("train", trained_on=None)
    fitted = check_fitting_rows("the vote", untrained)
    fitted.check_test(split.provenance("test"))


def test_out_of_fold_predictions_may_be_fitted_on_but_not_the_kept_test_rows():
    split = data.split_rows("wine", 100, {"train": 0.8, "test": 0.2}, seed=0)
    folds = split.folds("train", 4, seed=0, labels=LABELS)
    provenance = folds.provenance()
    assert (provenance.rows == np.sort(split["train"])).all()
    fitted = check_fitting_rows("the stack", provenance)
    fitted.check_test(split.provenance("test"))
    with pytest.raises(LeakageError, match="the stack was fitted on"):
        fitted.check_test(
            data.Split("wine", 100, {"test": np.arange(100)}).provenance(
                "test", trained_on=None
            )
        )
