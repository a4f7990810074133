"""What `ensjax sample` is asked for on the command line. Loads no JAX."""

import argparse
from typing import NamedTuple

from ensjax.experiment.exit_codes import ConfigError

SAMPLER_NAMES = ("heun", "euler", "dpm", "few_step", "euler_maruyama")
_ENDINGS = (".zarr", ".nc")
_MOST = 2**31  # ids are int32


class SampleOptions(NamedTuple):
    """What is asked for.

    Attributes:
        run: the run directory.
        starts: texts of `--init`.
        member_ids: ranges of ids, in order.
        out: where members are written.
        truth: where what came true is written, or None.
        overwrite: whether both may be replaced.
        model: of the run's emulators, by name; None: the first.
        sampler, levels: another sampler, other levels; None: the run's.
        block: members that are computed together; None: by their size.
    """

    run: str
    starts: list[str]
    member_ids: list[range]
    out: str
    truth: str | None
    overwrite: bool
    model: str | None
    sampler: str | None
    levels: int | None
    block: int | None

    @property
    def num_members(self) -> int:
        return sum(len(ids) for ids in self.member_ids)


def add_sample_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `ensjax sample`, and what it does."""
    parser.description = (
        "Writes members of an ensemble, sampled by the trained emulator of a run, in"
        " blocks: memory does not grow with their number. A member's id, the start and"
        " the run fix it, however many others there are."
    )
    parser.epilog = "Needs ensjax[weather]. Then: ensjax verify OUT TRUTH."
    parser.add_argument("run", metavar="RUN", help="a finished run directory")
    parser.add_argument(
        "--init",
        action="append",
        metavar="DATE",
        help="a start: its date or number, A:B (without B) for numbers, or all;"
        " repeatable, or with commas",
    )
    parser.add_argument("--members", type=int, metavar="N", help="ids 0 to N - 1")
    parser.add_argument(
        "--member_ids",
        "--member-ids",
        metavar="N,A:B",
        help="these ids instead, such as 3,5,1000:1010 (without 1010)",
    )
    parser.add_argument(
        "-o", "--out", metavar="FILE", help="written to, .zarr or .nc, when complete"
    )
    parser.add_argument(
        "--truth", metavar="FILE", help="also write what came true of these starts"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace what is at --out and --truth"
    )
    parser.add_argument(
        "--model", metavar="NAME", help="which emulator of the run (default: the first)"
    )
    parser.add_argument(
        "--sampler", help=f"{', '.join(SAMPLER_NAMES)} (default: the run's)"
    )
    parser.add_argument(
        "--levels", type=int, help="of noise, or steps (default: the run's)"
    )
    parser.add_argument(
        "--block", type=int, help="members that are computed and written together"
    )


def read_sample_options(options: argparse.Namespace) -> SampleOptions:
    """What the flags say.

    Raises:
        ConfigError: if a flag cannot be read, is missing, or two do not go together.
    """
    if not options.init:
        raise ConfigError("--init says which start: a date or a number, or all.")
    if not options.out:
        raise ConfigError("-o says where members are written: FILE.zarr or FILE.nc.")
    for name in ("out", "truth"):
        place = getattr(options, name)
        if place and not place.rstrip("/").endswith(_ENDINGS):
            raise ConfigError(f"--{name} must end in .zarr or .nc; got {place}.")
    if options.truth and options.truth.rstrip("/") == options.out.rstrip("/"):
        raise ConfigError("--truth and --out are two files.")
    if (options.members is None) == (options.member_ids is None):
        raise ConfigError("say either --members N or --member-ids N,A:B.")
    if options.members is not None:
        if not 1 <= options.members <= _MOST:
            raise ConfigError(f"--members must be at least 1; got {options.members}.")
        ids = [range(options.members)]
    else:
        ids = _ids(options.member_ids)
    if options.sampler is not None:
        options.sampler = options.sampler.replace("-", "_")
        if options.sampler not in SAMPLER_NAMES:
            raise ConfigError(
                f"--sampler is one of {', '.join(SAMPLER_NAMES)}; got"
                f" {options.sampler!r}."
            )
    for name, least in (("levels", 2), ("block", 1)):
        number = getattr(options, name)
        if number is not None and number < least:
            raise ConfigError(f"--{name} must be at least {least}; got {number}.")
    starts = [part.strip() for text in options.init for part in text.split(",")]
    return SampleOptions(
        options.run,
        starts,
        ids,
        options.out,
        options.truth,
        options.overwrite,
        options.model,
        options.sampler,
        options.levels,
        options.block,
    )


def _ids(text):
    found = []
    for part in text.split(","):
        first, colon, end = (word.strip() for word in part.partition(":"))
        if not first.isdecimal() or (colon and not end.isdecimal()):
            raise ConfigError(
                f"--member-ids takes numbers and ranges, such as 3,5,1000:1010; got"
                f" {text!r}."
            )
        ids = range(int(first), int(end) if colon else int(first) + 1)
        if not ids or ids.stop > _MOST:
            raise ConfigError(
                f"--member-ids: {part.strip()!r} holds no id from 0 to 2^31 - 1."
            )
        if any(ids.start < other.stop and other.start < ids.stop for other in found):
            raise ConfigError(f"--member-ids names a member twice: {text}.")
        found.append(ids)
    return found
