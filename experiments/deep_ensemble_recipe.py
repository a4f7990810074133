"""What `deep_ensemble.py` is made of: rows, model, loss and optimizer of a config."""

import functools
import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from ensjax import data, losses, nn
from ensjax.experiment import ConfigError
from ensjax.experiment.exit_codes import one_line
from ensjax.experiment.fields import check_options, choose

MODELS = {
    "cnn": nn.CNN,
    "mlp": nn.MLP,
    "resnet": nn.ResNet,
    "vit": nn.ViT,
    "wide_resnet": nn.wide_resnet,
}
ACTIVATIONS = {"gelu": nnx.gelu, "relu": nnx.relu, "tanh": nnx.tanh}
DTYPES = {"bfloat16": jnp.bfloat16, "float32": jnp.float32}
OPTIMIZERS = {"adam": optax.adam, "sgd": optax.sgd}
AUGMENTATIONS = {
    "crop": lambda: data.random_crop(padding=4),
    "flip": data.random_flip,
}
LOCAL = ("digits", "digits_enlarged", "mnist5k")  # they come with Python packages


class Published(NamedTuple):
    """What is known of a data set that is not read before the run."""

    shape: tuple[int, ...]
    num_classes: int
    num_train: int
    num_test: int


PUBLISHED = {
    "cifar10": Published((32, 32, 3), 10, 50_000, 10_000),
    "cifar100": Published((32, 32, 3), 100, 50_000, 10_000),
    "mnist_idx": Published((28, 28, 1), 10, 60_000, 10_000),
}


class Rows(NamedTuple):
    """Arrays `(x, y)`, pixels in [0, 1]; `calibration` and `ood` may be None."""

    train: tuple[np.ndarray, np.ndarray]
    calibration: tuple[np.ndarray, np.ndarray] | None
    test: tuple[np.ndarray, np.ndarray]
    ood: tuple[np.ndarray, np.ndarray] | None
    source: str
    ood_source: str


def load_rows(config) -> Rows:
    """The data set, with the calibration rows taken out of its training part.

    The calibration rows are a stratified draw by `data.options.seed` (0 without one),
    and no source row is in two of the three parts.

    Raises:
        ConfigError: if the data cannot be had, or the parts are larger than the whole.
    """
    dataset = _load(config, "data")
    train, calibration = (dataset.x_train, dataset.y_train), None
    num_train = len(dataset.y_train)
    if config.data.num_calibration:
        try:
            kept, held_out = data.train_test_split(
                num_train,
                test_size=config.data.num_calibration,
                seed=config.data.options.get("seed", 0),
                labels=dataset.y_train,
            )
        except ValueError as error:
            raise ConfigError(
                f"config.data.num_calibration must leave some of the {num_train:,}"
                f" training rows; got {config.data.num_calibration}."
            ) from error
        parts = {
            "training rows": dataset.train_ids[kept],
            "calibration rows": dataset.train_ids[held_out],
            "test rows": dataset.test_ids,
        }
        names = list(parts)
        for a, b in ((0, 1), (0, 2), (1, 2)):
            pair = names[a], names[b]
            data.check_disjoint(parts[pair[0]], parts[pair[1]], names=pair)
        calibration = (dataset.x_train[held_out], dataset.y_train[held_out])
        train = (dataset.x_train[kept], dataset.y_train[kept])
    ood = None if config.ood.name == "none" else _load(config, "ood")
    return Rows(
        train=train,
        calibration=calibration,
        test=(dataset.x_test, dataset.y_test),
        ood=None if ood is None else (ood.x_test, ood.y_test),
        source=dataset.source,
        ood_source="" if ood is None else ood.source,
    )


def row_shapes(config) -> Rows:
    """Shapes in place of the rows of `load_rows`, for data as they are published.

    Raises:
        ConfigError: if nothing is known of the data, or the parts are larger than the
            whole.
    """
    known = choose("data.name", config.data.name, PUBLISHED)
    options = config.data.options
    num_train = options.get("num_train", known.num_train)
    num_calibration = config.data.num_calibration
    if num_calibration >= num_train:
        raise ConfigError(
            f"config.data.num_calibration must leave some of the {num_train:,}"
            f" training rows; got {num_calibration}."
        )
    if config.batch_size > num_train - num_calibration:
        raise ConfigError(
            "config.batch_size must be at most the"
            f" {num_train - num_calibration:,} training rows; got {config.batch_size}."
        )

    def part(count):
        x = jax.ShapeDtypeStruct((count, *known.shape), jnp.float32)
        return x, jax.ShapeDtypeStruct((count,), jnp.int32)

    return Rows(
        train=part(num_train - num_calibration),
        calibration=part(num_calibration) if num_calibration else None,
        test=part(options.get("num_test", known.num_test)),
        ood=None,
        source="as published, not read",
        ood_source="",
    )


