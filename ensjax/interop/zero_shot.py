"""Classifiers from an ensemble of CLIPs: each member's own, by its own text tower."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from ensjax.ensemble import Ensemble
from ensjax.graphs import NnxGraph
from ensjax.mapping import map_members
from ensjax.nn import CLIP, zero_shot_classifier


def zero_shot_classifiers(
    ensemble: Ensemble, tokens: jax.Array, *, block: int | str | None = "auto"
) -> Ensemble:
    """An ensemble of `nn.ClipClassifier`, from descriptions of the classes.

    They can be fine-tuned, swept and mixed as any ensemble: the zero-shot end of a
    WiSE-FT path.

    Args:
        ensemble: of `nn.CLIP`.
        tokens: of the prompts, `[class, prompt, token]`.
        block: how many members of a device run at once.

    Returns:
        One classifier for each member, under the same ids, on the same mesh.

    Raises:
        TypeError: if the members are no CLIPs.
        ValueError: if `tokens` is not 3-dimensional or has too many tokens.

    Example::

        classifiers = zero_shot_classifiers(from_checkpoints(["clip/"]), tokens)
        logits = classifiers(images)  # [member, batch, class]
    """
    tokens = jnp.asarray(tokens)
    one = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), ensemble.state
    )
    if isinstance(ensemble.graph, NnxGraph):
        model = nnx.eval_shape(lambda: ensemble.graph.merge(one, train=True))
    if not isinstance(ensemble.graph, NnxGraph) or not isinstance(model, CLIP):
        raise TypeError("zero_shot_classifiers takes an ensemble of ensjax.nn.CLIP.")
    abstract = nnx.eval_shape(zero_shot_classifier, model, tokens)
    program = map_members(
        _Classifier(ensemble.graph),
        kinds=("member", "shared"),
        mesh=ensemble.mesh,
        block=block,
    )
    return dataclasses.replace(
        ensemble,
        state=program(ensemble.state, tokens),
        graph=NnxGraph(nnx.graphdef(abstract)),
    )


@dataclasses.dataclass(frozen=True)
class _Classifier:
    """The state of one member's classifier."""

    graph: NnxGraph

    def __call__(self, state, tokens):
        classifier = zero_shot_classifier(self.graph.merge(state, train=True), tokens)
        _, params, rest = nnx.split(classifier, nnx.Param, ...)
        return {"params": params, "rest": rest}
