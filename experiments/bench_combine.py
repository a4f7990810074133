"""All static scores of an ensemble in one program, against NumPy, torch and others.

    ensjax bench combine
    ensjax bench combine --size 16x5000x100 --repetitions 3 --json combine.json
    ensjax bench combine --compare combine.json

Every way (`combine_ways`) computes the same scores of the same float32 logits, 64
members x 50,000 rows x 100 classes by default, in a process of its own; repetitions
take turns and medians are compared, without the time to compile or to place the logits.
Before a way is timed its scores are compared with ours. The ratio is the time of the
fastest other way that gives all scores over ours: above 1, ours is faster. That way is
code of this repository, written for a cache; the ratio to plain NumPy, a score of a
whole array after the other, is given beside it.
"""

import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import rich.console
import rich.table

from ensjax.experiment import exit_codes
from ensjax.experiment.configs import load_module
from ensjax.experiment.parser import OneLineParser
from ensjax.experiment.versions import collect_versions, package_version

clocks = load_module(Path(__file__).with_name("combine_clock.py"), "bench")
files = load_module(Path(__file__).with_name("benchmark_files.py"), "bench")
ways = load_module(Path(__file__).with_name("combine_ways.py"), "bench")

SUITE = "combine"
OURS = "ensjax"
SIZES = ("64x50000x100",)
TARGET = 5.0
# Float32 sums of up to 50,000 rows in another order, and ties broken differently.
TOLERANCE = 1e-4
PACKAGES = {name: name for name in ("torch", "scikit-learn", "torchmetrics")}


def main(arguments: Sequence[str] = ()) -> int:
    """Runs the sizes asked for, prints the table; returns the exit code.

    Raises:
        ConfigError: for a file that cannot be compared with, before anything is run.
    """
    options = _options(arguments)
    console = rich.console.Console()
    wide = rich.console.Console(width=max(console.width, 120))
    report, show = files.begin(
        options,
        SUITE,
        lambda: (
            collect_versions() | {k: package_version(v) for k, v in PACKAGES.items()}
        ),
        measurements_of,
        make_table,
    )
    console.print(files.describe(report["versions"]))
    if not options.results:
        for size in options.sizes:
            row = measure_row(size, options.ways, options.repetitions, console)
            report["rows"].append(row)
            files.write_report(options.json, report, arguments)
    wide.print(make_table(report["rows"]))
    show(wide)
    return exit_codes.FINISHED


def _options(arguments):
    parser = OneLineParser(prog="ensjax bench combine", allow_abbrev=False)
    parser.add_argument(
        "--size",
        default=",".join(SIZES),
        help="members x rows x classes, of %(default)s; several with commas",
    )
    parser.add_argument("--ways", default=",".join(w for w in ways.WAYS if w != OURS))
    parser.add_argument("--repetitions", type=int, default=5)
    files.add_options(parser)
    options = parser.parse_args(list(arguments))
    options.ways = [OURS, *(way for way in options.ways.split(",") if way)]
    for way in options.ways:
        if way not in ways.WAYS:
            parser.error(f"--ways takes {', '.join(ways.WAYS)}; got {way!r}")
    options.sizes = []
    for text in options.size.split(","):
        try:
            size = tuple(int(part) for part in text.split("x"))
        except ValueError:
            size = ()
        if len(size) != 3 or min(size) < 1 or size[2] <= ways.TOP_K:
            parser.error(
                "--size is members x rows x classes, more than"
                f" {ways.TOP_K} classes, such as 64x50000x100; got {text!r}"
            )
        options.sizes.append(size)
    if options.repetitions < 1:
        parser.error("--repetitions must be at least 1")
    return options


