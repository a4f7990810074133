"""Means along great circles: SLERP of two members, and of more.

A mean of weights is shorter than the weights; these keep the length. Which entries
form one vector is the `scope` (see `vectors.inner`).
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.weight_space.ensembles import takes_ensembles
from ensjax.weight_space.leaves import check_weights
from ensjax.weight_space.vectors import (
    Gram,
    check_scope,
    check_two,
    inner,
    lengths,
    map_together,
    rows_of,
    weighted_sum,
    without_absent,
)

# In float32 the angle between vectors of a larger cosine is rounding.
PARALLEL = 1.0 - 1e-6


def _by_t(arguments, members):
    del members
    t = jnp.asarray(arguments.get("t", 0.5), jnp.float32)
    return jnp.stack([1.0 - t, t])


@takes_ensembles(_by_t)
def slerp(
    stacked: Any,
    *,
    t: Any = 0.5,
    scope: str = "leaf",
    parallel: float = 0.9995,
    keep: int = 0,
) -> Any:
    """The point at `t` of the great circle from member 0 to member 1.

        x(t) = sin((1 - t) O) / sin(O) x_0 + sin(t O) / sin(O) x_1
        cos(O) = x_0 . x_1 / (|x_0| |x_1|)

    Args:
        stacked: leaves `[2, ...]` or an `Ensemble`.
        t: from 0 (member 0) to 1 (member 1); may be traced. 0.5 as in mergekit's
            examples, which has no default.
        scope: "leaf" (one angle for each leaf, as in mergekit), "global" (one for the
            whole model), "output" or "input".
        parallel: where `abs(cos(O))` is larger, the line is taken. The value is
            mergekit's; above 1 - 1e-6 angles are rounding, and it is taken too. So it
            is where a vector is shorter than 1e-8 and has no direction; mergekit takes
            a right angle there.
        keep: the member whose leaves are taken where they are not floating.

    Returns:
        Leaves `[...]`; finite gradients also for parallel and zero vectors. The ends
        are the members, whatever the other one holds.

    Raises:
        ValueError: if there are not two members, `t` is no number, or the scope is
            unknown.

    Source: Shoemake 1985, "Animating rotation with quaternion curves"; the weights are
    not normalised, as in mergekit.
    """
    check_two(stacked, "slerp")
    check_scope(scope)
    _check_number(t)

    def between(_, rows):
        ends = [x[0] for x in rows], [x[1] for x in rows]
        return on_circle(*ends, jnp.asarray(t, jnp.float32), scope, parallel)

    return map_together(between, stacked, keep=keep)


@takes_ensembles(_by_t)
def nuslerp(
    stacked: Any, base: Any = None, *, t: Any = 0.5, scope: str = "leaf", keep: int = 0
) -> Any:
    """SLERP of two members or, with a base, of what they have added to it.

    Args:
        stacked: leaves `[2, ...]` or an `Ensemble`.
        base: the origin of the vectors, one member: a tree, module or `Ensemble` of
            one. Zero by default.
        t: `w_1 / (w_0 + w_1)` of mergekit's weights; may be traced.
        scope: "leaf" (mergekit's `nuslerp_flatten`, its default), "output" or "input"
            (vectors of one output or one input unit: mergekit's two row-wise forms,
            whose matrices are transposed), or "global".
        keep: the member whose leaves are taken where they are not floating, where there
            is no base.

    Returns:
        Leaves `[...]`. Only vectors that are parallel to rounding (1e-6 of the cosine),
        or shorter than 1e-8, are mixed along the line, unlike in `slerp`.

    Raises:
        ValueError: if there are not two members, `t` is no number, or the scope is
            unknown.

    Source: mergekit, `nuslerp`.
    """
    check_two(stacked, "nuslerp")
    check_scope(scope)
    _check_number(t)

    def between(_, rows, origin=None):
        origin = [0.0] * len(rows) if origin is None else origin
        ends = [[x[i] - o for x, o in zip(rows, origin)] for i in (0, 1)]
        moved = on_circle(*ends, jnp.asarray(t, jnp.float32), scope, PARALLEL)
        return [o + x for o, x in zip(origin, moved)]

    return map_together(between, stacked, base, keep=keep)


def _check_number(t):
    if np.ndim(t):
        raise ValueError(
            f"t must be a number; got shape {np.shape(t)}. A path is"
            " jax.vmap(lambda t: slerp(stacked, t=t))(ts)."
        )


def on_circle(
    first: Sequence[jax.Array],
    second: Sequence[jax.Array],
    t: jax.Array,
    scope: str | Gram,
    parallel: float,
) -> list[jax.Array]:
    """The circle from one list of leaves `[...]` to another, at `t`; see `slerp`."""
    # An end has nothing of the other end, also where that is not finite.
    first, second = (
        [jnp.where((t == away) & ~jnp.isfinite(x), y, x) for x, y in zip(ends, others)]
        for away, ends, others in ((1.0, first, second), (0.0, second, first))
    )
    products = inner(first, second, scope, lead=0)
    (long0, has0), (long1, has1) = (lengths(x, scope, lead=0) for x in (first, second))
    moved = []
    for x0, x1, product, n0, n1, h0, h1 in zip(
        first, second, products, long0, long1, has0, has1
    ):
        cosine = product / (n0 * n1)
        on_line = (jnp.abs(cosine) > jnp.minimum(parallel, PARALLEL)) | ~h0 | ~h1
        on_line |= jnp.isnan(cosine) & ((t == 0.0) | (t == 1.0))
        # Both branches are computed: a right angle stands in where the line is taken.
        angle = jnp.arccos(jnp.where(on_line, 0.0, cosine))
        sine = jnp.sin(angle)
        w0 = jnp.where(on_line, 1.0 - t, jnp.sin((1.0 - t) * angle) / sine)
        w1 = jnp.where(on_line, t, jnp.sin(t * angle) / sine)
        moved.append(w0 * x0 + w1 * x1)
    return moved


@takes_ensembles()
def multislerp(
    stacked: Any,
    base: Any = None,
    *,
    weights: Any = None,
    scope: str = "leaf",
    keep: int = 0,
) -> Any:
    """The mean direction of the members, with their mean length.

        sum_m w_m |x_m| * u / |u|,  u = sum_m w_m x_m / |x_m|,  sum_m w_m = 1

    mergekit projects the directions onto the tangent space at `u`, averages and goes
    back. Its projection is orthogonal, so that the mean of the projections is zero and
    that step changes nothing: this is what it computes. For the mean on the sphere
    there is `karcher_mean`.

    Args:
        stacked: leaves `[member, ...]` or an `Ensemble`.
        base: the origin of the vectors, one member: a tree, module or `Ensemble` of
            one. Zero by default.
        weights: `[member]`, at least 0; equal by default. A weight of 0 removes a
            member, also one that is not finite.
        scope: "leaf" (as in mergekit), "global", "output" or "input".
        keep: the member whose leaves are taken where they are not floating, where there
            is no base.

    Returns:
        Leaves `[...]`. Where directions cancel (`|u|` below 1e-8) it is the weighted
        mean of the vectors; mergekit does this for two and refuses more.

    Raises:
        ValueError: if there is not one weight for each member, or the scope is unknown.

    Source: mergekit, `multislerp`.
    """
    check_scope(scope)
    weights = check_weights(weights, stacked)
    weights = weights / jnp.sum(weights)

    return _from_origin(
        lambda rows: mean_direction(rows, weights, scope), stacked, base, keep
    )


def mean_direction(
    rows: Sequence[jax.Array], weights: jax.Array, scope: str | Gram
) -> list[jax.Array]:
    """`multislerp` of leaves `[member, ...]` by weights `[member]` of sum 1."""
    rows = [without_absent(x, weights) for x in rows]
    units, roots, _ = _directions(rows, scope)
    sums = [weighted_sum(u, weights) for u in units]
    norms, has_direction = lengths(sums, scope, lead=0)
    return [
        jnp.where(h, s / n * weighted_sum(r, weights), weighted_sum(x, weights))
        for x, s, n, h, r in zip(rows, sums, norms, has_direction, roots)
    ]


@takes_ensembles()
def karcher_mean(
    stacked: Any,
    base: Any = None,
    *,
    weights: Any = None,
    scope: str = "leaf",
    num_iterations: int = 10,
    tolerance: float = 1e-5,
    keep: int = 0,
) -> Any:
    """The mean on the sphere (least squared angles), with the members' mean length.

    From the mean direction `u`, repeats `u <- exp_u(sum_m w_m log_u(x_m / |x_m|))`
    until the tangent is shorter than `tolerance`.

    Args:
        stacked: leaves `[member, ...]` or an `Ensemble`.
        base: the origin of the vectors, one member: a tree, module or `Ensemble` of
            one. Zero by default.
        weights: `[member]`, at least 0; equal by default. A weight of 0 removes a
            member, also one that is not finite.
        scope: "leaf" (as in mergekit), "global", "output" or "input".
        num_iterations: mergekit's 10. All are computed; a vector stands still once its
            tangent is short.
        tolerance: an angle; mergekit's 1e-5.
        keep: the member whose leaves are taken where they are not floating, where there
            is no base.

    Returns:
        Leaves `[...]`. Vectors shorter than 1e-8 have no say in the direction. Where
        directions cancel, the iteration starts at the first member that has one.

    Raises:
        ValueError: if there is not one weight for each member, or the scope is unknown.

    Source: Karcher 1977; mergekit, `karcher` (equal weights).
    """
    check_scope(scope)
    weights = check_weights(weights, stacked)
    weights = weights / jnp.sum(weights)

    def mean(rows):
        return sphere_mean(rows, weights, scope, num_iterations, tolerance)

    return _from_origin(mean, stacked, base, keep)


def sphere_mean(
    rows: Sequence[jax.Array],
    weights: jax.Array,
    scope: str | Gram,
    num_iterations: int,
    tolerance: float,
) -> list[jax.Array]:
    """`karcher_mean` of leaves `[member, ...]` by weights `[member]` of sum 1."""
    rows = [without_absent(x, weights) for x in rows]
    units, roots, has_direction = _directions(rows, scope)
    counted = [rows_of(weights, h) * h for h in has_direction]
    sums = [jnp.sum(c, axis=0, keepdims=True) for c in counted]
    counted = [c / jnp.where(s > 0, s, 1.0) for c, s in zip(counted, sums)]
    starts = [jnp.sum(c * u, axis=0) for c, u in zip(counted, units)]
    norms, is_start = lengths(starts, scope, lead=0)
    firsts = [_first_direction(u, h) for u, h in zip(units, has_direction)]
    starts = [
        jnp.where(h & (n >= tolerance), s / n, f)
        for s, n, h, f in zip(starts, norms, is_start, firsts)
    ]

    def step(at, _):
        return _sphere_step(at, units, counted, scope, tolerance), None

    means, _ = jax.lax.scan(step, starts, length=num_iterations)
    return [u * weighted_sum(r, weights) for u, r in zip(means, roots)]


def _sphere_step(at, units, weights, scope, tolerance):
    """One step towards the mean on the sphere, from unit vectors `at`, leaves `[...]`.

    The angle of x from u is atan2(|x - (x.u) u|, x.u), which keeps its accuracy where
    the arc cosine loses it.
    """
    here = [u[None] for u in at]
    cosines = inner(units, here, scope, lead=1)
    aside = [x - c * u for x, c, u in zip(units, cosines, here)]
    sines, _ = lengths(aside, scope, lead=1)
    tangents = [
        jnp.sum(
            jnp.where((s >= tolerance) & (w > 0), w * jnp.arctan2(s, c) / s * a, 0.0),
            axis=0,
        )
        for s, c, a, w in zip(sines, cosines, aside, weights)
    ]
    steps, moves = lengths(tangents, scope, lead=0)
    moved = [
        jnp.where(m & (n >= tolerance), jnp.cos(n) * u + jnp.sin(n) * t / n, u)
        for u, t, n, m in zip(at, tangents, steps, moves)
    ]
    norms, _ = lengths(moved, scope, lead=0)
    return [x / n for x, n in zip(moved, norms)]


def _directions(rows, scope):
    """Unit vectors `[member, ...]` (0 for those without), lengths and who has one."""
    norms, has_direction = lengths(rows, scope, lead=1)
    units = [jnp.where(h, x / n, 0.0) for x, n, h in zip(rows, norms, has_direction)]
    roots = [jnp.where(h, n, 0.0) for n, h in zip(norms, has_direction)]
    return units, roots, has_direction


def _first_direction(units, has_direction):
    """Of `[member, ...]` the first row, at each place, that has a direction."""
    numbers = rows_of(jnp.arange(units.shape[0]), has_direction)
    # The least number, not a running count, which would gather all members.
    numbers = jnp.where(has_direction, numbers, units.shape[0])
    is_first = has_direction & (numbers == jnp.min(numbers, axis=0, keepdims=True))
    return jnp.sum(jnp.where(is_first, units, 0.0), axis=0)


def _from_origin(mean, stacked, base, keep):
    """A mean of lists of leaves, taken of the differences to a base if there is one."""

    def merged(_, rows, origin=None):
        if origin is None:
            return mean(rows)
        moved = mean([x - o[None] for x, o in zip(rows, origin)])
        return [o + x for o, x in zip(origin, moved)]

    return map_together(merged, stacked, base, keep=keep)
