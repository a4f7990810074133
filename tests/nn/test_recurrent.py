"""Recurrent members: equal a loop in NumPy, never look at padding, train in a stack."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import ensjax
from ensjax import nn

KINDS = {
    "lstm": dict(cell="lstm"),
    "gru": dict(cell="gru", pool="mean"),
    "bilstm": dict(cell="lstm", bidirectional=True, recurrent_init="he_normal"),
}
LENGTHS = np.array([6, 1, 4, 3])


def make(kind, rngs=None, **options):
    options = dict(in_features=3, hidden=5, num_outputs=2) | KINDS[kind] | options
    return nn.Recurrent(**options, rngs=nnx.Rngs(0) if rngs is None else rngs)


def sequences(seed=0):
    return np.random.default_rng(seed).normal(size=(4, 6, 3)).astype(np.float32)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def run_cell(kind, cell, steps):
    """States after each step of one sequence, from the equations, in float64."""
    w_in, w_state = (
        np.asarray(layer.kernel[...], np.float64)
        for layer in (cell.dense_i, cell.dense_h)
    )
    h, c, states = np.zeros(5), np.zeros(5), []
    for x in steps:
        if kind == "gru":
            own = x @ w_in + np.asarray(cell.dense_i.bias[...])
            (ir, iz, i_new), (hr, hz, h_new) = (
                np.split(own, 3),
                np.split(h @ w_state, 3),
            )
            z = sigmoid(iz + hz)
            h = (1 - z) * np.tanh(i_new + sigmoid(ir + hr) * h_new) + z * h
        else:
            gates = x @ w_in + h @ w_state + np.asarray(cell.dense_h.bias[...])
            i, f, g, o = np.split(gates, 4)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
        states.append(h)
    return np.array(states)


@pytest.mark.parametrize(
    "kind",
    ["bilstm", *(pytest.param(k, marks=pytest.mark.slow) for k in ("gru", "lstm"))],
)
def test_logits_equal_a_loop_over_the_true_steps_of_each_sequence(kind):
    model, x = make(kind), sequences()
    padded = x.copy()
    for row, length in enumerate(LENGTHS):
        padded[row, length:] = np.nan  # padding may hold anything
    actual = jax.jit(lambda m, x: m(x))(model, (padded, LENGTHS))
    weight, bias = (
        np.asarray(v[...]) for v in (model.head.linear.kernel, model.head.linear.bias)
    )
    for row, length in enumerate(LENGTHS):
        steps = x[row, :length].astype(np.float64)
        seen = []
        for cell, order in zip(model.cells, (steps, steps[::-1])):
            states = run_cell(kind, cell, order)
            seen.append(states.mean(0) if model.pool == "mean" else states[-1])
        want = np.concatenate(seen) @ weight + bias
        np.testing.assert_allclose(actual[row], want, atol=2e-6)


@pytest.mark.slow
def test_gradients_ignore_padding_and_rows_do_not_depend_on_their_order():
    model, x = make("bilstm"), sequences()
    graph, params = nnx.split(model)
    padded = np.where(np.arange(6)[None, :, None] < LENGTHS[:, None, None], x, np.nan)

    @jax.jit
    def gradient(params, x, lengths):
        def loss(p):
            logits = nnx.merge(graph, p)((x, lengths))
            return jnp.sum(logits**2), logits

        return jax.grad(loss, has_aux=True)(params)

    clean, logits = gradient(params, x, LENGTHS)
    dirty, _ = gradient(params, padded, LENGTHS)
    jax.tree.map(np.testing.assert_array_equal, clean, dirty)
    order = np.array([2, 0, 3, 1])
    _, permuted = gradient(params, x[order], LENGTHS[order])
    np.testing.assert_allclose(permuted, logits[order], atol=1e-6)


def test_reversal_is_by_the_true_length():
    x = np.arange(1, 7)[None].repeat(4, 0)[..., None]
    actual = nn.recurrent.reverse(x, LENGTHS)[..., 0]
    for row, length in enumerate(LENGTHS):
        assert actual[row, :length].tolist() == list(range(length, 0, -1))
        assert actual[row, length:].tolist() == list(range(length + 1, 7))


@pytest.mark.slow
@pytest.mark.parametrize("data", [1, 2])
def test_a_stack_trains_as_its_members_alone_on_a_mesh(data):
    x = np.random.default_rng(0).normal(size=(16, 6, 3)).astype(np.float32)
    lengths = np.random.default_rng(1).integers(1, 7, 16)
    y = (x[:, 0, 0] > 0).astype(np.int32)

    def train(ids, mesh):
        ensemble = ensjax.Ensemble.init(
            functools.partial(make, "bilstm"), member_ids=ids, mesh=mesh
        )
        ensemble, _ = ensjax.fit(
            ensemble,
            ((x, lengths), y),
            loss=ensjax.losses.cross_entropy,
            make_tx=optax.adam,
            hyper=1e-2,
            steps=4,
            steps_per_call=4,
            batch_size=8,
            progress=False,
        )
        return np.asarray(ensjax.predict(ensemble, (x, lengths)))

    one = ensjax.make_mesh(member=1, data=1)
    alone = [train([i], one)[0] for i in (0, 3)]
    stacked = train([0, 1, 2, 3], ensjax.make_mesh(member=4, data=data))
    np.testing.assert_allclose(stacked[[0, 3]], alone, atol=1e-5)


def test_mistakes_are_named():
    for option, known in [
        (dict(cell="rnn"), "gru, lstm"),
        (dict(pool="max"), "last, mean"),
        (dict(recurrent_init="zero"), "he_normal, lecun_normal"),
    ]:
        with pytest.raises(ValueError, match=known):
            make("lstm", **option)
    model = make("lstm")
    with pytest.raises(ValueError, match="3 entries a step"):
        model(np.zeros((2, 6, 4), np.float32))
    with pytest.raises(ValueError, match=r"lengths must be \[batch\] = \(4,\)"):
        model((sequences(), LENGTHS[:2]))
