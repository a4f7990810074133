"""What a streamed merge is asked to do: method, knobs of every tensor, what is read."""

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.interop.knob_checks import check_knobs
from ensjax.interop.tensor_blocks import Blocks
from ensjax.interop.tensor_types import TensorSpec
from ensjax.interop.units import LAYOUTS, Units, units_of
from ensjax.weight_space.leaves import by_pattern
from ensjax.weight_space.methods import METHODS, MergeMethod

# What says which numbers are looked at together, and so cannot differ between tensors
# where it is over the whole model.
_RANKING = ("density", "gamma")


@dataclasses.dataclass(frozen=True)
class MergePlan:
    """One merge, ready to be streamed.

    Attributes:
        method: a name of `weight_space.METHODS`.
        specs: of the tensors that are merged, by name.
        knobs: of every tensor (and of batch statistics, which are not among `specs`),
            all keyword arguments of the method.
        blocks: of the members and the base.
        fisher: blocks of the members' Fisher information; None for other methods.
        seed: of methods that draw.
        layout: "torch" (`[out, in]`) or "flax" (`[in, out]`): where the weights of one
            unit are.
        layouts: of tensors that differ from it, by name.
    """

    method: str
    specs: Mapping[str, TensorSpec]
    knobs: Mapping[str, Mapping[str, Any]]
    blocks: Blocks
    fisher: Blocks | None = None
    seed: int = 0
    layout: str = "torch"
    layouts: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def num_members(self) -> int:
        """M."""
        return len(self.blocks.members)

    @property
    def scope(self) -> str | None:
        """Of the method: the same for all tensors."""
        return next(iter(self.knobs.values())).get("scope")

    def units(self, name: str, scope: str | None) -> Units:
        """How a tensor falls into vectors of a scope, in its layout."""
        layout = self.layouts.get(name, self.layout)
        return units_of(self.specs[name].shape, scope, layout)

    def key(self) -> jax.Array:
        """Of all draws."""
        return jax.random.key(self.seed, impl="threefry2x32")

    def weights(self, name: str) -> jax.Array:
        """Of the members in a tensor, `[member]`; 1 each by default."""
        weights = self.knobs[name].get("weights")
        if weights is None:
            return jnp.ones((self.num_members,), jnp.float32)
        return jnp.asarray(weights, jnp.float32)

    def per_member(self, knob: str, name: str) -> jax.Array:
        """A knob of a tensor, a number or one for each member, `[member]`."""
        value = jnp.asarray(self.knobs[name][knob], jnp.float32)
        return jnp.broadcast_to(value, (self.num_members,))


def merge_method(name: str) -> MergeMethod:
    """A method of `weight_space.METHODS` that needs no data but, at most, Fisher files.

    Raises:
        ValueError: if there is none of this name.
    """
    names = sorted(name for name, m in METHODS.items() if m.statistics != "grams")
    if name not in names:
        raise ValueError(f"method is one of {', '.join(names)}; got {name!r}.")
    return METHODS[name]


def knobs_of(method: str) -> dict[str, Any]:
    """The knobs of a method and their defaults; `inspect.Parameter.empty` for none.

    Which member a tensor that is not floating comes from, and the members' ids, are no
    knobs here.
    """
    parameters = inspect.signature(METHODS[method].merge).parameters.values()
    return {
        p.name: p.default
        for p in parameters
        if p.kind is p.KEYWORD_ONLY and p.name not in ("keep", "member_ids")
    }


