"""What `soups.py` concludes: scalars, claims and our own checks."""

import numpy as np

from ensjax.experiment import check, check_at_least, claim
from ensjax.experiment.claims import interval_text
from ensjax.experiment.fields import load_beside

ways = load_beside(__file__, "soups_ways")
trajectory = load_beside(__file__, "soups_trajectory")

SOUPS = "Wortsman et al. 2022, arXiv:2203.05482"
SWA = "Izmailov et al. 2018, arXiv:1803.05407"
SWAG = "Maddox et al. 2019, arXiv:1902.02476"
UNITS = {"accuracy": 100, "nll": 1}  # accuracies are given in per cent
WAYS = tuple(ways.WAYS)


def tests_of(soups) -> list[str]:
    """Names of the test sets, the one in distribution first."""
    return [str(name) for name in soups["datasets"][0]][1:]


def on(soups, values, test) -> np.ndarray:
    """Of `[..., dataset]`: one set, "id" (the first of tests) or "ood" (their mean)."""
    if test in ("id", "ood"):
        return values[..., 1] if test == "id" else values[..., 2:].mean(axis=-1)
    return values[..., ["validation", *tests_of(soups)].index(test)]


def of_way(soups, way, *, score="accuracy", test="id") -> np.ndarray:
    """A way's accuracy (%) or NLL on a data set, `[seed]`; "individual": their mean."""
    place = ways.SCORES.index(score)
    if way == "individual":
        values = soups["members"][:, place].mean(axis=1)
    else:
        values = soups["ways"][:, place, WAYS.index(way)]
    return UNITS[score] * on(soups, values, test)


def minus(soups, way, other, **where) -> np.ndarray:
    """How much one way is above another, `[seed]`."""
    return of_way(soups, way, **where) - of_way(soups, other, **where)


def share_of_gain(soups, *, test="id") -> np.ndarray:
    """The uniform soup's part of the output ensemble's gain over a member, `[seed]`.

    NaN (which decides nothing) in a seed where the ensemble gains nothing.
    """
    own = minus(soups, "uniform", "individual", test=test)
    whole = minus(soups, "ensemble", "individual", test=test)
    return np.where(whole > 0, own / np.where(whole > 0, whole, 1.0), np.nan)


def along(done, kind, *, score="accuracy") -> np.ndarray:
    """What an average along a run reaches, `[run]`; accuracies in per cent."""
    place = list(trajectory.KINDS).index(kind)
    values = done["trajectory"]["values"][ways.SCORES.index(score)]
    return UNITS[score] * values[:, place]


def summarise(config, done) -> dict[str, float]:
    """Flat scalars: means over seeds; accuracies in per cent."""
    del config
    scalars = {"num_members_not_finite": num_frozen(done)} | summarise_soups(done)
    for kind in trajectory.KINDS:
        for score in ways.SCORES:
            scalars[f"along_{kind}_{score}"] = along(done, kind, score=score).mean()
    return {name: float(value) for name, value in scalars.items()}


def num_frozen(done) -> int:
    """Members of all parts that stopped being finite."""
    return sum(int((part["frozen_steps"] >= 0).sum()) for part in done.values())


def summarise_soups(done) -> dict[str, float]:
    """Scalars of the first part."""
    soups, scalars = done["soups"], {}
    for way in ("individual", *WAYS):
        for test in ("validation", *tests_of(soups), "ood"):
            for score in ways.SCORES:
                values = of_way(soups, way, score=score, test=test)
                name = f"{way}_{test.replace(' ', '_')}_{score}"
                scalars[name] = float(values.mean())
    for number, name in enumerate(("greedy", "greedy_nll")):
        scalars[f"{name}_num_kept"] = float(soups["num_kept"][:, number].mean())
        selected = float(soups["num_selected"][:, number].mean())
        scalars[f"{name}_ensemble_num_members"] = selected
    scalars["top_k"] = float(soups["top_k"].mean())
    for number, name in enumerate(("learned", "learned_layer")):
        scalars[f"{name}_scale"] = float(soups["scales"][:, number].mean())
    return scalars


