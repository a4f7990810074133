"""What `ntk_empirical.py` concludes: scalars, claims and our own checks."""

import numpy as np

from ensjax import ntk
from ensjax.experiment import Part, check, check_at_most, claim_of_all, not_run
from ensjax.experiment.fields import load_beside

permutations = load_beside(__file__, "ntk_empirical_permutations")

PAPER = "Giapitzakis et al. 2025, arXiv:2502.16763"


def widths(config, done) -> dict[int, dict[str, np.ndarray]]:
    """What was measured of the convolutional nets, by width."""
    return {width: done[f"cnn-{width}"] for width in config.cnn.widths}


def off_diagonal(matrices) -> np.ndarray:
    """The mean over pairs of different members, `[...]` of `[..., member, member']`."""
    members = matrices.shape[-1]
    return matrices[..., ~np.eye(members, dtype=bool)].mean(axis=-1)


def late_accuracy(curves) -> np.ndarray:
    """The least row accuracy from half of the members on, `[seed]`."""
    return curves[:, curves.shape[1] // 2 :].min(axis=1)


def first_and_stays(curves, target) -> np.ndarray:
    """Members for an accuracy: first, and from where on it stays, `[seed, 2]`."""
    return np.array([ntk.members_to_reach(curve, target) for curve in curves])


def median_of(values):
    """The median of numbers of which some may be infinite."""
    return float(np.sort(values)[(len(values) - 1) // 2])


def compared(config, own) -> tuple[float, float]:
    """Median members for the target, hardest inputs: trained, and by the oracle."""
    target = config.permutations.target
    return tuple(
        median_of(first_and_stays(own[name], target)[:, 0])
        for name in ("hard", "oracle_hard")
    )


def summarise(config, done) -> dict[str, float]:
    """Flat scalars: means over members of a width; medians over seeds of a case."""
    scalars = {}
    for width, own in widths(config, done).items():
        at = f"cnn{width}"
        for name in ("change", "distance", "labels_centred", "accuracy"):
            values = own[name].mean(axis=1)
            scalars |= {f"{at}_{name}_start": values[0], f"{at}_{name}_end": values[-1]}
        between = off_diagonal(own["between_centred"])
        scalars |= {f"{at}_between_start": between[0], f"{at}_between_end": between[-1]}
        scalars |= {f"{at}_spread_start": own["spread"][0]}
        scalars |= {f"{at}_spread_end": own["spread"][-1]}
        scalars[f"{at}_not_finite"] = (own["frozen_steps"] >= 0).sum()
    for case in permutations.cases(config):
        own = done[case.name]
        trained, oracle = compared(config, own)
        at = f"{case.law}{case.num_bits}"
        scalars |= {
            f"{at}_members": trained,
            f"{at}_members_oracle": oracle,
            f"{at}_late_accuracy": late_accuracy(own["rows"]).mean(),
            f"{at}_late_accuracy_oracle": late_accuracy(own["oracle_rows"]).mean(),
            f"{at}_f0": own["f"][:, 0].mean(),
            f"{at}_f1": own["f"][:, 1].mean(),
            f"{at}_variance": own["variance"].mean(),
        }
    return {name: float(value) for name, value in scalars.items()}


def make_claims(config, done) -> list[dict]:
    """The paper's statement, one value per seed of members and permutation."""
    about = dict(
        paper=PAPER,
        source="abstract and experiments",
        certainty="read",
        scale=config.scale,
        expected="1",
    )
    name = (
        "permutation-ntk.c: least row accuracy on unseen inputs of the rounded mean of"
        " trained networks, from half of the members on"
    )
    parts = [
        Part(
            f"{case.law}, k = {case.num_bits}, up to {case.num_members:,} members",
            late_accuracy(done[case.name]["rows"]),
            # All rows of all seeds: one that is wrong is too many.
            1 - 0.5 / (done[case.name]["num_rows"] * config.permutations.num_seeds),
        )
        for case in permutations.cases(config)
    ]
    if not parts:
        return [not_run(name, **about)]
    return [claim_of_all(name, parts=parts, **about)]


def make_checks(config, done) -> list[dict]:
    """Our own bounds: against the oracle from the card, the others not piloted."""
    checks = []
    for case in permutations.cases(config):
        own = done[case.name]
        trained, oracle = compared(config, own)
        ratio = trained / oracle
        percent = 100 * config.permutations.target
        checks.append(
            check(
                f"{case.law}, k = {case.num_bits}: members for {percent:g} % of inputs"
                " with two ones, trained over oracle (medians)",
                bound="0.6 to 1.4",
                measured=ratio,
                passed=0.6 <= ratio <= 1.4,
            )
        )
    for width, own in widths(config, done).items():
        label = f"CNN {width}"
        checks.append(
            check_at_most(
                f"{label}: streamed against kernels in memory, largest difference",
                float(own["streamed"]),
                1e-4,
            )
        )
        rise = (own["labels_centred"][-1] - own["labels_centred"][0]).min()
        checks.append(
            check(
                f"{label}: rise of alignment with labels, least of all members",
                bound="> 0",
                measured=rise,
                passed=rise > 0,
            )
        )
        broken = int((own["frozen_steps"] >= 0).sum())
        checks.append(
            check(
                f"{label}: members not finite",
                bound="0",
                measured=broken,
                passed=broken == 0,
            )
        )
    return checks


def describe(config, done) -> str:
    """The summary: what was done, what came out, what it does not show."""
    own = config.cnn
    parts = [
        f"Kernels of {own.num_members} members of each width on {own.num_rows} training"
        f" digits ({own.data}), traced over the 10 outputs, after up to"
        f" {own.snapshots[-1]:,} steps of SGD."
    ]
    for width, found in widths(config, done).items():
        labels, between = found["labels_centred"], found["between_centred"]
        parts.append(
            f"Width {width}: |K - K0| / |K0| ends at {found['change'][-1].mean():.2g}"
            f" (1 - cosine {found['distance'][-1].mean():.2f}); centred alignment with"
            " labels goes from"
            f" {labels[0].mean():.2f} to {labels[-1].mean():.2f}, between members"
            f" {off_diagonal(between)[0]:.2f} to {off_diagonal(between)[-1]:.2f}; test"
            f" accuracy {100 * found['accuracy'][-1].mean():.1f} %."
        )
    target = 100 * config.permutations.target
    parts.append(
        f"Networks of width {config.permutations.width:,} trained on the k basis"
        " vectors; medians over"
        f" {config.permutations.num_seeds} seeds of members that bring {target:g} % of"
        " inputs with two ones right, beside the oracle of infinite width:"
    )
    for case in permutations.cases(config):
        trained, oracle = compared(config, done[case.name])
        late = late_accuracy(done[case.name]["rows"]).min()
        parts.append(
            f"{case.law}, k = {case.num_bits}: {trained:.0f} and {oracle:.0f}; from"
            f" {case.num_members // 2:,} members on at least {100 * late:.2f} % of all"
            " unseen inputs are right."
        )
    parts.append(
        "All widths and members share their digits; the published networks have 50,000"
        " hidden units and k up to 30."
    )
    return " ".join(parts)
