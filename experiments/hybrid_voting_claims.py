"""What `hybrid_voting.py` concludes: scalars, claims of the paper, and in words.

Splits of the breast-cancer rows, or of a folder of slices, share rows: their intervals
are Nadeau and Bengio's. Sets of phantoms are independent and have Student's.
"""

import numpy as np

from ensjax import scores
from ensjax.experiment import Part, claim_of_all, not_run
from ensjax.experiment.claims import MIN_SEEDS
from ensjax.experiment.fields import load_beside

images = load_beside(__file__, "hybrid_voting_images")
members = load_beside(__file__, "hybrid_voting_members")

PAPER = "Garg and Garg 2021, arXiv:2101.00216"
PAPER_ACCURACY = 0.97305
TABLE = "breast cancer"
SHARED = "; splits share rows, corrected"


def image_scores(results, name: str) -> dict[str, np.ndarray]:
    """Accuracies of one feature set, "members" `[split, member]`, votes `[split]`."""
    place = images.FEATURE_SETS.index(name)
    return {k: results["images"][k][place] for k in ("members", "hard", "soft")}


def split_sizes(config, results, where: str) -> tuple[int, int] | None:
    """Rows outside and inside of the test where splits share rows; else None."""
    if where == TABLE:
        num_rows, num_test = int(results["table"]["all_rows"]), results["table"]["rows"]
    elif config.images.is_real:
        num_rows = len(results["described"]["labels"])
        num_test = results["images"]["rows"]
    else:
        return None
    num_test = round(float(num_test.mean()))
    return num_rows - num_test, num_test


def summarise(config, results) -> dict[str, float]:
    """Flat scalars: means over splits; no times."""
    scalars, table = {}, results["table"]
    sets = {"table": table}
    for name, slug in zip(images.FEATURE_SETS, ("texture", "mixed", "wavelet")):
        sets[slug] = image_scores(results, name)
    for slug, found in sets.items():
        for m, member in enumerate(members.MEMBERS):
            scalars[f"{slug}_{member.lower()}"] = found["members"][:, m].mean()
        for kind in ("hard", "soft"):
            scalars[f"{slug}_{kind}_vote"] = found[kind].mean()
            scalars[f"{slug}_{kind}_vote_sd"] = found[kind].std(ddof=1)
    for name in ("median", "correlation", "dice"):
        scalars[f"area_{name}"] = results["segmentation"][name].mean()
        scalars[f"area_{name}_low_contrast"] = results["segmentation"][
            f"{name}_by_level"
        ][0].mean()
    scalars["area_correlation_of_all"] = area_correlation(results)
    for kind in ("vote", "mean_member", "network", "ensemble"):
        for count, values in zip(config.row_counts, results["small_data"][kind].T):
            scalars[f"{kind}_{count}_rows"] = values.mean()
    scalars["ties"] = results["ties"]["ties"].sum()
    return {name: float(value) for name, value in scalars.items()}


def area_correlation(results) -> float:
    """Of true and found areas of all phantoms of high contrast together."""
    return float(np.corrcoef(results["segmentation"]["areas"])[0, 1])


def fisher_z(correlation) -> np.ndarray:
    """arctanh of correlations, whose mean over sets is nearly normal (Fisher 1915)."""
    with np.errstate(divide="ignore"):
        return np.arctanh(np.asarray(correlation, float))


def error_ratio(accuracy, others, num_rows) -> np.ndarray:
    """Errors of the vote over those of another system, as one value per split.

        r + (e_s - r o_s) / mean o,   r = sum e / sum o

    The mean is the ratio of all errors, and the spread that of the delta method; a mean
    of the splits' own ratios would be biased upwards, or infinite. NaN without errors.
    """
    wrong, other = ((1 - np.asarray(x)) * num_rows for x in (accuracy, others))
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = wrong.sum() / other.sum()
        return ratio + (wrong - ratio * other) / other.mean()


