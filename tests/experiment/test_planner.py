"""`ensjax plan`, as a user types it."""

import dataclasses
import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from ensjax import cli, make_mesh
from ensjax.experiment import ConfigError, load_config, planner, stand_ins
from ensjax.experiment.configs import find_experiment, load_module
from ensjax.experiment.overrides import split_overrides
from ensjax.experiment.plan_fields import batch_size_of, find_fields
from ensjax.experiment.plan_options import parse_memory, parse_mesh
from ensjax.experiment.plan_tables import show_bytes, show_seconds
from ensjax.planning import MappedJob, Plan, Settings
from ensjax.planning.plan import _arrays, _member_sizes, describe
from ensjax.planning.step_cost import members_of_a_block
from ensjax.train import TrainingJob

ROOT = Path(__file__).parents[2]
TOY = str(ROOT / "tests/experiment/toy/configs/toy.py")
DIGITS = "deep_ensemble_digits:smoke"
TINY = ("--config.num_members=4", "--config.num_seeds=1", "--config.batch_size=16")


def run(*arguments):
    try:
        return cli.main(["plan", *arguments])
    except SystemExit as end:
        return end.code


def test_a_plan_is_printed_and_written(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    file = tmp_path / "plan.json"
    arguments = (DIGITS, *TINY, "--mesh", "member=2,data=2", "--memory", "1GiB")
    assert run(*arguments, "--json", str(file)) == 0
    printed = capsys.readouterr()
    assert max(map(len, printed.out.splitlines())) <= 80
    report = json.loads(file.read_text())
    planned = Plan.from_json(report["plan"])
    for text in (
        "4 members on 4 x cpu (member=2, data=2, model=1)",
        show_bytes(planned.peak_bytes),
        "Collectives of one step",
        "all-reduce",
        "40 in 2 calls of 20",
        "Measured on 4 x cpu",
        "It fits as it is.",
    ):
        assert text in printed.out
    assert "compiling the program of training" in printed.err
    assert not report["structure_only"] and report["topology"] is None


def test_a_mesh_beyond_all_stand_ins_is_planned_with_fewer_members():
    """As many members on a device: 29 checkpoints on 29 x 64 x 4 devices."""
    wanted = {"member": 29, "data": 64, "model": 4}
    planned = stand_ins.sizes_to_stand_in(wanted)
    assert planned == {"member": 8, "data": 64, "model": 4}
    job = TrainingJob(
        make_model=None, member_ids=tuple(range(58)), init_seed=0, data=np.zeros(4),
        hyper={"rate": np.arange(58), "decay": 0.1}, mesh_sizes=wanted,
        options={"weights": np.ones((58, 4))},
    )  # fmt: skip
    made, words = stand_ins.fewer_members(job, wanted, planned)
    assert made.member_ids == tuple(range(16)) and made.mesh_sizes == planned
    assert made.hyper["decay"] == 0.1
    np.testing.assert_array_equal(made.hyper["rate"], np.arange(16))
    assert made.options["weights"].shape == (16, 4)
    assert "16 of 58 members on 8 of 29 devices" in words
    assert stand_ins.fewer_members(job, planned, planned) == (job, "")
    with pytest.raises(ConfigError, match="at most 2,048 devices; data x model"):
        stand_ins.sizes_to_stand_in({"member": 1, "data": 1024, "model": 4})
    with pytest.raises(ConfigError, match="not one stack"):
        stand_ins.fewer_members(object(), wanted, planned)


@pytest.mark.slow
def test_a_program_that_is_no_fit_is_planned_and_its_block_is_what_can_change(capsys):
    spec = ("ntk_permutations:smoke", "--mesh", "member=2")
    tiny = ("--config.networks.num_members=4", "--config.networks.block=all")
    assert run(*spec, *tiny, "--memory", "100KiB") == 2
    assert "nothing that was tried fits 100KiB" in capsys.readouterr().err
    assert run(*spec, *tiny, "--memory", "400KiB") == 0
    printed = capsys.readouterr().out
    assert "8 members on 2 x cpu" in printed and "in one call" in printed
    assert "--config.networks.block=" in printed
    assert run(*spec, "--trial") == 2
    assert "--tune and --trial need" in capsys.readouterr().err.splitlines()[-1]


def test_what_no_field_sets_is_told_before_anything_is_compiled(capsys):
    assert run("hybrid_voting:smoke", "--tune") == 2
    error = capsys.readouterr().err
    assert "no field that sets block, unroll or conv_form" in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_a_memory_is_looked_for_with_the_fields_that_there_are(capsys):
    tiny = ("hybrid_voting:smoke", "--no-trial", "--mesh", "member=1")
    assert run(*tiny, "--memory", "100KiB") == 2
    printed = capsys.readouterr()
    assert "no field that sets block of what is planned" in printed.out
    last = printed.err.splitlines()[-1]
    assert "nothing that was tried fits 100KiB" in last and "sets block" in last
    assert run(*tiny, "--memory", "1GiB") == 0
    assert "It fits as it is." in capsys.readouterr().out


@pytest.mark.slow
def test_a_group_is_planned_stack_by_stack(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    file = tmp_path / "plan.json"
    spec = ("window_cascade:smoke", "--mesh", "member=1", "--no-trial")
    assert run(*spec, "--json", str(file), "--memory", "1GiB") == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    assert "Stacks, in one program" in printed
    found = Plan.from_json(json.loads(file.read_text())["plan"])
    assert [stack.num_members for stack in found.stacks] == [4, 4]


def specs_of_jobs():
    """Every config and preset that may have a job of `fit`."""
    quick = ("bang", "hybrid_voting", "merge_domains", "seeds")
    for file in sorted((ROOT / "configs").glob("*.py")):
        for preset in ("smoke", "paper"):
            is_quick = file.stem in quick and preset == "smoke"
            marks = () if is_quick else pytest.mark.slow
            yield pytest.param(
                f"{file}:{preset}", id=f"{file.stem}-{preset}", marks=marks
            )


@pytest.mark.parametrize("spec", list(specs_of_jobs()))
def test_what_pins_a_choice_is_what_run_takes(spec):
    """Of all fields that a plan finds, the line makes the job that was looked at."""
    mesh = make_mesh(member=1)

    def job_of(lines=()):
        source, config = load_config(spec, split_overrides(lines)[1])
        path = find_experiment(source, config)
        experiment = planner._load_experiment(config, path, mesh)
        return config, experiment, planner._make_job(experiment, config)

    try:
        config, experiment, job = job_of()
    except ConfigError as error:
        pytest.skip(str(error))
    if isinstance(job, MappedJob):
        pytest.skip("what it has is one program with a field for its block")

    def make_job(changed):
        planner._validate(experiment, changed, mesh)
        return planner._make_job(experiment, changed)

    fields = find_fields(config, job, make_job)
    rows, batch = planner._local_members(job, mesh), batch_size_of(job)
    old = Settings(job.options.get("block", "auto"), None, batch)
    blocks = (None, "auto", 1, 2) if fields.block else ()
    sizes = (batch // 2,) if fields.batch_size and batch % 2 == 0 else ()
    changes = [dict(block=b) for b in blocks] + [dict(batch_size=b) for b in sizes]
    for change in changes:
        if change == {"block": "auto"} and "auto" not in fields.words:
            continue  # a number stands for it
        pins = planner._pin_of_settings(
            fields, old, dataclasses.replace(old, **change), rows
        )
        _, _, found = job_of([f"--config.{name}={text}" for name, text in pins])
        if "batch_size" in change:
            assert batch_size_of(found) == change["batch_size"]
            continue
        wanted = change["block"]
        if wanted is None and "all" not in fields.words:
            wanted = rows
        assert found.options.get("block", "auto") == wanted


# Parameters of a network, and bytes of one batch: float32 windows of the first stage.
PUBLISHED = {
    "forecast_assessment": (2_227_291_174, 32 * 9 * 721 * 1440 * 74 * 4),
    "crps_forecast": (228_617_616, 16 * 2 * 180 * 224 * 100 * 4),
    "fuxi_ens": (2_116_267_392, 3 * 720 * 1440 * 78 * 4),
    "spherical_noise": (709_930_667, 16 * 2 * 721 * 1440 * 72 * 4),
    "fourcastnet3": (709_930_667, 16 * 2 * 721 * 1440 * 72 * 4),
    "huge_ensembles": (2_227_291_174, 64 * 2 * 721 * 1440 * 74 * 4),
    "huge_ensembles_7424": (2_227_291_174, 64 * 2 * 721 * 1440 * 74 * 4),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_of_emulators_are_traced_with_a_batch_at_a_time(name):
    """What a device would hold, from the program of all its steps; none is compiled."""
    mesh = make_mesh(member=1, devices=jax.devices()[:1])
    source, config = load_config(f"{ROOT}/configs/{name}.py:paper")
    path = find_experiment(source, config)
    experiment = planner._load_experiment(config, path, mesh)
    job = planner._make_job(experiment, config).select([0])
    described = describe(job, mesh)
    (size,) = _member_sizes(described)
    arrays = _arrays(described, job.abstract_ensemble(mesh))
    parameters, batch = PUBLISHED[name]
    assert size.parameters == pytest.approx(parameters, rel=2e-3)
    # Weights and two moments of Adam; counts and keys beside them are small.
    assert arrays["training state"] == pytest.approx(12 * parameters, rel=2e-3)
    assert arrays["data"] == batch
    assert members_of_a_block(described) == 1  # traces it


@pytest.mark.slow
def test_more_devices_than_there_are_stand_in(tmp_path, capfd):
    file = tmp_path / "plan.json"
    arguments = (DIGITS, *TINY, "--config.num_members=16", "--devices", "16")
    assert run(*arguments, "--json", str(file)) == 0
    report = json.loads(file.read_text())
    assert report["structure_only"]
    assert report["plan"]["mesh"] == {"member": 16, "data": 1, "model": 1}
    assert report["plan"]["step"]["collectives"] == []
    assert report["plan"]["trial"] is None
    printed = capfd.readouterr()
    assert "structure only" in printed.out and "are stand-ins" in printed.out


@pytest.mark.slow
def test_mistakes_of_a_plan_with_stand_ins_are_one_line(capfd):
    assert run(DIGITS, "--mesh", "member=16", "--config.batch_size=0") == 2
    assert capfd.readouterr().err.count("\n") == 1
    assert run(DIGITS, "--mesh", "member=8,data=3") == 2
    assert "must divide over data=3" in capfd.readouterr().err.splitlines()[-1]


@pytest.mark.slow
def test_what_does_not_fit_ends_in_one_line_and_what_is_tuned_is_pinned(capsys):
    quick = ("--config.data.num_calibration=0", "--no-trial")
    arguments = (DIGITS, *TINY, "--mesh", "member=1", *quick)
    assert run(*arguments, "--memory", "100KiB") == 2
    printed = capsys.readouterr()
    assert "nothing that was tried fits 100KiB" in printed.err.splitlines()[-1]
    assert "What fits 100.00 KiB" in printed.out
    assert run(*arguments, "--tune") == 0
    printed = capsys.readouterr()
    assert "--config.block=" in printed.out and "auto (here 4)" in printed.out


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["nope"], "no config named 'nope'"),
        ([DIGITS, "--config.nope=1"], "unknown config key 'nope'"),
        ([DIGITS, "--config.num_members=0"], "config.num_members must be at least 1"),
        ([DIGITS, "--config.model.name=mlb"], "config.model.name is one of"),
        ([DIGITS, "--memory", "16 bananas"], "--memory is a number with a unit"),
        ([DIGITS, "--mesh", "members=2"], "--mesh is sizes of the axes"),
        ([DIGITS, "--mesh", "model=2"], "fit does not split one member"),
        ([DIGITS, "--mesh", "member=-1,data=3"], "cannot be split into a mesh"),
        ([DIGITS, "--devices", "0"], "--devices must be at least 1"),
        ([DIGITS, "--devices", "64", "--tune"], "of which there are 8; 64"),
        ([DIGITS, "--topology", "v5e:8x8", "--tune"], "--tune runs on real devices"),
        ([TOY], "defines no training_job(config)"),
    ],
)
def test_a_mistake_is_one_line(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert words in printed.err and list(tmp_path.iterdir()) == []


def test_a_topology_without_libtpu_names_the_extra(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    assert run(DIGITS, "--topology", "v5e:8x8") == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1 and "ensjax[tpu-plan]" in printed.err


def test_sizes_on_the_command_line():
    assert parse_memory("16GiB") == 16 * 2**30
    assert parse_memory("80 gb") == 80 * 10**9
    assert parse_memory("1.5MiB") == 1.5 * 2**20
    assert parse_mesh("member=32,data=2") == {"member": 32, "data": 2, "model": 1}
    for text in ("", "GiB", "-1GiB", "0GiB"):
        with pytest.raises(ConfigError):
            parse_memory(text)
    for text in ("", "member", "member=0", "data=2,data=2"):
        with pytest.raises(ConfigError):
            parse_mesh(text)


def test_sizes_and_times_are_shown_in_their_unit():
    assert show_bytes(0) == "0 B" and show_bytes(1536) == "1.50 KiB"
    assert show_bytes(2**44) == "16.00 TiB"
    shown = [show_seconds(s) for s in (2e-6, 0.0123, 12, 600, 7500, 400_000)]
    assert shown == ["2 us", "12.3 ms", "12.0 s", "10 min", "2 h 05 min", "4 d 15 h"]


def test_data_that_are_not_at_hand_stay_shapes(monkeypatch):
    """Nothing is downloaded to plan the published size."""

    def refuse(*args, **kwargs):
        raise AssertionError("a plan must not download")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    module = load_module(ROOT / "experiments/deep_ensemble.py", "experiment")
    overrides = [("model.options.depth", "10"), ("model.options.width", "1")]
    overrides += [("data.num_calibration", "5000"), ("num_members", "2")]
    config = load_config("deep_ensemble:paper", overrides)[1]
    job = module.training_job(config, shapes_only=True)
    assert job.data[0].shape == (45_000, 32, 32, 3)
    assert job.options["evaluation"][1].shape == (5_000,)
    assert all(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(job.data))
    with pytest.raises(ValueError, match="only the shapes"):
        job.fit()
    # Data of a package are read, so that a trial can use them.
    local = module.training_job(load_config(DIGITS)[1], shapes_only=True)
    assert isinstance(local.data[0], np.ndarray)
    with pytest.raises(ConfigError, match="batch_size must be at most the 45,000"):
        config.batch_size = 50_000
        module.training_job(config, shapes_only=True)
