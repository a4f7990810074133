"""`Group`: ensembles of different architecture as one; `predict`, for both."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh

from ensjax import checkpoint
from ensjax.ensemble import Ensemble
from ensjax.members import member_rows


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Group:
    """Ensembles of different architecture that are one ensemble together.

    Attributes:
        ensembles: one stack per architecture. Members are numbered through, in order;
            their ids must differ, since data order and dropout follow the id.
    """

    ensembles: tuple[Ensemble, ...]

    def __post_init__(self):
        if isinstance(self.ensembles, list):
            object.__setattr__(self, "ensembles", tuple(self.ensembles))
        if isinstance(self.ensembles, tuple) and not self.ensembles:
            raise ValueError("A Group holds at least one ensemble.")
        # Transformations of JAX rebuild a Group from other things than ensembles.
        meshes = {e.mesh for e in self.ensembles if isinstance(e, Ensemble)}
        if len(meshes) > 1:
            raise ValueError(
                "The ensembles of a Group share one mesh; move them with"
                " Ensemble.on_mesh."
            )

    @property
    def num_members(self) -> int:
        """Members of all ensembles together."""
        return sum(e.num_members for e in self.ensembles)

    @property
    def member_ids(self) -> jax.Array:
        """Ids of all members, `[member]`."""
        return jnp.concatenate([e.member_ids for e in self.ensembles])

    def __len__(self) -> int:
        return self.num_members

    def __getitem__(self, index: Any) -> Any:
        """One member, numbered through all ensembles; `g[2:5]`: some."""
        if isinstance(index, (int, np.integer)) and not isinstance(index, bool):
            (part,) = self.select([index]).ensembles
            return part[0]
        return self.select(index)

    def __iter__(self) -> Iterable[Any]:
        return (self[i] for i in range(self.num_members))

    def select(self, indices: Any) -> "Group":
        """The chosen members; ensembles of which none is chosen are left out.

        Args:
            indices: a slice, integers, or booleans `[member]`.

        Raises:
            ValueError, IndexError: as `members.select_members`, or if the order would
                mix the ensembles, whose members lie one after the other.
        """
        rows = np.asarray(member_rows(indices, self.num_members))
        starts = np.cumsum([0, *map(len, self.ensembles)])
        numbers = np.searchsorted(starts, rows, side="right") - 1
        if (np.diff(numbers) < 0).any():
            raise ValueError(
                "The members of a Group lie ensemble by ensemble, and cannot be chosen"
                f" in the order {rows.tolist()}."
            )
        parts = [
            ensemble.select(rows[numbers == i] - starts[i])
            for i, ensemble in enumerate(self.ensembles)
            if (numbers == i).any()
        ]
        return Group(tuple(parts))

    def on_mesh(self, mesh: Mesh) -> "Group":
        """The same members, split over the devices of another mesh."""
        return Group(tuple(e.on_mesh(mesh) for e in self.ensembles))

    def save(self, path: Any) -> None:
        """Writes all ensembles to a new directory, as `Ensemble.save`; all or none.

        Raises:
            ValueError: if `path` exists; nothing is overwritten.
        """
        with checkpoint.written_whole(path) as partial:
            for number, ensemble in enumerate(self.ensembles):
                ensemble.save(partial / str(number))

    @classmethod
    def load(cls, path: Any, *, mesh: Mesh | None = None) -> "Group":
        """Reads what `save` wrote, onto any mesh; see `Ensemble.load`.

        Raises:
            ValueError: if there is no group at `path`.
        """
        path, parts = epath.Path(path), []
        while (path / str(len(parts))).exists():
            parts.append(Ensemble.load(path / str(len(parts)), mesh=mesh))
        if not parts:
            raise ValueError(f"There is no saved group at {path}.")
        return cls(tuple(parts))

    def __call__(self, x: Any, *, block: int | str | None = "auto") -> Any:
        """`[member, batch, ...]` of all members; their outputs must agree in shape."""
        outputs = [ensemble(x, block=block) for ensemble in self.ensembles]
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *outputs)


def predict(
    ensemble: Ensemble | Group,
    x: Any,
    *,
    batch_size: int = 512,
    block: int | str | None = "auto",
) -> Any:
    """Every member's outputs for many inputs, a batch at a time (compiled).

    Args:
        ensemble: the members.
        x: inputs, leaves `[example, ...]`.
        batch_size: examples at a time, for all members of a device.
        block: members of a device that run at once; see `map_members`.

    Returns:
        Leaves `[member, example, ...]`, in evaluation mode. All batches have one shape:
        the last is padded with copies of its first example, which are dropped.

    Raises:
        ValueError: if `x` is empty or its leaves differ in length.
    """
    sizes = {np.shape(leaf)[0] if np.shape(leaf) else 0 for leaf in jax.tree.leaves(x)}
    if len(sizes) != 1 or 0 in sizes or batch_size < 1:
        raise ValueError(
            "predict needs inputs [example, ...] of one length, at least 1, and a"
            f" positive batch_size; got lengths {sorted(sizes)} and {batch_size}."
        )
    if isinstance(ensemble, Group):
        parts = [
            predict(e, x, batch_size=batch_size, block=block)
            for e in ensemble.ensembles
        ]
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
    (num_examples,) = sizes
    shards = ensemble.mesh.shape["data"]
    size = -(-min(batch_size, num_examples) // shards) * shards
    outputs = []
    for start in range(0, num_examples, size):
        count = min(size, num_examples - start)
        batch = jax.tree.map(lambda leaf: leaf[start : start + count], x)  # noqa: B023
        padded = jax.tree.map(lambda leaf: _padded(leaf, size), batch)
        result = ensemble(padded, block=block)
        outputs.append(jax.tree.map(lambda leaf: leaf[:, :count], result))  # noqa: B023
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=1), *outputs)


def _padded(leaf, rows):
    leaf = np.asarray(leaf) if not isinstance(leaf, jax.Array) else leaf
    missing = rows - leaf.shape[0]
    if not missing:
        return leaf
    module = jnp if isinstance(leaf, jax.Array) else np
    copies = module.broadcast_to(leaf[:1], (missing, *leaf.shape[1:]))
    return module.concatenate([leaf, copies])
