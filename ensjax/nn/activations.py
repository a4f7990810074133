"""Activations of transformers, by the names under which published weights have them."""

import functools
from collections.abc import Callable

import jax
from flax import nnx

Activation = Callable[[jax.Array], jax.Array]


def quick_gelu(x: jax.Array) -> jax.Array:
    """x sigmoid(1.702 x), elementwise.

    Source: Hendrycks and Gimpel 2016, arXiv:1606.08415, section 2.
    """
    return x * nnx.sigmoid(1.702 * x)


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
