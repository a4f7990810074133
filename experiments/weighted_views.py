"""Views, honest folds and weighted votes, after MADE-for-ASD.

A canary of pure noise, views of digits and of cells, and connectomes with age and sex:
simulated, or ABIDE I where it is at hand. Beside it, `weighted_views_data.py` makes the
data, `_models.py` and `_stacks.py` train the neural members, `_votes.py` combines,
`_folds.py` measures the scikit-learn members, `_claims.py` judges and `_figures.py`
draws.
"""

import functools

import numpy as np

from ensjax import data
from ensjax.experiment import ConfigError
from ensjax.experiment.fields import check_multiples, check_numbers, choose, load_beside
from ensjax.experiment.stages import run_stages

sources = load_beside(__file__, "weighted_views_data")
stacks = load_beside(__file__, "weighted_views_stacks")
votes = load_beside(__file__, "weighted_views_votes")
folded = load_beside(__file__, "weighted_views_folds")
verdicts = load_beside(__file__, "weighted_views_claims")
figures = load_beside(__file__, "weighted_views_figures")
models = stacks.models

VIEWS = {"digits": sources.digit_views, "cancer": sources.cancer_views}
SOURCES = ("abide", "simulated")


def validate(config, mesh=None):
    """Raises `ConfigError` for what cannot run, before anything is written.

    Args:
        config: of the run.
        mesh: of a plan, which needs no ABIDE; None: of a run.
    """
    whole = [
        "canary.num_seeds",
        "canary.num_examples",
        "canary.num_features",
        "canary.num_kept",
        "digits.num_seeds",
        "digits.num_train",
        "digits.num_validation",
        "cancer.num_seeds",
        "cancer.num_train",
        "cancer.num_validation",
        "view_model.members_per_view",
        "view_model.total_steps",
        "view_model.batch_size",
        "view_model.hidden",
        "connectomes.num_seeds",
        "connectomes.widths",
        "connectomes.num_subjects",
        "connectomes.num_sites",
        "connectomes.num_factors",
        "connectomes.num_planted",
        "connectomes.num_selected",
        "connectomes.num_top",
        "network.num_seeds",
        "network.members_per_view",
        "network.hidden",
        "network.total_steps",
        "network.batch_size",
        "network.evaluate_every_steps",
        "network.momentum_steps",
        "autoencoders.total_steps",
        "autoencoders.batch_size",
    ]
    check_numbers(config, whole, at_least=1)
    check_numbers(config, ["canary.num_folds", "connectomes.num_folds"], at_least=2)
    rates = ["view_model.learning_rate", "network.learning_rate"]
    check_numbers(config, [*rates, "autoencoders.learning_rate"], above=0)
    check_numbers(config, ["connectomes.inverse_penalty"], above=0)
    check_numbers(config, ["connectomes.validation_share"], above=0, below=1)
    check_numbers(config, ["network.dropout", "network.momentum"], at_least=0, below=1)
    check_numbers(config, ["autoencoders.sparsity_target"], above=0, below=1)
    check_numbers(
        config, ["autoencoders.sparsity_weight", "view_model.weight_decay"], at_least=0
    )
    check_numbers(config, ["autoencoders.amount"], above=0)
    check_numbers(config, ["connectomes.share_male"], at_least=0, at_most=1)
    choose("connectomes.source", config.connectomes.source, dict.fromkeys(SOURCES))
    choose(
        "autoencoders.corruption", config.autoencoders.corruption, models.CORRUPTIONS
    )
    for section in ("network", "autoencoders"):
        known = dict.fromkeys(models.OPTIMIZERS)
        choose(f"{section}.optimizer", config[section].optimizer, known)
    _check_together(config)
    settings = config.connectomes
    if settings.source == "abide" and (settings.root or mesh is None):
        sources.check_abide(settings.root, settings.names)


