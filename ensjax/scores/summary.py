"""`score_summary`: all classification scores of members and ensemble in one program.

It gives what the functions of this room give one by one, but reads the logits once
(`row_pass`) and sorts confidences once (`row_order`).
"""

import functools

import jax
import jax.numpy as jnp

from ensjax.predictions import ABSTAIN, Predictions, as_predictions
from ensjax.scores.classification import count_choices
from ensjax.scores.evaluation_rows import check_scored
from ensjax.scores.row_order import order_scores
from ensjax.scores.row_pass import read_rows
from ensjax.scores.rows import bin_sum, inner_products, row_weights, weigh
from ensjax.scores.ties import equal_width_bin

# Of the ensemble and of every member; the others are of the ensemble alone.
SYSTEM_SCORES = (
    "accuracy",
    "adaptive_ece",
    "augrc",
    "aurc",
    "balanced_accuracy",
    "brier",
    "classwise_ece",
    "cohen_kappa",
    "coverage_at_risk",
    "ece",
    "entropy",
    "excess_aurc",
    "macro_f1",
    "matthews_correlation",
    "mce",
    "nll",
    "risk_at_coverage",
    "top_k_accuracy",
)
PAIR_SCORES = (
    "disagreement_matrix",
    "double_fault",
    "error_correlation",
    "q_statistic",
)


def score_summary(
    logits: jax.Array | Predictions,
    labels: jax.Array,
    *,
    weights: jax.Array | None = None,
    mask: jax.Array | None = None,
    sample_weight: jax.Array | None = None,
    num_bins: int = 15,
    top_k: int = 5,
    block: int | None = None,
    axis_name: str | None = None,
    allow_seen: bool = False,
) -> dict[str, jax.Array]:
    """All classification scores of an ensemble, its members and their diversity.

    Scores are those of the functions of the same names with their defaults, to rounding
    (`risk_at_coverage` at 0.8, `coverage_at_risk` at 0.05; `entropy` is the mean of
    `predictive_entropy`). Left out are those that sort every class (`macro_auroc`) or
    need an order of classes (`rps`). Memory beside the logits is about 30 bytes a
    member and row.

    Args:
        logits: logits or log-probabilities `[member, batch, class]`, or `Predictions`.
        labels: class indices, `[batch]`. A label out of range makes scores NaN.
        weights: `[member]`, of the mixture; they are normalised.
        mask: `[member]`; a False member counts as removed, and its own scores are NaN.
            So are those of a member without weight.
        sample_weight: `[batch]`, non-negative. Without it scores that sort are several
            times faster.
        num_bins: of all calibration errors.
        top_k: k of `top_k_accuracy`, which is 1 with no more classes than that.
        block: rows that are read at a time; None: as many as stay in a cache.
        axis_name: inside `jax.shard_map`, the mesh axis that splits the rows: scores
            are of the rows of all devices, which hold equally many.
        allow_seen: as for `evaluate`, of `Predictions`.

    Returns:
        For each of `SYSTEM_SCORES` its `name` of the ensemble, a scalar, and
        `name_members` `[member]`; of the ensemble alone `mutual_information` and
        `expected_entropy` (means, in nats), `jensen_gap`, `vote_accuracy` of the
        majority vote, `any_right` (share of rows that some member gets right),
        `disagreement`, and the matrices `[member, member]` of `PAIR_SCORES`. A member
        whose row holds a NaN abstains from the vote and is not right there; a row on
        which all do makes `vote_accuracy` and `any_right` NaN.

    Raises:
        ValueError: if a shape does not fit, or a number is out of range.
        TypeError: if labels are not integers, or only votes are known.
        LeakageError: if a member that counts was trained on a row that does.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from ensjax import scores
        >>> logits = jax.random.normal(jax.random.key(0), (4, 50, 10))
        >>> summary = scores.score_summary(logits, jnp.arange(50) % 10)
        >>> summary["nll_members"].shape, bool(summary["nll"] < 4.0)
        ((4,), True)
    """
    predictions = as_predictions(logits, weights=weights, mask=mask)
    values, labels = _check(predictions, labels, num_bins, top_k, block)
    is_split = axis_name is not None
    check_scored(predictions, sample_weight, allow_seen, is_split=is_split)
    return _summarise(
        values,
        labels,
        predictions.normalized_weights.astype(values.dtype),
        sample_weight,
        num_bins=num_bins,
        top_k=top_k,
        block=block,
        axis_name=axis_name,
    )


