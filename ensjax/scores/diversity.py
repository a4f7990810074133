"""How members differ in what they choose and get wrong: pairwise statistics.

Every function takes all members' predictions, `[member, batch, class]` logits (or
log-probabilities) or `Predictions`, votes included. `mask` leaves members out;
`sample_weight` weighs the rows. Members count equally, whatever their weights inside
`Predictions`; one of weight 0 does not count, as if it were masked. Matrices are
`[member, member]`, NaN in the row and column of a member that does not count.

Measures that take no labels (here and in `uncertainty`) compare members with each other
and do not ask who has seen the rows; those with labels, and all of
`evaluate_diversity`, do.
"""

import jax
import jax.numpy as jnp

from ensjax.member_arrays import counting_members, wide_labels
from ensjax.predictions import ABSTAIN, Predictions, as_predictions
from ensjax.scores.evaluation_rows import check_scored
from ensjax.scores.rows import (
    check_rows,
    inner_products,
    is_correct,
    label_log_probs,
    row_weights,
    weigh,
    weighted_mean,
)


def disagreement(
    logits: jax.Array | Predictions,
    *,
    mask: jax.Array | None = None,
    sample_weight: jax.Array | None = None,
) -> jax.Array:
    """Fraction of (pair of members, row) on which the two choose different classes.

    Pairs count equally, whatever the members' weights; rows on which one of the two
    abstains do not count.

    Args:
        logits: `[member, batch, class]`, or `Predictions` (votes will do).
        mask: `[member]` or `[member, batch]`; a False member counts as removed.
        sample_weight: `[batch]`, non-negative.

    Returns:
        A scalar (0-1); 0 if there is no pair, as with one member.

    Raises:
        ValueError: if a shape does not fit.
    """
    chosen, _, row_weight = _choices(logits, mask, sample_weight)
    counts = jnp.sum(chosen, axis=0)  # [batch, class]
    voters = jnp.sum(counts, axis=-1)
    pairs = jnp.sum(weigh(voters * (voters - 1), row_weight))
    agreeing = jnp.sum(weigh(jnp.sum(counts * (counts - 1), axis=-1), row_weight))
    return jnp.where(pairs == 0, 0.0, (pairs - agreeing) / pairs)


def normalized_disagreement(
    logits: jax.Array | Predictions,
    labels: jax.Array,
    *,
    mask: jax.Array | None = None,
    sample_weight: jax.Array | None = None,
    allow_seen: bool = False,
) -> jax.Array:
    """Disagreement in units of the members' error: D / (1 - a).

    D is `disagreement`, a the share of the members' votes that are right. Two members
    that are never wrong together have 2, copies 0.

    Args:
        logits, mask, sample_weight: as for `disagreement`.
        labels: class indices `[batch]`.
        allow_seen: whether rows that members were trained on may be scored.

    Returns:
        A scalar, non-negative; NaN if no vote is wrong, or a label that counts is out
        of range.

    Raises:
        ValueError: if a shape does not fit.
        TypeError: if `labels` are not integers.
        LeakageError: for rows that members were trained on; see `allow_seen`.

    Source: Fort et al. 2019, arXiv:1912.02757, section 4.2, which has it for each
    member beside one base; here pairs and members are pooled.
    """
    predictions = as_predictions(logits, mask=mask)
    check_scored(predictions, sample_weight, allow_seen)
    chosen, votes_at, row_weight = _choices(predictions, None, sample_weight)
    labels = jnp.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"labels must be integers [batch]; got {labels.dtype}.")
    if labels.shape != chosen.shape[1:2]:
        raise ValueError(
            f"labels must be [batch] = {chosen.shape[1:2]}; got {labels.shape}."
        )
    labels, num_classes = wide_labels(labels), chosen.shape[2]
    right = jnp.sum(chosen * jax.nn.one_hot(labels, num_classes)[None], axis=(0, 2))
    voters = jnp.sum(votes_at, axis=(0, 2))
    is_stray = (row_weight != 0) & ((labels < 0) | (labels >= num_classes))
    total = jnp.sum(weigh(voters, row_weight))
    error = jnp.sum(weigh(voters - right, row_weight)) / total
    differs = disagreement(predictions, sample_weight=sample_weight)
    found = differs / jnp.where(error > 0, error, jnp.nan)
    return jnp.where(jnp.any(is_stray), jnp.nan, found)


