"""Which block and form is fastest: all of them timed in turns on the devices."""

import dataclasses
import time
from collections.abc import Callable, Mapping

import jax
import numpy as np
from jax.sharding import Mesh

from ensjax.blocks import MAX_UNROLLED_MEMBERS
from ensjax.planning.choices import blocks_of
from ensjax.planning.memory import DoesNotFit, compile_lowered
from ensjax.planning.plan import describe
from ensjax.planning.step_cost import members_of_a_block
from ensjax.planning.trial import Inputs
from ensjax.train.group_job import GroupJob
from ensjax.train.job import TrainingJob

# A round times one call of every program; the fastest of all rounds counts.
_ROUNDS = 5
_SECONDS_OF_A_CALL = 0.3


@dataclasses.dataclass(frozen=True)
class Timing:
    """One way to run the local members, and how fast it was.

    Attributes:
        block: "auto", "all" (local members at once), or how many.
        unroll: one member after the other without a loop.
        form: of the convolutions; None: the job's own.
        seconds_per_step: of all members; of the fastest call.
        compile_seconds: of its program.
    """

    block: int | str
    unroll: bool
    form: str | None
    seconds_per_step: float
    compile_seconds: float


@dataclasses.dataclass(frozen=True)
class Tuning:
    """What was timed.

    Attributes:
        timings: the fastest first.
        auto_block: how many members `block="auto"` runs at once here.
        steps_per_call: steps of a timed call.
        rounds: calls of each.
        data: "the job's own", or "zeros".
    """

    timings: tuple[Timing, ...]
    auto_block: int
    steps_per_call: int
    rounds: int
    data: str

    @property
    def best(self) -> Timing:
        """The fastest."""
        return self.timings[0]

    @property
    def auto(self) -> Timing:
        """What runs if nothing is pinned."""
        own = (t for t in self.timings if t.form is None)
        return next(t for t in own if t.block == "auto")


def tune(
    job: TrainingJob | GroupJob,
    *,
    forms: Mapping[str, TrainingJob | GroupJob] | None = None,
    mesh: Mesh | None = None,
    in_blocks: bool = True,
    unrolled: bool = True,
    say: Callable[[str], None] | None = None,
) -> Tuning:
    """Times a few steps of the job with every block, interleaved, on real devices.

    Blocks are 1, the powers of two that divide the local members, all, and "auto"; and
    members unrolled where there are at most 16. "auto" is the same program as one of
    the others: how far their times differ says what the others' differences are worth.

    Args:
        job: its own `block` and `unroll` are not looked at. Shapes in place of data are
            filled with zeros.
        forms: the same job with its convolutions in other forms (of `ops.Conv`), by
            their names. Each is timed with block "auto", one and all members at once.
        mesh: of devices that are there; default: the job's.
        in_blocks: whether blocks of other sizes than the automatic one are timed.
        unrolled: whether members one after the other without a loop are timed.
        say: is told what is being done, a line at a time.

    Raises:
        DoesNotFit: if `block="auto"` does not fit; other blocks are then left out.
    """
    say = say or (lambda text: None)
    mesh = job.mesh() if mesh is None else mesh

    jobs = {None: job, **(forms or {})}

    def run_with(block, unroll=False, form=None):
        return describe(jobs[form].with_options(block=block, unroll=unroll), mesh)

    auto_run = run_with("auto")
    local_members = max(auto_run.num_rows) // mesh.shape["member"]
    ways = _ways(
        local_members, tuple(forms or ()), in_blocks=in_blocks, unrolled=unrolled
    )
    programs = {}
    for way in ways:
        block, unroll, form = way
        say(f"compiling {show_way(*way)}")
        run = run_with(None if block == "all" else block, unroll, form)
        try:
            programs[way] = compile_lowered(run.lower_training())
        except DoesNotFit:
            if block == "auto" and form is None:
                raise
            say(f"{show_way(*way)} does not fit, and is left out")
    inputs = Inputs.of(auto_run, job)
    states = inputs.states

    def call(way, num_steps):
        # All programs take the same states, so that one set of them is enough.
        nonlocal states
        began = time.perf_counter()
        states, sums = programs[way][0](
            states, *inputs.others, inputs.data, 0, num_steps, 0
        )
        jax.block_until_ready((states, sums))
        return time.perf_counter() - began

    for way in programs:
        call(way, 1)
    most = auto_run.schedule.steps_per_call
    slowest = max(call(way, 1) for way in programs)
    length = int(np.clip(_SECONDS_OF_A_CALL / slowest, min(2, most), most))
    say(f"timing calls of {length} steps, {_ROUNDS} of each")
    seconds = {way: [] for way in programs}
    for _ in range(_ROUNDS):
        for way in programs:
            seconds[way].append(call(way, length))
    timings = [
        Timing(*way, min(seconds[way]) / length, compile_seconds)
        for way, (_, compile_seconds) in programs.items()
    ]
    return Tuning(
        timings=tuple(sorted(timings, key=lambda t: t.seconds_per_step)),
        auto_block=members_of_a_block(auto_run),
        steps_per_call=length,
        rounds=_ROUNDS,
        data=inputs.source,
    )


def _ways(
    local_members, forms, *, in_blocks, unrolled
) -> list[tuple[int | str, bool, str | None]]:
    """Block, whether members are unrolled, and form, of all that is timed."""
    ways: list[tuple[int | str, bool, str | None]] = [("auto", False, None)]
    in_blocks &= local_members > 1
    if in_blocks:
        blocks = [k for k in blocks_of(local_members) if k < local_members]
        ways += [(block, False, None) for block in (*blocks, "all")]
    if unrolled and 1 < local_members <= MAX_UNROLLED_MEMBERS:
        ways.append((1, True, None))
    of_forms = ("auto", 1, "all") if in_blocks else ("auto",)
    return ways + [(block, False, form) for form in forms for block in of_forms]


def show_way(block: int | str, unroll: bool, form: str | None = None) -> str:
    """Such as "block 4", "unrolled", or "block 4, mixed convolutions"."""
    shown = "unrolled" if unroll else f"block {block}"
    return shown if form is None else f"{shown}, {form} convolutions"
