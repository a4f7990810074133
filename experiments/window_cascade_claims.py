"""What `window_cascade.py` concludes: scalars, claims of the paper, our own checks."""

import functools

import jax
import numpy as np

from ensjax import combine
from ensjax.experiment import Part, check, claim_of_all
from ensjax.experiment.fields import load_beside

data = load_beside(__file__, "window_cascade_data")
measures = load_beside(__file__, "window_cascade_measures")

PAPER = "Xia and Bouganis 2023, arXiv:2303.08010"
SLUG = "window-early-exit-cascades"
HIGHER = ("accuracy", "cov")  # is better; of the others lower


@functools.cache
def _by_seed(front):
    """A front for every seed, compiled; `[size, seed]` to `[size, seed]`."""
    return jax.jit(jax.vmap(front, in_axes=(None, 1, 1), out_axes=1))


class Results:
    """The measures of all sizes; values are `[size, seed]`, of 1."""

    def __init__(self, config, arrays):
        self.arrays = arrays
        self.macs = arrays["macs"]
        cached = config.cached
        widths = tuple(f"width {width}" for width in config.widths)
        self.names = tuple(cached.names) if cached.files else widths
        self.num_sizes, self.num_seeds = arrays["cov"].shape[:2]

    def value(self, metric, system):
        """A metric of a system."""
        return self.arrays[metric][..., measures.SYSTEMS.index(system)]

    def gain(self, metric, system):
        """By how much a system is better than its first member alone."""
        sign = 1 if metric in HIGHER else -1
        return sign * (self.value(metric, system) - self.value(metric, "single"))

    def share(self, metric, system):
        """Of rows that reach the second member."""
        shares = self.arrays[f"share/{metric}"]
        return shares[..., measures.SYSTEMS.index(system)]

    def cost(self, metric, system):
        """MACs for one row."""
        return self.macs[:, None] * (1 + self.share(metric, system))

    def front_gain(self, metric, system):
        """By how much a system is better than a single model of its cost, by seed."""
        sign = 1 if metric in HIGHER else -1
        single, cost = self.value(metric, "single"), self.cost(metric, system)
        front = _by_seed(combine.front_scores)(self.macs, single, cost)
        return sign * (self.value(metric, system) - np.asarray(front))

    def cost_ratio(self):
        """MACs of the window cascade over those of the single model of equal cov@5."""
        single, window = (self.value("cov", s) for s in ("single", "window"))
        front = _by_seed(combine.front_costs)(self.macs, single, window)
        return self.cost("cov", "window") / np.asarray(front)

    def improved_by_second(self, metric, system):
        """Share of sizes that a second member improves, `[seed]`."""
        return (self.gain(metric, system) > 0).mean(axis=0)

    def improved_by_size(self, metric):
        """Share of steps to the next size that improve, `[seed]`."""
        sign = 1 if metric in HIGHER else -1
        steps = sign * np.diff(self.value(metric, "single"), axis=0)
        return (steps > 0).mean(axis=0)


def summarise(results) -> dict[str, float]:
    """Flat scalars: means over seeds, of every size, metric and system."""
    scalars = {}
    for metric in measures.METRICS:
        for system in measures.SYSTEMS:
            values = results.value(metric, system).mean(axis=1)
            for name, value in zip(results.names, values):
                scalars[f"{metric}_{_slug(system)}_{_slug(name)}"] = value
    ratio = results.cost_ratio().mean(axis=1)
    for size, name in enumerate(results.names):
        scalars[f"macs_{_slug(name)}"] = results.macs[size]
        scalars[f"cost_ratio_{_slug(name)}"] = ratio[size]
        for metric in measures.METRICS:
            share = results.share(metric, "window")[size].mean()
            scalars[f"share_{metric}_window_{_slug(name)}"] = share
        for system in ("window", "threshold", "ensemble"):
            for metric in ("accuracy", "cov", "risk"):
                gain = results.front_gain(metric, system)[size].mean()
                scalars[f"over_front_{metric}_{system}_{_slug(name)}"] = gain
    for metric in measures.OOD_METRICS:
        for system in ("window", "ensemble"):
            share = results.improved_by_second(metric, system).mean()
            scalars[f"improved_{metric}_{system}"] = share
        scalars[f"improved_{metric}_next_size"] = results.improved_by_size(
            metric
        ).mean()
    for way in ("capacity", "compacted"):
        scalars[f"{way}_minus_dense"] = results.arrays[f"one/{way}_minus_dense"]
    return {name: float(value) for name, value in scalars.items()}


