"""What `rebasin.py` concludes: scalars, claims and our own checks."""

import numpy as np

from ensjax.experiment import check, check_at_most, claim, not_run
from ensjax.experiment.fields import load_beside

measures = load_beside(__file__, "rebasin_measures")

REBASIN = "Ainsworth et al. 2023, arXiv:2209.04836"
REPAIR = "Jordan et al. 2023, arXiv:2211.08403"
NAMES = {
    "naive": "as trained",
    "weights": "weights matched",
    "weights_repair": "matched, then REPAIR",
    "activations": "activations matched",
}
ZERO = 0.01  # nats: below this a barrier counts as none


def stage(width: int) -> str:
    """The name of the stage of a width."""
    return f"width-{width}"


def path(done, width, way, *, test="test", score="nll", prefix="") -> np.ndarray:
    """Scores along the paths of all pairs, `[pair, alpha]`."""
    place = (measures.WAYS.index(way), measures.SETS.index(test))
    paths = done[stage(width)][f"{prefix}paths"]
    return paths[(*place, measures.SCORES.index(score))]


def barriers(done, width, way, *, test="test", score="nll", prefix="") -> np.ndarray:
    """Of every pair, `[pair]`: in nats, or for "accuracy" of the error rate."""
    values = path(done, width, way, test=test, score=score, prefix=prefix)
    losses = 1 - values if score == "accuracy" else values
    line = np.linspace(0, 1, losses.shape[-1])
    ends = losses[:, :1] * (1 - line) + losses[:, -1:] * line
    return (losses - ends).max(axis=-1)


def ratio(done, width, *, way="weights", test="test", prefix="") -> np.ndarray:
    """The barrier after matching over that before, `[pair]`."""
    before = barriers(done, width, "naive", test=test, prefix=prefix)
    after = barriers(done, width, way, test=test, prefix=prefix)
    return after / np.where(before > 0, before, np.nan)


