"""The host's side of training: it feeds chunks, reads metrics, prints and saves.

All arithmetic is in the compiled programs. Between two calls of a program this loop
knows one number, the step; it reads from the devices only when a report, an evaluation
or a save is due.
"""

import contextlib
import time
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from ensjax.checkpoint import Checkpoints, DamagedCheckpoint
from ensjax.mesh import fetch
from ensjax.train.agreement import compare_operations
from ensjax.train.cohort import Cohort
from ensjax.train.elastic import (
    Origin,
    Part,
    find_origin,
    joining_directory,
    remove_joining,
    set_aside,
)
from ensjax.train.history import Times, TrainingLog, merged
from ensjax.train.preemption import Preempted, Watch
from ensjax.train.progress import Pace, Progress, report_line, some
from ensjax.train.run import Run


def run_schedule(
    run: Run,
    *,
    checkpoint_dir: Any,
    logger: Any,
    progress: bool,
    members_from: Sequence[Any] = (),
) -> tuple[Any, TrainingLog]:
    """Runs a program until its schedule ends, from the last checkpoint if there is one.

    Members that are stored after fewer steps than others, or not at all, first catch up
    as an ensemble of their own.

    Returns:
        The states of all stacks (padded), and the log.

    Raises:
        ValueError: if the checkpoint is of another run, or the data end too early.
        DamagedCheckpoint: if there are checkpoints and none is whole.
    """
    is_main = jax.process_index() == 0
    with contextlib.ExitStack() as cleanup:
        checkpoints = None
        if checkpoint_dir is None:
            everyone = Part(None, np.arange(run.total), np.zeros(0, int))
            cohort = Cohort.of(run, everyone)
        else:
            say = (print if progress else warnings.warn) if is_main else _say_nothing
            origin, cohorts = _begin(run, checkpoint_dir, members_from, say)
            shown = progress and is_main
            own = logger if is_main else None
            cohort = _catch_up(run, origin, cohorts, checkpoint_dir, own, shown)
            checkpoints = cleanup.enter_context(Checkpoints(origin.directory))
            origin.pass_over_damaged(checkpoints)
            if not origin.is_there and cohort.history.step:
                # The members have never been together on disk.
                _save(run, cohort, checkpoints, cohort.history.position)
                checkpoints.wait()
            if cohort.history.step:  # also what a kill just after that save has left
                remove_joining(checkpoint_dir, run.facts["ids"])
        first_step = cohort.history.step
        stage = _Stage(
            run,
            cohort,
            run.schedule.steps,
            checkpoints,
            logger if is_main else None,
            progress and is_main,
        )
        pace = stage.advance()
        steps_per_second = pace.steps_per_second(cohort.history.step)
    _warn_of_frozen(cohort.history, run)
    everyone, states = cohort.all_states(run)
    best = None
    if run.keeps_best:
        steps = fetch(tuple(s["best"]["step"] for s in states))
        best = merged(steps, everyone.places)
    return states, cohort.history.log(
        best_steps=best,
        compile_seconds=pace.compile_seconds,
        steps_per_second=steps_per_second,
        resumed_step=first_step,
        num_padding=sum(run.stacks.num_rows) - run.total,
    )


def run_until(run: Run, step: int, *, progress: bool) -> Any:
    """The states after some steps of a run, from its beginning; nothing is saved.

    Evaluations and reports come where they come in the whole run, since early stopping
    depends on them.
    """
    everyone = Part(None, np.arange(run.total), np.zeros(0, int))
    cohort = Cohort.of(run, everyone)
    _Stage(run, cohort, step, None, None, progress).advance()
    return cohort.states


def _say_nothing(line):
    del line


def _begin(run, checkpoint_dir, members_from, say) -> tuple[Origin, list[Cohort]]:
    """Where the run is stored, and its members as cohorts by their steps."""
    damaged: dict[tuple[str, int], str] = {}
    while True:
        origin = find_origin(run, checkpoint_dir, members_from, damaged)
        cohorts = []
        for part in origin.parts:
            try:
                cohorts.append(Cohort.of(run, part))
            except DamagedCheckpoint as error:
                damaged[part.stored.directory, part.stored.step] = str(error)
                break
        else:
            others = compare_operations(run, origin.parts, checkpoint_dir)
            for line in (*origin.notes, *others):
                say(line)
            return origin, cohorts


def _catch_up(run, origin, cohorts, checkpoint_dir, logger, show) -> Cohort:
    """All members after the most steps that any of them has made."""
    cohort = cohorts[0]
    for later in cohorts[1:]:
        if cohort.history.step < later.history.step and not cohort.has_ended:
            ids = [run.facts["ids"][place] for place in cohort.members]
            directory = joining_directory(checkpoint_dir, ids)
            with Checkpoints(directory) as checkpoints:
                is_whole = _has_whole(origin, checkpoints)
            if not is_whole:
                set_aside(directory)
            with Checkpoints(directory) as checkpoints:
                origin.pass_over_damaged(checkpoints)
                until = later.history.step
                # The lines of others at these steps are there already.
                phase = getattr(logger, "phase", None)
                own = None if phase is None else phase(f"joining-{ids[0]}-{ids[-1]}")
                _Stage(run, cohort, until, checkpoints, own, show).advance()
        cohort = cohort.join(run, later)
    return cohort


