"""Ensembles made of weights, and methods that take an ensemble as well as a tree.

Whatever is made of members' weights becomes an ensemble here: mixtures, draws, soups,
merges. A merging method is written on trees; `takes_ensembles` is how it takes an
`Ensemble` too, and keeps batch statistics out of the arithmetic of weights.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ensjax.ensemble import Ensemble
from ensjax.graphs import NnxGraph
from ensjax.members import num_members, take_rows
from ensjax.mesh import place
from ensjax.weight_space.leaves import is_mixed, leaf_names, statistics_among, wide
from ensjax.weight_space.vectors import weighted_sum


def ensemble_of(like: Ensemble, state: Any) -> Ensemble:
    """New members of the architecture and on the mesh of an ensemble.

    Args:
        like: the ensemble.
        state: as its state, leaves `[member, ...]` of any number of members; their ids
            are 0, 1, ...
    """
    ids = jnp.arange(num_members(state), dtype=jnp.int32)
    return dataclasses.replace(like, state=state, member_ids=ids).on_mesh(like.mesh)


def takes_ensembles(
    shares_of: Callable[[Mapping[str, Any], int], Any] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Makes a merging method of trees one of ensembles too.

    A method `merge(stacked, ...)` of trees then has three forms:

    - of a tree `[member, ...]` it is what it was and gives a tree `[...]`;
    - of a tree with leaves that are batch statistics by their names (`Ensemble.state`,
      the variables of a linen module, tensors of PyTorch by name) it merges all but
      these, which become the members' mean;
    - of an `Ensemble` on any mesh it gives an `Ensemble` of one on that mesh, merged in
      one compiled program; `member_ids` are those of the ensemble by default.

    Statistics are averaged with the weights of the members (0 in place of those below),
    whatever the method: sums and signs mean nothing for a variance, which could become
    negative. They are not those of the merged activations; `recompute_statistics`
    measures these.

    Args:
        shares_of: the members' weights in that mean, `[member]`, of the method's
            arguments by name and the number of members; by default its `weights`, or
            equal ones.
    """
    shares_of = _weights_of if shares_of is None else shares_of

    def decorate(merge):
        signature = inspect.signature(merge)

        @functools.wraps(merge)
        def merged(*args, **kwargs):
            try:
                bound = signature.bind(*args, **kwargs)
            except TypeError:
                return merge(*args, **kwargs)  # says what is missing
            stacked, base = (bound.arguments.get(n) for n in ("stacked", "base"))
            if isinstance(stacked, Ensemble):
                return _merge_ensemble(merge, shares_of, bound)
            if isinstance(base, Ensemble | nnx.Module):
                raise TypeError(
                    f"the base is of type {type(base).__name__}, the stack a tree: give"
                    " the stack as an Ensemble, or the base as one member's tree."
                )
            if statistics_among(leaf_names(stacked)):
                return _merge_weights(merge, shares_of, bound)
            return merge(*args, **kwargs)

        return merged

    return decorate


def _weights_of(arguments, members):
    weights = arguments.get("weights")
    return jnp.ones(members) if weights is None else weights


def _merge_weights(merge, shares_of, bound):
    """The method of those leaves that are no batch statistics, by their names."""
    stacked = bound.arguments["stacked"]
    shares = shares_of(bound.arguments, num_members(stacked))
    statistics = statistics_among(leaf_names(stacked))
    means = _by_name(stacked, lambda leaf: leaf in statistics)
    means = mean_statistics(means, shares, bound.arguments.get("keep", 0))
    for name in ("stacked", "base", "fisher"):
        if bound.arguments.get(name) is not None:
            tree = bound.arguments[name]
            bound.arguments[name] = _by_name(tree, lambda leaf: leaf not in statistics)
    weights = bound.arguments["stacked"]
    merged = means | (merge(*bound.args, **bound.kwargs) if weights else {})
    leaves = [merged[name] for name in leaf_names(stacked)]
    return jax.tree.unflatten(jax.tree.structure(stacked), leaves)


def _by_name(tree, is_wanted):
    named = zip(leaf_names(tree), jax.tree.leaves(tree), strict=True)
    return {name: leaf for name, leaf in named if is_wanted(name)}


