"""MultiColor digits: pairs of models that lean on many coloured patches at once.

For every data set the members of all seeds, and those of the control with one colour,
are trained as one stack. `multicolor_tasks.py` paints and trains,
`multicolor_mnist_theory.py` has the theory, `_claims.py` judges, `_figures.py` draws.
"""

import jax
import numpy as np

from ensjax import scores
from ensjax.experiment import ConfigError
from ensjax.experiment.fields import check_numbers, load_beside
from ensjax.experiment.stages import run_stages

tasks = load_beside(__file__, "multicolor_tasks")
theory = load_beside(__file__, "multicolor_mnist_theory")
verdicts = load_beside(__file__, "multicolor_mnist_claims")
figures = load_beside(__file__, "multicolor_mnist_figures")

CONTROL_OFFSET = tasks.SEED_STRIDE // 2  # between ids of members and of the control's


def validate(config):
    """Raises `ConfigError` for what would fail later, in one line."""
    if not config.sets or len(set(config.sets)) < len(config.sets):
        raise ConfigError(f"config.sets must be different names; got {config.sets}.")
    for name in config.sets:
        centers = tasks.load_centers(config, name)
        tasks.check_rows(config, centers)
        for field in ("num_members", "num_control_members", "total_steps", "draws"):
            if name not in config[field]:
                raise ConfigError(f"config.{field} has no entry for {name!r}.")
        for field in ("num_members", "num_control_members"):
            own = f"{field}.{name}"
            check_numbers(config, (own,), at_least=2, at_most=CONTROL_OFFSET)
            if config[field][name] % 2:
                raise ConfigError(
                    f"config.{own} must be even, since pairs are formed; got"
                    f" {config[field][name]}."
                )
        check_numbers(config, (f"draws.{name}",), at_least=1)
        tasks.check_training(config, (f"total_steps.{name}",))
    check_numbers(config, ("p",), above=0, at_most=1)
    check_numbers(config, ("theory.p",), at_least=0, at_most=1)
    check_numbers(config, ("theory.num_seeds", "theory.num_draws"), at_least=2)


def training_job(config):
    """The members of the data set that costs most to train."""

    def cost(name):
        pixels = tasks.load_centers(config, name).x_train[0].size
        return pixels * config.total_steps[name] * len(members_of(config, name)[0])

    return job_of(config, max(config.sets, key=cost))


def run(config, run_dir):
    """Enumerates, trains every data set as one stack, measures; resumes by stages."""
    stages = {"theory": lambda done: theory.measure(config)}
    for name in config.sets:
        stages[f"train-{name}"] = _train_stage(config, run_dir, name)
    done = run_stages(run_dir, config, stages)
    results = {name: done[f"train-{name}"] for name in config.sets}
    scalars = verdicts.summarise(config, results, done["theory"])
    figures.add_tables(run_dir, config, results, done["theory"])
    figures.add_figures(run_dir, config, results)
    run_dir.finish(
        title=config.title,
        summary=verdicts.describe(config, results, done["theory"]),
        scalars=scalars,
        claims=verdicts.make_claims(config, results, done["theory"]),
        checks=verdicts.make_checks(config, results),
    )


def _train_stage(config, run_dir, name):
    def compute(done):
        del done
        ensemble, log = tasks.train(job_of(config, name), run_dir)
        centers, tables = tasks.load_centers(config, name), all_tables(config)
        measured = measure(config, name, centers, tables, ensemble)
        return measured | {"frozen_steps": np.asarray(log.frozen_steps)}

    return compute


def job_of(config, name):
    """Training of all members of a data set, as one stack."""
    centers = tasks.load_centers(config, name)
    ids, variants = members_of(config, name)
    return tasks.job_of(
        config,
        centers,
        ids,
        tasks.train_colors(config, centers.y_train, all_tables(config), 1.0),
        {"learning_rate": config.learning_rate, "variant": variants},
        loss=tasks.SQUARED_ERROR,
        make_tx=tasks.adam,
        steps=config.total_steps[name],
        stage=f"train-{name}",
    )


def all_tables(config):
    """Permutations of all seeds, then those of their controls."""
    return [
        tasks.permutations(config, seed, num_patches=patches)
        for patches in (32, 1)
        for seed in range(config.num_seeds)
    ]


def members_of(config, name):
    """Ids and variants of all members of a data set, seed by seed, controls last."""
    ids, variants = [], []
    for is_control, field in enumerate(("num_members", "num_control_members")):
        for seed in range(config.num_seeds):
            count = config[field][name]
            first = tasks.SEED_STRIDE * seed + CONTROL_OFFSET * is_control
            ids += range(first, first + count)
            variants += [is_control * config.num_seeds + seed] * count
    return np.asarray(ids, np.int32), np.asarray(variants, np.int32)


def measure(config, name, centers, tables, ensemble) -> dict[str, np.ndarray]:
    """Accuracies in and out of distribution, shares of rows.

    Returns:
        "id", "id_control" `[seed, member]`; "single" `[p, seed, member]`, "pair",
        "both_wrong" (False-False-True) and "both_right" (True-True-False)
        `[p, seed, pair]`, "by_size" `[p, seed, size]` for `sizes_of`; "control" and
        "control_pair" as "single" and "pair".
    """
    _, variants = members_of(config, name)
    agreements = (1.0, *(1 - p for p in config.p))
    found = {}
    for variant, table in enumerate(tables):
        seed = variant % config.num_seeds
        own = ensemble.select(variants == variant)
        kind = "control_" if variant >= config.num_seeds else ""
        for number, agreement in enumerate(agreements):
            images, labels = tasks.test_images(
                config,
                centers,
                table,
                agreement,
                seed=variant,
                number=number,
                draws=config.draws[name],
            )
            outputs = tasks.outputs_of(config, own, images)
            values = _scores_of(outputs, labels, is_control=bool(kind))
            for key, value in values.items():
                found.setdefault(kind + key, {})[number, seed] = value
    arrays = {}
    for key, values in found.items():
        stacked = np.stack(
            [
                np.stack([values[i, seed] for seed in range(config.num_seeds)])
                for i in range(len(agreements))
            ]
        )
        arrays[key] = stacked[1:]
        if key.endswith("single"):
            arrays[key.replace("single", "id")] = stacked[0]
    return arrays


def sizes_of(num_members: int) -> list[int]:
    """Sizes of the ensembles that are compared: 1, 2, 4, ... of the members."""
    return [2**i for i in range(num_members.bit_length()) if 2**i <= num_members]


_agreement_table = jax.jit(scores.agreement_table)


def _scores_of(outputs, labels, *, is_control):
    right = tasks.is_right(outputs, labels)
    pairs = tasks.is_right((outputs[0::2] + outputs[1::2]) / 2, labels)
    values = {"single": right.mean(axis=-1), "pair": pairs.mean(axis=-1)}
    if is_control:
        return values
    table = np.asarray(_agreement_table(right[0::2], right[1::2], pairs))
    values["both_wrong"] = table[..., 0, 0, 1]
    values["both_right"] = table[..., 1, 1, 0]
    values["by_size"] = np.array(
        [_accuracy_of_size(outputs, labels, n) for n in sizes_of(len(outputs))]
    )
    return values


def _accuracy_of_size(outputs, labels, size):
    """Mean over disjoint ensembles of `size` members."""
    whole = len(outputs) // size * size
    groups = outputs[:whole].reshape(-1, size, *outputs.shape[1:]).mean(axis=1)
    return tasks.is_right(groups, labels).mean()
