"""Noise levels, schedules, parametrisations and losses, against the papers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ensjax.emulate import diffusion


def test_rho_levels_are_those_of_the_paper():
    levels = diffusion.rho_levels(18)
    i = np.arange(18)
    by_hand = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(levels, by_hand, rtol=1e-12)
    assert levels[0] == 80.0 and levels[-1] == 0.002


def test_the_ve_schedule_is_the_integral_of_its_diffusion():
    schedule = diffusion.VarianceExploding(base=25.0)
    times = np.linspace(0, 0.7, 20_001)
    squares = 25.0 ** (2 * times)
    integral = np.sum((squares[1:] + squares[:-1]) / 2 * np.diff(times))
    assert float(schedule.sigma(0.7)) ** 2 == pytest.approx(integral, rel=1e-5)
    for time in (1e-6, 0.3, 1.0):  # also where sigma^2 is 1e-6
        assert float(schedule.time(schedule.sigma(time))) == pytest.approx(
            time, rel=1e-5
        )
    assert float(schedule.diffusion(0.5)) == pytest.approx(5.0, rel=1e-6)
    assert schedule.levels(3)[0] == pytest.approx(float(schedule.sigma(1.0)), rel=1e-6)


def test_training_noise_has_its_distribution():
    keys = jax.random.split(jax.random.key(0), 20_000)
    logs = np.log(jax.vmap(diffusion.LogNormalNoise(-1.2, 1.2))(keys))
    assert logs.mean() == pytest.approx(-1.2, abs=4 * 1.2 / np.sqrt(20_000))
    assert logs.std() == pytest.approx(1.2, rel=0.03)
    roots = np.asarray(jax.vmap(diffusion.RhoNoise())(keys)) ** (1 / 7)
    low, high = 0.02 ** (1 / 7), 88 ** (1 / 7)
    assert roots.min() >= low * 0.9999 and roots.max() <= high * 1.0001
    np.testing.assert_allclose(
        np.quantile(roots, [0.25, 0.5, 0.75]),
        low + np.array([0.25, 0.5, 0.75]) * (high - low),
        rtol=0.02,
    )
    found = jax.vmap(diffusion.LevelNoise((2.0, 1.0, 0.5)))(keys)
    values, counts = np.unique(found, return_counts=True)
    assert values.tolist() == [0.5, 1.0, 2.0] and counts.min() > 6_300
    times = diffusion.VarianceExploding().time(
        jax.vmap(diffusion.UniformTimeNoise())(keys)
    )
    assert float(times.mean()) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("sigma", [0.01, 1.0, 50.0])
def test_edm_makes_input_output_and_target_of_unit_variance(sigma):
    """With data of standard deviation 0.5, and the network's ideal output."""
    edm = diffusion.EDM(sigma_data=0.5)
    key, noise_key = jax.random.split(jax.random.key(1))
    x0 = 0.5 * jax.random.normal(key, (50_000,))
    x = x0 + sigma * jax.random.normal(noise_key, (50_000,))
    seen = {}

    def network(x, noise, condition):
        seen.update(x=x, noise=noise, condition=condition)
        return jnp.zeros_like(x)

    def ones(x, noise, condition):
        return jnp.ones_like(x)

    skip = edm.denoise(network, x, jnp.float32(sigma), "c")
    out = edm.denoise(ones, x, jnp.float32(sigma), "c") - skip
    assert float(seen["x"].std()) == pytest.approx(1, abs=0.02)
    assert float(seen["noise"]) == pytest.approx(np.log(sigma) / 4, rel=1e-5)
    assert seen["condition"] == "c"
    target = (x0 - skip) / out
    assert float(target.std()) == pytest.approx(1, abs=0.02)
    assert float(edm.weight(sigma) * out[0] ** 2) == pytest.approx(1, rel=1e-3)


def test_the_ve_loss_is_the_score_loss_of_the_paper():
    """E |s score + Z|^2 with score = F / s: the squared error of D, weighted."""
    ve = diffusion.VE()
    x0, noise = jnp.array([0.3, -0.7]), jnp.array([1.2, 0.4])
    sigma = jnp.float32(2.5)

    def network(x, level, condition):
        return 0.1 * x + level

    def denoise(x, sigma):
        return ve.denoise(network, x, sigma, None)

    found = diffusion.denoising_loss(denoise, x0, sigma, noise, weight=ve.weight(sigma))
    scaled = network(x0 + sigma * noise, jnp.log(sigma / 2), None)
    assert float(found) == pytest.approx(
        float(jnp.mean((scaled + noise) ** 2)), rel=1e-5
    )


