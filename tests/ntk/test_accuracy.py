"""Accuracy for every number of members: loops, meshes, blocks, what came before."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ensjax
from ensjax import ntk
from ensjax.ntk import two_layer
from ensjax.reduce import finish_moments

ROWS, OUTPUTS, MEMBERS = 6, 3, 41
TARGETS = np.random.default_rng(0).integers(0, 2, (ROWS, OUTPUTS)) > 0
MEANS = np.float32(0.3 * (2 * TARGETS - 1))
LIMITS = np.full((1, 1), 0.01)


def member(member_id, means):
    key = jax.random.fold_in(jax.random.key(1), member_id)
    return means + jax.random.normal(key, means.shape)


def score(ids, **options):
    options = dict(block=8) | options
    return ntk.accuracy_by_members(
        member, jnp.asarray(ids), TARGETS, LIMITS, shared=(MEANS,), **options
    )


@pytest.fixture(scope="module")
def by_loop():
    outputs = np.stack([member(i, MEANS) for i in range(MEMBERS)]).astype(np.float64)
    means = np.cumsum(outputs, axis=0) / np.arange(1, MEMBERS + 1)[:, None, None]
    return outputs, (means > 0.01) == TARGETS[None]


@pytest.mark.parametrize("devices, block", [(1, 8), (1, 41), (8, 2), (4, 3), (8, 100)])
def test_every_prefix_is_scored_as_a_loop_does(by_loop, devices, block):
    outputs, right = by_loop
    found, moments = score(
        range(MEMBERS), block=block, mesh=ensjax.make_mesh(member=devices)
    )
    rows = right.all(axis=2)
    np.testing.assert_allclose(found.rows, rows.mean(axis=1), atol=1e-6)
    np.testing.assert_allclose(found.bits, right.mean(axis=(1, 2)), atol=1e-6)
    np.testing.assert_array_equal(found.is_exact, rows.all(axis=1))
    mean, variance = finish_moments(moments)
    np.testing.assert_allclose(mean, outputs.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(variance, outputs.var(axis=0), rtol=1e-5)


def broken(member_id, means):
    return jnp.where(member_id == 2, jnp.nan, member(member_id, means))


def test_a_member_that_is_not_finite_is_named_and_left_out(by_loop):
    outputs, _ = by_loop
    found, moments = ntk.accuracy_by_members(
        broken, jnp.arange(9), TARGETS, LIMITS, block=2, shared=(MEANS,)
    )
    assert np.flatnonzero(~np.asarray(found.is_finite)).tolist() == [2]
    others = np.delete(outputs[:9], 2, axis=0)
    np.testing.assert_allclose(moments.mean, others.mean(axis=0), atol=1e-6)
    assert moments.count == 8
    right = (others.mean(axis=0) > 0.01) == TARGETS
    assert float(found.bits[-1]) == pytest.approx(right.mean())
    assert float(found.bits[2]) == pytest.approx(float(found.bits[1]))


def test_members_that_came_before_count(by_loop):
    whole, last = score(range(MEMBERS))
    _, moments = score(range(17))
    rest, moments = score(range(17, MEMBERS), moments=moments)
    np.testing.assert_allclose(rest.rows, whole.rows[17:], atol=1e-6)
    np.testing.assert_array_equal(rest.is_exact, whole.is_exact[17:])
    np.testing.assert_allclose(moments.mean, last.mean, atol=1e-6)
    assert moments.count == MEMBERS


def test_memory_does_not_depend_on_the_number_of_members():
    sizes = []
    for members in (1_000, 100_000):
        job = ntk.accuracy._Score(member, 100, 1)
        program = ensjax.mapping.mesh_program(job, ensjax.make_mesh(member=1))
        moments = ensjax.reduce.init_moments(jax.ShapeDtypeStruct((6, 3), jnp.float32))
        ids = jax.ShapeDtypeStruct((members,), jnp.int32)
        lowered = program.lower(
            moments, ids, np.int32(members), TARGETS, np.float32(LIMITS), (MEANS,)
        )
        sizes.append(lowered.compile().memory_analysis().temp_size_in_bytes)
    # What is stored of a member: three numbers, its id, and whether it counts.
    assert sizes[1] - sizes[0] < 99_000 * 48


def test_infinite_members_reach_the_number_of_the_exact_law():
    """The whole cube of 4 bits: draws of N*, and prefixes of streams of members."""
    k = 4
    inputs = ntk.cube_inputs(k)
    ones = inputs.sum(axis=1).astype(int)
    overlap = (inputs @ inputs.T).astype(int)
    law = two_layer.readout_law(k, ones)
    task = ntk.permutation_task([1, 3, 0, 2])
    weights = np.where(inputs > 0, law.on_one[:, None], law.on_zero[:, None])
    mean = weights @ task.train_targets
    covariance = two_layer.covariance(k, ones[:, None], ones, overlap, kind="readout")
    numbers = []
    for seed in range(40):
        members = ntk.infinite_members(np.float32(mean), covariance, seed=seed)
        found, _ = ntk.accuracy_by_members(
            ntk.sample_member,
            jnp.arange(200),
            task.targets(inputs),
            ntk.sign_thresholds(),
            block=50,
            shared=(members,),
            mesh=ensjax.make_mesh(member=2),
        )
        numbers.append(np.asarray(found.is_exact))
    share = np.mean(numbers, axis=0)
    prior = ntk.cube_prior(ntk.FullyConnected(), k)
    needed = ntk.members_for_draws(
        ntk.DrawDeviation(k),
        jnp.arange(4000),
        mean,
        task.targets(inputs),
        ntk.sign_thresholds(),
        shared=(0, prior, np.float32(weights)),
    )
    for number in (10, 20, 40, 80):
        expected = np.mean(np.asarray(needed) <= number)
        error = np.sqrt(max(expected * (1 - expected), 0.01) / 40)
        assert abs(share[number - 1] - expected) < 4 * error
    assert np.quantile(needed, 0.5) == pytest.approx(20, rel=0.1)  # the card's N50


def test_first_passage_and_staying_are_told_apart():
    curve = np.array([0.5, 0.9, 0.8, 0.95, 1.0])
    assert ntk.members_to_reach(curve, 0.9) == (2.0, 4.0)
    assert ntk.members_to_reach(curve[:3], 0.9) == (2.0, np.inf)
    assert ntk.members_to_reach(curve[:1], 0.9) == (np.inf, np.inf)
    assert ntk.members_to_reach([True], 1) == (1.0, 1.0)
    with pytest.raises(ValueError, match=r"got shape \(0,\)"):
        ntk.members_to_reach([], 1)


def test_what_does_not_fit_is_refused():
    ids = jnp.arange(3)
    with pytest.raises(ValueError, match="positive integer; got 0"):
        score(ids, block=0)
    with pytest.raises(ValueError, match=r"must be \[row, output\]; got shape \(3,\)"):
        ntk.accuracy_by_members(member, ids, TARGETS[0], LIMITS, block=2)
    with pytest.raises(ValueError, match=r"must broadcast to the targets \(6, 3\)"):
        ntk.accuracy_by_members(member, ids, TARGETS, np.zeros((2, 3)), block=2)
    with pytest.raises(ValueError, match=r"outputs are \(2, 3\), but the targets are"):
        ntk.accuracy_by_members(
            member, ids, TARGETS, LIMITS, block=2, shared=(MEANS[:2],)
        )
    with pytest.raises(ValueError, match="zeros and ones; got 7.* in row 2, column 1"):
        wrong = np.where(np.arange(18).reshape(6, 3) == 7, 7.0, TARGETS)
        ntk.accuracy_by_members(member, ids, wrong, LIMITS, block=2)
    like = jax.ShapeDtypeStruct((2, 2), jnp.float32)
    with pytest.raises(ValueError, match=r"moments are of members \(2, 2\)"):
        score(ids, moments=ensjax.reduce.init_moments(like))
    many = ensjax.reduce.init_moments(jax.ShapeDtypeStruct(TARGETS.shape, jnp.float32))
    many = many._replace(count=jnp.float32(2**24 - 1))
    with pytest.raises(ValueError, match="up to 16777216 members in float32"):
        score(ids, moments=many)
