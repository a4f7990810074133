"""Nothing is fitted on rows that were trained on or are tested on, whatever fits.

One table of everything public in `combine` that is fitted on rows. A new one without an
entry fails the first test.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ensjax import combine, data, scores, sources
from ensjax.predictions import Predictions
from ensjax.provenance import (
    FittedRows,
    LeakageError,
    Provenance,
    check_fitting_rows,
    check_scored_rows,
)

ROWS = np.arange(10, 18)
LATER = ROWS + 6  # 16 and 17 are in both
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(2, 8, 2)).astype(np.float32)
POINTS = RNG.normal(size=(2, 8)).astype(np.float32)
QUANTILES = np.sort(RNG.normal(size=(2, 8, 3)), axis=-1).astype(np.float32)
LEVELS = (0.1, 0.5, 0.9)
LABELS = np.arange(8) % 2
TARGETS = RNG.normal(size=8).astype(np.float32)
X = RNG.normal(size=(8, 3)).astype(np.float32)
STAGES = ((0,), (1,))


class Swapped:
    """Instead of a provenance: the same predictions, of members in another order."""


def said(about, kind="logits"):
    if isinstance(about, Swapped):
        return said(None, kind).select(["knn", "tree"])
    told = dict(names=("tree", "knn"), provenance=about)
    if kind == "points":
        return Predictions.from_points(POINTS, **told)
    if kind == "quantiles":
        return Predictions.from_quantiles(QUANTILES, LEVELS, **told)
    if kind == "features":
        return Predictions.from_features(LOGITS, **told)
    return Predictions.from_logits(LOGITS, **told)


class Entry(NamedTuple):
    """Of something fitted: how, how it is applied, and what it makes of `Predictions`.

    `fit(about)`, `use(fitted, about)`; `gives` is "one" member, the "members",
    "arrays", which say nothing of their rows and for which `use` takes `allow_seen`, or
    "nothing": it is trained on, not applied.
    """

    fit: Callable[[Any], Any]
    use: Callable[[Any, Any], Any]
    gives: str = "one"
    kind: str = "logits"


def of_logits(fit, gives="one", **options):
    return Entry(
        lambda about: fit(said(about), LABELS, **options),
        lambda fitted, about: fitted(said(about)),
        gives,
    )


def of_points(fit, *inputs):
    return Entry(
        lambda about: fit(said(about, "points"), TARGETS, *inputs),
        lambda fitted, about: fitted(said(about, "points"), *inputs),
        kind="points",
    )


def of_arrays(fit, *arrays, **options):
    """What takes arrays and their provenance."""

    def use(fitted, about, **look):
        return fitted(*arrays[: len(arrays) - 1 or 1], provenance=about, **look)

    return Entry(lambda about: fit(*arrays, provenance=about, **options), use, "arrays")


def of_windows(fit, *arrays, **options):
    def use(fitted, about, **look):
        return combine.Cascade(fitted, STAGES)(said(about), **look)

    return Entry(lambda about: fit(*arrays, provenance=about, **options), use, "arrays")


def of_sets(fit, *groups, **options):
    def use(fitted, about, **look):
        given = {"groups": groups[0]} if groups else {}
        return fitted(said(about), **given, **look)

    return Entry(
        lambda about: fit(
            combine.LacScore(), said(about), LABELS, *groups, alpha=0.3, **options
        ),
        use,
        "arrays",
    )


def leave_out(fit, *arrays):
    def use(fitted, about, **look):
        return fitted(POINTS, alpha=0.2, provenance=about, **look)

    return Entry(lambda about: fit(*arrays, provenance=about), use, "arrays")


def dynamic_selection(about):
    return combine.fit_dynamic_selection(said(about), LABELS, X)


def aggregator(about):
    return combine.fit_quantile_aggregator(
        said(about, "quantiles"),
        TARGETS,
        levels=LEVELS,
        steps=2,
        evaluate_every_steps=2,
    )


def pseudo_labels(choose, **options):
    return Entry(
        lambda about: choose(said(about), **options),
        lambda fitted, about: fitted.fitted_rows.check_test(about),
        "nothing",
    )


NEVER_IN_BAG = np.zeros((2, 8), np.int32)
TABLE = {
    "agreed_labels": pseudo_labels(combine.agreed_labels),
    "balanced_labels": pseudo_labels(combine.balanced_labels, share=0.5),
    "bma_weights": of_logits(combine.bma_weights, "members"),
    "calibrate": of_logits(combine.calibrate),
    "calibrate_each_member": of_logits(
        functools.partial(combine.calibrate_each_member, combine.fit_platt)
    ),
    "calibrate_ensemble": of_logits(
        functools.partial(combine.calibrate_ensemble, combine.fit_platt)
    ),
    "calibrate_members": of_logits(combine.calibrate_members),
    "cluster_weights": Entry(
        lambda about: combine.cluster_weights(said(about, "points"), TARGETS),
        lambda fitted, about: fitted(said(about, "points")),
        "members",
        "points",
    ),
    "confident_labels": pseudo_labels(combine.confident_labels, threshold=0.5),
    "fit_accuracy_vote": of_logits(combine.fit_accuracy_vote),
    "fit_asymmetric_band": of_arrays(
        combine.fit_asymmetric_band, POINTS[0], POINTS[1], TARGETS, alpha=0.2
    ),
    "fit_cascade": Entry(
        lambda about: combine.fit_cascade(said(about), LABELS, stages=STAGES),
        lambda fitted, about: fitted.predictions(said(about)),
    ),
    "fit_conformal_band": of_arrays(
        combine.fit_conformal_band, POINTS[0], POINTS[1], TARGETS, alpha=0.2
    ),
    "fit_conformal_interval": of_arrays(
        combine.fit_conformal_interval, POINTS[0], TARGETS, alpha=0.2
    ),
    "fit_conformal_quantiles": Entry(
        lambda about: combine.fit_conformal_quantiles(
            QUANTILES[0], LEVELS, TARGETS, provenance=about
        ),
        lambda fitted, about, **look: fitted(QUANTILES[0], provenance=about, **look),
        "arrays",
    ),
    "fit_conformal_sets": of_sets(combine.fit_conformal_sets),
    "fit_conformal_sets_by_class": of_sets(combine.fit_conformal_sets_by_class),
    "fit_conformal_sets_by_group": of_sets(
        combine.fit_conformal_sets_by_group, LABELS, num_groups=2
    ),
    "fit_convex_weights": of_logits(combine.fit_convex_weights),
    "fit_cv_plus": leave_out(combine.fit_cv_plus, POINTS[0], TARGETS, LABELS),
    "fit_cv_plus_band": Entry(
        lambda about: combine.fit_cv_plus_band(
            POINTS[0], POINTS[1], TARGETS, LABELS, provenance=about
        ),
        lambda fitted, about, **look: fitted(
            POINTS, POINTS, alpha=0.2, provenance=about, **look
        ),
        "arrays",
    ),
    "fit_dynamic_regression": of_points(combine.fit_dynamic_regression, X),
    "fit_dynamic_selection": Entry(
        dynamic_selection, lambda fitted, about: fitted(said(about), X)
    ),
    "fit_jackknife_after_bootstrap": leave_out(
        combine.fit_jackknife_after_bootstrap, POINTS, NEVER_IN_BAG, TARGETS
    ),
    "fit_log_odds_vote": of_logits(combine.fit_log_odds_vote),
    "fit_pit_map": of_arrays(combine.fit_pit_map, LABELS * 0.5),
    "fit_quantile_aggregator": Entry(
        aggregator,
        lambda fitted, about: fitted(said(about, "quantiles")),
        kind="quantiles",
    ),
    "fit_sigma_scale": Entry(
        lambda about: combine.fit_sigma_scale(
            POINTS[0], np.ones(8), TARGETS, provenance=about
        ),
        lambda fitted, about, **look: fitted(np.ones(8), provenance=about, **look),
        "arrays",
    ),
    "fit_single_threshold": of_windows(combine.fit_single_threshold, POINTS[:1]),
    "fit_stacking": of_logits(combine.fit_stacking),
    "fit_stacking_regression": of_points(combine.fit_stacking_regression),
    "fit_vote_thresholds": of_logits(combine.fit_vote_thresholds, "members"),
    "fit_windows": of_windows(
        combine.fit_windows, POINTS[:1], LABELS, "risk_at_coverage", level=0.5
    ),
    "fusion_rows": Entry(
        lambda about: combine.fusion_rows(said(about, "features")),
        lambda fitted, about: fitted.fitted_rows.check_test(about),
        "nothing",
    ),
    "greedy_select": of_logits(combine.greedy_select, rounds=2),
    "keep_best_members": of_logits(combine.keep_best_members, "members", number=1),
    "prune_members": of_logits(combine.prune_members, "members"),
}
# Maps of one model's rows, which `calibrate_ensemble` and `calibrate_each_member` fit.
MAPS = (
    *("fit_isotonic", "fit_isotonic_map", "fit_matrix_scaling", "fit_platt"),
    "fit_vector_scaling",
)
# Training of base models: these say what their predictions have seen.
MAKES_PROVENANCE = ("fit_and_predict", "fit_out_of_fold")
# Fitted on nothing: they compare what counts say of rows with the provenance.
OUT_OF_BAG = ("out_of_bag_log_probs", "out_of_bag_score")
# Trained, or run by SciPy: not traced.
IS_HOST = ("cluster_weights", "fit_quantile_aggregator")
# Of each kind of what a fit gives; that the rows of a fit are checked is seen of all.
FEW = ("fit_stacking", "calibrate", "calibrate_members", "fit_conformal_sets")
FEW += ("fit_cascade", "fusion_rows", "keep_best_members", "fit_dynamic_selection")
names = pytest.mark.parametrize(
    "name",
    [
        name if name in FEW else pytest.param(name, marks=pytest.mark.slow)
        for name in TABLE
    ],
)


def test_everything_that_is_fitted_on_rows_is_in_the_table():
    public = {
        name
        for name in combine.__all__
        if name.startswith(("fit_", "calibrate"))
        or (
            not isinstance(getattr(combine, name), type)
            and "LeakageError" in (getattr(combine, name).__doc__ or "")
        )
    }
    assert public == {*TABLE, *MAPS, *MAKES_PROVENANCE, *OUT_OF_BAG}


@pytest.mark.parametrize("name", TABLE)
def test_rows_of_training_and_of_the_test_are_refused(name):
    fit = TABLE[name].fit
    trained = Provenance.of(
        "wine", ROWS, trained_on=[np.arange(5), np.array([12, 17, 90])]
    )
    told = "cannot be fitted on rows 12, 17 of 'wine': member ('knn'|1) was trained on"
    with pytest.raises(LeakageError, match=told):
        fit(trained)
    with pytest.raises(LeakageError, match="'test' rows of 'wine'.*only test"):
        fit(Provenance("wine", ROWS, "test"))
    kept = Provenance("wine", ROWS, test_rows=np.array([3, 11]))
    with pytest.raises(LeakageError, match="row 11 of 'wine', which are kept"):
        fit(kept)


HELD_OUT = Provenance.of("wine", ROWS, trained_on=[np.arange(5), [30, 19]])


@names
def test_it_is_not_tested_on_its_rows_and_what_it_makes_has_seen_them(name):
    """A second stage may be fitted on rows that neither stage nor members have seen."""
    entry = TABLE[name]
    # Traced and not run: the rows are static, and what is computed is tested elsewhere.
    trace = (lambda fn: fn()) if name in IS_HOST else jax.eval_shape
    fitted = trace(lambda: entry.fit(HELD_OUT))
    test = Provenance("wine", LATER, "test")
    with pytest.raises(LeakageError, match="fitted on rows 16, 17 of 'wine'"):
        entry.use(fitted, test)
    later = Provenance.of("wine", LATER, trained_on=[np.arange(5), [30, 19]])
    if entry.gives == "arrays":
        told = (
            "fitted on rows 16, 17 of 'wine': .* look at the fit with allow_seen=True"
        )
        with pytest.raises(LeakageError, match=told):
            entry.use(fitted, later)
        told = r"fitted on rows 10, 11, 12, 13, 14, ... \(8 in all\)"
        with pytest.raises(LeakageError, match=told):
            entry.use(fitted, HELD_OUT)
        looked = trace(
            lambda: entry.use(entry.fit(HELD_OUT), HELD_OUT, allow_seen=True)
        )
        unknown = trace(lambda: entry.use(entry.fit(HELD_OUT), None))
        assert jax.tree.map(jnp.shape, looked) == jax.tree.map(jnp.shape, unknown)
        with pytest.raises(LeakageError, match="which are test rows here"):
            entry.use(fitted, test, allow_seen=True)
    if entry.gives in ("arrays", "nothing"):
        return
    made = trace(lambda: entry.use(entry.fit(HELD_OUT), later))
    assert isinstance(made, Predictions)
    one = entry.gives == "one"
    assert made.names == (made.names if one else ("tree", "knn"))
    assert made.values.shape[0] == len(made.names) == (1 if one else 2)
    seen = made.provenance.seen
    fresh = np.isin(LATER, [18, 20, 21, 22, 23])
    np.testing.assert_array_equal(~seen.any(axis=0), fresh)
    assert seen[0, :2].all() and made.provenance.known is None
    with pytest.raises(LeakageError, match="rows 16, 17"):
        check_fitting_rows("the second stage", made.provenance, names=made.names)
    with pytest.raises(LeakageError, match="a score cannot be of rows 16, 17"):
        check_scored_rows(made.provenance, names=made.names)
    fresh = made.provenance.take(np.flatnonzero(fresh))
    check_fitting_rows("the second stage", fresh)
    check_scored_rows(fresh)


# Fitted on arrays and applied to such, or trained on: of members nothing is known.
TAKES_ARRAYS = {
    *("agreed_labels", "balanced_labels", "confident_labels", "fusion_rows"),
    *("fit_asymmetric_band", "fit_conformal_band", "fit_conformal_interval"),
    *("fit_conformal_quantiles", "fit_cv_plus", "fit_cv_plus_band"),
    *("fit_jackknife_after_bootstrap", "fit_pit_map", "fit_sigma_scale"),
    *("fit_single_threshold", "fit_windows"),
}
# Fitted on the mean of the members, which has no order; with weights it has one.
ORDER_FREE = {
    "calibrate": functools.partial(combine.calibrate, weights=np.array([0.9, 0.1])),
    "calibrate_ensemble": functools.partial(
        combine.calibrate_ensemble, combine.fit_platt, weights=np.array([0.9, 0.1])
    ),
} | {
    name: functools.partial(
        getattr(combine, name),
        combine.LacScore(),
        alpha=0.3,
        weights=np.array([0.9, 0.1]),
    )
    for name in ("fit_conformal_sets", "fit_conformal_sets_by_class")
}
ORDER_FREE["fit_conformal_sets_by_group"] = functools.partial(
    combine.fit_conformal_sets_by_group,
    combine.LacScore(),
    groups=LABELS,
    num_groups=2,
    alpha=0.3,
    weights=np.array([0.9, 0.1]),
)
IN_ORDER = (
    r"fitted on the members \('tree', 'knn'\), in this order; got predictions of"
    r" \('knn', 'tree'\): .*\.select\(\['tree', 'knn'\]\)"
)


@names
def test_members_in_another_order_than_that_of_the_fit_are_refused(name):
    """A number for each member is another member's there, and nothing would tell."""
    entry = TABLE[name]
    trace = (lambda fn: fn()) if name in IS_HOST else jax.eval_shape
    fitted = trace(lambda: entry.fit(None))
    takes = callable(fitted)
    takes = takes and "Predictions" in str(inspect.signature(type(fitted).__call__))
    assert takes != (name in TAKES_ARRAYS)
    if not takes:
        return
    if name not in ORDER_FREE:
        with pytest.raises(ValueError, match=IN_ORDER):
            entry.use(fitted, Swapped())
        return
    jax.eval_shape(lambda: entry.use(entry.fit(None), Swapped()))
    weighed = jax.eval_shape(lambda: ORDER_FREE[name](said(None), labels=LABELS))
    with pytest.raises(ValueError, match=IN_ORDER):
        entry.use(weighed, Swapped())


