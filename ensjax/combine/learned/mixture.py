"""Weights of a mixture with the least NLL, by quadratic programs on the simplex."""

import jax
import jax.numpy as jnp

from ensjax.combine.learned.least_squares import least_squares

_MAX_STEPS, _NUM_POLISHES, _NUM_HALVINGS = 100, 4, 20
_SMALL_GAP = 1e-6  # in nats
_SMALLEST_CURVATURE = 1e-6  # of the largest: flatter directions count as if they rose


def mixture_weights(
    likelihood: jax.Array, row_weight: jax.Array, start: jax.Array
) -> jax.Array:
    """Weights `[member]` on the simplex of the least mean NLL of the mixture.

        f(w) = - sum_n s_n log sum_m w_m r_mn

    Each step goes to the minimum, on the simplex, of the parabola that f is like where
    it stands, or part of the way if f does not fall there. Members that are left out
    have the weight 0 exactly; the others are then settled by Newton steps among them,
    so that what is left is the rounding of the slope. NaN if f is NaN.

    Args:
        likelihood: r, of the label by each member, relative to the largest of its row,
            `[member, batch]`.
        row_weight: s, `[batch]`, non-negative; the rows of weight 0 are ignored.
        start: `[member]`; members of weight 0 stay out.

    Source: Kim et al. 2020, arXiv:1806.01412 (mixSQP), with an active-set solver.
    """
    share = row_weight / jnp.sum(row_weight)
    allowed = start > 0
    # A row of weight 0 may hold anything, and so may a member that is out.
    is_used = allowed[:, None] & (row_weight > 0)[None]
    likelihood = jnp.where(is_used, likelihood, jnp.where(allowed, 1.0, 0.0)[:, None])

    def mix(weights):  # no matrix product, whose precision is the device's choice
        return jnp.sum(weights[:, None] * likelihood, axis=0)

    def value_of(weights):
        return -jnp.sum(share * jnp.log(mix(weights)))

    def look(weights):
        """The slope but for a constant, and the curvature as a matrix."""
        said = likelihood / mix(weights)[None]
        # Near 0 where it matters, so that it rounds less than a sum near -1.
        slope = jnp.sum((1 - said) * share[None], axis=1)
        return slope, jnp.matmul(said * share[None], said.T, precision="highest")

    def gap_of(weights, slope):
        """How far the value can lie above its least, as it is convex."""
        best = jnp.min(jnp.where(allowed, slope, jnp.inf))
        return jnp.sum(weights * slope) - best

    def go(carry):
        weights, value, slope, curvature, _, count = carry
        aim = _parabola_minimum(weights, slope, curvature, allowed)
        weights, value, moved = _walk(value_of, weights, aim - weights, value)
        slope, curvature = look(weights)
        return weights, value, slope, curvature, moved, count + 1

    def goes_on(carry):
        weights, _, slope, _, moved, count = carry
        return moved & (gap_of(weights, slope) > _SMALL_GAP) & (count < _MAX_STEPS)

    def polish(_, carry):
        weights, value = carry
        slope, curvature = look(weights)
        step = _newton_step(weights > 0, slope, curvature)
        weights, value, _ = _walk(value_of, weights, step, value)
        return weights, value

    first = (start, value_of(start), *look(start), jnp.asarray(True), 0)
    weights, value, *_ = jax.lax.while_loop(goes_on, go, first)
    weights, value = jax.lax.fori_loop(0, _NUM_POLISHES, polish, (weights, value))
    return jnp.where(jnp.isnan(value), jnp.nan, weights)


def _parabola_minimum(weights, slope, curvature, allowed):
    sizes, axes = jnp.linalg.eigh(curvature)
    roots = jnp.sqrt(jnp.maximum(sizes, _SMALLEST_CURVATURE * jnp.max(sizes)))
    root = roots[:, None] * axes.T  # root' root is the curvature
    targets = jnp.matmul(root, weights, precision="highest")
    targets = targets - jnp.matmul(axes.T, slope, precision="highest") / roots
    return least_squares(
        root,
        targets,
        jnp.ones_like(targets),
        l2=0.0,
        constraint="simplex",
        allowed=allowed,
    )


def _newton_step(is_free, slope, curvature):
    """Newton's step among the free members that keeps the sum of the weights."""
    free = is_free.astype(slope.dtype)
    ridge = _SMALLEST_CURVATURE * jnp.max(jnp.diag(curvature))
    among = free[:, None] * curvature * free[None]
    among += jnp.diag(jnp.where(is_free, ridge, 1.0))
    sides = jnp.stack([free * slope, free], axis=1)
    down, even = jnp.linalg.solve(among, sides).T
    return even * (jnp.sum(down) / jnp.sum(even)) - down


def _walk(value_of, weights, step, value):
    """The point along a step where the value does not rise; whether there is one."""
    slack = 1e-6 * jnp.abs(value) + 1e-7  # rounding is no rise

    def at(size):
        # A member that a step would make negative leaves.
        point = jnp.maximum(weights + size * step, 0.0)
        point = point / jnp.sum(point)
        return point, value_of(point)

    def is_too_long(carry):
        size, count = carry
        return ~(at(size)[1] <= value + slack) & (count < _NUM_HALVINGS)

    size, count = jax.lax.while_loop(
        is_too_long, lambda carry: (carry[0] / 2, carry[1] + 1), (jnp.ones(()), 0)
    )
    moved = count < _NUM_HALVINGS
    point, reached = at(size)
    return jnp.where(moved, point, weights), jnp.where(moved, reached, value), moved
