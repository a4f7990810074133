"""fourcastnet3: claims and checks follow their numbers, a split step, a short run."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ensjax.experiment import ConfigError
from ensjax.experiment.configs import load_config
from ensjax.experiment.fields import load_beside
from ensjax.experiment.runner import RunOptions, run_and_report

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "fourcastnet3.py"
experiment = load_beside(str(ROOT / "experiments" / "x.py"), "fourcastnet3")
verdicts, training = experiment.verdicts, experiment.training
scores = experiment.base.scores
systems, sampler, simulator = (
    verdicts.systems, experiment.sampler, experiment.simulator
)  # fmt: skip
SEEDS, RUNS, LEADS, LONG, DEGREES = 5, 16, 6, 3, 22


def config_of(preset, *overrides):
    return load_config(f"{CONFIG}:{preset}", overrides)[1]


def by_run_of():
    """Scores by run of a reliable ensemble; seeds and runs differ a little."""
    away = 1 + 0.01 * np.arange(SEEDS)[:, None, None, None]
    away = away + 0.01 * np.linspace(-1, 1, RUNS)[:, None, None]
    ones = np.ones((SEEDS, RUNS, LEADS + LONG, 2)) * away
    power = ones[..., None] * np.ones(DEGREES)
    return dict(
        crps_by_run=0.3 * ones[:, :, :LEADS],
        power_by_run=power[:, :, :LEADS],
        long_power_by_run=power[:, :, LEADS:],
        truth_power_by_run=np.ones((SEEDS, RUNS, 2, DEGREES)),
        error_by_run=np.ones((SEEDS, RUNS, LEADS + LONG, 2)),
        spread_by_run=ones,
    )


def done_of(**changed):
    """Results that pass, but for what is changed of the variant with both."""
    emulate, config = {}, config_of("claims")
    for name in training.VARIANTS:
        is_own = name == "diffusion"
        by_run = by_run_of()
        by_run |= {k: v for k, v in changed.items() if is_own and k in by_run}
        whole = {k: v[0] for k, v in scores.of_runs(config, by_run).items()}
        ones = np.ones((SEEDS, LEADS, 2))
        ones[..., 0] += 0.01 * np.arange(SEEDS)[:, None]  # seeds differ a little
        own = whole | by_run | dict(
            crps=0.3 * ones,
            large_ssr=ones if name != "white" else 0.5 * ones,
            distance=np.full(SEEDS, 1.0 if is_own else 2.0),
            is_finite=np.ones(SEEDS, bool),
            frozen_steps=np.full(SEEDS, -1),
            ranks=np.ones((SEEDS, LEADS, 17)),
            long_ranks=np.ones((SEEDS, LONG, 9)),
        )  # fmt: skip
        if is_own:
            own |= changed
        emulate |= {f"{name}_{key}": value for key, value in own.items()}
    size = dict(
        split_devices=np.array([1, 2, 4]),
        split_loss_off=np.zeros(3),
        split_gradient_off=np.zeros(3),
        full_params=np.int64(709_930_667),
        full_flops=2.9e13,
        full_bytes=2.5e12,
    )
    return {
        "emulate": emulate,
        "size": size,
        "simulate": {"num_cases": 4},
        "sample": sample_of(),
        "ensemble": simulated_of(0.4),
        "imperfect": simulated_of(0.45),
    }


def simulated_of(fair):
    """Scores of a simulator."""
    return dict(
        crps=np.full((LEADS, 2), fair),
        crps_by_run=np.full((RUNS, LEADS, 2), fair),
        climate_crps=np.full((LEADS, 2), 0.5),
        ssr=np.ones((LEADS, 2)),
        power=np.ones((LEADS, 2, DEGREES)),
        truth_power=np.ones((LEADS, 2, DEGREES)),
        rate=np.float64(35.0),
    )


def sample_of(net=0.101, rate=1000.0, ssr=1.0):
    """The first day's scores: 12 levels are nearly as good as 24, 6 are not."""
    found = dict(training_seconds=1.0, frozen_steps=np.full(SEEDS, -1))
    rows = {"net": (net, ssr, rate, 1)} | {
        f"levels_{count}": (fair, 1.0, 1000.0 / count, 2 * count - 1)
        for count, fair in ((6, 0.12), (12, 0.1005), (24, 0.1))
    }
    rows["half"] = (0.11, 1.0, 0.0, 0)
    away = 1e-4 * np.arange(SEEDS)
    for name, (fair, ratio, rate, calls) in rows.items():
        found |= {
            f"fair_{name}": fair + away,
            f"fair_by_run_{name}": (fair + away)[:, None] * np.ones(RUNS),
            f"ssr_{name}": np.full(SEEDS, ratio),
            f"power_{name}": np.ones((SEEDS, 2, DEGREES)),
            f"rate_{name}": np.full(SEEDS, rate),
            f"calls_{name}": np.int64(calls),
        }
    return found


