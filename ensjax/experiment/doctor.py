"""`ensjax doctor`: what JAX runs on here, and whether its numbers can be trusted."""

import glob
import importlib.metadata
import shutil
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ensjax.experiment.versions import PACKAGES, package_version

# jax 0.10.2 went wrong in the last row past 2^15 (jax issue 39103).
PROBE_SIZES = (1, 5, 2**15, 2**15 + 1)
_TOLERANCE = 1e-5  # three-term float32 sums


class Finding(NamedTuple):
    """One line of the diagnosis; `level` is "ok", "warning" or "error"."""

    level: str
    text: str


def examine() -> list[Finding]:
    """The diagnosis of this machine. Starts JAX's devices.

    Returns:
        Versions, devices, warnings and the parity probe, in the order to be read.
    """
    import jax

    devices = jax.devices()
    kinds = ", ".join(sorted({device.device_kind for device in devices}))
    versions = {name: package_version(name) for name in PACKAGES}
    plugins = {
        name: package_version(name)
        for name in installed_plugins()
        if name.endswith("-plugin")
    }
    findings = [
        Finding("ok", ", ".join(f"{name} {text}" for name, text in versions.items())),
        Finding("ok", f"{len(devices)} device(s) of {devices[0].platform}: {kinds}"),
    ]
    findings += check_versions(versions, plugins)
    findings += check_accelerators(devices[0].platform, find_accelerators(), plugins)
    return [*findings, *probe_parity(), *probe_nan()]


def check_versions(
    versions: Mapping[str, str | None], plugins: Mapping[str, str | None]
) -> list[Finding]:
    """Errors for jax 0.10.2, and for a plugin of another version than jaxlib."""
    findings = []
    jax_version, jaxlib_version = versions["jax"], versions["jaxlib"]
    if jax_version == "0.10.2" or jaxlib_version == "0.10.2":
        findings.append(
            Finding(
                "error",
                "jax 0.10.2 computes wrong numbers on CPU (jax issue 39103);"
                " pip install 'jax!=0.10.2'",
            )
        )
    for name, version in plugins.items():
        if _release(version) != _release(jaxlib_version):
            findings.append(
                Finding(
                    "error",
                    f"{name} is {version} but jaxlib {jaxlib_version}, so JAX ignores"
                    f" it and runs on CPU; pip install {name}=={jaxlib_version}",
                )
            )
    return findings


def check_accelerators(
    platform: str, accelerators: Sequence[str], plugins: Mapping[str, str | None]
) -> list[Finding]:
    """A warning if there is an accelerator and JAX runs on CPU all the same.

    Args:
        platform: of JAX's devices.
        accelerators: signs of hardware, as `find_accelerators` gives them.
        plugins: installed accelerator plugins of JAX.
    """
    if platform != "cpu" or not accelerators:
        return []
    cause = (
        "a plugin is installed but did not load; see the messages of JAX above, and"
        " whether JAX_PLATFORMS is set"
        if plugins
        else "no plugin is installed: pip install 'ensjax[cuda13]' (or cuda12, tpu)"
    )
    signs = ", ".join(accelerators)
    return [Finding("warning", f"JAX runs on CPU although there is {signs}: {cause}")]


def find_accelerators() -> list[str]:
    """Signs of accelerators on this machine, found without JAX."""
    signs = [*glob.glob("/dev/nvidia[0-9]*"), *glob.glob("/dev/accel[0-9]*")]
    if shutil.which("nvidia-smi") is not None:
        signs.append("nvidia-smi")
    return sorted(signs)


def installed_plugins() -> list[str]:
    """Names of installed packages that bring JAX to an accelerator."""
    names = {
        (distribution.metadata["Name"] or "").lower().replace("_", "-")
        for distribution in importlib.metadata.distributions()
    }
    prefixes = ("jax-cuda", "jax-rocm")
    return sorted(name for name in names if name.startswith(prefixes))


def probe_parity(sizes: Sequence[int] = PROBE_SIZES) -> list[Finding]:
    """Whether eager, jit, vmap and a loop give the same numbers, also past 2^15 rows.

    The function is the squared norm of a matrix times each row; the reference is NumPy
    in float64. The loop goes over rows at both ends and about the powers of two.
    """
    import jax

    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(3, 3)).astype(np.float32)

    def of_row(row):
        return ((matrix @ row) ** 2).sum()

    mapped = jax.vmap(of_row)
    findings = []
    with jax.default_matmul_precision("highest"):
        alone = jax.jit(of_row)
        for size in sizes:
            rows = rng.normal(size=(size, 3)).astype(np.float32)
            exact = ((rows.astype(np.float64) @ matrix.T.astype(np.float64)) ** 2).sum(
                1
            )
            some = sorted({0, size // 2, size - 1, *range(max(0, size - 3), size)})
            answers = {
                "vmap": (np.asarray(mapped(rows)), exact),
                "jit(vmap)": (np.asarray(jax.jit(mapped)(rows)), exact),
                "jit": (np.array([alone(rows[i]) for i in some]), exact[some]),
                "eager": (np.array([of_row(jax.numpy.array(rows[i])) for i in some]),)
                + (exact[some],),
            }
            wrong = [
                name
                for name, (got, want) in answers.items()
                if not np.allclose(got, want, rtol=_TOLERANCE, atol=_TOLERANCE)
            ]
            if wrong:
                text = f"wrong numbers from {', '.join(wrong)} with {size} rows"
                findings.append(
                    Finding("error", f"parity: {text}; do not use this JAX")
                )
    if not findings:
        text = (
            f"parity: eager = jit = vmap = loop for {', '.join(map(str, sizes))} rows"
        )
        findings.append(Finding("ok", text))
    return findings


def probe_nan() -> list[Finding]:
    """A warning if compiled minima lose a NaN, as those of jax 0.12.0.1 do on CPU."""
    import jax
    import jax.numpy as jnp

    x = np.zeros((3, 400, 4), np.float32)
    x[0, 0] = np.nan
    # Only where it is fused with what comes after it.
    summed = jax.jit(lambda x: jnp.exp(jnp.minimum(x, 80.0)).sum(axis=0))(x)
    if np.isnan(summed[0]).all():
        return [Finding("ok", "NaN: compiled minima keep it")]
    text = (
        "NaN: this JAX turns it into a number in compiled jnp.minimum and jnp.maximum."
        " Scores, combiners and health checks of ensjax keep it (ensjax.ops.limits);"
        " a ReLU may hide it"
    )
    return [Finding("warning", text)]


def _release(version: str | None) -> tuple[str, ...]:
    """The first three parts of a version: patch releases of a plugin have a fourth."""
    return tuple((version or "").split(".")[:3])
