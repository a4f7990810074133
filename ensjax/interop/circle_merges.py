"""Merges along great circles, of members that are never in memory together.

SLERP, its relatives and model stock are sums of the members; the coefficients depend on
inner products alone. Those are summed first, in float64, and the functions of
`weight_space` are given coefficients in place of weights (`vectors.Gram`).
"""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.interop.merge_plans import MergePlan
from ensjax.interop.tensor_blocks import padded
from ensjax.weight_space.model_stock import shrunken_mean
from ensjax.weight_space.spherical import (
    PARALLEL,
    mean_direction,
    on_circle,
    sphere_mean,
)
from ensjax.weight_space.vectors import Gram, weighted_sum

CIRCLE_METHODS = ("slerp", "nuslerp", "multislerp", "karcher_mean", "model_stock")


def reads_of_circles(plan: MergePlan, name: str) -> int:
    """How often a tensor is read: once if each block holds whole vectors."""
    units = plan.units(name, plan.scope)
    return 1 if units.outer == 1 and units.count > 1 else 2


def prepare_circles(plan: MergePlan) -> dict[str, Any]:
    """Inner products over the whole model, where the scope is global."""
    if plan.scope != "global":
        return {}
    return {"products": sum(_products(plan, name) for name in plan.specs)}


def merged_circles(
    plan: MergePlan, known: dict[str, Any], name: str
) -> Iterator[np.ndarray]:
    """One tensor's merged entries in order, `[entry]` in float32, block by block."""
    blocks, spec = plan.blocks, plan.specs[name]
    units = plan.units(name, plan.scope)
    if units.count == 1:
        products = known["products"] if known else _products(plan, name)
        coefficients = _coefficients(plan, name, products[None])[:, 0]
        for start, stop in blocks.ranges(spec):
            rows = padded(blocks.rows(name, start, stop), blocks.size)
            origin = blocks.origin(name, start, stop)
            origin = None if origin is None else padded(origin, blocks.size)
            yield np.asarray(_sum(rows, origin, coefficients))[: stop - start]
    elif units.outer == 1:
        for start, stop in blocks.ranges(spec, units.inner):
            rows, origin = _read(plan, name, start, stop)
            tau = rows.reshape(len(rows), -1, units.inner)
            own = _coefficients(plan, name, _gram(tau.swapaxes(0, 1)))
            yield _spread(tau, own[:, :, None], origin)
    else:
        members = plan.num_members
        products = np.zeros((units.count, members, members))
        for start, stop in blocks.ranges(spec, units.count * units.inner):
            tau = _by_unit(_read(plan, name, start, stop)[0], units)
            tau = tau.transpose(2, 0, 1, 3).reshape(units.count, members, -1)
            products += _gram(tau)
        own = _coefficients(plan, name, products)[:, None, :, None]
        for start, stop in blocks.ranges(spec, units.count * units.inner):
            rows, origin = _read(plan, name, start, stop)
            yield _spread(_by_unit(rows, units), own, origin)


def _read(plan, name, start, stop):
    """What members have added, `[member, entry]`, and the base, 0 without one."""
    rows = plan.blocks.rows(name, start, stop)
    origin = plan.blocks.origin(name, start, stop)
    if origin is None:
        return rows, np.zeros(stop - start, np.float32)
    rows -= origin
    return rows, origin


def _by_unit(rows, units):
    return rows.reshape(len(rows), -1, units.count, units.inner)


def _spread(tau, coefficients, origin):
    """The sum of what members have added, by coefficients that broadcast with it."""
    own = coefficients.astype(np.float32)
    # A coefficient of 0 removes a member, also one that is not finite.
    total = np.sum(np.where((own == 0) & ~np.isfinite(tau), 0, tau) * own, axis=0)
    return origin + total.reshape(-1)


def _products(plan, name):
    """Inner products of the members' vectors in one tensor, `[member, member]`."""
    total = np.zeros((plan.num_members, plan.num_members))
    for start, stop in plan.blocks.ranges(plan.specs[name]):
        total += _gram(plan.blocks.moved(name, start, stop))
    return total


def _gram(rows):
    """Inner products `[..., member, member]` of `[..., member, entry]`, in float64."""
    rows = rows.astype(np.float64)
    return rows @ rows.swapaxes(-1, -2)


class _Knobs(NamedTuple):
    """What a program is made for."""

    parallel: float
    num_iterations: int
    tolerance: float


def _coefficients(plan: MergePlan, name: str, products: np.ndarray) -> np.ndarray:
    """`[member, unit]`, of inner products `[unit, member, member]`."""
    knobs = plan.knobs[name]
    fixed = _Knobs(
        float(knobs.get("parallel", PARALLEL)),
        int(knobs.get("num_iterations", 0)),
        float(knobs.get("tolerance", 0.0)),
    )
    weights = np.asarray(plan.weights(name), np.float64)
    # Few programs: the number of units is made a power of two.
    units = len(products)
    more = (1 << (units - 1).bit_length()) - units
    products = np.pad(products, ((0, more), (0, 0), (0, 0)))
    t = np.float64(knobs.get("t", 0.0))
    with jax.enable_x64(True):
        found = np.asarray(_solve(plan.method, fixed, products, weights, t))
    return found[:units].T


@functools.partial(jax.jit, static_argnums=(0, 1))
def _solve(method, fixed, products, weights, t):
    members = products.shape[-1]
    # Each member in its own coefficients: 1 of itself, [member, unit, member].
    rows = jnp.broadcast_to(
        jnp.eye(members)[:, None], (members, products.shape[0], members)
    )
    gram = Gram(products)
    weights = weights / jnp.sum(weights)
    if method in ("slerp", "nuslerp"):
        (found,) = on_circle([rows[0]], [rows[1]], t, gram, fixed.parallel)
    elif method == "multislerp":
        (found,) = mean_direction([rows], weights, gram)
    elif method == "karcher_mean":
        counts = fixed.num_iterations, fixed.tolerance
        (found,) = sphere_mean([rows], weights, gram, *counts)
    else:
        (found,) = shrunken_mean([rows], gram)
    return found


@jax.jit
def _sum(rows, origin, coefficients):
    coefficients = jnp.asarray(coefficients, jnp.float32)
    if origin is None:
        return weighted_sum(rows, coefficients)
    return origin + weighted_sum(rows - origin[None], coefficients)
