"""Stages of training: compiled once a length, handed over, resumed, each by itself."""

import dataclasses
import math
import re

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from ensjax import Ensemble, make_mesh
from ensjax.train import (
    NoiseCrps,
    RolloutLoss,
    Stage,
    StageAdam,
    WhiteNoise,
    fit,
    stage_rate,
    train_curriculum,
)
from ensjax.train.curriculum import stage_seed

SITES = 3
SCORE = NoiseCrps(2, noise=WhiteNoise(1))
# Adam with a large eps: with a small one rounding of tiny gradients is amplified.
ADAM = StageAdam(eps=1e-3, max_norm=1.0, weight_decay=0.1)
STAGES = (
    Stage(6, 1e-2, RolloutLoss(1, SCORE), decay="cosine", warmup_steps=2),
    Stage(4, 5e-3, RolloutLoss(2, SCORE), decay="halving", halving_steps=2),
    Stage(5, (2e-3, 1e-3), RolloutLoss(2, SCORE)),
)


class Emulator(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(2, 1, rngs=rngs)

    def __call__(self, noise, state):
        return state + self.linear(jax.numpy.concatenate([noise, state], axis=-1))


def windows():
    rng = np.random.default_rng(0)
    return rng.normal(size=(16, 4, SITES, 1)).astype(np.float32)


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(member=1, devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def emulators(mesh):
    return Ensemble.init(Emulator, num_members=2, mesh=mesh)


def train(ensemble, stages=STAGES, **options):
    options = dict(make_tx=ADAM, batch_size=8, progress=False) | options
    return train_curriculum(ensemble, windows(), stages, **options)


def weights(ensemble):
    leaves = jax.tree.leaves(ensemble.params)
    return np.concatenate([np.asarray(x).reshape(len(x), -1) for x in leaves], axis=1)


@pytest.fixture(scope="module")
def together(emulators):
    return weights(train(emulators)[0])


def test_one_program_for_every_length_of_rollout(emulators, caplog):
    """Three stages of two lengths; their rates and schedules are data."""
    with jax.log_compiles():
        # Batches of another size, so that no program is there yet.
        train(emulators, batch_size=4)
    found = re.findall(r"Compiling [^ ]*TrainSteps", caplog.text)
    assert len(found) == 2


def test_checkpoints_trained_as_a_stack_are_each_trained_alone(emulators, together):
    for place in range(2):
        stages = (
            *STAGES[:2],
            dataclasses.replace(
                STAGES[2], learning_rate=STAGES[2].learning_rate[place]
            ),
        )
        alone, _ = train(emulators.select([place]), stages)
        np.testing.assert_allclose(weights(alone)[0], together[place], atol=1e-6)


def test_stages_hand_over_weights_and_nothing_else(emulators, together):
    """Each stage is a run of its own, from the weights of the one before."""
    ensemble = emulators
    for number, stage in enumerate(STAGES):
        ensemble, _ = fit(
            ensemble,
            windows(),
            loss=stage.loss,
            make_tx=ADAM,
            hyper=stage.hyper(),
            steps=stage.steps,
            batch_size=8,
            seed=stage_seed(0, number),
            progress=False,
        )
    np.testing.assert_allclose(weights(ensemble), together, atol=1e-6)


def test_it_goes_on_where_it_was_stopped(emulators, together, tmp_path):
    class Stop(Exception):
        pass

    class Logger:
        def __init__(self, last):
            self.last = last

        def write(self, step, metrics):
            self.last -= 1
            if self.last < 0:
                raise Stop

    options = dict(
        checkpoint_dir=tmp_path, steps_per_call=2, log_every_steps=2, save_every_steps=2
    )
    with pytest.raises(Stop):  # in the second stage
        train(emulators, logger=Logger(4), **options)
    again, logs = train(emulators, **options)
    np.testing.assert_allclose(weights(again), together, atol=1e-6)
    assert [log.resumed_step for log in logs] == [6, 2, 0]
    # Once more: nothing is left to do.
    _, logs = train(emulators, **options)
    assert [log.resumed_step for log in logs] == [6, 4, 5]


def test_rates_rise_and_fall_as_published():
    stage = Stage(300, 1e-3, RolloutLoss(1, SCORE), decay="cosine", warmup_steps=100)
    schedule = optax.cosine_decay_schedule(1e-3, 200)
    hyper = stage.hyper()
    assert float(stage_rate(0, hyper)) == pytest.approx(1e-5)
    assert float(stage_rate(49, hyper)) == pytest.approx(5e-4)
    for step in (100, 150, 250, 299):
        expected = float(schedule(step - 100))
        assert float(stage_rate(step, hyper)) == pytest.approx(expected, abs=1e-9)
    halves = Stage(100, 4e-4, RolloutLoss(1, SCORE), decay="halving", halving_steps=30)
    for step, factor in ((0, 1), (29, 1), (30, 0.5), (65, 0.25), (99, 0.125)):
        found = float(stage_rate(step, halves.hyper()))
        assert found == pytest.approx(4e-4 * factor)
    constant = Stage(10, 1e-6, RolloutLoss(1, SCORE)).hyper()
    assert float(stage_rate(9, constant)) == pytest.approx(1e-6)
    assert math.isclose(float(stage_rate(10**5, constant)), 1e-6, rel_tol=1e-6)


def test_stages_that_do_not_fit_are_refused(emulators):
    with pytest.raises(ValueError, match="fewer of them to warm up"):
        Stage(3, 1e-3, RolloutLoss(1, SCORE), warmup_steps=3)
    with pytest.raises(ValueError, match="decay must be one of"):
        Stage(3, 1e-3, RolloutLoss(1, SCORE), decay="linear")
    with pytest.raises(ValueError, match="halving_steps belong to"):
        Stage(3, 1e-3, RolloutLoss(1, SCORE), decay="halving")
    for steps in (0, -5):
        with pytest.raises(ValueError, match=f"halving_steps .* least 1; got {steps}"):
            Stage(3, 1e-3, RolloutLoss(1, SCORE), decay="halving", halving_steps=steps)
    with pytest.raises(ValueError, match="rates are positive"):
        Stage(3, 0.0, RolloutLoss(1, SCORE))
    with pytest.raises(ValueError, match="at least one stage"):
        train(emulators, ())
    with pytest.raises(ValueError, match="stage 1: a rollout of 4 steps needs windows"):
        train(emulators, (STAGES[0], Stage(3, 1e-3, RolloutLoss(4, SCORE))))
    with pytest.raises(ValueError, match="stage 0 has no data"):
        train_curriculum(emulators, None, STAGES)
