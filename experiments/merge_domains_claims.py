"""What `merge_domains.py` concludes: scalars, claims and our own checks."""

import numpy as np

from ensjax.experiment import check, claim
from ensjax.experiment.claims import interval_text
from ensjax.experiment.fields import load_beside

scores = load_beside(__file__, "merge_domains_scores")
methods, training = scores.methods, scores.training

FISHER = "Matena and Raffel 2022, arXiv:2111.09832"
REGMEAN = "Jin et al. 2023, arXiv:2212.09849"
TASKS = "Ilharco et al. 2023, arXiv:2212.04089"
TIES = "Yadav et al. 2023, arXiv:2306.01708"
DARE = "Yu et al. 2024, arXiv:2311.03099"
STOCK = "Jang et al. 2024, arXiv:2403.19522"
CRUMBS = "Davari and Belilovsky 2024, arXiv:2312.06795"
DELLA = "Deep et al. 2024, arXiv:2406.11617"
SCE = "Wan et al. 2024, arXiv:2408.07990"
# One method above another: paper, both, where it is said, the paper's numbers. All of
# them are of other models and tasks.
ABOVE = (
    (TASKS, "task_arithmetic", "base", "section on addition", "recalled"),
    (FISHER, "fisher", "mean", "experiments on merging", "recalled"),
    (REGMEAN, "regmean", "fisher", "abstract", "read"),
    (REGMEAN, "regmean", "mean", "experiments", "recalled"),
    (REGMEAN, "regmean", "predictive", "abstract", "read"),
    (TIES, "ties", "task_arithmetic", "main table, with validation", "recalled"),
    (TIES, "ties", "mean", "main table", "recalled"),
    (STOCK, "model_stock", "mean", "abstract", "read"),
    (CRUMBS, "breadcrumbs", "task_arithmetic", "abstract", "recalled"),
    (DELLA, "della", "dare_ties", "abstract", "recalled"),
    (DELLA, "della", "ties", "abstract", "recalled"),
    (SCE, "sce", "task_arithmetic", "experiments", "recalled"),
    (SCE, "sce", "ties", "experiments", "recalled"),
)


def label(name: str) -> str:
    """How a method or a reference is called."""
    known = methods.METHODS.get(name)
    return scores.REFERENCES[name] if known is None else known.label


def value(done, name) -> np.ndarray:
    """Test accuracy (%) of a method (tuned) or a reference, `[seed]`."""
    if name in scores.REFERENCES:
        return scores.reference(done, name)
    return scores.tuned(done, name)


def split_sizes(config) -> tuple[int, int]:
    """Rows of a seed that are not tested on, and test rows."""
    return 1_797 - config.num_test, config.num_test


def summarise(config, done) -> dict[str, float]:
    """Flat scalars: means over seeds of test accuracies, in per cent."""
    found = done["train"]
    scalars = {"num_members_not_finite": (found["frozen_steps"] >= 0).sum()}
    scalars["members_own_domain"] = scores.own_domain(done).mean()
    singles = 100 * found["members"][:, :, scores.TEST, 1:]
    scalars["members_all_domains"] = singles.mean()
    off = ~np.eye(len(training.DOMAINS), dtype=bool)
    scalars["cosine_of_task_vectors"] = found["cosines"][:, off].mean()
    for name in (*scores.REFERENCES, "geometric_mean", *scores.merges(config)):
        is_merge = name in methods.METHODS
        read = scores.tuned_views if is_merge else scores.reference_views
        views = read(done, name)
        scalars[name] = views[:, 1:].mean()
        for place, view in enumerate(training.VIEWS):
            scalars[f"{name}_{view}"] = views[:, place].mean()
        if is_merge:
            knobs = methods.candidates(config, name)
            best = scores.chosen(done, name)
            for knob, values in knobs.items():
                scalars[f"{name}_chosen_{knob}"] = np.median(values[best])
    for name, knobs in _published(config):
        if (fixed := scores.at(config, done, name, **knobs)) is not None:
            tail = "_".join(f"{k}_{v:g}" for k, v in knobs.items())
            scalars[f"{name}_at_{tail}"] = fixed.mean()
    for drop in (0.5, 0.9, 0.99):
        if (change := scores.alone(config, done, drop)) is not None:
            scalars[f"dare_of_one_member_{drop:g}"] = change.mean()
    return {name: float(x) for name, x in scalars.items()}


