"""Every metric in chunks, over members that never exist together, and on 8 devices."""

import functools
import inspect

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
EVERY = {  # the function that makes it, then what tells it from others of it
    "crps": v.crps(),
    "crps fair": v.crps("fair"),
    "crps almost_fair": v.crps("almost_fair"),
    "crps_parts": v.crps_parts(),
    "threshold_weighted_crps": v.threshold_weighted_crps(0.5),
    "outcome_weighted_crps": v.outcome_weighted_crps(0.0),
    "mean_square_error": v.mean_square_error(debiased=True),
    "root_mean_square_error": v.root_mean_square_error(),
    "bias": v.bias(),
    "anomalies": v.anomalies(),
    "activity_errors": v.activity_errors(),
    "deflated_error": v.deflated_error(),
    "member_activity": v.member_activity(),
    "spread_skill": v.spread_skill(),
    "binned_spread_skill": v.binned_spread_skill((0.5003, 1.0007)),
    "rank_histogram": v.rank_histogram(5),
    "pit_histogram": v.pit_histogram(4),
    "best_member_error": v.best_member_error(),
    "bracketed": v.bracketed(),
    "mean_efi": v.mean_efi((0.0, 0.3, 1.0)),
    "mean_gain": v.mean_gain(),
    "outliers": v.outliers(),
    "brier_score": v.brier_score((0.0, 0.7), fair=True),
    "brier_skill_score": v.brier_skill_score((0.0, 0.7)),
    "log_score": v.log_score((0.0, 0.7)),
    "event_table": v.event_table((0.0, 0.7), num_members=5),
    "event_table bins": v.event_table((0.0, 0.7), num_bins=10),
    "event_table tails": v.event_table((-0.5, 0.7), num_members=5, num_below=1),
    "seeps": v.seeps(),
    "energy_score": v.energy_score("fair", vector_axes=2),
    "variogram_score": v.variogram_score("fair", vector_axes=2, tile=5),
    "spectral_crps": v.spectral_crps(GRID),
    "pooled_crps": v.pooled_crps((1, 2)),
    "zonal_spectra": v.zonal_spectra(),
    "spherical_spectra": v.spherical_spectra(GRID),
    "centred_acc": v.centred_acc(),
}
TABLE = {
    row[0]: row[1:]
    for row in map(str.split, v.__doc__.splitlines())
    if len(row) == 4 and row[1] == "exact"
}
FOLDED = tuple(
    name for name in EVERY if TABLE[name.split()[0]][2] in ("exact", "ordered")
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
        "observation_sd": rng.uniform(0.1, 0.3, places).astype(np.float32),
        "case_ids": np.arange(100, 111),
        "quantiles": np.array([-1.5, -0.4, 1.5], np.float32)
        + (0.1 * rng.normal(size=(*places, 1))).astype(np.float32),
    }
    return forecast, truth, reference


@pytest.fixture(scope="module")
def whole(fields):
    return all_sums()(*fields, np.ones(11, np.float32))


@functools.lru_cache(maxsize=1)
def all_sums():
    """`run(forecast, truth, reference, weights [case])`: one program for all tests."""

    def run(forecast, truth, reference, weights):
        return {
            name: metric.sums(
                forecast,
                truth,
                weights=weights.reshape(-1, *(1,) * (2 - metric.vector_axes)),
                reference=reference,
            )
            for name, metric in EVERY.items()
        }

    return jax.jit(run)


def rows(fields, which):
    forecast, truth, reference = fields
    picked = jax.tree.map(lambda x: x[which], (truth, reference))
    return forecast[:, which], *picked


@jax.jit
def finish_all(sums):
    return {name: EVERY[name].finish(sums[name]) for name in sums}


def agree(got, expected):
    expected = finish_all({name: expected[name] for name in got})
    for name, score in finish_all(got).items():
        jax.tree.map(
            lambda a, b, name=name: np.testing.assert_allclose(
                a, b, rtol=3e-5, atol=2e-6, err_msg=name
            ),
            score,
            expected[name],
        )


