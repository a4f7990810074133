"""Averages along one training run: EMA, SWA, LAWA and SWAG, one for each member.

Each is a pair of pure functions of one member, `init(params)` and `update(state,
params)`, called after every optimizer step, and `mean(state)`. `fit(averages={"ema":
EMA(0.99)})` keeps them beside the weights of every member, in the same program and the
same checkpoints. Batch statistics belong to the weights that were trained:
`recompute_statistics` measures those of an average.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ensjax.ensemble import Ensemble
from ensjax.mapping import map_members
from ensjax.members import num_members
from ensjax.weight_space.leaves import is_mixed, wide


def _zeros(params):
    return jax.tree.map(lambda x: jnp.zeros_like(wide(x)) if is_mixed(x) else x, params)


def _combine(fn, *trees):
    """`fn` of floating leaves in float32; of others the last tree's."""
    return jax.tree.map(
        lambda *xs: fn(*map(wide, xs)) if is_mixed(xs[-1]) else xs[-1], *trees
    )


def _like(tree, params):
    return jax.tree.map(lambda x, p: x.astype(p.dtype), tree, params)


@dataclasses.dataclass(frozen=True)
class EMA:
    """Exponential moving average of the weights.

        e_t = d e_{t-1} + (1 - d) theta_t,  e_0 = 0,  mean = e_t / (1 - d^t)

    or, with `warm_up`, from e_1 = theta_1 with d_t = min(d, (1 + t) / (10 + t)).

    Attributes:
        decay: d, above 0 and below 1.
        warm_up: start with a short memory that grows, instead of dividing by 1 - d^t.

    Source: Polyak and Juditsky 1992; the division as in Kingma and Ba 2015,
    arXiv:1412.6980, section 3.
    """

    decay: float = 0.999
    warm_up: bool = False

    def __post_init__(self):
        if not 0 < self.decay < 1:
            raise ValueError(f"decay must be above 0 and below 1; got {self.decay}.")

    def init(self, params: Any) -> dict[str, Any]:
        """The state before the first step."""
        return {"count": jnp.int32(0), "total": _zeros(params)}

    def update(self, state: dict[str, Any], params: Any) -> dict[str, Any]:
        """The state after a step that gave `params`."""
        count = state["count"] + 1
        decay = jnp.float32(self.decay)
        if self.warm_up:
            t = count.astype(jnp.float32)
            decay = jnp.where(t > 1, jnp.minimum(decay, (1 + t) / (10 + t)), 0.0)
        total = _combine(
            lambda e, x: decay * e + (1 - decay) * x, state["total"], params
        )
        return {"count": count, "total": total}

    def mean(self, state: dict[str, Any]) -> Any:
        """The average, in float32; NaN before the first step."""
        if self.warm_up:
            return state["total"]
        weight = 1 - jnp.float32(self.decay) ** state["count"]
        return _combine(lambda e: e / weight, state["total"])


@dataclasses.dataclass(frozen=True)
class SWA:
    """Mean of the weights at every so many steps from some step on.

    Attributes:
        start_step: steps before the first weights that count.
        every_steps: steps between weights that count.

    Source: Izmailov et al. 2018, arXiv:1803.05407, algorithm 1.
    """

    start_step: int
    every_steps: int = 1

    def __post_init__(self):
        _check_steps(self.start_step, self.every_steps)

    def init(self, params: Any) -> dict[str, Any]:
        """The state before the first step."""
        return {
            "step": jnp.int32(0),
            "count": jnp.int32(0),
            "mean": _zeros(params),
        }

    def update(self, state: dict[str, Any], params: Any) -> dict[str, Any]:
        """The state after a step that gave `params`."""
        step, counts = _due(state["step"], self.start_step, self.every_steps)
        count = state["count"] + counts
        share = counts / jnp.maximum(count, 1)
        # A difference times a share: a running mean of equal weights stays at them.
        mean = _combine(lambda m, x: m + share * (x - m), state["mean"], params)
        return {"step": step, "count": count, "mean": mean}

    def mean(self, state: dict[str, Any]) -> Any:
        """The mean, in float32; NaN if no step has counted."""
        return _known(state["count"], state["mean"])