def test_the_exact_denoiser_has_the_smallest_loss():
    """Mean loss of D of N(0, 1): s^2 / (1 + s^2), weighted 1 + 1 / s^2 it is 1."""
    edm = diffusion.EDM()

    class Network:
        def __init__(self, gain):
            self.gain = gain

        def __call__(self, x, noise, condition):
            return self.gain * x

    loss = diffusion.DenoisingLoss(edm, diffusion.LogNormalNoise())
    x0 = jax.random.normal(jax.random.key(0), (20_000, 2))
    # D is c_skip x for the standard normal, so that the best network is 0.
    values = [
        float(loss(Network(gain), (x0, None), jax.random.key(1)))
        for gain in (-0.1, 0.0, 0.1)
    ]
    assert values[1] == pytest.approx(1.0, abs=0.02)
    assert values[1] < min(values[0], values[2])


class Exact:
    """A parametrisation whose denoiser errs by 1 in one row, and is exact elsewhere."""

    def __init__(self, row):
        self.row = row

    def denoise(self, network, x, sigma, condition):
        return condition.at[self.row].add(1.0)

    def weight(self, sigma):
        return 1 + 1 / sigma**2


WEIGHTS = (0.5, 2.0, 1.0, 4.5)  # of rows: of mean 2


def test_a_place_counts_as_much_as_its_weight():
    x0, key = jax.random.normal(jax.random.key(0), (4, 3, 2)), jax.random.key(1)
    noise = diffusion.LevelNoise((2.0,))
    for row in (0, 3):
        loss = diffusion.DenoisingLoss(Exact(row), noise, WEIGHTS)
        # An error of 1 in a quarter of all places, and 1 + 1 / sigma^2 = 1.25.
        wanted = 1.25 * WEIGHTS[row] / 2 / 4
        assert float(loss.of_one(None, key, x0, x0)) == pytest.approx(wanted, rel=1e-6)
        places = tuple((w,) * 3 for w in WEIGHTS)
        loss = diffusion.DenoisingLoss(Exact(row), noise, places)
        assert float(loss.of_one(None, key, x0, x0)) == pytest.approx(wanted, rel=1e-6)


def test_equal_weights_are_none_bit_for_bit():
    x0 = jax.random.normal(jax.random.key(0), (3, 5, 7, 2))
    values = []
    for weights in (None, (1.0,) * 5, (0.3,) * 5):
        loss = diffusion.DenoisingLoss(
            diffusion.EDM(), diffusion.LogNormalNoise(), weights
        )
        values.append(
            jax.jit(
                jax.value_and_grad(
                    lambda gain, loss=loss: loss(
                        lambda x, noise, condition: gain * x * jnp.cos(noise),
                        (x0, None),
                        jax.random.key(1),
                    )
                )
            )(0.7)
        )
    for other in values[1:]:
        np.testing.assert_array_equal(other, values[0])


@pytest.mark.parametrize(
    "weights, words",
    [
        ((1.0,) * 4, r"first axes, of samples .* = \(3, 2, 1\); got shape \(4,\)"),
        (((1.0, 1.0, 1.0),) * 3, r"got shape \(3, 3\)"),
        (((((1.0,),)),) * 3, "got shape"),
        ((1.0, -1.0, 1.0), "at least 0"),
        ((1.0, float("nan"), 1.0), "finite"),
        ((0.0, 0.0, 0.0), "not all 0"),
    ],
)
def test_wrong_weights_of_places_are_refused(weights, words):
    loss = diffusion.DenoisingLoss(Exact(0), diffusion.LogNormalNoise(), weights)
    x0 = jnp.ones((3, 2, 1))
    with pytest.raises(ValueError, match=words):
        loss.of_one(None, jax.random.key(0), x0, x0)


def test_weights_of_places_are_a_tuple_which_can_be_hashed():
    with pytest.raises(TypeError, match="is a tuple .* got ndarray"):
        diffusion.DenoisingLoss(diffusion.EDM(), diffusion.LogNormalNoise(), np.ones(3))


def test_wrong_noise_is_refused():
    with pytest.raises(ValueError, match="low > 0 to high"):
        diffusion.rho_levels(5, low=0.0)
    with pytest.raises(ValueError, match="at least 2 levels"):
        diffusion.rho_levels(1)
    with pytest.raises(ValueError, match="base must be above 1"):
        diffusion.VarianceExploding(base=1.0)
    with pytest.raises(ValueError, match="sigma_data"):
        diffusion.EDM(sigma_data=0.0)
    with pytest.raises(ValueError, match="amount"):
        diffusion.Churn(amount=-1.0)
