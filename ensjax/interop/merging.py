"""Folders of weights merged into a folder, with at most three tensors in memory."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ensjax.interop.circle_merges import (
    CIRCLE_METHODS,
    merged_circles,
    prepare_circles,
    reads_of_circles,
)
from ensjax.interop.entry_merges import (
    ENTRY_METHODS,
    merged_entries,
    prepare_entries,
    reads_of_entries,
)
from ensjax.interop.lineage import InputHashes, lineage_of, write_lineage
from ensjax.interop.merge_inputs import (
    MergeInputs,
    Reading,
    blocks_of,
    check_places,
    one_of,
)
from ensjax.interop.merge_notes import merge_notes
from ensjax.interop.merge_plans import (
    MergePlan,
    check_layout,
    check_merge,
    knobs_by_leaf,
    layouts_by_leaf,
    members_left_out,
)
from ensjax.interop.merged_statistics import (
    STATISTICS,
    check_variances,
    merged_statistics,
)
from ensjax.interop.output_folders import check_output, output_folder
from ensjax.interop.small_files import copy_small_files
from ensjax.interop.stacks import stem_of
from ensjax.interop.tensor_blocks import cast_block, finite_blocks
from ensjax.interop.tensor_choice import TensorChoice, choose_tensors
from ensjax.interop.tensor_types import (
    TensorSpec,
    WeightsError,
    bytes_of,
    bytes_text,
    dtype_named,
)
from ensjax.interop.tied_words import check_tied_words
from ensjax.interop.unit_merges import (
    UNIT_METHODS,
    merged_units,
    prepare_units,
    reads_of_units,
)
from ensjax.interop.weight_folders import WeightFolder
from ensjax.interop.weight_writer import MAX_SHARD_SIZE, WeightWriter


class _Streamed(NamedTuple):
    """How often a tensor is read, what is found first, and how one is merged."""

    reads: Callable[[MergePlan, str], int]
    prepare: Callable[[MergePlan], dict[str, Any]]
    merged: Callable[[MergePlan, dict[str, Any], str], Iterator[np.ndarray]]


_ENTRIES = _Streamed(reads_of_entries, prepare_entries, merged_entries)
_CIRCLES = _Streamed(reads_of_circles, prepare_circles, merged_circles)
_UNITS = _Streamed(reads_of_units, prepare_units, merged_units)
_STREAMED = {
    **dict.fromkeys(ENTRY_METHODS, _ENTRIES),
    **dict.fromkeys(CIRCLE_METHODS, _CIRCLES),
    **dict.fromkeys(UNIT_METHODS, _UNITS),
}


def merge_folders(
    folders: Sequence[str | os.PathLike],
    out: str | os.PathLike,
    *,
    method: str = "average",
    base: str | os.PathLike | None = None,
    fisher: Sequence[str | os.PathLike] = (),
    knobs: Mapping[str, Any] | None = None,
    per_leaf: Mapping[str, Mapping[str, Any]] | None = None,
    seed: int = 0,
    layout: str | None = None,
    statistics: str = "mean",
    dtype: str | None = None,
    copy_from: str | os.PathLike | None = None,
    copy: Sequence[str] = (),
    skip: Sequence[str] = (),
    max_shard_size: str | int = MAX_SHARD_SIZE,
    overwrite: bool = False,
    allow_non_finite: bool = False,
    report: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Merges checkpoints on disk without the code of their model.

    The same as the method of `weight_space` on the stack of all members, to the
    rounding of float32 (and, for units, in the layout of the files), but read in
    blocks: at any time there are in memory at most as many bytes as three times the
    largest tensor, or 32 MiB (JAX takes some 50 MiB more while it compiles, whatever
    the size of the model). Methods that look at a whole tensor or the whole model
    before they decide read the files several times.

    Written are safetensors, the small files beside the weights of `copy_from` (if it is
    not given, of the base; if there is none, of the first folder) and `lineage.json`.
    The output is there whole or not at all.

    Args:
        folders: the members: folders or files, as for `open_weights`.
        out: the folder to be made.
        method: a name of `weight_space.METHODS`, but for `regmean`.
        base: the checkpoint from which the members were fine-tuned.
        fisher: for the method `fisher`, one checkpoint of each member with its Fisher
            information by the same names.
        knobs: keyword arguments of the method, such as `{"density": 0.3}`.
        per_leaf: other knobs for the tensors in whose name a regular expression is
            found, such as `{"head": {"weights": [1, 0]}}`; the first that is found
            counts. `layout` may be among them.
        seed: of methods that draw. Draws depend on it, the member's place, the tensor's
            name and the entry alone.
        layout: "torch" where matrices are `[out, in]`, "flax" where they are
            `[in, out]`, for scopes by unit and DELLA; by default what the files say,
            or "torch". DELLA's draws are numbered with the units on the last axis. A
            table of embeddings is `[token, dim]` in either, and no name says for sure
            what is one: under "torch" a unit of it is a token, as in mergekit; under
            "flax" it is a dimension, as in `weight_space`. By `per_leaf` such as
            `{"embed_tokens": {"layout": "flax"}}` the two are the same.
        statistics: how batch statistics are merged (`running_mean` and `running_var` of
            PyTorch, `batch_stats` of Flax, `rest` of ours). "mean": the members' mean
            by their weights, for every method; "method": as weights are, refused where
            a variance would be below 0. They are not the merged network's own in either
            case, and a note says how they are measured again.
        dtype: of what is written, such as "bfloat16"; by default the members', which
            must agree then. A `config.json` that names another is corrected.
        copy_from: one of the folders or the base: tensors that one of them lacks, or
            that differ in shape, are copied from it; it also settles
            `tie_word_embeddings` where configurations differ. By default both are
            refused.
        copy: patterns of tensors that are copied, from `copy_from` or where integer
            tensors come from.
        skip: patterns of tensors that are left out.
        max_shard_size: such as `5GB`.
        overwrite: whether an earlier output at `out` is replaced.
        allow_non_finite: whether NaN and infinity are merged, and written, instead of
            refused. A member of weight 0 in a tensor is left out there in any case.
        report: called with bytes read and bytes to be read.

    Returns:
        What `lineage.json` holds.

    Raises:
        WeightsError: if files are missing, damaged or unsafe, or do not fit together;
            names the tensor and the folder. Before anything is written where headers
            tell.
        ValueError: for knobs that the method refuses.
        OSError: if the output cannot be written. Nothing is left then.

    Example:
        >>> found = merge_folders(["a/", "b/"], "out/", base="z/", method="ties")
    """
    knobs, per_leaf = dict(knobs or {}), dict(per_leaf or {})
    check_places(folders, base, fisher, out)
    check_merge(
        method,
        len(folders),
        base=base is not None,
        fisher=len(fisher),
        knobs=knobs,
        per_leaf=per_leaf,
    )
    target = None if dtype is None else dtype_named(dtype)
    check_layout(layout)
    if statistics not in STATISTICS:
        raise ValueError(
            f"statistics is one of {', '.join(STATISTICS)}; got {statistics!r}."
        )
    bytes_of(max_shard_size)
    check_output(out, overwrite=overwrite)
    with ExitStack() as stack:
        inputs = MergeInputs.open(stack, folders, base, fisher)
        choice = choose_tensors(
            inputs.members,
            inputs.base,
            copy_from=one_of(inputs.models, copy_from),
            copy=copy,
            skip=skip,
            any_dtype=target is not None,
            mean_of_statistics=statistics == "mean",
        )
        _check_choice(choice, inputs.fisher)
        check_tied_words(inputs.models, choice, one_of(inputs.models, copy_from))
        reading = Reading(report)
        names = [*choice.merged, *choice.statistics]
        of_leaves = knobs_by_leaf(method, names, knobs, per_leaf)
        left_out = members_left_out(method, of_leaves)
        blocks, information = blocks_of(
            inputs,
            choice,
            allow_non_finite=allow_non_finite,
            left_out=left_out,
            report=reading.add,
        )
        plan = MergePlan(
            method=method,
            specs=choice.merged,
            knobs=of_leaves,
            blocks=blocks,
            fisher=information,
            seed=seed,
            layout=layout or inputs.members[0].layout,
            layouts=layouts_by_leaf(names, per_leaf),
        )
        reading.total = sum(_bytes_read(plan, inputs, name) for name in names)
        hashes = stack.enter_context(InputHashes(inputs.all))
        partial = stack.enter_context(output_folder(out, overwrite=overwrite))
        # Heads that are copied belong to the configuration beside them.
        source = one_of(inputs.models, copy_from) or inputs.models[0]
        written = _write(
            partial,
            plan,
            choice,
            target=target,
            source=source,
            max_shard_size=max_shard_size,
            allow_non_finite=allow_non_finite,
        )
        kept, left = copy_small_files(
            source.path,
            partial,
            read=source.specs.values(),
            written=_written_specs(choice, target).values(),
        )
        merged_files = {path.name for path in source.files}
        found = hashes.wait()
        notes = merge_notes(inputs, choice, plan, found, statistics, left_out)
        lineage = lineage_of(
            plan=plan,
            knobs=knobs,
            per_leaf=per_leaf,
            choice=choice,
            statistics=statistics,
            out=out,
            inputs=found,
            roles=inputs.roles,
            dtype=dtype,
            small_files_from=source.path,
            files_left=[name for name in left if name not in merged_files],
            output=[*written, *kept],
            notes=notes,
        )
        write_lineage(partial, lineage)
    return lineage


