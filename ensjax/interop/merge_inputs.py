"""The checkpoints of a merge: opened, told apart, and read in blocks."""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

from ensjax.interop.tensor_blocks import Blocks, memory_for_blocks
from ensjax.interop.tensor_choice import TensorChoice
from ensjax.interop.tensor_types import WeightsError
from ensjax.interop.weight_folders import WeightFolder, open_weights

Place = str | os.PathLike


def check_places(
    folders: Sequence[Place], base: Place | None, fisher: Sequence[Place], out: Place
) -> None:
    """Raises `WeightsError` if a member is named twice, or in and out overlap."""
    if not folders:
        raise WeightsError("there is nothing to merge; name at least one folder.")
    seen: dict[str, Any] = {}
    for folder in folders:
        place = os.path.realpath(folder)
        if place in seen:
            raise WeightsError(
                f"{folder} is named twice (also as {seen[place]}); to count it double,"
                " give it a weight."
            )
        seen[place] = folder
    result = os.path.realpath(out)
    for folder in (*folders, *([] if base is None else [base]), *fisher):
        place = os.path.realpath(folder)
        if os.path.commonpath([place, result]) in (place, result):
            raise WeightsError(
                f"the output {out} and the input {folder} are in one another; choose"
                " another place."
            )


class MergeInputs(NamedTuple):
    """All checkpoints that are read.

    Attributes:
        members: that are merged.
        base: from which they were fine-tuned; None where the method takes none.
        fisher: of Fisher information, one for each member or none.
    """

    members: list[WeightFolder]
    base: WeightFolder | None
    fisher: list[WeightFolder]

    @classmethod
    def open(
        cls,
        stack: ExitStack,
        folders: Sequence[Place],
        base: Place | None,
        fisher: Sequence[Place],
    ) -> "MergeInputs":
        """Opens them until the stack is closed."""

        def opened(path):
            return stack.enter_context(open_weights(path))

        members = [opened(folder) for folder in folders]
        origin = None if base is None else opened(base)
        return cls(members, origin, [opened(folder) for folder in fisher])

    @property
    def models(self) -> list[WeightFolder]:
        """The base, if there is one, and the members."""
        return [*([] if self.base is None else [self.base]), *self.members]

    @property
    def all(self) -> list[WeightFolder]:
        """Also those of Fisher information."""
        return [*self.models, *self.fisher]

    @property
    def roles(self) -> list[tuple[str, WeightFolder]]:
        """What each is."""
        count = len(self.members)
        names = ["base"] * (self.base is not None) + ["member"] * count
        return list(zip([*names, *["fisher"] * len(self.fisher)], self.all))


def one_of(every: Sequence[WeightFolder], path: Place | None) -> WeightFolder | None:
    """The checkpoint at a path; None for None.

    Raises:
        WeightsError: if it is none of them.
    """
    if path is None:
        return None
    for folder in every:
        if os.path.realpath(folder.path) == os.path.realpath(path):
            return folder
    raise WeightsError(
        f"copy_from is one of the folders or the base; got {os.fspath(path)!r}."
    )


def blocks_of(
    inputs: MergeInputs,
    choice: TensorChoice,
    *,
    allow_non_finite: bool,
    left_out: Mapping[str, Sequence[int]],
    report: Callable[[int], None],
) -> tuple[Blocks, Blocks | None]:
    """Blocks of members and of Fisher information, which share the memory."""
    options: dict[str, Any] = {
        "allow_non_finite": allow_non_finite,
        "left_out": left_out,
        "report": report,
    }
    largest = max(spec.nbytes for spec in choice.merged.values())
    memory = memory_for_blocks(largest)
    if not inputs.fisher:
        return Blocks(inputs.members, inputs.base, memory=memory, **options), None
    return (
        Blocks(inputs.members, inputs.base, memory=memory // 2, **options),
        Blocks(inputs.fisher, None, memory=memory // 2, **options),
    )


class Reading:
    """How many bytes were read of how many, passed on."""

    def __init__(self, report: Callable[[int, int], None] | None):
        self._report, self.total, self._done = report, 0, 0

    def add(self, count: int) -> None:
        """So many more."""
        self._done += count
        if self._report is not None:
            self._report(min(self._done, self.total), self.total)
