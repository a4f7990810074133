"""Configs are found, read, overridden by type, and compared."""

import os
import pickle
from pathlib import Path

import ml_collections
import pytest

from ensjax.experiment import configs
from ensjax.experiment.configs import (
    check_config,
    check_devices,
    find_config,
    find_experiment,
    first_difference,
    load_config,
    load_module,
    normalise_config,
    other_run,
    split_spec,
)
from ensjax.experiment.exit_codes import ConfigError
from ensjax.experiment.overrides import apply_overrides, split_overrides

TOY = str(Path(__file__).parent / "toy" / "configs" / "toy.py")


def toy(*overrides, preset=""):
    return load_config(TOY + preset, overrides)[1]


def test_the_preset_follows_a_colon_and_is_small_without_one():
    assert split_spec("configs/x.py:paper") == ("configs/x.py", "paper")
    assert split_spec("deep_ensemble") == ("deep_ensemble", "small")
    assert split_spec("gs://bucket/x.py") == ("gs://bucket/x.py", "small")
    assert toy(preset=":smoke").total_steps == 20
    assert toy().total_steps == 40


def test_a_name_is_looked_up_in_the_packaged_folder(monkeypatch):
    folder = Path(TOY).parents[1]
    monkeypatch.setattr(configs, "packaged_folder", lambda kind: folder / kind)
    source = find_config("toy:claims")
    assert (source.name, source.preset, str(source.path)) == ("toy", "claims", TOY)
    with pytest.raises(
        ConfigError, match="no config named 'toi'; the nearest is 'toy'"
    ):
        find_config("toi")


def test_the_packaged_folder_is_beside_the_package_or_inside_it():
    folder = configs.packaged_folder("configs")
    assert folder.name == "configs"
    assert folder.parent in (Path(configs.__file__).parents[1:3])


@pytest.mark.parametrize(
    "key, text, value",
    [
        ("num_members", "8", 8),
        ("optimizer.learning_rate", "1", 1.0),
        ("optimizer.learning_rate", "1e-3", 1e-3),
        ("limit", "inf", float("inf")),
        ("is_fast", "false", False),
        ("name", "dice", "dice"),
        ("name", "3", "3"),
        ("widths", "(16, 4, 2)", (16, 4, 2)),
        ("widths", "16", (16,)),
        ("rates", "(1, 0.5)", (1.0, 0.5)),
        ("note", "hello", "hello"),  # a placeholder for a string
    ],
)
def test_an_override_takes_the_type_of_its_field(key, text, value):
    config = toy((key, text))
    for part in key.split("."):
        config = config[part]
    assert config == value
    assert type(config) is type(value)
    if isinstance(value, tuple):
        assert [type(item) for item in config] == [type(item) for item in value]


@pytest.mark.parametrize(
    "key, text, message",
    [
        ("num_member", "8", "unknown config key 'num_member'; the nearest is 'num_mem"),
        ("learning_rate", "1", "the nearest is 'optimizer.learning_rate'"),
        ("zzz", "1", "unknown config key 'zzz'."),
        (
            "num_members",
            "many",
            "config.num_members is of type int (now 4); got 'many'",
        ),
        ("num_members", "2.5", "config.num_members is of type int"),
        ("is_fast", "perhaps", "config.is_fast is of type bool"),
        ("optimizer.learning_rate", "fast", "is of type float"),
        ("widths", "(1, 'a')", "config.widths is of type tuple"),
        ("widths", "1 +", "config.widths is of type tuple"),
        ("optimizer", "adam", "is a section; its fields are optimizer.learning_rate"),
    ],
)
def test_a_wrong_override_says_what_is_wrong(key, text, message):
    with pytest.raises(ConfigError) as error:
        toy((key, text))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_loaded_config_is_locked():
    config = toy()
    with pytest.raises(AttributeError):
        config.new_field = 1


def test_a_field_that_holds_a_word_takes_a_number_too():
    """How many members run at once is "auto", "all" or a number."""
    config = ml_collections.ConfigDict(dict(block="auto", name="3", form="auto"))
    config.lock()
    apply_overrides(config, [("block", "4"), ("name", "5"), ("form", "plain")])
    assert (config.block, config.name, config.form) == (4, "5", "plain")
    config.block = 8  # and goes on as one
    with pytest.raises(ConfigError, match="config.block is of type int"):
        apply_overrides(config, [("block", "all")])


def test_overrides_are_taken_out_of_a_command_line_in_both_spellings():
    rest, overrides = split_overrides(
        ["run", "--config.a.b=1=2", "x.py", "--config.c", "-3", "--workdir", "w"]
    )
    assert rest == ["run", "x.py", "--workdir", "w"]
    assert overrides == [("a.b", "1=2"), ("c", "-3")]
    with pytest.raises(ConfigError, match="needs a value"):
        split_overrides(["--config.a", "--workdir"])
    with pytest.raises(ConfigError, match="needs a value"):
        split_overrides(["--config.a"])


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("num_members", 0, "config.num_members must be at least 1; got 0"),
        ("total_steps", -5, "config.total_steps must be at least 1"),
        ("mesh", dict(member=0), "config.mesh.member must be at least 1, or -1"),
        ("mesh", dict(member=-1, data=-1), "only one axis"),
        ("mesh", dict(members=1), "the axes member, data and model"),
    ],
)
def test_counts_and_mesh_sizes_are_checked(key, value, message):
    with pytest.raises(ConfigError, match=message):
        check_config(ml_collections.ConfigDict({key: value}))


