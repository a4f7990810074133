"""Compiled programs are kept for the next run, where that is safe and wanted."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache as jax_cache

from ensjax.experiment import compilation_cache
from ensjax.experiment.compilation_cache import (
    check_choice,
    prune,
    use_compilation_cache,
    user_folder,
)
from ensjax.experiment.exit_codes import ConfigError

SETTINGS = (
    "jax_compilation_cache_dir",
    "jax_enable_compilation_cache",
    "jax_persistent_cache_min_compile_time_secs",
)
CONFIG = """
import ml_collections

def get_config(preset="small"):
    return ml_collections.ConfigDict(dict(experiment="counting", seed=0, num_members=2))
"""
EXPERIMENT = """
import jax
import jax.numpy as jnp
from ensjax import make_mesh
from ensjax.experiment import check

hits = []
jax.monitoring.register_event_listener(
    lambda event, **_: hits.append(event) if event.endswith("cache_hits") else None
)

def chain():
    x = jnp.arange(64.0).reshape(8, 8)
    return jnp.tanh(x @ x.T).sum()

def run(config, run_dir):
    everywhere = jax.NamedSharding(make_mesh(), jax.P())
    value = float(jax.jit(chain, out_shardings=everywhere)().addressable_data(0))
    print("hits", len(hits), flush=True)
    run_dir.finish(
        title="t", summary="s", scalars={"value": value}, claims=[],
        checks=[check("value", bound="any", measured=value, passed=True)],
    )
"""


@pytest.fixture(autouse=True)
def settings(monkeypatch, tmp_path):
    """JAX's settings as they were before; nothing is compiled in between."""
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    jax_cache.reset_cache()


def settings_now():
    return tuple(getattr(jax.config, name) for name in SETTINGS)


def as_on(monkeypatch, platform):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)


@pytest.mark.parametrize("choice", ["", "true", "cache"])
def test_a_choice_is_on_off_or_a_folder(choice):
    with pytest.raises(ConfigError, match="takes on, off or a folder") as error:
        check_choice(choice)
    assert repr(choice) in str(error.value)


def test_the_folder_is_the_users(monkeypatch):
    assert user_folder({"XDG_CACHE_HOME": "/x"}) == Path("/x/ensjax/compilation")
    monkeypatch.setenv("HOME", "/home/someone")
    expected = Path("/home/someone/.cache/ensjax/compilation")
    assert user_folder({}) == user_folder({"XDG_CACHE_HOME": "rel"}) == expected


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_on_an_accelerator_it_is_on(monkeypatch, tmp_path, platform):
    as_on(monkeypatch, platform)
    folder = tmp_path / "xdg/ensjax/compilation"
    assert use_compilation_cache() == str(folder)
    assert settings_now() == (str(folder), True, compilation_cache.MIN_COMPILE_SECONDS)
    assert folder.stat().st_mode & 0o077 == 0
    assert list(folder.iterdir()) == []


def test_on_a_cpu_it_is_a_switch(tmp_path):
    before = settings_now()
    assert use_compilation_cache() is None
    assert settings_now() == before
    assert not (tmp_path / "xdg").exists()
    assert use_compilation_cache("on") == str(tmp_path / "xdg/ensjax/compilation")


def test_what_jax_was_told_wins_over_the_users_folder(monkeypatch, tmp_path):
    as_on(monkeypatch, "gpu")
    jax.config.update("jax_compilation_cache_dir", "/elsewhere")
    before = settings_now()
    for choice in (None, "on"):
        assert use_compilation_cache(choice) == "/elsewhere"
        assert settings_now() == before
    folder = str(tmp_path / "named")  # said on the command line, of this run
    assert use_compilation_cache(folder) == folder


def test_the_users_threshold_is_left(monkeypatch):
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "7")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 7.0)
    use_compilation_cache("on")
    assert settings_now()[2] == 7.0


