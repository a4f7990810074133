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
        num_padding: rows beside the members that the devices computed and dropped,
            because members must fill whole blocks on every device.
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
    recovery_steps: np.ndarray | None = None


class History:
    """Reports, evaluations, health and the sums since the last report.

    Attributes:
        step: steps done.
        position: of the data stream, when this history was saved.
        frozen_steps, stopped_steps: `[member]`, as last read from the devices.
        recovery_steps: `[member, recovery]`, or None if no member recovers.
    """

    def __init__(self, num_members: tuple[int, ...], saved: dict[str, Any] | None):
        saved = saved or {}
        self._num_members = num_members
        self._reports = list(saved.get("reports", ()))
        self._evaluations = list(saved.get("evaluations", ()))
        self._totals = {
            name: np.asarray(values, np.float64)
            for name, values in saved.get("totals", {}).items()
        }
        self._pending = []
        self.step = saved.get("step", 0)
        self.position = saved.get("position")
        self.frozen_steps = np.full(sum(num_members), -1)
        self.stopped_steps = self.frozen_steps
        self.recovery_steps = None

    def add_sums(self, sums: Any) -> None:
        """Takes the sums of one call, which stay on the devices until they are read."""
        self._pending.append(sums)
        if len(self._pending) > _CALLS_AHEAD:
            jax.block_until_ready(self._pending[-1 - _CALLS_AHEAD])

    def read(self, states: Any, evaluated: Any = None) -> dict[str, np.ndarray] | None:
        """Reads what is on the devices: sums, health and `evaluated` (collective)."""
        names = ("frozen_step", "stopped_step", "recovery_steps")
        health = [{name: s[name] for name in names if name in s} for s in states]
        pending, health, evaluated = fetch((self._pending, tuple(health), evaluated))
        self._pending = []
        for sums in pending:
            for name, values in self.merged(sums).items():
                # In float64 from the first on, as a resumed run adds them.
                total = self._totals.get(name, np.zeros(values.shape))
                self._totals[name] = total + values
        health = self.merged(health)
        self.frozen_steps = health["frozen_step"]
        self.stopped_steps = health["stopped_step"]
        self.recovery_steps = health.get("recovery_steps")
        return None if evaluated is None else self.merged(evaluated)

    def add_evaluation(self, metrics: dict[str, np.ndarray]) -> None:
        """Notes an evaluation that was read."""
        self._evaluations.append((self.step, _lists(metrics)))

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
        self._reports.append((self.step, _lists(means)))
        return means

    @property
    def has_ended(self) -> bool:
        """Whether no member changes any more, as last read."""
        return bool(((self.frozen_steps >= 0) | (self.stopped_steps >= 0)).all())

    @property
    def num_recoveries(self) -> np.ndarray | None:
        """`[member]`, how often each has recovered, as last read."""
        steps = self.recovery_steps
        return None if steps is None else (steps >= 0).sum(axis=1)

    def to_json(self) -> dict[str, Any]:
        """What a checkpoint keeps; `read` comes before.

        Copies, since it is written while training adds to the history.
        """
        return {
            "step": self.step,
            "reports": list(self._reports),
            "evaluations": list(self._evaluations),
            "totals": _lists(self._totals),
        }

    def log(self, **others: Any) -> TrainingLog:
        """The history as arrays; `others` are fields that it does not know."""
        steps, metrics = _arrays(self._reports)
        evaluation_steps, evaluations = _arrays(self._evaluations)
        return TrainingLog(
            steps=steps,
            metrics=metrics,
            evaluation_steps=evaluation_steps,
            evaluations=evaluations,
            frozen_steps=self.frozen_steps,
            stopped_steps=self.stopped_steps,
            recovery_steps=self.recovery_steps,
            **others,
        )

    def merged(self, parts):
        """One `[member, ...]` array per leaf from the padded stacks."""
        trimmed = [
            jax.tree.map(lambda x: np.asarray(x)[:count], part)  # noqa: B023
            for part, count in zip(parts, self._num_members, strict=True)
        ]
        return jax.tree.map(lambda *xs: np.concatenate(xs), *trimmed)


def _lists(metrics):
    return {name: [float(x) for x in values] for name, values in metrics.items()}


def _arrays(rows):
    steps = np.array([step for step, _ in rows], np.int64)
    names = list(rows[-1][1]) if rows else []
    return steps, {
        name: np.array([metrics[name] for _, metrics in rows], np.float64)
        for name in names
    }
