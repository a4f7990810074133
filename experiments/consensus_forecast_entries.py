"""Forecasters and what they forecast: diabetes, wine, and a simulated disease.

Every function returns arrays `[member, batch, ...]` of one repetition; forecasters are
scikit-learn's, fitted on the training rows alone.
"""

from typing import NamedTuple

import numpy as np
from sklearn import (
    dummy,
    ensemble,
    kernel_ridge,
    linear_model,
    naive_bayes,
    neighbors,
    svm,
    tree,
)
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_diabetes, load_wine
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.gaussian_process import GaussianProcessClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ensjax.data import train_test_split
from ensjax.sources import encode_labels, from_sklearn

CLASSES = ("CN", "MCI", "AD")


class Study(NamedTuple):
    """One simulated cohort.

    Attributes:
        features: by name of the feature set, `[person, feature]`.
        diagnosis: at the forecast, `[person]`, 0 to 2.
        ventricles: at the forecast, `[person]`.
        score: at the forecast, `[person]`.
    """

    features: dict[str, np.ndarray]
    diagnosis: np.ndarray
    ventricles: np.ndarray
    score: np.ndarray


def regressors(num_trees, seed):
    """Twenty forecasters of a number, from guessing to boosting."""
    return {
        "mean": dummy.DummyRegressor(),
        "median": dummy.DummyRegressor(strategy="median"),
        "linear": linear_model.LinearRegression(),
        "ridge": linear_model.Ridge(10.0),
        "strong ridge": linear_model.Ridge(1000.0),
        "lasso": linear_model.Lasso(1.0),
        "elastic net": linear_model.ElasticNet(1.0),
        "Bayesian ridge": linear_model.BayesianRidge(),
        "Huber": linear_model.HuberRegressor(max_iter=1000),
        "1-NN": neighbors.KNeighborsRegressor(1),
        "5-NN": neighbors.KNeighborsRegressor(5),
        "20-NN": neighbors.KNeighborsRegressor(20),
        "linear SVM": svm.SVR(kernel="linear", C=10.0),
        "SVM": svm.SVR(C=100.0),
        "kernel ridge": kernel_ridge.KernelRidge(kernel="rbf", gamma=0.05),
        "stump": tree.DecisionTreeRegressor(max_depth=1, random_state=seed),
        "tree": tree.DecisionTreeRegressor(random_state=seed),
        "forest": ensemble.RandomForestRegressor(num_trees, random_state=seed),
        "extra trees": ensemble.ExtraTreesRegressor(num_trees, random_state=seed),
        "boosting": ensemble.GradientBoostingRegressor(
            n_estimators=num_trees, random_state=seed
        ),
    }


def classifiers(num_trees, seed):
    """Sixteen forecasters of a class, from guessing to boosting."""

    def calibrated(machine):
        return CalibratedClassifierCV(machine, cv=3, ensemble=False)

    return {
        "prior": dummy.DummyClassifier(),
        "logistic": linear_model.LogisticRegression(max_iter=1000),
        "strong logistic": linear_model.LogisticRegression(C=0.01, max_iter=1000),
        "linear discriminant": LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.1),
        "Gaussian process": GaussianProcessClassifier(random_state=seed),
        "naive Bayes": naive_bayes.GaussianNB(),
        "1-NN": neighbors.KNeighborsClassifier(1),
        "5-NN": neighbors.KNeighborsClassifier(5),
        "15-NN": neighbors.KNeighborsClassifier(15),
        "SVM": calibrated(svm.SVC(random_state=seed)),
        "linear SVM": calibrated(svm.SVC(kernel="linear", random_state=seed)),
        "stump": tree.DecisionTreeClassifier(max_depth=1, random_state=seed),
        "tree": tree.DecisionTreeClassifier(random_state=seed),
        "forest": ensemble.RandomForestClassifier(num_trees, random_state=seed),
        "extra trees": ensemble.ExtraTreesClassifier(num_trees, random_state=seed),
        "boosting": ensemble.GradientBoostingClassifier(
            n_estimators=num_trees, random_state=seed
        ),
    }


