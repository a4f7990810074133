"""What a user may pass to `fit`, checked before any work is done."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from ensjax.data.sampling import accumulate_weights
from ensjax.ensemble import Ensemble
from ensjax.graphs import NnxGraph
from ensjax.group import Group
from ensjax.mesh import check_mesh, fetch, place
from ensjax.train import losses
from ensjax.train.assembly import Stacks
from ensjax.train.evaluation import EarlyStopping
from ensjax.train.member import SAMPLINGS, takes_hyper
from ensjax.train.numbers import integer
from ensjax.train.objectives import Joint


def stacks_of(ensemble: Ensemble | Group) -> tuple[Ensemble, ...]:
    """The ensembles of a group, or the one that there is.

    Raises:
        TypeError: for anything else.
        ValueError: if an id occurs twice: data order and dropout follow the id.
    """
    if not isinstance(ensemble, (Ensemble, Group)):
        raise TypeError(
            f"ensemble must be an Ensemble or a Group; got {type(ensemble).__name__}."
            " Ensemble.stack([model]) makes one of a model."
        )
    ensembles = ensemble.ensembles if isinstance(ensemble, Group) else (ensemble,)
    ids = np.concatenate([fetch(e.member_ids) for e in ensembles])
    if len(set(ids.tolist())) < len(ids):
        raise ValueError(
            f"member_ids must differ, since data order and dropout follow the id; got"
            f" {ids.tolist()}. Give new ids with Ensemble.with_ids."
        )
    return ensembles


def check_fit_mesh(mesh: Mesh, loss: Any = None) -> None:
    """Raises `ValueError` for a mesh on which devices would repeat others' work.

    A loss whose `axis` is "model" splits its own work over it (`train.NoiseCrps`), as
    one does whose `latitude_axis` is (`train.SphericalCrps`).
    """
    check_mesh(mesh)
    axes = [getattr(loss, name, None) for name in ("axis", "latitude_axis")]
    if mesh.shape["model"] > 1 and "model" not in axes:
        raise ValueError(
            f"fit does not split one member: model={mesh.shape['model']} devices would"
            " all compute the same. Use more of member or data; shard_state=True splits"
            ' the state over data, NoiseCrps(axis="model") its members over model, and'
            ' SphericalCrps(latitude_axis="model") latitudes.'
        )


def check_functions(
    loss: Any, make_tx: Any, hyper: Any, augment: Any, evaluation_loss: Any = None
) -> None:
    """Raises `TypeError` for what is not a function of the right arguments."""
    if not isinstance(loss, Joint) and not callable(loss):
        raise TypeError(
            "loss must be a function loss(model, batch, key), or a Joint; got"
            f" {type(loss).__name__}."
        )
    if augment is not None and not callable(augment):
        raise TypeError(
            "augment must be a function augment(key, example); got"
            f" {type(augment).__name__}."
        )
    settings = {"loss": loss, "make_tx": make_tx, "augment": augment}
    settings["evaluation_loss"] = evaluation_loss
    for name, value in settings.items():
        try:
            hash(value)
        except TypeError:
            raise TypeError(
                f"{name} must be hashable, since compiled programs are found by it;"
                f" make {type(value).__name__} a frozen dataclass, or a function."
            ) from None
    if takes_hyper(loss) and hyper is None:
        raise TypeError(
            f"{type(loss).__name__} takes the member's hyperparameters; pass them as"
            " hyper=, a dict of arrays [member]."
        )
    if not callable(make_tx):
        raise TypeError(
            "make_tx must be a function that builds the optimizer of one member, such"
            f" as optax.adam with hyper=1e-3; got {type(make_tx).__name__}."
        )
    arguments = () if hyper is None else (hyper,)
    try:
        inspect.signature(make_tx).bind(*arguments)
    except TypeError as error:
        raise TypeError(
            f"make_tx is called with {len(arguments)} arguments here, since hyper is"
            f" {'None' if hyper is None else 'given'}: {error}."
        ) from None
    except ValueError:
        return  # some builtins have no signature


def check_seed(seed: Any) -> int:
    """The seed as an integer of 31 bits, which the compiled program takes."""
    seed = integer("seed", seed)
    if not 0 <= seed < 2**31:
        raise ValueError(f"seed must be from 0 to 2^31 - 1; got {seed}.")
    return seed


def check_sampling(
    sampling: str, weights: Any, loss_weights: Any, *, is_resident: bool
) -> None:
    """Raises `ValueError` for a sampling that is unknown, or unfit for the data."""
    known = SAMPLINGS[:-1]
    if sampling not in known:
        raise ValueError(
            f"sampling must be one of {', '.join(known)}; got {sampling!r}."
        )
    if not is_resident and sampling in ("bootstrap", "weighted"):
        raise ValueError(
            f"sampling={sampling!r} draws from arrays; a stream brings its own order,"
            " which all members share."
        )
    if (weights is not None) != (sampling == "weighted"):
        raise ValueError(
            'weights belong to sampling="weighted", which needs them; got sampling='
            f"{sampling!r} and weights={'None' if weights is None else 'given'}."
        )
    if loss_weights is not None and not is_resident:
        raise ValueError(
            "loss_weights are of the rows of arrays; a stream yields the weights with"
            " its examples, and the loss finds them in the batch."
        )
    if loss_weights is not None and weights is not None:
        raise ValueError(
            'loss_weights cannot be combined with sampling="weighted": rows are drawn'
            " by their weights, or weighted in the loss."
        )


def check_evaluation(
    evaluation: Any,
    data: Any,
    *,
    evaluation_loss: Callable[..., Any] | None,
    evaluate_every_steps: int | None,
    evaluation_batch_size: int,
    early_stopping: EarlyStopping | None,
) -> None:
    """Raises `ValueError` for what means nothing without `evaluation`, or misfits it.

    `data` are the resident arrays, or None for a stream.

    Raises:
        TypeError: for what is no `EarlyStopping`, or no integer.
    """
    if early_stopping is not None and not isinstance(early_stopping, EarlyStopping):
        raise TypeError(
            "early_stopping must be an ensjax.EarlyStopping(patience=5), or None; got"
            f" {early_stopping!r}."
        )
    evaluation_batch_size = integer("evaluation_batch_size", evaluation_batch_size)
    if evaluation is None:
        given = {
            "early_stopping": early_stopping,
            "evaluation_loss": evaluation_loss,
            "evaluate_every_steps": evaluate_every_steps,
        }
        for name, value in given.items():
            if value is not None:
                raise ValueError(f"{name} needs an evaluation; pass evaluation=(x, y).")
    elif data is not None and evaluation_loss is None:
        ours, theirs = jax.tree.structure(data), jax.tree.structure(evaluation)
        if ours != theirs:
            raise ValueError(
                "evaluation must hold arrays in the structure of data, since the loss"
                f" takes both: expected {_shown(ours)}, got {_shown(theirs)}. With"
                " another structure pass evaluation_loss."
            )
    if evaluation_batch_size < 1:
        raise ValueError(
            f"evaluation_batch_size must be at least 1; got {evaluation_batch_size}."
        )


def check_averages(averages: Mapping[str, Any] | None) -> tuple[tuple[str, Any], ...]:
    """Names and averages of the weights along training, in order.

    Raises:
        TypeError: if they are no mapping, or one is not a hashable object with `init`
            and `update`.
    """
    if averages is None:
        return ()
    if not isinstance(averages, Mapping):
        raise TypeError(
            "averages is a dict of names and averages, such as"
            f' {{"ema": ensjax.weight_space.EMA(0.99)}}; got {averages!r}.'
        )
    for name, own in averages.items():
        has_both = callable(getattr(own, "init", None)) and callable(
            getattr(own, "update", None)
        )
        if not has_both or isinstance(own, type):
            raise TypeError(
                f"averages[{name!r}] must have init(params) and update(state, params),"
                f" as ensjax.weight_space.EMA(0.99) has; got {own!r}."
            )
    return tuple(averages.items())


def check_labels(
    loss: Any, ensembles: tuple[Ensemble, ...], data: Any, name: str
) -> None:
    """Raises `ValueError` for a label that is no class, under `losses.cross_entropy`.

    The loss would be NaN, and every member frozen at once.

    Args:
        loss: any loss; others are not looked at.
        ensembles: whose outputs say how many classes there are.
        data: resident arrays; looked at if they are `(x, integer labels)`.
        name: of the data, for the message.
    """
    is_pair = isinstance(data, (tuple, list)) and len(data) == 2
    if loss is not losses.cross_entropy or not is_pair:
        return
    x, labels = data
    is_here = not isinstance(labels, jax.Array) or labels.is_fully_addressable
    labels = np.asarray(labels) if is_here else np.zeros(0)
    if labels.ndim != 1 or not labels.size or labels.dtype.kind not in "iu":
        return  # the loss says what it needs
    rows = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype), x
    )
    for ensemble in ensembles:
        outputs = jax.eval_shape(
            lambda state, x, graph=ensemble.graph: graph.merge(
                jax.tree.map(lambda leaf: leaf[0], state), train=False
            )(x),
            ensemble.state,
            rows,
        )
        if len(getattr(outputs, "shape", ())) != 2:
            return
        num_classes = outputs.shape[1]
        bad = np.flatnonzero((labels < 0) | (labels >= num_classes))
        if len(bad):
            raise ValueError(
                f"{name}[1] must hold labels from 0 to {num_classes - 1}, as the models"
                f" have {num_classes} outputs; row {bad[0]} has {labels[bad[0]]}"
                f" ({len(bad)} of {len(labels)} rows are wrong)."
            )


def _shown(structure):
    return str(structure).removeprefix("PyTreeDef(").removesuffix(")")


def check_joint(
    joint: Joint,
    ensembles: tuple[Ensemble, ...],
    *,
    sampling: str,
    local_batch_size: int,
    evaluation: Any,
    evaluation_loss: Callable[..., Any] | None,
    loss_weights: Any = None,
) -> None:
    """Raises `ValueError` for what a joint objective cannot work with."""
    if loss_weights is not None:
        raise ValueError(
            "loss_weights weigh the rows of each member's own loss; a joint objective"
            " has one loss. Put weights that all members share into the batch."
        )
    if sampling not in ("shared", "stream"):
        raise ValueError(
            'A joint objective compares members on the same examples: sampling="shared"'
            f" or a stream; got sampling={sampling!r}."
        )
    if evaluation is not None and evaluation_loss is None:
        raise ValueError(
            "evaluation is of one member at a time; with a joint objective pass"
            " evaluation_loss."
        )
    if joint.batch_block is None:
        return
    if local_batch_size % joint.batch_block:
        raise ValueError(
            f"batch_block={joint.batch_block} must divide the {local_batch_size}"
            " examples of a data shard."
        )
    for ensemble in ensembles:
        rest = ensemble.state["rest"]
        if isinstance(ensemble.graph, NnxGraph) and nnx.to_flat_state(rest):
            path, variable = nnx.to_flat_state(rest)[0]
            raise ValueError(
                f"batch_block={joint.batch_block} takes a batch apart, which changes"
                f" what a {type(variable).__name__} sees ({'.'.join(map(str, path))});"
                " batch norm and dropout need batch_block=None."
            )


def per_member(hyper: Any, num_members: int) -> Any:
    """Hyperparameters as float32 or int32 arrays `[member, ...]`.

    Raises:
        TypeError: for what is not a number.
        ValueError: for an array of another length; names the entry.
    """

    def spread(path, value):
        name = "hyper" + jax.tree_util.keystr(path)
        value = np.asarray(value)
        if value.dtype == object or not np.issubdtype(value.dtype, np.number):
            raise TypeError(
                f"{name} must be a number or numbers [member]; got {value!r}."
            )
        if value.ndim and value.shape[0] != num_members:
            raise ValueError(
                f"{name} has {value.shape[0]} values for {num_members} members."
            )
        dtype = np.float32 if np.issubdtype(value.dtype, np.floating) else np.int32
        value = value.astype(dtype)
        return np.broadcast_to(value, (num_members,)) if not value.ndim else value

    leaf = lambda x: isinstance(x, (tuple, list))  # noqa: E731
    return jax.tree_util.tree_map_with_path(spread, hyper, is_leaf=leaf)


def placed_weights(
    weights: Any, num_examples: int, stacks: Stacks, *, for_loss: bool
) -> Any:
    """Weights for every stack, and of what kind they are.

    Running sums to draw rows by, or the rows' weights in the loss, float32.

    Raises:
        ValueError: for another shape, negative or non-finite weights, or none.
    """
    if weights is None:
        return (None,) * len(stacks.num_members), "shared"
    weights = np.asarray(weights)
    name = "loss_weights" if for_loss else "weights"
    check_weights_shape(weights.shape, num_examples, sum(stacks.num_members), name=name)
    placed = accumulate_weights(weights, name=name)  # checks the values, too
    if for_loss:
        placed = weights.astype(np.float32)
    if placed.ndim == 2:
        return stacks.placed(stacks.split(placed)), "member"
    shared = place(jnp.asarray(placed), stacks.mesh, jax.P())
    return (shared,) * len(stacks.num_members), "shared"


def check_weights_shape(
    shape: Any, num_examples: int, num_members: int, *, name: str = "weights"
) -> str:
    """The kind of weights of a shape: "shared" by all members, or "member".

    Raises:
        ValueError: for any other shape.
    """
    if tuple(shape) == (num_examples,):
        return "shared"
    if tuple(shape) == (num_members, num_examples):
        return "member"
    raise ValueError(
        f"{name} are [example] = ({num_examples},) or [member, example] ="
        f" ({num_members}, {num_examples}); got {tuple(shape)}."
    )


_AXES = [(name, 1) for name in ("member", "data", "model")]


def check_optimizer(
    make_tx: Callable[..., Any], hyper: Any, ensembles: tuple[Ensemble, ...]
) -> None:
    """Raises `ValueError` if the optimizer of one member cannot take its `hyper`.

    Looks only where a member has more than single numbers, such as a vector for which
    `make_tx` must have a use: broadcasting would fail far from here.

    Args:
        make_tx: as for `fit`.
        hyper: `[member, ...]`, as `per_member` gave it.
        ensembles: of the members.
    """
    shapes = {
        "hyper" + jax.tree_util.keystr(path): value.shape
        for path, value in jax.tree.leaves_with_path(hyper)
        if value.ndim > 1
    }
    if not shapes:
        return

    def one(stacked):
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), stacked
        )

    def update(params, hyper):
        tx = make_tx(hyper)
        updates, _ = tx.update(params, tx.init(params), params)
        return optax.apply_updates(params, updates)

    for ensemble in ensembles:
        params = one(ensemble.params)
        try:
            # With the axes of the mesh, which an optimizer may sum over.
            traced = jax.make_jaxpr(update, axis_env=_AXES, return_shape=True)
            after = traced(params, one(hyper))[1]
            fits = jax.tree.map(lambda a, b: a.shape == b.shape, params, after)
            why = "" if jax.tree.all(fits) else "the weights would have another shape"
        except (TypeError, ValueError) as error:
            why = str(error).splitlines()[0].rstrip(".")
        if why:
            listed = ", ".join(f"{name} is {shape}" for name, shape in shapes.items())
            raise ValueError(
                f"make_tx cannot take the hyperparameters of one member ({why});"
                f" {listed}, [member, ...]. Expected one number for each member, or a"
                " make_tx that takes what one member has."
            )
