"""A run of `seeds.py` on reforecasts from files: training, samples, scores, report."""

import dataclasses
import functools

import jax
import numpy as np

from ensjax import verification
from ensjax.data.streams import stream
from ensjax.emulate.climatology import Standardiser
from ensjax.emulate.sample_job import SampleJob, SamplerSettings
from ensjax.experiment import ConfigError, check_at_most
from ensjax.experiment.fields import check_numbers, choose, load_beside
from ensjax.experiment.stages import run_stages
from ensjax.mesh import fetch
from ensjax.plot.style import GREY, PALETTE, finish, new_figure

files = load_beside(__file__, "seeds_files")
kept = load_beside(__file__, "seeds_emulators")
training = load_beside(__file__, "seeds_training")

NAMES = {"seeds": "2 seeds", "generated": "generated", "full": "the other members"}
METRICS = {
    "crps": verification.crps(),
    "fair": verification.crps("fair"),
    "rmse": verification.root_mean_square_error(),
    "spread": verification.spread_skill(),
}
SCORES = ("crps", "fair", "rmse", "ssr")


def run(config, run_dir):
    """Reads, trains a network for each lead, samples, scores; resumes by stages.

    Raises:
        ConfigError: for files that are not named, or do not have what is asked for.
    """
    files.check_named(config)
    stages = {
        "archive": lambda done: files.prepare(config, run_dir),
        "emulate": lambda done: emulate(config, run_dir),
        "scores": lambda done: measure(config, run_dir, done["archive"]),
    }
    done = run_stages(run_dir, config, stages)
    found = done["scores"]
    add_table_and_figure(run_dir, config, found)
    means = {name: float(values.mean()) for name, values in found.items()}
    leak = means["full_fair"] - means["generated_fair"]
    run_dir.finish(
        title=config.title,
        summary=(
            f"{config.archive.path}: {config.archive.num_train_cases} starts to train"
            f" on, {config.archive.num_test_cases} to test. In deviations of the"
            f" climate, fair CRPS is {means['seeds_fair']:.3f} of the two seeds,"
            f" {means['generated_fair']:.3f} of {config.num_samples} generated members"
            f" and {means['full_fair']:.3f} of the others."
        ),
        scalars=means
        | {"num_members_not_finite": int((done["emulate"]["frozen_steps"] >= 0).sum())},
        checks=[
            check_at_most(
                "leakage: fair CRPS of the others less that of generated members, of"
                " the former",
                leak / means["full_fair"],
                0.02,
            )
        ],
    )


def validate(config):
    """Raises `ConfigError` for what would fail later, in one line."""
    archive = config.archive
    choose("archive.grid", archive.grid, dict.fromkeys(files.GRIDS))
    check_numbers(config, ("archive.num_train_cases", "archive.num_test_cases",
                           "sampler.num_steps"), at_least=1)  # fmt: skip
    check_numbers(config, ("archive.lead_days",), at_least=0)
    check_numbers(config, ("archive.batches_per_call",), at_least=1)
    check_numbers(config, ("training.batch_size",), at_most=archive.num_train_cases)
    check_numbers(config, ("archive.window_days",), at_least=0, at_most=365)
    if archive.window_days and archive.window_days % 2 == 0:
        raise ConfigError(
            f"config.archive.window_days is odd, or 0; got {archive.window_days}."
        )
    for field in ("mapping", "truth_mapping"):
        files.mapping_of(field, archive[field])
    leads = tuple(archive.lead_days)
    if any(a >= b for a, b in zip(leads, leads[1:])):
        raise ConfigError(f"config.archive.lead_days must rise; got {leads}.")
    if config.num_seeds != 1:
        raise ConfigError(
            f"config.num_seeds: with files there is a network for each lead, not for"
            f" each seed; it must be 1, got {config.num_seeds}."
        )
    is_named = bool(archive.path), bool(archive.truth)
    if any(is_named) and not all(is_named):
        files.check_named(config)


def emulate(config, run_dir) -> dict[str, np.ndarray]:
    """Trains and keeps the networks, one for each lead.

    Batches are read from the run's archive, so that a few are in memory at a time; all
    networks see the same starts.
    """
    archives, settings = files.archives(run_dir), config.training
    cases, leads = archives["train"].shape[:2]
    base = archives["train_base"][:, None]
    batches = stream(
        {
            "members": archives["train"],
            "base": np.broadcast_to(base, (cases, leads, *base.shape[2:])),
        },
        batch_size=settings.batch_size,
        seed=config.seed,
    )
    job = training.training_job(config, shapes_only=True)
    others = dict(batch_size=None, steps_per_call=config.archive.batches_per_call)
    job = dataclasses.replace(job, data=batches, options=job.options | others)
    emulators, log = training.fitted(config, run_dir, job)
    kept.keep(run_dir, "generated", emulators)
    return {"frozen_steps": np.asarray(log.frozen_steps)}


