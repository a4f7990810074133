"""A report on learned forecasts as a centre writes it, on Lorenz-96 and on real rain.

`_training.py` trains and forecasts, `_scores.py` and `_cards.py` measure, `_cost.py`
times, `_rain.py` is of the real data, `_claims.py` judges, `_tables.py` and
`_figures.py` show.
"""

from ensjax.experiment import ConfigError
from ensjax.experiment.fields import check_numbers, choose, load_beside
from ensjax.experiment.stages import run_stages

weather = load_beside(__file__, "lorenz96_forecasts")
training = load_beside(__file__, "forecast_assessment_training")
scores = load_beside(__file__, "forecast_assessment_scores")
cards = load_beside(__file__, "forecast_assessment_cards")
cost = load_beside(__file__, "forecast_assessment_cost")
rain = load_beside(__file__, "forecast_assessment_rain")
verdicts = load_beside(__file__, "forecast_assessment_claims")
figures = load_beside(__file__, "forecast_assessment_figures")

training_job = training.training_job


def validate(config):
    """Raises `ConfigError` for what would fail later, in one line."""
    choose("source", config.source, dict.fromkeys(("lorenz96", "era5")))
    if config.source == "era5":
        return
    weather.validate(config)
    check_numbers(config, ("num_seeds", "cost_repeats"), at_least=1)
    check_numbers(config, ("num_members",), at_least=2)
    check_numbers(config, ("leads", "extremes.leads", "efi.first_lead"), at_least=1)
    blocks = config.bootstrap.block_length
    check_numbers(config, ("archive.num_starts",), at_least=blocks)
    names = ("one_step", "crps", "several", "steps_per_call", "num_rollout_steps")
    check_numbers(config, [f"training.{name}" for name in names], at_least=1)
    check_numbers(config, ("training.crps_members",), at_least=2)
    check_numbers(
        config,
        ("extremes.member_counts",),
        at_least=1,
        at_most=config.num_members,
    )
    check_numbers(config, ("extremes.percents",), above=0, below=100)
    leads, last = list(config.leads), config.archive.num_leads
    if sorted(set(leads)) != leads or leads[-1] > last:
        raise ConfigError(
            f"config.leads rise up to config.archive.num_leads = {last}; got {leads}."
        )
    if not set(config.extremes.leads) <= set(leads):
        raise ConfigError("config.extremes.leads are some of config.leads.")
    if not config.efi.first_lead <= config.efi.last_lead <= last:
        raise ConfigError(
            "config.efi goes from first_lead to last_lead, at most"
            f" config.archive.num_leads = {last}."
        )
    if config.archive.num_sites % config.num_sectors:
        raise ConfigError(
            f"config.num_sectors divides the {config.archive.num_sites} sites; got"
            f" {config.num_sectors}."
        )
    below = [p for p in config.extremes.percents if p < 50]
    if len(below) != scores.NUM_BELOW or list(config.extremes.percents[:2]) != below:
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
        "scores": lambda done: scores.measure(
            config, done["simulate"], done["forecast"]
        ),
        "cards": lambda done: cards.measure(config, done["simulate"], done["forecast"]),
        "cost": lambda done: cost.measure(config, run_dir, done["simulate"]),
        "rain": lambda done: rain.measure(config),
    }
    done = run_stages(run_dir, config, stages)
    verdicts.add_tables(run_dir, config, done)
    figures.add_figures(run_dir, config, done)
    run_dir.finish(
        title=config.title,
        summary=verdicts.describe(config, done),
        scalars=verdicts.summarise(config, done),
        claims=verdicts.make_claims(config, done),
        checks=verdicts.make_checks(config, done),
    )