def _bytes_read(plan, inputs, name):
    """Of one tensor, all passes and folders together."""
    size = sum(folder.spec(name).nbytes for folder in inputs.models)
    if name not in plan.specs:  # batch statistics
        return size
    reads = _STREAMED[plan.method].reads(plan, name)
    # The lengths of Fisher information are found first.
    again = 2 if plan.knobs[name].get("normalize") else 1
    return reads * size + again * (
        sum(folder.spec(name).nbytes for folder in inputs.fisher)
    )


def _write(folder, plan, choice, *, target, source, max_shard_size, allow_non_finite):
    """Merges and copies all tensors; returns the files."""
    _, prepare, merged = _STREAMED[plan.method]
    specs = _written_specs(choice, target)
    known = prepare(plan)
    writer = WeightWriter(
        folder,
        specs,
        stem=stem_of(source),
        max_shard_size=max_shard_size,
        metadata={"format": source.metadata.get("format", "pt")},
        ties=choice.ties,
    )
    _check_room(folder, writer.total_size)
    with writer:
        for name in writer.order:
            dtype = specs[name].dtype
            if name in choice.copied:
                blocks = _pieces(choice.copied[name].source, name)
            elif not specs[name].size:
                blocks = [np.empty(0, np.float32)]
            else:
                if name in choice.statistics:
                    blocks = merged_statistics(plan, choice.statistics[name], name)
                else:
                    blocks = merged(plan, known, name)
                blocks = check_variances(blocks, name)
                if not allow_non_finite:
                    blocks = finite_blocks(blocks, name)
            for block in blocks:
                writer.write(name, cast_block(block, dtype, name))
    return [file._asdict() for file in writer.files]