def test_parts_of_a_fit_are_of_its_members_too():
    """Methods beside the call, and arrays, of which nothing is known."""
    dynamic = jax.eval_shape(lambda: dynamic_selection(None))
    each = jax.eval_shape(lambda: TABLE["calibrate_each_member"].fit(None))
    temperatures = combine.MemberTemperatures(
        np.ones(2), FittedRows("the temperatures", names=("tree", "knn"))
    )
    for use in (
        lambda given: dynamic.weights(given, X),
        lambda given: each.members(given),
        lambda given: temperatures.scale(given),
    ):
        with pytest.raises(ValueError, match=IN_ORDER):
            use(said(Swapped()))
    # Fitted on members whose names are known, applied to arrays, and the other way.
    numbered = Predictions.from_logits(LOGITS).select([1, 0])

    def both_ways():
        fitted = combine.fit_dynamic_selection(numbered, LABELS, X)
        temperatures(LOGITS)
        temperatures(Predictions.from_logits(LOGITS))
        return fitted(LOGITS, X), fitted(said(None), X)

    jax.eval_shape(both_ways)


@pytest.mark.parametrize(
    "fit, use",
    [
        (combine.fit_stacking, None),
        (functools.partial(combine.fit_convex_weights, per_class=True), None),
        (combine.fit_vote_thresholds, None),
        (functools.partial(combine.calibrate_ensemble, combine.fit_platt), None),
        (functools.partial(combine.calibrate_each_member, combine.fit_platt), None),
        (
            lambda given, labels: combine.fit_conformal_sets_by_class(
                combine.LacScore(), given, labels, alpha=0.3
            ),
            None,
        ),
        (
            lambda given, labels: combine.fit_dynamic_selection(given, labels, X),
            lambda fitted, given: fitted(given, X),
        ),
    ],
)
def test_classes_in_another_order_than_that_of_the_fit_are_refused(fit, use):
    use = (lambda fitted, given: fitted(given)) if use is None else use
    given = said(None).replace(columns=("no", "yes"))
    fitted = jax.eval_shape(lambda: fit(given, LABELS))
    with pytest.raises(ValueError, match=r"the classes \('no', 'yes'\), in this order"):
        use(fitted, given.replace(columns=("yes", "no")))
    jax.eval_shape(lambda: use(fit(given, LABELS), said(None)))


