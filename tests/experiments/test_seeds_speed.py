"""seeds_speed: which ensembles are compared, the checks, and a short run."""

import pathlib
import types

import ml_collections
import numpy as np
import pytest

import ensjax
from ensjax.emulate.seeds import train_seeds
from ensjax.experiment import ConfigError
from ensjax.experiment.fields import load_beside

ROOT = pathlib.Path(__file__).parents[2]
speed = load_beside(str(ROOT / "experiments" / "x.py"), "seeds_speed")
verdicts = load_beside(str(ROOT / "experiments" / "x.py"), "seeds_speed_claims")
SITES, CASES = 8, 12


def config_of(**changes):
    """As the docstring of the module says, small."""
    config = ml_collections.ConfigDict(dict(seed=0, num_seeds=2))
    config.model = ml_collections.ConfigDict(dict(width=4, depth=1, kernel_size=3))
    config.training = ml_collections.ConfigDict(dict(batch_size=16))
    config.sampler = ml_collections.ConfigDict(dict(low=0.02, high=20.0, rho=7.0))
    config.mesh = ml_collections.ConfigDict(dict(member=-1, data=1, model=1))
    settings = dict(
        num_seeds=2,
        num_samples=5,
        num_levels=(2, 3),
        num_timings=1,
        crps_members=(3, 2),
        crps_steps=(4, 6),
        crps_learning_rates=(2e-3, 3e-3),
        num_noise_channels=2,
        alpha=0.95,
        ema_decay=0.9,
    )
    config.speed = ml_collections.ConfigDict(settings | changes)
    return config


def found_of(fair, ssr, rate):
    """Of two samplers and two networks, in this order, over two seeds."""
    config = config_of()
    names = (*speed.sampler_names(config), *speed.network_names(config))
    found = {"fair_others": np.array([0.40, 0.44])}
    for name, f, s, r in zip(names, fair, ssr, rate, strict=True):
        found |= {
            f"fair_{name}": np.array([f - 0.01, f + 0.01]),
            f"ssr_{name}": np.array([s - 0.1, s + 0.1]),
            f"power_{name}": np.array([[0.5, 1.0], [0.7, 1.2]]),
            f"rate_{name}": np.array(r),
            f"calls_{name}": np.array(1),
            f"training_{name}": np.array(30.0),
            f"frozen_{name}": np.array(0),
        }
    return config, found


def test_the_best_network_is_compared_with_the_cheapest_sampler_of_equal_skill():
    config, found = found_of(
        (0.512, 0.510, 0.53, 0.50), (1.1, 1.0, 0.6, 0.9), (100.0, 40.0, 2_000, 1_800)
    )
    best = verdicts.compare(config, found)
    assert (best.network, best.sampler) == ("crps_2_6", "levels_3")
    assert best.cheapest == best.near == "levels_2"
    assert best.ratio == pytest.approx(0.50 / 0.51) and best.is_equal
    assert best.faster == pytest.approx(18.0)
    assert all(check["pass"] for check in verdicts.make_checks(config, found))
    assert "18.0 times as many" in verdicts.describe(config, found)
    scalars = verdicts.summarise(config, found)
    assert scalars["speed_least_power_crps_2_6"] == pytest.approx(0.6)
    assert not any("rate" in name or "training" in name for name in scalars)


def failing(fair, ssr, rate):
    checks = verdicts.make_checks(*found_of(fair, ssr, rate))
    return {check["name"] for check in checks if not check["pass"]}


