"""What a long run of many members costs beside its steps, and what fits.

    ensjax bench scale
    ensjax bench scale --rows guard,save --repetitions 41 --json scale.json
    ensjax bench scale --compare scale.json

Groups of rows: `start` (with an empty and a filled compilation cache), `many` (1,000
and 10,000 small members), `guard` (the health of members, watched or not), `save`
(steps with and without a save) and `memory` (members per GiB by the compiled step). A
ratio has a 95 % interval over the repetitions, which take turns (`scale_timing`).
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import rich.console
import rich.markup
import rich.progress
import rich.table

from ensjax.experiment import exit_codes
from ensjax.experiment.configs import load_module
from ensjax.experiment.parser import OneLineParser
from ensjax.mesh import use_cpu_cores


def _beside(name):
    return load_module(Path(__file__).with_name(f"{name}.py"), "bench")


files = _beside("benchmark_files")
timing = _beside("scale_timing")
memory = _beside("scale_memory")
processes = _beside("scale_processes")

SUITE = "scale"
# The first two run in processes of their own, before this one takes the devices.
GROUPS = ("start", "many", "guard", "save", "memory")
# A repetition is a minute of two CPU cores for the main job's saves, and two starts.
MOST_REPETITIONS = {"save": 5, "start": 3}
TABLE_WIDTH = 150


def main(arguments: Sequence[str] = ()) -> int:
    """Runs the groups asked for, prints the table; returns the exit code.

    Raises:
        ConfigError: for a file that cannot be compared with, before anything is run.
    """
    options = _options(arguments)
    use_cpu_cores()
    console = rich.console.Console()
    wide = rich.console.Console(width=max(console.width, TABLE_WIDTH))
    report, show = files.begin(
        options, SUITE, processes.collect_versions, measurements_of, make_table
    )
    console.print(files.describe(report["versions"]))
    if not options.results:
        _measure(options, arguments, report, console)
    wide.print(make_table(report["rows"]))
    show(wide)
    return exit_codes.FINISHED


def _options(arguments):
    parser = OneLineParser(prog="ensjax bench scale", allow_abbrev=False)
    parser.add_argument(
        "--rows", default=",".join(GROUPS), help="groups, of %(default)s"
    )
    parser.add_argument(
        "--repetitions",
        type=int,
        default=15,
        help="of each timed way (%(default)s; saves at most 5, starts at most 3)",
    )
    files.add_options(parser)
    options = parser.parse_args(list(arguments))
    options.rows = options.rows.split(",")
    for name in options.rows:
        if name not in GROUPS:
            parser.error(f"--rows takes {', '.join(GROUPS)}; got {name!r}")
    options.rows.sort(key=GROUPS.index)
    if options.repetitions < 1:
        parser.error("--repetitions must be at least 1")
    return options


def _measure(options, arguments, report, console):
    """Adds every row to the report, and writes it after each part."""
    parts = [part for group in options.rows for part in _parts(group, options)]
    with files.make_progress(console) as progress:
        task = progress.add_task("", total=sum(part["advances"] for part in parts))
        for part in parts:
            progress.update(task, description=part["title"])
            rows = part["run"](lambda: progress.advance(task))
            for row in rows:
                row["load"] = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
                console.print(_one_line(row))
            report["rows"] += rows
            files.write_report(options.json, report, arguments)


def _parts(group, options):
    """What a group runs: titles, and functions of a callback for the progress."""
    repetitions = min(
        options.repetitions, MOST_REPETITIONS.get(group, options.repetitions)
    )

    def part(title, advances, run):
        return {"title": f"{group}: {title}", "advances": advances, "run": run}

    if group == "guard":
        return [
            part(
                f"{name}, M = {members}",
                repetitions,
                lambda advance, name=name, members=members: timing.measure_guard(
                    name, members, repetitions=repetitions, advance=advance
                ),
            )
            for name, sizes in timing.GUARDED.items()
            for members in sizes
        ]
    if group == "save":
        return [
            part(
                name,
                2 * repetitions,
                lambda advance, name=name: timing.measure_saves(
                    name, repetitions=repetitions, advance=advance
                ),
            )
            for name in timing.SAVED
        ]
    if group == "start":
        return [
            part(
                spec,
                repetitions,
                lambda advance, spec=spec: processes.measure_start(
                    spec, repetitions=repetitions, advance=advance
                ),
            )
            for spec in processes.STARTED
        ]
    if group == "memory":
        return [
            part(
                name,
                len(memory.BLOCKS),
                lambda advance, name=name: memory.measure_memory(name, advance),
            )
            for name in memory.MODELS
        ]
    return [
        part(
            f"{members:,} members",
            0,
            lambda advance, members=members, most=most: processes.measure_many(
                members, most
            ),
        )
        for members, most in processes.MANY
    ]


UNITS = {"members per GiB": "members", "members per s": "1/s", "peak bytes": "B"}
HIGHER_IS_BETTER = ("members per GiB", "members per s")


def measurements_of(row: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name of a row and what is compared of it."""
    found = {}
    for name, values in row.get("measurements", {}).items():
        found[name] = files.Measurement(
            tuple(float(value) for value in values),
            UNITS.get(name, name.split()[0]),
            higher_is_better=name in HIGHER_IS_BETTER,
            is_exact=name == "members per GiB",
        )
    return row["name"], found


def make_table(rows: list[dict[str, Any]]) -> rich.table.Table:
    """All rows: what was measured, its interval, target and verdict."""
    table = rich.table.Table(
        title="What a long run costs beside its steps",
        caption="Ratios are of medians, in brackets their 95 % interval over the"
        " repetitions, without compilation unless it says so; undecided: the interval"
        " holds the target. The compile time of memory rows is that of their search.",
    )
    for column in ("group", "model", "what"):
        table.add_column(column, overflow="fold")
    for column in ("M", "batch", "dtype", "devices", "value", "target", "compile s"):
        table.add_column(column, justify="right")
    table.add_column("verdict, notes", overflow="fold")
    for row in rows:
        compile_seconds = row.get("compile_seconds")
        table.add_row(
            row["group"],
            row["title"],
            row.get("what", "-"),
            f"{row['members']:,}",
            str(row["batch"]),
            row["dtype"],
            str(row.get("devices", "-")),
            _value(row),
            f"{row['target']:g}" if "target" in row else "-",
            "-" if compile_seconds is None else f"{compile_seconds:.1f}",
            "; ".join(str(row[name]) for name in ("verdict", "note") if row.get(name)),
        )
    return table


def _value(row):
    if "ratio" in row:
        low, high = row["interval"]
        return f"{row['ratio']:.3f} [{low:.3f}, {high:.3f}]"
    if "measurements" not in row:
        return "-"
    return f"{next(iter(row['measurements'].values()))[0]:.4g}"


def _one_line(row):
    text = f"{row['name']}: {row.get('what', '')} {_value(row)}"
    extra = [str(row[name]) for name in ("verdict", "note") if row.get(name)]
    # Brackets are markup to rich.
    return rich.markup.escape("; ".join([text, *extra]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
