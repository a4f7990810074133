"""Losses of forecasts over several steps of one emulator, for `fit`.

An emulator is a model of one member, `model(noise, state) -> next state`, with states
`[*space, channel]`; the noise is None for a deterministic one. One with a true
`flags_first_step` is also told `is_first`, a boolean, of each step. `RolloutLoss`
unrolls it from the first state of a window and scores every step against the window's
next states; what a score is, `NoiseCrps` (members of the noise) or `PointError` (one
forecast) says. The gradient goes back through all steps.

Source: Lang et al. 2024, arXiv:2412.15832 (AIFS-CRPS), section 2; Bonev et al. 2025,
arXiv:2507.12144 (FourCastNet 3).
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.ops.side_by_side import missing_places, side_by_side
from ensjax.ops.sphere_split import own_block
from ensjax.train.identity import LATER
from ensjax.train.kernel_crps import magnitude
from ensjax.train.losses import example_keys, weighted_mean
from ensjax.train.noise_members import (
    NoiseCrps,
    all_rows,
    check_count,
    shared_model,
)

# Of the draw of a window's first time; members of the noise never have such a number.
_START = 2**32 - 1


@dataclasses.dataclass(frozen=True)
class PointError:
    """The error of one forecast without noise, in the place of a `NoiseCrps`.

    Attributes:
        kind: "squared" or "absolute".
        latitude_axis: "model": the latitudes of a case `[..., lat, lon, channel]` are
            split over that axis of the mesh, and the model is one of its rows; as of
            `SphericalCrps`.

    Raises:
        ValueError: for another kind or axis.
    """

    kind: str = "squared"
    latitude_axis: str | None = None
    axis: ClassVar[None] = None

    def __post_init__(self):
        if self.kind not in ("squared", "absolute"):
            raise ValueError(f'kind is "squared" or "absolute"; got {self.kind!r}.')
        if self.latitude_axis not in (None, "model"):
            raise ValueError(
                f'latitude_axis must be None or "model"; got {self.latitude_axis!r}.'
            )

    def prepare(self, model: Any) -> Any:
        """As `NoiseCrps.prepare`."""
        return shared_model(model, self.latitude_axis)

    def elements(self, model, key, target, condition) -> jax.Array:
        """The error of every element of one case, 0 where it has no target."""
        del key
        axis = self.latitude_axis
        is_there = ~jnp.isnan(target)
        # Before and after, as in `NoiseCrps`.
        whole = jnp.where(is_there, target, 0.0)
        own, start = (own_block(x, axis, dim=-3) for x in (whole, condition))
        error = model(None, start) - own
        values = error**2 if self.kind == "squared" else magnitude(error)
        num_rows = 0 if axis is None else target.shape[-3]
        return jnp.where(is_there, all_rows(axis, values, num_rows), 0.0)


@dataclasses.dataclass(frozen=True)
class RolloutLoss:
    """A loss of `fit`: forecasts of several steps, each scored, weighted and summed.

    Called as `loss(model, windows, key)` with windows `[batch, time, *space, channel]`,
    standardised: states at consecutive steps, of which one more is needed than the
    rollout is long. Of longer windows every case begins at a time drawn anew.

        L = sum_s w_s sum_e u_e score_se / sum_s w_s sum_e u_e

    over the steps s and the elements e of a state that have a target. A target that is
    NaN does not count and has no gradient. Where the first state is NaN, the emulator
    is given `fill` there, and again at each step, whatever it said: no step is trained
    to say anything at such a place.

    Of an emulator that starts from several states (`nn.LastStates`) a window holds as
    many before the first target, and a state that is missing at one of these times is
    missing at all of them.

    The noise of a member depends on the case's place in the global batch, on the
    member's number and on the step alone.

    Metrics: "first_step" and "last_step", the mean score of each.

    Attributes:
        num_steps: of the rollout.
        score: `NoiseCrps` or `PointError`. With `NoiseCrps(axis="model")` members are
            split over that axis of the mesh.
        step_weights: w, one for each step; None weighs them equally.
        element_weights: u, nested tuples that broadcast to `[*space, channel]`, such as
            weights of area times those of variables (`area_channel_weights`); None
            weighs them equally.
        remat: compute each step again on the way back, instead of keeping what is
            inside of it: memory for states, not for steps.
        random_start: False begins every case at its window's first time.
        fill: what a missing value of the first state is taken for; 0 is the mean.
        fair_hyper: the name of a hyperparameter with the weight of the fair estimator
            of every member of the stack (0 standard, 1 fair), in the place of that of
            `score`; members may then differ in it.
        task_hyper: the name of a hyperparameter that says which of several tasks a
            member of the stack is trained on; windows are then `[batch, task, time,
            *space, channel]`. Seeds of an experiment with data of their own are trained
            as one stack with it.
        num_states: that a step starts from; the model is then given them side by side,
            `[*space, num_states * channel]`, the oldest first, and returns the next
            ones so.

    Raises:
        ValueError: for sizes that do not fit, weights that are negative, not finite or
            all 0, and a fill that is not finite; on the call, for windows that do not
            fit.
        TypeError: if `element_weights` are no tuples.

    Example:
        >>> from ensjax.train import NoiseCrps, RolloutLoss, WhiteNoise
        >>> score = NoiseCrps(4, noise=WhiteNoise(2))
        >>> loss = RolloutLoss(2, score, step_weights=(1, 0.5))
    """

    num_steps: int
    score: NoiseCrps | PointError
    step_weights: tuple[float, ...] | None = None
    element_weights: tuple[Any, ...] | None = None
    remat: bool = True
    random_start: bool = True
    fill: float = 0.0
    fair_hyper: str | None = None
    task_hyper: str | None = None
    num_states: int = dataclasses.field(default=1, metadata=LATER)
    takes_missing: ClassVar[bool] = True

    def __post_init__(self):
        check_count("num_steps", self.num_steps)
        check_count("num_states", self.num_states)
        keep_step_weights(self)
        check_element_weights(self.element_weights)
        check_fill(self.fill)
        has_members = isinstance(self.score, NoiseCrps) and self.score.num_members > 1
        if self.fair_hyper is not None and not has_members:
            raise ValueError(
                "fair_hyper is the weight of an estimator of NoiseCrps, of at least two"
                f" members; the score is {self.score}."
            )

    @property
    def takes_hyper(self) -> bool:
        """Whether `fit` is to give the loss the member's hyperparameters."""
        return not (self.fair_hyper is None and self.task_hyper is None)

    @property
    def axis(self) -> str | None:
        """The mesh axis over which members or latitudes are split, if any."""
        return getattr(self.score, "latitude_axis", None) or self.score.axis

    def __call__(self, model, windows, key, weight=None, *, hyper=None):
        """The mean loss of the batch; `weight` `[batch]` weighs its cases."""
        self.check(windows)
        if self.task_hyper is not None:
            windows = windows[:, hyper[self.task_hyper]]
        fair = {} if self.fair_hyper is None else {"fair": hyper[self.fair_hyper]}
        if hasattr(self.score, "prepare"):
            model = self.score.prepare(model)
        sums, weights = jax.vmap(lambda *one: self._of_case(model, *one, **fair))(
            example_keys(key, windows.shape[0]), windows
        )  # [batch, step]
        step_weights = jnp.ones(self.num_steps)
        if self.step_weights is not None:
            step_weights = jnp.asarray(self.step_weights, jnp.float32)
        losses = _ratio(sums @ step_weights, weights @ step_weights)
        ends = [
            weighted_mean(_ratio(sums[:, s], weights[:, s]), weight) for s in (0, -1)
        ]
        names = ("first_step", "last_step")
        return weighted_mean(losses, weight), dict(zip(names, ends, strict=True))

    def forecast(self, model: Any) -> Callable[[Any, jax.Array], jax.Array]:
        """`forecast(noise, start) -> [step, *space, channel]` of one member.

        The noise has leaves `[step, ...]`, or is None; `start` may hold NaN. Of several
        states `start` has them side by side, and the last one of each step is returned.

        Raises:
            ValueError: if the model starts from another number of states.
        """
        fill, num_states = self.fill, self.num_states
        own = getattr(model, "num_states", num_states)
        if own != num_states:
            raise ValueError(
                f"the emulator starts from {own} states; num_states of the loss is"
                f" {num_states}."
            )
        told = {}
        if getattr(model, "flags_first_step", False):
            told["is_first"] = jnp.arange(self.num_steps) == 0

        def unrolled(noise, start):
            is_missing = missing_places(jnp.isnan(start), num_states)
            channels = start.shape[-1] // num_states

            def advance(state, of_step):
                noise, told = of_step
                state = model(noise, jnp.where(is_missing, fill, state), **told)
                return state, state if num_states == 1 else state[..., -channels:]

            if self.num_steps == 1:
                now = jax.tree.map(lambda x: x[0], (noise, told))
                return advance(start, now)[1][None]
            # Nothing is merged across the iterations of a loop.
            step = jax.checkpoint(advance, prevent_cse=False) if self.remat else advance
            return jax.lax.scan(step, start, (noise, told), length=self.num_steps)[1]

        return unrolled

    def _of_case(self, model, key, window, **fair):
        """Sums of weighted scores and of weights by step, `[step]` each."""
        before = self.num_states
        last = window.shape[0] - before - self.num_steps
        if last and self.random_start:
            first = jax.random.randint(
                jax.random.fold_in(key, jnp.uint32(_START)), (), 0, last + 1
            )
            window = jax.lax.dynamic_slice_in_dim(
                window, first, before + self.num_steps
            )
        start, target = window[0], window[before : before + self.num_steps]
        is_missing = jnp.isnan(start)
        if before > 1:
            start = side_by_side(window[:before])
            is_missing = jnp.isnan(window[:before]).any(axis=0)
        weights = jnp.ones(())
        if self.element_weights is not None:
            weights = jnp.asarray(self.element_weights, jnp.float32)
        weights = jnp.broadcast_to(weights, target.shape[1:])[None]
        target = jnp.where(is_missing[None], jnp.nan, target)
        score = self.score
        if isinstance(score, NoiseCrps):
            noise = NoiseOfSteps(score.noise)
            score = dataclasses.replace(score, noise=noise)
        values = score.elements(self.forecast(model), key, target, start, **fair)
        others = tuple(range(1, values.ndim))
        totals = jnp.sum(jnp.where(jnp.isnan(target), 0.0, weights), axis=others)
        return jnp.sum(values * weights, axis=others), totals

    def check(self, windows: Any, ensemble: Any = None) -> None:
        """Raises `ValueError` for windows that the loss cannot be trained on."""
        del ensemble
        has_tasks = self.task_hyper is not None
        if not hasattr(windows, "shape") or len(windows.shape) < 3 + has_tasks:
            axes = "[batch, task, time" if has_tasks else "[batch, time"
            found = getattr(windows, "shape", type(windows).__name__)
            raise ValueError(
                f"a rollout is trained on one array of windows {axes}, *space,"
                f" channel]; got {found}."
            )
        if not jnp.issubdtype(windows.dtype, jnp.floating):
            raise ValueError(f"windows must be floating; got {windows.dtype}.")
        times, *state = windows.shape[1 + has_tasks :]
        needed = self.num_states + self.num_steps
        if times < needed:
            of_states = f" from {self.num_states} states" if self.num_states > 1 else ""
            raise ValueError(
                f"a rollout of {self.num_steps} steps{of_states} needs windows of"
                f" {needed} times or more; these have {times}."
            )
        check_weights_fit(self.element_weights, tuple(state))


