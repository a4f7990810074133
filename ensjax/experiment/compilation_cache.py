"""The compiled programs that a run leaves for the next one, in the user's cache folder.

JAX looks a program up by everything that makes it: its text, the compiler's version,
the devices, the flags. Folders may be shared by runs and by versions, and be deleted at
any time; only programs that took a moment to compile are kept. The folder is trusted as
code is, so it belongs to one user: never point two users at the same one.
"""

import contextlib
import os
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path

from ensjax.experiment.exit_codes import ConfigError, one_line
from ensjax.experiment.processes import (
    everywhere,
    on_first_process,
    process_count,
    process_index,
)

# Compiling on a CPU is quick, and there every program that is found logs a page about
# features of the machine, which is harmless: it is a switch there.
DEFAULT_PLATFORMS = ("gpu", "cuda", "rocm", "tpu")
# JAX's own default of one second leaves out what a small run compiles beside its steps.
MIN_COMPILE_SECONDS = 0.2
# Of the user's folder; what was not used for the longest time goes first.
MOST_BYTES = 8 * 1024**3


def check_choice(choice: str | None) -> None:
    """Raises `ConfigError` unless `choice` is None, "on", "off" or a path."""
    if choice in (None, "on", "off"):
        return
    if not choice or "/" not in choice:
        raise ConfigError(
            "--compilation_cache takes on, off or a folder with a slash, such as"
            f" ./cache; got {choice!r}."
        )


def user_folder(environ: Mapping[str, str] | None = None) -> Path:
    """`$XDG_CACHE_HOME/ensjax/compilation`, or `~/.cache/ensjax/compilation`.

    Raises:
        RuntimeError: if the user has no home.
    """
    environ = os.environ if environ is None else environ
    base = environ.get("XDG_CACHE_HOME", "")
    # The specification has relative paths ignored.
    root = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    return root / "ensjax" / "compilation"


def use_compilation_cache(choice: str | None = None) -> str | None:
    """Makes JAX keep compiled programs; before the first of them is compiled.

    Starts JAX's devices, so that `jax.distributed.initialize` comes before; every
    process of a job calls it. A folder that cannot be used is a warning on stderr, and
    the run compiles as it would have.

    Args:
        choice: None: in the user's folder on GPU and TPU; "on": there on every
            platform; "off": nowhere; or a folder, which may be `gs://`. A folder that
            JAX was told already (`JAX_COMPILATION_CACHE_DIR`) wins over the user's one,
            and is left to JAX.

    Returns:
        The folder, or None where nothing is kept.

    Raises:
        ConfigError: for another choice.
    """
    check_choice(choice)
    import jax

    if choice == "off":
        jax.config.update("jax_enable_compilation_cache", False)
        return None
    if choice in (None, "on") and jax.config.jax_compilation_cache_dir:
        return jax.config.jax_compilation_cache_dir
    if choice is None and jax.default_backend() not in DEFAULT_PLATFORMS:
        return None
    is_own = choice in (None, "on")
    try:
        folder = everywhere(lambda: _prepare(None if is_own else choice))
        _check_shared(folder)
    except ConfigError as error:
        if process_index() == 0:
            print(
                f"ensjax: warning: no compilation cache: {one_line(error)}",
                file=sys.stderr,
            )
        return None
    if is_own and process_index() == 0:
        prune(Path(folder), MOST_BYTES)
    jax.config.update("jax_compilation_cache_dir", folder)
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update(
            "jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_SECONDS
        )
    return folder


def prune(folder: Path, most_bytes: int) -> None:
    """Deletes the files that were used longest ago, until the rest is small enough.

    Another run may read at the same time: it compiles what it does not find.
    """
    files = []
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            if path.is_file():
                stat = path.stat()
                used = max(stat.st_atime, stat.st_mtime)
                files.append((used, stat.st_size, path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= most_bytes:
            return
        with contextlib.suppress(OSError):
            path.unlink()
            total -= size


def _prepare(choice: str | None) -> str:
    """The folder, which is there and can be written to."""
    if choice is not None and "://" in choice:
        return choice  # JAX makes it, and warns if it cannot
    try:
        folder = user_folder() if choice is None else Path(choice).expanduser()
        # Who can write here can have the next run execute anything.
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder = folder.resolve()
        probe = folder / f".probe-{uuid.uuid4().hex}"
        probe.touch()
        probe.unlink()
    except (OSError, RuntimeError) as error:
        raise ConfigError(f"{one_line(error)}.") from error
    return str(folder)


def _check_shared(folder: str) -> None:
    """Raises `ConfigError` unless all processes of the job see the same folder.

    Process 0 alone writes into it. If only some processes found a program there, they
    would wait for the others, whose compilers may in turn wait for them: those of
    several GPU hosts share out the search for the fastest kernels.
    """
    if process_count() == 1 or "://" in folder:
        return
    name = on_first_process(lambda: _leave_mark(folder))
    mark = Path(folder) / name

    def look() -> None:
        if not mark.exists():
            raise ConfigError(
                f"{folder} is another folder on process {process_index()} than on"
                " process 0; give one that all hosts share, such as"
                " --compilation_cache gs://BUCKET/compilation."
            )

    try:
        everywhere(look)
    finally:
        if process_index() == 0:
            mark.unlink(missing_ok=True)


def _leave_mark(folder: str) -> str:
    mark = Path(folder) / f".shared-{uuid.uuid4().hex}"
    mark.touch()
    return mark.name
