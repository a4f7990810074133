"""Devices of a TPU slice that is not there, to compile for it."""

import os
from collections.abc import Sequence
from typing import Any


class NoTopology(ValueError):
    """The slice cannot be compiled for; says in one line why."""


def topology_devices(name: str) -> Sequence[Any]:
    """The devices of a TPU slice such as "v5e:8x8", for a mesh to compile for.

    The compiler of the package libtpu is used, by one process at a time; nothing can
    run on these devices.

    Raises:
        NoTopology: if libtpu is not installed, or knows no such slice, or another
            process uses it.
    """
    # Without these it asks a metadata server, and logs that it has no worker.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")
    import jax
    from jax.experimental import topologies

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
