"""Phantoms of `hybrid_voting.py`: a brain with one tumour, and its segmentation.

A phantom is an ellipse with smooth texture and one brighter blob whose boundary waves;
malignant ones wave more and are rougher inside, but the two kinds overlap. Otsu's
threshold *inside* the brain finds the blob.
"""

from typing import NamedTuple

import numpy as np
from scipy import ndimage

SIZE = 64
BRAIN_LEVEL, BRAIN_TEXTURE = 0.42, 0.05
BLUR, NOISE = 0.7, 0.02
RADIUS = (5.0, 9.0)
WAVES = np.arange(2, 7)
# Of benign and malignant blobs: how much the boundary waves, and the texture inside.
WAVINESS = ((0.0, 0.12), (0.06, 0.22))
TEXTURE = ((0.02, 0.055), (0.035, 0.09))
BRAIN_EDGE, ERODE = 0.15, 2  # the brain is brighter than it; pixels taken off its rim


class Phantoms(NamedTuple):
    """Images `[image, 64, 64]` in about 0 to 1, true masks, and kinds (1 malignant)."""

    images: np.ndarray
    masks: np.ndarray
    labels: np.ndarray


def make_phantoms(num_images: int, level: tuple[float, float], rng) -> Phantoms:
    """Phantoms, half of them malignant, with blobs of a grey level in `level`."""
    labels = rng.permutation(np.arange(num_images) % 2)
    pairs = [make_phantom(kind, level, rng) for kind in labels]
    images, masks = (np.stack(part) for part in zip(*pairs))
    return Phantoms(images, masks, labels)


def make_phantom(kind: int, level, rng) -> tuple[np.ndarray, np.ndarray]:
    """One image and the mask of its blob."""
    y, x = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
    axes = rng.uniform(24, 29, size=2)
    brain = (x / axes[0]) ** 2 + (y / axes[1]) ** 2 <= 1
    image = np.where(brain, BRAIN_LEVEL + BRAIN_TEXTURE * _smooth(rng, 3.0), 0.0)
    # The blob's largest reach stays inside the brain.
    radius = rng.uniform(*RADIUS)
    away, angle = rng.uniform(0, 10), rng.uniform(0, 2 * np.pi)
    dx, dy = x - away * np.cos(angle), y - away * np.sin(angle)
    around, phases = np.arctan2(dy, dx), rng.uniform(0, 2 * np.pi, size=len(WAVES))
    waves = np.cos(around[..., None] * WAVES + phases).sum(axis=-1)
    edge = radius * (1 + rng.uniform(*WAVINESS[kind]) * waves)
    mask = (np.hypot(dx, dy) <= edge) & brain
    texture = rng.uniform(*TEXTURE[kind]) * _smooth(rng, 1.0)
    image = np.where(mask, rng.uniform(*level) + texture, image)
    image = ndimage.gaussian_filter(image, BLUR)
    return image + NOISE * rng.normal(size=image.shape), mask


def _smooth(rng, sigma):
    """A smooth random field of mean 0 and standard deviation 1."""
    field = ndimage.gaussian_filter(rng.normal(size=(SIZE, SIZE)), sigma)
    return (field - field.mean()) / field.std()


def otsu_threshold(values: np.ndarray, num_levels: int = 256) -> float:
    """Otsu's threshold: the cut of a grey histogram with the largest spread between.

        t = argmax_t w0(t) w1(t) (mu0(t) - mu1(t))^2

    Args:
        values: any shape. More than `num_levels` different ones are counted in so many
            equal bins over their range.
        num_levels: number of bins.

    Returns:
        The first best cut; values above it are the upper class. Where all values are
        equal, that value.

    Source: Otsu 1979.
    """
    values = np.asarray(values, float).reshape(-1)
    levels, counts = np.unique(values, return_counts=True)
    if len(levels) == 1:
        return float(levels[0])
    cuts = levels[:-1]
    if len(levels) > num_levels:
        counts, edges = np.histogram(values, num_levels)
        levels, cuts = (edges[1:] + edges[:-1]) / 2, edges[1:-1]
    below = np.cumsum(counts)[:-1]
    above = counts.sum() - below
    total = np.cumsum(counts * levels)
    with np.errstate(invalid="ignore", divide="ignore"):
        gap = total[:-1] / below - (total[-1] - total[:-1]) / above
        between = below * above * gap**2
    return float(cuts[np.argmax(np.nan_to_num(between))])


def segment(image: np.ndarray) -> np.ndarray:
    """The tumour's mask: Otsu inside the brain, opened, its largest part, filled."""
    brain = ndimage.binary_fill_holes(image > BRAIN_EDGE)
    brain = ndimage.binary_erosion(brain, iterations=ERODE)
    if not brain.any():
        return brain
    mask = brain & (image > otsu_threshold(image[brain]))
    mask = ndimage.binary_opening(mask)
    parts, number = ndimage.label(mask)
    if not number:
        return mask
    sizes = np.bincount(parts.reshape(-1))[1:]
    return ndimage.binary_fill_holes(parts == 1 + np.argmax(sizes))


def compare_areas(masks: np.ndarray, found: np.ndarray) -> dict[str, np.ndarray]:
    """Relative area error and Dice overlap of each image, and both areas in pixels."""
    axes = (-2, -1)
    true, area = masks.sum(axis=axes), found.sum(axis=axes)
    both = (masks & found).sum(axis=axes)
    return {
        "true_area": true,
        "area": area,
        "error": np.abs(area - true) / true,
        "dice": 2 * both / (true + area),
    }
