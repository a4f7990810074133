"""Convolution with a backward pass of ordinary convolutions and matrix products."""

import functools

import jax
import jax.numpy as jnp

from ensjax.ops.window import Window, pad_space, sum_like, taps


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def mixed_conv(
    x: jax.Array,
    kernel: jax.Array,
    window: Window,
    precision=None,
    preferred_element_type=None,
) -> jax.Array:
    """Convolution by `lax.conv_general_dilated` with its gradients written by hand.

    The compiler's own gradients of a convolution (one with a dilated input, one whose
    "kernel" is as large as the image) are tens of times slower inside `scan` on CPU.
    Here the gradient of `x` is an ordinary convolution of the padded cotangent with
    the flipped and transposed kernel, and the gradient of the kernel is a matrix
    product of patches of `x` and of the cotangent.

    Reverse mode can be repeated, and forward mode may be applied to the gradient
    (`jax.hessian`). Forward mode of the convolution itself (`jax.jvp`, `jax.linearize`)
    raises `TypeError`, as for every `jax.custom_vjp`: use `patches_conv` there.

    Args:
        x: `[batch, *space, in_channel]`.
        kernel: `[*tap, in_channel / groups, out_channel]`.
        window: strides, padding, dilation and groups; its shape is the kernel's.

    Returns:
        `[batch, *outputs, out_channel]`.
    """
    return plain_conv(x, kernel, window, precision, preferred_element_type)


def plain_conv(
    x: jax.Array,
    kernel: jax.Array,
    window: Window,
    precision=None,
    preferred_element_type=None,
) -> jax.Array:
    """`lax.conv_general_dilated` of channels-last arrays; shapes as `mixed_conv`."""
    spatial = tuple(range(1, x.ndim - 1))
    channels = x.ndim - 1
    numbers = jax.lax.ConvDimensionNumbers(
        lhs_spec=(0, channels, *spatial),
        rhs_spec=(channels, channels - 1, *range(x.ndim - 2)),
        out_spec=(0, channels, *spatial),
    )
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window.strides,
        window.padding,
        rhs_dilation=window.dilation,
        dimension_numbers=numbers,
        feature_group_count=window.groups,
        precision=precision,
        preferred_element_type=preferred_element_type,
    )


def _forward(x, kernel, window, precision, preferred_element_type):
    y = plain_conv(x, kernel, window, precision, preferred_element_type)
    return y, (x, kernel)


def _backward(window, precision, preferred_element_type, residuals, cotangent):
    del preferred_element_type  # the cotangent has it already
    x, kernel = residuals
    dx = _input_gradient(x, kernel, window, precision, cotangent)
    dkernel = _kernel_gradient(x, kernel, window, precision, cotangent)
    return sum_like(dx, x), sum_like(dkernel, kernel)


mixed_conv.defvjp(_forward, _backward)


def _input_gradient(x, kernel, window, precision, cotangent):
    num_space, groups = len(window.shape), window.groups
    group_in, num_out = kernel.shape[-2:]
    # [*tap, in, groups * out] -> [*tap, out, groups * in], flipped along the taps.
    kernel = jax.lax.rev(kernel.astype(cotangent.dtype), tuple(range(num_space)))
    kernel = kernel.reshape(*window.shape, group_in, groups, num_out // groups)
    kernel = jnp.swapaxes(kernel, -1, -3)
    kernel = kernel.reshape(*window.shape, num_out // groups, groups * group_in)

    padding = window.transposed_padding(x.shape[1:-1])
    if any(stride != 1 for stride in window.strides) or min(map(min, padding)) < 0:
        cotangent = pad_space(cotangent, padding, window.strides)
        padding = ((0, 0),) * num_space
    dense = Window(window.shape, (1,) * num_space, padding, window.dilation, groups)
    return plain_conv(cotangent, kernel, dense, precision).astype(x.dtype)


def _kernel_gradient(x, kernel, window, precision, cotangent):
    """Patches of `x` along the last spatial axis times those of the cotangent along
    the others: one matrix product that stores `rows + columns` copies, where patches
    of `x` alone would store `rows * columns`.
    """
    num_space, groups = len(window.shape), window.groups
    group_in, num_out = kernel.shape[-2:]
    ones, zeros = (1,) * (num_space - 1), ((0, 0),) * (num_space - 1)
    dtype = jnp.promote_types(x.dtype, cotangent.dtype)

    last = Window(
        shape=(*ones, window.shape[-1]),
        strides=(*ones, window.strides[-1]),
        padding=(*zeros, window.padding[-1]),
        dilation=(*ones, window.dilation[-1]),
    )
    rows = taps(x.astype(dtype), last)
    padding = window.transposed_padding(x.shape[1:-1])[:-1]
    cotangent = pad_space(
        cotangent.astype(dtype), (*padding, (0, 0)), (*window.strides[:-1], 1)
    )
    others = Window(
        shape=(*window.shape[:-1], 1),
        strides=(*ones, 1),
        padding=(*zeros, (0, 0)),
        dilation=(*window.dilation[:-1], 1),
    )
    columns = taps(cotangent, others)[::-1]

    dot = dict(
        precision=precision,
        preferred_element_type=jnp.promote_types(dtype, jnp.float32),
    )
    if groups == 1:
        rows = jnp.concatenate(rows, axis=-1).reshape(-1, len(rows) * group_in)
        columns = jnp.concatenate(columns, axis=-1)
        columns = columns.reshape(rows.shape[0], -1)
        product = jnp.matmul(rows.T, columns, **dot)
    else:
        rows = jnp.stack(rows, axis=-2).reshape(-1, len(rows), groups, group_in)
        columns = jnp.stack(columns, axis=-2)
        columns = columns.reshape(rows.shape[0], -1, groups, num_out // groups)
        product = jnp.einsum("plgi,pkgo->likgo", rows, columns, **dot)
    # [last tap, in, other taps, out] -> [*tap, in, out]
    product = product.reshape(window.shape[-1], group_in, -1, num_out)
    product = jnp.transpose(product, (2, 0, 1, 3))
    return product.reshape(kernel.shape).astype(kernel.dtype)