def check_merge(
    method: str,
    num_members: int,
    *,
    base: bool,
    fisher: int,
    knobs: Mapping[str, Any],
    per_leaf: Mapping[str, Mapping[str, Any]],
) -> None:
    """Raises `ValueError` for what the method cannot do, before anything is read.

    Values of knobs are checked by the method itself, which is traced but not run.
    """
    known = merge_method(method)
    if known.base == "needs" and not base:
        raise ValueError(f"{method} needs a base, the model that was fine-tuned.")
    if not known.base and base:
        raise ValueError(f"{method} takes no base.")
    if known.num_members not in (None, num_members):
        raise ValueError(
            f"{method} merges {known.num_members} folders; got {num_members}."
        )
    expected = num_members if known.statistics == "fisher" else 0
    if fisher != expected:
        raise ValueError(
            f"{method} takes {expected or 'no'} folders of Fisher information"
            f"{', one for each member' if expected else ''}; got {fisher}."
        )
    _check_names(method, knobs)
    _check_values(method, num_members, base, knobs)
    for pattern, given in per_leaf.items():
        try:
            check_layout(given.get("layout"))
            own = knobs_in(given)
            _check_names(method, own)
            _check_values(method, num_members, base, {**knobs, **own})
        except ValueError as error:
            raise ValueError(f"for {pattern!r}, {error}") from error
    scope = knobs.get("scope", knobs_of(method).get("scope"))
    for pattern, given in per_leaf.items():
        differing = [name for name in given if name in _RANKING]
        if "scope" in given:
            raise ValueError(f"scope is of the whole model; got it for {pattern!r}.")
        if differing and scope == "global":
            raise ValueError(
                f"{differing[0]} cannot differ for {pattern!r} where entries are ranked"
                " over the whole model; take scope leaf."
            )


def check_layout(layout: str | None) -> None:
    """Raises `ValueError` for a layout of matrices that is none; None passes."""
    if layout is not None and layout not in LAYOUTS:
        raise ValueError(f"layout is one of {', '.join(LAYOUTS)}; got {layout!r}.")


def knobs_in(given: Mapping[str, Any]) -> dict[str, Any]:
    """What is given for a pattern, without the layout, which is of the tensor."""
    return {name: value for name, value in given.items() if name != "layout"}


def _check_names(method, given):
    known = knobs_of(method)
    for name in given:
        if name not in known:
            raise ValueError(
                f"{name} is no knob of {method}; it has"
                f" {', '.join(known) if known else 'none'}."
            )


def _check_values(method, num_members, base, given):
    own = METHODS[method]
    missing = [name for name in own.knobs_without_default if given.get(name) is None]
    if missing:
        raise ValueError(f"{method} needs {missing[0]}, which has no usual value.")
    check_knobs(method, given)
    stacked = {"x": np.ones((num_members, 2), np.float32)}
    arguments: list[Any] = [stacked]
    if base:
        arguments.append({"x": np.zeros((2,), np.float32)})
    if own.statistics:
        arguments.append(stacked)
    if own.needs_key:
        arguments.append(jax.random.key(0, impl="threefry2x32"))
    jax.eval_shape(lambda *arrays: own.merge(*arrays, **given), *arguments)


def knobs_by_leaf(
    method: str,
    names: Sequence[str],
    knobs: Mapping[str, Any],
    per_leaf: Mapping[str, Mapping[str, Any]],
) -> dict[str, dict[str, Any]]:
    """All knobs of every tensor: of the first pattern found in its name, then of all.

    Raises:
        ValueError: if a pattern is found in no name.
    """
    own = by_pattern(names, per_leaf, {})
    defaults = knobs_of(method)
    return {
        name: {**defaults, **knobs, **knobs_in(more)} for name, more in zip(names, own)
    }


def layouts_by_leaf(
    names: Sequence[str], per_leaf: Mapping[str, Mapping[str, Any]]
) -> dict[str, str]:
    """The layouts of those tensors for which one is given; arguments as there."""
    own = by_pattern(names, per_leaf, {})
    return {name: more["layout"] for name, more in zip(names, own) if "layout" in more}


def members_left_out(
    method: str, knobs_of_leaves: Mapping[str, Mapping[str, Any]]
) -> dict[str, list[int]]:
    """Places of the members of weight 0, by the name of a tensor.

    Args:
        method: a name of `weight_space.METHODS`.
        knobs_of_leaves: from `knobs_by_leaf`.
    """
    found = {}
    for name, knobs in knobs_of_leaves.items():
        weights = knobs.get("weights")
        if method in ("slerp", "nuslerp"):  # an end is that member
            weights = [1.0 - knobs["t"], knobs["t"]]
        if weights is not None:
            found[name] = np.flatnonzero(np.asarray(weights) == 0).tolist()
    return found
