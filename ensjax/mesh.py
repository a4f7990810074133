"""Devices: the mesh ("member", "data", "model") and where arrays live on it."""

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding

AXES = ("member", "data", "model")

# JAX keeps traces of inner functions; this context is part of their key, so that one
# traced for a CPU is not reused for a TPU slice.
_platform = jax.make_user_context(default_value=None)


def make_mesh(
    *,
    member: int = -1,
    data: int = 1,
    model: int = 1,
    devices: Sequence[Any] | None = None,
) -> Mesh:
    """A mesh with axes ("member", "data", "model").

    Args:
        member: devices along which independent members are split; -1: all that is left.
        data: devices along which the examples of a batch are split.
        model: devices along which one member is split.
        devices: all devices of all processes by default. Fewer may be used than exist.

    Returns:
        A mesh of `member * data * model` devices; every axis is of type Auto, because
        ordinary indexing and convolutions fail on Explicit axes.

    Raises:
        ValueError: if the sizes do not fit the devices, with what would.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = {"member": member, "data": data, "model": model}
    for name, size in sizes.items():
        if size != -1 and size < 1:
            raise ValueError(
                f"Mesh axis {name!r} must be at least 1, or -1 for all that is left;"
                f" got {size}."
            )
    free = [name for name, size in sizes.items() if size == -1]
    if len(free) > 1:
        raise ValueError(f"Only one mesh axis may be -1; got {', '.join(free)}.")
    fixed = 1
    for size in sizes.values():
        fixed *= 1 if size == -1 else size
    if free:
        if len(devices) % fixed:
            raise ValueError(
                f"{len(devices)} devices cannot be split into a mesh {sizes}: the fixed"
                f" axes take {fixed}, which does not divide {len(devices)}."
            )
        sizes[free[0]] = len(devices) // fixed
    elif fixed > len(devices):
        raise ValueError(
            f"A mesh {sizes} needs {fixed} devices, but there are {len(devices)}."
        )
    shape = tuple(sizes.values())
    count = shape[0] * shape[1] * shape[2]
    return jax.make_mesh(
        shape, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices[:count]
    )


# Every device holds the data: more of them cost memory sooner than they gain time.
_MOST_CPU_DEVICES = 8


def use_cpu_cores() -> None:
    """Makes every CPU core a device of its own, at most 8; before JAX starts.

    Members are then split over cores as over GPUs. XLA runs most operations of a small
    network on one core, so that two devices on two cores train small dense members
    twice as fast and vision transformers 1.3 times; convolutional nets gain nothing. It
    changes nothing where JAX finds an accelerator, or where JAX_NUM_CPU_DEVICES or
    XLA_FLAGS have set a number already. `ensjax run` and `ensjax bench` call it.

    Raises:
        RuntimeError: if JAX has started its devices.
    """
    in_flags = "host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if in_flags or jax.config.jax_num_cpu_devices != -1:
        return
    jax.config.update("jax_num_cpu_devices", min(_num_cores(), _MOST_CPU_DEVICES))


def _num_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def default_mesh() -> Mesh:
    """All devices on the member axis."""
    return make_mesh()


def check_mesh(mesh: Mesh) -> None:
    """Raises `ValueError` unless `mesh` has the three axes of `make_mesh`."""
    if tuple(mesh.axis_names) != AXES:
        raise ValueError(
            f"The mesh must have axes {AXES}, as ensjax.make_mesh(member=..., data=...,"
            f" model=...) builds it; got {tuple(mesh.axis_names)}."
        )


def place(tree: Any, mesh: Mesh, spec: jax.P) -> Any:
    """`tree` on the devices of `mesh`, every leaf split by `spec`.

    Also in a job of several processes, where every process holds the whole of each
    (host) array and keeps its own part.
    """
    sharding = NamedSharding(mesh, spec)

    def put(leaf):
        if isinstance(leaf, jax.core.Tracer):  # its shape may be all that is asked for
            return jax.device_put(leaf, sharding)
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return jax.jit(lambda x: x, out_shardings=sharding)(leaf)
        return jax.device_put(leaf, sharding)

    return jax.tree.map(put, tree)


def fetch(tree: Any) -> Any:
    """`tree` as NumPy arrays, whole on every process (a collective call)."""
    leaves, treedef = jax.tree.flatten(tree)
    remote = [
        i
        for i, leaf in enumerate(leaves)
        if isinstance(leaf, jax.Array)
        and not (leaf.is_fully_addressable or leaf.is_fully_replicated)
    ]
    if remote:
        from jax.experimental import multihost_utils

        whole = multihost_utils.process_allgather(
            [leaves[i] for i in remote], tiled=True
        )
        for i, leaf in zip(remote, whole, strict=True):
            leaves[i] = leaf
    return jax.device_get(jax.tree.unflatten(treedef, leaves))


def from_first_process(value: Any) -> Any:
    """What process 0 of the job passed, on every process (a collective call).

    Hosts may see different listings of a directory, so that one of them decides.

    Args:
        value: what JSON can hold.
    """
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
    message = np.zeros(size, np.uint8)
    if jax.process_index() == 0:
        message[:] = data
    message = np.asarray(multihost_utils.broadcast_one_to_all(message))
    return json.loads(message.tobytes())


def platform(mesh: Mesh) -> str:
    """ "cpu", "gpu" or "tpu": what the devices of `mesh` are."""
    name = mesh.devices.flat[0].platform
    return "gpu" if name in ("cuda", "rocm") else name


@contextlib.contextmanager
def tracing_for(name: str) -> Iterator[None]:
    """Says which platform the enclosed tracing is for (see `tracing_platform`)."""
    with _platform(name):
        yield


def tracing_platform() -> str:
    """The platform of the program being traced.

    Inside `map_members` it is the mesh's, which differs from the default backend when a
    program is compiled for a TPU slice on a laptop; elsewhere the default backend's.
    """
    name = _platform.value or jax.default_backend()
    return "gpu" if name in ("cuda", "rocm") else name
