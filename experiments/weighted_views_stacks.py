"""The neural members of `weighted_views.py`, each data set's as one stack.

A stack has the axes [seed, view, member], or [seed, fold, view, member], one behind the
other; every member draws its batches from its own training rows.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import numpy as np
import optax
from flax import nnx

import ensjax
from ensjax import combine, data
from ensjax.experiment.fields import load_beside
from ensjax.train import TrainingJob

models = load_beside(__file__, "weighted_views_models")


# Member m of the place p (fold and view) of seed s has the id 65536 s + 256 p + m.
SEED_STRIDE, PLACE_STRIDE = 2**16, 2**8
_NO_REPLAY = (
    "Half of the members of this run's networks start from autoencoders that it has"
    " trained before; config and seed alone do not make them again."
)
_SECOND = 2**15  # added to a member's id: the same without encoders


class Stack(NamedTuple):
    """Members over one array of data.

    `x [example, column]`, `labels [example]`, `inputs` and `train [member, example]`
    of each member, `ids [member]`, the stack's `shape`, and the number of columns at
    the end of the inputs that autoencoders leave out.
    """

    x: np.ndarray
    labels: np.ndarray
    inputs: "models.Inputs"
    train: np.ndarray
    ids: tuple[int, ...]
    shape: tuple[int, ...]
    num_extra: int = 0

    @property
    def data(self):
        """What `fit` reads: `(x, labels, row)`."""
        rows = np.arange(len(self.x), dtype=np.int32)
        if isinstance(self.x, jax.ShapeDtypeStruct):
            return self.x, self.labels, jax.ShapeDtypeStruct(rows.shape, rows.dtype)
        return self.x, self.labels.astype(np.int32), rows

    def give_inputs(self, ensemble: ensjax.Ensemble) -> ensjax.Ensemble:
        """Members of these ids, told which columns they read."""
        places = {id_: place for place, id_ in enumerate(self.ids)}
        rows = np.array([places[int(id_)] for id_ in ensemble.member_ids])
        own = models.Inputs(*(value[rows] for value in self.inputs))
        return models.with_inputs(ensemble, own)


def make_ids(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Ids of members `[seed, place, ..., member]`, places numbered through."""
    num_seeds, *places, members = shape
    return tuple(
        SEED_STRIDE * s + PLACE_STRIDE * p + m
        for s in range(num_seeds)
        for p in range(int(np.prod(places)))
        for m in range(members)
    )


def view_stack(views, splits, members_per_view: int) -> Stack:
    """Members of every view, for every split, with the union of all views as the last.

    Args:
        views: `Views`.
        splits: one for each seed.
        members_per_view: members that differ by their initial weights and batches.
    """
    chosen = [*views.columns.values(), np.concatenate([*views.columns.values()])]
    fitted = data.fit_masked_stages(
        (data.Standardize(),), views.x, views.labels, splits
    ).fitted[0]
    members = [
        (split, columns)
        for split in range(len(splits))
        for columns in chosen
        for _ in range(members_per_view)
    ]
    validation = np.stack([splits[s].mask("validation") for s, _ in members])
    inputs = stack_inputs(
        [columns for _, columns in members],
        [np.asarray(fitted["mean"])[s] for s, _ in members],
        [np.asarray(fitted["sd"])[s] for s, _ in members],
        validation,
    )
    train = np.stack([splits[s].mask("train") for s, _ in members])
    shape = (len(splits), len(chosen), members_per_view)
    return Stack(views.x, views.labels, inputs, train, make_ids(shape), shape)


def stack_inputs(columns, mean, sd, validation, extra=None):
    """`Inputs` of members whose columns are padded to the widest; `extra` come last.

    Args:
        columns: of each member, lists of different length.
        mean, sd: of each member, of all columns of the data.
        validation: `[member, example]`.
        extra: columns that every member has as well.
    """
    width = max(map(len, columns))
    extra = np.zeros(0, int) if extra is None else extra
    padded = np.zeros((len(columns), width + len(extra)), np.int32)
    present = np.zeros(padded.shape, np.float32)
    for member, own in enumerate(columns):
        padded[member, : len(own)] = own
        present[member, : len(own)] = 1
    padded[:, width:], present[:, width:] = extra, 1
    return models.Inputs(
        padded,
        np.stack([m[p] for m, p in zip(mean, padded)]).astype(np.float32),
        np.stack([s[p] for s, p in zip(sd, padded)]).astype(np.float32),
        present,
        validation.astype(np.float32),
    )


