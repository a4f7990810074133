"""Members of infinite width on all 2^k - 1 binary inputs, by the symmetry of the cube.

Trained on the basis vectors, the covariance of an output between two inputs depends on
their numbers of ones and on how many they share: permuting the bits changes nothing. So
it is block diagonal in the basis that couples k bits as spins 1/2, one by one: a block
of size J + 1 over the number of ones for each J = k, k - 2, ..., repeated binom(k, d) -
binom(k, d - 1) times, d = (k - J) / 2. Coefficients are drawn with factors of these
small blocks, and k steps of 2 x 2 rotations (Clebsch-Gordan) take them to the inputs: k
2^k operations in place of the 4^k of a factor of the whole covariance, and no more
random numbers than inputs.

Source: Schrijver 2005, IEEE Trans. Inf. Theory 51, 2859, section II (the blocks);
Bacon, Chuang and Harrow 2006, arXiv:quant-ph/0407082 (the transform).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import comb

from ensjax.members import member_key
from ensjax.ntk.gaussian_process import (
    check_positive,
    predictor,
    predictor_of_kernels,
    weights,
)
from ensjax.ntk.kernels import (
    FullyConnected,
    check_finite,
    check_variances,
    kernel,
)
from ensjax.ntk.schedules import check_schedule, warn_above_critical

# The table of covariances needs a row for each triple of counts.
_MOST_BITS = 24
_ROWS_AT_ONCE = 2**16  # of means, which are float64 on their way


class CubeMembers(NamedTuple):
    """What members on the whole cube are drawn from.

    Attributes:
        mean: over members, `[row, output]`; row r holds the bits of the number r + 1,
            bit i in column i of the input.
        factors: for J = k, k - 2, ... the factor of the block, `[J + 1, rank]`.
        seed: integer `[]`; with a member's id it gives its draw.
    """

    mean: jax.Array
    factors: tuple[jax.Array, ...]
    seed: jax.Array


def cube_members(
    spec: FullyConnected,
    num_bits: int,
    *,
    targets: Any = None,
    seed: int = 0,
    time: Any = None,
    steps: Any = None,
    learning_rate: Any = 1.0,
) -> CubeMembers:
    """Members trained on the basis vectors, to be asked for all nonzero inputs.

    Exact: means and factors come from kernels in float64; directions that hold less
    than 1e-12 of the largest variance are left out.

    Args:
        spec: the network; not "mup".
        num_bits: k, up to 24. Means take 4 bytes for each input and output, and a
            member that is drawn several times that: with k outputs 4 MiB at k = 16, 80
            MiB at 20, 1.5 GiB at 24, times the members of a block.
        targets: of the basis vectors, `[bit, output]`; the identity by default. For a
            permutation, row i is the image of e_i.
        seed: of the ensemble.
        time, steps, learning_rate: how far they are trained, as in
            `gaussian_process.weights`; to convergence by default.

    Raises:
        TypeError: if `num_bits` is no integer.
        ValueError: if there are no or too many bits, targets do not fit, and as
            `predictor`.

    Example:
        >>> import jax.numpy as jnp
        >>> from ensjax import ntk, reduce
        >>> members = ntk.cube_members(ntk.FullyConnected(), 3)
        >>> states = {"moments": reduce.init_moments(members.mean)}
        >>> states = reduce.fold_members(
        ...     ntk.sample_cube_member,
        ...     jnp.arange(1000),
        ...     states,
        ...     block=100,
        ...     shared=(members,),
        ... )
        >>> reduce.finish_moments(states["moments"])[0].shape
        (7, 3)
    """
    if isinstance(num_bits, bool) or not isinstance(num_bits, (int, np.integer)):
        raise TypeError(f"num_bits must be an integer; got {num_bits!r}.")
    if not 1 <= num_bits <= _MOST_BITS:
        raise ValueError(
            f"num_bits must be from 1 to {_MOST_BITS}; got {num_bits}. For samples of"
            " larger inputs use infinite_members."
        )
    targets = np.eye(num_bits) if targets is None else np.asarray(targets, np.float64)
    if targets.ndim != 2 or len(targets) != num_bits:
        raise ValueError(
            f"targets must be [bit, output] with {num_bits} rows; got shape"
            f" {targets.shape}."
        )
    check_finite(targets, "targets")
    schedule = dict(time=time, steps=steps, learning_rate=learning_rate)
    check_schedule(**schedule)
    with jax.enable_x64(True):
        shares, table = _table(spec, num_bits, schedule)
    blocks = [_block(table, d) for d in range(num_bits // 2 + 1)]
    largest = max(np.linalg.eigvalsh(block)[-1] for block in blocks)
    factors = [_factor(block, 1e-12 * largest) for block in blocks]
    means = np.empty((2**num_bits - 1, targets.shape[1]), np.float32)
    for first in range(0, len(means), _ROWS_AT_ONCE):
        numbers = np.arange(first, min(first + _ROWS_AT_ONCE, len(means))) + 1
        bits = (numbers[:, None] >> np.arange(num_bits)) & 1
        on_zero, on_one = shares[bits.sum(axis=1) - 1].T
        rows = on_zero[:, None] * targets.sum(axis=0)
        rows += (on_one - on_zero)[:, None] * (bits @ targets)
        means[first : first + len(rows)] = rows
    return CubeMembers(
        jnp.asarray(means),
        tuple(jnp.asarray(factor, jnp.float32) for factor in factors),
        jnp.asarray(seed, jnp.uint32),
    )


def _table(spec, k, schedule):
    """Weights on zeros and ones `[ones, 2]`, covariances `[ones, ones', overlap]`.

    Counts start at no ones; that input is not asked for, and its covariance is 0.
    """
    place = np.arange(k)
    triples = [
        (m, other, both)
        for m in range(1, k + 1)
        for other in range(1, k + 1)
        for both in range(max(0, m + other - k), min(m, other) + 1)
    ]
    m, other, both = np.array(triples).T
    firsts = place < np.arange(1, k + 1)[:, None]
    seconds = place < both[:, None]
    seconds |= (place >= m[:, None]) & (place < (m + other - both)[:, None])
    rows = np.concatenate([firsts, seconds]).astype(np.float64)
    if spec.parameterisation == "mup":
        predictor(spec, np.eye(k), np.eye(k))  # raises
    check_variances(spec, rows)
    eigenvalues, found, of_inputs = _solve(spec, np.eye(k), rows, schedule)
    check_positive(eigenvalues)
    if schedule["steps"] is not None:
        warn_above_critical(schedule["learning_rate"], eigenvalues)
    table = np.zeros((k + 1, k + 1, k + 1))
    table[m, other, both] = np.asarray(found)[m - 1, k + np.arange(len(triples))]
    # The weights of an input are two numbers: on its ones, of which bit 0 is one, and
    # on its zeros. The input of ones alone has no zero.
    of_firsts = np.asarray(of_inputs)
    return np.stack([of_firsts[:, -1], of_firsts[:, 0]], axis=1), table


@functools.partial(jax.jit, static_argnums=0)
def _solve(spec, x_train, rows, schedule):
    """Eigenvalues, covariances of the first k rows with all, their weights."""
    train, cross = kernel(spec, x_train), kernel(spec, rows, x_train)
    firsts = rows[: len(x_train)]
    of_rows = predictor_of_kernels(train, cross, jnp.zeros((len(rows),) * 2))
    w = weights(of_rows, **schedule)
    own = w[: len(firsts)]
    product = functools.partial(jnp.matmul, precision="highest")
    prior, of_firsts = cross.nngp, cross.nngp[: len(firsts)]
    shared = product(own, prior.T) + product(of_firsts, w.T)
    spread = product(product(own, train.nngp), w.T)
    return of_rows.eigenvalues, kernel(spec, firsts, rows).nngp + spread - shared, own


def _block(table, pairs):
    """The covariance block of J = k - 2 `pairs`, `[J + 1, J + 1]`.

    Between vectors whose first bits are `pairs` singlets and whose other J bits are the
    even mixture of all states with u ones.
    """
    k = len(table) - 1
    spin = k - 2 * pairs
    same = np.arange(pairs + 1)  # pairs that stand alike in both vectors
    signs = (-1.0) ** (pairs - same) * comb(pairs, same)
    block = np.zeros((spin + 1, spin + 1))
    for u in range(spin + 1):
        for v in range(spin + 1):
            both = np.arange(max(0, u + v - spin), min(u, v) + 1)
            ways = comb(u, both) * comb(spin - u, v - both)
            values = table[u + pairs, v + pairs][both[:, None] + same[None, :]]
            block[u, v] = np.sqrt(comb(spin, u) / comb(spin, v)) * (
                ways @ values @ signs
            )
    return (block + block.T) / 2


def _factor(block, floor):
    values, vectors = np.linalg.eigh(block)
    kept = values > floor
    if not kept.any():
        kept[-1] = True
    return vectors[:, kept] * np.sqrt(np.maximum(values[kept], 0))


def sample_cube_member(member_id: Any, members: CubeMembers) -> jax.Array:
    """The predictions of one member on all nonzero inputs, `[row, output]`.

    A function of one member for `map_members` and `reduce.fold_members`, with `members`
    as a shared argument. A member's draw depends on the seed and its id alone.

    Args:
        member_id: integer `[]`.
        members: from `cube_members`.
    """
    key = member_key(members.seed, "init", member_id)
    k, outputs = members.factors[0].shape[0] - 1, members.mean.shape[1]
    paths = [_paths(k, k - 2 * d) for d in range(len(members.factors))]
    sizes = [f.shape[1] * n for f, n in zip(members.factors, paths, strict=True)]
    noise = jax.random.normal(key, (sum(sizes), outputs), members.mean.dtype)
    spins, start = {}, 0
    for d, (factor, size) in enumerate(zip(members.factors, sizes, strict=True)):
        part = noise[start : start + size].reshape(factor.shape[1], -1)
        drawn = jnp.matmul(factor, part, precision="highest")
        spins[k - 2 * d] = drawn.reshape(factor.shape[0], paths[d], 1, outputs)
        start += size
    return members.mean + _uncouple(spins, k)[1:]


def _paths(num_bits, spin):
    """Ways to couple so many bits to a spin."""
    pairs = (num_bits - spin) // 2
    if spin > num_bits:
        return 0
    return int(comb(num_bits, pairs, exact=True)) - (
        int(comb(num_bits, pairs - 1, exact=True)) if pairs else 0
    )


def _uncouple(spins, num_bits):
    """Amplitudes `[2^k, output]` from those of coupled spins.

    Args:
        spins: for each J `[J + 1, path, 1, output]`. Paths that come from J - 1 stand
            before those that come from J + 1.
        num_bits: k. Bit 0 is uncoupled first, so that an input's row is its number.
    """
    for n in range(num_bits, 0, -1):
        spins = {
            parent: _uncouple_one(
                spins[parent + 1][:, : _paths(n - 1, parent)],
                spins[parent - 1][:, _paths(n - 1, parent - 2) :] if parent else None,
                parent,
            )
            for parent in range((n - 1) % 2, n, 2)
        }
    return spins[0][0, 0]


def _uncouple_one(up, down, parent):
    """States of a spin and one bit, from those of the spin one higher and one lower.

    Args:
        up: of spin `parent` + 1, `[parent + 2, path, rows, output]`.
        down: of spin `parent` - 1, `[parent, path, rows, output]`; None for parent 0.
        parent: J.

    Returns:
        `[parent + 1, path, 2 rows, output]`, the bit being the slower axis of rows.
    """
    u = np.arange(parent + 1).reshape(-1, 1, 1, 1)

    def root(numerator):
        return np.sqrt(numerator / (parent + 1)).astype(up.dtype)

    zero, one = root(parent + 1 - u) * up[:-1], root(u + 1) * up[1:]
    if down is not None:
        edge = jnp.zeros_like(up[:1])
        zero += root(u) * jnp.concatenate([edge, down])
        one -= root(parent - u) * jnp.concatenate([down, edge])
    both = jnp.stack([zero, one], axis=2)
    return both.reshape(*both.shape[:2], -1, both.shape[-1])
