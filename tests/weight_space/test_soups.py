"""Soups: equal to their sequential definitions, on every mesh."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import ensjax
from ensjax.weight_space import greedy_soup, learned_soup, uniform_soup
from ensjax.weight_space.learned_soup import layer_of

MEMBERS, CLASSES = 7, 3


def apply(params, x):
    return jnp.tanh(x @ params["w"]) @ params["v"] + params["b"][None]


@pytest.fixture(scope="module")
def members():
    """Noisy copies of one network, as fine-tuning makes them."""
    rng = np.random.default_rng(0)
    shapes = {"w": (5, 6), "v": (6, CLASSES), "b": (CLASSES,)}
    base = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    spread = np.linspace(0.7, 0.9, MEMBERS)[rng.permutation(MEMBERS)]
    stack = {
        name: np.stack([x + s * rng.normal(size=x.shape) for s in spread])
        for name, x in base.items()
    }
    x = rng.normal(size=(160, 5)).astype(np.float32)
    y = np.asarray(apply(base, x)).argmax(-1)
    y = np.where(rng.random(160) < 0.1, rng.integers(CLASSES, size=160), y)
    return jax.tree.map(lambda v: v.astype(np.float32), stack), (x, y)


def ensemble_on(stack, member, data):
    devices = jax.devices()[: member * data]
    mesh = ensjax.make_mesh(member=member, data=data, devices=devices)
    return ensjax.Ensemble.from_apply(apply, stack, mesh=mesh)


def score_of(params, data, score):
    logits = np.asarray(apply(params, data[0]))
    if score == "accuracy":
        return np.float32((logits.argmax(-1) == data[1]).sum()) / np.float32(160)
    log_probs = np.asarray(jax.nn.log_softmax(logits))
    return -log_probs[np.arange(160), data[1]].mean()


def sequential(stack, data, score, sign):
    """The reference: one model after the other, as lists."""
    models = [jax.tree.map(lambda v: v[i], stack) for i in range(MEMBERS)]  # noqa: B023
    alone = [score_of(model, data, score) for model in models]
    order = sorted(range(MEMBERS), key=lambda i: sign * alone[i], reverse=True)
    soup, best, inside = models[order[0]], alone[order[0]], [order[0]]
    for i in order[1:]:
        n = len(inside)
        candidate = jax.tree.map(
            lambda a, b: n / (n + 1) * a + b / (n + 1),  # noqa: B023
            soup,
            models[i],
        )
        value = score_of(candidate, data, score)
        if sign * value > sign * best:
            soup, best, inside = candidate, value, [*inside, i]
    return order, inside, soup, best


@pytest.mark.parametrize(
    "member, data, score, largest",
    [
        pytest.param(1, 1, "accuracy", True, marks=pytest.mark.slow),
        (4, 2, "accuracy", True),
        pytest.param(8, 1, "nll", False, marks=pytest.mark.slow),
    ],
)
def test_the_greedy_soup_is_the_sequential_one(members, member, data, score, largest):
    stack, rows = members
    sign = 1 if largest else -1
    order, inside, soup, best = sequential(stack, rows, score, sign)
    assert 1 < len(inside) < MEMBERS  # else this would show little
    found = greedy_soup(
        ensemble_on(stack, member, data), rows, score=score, batch_size=37
    )
    assert found.order.tolist() == order
    assert found.order[found.is_kept].tolist() == inside
    expected = np.zeros(MEMBERS)
    expected[inside] = 1 / len(inside)
    np.testing.assert_allclose(found.weights, expected)
    np.testing.assert_allclose(found.scores[found.is_kept][-1], best, rtol=1e-5)
    jax.tree.map(
        lambda got, want: np.testing.assert_allclose(got, want, atol=1e-6),
        found.model[0],
        soup,
    )


def test_a_gain_that_is_asked_for_keeps_members_out(members):
    stack, rows = members
    ensemble = ensemble_on(stack, 1, 1)
    found = greedy_soup(ensemble, rows, min_gain=0.5)
    assert found.is_kept.tolist() == [True] + [False] * (MEMBERS - 1)
    jax.tree.map(
        np.testing.assert_array_equal, found.model[0], ensemble[int(found.order[0])]
    )
    with pytest.raises(ValueError, match="min_gain must be at least 0"):
        greedy_soup(ensemble, rows, min_gain=-1)


@pytest.mark.parametrize("score", ["confidence", lambda outputs, y: outputs[:, 0]])
def test_of_a_score_without_a_direction_it_must_be_said(members, score):
    stack, rows = members
    with pytest.raises(ValueError, match="give largest=True or largest=False"):
        greedy_soup(ensemble_on(stack, 1, 1), rows, score=score)


def test_of_equal_members_the_first_is_taken_alone(members):
    stack, rows = members
    same = jax.tree.map(lambda v: v[[2] * 5], stack)
    found = greedy_soup(ensemble_on(same, 2, 1), rows)
    assert found.order.tolist() == [0, 1, 2, 3, 4]
    assert found.is_kept.tolist() == [True, False, False, False, False]


@pytest.fixture(scope="module")
def broken(members):
    """The members, one of which is NaN; the first class is the most frequent."""
    stack, (x, y) = members
    broken = jax.tree.map(np.copy, stack)
    broken["w"][3] = np.nan
    return broken, (x, np.where(np.arange(len(y)) % 8 < 7, 0, y))


def argmax_is_first(outputs, targets):
    """A score of one's own that does not see NaN: its argmax is class 0."""
    return (jnp.argmax(outputs, axis=-1) == targets).astype(jnp.float32)


