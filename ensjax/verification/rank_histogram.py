"""Where observations lie among the members: rank histogram, unreliability, PIT.

Members and observation that are exchangeable give every rank the same chance. Where
values are equal, as in rain that is often 0, the rank is one of several, each with the
same chance: counting ties as below, or as above, tilts the histogram. Where members are
missing, a rank among fewer covers several of the M + 1 ranks, or parts of them, and one
is drawn: counting it as its own number, or as the nearest, tilts the histogram too.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ensjax.verification.ingredients import PLACE, Place
from ensjax.verification.metric import Metric
from ensjax.verification.sums import InBins


class RankHistogram(NamedTuple):
    """How often the observation had each rank, and what follows.

    Attributes:
        counts: weight of the elements of each rank, `[..., M + 1]`; rank 0 is below all
            members.
        expected: N / (M + 1), N the weight of all, `[...]`.
        unreliability: sum (n_k - N / (M+1))^2 / (N M / (M+1)); about 1 for a reliable
            ensemble and independent elements of weight 1, `[...]`.
        outliers: share of the first and the last rank, `[...]`; 2 / (M + 1) for a
            reliable ensemble. Of whole ones, those are observations outside of it.
    """

    counts: jax.Array
    expected: jax.Array
    unreliability: jax.Array
    outliers: jax.Array


def rank_histogram(num_members: int, *, seed: int = 0) -> Metric:
    """The rank histogram of the observations, `RankHistogram`; ties are drawn.

        r = #{x_m < y} + floor(U (#{x_m = y} + 1)),   U uniform

    U depends on the seed, on the element's place in its case, and on
    `reference["case_ids"]`, integers `[case]`; without them, on the case's number in
    what it is called with. `sum_cases` numbers all its cases. Whoever merges chunks
    with ties, such as rain that is often 0, or with missing members, must give ids:
    else all chunks draw the same U, and the histogram of a reliable ensemble is bent.

    A member that is missing, NaN or masked, is left out. Of the n < M others, the
    transform of `pit_histogram`, uniform if all are exchangeable, is put onto M + 1
    ranks,

        r = floor((M + 1) u),   u = (#{x_m < y} + U (#{x_m = y} + 1)) / (n + 1)

    so that every rank has the chance 1 / (M + 1) whatever n is, each element is still
    one count, and the unreliability keeps its distribution; for n = M it is the rank
    itself. It needs that which members are missing says nothing of the observation. A
    few members tell little: they flatten a histogram that is not flat. Weights of 0
    leave out elements that lack some, as other packages do.

    Args:
        num_members: M. An element without any member is not scored.
        seed: of the draws.

    Raises:
        ValueError: if there is no member; on the call, if the forecast has another
            number of rows than M, masked ones included. Elements of states into which
            more members were folded are not scored.

    Source: Hamill 2001, Monthly Weather Review 129, section 2; Candille and Talagrand
    2005, QJRMS 131, section 3 (unreliability); Czado, Gneiting and Held 2009,
    Biometrics 65, equation 1 (u). The ranks of elements that lack members are ours.
    """
    if num_members < 1:
        raise ValueError(f"num_members must be 1 or more; got {num_members}.")
    return _ranks(int(num_members), int(seed))


@functools.lru_cache(maxsize=64)
def _ranks(num_members, seed):
    num_bins = num_members + 1

    def statistics(place, truth, reference):
        draw = case_uniforms(seed, reference, truth.shape)
        jump = jnp.floor(draw * (place.ties + 1)).astype(jnp.int32)
        rank = place.below + jnp.minimum(jump, place.ties)
        # Whole ensembles count in integers, without rounding.
        spread = num_bins * pit_values(place, draw)
        spread = jnp.minimum(jnp.nan_to_num(spread).astype(jnp.int32), num_members)
        rank = jnp.where(place.count == num_members, rank, spread)
        is_ranked = (place.count > 0) & (place.count <= num_members)
        one = jnp.where(is_ranked, 1.0, jnp.nan)
        return {"rank": InBins(one, jnp.where(is_ranked, rank, 0), num_bins)}

    def final(mean):
        total, counts = mean["total"]["weight"], mean["total"]["rank"]
        expected = total / num_bins
        excess = jnp.sum((counts - expected[..., None]) ** 2, axis=-1)
        return RankHistogram(
            counts,
            expected,
            excess / (total * num_members / num_bins),
            mean["rank"][..., 0] + mean["rank"][..., -1],
        )

    def of_members(forecast, truth, mask, reference, vector_axes):
        if len(forecast) != num_members:
            raise ValueError(
                f"rank_histogram({num_members}) needs a forecast of {num_members}"
                f" members; got {len(forecast)}. Fill up rows that are missing with"
                " NaN, or use pit_histogram."
            )
        return PLACE.of_members(forecast, truth, mask, reference, vector_axes)

    ingredient = dataclasses.replace(PLACE, of_members=of_members)
    return Metric(ingredient, statistics, final, best="none")


def case_uniforms(seed: int, reference: object, shape: tuple[int, ...]) -> jax.Array:
    """Uniform numbers `shape`, each of its case's id and its place in the case."""
    key = jax.random.key(seed, impl="threefry2x32")
    if not shape:
        return jax.random.uniform(key)
    ids = reference.get("case_ids") if isinstance(reference, dict) else None
    ids = jnp.arange(shape[0]) if ids is None else jnp.asarray(ids)
    if ids.shape != shape[:1] or not jnp.issubdtype(ids.dtype, jnp.integer):
        raise ValueError(
            f"reference['case_ids'] must be integers [case] = {shape[:1]}; got"
            f" {ids.dtype} of shape {ids.shape}."
        )
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, ids)
    return jax.vmap(lambda k: jax.random.uniform(k, shape[1:]))(keys)


