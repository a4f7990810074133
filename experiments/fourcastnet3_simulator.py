"""The simulator's own ensemble for `fourcastnet3.py`, which knows what a network knows.

Of a start only the lowest temperature and the surface pressure are seen. A member takes
the rest from a state of the climate and moves it by what regression says of the
difference in what is seen, order by order (the analysis of an ensemble Kalman filter
whose ensemble is the climate):

    hidden = hidden_k + K (seen - seen_k),   K = cov(hidden, seen) (cov(seen) + r)^-1

Members have the spread that the regression leaves open. The simulator is imperfect: the
profile that its temperature relaxes to has another contrast, its winds another friction
than the truth's, and its climate is its own. One with the truth's equations, which no
real simulator has, stands beside it.
"""

import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.emulate.trajectories import climate_states, forecast, run_trajectories
from ensjax.experiment.fields import load_beside
from ensjax.mesh import fetch, make_mesh

base = load_beside(__file__, "spherical_noise_scores")
training = base.training

# Runs of the climate have numbers from here on: others than those of the archive.
_FIRST_RUN = 1_000
# Of the imperfect simulator: the truth has 60 K and 1 day.
FLAWS = dict(contrast_kelvin=54.0, friction_days=1.25)
FIELDS = ("vorticity", "divergence", "temperature_variation", "log_surface_pressure")


def imperfect_of(config):
    """The simulator with other numbers in its equations than the truth's."""
    return dataclasses.replace(training.data.system_of(config), **FLAWS)


def measure(config, archive, system) -> dict[str, np.ndarray]:
    """Forecasts of the test's starts.

    Args:
        config: of the run.
        archive: of `simulate`.
        system: the simulator, on the truth's grid.

    Returns:
        What `score_members` gives, all leads; `rate`, days of a member that are
        simulated in a second, without compilation; and `climate_crps` `[lead,
        variable]`, fair, of as many states of the climate in the place of members.
    """
    simulator = config.simulator
    starts, truth = training.data.test_starts(config, archive)
    states = analyses(config, archive, system, climate(config, system), starts)
    leads = [system.steps_per_day * day for day in config.test.lead_days]
    ids = np.arange(len(starts) * simulator.num_members)
    # Two calls of one program: the first one compiles. An odd one comes twice.
    half = -(-len(ids) // 2)
    parts, seconds = [], 0.0
    for rows in (ids[:half], ids[len(ids) - half :]):
        start = time.perf_counter()
        parts.append(_forecast(config, system, leads, states, rows))
        seconds = time.perf_counter() - start
    values = np.concatenate([parts[0], parts[1][2 * half - len(ids) :]])
    values = np.moveaxis(values, 2, -1)  # [id, lead, lat, lon, variable]
    values = (values - archive["mean"][:, None]) / archive["sd"]
    values = values.reshape(len(starts), simulator.num_members, *values.shape[1:])
    members = np.moveaxis(values, -1, 3).swapaxes(0, 1).astype(np.float32)
    found = base.score_members(config, members, np.moveaxis(truth, -1, 2))
    rate = half * config.test.lead_days[-1] / seconds
    return found | {
        "rate": np.float64(rate),
        "climate_crps": climate_crps(config, archive, truth),
    }


def climate_crps(config, archive, truth) -> np.ndarray:
    """Fair CRPS of days of the training runs, `[lead, variable]`: no skill at all.

    Args:
        config: of the run.
        archive: of `simulate`.
        truth: `[case, lead, lat, lon, variable]`.
    """
    days = archive["train"].reshape(-1, *truth.shape[2:])
    rng = np.random.default_rng(config.seed)
    count = config.simulator.num_members
    own = np.stack([rng.choice(len(days), count, replace=False) for _ in truth])
    members = np.moveaxis(days[own], -1, 2).swapaxes(0, 1)[:, :, None]
    members = np.repeat(members, truth.shape[1], axis=2)
    return base.score_members(config, members, np.moveaxis(truth, -1, 2))["crps"]


@dataclasses.dataclass(frozen=True)
class _Forecast:
    system: object
    lead_steps: tuple[int, ...]

    def __call__(self, key, state):
        return forecast(self.system, state, self.lead_steps)


def _forecast(config, system, leads, states, rows):
    found = run_trajectories(
        _Forecast(system, tuple(leads)),
        rows,
        seed=config.seed,
        stacked=(jax.tree.map(lambda x: x[rows], states),),
        # The devices of the networks, with whose rate this one is compared.
        mesh=make_mesh(**config.mesh.to_dict()),
    )
    return fetch(found)


def climate(config, system):
    """States of a simulator's climate, leaves `[state, ...]`, NumPy."""
    data, simulator = config.data, config.simulator
    states = climate_states(
        system,
        _FIRST_RUN + np.arange(simulator.num_runs),
        spin_up_steps=data.spin_up_days * system.steps_per_day,
        num_states=simulator.num_states,
        gap_steps=simulator.gap_days * system.steps_per_day,
        seed=config.seed,
    )
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), fetch(states))


