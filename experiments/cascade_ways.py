"""The ways of `bench_cascade`: one cascade, run dense, compacted, by capacity, by `if`.

Members have their initial weights: how fast a way is depends on how many rows go on,
which windows decide that are put around the quantiles of the confidences.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

import ensjax
from ensjax import combine, nn


@dataclasses.dataclass(frozen=True)
class Case:
    """A cascade, its members and its rows.

    Attributes:
        cascade: of two stages, with a window of the wanted share.
        ensemble: all members, those of the first stage first.
        models: the members of each stage.
        x: `[row, 8, 8, 1]`.
        batch: rows at a time.
        share: of a batch that goes on.
    """

    cascade: combine.Cascade
    ensemble: ensjax.Ensemble
    models: tuple[ensjax.Ensemble, ...]
    x: np.ndarray
    batch: int
    share: float

    def batches(self):
        """The rows, `batch` at a time."""
        return [self.x[i : i + self.batch] for i in range(0, len(self.x), self.batch)]

    @property
    def capacity(self) -> int:
        """Rows of a batch that go on where their number is fixed."""
        return math.ceil(self.share * self.batch - 1e-9 * self.batch)

    def flops(self, stage_rows: list[int]) -> float:
        """Operations of so many rows of each stage, as the compiler counts them."""
        return sum(
            rows * combine.flops_per_row(model, self.x[: self.batch])
            for model, rows in zip(self.models, stage_rows, strict=True)
        )

    def dense(self) -> combine.CascadeOutput:
        """What every way must answer: the definition, on all rows at once."""
        return self.cascade(self.ensemble(self.x))

    def by_rank(self) -> combine.CascadeOutput:
        """What a fixed capacity must answer: windows by ranks in every batch."""
        parts = []
        for rows in self.batches():
            logits = self.ensemble(rows)
            _, sure = combine.stage_scores(
                logits, self.cascade.stages, self.cascade.confidence
            )
            threshold = self.cascade.windows.threshold
            windows = combine.rank_windows(sure[:1], threshold, self.capacity)
            parts.append(self.cascade.replace(windows=windows)(logits))
        return _join(parts)


@dataclasses.dataclass(frozen=True)
class Way:
    """One way to run a case.

    Attributes:
        run: computes all rows and waits for them.
        stage_rows: how many rows each stage ran on in the last `run`, with padding.
        is_by_rank: whether batches decide by rank who goes on.
    """

    run: Callable[[], combine.CascadeOutput]
    stage_rows: Callable[[], list[int]]
    is_by_rank: bool = False


def make_case(rows: int, batch: int, second: int, share: float) -> Case:
    """A cascade of one member and `second` further ones on noisy digits.

    The window lies around the median confidence; a share of the rows is inside.
    """
    images = ensjax.data.digits().x_train
    rng = np.random.default_rng(0)
    x = images[rng.integers(0, len(images), rows)]
    x = (x + 0.1 * rng.normal(size=x.shape)).astype(np.float32)
    ensemble = ensjax.Ensemble.init(
        _make_member,
        num_members=1 + second,
        seed=0,
        mesh=ensjax.make_mesh(member=1, devices=jax.devices()[:1]),
    )
    stages = ((0,), tuple(range(1, 1 + second)))
    _, sure = combine.stage_scores(ensemble(x), stages, "max_probability")
    ordered = np.sort(np.asarray(sure[0]))
    low = (rows - round(share * rows)) // 2
    # Between two confidences: that of a row does not lie on an end.
    ends = [
        np.float32((float(ordered[i - 1]) + float(ordered[i])) / 2)
        for i in (low, low + round(share * rows))
    ]
    windows = combine.Windows(
        low=jnp.array([ends[0]]),
        high=jnp.array([ends[1]]),
        threshold=jnp.array([ordered[rows // 2]]),
    )
    cascade = combine.Cascade(windows, stages=stages)
    return Case(
        cascade, ensemble, tuple(cascade.split_members(ensemble)), x, batch, share
    )


def _make_member(rngs):
    return nn.CNN(
        image_shape=(8, 8, 1),
        features=(32, 64),
        num_pools=1,
        hidden=(128,),
        num_outputs=10,
        rngs=rngs,
    )


def _dense(case) -> Way:
    program = jax.jit(lambda cascade, ensemble, x: cascade(ensemble(x)))
    call = functools.partial(program, case.cascade, case.ensemble)

    return Way(
        lambda: _join([call(rows) for rows in case.batches()]),
        lambda: [len(case.x)] * 2,
    )


def _compacted(case) -> Way:
    counted = [_Counted(model) for model in case.models]

    def run():
        for model in counted:
            model.rows = 0
        return combine.run_compacted(
            case.cascade, counted, case.x, batch_size=case.batch
        )

    return Way(run, lambda: [model.rows for model in counted])


class _Counted:
    """An ensemble that counts the rows that it is called on."""

    def __init__(self, model):
        self.model, self.rows = model, 0

    def __call__(self, x):
        self.rows += len(x)
        return self.model(x)


def _capacity(case) -> Way:
    program = jax.jit(functools.partial(combine.run_with_capacity, share=case.share))
    call = functools.partial(program, case.cascade, case.models)

    return Way(
        lambda: _join([call(rows) for rows in case.batches()]),
        lambda: [len(case.x), case.capacity * len(case.batches())],
        is_by_rank=True,
    )


def _loop(case) -> Way:
    """A batch goes through the second stage as a whole, `if` one of its rows does."""
    cascade, num_whole = case.cascade, 0

    @jax.jit
    def first(model, x):
        logits = model(x)
        _, sure = combine.stage_scores(logits, ((0,),), cascade.confidence)
        return logits, cascade.goes_on(sure[0], 0)

    @jax.jit
    def both(model, logits, x):
        return cascade(jnp.concatenate([logits, model(x)]))

    @jax.jit
    def alone(logits):
        log_probs, sure = combine.stage_scores(logits, ((0,),), cascade.confidence)
        exits = jnp.zeros(sure.shape[1:], jnp.int32)
        return combine.CascadeOutput(log_probs[0], sure[0], exits)

    def run():
        nonlocal num_whole
        num_whole, parts = 0, []
        for rows in case.batches():
            logits, going = first(case.models[0], rows)
            if bool(np.asarray(going).any()):
                num_whole += 1
                parts.append(both(case.models[1], logits, rows))
            else:
                parts.append(alone(logits))
        return _join(parts)

    return Way(run, lambda: [len(case.x), num_whole * case.batch])


WAYS = {
    "dense": _dense,
    "compacted": _compacted,
    "capacity": _capacity,
    "loop": _loop,
}


def difference(output, expected) -> tuple[float, int]:
    """The largest difference of a probability, and rows with another exit."""
    probs, others = (np.exp(np.asarray(x.log_probs)) for x in (output, expected))
    exits, their_exits = (np.asarray(x.exit_stage) for x in (output, expected))
    return float(np.abs(probs - others).max()), int((exits != their_exits).sum())


def _join(parts):
    return jax.tree.map(
        lambda *leaves: np.concatenate([np.asarray(leaf) for leaf in leaves]), *parts
    )
