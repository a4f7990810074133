"""WiSE-FT and BANG at full size: a CLIP-style image tower fine-tuned on ImageNet.

Reads `config.folder`: `zero_shot/`, either a checkpoint of CLIP (`config.json` and
`model.safetensors`, as `transformers` saves a `CLIPModel`) beside `prompts.npy` (ids of
tokens, int, `[class, prompt, token]`), or one member as `Ensemble.save` writes it, with
the zero-shot head; and for the training set and each test set `<name>/images.npy`
(uint8, `[row, height, width, 3]`), `<name>/labels.npy` and, where only some classes
occur, `<name>/classes.npy` with their numbers. Every recipe is a member of one
stack, all on the same stream of batches; mixtures of one recipe are one sweep for each
test set.
"""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import ensjax
from ensjax import data, interop, nn, scores, weight_space
from ensjax.experiment import ConfigError, claim
from ensjax.experiment.exit_codes import one_line
from ensjax.experiment.fields import check_multiples, check_numbers, choose, load_beside
from ensjax.experiment.stages import run_stages
from ensjax.graphs import NnxGraph
from ensjax.plot.style import GREY, MARKERS, PALETTE, finish, new_figure
from ensjax.train import SoftLabels, TrainingJob

training = load_beside(__file__, "wise_ft_training")
wise = load_beside(__file__, "wise_ft_claims")

DTYPES = {"bfloat16": jnp.bfloat16, "float32": jnp.float32}
LOSS = SoftLabels()
# Of CLIP's images, by channel, pixels in [0, 1].
MEAN, SD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class ClipClassifier(nn.ClipClassifier):
    """CLIP's image tower and a linear head of its features, of uint8 images."""

    def __init__(self, config, *, rngs: nnx.Rngs):
        model = config.model
        image = nn.clip_image_tower(
            image_shape=(model.image_size, model.image_size, 3),
            patch_size=(model.patch_size, model.patch_size),
            width=model.width,
            depth=model.depth,
            num_heads=model.num_heads,
            num_features=model.num_features,
            dtype=DTYPES[model.dtype],
            remat=model.remat,
            rngs=rngs,
        )
        shape = (model.num_features, model.num_classes)
        super().__init__(image, nnx.initializers.lecun_normal()(rngs.params(), shape))

    def __call__(self, x):
        mean, sd = (jnp.asarray(v)[None, None, None] for v in (MEAN, SD))
        return super().__call__((x.astype(jnp.float32) / 255 - mean) / sd)


def to_floats(batch, hyper):
    """Images as floats in [0, 255], which can be mixed; the model scales them."""
    del hyper
    images, labels = batch
    return images.astype(jnp.float32), labels.astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class MakeOptimizer:
    """AdamW with warm-up, cosine decay to 0 and clipping, of one member."""

    warmup_steps: int
    total_steps: int
    weight_decay: float
    clip_norm: float

    def __call__(self, hyper):
        factor = optax.warmup_cosine_decay_schedule(
            0.0, 1.0, self.warmup_steps, self.total_steps
        )
        return optax.chain(
            optax.clip_by_global_norm(self.clip_norm),
            optax.adamw(
                lambda step: hyper["learning_rate"] * factor(step),
                weight_decay=self.weight_decay,
            ),
        )


@dataclasses.dataclass(frozen=True)
class AccuracyAmong:
    """Whether the label has the largest logit of some classes; (): of all."""

    classes: tuple[int, ...] = ()

    def __call__(self, logits, labels):
        if self.classes:
            counts = np.full(logits.shape[-1], -np.inf, np.float32)
            counts[list(self.classes)] = 0
            logits = logits + counts[None]
        return (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)


