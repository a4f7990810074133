"""Fisher information of every weight, and the mean of weights that it weighs."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.ensemble import Ensemble
from ensjax.members import member_key, num_members
from ensjax.ops.limits import at_least
from ensjax.weight_space.ensembles import takes_ensembles
from ensjax.weight_space.leaves import check_weights, is_mixed, leaf_name, wide
from ensjax.weight_space.row_statistics import mean_over_rows
from ensjax.weight_space.vectors import map_together, rows_of, without_absent


def fisher_information(
    ensemble: Ensemble,
    inputs: Any,
    *,
    weights: Any = None,
    own_rows: bool = False,
    rows_at_once: int = 8,
    block: int | str | None = "auto",
) -> Any:
    """The diagonal of every member's Fisher information, exact over classes.

        F = mean_x sum_c p(c | x) (d log p(c | x) / d theta)^2

    Labels are not needed: classes are weighed with the member's own probabilities. The
    square is taken for each example; that of a batch's gradient is another quantity.

    Args:
        ensemble: members that return logits `[batch, class]`.
        inputs: leaves `[example, ...]`, or `[member, example, ...]` if `own_rows`.
        weights: of the rows in the mean, `[example]` or `[member, example]`; equal by
            default. A row of weight 0 leaves no trace.
        own_rows: whether each member has rows of its own, as for members fine-tuned on
            different tasks.
        rows_at_once: rows of which gradients are held together: for each member that
            runs, `rows_at_once * class` copies of its parameters.
        block: how many members of a device run at once; see `map_members`.

    Returns:
        A tree like `ensemble.params`, float32 leaves `[member, ...]`, at least 0; 0 for
        leaves that are not floating. In evaluation mode: batch norm with its running
        statistics, no dropout.

    Raises:
        ValueError: if outputs are not `[batch, class]`, or inputs or weights differ in
            length.

    Source: Matena and Raffel 2022, arXiv:2111.09832 (Fisher merging).
    """
    return mean_over_rows(
        ensemble,
        _SquaredGradients(ensemble.graph, None),
        inputs,
        weights=weights,
        own_rows=own_rows,
        rows_at_once=rows_at_once,
        block=block,
    )


def sampled_fisher_information(
    ensemble: Ensemble,
    inputs: Any,
    *,
    seed: int,
    num_draws: int = 1,
    weights: Any = None,
    own_rows: bool = False,
    rows_at_once: int = 8,
    block: int | str | None = "auto",
) -> Any:
    """As `fisher_information`, of labels drawn from the member's probabilities.

    An unbiased estimate, for many classes: `num_draws` gradients for each row instead
    of one for each class.

    Args:
        ensemble: as in `fisher_information`.
        inputs: as in `fisher_information`.
        seed: a row's labels depend on it, the member's id and the row's position.
        num_draws: labels drawn for each row; 1 as in wise-ft.
        weights: as in `fisher_information`.
        own_rows: as in `fisher_information`.
        rows_at_once: as in `fisher_information`, with draws in place of classes.
        block: as in `fisher_information`.

    Raises:
        ValueError: as `fisher_information`, or if no label is drawn.

    Source: Matena and Raffel 2022, arXiv:2111.09832 (Fisher merging).
    """
    if num_draws < 1:
        raise ValueError(f"num_draws must be at least 1; got {num_draws}.")
    return mean_over_rows(
        ensemble,
        _SquaredGradients(ensemble.graph, num_draws),
        inputs,
        weights=weights,
        own_rows=own_rows,
        rows_at_once=rows_at_once,
        seed=seed,
        block=block,
    )


@dataclasses.dataclass(frozen=True)
class _SquaredGradients:
    """The weighted sum over a block of rows of squared gradients of log p(c | x)."""

    graph: Any
    num_draws: int | None  # None: all classes

    def __call__(self, state, member_id, seed, inputs, weights, positions):
        leaves, structure = jax.tree.flatten(state["params"])
        mixed = [i for i, leaf in enumerate(leaves) if is_mixed(leaf)]
        key = member_key(seed, "sample", member_id)

        def log_probs(values, row):
            full = list(leaves)
            for i, value in zip(mixed, values, strict=True):
                full[i] = value
            params = jax.tree.unflatten(structure, full)
            model = self.graph.merge({**state, "params": params}, train=False)
            logits = model(jax.tree.map(lambda x: x[None], row))
            if logits.ndim != 2:
                raise ValueError(
                    "Fisher information is of members that return logits"
                    f" [batch, class]; got shape {logits.shape}."
                )
            return jax.nn.log_softmax(wide(logits[0]))

        def of_row(row, weight, position):
            values = [wide(leaves[i]) for i in mixed]
            out, pull_back = jax.vjp(lambda v: log_probs(v, row), values)
            directions = self._directions(out, jax.random.fold_in(key, position))
            (grads,) = jax.vmap(pull_back)(directions)
            # Selected, not multiplied: a row of weight 0 may give NaN.
            return [
                jnp.where(weight > 0, weight * jnp.sum(g * g, axis=0), 0.0)
                for g in grads
            ]

        squares = jax.vmap(of_row)(inputs, weights, positions)
        sums = [jnp.zeros(leaf.shape, jnp.float32) for leaf in leaves]
        for i, square in zip(mixed, squares, strict=True):
            sums[i] = jnp.sum(square, axis=0)
        return jax.tree.unflatten(structure, sums)

    def _directions(self, log_probs, key):
        """Cotangents `[direction, class]` whose squared gradients sum to the row's."""
        classes = log_probs.shape[0]
        if self.num_draws is None:
            return jnp.diag(jnp.exp(0.5 * log_probs))
        drawn = jax.random.categorical(key, log_probs, shape=(self.num_draws,))
        one_hot = jax.nn.one_hot(drawn, classes, dtype=log_probs.dtype)
        return one_hot / np.sqrt(self.num_draws).astype(log_probs.dtype)


