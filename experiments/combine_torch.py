"""The torch way of `bench_combine`: log-softmax in blocks, scatters, one sort."""

import itertools
from pathlib import Path

import numpy as np

from ensjax.experiment.configs import load_module

shared = load_module(Path(__file__).with_name("combine_scores.py"), "bench")
NUM_BINS, TOP_K = shared.NUM_BINS, shared.TOP_K
COVERAGE, RISK = shared.COVERAGE, shared.RISK
BLOCK = 256  # rows; smaller ones leave threads nothing to share


def with_torch(logits, labels):
    """torch with all threads, blocks of rows after each other.

    Raises:
        ImportError: without torch.
    """
    import torch

    with torch.inference_mode():
        tensors = torch.from_numpy(logits), torch.from_numpy(labels).long()

    def run():
        with torch.inference_mode():
            return _torch_scores(torch, *tensors)

    return run


def _torch_scores(torch, logits, labels):
    num_members, num_rows, num_classes = logits.shape
    num_systems = num_members + 1
    log_confidence = torch.empty(num_systems, num_rows)
    choice = torch.empty(num_systems, num_rows, dtype=torch.long)
    vote = torch.empty(num_rows, dtype=torch.long)
    sums = {
        name: torch.zeros(num_systems, dtype=torch.double)
        for name in ("nll", "brier", "top_k_accuracy", "entropy")
    }
    gap = torch.zeros(num_systems * num_classes * NUM_BINS)
    mutual = torch.zeros((), dtype=torch.double)
    first = torch.arange(num_systems)[:, None, None] * num_classes
    first = ((first + torch.arange(num_classes)) * NUM_BINS).int()
    for start in range(0, num_rows, BLOCK):
        rows = slice(start, start + BLOCK)
        label = labels[rows]
        log_probs = torch.log_softmax(logits[:, rows], dim=-1)
        probs = log_probs.exp()
        mixture = probs.mean(dim=0, keepdim=True)
        probs = torch.cat([probs, mixture])
        log_probs = torch.cat([log_probs, mixture.log()])
        largest, chosen = log_probs.max(dim=-1)
        log_confidence[:, rows], choice[:, rows] = largest, chosen
        index = label[None, :, None].expand(num_systems, -1, 1)
        log_prob = log_probs.gather(-1, index)
        own = log_prob.exp()
        entropy = -(probs * log_probs).sum(dim=-1)
        sums["nll"] -= log_prob.sum(dim=(1, 2))
        sums["brier"] += (probs.square().sum(-1) - 2 * own[..., 0] + 1).sum(-1)
        sums["top_k_accuracy"] += ((log_probs > log_prob).sum(-1) < TOP_K).sum(-1)
        sums["entropy"] += entropy.sum(-1)
        mutual += (entropy[-1] - entropy[:-1].mean(0)).clamp(min=0).sum()
        counts = torch.zeros(len(label), num_classes, dtype=torch.int32)
        ones = torch.ones(len(label), num_members, dtype=torch.int32)
        counts.scatter_add_(1, chosen[:-1].T, ones)
        vote[rows] = counts.argmax(dim=-1)
        bins = (probs * NUM_BINS).ceil_().int().sub_(1).clamp_(min=0).add_(first)
        gap.index_add_(0, bins.reshape(-1), probs.reshape(-1), alpha=-1.0)
        of_label = bins.gather(-1, index).reshape(-1)
        gap.index_add_(0, of_label, torch.ones(len(of_label)))
    right = choice == labels
    order = torch.argsort(log_confidence, dim=-1, descending=True)
    systems = [
        _torch_system(torch, *parts, labels)
        for parts in zip(log_confidence, right, choice, order)
    ]
    systems = {name: np.array([own[name] for own in systems]) for name in systems[0]}
    systems |= {name: (x / num_rows).numpy() for name, x in sums.items()}
    gap = gap.reshape(num_systems, num_classes, NUM_BINS).abs().sum(-1).mean(-1)
    systems["classwise_ece"] = (gap / num_rows).numpy()
    systems["accuracy"] = right.float().mean(-1).numpy()
    members = choice[:-1].to(torch.uint8 if num_classes < 256 else torch.int32)
    same = torch.stack([(members == own).sum(-1) for own in members])
    hit = right[:-1].float()
    kinds = itertools.product((hit, 1 - hit), repeat=2)
    tables = [(a @ b.T / num_rows).numpy() for a, b in kinds]
    return shared.finish(systems, (1 - same / num_rows).numpy(), tables) | {
        "mutual_information": float(mutual) / num_rows,
        "vote_accuracy": float((vote == labels).float().mean()),
        "any_right": float(right[:-1].any(0).float().mean()),
    }


def _torch_system(torch, log_confidence, right, choice, order, labels):
    num_rows, num_classes = len(labels), int(labels.max()) + 1
    place = torch.arange(1, num_rows + 1)
    wrong = (~right[order]).cumsum(0)
    risk = wrong / place
    confidence = log_confidence.exp()
    gap = right.float() - confidence
    bins = ((confidence * NUM_BINS).ceil().long() - 1).clamp(min=0)
    number = torch.bincount(bins, minlength=NUM_BINS)
    miss = torch.bincount(bins, gap, NUM_BINS).abs()
    late = (place - (num_rows - wrong[-1])).clamp(min=0) / place
    low = (risk <= RISK).nonzero()
    starts = shared.bin_starts(num_rows).tolist()
    parts = torch.stack([part.sum() for part in gap[order].tensor_split(starts[1:])])
    counts = torch.bincount(labels * num_classes + choice, minlength=num_classes**2)
    shares = counts.reshape(num_classes, num_classes).double().numpy() / num_rows
    aurc = float(risk.mean())
    return {
        "aurc": aurc,
        "excess_aurc": aurc - float(late.mean()),
        "augrc": float(wrong.double().mean() / num_rows),
        "risk_at_coverage": float(risk[int(np.ceil(COVERAGE * num_rows)) - 1]),
        "coverage_at_risk": (int(low[-1]) + 1) / num_rows if len(low) else 0.0,
        "adaptive_ece": float(parts.abs().sum() / num_rows),
        "ece": float(miss.sum() / num_rows),
        "mce": float((miss / number.clamp(min=1)).max()),
        **shared.of_confusion(shares),
    }
