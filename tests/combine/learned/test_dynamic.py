"""Dynamic selection: equal to loops over rows, written from the definitions."""

import functools

import jax
import numpy as np
import pytest

from ensjax import combine
from ensjax.predictions import Predictions
from ensjax.provenance import LeakageError, Provenance

SLOW = pytest.mark.slow
RULES = [
    "lca",
    *(pytest.param(r, marks=SLOW) for r in ("knora_e", "knora_u", "ola", "des_p")),
]
K = 5


def case(members=4, rows=60, queries=25, classes=3, seed=0):
    rng = np.random.default_rng(seed)

    def part(count):
        x = rng.integers(0, 6, (count, 2)).astype(np.float32)  # distances tie
        labels = rng.integers(0, classes, count)
        # A member is right where its own coordinate is small.
        right = rng.uniform(size=(members, count)) < np.where(
            x.T[np.arange(members) % 2] < 3, 0.9, 0.3
        )
        votes = np.where(right, labels, rng.integers(0, classes, (members, count)))
        return x, labels, votes

    return part(rows), part(queries)


def reference_weights(rule, held_out, query_x, query_votes, classes=3):
    x, labels, votes = held_out
    members = len(votes)
    out = np.zeros((members, len(query_x)))
    for n, q in enumerate(query_x.astype(np.float64)):
        near = np.argsort(((x - q) ** 2).sum(1), kind="stable")[:K]
        right = votes[:, near] == labels[near]
        if rule == "knora_e":
            for k in range(K, -1, -1):
                qualified = right[:, :k].all(1)
                if qualified.any():
                    break
            out[:, n] = qualified
        elif rule == "knora_u":
            out[:, n] = right.sum(1) if right.any() else 1
        elif rule == "des_p":
            able = right.mean(1) > 1 / classes + 1e-9
            out[:, n] = able if able.any() else 1
        else:
            if rule == "ola":
                local = right.mean(1)
            else:
                same = labels[near] == query_votes[:, n][:, None]
                local = np.array(
                    [r[s].mean() if s.any() else 0 for r, s in zip(right, same)]
                )
            out[:, n] = local >= local.max() - 1e-9
    return out


def as_votes(votes):
    return Predictions.from_votes(votes, 3)


@pytest.mark.parametrize("rule", RULES)
def test_weights_equal_a_loop_over_rows(rule):
    held_out, (x, labels, votes) = case()
    selection = combine.fit_dynamic_selection(
        as_votes(held_out[2]), held_out[1], held_out[0], rule=rule, num_neighbours=K
    )
    # Chunks that do not divide the 25 rows.
    weights = jax.jit(lambda s, p, x: s.weights(p, x, queries_at_once=8))(
        selection, as_votes(votes), x
    )
    expected = reference_weights(rule, held_out, x, votes)
    np.testing.assert_allclose(weights, expected)
    summed = np.stack([(expected * (votes == c)).sum(0) for c in range(3)])
    chosen = selection(as_votes(votes), x).votes[0]
    np.testing.assert_array_equal(chosen, summed.argmax(0))
    # Here each member is good in a region of its own.
    majority = np.stack([(votes == c).sum(0) for c in range(3)]).argmax(0)
    if rule == "knora_u":
        assert (chosen == labels).mean() > (majority == labels).mean()


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["knora_e", "lca"])
def test_masked_members_equal_removed_ones_and_their_order_does_not_matter(rule):
    (held_x, labels, held_votes), (x, _, votes) = case()
    mask = np.array([True, True, False, True])

    def weights(keep, mask=None):
        # `rule` is static in the selection.
        selection = combine.fit_dynamic_selection(
            as_votes(held_votes[keep]), labels, held_x, rule=rule, mask=mask
        )
        return selection.weights(as_votes(votes[keep]), x, mask=mask)

    everyone = np.arange(4)
    masked = weights(everyone, mask)
    np.testing.assert_array_equal(masked[mask], weights(np.flatnonzero(mask)))
    assert (masked[2] == 0).all()
    order = np.array([3, 0, 2, 1])
    np.testing.assert_array_equal(weights(order), weights(everyone)[order])
    twice = np.concatenate([everyone, everyone])
    np.testing.assert_array_equal(weights(twice)[:4], weights(everyone))
    assert (weights(everyone[:1]) > 0).all()  # one member decides alone


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["inverse", "best"])
def test_regression_weighs_by_the_loss_near_by(rule):
    rng = np.random.default_rng(0)
    x, q = rng.normal(size=(50, 3)), rng.normal(size=(11, 3))
    targets = x[:, 0]
    points = targets + rng.normal(size=(3, 50)) * [[0.1], [0.5], [1]]
    values = rng.normal(size=(3, 11))
    broken = np.concatenate([points, np.full((1, 50), np.nan)])
    fitted = combine.fit_dynamic_regression(
        broken, targets, x, rule=rule, num_neighbours=K, mask=[True] * 3 + [False]
    )
    weights = fitted.weights(q)
    expected = np.zeros((3, 11))
    for n in range(11):
        near = np.argsort(((x - q[n]) ** 2).sum(1), kind="stable")[:K]
        local = ((points - targets)[:, near] ** 2).mean(1)
        w = (local == local.min()) * 1.0 if rule == "best" else 1 / local
        expected[:, n] = w / w.sum()
    np.testing.assert_allclose(weights[:3], expected, rtol=1e-4)
    assert (weights[3] == 0).all()
    broken = np.concatenate([values, np.full((1, 11), np.nan)])
    np.testing.assert_allclose(
        fitted(broken, q), (expected * values).sum(0), rtol=1e-4, atol=1e-5
    )


