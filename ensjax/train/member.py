"""What one member does in training: its state, its batches, one step, many steps.

Everything here is written for a single member and runs inside the `shard_map` of
`ensjax.mapping`; the member axis is added there.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from ensjax.data import sampling
from ensjax.members import member_key
from ensjax.train.finite import all_finite, finite_as_at_start, still_finite
from ensjax.train.health import Health, any_in_block
from ensjax.train.layout import Layout, on_parts

SAMPLINGS = ("independent", "shared", "bootstrap", "weighted", "stream")
_NEVER = -1


@dataclasses.dataclass(frozen=True)
class Member:
    """The static description of one member's training; hashable, compared by value.

    Attributes:
        graph: the ensemble's static half.
        loss: of one member, or what a joint objective calls as such (unused there).
        make_tx: builds the optax transformation from one member's hyperparameters.
        has_hyper: whether `make_tx` takes them.
        sampling: one of `SAMPLINGS`.
        batch_size: examples of the global batch.
        num_examples: rows of the resident data; 0 for streams.
        data_shards: size of the mesh axis "data".
        augment: `augment(key, example) -> example`, or None.
        keep_best: whether the state has room for the best weights so far.
        averages: names and averages of the weights along training.
        weighs_loss: whether `weights` are those of the rows in the loss.
        health: what is done when the member is not finite.
        layout: how the state is split over the data shards; None: every shard has it
            whole. Everything below that takes or returns a state means this shard's
            part of it.
    """

    graph: Any
    loss: Callable[..., Any]
    make_tx: Callable[..., optax.GradientTransformation]
    has_hyper: bool
    sampling: str
    batch_size: int
    num_examples: int
    data_shards: int
    augment: Callable[..., Any] | None = None
    keep_best: bool = False
    averages: tuple[tuple[str, Any], ...] = ()
    weighs_loss: bool = False
    health: Health = Health()
    layout: Layout | None = None

    def tx(self, hyper: Any) -> optax.GradientTransformation:
        """The member's own optimizer: norms and clipping never mix members."""
        tx = self.make_tx(hyper) if self.has_hyper else self.make_tx()
        if not (hasattr(tx, "init") and hasattr(tx, "update")):
            raise TypeError(
                f"make_tx must return an optax transformation; got {type(tx).__name__}."
            )
        return tx

    # Batches

    def epochs_within(self, max_steps: int) -> int:
        """How many epochs `max_steps` steps can touch, from any first step."""
        per_epoch = max(1, self.num_examples // self.batch_size)
        return -(-(max_steps - 1) // per_epoch) + 1

    def order(
        self,
        seed: Any,
        member_id: Any,
        first_step: Any,
        num_steps: Any,
        max_steps: int,
    ) -> Any:
        """Orders of the epochs that the next steps touch, and the first one's number.

        Four bytes an example for each epoch that `max_steps` steps can touch, and about
        35 for the one that is drawn. None where rows are drawn one by one or streamed.
        """
        if self.sampling in ("stream", "weighted"):
            return None
        if self.sampling == "shared":
            key = member_key(seed, "shared_order", 0)
        else:
            key = member_key(seed, "order", member_id)
        rows = None
        if self.sampling == "bootstrap":
            rows = sampling.bootstrap_rows(
                member_key(seed, "bootstrap", member_id), self.num_examples
            )
        steps_per_epoch = max(1, self.num_examples // self.batch_size)
        first = first_step // steps_per_epoch

        def draw(i, orders):
            order = sampling.epoch_orders(key, self.num_examples, first + i, 1)[0]
            return orders.at[i].set(order if rows is None else rows[order])

        # Only those that are needed: a call of whole epochs may touch one more, but
        # seldom does, and for a small member drawing one is worth many steps.
        needed = (first_step + num_steps - 1) // steps_per_epoch - first + 1
        orders = jnp.zeros(
            (self.epochs_within(max_steps), self.num_examples), jnp.int32
        )
        return jax.lax.fori_loop(0, needed, draw, orders), first

    def rows(self, order: Any, first_step: Any, num_steps: int) -> Any:
        """Rows of the data that this shard reads in some steps, `[step, batch]`.

        Looked up before the steps, since on CPU every scalar operation among them costs
        a small member a fiftieth of a step.
        """
        if order is None:
            return None
        orders, first = order

        def rows_of(step):
            epoch, places, _ = self._positions(step)
            return orders[epoch - first, places]

        return jax.vmap(rows_of)(first_step + jnp.arange(num_steps, dtype=jnp.int32))

    def _positions(self, step):
        return sampling.batch_positions(
            step,
            self.batch_size,
            jax.lax.axis_index("data"),
            self.data_shards,
            max(self.num_examples, self.batch_size),
        )

    def batch(self, rows, data, weights, seed, member_id, step, index) -> Any:
        """This data shard's part of the member's batch, leaves `[batch, ...]`.

        `rows` are those of this step, `[batch]`; `index` is the step's place among
        those that `data` holds, for streams. Where the loss is weighted, a pair of the
        batch and the weights of its rows.
        """
        _, _, positions = self._positions(step)
        if self.sampling == "stream":
            # Streamed leaves are [batch, step, ...], so that their kind is "batch".
            batch = jax.tree.map(
                lambda x: jax.lax.dynamic_index_in_dim(x, index, 1, keepdims=False),
                data,
            )
        elif self.sampling == "weighted":
            key = jax.random.fold_in(member_key(seed, "weighted", member_id), step)
            rows = sampling.weighted_rows(key, weights, positions)
            batch = jax.tree.map(lambda x: x[rows], data)
        else:
            batch = jax.tree.map(lambda x: x[rows], data)
        if self.augment is not None:
            key = jax.random.fold_in(member_key(seed, "augment", member_id), step)
            keys = sampling.example_keys(key, positions)
            batch = jax.vmap(self.augment)(keys, batch)
        return (batch, weights[rows]) if self.weighs_loss else batch

    # State

    def init(self, model_state, hyper) -> dict[str, Any]:
        """The member's whole training state."""
        params, rest = model_state["params"], model_state["rest"]
        state = {
            "params": params,
            "rest": rest,
            "opt_state": self.tx(hyper).init(params),
            "frozen_step": jnp.int32(_NEVER),
            "stopped_step": jnp.int32(_NEVER),
            **self.health.initial(),
        }
        if self.keep_best:
            state["best"] = {
                "params": params,
                "rest": rest,
                "value": jnp.float32(jnp.inf),
                "step": jnp.int32(_NEVER),
                "waited": jnp.int32(0),
            }
        if self.averages:
            state["averages"] = {n: own.init(params) for n, own in self.averages}
        return self.layout.split(state) if self.layout else state

    def whole(self, name: str, part: Any) -> Any:
        """An entry of the state, gathered from all shards; its derivative scatters."""
        return self.layout.entry(name).gather(part) if self.layout else part

    def part(self, name: str, whole: Any) -> Any:
        """This shard's part of an entry of the state."""
        return self.layout.entry(name).split(whole) if self.layout else whole

    def loss_and_rest(self, params, rest, batch, key, hyper, *, train=True):
        """`(loss, (rest, metrics))` of one data shard."""
        model = self.graph.merge({"params": params, "rest": rest}, train=train)
        given = (batch[0], key, batch[1]) if self.weighs_loss else (batch, key)
        named = {"hyper": hyper} if takes_hyper(self.loss) else {}
        loss, metrics = with_metrics(self.loss(model, *given, **named))
        return loss, (self.graph.rest(model), metrics)

    def step(self, state, batch, hyper, seed, member_id, step) -> tuple[Any, dict]:
        """One optimizer step, whatever comes of it: the new state and its metrics.

        Args:
            state: as `init` made it.
            batch: this data shard's examples, leaves `[batch, ...]`.
            hyper: the member's hyperparameters.
            seed: of the run.
            member_id: the member's id.
            step: number of the step, from 0.
        """
        key = jax.random.fold_in(member_key(seed, "loss", member_id), step)
        rest = reseed(self.whole("rest", state["rest"]), key)

        def loss_of(params):
            whole = self.whole("params", params)
            return self.loss_and_rest(whole, rest, batch, key, hyper)

        value_and_grad = jax.value_and_grad(loss_of, has_aux=True)
        (loss, (rest, metrics)), grads = value_and_grad(state["params"])
        metrics = {"loss": loss, **metrics}
        grads, rest, metrics = self.mean_over_data(grads, rest, metrics)
        return self.update(state, grads, rest, hyper), metrics

    def mean_over_data(self, grads, rest, metrics) -> tuple[Any, Any, Any]:
        """Means over data shards, of gradients that are split as the parameters are.

        Without the varying-axes check, the mean of the local losses' gradients is the
        gradient of the mean, also where the loss itself holds sums over "data".
        """
        if self.layout is None:
            return mean_over_data(self.data_shards, (grads, rest, metrics))
        layout = self.layout.entry("params")
        # The derivative of a gather sums over the shards.
        sums, here = layout.partition(grads)
        here, rest, metrics = mean_over_data(self.data_shards, (here, rest, metrics))
        means = [x / self.data_shards for x in sums]
        return layout.join(means, here), rest, metrics

    def update(self, state, grads, rest, hyper) -> Any:
        """The state after one update by the member's own optimizer.

        Args:
            state: this shard's part.
            grads: split as the parameters are.
            rest: the new statistics, whole.
            hyper: the member's hyperparameters.
        """
        tx = self.tx(hyper)

        def optimize(params, opt_state, grads, *scale):
            updates, opt_state = tx.update(grads, opt_state, params)
            if scale:  # what a rollback has left of the learning rate
                updates = jax.tree.map(lambda u: u * scale[0].astype(u.dtype), updates)
            return optax.apply_updates(params, updates), opt_state

        names = ("params", "opt_state", "params")
        arguments = state["params"], state["opt_state"], grads
        if "rate_scale" in state:
            names, arguments = (*names, "rate_scale"), (*arguments, state["rate_scale"])
        if self.layout is not None:
            layouts = [self.layout.entry(name) for name in names]
            optimize = on_parts(optimize, layouts, num_outputs=2)
        params, opt_state = optimize(*arguments)
        rest = keep_seeds(self.part("rest", rest), state["rest"])
        new = {**state, "params": params, "rest": rest, "opt_state": opt_state}
        if self.averages:
            new["averages"] = self._updated_averages(state["averages"], params)
        return new

    def _updated_averages(self, averages, params):
        def update(averages, params):
            own = {n: x.update(averages[n], params) for n, x in self.averages}
            return (own,)

        if self.layout is not None:
            layouts = [self.layout.entry(name) for name in ("averages", "params")]
            update = on_parts(update, layouts, num_outputs=1)
        return update(averages, params)[0]

    def settle(
        self, before, after, sums, step, num_steps, hyper, member_id, seed
    ) -> tuple[Any, dict]:
        """What remains of the steps between two states: all of them, or none.

        If the loss, the weights, the statistics or the optimizer's state are not
        finite, `health` says what becomes of the member. A statistic that was not
        finite before, such as a mask of -inf, does not count, nor does what the
        optimizer begins with, such as an infinite best loss. The choice is a `where`,
        so that no other member's program changes.

        Args:
            before: the state before these steps.
            after: the state after them.
            sums: of their metrics.
            step: steps made before them.
            num_steps: how many they are.
            hyper: the member's hyperparameters.
            member_id: the member's id.
            seed: of the run.

        Returns:
            The state, and the sums of the steps that count, with their number as
            "_steps": 0 for a frozen or stopped member.
        """
        sums = {**sums, "_steps": jnp.float32(num_steps)}
        active = (before["frozen_step"] == _NEVER) & (before["stopped_step"] == _NEVER)
        if self.health.policy == "off":
            if not self.keep_best:
                return after, sums
            keep = active
        else:
            # A call that only compiles makes no step, and must not count as a look.
            is_finite = self._is_finite(before, after, sums, hyper) | (num_steps == 0)
            keep = active & is_finite
        sums = jax.tree.map(lambda x: jnp.where(keep, x, 0.0), sums)
        is_broken = active & ~keep
        if not self.health.recovers:
            # The optimizer's state is not chosen: no later step of the member counts.
            names = ("params", "rest", *self._names_of_averages)
            chosen = _choose(keep, after, before, names)
            frozen = jnp.where(is_broken, step, before["frozen_step"])
            return {**after, **chosen, "frozen_step": frozen}, sums
        state = jax.lax.cond(
            any_in_block(~keep),
            lambda: self._recover(
                before, after, keep, is_broken, step, hyper, member_id, seed
            ),
            lambda: after,
        )
        return state, sums

    @property
    def _names_of_averages(self):
        return ("averages",) if self.averages else ()

    def _is_finite(self, before, after, sums, hyper):
        must_be = sums["loss"], after["params"]
        finite = all_finite((must_be, after["opt_state"]))
        # An overflow of Adam's second moment stops a weight, and the loss stays finite.
        # What may be infinite there is seldom any: one look at all is enough mostly,
        # and the state before the steps need not be kept for it.
        finite = jax.lax.cond(
            any_in_block(~finite),
            lambda: (
                all_finite(must_be)
                & finite_as_at_start(
                    self.tx(hyper).init(before["params"]), after["opt_state"]
                )
            ),
            lambda: finite,
        )
        finite &= still_finite(before["rest"], after["rest"])
        if self.layout is not None:
            finite = jax.lax.pmin(finite.astype(jnp.int32), "data") == 1
        return finite

    def _recover(self, before, after, keep, is_broken, step, hyper, member_id, seed):
        """The state where some member of the block is broken, or has ended."""
        steps = before["recovery_steps"]
        number = (steps != _NEVER).sum()
        recovers = is_broken & (number < self.health.max_recoveries)
        names = ("params", "rest", "opt_state", *self._names_of_averages)
        state = {**after, **_choose(keep, after, before, names)}
        if self.health.policy == "reseed":
            fresh = self.health.fresh(self.graph, seed, member_id, number)
            fresh = self.init(fresh, hyper)
            if self.averages:
                # A schedule, such as from which step on, is that of the run.
                fresh["averages"] = {
                    name: own.restart(after["averages"][name], fresh["averages"][name])
                    if hasattr(own, "restart")
                    else fresh["averages"][name]
                    for name, own in self.averages
                }
            names += ("best",) if self.keep_best else ()
            state |= _choose(recovers, fresh, state, names)
        if "rate_scale" in before:
            factor = jnp.where(recovers, self.health.learning_rate_factor, 1.0)
            state["rate_scale"] = before["rate_scale"] * factor
        is_next = jnp.arange(self.health.max_recoveries) == number
        state["recovery_steps"] = jnp.where(recovers & is_next, step, steps)
        state["frozen_step"] = jnp.where(
            is_broken & ~recovers, step, before["frozen_step"]
        )
        return state


def _choose(condition, new, old, names):
    """Entries of one state where the condition holds, else of the other."""
    return {
        name: jax.tree.map(
            lambda a, b: jnp.where(condition, a, b), new[name], old[name]
        )
        for name in names
    }


def takes_hyper(loss: Any) -> bool:
    """Whether a loss is given `hyper=`, the member's own: it says so itself."""
    return bool(getattr(loss, "takes_hyper", False))


def with_metrics(result: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
    """What a loss of one member returned, as a float32 scalar and scalars by name.

    Raises:
        TypeError: if it is neither a number nor `(number, dict)`.
        ValueError: if a value is not a scalar; names the metric.
    """
    loss, metrics = result if isinstance(result, tuple) else (result, {})
    if loss is None or not isinstance(metrics, dict):
        raise TypeError(
            "loss must return a scalar or (scalar, dict of metrics); got"
            f" {type(result).__name__}."
        )
    named = {"loss": loss, **metrics}
    for name, value in named.items():
        if jnp.shape(value):
            raise ValueError(
                f"{name!r} of one member must be a scalar, a mean over the batch; the"
                f" loss returned shape {jnp.shape(value)}."
            )
    if "loss" in metrics or "_steps" in metrics:
        raise ValueError('metrics must not be called "loss" or "_steps".')
    named = {name: jnp.asarray(value, jnp.float32) for name, value in named.items()}
    return named.pop("loss"), named


def mean_over_data(data_shards: int, tree: Any) -> Any:
    """The mean over data shards of every floating leaf; nothing where there is one."""
    if data_shards == 1:
        return tree
    leaves, treedef = jax.tree.flatten(tree)
    places = [i for i, x in enumerate(leaves) if jnp.issubdtype(x.dtype, jnp.floating)]
    means = jax.lax.pmean([leaves[i] for i in places], "data")
    for i, mean in zip(places, means, strict=True):
        leaves[i] = mean
    return jax.tree.unflatten(treedef, leaves)


def reseed(rest: Any, key: jax.Array) -> Any:
    """`rest` with every random stream of the module keyed by this step.

    Streams then depend on (seed, member, step, data shard) alone, never on how many
    draws came before; a resumed run needs no counters.
    """
    if not isinstance(rest, nnx.State):
        return rest
    flat = nnx.to_flat_state(rest)
    if not any(isinstance(v, nnx.RngState) for _, v in flat):
        return rest
    key = jax.random.fold_in(key, jax.lax.axis_index("data"))
    new = []
    for number, (path, variable) in enumerate(flat):
        if isinstance(variable, nnx.RngKey):
            variable = variable.replace(jax.random.fold_in(key, number))
        elif isinstance(variable, nnx.RngCount):
            variable = variable.replace(jnp.zeros_like(variable[...]))
        new.append((path, variable))
    return nnx.from_flat_state(new)


def keep_seeds(new: Any, old: Any) -> Any:
    """`new`, with the random streams of `old`."""
    if not isinstance(old, nnx.State):
        return new
    before = dict(nnx.to_flat_state(old))
    return nnx.from_flat_state(
        [
            (path, before[path] if isinstance(variable, nnx.RngState) else variable)
            for path, variable in nnx.to_flat_state(new)
        ]
    )