def check_fill(fill: float) -> None:
    """Raises `ValueError` unless what missing values are taken for is finite."""
    if not math.isfinite(fill):
        raise ValueError(f"fill must be finite; got {fill}.")


def check_step_weights(weights: tuple[float, ...] | None, num_steps: int) -> None:
    """Raises `ValueError` unless weights, or None, are those of the steps."""
    if weights is None:
        return
    if len(weights) != num_steps:
        raise ValueError(
            f"step_weights must be one for each of {num_steps} steps; got"
            f" {len(weights)}."
        )
    with np.errstate(over="ignore"):
        values = np.asarray(weights, np.float32)
    if not (values >= 0).all() or not 0 < values.sum() < np.inf:
        raise ValueError(
            f"step_weights must be finite, not negative, nor all 0; got {weights}."
        )


def keep_step_weights(loss: Any) -> None:
    """Checks a loss's `step_weights` and keeps them as a tuple, which can be hashed."""
    check_step_weights(loss.step_weights, loss.num_steps)
    if loss.step_weights is not None:
        own = tuple(float(x) for x in loss.step_weights)
        object.__setattr__(loss, "step_weights", own)


def check_element_weights(weights: Any, name: str = "element_weights") -> None:
    """Raises unless weights, or None, are nested tuples of numbers to weigh by.

    Args:
        weights: of elements, or of anything else.
        name: what they are called.

    Raises:
        ValueError: if one is negative or not finite, as float32, or all are 0; names
            the place.
        TypeError: if they cannot be hashed, as a loss of `fit` is.
    """
    if weights is None:
        return
    try:
        hash(weights)
    except TypeError:
        raise TypeError(
            f"{name} must be nested tuples, such as those of"
            f" `area_channel_weights`; got {type(weights).__name__}, or one inside."
        ) from None
    with np.errstate(over="ignore"):
        values = np.asarray(weights, np.float32)
    wrong = np.argwhere(~((values >= 0) & (values < np.inf)))
    if len(wrong):
        place = tuple(wrong[0].tolist())
        raise ValueError(
            f"{name} must be finite and not negative; at {place} of"
            f" {list(values.shape)} there is {values[place]}."
        )
    if not values.any():
        raise ValueError(f"{name} of {list(values.shape)} elements are all 0.")


