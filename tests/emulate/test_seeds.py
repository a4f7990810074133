"""SEEDS: what is drawn and told of the seeds, training as a stack, distillation."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ensjax
from ensjax.emulate import diffusion, seeds
from ensjax.emulate.diffusion import rho_levels

SITES, MEMBERS = 4, 5


def numbered_case():
    """Member m of a case holds m everywhere; others hold 100, 101, ..."""
    values = jnp.arange(MEMBERS, dtype=jnp.float32)[:, None, None]
    others = 100 + jnp.arange(3, dtype=jnp.float32)[:, None, None]
    return {
        "members": jnp.broadcast_to(values, (MEMBERS, SITES, 1)),
        "others": jnp.broadcast_to(others, (3, SITES, 1)),
    }


def test_seeds_and_target_are_different_members_each_as_often():
    members = jnp.arange(MEMBERS)
    keys = jax.random.split(jax.random.key(0), 6_000)
    draw = functools.partial(seeds.draw_seeds, num_seeds=2)
    drawn, targets = jax.vmap(lambda key: draw(key, members))(keys)
    all_three = np.concatenate([drawn, targets[:, None]], axis=1)
    assert all(len(set(row)) == 3 for row in all_three.tolist())
    for column in all_three.T:
        counts = np.bincount(column, minlength=MEMBERS)
        assert abs(counts - 1_200).max() < 4.5 * np.sqrt(6_000 * 0.16)
    pairs = np.bincount(drawn[:, 0] * MEMBERS + targets, minlength=MEMBERS**2)
    pairs = pairs.reshape(MEMBERS, MEMBERS)
    assert (np.diag(pairs) == 0).all() and pairs[~np.eye(MEMBERS, dtype=bool)].min() > 0


def test_members_that_are_not_there_are_never_drawn():
    is_there = jnp.array([True, False, True, True, False])
    keys = jax.random.split(jax.random.key(1), 500)
    members = jnp.array([0.0, np.nan, 2.0, 3.0, np.nan])
    draw = functools.partial(seeds.draw_seeds, num_seeds=2, is_there=is_there)
    drawn, targets = jax.vmap(lambda key: draw(key, members))(keys)
    assert np.isfinite(drawn).all() and set(np.asarray(targets)) == {0.0, 2.0, 3.0}


def test_nothing_of_the_target_is_in_the_condition():
    """Its derivative is 0, whichever member is drawn as the target."""
    draw = seeds.DrawSeeds(num_seeds=2)

    def condition_of(members, key):
        return draw(key, {"members": members})

    members = jax.random.normal(jax.random.key(0), (MEMBERS, SITES, 1))
    for number in range(6):
        key = jax.random.key(number)
        target, condition = condition_of(members, key)
        place = int(np.argmax((members == target[None]).all(axis=(1, 2))))
        slopes = jax.jacrev(lambda m: condition_of(m, key)[1])(members)  # noqa: B023
        touched = np.asarray(jnp.abs(slopes).sum(axis=(0, 1, 3, 4)) > 0)
        assert not touched[place] and touched.sum() == 2


def test_mixture_targets_have_the_share_that_is_asked_for():
    case = numbered_case()
    keys = jax.random.split(jax.random.key(3), 4_000)
    draw = seeds.DrawSeeds(num_seeds=2, member_share=0.3)
    targets, conditions = jax.vmap(lambda key: draw(key, case))(keys)
    found = np.asarray(targets)[:, 0, 0]
    assert (found < 100).mean() == pytest.approx(0.3, abs=4.5 * np.sqrt(0.21 / 4_000))
    counts = np.bincount(found[found >= 100].astype(int) - 100)
    assert len(counts) == 3 and counts.min() > 0.29 * counts.sum()
    assert np.asarray(conditions)[..., 0].max() < 100  # seeds are of the ensemble


@pytest.mark.parametrize("count", [2, 5])
def test_the_order_of_seeds_leaves_no_trace_bit_for_bit(count):
    x = jax.random.normal(jax.random.key(0), (count, SITES, 2))
    order = jax.random.permutation(jax.random.key(1), count)
    np.testing.assert_array_equal(seeds.encode_seeds(x), seeds.encode_seeds(x[order]))


def test_the_moments_of_seeds_are_those_by_hand():
    a, b = jnp.array([[1.0], [4.0]]), jnp.array([[3.0], [-2.0]])
    found = seeds.encode_seeds(jnp.stack([a, b]))
    by_hand = [[2.0, 2.0, 2.0], [1.0, 6.0, 18.0]]  # mean, |a - b|, (a - b)^2 / 2
    np.testing.assert_allclose(found, by_hand, rtol=1e-6)
    x = np.random.default_rng(0).normal(size=(4, 3, 1)).astype(np.float32)
    pairs = [abs(x[i] - x[j]) for i in range(4) for j in range(i)]
    by_hand = [x.mean(0), np.mean(pairs, axis=0), x.var(0, ddof=1)]
    np.testing.assert_allclose(
        seeds.encode_seeds(jnp.asarray(x)), np.concatenate(by_hand, -1), rtol=1e-5
    )
    assert seeds.encode_seeds(x[:1], base=x[1]).shape == (3, 2)


def make_model(rngs):
    return ensjax.nn.ResidualDenoiser(
        1, num_condition_channels=3, width=8, depth=1, kernel_size=(3,), rngs=rngs
    )


def gaussian_cases(num_cases, tasks=(0.3, 0.6)):
    """Members of a case are its mean plus noise, whose size is that of the task."""
    means, noise = np.random.default_rng(0), np.random.default_rng(1)
    middle = means.normal(size=(num_cases, 1, 1, SITES, 1))
    noise = noise.normal(size=(num_cases, len(tasks), MEMBERS, SITES, 1))
    sizes = np.array(tasks)[:, None, None, None]
    return (0.8 * middle + sizes * noise).astype(np.float32)


def least_loss(sizes):
    """What no denoiser is better than: that of the posterior, which is Gaussian.

    The two seeds have a mean of variance v / 2 about 0.8 of a standard normal, v being
    that of the noise; the target then has variance p, and the loss of the best denoiser
    is p (1 + sigma^2) / (p + sigma^2).
    """
    keys = jax.random.split(jax.random.key(0), 4_000)
    square = np.square(jax.vmap(diffusion.LogNormalNoise())(keys))
    noise = np.square(sizes)[:, None]
    posterior = noise + 0.64 * noise / 2 / (0.64 + noise / 2)
    return (posterior * (1 + square) / (posterior + square)).mean(axis=1)


@pytest.fixture(scope="module")
def trained():
    cases = {"members": gaussian_cases(512)}
    options = dict(fit_options=dict(progress=False), ema_decay=0.9)
    emulators, log = seeds.train_seeds(
        make_model, cases, steps=250, learning_rate=5e-3, **options
    )
    return cases, emulators, log


@pytest.mark.slow
def test_a_stack_of_tasks_learns_the_spread_of_each(trained):
    cases, emulators, log = trained
    loss = np.asarray(log.metrics["loss"])
    least, reached = least_loss((0.3, 0.6)), loss[-40:].mean(axis=0)
    # At first it is 1; most of what can be learned is, and no more than that.
    assert (reached < (1 + least) / 2).all() and (reached > 0.95 * least).all()
    given = cases["members"][:16].swapaxes(0, 1)[:, :, :2]
    sampler = diffusion.Heun(rho_levels(8, low=0.02, high=20.0))
    drawn = emulators.sample(given, np.arange(24), sampler=sampler)
    assert drawn.shape == (2, 24, 16, SITES, 1)
    spread = np.asarray(drawn).std(axis=1).mean(axis=(1, 2, 3))
    # Given two seeds the mean is known to sd / sqrt(2): spread sd sqrt(3 / 2) at most.
    assert 0.2 < spread[0] < 0.55 and 0.5 < spread[1] < 0.9
    again = seeds.SeedsEmulators(
        emulators.ensemble, emulators.tasks, emulators.draw, emulators.parametrisation
    ).sample(given[:, :, ::-1], np.arange(3), sampler=sampler)
    np.testing.assert_allclose(again, drawn[:, :3], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_distillation_keeps_the_teacher_and_follows_its_sampler(trained):
    cases, emulators, _ = trained
    levels = rho_levels(3, low=0.3, high=20.0)
    students, log = seeds.distil_seeds(
        emulators,
        cases,
        levels=levels,
        low=0.02,
        steps=150,
        learning_rate=3e-3,
        ema_decay=0.9,
        fit_options=dict(progress=False),
    )
    loss = np.asarray(log.metrics["loss"])
    assert np.isfinite(loss).all()
    given = cases["members"][:8].swapaxes(0, 1)[:, :, :2]
    ids = np.arange(16)
    fine = diffusion.Heun(rho_levels(12, low=0.02, high=20.0))
    teacher = np.asarray(emulators.sample(given, ids, sampler=fine))
    few = diffusion.Euler(levels)
    before = np.asarray(emulators.sample(given, ids, sampler=few)) - teacher
    after = np.asarray(students.sample(given, ids, sampler=few)) - teacher
    assert np.square(after).mean() < 0.6 * np.square(before).mean()
    with pytest.raises(TypeError, match="no pairs"):
        diffusion.finish_distillation(emulators.ensemble)


def test_post_processing_needs_no_member_beside_the_seeds():
    draw = seeds.DrawSeeds(num_seeds=2, member_share=0.0)
    members, others = np.zeros((2, 4, 1), np.float32), np.ones((1, 4, 1), np.float32)
    target, _ = draw(jax.random.key(0), {"members": members, "others": others})
    np.testing.assert_array_equal(target, others[0])
    cases = {"members": members[None, None], "others": others[None, None]}
    assert seeds.drawing.check_cases(cases, draw) == 1
    with pytest.raises(ValueError, match="at least 2 members"):
        seeds.drawing.check_cases(cases | {"members": members[None, None, :1]}, draw)


def test_places_of_weight_0_do_not_count_in_a_distillation():
    class Scaled:  # a student that is wrong at the last place only, and its teacher
        def __init__(self, factor):
            self.factor = factor

        def __call__(self, x, noise, condition):
            return x * jnp.array([0.5, 0.5, self.factor])[:, None]

    model = types.SimpleNamespace(student=Scaled(3.0), teacher=Scaled(0.5))
    weights = (1.0, 1.0, 0.0)
    losses = []
    for student in (3.0, -1.0):
        model.student = Scaled(student)
        loss = diffusion.DistillationLoss(diffusion.EDM(), (2.0,), 2, 0.1, weights)
        args = (model, jax.random.key(1), jnp.ones((3, 1)), None)
        losses.append(float(loss.of_one(*args)))
        assert float(dataclasses.replace(loss, place_weights=None).of_one(*args)) > 0
    assert losses[0] == losses[1]
    with pytest.raises(TypeError, match="place_weights"):
        diffusion.DistillationLoss(diffusion.EDM(), (2.0,), place_weights=[1.0])


def test_wrong_cases_are_refused_before_any_work():
    good = gaussian_cases(8)
    train = functools.partial(seeds.train_seeds, make_model, steps=1)
    with pytest.raises(ValueError, match="at least 3 members"):
        train({"members": good[:, :, :2]})
    with pytest.raises(ValueError, match="'others'"):
        train({"members": good}, draw=seeds.DrawSeeds(member_share=0.5))
    with pytest.raises(ValueError, match="not finite"):
        train({"members": np.where(good > 1, np.nan, good)})
    with pytest.raises(ValueError, match="tasks are integers"):
        train({"members": good}, tasks=(2,))
    with pytest.raises(ValueError, match="cases hold 'members'"):
        train({"member": good})
    with pytest.raises(ValueError, match="encoder must be one of"):
        seeds.DrawSeeds(encoder="mean")
    with pytest.raises(ValueError, match="different members"):
        seeds.draw_seeds(jax.random.key(0), jnp.zeros(2), num_seeds=2)
