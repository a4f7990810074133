"""What the child of `ensjax run` does: check everything, then run the experiment."""

import contextlib
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import ml_collections

from ensjax.experiment import exit_codes
from ensjax.experiment.compilation_cache import check_choice, use_compilation_cache
from ensjax.experiment.configs import (
    ConfigSource,
    check_devices,
    file_digest,
    find_experiment,
    load_config,
    load_module,
    normalise_config,
    split_spec,
)
from ensjax.experiment.exit_codes import (
    ConfigError,
    SharedMistake,
    is_no_space,
    one_line,
)
from ensjax.experiment.json_files import is_local, write_json
from ensjax.experiment.loggers import check_logger_names
from ensjax.experiment.processes import (
    ProcessFlags,
    check_flags,
    detect_cluster,
    everywhere,
    initialize,
    is_lost_peer,
    on_first_process,
    process_count,
    process_index,
)
from ensjax.experiment.run_directory import (
    existing_run,
    open_run,
    view_run,
)
from ensjax.experiment.run_identity import (
    check_run,
    refuse_other_members,
    refuse_other_training,
)
from ensjax.experiment.run_lock import missing_folders, remove_created
from ensjax.experiment.supervisor import Terminated, committed_steps


class RunOptions(NamedTuple):
    """The command line of `ensjax run`.

    Attributes:
        spec: path or name of the config, with an optional `:preset`.
        workdir: None: `runs/<config>-<preset>`.
        overrides: pairs (dotted field, text).
        flags: of several processes.
        devices: how many CPU devices; None: accelerators, or one for each CPU core.
        loggers: optional loggers by name.
        members_from: other runs whose members are taken over.
        compilation_cache: "on", "off" or a folder; None: on for GPU and TPU.
    """

    spec: str
    workdir: str | None = None
    overrides: Sequence[tuple[str, str]] = ()
    flags: ProcessFlags = ProcessFlags()
    devices: int | None = None
    loggers: Sequence[str] = ()
    members_from: Sequence[str] = ()
    compilation_cache: str | None = None


def default_workdir(spec: str) -> str:
    """`runs/<config>-<preset>` of a config given by path or name."""
    target, preset = split_spec(spec)
    return f"runs/{Path(target).stem}-{preset}"


def run_and_report(options: RunOptions) -> int:
    """Runs the experiment; returns the exit code after printing what went wrong.

    A mistake of the user is one line, a bug a traceback.
    """
    others_wait = True
    try:
        code = run_experiment(options)
        others_wait = False
    except ConfigError as error:
        print(f"ensjax: {one_line(error)}", file=sys.stderr)
        code = exit_codes.USER_ERROR
        others_wait = not isinstance(error, SharedMistake)
    except Terminated:
        code = exit_codes.TERMINATED
    except KeyboardInterrupt as error:
        code = exit_codes.CTRL_C
        if _is(error, "ensjax.train.preemption", "Preempted"):
            _say(one_line(error))
            code, others_wait = exit_codes.PREEMPTED, False
    except Exception as error:
        if _is_mistake(error):
            print(f"ensjax: {one_line(error)}", file=sys.stderr)
            code, others_wait = exit_codes.USER_ERROR, False  # all see it
        elif is_no_space(error):
            code = exit_codes.NO_SPACE
        elif is_lost_peer(error):
            code = exit_codes.INTERRUPTED
        else:
            traceback.print_exc()
            code = exit_codes.BUG
    if others_wait and "jax" in sys.modules and process_count() > 1:
        # At a regular exit JAX would wait minutes for the others at a barrier.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def run_experiment(options: RunOptions) -> int:
    """Checks everything, then creates or resumes the run and runs the experiment.

    Raises:
        ConfigError: for a mistake of the user. Nothing is left of a run that began with
            this call on this machine, unless it has committed a checkpoint.
    """
    check_flags(options.flags)
    check_logger_names(options.loggers)
    check_choice(options.compilation_cache)
    is_alone = options.flags.coordinator is None and detect_cluster() is None
    if is_alone:  # a typing mistake need not wait for JAX
        source, config = _load(options)
    _set_devices(options.devices, is_alone=is_alone)
    if not is_alone:
        initialize(options.flags)
        source, config = everywhere(lambda: _load(options))
    settings = on_first_process(lambda: normalise_config(config))
    everywhere(lambda: _check_same_config(config, settings))
    workdir = options.workdir or default_workdir(options.spec)
    everywhere(lambda: _check_store(workdir))
    state = on_first_process(lambda: check_run(workdir, config))
    if state == "finished" and options.members_from:
        raise ConfigError(
            f"{workdir} is finished and has just these members: --members_from gives"
            " a run what others trained of members that it is told to have, by"
            " --members or --config.num_members."
        )
    if state == "finished":
        _say(f"{workdir} is finished; see {workdir}/report.html. Nothing to do.")
        return exit_codes.FINISHED
    use_compilation_cache(options.compilation_cache)
    path, experiment = everywhere(lambda: _load_experiment(source, config))
    if state == "changed" and not hasattr(experiment, "training_job"):
        on_first_process(lambda: refuse_other_members(workdir, config))
    if options.members_from and not hasattr(experiment, "training_job"):
        raise ConfigError(
            f"the experiment {config.experiment!r} defines no training_job(config), so"
            " that it cannot take members over; leave --members_from out."
        )
    from ensjax.train import preemption  # loads JAX

    run = view_run(workdir)
    before = None
    missing = missing_folders(workdir)

    def open_here() -> None:
        nonlocal run, before
        if state != "new" and is_local(view_run(workdir).path):
            before = view_run(workdir).versions, _written(workdir)
        about = {
            "config_name": source.name,
            "preset": source.preset,
            "overrides": [list(pair) for pair in options.overrides],
            "experiment": path.name,
            "experiment_file": str(path.resolve()),
            "experiment_sha256": file_digest(path),
        }
        from ensjax.experiment.versions import collect_versions

        versions = about | collect_versions()
        run = open_run(workdir, config, versions=versions, loggers=options.loggers)

    members_from = everywhere(lambda: _checkpoints_of(options.members_from, config))
    on_first_process(open_here)
    run.members_from = members_from
    with run:
        if state in ("resume", "changed"):
            others = " with other members" if state == "changed" else ""
            code = "" if _same_code(run, path) else f"; {path.name} has changed since"
            _say(f"resuming {workdir}{others}{code}")
        preemption.enable()
        try:
            experiment.run(config, run)
        except Exception as error:
            if _is_mistake(error) and run.is_writable:
                # The corrected command is another run, and must find the place free.
                is_ours = state == "new" and is_local(run.path)
                has_stages = (run.path / "stages").exists()
                if is_ours and not has_stages and not committed_steps(workdir):
                    remove_created(Path(workdir), missing)
                elif before is not None and _written(workdir) == before[1]:
                    # What was refused has not run here.
                    write_json(run.path / "versions.json", before[0])
            raise
        if run.is_writable and not run.is_finished:
            raise RuntimeError(f"run() of {path} ended without run_dir.finish(...).")
    _say(f"finished: {workdir}/report.html")
    return exit_codes.FINISHED


