"""Metrics of many cases that are split over devices, a block of them at a time."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ensjax.mapping import mesh_program
from ensjax.mesh import check_mesh, default_mesh
from ensjax.scores.rows import floating
from ensjax.verification.metric import Metric, element_weights
from ensjax.verification.sums import Sums, merge_sums, psum_sums

_DEVICES = ("member", "data", "model")  # cases are split over all of a mesh


def sum_cases(
    metrics: dict[str, Metric],
    forecast: jax.Array,
    truth: jax.Array,
    *,
    weights: jax.Array | None = None,
    member_mask: jax.Array | None = None,
    reference: Any = None,
    block: int | None = None,
    mesh: Mesh | None = None,
) -> dict[str, Sums]:
    """The sums of several metrics over all cases, in one compiled program.

    Each device sums its own cases, `block` at a time, and only sums travel. The cases
    need not divide the devices.

    Args:
        metrics: by name; all average over the cases (axis 0).
        forecast: `[member, case, ...]`.
        truth: `[case, ...]`.
        weights: non-negative, `[case]`, or of a shape that broadcasts to the elements
            of all metrics (`[1, lat, 1]`).
        member_mask: booleans `[member]` or `[member, case, ...]`.
        reference: of the metrics, a dict of arrays `[case, ...]`.
        block: cases of a device whose statistics exist together; None: all.
        mesh: from `make_mesh`; all devices by default.

    Returns:
        By name, whole on every device; the same on every mesh but for rounding.

    Raises:
        ValueError: if a shape does not fit, a metric keeps the cases apart, or the
            block is not positive.
    """
    mesh = default_mesh() if mesh is None else mesh
    check_mesh(mesh)
    forecast, truth = floating(forecast), floating(truth)
    if truth.ndim < 1 or forecast.shape[1:] != truth.shape:
        raise ValueError(
            "forecast must be [member, case, ...] and truth [case, ...]; got shapes"
            f" {forecast.shape} and {truth.shape}."
        )
    if block is not None and (isinstance(block, bool) or block < 1):
        raise ValueError(f"block must be a positive integer or None; got {block!r}.")
    for name, metric in metrics.items():
        if 0 not in metric._axes(truth.ndim - metric.vector_axes):
            raise ValueError(
                f"metrics[{name!r}] keeps cases apart (axis {metric.axis}); over"
                " devices they are summed."
            )
    cases = truth.shape[0]
    for path, leaf in jax.tree.leaves_with_path(reference):
        if jnp.shape(leaf)[:1] != (cases,):
            raise ValueError(
                f"reference{jax.tree_util.keystr(path)} must be [case, ...] with"
                f" {cases} cases; got shape {jnp.shape(leaf)}."
            )
    if reference is None or isinstance(reference, dict):
        # Numbers of the whole: every part of them would draw the same ranks for ties.
        reference = {"case_ids": jnp.arange(cases)} | (reference or {})
    mask = None if member_mask is None else jnp.asarray(member_mask)
    whole_mask = mask if mask is not None and mask.ndim == 1 else None
    own_mask = mask if whole_mask is None else None
    job = _SumCases(tuple(metrics.items()), block)
    weights = _by_case(weights, truth)
    return mesh_program(job, mesh)(
        forecast, truth, weights, own_mask, whole_mask, reference
    )


def _by_case(weights, truth):
    """Weights `[case, ...]`, so that padded cases can have none."""
    cases = truth.shape[0]
    weights = jnp.ones(cases) if weights is None else jnp.asarray(weights)
    weights = weights.astype(jnp.float32)
    if weights.ndim < 1 or weights.shape[0] not in (1, cases):
        raise ValueError(
            f"weights must be [case] = ({cases},) or [1 or case, ...]; got shape"
            f" {weights.shape}."
        )
    return jnp.broadcast_to(weights, (cases, *weights.shape[1:]))


@dataclasses.dataclass(frozen=True)
class _SumCases:
    metrics: tuple[tuple[str, Metric], ...]
    block: int | None
    donate: tuple[int, ...] = ()

    def in_specs(self):
        cases = jax.P(_DEVICES)
        by_member = jax.P(None, _DEVICES)
        return by_member, cases, cases, by_member, jax.P(), cases

    def out_specs(self):
        return jax.P()

    def check(self, mesh, *args):
        del mesh, args

    def prepare(self, mesh, forecast, truth, weights, mask, whole_mask, reference):
        devices = math.prod(mesh.shape[name] for name in _DEVICES)
        cases = truth.shape[0]
        unit = devices * (self.block or 1)
        extra = math.ceil(cases / unit) * unit - cases

        def pad(x, axis, value=None):
            """Copies of the first case, or a value."""
            first = jax.lax.slice_in_dim(x, 0, 1, axis=axis)
            shape = [extra if i == axis else n for i, n in enumerate(x.shape)]
            tail = jnp.broadcast_to(first, shape)
            tail = tail if value is None else jnp.full_like(tail, value)
            return jnp.concatenate([x, tail], axis=axis)

        return (
            pad(forecast, 1),
            pad(truth, 0),
            pad(weights, 0, 0.0),
            None if mask is None else pad(mask, 1),
            whole_mask,
            jax.tree.map(lambda x: pad(jnp.asarray(x), 0), reference),
        )

    def local(self, forecast, truth, weights, mask, whole_mask, reference):
        cases = truth.shape[0]
        block = cases if self.block is None else self.block

        def sums(forecast, truth, weights, mask, reference):
            return {
                name: metric.sums(
                    forecast,
                    truth,
                    weights=_weights_of(metric, truth, weights),
                    member_mask=whole_mask if mask is None else mask,
                    reference=reference,
                )
                for name, metric in self.metrics
            }

        def split(x, axis):
            """`[block number, ...]`, with the cases of a block where they were."""
            shape = (*x.shape[:axis], cases // block, block, *x.shape[axis + 1 :])
            return jnp.moveaxis(x.reshape(shape), axis, 0)

        if block == cases:
            found = sums(forecast, truth, weights, mask, reference)
        else:
            parts = (
                split(forecast, 1),
                split(truth, 0),
                split(weights, 0),
                None if mask is None else split(mask, 1),
                jax.tree.map(lambda x: split(x, 0), reference),
            )
            first = jax.tree.map(lambda x: x[0], parts)
            shapes = jax.eval_shape(sums, *first)
            empty = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

            def step(state, part):
                new = sums(*part)
                return {name: merge_sums(state[name], new[name]) for name in new}, None

            found, _ = jax.lax.scan(step, empty, parts)
        return {name: psum_sums(found[name], _DEVICES) for name in found}

    def finish(self, outputs, *args):
        return outputs


def _weights_of(metric, truth, weights):
    elements = truth.shape[: truth.ndim - metric.vector_axes]
    if weights.ndim == 1:
        weights = weights.reshape(-1, *(1,) * (len(elements) - 1))
    return element_weights(weights, elements)