class PitHistogram(NamedTuple):
    """Shares of probability integral transforms in equal bins of (0, 1).

    Attributes:
        shares: `[..., bin]`; 1 / bins each for a reliable ensemble.
        deviation: root of the mean squared difference from that, `[...]`.
    """

    shares: jax.Array
    deviation: jax.Array


def pit_histogram(num_bins: int = 10, *, seed: int = 0) -> Metric:
    """Histogram of the randomised probability integral transform, `PitHistogram`.

        u = (#{x_m < y} + U (#{x_m = y} + 1)) / (M + 1),   U uniform

    Uniform for exchangeable members, whatever their number, which may differ from
    element to element. Draws as in `rank_histogram`. That of a normal distribution is
    `scores.pit_gaussian`.

    Args:
        num_bins: how many bins.
        seed: of the draws.

    Raises:
        ValueError: if there is no bin.

    Source: Czado, Gneiting and Held 2009, Biometrics 65, equation 1.
    """
    if num_bins < 1:
        raise ValueError(f"num_bins must be 1 or more; got {num_bins}.")
    return _pit(int(num_bins), int(seed))


@functools.lru_cache(maxsize=64)
def _pit(num_bins, seed):
    def statistics(place, truth, reference):
        u = pit_values(place, case_uniforms(seed, reference, truth.shape))
        bins = jnp.floor(jnp.nan_to_num(u) * num_bins).astype(jnp.int32)
        one = jnp.where(jnp.isnan(u), jnp.nan, 1.0)
        return {"pit": InBins(one, jnp.clip(bins, 0, num_bins - 1), num_bins)}

    def final(mean):
        away = mean["pit"] - 1 / num_bins
        return PitHistogram(mean["pit"], jnp.sqrt(jnp.mean(away**2, axis=-1)))

    return Metric(PLACE, statistics, final, best="none")


def pit_values(place: Place, draw: jax.Array) -> jax.Array:
    """The transform of every element for uniform `draw`; NaN without members."""
    known = jnp.where(place.count > 0, place.count + 1.0, jnp.nan)
    return (place.below + draw * (place.ties + 1)) / known
