"""Distillation of a deterministic sampler to few steps, as a training by `fit`.

A student learns to go from each level of a coarse sampler to the next one in one call,
where its teacher takes many Heun steps. Members are distilled as they are trained: a
stack of teachers becomes a stack of students in one program.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ensjax.emulate.diffusion.losses import check_place_weights, weights_of_mean_1
from ensjax.emulate.diffusion.noise import check_levels
from ensjax.emulate.diffusion.samplers import Heun
from ensjax.ensemble import Ensemble


@dataclasses.dataclass(frozen=True)
class DistillationLoss:
    """The loss of a student that takes one Euler step where its teacher takes many.

    From a noisy sample x of level s, the teacher goes to x' of the next level s'. The
    student's clean sample is to be the one whose Euler step ends there:

        D = (x' - r x) / (1 - r),  r = s' / s

    and at the last level the teacher's sample at level 0. Then `Euler(levels)` with the
    student follows the teacher. `fit` gives it a model of `start_distillation`.

    Attributes:
        parametrisation: of teacher and student.
        levels: the N falling noise levels at which the student will be called.
        num_substeps: of the teacher from one level to the next, equal in ln sigma.
        low: the level from which the teacher's last call goes to 0.
        place_weights: of places, as in `DenoisingLoss`.

    Raises:
        ValueError: for levels or numbers that do not fit.
        TypeError: if `place_weights` is no tuple.

    Source: Salimans and Ho 2022, arXiv:2202.00512, appendix G, in one round from many
    steps to N instead of halving by halving, with Heun steps for the teacher's.
    """

    parametrisation: Any
    levels: tuple[float, ...]
    num_substeps: int = 4
    low: float = 0.01
    place_weights: tuple[Any, ...] | None = None

    def __post_init__(self):
        check_levels(self.levels)
        check_place_weights(self.place_weights)
        if self.num_substeps < 1 or not 0 < self.low < self.levels[-1]:
            raise ValueError(
                "num_substeps must be at least 1, and low above 0 and below the last"
                f" level {self.levels[-1]}; got {self.num_substeps} and {self.low}."
            )

    def of_one(self, model: Any, key: Any, x0: Any, condition: Any) -> jax.Array:
        """The loss of one example; `model` holds a student and its teacher."""
        level_key, noise_key = jax.random.split(key)
        levels = jnp.asarray((*self.levels, self.low), jnp.float32)
        number = jax.random.randint(level_key, (), 0, len(self.levels))
        sigma, target = levels[number], levels[number + 1]
        x = x0 + sigma * jax.random.normal(noise_key, x0.shape, x0.dtype)

        def teach(x, sigma):
            return self.parametrisation.denoise(model.teacher, x, sigma, condition)

        ratio = (target / sigma) ** (1 / self.num_substeps)

        def substep(place, i):
            start = sigma * ratio**i
            return Heun(self.levels).step(teach, place, start, start * ratio), None

        end, _ = jax.lax.scan(substep, x, jnp.arange(self.num_substeps))
        share = target / sigma
        is_last = number == len(self.levels) - 1
        jump = jnp.where(is_last, teach(end, target), (end - share * x) / (1 - share))
        jump = jax.lax.stop_gradient(jump)
        found = self.parametrisation.denoise(model.student, x, sigma, condition)
        squared = jnp.square((found - jump).astype(jnp.float32))
        if self.place_weights is not None:
            squared = weights_of_mean_1(self.place_weights, x0.shape) * squared
        return self.parametrisation.weight(sigma) * squared.mean()


def start_distillation(ensemble: Ensemble) -> Ensemble:
    """Students that start as their teachers, the members of `ensemble`, beside them.

    Args:
        ensemble: trained denoiser networks. What they have besides parameters must not
            be random.

    Returns:
        An ensemble of pairs with the members' ids, for `fit` with `DistillationLoss`
        (alone it takes batches as `DenoisingLoss`; see `seeds.SeedsLoss`). Teachers are
        no parameters, so that they stay what they are.
    """
    teacher = jax.tree.map(jnp.copy, ensemble.state)
    rest = {"student": ensemble.state["rest"], "teacher": teacher}
    state = {"params": ensemble.params, "rest": rest}
    return dataclasses.replace(ensemble, state=state, graph=_PairGraph(ensemble.graph))


def finish_distillation(pairs: Ensemble) -> Ensemble:
    """The students of an ensemble of pairs, as an ensemble like that of the teachers.

    Raises:
        TypeError: if it holds no pairs.
    """
    if not isinstance(pairs.graph, _PairGraph):
        raise TypeError(
            "these members are no pairs of student and teacher; start_distillation"
            " makes them."
        )
    state = {"params": pairs.params, "rest": pairs.state["rest"]["student"]}
    return dataclasses.replace(pairs, state=state, graph=pairs.graph.graph)


@dataclasses.dataclass
class StudentAndTeacher:
    """Two networks of one architecture.

    Attributes:
        student: learns.
        teacher: does not.
        teacher_state: what it was made from.
    """

    student: Any
    teacher: Any
    teacher_state: Any


@dataclasses.dataclass(frozen=True)
class _PairGraph:
    """The static half of a student and its teacher, of one graph."""

    graph: Any

    def merge(self, state, *, train):
        rest = state["rest"]
        student = {"params": state["params"], "rest": rest["student"]}
        return StudentAndTeacher(
            self.graph.merge(student, train=train),
            self.graph.merge(rest["teacher"], train=False),
            rest["teacher"],
        )

    def rest(self, model):
        return {
            "student": self.graph.rest(model.student),
            "teacher": model.teacher_state,
        }