def make_claims(config, results) -> list[dict]:
    """The paper's statements, one value per seed.

    Seeds are splits of the same digits, for which intervals are wider; cached pairs are
    not.
    """
    middle = results.names[config.compared_size]
    shared, note = None, ""
    if not config.cached.files:
        split = data.split_rows(config, 0)
        shared = (len(split.train) + len(split.validation), len(split.test))
        note = "; splits share rows"

    def part(text, values, *, side=">", bound=0.0):
        return Part(f"{text}{note}", values, bound, side, shared)

    def state(letter, statement, *parts, expected, source):
        return claim_of_all(
            f"{SLUG}.{letter}: {statement}",
            parts=parts,
            paper=PAPER,
            source=source,
            certainty="read",
            scale=config.scale,
            expected=expected,
        )

    def improved(system):
        # The median of three is above 0 where most of them are.
        differences = [
            results.improved_by_second(metric, system)
            - results.improved_by_size(metric)
            for metric in measures.OOD_METRICS
        ]
        return np.median(differences, axis=0)

    return [
        state(
            "a",
            "cascades reach an accuracy with less compute than a scaled single model",
            part(
                "accuracy of the single-threshold cascade over a single model of equal"
                " MACs, mean over sizes",
                results.front_gain("accuracy", "threshold").mean(axis=0),
            ),
            expected="> 0",
            source="introduction (of Wang et al. 2022)",
        ),
        state(
            "b",
            "window cascades trade uncertainty for compute better than scaling a model",
            part(
                "cov@5 of the window cascade over a single model of equal MACs, mean"
                " over sizes",
                results.front_gain("cov", "window").mean(axis=0),
            ),
            part(
                "risk@80 of a single model of equal MACs over that of the window"
                " cascade, mean over sizes",
                results.front_gain("risk", "window").mean(axis=0),
            ),
            expected="> 0 for both",
            source="abstract; figures of cov@5 and risk@80 against MACs",
        ),
        state(
            "c",
            "a cascade covers as much at 5 % risk as a larger model for 30 % of its"
            " MACs",
            part(
                f"MACs of the window cascade of {middle} over those of a single model"
                " of equal cov@5",
                results.cost_ratio()[config.compared_size],
                side="<",
                bound=0.3,
            ),
            expected="< 0.3",
            source="abstract: two EfficientNet-B2 against one B4",
        ),
        state(
            "d",
            "on shifted data ensembles and cascades improve more reliably than larger"
            " models",
            *(
                part(
                    f"share of sizes that {text} improves minus share that the next"
                    " size improves: median of FPR@80, FPR@95 and SCOD",
                    improved(system),
                )
                for text, system in (
                    ("the two-member ensemble", "ensemble"),
                    ("the cascade", "window"),
                )
            ),
            expected="> 0 for both",
            source="abstract; section on OOD detection and SCOD",
        ),
    ]