def _has_whole(origin, checkpoints):
    try:
        origin.pass_over_damaged(checkpoints)
    except DamagedCheckpoint:
        return False
    return True


class _Stage:
    """A cohort on its way to some step."""

    def __init__(self, whole, cohort, last_step, checkpoints, logger, show):
        self.whole, self.cohort, self.last_step = whole, cohort, last_step
        self.checkpoints, self.logger, self.is_shown = checkpoints, logger, show
        self.schedule, self.history = whole.schedule, cohort.history
        self.pace = Pace(last_step, cohort.history.step)
        self.start = time.perf_counter()
        self.other_seconds = 0.0  # not spent on steps
        self.row_steps = self.member_steps = 0
        self.is_told_to_end = False
        self.has_logged = False
        self.times = cohort.history.times

    def advance(self) -> Pace:
        """Trains until the step is reached, or no member changes any more."""
        with contextlib.ExitStack() as cleanup:
            first_step = self.history.step
            chunks = self.whole.feed.chunks(
                self.history.position, first_step=first_step, last_step=self.last_step
            )
            cleanup.callback(chunks.close)
            self.screen = Progress(self.last_step, first_step, show=self.is_shown)
            cleanup.callback(self.screen.close)
            self._announce()
            watch = cleanup.enter_context(Watch(saves=self.checkpoints is not None))
            while self.history.step < self.last_step and not self.cohort.has_ended:
                self._call(chunks)
                self.screen.advance(self.history.step)
                self.is_told_to_end = watch.is_told_to_end(self.history.step)
                self._observe()
                if self.checkpoints and self._saves():
                    self._save(chunks.position())
                    if self.is_told_to_end:
                        self.checkpoints.wait()
                        raise Preempted(self.history.step)
                    if self.cohort.compact(self.whole):
                        self.screen.say(self._compacted_line())
            self.history.position = chunks.position()
            if self.cohort.has_ended and self.history.step < self.last_step:
                self.screen.say(_why_ended(self.history, self.cohort.members))
            self._count_time()
            if self.row_steps and not self.is_catching_up:
                self.screen.say(_cost_line(self.history.times))
        return self.pace

    @property
    def is_catching_up(self) -> bool:
        """Whether others have made more steps."""
        return len(self.cohort.members) < self.whole.total

    def _announce(self):
        step, last = self.history.step, self.last_step
        run = self.cohort.run
        num_padding = sum(run.stacks.num_rows) - len(run.members)
        if num_padding:
            self.screen.say(_padding_line(len(run.members), num_padding))
        if self.is_catching_up:
            ids = [self.whole.facts["ids"][place] for place in self.cohort.members]
            self.screen.say(
                f"{len(ids)} members catch up from step {step} to {last} ({some(ids)})"
            )
        elif 0 < step < last and not self.cohort.has_ended:
            self.screen.say(f"resuming from step {step} of {last}")

    def _call(self, chunks):
        """One call of the program; nothing is read from the devices."""
        run, step = self.cohort.run, self.history.step
        wanted = min(self.schedule.next_call(step), self.last_step - step)
        data, count = chunks.next(wanted)
        if not count:
            raise ValueError(
                f"The data ended after {step} of {self.last_step} steps. Pass a loader"
                " that can be started again, or fewer steps."
            )
        arguments = (run.hypers, run.ids, run.weights, data, step)
        states, program = self.cohort.states, run.program
        is_first = not self.pace.is_running
        is_loop = self.schedule.steps_per_call > 1
        start = time.perf_counter()
        if is_first and is_loop:
            # No steps: this compiles, so that the pace is that of training.
            states, _ = jax.block_until_ready(program(states, *arguments, 0, run.seed))
            self._began(step, time.perf_counter() - start)
        self.cohort.states, sums = program(states, *arguments, count, run.seed)
        if is_first and not is_loop:
            jax.block_until_ready(self.cohort.states)
            self._began(step + count, time.perf_counter() - start)
        self.row_steps += count * sum(run.stacks.num_rows)
        self.member_steps += count * self.cohort.num_live
        self.history.step += count
        self.history.add_sums(sums)

    def _began(self, step, seconds):
        self.pace.begin(step, compile_seconds=seconds)
        self.other_seconds += seconds

    def _saves(self) -> bool:
        step, schedule = self.history.step, self.schedule
        is_due = schedule.due(schedule.save_every_steps, step)
        is_last = step == self.last_step or self.is_told_to_end
        return is_due or is_last or self.cohort.has_ended

    def _observe(self):
        """Evaluates and reports where it is due; prints and logs what there is."""
        schedule, step, run = self.schedule, self.history.step, self.cohort.run
        evaluated = None
        if run.evaluation and schedule.due(schedule.evaluate_every_steps, step):
            # Else training would count as evaluating.
            jax.block_until_ready(self.cohort.states)
            start = time.perf_counter()
            self.cohort.states, evaluated = run.evaluation(
                self.cohort.states, run.ids, step, run.seed
            )
            jax.block_until_ready(evaluated)
            seconds = time.perf_counter() - start
            self.other_seconds += seconds
            if not self.pace.has_evaluated:  # this call compiled
                self.pace.pause(seconds)
                self.pace.has_evaluated = True
        is_due = schedule.due(schedule.log_every_steps, step)
        saves = self.checkpoints and self._saves()
        if evaluated is None and not is_due and not saves:
            return
        evaluated = self.history.read(self.cohort.states, run.places, evaluated)
        line = {}
        if is_due or self.cohort.has_ended:
            line = self.history.add_report()
        if evaluated is not None:
            self.history.add_evaluation(evaluated)
            line = line | {f"evaluation_{n}": value for n, value in evaluated.items()}
        if line:
            self._count_time()
            history = self.history
            frozen = history.frozen_steps >= 0
            shown = report_line(
                step,
                self.pace,
                line,
                frozen,
                history.num_recoveries,
                self.whole.facts["ids"],
            )
            self.screen.say(shown)
            if self.logger is not None:
                logged = _logged(line, self.pace, history)
                if not self.has_logged:  # who the columns are, from here on
                    logged["member_ids"] = list(self.whole.facts["ids"])
                    self.has_logged = True
                self.logger.write(step, logged)

    def _save(self, position):
        start = time.perf_counter()
        self._count_time()
        _save(self.whole, self.cohort, self.checkpoints, position)
        self.other_seconds += time.perf_counter() - start

    def _count_time(self):
        devices = self.whole.stacks.mesh.size
        seconds = time.perf_counter() - self.start
        self.history.times = self.times.plus(
            Times(
                device_seconds=seconds * devices,
                step_seconds=max(0.0, seconds - self.other_seconds) * devices,
                row_steps=self.row_steps,
                member_steps=self.member_steps,
            )
        )

    def _compacted_line(self):
        run = self.cohort.run
        self.pace.restart(self.history.step)
        return (
            f"{len(run.members)} of {len(self.cohort.members)} members still change;"
            f" the others leave the program, which has {sum(run.stacks.num_rows)} rows"
            " now"
        )


