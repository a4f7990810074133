"""`map_members`: one function of one member, the same numbers however it is run."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ensjax.blocks import MAX_UNROLLED_MEMBERS, auto_block
from ensjax.mapping import map_members
from ensjax.members import member_key
from ensjax.mesh import make_mesh, tracing_for, tracing_platform

MESHES = [(1, 1), (8, 1), (4, 2)]
BLOCKS = [
    dict(block=None),
    dict(block=1),
    dict(block=3),
    dict(unroll=True),
    dict(block="auto"),
]


def dense(params, x, own, scale):
    """Uses all four kinds: params [in, out], x [batch, in], own [batch, in], scale."""
    hidden = jnp.tanh((x + own) @ params["kernel"] + params["bias"][None])
    total = jax.lax.psum(hidden.sum(axis=0), "data")
    return scale * hidden, total


ALL_KINDS = ("member", "batch", "member_batch", "shared")


def arguments(members, seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    params = {"kernel": draw(members, 3, 4), "bias": draw(members, 4)}
    return params, draw(8, 3), draw(members, 8, 3), np.float32(1.5)


def by_hand(params, x, own, scale):
    """The same in NumPy, float64, one member after the other."""
    outputs, totals = [], []
    for i in range(len(own)):
        kernel = params["kernel"][i].astype(np.float64)
        hidden = np.tanh((x + own[i]).astype(np.float64) @ kernel + params["bias"][i])
        outputs.append(scale * hidden)
        totals.append(hidden.sum(axis=0))
    return np.stack(outputs), np.stack(totals)


@pytest.mark.parametrize("options", BLOCKS, ids=str)
@pytest.mark.parametrize(
    "member, data",
    [*(pytest.param(*m, marks=pytest.mark.slow) for m in MESHES[:2]), MESHES[2]],
)
def test_every_block_and_mesh_gives_the_numbers_of_a_loop(member, data, options):
    run = map_members(
        dense,
        kinds=ALL_KINDS,
        out=("member_batch", "member"),
        mesh=make_mesh(member=member, data=data),
        **options,
    )
    for members in (1, 3, 8, 13):
        args = arguments(members)
        outputs, totals = run(*args)
        expected = by_hand(*args)
        assert outputs.shape == (members, 8, 4)
        np.testing.assert_allclose(outputs, expected[0], atol=1e-6)
        # A sum of eight numbers below 1 in float32.
        np.testing.assert_allclose(totals, expected[1], atol=2e-6)


def forward(params, x):
    return jnp.tanh(x @ params["kernel"] + params["bias"][None])


@pytest.mark.parametrize("block", [1, 4])
def test_with_a_fixed_block_a_members_bits_do_not_depend_on_the_others(block):
    run = map_members(
        jax.grad(lambda p, x: jnp.sum(forward(p, x) ** 2)),
        kinds=("member", "batch"),
        mesh=make_mesh(member=1),
        block=block,
    )
    params, x, _, _ = arguments(13)
    together = run(params, x)
    others, _, _, _ = arguments(13, seed=1)
    for i in (0, 5, 12):
        row = jax.tree.map(lambda p: p[i : i + 1], params)  # noqa: B023
        alone = run(row, x)
        company = jax.tree.map(lambda o, r: np.concatenate([o, r]), others, row)
        crowded = run(company, x)
        for name in params:
            np.testing.assert_array_equal(together[name][i], alone[name][0])
            np.testing.assert_array_equal(together[name][i], crowded[name][13])


def test_three_calls_compile_once():
    run = map_members(forward, kinds=("member", "batch"), mesh=make_mesh(member=8))
    params, x, _, _ = arguments(8)
    before = run.cache_size()
    for _ in range(3):
        run(params, x)
    assert run.cache_size() == before + 1


@dataclasses.dataclass(frozen=True)
class Scaled:
    """A function of one member that compares by value."""

    factor: float

    def __call__(self, params, x):
        return self.factor * forward(params, x)


def test_an_equal_function_made_anew_does_not_compile_again():
    params, x, _, _ = arguments(4)
    programs = []
    for _ in range(3):
        run = map_members(Scaled(2.5), kinds=("member", "batch"))
        run(params, x)
        programs.append(run)
    assert all(run is programs[0] for run in programs)
    assert programs[0].cache_size() == 1
    assert map_members(Scaled(3.0), kinds=("member", "batch")) is not programs[0]


def test_donated_arguments_are_deleted():
    mesh = make_mesh(member=8)
    run = map_members(
        lambda w: w + 1, kinds=("member",), mesh=mesh, block=None, donate=(0,)
    )
    w = jax.device_put(jnp.ones((8, 4)), jax.NamedSharding(mesh, jax.P("member")))
    run(w)
    assert w.is_deleted()


def test_unrolling_many_members_is_refused():
    double = lambda w: 2 * w  # noqa: E731
    run = map_members(double, kinds=("member",), mesh=make_mesh(member=1), unroll=True)
    run(jnp.ones(MAX_UNROLLED_MEMBERS))
    with pytest.raises(ValueError, match=r"refused above 16; there are 17.*block=1"):
        run(jnp.ones(MAX_UNROLLED_MEMBERS + 1))
    eight = map_members(double, kinds=("member",), mesh=make_mesh(), unroll=True)
    np.testing.assert_array_equal(eight(jnp.ones(128)), 2 * np.ones(128))


def count(w):
    """Fails when it is traced, so that what raises before has compiled nothing."""
    raise AssertionError("traced")


@pytest.mark.parametrize(
    "kinds, out, words",
    [
        (("members",), "member", "'members'.*member, batch, member_batch, shared"),
        (("batch",), "member", "No argument is stacked"),
        (("member",), "shared", "'shared'.*ensjax.reduce"),
        (("member",), ("member", "batch"), "'batch'"),
    ],
)
def test_wrong_kinds_raise_at_once(kinds, out, words):
    with pytest.raises(ValueError, match=words):
        map_members(count, kinds=kinds, out=out)


@pytest.mark.parametrize("block", [0, -1, "all", True, 1.5])
def test_wrong_blocks_raise_at_once(block):
    with pytest.raises(ValueError, match="block"):
        map_members(count, kinds=("member",), block=block)


def test_arguments_that_disagree_raise_before_compiling():
    mesh = make_mesh(member=4, data=2)
    run = map_members(count, kinds=("member", "member"), mesh=mesh)
    with pytest.raises(ValueError, match="Argument 1 holds 4 members.*3"):
        run(jnp.ones(3), jnp.ones(4))
    with pytest.raises(TypeError, match=r"2 arguments were declared.*got 1"):
        run(jnp.ones(3))
    with pytest.raises(ValueError, match=r"\['b'\].*\(2,\)"):
        run({"a": jnp.ones(3), "b": jnp.ones(2)}, jnp.ones(3))
    run = map_members(count, kinds=("member", "batch"), mesh=mesh)
    with pytest.raises(ValueError, match=r"Argument 1\['x'\].*\(3, 2\).*data=2"):
        run(jnp.ones(4), {"x": jnp.ones((3, 2))})
    run = map_members(count, kinds=("member_batch",), mesh=mesh)
    with pytest.raises(ValueError, match=r"Argument 0.*\(4, 5\): axis 1"):
        run(jnp.ones((4, 5)))
    with pytest.raises(ValueError, match="axis 1"):
        run(jnp.ones(4))


def test_a_scan_whose_carry_starts_as_zeros_works():
    def member(w, x):
        def step(carry, row):
            return carry + w * row, carry

        total, _ = jax.lax.scan(step, jnp.zeros(()), x)
        return jax.lax.psum(total, "data")

    for sizes, options in zip(MESHES * 2, BLOCKS):
        mesh = make_mesh(member=sizes[0], data=sizes[1])
        run = map_members(member, kinds=("member", "batch"), mesh=mesh, **options)
        w, x = np.arange(1.0, 4.0, dtype=np.float32), np.arange(4.0, dtype=np.float32)
        np.testing.assert_allclose(run(w, x), w * 6)


def test_the_mean_over_data_of_local_gradients_is_the_gradient():
    """Also where the loss holds a mean over data itself (JAX's factor-2 trap)."""

    def local(w, x):
        return jnp.mean((w * x - 1) ** 2)

    def averaged(w, x):
        return jax.lax.pmean(local(w, x), "data")

    x = np.linspace(-1, 2, 8).astype(np.float32)
    w = np.array([0.5, -1.0, 3.0], np.float32)
    expected = [np.mean(2 * (v * x - 1) * x) for v in w.astype(np.float64)]
    for loss in (local, averaged):
        for member, data in MESHES:
            run = map_members(
                lambda w, x: jax.lax.pmean(jax.grad(loss)(w, x), "data"),  # noqa: B023
                kinds=("member", "batch"),
                mesh=make_mesh(member=member, data=data),
            )
            np.testing.assert_allclose(run(w, x), expected, rtol=1e-5)


def test_gathers_and_indices_over_data_see_the_whole_batch():
    def member(w, x):
        whole = jax.lax.all_gather(x, "data", axis=0, tiled=True)
        return w * whole.sum() + jax.lax.psum(jax.lax.axis_index("data"), "data")

    run = map_members(
        member, kinds=("member", "batch"), mesh=make_mesh(member=4, data=2)
    )
    np.testing.assert_allclose(run(jnp.ones(4), jnp.arange(6.0)), np.full(4, 16.0))


def test_a_model_axis_splits_one_member():
    def member(w, x):
        share = x[jax.lax.axis_index("model")]
        return jax.lax.psum(w * share, "model")

    mesh = make_mesh(member=2, data=2, model=2)
    run = map_members(member, kinds=("member", "shared"), mesh=mesh)
    np.testing.assert_allclose(run(jnp.ones(3), jnp.array([1.0, 5.0])), np.full(3, 6.0))


def test_draws_do_not_depend_on_mesh_block_or_company():
    def draw(member_id):
        return jax.random.normal(member_key(0, "noise", member_id), (3,))

    expected = np.stack([draw(i) for i in range(13)])
    for (member, data), options in zip(MESHES, BLOCKS):
        mesh = make_mesh(member=member, data=data)
        run = map_members(draw, kinds=("member",), mesh=mesh, **options)
        np.testing.assert_array_equal(run(jnp.arange(13)), expected)
        np.testing.assert_array_equal(run(jnp.array([7, 2])), expected[[7, 2]])


def test_keys_and_integers_are_stacked_leaves_too():
    keys = jax.random.split(jax.random.key(1), 3)
    run = map_members(
        lambda key, n: (jax.random.fold_in(key, n), n + 1), kinds=("member", "member")
    )
    folded, more = run(keys, jnp.arange(3))
    assert more.dtype == jnp.int32
    assert folded.shape == (3,)
    one = jax.random.fold_in(keys[2], 2)
    np.testing.assert_array_equal(
        jax.random.key_data(folded[2]), jax.random.key_data(one)
    )


def test_a_nan_of_one_member_stays_its_own():
    run = map_members(forward, kinds=("member", "batch"), block=2)
    params, x, _, _ = arguments(5)
    good = run(params, x)
    params["kernel"][3] = np.nan
    bad = run(params, x)
    assert np.isnan(bad[3]).all()
    others = np.array([0, 1, 2, 4])
    np.testing.assert_array_equal(np.asarray(good)[others], np.asarray(bad)[others])
    assert run.cache_size() == 1


def single(rows):
    return forward(rows[0], jnp.ones((4, rows[0]["kernel"].shape[0])))


def stacks_of(members, width):
    shapes = {"kernel": (members, width, width), "bias": (members, width)}
    return [{k: jax.ShapeDtypeStruct(v, jnp.float32) for k, v in shapes.items()}]


def test_the_automatic_block_is_a_rule_of_platform_and_shapes():
    assert auto_block(single, stacks_of(64, 8), 64) is None  # fits a cache
    assert auto_block(single, stacks_of(8, 512), 8) == 1  # 1 MiB a member
    assert auto_block(single, stacks_of(12, 128), 12) is None  # 64 KiB a member
    some = auto_block(single, stacks_of(3000, 128), 3000)
    assert 1 < some < 3000 and 3000 % some == 0
    assert auto_block(single, stacks_of(1, 512), 1) == 1
    for platform in ("tpu", "gpu"):
        with tracing_for(platform):
            assert auto_block(single, stacks_of(8, 512), 8) is None


def test_the_automatic_block_takes_convolutions_one_at_a_time():
    def convolve(rows):
        x = jnp.ones((1, 4, 4, 1))
        return jax.lax.conv_general_dilated(
            x, rows[0], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    stacks = [jax.ShapeDtypeStruct((8, 3, 3, 1, 2), jnp.float32)]
    assert auto_block(convolve, stacks, 8) == 1
    with tracing_for("gpu"):
        assert auto_block(convolve, stacks, 8) is None


def test_the_mesh_says_the_platform_not_the_default_backend():
    seen = []

    def member(w):
        seen.append(tracing_platform())
        return w

    map_members(member, kinds=("member",))(jnp.ones(2))
    assert set(seen) == {"cpu"}
