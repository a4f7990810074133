"""Selection and scaling of features as pure functions of rows that count.

A stage is fitted on a mask of rows, so that all folds are fitted by one compiled
program: `fit_masked_stages` takes the masks from the training parts of splits, and from
nowhere else. `ensjax.data.pipeline` does the same with scikit-learn's transformers.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ensjax.data.partition import Split
from ensjax.member_arrays import wide_labels

_ROUNDING = 1e-6  # of float32, relative to the mean: less spread than this is none


def f_scores(
    x: jax.Array, labels: jax.Array, weight: jax.Array, num_classes: int
) -> jax.Array:
    """ANOVA F of every feature: variance between classes over variance within.

        F_j = (sum_c n_c (m_cj - m_j)^2 / (C - 1)) / (sum_n (x_nj - m_cj)^2 / (N - C))

    Classes without a row do not count in C. Constant features give NaN.

    Args:
        x: `[example, feature]`; rows of weight 0 may hold anything.
        labels: class indices `[example]`; those of rows of weight 0 may be any number.
        weight: `[example]`, non-negative; a bool mask works too.
        num_classes: number of classes.

    Returns:
        `[feature]`, float32. In a compiled program NaN if a label is out of range.

    Raises:
        ValueError: if the label of a row that counts is no class from 0 on.

    Source: as `sklearn.feature_selection.f_classif`.
    """
    x, weight = _kept(x, weight)
    labels = wide_labels(labels)
    is_stray = (weight != 0) & ((labels < 0) | (labels >= num_classes))
    if not isinstance(is_stray, jax.core.Tracer):
        _check_labels(np.asarray(labels), np.asarray(weight) != 0, num_classes)
    labels = jnp.clip(labels, 0, num_classes - 1)
    member = jax.nn.one_hot(labels, num_classes) * weight[:, None]  # [example, class]
    count = jnp.sum(member, axis=0)
    total = jnp.sum(count)
    mean = _matmul(weight, x) / total
    x = x - mean[None]  # else sums of squares cancel
    means = _matmul(member.T, x)  # [class, feature]
    means = means / jnp.maximum(count, 1e-30)[:, None]
    between = jnp.sum(count[:, None] * means**2, axis=0)
    within = _matmul(weight, (x - means[labels]) ** 2)
    present = jnp.sum(count > 0)
    # What rounding leaves of a constant is no variance.
    is_constant = between + within <= total * (_ROUNDING * mean) ** 2
    score = (between / (present - 1)) / (within / (total - present))
    return jnp.where(is_constant | jnp.any(is_stray), jnp.nan, score)


@dataclasses.dataclass(frozen=True)
class SelectByF:
    """Keeps the `num_features` features of the largest F, largest first.

    Equal ones: the lower index first. Features without an F (constant) come last.

    Attributes:
        num_features: how many are kept.
        num_classes: labels are from 0 to `num_classes - 1`; others are refused.
    """

    num_features: int
    num_classes: int

    def fit(self, x, labels, weight):
        """`{"columns": [feature]}` of the rows that count."""
        score = f_scores(x, labels, weight, self.num_classes)
        score = jnp.where(jnp.isnan(score), -jnp.inf, score)
        return {"columns": jax.lax.top_k(score, self.num_features)[1]}

    def transform(self, fitted, x):
        """`x` with the columns kept."""
        return jnp.take(x, fitted["columns"], axis=-1)


@dataclasses.dataclass(frozen=True)
class Standardize:
    """Subtracts the mean, divides by the standard deviation (ddof 0; 1 if it is 0)."""

    def fit(self, x, labels, weight):
        """`{"mean": [feature], "sd": [feature]}` of the rows that count."""
        x, weight = _kept(x, weight)
        mean = _matmul(weight, x) / jnp.sum(weight)
        sd = jnp.sqrt(_matmul(weight, (x - mean[None]) ** 2) / jnp.sum(weight))
        is_constant = sd <= _ROUNDING * jnp.abs(mean)
        return {"mean": mean, "sd": jnp.where(is_constant, 1.0, sd)}

    def transform(self, fitted, x):
        """`x` in standard deviations of the rows it was fitted on."""
        return (x - fitted["mean"][None]) / fitted["sd"][None]


@dataclasses.dataclass(frozen=True)
class ImputeMean:
    """Replaces NaN by the mean of the feature's numbers; 0 where there are none."""

    def fit(self, x, labels, weight):
        """`{"mean": [feature]}` of the rows that count."""
        x, weight = _kept(x, weight)
        weight = jnp.where(jnp.isnan(x), 0.0, weight[:, None])
        count = jnp.sum(weight, axis=0)
        total = jnp.sum(jnp.where(jnp.isnan(x), 0.0, x) * weight, axis=0)
        return {"mean": jnp.where(count > 0, total / jnp.maximum(count, 1e-30), 0.0)}

    def transform(self, fitted, x):
        """`x` without NaN."""
        return jnp.where(jnp.isnan(x), fitted["mean"][None], x)


