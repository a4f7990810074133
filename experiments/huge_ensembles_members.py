"""The ensembles of `huge_ensembles.py`: who their members are, and their forecasts.

All values are in deviations of the climate; leads are in outputs, a step of the network
each.
"""

import functools

import jax.numpy as jnp
import numpy as np

import ensjax
from ensjax.emulate import (
    BredVectors,
    MemberForecast,
    MemberId,
    NetworkStep,
    NoPerturbation,
    RandomPerturbation,
    Rollout,
    Start,
    bred_amplitude,
    lagged_ensemble,
    product_ids,
    run_product,
)
from ensjax.experiment.fields import load_beside

weather = load_beside(__file__, "lorenz96_forecasts")
training = load_beside(__file__, "huge_ensembles_training")

LAGS = (-2, -1, 0, 1, 2)


def checkpoints_of(config, ensemble, seed: int):
    """The checkpoints of one seed."""
    first = seed * config.num_checkpoints
    return ensemble.select(np.arange(first, first + config.num_checkpoints))


def rollout_of(ensemble) -> Rollout:
    """Steps of its networks; what is seen are the values, `[site]`."""
    return Rollout(NetworkStep(ensemble.graph), _values)


def _values(state):
    return state[..., 0]


def starts_of(config, fields, *, first: int = 0) -> Start:
    """Starts with their histories from fields `[start, output, site]`.

    Args:
        config: of the run.
        fields: from `num_before` outputs before the start on.
        first: outputs to shift the start by.
    """
    now = config.archive.num_before + first
    past = max(0, now - config.perturbations.num_cycles)
    fields = jnp.asarray(fields, jnp.float32)[..., None]
    return Start(fields[:, now], fields[:, past : now + 1])


def amplitude_of(config, ensemble, archive) -> jnp.ndarray:
    """The norm of perturbations `[1]`: a share of the checkpoints' error.

    Of forecasts in the training runs, all from their first outputs.
    """
    values = (archive["train"] - archive["mean"]) / archive["sd"]
    lead = config.perturbations.error_leads
    fields = jnp.asarray(values[:, : lead + 1], jnp.float32)[..., None]
    starts = Start(fields[:, 0], fields[:, :1])
    members = product_ids(config.num_checkpoints, 0, len(values))
    found = run(config, ensemble, NoPerturbation(), members, starts, (lead,))
    truth = np.asarray(fields[members.start, lead])
    errors = jnp.asarray(found[:, 0, :, None] - truth)
    return bred_amplitude(errors, share=config.perturbations.share)


def run(config, ensemble, perturb, members, starts, leads, *, block=None) -> np.ndarray:
    """Values of members at leads, `[member, lead, site]`, NumPy.

    `block` members run at once, or `config.block`.
    """
    found = run_product(
        MemberForecast(rollout_of(ensemble), perturb),
        members,
        models=ensemble.state,
        starts=starts,
        lead_steps=leads,
        block=block or config.block,
        seed=config.seed,
        mesh=ensemble.mesh,
    )
    return ensjax.mesh.fetch(found)


def bred_of(config, ensemble, amplitude) -> BredVectors:
    """Bred with each checkpoint's own steps."""
    cycles = config.perturbations.num_cycles
    return BredVectors(amplitude, NetworkStep(ensemble.graph), num_cycles=cycles)


def by_member(values, members: MemberId) -> np.ndarray:
    """`[member of a start, start, ...]` of `[member, ...]` by `product_ids`."""
    starts = len(np.unique(members.start))
    return values.reshape(starts, -1, *values.shape[1:]).swapaxes(0, 1)


def draws_of(values, size: int) -> np.ndarray:
    """Ensembles of `size` members out of a larger one, `[draw, size, ...]`.

    Consecutive members form `size` blocks, and a draw has one of each block: one member
    of each checkpoint in the order of `product_ids`, and never both of a pair where the
    checkpoint is one. Draws are disjoint, and all of them hold every member.

    Args:
        values: `[member, ...]`.
        size: of a draw.

    Raises:
        ValueError: if `size` does not divide the number of members.
    """
    if len(values) % size:
        raise ValueError(
            f"{len(values)} members do not fall into draws of {size}; give a divisor."
        )
    blocks = values.reshape(size, -1, *values.shape[1:])
    number, copies = np.arange(size), blocks.shape[1]
    return np.stack(
        [blocks[number, (number + draw) % copies] for draw in range(copies)]
    )


def forecasts(config, ensemble, archive, seed: int) -> dict[str, np.ndarray]:
    """Every ensemble of one seed at `config.leads`, `[member, start, lead, site]`.

    Those with perturbations have `2 * num_pairs` members of each checkpoint (as many in
    all where it is one); `draws_of` makes them as small as "checkpoints".

    Returns:
        "checkpoints", "bred" (of the first checkpoint), "both", "random" (with all
        checkpoints), "physics" (without lead 0, where it is the perturbed analysis) and
        "lagged" at `judged_leads` alone; and `amplitude` `[1]`.
    """
    noise = config.analysis_noise
    fields = weather.analyses(archive, config, seed, noise=noise)
    starts, count = starts_of(config, fields), len(fields)
    amplitude = amplitude_of(config, ensemble, archive)
    pairs, checkpoints = config.perturbations.num_pairs, config.num_checkpoints
    bred = bred_of(config, ensemble, amplitude)
    random = RandomPerturbation(amplitude)
    ensembles = {
        "checkpoints": (NoPerturbation(), product_ids(checkpoints, 0, count)),
        "bred": (bred, product_ids(1, checkpoints * pairs, count)),
        "both": (bred, product_ids(checkpoints, pairs, count)),
        "random": (random, product_ids(checkpoints, pairs, count)),
    }
    found = {}
    for name, (perturb, members) in ensembles.items():
        values = run(config, ensemble, perturb, members, starts, config.leads)
        found[name] = by_member(values, members)
    found["physics"] = physics(config, archive, fields, seed, float(amplitude[0]))
    found["lagged"] = lagged(config, ensemble, fields)
    return found | {"amplitude": np.asarray(amplitude)}


