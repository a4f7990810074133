"""Dual activations: the second moments of an activation under a pair of Gaussians.

A wide layer meets its inputs only through pairs of Gaussian pre-activations (u, v).
Its kernel needs E[phi(u) phi(v)] and E[phi'(u) phi'(v)]. A pair is described by its two
variances and the *angle* between u and v (cos angle = correlation), not by its
covariance: of nearly parallel inputs the angle keeps its digits where the arccos of a
correlation has lost half of them, and ReLU's derivative kernel is linear in the angle.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class DualMoments(NamedTuple):
    """Second moments of an activation over pairs of Gaussians, arrays `[...]`.

    Attributes:
        product: E[phi(u) phi(v)].
        slope: E[phi'(u) phi'(v)].
        angle: arccos(E[phi(u) phi(v)] / sqrt(E[phi(u)^2] E[phi(v)^2])), in radians.
    """

    product: jax.Array
    slope: jax.Array
    angle: jax.Array


@dataclasses.dataclass(frozen=True)
class Dual:
    """The dual of an activation.

    Attributes:
        name: of the activation, for messages.
        forward: `forward(variance_u, variance_v, angle) -> DualMoments`, arrays that
            broadcast against each other.
        check: `check(variance) -> E[phi(u)^2]`, on the host, which warns where
            `forward` is off at that variance; None where it is right at any.
        fn: the activation itself, elementwise: what networks of finite width apply.
            None for moments alone.
    """

    name: str
    forward: Callable[[jax.Array, jax.Array, jax.Array], DualMoments]
    check: Callable[[float], float] | None = None
    fn: Callable[[jax.Array], jax.Array] | None = None

    def moments(self, k11: Any, k12: Any, k22: Any) -> DualMoments:
        """The moments for pairs of variances `k11`, `k22` and covariance `k12`.

        For values by hand. The angle is taken from the covariance, so that the slope of
        an activation with a kink is good to the square root of the dtype's rounding
        where pairs are nearly parallel; `kernel` takes it from the inputs.

        Args:
            k11: variances of u, `[...]`.
            k12: covariances, `[...]`; at most sqrt(k11 k22) in size.
            k22: variances of v, `[...]`.

        Raises:
            ValueError: if a variance is negative, or a covariance too large for them.
        """
        k11, k12, k22 = jnp.broadcast_arrays(*map(jnp.asarray, (k11, k12, k22)))
        _check_moments(k11, k12, k22)
        if self.check is not None and not any(
            isinstance(k, jax.core.Tracer) for k in (k11, k22)
        ):
            self.check(float(max(jnp.max(k11), jnp.max(k22))))
        scale = jnp.sqrt(k11 * k22)
        cosine = jnp.where(scale > 0, k12 / jnp.where(scale > 0, scale, 1), 1)
        return self.forward(k11, k22, jnp.arccos(jnp.clip(cosine, -1, 1)))


def check_function(dual: Dual, fn: Callable[[jax.Array], jax.Array]) -> None:
    """Raises `ValueError` where `fn` is not the function that a dual is of.

    The same function in other words will do: values and slopes are compared at some
    places between -20 and 20, none of them whole, to 1e-4. One that has no forward
    derivative is compared by its values.

    Args:
        dual: with a function.
        fn: elementwise.
    """
    if fn is dual.fn:
        return
    places = np.linspace(-20, 20, 330, dtype=np.float32)
    with jax.ensure_compile_time_eval():
        x = jnp.asarray(places)
        try:
            found, own = (_value_and_slope(f, x) for f in (fn, dual.fn))
        except TypeError:  # as of jax.custom_vjp
            found, own = (np.array([f(x)]) for f in (fn, dual.fn))
    close = np.isclose(found, own, rtol=1e-4, atol=1e-4, equal_nan=True)
    if close.all():
        return
    which, place = np.argwhere(~close)[0]
    raise ValueError(
        f"activation= is another function than {dual.name!r} of the spec: its"
        f" {('value', 'slope')[which]} at {places[place]:.4g} is"
        f" {found[which, place]:.6g} and not {own[which, place]:.6g}, so that networks"
        " would not follow the spec's kernels. Leave activation= out, or make the spec"
        " with activation=ntk.dual(fn)."
    )


def _value_and_slope(fn, x):
    return np.array(jax.jvp(fn, (x,), (jnp.ones_like(x),)))


def _check_moments(k11, k12, k22):
    if any(isinstance(k, jax.core.Tracer) for k in (k11, k12, k22)):
        return
    k11, k12, k22 = (np.asarray(k, float) for k in (k11, k12, k22))
    with np.errstate(invalid="ignore"):
        fits = (
            (k11 >= 0) & (k22 >= 0) & (np.abs(k12) <= np.sqrt(k11 * k22) * (1 + 1e-5))
        )
    if not fits.all():
        place = np.unravel_index(fits.argmin(), fits.shape)
        raise ValueError(
            "Variances are 0 or positive and a covariance is at most the root of their"
            f" product; got k11 {k11[place]:.6g}, k12 {k12[place]:.6g}, k22"
            f" {k22[place]:.6g}."
        )


def _relu(k11, k22, angle):
    scale = jnp.sqrt(k11) * jnp.sqrt(k22)
    rest = jnp.pi - angle
    product = scale * (jnp.sin(angle) + rest * jnp.cos(angle)) / (2 * jnp.pi)
    slope = jnp.broadcast_to(rest / (2 * jnp.pi), product.shape)
    # 1 - cos of the new angle, without the difference of nearly equal numbers.
    versine = 2 * jnp.sin(angle / 2) ** 2 - _sine_defect(angle) / jnp.pi
    half = jnp.sqrt(jnp.clip(versine / 2, 0, 1))
    return DualMoments(
        product, slope, jnp.broadcast_to(2 * jnp.arcsin(half), product.shape)
    )


def _sine_defect(angle):
    """sin(x) - x cos(x), by its series where the two terms are nearly equal."""
    square = angle**2
    series = 1 - square / 10 * (1 - square / 28 * (1 - square / 54 * (1 - square / 88)))
    return jnp.where(
        angle < 0.3,
        angle * square / 3 * series,
        jnp.sin(angle) - angle * jnp.cos(angle),
    )


def _erf(k11, k22, angle):
    k12 = jnp.sqrt(k11) * jnp.sqrt(k22) * jnp.cos(angle)
    # (1 + 2 k11) (1 + 2 k22) - 4 k12^2 as a sum of positive terms.
    gap = 1 + 2 * (k11 + k22) + 4 * k11 * k22 * jnp.sin(angle) ** 2
    product = 2 / jnp.pi * jnp.arctan2(2 * k12, jnp.sqrt(gap))
    slope = 4 / jnp.pi / jnp.sqrt(gap)

    def own(k):
        return 2 / jnp.pi * jnp.arctan2(2 * k, jnp.sqrt(1 + 4 * k))

    return DualMoments(product, slope, _angle_of(product, own(k11), own(k22)))


def _angle_of(product, own_u, own_v):
    scale = jnp.sqrt(own_u) * jnp.sqrt(own_v)
    cosine = jnp.where(scale > 0, product / jnp.where(scale > 0, scale, 1), 1)
    return jnp.arccos(jnp.clip(cosine, -1, 1))


def _identity(k11, k22, angle):
    product = jnp.sqrt(k11) * jnp.sqrt(k22) * jnp.cos(angle)
    return DualMoments(
        product, jnp.ones_like(product), jnp.broadcast_to(angle, product.shape)
    )


def _same(x):
    return x


relu = Dual("relu", _relu, fn=jax.nn.relu)
erf = Dual("erf", _erf, fn=jax.lax.erf)
identity = Dual("identity", _identity, fn=_same)

DUALS = {"relu": relu, "erf": erf, "identity": identity}