def middle(done, width, way, *, test="test", prefix="") -> np.ndarray:
    """Accuracy of the mean of both ends' weights, `[pair]`."""
    values = path(done, width, way, test=test, score="accuracy", prefix=prefix)
    return values[:, values.shape[1] // 2]


def removed(done, width, *, test="test") -> np.ndarray:
    """What share of the matched pair's barrier REPAIR takes away, `[pair]`."""
    return 1 - barriers(done, width, "weights_repair", test=test) / np.maximum(
        barriers(done, width, "weights", test=test), 1e-9
    )


def rise(config) -> str:
    """What is measured of two members of a set: on three points it is no barrier yet.

    The loss may rise further elsewhere on the path than at its midpoint.
    """
    if config.num_matrix_alphas == 3:
        return "rise at the midpoint"
    return f"barrier on {config.num_matrix_alphas} points"


def set_barriers(joint) -> np.ndarray:
    """Mean over all pairs of a set, before and after, `[set, 2]`."""
    matrix = joint["joint_matrix"]
    rows, columns = np.triu_indices(matrix.shape[-1], 1)
    return matrix[..., rows, columns].mean(axis=-1)


def soup_accuracy(joint, test="test") -> np.ndarray:
    """Of the mean of all weights, `[set, way]`."""
    place = measures.SETS.index(test), measures.SCORES.index("accuracy")
    return joint["joint_soup"][(slice(None), slice(None), *place)]


def member_accuracy(joint, test="test") -> np.ndarray:
    """Mean over members, `[set]`."""
    place = measures.SETS.index(test), measures.SCORES.index("accuracy")
    return joint["joint_members"][(slice(None), *place)].mean(axis=-1)


def parts(config, done):
    """What was aligned jointly, by name."""
    return {"mlp": done[stage(config.mlp.widths[-1])], "resnet": done["resnets"]}


def summarise(config, done) -> dict[str, float]:
    """Flat scalars: means over pairs or sets; barriers in nats, accuracies in 0-1."""
    frozen = sum(int((own["frozen_steps"] >= 0).sum()) for own in done.values())
    scalars = {"num_members_not_finite": frozen}
    for width in config.mlp.widths:
        for prefix in ("", "plain_") if width == config.mlp.widths[-1] else ("",):
            for way in measures.WAYS:
                start = f"{prefix}w{width}_{way}"
                for test in measures.SETS:
                    for score, name in (("nll", "loss"), ("accuracy", "error")):
                        value = barriers(
                            done, width, way, test=test, score=score, prefix=prefix
                        )
                        scalars[f"{start}_{test}_{name}_barrier"] = value.mean()
                value = middle(done, width, way, prefix=prefix)
                scalars[f"{start}_middle_accuracy"] = value.mean()
            ends = path(done, width, "naive", score="accuracy", prefix=prefix)
            scalars[f"{prefix}w{width}_end_accuracy"] = ends[:, [0, -1]].mean()
            value = ratio(done, width, prefix=prefix)
            scalars[f"{prefix}w{width}_ratio"] = value.mean()
            before, after = done[stage(width)][f"{prefix}correlation"]
            scalars[f"{prefix}w{width}_correlation_before"] = before
            scalars[f"{prefix}w{width}_correlation_after"] = after
    for name, joint in parts(config, done).items():
        before, after = set_barriers(joint).mean(axis=0)
        scalars |= {f"{name}_set_barrier": before, f"{name}_set_barrier_after": after}
        accuracy = soup_accuracy(joint).mean(axis=0)
        for way, value in zip(("", "_after", "_repair"), accuracy):
            scalars[f"{name}_soup_accuracy{way}"] = value
        scalars[f"{name}_member_accuracy"] = member_accuracy(joint).mean()
        scalars[f"{name}_ensemble_accuracy"] = joint["joint_ensemble"][:, 1, 1].mean()
        ece = joint["joint_ece"].mean(axis=0)
        for way, value in zip(
            ("member", "soup", "soup_after", "soup_repair"), ece, strict=False
        ):
            scalars[f"{name}_{way}_ece"] = value
        before, after = joint["joint_agreement"].mean(axis=0)
        scalars |= {f"{name}_agreement": before, f"{name}_agreement_after": after}
        scalars[f"{name}_rounds"] = joint["joint_sweeps"].mean()
    return {name: float(value) for name, value in scalars.items()}


def make_claims(config, done) -> list[dict]:
    """The papers' statements; one value per pair, or per set aligned jointly."""
    first, last = config.mlp.widths[0], config.mlp.widths[-1]
    mlp, resnet = parts(config, done).values()

    def about(paper, source, expected, side, bound):
        return dict(
            paper=paper,
            source=source,
            certainty="recalled",
            scale=config.scale,
            expected=expected,
            side=side,
            bound=bound,
        )

    narrow, wide = (ratio(done, width, test="train") for width in (first, last))
    claims = [
        claim(
            "git-re-basin.barrier: training-loss barrier of two MLPs of width"
            f" {last} with weights matched (nats)",
            values_by_seed=barriers(done, last, "weights", test="train"),
            **about(
                REBASIN,
                "abstract and figure 2",
                "zero (near-zero-barrier linear mode connectivity)",
                "<",
                ZERO,
            ),
        ),
        claim(
            "git-re-basin.error: training-error barrier of the same pairs (points)",
            values_by_seed=100
            * barriers(done, last, "weights", test="train", score="accuracy"),
            **about(REBASIN, "abstract and figure 2", "zero", "<", 1.0),
        ),
        claim(
            f"git-re-basin.width: share of the barrier that is left, width {first}"
            f" minus width {last}",
            values_by_seed=narrow - wide,
            **about(
                REBASIN,
                "section 5.2, on model width",
                "> 0: wider networks connect better",
                ">",
                0.0,
            ),
        ),
        claim(
            "git-re-basin.merge-many: test accuracy of the mean of"
            f" {config.mlp.num_members} MLPs' weights, aligned minus as trained"
            " (points)",
            values_by_seed=100 * np.diff(soup_accuracy(mlp)[:, :2], axis=1)[:, 0],
            **about(REBASIN, "section on MergeMany", "> 0", ">", 0.0),
        ),
        claim(
            "git-re-basin.merge-many-calibration: test ECE of that mean, aligned,"
            " minus the members' (points)",
            values_by_seed=100 * (mlp["joint_ece"][:, 2] - mlp["joint_ece"][:, 0]),
            **about(
                REBASIN,
                "section on MergeMany and its figure of calibration",
                "< 0: the merged model is calibrated better than its members",
                "<",
                0.0,
            ),
        ),
        claim(
            f"git-re-basin.resnet: mean test-loss {rise(config)} of two residual"
            " networks, aligned jointly minus as trained (nats)",
            values_by_seed=np.diff(set_barriers(resnet), axis=1)[:, 0],
            **about(REBASIN, "section 5.1, ResNet-20", "< 0", "<", 0.0),
        ),
        claim(
            f"repair.barrier: share of the matched pair's barrier at width {last} that"
            " REPAIR takes away, training loss",
            values_by_seed=removed(done, last, test="train"),
            **about(REPAIR, "abstract", "0.6 to 1", ">", 0.6),
        ),
    ]
    name = "git-re-basin.resnet-zero: loss barrier of two ResNet-20 of 32-fold width"
    if config.resnet.depth == 20 and config.resnet.width >= 512:
        claims.append(
            claim(
                name,
                values_by_seed=set_barriers(resnet)[:, 1],
                **about(REBASIN, "section 5.1, figure 2", "zero", "<", ZERO),
            )
        )
    else:
        entry = about(REBASIN, "section 5.1, figure 2", "zero", "<", ZERO)
        del entry["side"], entry["bound"]
        claims.append(not_run(name, **entry))
    return claims


def make_checks(config, done) -> list[dict]:
    """Our own bounds, from a pilot on digits."""
    checks, last = [], config.mlp.widths[-1]
    for width in config.mlp.widths:
        before = barriers(done, width, "naive").mean()
        after = barriers(done, width, "weights").mean()
        checks.append(
            check_at_most(
                f"width {width}: mean test-loss barrier, matched over as trained",
                float(after / before) if before > 0 else np.inf,
                1 / 3 if width == last else 0.3,
            )
        )
        lost = middle(done, width, "weights") - middle(done, width, "weights_repair")
        checks.append(
            check_at_most(
                f"width {width}: accuracy that REPAIR costs the midpoint",
                float(lost.mean()),
                0.005,
            )
        )
    differences = {
        f"MLPs of width {width}": done[stage(width)]["difference"]
        for width in config.mlp.widths
    }
    for name, joint in parts(config, done).items():
        differences[f"set of {name}s"] = joint["joint_difference"].max()
    for name, value in differences.items():
        checks.append(
            check_at_most(f"{name}: outputs changed by matching", float(value), 1e-5)
        )
    pairs = config.mlp.num_pairs
    checks.append(
        check("pairs of each width", bound=">= 5", measured=pairs, passed=pairs >= 5)
    )
    frozen = sum(int((own["frozen_steps"] >= 0).sum()) for own in done.values())
    checks.append(
        check("members not finite", bound="0", measured=frozen, passed=frozen == 0)
    )
    return checks


def describe(config, done) -> str:
    """The summary: what was done, what came out, what it does not show."""
    last, own = config.mlp.widths[-1], config.mlp
    sentences = [
        f"{own.num_pairs} pairs of MLPs on {own.data} (SGD {own.learning_rate:g},"
        f" momentum {own.momentum:g}, weight decay {own.weight_decay:g},"
        f" {own.total_steps} steps). Mean test-loss barrier (nats), as trained, with"
        " weights matched, with REPAIR, with activations matched:"
    ]
    for width in own.widths:
        found = [barriers(done, width, way).mean() for way in measures.WAYS]
        shown = ", ".join(f"{value:.3f}" for value in found)
        sentences.append(f"width {width}: {shown};")
    plain = [barriers(done, last, way, prefix="plain_").mean() for way in measures.WAYS]
    shown = ", ".join(f"{value:.3f}" for value in plain)
    sentences.append(
        f"and at width {last} trained without momentum {shown}: such networks, less far"
        " from their random start, keep"
        f" {100 * plain[1] / plain[0]:.0f} % of the barrier under weight matching,"
        f" against {100 * ratio(done, last).mean():.0f} % with momentum."
    )
    for name, joint in parts(config, done).items():
        before, after = set_barriers(joint).mean(axis=0)
        soups = 100 * soup_accuracy(joint).mean(axis=0)
        repaired = f", {soups[2]:.1f} % after REPAIR" if len(soups) > 2 else ""
        kind = "MLPs" if name == "mlp" else f"ResNet-{config.resnet.depth}"
        sentences.append(
            f"{config[name].num_members} {kind} aligned jointly"
            f" ({config.num_sets} set(s)): mean {rise(config)} of two {before:.3f}"
            f" before and {after:.3f} after; the mean of all weights has"
            f" {soups[0]:.1f} % test accuracy before, {soups[1]:.1f} % after{repaired},"
            f" the members {100 * member_accuracy(joint).mean():.1f} %, the mean of"
            " their probabilities"
            f" {100 * joint['joint_ensemble'][:, 1, 1].mean():.1f} %."
        )
    if config.resnet.norm == "batch":
        sentences.append(
            "Batch statistics of residual networks were measured anew for every"
            " mixture, before as after."
        )
    sentences.append(
        f"A barrier below {ZERO:g} nats counts as none. On the paths of pairs there are"
        f" {config.num_alphas} points, on those of two members of a set"
        f" {config.num_matrix_alphas}: of these it is the {rise(config)}. All pairs and"
        " sets share their rows and the split of them."
    )
    return " ".join(sentences)
