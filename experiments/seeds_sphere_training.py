"""Archive, networks, training and sampling of `seeds_sphere.py`."""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np

import ensjax
from ensjax.data.splits import check_disjoint
from ensjax.emulate import HeldSuarez, fit_standardiser, held_suarez_archive
from ensjax.emulate.climatology import Standardiser
from ensjax.emulate.diffusion import DenoisingLoss, LogNormalNoise
from ensjax.emulate.sample_job import SamplerSettings
from ensjax.emulate.seeds import SeedsEmulators, SeedsLoss
from ensjax.emulate.trajectories import forecast_twins, run_trajectories
from ensjax.experiment import ConfigError
from ensjax.experiment.fields import choose, load_beside
from ensjax.mesh import fetch
from ensjax.train import TrainingJob
from ensjax.verification import gauss_weights
from ensjax.weight_space import averaged

full_size = load_beside(__file__, "seeds_training")

K = full_size.K  # seeds of a case
NETWORKS = {"unet": ensjax.nn.UNetDenoiser, "residual": ensjax.nn.ResidualDenoiser}
# Runs of the test archive have numbers from here on, whatever is trained on.
_FIRST_TEST_RUN = 1_000


def turned(key, case):
    """The case on a globe that is turned, and as likely in a mirror at the equator.

    The simulator has no continents and equal hemispheres, so that this is as likely a
    case as the other. "base", which has the same symmetries, stays.
    """
    turn_key, mirror_key = jax.random.split(key)
    members = case["members"]  # [task, member, lat, lon, variable]
    turn = jax.random.randint(turn_key, (), 0, members.shape[-2])
    members = jnp.roll(members, turn, axis=-2)
    mirrored = jnp.flip(members, axis=-3)
    is_mirrored = jax.random.bernoulli(mirror_key)
    return case | {"members": jnp.where(is_mirrored, mirrored, members)}


def training_job(config, archives=None, *, shapes_only=False) -> TrainingJob:
    """The networks of the run, one for each seed, as one call of `fit`.

    Args:
        config: of the run; that of GEFS gives the job of `seeds.py:paper`.
        archives: what `simulate` gives, or None: they are simulated.
        shapes_only: leave the data as their shapes, so that nothing is simulated.

    Raises:
        ConfigError: for data that are not at hand, unless `shapes_only`.
    """
    if config.archive.source == "gefs":
        return full_size.training_job(config, shapes_only=shapes_only)
    if shapes_only:
        cases = case_shapes(config)
    else:
        cases = training_cases(simulate(config) if archives is None else archives)
    return full_size.job_of(
        config,
        functools.partial(make_model, config),
        cases,
        [0] * config.num_seeds,  # all have the same archive
        SeedsLoss(draw_of(), loss_of(config, cases["members"].shape[-3])),
        augment=turned,
    )


def make_model(config, rngs):
    """One network, from `nnx.Rngs`."""
    network = choose("model.name", config.model.name, NETWORKS)
    return network(**config.model.options.to_dict(), rngs=rngs)


def loss_of(config, num_lat) -> DenoisingLoss:
    """Of samples `[lat, lon, variable]`; every place counts as much as its area."""
    parametrisation, _ = full_size.parts_of(config)
    return DenoisingLoss(
        parametrisation,
        LogNormalNoise(**config.noise.to_dict()),
        place_weights=tuple(gauss_weights(num_lat).tolist()),
    )


def draw_of():
    """How a step draws seeds and target from a case."""
    return full_size.DrawSeeds(num_seeds=K, encoder="moments")


def system_of(config) -> HeldSuarez:
    """The simulator."""
    archive = config.archive
    return HeldSuarez(num_levels=archive.num_levels, step_minutes=archive.step_minutes)