@pytest.mark.parametrize("score", ["accuracy", argmax_is_first])
def test_predicting_nan_is_no_way_to_be_right(broken, score):
    stack, rows = broken
    ensemble = ensemble_on(stack, 1, 1)
    found = greedy_soup(ensemble, rows, score=score, largest=True)
    assert found.order[-1] == 3 and not found.is_kept[-1] and found.weights[3] == 0
    assert np.isfinite(found.model[0]["w"]).all()


def test_no_soup_is_silently_nan(broken):
    stack, rows = broken
    ids = [*range(10, 10 + MEMBERS)]
    ensemble = ensjax.Ensemble.from_apply(apply, stack, member_ids=ids)
    with pytest.raises(ValueError, match=r"ids \[13\] are not all finite"):
        uniform_soup(ensemble)
    with pytest.raises(ValueError, match=r"ids \[13\] are not all finite"):
        learned_soup(ensemble, rows)
    without = uniform_soup(ensemble, weights=np.arange(MEMBERS) != 3)
    mean = np.delete(stack["w"], 3, axis=0).mean(axis=0)
    np.testing.assert_allclose(without.model[0]["w"], mean, atol=1e-6)
    all_bad = jax.tree.map(lambda v: np.full_like(v, np.nan), stack)
    with pytest.raises(ValueError, match="none of the 7 members is finite"):
        greedy_soup(ensemble_on(all_bad, 1, 1), rows)


def test_a_member_that_is_not_finite_is_never_kept(members):
    stack, rows = members
    broken = jax.tree.map(np.copy, stack)
    broken["w"][3] = np.nan
    whole = greedy_soup(ensemble_on(stack, 1, 1), rows, score="nll")
    found = greedy_soup(ensemble_on(broken, 1, 1), rows, score="nll", largest=False)
    assert found.order[-1] == 3 and not found.is_kept[-1]
    assert np.isfinite(found.model[0]["w"]).all()
    assert whole.order[0] == found.order[0] or whole.order[0] == 3


def test_the_uniform_soup_is_the_mean(members):
    stack, _ = members
    found = uniform_soup(ensemble_on(stack, 8, 1))
    np.testing.assert_allclose(found.model[0]["w"], stack["w"].mean(axis=0), atol=1e-6)
    found = uniform_soup(ensemble_on(stack, 1, 1), weights=np.arange(MEMBERS))
    expected = np.average(stack["w"], axis=0, weights=np.arange(MEMBERS))
    np.testing.assert_allclose(found.model[0]["w"], expected, atol=1e-6)
    with pytest.raises(ValueError, match="at least 0 and not all"):
        uniform_soup(ensemble_on(stack, 1, 1), weights=np.zeros(MEMBERS))