def disagreement_matrix(
    logits: jax.Array | Predictions,
    *,
    mask: jax.Array | None = None,
    sample_weight: jax.Array | None = None,
) -> jax.Array:
    """Fraction of rows on which members i and j choose different classes.

    Arguments as for `disagreement`.

    Returns:
        `[member, member]`, symmetric, 0 on the diagonal.
    """
    chosen, votes_at, row_weight = _choices(logits, mask, sample_weight)
    both = _inner(votes_at, votes_at, row_weight)
    same = _inner(chosen, chosen, row_weight)
    return (both - same) / both


def kappa(
    logits: jax.Array | Predictions,
    *,
    mask: jax.Array | None = None,
    sample_weight: jax.Array | None = None,
) -> jax.Array:
    """Cohen's kappa of the classes chosen by each pair: agreement beyond chance.

        kappa_ij = (agree_ij - chance_ij) / (1 - chance_ij)

    where chance_ij is the agreement of independent choices with the same class
    frequencies. 1 is full agreement, 0 chance; NaN if both always choose one class.
    No labels enter; some toolboxes compute kappa of being right instead. Memory grows
    as members squared times classes.

    Arguments as for `disagreement`.

    Returns:
        `[member, member]`, symmetric.

    Source: Cohen 1960; Dietterich 2000 (kappa-error diagrams).
    """
    chosen, votes_at, row_weight = _choices(logits, mask, sample_weight)
    both = _inner(votes_at, votes_at, row_weight)
    agree = _inner(chosen, chosen, row_weight) / both
    # frequency[i, j, c]: how often i chooses c on the rows on which j votes too.
    own = jnp.moveaxis(weigh(chosen, row_weight[None, :, None]), 1, 2)
    num_members, num_classes, num_rows = own.shape
    frequency = inner_products(own.reshape(-1, num_rows), votes_at[..., 0])
    frequency = frequency.reshape(num_members, num_classes, -1).swapaxes(1, 2)
    frequency = frequency / both[..., None]
    of_other = jnp.swapaxes(frequency, 0, 1)
    chance = jnp.sum(frequency * of_other, axis=-1)
    # By the classes that occur: their frequencies sum to 1 only to rounding.
    is_constant = jnp.sum((frequency > 0) | (of_other > 0), axis=-1) < 2
    chance = jnp.where(is_constant, jnp.nan, chance)
    return (agree - chance) / (1 - chance)


def error_correlation(
    logits: jax.Array | Predictions,
    labels: jax.Array,
    *,
    mask: jax.Array | None = None,
    sample_weight: jax.Array | None = None,
    allow_seen: bool = False,
) -> jax.Array:
    """Pearson correlation of being wrong, between each pair of members.

    Args:
        logits: `[member, batch, class]`, or `Predictions` (votes will do).
        labels: class indices `[batch]`. A label out of range makes everything NaN,
            a member that abstains or holds a NaN its row and column.
        mask: `[member]`; a False member's row and column are NaN.
        sample_weight: `[batch]`, non-negative.
        allow_seen: as for `evaluate`, of `Predictions`.

    Returns:
        `[member, member]`; NaN where a member is always right or always wrong.

    Raises:
        ValueError: if a shape does not fit.
        TypeError: if `labels` are not integers.
        LeakageError: if a member that counts was trained on a row that does.

    Source: Kuncheva and Whitaker 2003, equation 2 (rho).
    """
    both_right, only_first, only_second, both_wrong = _contingency(
        logits, labels, mask, sample_weight, allow_seen
    )
    product = (both_right + only_first) * (only_second + both_wrong)
    product *= (both_right + only_second) * (only_first + both_wrong)
    above = both_right * both_wrong - only_first * only_second
    return jnp.where(product == 0, jnp.nan, above / jnp.sqrt(product))


