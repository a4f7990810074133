"""Finite networks of the kernels' architectures, and their training by full batches.

A parameterisation is three numbers for each layer: what its weights are multiplied by,
the standard deviation they begin with, and their share of the learning rate. Rates are
those of the kernel: gradient descent on half the sum of squared errors at rate r
multiplies errors by I - r T, whatever the parameterisation, while the width is large.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from ensjax.members import member_key
from ensjax.ntk.duals import check_function
from ensjax.ntk.gaussian_process import check_positive, steps_to
from ensjax.ntk.kernels import FullyConnected, kernel
from ensjax.ntk.permutations import check_count
from ensjax.ntk.schedules import warn_above_critical
from ensjax.train import TrainingJob


class LayerScale(NamedTuple):
    """How one layer is parameterised.

    Attributes:
        multiplier: of its weights in the forward pass.
        initial: standard deviation of the weights at the start.
        rate: factor of the learning rate; 0 for a layer that does not learn.
        bias_multiplier, bias_initial: likewise of the bias, whose rate is the weights'.
    """

    multiplier: float
    initial: float
    rate: float
    bias_multiplier: float
    bias_initial: float


def layer_scales(
    spec: FullyConnected, *, in_features: int, width: int
) -> tuple[LayerScale, ...]:
    """The scales of every layer of a finite network, the readout last.

    As `FullyConnected` describes them. With "readout" hidden layers have rate 0.
    "standard" has its factors in the initial weights and one rate, a share
    weight_variance / width of the kernel's (elsewhere the name may mean a kernel that
    is not divided by the width). "mup" is mean-field: the output has a further 1 /
    sqrt(width), and rates a factor of the width.

    Args:
        spec: of the network.
        in_features: inputs.
        width: of each hidden layer.

    Raises:
        TypeError: if a size is no integer.
        ValueError: if a size is below 1.
    """
    check_count(in_features, "in_features")
    check_count(width, "width")
    last, scales = spec.hidden_layers, []
    for layer in range(last + 1):
        fan_in = width if layer else in_features
        weight = float(np.sqrt(spec.weight_variance / fan_in))
        bias = float(np.sqrt(spec.bias_variance))
        scale = LayerScale(weight, 1.0, 1.0, bias, 1.0)
        if spec.parameterisation == "readout":
            scale = scale._replace(rate=float(layer == last))
        elif spec.parameterisation == "standard":
            rate = spec.weight_variance / width
            scale = LayerScale(1.0, weight, rate, 1.0, bias)
        elif spec.parameterisation == "mup":
            shrink = 1 / np.sqrt(width) if layer == last else 1.0
            scale = LayerScale(
                float(weight * shrink), 1.0, float(width), float(bias * shrink), 1.0
            )
        scales.append(scale)
    return tuple(scales)


class WideNetwork(nnx.Module):
    """A fully connected network of `FullyConnected`, of finite width.

    Args:
        spec: architecture and parameterisation.
        in_features: inputs.
        width: of each hidden layer.
        num_outputs: outputs.
        activation: where the dual of the spec has no function (`Dual.fn`), which one
            that is made by hand may lack; defined once.
        rngs: stream `params`.

    Raises:
        TypeError: if a size is no integer.
        ValueError: if a size is below 1, the activation is not known, or the one given
            is another than the spec's.
    """

    def __init__(
        self,
        spec: FullyConnected,
        *,
        in_features: int,
        width: int,
        num_outputs: int,
        activation: Callable[[jax.Array], jax.Array] | None = None,
        rngs: nnx.Rngs,
    ):
        check_count(num_outputs, "num_outputs")
        self.activation = _activation(spec, activation)
        self.scales = layer_scales(spec, in_features=in_features, width=width)
        sizes = (in_features, *(width,) * spec.hidden_layers, num_outputs)
        self.kernels, self.biases = nnx.List(), nnx.List()
        for scale, shape in zip(self.scales, zip(sizes[:-1], sizes[1:])):
            normal = jax.random.normal(rngs.params(), shape)
            self.kernels.append(nnx.Param(scale.initial * normal))
            if spec.bias_variance:
                normal = jax.random.normal(rngs.params(), shape[1:])
                self.biases.append(nnx.Param(scale.bias_initial * normal))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Outputs `[batch, output]` of inputs `[batch, feature]`, float32.

        Raises:
            ValueError: if inputs are of another width.
        """
        features = self.kernels[0].shape[0]
        if x.ndim != 2 or x.shape[1] != features:
            raise ValueError(f"inputs must be [batch, {features}]; got {x.shape}.")
        for layer, scale in enumerate(self.scales):
            x = self.activation(x) if layer else x
            weights = self._learning(scale, self.kernels[layer][...])
            x = scale.multiplier * jnp.matmul(x, weights, precision="highest")
            if len(self.biases):
                bias = self._learning(scale, self.biases[layer][...])
                x = x + scale.bias_multiplier * bias[None]
        return x

    def _learning(self, scale, weights):
        """Weights of rate 0 have no gradient, which saves what it would cost."""
        return weights if scale.rate else jax.lax.stop_gradient(weights)


