"""Members that never exist together: one program, memory that M does not change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ensjax import reduce
from ensjax.mapping import mesh_program
from ensjax.members import member_key
from ensjax.mesh import make_mesh
from ensjax.reduce.devices import FoldBlocks
from ensjax.reduce.stream import _FAMILIES

SHAPE = (4, 3)
OBSERVED = np.linspace(-1, 1, 12, dtype=np.float32).reshape(SHAPE)
THRESHOLDS = np.array([0.0, 1.0], np.float32)


def forecast(member_id, scale):
    """One member, from its id alone."""
    noise = jax.random.normal(member_key(3, "noise", member_id), SHAPE)
    return scale * noise.round(2)


def empty_states(max_members):
    like = jax.ShapeDtypeStruct(SHAPE, jnp.float32)
    return {
        "moments": reduce.init_moments(like),
        "extremes": reduce.init_extremes(like),
        "exceedances": reduce.init_exceedances(like, THRESHOLDS),
        "ranks": reduce.init_ranks(OBSERVED),
        "quantiles": reduce.init_quantiles(like, max_members=max_members),
        "crps": reduce.init_crps(OBSERVED, max_members=max_members),
    }


def fold(ids, states, *, block, mask=None, mesh):
    return reduce.fold_members(
        forecast,
        ids,
        states,
        block=block,
        shared=(np.float32(2.0),),
        mask=mask,
        mesh=make_mesh(member=mesh),
    )


def expect(states, kept):
    """Counts and extremes exactly; sums of floats to rounding, in any order."""
    assert [int(state.count) for state in states.values()] == [len(kept)] * 6
    equal, kept64 = np.testing.assert_array_equal, kept.astype(np.float64)
    equal(states["ranks"].below, (kept < OBSERVED).sum(0))
    equal(states["ranks"].ties, (kept == OBSERVED).sum(0))
    above = kept[:, None] > THRESHOLDS[:, None, None]
    equal(states["exceedances"].above, above.sum(0))
    equal(states["extremes"].minimum, kept.min(0))
    equal(states["extremes"].maximum, kept.max(0))
    finished = jax.jit(
        lambda states: (
            *reduce.finish_moments(states["moments"]),
            reduce.finish_quantiles(states["quantiles"], [0.1, 0.5]),
            reduce.finish_crps(states["crps"]),
        )
    )(states)
    pairs = np.abs(kept64[:, None] - kept64).mean((0, 1)) / 2
    wanted = (
        kept64.mean(0),
        kept64.var(0),
        np.quantile(kept64, [0.1, 0.5], axis=0),
        np.abs(kept64 - OBSERVED).mean(0) - pairs,
    )
    for got, want in zip(finished, wanted, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=5e-6)


@pytest.fixture(scope="module")
def members():
    """The values of 101 members, all at once."""
    ids = jnp.arange(101)
    return np.asarray(jax.jit(jax.vmap(lambda i: forecast(i, jnp.float32(2.0))))(ids))


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "block, mesh, order",
    [
        (5, 8, -1),
        pytest.param(7, 1, -1, marks=SLOW),
        pytest.param(101, 1, 1, marks=SLOW),
        pytest.param(200, 2, -1, marks=SLOW),
        pytest.param(1, 8, 1, marks=SLOW),
    ],
)
def test_any_block_order_and_mesh_gives_what_all_members_give(
    members, block, mesh, order
):
    states = fold(jnp.arange(101)[::order], empty_states(101), block=block, mesh=mesh)
    expect(states, members)


@pytest.mark.slow
def test_members_may_come_in_several_calls_and_be_masked(members):
    mask = np.arange(101) % 3 != 0
    first = fold(jnp.arange(60), empty_states(101), block=10, mask=mask[:60], mesh=2)
    states = fold(jnp.arange(60, 101), first, block=10, mask=mask[60:], mesh=2)
    expect(states, members[mask])


def lowered(members, block, devices, states):
    families = tuple((name, _FAMILIES[type(state)]) for name, state in states.items())
    program = mesh_program(
        FoldBlocks(forecast, families, block), make_mesh(member=devices)
    )
    ids = jax.ShapeDtypeStruct((members,), jnp.int32)
    scalar = jax.ShapeDtypeStruct((), jnp.float32)
    count = jax.ShapeDtypeStruct((), jnp.int32)
    return program.lower(states, ids, None, count, (scalar,))


@pytest.mark.parametrize("devices", [1, pytest.param(8, marks=SLOW)])
def test_memory_does_not_depend_on_the_number_of_members(devices):
    """States for 10,000 members; 1,000 and 10,000 in blocks of 25: equal within 1 %."""
    states = empty_states(10_000)
    sizes = []
    for members in (1_000, 10_000):
        compiled = lowered(members, 25, devices, states).compile(
            {"xla_backend_optimization_level": 0}
        )
        sizes.append(compiled.memory_analysis().temp_size_in_bytes)
    assert abs(sizes[1] / sizes[0] - 1) < 0.01, sizes
    if devices == 1:
        assert sizes[1] < 10_000 * OBSERVED.nbytes / 2, "all values would be there"


def test_what_cannot_be_folded_is_named():
    ids = jnp.arange(4)
    with pytest.raises(TypeError, match=r"states\['mean'\] is a .*Moments, Extremes"):
        reduce.fold_members(forecast, ids, {"mean": jnp.zeros(2)}, block=1)
    states = {"extremes": reduce.init_extremes(jnp.zeros(2))}
    with pytest.raises(ValueError, match="block must be at least 1; got 0"):
        fold(ids, states, block=0, mesh=1)
    with pytest.raises(ValueError, match=r"members of shape \(2,\)"):
        fold(ids, states, block=2, mesh=1)
    with pytest.raises(ValueError, match=r"mask must be \[member\] = \(4,\)"):
        fold(ids, states, block=2, mask=np.ones(3, bool), mesh=1)