def test_off_is_off_also_where_jax_was_told_a_folder(monkeypatch):
    as_on(monkeypatch, "gpu")
    jax.config.update("jax_compilation_cache_dir", "/elsewhere")
    assert use_compilation_cache("off") is None
    assert jax.config.jax_enable_compilation_cache is False


def test_a_folder_that_cannot_be_used_is_a_warning(tmp_path, capsys):
    (tmp_path / "file").touch()
    before = settings_now()
    assert use_compilation_cache(f"{tmp_path}/file/cache") is None
    assert settings_now() == before
    warning = capsys.readouterr().err
    assert warning.startswith("ensjax: warning: no compilation cache: ")
    assert "file/cache" in warning and warning.count("\n") == 1


def test_what_was_used_longest_ago_goes_first(tmp_path):
    for number in range(4):
        path = tmp_path / f"program{number}-cache"
        path.write_bytes(b"x" * 100)
        os.utime(path, (1000 + number, 1000 + number))
    os.utime(tmp_path / "program0-cache", (5000, 1000))  # read since
    prune(tmp_path, 250)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["program0-cache", "program3-cache"]
    prune(tmp_path, 250)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.fixture
def project(tmp_path):
    """A folder with an experiment that says how many programs were found."""
    for name, text in (("configs", CONFIG), ("experiments", EXPERIMENT)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "counting.py").write_text(text)
    return tmp_path


def start(folder, workdir, *options, **environment):
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "JAX_PLATFORMS": "cpu",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        **environment,
    }
    command = ["run", "configs/counting.py", "--workdir", workdir, *options]
    return subprocess.Popen(
        [sys.executable, "-m", "ensjax.cli", *command],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def hits_of(process):
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    [line] = [line for line in output.splitlines() if line.startswith("hits ")]
    return int(line.split()[1]), errors


def values(folder, *workdirs):
    return {
        json.loads((folder / workdir / "results.json").read_text())["scalars"]["value"]
        for workdir in workdirs
    }


@pytest.mark.slow
def test_the_second_run_finds_what_the_first_compiled(project):
    cache = ("--compilation_cache", "./cache")
    assert hits_of(start(project, "first", *cache))[0] == 0
    names = [path.name for path in (project / "cache").iterdir()]
    assert any(name.startswith("jit_chain") for name in names)
    # Two at once share it.
    second, third = (start(project, name, *cache) for name in ("second", "third"))
    assert hits_of(second)[0] == hits_of(third)[0] > 0
    assert len(values(project, "first", "second", "third")) == 1


@pytest.mark.slow
def test_a_program_that_is_cut_off_is_compiled_again(project):
    cache = ("--compilation_cache", "./cache")
    hits_of(start(project, "first", *cache))
    for path in (project / "cache").glob("*-cache"):
        path.write_bytes(path.read_bytes()[:50])
    hits, errors = hits_of(start(project, "second", *cache))
    assert hits == 0
    assert "Error reading persistent compilation cache entry for 'jit_chain'" in errors
    assert len(values(project, "first", "second")) == 1


@pytest.mark.slow
@pytest.mark.parametrize("is_shared", [True, False])
def test_several_processes_use_a_folder_that_all_of_them_see(project, is_shared):
    def run_both(workdir):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        both = [
            start(
                project,
                workdir,
                *("--compilation_cache", "on", f"--coordinator=localhost:{port}"),
                *("--num_processes=2", f"--process_id={index}"),
                XDG_CACHE_HOME=str(project / f"home{0 if is_shared else index}"),
            )
            for index in range(2)
        ]
        return [hits_of(process) for process in both]

    warning = "is another folder on process 1 than on process 0"
    for workdir in ("first", "second"):
        (hits, errors), (_, other_errors) = run_both(workdir)
        assert (warning in errors) == (not is_shared)
        assert warning not in other_errors  # told once
    # On a CPU another process looks under another key, and process 0 alone writes.
    assert (hits > 0) == is_shared
