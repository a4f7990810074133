"""Digits in four domains for `merge_domains.py`: splits, training, references.

A seed splits the digits anew and draws initial weights, orders and the few rows of each
domain that the base sees. The bases of all seeds are one stack, and so are the members
of all seeds and domains.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import ensjax
from ensjax import combine, data, nn
from ensjax.experiment import ConfigError
from ensjax.experiment.fields import check_multiples, check_numbers
from ensjax.train import SoftLabels, TrainingJob

# What is done to images [..., height, width, channel]; the first is no domain of a
# member.
VIEWS = {
    "clean": lambda x: x,
    "flip": lambda x: x[..., ::-1, :, :],
    "inversion": lambda x: 1 - x,
    "transpose": lambda x: x.swapaxes(-3, -2),
    "roll": lambda x: jnp.roll(x, x.shape[-2] // 2, axis=-2),
}
DOMAINS = tuple(VIEWS)[1:]
PARTS = ("validation", "test")
RULES = ("predictive", "geometric_mean")
SEED_STRIDE = 2**8  # between the ids of the first members of two seeds
NO_REPLAY = (
    "The members of this run go on from bases that it has trained before; config and"
    " seed alone do not make them again."
)


@dataclasses.dataclass(frozen=True)
class Rows:
    """The digits of all seeds: images `[seed, row, 8, 8, 1]`, labels `[seed, row]`."""

    parts: dict[str, tuple[np.ndarray, np.ndarray]]
    few: tuple[np.ndarray, np.ndarray]  # of the domains, for the base


def check_config(config) -> None:
    """Raises `ConfigError` for what training could not work with."""
    fields = ("num_seeds", "batch_size", "steps_per_call", "save_every_steps")
    check_numbers(config, (*fields, "base_steps", "tuning_steps"), at_least=1)
    check_numbers(config, ("hidden", "predict_batch_size"), at_least=1)
    check_numbers(config, ("learning_rate",), above=0)
    check_numbers(config, ("weight_decay", "few_per_domain"), at_least=0)
    check_numbers(config, ("num_validation", "num_test"), at_least=10)
    check_multiples(config, ("base_steps", "tuning_steps", "save_every_steps"))
    rest = 1_797 - config.num_validation - config.num_test
    if rest < max(config.batch_size, config.few_per_domain):
        raise ConfigError(
            f"config.num_validation + config.num_test leave {rest} of 1797 digits for"
            " training; config.batch_size and config.few_per_domain must be at most"
            " that."
        )


def load_rows(config) -> Rows:
    """Splits and few rows of every seed."""
    whole = data.digits(test_size=400, seed=0)
    images = np.concatenate([whole.x_train, whole.x_test])
    labels = np.concatenate([whole.y_train, whole.y_test]).astype(np.int32)
    sizes = {"validation": config.num_validation, "test": config.num_test, "train": -1}
    found = {part: ([], []) for part in (*sizes, "few")}
    for seed in range(config.num_seeds):
        number = config.seed + seed
        split = data.split_rows(
            "digits", len(labels), sizes, seed=number, labels=labels
        )
        for part in sizes:
            found[part][0].append(images[split[part]])
            found[part][1].append(labels[split[part]])
        draw = np.random.default_rng((number, 1))
        chosen = [
            draw.choice(split["train"], config.few_per_domain, replace=False)
            for _ in DOMAINS
        ]
        views = [np.asarray(VIEWS[d](images[c])) for d, c in zip(DOMAINS, chosen)]
        found["few"][0].append(np.concatenate(views))
        found["few"][1].append(labels[np.concatenate(chosen)])
    stacked = {part: tuple(map(np.stack, pair)) for part, pair in found.items()}
    few = stacked.pop("few")
    return Rows(stacked, few)


def views_of(images: np.ndarray) -> np.ndarray:
    """Images `[row, ...]` in all views, `[view, row, ...]`."""
    return np.stack([np.asarray(view(images)) for view in VIEWS.values()])


def own_rows(config, rows: Rows) -> np.ndarray:
    """Training images of every member in its own domain, `[seed * domain, row, ...]`.

    The first `config.statistic_rows` of them; 0: all.
    """
    images = rows.parts["train"][0][:, : config.statistic_rows or None]
    views = [np.asarray(VIEWS[domain](images)) for domain in DOMAINS]
    return np.stack(views, axis=1).reshape(-1, *images.shape[1:])


def as_member_sees(batch, hyper):
    """The rows of the member's seed in the member's domain."""
    images = jnp.take(batch["image"], hyper["variant"], axis=1)
    views = jnp.stack([view(images) for view in VIEWS.values()])
    labels = jnp.take(batch["label"], hyper["variant"], axis=1)
    return jnp.take(views, hyper["view"], axis=0), labels


LOSS = SoftLabels(prepare=as_member_sees)


def make_tx(hyper):
    """AdamW of one member."""
    return optax.adamw(hyper["learning_rate"], weight_decay=hyper["weight_decay"])


def _make_model(hidden, rngs):
    return nn.MLP(in_features=64, hidden=hidden, num_outputs=10, rngs=rngs)


def train(config, run_dir, rows: Rows):
    """The bases `[seed]`, then the members `[seed * domain]`, and who is not finite.

    Returns:
        Both ensembles, and for which step each member stopped being finite.
    """
    first, second = base_job(config, rows), tuning_job(config, rows)
    base, log = _fit(first, first.ensemble(), run_dir)
    start = base.select(np.repeat(np.arange(config.num_seeds), len(DOMAINS)))
    start = start.with_ids(np.asarray(second.member_ids))
    members, tuning_log = _fit(second, start, run_dir)
    frozen = np.concatenate([log.frozen_steps, tuning_log.frozen_steps])
    return base, members, frozen


def base_job(config, rows: Rows) -> TrainingJob:
    """A base of each seed, on clean digits and a few of the domains."""
    seeds = np.arange(config.num_seeds, dtype=np.int32)
    parts = (rows.parts["train"], rows.few)
    hyper = {"variant": seeds, "view": np.zeros_like(seeds)}
    return _job(config, "base", SEED_STRIDE * seeds, parts, hyper, config.base_steps)


def tuning_job(config, rows: Rows) -> TrainingJob:
    """The members of all seeds and domains.

    In the run they go on from the bases; here they begin with new weights, which costs
    the same.
    """
    seeds = np.arange(config.num_seeds, dtype=np.int32)
    variant = np.repeat(seeds, len(DOMAINS))
    domain = np.tile(np.arange(len(DOMAINS), dtype=np.int32), config.num_seeds)
    hyper = {"variant": variant, "view": 1 + domain}
    ids, parts = SEED_STRIDE * variant + 1 + domain, (rows.parts["train"],)
    job = _job(config, "tune", ids, parts, hyper, config.tuning_steps)
    return dataclasses.replace(job, why_no_replay=NO_REPLAY)


def _job(config, stage, ids, parts, hyper, steps):
    images, labels = (np.concatenate(p, axis=1) for p in zip(*parts, strict=True))
    plain = {"learning_rate": config.learning_rate, "weight_decay": config.weight_decay}
    plain = {name: np.full(len(ids), value) for name, value in plain.items()}
    return TrainingJob(
        make_model=functools.partial(_make_model, tuple(config.hidden)),
        member_ids=tuple(ids.tolist()),
        init_seed=config.seed,
        data={
            "image": np.ascontiguousarray(images.swapaxes(0, 1)),
            "label": np.ascontiguousarray(labels.swapaxes(0, 1)),
        },
        hyper=plain | hyper,
        mesh_sizes=config.mesh.to_dict(),
        options=dict(
            loss=LOSS,
            make_tx=make_tx,
            steps=steps,
            batch_size=config.batch_size,
            seed=config.seed,
            sampling="independent",
            steps_per_call=config.steps_per_call,
            log_every_steps=config.steps_per_call,
            save_every_steps=config.save_every_steps,
            block=None if config.block == "all" else config.block,
        ),
        stage=stage,
    )


def _fit(job: TrainingJob, ensemble, run_dir):
    return ensjax.fit(
        ensemble,
        job.data,
        hyper=job.hyper,
        checkpoint_dir=run_dir.checkpoints / job.stage,
        logger=run_dir.logger(job.stage),
        **job.options,
    )


def measure_references(config, rows: Rows, base, members) -> dict[str, np.ndarray]:
    """Accuracies of what is not merged, on both parts and in all views.

    Returns:
        `base` `[seed, part, view]`, `members` `[seed, domain, part, view]`, and the
        members' combined outputs by rule, `[seed, part, view]`.
    """
    found = {name: [] for name in ("base", "members", *RULES)}
    for seed in range(config.num_seeds):
        first = seed * len(DOMAINS)
        own = base.select([seed]).concatenate(
            members.select(np.arange(first, first + len(DOMAINS)))
        )
        accuracy = {name: [] for name in found}
        for part in PARTS:
            images, labels = (x[seed] for x in rows.parts[part])
            views = views_of(images)
            outputs = ensjax.predict(
                own,
                views.reshape(-1, *images.shape[1:]),
                batch_size=config.predict_batch_size,
            )
            outputs = np.asarray(ensjax.mesh.fetch(outputs), np.float32)
            outputs = outputs.reshape(len(outputs), *views.shape[:2], -1)
            combined = {
                "base": outputs[0],
                "members": outputs[1:],
                "predictive": combine.mean_probs(_flat(outputs[1:])),
                "geometric_mean": combine.mean_logits(_flat(outputs[1:])),
            }
            for name, values in combined.items():
                values = np.asarray(values).reshape(*_lead(name), *outputs.shape[1:])
                right = values.argmax(axis=-1) == labels
                accuracy[name].append(right.mean(axis=-1))
        for name, values in accuracy.items():
            found[name].append(np.stack(values, axis=-2))
    return {name: np.stack(values) for name, values in found.items()}


def _flat(outputs):
    return outputs.reshape(len(outputs), -1, outputs.shape[-1])


def _lead(name):
    return (len(DOMAINS),) if name == "members" else ()


def own_accuracy(members: np.ndarray) -> np.ndarray:
    """Accuracy of every member in its own domain, `[seed, domain, part]`.

    Args:
        members: `[seed, domain, part, view]`.
    """
    places = np.arange(len(DOMAINS))
    return np.moveaxis(members[:, places, :, 1 + places], 0, 1)


def task_vectors(base, members) -> dict[str, np.ndarray]:
    """What every member has added to its base, by leaf, `[seed, domain, ...]`."""
    origin, tuned = (ensjax.mesh.fetch(e.params) for e in (base, members))
    names = ensjax.weight_space.leaf_names(origin)
    pairs = zip(names, jax.tree.leaves(origin), jax.tree.leaves(tuned), strict=True)
    found = {}
    for name, start, end in pairs:
        end = np.asarray(end).reshape(len(start), -1, *start.shape[1:])
        found[name] = end - np.asarray(start)[:, None]
    return found


def cosines(taus: dict[str, np.ndarray]) -> np.ndarray:
    """Cosines of whole task vectors, `[seed, domain, domain]`."""
    flat = [x.reshape(*x.shape[:2], -1) for x in taus.values()]
    whole = np.concatenate(flat, axis=-1)
    units = whole / np.linalg.norm(whole, axis=-1, keepdims=True)
    return np.einsum("sai,sbi->sab", units, units)


def sign_conflicts(taus: dict[str, np.ndarray], density: float) -> np.ndarray:
    """Share of entries in which members pull to both sides, `[seed, leaf]`.

    Args:
        taus: of `task_vectors`.
        density: share of its largest entries, of the whole model, that a member keeps.
            Entries that no two members keep do not count.
    """
    flat = [np.abs(x).reshape(*x.shape[:2], -1) for x in taus.values()]
    least = np.quantile(np.concatenate(flat, axis=-1), 1 - density, axis=-1)
    shares = []
    for tau in taus.values():
        bound = least.reshape(*least.shape, *(1,) * (tau.ndim - 2))
        kept = (np.abs(tau) >= bound) & (tau != 0)
        up, down = (np.sum(kept & s, axis=1) for s in (tau > 0, tau < 0))
        counted, axes = up + down >= 2, tuple(range(1, tau.ndim - 1))
        number = np.maximum(counted.sum(axis=axes), 1)
        shares.append(((up > 0) & (down > 0)).sum(axis=axes) / number)
    return np.stack(shares, axis=1)
