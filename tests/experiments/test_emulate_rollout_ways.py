"""Ways to run forecasts give the same members."""

import pathlib

import numpy as np

from ensjax.experiment.fields import load_beside

ROOT = pathlib.Path(__file__).parents[2]
BESIDE = str(ROOT / "experiments" / "x.py")
rollouts = load_beside(BESIDE, "emulate_rollout_ways")
ways = load_beside(BESIDE, "emulate_ways")


def test_all_ways_make_the_same_members():
    found = {}
    for name, way in rollouts.WAYS.items():
        call = way(ways.Call, 10, 4, 8)
        assert call.made == 4 * (8 if name == "one by one" else 10)
        found[name] = call.compared(call.run())
        assert found[name].shape == (8, 36)
    for values in found.values():
        np.testing.assert_allclose(values, found["ensjax"], rtol=1e-4, atol=1e-5)
    assert np.std(found["ensjax"], axis=0).min() > 0, "members differ"
