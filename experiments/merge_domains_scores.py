"""Accuracies of `merge_domains.py` by method, with knobs chosen on validation rows."""

import numpy as np

from ensjax.experiment.fields import load_beside

training = load_beside(__file__, "merge_domains_training")
methods = load_beside(__file__, "merge_domains_methods")

VALIDATION, TEST = (training.PARTS.index(part) for part in ("validation", "test"))
# References that are not merged, and how they are called in figures.
REFERENCES = {
    "base": "base",
    "best_single": "best member",
    "predictive": "ensemble of outputs",
}
ALONE = "dare_alone"  # of one member: no merge


def merges(config) -> list[str]:
    """Names of the merging methods, in the order of the catalogue."""
    return [name for name in methods.METHODS if name in config.grids and name != ALONE]


def by_candidate(done, name, part=TEST) -> np.ndarray:
    """Accuracy (%), mean over draws and domains, `[seed, candidate]`."""
    values = done["merge"][name][..., part, 1:]
    return 100 * values.mean(axis=(2, -1))


def chosen(done, name) -> np.ndarray:
    """The candidate that is best on validation rows, the first of equals, `[seed]`."""
    return by_candidate(done, name, VALIDATION).argmax(axis=1)


def tuned_views(done, name) -> np.ndarray:
    """Test accuracy (%) with the chosen knobs in every view, `[seed, view]`."""
    values = 100 * done["merge"][name][..., TEST, :].mean(axis=2)
    return values[np.arange(len(values)), chosen(done, name)]


def tuned(done, name) -> np.ndarray:
    """Test accuracy (%) with the chosen knobs, mean over domains, `[seed]`."""
    return tuned_views(done, name)[:, 1:].mean(axis=1)


def places(config, name, **knobs) -> np.ndarray:
    """Whether each candidate of a method has these knobs, `[candidate]`."""
    values = methods.candidates(config, name)
    found = [np.isclose(values[knob], value) for knob, value in knobs.items()]
    return np.logical_and.reduce(found)


def at(config, done, name, **knobs) -> np.ndarray | None:
    """Test accuracy (%) with fixed knobs, `[seed]`; None if the grid lacks them."""
    if name not in config.grids:
        return None
    found = places(config, name, **knobs)
    return by_candidate(done, name)[:, found.argmax()] if found.any() else None


def along(config, done, name, knob) -> np.ndarray:
    """Test accuracy (%) by one knob, the others chosen, `[seed, value]`."""
    values = config.grids[name][knob]
    known = by_candidate(done, name, VALIDATION)
    test = by_candidate(done, name)
    curves = []
    for value in values:
        own = np.flatnonzero(places(config, name, **{knob: value}))
        best = own[known[:, own].argmax(axis=1)]
        curves.append(test[np.arange(len(test)), best])
    return np.stack(curves, axis=1)


def reference_views(done, name) -> np.ndarray:
    """Test accuracy (%) of what is not merged in every view, `[seed, view]`."""
    found = done["train"]
    if name != "best_single":
        return 100 * found[name][:, TEST]
    known = found["members"][:, :, VALIDATION, 1:].mean(axis=-1)
    best = known.argmax(axis=1)
    return 100 * found["members"][np.arange(len(best)), best, TEST]


def reference(done, name) -> np.ndarray:
    """Test accuracy (%) of what is not merged, mean over domains, `[seed]`."""
    return reference_views(done, name)[:, 1:].mean(axis=1)


def own_domain(done) -> np.ndarray:
    """Test accuracy (%) of members in their own domains, `[seed, domain]`."""
    return 100 * training.own_accuracy(done["train"]["members"])[..., TEST]


def alone(config, done, drop) -> np.ndarray | None:
    """What dropping changes of members' accuracy in their own domains, `[seed]`.

    In points, mean over members and draws; None if the grid lacks it.
    """
    if ALONE not in config.grids:
        return None
    changes = []
    for member in range(len(training.DOMAINS)):
        found = [
            places(config, ALONE, member=member, drop=value) for value in (drop, 0.0)
        ]
        if not all(f.any() for f in found):
            return None
        values = done["merge"][ALONE][..., TEST, 1 + member].mean(axis=2)
        thinned, whole = (values[:, f.argmax()] for f in found)
        changes.append(100 * (thinned - whole))
    return np.mean(changes, axis=0)
