"""Where metrics go: `metrics.jsonl` always, TensorBoard and Weights & Biases if asked.

On an object store the folder `metrics` takes the place of the file (see `segments.py`).
Metrics are a flat dict of numbers and of lists with one number per member. JSON has no
NaN: a number that is not finite is `null` in `metrics.jsonl`, and NaN when read back.
"""

import hashlib
import importlib.util
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from etils import epath

from ensjax.experiment.exit_codes import ConfigError
from ensjax.experiment.json_files import is_local, to_json_value, write_bytes
from ensjax.experiment.segments import read_segments

Metrics = Mapping[str, float | Sequence[float]]

# Name on the command line -> (package imported, extra of ensjax that brings it).
OPTIONAL_LOGGERS = {
    "tensorboard": ("tensorboardX", "tensorboard"),
    "wandb": ("wandb", "wandb"),
}


class Logger(Protocol):
    """What the training loop needs of a logger."""

    def write(self, step: int, metrics: Metrics) -> None:
        """Records the metrics of one step."""

    def close(self) -> None:
        """Writes out what is left; the logger is not used afterwards."""


class JsonlLogger:
    """One JSON object per line: `step` first, then the `phase` if any, then metrics.

    For a file on a disk; `SegmentLogger` is for object stores.

    The first write of a logger drops the lines of its phase from that step on: they
    were written after the checkpoint from which the run resumes, and come again.

    Raises:
        ValueError: if the file is to lie on an object store.
    """

    def __init__(self, path: str | os.PathLike, *, phase: str | None = None):
        if not is_local(path):
            raise ValueError(
                f"{path} is on an object store, where nothing can be appended; pass a"
                " folder there to SegmentLogger."
            )
        self._path = epath.Path(path)
        self._phase = phase
        self._file = None
        self._has_cut = False

    def write(self, step: int, metrics: Metrics) -> None:
        if not self._has_cut:
            cut_metrics(self._path, int(step) - 1, phase=self._phase)
            self._has_cut = True
        if self._file is None:
            self._file = open(self._path, "a")  # noqa: SIM115
        head = {"step": int(step)}
        if self._phase is not None:
            head["phase"] = self._phase
        line = json.dumps(head | to_json_value(dict(metrics)), allow_nan=False)
        self._file.write(line + "\n")
        self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class TensorBoardLogger:
    """Scalars for TensorBoard; a list over members becomes its mean, min and max.

    Raises:
        ImportError: without the extra `tensorboard`.
    """

    def __init__(self, folder: str | os.PathLike):
        require_logger("tensorboard")
        self._folder = os.fspath(folder)
        self._writer = None

    def write(self, step: int, metrics: Metrics) -> None:
        if self._writer is None:
            import tensorboardX

            # Events of later steps belong to a run that was killed: they are hidden.
            self._writer = tensorboardX.SummaryWriter(self._folder, purge_step=step)
        for name, value in summarise_members(metrics).items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class WandbLogger:
    """A run of Weights & Biases; a list over members becomes its mean, min and max.

    `WANDB_MODE=offline` keeps everything on this machine. The same name and config in
    the same folder are the same run: a resumed one goes on where it was.

    Raises:
        ImportError: without the extra `wandb`.
    """

    def __init__(
        self, folder: str | os.PathLike, *, name: str, config: Mapping[str, Any]
    ):
        require_logger("wandb")
        import wandb

        folder = os.fspath(folder)
        place = folder if "://" in folder else os.path.abspath(folder)
        text = json.dumps([place, name, to_json_value(dict(config))], sort_keys=True)
        self._run = wandb.init(
            project="ensjax",
            id=hashlib.sha256(text.encode()).hexdigest()[:16],
            resume="allow",
            name=name,
            dir=folder,
            config=dict(config),
        )

    def write(self, step: int, metrics: Metrics) -> None:
        self._run.log(summarise_members(metrics), step=int(step))

    def close(self) -> None:
        self._run.finish()


