"""Merging at full size: a CLIP ViT-B/32 image tower, eight fine-tuned vision tasks.

Reads `config.folder`: `zero_shot/`, one member as `Ensemble.save` writes it; and for
every task `<task>/head.npy` (`[feature, class]`, the class's normalised text features
times the logit scale, which stays as it is) and, for "train", "validation" and "test",
`<task>/<part>_images.npy` (uint8, `[row, height, width, 3]`) and
`<task>/<part>_labels.npy`. The tasks are members of one stack, each on batches of its
own; a merged tower is scored with every task's head.
"""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import ensjax
from ensjax import data, nn
from ensjax import weight_space as ws
from ensjax.experiment import ConfigError, claim
from ensjax.experiment.exit_codes import one_line
from ensjax.experiment.fields import check_multiples, check_numbers, choose, load_beside
from ensjax.experiment.stages import run_stages
from ensjax.plot.style import GREY, PALETTE, finish, new_figure
from ensjax.train import TrainingJob
from ensjax.train.losses import weighted_mean

full = load_beside(__file__, "wise_ft_full")
methods = load_beside(__file__, "merge_domains_methods")
verdicts = load_beside(__file__, "merge_domains_claims")

PARTS = ("train", "validation", "test")
NO_CLASS = -1e9  # logit of what is no class of the task


class FrozenHead(nnx.Variable):
    """Weights that are not trained and not merged."""


class ClipTower(nnx.Module):
    """Normalised features of a ViT times a frozen head, of uint8 images."""

    def __init__(self, config, *, rngs: nnx.Rngs):
        model = config.model
        self.image = nn.ViT(
            image_shape=(model.image_size, model.image_size, 3),
            patch_size=(model.patch_size, model.patch_size),
            width=model.width,
            depth=model.depth,
            num_heads=model.num_heads,
            num_outputs=model.num_features,
            dtype=full.DTYPES[model.dtype],
            remat=model.remat,
            rngs=rngs,
        )
        # The last row is added: far below 0 where there is no class.
        shape = (model.num_features + 1, model.num_classes)
        self.head = FrozenHead(jnp.zeros(shape))

    def __call__(self, x):
        mean, sd = (jnp.asarray(v)[None, None, None] for v in (full.MEAN, full.SD))
        features = self.image((x.astype(jnp.float32) / 255 - mean) / sd)
        norm = jnp.linalg.norm(features, axis=-1, keepdims=True)
        features = features / jnp.maximum(norm, 1e-12)
        head = self.head[...]
        return features @ head[:-1] + head[-1:]


@dataclasses.dataclass(frozen=True)
class TaskLoss:
    """Cross-entropy of a member on the images of its own task, in nats."""

    takes_hyper = True

    def __call__(self, model, batch, key, weight=None, *, hyper):
        del key
        images = jnp.take(batch["image"], hyper["task"], axis=1)
        labels = jnp.take(batch["label"], hyper["task"], axis=1)
        log_probs = jax.nn.log_softmax(model(images))
        own = jnp.take_along_axis(log_probs, labels[:, None], axis=1)[:, 0]
        return -weighted_mean(own, weight)


class TaskRows:
    """A source whose example i holds a row of every task; small sets come again."""

    def __init__(self, sets):
        self.sets = sets

    def __len__(self):
        return max(len(labels) for _, labels in self.sets)

    def __getitem__(self, row):
        rows = [(x[row % len(y)], y[row % len(y)]) for x, y in self.sets]
        images, labels = zip(*rows, strict=True)
        return {"image": np.stack(images), "label": np.asarray(labels, np.int32)}


def validate(config):
    """Raises `ConfigError` for what would fail later, but for files (see `run`)."""
    check_numbers(config, ("total_steps", "steps_per_call", "batch_size"), at_least=1)
    check_numbers(config, ("warmup_steps", "weight_decay"), at_least=0)
    check_numbers(config, ("learning_rate", "clip_norm"), above=0)
    check_numbers(config, ("predict_batch_size", "save_every_steps"), at_least=1)
    check_numbers(config, ("statistic_rows", "fisher_draws"), at_least=1)
    choose("model.dtype", config.model.dtype, full.DTYPES)
    methods.check_grids(config)
    if len(config.tasks) < 2 or len(set(config.tasks)) < len(config.tasks):
        raise ConfigError(
            f"config.tasks must be at least two different names; got {config.tasks}."
        )
    check_multiples(config, ("total_steps", "save_every_steps"))


