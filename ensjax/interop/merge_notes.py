"""What a user should know of a merge: notes for its record and the terminal."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ensjax.interop.merge_inputs import MergeInputs
from ensjax.interop.merge_plans import MergePlan
from ensjax.interop.small_files import differences
from ensjax.interop.tensor_choice import TensorChoice, has_wide
from ensjax.weight_space.leaves import statistics_among


def merge_notes(
    inputs: MergeInputs,
    choice: TensorChoice,
    plan: MergePlan,
    hashes: Mapping[Path, str],
    statistics: str,
    left_out: Mapping[str, Sequence[int]],
) -> list[str]:
    """All notes of a merge, the most urgent first.

    Args:
        inputs: the checkpoints.
        choice: what becomes of the tensors.
        plan: of the merge.
        hashes: SHA-256 of every file of weights.
        statistics: "mean" or "method", how batch statistics were merged.
        left_out: places of the members of weight 0, by the name of a tensor.
    """
    notes = _of_statistics(choice, plan, statistics, left_out)
    notes += _same_files(inputs, hashes)
    notes += [note for folder in inputs.models for note in folder.notes]
    notes += differences([folder.path for folder in inputs.models])
    if has_wide(choice.merged) or has_wide(choice.statistics):
        notes.append("tensors of float64 were summed in float32")
    return notes


def _of_statistics(choice, plan, statistics, left_out):
    """That batch statistics are to be measured again, unless they are one member's."""
    merged = [*choice.merged, *choice.statistics]
    known = statistics_among([*merged, *choice.copied])
    merged = [n for n in merged if n in known]
    copied = [n for n in choice.copied if n in known]
    copied = [n for n in copied if choice.copied[n].source.spec(n).is_floating]
    names = merged or copied
    if not names or _is_one_member(plan, left_out):
        return []
    how = {"mean": "the members' mean", "method": "merged as weights are"}[statistics]
    how = how if merged else "copied"
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return [
        f"batch statistics ({names[0]}{more}) are {how}, not what the merged network"
        " has: measure them again on data before it is used"
        " (torch.optim.swa_utils.update_bn(loader, model), or"
        " ensjax.weight_space.recompute_statistics)"
    ]


def _is_one_member(plan, left_out):
    """Whether all other members have weight 0, so that the result is that one."""
    if plan.method not in ("average", "fisher", "slerp", "nuslerp"):
        return False
    out = {tuple(left_out.get(name, ())) for name in plan.knobs}
    return len(out) == 1 and len(out.pop()) == plan.num_members - 1


def _same_files(inputs, hashes):
    """Files of weights that two folders have in common, as links or copies."""
    of_base = [] if inputs.base is None else inputs.base.files
    known = {hashes[path]: path for path in reversed(of_base)}
    notes = []
    for folder in inputs.members:
        for path in folder.files:
            first = known.setdefault(hashes[path], path)
            if first == path or path.name.endswith(".index.json"):
                continue
            what = "adds nothing to the base" if first in of_base else "counts twice"
            notes.append(
                f"{first} and {path} are the same file, byte for byte: what it holds"
                f" {what}"
            )
    return notes
