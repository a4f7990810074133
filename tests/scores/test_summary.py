"""The summary of one pass equals the scores one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ensjax import combine, scores
from ensjax.predictions import Predictions, predictive_log_probs
from ensjax.scores.summary import PAIR_SCORES, SYSTEM_SCORES
from ensjax.scores.ties import equal_width_bin, merge_ties

M, N, C = 4, 90, 6
ATOL = 2e-6  # float32 sums of 90 rows


def rows(seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(C, size=N)
    logits = rng.normal(size=(M, N, C)) * 2 + 2 * np.eye(C)[labels][None]
    logits[:, 50:60] = logits[:, 40:50]  # rows of equal confidence
    labels[50:55] = labels[40:45]
    logits[2, :20] *= 0.0  # ties between classes
    return logits.astype(np.float32), labels


@jax.jit
def one_by_one(logits, labels, weight, shares=None, mask=None):
    """Every score by its own function; the ensemble's and the members'."""
    shares = jnp.ones(len(logits)) if shares is None else shares
    mask = jnp.ones(len(logits), bool) if mask is None else mask
    predictions = Predictions.from_logits(logits, weights=shares, mask=mask)
    # Members and their mixture as systems of one call: half of the time to compile.
    systems = jnp.concatenate([logits, predictive_log_probs(predictions)[None]])
    options = {"sample_weight": weight}

    def mean(values):
        rows = jnp.broadcast_to(weight, values.shape)
        return jnp.average(jnp.where(rows == 0, 0, values), axis=-1, weights=rows)

    found = {"entropy": mean(scores.predictive_entropy(systems))}
    for name in SYSTEM_SCORES:
        if name != "entropy":
            found[name] = getattr(scores, name)(systems, labels, **options)
    counts = mask & (shares > 0)
    found |= {
        f"{name}_members": jnp.where(counts, value[:-1], jnp.nan)
        for name, value in found.items()
    }
    found |= {name: found[name][-1] for name in SYSTEM_SCORES}
    found["mutual_information"] = mean(scores.mutual_information(predictions))
    found["expected_entropy"] = mean(scores.expected_entropy(predictions))
    found["jensen_gap"] = scores.jensen_gap(predictions, labels, **options)
    vote = combine.majority_vote(predictions)
    nobody = (labels < 0) | (labels >= C) | (vote < 0)
    right = (jnp.argmax(logits, -1) == labels[None]) & counts[:, None]
    right &= ~jnp.any(jnp.isnan(logits), -1)
    for name, hit in (("vote_accuracy", vote == labels), ("any_right", right.any(0))):
        found[name] = mean(jnp.where(nobody, jnp.nan, hit * 1.0))
    found["disagreement"] = scores.disagreement(predictions, **options)
    found["disagreement_matrix"] = scores.disagreement_matrix(predictions, **options)
    for name in PAIR_SCORES[1:]:
        found[name] = getattr(scores, name)(predictions, labels, **options)
    return found


def assert_equal(got, want):
    assert set(got) == set(want)
    for name in want:
        np.testing.assert_allclose(
            got[name], want[name], atol=ATOL, rtol=2e-5, err_msg=name
        )


compiled = jax.jit(scores.score_summary, static_argnames=("block", "top_k", "num_bins"))


def summary(logits, labels, *, weights=None, mask=None, **options):
    """Given always, what may be left out: one program serves more tests."""
    weights = np.ones(len(logits), np.float32) if weights is None else weights
    mask = np.ones(len(logits), bool) if mask is None else mask
    return compiled(logits, labels, weights=weights, mask=mask, **options)


def tied_rows(seed):
    """Logits of a few values: classes, rows and edges of bins are tied everywhere."""
    rng = np.random.default_rng(seed)
    scale = (1.0, 0.5, np.log(2))[seed % 3]
    logits = rng.integers(0, 3, (M, N, C)) * scale
    return logits.astype(np.float32), rng.integers(C, size=N)


def exact_scores(probs, labels, num_bins=15, top_k=5):
    """Of one system, in float64, where what differs by 1e-6 is the same."""
    at, error = np.arange(len(labels)), 1e-6
    top = probs.max(-1)
    choice = (probs >= top[:, None] - error).argmax(-1)
    own = probs[at, labels][:, None]
    ahead = (probs > own + error) | (
        (probs > own - error) & (np.arange(probs.shape[1]) < labels[:, None])
    )
    wrong, bins = choice != labels, np.ceil(top * num_bins - error)
    above = (top[None] > top[:, None] + error).sum(1)  # rows that are surer
    equal = abs(top[None] - top[:, None]) < error
    # The k-th row of a group of ties adds the mean error of the group.
    place = above + np.array([equal[i, :i].sum() for i in at])
    share = (equal * 1.0 @ wrong) / equal.sum(1)
    risk = np.cumsum(share[np.argsort(place)]) / (at + 1)
    below = len(labels) - above - equal.sum(1)
    level = np.floor(num_bins * (below + equal.sum(1) / 2) / len(labels) + error)
    gaps = ~wrong - top
    classes = np.ceil(probs * num_bins - error)
    off = np.eye(probs.shape[1])[labels] - probs
    by_class = [
        sum(abs(off[classes[:, c] == b, c].sum()) for b in range(num_bins + 1))
        for c in range(probs.shape[1])
    ]

    def binned(bins):
        return sum(abs(gaps[bins == b].sum()) for b in np.unique(bins)) / len(labels)

    return {
        "accuracy": 1 - wrong.mean(),
        "top_k_accuracy": (ahead.sum(1) < top_k).mean(),
        "aurc": risk.mean(),
        "ece": binned(bins),
        "adaptive_ece": binned(level),
        "classwise_ece": np.mean(by_class) / len(labels),
    }


@pytest.fixture(scope="module")
def reference():
    logits, labels = rows()
    return logits, labels, one_by_one(logits, labels, np.ones(N, np.float32))


def test_scores_of_one_pass_equal_float64_loops():
    logits, labels = rows()
    got = summary(logits, labels, block=32)
    shifted = np.exp(logits.astype(float))
    probs = shifted / shifted.sum(-1, keepdims=True)
    systems = np.concatenate([probs, probs.mean(0, keepdims=True)])
    own = systems[:, np.arange(N), labels]
    entropy = -(systems * np.log(systems)).sum(-1)
    choice = systems.argmax(-1)
    right = choice == labels
    want = {
        "nll": -np.log(own).mean(1),
        "brier": ((systems - np.eye(C)[labels]) ** 2).sum(-1).mean(1),
        "accuracy": right.mean(1),
        "entropy": entropy.mean(1),
    }
    for name, values in want.items():
        found = np.append(got[f"{name}_members"], got[name])
        np.testing.assert_allclose(found, values, atol=1e-5, err_msg=name)
    # Ties of confidence are in the members' rows, so only the mixture is sorted here.
    confidence = systems[-1].max(-1)
    error = ~right[-1][np.argsort(-confidence, kind="stable")]
    areas = [error[: k + 1].mean() for k in range(N)]
    if len(np.unique(confidence.astype(np.float32))) == N:
        np.testing.assert_allclose(got["aurc"], np.mean(areas), atol=1e-5)
    bins = np.ceil(confidence * 15).astype(int)
    gaps = [abs((right[-1] - confidence)[bins == b].sum()) for b in range(16)]
    np.testing.assert_allclose(got["ece"], sum(gaps) / N, atol=1e-5)
    mutual = entropy[-1] - entropy[:-1].mean(0)
    np.testing.assert_allclose(got["mutual_information"], mutual.mean(), atol=1e-5)
    pairs = [(choice[i] != choice[j]).mean() for i in range(M) for j in range(M)]
    np.testing.assert_allclose(
        got["disagreement_matrix"], np.reshape(pairs, (M, M)), atol=1e-6
    )
    counts = [np.bincount(row, minlength=C).argmax() for row in choice[:-1].T]
    np.testing.assert_allclose(
        got["vote_accuracy"], (counts == labels).mean(), atol=1e-6
    )
    np.testing.assert_allclose(got["any_right"], right[:-1].any(0).mean(), atol=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_what_is_tied_by_definition_is_tied_in_any_order_of_members(seed):
    logits, labels = tied_rows(seed)
    weights = np.array([1, 0, 2, 1], np.float32) if seed % 2 else np.ones(M, np.float32)
    mask = np.array([True, True, True, seed < 3])
    got = summary(logits, labels, weights=weights, mask=mask, block=32)
    turned = summary(
        logits[::-1], labels, weights=weights[::-1], mask=mask[::-1], block=32
    )
    probs = np.exp(logits.astype(float))
    probs /= probs.sum(-1, keepdims=True)
    mixture = np.einsum("m,mnc->nc", weights * mask, probs) / (weights * mask).sum()
    for name, value in exact_scores(mixture, labels).items():
        np.testing.assert_allclose(got[name], value, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(turned[name], value, atol=1e-6, err_msg=name)
    for name, value in exact_scores(probs[0], labels).items():
        found = got[f"{name}_members"][0]
        np.testing.assert_allclose(found, value, atol=1e-6, err_msg=name)
    choice = logits.argmax(-1)[(weights > 0) & mask]
    votes = np.array([np.bincount(c, minlength=C).argmax() for c in choice.T])
    assert got["vote_accuracy"] == pytest.approx((votes == labels).mean(), abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_the_summary_of_tied_rows_is_the_scores_one_by_one(seed):
    logits, labels = tied_rows(seed)
    rng = np.random.default_rng(seed)
    weights = np.array([1, 0, 2, 1], np.float32)
    mask = np.array([True, True, seed == 0, True])
    rows = rng.integers(0, 3, N).astype(np.float32)
    for run in (one_by_one, one_by_one.__wrapped__):  # other programs round otherwise
        want = run(logits, labels, rows, weights, mask)
        got = summary(logits, labels, weights=weights, mask=mask, sample_weight=rows)
        assert_equal(got, want)


@pytest.mark.slow
@pytest.mark.parametrize("block", [32, None])
def test_the_summary_is_the_scores_one_by_one(reference, block):
    logits, labels, want = reference
    assert_equal(summary(logits, labels, block=block), want)


@pytest.mark.slow
def test_weighted_rows_and_rows_of_weight_0(reference):
    logits, labels, _ = reference
    weight = np.random.default_rng(1).uniform(size=N).astype(np.float32)
    weight[::7] = 0
    want = one_by_one(logits, labels, weight)
    logits, labels = logits.copy(), labels.copy()
    logits[:, ::7], labels[::7] = np.nan, 77
    assert_equal(summary(logits, labels, sample_weight=weight, block=32), want)


@pytest.mark.slow
def test_a_masked_member_is_a_removed_one(reference):
    logits, labels, _ = reference
    want = summary(logits[[0, 1, 3]], labels, block=32)
    broken = logits.copy()
    broken[2] = np.nan
    mask = np.array([True, True, False, True])
    got = summary(broken, labels, mask=mask, block=32)
    for name, value in got.items():
        value = np.asarray(value)
        if value.ndim:
            assert np.isnan(value[2]).all(), name
        for axis in range(value.ndim):
            value = np.delete(value, 2, axis=axis)
        np.testing.assert_allclose(value, want[name], atol=1e-6, err_msg=name)


@pytest.mark.slow
def test_a_broken_row_and_a_label_out_of_range_are_not_passed_over(reference):
    logits, labels, want = reference
    broken = logits.copy()
    broken[1, 5, 2] = np.nan
    got = summary(broken, labels, block=32)
    for name in ("nll", "accuracy", "ece", "aurc", "top_k_accuracy", "classwise_ece"):
        members = np.asarray(got[f"{name}_members"])
        assert np.isnan(members[1]) and np.isnan(got[name]), name
        others = [0, 2, 3]
        np.testing.assert_allclose(
            members[others], want[f"{name}_members"][np.array(others)], atol=ATOL
        )
    outside = np.where(np.arange(N) == 3, C, labels)
    got = summary(logits, outside, block=32)
    for name in ("nll", "brier", "accuracy", "ece", "mce", "aurc", "classwise_ece"):
        assert np.isnan(got[name]) and np.isnan(got[f"{name}_members"]).all(), name


@pytest.mark.slow
@pytest.mark.parametrize("broken", ["member", "label", "row", "row and label"])
def test_of_broken_rows_too_the_summary_is_the_scores_one_by_one(reference, broken):
    logits, labels, _ = reference
    logits, labels = logits.copy(), labels.copy()
    surest = np.asarray(predictive_log_probs(Predictions.from_logits(logits)))
    last = int(np.argmin(surest.max(-1)))  # the last that is kept
    if broken == "member":
        logits[1, 5:9, 2] = np.nan
    if "row" in broken:
        logits[:, last, 1] = np.nan
    if "label" in broken:
        labels[last] = -1
    got = summary(logits, labels, block=32)
    assert_equal(got, one_by_one(logits, labels, np.ones(N, np.float32)))
    for name in ("vote_accuracy", "any_right", "risk_at_coverage"):
        undefined = broken != "member" or name == "risk_at_coverage"
        assert np.isnan(got[name]) == undefined, name


@pytest.mark.slow
def test_large_logits_and_certain_members_stay_finite():
    logits, labels = rows()
    logits = logits * 1e4
    got = summary(logits, labels, block=32)
    want = scores.nll(combine.mean_probs(logits), labels)
    np.testing.assert_allclose(got["nll"], want, rtol=1e-5)
    for name in ("entropy", "aurc", "ece", "mutual_information", "nll_members"):
        assert np.isfinite(got[name]).all(), name


@pytest.mark.parametrize(
    "weighted", [pytest.param(False, marks=pytest.mark.slow), True]
)
def test_the_summary_keeps_the_order_of_saturated_rows(weighted):
    rng = np.random.default_rng(5)
    logits = rng.normal(size=(M, N, C)).astype(np.float32)
    logits[:, :, 1] += rng.uniform(10, 40, N)
    labels = np.where(rng.uniform(size=N) < 0.3, 0, 1)
    weight = rng.uniform(0.5, 2, N).astype(np.float32) if weighted else None
    got = compiled(logits, labels, sample_weight=weight, block=32)
    of_rows = np.ones(N, np.float32) if weight is None else weight
    for name in ("aurc", "augrc", "excess_aurc", "adaptive_ece"):
        want = getattr(scores, name)(logits, labels, sample_weight=of_rows)
        np.testing.assert_allclose(got[f"{name}_members"], want, atol=ATOL)
        assert name == "adaptive_ece" or len(np.unique(want.round(5))) == M
    pool = combine.mean_probs(logits)
    want = scores.aurc(pool, labels, sample_weight=of_rows)
    np.testing.assert_allclose(got["aurc"], want, atol=ATOL)


def test_what_is_on_an_edge_to_rounding_is_in_the_bin_below():
    for num_bins in (1, 2, 7, 10, 15, 20, 49):
        number = np.arange(num_bins)
        edges = ((number + 1) / num_bins).astype(np.float32)
        for near in (edges, np.nextafter(edges, np.float32(2)), edges - 1e-6):
            np.testing.assert_array_equal(equal_width_bin(near, num_bins), number)
        np.testing.assert_array_equal(
            equal_width_bin(edges[:-1] + np.float32(2e-5), num_bins), number[1:]
        )


def test_rows_are_tied_where_others_are_not_as_near():
    weight = np.ones(6, np.float32)
    values = np.array([-1, -3, -1 - 2e-6, -2, -3, np.nan], np.float32)
    got = np.asarray(merge_ties(values, weight))
    assert got[0] == got[2] and got[1] == got[4] and np.isnan(got[5])
    assert len(np.unique(got[:5])) == 3
    # A chain of neighbours without an end is no tie; a row of weight 0 joins nothing.
    chain = -1 - np.arange(6, dtype=np.float32) * 3e-6
    np.testing.assert_array_equal(merge_ties(chain, weight), chain)
    # Large numbers are tied in proportion; what differs by more stays apart.
    large = np.array([20, 20.00004, 20.001, np.inf, np.inf, -np.inf], np.float32)
    got = np.asarray(merge_ties(large, weight))
    np.testing.assert_array_equal(got, large[[0, 0, 2, 3, 4, 5]])
    apart = np.array([-1, -1 - 3e-6, -1 - 6e-6], np.float32)
    got = np.asarray(merge_ties(apart, np.array([1, 0, 1], np.float32)))
    np.testing.assert_array_equal(got, apart)


@pytest.mark.slow
def test_split_rows_give_what_one_device_gives(reference):
    logits, labels, _ = reference
    logits, labels = logits[:, :88], labels[:88]
    want = summary(logits, labels, block=32)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.shard_map(
        lambda x, y: scores.score_summary(x, y, block=32, axis_name="data"),
        mesh=mesh,
        in_specs=(jax.P(None, "data"), jax.P("data")),
        out_specs=jax.P(),
    )
    assert_equal(jax.jit(split)(logits, labels), want)


def test_what_does_not_fit_is_refused():
    logits, labels = rows()
    with pytest.raises(ValueError, match="top_k must be at least 1; got 0"):
        scores.score_summary(logits, labels, top_k=0)
    with pytest.raises(ValueError, match="labels must be"):
        scores.score_summary(logits, labels[:3])
    with pytest.raises(TypeError, match="integers"):
        scores.score_summary(logits, labels * 1.0)


def test_with_few_classes_the_label_is_always_among_the_first():
    logits, labels = rows()
    found = summary(logits[..., :3], labels % 3, block=None)
    assert found["top_k_accuracy"] == 1 and (found["top_k_accuracy_members"] == 1).all()


def test_float64_logits_are_summarised_too():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(2, 12, 3)), np.arange(12) % 3
    expected = scores.score_summary(logits.astype(np.float32), labels)
    with jax.enable_x64(True):
        found = scores.score_summary(jnp.asarray(logits, jnp.float64), labels)
    for name in ("aurc", "adaptive_ece", "nll"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5)