def make_claims(config, results) -> list[dict]:
    """The paper's statements, one value per split, or per set of phantoms."""
    about = dict(paper=PAPER, source="abstract", certainty="read", scale=config.scale)
    place, claims = _images(config), []

    def part(what, values, *, where=place, side=">", bound=0.0):
        sizes = split_sizes(config, results, where)
        note = "" if sizes is None else SHARED
        return Part(f"{what}, {where}{note}", values, bound, side, sizes)

    def state(letter, statement, parts, *, expected):
        name = f"brain-tumor-voting.{letter}: {statement}"
        claims.append(claim_of_all(name, parts=parts, expected=expected, **about))

    table, texture = results["table"], image_scores(results, images.TEXTURE)
    systems = (
        (TABLE, table, table["rows"]),
        (place, texture, results["images"]["rows"]),
    )
    pairs = [
        (where, member, found["hard"], found["members"][:, m], rows)
        for where, found, rows in systems
        for m, member in enumerate(members.MEMBERS)
    ]
    state(
        "a",
        "a majority vote of KNN, RF and DT is right on 97.305 % of the images",
        [
            part(
                f"errors of the vote over those of {member}",
                error_ratio(vote, own, rows),
                where=where,
                side="<",
                bound=1.0,
            )
            for where, member, vote, own, rows in pairs
        ],
        expected="97.305 % right; here < 1 for every member",
    )
    state(
        "b",
        "the vote improves on single classifiers",
        [
            part(f"accuracy minus that of {member}", vote - own, where=where)
            for where, member, vote, own, _ in pairs
        ],
        expected="> 0 for every member",
    )
    if not config.images.is_real:
        area = results["segmentation"]
        state(
            "c",
            "Otsu's threshold segments the tumour, so that its area can be computed",
            [
                part(
                    "median relative error of the area, high contrast",
                    area["median"],
                    side="<",
                    bound=0.05,
                ),
                # Student's interval of correlations near 1 would end above 1.
                part(
                    "correlation with the true area as Fisher's z, high contrast",
                    fisher_z(area["correlation"]),
                    bound=round(float(fisher_z(0.98)), 4),
                ),
            ],
            expected="the area is computed (error < 0.05, correlation > 0.98, which is"
            f" a z of {fisher_z(0.98):.4f})",
        )
    else:
        claims.append(
            not_run(
                "brain-tumor-voting.c: Otsu's threshold segments the tumour, so that"
                " its area can be computed (slices have no expert's masks)",
                expected="the area is computed",
                **about,
            )
        )
    mixed = image_scores(results, images.MIXED)["hard"]
    features = f"vote on 10 texture features and {config.num_components} of wavelets"
    labels = results["described"]["labels"]
    chance = max(np.bincount(labels)) / len(labels)
    state(
        "d",
        "wavelets, PCA and co-occurrence supply thirteen useful features",
        [
            part(f"{features} minus 13 of texture, accuracy", mixed - texture["hard"]),
            part(f"{features} minus chance, accuracy", mixed - chance, bound=0.15),
        ],
        expected="useful: > 0 beside texture, > 0.15 beside chance",
    )
    small = results["small_data"]
    state(
        "e",
        "traditional classifiers need little data and little computation",
        [
            part(
                f"vote minus {config.num_members} networks on {config.row_counts[0]}"
                " rows, accuracy",
                (small["vote"] - small["ensemble"])[:, 0],
            )
        ],
        expected="> 0",
    )
    if config.scale != "full":
        claims.append(
            not_run(
                "brain-tumor-voting.a: a majority vote of KNN, RF and DT is right on"
                " 97.305 % of the images (2,556 MR slices)",
                expected=PAPER_ACCURACY,
                **about,
            )
        )
    return claims


def _images(config):
    return "MR slices" if config.images.is_real else "phantoms"


def _num_lost(area) -> int:
    true, found = area["areas"]
    return int((np.abs(found - true) > 0.5 * true).sum())


def _wilson(accuracy, rows) -> str:
    right = round(float((accuracy * rows).sum()))
    found = scores.wilson_interval(right, int(rows.sum()))
    return f"Wilson {float(found.low):.1%} to {float(found.high):.1%}"


