"""The report is one file that a browser shows without asking for anything else."""

import pytest
from matplotlib.figure import Figure

from ensjax.experiment.claims import Part, check, claim, claim_of_all, not_run
from ensjax.experiment.exit_codes import ConfigError
from ensjax.experiment.report import build_comparison, format_number, write_report
from ensjax.experiment.run_directory import open_run

VERSIONS = dict(device_kind="cpu", num_devices=8, processor="Some CPU", num_cores=2)
ABOUT = dict(paper="P & Co", source="table 1", certainty="recalled", scale="toy")


def make_run(path, seed=0, shift=0.0):
    config = {"experiment": "toy", "seed": seed, "mesh": {"member": -1}}
    with open_run(path, config, versions=VERSIONS) as run:
        for name in ("fan", "bars"):
            figure = Figure(figsize=(8, 3))
            figure.subplots().plot([1, 2 + shift, 3])
            run.add_figure(name, figure, f"The {name} <of> it & more.")
        columns = [f"column number {i}" for i in range(12)]
        run.add_table("Wide", columns, [["<b>x</b>"] + [1.2345 + shift] * 11], "Cap")
        run.finish(
            title="A <title>",
            summary="What came out & why.",
            scalars={"nll": 0.5 + shift, "nan": float("nan")},
            claims=[
                claim(
                    "the ensemble has a loss below 1, and the sentence is long",
                    expected="< 1",
                    values_by_seed=[0.5 + shift] * 4 + [0.51 + shift],
                    side="<",
                    bound=1.0,
                    **ABOUT,
                ),
                not_run("at full size", expected=0.114, **ABOUT),
                claim_of_all(
                    "better & faster",
                    expected="as good",
                    parts=[
                        Part("minus <this>", [1.0, 1.1, 1.2, 1.3, 1.4], 0.5),
                        Part("time", [1.0, 1.1, 1.2, 1.3, 1.4], 2.0, "<"),
                    ],
                    **ABOUT,
                ),
            ],
            checks=[check("fast", bound=">= 1", measured=0.5, passed=False)],
        )
    return path


def test_the_report_has_claims_first_and_config_last(tmp_path):
    text = (make_run(tmp_path / "run") / "report.html").read_text()
    parts = ("<h2>Claims", "<h2>Checks", "<h2>Wide", "<h2>Figures", "Config</summary>")
    places = [text.index(part) for part in parts]
    assert places == sorted(places)
    assert "Some CPU, 2 cores" in text


def test_a_verdict_names_its_scale(tmp_path):
    text = (make_run(tmp_path / "run") / "report.html").read_text()
    assert ">holds, toy scale<" in text
    assert ">not run<" in text
    assert ">fails<" in text  # the check
    assert "P &amp; Co, table 1 (recalled)" in text


def test_a_claim_of_several_parts_has_one_verdict_and_shows_them(tmp_path):
    text = (make_run(tmp_path / "run") / "report.html").read_text()
    claims, parts = text[: text.index("<h2>Checks")].split("<details>")
    assert claims.count(">holds, toy scale<") == 2
    assert "better &amp; faster (least sure of 2: minus &lt;this&gt;)" in claims
    assert "as good; judged by &gt; 0.5" in claims and "time" not in claims
    for shown in ("minus &lt;this&gt;", "&gt; 0.5", "time", "&lt; 2"):
        assert f"<td>{shown}</td>" in parts
    assert "verdict" not in parts


def test_everything_given_is_escaped(tmp_path):
    text = (make_run(tmp_path / "run") / "report.html").read_text()
    assert "A &lt;title&gt;" in text and "<title>A <" not in text
    assert "&lt;b&gt;x&lt;/b&gt;" in text
    assert "fan &lt;of&gt; it &amp; more." in text


def test_the_report_asks_for_nothing_and_has_no_script(tmp_path):
    text = (make_run(tmp_path / "run") / "report.html").read_text()
    assert "http" not in text and "<script" not in text
    assert text.count('src="') == text.count('src="data:image/png;base64,') == 2


def test_a_report_is_built_again_from_disk(tmp_path):
    path = make_run(tmp_path / "run")
    before = (path / "report.html").read_text()
    (path / "report.html").unlink()
    assert write_report(path).read_text() == before


def test_an_unfinished_or_missing_run_has_no_report(tmp_path):
    with pytest.raises(ConfigError, match="is no run of ensjax"):
        write_report(tmp_path / "nothing")
    open_run(tmp_path / "run", {"seed": 0}, versions=VERSIONS).close()
    with pytest.raises(ConfigError, match="is not finished"):
        write_report(tmp_path / "run")


def test_a_comparison_puts_runs_side_by_side(tmp_path):
    runs = [make_run(tmp_path / "one"), make_run(tmp_path / "two", seed=1, shift=1.0)]
    text = build_comparison(runs)
    assert ">holds, toy scale<" in text and ">fails, toy scale<" in text
    assert "Config fields that differ" in text and "<td>seed</td>" in text
    assert "mesh.member" not in text  # equal in both
    assert ">0.5<" in text and ">1.5<" in text
    assert text.count("<img") == 4


@pytest.mark.parametrize(
    "value, text",
    [(0.123456, "0.1235"), (3, "3"), (None, "–"), (float("nan"), "–"), ("> 1", "> 1")],
)
def test_numbers_are_short(value, text):
    assert format_number(value) == text


@pytest.mark.parametrize("width", [360, 1000])
@pytest.mark.parametrize("kind", ["report", "comparison"])
def test_a_browser_shows_it_whole_and_fetches_nothing(
    open_in_browser, tmp_path, width, kind
):
    runs = [make_run(tmp_path / "one"), make_run(tmp_path / "two", seed=1)]
    page = runs[0] / "report.html"
    if kind == "comparison":
        page = tmp_path / "comparison.html"
        page.write_text(build_comparison(runs))
    num_images = open_in_browser(page, width)
    assert num_images == (2 if kind == "report" else 4)
