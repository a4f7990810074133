"""Members of `rebasin.py`: MLPs of several widths and residual networks, by SGD.

All members of an architecture are one stack. Of MLPs of the last width, the sets that
are aligned jointly come first, then pairs trained without momentum.
"""

import functools

import jax
import numpy as np
import optax

from ensjax import data, losses, nn
from ensjax.experiment import ConfigError
from ensjax.experiment.exit_codes import one_line
from ensjax.experiment.fields import check_multiples, check_numbers, choose
from ensjax.train import TrainingJob

SETS = {
    "digits": lambda folder: data.digits(test_size=400, seed=0),
    "mnist5k": lambda folder: data.mnist5k(),
    "mnist_idx": data.mnist_idx,
    "cifar10": data.cifar10,
}
# Of training images, where files are needed that a plan does without.
SHAPES = {"mnist_idx": (60_000, 28, 28, 1), "cifar10": (50_000, 32, 32, 3)}


def load(config, part: str) -> data.Dataset:
    """The data of "mlp" or "resnet".

    Raises:
        ConfigError: if there are none of that name, or they cannot be had.
    """
    name, folder = config[part].data, config.folder
    choose(f"{part}.data", name, SETS)
    if name in SHAPES and not folder:
        raise ConfigError(
            f"config.folder must name the folder with the files of {name}; they are"
            " not downloaded here."
        )
    try:
        return _load(name, folder)
    except (ImportError, OSError, ValueError) as error:
        raise ConfigError(f"config.{part}.data ({name}): {one_line(error)}") from error


@functools.lru_cache(maxsize=4)
def _load(name, folder):
    return SETS[name](folder)


def sgd(hyper):
    """SGD of one member; weight decay is added to the gradient, before momentum."""
    return optax.chain(
        optax.add_decayed_weights(hyper["weight_decay"]),
        optax.sgd(hyper["learning_rate"], momentum=hyper["momentum"]),
    )


def _make_mlp(shape, width, depth, rngs):
    return nn.MLP(
        in_features=int(np.prod(shape)),
        hidden=(width,) * depth,
        num_outputs=10,
        rngs=rngs,
    )


def _make_resnet(channels, depth, width, norm, rngs):
    return nn.ResNet(
        depth=depth,
        width=width,
        in_channels=channels,
        num_outputs=10,
        norm=norm,
        rngs=rngs,
    )


def num_mlps(config, width: int) -> tuple[int, int]:
    """How many MLPs of a width are trained, with momentum and without."""
    pairs = 2 * config.mlp.num_pairs
    if width != config.mlp.widths[-1]:
        return pairs, 0
    return max(pairs, config.num_sets * config.mlp.num_members), pairs


def mlp_job(config, width: int, rows) -> TrainingJob:
    """Training of all MLPs of one width; `rows` are images and labels, or shapes."""
    with_momentum, plain = num_mlps(config, width)
    momentum = [config.mlp.momentum] * with_momentum + [0.0] * plain
    make = functools.partial(
        _make_mlp, tuple(rows[0].shape[1:]), width, config.mlp.depth
    )
    return _job(config, config.mlp, make, rows, momentum)


def resnet_job(config, rows) -> TrainingJob:
    """Training of the residual networks of all sets."""
    own = config.resnet
    make = functools.partial(
        _make_resnet, rows[0].shape[-1], own.depth, own.width, own.norm
    )
    momentum = [own.momentum] * (config.num_sets * own.num_members)
    return _job(config, own, make, rows, momentum)


def _job(config, own, make_model, rows, momentum):
    members = len(momentum)
    return TrainingJob(
        make_model=make_model,
        member_ids=tuple(range(members)),
        init_seed=config.seed,
        data=rows,
        hyper={
            "learning_rate": np.full(members, own.learning_rate, np.float32),
            "weight_decay": np.full(members, own.weight_decay, np.float32),
            "momentum": np.asarray(momentum, np.float32),
        },
        mesh_sizes=config.mesh.to_dict(),
        options=dict(
            loss=losses.cross_entropy,
            make_tx=sgd,
            steps=own.total_steps,
            batch_size=own.batch_size,
            seed=config.seed,
            sampling="independent",
            steps_per_call=config.steps_per_call,
            log_every_steps=config.steps_per_call,
            block=None if config.block == "all" else config.block,
        ),
    )


def train(config, run_dir, name: str, job: TrainingJob):
    """The trained ensemble, and for which step each member stopped being finite."""
    ensemble, log = job.fit(
        checkpoint_dir=run_dir.checkpoints / name,
        save_every_steps=config.save_every_steps,
        logger=run_dir.logger(name),
    )
    return ensemble, np.asarray(log.frozen_steps)


def rows_of(dataset) -> tuple[np.ndarray, np.ndarray]:
    """Training images and labels."""
    return dataset.x_train, dataset.y_train.astype(np.int32)


def shapes_of(name: str):
    """Shapes of the training rows of a data set, without reading files."""
    if name not in SHAPES:
        rows = rows_of(_load(name, ""))
        return tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in rows)
    shape = SHAPES[name]
    images = jax.ShapeDtypeStruct(shape, np.float32)
    return images, jax.ShapeDtypeStruct(shape[:1], np.int32)


def check_config(config) -> None:
    """Raises `ConfigError` for what training or alignment could not work with."""
    check_numbers(config, ("num_sets", "num_statistics"), at_least=1)
    check_numbers(config, ("num_alphas", "num_matrix_alphas"), at_least=3)
    for field in ("num_alphas", "num_matrix_alphas"):
        if config[field] % 2 == 0:
            raise ConfigError(
                f"config.{field} must be odd, so that the middle is there; got"
                f" {config[field]}."
            )
    check_numbers(config, ("steps_per_call", "predict_batch_size"), at_least=1)
    if config.block not in ("auto", "all"):
        check_numbers(config, ("block",), at_least=1)
    check_numbers(config, ("mlp.widths", "mlp.depth", "mlp.num_pairs"), at_least=1)
    widths = list(config.mlp.widths)
    if widths != sorted(set(widths)):
        raise ConfigError(f"config.mlp.widths must rise; got {config.mlp.widths}.")
    for part in ("mlp", "resnet"):
        check_numbers(config, (f"{part}.num_members",), at_least=2)
        check_numbers(config, (f"{part}.learning_rate",), above=0)
        check_numbers(config, (f"{part}.weight_decay",), at_least=0)
        check_numbers(config, (f"{part}.momentum",), at_least=0, below=1)
        fields = tuple(f"{part}.{name}" for name in ("batch_size", "total_steps"))
        check_numbers(config, fields, at_least=1)
        check_multiples(config, (f"{part}.total_steps",))
        choose(f"{part}.data", config[part].data, SETS)
        count = shapes_of(config[part].data)[0].shape[0]
        if config[part].batch_size > count:
            raise ConfigError(
                f"config.{part}.batch_size must be at most the {count} training rows;"
                f" got {config[part].batch_size}."
            )
    check_numbers(config, ("save_every_steps",), at_least=1)
    check_multiples(config, ("save_every_steps",))
    if config.resnet.depth < 8 or config.resnet.depth % 6 != 2:
        raise ConfigError(
            f"config.resnet.depth must be 6n + 2, from 8 on; got {config.resnet.depth}."
        )
    choose("resnet.norm", config.resnet.norm, dict.fromkeys(("batch", "layer")))
