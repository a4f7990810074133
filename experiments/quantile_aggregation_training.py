"""Aggregators of `quantile_aggregation.py`: kinds, splits and folds as one stack."""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx

import ensjax
from ensjax import combine
from ensjax.combine.quantiles.training import (
    aggregator_ensemble,
    predict_quantiles,
    quantile_evaluation,
    quantile_loss,
)
from ensjax.experiment.fields import load_beside
from ensjax.predictions import Predictions
from ensjax.provenance import LeakageError, check_fitting_rows, check_scored_rows
from ensjax.train import EarlyStopping

base = load_beside(__file__, "quantile_aggregation_base")

KINDS = tuple(
    f"{scope}_{kind}"
    for scope in ("global", "local")
    for kind in ("coarse", "medium", "fine")
)
# The settings of one fit by seed; ids of different seeds lie this far apart.
SEED_STRIDE = 65536


@dataclasses.dataclass(frozen=True)
class Member:
    """One aggregator of the stack.

    Attributes:
        kind: of `KINDS`.
        seed: the split it is trained on.
        setting: which of the settings of the search.
        held_out: the fold it is not trained on; -1: none.
        bases: names of the base models it may use; (): all.
    """

    kind: str
    seed: int
    setting: int = 0
    held_out: int = -1
    bases: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Stack:
    """What is trained together: members, on rows of one column a seed.

    Attributes:
        members: in the order of their kinds.
        base_names: of the base models in the rows.
        rows: "train", "validation" and "test", of `combine.quantile_rows`.
        margins: `[seed, level, level]` of unit scale, or None for a constant one.
    """

    members: tuple[Member, ...]
    base_names: tuple[str, ...]
    rows: dict[str, dict[str, np.ndarray]]
    margins: np.ndarray | None = None


def settings_of(config) -> list[tuple[float, float, float]]:
    """All settings of the search: learning rate, penalty and margin."""
    search = config.search
    return list(itertools.product(search.learning_rate, search.penalty, search.margin))


def make_rows(config, splits, quantiles) -> dict[str, dict[str, np.ndarray]]:
    """Rows by part, one column a split.

    Args:
        config: of the run.
        splits: of `quantile_aggregation_rows.Split`.
        quantiles: by part, `[seed, member, batch, level]`; those of the training rows
            must be out of fold.

    Raises:
        LeakageError: if rows of one split meet that must not. All splits are fitted as
            one stack, where provenance is not known: here they still are apart.
    """
    levels = base.level_values(config)
    columns = {part: [] for part in ("train", "validation", "test")}
    for seed, split in enumerate(splits):
        said = {
            part: Predictions.from_quantiles(
                quantiles[part][seed], levels, provenance=split.provenance(part)
            )
            for part in columns
        }
        check_rows(**said)
        for part, column in columns.items():
            column.append(
                combine.quantile_rows(
                    said[part].values,
                    split.y[part],
                    x=split.scaled_x(part),
                    fold=split.fold if part == "train" else None,
                )
            )
    return {part: combine.stack_columns(column) for part, column in columns.items()}


def check_rows(train, validation, test) -> None:
    """Raises `LeakageError` unless aggregators may be fitted, chosen and tested so.

    Args:
        train, validation, test: `Predictions` of the base models.
    """
    fitted = check_fitting_rows("the aggregators", train.provenance, names=train.names)
    chosen = check_fitting_rows(
        "the choice of a step", validation.provenance, names=validation.names
    )
    both = fitted.overlap(validation.provenance)
    if both.size:
        raise LeakageError(
            f"the choice of a step cannot be made on rows {both[:5]} of"
            f" {validation.provenance.source!r} that aggregators are fitted on."
        )
    fitted.check_test(test.provenance)
    chosen.check_test(test.provenance)
    check_scored_rows(test.provenance, names=test.names)


