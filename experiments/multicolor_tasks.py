"""Coloured digits: images and training of `multicolor_mnist`, `wise_ft` and `bang`.

A seed is a draw of the patches' permutations and of all random colours; the digits and
their split are the same for all. Images are painted inside the compiled step, from grey
digits and each seed's colours, so that the members of all seeds are one stack.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import ensjax
from ensjax import data
from ensjax.experiment import ConfigError
from ensjax.experiment.exit_codes import one_line
from ensjax.experiment.fields import check_multiples, check_numbers, choose
from ensjax.train import SoftLabels, TrainingJob

SEED_STRIDE = 2**16  # between the ids of the first members of two seeds
# What a key is for: folded in behind the seed.
PERMUTATIONS, TRAIN_COLORS, TEST_COLORS, CONTROL = range(4)
SETS = {
    "digits": lambda folder: data.digits(test_size=400, seed=0),
    "mnist5k": lambda folder: data.mnist_centers(),
    "mnist": data.mnist_centers,
}


def load_centers(config, name: str) -> data.Dataset:
    """Grey digits of an even side, training and test.

    Raises:
        ConfigError: if there are none of that name, or they cannot be had.
    """
    choose("sets", name, SETS)
    folder = config.get("folder", "")
    if name == "mnist" and not folder:
        raise ConfigError(
            "config.folder must name the folder with MNIST's four IDX files"
            " (train-images-idx3-ubyte, ...); they are not downloaded here."
        )
    try:
        return _load(name, folder)
    except (ImportError, OSError, ValueError) as error:
        raise ConfigError(f"config.sets ({name}): {one_line(error)}") from error


@functools.lru_cache(maxsize=4)
def _load(name, folder):
    return SETS[name](folder)


def key_of(config, seed: int, purpose: int, number: int = 0) -> jax.Array:
    """The key of a seed for one purpose, and of one of several draws."""
    key = jax.random.key(config.seed, impl="threefry2x32")
    for part in (seed, purpose, number):
        key = jax.random.fold_in(key, part)
    return key


def permutations(config, seed: int, *, num_patches: int = 32) -> jax.Array:
    """The colours of a seed, `[patch, class]`; of the control where they are alike."""
    purpose = PERMUTATIONS if num_patches > 1 else CONTROL
    return _class_colors(key_of(config, seed, purpose), num_patches=num_patches)


_class_colors = jax.jit(data.class_colors, static_argnames="num_patches")


def train_colors(config, labels, tables, agreement) -> np.ndarray:
    """Colours of every patch of every training image, `[row, table, 32]`, uint8.

    Args:
        labels: `[row]`.
        tables: permutations, one for each variant of the images; that of variant v
            draws with the key of v.
        agreement: a number, or `[patch]`.
    """
    drawn = []
    for number, table in enumerate(tables):
        key = key_of(config, number, TRAIN_COLORS)
        own = _patch_colors(key, labels, table, _of_patches(agreement, table))
        drawn.append(np.broadcast_to(np.asarray(own), (len(labels), 32)))
    return np.stack(drawn, axis=1).astype(np.uint8)


_patch_colors = jax.jit(data.patch_colors)


def _of_patches(agreement, table):
    """`[patch]`, so that one program is for numbers and arrays."""
    return np.broadcast_to(np.float32(agreement), (len(table),))


def test_images(config, centers, table, agreement, *, seed, number=0, draws=1):
    """All test digits in colours that are drawn `draws` times, and their labels.

    Args:
        table: permutations of the seed.
        agreement: a number, or `[patch]`.
        number: which of the seed's test sets; each has draws of its own.

    Returns:
        `[draw * row, 3 side, 3 side, 3]` and `[draw * row]`.
    """
    images = np.tile(centers.x_test, (draws, 1, 1, 1))
    labels = np.tile(centers.y_test, draws)
    key = key_of(config, seed, TEST_COLORS, number)
    agreement = _of_patches(agreement, table)
    return _painted(key, images, labels, table, agreement), labels


@jax.jit
def _painted(key, images, labels, table, agreement):
    return data.paint_border(images, data.patch_colors(key, labels, table, agreement))


class ColorMLP(nnx.Module):
    """Dense layers with ReLU and the initial weights that PyTorch gives them."""

    def __init__(self, num_inputs: int, hidden: tuple[int, ...], *, rngs: nnx.Rngs):
        widths = (num_inputs, *hidden, 10)
        self.layers = nnx.List(
            nnx.Linear(
                num_in,
                num_out,
                kernel_init=_uniform(num_in),
                bias_init=_uniform(num_in),
                rngs=rngs,
            )
            for num_in, num_out in zip(widths[:-1], widths[1:])
        )

    def __call__(self, x):
        x = x.reshape(x.shape[0], -1)
        for layer in self.layers[:-1]:
            x = nnx.relu(layer(x))
        return self.layers[-1](x)


def _uniform(num_in):
    bound = num_in**-0.5

    def init(key, shape, dtype=jnp.float32, out_sharding=None):
        del out_sharding
        # Numbers in a row: those of two axes are the same, and slow to compile.
        row = jax.random.uniform(key, (math.prod(shape),), dtype, -bound, bound)
        return row.reshape(shape)

    return init


def paint_batch(batch, hyper):
    """A batch of grey digits in the colours of the member's own variant."""
    own = jnp.take(batch["colors"], hyper["variant"], axis=1)
    return data.paint_border(batch["center"], own), batch["label"]


