"""Convolution as patches and one matrix product (im2col)."""

import math

import jax
import jax.numpy as jnp

from ensjax.ops.window import Window, taps


def patches_conv(
    x: jax.Array,
    kernel: jax.Array,
    window: Window,
    precision=None,
    preferred_element_type=None,
) -> jax.Array:
    """Convolution of `x` by slicing patches and multiplying them with the kernel.

    Under `vmap` over kernels the product is one batched matrix product, where
    `lax.conv_general_dilated` becomes a grouped convolution. It stores `tap` copies
    of `x`. All derivatives of all orders and modes exist.

    Args:
        x: `[batch, *space, in_channel]`.
        kernel: `[*tap, in_channel / groups, out_channel]`.
        window: strides, padding, dilation and groups; its shape is the kernel's.

    Returns:
        `[batch, *outputs, out_channel]`.
    """
    num_taps, groups = math.prod(window.shape), window.groups
    group_in, num_out = kernel.shape[-2:]
    slices = taps(x, window)
    outputs = slices[0].shape[:-1]
    dot = dict(precision=precision, preferred_element_type=preferred_element_type)
    if groups == 1:
        patches = jnp.concatenate(slices, axis=-1)  # [batch, *outputs, tap * in]
        patches = patches.reshape(-1, num_taps * group_in)
        y = jnp.matmul(patches, kernel.reshape(num_taps * group_in, num_out), **dot)
    else:
        # Output channels are laid out group by group, as in lax.
        patches = jnp.stack(slices, axis=-2).reshape(-1, num_taps, groups, group_in)
        kernel = kernel.reshape(num_taps, group_in, groups, num_out // groups)
        y = jnp.einsum("pkgi,kigo->pgo", patches, kernel, **dot)
    return y.reshape(*outputs, num_out)
