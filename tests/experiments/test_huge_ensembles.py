"""huge_ensembles: scores of known ensembles, verdicts that follow, and short runs."""

import json
import pathlib

import jax
import numpy as np
import pytest

import ensjax
from ensjax.experiment import ConfigError
from ensjax.experiment.configs import load_config
from ensjax.experiment.fields import load_beside
from ensjax.experiment.runner import RunOptions, run_and_report

ROOT = pathlib.Path(__file__).parents[2]
BESIDE = str(ROOT / "experiments" / "x.py")
first = load_beside(BESIDE, "huge_ensembles")
second = load_beside(BESIDE, "huge_ensembles_7424")
EXPERIMENTS = {"huge_ensembles": first, "huge_ensembles_7424": second}
NUM_SEEDS, SITES, STARTS = 5, 12, 40


def config_of(name, preset, *overrides):
    return load_config(f"{ROOT / 'configs' / name}.py:{preset}", overrides)[1]


CONFIG = config_of("huge_ensembles", "smoke")


def drawn_ensembles(rng, spreads):
    """Members about a forecast of the truth, with `spreads` of the error's, by lead."""
    leads = len(CONFIG.leads)
    size = np.linspace(0.2, 0.8, leads).reshape(1, leads, 1)
    known = rng.normal(size=(STARTS, leads, SITES))

    def draw(*shape):
        return known + size * rng.normal(size=(*shape, STARTS, leads, SITES))

    truth = draw().astype(np.float32)
    ensembles = {}
    for name, spread in spreads.items():
        members = known + spread * (draw(40) - known)
        ensembles[name] = members.astype(np.float32)
    return ensembles, truth


SPREADS = dict(checkpoints=0.5, bred=0.4, both=1.0)
EQUAL_SIZE = 10


def done_of(spreads=SPREADS):
    """What the stages would give to judge; EFI, growth, cost are set by hand."""
    parts = []
    for seed in range(NUM_SEEDS):
        rng = np.random.default_rng(seed)
        ensembles, truth = drawn_ensembles(rng, spreads)
        found = {}
        for name, members in ensembles.items():
            draws = first.ensembles.draws_of(members, EQUAL_SIZE)
            found |= first.scores.measure(name, draws, truth, 1.5)
            whole = members[None]
            found |= first.scores.measure(f"{name}_all", whole, truth, 1.5)
        found |= {"both_growth": 0.12 + 0.01 * seed, "random_growth": 0.03}
        leads = len(CONFIG.efi.leads)
        for name in ("half", "emulator_half", "emulator", "emulator_random"):
            found[f"efi_{name}"] = np.full(leads, 0.96) + 0.001 * seed
        for name in ("emulator", "emulator_random"):
            found[f"efi_{name}_sd"] = np.ones(leads)
            found[f"efi_{name}_auc"] = np.full(leads, 0.9)
        parts.append({name: np.asarray(value) for name, value in found.items()})
    return {
        "scores": {name: np.stack([p[name] for p in parts]) for name in parts[0]},
        "forecast": {
            "frozen_steps": np.full(10, -1),
            "alone_weights": np.array(1e-6),
            "alone_forecasts": np.array(1e-7),
        },
        "cost": {
            "rate_emulator": np.linspace(90, 110, NUM_SEEDS),
            "rate_system": np.full(NUM_SEEDS, 5.0),
        },
    }


@pytest.fixture(scope="module")
def done():
    return done_of()


def test_a_reliable_ensemble_scores_as_one(done):
    found = {name: value.mean(axis=0) for name, value in done["scores"].items()}
    np.testing.assert_allclose(found["both_ssr"], 1, atol=0.06)
    np.testing.assert_allclose(found["both_power"], 1, atol=0.06)
    np.testing.assert_allclose(found["both_all_ssr"], 1, atol=0.06)
    # Below 1 by what the chance of few members adds to the variance of probabilities,
    # which is why slopes are compared at equal sizes.
    np.testing.assert_allclose(found["both_all_slope"], 0.95, atol=0.1)
    assert found["both_slope"][-1] < found["both_all_slope"][-1]
    np.testing.assert_allclose(found["checkpoints_ssr"], 0.5, atol=0.05)
    # The mean loses what members do not agree on: 1 / (1 + size^2) or so is left.
    assert np.all(np.diff(found["both_mean_power"]) < 0)
    assert np.all(found["both_roc"] > 0.7)
    assert found["both_fair"][-1] < found["checkpoints_fair"][-1]