def _check_together(config):
    """What only fits together: lengths, and numbers below others."""
    settings, network = config.connectomes, config.network
    for field in ("widths", "num_selected", "published_weights"):
        if len(settings[field]) != len(settings.names):
            raise ConfigError(
                f"config.connectomes.{field} needs one number for each of the"
                f" {len(settings.names)} names; got {tuple(settings[field])}."
            )
    if len(network.dropout) != len(network.hidden) or len(network.hidden) < 2:
        raise ConfigError(
            "config.network.dropout needs one share for each of config.network.hidden,"
            f" which are at least two; got {tuple(network.dropout)} and"
            f" {tuple(network.hidden)}."
        )
    count = num_encoders(config)
    if not 1 <= count <= len(network.hidden):
        raise ConfigError(
            "config.autoencoders.amount has a number for each autoencoder, at most one"
            f" for each of config.network.hidden; got {count}."
        )
    for field in ("sparsity_weight", "total_steps", "batch_size", "learning_rate"):
        if len(config.autoencoders[field]) != count:
            raise ConfigError(
                f"config.autoencoders.{field} needs a number for each of the {count}"
                f" autoencoders; got {tuple(config.autoencoders[field])}."
            )
    places = settings.num_folds * len(settings.names) * stacks.PLACE_STRIDE
    if (
        places > stacks.SEED_STRIDE // 2
        or max(network.members_per_view, config.view_model.members_per_view)
        > stacks.PLACE_STRIDE
    ):
        raise ConfigError(
            "config.connectomes.num_folds times its names, and members_per_view, must"
            f" be at most {stacks.SEED_STRIDE // 2 // stacks.PLACE_STRIDE} and"
            f" {stacks.PLACE_STRIDE}, so that members have ids of their own."
        )
    if settings.source == "simulated" and settings.num_planted > min(settings.widths):
        raise ConfigError(
            f"config.connectomes.num_planted must be at most {min(settings.widths)},"
            f" the narrowest view; got {settings.num_planted}."
        )
    if network.num_seeds > settings.num_seeds:
        raise ConfigError(
            "config.network.num_seeds must be at most config.connectomes.num_seeds ="
            f" {settings.num_seeds}; got {network.num_seeds}."
        )
    check_multiples(config, ("network.total_steps",), of="network.evaluate_every_steps")
    canary = config.canary
    if canary.num_kept > canary.num_features:
        raise ConfigError(
            "config.canary.num_kept must be at most config.canary.num_features ="
            f" {canary.num_features}; got {canary.num_kept}."
        )
    for name, make in VIEWS.items():
        rows = len(make().labels)
        wanted = config[name].num_train + config[name].num_validation
        if wanted >= rows:
            raise ConfigError(
                f"config.{name}.num_train and num_validation must leave test rows of"
                f" {rows}; got {wanted} together."
            )


def num_encoders(config) -> int:
    """How many autoencoders are stacked: the first layers of the networks."""
    return len(config.autoencoders.amount)


def run(config, run_dir):
    """Runs the stages and reports; the same command resumes."""
    problems = functools.cache(lambda seed: sources.connectomes(config, seed))
    stack = functools.cache(lambda: network_stack(config, problems))
    count = num_encoders(config)
    encoders = {
        f"encoder_{number + 1}": lambda done, number=number: run_encoder(
            config, stack(), number, encoders_of(done, number), run_dir
        )
        for number in range(count)
    }
    done = run_stages(
        run_dir,
        config,
        {
            "canary": lambda _: folded.run_canary(config),
            "digits": lambda _: run_views(config, "digits", run_dir),
            "cancer": lambda _: run_views(config, "cancer", run_dir),
            "connectomes": lambda _: folded.run_connectomes(config, problems),
            **encoders,
            "network": lambda done: run_network(
                config, problems, stack(), encoders_of(done, count), run_dir
            ),
        },
    )
    scalars = verdicts.summarise(config, done)
    figures.add_tables(run_dir, config, done)
    figures.add_figures(run_dir, config, done)
    run_dir.finish(
        title=config.title,
        summary=verdicts.describe(config, done, scalars),
        scalars=scalars,
        claims=verdicts.make_claims(config, done),
        checks=verdicts.make_checks(config, done),
    )


def split_views(config, name, views) -> list:
    """One split into train, validation and test for each seed, stratified."""
    settings = config[name]
    sizes = {
        "train": settings.num_train,
        "validation": settings.num_validation,
        "test": data.partition.REST,
    }
    return [
        data.split_rows(
            name,
            len(views.labels),
            sizes,
            seed=config.seed + 1000 * seed,
            labels=views.labels,
        )
        for seed in range(settings.num_seeds)
    ]


