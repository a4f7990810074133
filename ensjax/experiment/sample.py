"""`ensjax sample`: members sampled by a run's emulator, written block by block.

An experiment that can be sampled defines

    sample_job(config, run_dir, model) -> ensjax.emulate.SampleJob

with `run_dir` for reading and `model` the emulator's name, or None for the first. It
raises `ConfigError` where there is none of that name; says which there are.
"""

import argparse
import contextlib
import dataclasses
import signal
import sys
import time
from typing import Any

from ensjax.experiment import exit_codes
from ensjax.experiment.exit_codes import ConfigError, is_no_space, one_line
from ensjax.experiment.past_run import PastExperiment, load_past_experiment
from ensjax.experiment.run_directory import existing_run
from ensjax.experiment.sample_options import SampleOptions, read_sample_options

_SECONDS_BETWEEN_LINES = 10.0


def sample(options: argparse.Namespace) -> int:
    """Samples and writes; returns the exit code.

    Raises:
        ConfigError: for mistakes of the user, which leave nothing behind.
    """
    asked = read_sample_options(options)
    if not existing_run(asked.run).is_finished:
        raise ConfigError(
            f"{asked.run} is not finished (it has no results.json); ensjax run goes on."
        )
    from ensjax.mesh import use_cpu_cores

    with contextlib.suppress(RuntimeError):  # JAX has started its devices
        use_cpu_cores()
    signal.signal(signal.SIGTERM, _terminate)
    try:
        _check_places(asked)
        job = _job(asked, load_past_experiment(asked.run))
        rows = job.rows_of(asked.starts)
        seconds = _write(asked, job, rows)
    except KeyboardInterrupt:
        print("ensjax: stopped; nothing was written.", file=sys.stderr)
        return exit_codes.CTRL_C
    except (ValueError, ImportError, FileNotFoundError) as error:
        raise ConfigError(one_line(error)) from error
    except (OSError, RuntimeError) as error:  # HDF5 has the latter for a full disk
        if is_no_space(error):
            print(
                f"ensjax: no space left for {asked.out}; it was not written.",
                file=sys.stderr,
            )
            return exit_codes.NO_SPACE
        if isinstance(error, RuntimeError):
            raise
        raise ConfigError(f"cannot read or write: {one_line(error)}.") from error
    starts = "1 start" if len(rows) == 1 else f"{len(rows)} starts"
    print(f"{asked.num_members:,} members of {starts} in {seconds:.3g} s")
    for place in (asked.truth, asked.out):
        if place:
            print(place)
    return exit_codes.FINISHED


def _terminate(number: int, frame: Any) -> None:
    del number, frame
    raise SystemExit(exit_codes.TERMINATED)  # half a file is removed on the way


def _check_places(asked: SampleOptions) -> None:
    """What fails for its place or for a package, before anything is loaded."""
    from ensjax.emulate import gridded
    from ensjax.emulate.gridded.packages import optional_package

    optional_package("xarray")
    for place in filter(None, (asked.out, asked.truth)):
        optional_package("zarr" if place.rstrip("/").endswith(".zarr") else "h5netcdf")
        gridded.check_place(place, overwrite=asked.overwrite)


def _job(asked: SampleOptions, past: PastExperiment) -> Any:
    """The job, with the sampler that is asked for."""
    if not hasattr(past.module, "sample_job"):
        raise ConfigError(
            f"{asked.run} has no emulator: the experiment {past.config.experiment!r}"
            " defines no sample_job(config, run_dir, model)."
        )
    if past.is_same_file is False:
        print(f"ensjax: {past.file} has changed since the run was made", flush=True)
    job = past.module.sample_job(past.config, past.run, asked.model)
    changes = {"name": asked.sampler, "num_levels": asked.levels}
    changes = {key: value for key, value in changes.items() if value is not None}
    if asked.sampler == "euler_maruyama" and asked.levels is None:
        changes["num_levels"] = 600
    if asked.truth and job.truth is None:
        raise ConfigError(f"--truth: {asked.run} does not know what came true.")
    return dataclasses.replace(job, sampler=dataclasses.replace(job.sampler, **changes))


def _write(asked: SampleOptions, job: Any, rows: Any) -> float:
    """Writes the members and the truth; returns the seconds that the members took."""
    import numpy as np

    from ensjax.emulate import gridded
    from ensjax.emulate.gridded.conversion import archive_to_datasets
    from ensjax.emulate.sample_job import block_size, sample_blocks
    from ensjax.mesh import default_mesh

    ranges = [np.arange(ids.start, ids.stop) for ids in asked.member_ids]
    ids = np.concatenate(ranges).astype(np.int32)
    mesh = default_mesh()
    writer = gridded.forecast_writer(
        asked.out,
        case=np.asarray(job.case)[rows],
        member=ids,
        lead=job.lead,
        variable=job.variable,
        space=job.space,
        units=job.units,
        overwrite=asked.overwrite,
        attributes=_attributes(asked, job),
        member_chunk=block_size(job, len(ids), asked.block, mesh),
    )
    progress = _Progress(asked.out, len(rows) * len(ids))
    with writer as write:
        blocks = sample_blocks(job, rows, ids, block=asked.block, mesh=mesh)
        for place, members, values in blocks:
            write(values[None], case=slice(place, place + 1), member=members)
            progress.report(place * len(ids) + members.stop)
        if asked.truth:
            _, truth = archive_to_datasets(job.archive_of_truth(rows))
            gridded.write_dataset(asked.truth, truth, overwrite=asked.overwrite)
    return progress.seconds


def _attributes(asked: SampleOptions, job: Any) -> dict[str, str]:
    """Of the file: what the members are, and how they were made."""
    settings = job.sampler
    model = "" if asked.model is None else f", model {asked.model}"
    levels = f"{settings.num_levels} levels"
    if settings.name == "euler_maruyama":
        levels = f"{settings.num_levels} steps"
    else:
        levels += f" from {settings.high:g} to {settings.low:g}, rho {settings.rho:g}"
    return {
        "title": "members sampled by an emulator of an ensemble",
        "source": f"emulator of {job.source or 'an ensemble'}",
        "emulator": f"{asked.run}{model}",
        "sampler": f"{settings.name}, {levels}",
        "seed": str(job.seed),
    }


class _Progress:
    """A line now and then: how many members there are, how fast, and how long yet."""

    def __init__(self, place: str, total: int):
        self.place, self.total = place, total
        self.start = self.said = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.start

    def report(self, done: int) -> None:
        if time.monotonic() - self.said < _SECONDS_BETWEEN_LINES or done >= self.total:
            return
        from ensjax.train.progress import duration

        self.said = time.monotonic()
        rate = done / self.seconds
        print(
            f"{self.place}: {done:,} of {self.total:,} members, {rate:.3g} a second,"
            f" {duration((self.total - done) / rate)} left",
            flush=True,
        )