def test_verdicts_follow_the_numbers(done):
    def verdicts_of(done):
        claims = first.verdicts.make_claims(CONFIG, done)
        return {c["name"][:3]: c["verdict"] for c in claims}

    good = verdicts_of(done)
    assert {k: good[k] for k in ("1.a", "1.c", "1.e", "1.f")} == dict.fromkeys(
        ("1.a", "1.c", "1.e", "1.f"), "holds"
    )
    narrow = verdicts_of(done_of(SPREADS | {"both": 0.3, "bred": 1.0}))
    assert narrow["1.a"] == "fails" and narrow["1.b"] == "fails"
    scores = done["scores"]
    worse = scores | {"efi_emulator_half": scores["efi_half"] - 0.2}
    worse |= {"random_growth": scores["both_growth"] * 2}
    slow = done["cost"] | {"rate_system": np.full(NUM_SEEDS, 40.0)}
    bad = verdicts_of(done | {"scores": worse, "cost": slow})
    assert bad["1.c"] == bad["1.e"] == bad["1.f"] == "fails"


def test_checks_follow_the_numbers(done):
    checks = {c["name"]: c["pass"] for c in first.verdicts.make_checks(CONFIG, done)}
    assert checks["(a) growth of bred over random"]
    assert all(
        v
        for name, v in checks.items()
        if name.startswith(("(b)", "(e)", "EFI", "fair", "extremes"))
    )
    assert sum(name.startswith("fair CRPS of both") for name in checks) == 4
    apart = done["forecast"] | {"alone_weights": np.array(1e-3)}
    checks = first.verdicts.make_checks(CONFIG, done | {"forecast": apart})
    failed = [c["name"] for c in checks if not c["pass"] and c["name"][:3] == "(e)"]
    assert len(failed) == 1 and failed[0].startswith("(e) weights of 1 checkpoints")


