"""The dual of any activation, by integration over the pair of Gaussians.

Where the activation is smooth a product rule in Cartesian coordinates converges
exponentially. A kink spoils that: the error falls as one over the number of nodes. In
polar coordinates the kinks' lines cut the plane into sectors and rays into intervals,
inside of which everything is smooth; Gauss-Legendre rules on the pieces converge
exponentially again, at any angle between the two Gaussians.
"""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.ntk.duals import Dual, DualMoments

# A Gaussian beyond holds less than 1e-19, a polynomial times it less than 1e-13.
_RADIUS = 9.5
_RULES = ("trapezoid", "hermite")


def dual(
    fn: Callable[[jax.Array], jax.Array],
    *,
    kinks: Sequence[float] = (),
    rule: str = "trapezoid",
    nodes: int | None = None,
) -> Dual:
    """The dual of an activation, from its values and its derivative.

    It keeps the function, so that networks of finite width (`WideNetwork`,
    `TrainNetwork`) of a spec apply the one that its kernel is about.

    In float64 and at variances up to 4, errors are below 1e-8 for activations that are
    smooth on the scale of 1 (tanh, GELU, softplus, erf, sin) and, if their kinks are
    named, for those that are smooth in between (ReLU, leaky ReLU, ELU, absolute value,
    hard tanh). With a kink that is not named, expect 1e-3 of the product and 5e-2 of
    the slope. Nodes are a fixed distance of standard deviations apart, so that a large
    variance steps over what the activation does near 0 (erf at variance 100: the slope
    off by a tenth). `kernel`, `kernel_blocks`, `predictor` and `Dual.moments` warn
    where this costs more than 1e-4 at the variances that they meet, and say how many
    nodes are enough; traced variances are not looked at. In float32 rounding is what is
    left.
    Matrices of nodes x row x row' exist on the way: see `kernel_blocks`.

    Args:
        fn: elementwise and continuous; also called on its own by `jax.jvp`. Define the
            dual once and reuse it: another one compiles again.
        kinks: where the derivative jumps, such as `(0.0,)` for ReLU.
        rule: for activations without kinks. "trapezoid": equally spaced nodes, which
            follow steep activations (erf at variance 4: off by 1e-13 with 96);
            "hermite": Gauss-Hermite, exact for polynomials (erf at variance 4: 7e-6).
        nodes: along an axis, 128 by default; with kinks on every piece between them, 32
            by default and 64 if a kink is not at 0.

    Raises:
        TypeError: if `fn` is not elementwise on floating arrays.
        ValueError: if it is not finite near 0, kinks are not finite, the rule is
            unknown or there are fewer than 4 nodes.

    Example:
        >>> import jax
        >>> from ensjax import ntk
        >>> leaky = ntk.dual(jax.nn.leaky_relu, kinks=(0.0,))
        >>> spec = ntk.FullyConnected(hidden_layers=2, activation=leaky)
    """
    kinks = tuple(sorted({float(kink) for kink in kinks}))
    if not np.isfinite(kinks).all():
        raise ValueError(f"kinks must be finite; got {kinks}.")
    if rule not in _RULES:
        raise ValueError(f"Unknown rule {rule!r}; known: {', '.join(_RULES)}.")
    if nodes is None:
        nodes = (64 if any(kinks) else 32) if kinks else 128
    if isinstance(nodes, bool) or not isinstance(nodes, int) or nodes < 4:
        raise ValueError(f"nodes must be an integer of at least 4; got {nodes!r}.")
    _check_elementwise(fn)
    name = getattr(fn, "__name__", type(fn).__name__)
    if kinks:
        forward = functools.partial(_in_sectors, fn, kinks, nodes)
    else:
        forward = functools.partial(_on_grid, fn, rule, nodes)
    return Dual(name, forward, _Check(name, fn, kinks, rule, nodes), fn)


