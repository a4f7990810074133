"""Scores of single rows, and rows in batches of one size."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.member_arrays import wide_labels
from ensjax.members import pad_members

# A score of rows: fn(outputs [batch, ...], targets [batch, ...]) -> [batch].
RowScore = Callable[[jax.Array, jax.Array], jax.Array]


def _of_classes(values, logits, labels):
    """`values` `[batch]`, NaN where the label is no class."""
    labels = wide_labels(labels)
    is_class = (labels >= 0) & (labels < logits.shape[-1])
    return jnp.where(is_class, values, jnp.nan)


def _accuracy(logits, labels):
    # NaN has an argmax too; a logit of -inf is a class that is ruled out.
    is_valid = jnp.isfinite(jnp.max(logits, axis=-1))
    is_right = jnp.argmax(logits, axis=-1) == labels
    right = jnp.where(is_valid, is_right.astype(jnp.float32), jnp.nan)
    return _of_classes(right, logits, labels)


def _error(logits, labels):
    return 1 - _accuracy(logits, labels)


def _nll(logits, labels):
    log_probs, labels = jax.nn.log_softmax(logits, axis=-1), wide_labels(labels)
    # Without the mode, -1 would be the last class.
    at_label = jnp.take_along_axis(log_probs, labels[:, None], axis=-1, mode="clip")
    return _of_classes(-at_label[:, 0], logits, labels)


def _brier(logits, labels):
    probs = jax.nn.softmax(logits, axis=-1)
    one_hot = jax.nn.one_hot(wide_labels(labels), probs.shape[-1])
    values = jnp.sum(jnp.square(probs - one_hot), axis=-1)
    return _of_classes(values, logits, labels)


def _confidence(logits, labels):
    del labels
    return jnp.max(jax.nn.softmax(logits, axis=-1), axis=-1)


def _squared_error(outputs, targets):
    error = jnp.square(outputs - targets.reshape(outputs.shape))
    return jnp.mean(error.reshape(error.shape[0], -1), axis=-1)


# Each is NaN for a row with an output that is NaN, or a label that is no class.
ROW_SCORES: dict[str, RowScore] = {
    "accuracy": _accuracy,
    "error": _error,
    "nll": _nll,
    "brier": _brier,
    "confidence": _confidence,
    "squared_error": _squared_error,
}
# Whether a larger value is better; of a confidence neither is.
_IS_BETTER_LARGE = {
    "accuracy": True,
    "error": False,
    "nll": False,
    "brier": False,
    "confidence": None,
    "squared_error": False,
}


def is_better_large(score: str | RowScore, largest: bool | None) -> bool:
    """Whether a larger score is better: as it is said, else by the score's name.

    Args:
        score: a name, or a function of rows; those in `ROW_SCORES` are known.
        largest: what was said; `None`: nothing.

    Raises:
        ValueError: if nothing was said and it is not known.
    """
    known = _IS_BETTER_LARGE.get(name_of(score)) if largest is None else bool(largest)
    if known is None:
        named = repr(score) if isinstance(score, str) else "a function of one's own"
        directions = [
            name for name, is_known in _IS_BETTER_LARGE.items() if is_known is not None
        ]
        raise ValueError(
            f"whether {named} is better large or small is not known: give largest=True"
            f" or largest=False. It is known of {', '.join(directions)}."
        )
    return known


def name_of(score: str | RowScore) -> str | None:
    """The name of a score in `ROW_SCORES`, of its name or function; else `None`."""
    return next((n for n, fn in ROW_SCORES.items() if score in (n, fn)), None)


def check_loss(score: str | RowScore) -> None:
    """Raises `ValueError` for a score in `ROW_SCORES` that is not to be small."""
    name = name_of(score)
    if name is not None and _IS_BETTER_LARGE[name] is not False:
        losses = [n for n, is_large in _IS_BETTER_LARGE.items() if is_large is False]
        raise ValueError(
            f"a barrier is of a score that is to be small: {', '.join(losses)}; got"
            f" {name!r}."
        )


def row_scores(
    scores: str | Sequence[str] | Mapping[str, RowScore],
) -> tuple[tuple[str, RowScore], ...]:
    """Names and functions of scores that are given as `sweep` takes them.

    Raises:
        ValueError: if a name is unknown, or there is none.
    """
    if not scores:
        raise ValueError(
            f"give at least one score: of {', '.join(ROW_SCORES)}, or functions by"
            " name."
        )
    if isinstance(scores, Mapping):
        return tuple(scores.items())
    names = [scores] if isinstance(scores, str) else scores
    for name in names:
        if name not in ROW_SCORES:
            raise ValueError(
                f"{name!r} is no score; there are {', '.join(ROW_SCORES)}, or give"
                " functions by name."
            )
    return tuple((name, ROW_SCORES[name]) for name in names)


def scores_of_batch(
    scores: Sequence[tuple[str, RowScore]],
    outputs: Any,
    targets: Any,
    *,
    dataset: str,
) -> dict[str, jax.Array]:
    """Each score of every row of a batch, `[batch]`, by name.

    Args:
        scores: from `row_scores`.
        outputs: of one model, leaves `[batch, ...]`.
        targets: leaves `[batch, ...]`.
        dataset: its name, for what is said.

    Raises:
        ValueError: if the targets or outputs do not fit a score in `ROW_SCORES`, or a
            score gives anything but one number a row. Labels `[batch, 1]` would be
            compared with all rows. While a program is traced that is before it is
            compiled.
    """
    (size,) = {np.shape(x)[0] for x in jax.tree.leaves(targets)}
    found = {}
    for name, score in scores:
        about = f"score {name!r} on datasets[{dataset!r}]"
        _check_known(name_of(score), about, outputs, targets)
        value = score(outputs, targets)
        if np.shape(value) != (size,):
            raise ValueError(
                f"{about} gives shape {list(np.shape(value))} for a batch of {size}"
                f" rows, and must give one number a row, [{size}]. Its outputs are"
                f" {_shapes(outputs)} and its targets {_shapes(targets)}."
            )
        found[name] = value
    return found


def _check_known(known, about, outputs, targets):
    """Raises `ValueError` unless a score in `ROW_SCORES` can be of these."""
    if known is None:
        return
    is_array = [isinstance(x, jax.Array) for x in (outputs, targets)]
    if known == "squared_error":
        if not all(is_array) or outputs.size != targets.size:
            raise ValueError(
                f"{about} needs as many targets as outputs; got {_shapes(targets)} and"
                f" {_shapes(outputs)}."
            )
        return
    if not is_array[0] or outputs.ndim != 2:
        raise ValueError(
            f"{about} needs logits [row, class]; the model's outputs are"
            f" {_shapes(outputs)}."
        )
    is_labels = (
        is_array[1] and jnp.issubdtype(targets.dtype, jnp.integer) and targets.ndim == 1
    )
    if known != "confidence" and not is_labels:
        raise ValueError(
            f"{about} needs targets that are class numbers, integers [row]; got"
            f" {_shapes(targets)}. Take labels[:, 0], labels.argmax(-1) of one-hot"
            " rows, or labels.astype(int)."
        )


def _shapes(tree):
    return ", ".join(f"{x.dtype}{list(x.shape)}" for x in jax.tree.leaves(tree))


def batches_of_rows(
    name: str, data: tuple[Any, Any], batch_size: int, shards: int
) -> tuple[Any, Any, jax.Array]:
    """Inputs, targets and weights in batches of one size, `[batch, row, ...]`.

    Rows that fill the last batch weigh 0; batches divide over `shards`.

    Raises:
        ValueError: if there is no row, or lengths differ; `name` is the dataset's.
    """
    if not isinstance(data, tuple) or len(data) != 2:
        raise ValueError(f"datasets[{name!r}] must be a pair of inputs and targets.")
    lengths = {np.shape(x)[:1] for x in jax.tree.leaves(data)}
    if len(lengths) != 1 or not all(lengths) or batch_size < 1:
        raise ValueError(
            f"datasets[{name!r}] must hold arrays [row, ...] of equal length, and"
            f" batch_size be at least 1; got {sorted(lengths)} and {batch_size}."
        )
    ((count,),) = lengths
    if not count:
        raise ValueError(f"datasets[{name!r}] holds no row.")
    number = math.ceil(count / batch_size)
    size = math.ceil(math.ceil(count / number) / shards) * shards

    def split(leaf):
        leaf = jnp.asarray(leaf)
        return pad_members(leaf, number * size).reshape(number, size, *leaf.shape[1:])

    weight = (jnp.arange(number * size) < count).astype(jnp.float32)
    return (*jax.tree.map(split, data), weight.reshape(number, size))
