"""Every metric in chunks, over members that never exist together, and on 8 devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensjax import reduce
from ensjax import verification as v
from ensjax.mesh import make_mesh

GRID = v.SphericalGrid(6, 8, truncation=2)
POINTS = {  # of single places, by what they need beside the truth
    "crps": v.crps(),
    "fair": v.crps("fair"),
    "almost": v.crps("almost_fair"),
    "parts": v.crps_parts(),
    "tail": v.threshold_weighted_crps(0.5),
    "outcome": v.outcome_weighted_crps(0.0),
    "mse": v.mean_square_error(debiased=True),
    "rmse": v.root_mean_square_error(),
    "bias": v.bias(),
    "anomalies": v.anomalies(),
    "activity": v.member_activity(),
    "spread": v.spread_skill(),
    "binned": v.binned_spread_skill((0.5, 1.0)),
    "ranks": v.rank_histogram(5),
    "pit": v.pit_histogram(4),
    "best": v.best_member_error(),
    "bracketed": v.bracketed(),
    "brier": v.brier_score((0.0, 0.7), fair=True),
    "skill": v.brier_skill_score((0.0, 0.7)),
    "log": v.log_score((0.0, 0.7)),
    "table": v.event_table((0.0, 0.7), num_members=5),
    "bins": v.event_table((0.0, 0.7), num_bins=10),
    "seeps": v.seeps(),
}
FIELDS = {
    "energy": v.energy_score("fair", vector_axes=2),
    "variogram": v.variogram_score("fair", vector_axes=2, tile=5),
    "spectral": v.spectral_crps(GRID),
    "pooled": v.pooled_crps((1, 2)),
    "zonal": v.zonal_spectra(),
    "sphere": v.spherical_spectra(GRID),
    "centred": v.centred_acc(),
}
EVERY = POINTS | FIELDS
# Those that members can be folded into, whole ones only.
FOLDED = (
    *("crps", "fair", "almost", "parts", "mse", "rmse", "bias", "anomalies"),
    *("activity", "spread", "binned", "ranks", "pit", "bracketed", "brier"),
    *("skill", "log", "table", "bins", "centred"),
)


@pytest.fixture(scope="module")
def fields():
    """5 members of 11 cases of 6 x 8 places, and what metrics compare with."""
    rng = np.random.default_rng(0)
    forecast = rng.normal(size=(5, 11, 6, 8)).astype(np.float32)
    truth = rng.normal(size=(11, 6, 8)).astype(np.float32)
    forecast, truth = (np.round(x, 1) for x in (forecast, truth))  # ties
    places = (11, 6, 8)
    reference = {
        "climatology": (0.1 * rng.normal(size=places)).astype(np.float32),
        "dry_share": rng.uniform(0.2, 0.8, places).astype(np.float32),
        "heavy": rng.uniform(0.6, 1.0, places).astype(np.float32),
        "case_ids": np.arange(100, 111),
    }
    return forecast, truth, reference


@pytest.fixture(scope="module")
def whole(fields):
    forecast, truth, reference = fields
    return jax.jit(lambda x, y, r: _sums(x, y, r))(forecast, truth, reference)


def _sums(forecast, truth, reference, weights=None):
    return {
        name: metric.sums(forecast, truth, weights=weights, reference=reference)
        for name, metric in EVERY.items()
    }


@functools.lru_cache(maxsize=64)
def chunk_program():
    return jax.jit(_sums)


def rows(fields, which):
    forecast, truth, reference = fields
    picked = jax.tree.map(lambda x: x[which], (truth, reference))
    return forecast[:, which], *picked


def agree(got, expected, names=None):
    for name in names or got:
        one, other = (EVERY[name].finish(s[name]) for s in (got, expected))
        jax.tree.map(
            lambda a, b, name=name: np.testing.assert_allclose(
                a, b, rtol=3e-5, atol=2e-6, err_msg=name
            ),
            one,
            other,
        )


@settings(max_examples=8, deadline=None)
@given(
    cuts=st.sets(st.integers(1, 10), max_size=3),
    seed=st.integers(0, 10),
    name=st.sampled_from(sorted(EVERY)),
)
def test_any_chunks_in_any_order_equal_all_cases_at_once(
    cuts, seed, name, fields, whole
):
    metric = EVERY[name]
    ends = [0, *sorted(cuts), 11]
    chunks = [np.arange(a, b) for a, b in zip(ends[:-1], ends[1:], strict=True)]
    np.random.default_rng(seed).shuffle(chunks)
    state = None
    for chunk in chunks:
        # Chunks of one size share a program: copies without weight fill them up.
        order = np.concatenate([chunk, np.repeat(chunk[:1], 11 - len(chunk))])
        weights = (np.arange(11) < len(chunk)).astype(np.float32)
        forecast, truth, reference = rows(fields, order)
        elements = truth.ndim - metric.vector_axes
        weights = weights.reshape(-1, *(1,) * (elements - 1))
        new = _one(metric)(forecast, truth, reference, weights)
        state = new if state is None else v.merge_sums(state, new)
    agree({name: state}, whole)


@functools.lru_cache(maxsize=64)
def _one(metric):
    return jax.jit(lambda x, y, r, w: metric.sums(x, y, weights=w, reference=r))


def test_updates_start_from_nothing(fields, whole):
    forecast, truth, reference = fields
    for name in ("crps", "table", "sphere"):
        metric = EVERY[name]
        state = metric.init(forecast, truth, reference=reference)
        assert np.isnan(jax.tree.leaves(metric.finish(state))[0]).all()
        for chunk in (np.arange(4), np.arange(4, 11)):
            x, y, r = rows(fields, chunk)
            state = metric.update(state, x, y, reference=r)
        agree({name: state}, whole)


@pytest.mark.parametrize(
    "devices, block",
    [
        (8, 1),
        pytest.param(8, None, marks=pytest.mark.slow),
        pytest.param(1, 3, marks=pytest.mark.slow),
    ],
)
def test_devices_and_blocks_do_not_matter(devices, block, fields, whole):
    forecast, truth, reference = fields
    mesh = make_mesh(member=devices, devices=jax.devices()[:devices])
    got = v.sum_cases(
        EVERY, forecast, truth, reference=reference, block=block, mesh=mesh
    )
    agree(got, whole)


def test_masks_and_weights_over_devices(gaps, score):
    forecast, truth, weights = gaps
    metric = v.spread_skill().over(0)
    drawn = np.random.default_rng(0).random((7, 12, 3)) < 0.7
    for mask in (drawn, np.arange(7) != 2):
        more = dict(weights=weights, member_mask=mask)
        expected = score(metric, forecast, truth, **more)
        sums = v.sum_cases({"a": metric}, forecast, truth, block=1, **more)["a"]
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5),
            metric.finish(sums),
            expected,
        )


def test_members_that_never_exist_together(fields, whole):
    """Folded in one at a time on 8 devices; all of them are held, so exactly."""
    forecast, truth, reference = fields
    metrics = [EVERY[name] for name in FOLDED]
    states = v.member_states(metrics, truth, reference=reference, max_members=5)
    states = reduce.fold_members(_itself, forecast, states, block=1, mesh=make_mesh())
    folded = jax.jit(
        lambda s: {
            name: EVERY[name].sums_of_reduced(s, truth, reference=reference)
            for name in FOLDED
        }
    )(states)
    agree(folded, whole, FOLDED)


def test_an_element_that_lacks_a_folded_member_is_left_out():
    """Only there: all else as the forecast itself, with no weight where one lacks."""
    rng = np.random.default_rng(0)
    forecast = rng.normal(size=(5, 6)).astype(np.float32)
    truth = rng.normal(size=6).astype(np.float32)
    forecast[3, 2] = np.nan
    is_whole = ~np.isnan(forecast).any(axis=0)
    metrics = [v.crps("fair"), v.spread_skill(), v.brier_score((0.0,)), v.bracketed()]
    states = v.member_states(metrics, truth, max_members=5)
    mesh = make_mesh(member=1, devices=jax.devices()[:1])
    states = reduce.fold_members(_itself, forecast, states, block=5, mesh=mesh)

    @jax.jit
    def found(states):
        folded = [m.sums_of_reduced(states, truth) for m in metrics]
        direct = [m.sums(forecast, truth) for m in metrics]
        there = [m(forecast, truth, weights=is_whole) for m in metrics]
        return folded, direct, there

    for metric, folded, direct, there in zip(metrics, *found(states), strict=True):
        np.testing.assert_allclose(v.scored_share(folded), 5 / 6, rtol=1e-6)
        np.testing.assert_allclose(v.scored_share(direct), 1.0)
        got = jax.tree.leaves(metric.finish(folded))
        for one, other in zip(got, jax.tree.leaves(there), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def _itself(values):
    return values


def test_members_at_once_are_asked_for_where_they_are_needed(fields):
    _, truth, _ = fields
    with pytest.raises(ValueError, match="all members of a case at once"):
        v.member_states([v.energy_score()], truth, max_members=5)
    with pytest.raises(ValueError, match="needs the state 'crps'"):
        v.crps().sums_of_reduced({}, truth)


def test_the_order_of_members_does_not_matter(fields, whole):
    forecast, truth, reference = fields
    got = chunk_program()(forecast[::-1], truth, reference)
    agree(got, whole)


def test_a_long_stream_does_not_drift():
    """50,000 chunks of mean 0.1: plain float32 sums are off by 1e-4 of it here."""
    metric = v.mean_square_error()
    x = jnp.full((1, 1), np.float32(np.sqrt(0.1)))
    one = metric.sums(x, jnp.zeros(1))
    empty = jax.tree.map(jnp.zeros_like, one)

    @jax.jit
    def run(state):
        return jax.lax.scan(
            lambda s, _: (v.merge_sums(s, one), None), state, length=50_000
        )[0]

    state = run(empty)
    expected = float(one.total["squared"])
    got = float(metric.finish(state))
    np.testing.assert_allclose(got, expected, rtol=1e-7)
    plain = np.float32(0)
    for _ in range(50_000):
        plain += np.float32(expected)
    assert abs(plain / 50_000 / expected - 1) > 1e-5


def test_keeping_cases_apart_is_refused_over_devices():
    with pytest.raises(ValueError, match="keeps cases apart"):
        v.sum_cases({"a": v.crps().over(1)}, np.ones((2, 3, 4)), np.ones((3, 4)))
    with pytest.raises(ValueError, match="reference"):
        v.sum_cases(
            {"a": v.anomalies()},
            np.ones((2, 3)),
            np.ones(3),
            reference={"climatology": np.ones(2)},
        )
