"""Every form of `Conv` is `jax.lax.conv_general_dilated`, in value and gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ensjax.mapping import map_members
from ensjax.mesh import make_mesh
from ensjax.ops import Conv

NHWC = ("NHWC", "HWIO", "NHWC")
NWC = ("NWC", "WIO", "NWC")
NDHWC = ("NDHWC", "DHWIO", "NDHWC")

# space, in, out, kernel, strides, padding, rhs dilation, groups
CASES = {
    "same": ((7, 6), 3, 4, (3, 3), (1, 1), "SAME", None, 1),
    "valid": ((7, 6), 3, 4, (3, 3), (1, 1), "VALID", None, 1),
    "same_lower": ((7, 6), 3, 4, (2, 4), (1, 1), "SAME_LOWER", None, 1),
    "even_kernel": ((7, 6), 5, 4, (4, 2), (1, 1), "SAME", None, 1),
    "strides": ((8, 7), 5, 4, (3, 3), (2, 2), "SAME", None, 1),
    "strides_remainder": ((8, 9), 5, 4, (3, 2), (3, 2), "VALID", None, 1),
    "strides_above_kernel": ((9, 8), 5, 4, (1, 2), (2, 3), "VALID", None, 1),
    "one_tap": ((5, 4), 5, 4, (1, 1), (1, 1), "SAME", None, 1),
    "one_tap_strided": ((5, 6), 5, 4, (1, 1), (2, 2), "SAME", None, 1),
    "one_channel": ((6, 6), 1, 4, (3, 3), (1, 1), "SAME", None, 1),
    "explicit_padding": ((6, 7), 5, 4, (3, 3), (1, 2), ((2, 0), (0, 3)), None, 1),
    "wide_padding": ((4, 4), 5, 4, (2, 2), (1, 1), ((3, 4), (2, 5)), None, 1),
    "negative_padding": ((7, 8), 5, 4, (3, 3), (1, 2), ((-1, 1), (1, -2)), None, 1),
    "dilation": ((9, 8), 5, 4, (3, 3), (1, 1), "SAME", (2, 3), 1),
    "dilation_strides": ((9, 10), 5, 4, (3, 2), (2, 1), "SAME", (2, 3), 1),
    "groups": ((6, 5), 6, 4, (3, 3), (1, 1), "SAME", None, 2),
    "groups_strides_dilation": ((9, 8), 6, 9, (2, 3), (2, 2), "SAME", (1, 2), 3),
    "depthwise": ((6, 5), 6, 6, (3, 3), (1, 1), "SAME", None, 6),
    "depthwise_multiplier": ((6, 7), 4, 12, (3, 2), (1, 2), "SAME", (2, 1), 4),
    "depthwise_negative": ((6, 7), 4, 8, (3, 2), (2, 1), ((-1, 2), (1, 0)), None, 4),
    "sequence": ((11,), 5, 4, (4,), (2,), "SAME", None, 1),
    "sequence_depthwise": ((11,), 4, 4, (3,), (1,), ((2, 0),), (2,), 4),
    "volume": ((4, 5, 3), 5, 4, (2, 3, 3), (1, 2, 1), "SAME", None, 1),
}
LAYOUTS = {1: NWC, 2: NHWC, 3: NDHWC}


def _operands(case, leading=(), dtype=jnp.float32):
    space, num_in, num_out, kernel, *_, groups = CASES[case]
    keys = jax.random.split(jax.random.key(1), 2)
    x = jax.random.normal(keys[0], (*leading, 3, *space, num_in), dtype)
    shape = (*leading, *kernel, num_in // groups, num_out)
    return x, jax.random.normal(keys[1], shape, dtype)


def _apply(conv, case):
    _, _, _, _, strides, padding, dilation, groups = CASES[case]
    return functools.partial(
        conv,
        window_strides=strides,
        padding=padding,
        rhs_dilation=dilation,
        dimension_numbers=LAYOUTS[len(strides)],
        feature_group_count=groups,
    )


def _value_and_grads(conv):
    def loss(x, kernel):
        y = conv(x, kernel)
        # A cotangent that differs everywhere, so that no misplaced tap cancels.
        weights = jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)
        return jnp.sum(weights * y.astype(jnp.float32)), y

    def run(x, kernel):
        (_, y), grads = jax.value_and_grad(loss, (0, 1), has_aux=True)(x, kernel)
        return y, *grads

    return run


def assert_close(actual, expected, tolerance=1e-5):
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.shape == e.shape and a.dtype == e.dtype
        a, e = np.asarray(a, np.float64), np.asarray(e, np.float64)
        np.testing.assert_allclose(a, e, atol=tolerance * max(1, np.abs(e).max()))


def _forms(case):
    _, num_in, *_, groups = CASES[case]
    forms = ["patches", "mixed"]
    if case in ("same", "strides", "groups"):
        forms += ["auto", "plain"]
    return forms + ["depthwise"] if groups == num_in else forms


@functools.cache
def _expected(case):
    run = _value_and_grads(_apply(jax.lax.conv_general_dilated, case))
    return jax.jit(run)(*_operands(case))


# Each takes seconds to compile: one of strides, of padding, of dilation, of groups and
# of one space axis; the others differ from these in sizes, or combine them.
FAST = dict.fromkeys(("strides", "groups"), ("patches", "mixed", "auto"))
FAST |= dict.fromkeys(("explicit_padding", "dilation", "sequence"), ("patches",))
FAST["depthwise"] = ("patches", "depthwise")
GRID = [
    (case, form)
    if form in FAST.get(case, ())
    else pytest.param(case, form, marks=pytest.mark.slow)
    for case in CASES
    for form in _forms(case)
]


@pytest.mark.parametrize("case, form", GRID)
def test_form_equals_lax_in_value_and_gradients(case, form):
    actual = jax.jit(_value_and_grads(_apply(Conv(form), case)))(*_operands(case))
    assert_close(actual, _expected(case))


@pytest.mark.parametrize(
    "form",
    [
        pytest.param("auto", marks=pytest.mark.slow),
        pytest.param("plain", marks=pytest.mark.slow),
        "patches",
        "mixed",
        pytest.param("depthwise", marks=pytest.mark.slow),
    ],
)
def test_form_under_vmap_and_scan_equals_one_kernel_at_a_time(form):
    case = "depthwise_multiplier" if form == "depthwise" else "same"
    x, kernel = _operands(case, leading=(4,))
    run = _value_and_grads(_apply(Conv(form), case))
    one = jax.jit(_value_and_grads(_apply(jax.lax.conv_general_dilated, case)))
    rows = [one(x[i], kernel[i]) for i in range(4)]
    expected = jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)
    assert_close(jax.jit(jax.vmap(run))(x, kernel), expected)
    scanned = jax.jit(lambda *stacks: jax.lax.map(lambda pair: run(*pair), stacks))
    assert_close(scanned(x, kernel), expected)
    # One batch for all kernels.
    shared = jax.jit(jax.vmap(run, in_axes=(None, 0)))(x[0], kernel)
    assert_close(jax.tree.map(lambda leaf: leaf[0], shared), rows[0])


@pytest.mark.parametrize(
    "form",
    [
        "patches",
        "mixed",
        *(
            pytest.param(f, marks=pytest.mark.slow)
            for f in ("auto", "plain", "depthwise")
        ),
    ],
)
@pytest.mark.parametrize("check_vma", [True, False])
def test_form_inside_shard_map_has_the_gradient_of_the_mean(form, check_vma):
    # Here, in a shard_map, lax itself cannot differentiate a grouped convolution under
    # vmap over kernels of the same images.
    case = {"depthwise": "depthwise", "plain": "same"}.get(form, "groups")
    x, kernel = _operands(case)
    x = jnp.concatenate([x, 2 * x[:1]])  # 4 examples on 2 data shards
    kernels = jnp.stack([kernel, -kernel])
    mesh = jax.make_mesh(
        (2, 2), ("member", "data"), axis_types=(jax.sharding.AxisType.Auto,) * 2
    )
    conv = _apply(Conv(form), case)

    def loss(kernel, x):
        return jnp.mean(conv(x, kernel) ** 3)

    def shard_grad(kernels, x):
        def member_grad(kernel):
            if check_vma:
                return jax.grad(lambda k: jax.lax.pmean(loss(k, x), "data"))(kernel)
            return jax.lax.pmean(jax.grad(loss)(kernel, x), "data")

        return jax.vmap(member_grad)(kernels)

    sharded = jax.shard_map(
        shard_grad,
        mesh=mesh,
        in_specs=(jax.P("member"), jax.P("data")),
        out_specs=jax.P("member"),
        check_vma=check_vma,
    )
    expected = jnp.stack([jax.grad(loss)(kernel, x) for kernel in kernels])
    assert_close(jax.jit(sharded)(kernels, x), expected)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["mixed", "depthwise"])
def test_input_gradient_is_summed_over_data_where_only_the_kernel_varies(form):
    case = "depthwise"
    x, kernel = _operands(case, leading=(2,))
    x = x[0]
    conv = _apply(Conv(form), case)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def grad(x, kernel):
        return jax.grad(
            lambda x: jax.lax.psum(jnp.sum(conv(x, kernel[0]) ** 2), "data")
        )(x)

    sharded = jax.shard_map(
        grad, mesh=mesh, in_specs=(jax.P(), jax.P("data")), out_specs=jax.P()
    )
    expected = jax.grad(lambda x: sum(jnp.sum(conv(x, k) ** 2) for k in kernel))(x)
    assert_close(jax.jit(sharded)(x, kernel), expected)


@pytest.mark.parametrize("form", ["auto", "patches", "mixed", "depthwise"])
@pytest.mark.parametrize("preferred", [None, jnp.float32])
@pytest.mark.slow
def test_bfloat16_has_the_dtypes_of_lax_and_its_values(form, preferred):
    case = "depthwise" if form == "depthwise" else "same"
    x, kernel = _operands(case, dtype=jnp.bfloat16)
    conv = functools.partial(_apply(Conv(form), case), preferred_element_type=preferred)
    reference = _apply(jax.lax.conv_general_dilated, case)
    expected = _value_and_grads(reference)(
        x.astype(jnp.float32), kernel.astype(jnp.float32)
    )
    actual = jax.jit(_value_and_grads(conv))(x, kernel)
    assert actual[0].dtype == (preferred or jnp.bfloat16)
    assert actual[1].dtype == actual[2].dtype == jnp.bfloat16
    # bfloat16 keeps 8 bits; sums of some 30 roundings stay below 2 %.
    actual = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), actual)
    assert_close(actual, expected, tolerance=2e-2)


@pytest.mark.parametrize("form", ["auto", "patches", "mixed"])
@pytest.mark.parametrize("numbers", [None, ("CHWN", "OHWI", "CNHW")])
@pytest.mark.slow
def test_any_layout_of_lax_is_kept(form, numbers):
    shapes = ((2, 5, 7, 6), (4, 5, 3, 3))
    if numbers is not None:
        shapes = ((5, 7, 6, 2), (4, 3, 3, 5))
    x, kernel = (
        jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes)
    )
    options = dict(window_strides=(1, 1), padding="SAME", dimension_numbers=numbers)
    expected = _value_and_grads(
        functools.partial(jax.lax.conv_general_dilated, **options)
    )(x, kernel)
    actual = _value_and_grads(functools.partial(Conv(form), **options))(x, kernel)
    assert_close(actual, expected)


@pytest.mark.parametrize(
    "options",
    [
        dict(lhs_dilation=(2, 1), dimension_numbers=NHWC),
        dict(batch_group_count=3, dimension_numbers=NHWC),
    ],
)
def test_dilated_inputs_and_batch_groups_take_the_plain_form(options):
    x, _ = _operands("same")
    arguments = (x, jnp.ones((3, 3, 3, 6)), (1, 1), ((1, 1), (1, 2)))
    expected = jax.lax.conv_general_dilated(*arguments, **options)
    assert_close(Conv("mixed")(*arguments, **options), expected)


def test_integers_and_empty_results_take_the_plain_form():
    x, kernel = jnp.ones((1, 4, 4, 2), jnp.int32), jnp.ones((3, 3, 2, 1), jnp.int32)
    y = Conv("patches")(x, kernel, (1, 1), "VALID", dimension_numbers=NHWC)
    np.testing.assert_array_equal(y, np.full((1, 2, 2, 1), 18))
    empty = Conv("mixed")(
        x[:, :2].astype(jnp.float32),
        kernel.astype(jnp.float32),
        (1, 1),
        "VALID",
        dimension_numbers=NHWC,
    )
    assert empty.shape == (1, 0, 2, 1)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["patches", "mixed", "depthwise"])
def test_hessian_equals_that_of_lax(form):
    case = "depthwise" if form == "depthwise" else "strides"
    x, kernel = _operands(case)

    def hessian_product(conv):
        def loss(kernel):
            return jnp.mean(conv(x, kernel) ** 4)

        direction = jnp.cos(kernel)
        forward = jax.jvp(jax.grad(loss), (kernel,), (direction,))[1]
        reverse = jax.grad(lambda k: jnp.vdot(jax.grad(loss)(k), direction))(kernel)
        return forward, reverse

    expected = hessian_product(_apply(jax.lax.conv_general_dilated, case))
    assert_close(hessian_product(_apply(Conv(form), case)), expected)


def test_forward_mode_works_for_patches_and_raises_for_mixed():
    x, kernel = _operands("same")
    expected = jax.jvp(
        lambda k: _apply(jax.lax.conv_general_dilated, "same")(x, k),
        (kernel,),
        (kernel,),
    )
    patches = _apply(Conv("patches"), "same")
    assert_close(jax.jvp(lambda k: patches(x, k), (kernel,), (kernel,)), expected)
    mixed = _apply(Conv("mixed"), "same")
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jvp(lambda k: mixed(x, k), (kernel,), (kernel,))


def test_equal_forms_are_equal_and_give_equal_graphs():
    def layer(form, seed):
        rngs = nnx.Rngs(params=seed)
        return nnx.Conv(3, 4, (3, 3), conv_general_dilated=Conv(form), rngs=rngs)

    graphs = [nnx.split(layer("mixed", seed))[0] for seed in (0, 1)]
    assert graphs[0] == graphs[1] and hash(graphs[0]) == hash(graphs[1])
    assert graphs[0] != nnx.split(layer("patches", 0))[0]
    x, _ = _operands("same")
    reference = nnx.Conv(3, 4, (3, 3), rngs=nnx.Rngs(params=0))
    assert_close(layer("auto", 0)(x), reference(x))


def test_auto_is_a_fixed_rule_of_platform_and_shapes(monkeypatch):
    from ensjax.ops import conv as conv_module

    def form_of(case):
        calls = []
        with monkeypatch.context() as patch:
            for name in ("patches", "mixed", "depthwise", "plain"):
                original = getattr(conv_module, f"{name}_conv")

                def spy(*args, original=original, name=name):
                    calls.append(name)
                    return original(*args)

                patch.setattr(conv_module, f"{name}_conv", spy)
            _apply(Conv(), case)(*_operands(case))
        return calls[0]

    assert form_of("dilation") == "mixed"
    assert form_of("groups") == "mixed"
    for case in ("one_channel", "one_tap", "strides"):
        assert form_of(case) == "patches"
    assert form_of("depthwise") == "depthwise"
    monkeypatch.setattr(conv_module, "tracing_platform", lambda: "gpu")
    assert form_of("dilation") == "mixed"
    assert form_of("strides") == "patches"
    monkeypatch.setattr(conv_module, "tracing_platform", lambda: "tpu")
    assert form_of("dilation") == form_of("strides") == "plain"


@pytest.mark.parametrize("block, form", [(None, "mixed"), (2, "mixed"), (1, "plain")])
def test_wide_kernels_take_the_plain_form_on_a_gpu_where_members_run_alone(
    monkeypatch, block, form
):
    from ensjax.ops import conv as conv_module

    monkeypatch.setattr(conv_module, "tracing_platform", lambda: "gpu")
    calls = []
    for name in ("mixed", "plain"):
        monkeypatch.setattr(
            conv_module,
            f"{name}_conv",
            lambda x, kernel, *rest, name=name: (
                calls.append(name) or jnp.zeros((*x.shape[:-1], kernel.shape[-1]))
            ),
        )

    def layer(kernel, x):
        return Conv()(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    mapped = map_members(
        layer, kinds=("member", "shared"), mesh=make_mesh(member=1), block=block
    )
    channels = conv_module.GPU_PLAIN_CHANNELS
    kernels = jax.ShapeDtypeStruct((4, 3, 3, channels, channels), jnp.float32)
    jax.eval_shape(mapped.jitted, kernels, jnp.ones((1, 4, 4, channels)))
    assert set(calls) == {form}


def test_auto_takes_no_form_that_lax_cannot_differentiate_under_vmap(monkeypatch):
    from ensjax.ops import conv as conv_module

    monkeypatch.setattr(conv_module, "tracing_platform", lambda: "gpu")
    for case in ("groups", "depthwise"):
        x, kernel = _operands(case, leading=(2,))
        run = _value_and_grads(_apply(Conv(), case))
        one = jax.jit(_value_and_grads(_apply(jax.lax.conv_general_dilated, case)))
        actual = jax.jit(jax.vmap(run))(x, kernel)
        for i in range(2):
            member = jax.tree.map(lambda leaf, i=i: leaf[i], actual)
            assert_close(member, one(x[i], kernel[i]))


def test_errors_name_the_forms_and_the_groups():
    with pytest.raises(ValueError, match="auto, plain, patches, mixed, depthwise"):
        Conv("im2col")
    x, kernel = _operands("same")
    with pytest.raises(ValueError, match="input channels, 3; got 1"):
        _apply(Conv("depthwise"), "same")(x, kernel)
