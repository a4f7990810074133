"""Sampling an ensemble and scoring it, against loops, a simulator and other packages.

    ensjax bench emulate
    ensjax bench emulate --part sampling --levels 24 --members 512 --json emulate.json
    ensjax bench emulate --part crps --size 50x721x1440
    ensjax bench emulate --part loss --loss-size 4x721x1440
    ensjax bench emulate --part rollout,harmonics
    ensjax bench emulate --part sphere --sphere-size 1x721x620   # an accelerator
    ensjax bench emulate --part sphere --sphere-size 1x721x641 --sphere-network local
    ensjax bench emulate --compare emulate.json

Seven parts (`emulate_ways`), every way in a process of its own; its first call, with
compilation, is apart, and ways of a row are compared before they are timed:

- sampling: members per second of one start of Lorenz-96 (40 sites; a network of 3
  residual blocks of 32 channels with random weights, which cost what trained ones do;
  Heun steps), in one program, one by one, by a loop over steps and by `lax.map`.
- cost: members per second that are emulated and simulated, from the perturbed start to
  the lead: Lorenz-96 (2 time units) and, with the package dinosaur, Held-Suarez T21 (7
  days; a U-Net of 16 and 32 channels with random weights).
- crps: the mean standard CRPS of normal values, members first for ours and last for
  others, which is what each prefers. scoringrules sorts ("qd"), on every backend that
  is here; `jax` is jitted. xskillscore sorts where numba is here; else it makes all
  pairs of members, and is given some values at a time.
- loss: value and gradient of the mean almost fair CRPS (`emulate_losses`), by pairs and
  by a sort, on one device; scoringrules' JAX backend has no such form, so that its fair
  and its standard one are weighted, or the standard one by a sort is turned into it.
- rollout: steps of members a second of forecasts by four networks of Lorenz-96 (36
  sites; random weights, `emulate_rollouts`), in one program, by a loop over members, by
  `lax.map` and by a loop over steps. On a CPU the first has a device for each core and
  the others one for all, of which products this small use one. Sizes are members x
  steps; that first calls of 60 and of 600 steps differ by their arithmetic alone is
  what one compiled loop is for.
- harmonics: spherical harmonics of fields and back (`emulate_harmonics`), beside s2fft
  and torch-harmonics. Sizes are fields x latitudes.
- sphere: steps of members a second of networks on the sphere (`emulate_sphere`; random
  weights) on one device, as one program and by a loop over steps: a spherical Fourier
  neural operator (spectral), or FourCastNet 3 with its local filters. Sizes are members
  x latitudes x width; 721 and 620, or 641 of local, are the published ones, each of
  which wants some 40 GB of memory.

Repetitions take turns, and a way that has used its seconds has no more of them; medians
are compared. All is float32. Progress is said before each way's first call, after each
round, and every half minute in between.
"""

import contextlib
import os
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rich.console
import rich.table

from ensjax.experiment import exit_codes
from ensjax.experiment.configs import load_module
from ensjax.experiment.parser import OneLineParser
from ensjax.experiment.versions import collect_versions, package_version


def _load(name):
    return load_module(Path(__file__).with_name(f"{name}.py"), "bench")


clocks = _load("emulate_clock")
files = _load("benchmark_files")
ways = _load("emulate_ways")

SUITE = "emulate"
SIZES = ("50x721x1440", "1024x64x32")
# Parts whose rows are sizes, with the option that gives them.
SIZED = {
    "crps": ("size", SIZES),
    "loss": ("loss-size", ("4x721x1440", "16x181x360", "64x64x128")),
    "rollout": ("rollout-size", ("512x60", "512x600")),
    "harmonics": ("harmonics-size", ("64x32", "16x128")),
    "sphere": ("sphere-size", ("1x121x64",)),
}
MEANING = {
    "rollout": "members x steps",
    "harmonics": "fields x latitudes",
    "sphere": "members x latitudes x width",
}
PACKAGES = (
    "scoringrules",
    "xskillscore",
    "numba",
    "torch",
    "dinosaur",
    "s2fft",
    "torch-harmonics",
)
# Members by other programs differ by rounding, which 24 steps from noise 80 carry on,
# and so do forecasts; scores and waves by that of sums of float32.
TOLERANCES = {
    "sampling": 1e-2,
    "cost": float("inf"),
    "crps": 1e-4,
    "loss": 1e-4,
    "rollout": 1e-2,
    "harmonics": 1e-3,
    "sphere": 1e-2,
}
# What the rates of a part are over: the first of these in a row.
REFERENCE = dict.fromkeys(ways.PARTS, ways.OURS) | {"cost": "simulated"}
# Parts whose rates are in values, not in members.
OF_VALUES = ("crps", "loss", "harmonics")
SECONDS_OF_SILENCE = 30.0
COST_TARGET = 0.1  # "below 1/10 of the operational system", Li et al. 2024, abstract


