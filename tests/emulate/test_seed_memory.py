"""The program that reduces members of one case: its memory, whatever their number."""

import sys

import jax
import jax.numpy as jnp
import numpy as np

import ensjax
from ensjax import Ensemble, make_mesh, reduce
from ensjax.emulate import diffusion, seeds
from ensjax.mapping import mesh_program
from ensjax.reduce.devices import FoldBlocks
from ensjax.reduce.stream import _FAMILIES

RING = 40  # sites of Lorenz-96


def make_model(rngs):
    return ensjax.nn.ResidualDenoiser(
        1, num_condition_channels=3, width=8, depth=1, kernel_size=(3,), rngs=rngs
    )


def temporary_bytes(monkeypatch, count):
    """Of the program that `reduce` runs for this many members of one case."""
    mesh = make_mesh(member=1, devices=jax.devices()[:1])
    ensemble = Ensemble.init(make_model, num_members=1, mesh=mesh)
    emulators = seeds.SeedsEmulators(
        ensemble, np.arange(1), seeds.DrawSeeds(), diffusion.EDM()
    )
    truth = jnp.zeros((1, 1, RING, 1))
    states = {
        "moments": reduce.init_moments(truth),
        "quantiles": reduce.init_quantiles(truth, max_members=16_384),
        "crps": reduce.init_crps(truth, max_members=16_384),
        "ranks": reduce.init_ranks(truth),
        "exceedances": reduce.init_exceedances(truth, jnp.array([-0.5, 0.5])),
    }
    calls = []
    with monkeypatch.context() as patch:
        note = lambda *args, **kwargs: calls.append((args, kwargs))  # noqa: E731
        sampling = sys.modules["ensjax.emulate.seeds.sampling"]
        patch.setattr(sampling, "fold_members", note)
        emulators.reduce(
            np.zeros((1, 1, 2, RING, 1)),
            jnp.arange(count),
            states,
            sampler=diffusion.Heun(diffusion.rho_levels(3, low=0.1, high=10.0)),
            block=64,
        )
    (fn, ids, states), options = calls[0]
    families = tuple((name, _FAMILIES[type(state)]) for name, state in states.items())
    job = FoldBlocks(fn, families, options["block"])
    program = mesh_program(job, options["mesh"])
    lowered = program.lower(states, ids, None, jnp.int32(count), options["shared"])
    quick = {"xla_backend_optimization_level": 0}
    return lowered.compile(quick).memory_analysis().temp_size_in_bytes


def test_memory_is_the_same_for_512_and_16384_members(monkeypatch):
    few, many = (temporary_bytes(monkeypatch, count) for count in (512, 16_384))
    assert few == many
    print(few)
