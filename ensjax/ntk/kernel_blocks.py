"""Kernels of many rows: blocks of rows, split over the devices of a mesh."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ensjax.mapping import mesh_program
from ensjax.mesh import AXES, check_mesh, default_mesh
from ensjax.ntk.kernels import (
    FullyConnected,
    Kernels,
    check_inputs,
    check_variances,
    kernel,
)


def kernel_blocks(
    spec: FullyConnected,
    x: Any,
    z: Any = None,
    *,
    block_rows: int | None = None,
    mesh: Mesh | None = None,
) -> Kernels:
    """`kernel` in one compiled program whose rows are split over all devices.

    Each device computes the rows of its own inputs, a block at a time; devices send
    each other nothing. What is needed besides the result depends on the block and not
    on the number of rows of `x`.

    Args:
        spec: the network.
        x: inputs `[row, feature]`.
        z: inputs `[row', feature]`, whole on every device; `x` by default.
        block_rows: rows of a device that are computed together; all by default.
        mesh: from `make_mesh`; all devices by default.

    Returns:
        `[row, row']`, each; their rows are split over the mesh. Where the rows do not
        divide over devices and blocks, they are padded and the padding is cut off,
        which moves rows between devices.

    Raises:
        ValueError: as `kernel`, or if `block_rows` is not positive.
    """
    x = check_inputs(x, "x")
    z = x if z is None else check_inputs(z, "z")
    if block_rows is not None and (
        isinstance(block_rows, bool)
        or not isinstance(block_rows, int)
        or block_rows < 1
    ):
        raise ValueError(f"block_rows must be a positive integer; got {block_rows!r}.")
    mesh = default_mesh() if mesh is None else mesh
    check_mesh(mesh)
    check_variances(spec, x, z)
    return mesh_program(_KernelBlocks(spec, block_rows), mesh)(x, z)


@dataclasses.dataclass(frozen=True)
class _KernelBlocks:
    """The job of `MeshProgram`: kernels between local rows of `x` and all of `z`."""

    spec: FullyConnected
    block_rows: int | None
    donate: tuple[int, ...] = ()

    def in_specs(self):
        return jax.P(AXES), jax.P()

    def out_specs(self):
        return jax.P(AXES)

    def check(self, mesh, x, z):
        pass

    def _rows(self, mesh, x):
        """Rows of a device: enough for all, in whole blocks."""
        rows = -(-x.shape[0] // mesh.size)
        block = rows if self.block_rows is None else min(self.block_rows, rows)
        return -(-rows // block) * block, block

    def prepare(self, mesh, x, z):
        rows, block = self._rows(mesh, x)
        x = jnp.pad(x, ((0, mesh.size * rows - x.shape[0]), (0, 0)))
        return x.reshape(-1, block, x.shape[1]), z

    def local(self, x, z):
        if x.shape[0] == 1:
            found = kernel(self.spec, x[0], z)
        else:
            found = jax.lax.map(lambda rows: kernel(self.spec, rows, z), x)
        return jax.tree.map(lambda k: k.reshape(-1, k.shape[-1]), found)

    def finish(self, outputs, x, z):
        return jax.tree.map(
            lambda k: k if k.shape[0] == x.shape[0] else k[: x.shape[0]], outputs
        )
