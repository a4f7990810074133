"""Sums of the statistics of forecasts, block by block: what `verify` keeps of files."""

import dataclasses
import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from ensjax.emulate.gridded.layout import GriddedError
from ensjax.emulate.gridded.score_list import Scores
from ensjax.emulate.gridded.streaming import Pairs, whole_chunks
from ensjax.verification import Sums

_DEVICES = ("member", "data", "model")  # rows are split over all of a mesh


@functools.partial(jax.jit, static_argnames=("metrics",))
def _row_sums(metrics, forecast, truth, weights, reference):
    """Sums of every row (a case at a lead) and region, `[row, region, ...]`."""
    space = tuple(range(1, truth.ndim))

    def of_region(weight):
        return {
            name: metric.over(*space).sums(
                forecast, truth, weights=weight[None], reference=reference
            )
            for name, metric in metrics
        }

    return jax.vmap(of_region, out_axes=1)(weights)


class Totals:
    """Sums over blocks: of every start apart, or of all; in double precision."""

    def __init__(
        self, num_cases: int, num_leads: int, num_channels: int, keeps_dates: bool
    ):
        self.shape = (num_cases if keeps_dates else 1, num_leads, num_channels)
        self.keeps_dates = keeps_dates
        self.totals: dict[str, dict[str, np.ndarray]] = {}

    def add(
        self, sums: dict[str, Sums], cases: np.ndarray, leads: np.ndarray, channel: int
    ) -> None:
        """Adds rows `[case, lead]` of one channel."""
        for name, of in sums.items():
            own = self.totals.setdefault(name, {})
            for part, total in of.total.items():
                rows = np.asarray(total, np.float64) + np.asarray(of.lost[part])
                rows = rows.reshape(len(cases), len(leads), *rows.shape[1:])
                if part not in own:
                    own[part] = np.zeros((*self.shape, *rows.shape[2:]))
                if self.keeps_dates:
                    own[part][np.ix_(cases, leads, [channel])] = rows[:, :, None]
                else:
                    own[part][0, leads, channel] += rows.sum(axis=0)

    def sums(self, name: str) -> Sums:
        """`[date or 1, lead, channel, region, ...]`, float32 and what rounding took."""
        high = {k: v.astype(np.float32) for k, v in self.totals[name].items()}
        low = {
            k: (v - high[k]).astype(np.float32) for k, v in self.totals[name].items()
        }
        return Sums(
            {k: jnp.asarray(v) for k, v in high.items()},
            {k: jnp.asarray(v) for k, v in low.items()},
        )


