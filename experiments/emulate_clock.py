"""Clocks of `bench_emulate`: each way in a process of its own, with its own devices."""

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ensjax.experiment.configs import load_module
from ensjax.experiment.fields import load_beside


class Way(load_beside(__file__, "clocks").Clock):
    """One way of `emulate_ways.PARTS` in another process.

    On a CPU a way of `ON_ALL_DEVICES` sees one device for each core, others see one.
    `prepare` gives `seconds`, `made` and `compared` of the first call, what of it JAX
    compiled (`compile_seconds`: lowering and XLA; None without JAX) and `peak_bytes`
    (`_peak_bytes`); or `missing` and why.
    """

    def __init__(self, part: str, name: str, numbers: Sequence[Any], *, on_all: bool):
        cores = str(min(os.cpu_count() or 1, 8)) if on_all else "1"
        environment = {
            "JAX_NUM_CPU_DEVICES": cores,
            # Several processes share an accelerator's memory.
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            **os.environ,
        }
        arguments = [part, name, json.dumps(list(numbers))]
        super().__init__(name, __file__, arguments, environment)


def serve(part: str, name: str, numbers: Sequence[Any]) -> None:
    """Answers one request a line until stdin is closed."""
    answers, sys.stdout = sys.stdout, sys.stderr
    ways = load_module(Path(__file__).with_name("emulate_ways.py"), "bench")
    call: Any = None
    for line in sys.stdin:
        answer: Any
        if line.strip() == "prepare":
            try:
                call = ways.PARTS[part][name](*numbers)
            except ImportError as error:
                answer = {"missing": str(error)}
            else:
                compiled = _listen_to_compilation()
                start = time.perf_counter()
                found = call.run()
                answer = {
                    "seconds": time.perf_counter() - start,
                    "compile_seconds": compiled and sum(compiled),
                    "made": call.made,
                    "peak_bytes": _peak_bytes(),
                    "compared": call.compared(found).ravel().tolist(),
                }
        else:
            start = time.perf_counter()
            call.run()
            answer = time.perf_counter() - start
        print(json.dumps(answer), file=answers, flush=True)


def _listen_to_compilation():
    """A list that JAX adds the seconds of lowering and compiling to, or None."""
    if "jax" not in sys.modules:
        return None
    import jax

    seconds = [0.0]

    def listen(event, duration, **_):
        if event.startswith("/jax/core/compile/") and "trace" not in event:
            seconds.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return seconds


def _peak_bytes():
    """The most memory that this process held so far, of an accelerator if it uses one.

    None where nothing tells.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if "jax" in sys.modules:
        import jax

        counts = [device.memory_stats() or {} for device in jax.local_devices()]
        if jax.default_backend() != "cpu" and "peak_bytes_in_use" in counts[0]:
            return sum(count["peak_bytes_in_use"] for count in counts)
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
