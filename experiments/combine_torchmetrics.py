"""The torchmetrics way of `bench_combine`: its functions, one call for each system."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from ensjax.experiment.configs import load_module

shared = load_module(Path(__file__).with_name("combine_scores.py"), "bench")
NUM_BINS, TOP_K = shared.NUM_BINS, shared.TOP_K


def with_torchmetrics(logits, labels) -> Callable[[], dict[str, np.ndarray]]:
    """torchmetrics, one call for each score and system that it has: nine of ours.

    Its bins are [lo, hi), which makes no difference to numbers that are on no edge. The
    NLL is torch's.

    Raises:
        ImportError: without torch or torchmetrics.
    """
    import torch
    from torchmetrics.functional import classification as metrics

    num_classes = logits.shape[2]
    with torch.inference_mode():
        tensors, truth = torch.from_numpy(logits), torch.from_numpy(labels).long()
    # Labels and shapes are right; to check them would cost more.
    same = dict(num_classes=num_classes, validate_args=False)

    def one(probs):
        chosen = probs.argmax(dim=-1)
        bins = dict(n_bins=NUM_BINS, **same)
        return {
            "nll": torch.nn.functional.nll_loss(probs.log(), truth),
            "accuracy": metrics.multiclass_accuracy(
                chosen, truth, average="micro", **same
            ),
            "top_k_accuracy": metrics.multiclass_accuracy(
                probs, truth, average="micro", top_k=TOP_K, **same
            ),
            "balanced_accuracy": metrics.multiclass_recall(
                chosen, truth, average="macro", **same
            ),
            "macro_f1": metrics.multiclass_f1_score(
                chosen, truth, average="macro", **same
            ),
            "matthews_correlation": metrics.multiclass_matthews_corrcoef(
                chosen, truth, **same
            ),
            "cohen_kappa": metrics.multiclass_cohen_kappa(chosen, truth, **same),
            "ece": metrics.multiclass_calibration_error(
                probs, truth, norm="l1", **bins
            ),
            "mce": metrics.multiclass_calibration_error(
                probs, truth, norm="max", **bins
            ),
        }

    def run():
        with torch.inference_mode():
            found, mixture = [], 0.0
            for own in tensors:
                probs = own.softmax(dim=-1)
                mixture = mixture + probs
                found.append(one(probs))
            found.append(one(mixture / len(tensors)))
            systems = {
                name: np.array([float(own[name]) for own in found]) for name in found[0]
            }
        ensemble = {name: values[-1] for name, values in systems.items()}
        return ensemble | {f"{n}_members": v[:-1] for n, v in systems.items()}

    return run
