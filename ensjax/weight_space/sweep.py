"""Every mixture evaluated on several datasets, in one compiled program.

Mixtures are made a block at a time, scored and forgotten, so that a thousand of them
never exist together. Members' outputs may be combined with the same coefficients in the
same program: the ensemble in output space beside the one in weight space.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.blocks import Blocks
from ensjax.ensemble import Ensemble
from ensjax.graphs import Forward
from ensjax.mapping import map_local, mesh_program
from ensjax.members import num_members, pad_members
from ensjax.weight_space.leaves import check_keep, wide
from ensjax.weight_space.mix import (
    Outputs,
    coefficients_of_leaves,
    local_mixtures,
    local_rows,
    mix,
    pad_matrices,
    scattered,
)
from ensjax.weight_space.row_scores import (
    RowScore,
    batches_of_rows,
    is_better_large,
    row_scores,
    scores_of_batch,
)
from ensjax.weight_space.statistics import (
    check_has_statistics,
    split_batches,
    with_statistics,
)

RULES = ("predictive", "geometric_mean")
DEFAULT_SCORES = ("accuracy", "nll")
MAX_AT_ONCE = 16


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Scores of every mixture.

    Attributes:
        coefficients: `[mixture, member]`.
        values: `values[space][dataset][score]`, `[mixture]`: means over the rows. The
            space is "weights", or a rule by which the members' outputs were combined.
        rows: the same of every row, `[mixture, row]`, where it was asked for.
    """

    coefficients: jax.Array
    values: dict[str, dict[str, dict[str, np.ndarray]]]
    rows: dict[str, dict[str, dict[str, np.ndarray]]] | None = None

    def best(self, dataset: str, score: str, *, largest: bool | None = None) -> int:
        """The mixture in weight space with the best mean score; the first of equals.

        Choose it on rows that are not the test's. A score that is NaN is never best.

        Args:
            dataset: its name.
            score: its name.
            largest: whether a larger score is better. By default it is for "accuracy"
                and is not for "error", "nll", "brier" and "squared_error"; of any other
                name it must be said.

        Raises:
            ValueError: if there is no such dataset or score, the score of every mixture
                is NaN, or it is not known whether it is to be large.
        """
        of_datasets = self.values["weights"]
        if dataset not in of_datasets:
            raise ValueError(
                f"{dataset!r} is no dataset of this sweep; there are"
                f" {', '.join(map(repr, of_datasets))}."
            )
        if score not in of_datasets[dataset]:
            raise ValueError(
                f"{score!r} is no score of this sweep; on {dataset!r} there are"
                f" {', '.join(map(repr, of_datasets[dataset]))}. Others are asked for"
                " with sweep(..., scores=)."
            )
        values = np.asarray(of_datasets[dataset][score])
        largest = is_better_large(score, largest)
        if np.isnan(values).all():
            raise ValueError(
                f"{score!r} on {dataset!r} is NaN for all {len(values)} mixtures: does"
                " each hold a member that is not finite, or are labels no classes?"
            )
        return int(np.nanargmax(values) if largest else np.nanargmin(values))


