"""Window-based cascades of two members against single models of growing size.

Trains pairs of five widths for every seed as one stack (or reads cached logits),
measures cascades, ensembles and single members, and ends in claims and figures. Beside
it, `window_cascade_data.py` makes rows and logits, `window_cascade_measures.py`
measures, `window_cascade_claims.py` judges and `window_cascade_figures.py` draws.
"""

import math

import numpy as np

import ensjax
from ensjax.combine.cascade.exits import CONFIDENCES
from ensjax.experiment import ConfigError
from ensjax.experiment.exit_codes import one_line
from ensjax.experiment.fields import check_numbers, choose, load_beside
from ensjax.experiment.stages import run_stages
from ensjax.train import arguments
from ensjax.train.schedule import Schedule

data = load_beside(__file__, "window_cascade_data")
measures = load_beside(__file__, "window_cascade_measures")
verdicts = load_beside(__file__, "window_cascade_claims")
figures = load_beside(__file__, "window_cascade_figures")


def run(config, run_dir):
    """Trains or reads, measures and reports; the same command resumes."""
    stages = run_stages(
        run_dir, config, {"measures": lambda done: measure(config, run_dir)}
    )
    results = verdicts.Results(config, stages["measures"])
    figures.add_tables(run_dir, config, results)
    figures.add_figures(run_dir, config, results)
    run_dir.finish(
        title=config.title,
        summary=verdicts.describe(config, results),
        scalars=verdicts.summarise(results),
        claims=verdicts.make_claims(config, results),
        checks=verdicts.make_checks(config, results),
    )


def measure(config, run_dir) -> dict[str, np.ndarray]:
    """Every measure by size: `{name: [size, seed, system]}`, costs, and one pair's."""
    found, macs, shown = [], [], {}
    for size, (logits, ensemble, inputs) in enumerate(sizes_of(config, run_dir)):
        found.append(measures.measure_size(config, logits))
        macs.append(logits.macs)
        if size == config.shown_size:
            shown = look_closer(config, ensemble, logits, inputs)
    if len({len(x["cov"]) for x in found}) > 1:
        raise ConfigError("config.cached.files must hold as many members each.")
    stacked = {name: np.stack([x[name] for x in found]) for name in found[0]}
    return (
        stacked | {"macs": np.array(macs)} | {f"one/{k}": v for k, v in shown.items()}
    )


def look_closer(config, ensemble, logits, inputs) -> dict[str, np.ndarray]:
    """The first pair in its first order: curves, and how far ways to run differ."""
    test = logits.test[0]
    cascade = measures.fit_one(
        logits.validation[0],
        logits.validation_labels[0],
        level=config.risk,
        width=config.window_width,
        confidence=config.confidence,
    )
    found = measures.curves_of(cascade, test, logits.test_labels[0])
    count = math.ceil((2 * config.window_width - 1e-9) * test.shape[1])
    dense, dense_by_rank = measures.dense_of(cascade, test, count)
    capacity, compacted = data.run_both_ways(config, cascade, ensemble, test, inputs)
    for name, output, reference in (
        ("capacity", capacity, dense_by_rank),
        ("compacted", compacted, dense),
    ):
        # Of probabilities: the last bit of a log-probability of -80 is 8e-6.
        probs, expected = (np.exp(np.asarray(x.log_probs)) for x in (output, reference))
        exits, others = (np.asarray(x.exit_stage) for x in (output, reference))
        found[f"{name}_minus_dense"] = np.abs(probs - expected).max()
        found[f"{name}_other_exits"] = (exits != others).sum()
    return {name: np.asarray(x) for name, x in found.items()}


