"""The plain NumPy way of `bench_combine`: score by score over whole arrays.

What one writes without thinking of caches: a function of one member's probabilities,
called for every member and the ensemble. `combine_ways` has the same in blocks.
"""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ensjax.experiment.configs import load_module

shared = load_module(Path(__file__).with_name("combine_scores.py"), "bench")
NUM_BINS, TOP_K = shared.NUM_BINS, shared.TOP_K
COVERAGE, RISK = shared.COVERAGE, shared.RISK


def with_plain_numpy(logits, labels) -> Callable[[], dict[str, np.ndarray]]:
    """NumPy over whole arrays, one score after the other."""
    return lambda: _scores(logits, labels)


def _scores(logits, labels):
    members = [_softmax(own) for own in logits]
    mixture = sum(members) / len(members)
    found = [_of_system(probs, labels) for probs in [*members, mixture]]
    systems = {name: np.array([own[name] for own in found]) for name in found[0]}
    choices = np.array([probs.argmax(axis=1) for probs in members])
    right = choices == labels
    counts = np.array([(choices == c).sum(axis=0) for c in range(logits.shape[2])])
    differ = np.array([[(a != b).mean() for b in choices] for a in choices])
    hit = right.astype(np.float32)
    kinds = itertools.product((hit, 1 - hit), repeat=2)
    tables = [a @ b.T / len(labels) for a, b in kinds]
    entropy = _entropy(mixture) - np.mean([_entropy(p) for p in members], axis=0)
    return shared.finish(systems, differ, tables) | {
        "mutual_information": np.maximum(entropy, 0).mean(),
        "vote_accuracy": (counts.argmax(axis=0) == labels).mean(),
        "any_right": right.any(axis=0).mean(),
    }


def _softmax(logits):
    exp = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exp / exp.sum(axis=1, keepdims=True)


def _entropy(probs):
    return -(probs * np.log(probs)).sum(axis=1)


def _of_system(probs, labels):
    num_rows, num_classes = probs.shape
    one_hot = np.eye(num_classes, dtype=np.float32)[labels]
    own = probs[np.arange(num_rows), labels]
    choice, confidence = probs.argmax(axis=1), probs.max(axis=1)
    right = choice == labels
    top = np.argpartition(-probs, TOP_K, axis=1)[:, :TOP_K]
    gap = right - confidence
    bins = _bins(confidence)
    number = np.bincount(bins, minlength=NUM_BINS)
    miss = np.abs(np.bincount(bins, gap, NUM_BINS))
    by_class = [
        np.abs(np.bincount(_bins(p), target - p, NUM_BINS)).sum()
        for p, target in zip(probs.T, one_hot.T)
    ]
    order = np.argsort(-confidence)
    place = np.arange(1, num_rows + 1)
    wrong = np.cumsum(~right[order])
    risk = wrong / place
    least = np.maximum(place - (num_rows - wrong[-1]), 0) / place
    low = np.flatnonzero(risk <= RISK)
    parts = np.add.reduceat(gap[order], shared.bin_starts(num_rows))
    counts = np.bincount(labels * num_classes + choice, minlength=num_classes**2)
    return {
        "nll": -np.log(own).mean(),
        "brier": ((probs - one_hot) ** 2).sum(axis=1).mean(),
        "top_k_accuracy": (top == labels[:, None]).any(axis=1).mean(),
        "entropy": _entropy(probs).mean(),
        "accuracy": right.mean(),
        "classwise_ece": np.mean(by_class) / num_rows,
        "ece": miss.sum() / num_rows,
        "mce": np.max(miss / np.maximum(number, 1)),
        "adaptive_ece": np.abs(parts).sum() / num_rows,
        "aurc": risk.mean(),
        "excess_aurc": risk.mean() - least.mean(),
        "augrc": wrong.mean() / num_rows,
        "risk_at_coverage": risk[int(np.ceil(COVERAGE * num_rows)) - 1],
        "coverage_at_risk": (low[-1] + 1) / num_rows if len(low) else 0.0,
        **shared.of_confusion(counts.reshape(num_classes, num_classes) / num_rows),
    }


def _bins(probs):
    return np.maximum(np.ceil(probs * NUM_BINS).astype(np.int64) - 1, 0)