def sweep(
    ensemble: Ensemble | Any,
    coefficients: jax.Array,
    datasets: Mapping[str, tuple[Any, Any]] | None = None,
    *,
    scores: Sequence[str] | Mapping[str, RowScore] = DEFAULT_SCORES,
    output_space: Sequence[str] = (),
    per_leaf: Mapping[str, jax.Array] | None = None,
    keep: int = 0,
    statistics: Any = None,
    per_row: bool = False,
    batch_size: int = 512,
    block: int | str = "auto",
    evaluate: Callable[[Any], Mapping[str, float]] | None = None,
) -> Sweep:
    """Scores of every mixture of the members' weights on every dataset (compiled).

    Args:
        ensemble: M members on any mesh; with `evaluate`, any stacked tree too.
        coefficients: `[mixture, member]`, for instance `alpha_path(11)`.
        datasets: inputs `[row, ...]` and targets `[row, ...]` by name.
        scores: names in `ROW_SCORES`, or functions of one batch's outputs and targets
            that give `[batch]`. Define them once: a new function compiles anew.
        output_space: rules by which the members' outputs are combined with the same
            coefficients: "predictive" (mean of probabilities; scores take its
            logarithm as logits) and "geometric_mean" (mean of logits, or of any
            outputs). Each member runs once for all mixtures.
        per_leaf, keep: as for `mix`; in output space they play no part.
        statistics: inputs `[row, ...]` on which every mixture's batch statistics are
            measured before it is scored; without, they are mixed as weights are.
        per_row: whether to return scores of rows too.
        batch_size: rows at a time.
        block: mixtures of a device that exist and are scored at once. With "auto" 16
            exist, and the rule of `map_members` says how many are scored at once.
        evaluate: instead of datasets, a function of one mixture's weights (leaves
            `[...]`, on the host) that returns numbers by name, such as one that loads
            them into a PyTorch model. It is called once for each mixture; the stack is
            put on the device once. Of the other arguments only coefficients, `per_leaf`
            and `keep` go with it.

    Returns:
        `Sweep`; with `evaluate` the dataset is called "evaluate".

    Raises:
        TypeError: if datasets, or what evaluate returns, are not by name.
        ValueError: if neither or both of datasets and evaluate are given, evaluate has
            an argument that is none of its own, there is no dataset or score, a name is
            unknown, a shape does not fit, or a score gives anything but one number a
            row (labels must be integers `[row]`); names score, dataset and shape.
    """
    if (datasets is None) == (evaluate is None):
        raise ValueError("give either datasets or evaluate.")
    if evaluate is not None:
        own = (scores, tuple(output_space), statistics, per_row, batch_size, block)
        _check_nothing_else(*own)
        stacked = ensemble.state if isinstance(ensemble, Ensemble) else ensemble
        return _on_host(stacked, coefficients, per_leaf, keep, evaluate)
    _check_datasets(datasets)
    scores = row_scores(scores)
    unknown = set(output_space) - set(RULES)
    if unknown or isinstance(output_space, str):
        raise ValueError(
            f"output_space is a sequence of {', '.join(RULES)}; got {output_space!r}."
        )
    check_keep(keep, ensemble.num_members)
    Blocks(block)
    matrices, places = coefficients_of_leaves(ensemble.state, coefficients, per_leaf)
    shards = ensemble.mesh.shape["data"]
    batched = {
        name: batches_of_rows(name, data, batch_size, shards)
        for name, data in datasets.items()
    }
    if statistics is not None:
        check_has_statistics(ensemble)
        statistics = split_batches(statistics, batch_size, shards)
    job = _Sweep(
        ensemble.graph,
        scores,
        matrices[0].shape[0],
        places,
        tuple(output_space),
        per_row,
        block,
    )
    found = mesh_program(job, ensemble.mesh)(
        ensemble.state, matrices, jnp.int32(keep), batched, statistics
    )
    values, rows = jax.device_get(found)
    if per_row:
        number = {name: jax.tree.leaves(d)[0].shape[0] for name, d in datasets.items()}
        rows = {
            space: {
                name: {s: x[:, : number[name]] for s, x in of_scores.items()}
                for name, of_scores in of_space.items()
            }
            for space, of_space in rows.items()
        }
    return Sweep(matrices[0], values, rows if per_row else None)


def _check_datasets(datasets):
    """Raises unless these are datasets by name, and at least one."""
    if not isinstance(datasets, Mapping):
        raise TypeError(
            "datasets are pairs of inputs and targets by name; got"
            f" {type(datasets).__name__}. One data set goes in as"
            ' {"test": (x, y)}.'
        )
    if not datasets:
        raise ValueError(
            "datasets is empty: there is nothing to score the mixtures on. Give pairs"
            ' of inputs and targets by name, such as {"test": (x, y)}.'
        )


