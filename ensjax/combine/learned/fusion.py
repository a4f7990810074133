"""Fusion of members' features: one module on what several members have computed.

Members give features of their own widths; adapters bring them to one width, a rule
makes one vector of them, and a head reads it. Fusions are flax NNX modules of one
member in the engine's sense: many of them (seeds, settings) train as one stack by
`ensjax.fit`.

Fit them on rows that the members were not trained on: `fusion_rows` makes inputs of
`Predictions` of features, and refuses others.

An input is a tuple of features `[batch, width_m]`, one entry for each member, or a pair
`(features, mask)` with bools `[batch, member]`: a masked member leaves no trace.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx, struct

from ensjax.combine.calibration.fitting import check_points
from ensjax.combine.learned.gates import sigmoid_gate, softmax_gate, top_k_gate
from ensjax.nn.layers import Head
from ensjax.predictions import Predictions
from ensjax.provenance import FittedRows, merge_members

GATES: dict[str, Callable[..., jax.Array]] = {
    "sigmoid": lambda scores, number, mask: sigmoid_gate(scores, mask),
    "softmax": lambda scores, number, mask: softmax_gate(scores, mask),
    "top_k": top_k_gate,
}
# In full: by default devices may keep three digits of what is multiplied.
_einsum = functools.partial(jnp.einsum, precision="highest")
GATE_FORMS = ("joint", "shared")


class Fusion(nnx.Module):
    """What all fusions share: adapters, masks and the head. Use one of the subclasses.

    Args:
        widths: numbers of features of each member.
        dim: width that adapters bring them to.
        num_outputs: number of logits.
        rngs: stream `params`.
    """

    def __init__(
        self,
        *,
        widths: Sequence[int],
        dim: int = 64,
        num_outputs: int,
        fused_width: int,
        rngs: nnx.Rngs,
    ):
        self.widths = tuple(widths)
        self.adapters = nnx.List(Adapter(width, dim, rngs=rngs) for width in widths)
        self.head = Head(fused_width, num_outputs, dtype=None, rngs=rngs)

    def __call__(self, x) -> jax.Array:
        """Logits `[batch, output]`.

        Raises:
            ValueError: if the features or the mask do not fit the members.
        """
        return self.head(self.fuse(*self._adapt(x))[0])

    def weights(self, x) -> jax.Array:
        """How much each member counts on each row, `[batch, member]`, for reports."""
        return self.fuse(*self._adapt(x))[1]

    def logits_and_weights(self, x) -> tuple[jax.Array, jax.Array]:
        """Both at once, for losses on the weights."""
        fused, weights = self.fuse(*self._adapt(x))
        return self.head(fused), weights

    def fuse(self, tokens: jax.Array, mask: jax.Array):
        """One vector `[batch, width]`, and weights `[batch, member]`.

        Args:
            tokens: adapted features `[batch, member, dim]`, zeros where masked.
            mask: `[batch, member]`.
        """
        raise NotImplementedError

    def _adapt(self, x):
        has_mask = len(x) == 2 and isinstance(x[0], (tuple, list))
        features, mask = x if has_mask else (x, None)
        found = tuple(feature.shape[-1] for feature in features)
        if found != self.widths or any(feature.ndim != 2 for feature in features):
            raise ValueError(
                f"features must be [batch, width] of widths {self.widths}, one for each"
                f" member; got shapes {[f.shape for f in features]}."
            )
        shape = (features[0].shape[0], len(self.widths))
        if mask is None:
            mask = jnp.ones(shape, bool)
        elif mask.shape != shape:
            raise ValueError(
                f"mask must be [batch, member] = {shape}; got {mask.shape}."
            )
        tokens = [
            # On the input: a NaN of a masked member has no finite derivative.
            adapter(jnp.where(mask[:, m, None], feature, 0.0))
            for m, (adapter, feature) in enumerate(zip(self.adapters, features))
        ]
        tokens = jnp.stack(tokens, axis=1)
        return jnp.where(mask[..., None], tokens, 0.0), mask.astype(bool)


class Adapter(nnx.Module):
    """A linear layer and a layer norm: features of any width and scale to one."""

    def __init__(self, width: int, dim: int, *, rngs: nnx.Rngs):
        self.linear = nnx.Linear(width, dim, rngs=rngs)
        self.norm = nnx.LayerNorm(dim, rngs=rngs)

    def __call__(self, x):
        return self.norm(self.linear(x))


class ConcatFusion(Fusion):
    """The head reads all members' features side by side.

    Args:
        widths, dim, num_outputs, rngs: as for `Fusion`.
    """

    def __init__(self, *, widths, dim=64, num_outputs, rngs):
        super().__init__(
            widths=widths,
            dim=dim,
            num_outputs=num_outputs,
            fused_width=len(widths) * dim,
            rngs=rngs,
        )

    def fuse(self, tokens, mask):
        return tokens.reshape(tokens.shape[0], -1), _equal(mask)


class StaticFusion(Fusion):
    """A weighted sum whose weights are learned and the same for all rows.

        u = sum_m a_m z_m,   a = softmax(s)

    Args:
        widths, dim, num_outputs, rngs: as for `Fusion`.
    """

    def __init__(self, *, widths, dim=64, num_outputs, rngs):
        super().__init__(
            widths=widths, dim=dim, num_outputs=num_outputs, fused_width=dim, rngs=rngs
        )
        self.scores = nnx.Param(jnp.zeros(len(widths)))

    def fuse(self, tokens, mask):
        scores = jnp.broadcast_to(self.scores[...][None], mask.shape)
        return _weighted_sum(softmax_gate(scores, mask), tokens)


class GatedFusion(Fusion):
    """A weighted sum whose weights depend on the row.

        joint:   a(x) = gate(G [z_1; ...; z_M] + g)
        shared:  a_m(x) = gate_m(q . tanh(U z_m))

    Args:
        widths, dim, num_outputs, rngs: as for `Fusion`.
        form: "joint", where a member's weight depends on what all say, or "shared",
            where one scorer looks at each member.
        gate: "softmax", "sigmoid" (with an L1 penalty in the loss) or "top_k".
        number: members that the gate "top_k" keeps.
        temperature: scores are divided by it.

    Raises:
        ValueError: for an unknown form or gate.
    """

    def __init__(
        self,
        *,
        widths,
        dim=64,
        num_outputs,
        form: str = "joint",
        gate: str = "softmax",
        number: int = 1,
        temperature: float = 1.0,
        rngs,
    ):
        if form not in GATE_FORMS:
            raise ValueError(f"form is one of {', '.join(GATE_FORMS)}; got {form!r}.")
        if gate not in GATES:
            raise ValueError(f"gate is one of {', '.join(GATES)}; got {gate!r}.")
        super().__init__(
            widths=widths, dim=dim, num_outputs=num_outputs, fused_width=dim, rngs=rngs
        )
        members = len(self.widths)
        self.form, self.gate, self.number = form, gate, number
        self.temperature = temperature
        if form == "joint":
            self.scorer = nnx.Linear(members * dim, members, rngs=rngs)
        else:
            self.hidden = nnx.Linear(dim, dim, use_bias=False, rngs=rngs)
            self.scorer = nnx.Linear(dim, 1, use_bias=False, rngs=rngs)

    def fuse(self, tokens, mask):
        if self.form == "joint":
            scores = self.scorer(tokens.reshape(tokens.shape[0], -1))
        else:
            scores = self.scorer(jnp.tanh(self.hidden(tokens)))[..., 0]
        weights = GATES[self.gate](scores / self.temperature, self.number, mask)
        return _weighted_sum(weights, tokens)


class AttentionFusion(Fusion):
    """One block of self-attention over the members, then their mean.

    Each member's token gets an embedding of its own, since attention does not see who
    speaks. Weights are the attention that a member receives, averaged over heads and
    members.

    Args:
        widths, dim, num_outputs, rngs: as for `Fusion`.
        num_heads: a divisor of `dim`.

    Raises:
        ValueError: if heads do not divide `dim`.
    """

    def __init__(self, *, widths, dim=64, num_outputs, num_heads: int = 4, rngs):
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"num_heads={num_heads} must divide dim={dim}.")
        super().__init__(
            widths=widths, dim=dim, num_outputs=num_outputs, fused_width=dim, rngs=rngs
        )
        self.num_heads = num_heads
        self.embedding = nnx.Param(
            0.02 * jax.random.normal(rngs.params(), (len(self.widths), dim))
        )
        self.norm = nnx.LayerNorm(dim, rngs=rngs)
        self.qkv = nnx.Linear(dim, 3 * dim, rngs=rngs)
        self.out = nnx.Linear(dim, dim, rngs=rngs)

    def fuse(self, tokens, mask):
        batch, members, dim = tokens.shape
        tokens = tokens + self.embedding[...][None]
        qkv = self.qkv(self.norm(tokens))
        qkv = qkv.reshape(batch, members, 3, self.num_heads, dim // self.num_heads)
        query, key, value = (qkv[:, :, i] for i in range(3))
        scores = _einsum("bmhd,bnhd->bhmn", query, key) / key.shape[-1] ** 0.5
        attention = softmax_gate(scores, mask[:, None, None])
        mixed = _einsum("bhmn,bnhd->bmhd", attention, value)
        tokens = tokens + self.out(mixed.reshape(tokens.shape))
        share = _equal(mask)
        received = _einsum("bm,bhmn->bn", share, attention) / self.num_heads
        return _einsum("bm,bmd->bd", share, tokens), received


class BilinearFusion(Fusion):
    """Products of projected features of every pair of members, side by side.

        u = [P z_m * Q z_n]  for m < n

    Args:
        widths, dim, num_outputs, rngs: as for `Fusion`; at least two members.
        rank: width of the projections P and Q, which all pairs share.

    Raises:
        ValueError: for fewer than two members.
    """

    def __init__(self, *, widths, dim=64, num_outputs, rank: int = 16, rngs):
        members = len(widths)
        if members < 2:
            raise ValueError(f"pairs need at least two members; got {members}.")
        super().__init__(
            widths=widths,
            dim=dim,
            num_outputs=num_outputs,
            fused_width=members * (members - 1) // 2 * rank,
            rngs=rngs,
        )
        self.left = nnx.Linear(dim, rank, rngs=rngs)
        self.right = nnx.Linear(dim, rank, rngs=rngs)

    def fuse(self, tokens, mask):
        members = tokens.shape[1]
        left, right = self.left(tokens), self.right(tokens)
        # The layers' biases would let a pair speak of which one is missing.
        products = [
            jnp.where((mask[:, m] & mask[:, n])[:, None], left[:, m] * right[:, n], 0.0)
            for m in range(members)
            for n in range(m + 1, members)
        ]
        return jnp.concatenate(products, axis=-1), _equal(mask)


FUSIONS = {
    "attention": AttentionFusion,
    "bilinear": BilinearFusion,
    "concat": ConcatFusion,
    "gated": GatedFusion,
    "static": StaticFusion,
}


def _equal(mask):
    """Equal weights of the members that count, `[batch, member]`."""
    return softmax_gate(jnp.zeros(mask.shape), mask)


def _weighted_sum(weights, tokens):
    return _einsum("bm,bmd->bd", weights, tokens), weights


@struct.dataclass
class FusionRows:
    """What a fusion takes, and which rows it is fitted on; a pytree.

    Attributes:
        inputs: `(features, mask)`, as every fusion takes it: `[batch, width_m]` of each
            member, and bools `[batch, member]`.
        fitted_rows: to be kept; `fitted_rows.check_test(provenance)` refuses a test on
            the same rows.
    """

    inputs: tuple[tuple[jax.Array, ...], jax.Array]
    fitted_rows: FittedRows = struct.field(
        pytree_node=False, default=FittedRows("the fusion")
    )


def fusion_rows(
    members: Predictions | Sequence[Predictions], *, what: str = "the fusion"
) -> FusionRows:
    """Rows to fit a fusion on, if their provenance allows it.

    Args:
        members: features `[member, batch, feature]`, or several of them, of the same
            rows and of widths of their own.
        what: is fitted, for messages.

    Raises:
        TypeError: for predictions that are no features.
        ValueError: if there are no rows, or they differ.
        LeakageError: if a member that counts was trained on a row, or a row is kept for
            the test.
    """
    parts = [members] if isinstance(members, Predictions) else list(members)
    if len({part.values.shape[1] for part in parts}) != 1:
        raise ValueError(
            "fusion_rows takes features of the same rows; got"
            f" {[part.values.shape for part in parts]}."
        )
    features = tuple(feature for part in parts for feature in part.features)
    about = merge_members(
        [part.provenance for part in parts], [part.num_members for part in parts]
    )
    batch = features[0].shape[0]
    mask = jnp.concatenate(
        [
            jnp.broadcast_to(
                part.mask.reshape(part.num_members, -1), (part.num_members, batch)
            )
            for part in parts
        ]
    )
    names = tuple(name for part in parts for name in part.names)
    fitted_rows = check_points(what, mask, about, mask, names)
    return FusionRows((features, mask.T), fitted_rows)
