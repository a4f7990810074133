"""Conformal sets: scores from the papers' definitions, coverage, one inference."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ensjax import combine
from ensjax.ensemble import Ensemble
from ensjax.mesh import make_mesh
from ensjax.predictions import Predictions

SCORES = (combine.LacScore(), combine.ApsScore(), combine.RapsScore(0.1, 2))


def reference_scores(score, probs, uniform):
    """Scores of all classes by a loop over rows and classes, in float64."""
    out = np.empty_like(probs)
    for n, row in enumerate(probs):
        order = np.argsort(-row, kind="stable")
        for rank, c in enumerate(order, start=1):
            before = row[order[: rank - 1]].sum()
            if isinstance(score, combine.LacScore):
                out[n, c] = 1 - row[c]
            else:
                out[n, c] = before + uniform[n] * row[c]
            if isinstance(score, combine.RapsScore):
                out[n, c] += score.penalty * max(0, rank - score.free_rank)
    return out


def draw(rng, rows, num_classes=4, sharpness=2.0):
    """Log-probabilities, and labels that are drawn from others: a wrong model."""
    logits = sharpness * rng.normal(size=(rows, num_classes))
    truth = np.exp(0.5 * logits) / np.exp(0.5 * logits).sum(axis=1, keepdims=True)
    labels = (rng.random(rows)[:, None] > truth.cumsum(axis=1)).sum(axis=1)
    return logits.astype(np.float32), np.minimum(labels, num_classes - 1)


@pytest.mark.parametrize("score", SCORES, ids=lambda s: type(s).__name__)
def test_scores_and_sets_are_those_of_the_definition(score):
    rng = np.random.default_rng(0)
    logits, labels = draw(rng, 60)
    logits[:5] = 0.0  # ties
    probs = np.exp(np.asarray(jax.nn.log_softmax(logits), np.float64))
    uniform = rng.random(60)
    want = reference_scores(score, probs, uniform)
    got = score(jax.nn.log_softmax(logits), jnp.asarray(uniform, jnp.float32))
    np.testing.assert_allclose(got, want, atol=1e-6)

    key = jax.random.key(3)
    sets = combine.fit_conformal_sets(score, logits, labels, alpha=0.2, key=key)
    u = np.asarray(jax.random.uniform(key, (60,)), np.float64)
    own = np.sort(reference_scores(score, probs, u)[np.arange(60), labels])
    np.testing.assert_allclose(sets.threshold, own[math.ceil(61 * 0.8) - 1], atol=1e-6)
    said = sets(logits, jax.random.key(4))
    u = np.asarray(jax.random.uniform(jax.random.key(4), (60,)), np.float64)
    margin = reference_scores(score, probs, u) - float(sets.threshold)
    sure = np.abs(margin) > 1e-5
    assert said.dtype == bool
    np.testing.assert_array_equal(np.asarray(said)[sure], (margin <= 0)[sure])


@pytest.mark.slow
def test_sets_cover_as_often_as_they_say_though_the_model_is_wrong():
    rng = np.random.default_rng(1)
    repeats, n = 600, 49
    logits, labels = draw(rng, repeats * (n + 10))
    logits = logits.reshape(repeats, n + 10, 4)
    labels = labels.reshape(repeats, n + 10)

    for score in SCORES:

        def covered(logits, labels, key, score=score):
            keys = jax.random.split(key)
            sets = combine.fit_conformal_sets(
                score, logits[:n], labels[:n], alpha=0.1, key=keys[0]
            )(logits[n:], keys[1])
            return jnp.take_along_axis(sets, labels[n:, None], axis=1).mean()

        keys = jax.random.split(jax.random.key(0), repeats)
        shares = np.asarray(jax.jit(jax.vmap(covered))(logits, labels, keys))
        # The rank is 45 of 50; rows of one repeat share a threshold, so the repeats
        # are what is independent.
        bound = 4 * shares.std() / math.sqrt(repeats)
        assert abs(shares.mean() - 0.9) < bound, type(score).__name__
        assert bound < 0.02


@pytest.mark.slow
def test_every_class_or_group_is_covered_by_its_own_threshold():
    rng = np.random.default_rng(2)
    logits, labels = draw(rng, 6_000, num_classes=3)
    logits[:, 2] -= 1.5  # the model neglects class 2
    groups = rng.integers(0, 2, 6_000)
    fit, new = slice(0, 3_000), slice(3_000, 6_000)
    score = combine.LacScore()
    by_class = combine.fit_conformal_sets_by_class(
        score, logits[fit], labels[fit], alpha=0.2
    )
    plain = combine.fit_conformal_sets(score, logits[fit], labels[fit], alpha=0.2)
    holds = np.asarray(by_class(logits[new]))[np.arange(3_000), labels[new]]
    missed = np.asarray(plain(logits[new]))[np.arange(3_000), labels[new]]
    count = np.bincount(labels[new])
    for c in range(3):
        bound = 4 * math.sqrt(2 * 0.16 / count[c])
        assert abs(holds[labels[new] == c].mean() - 0.8) < bound
    assert missed[labels[new] == 2].mean() < 0.7
    by_group = combine.fit_conformal_sets_by_group(
        score, logits[fit], labels[fit], groups[fit], num_groups=2, alpha=0.2
    )
    said = np.asarray(by_group(logits[new], groups=groups[new]))
    for g in (0, 1):
        rows = groups[fit] == g
        own = combine.fit_conformal_sets(
            score, logits[fit][rows], labels[fit][rows], alpha=0.2
        )
        rows = groups[new] == g
        np.testing.assert_array_equal(said[rows], own(logits[new][rows]))
    # Too few rows of a class: it is in every set.
    few = combine.fit_conformal_sets_by_class(
        score, logits[:3], np.array([0, 0, 1]), alpha=0.2
    )
    assert np.asarray(few(logits[:50])).all()


@pytest.mark.slow
def test_members_are_pooled_and_a_masked_member_is_a_removed_one():
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(3, 40, 4)).astype(np.float32)
    labels = rng.integers(0, 4, 40)
    score = combine.ApsScore(is_random=False)
    some = combine.fit_conformal_sets(score, logits[:2], labels, alpha=0.2)
    logits[2] = np.nan
    masked = Predictions.from_logits(logits, mask=np.array([True, True, False]))
    both = combine.fit_conformal_sets(score, masked, labels, alpha=0.2)
    np.testing.assert_allclose(both.threshold, some.threshold, rtol=1e-6)
    np.testing.assert_array_equal(both(masked), some(logits[:2]))
    # Where nothing is known nothing is excluded.
    assert np.asarray(some(np.full((1, 2, 4), np.nan))).all()


@pytest.mark.slow
def test_a_prediction_costs_one_inference():
    # Peer slip: points and sets that each ran the model again.
    calls = []

    def count_rows(x):
        calls.append(len(x))
        return np.zeros(len(x), np.float32)

    def apply(params, x):
        zeros = jax.pure_callback(
            count_rows,
            jax.ShapeDtypeStruct(x.shape[:1], jnp.float32),
            x,
            vmap_method="sequential",
        )
        return x @ params + zeros[:, None]

    rng = np.random.default_rng(4)
    params = rng.normal(size=(1, 5, 3)).astype(np.float32)
    mesh = make_mesh(devices=jax.devices()[:1])
    ensemble = Ensemble.from_apply(apply, params, mesh=mesh)
    x = rng.normal(size=(30, 5)).astype(np.float32)
    labels = rng.integers(0, 3, 30)
    held_out = ensemble(x)
    sets = combine.fit_conformal_sets(combine.LacScore(), held_out, labels, alpha=0.1)
    temperature = combine.calibrate(held_out, labels)
    new = ensemble(x + 1)
    jax.block_until_ready((sets(new), temperature(new), combine.majority_vote(new)))
    assert calls == [30, 30]


def test_a_random_score_needs_a_key():
    with pytest.raises(ValueError, match="ApsScore is random and needs a key"):
        combine.fit_conformal_sets(
            combine.ApsScore(), np.zeros((4, 2)), np.zeros(4, int), alpha=0.5
        )


def test_a_label_out_of_range_might_be_of_any_class():
    logits, labels = draw(np.random.default_rng(3), 60, num_classes=3)
    fit = functools.partial(
        combine.fit_conformal_sets_by_class, combine.LacScore(), alpha=0.2
    )
    labels = np.where(np.arange(60) == 5, -1, labels)
    assert np.isnan(fit(logits, labels).threshold).all()
    assert np.isnan(fit(logits, np.where(labels < 0, 3, labels)).threshold).all()
    # A row that does not count may have any label.
    kept = labels >= 0
    found = fit(logits, labels, row_mask=kept).threshold
    np.testing.assert_array_equal(found, fit(logits[kept], labels[kept]).threshold)
    assert np.isfinite(found).all()