def validate(config):
    """Raises `ConfigError` for what would fail later, but for files (see `run`)."""
    check_numbers(config, ("total_steps", "steps_per_call", "batch_size"), at_least=1)
    check_numbers(config, ("warmup_steps", "weight_decay", "mixup"), at_least=0)
    check_numbers(config, ("learning_rate", "clip_norm"), above=0)
    check_numbers(config, ("label_smoothing", "alphas"), at_least=0, at_most=1)
    check_numbers(config, ("predict_batch_size", "save_every_steps"), at_least=1)
    choose("model.dtype", config.model.dtype, DTYPES)
    if not {0.0, 0.5, 1.0} <= set(config.alphas):
        raise ConfigError(f"config.alphas must hold 0, 0.5, 1; got {config.alphas}.")
    unknown = set(config.recipes) - set(training.RECIPES)
    if unknown or "plain" not in config.recipes:
        raise ConfigError(
            f"config.recipes are of {', '.join(training.RECIPES)}, plain among them;"
            f" got {config.recipes}."
        )
    check_multiples(config, ("total_steps", "save_every_steps"))


def training_job(config):
    """What the run trains; of its stream of images the shapes of one batch."""
    rows, size = config.batch_size, config.model.image_size
    images = jax.ShapeDtypeStruct((rows, size, size, 3), jnp.uint8)
    return TrainingJob(
        make_model=functools.partial(_make_model, config),
        member_ids=tuple(range(len(config.recipes))),
        init_seed=config.seed,
        data=(images, jax.ShapeDtypeStruct((rows,), jnp.int32)),
        hyper=_hyper(config),
        mesh_sizes=config.mesh.to_dict(),
        options=_options(config),
        stage="tune",
        is_stream=True,
    )


def _make_model(config, rngs):
    return ClipClassifier(config, rngs=rngs)


def _hyper(config):
    recipes = config.recipes
    return {
        "learning_rate": np.full(len(recipes), config.learning_rate, np.float32),
        "label_smoothing": np.float32(
            config.label_smoothing * np.isin(recipes, ("smoothing", "both"))
        ),
        "mixup": np.float32(config.mixup * np.isin(recipes, ("mixup", "both"))),
    }