def adam(hyper):
    """Adam of one member, as the published script has it."""
    return optax.adam(hyper["learning_rate"])


def adamw(hyper):
    """Adam with decoupled weight decay, of one member."""
    return optax.adamw(hyper["learning_rate"], weight_decay=hyper["weight_decay"])


SQUARED_ERROR = SoftLabels("squared_error", prepare=paint_batch)
CROSS_ENTROPY = SoftLabels("cross_entropy", prepare=paint_batch)


@functools.cache
def _maker(num_inputs, hidden):
    """One function for equal models, so that they are compiled once."""

    def make_model(rngs):
        return ColorMLP(num_inputs, hidden, rngs=rngs)

    return make_model


def job_of(
    config, centers, member_ids, colors, hyper, *, loss, make_tx, steps, stage
) -> TrainingJob:
    """Training of members on images of `centers` with patches around them.

    Args:
        config: of the run.
        centers: grey digits.
        member_ids: `[member]`.
        colors: `[row, variant, 32]`, from `train_colors`.
        hyper: a dict of numbers or `[member]`, with the "variant" of each.
        loss: `SQUARED_ERROR` or `CROSS_ENTROPY`.
        make_tx: `adam` or `adamw`.
        steps: how many.
        stage: name of its checkpoints and metrics.
    """
    count = len(member_ids)
    num_inputs = 27 * centers.x_train.shape[1] ** 2
    return TrainingJob(
        make_model=_maker(num_inputs, tuple(config.hidden)),
        member_ids=tuple(np.asarray(member_ids).tolist()),
        init_seed=config.seed,
        data={
            "center": centers.x_train[..., 0],
            "colors": colors,
            "label": centers.y_train.astype(np.int32),
        },
        hyper={name: np.broadcast_to(x, (count,)) for name, x in hyper.items()},
        mesh_sizes=config.mesh.to_dict(),
        options=dict(
            loss=loss,
            make_tx=make_tx,
            steps=steps,
            batch_size=config.batch_size,
            seed=config.seed,
            sampling="independent",
            steps_per_call=config.steps_per_call,
            log_every_steps=config.steps_per_call,
            save_every_steps=config.save_every_steps,
            block=members_at_once(config),
        ),
        stage=stage,
    )


def train(job: TrainingJob, run_dir, start=None):
    """The trained members and the log, in the run's folders.

    Args:
        job: of `job_of`.
        run_dir: of the run.
        start: members that go on, with their ids; None: new ones.
    """
    return ensjax.fit(
        job.ensemble() if start is None else start,
        job.data,
        hyper=job.hyper,
        checkpoint_dir=run_dir.checkpoints / job.stage,
        logger=run_dir.logger(job.stage),
        **job.options,
    )


def members_at_once(config):
    """`config.block` as the engine takes it."""
    return None if config.block == "all" else config.block


def outputs_of(config, ensemble, images) -> np.ndarray:
    """Outputs of all members, `[member, row, class]`."""
    found = ensjax.predict(
        ensemble,
        images,
        batch_size=config.predict_batch_size,
        block=members_at_once(config),
    )
    return np.asarray(ensjax.mesh.fetch(found), np.float32)


def is_right(outputs, labels) -> np.ndarray:
    """Whether the largest output is the label's, `[..., row]`."""
    return outputs.argmax(axis=-1) == labels


def check_training(config, steps: tuple[str, ...]) -> None:
    """Raises `ConfigError` for what `train` could not work with.

    Args:
        steps: the fields that say how many steps are made.
    """
    check_numbers(
        config,
        (*steps, "steps_per_call", "save_every_steps", "batch_size", "num_seeds"),
        at_least=1,
    )
    check_numbers(config, ("predict_batch_size", "hidden"), at_least=1)
    check_numbers(config, ("learning_rate",), above=0)
    if config.block not in ("auto", "all"):
        check_numbers(config, ("block",), at_least=1)
    check_multiples(config, (*steps, "save_every_steps"))


def check_rows(config, centers) -> None:
    """Raises `ConfigError` if a batch is larger than the training rows."""
    if config.batch_size > len(centers.y_train):
        raise ConfigError(
            f"config.batch_size must be at most the {len(centers.y_train)} training"
            f" rows of {centers.name}; got {config.batch_size}."
        )
