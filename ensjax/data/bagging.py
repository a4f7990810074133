"""Bagging as weights: what each member's resample means for every row's loss.

A resample is a row of non-negative weights over all examples, so that members of one
stack share one layout of the data: `fit(loss_weights=...)` trains with them, and the
rows of weight 0 are the member's out-of-bag rows. A member's weights depend on the seed
and its id alone.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.data.sampling import (
    bayesian_bootstrap_weights,
    bootstrap_counts,
    poisson_bootstrap_counts,
)
from ensjax.members import member_keys

KINDS = ("multinomial", "poisson", "bayesian", "subsample")


def bootstrap_weights(
    seed: int,
    members: int | Sequence[int],
    num_examples: int,
    *,
    kind: str = "multinomial",
    strata: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    share: float = 0.5,
) -> jax.Array:
    """Weights of every row in every member's resample, `[member, example]`, float32.

    Kinds:
      multinomial: how often each of n draws with replacement hit the row; the counts of
        the rows that `fit(sampling="bootstrap")` trains on for the same seed and ids.
      poisson: independent Poisson(1) counts.
      bayesian: Dirichlet(1, ..., 1) times n; no row is ever out of bag.
      subsample: 1 for a share of the rows, drawn without replacement, else 0.

    Args:
        seed: of the run.
        members: number of members (their ids are 0, 1, ...), or the ids.
        num_examples: rows of the data, n.
        kind: one of the above.
        strata: `[example]` numbers or strings: each stratum is resampled by itself, so
            that it keeps its share of the draws (its size, for multinomial). A
            stratum of one row is then never out of bag, for multinomial.
        groups: `[example]` numbers or strings: rows of one group (a patient, a
            compound) have one weight, that of the group in a resample of groups. With
            strata too, a group lies in one stratum.
        share: for "subsample", in (0, 1]; at least one row (group, row of a stratum).

    Raises:
        ValueError: for an unknown kind, no members, arrays of another length, a share
            out of range, or a group in two strata.

    Source: Efron 1979; Oza and Russell 2001 (poisson); Rubin 1981 (bayesian); Politis
    and Romano 1994 (subsample).

    Example:
        >>> weights = bootstrap_weights(0, 3, 8)
        >>> weights.shape, weights.sum(axis=1).tolist()
        ((3, 8), [8.0, 8.0, 8.0])
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}; got {kind!r}.")
    if not 0.0 < share <= 1.0:
        raise ValueError(f"share must lie in (0, 1]; got {share}.")
    keys = member_keys(seed, "bootstrap", _ids(members))
    strata = _codes("strata", strata, num_examples)
    groups = _codes("groups", groups, num_examples)
    if groups is None:
        return _by_stratum(keys, _draw(kind, share), num_examples, strata)
    first = np.unique(groups, return_index=True)[1]
    if strata is not None:
        mixed = np.flatnonzero(strata != strata[first][groups])
        if mixed.size:
            raise ValueError(
                f"a group lies in one stratum; row {mixed[0]} is in another stratum"
                f" than row {first[groups[mixed[0]]]} of its group."
            )
        strata = strata[first]
    return _by_stratum(keys, _draw(kind, share), len(first), strata)[:, groups]


def balanced_weights(
    seed: int, members: int | Sequence[int], labels: np.ndarray
) -> jax.Array:
    """Balanced under-bagging: as many rows of each class as the rarest class has.

    Every member draws its own rows without replacement, so that together they see most
    of the frequent classes.

    Args:
        seed: of the run.
        members: number of members, or their ids.
        labels: class of every row, `[example]`.

    Returns:
        `[member, example]`, 1 for the rows that a member trains on, else 0.

    Raises:
        ValueError: if there are no members, or `labels` are not `[example]`.

    Source: Wallace et al. 2011, "Class imbalance, redux"; Liu et al. 2009
    (EasyEnsemble).
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or not labels.size:
        raise ValueError(f"labels must be [example]; got shape {labels.shape}.")
    classes = _codes("labels", labels, len(labels))
    rarest = int(np.bincount(classes).min())
    keys = member_keys(seed, "bootstrap", _ids(members))

    def draw(key, num_rows):
        return _drawn_without_replacement(key, num_rows, rarest)

    return _by_stratum(keys, draw, len(labels), classes)


def random_subspaces(
    seed: int, members: int | Sequence[int], num_features: int, num_kept: int
) -> jax.Array:
    """The features that each member may see: masks `[member, feature]`, bool.

    Every member keeps `num_kept` features, drawn without replacement; multiply its
    inputs by the mask, or keep it as a variable of the model.

    Raises:
        ValueError: if there are no members, or `num_kept` is not from 1 to
            `num_features`.

    Source: Ho 1998, "The random subspace method".
    """
    if not 1 <= num_kept <= num_features:
        raise ValueError(
            f"num_kept must be from 1 to num_features={num_features}; got {num_kept}."
        )
    keys = member_keys(seed, "subspace", _ids(members))

    def draw(key):
        return _drawn_without_replacement(key, num_features, num_kept)

    return jax.vmap(draw)(keys) > 0


def _draw(kind: str, share: float) -> Callable[[jax.Array, int], jax.Array]:
    def subsample(key, num_rows):
        num_drawn = max(1, round(share * num_rows))
        return _drawn_without_replacement(key, num_rows, num_drawn)

    return {
        "multinomial": bootstrap_counts,
        "poisson": poisson_bootstrap_counts,
        "bayesian": bayesian_bootstrap_weights,
        "subsample": subsample,
    }[kind]


def _drawn_without_replacement(key, num_rows, num_drawn):
    order = jax.random.permutation(key, num_rows)
    return jnp.zeros(num_rows).at[order[:num_drawn]].set(1.0)


def _by_stratum(keys, draw, num_rows, strata):
    if strata is None:
        return jax.vmap(lambda key: draw(key, num_rows))(keys).astype(jnp.float32)
    weights = jnp.zeros((len(keys), num_rows))
    for stratum in range(strata.max() + 1):
        rows = np.flatnonzero(strata == stratum)
        own = jax.vmap(lambda key: draw(jax.random.fold_in(key, stratum), len(rows)))(  # noqa: B023
            keys
        )
        weights = weights.at[:, rows].set(own.astype(jnp.float32))
    return weights


def _ids(members):
    ids = jnp.asarray(np.arange(members) if np.ndim(members) == 0 else members)
    if ids.ndim != 1 or not ids.size:
        raise ValueError(
            f"members must be a number of at least 1, or ids; got {members!r}."
        )
    return ids


def _codes(name, values, num_examples):
    """Numbers 0, 1, ... for the different values, or None."""
    if values is None:
        return None
    values = np.asarray(values)
    if values.shape != (num_examples,):
        raise ValueError(
            f"{name} must be [example] = ({num_examples},); got shape {values.shape}."
        )
    return np.unique(values, return_inverse=True)[1]
