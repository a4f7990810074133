"""What each primitive operation does to the axes of its inputs.

A rule takes the axes (tuples of terms) of an operation's inputs, unifies those that
have to be permuted alike for the operation to commute with the permutation, and returns
the axes of its outputs. An operation that has no rule fixes all axes that it meets.
"""

from collections.abc import Sequence

import numpy as np

from ensjax.weight_space.axes import Fixed, product
from ensjax.weight_space.programs import Constant, Operation, Program, program_of
from ensjax.weight_space.shape_rules import (
    SHAPE_RULES,
    Axes,
    Rule,
    fixed_axes,
    unknown_rule,
)
from ensjax.weight_space.unification import fix, split, unify, variable

_ELEMENTWISE = {
    "abs",
    "acos",
    "acosh",
    "add",
    "add_any",
    "and",
    "asin",
    "asinh",
    "atan",
    "atan2",
    "atanh",
    "cbrt",
    "ceil",
    "clamp",
    "complex",
    "conj",
    "convert_element_type",
    "copy",
    "copy_p",
    "cos",
    "cosh",
    "digamma",
    "div",
    "eq",
    "erf",
    "erf_inv",
    "erfc",
    "exp",
    "exp2",
    "expm1",
    "floor",
    "ge",
    "gt",
    "imag",
    "integer_pow",
    "is_finite",
    "le",
    "lgamma",
    "log",
    "log1p",
    "logistic",
    "lt",
    "max",
    "min",
    "mul",
    "ne",
    "neg",
    "nextafter",
    "not",
    "or",
    "population_count",
    "pow",
    "real",
    "reduce_precision",
    "rem",
    "round",
    "rsqrt",
    "select_n",
    "sharding_constraint",
    "shift_left",
    "shift_right_arithmetic",
    "shift_right_logical",
    "sign",
    "sin",
    "sinh",
    "sqrt",
    "square",
    "stop_gradient",
    "sub",
    "tan",
    "tanh",
    "xor",
}
_REDUCTIONS = {
    "reduce_sum",
    "reduce_max",
    "reduce_min",
    "reduce_prod",
    "reduce_and",
    "reduce_or",
    "reduce_xor",
}


def follow(program: Program, inputs: Sequence[Axes]) -> tuple[dict[int, Axes], list]:
    """Follows axes through a program.

    Args:
        program: from `programs.trace`.
        inputs: the axes of its inputs.

    Returns:
        The axes of every value by its number, and those of the outputs.
    """
    axes = dict(enumerate(inputs))

    def read(item):
        return _of_constant(item.value) if isinstance(item, Constant) else axes[item]

    for operation in program.operations:
        operands = [read(item) for item in operation.inputs]
        rule = _rule(operation)
        results = rule(operation, operands)
        for number, result, shape in zip(
            operation.outputs, results, operation.shapes[1], strict=True
        ):
            assert tuple(t.size for t in result) == shape, (operation.primitive, shape)
            axes[number] = tuple(result)
    return axes, [read(item) for item in program.outputs]


def _of_constant(value):
    """Axes along which a known array does not vary may be permuted by anything."""
    shape = np.shape(value)
    if not shape:
        return ()
    try:
        known = np.asarray(value)
    except (TypeError, RuntimeError):  # random keys, arrays of other processes
        return fixed_axes(shape)
    return tuple(
        variable(size) if np.all(known == known.take([0], axis)) else Fixed(size)
        for axis, size in enumerate(shape)
    )


def _rule(operation: Operation) -> Rule:
    name = operation.primitive.name
    if 0 in {size for shapes in operation.shapes for s in shapes for size in s}:
        return unknown_rule
    if name in _ELEMENTWISE:
        return _elementwise
    if name in _REDUCTIONS:
        return _reduction
    return _RULES.get(name, unknown_rule)


def _elementwise(operation, operands):
    """Arrays of one rank; axes of size 1 and scalars are repeated."""
    results = []
    for shape in operation.shapes[1]:
        result = list(fixed_axes(shape))
        for axis, size in enumerate(shape):
            met = [t[axis] for t in operands if len(t) == len(shape)]
            met = [term for term in met if term.size == size]
            if met:
                for other in met[1:]:
                    unify(met[0], other)
                result[axis] = met[0]
            elif size > 1:
                result[axis] = variable(size)
        results.append(result)
    return results


def _each_by_itself(operation, operands):
    del operation
    return operands


def _reduction(operation, operands):
    (axes,) = operands
    gone = set(operation.params["axes"])
    return [[term for axis, term in enumerate(axes) if axis not in gone]]


