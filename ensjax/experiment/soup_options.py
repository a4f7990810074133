"""What `ensjax soup` is asked for on the command line. Loads no JAX."""

import argparse
import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from ensjax.experiment.exit_codes import ConfigError

# Flags that are keyword arguments of methods, and what they are of.
KNOBS = {
    "weights": "of the members, such as 1,2,1 (default: equal)",
    "lam": "scale of what is added to the base",
    "density": "share of entries that is kept; one, or one for each member",
    "drop": "probability that an entry is dropped (dare)",
    "gamma": "share of the largest that is dropped (breadcrumbs)",
    "epsilon": "half the range of probabilities (della)",
    "t": "where between two members (slerp, nuslerp), or the largest step (nearswap)",
    "scope": "which entries belong together: leaf, global, output or input",
    "parallel": "cosine from which slerp takes the line",
    "num_iterations": "of karcher_mean",
    "tolerance": "of karcher_mean, an angle",
    "floor": "smallest Fisher information",
    "normalize": "yes or no: divide by the sum of weights, or (fisher) by lengths",
}
# Those of `weight_space.METHODS` that need no data but, at most, Fisher information.
METHOD_NAMES = (
    "average",
    "breadcrumbs",
    "breadcrumbs_ties",
    "dare",
    "dare_ties",
    "della",
    "della_linear",
    "fisher",
    "karcher_mean",
    "model_stock",
    "multislerp",
    "nearswap",
    "nuslerp",
    "sce",
    "slerp",
    "task_arithmetic",
    "ties",
)
_ALIASES = {"linear": "average", "uniform": "average", "karcher": "karcher_mean"}


class SoupOptions(NamedTuple):
    """Arguments of `interop.merge_folders`, and where each result goes.

    Attributes:
        merges: for each output, its folder and the keyword arguments that differ.
        folders: the members.
        common: the other keyword arguments.
    """

    merges: list[tuple[str, dict[str, Any]]]
    folders: list[str]
    common: dict[str, Any]