def test_levels_and_members_of_an_aggregator_are_those_of_its_fit():
    given = said(None, "quantiles")
    fit = functools.partial(combine.fit_quantile_aggregator, given, TARGETS)
    with pytest.raises(ValueError, match=r"levels \(0.2, 0.5, 0.8\); got .*\(0.1, 0.5"):
        fit(levels=(0.2, 0.5, 0.8))
    others = Predictions.from_quantiles(QUANTILES, (0.2, 0.5, 0.8), names=given.names)
    with pytest.raises(ValueError, match=r"got predictions at \(0.2, 0.5, 0.8\)"):
        fit(levels=LEVELS, validation=(others, TARGETS))
    with pytest.raises(ValueError, match=IN_ORDER):
        fit(levels=LEVELS, validation=(said(Swapped(), "quantiles"), TARGETS))
    rows = FittedRows("the aggregator", names=given.names, levels=LEVELS)
    fitted = combine.FittedAggregator(None, rows, None, (), 0)
    with pytest.raises(ValueError, match=r"got predictions at \(0.2, 0.5, 0.8\)"):
        fitted(others)
    with pytest.raises(ValueError, match=IN_ORDER):
        fitted(said(Swapped(), "quantiles"))


@pytest.mark.parametrize(
    "score",
    [
        functools.partial(scores.score_summary, top_k=1),
        scores.jensen_gap,
        scores.nll_decomposition,
        scores.error_correlation,
        scores.q_statistic,
        scores.double_fault,
        scores.label_probability_variance,
    ],
)
def test_scores_of_predictions_are_not_of_rows_that_members_have_seen(score):
    trained = Provenance.of("wine", ROWS, trained_on=[[], [12, 17]])
    told = "score cannot be of rows 12, 17 of 'wine': member 'knn' was trained"
    with pytest.raises(LeakageError, match=told):
        score(said(trained), LABELS)
    fresh = ~trained.seen[1]
    alone = said(trained).replace(mask=jnp.array([True, False]))

    def may_be():
        return (
            score(said(trained), LABELS, allow_seen=True),
            score(said(trained), LABELS, sample_weight=fresh),
            score(alone, LABELS),
            score(said(Provenance("wine", ROWS)), LABELS),
        )

    jax.eval_shape(may_be)
    with pytest.raises(LeakageError, match="be of row 12 of"):
        score(said(trained), LABELS, sample_weight=np.arange(8) < 4)
    with pytest.raises(ValueError, match="of 5 rows, and 8 are scored"):
        cut = trained.take(np.arange(5))
        score(said(None).replace(provenance=cut), LABELS)


