"""The TADPOLE experiment: its metrics, its files, its simulator, its runs."""

import json
from pathlib import Path

import numpy as np
import pytest

from ensjax.experiment import ConfigError, load_config
from ensjax.experiment.configs import load_module
from ensjax.experiment.runner import RunOptions, run_and_report

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs" / "consensus_forecast.py")
experiment = load_module(ROOT / "experiments" / "consensus_forecast.py", "experiment")
entries, measures = experiment.entries, experiment.measures
tadpole, verdicts = experiment.tadpole, experiment.verdicts
loops = experiment.loops


def config_of(spec=CONFIG + ":smoke", *overrides):
    return load_config(spec, overrides)[1]


@pytest.mark.parametrize("ties", [False, True])
def test_metrics_equal_the_challenges_definitions(ties):
    # Loops from the definitions, in double precision, with unknown truths.
    far = loops.distances(0, ties=ties)
    assert set(far) == {"mauc", "bca", "mae", "wes", "cpa"}
    assert all(value < 1e-12 for value in far.values()), far


def test_loops_of_the_metrics_by_hand():
    labels = np.array([0, 0, 1, 1, 2])
    probs = np.array(
        [[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.2, 0.7, 0.1], [0.5, 0.4, 0.1],
         [0.1, 0.1, 0.8]]
    )  # fmt: skip
    # A(0|1): .6 beats both, .2 ties one; A(1|0): .7 beats both, .4 beats one.
    assert loops.mauc(probs, labels) == pytest.approx((2.5 / 4 + 3 / 4 + 4) / 6)
    # Chosen: 0, 1, 1, 0, 2.
    assert loops.bca(probs, labels) == pytest.approx(
        np.mean([(1 / 2 + 2 / 3) / 2, (1 / 2 + 2 / 3) / 2, 1])
    )
    found = loops.point_metrics([1, 2, 9], [0, 0, 8], [2, 4, 9], [2.0, 3.0, np.nan])
    assert found == {"mae": 1, "wes": pytest.approx(1), "cpa": 0}


def test_scores_of_systems_are_those_of_their_members_and_consensuses():
    rng = np.random.default_rng(1)
    points = rng.normal(size=(2, 5, 30))
    truth, weight = rng.normal(size=(2, 30)), np.ones((2, 30))
    systems = measures.point_systems(points, points - 0.5, points + 0.7)
    got = measures.score_points(systems, truth, weight, np.asarray([0.01, 0.01]))
    whole = [points, points.mean(axis=1)[:, None], np.median(points, axis=1)[:, None]]
    whole = np.concatenate(whole, axis=1)
    want = np.abs(whole - truth[:, None]).mean(-1)
    np.testing.assert_allclose(got["mae"], want, rtol=1e-5)
    inside = (whole - 0.5 < truth[:, None]) & (truth[:, None] < whole + 0.7)
    np.testing.assert_allclose(got["cpa"], abs(inside.mean(-1) - 0.5), atol=1e-6)
    # All intervals are equally wide.
    np.testing.assert_allclose(got["wes"], want, rtol=1e-4)


def test_ranks_count_the_members_that_are_better():
    values = np.asarray([[0.1, 0.5, 0.3, 0.4, 0.5]])  # three members, two consensuses
    low = measures.ranks(values, higher_is_better=False)
    assert low.tolist() == [[1, 3, 2, 3, 3]]
    high = measures.ranks(values, higher_is_better=True)
    assert high.tolist() == [[3, 1, 2, 2, 1]]
    among = [
        measures.ranks_among_all(values, higher_is_better=is_higher)
        for is_higher in (False, True)
    ]
    assert among[0].tolist() == [[1, 4, 2, 3, 4]]
    assert among[1].tolist() == [[5, 1, 4, 3, 1]]
    # Sums 6, 5, 6, 6, 5: two share the first place, three the last.
    assert measures.overall_ranks(among).tolist() == [[4, 1.5, 4, 4, 1.5]]
    np.testing.assert_allclose(verdicts.places(np.asarray(high)), [[2 / 3, 1 / 3]])


