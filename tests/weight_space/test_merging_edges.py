"""Merging: ranks without a sort, chances, angles at their ends, and what is refused."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ensjax.weight_space import (
    METHODS,
    RunningAverage,
    average,
    breadcrumbs,
    dare,
    della,
    della_linear,
    fisher_merge,
    karcher_mean,
    model_stock,
    multislerp,
    nearswap,
    nuslerp,
    regmean,
    sce,
    slerp,
    task_arithmetic,
    ties,
)
from ensjax.weight_space.elections import elected_signs
from ensjax.weight_space.pruning import kth_largest

KEY = jax.random.key(0, impl="threefry2x32")
# Half the time to compile.
quick_jit = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)


SHAPES = {"w": (3, 4), "b": (4,)}


def test_the_kth_largest_is_that_of_a_sort():
    rng = np.random.default_rng(0)
    first = np.abs(rng.normal(size=(2, 3, 5))).astype(np.float32)
    second = np.repeat(first[:, :1, :2], 2, axis=1) * np.float32(1e-20)  # ties
    second[0, 0, 0], second[1, 1] = 0.0, np.inf
    counts = np.arange(20)
    find = quick_jit(
        jax.vmap(lambda k: kth_largest([first, second], jnp.stack([k, k])))
    )
    flat = np.concatenate([first.reshape(2, -1), second.reshape(2, -1)], axis=1)
    ranked = -np.sort(-flat, axis=1)
    np.testing.assert_array_equal(find(counts)[1:], ranked.T)
    assert np.isposinf(find(counts)[0]).all()


@pytest.mark.slow
def test_thinned_task_vectors_are_right_on_average():
    rng = np.random.default_rng(1)
    base = {"w": jnp.asarray(rng.normal(size=(6, 2)), jnp.float32)}
    tau = rng.normal(size=(3, 6, 2))
    stacked = {"w": base["w"][None] + tau}
    keys = jax.vmap(jax.random.key)(jnp.arange(2000))
    knobs = dict(lam=0.5, weights=np.array([1.0, -0.5, 2.0]))

    @quick_jit
    @jax.vmap
    def merges(key):
        return (
            dare(stacked, base, key, drop=0.7, **knobs)["w"],
            della_linear(stacked, base, key, density=0.5, epsilon=0.3, **knobs)["w"],
        )

    expected = task_arithmetic(stacked, base, **knobs)["w"]
    for found, least in zip(merges(keys), (0.3, 0.2)):
        # An entry kept with probability q has variance tau^2 (1 - q) / q at most that
        # of the least q; five standard errors of the mean of 2000.
        variance = np.sum((knobs["weights"][:, None, None] * tau) ** 2, axis=0)
        error = 0.5 * np.sqrt(variance * (1 - least) / least / 2000)
        assert (np.abs(np.mean(found, axis=0) - expected) < 5 * error).all()
        assert (np.std(found, axis=0) > 0).all()


def test_model_stock_goes_to_the_mean_to_the_base_and_never_beyond():
    base = {"w": jnp.array([1.0, 2.0, 3.0, 4.0])}
    steps = {
        "same": np.array([[1.0, 0, 0, 0], [2.0, 0, 0, 0], [6.0, 0, 0, 0]]),
        "square": np.array([[1.0, 0, 0, 0], [0, 2.0, 0, 0], [0, 0, 1.0, 0]]),
        "against": np.array([[1.0, 0, 0, 0], [-2.0, 0, 0, 0], [0, 0, 1.0, 0]]),
        "sixty": np.array([[1.0, 1, 0, 0], [1.0, 0, 1, 0], [0, 1.0, 1, 0]]),
    }
    stock = quick_jit(
        jax.vmap(lambda tau: model_stock({"w": base["w"][None] + tau}, base)["w"])
    )
    found = np.asarray(stock(jnp.stack(list(steps.values()))) - base["w"][None])
    np.testing.assert_allclose(found[0], [3, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(found[1], 0, atol=1e-6)
    np.testing.assert_array_equal(found[2], 0)
    # Three members at 60 degrees: t = 3 c / (1 + 2 c) = 3/4 of the mean.
    np.testing.assert_allclose(found[3], [0.5, 0.5, 0.5, 0], atol=1e-6)


ROWS = {
    "equal": [[1.0, 2.0], [1.0, 2.0]],
    "parallel": [[1.0, 2.0], [3.0, 6.0]],
    "against": [[1.0, 2.0], [-1.0, -2.0]],
    "zeros": [[0.0, 0.0], [0.0, 0.0]],
    "one zero": [[0.0, 0.0], [1.0, 2.0]],
}


def check_gradients(merge):
    def total(stack, t):
        return jnp.sum(merge({"w": stack}, t)["w"] * jnp.arange(1.0, 3.0))

    found = quick_jit(jax.vmap(jax.value_and_grad(total, (0, 1)), in_axes=(0, None)))(
        jnp.array(list(ROWS.values())), jnp.float32(0.4)
    )
    for row, case in enumerate(ROWS):
        for x in jax.tree.leaves(found):
            assert np.isfinite(x[row]).all(), case


@pytest.mark.parametrize(
    "scope", ["leaf", pytest.param("global", marks=pytest.mark.slow)]
)
def test_gradients_of_slerp_are_finite_without_an_angle(scope):
    check_gradients(lambda tree, t: slerp(tree, t=t, scope=scope))


@pytest.mark.slow
@pytest.mark.parametrize("merge", [nuslerp, multislerp, karcher_mean, model_stock])
def test_gradients_of_spherical_means_are_finite_without_an_angle(merge):
    base = () if merge is not model_stock else ({"w": jnp.zeros(2)},)
    knobs = (lambda t: {"t": t}) if merge is nuslerp else (lambda t: {})
    check_gradients(lambda tree, t: merge(tree, *base, **knobs(t)))


def test_the_sphere_mean_of_uneven_directions_is_not_their_mean_direction():
    angles = np.array([0.0, 0.2, 2.0])
    stacked = {"w": jnp.stack([np.cos(angles), np.sin(angles)], axis=1)}
    means = quick_jit(lambda x: (karcher_mean(x)["w"], multislerp(x)["w"]))(stacked)
    found = [np.arctan2(y, x) for x, y in means]
    direction = np.arctan2(np.sin(angles).mean(), np.cos(angles).mean())
    np.testing.assert_allclose(found, [angles.mean(), direction], atol=1e-5)
    np.testing.assert_allclose([x @ x for x in means], 1.0, rtol=1e-6)


def test_an_entry_whose_sum_is_zero_takes_the_sign_of_the_scope():
    taus = [jnp.array([[-1.0, -2, -1], [-1, -1, -3]]), jnp.array([[2.0], [-2.0]])]
    for scope, sign in (("global", -1), ("leaf", 1)):
        elect = quick_jit(functools.partial(elected_signs, scope=scope))
        signs = elect(taus, jnp.ones(2))
        np.testing.assert_array_equal(signs[0], [-1, -1, -1])
        np.testing.assert_array_equal(signs[1], [sign])


@pytest.mark.parametrize(
    "name",
    [
        n
        for n, m in METHODS.items()
        if "weights" in inspect.signature(m.merge).parameters
    ],
)
def test_a_weight_of_zero_removes_a_member_that_is_not_finite(name):
    method, rng = METHODS[name], np.random.default_rng(0)
    shapes = {"kernel": (3, 2), "bias": (2,)}
    base = {k: rng.normal(size=s).astype(np.float32) for k, s in shapes.items()}
    stacked = {
        k: base[k] + rng.normal(size=(3, *s)).astype(np.float32)
        for k, s in shapes.items()
    }
    vectors = rng.normal(size=(3, 1, 9, 4)).astype(np.float32)
    statistics = {
        "fisher": {k: x**2 for k, x in stacked.items()},
        "grams": {"kernel": np.einsum("mgni,mgnj->mgij", vectors, vectors)},
        "": {},
    }[method.statistics]
    knobs = dict.fromkeys(method.knobs_without_default, 0.5)

    @quick_jit
    def merge(stacked, statistics):
        arguments = [base] if method.base == "needs" else []
        arguments += [KEY] if method.needs_key else []
        arguments += [statistics] if method.statistics else []
        return method.merge(stacked, *arguments, weights=[2.0, 0.0, 1.0], **knobs)

    def spoil(leaf, value):
        return np.where(
            np.arange(3).reshape(3, *[1] * (leaf.ndim - 1)) == 1, value, leaf
        )

    expected = merge(stacked, statistics)
    for value in (np.nan, np.inf):
        spoilt = jax.tree.map(lambda x: spoil(x, value), (stacked, statistics))  # noqa: B023
        for leaf, found in merge(*spoilt).items():
            np.testing.assert_allclose(found, expected[leaf], rtol=1e-6, err_msg=leaf)
    # A weight above 0 lets it be seen.
    nan = jax.tree.map(lambda x: np.roll(spoil(x, np.nan), 1, axis=0), stacked)
    assert not all(np.isfinite(x).all() for x in merge(nan, statistics).values())


@pytest.mark.parametrize("scope", ["leaf", "output", "global"])
@pytest.mark.parametrize("merge", [slerp, nuslerp])
def test_an_end_of_a_circle_is_that_member_whatever_the_other_holds(merge, scope):
    rng = np.random.default_rng(0)
    rows = {n: rng.normal(size=(2, *s)).astype(np.float32) for n, s in SHAPES.items()}
    for end in (0, 1):
        broken = {n: x.copy() for n, x in rows.items()}
        for n in broken:
            broken[n][1 - end].flat[:2] = np.nan, np.inf
        found = merge(broken, t=float(end), scope=scope)
        for n, x in rows.items():
            np.testing.assert_array_equal(found[n], x[end])


# Knobs with which a merge of weights as these would be no variance.
OF_STATISTICS = {
    "breadcrumbs": dict(density=0.9, lam=0.5),
    "breadcrumbs_ties": dict(density=0.9, lam=2.0, scope="global"),
    "dare": dict(drop=0.5),
    "dare_ties": dict(drop=0.5, lam=2.0),
    "della": dict(density=0.6, lam=2.0),
    "della_linear": dict(density=0.6),
    "nearswap": dict(t=0.5),
    "nuslerp": dict(t=0.75, scope="global"),
    "slerp": dict(t=0.75, scope="global"),
    "task_arithmetic": dict(lam=0.5),
    "ties": dict(lam=2.0),
}
MEANS = {"nearswap": [1.0, 0.0], "nuslerp": [0.25, 0.75], "slerp": [0.25, 0.75]}


@pytest.mark.parametrize("name", sorted(METHODS))
def test_batch_statistics_are_the_members_mean_whatever_the_method(name):
    own, given = METHODS[name], dict(OF_STATISTICS.get(name, {}))
    members = own.num_members or 3
    has_weights = "weights" in inspect.signature(own.merge).parameters
    means = np.asarray(MEANS.get(name, np.ones(members)), np.float32)
    if has_weights:
        means = np.array([1.0, 0.0, 3.0], np.float32)
        given["weights"] = means
    means /= means.sum()
    rng = np.random.default_rng(4)
    weights = rng.normal(size=(members + 1, 4, 3)).astype(np.float32)
    # Far below the base's 9, as fine-tuning may leave them.
    small = rng.uniform(0.1, 0.5, size=(members, 3)).astype(np.float32)
    if has_weights:
        small[1] = np.nan
    stacked = {
        "params": {"bn": {"kernel": weights[:-1]}},
        "rest": {"bn": {"mean": small, "var": small}},
        "torch.running_var": small,
    }
    base = jax.tree.map(lambda x: np.full(x.shape[1:], 9.0, np.float32), stacked)
    base["params"]["bn"]["kernel"] = weights[-1]

    def merge(chosen):
        def part(tree):
            return {key: tree[key] for key in chosen}

        arguments = [part(stacked)] + [part(base)] * bool(own.base)
        if own.statistics == "fisher":
            arguments.append(jax.tree.map(np.ones_like, part(stacked)))
        elif own.statistics:
            arguments.append({})  # no layer has inputs: all are averaged
        return own.merge(*arguments, *[KEY] * own.needs_key, **given)

    found = merge(list(stacked))
    expected = np.einsum("m,mi->i", means, np.nan_to_num(small))
    for leaf in (*found["rest"]["bn"].values(), found["torch.running_var"]):
        np.testing.assert_allclose(leaf, expected, rtol=1e-6)
    # They are in no rank, sign or angle of the weights either.
    alone = merge(["params"])["params"]["bn"]["kernel"]
    np.testing.assert_array_equal(found["params"]["bn"]["kernel"], alone)


def test_a_running_average_takes_nothing_of_a_weight_of_zero():
    nan = {"w": jnp.full(2, jnp.nan)}
    running = RunningAverage.of(nan, weight=0.0).add({"w": jnp.array([3.0, 4.0])})
    running = running.add(nan, weight={"w": jnp.zeros(2)})
    np.testing.assert_array_equal(running.mean(like=nan)["w"], [3.0, 4.0])


def test_members_added_one_at_a_time_have_the_mean_of_the_stack():
    rng = np.random.default_rng(3)
    stacked = {
        "w": jnp.asarray(rng.normal(size=(5, 3)), jnp.bfloat16),
        "steps": jnp.arange(5),
        "stream": jax.random.split(KEY, 5),
    }
    fisher = {"w": jnp.asarray(rng.uniform(0.1, 2, size=(5, 3)), jnp.float32)}
    fisher["steps"] = fisher["stream"] = jnp.ones(5)
    weights = rng.uniform(size=5).astype(np.float32)

    def rows(tree):
        return [jax.tree.map(lambda x: x[i], tree) for i in range(5)]  # noqa: B023

    def run(members, weights):
        running = RunningAverage.of(members[0], weights[0])
        for member, weight in zip(members[1:], weights[1:]):
            running = running.add(member, weight)
        # Asked for in float32, in which the sums are.
        return running.mean(like=members[0] | {"w": jnp.zeros(3)})

    @quick_jit
    def both(stacked, fisher):
        wide = stacked | {"w": stacked["w"].astype(jnp.float32)}
        return [
            (run(rows(stacked), weights), average(wide, weights=weights)),
            (run(rows(stacked), rows(fisher)), fisher_merge(wide, fisher)),
        ]

    for found, expected in both(stacked, fisher):
        np.testing.assert_allclose(found["w"], expected["w"], rtol=1e-6, atol=1e-6)
        assert found["steps"] == expected["steps"] == 0
        assert found["stream"] == expected["stream"] == stacked["stream"][0]


def test_a_table_says_what_each_method_needs():
    for name, method in METHODS.items():
        parameters = inspect.signature(method.merge).parameters
        assert name in (method.merge.__name__, method.merge.__name__[: -len("_merge")])
        base = parameters.get("base")
        needs = {None: ""}.get(base) if base is None else "needs"
        if base is not None and base.default is None:
            needs = "takes"
        assert method.base == needs
        assert method.needs_key == ("key" in parameters)
        found = [s for s in ("fisher", "grams") if s in parameters]
        assert [method.statistics] == (found or [""])
        no_default = tuple(
            p.name
            for p in parameters.values()
            if p.kind == p.KEYWORD_ONLY and p.default is p.empty
        )
        assert method.knobs_without_default == no_default


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n, m in METHODS.items() if not m.statistics])
def test_merging_leaf_by_leaf_is_the_same_where_the_table_says_so(name):
    rng = np.random.default_rng(4)
    method = METHODS[name]
    members = method.num_members or 3
    shapes = {"a": (4, 3), "b": (5,)}
    base = {k: jnp.asarray(rng.normal(size=s)) for k, s in shapes.items()}
    stacked = {
        k: base[k][None] + (1.0 if k == "a" else 0.1) * rng.normal(size=(members, *s))
        for k, s in shapes.items()
    }
    knobs = {"density": 0.5, "t": 0.05}
    knobs = {k: v for k, v in knobs.items() if k in method.knobs_without_default}

    @quick_jit
    def merge(stacked, base):
        arguments = ([base] if method.base else []) + (
            [KEY] if method.needs_key else []
        )
        return method.merge(stacked, *arguments, **knobs)

    whole = merge(stacked, base)
    alone = {k: merge({k: stacked[k]}, {k: base[k]})[k] for k in shapes}
    is_same = all(np.allclose(whole[k], alone[k], atol=1e-6) for k in shapes)
    # The election's global majority matters only where a sum is 0.
    assert is_same or not method.leaf_by_leaf
    assert not is_same or name != "ties"


STACK = {"w": jnp.ones((3, 2)), "z": jnp.ones((3, 1))}
PAIR = {"w": jnp.ones((2, 2))}
BASE = {"w": jnp.ones(2), "z": jnp.ones(1)}
GRAM = jnp.ones((3, 1, 3, 3))


@pytest.mark.parametrize(
    "call, kind, words",
    [
        (lambda: average(STACK, weights=[1.0, 2.0]), ValueError, "weights must be"),
        (lambda: average(STACK, weights=[-1.0, 2, 1]), ValueError, "at least 0"),
        (lambda: slerp(STACK), ValueError, "two members; got 3"),
        (lambda: slerp(PAIR, scope="row"), ValueError, "scope must be one of"),
        (lambda: slerp(PAIR, t=[0.1, 0.2]), ValueError, "t must be a number"),
        (lambda: ties(STACK, BASE, scope="output"), ValueError, "scope must be one of"),
        (lambda: ties(STACK, BASE, density=1.2), ValueError, "density must lie from 0"),
        (lambda: ties(STACK, BASE, density=[0.1] * 2), ValueError, "density must be a"),
        (lambda: ties(STACK, BASE, lam=[1.0] * 3), ValueError, "lam must be a number"),
        (
            lambda: ties(STACK, {"w": BASE["w"]}),
            ValueError,
            "z is in the stack but not",
        ),
        (lambda: sce(STACK, STACK), ValueError, "the base has shape"),
        (lambda: task_arithmetic(STACK, BASE, weights=1.0), ValueError, "weights must"),
        (lambda: dare(STACK, BASE, jnp.zeros(2)), TypeError, "jax.random.key"),
        (lambda: dare(STACK, BASE, KEY, drop=-0.1), ValueError, "drop must lie"),
        (lambda: dare(STACK, BASE, KEY, member_ids=[1]), ValueError, "member_ids must"),
        (
            lambda: dare(STACK, BASE, jax.random.key(0, impl="rbg")),
            ValueError,
            "one threefry key",
        ),
        (
            lambda: della(STACK, BASE, KEY, density=0.5, epsilon=0.6),
            ValueError,
            "epsilon must lie from 0 to 0.5",
        ),
        (lambda: breadcrumbs(STACK, BASE, density=0.5, gamma=2), ValueError, "gamma"),
        (lambda: nearswap(PAIR, t=-1.0), ValueError, "t must lie from 0"),
        (
            lambda: model_stock({"w": jnp.ones((1, 2))}, {"w": jnp.ones(2)}),
            ValueError,
            "two",
        ),
        (lambda: slerp({"w": jnp.ones((2, 2), complex)}), TypeError, "real leaves"),
        (lambda: fisher_merge(STACK, BASE), ValueError, "the information of w"),
        (lambda: fisher_merge(STACK, [1]), ValueError, "structure of the stack"),
        (lambda: regmean(STACK, {"k": GRAM}), ValueError, "no leaf of the stack"),
        (lambda: regmean(STACK, {"w": GRAM}), ValueError, "Gram matrix of w must be"),
        (
            lambda: RunningAverage.of({"w": jnp.ones(2)}).add({"w": jnp.ones(3)}),
            ValueError,
            "w of the base has shape",
        ),
        (
            lambda: RunningAverage.of({"w": jnp.ones(2)}, weight=[1.0, 2.0]),
            ValueError,
            "weight must be a number",
        ),
    ],
)
def test_mistakes_are_named(call, kind, words):
    with pytest.raises(kind, match=words):
        call()


def test_a_global_band_counts_for_its_two_thresholds_once():
    """31 rounds each, however many leaves there are."""
    stack = {name: jnp.ones((2, 3)) for name in "abcde"}
    base = jax.tree.map(lambda x: x[0], stack)
    text = str(
        jax.make_jaxpr(lambda s, b: breadcrumbs(s, b, density=0.5, scope="global"))(
            stack, base
        )
    )
    assert text.count("= scan[") == 2


@pytest.mark.parametrize(
    "knobs, words",
    [
        (dict(lam=np.nan), "lam must be finite; got nan"),
        (dict(weights=[np.inf, 1.0]), r"weights must be finite; got \[inf, 1.0\]"),
        (dict(weights=[np.nan, 1.0]), r"weights must be finite; got \[nan, 1.0\]"),
    ],
)
def test_a_knob_that_is_not_finite_is_named(knobs, words):
    stack = {"w": jnp.ones((2, 3))}
    base = {"w": jnp.ones(3)}
    with pytest.raises(ValueError, match=words):
        task_arithmetic(stack, base, **knobs)


@pytest.mark.parametrize("keep", [-1, 7])
def test_a_mean_keeps_leaves_of_a_member_that_exists(keep):
    stack = {"w": jnp.ones((2, 3)), "n": jnp.arange(2)}
    with pytest.raises(ValueError, match=f"keep is a member, 0 to 1; got {keep}"):
        average(stack, keep=keep)
