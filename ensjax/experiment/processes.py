"""Several processes as one run: starting them, and deciding together.

Whatever a host decides (resume or start, finished, a bad config), process 0 decides and
tells the others, so that an error ends all of them with the same line and none hangs.
"""

import glob
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from ensjax.experiment.exit_codes import ConfigError, SharedMistake, one_line

T = TypeVar("T")

# An idle peer notices a death only by missing heartbeats; JAX's default is 100 s.
HEARTBEAT_TIMEOUT_SECONDS = 20
_MESSAGE_BYTES = 2048

_LOST_PEER_SIGNS = (
    "gloo",
    "nccl",
    "connection closed",
    "connection reset",
    "socket closed",
    "heartbeat",
    "coordination",
    "unavailable",
    "barrier",
)


class ProcessFlags(NamedTuple):
    """The flags `--coordinator`, `--num_processes`, `--process_id`; None: not given."""

    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None


def check_flags(flags: ProcessFlags) -> None:
    """Raises `ConfigError` unless all three flags are given and fit, or none is."""
    given = [value is not None for value in flags]
    if not any(given):
        _check_open_mpi(os.environ)
        return
    if not all(given):
        missing = [
            f"--{name}" for name, there in zip(flags._fields, given) if not there
        ]
        raise ConfigError(
            "--coordinator HOST:PORT, --num_processes N and --process_id I go together;"
            f" {' and '.join(missing)} missing."
        )
    host, _, port = flags.coordinator.rpartition(":")
    if not host or not port.isdecimal():
        raise ConfigError(
            f"--coordinator must be HOST:PORT of process 0; got {flags.coordinator!r}."
        )
    if not 0 <= flags.process_id < flags.num_processes:
        raise ConfigError(
            f"--process_id must lie in 0..{flags.num_processes - 1} for"
            f" --num_processes {flags.num_processes}; got {flags.process_id}."
        )


def _check_open_mpi(environ: Mapping[str, str]) -> None:
    """Raises `ConfigError` for an Open MPI that JAX cannot ask for its coordinator."""
    size = _count(environ, "OMPI_COMM_WORLD_SIZE")
    if size > 1 and detect_cluster(environ) is None:
        raise ConfigError(
            f"Open MPI started {size} processes, but this version (5 or later) does not"
            " say where process 0 is; give --coordinator HOST:PORT --num_processes"
            f" {size} --process_id $OMPI_COMM_WORLD_RANK."
        )


def detect_cluster(environ: Mapping[str, str] | None = None) -> str | None:
    """The cluster that started this process as one of several, or None.

    Only environment variables (and, on Google's TPU machines, device files) are looked
    at: a laptop never waits for a coordinator. "slurm" and "openmpi" need more than one
    task; "gke-tpu" needs several workers; "tpu" is a TPU machine, whose metadata JAX
    asks how many hosts there are.
    """
    environ = os.environ if environ is None else environ
    slurm = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")
    if all(name in environ for name in slurm) and _count(environ, "SLURM_NTASKS") > 1:
        return "slurm"
    if (
        "OMPI_MCA_orte_hnp_uri" in environ
        and _count(environ, "OMPI_COMM_WORLD_SIZE") > 1
    ):
        return "openmpi"
    if "," in environ.get("TPU_WORKER_HOSTNAMES", ""):
        return "gke-tpu"
    if _count(environ, "MEGASCALE_NUM_SLICES") > 1:
        return "gke-tpu"
    is_notebook = any(name.startswith(("COLAB_", "KAGGLE_")) for name in environ)
    if environ.get("TPU_SKIP_MDS_QUERY") or is_notebook or not _is_google_tpu_machine():
        return None
    return "tpu"


def initialize(flags: ProcessFlags) -> None:
    """Joins the other processes, if there are any; comes before every other JAX call.

    Raises:
        ConfigError: if they cannot be reached.
    """
    import jax

    cluster = detect_cluster()
    if flags.coordinator is None and cluster is None:
        return
    where = f"coordinator {flags.coordinator}" if flags.coordinator else cluster
    print(f"joining the other processes of the job ({where})", flush=True)
    try:
        jax.distributed.initialize(
            *flags, heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT_SECONDS
        )
    except (ValueError, RuntimeError) as error:
        start = f"the cluster ({cluster})" if flags.coordinator is None else "the flags"
        raise ConfigError(
            f"cannot join the other processes as {start} say: {one_line(error)} Give"
            " --coordinator HOST:PORT --num_processes N --process_id I."
        ) from error


