"""Every way to make one prediction of many fine-tunes, chosen on validation rows.

For `soups.py` and `soups_full.py`. Each way is a row of coefficients over the members;
all rows are evaluated on all test sets in one program, as soups of weights and as
ensembles of outputs.
"""

import functools
import re
from typing import NamedTuple

import numpy as np

import ensjax
from ensjax import combine, weight_space
from ensjax.experiment.fields import check_numbers
from ensjax.predictions import Predictions
from ensjax.weight_space.learned_soup import layer_of

# How each way is called; those in ENSEMBLES combine outputs, the others weights.
WAYS = {
    "pretrained": "pre-trained model",
    "best": "best single model",
    "uniform": "uniform soup",
    "top": "soup of the top k",
    "greedy": "greedy soup",
    "greedy_nll": "greedy soup by NLL",
    "learned": "learned soup",
    "learned_layer": "learned soup by layer",
    "ensemble": "output ensemble of all",
    "greedy_ensemble": "greedy output ensemble",
    "greedy_ensemble_nll": "greedy output ensemble by NLL",
}
ENSEMBLES = ("ensemble", "greedy_ensemble", "greedy_ensemble_nll")
SCORES = ("accuracy", "nll")


class Chosen(NamedTuple):
    """What validation rows say.

    Attributes:
        greedy, greedy_nll: soups whose members were accepted by accuracy or by NLL.
        learned, learned_layer: with one coefficient a model, or one a layer.
        selected, selected_nll: `[member]`, shares in the greedy output ensembles.
    """

    greedy: weight_space.Soup
    greedy_nll: weight_space.Soup
    learned: weight_space.LearnedSoup
    learned_layer: weight_space.LearnedSoup
    selected: np.ndarray
    selected_nll: np.ndarray


def check_config(config) -> None:
    """Raises `ConfigError` for what `choose` or `evaluate` could not work with."""
    check_numbers(config, ("learned.learning_rate",), above=0)
    counts = ("learned.num_epochs", "learned.batch_size", "selection_rounds")
    check_numbers(config, (*counts, "predict_batch_size"), at_least=1)


def choose(config, tuned, validation, provenance=None) -> Chosen:
    """Soups and ensembles of one seed's fine-tunes that are chosen on `validation`.

    Args:
        config: its `learned`, `selection_rounds`, `seed` and `predict_batch_size`.
        tuned: an ensemble of M fine-tunes.
        validation: inputs and labels that none of them was trained on.
        provenance: of these rows, which is checked.
    """
    size = config.predict_batch_size
    logits = ensjax.predict(tuned, validation[0], batch_size=size)
    outputs = Predictions.from_logits(ensjax.mesh.fetch(logits), provenance=provenance)
    selected = {
        loss: combine.greedy_select(
            outputs, validation[1], rounds=config.selection_rounds, loss=loss
        )
        for loss in ("error", "nll")
    }
    learned = {
        granularity: weight_space.learned_soup(
            tuned,
            validation,
            granularity=granularity,
            seed=config.seed,
            **config.learned.to_dict(),
        )
        for granularity in ("model", "layer")
    }
    return Chosen(
        weight_space.greedy_soup(tuned, validation, batch_size=size),
        weight_space.greedy_soup(
            tuned, validation, score="nll", largest=False, batch_size=size
        ),
        learned["model"],
        learned["layer"],
        np.asarray(selected["error"].weights),
        np.asarray(selected["nll"].weights),
    )


def coefficients(chosen: Chosen) -> dict[str, np.ndarray]:
    """Rows over the fine-tunes `[row, member]` by name, each summing to 1.

    "members" are they themselves; "top" has means of the k best by validation, k from 1
    to M; "greedy_path" has the greedy soup after each candidate.
    """
    members = len(chosen.selected)
    order, kept = chosen.greedy.order, chosen.greedy.is_kept
    by_rank = np.eye(members)[order]
    counts = np.arange(1, members + 1)[:, None]
    return {
        "members": np.eye(members),
        "top": by_rank.cumsum(axis=0) / counts,
        "greedy_path": (kept[:, None] * by_rank).cumsum(axis=0)
        / kept.cumsum()[:, None],
        "greedy_nll": chosen.greedy_nll.weights[None],
        "learned": chosen.learned.weights[None],
        "learned_layer": chosen.learned_layer.weights[None],
        "greedy_ensemble": chosen.selected[None],
        "greedy_ensemble_nll": chosen.selected_nll[None],
    }


