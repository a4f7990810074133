"""Verdicts follow from the interval over seeds; results.json is checked."""

import math

import pytest
from scipy import stats

from ensjax.experiment.claims import (
    Part,
    build_results,
    check,
    check_at_least,
    check_at_most,
    claim,
    claim_of_all,
    claim_of_cases,
    interval_text,
    mean_and_interval,
    not_run,
    share_interval,
    student_interval,
)
from ensjax.scores import corrected_t_test

ABOUT = dict(
    paper="Somebody 2000",
    source="table 1",
    certainty="read",
    scale="toy",
    expected="> 1",
)


def test_student_interval_agrees_with_scipy():
    values = [1.0, 2.0, 4.0, 4.5, 3.0]
    expected = stats.t.interval(0.95, 4, stats.tmean(values), stats.sem(values))
    assert student_interval(values) == pytest.approx(expected, rel=1e-6)  # float32


def test_student_interval_of_five_values_by_hand():
    # mean 3, sd sqrt(2.5), t(0.975, 4) = 2.776445
    half = 2.7764451 * math.sqrt(2.5 / 5)
    assert student_interval([1, 2, 3, 4, 5]) == pytest.approx((3 - half, 3 + half))


def test_one_seed_or_a_nan_has_no_interval():
    assert student_interval([1.0]) is None
    assert student_interval([1.0, math.nan, 2.0]) is None
    assert student_interval([1.0], split_sizes=(90, 10)) is None
    assert mean_and_interval([0.25]) == (0.25, 0.25, 0.25)
    assert interval_text([0.25]) == "0.250"


def test_splits_of_the_same_rows_have_a_wider_interval_which_decides_less():
    values, sizes = [1.1, 1.3, 1.0, 1.4, 1.2], (90, 30)
    plain = claim("x", values_by_seed=values, bound=1.0, **ABOUT)
    wide = claim("x", values_by_seed=values, bound=1.0, split_sizes=sizes, **ABOUT)
    assert (plain["verdict"], wide["verdict"]) == ("holds", "undecided")
    assert wide["split_sizes"] == [90, 30] and "split_sizes" not in plain
    # sd 0.1581, t(0.975, 4) = 2.776445
    half = 2.7764451 * math.sqrt((1 / 5 + 30 / 90) * 0.025)
    ends = pytest.approx((1.2 - half, 1.2 + half))
    assert tuple(wide["interval"]) == ends
    assert mean_and_interval(values, split_sizes=sizes)[1:] == ends
    assert interval_text(values, split_sizes=sizes, form=".2f") == "1.20 (0.88 to 1.52)"


def test_what_seeds_share_adds_to_the_interval_by_squares():
    values = [1.1, 1.3, 1.0, 1.4, 1.2]
    low, high = student_interval(values)
    own = (high - low) / 2
    for shared, verdict in ((0.0, "holds"), (0.1, "undecided")):
        found = claim("x", values_by_seed=values, bound=1.0, shared_half=0.1 * shared,
                      **ABOUT)  # fmt: skip
        assert found["verdict"] == "holds"
        found = claim("x", values_by_seed=values, bound=1.0, shared_half=shared,
                      **ABOUT)  # fmt: skip
        half = math.hypot(own, shared)
        assert found["interval"] == pytest.approx([1.2 - half, 1.2 + half])
        assert found["verdict"] == verdict and ("shared_half" in found) == bool(shared)
    both = claim_of_all(
        "y", parts=[Part("a", values, 1.0), Part("b", values, 1.0, shared_half=0.1)],
        **ABOUT,
    )  # fmt: skip
    assert both["verdict"] == "undecided" and both["parts"][1]["shared_half"] == 0.1
    for wrong in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="shared_half must be a number of 0 or"):
            claim("x", values_by_seed=values, bound=1.0, shared_half=wrong, **ABOUT)
    with pytest.raises(ValueError, match="0 for shares"):
        claim("x", values_by_seed=[0.5, 1], bound=0, shared_half=0.1, is_share=True,
              **ABOUT)  # fmt: skip


def test_a_check_passes_on_its_bound():
    assert [check_at_least("x", v, 0.5)["pass"] for v in (0.4, 0.5, math.nan)] == [
        False, True, False,
    ]  # fmt: skip
    assert [check_at_most("x", v, 0.5)["pass"] for v in (0.6, 0.5, math.nan)] == [
        False, True, False,
    ]  # fmt: skip
    assert check_at_least("x", 1, 0.5)["bound"] == ">= 0.5"
    assert check_at_most("x", 1, 27 / 30)["bound"] == "<= 0.9"


def test_an_end_of_the_corrected_interval_is_where_the_corrected_t_test_has_p_of_005():
    values = [0.02, 0.05, 0.01, 0.04, 0.03]
    for end in student_interval(values, split_sizes=(90, 10)):
        distances = [value - end for value in values]
        test = corrected_t_test(distances, num_train=90, num_test=10)
        assert test.p_value == pytest.approx(0.05, rel=1e-4)
    plain = student_interval(values)
    assert student_interval(values, split_sizes=(10**9, 1)) == pytest.approx(
        plain, rel=1e-6
    )
    assert student_interval([1.0], split_sizes=(90, 10)) is None
    with pytest.raises(ValueError, match="must be at least 1; got 0, 10"):
        student_interval(values, split_sizes=(0, 10))


