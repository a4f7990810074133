"""Ways of `bench_combine`: the same scores by ensjax and by what else there is.

Every way takes logits `[member, row, class]` float32 and labels `[row]` and gives
scores of the ensemble, of members (`name_members`) and of pairs. "NumPy" and "torch"
are written as well as we can: float32, without loops over rows, in blocks of rows that
fit a cache. "NumPy plain", "scikit-learn" and "torchmetrics" are what people write: a
score of a whole array after the other. Others break ties of confidence by the order of
rows, and take `ceil(p * num_bins)` for the bin, which differ from ours in the last
digits.
"""

import concurrent.futures
import itertools
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ensjax.experiment.configs import load_module

shared = load_module(Path(__file__).with_name("combine_scores.py"), "bench")
plain_way = load_module(Path(__file__).with_name("combine_plain.py"), "bench")
torch_way = load_module(Path(__file__).with_name("combine_torch.py"), "bench")
torchmetrics_way = load_module(
    Path(__file__).with_name("combine_torchmetrics.py"), "bench"
)
NUM_BINS, TOP_K = shared.NUM_BINS, shared.TOP_K
COVERAGE, RISK = shared.COVERAGE, shared.RISK
BLOCK = 32


def make_rows(num_members: int, num_rows: int, num_classes: int):
    """Logits of members that are right on about three rows of four, and labels."""
    rng = np.random.default_rng(0)
    labels = rng.integers(num_classes, size=num_rows)
    logits = np.empty((num_members, num_rows, num_classes), np.float32)
    together = rng.standard_normal((num_rows, num_classes), np.float32)
    together[np.arange(num_rows), labels] += 4
    for own in logits:
        rng.standard_normal(out=own, dtype=np.float32)
        own += together
    return logits, labels.astype(np.int32)


def with_ensjax(logits, labels) -> Callable[[], dict[str, np.ndarray]]:
    """One compiled program, rows split over the devices that there are."""
    import jax

    from ensjax import scores

    devices = jax.devices()
    while logits.shape[1] % len(devices):
        devices = devices[:-1]
    mesh = jax.make_mesh(
        (len(devices),),
        ("data",),
        devices=devices,
        axis_types=(jax.sharding.AxisType.Auto,),
    )
    specs = jax.P(None, "data"), jax.P("data")
    program = jax.jit(
        jax.shard_map(
            lambda x, y: scores.score_summary(
                x,
                y,
                num_bins=NUM_BINS,
                top_k=TOP_K,
                axis_name="data",
            ),
            mesh=mesh,
            in_specs=specs,
            out_specs=jax.P(),
        )
    )
    placed = [
        jax.device_put(x, jax.sharding.NamedSharding(mesh, spec))
        for x, spec in zip((logits, labels), specs)
    ]
    jax.block_until_ready(placed)
    return lambda: jax.device_get(program(*placed))


def with_numpy(logits, labels, *, num_threads: int = 1):
    """NumPy, blocks of rows after each other, or on a thread each."""
    return lambda: _numpy_scores(logits, labels, num_threads)


def _numpy_scores(logits, labels, num_threads):
    num_members, num_rows, num_classes = logits.shape
    num_systems = num_members + 1
    log_confidence = np.empty((num_systems, num_rows), np.float32)
    choice = np.empty((num_systems, num_rows), np.int32)
    vote = np.empty(num_rows, np.int32)
    first = (
        np.arange(num_systems, dtype=np.int32)[:, None, None] * num_classes
        + np.arange(num_classes, dtype=np.int32)
    ) * NUM_BINS

    def read(start):
        rows = slice(start, start + BLOCK)
        block, label = logits[:, rows], labels[rows]
        at = np.arange(len(label))
        probs = np.empty((num_systems, *block.shape[1:]), np.float32)
        exp = probs[:-1]
        peak = block.max(axis=-1, keepdims=True)
        shifted = block - peak
        np.exp(shifted, out=exp)
        scale = exp.sum(axis=-1)
        log_scale = np.log(scale)
        entropy = np.empty((num_systems, len(label)), np.float32)
        entropy[:-1] = log_scale - np.einsum("mnc,mnc->mn", exp, shifted) / scale
        exp /= scale[..., None]
        mixture = np.mean(exp, axis=0, out=probs[-1])
        log_mixture = np.log(mixture)
        entropy[-1] = -np.einsum("nc,nc->n", mixture, log_mixture)
        log_prob = np.empty_like(entropy)
        log_prob[:-1] = shifted[:, at, label] - log_scale
        log_prob[-1] = log_mixture[at, label]
        chosen = probs.argmax(axis=-1)
        choice[:, rows] = chosen
        log_confidence[:-1, rows] = -log_scale
        log_confidence[-1, rows] = log_mixture.max(axis=-1)
        own = probs[:, at, label]
        brier = np.einsum("mnc,mnc->mn", probs, probs) - 2 * own + 1
        in_top = (probs > own[..., None]).sum(axis=-1) < TOP_K
        counts = np.zeros((len(label), num_classes), np.int32)
        for votes in chosen[:-1]:
            counts[at, votes] += 1
        vote[rows] = counts.argmax(axis=-1)
        scaled = probs * np.float32(NUM_BINS)
        bins = np.ceil(scaled, out=scaled).astype(np.int32)
        bins -= 1
        np.maximum(bins, 0, out=bins)
        bins += first
        size = num_systems * num_classes * NUM_BINS
        gap = -np.bincount(bins.reshape(-1), probs.reshape(-1), size)
        gap += np.bincount(bins[:, at, label].reshape(-1), minlength=size)
        return [
            -log_prob.sum(axis=-1),
            brier.sum(axis=-1),
            in_top.sum(axis=-1),
            entropy.sum(axis=-1),
            np.maximum(entropy[-1] - entropy[:-1].mean(axis=0), 0).sum(),
            gap,
        ]

    starts = range(0, num_rows, BLOCK)
    totals = None
    with concurrent.futures.ThreadPoolExecutor(num_threads) as pool:
        for found in pool.map(read, starts) if num_threads > 1 else map(read, starts):
            if totals is None:
                totals = [np.array(x, np.float64) for x in found]
                continue
            for total, x in zip(totals, found):
                total += x
        nll, brier, in_top, entropy, mutual, gap = totals
        gap = gap.reshape(num_systems, num_classes, NUM_BINS)
        right = choice == labels
        run = pool.map if num_threads > 1 else map
        each = list(run(_numpy_system, log_confidence, right, choice, [labels] * 65536))
    systems = {name: np.array([own[name] for own in each]) for name in each[0]}
    systems |= {
        "nll": nll / num_rows,
        "brier": brier / num_rows,
        "top_k_accuracy": in_top / num_rows,
        "entropy": entropy / num_rows,
        "accuracy": right.mean(axis=-1),
        "classwise_ece": np.abs(gap).sum(axis=-1).mean(axis=-1) / num_rows,
    }
    members = choice[:-1].astype(np.uint8 if num_classes < 256 else np.int32)
    hit = right[:-1].astype(np.float32)
    kinds = itertools.product((hit, 1 - hit), repeat=2)
    tables = [a @ b.T / num_rows for a, b in kinds]
    same = np.array([np.count_nonzero(members == own, axis=1) for own in members])
    return shared.finish(systems, 1 - same / num_rows, tables) | {
        "mutual_information": mutual / num_rows,
        "vote_accuracy": (vote == labels).mean(),
        "any_right": right[:-1].any(axis=0).mean(),
    }


