"""Features of `hybrid_voting.py`: grey-level co-occurrence, histogram, Haar wavelets.

In float64 NumPy: they are small, and moments of a few hundred pixels need the digits.
`hybrid_voting_loops.py` has each of them as a loop from its definition.
"""

import numpy as np

NUM_LEVELS = 16
OFFSETS = ((0, 1), (1, 1), (1, 0), (1, -1))  # four directions, one pixel away
TEXTURE_NAMES = (
    "contrast",
    "correlation",
    "energy",
    "homogeneity",
    "mean",
    "standard deviation",
    "entropy",
    "RMS",
    "variance",
    "smoothness",
    "kurtosis",
    "skewness",
    "inverse difference moment",
)
# Ten of the thirteen leave room for three wavelet components: these are functions of
# mean and standard deviation.
REDUNDANT = ("RMS", "variance", "smoothness")
NUM_SCALES = 2


def grey_levels(image: np.ndarray) -> np.ndarray:
    """Pixels of 0 to 1 as integers from 0 to 15; what lies outside is clipped."""
    levels = np.floor(np.asarray(image, float) * NUM_LEVELS).astype(int)
    return np.clip(levels, 0, NUM_LEVELS - 1)


def co_occurrence(levels: np.ndarray) -> np.ndarray:
    """How often two levels are neighbours, `[level, level]`; symmetric, sums to 1.

    Over four directions one pixel apart, each pair counted both ways. Without any pair
    (one pixel) everything is on the diagonal entry of the first pixel.
    """
    height, width = levels.shape
    counts = np.zeros((NUM_LEVELS, NUM_LEVELS))
    for down, right in OFFSETS:
        rows = slice(0, height - down)
        first = levels[rows, max(0, -right) : width - max(0, right)]
        second = levels[down:, max(0, right) : width - max(0, -right)]
        np.add.at(counts, (first.reshape(-1), second.reshape(-1)), 1.0)
    counts += counts.T
    if not counts.sum():
        counts[levels[0, 0], levels[0, 0]] = 1.0
    return counts / counts.sum()


def texture_features(image: np.ndarray) -> np.ndarray:
    """The thirteen features of `TEXTURE_NAMES` of a grey image.

    Correlation of a constant image is 1, and skewness and kurtosis of one are 0: 0 / 0
    otherwise. Kurtosis is the fourth standardised moment, 3 for a Gaussian.
    """
    levels = grey_levels(image)
    pairs = co_occurrence(levels)
    i, j = np.indices(pairs.shape)
    mean_i, mean_j = (i * pairs).sum(), (j * pairs).sum()
    sd_i = np.sqrt(((i - mean_i) ** 2 * pairs).sum())
    sd_j = np.sqrt(((j - mean_j) ** 2 * pairs).sum())
    product = sd_i * sd_j
    covariance = ((i - mean_i) * (j - mean_j) * pairs).sum()
    pixels = np.asarray(image, float).reshape(-1)
    shares = np.bincount(levels.reshape(-1), minlength=NUM_LEVELS) / levels.size
    shares = shares[shares > 0]
    mean, variance = pixels.mean(), pixels.var()
    away = pixels - mean
    is_flat = variance <= 1e-24
    return np.array(
        [
            ((i - j) ** 2 * pairs).sum(),
            covariance / product if product > 1e-12 else 1.0,
            (pairs**2).sum(),
            (pairs / (1 + np.abs(i - j))).sum(),
            mean,
            np.sqrt(variance),
            -(shares * np.log2(shares)).sum(),
            np.sqrt((pixels**2).mean()),
            variance,
            1 - 1 / (1 + variance),
            0.0 if is_flat else (away**4).mean() / variance**2,
            0.0 if is_flat else (away**3).mean() / variance**1.5,
            (pairs / (1 + (i - j) ** 2)).sum(),
        ]
    )


def haar_bands(image: np.ndarray) -> np.ndarray:
    """Stationary (undecimated) Haar transform, `[scale, band, row, column]`.

    Every scale filters the low band of the one before, along rows and columns, by
    (x_n + x_{n + s}) / sqrt 2 and (x_n - x_{n + s}) / sqrt 2 with s = 1, 2, ..., and
    wraps around at the borders. Bands are LL, LH, HL, HH: the first letter filters the
    rows' direction (down), the second the columns'.
    """
    low, bands = np.asarray(image, float), []
    for scale in range(NUM_SCALES):
        step = 2**scale
        found = []
        for down in (1, -1):
            half = (low + down * np.roll(low, -step, axis=0)) / np.sqrt(2)
            for right in (1, -1):
                rolled = np.roll(half, -step, axis=1)
                found.append((half + right * rolled) / np.sqrt(2))
        bands.append(found)
        low = found[0]
    return np.asarray(bands)


def wavelet_features(image: np.ndarray) -> np.ndarray:
    """Mean and standard deviation of the energy of each band, `[2 * 4 * scales]`."""
    energy = haar_bands(image) ** 2
    axes = (-2, -1)
    moments = np.stack([energy.mean(axis=axes), energy.std(axis=axes)], axis=-1)
    return moments.reshape(-1)


def tumour_crop(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The smallest box around the mask, 0 outside of it; the image if it is empty."""
    if not mask.any():
        return image
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    return np.where(mask, image, 0.0)[box]


def image_features(
    images: np.ndarray, masks: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Texture `[image, 13]` and wavelet features `[image, 16]` of segmented images.

    Texture is that of the box around the tumour, wavelets those of the whole image with
    0 outside of the tumour.
    """
    texture = [texture_features(tumour_crop(x, m)) for x, m in zip(images, masks)]
    wavelets = [wavelet_features(np.where(m, x, 0.0)) for x, m in zip(images, masks)]
    return np.asarray(texture), np.asarray(wavelets)
