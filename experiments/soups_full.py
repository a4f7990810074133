"""Model soups at full size: 72 fine-tunes of CLIP ViT-B/32 on ImageNet.

Reads `config.folder` as `wise_ft_full.py` does: `zero_shot/`, one member as
`Ensemble.save` writes it, and `images.npy`, `labels.npy` and perhaps `classes.npy` of
train/, validation/ (rows of ImageNet's training set that train/ lacks) and every test
set. All fine-tunes are one stack on the same stream of batches. Each has a length of
its own: after its last step its rate is 0 and it stands still until all have ended.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import ensjax
from ensjax import data
from ensjax.experiment import ConfigError
from ensjax.experiment.fields import check_multiples, check_numbers, choose, load_beside
from ensjax.experiment.stages import run_stages
from ensjax.train import SoftLabels, TrainingJob

full = load_beside(__file__, "wise_ft_full")
ways = load_beside(__file__, "soups_ways")
verdicts = load_beside(__file__, "soups_claims")
figures = load_beside(__file__, "soups_figures")


@dataclasses.dataclass(frozen=True)
class MakeOptimizer:
    """AdamW with warm-up, cosine decay over the member's own steps, and clipping."""

    warmup_steps: int
    clip_norm: float

    def __call__(self, hyper):
        def rate(step):
            warm = jnp.minimum(1.0, (step + 1) / max(1, self.warmup_steps))
            done = jnp.clip(step / hyper["steps"], min=0.0, max=1.0)
            return hyper["learning_rate"] * warm * 0.5 * (1 + jnp.cos(jnp.pi * done))

        return optax.chain(
            optax.clip_by_global_norm(self.clip_norm),
            optax.adamw(rate, weight_decay=hyper["weight_decay"]),
        )


@dataclasses.dataclass(frozen=True)
class NllAmong:
    """The NLL of the label among some classes; (): among all."""

    classes: tuple[int, ...] = ()

    def __call__(self, logits, labels):
        if self.classes:
            counts = np.full(logits.shape[-1], -np.inf, np.float32)
            counts[list(self.classes)] = 0
            logits = logits + counts[None]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def validate(config):
    """Raises `ConfigError` for what would fail later, but for files (see `run`)."""
    ways.check_config(config)
    check_numbers(config, ("num_members",), at_least=2)
    check_numbers(config, ("steps_per_epoch", "steps_per_call"), at_least=1)
    check_numbers(config, ("batch_size", "save_every_steps"), at_least=1)
    check_numbers(config, ("warmup_steps",), at_least=0)
    check_numbers(config, ("clip_norm",), above=0)
    search = config.search
    check_numbers(config, ("search.mixup",), at_least=0)
    check_numbers(config, ("search.label_smoothing",), at_least=0, at_most=1)
    check_numbers(config, ("search.epochs",), at_least=1)
    check_numbers(config, ("search.learning_rate", "search.weight_decay"), above=0)
    for name in ("learning_rate", "weight_decay", "epochs"):
        if len(search[name]) != 2 or search[name][0] > search[name][1]:
            raise ConfigError(
                f"config.search.{name} must be two that rise; got {search[name]}."
            )
    choose("model.dtype", config.model.dtype, full.DTYPES)
    check_multiples(config, ("steps_per_epoch", "save_every_steps"))


def draw_search(config) -> dict[str, np.ndarray]:
    """The hyperparameters of every fine-tune, each `[member]`.

    Member m's do not depend on how many members there are.
    """
    search, found = config.search, []
    for member in range(config.num_members):
        rng = np.random.default_rng((config.seed, member))
        own = {
            name: np.exp(rng.uniform(*np.log(search[name])))
            for name in ("learning_rate", "weight_decay")
        }
        epochs = rng.integers(search.epochs[0], search.epochs[1], endpoint=True)
        own["steps"] = epochs * config.steps_per_epoch
        for name in ("label_smoothing", "mixup"):
            own[name] = rng.choice(search[name])
        found.append(own)
    return {name: np.float32([own[name] for own in found]) for name in found[0]}


