"""Ways of `bench_ntk`: the same tangent kernels by one program and by loops."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import ensjax
from ensjax import ntk
from ensjax.mapping import mesh_program
from ensjax.ntk.empirical import kernel_program
from ensjax.weight_space.leaves import leaf_names

OURS = "ours"
# Kernels are sums of two million products in float32, which libraries add up in
# different orders. Now and then a unit is then on the other side of its ReLU: of the
# 16 x 128 x 128 entries one was .35 % off with torch (a unit of 256), no other .05 %.
TOLERANCE = 5e-4
MODELS = ("mlp", "cnn")
NUM_OUTPUTS = 10
TORCH_ROWS = 8  # at once, of products: 80 vectors of as many numbers as weights


@dataclasses.dataclass(frozen=True)
class Task:
    """Members of one architecture, inputs, and rows of a block of ours."""

    model: str
    ensemble: Any
    x: np.ndarray
    block_rows: int | None


def _make_mlp(rngs):
    return ensjax.nn.MLP(
        in_features=784, hidden=(256,), num_outputs=NUM_OUTPUTS, rngs=rngs
    )


def _make_cnn(rngs):
    return ensjax.nn.CNN(features=(8, 16, 16), num_outputs=NUM_OUTPUTS, rngs=rngs)


def make_task(
    model: str, num_members: int, num_rows: int, block_rows: int | None = None
) -> Task:
    """Untrained members on one device, and noise as images."""
    device = ensjax.make_mesh(member=1, devices=jax.devices()[:1])
    make = {"mlp": _make_mlp, "cnn": _make_cnn}[model]
    ensemble = ensjax.Ensemble.init(make, num_members=num_members, seed=0, mesh=device)
    shape = (784,) if model == "mlp" else (28, 28, 1)
    x = np.random.default_rng(0).standard_normal((num_rows, *shape), np.float32)
    return Task(model, ensemble, x, block_rows)


def num_programs() -> int:
    """Compiled programs of the mesh that exist: none may be added by a later call."""
    return mesh_program.cache_info().currsize


def num_weights(task: Task) -> int:
    """Of one member."""
    return sum(leaf[0].size for leaf in jax.tree.leaves(task.ensemble.params))


def _ours(task, method, block):
    kernels = ntk.empirical_ntk(
        task.ensemble, task.x, method=method, block_rows=task.block_rows, block=block
    )
    return jax.block_until_ready(kernels)


def with_ours(task: Task) -> Callable[[], Any]:
    """All members in one program, Jacobians contracted block by block."""
    return functools.partial(_ours, task, "jacobian", "auto")


def with_vector_products(task: Task) -> Callable[[], Any]:
    """All members in one program, by products with vectors."""
    return functools.partial(_ours, task, "vector_products", "auto")


def with_all_at_once(task: Task) -> Callable[[], Any]:
    """As ours, members always under `vmap`."""
    return functools.partial(_ours, task, "jacobian", None)


def _forward(task):
    """`forward(params, x)` of one member, and every member's parameters."""
    graphdef = task.ensemble.graph.graphdef
    rest = jax.tree.map(lambda a: a[0], task.ensemble.state["rest"])

    def forward(params, x):
        model = nnx.merge(graphdef, params, rest, copy=True)
        model.eval()
        return model(x)

    count = len(task.ensemble)
    members = [jax.tree.map(lambda a: a[i], task.ensemble.params) for i in range(count)]  # noqa: B023
    return forward, members


def _contracted(jacobian):
    """The kernel `[row, row']` of leaves `[row, output, ...]`."""
    total = 0
    for leaf in jax.tree.leaves(jacobian):
        rows = leaf.reshape(leaf.shape[0], -1)
        total += jnp.matmul(rows, rows.T, precision="highest")
    return total / NUM_OUTPUTS


def _looped(task, of_member):
    forward, members = _forward(task)
    x = jnp.asarray(task.x)
    kernel = jax.jit(functools.partial(of_member, forward))

    def run():
        return jax.block_until_ready([kernel(params, x) for params in members])

    return run


def _by_rows(forward, params, x):
    with jax.default_matmul_precision("highest"):
        one = jax.jacrev(lambda p, row: forward(p, row[None])[0])
        return _contracted(jax.vmap(one, in_axes=(None, 0))(params, x))


def _by_batch(forward, params, x):
    with jax.default_matmul_precision("highest"):
        return _contracted(jax.jacobian(forward)(params, x))


def with_loop(task: Task) -> Callable[[], Any]:
    """A loop over members of a jitted kernel: Jacobians row by row under `vmap`."""
    return _looped(task, _by_rows)


def with_jacobian(task: Task) -> Callable[[], Any]:
    """A loop over members of `jax.jacobian` of the batch, jitted with its product."""
    return _looped(task, _by_batch)


