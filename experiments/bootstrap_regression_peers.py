"""What the networks of `bootstrap_regression.py` are compared with: scikit-learn.

Each with the settings that its documentation starts from, as the networks have theirs;
the ridge penalty is chosen by leave-one-out on the training rows.
"""

import numpy as np

from ensjax.experiment.fields import load_beside

rows = load_beside(__file__, "bootstrap_regression_rows")

PEERS = ("forest", "boosting", "ridge")


def _build(config, name, seed):
    from sklearn.ensemble import GradientBoostingRegressor, RandomForestRegressor
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if name == "forest":
        return RandomForestRegressor(config.num_trees, random_state=seed)
    if name == "boosting":
        return GradientBoostingRegressor(random_state=seed)
    return make_pipeline(StandardScaler(), RidgeCV(np.logspace(-3, 3, 13)))


def predict(config, table) -> np.ndarray:
    """Test predictions of every peer, `[peer, size, seed, row]`, float32."""
    found = []
    for seed in range(config.num_seeds):
        train, test = rows.split_rows(config, table, seed)
        for size in rows.sizes_of(config, len(train)):
            x, y = table.x[train[:size]], table.y[train[:size]]
            for name in PEERS:
                model = _build(config, name, 1000 * config.seed + seed).fit(x, y)
                found.append(model.predict(table.x[test]))
    num_sizes = len(rows.sizes_of(config, len(train)))
    shape = (config.num_seeds, num_sizes, len(PEERS), len(test))
    return np.asarray(found, np.float32).reshape(shape).transpose(2, 1, 0, 3)