def failed(done):
    checks = verdicts.make_checks(config_of("claims"), done)
    return {check["name"][:3] for check in checks if not check["pass"]}


def verdict(done):
    return verdicts.make_claims(config_of("claims"), done)[2]["verdict"]


def test_claims_and_checks_follow_their_numbers():
    good = done_of()
    assert failed(good) == set() and verdict(good) == "holds"
    # Runs that differ much leave open what all seeds say.
    spread = good["emulate"]["diffusion_spread_by_run"]
    factor = np.where(np.arange(RUNS) < 1, 1 + 0.19 * RUNS, 1)[:, None, None]
    assert verdict(done_of(spread_by_run=spread * factor)) == "undecided"
    spread = good["emulate"]["diffusion_spread_by_run"]

    def told(name, where, factor):
        other = good["emulate"][f"diffusion_{name}"].copy()
        other[where] *= factor
        done = done_of(**{name: other})
        return failed(done), verdict(done)

    every = (slice(None),) * 2
    assert told("spread_by_run", every, 0.5) == ({"(c)"}, "fails")
    # The first step does not count; the last long one does.
    assert told("spread_by_run", (*every, 0), 0.2) == (set(), "holds")
    assert told("spread_by_run", (*every, -1), 0.5) == ({"(c)"}, "fails")
    # One variable too wide and the other one too narrow do not cancel.
    both = spread.copy()
    both[..., 0], both[..., 1] = 0.36, 1.96
    both = done_of(spread_by_run=both)
    assert failed(both) == {"(c)"} and verdict(both) == "fails"
    ones = good["emulate"]["diffusion_crps"] / 0.3
    assert failed(done_of(crps=0.32 * ones)) == {"(a)"}
    assert failed(done_of(distance=np.full(SEEDS, 1.9))) == {"(b)"}
    assert failed(done_of(large_ssr=0.4 * ones)) == {"(d)"}
    assert told("long_power_by_run", every, 2.5) == ({"(e)"}, "fails")
    assert told("long_power_by_run", every, 1.5) == (set(), "fails")  # 1.8 decibel
    # What one degree gains another one does not lose; (e) is of every seed.
    power = good["emulate"]["diffusion_long_power_by_run"].copy()
    power[..., 1:9], power[..., 9:] = 0.51, 1.9
    assert verdict(done_of(long_power_by_run=power)) == "fails"
    assert told("long_power_by_run", (0, slice(None), 1, 0, 3), 3.0)[0] == {"(e)"}
    # Twenty times the truth's power on the tenth day already is no trend, and not real.
    much = {
        name: 20 * good["emulate"][f"diffusion_{name}"]
        for name in ("power_by_run", "long_power_by_run")
    }
    assert verdict(done_of(**much)) == "fails"
    # Beyond the config's last degree one of the two checks of (e) sees it.
    assert told("long_power_by_run", (*every, 1, 0, 20), 3.0) == ({"(e)"}, "holds")
    words = [c["verdict"] for c in verdicts.make_claims(config_of("claims"), good)]
    assert words == 3 * ["holds"] + 2 * ["not run"]
    climate = done_of()
    climate["ensemble"]["crps"][2] = 0.51
    assert failed(climate) == {"sim"}
    climate = done_of()
    climate["imperfect"]["crps"][2] = 0.51
    assert failed(climate) == {"imp"}
    assert failed(done_of() | {"imperfect": simulated_of(0.4)}) == {"imp"}  # no flaw
    split = done_of()
    split["size"]["split_gradient_off"][1] = 1e-3
    assert failed(split) == {"gra"}
    assert "full_size_flops" in verdicts.summarise(config_of("claims"), good)


