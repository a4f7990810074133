"""The kernel CRPS as a loss, and training of one network on members of its noise."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import ensjax
from ensjax import Ensemble, fit, make_mesh, verification
from ensjax.train import NoiseCrps, WhiteNoise
from ensjax.train import kernel_crps as eager_crps

kernel_crps = jax.jit(eager_crps, static_argnames=("estimator", "alpha", "form"))
FORMS = ("pairs", "sorted")
WORDS = ("standard", "fair", "almost_fair")
WEIGHT = {"standard": 0.0, "fair": 1.0, "almost_fair": 0.95}


def draw(count, size=7, dtype=np.float32):
    rng = np.random.default_rng(count)
    members = rng.normal(size=(count, size)).astype(dtype)
    return jnp.asarray(members), jnp.asarray(rng.normal(size=size).astype(dtype))


def double_sum(members, truth, fair):
    """The definition, pair by pair."""
    count = len(members)
    error = sum(abs(x - truth) for x in members) / count
    pairs = sum(abs(a - b) for a, b in itertools.product(members, members))
    kept = fair / (count * (count - 1)) + (1 - fair) / count**2
    return error - kept * pairs / 2


@pytest.mark.parametrize("form", FORMS)
def test_the_value_by_hand(form):
    members, truth = jnp.array([1.0, 2.0, 6.0]), jnp.float32(3.0)
    # Errors 2, 1, 3 have mean 2; distances 1, 5, 4 sum to 10.
    for word, value in (
        ("fair", 2 - 10 / 6),
        ("standard", 2 - 10 / 9),
        ("almost_fair", 2 - 0.95 * 10 / 6 - 0.05 * 10 / 9),
    ):
        found = kernel_crps(members, truth, estimator=word, form=form)
        np.testing.assert_allclose(found, value, rtol=1e-6)


@pytest.mark.parametrize("count", [2, 3, 4, 9])
def test_it_is_the_crps_of_the_verification(count):
    members, truth = draw(count)
    for form, word in itertools.product(FORMS, WORDS):
        found = kernel_crps(members, truth, estimator=word, form=form)
        exact = double_sum(*map(np.asarray, (members, truth)), WEIGHT[word])
        np.testing.assert_allclose(found, exact, rtol=2e-6, atol=1e-6)
        by_metric = verification.crps(word)(members, truth)
        np.testing.assert_allclose(found.mean(), by_metric, rtol=2e-6)


@pytest.mark.parametrize("form", FORMS)
def test_alpha_goes_from_the_standard_to_the_fair_form(form):
    members, truth = jnp.array([0.1, 0.4, 0.9, 1.6, 2.5]), jnp.float32(0.7)
    for alpha, value in ((0.0, 0.28), (0.95, 0.166), (1.0, 0.16)):
        found = kernel_crps(members, truth, alpha=alpha, form=form)
        np.testing.assert_allclose(found, value, rtol=1e-6)
    for alpha, word in ((0.0, "standard"), (1.0, "fair")):
        found = kernel_crps(members, truth, alpha=alpha, form=form)
        assert found == kernel_crps(members, truth, estimator=word, form=form)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_what_is_masked_has_no_value_and_no_gradient(form, count):
    """Also where truth or members are NaN or infinite there; the rest is as without."""
    members, truth = draw(count)
    mask = np.arange(truth.size).reshape(truth.shape) % 3 > 0
    broken = np.where(mask, truth, np.nan).astype(np.float32)
    spoiled = np.array(members)
    spoiled[0][~mask], spoiled[-1][~mask] = np.inf, np.nan
    options = dict(form=form, estimator="standard" if count == 1 else "almost_fair")

    def total(members, truth, **more):
        values = kernel_crps(members, truth, **options, **more)
        return jnp.sum(values), values

    slopes_of = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)
    (_, values), slopes = slopes_of(spoiled, broken, mask=mask)
    (_, whole), whole_slopes = slopes_of(members, truth)
    np.testing.assert_array_equal(values[~mask], 0)
    # Members are of the size of 1. (Not bit for bit: with the mask and without it other
    # programs are compiled, which round as they like.)
    np.testing.assert_allclose(values[mask], whole[mask], rtol=0, atol=2e-6)
    for found, expected in zip(slopes, whole_slopes, strict=True):
        np.testing.assert_array_equal(found[..., ~mask], 0)
        expected = expected[..., mask]
        np.testing.assert_allclose(found[..., mask], expected, rtol=0, atol=2e-6)
    # Without the mask a NaN is not hidden.
    (value, values), slopes = slopes_of(members, broken)
    assert np.isnan(value) and np.isnan(values[~mask]).all()
    assert np.isfinite(values[mask]).all() and np.isnan(slopes[0][:, ~mask]).all()


def test_weights_multiply_the_score():
    members, truth = draw(3)
    weights = np.linspace(0, 2, truth.shape[-1], dtype=np.float32)
    found = kernel_crps(members, truth, weights=weights)
    np.testing.assert_allclose(found, kernel_crps(members, truth) * weights, rtol=1e-6)
    with pytest.raises(ValueError, match="weights must broadcast to the truth"):
        kernel_crps(members, truth, weights=np.ones((2, *truth.shape)))
    with pytest.raises(ValueError, match="mask must broadcast to the truth"):
        kernel_crps(members, truth, mask=np.ones((2, *truth.shape), bool))
    with pytest.raises(TypeError, match="mask must be booleans; got float32"):
        kernel_crps(members, truth, mask=np.ones(truth.shape, np.float32))


@pytest.mark.parametrize("form", FORMS)
def test_weights_that_are_not_finite_do_not_count_where_nothing_does(form):
    """Such as one over the deviation of a place that is constant."""
    members, truth = draw(3, 4)
    mask = np.array([True, False, False, True])
    weights = jnp.array([2.0, np.inf, np.nan, 0.5])

    def total(members, weights):
        values = kernel_crps(members, truth, form=form, mask=mask, weights=weights)
        return jnp.sum(values), values

    slopes_of = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)
    (_, found), slopes = slopes_of(members, weights)
    (_, expected), whole = slopes_of(members, jnp.where(mask, weights, 1.0))
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(found[~mask], 0)
    for slope, finite in zip(slopes, whole, strict=True):
        np.testing.assert_array_equal(slope, finite)
    # One mask for all rows, and weights that do count.
    both = kernel_crps(members, truth, form=form, mask=np.array(True), weights=weights)
    np.testing.assert_array_equal(np.isnan(both), np.isnan(weights))


def test_one_member_has_its_absolute_error_and_no_fair_score():
    members, truth = draw(1)
    found = kernel_crps(members, truth, estimator="standard")
    np.testing.assert_array_equal(found, jnp.abs(members[0] - truth))
    with pytest.raises(ValueError, match="at least two members; got 1"):
        kernel_crps(members, truth)
    for word in WORDS:
        with pytest.raises(ValueError, match="at least one member; got 0"):
            kernel_crps(members[:0], truth, estimator=word)


@pytest.mark.parametrize("count", [2, 3, 4, 9])
@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_those_of_the_double_sum_and_of_differences(form, count):
    with jax.enable_x64(True):
        members, truth = draw(count, dtype=np.float64)
        for word in WORDS:

            def score(members, truth, word=word):
                return kernel_crps(members, truth, estimator=word, form=form).mean()

            def naive(members, truth, word=word):
                return double_sum(members, truth, WEIGHT[word]).mean()

            found = jax.grad(score, argnums=(0, 1))(members, truth)
            expected = jax.grad(naive, argnums=(0, 1))(members, truth)
            for a, b in zip(found, expected, strict=True):
                np.testing.assert_allclose(a, b, atol=1e-13)
            moved = 1e-6 * np.eye(members.size).reshape(-1, *members.shape)
            up, down = (
                jax.vmap(lambda d: score(members + d, truth))(s * moved)
                for s in (1, -1)
            )
            slopes = ((up - down) / 2e-6).reshape(members.shape)
            np.testing.assert_allclose(found[0], slopes, atol=1e-8)


@pytest.mark.parametrize("form", FORMS)
def test_equal_members_are_not_told_apart(form):
    """As |0| has derivative 0 in the double sum, whatever the members' order."""
    members = jnp.array([1.0, 0.0, 1.0, 1.0, 2.0])
    truth = jnp.float32(0.4)
    for word in WORDS:
        found = jax.grad(
            lambda x, word=word: kernel_crps(x, truth, estimator=word, form=form)
        )(members)
        expected = jax.grad(lambda x, w=WEIGHT[word]: double_sum(x, truth, w))(members)
        np.testing.assert_allclose(found, expected, atol=1e-7)
        assert found[0] == found[2] == found[3]


