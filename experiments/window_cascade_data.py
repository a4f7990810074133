"""What `window_cascade.py` measures on: logits of pairs, trained here or cached."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import ensjax
from ensjax import combine, data, losses, nn
from ensjax.experiment import ConfigError
from ensjax.experiment.exit_codes import one_line
from ensjax.graphs import Forward
from ensjax.mapping import map_members
from ensjax.provenance import Provenance, check_fitting_rows
from ensjax.train import GroupJob, TrainingJob

SEED_STRIDE = 2**16
PARTS = ("validation", "test", "ood")
SOURCE = "sklearn.datasets.load_digits"


class Logits(NamedTuple):
    """Of all pairs of one size.

    Attributes:
        validation, test, ood: `[seed, 2, row, class]`.
        validation_labels, test_labels: `[seed, row]`.
        macs: of one member for one row.
        provenance: of the validation and of the test rows, a pair for each seed; ():
            unknown.
    """

    validation: np.ndarray
    test: np.ndarray
    ood: np.ndarray
    validation_labels: np.ndarray
    test_labels: np.ndarray
    macs: float
    provenance: tuple[tuple[Provenance, Provenance], ...] = ()


class Split(NamedTuple):
    """Row numbers of one seed."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


@functools.lru_cache(maxsize=1)
def digits():
    """Images `[1797, 8, 8, 1]` in [0, 1] and labels, in the order of scikit-learn."""
    source = data.find_dataset("digits")(test_size=360, seed=0)
    ids = np.concatenate([source.train_ids, source.test_ids])
    order = np.argsort(ids)
    images = np.concatenate([source.x_train, source.x_test])[order]
    return images, np.concatenate([source.y_train, source.y_test])[order]


def split_rows(config, seed: int) -> Split:
    """A stratified split of its own for every seed."""
    _, labels = digits()
    number = 1_000 * config.seed + seed
    rest, test = data.train_test_split(
        len(labels), test_size=config.data.num_test, seed=number, labels=labels
    )
    train, validation = data.train_test_split(
        len(rest),
        test_size=config.data.num_validation,
        seed=number,
        labels=labels[rest],
    )
    return Split(rest[train], rest[validation], test)


def training_weights(splits: list[Split]) -> np.ndarray:
    """What each row counts for in the training of each seed, `[seed, row]`."""
    weights = np.zeros((len(splits), len(digits()[1])), np.float32)
    for seed, rows in enumerate(splits):
        weights[seed, rows.train] = 1.0
    return weights


def provenances(config, splits: list[Split]) -> tuple:
    """Of the validation and the test rows of `make_inputs`, a pair for each seed."""
    copies = config.data.num_copies
    return tuple(
        (
            Provenance.of(
                SOURCE,
                np.tile(rows.validation, copies),
                trained_on=np.flatnonzero(weights),
                test_rows=rows.test,
            ),
            Provenance.of(
                SOURCE,
                np.tile(rows.test, copies),
                part="test",
                trained_on=np.flatnonzero(weights),
            ),
        )
        for rows, weights in zip(splits, training_weights(splits), strict=True)
    )


def check_leakage(provenance) -> None:
    """Raises `LeakageError` if windows would be fitted on training or test rows.

    Args:
        provenance: what `provenances` gives.
    """
    for held_out, test in provenance:
        check_fitting_rows("the cascade's windows", held_out).check_test(test)


def make_inputs(config, splits: list[Split]) -> tuple[dict, dict]:
    """Noisy images `{part: [seed, row, 8, 8, 1]}` and labels `{part: [seed, row]}`.

    Half of the OOD rows are the first test digits turned by 90 degrees, the others are
    blended half and half with a test digit of another class.
    """
    images, labels = digits()
    copies, sigma = config.data.num_copies, config.data.noise_sigma
    inputs, targets = {p: [] for p in PARTS}, {p: [] for p in PARTS[:2]}
    for seed, rows in enumerate(splits):
        rng = np.random.default_rng([config.seed, seed])
        clean = {"validation": images[rows.validation], "test": images[rows.test]}
        half = len(rows.test) // 2
        turned = np.rot90(images[rows.test[:half]], axes=(1, 2))
        partners = [
            rng.choice(rows.test[labels[rows.test] != labels[row]])
            for row in rows.test[half:]
        ]
        blended = (images[rows.test[half:]] + images[partners]) / 2
        clean["ood"] = np.concatenate([turned, blended])
        for part in PARTS:
            repeated = np.tile(clean[part], (copies, 1, 1, 1))
            noise = rng.normal(size=repeated.shape)
            inputs[part].append((repeated + sigma * noise).astype(np.float32))
        for part in PARTS[:2]:
            targets[part].append(np.tile(labels[getattr(rows, part)], copies))
    stack = lambda parts: {name: np.stack(x) for name, x in parts.items()}  # noqa: E731
    return stack(inputs), stack(targets)


def member_ids(config, size: int) -> list[int]:
    """Ids of the two members of every seed, those of one seed side by side."""
    return [
        SEED_STRIDE * seed + 2 * size + member
        for seed in range(config.num_seeds)
        for member in range(2)
    ]


