"""Coverage and size of sets of classes, against loops over rows."""

import jax
import numpy as np
import pytest

from ensjax import scores

ROWS, CLASSES = 50, 6


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    sets = rng.uniform(size=(2, ROWS, CLASSES)) < rng.uniform(size=(2, ROWS, 1))
    labels = rng.integers(0, CLASSES - 1, ROWS)  # the last class has no rows
    return sets, labels, rng.uniform(size=ROWS) * (rng.uniform(size=ROWS) < 0.8)


def test_coverage_and_size_equal_a_loop(case):
    sets, labels, weight = case
    covered = sets[:, np.arange(ROWS), labels]
    expected = (covered * weight).sum(1) / weight.sum()
    found = jax.jit(scores.set_coverage)(sets, labels, sample_weight=weight)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    sizes = (sets.sum(-1) * weight).sum(1) / weight.sum()
    found = scores.mean_set_size(sets, sample_weight=weight)
    np.testing.assert_allclose(found, sizes, rtol=1e-6)


def test_coverage_of_classes_equals_a_loop(case):
    sets, labels, weight = case
    found = scores.class_coverage(sets, labels, sample_weight=weight)
    gaps = scores.coverage_gap(sets, labels, nominal=0.7, sample_weight=weight)
    for i in range(2):
        expected = []
        for c in range(CLASSES):
            own = labels == c
            if not own.any():
                assert np.isnan(found[i, c])
                continue
            expected.append(np.average(sets[i, own, c], weights=weight[own]))
        np.testing.assert_allclose(found[i, : len(expected)], expected, atol=1e-6)
        gap = np.mean(np.abs(np.array(expected) - 0.7))
        np.testing.assert_allclose(gaps[i], gap, atol=1e-6)


def test_coverage_of_sizes_equals_a_loop(case):
    sets, labels, _ = case
    edges = (0, 2, 3, 6)
    found = scores.size_stratified_coverage(sets, labels, edges=edges)
    bounds = [*edges, 10**9]
    for i in range(2):
        sizes = sets[i].sum(-1)
        for b in range(len(edges)):
            own = (sizes >= bounds[b]) & (sizes < bounds[b + 1])
            covered = sets[i, own, labels[own]]
            expected = covered.mean() if own.any() else np.nan
            np.testing.assert_allclose(found[i, b], expected, atol=1e-6)


def test_everything_and_nothing(case):
    _, labels, _ = case
    everything = np.ones((ROWS, CLASSES), bool)
    assert scores.set_coverage(everything, labels) == 1
    assert scores.set_coverage(~everything, labels) == 0
    assert scores.mean_set_size(~everything) == 0
    unknown = np.where(np.arange(ROWS) == 3, CLASSES, labels)
    assert np.isnan(scores.set_coverage(everything, unknown))
    keep = np.arange(ROWS) != 3
    assert scores.set_coverage(everything, unknown, sample_weight=keep) == 1


def test_what_does_not_fit_is_refused(case):
    sets, labels, _ = case
    with pytest.raises(TypeError, match="sets must be bool"):
        scores.set_coverage(sets.astype(float), labels)
    with pytest.raises(TypeError, match="labels must be integers"):
        scores.set_coverage(sets, labels.astype(float))
    with pytest.raises(ValueError, match="labels must have shape"):
        scores.set_coverage(sets, labels[:-1])
    with pytest.raises(ValueError, match="edges must rise"):
        scores.size_stratified_coverage(sets, labels, edges=(0, 2, 2))
    with pytest.raises(ValueError, match="nominal must lie"):
        scores.coverage_gap(sets, labels, nominal=90)
