"""What takes a process of its own, for `bench_scale`: starts, and many members."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ensjax.experiment.configs import load_module

timing = load_module(Path(__file__).with_name("scale_timing.py"), "bench")

# Configs whose first report is watched for: they evaluate, and save, only later.
STARTED = {
    "deep_ensemble_digits:smoke": {
        "title": "deep_ensemble_digits:smoke",
        "model": "MLP 64-64-64-10",
        "members": 8,
        "batch": 64,
        "steps": 20,
        "last": 40,
    },
    "deep_ensemble:smoke": {
        "title": "deep_ensemble:smoke",
        "model": "CNN 8-8-8",
        "members": 6,
        "batch": 64,
        "steps": 10,
        "last": 20,
    },
}
MANY = ((1_000, 30.0), (10_000, 300.0))  # members, seconds they may take
MANY_STEPS = 1_000
TIMEOUT_SECONDS = 1_800.0
_VERSIONS = """
import json
from ensjax.experiment.versions import collect_versions
from ensjax.mesh import use_cpu_cores
use_cpu_cores()
print(json.dumps(collect_versions()))
"""


def collect_versions() -> dict[str, Any]:
    """Versions and hardware, asked for in a process that ends.

    One that has started JAX's devices keeps most of a GPU's memory and all of a TPU
    from those that are measured.
    """
    command = [sys.executable, "-P", "-c", _VERSIONS]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"JAX does not start: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure_start(
    spec: str, *, repetitions: int, advance: Callable[[], None] = lambda: None
) -> list[dict[str, Any]]:
    """Seconds from `ensjax run` to the first report, without and with a cache."""
    about = STARTED[spec]
    times = {"cold": [], "warm": []}
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) / "kept"
        _first_report(spec, kept, Path(folder) / "fill")  # also reads files from disk
        for repetition in range(repetitions):
            for way in timing.in_turn(list(times), repetition):
                name = f"{way}{repetition}"
                cache = kept if way == "warm" else Path(folder) / f"cache-{name}"
                times[way].append(_first_report(spec, cache, Path(folder) / name))
            advance()
        sizes = [path.stat().st_size for path in kept.rglob("*-cache")]
    ratio, interval = timing.ratio_of(times["warm"], times["cold"])
    return [
        {
            "group": "start",
            "name": f"start {spec}",
            "model": about["model"],
            "title": about["title"],
            "members": about["members"],
            "batch": about["batch"],
            "dtype": "float32",
            "what": "warm start / cold start",
            "ratio": ratio,
            "interval": list(interval),
            "note": f"from the command to the first report, after {about['steps']}"
            f" steps; {len(sizes)} programs kept, {sum(sizes) / 1e6:.1f} MB",
            "measurements": {"s warm": times["warm"], "s cold": times["cold"]},
        }
    ]


def _first_report(spec, cache, workdir):
    """Seconds until the run has written its first line of metrics; it is then ended."""
    last = STARTED[spec]["last"]
    command = [
        *(sys.executable, "-P", "-m", "ensjax.cli", "run", spec),
        *("--workdir", str(workdir), "--compilation_cache", str(cache)),
        *(f"--config.evaluate_every_steps={last}", f"--config.save_every_steps={last}"),
    ]
    metrics = workdir / "metrics.jsonl"
    start = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            while not _has_metrics(workdir):
                if process.poll() is not None:
                    output.seek(0)
                    raise RuntimeError(
                        f"{' '.join(command)} ended with exit code {process.returncode}"
                        f" before it wrote {metrics}: {output.read()[-2000:].decode()}"
                    )
                if time.perf_counter() - start > TIMEOUT_SECONDS:
                    raise RuntimeError(f"{' '.join(command)} wrote nothing yet.")
                time.sleep(0.005)
            return time.perf_counter() - start
        finally:
            process.terminate()
            process.wait()


def _has_metrics(workdir):
    """Whether there is a line, in the one file or in a segment of an attempt."""
    return any(path.stat().st_size > 0 for path in workdir.rglob("*.jsonl"))


def measure_many(
    num_members: int, most_seconds: float, *, steps: int | None = None
) -> list[dict[str, Any]]:
    """Seconds, members per second and memory of many small members at once."""
    steps = steps or MANY_STEPS
    script = Path(__file__).with_name("scale_many.py")
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-P", str(script), str(num_members), str(steps)],
        env={**os.environ},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
    )
    wall = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"{script} {num_members}: {done.stderr[-2000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    rate = num_members / found["training_seconds"]
    row = {
        "group": "many",
        "name": f"many M={num_members} steps={steps}",
        "model": "MLP 64-64-10",
        "title": f"MLP 64-64-10, {steps:,} steps",
        "members": num_members,
        "batch": 32,
        "dtype": "float32",
        "what": "seconds of fit, with compilation",
        **found,
        "process_seconds": wall,
        "members_per_second": rate,
        "note": f"{rate:.0f} members/s; peak {found['peak_bytes'] / 1e9:.2f} GB of the"
        f" process ({found['peak_bytes_before'] / 1e9:.2f} before), program"
        f" {found['program_bytes_per_device'] / 1e9:.2f} GB a device;"
        f" {found['stopped']:,} stopped early, accuracy"
        f" {found['mean_best_accuracy']:.3f}",
        "measurements": {
            "s of fit": [found["seconds"]],
            "members per s": [rate],
            "peak bytes": [found["peak_bytes"]],
        },
    }
    if steps == MANY_STEPS:
        row["target"] = most_seconds
        row["verdict"] = "ok" if found["seconds"] <= most_seconds else "DEFECT"
    return [row]
