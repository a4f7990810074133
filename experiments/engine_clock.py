"""Clocks of `bench_engine`: ways to train, timed in this process or in another one.

On a CPU the engine splits members over the cores, each a device of its own. A loop over
members uses one device, and its calls are a third slower in a process that has several;
so alternatives run in a process with one, which has both cores as well. The processes
take turns: while one works, the other waits.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ensjax.experiment.configs import load_module


class Clock:
    """Prepares ways to train in this process, and times them."""

    def __init__(self):
        path = Path(__file__).with_name("engine_alternatives.py")
        self._alternatives = load_module(path, "bench")
        self._runs: dict[str, Callable[[], Any]] = {}

    def prepare(self, way: str, model: str, num_members: int) -> float | None:
        """Compiles a way and makes its steps twice: seconds, or None without torch.

        Twice, since what a program returns may be sharded in another way than what it
        was given first, and then the second call compiles again.
        """
        start = time.perf_counter()
        workload = self._alternatives.WORKLOADS[model]
        try:
            alternative = self._alternatives.WAYS[way](workload, num_members)
        except ImportError:
            return None
        alternative.run()
        alternative.run()
        self._runs[way] = alternative.run
        return time.perf_counter() - start

    def seconds(self, way: str, calls: int) -> float:
        """Time of some calls of a way that was prepared."""
        run = self._runs[way]
        start = time.perf_counter()
        for _ in range(calls):
            run()
        return time.perf_counter() - start

    def clear(self) -> None:
        """Forgets all ways, with their weights."""
        self._runs.clear()


class OtherProcess:
    """A `Clock` in a process with one CPU device."""

    def __init__(self):
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-P", __file__],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def prepare(self, way: str, model: str, num_members: int) -> float | None:
        """As `Clock.prepare`."""
        return self._ask("prepare", way, model, num_members)

    def seconds(self, way: str, calls: int) -> float:
        """As `Clock.seconds`."""
        return self._ask("seconds", way, calls)

    def clear(self) -> None:
        """As `Clock.clear`."""
        self._ask("clear")

    def close(self) -> None:
        """Ends the process."""
        self._process.stdin.close()
        self._process.wait()

    def _ask(self, *request):
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(
                f"The process that times {request[0]} {request[1:]} ended with exit"
                f" code {self._process.wait()}; its last words are above."
            )
        return json.loads(answer)


def serve() -> None:
    """Answers one request a line until stdin is closed."""
    answers, sys.stdout = sys.stdout, sys.stderr
    clock = Clock()
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        print(json.dumps(getattr(clock, name)(*arguments)), file=answers, flush=True)


if __name__ == "__main__":
    serve()
