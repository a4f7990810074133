"""What each primitive operation does to the axes of its inputs.

A rule takes the axes (tuples of terms) of an operation's inputs, unifies those that
have to be permuted alike for the operation to commute with the permutation, and returns
the axes of its outputs. An operation that has no rule fixes all axes that it meets.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ensjax.weight_space.axes import Fixed, Term, concat, product
from ensjax.weight_space.programs import Constant, Operation, Program, program_of
from ensjax.weight_space.unification import cut, fix, split, unify, variable

Axes = tuple[Term, ...]

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
_ALONG_AN_AXIS = {"cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"}


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


def new_axes(shape: Sequence[int]) -> Axes:
    """Axes of which nothing is known."""
    return tuple(variable(size) for size in shape)


def fixed_axes(shape: Sequence[int]) -> Axes:
    """Axes that are not permuted."""
    return tuple(Fixed(size) for size in shape)


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


def _rule(operation: Operation) -> Callable[[Operation, list[Axes]], list]:
    name = operation.primitive.name
    if 0 in {size for shapes in operation.shapes for s in shapes for size in s}:
        return _unknown
    if name in _ELEMENTWISE:
        return _elementwise
    if name in _REDUCTIONS:
        return _reduction
    return _RULES.get(name, _unknown)


def _unknown(operation, operands):
    for axes in operands:
        for term in axes:
            fix(term)
    return [fixed_axes(shape) for shape in operation.shapes[1]]


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


def _along_an_axis(operation, operands):
    (axes,) = operands
    fix(axes[operation.params["axis"]])
    return [axes]


def _reverse(operation, operands):
    (axes,) = operands
    for axis in operation.params["dimensions"]:
        fix(axes[axis])
    return [axes]


def _window(operation, operands):
    """Pooling: an axis with a window of one position passes."""
    params = operation.params
    (shape,) = operation.shapes[1]
    result = list(fixed_axes(shape))
    for axis, term in enumerate(operands[0]):
        trivial = (
            params["window_dimensions"][axis] == params["window_strides"][axis] == 1
            and tuple(params["padding"][axis]) == (0, 0)
            and params["base_dilation"][axis] == 1
        )
        if trivial:
            result[axis] = term
        else:
            fix(term)
    return [result]


def _sort(operation, operands):
    if len(operands) > 1:
        return _unknown(operation, operands)
    result = list(operands[0])
    dimension = operation.params["dimension"]
    result[dimension] = Fixed(result[dimension].size)  # sorted, whatever the order was
    return [result]


def _transpose(operation, operands):
    (axes,) = operands
    return [[axes[axis] for axis in operation.params["permutation"]]]


def _squeeze(operation, operands):
    (axes,) = operands
    gone = {axis % len(axes) for axis in operation.params["dimensions"]}
    return [[term for axis, term in enumerate(axes) if axis not in gone]]


def _broadcast(operation, operands):
    axes = operands[0]
    (shape,) = operation.shapes[1]
    result = list(new_axes(shape))
    for term, axis in zip(axes, operation.params["broadcast_dimensions"]):
        if term.size == shape[axis]:
            result[axis] = term
    return [result]


def _iota(operation, operands):
    del operands
    (shape,) = operation.shapes[1]
    result = list(new_axes(shape))
    result[operation.params["dimension"]] = Fixed(shape[operation.params["dimension"]])
    return [result]


def _reshape(operation, operands):
    """Runs of input axes become runs of output axes of the same product."""
    if operation.params.get("dimensions") is not None:
        return _unknown(operation, operands)
    axes = [term for term in operands[0] if term.size > 1]
    (shape,) = operation.shapes[1]
    sizes = [size for size in shape if size > 1]
    found = []
    while sizes:
        terms, parts = [axes.pop(0)], [sizes.pop(0)]
        while (a := product(terms).size) != (b := int(np.prod(parts))):
            if a < b:
                terms.append(axes.pop(0))
            else:
                parts.append(sizes.pop(0))
        term = product(terms)
        found += [term] if len(parts) == 1 else split(term, parts)
    return [[found.pop(0) if size > 1 else Fixed(1) for size in shape]]


def _concatenate(operation, operands):
    dimension = operation.params["dimension"]
    result = list(operands[0])
    for axis in range(len(result)):
        if axis == dimension:
            result[axis] = concat([axes[axis] for axes in operands])
            continue
        for axes in operands[1:]:
            unify(result[axis], axes[axis])
    return [result]


def _split(operation, operands):
    (axes,) = operands
    axis, sizes = operation.params["axis"], operation.params["sizes"]
    return [[*axes[:axis], part, *axes[axis + 1 :]] for part in cut(axes[axis], sizes)]


def _slice(operation, operands):
    (axes,) = operands
    starts, limits = (operation.params[k] for k in ("start_indices", "limit_indices"))
    strides = operation.params["strides"] or (1,) * len(axes)
    result = []
    for term, start, limit, stride in zip(axes, starts, limits, strides):
        if (start, limit, stride) == (0, term.size, 1):
            result.append(term)
        elif stride == 1:
            sizes = (start, limit - start, term.size - limit)
            result.append(cut(term, sizes)[1])
        else:
            fix(term)
            result.append(Fixed(len(range(start, limit, stride))))
    return [result]


def _pad(operation, operands):
    axes, _ = operands
    result = []
    for term, (low, high, inner) in zip(axes, operation.params["padding_config"]):
        if inner or low < 0 or high < 0:
            fix(term)
            size = term.size + int(low) + int(high) + max(term.size - 1, 0) * int(inner)
            result.append(Fixed(size))
        else:
            # What is put in is one number, which any permutation leaves as it is.
            parts = [variable(int(low)), term, variable(int(high))]
            result.append(concat(parts))
    return [result]


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
        return _unknown(operation, operands)
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


def _gather(operation, operands):
    """Axes that are taken whole pass; those that are indexed are fixed."""
    axes, index = operands
    numbers = operation.params["dimension_numbers"]
    if getattr(numbers, "operand_batching_dims", ()):
        return _unknown(operation, operands)
    sizes = operation.params["slice_sizes"]
    fix(index[-1])
    (shape,) = operation.shapes[1]
    result: list[Term] = list(fixed_axes(shape))
    kept = [a for a in range(len(axes)) if a not in numbers.collapsed_slice_dims]
    for axis, term in enumerate(axes):
        if axis in numbers.start_index_map or sizes[axis] != term.size:
            fix(term)
    for place, axis in zip(numbers.offset_dims, kept):
        if sizes[axis] == axes[axis].size:
            result[place] = axes[axis]
    batch = [a for a in range(len(shape)) if a not in numbers.offset_dims]
    for place, term in zip(batch, index[:-1]):
        result[place] = term
    return [result]


def _dynamic_slice(operation, operands):
    axes = operands[0]
    result = []
    for term, size in zip(axes, operation.params["slice_sizes"]):
        if term.size != size:
            fix(term)
        result.append(term if term.size == size else Fixed(size))
    return [result]


def _dynamic_update_slice(operation, operands):
    axes, update = operands[:2]
    for term, new in zip(axes, update):
        if term.size == new.size:
            unify(term, new)
        else:
            fix(term)
            fix(new)
    return [axes]


def _scan(operation, operands):
    """One pass of the body: its carry comes out with the axes with which it goes in."""
    params = operation.params
    num_consts, num_carry = params["num_consts"], params["num_carry"]
    xs = operands[num_consts + num_carry :]
    for axes in xs:
        fix(axes[0])
    inside = [*operands[: num_consts + num_carry], *(axes[1:] for axes in xs)]
    outputs = _body(params["jaxpr"], inside)
    carry = operands[num_consts : num_consts + num_carry]
    _unify_all(carry, outputs[:num_carry])
    ys = [(Fixed(params["length"]), *axes) for axes in outputs[num_carry:]]
    return [*carry, *ys]


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
    return follow(program_of(closed.jaxpr, closed.consts), operands)[1]


def _unify_all(these, those):
    for mine, other in zip(these, those, strict=True):
        for a, b in zip(mine, other, strict=True):
            unify(a, b)


_RULES: dict[str, Callable[[Operation, list[Any]], list]] = {
    "argmax": _arg_reduction,
    "argmin": _arg_reduction,
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenate,
    "cond": _cond,
    "conv_general_dilated": _convolution,
    "dot_general": _dot_general,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "gather": _gather,
    "iota": _iota,
    "optimization_barrier": _each_by_itself,
    "pad": _pad,
    "reshape": _reshape,
    "reduce_window_max": _window,
    "reduce_window_min": _window,
    "reduce_window_sum": _window,
    "rev": _reverse,
    "scan": _scan,
    "slice": _slice,
    "sort": _sort,
    "split": _split,
    "squeeze": _squeeze,
    "transpose": _transpose,
    "while": _while,
    **dict.fromkeys(_ALONG_AN_AXIS, _along_an_axis),
}
