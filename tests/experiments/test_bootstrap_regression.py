"""The experiment of bootstrap ensembles: who trains on what, its numbers, its runs."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from scipy.stats import kendalltau

import ensjax
from ensjax.cli import main
from ensjax.experiment import ConfigError, load_config
from ensjax.experiment.configs import load_module
from ensjax.experiment.runner import RunOptions, run_and_report

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs" / "bootstrap_regression.py")
experiment = load_module(ROOT / "experiments" / "bootstrap_regression.py", "experiment")
rows, training, nested = experiment.rows, experiment.training, experiment.nested
measures, verdicts = experiment.measures, experiment.verdicts


def config_of(*overrides, preset="smoke"):
    return load_config(f"{CONFIG}:{preset}", overrides)[1]


@pytest.fixture(scope="module")
def case():
    config = config_of()
    table = rows.load_table(config, "diabetes")
    return config, table, rows.list_jobs(config, table, is_first=True)


@pytest.mark.slow
def test_no_member_sees_a_test_row_and_every_id_is_its_own(case):
    config, table, jobs = case
    jobs = jobs + nested.list_jobs(config, table)
    weights = training.member_weights(config, table, jobs)
    ids = np.concatenate([job.member_ids for job in jobs])
    assert len(set(ids.tolist())) == len(ids) == len(weights)
    start = 0
    for job in jobs:
        own = weights[start : start + job.num_members]
        start += job.num_members
        _, test = rows.split_rows(config, table, job.seed)
        if job.name == "shift":
            parts = rows.shift_rows(config, table, job.seed)
            test = np.concatenate([parts["inside"], parts["shifted"]])
        assert (own[:, test] == 0).all()
        assert (own.sum(axis=1) == len(job.train_rows)).all()
        outside = np.setdiff1d(np.arange(len(table.y)), job.train_rows)
        assert (own[:, outside] == 0).all()
        is_plain = (own[:, job.train_rows] == 1).all()
        assert is_plain == (job.name == "plain")
    assert {job.name for job in jobs} >= {
        "main",
        "plain",
        "shift",
        "thinned",
        "size-50",
    }


def test_statistics_are_those_of_the_training_rows_and_hide_features(case):
    config, table, jobs = case
    job = nested.list_jobs(config_of(("nested.feature_shares", "(0.5,)")), table)[0]
    assert job.features.sum() == 5
    found = training.member_statistics(table, [jobs[0], job])
    last = {name: values[-1] for name, values in found.items()}
    x, y = table.x[job.train_rows], table.y[job.train_rows]
    np.testing.assert_allclose(last["center"], x.mean(axis=0), rtol=1e-5)
    expected = np.where(job.features, 1 / x.astype(float).std(axis=0), 0)
    np.testing.assert_allclose(last["inverse_scale"], expected, rtol=1e-5)
    np.testing.assert_allclose(last["target_scale"], y.std(), rtol=1e-5)


def test_the_thinned_target_keeps_a_tenth_of_its_end(case):
    config, table, _ = case
    train, _ = rows.split_rows(config, table, 0)
    kept = rows.thinned_rows(config, table, 0)
    border = np.quantile(table.y[train], 0.8)
    assert set(kept) <= set(train)
    is_tail = table.y[train] > border
    assert abs((table.y[kept] > border).sum() - 0.1 * is_tail.sum()) <= 1
    parts = rows.shift_rows(config, table, 0)
    feature = table.x[:, config.shift.feature]
    home = np.concatenate([parts["train"], parts["inside"]])
    assert feature[parts["shifted"]].min() >= feature[home].max()
    assert len(set(parts["train"]) & set(parts["inside"])) == 0


def test_features_come_by_relevance_but_not_twice():
    rng = np.random.default_rng(0)
    a, b, noise = rng.normal(size=(3, 300))
    x = np.stack([noise, a, a + 0.01 * noise, b], axis=1)
    order = nested.rank_features(x, 2 * a + b)
    assert order[0] in (1, 2) and order[1] == 3
    assert sorted(order.tolist()) == [0, 1, 2, 3]


def test_sigma_scales_equal_a_loop_over_out_of_bag_rows(case):
    config, table, _ = case
    rng = np.random.default_rng(0)
    train = np.arange(20)
    job = rows.Job("main", 0, 0, train, 6, True, 0.1, 0.0)
    points = rng.normal(table.y, 3, size=(6, len(table.y))).astype(np.float32)
    weights = np.zeros(points.shape, np.float32)
    weights[:, train] = rng.integers(0, 2, (6, 20))
    weights[:, 0], weights[:5, 1] = 1, 1  # nobody, and one member, left these out
    found = measures.fit_sigma_scales(config, table, [job], [points], [weights])
    ratios = []
    for row in train:
        own = points[weights[:, row] == 0, row].astype(float)
        if len(own) > 1:
            ratios.append((table.y[row] - own.mean()) ** 2 / own.var())
    assert len(ratios) <= 18
    np.testing.assert_allclose(found, [np.sqrt(np.mean(ratios))], rtol=1e-3)


def test_rankings_equal_scipy_and_count_the_pairs_that_disagree():
    targets = np.array([[0.0, 1, 2, 3, 4]])
    models = {
        "close": targets + np.array([0.1, -0.1, 0.1, -0.1, 3.0]),
        "even": targets + 0.8,
        "turned": -targets,
    }
    models = {k: v.astype(np.float32) for k, v in models.items()}
    found = measures.measure_rankings(models, targets.astype(np.float32))
    names = list(measures.METRICS)
    values = found["values"][..., 0]
    assert values[names.index("mae")].argmin() == 0
    assert values[names.index("max_error")].argmin() == 1
    mae, worst = values[names.index("mae")], values[names.index("max_error")]
    expected = kendalltau(mae, worst).statistic
    tau = found["tau"][0, names.index("mae"), names.index("max_error")]
    assert tau == pytest.approx(expected)
    best = [
        v.argmax() if n == "spearman" else v.argmin() for n, v in zip(names, values)
    ]
    pairs = [best[i] != best[j] for i in range(5) for j in range(i)]
    assert found["disagreeing"][0] == sum(pairs) > 0


@pytest.mark.parametrize(
    "overrides, message",
    [
        ([("sets", "('moons',)")], "config.folder must hold moons.csv"),
        ([("ddof", "2")], "config.ddof is 0 or 1"),
        ([("save_every_steps", "15")], "save_every_steps=15 must be a multiple"),
        ([("num_side_members", "9")], "num_side_members must be at most"),
        ([("shift.feature", "10")], "shift.feature is below 10"),
        ([("nested.num_folds", "20")], "ids leave room for"),
        ([("test_share", "1.0")], "config.test_share must be a number above 0"),
        ([("rows_per_step", "500")], "at most the 442 rows of diabetes"),
    ],
)
def test_mistakes_are_found_before_the_run(overrides, message):
    with pytest.raises(ConfigError, match=message):
        experiment.validate(config_of(*overrides))


def test_the_full_size_needs_its_tables_and_reads_them(tmp_path):
    with pytest.raises(ConfigError, match="matbench_steels.csv"):
        experiment.validate(config_of(preset="paper"))
    table = np.random.default_rng(0).normal(size=(60, 4))
    path = tmp_path / "matbench_steels.csv"
    np.savetxt(path, table, delimiter=",", header="a,b,c,target")
    config = config_of(
        ("folder", str(tmp_path)),
        ("sets", "('matbench_steels',)"),
        ("rows_per_step", "32"),
        preset="paper",
    )
    experiment.validate(config)
    found = rows.load_table(config, "matbench_steels")
    np.testing.assert_allclose(found.x, table[:, :3], rtol=1e-6)
    np.testing.assert_allclose(found.y, table[:, 3], rtol=1e-6)
    path.write_text("a,b\n1,nan\n")
    with pytest.raises(ConfigError, match="no missing value"):
        rows.load_table(config, "matbench_steels")


@pytest.mark.slow
def test_the_stack_equals_its_members_trained_one_by_one(case):
    config, table, jobs = case
    config = config_of(("block", "3"))
    jobs = [job for job in jobs if job.seed == 0 and job.name in ("main", "size-50")]
    mesh = ensjax.make_mesh(member=1, data=1, devices=jax.devices()[:1])
    job = training.make_job(config, table, jobs)

    def fit(job, block):
        job = dataclasses.replace(job, options=job.options | dict(block=block))
        found, _ = job.fit(mesh, progress=False)
        return np.asarray(found(table.x))

    together = fit(job, 3)
    assert (together.std(axis=0) > 1).any()
    for place, member_id in enumerate(job.member_ids):
        alone = fit(job.select([member_id]), 1)
        # In units of the target's spread, which the network predicts in.
        np.testing.assert_allclose(
            together[place] / table.y.std(), alone[0] / table.y.std(), atol=1e-5
        )


def test_the_job_of_some_members_keeps_their_rows_and_statistics(case):
    config, table, jobs = case
    jobs = [job for job in jobs if job.name in ("plain", "shift")]
    job = training.make_job(config, table, jobs)
    assert len(set(job.member_ids)) == len(job.member_ids)
    chosen = [job.member_ids[-1], job.member_ids[3]]
    own = job.select(chosen)
    assert own.member_ids == tuple(chosen)
    weights = job.options["loss_weights"]
    np.testing.assert_array_equal(own.options["loss_weights"], weights[[-1, 3]])
    for name, values in job.statistics.items():
        np.testing.assert_array_equal(own.statistics[name], values[[-1, 3]])
    assert own.hyper["learning_rate"].shape == (2,)


def test_claims_count_all_seeds_of_the_same_rows(case):
    config, table, _ = case
    found = rows.split_sizes(config, table)
    assert found == {"main": (312, 130), "shift": (250, 104)}


@pytest.mark.parametrize(
    "curve, coverage, seeds, verdict",
    [
        ("holds", 0.95, 6, "holds"),
        ("holds", 0.8, 6, "fails"),
        ("fails", 0.95, 6, "fails"),
        ("undecided", 0.95, 6, "undecided"),
        ("undecided", 0.8, 6, "fails"),
        ("holds", 0.95, 3, "undecided"),
    ],
)
def test_the_claim_on_uncertainty_needs_the_curve_and_the_coverage(
    curve, coverage, seeds, verdict
):
    values = coverage + np.linspace(-0.01, 0.01, seeds)
    entry = {"verdict": curve, "seeds": seeds, "measured": 0.7}
    found = verdicts.and_covered(entry, values, (312, 130))
    assert found["verdict"] == verdict and found["measured"] == 0.7
    low, high = found["coverage_interval"]
    assert low < coverage < high


@pytest.mark.slow
def test_all_members_of_a_set_can_be_planned(capfd):
    assert main(["plan", f"{CONFIG}:smoke"]) == 0
    job = experiment.training_job(config_of())
    assert f"{len(job.member_ids):,}" in capfd.readouterr().out


@pytest.mark.slow
def test_the_smoke_preset_runs_and_runs_again_from_its_stages(tmp_path):
    options = RunOptions(f"{CONFIG}:smoke", workdir=str(tmp_path))
    assert run_and_report(options) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    letters = {claim["name"].split(":")[0].split(",")[0] for claim in results["claims"]}
    assert letters == {f"modnet-bootstrap.{letter}" for letter in "abcde"}
    checks = {check["name"]: check for check in results["checks"]}
    (identity,) = (c for name, c in checks.items() if "ambiguity" in name)
    assert identity["pass"] and checks["members not finite"]["pass"]
    assert len(list((tmp_path / "figures").glob("*.png"))) == 7
    # What was stored gives the same numbers, without training again.
    (tmp_path / "results.json").unlink()
    assert run_and_report(options) == 0
    again = json.loads((tmp_path / "results.json").read_text())
    assert again["scalars"] == results["scalars"]
