"""Joint alignment of `bench_weights`: ours, and host loops with NumPy and SciPy.

The loops are written from the published algorithms for networks in a chain, one pair
after the other: every unit's weights in and out, `scipy.optimize.linear_sum_assignment`
for one layer after the other in random order, until no layer gains.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
import scipy.optimize

import ensjax
from ensjax import data, weight_space
from ensjax.mesh import fetch

OURS = "joint, one call"
NUM_STEPS = 200
MAX_SWEEPS = 100


@dataclasses.dataclass(frozen=True)
class Task:
    """Trained MLPs, what is interchangeable in them, and test rows."""

    ensemble: Any
    spec: weight_space.PermutationSpec
    rows: tuple[np.ndarray, np.ndarray]


def _make_tx(learning_rate):
    return optax.sgd(learning_rate, momentum=0.9)


def make_task(num_members: int, width: int) -> Task:
    """MLPs 64-width-width-10 after 200 steps on scikit-learn's digits."""
    digits = data.digits(test_size=400, seed=0)
    device = ensjax.make_mesh(member=1, devices=jax.devices()[:1])

    def make_model(rngs):
        return ensjax.nn.MLP(
            in_features=64, hidden=(width, width), num_outputs=10, rngs=rngs
        )

    ensemble = ensjax.Ensemble.init(
        make_model, num_members=num_members, seed=0, mesh=device
    )
    ensemble, _ = ensjax.fit(
        ensemble,
        (digits.x_train, digits.y_train.astype(np.int32)),
        loss=ensjax.losses.cross_entropy,
        make_tx=_make_tx,
        hyper=0.1,
        steps=NUM_STEPS,
        progress=False,
    )
    shape = jax.ShapeDtypeStruct((1, 8, 8, 1), np.float32)
    spec = weight_space.infer_permutations(ensemble, shape)
    return Task(ensemble, spec, (digits.x_test, digits.y_test.astype(np.int32)))


def chain(state) -> list[list[np.ndarray]]:
    """Kernels with their bias as one more input row, `[layer][member][in, out]`.

    The first rows of a kernel are the units of the layer before.
    """
    layers: dict[str, dict[str, np.ndarray]] = {}
    for name, leaf in zip(
        weight_space.leaf_names(state["params"]), jax.tree.leaves(state["params"])
    ):
        module, _, kind = name.rpartition(".")
        layers.setdefault(module, {})[kind] = np.asarray(leaf)
    ordered = [layers[name] for name in sorted(layers)]  # blocks before the head
    return [
        list(np.concatenate([own["kernel"], own["bias"][:, None]], axis=1))
        for own in ordered
    ]


def permuted(weights, layer: int, order):
    """A chain of kernels with the outputs of one layer in another order."""
    new = list(weights)
    new[layer] = weights[layer][:, order]
    after, units = weights[layer + 1], len(order)
    new[layer + 1] = np.concatenate([after[:units][order], after[units:]])
    return new


