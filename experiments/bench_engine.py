"""Stacked training against the best of what one would write instead, as ratios.

    ensjax bench engine
    ensjax bench engine --rows mlp-small,cnn --members 4 --json engine.json
    ensjax bench engine --compare engine.json

Every row is one model, batch and ensemble size, and every column a way to make the same
steps (`engine_alternatives`): repetitions take turns, and medians are compared, without
the time to compile. The ratio is the time of the best alternative over ours: above 1,
ours is faster. On a CPU ours runs on one device a core, and what has no use for that in
a process with one device (`engine_clock`); so does ours of a single member.
"""

import contextlib
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import rich.console
import rich.progress
import rich.table

from ensjax.experiment import exit_codes
from ensjax.experiment.configs import load_module
from ensjax.experiment.parser import OneLineParser
from ensjax.experiment.versions import collect_versions, package_version
from ensjax.mesh import use_cpu_cores

alternatives = load_module(Path(__file__).with_name("engine_alternatives.py"), "bench")
clocks = load_module(Path(__file__).with_name("engine_clock.py"), "bench")
files = load_module(Path(__file__).with_name("benchmark_files.py"), "bench")

SUITE = "engine"

# A repetition of each way makes whole calls for about this long, in seconds.
MIN_SECONDS = 0.2

TABLE_WIDTH = 150

# `lax.map` over members is our own program with a block of one, but for the health
# check and a number of steps that is data; a loop over scans is shown, not counted:
# nobody's baseline, but close to it.
COUNTED = ("loop", "lax.map", "torch.func")
SHOWN = ("one step a call", "loop of scans")
# What splits members over devices; the others use one.
SPLIT = ("ours", "one step a call")


def is_split(num_members: int) -> bool:
    """Whether ours takes several devices for so many members; it does not for one."""
    return alternatives.devices_for(num_members) > 1


def main(arguments: Sequence[str] = ()) -> int:
    """Runs the rows asked for, prints the table; returns the exit code.

    Raises:
        ConfigError: for a file that cannot be compared with, before anything is run.
    """
    options = _options(arguments)
    use_cpu_cores()
    console = rich.console.Console()
    # A narrow table would fold its numbers; too long lines are the lesser evil.
    wide = rich.console.Console(width=max(console.width, TABLE_WIDTH))
    report, show = files.begin(
        options,
        SUITE,
        lambda: collect_versions() | _torch_versions(options.torch),
        measurements_of,
        make_table,
    )
    console.print(_describe(report["versions"]))
    if not options.results:
        _measure(options, arguments, report, console)
    wide.print(make_table(report["rows"]))
    show(wide)
    return exit_codes.FINISHED


def _measure(options, arguments, report, console):
    """Adds every row to the report, and writes it after each one."""
    rows = [
        (alternatives.WORKLOADS[name], members)
        for name in options.rows
        for members in options.members or alternatives.WORKLOADS[name].members
    ]
    if jax.default_backend() != "cpu" and not options.members:
        rows += [
            (alternatives.WORKLOADS[name], 256)
            for name in options.rows
            if name == "mlp-small"
        ]
    here = other = clocks.Clock()
    with contextlib.ExitStack() as cleanup:
        if jax.default_backend() == "cpu" and not options.one_process:
            other = clocks.OtherProcess()
            cleanup.callback(other.close)
        progress = cleanup.enter_context(files.make_progress(console))
        task = progress.add_task("", total=len(rows) * options.repetitions)
        for workload, members in rows:
            progress.update(task, description=f"{workload.title}, M = {members}")
            row = measure_row(
                workload,
                members,
                clocks={
                    way: here if way in SPLIT and is_split(members) else other
                    for way in options.ways
                },
                repetitions=options.repetitions,
                advance=lambda: progress.advance(task),
            )
            report["rows"].append(row)
            console.print(_one_line(row))
            # Now, so that nothing measured is lost when the rest is not.
            files.write_report(options.json, report, arguments)


