"""Members of trained emulators: with noise inside, as a stream, and their density."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.stats import multivariate_normal

import ensjax
from ensjax import Ensemble, make_mesh, reduce, verification
from ensjax.emulate import diffusion, seeds
from ensjax.emulate.diffusion import rho_levels
from ensjax.mapping import mesh_program
from ensjax.reduce import stream
from ensjax.train import NoiseCrps, WhiteNoise

SITES, MEMBERS = 4, 5
NOISE = WhiteNoise(2)


def cases(count, tasks=(0.3, 0.6)):
    """Members of a case are its mean plus noise, whose size is that of the task."""
    rng = np.random.default_rng(0)
    middle = 0.8 * rng.normal(size=(count, 1, 1, SITES, 1))
    noise = rng.normal(size=(count, len(tasks), MEMBERS, SITES, 1))
    sizes = np.array(tasks)[:, None, None, None]
    return (middle + sizes * noise).astype(np.float32)


def generator(rngs, zero=True):
    network = ensjax.nn.ResidualGenerator(
        1,
        num_condition_channels=3,
        num_noise_channels=2,
        width=8,
        depth=1,
        kernel_size=(3,),
        rngs=rngs,
    )
    if not zero:
        shape = network.head.linear.kernel.shape
        network.head.linear.kernel[...] = 0.3 * jax.random.normal(rngs.params(), shape)
    return network


def denoiser(rngs):
    network = ensjax.nn.ResidualDenoiser(
        1, num_condition_channels=3, width=8, depth=1, kernel_size=(3,), rngs=rngs
    )
    shape = network.head.linear.kernel.shape
    network.head.linear.kernel[...] = 0.1 * jax.random.normal(rngs.params(), shape)
    return network


def emulators_of(make_model, parametrisation, num_models=1, mesh=None):
    ensemble = Ensemble.init(make_model, num_members=num_models, mesh=mesh)
    tasks = np.arange(num_models)
    return seeds.SeedsEmulators(ensemble, tasks, seeds.DrawSeeds(), parametrisation)


def unfinished_generators(num_models=2, mesh=None):
    make_model = functools.partial(generator, zero=False)
    return emulators_of(make_model, seeds.OneCall(NOISE), num_models, mesh)


def one_device():
    return make_mesh(member=1, devices=jax.devices()[:1])


GIVEN = cases(6).swapaxes(0, 1)[:, :, :2]  # [model, case, seed, site, channel]


@pytest.fixture(scope="module")
def drawn():
    """Eight members of every case, on all devices."""
    return np.asarray(unfinished_generators().sample(GIVEN, np.arange(8)))


def test_a_member_is_the_network_on_the_noise_of_its_id(drawn):
    emulators = unfinished_generators()
    assert drawn.shape == (2, 8, 6, SITES, 1)
    assert len(np.unique(drawn[0, :, 0, 0, 0])) == 8
    for model, member, case in ((0, 3, 2), (1, 7, 5)):
        key = ensjax.members.member_key(0, "sample", member)
        noise = NOISE(jax.random.fold_in(key, case), (SITES, 1))
        state = jax.tree.map(lambda x, m=model: x[m], emulators.ensemble.state)
        network = emulators.ensemble.graph.merge(state, train=False)
        condition = seeds.encode_seeds(jnp.asarray(GIVEN[model, case]))
        np.testing.assert_allclose(
            drawn[model, member, case], network(noise, condition), atol=1e-5
        )


def test_members_do_not_depend_on_devices_blocks_or_each_other(drawn):
    emulators = unfinished_generators(mesh=one_device())
    found = emulators.sample(GIVEN, np.array([5, 2]), member_block=1, case_block=3)
    np.testing.assert_allclose(found, drawn[:, [5, 2]], atol=1e-5)
    some = emulators.sample(GIVEN[:, 3:], np.array([5, 2]), case_ids=np.arange(3, 6))
    np.testing.assert_allclose(some, drawn[:, [5, 2], 3:], atol=1e-5)


def test_the_order_of_seeds_does_not_matter(drawn):
    emulators = unfinished_generators()
    found = emulators.sample(GIVEN[:, :, ::-1], np.arange(8))
    np.testing.assert_array_equal(found, drawn)


def test_samplers_are_for_denoisers_only():
    networks, sampler = unfinished_generators(), diffusion.Heun(rho_levels(3))
    with pytest.raises(ValueError, match="leave sampler out; got Heun"):
        networks.sample(GIVEN, np.arange(2), sampler=sampler)
    denoisers = emulators_of(denoiser, diffusion.EDM(), 2)
    with pytest.raises(ValueError, match="denoisers need a sampler"):
        denoisers.sample(GIVEN, np.arange(2))
    with pytest.raises(TypeError, match="no.* density|nor a density"):
        networks.log_likelihoods(GIVEN, np.zeros((2, 1, 6, SITES, 1)))
    with pytest.raises(TypeError, match="distil_seeds needs denoisers"):
        seeds.distil_seeds(networks, {"members": cases(8)}, levels=(1.0,), steps=1)
    with pytest.raises(ValueError, match="noise must be"):
        emulators = emulators_of(generator, seeds.OneCall(WhiteNoise(3)))
        emulators.sample(GIVEN[:1], np.arange(2))


def train(steps, num_members, mesh=None, axis=None):
    return seeds.train_generators(
        generator,
        {"members": cases(256)},
        steps=steps,
        loss=NoiseCrps(num_members, noise=NOISE, axis=axis),
        learning_rate=1e-2,
        ema_decay=0.9,
        mesh=mesh,
        fit_options=dict(progress=False),
    )


@pytest.mark.slow
@pytest.mark.parametrize("num_members", [2, 3, 4])
def test_a_stack_of_tasks_learns_the_spread_of_each(num_members):
    emulators, log = train(250, num_members)
    given = cases(64).swapaxes(0, 1)[:, :, :2]
    drawn = np.asarray(emulators.sample(given, np.arange(32)))
    # Given two seeds, the variance of another is v + 0.64 v / 2 / (0.64 + v / 2).
    v = np.array([0.3, 0.6]) ** 2
    exact = np.sqrt(v + 0.32 * v / (0.64 + v / 2))
    spread = drawn.std(axis=1, ddof=1).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(spread, exact, rtol=0.2)
    # The fair score of the exact Gaussian is sd / sqrt(pi); none is better.
    loss = np.asarray(log.metrics["loss"])[-10:].mean(axis=0)
    assert (loss > 0.93 * exact / np.sqrt(np.pi)).all()
    assert (loss < 1.15 * exact / np.sqrt(np.pi)).all()


@pytest.mark.slow
def test_training_is_the_same_when_members_are_split_over_devices():
    one, _ = train(3, 4, mesh=one_device())
    mesh = make_mesh(member=2, data=1, model=4)
    split, _ = train(3, 4, mesh=mesh, axis="model")
    for a, b in zip(
        *(jax.tree.leaves(e.ensemble.params) for e in (one, split)), strict=True
    ):
        # The largest weights are about 1; Adam turns rounding of 1e-7 into steps.
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=1e-4)


# Members as a stream


def states_of(truth, climate, max_members):
    """Mean, spread, quantiles, CRPS, rank and exceedances of one case."""
    return {
        "moments": reduce.init_moments(truth),
        "quantiles": reduce.init_quantiles(truth, max_members=max_members),
        "crps": reduce.init_crps(truth, max_members=max_members),
        "ranks": reduce.init_ranks(truth),
        "exceedances": reduce.init_exceedances(climate),
    }
