"""Terms of axes: what they permute, and how they are unified."""

import numpy as np
import pytest

from ensjax.weight_space.axes import (
    Concat,
    Fixed,
    Group,
    Product,
    axis_index,
    concat,
    groups_of,
    positions,
    product,
)
from ensjax.weight_space.unification import (
    Variable,
    cut,
    fix,
    resolve,
    split,
    unify,
    variable,
)

A, B = Group("a", 3), Group("b", 2)
ORDERS = {"a": np.array([2, 0, 1]), "b": np.array([1, 0])}


def test_a_product_is_permuted_as_the_array_that_was_flattened():
    x = np.arange(2 * 3 * 2).reshape(2, 3, 2)
    index = axis_index(Product((Fixed(2), A, B)), ORDERS)
    expected = x[:, ORDERS["a"]][:, :, ORDERS["b"]].reshape(-1)
    np.testing.assert_array_equal(x.reshape(-1)[index], expected)


def test_a_concatenation_is_permuted_part_by_part():
    index = axis_index(Concat((B, Fixed(2), A)), ORDERS)
    np.testing.assert_array_equal(index, [1, 0, 2, 3, 6, 4, 5])
    np.testing.assert_array_equal(axis_index(Concat((B, A)), {}), np.arange(5))


def test_positions_are_every_copy_of_every_unit():
    (found,) = positions(Product((Fixed(2), A, B)), "a")
    np.testing.assert_array_equal(found, [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]])
    first, second = positions(Concat((A, Fixed(1), A)), "a")
    np.testing.assert_array_equal(first[:, 0], [0, 1, 2])
    np.testing.assert_array_equal(second[:, 0], [4, 5, 6])
    assert positions(Fixed(4), "a") == []


def test_terms_are_kept_in_their_simplest_form():
    assert product([Fixed(2), Fixed(1), Fixed(3)]) == Fixed(6)
    assert product([A, product([B, Fixed(2)])]) == Product((A, B, Fixed(2)))
    assert concat([A, A, A]) == Product((Fixed(3), A))
    assert concat([Fixed(1), Fixed(2), A]) == Concat((Fixed(3), A))
    assert groups_of(Concat((A, Product((B, A))))) == [A, B, A]
    assert str(Concat((A, Product((Fixed(2), B))))) == "[a | (2 b)]"


def test_axes_that_meet_become_one():
    a, b, c = (variable(6) for _ in range(3))
    unify(a, b)
    unify(b, c)
    assert resolve(a) is resolve(b) is resolve(c)


def test_a_flattened_axis_takes_the_terms_of_its_factors():
    flat, channel = variable(12), variable(3)
    unify(flat, product([Fixed(4), channel]))
    rows, columns, inner = split(flat, (2, 2, 3))
    assert resolve(rows) == resolve(columns) == Fixed(2)
    assert resolve(inner) is resolve(channel)


def test_a_stream_that_grows_splits_the_group_that_it_meets():
    old, kernel = variable(4), variable(10)
    unify(concat([old, variable(6)]), kernel)
    first, second = resolve(kernel).parts
    assert first is resolve(old) and second.size == 6
    taps = product([Fixed(9), kernel])
    unify(variable(90), taps)
    last = concat([concat([variable(4), variable(6)]) for _ in range(9)])
    unify(last, taps)
    np.testing.assert_array_equal(*actions(last, taps))


def test_a_part_of_an_axis_is_permuted_by_itself():
    whole = variable(10)
    low, high = cut(whole, (4, 6))
    assert resolve(whole) == Concat((resolve(low), resolve(high)))
    (one, two) = cut(variable(2), (1, 1))
    assert one == two == Fixed(1)


@pytest.mark.parametrize(
    "left, right",
    [
        (lambda: product([variable(4), variable(3)]), lambda: Fixed(12)),
        (
            lambda: product([variable(4), variable(3)]),
            lambda: product([variable(3), variable(4)]),
        ),
        (
            lambda: product([variable(4), variable(3)]),
            lambda: concat([variable(5), variable(7)]),
        ),
    ],
    ids=["fixed", "factors that do not divide", "product and concatenation"],
)
def test_what_cannot_be_one_term_is_fixed(left, right):
    left, right = left(), right()
    unify(left, right)
    one, other = actions(left, right)
    np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(np.sort(one), np.arange(12))


def test_a_fixed_axis_fixes_all_that_it_holds():
    inner = variable(3)
    fix(product([variable(2), concat([inner, variable(4)])]))
    assert resolve(inner) == Fixed(3)


def actions(*terms):
    """How random permutations of what is left unbound move the axes."""
    rng, orders = np.random.default_rng(0), {}

    def known(term):
        if isinstance(term, Variable):
            name = str(id(term))
            orders.setdefault(name, rng.permutation(term.size))
            return Group(name, term.size)
        parts = getattr(term, "parts", None)
        return term if parts is None else type(term)(tuple(map(known, parts)))

    terms = [known(resolve(term)) for term in terms]
    return [axis_index(term, orders) for term in terms]