def make_claims(config, done) -> list[dict]:
    """The papers' statements, one value per seed."""
    return [*soup_claims(config, done["soups"]), *trajectory_claims(done)]


def soup_claims(config, soups) -> list[dict]:
    """Those of the paper of soups."""

    def about(name, values, expected, *, side=">", bound=0.0, certainty="read"):
        return claim(
            f"model-soups.{name}",
            paper=SOUPS,
            source="table of recipes, CLIP ViT-B/32 on ImageNet and five shifted sets",
            certainty=certainty,
            scale=config.scale,
            expected=expected,
            values_by_seed=values,
            side=side,
            bound=bound,
        )

    def points(name, what, way, other, expected, *, test, **others):
        values = minus(soups, way, other, test=test)
        place = "in" if test == "id" else "out of"
        text = f"{name}: accuracy {place} distribution, {what} (points)"
        return about(text, values, expected, **others)

    kept = soups["num_kept"][:, 0] / config.num_members
    share = share_of_gain(soups)
    return [
        points(
            "a",
            "greedy soup minus best single model",
            "greedy",
            "best",
            "+0.6 (81.0 against 80.4 %)",
            test="id",
        ),
        points(
            "b",
            "uniform soup minus best single model",
            "uniform",
            "best",
            "+3.6 (51.6 against 48.0 %)",
            test="ood",
        ),
        points(
            "c",
            "greedy soup minus best single model",
            "greedy",
            "best",
            "+2.9 (50.9 against 48.0 %)",
            test="ood",
        ),
        points(
            "d",
            "learned soup by layer minus greedy soup",
            "learned_layer",
            "greedy",
            "+0.4 (81.4 against 81.0 %)",
            test="id",
        ),
        points(
            "e",
            "uniform soup minus best single model",
            "uniform",
            "best",
            "-0.4 (80.0 against 80.4 %)",
            test="id",
            side="<",
        ),
        about(
            "f: share of the fine-tunes that the greedy soup keeps",
            kept,
            "0.07 (5 of 72)",
            side="<",
            bound=0.1,
            certainty="recalled",
        ),
        points(
            "g",
            "greedy output ensemble minus greedy soup",
            "greedy_ensemble",
            "greedy",
            "+0.9",
            test="id",
            certainty="recalled",
        ),
        points(
            "h",
            "greedy soup minus greedy output ensemble",
            "greedy",
            "greedy_ensemble",
            "+1.3",
            test="ood",
            certainty="recalled",
        ),
        about(
            "i: uniform soup's share of the gain in distribution of the output ensemble"
            " over the mean fine-tune",
            share,
            "0.6, at one model's cost",
            bound=0.5,
            certainty="recalled",
        ),
    ]


def trajectory_claims(done) -> list[dict]:
    """Those of the papers of averages along a run."""
    claims = []
    for name, paper, text, values, side in (
        (
            "swa.a",
            SWA,
            "accuracy, SWA minus last weights (points)",
            along(done, "swa") - along(done, "last"),
            ">",
        ),
        (
            "swag.a",
            SWAG,
            "NLL, SWAG minus SWA",
            along(done, "swag", score="nll") - along(done, "swa", score="nll"),
            "<",
        ),
        (
            "swag.b",
            SWAG,
            "NLL, SWAG minus its diagonal alone",
            along(done, "swag", score="nll") - along(done, "swag_diag", score="nll"),
            "<",
        ),
    ):
        entry = claim(
            f"{name}: {text}",
            paper=paper,
            source="tables of results on CIFAR",
            certainty="recalled",
            scale="toy",
            expected=f"{side} 0",
            values_by_seed=values,
            side=side,
            bound=0.0,
        )
        claims.append(entry)
    return claims