def test_the_choice_of_cases_is_no_trend_and_two_decibels_are():
    """Members of a stationary climate: of a few cases, which seeds share by half."""

    def power(cases, num_steps, seed):
        rng = np.random.default_rng(seed)
        shape = 0.5 * cases * (2 * np.arange(DEGREES) + 1)  # a wave has 2 l + 1 parts
        size = (RUNS, num_steps, 2, DEGREES)
        own = rng.gamma(20 * shape, 1 / (20 * shape), size=(SEEDS, *size))
        return own * rng.gamma(shape, 1 / shape, size=size)

    config = config_of("claims")
    for seed in range(3):
        early, late = power(2, LEADS, seed), power(8, LONG, seed + 100)
        still = done_of(power_by_run=early, long_power_by_run=late)
        scores = verdicts.scores_of(still)["diffusion"]
        assert np.abs(verdicts.changes(config, scores)).max() > 1
        assert (verdicts.trend(config, scores) < 0.1).all()
        assert verdict(still) == "holds"
        # Two cases a run leave half-widths above 1 decibel, and a check says so.
        assert failed(still) == {"hal"}
        factor = 10**0.2
        drifting = done_of(power_by_run=early, long_power_by_run=late * factor)
        assert verdict(drifting) == "fails"
        # One degree of one variable at one step alone, which is well known.
        other = late.copy()
        other[:, :, 1, 0, 15] *= 2
        drifting = done_of(power_by_run=early, long_power_by_run=other)
        assert verdict(drifting) == "fails"


def test_half_widths_are_those_of_the_jackknife():
    """Of a mean of runs they are Student's, where power is near 1 and a log linear."""
    rng = np.random.default_rng(0)
    late = 1 + 1e-4 * rng.normal(size=(SEEDS, RUNS, LONG, 2, DEGREES))
    still = done_of(power_by_run=np.ones((SEEDS, RUNS, LEADS, 2, DEGREES)),
                    long_power_by_run=late)  # fmt: skip
    config = config_of("claims")
    found = verdicts.widths(config, verdicts.scores_of(still)["diffusion"])
    sd = late.std(axis=1, ddof=1)[..., 1 : config.last_degree + 1] * 10 / np.log(10)
    quantile = 4.4265  # of Student's t with 15 degrees at 1 - 0.025 / 102
    np.testing.assert_allclose(found, quantile * sd / np.sqrt(RUNS), rtol=2e-3)
    few = config_of("claims", ("data.num_test_runs", "1"))
    alone = verdicts.scores_of(still)["diffusion"]
    assert (verdicts.widths(few, alone) == 0).all()


def test_a_denoiser_has_seen_as_much_as_the_network():
    """By hand for `claims`; and its score is told at half of its steps, too."""
    assert sampler.passes(config_of("claims")) == {
        "net": 300 * 2 * 4 + 100 * 4 * 2 * 2 + 50 * 2 * 4 * 2,
        "half": 400 * 8,
        "whole": 800 * 8,
    }
    for preset in ("small", "claims"):
        made = sampler.passes(config_of(preset))
        assert made["whole"] >= made["net"]
    scalars = systems.summarise(config_of("claims"), done_of())
    assert scalars["day_fair_half"] == pytest.approx(0.1102)


