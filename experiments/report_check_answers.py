"""Answers of real models and of a reader, from a CSV file: their vote, and who missed.

The file has one row per report and the columns "error" (none, insert, remove or
substitute), "reader" (yes or no: is there an error?), and one for each model with its
answer in its own words.
"""

import csv

import numpy as np

from ensjax import combine, scores
from ensjax.experiment import ConfigError, claim, not_run
from ensjax.experiment.fields import load_beside

votes = load_beside(__file__, "report_check_votes")
verdicts = load_beside(__file__, "report_check_claims")

ERRORS = ("none", "insert", "remove", "substitute")
NEEDED = ("error", "reader")


def load(config) -> tuple[list[str], list[str], list[list[str]], list[str]]:
    """Errors, the reader's answers, the models' answers `[model][report]`, and names.

    Raises:
        ConfigError: if there is no such file, or it lacks a column or a word.
    """
    path = config.answers.path
    if not path:
        raise ConfigError(
            "config.answers.path names a CSV file of answers: one row per report, the"
            " columns error (none, insert, remove, substitute), reader (yes or no) and"
            " one of free text for each model. MIMIC-CXR needs credentials"
            " (physionet.org) and the models their weights; neither comes with ensjax."
        )
    try:
        with open(path, newline="", encoding="utf-8") as file:
            lines = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"config.answers.path {path}: {error}") from error
    names = [name for name in (lines[0] if lines else {}) if name not in NEEDED]
    if not lines or not names or any(name not in lines[0] for name in NEEDED):
        raise ConfigError(
            f"config.answers.path {path}: the columns must be error, reader and at"
            f" least one model, with a row for each report; got"
            f" {', '.join(map(str, lines[0])) if lines else 'no row'}."
        )
    for number, line in enumerate(lines, start=2):
        if line["error"] not in ERRORS:
            raise ConfigError(
                f"config.answers.path {path}, line {number}: error is one of"
                f" {', '.join(ERRORS)}; got {line['error']!r}."
            )
        if combine.parse_answer(line["reader"] or "", votes.SIMPLE_PATTERNS) < 0:
            raise ConfigError(
                f"config.answers.path {path}, line {number}: reader is yes or no; got"
                f" {line['reader']!r}."
            )
    return (
        [line["error"] for line in lines],
        [line["reader"] for line in lines],
        [[line[name] or "" for line in lines] for name in names],
        names,
    )


def run(config, run_dir):
    """Votes of the models, where the reader was wrong, with exact intervals."""
    errors, reader, texts, names = load(config)
    is_error = np.array([error != "none" for error in errors])
    predictions = combine.parse_answers(texts, votes.SIMPLE_PATTERNS, names=names)
    vote = np.asarray(combine.majority_vote(predictions)) == is_error
    read = np.asarray(predictions.votes)
    reads = [combine.parse_answer(text, votes.SIMPLE_PATTERNS) for text in reader]
    reader_right = np.asarray(reads) == is_error
    together = scores.complementarity(vote, reader_right, interval="exact")
    rows = [
        [name, votes.accuracy(answers, is_error), (answers < 0).mean()]
        for name, answers in zip(names, read)
    ]
    rows += [["vote", vote.mean(), 0.0], ["reader", reader_right.mean(), 0.0]]
    run_dir.add_table(
        "Is there an error?",
        ["who", "right", "not read"],
        rows,
        "Share of the answers that could be read and are right. Ties of the vote go to"
        " 'no error'.",
    )
    missed = together.first_where_second_wrong
    scalars = {
        "reports": len(errors),
        "vote_accuracy": vote.mean(),
        "reader_accuracy": reader_right.mean(),
        "reader_wrong": int((~reader_right).sum()),
        "vote_where_reader_wrong": missed.estimate,
        "vote_where_reader_wrong_low": missed.low,
        "vote_where_reader_wrong_high": missed.high,
        "mcnemar_p": together.p_value,
    }
    about = dict(paper=verdicts.PAPER, certainty="read", scale=config.scale)
    about["source"] = "abstract"
    single = np.mean([row[1] for row in rows[: len(names)]])
    claims = [
        *(
            claim(
                verdicts.name_claim("c", f"accuracy of the {who} minus the reader"),
                expected=0.0167,
                values_by_seed=[accuracy - reader_right.mean()],
                bound=0.0,
                **about,
            )
            for who, accuracy in (("vote", vote.mean()), ("mean model", single))
        ),
        *(
            not_run(verdicts.name_claim(letter, text), expected=expected, **about)
            for letter, text, expected in (
                ("a", "answers of untuned models are not told apart", "> 0"),
                ("b", "the table has the models' accuracies", "LLaVA v1.5 first"),
                ("d", "without confidences no control is matched", 15 / 21),
                ("e", "the answers say yes or no", "poor for all models"),
            )
        ),
    ]
    run_dir.finish(
        title=config.title,
        summary=_describe(config, names, vote, reader_right, together),
        scalars={name: float(value) for name, value in scalars.items()},
        claims=claims,
    )


def _describe(config, names, vote, reader_right, together) -> str:
    missed = [float(x) for x in together.first_where_second_wrong]
    return (
        f"{len(names)} models and a reader on {len(vote):,} reports of"
        f" {config.answers.path}. The vote is right on {vote.mean():.1%}, the reader on"
        f" {reader_right.mean():.1%} (McNemar p = {together.p_value:.3g}). Of the"
        f" {int((~reader_right).sum())} reports that the reader got wrong the vote gets"
        f" {missed[0]:.1%} right (exact 95 % interval {missed[1]:.1%} to"
        f" {missed[2]:.1%}). Without the models' confidence no control is matched, so"
        " that this says nothing about special complementarity. One file of answers is"
        " one seed, which decides no claim."
    )
