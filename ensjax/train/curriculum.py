"""A curriculum: stages of training, such as ever longer rollouts, one after the other.

Each stage is one call of `fit`. Weights are handed over, the optimizer's state is not.
What differs between stages of one loss is data of the program (rates, their schedules,
numbers of steps), so that it is compiled once for every rollout length, not for every
stage.

Source: Lang et al. 2024, arXiv:2412.15832 (AIFS-CRPS), section 3; Bonev et al. 2025,
arXiv:2507.12144 (FourCastNet 3), for stages that halve their rate.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath

from ensjax.ensemble import Ensemble
from ensjax.train.fit import fit
from ensjax.train.history import TrainingLog

DECAYS = ("constant", "cosine", "halving")


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of a curriculum.

    Attributes:
        steps: of the optimizer.
        learning_rate: at its highest; one number, or one for each member of the stack.
        loss: of this stage: rollout length, estimator, members, centring of noise. Any
            loss of `fit`; the method `check(data, ensemble)` of one is called before
            any work.
        decay: "constant", "cosine" (to 0 at the last step) or "halving".
        warmup_steps: over which the rate rises linearly from 0.
        halving_steps: after which the rate is halved, and again, for "halving".
        data: windows of this stage; None: those of the curriculum.
        batch_size: cases; None: that of the curriculum.

    Raises:
        ValueError: for numbers and words that do not fit.
    """

    steps: int
    learning_rate: float | tuple[float, ...]
    loss: Any
    decay: str = "constant"
    warmup_steps: int = 0
    halving_steps: int | None = None
    data: Any = None
    batch_size: int | None = None

    def __post_init__(self):
        if self.steps < 1 or not 0 <= self.warmup_steps < self.steps:
            raise ValueError(
                "a stage has at least one step, and fewer of them to warm up; got"
                f" steps={self.steps}, warmup_steps={self.warmup_steps}."
            )
        if self.decay not in DECAYS:
            raise ValueError(
                f"decay must be one of {', '.join(DECAYS)}; got {self.decay!r}."
            )
        if (self.decay == "halving") != (self.halving_steps is not None):
            raise ValueError(
                'halving_steps belong to decay="halving", which needs them; got'
                f" {self.decay!r} and {self.halving_steps}."
            )
        if self.halving_steps is not None and not self.halving_steps >= 1:
            raise ValueError(
                f"halving_steps must be at least 1; got {self.halving_steps}."
            )
        if not np.all(np.asarray(self.learning_rate) > 0):
            raise ValueError(f"rates are positive; got {self.learning_rate}.")

    def hyper(self) -> dict[str, Any]:
        """The schedule as numbers, which `StageAdam` takes."""
        never = 2**30
        return {
            "learning_rate": self.learning_rate,
            "warmup_steps": self.warmup_steps,
            "cosine_steps": self.steps if self.decay == "cosine" else never,
            "halving_steps": self.halving_steps or never,
        }


@dataclasses.dataclass(frozen=True)
class StageAdam:
    """AdamW with the schedule of a stage, which is data: stages share a program.

    Attributes:
        betas, eps, weight_decay: of `optax.adamw`.
        max_norm: at which a member's gradient is clipped; None: it is not.
    """

    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    max_norm: float | None = None
    eps: float = 1e-8

    def __call__(self, hyper: dict[str, Any]) -> optax.GradientTransformation:
        """The optimizer of one member, of the entries that `Stage.hyper` gives."""
        adam = optax.adamw(
            lambda step: stage_rate(step, hyper),
            *self.betas,
            eps=self.eps,
            weight_decay=self.weight_decay,
        )
        if self.max_norm is None:
            return adam
        return optax.chain(optax.clip_by_global_norm(self.max_norm), adam)


