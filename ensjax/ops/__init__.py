"""Operations that have forms of their own for stacked weights."""

from ensjax.ops.conv import Conv
from ensjax.ops.pool import avg_pool, max_pool

__all__ = ["Conv", "avg_pool", "max_pool"]
