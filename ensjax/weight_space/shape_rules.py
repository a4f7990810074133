"""How operations that move positions about move axes: reshape, pad, slice, gather, ...

A rule takes an operation and the axes (tuples of terms) of its inputs, and returns the
axes of its outputs.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ensjax.weight_space.axes import Fixed, Term, concat, product
from ensjax.weight_space.programs import Operation
from ensjax.weight_space.unification import cut, fix, split, unify, variable

Axes = tuple[Term, ...]
Rule = Callable[[Operation, list[Any]], list]


def new_axes(shape: Sequence[int]) -> Axes:
    """Axes of which nothing is known."""
    return tuple(variable(size) for size in shape)


def fixed_axes(shape: Sequence[int]) -> Axes:
    """Axes that are not permuted."""
    return tuple(Fixed(size) for size in shape)


def unknown_rule(operation: Operation, operands: list[Any]) -> list:
    """Fixes all axes: for operations that cannot be followed."""
    for axes in operands:
        for term in axes:
            fix(term)
    return [fixed_axes(shape) for shape in operation.shapes[1]]


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
        return unknown_rule(operation, operands)
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
        return unknown_rule(operation, operands)
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


def _gather(operation, operands):
    """Axes that are taken whole pass; those that are indexed are fixed."""
    axes, index = operands
    numbers = operation.params["dimension_numbers"]
    if getattr(numbers, "operand_batching_dims", ()):
        return unknown_rule(operation, operands)
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


SHAPE_RULES: dict[str, Rule] = {
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenate,
    "cumlogsumexp": _along_an_axis,
    "cummax": _along_an_axis,
    "cummin": _along_an_axis,
    "cumprod": _along_an_axis,
    "cumsum": _along_an_axis,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "gather": _gather,
    "iota": _iota,
    "pad": _pad,
    "reduce_window_max": _window,
    "reduce_window_min": _window,
    "reduce_window_sum": _window,
    "reshape": _reshape,
    "rev": _reverse,
    "slice": _slice,
    "sort": _sort,
    "split": _split,
    "squeeze": _squeeze,
    "transpose": _transpose,
}
