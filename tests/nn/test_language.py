"""BERT and Llama: against NumPy, padding, dtype and remat, and as members."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import ensjax
from ensjax.nn import BERT, Llama
from ensjax.weight_space import alpha_path, mix_members, sweep

WORDS = 13
bert = functools.partial(
    BERT, vocabulary=WORDS, width=8, depth=2, num_heads=2, max_tokens=7, mlp_width=12
)
llama = functools.partial(
    Llama, vocabulary=WORDS, width=8, depth=2, num_heads=4, num_kv_heads=2, mlp_width=12
)
MODELS = {
    "bert": bert,
    "bert_words": functools.partial(bert, head="words"),
    "llama": llama,
    "llama_tied": functools.partial(llama, tied=True, head_width=4),
}
EACH = pytest.mark.parametrize(
    "name",
    [
        "bert",
        "llama",
        *(
            pytest.param(n, marks=pytest.mark.slow)
            for n in ("bert_words", "llama_tied")
        ),
    ],
)
TOKENS = jax.random.randint(jax.random.key(5), (4, 6), 0, WORDS)
MASK = jnp.array([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]] * 2)


@nnx.jit
def run(model, *args):
    return model(*args)


@functools.cache
def make(name, **options):
    """A model of weights far from zero, so that every part of it matters."""
    model = MODELS[name](rngs=nnx.Rngs(params=0), **options)
    rng = np.random.default_rng(0)
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    drawn = jax.tree.map(
        lambda x: jnp.asarray(x + 0.4 * rng.normal(size=x.shape), jnp.float32), params
    )
    return nnx.merge(graph, drawn, rest)


def _wide(leaf):
    return np.asarray(leaf[...], np.float64)


def _linear(layer, x):
    y = x @ _wide(layer.kernel)
    return y if layer.bias is None else y + _wide(layer.bias)


def _softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def _heads(layer, x, size):
    y = _linear(layer, x)
    return y.reshape(*x.shape[:2], -1, size)


def _attend(attention, x, mask, turn=lambda x: x, causal=False):
    size = attention.head_width
    q, k = (turn(_heads(a, x, size)) for a in (attention.query, attention.key))
    v = _heads(attention.value, x, size)
    k, v = (np.repeat(a, q.shape[2] // a.shape[2], axis=2) for a in (k, v))
    scores = np.einsum("bqhc,bkhc->bhqk", q, k) / math.sqrt(size)
    seen = np.asarray(mask, bool)[:, None, None, :]
    if causal:
        seen = seen & np.tri(x.shape[1], dtype=bool)[None, None]
    weights = _softmax(np.where(seen, scores, -1e30))
    y = np.einsum("bhqk,bkhc->bqhc", weights, v)
    return _linear(attention.out, y.reshape(*x.shape[:2], -1))


def _layer_norm(norm, x):
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-12)
    return x * _wide(norm.scale) + _wide(norm.bias)


def _rms_norm(norm, x):
    mean_square = (x**2).mean(-1, keepdims=True)
    return x / np.sqrt(mean_square + norm.epsilon) * _wide(norm.scale)


def _gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def bert_reference(model, tokens, mask, token_types):
    x = _wide(model.words.embedding)[tokens] + _wide(model.positions)[None, :6]
    x = x + _wide(model.token_types.embedding)[token_types]
    x = _layer_norm(model.norm, x)
    for block in model.blocks:
        x = _layer_norm(block.norm1, x + _attend(block.attention, x, mask))
        y = _linear(block.linear2, _gelu(_linear(block.linear1, x)))
        x = _layer_norm(block.norm2, x + y)
    if model.pooler is not None:
        return _linear(model.head.linear, np.tanh(_linear(model.pooler, x[:, 0])))
    x = _layer_norm(model.head.norm, _gelu(_linear(model.head.linear, x)))
    return x @ _wide(model.words.embedding).T + _wide(model.head.bias)


def llama_reference(model, tokens, mask, theta=10_000.0):
    x = _wide(model.words.embedding)[tokens]
    half = model.head_width // 2
    angles = np.arange(6)[:, None] * theta ** (-np.arange(half) / half)
    turns = np.exp(1j * angles)[None, :, None]

    def turn(x):
        z = (x[..., :half] + 1j * x[..., half:]) * turns
        return np.concatenate([z.real, z.imag], axis=-1)

    for block in model.blocks:
        y = _rms_norm(block.norm1, x)
        x = x + _attend(block.attention, y, mask, turn, causal=True)
        y = _rms_norm(block.norm2, x)
        gate = _linear(block.gate, y)
        y = gate / (1 + np.exp(-gate)) * _linear(block.up, y)
        x = x + _linear(block.down, y)
    x = _rms_norm(model.norm, x)
    if model.head is None:
        return x @ _wide(model.words.embedding).T
    return _linear(model.head.linear, x)


def test_rms_norm_of_3_and_4():
    norm = nnx.RMSNorm(2, epsilon=0.0, rngs=nnx.Rngs(0))
    root = math.sqrt((9 + 16) / 2)
    expected = [[3 / root, 4 / root]]
    np.testing.assert_allclose(norm(jnp.array([[3.0, 4.0]])), expected, rtol=1e-6)


@EACH
def test_logits_equal_a_numpy_forward_pass(name):
    model = make(name)
    tokens, mask = np.asarray(TOKENS), np.asarray(MASK)
    if name.startswith("bert"):
        token_types = np.asarray(tokens % 2)
        expected = bert_reference(model, tokens, mask, token_types)
        actual = run(model, TOKENS, MASK, jnp.asarray(token_types))
    else:
        expected = llama_reference(model, tokens, mask)
        actual = run(model, TOKENS, MASK)
    assert actual.dtype == jnp.float32
    if actual.ndim == 3:  # what is said at padding means nothing
        actual, expected = actual[mask == 1], expected[mask == 1]
    np.testing.assert_allclose(actual, expected, atol=1e-4)
    assert np.std(expected) > 0.1


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_padding_may_hold_anything_and_changes_nothing(name):
    model = make(name)
    short = run(model, TOKENS[:, :4])
    for filling in (0, 5, 10**6):
        padded = TOKENS.at[:, 4:].set(filling)
        mask = jnp.broadcast_to(jnp.arange(6) < 4, (4, 6))
        actual = run(model, padded, mask)
        actual = actual[:, :4] if actual.ndim == 3 else actual
        np.testing.assert_allclose(actual, short, atol=2e-5)


def test_padding_on_the_left_of_a_decoder_changes_nothing():
    model = make("llama")
    mask = jnp.broadcast_to(jnp.arange(6) >= 2, (4, 6))
    actual = run(model, TOKENS, mask)[:, 2:]
    # Positions are two later, and only their differences matter.
    np.testing.assert_allclose(actual, run(model, TOKENS[:, 2:]), atol=5e-5)


def test_later_words_do_not_change_logits_of_a_decoder_but_of_an_encoder():
    changed = TOKENS.at[:, 4].set((TOKENS[:, 4] + 1) % WORDS)
    for name, is_causal in (("llama", True), ("bert_words", False)):
        model = make(name)
        gap = jnp.abs(run(model, changed) - run(model, TOKENS))[:, :4].max()
        assert gap < 1e-5 if is_causal else gap > 1e-2
        assert jnp.abs(run(model, changed) - run(model, TOKENS))[:, 4:].max() > 1e-2


def test_a_word_that_does_not_exist_is_not_overlooked():
    logits = run(make("llama"), TOKENS.at[0, 2].set(WORDS))
    assert np.isnan(logits[0, 2:]).all() and np.isfinite(logits[1:]).all()


@pytest.mark.parametrize(
    "name", [pytest.param("bert_words", marks=pytest.mark.slow), "llama_tied"]
)
def test_logits_are_float32_and_bfloat16_stays_near(name):
    expected = run(make(name), TOKENS, MASK)
    logits = run(make(name, dtype=jnp.bfloat16), TOKENS, MASK)
    assert logits.dtype == jnp.float32
    # bfloat16 keeps 8 bits (0.4 %) per operation; some thirty follow each other.
    np.testing.assert_allclose(logits, expected, atol=0.05 * np.abs(expected).max())
    assert not np.allclose(logits, expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_remat_changes_no_value_and_no_gradient(name):
    def value_and_grads(model):
        graph, params, rest = nnx.split(model, nnx.Param, ...)

        def of(params):
            model = nnx.merge(graph, params, rest, copy=True)
            return jnp.sum(jnp.sin(model(TOKENS, MASK)))

        return jax.tree.leaves(jax.jit(jax.value_and_grad(of))(params))

    parts = (make(name, depth=1, remat=remat) for remat in (True, False))
    for a, b in zip(*map(value_and_grads, parts), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.slow
def test_dropout_draws_in_training_only():
    model = MODELS["bert"](dropout=0.5, depth=1, rngs=nnx.Rngs(params=0, dropout=1))
    assert not np.allclose(run(model, TOKENS), run(model, TOKENS))
    model.eval()
    np.testing.assert_array_equal(run(model, TOKENS), run(model, TOKENS))


def test_other_heads():
    hidden, pooled = (
        MODELS["bert"](head=head, depth=1, rngs=nnx.Rngs(0))
        for head in ("hidden", "pooled")
    )
    first = run(hidden, TOKENS)[:, 0]
    assert run(hidden, TOKENS).shape == (4, 6, 8) and hidden.pooler is None
    expected = np.tanh(_linear(pooled.pooler, np.asarray(first, np.float64)))
    np.testing.assert_allclose(run(pooled, TOKENS), expected, atol=1e-6)
    # Without logits, the decoder ends after its norm: mean square 1.
    decoded = run(MODELS["llama"](head="hidden", depth=1, rngs=nnx.Rngs(0)), TOKENS)
    np.testing.assert_allclose((decoded**2).mean(-1), 1.0, atol=1e-2)


def num_params(build, depth, **options):
    """Parameters at a depth, from those of one block and of two."""

    def count(depth):
        def make():
            return build(depth=depth, **options, rngs=nnx.Rngs(params=0))

        leaves = jax.tree.leaves(nnx.state(nnx.eval_shape(make), nnx.Param))
        return sum(leaf.size for leaf in leaves)

    return count(1) + (depth - 1) * (count(2) - count(1))


def test_published_sizes():
    base = dict(vocabulary=30_522, width=768, depth=12, num_heads=12)
    assert num_params(BERT, head="pooled", **base) == 109_482_240
    # The word head has a dense layer, a norm and a bias, and no pooler.
    extra = 768 * 768 + 768 + 2 * 768 + 30_522
    body = 109_482_240 - (768 * 768 + 768)
    assert num_params(BERT, head="words", **base) == body + extra
    seven = dict(vocabulary=32_000, width=4096, depth=32, num_heads=32)
    assert num_params(Llama, mlp_width=11_008, **seven) == 6_738_415_616
    eight = dict(seven, vocabulary=128_256, num_kv_heads=8, mlp_width=14_336)
    assert num_params(Llama, **eight) == 8_030_261_248
    tied = num_params(Llama, tied=True, **eight)
    assert tied == 8_030_261_248 - 128_256 * 4096


def next_word_loss(model, batch, key):
    """Mean negative log-likelihood of each next word, in nats."""
    del key
    (tokens,) = batch
    log_probs = jax.nn.log_softmax(model(tokens[:, :-1]))
    picked = jnp.take_along_axis(log_probs, tokens[:, 1:, None], axis=-1)
    return -picked.mean()


def counting_rows(num_rows=32):
    """Rows that count up from a random word: the next word is certain."""
    first = np.random.default_rng(0).integers(0, WORDS, (num_rows, 1))
    return ((first + np.arange(6)) % WORDS).astype(np.int32)


def adam(rate):
    # A large epsilon: else Adam turns rounding into steps where a gradient is zero.
    return optax.adam(rate, eps=1e-3)


def new_ensemble(name, mesh):
    def make_model(rngs):
        return MODELS[name](depth=1, rngs=rngs)

    return ensjax.Ensemble.init(make_model, num_members=8, mesh=mesh)


def one_device():
    return ensjax.make_mesh(member=1, devices=jax.devices()[:1])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "llama_tied"])
def test_members_on_eight_devices_equal_those_on_one_and_alone(name):
    together = new_ensemble(name, one_device())
    split = together.on_mesh(ensjax.make_mesh())
    assert split.mesh.shape["member"] == 8
    logits = ensjax.predict(split, (TOKENS, MASK))
    np.testing.assert_allclose(
        logits, ensjax.predict(together, (TOKENS, MASK)), atol=1e-5
    )
    alone = run(together[3], TOKENS, MASK)
    np.testing.assert_allclose(logits[3], alone, atol=1e-5)
    assert np.std(logits, axis=0).min() > 0


CASES = {
    "bert": (
        ((counting_rows(), np.ones((32, 6), np.int32)), np.arange(32) % 2),
        ensjax.losses.cross_entropy,
    ),
    "llama_tied": ((counting_rows(),), next_word_loss),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(CASES))
def test_training_on_eight_devices_equals_one(name):
    data, loss = CASES[name]
    trained = [
        ensjax.fit(
            new_ensemble(name, mesh),
            data,
            loss=loss,
            make_tx=adam,
            hyper=0.02,
            steps=4,
            batch_size=8,
            progress=False,
        )[0]
        for mesh in (None, one_device())
    ]
    for a, b in zip(*(jax.tree.leaves(e.params) for e in trained), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def nll_of_rows(logits, tokens):
    log_probs = jax.nn.log_softmax(logits[:, :-1])
    picked = jnp.take_along_axis(log_probs, tokens[:, 1:, None], axis=-1)
    return -picked[..., 0].mean(axis=1)


@pytest.mark.slow
def test_a_tied_embedding_is_one_leaf_of_every_mixture():
    model = make("llama_tied")
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    halved = nnx.merge(graph, jax.tree.map(lambda x: 0.5 * x, params), rest)
    ensemble = ensjax.Ensemble.stack([model, halved], mesh=one_device())
    names = [jax.tree_util.keystr(p) for p, _ in jax.tree.leaves_with_path(params)]
    assert sum("words" in name for name in names) == 1
    assert not any("['head']" in name for name in names)
    soup = mix_members(ensemble, jnp.array([[0.5, 0.5]]))[0]
    expected = 0.75 * model.words.embedding[...]
    np.testing.assert_allclose(soup.words.embedding[...], expected, atol=1e-6)
    data = {"rows": ((TOKENS, MASK), TOKENS)}
    scores = sweep(ensemble, alpha_path(3), data, scores={"nll": nll_of_rows})
    for value, model in zip(
        scores.values["weights"]["rows"]["nll"], (ensemble[0], soup, ensemble[1])
    ):
        alone = nll_of_rows(run(model, TOKENS, MASK), TOKENS).mean()
        np.testing.assert_allclose(value, alone, atol=1e-5)


@pytest.mark.slow
def test_llama_learns_to_count():
    _, log = ensjax.fit(
        new_ensemble("llama", one_device())[:2],
        (counting_rows(64),),
        loss=next_word_loss,
        make_tx=optax.adam,
        hyper=0.02,
        steps=150,
        batch_size=16,
        progress=False,
    )
    # Blind guessing costs log 13 = 2.56 nats.
    assert np.asarray(log.metrics["loss"])[-1].max() < 0.1


def test_bad_arguments_are_told():
    with pytest.raises(ValueError, match="classes, words, pooled, hidden; got 'x'"):
        MODELS["bert"](head="x", rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="gelu, gelu_tanh, .*; got 'selu'"):
        MODELS["bert"](activation="selu", rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="words, hidden; got 'classes'"):
        MODELS["llama"](head="classes", rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="8 tokens, but.* at most 7"):
        make("bert")(jnp.zeros((1, 8), jnp.int32))
    with pytest.raises(ValueError, match="token_types must have the shape"):
        make("bert")(TOKENS, None, TOKENS[:, :2])
    with pytest.raises(ValueError, match="even head width; got 3"):
        MODELS["llama"](head_width=3, rngs=nnx.Rngs(0))
