"""A deep ensemble against its own members, on any data set and model of a config.

Trains `num_seeds` ensembles of `num_members` as one stack, predicts, scores, and
ends in claims and figures. Beside it, `deep_ensemble_recipe.py` builds,
`deep_ensemble_checks.py` finds mistakes before the run, `deep_ensemble_scores.py`
measures, `deep_ensemble_claims.py` judges and `deep_ensemble_figures.py` draws.
"""

import functools
import time
from typing import Any

import jax
import numpy as np

import ensjax
from ensjax import data, losses
from ensjax.experiment.fields import load_beside
from ensjax.experiment.processes import everywhere
from ensjax.train import TrainingJob

measures = load_beside(__file__, "deep_ensemble_scores")
verdicts = load_beside(__file__, "deep_ensemble_claims")
figures = load_beside(__file__, "deep_ensemble_figures")
recipe = load_beside(__file__, "deep_ensemble_recipe")
checks = load_beside(__file__, "deep_ensemble_checks")

PAPER = "Lakshminarayanan et al. 2017, arXiv:1612.01474"
SHIFTS = {"rotation": "rotation_degrees", "noise": "noise_sigma"}

validate = checks.validate


def run(config, run_dir):
    """Trains, predicts, scores and reports; the same command resumes the training."""
    start = time.perf_counter()
    rows = everywhere(lambda: _load_rows(config))
    ensemble, log = training_job(config, rows).fit(
        checkpoint_dir=run_dir.checkpoints,
        save_every_steps=config.save_every_steps,
        members_from=run_dir.members_from,
        logger=run_dir.logger(),
    )
    num_parameters = sum(x[0].size for x in jax.tree.leaves(ensemble.params))
    trained = time.perf_counter()

    frozen_steps = log.frozen_steps.reshape(config.num_seeds, config.num_members)
    results = predict_and_measure(config, ensemble, rows, frozen_steps)
    scalars = verdicts.summarise(results) | {
        "num_parameters": num_parameters,
        "num_members_not_finite": len(results["not_finite"]),
        "num_members_scored": results["num_members"],
    }
    figures.add_tables(run_dir, config, results)
    figures.add_history(run_dir, recipe.member_ids(config), log)
    figures.add_figures(run_dir, config, rows, results, log)
    scored = time.perf_counter()
    seconds = {"training_seconds": trained - start, "scoring_seconds": scored - trained}
    run_dir.logger("times").write(config.total_steps, seconds)
    figures.add_times(run_dir, log, seconds)
    run_dir.finish(
        title=config.title,
        summary=verdicts.describe(config, rows, results, scalars),
        scalars=scalars,
        claims=verdicts.make_claims(config, results),
        checks=verdicts.make_checks(config, results, scalars),
    )


def training_job(config, rows=None, *, shapes_only=False):
    """What the run trains: the members of all seeds, as one call of `fit`.

    Args:
        config: of the run.
        rows: what `recipe.load_rows` gives, or None: they are loaded.
        shapes_only: leave data that do not come with a Python package as their shapes,
            so that nothing is downloaded; to plan with, for any devices.
    """
    if rows is None and shapes_only:
        is_local = config.data.name in recipe.LOCAL
        rows = recipe.load_rows(config) if is_local else recipe.row_shapes(config)
    rows = _load_rows(config) if rows is None else rows
    evaluation = {}
    if rows.calibration is not None:  # watched, never chosen by
        evaluation = dict(
            evaluation=rows.calibration,
            evaluation_loss=losses.cross_entropy,
            evaluate_every_steps=config.evaluate_every_steps,
            evaluation_batch_size=config.predict_batch_size,
        )
    hyper = np.tile(recipe.per_member(config), config.num_seeds).astype(np.float32)
    return TrainingJob(
        make_model=functools.partial(recipe.build_model, config),
        member_ids=recipe.member_ids(config),
        init_seed=config.seed,
        data=rows.train,
        hyper=hyper,
        mesh_sizes=config.mesh.to_dict(),
        options=dict(
            loss=recipe.make_loss(config),
            make_tx=recipe.make_optimizer(config),
            steps=config.total_steps,
            batch_size=config.batch_size,
            seed=config.seed,
            sampling=config.sampling,
            augment=recipe.make_augment(config),
            **evaluation,
            steps_per_call=config.steps_per_call,
            log_every_steps=config.log_every_steps,
            block=recipe.members_at_once(config),
            unroll=config.unroll,
            health=ensjax.Health(**config.health.to_dict()),
        ),
    )


def _load_rows(config):
    rows = recipe.load_rows(config)
    checks.check_rows(config, rows)
    return rows


def predict_and_measure(config, ensemble, rows, frozen_steps) -> dict[str, Any]:
    """Every measured number, by seed and member, and what the figures show of rows.

    Members that stopped being finite (`frozen_steps`, `[seed, member]`) are in none:
    see `scored_members`.
    """
    scored = measures.scored_members(frozen_steps)

    def predict(x):
        logits = ensjax.predict(
            ensemble,
            np.asarray(x),
            batch_size=config.predict_batch_size,
            block=recipe.members_at_once(config),
        )
        logits = ensjax.mesh.fetch(logits)
        logits = logits.reshape(*frozen_steps.shape, *logits.shape[1:])
        return np.take_along_axis(logits, scored[:, :, None, None], axis=1)

    def score(logits):
        systems = measures.predict_systems(logits, calibration)
        return measures.measure_systems(systems, labels, config.num_bins)

    calibration = None
    if rows.calibration is not None:
        held_out, held_out_labels = rows.calibration
        calibration = measures.fit_calibration(predict(held_out), held_out_labels)
    x, labels = rows.test
    logits, numbers = predict(x), recipe.member_numbers(config)
    subsets = measures.draw_subsets(scored.shape[1], config.num_subsets, config.seed)
    uncertainty = measures.measure_uncertainty(logits)
    results = {
        "num_members": scored.shape[1],
        "not_finite": [
            (int(seed), numbers[place], int(frozen_steps[seed, place]))
            for seed, place in np.argwhere(frozen_steps >= 0)
        ],
        "calibration": calibration,
        "systems": measures.predict_systems(logits, calibration),
        "test": score(logits),
        "diversity": jax.device_get(measures.measure_diversity(logits, labels)),
        "uncertainty": uncertainty,
        "sizes": subsets.sizes,
        "by_size": measures.measure_sizes(logits, labels, subsets, config.num_bins),
        "shift": {},
        "ood": None,
    }
    key = ensjax.members.member_key(config.seed, "noise", 0)
    for name, field in SHIFTS.items():
        results["shift"][name] = [
            score(predict(_shifted(x, name, severity, key)))
            if severity
            else results["test"]
            for severity in config[field]
        ]
    if rows.ood is not None:
        results["ood"] = measures.measure_uncertainty(predict(rows.ood[0]))
        results["auroc"] = measures.measure_auroc(uncertainty, results["ood"])
    return results


def _shifted(images, name, severity, key):
    if name == "noise":  # its few operations compile once for all severities
        return data.apply_shift(images, name, severity, key)
    return _compiled_shift(images, name, severity, key)


_compiled_shift = jax.jit(data.apply_shift, static_argnums=(1, 2))
