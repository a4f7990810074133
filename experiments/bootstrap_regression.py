"""Bootstrap ensembles for regression, as MODNet uses them, on bundled tables.

Hundreds of small networks, each on its own bootstrap of the training rows, are trained
as one stack per data set: the studied ensemble of every seed, smaller ones on fewer
rows, under a shift, with a thinned target, and for nested selection of settings.

`bootstrap_regression_rows.py` says who trains on what, `_training.py` trains,
`_nested.py` selects, `_peers.py` has other models, `_scores.py` measures, `_claims.py`
judges and `_figures.py` draws.
"""

import dataclasses

import numpy as np

import ensjax
from ensjax.experiment import ConfigError
from ensjax.experiment.exit_codes import one_line
from ensjax.experiment.fields import check_multiples, check_numbers, load_beside
from ensjax.experiment.stages import run_stages

rows = load_beside(__file__, "bootstrap_regression_rows")
training = load_beside(__file__, "bootstrap_regression_training")
nested = load_beside(__file__, "bootstrap_regression_nested")
peers = load_beside(__file__, "bootstrap_regression_peers")
measures = load_beside(__file__, "bootstrap_regression_scores")
verdicts = load_beside(__file__, "bootstrap_regression_claims")
figures = load_beside(__file__, "bootstrap_regression_figures")


def validate(config):
    """Raises `ConfigError` for what would fail later, in one line."""
    check_numbers(
        config,
        ("num_seeds", "total_steps", "steps_per_call", "save_every_steps", "num_trees"),
        at_least=1,
    )
    check_numbers(
        config,
        ("num_members", "num_side_members", "nested.num_members"),
        at_least=2,
        at_most=rows.JOB_STRIDE,
    )
    check_numbers(config, ("num_neighbors", "nested.num_kept"), at_least=1)
    check_numbers(config, ("nested.num_folds", "sizes"), at_least=2)
    check_numbers(config, ("test_share", "shift.share"), above=0, below=1)
    check_numbers(config, ("shift.keep",), at_least=0, at_most=1)
    check_numbers(config, ("hidden",), at_least=1)
    check_numbers(config, ("learning_rate", "nested.learning_rates"), above=0)
    check_numbers(
        config,
        ("weight_decay", "nested.weight_decays", "shift.feature", "rows_per_step"),
        at_least=0,
    )
    check_numbers(config, ("nested.feature_shares",), above=0, at_most=1)
    if config.ddof not in (0, 1):
        raise ConfigError(f"config.ddof is 0 or 1; got {config.ddof!r}.")
    if config.block not in ("auto", "all"):
        check_numbers(config, ("block",), at_least=1)
    check_multiples(config, ("total_steps", "save_every_steps"))
    if not config.sets or len(set(config.sets)) < len(config.sets):
        raise ConfigError(f"config.sets must be different names; got {config.sets}.")
    if config.num_side_members > config.num_members:
        raise ConfigError(
            "config.num_side_members must be at most config.num_members"
            f" ({config.num_members}); got {config.num_side_members}."
        )
    jobs = nested.FIRST_NUMBER + config.nested.num_folds * len(nested.presets(config))
    if jobs > rows.SEED_STRIDE // rows.JOB_STRIDE:
        raise ConfigError(
            f"config.nested: {jobs} ensembles a seed are more than the"
            f" {rows.SEED_STRIDE // rows.JOB_STRIDE} that ids leave room for."
        )
    if len(config.sizes) > nested.FIRST_NUMBER - 4:
        raise ConfigError(
            f"config.sizes has at most {nested.FIRST_NUMBER - 4} entries; got"
            f" {len(config.sizes)}."
        )
    for name in config.sets:
        _check_table(config, name, rows.load_table(config, name))


def _check_table(config, name, table):
    try:
        train, _ = rows.split_rows(config, table, 0)
        if name == config.sets[0]:
            if config.shift.feature >= table.x.shape[1]:
                raise ValueError(
                    f"shift.feature is below {table.x.shape[1]} for {name}; got"
                    f" {config.shift.feature}"
                )
            rows.shift_rows(config, table, 0)
            rows.thinned_rows(config, table, 0)
        if config.nested.num_folds > len(train) // 2:
            raise ValueError(
                f"nested.num_folds is at most half of the {len(train)} training rows"
            )
        if config.num_neighbors >= len(train):
            raise ValueError(f"num_neighbors is below the {len(train)} training rows")
    except ValueError as error:
        raise ConfigError(f"config ({name}): {one_line(error)}") from error
    if config.rows_per_step > len(table.y):
        raise ConfigError(
            f"config.rows_per_step must be at most the {len(table.y)} rows of {name};"
            f" got {config.rows_per_step}."
        )


def run(config, run_dir):
    """Trains every data set as one stack, measures, judges; resumes by stages."""
    tables = {name: rows.load_table(config, name) for name in config.sets}
    stages = {}
    for name, table in tables.items():
        stages[f"train-{name}"] = _train_stage(config, run_dir, name, table)
        stages[f"peers-{name}"] = _peers_stage(config, table)
    first = config.sets[0]
    stages["alone"] = _alone_stage(config, first, tables[first])
    done = run_stages(run_dir, config, stages)
    results = measure(config, tables, done)
    scalars = verdicts.summarise(config, results)
    figures.add_figures(run_dir, config, results)
    run_dir.finish(
        title=config.title,
        summary=verdicts.describe(config, tables, results, scalars),
        scalars=scalars,
        claims=verdicts.make_claims(config, results),
        checks=verdicts.make_checks(config, results),
    )


