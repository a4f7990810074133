"""Results of a benchmark as JSON, and an older file against a newer one.

A report is `{"suite", "command", "versions", "rows"}`. What is compared of a row is its
`Measurement`s, which each suite reads out of its own rows.

The rule: a measurement is worse ("SLOWER") if its median is worse than the older one by
more than the spread of the repetitions, which is the sum of both interquartile ranges.
What was measured once has no spread and is not judged; a number that is the same on
every run (bytes, members) is judged by any change.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import rich.console
import rich.progress
import rich.table
from etils import epath

from ensjax.experiment.exit_codes import ConfigError, one_line
from ensjax.experiment.json_files import check_json_option, read_json, write_json
from ensjax.experiment.versions import hardware

COMPARED_VERSIONS = ("ensjax", "git_commit", "jax", "jaxlib", "flax")


class Measurement(NamedTuple):
    """Repetitions of one number.

    Attributes:
        values: of all repetitions, or one value.
        unit: such as "ms".
        higher_is_better: as for members per second.
        is_exact: the same on every run.
    """

    values: tuple[float, ...]
    unit: str
    higher_is_better: bool = False
    is_exact: bool = False


Measurements = dict[str, dict[str, Measurement]]  # by row and name


class Change(NamedTuple):
    """One measurement of two reports; `verdict` is "same", "SLOWER", "faster", ...."""

    row: str
    name: str
    unit: str
    old: float
    new: float
    spread: float
    verdict: str


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that all suites share."""
    parser.add_argument("--json", metavar="FILE", help="write all numbers there")
    parser.add_argument(
        "--compare", metavar="OLD", help="a file of --json: what became slower?"
    )
    parser.add_argument(
        "--results", metavar="FILE", help="take these numbers, measure nothing"
    )
    parser.add_argument(
        "--force", action="store_true", help="compare other suites and hardware, too"
    )


