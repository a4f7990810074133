"""A part of an experiment in a process of its own, with so many devices of the CPU.

For what is compared between numbers of devices, where there are too few, such as on one
GPU. The script is called as `python <script> <given> <found>`; it calls `answer`.
"""

import os
import pathlib
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np

import ensjax


def in_own_process(script: str, given: Any, num_devices: int) -> dict[str, np.ndarray]:
    """What `script` finds on some CPU devices.

    Args:
        script: path of a module that calls `answer` where it is run.
        given: what its function is called with; anything that pickles.
        num_devices: of the CPU.

    Raises:
        RuntimeError: if that process fails; with the end of what it wrote.
    """
    with tempfile.TemporaryDirectory() as folder:
        paths = [pathlib.Path(folder) / name for name in ("given", "found.npz")]
        paths[0].write_bytes(pickle.dumps(given))
        env = dict(
            os.environ, JAX_PLATFORMS="cpu", JAX_NUM_CPU_DEVICES=str(num_devices)
        )
        # It may set another number of CPU devices, and the two must not differ.
        env.pop("XLA_FLAGS", None)
        above = str(pathlib.Path(ensjax.__file__).parents[1])
        env["PYTHONPATH"] = os.pathsep.join(
            part for part in (above, os.environ.get("PYTHONPATH")) if part
        )
        done = subprocess.run(
            [sys.executable, script, *map(str, paths)],
            env=env,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(
                f"{pathlib.Path(script).name} on {num_devices} CPU devices, in a"
                f" process of its own, failed with {done.returncode}:"
                f" {done.stderr[-2000:]}"
            )
        with np.load(paths[1]) as arrays:
            return dict(arrays)


def answer(function: Callable[[Any], dict[str, Any]]) -> None:
    """Stores what `function` finds of what `in_own_process` was given."""
    given, found = map(pathlib.Path, sys.argv[1:])
    np.savez(found, **function(pickle.loads(given.read_bytes())))
