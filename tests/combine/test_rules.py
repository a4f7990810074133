"""Every rule, with what must hold of every rule.

The references are float64 NumPy written from the definitions, over the members that
count alone; a member of weight 2 stands there twice.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from scipy.optimize import brentq
from scipy.special import log_softmax
from scipy.stats import rankdata
from scipy.stats.mstats import winsorize

from ensjax import combine
from ensjax.predictions import Predictions

MEMBERS, ROWS, WIDTH = 6, 5, 3
LEVELS = (0.25, 0.5, 0.75)
WEIGHTS = np.asarray([1, 2, 1, 3, 2, 1])
SHARE, FINE = 0.2, 20  # 20 copies of each member: a fifth of them is a whole number


# References: values [member, width] and whole weights [member] to [width]


def renormalized(probs):
    return np.log(probs / probs.sum())


def probs_of(logits):
    return np.exp(log_softmax(logits, axis=-1))


def columns(fn):
    """`fn` of the repeated values of one column, for all columns."""

    def of_all(values, weights):
        return np.asarray([fn(np.repeat(v, weights)) for v in values.T])

    return of_all


def pool(of_points):
    return lambda x, w: renormalized(of_points(probs_of(x), w))


def trimmed(x):
    x = np.sort(np.repeat(x, FINE))
    cut = round(SHARE * len(x))
    return x[cut : len(x) - cut].mean()


def winsorized(x):
    # The limit names how many values are drawn in; a float of 0.2 could round down.
    x = np.repeat(x, FINE)
    cut = round(SHARE * len(x)) + 0.5
    return np.asarray(winsorize(x, limits=(cut / len(x), cut / len(x)))).mean()


def huber(x):
    mad = 1.4826 * np.median(np.abs(x - np.median(x)))
    if mad == 0:
        return np.median(x)

    def psi(mu):
        return np.clip((x - mu) / mad, -1.345, 1.345).sum()

    return brentq(psi, x.min() - 1e-9, x.max() + 1e-9, xtol=1e-12)


MEAN, MEDIAN = columns(np.mean), columns(np.median)
TRIMMED, WINSORIZED, HUBER = columns(trimmed), columns(winsorized), columns(huber)


def entropy_weighted(x, w):
    p = probs_of(x)
    tilt = w * np.exp((p * np.log(p)).sum(-1))
    return np.log((tilt[:, None] * p).sum(0) / tilt.sum())


def borda(x, w):
    return MEAN(np.stack([rankdata(row) - 1 for row in x]), w)


def mean_ranks(x, w):
    return MEAN(np.stack([(rankdata(row) - 0.5) / WIDTH for row in x]), w)


def product(x, w):
    return log_softmax((w[:, None] * log_softmax(x, axis=-1)).sum(0))


def inverse_variance(x, w):
    sureness = w[:, None] / scale_of(x) ** 2
    return (sureness * x).sum(0) / sureness.sum(0)


def mixture(x, w):
    variance = MEAN(scale_of(x) ** 2 + x**2, w) - MEAN(x, w) ** 2
    return np.sqrt(variance)


def linear_pool(x, w):
    """The mixture's CDF on a fine grid, read off where it reaches each level."""
    x = np.sort(x, axis=-1)
    ends = np.stack([2 * x[:, 0] - x[:, 1], *x.T, 2 * x[:, 2] - x[:, 1]], axis=1)
    grid = np.sort(
        np.concatenate([np.linspace(ends.min(), ends.max(), 9), ends.ravel()])
    )
    cdf = sum(
        weight * np.interp(grid, own, [0, 0.25, 0.5, 0.75, 1])
        for weight, own in zip(w / w.sum(), ends)
    )
    return np.asarray([np.interp(level, cdf, grid) for level in LEVELS])


def plurality(x, w, ties):
    votes = x.argmax(-1)
    sums = np.bincount(votes, minlength=WIDTH)
    tied = np.flatnonzero(sums == sums.max())
    if ties == "abstain" and len(tied) > 1:
        return -1
    if ties == "probability":
        pooled = probs_of(x).mean(0)
        return tied[pooled[tied].argmax()]
    return tied[0]


def weighted_plurality(x, w):
    """Ties go to the best member among those of tied classes."""
    sums = np.bincount(x.argmax(-1), weights=w, minlength=WIDTH)
    tied = np.flatnonzero(sums == sums.max())
    # The members' accuracies are coded in their weights: 1, 2 and 3.
    best = [max(w[x.argmax(-1) == c], default=-1) for c in tied]
    return tied[int(np.argmax(best))]


