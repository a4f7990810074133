"""What `deep_ensemble.py` concludes: scalars, claims of the paper, our own checks."""

import numpy as np

from ensjax.experiment import check, claim, not_run, student_interval
from ensjax.experiment.fields import load_beside

measures = load_beside(__file__, "deep_ensemble_scores")

PAPER = "Lakshminarayanan et al. 2017, arXiv:1612.01474"


def summarise(results) -> dict[str, float]:
    """Flat scalars: means over seeds and members; `_sd` is the spread over members."""
    scalars = {}
    for system, metrics in results["test"].items():
        for metric, values in metrics.items():
            name = f"{_slug(system)}_{metric}"
            scalars[name] = values.mean()
            if values.ndim == 2:
                scalars[f"{name}_sd"] = values.std(axis=1).mean()
    if results["calibration"] is not None:
        calibration = results["calibration"]
        scalars["temperature"] = np.mean(calibration.temperature)
        scalars["temperature_member"] = np.mean(calibration.member_temperature)
    for name in ("jensen_gap", "disagreement", "any_right"):
        scalars[name] = results["diversity"][name].mean()
    for size, values in zip(results["sizes"], _by_size(results, "nll").T):
        scalars[f"nll_of_{size}"] = values.mean()
    for shift, by_severity in results["shift"].items():
        worst = by_severity[-1]
        for system in worst:
            for metric in measures.METRICS:
                name = f"hardest_{shift}_{_slug(system)}_{metric}"
                scalars[name] = worst[system][metric].mean()
    for score, systems in results.get("auroc", {}).items():
        for system, values in systems.items():
            scalars[f"auroc_{_slug(score)}_{_slug(system)}"] = values.mean()
    return {name: float(value) for name, value in scalars.items()}


def make_claims(config, results) -> list[dict]:
    """The paper's statements, one value per seed of the whole ensemble."""
    member, ensemble = (
        results["test"][s] for s in (measures.MEMBER, measures.ENSEMBLE)
    )
    difference = {k: ensemble[k] - member[k].mean(axis=1) for k in measures.METRICS}

    def state(letter, text, values, *, side, bound, expected, source):
        about = dict(
            paper=PAPER,
            source=source,
            certainty="recalled",
            scale=config.scale,
            expected=expected,
        )
        name = f"deep-ensembles.{letter}: {text}"
        if values is None:
            return not_run(name, **about)
        return claim(name, values_by_seed=values, side=side, bound=bound, **about)

    slopes = auroc = None
    if len(results["sizes"]) > 1:
        logs = np.log2(results["sizes"])
        slopes = [np.polyfit(logs, y, 1)[0] for y in _by_size(results, "nll")]
    if results["ood"] is not None:
        auroc = results["auroc"][measures.ENTROPY][measures.ENSEMBLE]
    claims = [
        state(
            "a",
            "the ensemble's NLL minus its mean member's (nats)",
            difference["nll"],
            side="<",
            bound=0.0,
            expected="< 0",
            source="section 3.3, figure 2",
        ),
        state(
            "b",
            "the ensemble's accuracy minus its mean member's",
            difference["accuracy"],
            side=">",
            bound=0.0,
            expected="> 0",
            source="section 3.3, figure 2",
        ),
        state(
            "c",
            "change of the NLL when the ensemble doubles (nats)",
            slopes,
            side="<",
            bound=0.0,
            expected="< 0",
            source="section 3.3, figure 2",
        ),
        state(
            "d",
            "the ensemble's ECE minus its mean member's",
            difference["ece"],
            side="<",
            bound=0.0,
            expected="< 0",
            source="section 1: well-calibrated uncertainty",
        ),
        state(
            "e",
            "AUROC of the ensemble's entropy, other data against test data",
            auroc,
            side=">",
            bound=0.5,
            expected="> 0.5",
            source="section 3.4, figure 3",
        ),
    ]
    full = config.scale == "full"
    ratio = ensemble["nll"] / member["nll"].mean(axis=1)
    about = dict(
        paper="uncertainty-baselines, WRN-28-10 x 4 on CIFAR-10",
        source="baselines/cifar, table: NLL .114 of 4, .159 of one",
        certainty="read",
        scale="full",
        expected=0.114 / 0.159,
    )
    name = "deep-ensembles.f: the ensemble's NLL over its mean member's"
    claims.append(
        claim(name, values_by_seed=ratio, side="<", bound=1.0, **about)
        if full
        else not_run(name, **about)
    )
    return claims


