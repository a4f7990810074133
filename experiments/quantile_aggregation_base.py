"""Base models of `quantile_aggregation.py`: each gives quantiles of rising levels.

A base model is `fit(x, y)` that returns `predict(x) -> [batch, level]`; whatever it
scales by the data it scales inside. The two networks are trained together, all splits
and folds as one stack.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.ensemble import (
    ExtraTreesRegressor,
    GradientBoostingRegressor,
    RandomForestRegressor,
)
from sklearn.linear_model import QuantileRegressor, Ridge
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import ensjax
from ensjax.combine.quantiles.training import Setting
from ensjax.members import member_key

_FORESTS = {"forest": RandomForestRegressor, "extra_trees": ExtraTreesRegressor}
NETS = ("gaussian_net", "quantile_net")
CONSTANT = "constant"
# The five of the main comparison, then those that "any number of base models" adds.
NAMES = (
    "forest",
    "extra_trees",
    "linear",
    "gaussian_ridge",
    "boosting",
    *NETS,
    "neighbours",
    "plain_ridge",
    CONSTANT,
)
NUM_MAIN = 5


def make_fits(config, seed: int) -> dict[str, Any]:
    """The base models that are not networks, by name, in the order of `NAMES`.

    Args:
        config: of the run.
        seed: of the trees.
    """
    levels, settings = level_values(config), config.base
    fits = {
        "forest": functools.partial(_fit_forest, "forest", settings, levels, seed),
        "extra_trees": functools.partial(
            _fit_forest, "extra_trees", settings, levels, seed
        ),
        "linear": functools.partial(_fit_linear, settings, levels),
        "gaussian_ridge": functools.partial(_fit_ridge, settings, levels, True),
        "boosting": functools.partial(_fit_boosting, settings, levels, seed),
        "neighbours": functools.partial(_fit_neighbours, settings, levels),
        "plain_ridge": functools.partial(_fit_ridge, settings, levels, False),
        CONSTANT: functools.partial(_fit_constant, levels),
    }
    return {name: fits[name] for name in NAMES if name in fits}


def level_values(config) -> np.ndarray:
    """The levels k / (m + 1), k = 1..m."""
    return np.arange(1, config.num_levels + 1) / (config.num_levels + 1)


def normal_quantiles(levels: np.ndarray) -> np.ndarray:
    """Of the standard normal distribution, `[level]`."""
    return np.asarray(jax.scipy.special.ndtri(jnp.asarray(levels)), float)


def _fit_forest(kind, settings, levels, seed, x, y):
    """Quantiles of the training targets that share leaves with a row.

    A training row weighs 1 / (rows of its leaf), as a mean over the trees; all rows
    count, drawn by the tree or not (Meinshausen 2006).
    """
    model = _FORESTS[kind](
        n_estimators=settings.num_trees,
        min_samples_leaf=settings.min_leaf,
        random_state=seed,
    ).fit(x, y)
    order = np.argsort(y, kind="stable")
    leaves = model.apply(x)[order]  # [train, tree]
    ascending = np.asarray(y)[order]
    trees = leaves.shape[1]
    counts = np.stack([np.bincount(leaves[:, t])[leaves[:, t]] for t in range(trees)])

    def predict(new_x):
        found = np.empty((len(new_x), len(levels)))
        for start in range(0, len(new_x), 256):  # [256, train] weights at a time
            new_leaves = model.apply(new_x[start : start + 256])
            weights = np.zeros((len(new_leaves), len(y)))
            for t in range(trees):
                same = new_leaves[:, t, None] == leaves[None, :, t]
                weights += same / counts[t]
            reached = np.cumsum(weights / trees, axis=1)
            for i, level in enumerate(levels):
                place = (reached < level - 1e-9).sum(axis=1)
                found[start : start + 256, i] = ascending[place.clip(max=len(y) - 1)]
        return found

    return predict


def _fit_linear(settings, levels, x, y):
    """Linear quantile regression, one program of linear optimisation a level."""
    scaler = StandardScaler().fit(x)
    models = [
        QuantileRegressor(quantile=level, alpha=settings.linear_l1).fit(
            scaler.transform(x), y
        )
        for level in levels
    ]

    def predict(new_x):
        new_x = scaler.transform(new_x)
        return np.stack([model.predict(new_x) for model in models], axis=1)

    return predict


def _fit_ridge(settings, levels, has_log_variance, x, y):
    """Normal distributions: ridge for the mean and, if asked, for the log-variance."""
    mean = make_pipeline(StandardScaler(), Ridge(settings.ridge)).fit(x, y)
    errors = y - mean.predict(x)
    log_variance = make_pipeline(StandardScaler(), Ridge(10 * settings.ridge))
    log_variance.fit(x, np.log(errors**2 + 1e-3) if has_log_variance else 0 * y)
    # The log of a squared error lies below that of its mean: one factor mends it.
    scale = np.sqrt(np.mean(errors**2 / np.exp(log_variance.predict(x))))
    z = normal_quantiles(levels)

    def predict(new_x):
        sd = scale * np.exp(log_variance.predict(new_x) / 2)
        return mean.predict(new_x)[:, None] + sd[:, None] * z

    return predict


def _fit_boosting(settings, levels, seed, x, y):
    """Gradient boosting of the pinball loss, one model a level."""
    models = [
        GradientBoostingRegressor(
            loss="quantile",
            alpha=level,
            n_estimators=settings.num_trees,
            max_depth=settings.boosting_depth,
            random_state=seed,
        ).fit(x, y)
        for level in levels
    ]
    return lambda new_x: np.stack([model.predict(new_x) for model in models], axis=1)


def _fit_neighbours(settings, levels, x, y):
    """Quantiles of the nearest training rows' targets."""
    scaler = StandardScaler().fit(x)
    count = min(settings.num_neighbours, len(x))
    search = NearestNeighbors(n_neighbors=count).fit(scaler.transform(x))

    def predict(new_x):
        near = search.kneighbors(scaler.transform(new_x), return_distance=False)
        return np.quantile(np.asarray(y)[near], levels, axis=1).T

    return predict


