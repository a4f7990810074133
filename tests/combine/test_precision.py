"""Matrix products of what is fitted and applied are exact to float32, on any device.

By default a device may round what is multiplied to three digits, where scores round
nothing. The precision stands in the traced program, so nothing is compiled here.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ensjax import combine, data
from ensjax.combine.learned.gates import softmax_gate

RNG = np.random.default_rng(0)
M, N, C, L = 3, 12, 3, 5
LOGITS = RNG.normal(size=(M, N, C)).astype(np.float32)
LABELS = np.arange(N) % C
POINTS = RNG.normal(size=(M, N)).astype(np.float32)
TARGETS = RNG.normal(size=N).astype(np.float32)
QUANTILES = np.sort(RNG.normal(size=(M, N, L)), axis=-1).astype(np.float32)
X = RNG.normal(size=(N, 4)).astype(np.float32)
LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
HIGHEST = (jax.lax.Precision.HIGHEST,) * 2


def products(jaxpr):
    """The precision of every matrix product of a traced program, inner ones too."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            found.append(equation.params["precision"])
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                found += products(inner)
    return found


def stacked(**options):
    def run(logits):
        return combine.fit_stacking(logits, LABELS, **options)(logits)

    return run, LOGITS


def regression(constraint):
    def run(points):
        fit = functools.partial(
            combine.fit_stacking_regression, points, TARGETS, constraint=constraint
        )
        return fit()(points)

    return run, POINTS


def convex(**options):
    def run(logits):
        return combine.fit_convex_weights(logits, LABELS, **options)(logits)

    return run, LOGITS


def calibrated(fit_map):
    def run(logits):
        return combine.calibrate_ensemble(fit_map, logits, LABELS)(logits)

    return run, LOGITS


def jackknife(points):
    inbag = RNG.multinomial(N, np.ones(N) / N, size=M)
    fitted = combine.fit_jackknife_after_bootstrap(points, inbag, TARGETS)
    return fitted(points, alpha=0.2)


def aggregator(kind, scope, **options):
    if scope == "local":
        options |= dict(num_features=4, hidden=(3,))
    model = combine.QuantileAggregator(
        num_base=M,
        levels=LEVELS,
        kind=kind,
        scope=scope,
        order="isotonic",
        order_in_loss=True,
        rngs=nnx.Rngs(0),
        **options,
    )
    if scope == "local":
        # The network of x is a network like any other; what it says is mixed here.
        model.blocks = nnx.List([])
        model.head = nnx.Param(jnp.zeros((4, *model.head.shape[1:])))
    model.eval()

    def run(quantiles):
        x = X if scope == "local" else None
        return jax.grad(lambda q: jnp.sum(model(q, x) ** 2))(quantiles)

    return run, QUANTILES


def stages(x):
    weight = jnp.arange(N) % 4 != 0
    for stage in (
        data.SelectByF(2, num_classes=C),
        data.Standardize(),
        data.PrincipalComponents(2),
    ):
        x = stage.transform(stage.fit(x, LABELS, weight), x)
    return x


def fused(tokens):
    model = combine.AttentionFusion(
        widths=(4,) * M, dim=4, num_outputs=C, num_heads=2, rngs=nnx.Rngs(0)
    )
    # Its layers are those of any network; what is mixed over members is not.
    model.qkv, model.out = lambda x: jnp.tile(x, 3), lambda x: x
    static = combine.StaticFusion(
        widths=(4,) * M, dim=4, num_outputs=C, rngs=nnx.Rngs(0)
    )
    mask = jnp.ones((N, M), bool)
    assert softmax_gate(jnp.zeros((N, M)), mask).shape == (N, M)
    return model.fuse(tokens, mask), static.fuse(tokens, mask)


PROGRAMS = {
    "stacking": stacked(),
    "regression_free": regression("free"),
    "regression_non_negative": regression("non_negative"),
    "regression_simplex": regression("simplex"),
    "convex_nll": convex(),
    "convex_brier": convex(loss="brier"),
    "matrix_scaling": calibrated(combine.fit_matrix_scaling),
    "vector_scaling": calibrated(combine.fit_vector_scaling),
    "platt": calibrated(combine.fit_platt),
    "jackknife": (jackknife, POINTS),
    "masked_stages": (stages, X),
    "fusion": (fused, np.ones((N, M, 4), np.float32)),
    **{
        f"aggregator_{scope}_{kind}": aggregator(kind, scope)
        for scope in ("global", "local")
        for kind in ("coarse", "medium", "fine")
    },
    "aggregator_low_rank": aggregator("fine", "local", rank=2),
    "aggregator_free_fine": aggregator("fine", "global", normalize=False),
    "aggregator_free_local": aggregator("fine", "local", normalize=False),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_matrix_products_are_in_full_precision(name):
    run, given = PROGRAMS[name]
    found = products(jax.make_jaxpr(run)(given).jaxpr)
    assert found, "without a product the test says nothing"
    assert set(found) == {HIGHEST}


def test_a_product_in_default_precision_is_found():
    def inner(x):
        return jax.lax.map(lambda row: x @ row, x)

    traced = jax.make_jaxpr(jax.jit(inner))(jnp.ones((2, 2))).jaxpr
    assert products(traced) == [None]
