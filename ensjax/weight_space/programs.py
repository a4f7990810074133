"""A function as a flat list of primitive operations, to be read or run step by step.

Calls (jit, custom derivatives, rematerialisation) are written out in line; loops and
branches stay one operation, with programs of their own inside.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core

from ensjax.blocks import inner_jaxprs

_CALLS = {
    "jit",
    "pjit",
    "closed_call",
    "core_call",
    "checkpoint",
    "remat",
    "remat2",
    "custom_jvp_call",
    "custom_vjp_call",
    "custom_vjp_call_jaxpr",
}


@dataclasses.dataclass(frozen=True)
class Constant:
    """An input that is known: a literal or a captured array."""

    value: Any


@dataclasses.dataclass(frozen=True)
class Operation:
    """One primitive operation.

    Attributes:
        primitive: of JAX; `params` are its parameters.
        inputs: numbers of values, or constants.
        outputs: numbers of values.
        shapes: of the inputs and of the outputs.
    """

    primitive: Any
    params: Mapping[str, Any]
    inputs: tuple[Any, ...]
    outputs: tuple[int, ...]
    shapes: tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]


@dataclasses.dataclass(frozen=True)
class Program:
    """A flat program; values have numbers, and its inputs come first.

    Attributes:
        num_inputs: how many inputs.
        operations: in the order in which they run.
        outputs: numbers of values, or constants.
    """

    num_inputs: int
    operations: tuple[Operation, ...]
    outputs: tuple[Any, ...]

    def run(
        self,
        inputs: Sequence[Any],
        *,
        watch: Collection[int] = (),
        edit: Mapping[int, Callable[[Any], Any]] | None = None,
    ) -> tuple[list[Any], dict[int, Any]]:
        """The outputs, and the values that have the numbers in `watch`.

        Args:
            inputs: arrays, one for each input.
            watch: numbers of values.
            edit: functions by the number of a value: what they make of it is what later
                operations see, and what is watched.

        Returns:
            A list of outputs and a dict from number to value.
        """
        edit = edit or {}
        values = dict(enumerate(inputs))
        last_use = {
            number: place
            for place, operation in enumerate(self.operations)
            for number in operation.inputs
            if isinstance(number, int)
        }
        keep = {n for n in self.outputs if isinstance(n, int)} | set(watch)

        def read(item):
            return item.value if isinstance(item, Constant) else values[item]

        for place, operation in enumerate(self.operations):
            results = operation.primitive.bind(
                *map(read, operation.inputs), **operation.params
            )
            if not operation.primitive.multiple_results:
                results = [results]
            for number, result in zip(operation.outputs, results, strict=True):
                values[number] = edit[number](result) if number in edit else result
            ended = {n for n in operation.inputs if isinstance(n, int)} - keep
            for number in ended:
                if last_use[number] == place:
                    del values[number]
        return [read(item) for item in self.outputs], {n: values[n] for n in watch}


def trace(fn: Callable[..., Any], *args: Any) -> Program:
    """The program of `fn`; its inputs are the leaves of `args` in order.

    Args:
        fn: any function of JAX.
        args: arrays or `jax.ShapeDtypeStruct`s.
    """
    closed = jax.make_jaxpr(fn)(*args)
    return program_of(closed.jaxpr, closed.consts)


def program_of(jaxpr: Any, consts: Sequence[Any] = ()) -> Program:
    """The flat program of a jaxpr; `consts` are known arrays."""
    writer = _Writer()
    names = {var: writer.new() for var in jaxpr.invars}
    outputs = tuple(writer.inline(jaxpr, consts, names))
    return Program(len(jaxpr.invars), _needed(writer.operations, outputs), outputs)


def _needed(operations, outputs):
    """The operations without those of which nothing depends."""
    wanted = {item for item in outputs if isinstance(item, int)}
    kept = []
    for operation in reversed(operations):
        if wanted.intersection(operation.outputs):
            kept.append(operation)
            wanted.update(item for item in operation.inputs if isinstance(item, int))
    return tuple(reversed(kept))


class _Writer:
    def __init__(self):
        self.operations: list[Operation] = []
        self.count = 0

    def new(self) -> int:
        self.count += 1
        return self.count - 1

    def inline(self, jaxpr, consts, names):
        """Writes the jaxpr's operations; `names` are what its inputs are here."""
        names = dict(names)
        names.update(zip(jaxpr.constvars, map(Constant, consts), strict=True))

        def read(atom):
            return Constant(atom.val) if isinstance(atom, core.Literal) else names[atom]

        for eqn in jaxpr.eqns:
            inputs = [read(atom) for atom in eqn.invars]
            inner = _body_of_call(eqn)
            if inner is not None:
                body, body_consts = inner
                results = self.inline(
                    body, body_consts, dict(zip(body.invars, inputs, strict=True))
                )
            else:
                results = [self.new() for _ in eqn.outvars]
                shapes = tuple(
                    tuple(tuple(np.shape(atom.aval)) for atom in atoms)
                    for atoms in (eqn.invars, eqn.outvars)
                )
                self.operations.append(
                    Operation(
                        eqn.primitive, eqn.params, tuple(inputs), tuple(results), shapes
                    )
                )
            names.update(zip(eqn.outvars, results))
        return [read(atom) for atom in jaxpr.outvars]


def _body_of_call(eqn):
    """The jaxpr that a call runs in its place and its constants; else `None`."""
    if eqn.primitive.name not in _CALLS:
        return None
    bodies = list(inner_jaxprs(eqn))
    if len(bodies) != 1 or len(bodies[0][0].invars) != len(eqn.invars):
        return None
    return bodies[0]