def q_statistic(
    logits: jax.Array | Predictions,
    labels: jax.Array,
    *,
    mask: jax.Array | None = None,
    sample_weight: jax.Array | None = None,
    allow_seen: bool = False,
) -> jax.Array:
    """Yule's Q of being right, between each pair of members, from -1 to 1.

        Q_ij = (N11 N00 - N01 N10) / (N11 N00 + N01 N10)

    N11 counts the rows that both get right. 0 for independent members; the sign is that
    of `error_correlation`. Arguments as there.

    Returns:
        `[member, member]`; NaN where the denominator is 0.

    Source: Kuncheva and Whitaker 2003, equation 1.
    """
    both_right, only_first, only_second, both_wrong = _contingency(
        logits, labels, mask, sample_weight, allow_seen
    )
    same, different = both_right * both_wrong, only_first * only_second
    total = same + different
    return jnp.where(total == 0, jnp.nan, (same - different) / total)


def double_fault(
    logits: jax.Array | Predictions,
    labels: jax.Array,
    *,
    mask: jax.Array | None = None,
    sample_weight: jax.Array | None = None,
    allow_seen: bool = False,
) -> jax.Array:
    """Fraction of rows that both members of a pair get wrong.

    Arguments as for `error_correlation`.

    Returns:
        `[member, member]`; the members' error rates are on the diagonal.

    Source: Giacinto and Roli 2001; Kuncheva and Whitaker 2003, equation 5.
    """
    return _contingency(logits, labels, mask, sample_weight, allow_seen)[3]


def mean_pairwise_kl(
    logits: jax.Array | Predictions,
    *,
    mask: jax.Array | None = None,
    sample_weight: jax.Array | None = None,
) -> jax.Array:
    """Mean over ordered pairs of members and rows of KL(p_i || p_j), in nats.

        sum_{i != j} KL(p_i || p_j) / (M (M - 1))
            = sum_i sum_c p_ic (log p_ic - mean_j log p_jc) / (M - 1)

    The second form costs members, not pairs.

    Args:
        logits: `[member, batch, class]` or `Predictions` with probabilities.
        mask: `[member]` or `[member, batch]`; a False member counts as removed.
        sample_weight: `[batch]`, non-negative.

    Returns:
        A scalar; 0 if there is no pair, inf if a member rules out what another does
        not. Rows with less than two members do not count.

    Raises:
        ValueError: if a shape does not fit.

    Source: Kullback and Leibler 1951; Fort et al. 2019, arXiv:1912.02757, section 4.
    """
    values, counts, row_weight = _kept_log_probs(logits, mask, sample_weight)
    number = jnp.sum(counts, axis=0)  # [batch]
    center = jnp.sum(values, axis=0) / jnp.maximum(number, 1)[:, None]
    probs = jnp.where(counts[..., None], jnp.exp(values), 0.0)
    # A class that a member rules out adds nothing to its own divergence.
    away = jnp.where(probs == 0, 0.0, values - center[None])
    total = jnp.sum(probs * away, axis=(0, 2)) / jnp.maximum(number - 1, 1)
    total = jnp.where(total < 0, 0.0, total)
    row_weight = jnp.where(number > 1, row_weight, 0.0)
    return _mean_or_zero(total, row_weight)


def label_probability_variance(
    logits: jax.Array | Predictions,
    labels: jax.Array,
    *,
    mask: jax.Array | None = None,
    sample_weight: jax.Array | None = None,
    allow_seen: bool = False,
) -> jax.Array:
    """Mean over rows of the members' variance of p(y), divided by M (ddof 0).

        mean_n var_m p_m(y_n | x_n)

    Half of the gain in Brier score that averaging brings in a two-class problem.

    Args:
        logits: `[member, batch, class]` or `Predictions` with probabilities.
        labels: class indices `[batch]`; out of range gives NaN.
        mask: `[member]` or `[member, batch]`; a False member counts as removed.
        sample_weight: `[batch]`, non-negative.
        allow_seen: as for `evaluate`, of `Predictions`.

    Returns:
        A scalar (0-0.25); NaN if a row that counts has no member.

    Raises:
        ValueError: if a shape does not fit.
        TypeError: if `labels` are not integers.
        LeakageError: if a member that counts was trained on a row that does.

    Source: Kuncheva and Whitaker 2003; Abe et al. 2022, arXiv:2202.06985, section 3.
    """
    check_scored(as_predictions(logits, mask=mask), sample_weight, allow_seen)
    values, counts, _ = _kept_log_probs(logits, mask, sample_weight)
    values, labels, row_weight = check_rows(values, labels, sample_weight)
    picked = jnp.exp(label_log_probs(values, labels))
    picked = jnp.where(counts, picked, 0.0)
    number = jnp.sum(counts, axis=0)
    mean = jnp.sum(picked, axis=0) / number
    away = jnp.where(counts, picked - mean[None], 0.0)
    return weighted_mean(jnp.sum(away**2, axis=0) / number, row_weight[0])