@pytest.mark.parametrize("form", FORMS)
def test_two_equal_members_of_three_have_the_same_derivative(form):
    """The derivative of `jnp.abs` at 0 is 1, which would tell them apart."""

    def slopes(members, truth):
        score = functools.partial(kernel_crps, estimator="fair", form=form)
        return jax.grad(lambda x: score(x, jnp.float32(truth)))(jnp.array(members))

    # Each is 1 / 3 of its own error, less 1 / 6 of the distance to the third.
    np.testing.assert_allclose(slopes([1.0, 1.0, 2.0], 0.0), [0.5, 0.5, 0], atol=1e-6)
    # A member that is right has no derivative of its error, and two of its distances.
    np.testing.assert_allclose(slopes([0.0, 1.0, -1.0], 0.0), [0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(
        slopes([0.0, 2.0, 1.0], 0.0), [1 / 3, 0, 1 / 3], atol=1e-6
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count", [2, 3, 4, 12])
def test_the_order_of_members_does_not_matter(form, count):
    members, truth = draw(count)

    def score(members):
        return kernel_crps(members, truth, form=form).mean()

    order = jax.random.permutation(jax.random.key(0), count)
    value, slopes = jax.value_and_grad(score)(members)
    again, moved = jax.value_and_grad(score)(members[order])
    assert again == pytest.approx(float(value), rel=1e-6)
    np.testing.assert_allclose(moved, slopes[order], atol=1e-7)


def test_two_members_of_which_one_is_right():
    """The fair score then leaves the other free; the almost fair one does not."""
    members, truth = jnp.array([1.0, 3.0]), jnp.float32(1.0)
    for form in FORMS:
        for word, slope in (("fair", 0.0), ("almost_fair", 0.0125)):
            found = jax.grad(
                lambda x, w=word, f=form: kernel_crps(x, truth, estimator=w, form=f)
            )(members)
            assert found[1] == pytest.approx(slope, abs=1e-7)


@pytest.mark.parametrize("form", FORMS)
def test_members_of_low_precision_keep_their_spread(form):
    """Of the values that they have, the score is that of float64 to float32's 1e-6."""
    rng = np.random.default_rng(0)
    members = jnp.asarray(280 + 4 * rng.normal(size=(4, 512)), jnp.bfloat16)
    truth = jnp.asarray(281 + rng.normal(size=512), jnp.float32)
    exact = double_sum(
        *(np.asarray(x.astype(jnp.float32), np.float64) for x in (members, truth)),
        WEIGHT["almost_fair"],
    )
    found = kernel_crps(members, truth, form=form)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-5)
    # In bfloat16 itself the same sums are wrong by more than the score's spread term.
    naive = double_sum(members, truth.astype(jnp.bfloat16), WEIGHT["almost_fair"])
    assert np.abs(np.asarray(naive, np.float32) - exact).max() > 0.1
    slopes = jax.grad(lambda x: kernel_crps(x, truth, form=form).mean())(members)
    assert (
        slopes.dtype == jnp.bfloat16 and np.isfinite(slopes.astype(jnp.float32)).all()
    )


@pytest.mark.parametrize("form", FORMS)
def test_a_large_common_offset_costs_nothing(form):
    """Members 1e-3 apart around 1 and a truth at 3 x 10^4: the spread is theirs."""
    members = jnp.array([1.0, 1.001, 1.003], jnp.float32)
    slopes = jax.grad(lambda x: kernel_crps(x, jnp.float32(3e4), form=form))(members)
    kept = 1 - 0.05 / 3
    np.testing.assert_allclose(
        slopes, -1 / 3 + kept * np.array([2, 0, -2]) / 6, atol=1e-7
    )


def test_wrong_words_and_shapes_are_refused():
    members, truth = draw(3)
    with pytest.raises(ValueError, match=r"members must be \[member, ...\]"):
        kernel_crps(members, truth[:3])
    with pytest.raises(ValueError, match=r"\[...\]; got \(\) and \(\)"):
        kernel_crps(truth[0], truth[0])
    for own in ((members + 1j, truth), (members, truth + 1j)):
        with pytest.raises(TypeError, match="must be real; got complex64"):
            kernel_crps(*own)
    with pytest.raises(ValueError, match="form must be one of"):
        kernel_crps(members, truth, form="naive")
    with pytest.raises(ValueError, match="estimator must be one of"):
        NoiseCrps(2, estimator="unfair")
    with pytest.raises(ValueError, match="at least two members"):
        NoiseCrps(1)
    for wrong in (2.5, 2.0):
        with pytest.raises(ValueError, match=f"num_members .*number; got {wrong}"):
            NoiseCrps(wrong)
    assert NoiseCrps(np.int32(4)) == NoiseCrps(4)
    with pytest.raises(ValueError, match='axis must be None or "model"'):
        NoiseCrps(2, axis="data")
    with pytest.raises(ValueError, match="num_channels"):
        WhiteNoise(0)


# Training: a toy network on rows of three numbers.


class Toy(nnx.Module):
    """A hidden layer of noise and condition, place by place."""

    def __init__(self, rngs):
        self.hidden = nnx.Linear(3, 4, rngs=rngs)
        self.out = nnx.Linear(4, 1, rngs=rngs)

    def __call__(self, noise, condition):
        together = jnp.concatenate([noise, condition], axis=-1)
        return self.out(jnp.tanh(self.hidden(together)))


def toy_rows(count=16):
    rng = np.random.default_rng(0)
    condition = rng.normal(size=(count, 3, 1)).astype(np.float32)
    target = condition + 0.5 * rng.normal(size=(count, 3, 1)).astype(np.float32)
    return condition, target


LOSS = NoiseCrps(4, noise=WhiteNoise(2))


def trained_with(loss, mesh, num_networks=2, steps=3, rows=None):
    ensemble = Ensemble.init(Toy, num_members=num_networks, mesh=mesh)
    return fit(
        ensemble,
        toy_rows() if rows is None else rows,
        loss=loss,
        make_tx=optax.sgd,
        hyper=0.5,
        steps=steps,
        batch_size=8,
        mesh=mesh,
        progress=False,
    )


def weights(ensemble):
    return np.concatenate(
        [
            np.asarray(x).reshape(x.shape[0], -1)
            for x in jax.tree.leaves(ensemble.params)
        ],
        axis=1,
    )


@pytest.fixture(scope="module")
def on_one_device():
    """With SGD a wrong factor in the gradient shows."""
    return {
        count: weights(
            trained_with(dataclasses.replace(LOSS, num_members=count), mesh())[0]
        )
        for count in (2, 4, 8)
    }


def mesh(**sizes):
    count = int(np.prod(list(sizes.values()))) if sizes else 1
    return make_mesh(**{"member": 1, **sizes}, devices=jax.devices()[:count])


@pytest.mark.parametrize(
    "count, axis, sizes",
    [
        (2, None, dict(member=2, data=4)),
        (4, None, dict(member=1, data=8)),
        (4, "model", dict(member=2, data=1, model=4)),
        (8, "model", dict(member=1, data=1, model=8)),
        (2, "model", dict(member=2, data=2, model=2)),
    ],
)
def test_eight_devices_train_as_one(on_one_device, count, axis, sizes):
    """Members of the noise on one device or on eight, the same gradient."""
    loss = dataclasses.replace(LOSS, num_members=count, axis=axis)
    found = weights(trained_with(loss, mesh(**sizes))[0])
    np.testing.assert_allclose(found, on_one_device[count], atol=2e-6)


def test_a_pair_whose_other_side_does_not_move_has_half_the_gradient():
    """The trap that the test above would show: others' members without derivatives."""
    members, truth = draw(4)

    def detached(members):
        def own(i):
            others = jax.lax.stop_gradient(members).at[i].set(members[i])
            distance = jnp.sum(jnp.abs(members[i][None] - others), axis=0)
            return jnp.abs(members[i] - truth) / 4 - distance / (2 * 4 * 3)

        return sum(own(i) for i in range(4)).mean()

    def whole(members):
        return kernel_crps(members, truth, estimator="fair").mean()

    error = jax.grad(lambda x: jnp.abs(x - truth[None]).mean())(members)
    pair = jax.grad(whole)(members) - error
    found = jax.grad(detached)(members) - error
    np.testing.assert_allclose(detached(members), whole(members), rtol=1e-5)
    np.testing.assert_allclose(found, pair / 2, atol=1e-7)
    assert np.abs(pair).max() > 0.01


def test_stacked_networks_are_each_trained_alone():
    """Networks x members of the noise: the second of two is the one with its id."""
    both = weights(trained_with(LOSS, mesh())[0])
    alone = Ensemble.init(Toy, num_members=2, mesh=mesh()).select([1])
    alone, _ = fit(
        alone,
        toy_rows(),
        loss=LOSS,
        make_tx=optax.sgd,
        hyper=0.5,
        steps=3,
        batch_size=8,
        mesh=mesh(),
        progress=False,
    )
    np.testing.assert_allclose(weights(alone)[0], both[1], atol=1e-6)


def test_the_first_members_of_many_are_those_of_few():
    network = Toy(nnx.Rngs(0))
    condition, target = (jnp.asarray(x[0]) for x in toy_rows())
    key = jax.random.key(3)

    def of(model):
        for n in (2, 4):
            loss = dataclasses.replace(LOSS, num_members=n)
            yield loss.members(model, key, target.shape, condition)

    noise_of_two, noise_of_four = of(lambda noise, condition: noise)
    np.testing.assert_array_equal(noise_of_two, noise_of_four[:2])
    two, four = of(network)  # programs of two shapes, which may round otherwise
    np.testing.assert_allclose(two, four[:2], atol=1e-6)
    assert len(np.unique(np.asarray(four)[:, 0])) == 4
    values = kernel_crps(four, target)
    found = LOSS.of_one(network, key, target, condition)
    assert float(found) == pytest.approx(float(values.mean()), rel=1e-6)


def test_targets_that_are_missing_have_no_weight_and_no_gradient():
    network = Toy(nnx.Rngs(0))
    condition, target = (jnp.asarray(x[0]) for x in toy_rows())
    key = jax.random.key(3)
    missing = target.at[1].set(jnp.nan)

    def score(target, network=network):
        return LOSS.of_one(network, key, target, condition)

    members = LOSS.members(network, key, target.shape, condition)
    there = kernel_crps(members, target)[jnp.array([0, 2])]
    assert float(score(missing)) == pytest.approx(float(there.mean()), rel=1e-6)
    for given in (missing, jnp.full_like(target, jnp.nan)):
        slopes = nnx.grad(lambda network, y=given: score(y, network))(network)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(slopes))
    assert not any(np.any(x) for x in jax.tree.leaves(slopes))


def test_members_that_do_not_divide_over_devices_are_refused():
    loss = dataclasses.replace(LOSS, num_members=3, axis="model")
    with pytest.raises(ValueError, match="3 members do not divide over 2 devices"):
        trained_with(loss, mesh(model=2))


def test_spread_grows_from_a_network_whose_members_are_equal():
    """The last layer starts from zeros: the first members are equal bit for bit."""
    condition, target = toy_rows(64)

    def make_model(rngs):
        return ensjax.nn.ResidualGenerator(
            1,
            num_condition_channels=1,
            num_noise_channels=2,
            width=8,
            depth=1,
            kernel_size=(3,),
            rngs=rngs,
        )

    ensemble = Ensemble.init(make_model, num_members=1, mesh=mesh())

    def spread(ensemble):
        network = ensemble.graph.merge(
            jax.tree.map(lambda x: x[0], ensemble.state), train=False
        )
        of_case = jax.vmap(lambda key, y, x: LOSS.members(network, key, y.shape, x))
        keys = jax.random.split(jax.random.key(9), len(target))
        members = of_case(keys, jnp.asarray(target), jnp.asarray(condition))
        return float(members.std(axis=1, ddof=1).mean())

    assert spread(ensemble) == 0
    trained, log = fit(
        ensemble,
        (condition, target),
        loss=LOSS,
        make_tx=optax.adam,
        hyper=1e-2,
        steps=150,
        batch_size=32,
        mesh=mesh(),
        progress=False,
    )
    assert 0.2 < spread(trained) < 0.7  # the noise of the targets is 0.5
    # Without spread no better than 0.5 sqrt(2 / pi) = 0.4; at best 0.5 / sqrt(pi).
    assert 0.27 < np.asarray(log.metrics["loss"])[-40:].mean() < 0.32
