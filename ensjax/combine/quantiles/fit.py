"""Fits one aggregator of quantiles: the short way, for one set of rows."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ensjax.combine.calibration.fitting import check_use
from ensjax.combine.quantiles.aggregator import QuantileAggregator
from ensjax.combine.quantiles.penalty import (
    adaptive_margin,
    constant_margin,
    proportional_margin,
)
from ensjax.combine.quantiles.training import (
    aggregator_ensemble,
    quantile_evaluation,
    quantile_loss,
    quantile_rows,
)
from ensjax.combine.rules.pool import give_back
from ensjax.predictions import Predictions
from ensjax.provenance import (
    FittedRows,
    LeakageError,
    Provenance,
    check_fitting_rows,
)
from ensjax.train.evaluation import EarlyStopping
from ensjax.train.fit import fit
from ensjax.train.history import TrainingLog

MARGINS = ("single", "adapt", "vec")


@dataclasses.dataclass(frozen=True)
class FittedAggregator:
    """A trained aggregator; called on base quantiles it returns the mixed ones.

    Attributes:
        aggregator: the module.
        fitted_rows: the rows that it was fitted on, where they are known.
        log: of the training of all settings that were tried, one member each.
        settings: `[(learning rate, penalty)]` of these members.
        chosen: which of them this is.
    """

    aggregator: QuantileAggregator
    fitted_rows: FittedRows
    log: TrainingLog
    settings: tuple[tuple[float, float], ...]
    chosen: int

    def __call__(
        self,
        quantiles: jax.Array | Predictions,
        x: jax.Array | None = None,
        *,
        mask: jax.Array | None = None,
        provenance: Provenance | None = None,
        allow_seen: bool = False,
    ) -> jax.Array | Predictions:
        """Mixed quantiles in order, `[batch, level]`; see `QuantileAggregator`.

        Of `Predictions`, those of one member.

        Args:
            quantiles: `[member, batch, level]`, or `Predictions` of kind "quantiles".
            x: `[batch, feature]`, for local weights.
            mask: `[member]`, `[member, batch]` or `[member, batch, level]`.
            provenance: of the rows, if they are known.
            allow_seen: of arrays, whether the fit itself is looked at. `Predictions`
                say themselves what they have seen.

        Raises:
            ValueError: if `Predictions` are of other levels, or of members that are
                others, or in another order.
            LeakageError: for test rows that it was fitted on; of arrays for any.
        """
        allow_seen = allow_seen or isinstance(quantiles, Predictions)
        values, mask, provenance, _ = _unpack(quantiles, mask, provenance, ())
        self.fitted_rows.check_arrays(provenance, allow_seen=allow_seen)
        check_use(self.fitted_rows, quantiles)
        mixed = self.aggregator(values, x, mask=mask)
        return give_back(quantiles, mixed, self.fitted_rows)


def fit_quantile_aggregator(
    quantiles: jax.Array | Predictions,
    targets: jax.Array,
    *,
    levels: Sequence[float],
    kind: str = "fine",
    scope: str = "global",
    x: jax.Array | None = None,
    mask: jax.Array | None = None,
    sample_weight: jax.Array | None = None,
    validation: tuple[Any, ...] | None = None,
    penalty: float | Sequence[float] = 1.0,
    margin: str = "single",
    margin_scale: float = 1e-3,
    learning_rate: float | Sequence[float] = 5e-3,
    steps: int = 1500,
    batch_size: int | None = None,
    evaluate_every_steps: int = 50,
    provenance: Provenance | None = None,
    validation_provenance: Provenance | None = None,
    names: Sequence[str] = (),
    seed: int = 0,
    progress: bool = False,
    options: Mapping[str, Any] | None = None,
) -> FittedAggregator:
    """Trains an aggregator on held-out or out-of-fold quantiles of base models.

    All pairs of a learning rate and a penalty are trained as one stack; the one of the
    lowest pinball loss on the validation rows is returned, with its best weights.

    Args:
        quantiles: of the base models, `[member, batch, level]`, for rows that these
            were not trained on; or `Predictions` of kind "quantiles", whose mask,
            provenance and names are taken where they are not given. Their weights are
            not: weights are what is fitted.
        targets: `[batch]`; rows of which it is NaN only join the penalty.
        levels: rising probabilities, `[level]`.
        kind, scope: of the weights; see `QuantileAggregator`.
        x: inputs `[batch, feature]`, for local weights.
        mask: of what is there; see `quantile_rows`.
        sample_weight: `[batch]`, non-negative.
        validation: `(quantiles, targets)` or `(quantiles, targets, x)` of other rows,
            which choose the step and the settings. Needed for several settings. These
            rows are fitted on too: `Predictions` are checked as those of the fit.
        penalty: of crossing, one number or several.
        margin: "single", the same for all pairs of levels; "adapt", in proportion to
            the spread of residuals; "vec", to the distance of levels.
        margin_scale: the margin, or what it is multiplied by.
        learning_rate: of Adam, one number or several.
        steps: optimizer steps.
        batch_size: None: all rows.
        evaluate_every_steps: on the validation rows; `steps` is a multiple of it.
        provenance: of the rows, for the check below.
        validation_provenance: of the validation rows, where they are arrays.
        names: of the base models, for its message.
        seed: of initial weights and data order.
        progress: whether to print.
        options: of `QuantileAggregator`: `order`, `order_in_loss`, `normalize`,
            `hidden`, `rank`, ...

    Returns:
        `FittedAggregator`.

    Raises:
        ValueError: for what does not go together.
        TypeError: for `Predictions` of another kind.
        LeakageError: if a base model was trained on these rows, or they are test rows;
            the same of validation rows, and if these are rows of the fit.

    Source: Fakoor et al. 2023, arXiv:2103.00083.

    Example:
        >>> import numpy as np
        >>> from ensjax import combine
        >>> y = np.random.default_rng(0).normal(size=200)
        >>> levels = np.array([0.1, 0.5, 0.9])
        >>> right = np.tile(np.quantile(y, levels), (200, 1))
        >>> base = np.stack([right, right + 3])  # the second model is wrong
        >>> fitted = combine.fit_quantile_aggregator(
        ...     base, y, levels=levels, kind="coarse", learning_rate=0.1, steps=100)
        >>> bool(fitted.aggregator.weights[0] > 0.95)
        True
    """
    levels = tuple(np.asarray(levels, float).tolist())
    given_levels = getattr(quantiles, "levels", ())
    quantiles, mask, provenance, names = _unpack(quantiles, mask, provenance, names)
    fitted_rows = _check_rows(
        "the quantile aggregator", provenance, names, mask, sample_weight
    )
    fitted_rows = dataclasses.replace(fitted_rows, levels=levels)
    fitted_rows.check_levels(given_levels)
    if validation is not None:
        if isinstance(validation[0], Predictions):
            fitted_rows.check_members(validation[0].names)
            fitted_rows.check_levels(validation[0].levels)
        chosen_on, chosen_mask, validation_provenance, chosen_names = _unpack(
            validation[0], None, validation_provenance, names
        )
        validation = (chosen_on, *validation[1:])
        fitted_rows = _check_validation(
            fitted_rows, validation_provenance, chosen_names, chosen_mask
        )
    if margin not in MARGINS:
        raise ValueError(f"margin must be one of {', '.join(MARGINS)}; got {margin!r}.")
    rates = np.atleast_1d(np.asarray(learning_rate, float)).tolist()
    penalties = np.atleast_1d(np.asarray(penalty, float)).tolist()
    settings = tuple(itertools.product(rates, penalties))
    if validation is None and len(settings) > 1:
        raise ValueError(
            f"{len(settings)} settings are tried, and validation rows choose among"
            " them: pass validation=(quantiles, targets)."
        )
    rows = quantile_rows(
        quantiles, targets, x=x, mask=mask, sample_weight=sample_weight
    )
    if not rows["weight"].any():
        raise ValueError("no row has a target and a weight.")
    num_base = rows["quantiles"].shape[2]
    num_features = None if scope == "global" else np.shape(x)[-1]

    def make_aggregator(rngs):
        return QuantileAggregator(
            num_base=num_base,
            levels=levels,
            kind=kind,
            scope=scope,
            num_features=num_features,
            **(options or {}),
            rngs=rngs,
        )

    ensemble = aggregator_ensemble(
        make_aggregator,
        member_ids=range(len(settings)),
        penalty=np.array([penalty for _, penalty in settings]),
        margin=_margin(margin, margin_scale, levels, rows),
        seed=seed,
    )
    watched = {}
    if validation is not None:
        held_out = quantile_rows(
            *validation[:2], x=(*validation, None)[2], mask=chosen_mask
        )
        watched = dict(
            evaluation=held_out,
            evaluation_loss=quantile_evaluation,
            evaluate_every_steps=evaluate_every_steps,
            evaluation_batch_size=len(held_out["targets"]),
            early_stopping=EarlyStopping(patience=None),
        )
    ensemble, log = fit(
        ensemble,
        rows,
        loss=quantile_loss,
        make_tx=optax.adam,
        hyper=jnp.asarray([rate for rate, _ in settings]),
        steps=steps,
        batch_size=len(rows["targets"]) if batch_size is None else batch_size,
        seed=seed,
        sampling="shared",
        steps_per_call=evaluate_every_steps,
        log_every_steps=evaluate_every_steps,
        progress=progress,
        **watched,
    )
    chosen = 0
    if validation is not None:
        chosen = int(np.argmin(np.nanmin(log.evaluations["loss"], axis=0)))
    aggregator = ensemble[chosen].aggregator
    return FittedAggregator(aggregator, fitted_rows, log, settings, chosen)


def _unpack(quantiles, mask, provenance, names):
    """Arrays and what is known of them, from `Predictions` where these are given."""
    if not isinstance(quantiles, Predictions):
        return quantiles, mask, provenance, names
    if quantiles.kind != "quantiles":
        raise TypeError(
            f"quantiles are needed; these predictions are {quantiles.kind}."
        )
    mask = quantiles.mask if mask is None else mask
    provenance = quantiles.provenance if provenance is None else provenance
    return quantiles.values, mask, provenance, tuple(names) or quantiles.names


def _check_rows(what, provenance, names, mask, row_weight=None):
    counts = None
    if mask is not None:
        counts = np.asarray(mask, bool)
        counts = counts.any(axis=2) if counts.ndim == 3 else counts
    return check_fitting_rows(
        what, provenance, names=names, counts=counts, row_weight=row_weight
    )


def _check_validation(fitted_rows, provenance, names, mask):
    """The rows of the fit and those that choose the step, which must be others."""
    _check_rows("the choice of a step", provenance, names, mask)
    if provenance is None:
        return fitted_rows
    if fitted_rows.overlap(provenance).size:
        raise LeakageError(
            f"the choice of a step cannot be made on rows of {provenance.source!r} that"
            f" {fitted_rows.what} is fitted on: {fitted_rows.overlap(provenance)[:5]}"
            " are both. Take other validation rows."
        )
    return dataclasses.replace(fitted_rows, others=(provenance,))


def _margin(kind, scale, levels, rows):
    if kind == "single":
        return constant_margin(len(levels), scale)
    if kind == "vec":
        return proportional_margin(levels, scale)
    known = rows["weight"][:, 0] > 0
    quantiles = np.moveaxis(rows["quantiles"][known, 0], 1, 0)
    if "mask" in rows:
        here = np.moveaxis(rows["mask"][known, 0], 1, 0)
        if not here.all():
            raise ValueError(
                "margin='adapt' needs the medians of all base models in all rows; use"
                " 'single' or 'vec' where some are missing."
            )
    return adaptive_margin(
        quantiles, rows["targets"][known, 0], levels=levels, scale=scale
    )
