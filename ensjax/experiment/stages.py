"""A run in stages: each is computed once, stored, and read back when the run resumes.

stages/<name>.npz   the arrays of one finished stage, and a CRC-32 at the end

For experiments whose work is not one call of `fit`: seeds, data sets, models that
others train. A stage that trains gives `fit` a folder of `run_dir.checkpoints` and so
resumes inside, too.
"""

import hashlib
import io
import json
import re
import time
import zlib
from collections.abc import Callable, Mapping

import ml_collections
import numpy as np
from etils import epath

from ensjax.experiment.configs import normalise_config
from ensjax.experiment.exit_codes import ConfigError
from ensjax.experiment.json_files import write_bytes
from ensjax.experiment.processes import everywhere, on_first_process, process_index
from ensjax.experiment.run_directory import RunDirectory
from ensjax.train.progress import duration

Arrays = Mapping[str, np.ndarray]
_CONFIG = "__config__"
_CRC_BYTES = 4


class StoredStage(dict):
    """The arrays of a stage that was read back.

    Code that has changed since may ask for one that the file does not hold. That is no
    mistake in the code, and the file cannot be mended: it says so.
    """

    def __init__(self, arrays: Arrays, path: epath.Path):
        super().__init__(arrays)
        self._path = path

    def __missing__(self, name):
        held = ", ".join(sorted(self)) or "nothing"
        raise ConfigError(
            f"{self._path} is a stage of an older version of this experiment: it has no"
            f" {name!r} (it has {held}). Delete {self._path} and run the same command"
            " again, which computes it and the stages after it anew; or give another"
            " --workdir."
        )


def run_stages(
    run_dir: RunDirectory,
    config: ml_collections.ConfigDict,
    stages: Mapping[str, Callable[[dict[str, Arrays]], Arrays]],
    *,
    takes_members_from: bool = False,
) -> dict[str, dict[str, np.ndarray]]:
    """Runs named stages in order and returns what each gave.

    One line is printed for each stage, with the time that is left; the seconds are
    logged in the phase "stages". A file that cannot be read, or that another config
    has written, is computed again, and so are the stages after it; a line says so.

    Args:
        run_dir: the run.
        config: of the run.
        stages: for each name (letters, digits, `_` and `-`) a function of what the
            earlier stages gave, `{stage: {name: array}}`. It returns arrays by name, of
            numbers or text, and depends on the config and the earlier stages alone.
            Times it may return make no scalar of the results.
        takes_members_from: whether a stage hands `run_dir.members_from` to `fit`; else
            a run that was told to take members over is refused.

    Returns:
        `{stage: {name: array}}`. Asked for an array that it does not hold, a stage that
        was read back raises `ConfigError`, which names its file and what to do.

    Raises:
        ValueError: if a name cannot name a file, or no stage is given.
        TypeError: if a stage returns something else than a mapping of such arrays.
        ConfigError: for members that are not taken over, before anything is run.
    """
    if not takes_members_from:
        refuse_members_from(run_dir)
    if not stages:
        raise ValueError("a run in stages has at least one; got none.")
    for name in stages:
        if not re.fullmatch(r"[\w][\w-]*", name):
            raise ValueError(
                f"a stage's name becomes a file name: letters, digits, _ and -; got"
                f" {name!r}."
            )
    digest = _digest(config)
    logger = run_dir.logger("stages")
    done: dict[str, dict[str, np.ndarray]] = {}
    is_fresh, spent = False, []
    for number, (name, compute) in enumerate(stages.items(), start=1):
        path = run_dir.path / "stages" / f"{name}.npz"
        label = f"stage {number}/{len(stages)} {name}"
        is_stored = not is_fresh and on_first_process(
            lambda path=path: _read(path, digest) is not None
        )
        if is_stored:
            stored = everywhere(lambda path=path: _read(path, digest, say=False))
            done[name] = StoredStage(stored, path)
            _say(f"{label}: read back")
            continue
        is_fresh = True
        start = time.perf_counter()
        done[name] = _arrays(name, compute(done))
        spent.append(time.perf_counter() - start)
        if run_dir.is_writable:
            path.parent.mkdir(exist_ok=True)
            write_bytes(path, _pack(done[name], digest))
        logger.write(number, {"seconds": spent[-1]})
        rest = len(stages) - number
        left = f" | {duration(rest * sum(spent) / len(spent))} left" if rest else ""
        _say(f"{label}: {duration(spent[-1])}{left}")
    return done


def refuse_members_from(run_dir: RunDirectory) -> None:
    """Raises `ConfigError` where a run in stages was told to take members over.

    For experiments whose members go on from what other stages have trained.
    """
    if run_dir.members_from:
        raise ConfigError(
            "--members_from: this experiment trains in stages and takes no members"
            " over; leave it out."
        )


def read_stage(
    run_dir: RunDirectory, config: ml_collections.ConfigDict, name: str
) -> dict[str, np.ndarray] | None:
    """What a stage of an earlier run gave, or None if it is not whole any more.

    Args:
        run_dir: the run.
        config: of the run.
        name: of the stage.
    """
    return _read(run_dir.path / "stages" / f"{name}.npz", _digest(config))


def _digest(config):
    """Of everything but the mesh, which may be another at every start."""
    settings = normalise_config(config)
    settings.pop("mesh", None)
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _arrays(stage, values):
    if not isinstance(values, Mapping):
        raise TypeError(
            f"the stage {stage!r} must return a mapping of arrays; got"
            f" {type(values).__name__}."
        )
    # In the order in which they are read back: sums over another round otherwise.
    arrays = {str(name): np.asarray(x, order="C") for name, x in values.items()}
    for name, array in arrays.items():
        if array.dtype.kind not in "biufU":
            raise TypeError(
                f"the stage {stage!r} must return arrays of numbers or text;"
                f" {name!r} is {array.dtype}."
            )
    return arrays


def _pack(arrays, digest):
    buffer = io.BytesIO()
    np.savez(buffer, **{_CONFIG: np.asarray(digest)}, **arrays)
    data = buffer.getvalue()
    # Of the whole file: the zip format has no checksum of its own list of arrays.
    return data + zlib.crc32(data).to_bytes(_CRC_BYTES, "big")


def _read(path, digest, *, say=True):
    """The arrays, or None if the file is absent, damaged or of another config."""
    again = f"{path} is {{}}; computing it again"
    if not path.exists():
        return None
    content = path.read_bytes()
    data, crc = content[:-_CRC_BYTES], content[-_CRC_BYTES:]
    if zlib.crc32(data).to_bytes(_CRC_BYTES, "big") != crc:
        _say(again.format("damaged"))
        return None
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    if str(arrays.pop(_CONFIG, "")) == digest:
        return arrays
    if say:
        _say(again.format("of another config"))
    return None


def _say(text):
    if process_index() == 0:
        print(text, flush=True)
