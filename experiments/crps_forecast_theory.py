"""What `crps_forecast.py` computes of the losses themselves, without a network.

The spread that a loss asks for, of a target that is normal: M members are drawn from a
normal of deviation s about the right mean, and s is what the expected loss is least at.
"""

import numpy as np
from scipy import optimize, special, stats

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
    import jax

    from ensjax.train.kernel_crps import crps_of_weight

    points = stats.qmc.Sobol(num_members + 1, seed=0).random(num_draws)
    draws = special.ndtri(np.clip(points, 1e-9, 1 - 1e-9)).T.astype(np.float32)
    truth, members = draws[0], draws[1:]

    @jax.jit
    def loss(s):
        return crps_of_weight(s * members, truth, fair).mean()

    slope = jax.jit(jax.grad(loss))
    # Where the derivative is 0: the minimum itself is too flat for float32.
    return float(optimize.brentq(lambda s: float(slope(s)), 0.1, 2.0, xtol=1e-5))


def runaway_gradient(estimator: str) -> float:
    """Of member 2 of 2, far off, where member 1 is right."""
    import jax
    import jax.numpy as jnp

    from ensjax.train import kernel_crps

    members, truth = jnp.array([1.0, 9.0]), jnp.float32(1.0)
    slopes = jax.grad(lambda x: kernel_crps(x, truth, estimator=estimator))(members)
    return float(slopes[1])


def measure(config) -> dict[str, np.ndarray]:
    """Spreads `[size]` in closed form and as found, and gradients of the runaway."""
    found = {}
    for name, fair in (("standard", 0.0), ("almost_fair", ALPHA), ("fair", 1.0)):
        exact = [optimal_spread(size, fair) for size in SIZES]
        numeric = [numerical_spread(size, fair, config.optimum_draws) for size in SIZES]
        found[f"{name}_spread"] = np.array(exact)
        found[f"{name}_found"] = np.array(numeric)
    found["gradients"] = np.array(
        [runaway_gradient(x) for x in ("fair", "almost_fair")]
    )
    return found