def training_job(config):
    """What the run trains; of its stream of images the shapes of one batch."""
    rows, size = config.batch_size, config.model.image_size
    images = jax.ShapeDtypeStruct((rows, size, size, 3), jnp.uint8)
    return TrainingJob(
        make_model=functools.partial(_make_model, config),
        member_ids=tuple(range(config.num_members)),
        init_seed=config.seed,
        data=(images, jax.ShapeDtypeStruct((rows,), jnp.int32)),
        hyper=draw_search(config),
        mesh_sizes=config.mesh.to_dict(),
        options=_options(config),
        stage="tune",
        is_stream=True,
    )


def _make_model(config, rngs):
    return full.ClipClassifier(config, rngs=rngs)


def _options(config):
    return dict(
        loss=SoftLabels(prepare=full.to_floats),
        make_tx=MakeOptimizer(config.warmup_steps, config.clip_norm),
        steps=int(draw_search(config)["steps"].max()),
        batch_size=config.batch_size,
        seed=config.seed,
        steps_per_call=config.steps_per_call,
        log_every_steps=config.steps_per_call,
        block=None if config.block == "all" else config.block,
    )


def run(config, run_dir):
    """Fine-tunes all, averages and judges them; resumes by stages."""
    if not config.folder:
        raise ConfigError(
            "config.folder must name a folder with zero_shot/ (one member, as"
            " Ensemble.save writes it), train/, validation/ and"
            f" {', '.join(config.tests)}/, each with images.npy and labels.npy, since"
            " ImageNet and its shifted sets are not downloaded here."
        )
    zero_shot = full.load_zero_shot(config)
    images, labels, _ = full.read_set(config, "train")
    names = ("validation", *config.tests)
    read = {name: full.read_set(config, name) for name in names}
    datasets = {name: (np.asarray(x), y) for name, (x, y, _) in read.items()}
    scores = {
        name: {"accuracy": full.AccuracyAmong(classes), "nll": NllAmong(classes)}
        for name, (_, _, classes) in read.items()
    }

    def soups(done):
        del done
        members = config.num_members
        start = zero_shot.select([0] * members).with_ids(range(members))
        batches = data.stream(
            (images, labels), batch_size=config.batch_size, seed=config.seed
        )
        search = draw_search(config)
        tuned, log = ensjax.fit(
            start,
            batches,
            hyper=search,
            checkpoint_dir=run_dir.checkpoints / "tune",
            save_every_steps=config.save_every_steps,
            logger=run_dir.logger("tune"),
            **_options(config),
        )
        chosen = ways.choose(config, tuned, datasets["validation"])
        found = ways.evaluate(config, zero_shot, tuned, chosen, datasets, scores=scores)
        # One run is one seed.
        found = {name: values[None] for name, values in (found | search).items()}
        return found | {"frozen_steps": np.asarray(log.frozen_steps)}

    done = run_stages(run_dir, config, {"soups": soups})
    results = done["soups"]
    figures.add_soup_tables(run_dir, config, results)
    figures.add_soup_figures(run_dir, config, results)
    kept = int(results["num_kept"][0, 0])
    shown = "; ".join(
        f"{name} {verdicts.of_way(results, way)[0]:.1f} /"
        f" {verdicts.of_way(results, way, test='ood')[0]:.1f} %"
        for way, name in ({"individual": "mean fine-tune"} | ways.WAYS).items()
    )
    run_dir.finish(
        title=config.title,
        summary=(
            f"One run of {config.num_members} fine-tunes, so that no claim is decided."
            f" Accuracy on {config.tests[0]} / mean of the shifted sets: {shown}. The"
            f" greedy soup keeps {kept}."
        ),
        scalars=verdicts.summarise_soups(done)
        | {"num_members_not_finite": verdicts.num_frozen(done)},
        claims=verdicts.soup_claims(config, results),
    )
