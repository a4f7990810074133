"""Ways of `bench_weights`: the same mixtures by one program and by loops."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import ensjax
from ensjax import weight_space
from ensjax.mapping import mesh_program
from ensjax.weight_space.row_scores import ROW_SCORES

OURS, BARE = "sweep", "bare"
TOLERANCE = 1e-4
SCORES = ("accuracy", "nll")
DATASETS = ("one", "two", "three")


@dataclasses.dataclass(frozen=True)
class Task:
    """Members, coefficients `[mixture, member]` and datasets."""

    ensemble: Any
    coefficients: np.ndarray
    datasets: dict[str, tuple[np.ndarray, np.ndarray]]


def make_model(rngs):
    """The network of every member."""
    return ensjax.nn.CNN(rngs=rngs)


def make_task(num_mixtures: int, num_members: int, num_rows: int) -> Task:
    """Untrained members, mixtures drawn from the simplex, and noise as images."""
    device = ensjax.make_mesh(member=1, devices=jax.devices()[:1])
    ensemble = ensjax.Ensemble.init(
        make_model, num_members=num_members, seed=0, mesh=device
    )
    rows = weight_space.simplex_draws(jax.random.key(0), num_mixtures, num_members)
    rng = np.random.default_rng(0)
    datasets = {
        name: (
            rng.standard_normal((num_rows, 28, 28, 1), np.float32),
            rng.integers(10, size=num_rows).astype(np.int32),
        )
        for name in DATASETS
    }
    return Task(ensemble, np.asarray(rows), datasets)


def num_programs() -> int:
    """Compiled programs of the mesh that exist: none may be added by a later call."""
    return mesh_program.cache_info().currsize


def with_sweep(task: Task) -> Callable[[], dict]:
    """Ours: one program, mixtures made and forgotten block by block."""

    def run():
        found = weight_space.sweep(
            task.ensemble, task.coefficients, task.datasets, scores=SCORES
        ).values["weights"]
        return {(d, s): found[d][s] for d in DATASETS for s in SCORES}

    return run


def _scores_of(forward, data):
    found = {}
    for name, (x, labels) in data.items():
        logits = forward(x)
        for score in SCORES:
            found[name, score] = jnp.mean(ROW_SCORES[score](logits, labels))
    return found


def _keyed(found):
    return {(d, s): np.asarray(found[d, s]) for d in DATASETS for s in SCORES}


def with_bare(task: Task) -> Callable[[], dict]:
    """As many evaluations of one network in one compiled loop, and nothing mixed.

    The weights depend on the turn of the loop, or the compiler would evaluate once.
    """
    graph = task.ensemble.graph
    state = jax.tree.map(lambda x: x[0], task.ensemble.state)
    data = jax.device_put(task.datasets)
    count = len(task.coefficients)

    @jax.jit
    def run(state, data, scale):
        def one(factor):
            own = jax.tree.map(
                lambda x: x * factor if jnp.issubdtype(x.dtype, jnp.floating) else x,
                state,
            )
            found = _scores_of(graph.merge(own, train=False), data)
            return list(found.values())

        return jax.lax.map(one, scale)

    scale = jnp.linspace(0.5, 1.5, count)
    return lambda: jax.block_until_ready(run(state, data, scale))


def with_jitted_loop(task: Task) -> Callable[[], dict]:
    """A loop over mixtures: one jitted function mixes, another evaluates."""
    graph = task.ensemble.graph
    data = jax.device_put(task.datasets)

    @jax.jit
    def mixed(state, row):
        def one(x):
            if not jnp.issubdtype(x.dtype, jnp.floating):
                return x[0]
            return jnp.tensordot(row, x, axes=1)

        return jax.tree.map(one, state)

    @jax.jit
    def evaluate(state, data):
        return _scores_of(graph.merge(state, train=False), data)

    def run():
        each = [
            evaluate(mixed(task.ensemble.state, row), data) for row in task.coefficients
        ]
        return _keyed(jax.tree.map(lambda *xs: np.stack(jax.device_get(xs)), *each))

    return run


def with_host_loop(task: Task) -> Callable[[], dict]:
    """What scripts do: mix on the host, load the weights, evaluate, one by one."""
    graph = task.ensemble.graph
    host = jax.device_get(task.ensemble.state)
    data = jax.device_put(task.datasets)

    @jax.jit
    def evaluate(state, data):
        return _scores_of(graph.merge(state, train=False), data)

    def mixed(row, x):
        if not np.issubdtype(x.dtype, np.floating):
            return x[0]
        return functools.reduce(np.add, (w * own for w, own in zip(row, x)))

    def run():
        each = []
        for row in task.coefficients:
            state = jax.tree.map(functools.partial(mixed, row), host)
            each.append(evaluate(jax.device_put(state), data))
        return _keyed(jax.tree.map(lambda *xs: np.stack(jax.device_get(xs)), *each))

    return run


WAYS = {
    "sweep": with_sweep,
    "bare": with_bare,
    "jitted loop": with_jitted_loop,
    "host loop": with_host_loop,
}
DEFAULT_WAYS = tuple(WAYS)


def quality(task: Task, found: dict) -> dict[str, float]:
    """Nothing: all ways give the same numbers."""
    del task, found
    return {}


def compare(name: str, found: dict, ours: dict) -> float | None:
    """The largest difference from our values; `None` for the bare evaluations.

    Raises:
        RuntimeError: if one is not ours, which would make times meaningless.
    """
    if name == BARE:
        return None
    worst = 0.0
    for key, value in found.items():
        difference = float(np.max(np.abs(np.asarray(value) - ours[key])))
        # A tie that falls the other way moves one row's accuracy.
        if not difference <= TOLERANCE and key[1] != "accuracy":
            raise RuntimeError(
                f"{name} gives another {key} than ours, by {difference}: they do not"
                " compute the same."
            )
        worst = max(worst, difference)
    return worst
