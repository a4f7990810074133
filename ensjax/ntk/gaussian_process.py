"""The ensemble of all infinitely wide networks, trained: its mean and covariance.

Training on half the sum of squared errors multiplies what is left of the error by
exp(-rate T t), or by I - rate T at each step of gradient descent, T being the tangent
kernel of the training rows. So every member's prediction is linear in the function that
it began with, which is a draw from the Gaussian process of the NNGP kernel.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.ntk.kernels import (
    FullyConnected,
    Kernels,
    check_finite,
    check_inputs,
    check_variances,
    kernel,
    kernel_diagonal,
)
from ensjax.ntk.schedules import check_schedule, warn_above_critical
from ensjax.ops.limits import at_least


class Predictor(NamedTuple):
    """Kernels of training and test rows, and the modes of training.

    Attributes:
        eigenvalues: of the training rows' tangent kernel, ascending, `[train]`.
        modes: its eigenvectors in columns, `[train, train]`.
        train_nngp: `[train, train]`.
        cross: both kernels between test and training rows, `[row, train]`.
        test_nngp: `[row, row']`.
    """

    eigenvalues: jax.Array
    modes: jax.Array
    train_nngp: jax.Array
    cross: Kernels
    test_nngp: jax.Array


def predictor(spec: FullyConnected, x_train: Any, x_test: Any) -> Predictor:
    """What predicts the ensemble of a network trained on `x_train`, at `x_test`.

    The kernels are one compiled program for each network and set of shapes.

    Args:
        spec: the network; not "mup", whose kernel moves while it trains.
        x_train: inputs `[train, feature]`.
        x_test: inputs `[row, feature]`; many of them may come in several calls, as rows
            meet only in their covariance.

    Raises:
        ValueError: as `kernel`, for "mup", and where the training kernel is singular;
            equal training rows and rows of zeros are named.

    Example:
        >>> import numpy as np
        >>> from ensjax import ntk
        >>> both = np.array([[1.0, 1.0]])
        >>> predictor = ntk.predictor(ntk.FullyConnected(), np.eye(2), both)
        >>> print(np.asarray(ntk.mean(predictor, np.eye(2))).round(3))
        [[0.784 0.784]]
        >>> print(np.asarray(ntk.variance(predictor)).round(3))
        [0.068]
    """
    if spec.parameterisation == "mup":
        raise ValueError(
            'With parameterisation="mup" features move during training and no constant'
            " kernel predicts it. Train finite networks, or use one of ntk, readout,"
            " standard."
        )
    x_train, x_test = check_inputs(x_train, "x_train"), check_inputs(x_test, "x_test")
    _check_distinct(x_train, spec)
    check_variances(spec, x_train, x_test)
    return predictor_of_kernels(*_all_kernels(spec, x_train, x_test))


@functools.partial(jax.jit, static_argnums=0)
def _all_kernels(spec, x_train, x_test):
    cross = kernel(spec, x_test, x_train)
    return kernel(spec, x_train), cross, kernel(spec, x_test).nngp


def predictor_of_kernels(train: Kernels, cross: Kernels, test_nngp: Any) -> Predictor:
    """As `predictor`, from any kernels, for example empirical ones.

    Args:
        train: between training rows, `[train, train]` each.
        cross: between test and training rows, `[row, train]` each.
        test_nngp: between test rows, `[row, row']`.

    Raises:
        ValueError: if shapes do not fit, a value is not finite, a square kernel is not
            symmetric, or the tangent kernel of the training rows is singular.
    """
    train = Kernels(*(jnp.asarray(k) for k in train))
    cross = Kernels(*(jnp.asarray(k) for k in cross))
    test_nngp = jnp.asarray(test_nngp)
    rows, columns = cross.ntk.shape[0], train.ntk.shape[0]
    for name, array, shape in (
        ("train.nngp", train.nngp, (columns, columns)),
        ("train.ntk", train.ntk, (columns, columns)),
        ("cross.nngp", cross.nngp, (rows, columns)),
        ("cross.ntk", cross.ntk, (rows, columns)),
        ("test_nngp", test_nngp, (rows, rows)),
    ):
        if array.shape != shape:
            raise ValueError(f"{name} must be of shape {shape}; got {array.shape}.")
        check_finite(array, name)
        if not name.startswith("cross"):
            _check_symmetric(array, name)
    eigenvalues, modes = jnp.linalg.eigh(train.ntk)
    check_positive(eigenvalues, train.ntk)
    return Predictor(eigenvalues, modes, train.nngp, cross, test_nngp)


def _check_symmetric(array, name):
    """Raises where a kernel and its transpose differ by more than float32 rounds."""
    if isinstance(array, jax.core.Tracer):
        return
    array = np.asarray(array)
    apart = np.abs(array - array.T)
    if apart.max(initial=0) > 1e-5 * np.abs(array).max(initial=0):
        row, column = np.unravel_index(apart.argmax(), apart.shape)
        raise ValueError(
            f"{name} must be symmetric; got {array[row, column]:.6g} in row {row},"
            f" column {column}, and {array[column, row]:.6g} the other way round."
        )


def _check_distinct(x, spec):
    """Names training rows that make the kernel singular."""
    if isinstance(x, jax.core.Tracer):
        return
    x = np.asarray(x)
    if not spec.bias_variance:
        zero = np.flatnonzero(~x.any(axis=1))
        # An activation that is not 0 at 0 tells it from nothing.
        if zero.size and not kernel_diagonal(spec, x[zero[:1]]).ntk[0] > 0:
            raise ValueError(
                f"Training row {zero[0]} is zero: without biases every network is 0"
                " there and cannot learn it. Drop it, or give a bias_variance."
            )
    _, first, which = np.unique(x, axis=0, return_index=True, return_inverse=True)
    again = np.flatnonzero(first[which.reshape(-1)] != np.arange(len(x)))
    if again.size:
        row = again[0]
        raise ValueError(
            f"Training rows {first[which.reshape(-1)[row]]} and {row} are equal"
            f" ({again.size} repeated in all): the training kernel is singular. Keep"
            " one of each, with the mean of their targets."
        )


def check_positive(eigenvalues: Any, tangent: Any = None) -> None:
    """Raises `ValueError` if a training kernel is singular to rounding.

    Args:
        eigenvalues: ascending, `[train]`.
        tangent: the kernel `[train, train]`, where the rows that it tells apart least
            shall be named.
    """
    if isinstance(eigenvalues, jax.core.Tracer):
        return
    values = np.asarray(eigenvalues, float)
    if values[0] > len(values) * np.finfo(eigenvalues.dtype).eps * abs(values[-1]):
        return
    closest = ""
    if tangent is not None and len(values) > 1:
        matrix = np.asarray(tangent, float)
        own = np.sqrt(np.abs(np.diag(matrix))) + np.finfo(float).tiny
        correlation = np.triu(matrix / own[:, None] / own[None], 1)
        row, other = np.unravel_index(np.abs(correlation).argmax(), matrix.shape)
        closest = (
            f" Of all rows {row} and {other} are most alike, with a correlation of"
            f" {correlation[row, other]:.9g}."
        )
    raise ValueError(
        f"The training kernel is singular in {eigenvalues.dtype}: its eigenvalues range"
        f" from {values[0]:.3g} to {values[-1]:.3g}.{closest} Drop rows that the"
        " network cannot tell apart (without biases, multiples of one another), or use"
        " float64."
    )


def critical_learning_rate(eigenvalues: Any) -> jax.Array:
    """2 / (smallest + largest eigenvalue): the rate at which errors fall fastest.

    Above it gradient descent becomes slower, and diverges from 2 / largest on.

    Args:
        eigenvalues: of the training rows' tangent kernel, in any order, `[train]`;
            `np.linalg.eigvalsh` has them of a matrix.

    Raises:
        ValueError: if they are not `[train]`, there is none, or one that is not
            finite or negative beyond rounding; traced values are not looked at.

    Source: Lee et al. 2019, arXiv:1902.06720, theorem 2.1.
    """
    _check_eigenvalues(eigenvalues, allow_zero=True)
    eigenvalues = jnp.asarray(eigenvalues)
    return 2 / (eigenvalues.min() + eigenvalues.max())


def _check_eigenvalues(eigenvalues, *, allow_zero=False):
    if np.ndim(eigenvalues) != 1 or not np.size(eigenvalues):
        raise ValueError(
            "eigenvalues must be [train] with at least one; got shape"
            f" {np.shape(eigenvalues)}. Those of a kernel matrix are"
            " np.linalg.eigvalsh(matrix)."
        )
    if isinstance(eigenvalues, jax.core.Tracer):
        return
    values = np.sort(np.asarray(eigenvalues, float))
    least = -1e-5 * values[-1] if allow_zero else np.nextafter(0.0, 1.0)
    if not (values[0] >= least and 0 < values[-1] < np.inf):
        raise ValueError(
            f"eigenvalues must be positive; got {values[0]:.6g} to {values[-1]:.6g}:"
            " what a mode of 0 misses is never learnt."
        )


def steps_to(residual: float, eigenvalues: Any, learning_rate: Any = None) -> int:
    """Steps of gradient descent until every mode's error is below a share of its first.

    Args:
        residual: the share, between 0 and 1.
        eigenvalues: of the training rows' tangent kernel, in any order, `[train]`.
        learning_rate: the critical one by default, which gives
            log(residual) / log((largest - smallest) / (largest + smallest)).

    Raises:
        ValueError: if the residual is not between 0 and 1, there is no eigenvalue or
            one that is not positive, or gradient descent does not converge at this
            rate; says which rates do.
    """
    if not 0 < residual < 1:
        raise ValueError(f"residual must be between 0 and 1; got {residual}.")
    _check_eigenvalues(eigenvalues)
    eigenvalues = np.sort(np.asarray(eigenvalues, float))
    if learning_rate is None:
        learning_rate = 2 / (eigenvalues[0] + eigenvalues[-1])
    check_schedule(None, None, learning_rate)
    left = np.abs(1 - float(learning_rate) * eigenvalues).max()
    if left >= 1:
        raise ValueError(
            f"Gradient descent does not converge at learning rate {learning_rate:.6g}:"
            f" it must be below 2 / (largest eigenvalue) = {2 / eigenvalues[-1]:.6g}."
        )
    return 1 if left == 0 else max(1, int(np.ceil(np.log(residual) / np.log(left))))


def weights(
    predictor: Predictor,
    *,
    time: Any = None,
    steps: Any = None,
    learning_rate: Any = 1.0,
) -> jax.Array:
    """What a target of a training row adds to the prediction of a test row.

    w = T(x, X) g(T(X, X)), where g(l) is 1/l at convergence, (1 - exp(-rate l t)) / l
    at time t of gradient flow, and (1 - (1 - rate l)^s) / l after s steps of gradient
    descent. A member that began as h predicts h(x) + w (y - h(X)).

    Args:
        predictor: of the rows.
        time: of gradient flow on half the sum of squared errors; None: converged.
        steps: of gradient descent; at most one of the two.
        learning_rate: multiplies time, or is that of gradient descent, for which a
            warning names the critical rate where this is above it.

    Returns:
        `[row, train]`.

    Raises:
        ValueError: if both a time and steps are given, one is negative, or the rate is
            not positive.
    """
    values, modes = predictor.eigenvalues, predictor.modes
    if not any(isinstance(v, jax.core.Tracer) for v in (time, steps, learning_rate)):
        check_schedule(time, steps, learning_rate)
    if steps is not None:
        warn_above_critical(learning_rate, values)
    along = jnp.matmul(predictor.cross.ntk, modes, precision="highest")
    learnt = learnt_share(values, time, steps, learning_rate) / values
    return jnp.matmul(along * learnt[None], modes.T, precision="highest")


def learnt_share(values: Any, time: Any, steps: Any, learning_rate: Any) -> jax.Array:
    """The share of each mode that is learnt, without differences of equal numbers.

    Args:
        values: eigenvalues of the training rows' tangent kernel, any shape, positive.
        time, steps, learning_rate: as in `weights`.
    """
    if time is not None:
        return -jnp.expm1(-learning_rate * values * time)
    if steps is None:
        return jnp.ones_like(values)
    share = learning_rate * values
    slow = -jnp.expm1(steps * jnp.log1p(-jnp.minimum(share, 0.5)))
    left, odd = 1 - share, jnp.asarray(steps) % 2 == 1
    size = jnp.abs(left) ** steps
    return jnp.where(left > 0.5, slow, 1 - jnp.where((left < 0) & odd, -size, size))


def mean(
    predictor: Predictor,
    targets: Any,
    *,
    time: Any = None,
    steps: Any = None,
    learning_rate: Any = 1.0,
) -> jax.Array:
    """The mean over members of the trained ensemble, `[row, output]`.

    Args:
        predictor: of the rows.
        targets: of the training rows, `[train, output]`.
        time, steps, learning_rate: as in `weights`.

    Raises:
        ValueError: if targets are of another shape or not finite, and as `weights`.
    """
    targets = jnp.asarray(targets)
    rows = len(predictor.eigenvalues)
    if targets.ndim != 2 or targets.shape[0] != rows:
        raise ValueError(
            f"targets must be [train, output] with {rows} rows; got {targets.shape}."
        )
    check_finite(targets, "targets")
    w = weights(predictor, time=time, steps=steps, learning_rate=learning_rate)
    return jnp.matmul(w, targets.astype(w.dtype), precision="highest")


def covariance(
    predictor: Predictor,
    *,
    time: Any = None,
    steps: Any = None,
    learning_rate: Any = 1.0,
) -> jax.Array:
    """The covariance between test rows over members, `[row, row']`.

    The same for every output; outputs are independent.

        K(x, x') + w K(X, X) w'^T - w K(X, x') - K(x, X) w'^T

    Args:
        predictor: of the rows.
        time, steps, learning_rate: as in `weights`.

    Source: Lee et al. 2019, arXiv:1902.06720, equation 16.
    """
    w = weights(predictor, time=time, steps=steps, learning_rate=learning_rate)
    spread = jnp.matmul(w, predictor.train_nngp, precision="highest")
    spread = jnp.matmul(spread, w.T, precision="highest")
    shared = jnp.matmul(w, predictor.cross.nngp.T, precision="highest")
    result = predictor.test_nngp + spread - shared - shared.T
    return (result + result.T) / 2


def variance(
    predictor: Predictor,
    *,
    time: Any = None,
    steps: Any = None,
    learning_rate: Any = 1.0,
) -> jax.Array:
    """The variance of each test row over members, `[row]`; see `covariance`."""
    w = weights(predictor, time=time, steps=steps, learning_rate=learning_rate)
    spread = jnp.matmul(w, predictor.train_nngp, precision="highest")
    shared = 2 * jnp.sum(w * predictor.cross.nngp, axis=1)
    result = jnp.diagonal(predictor.test_nngp) + jnp.sum(spread * w, axis=1) - shared
    return at_least(result, 0.0)
