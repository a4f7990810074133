"""MultiColor images: a grey digit amid coloured patches that betray its class.

The canvas has 3 x 3 blocks. The middle one holds the digit; each of the eight around it
is split into four patches, 32 in all, and every patch has its own random permutation of
colours over classes. A patch shows the class's colour with probability `agreement`,
else any of the ten: a model may read the class off the patches alone, and every patch
whose agreement drops in the test set is a spurious feature.

    data.multicolor_digits(test_agreement=0.3, seed=0).x_test.shape  # (400, 24, 24, 3)

Source: Lin et al. 2024, "Spurious Feature Diversification Improves Out-of-distribution
Generalization", arXiv:2309.17230, and its published script (MultiColorMNIST).
"""

import dataclasses
import functools
import os

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.data.datasets import digits, mnist5k
from ensjax.data.image_files import mnist_idx
from ensjax.data.provenance import Dataset
from ensjax.data.sampling import example_keys
from ensjax.member_arrays import wide_labels

NUM_PATCHES = 32
COLORS = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "cyan": (0, 255, 255),
    "magenta": (255, 0, 255),
    "black": (0, 0, 0),
    "white": (255, 255, 255),
    "gray": (128, 128, 128),
    "orange": (255, 165, 0),
}
_MNIST_TRAIN = 50_000  # of the 60,000 training images; the last 10,000 are the test set
_RGB = np.asarray(list(COLORS.values()), np.float32) / 255


def class_colors(
    key: jax.Array, *, num_patches: int = NUM_PATCHES, num_classes: int = 10
) -> jax.Array:
    """The colour that each patch gives each class: a permutation for every patch.

    Args:
        key: fixes the permutations of a run.
        num_patches: 32, or 1 for the SingleColor control, whose patches are all alike.
        num_classes: at most the ten colours there are.

    Returns:
        `[patch, class]`, int32 places in `COLORS`.

    Raises:
        ValueError: for another number of patches, or classes that are not 1 to 10.
    """
    if num_patches not in (1, NUM_PATCHES):
        raise ValueError(
            f"num_patches is {NUM_PATCHES}, or 1 where all patches are alike; got"
            f" {num_patches}."
        )
    if not 1 <= num_classes <= len(COLORS):
        raise ValueError(
            f"num_classes must be 1 to {len(COLORS)}, one colour for each; got"
            f" {num_classes}."
        )
    keys = example_keys(key, jnp.arange(num_patches, dtype=jnp.int32))
    colors = jnp.arange(len(COLORS), dtype=jnp.int32)
    drawn = jax.vmap(lambda own: jax.random.permutation(own, colors))(keys)
    return drawn[:, :num_classes]


def patch_colors(
    key: jax.Array,
    labels: jax.Array,
    colors: jax.Array,
    agreement: float | jax.Array,
    *,
    positions: jax.Array | None = None,
) -> jax.Array:
    """The colour of every patch of every image: its class's, or any of the ten.

    A patch has the class's colour with probability `agreement`, else a colour drawn
    from all ten, so that it still agrees with probability a + (1 - a) / 10.

    Args:
        key: of the set of images. An image's draws are keyed by its position alone.
        labels: classes, integers `[batch]`.
        colors: `[patch, class]`, from `class_colors`.
        agreement: of all patches, or of each, `[patch]`; may be traced.
        positions: of the images in their set, `[batch]`; 0, 1, ... without.

    Returns:
        `[batch, patch]`, int32 places in `COLORS`.

    Raises:
        ValueError: if a shape does not fit, or an agreement that is known here is not
            in [0, 1].
    """
    labels = jnp.asarray(labels)
    if labels.ndim != 1 or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            "labels must be integers [batch]; got"
            f" {labels.dtype} of shape {labels.shape}."
        )
    if colors.ndim != 2:
        raise ValueError(f"colors must be [patch, class]; got shape {colors.shape}.")
    num_patches = colors.shape[0]
    if np.shape(agreement) not in ((), (num_patches,)):
        raise ValueError(
            f"agreement must be a number or [patch] with {num_patches} patches; got"
            f" shape {np.shape(agreement)}."
        )
    if not isinstance(agreement, jax.core.Tracer):
        known = np.asarray(agreement)
        if not ((known >= 0) & (known <= 1)).all():
            raise ValueError(f"agreement must lie in [0, 1]; got {agreement}.")
    if positions is None:
        positions = jnp.arange(labels.shape[0], dtype=jnp.int32)
    agreement = jnp.broadcast_to(jnp.asarray(agreement, jnp.float32), (num_patches,))

    def draw(own):
        keep_key, color_key = jax.random.split(own)
        uniform = jax.random.uniform(keep_key, (num_patches,))
        anything = jax.random.randint(color_key, (num_patches,), 0, len(COLORS))
        return uniform < agreement, anything

    keeps, anything = jax.vmap(draw)(example_keys(key, positions))
    return jnp.where(keeps, colors.T[wide_labels(labels)], anything)


