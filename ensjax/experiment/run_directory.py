"""The folder of one run: made whole or not at all, resumed by the same config.

config.json     what was asked, as JSON has it
versions.json   software, hardware, git commit, and how the run was called
metrics.jsonl   one line per report of the training loop; on an object store the folder
                metrics/ with one segment per attempt, and lease.json
checkpoints/    of the training loop
figures/*.png   with report.json (captions and tables), from which
report.html     is built
results.json    scalars, claims, checks: written last, so a run that has it is finished
previous/       what was finished before the run was given other members
"""

import contextlib
import io
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
from etils import epath

from ensjax.experiment import lease
from ensjax.experiment.claims import build_results
from ensjax.experiment.exit_codes import ConfigError, is_no_space
from ensjax.experiment.json_files import (
    is_local,
    json_text,
    read_json,
    to_json_value,
    write_bytes,
    write_json,
)
from ensjax.experiment.loggers import (
    JsonlLogger,
    Logger,
    Loggers,
    TensorBoardLogger,
    WandbLogger,
    cut_metrics,
    read_metrics,
)
from ensjax.experiment.run_identity import as_normalised, check_is_run, check_run
from ensjax.experiment.run_lock import create_locked, lock_or_refuse
from ensjax.experiment.segments import SegmentLogger

_METRICS_BEFORE = "metrics-before.jsonl"


class _First:
    """A logger that calls a function before its first line."""

    def __init__(self, first: Callable[[], None], logger: Logger):
        self._first, self._logger = first, logger

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        self._first()
        self._logger.write(step, metrics)

    def close(self) -> None:
        self._logger.close()


