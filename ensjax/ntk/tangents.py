"""One member's outputs as a function of the parameters that its kernel is about.

What the empirical kernel, its products with vectors and linearised models share: which
parameters count, and a member's Jacobian, its transpose and itself applied to vectors.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.blocks import tracing_at_once, tracing_members
from ensjax.weight_space.leaves import leaf_names, wide


@dataclasses.dataclass(frozen=True)
class Tangents:
    """A member function and the parameters with respect to which it is differentiated.

    Attributes:
        graph: of an ensemble; it runs in evaluation mode.
        params: regular expression (`re.search`): the leaves in whose dotted name it is
            found count.
    """

    graph: Any
    params: str = ""

    def check(self, params: Any) -> None:
        """Raises for a pattern that finds nothing and for leaves that do not count.

        Args:
            params: stacked or of one member; shapes and types are enough.

        Raises:
            ValueError: if the pattern is no regular expression or is found in no name.
            TypeError: if a leaf that is found is not real floating point; names it.
        """
        try:
            found = re.compile(self.params)
        except (re.error, TypeError) as error:
            raise ValueError(
                f"params={self.params!r} is no regular expression: {error}."
            ) from error
        names = leaf_names(params)
        chosen = [name for name in names if found.search(name)]
        if not chosen:
            raise ValueError(
                f"params={self.params!r} is found in the name of no parameter; there"
                f" are {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}."
            )
        for name, leaf in zip(names, jax.tree.leaves(params), strict=True):
            if name in chosen and not jnp.issubdtype(leaf.dtype, jnp.floating):
                raise TypeError(
                    f"{name} is {leaf.dtype}, and a tangent kernel is of real floating"
                    f" parameters. Leave it out: params=r'^(?!{re.escape(name)}$)'."
                )

    def chosen(self, params: Any) -> dict[str, Any]:
        """The leaves that count by their dotted names, in float32 or wider."""
        pairs = zip(leaf_names(params), jax.tree.leaves(params), strict=True)
        return {name: wide(x) for name, x in pairs if re.search(self.params, name)}

    def size(self, params: Any) -> int:
        """How many numbers of one member's `params` count."""
        return sum(math.prod(x.shape) for x in self._shapes(params).values())

    def _shapes(self, params):
        return jax.eval_shape(self.chosen, params)

    def call(self, state: Any, values: dict[str, Any], x: Any) -> jax.Array:
        """Outputs `[row, output]` with other values of the leaves that count.

        Raises:
            ValueError: if the member does not return one array `[row, ...]` of real
                numbers.
        """
        leaves, structure = jax.tree.flatten(state["params"])
        names = leaf_names(state["params"])
        params = structure.unflatten(
            [
                values[name].astype(leaf.dtype) if name in values else leaf
                for name, leaf in zip(names, leaves, strict=True)
            ]
        )
        out = self.graph.merge({**state, "params": params}, train=False)(x)
        rows = num_rows(x)
        is_one = hasattr(out, "dtype") and jnp.issubdtype(out.dtype, jnp.floating)
        if not is_one or out.shape[:1] != (rows,):
            found = jax.tree.map(lambda a: f"{a.dtype}{list(a.shape)}", out)
            raise ValueError(
                f"a member must return one real array [row, ...] for {rows} rows; got"
                f" {found}."
            )
        return wide(out).reshape(rows, -1)

    def function(self, state: Any, x: Any) -> tuple[Callable[[Any], jax.Array], Any]:
        """`fn(values) -> [row, output]` at fixed inputs, and the member's values."""
        return lambda values: self.call(state, values, x), self.chosen(state["params"])

    def num_outputs(self, state: Any, x: Any) -> int:
        """Outputs of one row; shapes of one member and of the inputs are enough."""
        return jax.eval_shape(self.outputs_of_a_row, state, x).shape[1]

    def outputs_of_a_row(self, state: Any, x: Any) -> jax.Array:
        """What the member says of the first row, `[1, output]`."""
        fn, values = self.function(state, jax.tree.map(lambda a: a[:1], x))
        return fn(values)

    def jacobian(self, state: Any, x: Any) -> list[jax.Array]:
        """The Jacobian of every row, leaves `[row, output, entry]`."""

        def of_row(row):
            fn, values = self.function(state, jax.tree.map(lambda a: a[None], row))
            out, pull_back = jax.vjp(fn, values)
            basis = jnp.eye(out.shape[1], dtype=out.dtype)
            (rows,) = jax.vmap(lambda u: pull_back(u[None]))(basis)
            return [j.reshape(out.shape[1], -1) for j in rows.values()]

        # Operations choose their form by how many sets of weights run at once; the
        # gradient with respect to weights is of every row.
        with tracing_at_once(tracing_members() * num_rows(x)):
            return jax.vmap(of_row)(x)

    def push_forward(self, state: Any, x: Any) -> Callable[[Any], jax.Array]:
        """`push(tangents) -> [row, output]`: the Jacobian times a direction.

        The transpose of the transposed product, since operations with a reverse mode of
        their own (`ensjax.ops.Conv`) have no forward mode. It costs what `jax.jvp`
        does: of the product that is transposed nothing is computed.
        """
        fn, values = self.function(state, x)
        out, pull_back = jax.vjp(fn, values)
        _, transposed = jax.vjp(pull_back, jnp.zeros_like(out))
        return lambda tangents: transposed((tangents,))[0]


