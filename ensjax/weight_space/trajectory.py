"""Averages along one training run: EMA, SWA, LAWA and SWAG, one for each member.

Each is a pair of pure functions of one member, `init(params)` and `update(state,
params)`, called after every optimizer step, and `mean(state)`. Those that count from
some step on have `restart` too, for weights that take the place of others in a run.
`fit(averages={"ema": EMA(0.99)})` keeps them beside the weights of every member, in the
same program and the same checkpoints. Batch statistics belong to the weights that were
trained: `recompute_statistics` measures those of an average.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from ensjax.weight_space.leaves import is_mixed, wide


def _zeros(params):
    return jax.tree.map(lambda x: jnp.zeros_like(wide(x)) if is_mixed(x) else x, params)


def _combine(fn, *trees):
    """`fn` of floating leaves in float32; of others the last tree's."""
    return jax.tree.map(
        lambda *xs: fn(*map(wide, xs)) if is_mixed(xs[-1]) else xs[-1], *trees
    )


@dataclasses.dataclass(frozen=True)
class EMA:
    """Exponential moving average of the weights.

        e_t = e_{t-1} + (1 - d) (theta_t - e_{t-1}),  e_0 = 0,  mean = e_t / (1 - d^t)

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
        share = 1 - self.decay  # in float32 it would be off by 3e-8, often 0.1 % of it
        if self.warm_up:
            t = count.astype(jnp.float32)
            share = jnp.where(t > 1, jnp.maximum(share, 9 / (10 + t)), 1.0)
        total = _combine(lambda e, x: e + share * (x - e), state["total"], params)
        return {"count": count, "total": total}

    def mean(self, state: dict[str, Any]) -> Any:
        """The average, in float32; NaN before the first step."""
        if self.warm_up:
            return state["total"]

        def unbiased(e):
            # 1 - d^t, which loses its digits in float32 where d^t is near 1.
            weight = -jnp.expm1(state["count"].astype(e.dtype) * math.log(self.decay))
            return e / weight

        return _combine(unbiased, state["total"])


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
        mean = _running_mean(state["mean"], params, count, counts)
        return {"step": step, "count": count, "mean": mean}

    def restart(self, state: dict[str, Any], fresh: dict[str, Any]) -> dict[str, Any]:
        """`fresh`, the state before the first step, at the step of the run."""
        return fresh | {"step": state["step"]}

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

    def restart(self, state: dict[str, Any], fresh: dict[str, Any]) -> dict[str, Any]:
        """`fresh`, the state before the first step, at the step of the run."""
        return fresh | {"step": state["step"]}

    def checkpoints(self, state: dict[str, Any]) -> Any:
        """The weights that are held, leaves `[checkpoint, ...]`, the oldest first.

        After fewer than k the last places are empty. Leaves that are not floating are
        those of the last step, at each place.
        """
        held = jnp.minimum(state["count"], self.num_checkpoints)
        places = jnp.arange(self.num_checkpoints)
        places = (state["count"] - held + places) % self.num_checkpoints

        def in_order(x):
            if is_mixed(x):
                return x[places]
            return jnp.broadcast_to(x, (self.num_checkpoints, *x.shape))

        return jax.tree.map(in_order, state["ring"])

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
        mean = _running_mean(state["mean"], params, count, counts)
        share = 1 / jnp.maximum(count, 1)
        # Welford's form of the mean of squares minus the squared mean, which would
        # leave rounding of the weights themselves where they hardly move.
        variance = _combine(
            lambda v, old, new, x: jnp.where(
                counts > 0, v + share * ((x - old) * (x - new) - v), v
            ),
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

    def restart(self, state: dict[str, Any], fresh: dict[str, Any]) -> dict[str, Any]:
        """`fresh`, the state before the first step, at the step of the run."""
        return fresh | {"step": state["step"]}

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


def _running_mean(mean, params, count, counts):
    """The mean of `count` weights with these among them, if they count.

    A difference times a share: a running mean of equal weights stays at them. Weights
    that do not count leave no trace, also where they are not finite.
    """
    share = 1 / jnp.maximum(count, 1)
    return _combine(
        lambda m, x: jnp.where(counts > 0, m + share * (x - m), m), mean, params
    )


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