def test_arrays_of_arrays_are_refused_where_the_rows_are_told():
    """Of `Predictions` these give `Predictions`; of arrays they say nothing of rows."""
    for fit, more in (
        (combine.fit_stacking_regression, ()),
        (combine.fit_dynamic_regression, (X,)),
    ):
        fitted = fit(said(HELD_OUT, "points"), TARGETS, *more)
        with pytest.raises(LeakageError, match="fitted on rows 10, 11"):
            fitted(POINTS, *more, provenance=HELD_OUT)
        seen = fitted(POINTS, *more, provenance=HELD_OUT, allow_seen=True)
        np.testing.assert_array_equal(seen, fitted(POINTS, *more))
        made = fitted(said(HELD_OUT, "points"), *more)
        np.testing.assert_allclose(made.points[0], seen, rtol=1e-6)
    dynamic = dynamic_selection(HELD_OUT)
    with pytest.raises(LeakageError, match="fitted on rows 10, 11"):
        dynamic.weights(said(HELD_OUT), X)
    looked = dynamic.weights(said(HELD_OUT), X, allow_seen=True)
    np.testing.assert_array_equal(looked, dynamic.weights(LOGITS, X))
    assert dynamic(said(HELD_OUT), X).provenance.seen.all()


@pytest.mark.slow
def test_a_cascade_gives_predictions_of_its_rows_and_no_arrays():
    cascade = combine.fit_cascade(said(HELD_OUT), LABELS, stages=STAGES)
    with pytest.raises(LeakageError, match="the cascade's windows was fitted on"):
        cascade(said(HELD_OUT))
    looked = cascade(said(HELD_OUT), allow_seen=True)
    np.testing.assert_array_equal(looked.exit_stage, cascade(LOGITS).exit_stage)
    made = cascade.predictions(said(HELD_OUT))
    np.testing.assert_array_equal(made.log_probs[0], looked.log_probs)
    with pytest.raises(LeakageError, match="a score cannot be of .*cascade's windows"):
        scores.evaluate(made, LABELS, ["accuracy"])


