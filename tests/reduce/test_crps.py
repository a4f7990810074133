"""The CRPS in one pass: against `scoringrules`, every pair, and its bound."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scoringrules

from ensjax.mesh import make_mesh
from ensjax.reduce import (
    finish_crps,
    init_crps,
    merge_crps,
    rank_error_bound,
    reduce_crps,
    sketch_size,
    update_crps,
)

update, merge = jax.jit(update_crps), jax.jit(merge_crps)
finish = jax.jit(finish_crps, static_argnames="fair")


def pairwise(x, y, fair):
    """The formula of the docstring, every pair of members, in float64."""
    x, y, members = x.astype(np.float64), np.asarray(y, np.float64), len(x)
    total = 0.0
    for one in x:
        total = total + np.abs(x - one).sum(0)
    return np.abs(x - y).mean(0) - total / (
        2 * members * (members - 1 if fair else members)
    )


def by_order(x, y, fair):
    """The same through the sorted members, for many of them."""
    x, members = np.sort(x.astype(np.float64), axis=0), len(x)
    weight = (2 * np.arange(1, members + 1) - members - 1)[:, None]
    divisor = members * (members - 1 if fair else members)
    return np.abs(x - y).mean(0) - (weight * x).sum(0) / divisor


def draw(members, offset=0.0, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(members, 4)) * [1, 0.1, 10, 1] + offset
    return x.astype(np.float32), (rng.normal(size=4) + offset).astype(np.float32)


@pytest.mark.parametrize("members", [2, 50])
@pytest.mark.parametrize("fair", [False, True])
def test_it_equals_scoringrules_and_every_pair(members, fair):
    x, y = draw(members)
    got = finish(update(init_crps(y, max_members=members), x), fair=fair)
    np.testing.assert_allclose(got, pairwise(x, y, fair), rtol=2e-6, atol=1e-6)
    for estimator in ("fair", "pwm") if fair else ("nrg", "qd"):
        reference = scoringrules.crps_ensemble(
            y.astype(np.float64), x.T.astype(np.float64), estimator=estimator
        )
        np.testing.assert_allclose(got, reference, rtol=2e-6, atol=1e-6)


def test_known_values():
    # F steps at 0 and 1: the integral of (F - 1[x >= 0])^2 is 1/4 between them.
    state = update(init_crps(0.0, max_members=2), np.array([0.0, 1.0], np.float32))
    np.testing.assert_allclose(finish(state, fair=False), 0.25, rtol=1e-6)
    np.testing.assert_allclose(finish(state, fair=True), 0.0, atol=1e-7)


def test_one_member_has_its_absolute_error_and_no_fair_score():
    x, y = draw(1)
    state = update(init_crps(y, max_members=1), x)
    np.testing.assert_allclose(finish(state, fair=False), np.abs(x[0] - y), rtol=1e-6)
    assert np.isnan(finish(state, fair=True)).all()


def test_equal_members_score_as_one():
    y = np.array([0.0, 2.0], np.float32)
    state = update(init_crps(y, max_members=9), np.full((9, 2), 1.5, np.float32))
    np.testing.assert_allclose(finish(state, fair=False), [1.5, 0.5], rtol=1e-6)


def test_an_offset_costs_no_digits():
    """The values, near 1e4, are rounded to 5e-4; nothing else may be lost."""
    x, y = draw(40, offset=1e4)
    got = finish(update(init_crps(y, max_members=40), x), fair=False)
    np.testing.assert_allclose(got, pairwise(x, y, False), rtol=1e-4)


def test_the_fair_score_of_a_gaussian_is_that_of_its_distribution():
    """2,000 ensembles of 4 from N(0, 1), observed at 0.3: unbiased at every size.

    The standard error of the mean of 2,000 scores is about 0.007; the bound is 4 of
    them. The standard score is larger by E|X - X'| / (2 M) = 0.141.
    """
    x = np.random.default_rng(5).normal(size=(4, 2000)).astype(np.float32)
    y = np.full(2000, 0.3, np.float32)
    state = update(init_crps(y, max_members=4), x)
    truth = scoringrules.crps_normal(0.3, 0.0, 1.0)
    scores = np.asarray(finish(state, fair=True))
    assert abs(scores.mean() - truth) < 4 * scores.std() / np.sqrt(2000) < 0.04
    excess = np.asarray(finish(state, fair=False)).mean() - scores.mean()
    np.testing.assert_allclose(excess, 1 / np.sqrt(np.pi) / 4, atol=0.01)


def hard_streams(members):
    """Orders and distributions; the last ones are against the neighbours' mean."""
    rng, i = np.random.default_rng(0), np.arange(members)
    width = sketch_size(members)[1]
    buffer, place = i // width, i % width
    cases = {
        "random": rng.normal(size=members),
        "sorted": np.sort(rng.normal(size=members)),
        "heavy ties": rng.integers(0, 3, members),
        "heavy tails": rng.standard_cauchy(members),
        "one far value": np.where(i == 77, 1e6, rng.normal(size=members)),
        # Buffers with odd numbers at both ends, between buffers of zeros: the mean of
        # the two neighbours across the gap has all the zeros between them.
        "gaps": np.where(buffer % 2, 0.0, np.where(place < 101, -1.0, 1.0)),
    }
    return {name: x.astype(np.float32) for name, x in cases.items()}