def train_views(config, stack: Stack, name: str, run_dir) -> np.ndarray:
    """Trains the members of a view stack; logits `[seed, view, example, class]`.

    The members of a view are averaged in probability.
    """
    settings = config.view_model
    classes = int(stack.labels.max()) + 1
    make_model = functools.partial(
        models.ViewMLP,
        width=stack.inputs.columns.shape[1],
        num_examples=len(stack.x),
        hidden=tuple(settings.hidden),
        dropout=(0.0,) * len(settings.hidden),
        num_outputs=classes,
        activation=nnx.relu,
    )
    rate, decay = settings.learning_rate, settings.weight_decay
    job = make_job(
        config,
        stack,
        make_model,
        stage=name,
        loss=models.classify,
        make_tx=lambda: optax.adamw(rate, weight_decay=decay),
        steps=settings.total_steps,
        batch_size=settings.batch_size,
        log_every_steps=every(settings.total_steps, 4),
    )
    ensemble, _ = fit(job, job.ensemble(), run_dir)
    return pool_members(predict(ensemble, stack.x), stack.shape)


_mean_probs = jax.jit(jax.vmap(combine.mean_probs))


def pool_members(logits, shape):
    """`[..., view, example, class]`: the mean probability of each view's members."""
    logits = logits.reshape(-1, shape[-1], *logits.shape[1:])
    pooled = np.asarray(_mean_probs(logits))
    return pooled.reshape(*shape[:-1], *logits.shape[2:])