def _fit_constant(levels, x, y):
    """The training targets' quantiles, whatever the input."""
    found = np.quantile(y, levels)
    return lambda new_x: np.tile(found, (len(new_x), 1))


class Net(nnx.Module):
    """A network that sees one column of the rows; see `train_nets`.

    Args:
        kind: "gaussian_net" (mean and log of the standard deviation) or "quantile_net"
            (all levels).
        levels: rising probabilities.
        in_features: of one row.
        hidden: widths of the hidden layers.
        rngs: streams.
    """

    def __init__(self, kind, levels, in_features, hidden, *, rngs):
        self.kind, self.levels = kind, tuple(levels)
        self.column = Setting(jnp.zeros((), jnp.int32))
        self.body = ensjax.nn.MLP(
            in_features=in_features,
            hidden=hidden,
            num_outputs=2 if kind == "gaussian_net" else len(levels),
            rngs=rngs,
        )

    def outputs(self, x):
        """What the network says of `x [batch, column, feature]` for its column."""
        own = jax.lax.dynamic_index_in_dim(x, self.column[...], 1, keepdims=False)
        return self.body(own)

    def __call__(self, x):
        """Quantiles `[batch, level]`."""
        outputs = self.outputs(x)
        if self.kind == "quantile_net":
            return outputs
        z = jax.scipy.special.ndtri(jnp.asarray(self.levels))
        return outputs[:, :1] + jnp.exp(outputs[:, 1:]) * z[None]


def net_loss(model, rows, key):
    """Gaussian negative log-likelihood, or pinball loss, of the rows that count."""
    del key
    own = functools.partial(
        jax.lax.dynamic_index_in_dim, index=model.column[...], axis=1, keepdims=False
    )
    y, weight = own(rows["y"]), own(rows["weight"])
    outputs = model.outputs(rows["x"])
    if model.kind == "gaussian_net":
        error = (y - outputs[:, 0]) / jnp.exp(outputs[:, 1])
        losses = error**2 / 2 + outputs[:, 1]
    else:
        levels = jnp.asarray(model.levels)
        losses = ensjax.scores.pinball_losses(outputs, y, levels=levels).mean(axis=1)
    return jnp.sum(losses * weight) / jnp.maximum(jnp.sum(weight), 1.0)