def training_job(config):
    """What the run trains; of its stream of images the shapes of one batch."""
    rows, tasks = config.batch_size, len(config.tasks)
    size = config.model.image_size
    images = jax.ShapeDtypeStruct((rows, tasks, size, size, 3), jnp.uint8)
    labels = jax.ShapeDtypeStruct((rows, tasks), jnp.int32)
    return TrainingJob(
        make_model=functools.partial(_make_model, config),
        member_ids=tuple(range(tasks)),
        init_seed=config.seed,
        data={"image": images, "label": labels},
        hyper=_hyper(config),
        mesh_sizes=config.mesh.to_dict(),
        options=_options(config),
        stage="tune",
        is_stream=True,
    )


def _make_model(config, rngs):
    return ClipTower(config, rngs=rngs)


def _hyper(config):
    tasks = np.arange(len(config.tasks), dtype=np.int32)
    rates = np.full(len(tasks), config.learning_rate, np.float32)
    return {"learning_rate": rates, "task": tasks}


def _options(config):
    return dict(
        loss=TaskLoss(),
        make_tx=full.MakeOptimizer(
            config.warmup_steps,
            config.total_steps,
            config.weight_decay,
            config.clip_norm,
        ),
        steps=config.total_steps,
        batch_size=config.batch_size,
        seed=config.seed,
        steps_per_call=config.steps_per_call,
        log_every_steps=config.steps_per_call,
        block=None if config.block == "all" else config.block,
    )


def read_set(config, task, part):
    """Images (mapped, not read) and labels of one part of a task.

    Raises:
        ConfigError: if a file is missing or does not fit; says what to put there.
    """
    folder = Path(config.folder) / task
    try:
        images = np.load(folder / f"{part}_images.npy", mmap_mode="r")
        labels = np.load(folder / f"{part}_labels.npy").astype(np.int32)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"config.folder must hold {task}/{part}_images.npy (uint8, [row, height,"
            f" width, 3]) and {task}/{part}_labels.npy: {one_line(error)}."
        ) from error
    size = config.model.image_size
    expected = (len(labels), size, size, 3)
    if images.shape != expected or images.dtype != np.uint8 or not len(labels):
        raise ConfigError(
            f"{folder}/{part}_images.npy must be uint8 {expected}; got {images.dtype}"
            f" {images.shape}."
        )
    return images, labels


def read_head(config, task, labels):
    """A task's head as the tower has it, filled up to `config.model.num_classes`.

    Raises:
        ConfigError: if it is missing or does not fit, or a label is no class of it.
    """
    path = Path(config.folder) / task / "head.npy"
    try:
        head = np.load(path).astype(np.float32)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"config.folder must hold {task}/head.npy ([feature, class]):"
            f" {one_line(error)}."
        ) from error
    features, limit = config.model.num_features, config.model.num_classes
    if head.ndim != 2 or head.shape[0] != features or not 1 < head.shape[1] <= limit:
        raise ConfigError(
            f"{path} must be [{features}, class] with 2 to {limit} classes; got"
            f" {list(head.shape)}."
        )
    count = head.shape[1]
    if labels.min() < 0 or labels.max() >= count:
        raise ConfigError(f"{path.parent}: labels must lie in 0 to {count - 1}.")
    offset = np.where(np.arange(limit) < count, 0.0, NO_CLASS).astype(np.float32)
    return np.concatenate([np.pad(head, ((0, 0), (0, limit - count))), offset[None]])