def _arg_reduction(operation, operands):
    (axes,) = operands
    gone = set(operation.params["axes"])
    for axis in gone:
        fix(axes[axis])  # the result is a position
    return [[term for axis, term in enumerate(axes) if axis not in gone]]


def _dot_general(operation, operands):
    lhs, rhs = operands[:2]
    (lhs_sum, rhs_sum), (lhs_batch, rhs_batch) = operation.params["dimension_numbers"]
    for i, j in zip((*lhs_sum, *lhs_batch), (*rhs_sum, *rhs_batch)):
        unify(lhs[i], rhs[j])
    free = [
        term
        for axes, used in (
            (lhs, {*lhs_sum, *lhs_batch}),
            (rhs, {*rhs_sum, *rhs_batch}),
        )
        for axis, term in enumerate(axes)
        if axis not in used
    ]
    return [[*(lhs[i] for i in lhs_batch), *free]]


def _convolution(operation, operands):
    lhs, rhs = operands
    params = operation.params
    numbers, groups = params["dimension_numbers"], params["feature_group_count"]
    if params["batch_group_count"] != 1:
        return unknown_rule(operation, operands)
    batch, channel, *space = numbers.lhs_spec
    kernel_out, kernel_in, *kernel_space = numbers.rhs_spec
    for term in [*(lhs[a] for a in space), *(rhs[a] for a in kernel_space)]:
        fix(term)
    if groups > 1:
        # Groups of channels move as blocks, those of the kernel's outputs with them.
        per_group = rhs[kernel_out].size // groups
        block, _ = split(rhs[kernel_out], (groups, per_group))
        unify(lhs[channel], product([block, rhs[kernel_in]]))
    else:
        unify(lhs[channel], rhs[kernel_in])
    (shape,) = operation.shapes[1]
    result = list(fixed_axes(shape))
    result[numbers.out_spec[0]] = lhs[batch]
    result[numbers.out_spec[1]] = rhs[kernel_out]
    return [result]


def _scan(operation, operands):
    """One pass of the body: its carry comes out with the axes with which it goes in."""
    jaxpr, _ = _open(operation.params["jaxpr"])
    # What is scanned has one axis more outside; the parameters that count consts,
    # carry and xs have other names in every version.
    outer_in, outer_out = operation.shapes
    scanned = [
        len(np.shape(var.aval)) < len(shape)
        for var, shape in zip(jaxpr.invars, outer_in, strict=True)
    ]
    num_carry = sum(
        len(np.shape(var.aval)) == len(shape)
        for var, shape in zip(jaxpr.outvars, outer_out, strict=True)
    )
    inside = []
    for axes, is_scanned in zip(operands, scanned):
        if is_scanned:
            fix(axes[0])
        inside.append(axes[1:] if is_scanned else axes)
    outputs = _body(operation.params["jaxpr"], inside)
    carried = [axes for axes, is_scanned in zip(operands, scanned) if not is_scanned]
    carry = carried[len(carried) - num_carry :]
    _unify_all(carry, outputs[:num_carry])
    length = operation.params["length"]
    return [*carry, *((Fixed(length), *axes) for axes in outputs[num_carry:])]


def _while(operation, operands):
    params = operation.params
    num_cond, num_body = params["cond_nconsts"], params["body_nconsts"]
    carry = operands[num_cond + num_body :]
    _body(params["cond_jaxpr"], [*operands[:num_cond], *carry])
    outputs = _body(
        params["body_jaxpr"], [*operands[num_cond : num_cond + num_body], *carry]
    )
    _unify_all(carry, outputs)
    return carry


def _cond(operation, operands):
    results = [_body(branch, operands[1:]) for branch in operation.params["branches"]]
    for other in results[1:]:
        _unify_all(results[0], other)
    return results[0]


def _body(closed, operands):
    jaxpr, consts = _open(closed)
    return follow(program_of(jaxpr, consts), operands)[1]


def _open(closed):
    """The jaxpr of a body and its constants."""
    return getattr(closed, "jaxpr", closed), getattr(closed, "consts", ())


def _unify_all(these, those):
    for mine, other in zip(these, those, strict=True):
        for a, b in zip(mine, other, strict=True):
            unify(a, b)


_RULES: dict[str, Rule] = {
    **SHAPE_RULES,
    "argmax": _arg_reduction,
    "argmin": _arg_reduction,
    "cond": _cond,
    "conv_general_dilated": _convolution,
    "dot_general": _dot_general,
    "optimization_barrier": _each_by_itself,
    "scan": _scan,
    "while": _while,
}
