"""Ways to run a cascade of convolutional members on digits: what early exits save.

    ensjax bench cascade
    ensjax bench cascade --rows 1024 --batch 256 --share 0.2 --json cascade.json
    ensjax bench cascade --compare cascade.json

Two stages, of one member and of one or several; a stated share of the rows goes on to
the second. Ways (`WAYS`), all in one process and compiled before they are timed:

- dense: every member on every row, one program a batch, and a selection;
- compacted: `combine.run_compacted`, rows that go on are gathered from the host;
- capacity: `combine.run_with_capacity`, one program of fixed shapes a batch;
- loop: as it is often written: the second stage on the whole batch `if` any row of it
  goes on.

Repetitions take turns and medians are compared. Ratio: seconds of the dense way over
those of the way, so that above 1 an exit pays. Operations are what the compiler counts
of the programs that ran, padding included. Before a way is timed its answers are
compared with the dense ones: those of fixed capacity with windows by ranks in a batch.
"""

import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import rich.console
import rich.table

from ensjax.experiment import exit_codes
from ensjax.experiment.configs import load_module
from ensjax.experiment.parser import OneLineParser
from ensjax.experiment.versions import collect_versions

files = load_module(Path(__file__).with_name("benchmark_files.py"), "bench")
ways = load_module(Path(__file__).with_name("cascade_ways.py"), "bench")

SUITE = "cascade"
DENSE = "dense"
# Of probabilities in float32: programs of other batch sizes round differently.
TOLERANCE = 1e-5


def main(arguments: Sequence[str] = ()) -> int:
    """Measures every combination asked for, prints the table; returns the exit code.

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
        for second in options.second:
            for batch in options.batch:
                for share in options.share:
                    row = measure_row(
                        options.rows, batch, second, share, options.repetitions
                    )
                    console.print(f"{_name(row)}: done", highlight=False)
                    report["rows"].append(row)
                    files.write_report(options.json, report, arguments)
    wide.print(make_table(report["rows"]))
    show(wide)
    return exit_codes.FINISHED


def _options(arguments):
    parser = OneLineParser(prog="ensjax bench cascade", allow_abbrev=False)
    parser.add_argument("--rows", type=int, default=4096, help="%(default)s")
    parser.add_argument("--batch", default="256,1024", help="rows at a time")
    parser.add_argument("--second", default="1,4", help="members of the second stage")
    parser.add_argument("--share", default="0.05,0.2,0.5", help="of rows that go on")
    parser.add_argument("--repetitions", type=int, default=7)
    files.add_options(parser)
    options = parser.parse_args(list(arguments))
    for name, kind in (("batch", int), ("second", int), ("share", float)):
        text = getattr(options, name)
        try:
            values = [kind(part) for part in text.split(",")]
        except ValueError:
            values = [0]
        good = all(0 < v < 1 for v in values) if name == "share" else min(values) > 0
        if not good:
            words = "shares between 0 and 1" if name == "share" else "positive numbers"
            parser.error(f"--{name} takes {words} with commas; got {text!r}")
        setattr(options, name, values)
    if options.repetitions < 1:
        parser.error("--repetitions must be at least 1")
    for batch in options.batch:
        if options.rows < batch or options.rows % batch:
            parser.error(
                f"--rows must be a multiple of every --batch; got {options.rows} and"
                f" {batch}"
            )
    return options


def measure_row(
    rows: int, batch: int, second: int, share: float, repetitions: int
) -> dict[str, Any]:
    """The times of all ways on one case.

    Args:
        rows: of the data, a multiple of `batch`.
        batch: rows at a time.
        second: members of the second stage.
        share: of rows that goes on.
        repetitions: of each way, taking turns.

    Returns:
        What the table shows and the JSON holds: `seconds` (medians), `all_seconds`,
        `first_seconds` (with compilation), `flops_per_row`, `largest_difference` and
        `share_gone_on` by way.

    Raises:
        RuntimeError: if a way does not give the dense answers, which would make times
            meaningless.
    """
    case = ways.make_case(rows, batch, second, share)
    row: dict[str, Any] = dict(rows=rows, batch=batch, second=second, share=share)
    fields = ("first_seconds", "flops_per_row", "largest_difference", "share_gone_on")
    row |= {field: {} for field in fields}
    made = {name: make(case) for name, make in ways.WAYS.items()}
    for name, way in made.items():
        start = time.perf_counter()
        output = way.run()
        row["first_seconds"][name] = time.perf_counter() - start
        expected = case.by_rank() if way.is_by_rank else case.dense()
        row["largest_difference"][name] = _compare(name, output, expected)
        row["flops_per_row"][name] = case.flops(way.stage_rows()) / rows
        row["share_gone_on"][name] = float((output.exit_stage > 0).mean())
    times: dict[str, list[float]] = {name: [] for name in made}
    for number in range(repetitions):
        order = list(made)
        for name in order[number % len(order) :] + order[: number % len(order)]:
            start = time.perf_counter()
            made[name].run()
            times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return row | {
        "seconds": medians,
        "all_seconds": times,
        "ratio": {name: medians[DENSE] / s for name, s in medians.items()},
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def _compare(name, output, expected) -> float:
    difference, others = ways.difference(output, expected)
    if not difference <= TOLERANCE or others:
        raise RuntimeError(
            f"{name} differs from the dense cascade by {difference:.1e} in a"
            f" probability, with {others} rows of another exit: they do not compute the"
            " same."
        )
    return difference


def _name(row):
    return (
        f"{row['rows']}x1+{row['second']}, batch {row['batch']}, share {row['share']:g}"
    )


def measurements_of(row: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name of a row and what is compared of it: the times of all ways."""
    return _name(row), {
        way: files.Measurement(tuple(times), "s")
        for way, times in row["all_seconds"].items()
    }


def make_table(rows: list[dict[str, Any]]) -> rich.table.Table:
    """All rows: rows a second, ratio and operations of every way."""
    table = rich.table.Table(
        title="a cascade of two stages of CNNs on 8x8 digits, float32",
        caption="Ratio: seconds of the dense way over those of the way. Operations:"
        " of the members' compiled programs, for the rows they ran on, over the dense"
        " way's.",
    )
    columns = ("members", "batch", "go on", "way", "ms", "rows/s", "ratio")
    for column in (*columns, "operations", "first call s", "differs by"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for row in rows:
        for way, seconds in row["seconds"].items():
            flops = row["flops_per_row"]
            table.add_row(
                f"1 + {row['second']}",
                f"{row['batch']:,}",
                f"{100 * row['share']:g} %",
                way,
                f"{1e3 * seconds:.3g}",
                f"{row['rows'] / seconds:,.0f}",
                f"{row['ratio'][way]:.2f}",
                f"{flops[way] / flops[DENSE]:.2f}",
                f"{row['first_seconds'][way]:.1f}",
                f"{row['largest_difference'][way]:.1g}",
            )
    return table


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
