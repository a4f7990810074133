"""Greedy soups of `bench_weights`: one call, and the published loop over members."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import ensjax
from ensjax import weight_space
from ensjax.weight_space.leaves import is_mixed

OURS = "greedy_soup"
NOISE = 0.1  # of the members' weights about their common start, as a share of them


@dataclasses.dataclass(frozen=True)
class Task:
    """Members about one model, and held-out rows."""

    ensemble: Any
    rows: tuple[np.ndarray, np.ndarray]


def make_task(num_members: int, num_rows: int) -> Task:
    """CNNs about one of random weights, whose own answers are the labels."""
    device = ensjax.make_mesh(member=1, devices=jax.devices()[:1])
    base = ensjax.Ensemble.init(
        lambda rngs: ensjax.nn.CNN(rngs=rngs), num_members=1, seed=0, mesh=device
    )
    rng = np.random.default_rng(0)
    x = rng.standard_normal((num_rows, 28, 28, 1), np.float32)
    labels = np.asarray(base(x))[0].argmax(axis=-1).astype(np.int32)

    def about(leaf):
        leaf = np.asarray(leaf)
        noise = rng.standard_normal((num_members, *leaf.shape[1:]), np.float32)
        spread = NOISE * (1 + np.arange(num_members) / num_members)
        spread = spread.reshape(-1, *(1,) * (leaf.ndim - 1)).astype(np.float32)
        return jnp.asarray(leaf + spread * leaf.std() * noise)

    state = jax.tree.map(
        lambda leaf: about(leaf) if is_mixed(leaf) else leaf, base.state
    )
    ids = jnp.arange(num_members, dtype=jnp.int32)
    ensemble = dataclasses.replace(base, state=state, member_ids=ids)
    return Task(ensemble.on_mesh(device), (x, labels))


def with_greedy_soup(task: Task) -> Callable[[], dict]:
    """Ours: members alone in one program, all rounds in another."""

    def run():
        soup = weight_space.greedy_soup(task.ensemble, task.rows)
        return {"order": soup.order, "kept": soup.is_kept, "scores": soup.scores}

    return run


def _evaluation(task):
    graph = task.ensemble.graph
    x, labels = jax.device_put(task.rows)

    @jax.jit
    def accuracy(state):
        right = jnp.argmax(graph.merge(state, train=False)(x), axis=-1) == labels
        return jnp.mean(right.astype(jnp.float32))

    return lambda state: float(accuracy(jax.device_put(state)))


def with_loop(task: Task) -> Callable[[], dict]:
    """What scripts do: weights on the host, one jitted evaluation after the other."""
    accuracy = _evaluation(task)

    def run():
        host = jax.device_get(task.ensemble.state)
        members = [
            jax.tree.map(lambda x, i=i: x[i], host)
            for i in range(task.ensemble.num_members)
        ]
        alone = np.array([accuracy(member) for member in members])
        order = np.argsort(-alone, kind="stable")
        soup, best, count = members[order[0]], alone[order[0]], 1
        kept, values = [True], [best]
        for i in order[1:]:
            candidate = jax.tree.map(
                lambda a, b, n=count: a * (n / (n + 1.0)) + b * (1.0 / (n + 1)),
                soup,
                members[i],
            )
            candidate = jax.tree.map(
                lambda new, old: new.astype(old.dtype), candidate, soup
            )
            value = accuracy(candidate)
            kept.append(value > best)
            values.append(value)
            if value > best:
                soup, best, count = candidate, value, count + 1
        return {
            "order": order,
            "kept": np.array(kept),
            "scores": np.array(values, np.float32),
        }

    return run


WAYS = {OURS: with_greedy_soup, "sequential loop": with_loop}
DEFAULT_WAYS = tuple(WAYS)


def quality(task: Task, found: dict) -> dict[str, float]:
    """How many members were kept, and the soup's score on the held-out rows."""
    scores, kept = np.asarray(found["scores"]), np.asarray(found["kept"])
    return {"kept": int(kept.sum()), "score": float(scores[kept].max())}


def compare(name: str, found: dict, ours: dict) -> float:
    """The largest difference of scores.

    Raises:
        RuntimeError: if other members were kept.
    """
    if (found["kept"] != ours["kept"]).any() or (found["order"] != ours["order"]).any():
        raise RuntimeError(f"{name} keeps other members than ours.")
    return float(np.abs(found["scores"] - ours["scores"]).max())