def forecast_diabetes(config, seed):
    """Points with 50 % intervals of disease progression; `[member, batch]`."""
    x, y = load_diabetes(return_X_y=True)
    train, test = train_test_split(
        len(y), test_size=1 - config.diabetes.train_share, seed=config.seed + seed
    )
    entries = regressors(config.num_trees, seed)
    points = _forecast_points(entries, x[train], y[train], x[test])
    return points | {"targets": y[test], "names": np.asarray(list(entries))}


def forecast_wine(config, seed):
    """Probabilities of three wines, `[member, batch, class]`."""
    x, y = load_wine(return_X_y=True)
    num_test = len(y) - config.wine.num_train
    train, test = train_test_split(
        len(y), test_size=num_test, seed=config.seed + seed, labels=y
    )
    entries = classifiers(config.num_trees, seed)
    probs = _forecast_classes(entries, x[train], y[train], x[test], (0, 1, 2))
    return {"probs": probs, "targets": y[test], "names": np.asarray(list(entries))}


# Entries of the simulated study: learner and the features it is given. A learner with
# several feature sets makes pairs of otherwise equal entries.
FEATURE_SETS = {
    "last": (),
    "marker": ("marker",),
    "summary": ("summary",),
    "all": ("marker", "summary"),
}
STUDY_ENTRIES = (
    ("constant", "last"),
    *(("linear", features) for features in FEATURE_SETS),
    *(("forest", features) for features in FEATURE_SETS),
    ("boosting", "last"),
    ("boosting", "all"),
    ("SVM", "summary"),
    ("SVM", "all"),
    ("k-NN", "last"),
    ("naive Bayes", "last"),
)


def study_names():
    return [f"{learner} ({features})" for learner, features in STUDY_ENTRIES]


def study_learners(num_trees, seed):
    """Learner to its classifier and its regressor."""
    all_regressors = regressors(num_trees, seed)
    all_classifiers = classifiers(num_trees, seed)
    pairs = {
        "constant": ("prior", "median"),
        "linear": ("logistic", "ridge"),
        "forest": ("forest", "forest"),
        "boosting": ("boosting", "boosting"),
        "SVM": ("SVM", None),
        "k-NN": ("15-NN", "20-NN"),
        "naive Bayes": ("naive Bayes", "Bayesian ridge"),
    }
    return {
        name: (
            all_classifiers[classifier],
            svm.SVR() if regressor is None else all_regressors[regressor],
        )
        for name, (classifier, regressor) in pairs.items()
    }


def simulate_study(config, num_people, rng):
    """A cohort whose stage z rises with time; three outcomes are read off it."""
    settings = config.simulation
    onset = rng.normal(0, settings.onset_sd, num_people)
    rate = settings.rate_median * np.exp(
        rng.normal(0, settings.rate_log_sd, num_people)
    )
    base = rng.normal(size=num_people)

    def ventricles(stage):
        weights = settings.ventricles
        noise = rng.normal(0, weights.noise_sd, stage.shape)
        return weights.base_weight * base + weights.stage_weight * stage + noise

    def score(stage, noise_sd):
        noise = rng.normal(0, noise_sd, stage.shape)
        return settings.score.stage_weight * stage + noise

    def diagnosis(stage):
        return np.digitize(stage, settings.class_edges)

    years = np.asarray(settings.visit_years)
    stages = onset + rate * years[:, None]  # [visit, person]
    seen = np.stack(
        [ventricles(stages), score(stages, settings.score.noise_sd)], axis=-1
    )
    last = np.column_stack([seen[-1], diagnosis(stages[-1])])
    away = years - years.mean()
    slope = np.einsum("v,vpq->pq", away, seen) / (away**2).sum()
    marker = settings.marker.onset_weight * onset + rng.normal(
        0, settings.marker.noise_sd, num_people
    )
    more = {
        "marker": marker[:, None],
        "summary": np.column_stack([slope, seen.max(0), seen.min(0)]),
    }
    at_forecast = onset + rate * (years[-1] + settings.forecast_years)
    return Study(
        features={
            name: np.column_stack([last, *(more[part] for part in parts)])
            for name, parts in FEATURE_SETS.items()
        },
        diagnosis=diagnosis(at_forecast),
        ventricles=ventricles(at_forecast),
        score=score(at_forecast, settings.score.forecast_noise_sd),
    )


