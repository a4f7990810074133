"""`MappedJob`: one call of `map_members`, described before anything is made."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from ensjax.mapping import MeshProgram, map_members
from ensjax.members import num_members
from ensjax.mesh import make_mesh, place
from ensjax.planning.memory import compile_lowered
from ensjax.train.feeds import canonical


@dataclasses.dataclass(frozen=True)
class MappedJob:
    """A function of one member, its arguments, and how the engine runs it over members.

    For experiments that train otherwise than by `fit`, or do not train. What `plan`
    lowers is what `compile` returns, so that a run which calls that is what was
    planned.

    Attributes:
        fn: function of one member; see `map_members`.
        kinds: of its arguments, as in `map_members`.
        arguments: arrays, or their shapes (`jax.ShapeDtypeStruct`) where they are not
            at hand; pytrees of these.
        mesh_sizes: devices along "member", "data" and "model", -1 for what is left.
        out: as in `map_members`.
        block: as in `map_members`.
        params: shapes of what one member trains or holds, a pytree; they exist while
            the program runs.
        steps: of the loop in `fn`, if there is one.
        written_out: `written_out(n)` is `fn` with n steps and no loop, so that what a
            step costs can be counted; None: `fn` is counted whole.
        block_field: the field of the config that holds `block`.

    Example:
        >>> import numpy as np
        >>> from ensjax.planning import MappedJob, plan
        >>> def scaled(weight, x):
        ...     return weight * x
        >>> w, x = np.ones((8, 5), np.float32), np.ones(5, np.float32)
        >>> job = MappedJob(
        ...     scaled, ("member", "shared"), (w, x), mesh_sizes=dict(member=1)
        ... )
        >>> plan(job).programs[0].argument_bytes
        180
    """

    fn: Callable[..., Any]
    kinds: tuple[str, ...]
    arguments: tuple[Any, ...]
    mesh_sizes: Mapping[str, int]
    out: Any = "member"
    block: int | str | None = "auto"
    params: Any = ()
    steps: int = 1
    written_out: Callable[[int], Callable[..., Any]] | None = None
    block_field: str = "block"

    @property
    def num_members(self) -> int:
        """Members of the stacked arguments."""
        stacked = ("member", "member_batch")
        return num_members(
            [x for kind, x in zip(self.kinds, self.arguments) if kind in stacked]
        )

    def mesh(self, devices: Sequence[Any] | None = None) -> Mesh:
        """The mesh of these sizes over some devices; all that there are by default."""
        return make_mesh(**self.mesh_sizes, devices=devices)

    def program(self, mesh: Mesh) -> MeshProgram:
        """What `map_members` makes of it on a mesh."""
        return map_members(
            self.fn, kinds=self.kinds, out=self.out, mesh=mesh, block=self.block
        )

    def abstract_arguments(self, mesh: Mesh) -> tuple[Any, ...]:
        """Shapes and shardings of the arguments on a mesh; nothing is allocated.

        Raises:
            TypeError, ValueError: as `map_members`, for arguments that cannot work.
        """
        self.program(mesh).job.check(mesh, *self.arguments)

        def abstract(leaf, spec):
            shape = jax.eval_shape(_canonical, leaf)
            return jax.ShapeDtypeStruct(
                shape.shape, shape.dtype, sharding=NamedSharding(mesh, spec)
            )

        return tuple(
            jax.tree.map(lambda leaf, spec=spec: abstract(leaf, spec), argument)
            for argument, spec in zip(self.arguments, self._specs(mesh), strict=True)
        )

    def placed_arguments(self, mesh: Mesh) -> tuple[Any, ...]:
        """The arguments on the devices of a mesh.

        Raises:
            ValueError: if some are only shapes.
        """
        leaves = jax.tree.leaves(self.arguments)
        if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves):
            raise ValueError(
                "This job has only shapes; to run it, make it with the arrays."
            )
        return tuple(
            place(jax.tree.map(_canonical, argument), mesh, spec)
            for argument, spec in zip(self.arguments, self._specs(mesh), strict=True)
        )

    def compile(self, mesh: Mesh) -> Any:
        """The compiled program, to be called with `placed_arguments(mesh)`.

        Raises:
            DoesNotFit: if the compiler finds that it does not fit its device.
            TypeError, ValueError: as `map_members`, for arguments that cannot work.
        """
        lowered = self.program(mesh).lower(*self.abstract_arguments(mesh))
        program, _ = compile_lowered(lowered)
        return program

    def _specs(self, mesh):
        """As the program has them; members that do not divide are whole everywhere."""
        specs = self.program(mesh).job.in_specs()
        if self.num_members % mesh.shape["member"] == 0:
            return specs
        whole = {"member": jax.P(), "member_batch": jax.P(None, "data")}
        return tuple(whole.get(kind, spec) for kind, spec in zip(self.kinds, specs))


def _canonical(leaf):
    """As JAX computes with it; random keys stay what they are."""
    dtype = getattr(leaf, "dtype", None)
    if dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
        return leaf
    return canonical(leaf)
