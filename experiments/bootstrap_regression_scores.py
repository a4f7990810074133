"""What `bootstrap_regression.py` measures, with one number per seed."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import kendalltau

from ensjax import combine, data, scores
from ensjax.data.sampling import out_of_bag
from ensjax.experiment.fields import load_beside
from ensjax.provenance import Provenance, check_fitting_rows

rows = load_beside(__file__, "bootstrap_regression_rows")

METRICS = {
    "mae": scores.mae,
    "rmse": scores.rmse,
    "median_error": scores.median_absolute_error,
    "max_error": scores.max_error,
    "spearman": scores.spearman_correlation,
}
NUM_DECILES, NUM_BINS = 10, 5


class Ensembles(NamedTuple):
    """Predictions of the same job in all seeds, on rows of each seed's own.

    Attributes:
        mean, std: over members, `[seed, row]`.
        targets: `[seed, row]`.
        points: `[seed, member, row]`.
    """

    mean: np.ndarray
    std: np.ndarray
    targets: np.ndarray
    points: np.ndarray


def gather(config, table, jobs, points, name, rows_of) -> Ensembles:
    """The ensembles called `name` on the rows `rows_of(seed)`.

    Args:
        points: of every job, `[member, row of the table]`.
    """
    found, targets = [], []
    for job, own in zip(jobs, points, strict=True):
        if job.name == name:
            where = rows_of(job.seed)
            found.append(own[:, where])
            targets.append(table.y[where])
    found = np.stack(found)
    moments = _moments(found.swapaxes(0, 1), ddof=config.ddof)
    return Ensembles(
        np.asarray(moments.mean), np.asarray(moments.std), np.stack(targets), found
    )


def fit_sigma_scales(config, table, jobs, points, weights) -> np.ndarray:
    """tau of the main ensemble of every seed, from its out-of-bag rows, `[seed]`.

        tau^2 = mean over training rows of (y - mean)^2 / s^2

    with mean and standard deviation s over the members that were not trained on the
    row. Rows that every member has seen do not count.

    Raises:
        LeakageError: if a member counts on a row that it was trained on.
    """
    found = []
    for job, own, weight in zip(jobs, points, weights, strict=True):
        if job.name != "main":
            continue
        train = job.train_rows
        counts = np.asarray(out_of_bag(weight[:, train]))
        provenance = Provenance(
            source=table.source, rows=train, seen=weight[:, train] > 0
        )
        check_fitting_rows("the scale of sigma", provenance, counts=counts)
        moments = combine.out_of_bag_points(
            own[:, train], weight[:, train], ddof=config.ddof
        )
        mean, std, number = moments
        usable = (number > 1) & (std > 0)
        tau = combine.fit_sigma_scale(mean, std, table.y[train], sample_weight=usable)
        found.append(float(tau.scale))
    return np.asarray(found)


_moments = jax.jit(scores.member_moments, static_argnames="ddof")


def measure_spread(found: Ensembles, tau) -> dict[str, np.ndarray]:
    """Scores of the spread before and after scaling by tau, `[seed]` each."""
    return jax.device_get(_spread(found, tau.astype(np.float32)))


@jax.jit
def _spread(found, tau):
    mean, std, targets = found.mean, found.std, found.targets
    result = {
        "sigma_error_spearman": scores.error_rank_correlation(mean, std, targets),
        "tau": tau,
    }
    for name, scale in (("raw", jnp.ones_like(tau)), ("scaled", tau)):
        sd = std * scale[:, None]
        result |= {
            f"{name}_miscalibration": scores.miscalibration_area(mean, sd, targets),
            f"{name}_coverage": scores.interval_coverage(
                mean - 2 * sd, mean + 2 * sd, targets
            ),
            f"{name}_width": 4 * sd.mean(axis=1),
            f"{name}_crps": scores.crps_gaussian(mean, sd, targets),
            f"{name}_nll": scores.gaussian_nll(mean, sd**2, targets),
            f"{name}_ence": scores.ence(mean, sd, targets),
        }
    return result


def measure_point(found: Ensembles) -> dict[str, np.ndarray]:
    """Errors of the mean, of the median and of single members, `[seed]` each."""
    return jax.device_get(_point(found))


@jax.jit
def _point(found):
    own = jax.vmap(scores.mae)(found.points, found.targets)  # [seed, member]
    median = jnp.median(found.points, axis=1)
    parts = jax.vmap(scores.ambiguity_decomposition)(found.points, found.targets)
    return {
        "median_of_members_mae": scores.mae(median, found.targets),
        "mean_member_mae": own.mean(axis=1),
        "best_member_on_test_mae": own.min(axis=1),
        "slope": scores.slope(found.mean, found.targets),
        "mse": parts.ensemble,
        "mean_member_mse": parts.members,
        "ambiguity": parts.ambiguity,
    } | _metrics(found.mean, found.targets)


@jax.jit
def _metrics(points, targets):
    return {name: score(points, targets) for name, score in METRICS.items()}


def measure_curves(config, table, found: Ensembles, tau) -> dict[str, np.ndarray]:
    """Confidence curves, calibration curves and coverage by spread and distance."""
    distance = np.stack(
        [domain_distance(config, table, seed) for seed in range(config.num_seeds)]
    )
    return jax.device_get(_curves(found, distance, tau.astype(np.float32)))


@jax.jit
def _curves(found, distance, tau):
    mean, std, targets = found.mean, found.std, found.targets
    by_sigma = scores.confidence_curve(mean, std, targets)
    by_distance = scores.confidence_curve(mean, distance, targets)
    levels = jnp.linspace(0.02, 0.98, 49)
    result = {
        "kept": by_sigma.kept,
        "by_sigma": by_sigma.error,
        "by_distance": by_distance.error,
        "oracle": by_sigma.oracle,
        # Rows have equal weights: the area is the mean of the curve.
        "sigma_area": by_sigma.error.mean(axis=-1),
        "distance_area": by_distance.error.mean(axis=-1),
        "oracle_area": by_sigma.oracle.mean(axis=-1),
        "distance_error_spearman": scores.error_rank_correlation(
            mean, distance, targets
        ),
        "levels": levels,
    }
    for name, scale in (("raw", jnp.ones_like(tau)), ("scaled", tau)):
        sd = std * scale[:, None]
        level = jnp.abs(2 * scores.pit_gaussian(mean, sd, targets) - 1)
        observed = (level[..., None] <= levels[None, None]).mean(axis=1)
        result[f"{name}_observed"] = observed
        result[f"{name}_coverage_by_sigma"] = scores.binned_coverage(
            mean - 2 * sd, mean + 2 * sd, targets, sd, num_bins=NUM_BINS
        )
        result[f"{name}_coverage_by_distance"] = scores.binned_coverage(
            mean - 2 * sd, mean + 2 * sd, targets, distance, num_bins=NUM_BINS
        )
    return result


def domain_distance(config, table, seed) -> np.ndarray:
    """Cosine distance of a seed's test rows to its training rows, `[row]`."""
    train, test = rows.split_rows(config, table, seed)
    domain = data.TrainingDomain.of(
        table.x[train], metric="cosine", num_neighbors=config.num_neighbors
    )
    return np.asarray(_distance(domain, table.x[test]))


