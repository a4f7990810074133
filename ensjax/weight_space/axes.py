"""What an axis of an array is made of: permutation groups, and what does not move.

An axis is a *term*: a `Group` of interchangeable units, a `Fixed` run of positions, a
`Product` of terms (a flattened image is height x width x channels) or a `Concat` of
terms (a residual stream that grows by new channels). A permutation of every group is
then a permutation of every axis.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Fixed:
    """Positions that no permutation moves."""

    size: int

    def __str__(self):
        return str(self.size)


@dataclasses.dataclass(frozen=True)
class Group:
    """Interchangeable units: every axis that holds the group is permuted alike."""

    name: str
    size: int

    def __str__(self):
        return self.name


@dataclasses.dataclass(frozen=True)
class Product:
    """Terms flattened into one axis, the last varying fastest (as in a reshape)."""

    parts: tuple[Any, ...]

    @property
    def size(self) -> int:
        """Number of positions."""
        return math.prod(part.size for part in self.parts)

    def __str__(self):
        return "(" + " ".join(map(str, self.parts)) + ")"


@dataclasses.dataclass(frozen=True)
class Concat:
    """Terms one behind the other along one axis."""

    parts: tuple[Any, ...]

    @property
    def size(self) -> int:
        """Number of positions."""
        return sum(part.size for part in self.parts)

    def __str__(self):
        return "[" + " | ".join(map(str, self.parts)) + "]"


Term = Any  # Fixed | Group | Product | Concat, or a variable while inferring


def product(parts: Sequence[Term]) -> Term:
    """The product of terms in its simplest form."""
    flat: list[Term] = []
    for part in parts:
        flat.extend(part.parts if isinstance(part, Product) else [part])
    merged: list[Term] = []
    for part in flat:
        if part.size == 1:
            continue
        if merged and isinstance(part, Fixed) and isinstance(merged[-1], Fixed):
            part = Fixed(merged.pop().size * part.size)
        merged.append(part)
    if not merged:
        return Fixed(1)
    return merged[0] if len(merged) == 1 else Product(tuple(merged))


def concat(parts: Sequence[Term]) -> Term:
    """The concatenation of terms in its simplest form."""
    flat: list[Term] = []
    for part in parts:
        flat.extend(part.parts if isinstance(part, Concat) else [part])
    merged: list[Term] = []
    for part in flat:
        if part.size == 0:
            continue
        if merged and isinstance(part, Fixed) and isinstance(merged[-1], Fixed):
            part = Fixed(merged.pop().size + part.size)
        merged.append(part)
    if not merged:
        return Fixed(0)
    if len(merged) == 1:
        return merged[0]
    if all(part == merged[0] for part in merged):
        return product([Fixed(len(merged)), merged[0]])
    return Concat(tuple(merged))


def groups_of(term: Term) -> list[Group]:
    """The groups in a term, one entry for each time that one occurs."""
    if isinstance(term, Group):
        return [term]
    if isinstance(term, Fixed):
        return []
    return [group for part in term.parts for group in groups_of(part)]


def axis_index(term: Term, permutations: Mapping[str, Any], xp: Any = np) -> Any:
    """Where each position of a permuted axis comes from, int32 `[size]`.

    Args:
        term: the axis.
        permutations: int32 `[group size]` by group name; absent groups stay.
        xp: `numpy` or `jax.numpy`, to compute with.
    """
    if isinstance(term, Group) and term.name in permutations:
        return xp.asarray(permutations[term.name], np.int32)
    if isinstance(term, (Fixed, Group)):
        return np.arange(term.size, dtype=np.int32)
    indices = [axis_index(part, permutations, xp) for part in term.parts]
    if isinstance(term, Concat):
        offsets = np.cumsum([0] + [part.size for part in term.parts])
        return xp.concatenate([i + int(o) for i, o in zip(indices, offsets)])
    index = indices[0]
    for part, inner in zip(term.parts[1:], indices[1:]):
        index = (index[:, None] * part.size + inner[None]).reshape(-1)
    return index


def positions(term: Term, name: str) -> list[np.ndarray]:
    """Where the units of a group lie on an axis, once for each time that it occurs.

    Returns:
        int `[unit, copy]` for each occurrence: a channel of a flattened image has one
        copy for each pixel.
    """
    if isinstance(term, Group):
        return [np.arange(term.size)[:, None]] if term.name == name else []
    if isinstance(term, Fixed):
        return []
    found = []
    if isinstance(term, Concat):
        offset = 0
        for part in term.parts:
            found += [index + offset for index in positions(part, name)]
            offset += part.size
        return found
    for number, part in enumerate(term.parts):
        outer = math.prod(p.size for p in term.parts[:number])
        inner = math.prod(p.size for p in term.parts[number + 1 :])
        for index in positions(part, name):
            shifts = np.arange(outer)[:, None] * (part.size * inner) + np.arange(inner)
            places = index[:, :, None] * inner + shifts.reshape(1, 1, -1)
            found.append(places.reshape(len(index), -1))
    return found
