"""The examples in docstrings run and print what they say."""

import doctest
import importlib
import pkgutil

import jax
import pytest

import ensjax

FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def modules():
    names = ["ensjax"]
    for info in pkgutil.walk_packages(ensjax.__path__, "ensjax."):
        if not info.name.startswith(("ensjax.configs", "ensjax.experiments")):
            names.append(info.name)
    return sorted(names)


@pytest.mark.parametrize("name", modules())
def test_examples_of(name):
    module = importlib.import_module(name)
    with jax.numpy_rank_promotion("allow"):  # a user's default
        result = doctest.testmod(module, optionflags=FLAGS)
    assert result.failed == 0