_distance = jax.jit(data.TrainingDomain.distance)


def measure_plain(plain: Ensembles, bootstrap: Ensembles) -> dict[str, np.ndarray]:
    """An ensemble of initial weights alone beside as many members on bootstraps."""
    few = bootstrap.points[:, : plain.points.shape[1]].mean(axis=1)
    targets = plain.targets
    return {
        "mae": np.abs(plain.mean - targets).mean(axis=1),
        "mean_member_mae": np.abs(plain.points - targets[:, None]).mean(axis=(1, 2)),
        "sigma": plain.std.mean(axis=1),
        "bootstrap_of_as_many_mae": np.abs(few - targets).mean(axis=1),
    }


def measure_shift(config, table, jobs, points) -> dict[str, np.ndarray]:
    """Errors and spreads at home and beyond the end of a feature, `[seed]` each."""

    def part(name):
        return gather(
            config,
            table,
            jobs,
            points,
            "shift",
            lambda seed: rows.shift_rows(config, table, seed)[name],
        )

    inside, shifted = part("inside"), part("shifted")

    def mae(found):
        return np.abs(found.mean - found.targets).mean(axis=1)

    return {
        "inside_mae": mae(inside),
        "shifted_mae": mae(shifted),
        "inside_sigma": inside.std.mean(axis=1),
        "shifted_sigma": shifted.std.mean(axis=1),
    }


