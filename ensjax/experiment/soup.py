"""`ensjax soup`: checkpoints of other frameworks merged on the command line."""

import argparse
import os
import signal
import sys
from collections import Counter
from typing import Any

from ensjax.experiment import exit_codes
from ensjax.experiment.exit_codes import ConfigError, is_no_space, one_line
from ensjax.experiment.read_progress import ReadProgress
from ensjax.experiment.soup_options import read_soup_options


def soup(options: argparse.Namespace) -> int:
    """Merges folders, or verifies a merge; returns the exit code.

    Raises:
        ConfigError: for mistakes of the user, which leave nothing behind.
    """
    # Reading is what takes long; an accelerator stays free for others.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if options.verify is not None:
        if options.folders or options.out:
            raise ConfigError("--verify stands alone; leave folders and -o out.")
        return _verify(options.verify)
    asked = read_soup_options(options)
    from ensjax.interop import merge_folders

    signal.signal(signal.SIGTERM, _terminate)
    for place, own in asked.merges:
        progress = ReadProgress(place)
        try:
            lineage = merge_folders(
                asked.folders, place, **asked.common, **own, report=progress.report
            )
        except KeyboardInterrupt:
            print(f"ensjax: stopped; {place} was not written.", file=sys.stderr)
            return exit_codes.CTRL_C
        except ValueError as error:
            raise ConfigError(one_line(error)) from error
        except OSError as error:
            if is_no_space(error):
                print(
                    f"ensjax: no space left for {place}; it was not written.",
                    file=sys.stderr,
                )
                return exit_codes.NO_SPACE
            raise ConfigError(f"{place} was not written: {one_line(error)}.") from error
        finally:
            progress.close()
        _tell(place, lineage)
    return exit_codes.FINISHED


def _terminate(number: int, frame: Any) -> None:
    del number, frame
    raise SystemExit(exit_codes.TERMINATED)  # half a folder is removed on the way


def _tell(place: str, lineage: dict[str, Any]) -> None:
    """What was done, and what was not merged."""
    from ensjax.interop.tensor_types import bytes_text

    members = sum(given["role"] == "member" for given in lineage["inputs"])
    knobs = ", ".join(
        f"{name} {value}"
        for name, value in lineage["knobs"].items()
        if value is not None
    )
    files = lineage["output"]["files"]
    size = sum(file["size"] for file in files)
    print(
        f"{place}: {lineage['num_tensors']} tensors of {members} folders merged by"
        f" {lineage['method']}{f' ({knobs})' if knobs else ''}; {len(files)} files,"
        f" {bytes_text(size)}"
    )
    reasons: dict[str, list[str]] = {}
    for name, copied in lineage["copied"].items():
        key = f"copied from {copied['from']} ({copied['why']})"
        reasons.setdefault(key, []).append(name)
    for name, why in lineage["left_out"].items():
        reasons.setdefault(f"left out ({why})", []).append(name)
    for reason, names in reasons.items():
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        print(f"  {reason}: {', '.join(names[:4])}{more}")
    for note in lineage["notes"]:
        print(f"  note: {note}")


def _verify(folder: str) -> int:
    from ensjax.interop import read_lineage, verify_lineage

    try:
        lineage = read_lineage(folder)
        verdicts = verify_lineage(folder)
    except (ValueError, OSError) as error:
        raise ConfigError(one_line(error)) from error
    _tell(folder, lineage)
    print(f"  written {lineage['time']} by ensjax {lineage['versions']['ensjax']}")
    for role in dict.fromkeys(verdict.role for verdict in verdicts):
        own = [verdict for verdict in verdicts if verdict.role == role]
        states = Counter("gone" if _is_gone(v) else v.state for v in own)
        gone = f", {states['gone']} not checked" if states["gone"] else ""
        print(f"  {role}: {states['same']} of {len(own)} files are the same{gone}")
    wrong = [verdict for verdict in verdicts if verdict.state != "same"]
    for verdict in wrong:
        state = "not checked, not found" if _is_gone(verdict) else verdict.state
        print(f"  {state}: {verdict.path} ({verdict.role})")
    # Inputs may have gone since; what is there must be what was merged.
    is_bad = any(v.state == "changed" or v.role == "output" for v in wrong)
    return exit_codes.BUG if is_bad else exit_codes.FINISHED


def _is_gone(verdict):
    """Whether it is of an input that is no longer where it was."""
    return verdict.state == "missing" and verdict.role != "output"
