"""Stages: computed once, read back, computed again where they cannot be believed."""

import ml_collections
import numpy as np
import pytest

from ensjax.experiment import ConfigError, open_run
from ensjax.experiment.fields import (
    check_multiples,
    check_numbers,
    check_options,
    choose,
)
from ensjax.experiment.stages import run_stages


def config(**fields):
    return ml_collections.ConfigDict({"experiment": "toy", "seed": 0} | fields)


class Stages:
    """Two stages that count how often they are computed."""

    def __init__(self):
        self.calls = []

    def first(self, done):
        assert done == {}
        self.calls.append("first")
        return {"x": np.arange(3), "name": np.asarray("abc")}

    def second(self, done):
        self.calls.append("second")
        return {"y": done["first"]["x"] * 2.0}

    def run(self, folder, settings):
        with open_run(folder, settings, versions={}) as run_dir:
            return run_stages(
                run_dir, settings, {"first": self.first, "second": self.second}
            )


def test_a_stage_is_computed_once(tmp_path, capsys):
    stages = Stages()
    before = stages.run(tmp_path / "run", config())
    after = stages.run(tmp_path / "run", config())
    assert stages.calls == ["first", "second"]
    np.testing.assert_array_equal(after["second"]["y"], [0.0, 2.0, 4.0])
    assert str(after["first"]["name"]) == "abc" and before.keys() == after.keys()
    assert "stage 1/2 first: read back" in capsys.readouterr().out


def test_arrays_lie_in_memory_as_they_are_read_back(tmp_path):
    """Sums over another order of memory round otherwise."""
    moved = {"turned": np.ones((2, 3)).T, "every": np.ones((4, 6))[:, ::2]}
    with open_run(tmp_path / "run", config(), versions={}) as run_dir:
        found = run_stages(run_dir, config(), {"only": lambda done: moved})["only"]
    assert all(x.flags.c_contiguous for x in found.values())


def test_a_run_that_dies_goes_on_with_the_stage_that_it_was_in(tmp_path):
    stages = Stages()
    stages.second = lambda done: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        stages.run(tmp_path / "run", config())
    del stages.second
    stages.run(tmp_path / "run", config())
    assert stages.calls == ["first", "second"]


def test_a_damaged_stage_and_those_after_it_are_computed_again(tmp_path, capsys):
    stages = Stages()
    stages.run(tmp_path / "run", config())
    file = tmp_path / "run/stages/first.npz"
    whole = file.read_bytes()
    damaged = [whole[:i] + bytes([whole[i] ^ 4]) + whole[i + 1 :] for i in (3, 200, -3)]
    for times, content in enumerate([*damaged, whole[:-9], b""], start=2):
        file.write_bytes(content)
        stages.run(tmp_path / "run", config())
        assert stages.calls == ["first", "second"] * times
    assert capsys.readouterr().out.count("computing it again") == 5


def test_a_stage_of_other_members_is_not_read_and_of_another_mesh_is(tmp_path, capsys):
    stages = Stages()
    settings = config(num_members=2, mesh={"member": 1})
    with open_run(tmp_path / "run", settings, versions={}) as run_dir:
        table = {"first": stages.first, "second": stages.second}
        run_stages(run_dir, settings, table)
        settings.mesh.member = 2
        run_stages(run_dir, settings, table)
        assert stages.calls == ["first", "second"]
        capsys.readouterr()
        settings.num_members = 3
        run_stages(run_dir, settings, table)
        assert stages.calls == ["first", "second"] * 2
        said = capsys.readouterr().out
        assert "first.npz is of another config; computing it again" in said


def test_a_stage_of_older_code_says_which_file_lacks_what(tmp_path):
    stages = Stages()
    stages.run(tmp_path / "run", config())
    # The next version of the second stage asks the first for more.
    stages.second = lambda done: {"y": done["first"]["speed"]}
    (tmp_path / "run/stages/second.npz").unlink()
    with pytest.raises(ConfigError) as caught:
        stages.run(tmp_path / "run", config())
    text, file = str(caught.value), tmp_path / "run/stages/first.npz"
    assert f"{file} is a stage of an older version" in text
    assert "has no 'speed' (it has name, x)" in text
    assert f"Delete {file} and run the same command" in text and "\n" not in text
    # What it says helps: the stage is computed by the new code.
    stages.first = lambda done: {"x": np.arange(3), "speed": np.float64(2.0)}
    file.unlink()
    found = stages.run(tmp_path / "run", config())
    assert float(found["second"]["y"]) == 2.0
    # After the last stage, too, and not where the code itself is wrong.
    again = stages.run(tmp_path / "run", config())
    with pytest.raises(ConfigError, match="second.npz is a stage of an older version"):
        again["second"]["z"]
    assert "z" not in again["second"] and again["second"].get("z") is None
    with pytest.raises(KeyError, match="z"):
        found["second"]["z"]


def test_what_a_stage_may_be(tmp_path):
    with open_run(tmp_path / "run", config(), versions={}) as run_dir:
        with pytest.raises(ValueError, match="becomes a file name"):
            run_stages(run_dir, config(), {"../x": lambda done: {}})
        with pytest.raises(ValueError, match="at least one"):
            run_stages(run_dir, config(), {})
        with pytest.raises(TypeError, match="mapping of arrays"):
            run_stages(run_dir, config(), {"x": lambda done: [1]})
        with pytest.raises(TypeError, match="'a' is object"):
            run_stages(run_dir, config(), {"x": lambda done: {"a": [None]}})


def test_fields_are_checked_in_one_line():
    settings = {"a": 1, "b": {"c": (0.5, 2.0)}, "d": "x", "e": (), "f": True}
    check_numbers(settings, ["a", "b.c"], above=0)
    for field, bounds, words in (
        ("b.c", {"at_least": 1}, "config.b.c must be numbers at least 1; got"),
        ("a", {"above": 1, "below": 3}, "must be a number above 1 and below 3; got 1"),
        ("a", {"at_most": 0.5}, "at most 0.5"),
        ("d", {}, "config.d must be a number finite; got 'x'"),
        ("e", {}, "config.e must be numbers"),
        ("f", {}, "got True"),
    ):
        with pytest.raises(ConfigError, match=words):
            check_numbers(settings, [field], **bounds)
    check_multiples({"a": {"b": 6}, "steps_per_call": 3}, ["a.b"])
    with pytest.raises(
        ConfigError, match="config.a=7 must be a multiple of config.b.c=3"
    ):
        check_multiples({"a": 7, "b": {"c": 3}}, ["b.c", "a"], of="b.c")
    with pytest.raises(ConfigError, match="config.rule is one of a, b; got 'c'"):
        choose("rule", "c", {"b": 1, "a": 2})
    with pytest.raises(ConfigError, match="the options are depth"):
        check_options("model", lambda depth: None, options={"width": 1})


def test_members_that_no_stage_takes_over_are_refused(tmp_path):
    stages = {"only": lambda done: {"x": np.arange(2)}}
    with open_run(tmp_path / "run", config(), versions={}) as run_dir:
        run_dir.members_from = (tmp_path / "others",)
        with pytest.raises(ConfigError, match="takes no members over; leave it out"):
            run_stages(run_dir, config(), stages)
        done = run_stages(run_dir, config(), stages, takes_members_from=True)
    assert done["only"]["x"].tolist() == [0, 1]
