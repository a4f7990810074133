"""Mistakes in a config of `deep_ensemble.py`, found before anything is written."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

import ensjax
from ensjax import data
from ensjax.blocks import Blocks, check_unrolled
from ensjax.experiment import ConfigError
from ensjax.experiment.exit_codes import one_line
from ensjax.experiment.fields import check_options, choose, load_beside
from ensjax.train import arguments
from ensjax.train.schedule import Schedule

recipe = load_beside(__file__, "deep_ensemble_recipe")

# What a model, an optimizer or a split raises for options that do not go together.
_OPTION_ERRORS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


def validate(config, mesh=None):
    """Raises `ConfigError` for names, numbers and options that cannot work.

    Everything is built as the run builds it, shapes only. Data of Python packages are
    read, of data to be downloaded only the options are looked at.

    Args:
        config: of the run.
        mesh: of the run; default: the config's, on the devices that there are.
    """
    _check_names(config)
    _check_numbers(config)
    _check_optimizer(config)
    recipe.member_ids(config)
    try:
        arguments.check_seed(config.seed)
        arguments.check_sampling(config.sampling, None, None, is_resident=True)
        ensjax.Health(**config.health.to_dict())
        blocks = Blocks(recipe.members_at_once(config), config.unroll)
        if mesh is None:
            mesh = ensjax.make_mesh(**config.mesh.to_dict())
        arguments.check_fit_mesh(mesh)
        members, devices = config.num_seeds * config.num_members, mesh.shape["member"]
        check_unrolled(blocks, blocks.rows(members, devices) // devices)
        Schedule.of(
            steps=config.total_steps,
            steps_per_call=config.steps_per_call,
            log_every_steps=config.log_every_steps,
            evaluate_every_steps=config.evaluate_every_steps,
            save_every_steps=config.save_every_steps,
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(f"config: {one_line(error)}") from error
    sections = [config.data] if config.ood.name == "none" else [config.data, config.ood]
    if all(section.name in recipe.LOCAL for section in sections):
        check_rows(config, recipe.load_rows(config), mesh)
        return
    for part in ("data", "ood"):
        name, options = config[part].name, config[part].options.to_dict()
        if name != "none":
            check_options(
                f"config.{part}.options of {name}",
                data.find_dataset(name),
                options=options,
            )
    if config.data.name in recipe.PUBLISHED:
        known = recipe.PUBLISHED[config.data.name]
        _check_model(config, known.shape, known.num_classes)
        if config.ood.name in recipe.PUBLISHED:
            _check_other(config, known.shape, recipe.PUBLISHED[config.ood.name].shape)


def check_rows(config, rows, mesh=None):
    """Raises `ConfigError` if the model, the batches or the other data do not fit."""
    x, y = rows.train
    if mesh is None:
        mesh = ensjax.make_mesh(**config.mesh.to_dict())
    num_data = mesh.shape["data"]
    if config.batch_size > len(y):
        raise ConfigError(
            f"config.batch_size must be at most the {len(y):,} training rows; got"
            f" {config.batch_size}."
        )
    if config.batch_size % num_data:
        raise ConfigError(
            f"config.batch_size={config.batch_size} must divide over data={num_data}"
            " devices."
        )
    _check_model(config, x.shape[1:], max(int(y.max()), int(rows.test[1].max())) + 1)
    if rows.ood is not None:
        _check_other(config, x.shape[1:], rows.ood[0].shape[1:])


def _check_names(config):
    for field, value, known in (
        ("model.name", config.model.name, recipe.MODELS),
        ("model.dtype", config.model.dtype, recipe.DTYPES),
        ("optimizer.name", config.optimizer.name, recipe.OPTIMIZERS),
        ("data.name", config.data.name, data.DATASETS),
        ("ood.name", config.ood.name, {"none": None} | data.DATASETS),
        *(("augment", name, recipe.AUGMENTATIONS) for name in config.augment),
    ):
        choose(field, value, known)


def _check_numbers(config):
    for field in ("num_bins", "num_subsets", "num_shown", "predict_batch_size"):
        if config[field] < 1:
            raise ConfigError(
                f"config.{field} must be at least 1; got {config[field]}."
            )
    for field in ("rotation_degrees", "noise_sigma"):
        values = config[field]
        if not values or not all(math.isfinite(value) for value in values):
            raise ConfigError(
                f"config.{field} holds at least one number, and (0.0,) for no shift;"
                f" got {values}."
            )
    if min(config.noise_sigma) < 0:
        raise ConfigError(
            f"config.noise_sigma must not be negative; got {config.noise_sigma}."
        )
    if not (config.l2 >= 0 and math.isfinite(config.l2)):
        raise ConfigError(f"config.l2 must be 0 or positive; got {config.l2}.")
    if config.data.num_calibration < 0:
        raise ConfigError(
            "config.data.num_calibration must be 0 (no calibration) or a number of"
            f" training rows; got {config.data.num_calibration}."
        )
    mean, sd = config.model.input_mean, config.model.input_sd
    if len(mean) != len(sd) or not all(value > 0 for value in sd):
        raise ConfigError(
            "config.model.input_mean and config.model.input_sd hold one number for each"
            f" channel, sd above 0, or are both (); got {mean} and {sd}."
        )


def _check_optimizer(config):
    rates = config.optimizer.learning_rate
    highest = max(recipe.member_numbers(config))
    if len(rates) != 1 and len(rates) <= highest:
        raise ConfigError(
            "config.optimizer.learning_rate holds 1 value, or one for every member"
            f" number up to {highest}; got {len(rates)}."
        )
    if not all(rate >= 0 for rate in rates):
        raise ConfigError(
            f"config.optimizer.learning_rate must not be negative; got {rates}."
        )
    if config.schedule.warmup_steps < 0:
        raise ConfigError(
            "config.schedule.warmup_steps must be 0 or positive; got"
            f" {config.schedule.warmup_steps}."
        )
    options = config.optimizer.to_dict()
    build = recipe.OPTIMIZERS[options.pop("name")]
    options.pop("learning_rate")
    field = f"config.optimizer of {config.optimizer.name}"
    check_options(field, build, 1.0, options=options)
    try:
        jax.eval_shape(lambda x: _one_update(config, x), jnp.zeros(1))
    except _OPTION_ERRORS as error:
        raise ConfigError(f"{field}: {one_line(error)}") from error


def _one_update(config, x):
    tx = recipe.make_optimizer(config)(jnp.float32(1.0))
    return tx.update(x, tx.init(x), x)


def _check_model(config, shape, num_classes):
    """Builds a member, and applies it to images `[2, *shape]`, in shapes only."""
    name, options = config.model.name, config.model.options.to_dict()
    field = f"config.model.options of {name}"
    channels = shape[-1]
    if len(config.model.input_mean) not in (0, 1, channels):
        raise ConfigError(
            f"config.model.input_mean holds 1 or {channels} numbers, one for each"
            f" channel; got {len(config.model.input_mean)}."
        )
    if config.augment and len(shape) != 3:
        raise ConfigError(f"config.augment needs images; got rows of shape {shape}.")
    build, options = recipe.MODELS[name], options | {"dtype": None, "rngs": None}
    if isinstance(build, type):  # the class itself has the signature of its metaclass
        check_options(field, build.__init__, None, options=options)
    else:
        check_options(field, build, options=options)

    def logits(x):
        model = recipe.build_model(config, nnx.Rngs(params=0, dropout=1))
        return model(x)

    try:
        x = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
        out = jax.eval_shape(logits, x).shape
    except ConfigError:
        raise
    except _OPTION_ERRORS as error:
        raise ConfigError(
            f"{field}, on rows of shape {shape}: {one_line(error)}"
        ) from error
    if len(out) != 2 or out[1] < num_classes:
        raise ConfigError(
            f"config.model must give [batch, class] with at least {num_classes}"
            f" classes, as the labels have; got {out} for a batch of 2"
            " (config.model.options.num_outputs)."
        )


def _check_other(config, shape, other_shape):
    if shape != other_shape:
        raise ConfigError(
            f"config.ood: rows of {config.ood.name} have the shape {other_shape}, those"
            f" of {config.data.name} {shape}; choose data of the same shape."
        )
