"""What votes of members are worth in `report_check.py`, and where a reader was wrong.

Everything is measured on the test rows of each seed and domain, `[seed, domain, ...]`.
A member's accuracy is that of its answers that could be read; the vote leaves the other
answers out, and gives a tie to the member that is best on the labelled rows.
"""

from typing import Any, NamedTuple

import jax
import numpy as np

from ensjax import combine, scores
from ensjax.predictions import ABSTAIN, Predictions
from ensjax.provenance import Provenance

# What members say, and how it is read: classes "no error" and "error".
SIMPLE_ANSWERS = ("No, the report is correct.", "Yes, there is an error.")
SIMPLE_PATTERNS = (r"\bno\b", r"\byes\b")
KIND_ANSWERS = (
    "Nothing is wrong.",
    "A finding was inserted.",
    "A finding was removed.",
    "One was substituted.",
)
KIND_PATTERNS = ("nothing", "insert", "remov", "substitut")
UNREAD = "I cannot tell from this image."
SOURCE = "reports of each seed and domain"


class Votes(NamedTuple):
    """Answers of members, read, and their vote.

    Attributes:
        members: `[seed, domain, member, row]` classes, -1 where an answer is not read.
        vote: `[seed, domain, row]`.
        differ: rows on which the vote is not `count_votes` of the answers that were
            read.
    """

    members: np.ndarray
    vote: np.ndarray
    differ: int


def ask(choices: np.ndarray, answers, patterns, *, unread_share, rng) -> np.ndarray:
    """Members' choices as text, and what is read of it; `[..., row]` to the same."""
    said = np.asarray(answers, object)[choices]
    said[rng.uniform(size=choices.shape) < unread_share] = UNREAD
    flat = said.reshape(-1, choices.shape[-1])
    read = combine.parse_answers(flat.tolist(), patterns)
    return np.asarray(read.votes).reshape(choices.shape)


def vote(members: np.ndarray, num_classes: int, best: np.ndarray) -> np.ndarray:
    """Majority of the answers that were read; ties go to the best member.

    Args:
        members: `[seed, domain, member, row]`, -1 where an answer is not read.
        num_classes: number of classes.
        best: the best member, `[seed, domain]`.
    """
    seeds, domains, num_members, num_rows = members.shape
    # Half a vote more decides ties and nothing else.
    extra = np.arange(num_members) == best[..., None]
    weights = np.where(extra, 1.5, 1.0)[..., None]
    stacked, weights = (
        np.moveaxis(x, 2, 0).reshape(num_members, -1)
        for x in (members, np.broadcast_to(weights, members.shape))
    )
    predictions = Predictions.from_votes(stacked, num_classes)
    chosen = combine.weighted_vote(predictions, weights)
    return np.asarray(chosen).reshape(seeds, domains, num_rows)


def count_votes(members: np.ndarray, num_classes: int, best: np.ndarray) -> np.ndarray:
    """`vote` again, by counting: answers that were not read are never looked at."""
    counts = np.stack([(members == c).sum(axis=2) for c in range(num_classes)], axis=-1)
    most = counts == counts.max(axis=-1, keepdims=True)
    own = np.take_along_axis(members, best[..., None, None], axis=2)[:, :, 0]
    is_among = np.take_along_axis(most, np.maximum(own, 0)[..., None], axis=-1)[..., 0]
    chosen = np.where((own >= 0) & is_among, own, most.argmax(axis=-1))
    return np.where(counts.any(axis=-1), chosen, ABSTAIN)


