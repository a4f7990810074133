"""Tasks as rules: what is right, and that exact predictors carry them out."""

import ast
import pathlib
import re

import jax
import numpy as np
import pytest

from ensjax import ntk
from ensjax.ntk import permutations, two_layer


def all_pairs(num_bits):
    numbers = np.arange(2**num_bits)
    return np.repeat(numbers, len(numbers)), np.tile(numbers, len(numbers))


def test_a_permutation_moves_every_bit_to_its_place():
    task = ntk.permutation_task([2, 0, 1])
    inputs = ntk.cube_inputs(3)
    assert inputs.tolist()[:4] == [[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 1]]
    np.testing.assert_array_equal(task.encode(inputs), inputs)
    targets = task.targets(inputs)
    for row, target in zip(inputs, targets):
        assert [target[2], target[0], target[1]] == row.tolist()
    np.testing.assert_array_equal(task.train_targets[0], [0, 0, 1])
    # As numbers: bits 0 and 1 of 3 go to places 2 and 0.
    assert task.solve(np.array([3])).tolist() == [5]
    states = task.execute(task.start(np.array([3])), task.targets)
    assert task.read(states).tolist() == [5]


def test_the_readme_permutes_as_the_library_does_and_says_what_comes_out():
    text = (pathlib.Path(__file__).parents[2] / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    (block,) = (block for block in blocks if "cube_members" in block)
    *lines, last = block.strip().splitlines()
    call, said = last.split("#")
    names = {}
    with jax.numpy_rank_promotion("allow"):  # a user's default
        exec("\n".join([*lines, f"found = {call.strip()}"]), names)
    first, stays = names["found"]
    assert 20 < first <= stays < 200
    if jax.__version__.startswith("0.10."):  # later versions draw other numbers
        assert (first, stays) == ast.literal_eval(said.strip())
    places, inputs = ntk.draw_permutation(6, seed=0), ntk.cube_inputs(6)
    bits = np.asarray(names["members"].mean) > 1e-6
    np.testing.assert_array_equal(bits[:, places], inputs > 0)


@pytest.mark.parametrize("num_bits", [1, 2, 4])
def test_rules_add_every_pair(num_bits):
    task = ntk.addition_task(num_bits)
    a, b = all_pairs(num_bits)
    found = task.read(task.execute(task.start(a, b), task.targets))
    np.testing.assert_array_equal(found, a + b)
    np.testing.assert_array_equal(task.solve(a, b), a + b)
    assert task.num_features == 3 * num_bits + 2  # of 4^num_bits pairs


@pytest.mark.parametrize("num_bits", [1, 2, 3])
def test_rules_multiply_every_pair(num_bits):
    task = ntk.multiplication_task(num_bits)
    a, b = all_pairs(num_bits)
    found = task.read(task.execute(task.start(a, b), task.targets))
    np.testing.assert_array_equal(found, a * b)


@pytest.mark.parametrize("kind", ["ntk", "readout"])
@pytest.mark.parametrize("rule", ["sign", "midpoint"])
@pytest.mark.parametrize("make", [ntk.addition_task, ntk.multiplication_task])
def test_the_infinite_ensemble_computes_step_by_step(make, kind, rule):
    """The mean of the ensemble, rounded, in place of what is right."""
    task = make(2, num_padding=4)

    def predict(inputs):
        ones = inputs.sum(axis=1).astype(int)
        law = two_layer.law(task.num_features, np.maximum(ones, 1), kind=kind)
        weights = np.where(inputs > 0, law.on_one[:, None], law.on_zero[:, None])
        weights[ones == 0] = 0  # the input 0, where networks without biases are 0
        mean = weights @ task.train_targets
        limits = ntk.sign_thresholds()
        if rule == "midpoint":
            limits = ntk.midpoint_thresholds(weights, inputs, task.train_targets)
        return ntk.round_bits(mean, limits)

    a, b = all_pairs(2)
    found = task.read(task.execute(task.start(a, b), predict))
    np.testing.assert_array_equal(found, task.solve(a, b))


def test_a_copy_is_the_permutation_that_moves_nothing():
    task = ntk.copy_task(4)
    inputs = ntk.cube_inputs(4)
    np.testing.assert_array_equal(task.targets(inputs), inputs > 0)


def test_samples_have_as_many_ones_as_asked_for():
    rows = ntk.sample_inputs(30, 500, seed=1, num_ones=2)
    assert rows.shape == (500, 30) and set(rows.sum(axis=1)) == {2.0}
    # 435 pairs, drawn uniformly: each column is 1 in 2 of 30.
    assert abs(rows.mean(axis=0) - 2 / 30).max() < 5 * np.sqrt(2 / 30 / 500)
    anything = ntk.sample_inputs(2, 300, seed=1)
    counts = np.unique(anything, axis=0, return_counts=True)[1]
    assert len(counts) == 3 and counts.min() > 60  # never 0; 100 expected
    again = ntk.sample_inputs(30, 500, seed=1, num_ones=2)
    np.testing.assert_array_equal(rows, again)


def test_small_cubes_are_listed_and_large_ones_sampled():
    options = dict(num_rows=9, seed=0, num_ones=2, max_cube_bits=4)
    np.testing.assert_array_equal(ntk.inputs_to_try(4, **options), ntk.cube_inputs(4))
    some = ntk.inputs_to_try(5, **options)
    expected = ntk.sample_inputs(5, 9, seed=0, num_ones=2)
    np.testing.assert_array_equal(some, expected)


def test_permutations_are_drawn_whole():
    drawn = ntk.draw_permutation(9, seed=3)
    assert sorted(drawn.tolist()) == list(range(9))
    assert drawn.tolist() == ntk.draw_permutation(9, seed=3).tolist()
    assert drawn.tolist() != ntk.draw_permutation(9, seed=4).tolist()


@pytest.mark.parametrize(
    "values, error, message",
    [
        ([0, 0, 2], ValueError, "0 comes 2 times and 1 never"),
        ([0, 3, 1], ValueError, "are 0 to 2; got 3"),
        ([0.0, 1.0], TypeError, "holds integers; got dtype float64"),
        ([], ValueError, r"got shape \(0,\)"),
        ([[0, 1]], ValueError, r"got shape \(1, 2\)"),
    ],
)
def test_what_is_no_permutation_is_refused(values, error, message):
    with pytest.raises(error, match=message):
        ntk.permutation_task(values)
    with pytest.raises(error, match=message):
        ntk.check_permutation(np.asarray(values))


def test_a_permutation_of_another_length_is_refused():
    with pytest.raises(ValueError, match="of 4 bits has 4 places; got 3"):
        ntk.check_permutation([0, 2, 1], 4)


def test_inputs_that_are_no_bits_are_named():
    task = ntk.permutation_task([1, 0])
    with pytest.raises(ValueError, match="got 0.5 in row 1, column 0"):
        task.targets(np.array([[1, 0], [0.5, 1]]))
    with pytest.raises(ValueError, match="got nan in row 0, column 1"):
        task.encode(np.array([[1, np.nan]]))
    with pytest.raises(ValueError, match=r"must be \[row, 2\]; got shape \(1, 3\)"):
        task.targets(np.ones((1, 3)))


def test_what_cannot_be_listed_or_drawn_is_refused():
    with pytest.raises(ValueError, match="for k from 1 to 24; got 25"):
        ntk.cube_inputs(permutations.MAX_CUBE_BITS + 1)
    with pytest.raises(ValueError, match="between 1 and the 3 bits; got 4"):
        ntk.sample_inputs(3, 1, seed=0, num_ones=4)
    with pytest.raises(ValueError, match="num_bits must be at least 1; got 0"):
        ntk.sample_inputs(0, 5, seed=0)
    with pytest.raises(TypeError, match="num_rows must be an integer; got 2.5"):
        ntk.sample_inputs(4, 2.5, seed=0)
    with pytest.raises(ValueError, match="num_bits must be at least 1; got 0"):
        ntk.draw_permutation(0, seed=0)
    for wrong in (3.5, 3.0, "4", True):
        with pytest.raises(TypeError, match=f"must be an integer; got {wrong!r}"):
            ntk.cube_inputs(wrong)


def test_operands_have_the_bits_that_the_task_is_made_for():
    """A wider field holds what overflows on the way: 7 + 6 is no sum of 2 bits."""
    task = ntk.addition_task(2)
    with pytest.raises(ValueError, match="p takes numbers of 2 bits; got 4 to 7"):
        task.start(np.array([4, 7]), np.array([0, 0]))
    with pytest.raises(ValueError, match="multiplicand takes numbers of 2 bits"):
        ntk.multiplication_task(2).start([3], [15])
    with pytest.raises(ValueError, match=r"takes 2 operands \(p, q\); got 1"):
        task.start(np.array([0]))
    with pytest.raises(TypeError, match=r"p must hold integers; got \[1.0\]"):
        task.start([1.0], [2.0])
    with pytest.raises(ValueError, match="of one length of at least 1; got 2, 3 val"):
        task.start([1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match="got 0, 0 values"):
        task.start([], [])
    with pytest.raises(ValueError, match=r"p must be \[batch\]; got shape \(1, 2\)"):
        task.start([[1, 2]], [[1, 2]])


def test_wide_numbers_are_exact():
    places = list(reversed(range(70)))
    task = ntk.permutation_task(places)
    numbers = [1, 2**69 + 2, 2**63 + 1]
    expected = [2**69, 2**68 + 1, 2**69 + 2**6]
    assert task.solve(numbers).tolist() == expected
    assert task.read(task.execute(task.start(numbers), task.targets)).tolist() == (
        expected
    )
    adder, a, b = ntk.addition_task(64), [2**64 - 1, 5], [2**64 - 1, 2**63]
    assert adder.solve(a, b).tolist() == [2**65 - 2, 2**63 + 5]
    found = adder.read(adder.execute(adder.start(a, b), adder.targets))
    assert found.tolist() == [2**65 - 2, 2**63 + 5]
    product = ntk.multiplication_task(32).solve(np.array([2**32 - 1]), [2**32 - 1])
    assert product.tolist() == [(2**32 - 1) ** 2]


def test_outputs_that_no_rule_sets_are_zero_whatever_networks_say():
    """Their mean is exactly 0: a finite ensemble is above it half of the time."""
    task = ntk.addition_task(3)
    assert np.flatnonzero(~task.set_outputs).tolist() == [4]  # no carry into q's first
    a, b = all_pairs(3)

    def predict(inputs):
        return np.where(task.set_outputs, task.targets(inputs), True)

    found = task.read(task.execute(task.start(a, b), predict))
    np.testing.assert_array_equal(found, a + b)
    assert ntk.permutation_task([1, 0]).set_outputs.all()


def test_rules_that_cannot_be_are_refused():
    fields, rest = (("x", 2),), (("x",), "x", lambda x: x)
    with pytest.raises(ValueError, match="rule 0 of 'a' must look at different bits"):
        ntk.Task("a", fields, (ntk.Rule((), (0,)),), *rest)
    with pytest.raises(ValueError, match="rule 1 of 'a' has bit 2"):
        rules = (ntk.Rule(((0, 1),), (0,)), ntk.Rule(((0, 1),), (2,)))
        ntk.Task("a", fields, rules, *rest)
    with pytest.raises(ValueError, match="at least one bit; got num_bits=0"):
        ntk.addition_task(0)
    with pytest.raises(ValueError, match="rule 0 of 'a' can never match: .* for 2"):
        ntk.Task("a", fields, (ntk.Rule(((0, 2),), (0,)),), *rest)
    rules = (ntk.Rule(((0, 1),), (0,)),)
    with pytest.raises(ValueError, match=r"those of the fields, \[2\]; got \[3\]"):
        ntk.Task("a", fields, rules, *rest, operand_bits=(3,))
    with pytest.raises(ValueError, match="'a' has no field 'y'"):
        ntk.Task("a", fields, rules, ("x",), "y", lambda x: x)
    with pytest.raises(TypeError, match="num_bits must be an integer; got 2.0"):
        ntk.copy_task(2.0)
