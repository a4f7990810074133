"""One-pass moments: against float64, in any order, on any number of devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ensjax.mesh import make_mesh
from ensjax.reduce import (
    finish_moments,
    init_moments,
    member_mean,
    member_sum,
    member_variance,
    merge_moments,
    reduce_moments,
    update_moments,
)

SHAPE = jax.ShapeDtypeStruct((2, 3), jnp.float32)


def draw(members, offset=0.0, seed=0):
    values = np.random.default_rng(seed).normal(size=(members, 2, 3)) + offset
    return values.astype(np.float32)


def reference(x, weights=None, ddof=0):
    """Weighted mean and variance in float64, written out."""
    x = x.astype(np.float64)
    w = np.ones(len(x)) if weights is None else np.asarray(weights, np.float64)
    w = w[:, None, None]
    mean = (w * x).sum(0) / w.sum()
    return mean, (w * (x - mean) ** 2).sum(0) / (w.sum() - ddof)


def folded(parts, weights=None):
    moments = init_moments(SHAPE)
    for i, part in enumerate(parts):
        moments = update_moments(moments, part, None if weights is None else weights[i])
    return finish_moments(moments)


@pytest.mark.parametrize("members", [1, 2, 13])
@pytest.mark.parametrize("devices", [1, 8])
def test_moments_equal_float64(members, devices):
    x = draw(members)
    mesh = make_mesh(member=devices)
    mean, variance = reference(x)
    np.testing.assert_allclose(member_mean(x, mesh=mesh), mean, atol=1e-6)
    np.testing.assert_allclose(member_variance(x, mesh=mesh), variance, atol=1e-6)
    np.testing.assert_allclose(member_sum(x, mesh=mesh), mean * members, atol=5e-6)


def test_moments_on_a_mesh_with_data_shards_count_each_member_once():
    x = draw(6)
    mesh = make_mesh(member=4, data=2)
    assert float(reduce_moments(x, mesh=mesh).count) == 6
    np.testing.assert_allclose(
        member_variance(x, mesh=mesh), reference(x)[1], atol=1e-6
    )


def test_one_member_has_its_own_mean_and_no_variance():
    x = draw(1)
    np.testing.assert_array_equal(member_mean(x), x[0])
    np.testing.assert_array_equal(member_variance(x), np.zeros((2, 3)))
    assert np.isnan(member_variance(x, ddof=1)).all()


def test_no_members_have_no_moments():
    mean, variance = finish_moments(init_moments(SHAPE))
    assert np.isnan(mean).all() and np.isnan(variance).all()


def test_blocks_in_any_order_equal_all_at_once():
    x = draw(20, offset=3.0)
    parts = np.split(x, [1, 4, 11])
    once = finish_moments(update_moments(init_moments(SHAPE), x))
    for order in ([0, 1, 2, 3], [3, 0, 2, 1]):
        mean, variance = folded([parts[i] for i in order])
        np.testing.assert_allclose(mean, once[0], atol=2e-6)
        np.testing.assert_allclose(variance, once[1], atol=2e-6)


def test_merging_is_symmetric_and_associative_and_ignores_emptiness():
    a, b, c = (update_moments(init_moments(SHAPE), draw(n, seed=n)) for n in (2, 5, 7))
    left = merge_moments(merge_moments(a, b), c)
    right = merge_moments(c, merge_moments(b, a))
    empty = merge_moments(init_moments(SHAPE), merge_moments(a, init_moments(SHAPE)))
    for x, y in zip(left[:3], right[:3], strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-6)
    # What means of about 1 round away is at most 6e-8.
    np.testing.assert_allclose(left.mean_low, right.mean_low, atol=1.2e-7)
    jax.tree.map(np.testing.assert_array_equal, empty, a)


def test_member_order_does_not_matter_and_equal_members_change_nothing():
    x = draw(8)
    np.testing.assert_allclose(member_variance(x[::-1]), member_variance(x), rtol=1e-5)
    same = np.repeat(x[:1], 8, axis=0)
    np.testing.assert_allclose(member_mean(same), x[0], rtol=1e-6)
    np.testing.assert_allclose(member_variance(same), 0.0, atol=1e-12)


@pytest.mark.parametrize("devices", [1, 8])
def test_a_large_offset_keeps_the_digits_of_the_variance(devices):
    """Sums of squares would be 1e8 with an error of 6; the variance is 1e-2.

    Running means near 1e4 are rounded to 5e-4, their differences are about 0.05:
    without what the means round away the variance would be good to 2 %.
    """
    x = (1e4 + 0.1 * draw(64)).astype(np.float32)
    mean, variance = reference(x)
    mesh = make_mesh(member=devices)
    np.testing.assert_allclose(member_mean(x, mesh=mesh), mean, rtol=2e-7)
    # Sums of 64 squares.
    np.testing.assert_allclose(member_variance(x, mesh=mesh), variance, rtol=2e-6)
    np.testing.assert_allclose(folded(np.split(x, 16))[1], variance, rtol=2e-6)
    at_once = finish_moments(update_moments(init_moments(SHAPE), x))[1]
    np.testing.assert_allclose(at_once, variance, rtol=2e-6)


@pytest.mark.parametrize("offset", [1e6, -3e7])
def test_many_blocks_at_a_large_offset(offset):
    """5,000 members in blocks of 50 and the devices' parts of them, against float64."""
    values = np.random.default_rng(1).normal(size=(5000, 3)) + offset
    x = values.astype(np.float32)
    blocks = x.reshape(100, 50, 3)

    def fold(moments, block):
        return update_moments(moments, block), None

    found = jax.jit(lambda xs: jax.lax.scan(fold, init_moments(x[0]), xs)[0])(blocks)
    exact = x.astype(np.float64)
    # A float32 sum of 100 blocks.
    for moments in (found, reduce_moments(x, mesh=make_mesh(member=8))):
        mean, variance = finish_moments(moments)
        np.testing.assert_allclose(variance, exact.var(axis=0), rtol=1e-5)
        np.testing.assert_array_equal(mean, exact.mean(axis=0).astype(np.float32))