def train_nets(config, splits, run_dir, name: str) -> dict[str, np.ndarray]:
    """Both networks of all splits and folds as one stack.

    A column of the rows is one split and one fold that is held out (the last column of
    a split holds none out), with inputs scaled by the rows that are trained on.

    Args:
        config: of the run.
        splits: of `quantile_aggregation_rows.Split`, equally large, with their folds.
        run_dir: for checkpoints and the log.
        name: of the data set.

    Returns:
        "train" (out of fold), "validation" and "test": `[seed, net, batch, level]`.
    """
    settings, levels = config.base, level_values(config)
    folds = range(config.base.num_folds + 1)  # the last holds nothing out
    columns = {"x": [], "y": [], "weight": [], "new_x": []}
    for split in splits:
        for fold in folds:
            weight = (split.fold != fold).astype(np.float32)
            scaler = StandardScaler().fit(split.x["train"][weight > 0])
            columns["x"].append(scaler.transform(split.x["train"]))
            columns["y"].append(split.y["train"])
            columns["weight"].append(weight)
            new_x = np.concatenate([split.x["validation"], split.x["test"]])
            columns["new_x"].append(scaler.transform(new_x))
    rows = {k: np.stack(v, axis=1).astype(np.float32) for k, v in columns.items()}
    new_x = rows.pop("new_x")
    count, num_rows = len(splits) * len(folds), len(rows["y"])
    nets = []
    for number, kind in enumerate(NETS):
        ids = [
            65536 * seed + number * len(folds) + fold
            for seed in range(len(splits))
            for fold in folds
        ]
        net = ensjax.Ensemble.init(
            functools.partial(_make_net, kind, tuple(levels), config, new_x.shape[2]),
            member_ids=ids,
            seed=config.seed,
        )
        nets.append(_with_columns(net, np.arange(count)))
    group, _ = ensjax.fit(
        ensjax.Group(tuple(nets)),
        rows,
        loss=net_loss,
        make_tx=_net_optimizer,
        hyper=settings.net_learning_rate,
        steps=settings.net_steps,
        batch_size=min(settings.net_batch_size, num_rows),
        seed=config.seed,
        steps_per_call=settings.net_steps // 4,
        log_every_steps=settings.net_steps // 4,
        checkpoint_dir=run_dir.checkpoints / f"nets-{name}",
        save_every_steps=settings.net_steps // 2,
        logger=run_dir.logger(f"nets-{name}"),
    )
    shape = (len(NETS), len(splits), len(folds))
    known = ensjax.mesh.fetch(ensjax.predict(group, rows["x"]))
    known = known.reshape(*shape, *known.shape[1:])
    new = ensjax.mesh.fetch(ensjax.predict(group, new_x))
    new = new.reshape(*shape, *new.shape[1:])[:, :, -1].swapaxes(0, 1)
    held_out = np.stack(
        [known[:, i, split.fold, np.arange(num_rows)] for i, split in enumerate(splits)]
    )
    cut = len(splits[0].y["validation"])
    return {
        "train": held_out,
        "validation": new[:, :, :cut],
        "test": new[:, :, cut:],
    }


def _make_net(kind, levels, config, in_features, rngs):
    hidden = tuple(config.base.net_hidden)
    return Net(kind, levels, in_features, hidden, rngs=rngs)


def _net_optimizer(learning_rate):
    return optax.adamw(learning_rate, weight_decay=1e-2)


def _with_columns(ensemble, columns):
    def replace(path, leaf):
        is_column = getattr(path[0], "key", None) == "column"
        return jnp.asarray(columns, leaf.dtype) if is_column else leaf

    rest = jax.tree.map_with_path(replace, ensemble.state["rest"])
    state = {**ensemble.state, "rest": rest}
    return dataclasses.replace(ensemble, state=state).on_mesh(ensemble.mesh)


def noise_quantiles(levels: np.ndarray, num_rows: int, seed: int) -> np.ndarray:
    """A base model that knows nothing: normal around noise, `[batch, level]`."""
    key = member_key(seed, "noise", 0)
    centre = np.asarray(jax.random.normal(key, (num_rows,)), float)
    return centre[:, None] + normal_quantiles(levels)[None]