def check_weights_fit(weights: Any, state: tuple[int, ...]) -> None:
    """Raises `ValueError` unless weights, or None, broadcast to a state's shape."""
    if weights is None:
        return
    shape = jnp.shape(jnp.asarray(weights))
    try:
        fits = jnp.broadcast_shapes(shape, state) == state
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"element_weights {shape} do not broadcast to a state {list(state)}."
        )


@dataclasses.dataclass(frozen=True)
class NoiseOfSteps:
    """The noise of one member at every step of a forecast, leaves `[step, ...]`.

    Attributes:
        noise: `noise(key, shape of a state) -> noise of a step`, drawn anew at each
            step; or a process in time with a method `of_steps(key, shape, num_steps)`,
            which then makes all of them.
    """

    noise: Callable[[jax.Array, tuple[int, ...]], Any]

    def __call__(self, key: jax.Array, shape: tuple[int, ...]) -> Any:
        """Of a forecast of shape `[step, *space, channel]`."""
        num_steps, *state = shape
        if hasattr(self.noise, "of_steps"):
            return self.noise.of_steps(key, tuple(state), num_steps)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(num_steps))
        return jax.vmap(lambda key: self.noise(key, tuple(state)))(keys)


def _ratio(total, weight):
    """`total / weight`, and 0 where there is no weight."""
    return total / jnp.where(weight == 0, 1.0, weight)
