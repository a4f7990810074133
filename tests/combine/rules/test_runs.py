"""Runs of members: one vote of each, all pooled, and how stable members are."""

import collections
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ensjax import combine, scores
from ensjax.predictions import Predictions
from ensjax.provenance import LeakageError, Provenance

# [member, run, batch], of three classes; -1 is missing.
RUNS = np.random.default_rng(0).integers(-1, 3, size=(4, 5, 60))
majority = jax.jit(combine.majority_of_runs, static_argnums=1, static_argnames="ties")
agreement = jax.jit(combine.run_agreement, static_argnums=1)


def counted(answers):
    """Number of each class among answers that are no -1."""
    return collections.Counter(int(answer) for answer in answers if answer >= 0)


def loop(runs, on_tie):
    """The most frequent class of each member and row, by counting."""
    found = np.full((runs.shape[0], runs.shape[2]), -1)
    for member, row in itertools.product(*map(range, found.shape)):
        counts = counted(runs[member, :, row])
        if counts:
            first = [c for c in counts if counts[c] == max(counts.values())]
            found[member, row] = on_tie(first) if len(first) > 1 else first[0]
    return found


def by_run(runs, **kwargs):
    runs = np.moveaxis(runs, 1, 0)
    return [Predictions.from_votes(run, 3, **kwargs) for run in runs]


@pytest.mark.parametrize("ties, on_tie", [("lowest", min), ("abstain", lambda _: -1)])
def test_a_member_says_what_most_of_its_runs_say(ties, on_tie):
    expected = loop(RUNS, on_tie)
    found = majority(RUNS, 3, ties=ties)
    assert (np.asarray(found.votes) == expected).all()
    assert found.votes.shape == (4, 60) and found.num_members == 4
    # A mask is as good as -1.
    mask = RUNS >= 0
    masked = majority(np.maximum(RUNS, 0), 3, ties=ties, mask=mask)
    assert (np.asarray(masked.votes) == expected).all()
    given = combine.majority_of_runs(by_run(RUNS), ties=ties)
    assert (np.asarray(given.votes) == expected).all()


def test_one_run_is_the_member_and_the_order_of_runs_changes_nothing():
    once = majority(RUNS[:, :1], 3)
    assert (np.asarray(once.votes) == RUNS[:, 0]).all()
    turned = majority(RUNS[:, ::-1], 3)
    assert (np.asarray(turned.votes) == np.asarray(majority(RUNS, 3).votes)).all()
    twice = majority(np.concatenate([RUNS, RUNS], axis=1), 3)
    assert (np.asarray(twice.votes) == np.asarray(majority(RUNS, 3).votes)).all()


def test_ties_by_chance_are_fair_and_differ_between_members():
    runs = np.broadcast_to(np.array([0, 2])[None, :, None], (3, 2, 400))
    votes = np.asarray(majority(runs, 3, ties="random", key=jax.random.key(0)).votes)
    assert set(np.unique(votes)) == {0, 2}
    # Half of 400, within four standard deviations of 10.
    assert (abs((votes == 0).sum(1) - 200) < 40).all()
    assert (votes[0] != votes[1]).any() and (votes[1] != votes[2]).any()
    fewer = majority(runs[:2], 3, ties="random", key=jax.random.key(0))
    assert (np.asarray(fewer.votes) == votes[:2]).all()


def test_of_probabilities_the_mean_over_the_runs_decides_a_tie():
    probs = np.array([[[[0.6, 0.4, 0.0]], [[0.1, 0.9, 0.0]]]])  # one member, two runs
    runs = [Predictions.from_probs(p) for p in np.moveaxis(probs, 1, 0)]
    logits = np.log(probs + 1e-7)
    for given in (runs, logits):
        found = combine.majority_of_runs(given, ties="probability")
        assert found.votes.tolist() == [[1]]
        assert combine.majority_of_runs(given).votes.tolist() == [[0]]
    with pytest.raises(TypeError, match="carry no probabilities"):
        combine.majority_of_runs(RUNS, 3, ties="probability")


def test_members_that_do_not_run_are_masked_and_those_that_do_not_answer_say_nothing():
    runs = np.array([[[0, 1], [0, -1]], [[1, -1], [2, -1]]])
    mask = np.ones((2, 2, 2), bool)
    mask[0, :, 1] = False
    found = majority(runs, 3, mask=mask)
    assert found.votes.tolist() == [[0, -1], [1, -1]]
    assert found.mask.tolist() == [[True, False], [True, True]]
    found = majority(runs, 3, mask=np.array([[True, True], [False, False]]))
    assert found.mask.tolist() == [True, False]
    # A run of weight 0 does not count, and a member keeps its weight.
    first = Predictions.from_votes(runs[:, 0], 3, weights=jnp.array([2.0, 0.0]))
    second = Predictions.from_votes(runs[:, 1], 3, weights=jnp.array([2.0, 3.0]))
    found = combine.majority_of_runs([first, second])
    assert found.votes.tolist() == [[0, 1], [2, -1]]
    assert found.weights.tolist() == [2, 3] and found.mask.tolist() == [True, True]


