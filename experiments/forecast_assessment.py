"""A report on learned forecasts as a centre writes it, on Lorenz-96 and on real rain.

`_training.py` trains and forecasts, `_scores.py` and `_cards.py` measure, `_cost.py`
times, `_rain.py` is of the real data, `_claims.py` judges, `_tables.py` and
`_figures.py` show.
"""

from ensjax.experiment import ConfigError
from ensjax.experiment.fields import (
    check_blocks,
    check_multiples,
    check_numbers,
    check_rising,
    check_run,
    choose,
    load_beside,
)
from ensjax.experiment.stages import run_stages

fields = load_beside(__file__, "forecast_fields")
training = load_beside(__file__, "forecast_assessment_training")
scores = load_beside(__file__, "forecast_assessment_scores")
cards = load_beside(__file__, "forecast_assessment_cards")
cost = load_beside(__file__, "forecast_assessment_cost")
rain = load_beside(__file__, "forecast_assessment_rain")
verdicts = load_beside(__file__, "forecast_assessment_claims")
figures = load_beside(__file__, "forecast_assessment_figures")

training_job = training.training_job
MEASURED = "scores-2"


def validate(config):
    """Raises `ConfigError` for what would fail later, in one line."""
    choose("source", config.source, dict.fromkeys(("lorenz96", "era5")))
    if config.source == "era5":
        fields.check_full_size(config, "archive")
        choose("model.name", config.model.get("name"), {"sfno": None})
        fields.check_checkpoints(config)
        names = ("training.num_rollout_steps",)
        check_numbers(config, names, at_least=1, are_whole=True)
        return
    check_run(config, batch_size="training.batch_size")
    whole = dict(are_whole=True)
    check_numbers(config, ("num_seeds", "cost_repeats"), at_least=1, **whole)
    check_numbers(config, ("num_members",), at_least=2, **whole)
    check_numbers(config, ("analysis_noise",), at_least=0)
    _validate_training(config)
    _validate_scores(config)
    _validate_extremes(config)
    check_numbers(config, ("rain.threshold",), above=0)
    check_numbers(config, ("rain.num_quantiles",), at_least=2, **whole)
    check_numbers(config, ("rain.block_days",), at_least=1, **whole)
    fields.check_rain(config, num_test=config.rain.block_days)


def _validate_training(config):
    own, whole = config.training, dict(are_whole=True)
    counts = ("one_step", "crps", "several", "steps_per_call", "num_rollout_steps")
    counts += ("num_noise_channels",)
    check_numbers(config, [f"training.{name}" for name in counts], at_least=1, **whole)
    check_numbers(config, ("training.crps_members",), at_least=2, **whole)
    check_numbers(config, ("training.warmup_steps",), at_least=0, **whole)
    check_numbers(config, ("training.alpha",), at_least=0, at_most=1)
    rates = ("training.learning_rate", "training.several_learning_rate")
    check_numbers(config, rates, above=0)
    check_blocks(config, ("training.block",))
    # Each is saved at its end.
    names = [f"training.{name}" for name in ("one_step", "crps", "several")]
    check_multiples(config, names, of="training.steps_per_call")
    for name in ("one_step", "crps"):
        if own.warmup_steps >= own[name]:
            raise ConfigError(
                f"config.training.warmup_steps must be fewer than training.{name} ="
                f" {own[name]}; got {own.warmup_steps}."
            )
    fields.check_archive(config, num_times=1 + own.num_rollout_steps)
    fields.check_network(config)


def _validate_scores(config):
    archive, whole = config.archive, dict(are_whole=True)
    last = archive.num_leads
    check_rising(config, ("leads",), at_least=1, num_least=2)
    if config.leads[-1] > last:
        raise ConfigError(
            f"config.leads rise up to config.archive.num_leads = {last}; got"
            f" {config.leads}."
        )
    # The second half of the starts is verified with the climate of the first.
    check_numbers(config, ("archive.num_starts",), at_least=2)
    starts = dict(at_most=archive.num_starts)
    check_numbers(config, ("bootstrap.block_length",), at_least=1, **starts, **whole)
    check_numbers(config, ("bootstrap.num_resamples",), at_least=10, **whole)
    check_numbers(config, ("drift.size",))
    check_numbers(config, ("drift.time",), above=0)
    check_numbers(config, ("drift.num_resamples", "num_sectors"), at_least=1, **whole)
    check_numbers(config, ("efi.first_lead", "efi.last_lead"), at_least=1, **whole)
    first, end = config.efi.first_lead, config.efi.last_lead
    if not first <= end <= last:
        raise ConfigError(
            "config.efi goes from first_lead to last_lead, at most"
            f" config.archive.num_leads = {last}; got {first} and {end}."
        )
    if archive.num_train_outputs <= end - first + 1:
        raise ConfigError(
            "config.archive.num_train_outputs must be more than the"
            f" {end - first + 1} leads from efi.first_lead to efi.last_lead; got"
            f" {archive.num_train_outputs}."
        )
    if config.archive.num_sites % config.num_sectors:
        raise ConfigError(
            f"config.num_sectors divides the {config.archive.num_sites} sites; got"
            f" {config.num_sectors}."
        )


def _validate_extremes(config):
    whole, members = dict(are_whole=True), dict(at_most=config.num_members)
    check_numbers(config, ("extremes.num_stations",), at_least=1, **whole)
    check_numbers(config, ("extremes.station_noise",), at_least=0)
    check_rising(config, ("extremes.member_counts",), at_least=1, **members)
    # Systems are compared at the last two.
    check_rising(config, ("extremes.leads",), at_least=1, num_least=2)
    if not set(config.extremes.leads) <= set(config.leads):
        raise ConfigError(
            f"config.extremes.leads are some of config.leads, {config.leads}; got"
            f" {config.extremes.leads}."
        )
    check_numbers(config, ("extremes.percents",), above=0, below=100)
    check_rising(config, ("extremes.percents",), are_whole=False)
    below = [p for p in config.extremes.percents if p < 50]
    if len(below) != scores.NUM_BELOW or len(config.extremes.percents) == len(below):
        raise ConfigError(
            "config.extremes.percents are two below 50, then those above it; got"
            f" {config.extremes.percents}."
        )


def run(config, run_dir):
    """Simulates, trains, forecasts, scores and judges; resumes by stages.

    Raises:
        ConfigError: for data that are not at hand, before anything is done.
    """
    if config.source == "era5":
        raise ConfigError(
            "era5 and the forecasts of the IFS are not at hand, so that this preset is"
            " planned: ensjax plan. Where forecasts are, ensjax verify FORECAST TRUTH"
            " --compare-to OTHER scores them."
        )
    stages = {
        "simulate": lambda done: training.simulate(config),
        "forecast": lambda done: training.forecast(config, run_dir, done["simulate"]),
        # The name changes with what the stage gives: "scores" is of older versions.
        MEASURED: lambda done: scores.measure(
            config, done["simulate"], done["forecast"]
        ),
        "cards": lambda done: cards.measure(config, done["simulate"], done["forecast"]),
        "cost": lambda done: cost.measure(config, run_dir, done["simulate"]),
        "rain": lambda done: rain.measure(config),
    }
    done = run_stages(run_dir, config, stages)
    done["scores"] = done.pop(MEASURED)
    verdicts.add_tables(run_dir, config, done)
    figures.add_figures(run_dir, config, done)
    run_dir.finish(
        title=config.title,
        summary=verdicts.describe(config, done),
        scalars=verdicts.summarise(config, done),
        claims=verdicts.make_claims(config, done),
        checks=verdicts.make_checks(config, done),
    )
