"""Windows of free runs: what an emulator that makes one step is trained on.

A run `[time, ...]` is cut into windows of some outputs in a row; a network starts at
the first of a window and is scored on the others.
"""

import dataclasses
from typing import Any

import jax
import numpy as np

from ensjax.train.member import takes_hyper


def windows(runs: np.ndarray, length: int, *, stride: int = 1) -> np.ndarray:
    """All windows of runs, `[window, time, ...]`, run by run.

    Args:
        runs: `[run, time, ...]`.
        length: outputs of a window; a step and its start are 2.
        stride: outputs from the start of a window to that of the next.

    Returns:
        NumPy, a copy; windows do not go over the end of a run.

    Raises:
        ValueError: if no window fits, or a number is below 1.

    Example:
        >>> windows(np.arange(4)[None], 3)
        array([[0, 1, 2],
               [1, 2, 3]])
    """
    runs = np.asarray(runs)
    if length < 1 or stride < 1:
        raise ValueError(
            f"length and stride must be at least 1; got {length} and {stride}."
        )
    if runs.ndim < 2 or runs.shape[1] < length or not len(runs):
        raise ValueError(
            f"runs must be [run, time, ...] with at least {length} times; got shape"
            f" {runs.shape}."
        )
    cut = np.lib.stride_tricks.sliding_window_view(runs, length, axis=1)
    cut = np.moveaxis(cut[:, ::stride], -1, 2)
    return cut.reshape(-1, *cut.shape[2:])


@dataclasses.dataclass(frozen=True)
class OwnTask:
    """A loss of `fit` for members that each have data of their own, side by side.

    The batch has leaves `[batch, task, ...]`, and the member's hyperparameter "task"
    says which it is given, `[batch, ...]`: seeds of an experiment with an archive each,
    for instance, trained as one stack.

    Attributes:
        loss: `loss(model, batch, key, weight)`; one that takes hyperparameters itself
            is given them too.
    """

    loss: Any
    takes_hyper = True

    @property
    def axis(self) -> str | None:
        """The mesh axis over which the loss splits members, if any."""
        return getattr(self.loss, "axis", None)

    @property
    def takes_missing(self):
        """Where the loss leaves out what is missing; see `feeds.takes_missing_of`."""
        return getattr(self.loss, "takes_missing", False)

    @property
    def num_steps(self) -> int:
        """Of the loss's forecasts.

        Raises:
            AttributeError: where the loss has none.
        """
        return self.loss.num_steps

    def check(self, batch: Any, ensemble: Any = None) -> None:
        """What `check` of the loss says of one task's part, if it has one.

        Args:
            batch: leaves `[batch, task, ...]`; their shapes are enough.
            ensemble: the stack, if known.

        Raises:
            ValueError: for leaves without an axis of tasks, and as the loss.
        """
        for path, leaf in jax.tree.leaves_with_path(batch):
            if len(leaf.shape) < 2 or not leaf.shape[1]:
                raise ValueError(
                    f"batch{jax.tree_util.keystr(path)} must be [batch, task, ...],"
                    f" with the tasks side by side; got shape {tuple(leaf.shape)}."
                )
        if hasattr(self.loss, "check"):
            own = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct((x.shape[0], *x.shape[2:]), x.dtype),
                batch,
            )
            self.loss.check(own, ensemble)

    def __call__(self, model, batch, key, weight=None, *, hyper):
        own = jax.tree.map(lambda x: x[:, hyper["task"]], batch)
        more = {"hyper": hyper} if takes_hyper(self.loss) else {}
        return self.loss(model, own, key, weight, **more)
