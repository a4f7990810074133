"""Dynamic selection: for every row, the members that did well on rows near by.

A row's region of competence is the k nearest held-out rows, in a space that the caller
chooses (features, scaled inputs, probabilities). Rules return weights
`[member, batch]`, which any vote or mean of this package takes.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct

from ensjax.combine.calibration.fitting import (
    check_points,
    check_predictions,
    check_use,
)
from ensjax.combine.learned.level_one import point_features, unpack_points
from ensjax.combine.rules.pool import give_back
from ensjax.combine.rules.vote import weighted_vote
from ensjax.member_arrays import member_mask_and_weights, wide_labels
from ensjax.nn.neighbors import nearest_rows
from ensjax.predictions import Predictions, as_predictions
from ensjax.provenance import FittedRows, Provenance
from ensjax.scores.rows import broadcast_rows

RULES = ("knora_e", "knora_u", "ola", "lca", "des_p")
REGRESSION_RULES = ("best", "inverse")
_WHAT = "the dynamic selection"
_TOLERANCE = 1e-6  # of equal accuracies and losses


@struct.dataclass
class DynamicSelection:
    """Held-out rows and who was right on them; made by `fit_dynamic_selection`.

    Attributes:
        x: `[row, feature]`.
        votes: `[member, row]`.
        labels: `[row]`.
        rule: how members are chosen.
        num_neighbours: k, rows of a region.
        num_classes: of the predictions.
        fitted_rows: the held-out rows, where they are known.
    """

    x: jax.Array
    votes: jax.Array
    labels: jax.Array
    rule: str = struct.field(pytree_node=False)
    num_neighbours: int = struct.field(pytree_node=False)
    num_classes: int = struct.field(pytree_node=False)
    fitted_rows: FittedRows = struct.field(pytree_node=False, default=FittedRows(_WHAT))

    def weights(
        self,
        logits: jax.Array | Predictions,
        x: jax.Array,
        *,
        mask: jax.Array | None = None,
        queries_at_once: int = 256,
        allow_seen: bool = False,
    ) -> jax.Array:
        """How much each member counts on each row, `[member, batch]`, not normalised.

        Args:
            logits: `[member, batch, class]` or `Predictions` of the rows to combine.
            x: `[batch, ...]`, in the space of the held-out rows.
            mask: `[member]` or `[member, batch]`; a False member counts as removed.
            queries_at_once: rows whose distances exist at one time.
            allow_seen: whether the fit itself is looked at. Without, rows of the fit
                are refused, as far as they are known.

        Raises:
            ValueError: if a shape does not fit.
            LeakageError: for rows that it was fitted on; see `allow_seen`.
        """
        predictions = as_predictions(logits, mask=mask)
        told = dict(by_class=True, allow_seen=allow_seen)
        check_use(self.fitted_rows, logits, **told)
        _check_members(predictions.num_members, self.votes.shape[0])
        x = _check_x(x, predictions.values.shape[1], self.x.shape[1])
        counts = jnp.broadcast_to(
            predictions.mask.reshape(predictions.num_members, -1),
            predictions.votes.shape,
        )
        choose = _RULES[self.rule]
        # An abstention (-1) on a row without a label (-1) is not right.
        correct = (self.votes == self.labels[None]) & (self.votes >= 0)

        near, _ = nearest_rows(x, self.x, self.num_neighbours, block=queries_at_once)

        def weigh_one(query):
            near, votes, counts = query
            weights = choose(
                correct[:, near], self.labels[near], votes, counts, self.num_classes
            )
            return jnp.where(counts, weights, 0.0)

        queries = (near, predictions.votes.T, counts.T)
        return jax.lax.map(weigh_one, queries, batch_size=queries_at_once).T

    def __call__(
        self,
        logits: jax.Array | Predictions,
        x: jax.Array,
        *,
        mask: jax.Array | None = None,
    ) -> jax.Array | Predictions:
        """The class with the largest summed weight of its voters, `[batch]`, int32.

        Of `Predictions`, the votes of one member.

        Raises:
            ValueError: as `weights`.
            LeakageError: for test rows that it was fitted on.
        """
        predictions = as_predictions(logits, mask=mask)
        # What this gives says itself that it has seen rows of the fit.
        weights = self.weights(logits, x, mask=mask, allow_seen=True)
        chosen = weighted_vote(predictions, weights)
        told = dict(mask=mask, weights=weights)
        return give_back(logits, chosen, self.fitted_rows, **told)


@struct.dataclass
class DynamicRegression:
    """Held-out rows and every member's squared error there; a pytree.

    Attributes:
        x: `[row, feature]`.
        squared_error: `[member, row]`, infinite for a member that does not count.
        rule: "best" or "inverse".
        num_neighbours: k, rows of a region.
        fitted_rows: the held-out rows, where they are known.
    """

    x: jax.Array
    squared_error: jax.Array
    rule: str = struct.field(pytree_node=False)
    num_neighbours: int = struct.field(pytree_node=False)
    fitted_rows: FittedRows = struct.field(pytree_node=False, default=FittedRows(_WHAT))

    def weights(
        self,
        x: jax.Array,
        *,
        mask: jax.Array | None = None,
        queries_at_once: int = 256,
    ) -> jax.Array:
        """How much each member counts on each row, `[member, batch]`; sums to 1.

        Args:
            x: `[batch, ...]`, in the space of the held-out rows.
            mask: `[member]` or `[member, batch]`; a False member counts as removed.
            queries_at_once: rows whose distances exist at one time.

        Returns:
            NaN on rows where no member counts that did in the fit.

        Raises:
            ValueError: if a shape does not fit.
        """
        x = _check_x(x, jnp.shape(x)[0], self.x.shape[1])
        shape = (self.squared_error.shape[0], len(x))
        _, mask = member_mask_and_weights(shape, None, mask)
        counts = jnp.broadcast_to(mask.reshape(shape[0], -1), shape)
        near, _ = nearest_rows(x, self.x, self.num_neighbours, block=queries_at_once)

        def weigh_one(query):
            near, counts = query
            local = jnp.mean(self.squared_error[:, near], axis=1)
            local = jnp.where(counts, local, jnp.inf)
            least = jnp.min(local)
            if self.rule == "best":
                weights = local <= least * (1 + _TOLERANCE)
            else:
                # Relative to the best, so that a faultless member divides by no zero.
                weights = jnp.where(least > 0, least / local, local == 0)
            weights = jnp.where(jnp.isinf(local), 0.0, weights)
            return weights / jnp.sum(weights)

        queries = (near, counts.T)
        return jax.lax.map(weigh_one, queries, batch_size=queries_at_once).T

    def __call__(
        self,
        points: jax.Array | Predictions,
        x: jax.Array,
        *,
        mask: jax.Array | None = None,
        provenance: Provenance | None = None,
        allow_seen: bool = False,
    ) -> jax.Array | Predictions:
        """The weighted mean of the members' values `[member, batch]`, `[batch]`.

        Of `Predictions` of points, those of one member. Members count that did in the
        fit and are not masked here.

        Args:
            points: `[member, batch]`, or `Predictions` of points.
            x: `[batch, ...]`, in the space of the held-out rows.
            mask: `[member]` or `[member, batch]`, as for `weights`; None: that of
                `Predictions`.
            provenance: of arrays, where it is known.
            allow_seen: of arrays, whether the fit itself is looked at. `Predictions`
                say themselves what they have seen.

        Raises:
            ValueError: if a shape does not fit.
            LeakageError: for test rows that it was fitted on; of arrays for any.
        """
        allow_seen = allow_seen or isinstance(points, Predictions)
        said, counts, provenance = unpack_points(points, mask, provenance)
        self.fitted_rows.check_arrays(provenance, allow_seen=allow_seen)
        check_use(self.fitted_rows, points)
        values = point_features(said).T
        _check_members(values.shape[0], self.squared_error.shape[0])
        x = _check_x(x, values.shape[1], self.x.shape[1])
        weights = self.weights(x, mask=counts)
        mean = jnp.sum(jnp.where(weights == 0, 0.0, values) * weights, axis=0)
        told = dict(mask=mask, weights=weights)
        return give_back(points, mean, self.fitted_rows, **told)


def fit_dynamic_selection(
    logits: jax.Array | Predictions,
    labels: jax.Array,
    x: jax.Array,
    *,
    rule: str = "knora_e",
    num_neighbours: int = 7,
    mask: jax.Array | None = None,
) -> DynamicSelection:
    """Keeps held-out rows and the members' votes there, to choose members near them.

    - "knora_e": the members that are right on the nearest rows up to their first
      mistake; of these runs the longest count.
    - "knora_u": each member counts as often as it is right in the region.
    - "ola": the members with the largest accuracy in the region.
    - "lca": of the rows in the region whose class a member names for this row, the
      share that it has right; the members with the largest share.
    - "des_p": the members whose accuracy in the region is above chance, 1 / C.

    Members that are equally good all count, whatever their order (DESlib takes the
    first for "ola" and "lca"). Where no member qualifies, all count.

    Args:
        logits: of rows that no member was trained on, `[member, row, class]`, or
            `Predictions` (votes will do).
        labels: class indices `[row]`.
        x: `[row, ...]`, in which rows are near each other by Euclidean distance; scale
            it. Of equally near rows the first counts.
        rule: as above.
        num_neighbours: k, from 1 to the number of rows.
        mask: `[member]` or `[member, row]`; where False the member counts as wrong on
            that row.

    Raises:
        ValueError: if a shape does not fit or the rule is unknown.
        TypeError: if `labels` are not integers.
        LeakageError: if `Predictions` say that members were trained on these rows, or
            that they are test rows.

    Source: Ko et al. 2008 (KNORA); Woods et al. 1997 (OLA, LCA); Woloszynski et al.
    2012 (DES-P).
    """
    predictions = as_predictions(logits, mask=mask)
    _choose("rule", rule, RULES)
    fitted_rows = check_predictions(_WHAT, predictions)
    labels = jnp.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"labels must be integers [row]; got {labels.dtype}.")
    votes = predictions.votes
    labels = broadcast_rows("labels", wide_labels(labels), votes.shape[1:])
    counts = predictions.mask.reshape(predictions.num_members, -1)
    return DynamicSelection(
        _check_x(x, votes.shape[1]),
        jnp.where(counts, votes, -2),  # neither a class nor a label that is missing
        labels,
        rule,
        _check_neighbours(num_neighbours, votes.shape[1]),
        predictions.num_classes,
        fitted_rows,
    )


def fit_dynamic_regression(
    points: jax.Array | Predictions,
    targets: jax.Array,
    x: jax.Array,
    *,
    rule: str = "best",
    num_neighbours: int = 7,
    mask: jax.Array | None = None,
    provenance: Provenance | None = None,
) -> DynamicRegression:
    """Keeps held-out rows and the members' errors there; competence is local loss.

    Args:
        points: values of rows that no member was trained on, `[member, row]`, or
            `Predictions` of points.
        targets: `[row]`.
        x: `[row, ...]`, in which rows are near each other by Euclidean distance.
        rule: "best": the members of least mean squared error in the region; "inverse":
            all, in inverse proportion to it.
        num_neighbours: k, from 1 to the number of rows.
        mask: `[member]`; a False member counts as removed.
        provenance: of the rows, where `points` are an array.

    Raises:
        ValueError: if a shape does not fit or the rule is unknown.
        LeakageError: if members were trained on these rows, or they are test rows.
    """
    _choose("rule", rule, REGRESSION_RULES)
    names = points.names if isinstance(points, Predictions) else ()
    points, mask, provenance = unpack_points(points, mask, provenance)
    values = point_features(points, mask).T
    fitted_rows = check_points(_WHAT, values, provenance, mask, names)
    targets = broadcast_rows("targets", jnp.asarray(targets), values.shape[1:])
    error = (values - targets[None].astype(values.dtype)) ** 2
    if mask is not None:
        error = jnp.where(jnp.asarray(mask, bool)[:, None], error, jnp.inf)
    return DynamicRegression(
        _check_x(x, values.shape[1]),
        error,
        rule,
        _check_neighbours(num_neighbours, values.shape[1]),
        fitted_rows,
    )


def _largest(competence, counts):
    """1 for the members that count and are as competent as the best of them."""
    best = jnp.max(jnp.where(counts, competence, -jnp.inf))
    return (competence >= best - _TOLERANCE).astype(jnp.float32)


def _knora_e(correct, labels, vote, counts, num_classes):
    del labels, vote, num_classes
    run = jnp.cumprod(correct.astype(jnp.int32), axis=1)  # 1 up to the first mistake
    return _largest(jnp.sum(run, axis=1), counts)


def _knora_u(correct, labels, vote, counts, num_classes):
    del labels, vote, num_classes
    right = jnp.sum(correct, axis=1).astype(jnp.float32)
    nobody = jnp.sum(jnp.where(counts, right, 0.0)) == 0
    return jnp.where(nobody, 1.0, right)


def _ola(correct, labels, vote, counts, num_classes):
    del labels, vote, num_classes
    return _largest(jnp.mean(correct, axis=1), counts)


def _lca(correct, labels, vote, counts, num_classes):
    del num_classes
    named = labels[None] == vote[:, None]  # [member, neighbour]
    share = jnp.sum(correct & named, axis=1) / jnp.maximum(jnp.sum(named, axis=1), 1)
    return _largest(share, counts)


def _des_p(correct, labels, vote, counts, num_classes):
    del labels, vote
    able = jnp.mean(correct, axis=1) > 1 / num_classes + _TOLERANCE
    return jnp.where(jnp.any(able & counts), able, True).astype(jnp.float32)


_RULES: dict[str, Callable[..., jax.Array]] = {
    "knora_e": _knora_e,
    "knora_u": _knora_u,
    "ola": _ola,
    "lca": _lca,
    "des_p": _des_p,
}


def _choose(name, value, known):
    if value not in known:
        raise ValueError(f"{name} is one of {', '.join(known)}; got {value!r}.")


def _check_members(found, expected):
    if found != expected:
        raise ValueError(
            f"{_WHAT} was fitted on {expected} members; got {found} members."
        )


def _check_neighbours(number, rows):
    if not 1 <= number <= rows:
        raise ValueError(
            f"num_neighbours must be from 1 to the {rows} held-out rows; got {number}."
        )
    return int(number)


def _check_x(x, rows, features=None):
    x = jnp.asarray(x)
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    flat = x.reshape(x.shape[0], -1) if x.ndim > 1 else x
    right = flat.ndim == 2 and flat.shape[0] == rows
    if not right or features not in (None, flat.shape[1]):
        wanted = "feature" if features is None else features
        raise ValueError(f"x must be [{rows}, {wanted}]; got shape {x.shape}.")
    return flat
