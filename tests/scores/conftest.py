"""Scores as compiled programs: one for a score, where eager calls compile each step."""

import functools
from typing import Any

import jax
import pytest


@functools.cache
def _program(score, static):
    return jax.jit(score, static_argnames=static)


@pytest.fixture(scope="session")
def compiled():
    """`compiled(score)(...)`; options that are no arrays are static."""

    def of(score):
        def call(*arguments: Any, **options: Any):
            static = [
                name
                for name, value in options.items()
                if isinstance(value, int | float | str | tuple | type(None))
            ]
            return _program(score, tuple(sorted(static)))(*arguments, **options)

        return call

    return of
