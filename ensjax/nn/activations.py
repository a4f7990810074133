"""Activations of transformers, by the names under which published weights have them."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

Activation = Callable[[jax.Array], jax.Array]


def quick_gelu(x: jax.Array) -> jax.Array:
    """x sigmoid(1.702 x), elementwise.

    Source: Hendrycks and Gimpel 2016, arXiv:1606.08415, section 2.
    """
    return x * nnx.sigmoid(1.702 * x)


def soft_clamp(x: jax.Array) -> jax.Array:
    """0 for x <= 0, x^2 up to 1/2, then x - 1/4: never negative, with a derivative.

    Of what cannot be negative, such as water, counted from where there is none.

    Source: Bonev et al. 2025, arXiv:2507.12144 (FourCastNet 3), of its water channels.
    """
    rising = jnp.clip(x, 0.0, 0.5)
    return rising**2 + jnp.maximum(x - 0.5, 0.0)


ACTIVATIONS: dict[str, Activation] = {
    "gelu": functools.partial(nnx.gelu, approximate=False),
    "gelu_tanh": nnx.gelu,
    "quick_gelu": quick_gelu,
    "relu": nnx.relu,
}


def activation_function(name: str) -> Activation:
    """The activation of a name: "gelu" is exact, "gelu_tanh" its approximation.

    Raises:
        ValueError: if the name is unknown.
    """
    if name not in ACTIVATIONS:
        raise ValueError(
            f"activation must be one of {', '.join(ACTIVATIONS)}; got {name!r}."
        )
    return ACTIVATIONS[name]
