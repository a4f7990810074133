"""What `feature_fusion.py` measures: accuracy and NLL of every system on test rows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ensjax import combine, scores
from ensjax.predictions import Predictions
from ensjax.provenance import Provenance

BEST, HARD, SOFT = "best single", "hard vote", "soft vote"
GEOMETRIC, ENTROPY = "geometric mean", "entropy-weighted vote"
CONVEX, STACK_PROBS, STACK_LOGS = "convex weights", "stacking", "stacking on log-probs"
MEAN = "mean member"
METRICS = ("accuracy", "nll")


def measure(config, loaded, outputs) -> dict:
    """`{"tasks": {task: {condition: {system: {metric: [seed]}}}}, ...}`."""
    found = {}
    for name, task in loaded.items():
        members, fusions = outputs[f"members_{name}"], outputs[f"fusions_{name}"]
        systems = _member_systems(config, task, members)
        labels = task.labels[:, _test(config)]
        for number, kind in enumerate(config.fusions):
            systems[kind] = _scores(fusions["logits"][number][:, _test(config)], labels)
        if name == config.tasks[0]:
            frozen = systems["gated"]
            schedules = {"frozen": frozen} | {
                s: _scores(outputs[s]["logits"][:, _test(config)], labels)
                for s in config.schedules
            }
        found[name] = _by_condition(config, task, systems)
    first = loaded[config.tasks[0]]
    return {
        "tasks": found,
        "schedules": _by_condition(config, first, schedules),
        "disagreement": _disagreement(config, first, outputs),
        "gate": _gate_weights(config, first, outputs[f"fusions_{config.tasks[0]}"]),
        "frozen": sum(int((o["frozen_steps"] >= 0).sum()) for o in outputs.values()),
    }


def _test(config):
    return slice(config.num_member + config.num_fusion, None)


def _by_condition(config, task, systems):
    """`[job]` to `{condition: {system: {metric: [seed]}}}`."""
    return {
        condition: {
            system: {
                metric: values.reshape(-1, config.num_seeds)[c]
                for metric, values in metrics.items()
            }
            for system, metrics in systems.items()
        }
        for c, condition in enumerate(task.conditions)
    }


def _member_systems(config, task, members):
    """Every rule that needs no features, from `[view, job, row, class]`."""
    logits = members["logits"]
    end = config.num_member + config.num_fusion
    fitting, test = logits[:, :, config.num_member : end], logits[:, :, end:]
    labels = task.labels[:, config.num_member : end]
    test_labels = task.labels[:, end:]
    # Jobs number their rows alike: what one member has drawn, none may be fitted on.
    drawn = members["drawn"].any(axis=1)
    rows = np.arange(drawn.shape[1])
    about = [
        Provenance("rows of a job", rows[own], part, drawn[:, own], rows[end:])
        for own, part in (
            (slice(config.num_member, end), "validation"),
            (slice(end, None), "test"),
        )
    ]
    found = _combine(fitting, labels, test, jnp.float32(config.sharpness), *about)
    hard = found.pop(HARD)
    systems = {name: _scores(values, test_labels) for name, values in found.items()}
    right = np.asarray(hard) == test_labels
    systems[HARD] = {"accuracy": right.mean(-1), "nll": np.full(len(right), np.nan)}
    alone = _scores(test, test_labels[None])  # [view, job]
    systems[MEAN] = {metric: values.mean(0) for metric, values in alone.items()}
    best = np.asarray(_scores(fitting, labels[None])["accuracy"]).argmax(0)
    jobs = np.arange(len(best))
    systems[BEST] = {metric: values[best, jobs] for metric, values in alone.items()}
    for view in range(len(logits)):
        systems[f"member {view}"] = {m: values[view] for m, values in alone.items()}
    return systems


@functools.partial(jax.jit, static_argnums=(4, 5))
def _combine(fitting, labels, test, sharpness, about_fitting, about_test):
    """Log-probabilities `[job, row, class]` by rule; of the hard vote the classes."""

    def one(fitting, labels, test):
        fitting = Predictions.from_logits(fitting, provenance=about_fitting)
        test = Predictions.from_logits(test, provenance=about_test)
        stack_logs = combine.fit_stacking(fitting, labels, features="log_probs")
        return {
            HARD: combine.majority_vote(test),
            SOFT: combine.mean_probs(test),
            GEOMETRIC: combine.mean_logits(test),
            ENTROPY: combine.entropy_weighted_probs(test, strength=sharpness),
            CONVEX: combine.fit_convex_weights(fitting, labels)(test).log_probs[0],
            STACK_PROBS: combine.fit_stacking(fitting, labels)(test).log_probs[0],
            STACK_LOGS: stack_logs(test).log_probs[0],
        }

    return jax.vmap(one, in_axes=(1, 0, 1))(fitting, labels, test)


@jax.jit
def _both(logits, labels):
    labels = jnp.broadcast_to(labels, logits.shape[:-1])
    return scores.accuracy(logits, labels), scores.nll(logits, labels)


def _scores(logits, labels):
    return {
        metric: np.asarray(values)
        for metric, values in zip(METRICS, _both(logits, labels), strict=True)
    }


def _disagreement(config, task, outputs):
    """Share of pairs of members and test rows that differ, by schedule `[seed]`."""
    logits = {"frozen": outputs[f"members_{config.tasks[0]}"]["logits"]} | {
        s: outputs[s]["member_logits"] for s in config.schedules
    }
    measure = jax.jit(jax.vmap(scores.disagreement, in_axes=1))
    found = {}
    for schedule, values in logits.items():
        by_job = np.asarray(measure(values[:, :, _test(config)]))
        found[schedule] = by_job.reshape(len(task.conditions), -1)[0]
    return found


def _gate_weights(config, task, fusions):
    """Mean weight of the gate on clean and corrupted views of test rows, `[seed]`."""
    weights = fusions["weights"][config.fusions.index("gated")][:, _test(config)]
    seeds = slice(0, config.num_seeds)  # of the first condition
    weights, noisy = weights[seeds], task.corrupted[seeds, _test(config)]
    if not noisy.any():
        return None

    def mean(chosen):
        return np.array([w[c].mean() for w, c in zip(weights, chosen, strict=True)])

    entropy = -np.where(weights > 0, weights * np.log(np.maximum(weights, 1e-30)), 0)
    return {
        "clean": mean(~noisy),
        "corrupted": mean(noisy),
        "entropy": entropy.sum(-1).mean(-1),
    }
