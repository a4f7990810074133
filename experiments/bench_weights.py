"""Mixtures, soups and alignment in one call each, against loops over members.

    ensjax bench weights
    ensjax bench weights --size 200x2 --rows 50 --repetitions 3 --json weights.json
    ensjax bench weights --part alignment --members 8 --width 128
    ensjax bench weights --compare weights.json

Three parts, each with ways that are compared before anything is timed:

- mixtures (`weights_ways`): accuracy and NLL of the same mixtures of the same
  convolutional networks on three datasets (28 x 28 images, 3 x 3 convolutions of 16, 32
  and 32 channels, float32). `bare` evaluates as many networks without mixing any: what
  a sweep costs beyond it is the price of the mixing.
- soup (`soup_ways`): the greedy soup of 72 such networks.
- alignment (`alignment_ways`): the units of 32 MLPs brought into one order. Ways find
  other optima, so that their quality stands beside the time.

Repetitions take turns, medians are compared, and compilation is apart.
"""

import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import rich.console
import rich.table

from ensjax.experiment import exit_codes
from ensjax.experiment.configs import load_module
from ensjax.experiment.parser import OneLineParser
from ensjax.experiment.versions import collect_versions


def _load(name):
    return load_module(Path(__file__).with_name(f"{name}.py"), "bench")


files = _load("benchmark_files")
ways = _load("weights_ways")
PARTS = {
    "mixtures": ways,
    "soup": _load("soup_ways"),
    "alignment": _load("alignment_ways"),
}

SUITE = "weights"
SIZES = ("1000x2", "1000x16")
TARGET = 1.15  # times the bare evaluations


def main(arguments: Sequence[str] = ()) -> int:
    """Runs the parts asked for, prints the table; returns the exit code.

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
        for part, size in _tasks(options):
            row = measure_row(part, size, options, console)
            report["rows"].append(row)
            files.write_report(options.json, report, arguments)
    wide.print(make_table(report["rows"]))
    show(wide)
    return exit_codes.FINISHED


def _options(arguments):
    parser = OneLineParser(prog="ensjax bench weights", allow_abbrev=False)
    parser.add_argument(
        "--part",
        default=",".join(PARTS),
        help="of %(default)s; several with commas",
    )
    parser.add_argument(
        "--size",
        default=",".join(SIZES),
        help="mixtures x members, of %(default)s; several with commas",
    )
    parser.add_argument(
        "--rows", type=int, default=100, help="images of each data set of mixtures"
    )
    parser.add_argument("--soup-members", type=int, default=72)
    parser.add_argument("--soup-rows", type=int, default=400)
    parser.add_argument("--members", type=int, default=32, help="that are aligned")
    parser.add_argument("--width", type=int, default=512, help="of aligned MLPs")
    every = [way for part in PARTS.values() for way in part.WAYS]
    parser.add_argument(
        "--ways", help=f"with commas, beside ours, of {', '.join(every)}"
    )
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument(
        "--alignment-repetitions", type=int, default=2, help="MergeMany takes minutes"
    )
    files.add_options(parser)
    options = parser.parse_args(list(arguments))
    options.part = [part for part in options.part.split(",") if part]
    for part in options.part:
        if part not in PARTS:
            parser.error(f"--part takes {', '.join(PARTS)}; got {part!r}")
    if options.ways is not None:
        options.ways = [way for way in options.ways.split(",") if way]
        for way in options.ways:
            if way not in every:
                parser.error(f"--ways takes {', '.join(every)}; got {way!r}")
    options.sizes = []
    for text in options.size.split(","):
        try:
            size = tuple(int(part) for part in text.split("x"))
        except ValueError:
            size = ()
        if len(size) != 2 or min(size) < 1:
            parser.error(f"--size is mixtures x members, such as 1000x2; got {text!r}")
        options.sizes.append(size)
    for name in ("repetitions", "alignment_repetitions", "rows", "soup_rows", "width"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if min(options.members, options.soup_members) < 2:
        parser.error("--members and --soup-members must be at least 2")
    return options


def _tasks(options):
    sizes = {
        "mixtures": options.sizes,
        "soup": [(options.soup_members, options.soup_rows)],
        "alignment": [(options.members, options.width)],
    }
    return [(part, size) for part in options.part for size in sizes[part]]


def measure_row(
    part: str, size: tuple[int, int], options: Any, console: rich.console.Console
) -> dict[str, Any]:
    """The times of all ways of one part at one size.

    Returns:
        What the table shows and the JSON holds: `seconds` (medians), `all_seconds`,
        `first_seconds` (with compilation), `largest_difference` from ours, `quality`,
        `compilations` of ours after the first call, and `ratios` of time to ours.
    """
    own = PARTS[part]
    asked = own.DEFAULT_WAYS if options.ways is None else options.ways
    names = [own.OURS, *(way for way in own.WAYS if way in asked and way != own.OURS)]
    task = own.make_task(*size, *([options.rows] if part == "mixtures" else []))
    calls, first, differences, quality = {}, {}, {}, {}
    for name in names:
        console.print(f"{part} {size}: first call of {name}", highlight=False)
        calls[name] = own.WAYS[name](task)
        start = time.perf_counter()
        found = calls[name]()
        first[name] = time.perf_counter() - start
        if name == own.OURS:
            ours = found
        elif (difference := own.compare(name, found, ours)) is not None:
            differences[name] = difference
        quality[name] = own.quality(task, found)
    times: dict[str, list[float]] = {name: [] for name in calls}
    repetitions = options.repetitions
    if part == "alignment":
        repetitions = options.alignment_repetitions
    with jax.log_compiles(False):
        before = ways.num_programs()
        for number in range(repetitions):
            order = list(calls)
            for name in order[number % len(order) :] + order[: number % len(order)]:
                start = time.perf_counter()
                calls[name]()
                times[name].append(time.perf_counter() - start)
            console.print(f"repetition {number + 1} of {repetitions}")
        compilations = ways.num_programs() - before
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "part": part,
        "size": list(size),
        "rows": options.rows,
        "dtype": "float32",
        "seconds": medians,
        "all_seconds": times,
        "first_seconds": first,
        "largest_difference": differences,
        "quality": quality,
        "compilations": compilations,
        "ratios": {name: value / medians[own.OURS] for name, value in medians.items()},
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def _part_of(row):
    return row.get("part", "mixtures")  # older files have no others


def measurements_of(row: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name of a row and what is compared of it: the times of all ways."""
    name = "x".join(map(str, row["size"]))
    name = name if _part_of(row) == "mixtures" else f"{row['part']} {name}"
    return name, {
        way: files.Measurement(tuple(times), "s")
        for way, times in row["all_seconds"].items()
    }


