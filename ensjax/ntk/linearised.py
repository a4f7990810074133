"""Members that are linear in their parameters, around where these are.

    f_lin(theta, x) = f(theta_0, x) + J(theta_0, x) (theta - theta_0)

Trained on half the sum of squared errors, such a member is known in closed form from
its tangent kernel; with any loss and optimizer it is a member function for `fit`.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.ensemble import Ensemble
from ensjax.mapping import map_members
from ensjax.mesh import make_mesh, place, platform
from ensjax.ntk.empirical import empirical_ntk
from ensjax.ntk.gaussian_process import learnt_share
from ensjax.ntk.kernels import check_finite
from ensjax.ntk.schedules import check_schedule, warn_above_critical
from ensjax.ntk.strips import make_tangents, pad_rows
from ensjax.ntk.tangents import Tangents, check_rows, num_rows


def linearise(ensemble: Ensemble, *, params: str = "") -> Ensemble:
    """The same members as linear functions of their parameters; `fit` trains them.

    Their tangent kernel is what the members' is now, for good. They run in evaluation
    mode, also while they are trained: batch norm keeps its statistics.

    Args:
        ensemble: the members; any member function.
        params: regular expression (`re.search`): parameters in whose dotted name it is
            not found stay what they are.

    Returns:
        An ensemble whose parameters are those that move, by their dotted names; outputs
        have the members' shape and are float32 or wider.

    Raises:
        ValueError: if the pattern is found in no name.
        TypeError: if a parameter that moves is not real floating point; names it.

    Source: Lee et al. 2019, arXiv:1902.06720, equation 5.
    """
    tangents = make_tangents(ensemble, params)
    state = {"params": tangents.chosen(ensemble.params), "rest": ensemble.state}
    return dataclasses.replace(ensemble, state=state, graph=LinearisedGraph(tangents))


@dataclasses.dataclass(frozen=True)
class LinearisedGraph:
    """The static half of a linearised member; its `rest` is the member it began as."""

    tangents: Tangents

    def merge(self, state: Any, *, train: bool) -> "LinearisedMember":
        """The member; the same in both modes."""
        del train
        return LinearisedMember(self.tangents, state["params"], state["rest"])

    def rest(self, model: "LinearisedMember") -> Any:
        """The member that it began as."""
        return model.origin


class LinearisedMember:
    """One linearised member: called as a model; a loss may read `params`."""

    def __init__(self, tangents, params, origin):
        self.tangents, self.params, self.origin = tangents, params, origin

    def __call__(self, x: Any) -> jax.Array:
        """Outputs `[row, ...]`."""
        origin = jax.lax.stop_gradient(self.origin)
        model = self.tangents.graph.merge(origin, train=False)
        fn, start = self.tangents.function(origin, x)
        moved = jax.tree.map(jnp.subtract, dict(self.params), start)
        out = fn(start) + self.tangents.push_forward(origin, x)(moved)
        return out.reshape(jax.eval_shape(model, x).shape)


class LinearTraining(NamedTuple):
    """Linearised members and the modes in which they learn.

    Attributes:
        eigenvalues: of the members' full kernels on the training rows, ascending,
            `[member, mode]`; there are as many modes as training rows times outputs.
        errors: targets minus initial outputs, in modes, `[member, mode]`.
        along: the kernel between rows and training rows, in modes,
            `[member, row * output, mode]`.
        initial: the members' outputs before training, `[member, row, output]`.
    """

    eigenvalues: jax.Array
    errors: jax.Array
    along: jax.Array
    initial: jax.Array


def linear_training(
    ensemble: Ensemble,
    x_train: Any,
    targets: Any,
    x: Any,
    *,
    params: str = "",
    method: str = "auto",
    block_rows: int | None = None,
    block: int | str | None = "auto",
) -> LinearTraining:
    """What predicts linearised members trained on `x_train`, at `x` (compiled).

    Args:
        ensemble: the members before training.
        x_train: inputs, leaves `[train, ...]`.
        targets: `[train, output]`, or `[member, train, output]`.
        x: inputs at which predictions are wanted, leaves `[row, ...]`.
        params: parameters that move, as in `linearise`.
        method, block_rows, block: of the kernels, as in `empirical_ntk`.

    Raises:
        ValueError: if targets are of another shape or not finite, and as
            `empirical_ntk`.
        TypeError: if a parameter that moves is not real floating point.

    Source: Lee et al. 2019, arXiv:1902.06720, equations 8 and 9.
    """
    check_rows("x_train", x_train)
    check_rows("x", x, like=x_train)
    options = dict(params=params, method=method, block_rows=block_rows, block=block)
    start, initial = (_outputs(ensemble, rows) for rows in (x_train, x))
    shape = np.shape(start)
    if np.shape(targets) not in (shape, shape[1:]):
        raise ValueError(
            f"targets must be [train, output] {shape[1:]} or [member, train, output]"
            f" {shape}; got {np.shape(targets)}."
        )
    if np.ndim(targets) == 2:
        check_finite(targets, "targets")
    else:
        for member, own in enumerate(targets):
            check_finite(own, f"targets of member {member}")
    targets = jnp.broadcast_to(jnp.asarray(targets, start.dtype), shape)
    train = empirical_ntk(ensemble, x_train, outputs="full", **options)
    cross = empirical_ntk(ensemble, x, x_train, outputs="full", **options)
    mesh = _mesh_of_factors(ensemble.mesh)
    factors = map_members(
        _factors, kinds=("member",) * 3, out=("member",) * 3, mesh=mesh, block=1
    )
    *arrays, initial = place((train, cross, targets - start, initial), mesh, jax.P())
    return LinearTraining(*factors(*arrays), initial)


def _outputs(ensemble, x):
    # As their kernels: targets minus these is what is learnt.
    with jax.default_matmul_precision("highest"):
        out = ensemble(pad_rows(x, ensemble.mesh.shape["data"]))[:, : num_rows(x)]
    return out.reshape(*out.shape[:2], -1)


def _mesh_of_factors(mesh):
    """Devices that decompose kernels: of several CPU devices the first.

    LAPACK calls of several CPU devices at once can wait for ever (jax 0.10.1).
    """
    is_one_cpu = platform(mesh) == "cpu" and jax.process_count() == 1
    if mesh.devices.size == 1 or not is_one_cpu:
        return mesh
    return make_mesh(member=1, devices=list(mesh.devices.flat)[:1])


def _factors(train, cross, errors):
    """One member's modes, its errors in them, and its kernel with other rows."""
    with jax.default_matmul_precision("highest"):
        rows, outputs = errors.shape
        size = rows * outputs
        train = jnp.swapaxes(train, 1, 2).reshape(size, size)
        cross = jnp.swapaxes(cross, 1, 2).reshape(-1, size)
        values, modes = jnp.linalg.eigh((train + train.T) / 2)
        return values, errors.reshape(-1) @ modes, cross @ modes


