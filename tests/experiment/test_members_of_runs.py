"""Runs that are given other members; members made again, and written alone."""

import json
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath
from flax import nnx

import ensjax
from ensjax import cli
from ensjax.experiment.configs import load_module
from ensjax.experiment.json_files import read_json
from ensjax.experiment.loggers import read_metrics
from ensjax.experiment.past_run import PastRun
from ensjax.experiment.runner import RunOptions, run_and_report
from ensjax.train.stored import read_member


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Runs lie here; the experiment is found beside its config; JAX has started."""
    monkeypatch.chdir(tmp_path)
    source = Path(__file__).parent / "trained"
    for name in ("configs", "experiments"):
        (tmp_path / name).symlink_to(source / name)
    monkeypatch.setattr("ensjax.experiment.replay.set_devices_of", lambda run: None)
    return tmp_path


def run(workdir, *overrides, **options):
    pairs = [tuple(text.split("=", 1)) for text in overrides]
    mesh = [("mesh.member", "2")]
    options = RunOptions(
        "configs/trained.py:smoke", workdir=workdir, overrides=mesh + pairs, **options
    )
    return run_and_report(options)


def scalars(workdir):
    return read_json(Path(workdir) / "results.json")["scalars"]


@pytest.mark.slow
def test_a_finished_run_is_given_more_members_and_fewer(capsys):
    assert run("whole", "num_members=7") == 0
    expected = scalars("whole")
    assert run("w") == 0
    four = scalars("w")
    assert four == {name: expected[name] for name in four}
    assert run("w", "num_members=7") == 0
    assert scalars("w") == expected
    out = capsys.readouterr().out
    assert "resuming w with other members" in out
    assert "3 members catch up from step 0 to 20 (4, 5, 6)" in out
    # What was finished is still there, and the config is the new one.
    assert read_json(Path("w/previous/1/results.json"))["scalars"] == four
    assert Path("w/previous/1/report.html").is_file()
    assert read_json(Path("w/previous/1/config.json"))["num_members"] == 4
    assert read_json(Path("w/config.json"))["num_members"] == 7
    # The lines of those that caught up have a phase of their own.
    phases = {line.get("phase") for line in read_metrics(Path("w/metrics.jsonl"))}
    assert phases == {None, "joining-4-6"}
    # The same command has nothing to do; on another mesh neither.
    assert run("w", "num_members=7") == 0
    assert run("w", "num_members=7", "mesh.member=4") == 0
    assert capsys.readouterr().out.count("Nothing to do") == 2
    assert cli._members("0, 3,5") == [("members", "(0,3,5,)"), ("num_members", "3")]
    assert run("w", "members=(0,3,5)", "num_members=3") == 0
    chosen = [expected[f"loss_{i}"] for i in (0, 3, 5)]
    assert list(scalars("w").values()) == chosen
    assert sorted(p.name for p in Path("w/previous").iterdir()) == ["1", "2"]


@pytest.mark.slow
def test_an_ensemble_is_trained_in_parts_and_put_together():
    assert run("whole", "num_members=5") == 0
    assert run("a", "num_members=3") == 0
    assert run("b", "members=(3,4)", "num_members=2") == 0
    assert run("a", "num_members=5", members_from=["b"]) == 0
    assert scalars("a") == scalars("whole")
    assert not list(Path("a/checkpoints").glob("joining-*"))


@pytest.mark.slow
def test_what_cannot_change_is_refused_in_one_line_and_left_alone(capsys):
    assert run("w", "joint=True") == 0

    def contents():  # but that another machine tried is noted
        files = [p for p in Path("w").rglob("*") if p.is_file()]
        return {p: p.read_bytes() for p in files if p.name != "versions.json"}

    before = contents()
    capsys.readouterr()

    def refused(words, *overrides, **options):
        assert run("w", *overrides, **options) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1, error
        assert contents() == before

    refused("a member depends on all others", "joint=True", "num_members=5")
    refused("config.seed is 0 there and 1 here", "joint=True", "seed=1")
    refused(
        "nowhere is no run", "joint=True", "num_members=5", members_from=["nowhere"]
    )
    with pytest.raises(Exception, match="--members takes different numbers"):
        cli._members("1,1")
    assert cli.main(["replay", "w", "--member", "1"]) == 2
    assert "joint objective" in capsys.readouterr().err


@pytest.mark.parametrize("block", ["2", pytest.param("auto", marks=pytest.mark.slow)])
def test_a_member_is_replayed(capsys, block):
    """With a fixed block to the bit; else the tolerance and the reason are said."""
    assert run("w", "num_members=5", f"block={block}") == 0
    capsys.readouterr()
    assert cli.main(["replay", "w", "--member", "4", "--step", "15"]) == 0
    out = capsys.readouterr().out
    if block == "2":
        assert "the same bits in all" in out
    else:
        assert "the same bits in all" in out or (
            "the same to a tolerance of 0.001" in out and "block='auto'" in out
        )
    # A checkpoint that is not of this config is found out.
    config = read_json(Path("w/config.json"))
    Path("w/config.json").write_text(json.dumps(config | {"seed": 1}))
    assert cli.main(["replay", "w", "--member", "4"]) == 1
    assert "NOT THE SAME" in capsys.readouterr().out


def test_a_job_of_a_stage_is_read_from_its_folder(tmp_path):
    for stage, place in (("", "w/checkpoints"), ("tuned", "w/checkpoints/tuned")):
        view = SimpleNamespace(checkpoints=epath.Path("w/checkpoints"))
        job = SimpleNamespace(stage=stage)
        past = PastRun(view, None, job, tmp_path / "x.py", None)
        assert str(past.checkpoints) == place


@pytest.mark.slow
def test_members_are_exported(capsys):
    assert run("w") == 0
    capsys.readouterr()
    assert cli.main(["export", "w", "--member", "3"]) == 0
    assert capsys.readouterr().out.strip() == "w/exports/member-3"
    expected = read_member("w/checkpoints", 3).leaves
    # As the documentation of flax restores it.
    experiment = load_module(Path("experiments/trained.py"), "experiment")
    model = experiment.make_model(nnx.Rngs(params=1, dropout=2))
    graphdef, state = nnx.split(model)
    restored = ocp.StandardCheckpointer().restore(Path("w/exports/member-3").absolute())
    restored = nnx.restore_int_paths(restored)
    nnx.replace_by_pure_dict(state, restored)
    member = nnx.merge(graphdef, state)
    kernel = member.blocks[0].linear.kernel[...]
    np.testing.assert_array_equal(kernel, expected["params.blocks.0.linear.kernel"])
    np.testing.assert_array_equal(
        member.blocks[0].norm.mean[...], expected["rest.blocks.0.norm.mean"]
    )
    # Several as one ensemble, whose members are those of the run.
    arguments = ["export", "w", "--member", "3", "--member", "0"]
    assert cli.main([*arguments, "--format", "ensemble", "--out", "both"]) == 0
    ensemble = ensjax.Ensemble.load("both")
    assert ensemble.member_ids.tolist() == [3, 0]
    np.testing.assert_array_equal(
        jax.tree.leaves(ensemble[0])[0], jax.tree.leaves(member)[0]
    )
    for arguments, words in (
        (["--member", "3"], "is there already"),
        (["--member", "9"], "holds no member 9; the members are 0, 1, 2, 3"),
        (["--member", "1", "--step", "7"], "but not after step 7"),
        (["--member", "1", "--format", "onnx"], "--format is one of nnx"),
        (["--member", "1", "--out", "/proc/x"], "ensjax: cannot write"),
        (["--member", "1", "--member", "2", "--out", "x"], "--out takes one member"),
    ):
        assert cli.main(["export", "w", *arguments]) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1


@pytest.mark.slow
def test_safetensors_hold_the_leaves_by_name():
    numpy_form = pytest.importorskip("safetensors.numpy")
    assert run("w") == 0
    arguments = ["export", "w", "--member", "2", "--format", "safetensors"]
    assert cli.main(arguments) == 0
    tensors = numpy_form.load_file("w/exports/member-2.safetensors")
    expected = read_member("w/checkpoints", 2).weights()
    assert tensors.keys() == expected.keys()
    for name, value in tensors.items():
        np.testing.assert_array_equal(value, expected[name])


@pytest.mark.slow
def test_what_is_refused_leaves_nothing_and_changes_nothing(capsys):
    assert run("b", "seed=1", "num_members=2") == 0
    # A first command that is refused: the corrected one finds the place free.
    assert run("new", "num_members=2", members_from=["b"]) == 2
    assert not Path("new").exists()
    assert run("v", "num_members=2") == 0
    noted = read_json(Path("v/versions.json")) | {"num_devices": 99}
    Path("v/versions.json").write_text(json.dumps(noted))
    capsys.readouterr()
    assert run("v", "members=(0,9)", "num_members=2", members_from=["b"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert read_json(Path("v/versions.json")) == noted
    assert run("v", "members=(0,9)", "num_members=2") == 0
    assert "resumed_with" in read_json(Path("v/versions.json"))


def test_members_of_another_training_are_refused_by_their_configs(folder, capsys):
    """Before anything is trained: the configs are compared as for a restart."""
    theirs = {"experiment": "trained", "seed": 0, "num_members": 1, "members": [3]}
    theirs |= {"total_steps": 20, "block": "auto", "joint": False}
    theirs |= {"mesh": {"member": 1, "data": 1, "model": 1}}

    def refused(words, config):
        other = folder / "b"
        (other / "checkpoints").mkdir(parents=True, exist_ok=True)
        (other / "config.json").write_text(
            config if isinstance(config, str) else json.dumps(config)
        )
        assert run("a", "num_members=2", members_from=["b"]) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1, error
        assert not Path("a").exists()

    for field, value in (("total_steps", 40), ("seed", 1), ("rate", 0.5)):
        refused(f"config.{field} is {value!r} there and", theirs | {field: value})
    refused("b/config.json", "{")
    # Members, mesh and blocks may differ; this one has nothing to take.
    refused("holds no checkpoint; give the folder `checkpoints` of a run", theirs)


def test_members_of_another_model_are_refused_in_one_line(capsys):
    """The configs are equal, but the experiment has changed in between."""
    experiment = Path("experiments/trained.py").read_text()
    Path("experiments").unlink()
    Path("experiments").mkdir()
    file = Path("experiments/trained.py")
    file.write_text(experiment.replace("hidden=(8,)", "hidden=(9,)"))
    assert run("b", "num_members=1", "total_steps=5") == 0
    file.write_text(experiment)
    capsys.readouterr()
    options = dict(members_from=["b"])
    assert run("a", "num_members=2", "total_steps=5", **options) == 2
    error = capsys.readouterr().err
    assert "blocks.0.linear.kernel is [6, 9]" in error, error
    assert error.count("\n") == 1
    assert not Path("a").exists()
    # The same model with another activation: what it computes is compared.
    tanh = "activation=jax.numpy.tanh, hidden=(8,)"
    file.write_text(experiment.replace("hidden=(8,)", tanh))
    assert run("c", "num_members=1", "total_steps=5") == 0
    file.write_text(experiment)
    capsys.readouterr()
    options = dict(members_from=["c"])
    assert run("a", "num_members=2", "total_steps=5", **options) == 2
    error = capsys.readouterr().err
    assert "trained with another loss or model" in error and error.count("\n") == 1
    assert not Path("a").exists()


@pytest.mark.slow
def test_members_from_is_never_passed_over_in_silence(capsys):
    assert run("b", "num_members=2") == 0
    assert run("a", "num_members=2") == 0
    assert run("a", "num_members=2", members_from=["b"]) == 2
    assert "a is finished and has just these members" in capsys.readouterr().err


@pytest.mark.slow
def test_what_a_run_logged_is_kept_when_none_of_its_members_stay():
    assert run("w", "num_members=2") == 0
    logged = read_metrics(Path("w/metrics.jsonl"))
    Path("w/previous").mkdir()
    Path("w/previous/.DS_Store").write_text("no number")
    assert run("w", "members=(5,)", "num_members=1") == 0
    assert read_metrics(Path("w/previous/1/metrics.jsonl")) == logged
    assert not Path("w/metrics-before.jsonl").exists()
    logged = read_metrics(Path("w/metrics.jsonl"))
    assert run("w", "num_members=2") == 0  # both are there: nothing is trained
    assert read_metrics(Path("w/previous/2/metrics.jsonl")) == logged


@pytest.mark.slow
def test_a_replay_takes_the_experiment_that_the_run_was_made_with(
    tmp_path, monkeypatch, capsys
):
    source = Path(__file__).parent / "trained"
    for name in ("configs", "experiments"):
        place = tmp_path / "sub" / name
        place.mkdir(parents=True)
        (place / "trained.py").write_bytes((source / name / "trained.py").read_bytes())
    own = tmp_path / "sub/experiments/trained.py"
    own.write_text(own.read_text().replace("1e-3 * (1", "2e-3 * (1"))
    options = RunOptions(
        "sub/configs/trained.py:smoke",
        workdir="r",
        overrides=[("mesh.member", "2"), ("block", "2")],
    )
    assert run_and_report(options) == 0
    # Beside the current folder lies another one of the same name.
    assert cli.main(["replay", "r", "--member", "1"]) == 0
    assert "the same bits" in capsys.readouterr().out
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert cli.main(["replay", str(tmp_path / "r"), "--member", "1"]) == 0
    own.write_text(own.read_text().replace("2e-3 * (1", "3e-3 * (1"))
    capsys.readouterr()
    assert cli.main(["replay", str(tmp_path / "r"), "--member", "1"]) == 1
    out = capsys.readouterr().out
    assert "is not the file that the run was made with, or has changed since" in out


def test_a_replay_has_the_devices_of_the_last_start(monkeypatch):
    from ensjax.experiment import past_run

    class Run:
        versions = {
            "platform": "cpu",
            "num_devices": 2,
            "resumed_with": [{"platform": "cpu", "num_devices": 5}],
        }

    chosen = {}
    monkeypatch.setattr(jax.config, "update", chosen.__setitem__)
    past_run.set_devices_of(Run)
    assert chosen == {"jax_platforms": "cpu", "jax_num_cpu_devices": 5}
    chosen.clear()
    Run.versions["resumed_with"].append({"platform": "gpu", "num_devices": 4})
    past_run.set_devices_of(Run)  # a GPU's are not chosen
    assert chosen == {}


@pytest.mark.parametrize("members", ["(1,1)", "(-1,1)", "(2147483648,)"])
def test_numbers_of_members_are_checked_before_anything_is_done(members, capsys):
    assert run("w", f"members={members}") == 2
    assert "config.members holds numbers" in capsys.readouterr().err
    assert not Path("w").exists()
