"""How many multiplications a function's matrix products and convolutions take."""

import math
from collections.abc import Callable
from typing import Any

import jax


def multiplications(fn: Callable[..., Any], *arguments: Any) -> int:
    """Multiplications of all products and convolutions; shapes are enough.

    Bodies of loops count as often as they run where that is known (`scan`), else once;
    of branches the dearest counts.
    """
    return _of_jaxpr(jax.make_jaxpr(fn)(*arguments).jaxpr)


def _of_jaxpr(jaxpr):
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation):
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        out = math.prod(equation.outvars[0].aval.shape)
        return out * math.prod(shape[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        features = kernel[params["dimension_numbers"].rhs_spec[0]]
        out = math.prod(equation.outvars[0].aval.shape)
        return out * math.prod(kernel) // features
    parts = [_of_jaxpr(inner) for inner in _inner(params)]
    if name == "cond":
        return max(parts, default=0)
    return params.get("length", 1) * sum(parts) if name == "scan" else sum(parts)


def _inner(params):
    """The programs that an operation holds, such as the bodies of loops."""
    for value in jax.tree.leaves(
        list(params.values()), is_leaf=lambda v: hasattr(v, "eqns") or _is_closed(v)
    ):
        if _is_closed(value):
            yield value.jaxpr
        elif hasattr(value, "eqns"):
            yield value


def _is_closed(value):
    return hasattr(value, "jaxpr") and hasattr(value.jaxpr, "eqns")
