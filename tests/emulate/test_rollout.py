"""Rollouts of any length, and products of checkpoints, pairs and starts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ensjax import make_mesh, reduce, verification
from ensjax.emulate.lorenz96 import Lorenz96
from ensjax.emulate.perturb import BredVectors, NoPerturbation, Start
from ensjax.emulate.product import (
    MemberForecast,
    MemberId,
    fold_product,
    fold_program,
    identity_key,
    product_ids,
    run_product,
    states_by_lead,
)
from ensjax.emulate.product_job import ProductJob
from ensjax.emulate.rollout import Rollout, SystemStep, checked_leads
from ensjax.mapping import mesh_program
from ensjax.reduce.sorted_runs import sketch_size
from ensjax.verification.member_state import init_not_finite

SITES, CHECKPOINTS = 8, 3
SLOW = pytest.mark.slow
SYSTEM = Lorenz96(num_sites=SITES)


def noisy_step(model, key, state):
    """Lorenz-96 with a forcing of the checkpoint's, and noise."""
    x = state[:, 0]
    x = SYSTEM.step(x) + 0.05 * (model["forcing"] - 8.0)
    return (x + model["noise"] * jax.random.normal(key, x.shape))[:, None]


def see(state):
    return {"x": state[:, 0], "energy": jnp.mean(state**2)}


ROLLOUT = Rollout(noisy_step, see)
MODELS = {
    "forcing": jnp.array([7.5, 8.0, 9.0]),
    "noise": jnp.array([0.0, 0.1, 0.2]),
}


@functools.cache
def starts():
    rng = np.random.default_rng(0)
    history = 2 + 3 * rng.normal(size=(2, 3, SITES, 1)).astype(np.float32)
    return Start(jnp.asarray(history[:, -1]), jnp.asarray(history))


def forecast():
    bred = BredVectors(jnp.array([0.3]), noisy_step, num_cycles=2)
    return MemberForecast(ROLLOUT, bred)


def run(members, leads=(1, 4), **options):
    options = dict(block=4, mesh=make_mesh(member=1)) | options
    return run_product(
        forecast(), members, models=MODELS, starts=starts(), lead_steps=leads, **options
    )


def empty(observed, num_leads=2):
    def make(lead):
        return {
            "x": verification.member_states(
                METRICS, observed[lead], max_members=100, rank_error=0
            ),
            "energy": {"moments": reduce.init_moments(jnp.zeros(()))},
        }

    return states_by_lead(make, num_leads)


METRICS = (verification.spread_skill(), verification.bracketed())


def fold(members, states, **options):
    options = dict(block=4, mesh=make_mesh(member=1), lead_steps=(1, 4)) | options
    return fold_product(
        forecast(), members, states, models=MODELS, starts=starts(), **options
    )


def test_a_rollout_is_its_steps_one_after_the_other():
    model = {"forcing": 8.5, "noise": 0.3}
    key, state = jax.random.key(3), starts().state[0]
    seen = ROLLOUT(model, key, state, jnp.array([0, 2, 5]))
    expected = [np.asarray(state[:, 0])]
    for number in range(5):
        state = noisy_step(model, jax.random.fold_in(key, number), state)
        expected.append(np.asarray(state[:, 0]))
    expected = np.stack(expected)[[0, 2, 5]]
    np.testing.assert_allclose(seen["x"], expected, rtol=2e-5)
    np.testing.assert_allclose(seen["energy"], np.mean(expected**2, 1), rtol=2e-5)


def test_a_simulator_is_a_step_too():
    x = starts().state[0, :, 0]
    found = Rollout(SystemStep(SYSTEM, 2))(None, jax.random.key(0), x, jnp.array([3]))
    for _ in range(6):
        x = SYSTEM.step(x)
    np.testing.assert_allclose(found[0], x, rtol=2e-5)


def lowered(members, leads, states, **options):
    program, arguments = fold_program(
        forecast(),
        members,
        states,
        models=MODELS,
        starts=starts(),
        lead_steps=leads,
        mesh=make_mesh(member=1),
        **options,
    )
    return program.lower(*arguments)


def test_60_and_600_steps_are_as_many_instructions():
    """And no more leads make no more of them."""
    members = product_ids(CHECKPOINTS, 2, 1)
    counts = []
    for leads in ((20, 40, 60), (200, 400, 600), range(60, 601, 60)):
        states = empty(jnp.zeros((len(leads), SITES)), len(leads))
        text = lowered(members, leads, states, block=4).compile().as_text()
        counts.append(sum(" = " in line for line in text.splitlines()))
    assert counts[0] == counts[1], counts
    assert abs(counts[2] - counts[0]) < 0.02 * counts[0], counts