def mean_statistics(statistics: Any, shares: Any, keep: int = 0) -> Any:
    """Means of batch statistics, leaves `[member, ...]`, by weights `[member]`.

    Weights below 0 count as 0, and equal ones are taken where none is above. Leaves
    that are not floating are those of the member `keep`.
    """
    shares = jnp.maximum(jnp.asarray(shares, jnp.float32), 0.0)
    shares = jnp.where(jnp.sum(shares) > 0, shares, 1.0)
    shares = shares / jnp.sum(shares)

    def mean(leaf):
        if not is_mixed(leaf):
            return take_rows(leaf, keep)
        return weighted_sum(wide(leaf), shares).astype(leaf.dtype)

    return jax.tree.map(mean, statistics)


def _merge_ensemble(merge, shares_of, bound):
    """The method of an ensemble: an ensemble of one."""
    arguments = dict(bound.arguments)
    ensemble = arguments.pop("stacked")
    if "member_ids" in bound.signature.parameters:
        arguments.setdefault("member_ids", None)
        if arguments["member_ids"] is None:
            arguments["member_ids"] = ensemble.member_ids
    if arguments.get("base") is not None:
        arguments["base"] = _base_of(ensemble, arguments["base"])
    fixed, arrays = {}, {}
    for name, x in arguments.items():
        if isinstance(x, np.integer | np.bool_):
            x = x.item()
        if x is None or isinstance(x, str | bool | int):
            fixed[name] = x  # decides about the program
        else:
            # Strongly typed: 0.3 of Python would be another program than 0.3 of NumPy.
            arrays[name] = np.asarray(x) if isinstance(x, float | list | tuple) else x
    job = _Merge(merge, shares_of, tuple(sorted(fixed.items())))
    # Here the knobs are known and are checked; in the program they are traced.
    jax.eval_shape(lambda state: job(state, arrays), ensemble.state)
    for name in arrays.keys() - {"base", "fisher", "grams"}:
        arrays[name] = place(arrays[name], ensemble.mesh, jax.P())
    state = _program(job, ensemble.mesh)(ensemble.state, arrays)
    return ensemble_of(ensemble, state)


def _base_of(ensemble, base):
    """The weights of one member, on the devices of the ensemble."""
    if isinstance(base, Ensemble):
        if base.num_members != 1:
            raise ValueError(
                f"the base is one model; this ensemble holds {base.num_members}."
                " base[[0]] is an ensemble of its first."
            )
        base = jax.tree.map(lambda x: x[0], base.on_mesh(ensemble.mesh).params)
    elif isinstance(base, dict) and base.keys() == ensemble.state.keys():
        base = base["params"]
    elif isinstance(base, nnx.Module):
        if not isinstance(ensemble.graph, NnxGraph):
            raise TypeError(
                f"the base is a {type(base).__name__}, but the members are a bare"
                " function: give the base as one member's parameters."
            )
        base = nnx.split(base, nnx.Param, ...)[1]
    return place(base, ensemble.mesh, jax.P())


@dataclasses.dataclass(frozen=True)
class _Merge:
    """One model's state `[1, ...]` of a stacked state and arguments that are arrays."""

    merge: Callable[..., Any]
    shares_of: Callable[..., Any]
    fixed: tuple[tuple[str, Any], ...]

    def __call__(self, state, arrays):
        arguments = dict(self.fixed) | arrays
        params, rest = state["params"], state["rest"]
        # Of a linen module the parameters hold statistics too.
        merged = takes_ensembles(self.shares_of)(self.merge)(params, **arguments)
        shares = self.shares_of(arguments, num_members(params))
        rest = mean_statistics(rest, shares, arguments.get("keep", 0))
        return jax.tree.map(lambda x: x[None], {"params": merged, "rest": rest})


@functools.lru_cache(maxsize=256)
def _program(job, mesh):
    def merge_members(state, arrays):
        return job(state, arrays)

    return jax.jit(merge_members, out_shardings=jax.NamedSharding(mesh, jax.P()))
