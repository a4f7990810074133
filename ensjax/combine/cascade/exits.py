"""Cascades: later members look only at the rows on which they can change a decision.

A `Cascade` says which members run in which stage and which rows go on. Called on the
predictions of all members it selects (one program, to evaluate with); how to run only
what is needed is in `cascade_runs`, and gives the same answers.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ensjax.combine.calibration.fitting import (
    check_predictions,
    check_use,
    covered_weight,
)
from ensjax.combine.cascade.windows import Windows, fit_single_threshold, fit_windows
from ensjax.combine.rules.pool import give_back
from ensjax.ensemble import Ensemble
from ensjax.group import Group
from ensjax.predictions import Predictions, as_predictions
from ensjax.predictions import log_probs as normalize
from ensjax.scores.confidence import (
    max_log_odds,
    max_logit,
    negative_energy,
    negative_entropy,
)
from ensjax.scores.rows import check_rows, is_correct

EXIT_RULES = ("threshold", "window")


class Confidence(NamedTuple):
    """How sure the members that have run are.

    Attributes:
        score: of one distribution or one member's logits, `[..., class]` to `[...]`.
        of_mean_probs: whether it is the score of the members' mean probability, or the
            mean of the members' scores, as of energies, which need logits.
    """

    score: Callable[[jax.Array], jax.Array]
    of_mean_probs: bool


CONFIDENCES = {
    "energy": Confidence(negative_energy, False),
    "max_logit": Confidence(max_logit, False),
    "max_probability": Confidence(max_log_odds, True),
    "negative_entropy": Confidence(negative_entropy, True),
}


class CascadeOutput(NamedTuple):
    """What a cascade says of each row, as of the stage where the row left.

    Attributes:
        log_probs: of the mean probability of all members up to there, `[batch, class]`.
        confidence: `[batch]`; those of different stages are compared as they are.
        exit_stage: `[batch]`, int32, from 0.
    """

    log_probs: jax.Array
    confidence: jax.Array
    exit_stage: jax.Array


@struct.dataclass
class Cascade:
    """Stages of members, and windows that say which rows go on.

    A row that goes on is judged by all members that it has seen. Called on the
    predictions of all members, `cascade(logits)`, it gives a `CascadeOutput`.

    Attributes:
        windows: `Windows` of `[stage - 1]`.
        stages: the positions of each stage's members on the member axis.
        exit_rule: "window": a row goes on iff its confidence lies strictly between
            `low` and `high`; "threshold": iff it lies below `high`.
        confidence: "max_probability" (by its log-odds) and "negative_entropy" of the
            mean probability, or the members' mean "max_logit" or "energy".
        is_weighted: whether the windows were fitted on members of unequal weights, or
            on some that were masked: what runs the members then needs the weights.

    Example:
        >>> import jax.numpy as jnp
        >>> from ensjax import combine
        >>> ends = [jnp.array([x]) for x in (-1.0, 1.0, 0.0)]  # in log-odds
        >>> cascade = combine.Cascade(combine.Windows(*ends), stages=((0,), (1,)))
        >>> logits = jnp.array([[[9.0, 0.0], [0.4, 0.0]], [[0.0, 9.0], [0.0, 9.0]]])
        >>> output = cascade(logits)
        >>> output.exit_stage.tolist(), output.log_probs.argmax(-1).tolist()
        ([0, 1], [0, 1])
    """

    windows: Windows
    stages: tuple[tuple[int, ...], ...] = struct.field(pytree_node=False)
    exit_rule: str = struct.field(pytree_node=False, default="window")
    confidence: str = struct.field(pytree_node=False, default="max_probability")
    is_weighted: bool = struct.field(pytree_node=False, default=False)

    def __post_init__(self):
        stages = tuple(tuple(int(i) for i in stage) for stage in self.stages)
        members = [i for stage in stages for i in stage]
        if not stages or not all(stages) or len(set(members)) < len(members):
            raise ValueError(
                "stages are tuples of member positions, none empty and each member in"
                f" one of them; got {self.stages}."
            )
        object.__setattr__(self, "stages", stages)
        for name, value, known in (
            ("exit_rule", self.exit_rule, EXIT_RULES),
            ("confidence", self.confidence, CONFIDENCES),
        ):
            if value not in known:
                raise ValueError(
                    f"{name} must be one of {', '.join(known)}; got {value!r}."
                )
        # Transformations of JAX rebuild a cascade from other things than arrays.
        shape = getattr(getattr(self.windows, "high", None), "shape", None)
        if shape is not None and shape[-1:] != (len(stages) - 1,):
            raise ValueError(
                f"{len(stages)} stages have windows of [{len(stages) - 1}]; got shape"
                f" {shape}."
            )

    @property
    def num_stages(self) -> int:
        """S, the number of stages."""
        return len(self.stages)

    def goes_on(self, confidence: jax.Array, boundary: int) -> jax.Array:
        """Which rows go on from stage `boundary` to the next, bool `[batch]`.

        A row whose confidence is NaN does not.
        """
        below = confidence < self.windows.high[boundary]
        if self.exit_rule == "threshold":
            return below
        return below & (confidence > self.windows.low[boundary])

    def __call__(
        self, logits: jax.Array | Predictions, *, allow_seen: bool = False
    ) -> CascadeOutput:
        """The cascade's answers, selected from the predictions of all members.

        Nothing is saved: it is the reference of the ways to run in `cascade_runs`.

        Args:
            logits: logits or log-probabilities `[member, batch, class]`, or
                `Predictions`, whose weights and mask count. A masked member counts as
                removed: a stage of masked members changes nothing.
            allow_seen: whether the fit itself is looked at. Without, rows of the fit
                are refused, as far as they are known.

        Returns:
            `CascadeOutput`, arrays also of `Predictions` (see `predictions`); NaN where
            no member of the first stage counts.

        Raises:
            ValueError: if a stage names a member that is not there.
            TypeError: if only votes are known, or the confidence is one of logits and
                `Predictions` hold log-probabilities.
            LeakageError: for rows that the windows were fitted on; see `allow_seen`.
        """
        predictions = as_predictions(logits)
        check_use(self.windows.fitted_rows, logits, allow_seen=allow_seen)
        pools = running_pools(predictions, self.stages, self.confidence)
        output = first_output(pools[0], self.confidence)
        going = jnp.ones(output.confidence.shape, bool)
        for stage, pool in enumerate(pools[1:], start=1):
            going = going & self.goes_on(output.confidence, stage - 1)
            new = read_pool(pool, self.confidence)
            output = CascadeOutput(
                jnp.where(going[:, None], new[0], output.log_probs),
                jnp.where(going, new[1], output.confidence),
                jnp.where(going, stage, output.exit_stage),
            )
        return output

    def predictions(self, predictions: Predictions) -> Predictions:
        """The answers alone, as log-probabilities of one member.

        It has seen what the members have that count, and the rows of the windows.

        Raises:
            ValueError, TypeError: as when it is called.
            LeakageError: for test rows that the windows were fitted on.
        """
        # What this gives says itself that it has seen rows of the fit.
        log_probs = self(predictions, allow_seen=True).log_probs
        return give_back(predictions, log_probs, self.windows.fitted_rows)

    def split_members(self, ensemble: Ensemble | Group) -> tuple[Any, ...]:
        """The members of each stage, an ensemble or group of its own each.

        Raises:
            ValueError, IndexError: as `Ensemble.select`.
        """
        return tuple(ensemble.select(list(stage)) for stage in self.stages)


def fit_cascade(
    logits: jax.Array | Predictions,
    labels: jax.Array,
    *,
    stages: Sequence[Sequence[int]],
    task: str = "coverage_at_risk",
    level: float = 0.05,
    width: float | Sequence[float] = 0.1,
    confidence: str = "max_probability",
    sample_weight: jax.Array | None = None,
) -> Cascade:
    """A cascade whose windows are fitted on held-out rows, see `fit_windows`.

    Each window is that of the members up to its stage on all held-out rows, whether
    they would have left earlier or not.

    Args:
        logits: of held-out rows, `[member, batch, class]`, or `Predictions`.
        labels: class indices `[batch]`; one out of range gives windows of NaN.
        stages: positions of each stage's members.
        task, level, width: what the windows are for, as in `fit_windows`; `width` is a
            number or one for each boundary. The task "threshold" fits the exit rule
            "threshold": the least sure share `level` goes on, and `width` is not used.
        confidence: as in `Cascade`.
        sample_weight: `[batch]`, non-negative.

    Raises:
        ValueError: as `fit_windows` and `Cascade`.
        TypeError: if `labels` are not integers, only votes are known, or a confidence
            of logits is asked of log-probabilities.
        LeakageError: if `Predictions` say that members were trained on these rows, or
            that they are test rows.
    """
    predictions = as_predictions(logits)
    what = "the cascade's windows"
    fitted_rows = check_predictions(
        what, predictions, row_weight=sample_weight, weights=predictions.weights
    )
    about = fitted_rows.provenance
    if about is not None:  # members that have seen its rows do not count there
        about = dataclasses.replace(about, seen=None, known=None)
    stages = tuple(tuple(stage) for stage in stages)
    log_probs, scores = stage_scores(predictions, stages, confidence)
    _, labels, weight = check_rows(log_probs, labels, sample_weight)
    # A row counts at a stage where a member up to there does.
    upto = [sum(stages[: i + 1], ()) for i in range(len(stages))]
    weight = jnp.stack(
        [
            covered_weight(predictions.select(list(members)), row)
            for members, row in zip(upto, weight)
        ]
    )
    options = dict(sample_weight=weight[:-1], provenance=about)
    is_weighted = _are_unequal(_raw_weights(predictions)[np.asarray(upto[-1])])

    def of_members(windows):
        """Stages are positions: members must stay in their order."""
        rows = dataclasses.replace(windows.fitted_rows, names=predictions.names)
        return windows.replace(fitted_rows=rows)

    if task == "threshold":
        windows = fit_single_threshold(scores[:-1], share=level, **options)
        return Cascade(
            of_members(windows), stages, "threshold", confidence, is_weighted
        )
    correct = is_correct(log_probs, labels)
    windows = fit_windows(
        scores[:-1], correct[:-1], task, level=level, width=width, **options
    )
    return Cascade(of_members(windows), stages, "window", confidence, is_weighted)


def stage_scores(
    logits: jax.Array | Predictions,
    stages: Sequence[Sequence[int]],
    confidence: str = "max_probability",
) -> tuple[jax.Array, jax.Array]:
    """What the members up to each stage say of every row, and how sure they are.

    Args:
        logits: `[member, batch, class]`, or `Predictions`.
        stages, confidence: as in `Cascade`.

    Returns:
        Log-probabilities `[stage, batch, class]` and confidences `[stage, batch]`. The
        last stage is the full ensemble.

    Raises:
        ValueError: if a stage names a member that is not there.
        TypeError: if only votes are known, or a confidence of logits is asked of
            log-probabilities.
    """
    pools = running_pools(as_predictions(logits), stages, confidence)
    read = [read_pool(pool, confidence) for pool in pools]
    return tuple(jnp.stack(values) for values in zip(*read))


class Pool(NamedTuple):
    """Sums over the members that have run, for each row: all that later stages need.

    Attributes:
        log_sum: log of the weighted sum of probabilities, `[batch, class]`.
        score_sum: weighted sum of the members' scores, `[batch]`; zeros where the
            confidence is one of the mean probability.
        weight: `[batch]`.
    """

    log_sum: jax.Array
    score_sum: jax.Array
    weight: jax.Array


def pool_members(
    logits: jax.Array, confidence: str, weights: jax.Array | None = None
) -> Pool:
    """The sums of one stage's members.

    Args:
        logits: `[member, batch, class]`.
        confidence: as in `Cascade`.
        weights: `[member, batch]`; None: ones.
    """
    if weights is None:
        weights = jnp.ones(logits.shape[:2])
    # 0 * NaN is NaN: a broken member that is masked leaves no trace.
    logits = jnp.where((weights == 0)[..., None], 0.0, logits)
    values = normalize(logits)
    peak = jnp.max(values, axis=0, keepdims=True)
    peak = jnp.where(jnp.isfinite(peak), peak, 0.0)
    scale = weights[..., None].astype(values.dtype)
    log_sum = jnp.log(jnp.sum(scale * jnp.exp(values - peak), axis=0)) + peak[0]
    total = jnp.sum(weights, axis=0)
    kind = CONFIDENCES[confidence]
    if kind.of_mean_probs:
        return Pool(log_sum, jnp.zeros_like(total), total)
    return Pool(log_sum, jnp.sum(weights * kind.score(logits), axis=0), total)


def add_pools(a: Pool, b: Pool) -> Pool:
    """The sums over the members of both."""
    log_sum = jnp.logaddexp(a.log_sum, b.log_sum)
    return Pool(log_sum, a.score_sum + b.score_sum, a.weight + b.weight)


def read_pool(pool: Pool, confidence: str) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities `[batch, class]` of the mean, and confidences `[batch]`."""
    kind = CONFIDENCES[confidence]
    empty = ~(pool.weight > 0)
    weight = jnp.where(empty, jnp.nan, pool.weight)
    log_probs = pool.log_sum - jnp.log(weight)[:, None]
    if kind.of_mean_probs:
        return log_probs, kind.score(log_probs)
    return log_probs, pool.score_sum / weight


