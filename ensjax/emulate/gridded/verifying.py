"""`verify`: forecasts against what came true, as a tidy dataset of scores.

It lives beside the readers of gridded files, not in the room of the metrics: those
know arrays alone, and this brings files, dates, leads, grids and regions to them.
Cases are read block by block; what is kept of a block are the sums of its dates.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ensjax.emulate.gridded import units
from ensjax.emulate.gridded.climatologies import climatology_reader
from ensjax.emulate.gridded.layout import GriddedError
from ensjax.emulate.gridded.pairing import pair
from ensjax.emulate.gridded.regions import region_weights
from ensjax.emulate.gridded.row_sums import VerifyJob
from ensjax.emulate.gridded.same_grid import check_lone_levels
from ensjax.emulate.gridded.score_list import score_list
from ensjax.emulate.gridded.tidy_scores import finish_scores, tidy_dataset
from ensjax.emulate.gridded.times import positions
from ensjax.mesh import default_mesh
from ensjax.verification.bootstrap import LEAST_BLOCKS, SCHEMES


@dataclasses.dataclass(frozen=True)
class Bootstrap:
    """How intervals are found: by drawing blocks of successive starts.

    Attributes:
        block_length: in starts; None: the longest lead over the starts' spacing. Where
            fewer than 4 blocks were scored an interval is not known (NaN).
        num_resamples: how many.
        scheme: "moving" or "stationary", as in `verification.draw_blocks`.
        confidence: of the intervals, in (0, 1).
        seed: of the draws.

    Raises:
        ValueError: if a number is out of range, or the scheme unknown.
    """

    block_length: int | None = None
    num_resamples: int = 1000
    scheme: str = "moving"
    confidence: float = 0.95
    seed: int = 0

    def __post_init__(self):
        if self.scheme not in SCHEMES:
            raise ValueError(
                f"scheme must be one of {', '.join(SCHEMES)}; got {self.scheme!r}."
            )
        if not 0 < self.confidence < 1:
            raise ValueError(
                f"confidence must be in (0, 1), such as 0.95; got {self.confidence!r}."
            )
        for name in ("num_resamples", "block_length"):
            value = getattr(self, name)
            if name == "block_length" and value is None:
                continue
            is_integer = isinstance(value, (int, np.integer))
            if isinstance(value, bool) or not is_integer or value < 1:
                raise ValueError(f"{name} must be an integer from 1 on; got {value!r}.")


def verify(
    forecast: Any,
    truth: Any,
    climatology: Any = None,
    regions: Mapping[str, Any] | None = None,
    compare_to: Any = None,
    bootstrap: Bootstrap | None = None,
    *,
    variables: Sequence[str] | None = None,
    thresholds: Mapping[str, Sequence[float]] | None = None,
    areas: np.ndarray | None = None,
    names: tuple[str, str, str, str] = (
        "forecast",
        "truth",
        "climatology",
        "compare_to",
    ),
    check_units: bool = True,
    block_bytes: int = 2**28,
    report: Callable[[int, int], None] | None = None,
    mesh: Mesh | None = None,
) -> Any:
    """Scores of an ensemble forecast: `[score, variable, lead, region]`.

    Compiles a program for each size of ensemble, and runs it on the devices of `mesh`.

    Args:
        forecast: a dataset of xarray with leads, in any layout that can be guessed.
        truth: by valid time; or with leads, for the same starts.
        climatology: for anomalies, as in `climatology_reader`; None: no such scores.
        regions: boxes or masks by name, as in `region_weights`; None: all of the grid.
        compare_to: another forecast of the same grid; both are scored on the starts,
            leads, variables and places that both have. Places that one of them lacks
            count as not scored. Ensembles of different size have no comparable
            standard CRPS and Brier scores: there compare the fair ones.
        bootstrap: how intervals are found; None: there are none (NaN).
        variables: those to score; by default all that both have.
        thresholds: by variable (`t2m`, `z_500`), in its unit: adds Brier scores of
            being above them.
        areas: of the cells, as in `region_weights`.
        names: of the four datasets, for errors.
        check_units: whether units that differ between them are an error, as in `pair`.
        block_bytes: of forecasts that are in memory at a time; at least one field of
            each member is.
        report: is told how many bytes of forecasts are done, and of how many.
        mesh: from `make_mesh`; all devices by default.

    Returns:
        A dataset with `value`, `low` and `high` `[score, variable, lead, region]`, and
        `scored`, the share of the weight that could be scored. With `compare_to` also
        `reference`, its scores; `difference` (value less reference); where less is
        better, `skill` (1 - value / reference); and where 1 is best, `nearer`, by how
        much (|reference - 1| - |value - 1|); each with `_low` and `_high`. The
        coordinate `best` says which scores are better low, high or near one, and
        `comparable` which can be compared between ensembles of these sizes.

    Raises:
        GriddedError: if files do not fit each other; names them and the dimension. If
            a file holds an infinity or an undeclared fill value at a place that is
            scored; names the variable. Or if nothing at all could be scored.
        ValueError: if a number is out of range, or `block_length` leaves fewer than two
            blocks of starts; before anything is read.

    Example:
        forecast = open_gridded("forecast.zarr")
        truth = open_gridded("truth.zarr")
        scores = verify(forecast, truth, regions={"tropics": {"lat": (-20, 20)}})
        scores.value.sel(score="fair_crps", variable="t2m", region="tropics")

    Source: the order of operations (sums over area and cases first, roots and ratios
    last) is that of Rasp et al. 2024, arXiv:2308.15560.
    """
    pairing = dict(variables=variables, check_units=check_units)
    pairs = pair(forecast, truth, names=names[:2], **pairing)
    other = None
    if compare_to is not None:
        other = pair(compare_to, truth, names=(names[3], names[1]), **pairing)
        pairs, other = _in_common(pairs, other, check_units)
    weights = region_weights(pairs, regions, areas=areas)
    read_climate = None
    if climatology is not None:
        read_climate = climatology_reader(
            climatology, pairs, name=names[2], check_units=check_units
        )
    levels = _thresholds(pairs, thresholds)
    if bootstrap is not None:
        bootstrap = _with_block_length(bootstrap, pairs)
    job = VerifyJob(
        pairs=pairs,
        other=other,
        weights=jnp.asarray(np.stack(list(weights.values())), jnp.float32),
        read_climate=read_climate,
        levels=levels,
        scores=_scores_of(pairs, read_climate, levels),
        other_scores=None if other is None else _scores_of(other, read_climate, levels),
        keeps_dates=bootstrap is not None,
        block_bytes=block_bytes,
        mesh=default_mesh() if mesh is None else mesh,
        climate_name=names[2],
    )
    sums = job.run(report)
    found = finish_scores(job, sums, bootstrap)
    scores = tidy_dataset(job, found, list(weights), thresholds, bootstrap)
    if not np.any(scores["scored"].values > 0):
        raise GriddedError(
            f"nothing of {names[0]} could be scored against {names[1]}: at every"
            " start and lead one of them is missing (NaN) where the regions are."
        )
    return scores


def _scores_of(pairs, read_climate, levels):
    return score_list(
        pairs.sizes["member"],
        with_climatology=read_climate is not None,
        num_thresholds=0 if levels is None else levels.shape[1],
    )


def _in_common(pairs, other, check_units):
    """Both forecasts on the starts, leads and channels that both have."""
    names = (pairs.names[0], other.names[0])
    ours, theirs = ([c.name for c in p.channels] for p in (pairs, other))
    shared = [name for name in ours if name in theirs]
    chosen = {}
    for dim in ("time", "lead"):
        at = positions(pairs.forecast[dim].values, other.forecast[dim].values)
        chosen[dim] = np.nonzero(at >= 0)[0], at[at >= 0]
        if not len(chosen[dim][0]):
            raise GriddedError(f"{names[0]} and {names[1]} share no {dim}.")
    if not shared:
        raise GriddedError(f"{names[0]} and {names[1]} share no variable.")
    check_lone_levels(pairs.forecast, other.forecast, names)
    if check_units:
        of = dict.fromkeys(c.variable for c in pairs.channels if c.name in shared)
        units.check_units(of, pairs.forecast, other.forecast, names)
    sizes = [{k: len(v) for k, v in p.space.items()} for p in (pairs, other)]
    if sizes[0] != sizes[1]:
        raise GriddedError(
            f"{names[0]} is on a grid {sizes[0]}, {names[1]} on {sizes[1]}; both must"
            " be on that of the truth."
        )
    return tuple(
        p.select(
            case=chosen["time"][i],
            lead=chosen["lead"][i],
            channel=[own.index(name) for name in shared],
        )
        for i, (p, own) in enumerate(((pairs, ours), (other, theirs)))
    )


def _thresholds(pairs, thresholds):
    """`[channel, threshold]`, NaN where a channel has fewer; None without any."""
    if not thresholds:
        return None
    names = [c.name for c in pairs.channels]
    for name in thresholds:
        if name not in names:
            raise GriddedError(
                f"thresholds are for {name!r}, but the variables are"
                f" {', '.join(names)}."
            )
        values = np.asarray(thresholds[name], np.float64)
        if values.ndim != 1 or not values.size or not np.isfinite(values).all():
            raise GriddedError(
                f"thresholds of {name!r} must be numbers, [threshold], at least one;"
                f" got {thresholds[name]!r}."
            )
    most = max(len(v) for v in thresholds.values())
    levels = np.full((len(names), most), np.nan, np.float32)
    for name, values in thresholds.items():
        levels[names.index(name), : len(values)] = values
    return levels


def _with_block_length(bootstrap, pairs):
    if bootstrap.block_length is not None:
        number, length = pairs.sizes["case"], bootstrap.block_length
        if number < 2 * length:
            advice = (
                f"take {number // LEAST_BLOCKS} or less, for {LEAST_BLOCKS} of them"
                if number >= LEAST_BLOCKS
                else "so few have no interval"
            )
            raise ValueError(
                f"block_length {length} leaves fewer than two blocks of the {number}"
                f" starts that are scored: {advice}."
            )
        return bootstrap
    time, lead = pairs.forecast["time"].values, pairs.forecast["lead"].values
    length = 1
    if len(time) > 1 and time.dtype.kind != "i":
        steps = [b - a for a, b in zip(time[:-1], time[1:])]
        hours = (
            min(np.timedelta64(s, "us") / np.timedelta64(1, "h") for s in steps)
            if (time.dtype.kind == "O")
            else min(steps) / np.timedelta64(1, "h")
        )
        length = int(np.ceil(lead.max() / np.timedelta64(1, "h") / hours))
    return dataclasses.replace(bootstrap, block_length=max(length, 1))
