"""Random changes of one training image, drawn inside the compiled program.

    augment = augment_images(random_crop(padding=4), random_flip())
    ensjax.fit(ensemble, (x, y), augment=augment, ...)

A transform takes `(key, image)` and returns an image of the same shape; it sees one
image `[height, width, channel]` of one member, and the engine maps it. Transforms are
compared and hashed by their values: building the same one again does not compile again.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Transform:
    """A random function of one image together with its settings, equal by value.

    Attributes:
        function: a module-level `function(key, image, **settings) -> image`.
        settings: its keyword arguments as `((name, value), ...)`.
    """

    function: Callable[..., jax.Array]
    settings: tuple[tuple[str, float], ...] = ()

    def __call__(self, key: jax.Array, image: jax.Array) -> jax.Array:
        return self.function(key, image, **dict(self.settings))

    def __repr__(self):
        settings = ", ".join(f"{name}={value!r}" for name, value in self.settings)
        return f"{self.function.__name__.lstrip('_')}({settings})"


@dataclasses.dataclass(frozen=True)
class Compose:
    """Transforms applied in order; number i has the key `fold_in(key, i)`."""

    transforms: tuple[Callable[[jax.Array, jax.Array], jax.Array], ...]

    def __call__(self, key: jax.Array, image: jax.Array) -> jax.Array:
        for i, transform in enumerate(self.transforms):
            image = transform(jax.random.fold_in(key, i), image)
        return image


@dataclasses.dataclass(frozen=True)
class AugmentImages:
    """`augment(key, example) -> example` that changes the image and nothing else.

    Attributes:
        transforms: applied to the image.
        image_name: key of the image where the example is a dict.
    """

    transforms: Compose
    image_name: str = "image"

    def __call__(self, key: jax.Array, example: Any) -> Any:
        """The example with its image changed.

        Args:
            key: unique to the member, the example's position in the batch and the step.
            example: a tuple or list whose first item is the image, a dict that holds it
                as `image_name`, or the image itself; `[height, width, channel]`.

        Raises:
            ValueError: if there is no image where it should be, or it is not
                `[height, width, channel]`.
        """
        if isinstance(example, dict):
            if self.image_name not in example:
                raise ValueError(
                    f"the example must hold {self.image_name!r}; it holds"
                    f" {sorted(example)}. Name the image leaf with image_name=."
                )
            image = self._transformed(key, example[self.image_name])
            return {**example, self.image_name: image}
        if isinstance(example, (tuple, list)):
            first, *others = example
            items = (self._transformed(key, first), *others)
            is_named = hasattr(example, "_fields")
            return type(example)(*items) if is_named else type(example)(items)
        return self._transformed(key, example)

    def _transformed(self, key, image):
        if jnp.ndim(image) != 3:
            raise ValueError(
                "augment sees one image, [height, width, channel]; got shape"
                f" {jnp.shape(image)}. Grey images take a channel axis: x[..., None]."
            )
        return self.transforms(key, image)


def compose(*transforms: Callable[[jax.Array, jax.Array], jax.Array]) -> Compose:
    """One transform that applies several, from left to right."""
    return Compose(transforms)


def augment_images(
    *transforms: Callable[[jax.Array, jax.Array], jax.Array], image_name: str = "image"
) -> AugmentImages:
    """The `augment=` argument of `fit` for images.

    Example:
        >>> augment = augment_images(random_crop(padding=4), random_flip())
        >>> image, label = augment(jax.random.key(0), (jnp.ones((8, 8, 1)), 3))
    """
    return AugmentImages(compose(*transforms), image_name)


def random_crop(padding: int = 4, *, fill: float = 0.0) -> Transform:
    """Pads all four sides by `padding`, then cuts the image's size at a random place.

    All `(2 padding + 1)^2` places are equally likely. What is padded has value `fill`.

    Raises:
        ValueError: if `padding` is negative.

    Source: the CIFAR recipe of He et al. 2016, arXiv:1512.03385, section 4.2.
    """
    if padding < 0:
        raise ValueError(f"padding must not be negative; got {padding}.")
    return Transform(_random_crop, (("padding", padding), ("fill", fill)))


def random_flip() -> Transform:
    """Mirrors left and right with probability 1/2."""
    return Transform(_random_flip)


def random_rotation(max_degrees: float, *, fill: float = 0.0) -> Transform:
    """Rotates by a uniform angle in [-max_degrees, max_degrees], as `rotate_image`.

    Raises:
        ValueError: if `max_degrees` is negative.
    """
    if max_degrees < 0:
        raise ValueError(f"max_degrees must not be negative; got {max_degrees}.")
    return Transform(_random_rotation, (("max_degrees", max_degrees), ("fill", fill)))


def random_noise(sigma: float) -> Transform:
    """Adds Gaussian noise of standard deviation `sigma`; nothing is clipped.

    Raises:
        ValueError: if `sigma` is negative.
    """
    if sigma < 0:
        raise ValueError(f"sigma must not be negative; got {sigma}.")
    return Transform(_random_noise, (("sigma", sigma),))


def rotate_image(
    image: jax.Array, degrees: float | jax.Array, *, fill: float = 0.0
) -> jax.Array:
    """One image turned counter-clockwise about its centre, bilinearly interpolated.

    Counter-clockwise as displayed, with row 0 on top: 90 degrees is `np.rot90` for
    square images. The centre is `((height - 1) / 2, (width - 1) / 2)`. Outside the
    image everything has value `fill`, and the border is interpolated towards it
    (scipy's `mode="grid-constant"`).

    Args:
        image: floating, `[height, width, channel]`.
        degrees: scalar; may be traced.
        fill: value outside the image.

    Returns:
        `[height, width, channel]`.

    Raises:
        ValueError: if `image` is not 3-dimensional.
        TypeError: if it is not floating.
    """
    if image.ndim != 3:
        raise ValueError(
            f"image must be [height, width, channel]; got shape {image.shape}."
        )
    _check_floating(image)
    height, width, _ = image.shape
    angle = jnp.deg2rad(jnp.asarray(degrees, jnp.float32))
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    down = jnp.arange(height, dtype=jnp.float32)[:, None] - (height - 1) / 2
    right = jnp.arange(width, dtype=jnp.float32)[None, :] - (width - 1) / 2
    # Where each output pixel comes from: the inverse rotation.
    source_y = cosine * down + sine * right + (height - 1) / 2  # [height, width]
    source_x = cosine * right - sine * down + (width - 1) / 2
    top, left = jnp.floor(source_y), jnp.floor(source_x)
    weight_y, weight_x = source_y - top, source_x - left

    def neighbour(row, column, weight):
        row, column = row.astype(jnp.int32), column.astype(jnp.int32)
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        row = jnp.clip(row, min=0, max=height - 1)
        column = jnp.clip(column, min=0, max=width - 1)
        pixels = image.at[row, column].get(mode="promise_in_bounds")
        pixels = jnp.where(inside[..., None], pixels, jnp.asarray(fill, image.dtype))
        return weight[..., None].astype(image.dtype) * pixels

    return (
        neighbour(top, left, (1 - weight_y) * (1 - weight_x))
        + neighbour(top, left + 1, (1 - weight_y) * weight_x)
        + neighbour(top + 1, left, weight_y * (1 - weight_x))
        + neighbour(top + 1, left + 1, weight_y * weight_x)
    )


def _random_crop(key, image, *, padding, fill):
    width = ((padding, padding), (padding, padding), (0, 0))
    padded = jnp.pad(image, width, constant_values=fill)
    down, right = jax.random.randint(key, (2,), 0, 2 * padding + 1)
    # A slice, not a gather of indices: contiguous rows also under vmap.
    return jax.lax.dynamic_slice(padded, (down, right, 0), image.shape)


def _random_flip(key, image):
    return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)


def _random_rotation(key, image, *, max_degrees, fill):
    degrees = jax.random.uniform(key, minval=-max_degrees, maxval=max_degrees)
    return rotate_image(image, degrees, fill=fill)


def _random_noise(key, image, *, sigma):
    _check_floating(image)
    return image + sigma * jax.random.normal(key, image.shape, image.dtype)


def _check_floating(image):
    if not jnp.issubdtype(image.dtype, jnp.floating):
        raise TypeError(
            f"image must be floating; got {image.dtype}. Scale it first:"
            " x.astype('float32') / 255."
        )