def process_index() -> int:
    """This process's number in the job; 0 where it is alone."""
    import jax

    return jax.process_index() if jax.distributed.is_initialized() else 0


def process_count() -> int:
    """How many processes the job has."""
    import jax

    return jax.process_count() if jax.distributed.is_initialized() else 1


def on_first_process(decide: Callable[[], T]) -> T:
    """What `decide()` returns on process 0, on every process; all must call it.

    Args:
        decide: runs on process 0 only; returns something that JSON can hold.

    Raises:
        ConfigError: on every process with the same words, if process 0 raised one.
        RuntimeError: on the others, if process 0 raised something else (a bug there).
    """
    if process_count() == 1:
        return decide()
    outcome, failure = {}, None
    if process_index() == 0:
        try:
            outcome = {"value": decide()}
        except ConfigError as error:
            outcome = {"mistake": str(error)}
        except Exception as error:
            failure = error
            outcome = {"bug": f"{type(error).__name__}: {one_line(error)}"}
    from ensjax.mesh import from_first_process

    outcome = from_first_process(outcome)
    if failure is not None:
        raise failure
    return _result(outcome, 0)


def everywhere(work: Callable[[], T]) -> T:
    """`work()` on every process; an error on one is an error on all.

    Raises:
        ConfigError: on every process, with the words of the first that raised one.
        RuntimeError: where others raised something else.
    """
    if process_count() == 1:
        return work()
    from jax.experimental import multihost_utils

    value, outcome, failure = None, {}, None
    try:
        value = work()
    except ConfigError as error:
        outcome = {"mistake": str(error)[: _MESSAGE_BYTES // 4]}
    except Exception as error:
        failure = error
        text = f"{type(error).__name__}: {one_line(error)}"
        outcome = {"bug": text[: _MESSAGE_BYTES // 4]}
    message = np.zeros(_MESSAGE_BYTES, np.uint8)
    data = np.frombuffer(json.dumps(outcome).encode(), np.uint8)[:_MESSAGE_BYTES]
    message[: len(data)] = data
    gathered = np.asarray(multihost_utils.process_allgather(message))
    if failure is not None:
        raise failure
    for index, row in enumerate(gathered):
        outcome = json.loads(row.tobytes().rstrip(b"\0"))
        if outcome:
            _result(outcome, index)
    return value


def is_lost_peer(error: BaseException) -> bool:
    """Whether `error`, or what caused it, says that another process went away."""
    if process_count() == 1:
        return False
    seen = []
    while error is not None and error not in seen:
        if _names_lost_peer(error):
            return True
        seen.append(error)
        # Orbax raises that a barrier timed out from what JAX says of the peer. What
        # merely went before (`__context__`) is no cause.
        error = error.__cause__
    return False


def _names_lost_peer(error):
    import jax

    text = str(error).lower()
    # Gloo's failures come as plain ValueErrors, so the words must be its own there.
    if isinstance(error, jax.errors.JaxRuntimeError):
        return any(sign in text for sign in _LOST_PEER_SIGNS)
    return (
        re.search(r"gloo [\w-]+ failed|closed by peer|reset by peer", text) is not None
    )


def _result(outcome: dict[str, Any], index: int) -> Any:
    if "mistake" in outcome:
        raise SharedMistake(outcome["mistake"])
    if "bug" in outcome:
        raise RuntimeError(f"process {index} of the job failed: {outcome['bug']}")
    return outcome["value"]


def _count(environ: Mapping[str, str], name: str) -> int:
    text = environ.get(name, "")
    return int(text) if text.isdecimal() else 0


def _is_google_tpu_machine() -> bool:
    product = Path("/sys/class/dmi/id/product_name")
    try:
        is_google = "Google" in product.read_text()
    except OSError:  # not there, or not readable: not such a machine
        return False
    return is_google and bool(glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*"))
