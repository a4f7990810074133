"""`SampleJob`: any number of members of any start by a trained emulator, in blocks.

An experiment says in one what its emulators are given and what their samples mean;
`sample_blocks` makes members of it that never exist together, all of them by one
compiled program. `ensjax sample` writes them to disk.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ensjax.emulate.archive import Archive
from ensjax.emulate.diffusion.denoisers import as_pytree
from ensjax.emulate.diffusion.noise import rho_levels
from ensjax.emulate.diffusion.samplers import (
    DPMSolver2S,
    Euler,
    EulerMaruyama,
    FewStep,
    Heun,
)
from ensjax.mapping import map_members
from ensjax.members import member_key
from ensjax.mesh import default_mesh, fetch, platform

# Of the values of one block, if no other number of members is asked for.
_BLOCK_BYTES = 8 * 2**20
_MOST_MEMBERS = 1024
# Of what runs as one operation: channels that a network has of a value, and bytes that
# keep one device busy. A CPU's fit its cache.
_CHANNELS = 64
_AT_ONCE = {"cpu": (2**20, 16)}
_AT_ONCE_ELSEWHERE = (2**26, 512)

# By the names of the command line; "euler_maruyama" has steps in place of levels.
SAMPLERS = {
    "heun": Heun,
    "euler": Euler,
    "dpm": DPMSolver2S,
    "few_step": FewStep,
    "euler_maruyama": EulerMaruyama,
}


@dataclasses.dataclass(frozen=True)
class SamplerSettings:
    """A sampler by numbers and a name, as configs and command lines have it.

    Attributes:
        name: a key of `SAMPLERS`.
        num_levels: of noise, or steps of "euler_maruyama" (600 in the paper's demo).
        low, high, rho: of `rho_levels`; "euler_maruyama" has a schedule of its own.

    Raises:
        ValueError: if there is no sampler of that name, or levels do not fit.
    """

    name: str = "heun"
    num_levels: int = 24
    low: float = 0.002
    high: float = 80.0
    rho: float = 7.0

    def __post_init__(self):
        if self.name not in SAMPLERS:
            raise ValueError(
                f"the sampler is one of {', '.join(SAMPLERS)}; got {self.name!r}."
            )
        self.make()

    def make(self) -> Any:
        """The sampler, such as `Heun(rho_levels(24))`."""
        if self.name == "euler_maruyama":
            return EulerMaruyama(num_steps=self.num_levels)
        levels = rho_levels(self.num_levels, low=self.low, high=self.high, rho=self.rho)
        return SAMPLERS[self.name](levels)


@dataclasses.dataclass(frozen=True, eq=False)
class SampleJob:
    """Trained emulators, and the starts of which they can sample members.

    Attributes:
        denoisers: a pytree of stacked denoisers, leaves `[lead, ...]`, one of each lead
            (`SeedsEmulators.denoisers`).
        condition: of a start by its row in `case`, what the denoisers are given: leaves
            `[lead, ...]`.
        shape: of one sample of one denoiser.
        restore: `restore(samples, row)`: samples `[member, lead, *shape]` of a start in
            the archive's units, `[member, lead, variable, *space]`; NumPy.
        case, lead, variable, space, units, source: as of an `Archive`; `case` are the
            starts that can be sampled.
        truth: `truth(row)`: what came true, `[lead, variable, *space]`; None: unknown.
        case_ids: integers `[case]`, from which a start's noise is drawn; by default
            its row.
        seed: of the noise.
        sampler: what is used if nothing else is asked for.
        members_at_once: what runs as one operation of a device. It is fixed, so that a
            member's bits do not depend on how many there are; None: a rule of platform
            and `shape` alone.
    """

    denoisers: Any
    condition: Callable[[int], Any]
    shape: tuple[int, ...]
    restore: Callable[[np.ndarray, int], np.ndarray]
    case: np.ndarray
    lead: np.ndarray
    variable: Sequence[str]
    space: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    units: Mapping[str, str] = dataclasses.field(default_factory=dict)
    source: str = ""
    truth: Callable[[int], np.ndarray] | None = None
    case_ids: np.ndarray | None = None
    seed: int = 0
    sampler: SamplerSettings = SamplerSettings()
    members_at_once: int | None = None

    @property
    def fields_shape(self) -> tuple[int, ...]:
        """Of a member of one start: `[lead, variable, *space]`."""
        space = [len(values) for values in self.space.values()]
        return (len(self.lead), len(self.variable), *space)

    def rows_of(self, starts: Sequence[str]) -> np.ndarray:
        """Rows in `case` of dates or numbers; "all" is every start, `a:b` a range.

        Args:
            starts: texts, such as "2013-01-05", "12" or "10:20" (without 20). A date
                names one start, at midnight if it says no hour.

        Raises:
            ValueError: if there is no such start, it is named twice, or a date is a
                year or month; says which there are.
        """
        rows: list[int] = []
        for text in starts:
            found = self._rows_of_one(text)
            if not len(found):
                raise ValueError(f"there is no start {text!r}; {self._starts()}")
            rows.extend(found)
        if not rows or len(set(rows)) < len(rows):
            raise ValueError(f"starts are named once each; got {', '.join(starts)}.")
        return np.asarray(rows)

    def _rows_of_one(self, text):
        case = np.asarray(self.case)
        if text == "all":
            return np.arange(len(case))
        try:
            if case.dtype.kind == "M":
                return np.nonzero(case == _date(text, self._starts()))[0]
            first, colon, end = text.partition(":")
            if not colon:
                return np.nonzero(case == int(first))[0]
            return np.nonzero((case >= int(first)) & (case < int(end)))[0]
        except _VagueDate:
            raise
        except ValueError:
            return np.empty(0, int)

    def _starts(self):
        names = [str(start) for start in self.case]
        if len(names) <= 8:
            return f"there are {', '.join(names)}."
        shown = f"{', '.join(names[:3])} ... {names[-1]}"
        return f"there are {len(names)}: {shown}."

    def archive_of_truth(self, rows: np.ndarray) -> Archive:
        """An archive of chosen starts with what came true, and no values (NaN).

        Raises:
            ValueError: if that is not known.
        """
        if self.truth is None:
            raise ValueError("what came true of these starts is not known.")
        truth = np.stack([np.asarray(self.truth(row)) for row in rows])
        nothing = np.full((len(rows), 1, *self.fields_shape), np.nan, np.float32)
        return Archive(
            nothing,
            case=np.asarray(self.case)[rows],
            lead=self.lead,
            variable=self.variable,
            space=self.space,
            truth=truth,
            units=self.units,
            source=self.source,
        )


class _VagueDate(ValueError):
    """A year or a month, of which NumPy would take the first day."""


def _date(text, starts):
    date = np.datetime64(text)
    if np.datetime_data(date)[0] in ("Y", "M", "W"):
        raise _VagueDate(
            f"a start is a day, such as {date.astype('datetime64[D]')}, or a day and"
            f" hour; got {text!r}, and {starts}"
        )
    return date


@dataclasses.dataclass(frozen=True)
class _SampleLeads:
    """One member of one start, `[lead, *shape]`: the noise of `SampleCases`."""

    sampler: Any
    shape: tuple[int, ...]

    def __call__(self, member_id, denoisers, conditions, case_id, seed):
        key = jax.random.fold_in(member_key(seed, "sample", member_id), case_id)

        def of_lead(denoiser, condition):
            def denoise(x, sigma):
                return denoiser(x, sigma, condition)

            return self.sampler(denoise, key, self.shape)

        leads = {x.shape[0] for x in jax.tree.leaves((denoisers, conditions))}
        if leads == {1}:  # a single one is not mapped: its products stay plain ones
            first = jax.tree.map(lambda x: x[0], (denoisers, conditions))
            return of_lead(*first)[None]
        return jax.vmap(of_lead)(denoisers, conditions)


def sample_blocks(
    job: SampleJob,
    rows: Sequence[int],
    member_ids: Any,
    *,
    sampler: Any = None,
    block: int | None = None,
    mesh: Mesh | None = None,
) -> Iterator[tuple[int, slice, np.ndarray]]:
    """Members of several starts, a block of one start at a time (compiled once).

    A member depends on the seed, its id and the start's id alone: bit for bit, whatever
    other members, starts and blocks there are, on the same kind and number of devices
    and for the same `members_at_once`; elsewhere to rounding.

    Args:
        job: from an experiment.
        rows: of starts, in `job.case`.
        member_ids: integers `[member]`, any number, each once.
        sampler: such as `Heun(rho_levels(24))`; by default the job's.
        block: members that are computed and held together; it is made a whole number of
            `members_at_once` on each device. By default what 8 MiB hold, at most 1,024.
        mesh: from `make_mesh`; members are split over all devices by default.

    Yields:
        The place of the start in `rows`, the slice of `member_ids`, and values
        `[member, lead, variable, *space]`, float32, of NumPy.

    Raises:
        ValueError: if ids do not fit, or `restore` gives another shape.
    """
    ids = _checked_ids(member_ids)
    mesh = default_mesh() if mesh is None else mesh
    size = block_size(job, len(ids), block, mesh)
    mapped = map_members(
        _SampleLeads(job.sampler.make() if sampler is None else sampler, job.shape),
        kinds=("member", *("shared",) * 4),
        mesh=mesh,
        block=members_at_once(job, mesh),
    )
    denoisers = as_pytree(job.denoisers)
    for place, row in enumerate(rows):
        conditions = jax.tree.map(jnp.asarray, job.condition(int(row)))
        case_id = int(row) if job.case_ids is None else int(job.case_ids[row])
        for start in range(0, len(ids), size):
            some = ids[start : start + size]
            # The last block is filled up: other shapes would be another program.
            filled = jnp.asarray(np.resize(some, size))
            found = mapped(
                filled, denoisers, conditions, jnp.int32(case_id), jnp.int32(job.seed)
            )
            values = job.restore(fetch(found)[: len(some)], int(row))
            values = np.asarray(values, np.float32)
            if values.shape != (len(some), *job.fields_shape):
                raise ValueError(
                    "restore must give [member, lead, variable, *space] ="
                    f" {(len(some), *job.fields_shape)}; got shape {values.shape}."
                )
            yield place, slice(start, start + len(some)), values


def block_size(job: SampleJob, num_members: int, block: int | None, mesh: Mesh) -> int:
    """Members of one call: whole `members_at_once` on each device, no more than needed.

    Raises:
        ValueError: if `block` is not positive.
    """
    if block is not None and block < 1:
        raise ValueError(f"a block holds at least 1 member; got {block}.")
    unit = members_at_once(job, mesh) * mesh.shape["member"]
    if block is None:
        each = 4 * math.prod(job.fields_shape)
        block = min(_MOST_MEMBERS, max(1, _BLOCK_BYTES // each))
    return unit * math.ceil(min(block, num_members) / unit)


def members_at_once(job: SampleJob, mesh: Mesh) -> int:
    """What runs as one operation of a device: the job's number, or the rule's."""
    if job.members_at_once is not None:
        return job.members_at_once
    limit, most = _AT_ONCE.get(platform(mesh), _AT_ONCE_ELSEWHERE)
    number = limit // (4 * _CHANNELS * math.prod(job.shape))
    return min(most, 2 ** max(0, number.bit_length() - 1))


def _checked_ids(member_ids):
    ids = np.asarray(member_ids)
    is_right = ids.ndim == 1 and ids.size and np.issubdtype(ids.dtype, np.integer)
    if not is_right or ids.min() < 0 or ids.max() >= 2**31:
        raise ValueError(
            "member_ids are integers [member] from 0 to 2^31 - 1, at least one; got"
            f" {ids.dtype}{list(ids.shape)}."
        )
    if len(np.unique(ids)) < len(ids):
        raise ValueError("member_ids must differ: members of one id are the same.")
    return ids.astype(np.int32)
