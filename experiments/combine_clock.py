"""Clocks of `bench_combine`: each way in a process of its own, with its own logits."""

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from ensjax.experiment.configs import load_module


class Way:
    """One way of `combine_ways.WAYS` in another process, on logits of one size.

    On a CPU ours sees one device for each core, so that rows are split over them.
    """

    def __init__(self, name: str, size: tuple[int, int, int]):
        cores = str(os.cpu_count() or 1)
        self._process = subprocess.Popen(
            [sys.executable, "-P", __file__, name, *map(str, size)],
            env={"JAX_NUM_CPU_DEVICES": cores, **os.environ},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._name = name

    def prepare(self) -> dict[str, Any] | None:
        """The first call's `seconds` and scalar `scores`; None if not installed."""
        return self._ask("prepare")

    def seconds(self) -> float:
        """Time of one more call."""
        return self._ask("seconds")

    def peak_mib(self) -> float:
        """Most resident memory so far, above that with the logits alone."""
        return self._ask("peak")

    def close(self) -> None:
        """Ends the process."""
        self._process.stdin.close()
        self._process.wait()

    def _ask(self, request):
        self._process.stdin.write(f"{request}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(
                f"The process of {self._name!r} ended with exit code"
                f" {self._process.wait()}; its last words are above."
            )
        return json.loads(answer)


def serve(name: str, size: tuple[int, int, int]) -> None:
    """Answers one request a line until stdin is closed."""
    answers, sys.stdout = sys.stdout, sys.stderr
    ways = load_module(Path(__file__).with_name("combine_ways.py"), "bench")
    run, before = None, 0.0
    for line in sys.stdin:
        answer: Any = None
        if line.strip() == "prepare":
            rows = ways.make_rows(*size)
            start = time.perf_counter()
            try:
                run = ways.WAYS[name](*rows)
                before = _peak_mib()
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
            answer = max(0.0, _peak_mib() - before)
        print(json.dumps(answer), file=answers, flush=True)


def _peak_mib():
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


if __name__ == "__main__":
    serve(sys.argv[1], tuple(int(part) for part in sys.argv[2:5]))
