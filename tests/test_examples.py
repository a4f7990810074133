"""The examples in docstrings and in README.md run and say what they say."""

import doctest
import importlib.util
import json
import pathlib
import pkgutil
import re

import jax
import numpy as np
import optax
import pytest
import safetensors.numpy
from flax import nnx
from sklearn.ensemble import RandomForestClassifier

import ensjax
from ensjax.provenance import LeakageError

FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def modules():
    names = ["ensjax"]
    for info in pkgutil.walk_packages(ensjax.__path__, "ensjax."):
        if not info.name.startswith(("ensjax.configs", "ensjax.experiments")):
            names.append(info.name)
    return sorted(names)


# Seconds each, or many; what they show, the tests of their rooms compute too.
LONG = ("combine.", "scores.", "reduce.stream", "data.shifts", "planning.plan")
LONG += ("train.lowering", "weight_space.")
SHOWN = ("ensjax.ensemble", "ensjax.train.fit")  # by README.md too, which runs below


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow)
        if name.removeprefix("ensjax.").startswith(LONG) or name in SHOWN
        else name
        for name in modules()
    ],
)
def test_examples_of(name, tmp_path, monkeypatch):
    module = importlib.import_module(name)
    if name.startswith("ensjax.interop"):
        monkeypatch.chdir(tmp_path)
        _published_folders(tmp_path, ["seed0", "seed1", "seed2", "a", "b", "z"])
    with jax.numpy_rank_promotion("allow"):  # a user's default
        result = doctest.testmod(module, optionflags=FLAGS)
    assert result.failed == 0


def readme_blocks():
    text = (pathlib.Path(__file__).parents[1] / "README.md").read_text()
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


def _published_folders(folder, names):
    """Writes small ViTs as `transformers` does; returns images for them."""
    path = pathlib.Path(__file__).parent / "interop" / "published.py"
    spec = importlib.util.spec_from_file_location("published", path)
    published = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(published)
    for seed, name in enumerate(names):
        own = folder / name
        own.mkdir()
        tensors = published.vit_tensors(seed)
        safetensors.numpy.save_file(tensors, own / "model.safetensors")
        (own / "config.json").write_text(json.dumps(published.VIT))
    return np.zeros((2, 8, 8, 3), np.float32)


@pytest.mark.slow
def test_what_the_readme_shows_runs(tmp_path, monkeypatch):
    """As it stands, but for the number of steps."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)

    def split(count):
        return rng.random((count, 8, 8, 1), np.float32), rng.integers(3, size=count)

    def model(seed):
        rngs = nnx.Rngs(params=seed, dropout=seed)
        return ensjax.nn.MLP(in_features=64, num_outputs=3, rngs=rngs)

    names = {f"m{i}": model(i) for i in range(5)}
    names["x"], names["y"] = split(120)
    names["x_val"], names["y_val"] = split(32)
    names["x_test"], names["y_test"] = split(32)
    names |= {"rates": np.geomspace(1e-4, 1e-2, 5), "optax": optax, "ensjax": ensjax}
    names["RandomForestClassifier"] = RandomForestClassifier
    names["images"] = _published_folders(tmp_path, ["seed0", "seed1", "seed2"])
    blocks = readme_blocks()
    assert len(blocks) == 6
    with jax.numpy_rank_promotion("allow"):  # a user's default
        for block in blocks:
            block = re.sub(r"bootstrap=\d+", "bootstrap=20", block)
            exec(re.sub(r"steps=\d+", "steps=20", block), names)
        # The second block goes on from its checkpoint, here for more steps.
        exec(re.sub(r"steps=\d+", "steps=40", blocks[1]), names)
        with pytest.raises(LeakageError, match="and 5 more members"):
            names["combine"].fit_stacking(
                names["say"]("train"), names["y"][names["split"]["train"]]
            )
    assert names["log"].resumed_step == 20 or (names["log"].stopped_steps > 0).any()
    assert names["logits"].shape == (5, 32, 3)
    assert (tmp_path / "ensemble").is_dir() and (tmp_path / "checkpoints").is_dir()
    assert names["log"].steps[-1] == 40 or (names["log"].stopped_steps > 0).all()


def test_the_readme_names_commands_and_rooms_that_are_there():
    text = (pathlib.Path(__file__).parents[1] / "README.md").read_text()
    commands = set(re.findall(r"^ensjax (\w+)", text, flags=re.MULTILINE))
    known = "bench copy doctor export list plan replay report run soup"
    assert commands == set(known.split())
    table = text[text.index("## Rooms") :]
    rooms = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| `.*?\|", table, re.M))))
    there = {info.name for info in pkgutil.iter_modules(ensjax.__path__)}
    assert rooms == there
