"""Plans for more devices than CPU stand-ins can be.

XLA's CPU backend numbers at most 2,048 devices of one process. Members do not talk to
each other, so that what one device holds and exchanges is the same for fewer of them,
as long as each device has as many.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ensjax.experiment.configs import ConfigError
from ensjax.train import TrainingJob

MOST_DEVICES = 2048


def sizes_to_stand_in(sizes: Mapping[str, int]) -> dict[str, int]:
    """A mesh of at most `MOST_DEVICES`, with fewer devices along "member" if need be.

    Raises:
        ConfigError: if those along data and model alone are too many.
    """
    sizes = dict(sizes)
    if -1 in sizes.values():
        return sizes
    rest = sizes.get("data", 1) * sizes.get("model", 1)
    if rest > MOST_DEVICES:
        raise ConfigError(
            f"CPU stand-ins are at most {MOST_DEVICES:,} devices; data x model ="
            f" {rest:,}. Plan on fewer of them, or for a topology that libtpu knows"
            " (--topology)."
        )
    most = MOST_DEVICES // rest
    if sizes.get("member", 1) > most:
        sizes["member"] = most
    return sizes


def fewer_members(
    job: Any, sizes: Mapping[str, int], fewer: Mapping[str, int]
) -> tuple[Any, str]:
    """The job with as many members on each device of a smaller mesh, and what it is.

    Raises:
        ConfigError: if the job is not one stack of members.
    """
    if sizes == fewer:
        return job, ""
    number = len(getattr(job, "member_ids", ()))
    if not isinstance(job, TrainingJob):
        raise ConfigError(
            f"CPU stand-ins are at most {MOST_DEVICES:,} devices, and what this config"
            " runs is not one stack, of which fewer members could be planned: use a"
            " smaller --mesh."
        )
    local = -(-number // sizes["member"])
    kept = min(number, local * fewer["member"])

    def cut(tree):
        return jax.tree.map(
            lambda x: x[:kept] if np.ndim(x) and len(x) == number else x, tree
        )

    options = dict(job.options)
    if options.get("weights") is not None:
        options["weights"] = cut(options["weights"])
    words = (
        f"{kept} of {number} members on {fewer['member']} of {sizes['member']} devices"
        f" along member: CPU stand-ins are at most {MOST_DEVICES:,}, and each device of"
        " the whole mesh holds and exchanges the same"
    )
    made = dataclasses.replace(
        job,
        member_ids=job.member_ids[:kept],
        hyper=cut(job.hyper),
        mesh_sizes=dict(job.mesh_sizes) | dict(fewer),
        options=options,
    )
    return made, words
