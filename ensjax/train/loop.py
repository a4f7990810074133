"""The host's side of training: it feeds chunks, reads metrics, prints and saves.

All arithmetic is in the compiled programs. Between two calls of a program this loop
knows one number, the step.
"""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ensjax.checkpoint import Checkpoints
from ensjax.mapping import MeshProgram
from ensjax.mesh import fetch
from ensjax.train.progress import Pace, Progress, report_line

_REPORTS = 20


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How many steps, and after how many of them what happens (0: never)."""

    steps: int
    steps_per_call: int
    log_every_steps: int
    evaluate_every_steps: int
    save_every_steps: int

    @classmethod
    def of(
        cls,
        *,
        steps: int,
        steps_per_call: int | None,
        log_every_steps: int | None,
        evaluate_every_steps: int | None,
        save_every_steps: int | None,
    ) -> "Schedule":
        """Fills in what was left open (None) and checks that intervals are whole calls.

        Raises:
            ValueError: if a number is not positive, or an interval is no multiple of
                `steps_per_call`.
        """
        given = {
            "steps": steps,
            "steps_per_call": steps_per_call,
            "log_every_steps": log_every_steps,
            "evaluate_every_steps": evaluate_every_steps,
            "save_every_steps": save_every_steps,
        }
        for name, value in given.items():
            optional = name.startswith(("evaluate", "save"))
            if value is not None and value < (0 if optional else 1):
                raise ValueError(f"{name} must be at least 1; got {value}.")
        if log_every_steps is None:
            log_every_steps = max(1, steps // _REPORTS)
            if steps_per_call is not None:
                log_every_steps = math.ceil(log_every_steps / steps_per_call)
                log_every_steps *= steps_per_call
        if evaluate_every_steps is None:
            evaluate_every_steps = log_every_steps
        if save_every_steps is None:
            save_every_steps = log_every_steps
        intervals = {
            "log_every_steps": log_every_steps,
            "evaluate_every_steps": evaluate_every_steps,
            "save_every_steps": save_every_steps,
        }
        if steps_per_call is None:
            steps_per_call = math.gcd(*(n for n in intervals.values() if n))
        for name, value in intervals.items():
            if value % steps_per_call:
                raise ValueError(
                    f"{name}={value} must be a multiple of steps_per_call="
                    f"{steps_per_call}, since reports and saves happen between calls."
                )
        return cls(steps=steps, steps_per_call=steps_per_call, **intervals)

    def due(self, interval: int, step: int) -> bool:
        """Whether something with this interval happens after `step` steps."""
        return bool(interval) and (step % interval == 0 or step == self.steps)


@dataclasses.dataclass
class TrainingLog:
    """What happened, as NumPy arrays.

    Attributes:
        steps: `[report]`, steps done at each report.
        metrics: name -> `[report, member]`, means over the steps since the last report;
            NaN for members that made none.
        evaluation_steps: `[evaluation]`.
        evaluations: name -> `[evaluation, member]`.
        frozen_steps: `[member]`, the step at which a member was not finite; -1: never.
        stopped_steps: `[member]`, when early stopping ended a member; -1: never.
        best_steps: `[member]`, the step of the weights returned with early stopping.
        compile_seconds: tracing and compiling the training program.
        steps_per_second: mean pace without compilation; every step is of all members.
        resumed_step: where this call started.
    """

    steps: np.ndarray
    metrics: dict[str, np.ndarray]
    evaluation_steps: np.ndarray
    evaluations: dict[str, np.ndarray]
    frozen_steps: np.ndarray
    stopped_steps: np.ndarray
    best_steps: np.ndarray | None
    compile_seconds: float
    steps_per_second: float
    resumed_step: int


class _Records:
    """Metrics by step, as they go into the log and into checkpoints."""

    def __init__(self, rows=()):
        self.rows = [(int(step), dict(metrics)) for step, metrics in rows]

    def add(self, step, metrics):
        self.rows.append((step, metrics))

    def to_json(self):
        return [
            (step, {k: [float(x) for x in v] for k, v in metrics.items()})
            for step, metrics in self.rows
        ]

    def arrays(self):
        steps = np.array([step for step, _ in self.rows], np.int64)
        names = list(self.rows[-1][1]) if self.rows else []
        return steps, {
            name: np.array([metrics[name] for _, metrics in self.rows])
            for name in names
        }


class _Sums:
    """Sums of metrics since the last report, in float64."""

    def __init__(self, totals=None):
        self.totals = {k: np.asarray(v, np.float64) for k, v in (totals or {}).items()}

    def add(self, sums):
        for name, value in sums.items():
            self.totals[name] = self.totals.get(name, 0.0) + value

    def take(self):
        """Means over the steps made; NaN where there was none."""
        count = self.totals.pop("_steps")
        with np.errstate(invalid="ignore", divide="ignore"):
            means = {k: np.where(count > 0, v / count, np.nan) for k, v in self.items()}
        self.totals = {}
        return means

    def items(self):
        # A joint objective's dict is in another order; the loss comes first.
        names = sorted(self.totals, key=lambda name: (name != "loss", name))
        return [(name, self.totals[name]) for name in names if name != "_steps"]

    def to_json(self):
        return {k: [float(x) for x in v] for k, v in self.totals.items()}


def run_schedule(
    schedule: Schedule,
    program: MeshProgram,
    evaluate: Callable[..., Any] | None,
    *,
    make_states: Callable[[], Any],
    abstract_states: Callable[[], Any],
    hypers: Any,
    ids: Any,
    weights: Any,
    feed: Any,
    seed: int,
    num_members: tuple[int, ...],
    checkpoint_dir: Any,
    logger: Any,
    progress: bool,
    stopping: Any,
) -> tuple[Any, TrainingLog]:
    """Runs `program` until `schedule.steps`, from the last checkpoint if there is one.

    Returns:
        The states of all stacks (padded), and the log.
    """
    main = jax.process_index() == 0
    trim = lambda parts: _merged(fetch(parts), num_members)  # noqa: E731
    checkpoints = None if checkpoint_dir is None else Checkpoints(checkpoint_dir)
    fingerprint = {
        "seed": seed,
        "num_members": list(num_members),
        "steps_per_call": schedule.steps_per_call,
    }
    records, evaluations, sums = _Records(), _Records(), _Sums()
    step, position = 0, None
    try:
        resumed = None if checkpoints is None else checkpoints.latest_step()
        if resumed is None:
            states = make_states()
        else:
            meta = checkpoints.read_meta(resumed)
            _check_fingerprint(meta["run"], fingerprint, checkpoints.directory)
            states = checkpoints.restore(
                resumed, abstract_states(), num_members=num_members
            )
            step, position = resumed, meta["position"]
            records = _Records(meta["records"])
            evaluations = _Records(meta["evaluations"])
            sums = _Sums(meta["sums"])
        first_step = step
        pace = Pace(schedule.steps, first_step)
        show = Progress(schedule.steps, step, show=progress and main)
        if resumed is not None and step < schedule.steps:
            show.say(f"resuming from step {step} of {schedule.steps}")
        chunks = feed.chunks(position)
        try:
            frozen = np.full(sum(num_members), -1)
            stopped = frozen.copy()
            while step < schedule.steps:
                wanted = min(schedule.steps_per_call, schedule.steps - step)
                data, count = chunks.next(wanted)
                if not count:
                    raise ValueError(
                        f"The data ended after {step} of {schedule.steps} steps. Pass a"
                        " loader that can be started again, or fewer steps."
                    )
                arguments = (hypers, ids, weights, data, step)
                if step == first_step and schedule.steps_per_call > 1:
                    # No steps: this compiles, so that the pace is that of training.
                    start = time.perf_counter()
                    states, _ = jax.block_until_ready(
                        program(states, *arguments, 0, seed)
                    )
                    pace.restart(time.perf_counter() - start)
                states, new_sums = program(states, *arguments, count, seed)
                step += count
                ended = step == schedule.steps
                sums.add(trim(new_sums))
                show.advance(step)
                line = None
                shown = None
                if evaluate is not None and schedule.due(
                    schedule.evaluate_every_steps, step
                ):
                    states, shown = evaluate(states, ids, step, seed)
                    shown = trim(shown)
                    evaluations.add(step, shown)
                if schedule.due(schedule.log_every_steps, step):
                    frozen, stopped = trim(
                        tuple([s["frozen_step"], s["stopped_step"]] for s in states)
                    )
                    metrics = sums.take()
                    records.add(step, metrics)
                    line = dict(metrics)
                if shown is not None:
                    shown = {f"evaluation_{k}": v for k, v in shown.items()}
                    line = {**(line or {}), **shown}
                if line is not None:
                    show.say(report_line(step, pace, line, frozen >= 0))
                    if logger is not None and main:
                        logger.write(step, _logged(line, pace, step, frozen))
                if checkpoints and (schedule.due(schedule.save_every_steps, step)):
                    meta = {
                        "run": fingerprint,
                        "records": records.to_json(),
                        "evaluations": evaluations.to_json(),
                        "sums": sums.to_json(),
                        "position": chunks.position(),
                    }
                    checkpoints.save(step, states, meta)
                if not ended and ((frozen >= 0) | (stopped >= 0)).all():
                    show.say(f"every member has stopped; ending at step {step}")
                    break
        finally:
            show.close()
            chunks.close()
    finally:
        if checkpoints is not None:
            checkpoints.close()
    frozen, stopped = trim(tuple([s["frozen_step"], s["stopped_step"]] for s in states))
    best = None
    if stopping is not None:
        best = trim(tuple(s["best"]["step"] for s in states))
    steps, metrics = records.arrays()
    evaluation_steps, shown = evaluations.arrays()
    log = TrainingLog(
        steps=steps,
        metrics=metrics,
        evaluation_steps=evaluation_steps,
        evaluations=shown,
        frozen_steps=frozen,
        stopped_steps=stopped,
        best_steps=best,
        compile_seconds=pace.compile_seconds,
        steps_per_second=pace.steps_per_second(step) if step > first_step else math.nan,
        resumed_step=first_step,
    )
    return states, log


def _merged(parts, num_members):
    """One `[member, ...]` array per leaf from the padded stacks."""
    trimmed = [
        jax.tree.map(lambda x: np.asarray(x)[:count], part)  # noqa: B023
        for part, count in zip(parts, num_members, strict=True)
    ]
    return jax.tree.map(lambda *xs: np.concatenate(xs), *trimmed)


def _logged(metrics, pace, step, frozen):
    logged = {name: [float(x) for x in values] for name, values in metrics.items()}
    logged["steps_per_second"] = float(pace.steps_per_second(step))
    logged["compile_seconds"] = float(pace.compile_seconds)
    logged["num_not_finite"] = int((frozen >= 0).sum())
    return logged


def _check_fingerprint(stored, ours, directory):
    for name, value in ours.items():
        if stored.get(name) != value:
            raise ValueError(
                f"{directory} holds a run with {name}={stored.get(name)}, but this one"
                f" has {name}={value}. Use another directory."
            )