def main_members(config) -> tuple[Member, ...]:
    """Every kind, setting and split, and some kinds with each fold held out."""
    members = []
    for kind in config.kinds:
        folds = range(config.base.num_folds) if kind in config.conformal_kinds else ()
        members += [
            Member(kind, seed, setting, fold)
            for seed in range(config.num_seeds)
            for setting in range(len(settings_of(config)))
            for fold in (-1, *folds)
        ]
    return tuple(members)


def subset_members(config) -> tuple[Member, ...]:
    """Aggregators of fewer and more base models, and of noise in place of one."""
    names, members = base.NAMES, []
    for kind in ("global_medium", "global_fine"):
        for seed in range(config.num_seeds):
            subsets = [names[:count] for count in config.base_counts]
            main = names[: base.NUM_MAIN]
            subsets += [
                tuple(n for n in main if n != replaced) + ("noise",)
                for replaced in main
            ]
            members += [Member(kind, seed, bases=subset) for subset in subsets]
    return tuple(members)


def train_stack(
    config, stack: Stack, run_dir, name: str, *, batch_size: int
) -> dict[str, np.ndarray]:
    """Trains every member, keeps its best step on the validation rows, and predicts.

    Args:
        config: of the run.
        stack: what is trained.
        run_dir: for checkpoints and the log.
        name: of both.
        batch_size: rows of a step.

    Returns:
        "raw": quantiles of the test rows before they are put in order, `[member,
        batch, level]`; "train_raw": of the training rows, if a member holds a fold
        out, else without rows; "validation_loss" `[member]`: the lowest pinball loss.
    """
    group = build(config, stack)
    rows = stack.rows
    settings = settings_of(config)
    group, log = ensjax.fit(
        group,
        rows["train"],
        loss=quantile_loss,
        make_tx=_make_optimizer(config.weight_decay),
        hyper=np.array([settings[m.setting][0] for m in stack.members], np.float32),
        steps=config.total_steps,
        batch_size=batch_size,
        seed=config.seed,
        sampling="shared",
        evaluation=rows["validation"],
        evaluation_loss=quantile_evaluation,
        evaluate_every_steps=config.evaluate_every_steps,
        evaluation_batch_size=len(rows["validation"]["targets"]),
        early_stopping=EarlyStopping(patience=config.patience or None),
        steps_per_call=config.evaluate_every_steps,
        log_every_steps=config.log_every_steps,
        checkpoint_dir=run_dir.checkpoints / name,
        save_every_steps=config.save_every_steps,
        logger=run_dir.logger(name),
    )

    def mixed(part):
        return ensjax.mesh.fetch(
            predict_quantiles(
                group, rows[part], ordered=False, batch_size=config.predict_batch_size
            )
        )

    raw = mixed("test")
    holds_out = any(member.held_out >= 0 for member in stack.members)
    return {
        "raw": raw,
        "train_raw": mixed("train") if holds_out else raw[:, :0],
        "validation_loss": np.nanmin(log.evaluations["loss"], axis=0),
        **_absent_differences(config, stack, group, raw),
    }


def build(config, stack: Stack) -> ensjax.Group:
    """The stack before training: one ensemble for each kind."""
    settings = settings_of(config)
    levels = tuple(base.level_values(config).tolist())
    num_base, size = len(stack.base_names), config.num_levels
    num_features = stack.rows["train"]["x"].shape[-1]
    parts = []
    for number, kind in enumerate(dict.fromkeys(m.kind for m in stack.members)):
        own = [m for m in stack.members if m.kind == kind]
        masks = [
            [not m.bases or name in m.bases for name in stack.base_names] for m in own
        ]
        margins = np.array([settings[m.setting][2] for m in own])[:, None, None]
        if stack.margins is None:
            margins = margins * np.ones((len(own), size, size))
        else:
            margins = margins * stack.margins[[m.seed for m in own]]
        parts.append(
            aggregator_ensemble(
                functools.partial(
                    _make_aggregator, config, kind, num_base, levels, num_features
                ),
                member_ids=_ids(own, number),
                column=[m.seed for m in own],
                held_out=[m.held_out for m in own],
                base_mask=np.array(masks),
                penalty=[settings[m.setting][1] for m in own],
                margin=margins,
                seed=config.seed,
            )
        )
    return ensjax.Group(tuple(parts))


