"""Kernels of infinitely wide fully connected networks, by recursion over the layers."""

import dataclasses
import numbers
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.ntk.duals import DUALS, Dual

PARAMETERISATIONS = ("ntk", "readout", "standard", "mup")


class Kernels(NamedTuple):
    """The two kernels of an architecture, for each of its outputs.

    Attributes:
        nngp: covariance of an output over random initialisations, `[row, row']`.
        ntk: tangent kernel at initialisation, `[row, row']`, for a unit of the learning
            rate that the parameterisation names.
    """

    nngp: jax.Array
    ntk: jax.Array


@dataclasses.dataclass(frozen=True)
class FullyConnected:
    """A fully connected network with hidden layers of a width n that goes to infinity.

        u_1     = sqrt(weight_variance / features) W_1 x   + sqrt(bias_variance) b_1
        u_{l+1} = sqrt(weight_variance / n) W_{l+1} phi(u_l) + sqrt(bias_variance) b_l+1

    Entries of W and b are N(0, 1); the last u is the output. The parameterisation says
    what gradient descent on half the sum of squared errors moves:

    - "ntk": W and b as written, all at one rate.
    - "readout": as "ntk", but only the last layer moves, so that the tangent kernel is
      the NNGP kernel. This is the law that the published code of permutation learning
      follows.
    - "standard": the factors are part of the initial weights, and the weights move at
      one rate. The tangent kernel then grows as n; given here is its limit for rates
      counted in units of weight_variance / n, that is, a rate r of this kernel is a
      rate r weight_variance / n of the network. What the first layer and the biases
      contribute vanishes as 1 / n, and is there if `width` is given. With one hidden
      layer and no bias this equals "readout". (In other packages "standard" names the
      kernel that is not divided by n.)
    - "mup": as "ntk" with the output divided by sqrt(n) and rates multiplied by n. The
      tangent kernel at initialisation is that of "ntk" and the NNGP kernel is 0 (with
      `width`: divided by it), but features move during training, so that no constant
      kernel describes the trained network.

    Attributes:
        hidden_layers: how many.
        activation: a `Dual`, or the name of one: "relu", "erf", "identity".
        weight_variance: positive.
        bias_variance: 0 for a network without biases.
        parameterisation: "ntk", "readout", "standard" or "mup".
        width: of the hidden layers, where a parameterisation has terms of order
            1 / width that shall be kept; None for the limit.

    Raises:
        TypeError: if a variance is no real number.
        ValueError: for any other field that is not as described; names it.

    Source: Jacot et al. 2018, arXiv:1806.07572; Lee et al. 2019, arXiv:1902.06720,
    appendix F for "standard"; Yang and Hu 2021, arXiv:2011.14522, section 3 for "mup".
    """

    hidden_layers: int = 1
    activation: Dual | str = "relu"
    weight_variance: float = 1.0
    bias_variance: float = 0.0
    parameterisation: str = "ntk"
    width: int | None = None

    def __post_init__(self):
        layers = self.hidden_layers
        if isinstance(layers, bool) or not isinstance(layers, int) or layers < 1:
            raise ValueError(
                f"hidden_layers must be a positive integer; got {layers!r}."
            )
        known = isinstance(self.activation, str) and self.activation in DUALS
        if not isinstance(self.activation, Dual) and not known:
            raise ValueError(
                f"Unknown activation {self.activation!r}; known: {', '.join(DUALS)}, or"
                " any other as ntk.dual(fn)."
            )
        for name in ("weight_variance", "bias_variance"):
            _check_real(getattr(self, name), name)
        if not (np.isfinite(self.weight_variance) and self.weight_variance > 0):
            raise ValueError(
                f"weight_variance must be positive; got {self.weight_variance!r}."
            )
        if not (np.isfinite(self.bias_variance) and self.bias_variance >= 0):
            raise ValueError(
                f"bias_variance must be 0 or positive; got {self.bias_variance!r}."
            )
        if self.parameterisation not in PARAMETERISATIONS:
            raise ValueError(
                f"Unknown parameterisation {self.parameterisation!r}; known:"
                f" {', '.join(PARAMETERISATIONS)}."
            )
        if self.width is not None:
            whole = isinstance(self.width, (int, np.integer))
            if isinstance(self.width, bool) or not whole or self.width < 1:
                raise ValueError(
                    f"width must be a positive integer or None; got {self.width!r}."
                )

    @property
    def dual(self) -> Dual:
        """The dual of the activation."""
        if isinstance(self.activation, Dual):
            return self.activation
        return DUALS[self.activation]


