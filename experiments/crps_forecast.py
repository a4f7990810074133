"""One network with noise inside, trained on the CRPS of its members (AIFS-CRPS).

`_training.py` trains and forecasts, `_scores.py` measures ensembles, `_theory.py` what
the losses ask for, `_efi.py` compares extreme forecast indices with the two-scale
simulator's, `_drift.py` has simulators that drift, `_rain.py` is about real
rain, `_claims.py` judges and `_figures.py` draws. `lorenz96_forecasts.py` has the
weather and the imperfect simulator.

Emulator and simulator start from the truth's slow variables without error. The red
noise of the simulator's closure starts at random, as in its climate: it does not know
what the fast scale was doing; neither does the emulator, which sees one state.
"""

import jax
import numpy as np

from ensjax.experiment import ConfigError
from ensjax.experiment.fields import (
    check_multiples,
    check_numbers,
    check_rising,
    check_run,
    choose,
    load_beside,
)
from ensjax.experiment.stages import run_stages

fields = load_beside(__file__, "forecast_fields")
training = load_beside(__file__, "crps_forecast_training")
scores = load_beside(__file__, "crps_forecast_scores")
theory = load_beside(__file__, "crps_forecast_theory")
rain = load_beside(__file__, "crps_forecast_rain")
drifting = load_beside(__file__, "crps_forecast_drift")
efi = load_beside(__file__, "crps_forecast_efi")
verdicts = load_beside(__file__, "crps_forecast_claims")
figures = load_beside(__file__, "crps_forecast_figures")
lorenz = training.lorenz

training_job = training.training_job
MEASURED = "scores-2"


def validate(config):
    """Raises `ConfigError` for what would fail later, in one line."""
    choose("archive.source", config.archive.source, dict.fromkeys(training.SOURCES))
    choose("model.noise", config.model.noise, training.NOISES)
    for loss in config.get("losses", training.LOSSES):
        choose("losses", loss, dict.fromkeys(training.LOSSES))
    if config.archive.source == "era5":
        fields.check_full_size(config, "archive")
    check_run(config, batch_size="training.batch_size")
    counts = ("num_seeds", "training.batch_size", "training.steps_per_call")
    counts += ("model.width", "model.num_noise_channels")
    check_numbers(config, counts, at_least=1, are_whole=True)
    _validate_training(config)
    if config.archive.source == "lorenz96":
        _validate_toy(config)


def _validate_training(config):
    check_numbers(config, ("training.alpha",), at_least=0, at_most=1)
    check_numbers(config, ("training.max_norm",), above=0)
    check_numbers(config, ("training.weight_decay",), at_least=0)
    saves = ("training.save_every_steps",)
    check_numbers(config, saves, at_least=1, are_whole=True)
    check_multiples(config, saves, of="training.steps_per_call")
    lengths = {name: len(values) for name, values in config.stages.items()}
    if len(set(lengths.values())) != 1 or not min(lengths.values()):
        raise ConfigError(
            f"config.stages has one entry for each stage in every field; got {lengths}."
        )
    counts = ("total_steps", "rollout_steps", "num_members")
    counts = [f"stages.{name}" for name in counts]
    check_numbers(config, counts, at_least=1, are_whole=True)
    check_numbers(config, ("stages.warmup_steps",), at_least=0, are_whole=True)
    check_numbers(config, ("stages.learning_rate",), above=0)
    if not {*config.stages.is_centred} <= {True, False}:
        raise ConfigError(
            "config.stages.is_centred must be True or False for each stage; got"
            f" {config.stages.is_centred}."
        )
    try:
        training.stages_of(config, training.losses_of(config))
    except ValueError as error:
        raise ConfigError(f"config.stages: {error}") from error