def describe(config, results, claims, checks) -> str:
    """The summary: what was done, what came out, and what it does not show."""
    table, small = results["table"], results["small_data"]
    each = ", ".join(
        f"{name} {value:.1%}"
        for name, value in zip(members.MEMBERS, table["members"].mean(axis=0))
    )
    text = (
        f"Breast-cancer rows, {config.num_table_splits} splits: {each}; their hard vote"
        f" {table['hard'].mean():.1%} ({_wilson(table['hard'], table['rows'])} if test"
        f" rows were all different), soft vote {table['soft'].mean():.1%}. The paper"
        " has 97.305 % on MR slices, which no figure here is compared with."
    )
    best = members.MEMBERS[int(table["members"].mean(axis=0).argmax())]
    difference = table["hard"].mean() - table["members"].mean(axis=0).max()
    text += f" The vote is {100 * difference:+.1f} points from the best member, {best}."
    if table["soft"].mean() < table["hard"].mean():
        text += (
            " The soft vote is the worse one: a tree that is not pruned says 0 or 1,"
            " and outshouts the others."
        )
    texture = image_scores(results, images.TEXTURE)["hard"]
    cells = "; ".join(
        f"{name} {image_scores(results, name)['hard'].mean():.1%}"
        for name in images.FEATURE_SETS
    )
    if config.images.is_real:
        what = f"{len(results['described']['labels'])} MR slices, split"
    else:
        what = f"{config.num_images} phantoms of two overlapping kinds, drawn and split"
    text += (
        f" On {what} {config.num_image_sets} times, the vote by features: {cells}"
        f" ({_wilson(texture, results['images']['rows'])} for the first)."
    )
    area = results["segmentation"]
    text += (
        f" Otsu inside the brain finds the area of high-contrast blobs to a median of"
        f" {area['median'].mean():.1%} (correlation {area_correlation(results):.3f};"
        f" {_num_lost(area)} of {area['areas'].shape[1]:,} are off by more than half:"
        " of a small blob the brain's own texture may separate better);"
        f" of the lowest contrast to {area['median_by_level'][0].mean():.0%}"
        f" (correlation {area['correlation_by_level'][0].mean():.2f}), where it picks"
        " the texture."
    )
    fewest = config.row_counts[0]
    text += (
        f" On {fewest} rows the vote is right on {small['vote'][:, 0].mean():.1%},"
        f" {config.num_members} networks on {small['ensemble'][:, 0].mean():.1%}; on"
        f" {config.row_counts[-1]} rows {small['vote'][:, -1].mean():.1%} and"
        f" {small['ensemble'][:, -1].mean():.1%}."
    )
    for kind, entries in (
        ("Claims that fail", [c for c in claims if c["verdict"] == "fails"]),
        ("Checks that fail", [c for c in checks if not c["pass"]]),
    ):
        if entries:
            text += f" {kind}: {'; '.join(entry['name'] for entry in entries)}."
    return text + _why_undecided(config, results, claims)


def _why_undecided(config, results, claims) -> str:
    undecided = [c for c in claims if c["verdict"] == "undecided" and c["interval"]]
    if not undecided:
        return ""
    are = "claim is" if len(undecided) == 1 else "claims are"
    text = f" {len(undecided)} {are} undecided:"
    if min(c["seeds"] for c in undecided) < MIN_SEEDS:
        return f"{text} fewer than {MIN_SEEDS} splits decide nothing."
    text += " systems that are nearly equal, or parts too small to tell them apart."

    def widest(shares_rows):
        """Half of the widest interval of an accuracy, in points; 0: there is none."""
        halves = [
            50 * (c["interval"][1] - c["interval"][0])
            for c in undecided
            if "accuracy" in c["name"] and ("split_sizes" in c) == shares_rows
        ]
        return max(halves, default=0.0)

    num_train, num_test = split_sizes(config, results, TABLE)
    if widest(True):
        text += (
            f" Of {num_train + num_test} breast-cancer rows a split tests {num_test},"
            " and since splits share rows, more of them do not narrow the intervals (up"
            f" to {widest(True):.1f} points either way)."
        )
    if widest(False):
        text += (
            " Sets of phantoms are independent: more of them would decide, about"
            f" differences below {widest(False):.1f} points."
        )
    return text
