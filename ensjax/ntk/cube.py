"""Exact draws of a wide network at initialisation on the whole binary cube.

A kernel of rotations sees two inputs through their numbers of ones m, m' and their
overlap t. As a function of t it is a sum over the subsets S that both inputs hold,

    K(x, z) = sum_{S in x and z} g_|S|(m, m'),
    g_s(m, m') = sum_t (-1)^(s - t) binom(s, t) F(t; m, m'),

with positive semi-definite g_s (K is a power series in t with squares as factors). So a
draw is h(x) = sum_{S in x} G_S(m), with independent Gaussian vectors G_S of covariance
g_|S| over m: small factors and sums over subsets in place of a factor of the covariance
of 2^k inputs, which for k = 16 would take 17 GB.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import comb

from ensjax.members import member_key
from ensjax.ntk.kernels import FullyConnected, kernel
from ensjax.ntk.permutations import cube_inputs

# Arrays of one draw that exist together: outputs are drawn one after the other above.
_FLOATS_AT_ONCE = 2**22
# Subset sums are products with matrices of so many bits.
_BITS_OF_A_FACTOR = 4


class CubePrior(NamedTuple):
    """What draws on the cube of k bits need: a pytree of small arrays.

    Attributes:
        factors: for each size of a subset, from 0 to k, the factor of its covariance
            over the number of ones, `[ones, rank]`, the first row for inputs of one 1.
        places: where each subset stands among those sorted by size, int32 `[subset]`.
        ones: number of ones of each input less 1, int32 `[row]`; rows as those of
            `cube_inputs`.
    """

    factors: tuple[jax.Array, ...]
    places: jax.Array
    ones: jax.Array

    @property
    def num_bits(self) -> int:
        """k."""
        return len(self.factors) - 1


def cube_prior(
    spec: FullyConnected, num_bits: int, *, tolerance: float = 1e-12
) -> CubePrior:
    """The factors for draws of a network at initialisation on all inputs of k bits.

    Args:
        spec: the network; its NNGP kernel is drawn from.
        num_bits: k.
        tolerance: directions of less variance than this share of the largest variance
            are left out; below float32's rounding by default.

    Raises:
        ValueError: if the cube cannot be listed.
    """
    sizes = cube_inputs(num_bits).sum(axis=1).astype(np.int32)  # raises
    with jax.enable_x64(True):
        table = _overlap_table(spec, num_bits)
    largest, factors = table[0].max(), []
    for size in range(num_bits + 1):
        signs = (-1.0) ** (size - np.arange(size + 1)) * comb(size, np.arange(size + 1))
        moments = np.tensordot(signs, table[: size + 1], axes=1)
        low = max(size, 1) - 1  # inputs that hold a subset have as many ones or more
        values, vectors = np.linalg.eigh(moments[low:, low:])
        kept = values > tolerance * largest
        factor = np.zeros((num_bits, max(kept.sum(), 1)))
        factor[low:, : kept.sum()] = vectors[:, kept] * np.sqrt(values[kept])
        factors.append(jnp.asarray(factor, jnp.float32))
    counts = np.concatenate([[0], sizes])
    places = np.argsort(np.argsort(counts, kind="stable"), kind="stable")
    return CubePrior(
        tuple(factors), jnp.asarray(places, jnp.int32), jnp.asarray(sizes - 1)
    )


def _overlap_table(spec, num_bits) -> np.ndarray:
    """F(t; m, m') for t = 0 ... k and m, m' = 1 ... k, `[overlap, ones, ones]`.

    Two vectors of those lengths and that product stand for the inputs. Where no two
    inputs have the overlap (t above m or m'), the value is not used.
    """
    ones = np.arange(1, num_bits + 1.0)
    features = max(num_bits, 2)
    own, overlap, other = np.meshgrid(
        ones, np.arange(num_bits + 1), ones, indexing="ij"
    )
    along = np.minimum(overlap, np.minimum(own, other)) / np.sqrt(own)
    across = np.sqrt(np.maximum(other - along**2, 0))
    first = np.zeros((num_bits, 1, features))
    first[..., 0] = np.sqrt(ones)[:, None]
    second = np.zeros((*own.shape, features))
    second[..., 0], second[..., 1] = along, across
    second = second.reshape(num_bits, -1, features)
    if num_bits == 1:  # one input alone; the second direction is not needed
        first, second = first[..., :1], second[..., :1]
    rows = jax.jit(jax.vmap(lambda x, z: kernel(spec, x, z).nngp))
    table = np.asarray(rows(first, second)).reshape(own.shape).swapaxes(0, 1)
    return table


@dataclasses.dataclass(frozen=True)
class DrawPrior:
    """Draws of networks at initialisation: `draw(draw_id, seed, prior)`.

    Attributes:
        num_outputs: independent outputs of a network.
    """

    num_outputs: int

    def __call__(self, draw_id, seed, prior: CubePrior) -> jax.Array:
        """Outputs of one network on all inputs, `[row, output]`.

        Args:
            draw_id: of the network; its outputs depend on it and the seed alone.
            seed: of all draws.
            prior: from `cube_prior`.
        """
        key = member_key(seed, "sample", draw_id)
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(
            jnp.arange(self.num_outputs)
        )
        floats = prior.num_bits * 2**prior.num_bits
        at_once = max(1, min(self.num_outputs, _FLOATS_AT_ONCE // floats))
        if at_once == self.num_outputs:
            outputs = jax.vmap(lambda k: _draw_output(k, prior))(keys)
        else:
            outputs = jax.lax.map(
                lambda k: _draw_output(k, prior), keys, batch_size=at_once
            )
        return outputs.T


@dataclasses.dataclass(frozen=True)
class DrawDeviation:
    """Draws of trained networks' deviation from their mean, for some predictors.

    The deviation of a network that is trained to convergence (or stopped) is h(x) -
    w(x) h(X), with h the network at initialisation and w the predictor's weights. One h
    serves all predictors.

    Attributes:
        num_outputs: independent outputs of a network.
    """

    num_outputs: int

    def __call__(self, draw_id, seed, prior: CubePrior, weights) -> jax.Array:
        """Deviations on all inputs, `[..., row, output]`.

        Args:
            draw_id: as for `DrawPrior`.
            seed: of all draws.
            prior: from `cube_prior`.
            weights: w on the basis vectors, `[..., row, bit]`, one for each predictor.
        """
        outputs = DrawPrior(self.num_outputs)(draw_id, seed, prior)
        basis = 2 ** np.arange(prior.num_bits) - 1  # rows of the basis vectors
        fitted = jnp.matmul(weights, outputs[basis], precision="highest")
        return outputs.reshape((1,) * (fitted.ndim - 2) + outputs.shape) - fitted


def _draw_output(key, prior):
    """One output on all inputs, `[row]`."""
    num_bits, columns, start = prior.num_bits, [], 0
    counts = [int(comb(num_bits, size, exact=True)) for size in range(num_bits + 1)]
    ranks = [factor.shape[1] for factor in prior.factors]
    # One call for all sizes: each would compile a generator of its own.
    noise = jax.random.normal(key, (int(np.dot(counts, ranks)),))
    for factor, count, rank in zip(prior.factors, counts, ranks):
        own = noise[start : start + count * rank].reshape(rank, count)
        columns.append(jnp.matmul(factor, own, precision="highest"))
        start += count * rank
    terms = jnp.concatenate(columns, axis=1)[:, prior.places]  # [ones, subset]
    sums = _subset_sums(terms, num_bits)[:, 1:]
    return jnp.take_along_axis(sums, prior.ones[None], axis=0)[0]


def _subset_sums(terms, num_bits):
    """Sums over all subsets of every set, `[ones, subset]` -> `[ones, set]`."""
    rows = terms.shape[0]
    for first in range(0, num_bits, _BITS_OF_A_FACTOR):
        bits = min(_BITS_OF_A_FACTOR, num_bits - first)
        sets = np.arange(2**bits)
        holds = (sets[:, None] & sets[None, :]) == sets[None, :]  # [set, subset]
        split = terms.reshape(rows, -1, 2**bits, 2**first)
        terms = jnp.einsum(
            "st,ratb->rasb", holds.astype(np.float32), split, precision="highest"
        )
    return terms.reshape(rows, -1)