@dataclasses.dataclass(frozen=True)
class _Check:
    """Whether the nodes are enough at a variance: `Dual.check`.

    Of equal Gaussians both rules are one over the line, where their nodes are farthest
    apart. It is compared with itself with more nodes.
    """

    name: str
    fn: Callable[[jax.Array], jax.Array]
    kinks: tuple[float, ...]
    rule: str
    nodes: int

    def __call__(self, variance: float) -> float:
        """E[phi(u)^2], after a warning if it or E[phi'(u)^2] is off by 1e-4."""
        if not variance > 0:
            return float(self._moments(0.0, self.nodes)[0])
        own = self._moments(variance, self.nodes)
        error = self._error(own, variance)
        if error > 1e-4:
            more = (self.nodes * 2**power for power in range(1, 6))
            found = next((n for n in more if self._is_enough(n, variance)), None)
            cure = (
                f"nodes={found} are enough"
                if found
                else "scale the inputs, or name its kinks if it has any"
            )
            warnings.warn(
                f"The dual of {self.name} with nodes={self.nodes} is off by {error:.1e}"
                f" at the variance {variance:.6g} of pre-activations: {cure}.",
                stacklevel=4,
            )
        return float(own[0])

    def _is_enough(self, nodes, variance):
        return self._error(self._moments(variance, nodes), variance, 2 * nodes) < 1e-6

    def _error(self, own, variance, nodes=None):
        better = self._moments(variance, nodes or 8 * self.nodes, "trapezoid")
        return float(np.max(np.abs(own - better) / np.maximum(np.abs(better), 1e-30)))

    def _moments(self, variance, nodes, rule=None):
        """E[phi(u)^2] and E[phi'(u)^2] for one variance, float64 `[2]`."""
        std = np.sqrt(variance)
        if not self.kinks:
            points, weights = _line(rule or self.rule, nodes)
        else:
            inside = [k / std for k in self.kinks if std and abs(k) < _RADIUS * std]
            ends = np.unique([-_RADIUS, *inside, 0.0, _RADIUS])
            legendre, share = np.polynomial.legendre.leggauss(nodes)
            half = np.diff(ends)[:, None] / 2
            points = ((ends[:-1, None] + half) + half * legendre).ravel()
            weights = (half * share).ravel() * np.exp(-(points**2) / 2)
            weights /= np.sqrt(2 * np.pi)
        with jax.ensure_compile_time_eval(), jax.enable_x64(True):
            found = _with_slope(self.fn, jnp.asarray(std * points))
            return np.array([weights @ np.asarray(x) ** 2 for x in found])


def _check_elementwise(fn):
    like = jax.ShapeDtypeStruct((2, 3), jnp.float32)
    shape = jax.eval_shape(fn, like)
    if getattr(shape, "shape", None) != (2, 3) or shape.dtype != like.dtype:
        raise TypeError(
            "An activation maps a floating array elementwise to one of its shape and"
            f" dtype; this one maps {like} to {shape}."
        )
    near = np.asarray(fn(jnp.linspace(-4.0, 4.0, 33)))
    if not np.isfinite(near).all():
        raise ValueError("The activation is not finite between -4 and 4.")


def _with_slope(fn, x):
    return jax.jvp(fn, (x,), (jnp.ones_like(x),))


def _of_one_rank(*arrays):
    rank = max(jnp.ndim(x) for x in arrays)
    return [jnp.reshape(x, (1,) * (rank - jnp.ndim(x)) + jnp.shape(x)) for x in arrays]


def _line(rule, nodes):
    """Nodes and weights for the expectation over one standard normal."""
    if rule == "hermite":
        points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    else:
        points = (np.arange(nodes) - (nodes - 1) / 2) * (2 * _RADIUS / nodes)
        weights = np.exp(-(points**2) / 2)
    return points, weights / weights.sum()


def _on_grid(fn, rule, nodes, k11, k22, angle):
    """The moments of a smooth activation."""
    points, weights = _line(rule, nodes)
    k11, k22, angle = _of_one_rank(k11, k22, angle)
    dtype = jnp.result_type(k11, k22, angle)
    shape = jnp.broadcast_shapes(k11.shape, k22.shape, angle.shape)
    lead = (nodes,) + (1,) * len(shape)
    along = jnp.asarray(points, dtype).reshape(lead)
    weight = jnp.asarray(weights, dtype)

    def own(k):
        square = jnp.square(fn(jnp.sqrt(k)[None] * along))
        return jnp.tensordot(weight, square, axes=1, precision="highest")

    own_u, own_v = own(k11), own(k22)
    # Both Gaussians lean half of the angle to either side, so that swapping the inputs
    # swaps nothing else.
    near, far = jnp.cos(angle / 2)[None] * along, jnp.sin(angle / 2)

    def add(i, sums):
        across = (far * jnp.asarray(points, dtype)[i])[None]
        u = jnp.sqrt(k11)[None] * (near + across)
        v = jnp.sqrt(k22)[None] * (near - across)
        found = _integrands(fn, u, v, own_u[None], own_v[None])
        return tuple(
            total + weight[i] * jnp.tensordot(weight, x, axes=1, precision="highest")
            for total, x in zip(sums, found, strict=True)
        )

    zero = jnp.zeros(shape, dtype)
    return _moments(*jax.lax.fori_loop(0, nodes, add, (zero, zero, zero)))


def _integrands(fn, u, v, own_u, own_v):
    """Products of values and of slopes, and the squared distance of unit vectors."""
    (of_u, slope_u), (of_v, slope_v) = _with_slope(fn, u), _with_slope(fn, v)
    apart = _normed(of_u, own_u) - _normed(of_v, own_v)
    return of_u * of_v, slope_u * slope_v, apart**2


