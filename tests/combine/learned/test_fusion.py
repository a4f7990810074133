"""Fusion of features, gates and experts: the formulas, and members that are missing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import ensjax
from ensjax import combine
from ensjax.combine.learned.fusion import FUSIONS

WIDTHS = (3, 5, 2)
KINDS = {
    "concat": dict(),
    "static": dict(),
    "gated": dict(),
    "shared": dict(form="shared", temperature=0.5),
    "sigmoid": dict(gate="sigmoid"),
    "top_k": dict(gate="top_k", number=2),
    "attention": dict(num_heads=2),
    "bilinear": dict(rank=3),
}
SLOW = ("static", "sigmoid", "top_k", "concat", "gated", "bilinear")


def make(kind, rngs=None, widths=WIDTHS):
    build = FUSIONS.get(kind, combine.GatedFusion)
    rngs = nnx.Rngs(params=0) if rngs is None else rngs
    return build(widths=widths, dim=4, num_outputs=2, rngs=rngs, **KINDS[kind])


def features(batch=6, seed=0):
    rng = np.random.default_rng(seed)
    return tuple(rng.normal(size=(batch, w)).astype(np.float32) for w in WIDTHS)


def softmax(x):
    exp = np.exp(x - x.max(-1, keepdims=True))
    return exp / exp.sum(-1, keepdims=True)


def linear(layer, x):
    out = x @ np.asarray(layer.kernel[...], np.float64)
    return out if layer.bias is None else out + np.asarray(layer.bias[...])


def tokens_of(model, x):
    """Adapted features of one row, `[member, dim]`, in float64."""
    out = []
    for adapter, feature in zip(model.adapters, x):
        z = linear(adapter.linear, feature.astype(np.float64))
        z = (z - z.mean()) / np.sqrt(z.var() + 1e-6)
        out.append(z * np.asarray(adapter.norm.scale[...]))
    return np.array(out)


def reference(kind, model, x):
    """Fused vector and weights of one row, from the equations."""
    z = tokens_of(model, x)
    equal = np.full(3, 1 / 3)
    if kind == "concat":
        return z.reshape(-1), equal
    if kind == "static":
        weights = softmax(np.asarray(model.scores[...], np.float64))
    elif kind == "attention":
        z = z + np.asarray(model.embedding[...])
        normed = (z - z.mean(-1, keepdims=True)) / np.sqrt(z.var(-1) + 1e-6)[:, None]
        qkv = linear(model.qkv, normed).reshape(3, 3, 2, 2)  # member, q k v, head, dim
        mixed, received = np.zeros((3, 2, 2)), np.zeros(3)
        for h in range(2):
            q, k, v = (qkv[:, i, h] for i in range(3))
            attention = softmax(q @ k.T / np.sqrt(2))
            mixed[:, h] = attention @ v
            received += attention.mean(0) / 2
        z = z + linear(model.out, mixed.reshape(3, 4))
        return z.mean(0), received
    elif kind == "bilinear":
        left, right = linear(model.left, z), linear(model.right, z)
        pairs = [left[m] * right[n] for m in range(3) for n in range(m + 1, 3)]
        return np.concatenate(pairs), equal
    elif kind == "shared":
        scores = linear(model.scorer, np.tanh(linear(model.hidden, z)))[:, 0]
        weights = softmax(scores / 0.5)
    else:
        scores = linear(model.scorer, z.reshape(-1))
        weights = 1 / (1 + np.exp(-scores)) if kind == "sigmoid" else softmax(scores)
        if kind == "top_k":
            weights = np.where(scores == scores.min(), 0, weights)
            weights = weights / weights.sum()
    return weights @ z, weights


@jax.jit
def apply(model, x):
    return model.logits_and_weights(x)


@pytest.mark.parametrize(
    "kind",
    [pytest.param(k, marks=pytest.mark.slow if k in SLOW else ()) for k in KINDS],
)
def test_a_fusion_equals_its_equations_and_forgets_a_masked_member(kind):
    model, x = make(kind), features()
    logits, weights = apply(model, (x, np.ones((6, 3), bool)))
    for n in range(6):
        fused, expected = reference(kind, model, [f[n] for f in x])
        np.testing.assert_allclose(weights[n], expected, atol=2e-5)
        want = linear(model.head.linear, fused)
        np.testing.assert_allclose(logits[n], want, atol=2e-4)
    # A masked member may say anything, NaN included.
    mask = np.ones((6, 3), bool)
    mask[::2, 1] = False
    broken = (x[0], np.where(mask[:, 1:2], x[1], np.nan), x[2])
    other = (x[0], np.where(mask[:, 1:2], x[1], 7.0), x[2])
    a, b = apply(model, (broken, mask)), apply(model, (other, mask))
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert np.isfinite(a[0]).all() and (np.asarray(a[1])[::2, 1] == 0).all()
    assert np.abs(a[0][::2] - logits[::2]).max() > 1e-3
    np.testing.assert_allclose(a[0][1::2], logits[1::2], atol=1e-5)


def test_gates_renormalise_over_the_members_that_count():
    scores = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    mask = np.array([True, False, True, True])
    weights = combine.softmax_gate(scores, mask)
    np.testing.assert_allclose(weights[:, mask], softmax(scores[:, mask]), rtol=1e-5)
    assert (weights[:, 1] == 0).all()
    none = combine.softmax_gate(scores, np.zeros(4, bool))
    assert (none == 0).all()
    slope = jax.grad(lambda s: combine.softmax_gate(s, np.zeros(4, bool)).sum())(scores)
    assert np.isfinite(slope).all()
    huge = combine.softmax_gate(jnp.array([1e30, -1e30, 0.0]), np.ones(3, bool))
    np.testing.assert_allclose(huge, [1, 0, 0])


def test_the_top_k_gate_keeps_k_members_and_the_gradient_of_all():
    scores = jnp.array([[0.3, 2.0, 1.0, 2.0]])
    weights = combine.top_k_gate(scores, 2)
    np.testing.assert_allclose(weights, [[0, 0.5, 0, 0.5]], atol=1e-6)
    masked = combine.top_k_gate(scores, 2, np.array([True, False, True, True]))
    expected = softmax(np.array([1.0, 2.0]))
    np.testing.assert_allclose(masked[0, [2, 3]], expected, rtol=1e-5)
    value = jnp.array([1.0, 2.0, 3.0, 4.0])
    slope = jax.grad(lambda s: jnp.sum(combine.top_k_gate(s, 2) * value[None]))(scores)
    soft = jax.grad(lambda s: jnp.sum(jax.nn.softmax(s) * value[None]))(scores)
    np.testing.assert_allclose(slope, soft, rtol=1e-5)
    with pytest.raises(ValueError, match="from 1 to the 4 members; got 5"):
        combine.top_k_gate(scores, 5)


def test_load_and_entropy_of_gates():
    even, one = np.full((3, 4), 0.25), np.eye(4)[[1, 1, 1]]
    assert float(combine.load_imbalance(even)) == pytest.approx(0, abs=1e-6)
    assert float(combine.load_imbalance(one)) == pytest.approx(np.log(4), abs=1e-6)
    turns = np.eye(4)  # each row has its own member: balanced, and each row sure
    assert float(combine.load_imbalance(turns)) == pytest.approx(0, abs=1e-6)
    assert float(combine.gate_entropy(turns)) == 0
    assert float(combine.gate_entropy(even)) == pytest.approx(np.log(4), abs=1e-6)


def test_experts_are_mixed_by_row_and_the_sure_ones_count_more():
    rng = np.random.default_rng(0)
    logits = 3 * rng.normal(size=(3, 7, 4)).astype(np.float32)
    gates = rng.uniform(size=(7, 3))
    probs = softmax(logits.astype(np.float64))
    share = gates / gates.sum(1, keepdims=True)
    expected = np.log(np.einsum("nm,mnc->nc", share, probs))
    np.testing.assert_allclose(combine.mix_experts(logits, gates), expected, atol=1e-5)
    entropy = -(probs * np.log(probs)).sum(-1).T  # [batch, member]
    sure = combine.entropy_weights(logits, strength=2.0).T
    np.testing.assert_allclose(sure, softmax(-2 * entropy), atol=1e-5)
    np.testing.assert_allclose(
        combine.mix_experts(logits, sure),
        combine.entropy_weighted_probs(logits, strength=2.0),
        atol=1e-6,
    )
    mask = np.array([True, False, True])
    broken = np.where(mask[:, None, None], logits, np.nan)
    masked = combine.entropy_weights(broken, mask=mask, strength=2.0).T
    np.testing.assert_allclose(
        masked[:, mask], softmax(-2 * entropy[:, mask]), atol=1e-5
    )
    one = combine.mix_experts(logits[:1], gates[:, :1])
    np.testing.assert_allclose(one, np.log(probs[0]), atol=1e-5)
    with pytest.raises(ValueError, match=r"gates must be \[batch, member\] = \(7, 3\)"):
        combine.mix_experts(logits, gates.T)


@pytest.mark.slow
def test_many_fusions_train_as_one_stack_and_find_the_member_that_knows():
    rng = np.random.default_rng(0)
    x = features(200)
    y = (x[1][:, 0] > 0).astype(np.int32)  # only member 1 knows
    mask = rng.uniform(size=(200, 3)) < 0.9
    ensemble = ensjax.Ensemble.init(functools.partial(make, "static"), num_members=4)
    ensemble, log = ensjax.fit(
        ensemble,
        ((x, mask), y),
        loss=ensjax.losses.cross_entropy,
        make_tx=optax.adam,
        hyper=0.03,
        steps=150,
        batch_size=50,
        progress=False,
    )
    assert (log.metrics["loss"][-1] < 0.35).all()
    weights = np.array([ensemble[m].weights(x)[0] for m in range(4)])
    assert (weights.argmax(1) == 1).all()


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"of widths \(3, 5, 2\)"):
        make("concat")(features()[:2])
    with pytest.raises(ValueError, match=r"mask must be \[batch, member\] = \(6, 3\)"):
        make("concat")((features(), np.ones(3, bool)))
    with pytest.raises(ValueError, match="form is one of joint, shared"):
        combine.GatedFusion(
            widths=(2,), num_outputs=2, form="both", rngs=nnx.Rngs(params=0)
        )
    with pytest.raises(ValueError, match="at least two members"):
        make("bilinear", widths=(2,))
    with pytest.raises(ValueError, match="num_heads=3 must divide dim=4"):
        combine.AttentionFusion(
            widths=(2,), dim=4, num_outputs=2, num_heads=3, rngs=nnx.Rngs(params=0)
        )
