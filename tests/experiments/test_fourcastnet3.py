"""fourcastnet3: claims and checks follow their numbers, a split step, a short run."""

import json
import pathlib

import jax
import numpy as np
import pytest

from ensjax.experiment import ConfigError
from ensjax.experiment.configs import load_config
from ensjax.experiment.fields import load_beside
from ensjax.experiment.runner import RunOptions, run_and_report

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "fourcastnet3.py"
experiment = load_beside(str(ROOT / "experiments" / "x.py"), "fourcastnet3")
verdicts, training = experiment.verdicts, experiment.training
SEEDS, LEADS, DEGREES = 5, 6, 22


def config_of(preset, *overrides):
    return load_config(f"{CONFIG}:{preset}", overrides)[1]


def done_of(**changed):
    """Results that pass, but for what is changed of the variant with both."""
    emulate = {}
    for name in training.VARIANTS:
        ones = np.ones((SEEDS, LEADS, 2))
        ones[..., 0] += 0.01 * np.arange(SEEDS)[:, None]  # seeds differ a little
        spectra = np.ones((SEEDS, LEADS, 2, DEGREES)) * ones[..., None]
        own = dict(
            crps=0.3 * ones,
            ssr=ones,
            large_ssr=ones if name != "white" else 0.5 * ones,
            power=spectra,
            truth_power=np.ones((SEEDS, 2, DEGREES)),
            long_ratio=spectra[:, :3],
            distance=np.full(SEEDS, 1.0 if name == "diffusion" else 2.0),
            is_finite=np.ones(SEEDS, bool),
            frozen_steps=np.full(SEEDS, -1),
        )
        if name == "diffusion":
            own |= changed
        emulate |= {f"{name}_{key}": value for key, value in own.items()}
    size = dict(
        split_devices=np.array([1, 2]),
        split_loss_off=np.zeros(2),
        split_gradient_off=np.zeros(2),
        full_params=np.int64(709_930_667),
        full_flops=2.9e13,
        full_bytes=2.5e12,
    )
    return {"emulate": emulate, "size": size, "simulate": {"num_cases": 4}}


def failed(done):
    checks = verdicts.make_checks(config_of("claims"), done)
    return {check["name"][:3] for check in checks if not check["pass"]}


def verdict(done):
    return verdicts.make_claims(config_of("claims"), done)[0]["verdict"]


def test_claims_and_checks_follow_their_numbers():
    good = done_of()
    assert failed(good) == set() and verdict(good) == "holds"
    ones = good["emulate"]["diffusion_ssr"]
    assert failed(done_of(ssr=0.7 * ones)) == {"(c)"}
    assert verdict(done_of(ssr=0.7 * ones)) == "fails"
    # The first step does not count.
    first = ones.copy()
    first[:, 0] = 0.2
    assert (
        failed(done_of(ssr=first)) == set() and verdict(done_of(ssr=first)) == "holds"
    )
    assert failed(done_of(crps=0.32 * ones)) == {"(a)"}
    assert failed(done_of(distance=np.full(SEEDS, 1.9))) == {"(b)"}
    assert failed(done_of(large_ssr=0.4 * ones)) == {"(d)"}
    long = good["emulate"]["diffusion_long_ratio"]
    assert failed(done_of(long_ratio=2.5 * long)) == {"(e)"}
    assert verdict(done_of(long_ratio=1.5 * long)) == "fails"  # 1.8 decibel more
    words = [c["verdict"] for c in verdicts.make_claims(config_of("claims"), good)]
    assert words == ["holds"] + 4 * ["not run"]
    split = done_of()
    split["size"]["split_gradient_off"][1] = 1e-3
    assert failed(split) == {"gra"}
    assert "full_size_flops" in verdicts.summarise(config_of("claims"), good)


@pytest.mark.parametrize("preset", ["smoke", "small", "claims", "paper"])
def test_presets_are_valid(preset):
    config = config_of(preset)
    experiment.validate(config)
    assert config.experiment == "fourcastnet3"
    if preset == "paper":
        with pytest.raises(ConfigError, match=r"plan configs/fourcastnet3.py:paper"):
            experiment.run(config, None)


@pytest.mark.slow
def test_the_smoke_run_reports_and_splits_its_step(tmp_path, monkeypatch):
    pytest.importorskip("dinosaur")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    options = RunOptions(f"{CONFIG}:smoke", str(tmp_path / "run"))
    assert run_and_report(options) == 0
    found = json.loads((tmp_path / "run" / "results.json").read_text())
    assert len(found["claims"]) == 5 and len(found["checks"]) == 9
    split = [c for c in found["checks"] if "devices" in c["name"]]
    assert len(split) == 2 and all(c["pass"] for c in split)
    size = np.load(tmp_path / "run" / "stages" / "size.npz")
    expected = [n for n in (1, 2, 4) if n <= jax.device_count()]
    assert size["split_devices"].tolist() == expected
    assert (size["split_exchanged_bytes"][1:] > 0).all()
