"""Samplers against Gaussians, whose denoiser and flow are known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ensjax
from ensjax import reduce
from ensjax.emulate import diffusion
from ensjax.emulate.diffusion import rho_levels

MEAN = np.array([0.5, -1.0, 0.2], np.float32)
FACTOR = np.array([[1.0, 0, 0], [0.5, 0.6, 0], [-0.3, 0.4, 0.7]], np.float32)
COVARIANCE = FACTOR @ FACTOR.T
LEVELS = rho_levels(20, low=0.005, high=40.0)
MEMBERS = 4_000
HIGHEST = 80.0  # level that `rho_levels` begins with
# A path begins at the highest level, where one digit more or less of a float32 is this;
# with jax 0.12 the last ones depend on how many members a program holds.
DIGITS = dict(rtol=2e-6, atol=HIGHEST * np.finfo(np.float32).eps)


@pytest.fixture(scope="module")
def exact():
    return diffusion.GaussianDenoiser.from_covariance(MEAN, COVARIANCE)


def draw(denoiser, sampler, members=MEMBERS, **options):
    ids = jnp.arange(members)
    drawn = diffusion.sample(denoiser, ids, shape=(3,), sampler=sampler, **options)
    return np.asarray(drawn)


def check_gaussian(samples, mean, covariance):
    """Mean and covariance within 4.5 standard errors of their estimates."""
    count = len(samples)
    error = np.sqrt(np.diag(covariance) / count)
    np.testing.assert_array_less(np.abs(samples.mean(0) - mean), 4.5 * error)
    found = np.cov(samples.T)
    variances = np.diag(covariance)
    error = np.sqrt((np.outer(variances, variances) + covariance**2) / count)
    np.testing.assert_array_less(np.abs(found - covariance), 4.5 * error)


@pytest.mark.parametrize(
    "sampler",
    [
        diffusion.Heun(LEVELS),
        diffusion.DPMSolver2S(LEVELS),
        diffusion.Heun(
            rho_levels(80, low=0.005, high=40.0),
            diffusion.Churn(amount=4.0, low=0.05, high=10.0),
        ),
        diffusion.Euler(rho_levels(150, low=0.005, high=40.0)),
    ],
    ids=["heun", "dpm", "heun with churn", "euler"],
)
def test_samples_have_the_mean_and_covariance_of_the_gaussian(exact, sampler):
    check_gaussian(draw(exact, sampler), MEAN, COVARIANCE)


def test_euler_maruyama_ends_with_the_noise_of_its_last_time(exact):
    schedule = diffusion.VarianceExploding(base=50.0)
    sampler = diffusion.EulerMaruyama(schedule, num_steps=400, last_time=0.02)
    left = float(schedule.sigma(0.02))
    samples = draw(exact, sampler)
    check_gaussian(samples, MEAN, COVARIANCE + left**2 * np.eye(3))


def test_inflated_noise_widens_the_samples(exact):
    churn = diffusion.Churn(amount=8.0, low=0.05, inflation=1.1)
    wide = draw(exact, diffusion.Heun(LEVELS, churn))
    assert np.cov(wide.T).trace() > 1.05 * COVARIANCE.trace()


def test_few_steps_of_an_exact_jump_sample_and_of_a_denoiser_do_not(exact):
    """The consistency map of a Gaussian is the end of its flow from any level."""
    jump = GaussianJump(exact)
    sampler = diffusion.FewStep((40.0, 2.0, 0.5))
    check_gaussian(draw(jump, sampler), MEAN, COVARIANCE)
    assert np.cov(draw(exact, sampler).T).trace() < 0.8 * COVARIANCE.trace()


@jax.tree_util.register_pytree_node_class
class GaussianJump:
    def __init__(self, exact):
        self.exact = exact

    def tree_flatten(self):
        return (self.exact,), None

    @classmethod
    def tree_unflatten(cls, _, children):
        return cls(*children)

    def __call__(self, x, sigma, condition):
        return flow_end(self.exact, x, sigma)


def flow_end(exact, x, sigma):
    """Where the probability flow of the Gaussian takes x from level sigma to 0."""
    values, vectors = exact.eigenvalues, exact.eigenvectors
    along = vectors.T @ (x - exact.mean)
    return exact.mean + vectors @ (jnp.sqrt(values / (values + sigma**2)) * along)


@pytest.mark.parametrize(
    "kind, order",
    [(diffusion.Euler, 1), (diffusion.Heun, 2), (diffusion.DPMSolver2S, 2)],
)
def test_errors_fall_with_the_order_of_the_solver(exact, kind, order):
    high, key, errors = 3.0, jax.random.key(4), []
    first = high * jax.random.normal(jax.random.fold_in(key, 0), (3,))
    end = flow_end(exact, first, high)
    for count in (17, 33):
        sampler = kind(rho_levels(count, low=0.001, high=high, rho=3.0))
        found = jax.jit(lambda: sampler(lambda x, s: exact(x, s), key, (3,)))()  # noqa: B023
        errors.append(float(jnp.linalg.norm(found - end)))
    # The steps halve; float32 leaves about 1e-6 of the larger of the errors, 1e-3.
    assert np.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.35)


def test_a_heun_step_is_that_of_the_paper():
    """Algorithm 1, lines 4 to 8, by hand for D(x, s) = x / (1 + s^2)."""
    step = diffusion.Heun((2.0, 1.0)).step(
        lambda x, s: x / (1 + s**2), jnp.float32(3.0), 2.0, 1.0
    )
    slope = (3 - 3 / 5) / 2
    ahead = 3 - slope
    assert float(step) == pytest.approx(3 - (slope + (ahead - ahead / 2)) / 2, rel=1e-6)


def test_dpm_solver_is_exact_for_a_denoiser_that_is_constant_along_the_step():
    step = diffusion.DPMSolver2S((2.0, 1.0)).step(
        lambda x, s: jnp.float32(0.25), jnp.float32(3.0), 2.0, 0.5
    )
    assert float(step) == pytest.approx(0.25 + 0.25 * (3 - 0.25), rel=1e-6)


def test_the_first_members_of_many_are_those_of_few_in_any_block(exact):
    sampler = diffusion.Heun(rho_levels(6), diffusion.Churn(amount=2.0))
    many = draw(exact, sampler, members=37, block=None)
    few = draw(exact, sampler, members=5, block=2)
    np.testing.assert_allclose(few, many[:5], **DIGITS)
    alone = diffusion.sample(exact, jnp.array([3]), shape=(3,), sampler=sampler)
    np.testing.assert_allclose(alone[0], many[3], **DIGITS)
    assert not np.allclose(many, draw(exact, sampler, members=37, seed=1))


def test_one_device_and_eight_draw_the_same_members_without_talking(exact):
    sampler = diffusion.DPMSolver2S(rho_levels(6))
    one = ensjax.make_mesh(member=1, devices=jax.devices()[:1])
    np.testing.assert_allclose(
        draw(exact, sampler, members=13),
        draw(exact, sampler, members=13, mesh=one),
        **DIGITS,
    )


def test_cases_keep_their_members_on_every_mesh_and_in_every_block(exact):
    sampler = diffusion.Heun(rho_levels(5))
    conditions = jnp.linspace(-1, 1, 12).reshape(4, 3)
    options = dict(shape=(3,), sampler=sampler)
    ids = jnp.arange(6)
    mesh = ensjax.make_mesh(member=4, data=2)
    drawn = diffusion.sample_cases(
        exact, ids, conditions, mesh=mesh, case_block=1, **options
    )
    assert drawn.shape == (6, 4, 3)
    last = diffusion.sample_cases(exact, ids, conditions[3:], case_ids=[3], **options)
    np.testing.assert_allclose(last[:, 0], drawn[:, 3], rtol=3e-6, atol=3e-6)
    single = diffusion.sample(exact, ids, condition=conditions[2], case_id=2, **options)
    np.testing.assert_allclose(single, drawn[:, 2], rtol=3e-6, atol=3e-6)


def test_stacked_models_sample_what_each_does_alone(exact):
    other = diffusion.GaussianDenoiser.from_covariance(-MEAN, 0.5 * COVARIANCE)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), exact, other)
    sampler = diffusion.Heun(rho_levels(5))
    conditions = jnp.linspace(-1, 1, 12).reshape(2, 2, 3)
    ids = jnp.array([4, 0, 9])
    options = dict(shape=(3,), sampler=sampler)
    both = diffusion.sample_each(stacked, ids, conditions, member_block=1, **options)
    assert both.shape == (2, 3, 2, 3)
    for model, denoiser in enumerate((exact, other)):
        alone = diffusion.sample_cases(denoiser, ids, conditions[model], **options)
        np.testing.assert_allclose(both[model], alone, rtol=3e-6, atol=3e-6)


def test_members_that_never_exist_together_have_the_moments_of_those_that_do(exact):
    sampler = diffusion.Heun(rho_levels(6))
    member = diffusion.SampleCases(sampler, (3,))
    shared = (exact, jnp.zeros((1, 3)), jnp.zeros(1, jnp.int32), jnp.int32(0))
    states = {"moments": reduce.init_moments(jnp.zeros((1, 3)))}
    states = reduce.fold_members(
        member, jnp.arange(200), states, block=5, shared=shared
    )
    found = reduce.finish_moments(states["moments"])
    together = draw(exact, sampler, members=200)
    np.testing.assert_allclose(found[0][0], together.mean(0), rtol=1e-5, atol=1e-5)


def test_a_condition_that_is_overstated_moves_the_samples_by_its_weight(exact):
    """Guidance of a Gaussian's mean: D is linear in it, so that the mean moves so."""
    guided = diffusion.ClassifierFreeGuidance(exact, jnp.zeros(3), 2.5)
    shift = jnp.array([0.4, -0.2, 0.1])
    sampler = diffusion.Heun(rho_levels(6))
    many = draw(guided, sampler, members=16, condition=shift)
    more = draw(exact, sampler, members=16, condition=2.5 * shift)
    np.testing.assert_allclose(many, more, rtol=1e-4, atol=1e-4)