def evaluate(
    config, base, tuned, chosen, datasets, *, scores=None
) -> dict[str, np.ndarray]:
    """All rows of coefficients on "validation" and all test sets, and what was chosen.

    Args:
        config: its `predict_batch_size`.
        base: an ensemble of the one pre-trained model.
        tuned: its M fine-tunes.
        chosen: from `choose`.
        datasets: `{name: (inputs, labels)}`: "validation", the test in distribution,
            then the others.
        scores: `{name: {score: function}}` of data sets that are scored apart, each in
            a program of its own, the scores being `SCORES`. By default all are one.

    Returns:
        `datasets`, their names; `ways` `[score, way, dataset]`; `members` `[score,
        member, dataset]`; `curves` `[score, curve, k, dataset]`: of the mean weights
        and the mean outputs of the k best by validation, and of the greedy soup after k
        candidates; `top_k`, the k of the best of the first on validation; `num_kept`
        `[2]`, members of the greedy soups; `num_selected` `[2]`, of the greedy
        ensembles; `greedy_order`, `greedy_kept`, `shares`, `layer_shares` `[layer,
        member]`, `layers`, `scales`.
    """
    rows = coefficients(chosen)
    names = [name for name, own in rows.items() for _ in own]
    matrix = np.concatenate(list(rows.values()))
    matrix = np.pad(matrix, ((1, 0), (1, 0)))
    matrix[0, 0] = 1  # the pre-trained model comes first
    options = dict(
        output_space=("predictive",),
        per_leaf=_by_leaf(tuned, chosen.learned_layer, matrix, names),
        batch_size=config.predict_batch_size,
    )
    swept = _together if scores is None else functools.partial(_apart, scores=scores)
    soups, outputs = swept(base.concatenate(tuned), matrix, datasets, options)
    places = np.array(["pretrained", *names])
    top = np.flatnonzero(places == "top")
    accuracy = SCORES.index("accuracy")
    top_k = 1 + int(soups[accuracy, top, 0].argmax())
    path = np.flatnonzero(places == "greedy_path")
    where = {
        "best": top[0],
        "uniform": top[-1],
        "top": top[top_k - 1],
        "greedy": path[-1],
        "ensemble": top[-1],
    }
    ways = []
    for way in WAYS:
        own = where[way] if way in where else np.flatnonzero(places == way)[0]
        ways.append((outputs if way in ENSEMBLES else soups)[:, own])
    greedy, layered = chosen.greedy, chosen.learned_layer
    return {
        "datasets": np.array(list(datasets)),
        "ways": np.stack(ways, axis=1),
        "members": soups[:, places == "members"],
        "curves": np.stack([soups[:, top], outputs[:, top], soups[:, path]], axis=1),
        "top_k": np.asarray(top_k),
        "num_kept": np.array([greedy.is_kept.sum(), chosen.greedy_nll.is_kept.sum()]),
        "num_selected": np.array(
            [(x > 0).sum() for x in (chosen.selected, chosen.selected_nll)]
        ),
        "greedy_order": greedy.order,
        "greedy_kept": greedy.is_kept,
        "shares": chosen.learned.weights,
        "layer_shares": np.stack(list(layered.layer_weights.values())),
        "layers": np.array([_short(name) for name in layered.layer_weights]),
        "scales": np.array([chosen.learned.scale, layered.scale]),
    }


def _together(stack, matrix, datasets, options):
    """Soups' and ensembles' scores `[score, row, dataset]`; one data set of all."""
    # Which compiles faster than several.
    inputs, labels = zip(*datasets.values(), strict=True)
    everything = np.concatenate(inputs), np.concatenate(labels)
    swept = weight_space.sweep(
        stack, matrix, {"all": everything}, scores=SCORES, per_row=True, **options
    )
    ends = np.cumsum([len(own) for own in labels])[:-1]

    def means(values):
        parts = np.split(np.stack([values[score] for score in SCORES]), ends, axis=2)
        return np.stack([part.mean(axis=2) for part in parts], axis=-1)

    return [means(swept.rows[space]["all"]) for space in ("weights", "predictive")]


def _apart(stack, matrix, datasets, options, *, scores):
    """The same of data sets whose scores differ, one after the other."""
    found = [
        weight_space.sweep(
            stack, matrix, {name: own}, scores=scores[name], **options
        ).values
        for name, own in datasets.items()
    ]
    return [
        np.stack(
            [
                np.stack([values[space][name][score] for score in SCORES])
                for name, values in zip(datasets, found, strict=True)
            ],
            axis=-1,
        )
        for space in ("weights", "predictive")
    ]


def _by_leaf(tuned, layered, matrix, names):
    """Coefficients of every leaf: those of its layer in the row of the layered soup."""
    row = 1 + names.index("learned_layer")
    found = {}
    for name in weight_space.leaf_names(tuned.state):
        layer = layer_of(name)
        if layer in layered.layer_weights:
            own = matrix.copy()
            own[row, 1:] = layered.layer_weights[layer]
            found[f"^{re.escape(name)}$"] = own
    return found


def _short(layer: str) -> str:
    """A layer's name without what all layers share."""
    return layer.removeprefix("params.")
