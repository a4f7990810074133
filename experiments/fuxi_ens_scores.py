"""What `fuxi_ens.py` measures of ensembles of forecasts; in deviations of the climate.

An ensemble is `[member, start, lead, site]`, its truth `[start, lead, site]`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ensjax import verification
from ensjax.scores.rank_correlation import spearman_correlation

NUM_BINS = 8  # of the figure of deviation and error


def measure(ensemble, truth, *, block_sites: int, short_leads) -> dict[str, np.ndarray]:
    """Scores of one ensemble.

    Args:
        ensemble: `[member, start, lead, site]`.
        truth: `[start, lead, site]`.
        block_sites: neighbours that are one cell.
        short_leads: at which ranks are counted, in outputs from 1.

    Returns:
        `cells` `[start, lead, block]`, the fair CRPS; `fair`, `ssr` and `rmse` (of the
        mean) `[lead]`; `ranks` `[short lead, rank]`, shares over those of a reliable
        ensemble; and `error` `[start, site]`, of the mean at the first lead.
    """
    own = _scored(jnp.asarray(ensemble), jnp.asarray(truth))
    own = {name: np.asarray(value) for name, value in own.items()}
    crps = own.pop("crps")
    cells = crps.reshape(*crps.shape[:-1], -1, block_sites).mean(axis=-1)
    number = len(ensemble)
    counter = verification.rank_histogram(number)
    shares = []
    for lead in short_leads:
        counts = np.asarray(
            counter(ensemble[:, :, lead - 1], truth[:, lead - 1]).counts
        )
        shares.append(counts / counts.mean())
    return {
        "cells": cells,
        "fair": crps.mean(axis=(0, 2)),
        "ranks": np.stack(shares),
        **own,
    }


@jax.jit
def _scored(ensemble, truth):
    mean_over = (0, 2)
    return {
        "crps": verification.crps("fair").over()(ensemble, truth),
        "ssr": verification.spread_skill().over(*mean_over)(ensemble, truth).ratio,
        "rmse": jnp.sqrt(
            jnp.mean(jnp.square(ensemble.mean(axis=0) - truth), axis=mean_over)
        ),
        "error": jnp.abs(ensemble.mean(axis=0) - truth)[:, 0],
    }


def flow_dependence(sigma, error) -> tuple[float, np.ndarray]:
    """Whether the perturbation is large where the forecast errs.

    Args:
        sigma: deviation of the perturbation, `[start, site]`.
        error: absolute error of the mean, `[start, site]`.

    Returns:
        Spearman's correlation over starts and sites; and means of deviation and error
        in bins of equal numbers, `[2, bin]`.
    """
    sigma, error = np.ravel(sigma), np.ravel(error)
    correlation = float(spearman_correlation(jnp.asarray(sigma), jnp.asarray(error)))
    parts = np.array_split(np.argsort(sigma, kind="stable"), NUM_BINS)
    means = [[x[part].mean() for part in parts] for x in (sigma, error)]
    return correlation, np.asarray(means)


def better_cells(
    cells, others, *, seed: int, num_resamples: int, block_length: int
) -> dict[str, np.ndarray]:
    """Where one ensemble's fair CRPS is below another's on the same starts.

    Args:
        cells: `[start, lead, block]` of the first.
        others: of the second, with the same starts.
        seed: of the resamples.
        num_resamples, block_length: of the paired block bootstrap over starts.

    Returns:
        `share` `[3]` of the cells, with its 95 % interval; `sure` `[2]`, shares of the
        cells whose own interval lies below and above 0; `first_lead`, the first lead,
        in outputs, from which on the first ensemble is better over all sites (0: at
        none); and `difference` `[3, lead]`, mean over sites with its interval.
    """
    counts = verification.draw_blocks(
        jax.random.key(seed),
        len(cells),
        block_length=block_length,
        num_resamples=num_resamples,
    )
    found = _resampled(counts, jnp.asarray(cells - others, jnp.float32))
    mean = (cells - others).mean(axis=0)
    share = np.mean(mean < 0)
    low, high = (np.asarray(end) for end in found["cell_ends"])
    by_lead = mean.mean(axis=-1)
    is_better = np.append(by_lead < 0, True)
    # From which lead on all are better; one after the last stands for none.
    first = int(np.flatnonzero(~is_better).max(initial=-1)) + 1
    lead_ends = np.asarray(found["lead_ends"])
    return {
        "share": np.array([share, *np.asarray(found["share_ends"])]),
        "sure": np.array([np.mean(high < 0), np.mean(low > 0)]),
        "first_lead": np.array(0 if first == len(by_lead) else first + 1),
        "difference": np.stack([by_lead, *lead_ends]),
    }


@functools.partial(jax.jit)
def _resampled(counts, differences):
    """Ends of intervals over resamples, counts `[resample, start]`."""
    means = jnp.einsum("rs,slb->rlb", counts, differences) / counts.shape[1]
    ends = jnp.asarray([0.025, 0.975])
    shares = jnp.mean(means < 0, axis=(1, 2))
    return {
        "share_ends": jnp.quantile(shares, ends),
        "cell_ends": jnp.quantile(means, ends, axis=0),
        "lead_ends": jnp.quantile(means.mean(axis=-1), ends, axis=0),
    }
