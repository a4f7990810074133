"""A checksum of every member's part of every array, wherever the parts live.

A store can hand back other bytes than it was given, and Orbax does not notice it in the
chunks of an array. The checksum here is a sum, so that it needs no gathering: each
device adds up what it holds, in one compiled program over the sharded arrays, and the
result is the same on any mesh.

    checksum(row) = sum_i mix(word_i XOR c i)  mod 2^32,  c = 0x9E3779B9

over the row's 32-bit words and their positions i. `mix` is one-to-one and scrambles all
bits, so that one changed word is always noticed, and any other change, such as chunks
that were swapped, with probability 1 - 2^-32. Words times odd numbers that depend on i
would be cheaper but not enough: two words whose sign is flipped would cancel. A CRC-32
can be split as well, but XLA has no carry-less product, and without one each word costs
some hundred operations; this costs about ten, little more than reading the arrays.

Source of `mix`: Wellons, "Prospecting for Hash Functions", 2018 ("lowbias32").
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.mesh import fetch


def row_checksums(table: dict[str, Any]) -> dict[str, np.ndarray]:
    """The checksums `[row]` (uint32) of named arrays `[row, ...]`.

    Args:
        table: arrays of any dtype but random keys; on devices, also of several
            processes (then the call is collective), or NumPy arrays.

    Returns:
        By the same names, whole on every process.
    """
    if not table:
        return {}
    return fetch(_sums({name: _on_devices(x) for name, x in table.items()}))


def _on_devices(x):
    """A NumPy array as words already: JAX would round 64 bits to 32."""
    if isinstance(x, jax.Array):
        return x
    x = np.ascontiguousarray(x)
    size = x.dtype.itemsize
    if size % 4 == 0:
        return x.view(np.uint32).reshape(*x.shape, size // 4)
    return x.view(np.uint8 if size == 1 else np.uint16)


@jax.jit
def _sums(table):
    return {name: _row_sums(_words(x)) for name, x in table.items()}


def _words(x):
    """The bits of `x` as uint32, with one axis more where an entry takes several."""
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        return _words(jnp.stack([x.real, x.imag], axis=-1))
    bits = jax.dtypes.itemsize_bits(x.dtype)
    if x.dtype == bool or bits < 8:
        return x.astype(jnp.int8).astype(jnp.uint32)
    unsigned = {8: jnp.uint8, 16: jnp.uint16}.get(bits, jnp.uint32)
    return jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)


def _row_sums(words):
    """`[row]` from `[row, ...]`; never reshaped, so that a split axis stays split."""
    position = jnp.zeros(words.shape, jnp.uint32)
    for axis in range(1, words.ndim):
        index = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        position = position * np.uint32(words.shape[axis] % 2**32) + index
    mixed = _mix(words ^ position * np.uint32(0x9E3779B9))
    return mixed.sum(axis=tuple(range(1, words.ndim)), dtype=jnp.uint32)


def _mix(x):
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = (x ^ (x >> shift)) * np.uint32(factor)
    return x ^ (x >> 16)
