"""How alike kernels are: change, cosine and centred alignment of matrices in memory."""

import jax
import jax.numpy as jnp
import numpy as np


def label_kernel(targets: jax.Array) -> jax.Array:
    """The kernel `y y^T` of targets `[row, output]` (one-hot labels), `[row, row']`.

    Raises:
        ValueError: if targets are not `[row, output]`.
    """
    targets = jnp.asarray(targets)
    if targets.ndim != 2:
        raise ValueError(
            f"targets must be [row, output], such as one-hot labels; got shape"
            f" {targets.shape}."
        )
    return jnp.matmul(targets, targets.T, precision="highest")


def centred(kernels: jax.Array) -> jax.Array:
    """`H K H`, H = I - 1/n: the kernel of features without their mean over rows.

    Args:
        kernels: `[..., row, row']`.
    """
    kernels = kernels - jnp.mean(kernels, axis=-1, keepdims=True)
    return kernels - jnp.mean(kernels, axis=-2, keepdims=True)


def alignment(first: jax.Array, second: jax.Array, *, centre: bool = True) -> jax.Array:
    """The cosine `<A, B> / (|A| |B|)` of kernels under the Frobenius product.

    Args:
        first: `[..., row, row']`.
        second: of the same rows; leading axes broadcast.
        centre: whether both are centred first, as in centred kernel alignment (CKA).

    Returns:
        `[...]`, at most 1; NaN for a kernel that is 0.

    Raises:
        ValueError: if the kernels are of other rows.

    Source: Cristianini et al. 2001 (kernel-target alignment); Cortes et al. 2012,
    JMLR 13, definition 4 (centred).
    """
    first, second = jnp.asarray(first), jnp.asarray(second)
    _check_alike(first, second)
    if centre:
        first, second = centred(first), centred(second)
    product = jnp.einsum("...ij,...ij->...", first, second, precision="highest")
    return product / (_norm(first) * _norm(second))


def alignment_between_members(kernels: jax.Array, *, centre: bool = True) -> jax.Array:
    """`alignment` of every two members, `[member, member']`, of `[member, row, row']`.

    Raises:
        ValueError: if kernels are not `[member, row, row']`.
    """
    kernels = jnp.asarray(kernels)
    if kernels.ndim != 3:
        raise ValueError(
            f"kernels must be [member, row, row']; got shape {kernels.shape}."
        )
    kernels = centred(kernels) if centre else kernels
    products = jnp.einsum("aij,bij->ab", kernels, kernels, precision="highest")
    norms = _norm(kernels)
    return products / (norms[:, None] * norms[None, :])


def relative_change(kernels: jax.Array, reference: jax.Array) -> jax.Array:
    """`|K - K_0| / |K_0|` in the Frobenius norm.

    Args:
        kernels: `[..., row, row']`.
        reference: K_0 of the same rows, `[..., row, row']`; leading axes broadcast.

    Returns:
        `[...]`.

    Raises:
        ValueError: if the kernels are of other rows.
    """
    kernels, reference = jnp.asarray(kernels), jnp.asarray(reference)
    _check_alike(kernels, reference)
    axes = range(max(kernels.ndim, reference.ndim))
    kernels, reference = (
        jnp.expand_dims(k, list(axes)[: len(axes) - k.ndim])
        for k in (kernels, reference)
    )
    return _norm(kernels - reference) / _norm(reference)


def _norm(kernels):
    return jnp.sqrt(jnp.sum(kernels**2, axis=(-2, -1)))


def _check_alike(first, second):
    shapes = [np.shape(k) for k in (first, second)]
    if min(map(len, shapes)) < 2 or shapes[0][-2:] != shapes[1][-2:]:
        raise ValueError(
            "kernels must be [..., row, row'] of the same rows; got shapes"
            f" {shapes[0]} and {shapes[1]}."
        )