def test_other_lengths_compile_nothing_new():
    job = ProductJob(None, 4, "block", False)
    program = mesh_program(job, make_mesh(member=1))
    members = MemberId(0, 0, 1, 0)
    run(members, (1, 4))
    before = program.cache_size()
    run(members, (6, 60))
    assert program.cache_size() == before


def bytes_of(num_members, metrics, share="block"):
    """Temporary ones, those of arguments but for ids of members, and of results.

    The states are made for this number of members.
    """

    def make(lead):
        return {
            "x": verification.member_states(
                metrics, jnp.zeros(SITES), max_members=num_members
            ),
            "energy": {"moments": reduce.init_moments(jnp.zeros(()))},
        }

    members = product_ids(2, num_members // 4, 1)  # two checkpoints, two signs
    states = states_by_lead(make, 2)
    program = lowered(members, (1, 4), states, block=64, share=share)
    quick = {"xla_backend_optimization_level": 0}
    known = program.compile(quick).memory_analysis()
    # Whether it counts and six integers; its number is for states that tell members.
    ids = (6 * 4 + 1) * num_members
    return np.array(
        [
            known.temp_size_in_bytes,
            known.argument_size_in_bytes - ids,
            known.output_size_in_bytes,
        ]
    )


@pytest.mark.parametrize("share", ["block", pytest.param("member", marks=SLOW)])
def test_memory_is_that_of_a_block_for_512_and_7424_members(share):
    """Each with states for its own number, where nothing needs the members' order."""
    few, all_ = (bytes_of(count, METRICS, share) for count in (512, 7_424))
    # Copies of ids in blocks are all of the temporary ones that may grow.
    np.testing.assert_allclose(all_[0], few[0], rtol=0.01)
    np.testing.assert_array_equal(all_[1:], few[1:])
    assert all_[0] < 7_424 * 2 * SITES * 4, "all values would be there"


def test_memory_of_the_crps_grows_as_its_summary():
    """From all of 512 members to what 0.5 % of rank asks for of 7,424."""
    few, all_ = (bytes_of(n, (verification.crps(),)) for n in (512, 7_424))
    numbers = [(levels + 1) * width for levels, width in map(sketch_size, (512, 7_424))]
    assert numbers[1] < 5 * numbers[0]
    grown = (numbers[1] - numbers[0]) * 2 * SITES * 4  # of two leads, in float32
    np.testing.assert_allclose(all_[1:] - few[1:], grown, atol=64)
    assert np.all(all_ / few < numbers[1] / numbers[0])


def test_what_is_folded_is_what_is_kept():
    members = product_ids(CHECKPOINTS, 3, [1])
    observed = jnp.asarray(
        np.random.default_rng(1).normal(size=(2, SITES)), jnp.float32
    )
    kept = run(members)
    for share in ("block", "member"):
        states = fold(members, empty(observed), share=share)
        for lead in range(2):
            at = jax.tree.map(lambda x: x[lead], states)  # noqa: B023
            for metric in METRICS:
                sums = metric.sums_of_reduced(at["x"], observed[lead])
                expected = metric(kept["x"][:, lead], observed[lead])
                for a, b in zip(*map(jax.tree.leaves, (metric.finish(sums), expected))):
                    np.testing.assert_allclose(a, b, rtol=3e-5)
            mean, variance = reduce.finish_moments(at["energy"]["moments"])
            energy = np.asarray(kept["energy"][:, lead])
            np.testing.assert_allclose(mean, energy.mean(), rtol=1e-5)
            np.testing.assert_allclose(variance, energy.var(), rtol=1e-4)


def test_folding_goes_on_from_what_was_folded():
    members = product_ids(CHECKPOINTS, 2, [0])
    observed = jnp.zeros((2, SITES))
    first = MemberId(*(x[:5] for x in members))
    second = MemberId(*(x[5:] for x in members))
    parts = fold(second, fold(first, empty(observed)))
    whole = fold(members, empty(observed))
    for a, b in zip(jax.tree.leaves(parts), jax.tree.leaves(whole)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def until_it_breaks(rate, key, state):
    del key
    return jnp.where(state > 4, jnp.nan, rate * state)


@pytest.mark.parametrize("devices", [1, 2])
def test_members_that_are_lost_under_way_are_counted(devices):
    """Scores leave them out; blocks that are filled with copies count nobody twice."""
    rates, state = jnp.array([1.0, 2.0, 3.0, jnp.inf, jnp.nan]), jnp.ones((1, SITES, 1))
    options = dict(
        models=rates,
        starts=Start(state.at[0, 0].set(0.1)),
        lead_steps=(1, 2, 3, 4),
        block=2,
        mesh=make_mesh(member=devices),
    )
    own = MemberForecast(Rollout(until_it_breaks, lambda x: x[:, 0]))
    truth = jnp.zeros(SITES)
    metrics = (verification.crps(),)

    def make(lead):
        del lead
        scored = verification.member_states(metrics, truth, max_members=5)
        return scored | {"lost": init_not_finite(truth)}

    def folded(members, states):
        return fold_product(own, members, states, **options)

    members = product_ids(5, 0, 1)
    states = folded(members, states_by_lead(make, 4))
    kept = np.asarray(run_product(own, members, **options))
    lost = states["lost"]
    np.testing.assert_array_equal(lost.count, np.sum(~np.isfinite(kept), axis=0))
    np.testing.assert_array_equal(lost.count[:, 1], [2, 2, 3, 4])
    np.testing.assert_array_equal(lost.number, 5)
    scored = states["crps"].moments[" error"].count
    np.testing.assert_array_equal(5 - scored, np.isnan(kept).sum(axis=0))
    assert np.all(5 - scored <= lost.count)
    # In two calls, and as the sum of two.
    first, second = (
        MemberId(*(x[part] for x in members)) for part in np.split(np.arange(5), [2])
    )
    empty = states_by_lead(make, 4)
    begun, other = folded(first, empty), folded(second, empty)
    for both in (folded(second, begun), jax.tree.map(jnp.add, begun, other)):
        jax.tree.map(np.testing.assert_array_equal, both["lost"], lost)


@pytest.mark.parametrize("devices, split", [(2, False), (4, True)])
def test_devices_change_nothing(devices, split):
    """Also where each holds its part of three checkpoints, one of them none."""
    members = product_ids(CHECKPOINTS, 3, 2)
    expected = run(members, (2,))
    mesh = make_mesh(member=devices)
    found = run(members, (2,), mesh=mesh, split_models=split)
    np.testing.assert_allclose(found["x"], expected["x"], rtol=1e-4, atol=1e-5)
    states = fold(
        MemberId(*(x[members.start == 0] for x in members)),
        empty(jnp.zeros((1, SITES)), 1),
        lead_steps=(2,),
        mesh=mesh,
        split_models=split,
    )
    assert states["energy"]["moments"].count[0] == (members.start == 0).sum()


def test_a_member_is_made_again_alone_bit_for_bit():
    """The highest of all at a site after 60 steps, streamed; it is chaotic by then."""
    members, leads = product_ids(CHECKPOINTS, 20, [1]), (3, 60)
    kept = run(members, leads)
    folded = fold(
        members,
        states_by_lead(
            lambda lead: {"x": {"who": reduce.init_extreme_members(jnp.zeros(SITES))}},
            2,
        ),
        lead_steps=leads,
    )
    highest = jax.tree.map(lambda x: x[1], folded["x"]["who"]).highest
    np.testing.assert_array_equal(
        highest.member, np.argmax(np.asarray(kept["x"][:, 1]), axis=0)
    )
    for site in (0, 5):
        place = int(highest.member[site])
        alone = run(MemberId(*(x[place] for x in members)), leads)
        np.testing.assert_array_equal(alone["x"][0], kept["x"][place])
        assert alone["x"][0, 1, site] == highest.value[site]


def test_a_member_does_not_depend_on_those_beside_it():
    members = product_ids(CHECKPOINTS, 3, 2)
    order = np.random.default_rng(0).permutation(members.start.size)[:13]
    some = MemberId(*(x[order] for x in members))
    found, expected = run(some), run(members)
    np.testing.assert_array_equal(found["x"], expected["x"][order])
    gathered = run(members, share="member")
    np.testing.assert_allclose(gathered["x"], expected["x"], rtol=1e-4, atol=1e-5)


def test_ids_of_rows_can_be_any():
    members = product_ids([70, 12, 31], 2, [5, 900])
    found = run(members, checkpoint_ids=[70, 12, 31], start_ids=[5, 900])
    who = MemberId(31, 1, -1, 900)
    place = [tuple(row) for row in zip(*members)].index((31, 1, -1, 900))
    others = Start(*(x[1:] for x in starts()))
    alone = run_product(
        forecast(),
        who,
        models=jax.tree.map(lambda x: x[2:], MODELS),
        starts=others,
        lead_steps=(1, 4),
        block=4,
        checkpoint_ids=[31],
        start_ids=[900],
        mesh=make_mesh(member=1),
    )
    np.testing.assert_array_equal(alone["x"][0], found["x"][place])


def test_signs_share_their_pair_and_keys_differ():
    keys = [
        jax.random.key_data(identity_key(0, MemberId(*who)))
        for who in [
            (0, 0, 1, 0),
            (0, 0, -1, 0),
            (1, 0, 1, 0),
            (0, 1, 1, 0),
            (0, 0, 1, 1),
        ]
    ]
    np.testing.assert_array_equal(keys[0], keys[1])
    assert len({tuple(np.asarray(key).tolist()) for key in keys}) == 4
    plain = MemberForecast(Rollout(noisy_step))
    pair = MemberId(1, [0, 0], [1, -1], 0)
    options = dict(models=MODELS, starts=starts(), lead_steps=(1,), block=2)
    noise = run_product(plain, pair, mesh=make_mesh(member=1), **options)
    assert np.all(noise[0] != noise[1]), "noise inside the step is each member's own"


def test_product_ids_are_all_and_the_control_is_unperturbed():
    members = product_ids(2, 3, [4, 9], with_control=True)
    assert members.start.size == 24
    assert len({tuple(row) for row in zip(*members)}) == 24
    unperturbed = np.flatnonzero(members.sign == 0)
    assert [tuple(int(x[i]) for x in members) for i in unperturbed] == [
        (0, 0, 0, 4),
        (0, 0, 0, 9),
    ]
    assert product_ids(5, 0, 1).sign.tolist() == [0] * 5
    still = MemberForecast(Rollout(noisy_step), NoPerturbation())
    found = run_product(
        still,
        MemberId(0, 0, 0, 0),
        models=MODELS,
        starts=starts(),
        lead_steps=(0,),
        block=1,
    )
    np.testing.assert_array_equal(found[0, 0], starts().state[0])


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: run(MemberId(3, 0, 1, 0)), "checkpoint .3., of which there is none"),
        (lambda: run(MemberId(0, 0, 1, 7)), "start .7."),
        (lambda: run(MemberId(0, 0, 2, 0)), "signs are -1, 0 or 1"),
        (lambda: run(MemberId(0, 0, 1, 0), (4, 2)), "must rise"),
        (lambda: run(MemberId(0, 0, 1, 0), ()), "one or more"),
        (lambda: run(MemberId(0, 0, 1, 0), block=0), "block must be"),
        (lambda: run(MemberId(0, 0, 1, 0), share="all"), "share must be one of"),
        (
            lambda: run(MemberId(0, 0, 1, 0), share="member", split_models=True),
            "split_models needs",
        ),
        (lambda: product_ids(0, 1, 1), "needs a checkpoint"),
        (lambda: fold(MemberId(0, 0, 1, 0), {}), "states are empty"),
        (
            lambda: fold(MemberId(0, 0, 1, 0), empty(jnp.zeros((3, SITES)), 3)),
            "are of 3 leads",
        ),
    ],
)
def test_what_does_not_fit_is_said_before_anything_runs(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_leads_are_integers():
    with pytest.raises(TypeError, match="integers"):
        checked_leads([0.5])


def test_ids_that_are_no_integers_of_32_bits_are_refused():
    """Two starts would become one."""
    with pytest.raises(ValueError, match="start ids must lie from .* 5 to 4294967301"):
        product_ids(1, 1, [2**32 + 5, 5])
    with pytest.raises(TypeError, match="checkpoint ids must be integers"):
        product_ids([1.7, 2.2], 1, 1)
    for number in ((1.5, 1, 1), (1, 1, 2.0)):
        with pytest.raises(TypeError, match="ids must be integers"):
            product_ids(*number)
    for pairs in (1.5, 2.0, True, "2"):
        with pytest.raises(TypeError, match=f"whole number; got {pairs!r}"):
            product_ids(2, pairs, 1)
    one, two = product_ids(2, 3, 1), product_ids(*map(np.int64, (2, 3, 1)))
    jax.tree.map(np.testing.assert_array_equal, one, two)
    members = MemberId(0, 0, 1, np.array([2**40]))
    options = dict(models=MODELS, starts=starts(), lead_steps=(1,), block=1)
    with pytest.raises(ValueError, match="start ids must lie"):
        run_product(forecast(), members, **options)


def test_leads_of_one_member_are_checked():
    model = jax.tree.map(lambda x: x[0], MODELS)
    with pytest.raises(ValueError, match="must rise"):
        ROLLOUT(model, jax.random.key(0), starts().state[0], [5, 3])