@functools.partial(jax.jit, static_argnames=("num_bins", "top_k", "block", "axis_name"))
def _summarise(
    values, labels, mixture, sample_weight, *, num_bins, top_k, block, axis_name
):
    """What `score_summary` returns, of arguments that were checked."""
    row_weight = row_weights(sample_weight, values.shape[1:2])
    found = read_rows(
        values,
        labels,
        mixture,
        row_weight,
        num_bins=num_bins,
        top_k=top_k,
        block=block,
    )

    def over_devices(tree):
        return tree if axis_name is None else jax.lax.psum(tree, axis_name)

    # The mixture is the last system.
    is_label = (labels >= 0) & (labels < values.shape[2])
    undefined = (found.choice == ABSTAIN) | ~is_label[None]
    right = (found.choice == labels[None]) & ~undefined
    counts = jnp.append(mixture > 0, True)
    sums, total = over_devices((found.sums, found.total))
    of_systems = [jnp.broadcast_to(x[None], right.shape) for x in (labels, row_weight)]
    confusion = over_devices(
        count_choices(found.choice, *of_systems, num_classes=values.shape[2])
    )
    spoilt = over_devices(
        jnp.sum(jnp.where(undefined & (row_weight[None] != 0), 1.0, 0.0), axis=-1)
    )
    systems = {
        "nll": sums["nll"] / total,
        "brier": sums["brier"] / total,
        "top_k_accuracy": sums["top_k"] / total,
        "entropy": sums["entropy"] / total,
        "classwise_ece": jnp.mean(
            jnp.sum(jnp.abs(sums["class_gap"]), axis=0) / total, axis=0
        ),
        **_of_confusion(confusion),
    }
    confidence = jnp.exp(found.log_confidence)
    bins = equal_width_bin(confidence, num_bins)
    of_rows = (
        of_systems[1],
        weigh(right * 1.0, row_weight[None]),
        weigh(jnp.where(undefined, 0.0, confidence), row_weight[None]),
    )
    held, hits, sure = over_devices([bin_sum(x, bins, num_bins) for x in of_rows])
    gap = jnp.abs(hits - sure)
    defined = {
        "accuracy": jnp.sum(hits, axis=-1) / total,
        "ece": jnp.sum(gap, axis=-1) / total,
        "mce": jnp.max(jnp.where(held == 0, 0.0, gap / held), axis=-1),
        **_sorted_scores(
            found.log_confidence,
            right,
            undefined,
            None if sample_weight is None else row_weight,
            num_bins,
            axis_name,
        ),
    }
    systems |= {k: jnp.where(spoilt > 0, jnp.nan, v) for k, v in defined.items()}
    result = {}
    for name in SYSTEM_SCORES:
        own = jnp.where(counts, systems[name], jnp.nan)
        result[name], result[f"{name}_members"] = own[-1], own[:-1]
    return result | _of_ensemble(
        found, sums, total, mixture, right, undefined, labels, row_weight, over_devices
    )


