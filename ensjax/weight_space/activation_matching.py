"""Activation matching: units are paired by how they respond to the same data."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ensjax.ensemble import Ensemble
from ensjax.graphs import Forward
from ensjax.mapping import map_members
from ensjax.members import take_rows
from ensjax.mesh import fetch, place
from ensjax.weight_space.assignment import (
    assign_on_device,
    assign_on_host,
    choose_solver,
)
from ensjax.weight_space.axes import groups_of, positions
from ensjax.weight_space.inference import read_axes
from ensjax.weight_space.matching import Matching, check_references
from ensjax.weight_space.permutations import (
    PermutationSpec,
    identity_permutations,
)
from ensjax.weight_space.programs import Constant, Program
from ensjax.weight_space.row_parts import (
    Moments,
    join_products,
    moments_of_parts,
    row_parts,
)

_CONTRACTIONS = ("dot_general", "conv_general_dilated")


def match_activations(
    ensemble: Ensemble,
    x: Any,
    *,
    reference: int | Sequence[int] = 0,
    solver: str = "auto",
    batch_size: int = 512,
) -> Matching:
    """Permutations that pair each member's units with another's by their response.

        max over P of sum over units of corr(a_reference, P a_m)

    The activations of a group are the inputs of the products and convolutions that take
    it up, over all examples and positions; a unit that never varies correlates with
    none. Each group is assigned once and by itself.

    Args:
        ensemble: the members; groups are those of `infer_permutations(ensemble, x)`.
        x: inputs, leaves `[example, ...]`.
        reference: the member to which the others are matched, or one for each,
            `[member]`.
        solver: "host", "device" or "auto", as in `match_weights`.
        batch_size: rows at a time, whole on every device.

    Returns:
        A `Matching`, for `apply_permutations` with the inferred spec; `before` and
        `after` are mean correlations of paired units.

    Raises:
        ValueError: if the reference does not exist, the solver is unknown, or there is
            no example.

    Source: Li et al. 2016, arXiv:1511.07543; Ainsworth et al. 2023,
    arXiv:2209.04836, section 3.1.
    """
    members, mesh = ensemble.num_members, ensemble.mesh
    references = check_references(reference, members)
    each = len(references) > 1
    parts = row_parts(x, batch_size)
    spec = _spec(ensemble.graph, _one_shape(ensemble.state), _shapes(parts[0]))
    features = map_members(
        _Features(ensemble.graph), kinds=("member", "shared"), mesh=mesh
    )
    rows = jax.tree.map(lambda leaf: take_rows(leaf, references[:1]), ensemble.state)
    correlate = map_members(
        _CrossMoments(ensemble.graph),
        kinds=("member", "shared", "member" if each else "shared"),
        mesh=mesh,
    )

    def measure(part):
        target = features(ensemble.state if each else rows, part)
        chosen = references if each else 0
        target = jax.tree.map(lambda leaf: take_rows(leaf, chosen), target)
        return correlate(ensemble.state, part, target)

    crossed = moments_of_parts(measure, parts)
    scores = {name: _correlations(own) for name, own in crossed.items()}
    if choose_solver(solver, mesh) == "host":
        assigned = {name: assign_on_host(s) for name, s in fetch(scores).items()}
    else:
        assigned = {name: jax.jit(assign_on_device)(s) for name, s in scores.items()}
    orders = {**identity_permutations(spec, members), **assigned}
    units = max(sum(s.shape[1] for s in scores.values()), 1)

    def mean(orders):
        paired = [
            jnp.sum(jnp.take_along_axis(s, orders[name][:, :, None], axis=2), (1, 2))
            for name, s in scores.items()
        ]
        return sum(paired, jnp.zeros(members)) / units

    orders = place(jax.tree.map(jnp.asarray, orders), mesh, jax.P())
    before = mean(identity_permutations(spec, members))
    return Matching(orders, before, mean(orders), 1)


def depends_on(program: Program, inputs: set[int]) -> set[int]:
    """Numbers of the values that depend on some inputs, these included."""
    found = set(inputs)
    for operation in program.operations:
        if any(not isinstance(i, Constant) and i in found for i in operation.inputs):
            found.update(operation.outputs)
    return found


@dataclasses.dataclass(frozen=True)
class _Features:
    """Means `[unit]` and deviations `[unit, sample]` of one member, by group."""

    graph: Any

    def __call__(self, state, x):
        forward = Forward(self.graph)
        program, axes, spec = read_axes(forward, _shapes(state), _shapes(x))
        num_state = len(jax.tree.leaves(state))
        varying = depends_on(program, set(range(num_state, program.num_inputs)))
        sites: dict[str, list] = {name: [] for name in spec.groups}
        for operation in program.operations:
            if operation.primitive.name not in _CONTRACTIONS:
                continue
            for number in operation.inputs:
                if isinstance(number, Constant) or number not in varying:
                    continue
                for axis, term in enumerate(axes[number]):
                    for name in {group.name for group in groups_of(term)}:
                        site = (number, axis, term)
                        if site not in sites[name]:
                            sites[name].append(site)
        watch = {number for found in sites.values() for number, *_ in found}
        _, values = program.run(jax.tree.leaves((state, x)), watch=watch)
        features = {}
        for name, found in sites.items():
            rows = [
                jnp.moveaxis(values[number], axis, 0)[index].reshape(len(index), -1)
                for number, axis, term in found
                for index in positions(term, name)
            ]
            if rows:
                features[name] = _centered(jnp.concatenate(rows, axis=1))
        return features


class CrossMoments(NamedTuple):
    """Of a member's units and its reference's, `[member, ...]`.

    Attributes:
        own: moments of the member's units, `[member, unit]`.
        other: of the reference's.
        product: mean product of deviations, `[member, reference's unit, unit]`.
    """

    own: Moments
    other: Moments
    product: jax.Array

    def joined(self, other: "CrossMoments", share: jax.Array) -> "CrossMoments":
        """Those of both sets of rows; `share` of all rows are the other's."""
        away = other.own.mean - self.own.mean
        other_away = other.other.mean - self.other.mean
        product = join_products(
            self.product, other.product, away[:, None], other_away[:, :, None], share
        )
        return CrossMoments(
            self.own.joined(other.own, share),
            self.other.joined(other.other, share),
            product,
        )


@dataclasses.dataclass(frozen=True)
class _CrossMoments:
    """`CrossMoments` of one member with the reference's activations, by group."""

    graph: Any

    def __call__(self, state, x, target):
        found = {}
        for name, (mean, rows) in _Features(self.graph)(state, x).items():
            other_mean, other_rows = target[name]
            product = jnp.matmul(other_rows, rows.T, precision="highest")
            found[name] = CrossMoments(
                Moments(mean, jnp.mean(rows**2, axis=1)),
                Moments(other_mean, jnp.mean(other_rows**2, axis=1)),
                product / rows.shape[1],
            )
        return found


@jax.jit
def _correlations(moments):
    """Correlations with the reference's units `[member, unit, unit]`."""
    own, other = (
        jnp.where(variance > 0, jax.lax.rsqrt(variance), 0.0)
        for variance in (moments.own.variance, moments.other.variance)
    )
    return moments.product * own[:, None] * other[:, :, None]


def _centered(rows):
    rows = rows.astype(jnp.promote_types(rows.dtype, jnp.float32))
    mean = jnp.mean(rows, axis=1)
    return mean, rows - mean[:, None]


def _spec(graph, state, x) -> PermutationSpec:
    return read_axes(Forward(graph), state, x)[2]


def _shapes(tree):
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), tree)


def _one_shape(stacked):
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), stacked)
