"""The command `ensjax`, as a user types it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ensjax
from ensjax import cli
from ensjax.experiment import configs, packaged, results

ROOT = Path(__file__).parents[1]
TOY_FOLDER = Path(__file__).parent / "experiment" / "toy"
TOY = str(TOY_FOLDER / "configs" / "toy.py")


def command(folder, *arguments):
    """Runs the command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "ensjax.cli", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        timeout=120,
    )


@pytest.fixture
def packaged_toy(monkeypatch, tmp_path):
    """The toy stands in for what a wheel carries."""
    for module in (configs, cli, packaged, results):
        monkeypatch.setattr(module, "packaged_folder", lambda kind: TOY_FOLDER / kind)
    monkeypatch.chdir(tmp_path)


def test_the_parent_of_a_run_and_the_help_do_not_import_jax():
    # What the package itself imports at its top is not the command's doing.
    script = f"""
import sys, types
package = types.ModuleType("ensjax")
package.__path__, package.__version__ = [{str(ROOT / "ensjax")!r}], "0"
sys.modules["ensjax"] = package
import ensjax.cli
heavy = ("jax", "flax", "matplotlib", "scipy", "orbax", "rich")
print([name for name in heavy if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.stdout == "[]\n", done.stderr


def test_version_and_help(capsys):
    for arguments, words in (
        (["--version"], f"ensjax {ensjax.__version__}"),
        (["--help"], "doctor"),
        (["run", "--help"], "--coordinator"),
        (["bench", "--help"], "usage: ensjax bench"),
    ):
        with pytest.raises(SystemExit) as end:
            cli.main(arguments)
        assert end.value.code == 0
        assert words in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([], "COMMAND"),
        (["fly"], "invalid choice: 'fly'"),
        (["run"], "required: config"),
        (["run", "x.py", "--wrkdir", "w"], "unrecognized arguments: --wrkdir"),
        (["run", "x.py", "--devices", "two"], "invalid int value: 'two'"),
        (
            ["run", "x.py", "--num_processes=2"],
            "--coordinator and --process_id missing",
        ),
        (
            ["run", "x.py", "--compilation_cache", "cache"],
            "takes on, off or a folder with a slash, such as ./cache; got 'cache'",
        ),
        (["run", "x.py", "--config.seed"], "--config.seed needs a value"),
        (["report", "nowhere"], "nowhere is no run of ensjax"),
        (["report", ".", "--config.seed=1"], "belongs to ensjax run"),
        (["copy", "nope"], "no config named 'nope'"),
        (["bench", "nope"], "no benchmark 'nope'"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(
    arguments, words, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    try:
        code = cli.main(arguments)
    except SystemExit as end:
        code = end.code
    output = capsys.readouterr()
    assert code == 2
    assert output.out == ""
    assert output.err.startswith("ensjax") and output.err.count("\n") == 1
    assert words in output.err
    assert list(tmp_path.iterdir()) == []


def test_a_run_by_path_its_report_a_comparison_and_a_mistake(tmp_path):
    done = command(tmp_path, "run", TOY + ":smoke", "--devices", "2")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "finished: runs/toy-smoke/report.html\n"
    assert done.stderr == ""
    assert '"num_devices": 2' in (tmp_path / "runs/toy-smoke/versions.json").read_text()

    done = command(tmp_path, "run", TOY + ":smoke", "--config.seed=1")
    assert done.returncode == 2
    assert done.stderr.startswith(
        "ensjax: runs/toy-smoke holds another run: config.seed"
    )
    assert done.stderr.count("\n") == 1

    other = ["run", TOY + ":smoke", "--config.seed", "1", "--workdir", "other"]
    assert command(tmp_path, *other).returncode == 0
    done = command(tmp_path, "report", "runs/toy-smoke", "other", "--out", "both.html")
    assert done.returncode == 0, done.stderr
    assert "Config fields that differ" in (tmp_path / "both.html").read_text()
    (tmp_path / "other" / "report.html").unlink()
    assert command(tmp_path, "report", "other").stdout == "other/report.html\n"
    assert (tmp_path / "other" / "report.html").exists()


def test_results_are_published_from_a_checkout_only(tmp_path, capsys, monkeypatch):
    from ensjax.experiment.run_directory import open_run

    monkeypatch.chdir(tmp_path)
    with open_run("run", {"seed": 0}, versions={"config_name": "x"}) as run:
        run.finish(title="T", summary="S", scalars={})
    inside = Path(cli.__file__).parent / "experiments"
    monkeypatch.setattr(results, "packaged_folder", lambda kind: inside)
    assert cli.main(["report", "run", "--publish"]) == 2
    assert "needs a checkout" in capsys.readouterr().err
    folder = tmp_path / "experiments" / "results"
    folder.mkdir(parents=True)
    monkeypatch.setattr(results, "packaged_folder", lambda kind: tmp_path / kind)
    assert cli.main(["report", "run", "--publish"]) == 0
    assert (folder / "x-small.json").exists()
    assert "## x" in (tmp_path / "experiments" / "RESULTS.md").read_text()
    assert cli.main(["report", "run", "run", "--out", "no/where.html"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_list_shows_papers_questions_and_presets(packaged_toy, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "150")
    assert cli.main(["list"]) == 0
    text = capsys.readouterr().out
    assert "toy" in text and "Nobody 1900" in text
    assert "A coin for each member" in text
    assert "small: not run" in text and "smoke, small, claims, paper" in text


def test_list_names_the_presets_that_a_config_has(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "250")
    monkeypatch.setattr(results, "read_published", list)
    folder = configs.packaged_folder("configs")
    digits = configs.presets_of(folder / "deep_ensemble_digits.py")
    assert digits == ("smoke", "small", "claims")
    whole = ("smoke", "small", "claims", "paper")
    assert configs.presets_of(folder / "deep_ensemble.py") == whole
    assert cli.main(["list"]) == 0
    text = capsys.readouterr().out
    full = [text.count(f"small, claims,{gpu} paper") for gpu in ("", " gpu,")]
    assert text.count("paper: not run") == sum(full) and min(full) > 0


def test_copy_writes_both_files_once_and_they_run(packaged_toy, capsys, tmp_path):
    assert cli.main(["copy", "toy"]) == 0
    assert "ensjax run configs/toy.py" in capsys.readouterr().out
    assert (tmp_path / "configs/toy.py").read_text() == Path(TOY).read_text()
    changed = (tmp_path / "experiments/toy.py").read_text().replace("Coins", "Dice")
    (tmp_path / "experiments/toy.py").write_text(changed)
    assert cli.main(["copy", "toy"]) == 2
    assert "is there already" in capsys.readouterr().err
    done = command(tmp_path, "run", "configs/toy.py:smoke")
    assert done.returncode == 0, done.stderr
    assert "Dice" in (tmp_path / "runs/toy-smoke/report.html").read_text()


def test_copy_takes_what_is_loaded_and_no_other_experiment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["copy", "seeds_sphere"]) == 0
    found = {path.name for path in (tmp_path / "experiments").iterdir()}
    assert {"seeds_sphere.py", "seeds_sphere_claims.py", "seeds_training.py"} <= found
    assert "seeds_sphere_job.py" in found  # what `ensjax sample` asks for
    assert not any("rainfall" in name or "soups" in name for name in found)
    done = command(tmp_path, "run", "configs/seeds_sphere.py:paper", "--workdir", "run")
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr


def test_bench_finds_its_suites_beside_the_experiments(tmp_path, capsys, monkeypatch):
    text = "def main(arguments):\n    print('racing', arguments)\n    return 0\n"
    (tmp_path / "bench_race.py").write_text(text)
    for module in (configs, cli):
        monkeypatch.setattr(module, "packaged_folder", lambda kind: tmp_path)
    assert cli.main(["bench"]) == 0
    assert "Benchmarks: race" in capsys.readouterr().out
    assert cli.main(["bench", "race", "--members", "4"]) == 0
    assert capsys.readouterr().out == "racing ['--members', '4']\n"
    assert cli.main(["bench", "rase"]) == 2
    assert "the nearest is 'race'" in capsys.readouterr().err


def test_doctor_is_well_here(capsys):
    assert cli.main(["doctor"]) == 0
    assert "parity" in capsys.readouterr().out


def test_the_commands_of_the_readme_have_the_options_that_they_name():
    text = (Path(__file__).parents[1] / "README.md").read_text().replace("\\\n", " ")
    found = re.findall(r"^[^#\n`]*?\bensjax (run .*)$", text, re.MULTILINE)
    assert len(found) >= 3
    for command in found:
        words = re.split(r"\s#|[\"';]", command)[0].split()
        # What a shell fills in is a number, where there must be one.
        words = ["7" if re.fullmatch(r"\$\w+", word) else word for word in words]
        rest, _ = cli.split_overrides(words)
        options = cli._parser().parse_args(rest)
        cli.check_flags(
            cli.ProcessFlags(
                options.coordinator,
                options.num_processes,
                options.process_id,
            )
        )
        cli.check_choice(options.compilation_cache)
