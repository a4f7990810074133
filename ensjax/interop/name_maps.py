"""Name maps: which tensors of a foreign checkpoint are which leaves of our module.

A map is a tuple of rules that are read in both directions. A rule names tensors of
theirs and leaves of ours, with placeholders for numbers, and a transform with an exact
inverse between the two. Names are checked completely: every leaf of ours is filled, and
every tensor of theirs is used or listed as a constant. Nothing here computes: values
are moved, so that a round trip gives the same bits.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ensjax.interop.transforms import SAME, Transform


@dataclasses.dataclass(frozen=True)
class Rule:
    """Tensors of theirs that hold the same numbers as leaves of ours.

    Attributes:
        theirs: a name or several. `{i}` stands for a whole number, and for the same
            one wherever it occurs in the rule.
        ours: dotted name of a leaf of our module or several, such as
            `blocks.{i}.qkv.kernel`; every placeholder of `theirs` occurs in the first.
        transform: from the list of theirs to the list of ours, and back.
        tied: further names that may hold the tensor `theirs`, which is one name then.
            Where they occur they must be equal to it, bit for bit, or stand in for it.
    """

    theirs: str | tuple[str, ...]
    ours: str | tuple[str, ...]
    transform: Transform = SAME
    tied: str | tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Constant:
    """A tensor of theirs that our module does not have: a buffer, a counter.

    Attributes:
        theirs: its name; `{i}` stands for a whole number.
        beside: the leaf of ours beside which it is written, with the same placeholders.
        value: what is written where no original is at hand; `None`: nothing.
    """

    theirs: str
    beside: str | None = None
    value: Any = None


@dataclasses.dataclass(frozen=True)
class NameMap:
    """The rules of one architecture in one naming.

    Attributes:
        rules: for all leaves.
        constants: tensors that have no leaf.
    """

    rules: tuple[Rule, ...]
    constants: tuple[Constant, ...] = ()


@dataclasses.dataclass(frozen=True)
class Link:
    """A rule with its numbers filled in.

    Attributes:
        theirs, tied: names of tensors.
        their_shapes: the shapes expected.
        ours: names of leaves.
        our_shapes: their shapes, of one member.
        transform: of the rule.
    """

    theirs: tuple[str, ...]
    tied: tuple[str, ...]
    their_shapes: tuple[tuple[int, ...], ...]
    ours: tuple[str, ...]
    our_shapes: tuple[tuple[int, ...], ...]
    transform: Transform


def prefixed(
    rules: Sequence[Rule | Constant], *, theirs: str = "", ours: str = ""
) -> tuple:
    """The same rules (or constants) with something in front of all names."""
    changed = []
    for rule in rules:
        new = {"theirs": _all(rule.theirs, theirs)}
        if isinstance(rule, Rule):
            new |= {"ours": _all(rule.ours, ours), "tied": _all(rule.tied, theirs)}
        elif rule.beside is not None:
            new["beside"] = ours + rule.beside
        changed.append(dataclasses.replace(rule, **new))
    return tuple(changed)


def link_leaves(
    name_map: NameMap, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[Link, ...]:
    """The map applied to a module: one link for every rule and its numbers.

    Args:
        name_map: the rules.
        shapes: of the module's leaves (one member), by dotted name.

    Raises:
        ValueError: if a leaf belongs to no rule or to two, or a name of theirs to two
            links; names it.
    """
    links, rule_of, user_of = [], {}, {}
    for rule in name_map.rules:
        ours = _names(rule.ours)
        for leaf in shapes:
            numbers = _match(ours[0], leaf)
            if numbers is not None:
                link = _fill(rule, numbers, shapes)
                links.append(link)
                for name in link.ours:
                    if name in rule_of:
                        raise ValueError(
                            f"leaf {name} belongs to two rules of the map: for"
                            f" {_list(rule_of[name])} and for {_list(link.theirs)}."
                        )
                    rule_of[name] = link.theirs
                for name in (*link.theirs, *link.tied):
                    if name in user_of:
                        raise ValueError(
                            f"tensor {name} belongs to two rules of the map: for"
                            f" {_list(user_of[name])} and for {_list(link.ours)}."
                        )
                    user_of[name] = link.ours
    missing = [leaf for leaf in shapes if leaf not in rule_of]
    if missing:
        raise ValueError(
            f"the map has no rule for {len(missing)} leaves of the model:"
            f" {_list(missing)}."
        )
    return tuple(links)


def check_names(name_map: NameMap, links: Sequence[Link], names: Sequence[str]) -> None:
    """Raises unless a checkpoint of these names fills the module and nothing is left.

    Args:
        name_map: the rules.
        links: from `link_leaves`.
        names: of all tensors of the checkpoint.

    Raises:
        ValueError: names the tensors that are missing, with the shapes expected, or
            those that belong to nothing.
    """
    left = set(names)
    missing = []
    for link in links:
        present = left.intersection(link.tied)
        for name, shape in zip(link.theirs, link.their_shapes):
            if name not in left and not present:
                missing.append(f"{name} {shape}")
        left -= {*link.theirs, *link.tied}
    left = [
        name
        for name in names
        if name in left
        and not any(_match(c.theirs, name) is not None for c in name_map.constants)
    ]
    if not missing and not left:
        return
    parts = []
    if missing:
        parts.append(
            f"{len(missing)} tensors that the model needs are missing: {_list(missing)}"
        )
    if left:
        parts.append(
            f"{len(left)} tensors belong to nothing in the model: {_list(left)}"
        )
    raise ValueError("; ".join(parts) + ".")


def read_link(link: Link, tensors: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The leaves of one link, read from a checkpoint; types are kept.

    Args:
        link: from `link_leaves`.
        tensors: arrays by their names: a dict, or a reader with `[]` and `in`.

    Raises:
        ValueError: if a tensor is missing or of another shape, if tied tensors differ,
            or the tensors of one leaf differ in type; names the tensor.
    """
    found = []
    for name, shape in zip(link.theirs, link.their_shapes):
        copies = {n: np.asarray(tensors[n]) for n in (name, *link.tied) if n in tensors}
        if not copies:
            raise ValueError(
                f"{name} is missing: the model needs it, of shape {shape}, for"
                f" {_list(link.ours)}."
            )
        for copy, values in copies.items():
            if values.shape != shape:
                raise ValueError(
                    f"{copy} has shape {values.shape}; expected {shape} for"
                    f" {_list(link.ours)} of shape {_list(link.our_shapes)}."
                )
        first, *others = copies
        for other in others:
            if not _same_bits(copies[first], copies[other]):
                raise ValueError(
                    f"{other} must equal {first}, to which the model ties it; their"
                    " values differ."
                )
        found.append(copies[first])
    for name, values in zip(link.theirs, found):
        if values.dtype != found[0].dtype:
            raise ValueError(
                f"{name} is {values.dtype}, but {link.theirs[0]}, which becomes one"
                f" leaf with it, {found[0].dtype}; convert one of them."
            )
    leaves = link.transform.to_ours(found)
    return {
        name: np.asarray(leaf, order="C")
        for name, leaf in zip(link.ours, leaves, strict=True)
    }


