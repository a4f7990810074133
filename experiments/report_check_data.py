"""Simulated images and reports of `report_check.py`, and their errors.

A case has `num_findings` findings, each absent or on the left, the right or both sides.
Its image is the sum of one vector for each finding and side, plus noise; its report a
clause for each finding that it states, "effusion, left.". Half of the reports are
altered once. Members see the image and what could be read of the report.
"""

from typing import NamedTuple

import numpy as np

NAMES = (
    "atelectasis",
    "cardiomegaly",
    "consolidation",
    "effusion",
    "emphysema",
    "fracture",
    "infiltrate",
    "mass",
    "nodule",
    "oedema",
    "pneumonia",
    "pneumothorax",
    "scarring",
    "thickening",
    "hernia",
    "granuloma",
)
SIDES = ("absent", "left", "right", "both")
MISSING = -1  # a clause of which the side cannot be read
ERRORS = ("none", "insert", "remove", "substitute")


class Cases(NamedTuple):
    """Of one domain and seed.

    Attributes:
        images: `[case, feature]`, float32, without the reader's noise.
        truth: what is there, `[case, finding]`, indices of `SIDES`.
        reports: text, one per case.
        read: `[case, finding]`, indices of `SIDES`, or -1 where a side is missing.
        errors: `[case]`, indices of `ERRORS`.
    """

    images: np.ndarray
    truth: np.ndarray
    reports: list[str]
    read: np.ndarray
    errors: np.ndarray


def finding_vectors(config, rng: np.random.Generator) -> np.ndarray:
    """Image vectors of the general domain and of each domain, `[1 + D, f, 2, feature]`.

    A domain's vector is the general one turned towards a random one by its angle.
    """
    settings = config.reports
    shape = (settings.num_findings, 2, settings.num_features)
    general = rng.normal(size=shape)
    turned = [
        np.cos(angle) * general + np.sin(angle) * rng.normal(size=shape)
        for angle in settings.turn
    ]
    return np.stack([general, *turned])


def draw_cases(config, vectors, prevalence, num_cases, rng, *, altered=True) -> Cases:
    """Cases of a domain with its vectors `[finding, side, feature]`."""
    settings = config.reports
    present = rng.uniform(size=(num_cases, settings.num_findings)) < prevalence
    truth = np.where(present, rng.integers(1, 4, size=present.shape), 0)
    stated, errors = truth.copy(), np.zeros(num_cases, np.int64)
    if altered:
        for case in np.flatnonzero(
            rng.uniform(size=num_cases) < settings.altered_share
        ):
            stated[case], errors[case] = alter(truth[case], rng)
    reports = [
        write_report(row, rng, damaged_share=settings.damaged_share) for row in stated
    ]
    read = np.stack([read_report(text, settings.num_findings) for text in reports])
    # Both sides are the sum of the two; index 3 is left and right.
    on_side = np.stack([(truth == 1) | (truth == 3), truth >= 2], axis=-1)
    images = np.einsum("nfs,fsd->nd", on_side.astype(float), vectors)
    images += settings.image_noise_sd * rng.normal(size=images.shape)
    return Cases(images.astype(np.float32), truth, reports, read, errors)


