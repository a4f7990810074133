"""Residual networks for 32x32 images: ResNet-20 to -110, and wide residual networks."""

import jax
import jax.numpy as jnp
from flax import nnx

from ensjax.nn.layers import (
    Head,
    check_images,
    conv,
    dropout_layer,
    maybe,
    norm_layer,
    run_block,
)


class ResNet(nnx.Module):
    """Residual network of depth 6n + 2 with the norm and ReLU after convolutions.

    A 3x3 stem of `width` channels; three groups of n blocks of `width`, 2 `width` and
    4 `width` channels, the last two starting with stride 2; the mean over positions;
    a linear head. Shortcuts have no parameters: where shapes change, they take every
    second position and zeros for the new channels. ResNet-20 has 0.27 M parameters.

    Args:
        depth: 20, 32, 44, 56, 110 or another 6n + 2.
        width: channels of the first group.
        in_channels: channels of the images.
        num_outputs: number of logits.
        norm: `None`, "batch", "group" or "layer"; convolutions before it have no bias.
        dropout: rate between the two convolutions of a block; not in the paper.
        dtype: of the arithmetic below the head; parameters and logits are float32.
        remat: whether blocks are computed again for the gradient.
        conv_form: form of `ensjax.ops.Conv`.
        rngs: streams `params` and, with dropout, `dropout`.

    Raises:
        ValueError: if the depth is not 6n + 2.

    Source: He et al. 2016, arXiv:1512.03385, section 4.2, shortcuts of option A.

    Example::

        model = ResNet(depth=20, rngs=nnx.Rngs(params=0))
        logits = model(images)  # [batch, 32, 32, 3] -> [batch, 10]
    """

    def __init__(
        self,
        *,
        depth: int = 20,
        width: int = 16,
        in_channels: int = 3,
        num_outputs: int = 10,
        norm: str | None = "batch",
        dropout: float = 0.0,
        dtype=None,
        remat: bool = False,
        conv_form: str = "auto",
        rngs: nnx.Rngs,
    ):
        if depth < 8 or depth % 6 != 2:
            raise ValueError(
                f"depth must be 6n + 2 with n at least 1, such as 20, 32 or 56; got"
                f" {depth}."
            )
        options = dict(norm=norm, dtype=dtype, conv_form=conv_form, rngs=rngs)
        self.in_channels = in_channels
        self.remat = remat
        self.stem = conv(in_channels, width, **_conv_options(**options))
        self.norm = norm_layer(norm, width, dtype=dtype, rngs=rngs)
        self.blocks = nnx.List()
        num_in = width
        for num_out, group_strides in ((width, 1), (2 * width, 2), (4 * width, 2)):
            for index in range((depth - 2) // 6):
                strides = group_strides if index == 0 else 1
                block = ResidualBlock(
                    num_in, num_out, strides=strides, dropout=dropout, **options
                )
                self.blocks.append(block)
                num_in = num_out
        self.head = Head(num_in, num_outputs, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits `[batch, output]` of images `[batch, height, width, channel]`."""
        check_images(x, self.in_channels)
        x = nnx.relu(maybe(self.norm, self.stem(x)))
        for block in self.blocks:
            x = run_block(block, x, remat=self.remat)
        return self.head(_mean_over_space(x))


class ResidualBlock(nnx.Module):
    """relu(shortcut(x) + norm(conv(relu(norm(conv(x))))))."""

    def __init__(
        self, num_in, num_out, *, strides, norm, dropout, dtype, conv_form, rngs
    ):
        options = _conv_options(norm, dtype, conv_form, rngs)
        self.num_out = num_out
        self.strides = strides
        self.conv1 = conv(num_in, num_out, strides=strides, **options)
        self.norm1 = norm_layer(norm, num_out, dtype=dtype, rngs=rngs)
        self.dropout = dropout_layer(dropout, rngs=rngs)
        self.conv2 = conv(num_out, num_out, **options)
        self.norm2 = norm_layer(norm, num_out, dtype=dtype, rngs=rngs)

    def __call__(self, x):
        y = nnx.relu(maybe(self.norm1, self.conv1(x)))
        y = maybe(self.norm2, self.conv2(maybe(self.dropout, y)))
        x = x[:, :: self.strides, :: self.strides]
        x = jnp.pad(x, [(0, 0)] * 3 + [(0, self.num_out - x.shape[-1])])
        return nnx.relu(x + y)


class WideResNet(nnx.Module):
    """Residual network with the norm and ReLU before convolutions; `wide_resnet`."""

    def __init__(
        self,
        *,
        depth: int,
        width: int,
        in_channels: int,
        num_outputs: int,
        norm: str | None,
        dropout: float,
        dtype,
        remat: bool,
        conv_form: str,
        rngs: nnx.Rngs,
    ):
        if depth < 10 or depth % 6 != 4:
            raise ValueError(
                f"depth must be 6n + 4 with n at least 1, such as 16, 28 or 40; got"
                f" {depth}."
            )
        options = dict(norm=norm, dtype=dtype, conv_form=conv_form, rngs=rngs)
        self.in_channels = in_channels
        self.remat = remat
        # Its outputs are also added as they are, so it has no bias with any norm.
        self.stem = conv(in_channels, 16, **_conv_options(**options))
        self.blocks = nnx.List()
        num_in = 16
        for num_out, group_strides in ((16, 1), (32, 2), (64, 2)):
            for index in range((depth - 4) // 6):
                strides = group_strides if index == 0 else 1
                block = WideBlock(
                    num_in, num_out * width, strides=strides, dropout=dropout, **options
                )
                self.blocks.append(block)
                num_in = num_out * width
        self.norm = norm_layer(norm, num_in, dtype=dtype, rngs=rngs)
        self.head = Head(num_in, num_outputs, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits `[batch, output]` of images `[batch, height, width, channel]`."""
        check_images(x, self.in_channels)
        x = self.stem(x)
        for block in self.blocks:
            x = run_block(block, x, remat=self.remat)
        return self.head(_mean_over_space(nnx.relu(maybe(self.norm, x))))


class WideBlock(nnx.Module):
    """shortcut(x) + conv(relu(norm(conv(relu(norm(x))))))."""

    def __init__(
        self, num_in, num_out, *, strides, norm, dropout, dtype, conv_form, rngs
    ):
        options = _conv_options(norm, dtype, conv_form, rngs)
        self.norm1 = norm_layer(norm, num_in, dtype=dtype, rngs=rngs)
        self.conv1 = conv(num_in, num_out, strides=strides, **options)
        self.norm2 = norm_layer(norm, num_out, dtype=dtype, rngs=rngs)
        self.dropout = dropout_layer(dropout, rngs=rngs)
        self.conv2 = conv(num_out, num_out, **options)
        changes_shape = strides != 1 or num_in != num_out
        self.shortcut = (
            conv(num_in, num_out, (1, 1), strides=strides, **options)
            if changes_shape
            else None
        )

    def __call__(self, x):
        y = self.conv1(nnx.relu(maybe(self.norm1, x)))
        y = maybe(self.dropout, nnx.relu(maybe(self.norm2, y)))
        return maybe(self.shortcut, x) + self.conv2(y)


def wide_resnet(
    *,
    depth: int = 28,
    width: int = 10,
    in_channels: int = 3,
    num_outputs: int = 10,
    norm: str | None = "batch",
    dropout: float = 0.0,
    dtype=None,
    remat: bool = False,
    conv_form: str = "auto",
    rngs: nnx.Rngs,
) -> WideResNet:
    """Wide residual network, by default the WRN-28-10 of 36.5 M parameters.

    A 3x3 stem of 16 channels; three groups of (depth - 4) / 6 blocks of 16, 32 and 64
    times `width` channels, the last two starting with stride 2; norm and ReLU before
    each convolution; a 1x1 convolution of the block's input as the shortcut where
    shapes change; norm, ReLU, the mean over positions and a linear head.

    Args:
        depth: 28 or another 6n + 4.
        width: factor of the channels.
        in_channels: channels of the images.
        num_outputs: number of logits.
        norm: `None`, "batch", "group" or "layer"; with a norm, no convolution has bias.
        dropout: rate before the second convolution of a block.
        dtype: of the arithmetic below the head; parameters and logits are float32.
        remat: whether blocks are computed again for the gradient.
        conv_form: form of `ensjax.ops.Conv`.
        rngs: streams `params` and, with dropout, `dropout`.

    Raises:
        ValueError: if the depth is not 6n + 4.

    Source: Zagoruyko and Komodakis 2016, arXiv:1605.07146, table 1, with shortcuts as
    in google/uncertainty-baselines, which take the block's input before its norm.

    Example::

        model = wide_resnet(dtype=jnp.bfloat16, rngs=nnx.Rngs(params=0))
    """
    return WideResNet(
        depth=depth,
        width=width,
        in_channels=in_channels,
        num_outputs=num_outputs,
        norm=norm,
        dropout=dropout,
        dtype=dtype,
        remat=remat,
        conv_form=conv_form,
        rngs=rngs,
    )


def _conv_options(norm, dtype, conv_form, rngs):
    return dict(use_bias=norm is None, dtype=dtype, conv_form=conv_form, rngs=rngs)


def _mean_over_space(x):
    """Mean over height and width, summed in float32 or wider."""
    return jnp.mean(x, (1, 2), dtype=jnp.promote_types(x.dtype, jnp.float32))