def every(steps: int, number: int) -> int:
    """An interval that divides `steps`, for about so many reports."""
    wanted = max(1, steps // number)
    return next(size for size in range(wanted, 0, -1) if steps % size == 0)


def make_job(config, stack: Stack, make_model, *, stage: str, **options) -> TrainingJob:
    """Training of the members of a stack on their own training rows."""
    common = dict(
        seed=config.seed,
        sampling="weighted",
        weights=stack.train.astype(np.float32),
        steps_per_call=options["log_every_steps"],
    )
    return TrainingJob(
        make_model=lambda rngs: make_model(rngs=rngs),
        member_ids=stack.ids,
        init_seed=config.seed,
        data=stack.data,
        hyper=None,
        mesh_sizes=config.mesh.to_dict(),
        options=common | options,
        start=stack.give_inputs,
        stage=stage,
    )


def fit(job: TrainingJob, ensemble, run_dir):
    """Trains the members of a job, in the run's folders."""
    per_call = job.options["log_every_steps"]
    saves = max(1, job.options["steps"] // per_call // 4) * per_call
    return ensjax.fit(
        ensemble,
        job.data,
        save_every_steps=saves,
        checkpoint_dir=run_dir.checkpoints / job.stage,
        logger=run_dir.logger(job.stage),
        **job.options,
    )


def predict(ensemble, x) -> np.ndarray:
    """Every member's outputs, `[member, example, ...]`."""
    return ensjax.mesh.fetch(ensjax.predict(ensemble, x, batch_size=500))


# Connectomes


def network_stack(config, problems, splits) -> Stack:
    """Members of every seed, fold and view; the columns are chosen inside the folds.

    Args:
        problems: `Views` of each seed.
        splits: of each seed, a list of its folds.
    """
    settings, chosen, mean, sd = config.connectomes, [], [], []
    train, validation = [], []
    count = config.network.members_per_view
    rows = sum(len(problem.labels) for problem in problems)
    start = 0
    for problem, folds in zip(problems, splits):
        selected = select_columns(settings, problem, folds)
        scale = data.fit_masked_stages(
            (data.Standardize(),), problem.x, problem.labels, folds
        ).fitted[0]
        inside = slice(start, start + len(problem.labels))
        start = inside.stop
        for number, fold in enumerate(folds):
            for name in problem.columns:
                for _ in range(count):
                    chosen.append(selected[name][number])
                    mean.append(np.asarray(scale["mean"])[number])
                    sd.append(np.asarray(scale["sd"])[number])
                    for masks, part in ((train, "train"), (validation, "validation")):
                        mask = np.zeros(rows, bool)
                        mask[inside] = fold.mask(part)
                        masks.append(mask)
    inputs = stack_inputs(chosen, mean, sd, np.stack(validation), problems[0].extra)
    shape = (len(problems), len(splits[0]), len(problems[0].columns), count)
    x = np.concatenate([problem.x for problem in problems])
    labels = np.concatenate([problem.labels for problem in problems])
    extra = len(problems[0].extra)
    return Stack(x, labels, inputs, np.stack(train), make_ids(shape), shape, extra)


def network_shapes(config) -> Stack:
    """The same without data, in the numbers of the config: what a plan needs."""
    settings, network = config.connectomes, config.network
    shape = (
        network.num_seeds,
        settings.num_folds,
        len(settings.names),
        network.members_per_view,
    )
    rows = network.num_seeds * settings.num_subjects
    x = jax.ShapeDtypeStruct((rows, sum(settings.widths) + 2), np.float32)
    labels = jax.ShapeDtypeStruct((rows,), np.int32)
    # Of all training rows: a plan does not look at which these are.
    train = np.ones((int(np.prod(shape)), rows), np.float32)
    return Stack(x, labels, None, train, make_ids(shape), shape, 2)


def twice(stack: Stack) -> Stack:
    """Every member again, with other initial weights and batches."""

    def double(value):
        return np.concatenate([value, value])

    inputs = stack.inputs
    return stack._replace(
        inputs=inputs and models.Inputs(*map(double, inputs)),
        train=double(stack.train),
        ids=(*stack.ids, *(_SECOND + id_ for id_ in stack.ids)),
    )


def select_columns(settings, problem, folds) -> dict[str, np.ndarray]:
    """The columns of the largest F by view, `[fold, selected]`, fitted in the folds."""
    selected = {}
    for name, number in zip(problem.columns, settings.num_selected):
        columns = problem.columns[name]
        stage = data.SelectByF(min(number, len(columns)), num_classes=2)
        fitted = data.fit_masked_stages(
            (stage,), problem.x[:, columns], problem.labels, folds
        ).fitted[0]
        selected[name] = columns[np.asarray(fitted["columns"])]
    return selected


def train_autoencoder(config, stack: Stack, number: int, below, run_dir):
    """Trains the `number`-th autoencoder of every member, behind those `below`.

    Returns:
        Kernel and bias of the encoders, `[member, ...]`; and of the training rows, the
        first and the last reported `rmse`, `loss` and `mean_code`, `[report, member]`.
    """
    settings = config.autoencoders
    width = stack.inputs.columns.shape[1] - stack.num_extra
    make_model = functools.partial(
        models.Autoencoder,
        width=width,
        num_examples=len(stack.x),
        below=tuple(config.network.hidden[:number]),
        hidden=config.network.hidden[number],
    )
    loss = models.ReconstructionLoss(
        settings.corruption,
        settings.amount[number],
        settings.sparsity_weight[number],
        settings.sparsity_target,
    )
    steps = settings.total_steps[number]
    job = make_job(
        config,
        stack._replace(inputs=stack.inputs.first(width)),
        make_model,
        stage=f"encoder_{number + 1}",
        loss=loss,
        make_tx=models.make_optimizer(settings, settings.learning_rate[number]),
        steps=steps,
        batch_size=settings.batch_size[number],
        log_every_steps=every(steps, 10),
    )
    frozen = {}
    for layer, encoder in enumerate(below):
        frozen |= {f"below.{layer}.{k}": value for k, value in encoder.items()}
    ensemble, log = fit(job, models.replace_leaves(job.ensemble(), frozen), run_dir)
    metrics = {name: log.metrics[name] for name in ("loss", "rmse", "mean_code")}
    return models.encoder_weights(ensemble), metrics


def network_job(config, stack: Stack) -> TrainingJob:
    """Training of classifiers, twice for each member of the stack (see `twice`)."""
    settings = config.network
    stack = twice(stack)
    if stack.inputs is None:  # shapes: the widest view, and what comes behind it
        found = config.connectomes
        width = max(map(min, zip(found.num_selected, found.widths))) + stack.num_extra
    else:
        width = stack.inputs.columns.shape[1]
    make_model = functools.partial(
        models.ViewMLP,
        width=width,
        num_examples=len(stack.train[0]),
        hidden=tuple(settings.hidden),
        dropout=tuple(settings.dropout),
        num_outputs=2,
        activation=nnx.tanh,
    )
    job = make_job(
        config,
        stack,
        make_model,
        stage="network",
        loss=models.classify,
        make_tx=models.make_optimizer(settings, settings.learning_rate),
        steps=settings.total_steps,
        batch_size=settings.batch_size,
        evaluation=stack.data,
        evaluation_loss=models.validate,
        evaluate_every_steps=settings.evaluate_every_steps,
        early_stopping=ensjax.EarlyStopping(patience=None),
        log_every_steps=settings.evaluate_every_steps,
    )
    return dataclasses.replace(job, why_no_replay=_NO_REPLAY)


def train_network(config, stack: Stack, encoders, run_dir):
    """Trains classifiers that start from the encoders, and as many that do not.

    Returns:
        Logits `[start, seed, fold, view, example, class]`, from the encoders first; and
        the largest difference between an encoder and the layer that it started, before
        the first step.
    """
    job = network_job(config, stack)
    width = stack.inputs.columns.shape[1] - stack.num_extra
    ensemble = models.start_from(job.ensemble(), encoders, width)
    difference = models.arrival(ensemble, encoders)
    ensemble, _ = fit(job, ensemble, run_dir)
    return pool_members(predict(ensemble, stack.x), (2, *stack.shape)), difference
