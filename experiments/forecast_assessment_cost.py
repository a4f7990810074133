"""What a forecast day costs: seconds and operations of emulator and simulators.

A day is 0.2 time units, as Lorenz (1996) has it: two outputs. All systems make as many
forecasts side by side on one device, where none has to wait for another.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.experiment.fields import load_beside

weather = load_beside(__file__, "lorenz96_forecasts")
training = load_beside(__file__, "forecast_assessment_training")

OUTPUTS_A_DAY = 2
ROWS = 256
NAMES = ("emulator", "simulator", "system")


def measure(config, run_dir, archives) -> dict[str, np.ndarray]:
    """`seconds_<name> [seed]` and operations `flops_<name>` of one forecast day.

    "simulator" is the imperfect one without noise, "system" the two-scale system that
    is the truth. Operations are as the compiler counts them in one step.
    """
    ensemble, _ = training.trained(config, run_dir, archives, "emulator")
    system = weather.system_of(config)
    found = {f"seconds_{name}": [] for name in NAMES}
    for seed in range(config.num_seeds):
        archive = training.of_seed(archives, seed)
        simulator = training.deterministic(config, archive)
        network = ensemble.graph.merge(
            jax.tree.map(lambda x, seed=seed: x[seed], ensemble.state), train=False
        )
        states = _states(archive, simulator, system, seed)
        per_output = config.archive.steps_per_output
        steps = {
            "emulator": (lambda x, network=network: network(None, x), 1),
            "simulator": (simulator.step, 2),
            "system": (system.step, per_output),
        }
        for name, (step, number) in steps.items():
            count = OUTPUTS_A_DAY * number
            found[f"seconds_{name}"].append(
                _seconds(step, states[name], count, config.cost_repeats) / ROWS
            )
            one = jax.tree.map(lambda x: x[0], states[name])
            found[f"flops_{name}"] = count * _operations(step, one)
    return {name: np.asarray(values) for name, values in found.items()}


def _states(archive, simulator, system, seed):
    """`ROWS` states of each system, which are repeated where there are fewer."""
    at = np.arange(ROWS) % len(archive["start_x"])
    x, y = (jnp.asarray(archive[name][at]) for name in ("start_x", "start_y"))
    keys = jax.random.split(jax.random.key(seed), ROWS)
    return {
        "emulator": ((x - archive["mean"]) / archive["sd"])[..., None],
        "simulator": jax.vmap(simulator.begin)(x, keys),
        "system": (x, y),
    }


def _seconds(step, states, count, repeats):
    """The best of some runs, without compilation."""

    @jax.jit
    def run(states):
        many = jax.vmap(step)
        return jax.lax.fori_loop(0, count, lambda _, x: many(x), states)

    jax.block_until_ready(run(states))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run(states))
        times.append(time.perf_counter() - start)
    return min(times)


def _operations(step, state):
    return float(jax.jit(step).lower(state).compile().cost_analysis()["flops"])


def ratios(found) -> dict[str, np.ndarray]:
    """Cost of the simulator, and of the system, over the emulator's."""
    return {
        f"{name}_{unit}": np.asarray(found[f"{unit}_{name}"])
        / np.asarray(found[f"{unit}_emulator"])
        for name in ("simulator", "system")
        for unit in ("seconds", "flops")
    }


def card_costs(found) -> dict[str, float]:
    """For the scorecard, means over seeds."""
    labels = {"emulator": "emulator", "simulator": "simulator", "system": "full system"}
    units = {"seconds": "s", "flops": "FLOP"}
    return {
        f"{labels[name]}, {unit} a forecast day": float(np.mean(found[f"{key}_{name}"]))
        for name in NAMES
        for key, unit in units.items()
    }
