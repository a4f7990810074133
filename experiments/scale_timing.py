"""What watching members and saving them costs a step, for `bench_scale`.

Ways take turns in one process and are compared by ratios of medians, with a 95 %
bootstrap interval over the repetitions: a cost is "ok" or a "DEFECT" only where the
interval lies on one side of its target. Times are those of `fit` itself, without
compilation.
"""

import dataclasses
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

import ensjax
from ensjax import losses
from ensjax.checkpoint import Checkpoints
from ensjax.experiment.configs import load_module

alternatives = load_module(Path(__file__).with_name("engine_alternatives.py"), "bench")

# A fit of a repetition trains for about this long, in seconds.
MIN_SECONDS = 1.0

POLICIES = ("freeze", "rollback", "reseed")
GUARDED = {"mlp-small": (16, 64), "mlp-large": (16, 64)}
GUARD_TARGET = 1.01  # at M = 64

_WORKLOADS = alternatives.WORKLOADS
# 48 members of configs/deep_ensemble.py, which holds out 400 of 4,000 rows and saves
# every 56 steps; and a dense job whose checkpoint is ten times as large.
SAVED = {
    "cnn": (
        dataclasses.replace(
            _WORKLOADS["cnn"], num_examples=3_600, title="CNN of deep_ensemble.py"
        ),
        48,
        56,
    ),
    "mlp-large": (_WORKLOADS["mlp-large"], 64, 62),
}
MAIN_JOB = "cnn"
SAVE_TARGET = 1.05  # of the main job
IDLE_CALLS = 5


def ratio_of(
    values: Sequence[float], base: Sequence[float], *, resamples: int = 2_000
) -> tuple[float, tuple[float, float]]:
    """The ratio of medians, and its 95 % interval from resampled repetitions.

    Args:
        values: of one way, by repetition.
        base: of the other, from the same repetitions.
        resamples: of the bootstrap.
    """
    values, base = np.asarray(values, float), np.asarray(base, float)
    chosen = np.random.default_rng(0).integers(0, len(values), (resamples, len(values)))
    ratios = np.median(values[chosen], axis=1) / np.median(base[chosen], axis=1)
    low, high = np.percentile(ratios, [2.5, 97.5])
    return float(np.median(values) / np.median(base)), (float(low), float(high))


def verdict(interval: tuple[float, float], most: float) -> str:
    """Whether an interval lies below its target: "ok", "DEFECT" or "undecided"."""
    if interval[1] <= most:
        return "ok"
    return "DEFECT" if interval[0] > most else "undecided"


class Fits:
    """Calls of `fit` of one workload and ensemble size, as ways that take turns."""

    def __init__(self, workload: Any, num_members: int):
        self.workload, self.num_members = workload, num_members
        self._data = workload.data()
        self._ensemble = ensjax.Ensemble.init(
            self.make_model, num_members=num_members, seed=alternatives.SEED
        )
        self._calls = 1
        self.compile_seconds = {}

    def make_model(self, rngs: nnx.Rngs) -> nnx.Module:
        """One member."""
        return self.workload.make_model(rngs, "auto")

    def seconds_per_step(self, way: str, *, calls: int | None = None, **options) -> Any:
        """Seconds of a step of all members, by the pace that `fit` measured."""
        per_call = self.workload.steps_per_call
        _, log = ensjax.fit(
            self._ensemble,
            self._data,
            loss=losses.cross_entropy,
            make_tx=alternatives.adam,
            hyper=alternatives.LEARNING_RATE,
            steps=per_call * (calls or self._calls),
            steps_per_call=per_call,
            log_every_steps=per_call * (calls or self._calls),
            batch_size=self.workload.batch_size,
            progress=False,
            **options,
        )
        self.compile_seconds.setdefault(way, log.compile_seconds)
        return 1 / log.steps_per_second

    def choose_length(self, way: str, **options) -> None:
        """So many calls of the program that a fit trains for about `MIN_SECONDS`."""
        self.seconds_per_step(way, calls=1, **options)  # compiles
        once = self.seconds_per_step(way, calls=1, **options)
        seconds = once * self.workload.steps_per_call
        self._calls = max(1, round(MIN_SECONDS / seconds))


