"""Checkpoints of other frameworks as one stack `[member, ...]`, and back."""

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from ensjax.interop.output_folders import output_folder
from ensjax.interop.small_files import copy_small_files
from ensjax.interop.tensor_types import TensorSpec, WeightsError
from ensjax.interop.weight_folders import WeightFolder, open_weights
from ensjax.interop.weight_writer import MAX_SHARD_SIZE, WeightWriter


def read_stacked(
    folders: Sequence[str | os.PathLike], *, names: Sequence[str] | None = None
) -> dict[str, np.ndarray]:
    """The tensors of several checkpoints as one stack, the way into `weight_space`.

    Args:
        folders: folders or files, as for `open_weights`; one for each member.
        names: of the tensors that are read; by default all, which must be the same in
            every folder.

    Returns:
        By the name of a tensor, `[member, ...]` on the host, of the type in the files.
        A tensor with two names (tied weights) comes once, under the first. JAX holds 64
        bits only where that is enabled: `jax.numpy` makes int64 int32.

    Raises:
        WeightsError: as `open_weights`, or if a name, shape or type differs; names the
            tensor and the folder.

    Example:
        >>> from ensjax import weight_space
        >>> stacked = read_stacked(["seed0/", "seed1/", "seed2/"])
        >>> mean = weight_space.average(stacked)
        >>> write_weights("soup/", mean, like="seed0/")
    """
    if not folders:
        raise WeightsError("read_stacked needs at least one folder; got none.")
    with ExitStack() as stack:
        opened = [stack.enter_context(open_weights(folder)) for folder in folders]
        chosen = list(opened[0].specs) if names is None else list(names)
        check_same(opened, chosen, others=names is None)
        return {name: np.stack([own.read(name) for own in opened]) for name in chosen}


def check_same(
    folders: Sequence[WeightFolder], names: Sequence[str], *, others: bool
) -> None:
    """Raises `WeightsError` unless folders hold tensors of one shape and type.

    Args:
        folders: that are compared with the first.
        names: of the tensors.
        others: whether folders may hold no other tensors.
    """
    first = folders[0]
    for folder in folders:
        for name in names:
            if name not in folder:
                raise WeightsError(
                    f"tensor {name!r} is missing in {folder.path}"
                    + (f"; {first.path} has it." if folder is not first else ".")
                )
            if folder.spec(name) != first.spec(name):
                raise WeightsError(
                    f"tensor {name!r} is {folder.spec(name)} in {folder.path}, but"
                    f" {first.spec(name)} in {first.path}."
                )
        more = [name for name in folder.specs if name not in first]
        if others and more:
            raise WeightsError(
                f"tensor {more[0]!r} is in {folder.path}, but not in {first.path}."
            )


def write_weights(
    folder: str | os.PathLike,
    weights: Mapping[str, Any],
    *,
    like: str | os.PathLike | None = None,
    max_shard_size: str | int = MAX_SHARD_SIZE,
    metadata: Mapping[str, str] | None = None,
    ties: Mapping[str, str] | None = None,
) -> None:
    """Writes one model as safetensors: whole, or not at all.

    Args:
        folder: to be made; may not exist.
        weights: arrays by name, of NumPy, JAX or PyTorch's `numpy()`.
        like: a folder whose small files (config, tokenizer, ...) are kept beside the
            weights, and whose metadata and ties hold for them too. Where `config.json`
            names another type than that of the weights, it is corrected.
        max_shard_size: such as `5GB`; above it there are shards and an index.
        metadata: strings for the files; by default those of `like`, or
            `{"format": "pt"}`.
        ties: second names of tensors.

    Raises:
        WeightsError: if the place is taken, or a type is not one of safetensors'.
        OSError: if it cannot be written; nothing is left then.
    """
    arrays = {name: np.asarray(x) for name, x in weights.items()}
    specs = {name: TensorSpec(x.shape, x.dtype) for name, x in arrays.items()}
    stem = "model"
    if like is not None:
        with open_weights(like) as source:
            own = source.metadata or {"format": "pt"}
            own = {k: v for k, v in own.items() if k not in source.ties}
            metadata = own if metadata is None else metadata
            shared = {a: k for a, k in source.ties.items() if k in specs}
            ties = shared if ties is None else ties
            stem = stem_of(source)
            read = list(source.specs.values())
    with output_folder(folder, overwrite=False) as partial:
        with WeightWriter(
            partial,
            specs,
            stem=stem,
            max_shard_size=max_shard_size,
            metadata=metadata,
            ties=ties,
        ) as writer:
            for name in writer.order:
                writer.write(name, arrays[name])
        if like is not None:
            copy_small_files(like, partial, read=read, written=specs.values())


def write_members(
    folders: Sequence[str | os.PathLike],
    stacked: Mapping[str, Any],
    *,
    like: str | os.PathLike | Sequence[str | os.PathLike] | None = None,
    max_shard_size: str | int = MAX_SHARD_SIZE,
) -> None:
    """Writes every member of a stack to a folder of its own; see `write_weights`.

    What `read_stacked` has read comes back bit for bit.

    Args:
        folders: one for each member.
        stacked: `[member, ...]` by name.
        like: one folder for all, or one for each member.
        max_shard_size: as for `write_weights`.

    Raises:
        WeightsError: as `write_weights`, or if there is not one folder for each member.
    """
    is_one = like is None or isinstance(like, (str, os.PathLike))
    likes = [like] * len(folders) if is_one else list(like)
    for name, leaf in stacked.items():
        if np.shape(leaf)[:1] != (len(folders),):
            raise WeightsError(
                f"{name!r} has shape {np.shape(leaf)}, but there are {len(folders)}"
                " folders; write one member to each."
            )
    if len(likes) != len(folders):
        raise WeightsError(
            f"like must be one folder, or one for each of {len(folders)} members; got"
            f" {len(likes)}."
        )
    for member, (folder, source) in enumerate(zip(folders, likes)):
        own = {name: np.asarray(leaf)[member] for name, leaf in stacked.items()}
        write_weights(folder, own, like=source, max_shard_size=max_shard_size)


def stem_of(source: WeightFolder) -> str:
    """What files of weights are called, before a number: `model` for most."""
    name = Path(source.files[0]).name
    known = "diffusion_pytorch_model"
    return known if name.startswith(known) else "model"
