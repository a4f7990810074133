"""Cascades and their windows against float64 loops over rows, from the definitions."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp

from ensjax import combine
from ensjax.combine.cascade.runs import next_to_threshold
from ensjax.predictions import Predictions
from ensjax.provenance import LeakageError, Provenance

STAGES = ((0,), (2, 1), (3,))


def case(num_members=4, num_rows=200, num_classes=5, seed=0):
    rng = np.random.default_rng(seed)
    truth = 2 * rng.normal(size=(num_rows, num_classes))
    logits = truth + 1.5 * rng.normal(size=(num_members, num_rows, num_classes))
    labels = (truth + rng.gumbel(size=truth.shape)).argmax(-1)
    return logits.astype(np.float32), labels


def mean_log_probs(logits):
    z = np.asarray(logits, np.float64)
    z = z - logsumexp(z, axis=-1, keepdims=True)
    return logsumexp(z, axis=0) - np.log(len(z))


def confidence_of(logits, kind):
    """Float64, of the members `[member, class]` of one row."""
    log_probs = mean_log_probs(logits)
    if kind == "max_probability":
        return log_probs.max() - logsumexp(np.sort(log_probs)[:-1])
    if kind == "negative_entropy":
        return (np.exp(log_probs) * log_probs).sum()
    if kind == "energy":
        return logsumexp(logits.astype(np.float64), axis=-1).mean()
    return logits.max(-1).mean()


def loop(cascade, logits):
    """What the cascade is: row by row, stage by stage."""
    outputs = []
    for row in range(logits.shape[1]):
        seen, stage = [], -1
        while True:
            stage += 1
            seen += cascade.stages[stage]
            confidence = confidence_of(logits[seen, row], cascade.confidence)
            if stage + 1 == len(cascade.stages):
                break
            window = cascade.windows
            below = confidence < window.high[stage]
            above = confidence > window.low[stage]
            if not (below and (above or cascade.exit_rule == "threshold")):
                break
        outputs.append((mean_log_probs(logits[seen, row]), confidence, stage))
    return [np.array(x) for x in zip(*outputs)]


def fit(logits, labels):
    return combine.fit_cascade(
        logits, labels, stages=STAGES, task="coverage_at_risk", level=0.3, width=0.2
    )


@jax.jit
def apply(cascade, logits):
    return cascade(logits)


# In log-odds, where all of the cases below go all ways.
ENDS = [np.array(x, np.float32) for x in ([-0.5, 0.1], [2.5, 1.5], [1.0, 0.6])]
CASCADE = combine.Cascade(combine.Windows(*ENDS), STAGES)


@pytest.mark.parametrize(
    "confidence, exit_rule, ends",
    [
        ("max_probability", "window", ENDS),
        ("max_probability", "threshold", ENDS),
        ("negative_entropy", "window", [x / 2 - 1.2 for x in ENDS]),
        ("max_logit", "threshold", [3 * x for x in ENDS]),
        ("energy", "window", [2 + x for x in ENDS]),
    ],
)
def test_the_dense_form_equals_a_loop_over_rows_and_stages(confidence, exit_rule, ends):
    logits, _ = case()
    windows = combine.Windows(*ends)
    cascade = combine.Cascade(windows, STAGES, exit_rule, confidence)
    log_probs, sure, stage = loop(cascade, logits)
    output = apply(cascade, logits)
    assert {0, 1, 2} == set(stage)
    np.testing.assert_array_equal(output.exit_stage, stage)
    np.testing.assert_allclose(output.log_probs, log_probs, rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(output.confidence, sure, rtol=1e-5, atol=2e-6)


def quantile_windows(scores, threshold, width):
    """Ends in float32, with NumPy's inverted CDF."""
    q = (scores <= threshold).mean() - 1e-9  # 0.61 * 200 is 122 + 1e-14
    return [
        np.quantile(scores, np.clip(q + step, 0, 1), method="inverted_cdf")
        for step in (-width, width)
    ]


def test_windows_are_quantiles_around_the_threshold_of_the_task():
    rng = np.random.default_rng(1)
    scores = rng.normal(size=(2, 400)).astype(np.float32)
    correct = rng.uniform(size=400) < 1 / (1 + np.exp(-2 * scores[0]))
    shifted = 0.4 * scores + 1

    @jax.jit
    def run(scores, correct, shifted):
        first = combine.fit_windows(scores, correct, "coverage_at_risk", level=0.2)
        other = combine.fit_windows(
            scores, None, "fpr_at_tpr", level=0.8, width=(0.05, 0.3)
        )
        single = combine.fit_single_threshold(scores, share=0.2)
        return first, other, single, combine.recentre_windows(first, shifted, width=0.1)

    first, other, single, again = run(scores, correct, shifted)
    for i in range(2):
        order = np.argsort(-scores[i])
        risk = np.cumsum(~correct[order]) / np.arange(1, 401)
        risk[:20] = 1  # the skipped rows
        reached = np.flatnonzero(risk <= 0.2)
        tau = scores[i][order][reached[-1] if reached.size else risk.argmin()]
        assert first.threshold[i] == again.threshold[i] == tau
        assert [first.low[i], first.high[i]] == quantile_windows(scores[i], tau, 0.1)
        assert [again.low[i], again.high[i]] == quantile_windows(shifted[i], tau, 0.1)
    falling = -np.sort(-scores, axis=1)
    np.testing.assert_array_equal(other.threshold, falling[:, 319])
    # 81 rows lie at or below: 20 less and 20 more; the other one is clipped.
    np.testing.assert_array_equal(other.low, [falling[0, -61], falling[1, -1]])
    np.testing.assert_array_equal(other.high, [falling[0, -101], falling[1, -201]])
    np.testing.assert_array_equal(single.high, falling[:, -80])
    assert (single.low == -np.inf).all()