def make_checks(config, results, scalars) -> list[dict]:
    """Our own bounds. With five seeds and more, the end of the 95 % interval counts."""
    member, ensemble = (
        results["test"][s] for s in (measures.MEMBER, measures.ENSEMBLE)
    )
    mean_nll = member["nll"].mean(axis=1)
    ratio = _unfavourable(ensemble["nll"] / mean_nll, end=1)
    gain = _unfavourable(ensemble["accuracy"] - member["accuracy"].mean(axis=1), end=0)
    residual = ensemble["nll"] - (mean_nll - results["diversity"]["jensen_gap"])
    identity = float(np.abs(residual).max())
    broken = scalars["num_members_not_finite"]
    checks = [
        check(
            "ensemble NLL / mean member NLL",
            bound=f"<= {config.max_nll_ratio:g}",
            measured=ratio,
            passed=ratio <= config.max_nll_ratio,
        ),
        check(
            "ensemble accuracy - mean member accuracy",
            bound=">= 0",
            measured=gain,
            passed=gain >= 0,
        ),
        check(
            "|ensemble NLL - (mean member NLL - Jensen gap)|, largest over seeds",
            bound="<= 1e-5",
            measured=identity,
            passed=identity <= 1e-5,
        ),
        check("members not finite", bound="0", measured=broken, passed=broken == 0),
    ]
    doublings = [size for size in (1, 2, 4, 8, 16) if size <= results["num_members"]]
    if len(doublings) > 1:
        rows = np.searchsorted(results["sizes"], doublings)
        step = float(np.diff(_by_size(results, "nll").mean(axis=0)[rows]).max())
        name = f"largest change of the NLL between M = {', '.join(map(str, doublings))}"
        checks.append(check(name, bound="< 0", measured=step, passed=step < 0))
    return checks


def _unfavourable(by_seed, *, end) -> float:
    if len(by_seed) < 5:
        return float(np.mean(by_seed))
    return student_interval(by_seed)[end]


def _by_size(results, metric) -> np.ndarray:
    """Mean over subsets of each size, `[seed, size]`."""
    return np.nanmean(results["by_size"][metric], axis=-1)


def _slug(text) -> str:
    words = text.replace("1 - ", "one minus ").replace(",", "").split()
    return "_".join(words)


def describe(config, rows, results, scalars) -> str:
    """The summary: what was done, what came out, what it does not show."""
    count, seeds = config.num_members, config.num_seeds
    scored, not_finite = results["num_members"], results["not_finite"]
    held_out = 0 if rows.calibration is None else len(rows.calibration[1])
    text = (
        f"{seeds} seed{'s' if seeds > 1 else ''} of an ensemble of {count}"
        f" ({scalars['num_parameters']:,.0f} parameters a member) trained on"
        f" {len(rows.train[1]):,} rows of {rows.source} for {config.total_steps:,}"
        f" steps of {config.batch_size}, and scored on {len(rows.test[1]):,} test rows."
        f" Members differ in initial weights and data order ({config.sampling}"
        f" sampling), seeds too; rows and splits are the same for all, so intervals"
        f" over seeds say nothing about other test rows. Augmentation:"
        f" {', '.join(config.augment) or 'none'}."
    )
    if not_finite:
        shown = ", ".join(f"{m} of seed {s} after step {at}" for s, m, at in not_finite)
        text += (
            f" {len(not_finite)} of {count * seeds} members stopped being finite"
            f" (member {shown}) and count in no score below: every seed is scored with"
            f" its first {scored} members that stayed finite, so the ensemble is one of"
            f" {scored}."
        )
    member, ensemble = (_slug(s) for s in (measures.MEMBER, measures.ENSEMBLE))
    text += (
        f" Mean member: NLL {scalars[f'{member}_nll']:.4g} nats, accuracy"
        f" {scalars[f'{member}_accuracy']:.2%}. Ensemble: NLL"
        f" {scalars[f'{ensemble}_nll']:.4g} nats, accuracy"
        f" {scalars[f'{ensemble}_accuracy']:.2%}, at {scored} times the training and"
        f" prediction cost of one member."
    )
    if held_out:
        after = scalars[f"{_slug(measures.CALIBRATED)}_nll"]
        text += (
            f" After temperature scaling: NLL {after:.4g} nats. The temperature"
            f" ({scalars['temperature']:.3g}) was fitted after pooling on {held_out:,}"
            " rows that were taken out of the training part before training,"
            " stratified; no test row was used."
        )
    return text