def run_views(config, name, run_dir):
    """Members of the views of one data set, and what they say together, by seed.

    Returns:
        `accuracy [seed, system]` of the test rows, `validation [seed, view]`, `weights
        [seed, rule, view]`, `union [seed]` (one member that sees all columns), and
        `oracle [seed]` (any view right).
    """
    views = VIEWS[name]()
    splits = split_views(config, name, views)
    stack = stacks.view_stack(views, splits, config.view_model.members_per_view)
    said = stacks.train_views(config, stack, name, run_dir)
    names = tuple(views.columns)
    results = {
        "accuracy": [],
        "validation": [],
        "weights": [],
        "union": [],
        "oracle": [],
    }
    for logits, split in zip(said, splits):
        judged = votes.judge(logits[:-1], views.labels, split, names)
        truth = views.labels[split["test"]]
        is_right = judged["votes"] == truth
        results["accuracy"].append(is_right.mean(axis=1))
        results["oracle"].append(is_right[: len(names)].any(axis=0).mean())
        results["validation"].append(judged["validation"])
        results["weights"].append(judged["weights"])
        together = logits[-1][split["test"]].argmax(axis=1)
        results["union"].append((together == truth).mean())
    arrays = {key: np.stack(value) for key, value in results.items()}
    return arrays | {"systems": np.array(votes.systems(names))}


def training_job(config, *, shapes_only=False):
    """The networks of the connectomes, the largest stack of the run.

    In the run half of them start from autoencoders; here all begin with new weights,
    which costs the same.

    Args:
        config: of the run.
        shapes_only: leave ABIDE, where it is not at hand, as its shapes.
    """
    settings = config.connectomes
    if shapes_only and settings.source == "abide" and not settings.root:
        return stacks.network_job(config, stacks.network_shapes(config))
    problems = functools.cache(lambda seed: sources.connectomes(config, seed))
    return stacks.network_job(config, network_stack(config, problems))


def network_stack(config, problems):
    """The stack of all neural members of the connectomes."""
    seeds = range(config.network.num_seeds)
    splits = [folded.connectome_folds(config, problems(s), s) for s in seeds]
    return stacks.network_stack(config, [problems(s) for s in seeds], splits)


def run_encoder(config, stack, number, below, run_dir):
    """One layer of autoencoders of every member: weights and what training reported."""
    encoder, metrics = stacks.train_autoencoder(config, stack, number, below, run_dir)
    return encoder | metrics


def encoders_of(done, number):
    """Kernels and biases of the first `number` autoencoders."""
    return [
        {name: done[f"encoder_{place + 1}"][name] for name in ("kernel", "bias")}
        for place in range(number)
    ]


def run_network(config, problems, stack, encoders, run_dir):
    """Classifiers that start from the encoders or do not, and their votes, by seed.

    Returns:
        `accuracy [seed, system]` over all held-out rows of those that start from the
        encoders, `accuracy_new [seed, system]` of the others, and `arrived`, the
        largest difference between an encoder and the layer it started.
    """
    said, arrived = stacks.train_network(config, stack, encoders, run_dir)
    results = {"accuracy": [], "accuracy_new": []}
    for seed in range(config.network.num_seeds):
        problem = problems(seed)
        names = tuple(problem.columns)
        folds = folded.connectome_folds(config, problem, seed)
        count = len(problem.labels)
        rows = slice(seed * count, (seed + 1) * count)
        for key, logits in zip(results, said[:, seed]):
            judged = [
                votes.judge(
                    fold[:, rows],
                    problem.labels,
                    split,
                    names,
                    published=config.connectomes.published_weights,
                )["votes"]
                for fold, split in zip(logits, folds)
            ]
            named = folded.whole(judged, folds)
            results[key].append((named == problem.labels).mean(axis=1))
    return {
        **{key: np.stack(values) for key, values in results.items()},
        "systems": np.array(votes.systems(names, with_published=True)),
        "arrived": np.float64(arrived),
    }