def paint_border(centers: jax.Array, patch_colors: jax.Array) -> jax.Array:
    """Grey images with their patches around them, in three channels.

    Blocks count row by row without the middle one, and patches within a block row by
    row: patch 4 b + q is quarter q of block b.

    Args:
        centers: grey, in [0, 1], `[batch, side, side]` or `[batch, side, side, 1]`,
            `side` even.
        patch_colors: places in `COLORS`, `[batch, 32]`, or `[batch, 1]` for patches
            that are all alike.

    Returns:
        `[batch, 3 side, 3 side, 3]`, float32 in [0, 1].

    Raises:
        ValueError: if a shape does not fit.
    """
    centers, patch_colors = jnp.asarray(centers), jnp.asarray(patch_colors)
    if centers.ndim == 4 and centers.shape[-1] == 1:
        centers = centers[..., 0]
    side = centers.shape[1] if centers.ndim == 3 else 0
    if centers.ndim != 3 or centers.shape[2] != side or side % 2 or not side:
        raise ValueError(
            "centers must be grey images [batch, side, side] of an even side; got shape"
            f" {centers.shape}."
        )
    batch = centers.shape[0]
    if patch_colors.shape not in ((batch, NUM_PATCHES), (batch, 1)):
        raise ValueError(
            f"patch_colors must be [batch, {NUM_PATCHES}] or [batch, 1] with {batch}"
            f" images; got shape {patch_colors.shape}."
        )
    patch_colors = jnp.broadcast_to(patch_colors, (batch, NUM_PATCHES))
    # The middle block is black before the digit is added to it.
    black = jnp.full((batch, 1), list(COLORS).index("black"), patch_colors.dtype)
    cells = jnp.concatenate([patch_colors, black], axis=1)[:, _cells()]
    half = side // 2
    rgb = jnp.asarray(_RGB)[cells].reshape(batch, 6, 1, 6, 1, 3)
    canvas = jnp.broadcast_to(rgb, (batch, 6, half, 6, half, 3))
    canvas = canvas.reshape(batch, 3 * side, 3 * side, 3)
    middle = jnp.pad(centers.astype(jnp.float32), ((0, 0), (side, side), (side, side)))
    return canvas + middle[..., None]


@functools.cache
def _cells():
    """The patch of each of the 6 x 6 cells, row by row; 32 in the middle block."""
    cells = np.full((3, 2, 3, 2), NUM_PATCHES)
    blocks = [(i, j) for i in range(3) for j in range(3) if (i, j) != (1, 1)]
    for number, (i, j) in enumerate(blocks):
        cells[i, :, j, :] = 4 * number + np.arange(4).reshape(2, 2)
    return cells.reshape(-1)