def _numpy_system(log_confidence, right, choice, labels):
    """Scores of one system from its rows: sorted, binned, and by class."""
    num_rows, num_classes = len(labels), int(labels.max()) + 1
    order = np.argsort(-log_confidence)
    error = ~right[order]
    place = np.arange(1, num_rows + 1)
    wrong = np.cumsum(error)
    risk = wrong / place
    confidence = np.exp(log_confidence)
    gap = right - confidence
    bins = np.maximum(np.ceil(confidence * NUM_BINS).astype(np.int64) - 1, 0)
    number = np.bincount(bins, minlength=NUM_BINS)
    miss = np.abs(np.bincount(bins, gap, NUM_BINS))
    late = np.maximum(place - (num_rows - wrong[-1]), 0) / place
    low = np.flatnonzero(risk <= RISK)
    starts = shared.bin_starts(num_rows)
    counts = np.bincount(labels * num_classes + choice, minlength=num_classes**2)
    aurc = risk.mean()
    return {
        "aurc": aurc,
        "excess_aurc": aurc - late.mean(),
        "augrc": wrong.mean() / num_rows,
        "risk_at_coverage": risk[int(np.ceil(COVERAGE * num_rows)) - 1],
        "coverage_at_risk": (low[-1] + 1) / num_rows if len(low) else 0.0,
        "adaptive_ece": np.abs(np.add.reduceat(gap[order], starts)).sum() / num_rows,
        "ece": miss.sum() / num_rows,
        "mce": np.max(miss / np.maximum(number, 1)),
        **shared.of_confusion(counts.reshape(num_classes, num_classes) / num_rows),
    }


def with_sklearn(logits, labels):
    """scikit-learn, one call for each score and system that it has: eight of ours."""
    from sklearn import metrics

    classes = np.arange(logits.shape[2])

    def one(probs):
        choice = probs.argmax(axis=-1)
        return {
            "nll": metrics.log_loss(labels, probs, labels=classes),
            "brier": metrics.brier_score_loss(
                labels, probs, labels=classes, scale_by_half=False
            ),
            "top_k_accuracy": metrics.top_k_accuracy_score(
                labels, probs, k=TOP_K, labels=classes
            ),
            "accuracy": metrics.accuracy_score(labels, choice),
            "balanced_accuracy": metrics.balanced_accuracy_score(labels, choice),
            "macro_f1": metrics.f1_score(labels, choice, average="macro"),
            "matthews_correlation": metrics.matthews_corrcoef(labels, choice),
            "cohen_kappa": metrics.cohen_kappa_score(labels, choice),
        }

    def run():
        found, mixture = [], 0.0
        for own in logits:
            probs = np.exp(own - own.max(axis=-1, keepdims=True))
            probs /= probs.sum(axis=-1, keepdims=True)
            mixture = mixture + probs
            found.append(one(probs))
        found.append(one(mixture / len(logits)))
        systems = {name: np.array([f[name] for f in found]) for name in found[0]}
        ensemble = {name: values[-1] for name, values in systems.items()}
        return ensemble | {f"{n}_members": v[:-1] for n, v in systems.items()}

    return run


WAYS = {
    "ensjax": with_ensjax,
    "NumPy": with_numpy,
    "NumPy threads": lambda x, y: with_numpy(x, y, num_threads=os.cpu_count() or 1),
    "torch": torch_way.with_torch,
    "NumPy plain": plain_way.with_plain_numpy,
    "scikit-learn": with_sklearn,
    "torchmetrics": torchmetrics_way.with_torchmetrics,
}
PARTIAL = ("scikit-learn", "torchmetrics")  # give some of the scores
USUAL = "NumPy plain"  # all scores, as they are usually written
