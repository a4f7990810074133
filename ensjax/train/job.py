"""`TrainingJob`: one call of `fit`, described before anything is made."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from ensjax.ensemble import Ensemble
from ensjax.mesh import make_mesh
from ensjax.train.fit import fit
from ensjax.train.health import Health
from ensjax.train.history import TrainingLog
from ensjax.train.preparation import prepare_run
from ensjax.train.progress import some
from ensjax.train.run import Run


@dataclasses.dataclass(frozen=True)
class TrainingJob:
    """The arguments of one call of `fit`, for some members by their ids.

    An experiment describes its training with it, so that the same description can be
    run, planned without running, or run again for one member.

    Attributes:
        make_model: builds one member from `nnx.Rngs`, as for `Ensemble.init`.
        member_ids: of all members, which may be none of a mesh's multiples.
        init_seed: of the initial weights.
        data: resident arrays, leaves `[example, ...]`, or their shapes
            (`jax.ShapeDtypeStruct`) where the data are not at hand; or a loader, any
            iterable of batches that begins anew with every `iter`.
        hyper: None, or hyperparameters with leaves `[member]`.
        mesh_sizes: devices along "member", "data" and "model", -1 for what is left.
        options: the other keyword arguments of `fit` that say what is computed: `loss`,
            `make_tx`, `steps`, `seed`, ... Weights may be `[member, example]`.
        start: None, or what is done to new members before the first step, such as
            giving each its own columns. It depends on the members' ids, not on places.
        stage: the folder of its checkpoints within those of a run; "": they are there
            themselves.
        why_no_replay: "", or why config and seed alone do not make a member again, in
            one sentence.
        is_stream: whether `data`, where they are shapes, are those of one global batch
            `[batch, ...]` of a loader that is not at hand.
    """

    make_model: Callable[[nnx.Rngs], nnx.Module]
    member_ids: tuple[int, ...]
    init_seed: int
    data: Any
    hyper: Any
    mesh_sizes: Mapping[str, int]
    options: Mapping[str, Any]
    start: Callable[[Ensemble], Ensemble] | None = None
    stage: str = ""
    why_no_replay: str = ""
    is_stream: bool = False

    def with_options(self, **changes: Any) -> "TrainingJob":
        """The same job with other keyword arguments of `fit`."""
        return dataclasses.replace(self, options={**self.options, **changes})

    def mesh(self, devices: Sequence[Any] | None = None) -> Mesh:
        """The mesh of these sizes over some devices; all that there are by default."""
        return make_mesh(**self.mesh_sizes, devices=devices)

    def ensemble(self, mesh: Mesh | None = None) -> Ensemble:
        """The members with their initial weights, on their devices."""
        ensemble = Ensemble.init(
            self.make_model,
            member_ids=self.member_ids,
            seed=self.init_seed,
            mesh=self.mesh() if mesh is None else mesh,
        )
        return ensemble if self.start is None else self.start(ensemble)

    def abstract_ensemble(self, mesh: Mesh) -> Ensemble:
        """The ensemble's shapes alone; the devices of the mesh need not be there."""
        shapes = jax.eval_shape(
            lambda: Ensemble.init(
                self.make_model, member_ids=self.member_ids, seed=self.init_seed
            )
        )
        return dataclasses.replace(shapes, mesh=mesh)

    def select(self, member_ids: Sequence[int]) -> "TrainingJob":
        """The same training of some of the members, by id.

        Raises:
            ValueError: for an id that is not of this job; names it.
        """
        places = {id_: place for place, id_ in enumerate(self.member_ids)}
        for id_ in member_ids:
            if id_ not in places:
                raise ValueError(
                    f"There is no member {id_}; the members are"
                    f" {some(self.member_ids)}."
                )
        rows = np.array([places[id_] for id_ in member_ids], int)
        hyper = jax.tree.map(lambda x: np.asarray(x)[rows], self.hyper)
        options = dict(self.options)
        for name in ("weights", "loss_weights"):
            if np.ndim(options.get(name)) == 2:
                options[name] = np.asarray(options[name])[rows]
        return dataclasses.replace(
            self, member_ids=tuple(member_ids), hyper=hyper, options=options
        )

    def prepare(self, mesh: Mesh | None = None) -> Run:
        """The run that `fit` would begin, checked and placed; nothing is trained."""
        self.check_data()
        arguments = inspect.signature(fit).bind(
            self.ensemble(mesh), self.data, hyper=self.hyper, **self.fit_options()
        )
        arguments.apply_defaults()
        names = inspect.signature(prepare_run).parameters
        given = {k: v for k, v in arguments.arguments.items() if k in names}
        return prepare_run(**given, saves=False)

    def fit(self, mesh: Mesh | None = None, **others: Any) -> tuple[Any, TrainingLog]:
        """Runs it; `others` are arguments of `fit` that change no number.

        Such are `checkpoint_dir`, `logger` and `progress`.

        Raises:
            ValueError: if `data` holds shapes only; and what `fit` raises.
        """
        self.check_data()
        options = self.fit_options() | others
        return fit(self.ensemble(mesh), self.data, hyper=self.hyper, **options)

    def check_data(self) -> None:
        """Raises `ValueError` where the data are shapes alone."""
        for leaf in jax.tree.leaves(self.data):
            if isinstance(leaf, jax.ShapeDtypeStruct):
                raise ValueError("This job knows only the shapes of its data.")

    def fit_options(self) -> dict[str, Any]:
        """`options`; a policy that seeds members anew is told how to build one."""
        return with_maker(self.options, self.make_model)


def with_maker(options: Mapping[str, Any], make_model: Any) -> dict[str, Any]:
    """Arguments of `fit` whose health policy can build new members.

    Args:
        options: of a job.
        make_model: of its members; for a group a tuple with that of every stack.
    """
    options = dict(options)
    health = Health.of(options.get("health", "freeze"))
    if health.policy == "reseed" and health.make_model is None:
        health = dataclasses.replace(health, make_model=make_model)
    return options | {"health": health}
