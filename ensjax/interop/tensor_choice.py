"""Which tensors of several checkpoints are merged, copied or left out, and why."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ensjax.interop.tensor_types import TensorSpec, WeightsError
from ensjax.interop.weight_folders import WeightFolder
from ensjax.weight_space.leaves import by_pattern, statistics_among


class Copied(NamedTuple):
    """A tensor taken from one checkpoint as it is."""

    source: WeightFolder
    why: str


class TensorChoice(NamedTuple):
    """What becomes of every tensor.

    Attributes:
        merged: shape and type of those that are merged, by name.
        statistics: of batch statistics, of which the mean is taken.
        copied: those that are not.
        left: names that are not written, and why.
        ties: second names of tensors.
    """

    merged: dict[str, TensorSpec]
    statistics: dict[str, TensorSpec]
    copied: dict[str, Copied]
    left: dict[str, str]
    ties: dict[str, str]


def choose_tensors(
    members: Sequence[WeightFolder],
    base: WeightFolder | None = None,
    *,
    copy_from: WeightFolder | None = None,
    copy: Sequence[str] = (),
    skip: Sequence[str] = (),
    any_dtype: bool = False,
    mean_of_statistics: bool = True,
) -> TensorChoice:
    """Decides for every tensor of any checkpoint.

    Those that are not floating are copied, from the base if there is one and from the
    first member else. Tied tensors are merged once.

    Args:
        members: that are merged.
        base: which must hold the same tensors.
        copy_from: one of all these, from which tensors are copied that a checkpoint
            lacks or that differ in shape. None: such tensors are refused.
        copy: patterns (`re.search`) of names that are copied although they could be
            merged.
        skip: patterns of names that are left out.
        any_dtype: whether members may hold a tensor in different types.
        mean_of_statistics: whether batch statistics are kept apart from weights.

    Raises:
        WeightsError: if a tensor is missing or differs; names the tensor and the folder
            and says what can be done.
        ValueError: if a pattern is found in no name.
    """
    folders = [*members] if base is None else [base, *members]
    source = copy_from or folders[0]
    names = list(dict.fromkeys(n for f in folders for n in (*f.specs, *f.ties)))
    ties = _common_ties(folders, names)
    names = [name for name in names if name not in ties]
    skipped = by_pattern(names, dict.fromkeys(skip, True), False)
    as_asked = by_pattern(names, dict.fromkeys(copy, True), False)
    statistics = statistics_among(names)
    choice = TensorChoice({}, {}, {}, {}, {})
    for name, is_skipped, is_copied in zip(names, skipped, as_asked):
        problem = _problem(name, members, base, any_dtype)
        if is_skipped:
            choice.left[name] = "as asked"
        elif is_copied or (problem and copy_from is not None):
            why = "as asked" if is_copied else problem
            if name in source:
                choice.copied[name] = Copied(source, why)
            else:
                choice.left[name] = f"{why}, and {source.path} lacks it"
        elif problem:
            raise WeightsError(
                f"tensor {name!r} {problem}. It can be copied from one of the folders"
                " (copy_from) or left out (skip)."
            )
        else:
            is_apart = mean_of_statistics and name in statistics
            _decide(choice, name, members[0].spec(name), source, is_apart)
    for alias, kept in ties.items():
        if any(kept in own for own in choice[:3]):
            choice.ties[alias] = kept
    return choice


def _decide(choice, name, spec, source, is_apart):
    if spec.is_floating:
        (choice.statistics if is_apart else choice.merged)[name] = spec
    elif spec.dtype.kind == "c":
        raise WeightsError(
            f"tensor {name!r} is {spec}; complex tensors are not merged. Copy it"
            " (copy) or leave it out (skip)."
        )
    else:
        choice.copied[name] = Copied(source, f"{spec.dtype.name} is not averaged")


def _common_ties(
    folders: Sequence[WeightFolder], names: Sequence[str]
) -> Mapping[str, str]:
    """Second names of one tensor, in every checkpoint that has the name."""
    ties = {}
    for name in names:
        kept = {f.ties.get(name) for f in folders if name in f}
        (first, *others) = kept
        if others or first is None or not all(first in f for f in folders):
            continue
        ties[name] = first
    return ties


def _problem(name, members, base, any_dtype):
    """What keeps a tensor from being merged, in words; None if nothing does."""
    folders = [*members] if base is None else [base, *members]
    holders = [f for f in folders if name in f]
    for folder in folders:
        if name not in folder:
            return f"is missing in {folder.path}; {holders[0].path} has it"
    first = members[0]
    spec = first.spec(name)
    for folder in folders:
        own = folder.spec(name)
        if own.shape != spec.shape:
            return (
                f"has shape {list(own.shape)} in {folder.path}, but"
                f" {list(spec.shape)} in {first.path}"
            )
        if own.is_floating != spec.is_floating or (
            own.dtype != spec.dtype and not any_dtype and folder is not base
        ):
            return (
                f"is {own.dtype.name} in {folder.path}, but {spec.dtype.name} in"
                f" {first.path}" + (_CAST if own.is_floating else "")
            )
    return None


_CAST = " (with dtype it is merged all the same)"


def has_wide(specs: Mapping[str, TensorSpec]) -> bool:
    """Whether a tensor has more bits than the float32 in which sums are taken."""
    return any(spec.dtype == np.float64 for spec in specs.values())
