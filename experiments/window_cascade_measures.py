"""What `window_cascade.py` measures of pairs of one size, in both orders.

Systems: "single" is the first member alone, "window" the cascade with the window of
the metric's own task, "cov window" the one with the window of cov@5 for all metrics,
"threshold" the cascade that passes the least sure rows on, "capacity" the cov window by
ranks in batches, and "ensemble" both members on all rows.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from ensjax import combine, scores
from ensjax.predictions import Predictions
from ensjax.provenance import check_fitting_rows, check_scored_rows
from ensjax.scores.rows import is_correct

STAGES = ((0,), (1,))
SYSTEMS = ("single", "window", "cov window", "threshold", "capacity", "ensemble")
METRICS = ("accuracy", "cov", "risk", "fpr80", "fpr95", "scod")
OOD_METRICS = METRICS[3:]


def measure_size(config, logits) -> dict[str, np.ndarray]:
    """Each metric (a share of 1) of each system, and what share of rows goes on.

    Returns:
        `{metric: [seed, system]}` and `{"share/<metric>": [seed, system]}`, means over
        both orders of the pair. The share is of test rows, and for metrics of the
        mixture with OOD rows of the mixture.

    Raises:
        LeakageError: if a seed's windows would be fitted on rows of training or test.
    """
    check_rows(logits)
    program = _program(
        confidence=config.confidence,
        width=config.window_width,
        share=config.threshold_share,
        risk=config.risk,
        coverage=config.coverage,
        tprs=tuple(config.tpr),
        scod_coverage=config.scod_coverage,
        batch_size=config.capacity_batch_size,
    )
    found = program(
        logits.validation,
        logits.validation_labels,
        logits.test,
        logits.test_labels,
        logits.ood,
    )
    return {name: np.asarray(x, np.float64).mean(axis=1) for name, x in found.items()}


def check_rows(logits) -> None:
    """Raises `LeakageError` if the windows of a seed may not be fitted or tested here.

    All seeds are fitted by one program, where rows are numbers of one size and their
    provenance is not known; so this is where the arrays of a seed join the others.
    """
    for seed, (held_out, test) in enumerate(logits.provenance):
        about = dict(names=(f"0 of seed {seed}", f"1 of seed {seed}"))
        validation = Predictions.from_logits(
            logits.validation[seed], provenance=held_out, **about
        )
        test = Predictions.from_logits(logits.test[seed], provenance=test, **about)
        fitted = check_fitting_rows(
            "the cascade's windows", validation.provenance, names=validation.names
        )
        fitted.check_test(test.provenance)
        check_scored_rows(test.provenance, names=test.names)


@functools.cache
def _program(**settings):
    """Compiled once for all sizes: pairs `[seed, 2, ...]` to `[seed, order]`."""
    one_order = jax.vmap(
        functools.partial(_measure, **settings), in_axes=(0, None, 0, None, 0)
    )

    def both_orders(validation, validation_labels, test, labels, ood):
        validation, test, ood = (
            jnp.stack([x, x[::-1]]) for x in (validation, test, ood)
        )
        return one_order(validation, validation_labels, test, labels, ood)

    return jax.jit(jax.vmap(both_orders))


def _measure(
    validation,
    validation_labels,
    test,
    labels,
    ood,
    *,
    confidence,
    width,
    share,
    risk,
    coverage,
    tprs,
    scod_coverage,
    batch_size,
):
    """Of one pair in one order: logits `[2, row, class]`, labels `[row]`."""
    log_probs, sure = combine.stage_scores(validation, STAGES, confidence)
    right = is_correct(log_probs[0], validation_labels)
    fit = functools.partial(combine.fit_windows, sure[0], right, width=width)
    windows = {
        "cov": fit("coverage_at_risk", level=risk),
        "risk": fit("risk_at_coverage", level=coverage),
        "fpr80": fit("fpr_at_tpr", level=tprs[0]),
        "fpr95": fit("fpr_at_tpr", level=tprs[1]),
    }
    windows["accuracy"] = windows["cov"]  # has no window of its own
    rows = _Rows(test, ood, labels, confidence)
    windows["scod"] = rows.mixture_window(windows["cov"], scod_coverage, width)
    threshold = combine.fit_single_threshold(sure[0], share=share)
    measures = {
        "accuracy": rows.accuracy,
        "cov": functools.partial(rows.coverage_at_risk, risk=risk),
        "risk": functools.partial(rows.risk_at_coverage, coverage=coverage),
        "fpr80": functools.partial(rows.fpr_at_tpr, tpr=tprs[0]),
        "fpr95": functools.partial(rows.fpr_at_tpr, tpr=tprs[1]),
        "scod": functools.partial(rows.scod, coverage=scod_coverage),
    }
    found = {}
    for metric in METRICS:
        ways = {
            "single": rows.all_or_none(False),
            "window": rows.inside(windows[metric]),
            "cov window": rows.inside(windows["cov"]),
            "threshold": rows.inside(threshold),
            "capacity": rows.by_rank(windows["cov"], 2 * width, batch_size),
            "ensemble": rows.all_or_none(True),
        }
        going = [jnp.stack(x) for x in zip(*(ways[s] for s in SYSTEMS))]
        found[metric] = measures[metric](*rows.judged(*going))
        test_share, ood_share = (jnp.mean(x * 1.0, axis=-1) for x in going)
        is_mixed = metric in OOD_METRICS
        found[f"share/{metric}"] = (
            (test_share + ood_share) / 2 if is_mixed else test_share
        )
    return found


class _Rows:
    """Test and OOD rows of one ordered pair; a way is who of them goes on."""

    def __init__(self, test, ood, labels, confidence):
        log_probs, self.test = combine.stage_scores(test, STAGES, confidence)
        _, self.ood = combine.stage_scores(ood, STAGES, confidence)
        labels = jnp.broadcast_to(labels, log_probs.shape[:-1])
        self.error = 1.0 - is_correct(log_probs, labels)  # [stage, row]
        self.first = (self.test[0], self.ood[0])

    def all_or_none(self, value):
        return tuple(jnp.full(x.shape, value) for x in self.first)

    def inside(self, windows):
        return tuple((x > windows.low) & (x < windows.high) for x in self.first)

    def by_rank(self, windows, share, batch_size):
        """By ranks in whole batches; the rows that are left over go by the window."""
        return tuple(
            _by_rank(x, inside, windows.threshold, share, batch_size)
            for x, inside in zip(self.first, self.inside(windows))
        )

    def mixture_window(self, windows, coverage, width):
        """Around the confidence that accepts `coverage` of the unlabelled mixture.

        These are test statistics, but no labels.
        """
        mixture = jnp.concatenate(self.first)
        _, weight = scores.mix_with_ood(self.error[0], self.ood[0])
        point = scores.point_at_coverage(
            mixture, coverage=coverage, sample_weight=weight
        )
        return combine.recentre_windows(
            windows.replace(threshold=point.threshold),
            mixture,
            width=width,
            sample_weight=weight,
        )

    def judged(self, test_going, ood_going):
        """Confidences of test and OOD rows and errors of test rows, `[system, row]`."""
        return tuple(
            jnp.where(going, values[1][None], values[0][None])
            for going, values in (
                (test_going, self.test),
                (ood_going, self.ood),
                (test_going, self.error),
            )
        )

    # Of what `judged` gives, `[system]`.

    def accuracy(self, test, ood, error):
        return 1.0 - jnp.mean(error, axis=-1)

    def coverage_at_risk(self, test, ood, error, *, risk):
        return scores.point_at_risk(test, error, risk=risk).coverage

    def risk_at_coverage(self, test, ood, error, *, coverage):
        return scores.point_at_coverage(test, error, coverage=coverage).risk

    def fpr_at_tpr(self, test, ood, error, *, tpr):
        is_test = jnp.arange(test.shape[-1] + ood.shape[-1]) < test.shape[-1]
        both = jnp.concatenate([test, ood], axis=-1)
        return scores.fpr_at_tpr(both, is_test, tpr=tpr)

    def scod(self, test, ood, error, *, coverage):
        error, weight = scores.mix_with_ood(error, ood)
        both = jnp.concatenate([test, ood], axis=-1)
        return scores.point_at_coverage(
            both, error, coverage=coverage, sample_weight=weight
        ).risk


def _by_rank(sure, inside, threshold, share, batch_size):
    size = min(batch_size, sure.shape[0])
    whole = sure.shape[0] // size * size
    batches = sure[:whole].reshape(-1, size)
    count = math.ceil(share * size - 1e-9 * size)
    windows = combine.rank_windows(batches, threshold, count)
    chosen = (batches > windows.low[:, None]) & (batches < windows.high[:, None])
    return jnp.concatenate([chosen.reshape(-1), inside[whole:]])


@functools.partial(jax.jit, static_argnames=("level", "width", "confidence"))
def fit_one(validation, labels, *, level, width, confidence):
    """The cascade of one ordered pair, for coverage at the risk `level`."""
    return combine.fit_cascade(
        validation,
        labels,
        stages=STAGES,
        level=level,
        width=width,
        confidence=confidence,
    )


@jax.jit
def curves_of(cascade, test, labels) -> dict[str, jax.Array]:
    """Risk-coverage curves of one ordered pair, for a figure.

    Returns:
        `"<system>_coverage"` and `"<system>_risk"` of the test rows `[row]`, and
        `low`, `high`, `threshold` of the window and `confidence`, `correct` `[row]` of
        the first member alone.
    """
    log_probs, sure = combine.stage_scores(test, STAGES, cascade.confidence)
    window = cascade(test)
    values = jnp.stack([log_probs[0], window.log_probs, log_probs[1]])
    confidence = jnp.stack([sure[0], window.confidence, sure[1]])
    curves = scores.risk_coverage(values, labels, confidence=confidence)
    found = {}
    for i, name in enumerate(("single", "window", "ensemble")):
        found[f"{name}_coverage"] = curves.coverage[i]
        found[f"{name}_risk"] = curves.risk[i]
    windows = cascade.windows
    found |= {k: getattr(windows, k)[0] for k in ("low", "high", "threshold")}
    return found | {"confidence": sure[0], "correct": is_correct(log_probs[0], labels)}


@functools.partial(jax.jit, static_argnums=2)
def dense_of(cascade, test, count):
    """The cascade's dense answers, and those with a window of `count` rows by rank."""
    _, sure = combine.stage_scores(test, STAGES, cascade.confidence)
    by_rank = combine.rank_windows(sure[:1], cascade.windows.threshold, count)
    return cascade(test), cascade.replace(windows=by_rank)(test)
