"""Every merging method against a float64 reference written from the formulas; laws.

One compiled program holds all methods, mapped over cases: other members, other knobs.
"""

import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ensjax.weight_space import (
    average,
    breadcrumbs,
    breadcrumbs_ties,
    dare,
    dare_ties,
    della,
    della_linear,
    fisher_merge,
    karcher_mean,
    model_stock,
    multislerp,
    nearswap,
    nuslerp,
    sce,
    slerp,
    task_arithmetic,
    ties,
)

MEMBERS = 4
# Half the time to compile.
QUICK = {"xla_backend_optimization_level": 0}
SHAPES = {
    "bias": ((4,), np.float32),
    "conv": ((2, 2, 3, 4), jnp.bfloat16),
    "scale": ((), np.float32),
}
KEY = jax.random.key(3, impl="threefry2x32")


def random_tree(rng, lead=(), near=None, width=0.3):
    """Leaves of several ranks in two precisions, and a counter."""
    tree = {}
    for name, (shape, dtype) in SHAPES.items():
        values = rng.normal(size=(*lead, *shape)) * (1.0 if near is None else width)
        if near is not None:
            values = values + np.asarray(near[name], np.float64)
        tree[name] = jnp.asarray(values, dtype)
    tree["steps"] = jnp.asarray(rng.integers(100, size=lead), jnp.int32)
    return tree


def knobs(**changes):
    return {
        "weights": np.array([0.5, 1.0, 2.0, 0.7], np.float32),
        "signed": np.array([0.5, -1.0, 2.0, 0.7], np.float32),
        "ids": np.array([5, 2, 9, 0]),
        "t": np.float32(0.3),
        "step": np.float32(0.2),
        "lam": np.float32(0.8),
        "lam_sum": np.float32(0.4),
        "density": np.float32(0.37),
        "drop": np.float32(0.6),
        "epsilon": np.float32(0.15),
        "gamma": np.float32(0.12),
        "floor": np.float32(0.05),
    } | changes


def merges(stacked, base, fisher, k):
    """All methods, by name."""
    pair = jax.tree.map(lambda x: x[:2], stacked)
    w = dict(weights=k["weights"])
    mean = w | dict(lam=k["lam"])
    total = dict(weights=k["signed"], lam=k["lam_sum"])
    density = dict(density=k["density"])
    rank = density | dict(epsilon=k["epsilon"], member_ids=k["ids"])
    chance = dict(drop=k["drop"], member_ids=k["ids"])
    band = density | dict(gamma=k["gamma"])
    found = {
        "average": average(stacked, **w),
        "average, not normalised": average(stacked, normalize=False, **w),
        "slerp": slerp(pair, t=k["t"]),
        "slerp, global": slerp(pair, t=k["t"], scope="global"),
        "slerp, input": slerp(pair, t=k["t"], scope="input"),
        "nuslerp": nuslerp(pair, base, t=k["t"]),
        "nuslerp, output": nuslerp(pair, t=k["t"], scope="output"),
        "multislerp": multislerp(stacked, **w),
        "multislerp, base": multislerp(stacked, base, scope="global", **w),
        "karcher_mean, base": karcher_mean(stacked, base, scope="output", **w),
        "model_stock": model_stock(stacked, base),
        "model_stock, output": model_stock(stacked, base, scope="output"),
        "model_stock, global": model_stock(stacked, base, scope="global"),
        "task_arithmetic": task_arithmetic(stacked, base, **total),
        "ties": ties(stacked, base, **density, **mean),
        "ties, leaf": ties(stacked, base, scope="leaf", **density, **mean),
        "dare": dare(stacked, base, KEY, **chance, **total),
        "dare_ties": dare_ties(stacked, base, KEY, **chance, **mean),
        "della": della(stacked, base, KEY, **rank, **mean),
        "della_linear": della_linear(stacked, base, KEY, **rank, **total),
        "breadcrumbs": breadcrumbs(stacked, base, **band, **total),
        "breadcrumbs, global": breadcrumbs(
            stacked, base, scope="global", **band, **total
        ),
        "breadcrumbs_ties": breadcrumbs_ties(stacked, base, **band, **mean),
        "sce": sce(stacked, base, lam=k["lam"], **density),
        "nearswap": nearswap(pair, t=k["step"]),
        "fisher": fisher_merge(stacked, fisher, floor=k["floor"], **w),
        "fisher, normalised": fisher_merge(
            stacked, fisher, floor=k["floor"], normalize=True, **w
        ),
    }
    return found


