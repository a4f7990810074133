"""What is drawn of a case: seeds, a target, and how seeds are told to a network."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.mesh import fetch


def encode_seeds(seeds: jax.Array, base: jax.Array | None = None) -> jax.Array:
    """Channels that tell a set of seeds, whatever their order, bit for bit.

    The mean; and of several seeds the mean distance of two, and the variance (of two:
    |a - b| and (a - b)^2 / 2).

    Args:
        seeds: `[seed, *space, channel]`.
        base: more channels `[*space, more]`, such as the climatology of the base time.

    Returns:
        `[*space, channels]`: 3 for each of several seeds' (1 for a single one's), then
        those of `base`.

    Source: the published network takes each seed as an entry of a sequence
    (`stack_seeds`); these moments are for convolutions.
    """
    count = seeds.shape[0]
    parts = [seeds[0]]
    if count > 1:
        # Sums over sorted values: their rounding does not depend on the order either.
        seeds = jnp.sort(seeds, axis=0)
        mean = seeds.mean(axis=0, keepdims=True)
        place = 2 * jnp.arange(count) - count + 1
        place = place.reshape(-1, *(1,) * (seeds.ndim - 1))
        distance = jnp.sum(place * seeds, axis=0) / (count * (count - 1) / 2)
        variance = jnp.sum((seeds - mean) ** 2, axis=0) / (count - 1)
        parts = [mean[0], distance, variance]
    if base is not None:
        parts.append(base)
    return jnp.concatenate(parts, axis=-1)


def stack_seeds(seeds: jax.Array, base: jax.Array | None = None) -> dict[str, Any]:
    """The condition of `nn.AxialDenoiser`: seeds as they are, and the climatology."""
    if base is None:
        base = jnp.zeros(seeds.shape[1:], seeds.dtype)
    return {"seeds": seeds, "climatology": base}


ENCODERS: dict[str, Callable[..., Any]] = {
    "moments": encode_seeds,
    "sequence": stack_seeds,
}


def draw_seeds(
    key: jax.Array,
    members: jax.Array,
    *,
    num_seeds: int,
    is_there: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Seeds and a target from the members of one case, without replacement.

    Args:
        key: a random key.
        members: `[member, ...]`.
        num_seeds: K, at least 1.
        is_there: booleans `[member]`; what is False is never drawn. At least K + 1
            must be there, else members that are not are drawn too.

    Returns:
        Seeds `[seed, ...]` and the target `[...]`: K + 1 different members.

    Raises:
        ValueError: if there are fewer than K + 1 members.
    """
    count = members.shape[0]
    if num_seeds < 1 or count < num_seeds + 1:
        raise ValueError(
            f"{num_seeds} seeds and a target are {num_seeds + 1} different members;"
            f" there are {count}."
        )
    drawn = _draw(key, members, num_seeds + 1, is_there)
    return drawn[:num_seeds], drawn[num_seeds]


def _draw(key, members, number, is_there):
    """So many different members, in random order."""
    ranks = jax.random.uniform(key, members.shape[:1])
    if is_there is not None:
        ranks = jnp.where(is_there, ranks, 2.0)
    return members[jnp.argsort(ranks)[:number]]