def first_output(pool: Pool, confidence: str) -> CascadeOutput:
    """As if every row left at the first stage."""
    log_probs, score = read_pool(pool, confidence)
    return CascadeOutput(log_probs, score, jnp.zeros(score.shape, jnp.int32))


def running_pools(
    predictions: Predictions, stages: Sequence[Sequence[int]], confidence: str
) -> list[Pool]:
    """The sums over the members up to each stage."""
    if predictions.kind == "votes":
        predictions.log_probs  # noqa: B018  raises
    if predictions.kind != "logits" and not CONFIDENCES[confidence].of_mean_probs:
        raise TypeError(
            f"the confidence {confidence!r} is one of logits; these predictions are"
            f" {predictions.kind}, of which energies are all 0. Make them with"
            ' Predictions.from_logits, or take "max_probability" or "negative_entropy".'
        )
    members = predictions.num_members
    named = [i for stage in stages for i in stage]
    if not all(0 <= i < members for i in named):
        raise ValueError(
            f"stages name members of 0 to {members - 1}; got {tuple(stages)}."
        )
    weights = _raw_weights(predictions)
    pools = []
    for stage in stages:
        rows = jnp.asarray(stage)
        pool = pool_members(predictions.values[rows], confidence, weights[rows])
        pools.append(add_pools(pools[-1], pool) if pools else pool)
    return pools


def _are_unequal(weights):
    """Whether members differ in weight; False in a program that makes the weights."""
    if isinstance(weights, jax.core.Tracer):
        return False
    return bool(np.any(np.asarray(weights) != np.asarray(weights[:1, :1])))


def _raw_weights(predictions):
    """`[member, batch]`, not normalised: 0 where masked, NaN where negative."""
    shape = predictions.values.shape[:2]
    weights, mask = (
        jnp.broadcast_to(x.reshape(shape[0], -1), shape)
        for x in (predictions.weights, predictions.mask)
    )
    return jnp.where(mask, jnp.where(weights < 0, jnp.nan, weights), 0.0)
