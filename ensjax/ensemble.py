"""`Ensemble`: one static graph, one stacked state; and `Group`, several of them.

An ensemble is a pytree. Its members are flax NNX modules of one architecture, or any
`apply(params, x)` over a pytree of parameters (linen, equinox, haiku, a bare function).
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import cloudpickle
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx
from jax.sharding import Mesh

from ensjax import checkpoint
from ensjax.graphs import ApplyGraph, Forward, NnxGraph
from ensjax.mapping import map_members
from ensjax.members import (
    check_stacked,
    concatenate_members,
    member_key,
    member_rows,
    stack_members,
    take_rows,
)
from ensjax.mesh import default_mesh, make_mesh, place


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Ensemble:
    """Members of one architecture, stacked.

    Attributes:
        state: `{"params": ..., "rest": ...}`, leaves `[member, ...]`; `rest` is all
            that is not trained by gradients (batch statistics, dropout keys).
        member_ids: int32 `[member]`. A member's randomness follows its id, so it keeps
            its stream when members are selected or re-ordered.
        graph: what is static: `NnxGraph` or `ApplyGraph`.
        mesh: the devices it is split over.

    Example:
        >>> import ensjax, jax.numpy as jnp
        >>> def make_model(rngs):
        ...     return ensjax.nn.MLP(in_features=4, num_outputs=3, rngs=rngs)
        >>> ensemble = Ensemble.init(make_model, num_members=5, seed=0)
        >>> ensemble(jnp.ones((2, 4))).shape
        (5, 2, 3)
    """

    state: Any
    member_ids: jax.Array
    graph: Any = dataclasses.field(metadata={"static": True})
    mesh: Mesh = dataclasses.field(metadata={"static": True})

    @classmethod
    def init(
        cls,
        make_model: Callable[[nnx.Rngs], nnx.Module],
        *,
        num_members: int | None = None,
        seed: int = 0,
        member_ids: Sequence[int] | None = None,
        mesh: Mesh | None = None,
    ) -> "Ensemble":
        """New members, initialised on their devices by one compiled program.

        Args:
            make_model: builds one member from `nnx.Rngs` with the streams "params" and
                "dropout".
            num_members: how many; ids are then 0, 1, ...
            seed: member `i` of a seed is the same model in an ensemble of any size.
            member_ids: the ids instead of their number.
            mesh: from `make_mesh`; by default all devices on the member axis.

        Raises:
            ValueError: if there is no member, or ids repeat.
        """
        ids = _new_ids(num_members, member_ids)
        mesh = default_mesh() if mesh is None else mesh
        abstract = nnx.eval_shape(lambda: make_model(_rngs(0, 0)))
        graphdef, *_ = nnx.split(abstract, nnx.Param, ...)
        where = _initial_mesh(mesh)
        initialise = map_members(
            _Initialise(make_model), kinds=("member", "shared"), mesh=where
        )
        state = initialise(ids, jnp.int32(seed))
        ensemble = cls(state, ids, NnxGraph(graphdef), where)
        return ensemble._placed() if where is mesh else ensemble.on_mesh(mesh)

    @classmethod
    def stack(
        cls,
        models: Sequence[nnx.Module],
        *,
        member_ids: Sequence[int] | None = None,
        mesh: Mesh | None = None,
    ) -> "Ensemble":
        """An ensemble of modules that exist already; they are copied.

        Raises:
            ValueError: if there are none, or two are of different architecture.
        """
        models = list(models)
        ids = _new_ids(len(models), member_ids)
        graphs, states = [], []
        for model in models:
            if not isinstance(model, nnx.Module):
                raise TypeError(
                    "Ensemble.stack takes flax nnx modules; got"
                    f" {type(model).__name__}. For a bare function use"
                    " Ensemble.from_apply(apply, params)."
                )
            model = nnx.clone(model)
            model.train()
            graphdef, params, rest = nnx.split(model, nnx.Param, ...)
            graphs.append(graphdef)
            states.append({"params": params, "rest": rest})
        state = stack_members(states)
        for number, graphdef in enumerate(graphs[1:], start=1):
            if graphdef != graphs[0]:
                raise ValueError(
                    f"Model {number} is built differently from model 0 although their"
                    " arrays agree (another activation, rate, or a function defined"
                    " anew for each model). Members of different architecture form a"
                    " Group."
                )
        mesh = default_mesh() if mesh is None else mesh
        return cls(state, ids, NnxGraph(graphs[0]), mesh)._placed()

    @classmethod
    def from_apply(
        cls,
        apply: Callable[[Any, Any], Any],
        stacked_params: Any,
        *,
        member_ids: Sequence[int] | None = None,
        mesh: Mesh | None = None,
    ) -> "Ensemble":
        """An ensemble of a bare function `apply(params, x)`.

        Args:
            apply: function of one member, for instance `linen_module.apply`. Keep one
                object; another one compiles anew.
            stacked_params: leaves `[member, ...]`.
            member_ids: ids instead of 0, 1, ...
            mesh: from `make_mesh`.

        Raises:
            ValueError: if the leaves disagree on the number of members; names the leaf.
        """
        leaves = jax.tree.leaves(stacked_params)
        if not leaves or not np.shape(leaves[0]):
            raise ValueError("stacked_params needs arrays [member, ...].")
        ids = _new_ids(np.shape(leaves[0])[0], member_ids)
        check_stacked(stacked_params, len(ids))
        mesh = default_mesh() if mesh is None else mesh
        params = jax.tree.map(jnp.asarray, stacked_params)
        return cls(
            {"params": params, "rest": {}}, ids, ApplyGraph(apply), mesh
        )._placed()

    @property
    def num_members(self) -> int:
        """M, the number of members."""
        return self.member_ids.shape[0]

    @property
    def params(self) -> Any:
        """The stacked parameters, leaves `[member, ...]`."""
        return self.state["params"]

    def __len__(self) -> int:
        return self.num_members

    def __getitem__(self, index: Any) -> Any:
        """`e[3]`: one member (an nnx module or its parameters); `e[2:5]`: some.

        The module is in evaluation mode, so that `e[3](x)` is `e(x)[3]`; call its
        `train()` before training it.
        """
        if isinstance(index, (int, np.integer)) and not isinstance(index, bool):
            row = member_rows([index], self.num_members)[0]
            state = _select_rows(self.state, [row], self.mesh)
            state = jax.tree.map(lambda x: x[0], state)
            if isinstance(self.graph, ApplyGraph):
                return state["params"]
            return self.graph.merge(state, train=False)
        return self.select(index)

    def __iter__(self) -> Iterable[Any]:
        return (self[i] for i in range(self.num_members))

    def select(self, indices: Any) -> "Ensemble":
        """The chosen members, with their ids, in the order of `indices`.

        Args:
            indices: a slice, integers, or booleans `[member]`.

        Raises:
            ValueError, IndexError: as `members.select_members`.
        """
        rows = member_rows(indices, self.num_members)
        state, ids = _select_rows((self.state, self.member_ids), rows, self.mesh)
        return dataclasses.replace(self, state=state, member_ids=ids)._placed()

    def concatenate(self, other: "Ensemble") -> "Ensemble":
        """The members of both, in order. Ids are kept and may repeat (bootstraps).

        Raises:
            ValueError: if the architectures differ.
        """
        if self.graph != other.graph:
            raise ValueError(
                "The two ensembles are of different architecture; use Group([a, b])."
            )
        other = other.on_mesh(self.mesh)
        parts = [(e.state, e.member_ids) for e in (self, other)]
        state, ids = _concatenate(*parts)
        return dataclasses.replace(self, state=state, member_ids=ids)._placed()

    def with_ids(self, member_ids: Sequence[int]) -> "Ensemble":
        """The same members under other ids, which give them other random streams."""
        ids = _new_ids(self.num_members, member_ids)
        return dataclasses.replace(self, member_ids=ids)._placed()

    def on_mesh(self, mesh: Mesh) -> "Ensemble":
        """The same members, split over the devices of another mesh."""
        return dataclasses.replace(self, mesh=mesh)._placed()

    def _placed(self) -> "Ensemble":
        stacks = (self.state, self.member_ids)
        state, ids = place(stacks, self.mesh, _member_spec(stacks, self.mesh))
        return dataclasses.replace(self, state=state, member_ids=ids)

    def __call__(self, x: Any, *, block: int | str | None = "auto") -> Any:
        """Every member's output for the same inputs (compiled; see `map_members`).

        Args:
            x: inputs of one batch (any pytree), leaves `[batch, ...]`.
            block: how many members of a device run at once.

        Returns:
            Leaves `[member, batch, ...]`, in evaluation mode (no dropout; batch norm
            with its running statistics).
        """
        forward = map_members(
            Forward(self.graph),
            kinds=("member", "batch"),
            out="member_batch",
            mesh=self.mesh,
            block=block,
        )
        return forward(self.state, x)

    def save(self, path: Any) -> None:
        """Writes the ensemble to a new directory: Orbax arrays, and its architecture.

        The architecture is stored by cloudpickle, so that a class defined in a notebook
        can be loaded in another one.

        Raises:
            ValueError: if `path` exists (nothing is overwritten), or lies below a file.
        """
        parents = epath.Path(path).parents
        below = next((p for p in parents if p.exists() and not p.is_dir()), None)
        if below is not None:
            raise ValueError(f"cannot write {path}: {below} is a file.")
        shapes = jax.eval_shape(_arrays, self.state, self.member_ids)
        architecture = cloudpickle.dumps((self.graph, shapes))
        arrays = _arrays(self.state, self.member_ids)
        with checkpoint.written_whole(path) as partial:
            checkpoint.save_tree(partial / "arrays", arrays)
            if jax.process_index() == 0:
                (partial / "architecture.pkl").write_bytes(architecture)

    @classmethod
    def load(
        cls,
        path: Any,
        *,
        make_model: Callable[[nnx.Rngs], nnx.Module] | None = None,
        mesh: Mesh | None = None,
    ) -> "Ensemble":
        """Reads what `save` wrote, onto any mesh.

        Args:
            path: the directory.
            make_model: builds one member. Without it the stored architecture is used,
                which is unpickled and so runs code: load only files that you trust.
            mesh: from `make_mesh`; by default all devices on the member axis.

        Raises:
            ValueError: if there is no ensemble at `path`, its architecture cannot be
                read, or `make_model` builds another one; names the file or leaf.
        """
        path = epath.Path(path)
        members = checkpoint.stored_shapes(path / "arrays")
        mesh = default_mesh() if mesh is None else mesh
        if make_model is not None:
            abstract = nnx.eval_shape(lambda: make_model(_rngs(0, 0)))
            graphdef, params, rest = nnx.split(abstract, nnx.Param, ...)
            graph = NnxGraph(graphdef)
            rows = next(iter(members.values()))[0]
            shapes = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct((rows, *x.shape), x.dtype),
                _arrays(
                    {"params": params, "rest": rest},
                    jax.ShapeDtypeStruct((), jnp.int32),
                ),
            )
        else:
            graph, shapes = _read_architecture(path / "architecture.pkl")
        sharding = jax.sharding.NamedSharding(mesh, _member_spec(shapes, mesh))
        like = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes
        )
        state = checkpoint.load_tree(path / "arrays", like)
        ids = state.pop("member_ids")
        return cls(state, ids, graph, mesh)


def _initial_mesh(mesh):
    """Where members are made: on CPU devices of one process on the first of them.

    An initialiser with several LAPACK calls, such as orthogonal ones, can wait for ever
    where two CPU devices run it at once (seen with jax 0.10.1). They share one memory.
    """
    devices = mesh.devices.flatten()
    is_one_cpu = devices[0].platform == "cpu" and jax.process_count() == 1
    if len(devices) == 1 or not is_one_cpu:
        return mesh
    return make_mesh(member=1, devices=devices[:1])


def _read_architecture(path):
    try:
        graph, shapes = cloudpickle.loads(path.read_bytes())
    except Exception as error:  # unpickling runs code, which may raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(
            f"{path} cannot be read ({reason}). With make_model=..., which builds one"
            " member, it is not needed."
        ) from error
    return graph, shapes


def _arrays(state, member_ids):
    """What is saved of an ensemble, named as errors name it."""
    return {**state, "member_ids": member_ids}


def _member_spec(stacks, mesh) -> jax.P:
    """Split over members where they divide over the devices, else whole on each."""
    members = jax.tree.leaves(stacks)[0].shape[0]
    return jax.P("member") if members % mesh.shape["member"] == 0 else jax.P()


@dataclasses.dataclass(frozen=True)
class _Initialise:
    make_model: Callable[[nnx.Rngs], nnx.Module]

    def __call__(self, member_id, seed):
        model = self.make_model(_rngs(seed, member_id))
        _, params, rest = nnx.split(model, nnx.Param, ...)
        return {"params": params, "rest": rest}


def _rngs(seed, member_id):
    key = member_key(seed, "init", member_id)
    return nnx.Rngs(
        params=jax.random.fold_in(key, 0), dropout=jax.random.fold_in(key, 1)
    )


def _new_ids(num_members, member_ids):
    if member_ids is None:
        if num_members is None or num_members < 1:
            raise ValueError(f"An ensemble has at least one member; got {num_members}.")
        return jnp.arange(num_members, dtype=jnp.int32)
    ids = np.asarray(member_ids)
    if ids.ndim != 1 or not ids.size or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"member_ids are integers [member]; got {member_ids!r}.")
    if num_members not in (None, len(ids)):
        raise ValueError(f"{num_members} members but {len(ids)} member_ids.")
    if len(set(ids.tolist())) < len(ids) or ids.min() < 0 or ids.max() >= 2**31:
        raise ValueError(
            f"member_ids must lie from 0 to 2^31 - 1 and differ, since members of one"
            f" id are the same model; got {ids.tolist()}."
        )
    return jnp.asarray(ids, jnp.int32)


@jax.jit
def _concatenate(first, second):
    return concatenate_members([first, second])


def _select_rows(tree, rows, mesh):
    """Rows of a stack, also one that is split over several processes."""
    sharding = jax.sharding.NamedSharding(mesh, jax.P())
    rows = jnp.asarray(rows)
    if all(
        leaf.is_fully_addressable
        for leaf in jax.tree.leaves(tree)
        if isinstance(leaf, jax.Array)
    ):
        return jax.tree.map(lambda x: take_rows(x, rows), tree)
    take = jax.jit(lambda t, r: jax.tree.map(lambda x: x[r], t), out_shardings=sharding)
    return take(tree, rows)
