"""One quantile function out of many: mixing weights by model, by level and by input.

Base models of any kind give quantiles `[member, batch, level]`; an aggregator mixes
them into `[batch, level]`. Its weights are trained by `fit_quantile_aggregator`, or
stacked with others by `aggregator_ensemble`.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from ensjax.combine.quantiles.order import ORDERS, order_quantiles
from ensjax.nn.mlp import DenseBlock
from ensjax.scores.rows import floating

# In full: by default devices may keep three digits of what is multiplied.
_einsum = functools.partial(jnp.einsum, precision="highest")
KINDS, SCOPES = ("coarse", "medium", "fine"), ("global", "local")


class QuantileAggregator(nnx.Module):
    """Mixes base quantiles G by weights that are trained.

        coarse:  q_t = sum_j w_j G_jt
        medium:  q_t = sum_j w_jt G_jt
        fine:    q_t = sum_j sum_s w_jst G_js      (levels s may lend to level t)

    Weights are a softmax over the summed axes, so that they are positive and sum to 1
    over what is there: a missing model or level counts as absent, and the weights that
    are left are normalised again. Coarse and medium weights of one base model return
    it; fine ones mix its levels still.

    Args:
        num_base: base models. How many are there in a row is up to the mask.
        levels: rising probabilities in (0, 1).
        kind: "coarse", "medium" or "fine".
        scope: "global", the same weights for every input; or "local", where a network
            of the input x adds to the logits. It starts at the global ones.
        num_features: of x, for local weights.
        hidden: widths of the network, with ELU.
        dropout: rate after each hidden layer.
        rank: of the level-to-level logits of local fine weights, a matrix of rank at
            most this for each base model and input; None: any.
        normalize: False: free weights instead of a softmax, which start at the average
            of what is there and need not sum to 1.
        own_level: of fine weights, what the logit of a level's own quantiles begins
            with. With 0 each quantile would begin as the mean of all levels.
        order: how quantiles are put in order at the end: "sort", "isotonic", "cummax"
            or "none".
        order_in_loss: whether they are in training, too.
        level_block: levels of the result that are formed at a time, with a loop that
            computes them again for the gradient. Local fine weights are `[batch,
            num_base, level, level]` otherwise. None: all.
        rngs: streams `params` and, with dropout, `dropout`.

    Raises:
        ValueError: for an unknown word or what does not go together.

    Source: Fakoor et al. 2023, arXiv:2103.00083, section 3. Fine logits begin at
    `own_level` (4) on the own level; in the paper they all begin at 0.
    """

    def __init__(
        self,
        *,
        num_base: int,
        levels: Sequence[float],
        kind: str = "fine",
        scope: str = "global",
        num_features: int | None = None,
        hidden: Sequence[int] = (64, 64),
        dropout: float = 0.0,
        rank: int | None = None,
        normalize: bool = True,
        own_level: float = 4.0,
        order: str = "sort",
        order_in_loss: bool = False,
        level_block: int | None = None,
        rngs: nnx.Rngs,
    ):
        for name, value, known in (
            ("kind", kind, KINDS),
            ("scope", scope, SCOPES),
            ("order", order, ORDERS),
        ):
            if value not in known:
                raise ValueError(
                    f"{name} must be one of {', '.join(known)}; got {value!r}."
                )
        levels = tuple(float(level) for level in levels)
        rises = all(a < b for a, b in zip((0.0, *levels), (*levels, 1.0)))
        if not levels or not rises:
            raise ValueError(f"levels must rise and lie between 0 and 1; got {levels}.")
        is_local = scope == "local"
        if is_local != (num_features is not None) or (is_local and not hidden):
            raise ValueError(
                "num_features (and hidden) belong to scope='local', which needs them;"
                f" got scope={scope!r}, num_features={num_features}, hidden={hidden}."
            )
        if rank is not None and not (is_local and kind == "fine"):
            raise ValueError("rank belongs to local fine weights.")
        if num_base < 1:
            raise ValueError(f"num_base must be at least 1; got {num_base}.")
        size = len(levels)
        self.num_base, self.levels, self.kind, self.scope = (
            num_base,
            levels,
            kind,
            scope,
        )
        self.num_features, self.normalize = num_features, normalize
        self.own_level, self.order = float(own_level), order
        self.order_in_loss, self.level_block = order_in_loss, level_block
        shape = (num_base, size, size)[: 1 + KINDS.index(kind)]
        self.logits = nnx.Param(jnp.zeros(shape))
        if not is_local:
            return
        widths = (num_features, *hidden)
        self.blocks = nnx.List(
            DenseBlock(
                num_in,
                num_out,
                activation=nnx.elu,
                norm=None,
                dropout=dropout,
                dtype=None,
                rngs=rngs,
            )
            for num_in, num_out in zip(widths[:-1], widths[1:])
        )
        if rank is None:  # zeros, so that training starts at the global weights
            self.head = nnx.Param(jnp.zeros((hidden[-1], *shape)))
            self.mixer = None
        else:
            draw = jax.random.normal(
                rngs.params(), (hidden[-1], num_base, size, rank), jnp.float32
            )
            self.head = nnx.Param(draw / hidden[-1] ** 0.5)
            self.mixer = nnx.Param(jnp.zeros((rank, size)))

    def __call__(
        self,
        quantiles: jax.Array,
        x: jax.Array | None = None,
        *,
        mask: jax.Array | None = None,
    ) -> jax.Array:
        """The mixed quantiles in order, `[batch, level]`.

        Args:
            quantiles: of the base models, `[member, batch, level]`.
            x: inputs `[batch, feature]`, for local weights.
            mask: `[member]`, `[member, batch]` or `[member, batch, level]`; what is
                False counts as absent, whatever its value.

        Returns:
            NaN where nothing is there to be mixed.

        Raises:
            ValueError: if a shape does not fit.
        """
        mixed = self.mix(quantiles, x, mask=mask)
        return order_quantiles(
            mixed, self.order, levels=jnp.asarray(self.levels, mixed.dtype)
        )

    def mix(
        self,
        quantiles: jax.Array,
        x: jax.Array | None = None,
        *,
        mask: jax.Array | None = None,
    ) -> jax.Array:
        """The mixed quantiles before they are put in order; arguments as for a call."""
        quantiles = floating(quantiles)
        size = len(self.levels)
        if quantiles.ndim != 3 or quantiles.shape[::2] != (self.num_base, size):
            raise ValueError(
                f"quantiles must be [member={self.num_base}, batch, level={size}]; got"
                f" shape {quantiles.shape}."
            )
        rows = quantiles.shape[1]
        here = _present(mask, quantiles.shape)  # [member, batch, level]
        known = jnp.where(here, quantiles, 0.0)
        features = None
        if self.scope == "local":
            if x is None or jnp.shape(x) != (rows, self.num_features):
                raise ValueError(
                    f"x must be [batch={rows}, feature={self.num_features}]; got"
                    f" {None if x is None else jnp.shape(x)}."
                )
            features = floating(x)
            for block in self.blocks:
                features = block(features)
        # Sums of differences from the row's own mean round less, and equal quantiles
        # come out as they are.
        centre = jnp.zeros((rows, 1), known.dtype)
        if self.normalize:
            count = jnp.maximum(jnp.sum(here, axis=(0, 2)), 1)
            centre = (jnp.sum(jnp.sum(known, axis=2), axis=0) / count)[:, None]
            known = jnp.where(here, known - centre[None], 0.0)
        if self.kind != "fine":
            return self._mix_own(known, here, features) + centre
        block = size if self.level_block is None else min(self.level_block, size)
        part = self._fine_part(known, here, features)
        if block == size:
            return part(jnp.arange(size)) + centre
        # The last block repeats the last level, which is cut off again.
        count = -(-size // block)
        places = jnp.minimum(jnp.arange(count * block), size - 1)
        parts = jax.lax.map(jax.checkpoint(part), places.reshape(count, block))
        return jnp.moveaxis(parts, 0, 1).reshape(rows, -1)[:, :size] + centre

    @property
    def weights(self) -> jax.Array:
        """Weights for a row where everything is there, without x.

        `[member]`, `[member, level]` or `[member, lending level, level]`; of local
        weights those that the network adds to.
        """
        logits = self.logits[...]
        if self.kind == "fine":
            logits = logits + self._start(jnp.arange(len(self.levels)))
        summed = (0, 1) if self.kind == "fine" else (0,)
        if self.normalize:
            return jax.nn.softmax(logits, axis=summed)
        return logits + (0.0 if self.kind == "fine" else 1 / self.num_base)

    def _start(self, places):
        """What fine weights begin with: logits, or free weights, on the own level."""
        own = jnp.arange(len(self.levels))[:, None] == places[None]
        start = self.own_level if self.normalize else 1 / self.num_base
        return (own * start)[None]  # [1, lending level, level]

    def _mix_own(self, known, here, features):
        """Coarse and medium: every level by itself."""
        size = len(self.levels)
        logits = self.logits[...].reshape(self.num_base, 1, -1)
        if features is not None:
            head = self.head[...].reshape(features.shape[1], self.num_base, -1)
            logits = logits + _einsum("nh,hjt->jnt", features, head)
        logits = jnp.broadcast_to(logits, (*logits.shape[:2], size))
        if not self.normalize:
            count = jnp.sum(here, axis=0, keepdims=True)
            average = jnp.sum(known / count, axis=0)
            return jnp.sum(logits * known, axis=0) + average
        logits = jnp.broadcast_to(logits, known.shape)
        return _softmax_mean(logits, known, here, axis=(0,))

    def _fine_part(self, known, here, features):
        """A function of some places of levels: the mixed quantiles there."""
        logits, start = self.logits[...], self._start
        head = mixer = None
        if features is not None:
            head = self.head[...]
            if self.mixer is not None:
                # [batch, member, lending level, rank]
                head = _einsum("nh,hjsr->njsr", features, head)
                mixer = self.mixer[...]
        normalize = self.normalize

        def part(places):
            own = logits[:, :, places]  # [member, lending level, level]
            if normalize:
                own = own + start(places)
            if head is None:
                if normalize:
                    return _shared_softmax_mean(own, known, here)
                return _einsum("jst,jns->nt", own, known) + average(places)
            if mixer is None:
                added = _einsum("nh,hjst->njst", features, head[..., places])
            else:
                added = _einsum("njsr,rt->njst", head, mixer[:, places])
            weights = jnp.moveaxis(own[None] + added, 0, 1)  # [member, batch, ...]
            if normalize:
                return _softmax_mean(
                    weights, known[..., None], here[..., None], axis=(0, 2)
                )
            return _einsum("jnst,jns->nt", weights, known) + average(places)

        def average(places):
            count = jnp.sum(here, axis=0)
            return (jnp.sum(known, axis=0) / count)[:, places]

        return part


def _present(mask, shape):
    if mask is None:
        return jnp.ones(shape, bool)
    mask = jnp.asarray(mask).astype(bool)
    if mask.shape not in (shape[:1], shape[:2], shape):
        raise ValueError(
            f"mask must be [member] = {shape[:1]}, [member, batch] = {shape[:2]} or"
            f" [member, batch, level] = {shape}; got shape {mask.shape}."
        )
    return jnp.broadcast_to(mask.reshape(mask.shape + (1,) * (3 - mask.ndim)), shape)


def _softmax_mean(logits, values, here, axis):
    """Mean of `values` under a softmax of `logits` over `axis`, of what is here."""
    here = jnp.broadcast_to(here, logits.shape)
    peak = jnp.max(jnp.where(here, logits, -jnp.inf), axis=axis, keepdims=True)
    peak = jax.lax.stop_gradient(jnp.where(jnp.isfinite(peak), peak, 0.0))
    weights = jnp.where(here, jnp.exp(jnp.where(here, logits - peak, 0.0)), 0.0)
    return _members_last(weights * values, axis) / _members_last(weights, axis)


def _members_last(values, axis):
    """Sums over `axis`, whose first is the members': each member's own sum first.

    An absent member then adds one exact zero, which leaves the bits of the others'
    sum alone; in a single sum it would shift where partial sums are cut.
    """
    if len(axis) > 1:
        values = jnp.sum(values, axis=axis[1:])
    return jnp.sum(values, axis=0)


def _shared_softmax_mean(logits, known, here):
    """`_softmax_mean` over members and lending levels, of logits that rows share.

    Numerator and denominator are products of matrices, one for each member and added up
    as in `_members_last`, without `[batch, member, level, level]` weights.
    """
    any_here = jnp.any(here, axis=1)[..., None]  # [member, lending level, 1]
    peak = jnp.max(jnp.where(any_here, logits, -jnp.inf), axis=(0, 1), keepdims=True)
    peak = jax.lax.stop_gradient(jnp.where(jnp.isfinite(peak), peak, 0.0))
    weights = jnp.where(any_here, jnp.exp(jnp.where(any_here, logits - peak, 0.0)), 0.0)
    total = _einsum("jst,jns->jnt", weights, here.astype(known.dtype))
    sums = _einsum("jst,jns->jnt", weights, known)
    return jnp.sum(sums, axis=0) / jnp.sum(total, axis=0)
