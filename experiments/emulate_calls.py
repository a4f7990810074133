"""How often ways of `bench_emulate` whose step takes microseconds do it in one call."""

from collections.abc import Callable
from typing import Any

ON_ACCELERATORS = 20


def num_repeats() -> int:
    """Once on a CPU. An accelerator is given steps that wait for each other, as in
    training: of one alone a clock sees how long the host takes to begin it."""
    import jax

    return 1 if jax.default_backend() == "cpu" else ON_ACCELERATORS


def repeat(step: Callable[..., Any], *given: Any) -> Any:
    """What `step(*given)` gives the last time, once all of them are done."""
    import jax

    for _ in range(num_repeats()):
        found = step(*given)
    return jax.block_until_ready(found)
