"""`ensjax replay`: one member of a run made again alone, and compared."""

import os

from ensjax.experiment import exit_codes
from ensjax.experiment.exit_codes import ConfigError, one_line
from ensjax.experiment.past_run import (
    PastRun,
    of_other_code,
    open_past_run,
    set_devices_of,
)
from ensjax.experiment.run_directory import existing_run
from ensjax.experiment.versions import collect_versions

# How far a leaf may be off, over its largest entry, where the same bits cannot be
# expected: what rounding became after a few thousand steps.
TOLERANCE = 1e-3


def replay(
    path: str | os.PathLike,
    *,
    member_id: int,
    step: int | None = None,
    tolerance: float = TOLERANCE,
) -> int:
    """Makes a member of a run again and says whether it is the one that was saved.

    Args:
        path: of the run.
        member_id: the member's id.
        step: of a checkpoint; default: the last.
        tolerance: for runs whose bits depend on the other members.

    Returns:
        The exit code: 0 if it is the same, 1 if it is not.

    Raises:
        ConfigError: if there is no such run, member or step, or the members depend on
            each other.
    """
    if not tolerance >= 0:
        raise ConfigError(f"--tolerance must not be negative; got {tolerance}.")
    set_devices_of(existing_run(path))
    from ensjax.train.replay import replay_member
    from ensjax.train.stored import read_member

    past = open_past_run(path)
    if member_id not in past.job.member_ids:
        from ensjax.train.progress import some

        raise ConfigError(
            f"{path} has no member {member_id}; the ids are"
            f" {some(past.job.member_ids)}. (One that is being added is there when the"
            " run has finished; of one that was removed, export reads what is stored.)"
        )
    try:
        stored = read_member(past.checkpoints, member_id, step=step)
        print(
            f"member {member_id} of {path}: {stored.step} steps, from config and seed",
            flush=True,
        )
        replayed = replay_member(past.job, stored, member_id)
    except ValueError as error:
        raise ConfigError(f"{of_other_code(past)}{one_line(error)}") from error
    reason = why_not_bitwise(past)
    leaf, difference = replayed.worst()
    if replayed.is_bitwise:
        print(f"the same bits in all {len(replayed.differences)} leaves of its state")
        return exit_codes.FINISHED
    if reason is None:
        print(
            f"{of_other_code(past)}NOT THE SAME: {replayed.num_changed} of"
            f" {len(replayed.differences)}"
            f" leaves have other bits (most in {leaf}, by {difference:.1e} of its"
            " largest entry), although the run had a fixed block and the same platform"
        )
        return exit_codes.BUG
    is_close = difference <= tolerance
    print(
        f"{of_other_code(past) if not is_close else ''}"
        f"{'the same' if is_close else 'NOT THE SAME'} to a tolerance of {tolerance:g}:"
        f" the largest difference is {difference:.1e} of the leaf's largest entry"
        f" ({leaf}). The same bits cannot be expected: {reason}"
    )
    return exit_codes.FINISHED if is_close else exit_codes.BUG


def why_not_bitwise(past: PastRun) -> str | None:
    """Why a member alone may round differently than in its run; None if it may not."""
    block = past.job.options.get("block")
    if not isinstance(block, int):
        return (
            f"the run had block={block!r}, where rounding depends on the other members;"
            " a number gives the same bits."
        )
    if past.job.options.get("unroll"):
        return "the run was unrolled, where rounding depends on the other members."
    first, now = past.run.versions, collect_versions()
    for before in (first, *first.get("resumed_with", ())):
        for name in ("platform", "device_kind", "num_devices", "jax", "jaxlib"):
            if before.get(name) != now.get(name):
                return (
                    f"the run had {name} {before.get(name)}, and here it is"
                    f" {now.get(name)}."
                )
    return None