@dataclasses.dataclass(frozen=True)
class DrawSeeds:
    """From a case to a clean sample and its condition, drawn anew at every step.

    Attributes:
        num_seeds: K.
        member_share: how likely the target is one of the remaining members; else it is
            one of `others`, each as likely. 1 (GEE) needs no others, and 0 no remaining
            members. With M members and K' others the paper's (GPP) is
            (M - K) / (M - K + K').
        encoder: a name in `ENCODERS`.
    """

    num_seeds: int = 2
    member_share: float = 1.0
    encoder: str = "moments"

    def __post_init__(self):
        if self.encoder not in ENCODERS:
            raise ValueError(
                f"encoder must be one of {', '.join(ENCODERS)}; got {self.encoder!r}."
            )
        if not 0 <= self.member_share <= 1 or self.num_seeds < 1:
            raise ValueError(
                "member_share must be from 0 to 1 and num_seeds at least 1; got"
                f" {self.member_share} and {self.num_seeds}."
            )

    def __call__(self, key: jax.Array, case: dict[str, Any]) -> tuple[jax.Array, Any]:
        """The clean sample `[*space, channel]` and its condition.

        Args:
            key: a random key.
            case: "members" `[member, *space, channel]`; with a `member_share` below 1
                "others" `[other, *space, channel]`; optionally "base" `[*space, more]`
                and "is_there" `[member]`.
        """
        member_key, source_key, other_key = jax.random.split(key, 3)
        members, is_there = case["members"], case.get("is_there")
        if self.member_share == 0:
            seeds = _draw(member_key, members, self.num_seeds, is_there)
        else:
            seeds, target = draw_seeds(
                member_key, members, num_seeds=self.num_seeds, is_there=is_there
            )
        if self.member_share < 1:
            others = case["others"]
            other = others[jax.random.randint(other_key, (), 0, others.shape[0])]
            if self.member_share == 0:
                target = other
            else:
                is_member = jax.random.bernoulli(source_key, self.member_share)
                target = jnp.where(is_member, target, other)
        return target, self.encode(seeds, case.get("base"))

    def encode(self, seeds: jax.Array, base: jax.Array | None = None) -> Any:
        """The condition that a denoiser is given for these seeds."""
        return ENCODERS[self.encoder](seeds, base)


def check_cases(cases: dict[str, Any], draw: DrawSeeds) -> int:
    """The number of tasks of training cases `[case, task, ...]`.

    Raises:
        ValueError: if shapes do not fit, members are too few, `others` are missing
            where they are drawn, or a value is not finite; says which.
    """
    known = {"members", "others", "base", "is_there"}
    if "members" not in cases or set(cases) - known:
        raise ValueError(
            f"cases hold 'members' and may hold {sorted(known - {'members'})}; got"
            f" {sorted(cases)}."
        )
    shape = np.shape(cases["members"])
    least = draw.num_seeds + (draw.member_share > 0)
    if len(shape) < 4 or shape[2] < least:
        raise ValueError(
            "members must be [case, task, member, *space, channel] with at least"
            f" {least} members; got shape {shape}."
        )
    if draw.member_share < 1 and "others" not in cases:
        raise ValueError(
            f"with member_share = {draw.member_share} targets are drawn from 'others'"
            " too, which the cases lack."
        )
    if "others" in cases and np.shape(cases["others"])[3:] != shape[3:]:
        raise ValueError(
            f"others must be [case, task, other, ...] like members {shape}; got"
            f" {np.shape(cases['others'])}."
        )
    for name, value in cases.items():
        if np.shape(value)[:2] != shape[:2]:
            raise ValueError(
                f"{name} must begin with [case, task] = {shape[:2]}; got shape"
                f" {np.shape(value)}."
            )
        if name == "members" and "is_there" in cases:
            value = np.where(_expanded(cases["is_there"], len(shape)), value, 0.0)
        if not np.isfinite(fetch(jnp.asarray(value))).all():
            raise ValueError(
                f"{name} holds values that are not finite; name missing members in"
                " 'is_there' [case, task, member], and fill or drop the rest."
            )
    if "is_there" in cases:
        fewest = int(np.asarray(cases["is_there"]).sum(axis=2).min())
        if fewest < draw.num_seeds + 1:
            raise ValueError(
                f"a case has {fewest} members that are there; seeds and target are"
                f" {draw.num_seeds + 1}."
            )
    return shape[1]


def _expanded(mask, ndim):
    mask = np.asarray(mask, bool)
    return mask.reshape(*mask.shape, *(1,) * (ndim - mask.ndim))
