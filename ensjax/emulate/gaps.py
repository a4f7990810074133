"""Starts of forecasts that hold NaN: where they are, and who may begin at one.

Emulators are trained on states with gaps by a `fill` (`RolloutLoss`,
`VariationalLoss`); a forecast needs the same, or it is NaN everywhere after a few
steps, and its members are then silently counted nowhere.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.mesh import fetch


def check_no_gaps(
    name: str,
    tree: Any,
    remedy: str,
    *,
    rows: Sequence[int] | None = None,
    ids: Sequence[int] | None = None,
) -> None:
    """Raises `ValueError` if arrays that are known hold NaN.

    What is traced, or only a shape, is not looked at.

    Args:
        name: of the tree, in the message.
        tree: leaves `[*space, channel]`, or `[start, *space, channel]` with `rows`.
        remedy: what to do, the end of "give ...".
        rows: which starts are looked at; None: `tree` is of one.
        ids: of all starts, `[start]`; 0, 1, ... by default.
    """
    for path, leaf in jax.tree.leaves_with_path(tree):
        if isinstance(leaf, jax.core.Tracer | jax.ShapeDtypeStruct):
            continue
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            continue
        # Where it lies, so that nothing is fetched; known also inside of a trace.
        with jax.ensure_compile_time_eval():
            has_gap = bool(jnp.isnan(leaf).any())
        if not has_gap:
            continue
        where = f"{name}{jax.tree_util.keystr(path)}"
        gaps = np.isnan(fetch(leaf))
        if rows is not None:
            has_gaps = gaps.reshape(len(gaps), -1).any(axis=1)
            found = [row for row in np.unique(rows) if has_gaps[row]]
            if not found:  # of a start from which nobody runs
                continue
            where += f" of start {found[0] if ids is None else ids[found[0]]}"
            gaps = np.atleast_1d(gaps[found[0]])
        place = tuple(int(i[0]) for i in np.nonzero(gaps))
        variable = f" in variable {place[-1]}" if place else ""
        raise ValueError(
            f"{where} holds NaN at {int(gaps.sum())} of {gaps.size} values, the first"
            f"{variable} at {place}: every value would soon be NaN. Give {remedy}."
        )
