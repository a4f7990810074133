"""scikit-learn members of `weighted_views.py` in honest folds, and one leaking one."""

import itertools

import numpy as np

from ensjax import data
from ensjax.experiment.fields import load_beside

sources = load_beside(__file__, "weighted_views_data")
stacks = load_beside(__file__, "weighted_views_stacks")
votes = load_beside(__file__, "weighted_views_votes")

WITH = "with age and sex"


def run_canary(config):
    """Accuracy on noise: features selected inside the folds, and on all rows before.

    Returns:
        `inside [seed]` and `outside [seed]`, held-out accuracy over all folds.
    """
    from sklearn.linear_model import LogisticRegression

    canary = config.canary
    accuracy = {"inside": [], "outside": []}
    for seed in range(canary.num_seeds):
        x, labels = sources.noise(config, seed)
        folds = data.make_folds(
            "noise", len(labels), canary.num_folds, seed=seed, labels=labels
        )
        stage = data.SelectByF(canary.num_kept, num_classes=2)
        honest = data.fit_masked_stages((stage,), x, labels, folds).transform(x)
        # The leak: one selection on all rows, test rows among them.
        leaking = stage.fit(x, labels, np.ones(len(labels)))["columns"]
        chosen = x[:, np.asarray(leaking)]
        for name, by_fold in (
            ("inside", np.asarray(honest)),
            ("outside", [chosen] * canary.num_folds),
        ):
            right = []
            for fold, split in zip(by_fold, folds):
                model = LogisticRegression(max_iter=1000)
                model.fit(fold[split["train"]], labels[split["train"]])
                said = model.predict(fold[split["test"]])
                right.append(said == labels[split["test"]])
            accuracy[name].append(np.concatenate(right).mean())
    return {name: np.array(values) for name, values in accuracy.items()}


def connectome_folds(config, problem, seed: int) -> list:
    """Folds stratified by site and diagnosis, each with validation rows of its own."""
    settings = config.connectomes
    strata = problem.groups * problem.num_classes + problem.labels
    folds = data.make_folds(
        f"connectomes of seed {seed}",
        len(problem.labels),
        settings.num_folds,
        seed=config.seed + 1000 * seed,
        labels=strata,
    )
    return [
        folds.split(
            number,
            validation_size=float(settings.validation_share),
            seed=config.seed + 1000 * seed,
            labels=strata,
        )
        for number in range(settings.num_folds)
    ]


def whole(by_fold, folds) -> np.ndarray:
    """Votes `[system, example]` of all rows, each from the fold that held it out."""
    named = np.full((len(by_fold[0]), folds[0].num_examples), -1)
    for judged, split in zip(by_fold, folds):
        named[:, split["test"]] = judged
    return named


def run_connectomes(config, problems):
    """Ridge-logistic members of every view in honest folds, by seed.

    Returns:
        `accuracy [seed, system]` without and `accuracy_with [seed, system]` with age
        and sex, `alone [seed]` (age and sex only), `vote [seed, example]`, the class
        that the vote by accuracy with age and sex names, `labels` and `sites`, and, if
        it is known which features tell, `inside`, `all` and `overlap [seed]`: recall of
        them in the top by F inside the folds and on all rows, and the mean Jaccard
        index of the folds' lists.
    """
    settings, results = config.connectomes, {}

    def keep(name, value):
        results.setdefault(name, []).append(value)

    for seed in range(settings.num_seeds):
        problem = problems(seed)
        folds = connectome_folds(config, problem, seed)
        names = tuple(problem.columns)
        selected = stacks.select_columns(settings, problem, folds)
        for suffix, extra in (("", np.zeros(0, int)), ("_with", problem.extra)):
            judged = [
                votes.judge(
                    [
                        _log_odds(
                            config,
                            problem,
                            split,
                            np.concatenate([selected[name][number], extra]),
                        )
                        for name in names
                    ],
                    problem.labels,
                    split,
                    names,
                    published=settings.published_weights,
                )["votes"]
                for number, split in enumerate(folds)
            ]
            named = whole(judged, folds)
            keep(f"accuracy{suffix}", (named == problem.labels).mean(axis=1))
        keep("vote", named[votes.systems(names).index(votes.BY_ACCURACY)])
        alone = [
            _log_odds(config, problem, split, problem.extra)[
                None, split["test"]
            ].argmax(axis=2)
            for split in folds
        ]
        keep("alone", (whole(alone, folds) == problem.labels).mean())
        keep("labels", problem.labels)
        keep("sites", problem.groups)
        if problem.planted is not None:
            inside, everywhere, overlap = _recall(settings, problem, selected)
            keep("inside", inside)
            keep("all", everywhere)
            keep("overlap", overlap)
    arrays = {name: np.stack(values) for name, values in results.items()}
    return arrays | {"systems": np.array(votes.systems(names, with_published=True))}


def _log_odds(config, problem, split, columns):
    """Log-probabilities of all rows `[example, class]` by one ridge-logistic member."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    stages = [
        StandardScaler(),
        LogisticRegression(C=config.connectomes.inverse_penalty, max_iter=1000),
    ]
    x = problem.x[:, columns]
    (pipeline,) = data.fit_in_splits(stages, x, problem.labels, [split])
    return pipeline.estimator.predict_log_proba(pipeline.transform(x))


def _recall(settings, problem, selected):
    """Recall of planted features in the top by F, and overlap of the folds' lists."""
    inside, everywhere, overlap = [], [], []
    for name, planted in problem.planted.items():
        columns = problem.columns[name]
        tops = [set(fold[: settings.num_top]) for fold in selected[name]]
        inside += [len(top & set(planted)) / len(planted) for top in tops]
        score = data.f_scores(
            problem.x[:, columns], problem.labels, np.ones(len(problem.labels)), 2
        )
        best = columns[np.argsort(-np.asarray(score), kind="stable")]
        top = set(best[: settings.num_top])
        everywhere.append(len(top & set(planted)) / len(planted))
        overlap += [len(a & b) / len(a | b) for a, b in itertools.combinations(tops, 2)]
    return np.mean(inside), np.mean(everywhere), np.mean(overlap)
