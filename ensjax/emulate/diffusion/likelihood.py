"""Log-likelihoods under a diffusion model, by its probability-flow equation."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ensjax.blocks import Blocks
from ensjax.emulate.diffusion.denoisers import as_pytree
from ensjax.emulate.diffusion.sampling import ids_of_cases, map_cases
from ensjax.mapping import map_local, map_members
from ensjax.members import member_key, num_members


@dataclasses.dataclass(frozen=True)
class FlowLikelihood:
    """Log-density of one sample, in nats, under the flow of a denoiser.

        log p(x) = log N(x_T; 0, high^2 + d^2) + int_{ln low}^{ln high} n - tr dD/dx du,
        dx/du = x - D(x, e^u)

    with u = ln sigma and n the size of a sample. It is the density of the data with
    noise of level `low` added. The equation is solved by the classical Runge-Kutta
    method of fourth order in equal steps of u.

    Attributes:
        low, high: noise levels between which it is solved. At `high` the density is
            taken as normal around 0, so that it must exceed the data by far: what is
            left falls as z m / (d high) for data of mean m, z standard deviations off.
        num_steps: four calls of the denoiser and of its derivative each.
        num_probes: random signs per sample by which the trace is estimated, the same
            along the path; None: the exact trace, of n derivatives each.
        sigma_data: d, the standard deviation of the data.

    Source: Song et al. 2021, arXiv:2011.13456, equations 39 and 40; Hutchinson 1989.
    """

    low: float = 0.002
    high: float = 80.0
    num_steps: int = 64
    num_probes: int | None = 1
    sigma_data: float = 1.0

    def __post_init__(self):
        if not 0 < self.low < self.high or self.num_steps < 1:
            raise ValueError(
                "low must be above 0 and below high, and num_steps at least 1; got"
                f" {self}."
            )
        if self.num_probes is not None and self.num_probes < 1:
            raise ValueError(
                "num_probes must be at least 1, or None for the exact trace; got"
                f" {self.num_probes}."
            )

    def __call__(
        self, denoiser: Any, x: jax.Array, condition: Any, key: Any
    ) -> jax.Array:
        """Log-density `[]` of one sample `[*shape]`, in nats.

        Args:
            denoiser: `denoiser(x, sigma, condition) -> x0`; forward derivatives are
                taken of it.
            x: the sample.
            condition: any pytree or None.
            key: of the probes.
        """
        start, end = math.log(self.low), math.log(self.high)
        length = (end - start) / self.num_steps
        probes = self._probes(key, x)

        def slopes(place, u):
            def denoise(x):
                return denoiser(x, jnp.exp(u), condition).astype(x.dtype)

            def along(probe):
                x0, moved = jax.jvp(denoise, (place,), (probe,))
                return x0, jnp.sum(probe * moved)

            x0, traces = jax.vmap(along)(probes)
            trace = traces.sum() if self.num_probes is None else traces.mean()
            return place - x0[0], x.size - trace

        def step(carry, number):
            place, total = carry
            u = start + number * length
            v1, d1 = slopes(place, u)
            v2, d2 = slopes(place + length / 2 * v1, u + length / 2)
            v3, d3 = slopes(place + length / 2 * v2, u + length / 2)
            v4, d4 = slopes(place + length * v3, u + length)
            place = place + length / 6 * (v1 + 2 * v2 + 2 * v3 + v4)
            return (place, total + length / 6 * (d1 + 2 * d2 + 2 * d3 + d4)), None

        first = (x, jnp.zeros((), x.dtype))
        (end_x, total), _ = jax.lax.scan(step, first, jnp.arange(self.num_steps))
        variance = self.high**2 + self.sigma_data**2
        normal = -jnp.sum(end_x**2) / (2 * variance)
        return normal - x.size / 2 * math.log(2 * math.pi * variance) + total

    def _probes(self, key, x):
        if self.num_probes is None:
            return jnp.eye(x.size, dtype=x.dtype).reshape(x.size, *x.shape)
        return jax.random.rademacher(key, (self.num_probes, *x.shape), x.dtype)


def log_likelihoods(
    denoiser: Any,
    x: jax.Array,
    *,
    likelihood: FlowLikelihood,
    conditions: Any = None,
    seed: int = 0,
    block: int | str | None = "auto",
    mesh: Mesh | None = None,
) -> jax.Array:
    """Log-density of every sample, in nats (compiled; samples split over devices).

    Args:
        denoiser: as for `sample`.
        x: `[row, *shape]`.
        likelihood: how it is computed.
        conditions: leaves `[row, ...]`, or None.
        seed: of the probes, which differ by row.
        block: rows of a device that run at once.
        mesh: from `make_mesh`; all devices by default.

    Returns:
        `[row]`.

    Raises:
        TypeError: if the denoiser cannot be called.
        ValueError: if `x` and `conditions` differ in the number of rows.
    """
    rows = num_members({"x": x, "conditions": conditions})
    mapped = map_members(
        _OfRow(likelihood),
        kinds=("member", "member", "member", "shared", "shared"),
        mesh=mesh,
        block=block,
    )
    ids = jnp.arange(rows, dtype=jnp.int32)
    denoiser = as_pytree(denoiser)
    return mapped(ids, jnp.asarray(x), conditions, denoiser, jnp.int32(seed))


@dataclasses.dataclass(frozen=True)
class _OfRow:
    likelihood: FlowLikelihood

    def __call__(self, row, x, condition, denoiser, seed):
        key = member_key(seed, "noise", row)
        return self.likelihood(denoiser, x, condition, key)


def log_likelihoods_each(
    denoisers: Any,
    x: jax.Array,
    conditions: Any,
    *,
    likelihood: FlowLikelihood,
    case_ids: Any = None,
    seed: int = 0,
    block: int | str | None = "auto",
    member_block: int | str | None = "auto",
    case_block: int | None = None,
    mesh: Mesh | None = None,
) -> jax.Array:
    """Log-density of members of many cases under several stacked models (compiled).

    Args:
        denoisers: a pytree of stacked models, leaves `[model, ...]`.
        x: `[model, member, case, *shape]`, as `sample_each` returns it.
        conditions: leaves `[model, case, ...]`.
        likelihood: how it is computed.
        case_ids: integers `[case]`; 0, 1, ... by default.
        seed: of the probes, which differ by member and case.
        block: models of a device that run at once.
        member_block: members of a model that run at once.
        case_block: cases of a member that run at once; None: all.
        mesh: from `make_mesh`; models are split over the axis "member".

    Returns:
        `[model, member, case]`, in nats.

    Raises:
        TypeError: if the denoisers cannot be called.
        ValueError: if shapes or ids do not fit.
    """
    x = jnp.asarray(x)
    for path, leaf in jax.tree.leaves_with_path(conditions):
        if x.ndim < 3 or jnp.shape(leaf)[:2] != (x.shape[0], x.shape[2]):
            raise ValueError(
                "x must be [model, member, case, *shape] and conditions [model, case,"
                f" ...]; got {x.shape}, and conditions{jax.tree_util.keystr(path)}"
                f" {jnp.shape(leaf)}."
            )
    ids = ids_of_cases(case_ids, x.shape[2])
    mapped = map_members(
        _OfModel(_OfCases(likelihood, case_block), Blocks(member_block)),
        kinds=("member", "member", "member", "shared", "shared"),
        mesh=mesh,
        block=block,
    )
    return mapped(as_pytree(denoisers), x, conditions, ids, jnp.int32(seed))


def bits_per_dimension(
    log_likelihood: jax.Array, size: int, *, sd: jax.Array | float = 1.0
) -> jax.Array:
    """-log2 p(x) / size of each log-density, `[...]`; less is better.

        -log p(z) / (size ln 2) + log2 sd,   x = mean + sd z

    Args:
        log_likelihood: log p(z) of standardised values, in nats.
        size: numbers in a sample.
        sd: of the standardisation, in the unit in which the density is wanted; where it
            differs by element, its geometric mean.

    Raises:
        ValueError: if the size is not positive.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1; got {size}.")
    return -jnp.asarray(log_likelihood) / (size * math.log(2)) + jnp.log2(sd)


@dataclasses.dataclass(frozen=True)
class _OfModel:
    """All members of one model, `[member, case]`."""

    one: "_OfCases"
    blocks: Blocks

    def __call__(self, denoiser, x, conditions, case_ids, seed):
        kinds = ("member", "member", *("shared",) * 4)
        mapped = map_local(self.one, kinds=kinds, blocks=self.blocks)
        ids = jnp.arange(x.shape[0], dtype=jnp.int32)
        return mapped(ids, x, denoiser, conditions, case_ids, seed)


@dataclasses.dataclass(frozen=True)
class _OfCases:
    """All cases of one member, `[case]`."""

    likelihood: FlowLikelihood
    case_block: int | None

    def __call__(self, member_id, x, denoiser, conditions, case_ids, seed):
        key = member_key(seed, "noise", member_id)

        def of_case(case):
            case_id, x, condition = case
            own = jax.random.fold_in(key, case_id)
            return self.likelihood(denoiser, x, condition, own)

        return map_cases(of_case, (case_ids, x, conditions), self.case_block)