class RunDirectory:
    """One run on disk. Made by `open_run`, `view_run`; closed by `close` or `with`.

    On every process but the first of a job it is a view: reading works and writing
    does nothing, so that experiments call it in the same way everywhere.

    Attributes:
        path: the folder (`etils.epath.Path`).
        is_writable: whether this process writes.
        is_finished: whether `results.json` is there.
        members_from: checkpoints of other runs, for `fit(members_from=...)`.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        is_writable: bool = False,
        loggers: Sequence[str] = (),
        release: Callable[[], None] | None = None,
        changed_config: dict[str, Any] | None = None,
    ):
        self.path = epath.Path(path)
        self.is_writable = is_writable
        self._logger_names = tuple(loggers)
        self._release = release
        self._changed_config = changed_config
        self.members_from: tuple[epath.Path, ...] = ()
        self._loggers: list[Logger] = []

    @property
    def is_finished(self) -> bool:
        return (self.path / "results.json").exists()

    @property
    def checkpoints(self) -> epath.Path:
        """For `fit(checkpoint_dir=...)`; a run of several fits uses folders in it."""
        return self.path / "checkpoints"

    @property
    def config(self) -> dict[str, Any]:
        return read_json(self.path / "config.json")

    @property
    def versions(self) -> dict[str, Any]:
        return read_json(self.path / "versions.json")

    @property
    def results(self) -> dict[str, Any]:
        return read_json(self.path / "results.json")

    @property
    def contents(self) -> dict[str, Any]:
        """Title, summary, figures and tables of the report, as far as given."""
        path = self.path / "report.json"
        empty = {"title": self.path.name, "summary": "", "figures": [], "tables": []}
        return empty | (read_json(path) if path.exists() else {})

    def metrics(self, phase: str | None = None) -> list[dict[str, Any]]:
        """What was logged (of one phase if given), as `read_metrics` gives it."""
        return read_metrics(self.path / "metrics.jsonl", phase=phase)

    def logger(self, phase: str | None = None) -> Logger:
        """A logger for `fit`; a run of several fits gives each a `phase` of its own."""
        if not self.is_writable:
            return Loggers([])
        loggers = [self._metrics_logger(phase)]
        if "tensorboard" in self._logger_names:
            loggers.append(TensorBoardLogger(self.path / "tensorboard" / (phase or "")))
        if "wandb" in self._logger_names:
            name = f"{self.path.name}-{phase}" if phase else self.path.name
            loggers.append(WandbLogger(self.path, name=name, config=self.config))
        self._loggers.append(Loggers(loggers, phase=self.logger))
        return self._loggers[-1]

    def cut_metrics(self, step: int, phase: str | None = None) -> None:
        """Removes the logged lines after `step` (of the phase)."""
        if not self.is_writable:
            return
        self._keep_metrics()
        if is_local(self.path):
            cut_metrics(self.path / "metrics.jsonl", step, phase=phase)
        else:
            SegmentLogger(self.path / "metrics", phase=phase).cut(step)

    def add_figure(self, name: str, figure, caption: str) -> None:
        """Saves a matplotlib figure as `figures/<name>.png`, with its caption.

        Raises:
            ValueError: if the name is not made of letters, digits, `_`, `-` and `.`.
        """
        if not re.fullmatch(r"[\w][\w.-]*", name):
            raise ValueError(
                f"a figure's name becomes a file name: letters, digits, _, - and .;"
                f" got {name!r}."
            )
        if not self.is_writable:
            return
        self._set_aside()
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=150, bbox_inches="tight")
        (self.path / "figures").mkdir(exist_ok=True)
        write_bytes(self.path / "figures" / f"{name}.png", buffer.getvalue())
        self._add_content("figures", {"name": name, "caption": caption})

    def add_table(
        self,
        name: str,
        columns: Sequence[str],
        rows: Sequence[Sequence[str | float]],
        caption: str,
    ) -> None:
        """Adds a table to the report; numbers are shown with four digits.

        Raises:
            ValueError: if a row has not one cell for each column.
        """
        for row in rows:
            if len(row) != len(columns):
                raise ValueError(
                    f"table {name!r} has {len(columns)} columns; got the row {row}."
                )
        table = {"name": name, "columns": columns, "rows": rows, "caption": caption}
        if self.is_writable:
            self._add_content("tables", to_json_value(table))

    def finish(
        self,
        *,
        title: str,
        summary: str,
        scalars: Mapping[str, float],
        claims: Sequence[Mapping[str, Any]] = (),
        checks: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Writes `report.html` and then `results.json`, which makes the run finished.

        Args:
            title: of the report.
            summary: one paragraph: what was done and what came out.
            scalars: numbers that are a function of the config alone (no times).
            claims: entries made by `claim` and `not_run`.
            checks: entries made by `check`.

        Raises:
            ValueError: see `build_results`.
        """
        from ensjax.experiment.report import build_report

        results = build_results("", scalars=scalars, claims=claims, checks=checks)
        if not self.is_writable:  # perhaps on a host that does not see the folder
            return
        self._set_aside()
        results["experiment"] = self.config.get("experiment", self.path.name)
        contents = self.contents | {"title": title, "summary": summary}
        write_json(self.path / "report.json", contents)
        html = build_report(self, results)
        write_bytes(self.path / "report.html", html.encode())
        write_json(self.path / "results.json", results)

    def close(self) -> None:
        """Closes the loggers and lets go of the lock."""
        for logger in self._loggers:
            logger.close()
        self._loggers = []
        if self._release is not None:
            self._release()
            self._release = None

    def __enter__(self) -> "RunDirectory":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _metrics_logger(self, phase):
        if is_local(self.path):
            logger = JsonlLogger(self.path / "metrics.jsonl", phase=phase)
        else:
            logger = SegmentLogger(self.path / "metrics", phase=phase)
        return _First(self._keep_metrics, logger)

    def _keep_metrics(self) -> None:
        """Before other members write theirs: what the finished run has logged."""
        if self._changed_config is None or not self.is_finished:
            return
        kept = self.path / _METRICS_BEFORE
        if not kept.exists():
            lines = [json.dumps(to_json_value(line)) for line in self.metrics()]
            write_bytes(kept, "".join(f"{line}\n" for line in lines).encode())

    def _set_aside(self) -> None:
        """Keeps what was finished with other members, in `previous/<number>`.

        Called once the new members are trained: until then the run is the old one.
        """
        if self._changed_config is None:
            return
        self._keep_metrics()  # where nothing had to be trained
        previous = self.path / "previous"
        found = [p.name for p in previous.iterdir()] if previous.exists() else []
        numbers = [int(name) for name in found if name.isdecimal()]
        place = previous / str(max(numbers, default=0) + 1)
        place.mkdir(parents=True)
        names = ["config.json", "results.json", "report.json", "report.html"]
        if (self.path / "figures").exists():
            (place / "figures").mkdir()
            figures = sorted((self.path / "figures").iterdir())
            names += [f"figures/{figure.name}" for figure in figures]
        names = [name for name in names if (self.path / name).exists()]
        for name in names:
            (self.path / name).copy(place / name)
        metrics = self.path / _METRICS_BEFORE
        if metrics.exists():
            metrics.copy(place / "metrics.jsonl")
            names.append(_METRICS_BEFORE)
        for name in names[1:]:  # the config is replaced, so that there always is one
            (self.path / name).unlink()
        write_json(self.path / "config.json", self._changed_config)
        self._changed_config = None

    def _add_content(self, kind: str, entry: dict[str, Any]) -> None:
        self._set_aside()
        contents = self.contents
        entries = [old for old in contents[kind] if old["name"] != entry["name"]]
        contents[kind] = [*entries, entry]
        write_json(self.path / "report.json", contents)


