"""Distances in feature space, against scikit-learn and scipy."""

import jax
import numpy as np
import pytest
from scipy.spatial import distance as scipy_distance
from sklearn.covariance import EmpiricalCovariance
from sklearn.neighbors import NearestNeighbors

from ensjax import data, scores

neighbor_distances = jax.jit(
    scores.neighbor_distances,
    static_argnames=("num_neighbors", "metric", "exclude_self"),
)
knn_distance = jax.jit(scores.knn_distance)
distance = jax.jit(data.TrainingDomain.distance)
fit_gaussians = jax.jit(scores.fit_gaussians, static_argnames="num_classes")
mahalanobis = jax.jit(scores.mahalanobis)


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    # Far from the origin, where the expanded square of a distance cancels.
    reference = rng.normal(100, 1, size=(30, 4)).astype(np.float32)
    return reference, rng.normal(100, 2, size=(8, 4)).astype(np.float32)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_neighbours_equal_scikit_learn(rows, metric):
    reference, x = (r - 99 * (metric == "cosine") for r in rows)
    near = NearestNeighbors(n_neighbors=3, metric=metric).fit(reference.astype(float))
    expected = near.kneighbors(x.astype(float))[0]
    found = neighbor_distances(x, reference, num_neighbors=3, metric=metric)
    np.testing.assert_allclose(found, expected, atol=2e-6 * expected.max() + 1e-6)
    # Without itself a training row's neighbours are those of the other rows.
    left_out = near.kneighbors(n_neighbors=3)[0]
    found = neighbor_distances(
        reference, reference, num_neighbors=3, metric=metric, exclude_self=True
    )
    np.testing.assert_allclose(found, left_out, atol=2e-6 * left_out.max() + 1e-6)


@pytest.mark.slow
def test_members_may_have_their_own_features(rows):
    reference, x = rows
    stacked = np.stack([x, 2 * x])
    found = knn_distance(stacked, np.stack([reference, 2 * reference]))
    np.testing.assert_allclose(found[1], 2 * found[0], rtol=1e-5)
    shared = knn_distance(stacked, reference)
    np.testing.assert_allclose(shared[0], found[0], rtol=1e-6)
    five = neighbor_distances(x, reference, num_neighbors=5)
    np.testing.assert_allclose(found[0], five.mean(axis=1), rtol=1e-6)


def test_a_row_of_zeros_is_at_cosine_distance_one_and_duplicates_at_zero():
    reference = np.array([[1.0, 0], [0, 1], [0, 1]], np.float32)
    found = neighbor_distances(
        np.array([[0.0, 0], [0, 2]], np.float32),
        reference,
        num_neighbors=3,
        metric="cosine",
    )
    np.testing.assert_allclose(found, [[1, 1, 1], [0, 0, 1]], atol=1e-6)


def test_mahalanobis_equals_scipy_and_takes_the_nearest_class(rows):
    reference, x = rows
    labels = np.arange(30) % 2
    gaussians = fit_gaussians(reference, labels, num_classes=3, ridge=0.0)
    means = [reference[labels == c].astype(float).mean(axis=0) for c in range(2)]
    away = reference - np.stack(means)[labels]
    inverse = np.linalg.inv(away.T @ away / 30)
    expected = [
        min(scipy_distance.mahalanobis(row, m, inverse) for m in means) for row in x
    ]
    np.testing.assert_allclose(mahalanobis(x, gaussians), expected, rtol=1e-4)
    one = fit_gaussians(reference, ridge=0.0)
    expected = EmpiricalCovariance().fit(reference.astype(float)).mahalanobis(x)
    np.testing.assert_allclose(
        mahalanobis(np.stack([x, x]), one)[1] ** 2, expected, rtol=1e-4
    )


def test_the_classes_of_gaussians_are_those_of_the_labels(rows):
    reference, x = rows
    labels = np.arange(30) % 3
    told = scores.fit_gaussians(reference, labels, num_classes=3)
    found = scores.fit_gaussians(reference, labels)
    np.testing.assert_array_equal(found.means, told.means)
    with pytest.raises(ValueError, match=r"from 0 to 1, with num_classes=2; got \[2\]"):
        scores.fit_gaussians(reference, labels, num_classes=2)
    with pytest.raises(ValueError, match=r"got \[-1\], first in row 0"):
        scores.fit_gaussians(reference, labels - 1)
    with pytest.raises(ValueError, match="give num_classes"):
        jax.jit(lambda labels: scores.fit_gaussians(reference, labels).means)(labels)
    fit = jax.jit(
        lambda labels: scores.fit_gaussians(reference, labels, num_classes=2).means
    )
    assert np.isnan(fit(labels)).all()


def test_a_constant_feature_counts_in_its_own_units():
    # 0.1 is no sum of powers of 2: its mean over rows, and variance, are not exact.
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(100, 2)).astype(np.float32)
    reference[:, 1] = 0.1
    gaussians = fit_gaussians(reference)
    away = np.array([[0.0, 0.1], [0.0, 0.101]], np.float32)
    away[:, 0] = gaussians.means[0, 0]
    found = mahalanobis(away, gaussians)
    np.testing.assert_allclose(found, [0, 0.001], atol=2e-6)


