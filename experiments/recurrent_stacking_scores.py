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
        eer: by system, the mean of the two error rates there on those clips.
        auroc: by system, on the test clips.
        threshold: by system, in log-odds.
        loop_difference: the most that `hter` and `eer` differ from loops.
    """

    hter: dict[str, np.ndarray]
    eer: dict[str, np.ndarray]
    auroc: dict[str, np.ndarray]
    threshold: dict[str, np.ndarray]
    loop_difference: float


def measure(config, clips, jobs, outputs) -> dict:
    """Error rates of all systems in all jobs, by number of frames."""
    # Jobs of all lengths have the same rows, and so one program.
    joined = {
        f"{part}_{name}": np.concatenate(
            [outputs[frames][f"{part}_{name}"] for frames in jobs],
            axis=1 if name == "logits" else 0,
        )
        for part in ("dev", "test")
        for name in ("rows", "is_row", "logits")
    }
    whole = _measure_jobs(config, clips, joined)
    ends = np.cumsum([len(own) for own in jobs.values()])
    found = {
        frames: _select(whole, slice(end - len(own), end))
        for end, (frames, own) in zip(ends, jobs.items())
    }
    permuted = _permuted_labels(config, clips, joined)
    return {
        "jobs": jobs,
        "by_frames": found,
        "main_frames": config.frames if config.frames in jobs else next(iter(jobs)),
        "num_domains": int(clips.domain.max()) + 1,
        "num_frames": clips.x.shape[2],
        "frozen": sum(int((o["frozen_steps"] >= 0).sum()) for o in outputs.values()),
        "threshold_change": _largest_change(whole.threshold, permuted),
        "loop_difference": whole.loop_difference,
    }


def _select(measured, jobs):
    def own(values):
        return {name: by_job[jobs] for name, by_job in values.items()}

    *values, difference = measured
    return Measured(*map(own, values), difference)


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


def _measure_jobs(config, clips, outputs):
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

    test_labels = clips.is_live[outputs["test_rows"]]
    test_weight = outputs["test_is_row"].astype(np.float32)
    hter, eer, auroc, threshold, largest = {}, {}, {}, {}, 0.0
    for name, (dev_odds, test_odds, dev_weight) in odds.items():
        threshold[name] = np.asarray(_threshold(dev_odds, labels, dev_weight))
        auroc[name] = np.asarray(_auroc(test_odds, test_labels, test_weight))
        sides = (
            (np.asarray(dev_odds), labels == 1, dev_weight > 0),
            (np.asarray(test_odds), test_labels == 1, test_weight > 0),
        )
        eer[name], hter[name] = (half_errors(*side, threshold[name]) for side in sides)
        wanted = np.array(
            [
                loop_errors(*((x[job][k[job]], y[job][k[job]]) for x, y, k in sides))
                for job in range(len(labels))
            ]
        )
        found = np.stack([eer[name], hter[name]], axis=1)
        largest = max(largest, float(np.abs(found - wanted).max()))
    return Measured(hter, eer, auroc, threshold, largest)


def half_errors(odds, is_live, is_row, threshold) -> np.ndarray:
    """(FAR + FRR) / 2 of every job, from counts and so exact in float64, `[job]`.

    FAR is the share of attacks above the threshold, FRR that of live clips at it or
    below.

    Args:
        odds: float32, `[job, row]`, as the threshold was fitted on.
        is_live, is_row: bools, `[job, row]`.
        threshold: `[job]`.
    """
    accepted = odds > threshold[:, None]
    attacks, lives = is_row & ~is_live, is_row & is_live
    far = (accepted & attacks).sum(axis=1) / attacks.sum(axis=1)
    frr = (~accepted & lives).sum(axis=1) / lives.sum(axis=1)
    return (far + frr) / 2


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
def _auroc(odds, labels, weight):
    return scores.auroc(odds, labels, sample_weight=weight)


def _permuted_labels(config, clips, outputs):
    """Thresholds when the test clips' labels are dealt out anew."""
    rng = np.random.default_rng(config.seed)
    is_live = clips.is_live.copy()
    test = np.flatnonzero(clips.part == data.TEST)
    is_live[test] = rng.permutation(is_live[test])
    return _measure_jobs(config, clips._replace(is_live=is_live), outputs).threshold


def _largest_change(a, b):
    return max(float(np.abs(a[name] - b[name]).max()) for name in a)


def loop_errors(development, test) -> tuple[float, float]:
    """EER and HTER of `(scores, is_live)` by the definition, a threshold at a time.

    The threshold is the development score, the lowest among equals, at which the two
    error rates differ least. EER is their mean there, HTER their mean on test.
    """

    def rates(pair, threshold):
        score, live = pair
        accepted = score > threshold
        return accepted[~live].mean(), (~accepted)[live].mean()

    best = None
    for threshold in np.unique(development[0]):  # ascending
        far, frr = rates(development, threshold)
        if best is None or abs(far - frr) < best[0] - 1e-9:
            best = abs(far - frr), threshold
    return tuple(sum(rates(pair, best[1])) / 2 for pair in (development, test))
