"""Members of an emulator in blocks: their bits, and the programs they take."""

import dataclasses

import jax
import numpy as np
import pytest

from ensjax import Ensemble, make_mesh
from ensjax.emulate import SampleJob, SamplerSettings, sample_blocks
from ensjax.emulate.diffusion import EDM, Heun, NetworkDenoiser, rho_levels, sample_each
from ensjax.emulate.sample_job import _SampleLeads, block_size, members_at_once
from ensjax.mapping import map_members
from ensjax.nn import ResidualDenoiser

SITES, CASES = 8, 3
SAMPLER = SamplerSettings("heun", 4, high=20.0)
ONE = make_mesh(member=1, devices=jax.devices()[:1])


def make_model(rngs):
    return ResidualDenoiser(1, num_condition_channels=2, width=8, depth=1, rngs=rngs)


def make_job(num_leads=1, **others):
    """Random networks, of each lead; also their last layers, which start as zeros."""
    ensemble = Ensemble.init(make_model, num_members=num_leads, mesh=ONE)
    rng = np.random.default_rng(0)
    state = jax.tree.map(
        lambda x: np.asarray(x) + 0.3 * rng.standard_normal(x.shape, np.float32),
        ensemble.state,
    )
    conditions = rng.standard_normal((num_leads, CASES, SITES, 2), np.float32)
    return SampleJob(
        denoisers=NetworkDenoiser(state, ensemble.graph, EDM()),
        condition=lambda row: conditions[:, row],
        shape=(SITES, 1),
        restore=lambda samples, row: np.moveaxis(samples, -1, 2),
        case=np.arange(10, 10 + CASES),
        lead=np.arange(1.0, 1 + num_leads),
        variable=["x"],
        space={"site": np.arange(SITES)},
        seed=5,
        sampler=SAMPLER,
        **{"members_at_once": 4} | others,
    ), conditions


def drawn(job, rows, ids, **options):
    """All of them, `[case, member, lead, variable, site]`."""
    shape = (len(rows), len(ids), *job.fields_shape)
    found = np.full(shape, np.nan, np.float32)
    for place, members, values in sample_blocks(job, rows, ids, **options):
        found[place, members] = values
    return found


@pytest.fixture(scope="module")
def job():
    return make_job()


def test_members_are_those_of_the_sampler_of_experiments(job):
    job, conditions = job
    wanted = sample_each(
        job.denoisers,
        np.arange(3),
        conditions,
        shape=job.shape,
        sampler=Heun(rho_levels(4, high=20.0)),
        seed=5,
        mesh=ONE,
    )
    found = drawn(job, range(CASES), np.arange(3), mesh=ONE)
    wanted = np.asarray(wanted)[0].swapaxes(0, 1)[:, :, None, None, :, 0]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mesh", [ONE, make_mesh(member=-1)], ids=["1", "8"])
def test_bits_do_not_depend_on_other_members_starts_or_blocks(job, mesh):
    """Bit for bit, where devices are the same."""
    job, _ = job
    many = drawn(job, [2, 0], np.arange(67), block=40, mesh=mesh)
    ids = np.array([66, 1, 12])
    for block in (1, 64, None):
        few = drawn(job, [0], ids, block=block, mesh=mesh)
        np.testing.assert_array_equal(few[0], many[1][ids])
    assert len(np.unique(many[:, :, 0, 0, 0])) == 2 * 67


def test_devices_change_members_by_rounding_alone(job):
    """JAX_NOTES: a CPU device has its share of threads, so rounding may differ."""
    job, _ = job
    one = drawn(job, [1], np.arange(9), mesh=ONE)
    several = drawn(job, [1], np.arange(9), mesh=make_mesh(member=-1))
    np.testing.assert_allclose(one, several, rtol=1e-5, atol=1e-5)


