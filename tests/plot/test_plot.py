"""Figures hold the numbers they were given, say what they show, and leak nothing."""

import subprocess
import sys

import matplotlib
import numpy as np
import pytest

from ensjax import plot, scores, verification

matplotlib.use("Agg")
ROWS, CLASSES = 80, 3


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(4, ROWS, CLASSES))
    return logits, rng.integers(0, CLASSES, ROWS)


def texts(ax):
    legend = ax.get_legend()
    return [t.get_text() for t in legend.get_texts()] if legend else []


def line(ax, start):
    """The x and y of the line whose label starts with `start`."""
    found = [x for x in ax.lines if str(x.get_label()).startswith(start)]
    assert len(found) == 1, [x.get_label() for x in ax.lines]
    return found[0].get_xdata(), found[0].get_ydata()


def test_reliability_draws_the_bins_and_the_ece(case):
    logits, labels = case
    fig = plot.reliability(logits[0], labels, num_bins=10, title="One member")
    ax, counts = fig.axes
    bins = scores.reliability_bins(logits[0], labels, num_bins=10)
    full = np.asarray(bins.weight) > 0
    x, y = line(ax, "ensemble, ECE")
    np.testing.assert_allclose(x, np.asarray(bins.confidence)[full])
    np.testing.assert_allclose(y, np.asarray(bins.accuracy)[full])
    error = float(scores.ece(logits[0], labels, num_bins=10))
    assert texts(ax) == ["perfectly calibrated", f"ensemble, ECE {error:.3g}"]
    assert ax.get_legend().get_title().get_text() == "10 bins, 80 rows"
    assert ax.get_ylabel() == "Accuracy" and fig.get_suptitle() == "One member"
    assert ax.get_ylim() == (0, 1) and ax.get_xlim() == (0, 1)
    assert "Confidence" in counts.get_xlabel()
    values, edges, _ = counts.patches[0].get_data()
    np.testing.assert_allclose(values, np.asarray(bins.weight) / ROWS, rtol=1e-6)
    np.testing.assert_allclose(edges, np.linspace(0, 1, 11), rtol=1e-6)


def test_reliability_takes_several_named_curves(case):
    logits, labels = case
    fig = plot.reliability({"first": logits[0], "second": logits[1]}, labels)
    line(fig.axes[0], "first"), line(fig.axes[0], "second")


def test_learning_curves_draw_median_and_every_member():
    steps = np.arange(0, 50, 10)
    values = np.random.default_rng(0).uniform(1, 2, (5, 7))
    ax = plot.learning_curves(steps, values, title="Loss").axes[0]
    x, y = line(ax, "median of 7")
    np.testing.assert_array_equal(x, steps)
    np.testing.assert_allclose(y, np.median(values, axis=1))
    single = [h.get_ydata() for h in ax.lines[:7]]
    np.testing.assert_array_equal(np.transpose(single), values)
    assert "10-90 % of members" in texts(ax)
    assert ax.get_ylabel() == "Training loss (nats)" and ax.get_xlabel() == "Step"
    band = ax.collections[0].get_paths()[0].vertices[:, 1]
    np.testing.assert_allclose(band.max(), np.quantile(values, 0.9, axis=1).max())


def test_lost_members_are_marked_and_do_not_enter_the_median():
    values = np.tile(np.arange(1.0, 6.0)[:, None], (1, 4))
    values[2:, 1] = np.nan
    values[4, 2] = np.inf
    values[3, 3], values[4, 3] = np.nan, 1e6  # lost at step 3, whatever comes later
    values[:, 0] += 1
    ax = plot.learning_curves(np.arange(5), values).axes[0]
    assert "3 not finite, of 4" in texts(ax)
    crosses = {
        (float(h.get_xdata()[0]), float(h.get_ydata()[0]))
        for h in ax.lines
        if h.get_marker() == "x"
    }
    assert crosses == {(1.0, 2.0), (3.0, 4.0), (2.0, 3.0)}
    _, median = line(ax, "median")
    np.testing.assert_allclose(median[4], 6.0)


def test_learning_curves_of_members_that_were_never_finite():
    ax = plot.learning_curves(np.arange(3), np.full((3, 2), np.nan)).axes[0]
    assert texts(ax) == ["2 not finite, of 2"]


