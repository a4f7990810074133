"""Eight cells of two models and their ensemble, against loops over rows."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ensjax.scores import (
    agreement_table,
    false_false_true,
    gain_parts,
    true_true_false,
)


@pytest.fixture(scope="module")
def rights():
    return np.random.default_rng(0).random((3, 4, 50)) < [[[0.4]], [[0.5]], [[0.6]]]


def loop(first, second, combined, weight):
    cells = np.zeros((2, 2, 2))
    for a, b, c, w in zip(first, second, combined, weight):
        cells[int(a), int(b), int(c)] += w
    return cells / sum(weight)


def test_the_table_equals_a_loop_over_weighted_rows(rights):
    weight = np.random.default_rng(1).random(50).astype(np.float32)
    weight[:10] = 0
    table = np.asarray(jax.jit(agreement_table)(*rights, sample_weight=weight))
    for pair in range(4):
        expected = loop(*(r[pair] for r in rights), weight)
        np.testing.assert_allclose(table[pair], expected, atol=1e-6)
    np.testing.assert_allclose(table.sum(axis=(1, 2, 3)), 1, atol=1e-6)


def test_named_cells_are_those_of_both_wrong_and_both_right(rights):
    table = agreement_table(*rights)
    first, second, combined = rights
    expected = (~first & ~second & combined).mean(axis=-1)
    np.testing.assert_allclose(false_false_true(table), expected, atol=1e-6)
    expected = (first & second & ~combined).mean(axis=-1)
    np.testing.assert_allclose(true_true_false(table), expected, atol=1e-6)


def test_parts_add_up_to_the_gain_over_the_better_model(rights):
    for first, second in (rights[:2], rights[1::-1]):
        parts = gain_parts(agreement_table(first, second, rights[2]))
        accuracy = [r.mean(axis=-1) for r in (first, second, rights[2])]
        gain = accuracy[2] - np.maximum(accuracy[0], accuracy[1])
        np.testing.assert_allclose(parts.gain, gain, atol=1e-6)
        total = parts.false_false_true - parts.true_true_false
        total += parts.followed - parts.misled
        np.testing.assert_allclose(total, gain, atol=1e-6)
        for pair in range(4):
            a, b = first[pair], second[pair]
            if b.mean() > a.mean():
                a, b = b, a
            followed = (b & ~a & rights[2][pair]).mean()
            misled = (a & ~b & ~rights[2][pair]).mean()
            np.testing.assert_allclose(parts.followed[pair], followed, atol=1e-6)
            np.testing.assert_allclose(parts.misled[pair], misled, atol=1e-6)


def test_an_ensemble_that_is_one_of_its_models_gains_nothing(rights):
    first = rights[1]
    parts = gain_parts(agreement_table(first, first, first))
    for value in parts:
        np.testing.assert_allclose(value, 0, atol=1e-7)


def test_masked_rows_leave_no_trace_and_nan_that_counts_shows(rights):
    first, second, combined = (jnp.asarray(r[0], jnp.float32) for r in rights)
    mask = np.arange(50) < 40
    spoilt = first.at[45].set(jnp.nan)
    found = agreement_table(spoilt, second, combined, sample_weight=mask)
    expected = agreement_table(first[:40], second[:40], combined[:40])
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.isnan(agreement_table(spoilt, second, combined)).all()
    assert np.isnan(
        agreement_table(first, second, combined, sample_weight=0 * mask)
    ).all()


def test_the_eight_cells_have_their_places():
    rows = np.array(list(itertools.product([False, True], repeat=3)))
    for number, row in enumerate(rows):
        table = agreement_table(*row[:, None])
        assert np.asarray(table).reshape(-1)[number] == 1


def test_shapes_that_do_not_fit_are_refused(rights):
    with pytest.raises(ValueError, match="second must have the shape of first"):
        agreement_table(rights[0], rights[1][:2], rights[2])
    with pytest.raises(ValueError, match=r"\[..., batch\]"):
        agreement_table(np.True_, np.True_, np.True_)
    with pytest.raises(ValueError, match=r"\[..., 2, 2, 2\]"):
        gain_parts(np.zeros((2, 2)))