def test_each_check_fails_where_it_should():
    fair, ssr, rate = (0.60, 0.51, 0.53, 0.50), (1.1, 1.0, 0.6, 0.9), (900, 90, 99, 999)
    assert failing(fair, ssr, rate) == set()
    assert failing(fair[:2] + (0.6, 0.53), ssr, rate) == {
        "speed: fair CRPS of the network over the best sampler's"
    }
    assert failing(fair, ssr, (900, 120, 99, 999)) == {
        "speed: the network is faster than the cheapest sampler within 1 %"
    }
    near = (0.518, *fair[1:])  # within 2 % and not within 1 %
    assert failing(near, ssr, rate) == {
        "speed: the network is faster than any sampler within 2 %"
    }
    assert failing(fair, (*ssr[:3], 0.8), rate) == {
        "speed: spread-skill ratio of the network, low"
    }
    assert failing(fair, (1.1, 1.2, 0.6, 0.9), rate) == {
        "speed: spread-skill ratio of the sampler, high"
    }
    assert failing((*fair[:3], 0.41), ssr, rate) == {
        "speed: fair CRPS above the other members'"
    }
    _, found = found_of(fair, (*ssr[:3], 0.8), rate)
    assert "not at equal skill" in verdicts.describe(config_of(), found)


def test_wrong_settings_are_refused():
    speed.validate(config_of())
    for changes, message in (
        (dict(crps_steps=(4,)), "as many networks"),
        (dict(crps_members=(2, 2), crps_steps=(4, 4)), "which differ"),
        (dict(num_seeds=3), "at most config.num_seeds"),
        (dict(crps_members=(1, 2)), "crps_members"),
        (dict(num_levels=(1,)), "num_levels"),
        (dict(alpha=1.5), "alpha"),
    ):
        with pytest.raises(ConfigError, match=message):
            speed.validate(config_of(**changes))


class RunDirectory:
    """What the stage asks of a run."""

    def __init__(self, path):
        self.checkpoints, self.tables = path, []

    def logger(self, phase):
        return types.SimpleNamespace(write=lambda step, metrics: None)

    def add_table(self, name, columns, rows, caption):
        self.tables.append((name, columns, rows, caption))


@pytest.mark.slow
def test_a_short_run_fills_the_table(tmp_path):
    config = config_of()
    rng = np.random.default_rng(0)
    middle = 3 + rng.normal(size=(2, 4 * CASES, 1, SITES))

    def draw(cases, members):
        noise = rng.normal(size=(2, cases, members, SITES))
        return (middle[:, :cases] + 0.5 * noise).astype(np.float32)

    archives = {
        "train": draw(4 * CASES, 5),
        "test": draw(CASES, 6),
        "truth": draw(CASES, 1)[:, :, 0],
    }
    train = archives["train"]
    mean, sd = (f(train, axis=(1, 2, 3), keepdims=True) for f in (np.mean, np.std))

    def make_model(rngs):
        return ensjax.nn.ResidualDenoiser(
            1, num_condition_channels=3, width=4, depth=1, kernel_size=(3,), rngs=rngs
        )

    emulators, log = train_seeds(
        make_model,
        {"members": ((train - mean) / sd).swapaxes(0, 1)[..., None]},
        steps=4,
        batch_size=16,
        ema_decay=0.9,
        fit_options=dict(progress=False),
    )
    run_dir = RunDirectory(tmp_path)
    trained = {
        "training_seconds": speed.training_seconds(emulators, log),
        "frozen_steps": log.frozen_steps,
    }
    found = speed.measure(config, run_dir, archives, emulators, trained)
    names = (*speed.sampler_names(config), *speed.network_names(config))
    for name in names:
        assert found[f"fair_{name}"].shape == found[f"ssr_{name}"].shape == (2,)
        assert found[f"power_{name}"].shape == (2, SITES // 2)
        assert found[f"rate_{name}"] > 0 and found[f"training_{name}"] > 0
    assert [int(found[f"calls_{name}"]) for name in names] == [3, 5, 1, 1]
    # New networks have hardly any spread, and their place is the climate's mean: theirs
    # is the error of a single forecast of what the training has for a mean.
    error = np.abs(archives["truth"] - archives["train"].mean()).mean()
    assert found["fair_crps_3_4"].mean() == pytest.approx(error, rel=0.3)
    verdicts.add_table(run_dir, config, found)
    ((_, columns, rows, _),) = run_dir.tables
    assert len(rows) == 4 and len(rows[0]) == len(columns) == 7
    again = speed.measure(config, run_dir, archives, emulators, trained)
    for name in speed.network_names(config):  # read back from their checkpoints
        np.testing.assert_allclose(again[f"fair_{name}"], found[f"fair_{name}"])