def accuracy(answers: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Share of the answers that were read and are right, over the last axis.

    NaN where no answer was read.
    """
    is_read = answers != ABSTAIN
    right = ((answers == labels) & is_read).sum(axis=-1)
    number = is_read.sum(axis=-1)
    return np.where(number > 0, right / np.maximum(number, 1), np.nan)


def measure(
    config, logits: dict[str, np.ndarray], errors: np.ndarray, seen: np.ndarray
) -> dict:
    """All numbers of the report, from the logits of `report_check_training.train`.

    Args:
        config: of the run.
        logits: "untuned", "tuned" and "reader", and "kinds" of other untuned models,
            `[seed, domain, kind, row, 2]`.
        errors: kinds of error `[seed, domain, row]` of the held-out rows, labelled rows
            first.
        seen: `[seed, domain, row]`, True where untuned members were trained on one.

    Raises:
        LeakageError: if thresholds would be fitted on such a row.
    """
    rng = np.random.default_rng([config.seed, 1])
    labelled = np.arange(errors.shape[-1]) < config.reports.num_labelled
    is_error = (errors != 0).astype(np.int64)
    p_error = 1 - _softmax(logits["tuned"])[..., 0]
    reader = (1 - _softmax(logits["reader"])[..., 0] > 0.5).astype(np.int64)
    says = {
        "untuned": np.argmax(logits["untuned"], axis=-1),
        "tuned": (p_error > 0.5).astype(np.int64),
    }
    fitted = fit_thresholds(logits["untuned"], is_error, labelled, seen)
    says["untuned, threshold fitted"] = fitted
    says["untuned, several kinds"] = np.argmax(logits["kinds"], axis=-1)
    simple = {
        name: _vote(config, x, SIMPLE_ANSWERS, SIMPLE_PATTERNS, is_error, labelled, rng)
        for name, x in says.items()
    }
    kinds = np.argmax(logits["tuned"], axis=-1)
    kind = _vote(config, kinds, KIND_ANSWERS, KIND_PATTERNS, errors, labelled, rng)

    test = ~labelled
    errors, is_error, reader = errors[..., test], is_error[..., test], reader[..., test]
    confidence = np.maximum(p_error, 1 - p_error).mean(axis=2)[..., test]
    right = simple["tuned"].vote == is_error
    member_right = simple["tuned"].members == is_error[:, :, None]
    member_read = simple["tuned"].members != ABSTAIN
    reader_right = reader == is_error
    return {
        "simple": {name: _summary(votes, is_error) for name, votes in simple.items()},
        "kind": _summary(kind, errors) | {"on_altered": _on_altered(kind, errors)},
        "reader": reader_right.mean(axis=-1),
        "controls": compare_controls(
            config, right, member_right, member_read, reader_right, errors, confidence
        ),
        "subsets": draw_subsets(config, right, reader_right, rng),
        "qualities": compare_qualities(
            config, right, simple["tuned"], is_error, reader_right, rng
        ),
        "matrix": _matrix(right, member_right, reader_right),
        "differ": sum(votes.differ for votes in (*simple.values(), kind)),
    }


def fit_thresholds(logits, is_error, labelled, seen) -> np.ndarray:
    """Answers of untuned members above thresholds that labelled rows gave.

    The members of all seeds and domains are one stack; each is fitted on its own rows.
    """
    seeds, domains, members, num_rows = logits.shape[:4]
    stacked = logits.reshape(-1, num_rows, 2)
    targets = np.broadcast_to(is_error[:, :, None], logits.shape[:4])
    numbers = np.arange(num_rows)
    seen = np.broadcast_to(seen[:, :, None], logits.shape[:4]).reshape(-1, num_rows)

    def predictions(rows, part):
        provenance = Provenance(
            SOURCE, numbers[rows], part, seen[:, rows], numbers[~labelled]
        )
        return Predictions.from_logits(stacked[:, rows], provenance=provenance)

    thresholds = combine.fit_vote_thresholds(
        predictions(labelled, "validation"),
        targets.reshape(-1, num_rows)[:, labelled],
    )
    votes = np.argmax(stacked, axis=-1)
    votes[:, ~labelled] = thresholds(predictions(~labelled, "test")).votes
    return votes.reshape(seeds, domains, members, num_rows)


def compare_controls(
    config, right, member_right, member_read, reader_right, errors, confidence
) -> dict[str, np.ndarray]:
    """Vote and mean member where the reader was wrong, and on two kinds of control.

    For each case a reader-right one of the same kind of error: the nearest in the
    members' mean confidence, or any. Shares `[seed, domain]`; "difference" and its
    interval `[domain, 3]` are of vote right: cases minus matched ones, in pairs.
    """
    rng = np.random.default_rng([config.seed, 2])
    matched = jax.jit(
        jax.vmap(lambda cases, c, k: scores.matched_control(cases, c, strata=k))
    )
    seeds, domains, num_rows = right.shape
    flat = [x.reshape(-1, num_rows) for x in (~reader_right, confidence, errors)]
    nearest = np.asarray(matched(*flat)).reshape(right.shape)
    names = ("wrong", "matched", "random")
    found = {
        f"{who}_{name}": np.full((seeds, domains), np.nan)
        for name in names
        for who in ("vote", "member")
    }
    found["cases"] = (~reader_right).sum(axis=-1)
    pairs = [[] for _ in range(domains)]
    for s in range(seeds):
        for d in range(domains):
            cases = np.flatnonzero(~reader_right[s, d] & (nearest[s, d] >= 0))
            control = nearest[s, d][cases]
            same = [
                np.flatnonzero(reader_right[s, d] & (errors[s, d] == errors[s, d, i]))
                for i in cases
            ]
            anyone = np.array([rng.choice(rows) for rows in same], int)
            for name, rows in zip(names, (cases, control, anyone)):
                found[f"vote_{name}"][s, d] = right[s, d][rows].mean()
                read = member_read[s, d][:, rows]
                share = (member_right[s, d][:, rows] & read).sum() / read.sum()
                found[f"member_{name}"][s, d] = share
            difference = right[s, d][cases] * 1.0 - right[s, d][control]
            # A control may serve several cases, which are then drawn together.
            pairs[d].append((difference, s * num_rows + control))
    found["difference"] = np.stack(
        [_paired_interval(config, *map(np.concatenate, zip(*pair))) for pair in pairs]
    )
    return found


def draw_subsets(config, right, reader_right, rng) -> dict[str, np.ndarray]:
    """How far accuracy on as few reader-wrong cases as in the paper varies.

    Of `num_subsets` draws of `subset_size` cases: the ends of the middle 95 %,
    `[seed, domain]`, and all draws of the first seed `[domain, draw]`.
    """
    low, high, shown = np.empty((2, *right.shape[:2])), None, []
    low, high = low
    for s, d in np.ndindex(*right.shape[:2]):
        cases = right[s, d][~reader_right[s, d]]
        size = min(config.subset_size, len(cases))
        draws = [
            rng.choice(cases, size=size, replace=False).mean()
            for _ in range(config.num_subsets)
        ]
        low[s, d], high[s, d] = np.percentile(draws, [2.5, 97.5])
        if s == 0:
            shown.append(draws)
    return {"low": low, "high": high, "draws": np.asarray(shown)}


def compare_qualities(
    config, right, tuned: Votes, is_error, reader_right, rng
) -> dict[str, np.ndarray]:
    """Vote and single members minus a reader of a set quality, and McNemar's test.

    The reader's wrong answers that are drawn at random are mended, or right ones
    spoilt, until its accuracy is the quality. A member is compared on the rows that
    were read.

    Returns:
        "reader", the accuracy that was reached, and the differences "vote" and
        "member" (mean member), `[quality, seed, domain]`; "vote_p" and "member_p", the
        latter `[quality, seed, domain, member]`, p-values with the difference's sign.
    """
    is_read = tuned.members != ABSTAIN
    member_right = tuned.members == is_error[:, :, None]
    shape = (len(config.reader_qualities), *right.shape[:2])
    found = {k: np.empty(shape) for k in ("reader", "vote", "member", "vote_p")}
    found["member_p"] = np.empty((*shape, tuned.members.shape[2]))
    for q, quality in enumerate(config.reader_qualities):
        for s, d in np.ndindex(*right.shape[:2]):
            place = q, s, d
            changed = set_quality(reader_right[s, d], quality, rng)
            found["reader"][place] = changed.mean()
            found["vote"][place] = right[s, d].mean() - changed.mean()
            found["vote_p"][place] = _signed_p(right[s, d], changed)
            gains = []
            for m, read in enumerate(is_read[s, d]):
                own, reader = member_right[s, d, m][read], changed[read]
                gains.append(own.mean() - reader.mean())
                found["member_p"][(*place, m)] = _signed_p(own, reader)
            found["member"][place] = np.mean(gains)
    return found


def _signed_p(first, second) -> float:
    """McNemar's exact p-value, below 0 where the second system is right more often."""
    sign = 1.0 if first.mean() >= second.mean() else -1.0
    return sign * scores.mcnemar(first, second).p_value


def set_quality(is_right: np.ndarray, quality: float, rng) -> np.ndarray:
    """The same rows with as many of them changed as make the share `quality`."""
    changed = is_right.copy()
    too_few = round(quality * len(is_right)) - int(is_right.sum())
    pool = np.flatnonzero(~is_right if too_few > 0 else is_right)
    chosen = rng.choice(pool, size=abs(too_few), replace=False)
    changed[chosen] = too_few > 0
    return changed


def _vote(config, choices, answers, patterns, labels, labelled, rng) -> Votes:
    """Asks, reads and votes; the best member is named on the labelled rows."""
    read = ask(choices, answers, patterns, unread_share=config.unread_share, rng=rng)
    labelled_accuracy = accuracy(read[..., labelled], labels[:, :, None, labelled])
    best = np.argmax(np.nan_to_num(labelled_accuracy), axis=-1)
    members = read[..., ~labelled]
    chosen = vote(members, len(patterns), best)
    differ = (chosen != count_votes(members, len(patterns), best)).sum()
    return Votes(members, chosen, int(differ))


def _summary(votes: Votes, labels) -> dict[str, Any]:
    """Accuracies `[seed, domain]` and of members `[seed, domain, member]`."""
    members = accuracy(votes.members, labels[:, :, None])
    says_error = (votes.vote > 0).mean(axis=-1)
    return {
        "members": members,
        "member": members.mean(axis=-1),
        "best": members.max(axis=-1),
        "vote": (votes.vote == labels).mean(axis=-1),
        "says_error": says_error,
        "unread": (votes.members == ABSTAIN).mean(axis=(-1, -2)),
    }


def _on_altered(votes: Votes, errors) -> np.ndarray:
    """The vote's accuracy on altered reports alone, `[seed, domain]`."""
    altered = errors != 0
    return ((votes.vote == errors) & altered).sum(axis=-1) / altered.sum(axis=-1)


def _matrix(right, member_right, reader_right) -> np.ndarray:
    """P(row right | column wrong) of vote, reader and members, mean over seeds.

    `[domain, system, system]`; the systems are the vote, the reader, and each member.
    """
    seeds, domains = right.shape[:2]
    systems = np.concatenate(
        [right[:, :, None], reader_right[:, :, None], member_right], axis=2
    )
    by_world = jax.jit(jax.vmap(scores.complementarity_matrix))(
        systems.reshape(seeds * domains, *systems.shape[2:])
    )
    by_world = np.asarray(by_world)
    return by_world.reshape(seeds, domains, *by_world.shape[1:]).mean(axis=0)


def _paired_interval(config, differences, controls) -> np.ndarray:
    """Mean difference and the ends of its 95 % bootstrap interval over controls."""
    names, groups = np.unique(controls, return_inverse=True)
    found = scores.paired_bootstrap(
        jax.random.key(config.seed),
        lambda weight: (weight * differences).sum() / weight.sum(),
        len(differences),
        groups=groups,
        num_groups=len(names),
        num_resamples=config.num_bootstrap,
    )
    return np.asarray([found.estimate, found.low, found.high])


def _softmax(logits):
    exp = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exp / exp.sum(axis=-1, keepdims=True)
