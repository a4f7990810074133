"""What happened in a run so far, on the host: it goes into checkpoints and the log."""

import dataclasses
from typing import Any

import jax
import numpy as np

from ensjax.mesh import fetch

# Calls whose metrics may be under way. The host reads none of them before a report is
# due, but it must not run ahead of the devices without end: streamed chunks would pile
# up there.
_CALLS_AHEAD = 2


@dataclasses.dataclass(frozen=True)
class Times:
    """What a run has cost so far.

    Work that was done after the last checkpoint of a killed process is not known.

    Attributes:
        device_seconds: of all calls of `fit`, times the devices of their meshes, from
            the first compilation on.
        step_seconds: of these, what went into training steps.
        row_steps: steps times rows that the devices computed, padding included.
        member_steps: steps times members that were still changing.
    """

    device_seconds: float = 0.0
    step_seconds: float = 0.0
    row_steps: float = 0.0
    member_steps: float = 0.0

    def plus(self, other: "Times") -> "Times":
        """Both together."""
        ours, theirs = dataclasses.astuple(self), dataclasses.astuple(other)
        return Times(*(a + b for a, b in zip(ours, theirs, strict=True)))

    def minus(self, other: "Times") -> "Times":
        """What came after `other`."""
        ours, theirs = dataclasses.astuple(self), dataclasses.astuple(other)
        return Times(*(a - b for a, b in zip(ours, theirs, strict=True)))

    @property
    def chip_hours(self) -> float:
        """Hours times devices (of a CPU, times its devices)."""
        return self.device_seconds / 3600

    @property
    def live_fraction(self) -> float:
        """The share of computed rows that were members which still changed."""
        return self.member_steps / self.row_steps if self.row_steps else float("nan")

    @property
    def goodput(self) -> float:
        """The share of device time that went into steps of members that still changed.

        The rest compiled, evaluated, saved, waited, or computed padding and members
        that had stopped.
        """
        if not self.device_seconds:
            return float("nan")
        return self.step_seconds / self.device_seconds * self.live_fraction


