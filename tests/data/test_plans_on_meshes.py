"""What every example gets does not depend on how members and data are split."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ensjax import data
from ensjax.mapping import map_members
from ensjax.members import member_keys
from ensjax.mesh import make_mesh

X = np.random.default_rng(0).random((27, 4, 4, 1)).astype(np.float32)
AUGMENT = data.augment_images(data.random_crop(1), data.random_noise(0.1))
CUMULATIVE = data.accumulate_weights(np.arange(27))
BATCH_SIZE, STEP, NUM_MEMBERS = 8, 4, 8


def _batch(keys, member_id, images, cumulative):
    """One member's part of a batch: ordered and weighted rows, augmented."""
    num_shards = jax.lax.axis_size("data")
    epoch, in_epoch, in_batch = data.batch_positions(
        STEP, BATCH_SIZE, jax.lax.axis_index("data"), num_shards, len(images)
    )
    order = data.epoch_orders(keys["order"], len(images), epoch, 1)[0]
    rows = order[in_epoch]
    drawn = data.weighted_rows(keys["weighted"], cumulative, in_batch)
    example_keys = data.example_keys(keys["augment"], in_batch)
    augmented, ids = jax.vmap(AUGMENT)(example_keys, (images[rows], rows))
    return augmented, ids, drawn, member_id + jnp.zeros_like(ids)


def _run(mesh, member_ids):
    keys = {
        purpose: member_keys(0, purpose, member_ids)
        for purpose in ("order", "weighted", "augment")
    }
    run = map_members(
        _batch,
        kinds=("member", "member", "shared", "shared"),
        out="member_batch",
        mesh=mesh,
    )
    return jax.device_get(run(keys, member_ids, X, CUMULATIVE))


@pytest.fixture(scope="module")
def whole():
    """The plan of all members on one device."""
    mesh = make_mesh(member=1, data=1, devices=jax.devices()[:1])
    return _run(mesh, jnp.arange(NUM_MEMBERS))


@pytest.mark.parametrize(
    "member, num_data",
    [
        pytest.param(8, 1, marks=pytest.mark.slow),
        (4, 2),
        pytest.param(1, 8, marks=pytest.mark.slow),
    ],
)
def test_a_batch_is_the_same_on_every_mesh(whole, member, num_data):
    mesh = make_mesh(member=member, data=num_data)
    split = _run(mesh, jnp.arange(NUM_MEMBERS))
    for a, b in zip(split, whole, strict=True):
        assert a.shape[:2] == (NUM_MEMBERS, BATCH_SIZE)
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_members_batch_is_its_own_and_does_not_depend_on_the_others(whole):
    mesh = make_mesh(member=1, data=1, devices=jax.devices()[:1])
    some = _run(mesh, jnp.array([5, 2]))
    for a, b in zip(some, whole, strict=True):
        np.testing.assert_array_equal(a, b[np.array([5, 2])])
    assert len({tuple(rows) for rows in whole[1].tolist()}) == NUM_MEMBERS
