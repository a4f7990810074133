"""Selection and pruning: equal to plain loops, whatever is masked or repeated."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ensjax import combine
from ensjax.predictions import Predictions
from ensjax.provenance import LeakageError, Provenance

NAMES = ("loss", "rounds", "start", "num_bags", "bag_fraction")
greedy_select = jax.jit(combine.greedy_select, static_argnames=NAMES)
prune_members = jax.jit(combine.prune_members, static_argnames="loss")


def brier(probs, labels, weight):
    target = jax.nn.one_hot(labels, probs.shape[-1])
    return jnp.sum(weight * jnp.sum((probs - target) ** 2, -1)) / jnp.sum(weight)


def case(members=6, rows=40, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    skill = np.linspace(0.2, 2, members)[:, None, None]
    logits = 2 * rng.normal(size=(members, rows, classes))
    logits = logits + skill * np.eye(classes)[labels][None]
    return logits.astype(np.float32), labels, rng.uniform(0, 2, rows)


def softmax(logits):
    exp = np.exp(logits.astype(np.float64))
    return exp / exp.sum(-1, keepdims=True)


def reference_loss(kind, probs, labels, weight):
    if kind == "nll":
        values = -np.log(probs[np.arange(len(labels)), labels])
    elif kind == "error":
        values = probs.argmax(-1) != labels
    else:
        values = ((probs - np.eye(probs.shape[1])[labels]) ** 2).sum(-1)
    return np.average(values, weights=weight)


def reference_greedy(kind, probs, labels, weight, rounds, start=0):
    """Caruana's loop, one candidate at a time."""
    alone = [reference_loss(kind, p, labels, weight) for p in probs]
    bag = list(np.argsort(alone, kind="stable")[:start])
    best, history = (np.inf, list(bag)), []
    if start:
        best = (reference_loss(kind, probs[bag].mean(0), labels, weight), list(bag))
    for _ in range(rounds):
        losses = [
            reference_loss(kind, probs[[*bag, m]].mean(0), labels, weight)
            for m in range(len(probs))
        ]
        bag.append(int(np.argmin(losses)))
        history.append(min(losses))
        if min(losses) < best[0] - 1e-9:
            best = (min(losses), list(bag))
    counts = np.bincount(np.array(best[1], int), minlength=len(probs))
    return counts, bag[start:], history


@pytest.mark.parametrize(
    "kind, start",
    [
        ("brier", 2),
        pytest.param("nll", 0, marks=pytest.mark.slow),
        pytest.param("error", 0, marks=pytest.mark.slow),
    ],
)
def test_greedy_selection_equals_the_plain_loop(kind, start):
    logits, labels, weight = case()
    if kind == "error":
        weight = np.ones(40)  # errors tie, and float32 sums of equal weights are exact
    found = greedy_select(
        logits,
        labels,
        loss=brier if kind == "brier" else kind,
        rounds=8,
        start=start,
        sample_weight=weight,
    )
    probs = softmax(logits)
    counts, chosen, losses = reference_greedy(kind, probs, labels, weight, 8, start)
    np.testing.assert_array_equal(found.chosen[0], chosen)
    np.testing.assert_allclose(found.losses[0], losses, rtol=1e-5)
    np.testing.assert_array_equal(found.counts[0], counts)
    np.testing.assert_allclose(found.weights, counts / counts.sum(), rtol=1e-6)
    expected = np.log(np.tensordot(counts / counts.sum(), probs, 1))
    np.testing.assert_allclose(found(logits), expected, atol=1e-5)


@pytest.mark.slow
def test_bags_choose_from_random_parts_and_average():
    logits, labels, _ = case()
    found = greedy_select(
        logits, labels, rounds=4, num_bags=5, bag_fraction=0.5, key=jax.random.key(0)
    )
    used = np.asarray(found.counts) > 0
    assert (used.sum(1) <= 3).all() and used.any(0).sum() > 3
    share = found.counts / found.counts.sum(1, keepdims=True)
    np.testing.assert_allclose(found.weights, share.mean(0), rtol=1e-6)
    # Each bag chooses as the plain loop does from its own members.
    probs, weight = softmax(logits), np.ones(40)
    for bag in range(5):
        part = np.unique(found.chosen[bag])
        _, chosen, _ = reference_greedy("nll", probs[part], labels, weight, 4)
        np.testing.assert_array_equal(found.chosen[bag], part[chosen])


