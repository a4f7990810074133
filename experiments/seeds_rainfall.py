"""Generative post-processing of real rain: a diffusion model given 2 of 11 members.

One small denoiser for each seed, all of them trained as one stack; then 50 samples of
every test case. `seeds_rainfall_data.py` has the data and EMOS, `_scores.py` measures,
`_claims.py` judges and `_figures.py` draws.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import ensjax
from ensjax.emulate.seeds import DrawSeeds, train_seeds
from ensjax.experiment import ConfigError
from ensjax.experiment.fields import check_numbers, load_beside
from ensjax.experiment.processes import everywhere
from ensjax.experiment.stages import run_stages
from ensjax.nn.denoiser_net import NoiseEmbedding

data = load_beside(__file__, "seeds_rainfall_data")
measures = load_beside(__file__, "seeds_rainfall_scores")
verdicts = load_beside(__file__, "seeds_rainfall_claims")
figures = load_beside(__file__, "seeds_rainfall_figures")
kept = load_beside(__file__, "seeds_emulators")
job = load_beside(__file__, "seeds_rainfall_job")
sample_job = job.sample_job  # of `ensjax sample`


def validate(config):
    """Raises `ConfigError` for what would fail later, in one line."""
    check_numbers(
        config,
        ("num_seeds", "width", "total_steps", "batch_size", "bootstrap_block_days"),
        at_least=1,
    )
    check_numbers(config, ("num_given",), at_least=2, at_most=9)
    check_numbers(config, ("num_samples",), at_least=measures.NUM_RANKED)
    check_numbers(config, ("num_levels",), at_least=2)
    check_numbers(config, ("num_test", "gap_days"), at_least=0)
    check_numbers(config, ("learning_rate", "sigma_high", "dry_depth"), above=0)
    check_numbers(config, ("ema_decay",), at_least=0, below=1)
    check_numbers(config, ("thresholds",), above=0)
    shares = ("member_shares.observations", "member_shares.half_half")
    check_numbers(config, shares, at_least=0, at_most=1)
    try:
        np.datetime64(config.split_date)
        data.load(config)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"config: {error}") from error


class ScalarDenoiser(nnx.Module):
    """A network of one number: `network(x [1], noise [], condition [3]) -> [1]`."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.embedding = NoiseEmbedding(width, rngs=rngs)
        self.first = nnx.Linear(1 + 3, width, rngs=rngs)
        self.middle = nnx.Linear(width, width, rngs=rngs)
        self.last = nnx.Linear(width, 1, rngs=rngs)

    def __call__(self, x, noise, condition):
        level = self.embedding(noise)
        hidden = self.first(jnp.concatenate([x, condition], axis=-1))
        hidden = nnx.silu(hidden + level)
        return self.last(hidden + nnx.silu(self.middle(hidden)))


def _make(width, rngs):
    return ScalarDenoiser(width, rngs=rngs)


def training_job(config):
    """Raises `ConfigError`: the two kinds of targets train one after the other."""
    raise ConfigError(
        "seeds_rainfall trains a stack of small networks for each kind of target,"
        " through emulate.seeds.train_seeds; there is no plan of it."
    )


def run(config, run_dir):
    """Trains, samples, scores and reports; the same command resumes by stages."""
    train, test = everywhere(lambda: data.load(config))
    stages = {
        kind: functools.partial(_generate, config, run_dir, kind, train, test)
        for kind in config.member_shares
    }
    done = run_stages(run_dir, config, stages)
    systems = data.reference_systems(config, train, test)
    found = measures.measure(config, train, test, systems, done)
    figures.add_tables(run_dir, config, found)
    figures.add_figures(run_dir, config, test, done, found)
    run_dir.finish(
        title=config.title,
        summary=verdicts.describe(config, train, test, found),
        scalars=verdicts.summarise(found),
        claims=verdicts.make_claims(config, found),
        checks=verdicts.make_checks(config, found),
    )


def _generate(config, run_dir, kind, train, test, done):
    """Samples of every test case for every seed, `[model, member, case]` in mm."""
    del done
    scale = data.fit_scale(train)
    emulators, log = train_seeds(
        functools.partial(_make, config.width),
        data.training_cases(config, train, scale),
        steps=config.total_steps,
        draw=DrawSeeds(
            num_seeds=config.num_given, member_share=config.member_shares[kind]
        ),
        tasks=[0] * config.num_seeds,
        learning_rate=config.learning_rate,
        batch_size=config.batch_size,
        ema_decay=config.ema_decay,
        seed=config.seed,
        mesh=ensjax.make_mesh(**config.mesh.to_dict()),
        fit_options={"logger": run_dir.logger(kind)},
    )
    kept.keep(run_dir, kind, emulators)
    return {
        "rain": draw(config, emulators, test, scale).astype(np.float32),
        "frozen_steps": np.asarray(log.frozen_steps),
    }


def draw(config, emulators, test, scale):
    """Rain in mm of every network and test case, `[model, member, case]`."""
    seeds = data.given(config, test, scale)
    z = emulators.sample(
        np.broadcast_to(seeds, (emulators.ensemble.num_members, *seeds.shape)),
        np.arange(config.num_samples),
        sampler=job.sampler_of(config).make(),
        case_ids=test.rows,
        seed=config.seed,
    )
    return scale.restore(ensjax.mesh.fetch(jax.block_until_ready(z))[..., 0])
