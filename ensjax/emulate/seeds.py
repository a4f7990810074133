"""SEEDS: many members of a forecast ensemble from a few, by a diffusion model.

A case of an archive has M members. Some are drawn as *seeds*, one of the others is the
*target*: a denoiser learns to sample the target given the seeds. Asked for more, it
continues the ensemble (generative ensemble emulation, GEE); with targets that are
sometimes drawn from another source, such as analyses, it corrects it as well
(generative post-processing, GPP).

Source: Li et al. 2024, Generative emulation of weather forecast ensembles with
diffusion models, Science Advances 10(13), eadk4489; arXiv:2306.14066.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from ensjax.emulate.diffusion.denoisers import EDM, NetworkDenoiser
from ensjax.emulate.diffusion.distillation import (
    DistillationLoss,
    finish_distillation,
    start_distillation,
)
from ensjax.emulate.diffusion.losses import DenoisingLoss
from ensjax.emulate.diffusion.noise import LogNormalNoise
from ensjax.emulate.diffusion.sampling import sample_each
from ensjax.ensemble import Ensemble
from ensjax.mesh import fetch
from ensjax.train import TrainingLog, fit
from ensjax.train.losses import example_keys, weighted_mean
from ensjax.weight_space import EMA, averaged


def encode_seeds(seeds: jax.Array, base: jax.Array | None = None) -> jax.Array:
    """Channels that tell a set of seeds, whatever their order, bit for bit.

    The mean; and of several seeds the mean distance of two, and the variance (of two:
    |a - b| and (a - b)^2 / 2).

    Args:
        seeds: `[seed, *space, channel]`.
        base: more channels `[*space, more]`, such as the climatology of the base time.

    Returns:
        `[*space, channels]`: 3 for each of several seeds' (1 for a single one's), then
        those of `base`.

    Source: the published network takes each seed as an entry of a sequence
    (`stack_seeds`); these moments are for convolutions.
    """
    count = seeds.shape[0]
    parts = [seeds[0]]
    if count > 1:
        # Sums over sorted values: their rounding does not depend on the order either.
        seeds = jnp.sort(seeds, axis=0)
        mean = seeds.mean(axis=0, keepdims=True)
        place = 2 * jnp.arange(count) - count + 1
        place = place.reshape(-1, *(1,) * (seeds.ndim - 1))
        distance = jnp.sum(place * seeds, axis=0) / (count * (count - 1) / 2)
        variance = jnp.sum((seeds - mean) ** 2, axis=0) / (count - 1)
        parts = [mean[0], distance, variance]
    if base is not None:
        parts.append(base)
    return jnp.concatenate(parts, axis=-1)


def stack_seeds(seeds: jax.Array, base: jax.Array | None = None) -> dict[str, Any]:
    """The condition of `nn.AxialDenoiser`: seeds as they are, and the climatology."""
    if base is None:
        base = jnp.zeros(seeds.shape[1:], seeds.dtype)
    return {"seeds": seeds, "climatology": base}


ENCODERS: dict[str, Callable[..., Any]] = {
    "moments": encode_seeds,
    "sequence": stack_seeds,
}


def draw_seeds(
    key: jax.Array,
    members: jax.Array,
    *,
    num_seeds: int,
    is_there: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Seeds and a target from the members of one case, without replacement.

    Args:
        key: a random key.
        members: `[member, ...]`.
        num_seeds: K, at least 1.
        is_there: booleans `[member]`; what is False is never drawn. At least K + 1
            must be there, else members that are not are drawn too.

    Returns:
        Seeds `[seed, ...]` and the target `[...]`: K + 1 different members.

    Raises:
        ValueError: if there are fewer than K + 1 members.
    """
    count = members.shape[0]
    if num_seeds < 1 or count < num_seeds + 1:
        raise ValueError(
            f"{num_seeds} seeds and a target are {num_seeds + 1} different members;"
            f" there are {count}."
        )
    ranks = jax.random.uniform(key, (count,))
    if is_there is not None:
        ranks = jnp.where(is_there, ranks, 2.0)
    drawn = members[jnp.argsort(ranks)[: num_seeds + 1]]
    return drawn[:num_seeds], drawn[num_seeds]


