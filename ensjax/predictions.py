"""What members said, wherever they came from: probabilities, votes, points, quantiles.

Scores and combinations take these arrays with the member axis first and do not care
whether an `Ensemble`, scikit-learn (`ensjax.sources`) or a file made them
(`ensjax.prediction_files`). One container with its constructors: hence the length.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ensjax.member_arrays import (
    ABSTAIN,
    log_probs,
    member_mask_and_weights,
    normalize_weights,
    plain_label,
    votes,
)
from ensjax.members import member_rows
from ensjax.ops.limits import at_least, at_most
from ensjax.provenance import Provenance

# Rows of probabilities sum to 1 to the rounding of bfloat16, or of printed decimals,
# which is that of each class.
_SUM_TOLERANCE, _CLASS_TOLERANCE, _MOST, _BELOW_ZERO = 1e-2, 1e-3, 0.1, -1e-6

__all__ = [
    "ABSTAIN",
    "KINDS",
    "Predictions",
    "as_points",
    "as_predictions",
    "log_probs",
    "predictive_log_probs",
    "votes",
    "weighted_log_probs",
]

# What each kind knows, and how such predictions are made.
KINDS = {
    "logits": "logits",
    "log_probs": "probabilities",
    "votes": "votes",
    "points": "points",
    "quantiles": "quantiles",
    "features": "features",
}


@struct.dataclass
class Predictions:
    """The predictions of several members on the same examples, as one pytree.

    Make it with `from_logits`, `from_probs`, `from_votes`, `from_points`,
    `from_quantiles` or `from_features`, or with `ensjax.sources` and
    `ensjax.prediction_files`.

    Attributes:
        values: `[member, batch, class]` logits or log-probabilities, `[member, batch]`
            votes, `[member, batch]` or `[member, batch, target]` points,
            `[member, batch, level]` quantiles, or `[member, batch, feature]`.
        mask: `[member]` or `[member, batch]`, False where a member does not count.
        weights: `[member]` or `[member, batch]`, non-negative, not normalised.
        kind: one of `KINDS`.
        names: one name per member.
        num_classes: number of classes; 0 where there are none.
        provenance: which rows these are and who was trained on them; None: unknown.
        columns: what the last axis holds: labels of classes, names of targets or of
            features; None: unknown. For votes, the labels of the classes.
        levels: of quantiles, strictly increasing in (0, 1).
        scale: of points, the standard deviation that each member states (aleatoric), in
            the shape of `values`; None: unknown.
        lower: of points, the lower end of the interval that each member states; None.
        upper: the upper end; None.
    """

    values: jax.Array
    mask: jax.Array
    weights: jax.Array
    kind: str = struct.field(pytree_node=False)
    names: tuple[str, ...] = struct.field(pytree_node=False)
    num_classes: int = struct.field(pytree_node=False)
    provenance: Provenance | None = struct.field(pytree_node=False, default=None)
    columns: tuple[Any, ...] | None = struct.field(pytree_node=False, default=None)
    levels: tuple[float, ...] = struct.field(pytree_node=False, default=())
    scale: jax.Array | None = None
    lower: jax.Array | None = None
    upper: jax.Array | None = None

    @classmethod
    def from_logits(
        cls,
        logits: jax.Array,
        *,
        weights: jax.Array | None = None,
        mask: jax.Array | None = None,
        names: Sequence[str] | None = None,
        provenance: Provenance | None = None,
        columns: Sequence[Any] | None = None,
    ) -> "Predictions":
        """Predictions from logits (or log-probabilities) `[member, batch, class]`.

        Raises:
            ValueError: if a shape does not fit.
            TypeError: if `logits` holds integers.
        """
        logits = jnp.asarray(logits)
        if logits.ndim != 3:
            raise ValueError(
                f"logits must be [member, batch, class]; got shape {logits.shape}."
                " One model becomes an ensemble of one with logits[None]."
            )
        if not jnp.issubdtype(logits.dtype, jnp.floating):
            raise TypeError(f"logits must be floating point; got {logits.dtype}.")
        told = (weights, mask, names, provenance)
        return _predictions(cls, logits, "logits", logits.shape[2], *told, columns)

    @classmethod
    def from_probs(
        cls,
        probs: jax.Array,
        *,
        smallest: float = 1e-7,
        weights: jax.Array | None = None,
        mask: jax.Array | None = None,
        names: Sequence[str] | None = None,
        provenance: Provenance | None = None,
        columns: Sequence[Any] | None = None,
    ) -> "Predictions":
        """Predictions from probabilities, such as scikit-learn's `predict_proba`.

        Probabilities below `smallest` are raised to it and rows are normalised again:
        trees and nearest neighbours say 0, whose logarithm would veto a class in
        `mean_logits` and cost infinitely many nats. The classes of all members must be
        in the same order (`sources.from_sklearn` sees to it).

        Args:
            probs: `[member, batch, class]`, non-negative; rows sum to 1. NaN stays.
            smallest: the smallest probability that is believed.

        Raises:
            ValueError: if a shape does not fit, or `smallest` is not in (0, 1); or if a
                row where a member counts is negative somewhere, or its sum is more than
                0.01 away from 1 (of more than ten classes 1e-3 for each, up to 0.1), as
                of percentages and of logits (it names the member and the row). In a
                compiled program values are not known, and are normalised as they are.
        """
        probs = _floating(probs)
        if probs.ndim != 3:
            raise ValueError(
                f"probs must be [member, batch, class]; got shape {probs.shape}."
            )
        if not 0.0 < smallest < 1.0:
            raise ValueError(f"smallest must lie between 0 and 1; got {smallest}.")
        values = log_probs(jnp.log(at_least(probs, smallest)))
        told = (weights, mask, names, provenance)
        made = _predictions(cls, values, "log_probs", probs.shape[2], *told, columns)
        _check_probs(probs, made)
        return made

    @classmethod
    def from_votes(
        cls,
        votes: jax.Array,
        num_classes: int,
        *,
        weights: jax.Array | None = None,
        mask: jax.Array | None = None,
        names: Sequence[str] | None = None,
        provenance: Provenance | None = None,
        columns: Sequence[Any] | None = None,
    ) -> "Predictions":
        """Predictions from class indices `[member, batch]`; -1 abstains.

        Raises:
            ValueError: if a shape does not fit.
            TypeError: if `votes` are not integers.
        """
        votes = jnp.asarray(votes)
        if votes.ndim != 2:
            raise ValueError(f"votes must be [member, batch]; got shape {votes.shape}.")
        if not jnp.issubdtype(votes.dtype, jnp.integer):
            raise TypeError(f"votes must be integers; got {votes.dtype}.")
        told = (weights, mask, names, provenance)
        values = votes.astype(jnp.int32)
        return _predictions(cls, values, "votes", num_classes, *told, columns)

    @classmethod
    def from_points(
        cls,
        points: jax.Array,
        *,
        scale: jax.Array | None = None,
        lower: jax.Array | None = None,
        upper: jax.Array | None = None,
        weights: jax.Array | None = None,
        mask: jax.Array | None = None,
        names: Sequence[str] | None = None,
        provenance: Provenance | None = None,
        columns: Sequence[Any] | None = None,
    ) -> "Predictions":
        """Predictions of numbers, `[member, batch]` or `[member, batch, target]`.

        Args:
            points: in target units.
            scale: the standard deviation each member states, same shape.
            lower: lower ends of the members' intervals, same shape; with `upper`.
            upper: upper ends.

        Raises:
            ValueError: if a shape does not fit, or one end comes without the other.
            TypeError: if `points` are not real numbers.
        """
        points = _floating(points, "points")
        if points.ndim not in (2, 3):
            raise ValueError(
                "points must be [member, batch] or [member, batch, target]; got shape"
                f" {points.shape}. One model becomes an ensemble of one with"
                " points[None]."
            )
        if (lower is None) != (upper is None):
            raise ValueError("lower and upper go together; got one of them.")
        parts = {"scale": scale, "lower": lower, "upper": upper}
        parts = {k: _floating(v, k) for k, v in parts.items() if v is not None}
        for name, part in parts.items():
            if part.shape != points.shape:
                raise ValueError(
                    f"{name} must have the shape of points, {points.shape}; got"
                    f" {part.shape}."
                )
        told = (weights, mask, names, provenance)
        return _predictions(cls, points, "points", 0, *told, columns, **parts)

    @classmethod
    def from_quantiles(
        cls,
        values: jax.Array,
        levels: Sequence[float],
        *,
        weights: jax.Array | None = None,
        mask: jax.Array | None = None,
        names: Sequence[str] | None = None,
        provenance: Provenance | None = None,
    ) -> "Predictions":
        """Predictions of quantiles `[member, batch, level]`, in target units.

        Args:
            values: quantiles; they may cross, and are kept as they are.
            levels: of the last axis, strictly increasing in (0, 1). Static: numbers.

        Raises:
            ValueError: if a shape or the levels do not fit.
            TypeError: if `values` are not real numbers.
        """
        values = _floating(values, "quantiles")
        levels = tuple(float(level) for level in levels)
        inside = all(0.0 < level < 1.0 for level in levels)
        if not levels or not inside or any(a >= b for a, b in zip(levels, levels[1:])):
            raise ValueError(
                f"levels must increase strictly and lie between 0 and 1; got {levels}."
            )
        if values.ndim != 3 or values.shape[2] != len(levels):
            raise ValueError(
                f"quantiles must be [member, batch, level={len(levels)}]; got shape"
                f" {values.shape}."
            )
        told = (weights, mask, names, provenance)
        return _predictions(cls, values, "quantiles", 0, *told, levels=levels)

    @classmethod
    def from_features(
        cls,
        features: jax.Array,
        *,
        weights: jax.Array | None = None,
        mask: jax.Array | None = None,
        names: Sequence[str] | None = None,
        provenance: Provenance | None = None,
        columns: Sequence[Any] | None = None,
    ) -> "Predictions":
        """What members extract of each row, `[member, batch, feature]`.

        Raises:
            ValueError: if a shape does not fit.
            TypeError: if `features` are not real numbers.
        """
        features = _floating(features, "features")
        if features.ndim != 3:
            raise ValueError(
                f"features must be [member, batch, feature]; got {features.shape}."
            )
        told = (weights, mask, names, provenance)
        return _predictions(cls, features, "features", 0, *told, columns)

    def __array__(self, dtype=None, copy=None):
        # NumPy would make an object array of it, which equals nothing.
        raise TypeError(
            f"predictions ({self.kind}) are no array; take .values, or what they know:"
            " .probs, .votes, .points, .quantiles or .features."
        )

    @property
    def num_members(self) -> int:
        """Number of members, masked ones included."""
        return self.values.shape[0]

    @property
    def log_probs(self) -> jax.Array:
        """`[member, batch, class]`, in nats, float32.

        Raises:
            TypeError: if no probabilities are known.
        """
        if self.kind == "votes":
            raise TypeError(
                "These predictions are votes and carry no probabilities. Use"
                " combine.majority_vote, or make them with from_logits or from_probs."
            )
        self._need("probabilities", ("logits", "log_probs"), "from_logits, from_probs")
        return log_probs(self.values)

    @property
    def probs(self) -> jax.Array:
        """`[member, batch, class]` probabilities, float32."""
        return jnp.exp(self.log_probs)

    @property
    def votes(self) -> jax.Array:
        """`[member, batch]` class indices, int32, -1 where a member abstains.

        Raises:
            TypeError: if no classes are known.
        """
        known = ("logits", "log_probs", "votes")
        self._need("votes", known, "from_logits, from_probs, from_votes")
        return self.values if self.kind == "votes" else votes(self.values)

    @property
    def points(self) -> jax.Array:
        """`[member, batch]` or `[member, batch, target]`, in target units.

        Raises:
            TypeError: if these are no points.
        """
        self._need("points", ("points",), "from_points")
        return self.values

    @property
    def quantiles(self) -> jax.Array:
        """`[member, batch, level]`, in target units.

        Raises:
            TypeError: if these are no quantiles.
        """
        self._need("quantiles", ("quantiles",), "from_quantiles")
        return self.values

    @property
    def features(self) -> jax.Array:
        """`[member, batch, feature]`.

        Raises:
            TypeError: if these are no features.
        """
        self._need("features", ("features",), "from_features")
        return self.values

    def _need(self, what, kinds, makers):
        if self.kind not in kinds:
            raise TypeError(
                f"These predictions are {KINDS[self.kind]} ({self.kind!r}) and carry no"
                f" {what}. Predictions with {what} are made with {makers}."
            )

    @property
    def normalized_weights(self) -> jax.Array:
        """Weights, summing to 1 over the members that count.

        `[member]`, or `[member, batch]` if the weights or the mask are.

        A masked member has weight 0. NaN where no weight is left, and where a weight is
        negative (values cannot raise in a compiled program).
        """
        return normalize_weights(self.weights, self.mask)

    def select(self, members: Any) -> "Predictions":
        """The chosen members, in the order of `members`, with all that is theirs.

        Args:
            members: a slice, integers, booleans `[member]`, or names.

        Raises:
            KeyError: for an unknown name.
            ValueError, IndexError, TypeError: as `members.member_rows`.
        """
        if isinstance(members, str):
            members = [members]
        if not isinstance(members, slice):
            members = list(members) if np.ndim(members) else [members]
            if members and isinstance(members[0], str):
                unknown = sorted(set(members) - set(self.names))
                if unknown:
                    raise KeyError(f"no member {unknown}; there are {self.names}.")
                members = [self.names.index(name) for name in members]
        rows = member_rows(members, self.num_members)
        provenance = self.provenance
        return jax.tree.map(lambda leaf: leaf[rows], self).replace(
            names=tuple(self.names[row] for row in rows),
            provenance=None if provenance is None else provenance.of_members(rows),
        )

    def take(self, positions: Any, *, part: str | None = None) -> "Predictions":
        """The rows at these positions along the batch, for all members.

        Args:
            positions: integers `[row]`, booleans `[batch]` or a slice; not traced.
            part: what the rows are for; None: as before. See `Provenance.part`.
        """
        rows = np.arange(self.values.shape[1])[positions]
        provenance = self.provenance
        taken = {
            name: value[:, rows]
            for name in ("values", "mask", "weights", "scale", "lower", "upper")
            if (value := getattr(self, name)) is not None and value.ndim > 1
        }
        if provenance is not None:
            taken["provenance"] = provenance.take(rows, part=part)
        return self.replace(**taken)


def as_predictions(
    logits: jax.Array | Predictions,
    *,
    weights: jax.Array | None = None,
    mask: jax.Array | None = None,
) -> Predictions:
    """`Predictions` of `[member, batch, class]` logits, or the given ones.

    `weights` and `mask`, where given, replace those of `Predictions`.
    """
    if not isinstance(logits, Predictions):
        return Predictions.from_logits(logits, weights=weights, mask=mask)
    return _with_members(logits, weights, mask)


def as_points(
    points: jax.Array | Predictions,
    *,
    weights: jax.Array | None = None,
    mask: jax.Array | None = None,
) -> Predictions:
    """`Predictions` of `[member, batch]` or `[member, batch, target]` points.

    `weights` and `mask`, where given, replace those of `Predictions`.

    Raises:
        TypeError: if they are predictions of another kind.
    """
    if not isinstance(points, Predictions):
        return Predictions.from_points(points, weights=weights, mask=mask)
    _ = points.points
    return _with_members(points, weights, mask)


def weighted_log_probs(predictions: Predictions) -> tuple[jax.Array, jax.Array]:
    """Members' log-probabilities and normalised weights, ready to be summed.

    `[member, batch, class]` and `[member, 1, 1]` or `[member, batch, 1]`.

    Rows of members without weight that are not finite are replaced by 0, because
    0 * NaN is NaN: a broken member that is masked leaves no trace.
    """
    values = predictions.log_probs
    weights = predictions.normalized_weights
    weights = weights.reshape(weights.shape[0], -1, 1).astype(values.dtype)
    silent = (weights == 0) & ~jnp.isfinite(values)
    return jnp.where(silent, 0.0, values), weights


def predictive_log_probs(
    logits: jax.Array | Predictions,
    weights: jax.Array | None = None,
    mask: jax.Array | None = None,
) -> jax.Array:
    """Log-probabilities of the mixture of the members: their mean *probability*.

        log p(y | x) = logsumexp_m (log w_m + log p_m(y | x)),   w_m = 1 / M

    Args:
        logits: unnormalised log-probabilities, `[member, batch, class]`, or
            `Predictions`.
        weights: `[member]` or `[member, batch]`, non-negative; they are normalised.
        mask: `[member]` or `[member, batch]`; a False member counts as removed.

    Returns:
        `[batch, class]`, in nats, float32. NaN in rows where every member is masked.

    Raises:
        ValueError: if a shape does not fit.

    Source: Lakshminarayanan et al. 2017, arXiv:1612.01474, section 2.4.
    """
    predictions = as_predictions(logits, weights=weights, mask=mask)
    values, weights = weighted_log_probs(predictions)
    peak = jnp.max(jnp.where(weights > 0, values, -jnp.inf), axis=0, keepdims=True)
    peak = jax.lax.stop_gradient(jnp.where(jnp.isfinite(peak), peak, 0.0))
    # Not logsumexp(log w + log p): its gradient in w is NaN at w = 0, where that of
    # logsumexp(b=w) is silently wrong. A member without weight may exceed the peak.
    excess = values - peak
    ratio = jnp.exp(at_most(excess, 80.0))
    return jnp.log(jnp.sum(weights * ratio, axis=0)) + peak[0]


def _predictions(
    cls,
    values,
    kind,
    num_classes,
    weights,
    mask,
    names,
    provenance,
    columns=None,
    **parts,
):
    shape = values.shape[:2]
    weights, mask = member_mask_and_weights(shape, weights, mask)
    if names is None:
        names = tuple(f"member {i}" for i in range(shape[0]))
    if len(names) != shape[0]:
        raise ValueError(f"names must hold {shape[0]} members; got {len(names)}.")
    if columns is not None:
        columns = tuple(map(plain_label, columns))
        expected = num_classes if kind == "votes" else (*values.shape, 1)[2]
        if len(columns) != expected:
            raise ValueError(
                f"columns must name the {expected} of the last axis; got {columns}."
            )
    if provenance is not None:
        seen = provenance.seen
        if len(provenance.rows) != shape[1] or (
            seen is not None and len(seen) not in (1, shape[0])
        ):
            raise ValueError(
                f"provenance must be of [member, batch] = {shape}; got"
                f" {len(provenance.rows)} rows"
                + ("." if seen is None else f" seen by {len(seen)} members.")
            )
    return cls(
        values=values,
        mask=mask,
        weights=weights,
        kind=kind,
        names=tuple(map(plain_label, names)),
        num_classes=int(num_classes),
        provenance=provenance,
        columns=columns,
        **parts,
    )


def _check_probs(probs, made):
    """Raises where a row that counts is known to hold no probabilities."""
    if any(isinstance(x, jax.core.Tracer) for x in (probs, made.mask)):
        return
    least, sums = jnp.min(probs, axis=-1, initial=0.0), jnp.sum(probs, axis=-1)
    # A NaN is neither: a broken member stays broken, whatever is said of its rows.
    tolerance = np.clip(_CLASS_TOLERANCE * probs.shape[-1], _SUM_TOLERANCE, _MOST)
    is_wrong = (least < _BELOW_ZERO) | (jnp.abs(sums - 1) > tolerance)
    is_wrong = np.asarray(is_wrong & made.mask.reshape(len(probs), -1))
    if not is_wrong.any():
        return
    member, row = np.argwhere(is_wrong)[0]
    raise ValueError(
        "probs must not be negative and must sum to 1 in each row; those of"
        f" {made.names[member]!r} in row {row} are"
        f" {np.asarray(probs[member, row, :8]).tolist()}"
        f"{', ...' if probs.shape[2] > 8 else ''}, with sum {sums[member, row]:.4g}"
        f" ({is_wrong.sum()} such rows). Logits go through from_logits; divide"
        " percentages by 100, and other scores by their sum."
    )


def _with_members(predictions, weights, mask):
    weights = predictions.weights if weights is None else weights
    mask = predictions.mask if mask is None else mask
    shape = predictions.values.shape[:2]
    weights, mask = member_mask_and_weights(shape, weights, mask)
    return predictions.replace(weights=weights, mask=mask)


def _floating(values, name="probs"):
    values = jnp.asarray(values)
    if not (jnp.issubdtype(values.dtype, jnp.floating) or values.dtype.kind in "iu"):
        raise TypeError(f"{name} must be real numbers; got {values.dtype}.")
    return values.astype(jnp.promote_types(values.dtype, jnp.float32))
