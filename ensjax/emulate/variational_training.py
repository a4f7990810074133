"""Training of `VariationalForecaster`: CRPS of its members and a KL to a posterior.

    loss = sum_s w_s (R({x_m}, truth) + lambda mean_m KL(p(z | X_m), q(z | x_m, truth)))

over steps s with weights of sum 1. R is the CRPS of the members x_m, or their mean
absolute or squared error, and X_m are the states that member m starts the step from.
The posterior q sees the truth that a step leads to. It is a network of training alone:
members are drawn from the prior p, as in a forecast, and `emulators_of` leaves q
behind.

Source: Zhong et al. 2024, arXiv:2405.05925 (FuXi-ENS). The paper leaves open whether
training draws from p or q and which way the KL goes: both are arguments.
"""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from ensjax.emulate.variational import (
    GaussianField,
    VariationalForecaster,
    gaussian_kl,
    step_noise,
)
from ensjax.ensemble import Ensemble
from ensjax.graphs import NnxGraph
from ensjax.ops.side_by_side import side_by_side
from ensjax.train.identity import LATER
from ensjax.train.kernel_crps import kernel_crps
from ensjax.train.losses import example_keys, weighted_mean
from ensjax.train.noise_members import NoiseCrps, check_count
from ensjax.train.rollouts import (
    check_element_weights,
    check_fill,
    check_weights_fit,
    keep_step_weights,
)

RECONSTRUCTIONS = ("crps", "l1", "mse")
DIRECTIONS = ("prior_posterior", "posterior_prior")
SOURCES = ("prior", "posterior")
# Of the draw of a window's first time; members never have such a number.
_START = 2**32 - 1


class VariationalPair(nnx.Module):
    """What is trained: the emulator, and the posterior that it does not have.

    Args:
        emulator: `VariationalForecaster`.
        posterior: the perturbation from the newest state and the truth side by side,
            `posterior([*space, 2 channel]) -> GaussianField` of the prior's channels.
            None: a prior that has no parameters to pull, such as
            `ConstantPerturbation`; there is then no KL.
    """

    def __init__(
        self,
        emulator: VariationalForecaster,
        posterior: Callable[[jax.Array], GaussianField] | None = None,
    ):
        self.emulator, self.posterior = emulator, posterior


def emulators_of(trained: Ensemble) -> Ensemble:
    """The emulators of an ensemble of `VariationalPair`, without their posteriors.

    Raises:
        TypeError: if it is an ensemble of something else.
    """
    pair = _pair_of(trained)
    if not isinstance(pair, VariationalPair):
        raise TypeError(
            "emulators_of takes an ensemble of VariationalPair, as it was trained; got"
            f" one of {type(pair).__name__}."
        )
    graphdef, params, rest = nnx.split(pair.emulator, nnx.Param, ...)
    state = {"params": params, "rest": rest}
    return dataclasses.replace(trained, state=state, graph=NnxGraph(graphdef))


def _pair_of(trained):
    """The model of a stack, all members at once; None if it is no nnx module."""
    graph, state = trained.graph, trained.state
    if not isinstance(graph, NnxGraph):
        return None
    return nnx.merge(graph.graphdef, state["params"], state["rest"])