def forecast_study(config, seed):
    """Three outcomes of a simulated cohort, forecast by every entry.

    `probs [member, batch, class]`, and for "ventricles" and "score" points with
    intervals, `<outcome>_points`, `_lower`, `_upper` and `_targets`.
    """
    rng = np.random.default_rng((config.seed, seed, 1))
    settings = config.simulation
    train = simulate_study(config, settings.num_train, rng)
    test = simulate_study(config, settings.num_test, rng)
    found = {"targets": test.diagnosis, "names": np.asarray(study_names())}
    parts = []
    for learner, features in STUDY_ENTRIES:
        classifier, regressor = study_learners(config.num_trees, seed)[learner]
        x, x_test = train.features[features], test.features[features]
        one = {learner: classifier}
        labels = encode_labels(train.diagnosis, range(len(CLASSES)))
        part = {"probs": _forecast_classes(one, x, labels, x_test, range(len(CLASSES)))}
        for outcome in ("ventricles", "score"):
            y = getattr(train, outcome)
            points = _forecast_points({learner: regressor}, x, y, x_test)
            part |= {f"{outcome}_{name}": value for name, value in points.items()}
        parts.append(part)
    for name in parts[0]:
        found[name] = np.concatenate([part[name] for part in parts])
    for outcome in ("ventricles", "score"):
        found[f"{outcome}_targets"] = getattr(test, outcome)
    return found


def break_points(config, seed, points, lower, upper, targets):
    """The same forecasts, a share of the entries broken; and which.

    The four ways in turn: times ten, zero, a constant, and noise that is added.
    """
    rng = np.random.default_rng((config.seed, seed, 2))
    is_broken = _draw_broken(config, rng, len(points))
    sd = targets.std()
    whole = np.stack([points, lower, upper]).copy()  # [part, member, batch]
    for place, member in enumerate(np.flatnonzero(is_broken)):
        if place % 4 == 0:
            whole[:, member] *= 10
        elif place % 4 == 1:
            whole[:, member] = 0
        elif place % 4 == 2:
            whole[:, member] = config.broken.constant_sd * sd
        else:
            noise = rng.normal(0, config.broken.noise_sd * sd, whole.shape[2])
            whole[:, member] += noise
    return *whole, is_broken


def break_probs(config, seed, probs):
    """The same forecasts, a share of the entries broken; and which.

    The three ways in turn: classes shifted by one, always the first, and chance.
    """
    rng = np.random.default_rng((config.seed, seed, 3))
    is_broken = _draw_broken(config, rng, len(probs))
    probs, num_classes = probs.copy(), probs.shape[-1]
    for place, member in enumerate(np.flatnonzero(is_broken)):
        if place % 3 == 0:
            probs[member] = np.roll(probs[member], 1, axis=-1)
        elif place % 3 == 1:
            probs[member] = np.eye(num_classes)[0]
        else:
            chosen = rng.integers(num_classes, size=probs.shape[1])
            probs[member] = np.eye(num_classes)[chosen]
    return probs, is_broken


def _draw_broken(config, rng, num_members):
    count = round(config.broken.share * num_members)
    is_broken = np.zeros(num_members, bool)
    is_broken[rng.choice(num_members, count, replace=False)] = True
    return is_broken


def _forecast_points(entries, x, y, x_test):
    """Points, and intervals as wide as half of the errors on the training rows.

    So do many: learners that remember their rows come out far too sure.
    """
    fitted = {
        name: make_pipeline(StandardScaler(), model).fit(x, y)
        for name, model in entries.items()
    }
    points = np.asarray(from_sklearn(fitted, x_test).points, np.float64)
    known = np.asarray(from_sklearn(fitted, x).points, np.float64)
    half = np.median(np.abs(known - y), axis=1)[:, None]
    return {"points": points, "lower": points - half, "upper": points + half}


def _forecast_classes(entries, x, labels, x_test, classes):
    fitted = {
        name: make_pipeline(StandardScaler(), model).fit(x, labels)
        for name, model in entries.items()
    }
    said = from_sklearn(fitted, x_test, classes=classes, kind="probs")
    return np.asarray(said.probs, np.float64)
