"""Extreme forecast indices of networks beside that of the two-scale simulator.

All members start from the truth's slow variables with perturbations of one size, and
each system's index is taken in a climate of its own: of the networks by long free runs,
of the simulator by the runs that the networks are trained on.
"""

import numpy as np

from ensjax.experiment.claims import check_at_least, check_at_most, interval_text
from ensjax.experiment.fields import load_beside

training = load_beside(__file__, "crps_forecast_training")
indices = load_beside(__file__, "lorenz96_efi")
lorenz = training.lorenz

KINDS = {"almost_fair": "almost fair CRPS", "error": "squared error"}
UNITS = (0.5, 1.0, 2.0, 4.0)  # leads of the published comparison, time units
NOISE = 0.05  # of a member at its start, in deviations of the climate
LEAST = {1.0: 0.95, 2.0: 0.95, 4.0: 0.9}  # correlations that are asked for
_FREE, _GAP = (
    100,
    10,
)  # outputs of a free run before its climate, and between two states


def leads_of(config) -> list[int]:
    """Leads in outputs; of short archives those that there are, or the last one."""
    length = config.archive.steps_per_output * lorenz.system_of(config).step_length
    leads = [round(units / length) for units in UNITS]
    last = config.archive.num_leads
    return [lead for lead in leads if lead <= last] or [last]


def measure(config, run_dir, archives) -> dict[str, np.ndarray]:
    """Correlations and deviations, `[seed, lead]`.

    Returns:
        For both kinds `<kind>`, the correlation over starts and sites with the
        simulator's index, and `<kind>_sd`, its deviation over the simulator's; `half`,
        the correlation of the simulator's halves; and `leads` in outputs.
    """
    nets = training.train(config, run_dir, archives)  # from their checkpoints
    place = training.LOSSES.index("almost_fair")
    rows = []
    for seed in range(config.num_seeds):
        archive = training.of_seed(archives, seed)
        own = {
            "almost_fair": nets["noise"].select([seed * len(training.LOSSES) + place]),
            "error": nets["error"].select([seed]),
        }
        rows.append(measure_seed(config, own, archive, config.seed + seed))
    found = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return found | {"leads": np.asarray(leads_of(config))}


def measure_seed(config, networks, archive, seed) -> dict[str, np.ndarray]:
    """Of one seed, `[lead]` each; `networks` are stacks of one."""
    leads, count = leads_of(config), config.sizes[-1]
    places = np.asarray(leads) - 1
    own = {name: archive[name][: config.num_test] for name in ("start_x", "start_y")}
    simulated = lorenz.system_ensemble(
        config, archive | own, seed, count, noise=NOISE
    )[:, :, places]  # fmt: skip
    climate = (archive["train"] - archive["mean"]) / archive["sd"]
    index = indices.index_of(simulated, climate)
    halves = [indices.index_of(simulated[i::2], climate) for i in range(2)]
    starts = archive["truth"][:, 0].astype(np.float32)
    verified, others = starts[: config.num_test], starts[config.num_test :]
    moved = lorenz.perturbed(verified, config, seed, count, noise=NOISE)
    found = {"half": indices.correlations(*halves)}
    for name, network in networks.items():
        # Every member is a case of its own, since it has a start of its own.
        made = training.forecast(
            config, network, moved.reshape(-1, moved.shape[-1]), 1, num_leads=leads[-1]
        )[0, 0]
        members = made.reshape(*moved.shape[:2], *made.shape[1:])[:, :, places]
        free = training.forecast(
            config, network, others, 1, first_case=moved.shape[0] * count,
            num_leads=2 * _FREE,
        )[0, 0, :, _FREE::_GAP]  # fmt: skip
        emulated = indices.index_of(np.moveaxis(members, 1, 0), free)
        found |= {
            name: indices.correlations(emulated, index),
            f"{name}_sd": emulated.std(axis=(0, 2)) / index.std(axis=(0, 2)),
        }
    return found


def units_of(config, found) -> list[float]:
    """Leads in time units."""
    length = config.archive.steps_per_output * lorenz.system_of(config).step_length
    return [round(float(lead) * length, 6) for lead in found["leads"]]


def make_checks(config, done) -> list[dict]:
    """What is asked of both kinds, means over seeds."""
    found, checks = done["efi"], []
    half = found["half"].mean(axis=0)
    for name, label in KINDS.items():
        value, sd = (found[key].mean(axis=0) for key in (name, f"{name}_sd"))
        for place, units in enumerate(units_of(config, found)):
            if units not in LEAST:
                continue
            text = f"EFI, {label}, lead {units:g}"
            checks += [
                check_at_least(
                    f"{text}: correlation with the simulator's",
                    float(value[place]),
                    LEAST[units],
                ),
                check_at_most(
                    f"{text}: correlation of the simulator's halves less it",
                    float(half[place] - value[place]),
                    0.05,
                ),
                check_at_most(
                    f"{text}: deviation over the simulator's, away from 1",
                    float(abs(sd[place] - 1)),
                    0.1,
                ),
            ]
    return checks


def summarise(config, done) -> dict[str, float]:
    """Flat scalars, means over seeds."""
    found = done["efi"]
    return {
        f"efi_{name}_{units:g}": float(found[name].mean(axis=0)[place])
        for name in ("half", *KINDS, *(f"{kind}_sd" for kind in KINDS))
        for place, units in enumerate(units_of(config, found))
    }


def add_table(run_dir, config, done) -> None:
    """Correlations and deviations by lead."""
    found = done["efi"]
    places = range(len(found["leads"]))
    rows = []
    for name, label in KINDS.items():
        sd = found[f"{name}_sd"].mean(axis=0)
        cells = [f"{interval_text(found[name][:, i])}, {sd[i]:.2f}" for i in places]
        rows.append([label, *cells])
    halves = [interval_text(found["half"][:, i]) for i in places]
    rows.append(["the simulator's halves", *halves])
    run_dir.add_table(
        "efi",
        ["trained with", *(f"lead {units:g}" for units in units_of(config, found))],
        rows,
        "Correlation of the extreme forecast index with that of the two-scale simulator"
        f" over {config.num_test} starts and all sites, {config.sizes[-1]} members"
        f" each with perturbations of {NOISE:g} deviations, {config.num_seeds} seeds"
        " (mean and 95 % interval); then the index's deviation over the simulator's."
        " Each system is seen in its own climate. Leads in time units.",
    )
