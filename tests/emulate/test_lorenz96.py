"""Lorenz-96: equations, integration, climate, and ensembles near a truth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from ensjax import make_mesh
from ensjax.emulate.lorenz96 import (
    Lorenz96,
    TwoScaleLorenz96,
    lorenz96_archive,
    lorenz96_tendency,
    two_scale_tendency,
)
from ensjax.emulate.trajectories import (
    advance,
    forecast,
    run_climate,
    run_trajectories,
)
from ensjax.members import member_key


def loop_tendency(x, forcing):
    n = len(x)
    return np.array(
        [(x[(k + 1) % n] - x[k - 2]) * x[k - 1] - x[k] + forcing for k in range(n)]
    )


def loop_two_scale(x, y, forcing, h, b, c):
    """Written from the equations, y as [site, fast] on one ring."""
    sites, fast = len(x), len(y) // len(x)
    n = len(y)
    dx = loop_tendency(x, forcing)
    dy = np.empty(n)
    for k in range(sites):
        dx[k] -= h * c / b * y[k * fast : (k + 1) * fast].sum()
    for j in range(n):
        advection = y[(j + 1) % n] * (y[j - 1] - y[(j + 2) % n])
        dy[j] = c * b * advection - c * y[j] + h * c / b * x[j // fast]
    return dx, dy


def test_tendencies_equal_loops_over_sites():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=7).astype("f4"), rng.normal(size=21).astype("f4")
    np.testing.assert_allclose(
        lorenz96_tendency(x, 8.0), loop_tendency(x, 8.0), rtol=1e-5, atol=1e-5
    )
    found = two_scale_tendency(
        x, y, forcing=10.0, coupling=0.7, amplitude_ratio=8.0, time_ratio=12.0
    )
    expected = loop_two_scale(x, y, 10.0, 0.7, 8.0, 12.0)
    for a, b in zip(found, expected):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_advection_and_coupling_keep_energy():
    rng = np.random.default_rng(1)
    with jax.enable_x64(True):
        x, y = jnp.asarray(rng.normal(size=9)), jnp.asarray(rng.normal(size=36))
        dx, dy = two_scale_tendency(x, y, forcing=3.0)
        change = x @ dx + y @ dy
        expected = -(x @ x) + 3.0 * x.sum() - 10.0 * (y @ y)
    np.testing.assert_allclose(change, expected, rtol=1e-12)


def test_a_state_equal_to_the_forcing_stays():
    system = Lorenz96(num_sites=8)
    np.testing.assert_array_equal(system.step(jnp.full(8, 8.0)), jnp.full(8, 8.0))


@pytest.mark.parametrize("system", [Lorenz96(), TwoScaleLorenz96(num_sites=6)])
def test_steps_are_of_fourth_order_and_right(system):
    """Against scipy's integrator; halving the step divides the error by about 16."""
    with jax.enable_x64(True):
        start = jax.tree.map(
            lambda x: np.asarray(x, "f8"), system.start(jax.random.key(0))
        )
        leaves, tree = jax.tree.flatten(start)
        sizes = np.cumsum([x.size for x in leaves])[:-1]

        def tendency(t, flat):
            parts = np.split(flat, sizes)
            if len(parts) == 1:
                return loop_tendency(parts[0], 8.0)
            return np.concatenate(loop_two_scale(*parts, 10.0, 1.0, 10.0, 10.0))

        end = 8 * system.step_length
        exact = solve_ivp(
            tendency, (0, end), np.concatenate(leaves), rtol=1e-11, atol=1e-11
        ).y[:, -1]

        def error(factor):
            finer = type(system)(
                num_sites=system.num_sites, step_length=system.step_length / factor
            )
            state = jax.tree.unflatten(tree, [jnp.asarray(x) for x in leaves])
            found = jax.tree.leaves(advance(finer, state, 8 * factor))
            return np.abs(np.concatenate(found) - exact).max()

        errors = [error(1), error(2)]
    assert errors[0] < 5e-2 and 12 < errors[0] / errors[1] < 24


@pytest.fixture(scope="module")
def archive():
    return lorenz96_archive(num_cases=24, num_members=8, lead_steps=(0, 20, 40))


