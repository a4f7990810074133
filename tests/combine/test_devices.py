"""Everything that reduces over members gives the same on one device and on eight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from scipy.special import log_softmax

from ensjax import combine, scores
from ensjax.predictions import predictive_log_probs

MEMBERS = 16
LABELS = np.random.default_rng(0).integers(0, 5, 30)
WEIGHTS = np.linspace(0.5, 2, MEMBERS).astype(np.float32)

RULES = {
    "predictive_log_probs": predictive_log_probs,
    "mean_probs": lambda x: combine.mean_probs(x, WEIGHTS),
    "mean_logits": lambda x: combine.mean_logits(x, WEIGHTS),
    "product_probs": combine.product_probs,
    "mean_ranks": lambda x: combine.mean_ranks(x[..., 0], WEIGHTS),
    "majority_vote": lambda x: combine.majority_vote(x, ties="probability"),
    "weighted_vote": lambda x: combine.weighted_vote(x, WEIGHTS),
    "majority_of_runs": lambda x: combine.majority_vote(
        combine.majority_of_runs(jnp.stack([x, -x, 2 - x**2], axis=1))
    ),
    "stack_runs": lambda x: combine.mean_probs(
        combine.stack_runs(jnp.stack([x, -x], axis=1))
    ),
    "run_agreement": lambda x: combine.run_agreement(jnp.stack([x, -x], axis=1)),
    "temperature": lambda x: combine.calibrate(x, LABELS)(x),
    "member_temperatures": lambda x: combine.calibrate_members(x, LABELS)(x),
    "stage_scores": lambda x: combine.stage_scores(x, ((0, 9), (3, 12, 15))),
    "nll": lambda x: scores.nll(x, LABELS),
    "brier": lambda x: scores.brier(x, LABELS),
    "accuracy": lambda x: scores.accuracy(x, LABELS),
    "ece": lambda x: scores.ece(x, LABELS),
    "adaptive_ece": lambda x: scores.adaptive_ece(x, LABELS),
    "classwise_ece": lambda x: scores.classwise_ece(x, LABELS),
    "aurc": lambda x: scores.aurc(x, LABELS),
    "auroc": lambda x: scores.auroc(x.max(-1), LABELS > 2),
    "confusion_matrix": lambda x: scores.confusion_matrix(x, LABELS),
    "expected_entropy": scores.expected_entropy,
    "mutual_information": scores.mutual_information,
    "jensen_gap": lambda x: scores.jensen_gap(x, LABELS),
    "disagreement": scores.disagreement,
    "disagreement_matrix": scores.disagreement_matrix,
    "kappa": scores.kappa,
    "error_correlation": lambda x: scores.error_correlation(x, LABELS),
    "q_statistic": lambda x: scores.q_statistic(x, LABELS),
    "double_fault": lambda x: scores.double_fault(x, LABELS),
    "quantiles_of_ensemble": lambda x: combine.quantiles_of_ensemble(
        x[..., 0], np.array([0.1, 0.5, 0.9])
    ),
    "mixture_moments": lambda x: scores.mixture_moments(x, x**2),
}


FAST = ("mean_probs", "majority_vote", "ece")


@pytest.mark.parametrize(
    "name",
    [
        name if name in FAST else pytest.param(name, marks=pytest.mark.slow)
        for name in RULES
    ],
)
def test_eight_devices_equal_one(name):
    logits = 2 * np.random.default_rng(1).normal(size=(MEMBERS, 30, 5))
    logits = logits.astype(np.float32)
    mesh = jax.make_mesh((8,), ("member",), axis_types=(AxisType.Auto,))
    split = jax.device_put(logits, NamedSharding(mesh, P("member")))
    assert len(split.sharding.device_set) == 8
    # The product normalises a sum over members, which is rounded by its own size.
    size = 1.0
    if name == "product_probs":
        size = float(abs(log_softmax(logits, axis=-1).sum(axis=0)).max())
    rule = jax.jit(RULES[name])
    for one, eight in zip(jax.tree.leaves(rule(logits)), jax.tree.leaves(rule(split))):
        np.testing.assert_allclose(eight, one, rtol=1e-6, atol=1e-6 * size)