def match_pair(target, weights, rng) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Algorithm 1 of Git Re-Basin: the orders of all hidden layers, and the weights."""
    hidden = range(len(weights) - 1)
    orders = [np.arange(weights[layer].shape[1]) for layer in hidden]
    for _ in range(MAX_SWEEPS):
        has_moved = False
        for layer in rng.permutation(len(orders)):
            units = len(orders[layer])
            scores = target[layer].T @ weights[layer]
            scores += target[layer + 1][:units] @ weights[layer + 1][:units].T
            _, columns = scipy.optimize.linear_sum_assignment(scores, maximize=True)
            chosen = scores[np.arange(units), columns]
            # Their 1e-12 is below the rounding of float32 and would never be met.
            if chosen.sum() - np.trace(scores) > 1e-6 * np.abs(chosen).sum():
                has_moved = True
                weights = permuted(weights, layer, columns)
                orders[layer] = orders[layer][columns]
        if not has_moved:
            break
    return orders, weights


def _orders(task, found):
    """Orders `[member][layer]` by the name of their group."""
    names = list(task.spec.groups)
    return {
        name: np.stack([own[place] for own in found]).astype(np.int32)
        for place, name in enumerate(names)
    }


def with_joint(task: Task, solver: str = "auto") -> Callable[[], dict]:
    """Ours, with the solver that it takes on this backend."""

    def run():
        found = weight_space.match_weights_jointly(
            task.ensemble, task.spec, solver=solver
        )
        return {name: np.asarray(x) for name, x in fetch(found.permutations).items()}

    return run


def with_one(task: Task) -> Callable[[], dict]:
    """Ours, all members matched to the first: the work of the loop over pairs."""

    def run():
        found = weight_space.match_weights(task.ensemble, task.spec)
        return {name: np.asarray(x) for name, x in fetch(found.permutations).items()}

    return run


def with_device(task: Task) -> Callable[[], dict]:
    """Ours as one compiled program that calls nothing on the host."""
    return with_joint(task, "device")


def with_pairs(task: Task) -> Callable[[], dict]:
    """Every member matched to the first, pair after pair."""

    def run():
        layers = chain(fetch(task.ensemble.state))
        rng = np.random.default_rng(0)
        members = [list(own) for own in zip(*layers)]
        found = [match_pair(members[0], own, rng)[0] for own in members[1:]]
        start = [np.arange(x.shape[1]) for x in members[0][:-1]]
        return _orders(task, [start, *found])

    return run


def with_merge_many(task: Task) -> Callable[[], dict]:
    """MergeMany: each member matched to the mean of the others, until none moves."""

    def run():
        layers = chain(fetch(task.ensemble.state))
        rng = np.random.default_rng(0)
        members = [list(own) for own in zip(*layers)]
        found = [[np.arange(x.shape[1]) for x in own[:-1]] for own in members]
        for _ in range(MAX_SWEEPS):
            has_moved = False
            for i in rng.permutation(len(members)):
                others = members[:i] + members[i + 1 :]
                mean = [np.mean(own, axis=0) for own in zip(*others)]
                orders, weights = match_pair(mean, members[i], rng)
                if any((o != np.arange(len(o))).any() for o in orders):
                    has_moved, members[i] = True, weights
                    found[i] = [old[new] for old, new in zip(found[i], orders)]
            if not has_moved:
                break
        return _orders(task, found)

    return run


WAYS = {
    OURS: with_joint,
    "device": with_device,
    "MergeMany": with_merge_many,
    "to one, one call": with_one,
    "pairs to one": with_pairs,
}
# Loops, and the one call of ours that does what each of them does.
SAME_WORK = {"MergeMany": OURS, "pairs to one": "to one, one call"}
# On an accelerator ours is on the device; on a CPU its compiled solver is slow.
DEFAULT_WAYS = tuple(way for way in WAYS if way != "device")


def quality(task: Task, permutations: dict[str, np.ndarray]) -> dict[str, float]:
    """How well members are aligned.

    Returns:
        `agreement`, inner product of a member's weights and the others' mean; `barrier`
        in nats, at the middle between every two members; `soup` accuracy of the mean
        of all.
    """
    aligned = weight_space.apply_permutations(task.ensemble, task.spec, permutations)
    members = aligned.num_members
    flat = [np.asarray(x, np.float64) for x in jax.tree.leaves(fetch(aligned.params))]
    total = sum(np.sum(x.sum(axis=0) ** 2) - np.sum(x**2) for x in flat)
    first, second = np.triu_indices(members, 1)
    middle = (np.eye(members)[first] + np.eye(members)[second]) / 2
    rows = np.concatenate([np.eye(members), np.full((1, members), 1 / members), middle])
    found = weight_space.sweep(aligned, rows, {"test": task.rows}).values["weights"]
    losses = found["test"]["nll"]
    ends = (losses[first] + losses[second]) / 2
    return {
        "agreement": float(total / (members * (members - 1))),
        "barrier": float(np.mean(losses[members + 1 :] - ends)),
        "soup": float(found["test"]["accuracy"][members]),
    }


def compare(name: str, found: dict, ours: dict) -> float | None:
    """`None`: another local optimum is as right; `quality` says how good it is.

    Raises:
        RuntimeError: if what was found are no permutations of the same units.
    """
    for group, orders in found.items():
        units = np.arange(ours[group].shape[1])
        if not (np.sort(orders, axis=1) == units[None]).all():
            raise RuntimeError(f"{name}: {group} are no permutations.")
    return None
