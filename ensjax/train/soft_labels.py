"""Label smoothing and Mixup whose strengths are a member's own numbers.

    hyper = {"learning_rate": 1e-3, "label_smoothing": (0, 0.1, 0, 0.1),
             "mixup": (0, 0, 0.5, 0.5)}
    ensjax.fit(ensemble, (x, labels), loss=ensjax.train.SoftLabels(), hyper=hyper,
               make_tx=lambda hyper: optax.adam(hyper["learning_rate"]), ...)

trains a plain member, one with label smoothing, one with Mixup and one with both, in
one program. What is drawn for an example depends on its position in the global batch,
so that data shards draw what a single device would.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from ensjax.member_arrays import wide_labels
from ensjax.train.losses import example_keys, weighted_mean

MEASURES = ("cross_entropy", "squared_error")


def smooth_labels(
    labels: jax.Array, num_classes: int, strength: float | jax.Array = 0.0
) -> jax.Array:
    """One-hot labels moved towards the uniform distribution.

        t = (1 - e) onehot(y) + e / K

    Args:
        labels: integers `[batch]`. A label that is no class has NaN targets.
        num_classes: K.
        strength: e, from 0 (one-hot) to 1 (uniform); may be traced.

    Returns:
        `[batch, class]`, float32.

    Raises:
        TypeError: if labels are not integers.

    Source: Szegedy et al. 2016, arXiv:1512.00567, section 7.
    """
    if labels.ndim != 1 or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(
            "label smoothing needs integer labels [batch]; got"
            f" {labels.dtype} of shape {labels.shape}."
        )
    labels = wide_labels(labels)
    one_hot = labels[:, None] == jnp.arange(num_classes, dtype=labels.dtype)[None]
    strength = jnp.asarray(strength, jnp.float32)
    targets = jnp.where(one_hot, 1 - strength, 0.0) + strength / num_classes
    is_class = (labels >= 0) & (labels < num_classes)
    return jnp.where(is_class[:, None], targets, jnp.nan)


def mixup_shares(
    key: jax.Array, num_examples: int, strength: float | jax.Array
) -> jax.Array:
    """How much of itself every example keeps: `[batch]`, drawn from Beta(a, a).

    Args:
        key: what the loss was given; the same on all data shards.
        num_examples: examples of this data shard.
        strength: a; 0 keeps every example as it is (shares of 1). May be traced.

    Source: Zhang et al. 2018, arXiv:1710.09412, section 2, with a draw for every
    example where its script has one for the batch.
    """
    strength = jnp.asarray(strength, jnp.float32)
    a = jnp.where(strength > 0, strength, 1.0)
    draw = jax.vmap(lambda own: jax.random.beta(own, a, a, dtype=jnp.float32))
    return jnp.where(strength > 0, draw(example_keys(key, num_examples)), 1.0)


def mixup_partners(key: jax.Array, examples: Any) -> Any:
    """The example that each one is mixed with: the global batch in a random order.

    On several data shards every shard's examples are gathered first.

    Args:
        key: what the loss was given; the same on all data shards.
        examples: of this data shard, leaves `[batch, ...]`.

    Returns:
        Leaves `[batch, ...]`.
    """
    num_examples = jax.tree.leaves(examples)[0].shape[0]
    try:
        shard, shards = jax.lax.axis_index("data"), jax.lax.axis_size("data")
    except NameError:  # outside the mesh, where there is one shard
        shard, shards = 0, 1
    everyone = jnp.arange(num_examples * shards, dtype=jnp.int32)
    order = jax.random.permutation(key, everyone)
    own = jax.lax.dynamic_slice_in_dim(order, shard * num_examples, num_examples)
    if shards > 1:
        examples = jax.lax.all_gather(examples, "data", tiled=True)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[own], examples)


def mix_examples(values: Any, partners: Any, shares: jax.Array) -> Any:
    """`share * value + (1 - share) * partner` for floating leaves `[batch, ...]`.

    A share of 1 leaves the example as it is, whatever its partner holds.
    """

    def mixed(value, partner):
        share = shares.reshape(-1, *(1,) * (value.ndim - 1)).astype(value.dtype)
        return jnp.where(share == 1, value, share * value + (1 - share) * partner)

    return jax.tree.map(mixed, values, partners)


@dataclasses.dataclass(frozen=True)
class SoftLabels:
    """A loss against smoothed and mixed labels, with each member's own strengths.

    The hyperparameters of `fit` are a dict; of it the loss reads "label_smoothing"
    (0 to 1) and "mixup" (a of Beta(a, a), 0: none), each if it is there. With neither,
    or with strengths of 0, it is the plain loss. It is called as a loss that
    `takes_hyper`; evaluation needs a loss of its own, such as `losses.cross_entropy`.

    Attributes:
        measure: "cross_entropy" of softmax(outputs), in nats; or "squared_error", the
            mean over batch and classes of (target - output)^2 of the raw outputs.
        prepare: `prepare(batch, hyper) -> (x, labels)`, where the batch is something
            else: x floating, leaves `[batch, ...]`, labels integers `[batch]`.

    Source: Lin et al. 2024, arXiv:2309.17230 (BANG: fine-tuning with one or both before
    weights are averaged); squared error of outputs as in its script.
    """

    measure: str = "cross_entropy"
    prepare: Callable[[Any, Any], tuple[Any, jax.Array]] | None = None

    takes_hyper: ClassVar[bool] = True

    def __post_init__(self):
        if self.measure not in MEASURES:
            raise ValueError(
                f"measure is one of {', '.join(MEASURES)}; got {self.measure!r}."
            )

    def __call__(
        self,
        model: Any,
        batch: Any,
        key: jax.Array,
        weight: jax.Array | None = None,
        *,
        hyper: Any,
    ) -> jax.Array:
        """The loss of one member.

        Args:
            model: called as `model(x)` -> `[batch, class]`.
            batch: `(x, labels)`, or what `prepare` takes.
            key: of the member and step.
            weight: of the rows, `[batch]`; see `losses.weighted_mean`.
            hyper: the member's hyperparameters, a dict.

        Raises:
            TypeError: if `hyper` is no dict, or labels are not integers.
            ValueError: if the outputs are not `[batch, class]`.
        """
        if not isinstance(hyper, dict):
            raise TypeError(
                "SoftLabels reads hyper['label_smoothing'] and hyper['mixup']; got"
                f" hyper of type {type(hyper).__name__}. Pass a dict, also of the"
                " learning rate."
            )
        x, labels = batch if self.prepare is None else self.prepare(batch, hyper)
        shares = None
        if "mixup" in hyper:
            # One key for each of the two purposes.
            order_key, share_key = (jax.random.fold_in(key, i) for i in range(2))
            shares = mixup_shares(share_key, labels.shape[0], hyper["mixup"])
            partner_x, partner_labels = mixup_partners(order_key, (x, labels))
            x = mix_examples(x, partner_x, shares)
        outputs = model(x)
        if outputs.ndim != 2 or outputs.shape[:1] != labels.shape:
            raise ValueError(
                "SoftLabels needs outputs [batch, class] and labels [batch]; got"
                f" {outputs.shape} and {labels.shape}."
            )
        smoothing = hyper.get("label_smoothing", 0.0)
        targets = smooth_labels(labels, outputs.shape[1], smoothing)
        if shares is not None:
            partner = smooth_labels(partner_labels, outputs.shape[1], smoothing)
            targets = mix_examples(targets, partner, shares)
        return weighted_mean(
            self._of_rows(outputs.astype(jnp.float32), targets), weight
        )

    def _of_rows(self, outputs, targets):
        if self.measure == "cross_entropy":
            return -jnp.sum(targets * jax.nn.log_softmax(outputs), axis=-1)
        return jnp.mean(jnp.square(targets - outputs), axis=-1)
