"""The theory of `multicolor_mnist.py`: features that vote, by enumeration and formula.

Every feature votes for a class. Invariant ones vote for the true class; out of
distribution a spurious one keeps the true class with probability 1 - p, else its class
is uniform over all K. The class with the most votes wins, ties are broken at random.

Source: Lin et al. 2024, arXiv:2309.17230, section 4 (data model, and propositions on
single models, output-space and weight-space ensembles).
"""

import itertools
import math
from typing import NamedTuple

import numpy as np
from scipy import integrate, special


class Counts(NamedTuple):
    """Features of two models: each one's own, and how many of them both have."""

    invariant: tuple[int, int]
    spurious: tuple[int, int]
    shared_invariant: int = 0
    shared_spurious: int = 0


def enumerated_accuracy(
    p: float, *, num_invariant: float, weights: tuple[float, ...], num_classes: int = 3
) -> float:
    """The accuracy, summed over every outcome of the spurious features.

    Args:
        p: chance that a spurious feature's class is drawn anew.
        num_invariant: votes for the true class, times their weights.
        weights: of each spurious feature's vote.
        num_classes: K; there are K to the number of features outcomes.
    """
    outcomes = itertools.product(range(num_classes), repeat=len(weights))
    outcomes = np.array(list(outcomes))  # [outcome, feature]; class 0 is the true one
    chances = np.full(num_classes, p / num_classes)
    chances[0] += 1 - p
    probability = chances[outcomes].prod(axis=1)
    votes = np.stack(
        [(outcomes == c) @ np.asarray(weights, float) for c in range(num_classes)]
    )
    votes[0] += num_invariant
    return math.fsum(probability * _credit(votes))


def single_form(p: float) -> float:
    """Three classes, two invariant and three spurious features: 1 - 5 p^3 / 27."""
    return 1 - 5 * p**3 / 27


def pair_form(p: float) -> float:
    """Two such models without a common feature: 1 - 2 p^5 / 81 - 17 p^6 / 729."""
    return 1 - 2 * p**5 / 81 - 17 * p**6 / 729


def normal_accuracy(z: float, p: float, num_classes: int) -> float:
    """F_p(z): the accuracy of many features whose standardised lead is z.

        F_p(z) = E_u Phi((z + sqrt(b) u) / sqrt(a))^(K - 1),    u standard normal,
        a = p / K,   b = 1 - p + p / K - (1 - p)^2

    The lead over every other class is normal with mean z, variance a + b and
    covariance b between two of them.
    """
    a = p / num_classes
    b = 1 - p + p / num_classes - (1 - p) ** 2

    def integrand(u):
        lead = special.ndtr((z + math.sqrt(b) * u) / math.sqrt(a))
        return lead ** (num_classes - 1) * math.exp(-(u**2) / 2)

    # Where the lead is 0 the integrand turns within sqrt(a / b).
    turn = min(max(-z / math.sqrt(b), -9.0), 9.0)
    parts = [
        integrate.quad(integrand, low, high, epsabs=1e-14, epsrel=1e-13, limit=400)[0]
        for low, high in ((-10.0, turn), (turn, 10.0))
    ]
    return math.fsum(parts) / math.sqrt(2 * math.pi)


def lead_of_single(counts: Counts, p: float, *, model: int = 0) -> float:
    """z of one model: ((1 - p) n_s + n_v) / sqrt(n_s)."""
    spurious = counts.spurious[model]
    return ((1 - p) * spurious + counts.invariant[model]) / math.sqrt(spurious)


def lead_of_outputs(counts: Counts, p: float) -> float:
    """z of averaged outputs: shared features vote twice."""
    spurious, invariant = sum(counts.spurious), sum(counts.invariant)
    spread = math.sqrt(spurious + 2 * counts.shared_spurious)
    return ((1 - p) * spurious + invariant) / spread