@dataclasses.dataclass(frozen=True)
class DrawSeeds:
    """From a case to a clean sample and its condition, drawn anew at every step.

    Attributes:
        num_seeds: K.
        member_share: how likely the target is one of the remaining members; else it is
            one of `others`, each as likely. 1 (GEE) needs no others, and 0 never looks
            at remaining members. With M members and K' others the paper's (GPP) is
            (M - K) / (M - K + K').
        encoder: a name in `ENCODERS`.
    """

    num_seeds: int = 2
    member_share: float = 1.0
    encoder: str = "moments"

    def __post_init__(self):
        if self.encoder not in ENCODERS:
            raise ValueError(
                f"encoder must be one of {', '.join(ENCODERS)}; got {self.encoder!r}."
            )
        if not 0 <= self.member_share <= 1 or self.num_seeds < 1:
            raise ValueError(
                "member_share must be from 0 to 1 and num_seeds at least 1; got"
                f" {self.member_share} and {self.num_seeds}."
            )

    def __call__(self, key: jax.Array, case: dict[str, Any]) -> tuple[jax.Array, Any]:
        """The clean sample `[*space, channel]` and its condition.

        Args:
            key: a random key.
            case: "members" `[member, *space, channel]`; with a `member_share` below 1
                "others" `[other, *space, channel]`; optionally "base" `[*space, more]`
                and "is_there" `[member]`.
        """
        member_key, source_key, other_key = jax.random.split(key, 3)
        seeds, target = draw_seeds(
            member_key,
            case["members"],
            num_seeds=self.num_seeds,
            is_there=case.get("is_there"),
        )
        if self.member_share < 1:
            others = case["others"]
            other = others[jax.random.randint(other_key, (), 0, others.shape[0])]
            is_member = jax.random.bernoulli(source_key, self.member_share)
            target = jnp.where(is_member, target, other)
        return target, self.encode(seeds, case.get("base"))

    def encode(self, seeds: jax.Array, base: jax.Array | None = None) -> Any:
        """The condition that a denoiser is given for these seeds."""
        return ENCODERS[self.encoder](seeds, base)


@dataclasses.dataclass(frozen=True)
class SeedsLoss:
    """A loss of `fit` for batches of cases `[batch, task, ...]`, each model its task.

    The member's hyperparameter "task" says which it is: a lead, or an archive of its
    own. Draws depend on the example's place in the global batch.

    Attributes:
        draw: how a case becomes a clean sample and a condition.
        loss: `DenoisingLoss` or `DistillationLoss`, whose `of_one` it calls.
    """

    draw: DrawSeeds
    loss: Any
    takes_hyper = True

    def __call__(self, model, batch, key, weight=None, *, hyper):
        """The mean loss of the batch; `weight` `[batch]` weighs its cases."""
        cases = jax.tree.map(lambda x: x[:, hyper["task"]], batch)
        count = jax.tree.leaves(cases)[0].shape[0]

        def of_case(key, case):
            draw_key, loss_key = jax.random.split(key)
            x0, condition = self.draw(draw_key, case)
            return self.loss.of_one(model, loss_key, x0, condition)

        losses = jax.vmap(of_case)(example_keys(key, count), cases)
        return weighted_mean(losses, weight)


@dataclasses.dataclass(frozen=True)
class CosineAdam:
    """Adam with gradients clipped at a norm and a rate that falls to 0 as a cosine.

    Attributes:
        steps: after which the rate is 0.
        max_norm: of a member's gradient.
    """

    steps: int
    max_norm: float = 1.0

    def __call__(self, hyper: dict[str, Any]) -> optax.GradientTransformation:
        """The optimizer of one member, with its "learning_rate"."""
        rate = optax.cosine_decay_schedule(hyper["learning_rate"], self.steps)
        return optax.chain(optax.clip_by_global_norm(self.max_norm), optax.adam(rate))


