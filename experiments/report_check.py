"""Majority votes that check reports for errors, and the cases that a reader missed.

Beside it, `report_check_data.py` writes images and reports, `report_check_training.py`
trains members and readers as stacks, `report_check_kinds.py` models of other kinds,
`report_check_votes.py` asks, votes and measures, `report_check_alone.py` votes without
networks, `report_check_answers.py` reads answers of real models,
`report_check_claims.py` judges, `report_check_figures.py` draws.
"""

import numpy as np

import ensjax
from ensjax.experiment import ConfigError
from ensjax.experiment.exit_codes import one_line
from ensjax.experiment.fields import check_multiples, check_numbers, choose, load_beside
from ensjax.experiment.stages import run_stages

cases = load_beside(__file__, "report_check_data")
training = load_beside(__file__, "report_check_training")
kinds = load_beside(__file__, "report_check_kinds")
votes = load_beside(__file__, "report_check_votes")
alone = load_beside(__file__, "report_check_alone")
answers = load_beside(__file__, "report_check_answers")
verdicts = load_beside(__file__, "report_check_claims")
figures = load_beside(__file__, "report_check_figures")

NOTHING_TRAINED = (
    "config.from_answers: this preset trains nothing, so that there is nothing to plan"
    " or to make again: it reads the answers of models from config.answers.path."
)


def validate(config, mesh=None):
    """Raises `ConfigError` for numbers that cannot work or a file that is absent.

    Args:
        config: of the run.
        mesh: of a plan; None: of a run.
    """
    if config.from_answers:
        if mesh is not None:
            raise ConfigError(NOTHING_TRAINED)
        answers.load(config)
        return
    _check_numbers(config)
    if not config.kinds or len(set(config.kinds)) < len(config.kinds):
        raise ConfigError(f"config.kinds names different kinds; got {config.kinds}.")
    for name in config.kinds:
        choose("kinds", name, dict.fromkeys(kinds.KINDS))
    settings = config.reports
    if len(settings.prevalence) != len(settings.turn):
        raise ConfigError(
            "config.reports.turn holds one angle for each domain of"
            f" config.reports.prevalence, {len(settings.prevalence)}; got"
            f" {settings.turn}."
        )
    if not 2 <= settings.num_findings <= len(cases.NAMES):
        raise ConfigError(
            f"config.reports.num_findings must be from 2 to {len(cases.NAMES)}, which"
            f" have names; got {settings.num_findings}."
        )
    smallest = min(settings.num_general, settings.num_train)
    if config.batch_size > smallest:
        raise ConfigError(
            f"config.batch_size must be at most the {smallest:,} training rows; got"
            f" {config.batch_size}."
        )
    check_multiples(config, ("untuned_steps", "tuned_steps", "reader_steps"))
    if config.alone.num_features > 30 or config.alone.num_test > 560:
        raise ConfigError(
            "config.alone: breast cancer has 30 features (num_features) and 569 rows,"
            f" of which num_test leaves some; got {config.alone.num_features} and"
            f" {config.alone.num_test}."
        )
    if mesh is None:
        try:
            ensjax.make_mesh(**config.mesh.to_dict())
        except (TypeError, ValueError) as error:
            raise ConfigError(f"config.mesh: {one_line(error)}") from error


def _check_numbers(config):
    counts = ("num_seeds", "batch_size", "steps_per_call", "untuned_steps",
              "tuned_steps", "reader_steps", "num_bootstrap", "num_subsets",
              "subset_size", "hidden", "alone.num_seeds", "alone.num_test",
              "alone.num_features", "reports.num_features", "reports.num_labelled",
              "reports.num_findings")  # fmt: skip
    for field in counts:
        check_numbers(config, [field], at_least=1)
        value = config
        for part in field.split("."):
            value = value[part]
        if not all(isinstance(v, int) for v in np.atleast_1d(value).tolist()):
            raise ConfigError(f"config.{field} must be whole; got {value!r}.")
    check_numbers(config, ["num_members", "alone.num_rows"], at_least=2)
    sizes = ["reports.num_general", "reports.num_train", "reports.num_test"]
    check_numbers(config, sizes, at_least=50)
    shares = ["reports.general_prevalence", "reports.prevalence",
              "reports.altered_share", "alone.flipped_share"]  # fmt: skip
    check_numbers(config, shares, above=0, below=1)
    check_numbers(config, ["reader_qualities"], above=0, at_most=1)
    check_numbers(
        config, ["reports.damaged_share", "unread_share"], at_least=0, below=1
    )
    check_numbers(config, ["reports.turn", "reports.image_noise_sd"], at_least=0)
    check_numbers(config, ["learning_rate"], above=0)
    check_numbers(config, ["reader_noise_sd"], at_least=config.reports.image_noise_sd)


def run(config, run_dir):
    """Trains, asks, votes and reports; the same command resumes."""
    if config.from_answers:
        answers.run(config, run_dir)
        return
    rows = cases.make_rows(config)
    stages = run_stages(
        run_dir,
        config,
        {
            "members": lambda done: training.train(config, rows, run_dir),
            "kinds": lambda done: kinds.train(config, rows, run_dir),
            "alone": lambda done: alone.measure(config),
        },
        takes_members_from=True,
    )
    logits, others = stages["members"], stages["kinds"]
    # The first member is one more kind of untuned model.
    of_kinds = [logits["untuned"][:, :, :1], others["logits"]]
    logits |= {"kinds": np.concatenate(of_kinds, axis=2)}
    seen = cases.find_shared(rows.held_out[0], rows.general[0])
    results = votes.measure(config, logits, rows.held_out[1], seen)
    results["kinds"] = ["as the members", *others["names"].tolist()]
    results["alone"] = stages["alone"]
    scalars = verdicts.summarise(config, results)
    figures.add_tables(run_dir, config, rows, results)
    figures.add_figures(run_dir, config, results)
    claims = verdicts.make_claims(config, results)
    checks = verdicts.make_checks(config, results)
    run_dir.finish(
        title=config.title,
        summary=verdicts.describe(config, results, claims, checks),
        scalars=scalars,
        claims=claims,
        checks=checks,
    )


def training_job(config):
    """The tuned members of all seeds and domains, the largest stack of the run.

    In the run they go on from untuned weights; here they begin with new ones, which
    costs the same.
    """
    if config.from_answers:
        raise ConfigError(NOTHING_TRAINED)
    return training.tuned_job(config, cases.make_rows(config), is_reader=False)