def _published(config):
    """Knobs that papers give without validation rows."""
    del config
    return (
        ("task_arithmetic", {"lam": 0.4}),
        ("ties", {"density": 0.2, "lam": 1.0}),
        ("regmean", {"alpha": 0.9}),
        ("regmean", {"alpha": 1.0}),
        ("regmean_bias", {"alpha": 0.9}),
        ("regmean_bias", {"alpha": 1.0}),
        ("fisher", {"floor": 1e-8}),
    )


def make_claims(config, done) -> list[dict]:
    """The papers' statements, one value per seed."""

    def one(name, paper, source, certainty, expected, values, **side):
        return claim(
            f"weight-space-methods, {name}",
            paper=paper,
            source=source,
            certainty=certainty,
            scale="toy",
            expected=expected,
            values_by_seed=values,
            split_sizes=split_sizes(config),
            **({"side": ">", "bound": 0.0} | side),
        )

    claims = [
        one(
            f"{label(first)}: accuracy over the four domains minus that of"
            f" {label(second)} (points)",
            paper,
            source,
            certainty,
            "> 0",
            value(done, first) - value(done, second),
        )
        for paper, first, second, source, certainty in ABOVE
        if _is_there(config, first) and _is_there(config, second)
    ]
    fixed = scores.at(config, done, "ties", density=0.2, lam=1.0)
    if fixed is not None:
        claims.append(
            one(
                "TIES without tuning (density .2, lambda 1): accuracy minus that of the"
                " mean of weights (points)",
                TIES,
                "main table, without validation",
                "recalled",
                "> 0",
                fixed - value(done, "mean"),
            )
        )
    near, full = (scores.at(config, done, "regmean", alpha=a) for a in (0.9, 1.0))
    if near is not None and full is not None:
        claims.append(
            one(
                "RegMean: accuracy at alpha .9 minus that at alpha 1 (points)",
                REGMEAN,
                "method, on scaling what is off the diagonal",
                "recalled",
                "> 0",
                near - full,
            )
        )
    for drop in (0.9, 0.99):
        if (change := scores.alone(config, done, drop)) is not None:
            claims.append(
                one(
                    f"DARE of one member at p = {drop:g}: change of accuracy in its own"
                    " domain (points)",
                    DARE,
                    "abstract",
                    "read",
                    "about 0: abilities are not affected",
                    change,
                    bound=-1.0,
                )
            )
    if (change := _merging_dropped(config, done)) is not None:
        claims.append(
            one(
                "DARE, merging at p = .9: accuracy minus that of nothing dropped,"
                " lambda chosen for each (points)",
                DARE,
                "abstract: reduces interference when models are merged",
                "read",
                ">= 0",
                change,
            )
        )
    off = ~np.eye(len(training.DOMAINS), dtype=bool)
    claims.append(
        one(
            "task vectors of different domains: mean cosine",
            TASKS,
            "figure of cosines between task vectors",
            "recalled",
            "close to 0",
            done["train"]["cosines"][:, off].mean(axis=1),
            side="<",
            bound=0.2,
        )
    )
    return claims


def _is_there(config, name):
    return name in scores.REFERENCES or name in config.grids


def _merging_dropped(config, done):
    if "dare" not in config.grids or not {0.0, 0.9} <= set(config.grids.dare.drop):
        return None
    curve = scores.along(config, done, "dare", "drop")
    drops = list(config.grids.dare.drop)
    return curve[:, drops.index(0.9)] - curve[:, drops.index(0.0)]


