"""The experiment on permutations: mistakes, what it finds, its plan, its smoke run."""

import json
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from ensjax import ntk
from ensjax.experiment import ConfigError, load_config
from ensjax.experiment.configs import load_module
from ensjax.experiment.runner import RunOptions, run_and_report
from ensjax.ntk import two_layer
from ensjax.planning import MappedJob, plan

ROOT = Path(__file__).parents[2]
experiment = load_module(ROOT / "experiments" / "ntk_permutations.py", "experiment")
theory, verdicts = experiment.theory, experiment.verdicts


def config_of(*overrides, preset="smoke"):
    return load_config(f"{ROOT}/configs/ntk_permutations.py:{preset}", overrides)[1]


def test_closed_forms_are_kernel_algebra_and_m_2_is_the_hardest_input():
    found = theory.measure(config_of(("growth.large_bits", "(10, 20, 30)")))
    assert found["form_errors"].max() < 1e-8
    assert found["least_one"].min() > 0 > found["largest_zero"].max()
    assert (found["hardest"] == 2).all()
    # Bounds are above what they bound, and the textbook's above the sum of errors.
    assert (found["cube_bound"] <= found["cube_textbook"] * (1 + 1e-9)).all()
    assert (found["one_textbook"] < found["cube_textbook"]).all()
    shared = np.isin(found["bound_bits"], config_of().growth.num_bits)
    one = found["one"][:, 0]
    assert (one < found["cube_bound"][:, shared]).all()


def test_slopes_of_one_input_are_those_of_the_card():
    config = config_of()
    found = theory.measure(config)
    sizes = config.growth.num_bits
    for i, slope in enumerate((0.74, 1.09)):
        fit = ntk.fit_power_law(sizes, found["one"][i, 0])
        assert fit.slope == pytest.approx(slope, abs=0.01)
    sizes = config.growth.large_bits
    for i, slope in enumerate((1.05, 1.14)):
        fit = ntk.fit_power_law(sizes, found["one_large"][i, 0])
        assert fit.slope == pytest.approx(slope, abs=0.03)


def test_the_mean_of_the_infinite_ensemble_computes_other_tasks():
    found = theory.measure_tasks(config_of())
    assert (found["right"] == 1).all()
    assert (found["members"] > 1).all() and np.isfinite(found["members"]).all()
    assert found["operands"].tolist() == [63, 64, 16]


def test_means_of_pairs_are_one_row_of_the_cube():
    inputs = experiment.draws.pairs(6)
    assert inputs.shape == (15, 6) and (inputs.sum(axis=1) == 2).all()
    assert len(np.unique(inputs, axis=0)) == 15
    law = two_layer.ntk_law(6, 2)
    weights = theory.cube_weights("ntk", inputs)
    assert np.unique(weights.round(12)).tolist() == sorted(
        [round(float(law.on_zero), 12), round(float(law.on_one), 12)]
    )


@pytest.mark.parametrize(
    "overrides, message",
    [
        ([("kinds", "('ntk', 'lazy')")], "different ones of ntk, readout"),
        ([("delta", "1.0")], "config.delta must be a number above 0 and below 1"),
        ([("cube.num_bits", "(4, 40, 50)")], "at least 2 and at most 24"),
        ([("cube.num_bits", "(7, 8, 9)")], "some up to config.cube.fitted_up_to=6"),
        ([("networks.rate_fraction", "1.2")], "at most 1"),
        ([("networks.num_members", "1")], "at least 2"),
        ([("widths.parameterisations", "('ntk', 'lazy')")], "of ntk, readout, stand"),
        ([("widths.num_drift_members", "0")], "widths.num_drift_members must be"),
        ([("widths.matrix_members", "1")], "widths.matrix_members must be"),
        ([("widths.matrix_width", "0")], "widths.matrix_width must be"),
        ([("tasks.addition_bits", "0")], "tasks.addition_bits must be a number at"),
        ([("tasks.multiplication_bits", "9")], "at most 8"),
        ([("tasks.num_padding", "-1")], "tasks.num_padding must be"),
        ([("networks.ones", "(0, 2)")], "networks.ones must be numbers at least 1"),
        ([("networks.ones", "(9,)")], "number of ones that inputs of every k"),
        ([("networks.block", "none")], "networks.block is"),
        ([("networks.num_inputs", "0")], "networks.num_inputs must be"),
    ],
)
def test_mistakes_are_found_before_the_run(overrides, message):
    with pytest.raises(ConfigError, match=message):
        experiment.validate(config_of(*overrides))