@dataclasses.dataclass(frozen=True)
class SeedsEmulators:
    """Trained denoisers, one for each task, and how seeds are told to them.

    Attributes:
        ensemble: their networks, with averaged weights.
        tasks: int `[model]`, the task of each.
        draw: what they were trained with.
        parametrisation: of the denoisers.
    """

    ensemble: Ensemble
    tasks: np.ndarray
    draw: DrawSeeds
    parametrisation: Any

    @property
    def denoisers(self) -> NetworkDenoiser:
        """Stacked, leaves `[model, ...]`."""
        return NetworkDenoiser(
            self.ensemble.state, self.ensemble.graph, self.parametrisation
        )

    def conditions(self, seeds: jax.Array, base: jax.Array | None = None) -> Any:
        """What the denoisers are given, leaves `[model, case, ...]`.

        Args:
            seeds: `[model, case, seed, *space, channel]`.
            base: `[model, case, *space, more]`.

        Raises:
            ValueError: for another number of seeds than in training, or of models.
        """
        seeds = jnp.asarray(seeds)
        if seeds.ndim < 4 or seeds.shape[2] != self.draw.num_seeds:
            raise ValueError(
                f"seeds must be [model, case, {self.draw.num_seeds}, *space, channel];"
                f" got shape {seeds.shape}."
            )
        if seeds.shape[0] != self.ensemble.num_members:
            raise ValueError(
                f"seeds are of {seeds.shape[0]} models, but there are"
                f" {self.ensemble.num_members}."
            )
        encode = jax.vmap(jax.vmap(self.draw.encode))
        return encode(seeds) if base is None else encode(seeds, jnp.asarray(base))

    def sample(
        self,
        seeds: jax.Array,
        member_ids: Any,
        *,
        sampler: Any,
        base: jax.Array | None = None,
        case_ids: Any = None,
        seed: int = 0,
        block: int | str | None = "auto",
        member_block: int | str | None = "auto",
        case_block: int | None = None,
    ) -> jax.Array:
        """Members of every case for every model (compiled; see `sample_each`).

        Args:
            seeds: `[model, case, seed, *space, channel]`, standardised as in training.
            member_ids: integers `[member]`, any number.
            sampler: such as `Heun(rho_levels(24))`.
            base: `[model, case, *space, more]`, where training had it.
            case_ids, seed, block, member_block, case_block: as in `sample_each`.

        Returns:
            `[model, member, case, *space, channel]`, float32.

        Raises:
            ValueError: as `conditions` and `sample_each`.
        """
        return sample_each(
            self.denoisers,
            member_ids,
            self.conditions(seeds, base),
            shape=np.shape(seeds)[3:],
            sampler=sampler,
            case_ids=case_ids,
            seed=seed,
            block=block,
            member_block=member_block,
            case_block=case_block,
            mesh=self.ensemble.mesh,
        )


def train_seeds(
    make_model: Callable[[nnx.Rngs], nnx.Module],
    cases: dict[str, Any],
    *,
    steps: int,
    draw: DrawSeeds | None = None,
    parametrisation: Any = None,
    noise: Callable[[jax.Array], jax.Array] | None = None,
    tasks: Sequence[int] | None = None,
    learning_rate: float | Sequence[float] = 2e-3,
    batch_size: int = 64,
    ema_decay: float = 0.999,
    seed: int = 0,
    mesh: Any = None,
    fit_options: Mapping[str, Any] | None = None,
) -> tuple[SeedsEmulators, TrainingLog]:
    """Trains a denoiser for every task, all of them as one program (`ensjax.fit`).

    Args:
        make_model: builds a network `network(x, noise, condition)` from `nnx.Rngs`.
        cases: "members" `[case, task, member, *space, channel]`, standardised; and what
            else `DrawSeeds` takes, with `[case, task]` in front.
        steps: optimizer steps.
        draw: how seeds and targets are drawn; `DrawSeeds()` by default.
        parametrisation: `EDM()` by default.
        noise: of training; `LogNormalNoise()` by default.
        tasks: the task of every model; by default one model for each.
        learning_rate: of all models, or of each.
        batch_size: cases.
        ema_decay: of the averaged weights, which are those of the result.
        seed: of weights, order and draws.
        mesh: from `make_mesh`; models are split over "member", cases over "data".
        fit_options: more arguments of `fit`: `checkpoint_dir`, `logger`, `block` ...

    Returns:
        The emulators and the log.

    Raises:
        ValueError: if arrays do not fit, values are missing, or a task does not exist.
    """
    draw = DrawSeeds() if draw is None else draw
    parametrisation = EDM() if parametrisation is None else parametrisation
    noise = LogNormalNoise() if noise is None else noise
    num_tasks = check_cases(cases, draw)
    tasks = np.arange(num_tasks) if tasks is None else np.asarray(tasks)
    if tasks.ndim != 1 or not len(tasks) or tasks.min() < 0 or tasks.max() >= num_tasks:
        raise ValueError(
            f"tasks are integers [model] from 0 to {num_tasks - 1}; got {tasks}."
        )
    ensemble = Ensemble.init(make_model, num_members=len(tasks), seed=seed, mesh=mesh)
    ema = EMA(ema_decay)
    trained, log = fit(
        ensemble,
        cases,
        loss=SeedsLoss(draw, DenoisingLoss(parametrisation, noise)),
        make_tx=CosineAdam(steps),
        hyper={"learning_rate": learning_rate, "task": tuple(tasks.tolist())},
        steps=steps,
        batch_size=batch_size,
        averages={"ema": ema},
        seed=seed,
        mesh=mesh,
        **(fit_options or {}),
    )
    ensemble = averaged(trained, ema, log.averages["ema"])
    return SeedsEmulators(ensemble, tasks, draw, parametrisation), log


