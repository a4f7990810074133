"""What a forecast day costs: seconds and operations of emulator and simulators.

A day is 0.2 time units, as Lorenz (1996) has it: two outputs. All systems make as many
forecasts side by side on one device, where none has to wait for another.
"""

import functools
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
    # The line of the simulator differs by seed, which changes no time.
    simulator = training.deterministic(config, training.of_seed(archives, 0))
    steps = {
        "emulator": (functools.partial(_network_step, ensemble.graph), 1),
        "simulator": (lambda _, x: simulator.step(x), 2),
        "system": (lambda _, x: system.step(x), config.archive.steps_per_output),
    }
    found = {}
    for name, (step, number) in steps.items():
        count, times = OUTPUTS_A_DAY * number, []
        run = jax.jit(functools.partial(_advance, step, count))
        for seed in range(config.num_seeds):
            archive = training.of_seed(archives, seed)
            model = jax.tree.map(lambda x, seed=seed: x[seed], ensemble.state)
            states = _states(archive, simulator, seed)[name]
            times.append(_seconds(run, model, states, config.cost_repeats) / ROWS)
        found[f"seconds_{name}"] = times
        one = jax.tree.map(lambda x: x[0], states)
        counted = jax.jit(step).lower(model, one).compile().cost_analysis()
        found[f"flops_{name}"] = count * float(counted["flops"])
    return {name: np.asarray(values) for name, values in found.items()}


def _network_step(graph, model, state):
    return graph.merge(model, train=False)(None, state)


def _advance(step, count, model, states):
    """`count` steps of all rows side by side."""
    many = jax.vmap(lambda state: step(model, state))
    return jax.lax.fori_loop(0, count, lambda _, x: many(x), states)


def _states(archive, simulator, seed):
    """`ROWS` states of each system, which are repeated where there are fewer."""
    at = np.arange(ROWS) % len(archive["start_x"])
    x, y = (jnp.asarray(archive[name][at]) for name in ("start_x", "start_y"))
    keys = jax.random.split(jax.random.key(seed), ROWS)
    return {
        "emulator": ((x - archive["mean"]) / archive["sd"])[..., None],
        "simulator": jax.vmap(simulator.begin)(x, keys),
        "system": (x, y),
    }


def _seconds(run, model, states, repeats):
    """The best of some runs, without compilation."""
    jax.block_until_ready(run(model, states))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run(model, states))
        times.append(time.perf_counter() - start)
    return min(times)


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
