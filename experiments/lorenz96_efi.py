"""The extreme forecast index on the ring of Lorenz-96, whose sites have one climate."""

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.verification import extreme_forecast_index

LEVELS = np.linspace(0, 1, 101)  # of the climate


def index_of(members, climate) -> np.ndarray:
    """The index `[case, lead, site]` of members `[member, case, lead, site]`.

    Args:
        members: of all cases.
        climate: states of any shape, of all sites.
    """
    quantiles = jnp.quantile(jnp.asarray(climate).ravel(), jnp.asarray(LEVELS))
    shape = members.shape[1:]
    wide = jnp.broadcast_to(
        quantiles.reshape(-1, *(1,) * len(shape)), (len(LEVELS), *shape)
    )
    return np.asarray(_index(jnp.asarray(members), wide))


@jax.jit
def _index(members, quantiles):
    return extreme_forecast_index(members, quantiles, LEVELS)


def correlations(first, second) -> np.ndarray:
    """Over cases and sites, `[lead]`."""
    leads = range(first.shape[1])
    return np.array(
        [np.corrcoef(first[:, i].ravel(), second[:, i].ravel())[0, 1] for i in leads]
    )