def test_only_entries_that_are_better_throughout_beat_the_constant():
    rng = np.random.default_rng(2)
    draws = np.zeros((999, 3, 4))
    draws[:, :, 0] = 0.5  # the constant
    draws[:, :, 1] = 0.5 + rng.normal(0, 0.1, (999, 3))  # like it
    draws[:, 0, 2], draws[:, 1:, 2] = 0.9, 0.1  # better on all three
    draws[:, 0, 3], draws[:, 1:, 3] = 0.1, 0.9  # worse
    wins, p_values = measures.beats_constant(draws, 0, 0.05)
    assert wins.tolist() == [[False, False, True, False]] * 3
    np.testing.assert_allclose(p_values[:, 2], 1 / 1000)
    assert (p_values[:, [0, 3]] == 1).all()


@pytest.mark.slow
def test_bootstrap_draws_are_the_metrics_of_the_drawn_people():
    rng = np.random.default_rng(3)
    probs = rng.dirichlet([1, 1, 1], size=(2, 40))
    labels, errors = rng.integers(0, 3, 40), rng.uniform(size=(2, 40))
    counts = rng.multinomial(40, np.ones(40) / 40, size=5)
    got = measures.bootstrap_study(counts, np.log(probs), labels, errors, 2 * errors)
    for draw, count in zip(np.asarray(got), counts):
        people = np.repeat(np.arange(40), count)
        for entry in range(2):
            mauc = loops.mauc(probs[entry, people], labels[people])
            mae = errors[entry, people].mean()
            np.testing.assert_allclose(draw[:, entry], [mauc, mae, 2 * mae], atol=1e-5)


def test_effects_of_features_are_found_in_equal_pairs():
    listed, sets = entries.STUDY_ENTRIES, entries.FEATURE_SETS
    learners = sorted({learner for learner, _ in listed})
    values = [
        10.0 * learners.index(learner)
        + 2.0 * ("marker" in sets[f])
        - ("summary" in sets[f])
        for learner, f in listed
    ]
    values = np.asarray([[*values, 0.0, 0.0]])
    for flag, effect in (("marker", 2.0), ("summary", -1.0)):
        change, _ = measures.pair_effects(values, listed, sets, flag)
        np.testing.assert_allclose(change, [effect])
    weights = measures.attribution(values, listed, sets, ("marker", "summary"))
    np.testing.assert_allclose(weights, [[2.0, -1.0]], atol=1e-9)


def test_a_share_of_the_entries_is_broken_in_each_way_and_the_others_stay():
    config = config_of()
    rng = np.random.default_rng(4)
    points = rng.normal(size=(20, 50))
    broken, lower, _, which = entries.break_points(
        config, 0, points, points - 1, points + 1, np.arange(50.0)
    )
    assert which.sum() == 4
    np.testing.assert_array_equal(broken[~which], points[~which])
    first, second, third, fourth = np.flatnonzero(which)
    np.testing.assert_allclose(broken[first], 10 * points[first])
    assert (broken[second] == 0).all()
    np.testing.assert_allclose(broken[third], 13 * np.arange(50.0).std())
    moved = broken[fourth] - points[fourth]
    assert 3 < moved.std() / np.arange(50.0).std() < 10
    np.testing.assert_allclose(lower[fourth] - points[fourth] + 1, moved)
    probs = rng.dirichlet([1, 1, 1], size=(16, 30))
    said, which = entries.break_probs(config, 0, probs)
    assert which.sum() == 3
    np.testing.assert_array_equal(said[~which], probs[~which])
    np.testing.assert_allclose(said.sum(-1), 1.0)
    assert (said[which] != probs[which]).any(axis=(1, 2)).all()


