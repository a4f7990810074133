"""Scores that need rows in the order of confidence, for many systems at once.

One sort serves all of them. Where rows weigh the same it is a sort of plain 32-bit
numbers, which compilers do several times faster than one of pairs.
"""

import jax
import jax.numpy as jnp

from ensjax.scores.rows import bin_sum, equal_weight_bins, weigh
from ensjax.scores.selective import RiskCoverage, curve_area, error_curve
from ensjax.scores.ties import merge_sorted, merge_ties, share_bin

COVERAGE, RISK = 0.8, 0.05  # where the two points of the risk-coverage curve lie
_TOLERANCE = 1e-6


def order_scores(
    level: jax.Array, right: jax.Array, weight: jax.Array | None, num_bins: int
) -> dict[str, jax.Array]:
    """Selective scores and `adaptive_ece` of several systems, `[system]` each.

    Args:
        level: minus the log of the confidence, not negative, `[system, batch]`; of sure
            rows as exact as `log1p((1 - p) / p)` is, not a rounded log-softmax.
        right: bool, `[system, batch]`.
        weight: of the rows, `[batch]`; None: all weigh the same, which is several times
            faster.
        num_bins: of `adaptive_ece`.
    """
    if weight is not None:
        weight = jnp.broadcast_to(weight[None], level.shape)
        error = 1.0 - right
        merged = merge_ties(-_log_odds_against(level), weight)
        curve = error_curve(error, merged, weight)
        best = curve_area(error_curve(error, -error, weight))
        confidence = jnp.exp(-level)
        bins = equal_weight_bins(merged, weight, num_bins)
        miss = bin_sum(weigh(right - confidence, weight), bins, num_bins)
        total = jnp.sum(weight, axis=-1)
    else:
        curve, confidence, hit, bins = _sorted_rows(level, right, num_bins)
        num_rows = level.shape[1]
        place = jnp.arange(1, num_rows + 1, dtype=jnp.float32)[None]
        num_wrong = jnp.sum(~right, axis=-1, keepdims=True)
        late = jnp.maximum(place - (num_rows - num_wrong), 0.0)
        best = jnp.mean(late / place, axis=-1)
        miss, total = bin_sum(hit - confidence, bins, num_bins), num_rows
    area = curve_area(curve)
    first = jnp.argmax(curve.coverage >= COVERAGE - _TOLERANCE, axis=-1)
    reached = (curve.risk <= RISK + _TOLERANCE) & (curve.weight > 0)
    return {
        "adaptive_ece": jnp.sum(jnp.abs(miss), axis=-1) / total,
        "augrc": curve_area(curve._replace(risk=curve.risk * curve.coverage)),
        "aurc": area,
        "excess_aurc": area - best,
        "risk_at_coverage": jnp.take_along_axis(curve.risk, first[:, None], 1)[:, 0],
        "coverage_at_risk": jnp.max(jnp.where(reached, curve.coverage, 0.0), axis=-1),
    }


def _log_odds_against(level):
    """log (1 - p) / p of level = -log p: of the order of `level`; -inf for 0."""
    return jnp.log(jnp.expm1(level))


def _sorted_rows(level, right, num_bins):
    """The curve, confidence, whether right, and bin of rows that all weigh the same.

    A level is a float that is not negative: its bits rise with it and leave the sign
    free for the error, so that one sort of 32-bit numbers orders both.
    """
    num_rows = level.shape[1]
    level = level.astype(jnp.float32)  # float64, where JAX is told to have it
    bits = jax.lax.bitcast_convert_type(level, jnp.uint32)
    bits = jax.lax.sort(bits << 1 | (~right).astype(jnp.uint32), is_stable=False)
    wrong = (bits & 1).astype(jnp.float32)
    level = jax.lax.bitcast_convert_type(bits >> 1, jnp.float32)
    confidence = jnp.exp(-level)
    merged = merge_sorted(_log_odds_against(level))
    new = merged[:, 1:] != merged[:, :-1]
    group = jnp.pad(jnp.cumsum(new.astype(jnp.int32), axis=-1), ((0, 0), (1, 0)))
    in_group = bin_sum(jnp.ones_like(wrong), group, num_rows)
    wrong_in_group = bin_sum(wrong, group, num_rows)
    share = wrong_in_group / jnp.maximum(in_group, 1.0)
    # Ranks count from the least confident row, at the end.
    up_to = num_rows - (jnp.cumsum(in_group, axis=-1) - in_group)
    middle = up_to - in_group / 2

    def of_group(values):
        return jnp.take_along_axis(values, group, axis=-1)

    bins = share_bin(of_group(middle), num_rows, num_bins)
    place = jnp.arange(1, num_rows + 1, dtype=jnp.float32)[None]
    risk = jnp.cumsum(of_group(share), axis=-1) / place
    coverage = jnp.broadcast_to(place / num_rows, risk.shape)
    curve = RiskCoverage(coverage, risk, jnp.ones_like(risk))
    return curve, confidence, 1.0 - wrong, bins
