"""An older benchmark against a newer one: what is flagged, and what is refused."""

import argparse
import json
from pathlib import Path

import pytest
import rich.console

from ensjax import cli
from ensjax.experiment.configs import load_module
from ensjax.experiment.exit_codes import ConfigError

FOLDER = Path(__file__).parents[2] / "experiments"
files = load_module(FOLDER / "benchmark_files.py", "bench")
engine = load_module(FOLDER / "bench_engine.py", "bench")
scale = load_module(FOLDER / "bench_scale.py", "bench")

STORED = FOLDER / "benchmarks" / "engine-cpu2.json"
HERE = {
    "device_kind": "cpu",
    "num_devices": 2,
    "processor": "Some",
    "num_cores": 2,
    "platform": "cpu",
    "jax": "0.10.1",
    "jaxlib": "0.10.1",
}


def measured(*values, **options):
    return files.Measurement(values, "ms", **options)


def verdict_of(old, new):
    [change] = files.compare({"row": {"time": old}}, {"row": {"time": new}})
    return change.verdict


@pytest.mark.parametrize(
    "old, new, expected",
    [
        # Both ranges between the quartiles are 2: up to 4 is noise.
        (measured(9, 10, 11, 12, 8), measured(13, 14, 15, 16, 12), "same"),
        (measured(9, 10, 11, 12, 8), measured(13.5, 14.5, 15, 16, 12), "SLOWER"),
        (measured(13.5, 14.5, 15, 16, 12), measured(9, 10, 11, 12, 8), "faster"),
        (measured(5, 5), measured(5.1, 5.1), "SLOWER"),
        (measured(5), measured(50), "measured once"),
        (measured(5, 5), measured(50), "measured once"),
        (measured(8, is_exact=True), measured(9, is_exact=True), "WORSE"),
        (measured(8, is_exact=True), measured(8, is_exact=True), "same"),
    ],
)
def test_a_time_is_slower_by_more_than_the_spread_of_both(old, new, expected):
    assert verdict_of(old, new) == expected


def test_more_members_are_better():
    one, two = (
        measured(x, is_exact=True, higher_is_better=True) for x in (163.0, 180.0)
    )
    assert verdict_of(one, two) == "better"
    assert verdict_of(two, one) == "WORSE"


def test_rows_that_one_file_lacks_are_named():
    old = {"a": {"x": measured(1), "y": measured(1)}, "b": {"x": measured(1)}}
    new = {"a": {"x": measured(1)}, "c": {"x": measured(1)}}
    assert files.missing_rows(old, new) == (["a: y", "b"], ["c"])


def report(suite="scale", versions=HERE, **row):
    row = {
        "name": "many M=8 steps=4",
        "group": "many",
        "title": "MLP",
        "members": 8,
        "batch": 32,
        "dtype": "float32",
        "measurements": {"s of fit": [2.0, 2.0]},
        **row,
    }
    return {"suite": suite, "command": ["x"], "versions": versions, "rows": [row]}


@pytest.fixture
def write(tmp_path):
    def write(name, value):
        text = value if isinstance(value, str) else json.dumps(value)
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


def test_two_files_are_compared_without_measuring(write, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "180")
    old = write("old.json", report())
    slower = report(measurements={"s of fit": [3.0, 3.0], "members per s": [4.0]})
    new = write("new.json", slower)
    assert cli.main(["bench", "scale", "--results", new, "--compare", old]) == 0
    printed = capsys.readouterr().out
    assert "1.500" in printed and "SLOWER" in printed
    assert "only in the new file: many M=8 steps=4: members per s" in printed
    assert "1 of 1 measurements are slower or worse\n  many M=8 steps=4: s of fit" in (
        printed
    )
    # The file says which suite it is of.
    assert cli.main(["bench", "--compare", old, "--results", old]) == 0
    assert "0 of 1 measurements are slower" in capsys.readouterr().out


def test_the_stored_benchmark_of_the_engine_is_the_same_as_itself(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    arguments = ["bench", "--compare", str(STORED), "--results", str(STORED)]
    assert cli.main(arguments) == 0
    printed = capsys.readouterr().out
    rows = json.loads(STORED.read_text())["rows"]
    ways = sum(len(row["all_milliseconds"]) for row in rows)
    assert f"0 of {ways} measurements are slower or worse" in printed
    assert "only in" not in printed


OTHER = HERE | {"processor": "Another"}


@pytest.mark.parametrize(
    "old, words",
    [
        ("{", "holds no valid JSON"),
        ("[]", "must hold a JSON object"),
        ("{}", "is no report of ensjax bench: 'command' is missing"),
        (report(suite="engine"), "is of the suite 'engine', and this is 'scale'"),
        (report(versions=OTHER), "measured on cpu x 2 (Another, 2 cores), and this is"),
        (report(versions={}), "does not say its hardware ('device_kind')"),
        ({**report(), "rows": [{"group": "many"}]}, "row 0 is not one of this suite"),
        (report(measurements={"s": ["fast"]}), "row 0 is not one of this suite"),
    ],
)
def test_what_cannot_be_compared_is_one_line(write, old, words, capsys):
    new, old = write("new.json", report()), write("old.json", old)
    assert cli.main(["bench", "scale", "--results", new, "--compare", old]) == 2
    output = capsys.readouterr()
    assert output.err.startswith("ensjax: ") and output.err.count("\n") == 1
    assert words in output.err and "old.json" in output.err
    assert output.out == ""


def test_force_compares_other_hardware(write, capsys):
    new, old = write("new.json", report()), write("old.json", report(versions=OTHER))
    arguments = ["bench", "scale", "--results", new, "--compare", old, "--force"]
    assert cli.main(arguments) == 0
    assert "0 of 1 measurements are slower" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--compare", "nowhere.json"], "there is no file nowhere.json"),
        (["scale", "--results", "nowhere.json"], "there is no file nowhere.json"),
        (["--compare", "{no_report}"], "must hold a JSON object"),
        (["scale", "--results", "{no_title}"], "a row lacks what the table shows"),
    ],
)
def test_a_file_that_is_not_there_or_no_report(write, arguments, words, capsys):
    broken = report()
    del broken["rows"][0]["title"]
    paths = {
        "no_report": write("no_report.json", []),
        "no_title": write("no_title.json", broken),
    }
    arguments = [argument.format(**paths) for argument in arguments]
    assert cli.main(["bench", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_a_comparison_names_versions_that_changed():
    versions = HERE | {"jax": "0.12.0"}
    console = rich.console.Console(record=True, width=150)
    empty = {"row": {}}
    old, new = report(), report(versions=versions)
    files.print_comparison(old, new, empty, empty, console)
    assert "jax: 0.10.1 -> 0.12.0" in console.export_text()


def test_a_report_is_read_back(tmp_path):
    path = str(tmp_path / "new.json")
    files.write_report(path, report(), ["--rows", "many"])
    back = files.read_report(path, "scale")
    assert back["command"] == ["bench", "scale", "--rows", "many"]
    assert back["rows"] == report()["rows"]
    files.write_report(None, report(), [])
    options = argparse.Namespace(json=None, results=None, compare=path, force=False)
    with pytest.raises(ConfigError, match="measured on cpu x 2 .Some"):
        files.begin(
            options, "scale", lambda: OTHER, scale.measurements_of, scale.make_table
        )


def test_a_file_that_cannot_be_written_is_named_before_anything_is_measured(tmp_path):
    place = tmp_path / "nowhere" / "x.json"
    with pytest.raises(ConfigError, match="--json .*nowhere.*cannot write into"):
        scale.main(["--rows", "guard", "--json", str(place)])
