"""Weights of channels: by their change in a step, and as published."""

import numpy as np
import pytest

from ensjax.train import change_weights, variable_weights


def series_of(seed=0):
    """Two channels of deviation 1; the second changes half as much in a step."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(400, 4, 8, 2))
    memory = np.array([0.0, 0.875])  # sd of a change: sqrt(2 (1 - memory))
    states = [noise[0]]
    for fresh in noise[1:]:
        states.append(memory * states[-1] + np.sqrt(1 - memory**2) * fresh)
    return np.stack(states)


def test_what_changes_little_counts_more():
    found = change_weights(series_of())
    np.testing.assert_allclose(found, (0.5**0.5, 4**0.5), rtol=0.03)
    weighted = change_weights(series_of(), weights=(0.1, 1.0))
    np.testing.assert_allclose(weighted, np.multiply(found, (0.1, 1.0)), rtol=1e-12)
    # Units do not matter, nor where the series' parts are.
    scaled = change_weights(7 * series_of().reshape(2, 200, 4, 8, 2))
    np.testing.assert_allclose(scaled, found, rtol=0.01)


def test_values_by_hand_with_areas_and_gaps():
    # Row 0 swings by 2 from -1 to 1, row 1 is always 0 and has no area.
    swing = np.array([-1.0, 1.0, -1.0, 1.0])[:, None, None, None]
    series = swing * np.array([1.0, 0.0])[:, None, None] * np.ones((1, 1, 3, 1))
    series[0, 1] = np.nan
    found = change_weights(series, area=(1.0, 0.0))
    # Changes 2, -2, 2 have mean 2 / 3 and deviation sqrt(4 - 4 / 9).
    np.testing.assert_allclose(found, [1 / np.sqrt(32 / 9)], rtol=1e-12)
    least = change_weights(series, area=(1.0, 0.0), least_change=10.0)
    np.testing.assert_allclose(least, [0.1], rtol=1e-12)


def test_what_does_not_fit_is_refused():
    series = series_of()
    with pytest.raises(ValueError, match="two times or more"):
        change_weights(series[:1])
    with pytest.raises(ValueError, match=r"area must be \[4\]"):
        change_weights(series, area=np.ones(3))
    with pytest.raises(ValueError, match="least_change must be positive"):
        change_weights(series, least_change=0.0)
    with pytest.raises(ValueError, match="channel 1 of the series is constant"):
        change_weights(series * np.array([1.0, 0.0]))
    with pytest.raises(ValueError, match="levels_hpa must be positive"):
        variable_weights([500, 0])


def test_published_weights_are_pressure_and_those_of_the_surface():
    found = variable_weights([500, 1000])
    assert found == (5 * (0.5,) + 5 * (1.0,) + 4 * (0.1,) + (1.0, 0.1, 0.1))
    assert len(variable_weights(range(50, 1_351, 100)[:13])) == 72
