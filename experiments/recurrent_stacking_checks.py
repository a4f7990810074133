"""Mistakes in a config of `recurrent_stacking.py`, found before anything is written."""

import jax
import jax.numpy as jnp
from flax import nnx

import ensjax
from ensjax import nn
from ensjax.experiment import ConfigError
from ensjax.experiment.exit_codes import one_line
from ensjax.experiment.fields import check_numbers, choose, load_beside
from ensjax.train import arguments
from ensjax.train.schedule import Schedule

data = load_beside(__file__, "recurrent_stacking_clips")

DATA = {"features": None, "simulated": None}
_PER_MEMBER = ("cells", "bidirectional", "hidden", "recurrent_init")


def validate(config, mesh=None):
    """Raises `ConfigError` for names, numbers and options that cannot work."""
    choose("data.name", config.data.name, DATA)
    check_numbers(
        config,
        (
            "num_seeds",
            "frames",
            "skips",
            "hidden",
            "batch_size",
            "total_steps",
            "data.num_frames",
            "data.num_train",
            "data.num_dev",
            "data.num_test",
        ),
        at_least=1,
    )
    check_numbers(config, ("learning_rate", "data.contrast"), above=0)
    check_numbers(
        config,
        ("meta_l2", "skip_margin", "data.walk_sd", "data.noise_sd"),
        at_least=0,
    )
    members = len(config.architectures)
    if members < 2 or len(set(config.architectures)) < members:
        raise ConfigError(
            "config.architectures names at least two different members; got"
            f" {config.architectures}."
        )
    for field in _PER_MEMBER:
        if len(config[field]) != members:
            raise ConfigError(
                f"config.{field} holds one value for each of {members} members; got"
                f" {len(config[field])}."
            )
    if config.data.name == "simulated":
        _check_simulation(config)
    elif tuple(config.skips) != (1,):
        raise ConfigError(
            f"config.skips must be (1,), as features skip frames already; got"
            f" {config.skips}."
        )
    _check_models(config)
    members_at_once(config)
    try:
        arguments.check_seed(config.seed)
        arguments.check_fit_mesh(mesh or ensjax.make_mesh(**config.mesh.to_dict()))
        Schedule.of(
            steps=config.total_steps,
            steps_per_call=config.steps_per_call,
            log_every_steps=config.log_every_steps,
            evaluate_every_steps=None,
            save_every_steps=config.save_every_steps,
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(f"config: {one_line(error)}") from error
    if config.data.name == "features":
        data.load_clips(config)


def _check_simulation(config):
    domains = len(config.data.noise_sd)
    if domains < 2 or len(config.data.contrast) != domains:
        raise ConfigError(
            "config.data.noise_sd and config.data.contrast hold one value for each of"
            f" at least two domains; got {domains} and {len(config.data.contrast)}."
        )
    for field in ("num_train", "num_dev", "num_test"):
        if config.data[field] < 4:
            raise ConfigError(
                f"config.data.{field} must be at least 4, half of them live; got"
                f" {config.data[field]}."
            )
    if 1 not in config.skips or len(set(config.skips)) < len(config.skips):
        raise ConfigError(
            f"config.skips holds 1 and other skips once each; got {config.skips}."
        )
    needed = (config.frames - 1) * max(config.skips) + 1
    if needed > config.data.num_frames:
        raise ConfigError(
            f"config.frames={config.frames} of every {max(config.skips)}th need"
            f" config.data.num_frames of at least {needed}; got"
            f" {config.data.num_frames}."
        )


def _check_models(config):
    for kind, name in enumerate(config.architectures):

        def logits(x, kind=kind):
            model = nn.Recurrent(
                in_features=4,
                hidden=config.hidden[kind],
                num_outputs=2,
                cell=config.cells[kind],
                bidirectional=config.bidirectional[kind],
                recurrent_init=config.recurrent_init[kind],
                pool=config.pool,
                rngs=nnx.Rngs(0),
            )
            return model(x)

        try:
            jax.eval_shape(logits, jax.ShapeDtypeStruct((2, 3, 4), jnp.float32))
        except (TypeError, ValueError) as error:
            raise ConfigError(f"config, member {name}: {one_line(error)}") from error


def members_at_once(config):
    """`config.block` as the engine takes it: "auto", None (all) or an integer."""
    block = config.block
    if block in ("auto", "all"):
        return "auto" if block == "auto" else None
    if isinstance(block, bool) or not isinstance(block, int) or block < 1:
        raise ConfigError(
            'config.block is "auto", "all" (members at once), or how many members run'
            f" at once, at least 1; got {block!r}."
        )
    return block
