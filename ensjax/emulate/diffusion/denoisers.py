"""Denoisers: from a noisy sample and its noise level to the clean one it came from.

A denoiser is a function of one sample, `denoise(x, sigma, condition) -> x0` with x and
x0 `[*shape]`, sigma a scalar, and condition any pytree or None. Those that hold arrays
are pytrees, so that samplers take them as arguments of one compiled program. The score
of the noisy distribution is (denoise(x, sigma) - x) / sigma^2.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp


class Denoiser(Protocol):
    """What samplers, losses and likelihoods ask of a denoiser."""

    def __call__(self, x: jax.Array, sigma: jax.Array, condition: Any) -> jax.Array:
        """The expected clean sample `[*shape]` of one noisy sample."""


@dataclasses.dataclass(frozen=True)
class EDM:
    """A network as a denoiser of data with a known standard deviation.

        D(x, s) = c_skip x + c_out F(c_in x, ln(s) / 4)
        c_skip = d^2 / (s^2 + d^2), c_out = s d / sqrt(s^2 + d^2),
        c_in = 1 / sqrt(s^2 + d^2)

    Attributes:
        sigma_data: d, the standard deviation of the data; 1 for standardised data.

    Source: Karras et al. 2022, arXiv:2206.00364, table 1 and equation 7.
    """

    sigma_data: float = 1.0

    def __post_init__(self):
        if not 0 < self.sigma_data < math.inf:
            raise ValueError(f"sigma_data must be above 0; got {self.sigma_data}.")

    def denoise(
        self, network: Callable[..., jax.Array], x: Any, sigma: Any, condition: Any
    ) -> jax.Array:
        """The clean sample, by `network(x, noise, condition) -> [*shape]`."""
        total = jnp.sqrt(sigma**2 + self.sigma_data**2)
        output = network(x / total, jnp.log(sigma) / 4, condition)
        skip, out = (self.sigma_data / total) ** 2, sigma * self.sigma_data / total
        return skip * x + out * output.astype(x.dtype)

    def weight(self, sigma: jax.Array) -> jax.Array:
        """Of the squared error of D in the loss: 1 / c_out^2."""
        return 1 / self.sigma_data**2 + 1 / sigma**2


@dataclasses.dataclass(frozen=True)
class VE:
    """A network as sigma times the score of a variance-exploding diffusion.

        D(x, s) = x + s^2 score(x, s) = x + s F(x, ln(s / 2))

    The loss E |s score + Z|^2, Z the noise of unit variance, is the squared error of D
    with weight 1 / s^2.

    Source: Song et al. 2021, arXiv:2011.13456, equation 7, as in Karras et al. 2022,
    arXiv:2206.00364, table 1, column VE.
    """

    def denoise(
        self, network: Callable[..., jax.Array], x: Any, sigma: Any, condition: Any
    ) -> jax.Array:
        """The clean sample, by `network(x, noise, condition) -> [*shape]`."""
        output = network(x, jnp.log(sigma / 2), condition)
        return x + sigma * output.astype(x.dtype)

    def weight(self, sigma: jax.Array) -> jax.Array:
        """Of the squared error of D in the loss: 1 / s^2."""
        return 1 / sigma**2


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NetworkDenoiser:
    """The denoiser of a trained network, or a stack of them.

    `NetworkDenoiser(ensemble.state, ensemble.graph, EDM())` has leaves `[model, ...]`,
    which `sample_each` takes; `one_denoiser` takes one of it.

    Attributes:
        state: of the network, as `Ensemble` holds it.
        graph: its static half, `ensemble.graph`.
        parametrisation: `EDM` or `VE`.
    """

    state: Any
    graph: Any = dataclasses.field(metadata={"static": True})
    parametrisation: Any = dataclasses.field(metadata={"static": True})

    def __call__(
        self, x: jax.Array, sigma: jax.Array, condition: Any = None
    ) -> jax.Array:
        """The clean sample `[*shape]`, in evaluation mode."""
        network = self.graph.merge(self.state, train=False)
        return self.parametrisation.denoise(network, x, sigma, condition)


def one_denoiser(ensemble: Any, parametrisation: Any, index: int = 0) -> Any:
    """The denoiser of one member of an `Ensemble` of networks.

    Raises:
        ValueError, IndexError: as `Ensemble.select`.
    """
    chosen = ensemble.select([index])
    state = jax.tree.map(lambda x: x[0], chosen.state)
    return NetworkDenoiser(state, ensemble.graph, parametrisation)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GaussianDenoiser:
    """The exact denoiser of a Gaussian, in closed form.

        D(x, s) = m + C (C + s^2 I)^-1 (x - m)

    Attributes:
        mean: m, `[d]`.
        eigenvalues: of C, `[d]`.
        eigenvectors: its eigenvectors in columns, `[d, d]`.
    """

    mean: jax.Array
    eigenvalues: jax.Array
    eigenvectors: jax.Array

    @classmethod
    def from_covariance(cls, mean: Any, covariance: Any) -> "GaussianDenoiser":
        """The denoiser of N(mean, covariance).

        Raises:
            ValueError: if shapes do not fit.
        """
        mean, covariance = jnp.asarray(mean), jnp.asarray(covariance)
        if mean.ndim != 1 or covariance.shape != 2 * mean.shape:
            raise ValueError(
                "mean must be [d] and covariance [d, d]; got"
                f" {mean.shape} and {covariance.shape}."
            )
        values, vectors = jnp.linalg.eigh(covariance)
        return cls(mean, values, vectors)

    def __call__(
        self, x: jax.Array, sigma: jax.Array, condition: Any = None
    ) -> jax.Array:
        """The clean sample `[d]`; a condition `[d]` is added to the mean."""
        mean = self.mean if condition is None else self.mean + condition
        along = self.eigenvectors.T @ (x - mean)
        kept = self.eigenvalues / (self.eigenvalues + sigma**2) * along
        return mean + self.eigenvectors @ kept


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ClassifierFreeGuidance:
    """A denoiser that overstates what its condition changes.

        D_w(x, s, c) = D(x, s, none) + w (D(x, s, c) - D(x, s, none))

    Attributes:
        denoiser: trained with and without the condition.
        none: what stands for no condition, of the structure of one.
        weight: w; 1 is the denoiser itself, 0 ignores the condition.

    Source: Ho and Salimans 2022, arXiv:2207.12598, equation 6, with w = their 1 + w.
    """

    denoiser: Any
    none: Any
    weight: Any

    def __call__(self, x: jax.Array, sigma: jax.Array, condition: Any) -> jax.Array:
        """The guided clean sample `[*shape]`; runs the denoiser twice."""
        without = self.denoiser(x, sigma, self.none)
        return without + self.weight * (self.denoiser(x, sigma, condition) - without)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ObservationGuidance:
    """A denoiser that is drawn to data it was not trained for.

        D'(x, s) = D(x, s) + scale s^2 grad_x log p(data | D(x, s), s)

    It is exact if the likelihood is that of the noisy sample: for a Gaussian and linear
    observations, one whose variance includes what D leaves open.

    Attributes:
        denoiser: of the prior.
        data: any pytree.
        log_likelihood: `log_likelihood(x0, sigma, data) -> []` in nats.
        scale: of the pull; 1 is Bayes' rule.

    Source: Chung et al. 2023, arXiv:2209.14687, equation 15.
    """

    denoiser: Any
    data: Any
    log_likelihood: Callable[..., jax.Array] = dataclasses.field(
        metadata={"static": True}
    )
    scale: float = dataclasses.field(default=1.0, metadata={"static": True})

    def __call__(
        self, x: jax.Array, sigma: jax.Array, condition: Any = None
    ) -> jax.Array:
        """The guided clean sample `[*shape]`; differentiates the denoiser."""

        def log_density(x):
            x0 = self.denoiser(x, sigma, condition)
            return self.log_likelihood(x0, sigma, self.data), x0

        pull, x0 = jax.grad(log_density, has_aux=True)(x)
        return x0 + self.scale * sigma**2 * pull


def as_pytree(denoiser: Any) -> Any:
    """A denoiser that can be an argument of a compiled program.

    Bare functions become static parts of a pytree without arrays: define them once,
    since every new function object compiles again.

    Raises:
        TypeError: if it cannot be called.
    """
    if not callable(denoiser):
        raise TypeError(
            "a denoiser is called as denoiser(x, sigma, condition); got"
            f" {type(denoiser).__name__}."
        )
    is_leaf = jax.tree.structure(denoiser) == jax.tree.structure(0)
    return jax.tree_util.Partial(denoiser) if is_leaf else denoiser