def _check(predictions, labels, num_bins, top_k, block):
    if predictions.kind == "votes":
        raise TypeError("score_summary needs probabilities; these are votes.")
    for name, value in (("weights", predictions.weights), ("mask", predictions.mask)):
        if value.ndim != 1:
            raise ValueError(f"{name} must be [member] here; got shape {value.shape}.")
    values = predictions.values
    values = values.astype(jnp.promote_types(values.dtype, jnp.float32))
    labels = jnp.asarray(labels)
    if labels.shape != values.shape[1:2]:
        raise ValueError(
            f"labels must be [batch] = {values.shape[1:2]}; got {labels.shape}."
        )
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"labels must be integers; got {labels.dtype}.")
    for name, value in (("top_k", top_k), ("num_bins", num_bins), ("block", block)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1; got {value}.")
    return values, labels.astype(jnp.int32)


def _of_confusion(counts):
    hits = jnp.diagonal(counts, axis1=-2, axis2=-1)
    true, chosen = jnp.sum(counts, axis=-1), jnp.sum(counts, axis=-2)
    number = jnp.sum(true, axis=-1, keepdims=True)
    recall = jnp.where(true == 0, jnp.nan, hits / true)
    f1 = jnp.where(true + chosen == 0, 0.0, 2 * hits / (true + chosen))
    true, chosen, agree = true / number, chosen / number, jnp.sum(hits / number, -1)
    chance = jnp.sum(true * chosen, axis=-1)
    # Whether one class is alone, by those that occur: shares sum to 1 only to rounding.
    is_true, is_chosen = true > 0, chosen > 0
    variances = (1 - jnp.sum(true**2, axis=-1)) * (1 - jnp.sum(chosen**2, axis=-1))
    is_constant = (jnp.sum(is_true, axis=-1) < 2) | (jnp.sum(is_chosen, axis=-1) < 2)
    is_constant &= ~jnp.isnan(agree)
    chance = jnp.where(jnp.sum(is_true | is_chosen, axis=-1) < 2, jnp.nan, chance)
    correlation = (agree - chance) / jnp.sqrt(jnp.where(is_constant, 1.0, variances))
    return {
        "balanced_accuracy": jnp.nanmean(recall, axis=-1),
        "macro_f1": jnp.mean(f1, axis=-1),
        "matthews_correlation": jnp.where(is_constant, 0.0, correlation),
        "cohen_kappa": (agree - chance) / (1 - chance),
    }


def _sorted_scores(log_confidence, right, undefined, weight, num_bins, axis_name):
    """Scores that need rows in the order of confidence, `[system]` each.

    Rows that are undefined count as wrong here; who calls gives NaN instead. Of split
    rows every device gets all for some systems, and sorts those.
    """
    level = jnp.where(undefined, 0.0, jnp.abs(log_confidence))
    if axis_name is None:
        return order_scores(level, right, weight, num_bins)
    num_systems, num_devices = level.shape[0], jax.lax.axis_size(axis_name)
    missing = -num_systems % num_devices

    def exchange(values):
        padded = jnp.pad(values, ((0, missing), (0, 0)))
        return jax.lax.all_to_all(padded, axis_name, 0, 1, tiled=True)

    if weight is not None:
        weight = jax.lax.all_gather(weight, axis_name, tiled=True)
    own = order_scores(exchange(level), exchange(right), weight, num_bins)
    share = (num_systems + missing) // num_devices
    first = jax.lax.axis_index(axis_name) * share

    def collect(values):
        places = jnp.zeros(num_systems + missing, values.dtype)
        places = jax.lax.dynamic_update_slice_in_dim(
            places + 0 * values[0], values, first, axis=0
        )
        return jax.lax.psum(places, axis_name)[:num_systems]

    return {name: collect(values) for name, values in own.items()}


def _of_ensemble(
    found, sums, total, mixture, right, undefined, labels, row_weight, over_devices
):
    """Scores of the ensemble alone, and of pairs of members."""
    counts = mixture > 0
    choice = found.choice[:-1]
    weight = jnp.where(counts[:, None], row_weight[None], 0.0)
    votes_at = jnp.where(choice == ABSTAIN, 0.0, weight)
    both = inner_products(jnp.where(choice == ABSTAIN, 0.0, 1.0), votes_at)
    small = choice.astype(jnp.int8 if sums["class_gap"].shape[1] < 128 else jnp.int32)

    def same_as(own):
        return jnp.sum(jnp.where(own[None] == small, votes_at, 0.0), axis=-1)

    same = jax.lax.map(same_as, small)
    hit = right[:-1].astype(jnp.float32)
    miss = 1.0 - hit
    some = jnp.any(right[:-1] & counts[:, None], axis=0)
    # Neither a label that is no class nor a row without votes passes for a mistake.
    voted = jnp.any(~undefined[:-1] & counts[:, None], axis=0)
    some, on_vote = (
        jnp.where(voted, x * 1.0, jnp.nan) for x in (some, found.vote == labels)
    )
    tables = over_devices(
        {
            "both": both,
            "same": same,
            "hits": [
                inner_products(a, b * weight)
                for a, b in ((hit, hit), (hit, miss), (miss, hit), (miss, miss))
            ],
            "spoilt": jnp.any(undefined[:-1] & (weight != 0), axis=-1) * 1.0,
            "some": jnp.sum(weigh(some, row_weight)),
            "vote": jnp.sum(weigh(on_vote, row_weight)),
        }
    )
    kept = counts[:, None] & counts[None]
    both, same = (jnp.where(kept, tables[name], jnp.nan) for name in ("both", "same"))
    defined = kept & (tables["spoilt"] == 0)[:, None] & (tables["spoilt"] == 0)[None]
    n11, n10, n01, n00 = (
        jnp.where(defined, table / total, jnp.nan) for table in tables["hits"]
    )
    product = (n11 + n10) * (n01 + n00) * (n11 + n01) * (n10 + n00)
    alike, unlike = n11 * n00, n10 * n01
    matrix = (both - same) / both
    # Of pairs and rows, as pairs may have votes on unequally many rows.
    is_pair = kept & ~jnp.eye(len(counts), dtype=bool)
    pairs, agreeing = (jnp.sum(jnp.where(is_pair, x, 0.0)) for x in (both, same))
    return {
        "mutual_information": sums["mutual_information"] / total,
        "expected_entropy": jnp.sum(
            mixture * jnp.where(counts, sums["entropy"][:-1] / total, 0.0)
        ),
        "jensen_gap": sums["jensen_gap"] / total,
        "vote_accuracy": tables["vote"] / total,
        "any_right": tables["some"] / total,
        "disagreement": jnp.where(pairs == 0, 0.0, (pairs - agreeing) / pairs),
        "disagreement_matrix": matrix,
        "double_fault": n00,
        "error_correlation": jnp.where(
            product == 0, jnp.nan, (alike - unlike) / jnp.sqrt(product)
        ),
        "q_statistic": jnp.where(
            alike + unlike == 0, jnp.nan, (alike - unlike) / (alike + unlike)
        ),
    }