def read_leaves(
    name_map: NameMap,
    tensors: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, np.ndarray]:
    """All leaves of our module, read from one checkpoint.

    Args:
        name_map: the rules.
        tensors: arrays by their names: a dict, or a reader with `keys()` and `[]`.
        shapes: of the module's leaves, by dotted name.

    Returns:
        Arrays by the names of `shapes`, in their types.

    Raises:
        ValueError: if names or shapes do not fit; names the tensor or the leaf.
    """
    links = link_leaves(name_map, shapes)
    check_names(name_map, links, list(tensors.keys()))
    found = {}
    for link in links:
        found |= read_link(link, tensors)
    return {name: found[name] for name in shapes}


def write_tensors(
    name_map: NameMap,
    leaves: Mapping[str, Any],
    *,
    like: Mapping[str, Any] | None = None,
) -> dict[str, np.ndarray]:
    """Their tensors from the leaves of one module: the inverse of `read_leaves`.

    Args:
        name_map: the rules.
        leaves: arrays of one member, by dotted name.
        like: an original checkpoint. Constants are copied from it, tied names are
            written where it has them, and the order is its own. Without it constants
            have the values of the map, and tied tensors are written once.

    Returns:
        Arrays by their names, in the types of the leaves.

    Raises:
        ValueError: if leaves do not fit the map, or `like` has other names.
    """
    arrays = {name: np.asarray(leaf) for name, leaf in leaves.items()}
    links = link_leaves(name_map, {name: a.shape for name, a in arrays.items()})
    names = None if like is None else list(like.keys())
    if names is not None:
        check_names(name_map, links, names)
    found = {}
    for link in links:
        tensors = link.transform.to_theirs([arrays[name] for name in link.ours])
        tensors = [np.asarray(t, order="C") for t in tensors]
        named = dict(zip(link.theirs, tensors, strict=True))
        if link.tied:
            named |= dict.fromkeys(link.tied, tensors[0])
            wanted = link.theirs if names is None else names
            named = {name: named[name] for name in named if name in wanted}
        found |= named
    if like is not None:
        return {n: found[n] if n in found else np.asarray(like[n]) for n in names}
    for constant in name_map.constants:
        if constant.beside is not None and constant.value is not None:
            for leaf in arrays:
                numbers = _match(constant.beside, leaf)
                if numbers is not None:
                    value = np.asarray(constant.value)
                    found[constant.theirs.format(**numbers)] = value
    return found


