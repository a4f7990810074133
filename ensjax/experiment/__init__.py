"""Running an experiment: its config, its directory, its claims and its report.

An experiment module defines `run(config, run_dir)` and, if it has conditions of its
own, `validate(config)`, which raises `ConfigError` before anything is written. `run`
trains with `run_dir.logger()` and `run_dir.checkpoints`, adds figures and tables, and
ends with `run_dir.finish(...)`. `ensjax list` shows a module-level string `PAPER`.
"""

from ensjax.experiment.claims import (
    Part,
    check,
    check_at_least,
    check_at_most,
    claim,
    claim_of_all,
    claim_of_cases,
    interval_text,
    mean_and_interval,
    not_run,
    share_interval,
    student_interval,
)
from ensjax.experiment.configs import load_config
from ensjax.experiment.exit_codes import ConfigError
from ensjax.experiment.loggers import (
    JsonlLogger,
    Logger,
    Loggers,
    TensorBoardLogger,
    WandbLogger,
    read_metrics,
)
from ensjax.experiment.run_directory import RunDirectory, open_run, view_run
from ensjax.experiment.segments import SegmentLogger

__all__ = [
    "ConfigError",
    "JsonlLogger",
    "Logger",
    "Loggers",
    "Part",
    "RunDirectory",
    "SegmentLogger",
    "TensorBoardLogger",
    "WandbLogger",
    "check",
    "check_at_least",
    "check_at_most",
    "claim",
    "claim_of_all",
    "claim_of_cases",
    "interval_text",
    "load_config",
    "mean_and_interval",
    "not_run",
    "open_run",
    "read_metrics",
    "share_interval",
    "student_interval",
    "view_run",
]