def weighted_sums(x, w, ties):
    """The lowest of the classes with the largest sum, or nothing if there are more."""
    sums = np.bincount(x.argmax(-1), weights=w, minlength=WIDTH)
    tied = np.flatnonzero(sums == sums.max())
    return -1 if ties == "abstain" and len(tied) > 1 else tied[0]


def scale_of(x):
    return 0.5 + abs(x)


SEEN, MET = np.asarray([0.5, 0.3, 0.2]), np.asarray([0.1, 0.3, 0.6])


def adjusted(log_probs):
    """Probabilities times MET / SEEN, made to sum to 1 again."""
    odds = np.exp(log_probs) * MET / SEEN
    return np.log(odds / odds.sum(-1, keepdims=True))


# name: (rule(values, weights, mask), reference, what one member alone gives)


def own_probs(x):
    return log_softmax(x, axis=-1)


def mixture_std(x, weights, mask):
    return combine.gaussian_mixture(x, scale_of(x), weights, mask).std


def interval(x, weights, mask):
    """Width, point and middle of an interval pooled by the median."""
    said = Predictions.from_points(
        x, lower=x - scale_of(x), upper=x + 1, weights=weights, mask=mask
    )
    return sum(combine.pool_intervals(said))


def interval_reference(x, w):
    return sum(np.sort([MEDIAN(x - scale_of(x), w), MEDIAN(x, w), MEDIAN(x + 1, w)], 0))


RULES = {
    "mean_probs": (combine.mean_probs, pool(MEAN), own_probs),
    "mean_logits": (
        combine.mean_logits,
        lambda x, w: log_softmax(MEAN(log_softmax(x, axis=-1), w)),
        own_probs,
    ),
    "max_probs": (combine.max_probs, pool(columns(np.max)), own_probs),
    "min_probs": (combine.min_probs, pool(columns(np.min)), own_probs),
    "median_probs": (combine.median_probs, pool(MEDIAN), own_probs),
    "trimmed_probs": (combine.trimmed_probs, pool(TRIMMED), own_probs),
    "winsorized_probs": (combine.winsorized_probs, pool(WINSORIZED), own_probs),
    "huber_probs": (combine.huber_probs, pool(HUBER), own_probs),
    "entropy_weighted_probs": (
        combine.entropy_weighted_probs,
        entropy_weighted,
        own_probs,
    ),
    "product_probs": (combine.product_probs, product, own_probs),
    "mix_experts": (
        lambda x, w, m: combine.mix_experts(
            x, jnp.broadcast_to(w, (x.shape[1], len(w))), mask=m
        ),
        pool(MEAN),
        own_probs,
    ),
    # The width stands for rows here, which are ranked.
    "mean_ranks": (
        lambda x, w, m: jax.vmap(
            lambda values, counts: combine.mean_ranks(values, w, counts), in_axes=1
        )(x, m),
        mean_ranks,
        lambda x: (rankdata(x, axis=-1) - 0.5) / WIDTH,
    ),
    "rank_sum": (combine.rank_sum, borda, lambda x: rankdata(x, axis=-1) - 1),
    "mean_points": (combine.mean_points, MEAN, np.array),
    "median_points": (combine.median_points, MEDIAN, np.array),
    "trimmed_points": (combine.trimmed_points, TRIMMED, np.array),
    "winsorized_points": (combine.winsorized_points, WINSORIZED, np.array),
    "huber_points": (combine.huber_points, HUBER, np.array),
    "inverse_variance_points": (
        lambda x, w, m: combine.inverse_variance_points(x, scale_of(x), w, m),
        inverse_variance,
        np.array,
    ),
    "gaussian_mixture": (mixture_std, mixture, scale_of),
    "pool_intervals": (
        interval,
        interval_reference,
        lambda x: x - scale_of(x) + x + x + 1,
    ),
    "average_quantiles": (
        combine.average_quantiles,
        lambda x, w: np.sort(MEAN(x, w)),
        lambda x: np.sort(x, axis=-1),
    ),
    "average_cdfs": (
        lambda x, w, m: combine.average_cdfs(x, LEVELS, w, m),
        linear_pool,
        lambda x: np.sort(x, axis=-1),
    ),
    "majority_vote": (
        lambda x, w, m: combine.majority_vote(x, mask=m),
        functools.partial(plurality, ties="lowest"),
        lambda x: x.argmax(-1),
    ),
    "majority_vote_probability": (
        lambda x, w, m: combine.majority_vote(x, ties="probability", mask=m),
        functools.partial(plurality, ties="probability"),
        lambda x: x.argmax(-1),
    ),
    "weighted_vote_lowest": (
        lambda x, w, m: combine.weighted_vote(x, w, mask=m),
        functools.partial(weighted_sums, ties="lowest"),
        lambda x: x.argmax(-1),
    ),
    "weighted_vote_abstain": (
        lambda x, w, m: combine.weighted_vote(x, w, ties="abstain", mask=m),
        functools.partial(weighted_sums, ties="abstain"),
        lambda x: x.argmax(-1),
    ),
    "adjust_prior": (
        lambda x, w, m: combine.adjust_prior(combine.mean_probs(x, w, m), SEEN, MET),
        lambda x, w: adjusted(pool(MEAN)(x, w)),
        lambda x: adjusted(own_probs(x)),
    ),
    "weighted_vote_best_member": (
        lambda x, w, m: combine.weighted_vote(
            x, w, ties="best_member", accuracy=w / 4, mask=m
        ),
        weighted_plurality,
        lambda x: x.argmax(-1),
    ),
}
POOLS = [name for name in RULES if name.endswith("_probs") or name == "mean_logits"]


