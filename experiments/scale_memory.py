"""How many members fit a GiB, by the compiled training step, for `bench_scale`.

The memory is what the compiler says of one device: arguments (weights, Adam's moments,
the resident data), outputs that take no argument's place, and temporaries. Nothing is
allocated and nothing runs. The search compiles for a few numbers of members; the
largest that was found to fit is reported, with the bytes it takes.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from ensjax import Ensemble, losses
from ensjax.experiment.configs import load_module
from ensjax.mesh import make_mesh
from ensjax.train.lowering import lower_step

alternatives = load_module(Path(__file__).with_name("engine_alternatives.py"), "bench")

GIB = 1024**3
BLOCKS = {"1": 1, "auto": "auto", "all": None}
MODELS = ("mlp-small", "mlp-large", "cnn", "resnet20", "vit")
MOST_COMPILATIONS = 8
# The search ends when so much of the limit is used.
CLOSE_ENOUGH = 0.98
# The program before machine code is the same, in half the time; only on a CPU is that
# all the option does.
QUICK = {"xla_backend_optimization_level": 0}


def step_bytes(workload: Any, num_members: int, block: Any) -> int:
    """Bytes of one device at a training step of `num_members` members."""

    def make_model(rngs):
        return workload.make_model(rngs, "auto")

    data = (
        jax.ShapeDtypeStruct(
            (workload.num_examples, *workload.example_shape), "float32"
        ),
        jax.ShapeDtypeStruct((workload.num_examples,), "int32"),
    )
    shapes = jax.eval_shape(lambda: Ensemble.init(make_model, num_members=num_members))
    lowered = lower_step(
        shapes,
        data,
        loss=losses.cross_entropy,
        make_tx=alternatives.adam,
        hyper=alternatives.LEARNING_RATE,
        batch_size=workload.batch_size,
        mesh=make_mesh(devices=jax.devices()[:1]),
        block=block,
        # As `fit` runs it: a loop, since one step alone is another program.
        steps_per_call=min(workload.steps_per_call, 10),
    )
    options = QUICK if jax.default_backend() == "cpu" else None
    memory = lowered.compile(options).memory_analysis()
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )


def most_that_fit(
    bytes_of: Callable[[int], int], limit: int, *, first: int
) -> tuple[int, int]:
    """The largest number of members found whose bytes are at most `limit`.

    By secants, since memory grows about linearly in members.

    Args:
        bytes_of: bytes of so many members, a compilation each.
        limit: in bytes.
        first: the number to start from.

    Returns:
        The number and its bytes; `(0, 0)` if one member does not fit.
    """
    known = {}

    def look(count):
        if count not in known:
            known[count] = bytes_of(count)
        return known[count]

    look(first)
    look(2 * first)
    while len(known) < MOST_COMPILATIONS:
        fitting = [count for count, size in known.items() if size <= limit]
        above = [count for count, size in known.items() if size > limit]
        low, high = max(fitting, default=0), min(above, default=None)
        if fitting and known[low] >= CLOSE_ENOUGH * limit:
            break
        if high is not None and high - low <= 1:
            break
        # The two sizes that are nearest to the limit give the line.
        a, b = sorted(sorted(known, key=lambda c: abs(known[c] - limit))[:2])
        slope = max(1.0, (known[b] - known[a]) / (b - a))
        guess = int(a + (limit - known[a]) / slope)
        if guess in known or guess <= low:
            guess = low + 1 if high is None else (low + high) // 2
        if high is not None:
            guess = min(guess, high - 1)
        look(max(1, guess))
    fitting = [count for count, size in known.items() if size <= limit]
    best = max(fitting, default=0)
    return best, known.get(best, 0)


def measure_memory(name: str, advance: Callable[[], None] = lambda: None) -> list[dict]:
    """A row for each block: members that fit one GiB."""
    workload = alternatives.WORKLOADS[name]
    rows = []
    for shown, block in BLOCKS.items():
        start = time.perf_counter()
        found, size = most_that_fit(
            lambda count, block=block: step_bytes(workload, count, block), GIB, first=4
        )
        rows.append(
            {
                "group": "memory",
                "name": f"members per GiB {name} block={shown}",
                "model": name,
                "title": f"{workload.title}, block={shown}",
                "members": found,
                "batch": workload.batch_size,
                "dtype": "float32",
                "devices": 1,
                "what": "members in one GiB of a device",
                "bytes": size,
                "compile_seconds": time.perf_counter() - start,
                "note": f"{size / GIB:.3f} GiB ({jax.default_backend()})",
                "measurements": {"members per GiB": [found]},
            }
        )
        advance()
    return rows