def test_any_number_of_members_takes_one_program_of_one_size(job):
    job, _ = job
    job = dataclasses.replace(job, members_at_once=2, seed=6)
    for count in (16, 17, 40):
        drawn(job, range(CASES), np.arange(count), block=16, mesh=ONE)
    program = map_members(
        _SampleLeads(SAMPLER.make(), job.shape),
        kinds=("member", *("shared",) * 4),
        mesh=ONE,
        block=2,
    )
    assert program.cache_size() == 1
    assert block_size(job, 16_384, 16, ONE) == block_size(job, 17, 16, ONE) == 16


def test_leads_have_their_own_networks_and_the_same_noise():
    both, _ = make_job(num_leads=2)
    found = drawn(both, [0, 1], np.arange(3), mesh=ONE)
    for lead in range(2):
        state = jax.tree.map(lambda x: x[lead : lead + 1], both.denoisers.state)  # noqa: B023
        alone = dataclasses.replace(
            both,
            denoisers=dataclasses.replace(both.denoisers, state=state),
            condition=lambda row: both.condition(row)[lead : lead + 1],  # noqa: B023
            lead=both.lead[:1],
        )
        wanted = drawn(alone, [0, 1], np.arange(3), mesh=ONE)
        np.testing.assert_allclose(
            found[:, :, lead : lead + 1], wanted, rtol=1e-4, atol=1e-4
        )


def test_starts_are_found_by_number_range_and_date(job):
    job, _ = job
    assert job.rows_of(["12", "10"]).tolist() == [2, 0]
    assert job.rows_of(["11:20"]).tolist() == [1, 2]
    assert job.rows_of(["all"]).tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="no start '9'; there are 10, 11, 12"):
        job.rows_of(["9"])
    days = np.datetime64("2020-01-01T00", "h") + 24 * np.arange(30)
    dated = dataclasses.replace(job, case=days)
    assert dated.rows_of(["2020-01-30"]).tolist() == [29]
    assert dated.rows_of(["2020-01-30T00"]).tolist() == [29]
    for text in ("2020", "2020-01"):  # NumPy takes their first day
        with pytest.raises(ValueError, match=f"such as 2020-01-01, .* got '{text}'"):
            dated.rows_of([text])
    with pytest.raises(ValueError, match=r"there are 30: 2020-01-01T00, .* 2020-01-30"):
        dated.rows_of(["2020-01-01T06"])


def test_what_cannot_work_is_refused(job):
    job, _ = job
    for ids, words in (
        ([], "at least one"),
        ([0.5], "integers"),
        ([-1], "from 0"),
        ([2, 2], "must differ"),
    ):
        with pytest.raises(ValueError, match=words):
            next(sample_blocks(job, [0], np.asarray(ids), mesh=ONE))
    wrong = dataclasses.replace(job, restore=lambda samples, row: samples)
    with pytest.raises(ValueError, match="restore must give"):
        next(sample_blocks(wrong, [0], np.arange(2), mesh=ONE))
    with pytest.raises(ValueError, match="at least 1 member"):
        next(sample_blocks(job, [0], np.arange(2), block=0, mesh=ONE))
    with pytest.raises(ValueError, match="the sampler is one of heun"):
        SamplerSettings("magic")
    with pytest.raises(ValueError, match="what came true"):
        job.archive_of_truth(np.arange(2))


def test_how_many_run_at_once_follows_the_size_of_a_sample(job):
    job, _ = job
    free = dataclasses.replace(job, members_at_once=None)
    assert members_at_once(free, ONE) == 16  # small samples: the most on a CPU
    sphere = dataclasses.replace(free, shape=(32, 64, 2))
    assert members_at_once(sphere, ONE) == 1
    assert members_at_once(job, ONE) == 4


def test_the_names_of_the_command_line_are_those_of_the_samplers():
    from ensjax.emulate.sample_job import SAMPLERS
    from ensjax.experiment.sample_options import SAMPLER_NAMES

    assert tuple(SAMPLERS) == SAMPLER_NAMES