# Relative errors as found, times two. In random order neighbours lie closer together
# than 1 / width, and what their mean changes is of second order; with tails that hold
# all of E|X - X'| it is those few members that count.
RELATIVE = {
    "random": 5e-5,
    "sorted": 1e-5,
    "heavy ties": 1e-5,
    "heavy tails": 0.02,
    "one far value": 0.05,  # 1e6 among N(0, 1): nine tenths of the score
}


def test_many_members_keep_the_bound_and_are_never_scored_too_well():
    members = 100_000
    streams = hard_streams(members)
    x = np.stack(list(streams.values()), axis=1)
    y = np.full(x.shape[1], 0.3, np.float32)

    @jax.jit
    def run(blocks):
        state = init_crps(y, max_members=members)
        return jax.lax.scan(lambda s, b: (update_crps(s, b), None), state, blocks)[0]

    state = run(x.reshape(-1, 1000, x.shape[1]))
    bound = rank_error_bound(state.members)
    assert bound <= 0.005
    span = np.ptp(x.astype(np.float64), axis=0)
    rounding = 2e-6 * np.abs(x - y).mean(0, dtype=np.float64)
    for fair in (False, True):
        exact = by_order(x, y.astype(np.float64), fair)
        excess = np.asarray(finish(state, fair=fair), np.float64) - exact
        pairs = members / (members - 1) if fair else 1
        assert (excess >= -rounding).all()
        assert (excess <= bound * span * pairs + rounding).all()
        for name, error in zip(streams, excess / exact, strict=True):
            assert error <= RELATIVE.get(name, np.inf), name


def test_merges_of_many_keep_the_bound():
    x, y = draw(6000)
    state = init_crps(y, max_members=100_000)
    parts = [update(state, part) for part in np.split(x, 4)]
    merged = merge(merge(parts[0], parts[1]), merge(parts[2], parts[3]))
    span = np.ptp(x, axis=0)
    excess = finish(merged, fair=False) - by_order(x, y, False)
    assert (excess >= -1e-6 * span).all()
    assert (excess <= 1e-4 * span).all()
    assert int(merged.count) == 6000


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 8])
def test_a_stack_over_devices_with_masked_members(devices):
    x, y = draw(45)
    mask = np.arange(45) % 4 != 0
    x[~mask] = np.inf
    state = reduce_crps(x, y, mask, mesh=make_mesh(member=devices))
    got = finish(state, fair=True)
    np.testing.assert_allclose(got, pairwise(x[mask], y, True), rtol=5e-6, atol=1e-6)


def test_observations_that_are_missing_and_too_many_members():
    x, y = draw(6)
    y[2] = np.nan
    state = update(init_crps(y, max_members=6), x)
    np.testing.assert_array_equal(
        np.isnan(finish(state, fair=False)), [False, False, True, False]
    )
    assert np.isnan(finish(update(state, x[:1]), fair=False)).all()


def test_narrow_floats_score_in_float32():
    x, y = draw(12)
    x = jnp.asarray(x, jnp.bfloat16)
    got = finish(update(init_crps(y, max_members=12), x), fair=False)
    assert got.dtype == jnp.float32
    reference = pairwise(np.asarray(x.astype(jnp.float32)), y, False)
    np.testing.assert_allclose(got, reference, rtol=5e-6, atol=1e-6)
