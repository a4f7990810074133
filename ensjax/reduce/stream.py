"""Several reductions over members that never exist together, in one program."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from ensjax.reduce.crps import CRPS, Crps
from ensjax.reduce.devices import Family, FoldBlocks, run_fold
from ensjax.reduce.exceedances import EXCEEDANCES, Exceedances
from ensjax.reduce.extreme_members import EXTREME_MEMBERS, ExtremeMembers
from ensjax.reduce.extremes import EXTREMES, Extremes
from ensjax.reduce.moments import MOMENTS, Moments
from ensjax.reduce.quantiles import QUANTILES, Quantiles
from ensjax.reduce.ranks import RANKS, Ranks

_FAMILIES = {
    Moments: MOMENTS,
    Extremes: EXTREMES,
    ExtremeMembers: EXTREME_MEMBERS,
    Exceedances: EXCEEDANCES,
    Ranks: RANKS,
    Quantiles: QUANTILES,
    Crps: CRPS,
}


def fold_members(
    fn: Callable[..., Any],
    stacked: Any,
    states: dict[str, Any],
    *,
    block: int,
    shared: tuple[Any, ...] = (),
    mask: jax.Array | None = None,
    mesh: Mesh | None = None,
) -> dict[str, Any]:
    """`states` with `fn` of every member folded in, `block` members at a time.

    One compiled program: each device runs `fn` on a block of its members, folds the
    values into all states, forgets them, and goes on; then the devices' states are
    merged. Memory depends on the block and on the states, not on the number of members.

    Args:
        fn: of one member, `fn(row of stacked, *shared) -> values`, any pytree of
            arrays. It must be hashable; define it once and reuse it, since every new
            function object compiles again.
        stacked: what tells members apart, leaves `[member, ...]`: their ids, keys, or
            parameters.
        states: named states of any of the reductions, such as `init_moments(like)`,
            made for the values of one member, or of a kind whose attribute `family`
            tells how (`verification.member_states`). Empty, or of an earlier call.
        block: members of a device whose values exist together. How many of them run at
            once is the fixed rule of `blocks.auto_block`.
        shared: more arguments of `fn`, whole on every device.
        mask: booleans `[member]`; members that are False are left out, also where they
            are not finite. All count by default.
        mesh: from `make_mesh`; all devices by default.

    Returns:
        The new states by name. Integer counts are the same for every block, order and
        mesh; sums to rounding; quantiles and CRPS within their bound.

    Raises:
        ValueError: if shapes do not fit, or the block is not positive.
        TypeError: if a state is of no known reduction; names it.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from ensjax import members, reduce
        >>> def forecast(member_id, mean):
        ...     key = members.member_key(0, "noise", member_id)
        ...     return mean + jax.random.normal(key, mean.shape)
        >>> mean = jnp.zeros(3)
        >>> states = {
        ...     "moments": reduce.init_moments(mean),
        ...     "crps": reduce.init_crps(jnp.ones(3), max_members=10_000),
        ... }
        >>> states = reduce.fold_members(
        ...     forecast, jnp.arange(10_000), states, block=100, shared=(mean,)
        ... )
        >>> reduce.finish_crps(states["crps"]).shape
        (3,)
    """
    families = tuple((name, family_of(name, state)) for name, state in states.items())
    if isinstance(block, bool) or not isinstance(block, int):
        raise ValueError(f"block must be a positive integer; got {block!r}.")
    job = FoldBlocks(fn, families, block)
    return run_fold(job, states, stacked, mask, tuple(shared), mesh)


def family_of(name: str, state: Any) -> Family:
    """The functions of the kind of a state; `TypeError` where it is none."""
    family = _FAMILIES.get(type(state), getattr(state, "family", None))
    if not isinstance(family, Family):
        known = ", ".join(kind.__name__ for kind in _FAMILIES)
        raise TypeError(
            f"states[{name!r}] is a {type(state).__name__}, not the state of a"
            f" reduction; there are {known}, made by init_moments and so on."
        )
    return family