@dataclasses.dataclass(frozen=True)
class LAWA:
    """Mean of the last k weights that were taken, and these weights themselves.

    Attributes:
        num_checkpoints: k, how many are held.
        every_steps: steps between them.
        start_step: steps before the first.

    Source: Kaddour 2022, Stop wasting my time! Latest weight averaging,
    arXiv:2209.14981.
    """

    num_checkpoints: int = 6
    every_steps: int = 1
    start_step: int = 0

    def __post_init__(self):
        _check_steps(self.start_step, self.every_steps)
        if self.num_checkpoints < 1:
            raise ValueError(
                f"num_checkpoints must be at least 1; got {self.num_checkpoints}."
            )

    def init(self, params: Any) -> dict[str, Any]:
        """The state before the first step."""
        return {
            "step": jnp.int32(0),
            "count": jnp.int32(0),
            "ring": _ring(params, self.num_checkpoints),
        }

    def update(self, state: dict[str, Any], params: Any) -> dict[str, Any]:
        """The state after a step that gave `params`."""
        step, counts = _due(state["step"], self.start_step, self.every_steps)
        ring = _put(state["ring"], params, state["count"], counts)
        return {"step": step, "count": state["count"] + counts, "ring": ring}

    def mean(self, state: dict[str, Any]) -> Any:
        """The mean of what is held, in float32; NaN if nothing is."""
        held = jnp.minimum(state["count"], self.num_checkpoints)
        return _known(
            held,
            _combine(
                lambda ring: jnp.sum(ring, axis=0) / jnp.maximum(held, 1),
                state["ring"],
            ),
        )


@dataclasses.dataclass(frozen=True)
class SWAG:
    """A Gaussian around the SWA mean: a diagonal, and the last K deviations.

        N(mean, scale (diag(var) + D D^T / (K - 1))),  var = max(mean of squares -
        mean^2, 1e-30),  D_i = theta_i - mean_i with the mean after theta_i

    A scale of 1/2 is the paper's.

    Attributes:
        start_step: steps before the first weights that count.
        every_steps: steps between weights that count.
        num_columns: K; 0 keeps the diagonal alone.

    Source: Maddox et al. 2019, A simple baseline for Bayesian uncertainty in deep
    learning, arXiv:1902.02476, algorithm 1 and equation 1.
    """

    start_step: int
    every_steps: int = 1
    num_columns: int = 20

    def __post_init__(self):
        _check_steps(self.start_step, self.every_steps)
        if self.num_columns < 0 or self.num_columns == 1:
            raise ValueError(
                "num_columns must be 0 (the diagonal alone) or at least 2; got"
                f" {self.num_columns}."
            )

    def init(self, params: Any) -> dict[str, Any]:
        """The state before the first step."""
        state = {
            "step": jnp.int32(0),
            "count": jnp.int32(0),
            "mean": _zeros(params),
            "variance": _zeros(params),
        }
        if self.num_columns:  # Orbax saves no array without entries.
            state["ring"] = _ring(params, self.num_columns)
        return state

    def update(self, state: dict[str, Any], params: Any) -> dict[str, Any]:
        """The state after a step that gave `params`."""
        step, counts = _due(state["step"], self.start_step, self.every_steps)
        count = state["count"] + counts
        share = counts / jnp.maximum(count, 1)
        mean = _combine(lambda m, x: m + share * (x - m), state["mean"], params)
        # Welford's form of the mean of squares minus the squared mean, which would
        # leave rounding of the weights themselves where they hardly move.
        variance = _combine(
            lambda v, old, new, x: v + share * ((x - old) * (x - new) - v),
            state["variance"],
            state["mean"],
            mean,
            params,
        )
        new = {"step": step, "count": count, "mean": mean, "variance": variance}
        if self.num_columns:
            deviation = _combine(lambda m, x: x - m, mean, params)
            new["ring"] = _put(state["ring"], deviation, state["count"], counts)
        return new

    def mean(self, state: dict[str, Any]) -> Any:
        """The mean, in float32; NaN if no step has counted."""
        return _known(state["count"], state["mean"])

    def sample(
        self, state: dict[str, Any], key: jax.Array, *, scale: float = 0.5
    ) -> Any:
        """One draw of the weights, in float32; NaN if no step has counted.

        With k columns so far, fewer than K, their sum is divided by the root of k - 1
        in place of K - 1; with fewer than two the diagonal alone is drawn from.

        Args:
            state: of one member.
            key: a random key.
            scale: of the covariance; its root multiplies the deviation.
        """
        root = jnp.sqrt(jnp.float32(scale))
        held = jnp.minimum(state["count"], self.num_columns)
        z_key, column_key = jax.random.split(key)
        z = jax.random.normal(column_key, (self.num_columns,))
        columns = jnp.where(held > 1, z / jnp.sqrt(jnp.maximum(held - 1, 1)), 0.0)
        names = iter(range(len(jax.tree.leaves(state["mean"]))))

        def draw(mean, variance, *ring):
            own = jax.random.fold_in(z_key, next(names))
            noise = jnp.sqrt(jnp.maximum(variance, 1e-30)) * jax.random.normal(
                own, mean.shape
            )
            for rows in ring:
                noise = noise + jnp.tensordot(columns, rows, axes=1)
            return mean + root * noise

        trees = [state[name] for name in ("mean", "variance", "ring") if name in state]
        drawn = jax.tree.map(lambda m, *x: draw(m, *x) if is_mixed(m) else m, *trees)
        return _known(state["count"], drawn)