def _kept_log_probs(logits, mask, sample_weight):
    """Log-probabilities with zeros for masked members, who counts, row weights."""
    predictions = as_predictions(logits, mask=mask)
    values = predictions.log_probs
    counts = counting_members(predictions.weights, predictions.mask)
    counts = counts.reshape(len(values), -1)
    counts = jnp.broadcast_to(counts, values.shape[:2])
    values = jnp.where(counts[..., None], values, 0.0)
    return values, counts, row_weights(sample_weight, values.shape[1:2])


def _mean_or_zero(values, weight):
    total = jnp.sum(weight)
    mean = jnp.sum(weigh(values, weight)) / jnp.where(total == 0, 1.0, total)
    return jnp.where(total == 0, 0.0, mean)


def pairwise_mean(matrix: jax.Array) -> jax.Array:
    """Mean of a `[member, member]` matrix over the pairs i < j that are not NaN.

    Raises:
        ValueError: if `matrix` is not square.
    """
    matrix = jnp.asarray(matrix)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"matrix must be [member, member]; got shape {matrix.shape}.")
    above = jnp.triu(jnp.ones(matrix.shape, bool), k=1) & ~jnp.isnan(matrix)
    return jnp.sum(jnp.where(above, matrix, 0.0)) / jnp.sum(above)


def _choices(logits, mask, sample_weight):
    """One-hot choices `[member, batch, class]`, voters `[member, batch, 1]`, weights.

    The one-hot row of a member that abstains, or is masked, is all zeros.
    """
    predictions = as_predictions(logits, mask=mask)
    choices = predictions.votes
    counts = counting_members(predictions.weights, predictions.mask)
    counts = counts[:, None] if counts.ndim == 1 else counts
    choices = jnp.where(counts, choices, ABSTAIN)
    chosen = jax.nn.one_hot(choices, predictions.num_classes, dtype=jnp.float32)
    votes_at = jnp.sum(chosen, axis=-1, keepdims=True)
    return chosen, votes_at, row_weights(sample_weight, choices.shape[1:])


def _inner(first, second, row_weight):
    first = weigh(first, row_weight[None, :, None])
    return inner_products(*(x.reshape(len(x), -1) for x in (first, second)))


def _contingency(logits, labels, mask, sample_weight, allow_seen):
    """Weight fractions `[member, member]`: both right, only i, only j, both wrong."""
    predictions = as_predictions(logits, mask=mask)
    check_scored(predictions, sample_weight, allow_seen)
    # One-hot log-probabilities let votes be scored like probabilities.
    values = (
        jnp.log(jax.nn.one_hot(predictions.votes, predictions.num_classes))
        if predictions.kind == "votes"
        else predictions.values
    )
    values, labels, row_weight = check_rows(values, labels, sample_weight)
    right = is_correct(values, labels)
    if predictions.mask.ndim == 2:
        raise ValueError(
            "Pairwise error statistics need a mask of shape [member]; got"
            f" {predictions.mask.shape}."
        )
    counts = counting_members(predictions.weights, predictions.mask)
    counts = jnp.any(counts.reshape(len(right), -1), axis=1)
    right = jnp.where(counts[:, None], right, jnp.nan)[..., None]
    row_weight = row_weight[0]
    total = jnp.sum(row_weight)
    return tuple(
        _inner(a, b, row_weight) / total
        for a, b in (
            (right, right),
            (right, 1 - right),
            (1 - right, right),
            (1 - right, 1 - right),
        )
    )