@settings(max_examples=8, deadline=None)
@given(cuts=st.sets(st.integers(1, 10), max_size=3), seed=st.integers(0, 10))
def test_any_chunks_in_any_order_equal_all_cases_at_once(cuts, seed, fields, whole):
    ends = [0, *sorted(cuts), 11]
    chunks = [np.arange(a, b) for a, b in zip(ends[:-1], ends[1:], strict=True)]
    np.random.default_rng(seed).shuffle(chunks)
    state = None
    for chunk in chunks:
        # Chunks of one size share a program: copies without weight fill them up.
        order = np.concatenate([chunk, np.repeat(chunk[:1], 11 - len(chunk))])
        weights = (np.arange(11) < len(chunk)).astype(np.float32)
        new = all_sums()(*rows(fields, order), weights)
        state = new if state is None else merge_all(state, new)
    agree(state, whole)


@jax.jit
def merge_all(a, b):
    return {name: v.merge_sums(a[name], b[name]) for name in a}


def test_updates_start_from_nothing(fields, whole):
    names = ("crps", "event_table", "spherical_spectra")

    @jax.jit
    def run(*fields):
        forecast, truth, reference = fields
        empty, states = {}, {}
        for name in names:
            metric = EVERY[name]
            state = metric.init(forecast, truth, reference=reference)
            empty[name] = metric.finish(state)
            for chunk in (np.arange(4), np.arange(4, 11)):
                x, y, r = rows(fields, chunk)
                state = metric.update(state, x, y, reference=r)
            states[name] = state
        return empty, states

    empty, states = run(*fields)
    for name in names:
        assert np.isnan(jax.tree.leaves(empty[name])[0]).all()
    agree(states, whole)


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


def test_the_table_of_the_room_has_every_metric():
    public = {name: getattr(v, name) for name in v.__all__}
    made = {
        name
        for name, thing in public.items()
        if not inspect.isclass(thing)
        and inspect.signature(thing).return_annotation is v.Metric
    }
    assert set(TABLE) == made
    assert {name.split()[0] for name in EVERY} == made - {"crps_gaussian"}
    assert all(row[:2] == ["exact", "exact"] for row in TABLE.values())
    kept = {True: "ordered", False: "exact"}
    for name in FOLDED:
        ingredient = EVERY[name].ingredient
        assert TABLE[name.split()[0]][2] == kept[ingredient.is_ordered], name
    others = [m for m in (*EVERY.values(), v.crps_gaussian()) if not m.ingredient.name]
    assert len(others) == 2  # what the table says "no" and "none" of


@pytest.fixture(scope="module")
def lacking(fields):
    """The fields, with members that are missing here, there and everywhere."""
    forecast, truth, reference = fields
    forecast = forecast.copy()
    forecast[np.random.default_rng(1).random(forecast.shape) < 0.02] = np.nan
    forecast[2, 3] = forecast[:, 4] = forecast[1:, 5] = np.nan
    return forecast, truth, reference


@pytest.fixture(scope="module")
def folding(lacking):
    """`fold(states or None, members)`: one by one on 8 devices, all of them held."""
    forecast, truth, reference = lacking
    metrics = [EVERY[name] for name in FOLDED]
    states = v.member_states(metrics, truth, reference=reference, max_members=5)

    def fold(folded, members):
        return reduce.fold_members(
            _itself,
            forecast,
            states if folded is None else folded,
            block=1,
            mask=np.isin(np.arange(5), members),
            mesh=make_mesh(),
        )

    return fold


@pytest.fixture(scope="module")
def sums_of_folded(lacking):
    _, truth, reference = lacking
    return jax.jit(
        lambda s: {
            name: EVERY[name].sums_of_reduced(s, truth, reference=reference)
            for name in FOLDED
        }
    )


@pytest.fixture(scope="module")
def whole_lacking(lacking):
    return all_sums()(*lacking, np.ones(11, np.float32))


