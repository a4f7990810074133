"""Conformal sets of classes: as many as are needed to hold the label often enough."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from ensjax.combine.calibration.fitting import (
    check_pool,
    check_use,
    covered_weight,
)
from ensjax.combine.conformal.intervals import (
    _check_groups,
    _of_groups,
    conformal_quantile,
    conformal_quantile_by_group,
)
from ensjax.combine.rules.average import mean_probs
from ensjax.predictions import Predictions
from ensjax.predictions import log_probs as normalize
from ensjax.provenance import FittedRows
from ensjax.scores.rows import check_rows, label_log_probs


@dataclasses.dataclass(frozen=True)
class LacScore:
    """One minus the class's probability: the smallest sets on average.

    Sets may be empty, and hold the label less often where rows are hard.

    Source: Sadinle et al. 2019, arXiv:1609.00451.
    """

    is_random = False

    def __call__(self, log_probs: jax.Array, uniform: jax.Array | None) -> jax.Array:
        """`[batch, class]` scores of `[batch, class]`; `uniform` is not used."""
        return 1 - jnp.exp(log_probs)


@dataclasses.dataclass(frozen=True)
class ApsScore:
    """Probability of the classes before this one, and a random part of its own.

        before_c + u p_c,   u ~ U(0, 1), or 1 without `is_random`

    Classes come in descending order of probability, equal ones by index. Sets adapt to
    how hard a row is. Without the random part they are too large as a rule.

    Source: Romano et al. 2020, arXiv:2006.02544, equation 6.
    """

    is_random: bool = True

    def __call__(self, log_probs: jax.Array, uniform: jax.Array | None) -> jax.Array:
        """`[batch, class]` scores; `uniform` is `[batch]`, or None."""
        before, _ = _in_order(log_probs)
        return before + _part(log_probs, uniform)


@dataclasses.dataclass(frozen=True)
class RapsScore:
    """APS with a penalty for classes of a rank above `free_rank`: smaller sets.

        before_c + u p_c + penalty max(0, rank_c - free_rank),   the first has rank 1

    Source: Angelopoulos et al. 2021, arXiv:2009.14193, equation 4.
    """

    penalty: float = 0.01
    free_rank: int = 5
    is_random: bool = True

    def __call__(self, log_probs: jax.Array, uniform: jax.Array | None) -> jax.Array:
        """`[batch, class]` scores; `uniform` is `[batch]`, or None."""
        before, rank = _in_order(log_probs)
        extra = self.penalty * jnp.maximum(rank - self.free_rank, 0)
        return before + _part(log_probs, uniform) + extra


def _in_order(log_probs):
    """Probability of the classes before each one, and its rank, from 1."""
    probs = jnp.exp(log_probs)
    order = jnp.argsort(-probs, axis=-1)  # stable: equal ones by index
    descending = jnp.take_along_axis(probs, order, axis=-1)
    # Not cumsum - p, which leaves rounding where there is nothing before.
    before = jnp.cumsum(descending, axis=-1)[..., :-1]
    before = jnp.concatenate([jnp.zeros_like(descending[..., :1]), before], axis=-1)
    place = jnp.argsort(order, axis=-1)
    return jnp.take_along_axis(before, place, axis=-1), place + 1


def _part(log_probs, uniform):
    probs = jnp.exp(log_probs)
    return probs if uniform is None else uniform[..., None] * probs


@struct.dataclass
class ConformalSets:
    """Sets of classes whose score is at most a threshold; called on logits.

    Attributes:
        threshold: a scalar, `[class]` or `[group]`, by `by`; infinite where there were
            too few rows.
        weights: `[member]` weights of the pool it was fitted on; None: as the
            predictions say, or equal ones.
        score: gives every class a score, such as `LacScore()`.
        by: what has a threshold of its own: "all", "class" or "group".
        fitted_rows: the rows it was fitted on, where they are known.
    """

    threshold: jax.Array
    weights: jax.Array | None
    score: Any = struct.field(pytree_node=False)
    by: str = struct.field(pytree_node=False, default="all")
    fitted_rows: FittedRows = struct.field(
        pytree_node=False, default=FittedRows("the conformal sets")
    )

    def __call__(
        self,
        logits: jax.Array | Predictions,
        key: jax.Array | None = None,
        *,
        groups: jax.Array | None = None,
        allow_seen: bool = False,
    ) -> jax.Array:
        """Sets `[batch, class]`, True for the classes that they hold.

        Where a score or threshold is NaN nothing is excluded.

        Args:
            logits: `[member, batch, class]` logits or `Predictions`, which are pooled
                by `mean_probs`; or one predictive `[batch, class]`.
            key: for a random score; another one than it was fitted with.
            groups: `[batch]`, if it was fitted by group.
            allow_seen: whether the fit itself is looked at. Without, rows of the fit
                are refused, as far as they are known.

        Raises:
            ValueError: if a shape does not fit, or `key` or `groups` are missing.
            LeakageError: for rows that it was fitted on; see `allow_seen`.
        """
        check_use(
            self.fitted_rows,
            logits,
            by_member=self.weights is not None,
            by_class=self.by == "class",
            allow_seen=allow_seen,
        )
        pooled = _pool(logits, self.weights)
        scores = _scores(self.score, pooled, key)
        if self.by == "class":
            limit = self.threshold[None]
        else:
            limit = _of_groups(self.threshold, groups, pooled.shape[:1])
            limit = limit.reshape(-1, 1)
        return ~(scores > limit)


def fit_conformal_sets(
    score: Any,
    logits: jax.Array | Predictions,
    labels: jax.Array,
    *,
    alpha: float,
    key: jax.Array | None = None,
    weights: jax.Array | None = None,
    row_mask: jax.Array | None = None,
) -> ConformalSets:
    """Split conformal sets of the pooled predictive.

    Args:
        score: `LacScore()`, `ApsScore()`, `RapsScore()`, or another hashable function
            `(log_probs [batch, class], uniform [batch] or None) -> [batch, class]` with
            an attribute `is_random`.
        logits: of held-out rows, `[member, batch, class]` or `Predictions`; or one
            predictive `[batch, class]`.
        labels: class indices `[batch]`. One out of range makes the threshold NaN.
        alpha: share of labels that may be outside of their sets, in (0, 1).
        key: for a random score.
        weights: `[member]` weights of the pool.
        row_mask: `[batch]`; a False row counts as removed.

    Returns:
        `ConformalSets`.

    Raises:
        ValueError: if a shape does not fit, `alpha` is not in (0, 1), or `key` is
            missing.
        TypeError: if `labels` are not integers.
        LeakageError: if members were trained on the rows, or they are test rows.

    Source: Angelopoulos and Bates 2023, arXiv:2107.07511, section 1.

    Example:
        >>> import jax.numpy as jnp
        >>> from ensjax import combine
        >>> held_out = jnp.log(jnp.array([[0.9, 0.1], [0.4, 0.6], [0.7, 0.3]]))
        >>> labels = jnp.array([0, 0, 0])
        >>> sets = combine.fit_conformal_sets(
        ...     combine.LacScore(), held_out, labels, alpha=0.25)
        >>> sets(jnp.log(jnp.array([[0.5, 0.5], [0.8, 0.2]]))).tolist()
        [[True, True], [True, False]]
    """
    scores, _, fitted_rows = _label_scores(
        score, logits, labels, key, weights, row_mask
    )
    threshold = conformal_quantile(scores, alpha, row_mask=_covered(logits, row_mask))
    return ConformalSets(threshold, weights, score, "all", fitted_rows)


def fit_conformal_sets_by_class(
    score: Any,
    logits: jax.Array | Predictions,
    labels: jax.Array,
    *,
    alpha: float,
    key: jax.Array | None = None,
    weights: jax.Array | None = None,
    row_mask: jax.Array | None = None,
) -> ConformalSets:
    """Conformal sets with one threshold per class: every class is covered by itself.

    A class with fewer than about 1 / alpha rows is in every set. Arguments and the
    result are those of `fit_conformal_sets`. A label out of range, which might be of
    any class, makes the thresholds of all NaN.

    Source: Vovk et al. 2005, section 4.5 (label-conditional).
    """
    scores, labels, fitted_rows = _label_scores(
        score, logits, labels, key, weights, row_mask
    )
    num_classes = _pool(logits, weights).shape[-1]
    covered = _covered(logits, row_mask)
    threshold = conformal_quantile_by_group(
        scores, labels, num_classes, alpha, row_mask=covered
    )
    is_unknown = (labels < 0) | (labels >= num_classes)
    if covered is not None:
        is_unknown &= jnp.asarray(covered, bool)
    threshold = jnp.where(jnp.any(is_unknown), jnp.nan, threshold)
    return ConformalSets(threshold, weights, score, "class", fitted_rows)


def fit_conformal_sets_by_group(
    score: Any,
    logits: jax.Array | Predictions,
    labels: jax.Array,
    groups: jax.Array,
    *,
    num_groups: int,
    alpha: float,
    key: jax.Array | None = None,
    weights: jax.Array | None = None,
    row_mask: jax.Array | None = None,
) -> ConformalSets:
    """Conformal sets with one threshold per group of rows, such as a site.

    Args:
        groups: `[batch]`, integers in `[0, num_groups)`; rows of others do not count.
        num_groups: number of groups.

    The others and the result are those of `fit_conformal_sets`.

    Source: Vovk et al. 2005, section 4.5 (Mondrian).
    """
    scores, _, fitted_rows = _label_scores(
        score, logits, labels, key, weights, row_mask
    )
    groups = _check_groups(groups, scores.shape)
    threshold = conformal_quantile_by_group(
        scores, groups, num_groups, alpha, row_mask=_covered(logits, row_mask)
    )
    return ConformalSets(threshold, weights, score, "group", fitted_rows)


def _covered(logits, row_mask):
    """Rows that count: nothing is known of one on which no member does."""
    if not isinstance(logits, Predictions):
        return row_mask
    rows = logits.values.shape[1]
    given = jnp.ones(rows) if row_mask is None else jnp.asarray(row_mask, jnp.float32)
    if given.shape != (rows,):
        return row_mask  # its shape is refused where it is used
    return covered_weight(logits, given) > 0


def _label_scores(score, logits, labels, key, weights, row_mask):
    """Scores of the labels `[batch]`; NaN for labels out of range."""
    fitted_rows = check_pool("the conformal sets", logits, weights, row_mask)
    pooled, labels, _ = check_rows(_pool(logits, weights), labels)
    scores = _scores(score, pooled, key)
    # Like a log-probability: of the label, NaN where it is no class.
    return label_log_probs(scores, labels), labels, fitted_rows


def _scores(score, log_probs, key):
    uniform = None
    if score.is_random:
        if key is None:
            raise ValueError(
                f"{type(score).__name__} is random and needs a key; or take"
                " is_random=False."
            )
        uniform = jax.random.uniform(key, log_probs.shape[:1], log_probs.dtype)
    return score(log_probs, uniform)


def _pool(logits, weights):
    if not isinstance(logits, Predictions) and jnp.ndim(logits) == 2:
        return normalize(logits)
    return mean_probs(logits, weights)
