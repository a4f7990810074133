"""The merges of `merge_domains.py`: one function each, and a grid of its knobs.

A grid is one compiled program: every candidate is merged, scored on all rows and
forgotten, a few at a time, for all seeds.
"""

import dataclasses
import functools
import inspect
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import ensjax
from ensjax import weight_space as ws
from ensjax.experiment import ConfigError
from ensjax.experiment.fields import check_numbers, choose


class Own(NamedTuple):
    """What one seed has to merge."""

    stacked: Any  # [member, ...]
    base: Any
    fisher: Any  # as `stacked`, or None
    grams: Any  # by kernel, or None
    key: Any  # of one draw


class Method(NamedTuple):
    """A merge `merge(own, **knobs)` and how it is called in figures."""

    label: str
    merge: Callable[..., Any]
    statistics: str = ""  # "fisher" or "grams"
    draws: bool = False


def _task(function, **fixed):
    """A merge of `function(stacked, base, lam=...)`."""
    return lambda own, *, lam: function(own.stacked, own.base, lam=lam, **fixed)


def _sparse(function, **fixed):
    return lambda own, *, density, lam: function(
        own.stacked, own.base, density=density, lam=lam, **fixed
    )


def _drawn(function):
    return lambda own, *, density, lam: function(
        own.stacked, own.base, own.key, density=density, lam=lam
    )


def _dropped(function):
    return lambda own, *, drop, lam: function(
        own.stacked, own.base, own.key, drop=drop, lam=lam
    )


def _one_member(own, *, member, drop):
    """DARE of one member alone, on its base."""
    chosen = jax.nn.one_hot(member, ensjax.members.num_members(own.stacked))
    return ws.dare(own.stacked, own.base, own.key, drop=drop, lam=1.0, weights=chosen)


def _fisher(own, *, floor, normalize=False):
    return ws.fisher_merge(own.stacked, own.fisher, floor=floor, normalize=normalize)


def _regmean(own, *, alpha, joint_bias=False):
    return ws.regmean(own.stacked, own.grams, alpha=alpha, joint_bias=joint_bias)


METHODS = {
    "mean": Method("mean of weights", lambda own: ws.average(own.stacked)),
    "multislerp": Method("Multi-SLERP", lambda own: ws.multislerp(own.stacked)),
    "multislerp_tasks": Method(
        "Multi-SLERP of task vectors",
        lambda own: ws.multislerp(own.stacked, own.base),
    ),
    "karcher": Method("Karcher mean", lambda own: ws.karcher_mean(own.stacked)),
    "karcher_tasks": Method(
        "Karcher mean of task vectors",
        lambda own: ws.karcher_mean(own.stacked, own.base),
    ),
    "model_stock": Method(
        "model stock, by leaf", lambda own: ws.model_stock(own.stacked, own.base)
    ),
    "model_stock_output": Method(
        "model stock, by unit",
        lambda own: ws.model_stock(own.stacked, own.base, scope="output"),
    ),
    "task_arithmetic": Method("task arithmetic", _task(ws.task_arithmetic)),
    "ties": Method("TIES", _sparse(ws.ties)),
    "dare": Method("DARE", _dropped(ws.dare), draws=True),
    "dare_ties": Method("DARE with TIES", _dropped(ws.dare_ties), draws=True),
    "della_linear": Method("DELLA, summed", _drawn(ws.della_linear), draws=True),
    "della": Method("DELLA", _drawn(ws.della), draws=True),
    "breadcrumbs": Method("breadcrumbs", _sparse(ws.breadcrumbs)),
    "breadcrumbs_ties": Method("breadcrumbs with TIES", _sparse(ws.breadcrumbs_ties)),
    "sce": Method("SCE", _sparse(ws.sce)),
    "fisher": Method("Fisher", _fisher, "fisher"),
    "fisher_normalized": Method(
        "Fisher, normalised", functools.partial(_fisher, normalize=True), "fisher"
    ),
    "regmean": Method("RegMean", _regmean, "grams"),
    "regmean_bias": Method(
        "RegMean with bias", functools.partial(_regmean, joint_bias=True), "grams"
    ),
    # No merge: what dropping does to one member.
    "dare_alone": Method("DARE of one member", _one_member, draws=True),
}
# Least and largest value of every knob.
LIMITS = {
    "lam": (-10.0, 10.0),
    "density": (0.0, 1.0),
    "drop": (0.0, 0.999),
    "floor": (0.0, 1.0),
    "alpha": (0.0, 1.0),
    "member": (0, 3),
}


