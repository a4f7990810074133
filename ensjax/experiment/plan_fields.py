"""Which fields of a config set what `ensjax plan` looks for: found by trying them.

A field of the right name may be of another part of an experiment than the one that is
planned, and may take fewer values than the engine. So a field counts if the job that is
made with another value of it is another one, and only values are printed that were
taken so.
"""

import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import ml_collections

from ensjax.experiment.exit_codes import ConfigError
from ensjax.experiment.overrides import apply_overrides, flatten_fields

# Of `ops.Conv`: those that any convolution may take.
FORMS = ("auto", "plain", "patches", "mixed")


@dataclasses.dataclass(frozen=True)
class PlanFields:
    """The dotted name of the field behind each choice; None where there is none.

    Attributes:
        block: how many local members run at once.
        batch_size: examples of a member's batch.
        unroll: members written out.
        remat: whether the model computes its blocks again for the gradient.
        conv_form: form of the convolutions.
        words: of "auto" and "all", those that `block` takes beside numbers.
    """

    block: str | None = None
    batch_size: str | None = None
    unroll: str | None = None
    remat: str | None = None
    conv_form: str | None = None
    words: frozenset[str] = frozenset()

    def block_text(self, block: int | str | None, number: int) -> str:
        """What sets the block: a word where the field takes it, else a number.

        Args:
            block: "auto", None or "all" (local members), or how many.
            number: of members at once that is the same here as the word.
        """
        word = "all" if block is None else block
        if word in ("auto", "all") and word not in self.words:
            return str(number)
        return str(word)

    def missing(self, names: Sequence[str]) -> tuple[str, ...]:
        """Those of `names` that no field sets."""
        return tuple(name for name in names if getattr(self, name) is None)


def find_fields(
    config: ml_collections.ConfigDict,
    job: Any,
    make_job: Callable[[ml_collections.ConfigDict], Any],
) -> PlanFields:
    """The fields that set what of a job can be chosen; nothing is compiled.

    Args:
        config: of the run.
        job: of this config, with the arguments of `fit` as `options`.
        make_job: checks a config and makes its job; what it raises counts as a value
            that the config does not take.
    """
    block, unroll = job.options.get("block", "auto"), job.options.get("unroll", False)
    batch_size = batch_size_of(job)

    def sets(field: str, text: str, name: str, value: Any) -> bool:
        try:
            changed = make_job(changed_config(config, [(field, text)]))
        except (ConfigError, TypeError, ValueError):
            return False
        is_batch = name == "batch_size"
        found = batch_size_of(changed) if is_batch else changed.options.get(name)
        return type(found) is type(value) and found == value

    def find(name: str, value: Any) -> str | None:
        fields = _fields_named(config, name)
        text = str(value).lower()
        return next((f for f in fields if sets(f, text, name, value)), None)

    block_field = find("block", 2 if block == 1 else 1)
    words = set()
    if block_field is not None:
        values = {"auto": "auto", "all": None}
        words = {w for w, v in values.items() if sets(block_field, w, "block", v)}
    return PlanFields(
        block=block_field,
        batch_size=find("batch_size", batch_size // 2 or 2),
        unroll=find("unroll", not unroll),
        remat=next(iter(_fields_named(config, "remat")), None),
        conv_form=next(iter(_fields_named(config, "conv_form")), None),
        words=frozenset(words),
    )


def batch_size_of(job: Any) -> int:
    """Examples of the global batch of each member of a job."""
    if job.is_stream:
        return jax.tree.leaves(job.data)[0].shape[0]
    return job.options.get("batch_size", 64)


def changed_config(
    config: ml_collections.ConfigDict, fields: Sequence[tuple[str, str]]
) -> ml_collections.ConfigDict:
    """A copy with fields set as the command line sets them.

    Raises:
        ConfigError: as `apply_overrides`.
    """
    changed = copy.deepcopy(config)
    with changed.unlocked():
        apply_overrides(changed, list(fields))
    return changed


def _fields_named(config, name) -> list[str]:
    """The fields whose last part is `name`, the outermost first."""
    found = [key for key, _ in flatten_fields(config) if key.split(".")[-1] == name]
    return sorted(found, key=lambda key: key.count("."))