def _validate_toy(config):
    archive, whole = config.archive, dict(are_whole=True)
    check_numbers(config, ("archive.num_train_outputs",), at_least=1, **whole)
    if max(config.stages.rollout_steps) >= archive.num_train_outputs:
        raise ConfigError(
            f"a rollout of {max(config.stages.rollout_steps)} steps needs runs of more"
            f" outputs; archive.num_train_outputs is {archive.num_train_outputs}."
        )
    fields.check_archive(config, num_times=1 + max(config.stages.rollout_steps))
    fields.check_network(config)
    # For means of nine sites, and the drift, which is three waves around the ring.
    check_numbers(config, ("archive.num_sites",), at_least=9)
    if archive.num_before:
        raise ConfigError(
            "config.archive.num_before must be 0: forecasts start from the first"
            f" output; got {archive.num_before}."
        )
    num_starts, last = archive.num_starts, dict(at_most=archive.num_leads)
    check_numbers(config, ("num_members",), at_least=2, **whole)
    check_numbers(config, ("num_test",), at_least=2, at_most=num_starts - 2, **whole)
    check_numbers(config, ("num_hindcast_members",), at_least=1, **whole)
    check_numbers(config, ("num_resamples",), at_least=10, **whole)
    check_numbers(config, ("optimum_draws",), at_least=1_024, **whole)
    check_numbers(config, ("mean_outputs",), at_least=1, **last, **whole)
    # The last one of some is what the others are compared with.
    check_rising(config, ("sizes",), at_least=2, num_least=2)
    check_rising(config, ("rank_leads",), at_least=1, **last)
    first = config.mean_outputs
    check_rising(config, ("mean_leads",), at_least=first, num_least=2, **last)
    check_rising(config, ("drifts",), at_least=0, are_whole=False)
    if config.drifts[0] != 0 or 0.25 not in config.drifts:
        raise ConfigError(
            "config.drifts begin with 0, without a drift, and hold 0.25, which checks"
            f" name; got {config.drifts}."
        )
    check_numbers(config, ("rain.ema_decay",), above=0, below=1)
    check_numbers(config, ("rain.weight_decay",), at_least=0)
    counts = ("width", "num_noise_channels", "total_steps", "batch_size", "num_seeds")
    counts += ("num_members", "num_samples")
    check_numbers(config, [f"rain.{name}" for name in counts], at_least=1, **whole)
    fields.check_rain(config, num_train=config.rain.batch_size)
    rain.validate(config)


def run(config, run_dir):
    """Simulates, trains, forecasts, scores and judges; resumes by stages.

    Raises:
        ConfigError: for data that are not at hand, before anything is done.
    """
    training.check_at_hand(config)
    stages = {
        "theory": lambda done: theory.measure(config),
        "rain": lambda done: rain.measure(config, run_dir),
        "simulate": lambda done: training.simulate(config),
        # The name changes with what the stage gives: "scores" is of older versions.
        MEASURED: lambda done: measure(config, run_dir, done["simulate"]),
        "first_step": lambda done: first_step(config, run_dir, done["simulate"]),
        "efi": lambda done: efi.measure(config, run_dir, done["simulate"]),
    }
    done = run_stages(run_dir, config, stages)
    done["scores"] = done.pop(MEASURED)
    figures.add_tables(run_dir, config, done)
    efi.add_table(run_dir, config, done)
    figures.add_figures(run_dir, config, done)
    run_dir.finish(
        title=config.title,
        summary=verdicts.describe(config, done),
        scalars=verdicts.summarise(config, done) | efi.summarise(config, done),
        claims=verdicts.make_claims(config, done),
        checks=verdicts.make_checks(config, done) + efi.make_checks(config, done),
    )


def measure(config, run_dir, archives) -> dict[str, np.ndarray]:
    """Trains, and scores the networks and the imperfect simulator, `[seed, ...]`.

    Returns:
        For each system "error", "standard", "almost_fair", "fair" and "simulator":
        `<system>_fair`, `_rmse`, `_ssr`, `_activity` `[seed, lead]` and `_counts`
        `[seed, lead, rank]`; `cells_...` and `sizes_...` as in `_scores.py`; `ratios`
        and `pushed_ratios` `[seed, raw or anomaly, drift, lead]`, with the drift added
        to what the simulator gives, and made by its equations; `pushes` `[seed, drift]`
        and `pushed_drifts` `[seed, drift, lead]` as in `_drift.py`; `plume` `[2,
        member, lead]` and `plume_truth` `[lead]` of a site of the first case; and
        `frozen_steps`.
    """
    nets = training.train(config, run_dir, archives)
    rows = [
        measure_seed(config, nets, training.of_seed(archives, seed), seed)
        for seed in range(config.num_seeds)
    ]
    found = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return found | {"frozen_steps": nets["frozen_steps"]}


