"""The job of `ensjax sample` for runs of `seeds_sphere.py`."""

from ensjax.emulate.sample_job import SampleJob
from ensjax.experiment.fields import load_beside

stored = load_beside(__file__, "seeds_emulators")
training = load_beside(__file__, "seeds_sphere_training")


def sample_job(config, run_dir, model):
    """The test cases, given the two members of one seed.

    Its members are those that the run made, and more: cases and ids say their noise.

    Raises:
        ConfigError: as `kept`, or if the run's archive is damaged.
    """
    emulators, _, number = stored.kept(run_dir, ("generated",), model)
    archives = stored.simulated(run_dir, config)
    climate, system = training.climate(archives), training.system_of(config)
    test = training.to_channels(training.standardised(archives, archives["test"]))
    seeds, base = test[:, training.given(config)[number]], training.base_of(archives)
    return SampleJob(
        denoisers=emulators.denoisers,
        condition=stored.conditions_of(emulators, seeds, base),
        shape=seeds.shape[2:],
        restore=lambda samples, row: climate.restore(training.from_channels(samples)),
        case=archives["case"],
        lead=archives["lead_days"][-1:].astype("timedelta64[D]"),
        variable=system.variable,
        space={"lat": archives["lat"], "lon": archives["lon"]},
        units=system.units,
        source=f"{system.name}, seed {config.seed + number}",
        truth=lambda row: archives["truth"][row][None],
        seed=config.seed,
        sampler=training.sampler_of(config, config.sampler.num_levels),
    )