def main(arguments: Sequence[str] = ()) -> int:
    """Runs the parts asked for, prints the table; returns the exit code.

    Raises:
        ConfigError: for a file that cannot be compared with, before anything is run.
    """
    options = _options(arguments)
    console = rich.console.Console()
    wide = rich.console.Console(width=max(console.width, 120))
    report, show = files.begin(
        options,
        SUITE,
        lambda: collect_versions() | {name: package_version(name) for name in PACKAGES},
        measurements_of,
        make_table,
    )
    console.print(files.describe(report["versions"]))
    if not options.results:
        for part, name, numbers in _tasks(options):
            report["rows"].append(measure_row(part, name, numbers, options, console))
            files.write_report(options.json, report, arguments)
    wide.print(make_table(report["rows"]))
    show(wide)
    return exit_codes.FINISHED


def _options(arguments):
    parser = OneLineParser(prog="ensjax bench emulate", allow_abbrev=False)
    parser.add_argument(
        "--part",
        default=",".join(ways.PARTS),
        help="of %(default)s; several with commas",
    )
    parser.add_argument(
        "--system",
        default=",".join(ways.SYSTEMS),
        help="of the part cost, of %(default)s; several with commas",
    )
    parser.add_argument("--levels", type=int, default=24, help="of noise")
    parser.add_argument("--members", type=int, default=512, help="of Lorenz-96")
    parser.add_argument("--sphere-members", type=int, default=8, help="of Held-Suarez")
    parser.add_argument(
        "--alone-members", type=int, default=32, help="that are sampled one by one"
    )
    for part, (name, sizes) in SIZED.items():
        parser.add_argument(
            f"--{name}",
            default=",".join(sizes),
            help=f"of {part}: {MEANING.get(part, 'members x values')}, of %(default)s;"
            " several with commas",
        )
    parser.add_argument(
        "--sphere-network",
        default="spectral",
        choices=list(ways.sphere.BLOCKS),
        help="default: %(default)s",
    )
    every = [way for part in ways.PARTS.values() for way in part]
    parser.add_argument(
        "--ways", help=f"with commas, beside the first, of {', '.join(every)}"
    )
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument(
        "--way-seconds",
        type=float,
        default=15.0,
        help="after which a way is not repeated again; once it always is",
    )
    files.add_options(parser)
    options = parser.parse_args(list(arguments))
    for name, known in (
        ("part", list(ways.PARTS)),
        ("system", list(ways.SYSTEMS)),
        ("ways", every),
    ):
        text = getattr(options, name)
        chosen = None if text is None else [x for x in text.split(",") if x]
        for word in chosen or ():
            if word not in known:
                parser.error(f"--{name} takes {', '.join(known)}; got {word!r}")
        setattr(options, name, chosen)
    options.sizes = {
        part: _sizes(parser, part, name, getattr(options, name.replace("-", "_")))
        for part, (name, _) in SIZED.items()
    }
    if any(size[0] < 2 for size in options.sizes["loss"]):
        parser.error("--loss-size has at least 2 members")
    for part in MEANING:
        length, least = (3, 1) if part == "sphere" else (2, 8)
        if any(len(s) != length or min(s) < least for s in options.sizes[part]):
            parser.error(f"--{part}-size is {MEANING[part]}, each at least {least}")
    if any(size[1] < 17 for size in options.sizes["sphere"]):
        parser.error("--sphere-size has at least 17 latitudes")
    if options.levels < 2 or options.repetitions < 1 or options.way_seconds < 0:
        parser.error(
            "--levels is at least 2, --repetitions 1 and --way-seconds not negative"
        )
    least = ways.NUM_COMPARED
    for name in ("members", "sphere_members", "alone_members"):
        if getattr(options, name) < least:
            parser.error(f"--{name.replace('_', '-')} must be at least {least}")
    return options


