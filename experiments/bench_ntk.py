"""Empirical tangent kernels of all members in one program, against loops over members.

    ensjax bench ntk
    ensjax bench ntk --size mlp:4x32 --repetitions 3 --json ntk.json
    ensjax bench ntk --compare ntk.json

The kernel `[row, row']` of an MLP (784-256-10) and of a small convolutional net (28 x
28, 8-16-16 channels), traced over 10 outputs, float32, in several ways (`ntk_ways`)
that are compared before anything is timed; torch has both its forms, contracted
Jacobians and products with vectors, in chunks. All run on the first device. Repetitions
take turns, medians are compared, and compilation is apart. FLOP/s are those that the
kernels need (every Jacobian once, half of the products) over the time, beside what one
large product of this device reaches at full float32 precision.

The sizes are the largest at which all ways and five repetitions are meant to take at
most 6 minutes on two idle cores. Work grows with members x rows^2: at mlp:16x128 it is
16 times as much, and a repetition with torch takes minutes. With 64 rows a member's
Jacobians are 0.5 GB, far beyond any cache, and members of this size run one at a time
in all ways but "all at once": more of them take longer and change no ratio.
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
from ensjax.train.progress import duration


def _load(name):
    return load_module(Path(__file__).with_name(f"{name}.py"), "bench")


files = _load("benchmark_files")
ways = _load("ntk_ways")

SUITE = "ntk"
SIZES = ("mlp:4x64", "cnn:4x64")
DTYPE = "float32"


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
        rate = ways.matmul_rate(options.matmul_size)
        console.print(f"one product of {options.matmul_size:,}: {rate / 1e9:,.1f} GF/s")
        for number, size in enumerate(options.sizes):
            rest = [f"{m}:{n}x{r}" for m, n, r in options.sizes[number + 1 :]]
            then = f"; then {', '.join(rest)}" if rest else ""
            console.print(f"size {number + 1} of {len(options.sizes)}{then}")
            row = measure_row(*size, options, console)
            report["rows"].append(row | {"matmul_flop_per_second": rate})
            files.write_report(options.json, report, arguments)
    wide.print(make_table(report["rows"]))
    show(wide)
    return exit_codes.FINISHED


def _options(arguments):
    parser = OneLineParser(prog="ensjax bench ntk", allow_abbrev=False)
    parser.add_argument(
        "--size",
        default=",".join(SIZES),
        help="model:members x rows, of %(default)s; several with commas",
    )
    parser.add_argument(
        "--ways", help=f"with commas, beside ours, of {', '.join(ways.WAYS)}"
    )
    parser.add_argument("--block-rows", type=int, help="of ours; its own rule if not")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument(
        "--matmul-size", type=int, default=2_048, help="of the product to compare with"
    )
    files.add_options(parser)
    options = parser.parse_args(list(arguments))
    if options.ways is not None:
        options.ways = [way for way in options.ways.split(",") if way]
        for way in options.ways:
            if way not in ways.WAYS:
                parser.error(f"--ways takes {', '.join(ways.WAYS)}; got {way!r}")
    options.sizes = []
    for text in options.size.split(","):
        model, _, size = text.partition(":")
        try:
            numbers = tuple(int(part) for part in size.split("x"))
        except ValueError:
            numbers = ()
        if model not in ways.MODELS or len(numbers) != 2 or min(numbers) < 1:
            parser.error(
                "--size is model:members x rows, such as mlp:4x64, of"
                f" {' and '.join(ways.MODELS)}; got {text!r}"
            )
        options.sizes.append((model, *numbers))
    for name in ("repetitions", "matmul_size", "block_rows"):
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    return options


def measure_row(
    model: str,
    num_members: int,
    num_rows: int,
    options: Any,
    console: rich.console.Console,
) -> dict[str, Any]:
    """The times of all ways for one model and size.

    Returns:
        What the table shows and the JSON holds: `seconds` (medians), `all_seconds`,
        `first_seconds` (with compilation), `largest_difference` from ours relative to
        the largest entry, `memory` of ours in bytes, `missing` ways and why, `flop`,
        `compilations` after the first call, and `ratios` of time to ours.
    """
    size = f"{model}:{num_members}x{num_rows}"
    task = ways.make_task(model, num_members, num_rows, options.block_rows)
    asked = ways.WAYS if options.ways is None else options.ways
    names = [ways.OURS, *(way for way in asked if way != ways.OURS)]
    calls, first, differences, missing = {}, {}, {}, {}
    for name in names:
        try:
            call = ways.WAYS[name](task)
        except ImportError as error:
            missing[name] = str(error)
            continue
        calls[name] = call
        start = time.perf_counter()
        found = call()
        first[name] = time.perf_counter() - start
        console.print(
            f"{size}: first call of {name}, {len(first)} of up to {len(names)}:"
            f" {duration(first[name])}"
        )
        if name == ways.OURS:
            ours = found
        differences[name] = ways.compare(name, found, ours)
    times: dict[str, list[float]] = {name: [] for name in calls}
    before = ways.num_programs()
    for number in range(options.repetitions):
        order, began = list(calls), time.perf_counter()
        for name in order[number % len(order) :] + order[: number % len(order)]:
            start = time.perf_counter()
            calls[name]()
            times[name].append(time.perf_counter() - start)
        spent, rest = time.perf_counter() - began, options.repetitions - number - 1
        console.print(
            f"{size}: repetition {number + 1} of {options.repetitions}:"
            f" {duration(spent)} | {duration(rest * spent)} left of this size"
        )
    compilations = ways.num_programs() - before
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "model": model,
        "members": num_members,
        "rows": num_rows,
        "weights": ways.num_weights(task),
        "dtype": DTYPE,
        "seconds": medians,
        "all_seconds": times,
        "first_seconds": first,
        "largest_difference": differences,
        "missing": missing,
        "memory": {name: ways.memory(task, name) for name in calls},
        "flop": ways.flop(task),
        "compilations": compilations,
        "ratios": {name: value / medians[ways.OURS] for name, value in medians.items()},
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def _name_of(row):
    return f"{row['model']}:{row['members']}x{row['rows']}"


def measurements_of(row: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name of a row and what is compared of it: the times of all ways."""
    return _name_of(row), {
        way: files.Measurement(tuple(times), "s")
        for way, times in row["all_seconds"].items()
    }