def _check_nothing_else(scores, output_space, statistics, per_row, batch_size, block):
    """Raises `ValueError` for what would play no part beside `evaluate`."""
    is_given = {
        "scores": isinstance(scores, Mapping) or tuple(scores) != DEFAULT_SCORES,
        "output_space": bool(output_space),
        "statistics": statistics is not None,
        "per_row": bool(per_row),
        "batch_size": batch_size != 512,
        "block": block != "auto",
    }
    given = [name for name, is_in in is_given.items() if is_in]
    if given:
        raise ValueError(
            f"{', '.join(given)} would play no part: evaluate is given one mixture's"
            " weights and returns what it likes. Leave them out, or give datasets."
        )


@dataclasses.dataclass(frozen=True)
class _Sweep:
    """State, matrices, member kept, datasets and rows for batch statistics."""

    graph: Any
    scores: tuple[tuple[str, RowScore], ...]
    num_mixtures: int
    places: tuple[int, ...]
    rules: tuple[str, ...]
    per_row: bool
    block: int | str
    donate: tuple[int, ...] = ()

    def in_specs(self):
        batches = jax.P(None, "data")
        return (jax.P("member"), jax.P(), jax.P(), batches, jax.P("data"))

    def out_specs(self):
        return jax.P(None, "member"), jax.P(None, "member", None, "data")

    def check(self, mesh, *args):
        del mesh, args

    def prepare(self, mesh, state, matrices, keep, datasets, statistics):
        devices = mesh.shape["member"]
        members = matrices[0].shape[1]
        rows = math.ceil(members / devices) * devices
        local = math.ceil(self.num_mixtures / devices)
        size = min(MAX_AT_ONCE if self.block == "auto" else self.block, local)
        unit = size * devices
        mixtures = math.ceil(self.num_mixtures / unit) * unit
        matrices = [
            m.reshape(mixtures // unit, unit, rows)
            for m in pad_matrices(matrices, mixtures, rows)
        ]
        return pad_members(state, rows), matrices, keep, datasets, statistics

    def local(self, state, matrices, keep, datasets, statistics):
        leaves, treedef = jax.tree.flatten(state)
        rows = local_rows(leaves, keep)
        dtypes = [leaf.dtype for leaf in leaves]
        one = _Evaluate(self.graph, self.scores, self.per_row)
        kinds = ("member", "shared", "shared")

        def run(block):
            mixed = local_mixtures(rows, block, places=self.places, dtypes=dtypes)
            mapped = map_local(one, kinds=kinds, blocks=Blocks(self.block))
            return mapped(treedef.unflatten(mixed), datasets, statistics)

        found = {"weights": jax.lax.map(run, matrices)}
        for rule in self.rules:
            found[rule] = self._output_space(rule, state, matrices[0], datasets)
        values = {space: v for space, (v, _) in found.items()}
        return values, {space: r for space, (_, r) in found.items()}

    def _output_space(self, rule, state, matrix, datasets):
        """Scores of members' combined outputs: members once, mixtures by blocks."""
        forward = map_local(
            Forward(self.graph), kinds=("member", "shared"), blocks=Blocks()
        )

        def score_batch(dataset, batch):
            x, targets, _ = batch
            outputs = forward(state, x)
            if rule == "predictive":
                outputs = jax.nn.softmax(outputs, axis=-1)
            outputs = Outputs(wide(outputs))

            def run(block):
                mixed = scattered(outputs, block)
                mixed = jnp.log(mixed) if rule == "predictive" else mixed

                def own(outputs):
                    return scores_of_batch(
                        self.scores, outputs, targets, dataset=dataset
                    )

                return jax.vmap(own)(mixed)

            return jax.lax.map(run, matrix)

        blocks, unit, _ = matrix.shape
        lead = (blocks, unit // jax.lax.axis_size("member"))
        return _over_datasets(
            score_batch, dict(self.scores), datasets, lead, per_row=self.per_row
        )

    def finish(self, outputs, *args):
        del args
        values, rows = outputs

        def flat(x, *, of_rows):
            x = x.reshape(-1, *x.shape[2:])[: self.num_mixtures]
            return x.reshape(x.shape[0], -1) if of_rows else x

        return (
            jax.tree.map(functools.partial(flat, of_rows=False), values),
            jax.tree.map(functools.partial(flat, of_rows=True), rows),
        )


@dataclasses.dataclass(frozen=True)
class _Evaluate:
    """One mixture's scores on every dataset."""

    graph: Any
    scores: tuple[tuple[str, RowScore], ...]
    per_row: bool

    def __call__(self, state, datasets, statistics):
        if statistics is not None:
            state = with_statistics(self.graph, state, statistics)

        def score_batch(dataset, batch):
            x, targets, _ = batch
            outputs = self.graph.merge(state, train=False)(x)
            return scores_of_batch(self.scores, outputs, targets, dataset=dataset)

        return _over_datasets(
            score_batch, dict(self.scores), datasets, (), per_row=self.per_row
        )


def _over_datasets(score_batch, names, datasets, lead, *, per_row):
    """Mean scores `[*lead]` of each dataset; of rows `[*lead, batch, row]` if asked.

    Else only sums are held, so that memory does not grow with the rows.

    Args:
        score_batch: `score_batch(dataset, batch)`, scores `[*lead, row]` by name.
        names: of the scores.
        datasets: batches of each, of this data shard.
        lead: the mixtures of the scores.
        per_row: whether rows' scores are returned.
    """
    values, rows = {}, {}
    for name, data in datasets.items():

        def step(totals, batch):
            each = score_batch(name, batch)  # noqa: B023
            own = {
                s: jnp.sum(jnp.where(batch[2] > 0, x, 0.0), axis=-1, dtype=float)
                for s, x in each.items()
            }
            return jax.tree.map(jnp.add, totals, own), each if per_row else {}

        totals = {s: jnp.zeros(lead) for s in names}
        totals, each = jax.lax.scan(step, totals, data)
        count = jax.lax.psum(jnp.sum(data[2]), "data")
        values[name] = {s: jax.lax.psum(x, "data") / count for s, x in totals.items()}
        rows[name] = {s: jnp.moveaxis(x, 0, -2) for s, x in each.items()}
    return values, rows


@functools.partial(jax.jit, static_argnames=("patterns", "keep"))
def _one_mixture(stacked, rows, *, patterns, keep):
    """One mixture's weights, for rows `[1, member]`: of all leaves, of each pattern."""
    own = dict(zip(patterns, rows[1:], strict=True))
    mixed = mix(stacked, rows[0], per_leaf=own, keep=keep)
    return jax.tree.map(lambda x: x[0], mixed)


def _on_host(stacked, coefficients, per_leaf, keep, evaluate):
    matrices, _ = coefficients_of_leaves(stacked, coefficients, per_leaf)
    check_keep(keep, num_members(stacked))
    patterns = tuple(per_leaf or {})
    stacked = jax.tree.map(jnp.asarray, stacked)
    rows = jax.device_get(matrices)
    found = []
    for i in range(rows[0].shape[0]):
        weights = _one_mixture(
            stacked, [m[i : i + 1] for m in rows], patterns=patterns, keep=int(keep)
        )
        values = evaluate(jax.device_get(weights))
        if not isinstance(values, Mapping) or not values:
            raise TypeError(
                'evaluate must return numbers by name, such as {"accuracy": 0.9}; got'
                f" {values!r} for mixture {i}."
            )
        if found and set(values) != set(found[0]):
            raise ValueError(
                f"evaluate returned {sorted(values)} for mixture {i}, but"
                f" {sorted(found[0])} before."
            )
        found.append({name: float(value) for name, value in values.items()})
    scores = {name: np.array([f[name] for f in found]) for name in found[0]}
    return Sweep(matrices[0], {"weights": {"evaluate": scores}})