def _normed(values, own):
    return values / jnp.sqrt(jnp.where(own > 0, own, 1))


def _moments(product, slope, apart):
    half = jnp.clip(jnp.sqrt(apart) / 2, 0, 1)
    return DualMoments(product, slope, 2 * jnp.arcsin(half))


def _in_sectors(fn, kinks, nodes, k11, k22, angle):
    """The moments of an activation with kinks, in polar coordinates."""
    legendre = np.polynomial.legendre.leggauss(nodes)
    dtype = jnp.result_type(k11, k22, angle)
    k11, k22, angle = jnp.broadcast_arrays(k11, k22, angle)
    own_u, own_v = _own(fn, kinks, legendre, k11), _own(fn, kinks, legendre, k22)
    std_u, std_v = jnp.sqrt(k11), jnp.sqrt(k22)
    edges = _sector_edges(kinks, std_u, std_v, angle)  # [edge, ...]
    points, weights = (jnp.asarray(x, dtype) for x in legendre)

    def add(i, sums):
        piece, node = i // nodes, i % nodes
        low, high = edges[piece], edges[piece + 1]
        direction = (low + high) / 2 + (high - low) / 2 * points[node]
        lean_u = std_u * jnp.cos(direction - angle / 2)
        lean_v = std_v * jnp.cos(direction + angle / 2)
        radius, weight = _along_ray(kinks, legendre, lean_u, lean_v)
        weight = weight * (weights[node] * (high - low) / (4 * jnp.pi))[None]
        found = _integrands(
            fn, radius * lean_u[None], radius * lean_v[None], own_u[None], own_v[None]
        )
        return tuple(
            total + jnp.sum(weight * x, axis=0)
            for total, x in zip(sums, found, strict=True)
        )

    zero = jnp.zeros(angle.shape, dtype)
    count = (len(edges) - 1) * nodes
    return _moments(*jax.lax.fori_loop(0, count, add, (zero, zero, zero)))


def _own(fn, kinks, legendre, k):
    """E[phi(u)^2] for variances `k`, on both sides of the line."""
    total = 0
    for sign in (1, -1):
        lean = sign * jnp.sqrt(k)
        radius, weight = _along_ray(kinks, legendre, lean, lean, power=0)
        square = jnp.square(fn(radius * lean[None]))
        total = total + jnp.sum(weight * square, axis=0)
    return total / np.sqrt(2 * np.pi)


def _along_ray(kinks, legendre, lean_u, lean_v, power=1):
    """Radii on a ray, between its crossings of the kinks' lines, and their weights.

    u = radius lean_u and v = radius lean_v; `[node, ...]`. The weights hold the radius
    to a power and its Gaussian.
    """
    dtype = lean_u.dtype
    ends = [jnp.zeros_like(lean_u)]
    for kink in kinks:
        if kink:
            for lean in (lean_u, lean_v):
                crosses = lean * np.sign(kink) > 0
                place = kink / jnp.where(crosses, lean, kink)
                ends.append(jnp.where(crosses, place, _RADIUS))
    ends = jnp.sort(jnp.minimum(jnp.stack(ends), _RADIUS), axis=0)
    ends = jnp.concatenate([ends, jnp.full_like(ends[:1], _RADIUS)])
    middle, half = (ends[1:] + ends[:-1]) / 2, (ends[1:] - ends[:-1]) / 2
    points, weights = (
        jnp.asarray(x, dtype).reshape((1, -1) + (1,) * lean_u.ndim) for x in legendre
    )
    radius = middle[:, None] + half[:, None] * points
    weight = half[:, None] * weights * radius**power * jnp.exp(-(radius**2) / 2)
    flat = (-1, *lean_u.shape)
    return radius.reshape(flat), weight.reshape(flat)


def _sector_edges(kinks, std_u, std_v, angle):
    """Directions, in order around the circle, between which rays look the same.

    Where u or v changes its sign, and where a ray meets a line of u and one of v at the
    same radius.
    """
    first = angle / 2 - jnp.pi / 2
    edges = [angle / 2 + jnp.pi / 2]
    edges += [-angle / 2 + jnp.pi / 2, -angle / 2 - jnp.pi / 2]
    cosine, sine = jnp.cos(angle / 2), jnp.sin(angle / 2)
    for of_u in filter(None, kinks):
        for of_v in filter(None, kinks):
            u, v = std_u / of_u, std_v / of_v
            meeting = jnp.arctan2(cosine * (v - u), sine * (u + v))
            behind = u * jnp.cos(meeting - angle / 2) < 0
            edges.append(meeting + jnp.where(behind, jnp.pi, 0))
    edges = [first + (edge - first) % (2 * jnp.pi) for edge in edges]
    ordered = jnp.sort(jnp.stack([first, *edges]), axis=0)
    return jnp.concatenate([ordered, first[None] + 2 * jnp.pi])
