"""The compiled program of a joint objective: one exchange of outputs a step.

Forward passes of blocks of members without a tape, an all-gather of the outputs over
the member axis, the gradient with respect to them (the same on every device), then each
member's backward pass. Both passes start from the same statistics and keys.
"""

import dataclasses

import jax
import jax.numpy as jnp

from ensjax.members import member_key
from ensjax.train.finite import finite_rows
from ensjax.train.member import Member, reseed
from ensjax.train.objectives import Joint
from ensjax.train.programs import TrainSteps, run_steps


@dataclasses.dataclass(frozen=True)
class _JointForward:
    member: Member
    joint: Joint

    def __call__(self, params, rest, *args):
        return self.on_whole(*self.whole(params, rest), *args)

    def whole(self, params, rest):
        return self.member.whole("params", params), self.member.whole("rest", rest)

    def on_whole(self, params, rest, member_id, batch, seed, step):
        key = jax.random.fold_in(member_key(seed, "loss", member_id), step)
        state = {"params": params, "rest": reseed(rest, key)}
        model = self.member.graph.merge(state, train=True)
        outputs = self.joint.forward(model, batch, key)
        return outputs, self.member.graph.rest(model)


@dataclasses.dataclass(frozen=True)
class _JointUpdate:
    member: Member

    def __call__(self, state, grads, rest, hyper, metrics, member_id, step, seed):
        grads, rest, metrics = self.member.mean_over_data(grads, rest, metrics)
        after = self.member.update(state, grads, rest, hyper)
        return self.member.settle(
            state, after, metrics, step, 1, hyper, member_id, seed
        )


