"""What `ensjax verify` is asked for on the command line. Loads no JAX."""

import argparse
from collections.abc import Sequence
from typing import Any, NamedTuple

from ensjax.experiment.exit_codes import ConfigError

CARDS = (".md", ".json", ".png")
_ROLES = ("forecast", "truth", "climatology", "compare_to")


class VerifyOptions(NamedTuple):
    """Arguments of `gridded.verify`, and what else was asked.

    Attributes:
        paths: of the datasets by their argument, those that are given.
        mappings: of each, names in the file by our words.
        variables: to be scored; None: all.
        regions: by name a box, or None for one that is known by name.
        thresholds: by variable.
        bootstrap: arguments of `gridded.Bootstrap`; None: no intervals.
        out: where scores are written, or None.
        scorecard: where the scorecard is written, or None.
        overwrite: whether those may be replaced.
        check_units: whether units that differ are an error.
    """

    paths: dict[str, str]
    mappings: dict[str, dict[str, str | None]]
    variables: list[str] | None
    regions: dict[str, dict[str, tuple[float, float]] | None]
    thresholds: dict[str, list[float]]
    bootstrap: dict[str, Any] | None
    out: str | None
    scorecard: str | None
    overwrite: bool
    check_units: bool


def add_verify_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `ensjax verify`, and what it does."""
    parser.description = (
        "Scores an ensemble forecast against the truth, reading both block by block:"
        " CRPS, errors, spread and ranks by variable, lead and region."
    )
    parser.epilog = "Needs ensjax[weather]."
    parser.add_argument(
        "forecast", metavar="FORECAST", help="zarr or netCDF with leads"
    )
    parser.add_argument("truth", metavar="TRUTH", help="zarr or netCDF by valid time")
    parser.add_argument(
        "-o", "--out", metavar="FILE", help="write all scores to .nc or .zarr"
    )
    parser.add_argument(
        "--scorecard",
        metavar="FILE",
        help="write a card of normalised differences to --compare-to, with alarms, to"
        " .md, .json or .png",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace what is there"
    )
    parser.add_argument(
        "--climatology", metavar="FILE", help="by dayofyear, month, hour or time"
    )
    parser.add_argument(
        "--compare_to",
        "--compare-to",
        metavar="FILE",
        help="another forecast: differences and skill too; of another number of members"
        " only by fair scores",
    )
    parser.add_argument(
        "--variable",
        action="append",
        metavar="NAME",
        help="to be scored; repeatable (default: all that both have)",
    )
    parser.add_argument(
        "--region",
        action="append",
        default=[],
        metavar="NAME[=S,N[,W,E]]",
        help="a box in degrees, or one known by name, such as tropics; repeatable"
        " (default: global)",
    )
    parser.add_argument(
        "--threshold",
        action="append",
        default=[],
        metavar="NAME=X,X",
        help="Brier scores of a variable above these; repeatable",
    )
    parser.add_argument(
        "--map",
        action="append",
        default=[],
        metavar="FILE:WORD=NAME",
        help="where a guess fails, such as forecast:time=init or truth:lat=y; NAME"
        f" none: there is no such; FILE is one of {', '.join(_ROLES)}; repeatable",
    )
    parser.add_argument(
        "--ignore_units",
        "--ignore-units",
        action="store_true",
        help="score also where units differ by what the files say",
    )
    parser.add_argument(
        "--bootstrap",
        type=int,
        metavar="N",
        help="intervals from N resamples of blocks of starts (default: none)",
    )
    parser.add_argument(
        "--block_length",
        "--block-length",
        type=int,
        help="in starts (default: the longest lead over their spacing); fewer than 4"
        " blocks have no interval",
    )
    parser.add_argument(
        "--confidence", type=float, default=0.95, help="of intervals (%(default)s)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the resamples (%(default)s)"
    )


def read_verify_options(options: argparse.Namespace) -> VerifyOptions:
    """What the flags say.

    Raises:
        ConfigError: if a flag cannot be read, or two do not go together.
    """
    paths = {role: getattr(options, role) for role in _ROLES if getattr(options, role)}
    mappings: dict[str, dict[str, str | None]] = {role: {} for role in paths}
    for text in options.map:
        role, _, pair = text.partition(":")
        word, equals, name = pair.partition("=")
        if role not in paths or not (word and equals and name):
            raise ConfigError(
                f"--map takes FILE:WORD=NAME with FILE one of {', '.join(paths)}; got"
                f" {text!r}."
            )
        mappings[role][word] = None if name == "none" else name
    thresholds = {}
    for text in options.threshold:
        name, equals, numbers = text.partition("=")
        if not name or not equals:
            raise ConfigError(f"--threshold takes NAME=X,X; got {text!r}.")
        thresholds[name] = _numbers("--threshold", numbers)
    bootstrap = None
    if options.bootstrap is not None:
        if options.bootstrap < 1:
            raise ConfigError(
                f"--bootstrap must be 1 or more; got {options.bootstrap}."
            )
        if not 0 < options.confidence < 1:
            raise ConfigError(
                f"--confidence must be between 0 and 1; got {options.confidence}."
            )
        bootstrap = dict(
            num_resamples=options.bootstrap,
            block_length=options.block_length,
            confidence=options.confidence,
            seed=options.seed,
        )
    elif options.block_length is not None:
        raise ConfigError("--block_length goes with --bootstrap N.")
    if options.overwrite and not (options.out or options.scorecard):
        raise ConfigError("--overwrite goes with -o FILE or --scorecard FILE.")
    if options.scorecard:
        if not options.scorecard.endswith(CARDS):
            raise ConfigError(
                f"--scorecard must end in {', '.join(CARDS)}; got"
                f" {options.scorecard!r}."
            )
        if bootstrap is None or "compare_to" not in paths:
            raise ConfigError(
                "--scorecard goes with --compare-to FILE and --bootstrap N."
            )
    return VerifyOptions(
        paths,
        mappings,
        options.variable,
        _regions(options.region),
        thresholds,
        bootstrap,
        options.out,
        options.scorecard,
        options.overwrite,
        not options.ignore_units,
    )


def _regions(texts: Sequence[str]):
    found = {}
    for text in texts or ["global"]:
        name, equals, numbers = text.partition("=")
        if not equals:
            found[name] = None
            continue
        box = _numbers("--region", numbers)
        if not name or len(box) not in (2, 4):
            raise ConfigError(
                f"--region takes a name, NAME=S,N or NAME=S,N,W,E; got {text!r}."
            )
        found[name] = {"lat": (box[0], box[1])}
        if len(box) == 4:
            found[name]["lon"] = (box[2], box[3])
    return found


def _numbers(flag, text):
    try:
        return [float(x) for x in text.split(",")]
    except ValueError:
        raise ConfigError(f"{flag} takes numbers with commas; got {text!r}.") from None