@pytest.mark.slow
def test_what_the_readme_says_of_rows_of_a_fit():
    """Its snippet: stacking and sets are fitted on validation rows, and test others."""
    split = data.split_rows(
        "mine", 40, {"train": -1, "validation": 8, "test": 8}, seed=0
    )
    labels = np.arange(40) % 2

    def say(part):
        about = split.provenance(part)
        return Predictions.from_logits(LOGITS, provenance=about)

    def truth(part):
        return labels[split[part]]

    stacked = combine.fit_stacking(say("validation"), truth("validation"))
    sets = combine.fit_conformal_sets(
        combine.LacScore(), say("validation"), truth("validation"), alpha=0.3
    )
    scores.evaluate(stacked(say("test")), truth("test"), ["accuracy"])
    assert sets(say("test")).shape == (8, 2)
    with pytest.raises(LeakageError, match="of 'mine'"):
        scores.evaluate(stacked(say("validation")), truth("validation"), ["accuracy"])
    with pytest.raises(LeakageError, match="the conformal sets was fitted on .*'mine'"):
        sets(say("validation"))
    looked = sets(say("validation"), allow_seen=True)
    covered = scores.evaluate_sets(looked, truth("validation"))["coverage"]
    assert covered >= 0.7  # as the fit says


def test_what_is_given_arrays_gives_arrays():
    temperature = combine.Temperature(
        2.0, None, FittedRows("the temperature", HELD_OUT)
    )
    assert isinstance(temperature(LOGITS), jax.Array)
    made = temperature(said(HELD_OUT))
    np.testing.assert_array_equal(made.values[0], temperature(LOGITS))
    assert made.kind == "log_probs" and made.names == ("temperature",)
    # On rows of its fit a second stage is refused; on others it is not.
    with pytest.raises(LeakageError, match="'temperature' was trained on"):
        combine.fit_stacking(made, LABELS)
    other = temperature(said(Provenance.of("wine", ROWS + 20)))
    check_fitting_rows("the meta-model", other.provenance, names=other.names)


def test_a_combination_has_seen_what_members_that_count_have():
    bag = np.array([[1, 0, 2, 1, 1, 0, 0, 1], [0, 1, 1, 0, 0, 1, 0, 1]])
    about = Provenance("wine", ROWS, seen=bag > 0)
    out = said(about).replace(mask=jnp.asarray(bag == 0))
    pooled = combine.pool(combine.mean_probs, out)
    assert not pooled.provenance.seen.any()
    np.testing.assert_array_equal(pooled.mask[0], (bag == 0).any(axis=0))
    np.testing.assert_allclose(pooled.values[0], combine.mean_probs(out))
    everyone = combine.pool(combine.majority_vote, said(about), name="vote")
    np.testing.assert_array_equal(everyone.provenance.seen[0], bag.any(axis=0))
    assert everyone.kind == "votes" and everyone.names == ("vote",)
    with pytest.raises(LeakageError, match="'vote' was trained on"):
        combine.fit_dynamic_selection(everyone, LABELS, X)


