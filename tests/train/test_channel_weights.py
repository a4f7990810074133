"""Weights of channels: by their change in a step, and as published."""

import numpy as np
import pytest

from ensjax import verification
from ensjax.ops.sphere import SphericalGrid
from ensjax.train import area_channel_weights, change_weights, variable_weights


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


@pytest.mark.parametrize("channels", [None, (0.5, 1.0, 4.0)])
def test_weights_of_area_and_channel_have_mean_1(channels):
    """A constant field has its own mean; a cap counts by its area, not its places."""
    grid = SphericalGrid(13, 24, "poles")
    found = np.array(area_channel_weights(grid.quadrature(), channels))
    assert found.shape == (13, 1, 1 if channels is None else 3)
    assert found.mean() == pytest.approx(1, rel=1e-12)
    field = np.full((13, 24, 3), 7.0)
    assert (found * field).mean() == pytest.approx(7, rel=1e-12)
    if channels is not None:
        np.testing.assert_allclose(found[:, :, 2], 8 * found[:, :, 0], rtol=1e-12)
    # The mean of sin(latitude)^2 over the sphere is 1 / 3; over the grid it is more.
    square = np.sin(np.radians(grid.latitudes())) ** 2
    assert (found[..., 0] * square[:, None]).sum() / found[..., 0].sum() == (
        pytest.approx(1 / 3, rel=1e-6)
    )
    assert square.mean() > 0.5


def test_rows_of_cells_weigh_by_their_area():
    """A grid without one pole, as FuXi-ENS has it: no row counts nothing."""
    rows = np.linspace(90.0, -89.75, 720)
    found = np.array(area_channel_weights(verification.cell_weights(rows)))[:, 0, 0]
    cap = 1 - np.sin(np.radians(89.875))
    band = 2 * np.sin(np.radians(0.125))  # around the equator
    np.testing.assert_allclose(found[0] / found[360], cap / band, rtol=1e-6)


@pytest.mark.parametrize(
    "area, channels, words",
    [
        ([[1.0, 1.0]], None, r"area must be .* shape \(1, 2\)"),
        ([1.0, -1.0], None, "area must be one number of 0 or more"),
        ([0.0, 0.0], None, "not all of them 0"),
        ([1.0], [-0.5, 1.0], "channel_weights must be .* from -0.5 on"),
    ],
)
def test_areas_that_do_not_fit_are_refused(area, channels, words):
    with pytest.raises(ValueError, match=words):
        area_channel_weights(area, channels)
