"""The linear assignment problem: on the device inside a program, or on the host."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from ensjax.mesh import platform, tracing_platform

SOLVERS = ("auto", "host", "device")


def choose_solver(solver: str, mesh: Mesh) -> str:
    """ "host" or "device"; "auto" takes the host's on CPUs of one process.

    There SciPy's solver is 2 to 12 times as fast as the compiled one (32 to 512 units,
    two cores). On an accelerator "device" keeps the whole search in one program, and
    nothing leaves the device.

    Raises:
        ValueError: if the solver is unknown.
    """
    if solver not in SOLVERS:
        raise ValueError(f"solver is one of {', '.join(SOLVERS)}; got {solver!r}.")
    if solver != "auto":
        return solver
    is_cpu = platform(mesh) == "cpu" and jax.process_count() == 1
    return "host" if is_cpu else "device"


def assign_on_host(scores: np.ndarray) -> np.ndarray:
    """Column of every row so that the sum of scores is largest; `[..., n]` int32.

    The largest entry of every row, then of every column, is made 0 first, which changes
    no assignment and saves SciPy's solver a third of its time on scores of trained
    networks (512 units). Starting from the prices of an earlier, similar problem did
    not pay.

    Args:
        scores: `[..., n, n]`; what is not finite counts as 0.
    """
    from scipy.optimize import linear_sum_assignment

    scores = np.asarray(scores, np.float64)
    costs = -np.where(np.isfinite(scores), scores, 0.0)
    costs -= costs.min(axis=-1, keepdims=True)
    costs -= costs.min(axis=-2, keepdims=True)
    flat = costs.reshape(-1, *scores.shape[-2:])
    columns = [linear_sum_assignment(one)[1] for one in flat]
    return np.stack(columns).astype(np.int32).reshape(scores.shape[:-1])


def assign_on_device(scores: jax.Array) -> jax.Array:
    """As `assign_on_host`, of `[member, n, n]`, with operations of JAX alone.

    Source: `optax.assignment.hungarian_algorithm`. On a CPU members are solved one
    after the other, since together they all wait for the slowest.
    """
    scores = jnp.where(jnp.isfinite(scores), scores, 0.0).astype(jnp.float32)

    def one(scores):
        # Columns of every row; of a square matrix all are there.
        rows, columns = optax.assignment.hungarian_algorithm(-scores)
        order = jnp.zeros(scores.shape[0], jnp.int32)
        return order.at[rows].set(columns.astype(jnp.int32))

    if tracing_platform() == "cpu":
        return jax.lax.map(one, scores)
    return jax.vmap(one)(scores)
