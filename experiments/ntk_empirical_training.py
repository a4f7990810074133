"""Convolutional nets of `ntk_empirical.py`, and their kernels while they train.

All members of a width are one stack. Weights at the steps that are measured are kept in
the same program as the training.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import ensjax
from ensjax import data, losses, nn, ntk
from ensjax.experiment import ConfigError
from ensjax.experiment.exit_codes import one_line
from ensjax.experiment.fields import check_numbers, choose

SETS = {
    "digits": lambda: data.digits(test_size=400, seed=0),
    "mnist5k": lambda: data.mnist5k(),
}


@functools.lru_cache(maxsize=2)
def _load(name):
    return SETS[name]()


def load(config) -> data.Dataset:
    """The images.

    Raises:
        ConfigError: if there are none of that name, or they cannot be had.
    """
    choose("cnn.data", config.cnn.data, SETS)
    try:
        return _load(config.cnn.data)
    except (ImportError, OSError, ValueError) as error:
        raise ConfigError(f"config.cnn.data: {one_line(error)}") from error


def check_config(config) -> None:
    """Raises `ConfigError` for what training or measuring could not work with."""
    own = config.cnn
    dataset = load(config)
    names = "widths num_rows snapshots batch_size steps_per_call predict_batch_size"
    check_numbers(config, [f"cnn.{name}" for name in names.split()], at_least=1)
    check_numbers(config, ("cnn.num_members", "cnn.block_rows"), at_least=2)
    check_numbers(config, ("cnn.learning_rate",), above=0)
    for field in ("widths", "snapshots"):
        values = list(own[field])
        if values != sorted(set(values)):
            raise ConfigError(f"config.cnn.{field} must rise; got {own[field]}.")
    if own.snapshots[-1] % own.steps_per_call:
        raise ConfigError(
            f"the last of config.cnn.snapshots, {own.snapshots[-1]}, must be a multiple"
            f" of config.cnn.steps_per_call={own.steps_per_call}."
        )
    for field, rows in (
        ("batch_size", len(dataset.x_train)),
        ("num_rows", len(dataset.x_train)),
    ):
        if own[field] > rows:
            raise ConfigError(
                f"config.cnn.{field} must be at most the {rows} training rows; got"
                f" {own[field]}."
            )
    if config.block not in ("auto", "all"):
        check_numbers(config, ("block",), at_least=1)


@dataclasses.dataclass(frozen=True)
class Snapshots:
    """The weights after some steps: for `averages=` of `fit`.

    Attributes:
        steps: rising.
    """

    steps: tuple[int, ...]

    def init(self, params):
        """The state before the first step; `kept` is `[snapshot, ...]`."""
        count = len(self.steps)
        kept = jax.tree.map(lambda x: jnp.zeros((count, *x.shape), x.dtype), params)
        return {"step": jnp.int32(0), "kept": kept}

    def update(self, state, params):
        """The state after a step that gave `params`."""
        step = state["step"] + 1
        is_due = jnp.asarray(self.steps) == step

        def put(kept, x):
            due = is_due.reshape(-1, *[1] * x.ndim)
            return jnp.where(due, x[None], kept)

        return {"step": step, "kept": jax.tree.map(put, state["kept"], params)}

    def mean(self, state):
        """The last weights that were kept."""
        return jax.tree.map(lambda x: x[-1], state["kept"])


def _make_model(shape, width, rngs):
    return nn.CNN(
        image_shape=shape,
        features=(width, 2 * width, 2 * width),
        num_pools=2,
        num_outputs=10,
        rngs=rngs,
    )


def train(config, run_dir, width: int, dataset):
    """The ensembles at the start and at each snapshot, and who stopped being finite."""
    own = config.cnn
    mesh = ensjax.make_mesh(**config.mesh)
    make = functools.partial(_make_model, dataset.x_train.shape[1:], width)
    start = ensjax.Ensemble.init(
        make, num_members=own.num_members, seed=config.seed, mesh=mesh
    )
    trained, log = ensjax.fit(
        start,
        (dataset.x_train, dataset.y_train.astype(np.int32)),
        loss=losses.cross_entropy,
        make_tx=optax.sgd,
        hyper=own.learning_rate,
        steps=own.snapshots[-1],
        batch_size=own.batch_size,
        seed=config.seed,
        averages={"snapshots": Snapshots(tuple(own.snapshots))},
        steps_per_call=own.steps_per_call,
        log_every_steps=own.snapshots[-1],
        block=None if config.block == "all" else config.block,
        logger=run_dir.logger(f"cnn-{width}"),
    )
    kept = log.averages["snapshots"]["kept"]
    ensembles = [start]
    for number in range(len(own.snapshots)):
        params = jax.tree.map(lambda x: x[:, number], kept)  # noqa: B023
        state = {**trained.state, "params": params}
        # On the mesh as the others are, so that nothing compiles again.
        ensembles.append(dataclasses.replace(trained, state=state).on_mesh(mesh))
    return ensembles, log.frozen_steps


def kernel_rows(config, dataset):
    """Training images of the kernels, and their classes as one-hot rows."""
    count = config.cnn.num_rows
    labels = np.eye(10, dtype=np.float32)[dataset.y_train[:count]]
    return dataset.x_train[:count], labels


def measure(config, ensembles, dataset) -> dict[str, np.ndarray]:
    """What kernels and members are like at the start and at each snapshot.

    Returns:
        "accuracy" (test) and "loss" (test NLL) `[snapshot, member]`; of kernels
        "change", "distance" and "scale" (`ntk.Drift`), "labels" and "labels_centred"
        (`ntk.Alignment`) likewise, "between" and "between_centred" `[snapshot, member,
        member']`, "spread" (over members, relative to their mean kernel) `[snapshot]`
        and "trace" (its mean over rows) `[snapshot, member]`; "streamed", the
        largest difference of drift and alignment that were streamed (of the last
        snapshot); "kernels" of member 0 at the start and the end, rows by class.
    """
    x, labels = kernel_rows(config, dataset)
    options = dict(block=None if config.block == "all" else config.block)
    order = np.argsort(labels.argmax(axis=1), kind="stable")
    each, shown, first = [], [], None
    for ensemble in ensembles:
        kernels = ntk.empirical_ntk(ensemble, x, **options)
        first = kernels if first is None else first
        found = _scores(config, ensemble, dataset) | _of_kernels(kernels, first, labels)
        each.append(found)
        shown.append(np.asarray(kernels[0])[np.ix_(order, order)])
    arrays = {name: np.stack([found[name] for found in each]) for name in each[0]}
    options["block_rows"] = config.cnn.block_rows
    streamed = _streamed(ensembles[0], ensembles[-1], x, labels, options)
    away = [np.abs(streamed[name] - arrays[name][-1]).max() for name in streamed]
    return arrays | {
        "streamed": np.max(away),
        "kernels": np.stack([shown[0], shown[-1]]),
        "classes": labels.argmax(axis=1)[order],
    }


def _scores(config, ensemble, dataset):
    size = config.cnn.predict_batch_size
    logits = ensjax.predict(ensemble, dataset.x_test, batch_size=size)
    log_probs = np.asarray(jax.nn.log_softmax(jnp.asarray(logits)))
    targets = dataset.y_test.astype(np.int64)
    own = np.take_along_axis(log_probs, targets[None, :, None], axis=-1)
    return {
        "accuracy": (log_probs.argmax(axis=-1) == targets).mean(axis=1),
        "loss": -own.mean(axis=(1, 2)),
    }


@jax.jit
def _of_kernels(kernels, first, labels):
    mean = jnp.mean(kernels, axis=0, keepdims=True)
    away = jnp.sum((kernels - mean) ** 2) / (len(kernels) - 1)
    target = ntk.label_kernel(labels)[None]
    return {
        "change": ntk.relative_change(kernels, first),
        "distance": 1 - ntk.alignment(kernels, first, centre=False),
        "labels": ntk.alignment(kernels, target, centre=False),
        "labels_centred": ntk.alignment(kernels, target),
        "between": ntk.alignment_between_members(kernels, centre=False),
        "between_centred": ntk.alignment_between_members(kernels),
        "spread": jnp.sqrt(away / jnp.sum(mean**2)),
        "trace": jnp.trace(kernels, axis1=1, axis2=2) / kernels.shape[1],
    }


def _streamed(start, end, x, labels, options):
    """Drift and alignment of the last snapshot, without its kernels."""
    drift = ntk.kernel_drift(start, end, x, **options)
    alignment = ntk.kernel_alignment(end, x, labels, **options)
    return {
        "change": np.asarray(drift.change),
        "distance": np.asarray(drift.distance),
        "labels": np.asarray(alignment.labels),
        "labels_centred": np.asarray(alignment.labels_centred),
        "between": np.asarray(alignment.members),
        "between_centred": np.asarray(alignment.members_centred),
    }