def test_speed_is_over_the_cheapest_sampler_of_equal_skill():
    config, done = config_of("claims"), done_of()
    both = systems.compare(config, done["sample"])
    assert (both.best, both.cheapest) == ("levels_24", "levels_12")
    assert both.faster == pytest.approx(np.full(SEEDS, 12.0)) and both.is_equal
    assert "at equal skill" in systems.describe(config, done)

    def words(**changed):
        other = done | {"sample": sample_of(**changed)}
        made = systems.make_claims(config, other, paper="p", source="s",
                                   certainty="read", scale="toy", )  # fmt: skip
        return [claim["verdict"] for claim in made]

    assert words() == ["holds", "holds"]
    assert words(net=0.104) == ["holds", "fails"]  # within 5 %, but not 3 %
    assert words(net=0.107) == ["fails", "fails"]
    assert words(rate=600.0) == ["holds", "fails"]  # 7 times
    # A spread that is too small is no equal skill; a check says so, too.
    dull = done | {"sample": sample_of(ssr=0.8)}
    assert "not at equal skill" in systems.describe(config, dull)
    assert failed(dull) == {"spe"}
    told = systems.make_claims(
        config, dull, paper="p", source="s", certainty="read", scale="toy"
    )
    assert "(spread over error 0.80, the sampler's 1.00)" in told[1]["name"]

    def beside(by_run):
        by_run = np.broadcast_to(by_run, (RUNS, LEADS, 2))
        other = dict(crps=by_run.mean(axis=0), crps_by_run=by_run)
        return systems.make_claims(
            config, done | {"imperfect": done["imperfect"] | other}, paper="p",
            source="s", certainty="read", scale="toy",
        )[0]["verdict"]  # fmt: skip

    assert beside(0.25) == "fails"  # behind the simulator
    # All seeds agree, and one of the runs that they share is another one.
    odd = np.where(np.arange(RUNS) < 1, 0.4 + 0.3 * RUNS, 0.2)[:, None, None]
    assert beside(odd) == "undecided"
    one = sample_of()
    one["fair_by_run_net"][:, :8] *= 1.3
    one["fair_by_run_net"][:, 8:] *= 0.7
    words = systems.make_claims(
        config, done | {"sample": one}, paper="p", source="s", certainty="read",
        scale="toy",
    )  # fmt: skip
    assert [x["verdict"] for x in words] == 2 * ["undecided"]
    scalars = systems.summarise(config, done)
    assert scalars["simulator_crps"] == pytest.approx(0.4)
    assert scalars["imperfect_crps"] == pytest.approx(0.45)


def test_the_imperfect_simulator_has_other_equations_and_the_truths_grid():
    config = config_of("smoke")
    truth, other = training.data.system_of(config), simulator.imperfect_of(config)
    assert (other.contrast_kelvin, other.friction_days) == (54.0, 1.25)
    assert (truth.contrast_kelvin, truth.friction_days) == (60.0, 1.0)
    changed = dict(contrast_kelvin=60.0, friction_days=1.0)
    assert dataclasses.replace(other, **changed) == truth


def test_stages_have_their_own_members_noise_and_batch():
    stages = training.stages_of(config_of("paper"))
    rows = [
        (s.steps, s.loss.num_steps, s.loss.score.num_members, s.loss.score.centred,
         s.loss.score.estimator, s.batch_size, s.decay, s.halving_steps)
        for s in stages
    ]  # fmt: skip
    assert rows == [
        (208_320, 1, 16, False, "standard", 16, "constant", None),
        (5_040, 4, 2, False, "fair", 32, "halving", 840),
        (4_380, 8, 4, True, "fair", 4, "halving", 1_095),
    ]
    weights = stages[0].loss.score.channel_weights
    assert len(weights) == 72 and weights[0] == 0.05 and weights[-3] == 1.0
    claims = config_of("claims")
    days = np.random.default_rng(0).normal(size=(2, 6, 32, 64, 2))
    days[..., 1] *= np.linspace(0, 0.1, 6)[:, None, None]
    score = training.stages_of(claims, {"train": days})[1].loss.rollout.score
    assert score.num_members == 2 and score.channel_weights[1] > 0
    # What a stage leaves out is the config's.
    row = training.stage_row(claims, (300, 3e-3, "fair", 1))
    assert row[4:] == (claims.num_members, claims.centred, claims.batch_size, 0)
    with pytest.raises(ConfigError, match="may go on with"):
        experiment.validate(config_of("claims", ("stages", "((300, 3e-3, 'fair'),)")))
    with pytest.raises(ConfigError, match="begin with day 1"):
        experiment.validate(config_of("claims", ("test.lead_days", "(2, 3)")))
    with pytest.raises(ConfigError, match="must divide half of sampler.steps"):
        experiment.validate(config_of("claims", ("sampler.steps", "30")))
    with pytest.raises(ConfigError, match="different numbers"):
        experiment.validate(config_of("claims", ("sampler.num_levels", "(6, 6)")))


