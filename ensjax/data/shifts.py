"""Test images made harder in a known way: rotation, noise, blur, contrast, by severity.

Nothing here is random beyond the key that is given, so a shifted test set is a function
of its arguments. Rotation is JAX code, the same that `random_rotation` trains with.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.data.augmentation import rotate_image


def rotate(
    images: np.ndarray | jax.Array, degrees: float, *, fill: float = 0.0
) -> jax.Array:
    """All images turned counter-clockwise by `degrees`, about their centres.

    Bilinear, with value `fill` outside the image; sign, centre and boundary rule are
    those of `rotate_image`: 0 is the identity and 90 is `np.rot90` for square images.

    Args:
        images: floating, `[batch, height, width, channel]`.

    Returns:
        The same shape.

    Raises:
        ValueError: if `images` is not 4-dimensional.

    Example:
        >>> image = np.float32([[1, 2], [3, 4]])[None, ..., None]
        >>> np.round(np.float64(rotate(image, 90.0)[0, ..., 0]), 3).tolist()
        [[2.0, 4.0], [1.0, 3.0]]
    """
    _check_images(images)
    return jax.vmap(lambda image: rotate_image(image, degrees, fill=fill))(
        jnp.asarray(images)
    )


def gaussian_noise(
    images: np.ndarray | jax.Array,
    sigma: float,
    key: jax.Array,
    *,
    value_range: tuple[float, float] | None = (0.0, 1.0),
) -> jax.Array:
    """Images plus independent Gaussian noise, clipped to `value_range`.

    Image i has the noise of `fold_in(key, i)`, whatever the other images are; the same
    key at another `sigma` gives the same pattern, scaled.

    Args:
        images: floating, `[batch, height, width, channel]`, in the same units as
            `sigma`.
        sigma: standard deviation before clipping, which lowers it near the ends.
        key: of the whole set.
        value_range: `(lowest, highest)` value of an image; None: nothing is clipped
            (for standardised images).

    Returns:
        The same shape.

    Raises:
        ValueError: if `images` is not 4-dimensional, or `sigma` is negative.
    """
    _check_images(images)
    if sigma < 0:
        raise ValueError(f"sigma must not be negative; got {sigma}.")
    images = jnp.asarray(images)
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(len(images)))
    shape, dtype = images.shape[1:], images.dtype
    noise = jax.vmap(lambda k: jax.random.normal(k, shape, dtype))(keys)
    noisy = images + sigma * noise
    if value_range is None:
        return noisy
    return jnp.clip(noisy, min=value_range[0], max=value_range[1])


def gaussian_blur(images: np.ndarray | jax.Array, sigma: float) -> jax.Array:
    """All images blurred by a Gaussian that is cut off at 4 `sigma`.

    Outside the image everything is 0 (scipy's `gaussian_filter(mode="constant")`).

    Args:
        images: floating, `[batch, height, width, channel]`.
        sigma: standard deviation in pixels; 0 is the identity.

    Returns:
        The same shape.

    Raises:
        ValueError: if `images` is not 4-dimensional, or `sigma` is negative.
    """
    _check_images(images)
    if sigma < 0:
        raise ValueError(f"sigma must not be negative; got {sigma}.")
    images = jnp.asarray(images)
    if sigma == 0:
        return images
    down, right = (
        jnp.asarray(_blur_weights(size, sigma), images.dtype)
        for size in images.shape[1:3]
    )
    return jnp.einsum(
        "ih,bhwc,jw->bijc", down, images, right, precision="highest", optimize=True
    )


def _blur_weights(size, sigma):
    """`[out, in]` of one axis."""
    reach = int(4 * sigma + 0.5)
    distance = np.arange(-reach, reach + 1)
    total = np.exp(-0.5 * (distance / sigma) ** 2).sum()
    between = np.abs(np.arange(size)[:, None] - np.arange(size)[None])
    weights = np.exp(-0.5 * (between / sigma) ** 2) / total
    return np.where(between <= reach, weights, 0.0)


def lower_contrast(images: np.ndarray | jax.Array, strength: float) -> jax.Array:
    """All images moved towards the mean of each of their channels.

        (1 - strength) image + strength mean

    Args:
        images: floating, `[batch, height, width, channel]`.
        strength: from 0, the identity, to 1, at which nothing is left to see.

    Returns:
        The same shape.

    Raises:
        ValueError: if `images` is not 4-dimensional, or `strength` is not in [0, 1].

    Source: Hendrycks and Dietterich 2019, arXiv:1903.12261 ("contrast").
    """
    _check_images(images)
    if not 0 <= strength <= 1:
        raise ValueError(f"strength must lie in [0, 1]; got {strength}.")
    images = jnp.asarray(images)
    mean = jnp.mean(images, axis=(1, 2), keepdims=True)
    return images + strength * (mean - images)


@dataclasses.dataclass(frozen=True)
class Shift:
    """A family of shifts of growing severity.

    Attributes:
        apply: `apply(images, severity, key) -> images`.
        severities: usual severities, from none (0) to hard.
        unit: what a severity is measured in.
    """

    apply: Callable[[jax.Array, float, jax.Array], jax.Array]
    severities: tuple[float, ...]
    unit: str


SHIFTS: dict[str, Shift] = {
    "rotation": Shift(
        apply=lambda images, severity, key: rotate(images, severity),
        severities=(0.0, 15.0, 30.0, 45.0, 60.0),
        unit="degrees",
    ),
    "noise": Shift(
        apply=gaussian_noise,
        severities=(0.0, 0.1, 0.2, 0.3, 0.5),
        unit="standard deviation, of pixels in [0, 1]",
    ),
    "blur": Shift(
        apply=lambda images, severity, key: gaussian_blur(images, severity),
        severities=(0.0, 0.5, 1.0, 1.5, 2.0),
        unit="standard deviation, in pixels",
    ),
    "contrast": Shift(
        apply=lambda images, severity, key: lower_contrast(images, severity),
        severities=(0.0, 0.2, 0.4, 0.6, 0.8),
        unit="share of the way to the image's mean",
    ),
}


def apply_shift(
    images: np.ndarray | jax.Array, name: str, severity: float, key: jax.Array
) -> jax.Array:
    """Images `[batch, height, width, channel]` in [0, 1], shifted by `SHIFTS[name]`.

    Raises:
        ValueError: if no shift has that name; the message lists those that exist.

    Example:
        >>> images, key = np.zeros((2, 8, 8, 1), np.float32), jax.random.key(0)
        >>> for severity in SHIFTS["noise"].severities:
        ...     shifted = apply_shift(images, "noise", severity, key)
    """
    if name not in SHIFTS:
        raise ValueError(
            f"no shift is called {name!r}; known: {', '.join(sorted(SHIFTS))}."
        )
    return SHIFTS[name].apply(images, severity, key)


def _check_images(images):
    if images.ndim != 4:
        raise ValueError(
            f"images must be [batch, height, width, channel]; got shape {images.shape}."
        )
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise TypeError(
            f"images must be floating; got {images.dtype}. Scale them first:"
            " x.astype('float32') / 255."
        )