def _check_choice(choice: TensorChoice, information: Sequence[WeightFolder]) -> None:
    if not choice.merged:
        raise WeightsError("no tensor is left to be merged.")
    for folder in information:
        for name, spec in choice.merged.items():
            if name not in folder:
                raise WeightsError(f"tensor {name!r} is missing in {folder.path}.")
            if folder.spec(name).shape != spec.shape:
                raise WeightsError(
                    f"tensor {name!r} has shape {list(folder.spec(name).shape)} in"
                    f" {folder.path}, but {list(spec.shape)} in the members."
                )


def _written_specs(choice: TensorChoice, target: Any) -> dict[str, TensorSpec]:
    """Shapes and types of the output, tensors in the order of their layers."""
    specs = {
        name: TensorSpec(spec.shape, target or spec.dtype)
        for name, spec in (*choice.merged.items(), *choice.statistics.items())
    }
    for name, copied in choice.copied.items():
        own = copied.source.spec(name)
        is_cast = target is not None and own.is_floating
        specs[name] = TensorSpec(own.shape, target if is_cast else own.dtype)
    return specs


def _check_room(folder: Path, needed: int) -> None:
    info = os.statvfs(folder)
    free = info.f_bavail * info.f_frsize
    if free < needed:
        raise WeightsError(
            f"no space left for the output: it takes {bytes_text(needed)}, and"
            f" {bytes_text(free)} are free."
        )


def _pieces(source: WeightFolder, name: str) -> Iterator[np.ndarray]:
    """A tensor as it is, a piece at a time."""
    size = source.spec(name).size
    for start in range(0, max(size, 1), _PIECE):
        yield source.read_entries(name, start, min(start + _PIECE, size))


_PIECE = 2**20