def test_splits_of_the_same_rows_decide_less():
    values = [1.02, 1.05, 1.01, 1.04, 1.03]
    plain = claim("x", values_by_seed=values, bound=1.0, **ABOUT)
    entry = claim("x", values_by_seed=values, bound=1.0, split_sizes=(50, 50), **ABOUT)
    assert plain["verdict"] == "holds" and "split_sizes" not in plain
    assert entry["verdict"] == "undecided" and entry["split_sizes"] == [50, 50]
    assert entry["interval"] == pytest.approx(
        student_interval(values, split_sizes=(50, 50))
    )


@pytest.mark.parametrize(
    "values, side, verdict",
    [
        ([2.0, 2.1, 1.9, 2.0, 2.05], ">", "holds"),
        ([2.0, 2.1, 1.9, 2.0, 2.05], "<", "fails"),
        ([0.5, 0.4, 0.6, 0.5, 0.5], ">", "fails"),
        ([0.5, 0.4, 0.6, 0.5, 0.5], "<", "holds"),
        ([0.5, 1.4, 0.9, 1.5, 1.0], ">", "undecided"),
        ([2.0, 2.1, 1.9, 2.0], ">", "undecided"),  # four seeds never decide
        ([2.0, 2.1, 1.9, 2.0, math.inf], ">", "undecided"),
        ([1.0, 1.0, 1.0, 1.0, 1.0], ">", "undecided"),  # on the bound itself
    ],
)
def test_the_verdict_is_the_side_of_the_whole_interval(values, side, verdict):
    entry = claim("x", values_by_seed=values, side=side, bound=1.0, **ABOUT)
    assert entry["verdict"] == verdict
    assert entry["seeds"] == len(values)


def test_a_claim_has_all_fields_of_the_design():
    fields = (
        "name paper source certainty scale expected measured interval seeds verdict"
    )
    made = claim("x", values_by_seed=[2.0] * 5, bound=1.0, **ABOUT)
    assert set(fields.split()) <= set(made)
    assert set(fields.split()) == set(not_run("x", **ABOUT))


def test_unknown_words_and_empty_values_are_refused():
    with pytest.raises(ValueError, match="scale must be one of"):
        not_run("x", **(ABOUT | {"scale": "huge"}))
    with pytest.raises(ValueError, match="certainty must be one of"):
        not_run("x", **(ABOUT | {"certainty": "sure"}))
    with pytest.raises(ValueError, match="side must be"):
        claim("x", values_by_seed=[1.0], side=">=", bound=0, **ABOUT)
    with pytest.raises(ValueError, match="no values"):
        claim("x", values_by_seed=[], bound=0, **ABOUT)


def test_results_turn_non_finite_numbers_into_null():
    results = build_results("toy", scalars={"a": math.nan, "b": 1, "c": math.inf})
    assert results["scalars"] == {"a": None, "b": 1, "c": None}


def test_results_refuse_lists_doubles_and_half_entries():
    with pytest.raises(ValueError, match="must be one number"):
        build_results("toy", scalars={"a": [1, 2]})
    with pytest.raises(ValueError, match="come twice"):
        build_results("toy", scalars={}, claims=[not_run("x", **ABOUT)] * 2)
    with pytest.raises(ValueError, match="lacks"):
        build_results("toy", scalars={}, checks=[{"name": "x"}])
    wrong = not_run("x", **ABOUT) | {"verdict": "maybe"}
    with pytest.raises(ValueError, match="verdict of 'x'"):
        build_results("toy", scalars={}, claims=[wrong])


def test_a_check_keeps_its_bound_and_number():
    entry = check("speed", bound=">= 0.95", measured=1.2, passed=True)
    assert entry == {"name": "speed", "bound": ">= 0.95", "measured": 1.2, "pass": True}


UP, FLAT, DOWN = (
    [mean + step for step in (-0.2, -0.1, 0.0, 0.1, 0.2)] for mean in (1.0, 0.1, -1.0)
)