def test_rules_of_every_kind_are_pooled():
    points = said(HELD_OUT, "points").replace(
        scale=jnp.ones((2, 8)), lower=POINTS - 1, upper=POINTS + 1
    )
    found = combine.pool(combine.gaussian_mixture, points)
    np.testing.assert_allclose(found.points[0], POINTS.mean(axis=0), atol=1e-6)
    assert found.scale.shape == (1, 8) and found.provenance.seen.shape == (1, 8)
    ends = combine.pool(combine.pool_intervals, points)
    np.testing.assert_allclose(ends.upper - ends.lower, 2, atol=1e-6)
    mixed = combine.pool(combine.average_quantiles, said(None, "quantiles"))
    assert mixed.levels == LEVELS and mixed.provenance is None
    with pytest.raises(ValueError, match="one prediction of each row"):
        combine.pool(lambda p: p.values, points)
    with pytest.raises(TypeError, match="features are no predictions"):
        combine.pool(combine.mean_points, said(None, "features"))


def first(predictions):
    return predictions.values[0]


def test_what_is_unknown_stays_unknown():
    rows = Provenance("wine", ROWS)  # of members of which nothing else is known
    known = Provenance.of("wine", ROWS, trained_on=[[12], [90]])
    unknown = said(rows).select([0])
    both = sources.concatenate_predictions([unknown, said(known)])
    assert both.provenance.known.tolist() == [False, True, True]
    assert both.provenance.seen.tolist()[1] == (ROWS == 12).tolist()
    # Not checked, as predictions without provenance are not; what is known is.
    check_fitting_rows("the vote", both.select([0, 2]).provenance)
    with pytest.raises(LeakageError, match="row 12 .*'tree'"):
        combine.calibrate(both, LABELS)
    pooled = combine.pool(first, both)
    assert pooled.provenance.known.tolist() == [False]
    assert pooled.provenance.seen.tolist() == [(ROWS == 12).tolist()]
    assert combine.pool(first, unknown).provenance.seen is None
    again = sources.concatenate_predictions([pooled, said(known).select([1])])
    assert again.provenance.known.tolist() == [False, True]
    # Fitted on arrays: what it makes may have seen anything, and has seen what it had.
    marked = FittedRows("the temperature").mark(known)
    assert not marked.known.any() and (marked.seen == known.seen).all()
    assert FittedRows("the temperature", known).mark(None) is None


def test_predictions_that_were_cut_without_their_rows_are_refused():
    cut = said(HELD_OUT)
    cut = cut.replace(values=cut.values[:, :5])
    with pytest.raises(ValueError, match="of 8 rows, the predictions of 5"):
        combine.calibrate(cut, LABELS[:5])
    with pytest.raises(ValueError, match="of 8 rows, and 5 are scored"):
        scores.evaluate(cut, LABELS[:5], ["accuracy"])
    with pytest.raises(TypeError, match=r"\(logits\) are no array"):
        np.asarray(cut)


def test_scores_of_seen_rows_are_refused_unless_the_fit_is_looked_at():
    trained = Provenance.of("wine", ROWS, trained_on=[[], [12, 17]])
    evaluate = functools.partial(scores.evaluate, labels=LABELS, metrics=["accuracy"])
    told = "score cannot be of rows 12, 17 of 'wine': member 'knn' was trained"
    with pytest.raises(LeakageError, match=told):
        evaluate(said(trained))
    assert evaluate(said(trained), allow_seen=True) == evaluate(said(None))
    # Rows without weight and masked members do not count.
    fresh = ~trained.seen[1]
    assert evaluate(said(trained), sample_weight=fresh)["num_rows"] == 6
    masked = said(trained).replace(mask=jnp.asarray(~trained.seen))
    assert evaluate(masked)["num_members"] == 2
    weights = combine.MemberWeights(np.ones(2), FittedRows("the weights", HELD_OUT))
    with pytest.raises(LeakageError, match="rows 10, 11, .*'tree' .and 1 more"):
        evaluate(weights(said(HELD_OUT)))
    points = said(trained, "points")
    evaluate_points = functools.partial(
        scores.evaluate_points, targets=TARGETS, metrics=["mae"]
    )
    with pytest.raises(LeakageError, match="'knn'"):
        evaluate_points(points)
    seen = evaluate_points(points, allow_seen=True)
    assert seen["mae_members"] == pytest.approx(abs(POINTS - TARGETS).mean(axis=1))
    sets = functools.partial(scores.evaluate_sets, LABELS[:, None] == [0, 1], LABELS)
    for score in (
        functools.partial(scores.evaluate_intervals, *POINTS, TARGETS),
        sets,
    ):
        with pytest.raises(LeakageError, match="rows 12, 17"):
            score(provenance=trained)
    assert sets(provenance=trained, allow_seen=True)["coverage"] == 1.0


def test_validation_rows_of_an_aggregator_are_checked_and_kept():
    fit = functools.partial(
        combine.fit_quantile_aggregator,
        said(Provenance.of("wine", ROWS), "quantiles"),
        TARGETS,
        levels=LEVELS,
    )

    def choose(about):
        return fit(validation=(said(about, "quantiles"), TARGETS))

    with pytest.raises(LeakageError, match="choice of a step .* rows 30.*'knn'"):
        choose(Provenance.of("wine", ROWS + 20, trained_on=[[], [30, 31]]))
    with pytest.raises(LeakageError, match="choice of a step .*only test"):
        fit(
            validation=(QUANTILES, TARGETS),
            validation_provenance=Provenance("wine", ROWS + 20, "test"),
        )
    with pytest.raises(LeakageError, match="16 17.* are both"):
        choose(Provenance.of("wine", LATER))
    chosen_on = Provenance.of("wine", ROWS + 20)
    fitted = FittedRows("the aggregator", HELD_OUT, (chosen_on,))
    with pytest.raises(LeakageError, match="fitted on row 31"):
        fitted.check_test(Provenance("wine", np.array([8, 31]), "test"))
    assert fitted.mark(chosen_on).seen.all()


