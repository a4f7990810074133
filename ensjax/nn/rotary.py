"""Rotary positions: queries and keys turned by angles that grow with the position."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class LinearScaling:
    """All frequencies divided by `factor`, for sequences that much longer.

    Source: Chen et al. 2023, arXiv:2306.15595, equation 4.
    """

    factor: float

    def __call__(self, frequencies: np.ndarray) -> np.ndarray:
        """The scaled frequencies, of the same shape."""
        return frequencies / self.factor


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
    """Slow rotations divided by `factor`, fast ones kept, and a ramp between them.

    With r = original_tokens / wavelength, the number of turns over the sequences that
    the model was first trained on:

        s = clip((r - low) / (high - low), 0, 1),   f' = (1 - s) f / factor + s f

    Attributes:
        factor: how much longer sequences are.
        low, high: turns below which a rotation is slow, and above which it is fast.
        original_tokens: length of the first sequences.

    Source: Llama Team 2024, arXiv:2407.21783, section 3.4.2, trains on longer sequences
    in stages; the ramp is that of the published model code.
    """

    factor: float = 8.0
    low: float = 1.0
    high: float = 4.0
    original_tokens: int = 8192

    def __post_init__(self):
        if not 0 < self.low < self.high:
            raise ValueError(
                f"0 < low < high must hold; got {self.low} and {self.high}."
            )

    def __call__(self, frequencies: np.ndarray) -> np.ndarray:
        """The scaled frequencies, of the same shape."""
        turns = self.original_tokens * frequencies / (2 * np.pi)
        kept = np.clip((turns - self.low) / (self.high - self.low), 0.0, 1.0)
        return (1 - kept) * frequencies / self.factor + kept * frequencies


Scaling = LinearScaling | Llama3Scaling


def rotary_angles(
    num_tokens: int,
    head_width: int,
    *,
    theta: float = 10_000.0,
    scaling: Scaling | None = None,
) -> jax.Array:
    """Angles by which the channels of each position are turned.

        angle[t, i] = t f_i,   f_i = theta^(-2 i / head_width)

    Args:
        num_tokens: positions 0, 1, ...; only differences matter to attention.
        head_width: channels of a head, even.
        theta: base of the wavelengths.
        scaling: what is done to the frequencies f.

    Returns:
        `[token, head_width / 2]`, in radians, float32.

    Raises:
        ValueError: if `head_width` is odd.

    Source: Su et al. 2021, arXiv:2104.09864, equation 15 and section 3.3.
    """
    if head_width % 2:
        raise ValueError(f"rotary positions need an even head width; got {head_width}.")
    frequencies = theta ** -(np.arange(0, head_width, 2) / head_width)
    if scaling is not None:
        frequencies = scaling(frequencies)
    positions = jnp.arange(num_tokens, dtype=jnp.float32)
    return positions[:, None] * jnp.asarray(frequencies, jnp.float32)[None]


def rotate(x: jax.Array, angles: jax.Array) -> jax.Array:
    """Turns channel i together with channel i + width / 2 of every head.

    The paper turns neighbours (2 i, 2 i + 1); published checkpoints in the Hugging
    Face format have their channels in the order that fits these halves.

    Args:
        x: `[batch, token, head, channel]`.
        angles: `[token, channel / 2]`, in radians.

    Returns:
        As `x`; computed in float32.
    """
    cos, sin = jnp.cos(angles)[None, :, None], jnp.sin(angles)[None, :, None]
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    first, second = jnp.split(wide, 2, axis=-1)
    turned = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)
