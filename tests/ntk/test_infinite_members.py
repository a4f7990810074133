"""Members of infinite width: the law they are drawn from, streams, and the cube."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ensjax import make_mesh, ntk, reduce
from ensjax.mapping import mesh_program
from ensjax.ntk import two_layer
from ensjax.ntk.cube_members import _paths, _uncouple
from ensjax.ntk.infinite_members import low_rank_factor
from ensjax.reduce.devices import FoldBlocks
from ensjax.reduce.moments import MOMENTS

COVARIANCE = np.array([[1.0, 0.5, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 0.0]])
MEAN = np.array([[1.0, -1.0], [0.0, 2.0], [3.0, 3.0]], np.float32)


def fold(fn, members, ids, mesh, block=50):
    states = {"moments": reduce.init_moments(members.mean)}
    states = reduce.fold_members(
        fn, jnp.asarray(ids), states, block=block, shared=(members,), mesh=mesh
    )
    return [np.asarray(x) for x in reduce.finish_moments(states["moments"], ddof=1)]


def test_a_stream_of_members_has_the_mean_and_variance_on_any_mesh():
    """4,000 members; five standard errors of means, of variances 5 sqrt(2 / 4,000)."""
    members = ntk.infinite_members(MEAN, COVARIANCE, seed=3)
    assert members.factor.shape == (3, 2)  # the third row is certain
    mean, variance = fold(
        ntk.sample_member, members, np.arange(4_000), make_mesh(member=8)
    )
    assert np.abs(mean - MEAN).max() < 5 / np.sqrt(4_000)
    spread = np.diag(COVARIANCE)[:, None]
    spread = np.broadcast_to(spread, (3, 2))
    np.testing.assert_allclose(variance, spread, rtol=0.11, atol=1e-12)
    alone = fold(
        ntk.sample_member, members, np.arange(4_000)[::-1], make_mesh(member=1)
    )
    np.testing.assert_allclose(alone[0], mean, atol=1e-5)


def test_a_member_depends_on_its_id_alone_and_covaries_between_rows():
    members = ntk.infinite_members(MEAN, COVARIANCE, seed=3)
    draw = jax.jit(jax.vmap(ntk.sample_member, in_axes=(0, None)))
    many = np.asarray(draw(jnp.arange(4_000), members))
    some = np.asarray(draw(jnp.asarray([7, 3]), members))
    np.testing.assert_allclose(some, many[[7, 3]], rtol=1e-6, atol=1e-6)
    other = draw(jnp.asarray([7, 3]), ntk.infinite_members(MEAN, COVARIANCE, seed=4))
    assert np.abs(other - some)[:, :2].min() > 1e-4
    for output in range(2):
        found = np.cov(many[:, :, output].T)
        assert np.abs(found - COVARIANCE).max() < 5 * np.sqrt(2 / 4_000)
    across = np.cov(many[:, 0].T)[0, 1]  # two outputs of one row
    assert abs(across) < 5 / np.sqrt(4_000)
    np.testing.assert_array_equal(many[:, 2], np.broadcast_to(MEAN[2], (4_000, 2)))


def test_a_factor_holds_all_but_the_share_that_may_be_dropped():
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    covariance = basis * [4, 1, 1e-3, 1e-5, 1e-9, 0] @ basis.T
    for tolerance, rank in ((1e-12, 5), (1e-7, 4), (1e-3, 3), (0.3, 2)):
        factor = low_rank_factor(covariance, tolerance)
        assert factor.shape == (6, rank)
        lost = np.diag(covariance - factor @ factor.T)
        assert (lost <= tolerance * np.diag(covariance) + 1e-14).all()
    with pytest.raises(ValueError, match="from 0 to below 1; got 1"):
        low_rank_factor(covariance, 1)


def test_rows_of_small_variance_keep_it_and_their_correlations():
    """Whole rows of 1e-8 of the largest variance were dropped."""
    rng = np.random.default_rng(1)
    root = rng.normal(size=(5, 5))
    scale = np.array([1.0, 1e-4, 1e-8, 3e-5, 1.0])
    unit = root @ root.T
    covariance = unit * scale[:, None] * scale[None]
    factor = low_rank_factor(covariance, 1e-7) / scale[:, None]
    np.testing.assert_allclose(factor @ factor.T, unit, rtol=2e-6, atol=2e-6)
    # Of float32 with what its rounding makes of a row that is certain.
    rounded = np.float32(covariance)
    length = np.where(np.arange(5) == 1, 1, scale)
    rounded[1], rounded[:, 1] = 2e-8 * length, 2e-8 * length
    factor = low_rank_factor(rounded, 1e-7)
    others = [0, 3, 4]
    found = (factor @ factor.T)[np.ix_(others, others)]
    own = np.sqrt(np.diag(covariance))[others]
    away = (found - covariance[np.ix_(others, others)]) / own[:, None] / own[None]
    assert np.abs(away).max() < 3e-3


def test_rows_alike_have_the_factor_of_the_matrix_as_it_is():
    """Scaling is exact, so that draws do not depend on it."""
    root = np.random.default_rng(2).normal(size=(6, 6))
    unit = root @ root.T
    unit /= np.sqrt(np.diag(unit))[:, None] * np.sqrt(np.diag(unit))[None]
    covariance = 0.013 * (unit + unit.T) / 2
    values, vectors = np.linalg.eigh(covariance)
    factor = low_rank_factor(covariance, 1e-7)
    np.testing.assert_array_equal(factor, vectors * np.sqrt(values))


def test_what_is_no_covariance_is_refused():
    with pytest.raises(ValueError, match="not symmetric"):
        ntk.infinite_members(np.ones((2, 1)), np.array([[1.0, 0.5], [0.0, 1.0]]))
    with pytest.raises(ValueError, match="has an eigenvalue -1 beside 3"):
        ntk.infinite_members(np.ones((2, 1)), np.array([[1.0, 2.0], [2.0, 1.0]]))
    with pytest.raises(ValueError, match=r"got \(2, 1\) and \(3, 3\)"):
        ntk.infinite_members(np.ones((2, 1)), np.eye(3))
    with pytest.raises(ValueError, match="covariance must be finite; rows 1 of 2"):
        ntk.infinite_members(np.ones((2, 1)), np.diag([1.0, np.inf]))


def cube(k):
    x = (np.arange(1, 2**k)[:, None] >> np.arange(k)) & 1
    return x, x.sum(1), x @ x.T


@pytest.mark.parametrize("k", [1, 2, 5])
def test_uncoupling_is_orthogonal(k):
    spins = {
        k - 2 * d: np.zeros((k - 2 * d + 1, _paths(k, k - 2 * d), 1, 1))
        for d in range(k // 2 + 1)
    }
    sizes = [spin.size for spin in spins.values()]
    assert sum(sizes) == 2**k

    def inputs(flat):
        parts = jnp.split(flat, np.cumsum(sizes)[:-1])
        shaped = {
            j: p.reshape(spins[j].shape) for j, p in zip(spins, parts, strict=True)
        }
        return _uncouple(shaped, k)[:, 0]

    matrix = jax.jit(jax.vmap(inputs))(jnp.eye(2**k))
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(2**k), atol=1e-6)


SPECS = {
    "ntk": ntk.FullyConnected(),
    "readout": ntk.FullyConnected(parameterisation="readout"),
}


@pytest.mark.parametrize("kind", SPECS)
@pytest.mark.parametrize("schedule", [{}, dict(time=3.0)])
def test_members_on_the_cube_have_the_covariance_of_the_closed_form(kind, schedule):
    """All of it, with no sampling: the map from noise to inputs times its transpose."""
    k = 4
    members = ntk.cube_members(SPECS[kind], k, **schedule)
    factors = members.factors
    paths = [_paths(k, k - 2 * d) for d in range(len(factors))]
    sizes = [f.shape[1] * n for f, n in zip(factors, paths, strict=True)]

    def inputs(noise):
        parts = jnp.split(noise, np.cumsum(sizes)[:-1])
        spins = {
            k - 2 * d: (f @ part.reshape(f.shape[1], -1)).reshape(len(f), n, 1, 1)
            for d, (f, part, n) in enumerate(zip(factors, parts, paths, strict=True))
        }
        return _uncouple(spins, k)[1:, 0]

    factor = np.asarray(jax.jit(jax.vmap(inputs))(jnp.eye(sum(sizes))), np.float64)
    x, m, both = cube(k)
    expected = two_layer.covariance(k, m[:, None], m[None], both, kind=kind, **schedule)
    np.testing.assert_allclose(factor.T @ factor, expected, atol=1e-7)
    law = two_layer.law(k, m, kind=kind, **schedule)
    means = np.where(x > 0, law.on_one[:, None], law.on_zero[:, None])
    np.testing.assert_allclose(members.mean, means, atol=1e-7)


def test_members_on_the_cube_stream_over_devices():
    """4,000 members of k = 3 for a permutation; bounds as above."""
    permutation = np.eye(3)[[2, 0, 1]]
    members = ntk.cube_members(SPECS["ntk"], 3, targets=permutation, seed=1)
    found = fold(ntk.sample_cube_member, members, np.arange(4_000), make_mesh(member=8))
    x, m, _ = cube(3)
    law = two_layer.law(3, m, kind="ntk")
    expected = np.where(x @ permutation > 0, law.on_one[:, None], law.on_zero[:, None])
    error = 5 * np.sqrt(law.variance / 4_000)[:, None]
    assert (np.abs(found[0] - expected) <= error + 1e-6).all()
    spread = np.broadcast_to(law.variance[:, None], (7, 3))
    np.testing.assert_allclose(found[1], spread, rtol=0.13, atol=1e-6)


def test_another_network_and_targets_that_are_no_permutation():
    """A deep one with biases, against the predictor on all inputs."""
    spec = ntk.FullyConnected(hidden_layers=2, bias_variance=0.2)
    targets = np.array([[1.0, 0, 2, 0], [0, 1, 0, 0], [1, 1, 0, -1]])
    members = ntk.cube_members(spec, 3, targets=targets)
    x, *_ = cube(3)
    with jax.enable_x64(True):
        predictor = ntk.predictor(spec, np.eye(3), x.astype(float))
        mean = np.asarray(ntk.mean(predictor, targets))
        trace = float(ntk.variance(predictor).sum())
    np.testing.assert_allclose(members.mean, mean, atol=1e-6)
    sums = [float((f**2).sum()) for f in members.factors]
    paths = [_paths(3, 3 - 2 * d) for d in range(2)]
    np.testing.assert_allclose(np.dot(sums, paths), trace, rtol=1e-6)


def test_memory_does_not_depend_on_the_number_of_members():
    members = jax.eval_shape(lambda: _members_of(6))
    states = {"moments": reduce.init_moments(members.mean)}
    job = FoldBlocks(ntk.sample_cube_member, (("moments", MOMENTS),), 10)
    program, sizes = mesh_program(job, make_mesh(member=1)), []
    for count in (100, 100_000):
        ids = jax.ShapeDtypeStruct((count,), jnp.int32)
        number = jax.ShapeDtypeStruct((), jnp.int32)
        compiled = program.lower(states, ids, None, number, (members,)).compile(
            {"xla_backend_optimization_level": 0}
        )
        sizes.append(compiled.memory_analysis().temp_size_in_bytes)
    # But for the ids themselves.
    assert sizes[1] - sizes[0] < 100_000 * 8 + 10_000, sizes


def _members_of(k):
    factors = tuple(
        jnp.zeros((k - 2 * d + 1, k - 2 * d + 1)) for d in range(k // 2 + 1)
    )
    return ntk.CubeMembers(jnp.zeros((2**k - 1, k)), factors, jnp.uint32(0))


@pytest.mark.slow
def test_a_hundred_thousand_members_on_the_cube_of_ten_bits():
    """1,023 inputs x 10 outputs. About 25 s on two quiet cores, most of it noise."""
    members = ntk.cube_members(SPECS["readout"], 10)
    mean, variance = fold(
        ntk.sample_cube_member, members, np.arange(100_000), make_mesh(member=2), 100
    )
    x, m, _ = cube(10)
    law = two_layer.law(10, m, kind="readout")
    expected = np.where(x > 0, law.on_one[:, None], law.on_zero[:, None])
    error = 5.5 * np.sqrt(law.variance / 100_000)[:, None]  # 10,230 entries
    assert (np.abs(mean - expected) <= error + 1e-6).all()
    spread = np.broadcast_to(law.variance[:, None], variance.shape)
    np.testing.assert_allclose(variance, spread, rtol=0.025, atol=1e-6)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="num_bits must be from 1 to 24; got 25"):
        ntk.cube_members(SPECS["ntk"], 25)
    with pytest.raises(ValueError, match=r"with 3 rows; got shape \(2, 2\)"):
        ntk.cube_members(SPECS["ntk"], 3, targets=np.eye(2))
    with pytest.raises(ValueError, match="features move"):
        ntk.cube_members(ntk.FullyConnected(parameterisation="mup"), 3)
    with pytest.raises(ValueError, match="not both"):
        ntk.cube_members(SPECS["ntk"], 3, time=1.0, steps=2)
    for wrong in (3.0, "3", True):
        with pytest.raises(TypeError, match=f"be an integer; got {wrong!r}"):
            ntk.cube_members(SPECS["ntk"], wrong)
