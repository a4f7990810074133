"""`replay_member`: one member made again alone, and compared with its checkpoint."""

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ensjax.checkpoint import leaf_names
from ensjax.mesh import fetch
from ensjax.train.job import TrainingJob
from ensjax.train.loop import run_until
from ensjax.train.stored import StoredMember


@dataclasses.dataclass(frozen=True)
class Replayed:
    """A member that was trained again alone, beside what a checkpoint holds of it.

    Attributes:
        member_id: the member's id.
        step: steps done.
        differences: for every leaf of its state, the largest difference over the
            largest absolute value of the leaf; NaN where only one of both is finite.
        num_changed: how many leaves have other bits.
    """

    member_id: int
    step: int
    differences: dict[str, float]
    num_changed: int

    @property
    def is_bitwise(self) -> bool:
        """Whether every bit of the state is the same."""
        return self.num_changed == 0

    def worst(self) -> tuple[str, float]:
        """The leaf that differs most, and by how much."""
        name = max(
            self.differences,
            key=lambda n: np.nan_to_num(self.differences[n], nan=np.inf),
        )
        return name, self.differences[name]


def replay_member(
    job: TrainingJob,
    stored: StoredMember,
    member_id: int,
    *,
    mesh: Mesh | None = None,
    progress: bool = True,
) -> Replayed:
    """Trains one member of a job alone, up to the step of a checkpoint.

    Args:
        job: of the whole run; its other members are not made.
        stored: what `read_member` gave.
        member_id: the member's id.
        mesh: as the run had it, for the same bits; default: the job's.
        progress: whether to print.

    Returns:
        How far it is from what is stored. The optimizer's state of a member that has
        ended is not compared: it goes on changing while others train.

    Raises:
        ValueError: if the members see each other (a joint objective), the job says why
            it cannot be (`why_no_replay`), or there is no such member.
    """
    if job.why_no_replay:
        raise ValueError(job.why_no_replay)
    run = job.select([member_id]).prepare(mesh)
    if run.is_joint:
        raise ValueError(
            "A member cannot be replayed alone under a joint objective, since its"
            " gradient depends on all other members."
        )
    (state,) = run_until(run, stored.step, progress=progress)
    names = leaf_names(state)
    ours = fetch(
        [jax.random.key_data(x) if _is_key(x) else x for x in jax.tree.leaves(state)]
    )
    ours = {name: np.asarray(x)[0] for name, x in zip(names, ours, strict=True)}
    has_ended = max(ours["frozen_step"], ours["stopped_step"]) >= 0
    differences, num_changed = {}, 0
    for name, theirs in stored.leaves.items():
        if has_ended and name.startswith("opt_state"):
            continue
        if name not in ours:
            raise ValueError(
                f"The checkpoint holds a leaf {name!r} that this job lacks; it was"
                " written for another model or optimizer."
            )
        differences[name] = _difference(ours[name], theirs)
        num_changed += ours[name].tobytes() != np.ascontiguousarray(theirs).tobytes()
    return Replayed(member_id, stored.step, differences, num_changed)


def _is_key(x: Any) -> bool:
    return jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)


def _difference(a, b) -> float:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    if same.all():
        return 0.0
    if (np.isfinite(a) != np.isfinite(b)).any():
        return float("nan")
    scale = np.abs(np.where(np.isfinite(b), b, 0)).max()
    worst = np.abs(np.where(same, 0, a - b)).max()
    return float(worst / scale) if scale else float(worst)