@pytest.mark.slow
def test_a_fitted_cascade_has_the_windows_of_its_stages_and_several_are_one_program():
    cases = [case(seed=s) for s in range(3)]
    logits, labels = (np.stack(x) for x in zip(*cases))
    cascades = jax.jit(jax.vmap(fit))(logits, labels)
    for s in range(3):
        for stage, members in enumerate(([0], [0, 2, 1])):
            sure = np.array(
                [
                    confidence_of(logits[s][members, n], "max_probability")
                    for n in range(200)
                ]
            )
            right = mean_log_probs(logits[s][members]).argmax(-1) == labels[s]
            order = np.argsort(-sure)
            risk = np.cumsum(~right[order]) / np.arange(1, 201)
            risk[:20] = 1
            tau = sure[order][np.flatnonzero(risk <= 0.3)[-1]]
            ends = quantile_windows(sure, tau, 0.2)
            windows = jax.tree.map(lambda x: x[s, stage], cascades.windows)  # noqa: B023
            actual = [windows.threshold, windows.low, windows.high]
            np.testing.assert_allclose(actual, [tau, *ends], rtol=1e-5, atol=1e-6)
    fresh = np.stack([case(seed=s + 9)[0] for s in range(3)])
    output = jax.jit(jax.vmap(lambda c, x: c(x)))(cascades, fresh)
    for s in range(3):
        alone = apply(jax.tree.map(lambda x: x[s], cascades), fresh[s])  # noqa: B023
        np.testing.assert_array_equal(output.exit_stage[s], alone.exit_stage)
        np.testing.assert_allclose(output.log_probs[s], alone.log_probs, atol=2e-6)


@pytest.mark.parametrize("count", [0, 1, 7, 30])
def test_rank_windows_hold_exactly_the_rows_next_to_the_threshold(count):
    scores = np.random.default_rng(4).normal(size=30).astype(np.float32)
    thresholds = np.array([-np.inf, -1.0, 0.0, np.inf], np.float32)
    every = np.broadcast_to(scores, (4, 30))
    windows = jax.jit(lambda s, t: combine.rank_windows(s, t, count))(every, thresholds)
    choose = jax.jit(jax.vmap(lambda t: next_to_threshold(scores, t, count)))
    for threshold, low, high, chosen in zip(
        thresholds, windows.low, windows.high, choose(thresholds)
    ):
        inside = (scores > low) & (scores < high)
        assert inside.sum() == count
        np.testing.assert_array_equal(np.flatnonzero(inside), np.sort(chosen))
        # None outside is nearer by rank than one inside, but for one step.
        ranks = np.argsort(np.argsort(scores)) + 0.5 - (scores < threshold).sum()
        if 0 < count < 30:
            assert abs(ranks[inside]).max() <= abs(ranks[~inside]).min() + 1


def test_one_stage_is_the_ensemble_and_windows_that_hold_all_rows_too():
    logits, _ = case()
    everything = mean_log_probs(logits)
    ends = [np.zeros(0, np.float32)] * 3
    alone = combine.Cascade(combine.Windows(*ends), stages=((0, 1, 2, 3),))
    np.testing.assert_allclose(apply(alone, logits).log_probs, everything, atol=2e-6)
    ends = [np.array([x] * 2, np.float32) for x in (-np.inf, np.inf, 0)]
    output = apply(CASCADE.replace(windows=combine.Windows(*ends)), logits)
    assert (output.exit_stage == 2).all()
    np.testing.assert_allclose(output.log_probs, everything, atol=2e-6)
    one = combine.Cascade(alone.windows, stages=((2,),))
    single = apply(one, logits).log_probs
    np.testing.assert_allclose(single, jax.nn.log_softmax(logits[2]), atol=1e-6)