def measurements_of(row: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name of a row and what is compared of it: the times of all ways."""
    return f"{row['model']} M={row['members']}", {
        way: files.Measurement(tuple(times), "ms")
        for way, times in row["all_milliseconds"].items()
    }


def _options(arguments):
    parser = OneLineParser(prog="ensjax bench engine", allow_abbrev=False)
    names = list(alternatives.WORKLOADS)
    parser.add_argument(
        "--rows", default=",".join(names), help="models, of %(default)s"
    )
    parser.add_argument("--members", help="ensemble sizes, such as 1,4,16")
    parser.add_argument("--repetitions", type=int, default=7)
    files.add_options(parser)
    parser.add_argument("--no-torch", dest="torch", action="store_false")
    parser.add_argument(
        "--one-process", action="store_true", help="time all ways in this process"
    )
    options = parser.parse_args(list(arguments))
    options.rows = options.rows.split(",")
    for name in options.rows:
        if name not in names:
            parser.error(f"--rows takes {', '.join(names)}; got {name!r}")
    if options.members:
        try:
            options.members = [int(number) for number in options.members.split(",")]
        except ValueError:
            parser.error(f"--members takes numbers; got {options.members!r}")
    if options.repetitions < 1 or min(options.members or [1]) < 1:
        parser.error("--repetitions and --members must be at least 1")
    ways = ("ours", *COUNTED, *SHOWN)
    options.ways = [w for w in ways if w != "torch.func" or options.torch]
    return options


def measure_row(
    workload: Any,
    num_members: int,
    *,
    clocks: dict[str, Any],
    repetitions: int = 7,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """The times of all ways to make the same steps, for one model and ensemble size.

    Args:
        workload: of `engine_alternatives.WORKLOADS`.
        num_members: M.
        clocks: what prepares and times each way (a key of `engine_alternatives.WAYS`).
        repetitions: of each way, taking turns.
        advance: called after each repetition.

    Returns:
        What the table shows and the JSON holds: `milliseconds` per member and step and
        `compile_seconds` of every way, the `best` of those that count, and `ratio`.
    """
    compile_seconds = {}
    for name, clock in clocks.items():
        if name == "torch.func" and not _torch_fits():
            continue
        seconds = clock.prepare(name, workload.name, num_members)
        if seconds is not None:
            compile_seconds[name] = seconds

    def time_way(name, calls):
        return clocks[name].seconds(name, calls)

    runs = list(compile_seconds)
    once = {name: time_way(name, 1) for name in runs}
    calls = {name: max(1, round(MIN_SECONDS / once[name])) for name in runs}
    steps = workload.steps_per_call * num_members  # of one call
    times = {name: [] for name in runs}
    for repetition in range(repetitions):
        for name in _in_turn(runs, repetition):
            seconds = time_way(name, calls[name])
            times[name].append(seconds * 1e3 / (steps * calls[name]))
        advance()
    for clock in set(clocks.values()):
        clock.clear()
    medians = {name: statistics.median(values) for name, values in times.items()}
    best = min((name for name in COUNTED if name in medians), key=medians.get)
    return {
        "model": workload.name,
        "title": workload.title,
        "is_convolutional": workload.is_convolutional,
        "members": num_members,
        "batch": workload.batch_size,
        "dtype": "float32",
        "steps_per_call": workload.steps_per_call,
        "milliseconds": medians,
        "all_milliseconds": times,
        "compile_seconds": {
            name: max(0.0, total - 2 * once[name])
            for name, total in compile_seconds.items()
        },
        "best": best,
        "ratio": medians[best] / medians["ours"],
        "ratio_to_loop": medians["loop"] / medians["ours"],
        "gain_of_scanning": medians["one step a call"] / medians["ours"],
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def _torch_fits():
    """Whether torch, if it is installed, has the kind of device that JAX has."""
    if jax.default_backend() == "cpu":
        return True
    if jax.default_backend() != "gpu" or package_version("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()


def _in_turn(names, repetition):
    """Another one comes first every time, so that none always follows the same."""
    first = repetition % len(names)
    return names[first:] + names[:first]


def target(row: dict[str, Any], platform: str = "cpu") -> str:
    """Whether a row reaches its target: "ok", "below goal" or "DEFECT".

    On a CPU against the best alternative; the small MLP of 64 members against the loop
    as well. On an accelerator against the loop: never slower, 0.6 M for the small MLP
    of up to 64 members, and 100 at 256.
    """
    if platform != "cpu":
        least = 1.0
        if row["model"] == "mlp-small":
            least = 100.0 if row["members"] == 256 else 0.6 * row["members"]
        reached = min(row["ratio"], row["ratio_to_loop"] / max(1.0, least))
        return "ok" if reached >= 1.0 else f"DEFECT: < {max(1.0, least):.3g} x loop"
    if row["model"] == "mlp-small" and row["members"] == 64:
        if row["ratio_to_loop"] < 5:
            return "DEFECT: < 5 x loop"
        if row["ratio_to_loop"] < 8:
            return "goal: 8 x loop"
    if row["ratio"] >= 0.95:
        return "ok"
    if row["is_convolutional"] and row["ratio"] >= 0.85:
        return "below goal"
    return "DEFECT"


def make_table(rows: list[dict[str, Any]]) -> rich.table.Table:
    """All rows: milliseconds per member and step, and what they come to."""
    ways = [
        way
        for way in ("ours", *COUNTED, *SHOWN)
        if any(way in row["milliseconds"] for row in rows)
    ]
    table = rich.table.Table(
        title="ms per member and step (float32, Adam); ratio: best alternative / ours",
        caption="Counted: " + ", ".join(w for w in ways if w in COUNTED) + ". A ratio"
        " within 5 % of 1 against lax.map, our own program in blocks of one, is 1. One"
        " step a call also makes the order of its epoch in every call.",
    )
    for column in ("model", "batch", "M", *ways):
        justify = "left" if column == "model" else "right"
        table.add_column(column, justify=justify, no_wrap=column == "model")
    for column in ("best", "ratio", "/ loop", "scan gain", "compile s", "target"):
        table.add_column(column, justify="right")
    for row in rows:
        times = [
            f"{row['milliseconds'][way]:.4g}" if way in row["milliseconds"] else "-"
            for way in ways
        ]
        table.add_row(
            row["title"],
            str(row["batch"]),
            str(row["members"]),
            *times,
            row["best"],
            f"{row['ratio']:.2f}",
            f"{row['ratio_to_loop']:.2f}",
            f"{row['gain_of_scanning']:.2f}",
            f"{row['compile_seconds']['ours']:.1f}",
            target(row, jax.default_backend()),
        )
    return table


def _one_line(row):
    return (
        f"{row['title']}, batch {row['batch']}, M = {row['members']}:"
        f" {row['milliseconds']['ours']:.4g} ms, {row['ratio']:.2f} x {row['best']},"
        f" {row['ratio_to_loop']:.2f} x loop"
    )


def _torch_versions(with_torch):
    if not with_torch or package_version("torch") is None:
        return {"torch": None}
    import torch

    return {"torch": torch.__version__, "torch_threads": torch.get_num_threads()}


def _describe(versions):
    torch = versions.get("torch")
    threads = f", torch {torch} ({versions['torch_threads']} threads)" if torch else ""
    return files.describe(versions) + threads


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