@pytest.mark.slow
def test_dependent_features_do_not_break_mahalanobis(rows):
    reference, x = (np.concatenate([r, r[:, :1]], axis=1) for r in rows)
    found = mahalanobis(x, fit_gaussians(reference, ridge=1e-3))
    assert np.isfinite(found).all()


def test_mistakes_are_named(rows):
    reference, x = rows
    with pytest.raises(ValueError, match="metric must be one of"):
        scores.knn_distance(x, reference, metric="manhattan")
    with pytest.raises(ValueError, match="from 1 to 29"):
        scores.knn_distance(reference, reference, num_neighbors=30, exclude_self=True)
    with pytest.raises(ValueError, match="exclude_self needs the reference rows"):
        scores.knn_distance(x, reference, exclude_self=True)
    with pytest.raises(ValueError, match=r"reference must be \[row, 4\]"):
        scores.knn_distance(x, reference[:, :3])
    with pytest.raises(TypeError, match="labels must be integers"):
        fit_gaussians(x, np.zeros(8))


@pytest.mark.parametrize(
    "metric",
    [
        "cosine",
        pytest.param("euclidean", marks=pytest.mark.slow),
        pytest.param("mahalanobis", marks=pytest.mark.slow),
    ],
)
def test_a_domain_scales_by_its_training_rows_alone(metric):
    rng = np.random.default_rng(2)
    x = (rng.normal(size=(40, 3)) * [1, 10, 100] + [5, 0, -50]).astype(np.float32)
    test = x[:6] + np.array([0, 30, 0], np.float32)
    domain = data.TrainingDomain.of(x, metric=metric, num_neighbors=4)
    x64, test64 = x.astype(float), test.astype(float)
    if metric == "mahalanobis":
        root = np.linalg.cholesky(np.linalg.inv(np.cov(x64.T, ddof=0)))
        scaled = [(r - x64.mean(axis=0)) @ root for r in (x64, test64)]
    else:
        scaled = [(r - x64.mean(axis=0)) / x64.std(axis=0) for r in (x64, test64)]
    kind = "cosine" if metric == "cosine" else "euclidean"
    near = NearestNeighbors(n_neighbors=4, metric=kind).fit(scaled[0])
    expected = near.kneighbors(scaled[1])[0].mean(axis=1)
    np.testing.assert_allclose(distance(domain, test), expected, rtol=2e-4, atol=1e-5)
    expected = near.kneighbors()[0].mean(axis=1)
    np.testing.assert_allclose(
        domain.training_distance(), expected, rtol=2e-4, atol=1e-5
    )
    # A row is as far among others: test statistics enter nowhere.
    others = np.concatenate([test[:1], 50 + test[1:]])
    np.testing.assert_allclose(
        distance(domain, others)[0], distance(domain, test)[0], rtol=1e-6
    )


def test_constant_features_of_training_count_in_their_own_units():
    x = np.concatenate(
        [np.random.default_rng(0).normal(size=(9, 1)), np.ones((9, 1))], 1
    )
    domain = data.TrainingDomain.of(x, metric="euclidean", num_neighbors=1)
    moved = x[:1] + [[0, 3]]
    np.testing.assert_allclose(distance(domain, moved), 3, rtol=1e-5)


def test_shifted_splits_hold_out_the_end_or_the_cluster():
    rng = np.random.default_rng(3)
    values = rng.normal(size=50)
    train, held = data.split_by_feature(values, share=0.2)
    assert len(held) == 10 and values[held].min() >= values[train].max()
    np.testing.assert_array_equal(np.sort(np.concatenate([train, held])), np.arange(50))
    train, held = data.split_by_feature(values, share=0.3, end="lower")
    assert len(held) == 15 and values[held].max() <= values[train].min()
    kept = data.thin_target(values, share=0.2, keep=0.1, seed=0)
    tail = np.isin(np.argsort(values)[-10:], kept).sum()
    assert len(kept) == 41 and tail == 1
    centers = np.array([[0, 0], [9, 9], [0, 9]])
    group = np.repeat([0, 1, 2], [20, 7, 13])
    x = centers[group] + rng.normal(size=(40, 2))
    for cluster, size in enumerate((7, 13, 20)):
        train, held = data.split_by_cluster(x, num_clusters=3, cluster=cluster)
        assert len(held) == size and len(set(group[held])) == 1
        assert not set(train) & set(held)
    with pytest.raises(ValueError, match="leaves a part without rows"):
        data.split_by_feature(values, share=0.001)
    with pytest.raises(ValueError, match="end must be one of"):
        data.split_by_feature(values, end="top")


def test_neighbours_far_from_the_centre_are_found_and_measured():
    """Squares of the distance from the centre would cancel in float32."""
    rng = np.random.default_rng(0)
    reference = (100 + 1e-3 * rng.normal(size=(60, 3))).astype(np.float32)
    reference = np.concatenate([reference, reference + 1000])
    away = reference[:, None].astype(np.float64) - reference[None]
    distances = np.sort(np.sqrt((away**2).sum(-1)), axis=1)
    found = scores.neighbor_distances(reference, reference, num_neighbors=3)
    np.testing.assert_allclose(found, distances[:, :3], rtol=1e-5)