def stage_rate(step: jax.Array, hyper: Mapping[str, Any]) -> jax.Array:
    """The learning rate of a step, from 0 on, by `Stage.hyper`."""
    step = jnp.asarray(step, jnp.float32)
    warmup, cosine, halving = (
        jnp.asarray(hyper[name], jnp.float32)
        for name in ("warmup_steps", "cosine_steps", "halving_steps")
    )
    rising = jnp.minimum(1.0, (step + 1) / jnp.maximum(warmup, 1))
    along = jnp.clip((step - warmup) / jnp.maximum(cosine - warmup, 1), 0, 1)
    falling = 0.5 * (1 + jnp.cos(jnp.pi * along)) * 0.5 ** jnp.floor(step / halving)
    return hyper["learning_rate"] * rising * falling


def train_curriculum(
    ensemble: Ensemble,
    data: Any,
    stages: Sequence[Stage],
    *,
    make_tx: Any = None,
    hyper: Mapping[str, Any] | None = None,
    batch_size: int = 64,
    seed: int = 0,
    steps_per_call: int | None = None,
    checkpoint_dir: Any = None,
    **fit_options: Any,
) -> tuple[Ensemble, list[TrainingLog]]:
    """Trains a stack of emulators through stages; the same call again resumes.

    Stages of one loss share a compiled program if they also share the shapes of data
    and batch.

    Args:
        ensemble: emulators, `model(noise, state) -> next state`.
        data: windows `[case, time, *space, channel]` of stages without their own.
        stages: at least one.
        make_tx: `StageAdam()` by default.
        hyper: more hyperparameters, numbers or `[member]`, such as that of
            `RolloutLoss.fair_hyper`.
        batch_size: of stages without their own.
        seed: of order and draws, which differ between stages.
        steps_per_call: steps in one call of the program, of all stages; by default 100,
            or those of the shortest stage.
        checkpoint_dir: each stage is saved in `stage-<number>` below it; a stage that
            was finished is not run again.
        fit_options: more arguments of `fit`: `mesh`, `block`, `averages`, ...

    Returns:
        The trained ensemble, and the log of every stage.

    Raises:
        ValueError: if there is no stage, or a number does not fit, before any work.

    Example::

        score = NoiseCrps(4, noise=WhiteNoise(4))
        stages = [
            Stage(1000, 1e-3, RolloutLoss(1, score), decay="cosine", warmup_steps=100),
            Stage(200, 1e-5, RolloutLoss(2, score), decay="cosine", warmup_steps=10),
        ]
        ensemble, logs = train_curriculum(ensemble, windows, stages)
    """
    _check(stages, data, ensemble)
    if steps_per_call is None:
        steps_per_call = min(100, *(stage.steps for stage in stages))
    logs = []
    for number, stage in enumerate(stages):
        place = {}
        if checkpoint_dir is not None:
            place = {"checkpoint_dir": epath.Path(checkpoint_dir) / f"stage-{number}"}
        ensemble, log = fit(
            ensemble,
            data if stage.data is None else stage.data,
            loss=stage.loss,
            make_tx=StageAdam() if make_tx is None else make_tx,
            hyper={**(hyper or {}), **stage.hyper()},
            steps=stage.steps,
            batch_size=stage.batch_size or batch_size,
            seed=stage_seed(seed, number),
            steps_per_call=steps_per_call,
            **place,
            **fit_options,
        )
        logs.append(log)
    return ensemble, logs


def stage_seed(seed: int, number: int) -> int:
    """The seed of a stage; that of the first is the curriculum's own."""
    if number == 0:
        return seed
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0] >> 1)


def _check(stages, data, ensemble):
    if not stages:
        raise ValueError("a curriculum has at least one stage.")
    for number, stage in enumerate(stages):
        given = data if stage.data is None else stage.data
        if given is None:
            raise ValueError(f"stage {number} has no data, and nor has the curriculum.")
        if not hasattr(stage.loss, "check"):
            continue
        try:
            stage.loss.check(given, ensemble)
        except ValueError as error:
            raise ValueError(f"stage {number}: {error}") from None