@dataclasses.dataclass(frozen=True)
class VariationalLoss:
    """A loss of `fit` for a `VariationalPair`, of windows `[batch, time, *space,
    channel]`: the states that a forecast starts from, then `num_steps` truths. Of
    longer windows every case begins at a time drawn anew.

    Members have their own states from the second step on, and a perturbation of their
    own at each. The noise depends on the case's place in the global batch, the member's
    number and the step alone. Elements of a truth that are NaN do not count. Where a
    state that a forecast starts from is NaN, the networks are given `fill`, and again
    at each step, and nothing is trained there.

    A member's hyperparameters may hold "kl_weight" and "reconstruction" (its number in
    `RECONSTRUCTIONS`), so that one stack of networks is a sweep over both.

    Metrics, by step from 1: "kl_1" (nats an element), "sigma_1" (mean deviation of the
    prior, in units of a step's change), "ssr_1" (spread over error of the members,
    1 if reliable) and "score_1", the reconstruction.

    Attributes:
        num_members: M, in training.
        num_steps: of the forecast; one compilation for each length.
        num_scored: channels of a state that have a truth, the first ones; None: all.
            What a window holds of the others after its first states is not looked at.
        step_weights: of the steps, of any sum; None weighs them equally.
        element_weights: u, nested tuples that broadcast to one state `[*space,
            channel]`, such as `train.area_channel_weights`. Every mean over elements is
            then weighted: of the score, of the metrics, and of the KL, whose elements
            have the weights of their place and channel in each of the states. None
            weighs them equally.
        reconstruction: "crps", "l1" or "mse".
        estimator, alpha, form: of `kernel_crps`.
        kl_weight: lambda.
        kl_direction: "prior_posterior", KL(p || q), or "posterior_prior".
        draw_from: "prior", or "posterior": members of training then know the truth, and
            those of forecasts do not.
        axis: a mesh axis that splits the members, as of `NoiseCrps`.
        remat: whether a step is computed again for the gradient.
        fill: what a missing value is taken for; 0 is the mean of standardised values.

    Raises:
        ValueError: for words and numbers that do not fit, weights that are negative,
            not finite or all 0, and a fill that is not finite; on the call, for windows
            of another length.
        TypeError: if `element_weights` are no tuples.
    """

    num_members: int = 8
    num_steps: int = 1
    num_scored: int | None = None
    step_weights: tuple[float, ...] | None = None
    element_weights: tuple[Any, ...] | None = dataclasses.field(
        default=None, metadata=LATER
    )
    reconstruction: str = "crps"
    estimator: str = "fair"
    alpha: float = 0.95
    form: str = "auto"
    kl_weight: float = 1e-4
    kl_direction: str = "prior_posterior"
    draw_from: str = "prior"
    axis: str | None = None
    remat: bool = False
    fill: float = 0.0

    takes_hyper = True
    takes_missing: ClassVar[bool] = True

    def __post_init__(self):
        for name, known in (
            ("reconstruction", RECONSTRUCTIONS),
            ("kl_direction", DIRECTIONS),
            ("draw_from", SOURCES),
        ):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} must be one of {', '.join(known)}; got"
                    f" {getattr(self, name)!r}."
                )
        if self.num_scored is not None:
            check_count("num_scored", self.num_scored)
        check_count("num_steps", self.num_steps)
        keep_step_weights(self)
        check_element_weights(self.element_weights)
        check_fill(self.fill)
        if not self.kl_weight >= 0:
            raise ValueError(f"kl_weight must not be negative; got {self.kl_weight}.")
        _ = self._members  # checks the words and numbers of the CRPS

    @property
    def _weights(self):
        """u as an array, or None."""
        if self.element_weights is None:
            return None
        return jnp.asarray(self.element_weights, jnp.float32)

    @property
    def _members(self) -> NoiseCrps:
        """Makes the members, on one device or along `axis`."""
        options = dict(alpha=self.alpha, form=self.form, axis=self.axis)
        return NoiseCrps(self.num_members, _own_key, self.estimator, **options)

    def __call__(self, model, batch, key, weight=None, *, hyper=None):
        """The mean loss and metrics of the batch; `weight` `[batch]` weighs its rows.

        Args:
            model: a `VariationalPair`.
            batch: windows `[batch, time, *space, channel]`.
            key: of the network and step.
            weight: see `losses.weighted_mean`.
            hyper: the network's own; see above.

        Raises:
            TypeError: if the model is none.
            ValueError: if the windows are of another length, or the prior is drawn from
                a posterior that is not there.
        """
        self._check_model(model)
        self._check_windows(batch, model.emulator.num_states)
        numbers = hyper if isinstance(hyper, dict) else {}
        model = self._members.prepare(model)
        losses, found = jax.vmap(lambda *one: self._of_case(model, numbers, *one))(
            example_keys(key, batch.shape[0]), batch
        )
        return weighted_mean(losses, weight), self._metrics(found)

    def check(self, windows: Any, ensemble: Any = None) -> None:
        """Raises for windows, or a stack, that cannot be trained, before any work.

        Args:
            windows: arrays `[case, time, *space, channel]`.
            ensemble: the stack, if known; says how many states a forecast starts from.

        Raises:
            ValueError, TypeError: as on the call.
        """
        num_states = 1
        if ensemble is not None:
            pair = _pair_of(ensemble)
            self._check_model(pair)
            num_states = pair.emulator.num_states
        self._check_windows(windows, num_states)

    def _check_model(self, model):
        if not isinstance(model, VariationalPair):
            raise TypeError(
                "VariationalLoss trains a VariationalPair, an emulator and its"
                f" posterior; got {type(model).__name__}."
            )
        if model.posterior is None and self.draw_from == "posterior":
            raise ValueError('draw_from="posterior" needs a posterior; it is None.')
        channels = model.emulator.num_channels
        if self.num_scored is not None and self.num_scored > channels:
            raise ValueError(
                f"num_scored must be at most the {channels} channels of a state; got"
                f" {self.num_scored}."
            )

    def _check_windows(self, windows, num_states):
        length = num_states + self.num_steps
        shape = getattr(windows, "shape", ())
        if len(shape) < 4 or shape[1] < length:
            raise ValueError(
                f"windows must be [batch, {length} or more, *space, channel],"
                f" {num_states} states and {self.num_steps} truths; got shape {shape}."
            )
        check_weights_fit(self.element_weights, tuple(shape[2:]))

    def _of_case(self, model, numbers, key, window):
        """The loss of one window, and what its metrics are made of, `[step]` each."""
        num_states = model.emulator.num_states
        needed = num_states + self.num_steps
        if window.shape[0] > needed:
            last = window.shape[0] - needed
            draw = jax.random.fold_in(key, jnp.uint32(_START))
            first = jax.random.randint(draw, (), 0, last + 1)
            window = jax.lax.dynamic_slice_in_dim(window, first, needed)
        start, truth = side_by_side(window[:num_states]), window[num_states:]
        # Missing once is missing always: nothing is trained to say it.
        is_missing = jnp.isnan(window[:num_states]).any(axis=0)
        start = jnp.where(jnp.tile(is_missing, num_states), jnp.nan, start)
        truth = self._known(jnp.where(is_missing, jnp.nan, truth))
        members, kl, sigma = self._rolled(model, key, start, truth)
        is_there = ~jnp.isnan(truth)
        # Before and after: a NaN that is only masked afterwards has a NaN derivative.
        filled = jnp.where(is_there, truth, 0.0)
        per_step = tuple(range(1, truth.ndim))

        def mean(values):
            return _mean_of(values, is_there, self._weights, per_step)

        score = self._score(members, filled, numbers, mean)
        weights = jnp.asarray(self.step_weights or (1.0,) * self.num_steps)
        kl_weight = numbers.get("kl_weight", self.kl_weight)
        loss = jnp.sum(weights * (score + kl_weight * kl)) / jnp.sum(weights)
        skill = mean(jnp.square(members.mean(axis=0) - filled))
        ddof = min(1, self.num_members - 1)
        spread = mean(jnp.var(members, axis=0, ddof=ddof))
        found = dict(score=score, kl=kl, sigma=sigma, skill=skill, spread=spread)
        return loss, jax.lax.stop_gradient(found)

    def _known(self, truth):
        """`truth`, NaN in channels that have none."""
        if self.num_scored is None:
            return truth
        has_truth = jnp.arange(truth.shape[-1]) < self.num_scored
        has_truth = has_truth.reshape(*(1,) * (truth.ndim - 1), -1)
        return jnp.where(has_truth, truth, jnp.nan)

    def _score(self, members, truth, numbers, mean):
        """The reconstruction of every step, `[step]`."""
        away = members - truth[None]
        options = dict(estimator=self.estimator, alpha=self.alpha, form=self.form)
        scores = {
            "crps": lambda: kernel_crps(members, truth, **options),
            "l1": lambda: jnp.mean(jnp.abs(away), axis=0),
            "mse": lambda: jnp.mean(jnp.square(away), axis=0),
        }
        if "reconstruction" not in numbers:
            return mean(scores[self.reconstruction]())
        every = jnp.stack([mean(scores[name]()) for name in RECONSTRUCTIONS])
        return every[numbers["reconstruction"]]

    def _rolled(self, model, key, start, truth):
        """Members `[member, step, *space, channel]`, and KL and sigma `[step]`.

        A member's forecast and its own KL and sigma travel together, as one row.
        """
        size = truth.size

        def of_member(own_key, _):
            forecast, kl, sigma = self._of_member(model, own_key, start, truth)
            return jnp.concatenate([forecast.reshape(-1), kl, sigma])

        shape = (size + 2 * self.num_steps,)
        rows = self._members.members(of_member, key, shape, None)
        forecasts = rows[:, :size].reshape(-1, *truth.shape)
        kl, sigma = jnp.split(rows[:, size:].mean(axis=0), 2)
        return forecasts, kl, sigma

    def _of_member(self, model, key, start, truth):
        graph, state = nnx.split(model)
        is_there, is_missing = ~jnp.isnan(truth), jnp.isnan(start)

        def step(state, states, truth, is_there, number):
            model = nnx.merge(graph, state)
            states = jnp.where(is_missing, self.fill, states)
            there = is_there, ~is_missing
            return self._step(model, key, number, states, truth, there)

        step = jax.checkpoint(step, static_argnums=4) if self.remat else step
        states, found = start, []
        # Written out: the states of the first step are those of all members, and its
        # perturbation is then computed once for all of them.
        for number in range(self.num_steps):
            states, *values = step(
                state, states, truth[number], is_there[number], number
            )
            found.append((model.emulator.newest(states), *values))
        return tuple(jnp.stack(values) for values in zip(*found, strict=True))

    def _step(self, model, key, number, states, truth, there):
        """States one step later, KL and sigma (means over elements that there are).

        `there` says so of the truth and of the states.
        """
        is_there, has_state = there
        emulator = model.emulator
        weights = self._weights
        if weights is not None:  # of each of the states side by side
            one = (*states.shape[:-1], emulator.num_channels)
            weights = jnp.tile(jnp.broadcast_to(weights, one), emulator.num_states)

        def mean(values):
            return _mean_of(values, has_state, weights, None)

        prior, kl = emulator.prior(states), jnp.float32(0)
        drawn = prior
        if model.posterior is not None:
            newest = emulator.newest(states)
            seen = jnp.where(is_there, truth, newest)
            posterior = model.posterior(jnp.concatenate([newest, seen], axis=-1))
            pair = (prior, posterior)
            pair = pair if self.kl_direction == "prior_posterior" else pair[::-1]
            kl = mean(gaussian_kl(*pair))
            drawn = posterior if self.draw_from == "posterior" else prior
        noise = step_noise(key, number, states.shape)
        return emulator.advance(states, drawn.at(noise)), kl, mean(prior.sigma)

    def _metrics(self, found):
        """Means over the batch, by name and step; SSR is of sums over the batch."""
        found = {name: values.mean(axis=0) for name, values in found.items()}
        with contextlib.suppress(NameError):  # outside the mesh there is one shard
            found = jax.lax.pmean(found, "data")
        correction = (self.num_members + 1) / self.num_members
        tiny = jnp.finfo(jnp.float32).tiny
        ratio = correction * found["spread"] / jnp.maximum(found["skill"], tiny)
        values = {name: found[name] for name in ("score", "kl", "sigma")}
        values["ssr"] = jnp.sqrt(ratio)
        return {
            f"{name}_{step + 1}": value[step]
            for name, value in values.items()
            for step in range(self.num_steps)
        }


def _mean_of(values, is_there, weights, axis):
    """The mean over what there is; 0 of nothing."""
    if weights is None:
        total = jnp.sum(jnp.where(is_there, values, 0.0), axis=axis)
        return total / jnp.maximum(jnp.sum(is_there, axis=axis), 1)
    weights = jnp.broadcast_to(weights, is_there.shape)
    total = jnp.sum(jnp.where(is_there, values * weights, 0.0), axis=axis)
    weight = jnp.sum(jnp.where(is_there, weights, 0.0), axis=axis)
    return total / jnp.where(weight == 0, 1.0, weight)


def _own_key(key, shape):
    """In the place of a member's noise: its key, of which every step draws."""
    del shape
    return key