def case_shapes(config) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of the training cases, `[case, task 1, (member,) lat, lon, variable]`."""
    archive = config.archive
    count = archive.num_train_parts * archive.num_train_cases
    one = (32, 64, 2)
    shape = (count, 1, archive.num_train_members, *one)
    return {
        "members": jax.ShapeDtypeStruct(shape, np.float32),
        "base": jax.ShapeDtypeStruct((count, 1, *one), np.float32),
    }


# Archive


def check_at_hand(config) -> None:
    """Raises `ConfigError` for a source that cannot be read here."""
    if config.archive.source == "gefs":
        raise ConfigError(
            "the reforecasts of GEFS are not at hand, so that this preset is planned:"
            " ensjax plan configs/seeds_sphere.py:paper"
        )


def simulate(config) -> dict[str, np.ndarray]:
    """The archive of all seeds, at the last lead; fields `[..., variable, lat, lon]`.

    Returns:
        `train` and `test` `[case, member, ...]`, `truth` `[case, ...]` and numbers
        (`case`) of the test cases, `lat` and `lon` in degrees; and by lead
        (`lead_days`) `spread_by_lead`, `error_by_lead` of the mean, and `climate_sd`,
        roots of area means of squares `[lead, variable]`.

    Raises:
        ConfigError: for a source that is not at hand.
    """
    check_at_hand(config)
    archive = config.archive

    def parts(kind, first_run, members):
        found = [
            held_suarez_archive(
                num_cases=archive[f"num_{kind}_cases"],
                num_members=members,
                first_run=first_run + part * archive[f"num_{kind}_runs"],
                num_runs=archive[f"num_{kind}_runs"],
                system=system_of(config),
                lead_days=archive.lead_days,
                spin_up_days=archive.spin_up_days,
                gap_days=archive.gap_days,
                settle_days=archive.settle_days,
                noise=archive.noise,
                seed=config.seed,
                cases_per_call=cases_per_call(archive[f"num_{kind}_cases"], members),
            )
            for part in range(archive[f"num_{kind}_parts"])
        ]
        stacked = [
            np.concatenate([getattr(part, name) for part in found])
            for name in ("values", "truth", "rows")
        ]
        return *stacked, found[0].space

    train, _, train_rows, space = parts("train", 0, archive.num_train_members)
    test, truth, test_rows, _ = parts("test", _FIRST_TEST_RUN, archive.num_test_members)
    check_disjoint(train_rows, test_rows, names=("training", "test"))
    # Leads in front: [lead, case, member, variable, lat, lon].
    by_lead = np.moveaxis(test, 2, 0)
    squared = np.square(by_lead.mean(axis=2) - np.moveaxis(truth, 1, 0))
    off_climate = by_lead - by_lead.mean(axis=(1, 2, 5), keepdims=True)
    return {
        "train": train[:, :, -1],
        "test": test[:, :, -1],
        "truth": truth[:, -1],
        "case": test_rows,
        "lat": space["lat"],
        "lon": space["lon"],
        "lead_days": np.asarray(archive.lead_days),
        "spread_by_lead": _root_mean(by_lead.var(axis=2, ddof=1)),
        "error_by_lead": _root_mean(squared),
        "climate_sd": _root_mean(np.square(off_climate).mean(axis=2)),
    }


def cases_per_call(num_cases, num_members) -> int:
    """Cases that are simulated at once, each with its members and the truth."""
    return min(num_cases, max(1, 64 // (num_members + 1)))


def _root_mean(squares):
    """Root of the mean over cases and areas, `[lead, variable]`."""
    weights = gauss_weights(squares.shape[-2])[:, None]
    return np.sqrt((squares * weights).mean(axis=(1, 3, 4)))


def climate(archives) -> Standardiser:
    """Mean and deviation of variables by distance from the equator, of the training.

    Equal along a circle of latitude and in both hemispheres, as the simulator's own.
    """
    train = archives["train"]
    fields = train.reshape(-1, *train.shape[2:])
    both = np.concatenate([fields, fields[..., ::-1, :]])
    return fit_standardiser(both, pool=(2,))


def standardised(archives, values) -> np.ndarray:
    """`[..., variable, lat, lon]` in units of the climate."""
    return np.asarray(climate(archives).standardise(values))


def to_channels(fields) -> np.ndarray:
    """`[..., variable, lat, lon]` as networks take it, `[..., lat, lon, variable]`."""
    return np.moveaxis(fields, -3, -1)


def from_channels(fields) -> np.ndarray:
    """The inverse of `to_channels`."""
    return np.moveaxis(fields, -1, -3)


def base_of(archives) -> np.ndarray:
    """The climate's mean against that of the globe, `[lat, lon, variable]`.

    In units of its own deviation: it tells the network the latitude.
    """
    mean = np.broadcast_to(climate(archives).mean[0], archives["train"].shape[2:])
    weights = gauss_weights(mean.shape[-2])[:, None]
    middle = (mean * weights).mean(axis=(-2, -1), keepdims=True)
    away = mean - middle
    scale = np.sqrt((away**2 * weights).mean(axis=(-2, -1), keepdims=True))
    return to_channels(away / np.maximum(scale, 1e-6)).astype(np.float32)


def training_cases(archives) -> dict[str, np.ndarray]:
    """Standardised members, and the climate, `[case, task 1, ...]`."""
    members = to_channels(standardised(archives, archives["train"]))
    base = base_of(archives)
    return {
        "members": members[:, None],
        "base": np.broadcast_to(base, (len(members), 1, *base.shape)),
    }


def given(config) -> np.ndarray:
    """Which test members are the two that a seed is given, `[seed, 2]`."""
    return np.arange(config.num_seeds)[:, None] * K + np.arange(K)


# Networks


def train(config, run_dir, archives) -> tuple[SeedsEmulators, np.ndarray]:
    """Trained denoisers, one for each seed, and `frozen_steps` `[seed]`.

    Where the training is finished, its checkpoint is read.
    """
    job = training_job(config, archives)
    trained, log = job.fit(
        checkpoint_dir=run_dir.checkpoints / job.stage, logger=run_dir.logger("train")
    )
    own = averaged(trained, job.options["averages"]["ema"], log.averages["ema"])
    parametrisation, _ = full_size.parts_of(config)
    emulators = SeedsEmulators(
        own, np.asarray(job.hyper["task"]), draw_of(), parametrisation
    )
    return emulators, np.asarray(log.frozen_steps)


def sampler_of(config, num_levels) -> SamplerSettings:
    """Heun's method with so many of the config's levels."""
    ends = {name: config.sampler[name] for name in ("low", "high", "rho")}
    return SamplerSettings("heun", num_levels, **ends)


def draw(config, emulators, archives, num_levels) -> tuple[np.ndarray, float]:
    """Samples `[seed, sample, case, variable, lat, lon]` in units of the climate.

    Returns:
        The samples, and the seconds that one of them takes: the median over calls
        behind the first, which compiles.
    """
    sampler = sampler_of(config, num_levels).make()
    test = to_channels(standardised(archives, archives["test"]))
    seeds = np.stack([test[:, pair] for pair in given(config)])  # [seed, case, 2, ...]
    cases, at_once = seeds.shape[1], config.sampler.cases_per_call
    base = np.broadcast_to(base_of(archives), (len(seeds), at_once, *seeds.shape[3:]))

    def call(rows):
        start = time.perf_counter()
        drawn = emulators.sample(
            seeds[:, rows],
            np.arange(config.num_samples),
            sampler=sampler,
            base=base,
            case_ids=rows,
            seed=config.seed,
        )
        drawn = from_channels(fetch(jax.block_until_ready(drawn)))
        return drawn, time.perf_counter() - start

    found, times = [], []
    for first in range(0, cases, at_once):
        # The last call is filled up: other shapes would compile again.
        rows = np.resize(np.arange(first, min(first + at_once, cases)), at_once)
        drawn, seconds = call(rows)
        found.append(drawn[:, :, : cases - first])
        times.append(seconds)
    if len(times) == 1:
        times.append(call(rows)[1])
    one = np.median(times[1:]) / (len(seeds) * config.num_samples * at_once)
    return np.concatenate(found, axis=2), float(one)


def simulator_seconds(config) -> float:
    """Of one member from its noise to the last lead, among as many as a call makes.

    A day of them is timed, without compilation, and counted as often as there are days.
    They start from rest, where a step costs what it costs anywhere.
    """
    system, archive = system_of(config), config.archive
    members = archive.num_train_members
    cases = np.arange(cases_per_call(archive.num_train_cases, members))
    states = fetch(run_trajectories(system.start, cases, seed=config.seed))

    def simulate_a_day():
        start = time.perf_counter()
        forecast_twins(
            system,
            states,
            cases,
            num_members=members,
            lead_steps=(0, system.steps_per_day),
            analysis_noise=archive.noise,
            member_noise=archive.noise,
            seed=config.seed,
        )
        return time.perf_counter() - start

    simulate_a_day()  # compiles, where the archive's program was another
    seconds = np.median([simulate_a_day() for _ in range(3)])
    # The truth is a member more.
    day = seconds / (len(cases) * (members + 1))
    return day * (archive.settle_days + archive.lead_days[-1])
