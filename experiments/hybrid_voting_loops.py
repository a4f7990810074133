"""The features of `hybrid_voting_features.py` again, as loops from their definitions.

A check of every run: both must agree to 1e-9.
"""

import math

import numpy as np

DIRECTIONS = ((0, 1), (1, 1), (1, 0), (1, -1))


def co_occurrence(levels, num_levels: int) -> np.ndarray:
    """Pairs of pixels one by one, both ways."""
    height, width = levels.shape
    counts = np.zeros((num_levels, num_levels))
    for row in range(height):
        for column in range(width):
            for down, right in DIRECTIONS:
                other = row + down, column + right
                if 0 <= other[0] < height and 0 <= other[1] < width:
                    counts[levels[row, column], levels[other]] += 1
                    counts[levels[other], levels[row, column]] += 1
    if counts.sum() == 0:
        counts[levels[0, 0], levels[0, 0]] = 1
    return counts / counts.sum()


def texture_features(image, num_levels: int = 16) -> list[float]:
    """The thirteen features, each a sum over entries or pixels."""
    levels = np.array(
        [[min(max(math.floor(v * num_levels), 0), num_levels - 1) for v in row]
         for row in image]
    )  # fmt: skip
    pairs = co_occurrence(levels, num_levels)
    entries = [
        (i, j, pairs[i, j]) for i in range(num_levels) for j in range(num_levels)
    ]
    mean_i = sum(i * p for i, _, p in entries)
    mean_j = sum(j * p for _, j, p in entries)
    sd_i = math.sqrt(sum((i - mean_i) ** 2 * p for i, _, p in entries))
    sd_j = math.sqrt(sum((j - mean_j) ** 2 * p for _, j, p in entries))
    covariance = sum((i - mean_i) * (j - mean_j) * p for i, j, p in entries)
    pixels = [float(v) for row in image for v in row]
    number = len(pixels)
    mean = math.fsum(pixels) / number
    moments = [math.fsum((v - mean) ** k for v in pixels) / number for k in (2, 3, 4)]
    variance = moments[0]
    flat = variance <= 1e-24
    counts = [int((levels == level).sum()) for level in range(num_levels)]
    return [
        sum((i - j) ** 2 * p for i, j, p in entries),
        covariance / (sd_i * sd_j) if sd_i * sd_j > 1e-12 else 1.0,
        sum(p * p for _, _, p in entries),
        sum(p / (1 + abs(i - j)) for i, j, p in entries),
        mean,
        math.sqrt(variance),
        -sum(c / number * math.log2(c / number) for c in counts if c),
        math.sqrt(math.fsum(v * v for v in pixels) / number),
        variance,
        1 - 1 / (1 + variance),
        0.0 if flat else moments[2] / variance**2,
        0.0 if flat else moments[1] / variance**1.5,
        sum(p / (1 + (i - j) ** 2) for i, j, p in entries),
    ]


def wavelet_features(image, num_scales: int = 2) -> list[float]:
    """Mean and spread of the energy of each band, from sums of four pixels each."""
    low = [[float(v) for v in row] for row in image]
    height, width = len(low), len(low[0])
    features = []
    for scale in range(num_scales):
        step, bands = 2**scale, []
        for down in (1, -1):
            for right in (1, -1):
                band = []
                for r in range(height):
                    below = low[(r + step) % height]
                    band.append(
                        [
                            (
                                low[r][c]
                                + down * below[c]
                                + right * low[r][(c + step) % width]
                                + down * right * below[(c + step) % width]
                            )
                            / 2
                            for c in range(width)
                        ]
                    )
                energy = [v * v for row in band for v in row]
                mean = math.fsum(energy) / len(energy)
                spread = math.fsum((e - mean) ** 2 for e in energy) / len(energy)
                features += [mean, math.sqrt(spread)]
                bands.append(band)
        low = bands[0]
    return features


def otsu_spread(values, threshold: float) -> float:
    """w0 w1 (mu0 - mu1)^2 of values at or below a threshold, and above."""
    below = [v for v in values if v <= threshold]
    above = [v for v in values if v > threshold]
    if not below or not above:
        return 0.0
    gap = math.fsum(below) / len(below) - math.fsum(above) / len(above)
    return len(below) * len(above) * gap**2
