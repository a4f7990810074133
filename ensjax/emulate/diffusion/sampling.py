"""Members of a generative model: any number of samples as one compiled program.

A member's noise depends on (seed, member id, case id) alone: the first samples of many
are those of few, on any mesh and in any block.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ensjax.blocks import Blocks
from ensjax.emulate.diffusion.denoisers import as_pytree
from ensjax.mapping import map_local, map_members
from ensjax.members import member_key


@dataclasses.dataclass(frozen=True)
class SampleCases:
    """One member: a sample of every case. What `sample` maps over members.

    Give it to `reduce.fold_members`, with `shared=(denoiser, conditions, case_ids,
    seed)`, for members that never exist together.

    Attributes:
        sampler: such as `Heun(rho_levels(24))`.
        shape: of one sample.
        case_block: cases of a member that run at once; None: all.
    """

    sampler: Any
    shape: tuple[int, ...]
    case_block: int | None = None

    def __call__(
        self, member_id: Any, denoiser: Any, conditions: Any, case_ids: Any, seed: Any
    ) -> jax.Array:
        """Samples `[case, *shape]` of one member.

        Args:
            member_id: integer `[]`.
            denoiser: a pytree, called as `denoiser(x, sigma, condition)`.
            conditions: leaves `[case, ...]`, or None.
            case_ids: integers `[case]`.
            seed: integer `[]`.
        """
        key = member_key(seed, "sample", member_id)

        def of_case(case):
            case_id, condition = case

            def denoise(x, sigma):
                return denoiser(x, sigma, condition)

            own = jax.random.fold_in(key, case_id)
            return self.sampler(denoise, own, self.shape)

        return map_cases(of_case, (case_ids, conditions), self.case_block)


def sample(
    denoiser: Any,
    member_ids: Any,
    *,
    shape: Sequence[int],
    sampler: Any,
    condition: Any = None,
    case_id: int = 0,
    seed: int = 0,
    block: int | str | None = "auto",
    mesh: Mesh | None = None,
) -> jax.Array:
    """Members of one case (compiled; see `map_members`).

    Args:
        denoiser: `denoiser(x, sigma, condition) -> x0` of one sample; a pytree, or a
            function that is defined once.
        member_ids: integers `[member]`; any number of them.
        shape: of one sample.
        sampler: such as `Heun(rho_levels(24))`.
        condition: any pytree, the same for all members.
        case_id: cases with different ids have different noise.
        seed: of the noise.
        block: members of a device that run at once.
        mesh: from `make_mesh`; all devices by default.

    Returns:
        `[member, *shape]`, float32, split over the devices of the mesh.

    Raises:
        TypeError: if the denoiser cannot be called.
        ValueError: if there is no member, or ids are not integers `[member]`.

    Example:
        >>> import jax.numpy as jnp
        >>> from ensjax.emulate import diffusion
        >>> exact = diffusion.GaussianDenoiser.from_covariance(
        ...     jnp.ones(2), jnp.eye(2))
        >>> sampler = diffusion.Heun(diffusion.rho_levels(12))
        >>> diffusion.sample(exact, jnp.arange(512), shape=(2,), sampler=sampler).shape
        (512, 2)
    """
    conditions = jax.tree.map(lambda x: jnp.asarray(x)[None], condition)
    mapped = map_members(
        SampleCases(sampler, tuple(shape)),
        kinds=("member", *("shared",) * 4),
        mesh=mesh,
        block=block,
    )
    ids = checked_ids("member_ids", member_ids)
    cases = jnp.full((1,), case_id, jnp.int32)
    return mapped(ids, as_pytree(denoiser), conditions, cases, jnp.int32(seed))[:, 0]


def sample_cases(
    denoiser: Any,
    member_ids: Any,
    conditions: Any,
    *,
    shape: Sequence[int],
    sampler: Any,
    case_ids: Any = None,
    seed: int = 0,
    block: int | str | None = "auto",
    case_block: int | None = None,
    mesh: Mesh | None = None,
) -> jax.Array:
    """Members of many cases (compiled); cases may be split over the mesh axis "data".

    Args:
        denoiser: as for `sample`.
        member_ids: integers `[member]`.
        conditions: leaves `[case, ...]`.
        shape: of one sample.
        sampler: such as `Heun(rho_levels(24))`.
        case_ids: integers `[case]`; 0, 1, ... by default. A case keeps its members
            under its id, whichever others there are.
        seed: of the noise.
        block: members of a device that run at once, with all their cases.
        case_block: cases of a member that run at once; None: all.
        mesh: from `make_mesh`; all devices by default.

    Returns:
        `[member, case, *shape]`, float32.

    Raises:
        TypeError: if the denoiser cannot be called.
        ValueError: if ids do not fit, or cases do not divide over "data" and
            `case_block`.
    """
    count = num_cases(conditions)
    ids = ids_of_cases(case_ids, count)
    mapped = map_members(
        SampleCases(sampler, tuple(shape), case_block),
        kinds=("member", "shared", "batch", "batch", "shared"),
        out="member_batch",
        mesh=mesh,
        block=block,
    )
    members = checked_ids("member_ids", member_ids)
    return mapped(members, as_pytree(denoiser), conditions, ids, jnp.int32(seed))


def sample_each(
    denoisers: Any,
    member_ids: Any,
    conditions: Any,
    *,
    shape: Sequence[int],
    sampler: Any,
    case_ids: Any = None,
    seed: int = 0,
    block: int | str | None = "auto",
    member_block: int | str | None = "auto",
    case_block: int | None = None,
    mesh: Mesh | None = None,
) -> jax.Array:
    """Members of several stacked models, such as one of each lead (compiled).

    Args:
        denoisers: a pytree of stacked models, leaves `[model, ...]`.
        member_ids: integers `[member]`, the same for all models.
        conditions: leaves `[model, case, ...]`.
        shape: of one sample.
        sampler: such as `Heun(rho_levels(24))`.
        case_ids: integers `[case]`; 0, 1, ... by default.
        seed: of the noise; the same noise for all models.
        block: models of a device that run at once.
        member_block: members of a model that run at once.
        case_block: cases of a member that run at once; None: all.
        mesh: from `make_mesh`; models are split over the axis "member".

    Returns:
        `[model, member, case, *shape]`, float32.

    Raises:
        TypeError, ValueError: as `sample_cases`.
    """
    leaves = jax.tree.leaves(conditions)
    if not leaves or np.ndim(leaves[0]) < 2:
        raise ValueError("conditions must have leaves [model, case, ...].")
    ids = ids_of_cases(case_ids, leaves[0].shape[1])
    one = SampleCases(sampler, tuple(shape), case_block)
    mapped = map_members(
        _SampleModel(one, Blocks(member_block)),
        kinds=("member", "member", "shared", "shared", "shared"),
        mesh=mesh,
        block=block,
    )
    members = checked_ids("member_ids", member_ids)
    return mapped(as_pytree(denoisers), conditions, members, ids, jnp.int32(seed))


@dataclasses.dataclass(frozen=True)
class _SampleModel:
    """All members of one model, `[member, case, *shape]`."""

    one: SampleCases
    blocks: Blocks

    def __call__(self, denoiser, conditions, member_ids, case_ids, seed):
        kinds = ("member", *("shared",) * 4)
        mapped = map_local(self.one, kinds=kinds, blocks=self.blocks)
        return mapped(member_ids, denoiser, conditions, case_ids, seed)


def num_cases(conditions: Any) -> int:
    """The number of cases that all leaves `[case, ...]` have in common.

    Raises:
        ValueError: if there is no array, or they disagree.
    """
    sizes = {np.shape(x)[:1] for x in jax.tree.leaves(conditions)}
    if len(sizes) != 1 or () in sizes:
        raise ValueError(
            "conditions must have leaves [case, ...] of one number of cases; got"
            f" {sorted(sizes)}. Members of one case come from sample()."
        )
    return sizes.pop()[0]


def map_cases(
    of_case: Callable[[Any], Any], cases: tuple[Any, ...], case_block: int | None
) -> Any:
    """`of_case` of every case of a member, `case_block` at a time.

    Args:
        of_case: of one case, a tuple like `cases` without their leading axis.
        cases: the first is an array `[case]`, others have leaves `[case, ...]`.
        case_block: cases that run at once; None: all.

    Raises:
        ValueError: if the cases are no whole blocks.
    """
    count = cases[0].shape[0]
    if count == 1:  # a single case is not mapped: its products stay plain ones
        return of_case(jax.tree.map(lambda x: x[0], cases))[None]
    if case_block is None or case_block >= count:
        return jax.vmap(of_case)(cases)
    if case_block < 1 or count % case_block:
        raise ValueError(
            f"{count} cases of a device are not whole blocks of case_block ="
            f" {case_block}."
        )
    return jax.lax.map(of_case, cases, batch_size=case_block)


def ids_of_cases(case_ids: Any, count: int) -> jax.Array:
    """Ids int32 `[case]`; 0, 1, ... for None.

    Raises:
        ValueError: if they are not integers `[case]` of `count` cases.
    """
    ids = np.arange(count) if case_ids is None else case_ids
    ids = checked_ids("case_ids", ids)
    if ids.shape[0] != count:
        raise ValueError(f"there are {count} cases, but {ids.shape[0]} case_ids.")
    return ids


def checked_ids(name: str, ids: Any) -> jax.Array:
    """Ids as int32 `[...]`.

    Raises:
        ValueError: if they are not integers of one axis, or there are none.
    """
    ids = jnp.asarray(ids)
    if ids.ndim != 1 or not ids.size or not jnp.issubdtype(ids.dtype, jnp.integer):
        raise ValueError(
            f"{name} are integers [{name.split('_')[0]}], at least one; got"
            f" {ids.dtype}{list(ids.shape)}."
        )
    return ids.astype(jnp.int32)
