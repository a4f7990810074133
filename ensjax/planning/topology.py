"""Devices of a TPU slice, or of more GPUs, that are not there, to compile for them."""

import os
import re
from collections.abc import Sequence
from typing import Any


class NoTopology(ValueError):
    """The slice cannot be compiled for; says in one line why."""


def is_of_gpus(name: str) -> bool:
    """Whether a topology is one of GPUs."""
    return name.lower().startswith("gpu")


def topology_devices(name: str) -> Sequence[Any]:
    """Devices that are not there, for a mesh to compile for; nothing can run on them.

    Args:
        name: a TPU slice such as "v5e:8x8", for which the compiler of the package
            libtpu is used, by one process at a time; or "gpu:HOSTSxGPUS" such as
            "gpu:2x8", GPUs of the kind that is here.

    Raises:
        NoTopology: if libtpu is not installed, or knows no such slice, or another
            process uses it; or if there is no GPU here.
    """
    return _gpus(name) if is_of_gpus(name) else _tpu_slice(name)


def _gpus(name):
    import jax
    from jax.experimental import topologies

    found = re.fullmatch(r"gpu:([1-9]\d*)x([1-9]\d*)", name.lower())
    if not found:
        raise NoTopology(
            f"GPUs are described by hosts and GPUs of each, such as gpu:2x8; got {name}"
        )
    if jax.default_backend() != "gpu":
        raise NoTopology(
            f"compiling for {name} needs one GPU of that kind here; JAX finds"
            f" {jax.default_backend()} devices only"
        )
    hosts, gpus = found.groups()
    try:
        return topologies.get_topology_desc(
            platform=jax.devices()[0].platform, topology=f"1x{hosts}x{gpus}"
        ).devices
    except (jax.errors.JaxRuntimeError, ValueError, RuntimeError, KeyError) as error:
        first = " ".join(str(error).split())[:300]
        raise NoTopology(f"JAX cannot describe {name}: {first}") from error


def _tpu_slice(name):
    # Without these it asks a metadata server, and logs that it has no worker.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")
    import jax
    from jax.experimental import topologies

    if not re.fullmatch(r"v\d+\w*:\d+(x\d+)*", name.lower()):
        raise NoTopology(
            "a TPU slice is named by its kind and shape, such as v5e:8x8 or v4:2x2x1,"
            f" and GPUs gpu:2x8; got {name!r}"
        )
    try:
        import libtpu  # noqa: F401
    except ImportError:
        raise NoTopology(
            f"compiling for {name} needs libtpu, which is not installed: pip install"
            " 'ensjax[tpu-plan]'"
        ) from None
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    except (jax.errors.JaxRuntimeError, ValueError, RuntimeError, KeyError) as error:
        first = " ".join(str(error).split())[:300]
        raise NoTopology(
            f"libtpu cannot describe {name!r} (such as v5e:8x8 or v4:2x2x1): {first}"
        ) from error