def _check_real(value, name):
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a real number; got {value!r}.")


def kernel(spec: FullyConnected, x: Any, z: Any = None) -> Kernels:
    """Both kernels of a network between the rows of `x` and of `z` (default `x`).

    A row of zeros without biases has kernel 0 with all rows where the activation is 0
    at 0 (ReLU, erf, identity). It is pure: compile it with
    `jax.jit(ntk.kernel, static_argnums=0)`, or call `kernel_blocks` for many rows.

    Args:
        spec: the network.
        x: inputs `[row, feature]`; computed in float32 or wider.
        z: inputs `[row', feature]`.

    Returns:
        `[row, row']`, each.

    Raises:
        ValueError: if inputs are not `[row, feature]`, have no rows or different
            features, or hold values that are not finite; the row is named.

    Source: Lee et al. 2019, arXiv:1902.06720, appendix E; for ReLU Cho and Saul 2009.

    Example:
        >>> import numpy as np
        >>> from ensjax import ntk
        >>> print(np.asarray(ntk.kernel(ntk.FullyConnected(), np.eye(2)).ntk).round(2))
        [[0.5  0.08]
         [0.08 0.5 ]]
    """
    x = check_inputs(x, "x")
    z = x if z is None else check_inputs(z, "z")
    if x.shape[1] != z.shape[1]:
        raise ValueError(
            f"x has {x.shape[1]} features and z has {z.shape[1]}; both are inputs of"
            " one network."
        )
    dtype = jnp.promote_types(x.dtype, z.dtype)
    x, z = x.astype(dtype), z.astype(dtype)
    check_variances(spec, x, z)
    norms = jnp.sum(x**2, 1)[:, None], jnp.sum(z**2, 1)[None, :]
    return _recursion(spec, *norms, input_angles(x, z), x.shape[1])


def kernel_diagonal(spec: FullyConnected, x: Any) -> Kernels:
    """Both kernels of each row with itself, `[row]`, without the rest of the matrix.

    Args:
        spec: the network.
        x: inputs `[row, feature]`.

    Raises:
        ValueError: as `kernel`.
    """
    x = check_inputs(x, "x")
    check_variances(spec, x)
    norms = jnp.sum(x**2, 1)
    return _recursion(spec, norms, norms, jnp.zeros_like(norms), x.shape[1])


def check_inputs(x: Any, name: str) -> jax.Array:
    """`x` as an array of float32 or wider; a `ValueError` says what is wrong with it.

    Half types are widened: a kernel of float16 inputs computed in float16 has 3 digits.
    """
    x = jnp.asarray(x)
    if x.ndim != 2 or not x.size:
        raise ValueError(
            f"{name} must be [row, feature] with at least one of each; got shape"
            f" {x.shape}."
        )
    if not jnp.issubdtype(x.dtype, jnp.floating):
        if jnp.issubdtype(x.dtype, jnp.complexfloating):
            raise ValueError(f"{name} must hold real numbers; got {x.dtype}.")
        x = x.astype(jnp.result_type(float))
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    check_finite(x, name)
    return x


def check_variances(spec: FullyConnected, *inputs: Any) -> None:
    """Warns where pre-activations vary more than the nodes of a `dual` can follow.

    Args:
        spec: the network; closed forms are right at any variance.
        *inputs: `[row, feature]`; traced ones are not looked at.
    """
    check = spec.dual.check
    if check is None or any(isinstance(x, jax.core.Tracer) for x in inputs):
        return
    largest = max(float(np.mean(np.square(x, dtype=float), 1).max()) for x in inputs)
    for _ in range(spec.hidden_layers):
        largest = check(spec.weight_variance * largest + spec.bias_variance)


def check_finite(array: Any, name: str) -> None:
    """Raises `ValueError`, with the rows, where `array` `[row, ...]` is not finite.

    Traced values are not looked at.
    """
    if isinstance(array, jax.core.Tracer):
        return
    array = np.asarray(array)
    wrong = np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(axis=1))
    if wrong.size:
        raise ValueError(
            f"{name} must be finite; rows {_first(wrong)} of {len(array)} are not."
        )


def _first(rows, count=5):
    listed = ", ".join(map(str, rows[:count]))
    return listed + (f" and {len(rows) - count} more" if len(rows) > count else "")