def begin(
    options: argparse.Namespace,
    suite: str,
    collect_versions: Callable[[], dict[str, Any]],
    measurements_of: Callable[[dict], tuple[str, dict[str, Measurement]]],
    make_table: Callable[[list[dict]], rich.table.Table],
) -> tuple[dict[str, Any], Callable[[rich.console.Console], None]]:
    """Reads what the options name, before anything is measured.

    Args:
        options: with those of `add_options`.
        suite: its name.
        collect_versions: gives what is here; not called with `--results`.
        measurements_of: the name of a row, and its measurements.
        make_table: of all rows.

    Returns:
        The report: that of `--results`, or one without rows; and a function that prints
        what `--compare` asks for, when the rows are there.

    Raises:
        ConfigError: if a file cannot be read or compared with, or `--json` not be
            written.
    """
    if options.json:
        check_json_option(options.json)
    if options.results:
        report = read_report(options.results, suite, force=options.force)
        read_measurements(report, measurements_of, options.results)
        try:
            make_table(report["rows"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(
                f"{options.results}: a row lacks what the table shows"
                f" ({type(error).__name__}: {one_line(error)})."
            ) from error
    else:
        report = {"suite": suite, "command": [], "rows": []}
        report["versions"] = collect_versions()
    if not options.compare:
        return report, lambda console: None
    old = read_report(options.compare, suite, force=options.force)
    before = read_measurements(old, measurements_of, options.compare)
    if not options.force:
        check_hardware(old, report["versions"], options.compare)

    def show(console: rich.console.Console) -> None:
        after = read_measurements(report, measurements_of, str(options.results))
        print_comparison(old, report, before, after, console)

    return report, show


def write_report(
    path: str | None, report: dict[str, Any], arguments: Sequence[str]
) -> None:
    """Writes a report, if there is a path; a reader never sees half of it."""
    if path:
        command = ["bench", report["suite"], *arguments]
        write_json(epath.Path(path), {**report, "command": command})


def read_report(path: str, suite: str, *, force: bool = False) -> dict[str, Any]:
    """A report of the suite.

    Raises:
        ConfigError: if there is no such file, it is no report, or it is of another
            suite (unless `force`).
    """
    try:
        report = read_json(epath.Path(path))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {one_line(error)}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} holds no valid JSON ({one_line(error)}).") from error
    parts = {"command": list, "versions": dict, "rows": list}
    if not isinstance(report, dict):
        raise ConfigError(f"{path} is no report of ensjax bench: no JSON object.")
    for name, kind in parts.items():
        if not isinstance(report.get(name), kind):
            raise ConfigError(
                f"{path} is no report of ensjax bench: {name!r} is missing."
            )
    # Files of ensjax 0.1 name the suite in their command only.
    found = report.setdefault("suite", (report["command"] + [None, None])[1])
    if found != suite and not force:
        raise ConfigError(
            f"{path} is of the suite {found!r}, and this is {suite!r}; --force compares"
            " them all the same."
        )
    return report


def check_hardware(old: dict[str, Any], versions: dict, path: str) -> None:
    """Raises `ConfigError` unless the old report was measured on the same hardware."""
    try:
        theirs = hardware(old["versions"])
    except KeyError as error:
        raise ConfigError(f"{path} does not say its hardware ({error}).") from error
    ours = hardware(versions)
    if theirs != ours:
        raise ConfigError(
            f"{path} was measured on {theirs}, and this is {ours}; --force compares"
            " them all the same."
        )


def read_measurements(
    report: dict[str, Any],
    measurements_of: Callable[[dict], tuple[str, dict[str, Measurement]]],
    path: str,
) -> Measurements:
    """The measurements of all rows of a report.

    Args:
        report: from `read_report`.
        measurements_of: the name of a row, and its measurements; of the suite.
        path: of the report, for errors.

    Raises:
        ConfigError: if a row lacks what the suite writes; names it.
    """
    found = {}
    for number, row in enumerate(report["rows"]):
        try:
            name, measurements = measurements_of(row)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(
                f"{path}: row {number} is not one of this suite"
                f" ({type(error).__name__}: {one_line(error)})."
            ) from error
        found[name] = measurements
    return found


def compare(old: Measurements, new: Measurements) -> list[Change]:
    """Every measurement that both have."""
    changes = []
    for row, measurements in new.items():
        for name, after in measurements.items():
            before = old.get(row, {}).get(name)
            if before is None or not before.values or not after.values:
                continue
            medians = statistics.median(before.values), statistics.median(after.values)
            spread = _spread(before) + _spread(after)
            verdict = _verdict(before, after, *medians, spread)
            changes.append(Change(row, name, after.unit, *medians, spread, verdict))
    return changes


def missing_rows(old: Measurements, new: Measurements) -> tuple[list[str], list[str]]:
    """`row` or `row: measurement` that only the old report has, and only the new."""

    def names(one, other):
        found = []
        for row, measurements in one.items():
            if row not in other:
                found.append(row)
                continue
            found += [f"{row}: {name}" for name in measurements.keys() - other[row]]
        return sorted(found)

    return names(old, new), names(new, old)


def _spread(measurement):
    if len(measurement.values) < 2:
        return 0.0
    low, high = np.percentile(measurement.values, [25, 75])
    return float(high - low)


def _verdict(before, after, old, new, spread):
    if not after.is_exact and min(len(before.values), len(after.values)) < 2:
        return "measured once"
    worse = old - new if after.higher_is_better else new - old
    if abs(worse) <= spread:
        return "same"
    if after.is_exact or after.higher_is_better:
        return "WORSE" if worse > 0 else "better"
    return "SLOWER" if worse > 0 else "faster"


def print_comparison(
    old_report: dict[str, Any],
    new_report: dict[str, Any],
    old: Measurements,
    new: Measurements,
    console: rich.console.Console,
) -> None:
    """The table of old against new, the rows that one of them lacks, and the rule."""
    for name in COMPARED_VERSIONS:
        before, after = (r["versions"].get(name) for r in (old_report, new_report))
        if before != after:
            console.print(f"{name}: {before} -> {after}", highlight=False)
    changes = compare(old, new)
    table = rich.table.Table(
        title="old against new, medians",
        caption="SLOWER, WORSE: by more than the spread, the sum of both interquartile"
        " ranges of the repetitions; exact numbers by any change.",
    )
    for column in ("row", "measured", "unit"):
        table.add_column(column, no_wrap=column == "row")
    for column in ("old", "new", "new / old", "spread", "verdict"):
        table.add_column(column, justify="right")
    for change in changes:
        ratio = f"{change.new / change.old:.3f}" if change.old else "-"
        numbers = [f"{x:.4g}" for x in (change.old, change.new)]
        spread = f"{change.spread:.2g}"
        table.add_row(*change[:3], *numbers, ratio, spread, change.verdict)
    console.print(table)
    only_old, only_new = missing_rows(old, new)
    for names, where in ((only_old, "old"), (only_new, "new")):
        if names:
            console.print(f"only in the {where} file: {'; '.join(names)}")
    flagged = [c for c in changes if c.verdict in ("SLOWER", "WORSE")]
    console.print(
        f"{len(flagged)} of {len(changes)} measurements are slower or worse"
        + "".join(f"\n  {c.row}: {c.name}" for c in flagged)
    )


def describe(versions: dict[str, Any]) -> str:
    """Platform, hardware and versions on one line."""
    return (
        f"{versions['platform']}: {hardware(versions)}; jax {versions['jax']},"
        f" jaxlib {versions['jaxlib']}"
    )


def make_progress(console: rich.console.Console) -> rich.progress.Progress:
    """A bar with the time left."""
    return rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.TaskProgressColumn(),
        rich.progress.TimeElapsedColumn(),
        rich.progress.TextColumn("left:"),
        rich.progress.TimeRemainingColumn(),
        console=console,
    )
