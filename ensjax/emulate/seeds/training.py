"""Training of emulators from seeds: one network for each task, all as one stack."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx

from ensjax.emulate.diffusion.denoisers import EDM
from ensjax.emulate.diffusion.distillation import (
    DistillationLoss,
    finish_distillation,
    start_distillation,
)
from ensjax.emulate.diffusion.losses import DenoisingLoss
from ensjax.emulate.diffusion.noise import LogNormalNoise
from ensjax.emulate.seeds.drawing import DrawSeeds, check_cases
from ensjax.emulate.seeds.sampling import OneCall, SeedsEmulators
from ensjax.ensemble import Ensemble
from ensjax.train import TrainingLog, fit
from ensjax.train.losses import example_keys, weighted_mean
from ensjax.train.noise_members import NoiseCrps
from ensjax.weight_space import EMA, averaged


@dataclasses.dataclass(frozen=True)
class SeedsLoss:
    """A loss of `fit` for batches of cases `[batch, task, ...]`, each model its task.

    The member's hyperparameter "task" says which it is: a lead, or an archive of its
    own. Draws depend on the example's place in the global batch.

    Attributes:
        draw: how a case becomes a clean sample and a condition.
        loss: `DenoisingLoss`, `DistillationLoss` or `NoiseCrps`, whose `of_one` it
            calls; where it has a `prepare`, with the model that this returns.
    """

    draw: DrawSeeds
    loss: Any
    takes_hyper = True

    @property
    def axis(self) -> str | None:
        """The mesh axis over which the loss splits members, if any."""
        return getattr(self.loss, "axis", None)

    def __call__(self, model, batch, key, weight=None, *, hyper):
        """The mean loss of the batch; `weight` `[batch]` weighs its cases."""
        cases = jax.tree.map(lambda x: x[:, hyper["task"]], batch)
        count = jax.tree.leaves(cases)[0].shape[0]
        if hasattr(self.loss, "prepare"):
            model = self.loss.prepare(model)

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


def train_seeds(
    make_model: Callable[[nnx.Rngs], nnx.Module],
    cases: dict[str, Any],
    *,
    steps: int,
    loss: DenoisingLoss | NoiseCrps | None = None,
    draw: DrawSeeds | None = None,
    tasks: Sequence[int] | None = None,
    learning_rate: float | Sequence[float] = 2e-3,
    batch_size: int = 64,
    ema_decay: float = 0.999,
    seed: int = 0,
    mesh: Any = None,
    fit_options: Mapping[str, Any] | None = None,
) -> tuple[SeedsEmulators, TrainingLog]:
    """Trains a network for every task, all of them as one program (`ensjax.fit`).

    The loss says what it learns to be: a denoiser, which a sampler calls many times, or
    with `NoiseCrps` a network with noise inside: every step makes a few members of each
    case from its seeds and scores them against the target; a member later costs one
    call, and needs no sampler.

    Args:
        make_model: builds a network from `nnx.Rngs`: `network(x, noise, condition)`, or
            `network(noise, condition)` for the noise of a `NoiseCrps`, such as
            `nn.ResidualGenerator`.
        cases: "members" `[case, task, member, *space, channel]`, standardised; and what
            else `DrawSeeds` takes, with `[case, task]` in front.
        steps: optimizer steps.
        loss: `DenoisingLoss(EDM(), LogNormalNoise())` by default.
        draw: how seeds and targets are drawn; `DrawSeeds()` by default.
        tasks: the task of every model; by default one model for each.
        learning_rate: of all models, or of each.
        batch_size: cases.
        ema_decay: of the averaged weights, which are those of the result.
        seed: of weights, order and draws.
        mesh: from `make_mesh`; models are split over "member", cases over "data". A
            `NoiseCrps` with `axis="model"` splits its members over that.
        fit_options: more arguments of `fit`: `checkpoint_dir`, `logger`, `block` ...

    Returns:
        The emulators and the log.

    Raises:
        ValueError: if arrays do not fit, values are missing, or a task does not exist.
    """
    loss = DenoisingLoss(EDM(), LogNormalNoise()) if loss is None else loss
    draw = DrawSeeds() if draw is None else draw
    num_tasks = check_cases(cases, draw)
    tasks = np.arange(num_tasks) if tasks is None else np.asarray(tasks)
    if tasks.ndim != 1 or not len(tasks) or tasks.min() < 0 or tasks.max() >= num_tasks:
        raise ValueError(
            f"tasks are integers [model] from 0 to {num_tasks - 1}; got {tasks}."
        )
    is_one_call = isinstance(loss, NoiseCrps)
    parametrisation = OneCall(loss.noise) if is_one_call else loss.parametrisation
    trained, log = _fit_averaged(
        Ensemble.init(make_model, num_members=len(tasks), seed=seed, mesh=mesh),
        cases,
        SeedsLoss(draw, loss),
        tasks=tasks,
        ema_decay=ema_decay,
        learning_rate=learning_rate,
        options=dict(
            steps=steps,
            batch_size=batch_size,
            seed=seed,
            mesh=mesh,
            **(fit_options or {}),
        ),
    )
    return SeedsEmulators(trained, tasks, draw, parametrisation), log


def distil_seeds(
    emulators: SeedsEmulators,
    cases: dict[str, Any],
    *,
    levels: tuple[float, ...],
    steps: int,
    num_substeps: int = 4,
    low: float = 0.01,
    place_weights: tuple[Any, ...] | None = None,
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
        num_substeps, low, place_weights: of `DistillationLoss`.
        learning_rate: of all students.
        batch_size: cases.
        ema_decay: of the averaged weights.
        seed: of order and draws.
        fit_options: more arguments of `fit`.

    Returns:
        The students as emulators, and the log.

    Raises:
        ValueError: as `train_seeds` and `DistillationLoss`.
        TypeError: if the emulators are no denoisers.
    """
    check_cases(cases, emulators.draw)
    emulators.check_denoisers("distil_seeds")
    loss = DistillationLoss(
        emulators.parametrisation, levels, num_substeps, low, place_weights
    )
    students, log = _fit_averaged(
        start_distillation(emulators.ensemble),
        cases,
        SeedsLoss(emulators.draw, loss),
        tasks=emulators.tasks,
        ema_decay=ema_decay,
        learning_rate=learning_rate,
        options=dict(
            steps=steps,
            batch_size=batch_size,
            seed=seed,
            mesh=emulators.ensemble.mesh,
            **(fit_options or {}),
        ),
    )
    students = finish_distillation(students)
    return dataclasses.replace(emulators, ensemble=students), log


def _fit_averaged(ensemble, cases, loss, *, tasks, ema_decay, learning_rate, options):
    """The trained ensemble with averaged weights, and the log."""
    ema = EMA(ema_decay)
    trained, log = fit(
        ensemble,
        cases,
        loss=loss,
        make_tx=CosineAdam(options["steps"]),
        hyper={
            "learning_rate": learning_rate,
            "task": tuple(np.asarray(tasks).tolist()),
        },
        averages={"ema": ema},
        **options,
    )
    return averaged(trained, ema, log.averages["ema"]), log