def test_masked_members_are_never_chosen_and_equal_removed_ones():
    logits, labels, weight = case()
    mask = np.array([True, False, True, True, False, True])
    broken = np.where(mask[:, None, None], logits, np.nan)
    masked = greedy_select(broken, labels, rounds=6, mask=mask, sample_weight=weight)
    counts, _, losses = reference_greedy(
        "nll", softmax(logits[mask]), labels, weight, 6
    )
    np.testing.assert_array_equal(masked.counts[0, mask], counts)
    np.testing.assert_array_equal(masked.counts[0, ~mask], 0)
    np.testing.assert_allclose(masked.losses[0], losses, rtol=1e-5)


@pytest.mark.slow
def test_pruning_leaves_masked_members_out_and_one_member_is_itself():
    logits, labels, _ = case()
    mask = np.array([True, False, True, True, False, True])
    a = prune_members(np.where(mask[:, None, None], logits, np.nan), labels, mask=mask)
    b = prune_members(logits[mask], labels)
    np.testing.assert_array_equal(np.flatnonzero(a.mask), np.flatnonzero(mask)[b.mask])
    one = combine.greedy_select(logits[:1], labels, rounds=2)
    np.testing.assert_allclose(one(logits[:1]), np.log(softmax(logits[0])), atol=1e-5)


@pytest.mark.slow
def test_duplicates_and_the_order_of_members_change_nothing():
    logits, labels, _ = case()
    order = np.array([3, 1, 5, 0, 2, 4])
    both = np.concatenate([logits[order], logits])
    a = greedy_select(logits, labels, rounds=6)
    b = greedy_select(both, labels, rounds=6)
    np.testing.assert_allclose(a(logits), b(both), atol=1e-5)


def test_pruning_equals_the_plain_loop():
    logits, labels, weight = case()
    found = prune_members(logits, labels, sample_weight=weight)
    probs, kept = softmax(logits), list(range(6))
    losses = [reference_loss("nll", probs.mean(0), labels, weight)]
    while len(kept) > 1:
        trials = [
            reference_loss(
                "nll", probs[[k for k in kept if k != m]].mean(0), labels, weight
            )
            for m in kept
        ]
        if min(trials) > losses[-1]:
            break
        losses.append(min(trials))
        kept.pop(int(np.argmin(trials)))
    assert 1 < len(losses) < 6  # it drops some, and stops
    assert np.flatnonzero(found.mask).tolist() == kept
    losses += [losses[-1]] * (6 - len(losses))
    np.testing.assert_allclose(found.losses, losses, rtol=1e-5)


def test_the_best_members_are_those_of_least_loss():
    losses = np.array([0.3, np.nan, 0.1, 0.3, 0.2])
    chosen = [np.flatnonzero(combine.best_members(losses, k)) for k in (1, 3, 5)]
    assert [c.tolist() for c in chosen] == [[2], [0, 2, 4], [0, 2, 3, 4]]
    mask = np.array([True, True, False, True, True])
    assert np.flatnonzero(combine.best_members(losses, 1, mask=mask)).tolist() == [4]


def test_the_best_members_on_rows_are_kept_and_mark_what_they_make():
    logits, labels, weight = case()
    own = [reference_loss("nll", p, labels, weight) for p in softmax(logits)]
    found = combine.keep_best_members(logits, labels, 2, sample_weight=weight)
    np.testing.assert_allclose(found.losses, own, rtol=1e-5)
    assert set(np.flatnonzero(found.mask)) == set(np.argsort(own)[:2])
    best = int(np.argmin(own))
    others = np.arange(len(own)) != best
    found = combine.keep_best_members(
        logits, labels, 1, mask=others, sample_weight=weight
    )
    assert np.flatnonzero(found.mask) == np.argsort(own)[1]
    assert np.isnan(found.losses[best])


