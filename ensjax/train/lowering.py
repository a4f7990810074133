"""`lower_step`: the program that `fit` would run, without data, devices or training."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding

from ensjax.ensemble import Ensemble
from ensjax.group import Group
from ensjax.mapping import Blocks, mesh_program
from ensjax.train.arguments import (
    check_fit_mesh,
    check_sampling,
    check_weights_shape,
    per_member,
)
from ensjax.train.assembly import abstract_states, build_programs
from ensjax.train.health import Health
from ensjax.train.objectives import Joint


def lower_step(
    ensemble: Ensemble | Group,
    data: Any,
    *,
    loss: Callable[..., Any] | Joint,
    make_tx: Callable[..., optax.GradientTransformation],
    hyper: Any = None,
    batch_size: int = 64,
    sampling: str = "independent",
    weights: Any = None,
    augment: Callable[[jax.Array, Any], Any] | None = None,
    keep_best: bool = False,
    health: str | Health = "freeze",
    steps_per_call: int = 1,
    block: int | str | None = "auto",
    unroll: bool = False,
    mesh: Mesh | None = None,
    shard_state: bool = False,
) -> jax.stages.Lowered:
    """The training program of `fit` for the same arguments, lowered and not run.

    Its compiled form tells collectives (`as_text`), operations (`cost_analysis`) and
    bytes (`memory_analysis`). Only shapes are read, so that nothing is allocated, and
    the mesh may be of devices that are not there, such as a TPU topology.

    Args:
        ensemble: members, or their shapes:
            `jax.eval_shape(lambda: Ensemble.init(make_model, num_members=64))`.
        data: resident data, or its shapes, leaves `[example, ...]`.
        loss: as for `fit`, and so are all others.
        make_tx: builds the optimizer.
        hyper: hyperparameters.
        batch_size: examples of the global batch of each member.
        sampling: "independent", "shared", "bootstrap" or "weighted".
        weights: for "weighted": `[example]` or `[member, example]`, or their shape.
        augment: of one example.
        keep_best: whether the state holds best weights, as with early stopping.
        health: what is done with broken members.
        steps_per_call: 1 is written without a loop, so that all of it is counted.
        block: local members that run at once.
        unroll: local members one after the other.
        mesh: default: the ensemble's.
        shard_state: keep the state split over "data".

    Raises:
        ValueError: if sampling is unknown, weights are missing or of another shape, or
            the batch does not divide over the data shards or exceeds the examples.

    Example:
        >>> import ensjax, jax, jax.numpy as jnp, optax
        >>> def make_model(rngs):
        ...     return ensjax.nn.MLP(in_features=4, num_outputs=3, rngs=rngs)
        >>> ensemble = ensjax.Ensemble.init(make_model, num_members=2)
        >>> shapes = (
        ...     jax.ShapeDtypeStruct((5000, 4), jnp.float32),
        ...     jax.ShapeDtypeStruct((5000,), jnp.int32))
        >>> lowered = lower_step(
        ...     ensemble, shapes, loss=ensjax.losses.cross_entropy,
        ...     make_tx=optax.adam, hyper=1e-3)
        >>> lowered.compile().memory_analysis().argument_size_in_bytes > 0
        True
    """
    check_sampling(sampling, weights, is_resident=True)
    ensembles = ensemble.ensembles if isinstance(ensemble, Group) else (ensemble,)
    mesh = ensembles[0].mesh if mesh is None else mesh
    check_fit_mesh(mesh)
    blocks = Blocks(block, unroll)
    num_examples = jax.tree.leaves(data)[0].shape[0]
    shards = mesh.shape["data"]
    if batch_size > num_examples or batch_size % shards:
        raise ValueError(
            f"batch_size={batch_size} must be at most the {num_examples} examples and"
            f" divide over data={shards} devices."
        )
    counts = [e.member_ids.shape[0] for e in ensembles]

    def stacked(tree, count):
        rows = blocks.rows(count, mesh.shape["member"])
        return jax.tree.map(
            lambda x: _shape((rows, *x.shape[1:]), x.dtype, mesh, jax.P("member")), tree
        )

    def by_stack(trees):
        return tuple(map(stacked, trees, counts))

    model_states = by_stack([e.state for e in ensembles])
    # Every stack's rows have the same shapes behind the member axis.
    hypers = by_stack([per_member(hyper, sum(counts))] * len(counts))
    weights_kind, running_sums = "shared", (None,) * len(ensembles)
    if weights is not None:
        shape = np.shape(weights)
        weights_kind = check_weights_shape(shape, num_examples, sum(counts))
        sums = (_shape(shape, np.uint32, mesh, jax.P()),) * len(ensembles)
        running_sums = by_stack(sums) if weights_kind == "member" else sums
    init, job = build_programs(
        ensembles,
        model_states,
        hypers,
        loss=loss,
        make_tx=make_tx,
        has_hyper=hyper is not None,
        sampling=sampling,
        batch_size=batch_size,
        num_examples=num_examples,
        augment=augment,
        keep_best=keep_best,
        healths=Health.of(health).for_stacks(ensembles),
        max_steps=steps_per_call,
        weights_kind=weights_kind,
        data_kind="shared",
        blocks=blocks,
        mesh=mesh,
        shard_state=shard_state,
    )
    whole = jax.tree.map(
        lambda x: _shape(
            x.shape, jax.dtypes.canonicalize_dtype(x.dtype), mesh, jax.P()
        ),
        data,
    )
    return mesh_program(job, mesh).lower(
        abstract_states(init, job, mesh, model_states, hypers),
        hypers,
        by_stack([e.member_ids for e in ensembles]),
        running_sums,
        whole,
        0,
        steps_per_call,
        0,
    )


def _shape(shape, dtype, mesh, spec):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))
