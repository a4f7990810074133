"""Nearest neighbours against scikit-learn's, alone and stacked."""

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from ensjax import Ensemble, combine, nn, scores


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 4)).astype(np.float32)
    x[10:20] = x[:10]  # rows that occur twice
    return x, rng.integers(3, size=50), rng.normal(size=(30, 4)).astype(np.float32)


def test_shares_and_votes_are_those_of_scikit_learn(rows):
    x, labels, examples = rows
    model = nn.NearestNeighbors(x, labels, num_classes=3, num_neighbors=4)
    peer = KNeighborsClassifier(4, algorithm="brute").fit(x, labels)
    log_probs = model(examples)
    np.testing.assert_allclose(
        np.exp(log_probs), peer.predict_proba(examples), atol=1e-6
    )
    np.testing.assert_array_equal(
        combine.majority_vote(log_probs[None]), peer.predict(examples)
    )


def test_masked_rows_are_as_if_removed_and_equal_rows_keep_their_order(rows):
    x, _, examples = rows
    mask = np.arange(50) % 3 > 0
    index, squared = nn.nearest_rows(examples, x, 5, mask=mask, block=7)
    kept = np.flatnonzero(mask)
    distances = ((examples[:, None] - x[None, kept]) ** 2).sum(-1)
    want = np.argsort(distances, axis=1, kind="stable")[:, :5]
    np.testing.assert_array_equal(index, kept[want])
    np.testing.assert_allclose(
        squared, np.take_along_axis(distances, want, axis=1), rtol=1e-5
    )
    broken = np.where(mask[:, None], x, np.nan)
    np.testing.assert_array_equal(
        nn.nearest_rows(examples, broken, 5, mask=mask)[0], index
    )


def test_neighbours_of_distant_rows_survive_float32():
    x = (1000 + np.arange(6.0)[:, None] * 1e-2).astype(np.float32)
    index, _ = nn.nearest_rows(x[:1], x, 3)
    assert index[0].tolist() == [0, 1, 2]


def test_bootstraps_of_the_rows_are_members_of_one_stack(rows):
    x, labels, examples = rows
    drawn = np.random.default_rng(1).integers(50, size=(3, 50))
    models = [
        nn.NearestNeighbors(x[rows], labels[rows], num_classes=3) for rows in drawn
    ]
    stacked = np.asarray(Ensemble.stack(models)(examples))
    for member, model in enumerate(models):
        np.testing.assert_array_equal(stacked[member], model(examples))


def test_what_does_not_fit_is_refused(rows):
    x, labels, examples = rows
    with pytest.raises(ValueError, match="from 1 to the 50 rows"):
        nn.NearestNeighbors(x, labels, num_classes=3, num_neighbors=51)
    with pytest.raises(ValueError, match="same features"):
        nn.nearest_rows(examples[:, :2], x, 3)
    with pytest.raises(TypeError, match="integers"):
        nn.NearestNeighbors(x, labels * 1.0, num_classes=3)
    model = nn.NearestNeighbors(x, labels, num_classes=3)
    assert jnp.isnan(model(jnp.full((1, 4), jnp.nan))).all()


def test_a_reference_row_with_a_nan_comes_last():
    rows = np.array([[np.nan, 0.0], [1.0, 0.0], [2.0, 0.0]], np.float32)
    index, squared = nn.nearest_rows(np.zeros((1, 2), np.float32), rows, 3)
    np.testing.assert_array_equal(index, [[1, 2, 0]])
    np.testing.assert_array_equal(squared, [[1, 4, np.inf]])
    broken = np.array([[np.nan, 0.0]], np.float32)
    assert np.isnan(nn.nearest_rows(broken, rows, 3)[1]).all()
    x = np.array([[1.0, 1.0]], np.float32)
    for metric in ("euclidean", "cosine"):
        found = scores.neighbor_distances(x, rows, num_neighbors=2, metric=metric)
        sound = scores.neighbor_distances(x, rows[1:], num_neighbors=2, metric=metric)
        np.testing.assert_allclose(found, sound, rtol=1e-6)
