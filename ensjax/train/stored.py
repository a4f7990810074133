"""One member of a run, read from its checkpoints at the cost of its own bytes."""

from typing import Any, NamedTuple

import numpy as np
import tensorstore
from etils import epath

from ensjax.checkpoint import Checkpoints, DamagedCheckpoint
from ensjax.checkpoint.checksums import row_checksums
from ensjax.train.elastic import Stored, stored_in
from ensjax.train.progress import some

_CACHE_BYTES = 64 * 1024**2


class StoredMember(NamedTuple):
    """What a checkpoint holds of one member.

    Attributes:
        directory: of the checkpoints.
        step: steps done.
        stack: its stack in a `Group`; 0 for an `Ensemble`.
        leaves: its whole training state by the names of leaves, such as
            "params.blocks.0.linear.kernel"; each without the member axis.
    """

    directory: str
    step: int
    stack: int
    leaves: dict[str, np.ndarray]

    def weights(self) -> dict[str, np.ndarray]:
        """Parameters and statistics: the best where they were kept, else the last."""
        kept = {name: x for name, x in self.leaves.items() if name.startswith("best.")}
        source = self.leaves
        if kept and kept["best.step"] >= 0:
            source = {name.removeprefix("best."): x for name, x in kept.items()}
        return {
            name: x
            for name, x in source.items()
            if name.startswith(("params.", "rest."))
        }


def read_member(
    checkpoint_dir: Any, member_id: int, *, step: int | None = None
) -> StoredMember:
    """Reads the state of one member from the checkpoints of a run.

    Only its own chunks are read, and compared with the checksums that were saved.

    Args:
        checkpoint_dir: as it was given to `fit`.
        member_id: the member's id.
        step: which; by default the last that is whole.

    Raises:
        ValueError: if no checkpoint holds the member (at that step); says what does.
        DamagedCheckpoint: if no such checkpoint is what was saved.
    """
    stores = stored_in(checkpoint_dir, every_step=True)
    if not stores:
        raise ValueError(f"{checkpoint_dir} holds no checkpoint.")
    holders = [s for s in stores if member_id in s.ids]
    if not holders:
        last = max(stores, key=lambda s: s.step)
        raise ValueError(
            f"{checkpoint_dir} holds no member {member_id}; the members are"
            f" {some(last.ids)}."
        )
    chosen = [s for s in holders if step in (None, s.step)]
    if not chosen:
        steps = sorted({s.step for s in holders})
        raise ValueError(
            f"{checkpoint_dir} holds member {member_id} after step"
            f" {', '.join(map(str, steps))}, but not after step {step}."
        )
    first = None
    for stored in sorted(chosen, key=lambda s: -s.step):
        try:
            return _read(stored, stored.ids.index(member_id))
        except DamagedCheckpoint as error:  # the one before may be whole
            first = first or error
    raise first


def _read(stored: Stored, column: int) -> StoredMember:
    with Checkpoints(stored.directory) as checkpoints:
        leaves = checkpoints.read_leaves(stored.step)
    prefix = f"{stored.stack_of(column)}."
    row = int(stored.rows[column])
    path = epath.Path(stored.directory).resolve() / str(stored.step) / "state"
    names = [name for name in leaves if name.startswith(prefix)]
    # One cache for all leaves: the index of the store is read once.
    context = tensorstore.Context({"cache_pool": {"total_bytes_limit": _CACHE_BYTES}})
    arrays = [_open(path, name, context) for name in names]
    values = [array[row : row + 1].read() for array in arrays]
    table = {
        name: np.asarray(value.result())
        for name, value in zip(names, values, strict=True)
    }
    for name, checksums in row_checksums(table).items():
        expected = leaves[name].checksums[row]
        if checksums[0] != expected:
            raise DamagedCheckpoint(
                f"checkpoint {stored.step} in {stored.directory} is damaged ({name} of"
                f" member {stored.ids[column]} is not what was saved)"
            )
    return StoredMember(
        stored.directory,
        stored.step,
        stored.stack_of(column),
        {name.removeprefix(prefix): x[0] for name, x in table.items()},
    )


def _open(path, name, context):
    spec = {
        "driver": "zarr",
        "kvstore": {"driver": "ocdbt", "base": _base(path), "path": f"{name}/"},
    }
    return tensorstore.open(spec, open=True, read=True, context=context).result()


def _base(path):
    text = str(path)
    if text.startswith("gs://"):
        bucket, _, rest = text.removeprefix("gs://").partition("/")
        return {"driver": "gcs", "bucket": bucket, "path": f"{rest}/"}
    return {"driver": "file", "path": f"{text}/"}
