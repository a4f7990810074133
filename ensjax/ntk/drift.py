"""How tangent kernels move in training and what they align with, without keeping them.

Kernels are computed strip by strip and summed up; of `n` rows a few vectors `[row]`
are held, never a matrix. `kernel_similarity.py` has the same of kernels in memory.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.ensemble import Ensemble
from ensjax.ntk.kernel_sums import Strip, sum_over_kernels
from ensjax.ntk.kernels import check_finite
from ensjax.ntk.tangents import check_rows, num_rows
from ensjax.ops.limits import at_least


class Drift(NamedTuple):
    """How far each member's kernel is from where it began, `[member]` each.

    Attributes:
        change: `|K - K_0| / |K_0|`, in the Frobenius norm.
        distance: one minus the cosine of K and K_0: change of shape alone.
        scale: `|K| / |K_0|`.
    """

    change: jax.Array
    distance: jax.Array
    scale: jax.Array


class Alignment(NamedTuple):
    """Cosines of the members' kernels with others, at most 1.

    Attributes:
        labels: with the kernel `y y^T` of the targets, `[member]`; None without any.
        labels_centred: the same of centred kernels, `[member]`.
        members: with each other, `[member, member']`.
        members_centred: the same of centred kernels, `[member, member']`.
    """

    labels: jax.Array | None
    labels_centred: jax.Array | None
    members: jax.Array
    members_centred: jax.Array


def kernel_drift(
    initial: Ensemble,
    current: Ensemble,
    x: Any,
    *,
    method: str = "auto",
    params: str = "",
    block_rows: int | None = None,
    block: int | str | None = "auto",
    precision: str = "highest",
) -> Drift:
    """How far the members' tangent kernels are from their initial ones (compiled).

    Both kernels of a strip are computed together, so that a small change is no
    difference of large sums; kernels are traced over outputs as in `empirical_ntk`.

    Args:
        initial: the members before training.
        current: the same members later, on the same mesh.
        x: inputs, leaves `[row, ...]`.
        method, params, block_rows, block, precision: as in `empirical_ntk`.

    Raises:
        ValueError: if the ensembles differ in architecture, members or mesh, and as
            `empirical_ntk`.
        TypeError: if a parameter that counts is not real floating point; names it.

    Source: change: Lee et al. 2019, arXiv:1902.06720, section 3.1; distance: Fort et
    al. 2020, arXiv:2010.15110, equation 3.
    """
    for name, ensemble in (("initial", initial), ("current", current)):
        if not isinstance(ensemble, Ensemble):
            raise TypeError(
                f"{name} must be an ensjax.Ensemble; got {type(ensemble).__name__}."
            )
    if initial.graph != current.graph or initial.mesh != current.mesh:
        raise ValueError(
            "initial and current must be of one architecture and on one mesh; bring"
            " one to the other's with initial.on_mesh(current.mesh)."
        )
    ids = [np.asarray(e.member_ids).tolist() for e in (initial, current)]
    if ids[0] != ids[1]:
        raise ValueError(
            "initial and current must hold the same members in the same order; their"
            f" ids are {ids[0]} and {ids[1]}."
        )
    totals = sum_over_kernels(
        _drift_sums,
        (initial, current),
        x,
        None,
        method=method,
        params=params,
        block_rows=block_rows,
        block=block,
        precision=precision,
    )
    return _drift(totals)


def kernel_alignment(
    ensemble: Ensemble,
    x: Any,
    targets: Any = None,
    *,
    method: str = "auto",
    params: str = "",
    block_rows: int | None = None,
    block: int | str | None = "auto",
    precision: str = "highest",
) -> Alignment:
    """What the members' tangent kernels align with: labels, and each other (compiled).

    Args:
        ensemble: the members.
        x: inputs, leaves `[row, ...]`.
        targets: `[row, output]`, such as one-hot labels.
        method, params, block_rows, block, precision: as in `empirical_ntk`.

    Raises:
        ValueError: if targets are not `[row, output]` of the same rows or not finite,
            and as `empirical_ntk`.
        TypeError: if a parameter that counts is not real floating point; names it.

    Source: as `ntk.alignment`.
    """
    check_rows("x", x)
    rows, own = num_rows(x), {}
    if targets is not None:
        targets = jnp.asarray(targets)
        if targets.ndim != 2 or targets.shape[0] != rows:
            raise ValueError(
                f"targets must be [row, output] with {rows} rows, such as one-hot"
                f" labels; got shape {targets.shape}."
            )
        check_finite(targets, "targets")
        targets = targets.astype(jnp.promote_types(targets.dtype, jnp.float32))
        centre = jnp.mean(targets, axis=0, keepdims=True)
        own = {"labels": targets, "labels_centred": targets - centre}
    totals = sum_over_kernels(
        _alignment_sums,
        (ensemble,),
        x,
        own,
        method=method,
        params=params,
        block_rows=block_rows,
        block=block,
        precision=precision,
    )
    return _alignment(totals, own, rows)


def _drift_sums(strip: Strip, targets):
    del targets
    first, second = strip.kernels

    def total(values):
        return jnp.einsum("mrc,rc->m", values, strip.weights)

    return {
        "moved": total((second - first) ** 2),
        "first": total(first**2),
        "second": total(second**2),
        "growth": total((second - first) * (second + first)),  # |K|^2 - |K_0|^2
    }


def _drift(totals):
    first, second = (jnp.sqrt(totals[name]) for name in ("first", "second"))
    growth = totals["growth"] / (first + second)  # |K| - |K_0|
    # 2 |K| |K_0| (1 - cosine), in which nothing is a difference of large sums.
    apart = at_least(totals["moved"] - growth**2, 0.0)
    return Drift(
        jnp.sqrt(totals["moved"]) / first,
        apart / (2 * first * second),
        second / first,
    )


def _alignment_sums(strip: Strip, targets):
    (kernel,) = strip.kernels
    everyone = jax.lax.all_gather(kernel, "member", axis=0, tiled=True)
    sums = {"members": jnp.einsum("mrc,krc,rc->mk", kernel, everyone, strip.weights)}
    for name, y in targets.items():
        labels = y[strip.rows] @ y[strip.columns].T * strip.weights
        sums[name] = jnp.einsum("mrc,rc->m", kernel, labels)
    # K 1: an entry adds to its row and, from across the diagonal, to its column.
    lines = jnp.zeros((kernel.shape[0], strip.num_rows), kernel.dtype)
    lines = lines.at[:, strip.rows].add(jnp.sum(kernel, axis=2))
    across = jnp.sum(jnp.where(strip.is_below[None], kernel, 0), axis=1)
    return sums | {"lines": lines.at[:, strip.columns].add(across)}


def _alignment(totals, targets, rows):
    lines = totals["lines"]
    members = totals["members"][:, : lines.shape[0]]
    # <H K H, H L H> = <K, L> - 2 (K 1).(L 1) / n + (1 K 1) (1 L 1) / n^2
    products = jnp.matmul(lines, lines.T, precision="highest")
    sums = jnp.sum(lines, axis=1)
    centred = members - 2 * products / rows + jnp.outer(sums, sums) / rows**2
    norms = {
        "labels": jnp.sqrt(jnp.diagonal(members)),
        "labels_centred": jnp.sqrt(jnp.diagonal(centred)),
    }
    labels = dict.fromkeys(norms)
    for name, y in targets.items():
        own = jnp.sqrt(jnp.sum(jnp.matmul(y.T, y, precision="highest") ** 2))
        labels[name] = totals[name] / (norms[name] * own)
    own, own_centred = norms.values()
    return Alignment(
        **labels,
        members=members / jnp.outer(own, own),
        members_centred=centred / jnp.outer(own_centred, own_centred),
    )
