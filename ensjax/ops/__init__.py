"""Operations that have forms of their own for stacked weights, and the sphere's."""

from ensjax.ops.conv import Conv
from ensjax.ops.pool import avg_pool, max_pool
from ensjax.ops.sphere import (
    SphericalGrid,
    find_grid,
    from_real_harmonics,
    to_real_harmonics,
)
from ensjax.ops.sphere_filters import LocalFilters

__all__ = [
    "Conv",
    "LocalFilters",
    "SphericalGrid",
    "avg_pool",
    "find_grid",
    "from_real_harmonics",
    "max_pool",
    "to_real_harmonics",
]