def averaged(ensemble: Ensemble, average: Any, states: Any) -> Ensemble:
    """The ensemble with every member's average in place of its weights (compiled).

    Batch statistics stay what they were; see `recompute_statistics`.

    Args:
        ensemble: what `fit` returned.
        average: `EMA`, `SWA`, `LAWA` or `SWAG`.
        states: its states, leaves `[member, ...]`, such as `log.averages["ema"]`.

    Raises:
        ValueError: if there are other members than in the ensemble.
    """
    _check_members(ensemble, states)
    mean = map_members(_Mean(average), kinds=("member", "member"), mesh=ensemble.mesh)
    params = mean(states, ensemble.params)
    state = {**ensemble.state, "params": params}
    return dataclasses.replace(ensemble, state=state).on_mesh(ensemble.mesh)


def swag_members(
    ensemble: Ensemble,
    swag: SWAG,
    states: Any,
    *,
    num_samples: int,
    seed: int = 0,
    scale: float = 0.5,
) -> Ensemble:
    """An ensemble of draws from every member's Gaussian (compiled).

    Args:
        ensemble: what `fit` returned, M members.
        swag: the `SWAG` that was fitted.
        states: its states, leaves `[member, ...]`.
        num_samples: S, draws of each member.
        seed: a draw depends on it, the member's id and its own number alone.
        scale: of the covariance.

    Returns:
        M S members, the draws of the first member first, with ids 0, 1, ... Their
        batch statistics are those of the member; see `recompute_statistics`.

    Raises:
        ValueError: if `num_samples` is below 1, `scale` is negative, or there are other
            members than in the ensemble.
    """
    _check_members(ensemble, states)
    if num_samples < 1 or not scale >= 0:
        raise ValueError(
            "num_samples must be at least 1 and scale at least 0; got"
            f" {num_samples} and {scale}."
        )
    count = ensemble.num_members
    rows = jnp.repeat(jnp.arange(count), num_samples)

    def repeated(tree):
        return jax.tree.map(lambda x: jnp.asarray(x)[rows], tree)

    sample = map_members(
        _Sample(swag),
        kinds=("member", "member", "member", "member", "shared", "shared"),
        mesh=ensemble.mesh,
    )
    params = sample(
        repeated(states),
        repeated(ensemble.params),
        ensemble.member_ids[rows],
        jnp.tile(jnp.arange(num_samples), count),
        jnp.uint32(seed),
        jnp.float32(scale),
    )
    state = {"params": params, "rest": repeated(ensemble.state["rest"])}
    ids = jnp.arange(count * num_samples, dtype=jnp.int32)
    drawn = dataclasses.replace(ensemble, state=state, member_ids=ids)
    return drawn.on_mesh(ensemble.mesh)


@dataclasses.dataclass(frozen=True)
class _Mean:
    average: Any

    def __call__(self, state, params):
        return _like(self.average.mean(state), params)


@dataclasses.dataclass(frozen=True)
class _Sample:
    swag: SWAG

    def __call__(self, state, params, member_id, number, seed, scale):
        key = jax.random.key(seed, impl="threefry2x32")
        key = jax.random.fold_in(jax.random.fold_in(key, member_id), number)
        return _like(self.swag.sample(state, key, scale=scale), params)


def _check_members(ensemble, states):
    if num_members(states) != ensemble.num_members:
        raise ValueError(
            f"states hold {num_members(states)} members, the ensemble"
            f" {ensemble.num_members}."
        )


def _check_steps(start_step, every_steps):
    if start_step < 0 or every_steps < 1:
        raise ValueError(
            "start_step must be at least 0 and every_steps at least 1; got"
            f" {start_step} and {every_steps}."
        )


def _due(step, start_step, every_steps):
    """The number of the step that was made, and 1 if its weights count, else 0."""
    step = step + 1
    after = step - start_step
    return step, ((after > 0) & (after % every_steps == 0)).astype(jnp.int32)


def _ring(params, size):
    def room(x):
        x = wide(x)
        return jnp.zeros((size, *x.shape), x.dtype)

    return jax.tree.map(lambda x: room(x) if is_mixed(x) else x, params)


def _put(ring, params, count, counts):
    """`params` at the place of the oldest entry, if they count."""

    def put(rows, x):
        place = count % rows.shape[0]
        kept = jax.lax.dynamic_index_in_dim(rows, place, 0, keepdims=False)
        x = jnp.where(counts > 0, x, kept)
        return jax.lax.dynamic_update_index_in_dim(rows, x, place, 0)

    return _combine(put, ring, params)


def _known(count, tree):
    return _combine(lambda x: jnp.where(count > 0, x, jnp.nan), tree)
