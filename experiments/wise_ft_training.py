"""Two stages on coloured digits, for `wise_ft.py` and `bang.py`: train, tune, mix.

In the first stage patches 0 to 15 tell the class and the others are random; in the
second it is the other way round. Out of distribution every patch tells it with
probability `config.ood_agreement` and is random else. All seeds, models and recipes of
fine-tuning are members of one stack.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from ensjax import combine, data, scores, weight_space
from ensjax.experiment import ConfigError
from ensjax.experiment.fields import check_numbers, load_beside

tasks = load_beside(__file__, "multicolor_tasks")

RECIPES = ("plain", "smoothing", "mixup", "both")
RECIPE_OFFSET = 2**10  # between ids of the models of one seed and their fine-tuned ones
# What mixtures are scored on: the two stages' own patches, and all patches unreliable.
TESTS = ("pretraining", "id", "ood")
OUTPUTS = ("predictive", "geometric_mean")
NO_REPLAY = (
    "The fine-tuned members of this run go on from models that it has trained before;"
    " config and seed alone do not make them again."
)


def check_config(config) -> None:
    """Raises `ConfigError` for what `train` or `measure` could not work with."""
    tasks.check_training(config, ("total_steps", "tuning_steps"))
    tasks.check_rows(config, tasks.load_centers(config, "digits"))
    check_numbers(config, ("num_models",), at_least=1, at_most=RECIPE_OFFSET)
    check_numbers(config, ("draws",), at_least=1)
    check_numbers(config, ("ood_agreement",), at_least=0, at_most=1)
    check_numbers(config, ("label_smoothing",), at_least=0, at_most=1)
    check_numbers(config, ("mixup", "weight_decay"), at_least=0)
    check_numbers(config, ("alphas",), at_least=0, at_most=1)
    if not {0.0, 0.5, 1.0} <= set(config.alphas) or list(config.alphas) != sorted(
        set(config.alphas)
    ):
        raise ConfigError(
            "config.alphas must rise and hold 0, 0.5 and 1 (the ends, and the mean"
            f" without tuning); got {config.alphas}."
        )
    unknown = set(config.recipes) - set(RECIPES)
    if unknown or len(set(config.recipes)) < len(config.recipes) or not config.recipes:
        raise ConfigError(
            f"config.recipes are different ones of {', '.join(RECIPES)}; got"
            f" {config.recipes}."
        )


def train(config, run_dir):
    """First all models of all seeds, then each of them by every recipe.

    Returns:
        The pre-trained ensemble `[seed * model]`, the fine-tuned one
        `[seed * model * recipe]`, the seeds' permutations, and for which step each
        member of both stopped being finite.
    """
    trained, log = tasks.train(pretraining_job(config), run_dir)
    job, count = tuning_job(config), config.num_seeds * config.num_models
    start = trained.select(np.repeat(np.arange(count), len(config.recipes)))
    start = start.with_ids(np.asarray(job.member_ids))
    tuned, tuning_log = tasks.train(job, run_dir, start)
    frozen = np.concatenate([log.frozen_steps, tuning_log.frozen_steps])
    return trained, tuned, _tables(config), frozen


def pretraining_job(config):
    """The first stage: all models of all seeds."""
    seeds, ids = _models(config)
    return _stage(config, 0, "pretrain", ids, {"variant": seeds}, config.total_steps)


def tuning_job(config):
    """The second stage: every model of the first by every recipe.

    In the run they go on from the models of the first stage; here they begin with new
    weights, which costs the same.
    """
    seeds, ids = _models(config)
    recipes = config.recipes
    numbers = np.tile([RECIPES.index(recipe) for recipe in recipes], len(ids))
    strengths = {
        "label_smoothing": config.label_smoothing * np.isin(numbers, (1, 3)),
        "mixup": config.mixup * np.isin(numbers, (2, 3)),
        "variant": np.repeat(seeds, len(recipes)),
    }
    ids = np.repeat(ids, len(recipes)) + RECIPE_OFFSET * (1 + numbers)
    job = _stage(config, 1, "tune", ids, strengths, config.tuning_steps)
    return dataclasses.replace(job, why_no_replay=NO_REPLAY)


def _models(config):
    """Seed and id of every model of the first stage."""
    seeds = np.repeat(np.arange(config.num_seeds), config.num_models)
    models = np.tile(np.arange(config.num_models), config.num_seeds)
    return seeds, tasks.SEED_STRIDE * seeds + models


def _tables(config):
    return [tasks.permutations(config, seed) for seed in range(config.num_seeds)]


def _stage(config, number, name, ids, hyper, steps):
    centers = tasks.load_centers(config, "digits")
    agreement = data.stage_agreement(number)
    return tasks.job_of(
        config,
        centers,
        ids,
        tasks.train_colors(config, centers.y_train, _tables(config), agreement),
        {
            "learning_rate": config.learning_rate,
            "weight_decay": config.weight_decay,
            **hyper,
        },
        loss=tasks.CROSS_ENTROPY,
        make_tx=tasks.adamw,
        steps=steps,
        stage=name,
    )


def test_sets(config, centers, table, seed):
    """`{name: (images, labels)}` of `TESTS` for one seed."""
    agreements = (
        data.stage_agreement(0),
        data.stage_agreement(1),
        np.full(32, config.ood_agreement, np.float32),
    )
    return {
        name: tasks.test_images(
            config,
            centers,
            table,
            agreement,
            seed=seed,
            number=number,
            draws=config.draws,
        )
        for number, (name, agreement) in enumerate(zip(TESTS, agreements))
    }


def measure(config, trained, tuned, tables) -> dict[str, np.ndarray]:
    """Every mixture of every pre-trained model and what it was tuned to.

    Returns:
        `accuracy` `[space, test, seed, model, recipe, alpha]`, the space being
        "weights" or one of `OUTPUTS`; `table` `[space, test, seed, model, recipe,
        alpha, 2, 2, 2]`, the agreement of both ends and the mixture; and `right`
        `[3, seed, model, recipe, row]`, whether the ends and the mean of their weights
        are right out of distribution.
    """
    centers = tasks.load_centers(config, "digits")
    found = [
        _measure_seed(config, trained, tuned, centers, tables[seed], seed)
        for seed in range(config.num_seeds)
    ]
    return {
        name: np.stack([own[name] for own in found], axis=axis)
        for name, axis in (("accuracy", 2), ("table", 2), ("right", 1))
    }


def _measure_seed(config, trained, tuned, centers, table, seed):
    models, recipes = config.num_models, len(config.recipes)
    own = np.arange(seed * models, (seed + 1) * models)
    tuned_rows = np.arange(seed * models * recipes, (seed + 1) * models * recipes)
    stack = trained.select(own).concatenate(tuned.select(tuned_rows))
    paths = [
        weight_space.alpha_path(
            list(config.alphas),
            num_members=models * (1 + recipes),
            ends=(model, models + model * recipes + recipe),
        )
        for model in range(models)
        for recipe in range(recipes)
    ]
    # One data set for all tests, which compiles three times faster than three.
    tests = test_sets(config, centers, table, seed).values()
    rows = tuple(np.concatenate(part) for part in zip(*tests, strict=True))
    swept = weight_space.sweep(
        stack,
        np.concatenate(paths),
        {"tests": rows},
        scores=("accuracy",),
        output_space=OUTPUTS,
        per_row=True,
        batch_size=config.predict_batch_size,
    )
    shape = (models, recipes, len(config.alphas), len(TESTS), -1)
    right = [
        np.moveaxis(swept.rows[space]["tests"]["accuracy"].reshape(shape), 3, 0)
        for space in ("weights", *OUTPUTS)
    ]
    right = np.stack(right)  # [space, test, model, recipe, alpha, row]
    ends = [np.broadcast_to(right[..., [place], :], right.shape) for place in (0, -1)]
    half = list(config.alphas).index(0.5)
    ood = right[0, TESTS.index("ood")]
    return {
        "accuracy": right.mean(axis=-1),
        "table": np.asarray(_agreement_table(*ends, right)),
        "right": np.stack([ood[:, :, place] > 0 for place in (0, -1, half)]),
    }


_agreement_table = jax.jit(scores.agreement_table)


def measure_ends(config, trained, tuned, tables) -> dict[str, np.ndarray]:
    """How sure the ends are and how often right, and their outputs out of balance.

    Returns:
        `ece` and `overconfidence` (mean probability of the first choice minus
        accuracy) `[test, seed, model, end]`, the first end being the pre-trained model;
        `balance` `[seed, model, recipe, lambda]`, the accuracy out of distribution of
        logits of the pre-trained model plus lambda times those of the fine-tuned; and
        `balanced` `[seed, model, recipe]` and `temperatures` (of both), as
        `balance_confidence` gives them.
    """
    centers = tasks.load_centers(config, "digits")
    models, recipes = config.num_models, len(config.recipes)
    ends = ("ece", "overconfidence")
    values = {name: [] for name in (*ends, "balance", "balanced", "temperatures")}
    for seed in range(config.num_seeds):
        own = np.arange(seed * models, (seed + 1) * models)
        mine = np.arange(seed * models * recipes, (seed + 1) * models * recipes)
        both = trained.select(own).concatenate(tuned.select(mine))
        found = {name: [] for name in ends}
        for images, labels in test_sets(config, centers, tables[seed], seed).values():
            outputs = tasks.outputs_of(config, both, images)
            sure, ece = map(np.asarray, _calibration(outputs, labels))
            right = tasks.is_right(outputs, labels).mean(axis=-1)
            found["ece"].append(_by_model(ece, models))
            found["overconfidence"].append(_by_model(sure - right, models))
        for name in ends:
            values[name].append(np.stack(found[name]))
        # The last test set is the one out of distribution.
        before = outputs[:models, None]
        after = outputs[models:].reshape(models, recipes, *outputs.shape[1:])
        values["balance"].append(balance(before, after, labels, config.lambdas))
        balanced, temperatures = balance_confidence(before, after, labels, config.draws)
        values["balanced"].append(balanced)
        values["temperatures"].append(temperatures)
    return {
        name: np.moveaxis(np.stack(v), 1, 0) if name in ends else np.stack(v)
        for name, v in values.items()
    }


@jax.jit
def _calibration(outputs, labels):
    """Mean probability of the first choice, and ECE, `[member]`."""
    return jnp.mean(scores.max_prob(outputs), axis=-1), scores.ece(outputs, labels)


def balance(first, second, labels, lambdas) -> np.ndarray:
    """Accuracy of `first + lambda second`, `[..., lambda]`, of `[..., row, class]`.

    As an average of logits at temperatures 1 and 1 / lambda.
    """
    pairs = _pairs(first, second)
    chosen = np.asarray(_choices(pairs, 1 / np.asarray(lambdas, np.float32)))
    right = (chosen == labels).mean(axis=-1)
    return right.reshape(*second.shape[:-2], -1)


@jax.jit
def _choices(pairs, temperatures):
    def choice(pair, temperature):
        both = jnp.stack([jnp.ones_like(temperature), temperature])
        scaled = combine.MemberTemperatures(both).scale(pair)
        return combine.mean_logits(scaled).argmax(axis=-1)

    over = jax.vmap(choice, in_axes=(None, 0))
    return jax.vmap(over, in_axes=(0, None))(pairs, temperatures)


def balance_confidence(first, second, labels, draws):
    """Accuracy of logits averaged at temperatures that fit each model, and these.

    They are fitted on these very colours, of the half of the digits that is not
    scored: an oracle, which shows what balance is worth and not how to get it.

    Args:
        first, second: `[..., row, class]`; the rows are all digits, `draws` times.
        labels: `[row]`.
        draws: how often each digit is there.

    Returns:
        `[...]`, and temperatures `[..., 2]`, geometric means of both halves.
    """
    half = np.arange(len(labels)) % (len(labels) // draws) % 2
    right, temperatures = _balanced(_pairs(first, second), labels, half)
    shape = second.shape[:-2]
    accuracy = np.asarray(right).mean(axis=-1)
    return accuracy.reshape(shape), np.asarray(temperatures).reshape(*shape, 2)


@jax.jit
def _balanced(pairs, labels, half):
    def of_half(pair, number):
        weight = (half != number).astype(jnp.float32)
        fitted = combine.calibrate_members(pair, labels, sample_weight=weight)
        chosen = combine.mean_logits(fitted.scale(pair)).argmax(axis=-1)
        return chosen == labels, jnp.log(fitted.temperature)

    over = jax.vmap(of_half, in_axes=(None, 0))
    both, logs = jax.vmap(over, in_axes=(0, None))(pairs, jnp.arange(2))
    right = jnp.where(half[None] == 0, both[:, 0], both[:, 1])
    return right, jnp.exp(jnp.mean(logs, axis=1))


def _pairs(first, second):
    """`[pair, 2, row, class]`."""
    both = np.stack([np.broadcast_to(first, second.shape), second], axis=-3)
    return both.astype(np.float32).reshape(-1, *both.shape[-3:])


def _by_model(values, models):
    """`[model, end]` of what is given for all models, then for all fine-tuned ones."""
    return np.concatenate(
        [values[:models, None], values[models:].reshape(models, -1)], axis=1
    )
