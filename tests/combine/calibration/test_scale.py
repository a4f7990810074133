"""The factor of sigma is the NLL's minimum, and PIT values become uniform."""

import numpy as np
import pytest
from sklearn.isotonic import IsotonicRegression

from ensjax import combine

RNG = np.random.default_rng(0)
MEAN, Y = RNG.normal(size=50), RNG.normal(size=50)
SD = RNG.uniform(0.2, 0.6, 50)


def nll(scale):
    z = (Y - MEAN) / (scale * SD)
    return np.mean(z**2 / 2 + np.log(scale * SD))


def test_the_factor_is_known_and_the_minimum_of_the_nll():
    tau = float(combine.fit_sigma_scale(MEAN, SD, Y).scale)
    np.testing.assert_allclose(tau, np.sqrt(np.mean((Y - MEAN) ** 2 / SD**2)), 1e-5)
    assert nll(tau) < min(nll(tau * 1.02), nll(tau / 1.02))


def test_members_have_factors_of_their_own_and_masked_rows_leave_no_trace():
    mean, sd = np.stack([MEAN, MEAN + 1]), np.stack([SD, 2 * SD])
    keep = np.arange(50) < 40
    each = combine.fit_sigma_scale(
        np.where(keep, mean, np.nan), sd, Y, sample_weight=keep
    )
    for member in (0, 1):
        alone = combine.fit_sigma_scale(mean[member][keep], sd[member][keep], Y[keep])
        np.testing.assert_allclose(each.scale[member], alone.scale, rtol=1e-5)
    np.testing.assert_allclose(each(sd)[1], sd[1] * each.scale[1], rtol=1e-6)
    with pytest.raises(ValueError, match="leading axes"):
        each(sd[0])
    assert np.isnan(combine.fit_sigma_scale(MEAN, SD * 0, Y).scale)


@pytest.mark.slow
def test_the_pit_map_is_isotonic_regression_of_the_shares_below():
    pit = np.round(RNG.beta(0.5, 0.5, 60), 2).astype(np.float32)
    fitted = combine.fit_pit_map(pit)
    share = (pit[None] <= pit[:, None]).mean(axis=1)
    peer = IsotonicRegression(out_of_bounds="clip")
    peer.fit(np.r_[pit, 0, 1], np.r_[share, 0, 1], np.r_[np.ones(60), 1e-6, 1e-6])
    np.testing.assert_allclose(fitted(pit), peer.predict(pit), atol=1e-4)
    inner = pit[(pit > 0) & (pit < 1)]
    np.testing.assert_allclose(fitted.predicted_level(fitted(inner)), inner, atol=1e-4)
