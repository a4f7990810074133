"""Closed forms for two-layer ReLU networks trained on the basis vectors alone.

The network f(x) = W2 relu(W1 x / sqrt(k)) / sqrt(n) without biases sees e_1, ..., e_k
with targets P e_i, P a permutation. For a binary input x with m ones everything in the
limit of large width depends on k and m alone. Numbers here are float64 NumPy on the
host: f0 is a difference, of which float32 keeps 4 to 5 digits from k = 30 to 1,000.

Notation: b = 1 / (2 pi); k T(X, X) = a I + b 11'; k T(x, e_i) = p where x_i = 1 and q
elsewhere; k K(X, X) = (1/2 - b) I + b 11'; k K(x, e_i) = c1 where x_i = 1 and q
elsewhere. With the NTK a = 1 - b; where only the readout learns T = K, so that
a = 1/2 - b and p = c1.
"""

from typing import Any, NamedTuple

import numpy as np

from ensjax.ntk.schedules import check_schedule, warn_above_critical

_B = 1 / (2 * np.pi)


class Law(NamedTuple):
    """What the infinite ensemble predicts for binary inputs with `num_ones` ones.

    All float64 arrays broadcast from the arguments. Outputs are Gaussian, independent
    of each other, with one variance.

    Attributes:
        num_bits: k, the length of inputs and outputs.
        num_ones: m.
        on_one: f1, the mean where the target is 1.
        on_zero: f0, the mean where the target is 0.
        variance: of each output over members.
        p, q, c1: k times the kernels with the training inputs, as above.
    """

    num_bits: np.ndarray
    num_ones: np.ndarray
    on_one: np.ndarray
    on_zero: np.ndarray
    variance: np.ndarray
    p: np.ndarray
    q: np.ndarray
    c1: np.ndarray


KINDS = ("ntk", "readout")


def law(
    num_bits: Any,
    num_ones: Any,
    *,
    kind: str,
    time: Any = None,
    steps: Any = None,
    learning_rate: float = 1.0,
) -> Law:
    """Means and variance of the infinite ensemble, in closed form.

        f1 = (p - S / k) / a + S / (k (a + k b)),  S = m p + (k - m) q,

    and f0 with q in the place of the first p, at convergence.

    Args:
        num_bits: k, integers of at least 1.
        num_ones: m, integers from 1 to k; broadcasts against `num_bits`.
        kind: "ntk" (all weights learn) or "readout" (the last layer alone).
        time: of gradient flow on half the sum of squared errors; None: converged.
        steps: of gradient descent, whole numbers; at most one of the two.
        learning_rate: multiplies time, or is that of gradient descent, for which a
            warning names the critical rate of the k where this is farthest above it.

    Raises:
        ValueError: if numbers are out of range or not whole, or both a time and steps
            are given.

    Source: derived from the kernels of Cho and Saul 2009 and Lee et al. 2019,
    arXiv:1902.06720, equations 14 to 16; the task is that of arXiv:2502.16763.
    """
    k, m = _counts(num_bits, num_ones)
    a, p, q, c1 = _coefficients(kind, m)
    apart, together = spectrum(k, kind=kind)
    if steps is not None:
        # One bit has one training input, which is all that there is in common.
        ends = np.stack([np.where(k > 1, apart, together), together], axis=-1)
        labels = np.array([f"k = {int(n)}" for n in k.flat]).reshape(k.shape)
        warn_above_critical(learning_rate, ends, labels=labels)
    # The mean over training inputs, and what is left: both are eigenvectors of T.
    mean_part = (m * p + (k - m) * q) / k**2
    gain_apart = gain(apart, time=time, steps=steps, learning_rate=learning_rate)
    gain_mean = gain(together, time=time, steps=steps, learning_rate=learning_rate)
    common = gain_mean * mean_part
    on_one = gain_apart * (k - m) * (p - q) / k**2 + common
    on_zero = -gain_apart * m * (p - q) / k**2 + common
    total = m * on_one + (k - m) * on_zero
    squares = m * on_one**2 + (k - m) * on_zero**2
    explained = m * on_one * c1 + (k - m) * on_zero * q
    variance = (m / 2 + (0.5 - _B) * squares + _B * total**2 - 2 * explained) / k
    shape = np.broadcast_shapes(on_one.shape, k.shape)
    fields = (k, m, on_one, on_zero, np.maximum(variance, 0), p, q, c1)
    return Law(*(np.broadcast_to(x, shape) for x in fields))


