"""Our own bounds on what `hybrid_voting.py` measures, most of them from a pilot."""

import numpy as np

from ensjax import scores
from ensjax.experiment import check, check_at_least, check_at_most
from ensjax.experiment.fields import load_beside

images = load_beside(__file__, "hybrid_voting_images")
verdicts = load_beside(__file__, "hybrid_voting_claims")


def make_checks(config, results) -> list[dict]:
    """Our own bounds; where the pilot counted splits, shares of ours."""
    table, found, described = (results[k] for k in ("table", "images", "described"))
    ties, area = results["ties"], results["segmentation"]
    checks = [
        _none(
            "rows on which a hard or soft vote is not scikit-learn's",
            table["differ"].sum() + found["differ"].sum(),
        ),
        _none("the same with four members and four classes", ties["differ"].sum()),
        check_at_least("ties among those", int(ties["ties"].sum()), 1),
        _none(
            "rows on which neighbours in JAX, or the vote in one program, are others",
            table["neighbors_differ"].sum() + table["program_differs"].sum(),
        ),
        *_checks_of_table(config, results),
        _none("digits whose Otsu threshold is not the best cut", area["otsu_misses"]),
        check_at_most(
            "co-occurrence: departure from a sum of 1, and from symmetry",
            float(described["co_occurrence_error"]),
            1e-9,
        ),
        check_at_most(
            "constant image: departure from contrast 0, energy 1, correlation 1",
            float(described["constant_error"]),
            1e-9,
        ),
        check_at_most(
            "largest distance of a feature from its loop",
            float(described["loop_error"]),
            1e-9,
        ),
    ]
    return checks if config.images.is_real else checks + _checks_of_phantoms(results)


def _none(name, count):
    return check(name, bound="0", measured=int(count), passed=int(count) == 0)


def _checks_of_table(config, results):
    table = results["table"]
    hard, each = table["hard"], table["members"]
    accuracy, soft = float(hard.mean()), float((table["soft"] - hard).mean())
    p_value = _p_against_best(config, results)
    return [
        check_at_least(
            "breast cancer: splits with vote >= mean member",
            # Equal accuracies differ by rounding.
            float((hard >= each.mean(axis=1) - 1e-9).mean()),
            27 / 30,
        ),
        check_at_most(
            "breast cancer: sd of the vote minus the smallest of members",
            float(hard.std(ddof=1) - each.std(axis=0, ddof=1).min()),
            0.002,
        ),
        check(
            "breast cancer: accuracy of the vote",
            bound=".958 to .978",
            measured=accuracy,
            passed=0.958 <= accuracy <= 0.978,
        ),
        check(
            "breast cancer: p of the vote against its best member (a tie)",
            bound="> 0.05",
            measured=p_value,
            passed=p_value > 0.05,
        ),
        check(
            "breast cancer: soft vote minus hard vote, accuracy",
            bound="< 0",
            measured=soft,
            passed=soft < 0,
        ),
    ]


def _p_against_best(config, results) -> float:
    """Corrected t-test of the vote against the member that is best on average."""
    table = results["table"]
    best = table["members"][:, int(table["members"].mean(axis=0).argmax())]
    num_train, num_test = verdicts.split_sizes(config, results, verdicts.TABLE)
    return scores.corrected_t_test(
        table["hard"] - best, num_train=num_train, num_test=num_test
    ).p_value


def _checks_of_phantoms(results):
    texture = verdicts.image_scores(results, images.TEXTURE)
    vote, each = texture["hard"], texture["members"]
    mixed = verdicts.image_scores(results, images.MIXED)["hard"]
    share = float((vote >= each.mean(axis=1) - 1e-9).mean())
    best = float(vote.mean() - each.mean(axis=0).max())
    median = float(np.mean(results["segmentation"]["median"]))
    correlation = verdicts.area_correlation(results)
    return [
        check_at_most("area, high contrast: median relative error", median, 0.05),
        check_at_least(
            "area, high contrast: correlation over all phantoms", correlation, 0.98
        ),
        check_at_least("phantoms: splits with vote >= mean member", share, 18 / 20),
        check_at_least("phantoms: vote minus DT", (vote - each[:, 2]).mean(), 0.04),
        check_at_least("phantoms: vote minus best member", best, -0.02),
        check_at_least(
            "phantoms: 10 texture + wavelets minus 13 texture", (mixed - vote).mean(), 0
        ),
    ]