@takes_ensembles()
def fisher_merge(
    stacked: Any,
    fisher: Any,
    *,
    weights: Any = None,
    floor: Any = 1e-8,
    normalize: bool = False,
    keep: int = 0,
) -> Any:
    """The mean of members' weights, each entry weighed by its Fisher information.

        theta = sum_m w_m F_m theta_m / sum_m w_m F_m

    Args:
        stacked: leaves `[member, ...]` or an `Ensemble`, such as `ensemble.params`.
        fisher: of `fisher_information`: the same structure and shapes, at least 0.
        weights: `[member]`, at least 0; equal by default. A weight of 0 removes a
            member, also one that is not finite.
        floor: smallest Fisher information, so that entries which matter to no member
            are averaged; wise-ft's 1e-8. May be traced.
        normalize: whether each member's information is divided by its root of the sum
            of squares over the whole model first, so that members whose predictions are
            unsure do not drown the others. Off: with it, members that were fine-tuned
            on four versions of the digits merged less well.
        keep: the member whose leaves are taken where they are not floating.

    Returns:
        Leaves `[...]` of the types of `stacked`.

    Raises:
        ValueError: if `fisher` is of another structure or shape, or weights are wrong;
            names the leaf.

    Source: Matena and Raffel 2022, arXiv:2111.09832 (Fisher merging).
    """
    weights = check_weights(weights, stacked)
    if jax.tree.structure(fisher) != jax.tree.structure(stacked):
        raise ValueError(
            "fisher must have the structure of the stack; got"
            f" {jax.tree.structure(fisher)} for {jax.tree.structure(stacked)}."
        )
    pairs = zip(jax.tree.leaves_with_path(stacked), jax.tree.leaves(fisher))
    for (path, leaf), information in pairs:
        if np.shape(leaf) != np.shape(information):
            raise ValueError(
                f"the information of {leaf_name(path)} has shape"
                f" {np.shape(information)}; the members' leaf has {np.shape(leaf)}."
            )
    entries = [
        wide(f)
        for f, leaf in zip(jax.tree.leaves(fisher), jax.tree.leaves(stacked))
        if is_mixed(leaf)
    ]

    def merged(_, rows):
        lengths = jnp.ones((num_members(stacked),), jnp.float32)
        if normalize:
            axes = [tuple(range(1, f.ndim)) for f in entries]
            squares = sum(jnp.sum(f * f, axis=a) for f, a in zip(entries, axes))
            lengths = jnp.sqrt(jnp.where(squares > 0, squares, 1.0))
        means = []
        for x, f in zip(rows, entries):
            x, f = without_absent(x, weights), without_absent(f, weights)
            f = at_least(f / rows_of(lengths, f), floor) * rows_of(weights, f)
            means.append(jnp.sum(f * x, axis=0) / jnp.sum(f, axis=0))
        return means

    return map_together(merged, stacked, keep=keep)