@pytest.mark.parametrize("devices", [1, 8])
def test_weights_are_those_of_the_written_out_sums(devices):
    x, mesh = draw(11), make_mesh(member=devices)
    weights = np.random.default_rng(1).uniform(0, 3, 11).astype(np.float32)
    mean, variance = reference(x, weights)
    np.testing.assert_allclose(member_mean(x, weights, mesh=mesh), mean, atol=1e-6)
    np.testing.assert_allclose(
        member_variance(x, weights, mesh=mesh), variance, atol=2e-6
    )
    np.testing.assert_allclose(
        member_sum(x, weights, mesh=mesh), mean * weights.sum(), atol=1e-5
    )
    parts, cuts = np.split(x, [4, 9]), np.split(weights, [4, 9])
    np.testing.assert_allclose(folded(parts, cuts)[1], variance, atol=2e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("devices", [1, 8])
def test_members_of_weight_zero_are_left_out_even_if_not_finite(devices, bad):
    x = draw(9)
    weights = np.ones(9, np.float32)
    weights[[0, 5]] = 0
    kept = x[weights > 0]
    x[[0, 5]] = bad
    mesh = make_mesh(member=devices)
    mean, variance = reference(kept)
    np.testing.assert_allclose(member_mean(x, weights, mesh=mesh), mean, atol=1e-6)
    np.testing.assert_allclose(
        member_variance(x, weights, mesh=mesh), variance, atol=1e-6
    )
    with_bad = member_mean(x, mesh=mesh)
    assert not np.isfinite(with_bad).any()  # never averaged in silently


def test_a_large_member_does_not_hide_others_of_weight_zero():
    weights = np.array([1, 0], np.float32)
    x = np.array([[1.0], [3e38]], np.float32)
    np.testing.assert_array_equal(member_mean(x, weights), [1.0])
    np.testing.assert_array_equal(member_variance(x, weights), [0.0])


def test_trees_and_narrow_dtypes_accumulate_in_float32():
    tree = {"a": draw(5), "b": jnp.full((5, 2), 3, jnp.bfloat16), "n": np.arange(5)}
    moments = reduce_moments(tree)
    mean, variance = finish_moments(moments, ddof=1)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(mean))
    np.testing.assert_allclose(mean["n"], 2.0)
    np.testing.assert_allclose(variance["n"], 2.5)
    np.testing.assert_allclose(mean["b"], 3.0)


def test_streaming_runs_under_scan():
    x = draw(12, offset=-2.0)

    @jax.jit
    def stream(blocks):
        def fold(moments, block):
            return update_moments(moments, block), None

        return finish_moments(jax.lax.scan(fold, init_moments(SHAPE), blocks)[0])

    mean, variance = stream(x.reshape(4, 3, 2, 3))
    np.testing.assert_allclose(mean, reference(x)[0], atol=1e-6)
    np.testing.assert_allclose(variance, reference(x)[1], atol=1e-6)


def test_the_reduction_over_devices_gathers_no_stack():
    mesh = make_mesh(member=8)
    x = jax.device_put(draw(16), jax.NamedSharding(mesh, jax.P("member")))
    text = jax.jit(lambda x: reduce_moments(x, mesh=mesh)).lower(x).compile().as_text()
    assert "all-reduce" in text
    assert "all-gather" not in text and "all-to-all" not in text


def test_wrong_weights_raise():
    with pytest.raises(ValueError, match=r"\(4,\); got \(3,\)"):
        member_mean(draw(4), np.ones(3))
    with pytest.raises(ValueError, match=r"\(4,\); got \(4, 1\)"):
        update_moments(init_moments(SHAPE), draw(4), np.ones((4, 1)))
    with pytest.raises(ValueError, match=r"\['b'\].*2 members"):
        member_mean({"a": np.ones((2, 1)), "b": np.ones((3, 1))})