def _sizes(parser, part, name, text):
    """Sizes such as 50x721x1440, of which there are several with commas."""
    sizes = []
    for word in text.split(","):
        try:
            size = tuple(int(number) for number in word.split("x"))
        except ValueError:
            size = ()
        if len(size) < 2 or min(size) < 1:
            parser.error(
                f"--{name} is {MEANING.get(part, 'members x values')}, such as"
                f" {SIZED[part][1][0]}; got {word!r}"
            )
        sizes.append(size)
    return sizes


def _tasks(options):
    """Of each row: its part, its name, and the numbers that its ways are given."""
    tasks = []
    for part in options.part:
        if part in SIZED:
            sizes = options.sizes[part]
            rest = [options.sphere_network] if part == "sphere" else []
            tasks += [
                (part, " ".join(["x".join(map(str, s)), *rest]), [*s, *rest])
                for s in sizes
            ]
            continue
        for system in ["lorenz96"] if part == "sampling" else options.system:
            is_sphere = system == "held_suarez"
            members = options.sphere_members if is_sphere else options.members
            numbers = [system, options.levels, members, options.alone_members]
            tasks.append((part, f"{system} {members}x{options.levels}", numbers))
    return tasks


def measure_row(
    part: str,
    name: str,
    numbers: Sequence[Any],
    options: Any,
    console: rich.console.Console,
) -> dict[str, Any]:
    """The times of all ways of one row.

    Returns:
        What the table shows and the JSON holds: `made` by one call (members, or
        values), `seconds` (medians of a call), `all_seconds`, `first_seconds` (with
        compilation), `compile_seconds`, `peak_bytes` (memory of its process, or of its
        accelerator), `rates` (made a second), `ratios` of rates (of the reference over
        the way's), `largest_difference` from the first way, and `missing` ways, why.

    Raises:
        RuntimeError: if a way gives something else than the first one.
    """
    own = ways.PARTS[part]
    first_way, *others = own
    if options.ways is not None and part != "cost":
        others = [way for way in others if way in options.ways]
    processes, first, made, differences, missing, peak = {}, {}, {}, {}, {}, {}
    compiled = {}
    compared: np.ndarray = np.zeros(0)
    try:
        for way in (first_way, *others):
            console.print(f"{part} {name}: first call of {way}", highlight=False)
            on_all = way in ways.ON_ALL_DEVICES
            process = clocks.Way(part, way, numbers, on_all=on_all)
            with _progress(console, way):
                answer = process.prepare()
            if "missing" in answer:
                console.print(f"not measured: {answer['missing']}", highlight=False)
                missing[way] = answer["missing"]
                process.close()
                continue
            processes[way] = process
            first[way], made[way] = answer["seconds"], answer["made"]
            peak[way], compiled[way] = answer["peak_bytes"], answer["compile_seconds"]
            found = np.asarray(answer["compared"])
            compared = found if way == first_way else compared
            differences[way] = _difference(part, way, found, compared)
        times: dict[str, list[float]] = {way: [] for way in processes}
        for number in range(options.repetitions):
            left = [w for w in processes if sum(times[w]) < options.way_seconds]
            if not left:
                break
            turn = number % len(left)
            for way in left[turn:] + left[:turn]:
                with _progress(console, way):
                    times[way].append(processes[way].seconds())
            console.print(
                f"repetition {number + 1} of {options.repetitions}: {len(left)} ways,"
                f" {sum(times[way][-1] for way in left):.1f} s",
                highlight=False,
            )
    finally:
        for process in processes.values():
            process.close()
    seconds = {way: statistics.median(values) for way, values in times.items()}
    rates = {way: made[way] / value for way, value in seconds.items()}
    reference = rates.get(REFERENCE[part])
    return {
        "part": part,
        "name": name,
        "numbers": list(numbers),
        "dtype": "float32",
        "weights": None if part in OF_VALUES else "random",
        "made": made,
        "seconds": seconds,
        "all_seconds": times,
        "first_seconds": first,
        "compile_seconds": compiled,
        "peak_bytes": peak,
        "rates": rates,
        "ratios": {w: reference / rate for w, rate in rates.items()}
        if reference
        else {},
        "largest_difference": differences,
        "missing": missing,
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


@contextlib.contextmanager
def _progress(console, way):
    """Says now and then that a way is still at it."""
    is_done, start = threading.Event(), time.monotonic()

    def tell():
        while not is_done.wait(SECONDS_OF_SILENCE):
            seconds = time.monotonic() - start
            console.print(f"{way}: for {seconds:.0f} s so far", highlight=False)

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        is_done.set()
        teller.join()


def _difference(part, way, found, first) -> float:
    """The largest difference from what the first way gives.

    Raises:
        RuntimeError: if it is not the same, which would make times meaningless.
    """
    if part == "cost":
        return float("nan")  # a network with random weights is no simulator
    difference = float(np.abs(found - first).max()) if found.size else 0.0
    scale = float(np.abs(first).max()) if first.size else 1.0
    if found.shape != first.shape or not difference <= TOLERANCES[part] * scale:
        raise RuntimeError(
            f"{way} gives something else than the first way of {part}: they differ by"
            f" {difference:.3g}, where the largest value is {scale:.3g}."
        )
    return difference


def measurements_of(row: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name of a row and what is compared of it: the times of all ways."""
    return f"{row['part']} {row['name']}", {
        way: files.Measurement(tuple(times), "s")
        for way, times in row["all_seconds"].items()
    }


def make_table(rows: list[dict[str, Any]]) -> rich.table.Table:
    """All rows: rates of every way with their quartiles, and ratios."""
    table = rich.table.Table(
        title="sampling, simulating and scoring ensembles, float32",
        caption="Rates: members a second (crps, loss, harmonics: million values;"
        " rollout, sphere: steps of members), from the median \\[quartiles] of"
        " repetitions."
        " Ratio: our rate over the way's (above 1 ours is faster); of cost, what a"
        " member costs over a simulated one. Networks have random weights. xskillscore"
        " sorts only where numba is installed.",
    )
    columns = ("row", "way", "rate", "ratio", "made a call", "first call s")
    columns = (*columns, "compiled s", "peak GB")
    for column in columns:
        table.add_column(column)
    for row in rows:
        title = f"{row['part']} {row['name']}"
        scale = 1e6 if row["part"] in OF_VALUES else 1
        for way, rate in row["rates"].items():
            made, peak = row["made"][way], row.get("peak_bytes", {}).get(way)
            compiled = row.get("compile_seconds", {}).get(way)
            low, high = np.percentile(row["all_seconds"][way], [25, 75])
            table.add_row(
                title,
                way,
                f"{rate / scale:.4g} [{made / high / scale:.4g},"
                f" {made / low / scale:.4g}]".replace("[", "\\["),
                f"{row['ratios'][way]:.3g}" if way in row["ratios"] else "-",
                f"{made:,}",
                f"{row['first_seconds'][way]:.1f}",
                "-" if compiled is None else f"{compiled:.2f}",
                f"{peak / 1e9:.2f}" if peak else "-",
            )
        for way, reason in row["missing"].items():
            table.add_row(title, way, f"not measured: {reason}")
        verdict = _verdict(row)
        if verdict:
            table.add_row("", verdict)
        table.add_section()
    return table


def _verdict(row):
    """One line on a row: the strongest of the others, or what a member costs."""
    ratios = row["ratios"]
    if row["part"] == "cost":
        if not {"emulated", "simulated"} <= set(ratios):
            return ""
        cost = ratios["emulated"]
        words = "below" if cost < COST_TARGET else "not below"
        return f"an emulated member costs {cost:.3g} simulated ones: {words} a tenth"
    others = {w: ratio for w, ratio in ratios.items() if not w.startswith(ways.OURS)}
    if not others:
        return ""
    best = min(others, key=others.get)
    return f"{others[best]:.3g} x the fastest other way, {best}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