def make_checks(config, done) -> list[dict]:
    """Our own bounds, from pilots on scikit-learn's digits."""
    soups = done["soups"]
    known = minus(soups, "uniform", "individual")
    other = minus(soups, "uniform", "individual", test="ood")
    greedy = minus(soups, "greedy", "best", test="validation")
    last = along(done, "last")
    nll = {k: along(done, k, score="nll").mean() for k in ("last", "swa", "swag")}
    frozen = num_frozen(done)
    words = "accuracy, smallest of all seeds (points)"
    return [
        check_at_least(
            f"uniform soup minus mean fine-tune, in distribution: {words}",
            float(known.min()),
            0.3,
        ),
        check_at_least(
            f"uniform soup minus mean fine-tune, out of distribution: {words}",
            float(other.min()),
            0.8,
        ),
        check_at_least(
            f"greedy soup minus best single model, on validation rows: {words}",
            float(greedy.min()),
            0.0,
        ),
        check_at_least(
            f"SWA minus last weights: {words}",
            float((along(done, "swa") - last).min()),
            1.0,
        ),
        check_at_least(
            f"EMA minus last weights: {words}",
            float((along(done, "ema") - last).min()),
            1.0,
        ),
        check(
            "mean NLL, SWA minus last weights",
            bound="< 0",
            measured=nll["swa"] - nll["last"],
            passed=nll["swa"] < nll["last"],
        ),
        check(
            "mean NLL, SWAG minus SWA",
            bound="< 0",
            measured=nll["swag"] - nll["swa"],
            passed=nll["swag"] < nll["swa"],
        ),
        check_at_least("fine-tunes of each seed", config.num_members, 72),
        check_at_least("seeds", config.num_seeds, 5),
        check("members not finite", bound="0", measured=frozen, passed=frozen == 0),
    ]


def describe(config, done) -> str:
    """The summary: what was done, what came out, what it does not show."""
    soups = done["soups"]

    def shown(way):
        known = of_way(soups, way).mean()
        return f"{known:.1f} / {of_way(soups, way, test='ood').mean():.1f} %"

    names = {"individual": "mean fine-tune"} | ways.WAYS
    listed = "; ".join(f"{name} {shown(way)}" for way, name in names.items())
    kept, gain = soups["num_kept"], minus(soups, "greedy", "best")
    severities = ", ".join(f"{k} {v:g}" for k, v in config.shifts.items())
    return (
        f"{config.num_seeds} seeds. Of each, one MLP is trained on"
        f" {config.num_pretraining} noisy digits of MNIST (14 x 14 pixels, noise"
        f" {config.noise:g}) and fine-tuned {config.num_members} times on"
        f" {config.num_train} others, with random learning rate, weight decay, label"
        " smoothing, Mixup and noise. Everything is chosen on"
        f" {config.num_validation:,} validation rows and judged on"
        f" {config.num_test:,} test rows; out of distribution is the mean over these"
        f" rows shifted ({severities}) and over scikit-learn's digits."
        f" Accuracy in / out of distribution: {listed}. The greedy soup keeps"
        f" {kept[:, 0].mean():.1f} of {config.num_members} ({kept[:, 0].min()} to"
        f" {kept[:, 0].max()}), by NLL {kept[:, 1].mean():.1f}; the soup of the top k"
        f" takes {soups['top_k'].mean():.1f}. A soup costs one model at inference, the"
        f" output ensemble of all {config.num_members}. Greedy soup minus best single"
        f" model in distribution: {interval_text(gain, form='+.2f')} points. Averages"
        f" along {config.trajectory.num_runs} runs with constant learning rate on"
        " scikit-learn's digits, accuracy / NLL: "
        + "; ".join(
            f"{name} {along(done, kind).mean():.1f} % /"
            f" {along(done, kind, score='nll').mean():.3f}"
            for kind, name in trajectory.KINDS.items()
        )
        + ". All seeds share their digits and the split of them, so that intervals are"
        " of training alone; no CLIP model and no ImageNet were used."
    )