@dataclasses.dataclass(frozen=True)
class _JointBackward:
    """One member's backward pass from the gradient with respect to its outputs."""

    forward: _JointForward

    def __call__(self, params, rest, member_id, cotangent, batch, seed, step):
        def outputs_of(params):
            return self.forward(params, rest, member_id, batch, seed, step)

        block = self.forward.joint.batch_block
        size = jax.tree.leaves(batch)[0].shape[0]
        if block is None:
            _, vjp, rest = jax.vjp(outputs_of, params, has_aux=True)
            return vjp(cotangent)[0], rest
        # Gathered once, not with every part of the batch.
        whole, pull_back, rest = jax.vjp(
            lambda p: self.forward.whole(p, rest), params, has_aux=True
        )
        self._check_no_draws(whole, rest, batch)

        def add(total, part):
            batch_part, cotangent_part = part
            _, vjp, _ = jax.vjp(
                lambda p: self.forward.on_whole(
                    p, rest, member_id, batch_part, seed, step
                ),
                whole,
                has_aux=True,
            )
            return jax.tree.map(jnp.add, total, vjp(cotangent_part)[0]), None

        parts = jax.tree.map(
            lambda x: x.reshape(size // block, block, *x.shape[1:]), (batch, cotangent)
        )
        zeros = jax.tree.map(jnp.zeros_like, whole)
        total, _ = jax.lax.scan(add, zeros, parts)
        return pull_back(total)[0], rest

    def _check_no_draws(self, params, rest, batch):
        """A part of the batch would draw other numbers than the whole did."""
        model = self.forward.member.graph.merge(
            {"params": params, "rest": rest}, train=True
        )
        joint = self.forward.joint
        jaxpr = jax.make_jaxpr(lambda key: joint.forward(model, batch, key))(
            jax.random.key(0, impl="threefry2x32")
        ).jaxpr
        if any(x is jaxpr.invars[0] for eqn in jaxpr.eqns for x in eqn.invars):
            raise ValueError(
                f"batch_block={joint.batch_block} takes a batch apart, but forward"
                " draws from its key; draw in the loss, or pass batch_block=None."
            )


@dataclasses.dataclass(frozen=True)
class JointSteps(TrainSteps):
    """Many steps of members under a joint objective; arguments as `TrainSteps`.

    Attributes:
        joint: the objective.
        num_members: of every stack, without padding.
    """

    joint: Joint | None = None
    num_members: tuple[int, ...] = ()

    def local(self, states, hypers, ids, weights, data, first_step, num_steps, seed):
        """The steps of all members, each with one exchange of outputs."""
        first = self.members[0]
        order = first.order(seed, 0, first_step, num_steps, self.max_steps)

        def step(i, states):
            number = first_step + i
            rows = first.rows(order, number, 1)
            own = None if rows is None else rows[0]
            batch = first.batch(own, data, None, seed, 0, number, i)
            return self._step(states, hypers, ids, batch, seed, number)

        return run_steps(step, states, num_steps, self.max_steps)

    def _step(self, states, hypers, ids, batch, seed, step):
        forwards = [_JointForward(member, self.joint) for member in self.members]
        params = [state["params"] for state in states]
        rests = [state["rest"] for state in states]
        data_kind = ("member",) * 3 + ("batch", "shared", "shared")

        def all_outputs(params):
            results = self.over_members(
                forwards, data_kind, params, rests, ids, shared=(batch, seed, step)
            )
            return [r[0] for r in results], [r[1] for r in results]

        if self.joint.recompute:
            outputs, _ = all_outputs(params)
        else:
            outputs, vjp, new_rests = jax.vjp(all_outputs, params, has_aux=True)
        masks = [
            (state["frozen_step"] < 0) & _finite_on_all_shards(own)
            for state, own in zip(states, outputs, strict=True)
        ]
        cotangents, metrics = self._exchange(outputs, masks, batch, seed, step)
        if self.joint.recompute:
            kinds = ("member",) * 3 + ("member_batch", "batch", "shared", "shared")
            results = self.over_members(
                [_JointBackward(f) for f in forwards],
                kinds,
                params,
                rests,
                ids,
                cotangents,
                shared=(batch, seed, step),
            )
            grads, new_rests = zip(*results, strict=True)
        else:
            grads = vjp(cotangents)[0]
        results = self.over_members(
            [_JointUpdate(member) for member in self.members],
            ("member",) * 6 + ("shared",) * 2,
            states,
            list(grads),
            list(new_rests),
            hypers,
            metrics,
            ids,
            shared=(step, seed),
            updates_first=True,
        )
        return tuple(r[0] for r in results), tuple(r[1] for r in results)

    def _exchange(self, outputs, masks, batch, seed, step):
        """The objective's gradient for this device's own outputs, and its metrics.

        Every device gathers all members' outputs and computes the same gradient;
        nothing is differentiated through a collective.
        """
        rows = [mask.shape[0] for mask in masks]
        place = jax.lax.axis_index("member")

        def gather(own, count):
            return jax.tree.map(
                lambda x: jax.lax.all_gather(x, "member", tiled=True)[:count], own
            )

        def clean(own, mask):
            return jax.tree.map(
                lambda x: jnp.where(mask.reshape(-1, *(1,) * (x.ndim - 1)), x, 0), own
            )

        parts = [
            gather((clean(own, mask), mask), count)
            for own, mask, count in zip(outputs, masks, self.num_members, strict=True)
        ]
        every = jax.tree.map(lambda *xs: jnp.concatenate(xs), *(p[0] for p in parts))
        mask = jnp.concatenate([p[1] for p in parts])
        key = jax.random.fold_in(member_key(seed, "loss", 0), step)

        def objective(every):
            result = self.joint.loss(every, batch, key, mask)
            loss, metrics = result if isinstance(result, tuple) else (result, {})
            if jnp.shape(loss):
                raise ValueError(
                    "A joint objective is a scalar, a mean over the batch; got shape"
                    f" {jnp.shape(loss)}."
                )
            return loss.astype(jnp.float32), metrics

        (loss, metrics), gradient = jax.value_and_grad(objective, has_aux=True)(every)
        total = mask.shape[0]
        for name, value in metrics.items():
            if jnp.shape(value) not in ((), (total,)):
                raise ValueError(
                    f"{name!r} of a joint objective must be a scalar or [member], here"
                    f" [{total}]; got shape {jnp.shape(value)}."
                )
        per_member = {
            name: jnp.broadcast_to(value, (total,)) if not jnp.shape(value) else value
            for name, value in metrics.items()
        }
        # A member that is not finite sees a loss that is not, and is frozen.
        per_member["loss"] = jnp.where(mask, loss, jnp.nan)

        cotangents, own_metrics, start = [], [], 0
        for local, count, own in zip(rows, self.num_members, outputs, strict=True):

            def mine(x, dtype=None, start=start, count=count, local=local):
                x = x[start : start + count]
                full = local * jax.lax.axis_size("member")
                x = jnp.pad(x, [(0, full - count)] + [(0, 0)] * (x.ndim - 1))
                return jax.lax.dynamic_slice_in_dim(x, place * local, local)

            cotangents.append(
                jax.tree.map(lambda g, o: mine(g).astype(o.dtype), gradient, own)
            )
            own_metrics.append({name: mine(v) for name, v in per_member.items()})
            start += count
        return cotangents, own_metrics


def _finite_on_all_shards(outputs):
    """`[row]`; one answer for all data shards, so that they mask the same members."""
    finite = finite_rows(outputs).astype(jnp.int32)
    return jax.lax.pmin(finite, "data") == 1