def test_log_axes_say_so():
    values = np.full((4, 2), 0.5)
    ax = plot.learning_curves(np.arange(4), values, log_x=True, log_y=True).axes[0]
    assert ax.get_xscale() == ax.get_yscale() == "log"
    assert "log scale" in ax.get_xlabel() and "log scale" in ax.get_ylabel()


def test_metric_against_size_draws_means_and_the_mean_member():
    sizes = np.array([1, 2, 4])
    values = np.array([[0.5, 0.3], [0.3, 0.3], [0.2, np.nan]])
    fig = plot.metric_against_size(sizes, values, mean_member=0.4, label="NLL (nats)")
    ax = fig.axes[0]
    x, y = line(ax, "ensemble, mean over subsets")
    np.testing.assert_array_equal(x, sizes)
    np.testing.assert_allclose(y, [0.4, 0.3, 0.2])
    member = next(h for h in ax.lines if h.get_label() == "mean single member")
    assert member.get_linestyle() == "--" and set(member.get_ydata()) == {0.4}
    assert ax.get_ylabel() == "NLL (nats)" and ax.get_xlabel() == "Ensemble size M"
    assert "band: 95 % of subsets\n" in ax.get_legend().get_title().get_text()


def test_metric_under_shift_draws_lines_and_bands():
    severity, repeats = np.array([0, 10, 20]), np.array([[1.0, 2, 3], [2, 3, 4]])
    curves = {"members": repeats, "ensemble": np.array([0.5, 1, 1.5])}
    ax = plot.metric_under_shift(severity, curves).axes[0]
    np.testing.assert_allclose(line(ax, "members")[1], [1.5, 2.5, 3.5])
    np.testing.assert_allclose(line(ax, "ensemble")[1], [0.5, 1, 1.5])
    assert len(ax.collections) == 1  # one band
    assert ax.get_xlabel() == "Rotation (degrees)"
    assert "band: 95 % of members\n" in ax.get_legend().get_title().get_text()


def test_broken_member_under_shift_is_said():
    curves = {"members": np.full((2, 3), np.nan), "ensemble": np.ones(3)}
    ax = plot.metric_under_shift(np.arange(3), curves).axes[0]
    assert "gaps: not finite" in texts(ax)


def test_risk_coverage_draws_the_curve_and_the_area(case):
    logits, labels = case
    ax = plot.risk_coverage({"first": logits[0]}, labels).axes[0]
    curve = scores.risk_coverage(logits[0], labels)
    x, y = line(ax, "first, AURC")
    np.testing.assert_allclose(x, curve.coverage)
    np.testing.assert_allclose(y, curve.risk)
    assert f"{float(scores.aurc(logits[0], labels)):.3g}" in texts(ax)[0]
    assert ax.get_ylim()[0] == 0


def test_histograms_share_bins_and_sum_to_one():
    values = {"in": np.linspace(0, 1, 50), "out": np.array([0.5, 2.0, np.nan])}
    ax = plot.histograms(values, num_bins=8).axes[0]
    outlines = [p for p in ax.patches if p.get_label() and not p.get_fill()]
    assert texts(ax) == ["in (50)", "out (2), 1 not finite"]
    edges = [p.get_data()[1] for p in outlines]
    np.testing.assert_array_equal(edges[0], edges[1])
    for patch in outlines:
        np.testing.assert_allclose(patch.get_data()[0].sum(), 1.0)
    assert ax.get_xlabel() == "Predictive entropy (nats)"


def test_histograms_of_one_constant_do_not_break():
    plot.histograms({"M = 1": np.zeros(5)}).draw_without_rendering()


def test_bars_start_at_zero_and_show_their_intervals():
    ax = plot.bars({"a": (0.5, 0.4, 0.6), "b": 0.7}, label="Accuracy").axes[0]
    assert [p.get_width() for p in ax.patches] == [0.5, 0.7]
    assert {p.get_x() for p in ax.patches} == {0}
    assert ax.get_xlim()[0] <= 0
    (start, end) = ax.collections[0].get_segments()[0]
    assert (start[0], end[0]) == (0.4, 0.6)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a", "b"]


def test_metric_dots_draw_one_panel_a_metric():
    metrics = {
        "Accuracy": {"member": (0.9, 0.8, 0.95), "ensemble": 0.95},
        "NLL (nats)": {"ensemble": 0.2},
    }
    fig = plot.metric_dots(metrics, title="Test rows")
    first, second = fig.axes
    assert [h.get_xdata()[0] for h in first.lines] == [0.9, 0.95]
    assert [h.get_xdata()[0] for h in second.lines] == [0.2]
    assert second.get_xlabel() == "NLL (nats)"
    assert [t.get_text() for t in first.get_yticklabels()] == ["member", "ensemble"]