def test_draws_are_disjoint_and_have_one_of_each_checkpoint_and_pair():
    ids = np.arange(24)  # 6 checkpoints x 2 pairs x 2 signs
    draws = first.ensembles.draws_of(ids, 6)
    assert sorted(draws.ravel()) == list(ids)
    for draw in draws:
        assert list(draw // 4) == list(range(6))
    pairs = first.ensembles.draws_of(ids // 2, 6)  # of one checkpoint with 12 pairs
    assert all(len(set(pair)) == 6 for pair in pairs)
    with pytest.raises(ValueError, match="24 members do not fall into draws of 5"):
        first.ensembles.draws_of(ids, 5)


def test_perturbations_that_do_nothing_leave_every_score_as_it_is(done):
    """Copies of checkpoints are no larger ensemble, as equal sizes have it."""
    del done  # which has compiled the same shapes
    ensembles, truth = drawn_ensembles(np.random.default_rng(9), {"few": 0.5})
    few = ensembles["few"][:EQUAL_SIZE]
    draws = first.ensembles.draws_of(np.repeat(few, 2, axis=0), EQUAL_SIZE)
    assert len(draws) == 2
    found = first.scores.measure("copies", draws, truth, 1.5)
    alone = first.scores.measure("copies", few[None], truth, 1.5)
    for name, value in found.items():
        if name == "copies_reliability":
            value[:, 2] /= 2  # as many forecasts in each of two draws
            full = alone[name][:, 2:] > 0
            value, alone[name] = (np.where(full, x, 0) for x in (value, alone[name]))
        np.testing.assert_allclose(value, alone[name], rtol=1e-6, err_msg=name)


def test_halves_for_the_efi_keep_pairs_whole():
    halves = first.scores._halves_of_pairs(np.arange(16))
    assert [list(half // 2) for half in halves] == [
        [0, 0, 2, 2, 4, 4, 6, 6],
        [1, 1, 3, 3, 5, 5, 7, 7],
    ]


def test_growth_is_of_the_centred_pair():
    rng = np.random.default_rng(0)
    base = rng.normal(size=(3, 4, 1, SITES))
    half = 0.1 * rng.normal(size=(3, 4, 1, SITES))
    grown = np.concatenate([half, 1.7 * half], axis=2)
    pairs = np.stack([base + grown, base - grown], axis=1)  # [pair, sign, start, ...]
    members = pairs.reshape(6, 4, 2, SITES)
    np.testing.assert_allclose(first.ensembles.growth(members), np.log(1.7), rtol=1e-6)


def test_the_efi_of_a_climate_that_is_its_own_is_small():
    rng = np.random.default_rng(1)
    climate = rng.normal(size=20_000)
    index = first.scores.efi.index_of(rng.normal(size=(200, 3, 2, SITES)), climate)
    assert np.abs(index).max() < 0.3
    far = first.scores.efi.index_of(np.full((5, 3, 2, SITES), 9.0), climate)
    np.testing.assert_allclose(far, 1, atol=1e-3)


def by_size(members, truth, clusters, **settings):
    settings = (
        dict(
            sizes=(50, 200, 800),
            num_resamples=40,
            num_score_resamples=4,
            crps_size=58,
            extreme=1.5,
            high=1.0,
        )
        | settings
    )
    key = jax.random.key(0)
    return second.scores.by_size(key, members, truth, clusters, settings)


def test_statistics_by_size_of_normal_members():
    """Reliable members of independent cells: what is known of them is found."""
    rng = np.random.default_rng(2)
    drawn = rng.normal(size=(801, 20, 30)).astype(np.float32)
    found = by_size(drawn[1:], drawn[0], np.repeat(np.arange(8), 100))
    expected = 2 / (np.array([50, 200, 800]) + 1)
    np.testing.assert_allclose(found["outliers"], expected, atol=0.015)
    np.testing.assert_allclose(found["gain"][0], 2.5, atol=0.06)
    assert np.all(np.diff(found["gain"]) > 0.3)
    # About 1 / n of a deviation, but for cells where the truth is outside.
    assert found["best"][0] > 2 * found["best"][2]
    sizes = (50, 200, 800)
    slope = second.verdicts.log_log_slope(sizes, found["width"].astype(np.float32))
    np.testing.assert_allclose(slope, -0.5, atol=0.06)
    np.testing.assert_allclose(found["ssr"], 1, atol=0.06)
    assert abs(found["fair"] - found["small_fair"]) < 4 * found["small_error"]
    gap = found["small_crps"] - found["crps"]
    np.testing.assert_allclose(gap, found["spread"] * (1 / 58 - 1 / 800), rtol=0.3)
    assert np.all(np.diff(found["brier"]) < 0)
    change = abs(found["fair_brier"][0] - found["fair_brier"][-1])
    assert change < 4 * found["fair_brier_error"][0]
    assert found["brier"][0] - found["brier"][-1] > change
    assert found["small_crps"] - found["crps"] > 4 * found["small_crps_error"]
    # Members of a checkpoint are as different as others: the interval is as wide.
    np.testing.assert_allclose(found["cluster_width"], found["width"], rtol=0.2)
    gap = found["small_gap"] - found["spread"] / 58
    assert abs(gap) < 4 * found["small_gap_error"] < 0.1 * found["small_gap"]


def test_the_gap_of_the_standard_crps_is_that_of_the_card():
    """And another one is found out: a third less, or that of one member fewer."""
    config = config_of("huge_ensembles_7424", "claims")
    gap, spread = 0.28 / 58, np.full(NUM_SEEDS, 0.28)
    found = {
        "bred_spread": spread,
        "bred_fair": spread,
        "bred_small_fair": spread,
        "bred_small_error": 1e-4 * spread,
        "bred_crps": spread * (1 + 1 / 7_428),
        "bred_small_crps_error": 1e-4 * spread,
        "bred_small_gap_error": 1e-3 * gap * np.ones(NUM_SEEDS),
    }

    def failed(gap):
        own = found | {
            "bred_small_gap": np.full(NUM_SEEDS, gap),
            "bred_small_crps": spread + gap,
        }
        checks = second.verdicts._checks_of_crps(config, own, "bred")
        return [c["name"].split(",")[0] for c in checks if not c["pass"]]

    assert failed(gap) == []
    of_gap = "(e) bred: standard less fair CRPS of 58"
    assert failed(gap * 58 / 57) == [of_gap]
    assert failed(gap * 2 / 3) == [of_gap, "(e) bred: standard CRPS"]


def test_probabilities_are_not_known_better_where_checkpoints_disagree():
    """Over members the interval shrinks whatever they are; over checkpoints not."""
    rng = np.random.default_rng(3)
    clusters = np.repeat(np.arange(8), 100)
    apart = np.linspace(-2, 2, 8)[clusters][:, None, None]
    drawn = apart + 0.05 * rng.normal(size=(800, 4, 5))
    keys = [jax.random.key(seed) for seed in range(NUM_SEEDS)]
    settings = dict(extreme=0.6, num_resamples=200)
    sizes = (50, 200, 800)
    members = drawn.astype(np.float32)
    widths = {
        name: np.stack(
            [
                [second.scores.width(key, members, settings, n, of) for n in sizes]
                for key in keys
            ]
        )
        for name, of in (("width", None), ("cluster_width", clusters))
    }
    slopes = {
        name: np.polyfit(np.log(sizes), np.log(values.T), 1)[0]
        for name, values in widths.items()
    }
    np.testing.assert_allclose(slopes["width"].mean(), -0.5, atol=0.06)
    assert np.abs(slopes["cluster_width"]).max() < 0.06
    config, done = huge_done()

    def verdict(name, values):
        own = done["members"] | {name: values}
        found = second.verdicts.make_claims(config, done | {"members": own})
        return {c["name"][:4]: c["verdict"] for c in found}["13.c"]

    two = widths["cluster_width"][:, [0, 2]]
    assert verdict("bred_width", widths["width"][:, [0, 2]]) == "holds"
    assert verdict("bred_cluster_width", two) != "holds"
    assert verdict("bred_cluster_width", np.sort(two, axis=1) * [1, 1.1]) == "fails"


def huge_done():
    """What is judged of thousands of members, by hand."""
    config = config_of("huge_ensembles_7424", "smoke")
    spread = 1 + 0.01 * np.arange(NUM_SEEDS)
    falls = spread[:, None] * np.array([1.0, 0.1])
    found = {
        name: spread * value
        for name, value in dict(
            stream_exact=1.0,
            drawn_counts=1.0,
            drawn_two_pass=1e-7,
            stream_difference=1e-7,
            drawn_block=1e-7,
            drawn_devices=1e-7,
            stream_again=1.0,
            bred_fair=0.2,
            system_fair=0.2,
            closure_fair=0.1,
        ).items()
    }
    names = ("brier", "owcrps", "outliers", "width", "cluster_width", "best")
    for name in names:
        found[f"bred_{name}"] = falls
    found["bred_gain"] = spread[:, None] * np.array([2.5, 3.5])
    found |= {"bred_gain_high": 6 * falls[:, ::-1], "bred_gain_low": 3 * falls}
    seconds = dict(emulator=spread, system=200 * spread**2, closure=0.1 * spread)
    cost = {f"seconds_{name}": value for name, value in seconds.items()}
    return config, {"members": found, "cost": cost}


def test_the_claim_of_cost_has_one_simulator_for_both_halves():
    config, done = huge_done()

    def verdict(**changes):
        own = done | {k: done[k] | changes.get(k, {}) for k in done}
        found = second.verdicts.make_claims(config, own)
        return {c["name"][:4]: c["verdict"] for c in found}["13.e"]

    assert verdict() == "holds"
    # The imperfect simulator is better and quicker, and not what is claimed about.
    assert verdict(members={"closure_fair": np.full(NUM_SEEDS, 0.01)}) == "holds"
    slower = done["cost"]["seconds_system"] / 10
    assert verdict(cost={"seconds_system": slower}) == "fails"
    better = done["members"]["system_fair"] / 2
    assert verdict(members={"system_fair": better}) == "fails"


def test_a_known_field_is_streamed_as_two_passes_have_it():
    found = second.draws.statistics_of_draws(128, (6, 4), 0)
    assert found["counts"] == 1
    for name in ("two_pass", "block", "devices"):
        assert found[name] < 1e-5, name


@pytest.mark.slow
def test_one_device_and_two_are_compared_in_a_process_of_its_own(monkeypatch):
    expected = second.draws.statistics_of_draws(128, (6, 4), 0)
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    found = second.draws.statistics_of_draws(128, (6, 4), 0)
    assert found["counts"] == 1
    assert found["devices"] < 1e-5
    assert found.keys() == expected.keys()
    with pytest.raises(RuntimeError, match="on 2 CPU devices, in a process of its own"):
        second.draws.cpu_devices.in_own_process(second.draws.__file__, (128,), 2)


def test_a_part_of_a_claim_that_is_not_known_leaves_it_undecided():
    config, done = huge_done()
    assert "13.f" in str(second.verdicts.make_claims(config, done))
    unknown = done["members"] | {"drawn_devices": np.full(NUM_SEEDS, np.nan)}
    for members, verdict in ((done["members"], "holds"), (unknown, "undecided")):
        claims = second.verdicts.make_claims(config, done | {"members": members})
        assert {c["name"][:4]: c["verdict"] for c in claims}["13.f"] == verdict


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize("preset", ["smoke", "small", "claims", "paper"])
def test_presets_are_valid(name, preset):
    EXPERIMENTS[name].validate(config_of(name, preset))


@pytest.mark.parametrize(
    "name, field, value, message",
    [
        ("huge_ensembles", "archive.num_before", "1", "num_before must be at least 3"),
        ("huge_ensembles", "leads", "(1,2)", "config.leads must rise from 0 and 1"),
        ("huge_ensembles", "archive.num_leads", "4", "must reach the last lead"),
        ("huge_ensembles_7424", "sizes", "(8,32)", "to all 64 members"),
        ("huge_ensembles_7424", "judged_lead", "3", "judged_lead"),
        ("huge_ensembles_7424", "num_resamples", "1", "num_resamples"),
        ("huge_ensembles", "leads", "(0,1,3,2,4)", "config.leads must be .* that rise"),
        (
            "huge_ensembles",
            "judged_leads",
            "()",
            "config.judged_leads must be whole numbers at least 2",
        ),
        (
            "huge_ensembles",
            "judged_leads",
            "(3,2)",
            "config.judged_leads must be .* that rise",
        ),
        ("huge_ensembles", "spectral_lead", "0", "config.spectral_lead must be"),
        (
            "huge_ensembles",
            "event_quantile",
            "1",
            "config.event_quantile must be .* below 1; got 1",
        ),
        (
            "huge_ensembles",
            "training.early_steps",
            "21",
            "training.early_steps must be .* at most 20",
        ),
        (
            "huge_ensembles",
            "training.alone_steps",
            "0",
            "config.training.alone_steps must be",
        ),
        (
            "huge_ensembles",
            "efi.noise",
            "0",
            "config.efi.noise must be a number above 0",
        ),
        (
            "huge_ensembles",
            "efi.leads",
            "(0,1,2,3)",
            "config.efi.leads must be whole numbers at least 1",
        ),
        (
            "huge_ensembles",
            "efi.leads",
            "(5,3,2,1)",
            "config.efi.leads must be .* that rise",
        ),
        (
            "huge_ensembles",
            "efi.judged_leads",
            "(1,9)",
            "config.efi.leads must hold efi.judged_leads",
        ),
        (
            "huge_ensembles",
            "efi.judged_leads",
            "()",
            "config.efi.judged_leads must be whole numbers",
        ),
        (
            "huge_ensembles",
            "efi.free_leads",
            "(30,10,5)",
            "config.efi.free_leads are the first, one that is not",
        ),
        (
            "huge_ensembles",
            "efi.free_leads",
            "(10,30)",
            "config.efi.free_leads are the first",
        ),
        (
            "huge_ensembles",
            "efi.free_leads",
            "(10,30,0)",
            "config.efi.free_leads must be whole numbers",
        ),
        ("huge_ensembles", "cost.num_timings", "0", "config.cost.num_timings must be"),
        (
            "huge_ensembles",
            "block",
            "0",
            "config.block must be a whole number at least 1",
        ),
        (
            "huge_ensembles_7424",
            "leads",
            "(5,4,2)",
            "config.leads must be .* that rise",
        ),
        (
            "huge_ensembles_7424",
            "leads",
            "(0,4,5)",
            "config.leads must be whole numbers at least 1",
        ),
        ("huge_ensembles_7424", "sizes", "(64,8)", "config.sizes must be .* that rise"),
        (
            "huge_ensembles_7424",
            "sizes",
            "(1,64)",
            "config.sizes must be whole numbers at least 2",
        ),
        (
            "huge_ensembles_7424",
            "sizes",
            "()",
            "config.sizes must be whole numbers at least 2",
        ),
        (
            "huge_ensembles_7424",
            "crps_size",
            "64",
            "config.crps_size must be .* at most 63; got 64",
        ),
        (
            "huge_ensembles_7424",
            "extreme_quantile",
            "1",
            "config.extreme_quantile must be .* below 1; got 1",
        ),
        ("huge_ensembles_7424", "high_quantile", "nan", "config.high_quantile must be"),
        (
            "huge_ensembles_7424",
            "num_score_resamples",
            "0",
            "config.num_score_resamples must be",
        ),
        (
            "huge_ensembles_7424",
            "num_drawn",
            "255",
            "config.num_drawn=255 must be a multiple of 2",
        ),
        (
            "huge_ensembles_7424",
            "drawn_shape",
            "()",
            "config.drawn_shape must be whole numbers at least 1",
        ),
        (
            "huge_ensembles_7424",
            "drawn_shape",
            "(1,4)",
            "config.drawn_shape must begin with two or more",
        ),
        (
            "huge_ensembles_7424",
            "archive.num_before",
            "2",
            "num_before must reach back .* = 3; got 2",
        ),
    ],
)
def test_mistakes_are_one_line_before_anything_is_written(name, field, value, message):
    with pytest.raises(ConfigError, match=message) as error:
        EXPERIMENTS[name].validate(config_of(name, "smoke", (field, value)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize(
    "field, value, message",
    [
        ("scale", "toys", "config.scale is one of full, reduced, toy"),
        ("archive.source", "era5", "config.model.name is one of sfno"),
        ("archive.steps_per_output", "7", "steps_per_output=7 must be a multiple of 2"),
        ("num_checkpoints", "1", "config.num_checkpoints must be a number at least 2"),
        ("model.name", "sfno", "config.model.name is one of residual"),
        ("model.width", "0", "config.model.width must be"),
        ("model.step_scale", "0", "config.model.step_scale must be"),
        ("training.batch_size", "313", "config.training.batch_size .* at most 312"),
        ("training.learning_rate", "0", "config.training.learning_rate must be"),
        ("training.steps_per_call", "3", "steps_per_call=3, both cut to the 20 steps"),
        ("training.save_every_steps", "0", "config.training.save_every_steps must be"),
        ("training.block", "autoo", "config.training.block must be"),
        ("perturbations.share", "0", "config.perturbations.share must be"),
        (
            "perturbations.error_leads",
            "40",
            "perturbations.error_leads must be .* at most 39",
        ),
        ("analysis_noise", "-1", "config.analysis_noise must be"),
    ],
)
def test_mistakes_of_checkpoints_are_one_line(name, field, value, message):
    with pytest.raises(ConfigError, match=message):
        EXPERIMENTS[name].validate(config_of(name, "smoke", (field, value)))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_published_sizes_are_planned_and_not_run(name, tmp_path):
    config = config_of(name, "paper")
    for call in (
        EXPERIMENTS[name].training_job,
        lambda c: EXPERIMENTS[name].run(c, tmp_path),
    ):
        with pytest.raises(ConfigError, match=f"ensjax plan configs/{name}.py:paper"):
            call(config)
    if not hasattr(ensjax.nn, "sfno"):
        pytest.skip("the network on the sphere is not there")
    job = EXPERIMENTS[name].training_job(config, shapes_only=True)
    assert job.is_stream and job.data.shape == (64, 1, 2, 721, 1440, 74)
    mesh = ensjax.make_mesh(member=1, devices=jax.devices()[:1])
    ensemble = job.abstract_ensemble(mesh)
    assert ensemble.num_members == 29
    sizes = sum(x.size for x in jax.tree.leaves(ensemble.params)) / 29
    assert 1.0e9 < sizes < 2.4e9, "a complex number is two real ones"
    weights = np.array(job.options["loss"].loss.element_weights)
    assert weights.shape == (721, 1, 74)
    assert weights.mean() == pytest.approx(1)
    # A pole of 1,440 places has the area of one cap.
    assert weights[0, 0, 0] < 2e-3 * weights[360, 0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_smoke_run_reports_and_the_same_after_a_resume(name, tmp_path):
    config = str(ROOT / "configs" / f"{name}.py:smoke")
    options = RunOptions(config, str(tmp_path / "run"))
    assert run_and_report(options) == 0
    path = tmp_path / "run" / "results.json"
    told = json.loads(path.read_text())
    assert len(told["claims"]) == 6
    assert told["scalars"]["num_networks_not_finite"] == 0
    path.unlink()
    assert run_and_report(options) == 0
    assert json.loads(path.read_text()) == told
