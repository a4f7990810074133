"""verify_glosea: scores with each member as the truth, and the run itself."""

import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from ensjax.experiment import ConfigError
from ensjax.experiment.configs import load_config
from ensjax.experiment.fields import load_beside
from ensjax.experiment.runner import RunOptions, run_and_report

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "verify_glosea.py"
experiment = load_beside(str(ROOT / "experiments" / "x.py"), "verify_glosea")
pytest.importorskip("iris_sample_data")


def config_of(preset, *overrides):
    return load_config(f"{CONFIG}:{preset}", overrides)[1]


def test_each_member_in_turn_has_known_scores():
    """Whatever the members are: a ratio of 1, flat ranks, half the mean distance."""
    rng = np.random.default_rng(0)
    values = jnp.asarray(rng.gamma(2.0, size=(5, 1, 7, 8)), jnp.float32)
    weights = jnp.asarray(rng.uniform(0.5, 1.5, size=(7, 1)), jnp.float32)
    weights = weights / weights.mean()
    found = experiment._each_in_turn(values, weights)
    assert float(found["turn_ratio"]) == pytest.approx(1, abs=1e-5)
    pairs = np.abs(values[:, None] - values[None]).sum((0, 1)) / (5 * 4) / 2
    expected = (pairs[0] * np.asarray(weights)).mean()
    assert float(found["half_distance"]) == pytest.approx(expected, rel=1e-5)
    assert float(found["turn_crps"]) == pytest.approx(expected, rel=1e-5)
    np.testing.assert_array_equal(found["turn_ranks"], np.full(5, 56.0))


def test_area_means_keep_the_digits_of_float32():
    rng = np.random.default_rng(1)
    field = (290 + rng.normal(size=(3, 40, 50))).astype(np.float32)
    weights = rng.uniform(0.5, 1.5, size=(40, 1)).astype(np.float32)
    weights /= weights.mean()
    expected = (field.astype("f8") * weights).mean((-2, -1)) / weights.mean()
    found = experiment._area_mean(jnp.asarray(field), jnp.asarray(weights))
    np.testing.assert_allclose(found, expected, atol=4e-5)


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("num_months", "7", "config.num_months"),
        ("map_months", "(0, 2)", "config.map_months"),
        ("band", "(60.0, 30.0)", "config.band is a lower and an upper bound"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_written(field, value, message):
    with pytest.raises(ConfigError, match=message):
        experiment.validate(config_of("smoke", (field, value)))


def test_the_smoke_run_agrees_with_what_is_known(tmp_path):
    assert run_and_report(RunOptions(f"{CONFIG}:smoke", str(tmp_path / "run"))) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert len(results["checks"]) == 9
    assert all(check["pass"] for check in results["checks"]), results["checks"]
    figures = {path.stem for path in (tmp_path / "run" / "figures").glob("*.png")}
    assert figures == {"maps", "members", "plumes", "spectra"}
