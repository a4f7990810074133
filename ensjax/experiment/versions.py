"""What a result was computed with: versions of the software, and the hardware."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import ensjax

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def collect_versions() -> dict[str, Any]:
    """Versions, hardware and git commit. Starts the devices of JAX.

    Returns:
        A dict of strings and numbers; `git_commit` is None outside a checkout and ends
        in `-dirty` where tracked files were changed.
    """
    import jax

    devices = jax.devices()
    versions = {"ensjax": ensjax.__version__, "python": platform.python_version()}
    versions |= {name: package_version(name) for name in PACKAGES}
    return versions | {
        "platform": devices[0].platform,
        "device_kind": ", ".join(sorted({device.device_kind for device in devices})),
        "num_devices": len(devices),
        "num_processes": jax.process_count(),
        "processor": _processor(),
        "num_cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "system": platform.platform(terse=True),
        "git_commit": _git_commit(),
    }


def package_version(name: str) -> str | None:
    """The installed version of a package, or None where it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def hardware(versions: dict[str, Any]) -> str:
    """One phrase, such as "cpu x 8 (Some Processor, 2 cores)"."""
    kind = versions["device_kind"]
    return (
        f"{kind} x {versions['num_devices']}"
        f" ({versions['processor']}, {versions['num_cores']} cores)"
    )


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _git_commit() -> str | None:
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():  # a wheel, not a checkout
        return None
    commit = _git(root, "rev-parse", "HEAD")
    if commit is None:
        return None
    changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    return f"{commit}-dirty" if changed else commit


def _git(root: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):  # git is not needed for a run
        return None
    return done.stdout.strip() if done.returncode == 0 else None
