"""What lies beside weights: configurations, tokenizers, licences; never weights."""

import hashlib
import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ensjax.interop.tensor_types import TensorSpec, WeightsError, main_dtype
from ensjax.interop.weight_writer import file_sha256, sync

# A tokenizer's file has some 30 MB at most.
_LARGEST = 100_000_000
_WEIGHTS = (
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".h5",
    ".msgpack",
    ".onnx",
    ".onnx_data",
    ".gguf",
    ".npz",
    ".npy",
    ".index.json",
    ".distcp",
)
# Of a training run, or about the model that was merged and not about the merge.
_RUN = (
    "optimizer",
    "scheduler",
    "rng_state",
    "scaler",
    "trainer_state",
    "training_args",
    "events.out.tfevents",
    "lineage.json",
    "README",
)
_DTYPES = ("dtype", "torch_dtype")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json")
# Fields that say nothing of what the numbers mean.
_NAMES = (
    "_name_or_path",
    "transformers_version",
    "torch_dtype",
    "dtype",
    "architectures",
    "id2label",
    "label2id",
    "problem_type",
    "use_cache",
    "finetuning_task",
)


class SmallFiles(NamedTuple):
    """Files to be kept, and those that are not, by their paths in the folder."""

    kept: list[str]
    left: list[str]


def small_files(folder: str | Path) -> SmallFiles:
    """The files of a folder that a copy of the model needs beside its weights.

    Weights of any framework, states of optimizers and training runs, hidden files,
    files above 100 MB and model cards (`README*`, which describe the model as it was)
    are left. So are folders with weights in them, such as `checkpoint-500`.
    """
    folder = Path(folder)
    kept: list[str] = []
    left: list[str] = []
    if not folder.is_dir():
        return SmallFiles(kept, left)
    _sort_files(folder, folder, kept, left)
    return SmallFiles(sorted(kept), sorted(left))


def _sort_files(root, folder, kept, left):
    for path in sorted(folder.iterdir()):
        name = path.relative_to(root).as_posix()
        if path.name.startswith("."):
            continue
        if path.is_dir():
            if path.is_symlink() or _holds_weights(path):
                left.append(name + "/")
            else:
                _sort_files(root, path, kept, left)
            continue
        is_kept = path.is_file() and not _is_weights(path)
        is_kept = is_kept and not path.name.startswith(_RUN)
        is_kept = is_kept and path.stat().st_size <= _LARGEST
        (kept if is_kept else left).append(name)


def _holds_weights(folder):
    return any(path.is_file() and _is_weights(path) for path in folder.rglob("*"))


def _is_weights(path):
    return path.name.endswith(_WEIGHTS)


def copy_small_files(
    folder: str | Path,
    target: Path,
    *,
    read: Iterable[TensorSpec],
    written: Iterable[TensorSpec],
) -> tuple[list[dict[str, Any]], list[str]]:
    """Copies `small_files` of a folder.

    `config.json` says in which type the weights are that lie beside it now, or
    `from_pretrained` would change it.

    Args:
        folder: of the model.
        target: a folder that exists.
        read: shapes and types of the weights in `folder`.
        written: of those in `target`.

    Returns:
        For each file its name, size and SHA-256, and the names of those left.
    """
    files = small_files(folder)
    config = _config_of(folder, list(read), list(written))
    copied = []
    for name in files.kept:
        place = target / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if name == "config.json" and config is not None:
            place.write_text(json.dumps(config, indent=2) + "\n")
        else:
            shutil.copyfile(Path(folder) / name, place)
        with open(place, "rb+") as file:
            sync(file)
        size = place.stat().st_size
        copied.append({"name": name, "size": size, "sha256": file_sha256(place)})
    return copied, files.left


def _config_of(folder, read, written):
    """The configuration with the type of what is written; None where it says so."""
    config, dtype = read_config(folder), main_dtype(written)
    if config is None or dtype is None:
        return None
    is_changed = _say_dtype(config, written)
    if not any(config.get(key) for key in _DTYPES) and dtype != main_dtype(read):
        config |= dict.fromkeys([k for k in _DTYPES if k in config] or ["dtype"])
        config |= {key: dtype.name for key in _DTYPES if key in config}
        is_changed = True
    return config if is_changed else None


def _say_dtype(config, written):
    """Corrects fields of a configuration and its parts; returns whether any was."""
    types = {spec.dtype.name: spec.dtype for spec in written}
    dtype = main_dtype(written)
    is_changed = False
    for key, value in config.items():
        if key in _DTYPES and isinstance(value, str):
            said = types.get(value.removeprefix("torch."))
            # Of weights of several types the wider may be meant: none is rounded.
            if said is None or said.itemsize < dtype.itemsize:
                config[key], is_changed = dtype.name, True
        elif key.endswith("_config") and isinstance(value, dict):
            is_changed |= _say_dtype(value, written)
    return is_changed


def read_config(folder: str | Path) -> dict[str, Any] | None:
    """`config.json` of a folder; None where there is none.

    Raises:
        WeightsError: if it is no JSON object.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise WeightsError(f"{path} is no JSON: {error}.") from error
    if not isinstance(config, dict):
        raise WeightsError(f"{path} must hold a JSON object.")
    return config


def differences(folders: Sequence[str | Path]) -> list[str]:
    """What configurations and tokenizers of folders say differently from the first's.

    The same shapes can belong to different models, and the same rows of an embedding to
    different words.
    """
    notes = []
    first, *others = folders
    config = read_config(first)
    for other in others:
        theirs = read_config(other)
        if config is not None and theirs is not None:
            keys = [
                key
                for key in sorted({*config, *theirs} - set(_NAMES))
                if config.get(key) != theirs.get(key)
            ]
            if keys:
                notes.append(
                    f"config.json of {other} and of {first} differ in"
                    f" {', '.join(keys[:6])}{', ...' if len(keys) > 6 else ''}"
                )
        for name in _TOKENIZERS:
            pair = [Path(folder) / name for folder in (first, other)]
            if all(path.is_file() for path in pair) and len(set(map(_hash, pair))) > 1:
                notes.append(
                    f"{name} of {other} and of {first} differ: rows of their embeddings"
                    " may stand for different words"
                )
    return notes


def _hash(path):
    return hashlib.sha256(path.read_bytes()).digest()