def open_run(
    path: str | os.PathLike,
    config: ml_collections.ConfigDict | Mapping[str, Any],
    *,
    versions: Mapping[str, Any] | None = None,
    loggers: Sequence[str] = (),
) -> RunDirectory:
    """Creates the run, whole, or opens it to resume; holds its lock until `close`.

    Args:
        path: local, or an object store such as `gs://bucket/run`. There is no lock
            there, but a lease: see `ensjax.experiment.lease`, also for how long it
            waits for a run that died.
        config: of the run.
        versions: for `versions.json`; None collects them (starts JAX's devices).
        loggers: names in `OPTIONAL_LOGGERS`.

    Raises:
        ConfigError: if the folder cannot be written, is in use by another process, or
            holds something else (see `check_run`). Nothing is left behind.
    """
    if versions is None:
        from ensjax.experiment.versions import collect_versions

        versions = collect_versions()
    path, config = epath.Path(path), as_normalised(config)
    texts = {"config.json": json_text(config), "versions.json": json_text(versions)}
    if not is_local(path):
        return _open_on_store(path, config, texts, loggers)
    is_new = check_run(path, config) == "new"
    lock = None
    with _writing(path):
        if is_new:
            lock = create_locked(Path(path), texts)
        if lock is None:  # it was there, or another process was faster
            lock = lock_or_refuse(Path(path))
    state = check_run(path, config)  # again, now that nobody else can change it
    run = RunDirectory(
        path,
        is_writable=True,
        loggers=loggers,
        release=lambda: os.close(lock),
        changed_config=config if state == "changed" else None,
    )
    if not is_new:
        with _writing(path):
            _note_versions(run, to_json_value(dict(versions)))
    return run


def _open_on_store(path, config, texts, loggers):
    check_run(path, config)
    with _writing(path):
        path.mkdir(parents=True, exist_ok=True)
        taken = lease.take_lease(path, say=print)
        try:
            state = check_run(path, config)  # again: the holder may have written
            if state == "new":
                for name, text in texts.items():
                    write_bytes(path / name, text.encode())
            else:
                _note_versions(view_run(path), json.loads(texts["versions.json"]))
        except BaseException:
            taken.release()
            raise
    return RunDirectory(
        path,
        is_writable=True,
        loggers=loggers,
        release=taken.release,
        changed_config=config if state == "changed" else None,
    )


def view_run(path: str | os.PathLike) -> RunDirectory:
    """The run for reading only: no lock is taken and writing does nothing."""
    return RunDirectory(path)


def existing_run(path: str | os.PathLike) -> RunDirectory:
    """As `view_run`; raises `ConfigError` if there is no run at `path`."""
    check_is_run(path)
    return RunDirectory(path)


@contextlib.contextmanager
def _writing(path: epath.Path):
    """Turns an operating system's refusal into one line of ours."""
    try:
        yield
    except OSError as error:
        if is_no_space(error):
            raise ConfigError(
                f"no space left for {path} ({error.strerror}); nothing was begun."
            ) from error
        raise ConfigError(f"cannot write {path}: {error.strerror}.") from error


def _note_versions(run: RunDirectory, versions: dict[str, Any]) -> None:
    """Keeps the first versions, and adds those of a resume if they differ."""
    first = run.versions
    earlier = first.get("resumed_with", [])
    last = (
        earlier[-1]
        if earlier
        else {key: value for key, value in first.items() if key != "resumed_with"}
    )
    if versions != last:
        changed = first | {"resumed_with": [*earlier, versions]}
        write_json(run.path / "versions.json", changed)
