"""The forecasts of `huge_ensembles_7424.py` at full size, to be planned: shapes alone.

All members of one start, as published: bred with the checkpoints' own steps by the
hemispheric norm, from noise of the 500 hPa height alone; their statistics at the leads
that were kept. States are in deviations of the climate.
"""

import dataclasses

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from ensjax import reduce, verification
from ensjax.emulate import (
    BredVectors,
    ForecastJob,
    HemisphericNorm,
    MemberForecast,
    NetworkStep,
    Rollout,
    SphericalNoise,
    Start,
    product_ids,
    states_by_lead,
)
from ensjax.experiment import ConfigError
from ensjax.experiment.fields import load_beside
from ensjax.ops.sphere import SphericalGrid

training = load_beside(__file__, "huge_ensembles_training")


@dataclasses.dataclass(frozen=True)
class SeedNoise:
    """One field of noise, the same in all channels: only one is seeded."""

    field: SphericalNoise

    def __call__(self, key, shape):
        return jnp.broadcast_to(self.field(key, (*shape[:2], 1)), shape)


@dataclasses.dataclass(frozen=True)
class Seen:
    """The channels whose moments are kept, and the one of extremes."""

    kept: tuple[int, ...]
    extreme: int

    def __call__(self, state):
        return {
            "kept": state[..., jnp.asarray(self.kept)],
            "extreme": state[..., self.extreme],
        }


def forecast_job(config) -> ForecastJob:
    """Forecasts of all members of one start.

    Raises:
        ConfigError: for a preset that runs: nothing has to be planned for it.
    """
    if config.archive.source != "era5":
        raise ConfigError("forecasts are planned at full size alone.")
    own = ml_collections.ConfigDict(config.to_dict())
    # Whole latitudes on every device, and nothing that only a derivative needs.
    own.mesh, own.model.remat = config.forecasts.mesh, False
    job = training.training_job(own, shapes_only=True)
    ensemble = job.abstract_ensemble(None)
    settings, space = config.forecasts, tuple(config.archive.space)
    grid = SphericalGrid(*space, "poles", northward=False)
    state = (*space, config.archive.num_channels)
    cycles = settings.num_cycles

    def shapes(*shape):
        return jax.ShapeDtypeStruct(shape, np.float32)

    perturb = BredVectors(
        shapes(state[-1]),
        NetworkStep(ensemble.graph),
        num_cycles=cycles,
        norm=HemisphericNorm(tuple(np.linspace(90.0, -90.0, space[0]).tolist())),
        noise=SeedNoise(SphericalNoise.of_lengths(grid, (settings.noise_km,))),
        seed_channels=(settings.seed_channel,),
    )
    seen = Seen(tuple(settings.kept_channels), settings.extreme_channel)
    members = product_ids(config.num_checkpoints, settings.num_pairs, 1)

    def states(lead):
        del lead
        kept, truth = jnp.zeros((*space, len(seen.kept))), jnp.zeros(space)
        return {
            "kept": {"mean": reduce.init_moments(kept)},
            "extreme": {
                "who": reduce.init_extreme_members(truth, truth),
                "above": reduce.init_exceedances(truth, jnp.zeros((1, *space))),
                **verification.member_states(
                    [verification.outliers()], truth, max_members=members.start.size
                ),
            },
        }

    leads = tuple(settings.lead_steps)
    return ForecastJob(
        MemberForecast(
            Rollout(NetworkStep(ensemble.graph), seen), perturb, shapes(state[-1])
        ),
        members,
        models=ensemble.state,
        starts=Start(shapes(1, *state), shapes(1, cycles + 1, *state)),
        make_states=lambda: states_by_lead(states, len(leads)),
        lead_steps=leads,
        block=settings.block,
        mesh_sizes=settings.mesh.to_dict(),
        split_models=True,
    )