def test_image_grid_names_mistakes_in_words():
    images = np.random.default_rng(0).uniform(size=(5, 4, 4))
    fig = plot.image_grid(
        images,
        labels=[0, 1, 2, 3, 4],
        predictions=[0, 7, 2, 3, 4],
        numbers=np.linspace(0, 1, 5),
        number_label="mutual information (nats)",
        columns=3,
    )
    titles = [ax.get_title() for ax in fig.axes]
    assert titles == ["0\n0", "1, said 7\n0.25", "2\n0.5", "3\n0.75", "4\n1", ""]
    for ax, image in zip(fig.axes, images):
        np.testing.assert_array_equal(ax.images[0].get_array(), image)
    assert "nats" in fig.get_supxlabel()


def test_image_grid_takes_one_image_and_colours():
    plot.image_grid(np.zeros((1, 4, 4, 1))).draw_without_rendering()
    fig = plot.image_grid(np.full((2, 4, 4, 3), 0.5))
    assert fig.axes[0].images[0].get_array().shape == (4, 4, 3)


def test_disagreement_matrix_leaves_the_diagonal_out():
    matrix = np.array([[0.0, 0.2], [0.2, 0.0]])
    fig = plot.disagreement_matrix(matrix, names=["a", "b"], title="Pairs")
    ax, bar = fig.axes
    shown = ax.images[0].get_array()
    assert (
        shown[0, 1] == 0.2
        and (np.ma.getmaskarray(shown) == np.eye(2, dtype=bool)).all()
    )
    assert [t.get_text() for t in ax.texts] == ["0.2", "0.2"]
    assert ax.images[0].get_clim() == (0.0, 0.2) and "fraction" in bar.get_ylabel()
    assert (matrix == [[0.0, 0.2], [0.2, 0.0]]).all()  # the caller's array is its own


def test_one_member_is_drawn_by_every_figure(case):
    logits, labels = case
    one = [
        plot.reliability(logits[0][:1], labels[:1]),
        plot.risk_coverage(logits[0][:1], labels[:1]),
        plot.learning_curves(np.arange(1), np.ones((1, 1))),
        plot.metric_against_size(np.array([1]), np.ones((1, 1))),
        plot.metric_under_shift(np.array([0]), {"ensemble": np.ones(1)}),
        plot.disagreement_matrix(np.zeros((1, 1))),
        plot.bars({"a": np.nan}, label="x"),
        plot.metric_dots({"x": {"a": np.nan}}),
    ]
    for fig in one:
        fig.draw_without_rendering()


def test_an_axis_that_does_not_start_at_zero_says_so():
    values = np.full((2, 3), 0.95) + np.arange(3) / 100
    ax = plot.metric_against_size(np.array([1, 2]), values, label="Accuracy").axes[0]
    assert "y axis starts at 0.9" in ax.get_legend().get_title().get_text()


def test_text_is_nine_points_or_more(case):
    logits, labels = case
    figures = [
        plot.reliability({"a": logits[0], "b": logits[1]}, labels),
        plot.metric_against_size(np.array([1, 2]), np.full((2, 2), 0.9)),
        plot.disagreement_matrix(scores.disagreement_matrix(logits)),
        plot.image_grid(np.zeros((2, 3, 3)), labels=[0, 1], numbers=[0.1, 0.2]),
        plot.metric_dots({"x": {"a": (1, 0, 2)}}),
        plot.bars({"a": 1.0}, label="x"),
    ]
    for fig in figures:
        fig.draw_without_rendering()
        for text in fig.findobj(matplotlib.text.Text):
            assert not text.get_text() or text.get_fontsize() >= 9, text


def test_saved_files_are_equal_for_equal_figures(tmp_path):
    for name in ("a.png", "b.png"):
        plot.save(plot.bars({"a": 1.0}, label="x"), tmp_path / name)
    data = (tmp_path / "a.png").read_bytes()
    assert data == (tmp_path / "b.png").read_bytes() and data[1:4] == b"PNG"
    plot.save(plot.bars({"a": 1.0}, label="x"), str(tmp_path / "c.svg"))
    assert "<svg" in (tmp_path / "c.svg").read_text()


def test_notebooks_can_show_a_figure():
    assert plot.bars({"a": 1.0}, label="x")._repr_png_()[1:4] == b"PNG"


