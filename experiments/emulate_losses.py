"""Ways of `bench_emulate` to take a step of the almost fair CRPS: value and gradient.

A way gives what is timed, how many numbers it scores, and what is compared: the mean
and some of its derivatives with respect to the members.
"""

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np

from ensjax.experiment.fields import load_beside

calls = load_beside(__file__, "emulate_calls")

ALPHA = 0.95
NUM_COMPARED = 64


def make_members(members, *elements, last=False):
    """Members `[member, ...]` (or last) and truth `[...]`, float32."""
    rng = np.random.default_rng(0)
    size = int(np.prod(elements))
    forecast = rng.standard_normal((members, size), np.float32)
    truth = rng.standard_normal(size, np.float32)
    return (np.ascontiguousarray(forecast.T) if last else forecast), truth


def _timed(score: Callable[..., Any], size, *, last=False):
    """Value and gradient of the mean of `score(members, truth)`, as one program."""
    import jax

    members, truth = jax.device_put(make_members(*size, last=last))
    step = jax.jit(jax.value_and_grad(lambda x, y: score(x, y).mean()))

    def run():
        return calls.repeat(step, members, truth)

    def compared(found):
        value, slopes = found
        slopes = slopes.T if last else slopes
        own = np.asarray(slopes[:, :NUM_COMPARED]).ravel() * slopes.size
        return np.concatenate([[float(value)], own])

    return run, int(np.prod(size)) * calls.num_repeats(), compared


def of_ensjax(form):
    """`train.kernel_crps` in one of its forms."""

    def way(*size):
        from ensjax.train import kernel_crps

        score = functools.partial(kernel_crps, alpha=ALPHA, form=form)
        return _timed(score, size)

    return way


def pair_tensor(*size):
    """All pairs of members as one array `[member, member, ...]`, as it is written."""
    import jax.numpy as jnp

    def score(members, truth):
        count = len(members)
        away = jnp.abs(members - truth[None])
        distance = jnp.abs(members[:, None] - members[None])
        kept = 1 - (1 - ALPHA) / count
        terms = away[:, None] + away[None] - kept * distance
        # The pair of a member with itself is no pair.
        terms = terms * (1 - jnp.eye(count))[:, :, None]
        return terms.sum(axis=(0, 1)) / (2 * count * (count - 1))

    return _timed(score, size)


def _check_scoringrules():
    if importlib.util.find_spec("scoringrules") is None:
        raise ImportError("scoringrules is not installed")


def scoringrules_pairs(*size):
    """`crps_ensemble` of the fair and the standard estimator by pairs, weighted."""
    _check_scoringrules()
    import scoringrules

    def score(members, truth):
        own = functools.partial(
            scoringrules.crps_ensemble, truth, members, backend="jax"
        )
        return ALPHA * own(estimator="fair") + (1 - ALPHA) * own(estimator="nrg")

    return _timed(score, size, last=True)


def scoringrules_sorted(*size):
    """`crps_ensemble` by quantiles (standard), turned into the almost fair form."""
    _check_scoringrules()
    import jax.numpy as jnp
    import scoringrules

    count = size[0]

    def score(members, truth):
        standard = scoringrules.crps_ensemble(
            truth, members, estimator="qd", backend="jax"
        )
        error = jnp.abs(members - truth[:, None]).mean(axis=1)
        fair = error - (error - standard) * count / (count - 1)
        return ALPHA * fair + (1 - ALPHA) * standard

    return _timed(score, size, last=True)


WAYS = {
    "ensjax": of_ensjax("auto"),
    "ensjax pairs": of_ensjax("pairs"),
    "ensjax sorted": of_ensjax("sorted"),
    "pair tensor": pair_tensor,
    "scoringrules jax, pairs": scoringrules_pairs,
    "scoringrules jax, sorted": scoringrules_sorted,
}