@functools.cache
def compiled(name):
    """One program a rule: all tests call it with arrays of the same shapes."""
    return jax.jit(RULES[name][0])


def call(name, values, weights, mask):
    return np.asarray(
        compiled(name)(
            np.asarray(values, np.float32),
            np.asarray(weights, np.float32),
            np.asarray(mask, bool),
        )
    )


def draw(seed):
    """Values, a mask by row with one member at least, and NaN where it is False."""
    rng = np.random.default_rng(seed)
    values = 2 * rng.normal(size=(MEMBERS, ROWS, WIDTH)).astype(np.float32)
    mask = rng.uniform(size=(MEMBERS, ROWS)) < 0.6
    mask[rng.integers(MEMBERS, size=ROWS), np.arange(ROWS)] = True
    return values, mask, np.where(mask[..., None], values, np.nan)


def same(actual, expected, atol=1e-5):
    # Values up to 8 in float32; sums over six members.
    np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=atol)


@pytest.mark.parametrize("name", RULES)
@settings(max_examples=6, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6))
def test_members_that_count_decide_and_neither_order_nor_copies(name, seed):
    _, reference, alone = RULES[name]
    # Levels count as reached 1e-6 below: over a density of 1/40 or more.
    atol = 4e-5 if name == "average_cdfs" else 1e-5
    values, mask, broken = draw(seed)
    got = call(name, broken, WEIGHTS, mask)
    for row in range(ROWS):
        kept = mask[:, row]
        want = reference(values[kept, row].astype(np.float64), WEIGHTS[kept])
        same(got[row], want, atol=atol)

    order = np.random.default_rng(seed).permutation(MEMBERS)
    same(call(name, broken[order], WEIGHTS[order], mask[order]), got)

    once = np.arange(MEMBERS) < 3
    by_row = np.broadcast_to(once[:, None], mask.shape)
    copies = np.concatenate([values[:3], values[:3]])
    twice = np.concatenate([WEIGHTS[:3], WEIGHTS[:3]])
    all_there = np.ones_like(mask)
    single = call(name, copies, twice, by_row)
    if name == "product_probs":  # independent evidence: twice as much of it
        single = own_probs(2 * single)
    same(call(name, copies, twice, all_there), single)

    only = np.zeros_like(mask)
    only[seed % MEMBERS] = True
    # In a product weights are exponents, of one member too.
    weights = np.ones(MEMBERS) if name == "product_probs" else WEIGHTS
    same(call(name, values, weights, only), alone(values[seed % MEMBERS]), atol)


@functools.cache
def random_vote():
    return jax.jit(
        lambda x, w, m, key: combine.weighted_vote(x, w, ties="random", mask=m, key=key)
    )