def measure_row(
    size: tuple[int, int, int],
    names: Sequence[str],
    repetitions: int,
    console: rich.console.Console,
) -> dict[str, Any]:
    """The times of all ways on logits of one size.

    Args:
        size: members, rows, classes.
        names: keys of `combine_ways.WAYS`, ours first.
        repetitions: of each, taking turns.
        console: where progress goes.

    Returns:
        What the table shows and the JSON holds: `seconds` (medians), `all_seconds`,
        `first_seconds` (with compilation), `peak_mib` above the logits, the number of
        `scores`, the `best` of the others that give all of them, its `ratio` to ours
        and `usual_ratio`, that of plain NumPy.
    """
    processes, row = {}, {"size": list(size), "dtype": "float32"}
    fields = ("first_seconds", "peak_mib", "scores", "largest_difference")
    row |= {field: {} for field in fields}
    try:
        for name in names:
            console.print(f"{name}: making logits, first call", highlight=False)
            process = clocks.Way(name, size)
            answer = process.prepare()
            if answer is None:
                console.print(f"{name} is not installed")
                process.close()
                continue
            processes[name] = process
            row["first_seconds"][name] = answer["seconds"]
            row["scores"][name] = len(answer["scores"])
            if name == OURS:
                ours = answer["scores"]
            row["largest_difference"][name] = _compare(name, answer["scores"], ours)
        times = {name: [] for name in processes}
        for number in range(repetitions):
            order = list(processes)
            for name in order[number % len(order) :] + order[: number % len(order)]:
                times[name].append(processes[name].seconds())
            console.print(f"repetition {number + 1} of {repetitions}")
        for name, process in processes.items():
            row["peak_mib"][name] = process.peak_mib()
    finally:
        for process in processes.values():
            process.close()
    medians = {name: statistics.median(values) for name, values in times.items()}
    others = [n for n in medians if n != OURS and n not in ways.PARTIAL]
    best = min(others, key=medians.get, default=None)
    row |= {
        "seconds": medians,
        "all_seconds": times,
        "best": best,
        "ratio": medians[best] / medians[OURS] if best else None,
        "usual_ratio": (
            medians[ways.USUAL] / medians[OURS] if ways.USUAL in medians else None
        ),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }
    return row


def _compare(name, found, ours) -> float:
    """The largest difference from our scores.

    Raises:
        RuntimeError: if one is not ours, which would make times meaningless.
    """
    worst = 0.0
    for score, value in found.items():
        difference = abs(value - ours[score])
        if not difference <= TOLERANCE:
            raise RuntimeError(
                f"{name} gives {score} = {value}, and ensjax {ours[score]}: they do not"
                " compute the same."
            )
        worst = max(worst, difference)
    return worst


def measurements_of(row: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name of a row and what is compared of it: the times of all ways."""
    return "x".join(map(str, row["size"])), {
        way: files.Measurement(tuple(times), "s")
        for way, times in row["all_seconds"].items()
    }


def make_table(rows: list[dict[str, Any]]) -> rich.table.Table:
    """All rows: seconds and memory of every way, and the ratio."""
    table = rich.table.Table(
        title="all static scores of members and ensemble, seconds",
        caption="Ratio: seconds of the way over ours. Scores: numbers of the ensemble;"
        " scikit-learn and torchmetrics have some of them. Peak: resident memory above"
        " that with the logits alone, in the first call and later ones, compiler"
        " included.",
    )
    columns = ("members x rows x classes", "way", "scores", "seconds", "ratio")
    for column in (*columns, "logits GB/s", "peak MiB", "first call s", "differs by"):
        table.add_column(column, justify="right" if column in columns[2:] else "left")
    for row in rows:
        size = " x ".join(f"{part:,}" for part in row["size"])
        bytes_read = 4 * row["size"][0] * row["size"][1] * row["size"][2]
        for way, seconds in row["seconds"].items():
            table.add_row(
                size,
                way,
                str(row["scores"][way]),
                f"{seconds:.3g}",
                f"{seconds / row['seconds'][OURS]:.2f}",
                f"{bytes_read / seconds / 1e9:.2g}",
                "-" if row["peak_mib"][way] is None else f"{row['peak_mib'][way]:.0f}",
                f"{row['first_seconds'][way]:.1f}",
                f"{row['largest_difference'][way]:.1g}",
            )
        if row["ratio"] is not None:
            verdict = "reached" if row["ratio"] >= TARGET else "below the target"
            text = f"{row['ratio']:.2f} x {row['best']}: {verdict} of {TARGET:g}"
            table.add_row("", text, *[""] * 7)
        if row.get("usual_ratio") is not None:
            text = f"{row['usual_ratio']:.2f} x {ways.USUAL}, as it is usually written"
            table.add_row("", text, *[""] * 7)
    return table


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
