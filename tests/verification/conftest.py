"""Ensembles with missing values, and metrics compiled once a file."""

import functools

import jax
import numpy as np
import pytest


@functools.lru_cache(maxsize=256)
def _compiled(metric):
    return jax.jit(metric)


@pytest.fixture(scope="session")
def score():
    """`score(metric, forecast, truth, **more)`, as NumPy, by a compiled program."""

    def run(metric, forecast, truth, **more):
        return jax.tree.map(np.asarray, _compiled(metric)(forecast, truth, **more))

    return run


@pytest.fixture(scope="session")
def gaps():
    """7 members of 12 cases of 3 places, some missing: (forecast, truth, weights)."""
    rng = np.random.default_rng(3)
    forecast = rng.normal(size=(7, 12, 3)).astype(np.float32)
    truth = rng.normal(size=(12, 3)).astype(np.float32)
    forecast[rng.random(forecast.shape) < 0.2] = np.nan
    forecast[:, 4, 1] = np.nan  # nobody forecast
    forecast[1:, 5, 2] = np.nan  # a single member
    truth[2, 0] = truth[9, :] = np.nan
    weights = rng.random((12, 3)).astype(np.float32)
    weights[7] = 0.0
    return forecast, truth, weights
