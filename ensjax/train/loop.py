"""The host's side of training: it feeds chunks, reads metrics, prints and saves.

All arithmetic is in the compiled programs. Between two calls of a program this loop
knows one number, the step; it reads from the devices only when a report, an evaluation
or a save is due.
"""

import contextlib
import dataclasses
import time
import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ensjax.checkpoint import Checkpoints
from ensjax.mapping import MeshProgram
from ensjax.mesh import fetch
from ensjax.train import identity
from ensjax.train.history import History, TrainingLog
from ensjax.train.progress import Pace, Progress, report_line
from ensjax.train.schedule import Schedule


@dataclasses.dataclass(frozen=True)
class Run:
    """What one run is made of; `fit` fills it in.

    Attributes:
        schedule: steps and intervals.
        program: advances the states by many steps.
        evaluate: `evaluate(states, ids, step, seed)` -> states and metrics, or None.
        make_states: the states at step 0.
        abstract_states: their shapes and shardings.
        hypers, ids, weights: of every stack, padded.
        feed: `ResidentData` or `StreamedData`.
        seed: of the run.
        num_members: of every stack.
        num_rows: of every stack with its padding.
        identity: what must agree with a checkpoint that is resumed; JSON-able.
        initial_weights: fingerprints of every stack's weights at step 0; None where
            nothing is saved.
        keeps_best: whether the states hold best weights.
    """

    schedule: Schedule
    program: MeshProgram
    evaluate: Callable[..., Any] | None
    make_states: Callable[[], Any]
    abstract_states: Any
    hypers: Any
    ids: Any
    weights: Any
    feed: Any
    seed: int
    num_members: tuple[int, ...]
    num_rows: tuple[int, ...]
    identity: dict[str, Any]
    initial_weights: list[Any] | None
    keeps_best: bool


def run_schedule(
    run: Run, *, checkpoint_dir: Any, logger: Any, progress: bool
) -> tuple[Any, TrainingLog]:
    """Runs a program until its schedule ends, from the last checkpoint if there is one.

    Returns:
        The states of all stacks (padded), and the log.

    Raises:
        ValueError: if the checkpoint is of another run, or the data end too early.
    """
    schedule = run.schedule
    main = jax.process_index() == 0
    with contextlib.ExitStack() as cleanup:
        checkpoints = None
        if checkpoint_dir is not None:
            checkpoints = cleanup.enter_context(Checkpoints(checkpoint_dir))
        say = print if progress else warnings.warn
        states, history = _begin(run, checkpoints, say if main else lambda line: None)
        first_step = history.step
        chunks = run.feed.chunks(
            history.position, first_step=first_step, last_step=schedule.steps
        )
        cleanup.callback(chunks.close)
        pace = Pace(schedule.steps, first_step)
        show = Progress(schedule.steps, first_step, show=progress and main)
        cleanup.callback(show.close)
        num_padding = sum(run.num_rows) - sum(run.num_members)
        if num_padding:
            show.say(_padding_line(sum(run.num_members), num_padding))
        if 0 < first_step < schedule.steps and not history.has_ended:
            show.say(f"resuming from step {first_step} of {schedule.steps}")
        while history.step < schedule.steps and not history.has_ended:
            states = _call(run, states, chunks, history, pace)
            show.advance(history.step)
            states, line = _observe(run, states, history, pace)
            if line:
                frozen = history.frozen_steps >= 0
                recoveries = history.num_recoveries
                show.say(report_line(history.step, pace, line, frozen, recoveries))
                if logger is not None and main:
                    logger.write(history.step, _logged(line, pace, history))
            if checkpoints and (
                schedule.due(schedule.save_every_steps, history.step)
                or history.has_ended
            ):
                meta = {
                    "run": run.identity,
                    "initial_weights": run.initial_weights,
                    "history": history.to_json(),
                    "position": chunks.position(),
                }
                checkpoints.save(history.step, states, meta)
            if history.has_ended and history.step < schedule.steps:
                show.say(_why_ended(history))
        steps_per_second = pace.steps_per_second(history.step)
    _warn_of_frozen(history)
    best = None
    if run.keeps_best:
        best = history.merged(fetch(tuple(s["best"]["step"] for s in states)))
    return states, history.log(
        best_steps=best,
        compile_seconds=pace.compile_seconds,
        steps_per_second=steps_per_second,
        resumed_step=first_step,
        num_padding=num_padding,
    )


def _begin(run, checkpoints, say):
    """The states and the history, new or from the last whole checkpoint."""
    found = None
    if checkpoints is not None:
        found = checkpoints.newest_whole(
            lambda step: _restored(run, checkpoints, step), say=say
        )
    if found is None:
        return run.make_states(), History(run.num_members, None)
    return found[1]


