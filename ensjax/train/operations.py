"""What a member's loss, optimizer and augmentation compute, as checksums for a run.

Functions have names, and what they hold (a closure, a global, the activation of a
module) does not show in them. It does in the operations that they are traced to: two
functions of the same operations on the same numbers are the same. One member is traced
alone on one device, so that blocks, the mesh and the number of members have no say; nor
has the form of a convolution, which is traced as what all forms compute.
"""

import dataclasses
import functools
import hashlib
import itertools
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from ensjax.mesh import platform, tracing_for
from ensjax.ops.conv import tracing_what_forms_compute
from ensjax.train import identity
from ensjax.train.member import Member
from ensjax.train.objectives import Joint

_AXES = [(name, 1) for name in ("member", "data", "model")]
# How a checksum is made; another number where the same functions get other ones.
_KIND = 2


def operations_of(
    members: tuple[Member, ...],
    model_states: Any,
    hypers: Any,
    batch: Any,
    *,
    num_members: tuple[int, ...],
    evaluation: Any,
    evaluation_loss: Callable[..., Any] | None,
    mesh: Mesh,
) -> dict[str, Any]:
    """Checksums of the parts of a training step, stack by stack, as JSON holds them.

    Args:
        members: one description for each stack.
        model_states: of each stack, leaves `[row, ...]`; shapes are enough.
        hypers: of each stack, leaves `[row, ...]`; shapes are enough.
        batch: shapes of a global batch as the data have it, leaves `[batch, ...]`.
        num_members: of each stack.
        evaluation: what chooses the best weights, leaves `[example, ...]`, or None.
        evaluation_loss: its loss.
        mesh: whose platform is traced for.

    Returns:
        `{"made_with": versions and platform, "stacks": [{part: checksum}]}`; compare
        them with `other_operations`.
    """
    with tracing_for(platform(mesh)), tracing_what_forms_compute():
        stacks = [
            dict(
                _parts(
                    member,
                    evaluation_loss,
                    platform(mesh),
                    *_as_key(*map(_one, own), batch, evaluation),
                )
            )
            for member, *own in zip(members, model_states, hypers, strict=True)
        ]
        if isinstance(members[0].loss, Joint):
            joint = _joint(members, model_states, batch, num_members)
            stacks = [own | {"loss": joint} for own in stacks]
    return {"made_with": _versions(mesh), "stacks": stacks}


def other_operations(stored: Any, ours: dict[str, Any]) -> list[str] | None:
    """The parts in which two runs differ; None if that cannot be told.

    Another version of JAX writes the same computation in other operations, so does
    another platform; and older checkpoints hold no checksums, or of another kind.
    """
    if stored is None or stored["made_with"] != ours["made_with"]:
        return None
    names: dict[str, None] = {}
    for theirs, own in zip(stored["stacks"], ours["stacks"], strict=True):
        for name in (*own, *theirs):
            if theirs.get(name) != own.get(name):
                names[name] = None
    return list(names)


def _versions(mesh):
    found = {"jax": jax.__version__, "flax": flax.__version__}
    found |= {"optax": optax.__version__, "platform": platform(mesh)}
    found["checksums"] = _KIND
    return found


def _as_key(*trees):
    """Trees of shapes as what can be a key."""
    leaves, structure = jax.tree.flatten(trees)
    return structure, tuple((tuple(x.shape), x.dtype) for x in leaves)


@functools.lru_cache(maxsize=32)
def _parts(member, evaluation_loss, platform, structure, leaves):
    """Checksums of one member's functions by the names that `fit` gives them.

    Kept, as a traced program is: the next call of the same `fit` need not trace again.
    """
    del platform  # the trace is for it, and another one's is another
    shapes = [jax.ShapeDtypeStruct(*leaf) for leaf in leaves]
    model_state, hyper, batch, evaluation = structure.unflatten(shapes)
    member = dataclasses.replace(member, data_shards=1, layout=None)
    params, rest = model_state["params"], model_state["rest"]
    key = jax.eval_shape(lambda: jax.random.key(0, impl="threefry2x32"))
    found = {}
    if member.augment is not None:
        keys = jax.ShapeDtypeStruct((member.batch_size,), key.dtype)
        augment = jax.vmap(member.augment)
        found["augment"] = checksum(augment, keys, batch)
        batch = _shapes(augment, keys, batch)

    def loss_of(params, rest, batch, key, hyper):
        if isinstance(member.loss, Joint):
            model = member.graph.merge({"params": params, "rest": rest}, train=True)
            return member.loss.forward(model, batch, key)
        # Not its gradient, in which `jax.checkpoint` shows: what is kept for the way
        # back, and what is computed again, is no other training.
        return member.loss_and_rest(params, rest, batch, key, hyper)

    if member.weighs_loss:
        batch = batch, jax.ShapeDtypeStruct((member.batch_size,), jnp.float32)
    name = "forward or model" if isinstance(member.loss, Joint) else "loss or model"
    found[name] = checksum(loss_of, params, rest, batch, key, hyper)

    def optimize(params, grads, hyper):
        tx = member.tx(hyper)
        return tx.update(grads, tx.init(params), params)

    found["make_tx"] = checksum(optimize, params, params, hyper)
    if member.health.policy == "reseed":
        found["health.make_model"] = checksum(
            lambda seed: member.health.fresh(member.graph, seed, 0, 0), 0
        )
    if evaluation is not None:

        def evaluate(params, rest, batch, key):
            model = member.graph.merge({"params": params, "rest": rest}, train=False)
            return evaluation_loss(model, batch, key)

        found["evaluation_loss"] = checksum(evaluate, params, rest, evaluation, key)
    return found