def measure_seed(config, nets, archive, seed) -> dict[str, np.ndarray]:
    """All scores of one seed's networks against its own weather."""
    number = config.seed + seed
    truth = archive["truth"][: config.num_test, 1:].astype(np.float32)
    starts = archive["truth"][:, 0].astype(np.float32)
    own, others = starts[: config.num_test], starts[config.num_test :]
    first = seed * len(training.LOSSES)
    stack = nets["noise"].select(range(first, first + len(training.LOSSES)))
    members = training.forecast(config, stack, own, config.num_members)
    plain = training.forecast(config, nets["error"].select([seed]), own, 1)
    systems = dict(zip(training.LOSSES, members, strict=True)) | {
        "error": plain[0],
        "simulator": simulate_from(config, archive, own, config.num_members, number),
    }
    found = {}
    for name, ensemble in systems.items():
        own_scores = scores.by_lead(ensemble, truth)
        found |= {f"{name}_{key}": value for key, value in own_scores.items()}
        if len(ensemble) > 1:
            counts = scores.rank_counts(ensemble, truth, config.rank_leads)
            found[f"{name}_counts"] = counts
    key = jax.random.key(number)
    compared = scores.cells(
        systems["almost_fair"], systems["simulator"], truth, key, config.num_resamples
    )
    found |= {f"cells_{name}": value for name, value in compared.items()}
    best = stack.select([training.LOSSES.index("almost_fair")])
    many = training.forecast(config, best, own, max(config.sizes))[0]
    sized = scores.sizes(many, truth, config.sizes, key, config.num_resamples)
    found |= {f"sizes_{name}": value for name, value in sized.items()}
    del many
    found |= _ratios(config, archive, systems, best, (own, others), truth, number)
    shown = [systems[name][:, 0, :, 0] for name in ("almost_fair", "simulator")]
    return found | {"plume": np.stack(shown), "plume_truth": truth[0, :, 0]}


def first_step(config, run_dir, archives) -> dict[str, np.ndarray]:
    """Spread over error after one step from all starts, of hindcasts, too.

    Errors of one step are rare and large (their kurtosis is 10 and more), so that the
    starts that are verified to the last lead are too few to tell it.

    Returns:
        `<loss>_ssr` `[seed]`.
    """
    nets = training.train(config, run_dir, archives)  # from their checkpoints
    found = {f"{loss}_ssr": [] for loss in training.LOSSES}
    for seed in range(config.num_seeds):
        truth = training.of_seed(archives, seed)["truth"][:, :2].astype(np.float32)
        first = seed * len(training.LOSSES)
        stack = nets["noise"].select(range(first, first + len(training.LOSSES)))
        members = training.forecast(
            config, stack, truth[:, 0], config.num_members, num_leads=1
        )
        for loss, own in zip(training.LOSSES, members, strict=True):
            ratio = scores.by_lead(own, truth[:, 1:])["ssr"][0]
            found[f"{loss}_ssr"].append(ratio)
    return {name: np.asarray(values) for name, values in found.items()}


def simulate_from(config, archive, starts, num_members, seed) -> np.ndarray:
    """What the imperfect simulator forecasts, `[member, case, lead, site]`."""
    same = np.repeat(starts[:, None], num_members, axis=1)
    return lorenz.closure_ensemble(config, archive, same, seed).astype(np.float32)


def _ratios(config, archive, systems, best, starts, truth, seed):
    """`scores.anomaly_ratios` with hindcasts from starts that are not verified."""
    own, others = starts

    def means(values):
        return scores.late_means(values, config.mean_leads, config.mean_outputs)

    count = config.num_hindcast_members
    emulated = training.forecast(
        config, best, others, count, first_case=config.num_test
    )[0]
    hindcasts = {
        "emulated": means(emulated),
        "truth": means(archive["truth"][config.num_test :, 1:]),
    }
    simulated = means(simulate_from(config, archive, others, count, seed + 500))
    length = config.archive.steps_per_output * lorenz.system_of(config).step_length
    drifts = [
        means(scores.drift(size, truth.shape[-1], truth.shape[1], length))
        for size in config.drifts
    ]
    pushed = drifting.measure(config, archive, own, others, seed, means)
    about = means(systems["almost_fair"]), means(truth), hindcasts
    usual = simulated.mean(axis=(0, 1))
    return {
        "ratios": scores.anomaly_ratios(
            *about,
            [means(systems["simulator"]) + drift for drift in drifts],
            [usual + drift for drift in drifts],
        ),
        "pushed_ratios": scores.anomaly_ratios(
            *about, pushed["forecasts"], pushed["hindcasts"].mean(axis=(1, 2))
        ),
        "pushes": pushed["pushes"],
        "pushed_drifts": pushed["amplitudes"],
    }
