"""Checks of config fields: what they refuse, in one line that names the field."""

import ml_collections
import pytest

from ensjax.experiment import ConfigError
from ensjax.experiment.fields import (
    check_blocks,
    check_multiples,
    check_numbers,
    check_rising,
    check_run,
)


def config_of(**changes):
    config = dict(
        seed=0,
        scale="toy",
        sizes=(2, 4, 6),
        training=dict(steps=(20, 40), steps_per_call=10, batch_size=8, block="auto"),
        mesh=dict(member=1, data=-1, model=1),
    )
    return ml_collections.ConfigDict(config | changes)


@pytest.mark.parametrize("value", [2, (2, 3), [2]])
def test_whole_numbers_are_taken(value):
    config = ml_collections.ConfigDict({"leads": value})
    check_numbers(config, ("leads",), at_least=2, at_most=3, are_whole=True)


@pytest.mark.parametrize("value", [2.0, True, 1, (), (2, 3.0), ("2",), None])
def test_what_is_no_whole_number_in_bounds_is_refused(value):
    with pytest.raises(
        ConfigError, match="config.x must be .*whole number.* at least 2"
    ):
        check_numbers({"x": value}, ("x",), at_least=2, are_whole=True)


def test_a_field_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match="config.training.alpha must be there"):
        check_numbers(config_of(), ("training.alpha",))


def test_numbers_that_rise_are_taken():
    check_rising(config_of(), ("sizes",), at_least=2, at_most=6, num_least=3)
    check_rising({"x": (0.0, 0.25)}, ("x",), are_whole=False)


@pytest.mark.parametrize(
    "values, words",
    [
        ((6, 4, 2), r"config.x must be 2 or more numbers that rise; got \(6, 4, 2\)"),
        ((2, 2), "that rise"),
        ((2,), "2 or more numbers"),
        (3, "2 or more numbers"),
        ((), "whole numbers at least 1"),
        ((0, 2), "whole numbers at least 1"),
        ((1, 2.5), "whole numbers at least 1"),
    ],
)
def test_numbers_that_do_not_rise_are_refused(values, words):
    with pytest.raises(ConfigError, match=words):
        check_rising({"x": values}, ("x",), at_least=1, num_least=2)


def test_multiples_of_a_field_and_of_a_number():
    config = config_of()
    check_multiples(config, ("training.steps",), of="training.steps_per_call")
    check_multiples(config, ("training.batch_size", "training.steps"), of=4)
    with pytest.raises(ConfigError, match=r"steps=\(20, 40\) must be a multiple of 8"):
        check_multiples(config, ("training.steps",), of=8)
    config.training.steps_per_call = 16
    words = "must be a multiple of config.training.steps_per_call=16"
    with pytest.raises(ConfigError, match=words):
        check_multiples(config, ("training.steps",), of="training.steps_per_call")


@pytest.mark.parametrize("block", ["auto", None, 1, 7])
def test_blocks_of_fit_are_taken(block):
    check_blocks({"training": {"block": block}}, ("training.block",))


@pytest.mark.parametrize("block", ["autoo", 0, -1, 2.0, True])
def test_other_blocks_are_refused(block):
    with pytest.raises(ConfigError, match=r"config.training.block must be .* got "):
        check_blocks({"training": {"block": block}}, ("training.block",))


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(seed=-1), "config.seed must be a whole number at least 0"),
        (dict(seed=2**31), "config.seed must be"),
        (dict(scale="tiny"), "config.scale is one of full, reduced, toy; got 'tiny'"),
        (
            dict(mesh=dict(data=3)),
            "batch_size=8 must be a multiple of config.mesh.data",
        ),
    ],
)
def test_what_every_run_has_is_looked_at(changes, words):
    check_run(config_of(), batch_size="training.batch_size")
    with pytest.raises(ConfigError, match=words):
        check_run(config_of(**changes), batch_size="training.batch_size")