def _fill(rule, numbers, shapes):
    ours, theirs, tied = (
        tuple(name.format(**numbers) for name in _names(part))
        for part in (rule.ours, rule.theirs, rule.tied)
    )
    for name in ours:
        if name not in shapes:
            raise ValueError(
                f"the model has no leaf {name}, which the map needs beside {ours[0]}"
                f" for {_list(theirs)}."
            )
    our_shapes = tuple(tuple(shapes[name]) for name in ours)
    # Arrays without memory of their own tell the shapes of theirs.
    empty = [np.broadcast_to(np.int8(0), shape) for shape in our_shapes]
    try:
        their_shapes = tuple(t.shape for t in rule.transform.to_theirs(empty))
    except ValueError as error:
        raise ValueError(
            f"leaf {_list(ours)} of shape {_list(our_shapes)} does not fit the rule"
            f" for {_list(theirs)}: {error}"
        ) from error
    if len(their_shapes) != len(theirs) or (tied and len(theirs) != 1):
        raise ValueError(
            f"the rule for {_list(ours)} names {len(theirs)} tensors, but its"
            f" transform gives {len(their_shapes)}, and tied names belong to one."
        )
    return Link(theirs, tied, their_shapes, ours, our_shapes, rule.transform)


def _names(part):
    return (part,) if isinstance(part, str) else tuple(part)


def _all(part, prefix):
    names = tuple(prefix + name for name in _names(part))
    return names[0] if isinstance(part, str) else names


@functools.cache
def _regex(pattern):
    seen = collections.Counter()
    parts = re.split(r"\{(\w+)\}", pattern)
    for place in range(1, len(parts), 2):
        name = parts[place]
        seen[name] += 1
        parts[place] = f"(?P={name})" if seen[name] > 1 else rf"(?P<{name}>\d+)"
        parts[place - 1] = re.escape(parts[place - 1])
    parts[-1] = re.escape(parts[-1])
    return re.compile("".join(parts))


def _match(pattern, name):
    """The numbers of a name, as strings by placeholder; `None` if it does not fit."""
    found = _regex(pattern).fullmatch(name)
    return None if found is None else found.groupdict()


def _same_bits(a, b):
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    size = a.dtype.itemsize * math.prod(a.shape)
    return size == 0 or bool(
        np.array_equal(
            np.ascontiguousarray(a).reshape(-1).view(np.uint8),
            np.ascontiguousarray(b).reshape(-1).view(np.uint8),
        )
    )


def _list(items, limit=6):
    items = [str(item) for item in items]
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more
