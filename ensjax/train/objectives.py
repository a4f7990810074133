"""Joint objectives: one loss of all members' outputs together.

The gradient crosses members at one place, the outputs `[member, batch, ...]`. That
gives an exact form with bounded memory: outputs first and without a tape, then the
gradient of the loss with respect to the outputs, then each member's own backward pass.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ensjax.train.losses import label_log_probs


def call_on_inputs(model: Any, batch: Any, key: jax.Array) -> Any:
    """`model(x)` for a batch `(x, targets)`: the usual forward pass.

    Args:
        model: one member.
        batch: a tuple whose first item is the input, leaves `[batch, ...]`.
        key: unused.

    Returns:
        Leaves `[batch, ...]`.
    """
    del key
    return model(batch[0])


@dataclasses.dataclass(frozen=True)
class Joint:
    """An objective of all members at once, for `fit(loss=Joint(...))`.

    Attributes:
        loss: `loss(outputs, batch, key, mask) -> scalar` or `(scalar, metrics)`: a mean
            over the batch. `outputs` are `[member, batch, ...]`; `mask`, `[member]`, is
            False for members that are frozen because they were not finite, whose
            outputs are zeros. Metrics are scalars or `[member]`. Each data shard calls
            it with its own examples and the same `key` (see `losses.example_keys`);
            weighted losses divide sums that are summed over "data".
        forward: `forward(model, batch, key) -> outputs` of one member, `[batch, ...]`.
        recompute: True runs every member's forward pass twice and keeps the tape of one
            block of members only; False keeps the tapes of all members of the device.
        batch_block: examples per backward pass of a member, which bounds memory
            further. The gradient is exact, since examples do not see each other:
            models with batch norm or dropout, and a `forward` that draws from its key,
            are refused.
    """

    loss: Callable[..., Any]
    forward: Callable[..., Any] = call_on_inputs
    recompute: bool = True
    batch_block: int | None = None

    def __post_init__(self):
        if self.batch_block is not None and (
            self.batch_block < 1 or not self.recompute
        ):
            raise ValueError(
                "batch_block must be at least 1 and needs recompute=True; got"
                f" {self.batch_block} and recompute={self.recompute}."
            )


def masked_mean(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean over the members that `mask` keeps, `[member, ...]` -> `[...]`."""
    weights = mask.astype(values.dtype).reshape(-1, *(1,) * (values.ndim - 1))
    return jnp.sum(values * weights, axis=0) / jnp.maximum(jnp.sum(weights), 1.0)


def ensemble_nll(
    logits: jax.Array, batch: Any, key: jax.Array, mask: jax.Array
) -> tuple[jax.Array, dict]:
    """Negative log-likelihood of the ensemble's mean of probabilities, in nats.

        -log (1/M) sum_m p_m(y | x),   mean over the batch

    Trained jointly, members share the blame, and each one's gradient is weighted by its
    share of the mixture; compare with independent training before use. The metric
    "member_nll" is each member's own.

    Args:
        logits: `[member, batch, class]`.
        batch: `(x, labels)`, labels integers `[batch]`; a label that is no class makes
            the loss NaN.
        key: unused.
        mask: `[member]`.

    Source: the predictive of Lakshminarayanan et al. 2017, arXiv:1612.01474, section
    2.4, as an objective (there, members are trained apart).
    """
    del key
    own = label_log_probs(logits, batch[1])  # [member, batch]
    kept = jnp.where(mask[:, None], own, -jnp.inf)
    pooled = jax.nn.logsumexp(kept, axis=0) - jnp.log(jnp.sum(mask))
    return -pooled.mean(), {"member_nll": -own.mean(axis=1)}


@dataclasses.dataclass(frozen=True)
class NegativeCorrelation:
    """Squared error with a penalty that pushes members apart, for `Joint(loss=...)`.

        mean_m [ (f_m - y)^2 - strength (f_m - fbar)^2 ]

    At strength 1 the members fit as one model; at 0 they do not see each other. The
    mean over members makes each one's gradient 1/M of that of training alone, which
    Adam does not notice and SGD does: multiply its learning rate by M to compare.

    Source: Liu and Yao 1999, "Ensemble learning via negative correlation", equations 4
    and 6 (the penalty p_m sums to minus the ambiguity).
    """

    strength: float

    def __call__(self, outputs, batch, key, mask):
        """The loss of outputs `[member, batch, ...]` and targets `[batch, ...]`."""
        del key
        targets = batch[1]
        if outputs.shape[1:] != targets.shape:
            raise ValueError(
                f"Outputs {outputs.shape[1:]} for each member and targets"
                f" {targets.shape} must agree in shape."
            )
        error = (outputs - targets[None]) ** 2
        spread = (outputs - masked_mean(outputs, mask)[None]) ** 2
        examples = tuple(range(1, outputs.ndim))
        own = jnp.mean(error - self.strength * spread, axis=examples)
        return masked_mean(own, mask), {"mse": jnp.mean(error, axis=examples)}