def _in_torch(task):
    """`forward(params, rows)`, the members' parameters and the inputs, in torch.

    Raises:
        ImportError: without torch, or for a network that is not the MLP.
    """
    import torch

    if task.model != "mlp":
        raise ImportError("the torch way is written for the MLP alone")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    weights = task.ensemble.params
    arrays = dict(zip(leaf_names(weights), jax.tree.leaves(weights), strict=True))
    # Biases sort before kernels, and the hidden layer before the head.
    names = dict(zip(("b1", "w1", "b2", "w2"), sorted(arrays)))
    params = {
        name: torch.from_numpy(np.array(arrays[leaf])).to(device)
        for name, leaf in names.items()
    }

    def forward(params, rows):
        hidden = torch.relu(rows @ params["w1"] + params["b1"])
        return hidden @ params["w2"] + params["b2"]

    return torch, forward, params, torch.from_numpy(task.x).to(device)


def _of_every_member(torch, kernel, params):
    """A call of `kernel` of each member, one at a time as memory wants it."""

    def run():
        found = torch.func.vmap(kernel, chunk_size=1)(params)
        return found.cpu().numpy()

    return run


def with_torch(task: Task) -> Callable[[], Any]:
    """`torch.func`: per-row `jacrev` of an MLP under `vmap`, contracted.

    Raises:
        ImportError: as `_in_torch`.
    """
    torch, forward, params, x = _in_torch(task)

    def kernel(params):
        rows = torch.func.vmap(torch.func.jacrev(forward), (None, 0))(params, x)
        flat = [leaf.reshape(len(x), -1) for leaf in rows.values()]
        return sum(leaf @ leaf.T for leaf in flat) / NUM_OUTPUTS

    return _of_every_member(torch, kernel, params)


def with_torch_products(task: Task) -> Callable[[], Any]:
    """`torch.func`: products of the kernel with vectors, a few rows at a time.

    The vector is pulled back through one row and pushed forward through all of them, so
    that no Jacobian exists: a product of `vjp` and `jvp` for each row and output.

    Raises:
        ImportError: as `_in_torch`.
    """
    torch, forward, params, x = _in_torch(task)
    basis = torch.eye(NUM_OUTPUTS, device=x.device)

    def kernel(params):
        def of_row(row):
            _, pull = torch.func.vjp(lambda p: forward(p, row), params)

            def of_output(vector):
                (tangent,) = pull(vector)
                batch = functools.partial(forward, rows=x)
                _, pushed = torch.func.jvp(batch, (params,), (tangent,))
                return pushed @ vector

            return torch.func.vmap(of_output)(basis).sum(0) / NUM_OUTPUTS

        return torch.func.vmap(of_row, chunk_size=TORCH_ROWS)(x)

    return _of_every_member(torch, kernel, params)


WAYS = {
    OURS: with_ours,
    "all at once": with_all_at_once,
    "vector products": with_vector_products,
    "jitted loop": with_loop,
    "jax.jacobian": with_jacobian,
    "torch.func": with_torch,
    "torch.func, products": with_torch_products,
}


def compare(name: str, found: Any, ours: Any) -> float:
    """The norm of the difference over that of our kernel, for the farthest member.

    Raises:
        RuntimeError: if it is another kernel, which would make times meaningless.
    """
    expected = np.asarray(ours)
    found = np.stack([np.asarray(k) for k in found])
    norms = np.linalg.norm(found - expected, axis=(1, 2))
    away = float((norms / np.linalg.norm(expected, axis=(1, 2))).max())
    if not away <= TOLERANCE:
        raise RuntimeError(f"{name} gives other kernels than ours, by {away:.2g}.")
    return away


def flop(task: Task) -> float:
    """Arithmetic that the kernels need: every Jacobian once, half of the products.

    The Jacobian of a row is what the compiler counts for it; products are of the pairs
    of rows on and below the diagonal.
    """
    forward, members = _forward(task)
    one = jax.jit(jax.jacrev(lambda p, row: forward(p, row[None])[0]))
    cost = one.lower(members[0], task.x[0]).compile().cost_analysis()
    cost = cost[0] if isinstance(cost, list) else cost
    rows = len(task.x)
    pairs = rows * (rows + 1) / 2
    products = 2 * pairs * NUM_OUTPUTS * num_weights(task)
    return len(members) * (rows * cost["flops"] + products)


def memory(task: Task, way: str) -> dict[str, int]:
    """Bytes of the compiled program of a way of ours: result and all else, or none."""
    options = {OURS: ("jacobian", "auto"), "all at once": ("jacobian", None)}
    options["vector products"] = ("vector_products", "auto")
    if way not in options:
        return {}
    method, block = options[way]
    program, arguments = kernel_program(
        task.ensemble, task.x, method=method, block_rows=task.block_rows, block=block
    )
    sizes = program.lower(*arguments).compile().memory_analysis()
    return {
        "result_bytes": sizes.output_size_in_bytes,
        "temporary_bytes": sizes.temp_size_in_bytes,
    }


def matmul_rate(size: int) -> float:
    """FLOP/s of one square float32 product of this device, at full precision.

    What a kernel could reach at most; the best of five.
    """
    import time

    a = jnp.ones((size, size), jnp.float32)
    product = jax.jit(lambda a, b: jnp.matmul(a, b, precision="highest"))
    jax.block_until_ready(product(a, a))
    best = np.inf
    for _ in range(5):
        start = time.perf_counter()
        jax.block_until_ready(product(a, a))
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
