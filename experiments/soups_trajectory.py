"""Averages along one training run, for `soups.py`: EMA, SWA, LAWA and SWAG.

All runs are one stack, and all averages are kept in the same program as the training.
Images of scikit-learn's digits get new noise at every step; the test's have one draw.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import ensjax
from ensjax import data, nn, weight_space
from ensjax.experiment import ConfigError
from ensjax.experiment.fields import check_multiples, check_numbers, load_beside

tasks = load_beside(__file__, "multicolor_tasks")

# What is tested: weights, or the mean of the outputs of several.
KINDS = {
    "last": "last weights",
    "ema": "EMA",
    "lawa": "LAWA",
    "swa": "SWA",
    "lawa_outputs": "outputs of LAWA's checkpoints",
    "swag_diag": "SWAG, diagonal",
    "swag": "SWAG",
}
SCORES = ("accuracy", "nll")


def check_config(config) -> None:
    """Raises `ConfigError` for what `measure` could not work with."""
    own, prefix = config.trajectory, "trajectory."
    whole = ("num_runs", "num_train", "num_test", "batch_size", "total_steps")
    names = (*whole, "every_steps", "num_samples", "num_checkpoints", "hidden")
    check_numbers(config, [prefix + name for name in names], at_least=1)
    check_numbers(config, (f"{prefix}noise", f"{prefix}start_step"), at_least=0)
    check_numbers(config, (f"{prefix}num_columns",), at_least=2)
    check_numbers(config, (f"{prefix}learning_rate",), above=0)
    check_numbers(config, (f"{prefix}momentum",), at_least=0, below=1)
    check_numbers(config, (f"{prefix}ema_decay",), above=0, below=1)
    total = own.num_train + own.num_test
    if total > 1_797 or own.batch_size > own.num_train:
        raise ConfigError(
            "config.trajectory.num_train and num_test must sum to at most 1,797, and"
            f" batch_size be at most num_train; got {own.num_train}, {own.num_test} and"
            f" {own.batch_size}."
        )
    counted = (own.total_steps - own.start_step) // own.every_steps
    if counted < max(2, own.num_columns, own.num_checkpoints):
        raise ConfigError(
            "config.trajectory takes weights every every_steps after start_step, at"
            " least num_columns and num_checkpoints of them; it would take"
            f" {max(counted, 0)}."
        )
    check_multiples(config, ("trajectory.total_steps",))


def averages(config) -> dict:
    """What is kept along training, by name."""
    own = config.trajectory
    since = dict(start_step=own.start_step, every_steps=own.every_steps)
    return {
        "ema": weight_space.EMA(own.ema_decay),
        "lawa": weight_space.LAWA(num_checkpoints=own.num_checkpoints, **since),
        "swa": weight_space.SWA(**since),
        "swag_diag": weight_space.SWAG(num_columns=0, **since),
        "swag": weight_space.SWAG(num_columns=own.num_columns, **since),
    }


@dataclasses.dataclass(frozen=True)
class Noisy:
    """An image with noise of its own, in [0, 1]."""

    sigma: float

    def __call__(self, key, image):
        noisy = image + self.sigma * jax.random.normal(key, image.shape)
        return jnp.clip(noisy, min=0.0, max=1.0)


@dataclasses.dataclass(frozen=True)
class Momentum:
    """SGD with momentum and a constant rate, of one member."""

    momentum: float

    def __call__(self, hyper):
        return optax.sgd(hyper, momentum=self.momentum)


def load_rows(config):
    """Training and test images `[row, 8, 8, 1]` with labels, without noise."""
    own = config.trajectory
    whole = data.digits(test_size=own.num_test, seed=config.seed)
    train = whole.x_train[: own.num_train], whole.y_train[: own.num_train]
    return train, (whole.x_test, whole.y_test)


def measure(config, run_dir) -> dict[str, np.ndarray]:
    """Trains all runs and tests every kind of average.

    Returns:
        `values` `[score, run, kind]` and `frozen_steps` `[run]`.
    """
    own, runs = config.trajectory, config.trajectory.num_runs
    train, test = load_rows(config)
    kept = averages(config)
    start = ensjax.Ensemble.init(
        functools.partial(_make_model, tuple(own.hidden)),
        num_members=runs,
        seed=config.seed,
        mesh=ensjax.make_mesh(**config.mesh.to_dict()),
    )
    last, log = ensjax.fit(
        start,
        train,
        loss=ensjax.losses.cross_entropy,
        make_tx=Momentum(own.momentum),
        hyper=own.learning_rate,
        steps=own.total_steps,
        batch_size=own.batch_size,
        seed=config.seed,
        augment=data.augment_images(Noisy(own.noise)),
        averages=kept,
        steps_per_call=config.steps_per_call,
        log_every_steps=config.steps_per_call,
        block=tasks.members_at_once(config),
        checkpoint_dir=run_dir.checkpoints / "trajectory",
        save_every_steps=own.total_steps,
        logger=run_dir.logger("trajectory"),
    )
    ensembles = {"last": last}
    for name in ("ema", "lawa", "swa"):
        ensembles[name] = weight_space.averaged(last, kept[name], log.averages[name])
    ensembles["lawa_outputs"] = checkpoints(last, log.averages["lawa"])
    for name in ("swag_diag", "swag"):
        ensembles[name] = weight_space.swag_members(
            last,
            kept[name],
            log.averages[name],
            num_samples=own.num_samples,
            seed=config.seed,
        )
    images = data.gaussian_noise(test[0], own.noise, tasks.key_of(config, 0, 1))
    values = score(config, [ensembles[name] for name in KINDS], images, test[1])
    return {
        "values": values,
        "frozen_steps": np.asarray(log.frozen_steps),
    }


def checkpoints(ensemble, states):
    """The weights that LAWA holds as members, those of the first run first."""
    ring = states["ring"]
    held = jax.tree.leaves(ring)[0].shape[1]
    rows = np.repeat(np.arange(ensemble.num_members), held)
    stack = ensemble.select(rows)
    params = jax.tree.map(
        lambda new, old: new.reshape(old.shape).astype(old.dtype), ring, stack.params
    )
    return dataclasses.replace(stack, state=stack.state | {"params": params})


def score(config, ensembles, images, labels) -> np.ndarray:
    """Accuracy and NLL of the mean probabilities of each run, `[score, run, kind]`.

    Args:
        ensembles: of each kind, which has as many members for every run, those of the
            first run first.
        images: of the test, with noise.
        labels: `[row]`.
    """
    runs, found = config.trajectory.num_runs, []
    stack = functools.reduce(lambda a, b: a.concatenate(b), ensembles)
    logits = ensjax.predict(stack, images, batch_size=config.predict_batch_size)
    log_probs = np.asarray(jax.nn.log_softmax(ensjax.mesh.fetch(logits)), np.float64)
    ends = np.cumsum([ensemble.num_members for ensemble in ensembles])[:-1]
    for own in np.split(log_probs, ends):
        own = own.reshape(runs, -1, *own.shape[1:])  # [run, member, row, class]
        mean = np.exp(own).mean(axis=1)
        of_label = mean[:, np.arange(len(labels)), labels]
        accuracy = tasks.is_right(mean, labels).mean(axis=-1)
        found.append((accuracy, -np.log(of_label).mean(axis=-1)))
    return np.moveaxis(np.array(found), 0, -1)


def _make_model(hidden, rngs):
    return nn.MLP(in_features=64, hidden=hidden, rngs=rngs)
