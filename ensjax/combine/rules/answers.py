"""Votes of members that answer in words: text in, a class or no vote out."""

import re
from collections.abc import Sequence

import numpy as np

from ensjax.predictions import ABSTAIN, Predictions


def parse_answer(text: str, patterns: Sequence[str]) -> int:
    """The class whose pattern is found in a text; -1 if there is none, or several.

    Args:
        text: what a member answered.
        patterns: one regular expression per class, searched anywhere, in any case. Word
            boundaries keep "no" out of "not sure": `r"\\bno\\b"`.

    Raises:
        ValueError: if a pattern is no regular expression; names its class.
    """
    found = [number for number, p in enumerate(_compiled(patterns)) if p.search(text)]
    return found[0] if len(found) == 1 else ABSTAIN


def parse_answers(
    texts: Sequence[Sequence[str]],
    patterns: Sequence[str],
    *,
    names: Sequence[str] | None = None,
    provenance=None,
) -> Predictions:
    """Votes of several members from their answers; what cannot be read abstains.

    Args:
        texts: `[member][batch]` answers.
        patterns: one regular expression per class; see `parse_answer`.
        names: one name per member.
        provenance: of the rows.

    Returns:
        `Predictions` of votes `[member, batch]`, -1 where an answer says no class or
        several. `majority_vote` leaves those out.

    Raises:
        ValueError: if members answer different numbers of rows, or a pattern is no
            regular expression.
    """
    lengths = {len(answers) for answers in texts}
    if len(lengths) != 1:
        raise ValueError(
            "texts must be [member][batch], as many answers of each member; got"
            f" {sorted(lengths)} answers."
        )
    compiled = _compiled(patterns)
    known: dict[str, int] = {}  # members repeat themselves
    votes = np.empty((len(texts), lengths.pop()), np.int32)
    for member, answers in enumerate(texts):
        for row, text in enumerate(answers):
            if text not in known:
                found = [n for n, p in enumerate(compiled) if p.search(text)]
                known[text] = found[0] if len(found) == 1 else ABSTAIN
            votes[member, row] = known[text]
    return Predictions.from_votes(
        votes, len(patterns), names=names, provenance=provenance
    )


def _compiled(patterns):
    compiled = []
    for number, pattern in enumerate(patterns):
        try:
            compiled.append(re.compile(pattern, re.IGNORECASE))
        except re.error as error:
            raise ValueError(
                f"the pattern of class {number} is no regular expression: {error};"
                f" got {pattern!r}."
            ) from error
    return compiled