NAMES = (
    "average",
    "average, not normalised",
    "slerp",
    "slerp, global",
    "slerp, input",
    "nuslerp",
    "nuslerp, output",
    "multislerp",
    "multislerp, base",
    "karcher_mean, base",
    "model_stock",
    "model_stock, output",
    "model_stock, global",
    "task_arithmetic",
    "ties",
    "ties, leaf",
    "dare",
    "dare_ties",
    "della",
    "della_linear",
    "breadcrumbs",
    "breadcrumbs, global",
    "breadcrumbs_ties",
    "sce",
    "nearswap",
    "fisher",
    "fisher, normalised",
)
WITH_BASE = ("model_stock", "task", "ties", "dare", "della", "breadcrumbs", "sce")
LINES = ("slerp", "nuslerp", "nearswap")  # not symmetric in their two members
SUMS = ("task_arithmetic", "dare", "della_linear", "breadcrumbs", "breadcrumbs, global")
ELECTED = ("ties", "ties, leaf", "dare_ties", "della", "breadcrumbs_ties", "sce")


@functools.cache
def example():
    rng = np.random.default_rng(7)
    base = random_tree(rng)
    stacked = random_tree(rng, (MEMBERS,), base)
    fisher = jax.tree.map(
        lambda x: jnp.asarray(rng.gamma(0.5, size=x.shape), jnp.float32), stacked
    )
    return stacked, base, fisher


@functools.cache
def cases():
    """Stack, base, Fisher information and knobs of every case, by name."""
    stacked, base, fisher = example()
    order = np.array([2, 0, 3, 1])
    share = np.array([0.1, 0.2, 0.3, 0.4], np.float32)
    factors = np.array([1.0, 3.0, 1.0, 1.0], np.float32)
    shuffled = {name: knobs()[name][order] for name in ("weights", "signed", "ids")}
    loose = dict(weights=share, signed=share, lam=1.0, lam_sum=1.0)

    def case(stacked=stacked, fisher=fisher, **changes):
        return stacked, base, fisher, knobs(**changes)

    return {
        "plain": case(),
        "order": case(*jax.tree.map(lambda x: x[order], (stacked, fisher)), **shuffled),
        "equal": case(
            jax.tree.map(lambda x: jnp.broadcast_to(x[1], x.shape), stacked),
            **loose,
            density=1.0,
            drop=0.0,
        ),
        "base": case(jax.tree.map(lambda x: jnp.stack([x] * MEMBERS), base)),
        "parallel": case(
            jax.tree.map(
                lambda x: jnp.stack([(f * x).astype(x.dtype) for f in factors]), base
            )
        ),
        "no scale": case(lam=0.0, lam_sum=0.0),
        "nothing": case(density=0.0, drop=1.0),
        "everything": case(density=1.0, drop=0.0, gamma=0.3),
        "no top": case(gamma=0.0),
        "equal information": case(fisher=jax.tree.map(jnp.ones_like, fisher)),
        "nan": case(stacked | {"conv": stacked["conv"].at[1, 1, 1, 2, 3].set(np.nan)}),
        "start": case(t=0.0, step=0.0),
        "end": case(t=1.0, step=np.inf),
        "grid 1": case(
            t=0.7, step=0.05, lam=0.5, lam_sum=-0.2, density=0.62, gamma=0.02
        ),
        "grid 2": case(
            t=0.1, lam=1.2, density=0.19, drop=0.3, epsilon=0.05, floor=1.0, gamma=0.5
        ),
    }


