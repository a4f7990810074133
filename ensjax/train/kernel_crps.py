"""The kernel CRPS of members as a training loss, in two forms with exact gradients.

    standard      mean_m |x_m - y| - 1 / (2 M^2)          sum_{m,l} |x_m - x_l|
    fair          mean_m |x_m - y| - 1 / (2 M (M - 1))    sum_{m,l} |x_m - x_l|
    almost fair   alpha fair + (1 - alpha) standard

The values are those of `verification.crps`. What a loss asks for beside that: sums that
do not cancel, members of low precision, and derivatives that treat members alike also
where two are equal. Differences are taken in float32 at least, of what the members are;
|0| has derivative 0, so that equal members are not pushed apart by their order.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from ensjax.mesh import tracing_platform
from ensjax.verification.crps import weight_of_fair

FORMS = ("auto", "pairs", "sorted")
# Pairs cost M passes over the members, as one program that keeps nothing of them; nor
# does its derivative, which is one factor for each member. On a CPU value and gradient
# of 16 members take a sixth of a sort's time, those of 64 a fifth; on an H200 a quarter
# and nine tenths.
_MOST_IN_PAIRS, _MOST_IN_PAIRS_ELSE = {"cpu": 128}, 64
# A CPU has one member at a time in its cache. An accelerator pairs all of so many at
# once, within one kernel, since it waits for the beginning of every pass (H200, 64
# members: 16 at a time took 1.4 times as long, of few values 2.8 times).
_BLOCK, _BLOCK_ELSE = {"cpu": 1}, 128


def kernel_crps(
    members: jax.Array,
    truth: jax.Array,
    *,
    estimator: str = "almost_fair",
    alpha: float = 0.95,
    form: str = "auto",
    mask: jax.Array | None = None,
    weights: jax.Array | None = None,
) -> jax.Array:
    """The CRPS of every element, `[...]`, in the unit of the values.

    A NaN makes the value of its element NaN, and the derivative of every sum that it is
    in, unless it is masked.

    Args:
        members: `[member, ...]`, of any floating type.
        truth: `[...]`.
        estimator: "standard", "fair" or "almost_fair".
        alpha: of the almost fair form, from 0 (standard) to 1 (fair).
        form: "pairs" (every term is 0 or more; work grows with the square of the number
            of members), "sorted" (M log M), or "auto": pairs of at most 128 members
            on a CPU and of 64 elsewhere.
        mask: booleans that broadcast to `[...]`. Where it is not set the value is 0 and
            nothing has a derivative, whatever truth, members and weights are there,
            such as `mask=~jnp.isnan(truth)`. None: all elements count.
        weights: what the values are multiplied by, broadcasting to `[...]`.

    Returns:
        float32, or float64 for such members. Of a masked score the mean over what
        counts is `sum(values) / sum(mask)`.

    Raises:
        ValueError: if shapes do not fit, a word is unknown, `alpha` is out of range,
            there is no member, or there is one and the estimator is not the standard
            one, which then is the absolute error.
        TypeError: if members or truth are complex, or the mask is not of booleans.

    Source: Lang et al. 2024, arXiv:2412.15832, equation 4 and its stable form; Ferro
    2014, QJRMS 140, equation 5 (fair). The optimum of the fair form with two members
    does not hold one of them where the other is right: hence the almost fair one.

    Example:
        >>> import jax.numpy as jnp
        >>> from ensjax.train.kernel_crps import kernel_crps
        >>> members = jnp.array([[0.1], [0.4], [0.9], [1.6], [2.5]])  # [member, case]
        >>> kernel_crps(members, jnp.array([0.7]), estimator="fair").round(4)
        Array([0.16], dtype=float32)
    """
    members, truth = checked_members(members, truth)
    fair = fair_weight(estimator, alpha, len(members))
    values = crps_of_weight(members, truth, fair, form=form, mask=mask)
    if weights is None:
        return values
    weights = jnp.asarray(weights, values.dtype)
    weights = _of_elements("weights", weights, values.shape)
    if mask is not None:  # 0 times infinity is none
        weights = jnp.where(jnp.asarray(mask), weights, 0.0)
    return values * weights


def crps_of_weight(
    members: jax.Array,
    truth: jax.Array,
    fair: jax.Array | float,
    *,
    form: str = "auto",
    mask: jax.Array | None = None,
) -> jax.Array:
    """`kernel_crps` by the weight of its fair estimator, which may be traced.

    Members of a stack may then differ in it: 0 is the standard form, 1 the fair one.
    That it is in range, and that there are two members, is for the caller to check
    (`check_fair`).

    Raises:
        ValueError: if shapes do not fit or the form is unknown.
        TypeError: if members or truth are complex, or the mask is not of booleans.
    """
    members, truth = checked_members(members, truth)
    if form not in FORMS:
        raise ValueError(f"form must be one of {', '.join(FORMS)}; got {form!r}.")
    dtype = jnp.promote_types(jnp.result_type(members, truth), jnp.float32)
    away = members.astype(dtype) - truth.astype(dtype)[None]
    if mask is not None:
        mask = jnp.asarray(mask)
        if mask.dtype != bool:
            raise TypeError(f"mask must be booleans; got {mask.dtype}.")
        # Before the kernel: a NaN that is only masked afterwards has a NaN derivative.
        # Of zeros the kernel is 0, and so is its derivative.
        mask = _of_elements("mask", mask, truth.shape)
        away = jnp.where(mask[None], away, 0.0)
    count = len(away)
    if count == 1:
        return magnitude(away[0])
    # What a pair's distance counts beside its two errors; e of the source is 1 - kept.
    kept = 1 - (1 - fair) / count
    most = _MOST_IN_PAIRS.get(tracing_platform(), _MOST_IN_PAIRS_ELSE)
    if form == "pairs" or (form == "auto" and count <= most):
        return _of_pairs(away, kept)
    return jnp.mean(magnitude(away), axis=0) - _spread(away) * kept


def checked_members(members: Any, truth: Any) -> tuple[jax.Array, jax.Array]:
    """Arrays `[member, ...]` and `[...]`.

    Raises:
        ValueError: if shapes do not fit.
        TypeError: if one is complex: those numbers have no order.
    """
    members, truth = jnp.asarray(members), jnp.asarray(truth)
    if members.ndim < 1 or members.shape[1:] != truth.shape:
        raise ValueError(
            f"members must be [member, ...] and truth [...]; got {members.shape} and"
            f" {truth.shape}."
        )
    dtype = jnp.result_type(members, truth)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        raise TypeError(
            f"members and truth must be real; got {dtype}. `crps_of_complex` takes real"
            " and imaginary parts."
        )
    return members, truth


def crps_of_complex(
    members: jax.Array, truth: jax.Array, fair: jax.Array | float
) -> jax.Array:
    """`crps_of_weight` of complex numbers, whose distance is the modulus, in pairs.

        mean_m |z_m - w| - kept / (2 M (M - 1)) sum_{m,l} |z_m - z_l|

    with the `kept` of the real ones. It is 0 or more, and sees phases, to which a CRPS
    of moduli is blind. There is no sorted form of it: numbers of a plane have no order.

    Args:
        members: real and imaginary parts, `[member, part 2, ...]`.
        truth: `[part 2, ...]`.
        fair: weight of the fair estimator, from 0 to 1; may be traced.

    Returns:
        `[...]`, float32, or float64 for such members.

    Raises:
        ValueError: if shapes do not fit.
    """
    members, truth = jnp.asarray(members), jnp.asarray(truth)
    if members.ndim < 2 or members.shape[1:] != truth.shape or len(truth) != 2:
        raise ValueError(
            "members must be [member, part 2, ...] and truth [part 2, ...]; got"
            f" {members.shape} and {truth.shape}."
        )
    dtype = jnp.promote_types(jnp.result_type(members, truth), jnp.float32)
    away = members.astype(dtype) - truth.astype(dtype)[None]
    count, error = len(away), modulus(away, axis=1)
    if count == 1:
        return error[0]
    kept = 1 - (1 - fair) / count

    # Again on the way back: of each member's pairs nothing is kept but their sum.
    @jax.checkpoint
    def with_others(number):
        distance = modulus(away - away[number][None], axis=1)
        terms = error + error[number][None] - kept * distance
        is_pair = (jnp.arange(count) != number).reshape(-1, *(1,) * (terms.ndim - 1))
        return jnp.sum(jnp.where(is_pair, terms, 0.0), axis=0)

    def add(total, number):
        return total + with_others(number), None

    twice = jax.lax.scan(add, jnp.zeros_like(error[0]), jnp.arange(count))[0]
    return twice / (2 * count * (count - 1))


def modulus(parts: jax.Array, *, axis: int) -> jax.Array:
    """The root of the sum of squares along an axis, with derivative 0 at 0."""
    squared = jnp.sum(jnp.square(parts), axis=axis)
    # The root has no derivative at 0, where there is no harmonic for instance.
    is_there = squared > 0
    return jnp.where(is_there, jnp.sqrt(jnp.where(is_there, squared, 1.0)), 0.0)


def _of_elements(name, values, shape):
    """`values` for every element `[...]`."""
    try:
        return jnp.broadcast_to(values, shape)
    except ValueError:
        raise ValueError(
            f"{name} must broadcast to the truth {shape}; got {values.shape}."
        ) from None


def magnitude(x: jax.Array) -> jax.Array:
    """`|x|`, with derivative 0 at 0, where `jnp.abs` has 1."""
    return x * jax.lax.stop_gradient(jnp.sign(x))


def fair_weight(estimator: str, alpha: float, num_members: int) -> float:
    """`weight_of_fair`, for this many members.

    Raises:
        ValueError: as there, or as `check_fair`.
    """
    fair = weight_of_fair(estimator, alpha)
    check_fair(fair, num_members, estimator=estimator)
    return fair


def check_fair(fair: Any, num_members: int, *, estimator: str = "fair") -> None:
    """Raises unless a CRPS has this weight of its fair estimator with so many members.

    A weight that is traced is not known, and not looked at.

    Args:
        fair: from 0 (standard) to 1 (fair).
        num_members: M.
        estimator: what the weight is called.

    Raises:
        ValueError: for no member, a weight out of range, or one member unless the
            weight is 0.
    """
    if num_members < 1:
        raise ValueError(f"the CRPS needs at least one member; got {num_members}.")
    if isinstance(fair, jax.core.Tracer):
        return
    known = np.asarray(fair)
    if not ((known >= 0) & (known <= 1)).all():
        raise ValueError(
            f"fair must be from 0 (standard) to 1 (fair estimator); got {fair}."
        )
    if num_members < 2 and (known > 0).any():
        raise ValueError(
            f"the {estimator} CRPS needs at least two members; got {num_members}. One"
            ' member has the estimator "standard" (a weight of 0), which is its'
            " absolute error."
        )


@jax.custom_jvp
def _of_pairs(away, kept):
    """1 / (M (M - 1)) sum_{m<l} |a_m| + |a_l| - kept |a_m - a_l|, no term below 0."""
    return _sum_of_pairs(away, kept)


def _of_pairs_jvp(primals, tangents):
    """Signs of all pairs add up to a factor for each member, and that is what is kept.

    (Of every pair's own term, derivatives would keep M / 2 times as much.)
    """
    away, kept = primals
    count = len(away)

    def add(others, is_pair, total):
        signs = jnp.sign(away[None] - others[:, None])
        if count % len(others):  # a member itself has the sign 0
            signs = jnp.where(is_pair, signs, 0.0)
        return total + jnp.sum(signs, axis=0)

    order = _over_blocks(add, away, jnp.zeros_like(away))
    factor = ((count - 1) * jnp.sign(away) - kept * order) / (count * (count - 1))
    slope = jnp.zeros(away.shape[1:], away.dtype)
    if not isinstance(tangents[0], SymbolicZero):
        slope += jnp.sum(factor * tangents[0], axis=0)
    if not isinstance(tangents[1], SymbolicZero):
        distances = _sum_of_pairs(away, 0.0) - _sum_of_pairs(away, 1.0)
        slope -= distances * tangents[1]
    return _sum_of_pairs(away, kept), slope


_of_pairs.defjvp(_of_pairs_jvp, symbolic_zeros=True)


def _sum_of_pairs(away, kept):
    count = len(away)
    error = magnitude(away)

    def add(others, is_pair, total):
        distance = magnitude(away[None] - others[:, None])
        terms = error[None] + magnitude(others)[:, None] - kept * distance
        return total + jnp.sum(jnp.where(is_pair, terms, 0.0), axis=(0, 1))

    twice = _over_blocks(add, away, jnp.zeros_like(away[0]))
    return twice / (2 * count * (count - 1))


def _over_blocks(add, away, total):
    """`add(others, is_pair, total)` over blocks `[block, ...]` of the members.

    Where `is_pair` `[block, member, 1...]` is not set, the other one is the member
    itself or none. Compilers keep the parts of a sum that is written out, hence a loop.
    """
    count, ones = len(away), (1,) * (away.ndim - 1)
    block = min(_BLOCK.get(tracing_platform(), _BLOCK_ELSE), count)
    padding = [(0, -count % block)] + [(0, 0)] * len(ones)
    padded, place = jnp.pad(away, padding), jnp.arange(count)

    def step(number, total):
        if block == 1:
            others, is_pair = away[number][None], (place != number)[None]
        else:
            others = jax.lax.dynamic_slice_in_dim(padded, number * block, block)
            index = number * block + jnp.arange(block)
            is_pair = (index[:, None] != place[None]) & (index < count)[:, None]
        return add(others, is_pair.reshape(block, count, *ones), total)

    return jax.lax.fori_loop(0, -(-count // block), step, total)


def _spread(away):
    """sum_{m<l} |a_m - a_l| / (M (M - 1)) by one sort."""
    count = len(away)
    ordered = jnp.sort(away, axis=0)
    place = jnp.arange(count).reshape(-1, *(1,) * (away.ndim - 1))
    place = jnp.broadcast_to(place, away.shape)
    is_new = jnp.diff(ordered, axis=0) > 0
    edge = jnp.ones((1, *away.shape[1:]), bool)
    first = jnp.where(jnp.concatenate([edge, is_new]), place, 0)
    last = jnp.where(jnp.concatenate([is_new, edge]), place, count)
    # How many members are below, less how many are above: equal members count alike.
    below = jax.lax.cummax(first, axis=0)
    above = count - 1 - jax.lax.cummin(last, axis=0, reverse=True)
    factor = (below - above).astype(away.dtype)
    # The factors sum to 0, so that any place may be the origin; in the middle nothing
    # large cancels.
    origin = jax.lax.stop_gradient(ordered[count // 2])
    return jnp.sum(factor * (ordered - origin[None]), axis=0) / (count * (count - 1))
