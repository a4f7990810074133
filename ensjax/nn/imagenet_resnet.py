"""Residual networks for large images: ResNet-18 to -152 as they are published."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from ensjax.nn.layers import Head, check_images, he_normal, maybe, norm_layer, run_block
from ensjax.ops import Conv, max_pool

BLOCKS = ("basic", "bottleneck")


class ImageNetResNet(nnx.Module):
    """Residual network with a 7x7 stem, max pooling and stages of basic or wide blocks.

    The stem has stride 2 and is pooled by 3x3 with stride 2; each stage but the first
    begins with stride 2; where shapes change, the shortcut is a 1x1 convolution; then
    the mean over positions and a linear head. Convolutions have no bias, and every one
    is followed by a batch norm. By default a ResNet-50 of 25.6 M parameters; ResNet-18
    has `block="basic"`, `depths=(2, 2, 2, 2)` and `widths=(64, 128, 256, 512)`.

    Padding is half of the kernel on every side, as in PyTorch, and not "SAME", which
    pads only one side where a stride of 2 meets an even size. The running variance of
    the batch norms, of momentum .9, is that of the batch, where PyTorch takes the
    unbiased one: it differs while training, not in what published weights give.

    Args:
        depths: number of blocks in each stage.
        widths: channels that each stage gives.
        block: "basic", two 3x3 convolutions, or "bottleneck", 1x1, 3x3 and 1x1 with a
            quarter of the channels inside.
        stem_width: channels of the stem.
        first_strides: stride of the first stage; 1 but for variants.
        strides_on: the convolution of a bottleneck that has the stride, "3x3" (as
            published weights have it) or "1x1" (as in the paper).
        in_channels: channels of the images.
        num_outputs: number of logits.
        dtype: of the arithmetic below the head; parameters and logits are float32.
        remat: whether blocks are computed again for the gradient.
        conv_form: form of `ensjax.ops.Conv`.
        rngs: stream `params`.

    Raises:
        ValueError: if the stages do not fit each other or a name is unknown.

    Source: He et al. 2016, arXiv:1512.03385, section 4.1 and table 1, shortcuts of
    option B; the place of the stride as in torchvision ("ResNet v1.5").

    Example::

        model = ImageNetResNet(num_outputs=10, rngs=nnx.Rngs(params=0))
        logits = model(images)  # [batch, 224, 224, 3] -> [batch, 10]
    """

    def __init__(
        self,
        *,
        depths: Sequence[int] = (3, 4, 6, 3),
        widths: Sequence[int] = (256, 512, 1024, 2048),
        block: str = "bottleneck",
        stem_width: int = 64,
        first_strides: int = 1,
        strides_on: str = "3x3",
        in_channels: int = 3,
        num_outputs: int = 1000,
        dtype=None,
        remat: bool = False,
        conv_form: str = "auto",
        rngs: nnx.Rngs,
    ):
        if len(depths) != len(widths) or not depths or min(*depths, *widths) < 1:
            raise ValueError(
                "depths and widths have one number of at least 1 for each stage; got"
                f" {tuple(depths)} and {tuple(widths)}."
            )
        if block not in BLOCKS or strides_on not in ("3x3", "1x1"):
            raise ValueError(
                f"block is one of {', '.join(BLOCKS)}, and strides_on 3x3 or 1x1; got"
                f" {block!r} and {strides_on!r}."
            )
        options = dict(dtype=dtype, conv_form=conv_form, rngs=rngs)
        self.in_channels = in_channels
        self.remat = remat
        self.stem = NormedConv(in_channels, stem_width, 7, strides=2, **options)
        self.stages = nnx.List()
        num_in = stem_width
        for stage, (depth, width) in enumerate(zip(depths, widths)):
            blocks = nnx.List()
            for index in range(depth):
                strides = 1 if index else (2 if stage else first_strides)
                make = BasicBlock if block == "basic" else BottleneckBlock
                place = {} if block == "basic" else {"strides_on": strides_on}
                blocks.append(make(num_in, width, strides=strides, **place, **options))
                num_in = width
            self.stages.append(blocks)
        self.head = Head(num_in, num_outputs, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits `[batch, output]` of images `[batch, height, width, channel]`."""
        check_images(x, self.in_channels)
        x = nnx.relu(self.stem(x))
        x = max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        for blocks in self.stages:
            for block in blocks:
                x = run_block(block, x, remat=self.remat)
        return self.head(
            jnp.mean(x, (1, 2), dtype=jnp.promote_types(x.dtype, jnp.float32))
        )


class NormedConv(nnx.Module):
    """A convolution without bias and a batch norm."""

    def __init__(self, num_in, num_out, size, *, strides=1, dtype, conv_form, rngs):
        self.conv = nnx.Conv(
            num_in,
            num_out,
            (size, size),
            strides=strides,
            padding=((size // 2, size // 2),) * 2,
            use_bias=False,
            dtype=dtype,
            kernel_init=he_normal,
            conv_general_dilated=Conv(conv_form),
            rngs=rngs,
        )
        self.norm = norm_layer("batch", num_out, dtype=dtype, rngs=rngs)

    def __call__(self, x):
        return self.norm(self.conv(x))


class BasicBlock(nnx.Module):
    """relu(shortcut(x) + layer2(relu(layer1(x)))), both of 3x3."""

    def __init__(self, num_in, num_out, *, strides, **options):
        self.layer1 = NormedConv(num_in, num_out, 3, strides=strides, **options)
        self.layer2 = NormedConv(num_out, num_out, 3, **options)
        self.shortcut = _shortcut(num_in, num_out, strides, options)

    def __call__(self, x):
        y = self.layer2(nnx.relu(self.layer1(x)))
        return nnx.relu(maybe(self.shortcut, x) + y)


class BottleneckBlock(nnx.Module):
    """relu(shortcut(x) + layer3(relu(layer2(relu(layer1(x)))))), of 1x1, 3x3, 1x1."""

    def __init__(self, num_in, num_out, *, strides, strides_on, **options):
        inside = num_out // 4
        first, second = (strides, 1) if strides_on == "1x1" else (1, strides)
        self.layer1 = NormedConv(num_in, inside, 1, strides=first, **options)
        self.layer2 = NormedConv(inside, inside, 3, strides=second, **options)
        self.layer3 = NormedConv(inside, num_out, 1, **options)
        self.shortcut = _shortcut(num_in, num_out, strides, options)

    def __call__(self, x):
        y = nnx.relu(self.layer2(nnx.relu(self.layer1(x))))
        return nnx.relu(maybe(self.shortcut, x) + self.layer3(y))


def _shortcut(num_in, num_out, strides, options):
    if strides == 1 and num_in == num_out:
        return None
    return NormedConv(num_in, num_out, 1, strides=strides, **options)
