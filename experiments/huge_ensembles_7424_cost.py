"""What all members of a start cost: bytes, and seconds beside the simulators.

Each of three makes as many members of one start to the same leads, as many at once.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.emulate import MemberId, run_trajectories
from ensjax.experiment.fields import load_beside
from ensjax.mesh import fetch
from ensjax.reduce.sorted_runs import sketch_size

weather = load_beside(__file__, "lorenz96_forecasts")
ensembles = load_beside(__file__, "huge_ensembles_members")
timing = load_beside(__file__, "huge_ensembles_cost")
huge = load_beside(__file__, "huge_ensembles_7424_members")

SIMULATORS = {"system": "two-scale simulator", "closure": "imperfect simulator"}


def perturbed_starts(config, archive, fields, seed, num_members, amplitude):
    """Analyses with independent noise of the emulators' norm, `[start, member, site]`,
    in deviations of the climate."""
    analysis = fields[:, config.archive.num_before]
    return weather.perturbed(analysis, config, seed, num_members, noise=amplitude)


def simulated(config, archive, starts, seed, kind: str) -> np.ndarray:
    """Members of one of `SIMULATORS`, `[start, member, lead, site]`, in deviations.

    Args:
        config: of the run, with its leads.
        archive: of the seed.
        starts: `[start, member, site]`, in deviations.
        seed: its number.
        kind: "system", whose fast variables are the truth's at the start, which no
            emulator sees; or "closure".
    """
    count = starts.shape[1]
    slow = starts.reshape(-1, starts.shape[-1]) * archive["sd"] + archive["mean"]
    leads, block = tuple(config.leads), config.block
    if kind == "system":
        steps = tuple(lead * config.archive.steps_per_output for lead in leads)
        run = timing.FromState(weather.system_of(config), steps)
        fast = np.repeat(archive["start_y"][: len(starts)], count, axis=0)
        states = (jnp.asarray(slow, jnp.float32), jnp.asarray(fast, jnp.float32))
        ids = np.arange(len(slow))
        given = dict(seed=seed, stacked=(states,), block=block)
        found = fetch(run_trajectories(run, ids, **given))[:, :, 0]
    else:
        system = weather.closure_of(config, archive)
        given = dict(lead_steps=[2 * lead for lead in leads], seed=seed, block=block)
        found = weather.closure_forecasts(system, slow, **given)
    found = (found - archive["mean"]) / archive["sd"]
    return found.reshape(len(starts), count, *found.shape[1:]).astype(np.float32)


def _first_start(config, ensemble, archive, seed):
    """The job of one seed, all members of its first start, and what they fold into."""
    own = ensembles.checkpoints_of(config, ensemble, seed)
    fields = weather.analyses(archive, config, seed, noise=config.analysis_noise)
    amplitude = ensembles.amplitude_of(config, own, archive)
    starts = ensembles.starts_of(config, fields)
    rows = [config.archive.num_before + lead for lead in config.leads]
    truth = jnp.asarray(archive["truth"][0, rows], jnp.float32)
    levels = jnp.zeros((2,), jnp.float32)  # a count costs the same at any level
    job = huge.Job(config, own, "bred", amplitude, starts, config.leads)
    members = huge.all_members(config, 0)
    return job, (members, truth, levels), fields, amplitude


def memory(config, ensemble, archives) -> dict[str, np.ndarray]:
    """Bytes on a device of the programs of few members and of all, each for its own.

    Returns:
        `members` `[2]`, at most 512 and all; `bytes` `[2, 3]`, temporary ones, those of
        arguments and those of results; `unordered_bytes`, the same without the CRPS,
        which alone keeps a summary of the order of members; `id_bytes` `[2]`, of the
        arguments, who each member is; `summary_numbers` `[2]`, of the CRPS's summary at
        a site, of the size that its error of rank asks for.
    """
    archive = {name: values[0] for name, values in archives.items()}
    job, (members, *about), *_ = _first_start(config, ensemble, archive, 0)
    count = members.start.size
    few = MemberId(*(x[: min(512, count // 2)] for x in members))
    unordered = {name: metric for name, metric in huge.METRICS.items()
                 if name != "crps"}  # fmt: skip
    found = {name: [] for name in ("members", "bytes", "unordered_bytes", "id_bytes",
                                   "summary_numbers")}  # fmt: skip
    devices = ensemble.mesh.shape["member"]
    for some in (few, members):
        size = some.start.size
        found["members"].append(size)
        levels, width = sketch_size(size)
        found["summary_numbers"].append((levels + 1) * width)
        for name, metrics in (("bytes", huge.METRICS), ("unordered_bytes", unordered)):
            program, arguments = job.program(some, *about, metrics)
            known = program.lower(*arguments).compile().memory_analysis()
            parts = ("temp", "argument", "output")
            found[name].append([getattr(known, f"{x}_size_in_bytes") for x in parts])
        rows = jax.tree.leaves(arguments[1:3])
        found["id_bytes"].append(sum(x.nbytes for x in rows) // devices)
    return {name: np.asarray(values) for name, values in found.items()}


def measure(config, ensemble, archives) -> dict[str, np.ndarray]:
    """Seconds of the first start of every seed, compiled before.

    Returns:
        `seconds_emulator`, bred vectors and all statistics included, `seconds_system`
        and `seconds_closure`, whose members are kept: `[seed]`, the median of
        `cost.num_timings`.
    """
    seconds = {name: [] for name in ("emulator", *SIMULATORS)}
    for seed in range(config.num_seeds):
        archive = {name: values[seed] for name, values in archives.items()}
        job, folded, fields, amplitude = _first_start(config, ensemble, archive, seed)
        program, arguments = job.program(*folded)
        count = folded[0].start.size
        drawn = perturbed_starts(
            config, archive, fields[:1], seed, count, float(amplitude[0])
        )

        def emulate(program=program, arguments=arguments):
            jax.block_until_ready(program(*arguments))

        calls = {"emulator": emulate}
        for kind in SIMULATORS:
            calls[kind] = _call(config, archive, drawn, seed, kind)
        for name, call in calls.items():
            taken = timing.median_seconds(call, config.cost.num_timings)
            seconds[name].append(taken)
    return {f"seconds_{name}": np.array(values) for name, values in seconds.items()}


def _call(config, archive, drawn, seed, kind):
    return lambda: simulated(config, archive, drawn, seed, kind)
