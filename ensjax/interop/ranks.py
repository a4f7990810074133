"""The k-th largest of more numbers than fit in memory, exactly, in two passes.

Numbers of at least 0 are ordered as their bits are. The first pass counts the upper 16
bits of float32, the second the lower 15 of those that share the upper ones found:
`weight_space.pruning.kth_largest` without having all numbers.
"""

from collections.abc import Callable, Iterable

import numpy as np

_INFINITY = int(np.array(np.inf, np.float32).view(np.int32))
_LOW_BITS = 15
_HIGH, _LOW = 1 << 16, 1 << _LOW_BITS


def streamed_kth_largest(
    passes: Callable[[], Iterable[np.ndarray]],
    counts: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """For each row the `counts`-th largest of its values.

    Args:
        passes: called twice; gives the same blocks `[row, entry]` each time, float32 of
            at least 0.
        counts: given how many values of each row are above 0, `[row]`, returns the
            ranks that are asked for, `[rank, row]`.

    Returns:
        `[rank, row]`, float32; infinity for rank 0, and 0 for ranks above the number of
        values. NaN ranks as infinity does.
    """
    high = positive = None
    for block in passes():
        bits = _bits(block)
        if high is None:
            high = np.zeros((len(bits), _HIGH), np.int64)
            positive = np.zeros(len(bits), np.int64)
        for row, own in enumerate(bits):
            high[row] += np.bincount(own >> _LOW_BITS, minlength=_HIGH)
        positive += np.count_nonzero(block > 0, axis=1)
    wanted = np.asarray(counts(positive), np.int64)
    found = [[_find(h, count) for h, count in zip(high, own)] for own in wanted]
    low = np.zeros((*wanted.shape, _LOW), np.int64)
    for block in passes():
        for row, own in enumerate(_bits(block)):
            upper = own >> _LOW_BITS
            for rank in range(len(wanted)):
                mine = own[upper == found[rank][row][0]]
                low[rank, row] += np.bincount(mine & (_LOW - 1), minlength=_LOW)
    result = np.zeros(wanted.shape, np.int32)
    for rank, row in np.ndindex(wanted.shape):
        upper, above = found[rank][row]
        lower, _ = _find(low[rank, row], wanted[rank, row] - above)
        result[rank, row] = (upper << _LOW_BITS) + lower
    result = np.where(wanted == 0, _INFINITY, np.minimum(result, _INFINITY))
    return result.astype(np.int32).view(np.float32)


def _bits(block):
    return np.minimum(block.astype(np.float32, copy=False).view(np.int32), _INFINITY)


def _find(histogram, count):
    """The highest bin that holds `count` with all above, and what those above hold."""
    reached = np.cumsum(histogram[::-1])
    place = int(np.searchsorted(reached, max(count, 1)))
    if place == len(histogram):  # fewer values than that
        return 0, int(reached[-2]) if len(reached) > 1 else 0
    above = int(reached[place - 1]) if place else 0
    return len(histogram) - 1 - place, above