@functools.cache
def merged():
    """What every method makes of every case: by case, then by method."""
    rows = jax.tree.map(lambda *x: jnp.stack(x), *map(_float32, cases().values()))
    at_once = jax.jit(jax.vmap(merges), compiler_options=QUICK)
    found = jax.device_get(at_once(*rows))
    return {
        case: jax.tree.map(lambda x: x[row], found)  # noqa: B023
        for row, case in enumerate(cases())
    }


def _float32(case):
    *trees, k = case
    single = {n: np.float32(v) if np.ndim(v) == 0 else v for n, v in k.items()}
    return (*trees, single)


@functools.cache
def expected(case):
    return references(*cases()[case])


def leaves64(tree):
    """The floating leaves in float64, by name."""
    return {name: np.asarray(tree[name]).astype(np.float64) for name in SHAPES}


def check(tree, expected, *, rtol=2e-6, atol=2e-6):
    """`tree` is `expected` to float32 rounding, or to one rounding of bfloat16."""
    for name, (shape, dtype) in SHAPES.items():
        got = np.asarray(tree[name])
        assert got.shape == shape and got.dtype == dtype
        rounding = 2.0**-8 if dtype == jnp.bfloat16 else rtol
        np.testing.assert_allclose(
            got.astype(np.float64), expected[name], rtol=rounding, atol=atol
        )


# The reference: loops over leaves, members and vectors, in float64.


def by_vectors(fn, leaves, scope):
    """`fn` of matrices `[member, entry]`, one for each vector, put back in place.

    It returns vectors `[entry]` or matrices.
    """
    if scope == "global":
        flat = np.concatenate([x.reshape(len(x), -1) for x in leaves.values()], axis=1)
        merged, out, start = fn(flat), {}, 0
        for name, x in leaves.items():
            part = merged[..., start : start + x[0].size]
            out[name] = part.reshape(part.shape[:-1] + x.shape[1:])
            start += x[0].size
        return out
    out = {}
    for name, x in leaves.items():
        if scope == "leaf" or x.ndim < 3:
            part = fn(x.reshape(len(x), -1))
            out[name] = part.reshape(part.shape[:-1] + x.shape[1:])
            continue
        axis = {"output": -1, "input": -2}[scope]
        moved = np.moveaxis(x, axis, 1)
        parts = [fn(moved[:, i].reshape(len(x), -1)) for i in range(moved.shape[1])]
        parts = np.stack(parts, axis=parts[0].ndim - 1)
        parts = parts.reshape(parts.shape[:-1] + moved.shape[2:])
        out[name] = np.moveaxis(parts, parts.ndim - moved.ndim + 1, axis)
    return out


def slerp64(x, t, parallel):
    cosine = x[0] @ x[1] / np.linalg.norm(x[0]) / np.linalg.norm(x[1])
    if abs(cosine) > parallel:
        return (1 - t) * x[0] + t * x[1]
    angle = np.arccos(cosine)
    return (np.sin((1 - t) * angle) * x[0] + np.sin(t * angle) * x[1]) / np.sin(angle)


def multislerp64(x, w):
    """With the projection onto the tangent space and back, as mergekit has it."""
    w = w / w.sum()
    norms = np.linalg.norm(x, axis=1)
    units = x / norms[:, None]
    mean = w @ units
    mean /= np.linalg.norm(mean)
    tangent = w @ (units - np.outer(units @ mean, mean))
    length = np.linalg.norm(tangent) + 1e-8
    point = mean * np.cos(length) + tangent * np.sin(length) / length
    return point * (w @ norms)


def karcher64(x, w):
    w = w / w.sum()
    norms = np.linalg.norm(x, axis=1)
    units = x / norms[:, None]
    mean = w @ units
    mean /= np.linalg.norm(mean)
    for _ in range(10):
        tangent = np.zeros_like(mean)
        for unit, share in zip(units, w):
            angle = np.arccos(np.clip(unit @ mean, -1, 1))
            if angle >= 1e-5:
                log = (unit - (unit @ mean) * mean) * angle / np.sin(angle)
                tangent += share * log
        length = np.linalg.norm(tangent)
        if length < 1e-5:
            break
        mean = np.cos(length) * mean + np.sin(length) * tangent / length
    return mean * (w @ norms)