def _restored(run, checkpoints, step):
    meta = checkpoints.read_meta(step)
    _check_identity(meta["run"], run.identity, checkpoints.directory)
    if step > run.schedule.steps:
        raise ValueError(
            f"{checkpoints.directory} holds step {step} of a run, but steps="
            f"{run.schedule.steps}. Pass at least {step}, or another checkpoint_dir."
        )
    states = checkpoints.restore(step, run.abstract_states, num_members=run.num_members)
    for stored, ours in zip(meta["initial_weights"], run.initial_weights, strict=True):
        if not identity.began_alike(stored, ours):
            raise ValueError(
                f"{checkpoints.directory} holds a run that began with other weights."
                " Pass the ensemble that it was started with, or another"
                " checkpoint_dir."
            )
    history = History(
        run.num_members, {**meta["history"], "position": meta["position"]}
    )
    history.read(states)
    return states, history


def _padding_line(num_members, num_padding):
    rows = num_members + num_padding
    return (
        f"{num_members} members fill {rows} rows of the devices and blocks:"
        f" {num_padding / rows:.0%} of the work is padding"
    )


def _why_ended(history):
    frozen = int((history.frozen_steps >= 0).sum())
    total = history.frozen_steps.size
    if frozen == total:
        return f"no member is finite any more; ending at step {history.step}"
    others = f", {frozen} of {total} because not finite" if frozen else ""
    return f"every member has stopped{others}; ending at step {history.step}"


def _warn_of_frozen(history):
    """Says it also where nothing is printed: these members are not what was asked."""
    bad = np.flatnonzero(history.frozen_steps >= 0)
    if not bad.size:
        return
    shown = ", ".join(
        f"{i} at step {history.frozen_steps[i]}" for i in bad[:8].tolist()
    )
    warnings.warn(
        f"{bad.size} of {history.frozen_steps.size} members were not finite and keep"
        f" the weights they had before: member {shown}{', ...' * (bad.size > 8)}. See"
        " log.frozen_steps.",
        stacklevel=4,
    )


def _call(run, states, chunks, history, pace):
    """The states after one call of the program; nothing is read from the devices."""
    schedule, step = run.schedule, history.step
    data, count = chunks.next(schedule.next_call(step))
    if not count:
        raise ValueError(
            f"The data ended after {step} of {schedule.steps} steps. Pass a loader that"
            " can be started again, or fewer steps."
        )
    arguments = (run.hypers, run.ids, run.weights, data, step)
    is_first, is_loop = not pace.is_running, schedule.steps_per_call > 1
    start = time.perf_counter()
    if is_first and is_loop:
        # No steps: this compiles, so that the pace is that of training.
        states, _ = jax.block_until_ready(run.program(states, *arguments, 0, run.seed))
        pace.begin(step, compile_seconds=time.perf_counter() - start)
    states, sums = run.program(states, *arguments, count, run.seed)
    if is_first and not is_loop:
        jax.block_until_ready(states)
        pace.begin(step + count, compile_seconds=time.perf_counter() - start)
    history.step += count
    history.add_sums(sums)
    return states


def _observe(run, states, history, pace):
    """Evaluates and reports where it is due: the states, and what is to be shown."""
    schedule, step = run.schedule, history.step
    evaluated = None
    if run.evaluate and schedule.due(schedule.evaluate_every_steps, step):
        if not pace.has_evaluated:
            jax.block_until_ready(states)  # else training would count as compiling
        start = time.perf_counter()
        states, evaluated = run.evaluate(states, run.ids, step, run.seed)
        if not pace.has_evaluated:  # this call compiled; training waited for it
            jax.block_until_ready(evaluated)
            pace.pause(time.perf_counter() - start)
            pace.has_evaluated = True
    is_due = schedule.due(schedule.log_every_steps, step)
    saves = schedule.due(schedule.save_every_steps, step)
    if evaluated is None and not is_due and not saves:
        return states, {}
    evaluated = history.read(states, evaluated)
    line = history.add_report() if is_due or history.has_ended else {}
    if evaluated is not None:
        history.add_evaluation(evaluated)
        line |= {f"evaluation_{name}": value for name, value in evaluated.items()}
    return states, line


def _logged(line, pace, history):
    logged = {name: [float(x) for x in values] for name, values in line.items()}
    logged["steps_per_second"] = float(pace.steps_per_second(history.step))
    logged["compile_seconds"] = float(pace.compile_seconds)
    logged["num_not_finite"] = int((history.frozen_steps >= 0).sum())
    if history.num_recoveries is not None:
        logged["num_recoveries"] = history.num_recoveries.tolist()
    return logged


def _check_identity(stored, ours, directory):
    for name, value in ours.items():
        if stored.get(name) != value:
            raise ValueError(
                f"{directory} holds a run with {name}={_short(stored.get(name))}, but"
                f" this one has {name}={_short(value)}. Pass what it was started with,"
                " or another checkpoint_dir."
            )


def _short(value):
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
