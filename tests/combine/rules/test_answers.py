"""Answers in words become votes, or none."""

import numpy as np
import pytest

from ensjax import combine

YES_NO = (r"\bno\b", r"\byes\b")


@pytest.mark.parametrize(
    "text, want",
    [
        ("Yes, there is an error.", 1),
        ("NO. The report is correct.", 0),
        ("I am not sure.", -1),
        ("Yes and no.", -1),
        ("", -1),
        ("yes, yes", 1),
    ],
)
def test_an_answer_is_a_class_only_if_it_says_one(text, want):
    assert combine.parse_answer(text, YES_NO) == want


def test_unread_answers_never_change_other_votes():
    texts = [["yes", "no", "?"], ["yes", "maybe", "no"], ["no", "no", "yes"]]
    predictions = combine.parse_answers(texts, YES_NO, names=("a", "b", "c"))
    np.testing.assert_array_equal(
        predictions.votes, [[1, 0, -1], [1, -1, 0], [0, 0, 1]]
    )
    assert predictions.names == ("a", "b", "c")
    vote = combine.majority_vote(predictions)
    assert vote.tolist() == [1, 0, 0]
    silent = [*texts, ["?", "?", "?"]]
    more = combine.parse_answers(silent, YES_NO)
    np.testing.assert_array_equal(combine.majority_vote(more), vote)
    with pytest.raises(ValueError, match="as many answers"):
        combine.parse_answers([["yes"], ["no", "no"]], YES_NO)
    with pytest.raises(ValueError, match="class 1"):
        combine.parse_answer("yes", ("no", "("))