def num_rows(x: Any) -> int:
    """Rows of a batch; its leaves are `[row, ...]`."""
    return jnp.shape(jax.tree.leaves(x)[0])[0]


def check_rows(name: str, x: Any, like: Any = None) -> None:
    """Raises `ValueError` unless leaves are `[row, ...]` of one length, at least 1.

    Args:
        name: of the argument, for errors.
        x: inputs, any pytree.
        like: other inputs, whose rows must have the same structure and shapes.
    """
    leaves = jax.tree.leaves_with_path(x)
    shapes = [np.shape(leaf) for _, leaf in leaves]
    if not shapes or any(not s or s[0] != shapes[0][0] or not s[0] for s in shapes):
        raise ValueError(
            f"{name} must be arrays [row, ...] with the same number of rows, at least"
            f" one; got shapes {shapes}."
        )
    if like is None:
        return
    others = jax.tree.leaves_with_path(like)
    if jax.tree.structure(x) != jax.tree.structure(like):
        raise ValueError(
            f"{name} must have the structure of x, {jax.tree.structure(like)}; got"
            f" {jax.tree.structure(x)}."
        )
    for (path, leaf), (_, other) in zip(leaves, others, strict=True):
        if np.shape(leaf)[1:] != np.shape(other)[1:]:
            raise ValueError(
                f"{name}{jax.tree_util.keystr(path)} has rows of shape"
                f" {np.shape(leaf)[1:]}, but those of x have {np.shape(other)[1:]}."
            )


def rows_of(x: Any, start: Any, count: int) -> Any:
    """`count` rows from `start` on (traced)."""
    return jax.tree.map(
        lambda a: jax.lax.dynamic_slice_in_dim(jnp.asarray(a), start, count), x
    )


def contract(left: Sequence[Any], right: Sequence[Any], *, full: bool) -> jax.Array:
    """The kernel `[row, row']` of Jacobians, or `[row, row', output, output']`.

    Args:
        left: leaves `[row, output, entry]`.
        right: leaves `[row', output', entry]`.
        full: whether outputs stay; else their mean, the trace over their number.
    """
    total = 0
    for a, b in zip(left, right, strict=True):
        if full:
            total += jnp.einsum("aop,bqp->aboq", a, b)
        else:
            total += jnp.einsum("aop,bop->ab", a, b)
    return total if full else total / left[0].shape[1]
