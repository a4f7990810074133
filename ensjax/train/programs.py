"""The compiled programs of training: many steps of every member, in one call.

Each is a job of `ensjax.mapping` over the local stacks of a device: one stack per
architecture (an `Ensemble` has one, a `Group` several). Independent members run their
whole loop one block after the other; a joint objective loops over steps outside, since
every step needs all members' outputs.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ensjax.blocks import Blocks
from ensjax.mapping import map_local
from ensjax.train.member import Member

# Looking whether a member is finite, and choosing between two sets of weights, costs a
# small dense member a tenth of a step; so it is done once for this many steps.
CHECK_STEPS = 128


@dataclasses.dataclass(frozen=True)
class Job:
    """What all programs of training share.

    Attributes:
        members: one description per stack.
        blocks: how local members run.
        donate: positions of donated arguments.
    """

    members: tuple[Member, ...]
    blocks: Blocks
    donate: tuple[int, ...] = ()

    def state_specs(self) -> Any:
        """`jax.P` of the state of each stack, or of its leaves where they are split."""
        return tuple(
            m.layout.specs if m.layout else jax.P("member") for m in self.members
        )

    def check(self, mesh, *args):
        """Arguments were made by `fit`, which checked what the user gave."""

    def prepare(self, mesh, *args):
        """Stacks enter padded already."""
        return args

    def finish(self, outputs, *args):
        """Stacks leave padded."""
        return outputs

    def over_members(self, fns, kinds, *stacks, shared=(), updates_first=False):
        """Each stack's function over its local members; one result per stack."""
        return tuple(
            map_local(fn, kinds=kinds, blocks=self.blocks, updates_first=updates_first)(
                *rows, *shared
            )
            for fn, *rows in zip(fns, *stacks, strict=True)
        )


@dataclasses.dataclass(frozen=True)
class InitState(Job):
    """Makes the training state of every member: `(model_states, hypers) -> states`."""

    def in_specs(self):
        """Stacks by member."""
        return jax.P("member")

    def out_specs(self):
        """Stacks by member."""
        return self.state_specs()

    def local(self, model_states, hypers):
        """One state per local member."""
        return self.over_members(
            [member.init for member in self.members],
            ("member",) * 2,
            model_states,
            hypers,
        )


@dataclasses.dataclass(frozen=True)
class _Steps:
    """`num_steps` steps of one member, with a look at its health every now and then."""

    member: Member
    max_steps: int

    def __call__(
        self, state, hyper, member_id, weights, data, first_step, num_steps, seed
    ):
        member = self.member
        order = member.order(seed, member_id, first_step, num_steps, self.max_steps)

        size = min(CHECK_STEPS, self.max_steps)

        def checked_steps(number, state):
            start = number * size
            rows = member.rows(order, first_step + start, size)

            def step(i, state):
                number = first_step + start + i
                own = None if rows is None else rows[i]
                batch = member.batch(
                    own, data, weights, seed, member_id, number, start + i
                )
                return member.step(state, batch, hyper, seed, member_id, number)

            count = jnp.minimum(size, num_steps - start)
            after, sums = run_steps(step, state, count, size)
            step_before = first_step + start
            return member.settle(
                state, after, sums, step_before, count, hyper, member_id, seed
            )

        return run_steps(
            checked_steps, state, -(-num_steps // size), -(-self.max_steps // size)
        )


def run_steps(
    step: Callable[[Any, Any], Any], state: Any, num_steps: Any, max_steps: int
) -> tuple[Any, Any]:
    """`num_steps` times `state, metrics = step(i, state)`; metrics are summed.

    The number of steps is data, so that a shorter last call compiles nothing. One step
    (`max_steps == 1`, whatever `num_steps` says) is written without a loop: on CPU the
    gradient of a convolution in its plain form is slow inside a loop.
    """
    if max_steps == 1:
        return step(0, state)

    def body(i, carry):
        state, sums = carry
        state, metrics = step(i, state)
        return state, jax.tree.map(jnp.add, sums, metrics)

    shapes = jax.eval_shape(lambda s: step(0, s)[1], state)
    sums = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.fori_loop(0, num_steps, body, (state, sums))


@dataclasses.dataclass(frozen=True)
class TrainSteps(Job):
    """Many steps of independent members.

    Arguments: states, hypers, ids and weights of every stack (tuples), data, first
    step, number of steps, seed. Returns the states, and sums of metrics `[member]`.
    """

    max_steps: int = 1
    weights_kind: str = "shared"
    data_kind: str = "shared"
    donate: tuple[int, ...] = (0,)

    def in_specs(self):
        """States and hyperparameters by member; data whole, or streams by data."""
        weights = jax.P("member") if self.weights_kind == "member" else jax.P()
        data = jax.P("data") if self.data_kind == "batch" else jax.P()
        by_member = jax.P("member")
        return (
            self.state_specs(),
            by_member,
            by_member,
            weights,
            data,
            jax.P(),
            jax.P(),
            jax.P(),
        )

    def out_specs(self):
        """As the states came; sums by member."""
        return (self.state_specs(), jax.P("member"))

    def local(self, states, hypers, ids, weights, *shared):
        """The steps of all local members."""
        kinds = ("member",) * 3 + (self.weights_kind, self.data_kind) + ("shared",) * 3
        results = self.over_members(
            [_Steps(member, self.max_steps) for member in self.members],
            kinds,
            states,
            hypers,
            ids,
            weights,
            shared=shared,
            updates_first=True,
        )
        return tuple(r[0] for r in results), tuple(r[1] for r in results)
