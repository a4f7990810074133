"""`ensjax verify`: scores of a forecast on disk against the truth on disk."""

import argparse
import pathlib
import signal
import sys
from typing import Any

from ensjax.experiment import exit_codes
from ensjax.experiment.exit_codes import ConfigError, is_no_space, one_line
from ensjax.experiment.read_progress import ReadProgress
from ensjax.experiment.verify_options import VerifyOptions, read_verify_options

_SHOWN_LEADS = 6


def verify(options: argparse.Namespace) -> int:
    """Scores, prints and writes; returns the exit code.

    Raises:
        ConfigError: for mistakes of the user, which leave nothing behind.
    """
    asked = read_verify_options(options)
    signal.signal(signal.SIGTERM, _terminate)
    progress = ReadProgress(asked.paths["forecast"])
    try:
        from ensjax.emulate import gridded

        if asked.out:
            gridded.check_place(asked.out, overwrite=asked.overwrite)
        if asked.scorecard:
            _check_card(asked)
        scores = _scores(gridded, asked, progress)
        if asked.out:
            gridded.write_dataset(asked.out, scores, overwrite=asked.overwrite)
        if asked.scorecard:
            _write_card(gridded.scorecard_of(scores), asked.scorecard)
    except KeyboardInterrupt:
        print("ensjax: stopped; nothing was written.", file=sys.stderr)
        return exit_codes.CTRL_C
    except (ValueError, TypeError, ImportError, FileNotFoundError) as error:
        raise ConfigError(one_line(error)) from error
    except OSError as error:
        if is_no_space(error):
            print(
                f"ensjax: no space left for {asked.out}; it was not written.",
                file=sys.stderr,
            )
            return exit_codes.NO_SPACE
        raise ConfigError(f"cannot read or write: {one_line(error)}.") from error
    finally:
        progress.close()
    _tell(scores, gridded.notes_of(scores))
    for path in (asked.out, asked.scorecard):
        if path:
            print(path)
    return exit_codes.FINISHED


def _check_card(asked):
    path = pathlib.Path(asked.scorecard)
    if path.exists() and not asked.overwrite:
        raise ConfigError(f"{path} is there already; --overwrite replaces it.")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"--scorecard: there is no folder {path.absolute().parent}.")


def _write_card(card, path):
    from ensjax.verification import scorecard_json, scorecard_markdown

    if path.endswith(".png"):
        from ensjax import plot

        plot.save(plot.scorecard(card, shows_notes=True), path)
        return
    text = (scorecard_json if path.endswith(".json") else scorecard_markdown)(card)
    pathlib.Path(path).write_text(text, encoding="utf-8")


def _terminate(number: int, frame: Any) -> None:
    del number, frame
    raise SystemExit(exit_codes.TERMINATED)  # half a file is removed on the way


def _scores(gridded: Any, asked: VerifyOptions, progress: ReadProgress) -> Any:
    opened = {}
    for role, path in asked.paths.items():
        if role == "climatology":  # `verify` knows its seasons
            opened[role] = gridded.open_climatology(path, asked.mappings[role])
            continue
        opened[role] = gridded.open_gridded(path, asked.mappings[role])
    regions = {}
    for name, box in asked.regions.items():
        if box is None and name not in gridded.REGIONS:
            known = ", ".join(gridded.REGIONS)
            raise ConfigError(
                f"--region {name}: known are {known}; others are NAME=S,N,W,E."
            )
        regions[name] = gridded.REGIONS[name] if box is None else box
    bootstrap = None
    if asked.bootstrap is not None:
        bootstrap = gridded.Bootstrap(**asked.bootstrap)
    names = tuple(
        asked.paths.get(role, role)
        for role in ("forecast", "truth", "climatology", "compare_to")
    )
    return gridded.verify(
        opened["forecast"],
        opened["truth"],
        opened.get("climatology"),
        regions,
        opened.get("compare_to"),
        bootstrap,
        variables=asked.variables,
        thresholds=asked.thresholds or None,
        names=names,
        check_units=asked.check_units,
        report=progress.report,
    )


def _tell(scores: Any, notes: list[str]) -> None:
    """A table for each variable and region: scores, over leads."""
    import rich.console
    import rich.table

    console = rich.console.Console()
    about = scores.attrs
    print(
        f"{about['forecast']}: {about['num_cases']} starts, {about['num_members']}"
        f" members, against {about['truth']}"
    )
    for line in (*_share_lines(scores), *notes):
        print(line)
    leads = _shown(scores.sizes["lead"])
    for region in scores["region"].values:
        for variable in scores["variable"].values:
            part = scores.sel(region=region, variable=variable)
            table = rich.table.Table(title=f"{variable}, {region}")
            table.add_column("score", no_wrap=True)
            for i in leads:
                table.add_column(_lead_text(scores["lead"].values[i]), justify="right")
            for score in scores["score"].values:
                row = part.sel(score=score)
                cells = [_cell(row, i) for i in leads]
                if any(cells):
                    table.add_row(str(score), *cells)
            console.print(table)


def _share_lines(scores):
    """What could not be scored for want of truth or forecast, in a line a variable."""
    import numpy as np

    lines = []
    texts = [_lead_text(lead) for lead in scores["lead"].values]
    for variable in scores["variable"].values:
        part = scores["scored"].sel(variable=variable)
        # Scores of the same share go together; the worst region speaks for all.
        groups: dict[tuple[float, ...], list[str]] = {}
        for score in scores["score"].values:
            share = part.sel(score=score).min("region").values  # [lead]
            if not np.isnan(share).all():  # percent, rounded down
                key = tuple(np.floor(1000 * np.nan_to_num(share, nan=1.0) + 1e-3) / 10)
                groups.setdefault(key, []).append(str(score))
        for shares, names in groups.items():
            if min(shares) >= 100:
                continue
            which = "" if len(groups) == 1 else f" ({_some(names)})"
            low, high = np.argmin(shares), np.argmax(shares)
            text = f"{shares[low]:g} % at lead {texts[low]}"
            if shares[low] == shares[high]:
                text = f"{shares[low]:g} %"
            elif len(shares) <= _SHOWN_LEADS:
                text = ", ".join(f"{s:g} % at {t}" for s, t in zip(shares, texts))
            else:
                text += f" to {shares[high]:g} % at {texts[high]}"
            place = "" if scores.sizes["region"] == 1 else ", in the worst region"
            lines.append(
                f"{variable}{which}: only a part could be scored{place}: {text}; the"
                " rest of truth or forecast is missing"
            )
    return lines


def _some(names):
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def _shown(count):
    """A few leads from the first to the last."""
    if count <= _SHOWN_LEADS:
        return list(range(count))
    return [round(i * (count - 1) / (_SHOWN_LEADS - 1)) for i in range(_SHOWN_LEADS)]


def _lead_text(lead):
    import numpy as np

    if np.asarray(lead).dtype.kind != "m":
        return f"{lead:g}"
    hours = lead / np.timedelta64(1, "h")
    return f"{hours / 24:g} d" if hours % 24 == 0 else f"{hours:g} h"


def _cell(row, i):
    import numpy as np

    value, low, high = (float(row[k][i]) for k in ("value", "low", "high"))
    if value != value:
        return ""
    text = f"{value:.4g}"
    if low == low:
        text += f"\n[{low:.3g}, {high:.3g}]"
    if "skill" in row and bool(row["comparable"]) and not np.isnan(row["skill"][i]):
        text += f"\n({float(row['skill'][i]):+.1%})"
    return text