def lead_of_weights(counts: Counts, p: float) -> float:
    """z of averaged weights of two layers: shared features vote four times."""
    spurious = sum(counts.spurious) + 2 * counts.shared_spurious
    invariant = sum(counts.invariant) + 2 * counts.shared_invariant
    spread = math.sqrt(sum(counts.spurious) + 14 * counts.shared_spurious)
    return ((1 - p) * spurious + invariant) / spread


def simulated_accuracy(
    rng: np.random.Generator,
    counts: Counts,
    p: float,
    num_classes: int,
    *,
    space: str,
    draws: int,
) -> tuple[float, float]:
    """Accuracy of the votes themselves in `draws` random inputs, and its error.

    Args:
        space: "single", "outputs" (shared features weigh 2) or "weights" (4).

    Returns:
        The mean and its standard error.
    """
    weight = {"single": 0, "outputs": 2, "weights": 4}[space]
    if space == "single":
        groups = [(counts.spurious[0], 1)]
        invariant = counts.invariant[0]
    else:
        own = sum(counts.spurious) - 2 * counts.shared_spurious
        groups = [(own, 1), (counts.shared_spurious, weight)]
        invariant = sum(counts.invariant) - 2 * counts.shared_invariant
        invariant += weight * counts.shared_invariant
    chances = np.full(num_classes, p / num_classes)
    chances[0] += 1 - p
    votes = sum(w * rng.multinomial(n, chances, size=draws) for n, w in groups)
    votes[:, 0] += invariant
    credit = _credit(votes.T)
    return float(credit.mean()), float(credit.std() / math.sqrt(draws))


def _credit(votes):
    """How much of a hit each outcome is, votes `[class, outcome]`: 1 over the ties."""
    most = votes.max(axis=0)
    return (votes[0] == most) / (votes == most[None]).sum(axis=0)


LEADS = {
    "single": lead_of_single,
    "outputs": lead_of_outputs,
    "weights": lead_of_weights,
}
CASES = {
    "nothing in common": Counts((50, 50), (200_000, 200_000)),
    "2/5 of all features in common": Counts((50, 50), (200_000, 200_000), 20, 80_000),
    "2/5 of invariant features in common": Counts((50, 50), (200_000, 200_000), 20, 0),
}
MANY_P = 0.999  # with 200,000 spurious features the lead is then near 0.5
MANY_CLASSES = 10


def measure(config) -> dict[str, np.ndarray]:
    """Everything the report says of the theory.

    Returns:
        `p` `[p]`; `enumerated` and `closed` `[p, 2]` (single, pair); and for the spaces
        of every case `many` `[case, space]`, `simulated` and `error`
        `[case, space, seed]`.
    """
    ps = np.asarray(config.theory.p, float)
    enumerated = [
        (
            enumerated_accuracy(p, num_invariant=2, weights=(1,) * 3),
            enumerated_accuracy(p, num_invariant=4, weights=(1,) * 6),
        )
        for p in ps
    ]
    many = [
        [normal_accuracy(z(c, MANY_P), MANY_P, MANY_CLASSES) for z in LEADS.values()]
        for c in CASES.values()
    ]
    simulated = np.zeros((2, len(CASES), len(LEADS), config.theory.num_seeds))
    for seed in range(config.theory.num_seeds):
        rng = np.random.default_rng((config.seed, seed))
        for i, counts in enumerate(CASES.values()):
            for j, space in enumerate(LEADS):
                simulated[:, i, j, seed] = simulated_accuracy(
                    rng,
                    counts,
                    MANY_P,
                    MANY_CLASSES,
                    space=space,
                    draws=config.theory.num_draws,
                )
    return {
        "p": ps,
        "enumerated": np.asarray(enumerated),
        "closed": np.asarray([(single_form(p), pair_form(p)) for p in ps]),
        "many": np.asarray(many),
        "simulated": simulated[0],
        "error": simulated[1],
    }
