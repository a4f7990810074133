"""Convolution without edges, and the networks of denoisers that are made of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ensjax.nn import AxialDenoiser, ResidualDenoiser, ShiftedConv, UNetDenoiser
from ensjax.nn.padding import cube_halo, pad_lat_lon

RNGS = dict(params=0)


def count(model):
    return sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param)))


def test_a_shifted_convolution_is_the_circular_sum_of_its_taps():
    layer = ShiftedConv(2, 3, (5,), rngs=nnx.Rngs(**RNGS))
    x = np.random.default_rng(0).normal(size=(7, 2)).astype(np.float32)
    kernel = np.asarray(layer.linear.kernel[...]).reshape(5, 2, 3)
    by_hand = sum(np.roll(x, 2 - tap, axis=0) @ kernel[tap] for tap in range(5))
    np.testing.assert_allclose(layer(x), by_hand, rtol=1e-5, atol=1e-6)


def test_two_circular_axes_are_convolved_with_rows_of_the_kernel_first():
    layer = ShiftedConv(1, 1, (3, 5), rngs=nnx.Rngs(**RNGS))
    x = np.random.default_rng(1).normal(size=(4, 6, 1)).astype(np.float32)
    kernel = np.asarray(layer.linear.kernel[...]).reshape(3, 5)
    by_hand = sum(
        np.roll(x, (1 - i, 2 - j), axis=(0, 1)) * kernel[i, j]
        for i in range(3)
        for j in range(5)
    )
    np.testing.assert_allclose(layer(x), by_hand, rtol=1e-5, atol=1e-6)


def test_beyond_a_pole_is_the_other_side_of_the_globe():
    """A linear function of the point in space goes on smoothly over the pole."""
    latitudes = np.deg2rad(np.arange(-67.5, 90, 45))
    longitudes = np.deg2rad(np.arange(0, 360, 45))
    field = np.cos(latitudes)[:, None] * np.cos(longitudes)
    padded = pad_lat_lon(jnp.asarray(field)[..., None], 1)[..., 0]
    beyond = np.cos(np.deg2rad(112.5)) * np.cos(longitudes)
    np.testing.assert_allclose(padded[-1, 1:-1], beyond, atol=1e-6)
    np.testing.assert_allclose(padded[0, 1:-1], beyond, atol=1e-6)
    np.testing.assert_allclose(padded[:, 0], padded[:, -2], atol=0)
    with_poles = pad_lat_lon(jnp.arange(24.0).reshape(3, 8, 1), 1, has_poles=True)
    np.testing.assert_allclose(with_poles[0, 1:-1, 0], np.roll(np.arange(8.0, 16.0), 4))


def cube_points(size):
    """Points of space of the cells of a cube, written out face by face."""
    places = (2 * np.arange(size) + 1) / size - 1
    east, north = np.meshgrid(places, places)
    one = np.ones_like(east)
    faces = [
        (one, east, north),
        (-east, one, north),
        (-one, -east, north),
        (east, -one, north),
        (-north, east, one),
        (north, east, -one),
    ]
    return np.stack([np.stack(face, axis=-1) for face in faces])


@pytest.mark.parametrize("size", [4, 6])
def test_the_neighbours_of_a_face_are_the_nearest_cells_of_other_faces(size):
    halo = cube_halo(size, 1)
    points = cube_points(size).reshape(-1, 3)
    np.testing.assert_array_equal(
        halo[:, 1:-1, 1:-1].ravel(), np.arange(6 * size * size)
    )
    for face in range(6):
        grid = points[halo[face]]
        for edge, inner in (
            (grid[0, 1:-1], grid[1, 1:-1]),
            (grid[-1, 1:-1], grid[-2, 1:-1]),
            (grid[1:-1, 0], grid[1:-1, 1]),
            (grid[1:-1, -1], grid[1:-1, -2]),
        ):
            # Half a cell to the edge of the cube, and half a cell down behind it.
            distance = np.linalg.norm(edge - inner, axis=-1)
            np.testing.assert_allclose(distance, np.sqrt(2) / size, rtol=1e-6)


@pytest.mark.parametrize(
    "model, shape",
    [
        (dict(kind=ResidualDenoiser, kernel_size=(5,), width=4, depth=1), (12,)),
        (dict(kind=UNetDenoiser, kernel_size=(3,), widths=(4, 8), depth=1), (12,)),
        (
            dict(
                kind=ResidualDenoiser,
                kernel_size=(3, 3),
                padding="cubed_sphere",
                width=4,
                depth=1,
            ),
            (6, 4, 4),
        ),
    ],
    ids=["residual", "u-net", "cube"],
)
def test_denoisers_hear_the_level_and_the_condition(model, shape):
    kind = model.pop("kind")
    network = kind(1, num_condition_channels=2, rngs=nnx.Rngs(**RNGS), **model)
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (*shape, 1))
    condition = jax.random.normal(keys[1], (*shape, 2))
    assert not network(x, jnp.float32(0.1), condition).any()  # it starts at 0
    kernel = network.head.linear.kernel
    kernel[...] = jax.random.normal(keys[2], kernel.shape)
    out = network(x, jnp.float32(0.1), condition)
    assert out.shape == x.shape and out.dtype == jnp.float32
    assert not np.allclose(out, network(x, jnp.float32(0.4), condition))
    assert not np.allclose(out, network(x, jnp.float32(0.1), 2 * condition))
    if kind is ResidualDenoiser and len(shape) == 1:
        moved = network(jnp.roll(x, 3, 0), jnp.float32(0.1), jnp.roll(condition, 3, 0))
        np.testing.assert_allclose(moved, jnp.roll(out, 3, 0), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="was built for a condition"):
        network(x, jnp.float32(0.1), None)
    model["kind"] = kind


def test_axial_attention_does_not_see_the_order_of_seeds_but_all_else():
    network = AxialDenoiser(
        2,
        space=(4, 4),
        patch_size=(2, 2),
        levels=(0, 1),
        width=8,
        depths=(1, 1, 1),
        num_heads=2,
        rngs=nnx.Rngs(**RNGS),
    )
    keys = jax.random.split(jax.random.key(0), 4)
    kernel = network.head.kernel
    kernel[...] = jax.random.normal(keys[3], kernel.shape)
    x = jax.random.normal(keys[0], (4, 4, 2))
    seeds = jax.random.normal(keys[1], (3, 4, 4, 2))
    mean = jax.random.normal(keys[2], (4, 4, 2))
    condition = {"seeds": seeds, "climatology": mean}
    out = network(x, jnp.float32(0.1), condition)
    assert out.shape == x.shape
    other = network(x, jnp.float32(0.1), condition | {"seeds": seeds[::-1]})
    np.testing.assert_allclose(out, other, rtol=1e-4, atol=1e-5)
    for change in (
        (x, 0.3, condition),
        (x, 0.1, condition | {"seeds": 2 * seeds}),
        (x, 0.1, condition | {"climatology": 2 * mean}),
        (2 * x, 0.1, condition),
    ):
        changed = network(change[0], jnp.float32(change[1]), change[2])
        assert not np.allclose(out, changed)


def test_axial_blocks_computed_again_have_the_same_gradient_over_a_batch():
    x = jax.random.normal(jax.random.key(0), (3, 4, 4, 1))

    def gradient(remat):
        options = dict(space=(4, 4), patch_size=(2, 2), width=8, depths=(1, 0, 1))
        rngs = nnx.Rngs(**RNGS)
        network = AxialDenoiser(1, num_heads=2, remat=remat, rngs=rngs, **options)
        network.head.kernel[...] += 0.1  # zeros would pass nothing on
        graph, params = nnx.split(network)

        def loss(params):
            network = nnx.merge(graph, params)
            condition = {"seeds": x[:2], "climatology": x[2]}
            found = jax.vmap(lambda x: network(x, jnp.float32(0.1), condition))(x)
            return jnp.sum(found**2)

        return jax.grad(loss)(params)

    plain, again = gradient(False), gradient(True)
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(plain)) > 1e-3
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_the_published_configuration_has_nearly_the_published_parameters():
    """113,777,296 are published; embeddings besides those that are described differ."""
    model = nnx.eval_shape(
        lambda: AxialDenoiser(
            8,
            space=(6, 48, 48),
            levels=(0, 1, 2, 2, 3, 2, 4, 3),
            rngs=nnx.Rngs(**RNGS),
        )
    )
    block = 4 * 768 * 769 + 2 * 768 * 3072 + 3072 + 768 + 4 * 768
    embeddings = (96 + 8 + 5 + 3) * 768 + 64 * 768 + 768
    ends = 144 * 768 + 768 + 768 * 144 + 144 + 2 * 768
    assert count(model) == 16 * block + embeddings + ends == 113_765_520
    assert 113_777_296 - count(model) == 11_776


def test_wrong_sizes_are_refused_with_what_is_wrong():
    rngs = nnx.Rngs(**RNGS)
    with pytest.raises(ValueError, match="odd numbers"):
        ShiftedConv(1, 1, (4,), rngs=rngs)
    with pytest.raises(ValueError, match="padding must be one of"):
        ShiftedConv(1, 1, padding="torus", rngs=rngs)
    with pytest.raises(ValueError, match="kernel of two equal sizes"):
        ShiftedConv(1, 1, (3,), padding="lat_lon", rngs=rngs)
    with pytest.raises(ValueError, match="halved 2 times"):
        UNetDenoiser(1, widths=(2, 2, 2), depth=1, kernel_size=(3,), rngs=rngs)(
            jnp.zeros((6, 1)), jnp.float32(0)
        )
    with pytest.raises(ValueError, match="patches must tile"):
        AxialDenoiser(1, space=(5, 4), patch_size=(2, 2), rngs=rngs)
    with pytest.raises(ValueError, match="even in number"):
        pad_lat_lon(jnp.zeros((4, 5, 1)), 1)