def knobs_of(name: str) -> tuple[str, ...]:
    """Names of a method's knobs."""
    parameters = inspect.signature(METHODS[name].merge).parameters.values()
    return tuple(
        p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty
    )


def check_grids(config) -> None:
    """Raises `ConfigError` unless there is a grid for all knobs of known methods."""
    check_numbers(config, ("num_draws", "candidates_at_once"), at_least=1)
    for name in config.grids:
        choose("grids", name, METHODS)
        expected, given = set(knobs_of(name)), set(config.grids[name])
        if expected != given:
            raise ConfigError(
                f"config.grids.{name} must have values of {sorted(expected)}; got"
                f" {sorted(given)}."
            )
        for knob in expected:
            low, high = LIMITS[knob]
            field = f"grids.{name}.{knob}"
            check_numbers(config, (field,), at_least=low, at_most=high)


def candidates(config, name: str) -> dict[str, np.ndarray]:
    """All combinations of a method's knobs, `[candidate]` each, the first slowest."""
    knobs = knobs_of(name)
    rows = list(itertools.product(*(config.grids[name][knob] for knob in knobs)))
    columns = zip(*rows) if knobs else ()
    return {knob: np.asarray(values) for knob, values in zip(knobs, columns)}


@dataclasses.dataclass(frozen=True)
class _Grid:
    """Accuracies of every candidate of one seed, `[candidate, draw, part, view]`."""

    graph: Any
    name: str
    num_draws: int
    at_once: int

    def __call__(self, stacked, base, rest, statistics, key, rows, knobs):
        method = METHODS[self.name]
        fisher = statistics if method.statistics == "fisher" else None
        grams = statistics if method.statistics == "grams" else None

        def score(item):
            chosen, draw = item
            own = Own(stacked, base, fisher, grams, jax.random.fold_in(key, draw))
            state = {"params": method.merge(own, **chosen), "rest": rest}
            model = self.graph.merge(state, train=False)
            return jnp.stack([_accuracy(model, *part) for part in rows])

        count = max([len(values) for values in knobs.values()], default=1)
        draws = self.num_draws if method.draws else 1
        items = (
            {name: jnp.repeat(values, draws) for name, values in knobs.items()},
            jnp.tile(jnp.arange(draws), count),
        )
        found = jax.lax.map(score, items, batch_size=min(self.at_once, count * draws))
        return found.reshape(count, draws, *found.shape[1:])


def _accuracy(model, views, labels):
    """Of `[view, row, ...]` the share that is right, `[view]`."""
    outputs = model(views.reshape(-1, *views.shape[2:]))
    right = outputs.argmax(axis=-1).reshape(views.shape[:2]) == labels[None]
    return jnp.mean(right, axis=1, dtype=jnp.float32)


def measure(config, name, base, members, statistics, rows) -> np.ndarray:
    """Accuracies of all candidates of a method in one program.

    Args:
        base: ensemble `[seed]`.
        members: ensemble `[seed * domain]`.
        statistics: what `statistics_of` gave for the method's kind.
        rows: of every part `(views [seed, view, row, ...], labels [seed, row])`. A
            tuple, since the parts of a dict would be sorted by name.

    Returns:
        `[seed, candidate, draw, part, view]`; one draw where nothing is drawn.
    """
    seeds = config.num_seeds

    def by_seed(x):
        return x.reshape(seeds, -1, *x.shape[1:])

    key = jax.random.key(config.seed, impl="threefry2x32")
    run = ensjax.map_members(
        _Grid(base.graph, name, config.num_draws, config.candidates_at_once),
        kinds=("member",) * 6 + ("shared",),
        mesh=base.mesh,
        block=1,
    )
    found = run(
        jax.tree.map(by_seed, members.params),
        base.params,
        base.state["rest"],
        jax.tree.map(by_seed, statistics),
        jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(seeds)),
        rows,
        {k: jnp.asarray(v) for k, v in candidates(config, name).items()},
    )
    return np.asarray(ensjax.mesh.fetch(found))


def statistics_of(kind: str, members, own_rows) -> Any:
    """Fisher information or input Gram matrices, each on the member's own rows.

    Args:
        kind: "fisher", "grams", or "" for none.
    """
    if kind == "fisher":
        return ws.fisher_information(members, own_rows, own_rows=True)
    if kind == "grams":
        return ws.input_grams(members, own_rows, own_rows=True)
    return ()