def ntk_law(num_bits: Any, num_ones: Any) -> Law:
    """`law` at convergence where all weights learn."""
    return law(num_bits, num_ones, kind="ntk")


def readout_law(num_bits: Any, num_ones: Any) -> Law:
    """`law` at convergence where the last layer alone learns.

    The law that the published code of arXiv:2502.16763 follows: it puts 1/sqrt(fan_in)
    into the initial weights and has one learning rate, so that the tangent kernel is n
    times the readout's and a term of order 1.
    """
    return law(num_bits, num_ones, kind="readout")


def spectrum(num_bits: Any, *, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """The two eigenvalues of the training kernel T(X, X), float64.

    Args:
        num_bits: k.
        kind: "ntk" or "readout".

    Returns:
        `(a / k, a / k + b)`: the first k - 1 times, for what sums to 0 over the
        training inputs, the second for what they have in common.
    """
    k = np.asarray(num_bits, float)
    a = _diagonal(kind)
    return a / k, a / k + _B


def gain(
    eigenvalue: Any, *, time: Any = None, steps: Any = None, learning_rate: float = 1.0
) -> np.ndarray:
    """The share of a mode that is learnt, divided by its eigenvalue; float64.

    1/l at convergence, (1 - exp(-r l t)) / l at time t, (1 - (1 - r l)^s) / l after s
    steps, for a learning rate r.

    Args:
        eigenvalue: l, positive.
        time: of gradient flow.
        steps: of gradient descent.
        learning_rate: r.

    Raises:
        ValueError: if both a time and steps are given, or the rate is not positive.
    """
    eigenvalue = np.asarray(eigenvalue, float)
    check_schedule(time, steps, learning_rate)
    if time is not None:
        return -np.expm1(-learning_rate * eigenvalue * np.asarray(time)) / eigenvalue
    if steps is not None:
        return (1 - (1 - learning_rate * eigenvalue) ** np.asarray(steps)) / eigenvalue
    return 1 / eigenvalue


class Limits(NamedTuple):
    """What is left of a law as k grows, for inputs with two ones and with only ones.

    Attributes:
        zero_of_two: k f0 at m = 2, the hard case: -0.213 with the NTK.
        variance_of_two: k times the variance at m = 2.
        ratio_of_two: variance / f0^2 divided by k, at m = 2: members per bit.
        one_of_all: sqrt(k) f1 at m = k.
        variance_of_all: the variance at m = k.
    """

    zero_of_two: float
    variance_of_two: float
    ratio_of_two: float
    one_of_all: float
    variance_of_all: float


def limits(kind: str) -> Limits:
    """The limits of `law` for many bits, in closed form.

    Args:
        kind: "ntk" or "readout".
    """
    m = np.float64(2)
    a, p, q, c1 = _coefficients(kind, m)
    one = (p - q) / a
    zero = q / _B - m * one
    spread = (0.5 - _B) * m * one**2 + _B * (m * one + zero) ** 2
    variance = m / 2 + spread - 2 * (m * one * c1 + zero * q)
    # At m = k: p, c1 -> b sqrt(k), f1 -> 1 / sqrt(k).
    return Limits(
        float(zero), float(variance), float(variance / zero**2), 1.0, 0.5 - _B
    )


def covariance(
    num_bits: Any,
    ones: Any,
    other_ones: Any,
    overlap: Any,
    *,
    kind: str,
    time: Any = None,
    steps: Any = None,
    learning_rate: float = 1.0,
) -> np.ndarray:
    """The covariance of an output between two binary inputs, over members; float64.

        K(x, x') + w K(X, X) w'^T - w K(X, x') - K(x, X) w'^T

    Args:
        num_bits: k.
        ones: m of the first input.
        other_ones: m of the second.
        overlap: bits in which both are 1. All broadcast.
        kind: "ntk" or "readout".
        time, steps, learning_rate: as in `law`.

    Raises:
        ValueError: as `law`, or if no two inputs have that overlap.
    """
    schedule = dict(time=time, steps=steps, learning_rate=learning_rate)
    if not np.all(np.asarray(overlap) == np.round(overlap)):
        raise ValueError(f"overlap must be whole numbers; got {overlap}.")
    x = law(num_bits, ones, kind=kind, **schedule)
    z = law(num_bits, other_ones, kind=kind, **schedule)
    k, both = np.asarray(num_bits, float), np.asarray(overlap, float)
    only_x, only_z = x.num_ones - both, z.num_ones - both
    neither = k - both - only_x - only_z
    if not np.all((both >= 0) & (only_x >= 0) & (only_z >= 0) & (neither >= 0)):
        raise ValueError(
            f"No two inputs of {num_bits} bits with {ones} and {other_ones} ones share"
            f" {overlap}."
        )
    # The angle from its tangent: the arccos of a cosine near 1 has lost its digits.
    sine = np.sqrt(only_x * only_z + both * (only_x + only_z))
    rest = np.pi - np.arctan2(sine, both)
    prior = _B * (sine + rest * both)

    def inner(ones_ones, ones_zeros, zeros_ones, zeros_zeros):
        """Sum over bits of a product of what is constant on ones and on zeros."""
        return (
            both * ones_ones
            + only_x * ones_zeros
            + only_z * zeros_ones
            + neither * zeros_zeros
        )

    def total(w):
        return w.num_ones * w.on_one + (k - w.num_ones) * w.on_zero

    weights = inner(
        x.on_one * z.on_one,
        x.on_one * z.on_zero,
        x.on_zero * z.on_one,
        x.on_zero * z.on_zero,
    )
    x_of_z = inner(x.on_one * z.c1, x.on_one * z.q, x.on_zero * z.c1, x.on_zero * z.q)
    z_of_x = inner(x.c1 * z.on_one, x.c1 * z.on_zero, x.q * z.on_one, x.q * z.on_zero)
    spread = (0.5 - _B) * weights + _B * total(x) * total(z)
    return (prior + spread - x_of_z - z_of_x) / k


def _counts(num_bits, num_ones):
    k, m = np.asarray(num_bits), np.asarray(num_ones)
    for name, value in (("num_bits", k), ("num_ones", m)):
        if not np.all(np.isfinite(value)) or not np.all(value == np.round(value)):
            raise ValueError(f"{name} must be whole numbers; got {value}.")
    if not np.all(k >= 1):
        raise ValueError(f"num_bits must be at least 1; got {k}.")
    if not np.all((m >= 1) & (m <= k)):
        raise ValueError(
            f"num_ones must be from 1 to num_bits, as the input 0 has no direction; got"
            f" num_ones {m} for num_bits {k}."
        )
    return k.astype(float), m.astype(float)


def _diagonal(kind):
    if kind not in KINDS:
        raise ValueError(f"Unknown kind {kind!r}; known: {', '.join(KINDS)}.")
    return 1 - _B if kind == "ntk" else 0.5 - _B


def _coefficients(kind, m):
    a = _diagonal(kind)
    root = np.sqrt(m - 1)
    rest = np.pi - np.arctan(root)  # pi - arccos(1 / sqrt(m))
    q, c1 = _B * np.sqrt(m), _B * (root + rest)
    p = c1 + _B * rest if kind == "ntk" else c1
    return a, p, q, c1
