"""Members that compute their blocks again for the gradient are trained as others."""

import functools

import numpy as np
import pytest

from ensjax import Ensemble, nn


def model(rngs, *, remat):
    return nn.MLP(in_features=6, hidden=(8, 8), num_outputs=3, remat=remat, rngs=rngs)


@pytest.mark.slow
def test_an_evaluation_with_remat_is_that_without(kit):
    x, y = kit.data("mlp")
    found = []
    for remat in (False, True):
        ensemble = Ensemble.init(
            functools.partial(model, remat=remat), num_members=2, mesh=kit.mesh(1, 1)
        )
        _, log = kit.fit(ensemble, (x, y), evaluation=(x, y), steps=10)
        found.append(log.evaluations["loss"])
    plain, again = found
    assert np.isfinite(plain).all()
    np.testing.assert_allclose(again, plain, atol=1e-5)
