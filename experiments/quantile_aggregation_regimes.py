"""The two-regime task of `quantile_aggregation.py`: each base model knows one half.

    y = sin 2 x2 + x3 / 2 + s(x4) e,   s = 0.3, and 0.6 where x4 > 0;   x, e normal

Model A is exact where x1 < 0 and blind to x2 elsewhere, B the mirror image; C is the
linear model with the noise that it leaves.
"""

import numpy as np

from ensjax.experiment.fields import load_beside

base = load_beside(__file__, "quantile_aggregation_base")
rows = load_beside(__file__, "quantile_aggregation_rows")

NAMES = ("left", "right", "wide_linear")


def make_split(config, seed: int):
    """A `Split` of new rows, the base quantiles by part, and the true ones."""
    settings = config.two_regimes
    rng = np.random.default_rng([config.seed, seed, 23])
    sizes = (settings.num_train, settings.num_validation, settings.num_test)
    count = sum(sizes)
    x = rng.normal(size=(count, 4))
    centre = np.sin(2 * x[:, 1]) + x[:, 2] / 2
    sd = 0.3 + 0.3 * (x[:, 3] > 0)
    y = centre + sd * rng.normal(size=count)
    z = base.normal_quantiles(base.level_values(config))[None]

    def normal(centre, sd):
        return centre[:, None] + np.broadcast_to(sd, centre.shape)[:, None] * z

    blind = x[:, 2] / 2
    # E[x2 sin 2 x2] = 2 exp(-2); the rest of the sine's variance is noise to a line.
    slope = 2 * np.exp(-2)
    left_over = (1 - np.exp(-8)) / 2 - slope**2 + (0.3**2 + 0.6**2) / 2
    truth = normal(centre, sd)
    known = {
        "left": normal(np.where(x[:, 0] < 0, centre, blind), sd),
        "right": normal(np.where(x[:, 0] < 0, blind, centre), sd),
        "wide_linear": normal(slope * x[:, 1] + blind, np.sqrt(left_over)),
    }
    ends = np.cumsum((0, *sizes))
    places = {
        part: np.arange(ends[i], ends[i + 1]) for i, part in enumerate(rows.PARTS)
    }
    split = rows.Split(
        f"two regimes, seed {seed}",
        places,
        {part: x[ids] for part, ids in places.items()},
        {part: y[ids] for part, ids in places.items()},
        np.zeros(sizes[0], int),
    )
    quantiles = {
        part: np.stack([known[name][ids] for name in NAMES]).astype(np.float32)
        for part, ids in places.items()
    }
    return split, quantiles, truth[places["test"]].astype(np.float32)
