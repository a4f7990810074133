"""FuXi-ENS on two-scale Lorenz-96: learned perturbations of the state, CRPS and KL.

`_training.py` trains, `_networks.py` has what is of full size, `_emulators.py`
forecasts, `_scores.py` measures, `_rainfall.py` has real rain, `_claims.py` judges and
`_figures.py` draws.

Emulators start from two exact states of the slow variables. The simulator starts from
the last of them, and the red noise of its closure at random, as in its climate: what
the fast scale was doing can be seen in two states, and the simulator is not told.
"""

import dataclasses

import numpy as np
from flax import nnx

from ensjax.emulate.variational_training import DIRECTIONS, RECONSTRUCTIONS, SOURCES
from ensjax.experiment import ConfigError
from ensjax.experiment.configs import load_config
from ensjax.experiment.fields import (
    check_blocks,
    check_numbers,
    check_rising,
    check_run,
    choose,
    load_beside,
)
from ensjax.experiment.stages import run_stages
from ensjax.verification.crps import ESTIMATORS

fields = load_beside(__file__, "forecast_fields")
training = load_beside(__file__, "fuxi_ens_training")
scores = load_beside(__file__, "fuxi_ens_scores")
rainfall = load_beside(__file__, "fuxi_ens_rainfall")
verdicts = load_beside(__file__, "fuxi_ens_claims")
figures = load_beside(__file__, "fuxi_ens_figures")

weather = training.weather
training_job = training.training_job
EMULATED = "emulate-2"


def validate(config):
    """Raises `ConfigError` for what would fail later, in one line."""
    own = config.training
    choose("archive.source", config.archive.source, dict.fromkeys(training.SOURCES))
    name = "residual" if config.archive.source == "lorenz96" else "windows"
    choose("model.name", config.model.name, {name: training.NETWORKS[name]})
    if config.archive.source == "era5":
        fields.check_full_size(config, "archive")
    choose("training.kl_direction", own.kl_direction, dict.fromkeys(DIRECTIONS))
    choose("training.draw_from", own.draw_from, dict.fromkeys(SOURCES))
    choose("training.estimator", own.estimator, dict.fromkeys(ESTIMATORS))
    kinds, weights = config.variants.reconstructions, config.variants.kl_weights
    for kind in kinds:
        choose("variants.reconstructions", kind, dict.fromkeys(RECONSTRUCTIONS))
    if not kinds or len(kinds) != len(weights) or kinds[0] != "crps":
        raise ConfigError(
            "config.variants.reconstructions and kl_weights are as many, at least one,"
            f" and the first is crps; got {tuple(kinds)} and {tuple(weights)}."
        )
    check_numbers(config, ("variants.kl_weights",), at_least=0)
    names = training.variants(config)
    if len({*names}) < len(names):
        raise ConfigError(f"config.variants must differ; got {', '.join(names)}.")
    check_run(config, batch_size="training.batch_size")
    whole = dict(are_whole=True)
    check_numbers(config, ("num_seeds", "model.width"), at_least=1, **whole)
    limits = config.model.log_variance_range
    check_rising(config, ("model.log_variance_range",), num_least=2, are_whole=False)
    if len(limits) > 2:
        raise ConfigError(f"config.model.log_variance_range are two; got {limits}.")
    offset = ("model.log_variance_offset",)
    check_numbers(config, offset, above=limits[0], below=limits[1])
    _validate_training(config)
    if config.archive.source == "lorenz96":
        _validate_toy(config)


