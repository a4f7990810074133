"""Minimum of a smooth convex function of few or many numbers, compiled."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.scipy.sparse.linalg import cg

MAX_NEWTON_STEPS = 100
_MAX_CG_STEPS = 250
_SMALL_GAIN = 1e-10  # of a step, in units of the function: less is rounding
_NUM_HALVINGS = 30


def minimize_convex(loss: Callable[[Any], jax.Array], start: Any) -> Any:
    """The minimum of `loss`, by Newton's method from `start`; no randomness.

    Directions come from conjugate gradients on products with the Hessian, which is
    never formed. A step is halved until the loss falls as it should; it ends when a
    step would gain less than 1e-10, after 100 steps, or where no step helps.

    Args:
        loss: of a pytree like `start`, smooth and convex; NaN at `start` gives NaN.
        start: floats.
    """
    start, unravel = ravel_pytree(start)

    def of_flat(flat):
        return loss(unravel(flat))

    slope = jax.grad(of_flat)

    def direction(point):
        gradient, times_hessian = jax.linearize(slope, point)

        def damped(vector):  # flat directions, such as equal biases, stay finite
            return times_hessian(vector) + 1e-7 * vector

        step, _ = cg(damped, -gradient, tol=1e-5, maxiter=_MAX_CG_STEPS)
        return step, -jnp.vdot(gradient, step)

    def shorten(point, value, step, gain):
        # Rounding of the loss is no rise.
        slack = 1e-6 * jnp.abs(value)

        def is_too_long(state):
            size, count = state
            risen = of_flat(point + size * step) > value - 1e-4 * size * gain + slack
            return (risen | ~jnp.isfinite(of_flat(point + size * step))) & (
                count < _NUM_HALVINGS
            )

        def halve(state):
            return state[0] / 2, state[1] + 1

        size, count = jax.lax.while_loop(
            is_too_long, halve, (jnp.ones((), point.dtype), 0)
        )
        return jnp.where(count < _NUM_HALVINGS, size, 0.0)

    def goes_on(state):
        _, gain, count = state
        return (gain > _SMALL_GAIN) & (count < MAX_NEWTON_STEPS)

    def advance(state):
        point, _, count = state
        step, gain = direction(point)
        size = shorten(point, of_flat(point), step, gain)
        return point + size * step, jnp.where(size > 0, gain, 0.0), count + 1

    first = (start, jnp.asarray(jnp.inf, start.dtype), 0)
    point, _, _ = jax.lax.while_loop(goes_on, advance, first)
    point = jnp.where(jnp.isfinite(of_flat(start)), point, jnp.nan)
    return unravel(point)