@dataclasses.dataclass
class TrainingLog:
    """What happened, as NumPy arrays.

    Attributes:
        steps: `[report]`, steps done at each report.
        metrics: name -> `[report, member]`, means over the steps since the last report;
            NaN for members that made none.
        evaluation_steps: `[evaluation]`, steps done at each evaluation.
        evaluations: name -> `[evaluation, member]`.
        frozen_steps: `[member]`, the steps that a member had made when it was found not
            finite; its weights are those after that many steps. -1: never.
        recovery_steps: `[member, recovery]`, after how many steps a member that was not
            finite was rolled back or seeded anew; -1: not. None for other policies.
        stopped_steps: `[member]`, when early stopping ended a member; -1: never.
        best_steps: `[member]`, the step of the weights returned with early stopping;
            -1 for a member that was never evaluated while it was finite.
        compile_seconds: tracing and compiling the training program, and where
            `steps_per_call` is 1 the first step.
        steps_per_second: mean pace without compilation; every step is of all members.
        resumed_step: where this call started.
        times: device time, live fraction and goodput.
        num_padding: rows beside the members that the devices computed and dropped,
            because members must fill whole blocks on every device.
        averages: states of the averages along training by name, leaves `[member, ...]`
            on the devices; for a `Group` a tuple of these.
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
    num_padding: int = 0
    averages: dict[str, Any] = dataclasses.field(default_factory=dict)
    recovery_steps: np.ndarray | None = None
    times: Times = Times()


class History:
    """Reports, evaluations, health and the sums since the last report.

    It has a column for every member of the run; those that are not in the program yet,
    or not any more, keep what was last known of them.

    Attributes:
        step: steps done.
        position: of the data stream, when this history was saved.
        frozen_steps, stopped_steps: `[member]`, as last read from the devices.
        recovery_steps: `[member, recovery]`, or None if no member recovers.
        times: of all calls of `fit` that brought the run to where it is.
    """

    def __init__(self, num_members: int):
        self._num_members = num_members
        self._reports: dict[int, dict[str, np.ndarray]] = {}
        self._evaluations: dict[int, dict[str, np.ndarray]] = {}
        self._totals: dict[str, np.ndarray] = {}
        self._pending = []
        self.step = 0
        self.position = None
        self.frozen_steps = np.full(num_members, -1)
        self.stopped_steps = np.full(num_members, -1)
        self.recovery_steps = None
        self.times = Times()

    @classmethod
    def from_json(
        cls, saved: dict[str, Any], columns: Any, places: Any, num_members: int
    ) -> "History":
        """What `to_json` gave, for some of its columns, which come to other places.

        Args:
            saved: what a checkpoint kept.
            columns: of `saved` that are taken.
            places: where each comes to.
            num_members: columns of the new history.
        """
        history = cls(num_members)

        def spread(metrics, fill):
            new = {}
            for name, values in metrics.items():
                new[name] = np.full(num_members, fill)
                new[name][places] = np.asarray(values, np.float64)[columns]
            return new

        for ours, theirs in (
            (history._reports, saved["reports"]),
            (history._evaluations, saved["evaluations"]),
        ):
            ours.update({step: spread(metrics, np.nan) for step, metrics in theirs})
        history._totals = spread(saved["totals"], 0.0)
        history.step = saved["step"]
        history.times = Times(**saved["times"])
        return history

    def absorb(self, other: "History", places: Any) -> None:
        """Takes the columns `places` from another history, and its step and times."""
        for ours, theirs in (
            (self._reports, other._reports),
            (self._evaluations, other._evaluations),
        ):
            for step, metrics in theirs.items():
                columns = {name: values[places] for name, values in metrics.items()}
                self._insert(ours.setdefault(step, {}), columns, places, np.nan)
        totals = {name: values[places] for name, values in other._totals.items()}
        self._insert(self._totals, totals, places, 0.0)
        self.step, self.position = other.step, other.position

    def _insert(self, ours, theirs, places, fill):
        """Sets some columns of `[member]` metrics; a new name is `fill` elsewhere."""
        for name, values in theirs.items():
            ours.setdefault(name, np.full(self._num_members, fill))[places] = values

    def keep_evaluations(self, places: Any) -> None:
        """Lets members that have ended keep their last evaluation, as weights do."""
        ended = np.zeros(self._num_members, bool)
        ended[places] = self.ended(places)
        last: dict[str, np.ndarray] = {}
        for step in sorted(self._evaluations):
            row = self._evaluations[step]
            for name, values in row.items():
                if name in last:
                    missing = ended & np.isnan(values)
                    row[name] = values = np.where(missing, last[name], values)
                last[name] = values

    def add_sums(self, sums: Any) -> None:
        """Takes the sums of one call, which stay on the devices until they are read."""
        self._pending.append(sums)
        if len(self._pending) > _CALLS_AHEAD:
            jax.block_until_ready(self._pending[-1 - _CALLS_AHEAD])

    def read(
        self, states: Any, places: Any, evaluated: Any = None
    ) -> dict[str, np.ndarray] | None:
        """Reads what is on the devices: sums, health and `evaluated` (collective).

        Args:
            states: of the stacks in the program, padded.
            places: for every stack, the columns of its members.
            evaluated: metrics of an evaluation for every stack, or None.

        Returns:
            The evaluation of all members; those that have left keep their last one.
        """
        names = ("frozen_step", "stopped_step", "recovery_steps")
        health = [{name: s[name] for name in names if name in s} for s in states]
        pending, health, evaluated = fetch((self._pending, tuple(health), evaluated))
        self._pending = []
        where = np.concatenate(places)
        for sums in pending:
            for name, values in merged(sums, places).items():
                # In float64 from the first on, as a resumed run adds them.
                total = self._totals.setdefault(name, np.zeros(self._num_members))
                total[where] += values
        health = merged(health, places)
        self.frozen_steps[where] = health["frozen_step"]
        self.stopped_steps[where] = health["stopped_step"]
        if "recovery_steps" in health:
            steps = health["recovery_steps"]
            if self.recovery_steps is None:
                self.recovery_steps = np.full((self._num_members, steps.shape[1]), -1)
            self.recovery_steps[where] = steps
        if evaluated is None:
            return None
        last = self._evaluations[max(self._evaluations)] if self._evaluations else {}
        values = {name: np.array(column) for name, column in last.items()}
        self._insert(values, merged(evaluated, places), where, np.nan)
        return values

    def add_evaluation(self, metrics: dict[str, np.ndarray]) -> None:
        """Notes an evaluation that was read."""
        self._evaluations[self.step] = dict(metrics)

    def add_report(self) -> dict[str, np.ndarray]:
        """Means over the steps since the last report; NaN where a member made none."""
        count = self._totals["_steps"]
        # A joint objective's metrics come in another order; the loss is first.
        names = sorted(self._totals, key=lambda name: (name != "loss", name))
        with np.errstate(invalid="ignore", divide="ignore"):
            means = {
                name: np.where(count > 0, self._totals[name] / count, np.nan)
                for name in names
                if name != "_steps"
            }
        self._totals = {}
        self._reports[self.step] = means
        return means

    def ended(self, places: Any) -> np.ndarray:
        """Which of the members at `places` change no more, as last read."""
        return (self.frozen_steps[places] >= 0) | (self.stopped_steps[places] >= 0)

    @property
    def num_recoveries(self) -> np.ndarray | None:
        """`[member]`, how often each has recovered, as last read."""
        steps = self.recovery_steps
        return None if steps is None else (steps >= 0).sum(axis=1)

    def to_json(self, places: Any) -> dict[str, Any]:
        """What a checkpoint keeps of some columns; `read` comes before."""

        def lists(metrics):
            return {name: values[places].tolist() for name, values in metrics.items()}

        return {
            "step": self.step,
            "reports": [[step, lists(m)] for step, m in self._reports.items()],
            "evaluations": [[step, lists(m)] for step, m in self._evaluations.items()],
            "totals": lists(self._totals),
            "times": dataclasses.asdict(self.times),
        }

    def log(self, **others: Any) -> TrainingLog:
        """The history as arrays; `others` are fields that it does not know."""
        count = self._num_members
        steps, metrics = _arrays(self._reports, count)
        evaluation_steps, evaluations = _arrays(self._evaluations, count)
        return TrainingLog(
            steps=steps,
            metrics=metrics,
            evaluation_steps=evaluation_steps,
            evaluations=evaluations,
            frozen_steps=self.frozen_steps,
            stopped_steps=self.stopped_steps,
            recovery_steps=self.recovery_steps,
            times=self.times,
            **others,
        )


def merged(parts: Any, places: Any) -> Any:
    """One `[member, ...]` array per leaf from the padded stacks of these members."""
    trimmed = [
        jax.tree.map(lambda x: np.asarray(x)[: len(own)], part)  # noqa: B023
        for part, own in zip(parts, places, strict=True)
    ]
    return jax.tree.map(lambda *xs: np.concatenate(xs), *trimmed)


def _arrays(rows, num_members):
    steps = sorted(rows)
    # A loss may have been given another metric between two calls.
    names = list(dict.fromkeys(name for step in steps for name in rows[step]))
    missing = np.full(num_members, np.nan)
    return np.array(steps, np.int64), {
        name: np.array([rows[step].get(name, missing) for step in steps], np.float64)
        for name in names
    }