def linear_outputs(
    training: LinearTraining,
    *,
    time: Any = None,
    steps: Any = None,
    learning_rate: Any = 1.0,
) -> jax.Array:
    """Outputs of the linearised members after training on half the squared error.

        f_t(x) = f_0(x) + K(x, X) g(K(X, X)) (y - f_0(X))

    where g(l) is 1 / l at convergence, (1 - exp(-rate l t)) / l at time t of gradient
    flow and (1 - (1 - rate l)^s) / l after s steps of gradient descent, on half the sum
    of squares over rows and outputs.

    Args:
        training: of `linear_training`.
        time: of gradient flow; None: converged.
        steps: of gradient descent; at most one of the two.
        learning_rate: multiplies time, or is that of gradient descent, for which a
            warning names the critical rate of the member where this is farthest above.

    Returns:
        `[member, row, output]`. Converged, modes that the member cannot move (more
        outputs than parameters, equal rows) are left out.

    Raises:
        ValueError: if both a time and steps are given, one is negative, or the rate is
            not positive.
    """
    if not any(isinstance(v, jax.core.Tracer) for v in (time, steps, learning_rate)):
        check_schedule(time, steps, learning_rate)
    values = training.eigenvalues
    largest = jnp.max(jnp.abs(values), axis=1, keepdims=True)
    floor = values.shape[1] * jnp.finfo(values.dtype).eps * largest
    known = jnp.where(values > floor, values, 1)
    if steps is not None and not isinstance(values, jax.core.Tracer):
        # Modes that no member moves do not slow it down.
        least = np.where(values > floor, values, np.inf).min(axis=1)
        ends = np.stack([np.minimum(least, largest[:, 0]), largest[:, 0]], axis=1)
        labels = [f"member {place}" for place in range(len(ends))]
        warn_above_critical(learning_rate, ends, labels=labels)
    gain = learnt_share(known, time, steps, learning_rate) / known
    # Eigenvalues of 0 come with errors that training does not reach.
    moved = jnp.where(values > floor, gain * training.errors, 0)
    added = jnp.einsum("mrk,mk->mr", training.along, moved, precision="highest")
    return training.initial + added.reshape(training.initial.shape)