def training_job(config, splits: list[Split]) -> GroupJob:
    """All members of all widths and seeds, as one call of `fit`."""
    weights = np.repeat(training_weights(splits), 2, axis=0)
    options = dict(
        loss=losses.cross_entropy,
        make_tx=make_optimizer(config),
        steps=config.total_steps,
        batch_size=config.batch_size,
        seed=config.seed,
        # Rows of its own training part alone, drawn with replacement.
        sampling="weighted",
        weights=weights,
        augment=data.augment_images(data.random_noise(config.data.noise_sigma)),
        steps_per_call=config.steps_per_call,
        log_every_steps=config.log_every_steps,
        save_every_steps=config.save_every_steps,
    )
    stacks = [
        TrainingJob(
            make_model=functools.partial(_build, width),
            member_ids=tuple(member_ids(config, size)),
            init_seed=config.seed,
            data=digits(),
            hyper=None,
            mesh_sizes=config.mesh.to_dict(),
            options=options,
            stage="members",
        )
        for size, width in enumerate(config.widths)
    ]
    return GroupJob(tuple(stacks))


def train(config, splits: list[Split], run_dir) -> ensjax.Group:
    """The group of `training_job`, trained in the run's folders."""
    job = training_job(config, splits)
    group, _ = job.fit(
        checkpoint_dir=run_dir.checkpoints / job.stage,
        logger=run_dir.logger("training"),
    )
    return group


def make_optimizer(config):
    """`make_tx()` of one member."""
    options = config.optimizer

    def make_tx():
        schedule = optax.cosine_decay_schedule(
            options.learning_rate, config.total_steps
        )
        return optax.adamw(schedule, weight_decay=options.weight_decay)

    return make_tx


def _build(width, rngs):
    return nn.MLP(in_features=64, hidden=(width, width), num_outputs=10, rngs=rngs)


def predict_size(config, ensemble, splits, inputs, targets) -> Logits:
    """Every member's logits of the rows of its own seed."""
    # One call, and so one program, for the rows of all parts.
    rows = np.concatenate([inputs[part] for part in PARTS], axis=1)
    macs = combine.flops_per_row(ensemble, rows[0]) / (2 * ensemble.num_members)
    forward = map_members(
        Forward(ensemble.graph), kinds=("member", "member"), mesh=ensemble.mesh
    )
    out = ensjax.mesh.fetch(forward(ensemble.state, np.repeat(rows, 2, axis=0)))
    out = out.reshape(config.num_seeds, 2, *out.shape[1:])
    ends = np.cumsum([inputs[part].shape[1] for part in PARTS])[:-1]
    return Logits(
        *np.split(out, ends, axis=2),
        validation_labels=targets["validation"],
        test_labels=targets["test"],
        macs=macs,
        provenance=provenances(config, splits),
    )


CACHED = {f"{p}{x}" for p in PARTS[:2] for x in ("", "_labels")} | {"ood"}


def read_cached(config, size: int) -> Logits:
    """Pairs of one npz file of the format in `configs/window_cascade.py`.

    Raises:
        ConfigError: if the file cannot be read or holds something else.
    """
    path, field = config.cached.files[size], f"config.cached.files[{size}]"
    if not path:
        raise ConfigError(
            f"{field} is the path of an npz file with cached logits of"
            f" {config.cached.names[size]}; the arrays are those that"
            " configs/window_cascade.py describes."
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in CACHED & set(file.files)}
    except (OSError, ValueError, EOFError) as error:
        raise ConfigError(f"{field}: {one_line(error)}") from error
    missing = sorted(CACHED - set(arrays))
    if missing:
        raise ConfigError(f"{field}={path!r} lacks {', '.join(missing)}.")
    logits = {}
    for part in PARTS:
        values = arrays[part]
        if values.ndim != 3 or len(values) < 2 or values.dtype.kind != "f":
            raise ConfigError(
                f"{field}={path!r}: {part} must be floats [member, row, class] of at"
                f" least two members; got {values.dtype} of shape {values.shape}."
            )
        pairs = len(values) // 2
        values = values[: 2 * pairs].astype(np.float32)
        logits[part] = values.reshape(pairs, 2, *values.shape[1:])
    labels = {}
    for part in PARTS[:2]:
        values = arrays[f"{part}_labels"]
        if values.dtype.kind not in "iu" or values.shape != logits[part].shape[2:3]:
            raise ConfigError(
                f"{field}={path!r}: {part}_labels must be integers [row] of as many"
                f" rows as {part}; got {values.dtype} of shape {values.shape}."
            )
        pairs = len(logits[part])
        labels[f"{part}_labels"] = np.tile(values.astype(np.int32), (pairs, 1))
    if len({(x.shape[0], x.shape[3]) for x in logits.values()}) > 1:
        raise ConfigError(
            f"{field}={path!r}: the arrays disagree on members or classes:"
            f" {', '.join(f'{k} {v.shape}' for k, v in logits.items())}."
        )
    return Logits(**logits, **labels, macs=float(config.cached.macs[size]))


def run_both_ways(config, cascade, ensemble, test, inputs):
    """One pair of test rows by fixed capacity, as one batch, and by compaction.

    Args:
        config: of the run.
        cascade: of the pair.
        ensemble: whose first two members are the pair; None: members look their logits
            up.
        test: their logits `[2, row, class]`.
        inputs: the images of the rows, `[row, 8, 8, 1]`; None without an ensemble.

    Returns:
        Two `CascadeOutput`.
    """
    run = functools.partial(combine.run_with_capacity, share=2 * config.window_width)
    if ensemble is not None:
        models = cascade.split_members(ensemble.select([0, 1]))
        capacity = jax.jit(run)(cascade, models, inputs)
        return capacity, combine.run_compacted(cascade, models, inputs)
    rows = np.arange(test.shape[1])
    models = [functools.partial(jnp.take, test[m : m + 1], axis=1) for m in (0, 1)]
    capacity = jax.jit(lambda cascade, rows: run(cascade, models, rows))(cascade, rows)
    return capacity, combine.run_compacted(cascade, models, rows)
