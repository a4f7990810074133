"""A thousand mixtures of weights on three datasets, against loops over the mixtures.

    ensjax bench weights
    ensjax bench weights --size 200x2 --rows 50 --repetitions 3 --json weights.json
    ensjax bench weights --compare weights.json

Every way (`weights_ways`) gives the accuracy and the NLL of the same mixtures of the
same convolutional networks (28 x 28 images, 3 x 3 convolutions of 16, 32 and 32
channels, float32), whose values are compared before anything is timed. `bare` evaluates
as many networks without mixing any: what a sweep costs beyond it is the price of the
mixing. Repetitions take turns, medians are compared, and compilation is apart.
"""

import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import rich.console
import rich.table

from ensjax.experiment import exit_codes
from ensjax.experiment.configs import load_module
from ensjax.experiment.parser import OneLineParser
from ensjax.experiment.versions import collect_versions

files = load_module(Path(__file__).with_name("benchmark_files.py"), "bench")
ways = load_module(Path(__file__).with_name("weights_ways.py"), "bench")

SUITE = "weights"
OURS, BARE = "sweep", "bare"
SIZES = ("1000x2", "1000x16")
TARGET = 1.15  # times the bare evaluations
TOLERANCE = 1e-4


def main(arguments: Sequence[str] = ()) -> int:
    """Runs the sizes asked for, prints the table; returns the exit code.

    Raises:
        ConfigError: for a file that cannot be compared with, before anything is run.
    """
    options = _options(arguments)
    console = rich.console.Console()
    wide = rich.console.Console(width=max(console.width, 120))
    report, show = files.begin(
        options, SUITE, collect_versions, measurements_of, make_table
    )
    console.print(files.describe(report["versions"]))
    if not options.results:
        for size in options.sizes:
            row = measure_row(size, options, console)
            report["rows"].append(row)
            files.write_report(options.json, report, arguments)
    wide.print(make_table(report["rows"]))
    show(wide)
    return exit_codes.FINISHED


def _options(arguments):
    parser = OneLineParser(prog="ensjax bench weights", allow_abbrev=False)
    parser.add_argument(
        "--size",
        default=",".join(SIZES),
        help="mixtures x members, of %(default)s; several with commas",
    )
    parser.add_argument(
        "--rows", type=int, default=100, help="images of each of the three datasets"
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
        if len(size) != 2 or min(size) < 1:
            parser.error(f"--size is mixtures x members, such as 1000x2; got {text!r}")
        options.sizes.append(size)
    if options.repetitions < 1 or options.rows < 1:
        parser.error("--repetitions and --rows must be at least 1")
    return options


def measure_row(
    size: tuple[int, int], options: Any, console: rich.console.Console
) -> dict[str, Any]:
    """The times of all ways for one number of mixtures and members.

    Returns:
        What the table shows and the JSON holds: `seconds` (medians), `all_seconds`,
        `first_seconds` (with compilation), `largest_difference` from ours,
        `compilations` of ours after the first call, and `ratios` of time to ours.
    """
    task = ways.make_task(*size, options.rows)
    calls, first, differences = {}, {}, {}
    for name in options.ways:
        console.print(f"{size[0]} x {size[1]}: first call of {name}", highlight=False)
        calls[name] = ways.WAYS[name](task)
        start = time.perf_counter()
        found = calls[name]()
        first[name] = time.perf_counter() - start
        if name == OURS:
            ours = found
        elif name != BARE:
            differences[name] = _compare(name, found, ours)
    times: dict[str, list[float]] = {name: [] for name in calls}
    with jax.log_compiles(False):
        before = ways.num_programs()
        for number in range(options.repetitions):
            order = list(calls)
            for name in order[number % len(order) :] + order[: number % len(order)]:
                start = time.perf_counter()
                calls[name]()
                times[name].append(time.perf_counter() - start)
            console.print(f"repetition {number + 1} of {options.repetitions}")
        compilations = ways.num_programs() - before
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "size": list(size),
        "rows": options.rows,
        "dtype": "float32",
        "seconds": medians,
        "all_seconds": times,
        "first_seconds": first,
        "largest_difference": differences,
        "compilations": compilations,
        "ratios": {name: value / medians[OURS] for name, value in medians.items()},
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def _compare(name, found, ours) -> float:
    """The largest difference from our values.

    Raises:
        RuntimeError: if one is not ours, which would make times meaningless.
    """
    worst = 0.0
    for key, value in found.items():
        difference = float(np.max(np.abs(np.asarray(value) - ours[key])))
        # A tie that falls the other way moves one row's accuracy.
        if not difference <= TOLERANCE and key[1] != "accuracy":
            raise RuntimeError(
                f"{name} gives another {key} than ours, by {difference}: they do not"
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
    """All rows: seconds of every way and its ratio to ours."""
    table = rich.table.Table(
        title="accuracy and NLL of every mixture on three datasets, seconds",
        caption="Ratio: seconds of the way over ours. A sweep should take at most"
        f" {TARGET} times the bare evaluations.",
    )
    for column in ("mixtures x members", "way", "seconds", "ratio", "first call s"):
        table.add_column(column)
    for row in rows:
        name = " x ".join(f"{n:,}" for n in row["size"])
        for way, seconds in row["seconds"].items():
            cells = (f"{seconds:.3g}", f"{row['ratios'][way]:.2f}")
            table.add_row(name, way, *cells, f"{row['first_seconds'][way]:.1f}")
        if BARE in row["ratios"]:
            price = 1 / row["ratios"][BARE]
            verdict = "within" if price <= TARGET else "above"
            table.add_row(
                "",
                f"{price:.2f} x bare: {verdict} the target of {TARGET};"
                f" {row['compilations']} compilations after the first call",
            )
        table.add_section()
    return table


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
