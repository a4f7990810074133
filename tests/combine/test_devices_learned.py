"""Learned combinations give the same on one device and on members split over eight."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from ensjax import combine

MEMBERS, ROWS, CLASSES = 8, 40, 3
RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, CLASSES, ROWS)
X = RNG.normal(size=(ROWS, 2)).astype(np.float32)
GATES = RNG.uniform(size=(ROWS, MEMBERS)).astype(np.float32)

RULES = {
    "stacking": lambda x: combine.fit_stacking(x, LABELS)(x),
    "regression": lambda x: combine.fit_stacking_regression(
        x[..., 0], LABELS, constraint="simplex"
    )(x[..., 0]),
    "greedy": lambda x: combine.greedy_select(x, LABELS, rounds=5)(x),
    "pruning": lambda x: combine.prune_members(x, LABELS).losses,
    "convex": lambda x: combine.fit_convex_weights(x, LABELS)(x),
    "dynamic": lambda x: combine.fit_dynamic_selection(x, LABELS, X).weights(x, X),
    "experts": lambda x: combine.mix_experts(x, GATES),
    "entropy_weights": combine.entropy_weights,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RULES)
def test_eight_devices_equal_one(name):
    logits = RNG.normal(size=(MEMBERS, ROWS, CLASSES))
    skill = np.linspace(0.5, 2, MEMBERS)[:, None, None]
    logits = (logits + skill * np.eye(CLASSES)[LABELS]).astype(np.float32)
    mesh = jax.make_mesh((8,), ("member",), axis_types=(AxisType.Auto,))
    split = jax.device_put(logits, NamedSharding(mesh, P("member")))
    rule = jax.jit(RULES[name])
    # Iterations end where a step is rounding, and rounding follows the order of sums.
    tolerance = 1e-5 if name in ("stacking", "convex") else 2e-6
    np.testing.assert_allclose(rule(split), rule(logits), rtol=1e-5, atol=tolerance)