@settings(max_examples=5, deadline=None)
@given(first=st.sets(st.integers(0, 4), max_size=4), swapped=st.booleans())
def test_members_that_never_exist_together(
    first, swapped, folding, sums_of_folded, whole_lacking
):
    """In two calls, in any order, on 8 devices; also where some are missing."""
    parts = [sorted(first), sorted(set(range(5)) - first)]
    states = None
    for part in parts[::-1] if swapped else parts:
        states = folding(states, part)
    folded = sums_of_folded(states)
    agree(folded, whole_lacking)
    for name in FOLDED:
        shares = [v.scored_share(s[name]) for s in (folded, whole_lacking)]
        np.testing.assert_allclose(*shares, rtol=1e-6, err_msg=name)


def test_states_that_were_folded_apart_merge(folding, sums_of_folded, whole_lacking):
    merged = v.merge_member_states(folding(None, [0, 3]), folding(None, [1, 2, 4]))
    agree(sums_of_folded(merged), whole_lacking)
    with pytest.raises(ValueError, match="of the same metrics"):
        v.merge_member_states(merged, {})


def test_more_members_than_are_kept_stay_within_the_bound():
    """600 members, some missing, in a summary that holds about a third of them."""
    rng = np.random.default_rng(0)
    forecast = rng.normal(size=(600, 4)).astype(np.float32)
    truth = np.array([0.3, 2.5, -0.2, 1.0], np.float32)
    forecast[rng.random(forecast.shape) < 0.3] = np.nan
    metrics = [metric.over() for metric in (v.crps(), v.threshold_weighted_crps(0.5))]
    metrics.append(v.outcome_weighted_crps(0.0).over())
    states = v.member_states(metrics, truth, max_members=600, rank_error=0.05)
    kept = states["crps"].ordered
    assert 0 < reduce.rank_error_bound(kept) <= 0.05
    assert sum(x.size for x in jax.tree.leaves(kept)) < 4 * 600 / 2
    mesh = make_mesh(member=1, devices=jax.devices()[:1])
    states = reduce.fold_members(_itself, forecast, states, block=100, mesh=mesh)
    extent = np.nanmax(forecast, axis=0) - np.nanmin(forecast, axis=0)
    of_those = [(~np.isnan(forecast)).sum(0)] * 2 + [(forecast > 0).sum(0)]

    @jax.jit
    def scores(states, forecast, truth):
        folded = [m.finish(m.sums_of_reduced(states, truth)) for m in metrics]
        return folded, [m(forecast, truth) for m in metrics]

    found = scores(states, forecast, truth)
    for got, exact, number in zip(*found, of_those, strict=True):
        if isinstance(got, v.OutcomeWeighted):
            np.testing.assert_allclose(got.brier, exact.brier, rtol=1e-5)
            got, exact = got.crps, exact.crps
        off = np.asarray(got - exact)
        known = ~np.isnan(off)
        assert known.sum() >= 3 and np.abs(off[known]).max() > 0
        bound = 0.05 * 600 / number * extent
        assert (np.abs(off) <= bound / 20)[known].all()  # as a rule far less


def _itself(values):
    return values


def test_members_at_once_are_asked_for_where_they_are_needed(fields):
    _, truth, _ = fields
    with pytest.raises(ValueError, match="all members of a case at once"):
        v.member_states([v.energy_score()], truth, max_members=5)
    with pytest.raises(ValueError, match="needs the state 'crps'"):
        v.crps().sums_of_reduced({}, truth)
    with pytest.raises(ValueError, match="a climatology|dry_share"):
        v.member_states([v.seeps()], truth, max_members=5)


def test_too_many_members_for_what_is_kept_in_order_score_nothing():
    truth = np.zeros(2, np.float32)
    metrics = [v.crps(), v.outcome_weighted_crps(1.0)]
    states = v.member_states(metrics, truth, max_members=2, rank_error=0)
    mesh = make_mesh(member=1, devices=jax.devices()[:1])
    forecast = np.ones((3, 2), np.float32)
    states = reduce.fold_members(_itself, forecast, states, block=3, mesh=mesh)
    sums = jax.jit(lambda s: [m.sums_of_reduced(s, truth) for m in metrics])(states)
    assert all(v.scored_share(of_metric) == 0 for of_metric in sums)


def test_the_order_of_members_does_not_matter(fields, whole):
    forecast, truth, reference = fields
    got = all_sums()(forecast[::-1], truth, reference, np.ones(11, np.float32))
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