def plume(config, ensemble, archive, seed: int, values) -> dict[str, np.ndarray]:
    """The product for one start at every lead, for a figure.

    Args:
        config, ensemble, archive, seed: as for `forecasts`.
        values: "both" of `forecasts`, whose start of the median spread is taken.

    Returns:
        `plume` `[member, lead, site]` from lead 0 on and `plume_start` `[]`.
    """
    spread = values[:, :, -1].std(axis=0).mean(axis=-1)
    start = int(np.argsort(spread)[len(spread) // 2])
    fields = weather.analyses(archive, config, seed, noise=config.analysis_noise)
    bred = bred_of(config, ensemble, amplitude_of(config, ensemble, archive))
    members = product_ids(
        config.num_checkpoints, config.perturbations.num_pairs, [start]
    )
    leads = range(config.leads[-1] + 1)
    starts = starts_of(config, fields)
    return {
        "plume": run(config, ensemble, bred, members, starts, leads),
        "plume_start": np.array(start),
    }


def early_forecasts(config, ensemble, archive, seed: int) -> dict[str, np.ndarray]:
    """Of checkpoints that are trained too little: "early_checkpoints", "early_both"."""
    fields = weather.analyses(archive, config, seed, noise=config.analysis_noise)
    starts, count = starts_of(config, fields), len(fields)
    bred = bred_of(config, ensemble, amplitude_of(config, ensemble, archive))
    found = {}
    for name, perturb, pairs in (
        ("early_checkpoints", NoPerturbation(), 0),
        ("early_both", bred, config.perturbations.num_pairs),
    ):
        members = product_ids(config.num_checkpoints, pairs, count)
        values = run(config, ensemble, perturb, members, starts, config.leads)
        found[name] = by_member(values, members)
    return found


def physics(config, archive, fields, seed, amplitude) -> np.ndarray:
    """The imperfect simulator from analyses with random perturbations."""
    number = 2 * config.num_checkpoints * config.perturbations.num_pairs
    analysis = fields[:, config.archive.num_before]
    starts = weather.perturbed(analysis, config, seed, number, noise=amplitude)
    found = weather.closure_ensemble(config, archive, starts, seed)
    found = np.concatenate([starts.swapaxes(0, 1)[:, :, None], found], axis=2)
    return found[:, :, list(config.leads)]


def lagged(config, ensemble, fields) -> np.ndarray:
    """The first checkpoint from starts around each case's own, at `judged_leads`."""
    last = max(config.judged_leads) + max(LAGS)
    states = jnp.asarray(fields, jnp.float32)[..., None]
    now = config.archive.num_before
    around = states[:, now + min(LAGS) : now + max(LAGS) + 1]  # [case, lag, site, 1]
    starts = Start(around.reshape(-1, *around.shape[2:]))
    members = product_ids(1, 0, len(fields) * len(LAGS))
    leads = range(last + 1)
    values = run(config, ensemble, NoPerturbation(), members, starts, leads)
    values = values.reshape(len(fields), len(LAGS), *values.shape[1:])
    found = lagged_ensemble(jnp.asarray(np.moveaxis(values, 0, 2)), LAGS)
    chosen = [list(found.leads).index(lead) for lead in config.judged_leads]
    # [lag, one start, lead, case, site]
    return np.moveaxis(np.asarray(found.members)[:, 0, chosen], 1, 2)


def growth(values) -> np.ndarray:
    """Log of how much centred perturbations grow in a step, `[pair, start]`.

    Args:
        values: members `[member, start, lead, site]` whose pairs follow each other, at
            leads 0 and 1 first.
    """
    half = (values[0::2] - values[1::2]) / 2
    size = np.sqrt(np.mean(half**2, axis=-1))
    return np.log(size[:, :, 1] / size[:, :, 0])


def efi_members(config, ensemble, archive, seed: int) -> dict[str, np.ndarray]:
    """Emulators and the two-scale system from equal perturbations, for the EFI.

    Returns:
        "emulator" (bred vectors x checkpoints), "emulator_random" and "system" at
        `efi.leads`, `[member, start, lead, site]`; and "free" `[member, lead, site]`,
        the emulators' own climate.
    """
    efi = config.efi
    starts = starts_of(config, archive["truth"])
    count = len(archive["truth"])
    members = product_ids(config.num_checkpoints, efi.num_pairs, count)
    size = jnp.full((1,), efi.noise, jnp.float32)
    made = functools.partial(run, config, ensemble)
    bred, random = bred_of(config, ensemble, size), RandomPerturbation(size)
    found = {
        "emulator": by_member(made(bred, members, starts, efi.leads), members),
        "emulator_random": by_member(made(random, members, starts, efi.leads), members),
    }
    simulated = weather.system_ensemble(
        config, archive, seed, efi.num_members, noise=efi.noise
    )
    found["system"] = simulated[:, :, [lead - 1 for lead in efi.leads]]
    first, last, gap = efi.free_leads
    free = product_ids(config.num_checkpoints, 0, min(efi.num_free_starts, count))
    leads = range(first, last + 1, gap)
    return found | {"free": made(NoPerturbation(), free, starts, leads)}