def stock64(tau):
    pairs = [(i, j) for i in range(len(tau)) for j in range(i)]
    norms = np.linalg.norm(tau, axis=1)
    cosine = np.mean([tau[i] @ tau[j] / norms[i] / norms[j] for i, j in pairs])
    ratio = len(tau) * cosine / (1 + (len(tau) - 1) * cosine)
    return np.clip(ratio, 0, 1) * tau.mean(axis=0)


def trimmed64(tau, density):
    """Each row's largest entries, and those equal to the smallest of them."""
    kept = np.round(density * tau.shape[1]).astype(int)
    out = np.zeros_like(tau)
    for row, new in zip(tau, out):
        sizes = np.sort(np.abs(row))[::-1]
        if kept:
            chosen = np.abs(row) >= sizes[kept - 1]
            new[chosen] = row[chosen]
    return out


def band64(tau, density, gamma):
    count = tau.shape[1]
    kept, top = (int(np.round(f * count)) for f in (density, gamma))
    top = min(top, count - kept)
    out = np.zeros_like(tau)
    for row, new in zip(tau, out):
        order = np.argsort(-np.abs(row), kind="stable")
        if kept:
            sizes = np.abs(row)[order]
            chosen = np.abs(row) >= sizes[top + kept - 1]
            chosen &= np.abs(row) <= sizes[top]
            new[chosen] = row[chosen]
    return out


def draws64(name, shape, ids):
    """Uniform numbers of a leaf, as the documentation of `dare` says they are made."""
    number = np.uint32(zlib.crc32(name.encode()))
    return np.stack(
        [
            jax.random.uniform(
                jax.random.fold_in(jax.random.fold_in(KEY, i), number), shape
            )
            for i in ids
        ]
    )


def thinned64(taus, k):
    out = {}
    for name, tau in taus.items():
        kept = draws64(name, tau.shape[1:], k["ids"]) < 1 - k["drop"]
        out[name] = np.where(kept, tau, 0) / (1 - k["drop"])
    return out


def ranked64(taus, k):
    def probability(x):
        ranks = np.argsort(np.argsort(np.abs(x), axis=1, kind="stable"), axis=1)
        share = ranks / (x.shape[1] - 1) if x.shape[1] > 1 else np.full(x.shape, 0.5)
        return k["density"] + k["epsilon"] * (2 * share - 1)

    chances = by_vectors(probability, taus, "output")
    return {
        name: np.where(
            draws64(name, tau.shape[1:], k["ids"]) < chances[name],
            tau / chances[name],
            0,
        )
        for name, tau in taus.items()
    }


def elected64(taus, w, majority_of_all):
    sums = {name: np.einsum("m...,m->...", tau, w) for name, tau in taus.items()}
    votes = sum(np.sign(s).sum() for s in sums.values())
    out = {}
    for name, tau in taus.items():
        of_zero = -1.0 if majority_of_all and votes < 0 else 1.0
        sign = np.where(sums[name] == 0, of_zero, np.sign(sums[name]))
        share = (np.sign(tau) == sign) * w.reshape((-1,) + (1,) * (tau.ndim - 1))
        total = share.sum(axis=0)
        out[name] = (tau * share).sum(axis=0) / np.where(total > 0, total, 1)
    return out


def sce64(taus, density):
    out = {}
    for name, tau in taus.items():
        variance = tau.var(axis=0)
        kept = int(np.round(density * np.count_nonzero(variance)))
        chosen = np.zeros(variance.shape, bool)
        if kept:
            chosen = variance >= np.sort(variance, axis=None)[::-1][kept - 1]
        tau = tau * chosen
        w = (tau**2).reshape(len(tau), -1).mean(axis=1)
        w = w / w.sum() if w.sum() > 0 else np.full(len(tau), 1 / len(tau))
        sign = np.where(tau.sum(axis=0) >= 0, 1, -1)
        share = (np.sign(tau) == sign) * w.reshape((-1,) + (1,) * (tau.ndim - 1))
        total = share.sum(axis=0)
        out[name] = (tau * share).sum(axis=0) / np.where(total > 0, total, 1)
    return out


