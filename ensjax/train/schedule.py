"""How many steps a run has, and after which of them it reports, evaluates and saves."""

import dataclasses
import math
import warnings

from ensjax.train.numbers import integer

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
            TypeError: if a number is not an integer.
            ValueError: if a number is not positive, or an interval is no multiple of
                `steps_per_call`.
        """
        steps = _integer("steps", steps, at_least=1)
        steps_per_call = _integer("steps_per_call", steps_per_call, at_least=1)
        log_every_steps = _integer("log_every_steps", log_every_steps, at_least=1)
        evaluate = _integer("evaluate_every_steps", evaluate_every_steps, at_least=0)
        save = _integer("save_every_steps", save_every_steps, at_least=0)
        if log_every_steps is None:
            log_every_steps = _between_reports(
                max(1, steps // _REPORTS),
                steps_per_call or math.gcd(evaluate or 0, save or 0) or 1,
                may_divide=steps_per_call is None,
            )
        intervals = {
            "log_every_steps": log_every_steps,
            "evaluate_every_steps": log_every_steps if evaluate is None else evaluate,
            "save_every_steps": log_every_steps if save is None else save,
        }
        if steps_per_call is None:
            steps_per_call = math.gcd(*intervals.values())
            if steps_per_call == 1 and min(v for v in intervals.values() if v) > 1:
                given = ", ".join(f"{k}={v}" for k, v in intervals.items() if v)
                warnings.warn(
                    f"{given} have no common divisor, so a call of the program makes"
                    " one step; multiples of one number, as 50 and 100, are faster.",
                    stacklevel=3,
                )
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

    def next_call(self, step: int) -> int:
        """Steps of the next call: to the next whole number of calls, or to the end.

        A run that is resumed for more steps may start inside a call.
        """
        return min(self.steps_per_call - step % self.steps_per_call, self.steps - step)


def _between_reports(about: int, unit: int, *, may_divide: bool) -> int:
    """Steps between reports, near `about`: a multiple of `unit`, or a divisor.

    Otherwise the calls of the program, which end at every interval, would be short. A
    unit without a divisor of at least a quarter of `about` is taken as it is.
    """
    if may_divide and unit > about:
        divisor = max(k for k in range(1, about + 1) if unit % k == 0)
        if 4 * divisor >= about:
            return divisor
    return math.ceil(about / unit) * unit


def _integer(name, value, *, at_least):
    if value is None:
        return None
    value = integer(name, value)
    if value < at_least:
        # 0 means "never" inside; a user who passes it is told what is meant.
        raise ValueError(f"{name} must be at least {max(1, at_least)}; got {value}.")
    return value