@settings(max_examples=12, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6))
def test_a_random_vote_is_one_of_the_tied_classes_by_its_key_alone(seed):
    vote, key = random_vote(), jax.random.key(seed)
    values, mask, broken = draw(seed)
    weights = np.where(WEIGHTS > 1, 2, 1)  # few sums, and so many ties
    got = np.asarray(vote(broken, weights, mask, key))
    draws = np.asarray(jax.random.uniform(key, (ROWS, WIDTH)))
    for row in range(ROWS):
        kept = mask[:, row]
        votes = values[kept, row].argmax(-1)
        sums = np.bincount(votes, weights=weights[kept], minlength=WIDTH)
        tied = np.flatnonzero(sums == sums.max())
        assert got[row] == tied[draws[row, tied].argmax()]
    order = np.random.default_rng(seed).permutation(MEMBERS)
    again = vote(broken[order], weights[order], mask[order], key)
    np.testing.assert_array_equal(again, got)
    # Three members, and the same three twice: all sums double.
    once = np.broadcast_to((np.arange(MEMBERS) < 3)[:, None], mask.shape)
    copies = np.concatenate([values[:3]] * 2), np.concatenate([weights[:3]] * 2)
    both = vote(*copies, np.ones_like(mask), key)
    np.testing.assert_array_equal(both, vote(*copies, once, key))
    only = np.zeros_like(mask)
    only[seed % MEMBERS] = True
    alone = vote(values, weights, only, key)
    np.testing.assert_array_equal(alone, values[seed % MEMBERS].argmax(-1))


def test_a_random_vote_takes_every_tied_class():
    values = np.broadcast_to(np.eye(WIDTH)[:2, None], (2, ROWS, WIDTH))
    weights, mask = np.ones(2), np.ones((2, ROWS), bool)
    vote = random_vote()
    found = np.stack([vote(values, weights, mask, jax.random.key(i)) for i in range(8)])
    # 40 draws of two classes: all alike with probability 2^-39.
    assert set(found.ravel().tolist()) == {0, 1}


@settings(max_examples=12, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6))
def test_an_adjusted_prior_can_be_taken_back(seed):
    rng = np.random.default_rng(seed)
    values = draw(seed)[0][0]
    seen, met, later = rng.dirichlet(np.ones(WIDTH), size=3) + 0.01
    adjust = adjust_prior()
    there = adjust(values, seen, met)
    own = own_probs(values.astype(np.float64))
    same(np.exp(there).sum(-1), 1.0)
    same(adjust(there, met, seen), own)  # and back
    same(adjust(there, met, later), adjust(values, seen, later))  # by way of another
    same(adjust(values, seen, seen), own)
    # Frequencies count by their proportions, log-probabilities up to a constant.
    same(adjust(values + 3.0, 5 * seen, 7 * met), there)
    order = rng.permutation(WIDTH)
    moved = adjust(values[..., order], seen[order], met[order])
    same(moved, np.asarray(there)[..., order])


@functools.cache
def adjust_prior():
    return jax.jit(combine.adjust_prior)


@functools.cache
def influence_of(kind):
    """Of a rule of points and of votes: `[member]` of values, weights and mask."""

    def points(x, w, m):
        said = Predictions.from_points(x[..., 0], weights=w, mask=m)
        return combine.influence(combine.mean_points, said)

    def votes(x, w, m):
        said = Predictions.from_logits(x, mask=m)
        return combine.influence(combine.majority_vote, said)

    return jax.jit({"points": points, "votes": votes}[kind])


def influence_reference(kind, values, mask):
    """The consensus of each row with and without each member, in float64."""
    moves = np.zeros((MEMBERS, ROWS))
    for member in range(MEMBERS):
        for row in range(ROWS):
            kept = np.flatnonzero(mask[:, row])
            left = kept[kept != member]
            if kind == "votes":
                whole, rest = (
                    plurality(values[k, row], None, "lowest") if len(k) else -1
                    for k in (kept, left)
                )
                moves[member, row] = whole != rest
            else:
                x = values[:, row, 0].astype(np.float64)
                whole, rest = (
                    np.average(x[k], weights=WEIGHTS[k]) if len(k) else np.nan
                    for k in (kept, left)
                )
                moves[member, row] = abs(whole - rest)
    return moves.mean(axis=1)