def sizes_of(config, run_dir):
    """Logits, members and test images of one size after the other."""
    if config.cached.files:
        for size in range(len(config.cached.files)):
            yield data.read_cached(config, size), None, None
        return
    splits = [data.split_rows(config, seed) for seed in range(config.num_seeds)]
    data.check_leakage(data.provenances(config, splits))
    group = data.train(config, splits, run_dir)
    inputs, targets = data.make_inputs(config, splits)
    for ensemble in group.ensembles:
        logits = data.predict_size(config, ensemble, splits, inputs, targets)
        yield logits, ensemble, inputs["test"][0]


def training_job(config):
    """The members of all widths and seeds, a stack of each width."""
    if config.cached.files:
        raise ConfigError("this preset trains nothing: it reads cached logits.")
    splits = [data.split_rows(config, seed) for seed in range(config.num_seeds)]
    return data.training_job(config, splits)


def validate(config):
    """Raises `ConfigError` for what cannot work, before anything is written."""
    counts = [len(config.cached[k]) for k in ("files", "names", "macs")]
    if len(set(counts)) > 1:
        raise ConfigError(
            "config.cached.files, names and macs must be as many; got"
            f" {', '.join(map(str, counts))}."
        )
    choose("confidence", config.confidence, CONFIDENCES)
    check_numbers(config, ["window_width", "threshold_share"], above=0, below=0.5)
    check_numbers(config, ["risk"], above=0, below=1)
    check_numbers(config, ["coverage", "tpr", "scod_coverage"], above=0, at_most=1)
    check_numbers(config, ["capacity_batch_size"], at_least=2)
    if len(config.tpr) != 2 or config.tpr[0] >= config.tpr[1]:
        raise ConfigError(
            f"config.tpr holds two rates, rising; got {tuple(config.tpr)}."
        )
    names = size_names(config)
    if len(names) < 2:
        raise ConfigError(
            "config.widths (or config.cached.files) holds at least two sizes, since"
            f" single models are a line; got {len(names)}."
        )
    for field in ("shown_size", "compared_size"):
        if config[field] not in range(len(names)):
            raise ConfigError(
                f"config.{field} must be from 0 to {len(names) - 1}, one of the sizes;"
                f" got {config[field]}."
            )
    if config.cached.files:
        _validate_cached(config)
    else:
        _validate_training(config)


def size_names(config) -> tuple[str, ...]:
    """What the sizes are called."""
    if config.cached.files:
        return tuple(config.cached.names)
    return tuple(f"width {width}" for width in config.widths)


def _validate_cached(config):
    check_numbers(config, ["cached.macs"], above=0)
    _check_rising("cached.macs", config.cached.macs)
    for size in range(len(config.cached.files)):
        data.read_cached(config, size)


def _validate_training(config):
    check_numbers(
        config,
        [
            "widths",
            "num_seeds",
            "batch_size",
            "total_steps",
            "data.num_validation",
            "data.num_test",
            "data.num_copies",
        ],
        at_least=1,
    )
    check_numbers(config, ["optimizer.learning_rate"], above=0)
    check_numbers(config, ["optimizer.weight_decay", "data.noise_sigma"], at_least=0)
    _check_rising("widths", config.widths)
    try:
        arguments.check_seed(config.seed)
        arguments.check_fit_mesh(ensjax.make_mesh(**config.mesh.to_dict()))
        Schedule.of(
            steps=config.total_steps,
            steps_per_call=config.steps_per_call,
            log_every_steps=config.log_every_steps,
            evaluate_every_steps=None,
            save_every_steps=config.save_every_steps,
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(f"config: {one_line(error)}") from error
    try:
        data.split_rows(config, 0)
    except ValueError as error:
        raise ConfigError(
            "config.data.num_validation and config.data.num_test must leave rows to"
            f" train on: {one_line(error)}"
        ) from error
    if config.data.num_test < 20:
        raise ConfigError(
            "config.data.num_test must be at least 20, so that OOD rows find partners;"
            f" got {config.data.num_test}."
        )


def _check_rising(field, values):
    if any(later <= earlier for earlier, later in zip(values, values[1:])):
        raise ConfigError(f"config.{field} must rise; got {tuple(values)}.")