def _activation(spec, activation):
    """The function that the spec's kernels are about."""
    dual = spec.dual
    if dual.fn is None and activation is None:
        raise ValueError(
            f"the function of the activation {dual.name!r} is not known here: its dual"
            " has none. Give it as activation=, or make the dual by ntk.dual(fn)."
        )
    if dual.fn is not None and activation is not None:
        check_function(dual, activation)
    return dual.fn if activation is None else activation


class Schedule(NamedTuple):
    """How long and how fast to train, from the kernel of the training rows.

    Attributes:
        learning_rate: in the kernel's units (`layer_scales` converts it).
        steps: until the error of every mode is below the residual.
        critical: the rate at which errors fall fastest.
    """

    learning_rate: float
    steps: int
    critical: float


def training_schedule(
    spec: FullyConnected,
    x_train: np.ndarray,
    *,
    residual: float,
    fraction: float = 0.9,
    learning_rate: float | None = None,
    width: int | None = None,
) -> Schedule:
    """Rate and steps of gradient descent that reach a residual.

    Args:
        spec: of the network. For "mup", whose kernel moves, the rate is that of the
            kernel at initialisation and the steps are a guess.
        x_train: `[row, feature]`.
        residual: share of its first error that every mode may keep, such as 1e-5.
        fraction: of the critical rate; 0.9 leaves room for what the kernel of a finite
            network differs by.
        learning_rate: instead of `fraction`. Above the critical rate a warning names
            it.
        width: of the finite network, for terms of order 1 / width; None: none.

    Raises:
        ValueError: if the fraction or width is not positive, rows of `x_train` cannot
            be told apart, or gradient descent does not converge at the rate.
    """
    if learning_rate is None and not (np.isfinite(fraction) and fraction > 0):
        raise ValueError(f"fraction must be positive; got {fraction!r}.")
    with jax.enable_x64(True):
        own = spec if width is None else dataclasses.replace(spec, width=width)
        matrix = np.asarray(kernel(own, np.asarray(x_train, np.float64)).ntk)
    eigenvalues = np.linalg.eigvalsh(matrix)
    check_positive(eigenvalues, matrix)
    critical = 2 / (eigenvalues[0] + eigenvalues[-1])
    rate = fraction * critical if learning_rate is None else learning_rate
    warn_above_critical(rate, eigenvalues)
    steps = steps_to(residual, eigenvalues, rate)
    return Schedule(float(rate), steps, float(critical))


@dataclasses.dataclass(frozen=True)
class TrainNetwork:
    """One network from its id: made, trained on full batches, asked, and forgotten.

    A function of one member for `map_members`, `fold_members` and
    `accuracy_by_members`; no weights of other members exist. Member `i` of a seed
    begins as in `Ensemble.init`.

    Attributes:
        spec: architecture and parameterisation.
        width: of each hidden layer.
        steps: of gradient descent.
        activation: as for `WideNetwork`.
        unroll: write every step into the program, without a loop: to count what a step
            costs, which the compiler cannot in a loop.

    Raises:
        TypeError, ValueError: as `WideNetwork`.
    """

    spec: FullyConnected
    width: int
    steps: int
    activation: Callable[[jax.Array], jax.Array] | None = None
    unroll: bool = False

    def __post_init__(self):
        check_count(self.width, "width")
        _activation(self.spec, self.activation)

    def written_out(self, steps: int) -> "TrainNetwork":
        """The same with so many steps and no loop, as `planning.MappedJob` counts.

        Weights that do not learn may be drawn again in every step that is counted: of
        "readout" the count is an upper bound.
        """
        return dataclasses.replace(self, steps=steps, unroll=True)

    def abstract_params(self, in_features: int, num_outputs: int) -> Any:
        """Shapes of the weights of one network; nothing is allocated."""

        def make():
            key = jax.random.key(0)
            return nnx.state(self._make(key, in_features, num_outputs), nnx.Param)

        return jax.eval_shape(make)

    def __call__(self, member_id, seed, learning_rate, x_train, y_train, x):
        """Outputs of the trained network, `[row, output]`.

        Args:
            member_id: integer.
            seed: of the initial weights.
            learning_rate: in the kernel's units; see `training_schedule`.
            x_train: `[train, feature]`.
            y_train: `[train, output]`.
            x: `[row, feature]`.

        Raises:
            ValueError: if training rows are not of these shapes.
        """
        _check_rows(x_train.shape, y_train.shape, "x_train", "y_train")
        key = jax.random.fold_in(member_key(seed, "init", member_id), 0)
        model = self._make(key, x_train.shape[1], y_train.shape[1])
        graph, params = nnx.split(model)
        rates = _rates(params, model.scales)

        def loss(params):
            error = nnx.merge(graph, params)(x_train) - y_train
            return jnp.sum(error**2) / 2

        def step(params, _):
            moved = jax.tree.map(
                lambda p, g, rate: p - learning_rate * rate * g,
                params,
                jax.grad(loss)(params),
                rates,
            )
            return moved, None

        params, _ = jax.lax.scan(step, params, length=self.steps, unroll=self.unroll)
        return nnx.merge(graph, params)(x)

    def _make(self, key, in_features, num_outputs):
        return WideNetwork(
            self.spec,
            in_features=in_features,
            width=self.width,
            num_outputs=num_outputs,
            activation=self.activation,
            rngs=nnx.Rngs(params=key),
        )