def _validate_training(config):
    own, whole = config.training, dict(are_whole=True)
    if len(own.rollout_steps) != len(own.total_steps) or not own.rollout_steps:
        raise ConfigError(
            "config.training.rollout_steps and total_steps are as many, one of each"
            f" stage; got {tuple(own.rollout_steps)} and {tuple(own.total_steps)}."
        )
    check_numbers(config, ("num_members", "training.num_members"), at_least=2, **whole)
    names = ("rollout_steps", "total_steps", "batch_size", "steps_per_call")
    check_numbers(config, [f"training.{name}" for name in names], at_least=1, **whole)
    check_numbers(config, ("training.warmup_steps",), at_least=0, **whole)
    check_numbers(config, ("training.learning_rate", "training.max_norm"), above=0)
    check_numbers(config, ("training.weight_decay",), at_least=0)
    check_numbers(config, ("training.betas",), at_least=0, below=1)
    if len(own.betas) != 2:
        raise ConfigError(f"config.training.betas are two; got {own.betas}.")
    check_blocks(config, ("training.block",))
    for steps in own.total_steps:  # each stage is saved at its end
        if steps % min(own.steps_per_call, steps):
            raise ConfigError(
                f"config.training.steps_per_call must divide the {steps} steps of a"
                f" stage; got {own.steps_per_call}."
            )


def _validate_toy(config):
    archive, whole = config.archive, dict(are_whole=True)
    longest = training.NUM_STATES + max(config.training.rollout_steps)
    fields.check_archive(config, num_times=longest)
    fields.check_network(config)
    check_numbers(config, ("archive.num_before",), at_least=training.NUM_STATES - 1)
    check_rising(config, ("short_leads",), at_least=1, at_most=archive.num_leads)
    starts = dict(at_most=archive.num_starts)
    check_numbers(config, ("bootstrap.num_resamples",), at_least=10, **whole)
    check_numbers(config, ("bootstrap.block_length",), at_least=1, **starts, **whole)
    check_numbers(config, ("rain.num_members",), at_least=2, **whole)
    check_numbers(config, ("rain.width", "rain.total_steps"), at_least=1, **whole)
    check_numbers(config, ("rain.depth",), at_least=0, **whole)
    check_numbers(config, ("rain.learning_rate", "rain.dry_depth"), above=0)
    check_numbers(config, ("rain.weight_decay", "rain.kl_weight"), at_least=0)
    check_numbers(config, ("block_sites",), at_least=1, **whole)
    if training.l1_name(config) not in training.variants(config):
        raise ConfigError(
            "config.variants must hold l1 with the KL weight of the first variant,"
            f" {config.variants.kl_weights[0]:g}; got {training.variants(config)}."
        )
    if archive.num_sites % config.block_sites:
        raise ConfigError(
            f"config.block_sites must divide the {archive.num_sites} sites; got"
            f" {config.block_sites}."
        )
    fields.check_rain(config, num_train=64)  # a batch of it


def run(config, run_dir):
    """Simulates, trains, forecasts, scores and judges; resumes by stages.

    Raises:
        ConfigError: for data that are not at hand, before anything is done.
    """
    training.check_at_hand(config)
    stages = {
        "simulate": lambda done: training.simulate(config),
        "rain": lambda done: rainfall.run(config, run_dir),
        "full_size": lambda done: full_size_costs(),
        # The name changes with what the stage gives: "emulate" is of older versions.
        EMULATED: lambda done: emulate(config, run_dir, done["simulate"]),
    }
    done = run_stages(run_dir, config, stages)
    done["emulate"] = done.pop(EMULATED)
    verdicts.add_tables(run_dir, config, done)
    figures.add_figures(run_dir, config, done)
    run_dir.finish(
        title=config.title,
        summary=verdicts.describe(config, done),
        scalars=verdicts.summarise(config, done),
        claims=verdicts.make_claims(config, done),
        checks=verdicts.make_checks(config, done),
    )


