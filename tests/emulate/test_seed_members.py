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


def one_device():
    return make_mesh(member=1, devices=jax.devices()[:1])


@functools.cache
def unfinished_generators(num_devices=8):
    """Two networks whose members differ, as they do after some training."""
    mesh = make_mesh(member=num_devices, devices=jax.devices()[:num_devices])
    make_model = functools.partial(generator, zero=False)
    return emulators_of(make_model, seeds.OneCall(NOISE), 2, mesh)


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
    emulators = unfinished_generators(num_devices=1)
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
    return seeds.train_seeds(
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

RING = 40
PROBABILITIES = jnp.array([0.05, 0.5, 0.95])
THRESHOLDS = jnp.array([-0.5, 0.5])


def one_case(make_model=denoiser, parametrisation=None):
    """One model and one case of Lorenz-96's ring, with its truth `[1, 1, 40, 1]`."""
    parametrisation = parametrisation or diffusion.EDM()
    rng = np.random.default_rng(1)
    given = rng.normal(size=(1, 1, 2, RING, 1)).astype(np.float32)
    truth = jnp.asarray(rng.normal(size=(1, 1, RING, 1)).astype(np.float32))
    mesh = one_device()
    return emulators_of(make_model, parametrisation, 1, mesh), given, truth


def empty_states(truth, max_members=16_384):
    """For mean, spread, quantiles, CRPS, rank and exceedances."""
    options = dict(max_members=max_members)
    return {
        "moments": reduce.init_moments(truth),
        "quantiles": reduce.init_quantiles(truth, **options),
        "crps": reduce.init_crps(truth, **options),
        "ranks": reduce.init_ranks(truth),
        "exceedances": reduce.init_exceedances(truth, THRESHOLDS),
    }


def expect(states, members, truth, exact=True):
    """The states hold what numpy finds of `members` `[member, *truth]`."""
    members = np.asarray(members, np.float64)
    truth = np.asarray(truth)
    mean, variance = reduce.finish_moments(states["moments"], ddof=1)
    np.testing.assert_allclose(mean, members.mean(0), atol=1e-5)
    np.testing.assert_allclose(variance, members.var(0, ddof=1), rtol=1e-4)
    found = reduce.finish_quantiles(states["quantiles"], PROBABILITIES)
    if exact:
        expected = np.quantile(members, PROBABILITIES, axis=0)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    else:
        rank = (members[None] < np.asarray(found)[:, None]).mean(axis=1)
        wanted = np.asarray(PROBABILITIES).reshape(3, *(1,) * truth.ndim)
        assert np.abs(rank - wanted).max() < 0.0051
    ordered = np.sort(members, axis=0)
    count = len(members)
    place = 2 * np.arange(1, count + 1) - count - 1
    pairs = np.tensordot(place, ordered, axes=1)
    crps = np.abs(members - truth).mean(0) - pairs / count**2
    np.testing.assert_allclose(
        reduce.finish_crps(states["crps"]), crps, atol=1e-5 if exact else 1e-3
    )
    np.testing.assert_array_equal(states["ranks"].below, (members < truth).sum(0))
    above = [(members > t).sum(0) for t in np.asarray(THRESHOLDS)]
    np.testing.assert_array_equal(states["exceedances"].above, above)


def test_the_stream_of_members_is_those_that_sample_makes():
    emulators, given, truth = one_case()
    sampler = diffusion.Heun(rho_levels(3, low=0.1, high=10.0))
    options = dict(sampler=sampler, seed=3)
    ids = np.arange(512)
    drawn = emulators.sample(given, ids, **options)  # [model, member, case, ...]
    found = emulators.reduce(given, ids, empty_states(truth), block=64, **options)
    expect(found, drawn.swapaxes(0, 1), truth)
    # In two calls, in another block.
    found = empty_states(truth)
    for part in (ids[:300], ids[300:]):
        found = emulators.reduce(given, part, found, block=50, **options)
    expect(found, drawn.swapaxes(0, 1), truth)


@pytest.mark.slow
def test_the_stream_is_the_same_on_eight_devices_and_for_several_models():
    emulators = unfinished_generators()
    assert emulators.ensemble.mesh.shape["member"] == 8
    truth = jnp.asarray(GIVEN[:, :, 0])
    drawn = emulators.sample(GIVEN, np.arange(203))
    found = emulators.reduce(GIVEN, np.arange(203), empty_states(truth), block=10)
    expect(found, drawn.swapaxes(0, 1), truth)


@pytest.mark.slow
def test_16384_members_of_a_case_are_scored_as_a_stream():
    make_model = functools.partial(generator, zero=False)
    emulators, given, truth = one_case(make_model, seeds.OneCall(NOISE))
    ids = np.arange(16_384)
    found = emulators.reduce(given, ids, empty_states(truth), block=256)
    drawn = emulators.sample(given, ids, member_block=256)
    expect(found, drawn.swapaxes(0, 1), truth, exact=False)
    metric = verification.crps("fair")
    states = verification.member_states([metric], truth, max_members=16_384)
    states = emulators.reduce(given, ids, states, block=256)
    sums = metric.sums_of_reduced(states, truth)
    exact = metric(drawn.swapaxes(0, 1), truth)
    np.testing.assert_allclose(metric.finish(sums), exact, rtol=2e-3)


# Densities

MEAN = np.array([0.5, -1.0, 0.2], np.float32)
FACTOR = np.array([[1.0, 0, 0], [0.5, 0.6, 0], [-0.3, 0.4, 0.7]], np.float32)
COVARIANCES = (FACTOR @ FACTOR.T, np.diag([0.5, 1.0, 2.0]).astype(np.float32))


class ExactNetwork(nnx.Module):
    """What a network must answer for `EDM` to be the denoiser of a Gaussian.

    Its mean is `MEAN` and that of the seeds.
    """

    def __init__(self, rngs):
        values, vectors = jnp.linalg.eigh(COVARIANCES[0])
        del rngs
        self.values, self.vectors = nnx.Param(values), nnx.Param(vectors)

    def __call__(self, x, noise, condition):
        sigma = jnp.exp(4 * noise)
        exact = diffusion.GaussianDenoiser(
            jnp.asarray(MEAN), self.values[...], self.vectors[...]
        )
        total = jnp.sqrt(sigma**2 + 1)
        place = x[:, 0] * total
        x0 = exact(place, sigma, condition[:, 0])
        return ((x0 - place / total**2) * total / sigma)[:, None]


@pytest.fixture(scope="module")
def exact():
    """Emulators of two Gaussians; their seeds; members of three cases each."""
    emulators = emulators_of(ExactNetwork, diffusion.EDM(), 2)
    values, vectors = zip(*(jnp.linalg.eigh(c) for c in COVARIANCES), strict=True)
    params = emulators.ensemble.params
    params["values"][...] = jnp.stack(values)
    params["vectors"][...] = jnp.stack(vectors)
    state = {**emulators.ensemble.state, "params": params}
    ensemble = dataclasses.replace(emulators.ensemble, state=state)
    rng = np.random.default_rng(0)
    given = rng.normal(size=(2, 3, 2, 3, 1)).astype(np.float32)
    x = rng.normal(size=(2, 4, 3, 3, 1)).astype(np.float32)
    return dataclasses.replace(emulators, ensemble=ensemble), given, x


def density(given, x, low):
    """`[model, member, case]` in closed form."""
    means = MEAN + given.mean(axis=2)[..., 0]  # [model, case, site]
    found = np.empty(x.shape[:3])
    for m, c in np.ndindex(2, 3):
        covariance = COVARIANCES[m] + low**2 * np.eye(3)
        normal = multivariate_normal(means[m, c], covariance)
        found[m, :, c] = normal.logpdf(x[m, :, c, :, 0])
    return found


def test_a_network_that_is_exact_has_the_gaussian_density(exact):
    emulators, given, x = exact
    likelihood = diffusion.FlowLikelihood(
        low=0.01, high=20_000.0, num_steps=256, num_probes=None
    )
    found = emulators.log_likelihoods(given, x, likelihood=likelihood)
    assert found.shape == (2, 4, 3)
    # As in the tests of `log_likelihoods`; means are up to three times as large.
    np.testing.assert_allclose(found, density(given, x, 0.01), atol=2e-3)


def test_probes_differ_by_member_and_case_and_blocks_change_nothing(exact):
    emulators, given, x = exact
    given = np.repeat(given[:, :1], 3, axis=1)
    x = np.repeat(np.repeat(x[:, :1, :1], 4, axis=1), 3, axis=2)
    likelihood = diffusion.FlowLikelihood(low=0.01, high=2e4, num_steps=64)
    found = emulators.log_likelihoods(given, x, likelihood=likelihood)
    # Signs in three dimensions, and their opposites: four values at most.
    assert all(len(np.unique(row)) > 1 for row in (found[0, 0], found[0, :, 0]))
    error = np.asarray(found)[0].std() / np.sqrt(12)
    exact_value = density(given, x, 0.01)[0, 0, 0]
    assert np.asarray(found)[0].mean() == pytest.approx(exact_value, abs=4 * error)
    options = dict(likelihood=likelihood, member_block=2, case_block=1)
    again = emulators.log_likelihoods(given, x, **options)
    np.testing.assert_allclose(again, found, atol=1e-3)


def test_bits_per_dimension_of_a_normal_distribution():
    """Its entropy, log2 sqrt(2 pi e) = 2.047 bits; twice as wide, one bit more."""
    mean_density = -3 / 2 * np.log(2 * np.pi * np.e)
    found = diffusion.bits_per_dimension(mean_density, 3)
    assert float(found) == pytest.approx(2.0470956, rel=1e-6)
    wide = diffusion.bits_per_dimension(mean_density, 3, sd=2.0)
    assert float(wide) == pytest.approx(3.0470956, rel=1e-6)
    with pytest.raises(ValueError, match="size must be at least 1"):
        diffusion.bits_per_dimension(0.0, 0)


def test_members_and_seeds_that_do_not_belong_together_are_refused(exact):
    emulators, given, x = exact
    with pytest.raises(ValueError, match=r"x must be \[model, member, case"):
        emulators.log_likelihoods(given, x[:, :, :2])
    with pytest.raises(ValueError, match="seeds must be"):
        emulators.log_likelihoods(given[:, :, :1], x)