SIZE_NAMES = {
    "mixtures": "{:,} mixtures of {:,}",
    "soup": "greedy soup of {:,}, {:,} rows",
    "alignment": "alignment of {:,}, width {:,}",
}


def make_table(rows: list[dict[str, Any]]) -> rich.table.Table:
    """All rows: seconds of every way, its ratio to ours and its quality."""
    table = rich.table.Table(
        title="mixtures, soups and alignment, seconds",
        caption="Ratio: seconds of the way over ours. A sweep should take at most"
        f" {TARGET} times the bare evaluations; alignment and soups should never be"
        " slower than a loop.",
    )
    for column in ("task", "way", "seconds", "ratio", "first call s", "quality"):
        table.add_column(column)
    for row in rows:
        name = SIZE_NAMES[_part_of(row)].format(*row["size"])
        for way, seconds in row["seconds"].items():
            found = row.get("quality", {}).get(way, {})
            table.add_row(
                name,
                way,
                f"{seconds:.3g}",
                f"{row['ratios'][way]:.2f}",
                f"{row['first_seconds'][way]:.1f}",
                ", ".join(f"{key} {value:.4g}" for key, value in found.items()),
            )
        if ways.BARE in row["ratios"]:
            price = 1 / row["ratios"][ways.BARE]
            verdict = "within" if price <= TARGET else "above"
            table.add_row(
                "",
                f"{price:.2f} x bare: {verdict} the target of {TARGET};"
                f" {row['compilations']} compilations after the first call",
            )
        for way, ours in PARTS["alignment"].SAME_WORK.items():
            if {way, ours} <= set(row["seconds"]):
                price = row["seconds"][ours] / row["seconds"][way]
                verdict = "no slower" if price <= 1 else "slower"
                table.add_row("", f"{ours}: {price:.2f} x {way}: {verdict}")
        table.add_section()
    return table


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