def _joint(members, model_states, batch, num_members):
    """Of the objective of all members' outputs."""
    joint = members[0].loss
    key = jax.eval_shape(lambda: jax.random.key(0, impl="threefry2x32"))
    if members[0].augment is not None:
        keys = jax.ShapeDtypeStruct((members[0].batch_size,), key.dtype)
        batch = _shapes(jax.vmap(members[0].augment), keys, batch)

    def all_outputs(states, batch, key):
        def outputs(graph, state, count):
            model = graph.merge(state, train=True)
            one = joint.forward(model, batch, key)
            return jax.tree.map(lambda x: jnp.stack([x] * count), one)

        parts = [
            outputs(member.graph, state, count)
            for member, state, count in zip(members, states, num_members, strict=True)
        ]
        return jax.tree.map(lambda *xs: jnp.concatenate(xs), *parts)

    every = _shapes(all_outputs, list(map(_one, model_states)), batch, key)
    mask = jax.ShapeDtypeStruct((sum(num_members),), jnp.bool_)
    return checksum(joint.loss, every, batch, key, mask)


def _one(stacked):
    """Shapes of one row."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), stacked)


def _shapes(fn, *args):
    """As `jax.eval_shape`, of a function that may use the axes of the mesh."""
    return jax.make_jaxpr(fn, axis_env=_AXES, return_shape=True)(*args)[1]


def checksum(fn: Callable[..., Any], *shapes: Any) -> str:
    """Of the operations that a function is traced to, and of all numbers in them.

    It does not depend on the process: names of functions, addresses and devices are
    left out.

    Args:
        fn: a function of trees of arrays, which may use the axes of the mesh.
        shapes: its arguments, or their shapes.
    """
    closed = jax.make_jaxpr(fn, axis_env=_AXES)(*shapes)
    return _of_jaxpr(closed.jaxpr, closed.consts)


def _of_jaxpr(jaxpr, consts) -> str:
    numbers = itertools.count()

    def name(var, names):
        if hasattr(var, "val"):
            return f"{_plain(var.val)}:{_kind(var)}"
        if var not in names:
            names[var] = f"{next(numbers)}:{_kind(var)}"
        return names[var]

    def all_names(variables, names):
        return [name(var, names) for var in variables]

    names: dict[Any, str] = {}
    lines = [" ".join(all_names((*jaxpr.constvars, *jaxpr.invars), names))]
    lines += [_plain(value) for value in consts]

    def add(jaxpr, names):
        for eqn in jaxpr.eqns:
            given = all_names(eqn.invars, names)
            inner = _called(eqn)
            if inner is None:
                kept = {k: v for k, v in eqn.params.items() if not _is_about_places(k)}
                out = " ".join(all_names(eqn.outvars, names))
                what = f"{eqn.primitive.name} {_plain(kept)} {' '.join(given)}"
                lines.append(f"{out} = {what}")
                continue
            # Whether a part is compiled or kept apart does not change what it is. One
            # that is called twice has the same variables twice: names of its own.
            consts = [f"const {_plain(value)}" for value in inner.consts]
            variables = (*inner.jaxpr.constvars, *inner.jaxpr.invars)
            own = dict(zip(variables, (*consts, *given), strict=True))
            add(inner.jaxpr, own)
            found = all_names(inner.jaxpr.outvars, own)
            names.update(zip(eqn.outvars, found, strict=True))

    add(jaxpr, names)
    lines.append(" ".join(all_names(jaxpr.outvars, names)))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _kind(var):
    return f"{getattr(var.aval, 'dtype', '')}{getattr(var.aval, 'shape', '')}"


_CALLS = ("jit", "pjit", "closed_call", "checkpoint", "remat", "remat2")


class _Closed(NamedTuple):
    jaxpr: Any
    consts: tuple[Any, ...] = ()


def _called(eqn) -> _Closed | None:
    """What a call computes, which stands in its place; None for all else."""
    if eqn.primitive.name not in _CALLS or "jaxpr" not in eqn.params:
        return None
    inner = eqn.params["jaxpr"]
    if hasattr(inner, "consts"):
        return _Closed(inner.jaxpr, tuple(inner.consts))
    return _Closed(inner)


def _is_about_places(name: str) -> bool:
    """Whether a parameter says how an operation is called or where, not what it is."""
    return name in _NAMES_AND_PLACES or "sharding" in name or "layout" in name


_NAMES_AND_PLACES = frozenset(
    ("name", "ctx_mesh", "mesh", "devices", "srcs", "donated_invars", "inline")
    + ("keep_unused", "compiler_options_kvs", "debug_info")
)


def _plain(value: Any) -> str:
    """A number, a jaxpr or a parameter as text that is the same in any process."""
    if hasattr(value, "eqns"):
        return _of_jaxpr(value, ())
    if hasattr(value, "jaxpr") and hasattr(value, "consts"):
        return _of_jaxpr(value.jaxpr, value.consts)
    if isinstance(value, Mapping):
        items = sorted((str(k), _plain(v)) for k, v in value.items())
        return f"{{{', '.join(f'{k}={v}' for k, v in items)}}}"
    if isinstance(value, (set, frozenset)):
        return f"{{{', '.join(sorted(map(_plain, value)))}}}"
    if isinstance(value, (tuple, list)):
        return f"{type(value).__name__}({', '.join(map(_plain, value))})"
    is_array = isinstance(value, jax.Array)
    if is_array and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return f"key {identity.digest(jax.random.key_data(value))}"
    if hasattr(value, "__array__"):
        return f"array {identity.digest(value)}"
    if isinstance(value, (jax.Device, jax.sharding.Sharding)) or callable(value):
        return type(value).__name__
    return re.sub(r"\b0x[0-9a-fA-F]+", "", f"{value!r}")