def _same_code(run: Any, path: Path) -> bool:
    """Whether the experiment's file is the one that the run began with."""
    if not run.is_writable:
        return True  # the first process says it
    return run.versions.get("experiment_sha256", "") in ("", file_digest(path))


def _checkpoints_of(
    runs: Sequence[str], config: ml_collections.ConfigDict
) -> tuple[Any, ...]:
    """The checkpoints of other runs of the same training.

    Raises:
        ConfigError: where there are none, or of another training; names the field.
    """
    for path in runs:
        refuse_other_training(path, config)
    found = [existing_run(path).checkpoints for path in runs]
    for path, checkpoints in zip(runs, found, strict=True):
        if not checkpoints.exists():
            raise ConfigError(f"--members_from: {path} has no checkpoints.")
    return tuple(found)


def _written(workdir: str) -> tuple[Any, ...]:
    """What changes as soon as a run on this machine trains: steps and logged bytes."""
    metrics = Path(workdir) / "metrics.jsonl"
    size = metrics.stat().st_size if metrics.is_file() else 0
    return sorted(map(str, committed_steps(workdir))), size


def _is_mistake(error: BaseException) -> bool:
    """Whether it says in one line what cannot be done, and is no bug."""
    return (
        isinstance(error, ConfigError)
        or _is(error, "ensjax.checkpoint.seals", "DamagedCheckpoint")
        or _is(error, "ensjax.checkpoint.trees", "OtherLeaves")
        or _is(error, "ensjax.train.agreement", "OtherRun")
    )


def _is(error: BaseException, module: str, name: str) -> bool:
    """Whether it is of that class, without loading its module (and JAX) for it."""
    loaded = sys.modules.get(module)
    return loaded is not None and isinstance(error, getattr(loaded, name))


def _load(options: RunOptions) -> tuple[ConfigSource, ml_collections.ConfigDict]:
    source, config = load_config(options.spec, options.overrides)
    find_experiment(source, config)
    return source, config


def _set_devices(num_devices: int | None, *, is_alone: bool) -> None:
    if num_devices is None:
        if is_alone:
            from ensjax.mesh import use_cpu_cores

            with contextlib.suppress(RuntimeError):  # the config has started JAX
                use_cpu_cores()
        return
    if num_devices < 1:
        raise ConfigError(f"--devices must be at least 1; got {num_devices}.")
    import jax

    try:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", num_devices)
    except RuntimeError as error:
        raise ConfigError(
            "--devices comes too late: the config has started JAX. A config holds"
            " numbers, strings and tuples only."
        ) from error


def _check_store(workdir: str) -> None:
    """Raises `ConfigError` if a package for `gs://` and the like is not installed."""
    from etils import epath

    path = epath.Path(workdir)
    if is_local(path):
        return
    try:
        path.exists()
    except ImportError as error:
        extra = " (pip install 'ensjax[gcs]')" if workdir.startswith("gs:") else ""
        raise ConfigError(
            f"--workdir {workdir} needs a package{extra}: {one_line(error)}."
        ) from error


def _check_same_config(config: ml_collections.ConfigDict, settings: Any) -> None:
    if normalise_config(config) != settings:
        raise ConfigError(
            f"process {process_index()} was given another config than process 0; every"
            " host runs the same command on the same files."
        )


def _load_experiment(
    source: ConfigSource, config: ml_collections.ConfigDict
) -> tuple[Path, ModuleType]:
    import jax

    check_devices(config, jax.device_count())
    path = find_experiment(source, config)
    try:
        experiment = load_module(path, "experiment")
    except ImportError as error:
        raise ConfigError(f"{path} needs a package: {one_line(error)}") from error
    if not hasattr(experiment, "run"):
        raise ConfigError(f"{path} defines no run(config, run_dir).")
    validate = getattr(experiment, "validate", None)
    if validate is not None:
        try:
            validate(config)
        except ValueError as error:
            raise ConfigError(one_line(error)) from error
    return path, experiment


def _say(text: str) -> None:
    if process_index() == 0:
        print(text, flush=True)
