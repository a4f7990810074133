"""`report.html`: one file, its figures inside, no scripts, no outside request."""

import base64
import html
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from ensjax.experiment.exit_codes import ConfigError
from ensjax.experiment.json_files import write_bytes
from ensjax.experiment.overrides import flatten_fields
from ensjax.experiment.run_directory import RunDirectory, existing_run
from ensjax.experiment.versions import hardware

_STYLE = """
:root { color-scheme: light dark; --line: #8885; --soft: #8882; }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto;
  padding: 1rem; overflow-wrap: break-word; }
h1 { line-height: 1.2; font-size: 1.6rem; }
h2 { font-size: 1.2rem; margin: 2rem 0 .5rem; }
.scroll { overflow-x: auto; width: fit-content; max-width: 100%;
  border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: collapse; font-size: .9rem; }
th, td { padding: .35rem .6rem; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); }
tr:last-child td { border-bottom: 0; }
th { background: var(--soft); white-space: nowrap; }
td.number, th.number { text-align: right; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
td.claim { min-width: 9rem; max-width: 24rem; } td.source { min-width: 11rem; }
td.verdict-cell { min-width: 7rem; }
.verdict { font-weight: 600; display: inline-block; padding: .1rem .45rem;
  border-radius: 4px; color: #fff; background: #5a6270; }
.holds { background: #1a7037; } .fails { background: #b3261e; }
.undecided { background: #855a00; }
figure { margin: 1.5rem 0; }
figure img { display: block; max-width: 100%; height: auto; background: #fff;
  border-radius: 6px; }
figcaption, .caption { font-size: .9rem; margin: .4rem 0; }
details { margin: .6rem 0; } summary { cursor: pointer; font-weight: 600; }
pre { overflow-x: auto; background: var(--soft); padding: .6rem; border-radius: 6px;
  font-size: .8rem; }
.pair { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); }
"""


def build_report(run: RunDirectory, results: Mapping[str, Any]) -> str:
    """The report of one run as HTML.

    Args:
        run: its folder: figures, tables, config and versions are read from there.
        results: the content of `results.json`.
    """
    contents, versions = run.contents, run.versions
    parts = [_paragraph(contents["summary"])]
    if results["claims"]:
        parts += ["<h2>Claims</h2>", _claims_table(results["claims"])]
        parts += [_parts_of(claim) for claim in results["claims"] if "parts" in claim]
    if results["checks"]:
        parts += ["<h2>Checks</h2>", _checks_table(results["checks"])]
    for table in contents["tables"]:
        parts.append(f"<h2>{_text(table['name'])}</h2>")
        parts.append(_caption(table["caption"]))
        parts.append(_table(table["columns"], table["rows"]))
    if contents["figures"]:
        parts.append("<h2>Figures</h2>")
    for figure in contents["figures"]:
        parts.append(_figure(run, figure["name"], figure["caption"]))
    parts.append("<h2>How it was made</h2>")
    if "device_kind" in versions:
        parts.append(_paragraph(f"Hardware: {hardware(versions)}."))
    scalars = [[name, value] for name, value in results["scalars"].items()]
    if scalars:
        parts.append(_details("All scalars", _table(["scalar", "value"], scalars)))
    parts.append(_details("Config", _json(run.config)))
    parts.append(_details("Versions", _json(versions)))
    return _page(contents["title"], parts)


def write_report(path: str | os.PathLike) -> epath.Path:
    """Builds `report.html` of a finished run again; returns its path.

    Raises:
        ConfigError: if there is no finished run at `path`.
    """
    run = existing_run(path)
    _need_finished(run)
    target = run.path / "report.html"
    write_bytes(target, build_report(run, run.results).encode())
    return target


