"""The command line of `ensjax plan`."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from ensjax.experiment.exit_codes import ConfigError

_AXES = ("member", "data", "model")
_MEMORY_UNITS = {"": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_MEMORY_UNITS |= {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


class PlanOptions(NamedTuple):
    """The command line of `ensjax plan`.

    Attributes:
        spec: path or name of the config, with an optional `:preset`.
        overrides: pairs (dotted field, text).
        memory: of a device, such as "16GiB".
        devices: how many.
        mesh: such as "member=32,data=2".
        topology: of a TPU slice or of GPUs, such as "v5e:8x8" or "gpu:2x8".
        tune: whether blocks are timed.
        trial: whether a few steps are timed; None: where that is short.
        json: file that the findings are written to.
    """

    spec: str
    overrides: Sequence[tuple[str, str]] = ()
    memory: str | None = None
    devices: int | None = None
    mesh: str | None = None
    topology: str | None = None
    tune: bool = False
    trial: bool | None = None
    json: str | None = None


def parse_memory(text: str) -> int:
    """Bytes of a text such as "16GiB" or "80 GB".

    Raises:
        ConfigError: if it is no such text.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    units = {unit.lower(): size for unit, size in _MEMORY_UNITS.items()}
    if not match or match[2].lower() not in units or not float(match[1]):
        raise ConfigError(
            f"--memory is a number with a unit, such as 16GiB or 80GB; got {text!r}."
        )
    return int(float(match[1]) * units[match[2].lower()])


def parse_mesh(text: str) -> dict[str, int]:
    """Sizes of the mesh axes of a text such as "member=32,data=2".

    Raises:
        ConfigError: if it is no such text.
    """
    sizes = {}
    for part in text.split(","):
        axis, _, size = part.strip().partition("=")
        if axis not in _AXES or axis in sizes or not re.fullmatch(r"-1|[1-9]\d*", size):
            raise ConfigError(
                "--mesh is sizes of the axes member, data and model, such as"
                f" member=32,data=2; got {text!r}."
            )
        sizes[axis] = int(size)
    return {axis: sizes.get(axis, 1) for axis in _AXES}


def check_together(options: PlanOptions) -> None:
    """Raises `ConfigError` for options that exclude each other."""
    if options.devices is not None and options.devices < 1:
        raise ConfigError(f"--devices must be at least 1; got {options.devices}.")
    if options.topology is None:
        return
    for name in ("tune", "trial"):
        if getattr(options, name):
            raise ConfigError(
                f"--{name} runs on real devices; nothing can run on those of"
                " --topology."
            )