def input_angles(x: jax.Array, z: jax.Array) -> jax.Array:
    """The angles between rows of `x` `[row, feature]` and `z`, `[row, row']`.

    From the length of the difference of unit vectors, which is good to the dtype's
    rounding for parallel rows too, and exactly 0 for equal ones; the arccos of an inner
    product is off by 3e-4 there in float32. Rows of zeros have angle pi / 2.
    """
    x, z = _unit(x), _unit(z)
    inner = jnp.matmul(x, z.T, precision="highest")
    sign = jnp.where(inner < 0, -1, 1).astype(x.dtype)

    # Feature by feature: all differences at once would be [row, row', feature].
    def add(square, columns):
        of_x, of_z = columns
        return square + (of_x[:, None] - sign * of_z[None, :]) ** 2, None

    square, _ = jax.lax.scan(add, jnp.zeros_like(inner), (x.T, z.T), unroll=4)
    acute = 2 * jnp.arcsin(jnp.clip(jnp.sqrt(square) / 2, 0, 1))
    is_zero = ~jnp.any(x != 0, axis=1)[:, None] | ~jnp.any(z != 0, axis=1)[None, :]
    angle = jnp.where(inner < 0, jnp.pi - acute, acute)
    return jnp.where(is_zero, jnp.pi / 2, angle)


def _unit(x):
    # Scaled first, so that squares of very large or small entries stay in range.
    largest = jnp.max(jnp.abs(x), axis=1, keepdims=True)
    x = x / jnp.where(largest > 0, largest, 1)
    length = jnp.sqrt(jnp.sum(x**2, axis=1, keepdims=True))
    return x / jnp.where(length > 0, length, 1)


def _recursion(spec, norm_x, norm_z, angle, num_features):
    """Kernels from squared lengths of inputs and the angles between them.

    Next to the two kernels the angle between pre-activations is carried along, since
    it cannot be recovered from the kernels where inputs are nearly parallel.
    """
    weight, bias = spec.weight_variance, spec.bias_variance
    rates, bias_rate = _relative_rates(spec, num_features)

    def next_layer(own_x, own_z, product, angle):
        own_x, own_z = weight * own_x, weight * own_z
        return (
            own_x + bias,
            own_z + bias,
            weight * product + bias,
            _angle_with_bias(own_x, own_z, angle, bias) if bias else angle,
        )

    own_x, own_z = norm_x / num_features, norm_z / num_features
    product = jnp.sqrt(own_x) * jnp.sqrt(own_z) * jnp.cos(angle)
    ntk = rates[0] * weight * product + bias_rate[0] * bias
    own_x, own_z, nngp, angle = next_layer(own_x, own_z, product, angle)
    for rate, for_bias in zip(rates[1:], bias_rate[1:], strict=True):
        pair = spec.dual.forward(own_x, own_z, angle)
        ntk = rate * weight * pair.product + for_bias * bias + weight * pair.slope * ntk
        own_x = spec.dual.forward(own_x, own_x, jnp.zeros_like(own_x)).product
        own_z = spec.dual.forward(own_z, own_z, jnp.zeros_like(own_z)).product
        own_x, own_z, nngp, angle = next_layer(own_x, own_z, pair.product, pair.angle)
    if spec.parameterisation == "readout":
        ntk = nngp
    if spec.parameterisation == "mup":
        nngp = nngp / spec.width if spec.width else jnp.zeros_like(nngp)
    return Kernels(nngp, ntk)


def _relative_rates(spec, num_features):
    """Of each layer's weights and biases, relative to the "ntk" parameterisation."""
    layers = spec.hidden_layers + 1
    if spec.parameterisation == "standard":
        per_width = 1 / spec.width if spec.width else 0.0
        first = num_features * per_width
        bias = spec.bias_variance
        for_bias = spec.weight_variance * per_width / bias if bias else 0.0
        return (first,) + (1.0,) * (layers - 1), (for_bias,) * layers
    return (1.0,) * layers, (1.0,) * layers


def _angle_with_bias(own_x, own_z, angle, bias):
    """The angle after one more, common feature of variance `bias`.

    From k11 k22 - k12^2, written as a sum of terms that are not negative.
    """
    x, z = jnp.sqrt(own_x), jnp.sqrt(own_z)
    apart = (x - z) ** 2 + 4 * x * z * jnp.sin(angle / 2) ** 2
    area = own_x * own_z * jnp.sin(angle) ** 2 + bias * apart
    return jnp.arctan2(jnp.sqrt(area), x * z * jnp.cos(angle) + bias)