def test_a_row_that_all_members_miss_by_far_does_not_choose_for_the_others():
    # On it every probability of the label is exp(-100), or 0 in float32.
    skill = np.array([0.5, 3.0, 2.0], np.float32)
    logits = np.zeros((3, 20, 2), np.float32)
    logits[:, 1:, 0] = skill[:, None]
    logits[:, 0, 1] = [100, 100, 101]
    labels = np.zeros(20, int)
    log_probs = logits - np.logaddexp(logits[..., 0], logits[..., 1])[..., None]
    own = -log_probs[..., 0].mean(1)
    found = greedy_select(logits, labels, rounds=3)
    np.testing.assert_array_equal(found.weights, [0, 1, 0])
    np.testing.assert_allclose(found.losses[0, 0], own[1], rtol=1e-6)
    pruned = prune_members(logits, labels)
    np.testing.assert_array_equal(pruned.mask, [False, True, False])
    np.testing.assert_allclose(pruned.losses[-1], own[1], rtol=1e-6)
    best = combine.keep_best_members(logits, labels, 1)
    np.testing.assert_array_equal(best.mask, [False, True, False])
    np.testing.assert_allclose(best.losses, own, rtol=1e-6)


def test_where_no_loss_is_finite_nothing_is_chosen():
    logits = np.zeros((3, 4, 2), np.float32)
    logits[:, 0, 0] = -np.inf  # all are sure that the label is wrong
    labels = np.zeros(4, int)
    assert np.isnan(greedy_select(logits, labels, rounds=3).weights).all()
    np.testing.assert_array_equal(prune_members(logits, labels).mask, True)
    assert not combine.keep_best_members(logits, labels, 1).mask.any()
    # One that is NaN is no better: the others together have a loss.
    logits = np.zeros((3, 4, 2), np.float32)
    logits[0], logits[1, 0, 0], logits[2, 1, 0] = np.nan, -np.inf, -np.inf
    found = greedy_select(logits, labels, rounds=3)
    np.testing.assert_allclose(found.weights, [0, 0.5, 0.5], rtol=1e-6)
    pruned = prune_members(logits, labels)
    np.testing.assert_array_equal(pruned.mask, [False, True, True])
    np.testing.assert_allclose(pruned.losses, 2 * np.log(2) * 3 / 4, rtol=1e-6)
    # Two that are NaN do not hide each other, and NaN in a row of weight 0 is none.
    logits[1], logits[2] = np.nan, 0.0
    logits[2, 0] = np.nan
    np.testing.assert_array_equal(prune_members(logits, labels).mask, True)
    weight = np.array([0, 1, 1, 1], np.float32)
    pruned = prune_members(logits, labels, sample_weight=weight)
    np.testing.assert_array_equal(pruned.mask, [False, False, True])
    np.testing.assert_allclose(pruned.losses, np.log(2), rtol=1e-6)


def test_mistakes_are_named_and_seen_rows_refused():
    logits, labels, _ = case(rows=5)
    with pytest.raises(ValueError, match="loss is one of nll, error, or a function"):
        combine.greedy_select(logits, labels, loss="mse")
    with pytest.raises(ValueError, match="rounds and num_bags must be at least 1"):
        combine.greedy_select(logits, labels, rounds=0)
    with pytest.raises(ValueError, match="drawn with a key"):
        combine.greedy_select(logits, labels, num_bags=3)
    with pytest.raises(ValueError, match="number from 1 to M"):
        combine.best_members(np.zeros(3), 4)
    seen = Provenance.of("toy", np.arange(5), trained_on=np.array([1]))
    predictions = Predictions.from_logits(logits, provenance=seen)
    keep = functools.partial(combine.keep_best_members, number=1)
    for fit in (combine.greedy_select, combine.prune_members, keep):
        with pytest.raises(LeakageError, match="row 1 of 'toy'"):
            fit(predictions, labels)
