"""What a colab user gets: a built wheel, used in an empty folder."""

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
NOT_SOURCE = (".*", "build", "runs", "*.egg-info", "__pycache__", "tests")

# A user's own module and arrays; the lines of the contract are those after "# ---".
# ruff: noqa: E501
COLAB = """
import numpy as np, optax, ensjax
from flax import nnx

class Net(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(4, 16, rngs=rngs)
        self.out = nnx.Linear(16, 3, rngs=rngs)

    def __call__(self, x):
        return self.out(nnx.relu(self.hidden(x)))

rng = np.random.default_rng(0)
x_all = rng.normal(size=(384, 4)).astype(np.float32)
y_all = (x_all @ rng.normal(size=(4, 3))).argmax(1)
(x, x_val, x_test), (y, y_val, y_test) = np.split(x_all, 3), np.split(y_all, 3)
m0, m1, m2, m3, m4 = [Net(nnx.Rngs(i)) for i in range(5)]
# ---
ensemble = ensjax.Ensemble.stack([m0, m1, m2, m3, m4])
ensemble, log = ensjax.fit(ensemble, (x, y), loss=ensjax.losses.cross_entropy, make_tx=optax.adam, hyper=1e-3, steps=2000, seed=0)
logits = ensjax.predict(ensemble, x_test, batch_size=512)
temperature = ensjax.calibrate(ensjax.predict(ensemble, x_val), y_val)
ensjax.plot.reliability(temperature(logits), y_test)
ensemble.save("ensemble"); ensjax.Ensemble.load("ensemble")
# ---
assert logits.shape == (5, 128, 3)
loaded = ensjax.Ensemble.load("ensemble")
np.testing.assert_array_equal(ensjax.predict(loaded, x_test), logits)
accuracy = (np.asarray(logits).mean(0).argmax(1) == y_test).mean()
assert accuracy > 0.85, accuracy
assert log.metrics["loss"][-1].mean() < 0.5 * log.metrics["loss"][0].mean()
assert ensjax.__file__.startswith(INSTALLED), ensjax.__file__
print("colab contract holds")
"""

# What a PyTorch loader looks like from outside: it starts again for every epoch, and its
# batches are objects that NumPy can read.
LOADER = """
import numpy as np, optax, ensjax

class Tensor:
    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.values, dtype)

class Loader:
    def __iter__(self):
        order = np.random.default_rng(0).permutation(len(x))
        for rows in np.split(order, 8):
            yield Tensor(x[rows]), Tensor(y[rows])

x = np.random.default_rng(1).normal(size=(128, 2)).astype(np.float32)
y = (x[:, 0] > x[:, 1]).astype(np.int32)
make_model = lambda rngs: ensjax.nn.MLP(in_features=2, num_outputs=2, rngs=rngs)
ensemble = ensjax.Ensemble.init(make_model, num_members=16, seed=0)
ensemble, log = ensjax.fit(
    ensemble, Loader(), loss=ensjax.losses.cross_entropy, make_tx=optax.adam,
    hyper=1e-2, steps=200, seed=0)
assert log.metrics["accuracy"][-1].mean() > 0.9, log.metrics["accuracy"][-1]
print("loader works")
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The folder in which a wheel of this repository is installed."""
    out = tmp_path_factory.mktemp("wheel")
    # Built from a copy: a build in place leaves a folder that later wheels pick up.
    source = out / "source"
    shutil.copytree(REPOSITORY, source, ignore=shutil.ignore_patterns(*NOT_SOURCE))
    pip = [sys.executable, "-m", "pip", "-q"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "-w", out, source],
        check=True,
        capture_output=True,
    )
    (built,) = out.glob("ensjax-*.whl")
    installed = out / "installed"
    subprocess.run(
        [*pip, "install", "--no-deps", "--target", installed, built],
        check=True,
        capture_output=True,
    )
    return installed


def run(code_or_args, wheel, folder):
    """Runs Python in an empty folder with the wheel, and nothing of the repository."""
    environment = {**os.environ, "PYTHONPATH": str(wheel), "JAX_PLATFORMS": "cpu"}
    if isinstance(code_or_args, str):
        code_or_args = ["-c", f"INSTALLED = {str(wheel)!r}\n" + code_or_args]
    return subprocess.run(
        [sys.executable, *code_or_args],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(COLAB, id="contract"),
        pytest.param(LOADER, id="loader", marks=pytest.mark.slow),
    ],
)
def test_colab_scripts_run_from_the_wheel(script, wheel, tmp_path):
    result = run(textwrap.dedent(script), wheel, tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "step 2000/2000" in result.stdout or "step 200/200" in result.stdout


def test_the_contract_takes_no_more_lines_than_promised():
    lines = COLAB.split("# ---")[1].strip().splitlines()
    assert len(lines) <= 6


def test_the_wheel_carries_every_package_config_and_experiment(wheel):
    packages = wheel / "ensjax"
    inside = {str(path.relative_to(packages)) for path in packages.rglob("*.py")}
    ours = {
        str(path.relative_to(REPOSITORY / "ensjax"))
        for path in (REPOSITORY / "ensjax").rglob("*.py")
    }
    for folder in ("configs", "experiments"):
        ours |= {
            f"{folder}/{path.relative_to(REPOSITORY / folder)}"
            for path in (REPOSITORY / folder).rglob("*.py")
        }
    assert inside == ours
    assert (wheel / "ensjax" / "py.typed").exists()
    results = {p.name for p in (REPOSITORY / "experiments" / "results").glob("*.json")}
    packed = {p.name for p in (wheel / "ensjax/experiments/results").glob("*.json")}
    assert packed == results


@pytest.mark.slow
def test_an_experiment_runs_by_name_from_the_wheel(wheel, tmp_path):
    command = ["-m", "ensjax.cli", "run", "deep_ensemble_digits:smoke"]
    result = run([*command, "--workdir", "out"], wheel, tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert (tmp_path / "out" / "report.html").exists()
    result = run(["-m", "ensjax.cli", "copy", "deep_ensemble_digits"], wheel, tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert (tmp_path / "configs" / "deep_ensemble_digits.py").exists()