def test_a_mesh_must_fit_the_devices():
    def config(**mesh):
        return ml_collections.ConfigDict(dict(mesh=mesh))

    check_devices(config(member=-1, data=2, model=1), 8)
    check_devices(config(member=2, data=1, model=1), 8)
    check_devices(ml_collections.ConfigDict(), 1)
    for mesh in (dict(member=4, data=4), dict(member=-1, data=3)):
        with pytest.raises(ConfigError, match="does not fit 8 device"):
            check_devices(config(**mesh), 8)


def test_normalised_configs_compare_equal_after_json():
    import json

    normal = normalise_config(toy())
    assert normal["widths"] == [8, 8]
    assert normal["limit"] == "inf"
    assert json.loads(json.dumps(normal)) == normal
    assert first_difference(normal, normalise_config(toy())) is None


def test_the_first_difference_has_the_dotted_key_and_both_values():
    old, new = {"a": 1, "b": {"c": [1, 2]}}, {"a": 1, "b": {"c": [1, 3]}}
    assert first_difference(old, new) == ("b.c", [1, 2], [1, 3])
    assert first_difference({"a": 1}, {}) == ("a", 1, "absent")
    assert first_difference({"a": 1}, {"a": True}) == ("a", 1, True)


def test_a_function_in_a_config_is_refused():
    with pytest.raises(ConfigError, match="numbers, strings and tuples"):
        normalise_config(ml_collections.ConfigDict(dict(f=len)))


@pytest.mark.parametrize(
    "text, message",
    [
        ("x = 1\n", "defines no get_config"),
        ("def get_config(preset)\n", "line 1: SyntaxError"),
        ("import not_a_package\n", "line 1: ModuleNotFoundError"),
        ("def get_config(preset):\n    return 1 / 0\n", "line 2: ZeroDivisionError"),
        ("def get_config(preset):\n    return {}\n", "must return an ml_coll"),
    ],
)
def test_a_broken_config_file_is_one_line_with_its_place(tmp_path, text, message):
    (tmp_path / "broken.py").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(str(tmp_path / "broken.py"))
    assert [path.name for path in tmp_path.iterdir()] == ["broken.py"]  # no __pycache__


def test_the_experiment_is_found_beside_the_configs_then_packaged_then_by_path(
    tmp_path, monkeypatch
):
    source, config = load_config(TOY)
    assert (
        find_experiment(source, config) == Path(TOY).parents[1] / "experiments/toy.py"
    )

    # A config elsewhere falls back to the packaged experiment of the name.
    packaged = Path(TOY).parents[1]
    monkeypatch.setattr(configs, "packaged_folder", lambda kind: packaged / kind)
    (tmp_path / "mine").mkdir()
    text = Path(TOY).read_text()
    (tmp_path / "mine" / "mine.py").write_text(text)
    source, config = load_config(str(tmp_path / "mine" / "mine.py"))
    assert find_experiment(source, config) == packaged / "experiments" / "toy.py"

    # Beside it comes first; a path ends in .py and is relative to the config.
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "toy.py").write_text("")
    assert find_experiment(source, config) == tmp_path / "experiments" / "toy.py"
    with config.unlocked():
        config.experiment = "own.py"
    with pytest.raises(ConfigError, match="no experiment file"):
        find_experiment(source, config)
    (tmp_path / "mine" / "own.py").write_text("")
    assert find_experiment(source, config) == tmp_path / "mine" / "own.py"
    with config.unlocked():
        config.experiment = "tay"
    with pytest.raises(ConfigError, match="nearest is 'toy'"):
        find_experiment(source, config)


def test_an_experiment_has_a_stable_module_name_so_its_objects_pickle(tmp_path):
    (tmp_path / "shop.py").write_text("def sell(x):\n    return 2 * x\n")
    module = load_module(tmp_path / "shop.py", "experiment")
    assert module.__name__ == "ensjax_experiment_shop"
    assert pickle.loads(pickle.dumps(module.sell))(4) == 8
    assert load_module(tmp_path / "shop.py", "experiment") is module
    (tmp_path / "shop.py").write_text("def sell(x):\n    return 3 * x\n")
    os.utime(tmp_path / "shop.py", (1, 1))
    assert load_module(tmp_path / "shop.py", "experiment").sell(4) == 12


def test_a_value_per_member_number_may_grow_with_the_members():
    def config(rates, **others):
        return {"num_members": 4, "optimizer": {"learning_rate": rates}} | others

    four, six = [1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert other_run(config(four), config(six, num_members=6)) is None
    assert other_run(config(six), config(four, members=[0, 3])) is None
    changed = other_run(config(four), config([1.0, 2.5], num_members=2))
    assert changed == ("optimizer.learning_rate", [1.0, 2.0], [1.0, 2.5])
    # One rate for all is not the first of several.
    assert other_run(config([1.0]), config(four)) is not None
    assert other_run(config(four), config(four, seed=1))[0] == "seed"


def test_members_may_come_from_runs_that_were_run_and_shown_in_another_way():
    theirs = {
        "num_seeds": 2,
        "block": 4,
        "training": {"block": 1, "save_every_steps": 10, "rate": 0.1},
        "model": {"conv_form": "auto"},
        "num_bins": 10,
    }
    ours = theirs | {
        "num_seeds": 5,
        "block": "auto",
        "training": {"block": 2, "save_every_steps": 20, "rate": 0.1},
        "model": {"conv_form": "patches"},
        "num_bins": 15,
    }
    assert configs.other_training(theirs, ours) is None
    ours["training"] = ours["training"] | {"rate": 0.2}
    assert configs.other_training(theirs, ours) == ("training.rate", 0.1, 0.2)


def test_a_number_that_was_kept_as_text_is_the_same():
    assert configs.other_run({"block": "4"}, {"block": 4}) is None
    assert configs.other_run({"block": "4"}, {"block": 2}) == ("block", "4", 2)