def make_checks(config, results) -> list[dict]:
    """Bounds from a pilot of the same experiment; gains in points are of 100."""
    shown = config.shown_size
    name = results.names[shown]
    checks = []

    def add(text, bound, measured, passed):
        checks.append(check(text, bound=bound, measured=measured, passed=passed))

    for metric, label in (("cov", "cov@5"), ("risk", "risk@80")):
        share = float((results.gain(metric, "window") > 0).mean())
        text = f"share of sizes and seeds where the window improves {label}"
        add(text, "1", share, share == 1)
    window = 100 * results.front_gain("cov", "window")
    larger = window[1:]
    add(
        "cov@5 of the window over the front, points, mean above the smallest size",
        ">= 0.2",
        larger.mean(),
        larger.mean() >= 0.2,
    )
    share = float((larger > 0).mean())
    text = "share of sizes (above the smallest) and seeds where it is above the front"
    add(text, ">= 0.7", share, share >= 0.7)
    both = 100 * results.front_gain("cov", "ensemble").mean(axis=1)
    text = "cov@5 of the full ensemble over the front, points, at its best size"
    add(text, "< 0", both.max(), both.max() < 0)

    gain, full = (results.gain("cov", s)[shown] for s in ("window", "ensemble"))
    cost = 1 + float(results.share("cov", "window")[shown].mean())
    text = f"gain of the window in cov@5 over that of the ensemble, {name}"
    add(text, ">= 0.7", gain.mean() / full.mean(), gain.mean() >= 0.7 * full.mean())
    text = f"cost of the window cascade (one member = 1), {name}"
    add(text, "1.15 to 1.25", cost, 1.15 <= cost <= 1.25)
    cov = results.value("cov", "window") - results.value("cov", "threshold")
    share = float((cov[shown] >= 0).mean())
    text = (
        f"share of seeds where the window is not below the threshold in cov@5, {name}"
    )
    add(text, ">= 0.8", share, share >= 0.8)
    accuracy = results.value("accuracy", "threshold")
    accuracy = accuracy - results.value("accuracy", "window")
    share = float((accuracy[shown] >= 0).mean())
    text = f"share of seeds where it is not above the threshold in accuracy, {name}"
    add(text, "1", share, share == 1)

    for metric, label in (("fpr80", "FPR@80"), ("scod", "SCOD")):
        by_size = results.improved_by_size(metric).mean()
        for system in ("ensemble", "window"):
            share = results.improved_by_second(metric, system).mean() - by_size
            text = f"share improved in {label}: {system} minus next size"
            add(text, "> 0", share, share > 0)
    for way, text in (
        ("capacity", "fixed capacity minus dense with windows by ranks"),
        ("compacted", "compacted minus dense"),
    ):
        difference = results.arrays[f"one/{way}_minus_dense"]
        others = results.arrays[f"one/{way}_other_exits"]
        passed = difference <= 1e-6 and others == 0
        text = f"{text}: largest difference of a probability, same exits, {name}"
        add(text, "<= 1e-6", float(difference), passed)
    return checks


def _slug(text) -> str:
    return text.lower().replace(" ", "_").replace("-", "_")


def describe(config, results) -> str:
    """The summary: what was done, what came out, what it does not show."""
    shown = config.shown_size
    single, window, threshold, capacity, full = (
        100 * results.value("cov", s)[shown].mean()
        for s in ("single", "window", "threshold", "capacity", "ensemble")
    )
    cost = 1 + results.share("cov", "window")[shown].mean()
    if config.cached.files:
        text = (
            f"{results.num_seeds} pair(s) of cached logits of each of"
            f" {results.num_sizes} sizes; nothing was trained."
        )
    else:
        text = (
            f"Two MLPs of each of {results.num_sizes} widths for {results.num_seeds}"
            f" seeds, trained for {config.total_steps:,} steps of {config.batch_size}"
            " on 8x8 digits with noise; each seed has its own split, and windows are"
            f" fitted on {config.data.num_validation} digits that are neither trained"
            f" on nor tested, in {config.data.num_copies} noisy copies."
        )
    front = 100 * results.front_gain("cov", "window").mean(axis=1)
    whole = 100 * results.front_gain("cov", "ensemble").mean(axis=1)
    ratios = results.cost_ratio().mean(axis=1)
    text += (
        f" Both member orders are averaged. For {results.names[shown]}, coverage at"
        f" {100 * config.risk:g} % risk is {single:.2f} % for one member,"
        f" {window:.2f} % for the window cascade at {cost:.2f} times its MACs,"
        f" {threshold:.2f} % for a cascade that passes the least sure"
        f" {100 * config.threshold_share:g} %, and {full:.2f} % for both members on all"
        f" rows; with a fixed capacity of {200 * config.window_width:g} % of batches of"
        f" {config.capacity_batch_size} it is {capacity:.2f} %. From the smallest size"
        f" to the largest, the window cascades are {_list(front)} points of coverage"
        " above a single model of equal MACs (linear in log MACs), and both members on"
        f" all rows {_list(whole)}. The cascades' MACs over those of a single model of"
        f" equal coverage are {_list(ratios)}; the paper reports less than 0.3 between"
        " networks that gain less from scale. With OOD rows, a second member improves"
        f" FPR@80, FPR@95 and SCOD in {_shares(results, 'ensemble')} of sizes and"
        f" seeds, the window in {_shares(results, 'window')}, and the next size in"
        f" {_shares(results)}. The window for SCOD is centred on the unlabelled"
        " mixture, which uses statistics of the test set."
    )
    return text


def _shares(results, system=None) -> str:
    by_metric = [
        results.improved_by_size(metric)
        if system is None
        else results.improved_by_second(metric, system)
        for metric in measures.OOD_METRICS
    ]
    return ", ".join(f"{100 * shares.mean():.0f} %" for shares in by_metric)


def _list(values) -> str:
    return ", ".join(f"{value:.2f}" for value in values)
