"""Permutations of bits, and the nonzero binary inputs they are tried on.

Bit `i` of an input goes to place `permutation[i]` of the output. Inputs are listed with
bit `i` of the number `row + 1` in column `i`, so that row 0 is the first basis vector.
"""

from collections.abc import Sequence

import numpy as np

# 65,535 inputs of 16 bits are a megabyte for each member; 2^24 are all that 24 bits
# have, and 1.6 GB.
MAX_CUBE_BITS = 24


def check_permutation(
    permutation: Sequence[int], num_bits: int | None = None
) -> np.ndarray:
    """`permutation` as int64 `[bit]`, if it is one.

    Args:
        permutation: where each bit goes.
        num_bits: how many bits it must be of; None: any number.

    Raises:
        TypeError: if its entries are not integers.
        ValueError: if it has another length, or is no bijection; names the first place
            that is hit twice or is out of range.
    """
    array = np.asarray(permutation)
    if array.ndim != 1 or not array.size:
        raise ValueError(
            f"a permutation is a list of places [bit]; got shape {array.shape}."
        )
    if not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"a permutation holds integers; got dtype {array.dtype}.")
    length = len(array)
    if num_bits not in (None, length):
        raise ValueError(
            f"a permutation of {num_bits} bits has {num_bits} places; got {length}."
        )
    outside = array[(array < 0) | (array >= length)]
    if outside.size:
        raise ValueError(
            f"the places of {length} bits are 0 to {length - 1}; got {outside[0]}."
        )
    counts = np.bincount(array, minlength=length)
    if counts.max() > 1:
        raise ValueError(
            f"a permutation hits every place once; {counts.argmax()} comes"
            f" {counts.max()} times and {counts.argmin()} never."
        )
    return array.astype(np.int64)


def draw_permutation(num_bits: int, *, seed: int) -> np.ndarray:
    """A uniformly drawn permutation of `num_bits` bits, int64 `[bit]`.

    Raises:
        TypeError, ValueError: if `num_bits` is no positive integer.
    """
    check_count(num_bits, "num_bits")
    return np.random.default_rng([seed, num_bits]).permutation(num_bits)


def check_count(value: int, name: str) -> None:
    """Raises `TypeError` or `ValueError` unless `value` is an integer of 1 or more."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an integer; got {value!r}.")
    if value < 1:
        raise ValueError(f"{name} must be at least 1; got {value}.")


def check_bits(values: np.ndarray, name: str, num_columns: int | None = None):
    """Raises unless `values` is `[row, bit]` of zeros and ones alone.

    Args:
        values: an array of any dtype.
        name: of the argument, for the message.
        num_columns: how many bits a row must have; None: any number.

    Raises:
        ValueError: for another shape, or the first entry that is no bit; says where.
    """
    values = np.asarray(values)
    width = "bit" if num_columns is None else num_columns
    if values.ndim != 2 or num_columns not in (None, values.shape[1]):
        raise ValueError(f"{name} must be [row, {width}]; got shape {values.shape}.")
    if values.dtype == bool:
        return
    wrong = ~np.isin(values, (0, 1))
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise ValueError(
            f"{name} must hold zeros and ones; got {values[row, column]} in row {row},"
            f" column {column}. Round before, or encode it as bits."
        )


def cube_inputs(num_bits: int) -> np.ndarray:
    """All 2^k - 1 nonzero inputs, float32 `[row, bit]`.

    Raises:
        TypeError: if `num_bits` is no integer.
        ValueError: if there is no bit, or more rows than can be listed.
    """
    if isinstance(num_bits, bool) or not isinstance(num_bits, (int, np.integer)):
        raise TypeError(f"num_bits must be an integer; got {num_bits!r}.")
    if not 1 <= num_bits <= MAX_CUBE_BITS:
        raise ValueError(
            f"the 2^k - 1 inputs are listed for k from 1 to {MAX_CUBE_BITS}; got"
            f" {num_bits}. Draw some with sample_inputs(k, ...), or count them by the"
            " number of ones, on which mean and variance depend alone."
        )
    numbers = np.arange(1, 2**num_bits, dtype=np.int64)
    return ((numbers[:, None] >> np.arange(num_bits)) & 1).astype(np.float32)


def sample_inputs(
    num_bits: int, num_rows: int, *, seed: int, num_ones: int | None = None
) -> np.ndarray:
    """Nonzero inputs drawn with replacement, float32 `[row, bit]`.

    Args:
        num_bits: k.
        num_rows: how many to draw.
        seed: of the draws.
        num_ones: draw uniformly among the inputs with so many ones (the published runs
            have 2); None: among all nonzero ones.

    Raises:
        TypeError: if a number is no integer.
        ValueError: if `num_ones` is not between 1 and k, or nothing is asked for.
    """
    check_count(num_bits, "num_bits")
    check_count(num_rows, "num_rows")
    if num_ones is not None:
        check_count(num_ones, "num_ones")
    rng = np.random.default_rng([seed, num_bits, num_rows, num_ones or 0])
    if num_ones is None:
        rows = rng.integers(0, 2, (num_rows, num_bits))
        while (empty := ~rows.any(axis=1)).any():
            rows[empty] = rng.integers(0, 2, (empty.sum(), num_bits))
        return rows.astype(np.float32)
    if not 1 <= num_ones <= num_bits:
        raise ValueError(
            f"num_ones lies between 1 and the {num_bits} bits; got {num_ones}."
        )
    order = rng.random((num_rows, num_bits)).argsort(axis=1).argsort(axis=1)
    return (order < num_ones).astype(np.float32)


def inputs_to_try(
    num_bits: int,
    *,
    num_rows: int,
    seed: int,
    num_ones: int | None = None,
    max_cube_bits: int = 16,
) -> np.ndarray:
    """The whole cube where it is small, else a sample; float32 `[row, bit]`.

    Args:
        num_bits: k.
        num_rows, seed, num_ones: of the sample, as for `sample_inputs`.
        max_cube_bits: the largest k for which all inputs are listed.

    Raises:
        ValueError: as `cube_inputs` and `sample_inputs`.
    """
    if num_bits <= max_cube_bits:
        return cube_inputs(num_bits)
    return sample_inputs(num_bits, num_rows, seed=seed, num_ones=num_ones)
