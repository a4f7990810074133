"""What `huge_ensembles.py` measures of ensembles at every lead."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ensjax import verification
from ensjax.experiment.fields import load_beside
from ensjax.scores import auroc

efi = load_beside(__file__, "lorenz96_efi")


def measure(name: str, draws, truth, event: float) -> dict[str, np.ndarray]:
    """Scores of an ensemble by lead, means over its draws.

    Args:
        name: of the ensemble.
        draws: `[draw, member, start, lead, site]`.
        truth: `[start, lead, site]`.
        event: what a site exceeds in it.

    Returns:
        `<name>_rmse`, `_ssr`, `_fair`, `_crps` `[lead]`; `_power` and `_mean_power`
        `[lead]`, power in the upper half of the wavenumbers of members and of their
        mean, over the truth's; `_slope` and `_roc` `[lead]` of the event;
        `_reliability` `[lead, 3, bin]`; `_spectrum` and `_mean_spectrum` `[lead,
        wavenumber]` over the truth's, and `_ranks` `[lead, rank]`.
    """
    parts = []
    for members in draws:
        values = jax.device_get(_measured(members, truth, event, number=len(members)))
        parts.append({k: np.asarray(v, np.float64) for k, v in values.items()})
    stacked = {k: np.stack([part[k] for part in parts]) for k in parts[0]}
    return {
        f"{name}_{k}": pooled(v) if k == "reliability" else v.mean(axis=0)
        for k, v in stacked.items()
    }


def pooled(parts) -> np.ndarray:
    """Reliability of some draws or seeds as one, `[..., 3, bin]`.

    Args:
        parts: probability, frequency and weight of bins, `[part, ..., 3, bin]`; what an
            empty bin holds does not count.
    """
    weight = parts[..., 2, :]
    values = np.where(weight[..., None, :] > 0, parts[..., :2, :], 0.0)
    total = weight.sum(axis=0)[..., None, :]
    means = (values * weight[..., None, :]).sum(axis=0) / np.maximum(total, 1e-9)
    return np.concatenate([means, total], axis=-2)


@functools.partial(jax.jit, static_argnames="number")
def _measured(members, truth, event, *, number):
    def score(metric, *axes, reference=None):
        return metric.over(*axes)(members, truth, reference=reference)

    spread = score(verification.spread_skill(), 0, 2)
    spectra = score(verification.zonal_spectra(), 0)
    upper = truth.shape[-1] // 4 + 1  # of half as many wavenumbers as sites
    truth_power = jnp.sum(spectra.truth[..., upper:], axis=-1)
    levels = {"thresholds": jnp.full((1,), event, jnp.float32)}
    options = dict(reference=levels)
    bins = score(verification.event_table(num_bins=10), 0, 2, **options)
    table = score(verification.event_table(num_members=number), 0, 2, **options)
    diagram = verification.reliability_diagram(bins)
    ranks = score(verification.rank_histogram(number), 0, 2)
    return {
        "rmse": spread.skill,
        "ssr": spread.ratio,
        "fair": score(verification.crps("fair"), 0, 2),
        "crps": score(verification.crps(), 0, 2),
        "power": jnp.sum(spectra.members[..., upper:], axis=-1) / truth_power,
        "mean_power": jnp.sum(spectra.ensemble_mean[..., upper:], axis=-1)
        / truth_power,
        "spectrum": spectra.members_ratio,
        "mean_spectrum": spectra.mean_ratio,
        "slope": reliability_slope(diagram)[..., 0],
        "roc": verification.roc_area(table)[..., 0],
        "reliability": jnp.stack([x[..., 0, :] for x in diagram], axis=-2),
        "ranks": ranks.counts,
    }


def reliability_slope(diagram) -> jax.Array:
    """Of frequency against probability, weighted least squares over bins, `[...]`."""
    weight = diagram.weight
    is_full = weight > 0
    weight = weight / jnp.sum(weight, axis=-1, keepdims=True)
    x = jnp.where(is_full, diagram.probability, 0.0)
    y = jnp.where(is_full, diagram.frequency, 0.0)
    x = x - jnp.sum(weight * x, axis=-1, keepdims=True)
    y = y - jnp.sum(weight * y, axis=-1, keepdims=True)
    return jnp.sum(weight * x * y, axis=-1) / jnp.sum(weight * x**2, axis=-1)


def measure_efi(found, archive, event: float, truth) -> dict[str, np.ndarray]:
    """The EFI of emulators beside that of the system, each in its own climate.

    Args:
        found: of `efi_members`.
        archive: of the seed, whose training runs are the system's climate.
        event: what a site exceeds in it.
        truth: `[start, lead, site]` at the EFI's leads.

    Returns:
        `efi_<name>` `[lead]`, correlation over starts and sites with the system's;
        `efi_half` that of the system's halves, and `efi_<name>_half`, the mean over
        halves of both of what is its like in size; `efi_<name>_sd` over the system's;
        and `efi_<name>_auc`, how well it tells events from others.
    """
    climate = (archive["train"] - archive["mean"]) / archive["sd"]
    system = efi.index_of(found["system"], climate)
    halves = [efi.index_of(found["system"][i::2], climate) for i in range(2)]
    result = {"efi_half": efi.correlations(*halves)}
    result["efi_system_auc"] = _areas(system, truth > event)
    for name in ("emulator", "emulator_random"):
        own = efi.index_of(found[name], found["free"])
        parts = [
            efi.index_of(half, found["free"]) for half in _halves_of_pairs(found[name])
        ]
        of_halves = [efi.correlations(a, b) for a in parts for b in halves]
        result |= {
            f"efi_{name}": efi.correlations(own, system),
            f"efi_{name}_half": np.mean(of_halves, axis=0),
            f"efi_{name}_sd": own.std(axis=(0, 2)) / system.std(axis=(0, 2)),
            f"efi_{name}_auc": _areas(own, truth > event),
        }
    return result | {
        "efi_pair": np.stack([efi.index_of(found["emulator"], found["free"]), system])
    }


def _halves_of_pairs(members):
    """Every other pair of members that follow each other, and the rest."""
    pairs = members.reshape(-1, 2, *members.shape[1:])
    return [pairs[i::2].reshape(-1, *members.shape[1:]) for i in range(2)]


def _areas(index, is_event):
    leads = range(index.shape[1])
    return np.array(
        [float(auroc(index[:, i].ravel(), is_event[:, i].ravel())) for i in leads]
    )
