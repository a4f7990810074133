"""The summary of one pass equals the scores one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ensjax import combine, scores
from ensjax.scores.summary import PAIR_SCORES, SYSTEM_SCORES
from ensjax.scores.ties import equal_width_bin

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
def one_by_one(logits, labels, weight):
    """Every score by its own function; the ensemble's and the members'."""
    # Members and their mixture as systems of one call: half of the time to compile.
    systems = jnp.concatenate([logits, combine.mean_probs(logits)[None]])
    options = {"sample_weight": weight}

    def mean(values):
        rows = jnp.broadcast_to(weight, values.shape)
        return jnp.average(values, axis=-1, weights=rows)

    found = {"entropy": mean(scores.predictive_entropy(systems))}
    for name in SYSTEM_SCORES:
        if name != "entropy":
            found[name] = getattr(scores, name)(systems, labels, **options)
    found |= {f"{name}_members": value[:-1] for name, value in found.items()}
    found |= {name: found[name][-1] for name in SYSTEM_SCORES}
    found["mutual_information"] = mean(scores.mutual_information(logits))
    found["expected_entropy"] = mean(scores.expected_entropy(logits))
    found["jensen_gap"] = scores.jensen_gap(logits, labels, **options)
    vote = combine.majority_vote(logits) == labels
    found["vote_accuracy"] = mean(vote * 1.0)
    found["any_right"] = mean(jnp.any(jnp.argmax(logits, -1) == labels[None], 0) * 1.0)
    found["disagreement"] = scores.disagreement(logits, **options)
    found["disagreement_matrix"] = scores.disagreement_matrix(logits, **options)
    for name in PAIR_SCORES[1:]:
        found[name] = getattr(scores, name)(logits, labels, **options)
    return found


def assert_equal(got, want):
    assert set(got) == set(want)
    for name in want:
        np.testing.assert_allclose(
            got[name], want[name], atol=ATOL, rtol=2e-5, err_msg=name
        )


summary = jax.jit(scores.score_summary, static_argnames=("block", "top_k", "num_bins"))


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
def test_large_logits_and_certain_members_stay_finite():
    logits, labels = rows()
    logits = logits * 1e4
    got = summary(logits, labels, block=32)
    want = scores.nll(combine.mean_probs(logits), labels)
    np.testing.assert_allclose(got["nll"], want, rtol=1e-5)
    for name in ("entropy", "aurc", "ece", "mutual_information", "nll_members"):
        assert np.isfinite(got[name]).all(), name


def test_bins_are_those_of_rounded_edges():
    for num_bins in (1, 7, 10, 15, 49):
        edges = (np.arange(num_bins + 1) / num_bins).astype(np.float32)
        near = np.concatenate(
            [edges, np.nextafter(edges, np.float32(2)), np.nextafter(edges, -1.0)]
        ).astype(np.float32)
        near = np.clip(near, 0, 1)
        want = np.searchsorted(edges[1:-1], near, side="left")
        np.testing.assert_array_equal(equal_width_bin(near, num_bins), want)


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
    with pytest.raises(ValueError, match="top_k must be from 1 to 6"):
        scores.score_summary(logits, labels, top_k=7)
    with pytest.raises(ValueError, match="labels must be"):
        scores.score_summary(logits, labels[:3])
    with pytest.raises(TypeError, match="integers"):
        scores.score_summary(logits, labels * 1.0)