def build_comparison(paths: Sequence[str | os.PathLike]) -> str:
    """A page that puts finished runs side by side, one column a run.

    First the claims, then the scalars, the config fields that differ, and figures of
    the same name.

    Raises:
        ConfigError: if there is no finished run at one of the paths.
    """
    runs = [existing_run(path) for path in paths]
    for run in runs:
        _need_finished(run)
    names = _labels(runs)
    results = [run.results for run in runs]
    parts = [_paragraph(f"{len(runs)} runs: {', '.join(names)}.")]
    claims = [{c["name"]: c for c in result["claims"]} for result in results]
    if any(claims):
        rows = [
            [_Cell(_text(name), "claim"), *(_verdict_cell(c.get(name)) for c in claims)]
            for name in _union(claims)
        ]
        parts += ["<h2>Claims</h2>", _table(["claim", *names], rows)]
    scalars = [result["scalars"] for result in results]
    rows = [[name, *(s.get(name, "") for s in scalars)] for name in _union(scalars)]
    parts += ["<h2>Scalars</h2>", _table(["scalar", *names], rows)]
    configs = [dict(flatten_fields(run.config)) for run in runs]
    rows = [
        [key, *(str(config.get(key, "absent")) for config in configs)]
        for key in _union(configs)
        if len({json.dumps(config.get(key)) for config in configs}) > 1
    ]
    if rows:
        parts += ["<h2>Config fields that differ</h2>", _table(["field", *names], rows)]
    figures = [{f["name"]: f for f in run.contents["figures"]} for run in runs]
    for figure in _union(figures):
        shown = [
            _figure(run, figure, f"{name}: {of_run[figure]['caption']}")
            for run, name, of_run in zip(runs, names, figures, strict=True)
            if figure in of_run
        ]
        parts += [
            f"<h2>{_text(figure)}</h2>",
            f'<div class="pair">{"".join(shown)}</div>',
        ]
    return _page("Comparison of runs", parts)


def format_number(value: Any) -> str:
    """Four significant digits for floats; None and NaN as a dash."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def format_interval(interval: Sequence[float] | None) -> str:
    """`[low, high]` with four significant digits, or a dash."""
    if interval is None:
        return "–"
    low, high = interval
    return f"[{format_number(low)}, {format_number(high)}]"


def format_expected(claim: Mapping[str, Any]) -> str:
    """What was expected; behind it the bound of the verdict, where that says it not."""
    text = str(format_number(claim["expected"]))
    if claim.get("side") is None or claim.get("bound") is None:
        return text
    bound = _format_bound(claim)
    # "> 0" is not said by "> 0.5".
    if re.search(re.escape(bound) + r"(?![\d.]*\d)", text):
        return text
    return f"{text}; judged by {bound}"


class _Cell:
    """A table cell that is HTML already, with its CSS class."""

    def __init__(self, content: str, kind: str = ""):
        self.content = content
        self.kind = kind


def _page(title: str, parts: Iterable[str]) -> str:
    # An empty data icon keeps the browser from asking for /favicon.ico.
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{_text(title)}</title>'
        f"<style>{_STYLE}</style></head><body>\n<h1>{_text(title)}</h1>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _text(value: Any) -> str:
    return html.escape(str(value))


def _paragraph(text: str) -> str:
    return f"<p>{_text(text)}</p>"


def _caption(text: str) -> str:
    return f'<p class="caption">{_text(text)}</p>'


def _details(title: str, content: str) -> str:
    return f"<details><summary>{_text(title)}</summary>{content}</details>"


def _json(value: Any) -> str:
    return f"<pre>{_text(json.dumps(value, indent=2))}</pre>"


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table in a box that scrolls by itself; columns of numbers are set right."""
    kinds = [
        ' class="number"' if all(_is_number(row[place]) for row in rows) else ""
        for place in range(len(columns))
    ]
    head = "".join(
        f"<th{kind}>{_text(column)}</th>"
        for kind, column in zip(kinds, columns, strict=True)
    )
    body = "\n".join(
        "<tr>"
        + "".join(_cell(value, kind) for value, kind in zip(row, kinds, strict=True))
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>"
    )


def _cell(value: Any, kind: str) -> str:
    if isinstance(value, _Cell):
        return f'<td class="{value.kind}">{value.content}</td>'
    text = format_number(value) if _is_number(value) else str(value)
    return f"<td{kind}>{_text(text)}</td>"


