"""Minimum of a smooth convex function of few or many numbers, compiled."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.scipy.sparse.linalg import cg

MAX_NEWTON_STEPS = 100
_MAX_CG_STEPS = 300
_SMALL_GAIN = 1e-12  # of a step, in units of the function; float32 sums end near it
_ROUNDING_GAIN = 1e-6  # below this a gain may be rounding, and then falls no more
_NUM_HALVINGS = 30


def minimize_convex(loss: Callable[[Any], jax.Array], start: Any) -> Any:
    """The minimum of `loss`, by Newton's method from `start`; no randomness.

    Directions come from conjugate gradients on products with the Hessian, which is
    never formed. A step is halved until the loss falls as it should. It ends when a
    step would gain less than 1e-12, when what small steps would gain no longer falls
    (which is rounding), after 100 steps, or where no step helps.

    Args:
        loss: of a pytree like `start`, smooth and convex, of size one: such as a mean
            NLL in nats. NaN at `start` gives NaN.
        start: floats.
    """
    start, unravel = ravel_pytree(start)

    def of_flat(flat):
        return loss(unravel(flat))

    def look(point):
        """The value, a step, and twice what it gains on a parabola."""
        (value, slope), push = jax.linearize(jax.value_and_grad(of_flat), point)

        def times_hessian(vector):  # damped: flat directions, as equal biases, stay
            return push(vector)[1] + 1e-7 * vector

        step, _ = cg(times_hessian, -slope, tol=1e-4, maxiter=_MAX_CG_STEPS)
        return value, step, -jnp.vdot(slope, step, precision="highest")

    def shorten(point, value, step, gain):
        # Below this the loss cannot tell better from worse, but Newton's step can.
        slack = 1e-6 * (1 + jnp.abs(value))

        def is_too_long(state):
            size, count = state
            enough = value - 1e-4 * size * gain + slack
            return ~(of_flat(point + size * step) <= enough) & (count < _NUM_HALVINGS)

        def halve(state):
            return state[0] / 2, state[1] + 1

        size, count = jax.lax.while_loop(
            is_too_long, halve, (jnp.ones((), point.dtype), 0)
        )
        return jnp.where(count < _NUM_HALVINGS, size, 0.0)

    def goes_on(state):
        _, _, _, gain, before, count = state
        stalls = (gain < _ROUNDING_GAIN) & (gain > 0.25 * before)
        return (gain > _SMALL_GAIN) & ~stalls & (count < MAX_NEWTON_STEPS)

    def advance(state):
        point, value, step, gain, _, count = state
        size = shorten(point, value, step, gain)
        point = point + size * step
        value, step, new_gain = look(point)
        new_gain = jnp.where(size > 0, new_gain, 0.0)
        return point, value, step, new_gain, gain, count + 1

    first = (start, *look(start), jnp.asarray(jnp.inf, start.dtype), 0)
    point, value, _, gain, *_ = jax.lax.while_loop(goes_on, advance, first)
    is_defined = jnp.isfinite(value) & jnp.isfinite(gain)
    return unravel(jnp.where(is_defined, point, jnp.nan))