def make_checks(config, done) -> list[dict]:
    """Our own bounds for every seed, from a pilot."""
    mean = value(done, "mean")
    checks = []

    def least(name, values, bound):
        measured = float(values.min())
        passed = measured >= bound
        checks.append(
            check(name, bound=f">= {bound:g}", measured=measured, passed=passed)
        )

    least(
        "mean of weights minus base, smallest of all seeds (points)",
        mean - value(done, "base"),
        3,
    )
    if "fisher" in config.grids:
        fixed = scores.at(config, done, "fisher", floor=1e-8)
        fixed = value(done, "fisher") if fixed is None else fixed
        least("Fisher minus mean, smallest of all seeds (points)", fixed - mean, 1)
    for alpha in (0.9, 1.0):
        plain, joint = (
            scores.at(config, done, name, alpha=alpha)
            for name in ("regmean", "regmean_bias")
        )
        if alpha == 0.9 and plain is not None:
            least(
                "RegMean at alpha .9 minus mean, smallest of all seeds (points)",
                plain - mean,
                15,
            )
        if plain is not None and joint is not None:
            least(
                f"RegMean at alpha {alpha:g} with bias minus without, smallest of all"
                " seeds (points)",
                joint - plain,
                -0.5,
            )
    sum_of_all = scores.at(config, done, "task_arithmetic", lam=0.25)
    if sum_of_all is not None:
        away = float(np.abs(sum_of_all - mean).max())
        checks.append(
            check(
                "|task arithmetic at lambda 1/4 - mean|, largest of all seeds (points)",
                bound="<= 0.1",  # one row of 1,600 is 0.06
                measured=away,
                passed=away <= 0.1,
            )
        )
    least(
        "members in their own domains, smallest of all (%)",
        scores.own_domain(done),
        90,
    )
    seeds = config.num_seeds
    checks.append(check("seeds", bound=">= 5", measured=seeds, passed=seeds >= 5))
    frozen = int((done["train"]["frozen_steps"] >= 0).sum())
    checks.append(
        check("members not finite", bound="0", measured=frozen, passed=frozen == 0)
    )
    return checks


def describe(config, done) -> str:
    """The summary: what was done, what came out, what it does not show."""
    sizes = split_sizes(config)

    def shown(values):
        return interval_text(values, split_sizes=sizes, form=".1f") + " %"

    names = sorted(scores.merges(config), key=lambda n: -value(done, n).mean())
    own = scores.own_domain(done).mean(axis=1)
    sentences = [
        f"{config.num_seeds} seeds, each with its own split of scikit-learn's digits,"
        f" {sizes[0] - config.num_validation}, {config.num_validation} and"
        f" {config.num_test} for training, validation and test. A base that has seen"
        f" {config.few_per_domain} images of each domain"
        f" ({', '.join(training.DOMAINS)}) is fine-tuned on each alone and the four are"
        " merged; knobs are chosen on validation rows. Test accuracy over the four"
        " domains:"
        f" base {shown(value(done, 'base'))}, best member"
        f" {shown(value(done, 'best_single'))}, mean of the four's probabilities"
        f" {shown(value(done, 'predictive'))}; each in its own domain {shown(own)}.",
        "Merged: "
        + "; ".join(f"{label(n)} {shown(value(done, n))}" for n in names)
        + ".",
    ]
    off = ~np.eye(len(training.DOMAINS), dtype=bool)
    sentences.append(
        "Task vectors have cosines of"
        f" {done['train']['cosines'][:, off].mean():.2f} in the mean."
        " In brackets, 95 % intervals over seeds, corrected for splits of the same"
        " rows. Fisher and RegMean use the training rows of each member's own domain;"
        " the others use weights alone. The base cannot read most domains, so that"
        " task vectors are large; the papers merge large pre-trained models, of which"
        " none was used here."
    )
    return " ".join(sentences)