def stage_agreement(
    stage: int, *, perfect: float = 1.0, other: float = 0.0
) -> np.ndarray:
    """Agreements `[32]` of the two-stage task: one half of the patches tells the class.

    Args:
        stage: 0 (patches 0 to 15 tell it) or 1 (16 to 31).
        perfect: agreement of that half.
        other: of the other half; 0 is a colour drawn at random.

    Raises:
        ValueError: if `stage` is neither 0 nor 1.
    """
    if stage not in (0, 1):
        raise ValueError(f"stage is 0 or 1; got {stage!r}.")
    first, second = (perfect, other) if stage == 0 else (other, perfect)
    return np.repeat(np.float32([first, second]), NUM_PATCHES // 2)


def multicolor(
    dataset: Dataset,
    *,
    seed: int = 0,
    train_agreement: float | np.ndarray = 1.0,
    test_agreement: float | np.ndarray = 0.3,
    num_patches: int = NUM_PATCHES,
) -> Dataset:
    """A grey data set with coloured patches around every image.

    Args:
        dataset: square grey images of an even side, at most ten classes.
        seed: of the permutations and of all draws; training and test images have
            draws of their own.
        train_agreement, test_agreement: as for `patch_colors`; the paper's p is 1 minus
            that of the test set.
        num_patches: 32, or 1 for the SingleColor control.

    Returns:
        Images `[example, 3 side, 3 side, 3]`, float32; labels and row numbers are kept.

    Raises:
        ValueError: as `class_colors`, `patch_colors` and `paint_border`.
    """
    key = jax.random.key(seed, impl="threefry2x32")
    color_key, *draw_keys = (jax.random.fold_in(key, i) for i in range(3))
    colors = _class_colors(
        color_key, num_patches=num_patches, num_classes=dataset.num_classes
    )
    parts = {}
    agreements = {"train": train_agreement, "test": test_agreement}
    for own, (part, agreement) in zip(draw_keys, agreements.items()):
        check = np.asarray(agreement, np.float32)
        if not ((check >= 0) & (check <= 1)).all():
            raise ValueError(f"{part}_agreement must lie in [0, 1]; got {agreement}.")
        images = getattr(dataset, f"x_{part}")
        labels = getattr(dataset, f"y_{part}")
        parts[f"x_{part}"] = np.asarray(_painted(own, images, labels, colors, check))
    return dataclasses.replace(dataset, name=f"multicolor_{dataset.name}", **parts)


_class_colors = jax.jit(class_colors, static_argnames=("num_patches", "num_classes"))


@jax.jit
def _painted(key, images, labels, colors, agreement):
    return paint_border(images, patch_colors(key, labels, colors, agreement))


def subsampled(dataset: Dataset, step: int = 2) -> Dataset:
    """Every `step`-th row and column of all images, from the first: 28 x 28 to 14 x 14.

    Raises:
        ValueError: if `step` is below 1.
    """
    if step < 1:
        raise ValueError(f"step must be at least 1; got {step}.")
    parts = {
        name: getattr(dataset, name)[:, ::step, ::step]
        for name in ("x_train", "x_test")
    }
    return dataclasses.replace(dataset, **parts)


def multicolor_digits(
    *,
    seed: int = 0,
    train_agreement: float | np.ndarray = 1.0,
    test_agreement: float | np.ndarray = 0.3,
    num_patches: int = NUM_PATCHES,
    test_size: int | float = 400,
    split_seed: int = 0,
) -> Dataset:
    """`multicolor` of scikit-learn's 8 x 8 digits: 24 x 24, 1,397 and 400 images.

    Args:
        seed, train_agreement, test_agreement, num_patches: as for `multicolor`.
        test_size, split_seed: as in `digits`.
    """
    return multicolor(
        digits(test_size=test_size, seed=split_seed),
        seed=seed,
        train_agreement=train_agreement,
        test_agreement=test_agreement,
        num_patches=num_patches,
    )


def multicolor_mnist(
    *,
    root: str | os.PathLike | None = None,
    seed: int = 0,
    train_agreement: float | np.ndarray = 1.0,
    test_agreement: float | np.ndarray = 0.3,
    num_patches: int = NUM_PATCHES,
) -> Dataset:
    """`multicolor` of MNIST, every second row and column: 42 x 42.

    Args:
        root: folder with MNIST's IDX files: the first 50,000 training images, and the
            last 10,000 of them as the test set, as in the paper's script. Without, the
            5,000 digits of `mnist5k`: 4,000 and 1,000.
        seed, train_agreement, test_agreement, num_patches: as for `multicolor`.

    Raises:
        FileNotFoundError, ValueError: as `mnist_idx`, or if there are not 60,000
            training images.
        ImportError: as `mnist5k`.
    """
    return multicolor(
        mnist_centers(root),
        seed=seed,
        train_agreement=train_agreement,
        test_agreement=test_agreement,
        num_patches=num_patches,
    )


def mnist_centers(root: str | os.PathLike | None = None) -> Dataset:
    """The grey 14 x 14 digits of `multicolor_mnist`, with its split."""
    if root is None:
        return subsampled(mnist5k())
    whole = mnist_idx(root)
    if len(whole.y_train) != 60_000:
        raise ValueError(
            "MultiColorMNIST takes 50,000 and 10,000 of MNIST's 60,000 training images;"
            f" there are {len(whole.y_train)} in {root}."
        )
    return subsampled(
        dataclasses.replace(
            whole,
            x_train=whole.x_train[:_MNIST_TRAIN],
            y_train=whole.y_train[:_MNIST_TRAIN],
            train_ids=whole.train_ids[:_MNIST_TRAIN],
            x_test=whole.x_train[_MNIST_TRAIN:],
            y_test=whole.y_train[_MNIST_TRAIN:],
            test_ids=whole.train_ids[_MNIST_TRAIN:],
        )
    )
