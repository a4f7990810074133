"""What members said, wherever they came from: logits, probabilities or votes.

Scores and combinations take these arrays with the member axis first and do not care
whether an `Ensemble`, a file or scikit-learn made them.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ensjax.provenance import Provenance

ABSTAIN = -1


def log_probs(logits: jax.Array) -> jax.Array:
    """Log-probabilities of every row, in float32 also when the logits are bfloat16.

    Rows that are normalised already stay as they are, so this is safe on
    log-probabilities too. It is never right on probabilities.

    Args:
        logits: unnormalised log-probabilities, `[..., class]`.

    Returns:
        `[..., class]`, in nats. A row that holds a NaN or a +inf is all NaN.

    Raises:
        ValueError: if `logits` has no class axis.
        TypeError: if `logits` holds integers (votes or labels).
    """
    logits = jnp.asarray(logits)
    if logits.ndim < 1:
        raise ValueError("logits must be [..., class]; got a scalar.")
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise TypeError(
            f"logits must be floating point; got {logits.dtype}. Votes go through"
            " Predictions.from_votes."
        )
    # Cast before the softmax: bfloat16 has 8 bits, too few for a sum over classes.
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    return jax.nn.log_softmax(logits, axis=-1)


def votes(logits: jax.Array) -> jax.Array:
    """The class each row puts first; the lowest index among equals.

    Args:
        logits: logits or log-probabilities, `[..., class]`.

    Returns:
        `[...]`, int32. A row with a NaN votes for nothing: -1.
    """
    logits = jnp.asarray(logits)
    choice = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return jnp.where(jnp.any(jnp.isnan(logits), axis=-1), ABSTAIN, choice)


@struct.dataclass
class Predictions:
    """The predictions of several members on the same examples, as one pytree.

    Make it with `from_logits`, `from_probs` or `from_votes`.

    Attributes:
        values: `[member, batch, class]` logits or log-probabilities, or
            `[member, batch]` votes.
        mask: `[member]` or `[member, batch]`, False where a member does not count.
        weights: `[member]` or `[member, batch]`, non-negative, not normalised.
        kind: `"logits"`, `"log_probs"` or `"votes"`.
        names: one name per member.
        num_classes: number of classes.
        provenance: which rows these are and who was trained on them; None: unknown.
    """

    values: jax.Array
    mask: jax.Array
    weights: jax.Array
    kind: str = struct.field(pytree_node=False)
    names: tuple[str, ...] = struct.field(pytree_node=False)
    num_classes: int = struct.field(pytree_node=False)
    provenance: Provenance | None = struct.field(pytree_node=False, default=None)

    @classmethod
    def from_logits(
        cls,
        logits: jax.Array,
        *,
        weights: jax.Array | None = None,
        mask: jax.Array | None = None,
        names: Sequence[str] | None = None,
        provenance: Provenance | None = None,
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
        return _predictions(
            cls, logits, "logits", logits.shape[2], weights, mask, names, provenance
        )

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
    ) -> "Predictions":
        """Predictions from probabilities, such as scikit-learn's `predict_proba`.

        Probabilities below `smallest` are raised to it and rows are normalised again:
        trees and nearest neighbours say 0, whose logarithm would veto a class in
        `mean_logits` and cost infinitely many nats. The classes of all members must be
        in the same order (scikit-learn: equal `classes_`).

        Args:
            probs: `[member, batch, class]`, non-negative; rows sum to 1.
            smallest: the smallest probability that is believed.

        Raises:
            ValueError: if a shape does not fit, or `smallest` is not in (0, 1).
        """
        probs = jnp.asarray(probs)
        probs = probs.astype(jnp.promote_types(probs.dtype, jnp.float32))
        if probs.ndim != 3:
            raise ValueError(
                f"probs must be [member, batch, class]; got shape {probs.shape}."
            )
        if not 0.0 < smallest < 1.0:
            raise ValueError(f"smallest must lie between 0 and 1; got {smallest}.")
        values = log_probs(jnp.log(jnp.maximum(probs, smallest)))
        return _predictions(
            cls, values, "log_probs", probs.shape[2], weights, mask, names, provenance
        )

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
        values = votes.astype(jnp.int32)
        return _predictions(
            cls, values, "votes", num_classes, weights, mask, names, provenance
        )

    @property
    def num_members(self) -> int:
        """Number of members, masked ones included."""
        return self.values.shape[0]

    @property
    def log_probs(self) -> jax.Array:
        """`[member, batch, class]`, in nats, float32.

        Raises:
            TypeError: if only votes are known.
        """
        if self.kind == "votes":
            raise TypeError(
                "These predictions are votes and carry no probabilities. Use"
                " combine.majority_vote, or make them with from_logits or from_probs."
            )
        return log_probs(self.values)

    @property
    def probs(self) -> jax.Array:
        """`[member, batch, class]` probabilities, float32."""
        return jnp.exp(self.log_probs)

    @property
    def votes(self) -> jax.Array:
        """`[member, batch]` class indices, int32, -1 where a member abstains."""
        return self.values if self.kind == "votes" else votes(self.values)

    @property
    def normalized_weights(self) -> jax.Array:
        """Weights, summing to 1 over the members that count.

        `[member]`, or `[member, batch]` if the weights or the mask are.

        A masked member has weight 0. NaN where no weight is left, and where a weight is
        negative (values cannot raise in a compiled program).
        """
        weights, mask = self.weights, self.mask
        if weights.ndim < mask.ndim:
            weights = weights[:, None]
        if mask.ndim < weights.ndim:
            mask = mask[:, None]
        weights = jnp.where(weights < 0, jnp.nan, weights)
        weights = jnp.where(mask, weights, 0.0)
        return weights / jnp.sum(weights, axis=0, keepdims=True)


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
    return _predictions(
        Predictions,
        logits.values,
        logits.kind,
        logits.num_classes,
        logits.weights if weights is None else weights,
        logits.mask if mask is None else mask,
        logits.names,
        logits.provenance,
    )


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
    # `where`, since jnp.minimum(NaN, 80) is 80 in compiled programs of jax 0.12 on CPU.
    excess = values - peak
    ratio = jnp.exp(jnp.where(excess > 80.0, 80.0, excess))
    return jnp.log(jnp.sum(weights * ratio, axis=0)) + peak[0]


def _predictions(cls, values, kind, num_classes, weights, mask, names, provenance=None):
    shape = values.shape[:2]
    weights = jnp.ones(shape[:1]) if weights is None else jnp.asarray(weights)
    mask = jnp.ones(shape[:1], bool) if mask is None else jnp.asarray(mask)
    for name, value in (("weights", weights), ("mask", mask)):
        if value.shape not in (shape[:1], shape):
            raise ValueError(
                f"{name} must be [member] = {shape[:1]} or [member, batch] = {shape};"
                f" got shape {value.shape}."
            )
    if names is None:
        names = tuple(f"member {i}" for i in range(shape[0]))
    if len(names) != shape[0]:
        raise ValueError(f"names must hold {shape[0]} members; got {len(names)}.")
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
        mask=mask.astype(bool),
        weights=weights.astype(jnp.promote_types(weights.dtype, np.float32)),
        kind=kind,
        names=tuple(names),
        num_classes=int(num_classes),
        provenance=provenance,
    )
