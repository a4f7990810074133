"""Costs from compiled programs against counts by hand; fronts against NumPy."""

import jax
import numpy as np
import pytest

from ensjax import Ensemble, combine, make_mesh, nn


def mlp(rngs):
    return nn.MLP(in_features=64, hidden=(32, 32), num_outputs=10, rngs=rngs)


def test_operations_of_a_stage_are_those_of_its_members_for_one_row():
    shapes = jax.eval_shape(lambda: Ensemble.init(mlp, num_members=3))
    x = jax.ShapeDtypeStruct((128, 8, 8, 1), np.float32)
    macs = 64 * 32 + 32 * 32 + 32 * 10
    extra = 2 * (32 + 32) + 10  # biases, and a maximum after each hidden layer
    one_device = make_mesh(member=1, devices=jax.devices()[:1])
    for mesh in (one_device, make_mesh(member=4, data=2)):
        stack = Ensemble(shapes.state, shapes.member_ids, shapes.graph, mesh)
        flops = combine.flops_per_row(stack, x)
        assert flops == pytest.approx(3 * (2 * macs + extra), rel=1e-3)


def test_operations_of_a_function_are_counted_too():
    weights = np.ones((16, 4), np.float32)
    flops = combine.flops_per_row(lambda x: (x @ weights)[None], np.ones((8, 16)))
    assert flops == pytest.approx(2 * 16 * 4)


def test_the_cost_of_a_cascade_is_that_of_the_stages_that_rows_reach():
    stage = np.array([[0, 0, 1, 2, 0], [2, 2, 2, 2, 2]])
    costs = np.array([1.0, 2.0, 8.0])
    expected = [1 + 2 * 2 / 5 + 8 / 5, 11]
    np.testing.assert_allclose(combine.cascade_cost(costs, stage), expected, rtol=1e-6)
    weighted = combine.cascade_cost(costs, stage, sample_weight=np.arange(5) < 2)
    np.testing.assert_allclose(weighted, [1, 11], rtol=1e-6)


COSTS = np.array([100.0, 200.0, 800.0, 1600.0])
SCORES = np.array([0.5, 0.7, 0.8, 0.84])


def test_the_front_is_linear_in_the_log_of_the_cost_and_goes_on():
    at = np.array([100, 150, 399, 1600, 5000, 50.0])
    expected = np.interp(np.log(at), np.log(COSTS), SCORES)
    expected[-2] = 0.84 + 0.04 / np.log(2) * np.log(5000 / 1600)
    expected[-1] = 0.5 - 0.2
    front = jax.jit(combine.front_scores)
    np.testing.assert_allclose(front(COSTS, SCORES, at), expected, rtol=1e-5)
    back = jax.jit(combine.front_costs)(COSTS, SCORES, expected)
    np.testing.assert_allclose(back, at, rtol=1e-4)


def test_a_front_that_falls_is_crossed_at_the_smallest_cost():
    scores = np.array([0.1, 0.5, 0.3, 0.6])
    found = np.asarray(combine.front_costs(COSTS, scores, np.array([0.4, 0.5, 0.55])))
    step = 0.75 * np.log(200 / 100)
    np.testing.assert_allclose(found[:2], [100 * np.exp(step), 200], rtol=1e-5)
    assert 800 < found[2] < 1600
    flat = np.array([0.5, 0.5, 0.5, 0.5])
    reached = np.asarray(combine.front_costs(COSTS, flat, np.array([0.5, 0.6])))
    assert reached[0] == pytest.approx(100) and np.isnan(reached[1])


def test_one_model_is_no_front():
    with pytest.raises(ValueError, match="at least two models"):
        combine.front_scores(COSTS[:1], SCORES[:1], 100.0)


def test_a_stage_without_a_cost_is_refused():
    costs = np.array([1.0, 2.0])
    for stage in ([0, 1, 2], [0, 1, -1]):
        with pytest.raises(ValueError, match="exit_stage must be from 0 to 1, .* got"):
            combine.cascade_cost(costs, np.array(stage))
        assert np.isnan(jax.jit(combine.cascade_cost)(costs, np.array(stage)))
        weight = np.array([1.0, 1.0, 0.0])
        found = combine.cascade_cost(costs, np.array(stage), sample_weight=weight)
        assert float(found) == pytest.approx(2.0)


@pytest.mark.parametrize("costs", [[4.0, 1.0, 2.0], [0.0, 1.0, 2.0], [1.0, 1.0, 2.0]])
def test_costs_that_do_not_rise_are_refused(costs):
    costs, values = np.array(costs), np.array([0.9, 0.5, 0.7])
    for read, at in ((combine.front_scores, costs), (combine.front_costs, values)):
        with pytest.raises(ValueError, match="positive and rising; got .* Sort"):
            read(costs, values, at)
        assert np.isnan(jax.jit(read)(costs, values, at)).all()