@pytest.mark.parametrize(
    "values, verdict, judged",
    [
        ((UP, UP), "holds", 0),
        ((UP, FLAT), "undecided", 1),
        ((DOWN, FLAT), "fails", 0),
        ((FLAT, DOWN, UP), "fails", 1),
        ((UP, [math.nan] * 5), "undecided", 1),
        ((DOWN, [math.nan] * 5), "fails", 0),  # whatever the other would have been
        ((UP, [1.0] * 4), "undecided", 1),  # too few seeds
    ],
)
def test_a_statement_about_several_numbers_is_judged_by_the_least_sure(
    values, verdict, judged
):
    parts = [Part(f"part {i}", v, 0.0) for i, v in enumerate(values)]
    entry = claim_of_all("all", parts=parts, **ABOUT)
    assert entry["verdict"] == verdict
    assert entry["name"] == f"all (least sure of {len(parts)}: part {judged})"
    alone = [claim("x", values_by_seed=v, bound=0.0, **ABOUT) for v in values]
    assert entry["interval"] == alone[judged]["interval"]
    # As worded: all hold; one fails; or neither.
    each = {a["verdict"] for a in alone}
    rule = "fails" if "fails" in each else "holds" if each == {"holds"} else "undecided"
    assert verdict == rule
    assert [part["interval"] for part in entry["parts"]] == [
        a["interval"] for a in alone
    ]
    assert not any("verdict" in part for part in entry["parts"])
    assert build_results("x", scalars={}, claims=[entry])["claims"][0]["parts"]


def test_parts_may_have_sides_bounds_and_rows_of_their_own():
    # Means 0.3 and 0.1 below and above their bounds, of equal spread.
    near = Part("error", [0.5, 0.7, 0.6, 0.55, 0.65], 0.9, "<")
    far = Part("correlation", [1.0, 1.2, 1.1, 1.05, 1.15], 1.0)
    found = claim_of_all("x", parts=[near, far], **ABOUT)
    assert (found["side"], found["bound"], found["verdict"]) == (">", 1.0, "holds")
    wide = near._replace(split_sizes=(10, 100))
    found = claim_of_all("x", parts=[wide, far], **ABOUT)
    assert found["split_sizes"] == [10, 100] and found["verdict"] == "undecided"
    assert [part["side"] for part in found["parts"]] == ["<", ">"]
    equal = Part("exact", [0.0] * 5, 1e-7, "<")
    assert claim_of_all("x", parts=[equal, far], **ABOUT)["bound"] == 1.0
    one = claim_of_all("x", parts=[far], **ABOUT)
    assert one["name"] == "x (correlation)" and "parts" not in one
    with pytest.raises(ValueError, match="'x' has no parts"):
        claim_of_all("x", parts=[], **ABOUT)


def test_the_interval_of_shares_stays_within_0_and_1():
    votes = [1.0] * 9 + [0.0]
    wilson = stats.binomtest(9, 10).proportion_ci(method="wilson")
    assert share_interval(votes) == pytest.approx((wilson.low, wilson.high), abs=1e-6)
    low, high = share_interval([1.0] * 10)  # Student's has no width
    assert high == 1 and low == pytest.approx(0.7225, abs=1e-4)
    shares = [1.0, 0.9, 1.0, 0.3, 1.0]
    assert student_interval(shares)[1] > 1
    assert share_interval(shares) == (student_interval(shares)[0], 1.0)
    told = dict(split_sizes=(80, 40))
    low, high = student_interval(votes[5:], **told)
    assert low < 0 and high > 1 and share_interval(votes[5:], **told) == (0, 1)
    assert share_interval([1.0]) is None
    with pytest.raises(ValueError, match="between 0 and 1"):
        share_interval([0.5, 1.5])


def test_a_claim_of_shares_is_judged_by_their_interval():
    votes = [1.0] * 9 + [0.0]
    entry = claim("often", values_by_seed=votes, bound=0.5, is_share=True, **ABOUT)
    assert entry["interval"] == list(share_interval(votes)) and entry["is_share"]
    assert entry["verdict"] == "holds" and entry["measured"] == 0.9
    # Five that agree leave room for a third that do not.
    few = dict(values_by_seed=[1.0] * 5, bound=0.6)
    assert claim("few", **few, **ABOUT)["verdict"] == "holds"
    assert claim("few", is_share=True, **few, **ABOUT)["verdict"] == "undecided"
    parts = [Part("a", votes, 0.5, is_share=True), Part("b", [2.0] * 5, 1.0)]
    told = claim_of_all("both", parts=parts, **ABOUT)["parts"]
    assert told[0]["is_share"] and "is_share" not in told[1]


def test_exact_numbers_are_judged_case_by_case_without_an_interval():
    about = dict(
        paper="p", source="s", certainty="read", scale="full", expected="below 0"
    )
    values = {"a": -2.0, "b": -1e-9}
    entry = claim_of_cases("x", values_by_case=values, side="<", bound=0.0, **about)
    assert entry["verdict"] == "holds" and entry["measured"] == -1e-9
    assert entry["interval"] is None and entry["name"].endswith("least of 2: b)")
    assert [part["part"] for part in entry["parts"]] == ["a", "b"]
    values["c"] = 0.1  # one case is enough
    entry = claim_of_cases("x", values_by_case=values, side="<", bound=0.0, **about)
    assert entry["verdict"] == "fails" and entry["measured"] == 0.1
    values["c"] = math.nan
    entry = claim_of_cases("x", values_by_case=values, side="<", bound=0.0, **about)
    assert entry["verdict"] == "undecided" and entry["measured"] is None
    with pytest.raises(ValueError, match="has no values"):
        claim_of_cases("x", values_by_case={}, side="<", bound=0.0, **about)