@pytest.mark.slow
@settings(max_examples=4, deadline=None)
@given(st.integers(0, 10_000))
def test_masks_order_and_duplicates_of_members_change_nothing(seed):
    logits, _ = case(seed=seed)
    expected = apply(CASCADE, logits)

    def same(output):
        np.testing.assert_allclose(output.log_probs, expected.log_probs, atol=2e-6)
        np.testing.assert_array_equal(output.exit_stage, expected.exit_stage)

    same(apply(CASCADE.replace(stages=((0,), (1, 2), (3,))), logits))
    twice = np.concatenate([logits, logits])
    same(apply(CASCADE.replace(stages=((0, 4), (1, 2, 5, 6), (7, 3))), twice))
    # A masked member, broken, beside one that counts.
    broken = np.concatenate([logits, np.full_like(logits[:1], np.nan)])
    masked = Predictions.from_logits(broken, mask=np.arange(5) < 4)
    same(apply(CASCADE.replace(stages=((0, 4), (2, 1), (3,))), masked))
    rows = np.random.default_rng(seed).permutation(200)
    moved = apply(CASCADE, logits[:, rows])
    np.testing.assert_array_equal(moved.exit_stage, expected.exit_stage[rows])
    np.testing.assert_array_equal(moved.log_probs, expected.log_probs[rows])


@pytest.mark.slow
def test_a_masked_stage_changes_nothing_and_a_masked_first_stage_is_undefined():
    logits, _ = case()
    windows = jax.tree.map(lambda x: x[:1], CASCADE.windows)
    without = combine.Cascade(windows, STAGES[:2])

    def masked(*mask):
        return apply(CASCADE, Predictions.from_logits(logits, mask=np.array(mask)))

    a, b = masked(True, True, True, False), apply(without, logits)
    np.testing.assert_allclose(a.log_probs, b.log_probs, atol=2e-6)
    np.testing.assert_allclose(a.confidence, b.confidence, rtol=1e-5)
    assert np.isnan(masked(False, True, True, True).log_probs).all()


def test_windows_keep_their_rows():
    logits, labels = case()

    def fit_share(x, y):
        return combine.fit_cascade(x, y, stages=STAGES, task="threshold", level=0.2)

    def predictions(rows, part):
        about = Provenance.of("digits", rows, part=part)
        return Predictions.from_logits(logits, provenance=about)

    rows = np.arange(200)
    cascade = jax.eval_shape(fit_share, predictions(rows, "validation"), labels)
    with pytest.raises(LeakageError, match="fitted on row 199 of 'digits'"):
        cascade(predictions(rows + 199, "test"))
    fitted = WINDOWS.replace(fitted_rows=cascade.windows.fitted_rows)
    jax.eval_shape(fitted_cascade(fitted), predictions(rows + 200, "test"))
    again = combine.recentre_windows(fitted, np.zeros((1, 4), np.float32))
    assert again.fitted_rows == fitted.fitted_rows


def fitted_cascade(windows):
    return combine.Cascade(windows, stages=((0,), (1,)))


WINDOWS = combine.Windows(*[np.zeros(1, np.float32)] * 3)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: combine.Cascade(WINDOWS, ((0,), (0,))), "each member in one of them"),
        (lambda: combine.Cascade(WINDOWS, ((0,), ())), "none empty"),
        (lambda: combine.Cascade(WINDOWS, ((0,),)), r"1 stages have windows of \[0\]"),
        (lambda: combine.Cascade(WINDOWS, ((0,), (1,)), "exit"), "exit_rule must be"),
        (
            lambda: combine.Cascade(WINDOWS, ((0,), (4,)))(case()[0]),
            "members of 0 to 3",
        ),
        (lambda: combine.fit_windows(np.ones(3), None, "x", level=1), "task must be"),
        (
            lambda: combine.fit_windows(np.ones(3), None, "coverage_at_risk", level=1),
            "needs to know which rows are correct",
        ),
        (
            lambda: combine.fit_windows(
                np.ones(3), None, "fpr_at_tpr", level=0.5, width=2
            ),
            "width must lie in",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(call)


@pytest.mark.parametrize("confidence", ["energy", "max_logit"])
def test_a_confidence_of_logits_is_refused_for_probabilities(confidence):
    probs = np.full((2, 3, 2), 0.5, np.float32)
    said = Predictions.from_probs(probs)
    stages = ((0,), (1,))
    with pytest.raises(TypeError, match=f"'{confidence}' is one of logits"):
        combine.fit_cascade(
            said, np.zeros(3, int), stages=stages, confidence=confidence
        )
    found = combine.fit_cascade(said, np.zeros(3, int), stages=stages)
    assert found(said, allow_seen=True).log_probs.shape == (3, 2)


def test_recentring_leaves_a_single_threshold_without_a_width():
    rows = np.linspace(0, 1, 1001, dtype=np.float32)[None]
    single = combine.fit_single_threshold(rows, share=0.2)
    found = combine.recentre_windows(single, rows)
    assert np.isneginf(found.low).all()
    np.testing.assert_array_equal(found.high, single.high)
    assert np.mean(rows[0] < float(found.high[0])) == pytest.approx(0.2, abs=2e-3)