def analyses(config, archive, system, states, starts):
    """States of the members of every start, leaves `[case * member, ...]`."""
    num_members = config.simulator.num_members
    count = len(states.vorticity)
    rng = np.random.default_rng(config.seed)
    order = [rng.permutation(count) for _ in starts]
    chosen = np.concatenate([np.resize(own, num_members) for own in order])
    fields = starts * archive["sd"] + archive["mean"][:, None]
    fields = np.repeat(np.moveaxis(fields, -1, 1), num_members, axis=0)
    before = jax.tree.map(lambda x: x[chosen], states)
    after = fetch(jax.jit(jax.vmap(system.insert))(before, jnp.asarray(fields)))
    waves, before, waves_after = map(stack_fields, (states, before, after))
    moved = np.empty_like(waves_after, dtype=np.float64)
    # Regression is of the other runs: what it leaves open of its own states is too
    # little, and members made of them would lie too close together.
    run_of = np.arange(count) // config.simulator.num_states
    for run in np.unique(run_of[chosen]):
        gains = fit_gains(
            waves[run_of != run],
            ridge=config.simulator.ridge,
            last_degree=config.last_degree,
        )
        rows = run_of[chosen] == run
        moved[rows] = move_hidden(gains, before[rows], waves_after[rows])
    return unstack_fields(after, moved)


# Waves of all fields, and regression among them


def stack_fields(states) -> np.ndarray:
    """Waves `[state, field, m, l]`: every level of the four fields, in this order.

    The two that are seen, lowest temperature and pressure, are the last ones.
    """
    return np.concatenate([np.asarray(getattr(states, n)) for n in FIELDS], axis=1)


def unstack_fields(states, waves):
    """`states` with these waves."""
    sizes = [getattr(states, name).shape[1] for name in FIELDS]
    parts = np.split(waves, np.cumsum(sizes)[:-1], axis=1)
    return dataclasses.replace(
        states, **{n: part.astype(np.float32) for n, part in zip(FIELDS, parts)}
    )


def of_order(waves, order) -> np.ndarray:
    """The waves of one order as complex numbers, `[state, field * degree]`.

    dinosaur keeps the cosine of order m in row 2 m - 1 and its sine in row 2 m. A turn
    of the sphere multiplies a - i b by a number of modulus 1, the same for all fields.
    """
    kept = waves[..., order:]
    if order == 0:
        own = kept[..., 0, :].astype(complex)
    else:
        own = kept[..., 2 * order - 1, :] - 1j * kept[..., 2 * order, :]
    return own.reshape(len(own), -1)


def mirrored(waves) -> np.ndarray:
    """The states in a mirror at the equator, which are as likely.

    A wave of degree l and order m is even if l + m is; the first third of the fields of
    all levels, vorticity, changes its sign besides.
    """
    num_levels = (waves.shape[1] - 1) // 3
    rows, degrees = waves.shape[-2:]
    order = (np.arange(rows) + 1) // 2
    sign = (-1.0) ** (order[:, None] + np.arange(degrees))
    turned = waves * sign
    turned[:, :num_levels] *= -1
    return turned


def fit_gains(waves, *, ridge, last_degree) -> list[np.ndarray]:
    """Regression of hidden on seen waves, of each order `[seen, hidden]`, complex.

    Args:
        waves: of states of the climate, `[state, field, m, l]`.
        ridge: share of a wave's variance that is added, against chance correlations.
        last_degree: of seen waves that tell something. Beyond it the simulator's filter
            leaves less than what a field on the grid has by rounding, 100 times a
            wave's deviation at the last degree, which would move what is hidden far.
    """
    both = np.concatenate([waves, mirrored(waves)])
    gains = []
    for order in range((waves.shape[-2] + 1) // 2):
        seen, hidden = (of_order(x, order) for x in (both[:, -2:], both[:, :-2]))
        if order == 0:  # the climate is the same all round: others have mean 0
            seen, hidden = seen - seen.mean(axis=0), hidden - hidden.mean(axis=0)
        scale = np.sqrt((np.abs(seen) ** 2).mean(axis=0))
        degree = np.arange(order, waves.shape[-1])
        # The mass of the air, degree 0 of the pressure, is the same but for rounding.
        tells = np.stack([degree <= last_degree] * 2)
        tells[1] &= degree > 0
        tells = (scale > 1e-12) & tells.ravel()
        scale = np.where(tells, scale, np.inf)
        seen = seen / scale
        covariance = seen.conj().T @ seen / len(seen)
        covariance += ridge * np.eye(len(covariance))
        gain = np.linalg.solve(covariance, seen.conj().T @ hidden / len(seen))
        gains.append(gain / scale[:, None])
    return gains


def move_hidden(gains, before, after) -> np.ndarray:
    """`after`, whose hidden waves are moved by what the change of the seen ones says.

    Args:
        gains: of `fit_gains`.
        before, after: waves `[state, field, m, l]` which differ in the seen ones.
    """
    moved = after.astype(np.float64)
    change = after[:, -2:].astype(np.float64) - before[:, -2:]
    num_hidden = after.shape[1] - 2
    for order, gain in enumerate(gains):
        step = (of_order(change, order) @ gain).reshape(len(after), num_hidden, -1)
        if order == 0:
            moved[:, :-2, 0, :] += step.real
        else:
            moved[:, :-2, 2 * order - 1, order:] += step.real
            moved[:, :-2, 2 * order, order:] -= step.imag
    return moved