@dataclasses.dataclass(frozen=True)
class PrincipalComponents:
    """The first principal components of the rows that count.

    The largest loading of a component is positive, so that signs are no accident.
    """

    num_components: int

    def fit(self, x, labels, weight):
        """`{"mean": [feature], "axes": [component, feature]}`."""
        x, weight = _kept(x, weight)
        mean = _matmul(weight, x) / jnp.sum(weight)
        _, _, axes = jnp.linalg.svd(
            jnp.sqrt(weight)[:, None] * (x - mean[None]), full_matrices=False
        )
        axes = axes[: self.num_components]
        largest = jnp.argmax(jnp.abs(axes), axis=1)
        sign = jnp.sign(jnp.take_along_axis(axes, largest[:, None], axis=1))
        return {"mean": mean, "axes": axes * sign}

    def transform(self, fitted, x):
        """Scores `[..., component]`."""
        return _matmul(x - fitted["mean"][None], fitted["axes"].T)


@struct.dataclass
class FittedStages:
    """Stages fitted on the training rows of every split, stacked.

    Attributes:
        fitted: what each stage learned, leaves `[split, ...]`.
        stages: the stages themselves.
        train_rows: `[split, example]` bools, the rows that they were fitted on.
    """

    fitted: tuple
    train_rows: np.ndarray
    stages: tuple = struct.field(pytree_node=False)

    def transform(self, x: jax.Array) -> jax.Array:
        """`[split, example, feature]`: the same rows as every split sees them."""

        def one(fitted):
            return _transform(self.stages, fitted, jnp.asarray(x, jnp.float32))

        return jax.vmap(one)(self.fitted)


def fit_masked_stages(
    stages: Sequence[Any],
    x: jax.Array,
    labels: jax.Array,
    splits: Iterable[Split],
) -> FittedStages:
    """Fits stages one behind the other inside every split, all in one program.

    The rows they see are the splits' "train" rows. No argument says otherwise: that
    would be a leak.

    Args:
        stages: each has `fit(x, labels, weight)` and `transform(fitted, x)`, of static
            shapes, and is hashable, such as `SelectByF(100, num_classes=2)` or
            `Standardize()`. Of one with `num_classes`, labels are checked.
        x: `[example, feature]` of the whole source.
        labels: class indices `[example]`; of rows that no split trains on, any.
        splits: of this source, such as `Folds`.

    Returns:
        `FittedStages`; its `transform` is pure and runs under `jit`.

    Raises:
        ValueError: if a length does not fit, there is no split, or a training row's
            label is none of a stage's classes.

    Example:
        >>> import numpy as np
        >>> from ensjax import data
        >>> x, y = np.random.default_rng(0).normal(size=(20, 6)), np.arange(20) % 2
        >>> folds = data.make_folds("noise", 20, 4, seed=0, labels=y)
        >>> stages = (data.SelectByF(3, num_classes=2), data.Standardize())
        >>> data.fit_masked_stages(stages, x, y, folds).transform(x).shape
        (4, 20, 3)
    """
    masks = [split.mask("train") for split in splits]
    if not masks:
        raise ValueError("stages are fitted inside at least one split; got none.")
    masks = np.stack(masks)
    x, labels = np.asarray(x), np.asarray(labels)
    if x.ndim != 2 or not x.shape[:1] == labels.shape == masks.shape[1:]:
        raise ValueError(
            f"x must be [example, feature] and labels [example] for the splits'"
            f" {masks.shape[1]} rows; got {x.shape} and {labels.shape}."
        )
    for stage in stages:
        if (num_classes := getattr(stage, "num_classes", None)) is not None:
            _check_labels(labels, masks.any(axis=0), num_classes)
    fitted = _fit(tuple(stages), jnp.asarray(x, jnp.float32), labels, masks)
    return FittedStages(fitted, masks, tuple(stages))


def _check_labels(labels, counts, num_classes):
    strays = counts & ((labels < 0) | (labels >= num_classes))
    if strays.any():
        raise ValueError(
            f"labels must be from 0 to {num_classes - 1}, with num_classes="
            f"{num_classes}; got {np.unique(labels[strays])[:8].tolist()}, first in row"
            f" {np.flatnonzero(strays)[0]}. Number the classes from 0 on, and leave"
            " rows without a label out of training."
        )


def _fit_stages(stages, x, labels, masks):
    def one(mask):
        seen, fitted = x, []
        for stage in stages:
            fitted.append(stage.fit(seen, labels, mask))
            seen = stage.transform(fitted[-1], seen)
        return tuple(fitted)

    # One split after the other: all at once would hold a copy of the data for each.
    return jax.lax.map(one, masks)


_fit = jax.jit(_fit_stages, static_argnums=0)


def _transform(stages, fitted, x):
    for stage, learned in zip(stages, fitted, strict=True):
        x = stage.transform(learned, x)
    return x


def _matmul(first, second):
    # In full: by default devices may keep three digits of what is multiplied.
    return jnp.matmul(first, second, precision="highest")


def _kept(x, weight):
    """Rows and weights as floats, rows of weight 0 as zeros, whatever they held."""
    weight = jnp.asarray(weight, jnp.float32)
    return jnp.where(weight[:, None] > 0, x, 0.0), weight