def alter(truth: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """The findings with one error, and its kind (of `ERRORS`).

    A finding that is absent is inserted, one that is there removed, or one substituted:
    by itself on another side, or by an absent one on the same side, equally often.
    """
    there, absent = np.flatnonzero(truth), np.flatnonzero(truth == 0)
    kinds = [1] * bool(absent.size) + [2, 3] * bool(there.size)
    kind = int(rng.choice(kinds))
    stated = truth.copy()
    if kind == 1:
        stated[rng.choice(absent)] = rng.integers(1, 4)
        return stated, kind
    finding = rng.choice(there)
    if kind == 2:
        stated[finding] = 0
    elif absent.size and rng.uniform() < 0.5:
        stated[finding], stated[rng.choice(absent)] = 0, truth[finding]
    else:
        stated[finding] = rng.choice([s for s in (1, 2, 3) if s != truth[finding]])
    return stated, kind


def write_report(stated, rng, *, damaged_share: float) -> str:
    """One clause for each finding; a damaged clause has lost letters of its side."""
    clauses = []
    for finding in np.flatnonzero(stated):
        side = SIDES[stated[finding]]
        if rng.uniform() < damaged_share:
            side = side[0] + "_" * (len(side) - 1)
        clauses.append(f"{NAMES[finding]}, {side}.")
    return " ".join(clauses) or "no finding."


def read_report(text: str, num_findings: int) -> np.ndarray:
    """The sides that a report states, `[finding]`; 0 for what it does not mention."""
    read = np.zeros(num_findings, np.int64)
    for clause in text.split("."):
        name, comma, side = (part.strip() for part in clause.partition(","))
        if comma and name in NAMES[:num_findings]:
            known = side in SIDES[1:]
            read[NAMES.index(name)] = SIDES.index(side) if known else MISSING
    return read


def encode(images: np.ndarray, read: np.ndarray) -> np.ndarray:
    """What a member sees: image, and for each finding which of three sides is stated.

    A side that could not be read is a third of each. `[case, feature + 3 finding]`.
    """
    sides = np.stack([read == side for side in (1, 2, 3)], axis=-1).astype(np.float32)
    sides[read == MISSING] = 1 / 3
    return np.concatenate([images, sides.reshape(len(read), -1)], axis=1)


class Rows(NamedTuple):
    """Arrays of all seeds, for one stack of members.

    Attributes:
        general: `(x, is another patient's report)` `[seed, row, ...]`.
        train: `(x, errors)` `[seed, domain, row, ...]`.
        held_out: `(x, errors)`: labelled rows, then test rows.
        reader_train: as `train`, with the reader's images.
        reader_held_out: `x` of `held_out`, with the reader's images.
        examples: pairs of a true report and an altered one, as text.
    """

    general: tuple[np.ndarray, np.ndarray]
    train: tuple[np.ndarray, np.ndarray]
    held_out: tuple[np.ndarray, np.ndarray]
    reader_train: tuple[np.ndarray, np.ndarray]
    reader_held_out: np.ndarray
    examples: list[tuple[str, str, str]]


def make_rows(config) -> Rows:
    """Everything that a run trains and tests on; a function of the config alone."""
    settings, seeds = config.reports, range(config.num_seeds)
    general, train, held_out, reader_train, reader_held_out = [], [], [], [], []
    examples = []
    for seed in seeds:
        rng = np.random.default_rng([config.seed, seed])
        vectors = finding_vectors(config, rng)
        cases = draw_cases(
            config,
            vectors[0],
            settings.general_prevalence,
            settings.num_general,
            rng,
            altered=False,
        )
        general.append(mismatch(cases, rng))
        for domain, prevalence in enumerate(settings.prevalence):
            num_held_out = settings.num_labelled + settings.num_test
            parts = [
                draw_cases(config, vectors[1 + domain], prevalence, number, rng)
                for number in (settings.num_train, num_held_out)
            ]
            train.append((encode(parts[0].images, parts[0].read), parts[0].errors))
            held_out.append((encode(parts[1].images, parts[1].read), parts[1].errors))
            noisy = [with_noise(config, part.images, rng) for part in parts]
            x = encode(noisy[0], parts[0].read)
            reader_train.append((x, parts[0].errors))
            reader_held_out.append(encode(noisy[1], parts[1].read))
            if seed == 0:
                examples += _examples(parts[1])

    def join(pairs, *leading):
        x, y = (np.stack(part) for part in zip(*pairs))
        return x.reshape(*leading, *x.shape[1:]), y.reshape(*leading, -1).astype(
            "int32"
        )

    by_domain = len(seeds), len(settings.prevalence)
    reader_x = np.stack(reader_held_out)
    return Rows(
        join(general, len(seeds)),
        join(train, *by_domain),
        join(held_out, *by_domain),
        join(reader_train, *by_domain),
        reader_x.reshape(*by_domain, *reader_x.shape[1:]),
        examples,
    )


def find_shared(held_out: np.ndarray, trained: np.ndarray) -> np.ndarray:
    """Which held-out rows are among rows that were trained on, `[seed, domain, row]`.

    Args:
        held_out: `[seed, domain, row, feature]`.
        trained: `[seed, row, feature]`, of all domains.
    """
    found = np.zeros(held_out.shape[:3], bool)
    for seed, rows in enumerate(trained):
        known = {row.tobytes() for row in np.ascontiguousarray(rows)}
        for place in np.ndindex(*held_out.shape[1:3]):
            row = np.ascontiguousarray(held_out[(seed, *place)])
            found[(seed, *place)] = row.tobytes() in known
    return found


def mismatch(cases: Cases, rng) -> tuple[np.ndarray, np.ndarray]:
    """Rows and labels: half of the images come with another patient's report (1)."""
    is_other = rng.uniform(size=len(cases.read)) < 0.5
    others = (np.arange(len(cases.read)) + rng.integers(1, len(cases.read))) % len(
        cases.read
    )
    read = np.where(is_other[:, None], cases.read[others], cases.read)
    # Two patients without findings have the same report, which is then no mismatch.
    is_other &= (read != cases.read).any(axis=1)
    return encode(cases.images, read), is_other.astype(np.int64)


def with_noise(config, images, rng) -> np.ndarray:
    """The reader's images: noise of `reader_noise_sd` in all instead of the images'."""
    own = config.reports.image_noise_sd
    added = np.sqrt(max(config.reader_noise_sd**2 - own**2, 0.0))
    return (images + added * rng.normal(size=images.shape)).astype(np.float32)


def _examples(cases):
    rng = np.random.default_rng(0)
    found = []
    for kind in (1, 2, 3):
        case = int(np.flatnonzero(cases.errors == kind)[0])
        true = write_report(cases.truth[case], rng, damaged_share=0.0)
        found.append((ERRORS[kind], true, cases.reports[case]))
    return found