def measure_imbalance(config, table, jobs, points) -> dict[str, np.ndarray]:
    """Errors where the target was thinned, with and without thinning.

    Both ensembles are scored on the same test rows: those beyond the border of the
    thinned part of the training rows.
    """

    def test(seed):
        return rows.split_rows(config, table, seed)[1]

    thinned = gather(config, table, jobs, points, "thinned", test)
    main = gather(config, table, jobs, points, "main", test)
    # Ensembles of one size are compared: the main one has more members.
    few = main.points[:, : config.num_side_members].mean(axis=1)
    errors = {"thinned": np.abs(thinned.mean - thinned.targets)}
    errors["whole"] = np.abs(few - main.targets)
    result = {f"{name}_tail_mae": [] for name in errors} | {
        f"{name}_by_decile": [] for name in errors
    }
    for seed in range(config.num_seeds):
        y = table.y[rows.split_rows(config, table, seed)[0]]
        border = np.quantile(y, 1 - config.shift.share)
        edges = np.quantile(y, np.arange(1, NUM_DECILES) / NUM_DECILES)
        targets = main.targets[seed]
        decile = np.searchsorted(edges, targets, side="right")
        for name, error in errors.items():
            own = error[seed]
            tail = own[targets >= border]
            result[f"{name}_tail_mae"].append(tail.mean())
            result[f"{name}_by_decile"].append(
                [
                    own[decile == d].mean() if (decile == d).any() else np.nan
                    for d in range(NUM_DECILES)
                ]
            )
    return {name: np.asarray(value) for name, value in result.items()} | {
        "random_mae": errors["whole"].mean(axis=1)
    }


def measure_rankings(models: dict[str, np.ndarray], targets) -> dict[str, np.ndarray]:
    """How metrics rank the models, and how far two rankings agree.

    Args:
        models: predictions of every model, `[seed, row]`.
        targets: `[seed, row]`.

    Returns:
        `values [metric, model, seed]`, `ranks` of the same shape (0 is best),
        `tau [seed, metric, metric]` (Kendall), and `disagreeing [seed]`: how many
        pairs of metrics have another best model.
    """
    found = [jax.device_get(_metrics(points, targets)) for points in models.values()]
    values = np.asarray([[own[name] for own in found] for name in METRICS])
    worse = np.stack(
        [-v if name == "spearman" else v for name, v in zip(METRICS, values)]
    )
    ranks = np.argsort(np.argsort(worse, axis=1, kind="stable"), axis=1)
    best = worse.argmin(axis=1)  # [metric, seed]
    pairs = [(i, j) for i in range(len(METRICS)) for j in range(i)]
    tau = [
        [[kendalltau(a[:, seed], b[:, seed]).statistic for b in worse] for a in worse]
        for seed in range(targets.shape[0])
    ]
    return {
        "values": values,
        "ranks": ranks,
        "tau": np.asarray(tau),
        "disagreeing": np.sum([best[i] != best[j] for i, j in pairs], axis=0),
    }