def distil_seeds(
    emulators: SeedsEmulators,
    cases: dict[str, Any],
    *,
    levels: tuple[float, ...],
    steps: int,
    num_substeps: int = 4,
    low: float = 0.01,
    learning_rate: float = 5e-4,
    batch_size: int = 64,
    ema_decay: float = 0.99,
    seed: int = 0,
    fit_options: Mapping[str, Any] | None = None,
) -> tuple[SeedsEmulators, TrainingLog]:
    """Emulators that sample in as many calls as there are levels, by `Euler(levels)`.

    Args:
        emulators: the teachers.
        cases: as in `train_seeds`.
        levels: falling noise levels, such as `rho_levels(4, low=0.1)`.
        steps: optimizer steps.
        num_substeps, low: of `DistillationLoss`.
        learning_rate: of all students.
        batch_size: cases.
        ema_decay: of the averaged weights.
        seed: of order and draws.
        fit_options: more arguments of `fit`.

    Returns:
        The students as emulators, and the log.

    Raises:
        ValueError: as `train_seeds` and `DistillationLoss`.
    """
    check_cases(cases, emulators.draw)
    loss = DistillationLoss(emulators.parametrisation, levels, num_substeps, low)
    ema = EMA(ema_decay)
    pairs, log = fit(
        start_distillation(emulators.ensemble),
        cases,
        loss=SeedsLoss(emulators.draw, loss),
        make_tx=CosineAdam(steps),
        hyper={
            "learning_rate": learning_rate,
            "task": tuple(np.asarray(emulators.tasks).tolist()),
        },
        steps=steps,
        batch_size=batch_size,
        averages={"ema": ema},
        seed=seed,
        mesh=emulators.ensemble.mesh,
        **(fit_options or {}),
    )
    students = finish_distillation(averaged(pairs, ema, log.averages["ema"]))
    return dataclasses.replace(emulators, ensemble=students), log


def check_cases(cases: dict[str, Any], draw: DrawSeeds) -> int:
    """The number of tasks of training cases `[case, task, ...]`.

    Raises:
        ValueError: if shapes do not fit, members are too few, `others` are missing
            where they are drawn, or a value is not finite; says which.
    """
    known = {"members", "others", "base", "is_there"}
    if "members" not in cases or set(cases) - known:
        raise ValueError(
            f"cases hold 'members' and may hold {sorted(known - {'members'})}; got"
            f" {sorted(cases)}."
        )
    shape = np.shape(cases["members"])
    if len(shape) < 4 or shape[2] < draw.num_seeds + 1:
        raise ValueError(
            "members must be [case, task, member, *space, channel] with at least"
            f" {draw.num_seeds + 1} members; got shape {shape}."
        )
    if draw.member_share < 1 and "others" not in cases:
        raise ValueError(
            f"with member_share = {draw.member_share} targets are drawn from 'others'"
            " too, which the cases lack."
        )
    if "others" in cases and np.shape(cases["others"])[3:] != shape[3:]:
        raise ValueError(
            f"others must be [case, task, other, ...] like members {shape}; got"
            f" {np.shape(cases['others'])}."
        )
    for name, value in cases.items():
        if np.shape(value)[:2] != shape[:2]:
            raise ValueError(
                f"{name} must begin with [case, task] = {shape[:2]}; got shape"
                f" {np.shape(value)}."
            )
        if name == "members" and "is_there" in cases:
            value = np.where(_expanded(cases["is_there"], len(shape)), value, 0.0)
        if not np.isfinite(fetch(jnp.asarray(value))).all():
            raise ValueError(
                f"{name} holds values that are not finite; name missing members in"
                " 'is_there' [case, task, member], and fill or drop the rest."
            )
    if "is_there" in cases:
        fewest = int(np.asarray(cases["is_there"]).sum(axis=2).min())
        if fewest < draw.num_seeds + 1:
            raise ValueError(
                f"a case has {fewest} members that are there; seeds and target are"
                f" {draw.num_seeds + 1}."
            )
    return shape[1]


def _expanded(mask, ndim):
    mask = np.asarray(mask, bool)
    return mask.reshape(*mask.shape, *(1,) * (ndim - mask.ndim))
