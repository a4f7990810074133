"""Results that were run are published small, and the table says what was not run."""

import json

import pytest
from etils import epath

from ensjax.experiment.claims import check, claim, not_run
from ensjax.experiment.exit_codes import ConfigError
from ensjax.experiment.report import format_expected
from ensjax.experiment.results import (
    publish_results,
    read_published,
    results_table,
    verdict_counts,
)
from ensjax.experiment.run_directory import open_run

ABOUT = dict(paper="P 2000", source="table 1", certainty="read", scale="reduced")
VERSIONS = dict(
    config_name="toy",
    preset="claims",
    overrides=[["seed", "3"]],
    git_commit="0123456789abcdef",
    device_kind="cpu",
    num_devices=1,
    processor="Some CPU",
    num_cores=2,
    jax="0.10.1",
)


@pytest.fixture
def run(tmp_path):
    with open_run(tmp_path / "run", {"seed": 3}, versions=VERSIONS) as run:
        run.finish(
            title="T",
            summary="S",
            scalars={"nll": 0.25},
            claims=[
                claim("a | b", expected=0.1, values_by_seed=[2] * 5, bound=1, **ABOUT),
                not_run("c", expected="> 0", **ABOUT),
            ],
            checks=[check("d", bound="< 1", measured=0.5, passed=True)],
        )
    return run


def test_publishing_writes_the_entry_and_the_table(run, tmp_path):
    folder = tmp_path / "experiments" / "results"
    folder.mkdir(parents=True)
    target = publish_results(run.path, folder)
    assert target.name == "toy-claims.json"
    entry = json.loads(target.read_text())
    assert entry["command"] == "ensjax run toy:claims --config.seed=3"
    assert entry["commit"] == "0123456789abcdef"
    assert entry["hardware"] == "cpu x 1 (Some CPU, 2 cores)"
    assert entry["scalars"] == {"nll": 0.25}
    assert len(entry["claims"]) == 2 and len(entry["checks"]) == 1
    table = (folder.parent / "RESULTS.md").read_text()
    row = "| a \\| b (P 2000) | 0.1; judged by > 1 | 2 | [2, 2] | 5 | reduced | holds |"
    assert row in table and "| c (P 2000) | > 0 |" in table
    assert "| d | < 1 | 0.5 |  |  | check | passes |" in table
    assert "Not run yet: small, claims.\n" in table  # deep_ensemble_digits
    assert str(tmp_path) not in table + target.read_text()
    assert read_published(folder) == [entry]


def test_a_run_that_was_given_other_members_is_published_as_it_ended(run, tmp_path):
    last = VERSIONS | {"overrides": [["num_members", "2"]], "git_commit": "fedc"}
    versions = json.loads((run.path / "versions.json").read_text())
    versions["resumed_with"] = [last]
    (run.path / "versions.json").write_text(json.dumps(versions))
    (tmp_path / "results").mkdir()
    entry = json.loads(publish_results(run.path, tmp_path / "results").read_text())
    assert entry["command"] == "ensjax run toy:claims --config.num_members=2"
    assert entry["commits"] == ["0123456789abcdef", "fedc"]
    table = (tmp_path / "RESULTS.md").read_text()
    assert "commit 0123456789ab, fedc (resumed from one to the next)." in table


def test_an_unfinished_run_or_a_missing_folder_is_refused(run, tmp_path):
    with pytest.raises(ConfigError, match="no folder"):
        publish_results(run.path, tmp_path / "nowhere")
    (run.path / "results.json").unlink()
    with pytest.raises(ConfigError, match="not finished"):
        publish_results(run.path, tmp_path)


@pytest.mark.parametrize(
    "expected, side, bound, shown",
    [
        ("> 0", ">", 0.0, "> 0"),
        ("> 0 for every rival", ">", 0.0, "> 0 for every rival"),
        ("< 1, and .95", "<", 1.0, "< 1, and .95"),
        ("all (1)", ">", 0.5, "all (1); judged by > 0.5"),
        ("> 0.5", ">", 0.0, "> 0.5; judged by > 0"),
        ("< 0", ">", 0.0, "< 0; judged by > 0"),
        (0.0167, ">", 0.0, "0.0167; judged by > 0"),
        (
            "> ten times chance",
            ">",
            0.11616915,
            "> ten times chance; judged by > 0.1162",
        ),
    ],
)
def test_the_bound_of_a_verdict_is_told_where_the_paper_has_another(
    expected, side, bound, shown
):
    given = dict(expected=expected, **ABOUT)
    entry = claim("a", values_by_seed=[2] * 5, side=side, bound=bound, **given)
    assert format_expected(entry) == shown
    # Files of before have no such fields, and claims that did not run none either.
    old = {key: entry[key] for key in entry if key not in ("side", "bound")}
    assert format_expected(old) == str(expected)
    assert format_expected(not_run("a", **given)) == str(expected)


def test_a_config_that_nobody_ran_says_so():
    table = results_table([], {"lonely": ("smoke", "small", "claims")})
    assert "## lonely" in table and "Not run yet: small, claims.\n" in table


def test_verdicts_are_counted_in_words():
    entry = {
        "claims": [{"verdict": v} for v in ("holds", "holds", "fails", "not run")],
        "checks": [{"pass": True}, {"pass": False}],
    }
    assert verdict_counts(entry) == "2 hold, 1 fails, 1 not run; checks 1/2"
    assert verdict_counts({"claims": [], "checks": []}) == "no claims"


def test_other_files_in_the_folder_are_left_alone(tmp_path):
    epath.Path(tmp_path / "bench-engine.json").write_text('{"rows": []}')
    assert read_published(tmp_path) == []