def test_jackknife_after_bootstrap_runs_compiled_with_provenance():
    inbag = np.array([[1, 0, 2, 1, 1, 0, 0, 1], [0, 1, 0, 0, 2, 1, 0, 0]])
    fit = combine.fit_jackknife_after_bootstrap
    about = Provenance("wine", ROWS, seen=inbag > 0)
    eager = fit(POINTS, inbag, TARGETS, provenance=about)
    compiled = jax.jit(functools.partial(fit, provenance=about))
    found = compiled(POINTS, inbag, TARGETS)
    np.testing.assert_allclose(found.errors, eager.errors, atol=1e-6)
    assert found.fitted_rows == eager.fitted_rows
    with pytest.raises(LeakageError, match="rows 10, 17"):
        found(POINTS, alpha=0.2, provenance=Provenance("wine", [10, 17], "test"))
    # A row that a member is wrongly said to have left out has no error that is known.
    wrong = inbag.copy()
    wrong[0, 3] = 0
    assert np.isnan(compiled(POINTS, wrong, TARGETS).errors).tolist() == [
        i == 3 for i in range(8)
    ]
    with pytest.raises(LeakageError, match="row 13"):
        fit(POINTS, wrong, TARGETS, provenance=about)


# What takes a weight of rows, by the name of the argument where it is another.
UNWEIGHED = {
    # Pseudo-labels have none; these keep every row, or get rows as they are.
    *("agreed_labels", "balanced_labels", "confident_labels", "fusion_rows"),
    *("cluster_weights", "fit_dynamic_regression", "fit_dynamic_selection"),
    *("fit_cv_plus", "fit_cv_plus_band", "fit_jackknife_after_bootstrap"),
}
ROW_MASKED = {name for name in TABLE if name.startswith("fit_conformal")} | {
    "fit_asymmetric_band"
}


@pytest.mark.parametrize(
    "name",
    [
        name if name in FEW else pytest.param(name, marks=pytest.mark.slow)
        for name in TABLE
        if name not in UNWEIGHED
    ],
)
def test_rows_without_weight_are_neither_checked_nor_kept(name):
    """As in `scores.evaluate`: a row of weight 0 counts as removed."""
    trained = Provenance.of("wine", ROWS, trained_on=[[12, 17], [12]])
    weight = ~np.isin(ROWS, [12, 17])
    fit = with_rows(name, weight)
    trace = (lambda fn: fn()) if name in IS_HOST else jax.eval_shape
    fitted = trace(lambda: fit(trained))
    fitted = getattr(fitted, "windows", fitted).fitted_rows
    np.testing.assert_array_equal(fitted.provenance.rows, ROWS[weight])
    fitted.check_test(Provenance("wine", np.asarray([12, 17]), "test"))
    with pytest.raises(LeakageError, match="fitted on row 13"):
        fitted.check_test(Provenance("wine", np.asarray([12, 13]), "test"))
    # The rows that are left are still checked.
    with pytest.raises(LeakageError, match="row 13 of 'wine'"):
        fit(Provenance.of("wine", ROWS, trained_on=[12, 13]))


def with_rows(name, weight):
    """The fit of the table, given a weight for each row."""
    option = {("row_mask" if name in ROW_MASKED else "sample_weight"): weight}
    fit = getattr(combine, name)
    sets = {
        "fit_conformal_sets": (),
        "fit_conformal_sets_by_class": (),
        "fit_conformal_sets_by_group": (LABELS,),
    }
    if name in sets:
        groups = {"num_groups": 2} if sets[name] else {}
        return lambda about: fit(
            combine.LacScore(),
            said(about),
            LABELS,
            *sets[name],
            alpha=0.3,
            **option,
            **groups,
        )
    of_predictions = {
        "calibrate_each_member": (combine.fit_platt,),
        "calibrate_ensemble": (combine.fit_platt,),
    }
    more = {
        "fit_cascade": {"stages": STAGES},
        "greedy_select": {"rounds": 2},
        "keep_best_members": {"number": 1},
        "fit_quantile_aggregator": dict(levels=LEVELS, steps=2, evaluate_every_steps=2),
    }.get(name, {})
    arrays = {
        "fit_asymmetric_band": (POINTS[0], POINTS[1], TARGETS),
        "fit_conformal_band": (POINTS[0], POINTS[1], TARGETS),
        "fit_conformal_interval": (POINTS[0], TARGETS),
        "fit_conformal_quantiles": (QUANTILES[0], LEVELS, TARGETS),
        "fit_pit_map": (LABELS * 0.5,),
        "fit_sigma_scale": (POINTS[0], np.ones(8), TARGETS),
        "fit_single_threshold": (POINTS[:1],),
        "fit_windows": (POINTS[:1], LABELS, "risk_at_coverage"),
    }
    if name in arrays:
        if "band" in name or "interval" in name:
            more = {"alpha": 0.2}
        if name == "fit_windows":
            more = {"level": 0.5}
        return lambda about: fit(*arrays[name], provenance=about, **option, **more)
    kind = TABLE[name].kind
    kind = "points" if name == "fit_stacking_regression" else kind
    truth = LABELS if kind == "logits" else TARGETS
    first = of_predictions.get(name, ())
    return lambda about: fit(*first, said(about, kind), truth, **option, **more)