def _check_rows(inputs, targets, name, of_targets):
    """Raises unless both are two-dimensional, with as many rows: none broadcasts."""
    if len(inputs) != 2 or len(targets) != 2 or inputs[0] != targets[0]:
        raise ValueError(
            f"{name} must be [train, feature] and {of_targets} [train, output], with"
            f" one row of targets for each of inputs; got {inputs} and {targets}."
        )
    if not (inputs[0] and inputs[1] and targets[1]):
        raise ValueError(
            f"{name} and {of_targets} must not be empty; got {inputs} and {targets}."
        )


def _rates(params, scales):
    """The rate of every leaf, by the number of its layer."""

    def rate(path, leaf):
        del leaf
        names = (getattr(part, "key", getattr(part, "idx", None)) for part in path)
        layer = next(name for name in names if isinstance(name, int))
        return scales[layer].rate

    return jax.tree.map_with_path(rate, params)


@dataclasses.dataclass(frozen=True)
class HalfSquares:
    """Half the sum of squared errors of all training rows, a loss for `fit`.

    `fit` averages over the batch; the number of rows makes the mean a sum.

    Attributes:
        num_rows: training rows, all of which are in every batch.
    """

    num_rows: int

    def __call__(self, model, batch, key):
        """The loss of `(x, y)`, leaves `[batch, ...]`, and no metrics.

        Raises:
            ValueError: if targets have another shape than the outputs.
        """
        del key
        x, y = batch
        outputs = model(x)
        if y.shape != outputs.shape:
            raise ValueError(
                f"targets must have the shape of outputs, {outputs.shape}; got"
                f" {y.shape}."
            )
        rows = jnp.sum((outputs - y) ** 2, axis=1) / 2
        return self.num_rows * rows.mean(), {}


@dataclasses.dataclass(frozen=True)
class LayerwiseSGD:
    """Gradient descent with every layer's own share of the rate: a `make_tx` of `fit`.

    Attributes:
        scales: from `layer_scales`.
    """

    scales: tuple[LayerScale, ...]

    def __call__(self, learning_rate) -> optax.GradientTransformation:
        """The transformation of one member, at a rate in the kernel's units."""

        def update(updates, state, params=None):
            del params
            rates = _rates(updates, self.scales)
            steps = jax.tree.map(lambda g, r: -learning_rate * r * g, updates, rates)
            return steps, state

        return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def network_job(
    spec: FullyConnected,
    data: tuple[Any, Any],
    *,
    width: int,
    member_ids: Sequence[int],
    schedule: Schedule,
    seed: int = 0,
    steps_per_call: int | None = None,
    mesh_sizes: dict[str, int] | None = None,
    activation: Callable[[jax.Array], jax.Array] | None = None,
    block: int | str | None = "auto",
) -> TrainingJob:
    """Training of networks that are kept, as a job for `fit` and `ensjax plan`.

    Args:
        spec: architecture and parameterisation.
        data: training rows `[row, feature]` and `[row, output]`, or their shapes; every
            batch holds them all.
        width: of each hidden layer.
        member_ids: of the members.
        schedule: from `training_schedule`.
        seed: of the initial weights.
        steps_per_call: of the compiled program; None: all.
        mesh_sizes: devices along "member", "data" and "model".
        activation: as for `WideNetwork`.
        block: see `map_members`.

    Raises:
        TypeError: if a size is no integer.
        ValueError: if data are not of these shapes, and as `WideNetwork`.
    """
    x, y = data
    _check_rows(tuple(x.shape), tuple(y.shape), "data[0]", "data[1]")
    _activation(spec, activation)
    make_model = functools.partial(
        _make_network, spec, x.shape[1], width, y.shape[1], activation
    )
    scales = layer_scales(spec, in_features=x.shape[1], width=width)
    members = tuple(member_ids)
    return TrainingJob(
        make_model=make_model,
        member_ids=members,
        init_seed=seed,
        data=data,
        hyper=np.full(len(members), schedule.learning_rate, np.float32),
        mesh_sizes=mesh_sizes or dict(member=-1, data=1, model=1),
        options=dict(
            loss=HalfSquares(x.shape[0]),
            make_tx=LayerwiseSGD(scales),
            steps=schedule.steps,
            batch_size=x.shape[0],
            seed=seed,
            sampling="shared",
            steps_per_call=steps_per_call or schedule.steps,
            log_every_steps=steps_per_call or schedule.steps,
            block=block,
        ),
    )


def _make_network(spec, in_features, width, num_outputs, activation, rngs):
    return WideNetwork(
        spec,
        in_features=in_features,
        width=width,
        num_outputs=num_outputs,
        activation=activation,
        rngs=rngs,
    )