class Loggers:
    """Several loggers as one; an empty list is a logger that records nothing."""

    def __init__(
        self,
        loggers: Sequence[Logger],
        *,
        phase: Callable[[str], "Loggers"] | None = None,
    ):
        self._loggers = list(loggers)
        self._phase = phase

    def phase(self, name: str) -> "Loggers":
        """A logger of its own for members that catch up with the others."""
        return Loggers([]) if self._phase is None else self._phase(name)

    def write(self, step: int, metrics: Metrics) -> None:
        for logger in self._loggers:
            logger.write(step, metrics)

    def close(self) -> None:
        for logger in self._loggers:
            logger.close()


def require_logger(name: str) -> None:
    """Raises `ImportError` naming the extra if the package of the logger is missing."""
    package, extra = OPTIONAL_LOGGERS[name]
    if importlib.util.find_spec(package) is None:
        raise ImportError(
            f"the {name} logger needs the package {package}:"
            f" pip install 'ensjax[{extra}]'"
        )


def check_logger_names(names: Sequence[str]) -> None:
    """Raises `ConfigError` for an unknown logger, or one whose package is missing."""
    for name in names:
        if name not in OPTIONAL_LOGGERS:
            raise ConfigError(
                f"unknown logger {name!r}; --log takes"
                f" {', '.join(OPTIONAL_LOGGERS)} (metrics.jsonl is always written)."
            )
        try:
            require_logger(name)
        except ImportError as error:
            raise ConfigError(str(error)) from error


def summarise_members(metrics: Metrics) -> dict[str, float]:
    """Scalars only: a list `loss` becomes `loss/mean`, `loss/min` and `loss/max`.

    Members that are not finite are left out and counted in `loss/not_finite`.
    """
    scalars = {}
    for name, value in metrics.items():
        value = _with_nan(to_json_value(value))
        if not isinstance(value, list):
            scalars[name] = value
            continue
        finite = [item for item in value if math.isfinite(item)]
        if finite:
            scalars[f"{name}/mean"] = sum(finite) / len(finite)
            scalars[f"{name}/min"] = min(finite)
            scalars[f"{name}/max"] = max(finite)
        scalars[f"{name}/not_finite"] = len(value) - len(finite)
    return scalars


def read_metrics(
    path: str | os.PathLike, *, phase: str | None = None
) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl` (of one phase if given), `null` as NaN.

    A last line that a kill has torn is left out. Where a run on an object store has the
    folder `metrics` in its place, its segments are merged.
    """
    path = epath.Path(path)
    if path.exists():
        lines = [line for line, _ in _parsed_lines(path)]
    else:
        lines = read_segments(path.with_suffix(""))
    if phase is not None:
        lines = [line for line in lines if line.get("phase") == phase]
    return [
        {
            key: value if key == "phase" else _with_nan(value)
            for key, value in line.items()
        }
        for line in lines
    ]


def cut_metrics(
    path: str | os.PathLike, step: int, *, phase: str | None = None
) -> None:
    """Removes the lines of the phase that come after `step`, and a torn last line."""
    path = epath.Path(path)
    if not path.exists():
        return
    kept = "".join(
        text
        for line, text in _parsed_lines(path)
        if line["step"] <= step or line.get("phase") != phase
    )
    if kept != path.read_text():
        write_bytes(path, kept.encode())


def _parsed_lines(path: epath.Path) -> Iterator[tuple[dict[str, Any], str]]:
    if not path.exists():
        return
    try:
        lines = path.read_text().splitlines(keepends=True)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no text of lines of JSON ({error}).") from error
    for text in lines:
        if text.endswith("\n") and text.startswith('{"step"'):
            try:
                line = json.loads(text)
            except json.JSONDecodeError:  # torn by a kill or a full disk
                continue
            if not isinstance(line["step"], int):
                raise ConfigError(
                    f"{path} holds a line whose step is no integer: {text[:60]!r}."
                )
            yield line, text


def _with_nan(value: Any) -> Any:
    if isinstance(value, list):
        return [_with_nan(item) for item in value]
    return math.nan if value is None else value
