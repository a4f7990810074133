"""`GroupJob`: one call of `fit` for several architectures, before anything is made."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ensjax.group import Group
from ensjax.train.fit import fit
from ensjax.train.history import TrainingLog
from ensjax.train.job import TrainingJob, with_maker
from ensjax.train.progress import some

_WEIGHTS = ("weights", "loss_weights")


@dataclasses.dataclass(frozen=True)
class GroupJob:
    """The arguments of one call of `fit` of a `Group`: a job for each of its stacks.

    All stacks train in one program on the same data. They differ in the model, the ids
    of the members, and what each member is given: hyperparameters and weights.

    Attributes:
        stacks: the jobs, in the order of the group; in what they share, the first's
            count. Ids differ among all of them.

    Raises:
        ValueError: if there is no stack, or an id is in two.

    Example:
        >>> import numpy as np, optax
        >>> from ensjax import losses, nn
        >>> from ensjax.train import GroupJob, TrainingJob
        >>> def make_model(width):
        ...     return lambda rngs: nn.MLP(
        ...         in_features=4, hidden=(width,), num_outputs=3, rngs=rngs)
        >>> data = np.zeros((8, 4), np.float32), np.zeros(8, np.int32)
        >>> job = GroupJob(tuple(
        ...     TrainingJob(
        ...         make_model(width), member_ids=(width, width + 1), init_seed=0,
        ...         data=data, hyper=None, mesh_sizes=dict(member=1), options=dict(
        ...             loss=losses.cross_entropy, make_tx=lambda: optax.sgd(0.1),
        ...             steps=2, batch_size=4))
        ...     for width in (8, 16)))
        >>> job.member_ids
        (8, 9, 16, 17)
    """

    stacks: tuple[TrainingJob, ...]

    def __post_init__(self):
        if not self.stacks:
            raise ValueError("A GroupJob holds the job of at least one stack; got ().")
        ids = self.member_ids
        if len(set(ids)) < len(ids):
            raise ValueError(
                f"member_ids must differ among all stacks of a group; got {some(ids)}."
            )

    @property
    def member_ids(self) -> tuple[int, ...]:
        """Of all stacks, one after the other."""
        return sum((job.member_ids for job in self.stacks), ())

    @property
    def data(self) -> Any:
        """What all stacks train on."""
        return self.stacks[0].data

    @property
    def is_stream(self) -> bool:
        """As of `TrainingJob`."""
        return self.stacks[0].is_stream

    @property
    def hyper(self) -> Any:
        """Hyperparameters of all members, leaves `[member]`, or None."""
        parts = [job.hyper for job in self.stacks]
        return jax.tree.map(_concatenated, *parts)

    @property
    def options(self) -> Mapping[str, Any]:
        """Keyword arguments of `fit`; weights of all members, `[member, example]`."""
        options = dict(self.stacks[0].options)
        for name in _WEIGHTS:
            if np.ndim(options.get(name)) == 2:
                parts = [job.options[name] for job in self.stacks]
                options[name] = _concatenated(*parts)
        return options

    @property
    def stage(self) -> str:
        """The folder of the checkpoints within those of a run."""
        return self.stacks[0].stage

    @property
    def why_no_replay(self) -> str:
        """As of `TrainingJob`."""
        return self.stacks[0].why_no_replay

    def with_options(self, **changes: Any) -> "GroupJob":
        """The same job with other keyword arguments of `fit`, none of them weights."""
        return GroupJob(tuple(job.with_options(**changes) for job in self.stacks))

    def mesh(self, devices: Sequence[Any] | None = None) -> Mesh:
        """The mesh of the jobs over some devices; all that there are by default."""
        return self.stacks[0].mesh(devices)

    def ensemble(self, mesh: Mesh | None = None) -> Group:
        """The members with their initial weights, on their devices."""
        mesh = self.mesh() if mesh is None else mesh
        return Group(tuple(job.ensemble(mesh) for job in self.stacks))

    def abstract_ensemble(self, mesh: Mesh) -> Group:
        """The group's shapes alone; the devices of the mesh need not be there."""
        return Group(tuple(job.abstract_ensemble(mesh) for job in self.stacks))

    def stack_of(self, member_id: int) -> TrainingJob:
        """The job of the stack that has a member.

        Raises:
            ValueError: for an id that no stack has; names it.
        """
        for job in self.stacks:
            if member_id in job.member_ids:
                return job
        raise ValueError(
            f"There is no member {member_id}; the members are {some(self.member_ids)}."
        )

    def select(self, member_ids: Sequence[int]) -> "TrainingJob | GroupJob":
        """The same training of some of the members, by id; of one stack, its job.

        Raises:
            ValueError: for an id that no stack has; names it.
        """
        chosen = {id_: self.stack_of(id_) for id_ in member_ids}
        parts = [
            job.select([id_ for id_ in member_ids if chosen[id_] is job])
            for job in self.stacks
            if any(own is job for own in chosen.values())
        ]
        return parts[0] if len(parts) == 1 else GroupJob(tuple(parts))

    def fit(self, mesh: Mesh | None = None, **others: Any) -> tuple[Any, TrainingLog]:
        """Runs it; `others` as for `TrainingJob.fit`.

        Raises:
            ValueError: if `data` holds shapes only; and what `fit` raises.
        """
        self.stacks[0].check_data()
        options = self.fit_options() | others
        return fit(self.ensemble(mesh), self.data, hyper=self.hyper, **options)

    def fit_options(self) -> dict[str, Any]:
        """As of `TrainingJob`."""
        return with_maker(self.options, tuple(job.make_model for job in self.stacks))


def _concatenated(*parts):
    if isinstance(parts[0], jax.ShapeDtypeStruct):
        rows = sum(part.shape[0] for part in parts)
        return jax.ShapeDtypeStruct((rows, *parts[0].shape[1:]), parts[0].dtype)
    return np.concatenate(parts)