@pytest.mark.parametrize(
    "field, value, words",
    [
        ("stages", "()", "config.stages must hold one stage or more"),
        ("block", "-1", 'config.block must be "auto", None'),
        ("model.options.blocks", "('globl',)", "config.model.options.blocks is one of"),
        ("sampler.low", "0", "config.sampler.low must be a number above 0"),
        ("sampler.high", "0.01", "config.sampler.high must be a number above 0.02"),
        ("sampler.rho", "0", "config.sampler.rho must be a number above 0"),
        (
            "sampler.ema_decay",
            "2",
            "config.sampler.ema_decay must be .* below 1; got 2",
        ),
        ("sampler.ema_decay", "0", "config.sampler.ema_decay must be a number above 0"),
        ("sampler.learning_rate", "nan", "config.sampler.learning_rate must be"),
        ("sampler.steps", "0", "config.sampler.steps must be"),
        ("sampler.batch_size", "9", "config.sampler.batch_size must be .* at most 8"),
        ("sampler.num_levels", "()", "config.sampler.num_levels must be whole numbers"),
        (
            "sampler.num_levels",
            "(1,)",
            "config.sampler.num_levels must be whole numbers",
        ),
        ("sampler.num_members", "1", "config.sampler.num_members must be"),
        ("sampler.num_timings", "0", "config.sampler.num_timings must be"),
        ("simulator.ridge", "-1", "config.simulator.ridge must be a number above 0"),
        ("simulator.num_runs", "1", "config.simulator.num_runs must be"),
        ("simulator.num_members", "11", "simulator.num_members must be .* at most 10"),
        ("simulator.gap_days", "0", "config.simulator.gap_days must be"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_simulated(field, value, words):
    with pytest.raises(ConfigError, match=words) as error:
        experiment.validate(config_of("smoke", (field, value)))
    assert "\n" not in str(error.value)


def test_the_denoiser_learns_the_change_of_a_day_in_its_own_units():
    rng = np.random.default_rng(0)
    pairs = jnp.asarray(rng.normal(size=(3, 2, 4, 8, 2)), jnp.float32)
    loss = sampler.diffusion.DenoisingLoss(
        sampler.EDM, sampler.diffusion.LogNormalNoise()
    )
    own = sampler.ChangeLoss(loss, (0.5, 2.0))

    def model(x, noise, condition):
        return x + noise * condition

    key = jax.random.key(0)
    change = (pairs[:, 1] - pairs[:, 0]) / np.float32([0.5, 2.0]).reshape(1, 1, 1, 2)
    expected = loss(model, (change, pairs[:, 0]), key)
    np.testing.assert_allclose(own(model, pairs, key), expected, rtol=1e-6)


def waves_of(count, seed):
    """Waves of 1 level to degree 5 of which what is hidden follows from what is seen.

    Divergence is the temperature's wave turned and made longer, vorticity the
    pressure's of the next degree: in a mirror it changes its sign.
    """
    rng = np.random.default_rng(seed)
    waves = rng.normal(size=(count, 4, 11, 7))
    order = (np.arange(11) + 1) // 2
    waves *= order[:, None] <= np.arange(7)
    cosine, sine = waves[:, 2:, 1::2], waves[:, 2:, 2::2]
    made = np.zeros_like(waves[:, :2])
    made[:, 1, 0] = 2 * waves[:, 2, 0]
    made[:, 1, 1::2] = 2 * cosine[:, 0] + sine[:, 0]  # (2 + i) (a - i b)
    made[:, 1, 2::2] = 2 * sine[:, 0] - cosine[:, 0]
    made[:, 0, :, :-1] = 3 * waves[:, 3, :, 1:]
    made[:, 0] *= order[:, None] <= np.arange(7)
    return np.concatenate([made, waves[:, 2:]], axis=1)


def test_the_simulators_hidden_part_moves_with_what_is_seen():
    """Where regression is exact, a state of the climate becomes the state it is of."""
    gains = simulator.fit_gains(waves_of(300, 0), ridge=1e-9, last_degree=6)
    before, truth = waves_of(4, 1), waves_of(4, 2)
    after = before.copy()
    after[:, -2:] = truth[:, -2:]  # what is seen
    moved = simulator.move_hidden(gains, before, after)
    np.testing.assert_allclose(moved, truth, atol=1e-5)
    assert np.abs(after - truth).max() > 1
    # A climate in which nothing is told by what is seen leaves states as they are.
    rng = np.random.default_rng(3)
    chance = rng.normal(size=(3_000, 4, 11, 7))
    still = simulator.move_hidden(
        simulator.fit_gains(chance, ridge=0.1, last_degree=6), before, after
    )
    assert np.abs(still - after)[:, :-2].std() < 0.15
    np.testing.assert_allclose(
        simulator.mirrored(simulator.mirrored(before)), before, atol=0
    )


def test_days_of_the_climate_score_as_they_must():
    """White days of variance 1 against their like: a fair CRPS of 1 / sqrt(pi)."""
    config = config_of("small", ("data.num_test_runs", "1"))
    rng = np.random.default_rng(0)
    days = rng.normal(size=(2, 20, 32, 64, 2)).astype(np.float32)
    truth = rng.normal(size=(4, 3, 32, 64, 2)).astype(np.float32)
    found = simulator.climate_crps(config, {"train": days}, truth)
    assert found.shape == (3, 2)
    np.testing.assert_allclose(found, np.pi**-0.5, rtol=0.05)


def test_rounding_of_waves_that_are_filtered_away_moves_nothing():
    """A field on the grid has by rounding what the climate hardly has."""
    climate, before = waves_of(300, 0), waves_of(4, 1)
    climate[:, -2:, :, 6] *= 1e-9
    after = before.copy()
    after[:, -2:, :, 6] += 1e-6

    def moves(last_degree):
        gains = simulator.fit_gains(climate, ridge=0.1, last_degree=last_degree)
        return np.abs(simulator.move_hidden(gains, before, after) - after).max()

    assert moves(5) == 0 and moves(6) > 10


@pytest.mark.parametrize("preset", ["smoke", "small", "claims", "paper"])
def test_presets_are_valid(preset):
    config = config_of(preset)
    experiment.validate(config)
    assert config.experiment == "fourcastnet3"
    if preset == "paper":
        with pytest.raises(ConfigError, match=r"plan configs/fourcastnet3.py:paper"):
            experiment.run(config, None)


@pytest.mark.slow
def test_the_smoke_run_reports_and_splits_its_step(tmp_path, monkeypatch):
    pytest.importorskip("dinosaur")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    options = RunOptions(f"{CONFIG}:smoke", str(tmp_path / "run"))
    assert run_and_report(options) == 0
    found = json.loads((tmp_path / "run" / "results.json").read_text())
    assert len(found["claims"]) == 5 and len(found["checks"]) == 21
    made = np.load(tmp_path / "run" / "stages" / "sample.npz")
    assert made["calls_levels_2"] == 3 and np.isfinite(made["fair_half"]).all()
    assert made["fair_by_run_half"].shape == (1, 1)
    assert np.isfinite(made["fair_net"]).all()
    ensemble, imperfect = (
        np.load(tmp_path / "run" / "stages" / f"{name}.npz")
        for name in ("ensemble", "imperfect")
    )
    assert np.isfinite(ensemble["crps"]).all() and ensemble["rate"] > 0
    assert np.isfinite(imperfect["crps"]).all()
    assert (imperfect["crps"] != ensemble["crps"]).any()
    split = [c for c in found["checks"] if "devices" in c["name"]]
    assert len(split) == 3 and all(c["pass"] for c in split)
    size = np.load(tmp_path / "run" / "stages" / "size.npz")
    assert size["split_devices"].tolist() == [1, 2, 4]
    assert (size["split_exchanged_bytes"][1:] > 0).all()
