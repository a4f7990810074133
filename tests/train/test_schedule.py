"""How many steps a call makes, and what that does to the intervals."""

import warnings

import pytest

from ensjax.train.schedule import Schedule


def schedule(**given):
    names = ("steps_per_call", "log_every_steps", "evaluate_every_steps")
    names += ("save_every_steps",)
    return Schedule.of(**{**dict.fromkeys(names), **given})


@pytest.mark.parametrize(
    "given, log, per_call",
    [
        (dict(steps=2000), 100, 100),
        (dict(steps=1999), 99, 99),
        (dict(steps=7), 1, 1),
        # Reports follow what was given, or a call would make one step.
        (dict(steps=1999, evaluate_every_steps=50), 100, 50),
        (dict(steps=1999, evaluate_every_steps=50, save_every_steps=30), 100, 10),
        (dict(steps=1999, save_every_steps=500), 50, 50),
        (dict(steps=20_000, evaluate_every_steps=5_000), 1000, 1000),
        (dict(steps=2_000, evaluate_every_steps=10_000), 100, 100),
        # No divisor is near a twentieth of the steps.
        (dict(steps=1999, evaluate_every_steps=101), 101, 101),
        (dict(steps=1999, steps_per_call=7), 105, 7),
        (dict(steps=1999, evaluate_every_steps=0), 99, 99),
    ],
)
def test_intervals_that_are_left_open_make_long_calls(given, log, per_call):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = schedule(**given)
    assert (made.log_every_steps, made.steps_per_call) == (log, per_call)


def test_intervals_without_a_common_divisor_are_pointed_out():
    with pytest.warns(UserWarning, match="log_every_steps=10, evaluate_every_steps=7"):
        made = schedule(steps=100, log_every_steps=10, evaluate_every_steps=7)
    assert made.steps_per_call == 1


def test_a_call_ends_at_a_whole_number_of_calls_or_at_the_end():
    made = schedule(steps=25, steps_per_call=10, log_every_steps=10)
    assert [made.next_call(step) for step in (0, 4, 10, 20)] == [10, 6, 10, 5]
    assert [made.due(made.log_every_steps, step) for step in (5, 10, 25)] == [
        False,
        True,
        True,
    ]
