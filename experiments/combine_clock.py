"""Clocks of `bench_combine`: each way in a process of its own, with its own logits."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from ensjax.experiment.configs import load_module
from ensjax.experiment.fields import load_beside


class Way(load_beside(__file__, "clocks").Clock):
    """One way of `combine_ways.WAYS` in another process, on logits of one size.

    On a CPU ours sees one device for each core, so that rows are split over them.
    `prepare` gives the first call's `seconds` and scalar `scores`; None if the package
    is not installed.
    """

    def __init__(self, name: str, size: tuple[int, int, int]):
        cores = str(os.cpu_count() or 1)
        environment = {"JAX_NUM_CPU_DEVICES": cores, **os.environ}
        super().__init__(name, __file__, [name, *map(str, size)], environment)

    def peak_mib(self) -> float | None:
        """Most resident memory since the first call, above that with the logits alone.

        None where the system does not say it (Linux does).
        """
        return self.ask("peak")


def serve(name: str, size: tuple[int, int, int]) -> None:
    """Answers one request a line until stdin is closed."""
    answers, sys.stdout = sys.stdout, sys.stderr
    ways = load_module(Path(__file__).with_name("combine_ways.py"), "bench")
    run = before = None
    for line in sys.stdin:
        answer: Any = None
        if line.strip() == "prepare":
            rows = ways.make_rows(*size)
            start = time.perf_counter()
            try:
                run = ways.WAYS[name](*rows)
                del rows  # what does not need the host's copy is without it
                before = _begin_peak()
                scores = run()
            except ImportError:
                run = None
            else:
                answer = {
                    "seconds": time.perf_counter() - start,
                    "scores": {
                        k: float(v) for k, v in scores.items() if np.ndim(v) == 0
                    },
                }
        elif line.strip() == "seconds":
            start = time.perf_counter()
            run()
            answer = time.perf_counter() - start
        else:
            peak = None if before is None else _status_mib("VmHWM")
            answer = None if peak is None else max(0.0, peak - before)
        print(json.dumps(answer), file=answers, flush=True)


def _begin_peak() -> float | None:
    """Resident MiB now, from where the peak is counted; None where no system tells."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    except OSError:
        return None
    return _status_mib("VmRSS")


def _status_mib(field):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    return None


if __name__ == "__main__":
    serve(sys.argv[1], tuple(int(part) for part in sys.argv[2:5]))