def full_size_costs() -> dict[str, np.ndarray]:
    """What the preset `paper` costs, by tracing: `fuxi_ens_networks.costs`.

    Returns:
        Its numbers; and "rows", "columns" and "channels" of a state.
    """
    config = load_config("fuxi_ens:paper")[1]
    job = training.training_job(config, shapes_only=True)
    pair = nnx.eval_shape(lambda: job.make_model(nnx.Rngs(params=0)))
    loss = dataclasses.replace(job.options["loss"].loss, axis=None)
    shape = training.full_size.state_shape(config)
    found = dict(zip(("rows", "columns", "channels"), shape, strict=True))
    found |= training.full_size.costs(config, pair, loss)
    return {name: np.float64(value) for name, value in found.items()}


def emulate(config, run_dir, archives) -> dict[str, np.ndarray]:
    """Trains all networks and scores their forecasts and the simulator's.

    Returns:
        Scores `[seed, ...]` of `fuxi_ens_scores.measure` by `<name>/<score>`, where the
        names are those of the variants, "replaced", "constant", "one_spread" and
        "simulator"; `<variant>/spearman` and `/bins`; `<variant>/kl`, `/sigma` and
        `/ssr_trained`, the last of training; `cells/...` of `better_cells` for the
        first variant against the simulator; and `frozen_steps` of all networks.
    """
    ensembles, logs = training.train(config, run_dir, archives)
    names, count = training.variants(config), len(training.variants(config))
    rows = {}

    def add(name, seed, values):
        for key, value in values.items():
            rows.setdefault(f"{name}/{key}", []).append(np.asarray(value))

    for kind, ensemble in ensembles.items():
        drawn, sigma = training.emulators.forecasts(config, ensemble, archives)
        own = names if kind == "learned" else [kind]
        for number, (forecast, deviation) in enumerate(zip(drawn, sigma, strict=True)):
            seed, place = divmod(number, len(own))
            found = _measure(config, archives, seed, forecast)
            error = found.pop("error")
            if kind == "learned":
                spearman, bins = scores.flow_dependence(deviation, error)
                found |= {"spearman": spearman, "bins": bins}
            add(own[place], seed, found)
    for seed in range(config.num_seeds):
        found = _measure(config, archives, seed, simulated(config, archives, seed))
        found.pop("error")
        add("simulator", seed, found)
    for place, name in enumerate(names):
        for key, values in last_of_training(logs["train"]).items():
            rows[f"{name}/{key}"] = values.reshape(-1, count)[:, place]
    found = {name: np.stack(values) for name, values in rows.items()}
    for seed in range(config.num_seeds):
        own, other = (found[f"{name}/cells"][seed] for name in (names[0], "simulator"))
        compared = scores.better_cells(
            own, other, seed=seed, **config.bootstrap.to_dict()
        )
        for key, value in compared.items():
            found.setdefault(f"cells/{key}", []).append(value)
    frozen = [np.asarray(log.frozen_steps) for log in logs.values()]
    return {name: np.asarray(value) for name, value in found.items()} | {
        "frozen_steps": np.concatenate(frozen)
    }


def last_of_training(log) -> dict[str, np.ndarray]:
    """KL, mean deviation and spread over error `[network]`, of the last tenth."""
    last = max(1, len(log.metrics["loss"]) // 10)
    names = {"kl": "kl_1", "sigma": "sigma_1", "ssr_trained": "ssr_1"}
    return {
        key: np.asarray(log.metrics[name])[-last:].mean(axis=0)
        for key, name in names.items()
    }


def simulated(config, archives, seed) -> np.ndarray:
    """The ensemble of the imperfect simulator, from the truth at the starts."""
    own = training.archive_of(archives, seed)
    starts = own["truth"][:, config.archive.num_before]
    number = config.seed + seed
    members = weather.perturbed(starts, config, number, config.num_members, noise=0.0)
    return weather.closure_ensemble(config, own, members, number)


def _measure(config, archives, seed, forecast):
    truth = archives["truth"][seed][:, config.archive.num_before + 1 :]
    return scores.measure(
        forecast,
        truth.astype(np.float32),
        block_sites=config.block_sites,
        short_leads=tuple(config.short_leads),
    )
