"""`shard_state`: the state of each member split over data shards, leaf by leaf.

Between steps a shard holds its part of every large leaf: `1 / data` of the weights, of
the optimizer's state and of the best weights so far. A step gathers the weights for the
loss; the derivative of that gather leaves each shard with its part of the gradient.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax

from ensjax.blocks import inner_jaxprs

# A smaller leaf is not worth a collective.
_MIN_SIZE = 1024
_WHOLE = -1

# Each entry of the result is a function of the entries at its place.
_ELEMENTWISE = frozenset(
    """
    abs add add_any and cbrt ceil clamp convert_element_type copy cos div eq erf
    erfc exp exp2 expm1 floor ge gt integer_pow is_finite le log log1p logistic lt
    max min mul ne neg not or pow reduce_precision rem round rsqrt select_n sign sin
    sqrt square stop_gradient sub tan tanh xor
    """.split()  # noqa: SIM905
)
_CALLS = frozenset(
    """
    jit pjit closed_call core_call remat2 checkpoint cond custom_jvp_call
    custom_vjp_call
    """.split()  # noqa: SIM905
)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Which axis of every leaf of one member's state is split over "data".

    Attributes:
        axes: the axis, or -1 for a leaf that every shard has whole; by
            `jax.tree.leaves`.
        treedef: of the state.
        data_shards: devices on the axis "data".
    """

    axes: tuple[int, ...]
    treedef: Any
    data_shards: int

    @classmethod
    def of(cls, state: Any, data_shards: int) -> "Layout":
        """Splits the longest axis that divides of every leaf that is large enough.

        Leaves of the same shape are split along the same axis.

        Args:
            state: leaves `[member, ...]`; shapes are enough.
            data_shards: devices on the axis "data".
        """
        axes = []
        for leaf in jax.tree.leaves(state):
            shape = leaf.shape[1:]
            fits = [i for i, n in enumerate(shape) if n % data_shards == 0]
            small = leaf.size // max(1, leaf.shape[0]) < _MIN_SIZE
            longest = max(fits, key=lambda i: shape[i]) if fits else _WHOLE
            axes.append(_WHOLE if small else longest)
        return cls(tuple(axes), jax.tree.structure(state), data_shards)

    def entry(self, name: str) -> "Layout":
        """The layout of one entry of the state."""
        axes = jax.tree.unflatten(self.treedef, self.axes)[name]
        leaves, treedef = jax.tree.flatten(axes)
        return dataclasses.replace(self, axes=tuple(leaves), treedef=treedef)

    @property
    def specs(self) -> Any:
        """`jax.P` of every leaf `[member, ...]`."""
        specs = [
            jax.P("member")
            if axis == _WHOLE
            else jax.P("member", *[None] * axis, "data")
            for axis in self.axes
        ]
        return jax.tree.unflatten(self.treedef, specs)

    def gather(self, part: Any) -> Any:
        """The whole from this shard's part: an all-gather a split leaf."""

        def gathered(leaf, axis):
            return jax.lax.all_gather(leaf, "data", axis=axis, tiled=True)

        return self._map(gathered, part)

    def split(self, whole: Any) -> Any:
        """This shard's part of a whole."""
        shard = jax.lax.axis_index("data")

        def part(leaf, axis):
            size = leaf.shape[axis] // self.data_shards
            return jax.lax.dynamic_slice_in_dim(leaf, shard * size, size, axis)

        return self._map(part, whole)

    def shapes(self, part: Any) -> Any:
        """Shapes of the whole."""

        def whole(leaf, axis):
            shape = list(leaf.shape)
            shape[axis] *= self.data_shards
            return jax.ShapeDtypeStruct(tuple(shape), leaf.dtype)

        return self._map(whole, part)

    def partition(self, tree: Any) -> tuple[list[Any], list[Any]]:
        """The leaves that are split, and those that are not."""
        pairs = list(zip(jax.tree.leaves(tree), self.axes, strict=True))
        split = [leaf for leaf, axis in pairs if axis != _WHOLE]
        return split, [leaf for leaf, axis in pairs if axis == _WHOLE]

    def join(self, split: Sequence[Any], whole: Sequence[Any]) -> Any:
        """The tree from what `partition` gave."""
        split, whole = iter(split), iter(whole)
        leaves = [next(whole if axis == _WHOLE else split) for axis in self.axes]
        return jax.tree.unflatten(self.treedef, leaves)

    def _map(self, fn, tree):
        leaves = [
            leaf if axis == _WHOLE else fn(leaf, axis)
            for leaf, axis in zip(jax.tree.leaves(tree), self.axes, strict=True)
        ]
        return jax.tree.unflatten(self.treedef, leaves)


def on_parts(
    fn: Callable[..., Any], layouts: Sequence[Layout], num_outputs: int
) -> Callable[..., Any]:
    """A function of wholes as one of this shard's parts.

    An elementwise function (SGD, Adam, weight decay, schedules) works on the parts; for
    any other (norms, clipping, factored moments) they are gathered first, and the
    results split, so that every optimizer is exact.

    Args:
        fn: function of trees.
        layouts: of the arguments.
        num_outputs: of `fn`, whose layouts are those of as many first arguments.
    """

    def run(*parts):
        whole = [x.shapes(part) for x, part in zip(layouts, parts, strict=True)]
        if _same_entry_by_entry(fn, whole, parts):
            return fn(*parts)
        whole = [x.gather(part) for x, part in zip(layouts, parts, strict=True)]
        outputs = zip(layouts[:num_outputs], fn(*whole), strict=True)
        return tuple(x.split(output) for x, output in outputs)

    return run


def _same_entry_by_entry(fn, whole, parts) -> bool:
    """Whether `fn` is elementwise, and the same function for wholes and for parts.

    Numbers in it count: a scale that was computed from a leaf's shape is another one.
    """
    steps = []
    for args in (whole, parts):
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), args)
        try:
            closed = jax.make_jaxpr(fn)(*shapes)
        except (TypeError, ValueError):  # shapes that do not fit, such as a mask's
            return False
        steps.append(_elementwise_steps(closed.jaxpr, closed.consts))
    return steps[0] is not None and steps[0] == steps[1]


def _elementwise_steps(jaxpr, consts):
    """A jaxpr's operations and their numbers, or None if it is not elementwise."""
    if any(getattr(x, "ndim", 0) for x in consts):
        return None
    steps = [id(x) if isinstance(x, jax.core.Tracer) else repr(x) for x in consts]
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        shapes = [getattr(x.aval, "shape", ()) for x in (*eqn.invars, *eqn.outvars)]
        if any(hasattr(x, "val") and x.aval.shape for x in eqn.invars):
            return None  # a constant array, such as a mask
        if name in _CALLS:
            num_steps = len(steps)
            for inner, inner_consts in inner_jaxprs(eqn):
                own = _elementwise_steps(inner, inner_consts)
                if own is None:
                    return None
                steps += [name, *own]
            if len(steps) == num_steps:
                return None  # what it calls cannot be seen
        elif any(shapes):
            is_fill = name == "broadcast_in_dim" and not shapes[0]
            if not is_fill and name not in _ELEMENTWISE:
                return None
        numbers = [x.val for x in eqn.invars if hasattr(x, "val")]
        values = [v for v in eqn.params.values() if isinstance(v, (int, float))]
        steps.append(repr((name, numbers, values)))
    return steps