def _options(config):
    return dict(
        loss=dataclasses.replace(LOSS, prepare=to_floats),
        make_tx=MakeOptimizer(
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


def read_set(config, name):
    """Images (mapped, not read), labels and classes of one set.

    Raises:
        ConfigError: if a file is missing or does not fit; says what to put there.
    """
    folder = Path(config.folder) / name
    try:
        images = np.load(folder / "images.npy", mmap_mode="r")
        labels = np.load(folder / "labels.npy").astype(np.int32)
        classes = folder / "classes.npy"
        classes = tuple(np.load(classes).tolist()) if classes.exists() else ()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"config.folder must hold {name}/images.npy (uint8, [row, height, width,"
            f" 3]) and {name}/labels.npy: {one_line(error)}."
        ) from error
    size, limit = config.model.image_size, config.model.num_classes
    expected = (len(labels), size, size, 3)
    if images.shape != expected or images.dtype != np.uint8 or not len(labels):
        raise ConfigError(
            f"{folder}/images.npy must be uint8 {expected}; got {images.dtype}"
            f" {images.shape}."
        )
    numbers = np.concatenate([labels, np.asarray(classes, int)])
    if numbers.min() < 0 or numbers.max() >= limit:
        raise ConfigError(f"{folder}: class numbers must lie in 0 to {limit - 1}.")
    return images, labels, classes


def load_zero_shot(config):
    """The pre-trained member with its zero-shot head.

    Raises:
        ConfigError: if it is not there, or is not of the config's model.
    """
    mesh = ensjax.make_mesh(**config.mesh.to_dict())
    folder = Path(config.folder) / "zero_shot"
    make_model = functools.partial(_make_model, config)
    try:
        if (folder / "config.json").exists():
            return _from_clip(config, folder, make_model, mesh)
        found = ensjax.Ensemble.load(folder, make_model=make_model, mesh=mesh)
    except (OSError, ValueError) as error:
        raise ConfigError(
            "config.folder must hold zero_shot/, one member of config.model as"
            " Ensemble.save writes it, or a checkpoint of CLIP, with prompts.npy beside"
            f" the folder: {one_line(error)}."
        ) from error
    return found.select([0])


def _from_clip(config, folder, make_model, mesh):
    """The classifier that a CLIP makes of `prompts.npy`."""
    tokens = np.load(folder.parent / "prompts.npy")
    model = config.model
    if len(tokens) != model.num_classes:
        raise ValueError(
            f"prompts.npy describes {len(tokens)} classes; config.model.num_classes is"
            f" {model.num_classes}"
        )
    options = {"dtype": DTYPES[model.dtype], "remat": model.remat}
    clip = interop.from_checkpoints([folder], kind="clip", options=options, mesh=mesh)
    found = interop.zero_shot_classifiers(clip, tokens)
    abstract = nnx.eval_shape(lambda: make_model(nnx.Rngs(params=0)))
    plain = nnx.eval_shape(_without_pixels, abstract)
    shapes = [leaf.shape for leaf in jax.tree.leaves(nnx.state(abstract))]
    if found.graph.graphdef != nnx.graphdef(plain) or shapes != [
        leaf.shape[1:] for leaf in jax.tree.leaves(found.state)
    ]:
        raise ValueError("the checkpoint's image tower is not that of config.model")
    return dataclasses.replace(found, graph=NnxGraph(nnx.graphdef(abstract)))


def _without_pixels(model):
    return nn.ClipClassifier(model.image, model.kernel[...])


def run(config, run_dir):
    """Fine-tunes by every recipe, sweeps the paths, reports; resumes by stages."""
    if not config.folder:
        raise ConfigError(
            "config.folder must name a folder with zero_shot/ (a checkpoint of CLIP, or"
            " one member as Ensemble.save writes it), train/ and"
            f" {', '.join(config.tests)}/, each with images.npy and labels.npy."
            " ImageNet and its shifted sets are not downloaded here."
        )
    zero_shot = load_zero_shot(config)
    images, labels, _ = read_set(config, "train")
    tests = {name: read_set(config, name) for name in config.tests}

    def tune(done):
        del done
        recipes = len(config.recipes)
        start = zero_shot.select([0] * recipes).with_ids(range(recipes))
        batches = data.stream(
            (images, labels), batch_size=config.batch_size, seed=config.seed
        )
        tuned, log = ensjax.fit(
            start,
            batches,
            hyper=_hyper(config),
            checkpoint_dir=run_dir.checkpoints / "tune",
            save_every_steps=config.save_every_steps,
            logger=run_dir.logger("tune"),
            **_options(config),
        )
        return measure(config, zero_shot.concatenate(tuned), tests) | {
            "frozen_steps": np.asarray(log.frozen_steps)
        }

    results = run_stages(run_dir, config, {"tune": tune})["tune"]
    report(config, run_dir, results)


def measure(config, stack, tests) -> dict[str, np.ndarray]:
    """Of every test set, recipe and alpha, scores of what the mixtures say.

    Returns:
        `accuracy` and, of the ends' outputs mixed instead of their weights, `outputs`,
        `[test, recipe, alpha]`; `table`, `[test, recipe, alpha, 2, 2, 2]`.
    """
    recipes = len(config.recipes)
    paths = [
        weight_space.alpha_path(
            list(config.alphas), num_members=1 + recipes, ends=(0, 1 + recipe)
        )
        for recipe in range(recipes)
    ]
    found = {"accuracy": [], "outputs": [], "table": []}
    for images, labels, classes in tests.values():
        swept = weight_space.sweep(
            stack,
            np.concatenate(paths),
            {"test": (np.asarray(images), labels)},
            scores={"accuracy": AccuracyAmong(classes)},
            output_space=("predictive",),
            per_row=True,
            batch_size=config.predict_batch_size,
        )
        right = swept.rows["weights"]["test"]["accuracy"]
        right = right.reshape(recipes, len(config.alphas), -1)
        ends = [np.broadcast_to(right[:, [i]], right.shape) for i in (0, -1)]
        of_outputs = swept.values["predictive"]["test"]["accuracy"]
        found["outputs"].append(of_outputs.reshape(recipes, len(config.alphas)))
        found["accuracy"].append(right.mean(axis=-1))
        found["table"].append(np.asarray(scores.agreement_table(*ends, right)))
    return {name: np.stack(values) for name, values in found.items()}


def report(config, run_dir, results):
    """Table, figure, claims of one run."""
    middle = list(config.alphas).index(0.5)
    accuracy, outputs = 100 * results["accuracy"], 100 * results["outputs"]
    # The first test set is in distribution.
    shifted, shifted_outputs = (x[1:].mean(axis=0) for x in (accuracy, outputs))
    rows = []
    for recipe, name in enumerate(config.recipes):
        for place in (0, -1, middle):
            values = accuracy[:, recipe, place].tolist()
            mean = shifted[recipe, place]
            rows.append((name, f"{config.alphas[place]:g}", *values, mean))
        values = outputs[:, recipe, middle].tolist()
        rows.append((name, "0.5, outputs", *values, shifted_outputs[recipe, middle]))
    run_dir.add_table(
        "accuracy",
        ("fine-tuning", "alpha", *config.tests, "mean of shifted"),
        rows,
        "Test accuracy (%).",
    )
    run_dir.add_figure(
        "alphas",
        _draw(config, (accuracy[0], outputs[0]), (shifted, shifted_outputs)),
        "Accuracy along alpha; dashed: the ends' probabilities mixed, not weights.",
    )
    parts = scores.gain_parts(results["table"][1:].mean(axis=0))
    plain = config.recipes.index("plain")
    fixed = np.asarray(parts.false_false_true - parts.true_true_false)[plain, middle]
    about = dict(
        paper=wise.PAPER,
        certainty="recalled",
        scale="full",
        side=">",
        bound=0.0,
        source="tables of CLIP ViT-B/16 on ImageNet and five shifted sets",
    )
    claims = [
        claim(
            "spurious-feature-diversification.a: False-False-True minus"
            " True-True-False at alpha .5, mean of shifted sets (points)",
            expected="> 0",
            values_by_seed=[100 * float(fixed)],
            **about,
        )
    ]
    claims += [
        claim(
            f"spurious-feature-diversification.e, {name}: mean accuracy on shifted sets"
            " at alpha .5 minus that of plain fine-tuning (points)",
            expected="0.9 to 1.9",
            values_by_seed=[float(shifted[recipe, middle] - shifted[plain, middle])],
            **about,
        )
        for recipe, name in enumerate(config.recipes)
        if name != "plain"
    ]
    scalars = {
        f"{name}_{test}_{alpha:g}": float(accuracy[i, recipe, place])
        for recipe, name in enumerate(config.recipes)
        for i, test in enumerate(config.tests)
        for place, alpha in enumerate(config.alphas)
    }
    scalars |= {
        f"{name}_{test}_outputs_{alpha:g}": float(outputs[i, recipe, place])
        for recipe, name in enumerate(config.recipes)
        for i, test in enumerate(config.tests)
        for place, alpha in enumerate(config.alphas)
    }
    run_dir.finish(
        title=config.title,
        summary=(
            "One run, so that no claim is decided. Mean accuracy on shifted sets at"
            " alpha 0, .5 and 1: "
            + "; ".join(
                f"{wise.NAMES[name]} "
                + ", ".join(f"{shifted[r, i]:.1f} %" for i in (0, middle, -1))
                for r, name in enumerate(config.recipes)
            )
            + "."
        ),
        scalars=scalars,
        claims=claims,
    )


def _draw(config, known, shifted):
    fig = new_figure(width=8.8)
    axes = fig.subplots(1, 2)
    for ax, (values, outputs), title in zip(
        axes, (known, shifted), (config.tests[0], "mean of shifted sets")
    ):
        for recipe, color, marker in zip(range(len(values)), PALETTE, MARKERS):
            label = wise.NAMES[config.recipes[recipe]]
            ax.plot(
                config.alphas, values[recipe], color=color, marker=marker, label=label
            )
            label = "outputs mixed" if not recipe else None
            ax.plot(
                config.alphas, outputs[recipe], color=color, linestyle="--", label=label
            )
        ax.axhline(values[0, 0], color=GREY, linestyle=":", label="zero-shot")
        first = ax is axes[0]
        finish(
            ax,
            x="alpha: 0 zero-shot, 1 fine-tuned",
            y="test accuracy (%)" if first else "",
            title=title,
            legend=first,
        )
    return fig
