"""A small convolutional network for small images."""

from collections.abc import Sequence

import jax
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
from ensjax.nn.mlp import DenseBlock
from ensjax.ops import avg_pool, max_pool

POOLS = {"max": max_pool, "avg": avg_pool}


class CNN(nnx.Module):
    """Convolutions with pooling after the first of them, then dense layers.

    Args:
        image_shape: `(height, width, channel)`.
        features: channels of each convolution.
        kernel_size: taps along height and width.
        num_pools: how many of the first convolutions are pooled, 2x2 with stride 2;
            an odd last row or column is dropped.
        pool: "max" or "avg".
        hidden: widths of dense layers between the flattened image and the head.
        num_outputs: number of logits.
        norm: `None`, "batch", "group" or "layer", before each ReLU; a layer before a
            norm has no bias.
        dropout: rate before each dense layer; draws from the stream `dropout`.
        dtype: of the arithmetic below the head; parameters and logits are float32.
        remat: whether the convolutions are computed again for the gradient.
        conv_form: form of `ensjax.ops.Conv`.
        rngs: streams `params` and, with dropout, `dropout`.

    Raises:
        ValueError: if `pool` is unknown or the image is too small to be pooled.

    Example::

        model = CNN(norm="group", rngs=nnx.Rngs(params=0))
        logits = model(images)  # [batch, 28, 28, 1] -> [batch, 10]
    """

    def __init__(
        self,
        *,
        image_shape: Sequence[int] = (28, 28, 1),
        features: Sequence[int] = (16, 32, 32),
        kernel_size: Sequence[int] = (3, 3),
        num_pools: int = 2,
        pool: str = "max",
        hidden: Sequence[int] = (),
        num_outputs: int = 10,
        norm: str | None = None,
        dropout: float = 0.0,
        dtype=None,
        remat: bool = False,
        conv_form: str = "auto",
        rngs: nnx.Rngs,
    ):
        height, width, channels = image_shape
        if pool not in POOLS:
            raise ValueError(f"pool must be one of {', '.join(POOLS)}; got {pool!r}.")
        if not 0 <= num_pools <= len(features) or min(height, width) < 2**num_pools:
            raise ValueError(
                f"{len(features)} convolutions of {height}x{width} images cannot be"
                f" pooled {num_pools} times; choose a smaller num_pools."
            )
        self.image_shape = tuple(image_shape)
        self.remat = remat
        options = dict(norm=norm, dtype=dtype, rngs=rngs)
        sizes = (channels, *features)
        self.blocks = nnx.List(
            ConvBlock(
                num_in,
                num_out,
                kernel_size,
                pool=pool if index < num_pools else None,
                conv_form=conv_form,
                **options,
            )
            for index, (num_in, num_out) in enumerate(zip(sizes[:-1], sizes[1:]))
        )
        num_flat = (height >> num_pools) * (width >> num_pools) * sizes[-1]
        self.dropout = dropout_layer(dropout, rngs=rngs)
        widths = (num_flat, *hidden)
        self.dense = nnx.List(
            DenseBlock(num_in, num_out, activation=nnx.relu, dropout=dropout, **options)
            for num_in, num_out in zip(widths[:-1], widths[1:])
        )
        self.head = Head(widths[-1], num_outputs, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits `[batch, output]` of images `[batch, height, width, channel]`.

        Raises:
            ValueError: if the images do not have `image_shape`.
        """
        check_images(x, self.image_shape[-1])
        if x.shape[1:] != self.image_shape:
            raise ValueError(
                f"images must have shape {self.image_shape}, as the model was built"
                f" for; got {x.shape[1:]}."
            )
        for block in self.blocks:
            x = run_block(block, x, remat=self.remat)
        x = maybe(self.dropout, x.reshape(x.shape[0], -1))
        for block in self.dense:
            x = block(x)
        return self.head(x)


class ConvBlock(nnx.Module):
    """Convolution, norm, ReLU and 2x2 pooling (`pool` may be `None`)."""

    def __init__(
        self, num_in, num_out, kernel_size, *, pool, norm, dtype, conv_form, rngs
    ):
        self.conv = conv(
            num_in,
            num_out,
            kernel_size,
            use_bias=norm is None,
            dtype=dtype,
            conv_form=conv_form,
            rngs=rngs,
        )
        self.norm = norm_layer(norm, num_out, dtype=dtype, rngs=rngs)
        self.pool = pool

    def __call__(self, x):
        x = nnx.relu(maybe(self.norm, self.conv(x)))
        return x if self.pool is None else POOLS[self.pool](x, (2, 2), (2, 2))