def test_the_archive_is_truth_analysis_and_members(archive):
    assert archive.values.shape == (24, 8, 3, 1, 40)
    assert archive.lead.tolist() == pytest.approx([0.0, 1.0, 2.0])
    start, truth = archive.values[:, :, 0], archive.truth[:, 0]
    # Members around the analysis .3, the analysis around the truth .3; 24 x 40 values.
    analysis = start.mean(axis=1)
    np.testing.assert_allclose(start.std(axis=1, ddof=1).mean(), 0.3, rtol=0.05)
    np.testing.assert_allclose(
        np.sqrt(np.square(analysis - truth).mean()), 0.3 * np.sqrt(9 / 8), rtol=0.08
    )
    # Chaos: errors of the mean and spread grow alike, and the truth is not a member.
    spread = archive.values.var(axis=1, ddof=1).mean(axis=(0, 2, 3))
    error = np.square(archive.values.mean(axis=1) - archive.truth).mean((0, 2, 3))
    assert (np.diff(spread) > 0).all()
    np.testing.assert_allclose(np.sqrt(9 / 8 * spread / error), 1.0, atol=0.15)


def test_a_case_is_the_same_alone_and_on_other_devices(archive):
    one = make_mesh(member=1)
    alone = lorenz96_archive(
        num_cases=2, num_members=3, first_case=17, lead_steps=(0, 20), mesh=one
    )
    # Rounding of other programs has grown for 20 time units of spin-up, in which errors
    # double every 0.4: only starts of few steps are comparable, see below.
    assert alone.rows.tolist() == [17, 18]
    noise = alone.values[:, :, 0] - alone.values[:, :1, 0]
    expected = archive.values[17:19, :3, 0] - archive.values[17:19, :1, 0]
    np.testing.assert_allclose(noise, expected, atol=2e-6)
    short = dict(num_members=3, lead_steps=(0, 4), spin_up_steps=4)
    many = lorenz96_archive(num_cases=11, **short)
    few = lorenz96_archive(num_cases=2, first_case=5, mesh=one, block=1, **short)
    np.testing.assert_allclose(few.values, many.values[5:7], atol=2e-5)
    np.testing.assert_allclose(few.truth, many.truth[5:7], atol=2e-5)


def test_parts_with_other_numbers_share_no_case(archive):
    other = lorenz96_archive(
        num_cases=4, num_members=8, first_case=24, lead_steps=(0, 20, 40)
    )
    gap = np.abs(other.truth[:, None, 0] - archive.truth[None, :, 0])
    assert gap.max(axis=(-1, -2)).min() > 1


def test_the_climate_is_that_of_the_literature():
    """F = 8: mean 2.3 and standard deviation 3.6 (Lorenz and Emanuel 1998)."""
    runs = run_climate(
        Lorenz96(),
        num_trajectories=16,
        num_outputs=60,
        steps_per_output=10,
        spin_up_steps=200,
        seed=3,
    )
    assert runs.shape == (16, 60, 1, 40)
    assert abs(runs.mean() - 2.34) < 0.1 and abs(runs.std() - 3.64) < 0.1


def test_any_function_of_one_trajectory_is_mapped():
    def drawn(key, row, offset):
        return jax.random.normal(key, (2,)) + row + offset

    rows = np.arange(5.0, dtype="f4")
    found = run_trajectories(
        drawn, [4, 0, 9, 2, 7], seed=6, stacked=(rows,), shared=(jnp.float32(10),)
    )
    key = member_key(6, "sample", 9)
    expected = jax.random.normal(key, (2,)) + 12.0
    np.testing.assert_allclose(found[2], expected, rtol=1e-6)


def test_two_scales_see_the_slow_one():
    system = TwoScaleLorenz96(num_sites=6, num_fast=4)
    state = system.start(jax.random.key(1))
    seen = forecast(system, state, (0, 3, 4))
    np.testing.assert_array_equal(seen[0, 0], state[0])
    one = system.step(advance(system, state, 3))
    np.testing.assert_allclose(seen[2, 0], one[0], rtol=1e-6)
    found = lorenz96_archive(
        num_cases=3, num_members=2, system=system, lead_steps=(10,), spin_up_steps=20
    )
    assert found.values.shape == (3, 2, 1, 1, 6)
    assert found.lead[0] == pytest.approx(0.05)


def test_what_does_not_work_is_refused():
    with pytest.raises(ValueError, match="must rise"):
        lorenz96_archive(num_cases=2, lead_steps=(4, 4))
    with pytest.raises(ValueError, match="num_cases must be at least 1"):
        lorenz96_archive(num_cases=0)
    with pytest.raises(ValueError, match="member_noise"):
        lorenz96_archive(num_cases=2, member_noise=-0.1)
    with pytest.raises(ValueError, match="num_sites"):
        Lorenz96(num_sites=3)