def load_towers(config, heads):
    """The pre-trained tower once for every task, with the task's head.

    Raises:
        ConfigError: if it is not there, or is not of the config's model.
    """
    mesh = ensjax.make_mesh(**config.mesh.to_dict())
    try:
        found = ensjax.Ensemble.load(
            Path(config.folder) / "zero_shot",
            make_model=functools.partial(_make_model, config),
            mesh=mesh,
        )
    except (OSError, ValueError) as error:
        raise ConfigError(
            "config.folder must hold zero_shot/, one member of config.model as"
            f" Ensemble.save writes it: {one_line(error)}."
        ) from error
    tasks = len(config.tasks)
    towers = found.select([0] * tasks).with_ids(range(tasks))
    return _with_heads(towers, heads)


def _with_heads(ensemble, heads):
    """The members with heads `[member, feature + 1, class]` of their own."""
    rest = ensemble.state["rest"]
    assert len(jax.tree.leaves(rest)) == 1, jax.tree.structure(rest)
    rest = jax.tree.map(lambda _: jnp.asarray(heads), rest)
    state = {**ensemble.state, "rest": rest}
    return dataclasses.replace(ensemble, state=state).on_mesh(ensemble.mesh)


def run(config, run_dir):
    """Fine-tunes all tasks, merges by every method, reports; resumes by stages."""
    if not config.folder:
        raise ConfigError(
            "config.folder must name a folder with zero_shot/ (one member, as"
            f" Ensemble.save writes it) and {', '.join(config.tasks)}/, each with"
            " head.npy and <part>_images.npy and <part>_labels.npy of"
            f" {', '.join(PARTS)}. They are not downloaded here."
        )
    sets = {
        part: [read_set(config, task, part) for task in config.tasks] for part in PARTS
    }
    labels = [
        np.concatenate([sets[part][i][1] for part in PARTS])
        for i in range(len(config.tasks))
    ]
    heads = np.stack(
        [read_head(config, task, y) for task, y in zip(config.tasks, labels)]
    )
    zero_shot = load_towers(config, heads)

    def merge(done):
        del done
        batches = data.stream(
            TaskRows(sets["train"]), batch_size=config.batch_size, seed=config.seed
        )
        tuned, log = ensjax.fit(
            zero_shot,
            batches,
            hyper=_hyper(config),
            checkpoint_dir=run_dir.checkpoints / "tune",
            save_every_steps=config.save_every_steps,
            logger=run_dir.logger("tune"),
            **_options(config),
        )
        return measure(config, zero_shot, tuned, heads, sets) | {
            "frozen_steps": np.asarray(log.frozen_steps)
        }

    report(config, run_dir, run_stages(run_dir, config, {"merge": merge})["merge"])


def measure(config, zero_shot, tuned, heads, sets) -> dict[str, np.ndarray]:
    """Accuracies of towers before, of each task's own, and of all candidates.

    Returns:
        "zero_shot" and "own" `[task, part]`; by method `[candidate, part, task]`, the
        parts being validation and test.
    """
    parts = PARTS[1:]
    found = {}
    for name, towers in (("zero_shot", zero_shot), ("own", tuned)):
        found[name] = np.stack(
            [
                [
                    accuracy(config, towers.select([i]), *sets[part][i])[0]
                    for part in parts
                ]
                for i in range(len(config.tasks))
            ]
        )
    rows = [x[: config.statistic_rows] for x, _ in sets["train"]]
    count = min(map(len, rows))
    statistics = _statistics(config, tuned, np.stack([x[:count] for x in rows]))
    base = zero_shot.select([0])
    for name in config.grids:
        method, knobs = methods.METHODS[name], methods.candidates(config, name)
        values = []
        for row in range(max([len(v) for v in knobs.values()], default=1)):
            chosen = {knob: v[row] for knob, v in knobs.items()}
            key = jax.random.key(config.seed, impl="threefry2x32")
            own = statistics.get(method.statistics)
            merged = _merged(name, tuned, base, own, key, chosen)
            values.append(_of_tasks(config, merged, heads, sets, parts))
        found[name] = np.stack(values)
    return found


def _merged(name, stacked, base, statistics, key, chosen):
    kind = methods.METHODS[name].statistics
    fisher, grams = (statistics if kind == k else None for k in ("fisher", "grams"))
    own = methods.Own(stacked, base, fisher, grams, key)
    return methods.METHODS[name].merge(own, **chosen)


