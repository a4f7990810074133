"""Splits: disjoint, exhaustive, seeded, and fair to every class."""

import numpy as np
import pytest

from ensjax.data import check_disjoint, k_folds, train_test_split

LABELS = np.repeat([0, 1, 2], [50, 30, 21])


@pytest.mark.parametrize("labels", [None, LABELS], ids=["plain", "stratified"])
@pytest.mark.parametrize("test_size, num_test", [(20, 20), (0.2, 20), (0.5, 50)])
def test_a_split_is_disjoint_exhaustive_and_of_the_size_asked(
    labels, test_size, num_test
):
    train, test = train_test_split(101, test_size=test_size, seed=0, labels=labels)
    assert len(test) == num_test
    np.testing.assert_array_equal(np.sort(np.append(train, test)), np.arange(101))


def test_the_same_seed_gives_the_same_rows_and_another_seed_does_not():
    for labels in (None, LABELS):
        a = train_test_split(101, test_size=20, seed=1, labels=labels)
        b = train_test_split(101, test_size=20, seed=1, labels=labels)
        c = train_test_split(101, test_size=20, seed=2, labels=labels)
        for x, y, z in zip(a, b, c, strict=True):
            np.testing.assert_array_equal(x, y)
            assert set(x.tolist()) != set(z.tolist())


def test_numpys_stream_has_not_changed():
    train, test = train_test_split(8, test_size=3, seed=0)
    assert (train.tolist(), test.tolist()) == ([6, 5, 0, 1, 7], [2, 4, 3])


def test_stratified_classes_have_their_share_to_within_one_row():
    _, test = train_test_split(101, test_size=20, seed=0, labels=LABELS)
    # 20 x (50, 30, 21) / 101 = 9.90, 5.94, 4.16: largest remainders give 10, 6, 4.
    np.testing.assert_array_equal(np.bincount(LABELS[test]), [10, 6, 4])


def test_rows_come_in_random_order_also_where_the_source_is_sorted():
    train, test = train_test_split(101, test_size=20, seed=0, labels=LABELS)
    for rows in (train, test):
        assert len(set(LABELS[rows[:10]])) > 1


@pytest.mark.parametrize("labels", [None, LABELS], ids=["plain", "stratified"])
@pytest.mark.parametrize("num_folds", [2, 5, 101])
def test_folds_partition_the_rows_evenly(labels, num_folds):
    folds = k_folds(101, num_folds, seed=0, labels=labels)
    tests = [test for _, test in folds]
    np.testing.assert_array_equal(np.sort(np.concatenate(tests)), np.arange(101))
    sizes = [len(test) for test in tests]
    assert len(folds) == num_folds and max(sizes) - min(sizes) <= 1
    for train, test in folds:
        check_disjoint(train, test)
        assert len(train) + len(test) == 101
    if labels is not None:
        counts = np.array([np.bincount(LABELS[test], minlength=3) for test in tests])
        assert np.ptp(counts, axis=0).max() <= 1


def test_an_overlap_is_named():
    check_disjoint(np.array([1, 2]), np.array([3]))
    with pytest.raises(
        ValueError, match="train and test must share no row; both hold 7"
    ):
        check_disjoint(np.array([1, 7]), np.array([7, 9]), names=("train", "test"))
    with pytest.raises(ValueError, match=r"0, 1, 2, 3, 4, \.\.\. \(10 in all\)"):
        check_disjoint(np.arange(10), np.arange(10))


def test_splits_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="both sets need at least 1"):
        train_test_split(10, test_size=10, seed=0)
    with pytest.raises(ValueError, match=r"share in \(0, 1\); got 1.5"):
        train_test_split(10, test_size=1.5, seed=0)
    with pytest.raises(
        ValueError, match=r"labels must be .*\[10\]; got shape \(101,\)"
    ):
        train_test_split(10, test_size=2, seed=0, labels=LABELS)
    with pytest.raises(ValueError, match="from 2 to num_examples=10; got 11"):
        k_folds(10, 11, seed=0)