def _is_number(value: Any) -> bool:
    if isinstance(value, _Cell):
        return value.kind == "number"
    return value is None or (
        isinstance(value, (int, float)) and not isinstance(value, bool)
    )


def _claims_table(claims: Sequence[Mapping[str, Any]]) -> str:
    columns = [
        "claim",
        "verdict",
        "ours",
        "95 % interval",
        "expected",
        "seeds",
        "paper",
    ]
    rows = []
    for claim in claims:
        certainty = claim.get("certainty", "")
        source = ", ".join(
            str(claim[key]) for key in ("paper", "source") if claim.get(key)
        )
        rows.append(
            [
                _Cell(_text(claim["name"]), "claim"),
                _verdict_cell(claim),
                claim["measured"],
                _Cell(_text(format_interval(claim.get("interval"))), "number"),
                format_expected(claim),
                claim.get("seeds", 0),
                _Cell(
                    _text(f"{source} ({certainty})" if certainty else source), "source"
                ),
            ]
        )
    return _table(columns, rows)


def _parts_of(claim: Mapping[str, Any]) -> str:
    """What the parts of one claim came out as; the verdict is of all together."""
    rows = [
        [
            part["part"],
            part["measured"],
            _Cell(_text(format_interval(part["interval"])), "number"),
            _format_bound(part),
            part["seeds"],
        ]
        for part in claim["parts"]
    ]
    columns = ["part", "ours", "95 % interval", "to hold", "seeds"]
    return _details(f"Parts of {claim['name']}", _table(columns, rows))


def _format_bound(entry: Mapping[str, Any]) -> str:
    return f"{entry['side']} {format_number(entry['bound'])}"


def _verdict_cell(claim: Mapping[str, Any] | None) -> _Cell:
    """The verdict in words, with the scale it is about."""
    if claim is None:
        return _Cell("–")
    verdict, scale = claim["verdict"], claim.get("scale")
    words = f"{verdict}, {scale} scale" if scale and verdict != "not run" else verdict
    kind = verdict.replace(" ", "-")
    return _Cell(
        f'<span class="verdict {_text(kind)}">{_text(words)}</span>', "verdict-cell"
    )


def _checks_table(checks: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for check in checks:
        word, kind = ("passes", "holds") if check["pass"] else ("fails", "fails")
        verdict = _Cell(f'<span class="verdict {kind}">{word}</span>')
        name = _Cell(_text(check["name"]), "claim")
        bound = str(format_number(check["bound"]))
        rows.append([name, verdict, check["measured"], bound])
    return _table(["check", "result", "measured", "bound"], rows)


def _figure(run: RunDirectory, name: str, caption: str) -> str:
    path = run.path / "figures" / f"{name}.png"
    if not path.exists():
        raise ConfigError(f"{path} is missing, which report.json names.")
    data = base64.b64encode(path.read_bytes())
    return (
        f'<figure><img src="data:image/png;base64,{data.decode()}"'
        f' alt="{_text(caption)}"><figcaption>{_text(caption)}</figcaption></figure>'
    )


def _need_finished(run: RunDirectory) -> None:
    if not run.is_finished:
        raise ConfigError(
            f"{run.path} is not finished (it has no results.json); the command that"
            " began it resumes it."
        )
    results = run.results
    for field, kind in (("scalars", dict), ("claims", list), ("checks", list)):
        if not isinstance(results.get(field), kind):
            raise ConfigError(
                f"{run.path / 'results.json'} must hold {field!r}, a {kind.__name__};"
                " it was changed by hand or cut. Without it the run is not finished:"
                " remove it, and the command that began the run makes it again."
            )


def _labels(runs: Sequence[RunDirectory]) -> list[str]:
    names = [run.path.name for run in runs]
    paths = [os.fspath(run.path) for run in runs]
    return names if len(set(names)) == len(names) else paths


def _union(mappings: Iterable[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for mapping in mappings for key in mapping))
