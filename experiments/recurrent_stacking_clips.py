"""Clips of `recurrent_stacking.py`: digits that move rigidly or bend, or features.

An attack is a picture that is carried about: all of it moves by one random walk. What
lives bends: stretch and shear follow random walks whose pixels move as far. Four
domains differ in noise and contrast, and no source image is in two of them, or in two
of training, development and test.
"""

from typing import NamedTuple

import numpy as np

from ensjax.experiment import ConfigError

TRAIN, DEVELOPMENT, TEST = 0, 1, 2
_FIELDS = ("x", "lengths", "is_live", "domain", "part")


class Clips(NamedTuple):
    """All clips of all seeds; rows are laid out alike in every seed.

    Attributes:
        x: `[source, row, frame, feature]`, float32; one source for each seed, or one
            for all.
        lengths: `[row]`, or None where all clips have all frames.
        is_live: `[row]`, int32.
        domain: `[row]`, from 0.
        part: `[row]`: 0 training, 1 development, 2 test.
    """

    x: np.ndarray
    lengths: np.ndarray | None
    is_live: np.ndarray
    domain: np.ndarray
    part: np.ndarray

    def inputs(self, seed: int, skip: int, frames: int) -> np.ndarray:
        """Every `skip`-th frame of a seed's clips, `[row, frame, feature]`."""
        return self.x[seed % len(self.x), :, ::skip][:, :frames]

    def rows(self, part: int, left_out: int) -> np.ndarray:
        """Rows of a part: for the test of the domain left out, else of the others."""
        is_out = self.domain == left_out
        chosen = is_out if part == TEST else ~is_out
        return np.flatnonzero((self.part == part) & chosen)


def load_clips(config) -> Clips:
    """The clips of a config.

    Raises:
        ConfigError: if the features cannot be read.
    """
    if config.data.name == "features":
        return _read_features(config.data.path)
    from ensjax.data import digits

    dataset = digits()
    images = np.concatenate([dataset.x_train, dataset.x_test])[..., 0]
    return simulate(config, images)


def simulate(config, images: np.ndarray) -> Clips:
    """Animated clips of `images [image, 8, 8]` in [0, 1]."""
    counts = (config.data.num_train, config.data.num_dev, config.data.num_test)
    domains = range(len(config.data.noise_sd))
    per_domain = sum(counts)
    is_live = np.tile(np.arange(per_domain) % 2, len(domains)).astype(np.int32)
    x = np.stack(
        [
            _simulate_seed(config, images, counts, seed)
            for seed in range(config.num_seeds)
        ]
    )
    return Clips(
        x=x,
        lengths=None,
        is_live=is_live,
        domain=np.repeat(np.arange(len(domains)), per_domain),
        part=np.tile(np.repeat(np.arange(3), counts), len(domains)),
    )


def _simulate_seed(config, images, counts, seed):
    rng = np.random.default_rng([config.seed, seed])
    data = config.data
    pools = np.array_split(rng.permutation(len(images)), len(data.noise_sd))
    clips = []
    for pool, noise, contrast in zip(pools, data.noise_sd, data.contrast):
        ends = np.cumsum(counts) / sum(counts) * len(pool)
        parts = np.split(pool, ends[:-1].astype(int))
        chosen = [rng.choice(p, n) for p, n in zip(parts, counts, strict=True)]
        chosen = np.concatenate(chosen)
        is_live = np.arange(len(chosen)) % 2 == 1
        frames = animate(
            rng, images[chosen], is_live, data.num_frames, walk_sd=data.walk_sd
        )
        frames = contrast * frames + noise * rng.normal(size=frames.shape)
        clips.append(frames.reshape(*frames.shape[:2], -1).astype(np.float32))
    return np.concatenate(clips)


def animate(rng, images, is_live, num_frames, *, walk_sd):
    """Frames `[clip, frame, height, width]` of images `[clip, height, width]`.

    Frame 0 is the image. Both kinds of motion move a pixel by the same root mean
    square over the image, `walk_sd` half-widths a frame in each direction.
    """
    clips, height, width = images.shape
    v, u = np.meshgrid(
        np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij"
    )
    steps = rng.normal(size=(clips, num_frames, 4)) * walk_sd
    steps[:, 0] = 0
    walk = np.cumsum(steps, axis=1)[..., None, None]  # [clip, frame, 4, 1, 1]
    # A shear or stretch moves a pixel in proportion to its place.
    size = np.sqrt(np.mean(u**2) + np.mean(v**2))
    bend = walk / size
    live_u = bend[:, :, 0] * u + bend[:, :, 1] * v
    live_v = bend[:, :, 2] * u + bend[:, :, 3] * v
    live = is_live[:, None, None, None]
    moved_u = u + np.where(live, live_u, walk[:, :, 0])
    moved_v = v + np.where(live, live_v, walk[:, :, 1])
    return _sample(
        images, (moved_v + 1) / 2 * (height - 1), (moved_u + 1) / 2 * (width - 1)
    )


def _sample(images, y, x):
    """Bilinear values at coordinates `[clip, frame, height, width]`; 0 outside."""
    clips, height, width = images.shape
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)))
    y, x = np.clip(y + 1, 0, height + 1), np.clip(x + 1, 0, width + 1)
    top, left = (np.minimum(np.floor(a), n) for a, n in ((y, height), (x, width)))
    top, left = top.astype(int), left.astype(int)
    down, right = y - top, x - left
    clip = np.arange(clips)[:, None, None, None]
    return (
        padded[clip, top, left] * (1 - down) * (1 - right)
        + padded[clip, top, left + 1] * (1 - down) * right
        + padded[clip, top + 1, left] * down * (1 - right)
        + padded[clip, top + 1, left + 1] * down * right
    )


def _read_features(path):
    wanted = (
        "config.data.path must name an .npz of frozen features of licensed face videos"
        f" (OULU-NPU, CASIA-MFSD, Replay-Attack, MSU-MFSD) with {', '.join(_FIELDS)}"
    )
    if not path:
        raise ConfigError(f"{wanted}; it is empty.")
    try:
        with np.load(path, allow_pickle=False) as file:
            x, lengths, is_live, domain, part = (file[name] for name in _FIELDS)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{wanted}; {path}: {error}.") from error
    rows = x.shape[:1]
    if x.ndim != 3 or any(a.shape != rows for a in (lengths, is_live, domain, part)):
        raise ConfigError(
            f"{wanted}: x [video, step, feature], the others [video]; got x {x.shape}."
        )
    return Clips(
        x[None].astype(np.float32),
        lengths.astype(np.int32),
        is_live.astype(np.int32),
        domain.astype(np.int32),
        part.astype(np.int32),
    )