def observed(x0, sigma, data):
    """log p(data | noisy sample) of the first component seen with variance 0.25."""
    variance = jnp.diag(
        COVARIANCE
        - COVARIANCE @ jnp.linalg.solve(COVARIANCE + sigma**2 * jnp.eye(3), COVARIANCE)
    )[0]
    return -((x0[0] - data) ** 2) / (2 * (0.25 + variance))


def test_guidance_by_an_observation_samples_the_gaussian_posterior(exact):
    guided = diffusion.ObservationGuidance(exact, jnp.float32(1.5), observed)
    gain = COVARIANCE[:, 0] / (COVARIANCE[0, 0] + 0.25)
    mean = MEAN + gain * (1.5 - MEAN[0])
    covariance = COVARIANCE - np.outer(gain, COVARIANCE[0])
    check_gaussian(draw(guided, diffusion.Heun(LEVELS)), mean, covariance)


def test_samples_stay_finite_from_very_large_to_very_small_levels(exact):
    sampler = diffusion.Heun(rho_levels(12, low=1e-6, high=1e4))
    assert np.isfinite(draw(exact, sampler, members=64)).all()


def test_wrong_settings_are_refused_with_what_to_do(exact):
    with pytest.raises(ValueError, match="must fall"):
        diffusion.Heun((1.0, 2.0))
    with pytest.raises(ValueError, match="stay above 0"):
        diffusion.Euler((1.0, 0.0))
    with pytest.raises(ValueError, match="rho_levels"):
        diffusion.Heun([1.0, 0.5])
    with pytest.raises(ValueError, match="member_ids are integers"):
        draw_ids = jnp.ones(3)
        diffusion.sample(exact, draw_ids, shape=(3,), sampler=diffusion.Heun(LEVELS))
    with pytest.raises(TypeError, match="denoiser is called as"):
        diffusion.sample(3.0, jnp.arange(2), shape=(3,), sampler=diffusion.Heun(LEVELS))
    with pytest.raises(ValueError, match="case"):
        diffusion.sample_cases(
            exact,
            jnp.arange(2),
            jnp.float32(1),
            shape=(3,),
            sampler=diffusion.Heun(LEVELS),
        )
