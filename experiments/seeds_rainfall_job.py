"""The job of `ensjax sample` for runs of `seeds_rainfall.py`."""

from ensjax.emulate.packaged_rain import innsbruck_rain
from ensjax.emulate.sample_job import SampleJob, SamplerSettings
from ensjax.experiment.fields import load_beside

stored = load_beside(__file__, "seeds_emulators")
data = load_beside(__file__, "seeds_rainfall_data")


def sample_job(config, run_dir, model):
    """The test cases, given their first members.

    Raises:
        ConfigError: as `kept`.
        ImportError: if the package with the data is not installed.
    """
    emulators, _, _ = stored.kept(run_dir, list(config.member_shares), model)
    train, test = data.load(config)
    scale, archive = data.fit_scale(train), innsbruck_rain()
    return SampleJob(
        denoisers=emulators.denoisers,
        condition=stored.conditions_of(emulators, data.given(config, test, scale)),
        shape=(1,),
        restore=lambda samples, row: scale.restore(samples),
        case=archive.case[test.rows],
        lead=archive.lead,
        variable=archive.variable,
        units=archive.units,
        source=archive.source,
        truth=lambda row: test.observed[row][None, None],
        case_ids=test.rows,
        seed=config.seed,
        sampler=sampler_of(config),
    )


def sampler_of(config) -> SamplerSettings:
    """As the config says."""
    return SamplerSettings("heun", config.num_levels, high=config.sigma_high)