@dataclasses.dataclass
class VerifyJob:
    """What `verify` is asked to sum, and how.

    Attributes:
        pairs, other: of the forecast, and of the one it is compared with.
        weights: of regions, `[region, *space]`.
        read_climate: the climatology of a part; None: there is none.
        climate_name: of its file, for errors.
        levels: thresholds `[channel, threshold]`, NaN for none; None: there are none.
        scores, other_scores: of both.
        keeps_dates: keep the sums of every start apart.
        block_bytes: of forecasts in memory at a time.
        mesh: over whose devices rows are split.
    """

    pairs: Pairs
    other: Pairs | None
    weights: jax.Array
    read_climate: Callable[[Pairs], np.ndarray] | None
    levels: np.ndarray | None
    scores: Scores
    other_scores: Scores | None
    keeps_dates: bool
    block_bytes: int
    mesh: Mesh
    climate_name: str = "climatology"

    def run(self, report: Callable[[int, int], None] | None) -> list[Totals]:
        """The sums of the forecast and of the other, reading every block once.

        Raises:
            GriddedError: if a file holds an infinity, or a number whose squares float32
                cannot sum, at a place that is scored; names file, variable, start and
                lead.
        """
        sizes = self.pairs.sizes
        shape = sizes["case"], sizes["lead"], sizes["variable"]
        totals = [Totals(*shape, self.keeps_dates) for _ in range(2)]
        parts = list(self._parts())
        field = self._field_bytes()
        total = sum(len(c) * len(lead) * len(ch) for c, lead, ch in parts) * field
        done = 0
        for cases, leads, channels in parts:
            self._add(totals, cases, leads, channels)
            done += len(cases) * len(leads) * len(channels) * field
            if report is not None:
                report(done, total)
        return totals

    def _field_bytes(self):
        points = int(np.prod([len(v) for v in self.pairs.space.values()], initial=1))
        members = self.pairs.sizes["member"]
        if self.other is not None:
            members += self.other.sizes["member"]
        return 4 * points * members

    def _parts(self) -> Iterator[tuple[np.ndarray, np.ndarray, list[int]]]:
        """Cases, leads and channels (of one variable) that are read together."""
        channels = self.pairs.channels
        fields = max(1, self.block_bytes // max(self._field_bytes(), 1))
        num_leads, num_cases = (self.pairs.sizes[k] for k in ("lead", "case"))
        for variable in dict.fromkeys(c.variable for c in channels):
            mine = [i for i, c in enumerate(channels) if c.variable == variable]
            leads = min(num_leads, max(1, fields // len(mine)))
            cases = max(1, fields // (len(mine) * num_leads))
            cases = whole_chunks(self.pairs, cases)
            for case in range(0, num_cases, cases):
                for lead in range(0, num_leads, leads):
                    yield (
                        np.arange(case, min(case + cases, num_cases)),
                        np.arange(lead, min(lead + leads, num_leads)),
                        mine,
                    )

    def _add(self, totals, cases, leads, channels):
        part = self.pairs.select(case=cases, lead=leads, channel=channels)
        archive = part.read()
        other = None
        if self.other is not None:
            of_other = self.other.select(case=cases, lead=leads, channel=channels)
            other = dataclasses.replace(of_other, truth=None).read().values
        climate = None if self.read_climate is None else self.read_climate(part)
        archive, other, climate = self._in_range(part, archive, other, climate)
        ids = cases[:, None] * self.pairs.sizes["lead"] + leads[None, :]
        for i, channel in enumerate(channels):
            truth = _rows(archive.truth[:, :, i])
            reference = {"case_ids": ids.reshape(-1).astype(np.int32)}
            if climate is not None:
                reference["climatology"] = _rows(climate[:, :, i])
            systems = [(_member_rows(archive.values[:, :, :, i]), self.scores)]
            if other is not None:
                systems.append((_member_rows(other[:, :, :, i]), self.other_scores))
                # Without truth an element has no weight and counts as missing.
                is_common = _both_known([values for values, _ in systems])
                truth = np.where(is_common, truth, np.float32(np.nan))
            for total, (values, scores) in zip(totals, systems):
                found = self._sums(values, truth, reference, scores, channel)
                total.add(found, cases, leads, channel)

    def _in_range(self, part, archive, other, climate):
        """The same, with what has no square in float32 missing where nothing is scored:
        outside of all regions, or where the truth is missing (all members, for it).

        Elsewhere it would spoil a whole lead, though it weighs nothing: it is named.
        """
        dims = ("start", "member", "lead", "variable")
        flat = tuple(d for d in dims if d != "member")
        labels = dict(start=archive.case, lead=archive.lead, variable=archive.variable)

        def has_truth(values):
            known = ~np.isnan(archive.truth)
            return known if values.ndim == known.ndim else known[:, None]

        def has_member(truth):
            return ~np.isnan(archive.values).all(axis=1)

        def checked(name, dims, values, is_met=has_truth):
            return self._scorable(name, dims, values, is_met, labels)

        values = checked(part.names[0], dims, archive.values)
        truth = checked(part.names[1], flat, archive.truth, has_member)
        if other is not None:
            other = checked(self.other.names[0], dims, other)
        if climate is not None:
            climate = checked(self.climate_name, flat, climate)
        return dataclasses.replace(archive, values=values, truth=truth), other, climate

    def _scorable(self, name, dims, values, is_met, labels):
        """Values `[*dims, *space]`; raises for one to be scored that has no square."""
        points = int(np.prod([len(v) for v in self.pairs.space.values()], initial=1))
        limit = float(np.sqrt(np.finfo(np.float32).max / points))
        # The largest but for NaN, which is what is missing.
        if np.fmax.reduce(np.abs(values), axis=None) <= limit:
            return values
        is_large = np.abs(values) > limit
        in_regions = np.any(np.asarray(self.weights) > 0, axis=0)
        is_scored = is_large & in_regions & is_met(values)
        if not is_scored.any():
            return np.where(is_large, np.float32(np.nan), values)
        at = tuple(np.argwhere(is_scored)[0])
        place = dict(zip(dims, at))
        where = ", ".join(
            f"{d} {labels[d][place[d]] if d in labels else place[d]}"
            for d in dims
            if d != "variable"
        )
        raise GriddedError(
            f"{name}: variable {labels['variable'][place['variable']]!r} holds"
            f" {values[at]:g} ({where}), and {int(is_scored.sum())} such values in"
            " this block: no number that can be scored, but an infinity or the"
            " fill value of a file that does not declare it. Mark it as missing:"
            " the attribute _FillValue of the variable, or dataset.where(...)."
        )

    def _sums(self, forecast, truth, reference, scores, channel):
        """Rows split over all devices; some are added that weigh nothing."""
        rows = len(truth)
        extra = -rows % self.mesh.size

        def split(x, axis, value):
            widths = [(0, extra if i == axis else 0) for i in range(x.ndim)]
            x = np.pad(x, widths, constant_values=value)
            spec = [None] * x.ndim
            spec[axis] = _DEVICES
            return jax.device_put(x, NamedSharding(self.mesh, jax.P(*spec)))

        reference = {k: split(v, 0, 0) for k, v in reference.items()}
        if self.levels is not None:
            levels = self.levels[channel]
            wide = (*truth.shape, len(levels))
            # Channels without thresholds get some, and their scores are dropped.
            level = np.broadcast_to(np.nan_to_num(levels), (rows, *wide[1:]))
            reference["thresholds"] = split(level, 0, 0.0)
        found = _row_sums(
            tuple(scores.metrics.items()),
            split(forecast, 1, 0.0),
            split(truth, 0, 0.0),
            jax.device_put(self.weights, NamedSharding(self.mesh, jax.P())),
            reference,
        )
        return jax.tree.map(lambda x: np.asarray(x)[:rows], found)


def _rows(values):
    """`[case, lead, *space]` as `[row, *space]`."""
    return np.ascontiguousarray(values.reshape(-1, *values.shape[2:]), np.float32)


def _member_rows(values):
    """`[case, member, lead, *space]` as `[member, row, *space]`."""
    moved = np.moveaxis(values, 1, 0)
    return np.ascontiguousarray(moved.reshape(len(moved), -1, *values.shape[3:]))


def _both_known(forecasts):
    """Where both ensembles can be scored by all that their sizes allow."""
    known = [np.isfinite(f).sum(axis=0) >= min(2, len(f)) for f in forecasts]
    return np.logical_and(*known)