def test_members_without_weight_in_the_pool_do_not_count():
    trained = Provenance.of("wine", ROWS, trained_on=[[12, 17], []])
    later = Provenance.of("wine", ROWS + 20, trained_on=[[32], []])
    silent = np.asarray([0.0, 1.0])

    def fit_map(said, labels, weight):
        return lambda log_probs: log_probs

    for fit in (
        combine.calibrate,
        functools.partial(combine.calibrate_ensemble, fit_map),
    ):
        with pytest.raises(LeakageError, match="rows 12, 17"):
            fit(said(trained), LABELS)
        made = fit(said(trained), LABELS, silent)(said(later))
        # Nor do they when it is applied, and scored.
        assert not made.provenance.seen.any() and made.provenance.known is None
        inside = said(trained).replace(weights=jnp.asarray(silent))
        fit(inside, LABELS)
        told = said(Provenance.of("wine", ROWS, trained_on=[[], [12]]))
        with pytest.raises(LeakageError, match="'knn'"):
            fit(told, LABELS, silent)
    assert scores.evaluate(made, LABELS, ["accuracy"])["num_rows"] == 8


def test_members_without_weight_in_what_was_fitted_have_no_part():
    later = Provenance.of("wine", ROWS + 20, trained_on=[[32], []])
    silent = jnp.asarray([0.0, 1.0])
    weighed = said(later).replace(weights=silent)
    logistic = combine.fit_stacking(said(None), LABELS)
    kernel = logistic.weights.kernel.at[0].set(0.0)  # of the first member of two
    points = combine.fit_stacking_regression(said(None, "points"), TARGETS)
    linear = points.replace(weights=points.weights.at[0].set(0.0))
    dynamic = combine.fit_dynamic_selection(said(None), LABELS, X, num_neighbours=1)
    without = combine.ConvexWeights(silent)
    cases = {
        "convex": (without(said(later)), True),
        "by class": (
            combine.ConvexWeights(jnp.outer(silent, jnp.ones(2)))(said(later)),
            True,
        ),
        "one class": (combine.ConvexWeights(jnp.eye(2))(said(later)), False),
        "stacking": (
            logistic.replace(weights=logistic.weights._replace(kernel=kernel))(
                said(later)
            ),
            True,
        ),
        "stacking of all": (logistic(said(later)), False),
        "regression": (linear(said(later, "points")), True),
        "regression of all": (points(said(later, "points")), False),
        "pool": (combine.pool(combine.median_probs, weighed), True),
        "pool of all": (combine.pool(combine.median_probs, said(later)), False),
        "weights of the rule": (
            combine.pool(
                functools.partial(combine.mean_probs, weights=silent), said(later)
            ),
            True,
        ),
        "its weights count": (
            combine.pool(
                functools.partial(combine.mean_probs, weights=silent[::-1]), weighed
            ),
            False,
        ),
    }
    silences = np.asarray(dynamic.weights(said(None), X)[0] == 0)
    assert silences.any() and not silences.all()
    chosen = dynamic(said(later), X)
    seen = np.asarray(later.seen[0]) & ~silences
    np.testing.assert_array_equal(chosen.provenance.seen[0], seen)
    for name, (made, is_fresh) in cases.items():
        assert made.provenance.seen.any() != is_fresh, name
    # What has no weight has no part in the values either, whatever the rule.
    alone = said(None).log_probs[1]
    np.testing.assert_allclose(cases["pool"][0].values[0], alone, rtol=1e-6)
    # In a compiled program weights are not known, and all count.
    made = jax.jit(lambda w: combine.ConvexWeights(w)(said(later)))(silent)
    assert made.provenance.seen.any()


def test_thresholds_and_gaussians_of_scores_are_checked():
    trained = Provenance.of("wine", ROWS, trained_on=[12, 17])
    fit = functools.partial(scores.fit_threshold, POINTS[0], LABELS)
    for about in (trained, Provenance("wine", ROWS, "test")):
        with pytest.raises(LeakageError, match="the threshold cannot be fitted on"):
            fit(provenance=about)
    fresh = ~np.isin(ROWS, [12, 17])
    at = fit(provenance=trained, sample_weight=fresh)
    assert at == fit(sample_weight=fresh)
    # Gaussians are of the rows that the features were trained on, and of no test.
    gaussians = scores.fit_gaussians(X, LABELS, num_classes=2, provenance=trained)
    scores.mahalanobis(X, gaussians, provenance=Provenance("wine", LATER + 2, "test"))
    later = Provenance("wine", LATER)
    with pytest.raises(LeakageError, match="Gaussians .* 16, 17 .*allow_seen=True"):
        scores.mahalanobis(X, gaussians, provenance=later)
    scores.mahalanobis(X, gaussians, provenance=later, allow_seen=True)
    with pytest.raises(LeakageError, match="Gaussians .* fitted on rows 16, 17"):
        scores.mahalanobis(X, gaussians, provenance=Provenance("wine", LATER, "test"))
    for about in (
        Provenance("wine", ROWS, "test"),
        Provenance("wine", ROWS, test_rows=[10]),
    ):
        with pytest.raises(LeakageError, match="the Gaussians"):
            scores.fit_gaussians(X, provenance=about)