def test_the_simulated_disease_is_as_it_is_described():
    config = config_of()
    study = entries.simulate_study(config, 20_000, np.random.default_rng(0))
    # 4.5 years after the first visit; five standard errors.
    settings = config.simulation
    rate = settings.rate_median * np.exp(settings.rate_log_sd**2 / 2)
    years = settings.visit_years[-1] + settings.forecast_years
    mean = settings.ventricles.stage_weight * rate * years
    assert abs(study.ventricles.mean() - mean) < 5 * study.ventricles.std() / 140
    last, marker = study.features["last"], study.features["marker"]
    assert marker.shape[1] == last.shape[1] + 1
    correlation = np.corrcoef(marker[:, -1], last[:, 0])[0, 1]
    assert correlation < -0.3  # the marker falls with the onset
    assert (np.bincount(study.diagnosis, minlength=3) > 1000).all()


# The challenge's files

HEADER = (
    "RID,Forecast Month,Forecast Date,CN relative probability,"
    "MCI relative probability,AD relative probability,ADAS13,ADAS13 50% CI lower,"
    "ADAS13 50% CI upper,Ventricles_ICV,Ventricles_ICV 50% CI lower,"
    "Ventricles_ICV 50% CI upper\n"
)
D4 = """RID,CogAssessmentDate,Diagnosis,ADAS13,ScanDate,Ventricles
7,2018-02-20,MCI,21,2018-04-02,0.03
7,2018-03-02,,25.5,,
9,2018-01-05,AD,,2018-03-28,0.05
"""


def write_files(folder, *, months=3, people=(7, 9)):
    """Two complete submissions and one without person 9, and D4."""
    (folder / "submissions").mkdir()
    for name, shift in (("b-team", 100), ("a-team", 0), ("short", 0)):
        lines = [HEADER]
        for person in people[:1] if name == "short" else people:
            for month in range(1, months + 1):
                value = shift + person + month / 10
                lines.append(
                    f"{person},{month},2018-{month:02d},2,{month},1,"
                    f"{value},{value - 1},{value + 2},"
                    f"{value / 10},{value / 20},{value / 5}\n"
                )
        (folder / "submissions" / f"{name}.csv").write_text("".join(lines))
    (folder / "d4.csv").write_text(D4)
    return folder / "submissions", folder / "d4.csv"


def test_submissions_are_matched_to_the_nearest_month(tmp_path):
    found = tadpole.load_forecasts(*write_files(tmp_path), 3)
    assert found["names"].tolist() == ["a-team", "b-team"]
    assert found["left_out"].tolist() == ["short"]
    # Cognitive dates are nearest to March (20 February is 9 days off) and January.
    np.testing.assert_allclose(found["score_points"][0], [7.3, 7.3, 9.1])
    np.testing.assert_allclose(found["score_upper"][1], [109.3, 109.3, 111.1])
    # Scans: 2 April and 28 March are nearest to March.
    np.testing.assert_allclose(found["ventricles_lower"][0][[0, 2]], [0.365, 0.465])
    np.testing.assert_allclose(found["probs"][0, 0], np.asarray([2, 3, 1]) / 6)
    assert found["targets"][[0, 2]].tolist() == [1, 2]
    assert found["weight"].tolist() == [1, 0, 1]
    assert found["score_weight"].tolist() == [1, 1, 0]
    assert found["ventricles_weight"].tolist() == [1, 0, 1]
    assert found["people"].tolist() == [7, 7, 9]
    with pytest.raises(ConfigError, match="covers all people"):
        tadpole.load_forecasts(tmp_path / "submissions", tmp_path / "d4.csv", 4)


