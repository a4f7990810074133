"""Permutations of bits, learned from basis vectors alone: mean, variance, members.

`ntk_permutations_theory.py` has what is exact, `_draws.py` infinite networks,
`_networks.py` finite ones, `_widths.py` what their width does; `_claims.py` and
`_checks.py` judge, `_figures.py`, `_tables.py` and `_summary.py` show.
"""

from ensjax.experiment import ConfigError
from ensjax.experiment.fields import check_numbers, load_beside
from ensjax.experiment.stages import run_stages
from ensjax.ntk.kernels import PARAMETERISATIONS
from ensjax.ntk.permutations import MAX_CUBE_BITS
from ensjax.ntk.two_layer import KINDS

theory = load_beside(__file__, "ntk_permutations_theory")
draws = load_beside(__file__, "ntk_permutations_draws")
networks = load_beside(__file__, "ntk_permutations_networks")
widths = load_beside(__file__, "ntk_permutations_widths")
verdicts = load_beside(__file__, "ntk_permutations_claims")
summary = load_beside(__file__, "ntk_permutations_summary")
bounds = load_beside(__file__, "ntk_permutations_checks")
tables = load_beside(__file__, "ntk_permutations_tables")
figures = load_beside(__file__, "ntk_permutations_figures")


_MOST_TASK_BITS = 8  # all pairs of numbers are tried, 4^8
_SECTIONS = ("networks", "widths", "curve", "growth", "cube", "stream", "tasks")
_NOT_WHOLE = ("residual", "fraction", "stretch", "targets", "deltas")


def _check_whole(config, section):
    for name, value in config[section].items():
        values = value if isinstance(value, (tuple, list)) else (value,)
        numbers = [v for v in values if isinstance(v, float)]
        if numbers and not name.endswith(_NOT_WHOLE):
            raise ConfigError(
                f"config.{section}.{name} must be whole; got {numbers[0]!r}."
            )


def validate(config):
    """Raises `ConfigError` for what would fail later, in one line."""
    if not config.kinds or not set(config.kinds) <= set(KINDS):
        raise ConfigError(
            f"config.kinds are different ones of {', '.join(KINDS)}; got"
            f" {config.kinds}."
        )
    check_numbers(config, ("delta", "growth.deltas", "curve.targets"), above=0, below=1)
    check_numbers(config, ("num_seeds", "curve.num_repetitions"), at_least=1)
    check_numbers(config, ("forms.num_bits", "growth.large_bits"), at_least=2)
    cubes = ("growth.num_bits", "cube.num_bits", "stream.num_bits", "widths.num_bits")
    check_numbers(config, cubes, at_least=2, at_most=MAX_CUBE_BITS)
    check_numbers(config, ("widths.matrix_bits",), at_least=2, at_most=8)
    check_numbers(config, ("networks.cube_bits",), at_least=1, at_most=MAX_CUBE_BITS)
    check_numbers(config, ("curve.num_bits", "networks.num_bits"), at_least=2)
    check_numbers(config, ("networks.width", "widths.sizes"), at_least=1)
    check_numbers(config, ("networks.residual",), above=0, below=1)
    check_numbers(config, ("networks.rate_fraction", "widths.mup_fraction"), above=0)
    check_numbers(config, ("networks.rate_fraction",), at_most=1)
    counts = ("networks.num_members", "widths.num_members", "cube.num_draws")
    check_numbers(config, counts, at_least=2, at_most=networks.SEED_STRIDE)
    check_numbers(
        config, ("stream.num_members", "stream.block", "curve.block"), at_least=1
    )
    counts = ("widths.matrix_members", "widths.num_drift_members")
    check_numbers(config, counts, at_least=2)
    sizes = ("widths.matrix_width", "networks.ones", "networks.num_inputs")
    check_numbers(config, sizes, at_least=1)
    bits = ("tasks.copy_bits", "tasks.addition_bits", "tasks.multiplication_bits")
    check_numbers(config, bits, at_least=1, at_most=_MOST_TASK_BITS)
    check_numbers(config, ("tasks.num_padding", "tasks.num_networks"), at_least=0)
    check_numbers(config, ("tasks.width",), at_least=1)
    if config.tasks.num_networks == 1:
        raise ConfigError(
            "config.tasks.num_networks is 0, or at least 2 to have a variance; got 1."
        )
    for section in _SECTIONS:
        _check_whole(config, section)
    networks.block_of(config)
    names = config.widths.parameterisations
    known = set(names) <= set(PARAMETERISATIONS)
    if not names or len(set(names)) < len(names) or not known:
        raise ConfigError(
            "config.widths.parameterisations are different ones of"
            f" {', '.join(PARAMETERISATIONS)}; got {names}."
        )
    if min(config.networks.ones) > min(config.networks.num_bits):
        raise ConfigError(
            "config.networks.ones must hold a number of ones that inputs of every k of"
            f" config.networks.num_bits can have; got {config.networks.ones} and"
            f" {config.networks.num_bits}."
        )
    sizes, last = config.cube.num_bits, config.cube.fitted_up_to
    if len(sizes) < 3 or not min(sizes) <= last < max(sizes):
        raise ConfigError(
            "config.cube.num_bits must hold at least 3 k, some up to"
            f" config.cube.fitted_up_to={last}, to fit on, and some above; got {sizes}."
        )


def mapped_job(config):
    """The networks of the first law and the largest k, for `ensjax plan`."""
    return networks.mapped_job(config)


def run(config, run_dir):
    """Computes, draws, trains, judges; the same command resumes by stages."""
    stages = {
        "theory": lambda done: theory.measure(config),
        "tasks": lambda done: theory.measure_tasks(config),
    }
    for k in config.networks.num_bits:
        stages[f"networks-{k}"] = networks.stage(config, run_dir, k)
    if config.tasks.num_networks:
        stages["trained-task"] = lambda done: networks.measure_task(config)
    stages["widths"] = lambda done: widths.measure_widths(config)
    for k in config.curve.num_bits:
        stages[f"curve-{k}"] = lambda done, k=k: draws.measure_curve(config, k)
    for k in config.cube.num_bits:
        stages[f"cube-{k}"] = lambda done, k=k: draws.measure_cube(config, k)
    stages["stream"] = draws.stream_stage(config, run_dir)
    done = run_stages(run_dir, config, stages)
    found = verdicts.gather(config, done)
    tables.add_tables(run_dir, config, found)
    figures.add_figures(run_dir, config, found)
    run_dir.finish(
        title=config.title,
        summary=summary.describe(config, found),
        scalars=verdicts.summarise(config, found),
        claims=verdicts.make_claims(config, found),
        checks=bounds.make_checks(config, found),
    )
