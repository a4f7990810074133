"""Evaluation during training, and early stopping of each member by what it shows."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ensjax.members import member_key
from ensjax.train.member import Member, mean_over_data, takes_hyper, with_metrics
from ensjax.train.numbers import integer, number
from ensjax.train.programs import Job


@dataclasses.dataclass(frozen=True)
class EarlyStopping:
    """When a member stops: its own evaluations have not improved for a while.

    A stopped member keeps its place in the program and changes no more; `fit` returns
    the weights of its best evaluation.

    Attributes:
        patience: evaluations without improvement before a member stops; None: never,
            only the best weights are kept.
        metric: "loss" or a metric of the loss.
        mode: "min" or "max".
        min_delta: an improvement is larger than this.
    """

    patience: int | None = 5
    metric: str = "loss"
    mode: str = "min"
    min_delta: float = 0.0

    def __post_init__(self):
        if self.mode not in ("min", "max"):
            raise ValueError(f'mode is "min" or "max"; got {self.mode!r}.')
        if self.patience is not None and integer("patience", self.patience) < 1:
            raise ValueError(
                f"patience must be at least 1 or None; got {self.patience}."
            )
        if not isinstance(self.metric, str):
            raise TypeError(f"metric must be a name; got {self.metric!r}.")
        number("min_delta", self.min_delta)

    def update(self, state: dict[str, Any], value: Any, step: Any) -> dict[str, Any]:
        """One member's state after an evaluation that gave `value` at `step`."""
        best = state["best"]
        value = value if self.mode == "min" else -value
        running = (state["frozen_step"] < 0) & (state["stopped_step"] < 0)
        better = running & (value < best["value"] - self.min_delta)

        def choose(new, old):
            return jax.tree.map(lambda a, b: jnp.where(better, a, b), new, old)

        waited = jnp.where(better, 0, best["waited"] + running.astype(jnp.int32))
        best = {
            "params": choose(state["params"], best["params"]),
            "rest": choose(state["rest"], best["rest"]),
            "value": jnp.where(better, value, best["value"]),
            "step": jnp.where(better, step, best["step"]),
            "waited": waited,
        }
        stopped = state["stopped_step"]
        if self.patience is not None:
            stopped = jnp.where(running & (waited >= self.patience), step, stopped)
        return {**state, "best": best, "stopped_step": stopped}


@dataclasses.dataclass(frozen=True)
class _EvaluateMember:
    member: Member
    loss: Callable[..., Any]
    batch_size: int
    stopping: EarlyStopping | None

    def __call__(self, state, member_id, data, step, seed):
        key = jax.random.fold_in(member_key(seed, "evaluation", member_id), step)
        whole = {
            name: self.member.whole(name, state[name]) for name in ("params", "rest")
        }
        num_examples = jax.tree.leaves(data)[0].shape[0]
        size = min(self.batch_size, num_examples)
        num_whole = num_examples // size * size

        def metrics_of(batch, number):
            # Merged here, in the body of the loop: `nnx.remat` refuses a module of
            # another trace.
            model = self.member.graph.merge(whole, train=False)
            key_of_batch = jax.random.fold_in(key, number)
            if takes_hyper(self.loss):
                raise ValueError(
                    f"{type(self.loss).__name__} takes a member's hyperparameters,"
                    " which evaluation does not know; pass an evaluation_loss without"
                    " them, such as losses.cross_entropy."
                )
            loss, metrics = with_metrics(self.loss(model, batch, key_of_batch))
            return {"loss": loss, **metrics}

        batches = jax.tree.map(
            lambda x: x[:num_whole].reshape(num_whole // size, size, *x.shape[1:]), data
        )
        each = jax.lax.map(
            lambda xs: metrics_of(*xs), (batches, jnp.arange(num_whole // size))
        )
        metrics = jax.tree.map(lambda m: m.sum(axis=0) * size, each)
        if num_whole < num_examples:
            rest = jax.tree.map(lambda x: x[num_whole:], data)
            last = metrics_of(rest, num_whole // size)
            metrics = jax.tree.map(
                lambda m, x: m + x * (num_examples - num_whole), metrics, last
            )
        metrics = jax.tree.map(lambda m: m / num_examples, metrics)
        # Also where every shard sees all examples: a loss that draws by position would
        # differ between shards, and so would the choice of the best weights.
        metrics = mean_over_data(self.member.data_shards, metrics)
        if self.stopping is not None:
            if self.stopping.metric not in metrics:
                raise ValueError(
                    f"Early stopping watches {self.stopping.metric!r}, but the loss"
                    f" reports {', '.join(metrics)}."
                )
            value = metrics[self.stopping.metric]
            state = self.stopping.update(state, value, step)
        return state, metrics


@dataclasses.dataclass(frozen=True)
class Evaluate(Job):
    """Evaluates every member and notes its best weights.

    Arguments: states and ids of every stack (tuples), data, step, seed. Returns the
    states and each stack's metrics `[member]`, means over the examples.

    Attributes:
        loss: of one member, called in evaluation mode.
        batch_size: examples at a time.
        split_data: whether data shards take their own examples; else all take all.
        stopping: what is done with the result.
    """

    loss: Callable[..., Any] | None = None
    batch_size: int = 512
    split_data: bool = False
    stopping: EarlyStopping | None = None
    donate: tuple[int, ...] = (0,)

    @property
    def data_spec(self) -> jax.P:
        """Where the examples lie."""
        return jax.P("data") if self.split_data else jax.P()

    def in_specs(self):
        """Stacks by member; data by data where it divides."""
        states = self.state_specs()
        return (states, jax.P("member"), self.data_spec, jax.P(), jax.P())

    def out_specs(self):
        """Stacks by member."""
        return (self.state_specs(), jax.P("member"))

    def local(self, states, ids, data, step, seed):
        """The evaluation of all local members."""
        results = self.over_members(
            [
                _EvaluateMember(member, self.loss, self.batch_size, self.stopping)
                for member in self.members
            ],
            ("member", "member", "batch", "shared", "shared"),
            states,
            ids,
            shared=(data, step, seed),
            updates_first=True,
        )
        return tuple(r[0] for r in results), tuple(r[1] for r in results)