def measure(config, run_dir, about) -> dict[str, np.ndarray]:
    """Scores `[lead, field]` of three ensembles, a start at a time, by areas."""
    emulators = kept.load(config, run_dir, "generated")
    archives = files.archives(run_dir)
    weights = about["areas"].astype(np.float32)[..., None]
    totals: dict = {}
    for row in range(len(archives["test"])):
        case = np.asarray(archives["test"][row])  # [lead, member, *space, field]
        given, others = case[:, : training.K], case[:, training.K :]
        base = np.broadcast_to(archives["test_base"][row], (len(case), *case.shape[2:]))
        drawn = emulators.sample(
            given[:, None],
            np.arange(config.num_samples),
            sampler=sampler_of(config).make(),
            base=base[:, None],
            case_ids=np.array([row]),
            seed=config.seed,
        )
        ensembles = {
            "seeds": np.moveaxis(given, 1, 0),
            "generated": np.moveaxis(fetch(drawn)[:, :, 0], 1, 0),
            "full": np.moveaxis(others, 1, 0),
        }
        truth = np.asarray(archives["truth"][row])
        for name, members in ensembles.items():
            sums = _sums(members, truth, weights)
            before = totals.get(name)
            totals[name] = sums if before is None else _merged(before, sums)
    found = {}
    for name, sums in totals.items():
        done = {key: METRICS[key].finish(of) for key, of in sums.items()}
        ratio = done.pop("spread").ratio
        done["ssr"] = ratio
        found |= {f"{name}_{key}": np.asarray(value) for key, value in done.items()}
    return found


@jax.jit
def _sums(members, truth, weights):
    """Of one start, `[lead, field]`: places are added."""
    places = tuple(range(1, truth.ndim - 1))
    return {
        name: metric.over(*places).sums(members, truth, weights=weights)
        for name, metric in METRICS.items()
    }


@jax.jit
def _merged(first, second):
    return {name: verification.merge_sums(first[name], second[name]) for name in first}


def sampler_of(config) -> SamplerSettings:
    """The published demo's: Euler-Maruyama in so many steps, to time 1e-3."""
    return SamplerSettings("euler_maruyama", config.sampler.num_steps)


def add_table_and_figure(run_dir, config, found):
    """Scores by lead, means over fields."""
    leads = list(config.archive.lead_days)
    rows = [
        [NAMES[name], lead, *(found[f"{name}_{score}"][i].mean() for score in SCORES)]
        for name in NAMES
        for i, lead in enumerate(leads)
    ]
    run_dir.add_table(
        "scores",
        ["ensemble", "lead, days", "CRPS", "fair CRPS", "RMSE", "spread/error"],
        rows,
        "In deviations of the climate; means over fields, places by their areas.",
    )
    figure = new_figure()
    ax = figure.subplots()
    colours = {"seeds": GREY, "generated": PALETTE[0], "full": PALETTE[1]}
    for name, label in NAMES.items():
        values = found[f"{name}_fair"].mean(axis=1)
        ax.plot(leads, values, marker="o", color=colours[name], label=label)
    ax.set_xticks(leads)
    ax.set_ylim(bottom=0)
    finish(ax, x="lead, days", y="fair CRPS, deviations of the climate", legend=True)
    run_dir.add_figure("fair_crps", figure, "Fair CRPS by lead, mean over fields.")


def sample_job(config, run_dir, model):
    """The test starts by date, all leads together, given their first two members.

    Raises:
        ConfigError: if the run keeps no emulator or archive, or a model is named.
    """
    if model not in (None, "generated"):
        raise ConfigError(f"--model is generated, of all leads; got {model}.")
    emulators = kept.load(config, run_dir, "generated")
    about, archives = kept.stage(run_dir, config, "archive"), files.archives(run_dir)
    climate = Standardiser(about["mean"], about["sd"])
    case, lead = about["case"].astype("M8[ns]"), about["lead"].astype("m8[ns]")
    test, num_fields = archives["test"], len(config.archive.fields)

    def condition(row):
        given = np.asarray(test[row][:, : training.K])[:, None]
        base = np.broadcast_to(archives["test_base"][row], (len(lead), *test.shape[3:]))
        found = emulators.conditions(given, base[:, None])
        return jax.tree.map(lambda x: x[:, 0], found)

    def restore(samples, row):
        """`[member, lead, *space, field]` in units of the files, fields first."""
        times = (case[row] + lead)[None] if len(climate.mean) > 1 else None
        return np.asarray(climate.restore(np.moveaxis(samples, -1, 2), times))

    return SampleJob(
        denoisers=emulators.denoisers,
        condition=condition,
        shape=(*config.archive.space, num_fields),
        restore=restore,
        case=case,
        lead=lead,
        variable=list(config.archive.fields),
        space={k[6:]: v for k, v in about.items() if k.startswith("space_")},
        source=config.archive.path,
        truth=functools.partial(_truth, archives, restore),
        seed=config.seed,
        sampler=sampler_of(config),
    )


def _truth(archives, restore, row):
    return restore(np.asarray(archives["truth"][row])[None], row)[0]