def test_pyplot_is_not_used():
    code = "import sys, ensjax.plot; print('matplotlib.pyplot' in sys.modules)"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "False"


@pytest.mark.slow
def test_scores_and_combine_do_not_import_matplotlib():
    code = (
        "import sys, ensjax, ensjax.scores, ensjax.combine;"
        "print('matplotlib' in sys.modules)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "False"


def test_bad_inputs_are_refused_with_the_shape_that_was_expected():
    with pytest.raises(ValueError, match=r"\[step, member\]"):
        plot.learning_curves(np.arange(3), np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"\[size, subset\]"):
        plot.metric_against_size(np.arange(3), np.ones(3))
    with pytest.raises(ValueError, match=r"\[severity\] = \(3,\)"):
        plot.metric_under_shift(np.arange(3), {"a": np.ones(2)})
    with pytest.raises(ValueError, match="one value for each of 2 images"):
        plot.image_grid(np.zeros((2, 3, 3)), labels=[1])
    with pytest.raises(ValueError, match="member, member"):
        plot.disagreement_matrix(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="number or"):
        plot.bars({"a": (1, 2)}, label="x")
    with pytest.raises(ValueError, match="no finite number"):
        plot.histograms({"a": [np.nan]})
    with pytest.raises(ValueError, match="Between 1 and 7"):
        plot.histograms({str(i): [1.0] for i in range(8)})


def test_a_member_history_shows_every_event_where_it_was():
    steps = np.array([10, 20, 30])
    values = np.array([[1.0, 2.0, 3.0], [1.0, np.nan, 2.0], [0.5, np.nan, 1.0]])
    fig = plot.member_history(
        steps,
        values,
        frozen_steps=np.array([-1, 10, -1]),
        stopped_steps=np.array([-1, -1, 30]),
        recovery_steps=np.array([[5, 15], [-1, -1], [-1, -1]]),
        names=["a", "b", "c"],
    )
    ax = fig.axes[0]
    shown = {
        points.get_label(): points.get_offsets().tolist()
        for points in ax.collections[1:]
    }
    assert shown == {
        "recovered": [[5, 0], [15, 0]],
        "frozen": [[10, 1]],
        "stopped": [[30, 2]],
    }
    grid = ax.collections[0].get_array()
    assert grid.mask.tolist() == [[False] * 3, [False, True, True], [False] * 3]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["a", "b", "c"]
    quiet = plot.member_history(steps, values)
    assert quiet.axes[0].get_legend() is None
    with pytest.raises(ValueError, match="at least one"):
        plot.member_history([], np.zeros((0, 3)))
    with pytest.raises(ValueError, match="frozen_steps must hold 3 members"):
        plot.member_history(steps, values, frozen_steps=np.zeros(2))


def test_a_scorecard_has_a_triangle_for_what_is_significant():
    normalised = np.array([0.2, -0.1, 0.05, np.nan]).reshape(2, 1, 2, 1)
    away = np.array([0.1, -0.2, -0.1, np.nan]).reshape(2, 1, 2, 1)
    card = verification.Scorecard(
        scores=("RMSE", "ACC"),
        best=("low", "high"),
        variables=("t",),
        leads=(1.0, 2.0),
        regions=("globe",),
        value=normalised,
        reference=normalised,
        normalised=normalised,
        low=np.minimum(normalised, away),
        high=np.maximum(normalised, away) - np.array([0, 0.05]).reshape(1, 1, 2, 1),
        systems=("new", "old"),
    )
    fig = plot.scorecard(card)
    ax = fig.axes[0]
    drawn = [(x.get_marker(), x.get_xdata()[0], x.get_ydata()[0]) for x in ax.lines]
    # Better at lead 1, worse at lead 2; ACC undecided at lead 1 and not scored at 2.
    assert drawn == [("^", 0, 0), ("v", 1, 0), (".", 0, 1)]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["RMSE", "ACC"]
    assert ax.get_title(loc="left") == "" and len(fig.axes) == 2  # and the colours
    assert fig.get_suptitle() == "new against old"
    picture = ax.images[0].get_array()
    np.testing.assert_allclose(
        np.ma.filled(picture, np.nan), [[0.2, -0.1], [0.05, np.nan]]
    )
    with pytest.raises(ValueError, match="no cell that was scored"):
        plot.scorecard(card._replace(normalised=normalised * np.nan))