def learned_by_autodiff(stack, rows, *, groups, steps, size, seed):
    """The same descent with the gradient through the mixture itself."""
    tx = optax.adamw(0.05, weight_decay=0.0)

    def loss(knobs, batch):
        share = jax.nn.softmax(knobs["alpha"], axis=-1)
        params = {
            name: jnp.tensordot(share[groups[name]], v, axes=1)
            for name, v in stack.items()
        }
        logits = knobs["scale"] * apply(params, batch[0])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch[1])
        return losses.mean()

    alpha = jnp.zeros((max(groups.values()) + 1, MEMBERS))
    knobs = {"alpha": alpha, "scale": jnp.float32(1)}
    opt_state = tx.init(knobs)
    for epoch in range(steps):
        key = jax.random.fold_in(jax.random.key(seed), epoch)
        order = jax.random.permutation(key, len(rows[1]))
        for index in order[: len(order) // size * size].reshape(-1, size):
            batch = jax.tree.map(lambda v: v[index], rows)  # noqa: B023
            grads = jax.jit(jax.grad(loss))(knobs, batch)
            updates, opt_state = tx.update(grads, opt_state, knobs)
            knobs = optax.apply_updates(knobs, updates)
    return jax.nn.softmax(knobs["alpha"], axis=-1), knobs["scale"]


@pytest.mark.parametrize(
    "member, data, granularity, groups",
    [
        pytest.param(1, 1, "model", {"w": 0, "v": 0, "b": 0}, marks=pytest.mark.slow),
        (4, 2, "leaf", {"b": 0, "v": 1, "w": 2}),
    ],
)
def test_the_learned_soup_descends_the_gradient_of_its_coefficients(
    members, member, data, granularity, groups
):
    stack, (x, y) = members
    rows = jnp.asarray(x), jnp.asarray(y)
    share, scale = learned_by_autodiff(
        stack, rows, groups=groups, steps=3, size=80, seed=5
    )
    found = learned_soup(
        ensemble_on(stack, member, data),
        (x, y),
        granularity=granularity,
        num_epochs=3,
        batch_size=80,
        seed=5,
    )
    got = np.stack(list(found.layer_weights.values()))
    np.testing.assert_allclose(got, share, atol=2e-5)
    np.testing.assert_allclose(found.scale, scale, atol=2e-5)
    np.testing.assert_allclose(found.weights, got.mean(axis=0), atol=1e-6)
    w = np.tensordot(share[groups["w"]], stack["w"], axes=1)
    np.testing.assert_allclose(found.model[0]["w"], w, atol=1e-5)


@pytest.mark.parametrize(
    "name, layer",
    [
        ("params.blocks.0.norm.scale", "params.blocks.0.norm"),
        ("rest.blocks.0.norm.mean", "params.blocks.0.norm"),
        ("params.params.norm.scale", "params.params.norm"),
        ("params.batch_stats.norm.mean", "params.params.norm"),
        ("params.w", "params"),
    ],
)
def test_batch_statistics_are_of_their_norms_layer(name, layer):
    assert layer_of(name) == layer


def test_a_norm_is_one_layer_of_a_learned_soup():
    class Norm(nnx.Module):
        def __init__(self, rngs):
            self.norm = nnx.BatchNorm(CLASSES, rngs=rngs)

        def __call__(self, x):
            return self.norm(x)

    mesh = ensjax.make_mesh(member=1, devices=jax.devices()[:1])
    made = ensjax.Ensemble.init(Norm, num_members=2, seed=0, mesh=mesh)
    rest = jax.tree.map(lambda v: v.at[1].add(1.0), made.state["rest"])
    made = dataclasses.replace(made, state={**made.state, "rest": rest})
    rows = np.eye(CLASSES, dtype=np.float32), np.arange(CLASSES)
    found = learned_soup(made, rows, granularity="layer", num_epochs=2)
    assert list(found.layer_weights) == ["params.norm"]
    share = found.layer_weights["params.norm"]
    np.testing.assert_allclose(found.model[0].norm.mean[...], share[1], atol=1e-6)


def test_a_learned_soup_is_no_worse_than_the_uniform_one_where_it_learns(members):
    stack, rows = members
    found = learned_soup(ensemble_on(stack, 1, 1), rows, num_epochs=40, batch_size=80)
    mean = uniform_soup(ensemble_on(stack, 1, 1))
    scaled = found.scale * np.asarray(apply(found.model[0], rows[0]))
    log_probs = jax.nn.log_softmax(scaled)
    learned = -log_probs[np.arange(160), rows[1]].mean()
    assert learned < score_of(mean.model[0], rows, "nll")
    assert found.losses[-1] < found.losses[0]
    with pytest.raises(ValueError, match="granularity is one of model"):
        learned_soup(ensemble_on(stack, 1, 1), rows, granularity="module")


@pytest.mark.parametrize("label, words", [(-1, "row 3 has -1"), (3, "row 3 has 3")])
def test_a_learned_soup_refuses_labels_that_are_no_class(members, label, words):
    """optax takes the last class for -1, and NaN for one too many."""
    stack, (x, y) = members
    y = np.where(np.arange(160) == 3, label, y)
    with pytest.raises(ValueError, match=f"classes, 0 to 2; {words}"):
        learned_soup(ensemble_on(stack, 1, 1), (x, y))
    with pytest.raises(ValueError, match=r"integers \[row\]; got int64\[160, 1\]"):
        learned_soup(ensemble_on(stack, 1, 1), (x, y[:, None]))


def test_a_learned_soup_with_a_loss_that_is_nan_is_none(members):
    stack, (x, y) = members
    with pytest.raises(ValueError, match="the loss of epoch 0 is nan"):
        learned_soup(ensemble_on(stack, 1, 1), (x * np.nan, y), num_epochs=1)