def measure_guard(
    name: str,
    num_members: int,
    *,
    repetitions: int,
    advance: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """A row for each policy of health: the time of a step over that without a guard."""
    workload = _WORKLOADS[name]
    about = _about("guard", workload, num_members)
    fits = Fits(workload, num_members)
    reseed = ensjax.Health(policy="reseed", make_model=fits.make_model)
    ways = {
        policy: {"health": reseed if policy == "reseed" else policy}
        for policy in ("off", *POLICIES)
    }
    fits.choose_length("off", **ways["off"])
    for way, options in ways.items():
        fits.seconds_per_step(way, calls=1, **options)
    times = {way: [] for way in ways}
    for repetition in range(repetitions):
        for way in in_turn(list(ways), repetition):
            seconds = fits.seconds_per_step(way, **ways[way])
            times[way].append(1e3 * seconds)
        advance()
    rows = []
    for policy in POLICIES:
        ratio, interval = ratio_of(times[policy], times["off"])
        row = {
            **about,
            "name": f"guard {name} {policy} M={num_members}",
            "title": f"{workload.title}, health={policy!r}",
            "what": "step / step without a guard",
            "ratio": ratio,
            "interval": list(interval),
            "compile_seconds": fits.compile_seconds[policy],
            "measurements": {
                "ms per step": times[policy],
                "ms per step, off": times["off"],
            },
        }
        if num_members == 64:
            row |= {"target": GUARD_TARGET, "verdict": verdict(interval, GUARD_TARGET)}
        rows.append(row)
    return rows


def measure_saves(
    name: str,
    *,
    repetitions: int,
    advance: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """Two rows: `fit` with and without saves, and the steps while one save goes on."""
    workload, num_members, interval = SAVED[name]
    with_saves = _fit_with_saves(workload, num_members, interval, repetitions, advance)
    in_flight = _in_flight(workload, num_members, interval, repetitions, advance)
    rows = []
    for kind, row in (("saves", with_saves), ("in flight", in_flight)):
        row = {**row, "name": f"{kind} {name} M={num_members}"}
        if name == MAIN_JOB:
            found = verdict(tuple(row["interval"]), SAVE_TARGET)
            row |= {"target": SAVE_TARGET, "verdict": found}
        rows.append(row)
    return rows


def _fit_with_saves(workload, num_members, interval, repetitions, advance):
    """A fit of three intervals that saves after each, against one that does not."""
    workload = dataclasses.replace(workload, steps_per_call=interval)
    fits = Fits(workload, num_members)
    for_saves = {"without": False, "with": True}
    times = {way: [] for way in for_saves}
    fits.seconds_per_step("without", calls=1)
    for repetition in range(repetitions):
        for way in in_turn(list(times), repetition):
            options = {}
            with tempfile.TemporaryDirectory() as folder:
                if for_saves[way]:
                    options = {"checkpoint_dir": folder, "save_every_steps": interval}
                seconds = fits.seconds_per_step(way, calls=3, **options)
            times[way].append(1e3 * seconds)
        advance()
    ratio, bounds = ratio_of(times["with"], times["without"])
    return {
        **_about("save", workload, num_members),
        "what": f"step with a save every {interval} steps / without",
        "ratio": ratio,
        "interval": list(bounds),
        "compile_seconds": fits.compile_seconds["without"],
        "measurements": {
            "ms per step": times["with"],
            "ms per step, without": times["without"],
        },
    }


def _in_flight(workload, num_members, interval, repetitions, advance):
    """Short calls of the program while a save goes on, against calls beside none."""
    steps = 2
    short = dataclasses.replace(workload, steps_per_call=steps)
    start = time.perf_counter()
    ours = alternatives.ours(short, num_members, steps_per_call=steps)
    ours.run()
    ours.run()
    compile_seconds = time.perf_counter() - start
    found = {"idle": [], "in flight": [], "blocked": [], "saving": [], "extra": []}
    with tempfile.TemporaryDirectory() as folder, Checkpoints(folder) as checkpoints:
        _save_once(checkpoints, 0, ours)  # it prepares Orbax, and its threads
        for repetition in range(repetitions):
            idle = statistics.median(_seconds(ours.run) for _ in range(IDLE_CALLS))
            once = _save_once(checkpoints, repetition + 1, ours)
            calls, seconds = once["calls"], once["seconds"]
            found["idle"].append(1e3 * idle / steps)
            found["in flight"].append(1e3 * seconds / (calls * steps))
            found["blocked"].append(1e3 * once["blocked"])
            found["saving"].append(1e3 * once["saving"])
            found["extra"].append(1e3 * (seconds - calls * idle))
            advance()
    num_bytes = sum(x.nbytes for x in jax.tree.leaves(ours.states()))
    ratio, bounds = ratio_of(found["in flight"], found["idle"])
    extra = statistics.median(found["extra"])
    of_interval = extra / (interval * statistics.median(found["idle"]))
    return {
        **_about("save", workload, num_members),
        "what": "step while a save goes on / beside none",
        "ratio": ratio,
        "interval": list(bounds),
        "compile_seconds": compile_seconds,
        "checkpoint_bytes": num_bytes,
        "extra_share_of_an_interval": of_interval,
        "note": f"a save of {num_bytes / 1e6:.0f} MB takes"
        f" {statistics.median(found['saving']) / 1e3:.2f} s, blocks"
        f" {statistics.median(found['blocked']):.0f} ms and costs {extra:.0f} ms:"
        f" {of_interval:.1%} of {interval} steps",
        "measurements": {
            "ms per step": found["in flight"],
            "ms per step, idle": found["idle"],
            "ms blocked": found["blocked"],
            "ms of a save": found["saving"],
        },
    }


def _save_once(checkpoints, step, ours):
    """Calls of the program from the start of a save until the first one after it."""
    start = time.perf_counter()
    checkpoints.save(step, ours.states(), {"step": step})
    blocked = time.perf_counter() - start
    ended = []

    def wait():
        checkpoints.wait()
        ended.append(time.perf_counter())

    waiting = threading.Thread(target=wait)
    waiting.start()
    ours.run()
    calls = 1
    while waiting.is_alive():
        ours.run()
        calls += 1
    seconds = time.perf_counter() - start
    waiting.join()
    if not ended:
        raise RuntimeError("The save failed; its traceback is above.")
    saving = ended[0] - start
    return {"calls": calls, "seconds": seconds, "blocked": blocked, "saving": saving}


def _seconds(run):
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def in_turn(names: list[str], repetition: int) -> list[str]:
    """Another one comes first every time, so that none always follows the same."""
    first = repetition % len(names)
    return names[first:] + names[:first]


def _about(group, workload, num_members):
    return {
        "group": group,
        "model": workload.name,
        "title": workload.title,
        "members": num_members,
        "batch": workload.batch_size,
        "dtype": "float32",
        "devices": len(jax.devices()),
    }
