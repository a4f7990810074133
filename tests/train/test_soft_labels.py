"""Label smoothing and Mixup: labels as defined, members of one program, data shards."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ensjax
from ensjax.train import (
    SoftLabels,
    losses,
    mix_examples,
    mixup_partners,
    mixup_shares,
    smooth_labels,
)


class Linear:
    """A model of fixed weights, to call a loss with."""

    def __init__(self, kernel):
        self.kernel = kernel

    def __call__(self, x):
        return jnp.matmul(x, self.kernel, precision="highest")


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, 6)).astype(np.float32)
    labels = rng.integers(0, 3, 8).astype(np.int32)
    return Linear(jnp.asarray(rng.normal(size=(6, 3)), jnp.float32)), (x, labels)


def test_smoothed_labels_equal_their_definition_and_no_class_is_nan():
    found = np.asarray(smooth_labels(jnp.array([2, 0, 3]), 3, 0.3))
    expected = [[0.1, 0.1, 0.8], [0.8, 0.1, 0.1]]
    np.testing.assert_allclose(found[:2], expected, atol=1e-7)
    assert np.isnan(found[2]).all()
    with pytest.raises(TypeError, match="integer labels"):
        smooth_labels(jnp.ones(2), 3)


@pytest.fixture(scope="module")
def loss_of(case):
    """The loss of a key and strengths, as one program for all tests."""
    model, batch = case
    return jax.jit(lambda key, hyper: SoftLabels()(model, batch, key, hyper=hyper))


shares_of = jax.jit(mixup_shares, static_argnums=1)


@pytest.mark.slow
def test_the_loss_equals_a_loop_over_pairs_on_one_device_and_on_two_shards(
    case, loss_of
):
    model, (x, labels) = case
    key, hyper = jax.random.key(3), {"label_smoothing": 0.2, "mixup": 0.5}
    order_key, share_key = (jax.random.fold_in(key, i) for i in range(2))
    shares = np.asarray(shares_of(share_key, 8, 0.5), np.float64)
    partners = np.asarray(mixup_partners(order_key, jnp.arange(8)))
    assert sorted(partners) == list(range(8)) and (partners != np.arange(8)).any()
    assert ((shares >= 0) & (shares <= 1)).all() and len(set(shares)) == 8
    smoothed = 0.8 * np.eye(3) + 0.2 / 3
    total = 0.0
    for i, (j, share) in enumerate(zip(partners, shares)):
        outputs = (share * x[i] + (1 - share) * x[j]) @ np.float64(model.kernel)
        target = share * smoothed[labels[i]] + (1 - share) * smoothed[labels[j]]
        total -= target @ (outputs - np.log(np.exp(outputs).sum()))
    np.testing.assert_allclose(loss_of(key, hyper), total / 8, rtol=1e-5)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("data",))

    def shard(x, labels):
        loss = SoftLabels()(model, (x, labels), key, hyper=hyper)
        return jax.lax.pmean(loss, "data")

    split = jax.P("data")
    sharded = jax.shard_map(
        shard, mesh=mesh, in_specs=(split, split), out_specs=jax.P(), check_vma=False
    )
    np.testing.assert_allclose(jax.jit(sharded)(x, labels), total / 8, rtol=1e-5)


def test_squared_error_is_the_mean_over_classes_of_raw_outputs(case):
    model, (x, labels) = case
    hyper = {"label_smoothing": 0.2}
    loss = SoftLabels("squared_error")
    found = loss(model, (x, labels), jax.random.key(0), hyper=hyper)
    targets = 0.8 * np.eye(3)[labels] + 0.2 / 3
    expected = np.mean((targets - x @ np.float64(model.kernel)) ** 2)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_strengths_of_zero_are_the_plain_loss(case, loss_of):
    model, (x, labels) = case
    key, off = jax.random.key(0), {"label_smoothing": 0.0, "mixup": 0.0}
    plain, _ = losses.cross_entropy(model, (x, labels), key)
    np.testing.assert_allclose(loss_of(key, off), plain, rtol=1e-6)
    without = SoftLabels()(model, (x, labels), key, hyper={})
    np.testing.assert_allclose(without, plain, rtol=1e-6)
    # What is not mixed has nothing of its partner, not even NaN.
    kept = mix_examples(x, np.full_like(x, np.nan), jnp.ones(8))
    np.testing.assert_array_equal(kept, x)


def test_weights_of_rows_remove_them(case):
    model, (x, labels) = case
    key, hyper = jax.random.key(0), {"label_smoothing": 0.1}
    weight = jnp.asarray([1.0] * 5 + [0.0] * 3)
    found = SoftLabels()(model, (x, labels), key, weight, hyper=hyper)
    expected = SoftLabels()(model, (x[:5], labels[:5]), key, hyper=hyper)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.slow
def test_shares_have_the_moments_of_a_beta_distribution():
    for strength in (0.5, 2.0):
        shares = np.asarray(shares_of(jax.random.key(1), 4_000, strength))
        # Var Beta(a, a) = 1 / (4 (2 a + 1)); four standard errors.
        sd = np.sqrt(1 / (4 * (2 * strength + 1)))
        assert abs(shares.mean() - 0.5) < 4 * sd / np.sqrt(4_000)
        np.testing.assert_allclose(shares.std(), sd, rtol=0.05)


def make_adam(hyper):
    return optax.adam(hyper["learning_rate"], eps=1e-3)


def tuned(kit, mesh, **mixup):
    """Five members of other strengths, the first with none; as `kit.trained` else."""
    hyper = {"learning_rate": 1e-3, "label_smoothing": (0.0, 0.1, 0.0, 0.1, 0.5)}
    ensemble = kit.ensemble("mlp", 5, mesh=mesh)
    return kit.fit(
        ensemble, kit.data(), loss=SoftLabels(), make_tx=make_adam, hyper=hyper | mixup
    )[0]


def test_strengths_are_members_of_one_program_and_none_is_plain_training(kit):
    found = tuned(kit, (1, 2))
    plain, _ = kit.trained("mlp", 5, (1, 1))
    kit.check_close(found.select([0]), plain.select([0]))
    (ours, *_), (theirs, *_) = (jax.tree.leaves(e.params) for e in (found, plain))
    away = np.abs(np.asarray(ours) - np.asarray(theirs)).reshape(5, -1).max(axis=1)
    assert (away[[1, 3, 4]] > 1e-4).all() and away[2] < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [(2, 2), (4, 1)])
def test_strengths_are_the_same_members_on_any_mesh(kit, mesh):
    strengths = (0.0, 0.0, 0.5, 0.5, 2.0)
    single = tuned(kit, (1, 1), mixup=strengths)
    kit.check_close(tuned(kit, mesh, mixup=strengths), single)
    plain, _ = kit.trained("mlp", 5, (1, 1))
    kit.check_close(single.select([0]), plain.select([0]))


def test_a_loss_of_hyperparameters_says_what_it_lacks(kit):
    ensemble, data = kit.ensemble("mlp", 4), kit.data()
    with pytest.raises(TypeError, match="pass them as hyper="):
        kit.fit(
            ensemble, data, loss=SoftLabels(), hyper=None, make_tx=lambda: optax.sgd(1)
        )
    with pytest.raises(TypeError, match="Pass a dict"):
        kit.fit(ensemble, data, loss=SoftLabels(), hyper=1e-3)
    with pytest.raises(ValueError, match="pass an evaluation_loss"):
        kit.fit(
            ensemble,
            data,
            loss=SoftLabels(),
            make_tx=make_adam,
            hyper={"learning_rate": 1e-3},
            evaluation=data,
        )
    with pytest.raises(ValueError, match="measure is one of"):
        SoftLabels("absolute_error")
    assert ensjax.train.SoftLabels is SoftLabels