def test_the_plan_of_the_published_size_is_of_whole_blocks():
    config = config_of(preset="paper")
    experiment.validate(config)
    job = experiment.mapped_job(config)
    # As many as the published runs may take, of each of five permutations.
    assert (config.num_seeds, config.networks.num_members) == (5, 5_000)
    assert (job.num_members, job.fn.width, job.steps) == (25_000, 50_000, 52)
    assert [x.shape for x in jax.tree.leaves(job.params)] == [(30, 50_000)] + [
        (50_000, 30)
    ]
    assert 25_000 % (8 * job.block) == 0  # no row is padding on 8 devices


def test_what_is_planned_is_what_the_stage_runs(monkeypatch):
    """The program of the stage, as it is called, against the plan of the config."""
    config = config_of(("networks.num_members", "3"), ("kinds", "('ntk',)"))
    ran, compile_job = [], MappedJob.compile

    class Watched:
        def __init__(self, program):
            self.program = program

        def __call__(self, *arguments):
            ran.append(self.program)
            return self.program(*arguments)

        def memory_analysis(self):
            return self.program.memory_analysis()

    monkeypatch.setattr(
        MappedJob, "compile", lambda job, mesh: Watched(compile_job(job, mesh))
    )
    logs = SimpleNamespace(logger=lambda phase: SimpleNamespace(write=lambda *a: None))
    found = experiment.networks.stage(config, logs, 6)({})
    assert found["mean"].shape == (1, 2, 3, 2)
    (program,) = ran
    job = experiment.mapped_job(config)
    planned = plan(job, mesh=job.mesh(), costs=False)
    stats = program.memory_analysis()
    taken = (
        stats.argument_size_in_bytes
        + stats.output_size_in_bytes
        + stats.temp_size_in_bytes
        - stats.alias_size_in_bytes
    )
    assert planned.peak_bytes == pytest.approx(taken, rel=0.05)
    assert planned.member.parameters == 2 * 6 * config.networks.width
    assert program.as_text() == job.compile(job.mesh()).program.as_text()


@pytest.mark.parametrize("sizes, steps", [("(6,)", 0), ("(5, 6)", 2)])
def test_one_curve_has_no_step_to_be_checked(sizes, steps):
    config = config_of(("curve.num_bits", sizes))
    shape = (2, 2, 3, len(config.curve.num_bits))
    found = {"curve": {"first": np.arange(np.prod(shape)).reshape(shape) + 1.0}}
    checks = experiment.bounds._curve_checks(config, found)
    named = [entry["pass"] for entry in checks if "increases in k" in entry["name"]]
    assert named == [True] * steps


@pytest.mark.slow
def test_the_smoke_preset_runs_and_runs_again_from_its_stages(tmp_path):
    spec = f"{ROOT}/configs/ntk_permutations.py:smoke"
    options = RunOptions(spec, workdir=str(tmp_path))
    assert run_and_report(options) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    named = {entry["name"].split(":")[0].split(",")[0] for entry in results["claims"]}
    assert named == {f"permutation-ntk.{letter}" for letter in "abde"}
    checks = {entry["name"]: entry["pass"] for entry in results["checks"]}
    measured = ("per_second", "_mib", "seconds")  # no function of the config
    assert not [name for name in results["scalars"] if name.endswith(measured)]
    contents = json.loads((tmp_path / "report.json").read_text())
    (speed,) = (t for t in contents["tables"] if t["name"] == "speed")
    assert len(speed["rows"]) == 3 and min(row[3] for row in speed["rows"]) > 0
    logged = (tmp_path / "metrics.jsonl").read_text()
    assert logged.count("members_per_second") == 3
    for label, passed in checks.items():
        if label.startswith(("A:", "E:", "other tasks", "stream: variance")):
            assert passed, label
    assert len(list((tmp_path / "figures").glob("*.png"))) == 6
    (tmp_path / "results.json").unlink()
    assert run_and_report(options) == 0
    again = json.loads((tmp_path / "results.json").read_text())
    assert again["scalars"] == results["scalars"]
