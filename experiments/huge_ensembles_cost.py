"""What a trajectory costs: stacked emulators beside the simulators they imitate."""

import dataclasses
import time

import numpy as np

from ensjax.emulate import NoPerturbation, Start, product_ids, run_trajectories
from ensjax.emulate.trajectories import System, forecast
from ensjax.experiment.fields import load_beside
from ensjax.mesh import fetch

weather = load_beside(__file__, "lorenz96_forecasts")
ensembles = load_beside(__file__, "huge_ensembles_members")


def measure(config, ensemble, archives) -> dict[str, np.ndarray]:
    """Trajectories a second of every seed, compiled before, the median of some runs.

    Returns:
        `rate_emulator`, `rate_system` (two scales) and `rate_closure` (the imperfect
        simulator), `[seed]`: as many trajectories to the same lead, as many of them
        (`cost.block`) at once.
    """
    cost = config.cost
    count, lead, block = cost.num_members, cost.num_leads, cost.block
    rates = {name: [] for name in ("emulator", "system", "closure")}
    for seed in range(config.num_seeds):
        archive = {name: values[seed] for name, values in archives.items()}
        rows = np.arange(count) % len(archive["start_x"])
        own = ensembles.checkpoints_of(config, ensemble, seed)
        fields = archive["truth"][rows, config.archive.num_before]
        fields = fields.astype(np.float32)
        per = -(-count // config.num_checkpoints)
        members = product_ids(config.num_checkpoints, 0, per)
        members = type(members)(*(x[:count] for x in members))
        starts = Start(fields[:per, :, None])

        def emulate(own=own, members=members, starts=starts):
            given = (NoPerturbation(), members, starts, (lead,))
            ensembles.run(config, own, *given, block=block)

        def simulate(archive=archive, rows=rows):
            states = (archive["start_x"][rows], archive["start_y"][rows])
            steps = lead * config.archive.steps_per_output
            run = FromState(weather.system_of(config), (steps,))
            given = dict(seed=0, stacked=(states,), block=block)
            fetch(run_trajectories(run, np.arange(count), **given))

        def imitate(archive=archive, fields=fields):
            system = weather.closure_of(config, archive)
            values = fields * archive["sd"] + archive["mean"]
            given = dict(lead_steps=(2 * lead,), seed=0, block=block)
            weather.closure_forecasts(system, values, **given)

        for name, call in zip(rates, (emulate, simulate, imitate)):
            rates[name].append(count / median_seconds(call, cost.num_timings))
    return {f"rate_{name}": np.array(values) for name, values in rates.items()}


@dataclasses.dataclass(frozen=True)
class FromState:
    """A trajectory from a state of the system, at leads in its own steps."""

    system: System
    lead_steps: tuple[int, ...]

    def __call__(self, key, state):
        del key
        return forecast(self.system, state, self.lead_steps)


def median_seconds(call, number: int) -> float:
    """The median of `number` calls after one that compiles."""
    call()  # compiles
    times = []
    for _ in range(number):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return float(np.median(times))
