"""The examples in the docstrings of scores and combine run and print what they say."""

import doctest
import importlib

import pytest


@pytest.mark.parametrize(
    "name",
    [
        "ensjax.combine.average",
        "ensjax.combine.calibrate",
        "ensjax.scores.intervals",
        "ensjax.scores.proper",
    ],
)
def test_examples_run(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0 and result.failed == 0
