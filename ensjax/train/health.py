"""What becomes of a member that is not finite any more, inside the same program."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ensjax.graphs import ApplyGraph
from ensjax.members import member_key
from ensjax.train.numbers import integer, number

POLICIES = ("freeze", "rollback", "reseed", "off")


@dataclasses.dataclass(frozen=True)
class Health:
    """What is done with a member whose loss, weights or statistics are not finite.

    Nor may its optimizer's state overflow: a second moment of Adam that is infinite
    stops a weight for good while the loss stays finite. What is infinite in the state
    that the optimizer begins with does not count.

    A look at the health of all members comes every 128 steps and at the end of every
    call of the compiled program (every step for a joint objective). The steps of a
    broken member since the last look do not count. Then, by `policy`:

    - "freeze": it keeps the weights of the last look and changes no more.
    - "rollback": it goes on from its whole state at the last look, with its updates
      multiplied by `learning_rate_factor` from now on.
    - "reseed": it goes on as a new member, with other initial weights and a new
      optimizer; its data order is what it was.
    - "off": nobody looks.

    A member that has recovered `max_recoveries` times is frozen at the next fault.
    Whatever happens to it, the bits of the others are what they would have been.

    Attributes:
        policy: one of the four.
        learning_rate_factor: between 0 and 1, for "rollback".
        max_recoveries: for "rollback" and "reseed".
        make_model: for "reseed": builds one member from `nnx.Rngs`, as for
            `Ensemble.init` (or its parameters, for members of `from_apply`); a tuple
            of these for a `Group`.
    """

    policy: str = "freeze"
    learning_rate_factor: float = 0.1
    max_recoveries: int = 3
    make_model: Callable[..., Any] | tuple[Callable[..., Any], ...] | None = None

    def __post_init__(self):
        if self.policy not in POLICIES:
            raise ValueError(
                f"health is one of {', '.join(POLICIES)}; got {self.policy!r}."
            )
        number("learning_rate_factor", self.learning_rate_factor)
        if not 0 < self.learning_rate_factor <= 1:
            raise ValueError(
                "learning_rate_factor must lie above 0 and at most at 1; got"
                f" {self.learning_rate_factor}."
            )
        if integer("max_recoveries", self.max_recoveries) < 1:
            raise ValueError(
                f"max_recoveries must be at least 1; got {self.max_recoveries}."
            )

    @classmethod
    def of(cls, health: "str | Health") -> "Health":
        """A policy by its name, or as it is.

        Raises:
            TypeError, ValueError: for anything else.
        """
        if isinstance(health, str):
            return cls(policy=health)
        if not isinstance(health, cls):
            raise TypeError(
                f"health is one of {', '.join(POLICIES)}, or an ensjax.Health; got"
                f" {type(health).__name__}."
            )
        return health

    @property
    def recovers(self) -> bool:
        """Whether a broken member goes on."""
        return self.policy in ("rollback", "reseed")

    def for_stacks(self, ensembles: tuple[Any, ...]) -> tuple["Health", ...]:
        """One for every stack, each with its own `make_model`.

        Raises:
            ValueError: if "reseed" lacks a `make_model`, or one builds another member.
        """
        if self.policy != "reseed":
            return (dataclasses.replace(self, make_model=None),) * len(ensembles)
        makers = self.make_model
        makers = makers if isinstance(makers, tuple) else (makers,)
        if len(makers) != len(ensembles) or not all(map(callable, makers)):
            raise ValueError(
                'health="reseed" needs the function that builds a new member:'
                ' ensjax.Health(policy="reseed", make_model=make_model); for a Group a'
                f" tuple of {len(ensembles)}."
            )
        each = tuple(dataclasses.replace(self, make_model=make) for make in makers)
        for own, ensemble in zip(each, ensembles, strict=True):
            own._check_fresh(ensemble)
        return each

    def initial(self) -> dict[str, Any]:
        """What a member's state holds for its policy."""
        if not self.recovers:
            return {}
        entries = {"recovery_steps": jnp.full(self.max_recoveries, -1, jnp.int32)}
        if self.policy == "rollback":
            entries["rate_scale"] = jnp.float32(1)
        return entries

    def fresh(self, graph: Any, seed: Any, member_id: Any, number: Any) -> Any:
        """New weights and statistics of a member, for its `number`-th recovery."""
        key = jax.random.fold_in(member_key(seed, "reseed", member_id), number)
        rngs = nnx.Rngs(
            params=jax.random.fold_in(key, 0), dropout=jax.random.fold_in(key, 1)
        )
        model = self.make_model(rngs)
        if isinstance(graph, ApplyGraph):
            return {"params": model, "rest": {}}
        _, params, rest = nnx.split(model, nnx.Param, ...)
        return {"params": params, "rest": rest}

    def _check_fresh(self, ensemble):
        fresh = jax.eval_shape(lambda: self.fresh(ensemble.graph, 0, 0, 0))
        ours = {
            jax.tree_util.keystr(path): (x.shape[1:], x.dtype)
            for path, x in jax.tree.leaves_with_path(ensemble.state)
        }
        theirs = {
            jax.tree_util.keystr(path): (x.shape, x.dtype)
            for path, x in jax.tree.leaves_with_path(fresh)
        }
        for name in ours | theirs:
            if ours.get(name) != theirs.get(name):
                raise ValueError(
                    "make_model of health builds another member than the ensemble has:"
                    f" {name} is {theirs.get(name, 'missing')} there and"
                    f" {ours.get(name, 'missing')} here."
                )


@jax.custom_batching.custom_vmap
def any_in_block(flag):
    """`flag`, or whether it is true for any member that runs beside this one, `[]`.

    Under `vmap` it is not mapped, so that a `cond` on it stays one: what broken members
    need costs nothing while there are none.
    """
    return flag


@any_in_block.def_vmap
def _(axis_size, in_batched, flag):
    del axis_size
    return (flag.any() if in_batched[0] else flag), False