def test_a_pool_of_all_runs_counts_every_answer():
    flat = combine.stack_runs(RUNS, 3)
    assert flat.num_members == 20
    assert flat.names[4:6] == ("member 0 run 4", "member 1 run 0")
    pooled = loop(RUNS.reshape(1, 20, 60), min)[0]
    assert (np.asarray(combine.majority_vote(flat)) == pooled).all()
    # One member that is asked often outvotes the others in the pool, and only there.
    runs = np.full((3, 5, 1), -1)
    runs[0], runs[1:, 0] = 1, 2
    assert combine.majority_vote(combine.stack_runs(runs, 3)).tolist() == [1]
    assert combine.majority_vote(combine.majority_of_runs(runs, 3)).tolist() == [2]
    probs = np.random.default_rng(1).dirichlet(np.ones(3), size=(4, 2, 6))
    runs = [Predictions.from_probs(p) for p in np.moveaxis(probs, 1, 0)]
    mean = np.exp(combine.mean_probs(combine.stack_runs(runs)))
    np.testing.assert_allclose(mean, probs.mean((0, 1)), atol=1e-6)


def test_agreement_is_that_of_all_pairs_of_runs():
    weight = np.random.default_rng(2).uniform(size=60).astype(np.float32)
    weight[:5] = 0
    found = agreement(RUNS, 3, sample_weight=weight)
    for member in range(4):
        same = np.zeros((60, 2))  # pairs that agree, pairs
        for row in range(60):
            said = [int(a) for a in RUNS[member, :, row] if a >= 0]
            pairs = list(itertools.combinations(said, 2))
            same[row] = sum(a == b for a, b in pairs), len(pairs)
            most = max(counted(said).values(), default=np.nan)
            share = most / len(said) if said else np.nan
            np.testing.assert_allclose(
                [found.row_agreement[member, row], found.majority_share[member, row]],
                [same[row, 0] / same[row, 1] if pairs else np.nan, share],
                rtol=1e-6,
            )
            assert found.num_runs[member, row] == len(said)
        expected = np.dot(weight, same)
        np.testing.assert_allclose(
            found.agreement[member], expected[0] / expected[1], rtol=1e-5
        )


def test_who_repeats_itself_agrees_and_who_is_asked_once_is_not_known():
    runs = np.stack([np.zeros((3, 4), int), np.arange(12).reshape(3, 4) % 3])
    runs = np.concatenate([runs, np.full((1, 3, 4), -1)])
    runs[2, 0] = 1
    found = agreement(runs, 3)
    np.testing.assert_array_equal(found.agreement, [1, 0, np.nan])
    assert found.num_runs[2].tolist() == [1] * 4
    np.testing.assert_array_equal(found.majority_share[2], 1)
    assert np.isnan(found.row_agreement[2]).all()


def test_texts_of_several_runs_become_votes_that_keep_their_rows():
    texts = [
        [["yes", "no", "what?"], ["no", "no", "no"]],
        [["yes", "yes", "yes"], ["no", "yes", "no"]],
        [["no", "no", "hm"], ["no", "yes", "yes"]],
    ]  # [run][member][batch]
    about = Provenance.of("reports", np.arange(3), trained_on=[[2], []])
    told = dict(names=("a", "b"), provenance=about)
    runs = [combine.parse_answers(t, [r"\bno\b", r"\byes\b"], **told) for t in texts]
    found = combine.majority_of_runs(runs)
    assert found.votes.tolist() == [[1, 0, 1], [0, 1, 0]]
    assert found.names == ("a", "b") and found.provenance == about
    with pytest.raises(LeakageError, match="'a'"):
        scores.evaluate(found, jnp.array([1, 0, 1]))
    flat = combine.stack_runs(runs)
    assert flat.provenance.seen.tolist() == 3 * [[False, False, True]] + 3 * [
        [False] * 3
    ]
    with pytest.raises(LeakageError, match="'a run 0'"):
        scores.evaluate(flat, jnp.array([1, 0, 1]))


def test_runs_that_do_not_fit_are_refused():
    one, two = by_run(RUNS)[:2]
    for wrong, message in [
        ((RUNS,), "logits without"),
        ((RUNS[0], 3), r"\[member, run, batch\]"),
        (([],), "at least one run"),
        (([one, two.select([0, 1, 2])],), "same names"),
        (([one, two.take([0, 1])],), "same shape"),
        (([one, Predictions.from_votes(two.votes, 4)],), "same num_classes"),
        (([one, two], 3), "go with an array"),
    ]:
        with pytest.raises(ValueError, match=message):
            combine.majority_of_runs(*wrong)
    about = Provenance.of("here", np.arange(60))
    with pytest.raises(ValueError, match="same provenance"):
        combine.stack_runs([one, two.replace(provenance=about)])
    with pytest.raises(ValueError, match="ties of runs must be one of lowest"):
        combine.majority_of_runs(RUNS, 3, ties="best_member")
    with pytest.raises(ValueError, match="key"):
        combine.majority_of_runs(RUNS, 3, ties="random")
    with pytest.raises(ValueError, match="mask must be"):
        combine.run_agreement(RUNS, 3, mask=np.ones(4, bool))
    with pytest.raises(TypeError, match="runs must be classes"):
        combine.stack_runs([Predictions.from_points(np.zeros((2, 3)))])
    with pytest.raises(TypeError, match="run 0 must be Predictions"):
        combine.stack_runs([RUNS[:, 0]])
