"""What `seeds_speed.py` concludes: a table, a sentence, scalars and our own checks."""

import dataclasses

from ensjax.experiment import check_at_least, check_at_most
from ensjax.experiment.fields import load_beside

speed = load_beside(__file__, "seeds_speed")

MOST_BEHIND = 1.03  # fair CRPS of the network over that of the best sampler
EQUAL = 1.01  # fair CRPS of a sampler over that of the best one
NEAR = 1.02
SSR = (0.85, 1.15)  # where both must lie for "equal skill"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The best network beside the samplers, of means over seeds.

    Attributes:
        network: with the least fair CRPS.
        sampler: with the least fair CRPS.
        cheapest: the fastest sampler whose fair CRPS is within 1 % of that.
        near: the fastest within 2 %.
        ratio: fair CRPS of the network over that of the best sampler.
        faster: samples per second of the network over those of `cheapest`.
        faster_than_near: and over those of `near`.
        is_equal: whether the ratio is met and both spread-skill ratios lie in `SSR`.
    """

    network: str
    sampler: str
    cheapest: str
    near: str
    ratio: float
    faster: float
    faster_than_near: float
    is_equal: bool


def compare(config, found) -> Comparison:
    """The comparison that the checks and the sentence are about."""
    fair = {
        name: float(found[f"fair_{name}"].mean())
        for name in (*speed.sampler_names(config), *speed.network_names(config))
    }
    rate = {name: float(found[f"rate_{name}"]) for name in fair}
    network = min(speed.network_names(config), key=fair.get)
    sampler = min(speed.sampler_names(config), key=fair.get)

    def fastest_within(factor):
        within = [
            n for n in speed.sampler_names(config) if fair[n] <= factor * fair[sampler]
        ]
        return max(within, key=rate.get)

    cheapest, near = fastest_within(EQUAL), fastest_within(NEAR)
    ratio = fair[network] / fair[sampler]
    ssr = [float(found[f"ssr_{name}"].mean()) for name in (network, cheapest)]
    return Comparison(
        network,
        sampler,
        cheapest,
        near,
        ratio,
        rate[network] / rate[cheapest],
        rate[network] / rate[near],
        ratio <= MOST_BEHIND and all(SSR[0] <= x <= SSR[1] for x in ssr),
    )


def make_checks(config, found) -> list[dict]:
    """Our bounds, of means over seeds."""
    best = compare(config, found)
    checks = [
        check_at_most(
            "speed: fair CRPS of the network over the best sampler's",
            best.ratio,
            MOST_BEHIND,
        ),
        check_at_least(
            "speed: the network is faster than the cheapest sampler within 1 %",
            best.faster,
            10.0,
        ),
        check_at_least(
            "speed: the network is faster than any sampler within 2 %",
            best.faster_than_near,
            4.0,
        ),
    ]
    for what, name in (("network", best.network), ("sampler", best.cheapest)):
        ssr = float(found[f"ssr_{name}"].mean())
        checks += [
            check_at_least(
                f"speed: spread-skill ratio of the {what}, low", ssr, SSR[0]
            ),
            check_at_most(
                f"speed: spread-skill ratio of the {what}, high", ssr, SSR[1]
            ),
        ]
    # What is scored better than the simulator's own members knows the answer.
    least = min(
        float(found[f"fair_{name}"].mean() - found["fair_others"].mean())
        for name in (*speed.sampler_names(config), *speed.network_names(config))
    )
    return [
        *checks,
        check_at_least("speed: fair CRPS above the other members'", least, 0.0),
    ]


def summarise(config, found) -> dict[str, float]:
    """Flat scalars without times: means over seeds."""
    scalars = {"fair_others": float(found["fair_others"].mean())}
    for name in (*speed.sampler_names(config), *speed.network_names(config)):
        power = found[f"power_{name}"].mean(axis=0)
        scalars |= {
            f"fair_{name}": float(found[f"fair_{name}"].mean()),
            f"ssr_{name}": float(found[f"ssr_{name}"].mean()),
            f"least_power_{name}": float(power.min()),
            f"most_power_{name}": float(power.max()),
            f"num_not_finite_{name}": int(found[f"frozen_{name}"]),
        }
    return {f"speed_{name}": value for name, value in scalars.items()}


def label_of(config, name: str) -> str:
    """A row's name in the table."""
    kind, *numbers = name.split("_")
    if kind == "levels":
        return f"diffusion, {numbers[0]} Heun levels"
    return f"CRPS network, {numbers[0]} members, {int(numbers[1]):,} steps"


def add_table(run_dir, config, found) -> None:
    """All columns, means over seeds."""
    rows = []
    for name in (*speed.sampler_names(config), *speed.network_names(config)):
        power = found[f"power_{name}"].mean(axis=0)
        rows.append(
            [
                label_of(config, name),
                f"{found[f'fair_{name}'].mean():.3f}",
                f"{found[f'ssr_{name}'].mean():.2f}",
                f"{power.min():.2f}-{power.max():.2f}",
                f"{float(found[f'rate_{name}']):,.0f}",
                f"{int(found[f'calls_{name}'])}",
                f"{float(found[f'training_{name}']):,.0f}",
            ]
        )
    run_dir.add_table(
        "speed",
        [
            "members made by",
            "fair CRPS",
            "SSR",
            "power, of the others'",
            "samples/s",
            "calls",
            "training, s a seed",
        ],
        rows,
        f"Speed at equal skill: {config.speed.num_samples} samples of every test case,"
        f" {config.speed.num_seeds} seeds. The simulator's other members have a fair"
        f" CRPS of {found['fair_others'].mean():.3f}. Power is the least and the most"
        " over wavenumbers above 0. Seeds are trained at once, with compilation.",
    )


def describe(config, found) -> str:
    """A sentence for the report, with its verdict."""
    best = compare(config, found)
    ssr = [float(found[f"ssr_{n}"].mean()) for n in (best.network, best.cheapest)]
    verdict = "at equal skill" if best.is_equal else "but not at equal skill"
    return (
        f" A {label_of(config, best.network)} makes {best.faster:.1f} times as many"
        f" members a second as {label_of(config, best.cheapest)}, {verdict}: its fair"
        f" CRPS is {best.ratio:.3f} of the best sampler's, and the spread-skill ratios"
        f" are {ssr[0]:.2f} and {ssr[1]:.2f}."
    )