@pytest.mark.parametrize("kind", ["points", "votes"])
@settings(max_examples=8, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6))
def test_influence_is_of_members_that_count_in_any_order(kind, seed):
    values, mask, broken = draw(seed)
    influence = influence_of(kind)
    got = np.asarray(influence(broken, WEIGHTS, mask))
    # NaN where a row has this member alone: without it there is no mean.
    same(got, influence_reference(kind, values, mask))
    order = np.random.default_rng(seed).permutation(MEMBERS)
    same(influence(broken[order], WEIGHTS[order], mask[order]), got[order])
    # One that never counts moves nothing, whatever it says.
    silent = mask.copy()
    silent[:, :] = np.arange(MEMBERS)[:, None] != seed % MEMBERS
    without = np.asarray(influence(values, WEIGHTS, silent))
    assert without[seed % MEMBERS] == 0
    loud = values.copy()
    loud[seed % MEMBERS] = 1e6
    np.testing.assert_array_equal(influence(loud, WEIGHTS, silent), without)
    # A copy moves the consensus exactly as its original.
    values[1] = values[0]
    equal, every = np.ones(MEMBERS), np.ones_like(mask)
    first, second, *_ = np.asarray(influence(values, equal, every))
    same(first, second)
    # Members that all say the same move nothing; one alone is all there is.
    values[:] = values[2]
    same(influence(values, equal, every), np.zeros(MEMBERS))
    only = np.broadcast_to((np.arange(MEMBERS) == 2)[:, None], mask.shape)
    alone = np.asarray(influence(values, equal, only))
    assert alone[2] == 1 if kind == "votes" else np.isnan(alone[2])
    same(np.delete(alone, 2), np.zeros(MEMBERS - 1))


@pytest.mark.parametrize("name", RULES)
def test_a_row_without_members_is_nan_or_an_abstention(name):
    values, mask, _ = draw(0)
    mask[:, 2] = False
    got = call(name, values, WEIGHTS, mask)
    empty = -1 if np.issubdtype(got.dtype, np.integer) else np.nan
    np.testing.assert_array_equal(got[2], np.full_like(got[2], empty))
    assert np.isfinite(got[[0, 1, 3, 4]]).all()
    # A member that counts and is NaN is not passed over in silence.
    values[3, 1], mask[3, 1] = np.nan, True
    if "vote" not in name:
        assert np.isnan(call(name, values, WEIGHTS, mask)[1]).all()


@pytest.mark.parametrize("name", POOLS)
def test_pools_are_distributions_at_logits_of_ten_thousand(name):
    signs = np.sign(np.random.default_rng(3).normal(size=(MEMBERS, ROWS, WIDTH)))
    got = call(name, 1e4 * signs, WEIGHTS, np.ones((MEMBERS, ROWS)))
    np.testing.assert_allclose(np.exp(got).sum(-1), 1.0, atol=1e-5)
    # Every member vetoes every class but one, each another: no class is left.
    sure = np.where(np.eye(WIDTH)[np.arange(MEMBERS) % WIDTH] == 1, 0.0, -np.inf)
    sure = np.broadcast_to(sure[:, None], (MEMBERS, ROWS, WIDTH))
    equal = np.ones(MEMBERS)
    got = call(name, sure, equal, np.ones((MEMBERS, ROWS)))
    if name not in ("mean_logits", "entropy_weighted_probs"):
        np.testing.assert_allclose(got, np.log(1 / 3), rtol=1e-5)


def test_the_product_without_weights_adds_evidence_and_is_vetoed():
    plain = jax.jit(combine.product_probs)
    values, _, _ = draw(1)
    same(plain(values), own_probs(own_probs(values.astype(np.float64)).sum(0)))
    veto = np.asarray([[[0.0, -np.inf]], [[-np.inf, 0.0]]], np.float32)
    same(jnp.exp(plain(veto)), [[0.5, 0.5]])


@pytest.mark.slow
@pytest.mark.parametrize("name", RULES)
def test_eight_devices_equal_one_for_every_rule(name):
    rng = np.random.default_rng(1)
    values = rng.normal(size=(16, 30, WIDTH)).astype(np.float32)
    weights = np.linspace(0.5, 2, 16).astype(np.float32)
    mask = rng.uniform(size=(16, 30)) < 0.8
    mesh = jax.make_mesh((8,), ("member",), axis_types=(AxisType.Auto,))
    split = NamedSharding(mesh, P("member"))
    arrays = values, weights, mask
    rule = jax.jit(RULES[name][0])
    eight = rule(*(jax.device_put(array, split) for array in arrays))
    # The product sums the evidence of 16 members: 1e-6 of the largest of these sums.
    atol = 1e-6
    if name == "product_probs":
        evidence = (weights * mask.T)[..., None] * own_probs(values).swapaxes(0, 1)
        atol *= abs(evidence.sum(axis=1)).max()
    np.testing.assert_allclose(eight, rule(*arrays), rtol=1e-6, atol=atol)


@pytest.mark.slow
@pytest.mark.parametrize("name", RULES)
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_many_examples(name, seed):
    test = test_members_that_count_decide_and_neither_order_nor_copies
    test.hypothesis.inner_test(name, seed)
