"""Which block, rematerialisation and batch fit a given memory, by compiling them."""

import dataclasses
import math
from collections.abc import Callable, Collection

from jax.sharding import Mesh

from ensjax.planning.mapped_job import MappedJob
from ensjax.planning.memory import DoesNotFit
from ensjax.planning.plan import plan
from ensjax.planning.planned import Plan
from ensjax.train.group_job import GroupJob
from ensjax.train.job import TrainingJob


@dataclasses.dataclass(frozen=True)
class Settings:
    """What of a job decides its memory, and not what is learned (but for the batch).

    Attributes:
        block: as for `fit`: "auto", None (all local members at once) or how many.
        remat: whether the model computes its blocks again for the gradient; None if it
            has no such option.
        batch_size: examples of the global batch of each member.
    """

    block: int | str | None
    remat: bool | None
    batch_size: int


@dataclasses.dataclass(frozen=True)
class Choice:
    """Settings, and what they take.

    Attributes:
        settings: of the job.
        peak_bytes: the most on a device; None if the compiler gave up without a number.
        fits: whether that is within the memory that was given.
    """

    settings: Settings
    peak_bytes: int | None
    fits: bool


@dataclasses.dataclass(frozen=True)
class Choices:
    """What was tried, in this order, and what is recommended.

    Attributes:
        memory_bytes: of a device.
        tried: the first is the job as it is.
        best: the first that fits, of: the job as it is; the largest block; the largest
            block with `remat`; half the batch, a quarter, ...; None if nothing fits.
    """

    memory_bytes: int
    tried: tuple[Choice, ...]
    best: Choice | None


def find_choices(
    make_job: Callable[[Settings], TrainingJob | GroupJob | MappedJob],
    settings: Settings,
    *,
    mesh: Mesh,
    local_members: int,
    memory_bytes: int,
    fixed: Collection[str] = (),
    known: Plan | DoesNotFit | None = None,
    say: Callable[[str], None] | None = None,
) -> Choices:
    """Looks for settings whose peak is within a memory, changing as little as it can.

    Smaller blocks and `remat` cost time and change no number but by rounding; another
    batch is another training, and comes last. Between blocks of 1 and all, memory is
    taken to grow with the block.

    Args:
        make_job: the job under other settings.
        settings: of the job as it is.
        mesh: devices, which need not be there.
        local_members: rows of the stack on each device; of several of the largest.
        memory_bytes: of a device.
        fixed: of "block" and "batch_size", those that `make_job` cannot change.
        known: the plan of the job as it is, if there is one, or why there is none.
        say: is told what is being done, a line at a time.
    """
    say = say or (lambda text: None)
    tried: list[Choice] = []
    if isinstance(known, Plan):
        tried.append(_choice(settings, known.peak_bytes, memory_bytes))
    elif isinstance(known, DoesNotFit):
        tried.append(Choice(settings, known.needed_bytes, False))

    def attempt(**changes) -> Choice:
        new = dataclasses.replace(settings, **changes)
        for choice in tried:
            if choice.settings == new:
                return choice
        say(f"trying {show_settings(new)}")
        try:
            peak = plan(make_job(new), mesh=mesh, costs=False).peak_bytes
            tried.append(_choice(new, peak, memory_bytes))
        except DoesNotFit as error:
            tried.append(Choice(new, error.needed_bytes, False))
        return tried[-1]

    def largest_block(**changes) -> Choice | None:
        """The largest block that fits, by bisection, or None."""
        if "block" in fixed:
            choice = attempt(**changes)
            return choice if choice.fits else None
        if not (best := attempt(block=1, **changes)).fits:
            # A loop over blocks keeps what it has made beside what it is given: where
            # most is state, all members at once can take less.
            every = attempt(block=None, **changes)
            return every if every.fits else None
        larger = [k for k in blocks_of(local_members) if k != 1]
        while larger:
            middle = len(larger) // 2
            block = larger[middle]
            choice = attempt(block=None if block == local_members else block, **changes)
            if choice.fits:
                best, larger = choice, larger[middle + 1 :]
            else:
                larger = larger[:middle]
        return best

    def smaller_batch(**changes) -> Choice | None:
        """The largest half, quarter, ... of the batch that fits, or None."""
        least, batch_size = math.inf, settings.batch_size
        if "batch_size" in fixed:
            return None
        if "block" not in fixed:
            changes = {"block": 1, **changes}
        while batch_size % 2 == 0 and batch_size // 2 % mesh.shape["data"] == 0:
            batch_size //= 2
            choice = attempt(batch_size=batch_size, **changes)
            if choice.fits:
                return choice
            peak = least if choice.peak_bytes is None else choice.peak_bytes
            if peak > 0.99 * least:
                return None  # it is not the batch that takes the memory
            least = peak
        return None

    def search() -> Choice | None:
        if (choice := attempt()).fits:
            return choice
        if choice := largest_block():
            return choice
        frugal = {} if settings.remat is None else {"remat": True}
        if frugal and (choice := largest_block(**frugal)):
            return choice
        return smaller_batch(**frugal)

    best = search()
    return Choices(memory_bytes, tuple(tried), best)


def _choice(settings, peak_bytes, memory_bytes) -> Choice:
    return Choice(settings, peak_bytes, peak_bytes <= memory_bytes)


def blocks_of(local_members: int) -> list[int]:
    """Powers of two that divide the local members, and all of them; ascending."""
    powers = {2**i for i in range(local_members.bit_length())}
    return sorted({k for k in powers if local_members % k == 0} | {local_members})


def show_settings(settings: Settings) -> str:
    """Such as "block all, batch 64, remat"."""
    block = "all" if settings.block is None else settings.block
    remat = ", remat" if settings.remat else ""
    return f"block {block}, batch {settings.batch_size}{remat}"