def _statistics(config, tuned, rows):
    kinds = {methods.METHODS[name].statistics for name in config.grids}
    found = {}
    if "fisher" in kinds:
        found["fisher"] = ws.sampled_fisher_information(
            tuned,
            rows,
            seed=config.seed,
            num_draws=config.fisher_draws,
            own_rows=True,
            rows_at_once=1,
            block=1,
        )
    if "grams" in kinds:
        found["grams"] = ws.input_grams(
            tuned, rows, own_rows=True, rows_at_once=16, block=1
        )
    return found


def _of_tasks(config, one, heads, sets, parts):
    """Accuracies of one merged tower with every task's head, `[part, task]`."""
    values = np.zeros((len(parts), len(config.tasks)))
    for i in range(len(config.tasks)):
        own = _with_heads(one, heads[[i]])
        for j, part in enumerate(parts):
            (values[j, i],) = accuracy(config, own, *sets[part][i])
    return values


def accuracy(config, ensemble, images, labels) -> np.ndarray:
    """Of every member, `[member]`, a batch at a time."""
    right = np.zeros(ensemble.num_members)
    for first in range(0, len(labels), config.predict_batch_size):
        rows = slice(first, first + config.predict_batch_size)
        outputs = ensjax.predict(
            ensemble, np.asarray(images[rows]), batch_size=config.predict_batch_size
        )
        outputs = np.asarray(ensjax.mesh.fetch(outputs), np.float32)
        right += (outputs.argmax(axis=-1) == labels[rows][None]).sum(axis=1)
    return right / len(labels)


def report(config, run_dir, results):
    """Table, figure, claims and scalars of one run."""
    validation, test = 0, 1
    own, before = (100 * results[n][:, test] for n in ("own", "zero_shot"))
    tuned, knobs = {}, {}
    for name in config.grids:
        if name == "dare_alone":
            continue
        values = results[name]
        best = int(values[:, validation].mean(axis=-1).argmax())
        tuned[name] = 100 * values[best, test]
        found = methods.candidates(config, name)
        knobs[name] = ", ".join(f"{k} {v[best]:g}" for k, v in found.items())
    rows = [
        ("zero-shot", *before.tolist(), before.mean(), ""),
        ("each on its own task", *own.tolist(), own.mean(), ""),
    ]
    rows += [
        (verdicts.label(name), *values.tolist(), values.mean(), knobs[name])
        for name, values in tuned.items()
    ]
    run_dir.add_table(
        "accuracy",
        ("tower", *config.tasks, "mean", "knobs"),
        rows,
        "Test accuracy (%); knobs are chosen on validation rows.",
    )
    run_dir.add_figure("methods", _draw(rows), "Mean test accuracy over the tasks.")
    claims = [
        claim(
            f"weight-space-methods, {verdicts.label(first)}: mean accuracy over the"
            f" tasks minus that of {verdicts.label(second)} (points)",
            paper=paper,
            source=source,
            certainty=certainty,
            scale="full",
            expected="> 0",
            values_by_seed=[float(tuned[first].mean() - tuned[second].mean())],
            side=">",
            bound=0.0,
        )
        for paper, first, second, source, certainty in verdicts.ABOVE
        if first in tuned and second in tuned
    ]
    scalars = {"zero_shot": before.mean(), "own": own.mean()}
    scalars |= {name: values.mean() for name, values in tuned.items()}
    scalars["num_members_not_finite"] = (results["frozen_steps"] >= 0).sum()
    run_dir.finish(
        title=config.title,
        summary=(
            "One run, so that no claim is decided. Mean test accuracy over the tasks: "
            + "; ".join(f"{row[0]} {row[-2]:.1f} %" for row in rows)
            + "."
        ),
        scalars={name: float(x) for name, x in scalars.items()},
        claims=claims,
    )


def _draw(rows):
    fig = new_figure(1.4 + 0.32 * len(rows), width=7.2)
    ax = fig.subplots()
    for place, row in enumerate(rows):
        ax.barh(place, row[-2], 0.66, color=GREY if place < 2 else PALETTE[0])
    ax.set_yticks(range(len(rows)), [row[0] for row in rows])
    finish(ax, x="test accuracy (%)", y="", starts_at_zero=False)
    return fig
