"""Metrics where nothing can be appended: one object for every attempt at a run.

A segment is a JSON-lines file whose first line says of which phase it is, and from
which step on it counts: lines of earlier segments of that phase from that step on were
written after the checkpoint from which the run was resumed, and came again.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from ensjax.experiment.json_files import to_json_value, write_bytes


class SegmentLogger:
    """Writes the segments `attempt-0001.jsonl`, ... of a folder.

    Every line writes the segment again, whole: it is on the store before the checkpoint
    that comes after it.
    """

    def __init__(self, folder: str | os.PathLike, *, phase: str | None = None):
        self._folder = epath.Path(folder)
        self._phase = phase
        self._path = None
        self._text = ""

    def write(self, step: int, metrics: Mapping[str, float | Sequence[float]]) -> None:
        if self._path is None:
            self._begin(int(step))
        head = {"step": int(step)}
        if self._phase is not None:
            head["phase"] = self._phase
        self._add(head | to_json_value(dict(metrics)))

    def cut(self, step: int) -> None:
        """Drops what comes after `step` in the segments that are there."""
        self._begin(step + 1)
        write_bytes(self._path, self._text.encode())

    def close(self) -> None:
        """All is written already; more lines go to the same segment."""

    def _begin(self, first_step):
        self._folder.mkdir(parents=True, exist_ok=True)
        number = 1 + max((n for n, _ in _segments(self._folder)), default=0)
        self._path = self._folder / f"attempt-{number:04d}.jsonl"
        head = {"segment": number, "phase": self._phase, "from_step": first_step}
        self._text = json.dumps(head) + "\n"

    def _add(self, line):
        self._text += json.dumps(line, allow_nan=False) + "\n"
        write_bytes(self._path, self._text.encode())


def read_segments(folder: str | os.PathLike) -> list[dict[str, Any]]:
    """The lines of all segments as one run would have written them."""
    lines = []
    for _, path in sorted(_segments(epath.Path(folder))):
        own = _whole_lines(path)
        if not own or "from_step" not in own[0]:
            continue  # torn before its first line was whole
        head, *own = own
        lines = [
            line
            for line in lines
            if line["step"] < head["from_step"] or line.get("phase") != head["phase"]
        ]
        lines += own
    return lines


def _whole_lines(path) -> list[dict[str, Any]]:
    """The lines up to the first that is torn, as a mounted store may leave it."""
    lines = []
    for text in path.read_bytes().decode(errors="replace").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            break
        if not isinstance(line, dict):
            break
        lines.append(line)
    return lines


def _segments(folder):
    """Pairs (number, path)."""
    if not folder.is_dir():
        return []
    found = (re.fullmatch(r"attempt-(\d+)\.jsonl", p.name) for p in folder.iterdir())
    return [(int(match[1]), folder / match[0]) for match in found if match]