def test_mistakes_are_named_and_seen_rows_refused():
    (x, labels, votes), _ = case()
    fit = combine.fit_dynamic_selection
    with pytest.raises(ValueError, match="rule is one of knora_e"):
        fit(as_votes(votes), labels, x, rule="meta")
    with pytest.raises(ValueError, match="from 1 to the 60 held-out rows; got 61"):
        fit(as_votes(votes), labels, x, num_neighbours=61)
    with pytest.raises(ValueError, match=r"x must be \[60, feature\]"):
        fit(as_votes(votes), labels, x[:5])
    selection = fit(as_votes(votes), labels, x)
    with pytest.raises(ValueError, match=r"x must be \[60, 2\]"):
        selection.weights(as_votes(votes), np.zeros((60, 3)))
    with pytest.raises(ValueError, match="fitted on 4 members; got 2"):
        selection.weights(as_votes(votes[:2]), x)
    seen = Provenance.of("toy", np.arange(60), trained_on=np.array([1]))
    with pytest.raises(LeakageError, match="row 1 of 'toy'"):
        fit(Predictions.from_votes(votes, 3, provenance=seen), labels, x)


@pytest.mark.parametrize("rule", ["inverse", "best"])
def test_regression_leaves_out_what_is_masked_where_it_is_applied(rule):
    rng = np.random.default_rng(1)
    x, q = rng.normal(size=(20, 2)), rng.normal(size=(2, 2))
    points = x[:, 0] + rng.normal(size=(3, 20)) * [[0.1], [0.5], [1]]
    fit = functools.partial(combine.fit_dynamic_regression, rule=rule)
    fitted = fit(points, x[:, 0], x)
    new = np.array([[1e10, np.nan], [100.0, 100.0], [100.0, 100.0]], np.float32)
    mask = np.array([False, True, True])
    found = fitted(Predictions.from_points(new, mask=mask), q)
    np.testing.assert_allclose(found.values, [[100.0, 100.0]], rtol=1e-6)
    np.testing.assert_array_equal(fitted(new, q, mask=mask), found.values[0])
    alone = fit(points[mask], x[:, 0], x)
    weights = np.asarray(fitted.weights(q, mask=mask))
    np.testing.assert_allclose(weights[mask], alone.weights(q), rtol=1e-6)
    assert (weights[0] == 0).all()
    # By row; and nothing is known of one that was masked in the fit.
    by_row = np.array([[True, True], [True, False], [True, False]])
    weights = np.asarray(fitted.weights(q, mask=by_row))
    np.testing.assert_array_equal(weights[:, 1], [1, 0, 0])
    np.testing.assert_allclose(weights[:, 0], fitted.weights(q)[:, 0], rtol=1e-6)
    one = fit(points, x[:, 0], x, mask=~mask)
    assert np.isnan(one(new, q, mask=mask)).all()


def test_an_abstention_on_a_row_without_a_label_is_not_right():
    votes = np.array([[-1, -1, 0, 0], [0, 0, 0, 0]])
    said = Predictions.from_votes(votes, 2)
    x = np.arange(4.0)[:, None]
    labels = np.array([-1, -1, 0, 0])
    fitted = combine.fit_dynamic_selection(
        said, labels, x, rule="knora_u", num_neighbours=4
    )
    new = Predictions.from_votes(np.array([[0], [1]]), 2)
    np.testing.assert_array_equal(fitted.weights(new, x[:1]), [[2], [2]])