def _ids(members, kind_number):
    """One id each: of the seed, and of its place among the seed's members."""
    places: dict[int, Any] = {}
    ids = []
    for member in members:
        place = next(places.setdefault(member.seed, itertools.count()))
        ids.append(SEED_STRIDE * member.seed + 4096 * kind_number + place)
    return ids


def _make_aggregator(config, kind, num_base, levels, num_features, rngs):
    scope, kind = kind.split("_")
    return combine.QuantileAggregator(
        num_base=num_base,
        levels=levels,
        kind=kind,
        scope=scope,
        num_features=num_features if scope == "local" else None,
        hidden=tuple(config.model.hidden),
        dropout=config.model.dropout,
        own_level=config.model.own_level,
        order=config.model.order,
        order_in_loss=config.model.order_in_loss,
        level_block=config.model.level_block or None,
        rngs=rngs,
    )


@functools.lru_cache
def _make_optimizer(weight_decay):
    """`make_tx(learning_rate)`; kept, since programs are found by the function."""

    def make_tx(learning_rate):
        if not weight_decay:
            return optax.adam(learning_rate)
        return optax.chain(
            optax.add_decayed_weights(weight_decay), optax.amsgrad(learning_rate)
        )

    return make_tx


# How many rows a step takes, by the number of training rows.
BATCHES = {
    "all": lambda count: count,
    "paper": lambda count: min(count, 2 ** (3 + int(np.floor(np.log10(count))))),
}


def _absent_differences(config, stack, group, raw):
    """How far masked base models are from absent ones, for members with a subset.

    The same weights without the masked models, in an aggregator that never had them,
    on rows that lack them. "one_base_difference" is the distance of an aggregate of one
    model from that model, 0 for others; both are the largest of a member's quantiles.
    """
    if not any(member.bases for member in stack.members):
        return {}
    quantiles = np.moveaxis(stack.rows["test"]["quantiles"], 2, 0)
    logits = [
        weights
        for ensemble in group.ensembles
        for weights in ensjax.mesh.fetch(ensemble.params["aggregator"]["logits"][...])
    ]
    alike: dict[Any, list[int]] = {}
    for i, member in enumerate(stack.members):
        alike.setdefault((member.kind, len(member.bases)), []).append(i)
    differences, alone = np.zeros((2, len(stack.members)))
    for (kind, count), places in alike.items():
        weights, kept = [], []
        for i in places:
            bases = [stack.base_names.index(n) for n in stack.members[i].bases]
            weights.append(logits[i][bases])
            kept.append(quantiles[bases, :, stack.members[i].seed])
        absent = _absent(config, kind, count, np.stack(weights), np.stack(kept))
        for i, found, own in zip(places, absent, kept):
            differences[i] = np.abs(raw[i] - found).max()
            alone[i] = np.abs(raw[i] - own[0]).max() if count == 1 else 0.0
    return {"absent_difference": differences, "one_base_difference": alone}


def _absent(config, kind, num_base, logits, quantiles):
    """Aggregates `[k, batch, level]` of `num_base` models each, by their logits."""
    levels = tuple(base.level_values(config).tolist())
    small = _make_aggregator(config, kind, num_base, levels, None, nnx.Rngs(0))
    graph, state = nnx.split(small)

    def one(logits, quantiles):
        merged = nnx.merge(graph, jax.tree.map(lambda _: logits, state))
        return merged.mix(quantiles)

    return np.asarray(jax.jit(jax.vmap(one))(logits, quantiles))
