"""What `crps_forecast.py` computes of the losses themselves, without a network.

The spread that a loss asks for, of a target that is normal: M members are drawn from a
normal of deviation s about the right mean, and s is what the expected loss is least at.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize, special, stats

from ensjax.train import kernel_crps
from ensjax.train.kernel_crps import crps_of_weight

SIZES = (2, 4, 8)
ALPHA = 0.95


def optimal_spread(num_members: int, fair: float) -> float:
    """The best deviation of members, of that of the target, in closed form.

    The expected loss is sqrt(2 / pi) sqrt(s^2 + 1) - c s / sqrt(pi), with c of the pair
    term 1 - (1 - fair) / M; so s^2 = q / (1 - q), q = c^2 / 2.
    """
    q = (1 - (1 - fair) / num_members) ** 2 / 2
    return float(np.sqrt(q / (1 - q)))


def numerical_spread(num_members: int, fair: float, num_draws: int) -> float:
    """The same by minimising the mean of `kernel_crps` over quasi-random draws."""
    truth, members = _draws(num_members, num_draws)
    # Where the derivative is 0: the minimum itself is too flat for float32.
    return float(
        optimize.brentq(
            lambda s: float(_slope(s, members, truth, fair)), 0.1, 2.0, xtol=1e-5
        )
    )


@functools.lru_cache(maxsize=2)
def _draws(num_members, num_draws):
    """Normal truth `[draw]` and members `[member, draw]`."""
    points = stats.qmc.Sobol(num_members + 1, seed=0).random(num_draws)
    draws = special.ndtri(np.clip(points, 1e-9, 1 - 1e-9)).T.astype(np.float32)
    return jnp.asarray(draws[0]), jnp.asarray(draws[1:])


@jax.jit
def _slope(s, members, truth, fair):
    return jax.grad(lambda s: crps_of_weight(s * members, truth, fair).mean())(s)


def runaway_gradient(estimator: str) -> float:
    """Of member 2 of 2, far off, where member 1 is right."""
    members, truth = jnp.array([1.0, 9.0]), jnp.float32(1.0)
    slopes = jax.grad(lambda x: kernel_crps(x, truth, estimator=estimator))(members)
    return float(slopes[1])


def measure(config) -> dict[str, np.ndarray]:
    """Spreads `[size]` in closed form and as found, and gradients of the runaway."""
    found = {}
    kinds = {"standard": 0.0, "almost_fair": ALPHA, "fair": 1.0}
    for name in kinds:
        found |= {
            f"{name}_{part}": np.zeros(len(SIZES)) for part in ("spread", "found")
        }
    for place, size in enumerate(SIZES):  # one program and set of draws for each
        for name, fair in kinds.items():
            found[f"{name}_spread"][place] = optimal_spread(size, fair)
            numeric = numerical_spread(size, fair, config.optimum_draws)
            found[f"{name}_found"][place] = numeric
    found["gradients"] = np.array(
        [runaway_gradient(x) for x in ("fair", "almost_fair")]
    )
    return found
