"""Claims of a paper and checks of our own, with verdicts that follow one rule.

A claim holds when the 95 % interval over seeds lies wholly on the stated side of the
bound, fails when it lies wholly on the other, and is undecided otherwise. Seeds that
split the same rows anew are not independent: `split_sizes` widens their interval. What
cannot leave 0 to 1 has an interval that does not (`is_share`). A statement about
several numbers (`claim_of_all`) is judged by the least sure of them.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ensjax.experiment.json_files import to_json_value

MIN_SEEDS = 5  # fewer seeds never decide a claim
CERTAINTIES = ("read", "recalled")
SCALES = ("toy", "reduced", "full")
VERDICTS = ("holds", "fails", "undecided", "not run")


def claim(
    name: str,
    *,
    paper: str,
    source: str,
    certainty: str,
    scale: str,
    expected: str | float,
    values_by_seed: Sequence[float],
    side: str = ">",
    bound: float,
    split_sizes: tuple[int, int] | None = None,
    is_share: bool = False,
    shared_half: float = 0.0,
) -> dict[str, Any]:
    """A paper's statement, measured over seeds.

    Args:
        name: unique within the run.
        paper: such as "Lakshminarayanan et al. 2017".
        source: where in the paper: section, table or equation.
        certainty: "read" in the source, or "recalled".
        scale: "toy", "reduced" or "full" beside the paper's own.
        expected: the paper's number or words.
        values_by_seed: one number per seed.
        side: ">" or "<": where the statement says that the value lies.
        bound: of the same unit as the values.
        split_sizes: None where seeds are independent; else rows that are not tested on,
            and test rows, of splits of the same rows.
        is_share: whether values are shares, or 0 and 1 for no and yes: `share_interval`
            then takes the place of `student_interval`.
        shared_half: half the 95 % interval of what all seeds share, such as the cases
            that they are tested on. It is independent of the seeds, so that squares
            add: the interval's halves become sqrt(half^2 + shared_half^2).

    Returns:
        The entry for `results.json`: the arguments and `measured` (mean over seeds),
        `interval` (95 %, see `student_interval`; None for one seed), `seeds` and
        `verdict`. Values that are not finite leave it undecided, with `measured` None.

    Raises:
        ValueError: for words other than those above, no values, shares that do not
            lie between 0 and 1, or a half that is negative or beside shares.
    """
    _check_words(certainty, scale)
    if not 0 <= shared_half < math.inf or (shared_half and is_share):
        raise ValueError(
            "shared_half must be a number of 0 or more, and 0 for shares; got"
            f" {shared_half} for claim {name!r}."
        )
    if side not in (">", "<"):
        raise ValueError(f'side must be ">" or "<"; got {side!r}.')
    values = [float(value) for value in values_by_seed]
    if not values:
        raise ValueError(f"claim {name!r} has no values; use not_run(...) for that.")
    ends = share_interval if is_share else student_interval
    interval = _widened(ends(values, split_sizes=split_sizes), float(shared_half))
    is_finite = all(math.isfinite(value) for value in values)
    return {
        "name": name,
        "paper": paper,
        "source": source,
        "certainty": certainty,
        "scale": scale,
        "expected": expected,
        "side": side,
        "bound": float(bound),
        "measured": sum(values) / len(values) if is_finite else None,
        "interval": None if interval is None else list(interval),
        "seeds": len(values),
        **({} if split_sizes is None else {"split_sizes": list(split_sizes)}),
        **({"is_share": True} if is_share else {}),
        **({"shared_half": float(shared_half)} if shared_half else {}),
        "verdict": _verdict(interval, len(values), side, float(bound)),
    }


class Part(NamedTuple):
    """One of several numbers that a statement is about; fields are those of `claim`.

    Attributes:
        text: what the values are, such as "minus the best member".
    """

    text: str
    values_by_seed: Sequence[float]
    bound: float
    side: str = ">"
    split_sizes: tuple[int, int] | None = None
    is_share: bool = False
    shared_half: float = 0.0


def claim_of_all(
    name: str,
    *,
    parts: Sequence[Part],
    paper: str,
    source: str,
    certainty: str,
    scale: str,
    expected: str | float,
) -> dict[str, Any]:
    """A statement that holds if each of its parts does, judged by the least sure one.

    It holds where the intervals of all parts lie on their stated sides, fails where one
    lies wholly on the other, and is undecided otherwise. No correction for their number
    is needed: a part that is truly on the other side holds by chance no more often
    among others than alone.

    Args:
        name: what is stated; the least sure part is named behind it.
        parts: at least one.
        paper, source, certainty, scale, expected: as for `claim`.

    Returns:
        The entry of `claim` for the least sure part: of those with the worst verdict
        the one whose mean lies least far on its stated side, in half-widths of its
        interval. `parts` lists what all came out as, if there are several.

    Raises:
        ValueError: as `claim`, or without parts.

    Source: Berger 1982, Technometrics 24 (intersection-union tests).
    """
    if not parts:
        raise ValueError(f"claim {name!r} has no parts; use not_run(...) for that.")
    about = dict(paper=paper, source=source, certainty=certainty, scale=scale)
    among = f"least sure of {len(parts)}: " if len(parts) > 1 else ""
    entries = [
        claim(
            f"{name} ({among}{part.text})",
            expected=expected,
            values_by_seed=part.values_by_seed,
            side=part.side,
            bound=part.bound,
            split_sizes=part.split_sizes,
            is_share=part.is_share,
            shared_half=part.shared_half,
            **about,
        )
        for part in parts
    ]
    if len(parts) == 1:
        return entries[0]
    kept = ("side", "bound", "measured", "interval", "seeds", "split_sizes", "is_share",
            "shared_half")  # fmt: skip
    told = [
        {"part": part.text, **{key: entry[key] for key in kept if key in entry}}
        for part, entry in zip(parts, entries, strict=True)
    ]
    return min(entries, key=_sureness) | {"parts": told}


def claim_of_cases(
    name: str,
    *,
    values_by_case: Mapping[str, float],
    side: str = ">",
    bound: float,
    paper: str,
    source: str,
    certainty: str,
    scale: str,
    expected: str | float,
) -> dict[str, Any]:
    """A statement about numbers that are computed and not drawn: nothing is sampled.

    It holds if every case lies on the stated side and fails if any does not. There is
    no interval: cases are no seeds.

    Args:
        name: what is stated; the case that lies least far on its side is named behind
            it.
        values_by_case: a number for each case, by its name.
        side, bound, paper, source, certainty, scale, expected: as for `claim`.

    Returns:
        The entry for `results.json`, with the number of the named case as `measured`,
        no interval, and all cases in `parts` if there are several. A number that is not
        finite leaves it undecided.

    Raises:
        ValueError: for words other than `claim`'s, or no case.
    """
    _check_words(certainty, scale)
    if side not in (">", "<"):
        raise ValueError(f'side must be ">" or "<"; got {side!r}.')
    if not values_by_case:
        raise ValueError(f"claim {name!r} has no values; use not_run(...) for that.")
    bound = float(bound)
    values = {case: float(value) for case, value in values_by_case.items()}
    is_finite = all(math.isfinite(value) for value in values.values())
    sign = 1 if side == ">" else -1
    worst = min(values, key=lambda case: sign * values[case])
    holds = all(sign * (value - bound) > 0 for value in values.values())
    shared = {"side": side, "bound": bound, "interval": None, "seeds": 1}
    parts = [
        {"part": case, "measured": value if math.isfinite(value) else None, **shared}
        for case, value in values.items()
    ]
    among = f"exact; least of {len(values)}: " if len(values) > 1 else "exact: "
    return {
        "name": f"{name} ({among}{worst})",
        "paper": paper,
        "source": source,
        "certainty": certainty,
        "scale": scale,
        "expected": expected,
        "measured": values[worst] if is_finite else None,
        **shared,
        **({"parts": parts} if len(parts) > 1 else {}),
        "verdict": ("holds" if holds else "fails") if is_finite else "undecided",
    }


def not_run(
    name: str,
    *,
    paper: str,
    source: str,
    certainty: str,
    scale: str,
    expected: str | float,
) -> dict[str, Any]:
    """A claim that this preset does not measure."""
    _check_words(certainty, scale)
    return {
        "name": name,
        "paper": paper,
        "source": source,
        "certainty": certainty,
        "scale": scale,
        "expected": expected,
        "measured": None,
        "interval": None,
        "seeds": 0,
        "verdict": "not run",
    }


def check(
    name: str, *, bound: str | float, measured: float, passed: bool
) -> dict[str, Any]:
    """A bound of our own, such as a speed or a number from a pilot run."""
    return {
        "name": name,
        "bound": bound,
        "measured": to_json_value(measured),
        "pass": bool(passed),
    }


def check_at_least(name: str, measured: float, bound: float) -> dict[str, Any]:
    """A check that passes from the bound on."""
    text = f">= {bound:g}"
    return check(name, bound=text, measured=measured, passed=measured >= bound)


def check_at_most(name: str, measured: float, bound: float) -> dict[str, Any]:
    """A check that passes up to the bound."""
    text = f"<= {bound:g}"
    return check(name, bound=text, measured=measured, passed=measured <= bound)


def student_interval(
    values: Sequence[float], *, split_sizes: tuple[int, int] | None = None
) -> tuple[float, float] | None:
    """The 95 % Student-t interval of the mean; None for one value or non-finite ones.

    `ensjax.scores.t_interval` for the numbers of a report; with `split_sizes` (rows
    that are not tested on, and test rows, of splits of the same rows) Nadeau and
    Bengio's `corrected_t_interval`.
    """
    # These bring JAX, which a report does not need.
    from ensjax.scores import corrected_t_interval, t_interval

    if len(values) < 2 or not all(math.isfinite(value) for value in values):
        return None
    if split_sizes is not None:
        num_train, num_test = split_sizes
        found = corrected_t_interval(values, num_train=num_train, num_test=num_test)
        return found.low, found.high
    mean = sum(values) / len(values)
    # Around the mean, so that float32 is exact to a part of the spread.
    around = t_interval(np.asarray([value - mean for value in values]))
    return mean + float(around.low), mean + float(around.high)


def share_interval(
    values: Sequence[float], *, split_sizes: tuple[int, int] | None = None
) -> tuple[float, float] | None:
    """The 95 % interval of a mean of shares, within 0 to 1; None as `student_interval`.

    Of seeds that say yes or no (all values 0 or 1) Wilson's: their spread says nothing
    where all agree, and Student's interval of 9 yes and 1 no ends at 1.13. Of other
    shares, and with `split_sizes`, that of `student_interval`, cut off at 0 and 1.

    Raises:
        ValueError: if a value does not lie between 0 and 1.
    """
    interval = student_interval(values, split_sizes=split_sizes)
    if interval is None:
        return None
    if not all(0.0 <= value <= 1.0 for value in values):
        raise ValueError(f"shares must lie between 0 and 1; got {list(values)}.")
    if split_sizes is None and all(value in (0.0, 1.0) for value in values):
        from ensjax.scores import wilson_interval

        found = wilson_interval(sum(values), len(values))
        return float(found.low), float(found.high)
    low, high = interval
    return max(low, 0.0), min(high, 1.0)


def mean_and_interval(
    values: Sequence[float], *, split_sizes: tuple[int, int] | None = None
) -> tuple[float, float, float]:
    """Mean, and the ends of `student_interval`; the mean three times without one."""
    values = [float(value) for value in values]
    mean = sum(values) / len(values)
    interval = student_interval(values, split_sizes=split_sizes)
    return (mean, mean, mean) if interval is None else (mean, *interval)


def interval_text(
    values: Sequence[float],
    *,
    split_sizes: tuple[int, int] | None = None,
    form: str = ".3f",
) -> str:
    """`mean (low to high)` for a table; the mean alone without an interval.

    Args:
        values: one per seed.
        split_sizes: as for `student_interval`.
        form: how a number is written, such as ".4g".
    """
    mean, low, high = mean_and_interval(values, split_sizes=split_sizes)
    if high > low:
        return f"{mean:{form}} ({low:{form}} to {high:{form}})"
    return f"{mean:{form}}"


def build_results(
    experiment: str,
    *,
    scalars: Mapping[str, float],
    claims: Sequence[Mapping[str, Any]] = (),
    checks: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """The content of `results.json`; numbers that are not finite become None.

    Raises:
        ValueError: if a scalar is not one number, a name comes twice, a verdict is
            unknown, or an entry lacks a field.
    """
    scalars = to_json_value(dict(scalars))
    for name, value in scalars.items():
        if isinstance(value, (bool, str, list, dict)):
            raise ValueError(f"scalar {name!r} must be one number; got {value!r}.")
    claims, checks = to_json_value(list(claims)), to_json_value(list(checks))
    for kind, entries, needed in (
        ("claim", claims, ("name", "paper", "expected", "measured", "verdict")),
        ("check", checks, ("name", "bound", "measured", "pass")),
    ):
        for entry in entries:
            missing = [field for field in needed if field not in entry]
            if missing:
                raise ValueError(f"a {kind} lacks {missing}: {entry}; use {kind}(...).")
        names = [entry["name"] for entry in entries]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"{kind} names must be unique; {twice} come twice.")
    for entry in claims:
        if entry["verdict"] not in VERDICTS:
            raise ValueError(
                f"the verdict of {entry['name']!r} must be one of {VERDICTS};"
                f" got {entry['verdict']!r}."
            )
    return {
        "experiment": experiment,
        "scalars": scalars,
        "claims": claims,
        "checks": checks,
    }


def _widened(
    interval: tuple[float, float] | None, shared_half: float
) -> tuple[float, float] | None:
    if interval is None or not shared_half:
        return interval
    middle, half = (interval[0] + interval[1]) / 2, (interval[1] - interval[0]) / 2
    half = math.hypot(half, shared_half)
    return middle - half, middle + half


def _verdict(
    interval: tuple[float, float] | None, seeds: int, side: str, bound: float
) -> str:
    if interval is None or seeds < MIN_SEEDS:
        return "undecided"
    low, high = interval
    is_above, is_below = low > bound, high < bound
    if is_above or is_below:
        return "holds" if is_above == (side == ">") else "fails"
    return "undecided"


def _sureness(entry: Mapping[str, Any]) -> tuple[int, float]:
    """Rises with how surely a value lies on the stated side."""
    rank = ("fails", "undecided", "holds").index(entry["verdict"])
    if entry["measured"] is None:
        return rank, -math.inf
    margin = entry["measured"] - entry["bound"]
    margin = margin if entry["side"] == ">" else -margin
    if entry["interval"] is None:
        return rank, margin
    half = (entry["interval"][1] - entry["interval"][0]) / 2
    return rank, margin / half if half else math.copysign(math.inf, margin)


def _check_words(certainty: str, scale: str) -> None:
    if certainty not in CERTAINTIES:
        raise ValueError(f"certainty must be one of {CERTAINTIES}; got {certainty!r}.")
    if scale not in SCALES:
        raise ValueError(f"scale must be one of {SCALES}; got {scale!r}.")