def _load(config, part):
    section, field = config[part], f"config.{part}.options"
    load, options = data.find_dataset(section.name), section.options.to_dict()
    check_options(f"{field} of {section.name}", load, options=options)
    try:
        if section.name in LOCAL:
            return _load_local(section.name, tuple(options.items()))
        return load(**options)
    except (ImportError, OSError, TypeError, ValueError) as error:
        raise ConfigError(f"{field} of {section.name}: {one_line(error)}") from error


@functools.lru_cache(maxsize=2)
def _load_local(name, options):
    return data.find_dataset(name)(**dict(options))


class Standardised(nnx.Module):
    """A model of `(x - mean) / sd` by channel, so that shifts see pixels in [0, 1]."""

    def __init__(self, model: nnx.Module, mean: tuple, sd: tuple):
        self.model, self.mean, self.sd = model, mean, sd

    def __call__(self, x):
        shape = (1,) * (x.ndim - 1) + (-1,)
        mean, sd = (
            jnp.asarray(v, x.dtype).reshape(shape) for v in (self.mean, self.sd)
        )
        return self.model((x - mean) / sd)


def build_model(config, rngs):
    """One member, with everything that `config.model` says."""
    options = config.model.options.to_dict()
    options["dtype"] = DTYPES[config.model.dtype]
    if "norm" in options:
        options["norm"] = None if options["norm"] == "none" else options["norm"]
    if "activation" in options:
        options["activation"] = choose(
            "model.options.activation", options["activation"], ACTIVATIONS
        )
    model = MODELS[config.model.name](**options, rngs=rngs)
    if not config.model.input_mean:
        return model
    mean, sd = tuple(config.model.input_mean), tuple(config.model.input_sd)
    return Standardised(model, mean, sd)


def make_loss(config):
    """Cross-entropy plus `l2` times the sum of all squared parameters of the member."""
    if not config.l2:
        return losses.cross_entropy

    def loss(model, batch, key):
        nll, metrics = losses.cross_entropy(model, batch, key)
        squares = [jnp.sum(x**2) for x in jax.tree.leaves(nnx.state(model, nnx.Param))]
        return nll + config.l2 * sum(squares), {"nll": nll} | metrics

    return loss


def make_optimizer(config):
    """`make_tx(learning_rate)`: the optimizer of one member under the schedule.

    The rate rises linearly in `warmup_steps` and is multiplied by `decay_factor` at
    each of `decay_steps`.
    """
    options = config.optimizer.to_dict()
    build = OPTIMIZERS[options.pop("name")]
    options.pop("learning_rate")
    schedule = config.schedule

    def factor(step):
        decays = sum((step >= at).astype(jnp.float32) for at in schedule.decay_steps)
        warm = jnp.minimum(1.0, (step + 1) / max(1, schedule.warmup_steps))
        return warm * schedule.decay_factor**decays

    def make_tx(learning_rate):
        if not schedule.decay_steps and not schedule.warmup_steps:
            return build(learning_rate, **options)
        return build(lambda step: learning_rate * factor(step), **options)

    return make_tx


def make_augment(config):
    """The augmentation of one example, or None."""
    if not config.augment:
        return None
    return data.augment_images(*(AUGMENTATIONS[name]() for name in config.augment))


# Ids of the members of different seeds are apart by this, so that a member keeps its id
# when an ensemble grows.
SEED_STRIDE = 2**16


def member_numbers(config):
    """The numbers of the members of every seed.

    Raises:
        ConfigError: if `config.members` are not `num_members` different numbers.
    """
    members = tuple(config.get("members", ())) or tuple(range(config.num_members))
    if len(members) != config.num_members or len(set(members)) < len(members):
        raise ConfigError(
            f"config.members must be {config.num_members} different numbers"
            f" (config.num_members), or (); got {members}."
        )
    if not all(0 <= member < SEED_STRIDE for member in members):
        raise ConfigError(
            f"config.members are numbers from 0 to {SEED_STRIDE - 1}; got {members}."
        )
    return members


def member_ids(config):
    """Ids of all members, those of one seed after those of the other.

    Raises:
        ConfigError: as `member_numbers`.
    """
    return tuple(
        seed * SEED_STRIDE + member
        for seed in range(config.num_seeds)
        for member in member_numbers(config)
    )


def per_member(config):
    """The learning rate of each member of one seed, `[member]`.

    Several rates belong to the numbers of members, not to their places.
    """
    rates = np.asarray(config.optimizer.learning_rate)
    if len(rates) == 1:
        return np.broadcast_to(rates, (config.num_members,))
    return rates[list(member_numbers(config))]


def members_at_once(config):
    """`config.block` as the engine takes it: "auto", None (all) or an integer.

    A config holds "auto", "all", or a number, as an integer or as text.
    """
    block = config.block
    if block in ("auto", "all"):
        return "auto" if block == "auto" else None
    try:
        if isinstance(block, bool):
            raise TypeError
        number = int(block) if isinstance(block, str) else operator.index(block)
        if number < 1:
            raise ValueError
    except (TypeError, ValueError):
        raise ConfigError(
            'config.block is "auto", "all" (members at once), or how many members run'
            f" at once, at least 1; got {block!r}."
        ) from None
    return number