def fisher64(leaves, fisher, w, floor, normalize):
    scale = np.ones(len(w))
    if normalize:
        scale = np.sqrt(
            sum((f**2).reshape(len(w), -1).sum(axis=1) for f in fisher.values())
        )
    out = {}
    for name, x in leaves.items():
        column = (-1,) + (1,) * (x.ndim - 1)
        f = np.maximum(fisher[name] / scale.reshape(column), floor) * w.reshape(column)
        out[name] = (f * x).sum(axis=0) / f.sum(axis=0)
    return out


def references(stacked, base, fisher, k):
    k = {name: np.asarray(v).astype(np.float64) for name, v in k.items()}
    k["ids"] = k["ids"].astype(int)
    x, origin, info = leaves64(stacked), leaves64(base), leaves64(fisher)
    taus = {name: v - origin[name][None] for name, v in x.items()}
    pair = {name: v[:2] for name, v in x.items()}
    pair_taus = {name: v[:2] for name, v in taus.items()}
    w, signed, t, density = k["weights"], k["signed"], k["t"], k["density"]

    def total(taus):
        sums = {n: np.einsum("m...,m->...", v, signed) for n, v in taus.items()}
        return moved(sums, k["lam_sum"])

    def moved(merged, lam=1.0):
        return {name: origin[name] + lam * merged[name] for name in SHAPES}

    def mean(taus, majority_of_all=True):
        return moved(elected64(taus, w, majority_of_all), k["lam"])

    def circle(leaves, scope, parallel):
        return by_vectors(lambda v: slerp64(v, t, parallel), leaves, scope)

    def trimmed(scope):
        return by_vectors(lambda v: trimmed64(v, density), taus, scope)

    def band(scope):
        return by_vectors(lambda v: band64(v, density, k["gamma"]), taus, scope)

    near, exact = 0.9995, 1 - 1e-6
    sums = {name: np.einsum("m...,m->...", v, w) for name, v in x.items()}
    return {
        "average": {name: v / w.sum() for name, v in sums.items()},
        "average, not normalised": sums,
        "slerp": circle(pair, "leaf", near),
        "slerp, global": circle(pair, "global", near),
        "slerp, input": circle(pair, "input", near),
        "nuslerp": moved(circle(pair_taus, "leaf", exact)),
        "nuslerp, output": circle(pair, "output", exact),
        "multislerp": by_vectors(lambda v: multislerp64(v, w), x, "leaf"),
        "multislerp, base": moved(
            by_vectors(lambda v: multislerp64(v, w), taus, "global")
        ),
        "karcher_mean, base": moved(
            by_vectors(lambda v: karcher64(v, w), taus, "output")
        ),
        "model_stock": moved(by_vectors(stock64, taus, "leaf")),
        "model_stock, output": moved(by_vectors(stock64, taus, "output")),
        "model_stock, global": moved(by_vectors(stock64, taus, "global")),
        "task_arithmetic": total(taus),
        "ties": mean(trimmed("global")),
        "ties, leaf": mean(trimmed("leaf"), majority_of_all=False),
        "dare": total(thinned64(taus, k)),
        "dare_ties": mean(thinned64(taus, k)),
        "della": mean(ranked64(taus, k)),
        "della_linear": total(ranked64(taus, k)),
        "breadcrumbs": total(band("leaf")),
        "breadcrumbs, global": total(band("global")),
        "breadcrumbs_ties": mean(band("leaf")),
        "sce": moved(sce64(taus, density), k["lam"]),
        "nearswap": {
            name: v[0] + np.clip(k["step"] / np.abs(v[1] - v[0]), 0, 1) * (v[1] - v[0])
            for name, v in pair.items()
        },
        "fisher": fisher64(x, info, w, k["floor"], False),
        "fisher, normalised": fisher64(x, info, w, k["floor"], True),
    }


def test_every_merge_has_its_tests():
    assert set(NAMES) == set(merged()["plain"]) == set(expected("plain"))


