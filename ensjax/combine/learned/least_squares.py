"""Weighted least squares of a few columns: free, non-negative, or on the simplex."""

import jax
import jax.numpy as jnp

CONSTRAINTS = ("free", "non_negative", "simplex")


def least_squares(
    columns: jax.Array,
    targets: jax.Array,
    sample_weight: jax.Array,
    *,
    l2: jax.Array | float,
    constraint: str,
    allowed: jax.Array | None = None,
) -> jax.Array:
    """Weights `[column]` that minimise a penalised sum of squares.

        min_w  sum_n s_n (columns_n . w - targets_n)^2 + l2 |w|^2

    A QR factorisation keeps the condition number of the columns, whose normal equations
    would square it.

    Args:
        columns: `[batch, column]`, finite where the weight is not 0.
        targets: `[batch]`.
        sample_weight: `[batch]`, non-negative.
        l2: non-negative.
        constraint: "free", "non_negative", or "simplex" (non-negative, summing to 1).
        allowed: `[column]` bools; the weights of the others are 0.
    """
    number = columns.shape[1]
    allowed = jnp.ones(number, bool) if allowed is None else allowed
    if constraint == "simplex":
        # On the simplex the residual is a mean of the columns' own errors.
        columns, targets = columns - targets[:, None], jnp.zeros_like(targets)
    columns = jnp.where(allowed[None], columns, 0.0)
    table = jnp.concatenate([columns, targets[:, None]], axis=1)
    table = jnp.where(sample_weight[:, None] == 0, 0.0, table)
    table = table * jnp.sqrt(sample_weight)[:, None]
    ridge = jnp.sqrt(jnp.asarray(l2, table.dtype)) * jnp.eye(number, number + 1)
    table = jnp.concatenate([table, ridge.astype(table.dtype)])
    short = jnp.linalg.qr(table, mode="r")  # [column + 1, column + 1]
    if constraint == "simplex":
        return _simplex(short[:, :-1], allowed)
    if constraint == "non_negative":
        return nnls(short[:, :-1], short[:, -1], allowed)
    return _solve(short[:, :-1], short[:, -1])


def nnls(matrix: jax.Array, target: jax.Array, allowed: jax.Array) -> jax.Array:
    """Non-negative weights with the least |matrix . w - target|^2, `[column]`.

    `allowed` are bools `[column]`; the weights of the others are 0.

    An active-set method: the column with the largest negative slope is let in, and
    those that would turn negative leave, until no slope is negative.

    Source: Lawson and Hanson 1974, chapter 23, algorithm NNLS.
    """
    number = matrix.shape[1]
    scale = jnp.sqrt(jnp.sum(matrix**2, axis=0))
    # Slopes below this are rounding of the products that they are sums of.
    slack = 10 * jnp.finfo(matrix.dtype).eps * scale * jnp.linalg.norm(target)
    slack = slack * jnp.sqrt(jnp.asarray(number + 1.0, matrix.dtype))

    def slopes(weights, is_in):
        away = target - jnp.matmul(matrix, weights, precision="highest")
        falling = jnp.matmul(matrix.T, away, precision="highest")
        return jnp.where(is_in | ~allowed | (falling <= slack), -jnp.inf, falling)

    def retreat(carry):
        weights, is_in, _ = carry
        aim = _solve(jnp.where(is_in[None], matrix, 0.0), target)
        crosses = is_in & (aim <= 0)
        ratio = jnp.where(crosses, weights / (weights - aim), 1.0)
        step = jnp.min(jnp.where(jnp.isnan(ratio), 0.0, ratio))
        moved = jnp.where(is_in, weights + step * (aim - weights), 0.0)
        leaves = crosses & (ratio <= step)
        is_in = is_in & ~leaves
        return jnp.where(is_in, jnp.maximum(moved, 0.0), 0.0), is_in, jnp.any(crosses)

    def improve(carry):
        weights, is_in, count = carry
        is_in = is_in.at[jnp.argmax(slopes(weights, is_in))].set(True)
        weights, is_in, _ = jax.lax.while_loop(
            lambda inner: inner[2], retreat, (weights, is_in, jnp.asarray(True))
        )
        return weights, is_in, count + 1

    def goes_on(carry):
        weights, is_in, count = carry
        return jnp.any(slopes(weights, is_in) > 0) & (count < 3 * number)

    start = (jnp.zeros(number, matrix.dtype), jnp.zeros(number, bool), 0)
    return jax.lax.while_loop(goes_on, improve, start)[0]


def _simplex(errors, allowed):
    """The mean of columns that is nearest to zero, by one non-negative fit.

    min |E v|^2 + (sum v - 1)^2 over v >= 0 points where min |E w|^2 on the simplex is:
    along c w it is least at 1 - 1 / (1 + |E w|^2), which rises with |E w|^2.
    """
    # Errors of size one: the sum's row then weighs as much as theirs.
    size = jnp.sqrt(jnp.max(jnp.sum(errors**2, axis=0)))
    errors = errors / jnp.where(size > 0, size, 1.0)
    ones = jnp.where(allowed, 1.0, 0.0).astype(errors.dtype)
    matrix = jnp.concatenate([errors, ones[None]])
    target = jnp.zeros(matrix.shape[0], matrix.dtype).at[-1].set(1.0)
    weights = nnls(matrix, target, allowed)
    return weights / jnp.sum(weights)


def _solve(matrix, target):
    return jnp.linalg.lstsq(matrix, target)[0]
