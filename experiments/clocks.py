"""Clocks of benchmarks: each way in a process of its own, asked by lines."""

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any


class Clock:
    """A file that runs as a script and answers each request with a line of JSON.

    Args:
        name: in messages.
        script: the file.
        arguments: of the script.
        environment: all of its variables.

    Raises:
        RuntimeError: from a request, if the process has ended.
    """

    def __init__(
        self, name: str, script: str, arguments: Sequence[str], environment: dict
    ):
        self._name = name
        self._process = subprocess.Popen(
            [sys.executable, "-P", script, *arguments],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def prepare(self) -> dict[str, Any] | None:
        """What the script says of its first call."""
        return self.ask("prepare")

    def seconds(self) -> float:
        """Time of one more call."""
        return self.ask("seconds")

    def close(self) -> None:
        """Ends the process."""
        self._process.stdin.close()
        self._process.wait()

    def ask(self, request: str) -> Any:
        """The answer to one request."""
        self._process.stdin.write(f"{request}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(
                f"The process of {self._name!r} ended with exit code"
                f" {self._process.wait()}; its last words are above."
            )
        return json.loads(answer)