def training_job(config):
    """The members of the first data set, all jobs of it in one stack."""
    name = config.sets[0]
    table = rows.load_table(config, name)
    jobs, inner = all_jobs(config, table, name)
    job = training.make_job(config, table, jobs + inner)
    return dataclasses.replace(job, stage=f"train-{name}")


def all_jobs(config, table, name):
    """The jobs of a data set, and those of nested selection behind them."""
    jobs = rows.list_jobs(config, table, is_first=name == config.sets[0])
    return jobs, nested.list_jobs(config, table)


def _train_stage(config, run_dir, name, table):
    def compute(done):
        del done
        jobs, inner = all_jobs(config, table, name)
        ensemble, log = training.make_job(config, table, jobs + inner).fit(
            checkpoint_dir=run_dir.checkpoints / f"train-{name}",
            save_every_steps=config.save_every_steps,
            logger=run_dir.logger(f"train-{name}"),
        )
        points = ensjax.predict(
            ensemble, table.x, batch_size=512, block=training.block_of(config)
        )
        return {
            "points": np.asarray(ensjax.mesh.fetch(points), np.float32),
            "frozen_steps": np.asarray(log.frozen_steps),
        }

    return compute


def _alone_stage(config, name, table):
    """How far members that are trained alone are from those of the stack.

    In the stack's block, so that rounding is the same: after hundreds of steps of Adam
    on absolute errors, the last bits have become tenths of the targets' deviation.
    """

    def compute(done):
        jobs, inner = all_jobs(config, table, name)
        job = training.make_job(config, table, jobs + inner)
        points = done[f"train-{name}"]["points"]
        differences = []
        for place in (0, len(job.member_ids) - 1):
            member, _ = job.select([job.member_ids[place]]).fit(progress=False)
            own = ensjax.predict(
                member, table.x, batch_size=512, block=training.block_of(config)
            )
            difference = np.abs(ensjax.mesh.fetch(own)[0] - points[place]).max()
            differences.append(difference / table.y.std())
        return {"differences": np.asarray(differences)}

    return compute


def _peers_stage(config, table):
    return lambda done: {"points": peers.predict(config, table)}


def measure(config, tables, done) -> dict:
    """Every measured number, by seed."""
    first = tables[config.sets[0]]
    results = {"sets": {}, "not_finite": 0}
    results["split_sizes"] = rows.split_sizes(config, first)
    results["alone"] = float(done["alone"]["differences"].max())
    for name, table in tables.items():
        stored = done[f"train-{name}"]
        jobs, inner = all_jobs(config, table, name)
        ends = np.cumsum([job.num_members for job in jobs + inner])[:-1]
        points = np.split(stored["points"], ends)
        results["not_finite"] += int((stored["frozen_steps"] >= 0).sum())
        main, chosen = points[: len(jobs)], points[len(jobs) :]
        own = _measure_sizes(config, table, jobs, main, done[f"peers-{name}"]["points"])
        own["nested"] = np.stack(
            [
                nested.predict(config, table, inner, chosen, seed)[
                    rows.split_rows(config, table, seed)[1]
                ]
                for seed in range(config.num_seeds)
            ]
        )
        own["nested_mae"] = np.abs(own["nested"] - own["targets"]).mean(axis=1)
        results["sets"][name] = own
        if name == config.sets[0]:
            results |= _measure_first(config, table, jobs, main, own)
    return results


def _measure_sizes(config, table, jobs, points, peer_points):
    """Errors of the ensemble and of its peers by number of training rows."""

    def test(seed):
        return rows.split_rows(config, table, seed)[1]

    sizes = rows.sizes_of(config, len(rows.split_rows(config, table, 0)[0]))
    mae = []
    for size in sizes:
        name = "main" if size == sizes[-1] else f"size-{size}"
        found = measures.gather(config, table, jobs, points, name, test)
        # As many members at every size.
        few = found.points[:, : config.num_side_members].mean(axis=1)
        mae.append(np.abs(few - found.targets).mean(axis=1))
    peer_mae = np.abs(peer_points - found.targets).mean(axis=-1)  # [peer, size, seed]
    return {
        "sizes": np.asarray(sizes),
        "mae": np.stack(mae),
        "peer_mae": peer_mae,
        "peers": peer_points[:, -1],
        "targets": found.targets,
    }


def _measure_first(config, table, jobs, points, own):
    """What only the first data set is used for."""

    def test(seed):
        return rows.split_rows(config, table, seed)[1]

    weights = np.split(
        training.member_weights(config, table, jobs),
        np.cumsum([job.num_members for job in jobs])[:-1],
    )
    found = measures.gather(config, table, jobs, points, "main", test)
    plain = measures.gather(config, table, jobs, points, "plain", test)
    tau = measures.fit_sigma_scales(config, table, jobs, points, weights)
    models = {
        "bootstrap": found.mean,
        "plain": plain.mean,
        "one network": found.points[:, 0],
    } | dict(zip(peers.PEERS, own["peers"], strict=True))
    return {
        "point": measures.measure_point(found),
        "spread": measures.measure_spread(found, tau),
        "curves": measures.measure_curves(config, table, found, tau),
        "plain": measures.measure_plain(plain, found),
        "models": list(models),
        "rankings": measures.measure_rankings(models, found.targets),
        "shift": measures.measure_shift(config, table, jobs, points),
        "imbalance": measures.measure_imbalance(config, table, jobs, points),
    }
