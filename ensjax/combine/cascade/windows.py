"""Windows of a cascade: between which confidences a row goes on to the next stage.

Selective prediction and detection ask whether a confidence lies above a threshold, so
another opinion is worth its cost only near it: sure rows are accepted and unsure rows
rejected whatever it says. A window is set by quantiles around the threshold.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import struct

from ensjax.provenance import FittedRows, Provenance, check_fitting_rows
from ensjax.scores.operating_points import point_at_coverage, point_at_risk
from ensjax.scores.rows import broadcast_rows, floating, row_weights

TASKS = ("coverage_at_risk", "fpr_at_tpr", "risk_at_coverage")
_TOLERANCE = 1e-6
_WHAT = "the cascade's windows"


@struct.dataclass
class Windows:
    """A row goes on iff its confidence lies strictly between `low` and `high`.

    Attributes:
        low: `[...]`, one for every boundary between two stages; -inf for a single
            threshold, below which all rows go on.
        high: `[...]`.
        threshold: `[...]`, what the window lies around: rows of at least this
            confidence are accepted.
        fitted_rows: the rows they were fitted on, where they are known.
    """

    low: jax.Array
    high: jax.Array
    threshold: jax.Array
    fitted_rows: FittedRows = struct.field(pytree_node=False, default=FittedRows(_WHAT))


def fit_windows(
    scores: jax.Array,
    correct: jax.Array | None,
    task: str,
    *,
    level: float,
    width: float | Sequence[float] = 0.1,
    sample_weight: jax.Array | None = None,
    provenance: Provenance | None = None,
) -> Windows:
    """Windows around the threshold at which held-out rows reach a task's level.

    With q the share of rows at or below the threshold, a window reaches from the
    quantile q - width to q + width of the same confidences, clipped to [0, 1]: about
    2 width of such rows go on, fewer where it is clipped. A quantile q is the smallest
    confidence below or at which a share q of the rows lies.

    Args:
        scores: confidences of the stage before each boundary, larger is surer,
            `[..., batch]`; a cascade of S stages has `[S - 1, batch]`.
        correct: bool or 0 and 1, `[batch]` or `[..., batch]`; None for "fpr_at_tpr",
            which needs in-distribution rows alone.
        task: what the threshold does on these rows:
            "coverage_at_risk": accepts as many as it can at an error rate of at most
            `level` (`scores.point_at_risk`);
            "risk_at_coverage": accepts the share `level`;
            "fpr_at_tpr": accepts the share `level` of rows in distribution.
        level: 0.05 of a risk, 0.8 of a coverage, 0.95 of a true positive rate.
        width: in quantiles, to either side; a number, or one for each boundary.
        sample_weight: `[batch]` or `[..., batch]`, non-negative.
        provenance: of the rows, where it is known.

    Returns:
        `Windows` of `[...]`; NaN if a row that counts holds one, and then no row of
        any other data goes on.

    Raises:
        ValueError: for an unknown task, a level or width out of range, or a shape that
            does not fit.
        LeakageError: if `provenance` says that members were trained on these rows, or
            that they are test rows.

    Source: Xia and Bouganis 2023, arXiv:2303.08010, section 3.
    """
    fitted_rows = check_fitting_rows(_WHAT, provenance, row_weight=sample_weight)
    if task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}; got {task!r}.")
    if correct is None and task == "coverage_at_risk":
        raise ValueError("coverage_at_risk needs to know which rows are correct.")
    scores = _scores(scores)
    if task == "coverage_at_risk":
        error = 1.0 - floating(correct)
        point = point_at_risk(scores, error, risk=level, sample_weight=sample_weight)
    else:
        point = point_at_coverage(scores, coverage=level, sample_weight=sample_weight)
    return _around(point.threshold, scores, width, sample_weight, fitted_rows)


def fit_single_threshold(
    scores: jax.Array,
    *,
    share: float | Sequence[float] = 0.2,
    sample_weight: jax.Array | None = None,
    provenance: Provenance | None = None,
) -> Windows:
    """A single threshold: the least sure `share` of held-out rows goes on.

    Args:
        scores: confidences of the stage before each boundary, `[..., batch]`.
        share: in [0, 1]; a number, or one for each boundary.
        sample_weight: `[batch]` or `[..., batch]`, non-negative.
        provenance: of the rows, where it is known.

    Returns:
        `Windows` of `[...]` with `low` -inf.

    Raises:
        ValueError: if `share` is out of range, or a shape does not fit.
        LeakageError: as `fit_windows`.

    Source: Wang et al. 2022, arXiv:2012.01988 (cascades by confidence).
    """
    fitted_rows = check_fitting_rows(_WHAT, provenance, row_weight=sample_weight)
    scores = _scores(scores)
    share = _per_boundary("share", share, scores.shape[:-1])
    weight = row_weights(sample_weight, scores.shape, scores.dtype)
    high = _quantile(scores, weight, share)
    return Windows(jnp.full_like(high, -jnp.inf), high, high, fitted_rows)


def recentre_windows(
    windows: Windows,
    scores: jax.Array,
    *,
    width: float | Sequence[float] = 0.1,
    sample_weight: jax.Array | None = None,
) -> Windows:
    """The windows around the same thresholds, by the quantiles of unlabelled rows.

    Under shift the quantiles of validation rows no longer say which share of rows goes
    on. This uses the confidences of the rows to be judged: no labels, but statistics of
    the test set, which a single arriving row does not have. Say so beside results.

    Args:
        windows: fitted ones; their thresholds stay, and those of
            `fit_single_threshold`, which have no width, stay altogether.
        scores: confidences of the unlabelled rows, `[..., batch]`, with the leading
            axes of `windows`.
        width: in quantiles, to either side; a number, or one for each boundary.
        sample_weight: `[batch]` or `[..., batch]`, non-negative.

    Returns:
        `Windows` of `[...]`. As unlabelled test rows are meant to be used, their
        provenance is not asked for.

    Raises:
        ValueError: if `width` is out of range, or a shape does not fit.

    Source: Xia and Bouganis 2023, arXiv:2303.08010 (the adjusted window under shift).
    """
    scores = _scores(scores)
    if scores.shape[:-1] != windows.threshold.shape:
        raise ValueError(
            "scores must be [..., batch] with the windows' axes in front,"
            f" {windows.threshold.shape}; got shape {scores.shape}."
        )
    threshold, fitted_rows = windows.threshold, windows.fitted_rows
    moved = _around(threshold, scores, width, sample_weight, fitted_rows)
    # A single threshold has no width: what lies below it goes on, as before.
    is_single = jnp.isneginf(windows.low) & (windows.high == threshold)
    return moved.replace(
        low=jnp.where(is_single, windows.low, moved.low),
        high=jnp.where(is_single, windows.high, moved.high),
    )


def rank_windows(
    scores: jax.Array,
    threshold: jax.Array,
    count: int,
    *,
    rows: jax.Array | None = None,
) -> Windows:
    """The windows that hold exactly the `count` rows next to the thresholds by rank.

    Half of them below the threshold and half above, or more on one side where the
    other has no more. It uses the confidences of the rows to be judged. Tied rows are
    all in or all out, so that ties at an end make it fewer.

    Args:
        scores: `[..., batch]`.
        threshold: `[...]`; -inf for the least sure rows.
        count: how many, at least 0; all rows if there are fewer.
        rows: `[..., batch]`, False for rows that have left already; None: none has.

    Returns:
        `Windows` of `[...]`.

    Raises:
        ValueError: if `count` is negative, or a shape does not fit.
    """
    if count < 0:
        raise ValueError(f"count must be at least 0; got {count}.")
    scores = _scores(scores)
    threshold = jnp.broadcast_to(floating(threshold), scores.shape[:-1])
    rows = jnp.ones(scores.shape, bool) if rows is None else rows
    rows = broadcast_rows("rows", rows, scores.shape)

    def one(scores, threshold, rows):
        num_rows = jnp.sum(rows)
        taken = jnp.minimum(count, num_rows)
        start = first_rank(scores, threshold, taken, rows=rows)
        rising = jnp.sort(jnp.where(rows, scores, jnp.inf))
        ends = jnp.concatenate(
            [jnp.full(1, -jnp.inf), rising, jnp.full(1, jnp.inf)]
        ).astype(scores.dtype)
        # Between neighbours: another program may round the row at an end otherwise.
        between = (ends[1:] + ends[:-1]) / 2
        return between[start], between[start + taken]

    leading = scores.shape[:-1]
    flat = [
        x.reshape((-1, *x.shape[len(leading) :])) for x in (scores, threshold, rows)
    ]
    low, high = (x.reshape(leading) for x in jax.vmap(one)(*flat))
    return Windows(low, high, threshold)


def first_rank(
    scores: jax.Array, threshold: jax.Array, count: jax.Array, *, rows=None
) -> jax.Array:
    """The rank (from 0, the least sure row) at which `count` rows around begin.

    Args:
        scores: `[batch]`.
        threshold: a scalar.
        count: at most the number of rows.
        rows: `[batch]`, False for rows that do not count.
    """
    rows = jnp.ones(scores.shape, bool) if rows is None else rows
    below = jnp.sum(rows & (scores < threshold))
    last = jnp.maximum(jnp.sum(rows) - count, 0)
    return jnp.clip(below - count // 2, min=0, max=last)


def _around(threshold, scores, width, sample_weight, fitted_rows):
    width = _per_boundary("width", width, scores.shape[:-1])
    weight = row_weights(sample_weight, scores.shape, scores.dtype)
    at_or_below = jnp.where(scores <= threshold[..., None], weight, 0.0)
    share = jnp.sum(at_or_below, axis=-1) / jnp.sum(weight, axis=-1)
    low = _quantile(scores, weight, jnp.clip(share - width, min=0.0, max=1.0))
    high = _quantile(scores, weight, jnp.clip(share + width, min=0.0, max=1.0))
    undefined = jnp.isnan(threshold)
    low, high = (jnp.where(undefined, jnp.nan, x) for x in (low, high))
    return Windows(low, high, threshold, fitted_rows)


def _quantile(scores, weight, q):
    """The smallest score at or below which a share `q [...]` of the weight lies."""

    def one(scores, weight, q):
        order = jnp.lexsort((scores, weight == 0))
        share = jnp.cumsum(weight[order])
        at = jnp.argmax(share >= (q - _TOLERANCE) * share[-1])
        return scores[order][at]

    leading = q.shape
    rows = (-1, scores.shape[-1])
    value = jax.vmap(one)(scores.reshape(rows), weight.reshape(rows), q.reshape(-1))
    undefined = jnp.any(jnp.isnan(scores) & (weight != 0), axis=-1)
    undefined |= ~(jnp.sum(weight, axis=-1) > 0)
    return jnp.where(undefined, jnp.nan, value.reshape(leading))


def _scores(scores):
    scores = floating(scores)
    if scores.ndim < 1 or not scores.shape[-1]:
        raise ValueError(
            f"scores must be [..., batch] with at least one row; got {scores.shape}."
        )
    return scores


def _per_boundary(name, values, leading):
    numbers = values if isinstance(values, (tuple, list)) else (values,)
    if not all(0.0 <= number <= 1.0 for number in numbers):
        raise ValueError(f"{name} must lie in [0, 1]; got {values}.")
    values = jnp.asarray(values, jnp.float32)
    if values.ndim and values.shape != leading[len(leading) - values.ndim :]:
        raise ValueError(
            f"{name} must be a number, or one for each boundary {leading}; got"
            f" {values.shape}."
        )
    return jnp.broadcast_to(
        values.reshape((1,) * (len(leading) - values.ndim) + values.shape), leading
    )
