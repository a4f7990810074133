"""Isotonic regression against scikit-learn, with ties, weights and masked rows."""

import jax
import numpy as np
import pytest
from sklearn.isotonic import IsotonicRegression

from ensjax import combine

fit = jax.jit(combine.fit_isotonic)


@pytest.mark.parametrize("kind", ["random", "ties", "falling", "rising", "one"])
def test_it_is_scikit_learns(kind):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=40), rng.normal(size=40)
    weight = rng.integers(1, 4, 40).astype(float)
    if kind == "ties":
        x = np.round(x)
    elif kind in ("falling", "rising"):
        y = np.sort(y)[np.argsort(np.argsort(-x if kind == "falling" else x))]
    elif kind == "one":
        x = np.zeros(40)
    x, y = x.astype(np.float32), y.astype(np.float32)
    keep = np.arange(40) < 31
    spoiled = np.where(keep, x, np.nan), np.where(keep, y, np.nan)
    got = fit(*spoiled, np.where(keep, weight, 0))
    peer = IsotonicRegression(out_of_bounds="clip")
    peer.fit(x[keep], y[keep], sample_weight=weight[keep])
    new = np.linspace(-4, 4, 40).astype(np.float32)
    for at in (x, new):
        np.testing.assert_allclose(got(at), peer.predict(at), atol=1e-5)


@pytest.mark.slow
def test_many_functions_at_once_and_undefined_ones():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, 3, 20))
    weight = np.ones((3, 20))
    y[1, 4] = np.nan
    weight[2] = 0
    many = jax.vmap(combine.fit_isotonic)(x, y, weight)
    one = combine.fit_isotonic(x[0], y[0], weight[0])
    np.testing.assert_allclose(many.y[0], one.y, rtol=1e-6)
    assert np.isnan(many.y[1:]).all()


@pytest.mark.slow
def test_thousands_of_rows_are_fitted_in_seconds_and_as_scikit_learn_does():
    rng = np.random.default_rng(2)
    x = rng.random(20_000).astype(np.float32)
    y = (rng.random(20_000) < x**2).astype(np.float32)
    got = fit(x, y, np.ones_like(y))
    peer = IsotonicRegression(out_of_bounds="clip").fit(x, y)
    np.testing.assert_allclose(got(x), peer.predict(x), atol=1e-4)
