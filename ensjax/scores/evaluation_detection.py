"""How well numbers find rows of a kind: doubt (`evaluate_ood`), or any detector's.

The thresholds of `evaluate_detection` are fitted elsewhere (`fit_threshold`).
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.predictions import Predictions, as_predictions, predictive_log_probs
from ensjax.provenance import Provenance
from ensjax.scores.confidence import max_log_odds, negative_entropy
from ensjax.scores.detection import (
    attack_errors,
    equal_error_rate,
    error_rates,
    hter,
)
from ensjax.scores.ends import auroc_ends, half_sum_ends, outer_ends, wilson_ends
from ensjax.scores.evaluation_members import counts_and_rows, with_members
from ensjax.scores.evaluation_rows import Bootstrap, Rows, check_told
from ensjax.scores.intervals import Interval
from ensjax.scores.metrics import chosen_metrics
from ensjax.scores.ood import auprc, auroc, fpr_at_tpr
from ensjax.scores.programs import With, score_one
from ensjax.scores.rows import as_kinds
from ensjax.scores.uncertainty import (
    expected_entropy,
    margin,
    mutual_information,
    variation_ratio,
    vote_entropy,
)


def _of_pool(confidence):
    return lambda predictions: -confidence(predictive_log_probs(predictions))


# `doubt(predictions)` to `[batch]`, larger where a row is less familiar.
DOUBTS = {
    "max_prob": _of_pool(max_log_odds),
    "margin": _of_pool(margin),
    "predictive_entropy": _of_pool(negative_entropy),
    "expected_entropy": expected_entropy,
    "mutual_information": mutual_information,
    "variation_ratio": variation_ratio,
    "vote_entropy": vote_entropy,
}
OOD_METRICS = {"auroc": auroc, "auprc": auprc, "fpr_at_tpr": fpr_at_tpr}


def evaluate_ood(
    predictions: jax.Array | Predictions,
    is_ood: jax.Array,
    doubts: Sequence[str] | Mapping[str, Any] | None = None,
    *,
    sample_weight: jax.Array | None = None,
    groups: jax.Array | None = None,
    bootstrap: int = 0,
    confidence: float = 0.95,
    seed: int = 0,
    allow_seen: bool = False,
) -> dict[str, Any]:
    """How well the ensemble's doubt finds rows from elsewhere, with intervals.

    Args:
        predictions: of rows from both, `[member, batch, class]`, or `Predictions`.
        is_ood: bool `[batch]`, True for those from elsewhere.
        doubts: names of `DOUBTS`, or name -> `doubt(predictions) -> [batch]` or numbers
            `[batch]` such as `mahalanobis` distances, larger where a row is less
            familiar. None: all. "max_prob", "margin" and "predictive_entropy" are of
            the pooled probabilities, negated where large ones are sure.

    The other arguments are those of `evaluate`. Resamples without rows of one kind
    have no score and are left out; where few rows are of one kind, intervals tell less
    than they seem to. Ends of areas "auroc" are those of `evaluate_detection`; the
    others are percentiles, of no width where the two kinds are told apart throughout.

    Returns:
        For every doubt `name`: `name_auroc`, `name_auprc` (rows from elsewhere are the
        positives) and `name_fpr_at_tpr` (at 95 %); with a bootstrap also `_low` and
        `_high` of each; `num_members` and `num_rows`.

    Raises:
        ValueError, TypeError, LeakageError: as `evaluate`.

    Source: Hendrycks and Gimpel 2017, arXiv:1610.02136.
    """
    is_ood = as_kinds("is_ood", is_ood)
    if isinstance(doubts, Mapping):
        doubts = {
            name: doubt if callable(doubt) else functools.partial(_given, doubt)
            for name, doubt in doubts.items()
        }
    functions = chosen_metrics(doubts, DOUBTS, tuple(DOUBTS))
    predictions = as_predictions(predictions)
    counts, rows = counts_and_rows(predictions, sample_weight, groups, allow_seen)
    bare = predictions.replace(provenance=None)
    size = (len(rows.weight),)
    told = {}
    for name, doubt in functions.items():
        told[name] = jnp.asarray(doubt(bare))
        if told[name].shape != size:
            raise ValueError(
                f"doubt {name!r} must give [batch] = {size}; got {told[name].shape}."
            )

    weight = np.asarray(rows.weight)
    is_positive = np.asarray(is_ood)
    area = functools.partial(_auroc_ends, weight=weight, is_positive=is_positive)
    found = score_one(
        With.of(_ood_values, names=tuple(functions)),
        {"is_ood": is_ood} | told,
        rows,
        Bootstrap(bootstrap, confidence, seed),
        derived={f"{name}_auroc": area for name in functions},
        ranges={
            f"{name}_{metric}": metric for name in functions for metric in OOD_METRICS
        },
    )
    return with_members(found, counts)


def _ood_values(weight, is_ood, *told, names):
    return {
        f"{name}_{metric}": score(doubt, is_ood, sample_weight=weight)
        for name, doubt in zip(names, told, strict=True)
        for metric, score in OOD_METRICS.items()
    }


def _given(doubt, predictions):
    return doubt


def evaluate_detection(
    scores: jax.Array,
    is_genuine: jax.Array,
    threshold: jax.Array | float | None = None,
    *,
    attack_types: jax.Array | None = None,
    sample_weight: jax.Array | None = None,
    groups: jax.Array | None = None,
    bootstrap: int = 0,
    confidence: float = 0.95,
    seed: int = 0,
    provenance: Provenance | None = None,
    allow_seen: bool = False,
) -> dict[str, Any]:
    """How well numbers tell genuine rows from attacks, with intervals.

    Args:
        scores: larger means more genuine, `[batch]` or `[member, batch]`.
        is_genuine: bool, `[batch]`.
        threshold: fitted on other rows (`fit_threshold`): a scalar, or `[member]`.
            None: nothing at a threshold is told.
        attack_types: integers `[batch]`, 0 and above for kinds of attack; those of
            genuine rows do not matter. With a threshold only.
        provenance: of the scores; None: unknown, and nothing is checked.

    The other arguments are those of `evaluate`.

    Returns:
        "auroc" and "eer" (the threshold of which is of these rows, which flatters it);
        at the threshold "false_accept_rate", "false_reject_rate" (1 minus specificity
        and sensitivity) and "hter"; with types "apcer", "bpcer" and "acer". With a
        member axis they are lists. With a bootstrap also `_low` and `_high`, where rows
        have no groups: of the rates of false decisions and "bpcer" Wilson's, as in
        `evaluate`; of "apcer" the largest of Wilson's lower and upper ends of the types
        (a lower end that flatters none, and may be too high with many types); of "hter"
        and "acer" those that follow from both rates (`ends.half_sum_ends`), and of
        "eer" the same or the percentiles, whichever lies further out; of "auroc"
        Newcombe's (`ends.auroc_ends`). Where rows have groups all are percentiles, of
        no width where no resample holds an error; resamples without a kind of row are
        left out. And "num_rows".

    Raises:
        ValueError: if a shape does not fit, or types come without a threshold.
        TypeError: if `is_genuine` is not bool, or the types are not integers.
        LeakageError: as `evaluate`.

    Source: Bengio and Mariethoz 2004 (HTER); ISO/IEC 30107-3 (ACER).
    """
    scores, is_genuine = jnp.asarray(scores), np.asarray(is_genuine)
    if scores.ndim not in (1, 2):
        raise ValueError(
            f"scores must be [batch], or [member, batch]; got shape {scores.shape}."
        )
    if is_genuine.dtype != bool:
        raise TypeError(f"is_genuine must be bool; got {is_genuine.dtype}.")
    rows = Rows.of(scores.shape[-1], sample_weight, groups)
    check_told(provenance, (), rows.weight[None] != 0, allow_seen)
    arrays, more = {"scores": scores.T, "is_genuine": is_genuine}, ()
    if threshold is not None:
        more = (jnp.asarray(threshold, jnp.float32),)
    num_types = 0
    if attack_types is not None:
        types = np.asarray(attack_types)
        if threshold is None:
            raise ValueError("attack_types go with a threshold, and there is none.")
        if not np.issubdtype(types.dtype, np.integer):
            raise TypeError(f"attack_types must be integers; got {types.dtype}.")
        if types.shape != is_genuine.shape or (types[~is_genuine] < 0).any():
            raise ValueError(
                f"attack_types must be {is_genuine.shape}, 0 or above for attacks; got"
                f" shape {types.shape}."
            )
        types = np.where(is_genuine, -1, types).astype(np.int32)
        arrays, num_types = arrays | {"attack_types": types}, int(types.max()) + 1
    weight = np.asarray(rows.weight)
    if is_genuine.shape != weight.shape:
        raise ValueError(
            f"is_genuine must be [batch] = [{len(weight)}]; got {is_genuine.shape}."
        )
    attack, genuine = weight * ~is_genuine, weight * is_genuine

    def eer_ends(value, ends, confidence):
        both = (wilson_ends(value, kind, confidence) for kind in (attack, genuine))
        return outer_ends(ends["eer"], half_sum_ends(value, *both))

    def apcer_ends(value, ends, confidence):
        accepted = np.asarray(scores) > np.asarray(threshold, np.float32)[..., None]
        of_types = [attack * (types == kind) for kind in range(num_types)]
        of_types = [kind for kind in of_types if kind.any()]
        shares = [(kind * accepted).sum(axis=-1) / kind.sum() for kind in of_types]
        return _largest_ends(value, shares, of_types, confidence)

    return score_one(
        With.of(_rates, num_types=num_types),
        arrays,
        rows,
        Bootstrap(bootstrap, confidence, seed),
        more=more,
        proportions={
            "false_accept_rate": attack,
            "false_reject_rate": genuine,
            "bpcer": genuine,
        },
        derived={
            "auroc": functools.partial(
                _auroc_ends, weight=weight, is_positive=is_genuine
            ),
            "eer": eer_ends,
            "hter": functools.partial(
                _half_sum_ends, of=("false_accept_rate", "false_reject_rate")
            ),
            "apcer": apcer_ends,
            "acer": functools.partial(_half_sum_ends, of=("apcer", "bpcer")),
        },
    )


def _auroc_ends(value, ends, confidence, *, weight, is_positive):
    return auroc_ends(value, weight * is_positive, weight * ~is_positive, confidence)


def _half_sum_ends(value, ends, confidence, *, of):
    return half_sum_ends(value, *(ends[name] for name in of))


def _largest_ends(value, shares, weights, confidence):
    """Of the largest of several shares of rows: the largest of both ends."""
    ends = [
        wilson_ends(share, weight, confidence)
        for share, weight in zip(shares, weights, strict=True)
    ]
    low, high = (np.max([end[place] for end in ends], axis=0) for place in (1, 2))
    undefined = np.isnan(value)
    return Interval(
        value, np.where(undefined, np.nan, low), np.where(undefined, np.nan, high)
    )


def _rates(weight, scores, is_genuine, *given, num_types):
    scores = scores.T
    told = dict(sample_weight=weight)
    found = {
        "auroc": auroc(scores, is_genuine, **told),
        "eer": equal_error_rate(scores, is_genuine, **told).rate,
    }
    if not given:
        return found
    *types, threshold = given
    rates = error_rates(scores, is_genuine, threshold, **told)
    found["false_accept_rate"], found["false_reject_rate"] = rates
    found["hter"] = hter(scores, is_genuine, threshold, **told)
    if types and num_types:
        errors = attack_errors(scores, *types, threshold, num_types=num_types, **told)
        found |= errors._asdict()
    return found
