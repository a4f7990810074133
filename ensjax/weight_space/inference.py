"""Permutation specs from a model itself: no table of layers, any function of JAX.

One member's forward is traced, and axes are followed through its operations
(`axis_rules`): where two axes meet they are permuted alike; inputs, outputs and all
that cannot be followed are fixed.
"""

import collections
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ensjax.ensemble import Ensemble
from ensjax.graphs import Forward
from ensjax.weight_space.axes import Concat, Fixed, Group, Product, Term
from ensjax.weight_space.axis_rules import follow
from ensjax.weight_space.leaves import leaf_name
from ensjax.weight_space.permutations import PermutationSpec
from ensjax.weight_space.programs import Program, trace
from ensjax.weight_space.shape_rules import Axes, fixed_axes, new_axes
from ensjax.weight_space.unification import Variable, fix, resolve


def infer_permutations(ensemble: Ensemble, x: Any) -> PermutationSpec:
    """The permutation spec of an ensemble's state, from its own forward.

    A permuted member is the same function of inputs like `x` in evaluation mode. Of
    `ensjax.nn` these are found: hidden units and channels, also through pooling,
    flattening and norms, with the batch statistics; residual streams, in parts where
    they grow by new channels; attention heads, and the channels within a head; states
    of recurrent cells. Channels within a head, and those within a group of a group
    norm, move in one order for all heads or groups: that each could have an order of
    its own is not used.

    Args:
        ensemble: its members' graph and the shapes of their state.
        x: inputs of one batch, arrays or shapes, leaves `[batch, ...]`; a batch of one
            is enough.

    Returns:
        The spec, whose leaves are named `params. ...` and `rest. ...`; check it with
        `check_permutations`.

    Source: symmetries as in Ainsworth et al. 2023, arXiv:2209.04836, section 2, which
    writes such specs by hand.
    """
    state = jax.tree.map(_member_shape, ensemble.state)
    return infer_permutations_of(Forward(ensemble.graph), state, x)


def infer_permutations_of(
    forward: Callable[[Any, Any], Any], state: Any, x: Any
) -> PermutationSpec:
    """The permutation spec of one member's state for any `forward(state, x)`.

    Args:
        forward: function of one member, traced once.
        state: one member's arrays or shapes, leaves `[...]`, without a member axis.
        x: inputs, arrays or shapes.

    Returns:
        The spec of `state`.
    """
    return read_axes(forward, state, x)[2]


def read_axes(
    forward: Callable[[Any, Any], Any], state: Any, x: Any
) -> tuple[Program, dict[int, Axes], PermutationSpec]:
    """The program of one member's forward, the axes of its values, and the spec.

    Returns:
        The program, whose inputs are the leaves of `(state, x)`; the terms of the axes
        of every value by its number; and the spec of `state`.
    """
    program = trace(forward, state, x)
    leaves = jax.tree.leaves_with_path(state)
    inputs = [new_axes(np.shape(leaf)) for _, leaf in leaves]
    inputs += [fixed_axes(np.shape(leaf)) for leaf in jax.tree.leaves(x)]
    axes, outputs = follow(program, inputs)
    order = _order_of_use(program)
    unused = [terms for n, terms in enumerate(inputs) if n not in order]
    for term in (term for terms in (*outputs, *unused) for term in terms):
        fix(term)

    groups: dict[Variable, Group] = {}
    names: collections.Counter[str] = collections.Counter()
    for number in order:
        if number >= len(leaves):
            continue
        name = _layer(leaf_name(leaves[number][0]))
        # The last axis first: a kernel's outputs, after which a group is named.
        for term in reversed(inputs[number]):
            for found in _variables(resolve(term)):
                if found not in groups:
                    names[name] += 1
                    suffix = f"/{names[name]}" if names[name] > 1 else ""
                    groups[found] = Group(name + suffix, found.size)
    known = {
        number: tuple(_with_groups(resolve(t), groups) for t in terms)
        for number, terms in axes.items()
    }
    spec = PermutationSpec.of(
        {leaf_name(path): known[n] for n, (path, _) in enumerate(leaves)}
    )
    return program, known, spec


def _member_shape(leaf):
    return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)


def _order_of_use(program) -> dict[int, None]:
    """The inputs that are used, in the order in which they are."""
    found = {}
    items = [i for operation in program.operations for i in operation.inputs]
    for item in (*items, *program.outputs):
        if isinstance(item, int) and item < program.num_inputs:
            found[item] = None
    return found


def _layer(name: str) -> str:
    """The module that a leaf belongs to; the leaf itself where there is none."""
    parts = name.split(".")
    if len(parts) > 1 and parts[0] in ("params", "rest"):
        parts = parts[1:]
    return ".".join(parts[:-1] if len(parts) > 1 else parts)


def _variables(term: Term) -> list[Variable]:
    if isinstance(term, Variable):
        return [term]
    if isinstance(term, Fixed):
        return []
    return [found for part in term.parts for found in _variables(part)]


def _with_groups(term, groups):
    """A resolved term with groups for its variables.

    A variable that no leaf has is an axis that any permutation leaves as it is.
    """
    if isinstance(term, Variable):
        return groups.get(term, Fixed(term.size))
    if isinstance(term, (Product, Concat)):
        return type(term)(tuple(_with_groups(part, groups) for part in term.parts))
    return term