def test_mistakes_in_submissions_name_the_line(tmp_path):
    folder, truth = write_files(tmp_path)
    path = folder / "a-team.csv"
    good = path.read_text()
    for old, new, match in (
        ("7,2,2018-02", "7,2,2018-13", "line 3: forecastdate"),
        ("9,1,2018-01,2", "9,1,2018-01,-2", "line 5: relative probabilities"),
        ("AD relative probability", "AD", "line 1: columns .'adrelative"),
        ("7,1,2018-01,2,1,1,7.1", "7,1,2018-01,2,1,1,x", "line 2: adas13 must be"),
    ):
        path.write_text(good.replace(old, new, 1))
        with pytest.raises(ConfigError, match=match):
            tadpole.read_submission(path)
    truth.write_text(D4.replace("MCI", "EMCI"))
    with pytest.raises(ConfigError, match="line 2: Diagnosis is CN"):
        tadpole.read_truth(truth)


@pytest.mark.parametrize(
    "override, match",
    [
        (("data", "adni"), "config.data"),
        (("num_seeds", "0"), "config.num_seeds"),
        (("broken.share", "0.5"), "config.broken.share"),
        (("num_resamples", "100"), "config.num_resamples is too small"),
        (("simulation.visit_years", "(1.0, 1.0)"), "visit_years"),
        (("simulation.class_edges", "(2.0, 1.0)"), "class_edges"),
        (("wine.num_train", "10"), "wine.num_train"),
        (("data", "tadpole"), "config.tadpole.submissions must be .* ADNI"),
    ],
)
def test_mistakes_in_the_config_are_named(override, match):
    with pytest.raises(ConfigError, match=match):
        experiment.validate(config_of(CONFIG + ":smoke", override))


def run(spec, folder, *overrides):
    return run_and_report(
        RunOptions(spec=spec, workdir=str(folder), overrides=overrides)
    )


@pytest.mark.slow
def test_a_smoke_run_ends_in_claims_and_figures_and_repeats_itself(tmp_path):
    assert run(CONFIG + ":smoke", tmp_path / "a") == 0
    results = json.loads((tmp_path / "a" / "results.json").read_text())
    names = [claim["name"] for claim in results["claims"]]
    assert [name.split(":")[0][-1] for name in names] == list("abcde")
    parts = results["claims"][2]["parts"]
    sizes = [part.get("split_sizes") for part in parts]
    assert sizes == [[45, 133]] * 2 + [None] * 2
    assert len(list((tmp_path / "a" / "figures").glob("*.png"))) == 5
    # The median stands a fifth of broken entries, the mean does not.
    scalars = results["scalars"]
    assert (
        scalars["broken_diabetes_mean_mae"] > 1.5 * scalars["clean_diabetes_mean_mae"]
    )
    ratio = scalars["broken_diabetes_median_mae"] / scalars["clean_diabetes_median_mae"]
    assert ratio < 1.05
    for name in ("results.json", "report.json", "report.html"):
        (tmp_path / "a" / name).unlink()
    (tmp_path / "a" / "stages" / "bootstrap.npz").unlink()
    assert run(CONFIG + ":smoke", tmp_path / "a") == 0
    again = json.loads((tmp_path / "a" / "results.json").read_text())
    assert again["scalars"] == scalars


@pytest.mark.slow
def test_the_challenges_own_files_run_through(tmp_path):
    submissions, truth = write_files(tmp_path)
    lines = [D4.replace("\n7,2018-03-02,,25.5,,", "")]
    lines += [
        f"{p},2018-02-{d},CN,{p},2018-02-{d},0.1\n" for p in (7, 9) for d in (10, 20)
    ]
    truth.write_text("".join(lines))
    paths = (
        ("tadpole.submissions", str(submissions)),
        ("tadpole.d4", str(truth)),
        ("tadpole.min_months", "3"),
    )
    assert run(CONFIG + ":paper", tmp_path / "run", *paths) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    verdicts = [claim["verdict"] for claim in results["claims"]]
    assert verdicts == ["undecided", "not run", "undecided", *["not run"] * 2]
    assert results["scalars"]["clean_score_entries"] == 2