@pytest.mark.parametrize("case", ["plain", "grid 1", "grid 2"])
@pytest.mark.parametrize("name", NAMES)
def test_merge_equals_the_float64_reference(name, case):
    check(merged()[case][name], expected(case)[name])
    stacked, base, _ = example()
    from_base = name.startswith(WITH_BASE) or name.endswith("base") or name == "nuslerp"
    kept = base["steps"] if from_base else stacked["steps"][0]
    np.testing.assert_array_equal(merged()[case][name]["steps"], kept)


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"nearswap"}))
def test_equal_members_give_the_member(name):
    member = jax.tree.map(lambda x: x[1], example()[0])
    check(merged()["equal"][name], leaves64(member))


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"average, not normalised"}))
def test_members_equal_to_the_base_give_the_base(name):
    check(merged()["base"][name], leaves64(example()[1]))


@pytest.mark.parametrize("name", SUMS + ELECTED)
def test_a_scale_of_zero_gives_the_base_to_the_bit(name):
    for leaf, value in example()[1].items():
        np.testing.assert_array_equal(merged()["no scale"][name][leaf], value)


@pytest.mark.parametrize("name", [n for n in NAMES if not n.startswith(LINES)])
def test_member_order_changes_nothing(name):
    check(merged()["order"][name], leaves64(merged()["plain"][name]))


@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith(LINES)])
def test_lines_end_in_their_members(name):
    for row, case in enumerate(["start", "end"]):
        member = jax.tree.map(lambda x: x[row], example()[0])  # noqa: B023
        check(merged()[case][name], leaves64(member))


@pytest.mark.parametrize("name", SUMS[1:] + ELECTED)
def test_no_density_gives_the_base_to_the_bit(name):
    for leaf, value in example()[1].items():
        np.testing.assert_array_equal(merged()["nothing"][name][leaf], value)


def test_full_density_loses_nothing():
    found = merged()["everything"]
    for name in SUMS:
        check(found[name], leaves64(found["task_arithmetic"]))
    for name in ("dare_ties", "della", "breadcrumbs_ties", "ties, leaf"):
        check(found[name], leaves64(found["ties"]))


@pytest.mark.parametrize(
    "name", ["slerp", "slerp, global", "slerp, input", "nuslerp, output"]
)
def test_two_parallel_members_are_mixed_along_the_line(name):
    ends = leaves64(jax.tree.map(lambda x: x[:2], cases()["parallel"][0]))
    t = np.float64(np.float32(0.3))
    line = {leaf: (1 - t) * x[0] + t * x[1] for leaf, x in ends.items()}
    check(merged()["parallel"][name], line)


@pytest.mark.parametrize("name", ["fisher", "fisher, normalised"])
def test_equal_fisher_information_gives_the_mean(name):
    check(merged()["equal information"][name], leaves64(merged()["plain"]["average"]))


@pytest.mark.parametrize(
    "name", ["breadcrumbs", "breadcrumbs, global", "breadcrumbs_ties"]
)
def test_breadcrumbs_without_a_top_part_drop_the_smallest_alone(name):
    check(merged()["no top"][name], expected("no top")[name])
    stacked, base, _ = example()
    # The largest entry of a member is kept: by the largest leaf, where ranks are.
    largest = np.argmax(np.abs(leaves64(stacked)["conv"] - leaves64(base)["conv"])[2])
    moved = leaves64(merged()["no top"][name])["conv"] - leaves64(base)["conv"]
    assert moved.flat[largest] != 0


# Those that drop entries by chance may drop it.
@pytest.mark.parametrize(
    "name", [n for n in NAMES if not n.startswith(("dare", "della"))]
)
def test_an_entry_that_is_not_finite_shows_in_the_result(name):
    assert np.isnan(np.asarray(merged()["nan"][name]["conv"], np.float32)[1, 1, 2, 3])


@pytest.mark.slow
def test_a_grid_by_vmap_equals_a_loop():
    one = jax.jit(merges, compiler_options=QUICK)
    for case, arguments in cases().items():
        alone = one(*_float32(arguments))
        for name in NAMES:
            check(alone[name], leaves64(merged()[case][name]))
