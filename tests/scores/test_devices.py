"""Scores that reduce over members give the same on one device and on eight."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from ensjax import combine, scores

MEMBERS, ROWS = 16, 30
_rng = np.random.default_rng(0)
LABELS = _rng.integers(0, 5, ROWS)
TARGETS = _rng.normal(size=ROWS).astype(np.float32)
MASK = _rng.uniform(size=(MEMBERS, ROWS)) > 0.3
REFERENCE = _rng.normal(size=(20, 5)).astype(np.float32)

SCORES = {
    "smooth_ece": lambda x: scores.smooth_ece(x, LABELS),
    "debiased": lambda x: scores.debiased_calibration_error(x, LABELS),
    "aurc_trapezoid": lambda x: scores.aurc_trapezoid(x, LABELS),
    "error_auroc": lambda x: scores.error_auroc(x, LABELS),
    "variation_ratio": lambda x: scores.variation_ratio(x, mask=MASK),
    "vote_entropy": scores.vote_entropy,
    "max_prob": scores.max_prob,
    "margin": scores.margin,
    "energy": scores.energy,
    "dempster_shafer": scores.dempster_shafer,
    "mean_pairwise_kl": lambda x: scores.mean_pairwise_kl(x, mask=MASK),
    "label_variance": lambda x: scores.label_probability_variance(x, LABELS),
    "nll_decomposition": lambda x: scores.nll_decomposition(x, LABELS),
    "knn_distance": lambda x: scores.knn_distance(x, REFERENCE),
    "mahalanobis": lambda x: scores.mahalanobis(x, scores.fit_gaussians(REFERENCE)),
    "member_moments": lambda x: scores.member_moments(x, ddof=1, mask=MASK),
    "ambiguity": lambda x: scores.ambiguity_decomposition(x[..., 0], TARGETS),
    "residuals": lambda x: scores.residual_correlation(x[..., 0], TARGETS),
    "spearman": lambda x: scores.spearman_correlation(x[..., 0], TARGETS),
    "crps_samples": lambda x: scores.crps_samples(x[..., 0], TARGETS, mask=MASK),
    "crps_terms": lambda x: scores.crps_terms(x[..., 0], TARGETS, mask=MASK),
    "normalized_disagreement": lambda x: scores.normalized_disagreement(x, LABELS),
    "spread_skill": lambda x: scores.spread_skill(x[..., 0], TARGETS),
    "slope": lambda x: scores.slope(x[..., 0], TARGETS),
    "confidence_curve": lambda x: scores.confidence_curve(
        x[..., 0], x[..., 1], TARGETS
    ),
    "cwc": lambda x: scores.coverage_width_criterion(
        x[..., 0], x[..., 0] + 1, TARGETS, nominal=0.5, strength=2.0
    ),
    "out_of_bag": lambda x: combine.out_of_bag_log_probs(x, 1 - MASK),
    "out_of_bag_points": lambda x: combine.out_of_bag_points(x, 1 - MASK, ddof=0),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SCORES)
def test_eight_devices_equal_one(name):
    x = np.random.default_rng(1).normal(size=(MEMBERS, ROWS, 5)).astype(np.float32)
    mesh = jax.make_mesh((8,), ("member",), axis_types=(AxisType.Auto,))
    split = jax.device_put(x, NamedSharding(mesh, P("member")))
    score = jax.jit(SCORES[name])
    for one, eight in zip(jax.tree.leaves(score(x)), jax.tree.leaves(score(split))):
        np.testing.assert_allclose(eight, one, rtol=1e-6, atol=1e-6)
