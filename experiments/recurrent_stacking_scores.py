"""What `recurrent_stacking.py` measures: meta-models, thresholds and error rates.

Thresholds come from development clips of the domains that were trained on; the error
rate is of the domain that nobody saw.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ensjax import combine, scores
from ensjax.experiment.fields import load_beside
from ensjax.provenance import Provenance, check_fitting_rows

data = load_beside(__file__, "recurrent_stacking_clips")

VOTE = "mean vote"
STACK = "stack"
STACK_SUM = "stack of the sum"
STACK_NESTED = "stack, nested"


class Measured(NamedTuple):
    """Of every system, `[job]` arrays.

    Attributes:
        hter: by system, at the threshold of equal errors on development clips.
        auroc: by system, on the test clips.
        threshold: by system, in log-odds.
    """

    hter: dict[str, np.ndarray]
    auroc: dict[str, np.ndarray]
    threshold: dict[str, np.ndarray]


def measure(config, clips, jobs, outputs) -> dict:
    """Error rates of all systems in all jobs, by number of frames."""
    found = {}
    for frames in jobs:
        found[frames] = _measure_length(config, clips, outputs[frames])
    main = config.frames if config.frames in jobs else next(iter(jobs))
    permuted = _permuted_labels(config, clips, outputs[main])
    return {
        "jobs": jobs,
        "by_frames": found,
        "main_frames": main,
        "num_domains": int(clips.domain.max()) + 1,
        "num_frames": clips.x.shape[2],
        "frozen": sum(int((o["frozen_steps"] >= 0).sum()) for o in outputs.values()),
        "threshold_change": _largest_change(found[main].threshold, permuted),
        "loop_difference": _difference_from_loop(clips, outputs[main], found[main]),
    }


def systems(config) -> tuple[str, ...]:
    """Names of all systems: members first."""
    return (*config.architectures, VOTE, STACK, STACK_SUM, STACK_NESTED)


def refuse_leaks(outputs):
    """Raises `LeakageError` if a meta-model's clips were trained on or are tested on.

    Of every job: the clips whose logits it is fitted on, those that its members may
    have drawn, and those that are tested on.
    """
    rows = [outputs[name] for name in ("dev_rows", "test_rows", "drawn")]
    is_row = [outputs[name] for name in ("dev_is_row", "test_is_row")]
    for dev, test, drawn, is_dev, is_test in zip(*rows, *is_row, strict=True):
        provenance = Provenance.of(
            "clips",
            dev[is_dev],
            trained_on=np.flatnonzero(drawn),
            test_rows=test[is_test],
        )
        check_fitting_rows("the meta-model", provenance)


def _measure_length(config, clips, outputs):
    dev, test = outputs["dev_logits"], outputs["test_logits"]
    labels = clips.is_live[outputs["dev_rows"]]
    weight = outputs["dev_is_row"].astype(np.float32)
    odds = {
        name: (_odds(dev[kind]), _odds(test[kind]), weight)
        for kind, name in enumerate(config.architectures)
    }
    odds[VOTE] = (_vote(dev), _vote(test), weight)
    for name, features in ((STACK, "logits"), (STACK_SUM, "sum")):
        odds[name] = (*_stack(config, features, dev, test, labels, weight), weight)
    # The meta-model on half of the development clips, the threshold on the others.
    half = np.arange(weight.shape[1]) // 2 % 2 == 0  # clips alternate attack and live
    fitted = _stack(config, "logits", dev, test, labels, weight * half[None])
    odds[STACK_NESTED] = (*fitted, weight * ~half[None])

    hter, auroc, threshold = {}, {}, {}
    for name, (dev_odds, test_odds, dev_weight) in odds.items():
        threshold[name] = np.asarray(_threshold(dev_odds, labels, dev_weight))
        errors = _errors(
            test_odds,
            clips.is_live[outputs["test_rows"]],
            threshold[name],
            outputs["test_is_row"].astype(np.float32),
        )
        hter[name], auroc[name] = map(np.asarray, errors)
    return Measured(hter, auroc, threshold)


@jax.jit
def _odds(logits):
    return logits[..., 1] - logits[..., 0]


@jax.jit
def _vote(logits):
    """Log-odds `[job, row]` of mean probabilities of `[member, job, row, class]`."""
    return _odds(jax.vmap(combine.mean_probs, in_axes=1)(logits))


def _stack(config, features, dev, test, labels, weight):
    """Log-odds by meta-models, one for each job, on development and test clips."""
    return _fit_and_apply(
        dev, test, labels, weight, jnp.float32(config.meta_l2), features=features
    )


@jax.jit(static_argnames="features")
def _fit_and_apply(dev, test, labels, weight, l2, *, features):
    def one(dev, test, labels, weight):
        fitted = combine.fit_stacking(
            dev, labels, features=features, l2=l2, sample_weight=weight
        )
        return _odds(fitted(dev)), _odds(fitted(test))

    return jax.vmap(one, in_axes=(1, 1, 0, 0))(dev, test, labels, weight)


@jax.jit
def _threshold(odds, labels, weight):
    return scores.fit_threshold(odds, labels, sample_weight=weight)


@jax.jit
def _errors(odds, labels, threshold, weight):
    hter = scores.hter(odds, labels, threshold, sample_weight=weight)
    return hter, scores.auroc(odds, labels, sample_weight=weight)


def _permuted_labels(config, clips, outputs):
    """Thresholds when the test clips' labels are dealt out anew."""
    rng = np.random.default_rng(config.seed)
    is_live = clips.is_live.copy()
    test = np.flatnonzero(clips.part == data.TEST)
    is_live[test] = rng.permutation(is_live[test])
    return _measure_length(config, clips._replace(is_live=is_live), outputs).threshold


def _largest_change(a, b):
    return max(float(np.abs(a[name] - b[name]).max()) for name in a)


def _difference_from_loop(clips, outputs, measured):
    """Largest difference of a member's HTER from float64 loops over thresholds."""
    largest = 0.0
    name = next(iter(measured.hter))
    for job in range(outputs["dev_rows"].shape[0]):
        sides = []
        for part in ("dev", "test"):
            keep = outputs[f"{part}_is_row"][job]
            rows = outputs[f"{part}_rows"][job][keep]
            logits = outputs[f"{part}_logits"][0, job][keep]
            sides.append((logits[:, 1] - logits[:, 0], clips.is_live[rows] == 1))
        want = loop_hter(*sides)
        largest = max(largest, abs(want - float(measured.hter[name][job])))
    return largest


def loop_hter(development, test) -> float:
    """HTER of `(scores, is_live)` by the definition, one threshold at a time.

    The threshold is the development score, the lowest among equals, at which the two
    error rates differ least.
    """

    def rates(pair, threshold):
        score, live = pair
        accepted = score > threshold
        return accepted[~live].mean(), (~accepted)[live].mean()

    best = None
    for threshold in np.unique(development[0]):  # ascending
        far, frr = rates(development, threshold)
        if best is None or abs(far - frr) < best[0] - 1e-9:
            best = (abs(far - frr), threshold)
    far, frr = rates(test, best[1])
    return (far + frr) / 2
