"""A plan of forecasts is of the program that `fold_product` runs, by shapes alone."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from ensjax import Ensemble, make_mesh, nn, reduce
from ensjax.emulate import (
    BredVectors,
    ForecastJob,
    MemberForecast,
    NetworkStep,
    Rollout,
    Start,
    fold_program,
    plan_forecasts,
    product_ids,
    states_by_lead,
)
from ensjax.experiment import ConfigError
from ensjax.experiment.plan_tables import print_report
from ensjax.experiment.planner import _plan_forecasts

CHECKPOINTS, PAIRS, SITES, CYCLES = 4, 3, 12, 2
LEADS = (2, 5, 9)
AMPLITUDE = np.array([0.1], np.float32)


def shapes_of(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def make_states():
    one = jnp.zeros((SITES, 1))
    states = {"mean": reduce.init_moments(one)}
    return states_by_lead(lambda lead: states, len(LEADS))


@pytest.fixture(scope="module")
def ensemble():
    make = functools.partial(
        nn.ResidualForecaster, 1, width=8, depth=1, kernel_size=(3,)
    )
    make_model = lambda rngs: make(rngs=rngs)  # noqa: E731
    mesh = make_mesh(member=1)
    return Ensemble.init(make_model, num_members=CHECKPOINTS, mesh=mesh)


def job_of(ensemble, *, member=1, real=False, block=2):
    step = NetworkStep(ensemble.graph)
    known = (lambda tree: tree) if real else shapes_of
    history = np.ones((1, CYCLES + 1, SITES, 1), np.float32)
    amplitude = known(AMPLITUDE)
    return ForecastJob(
        MemberForecast(Rollout(step), BredVectors(amplitude, step, num_cycles=CYCLES)),
        product_ids(CHECKPOINTS, PAIRS, 1),
        models=known(jax.device_get(ensemble.state)),
        starts=known(Start(history[:, -1], history)),
        make_states=make_states,
        lead_steps=LEADS,
        block=block,
        mesh_sizes=dict(member=member),
        split_models=member > 1,
    )


def mesh_of(job):
    return job.mesh(jax.devices()[: job.mesh_sizes["member"]])


@pytest.mark.parametrize("member", [1, 2])
def test_shapes_are_planned_as_the_arrays_run(ensemble, member):
    job = job_of(ensemble, member=member)
    found = plan_forecasts(job, mesh_of(job), say=lambda text: None)
    real = job_of(ensemble, member=member, real=True)
    program, arguments = fold_program(
        real.forecast,
        real.members,
        make_states(),
        models=real.models,
        starts=real.starts,
        lead_steps=LEADS,
        block=2,
        split_models=member > 1,
        mesh=mesh_of(job),
    )
    stats = program.lower(*arguments).compile().memory_analysis()
    assert found.memory.temporary_bytes == stats.temp_size_in_bytes
    assert found.memory.output_bytes == stats.output_size_in_bytes
    states = program(*arguments)
    assert found.arrays["states"] == sum(x.nbytes for x in jax.tree.leaves(states))
    weights = sum(x.nbytes for x in jax.tree.leaves(real.models))
    assert found.arrays["weights"] == weights // member
    assert int(states["mean"].count[0]) == found.num_members == 2 * 3 * CHECKPOINTS


def test_the_steps_of_a_member_and_their_operations_are_counted(ensemble):
    job = job_of(ensemble)
    found = plan_forecasts(job, mesh_of(job), say=lambda text: None)
    # Pairs of a checkpoint fill three blocks of two.
    assert (found.num_rows, found.block) == (2 * PAIRS * CHECKPOINTS, 2)
    assert (found.num_steps, found.num_breeding_steps) == (LEADS[-1], 2 * CYCLES)
    first = jax.tree.map(lambda x: x[0], ensemble.state)

    @jax.jit
    def both(params, states):
        network = ensemble.graph.merge(params, train=False)
        return jax.vmap(lambda state: network(None, state))(states)

    compiled = both.lower(first, jnp.ones((2, SITES, 1))).compile()
    counted = compiled.cost_analysis()["flops"]
    assert found.step.flops == pytest.approx(counted, rel=0.05)
    steps = found.num_rows / 2 * (LEADS[-1] + 2 * CYCLES)
    assert found.flops == pytest.approx(steps * found.step.flops)
    padded = plan_forecasts(
        dataclasses.replace(job, block=4), mesh_of(job), say=lambda text: None
    )
    assert padded.num_rows == 8 * CHECKPOINTS


def test_a_config_with_forecasts_has_them_in_its_plan(ensemble, capsys):
    job = job_of(ensemble, member=2)
    experiment = types.SimpleNamespace(forecast_job=lambda config: job)
    config = ml_collections.ConfigDict(dict(forecasts=dict(mesh=dict(member=2))))
    said = []
    find = functools.partial(_plan_forecasts, experiment, config, say=said.append)
    plan = find(make_mesh(member=2, data=2, devices=jax.devices()[:4]))
    assert plan["mesh"] == dict(member=2, data=1, model=1) and said
    print_report(
        dict(
            config="huge",
            preset="paper",
            title="",
            plan=None,
            does_not_fit="",
            forecasts=plan,
            choices=None,
            tuning=None,
            fixed="",
        )
    )
    printed = capsys.readouterr().out
    assert "Forecasts of 24 members (member=2" in printed
    assert "9 + 4 to make its perturbation" in printed
    with pytest.raises(ConfigError, match="has 2 devices, of which 1 are planned"):
        find(make_mesh(member=1, devices=jax.devices()[:1]))
    assert _plan_forecasts(experiment, ml_collections.ConfigDict(), None, print) is None