def _save(whole, cohort, checkpoints, position):
    """Starts to save all members of a cohort, also those on its shelf."""
    run, states = cohort.all_states(whole)
    facts = {
        name: [values[place] for place in run.members]
        for name, values in whole.facts.items()
    }
    meta = {
        "run": whole.identity,
        "members": facts,
        "history": cohort.history.to_json(run.members),
        "position": position,
        "evaluate_every_steps": whole.schedule.evaluate_every_steps,
    }
    checkpoints.save(cohort.history.step, states, meta)


def _cost_line(times):
    return (
        f"{times.live_fraction:.0%} of the rows were members that still changed;"
        f" goodput {times.goodput:.0%}, {times.chip_hours:.2g} chip-hours"
    )


def _padding_line(num_members, num_padding):
    rows = num_members + num_padding
    return (
        f"{num_members} members fill {rows} rows of the devices and blocks:"
        f" {num_padding / rows:.0%} of the work is padding"
    )


def _why_ended(history, members):
    frozen = int((history.frozen_steps[members] >= 0).sum())
    total = len(members)
    if frozen == total:
        return f"no member is finite any more; ending at step {history.step}"
    others = f", {frozen} of {total} because not finite" if frozen else ""
    return f"every member has stopped{others}; ending at step {history.step}"


def _warn_of_frozen(history, run):
    """Says it also where nothing is printed: these members are not what was asked."""
    bad = np.flatnonzero(history.frozen_steps >= 0)
    if not bad.size:
        return
    ids = run.facts["ids"]
    shown = some(f"{ids[i]} at step {history.frozen_steps[i]}" for i in bad.tolist())
    warnings.warn(
        f"{bad.size} of {run.total} members were not finite and keep"
        f" the weights they had before: member {shown}. See"
        " log.frozen_steps.",
        stacklevel=4,
    )


def _logged(line, pace, history):
    logged = {name: [float(x) for x in values] for name, values in line.items()}
    logged["steps_per_second"] = float(pace.steps_per_second(history.step))
    logged["compile_seconds"] = float(pace.compile_seconds)
    logged["num_not_finite"] = int((history.frozen_steps >= 0).sum())
    if history.num_recoveries is not None:
        logged["num_recoveries"] = history.num_recoveries.tolist()
    times = history.times
    logged["live_fraction"] = float(times.live_fraction)
    logged["goodput"] = float(times.goodput)
    logged["chip_hours"] = float(times.chip_hours)
    return logged