def add_soup_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `ensjax soup`."""
    parser.add_argument(
        "folders", nargs="*", metavar="FOLDER", help="of weights, or their files"
    )
    parser.add_argument("-o", "--out", metavar="DIR", help="the folder to be made")
    parser.add_argument(
        "--method",
        default="average",
        metavar="NAME",
        help=f"one of {', '.join(METHOD_NAMES)} (%(default)s)",
    )
    parser.add_argument("--base", metavar="FOLDER", help="that was fine-tuned")
    parser.add_argument(
        "--alpha",
        metavar="A,A",
        help="mixes the base (or the first of two) and the mean of the others:"
        " (1 - A) and A; for several values, DIR has a folder for each",
    )
    for name, what in KNOBS.items():
        _add(parser, name, help=what, metavar="X")
    _add(
        parser,
        "pattern",
        action="append",
        default=[],
        metavar="RE=X",
        help="weights (t, alpha) for tensors in whose name RE is found; RE:KNOB=X"
        " another knob, or the layout; repeatable, the first found counts",
    )
    _add(parser, "seed", type=int, default=0, help="of dare and della (%(default)s)")
    _add(
        parser,
        "fisher",
        action="append",
        default=[],
        metavar="FOLDER",
        help="Fisher information of a member by tensor; once for each, in their order",
    )
    _add(parser, "dtype", help="of the output, such as bfloat16 (default: the inputs')")
    _add(
        parser,
        "copy_from",
        metavar="FOLDER",
        help="base, first, or a folder: from there come tensors that differ in shape"
        " or that a folder lacks (default: they are refused)",
    )
    _add(
        parser,
        "copy",
        action="append",
        default=[],
        metavar="RE",
        help="tensors that are copied, not merged; repeatable",
    )
    _add(
        parser,
        "skip",
        action="append",
        default=[],
        metavar="RE",
        help="tensors that are left out; repeatable",
    )
    _add(parser, "layout", help="of matrices: torch, [out, in], or flax, [in, out]")
    _add(
        parser,
        "statistics",
        default="mean",
        metavar="NAME",
        help="batch statistics, such as running_var: the members' mean, or by the"
        " method, as weights (%(default)s)",
    )
    _add(
        parser,
        "max_shard_size",
        default="5GB",
        metavar="SIZE",
        help="of a file (%(default)s)",
    )
    _add(parser, "overwrite", action="store_true", help="an earlier output at DIR")
    _add(
        parser,
        "allow_non_finite",
        action="store_true",
        help="merge and write NaN and infinity instead of refusing them",
    )
    _add(
        parser,
        "verify",
        metavar="DIR",
        help="compare an output, and its inputs, with its lineage.json; nothing else",
    )


def _add(parser, name, **options):
    """A flag that may be written with - or _."""
    names = dict.fromkeys([f"--{name}", f"--{name.replace('_', '-')}"])
    parser.add_argument(*names, dest=name, **options)


def join_numbers(arguments: Sequence[str]) -> list[str]:
    """Arguments in which `--weights -1,2` is `--weights=-1,2`.

    The parser takes numbers that begin with a minus for a flag if there are several, or
    an exponent.
    """
    joined: list[str] = []
    for word in arguments:
        before = joined[-1] if joined else ""
        is_flag = before.startswith("--") and "=" not in before
        if is_flag and _NUMBERS.fullmatch(word):
            joined[-1] = f"{before}={word}"
        else:
            joined.append(word)
    return joined


_NUMBERS = re.compile(r"-[\d.][-+\d.,eE]*")


def read_soup_options(options: argparse.Namespace) -> SoupOptions:
    """What the flags ask for.

    Raises:
        ConfigError: if something is missing or does not fit together.
    """
    if not options.folders:
        raise ConfigError("ensjax soup needs the folders to be merged.")
    if options.out is None:
        raise ConfigError("ensjax soup needs -o DIR, the folder to be made.")
    method = options.method.replace("-", "_").lower()
    method = _ALIASES.get(method, method)
    given = {name: getattr(options, name) for name in KNOBS}
    knobs = {k: _value(k, v) for k, v in given.items() if v is not None}
    folders, base = list(options.folders), options.base
    common = {
        "method": method,
        "fisher": options.fisher,
        "seed": options.seed,
        "layout": options.layout,
        "statistics": options.statistics,
        "dtype": options.dtype,
        "copy": options.copy,
        "skip": options.skip,
        "max_shard_size": options.max_shard_size,
        "overwrite": options.overwrite,
        "allow_non_finite": options.allow_non_finite,
    }
    named = {"base": base, "first": folders[0]}
    if options.copy_from == "base" and base is None:
        raise ConfigError("--copy_from base needs --base.")
    common["copy_from"] = named.get(options.copy_from, options.copy_from)
    if options.alpha is None:
        main = "t" if method in ("slerp", "nuslerp", "nearswap") else "weights"
        per_leaf = _patterns(options.pattern, main, len(folders))
        common |= {"base": base, "knobs": knobs, "per_leaf": per_leaf}
        return SoupOptions([(options.out, {})], folders, common)
    if method != "average" or knobs:
        other = (
            f"--method {method}" if method != "average" else f"--{next(iter(knobs))}"
        )
        raise ConfigError(f"--alpha is a method of its own; leave {other} out.")
    if base is None and len(folders) != 2:
        raise ConfigError(
            f"--alpha mixes two folders, or --base and others; got {len(folders)}."
        )
    folders = folders if base is None else [base, *folders]
    return SoupOptions(_alphas(options, len(folders)), folders, common)


def _alphas(options, num_folders):
    alphas = _numbers("alpha", options.alpha)
    own = _patterns(options.pattern, "alpha", num_folders)
    for pattern, knobs in own.items():
        if set(knobs) != {"alpha"}:
            raise ConfigError(f"--pattern {pattern!r} sets a knob; --alpha has none.")

    def weights(alpha):
        if not 0 <= alpha <= 1:
            raise ConfigError(f"--alpha lies from 0 to 1; got {alpha:g}.")
        return {
            "weights": [1 - alpha] + [alpha / (num_folders - 1)] * (num_folders - 1)
        }

    per_leaf = {pattern: weights(knobs["alpha"]) for pattern, knobs in own.items()}
    if len(set(alphas)) < len(alphas):
        raise ConfigError(f"--alpha names a value twice: {options.alpha}.")
    places = [options.out]
    if len(alphas) > 1:
        places = [f"{options.out.rstrip('/')}/alpha-{alpha:g}" for alpha in alphas]
    return [
        (place, {"knobs": weights(alpha), "per_leaf": per_leaf})
        for place, alpha in zip(places, alphas)
    ]


def _patterns(texts, main, num_folders):
    """`RE=X` and `RE:KNOB=X` by pattern."""
    found: dict[str, dict[str, Any]] = {}
    for text in texts:
        pattern, equals, value = text.rpartition("=")
        if not equals or not pattern:
            raise ConfigError(f"--pattern takes RE=X or RE:KNOB=X; got {text!r}.")
        start, colon, knob = pattern.rpartition(":")
        if not (colon and start and knob in (*KNOBS, "layout")):
            start, knob = pattern, main
        found.setdefault(start, {})[knob] = own = _value(knob, value)
        if knob == "weights" and len(own) != num_folders:
            raise ConfigError(
                f"--pattern {text!r} sets weights, one for each of {num_folders}"
                f" folders; got {len(own)}. A number alone goes with --alpha, or with a"
                f" knob, as {start}:lam=0.5."
            )
    return found


def _value(name, text):
    if name in ("scope", "layout"):
        return text
    if name == "normalize":
        if text.lower() not in ("yes", "no", "true", "false"):
            raise ConfigError(f"--normalize is yes or no; got {text!r}.")
        return text.lower() in ("yes", "true")
    numbers = _numbers(name, text)
    if name == "num_iterations":
        if len(numbers) > 1 or numbers[0] != int(numbers[0]) or numbers[0] < 1:
            raise ConfigError(f"--num_iterations is an integer from 1; got {text!r}.")
        return int(numbers[0])
    return numbers if name == "weights" or len(numbers) > 1 else numbers[0]


def _numbers(name, text):
    try:
        numbers = [float(number) for number in text.split(",")]
    except ValueError as error:
        raise ConfigError(
            f"--{name} takes numbers with commas, as 0.2 or 0.2,0.3; got {text!r}."
        ) from error
    if not all(map(math.isfinite, numbers)):
        raise ConfigError(f"--{name} takes finite numbers; got {text!r}.")
    return numbers
