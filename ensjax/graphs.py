"""The static half of a member: how a module or function is made from its arrays.

A graph is hashable and compared by value, so that programs are cached by it. Two kinds
are enough: flax NNX modules, and functions `apply(params, x)` over any pytree.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from flax import nnx


@dataclasses.dataclass(frozen=True)
class NnxGraph:
    """The static half of an NNX member."""

    graphdef: nnx.GraphDef

    def merge(self, state: Any, *, train: bool) -> nnx.Module:
        """One module from one member's state, in training or evaluation mode.

        While training, batch norm reduces over the mesh axis "data", so that a batch
        means the same on any mesh.
        """
        model = nnx.merge(self.graphdef, state["params"], state["rest"], copy=True)
        if train:
            model.train()
            for _, module in nnx.iter_modules(model):
                if isinstance(module, nnx.BatchNorm):
                    module.axis_name = "data"
        else:
            model.eval()
        return model

    def rest(self, model: nnx.Module) -> Any:
        """What is not a parameter of a module that has run (batch statistics, keys)."""
        return nnx.split(model, nnx.Param, nnx.Intermediate, ...)[3]


@dataclasses.dataclass(frozen=True)
class ApplyGraph:
    """The static half of a member that is a function `apply(params, x)`."""

    apply: Callable[[Any, Any], Any]

    def merge(self, state: Any, *, train: bool) -> Callable[..., Any]:
        """`apply` with one member's parameters; the same in both modes."""
        del train
        return BoundApply(self.apply, state["params"])

    def rest(self, model: Any) -> Any:
        """Such members have nothing but parameters."""
        del model
        return {}


class BoundApply:
    """`apply` with its parameters: called as a model; a loss may read `params`."""

    def __init__(self, apply, params):
        self.apply, self.params = apply, params

    def __call__(self, *args, **kwargs):
        return self.apply(self.params, *args, **kwargs)


@dataclasses.dataclass(frozen=True)
class Forward:
    """One member's outputs in evaluation mode."""

    graph: Any

    def __call__(self, state, x):
        return self.graph.merge(state, train=False)(x)