def make_table(rows: list[dict[str, Any]]) -> rich.table.Table:
    """All rows: seconds of every way, ratio to ours, memory and FLOP/s."""
    table = rich.table.Table(
        title=f"empirical tangent kernels, {DTYPE}, seconds",
        caption="Ratio: seconds of the way over ours. Memory: result, and all else that"
        " the program holds. GF/s: what the kernels need over the time; in brackets the"
        " share of what one large product reaches.",
    )
    for column in ("task", "way", "seconds", "ratio", "first call s", "MB", "GF/s"):
        table.add_column(column)
    for row in rows:
        for way, seconds in row["seconds"].items():
            rate = row["flop"] / seconds
            share = rate / row["matmul_flop_per_second"]
            memory = row["memory"].get(way) or {}
            held = " + ".join(
                f"{memory[name] / 1e6:.1f}"
                for name in ("result_bytes", "temporary_bytes")
                if name in memory
            )
            table.add_row(
                _name_of(row),
                way,
                f"{seconds:.3g}",
                f"{row['ratios'][way]:.2f}",
                f"{row['first_seconds'][way]:.1f}",
                held,
                f"{rate / 1e9:.1f} ({100 * share:.0f} %)",
            )
        for way, reason in row["missing"].items():
            table.add_row(_name_of(row), way, f"not measured: {reason}")
        table.add_row(
            "",
            f"{row['weights']:,} weights a member; {row['device']};"
            f" {row['compilations']} compilations after the first call",
        )
        table.add_section()
    return table


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
