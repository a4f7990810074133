"""Sweeps: every mixture as if it were evaluated alone, on every mesh."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import ensjax
from ensjax import scores
from ensjax.mapping import MeshProgram, mesh_program
from ensjax.planning.collectives import read_collectives
from ensjax.weight_space import (
    ROW_SCORES,
    Sweep,
    alpha_path,
    barrier,
    connectivity,
    greedy_soup,
    mix_members,
    plane,
    recompute_statistics,
    sweep,
)

SLOW = pytest.mark.slow
MESHES = [*(pytest.param(*m, marks=SLOW) for m in ((1, 1), (8, 1))), (4, 2)]


def make_model(rngs):
    return ensjax.nn.CNN(
        image_shape=(8, 8, 1), features=(3,), num_pools=1, norm="batch", rngs=rngs
    )


def ensemble_on(member, data, num_members=3, make_model=make_model):
    devices = jax.devices()[: member * data]
    mesh = ensjax.make_mesh(member=member, data=data, devices=devices)
    return ensjax.Ensemble.init(make_model, num_members=num_members, seed=0, mesh=mesh)


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(43, 8, 8, 1)).astype(np.float32)
    return x, rng.integers(10, size=43)


@pytest.fixture(scope="module")
def alone(rows):
    """What a loop over mixtures gives, each as an ensemble of one."""
    x, y = rows
    ensemble = ensemble_on(1, 1)
    path = alpha_path(7, num_members=3, ends=(0, 2))
    mixtures = mix_members(ensemble, path)
    fresh = recompute_statistics(mixtures, x, batch_size=43)
    logits = jnp.stack([e(x)[0] for e in (mixtures[i : i + 1] for i in range(7))])
    outputs = ensemble(x)
    mean = jnp.einsum("km,mnc->knc", path, jax.nn.softmax(outputs), precision="highest")
    spaces = {
        "weights": logits,
        "statistics": fresh(x),
        "predictive": jnp.log(mean),
        "geometric_mean": jnp.einsum("km,mnc->knc", path, outputs, precision="highest"),
    }
    return path, {
        name: {
            "accuracy": scores.accuracy(space, y),
            "nll": scores.nll(jax.nn.log_softmax(space), y),
            "rows": np.asarray(space.argmax(-1)) == y[None],
        }
        for name, space in spaces.items()
    }


@pytest.mark.parametrize("member, data", MESHES)
def test_a_sweep_gives_what_each_mixture_alone_gives(rows, alone, member, data):
    x, y = rows
    path, expected = alone
    found = sweep(
        ensemble_on(member, data),
        path,
        {"all": rows, "some": (x[:10], y[:10])},
        output_space=("predictive", "geometric_mean"),
        per_row=True,
        batch_size=16,
    )
    for space in ("weights", "predictive", "geometric_mean"):
        for score in ("accuracy", "nll"):
            np.testing.assert_allclose(
                found.values[space]["all"][score], expected[space][score], atol=3e-6
            )
        np.testing.assert_array_equal(
            found.rows[space]["all"]["accuracy"], expected[space]["rows"]
        )
        np.testing.assert_array_equal(
            found.rows[space]["some"]["accuracy"], expected[space]["rows"][:, :10]
        )
        np.testing.assert_allclose(
            found.values[space]["some"]["accuracy"],
            expected[space]["rows"][:, :10].mean(axis=1),
            atol=1e-6,
        )


@pytest.mark.parametrize("member, data", MESHES)
def test_statistics_are_measured_again_in_the_same_program(rows, alone, member, data):
    path, expected = alone
    x = rows[0]
    if data == 2:  # 43 rows make no two equal shards: 42 are used
        fresh = recompute_statistics(mix_members(ensemble_on(1, 1), path), x[:42])
        nll = scores.nll(jax.nn.log_softmax(fresh(x)), rows[1])
    else:
        nll = expected["statistics"]["nll"]
    found = sweep(
        ensemble_on(member, data), path, {"all": rows}, statistics=x, batch_size=43
    )
    np.testing.assert_allclose(found.values["weights"]["all"]["nll"], nll, atol=1e-5)


def test_measured_statistics_are_those_of_the_activations(rows):
    x = rows[0]
    fresh = recompute_statistics(ensemble_on(1, 1), x, batch_size=50)
    for member in fresh:
        maps = member.blocks[0].conv(jnp.asarray(x))
        norm = member.blocks[0].norm
        np.testing.assert_allclose(norm.mean[...], maps.mean((0, 1, 2)), atol=1e-6)
        np.testing.assert_allclose(norm.var[...], maps.var((0, 1, 2)), rtol=1e-5)
    # The first layer has them to rounding in batches too.
    split = recompute_statistics(ensemble_on(1, 1), x[:40], batch_size=10)
    maps = fresh[1].blocks[0].conv(jnp.asarray(x[:40]))
    norm = split[1].blocks[0].norm
    np.testing.assert_allclose(norm.var[...], maps.var((0, 1, 2)), rtol=1e-5)


def test_one_compilation_whatever_the_coefficients_and_no_more_collectives(rows):
    from ensjax.weight_space.mix import coefficients_of_leaves
    from ensjax.weight_space.row_scores import batches_of_rows, row_scores
    from ensjax.weight_space.sweep import _Sweep

    ensemble = ensemble_on(8, 1, num_members=8)
    found = [
        sweep(ensemble, np.eye(8)[:, ::step], {"all": rows}, scores=("accuracy",))
        for step in (1, -1)
    ]
    np.testing.assert_array_equal(
        found[0].values["weights"]["all"]["accuracy"],
        found[1].values["weights"]["all"]["accuracy"][::-1],
    )
    matrices, places = coefficients_of_leaves(ensemble.state, np.eye(8), None)
    job = _Sweep(
        ensemble.graph, row_scores(("accuracy",)), 8, places, (), False, "auto"
    )
    program = mesh_program(job, ensemble.mesh)
    assert program.cache_size() == 1
    batches = {"all": batches_of_rows("all", rows, 512, 1)}
    lowered = program.lower(ensemble.state, matrices, jnp.int32(0), batches, None)
    # Sums over "data", which is one device here, are no communication.
    (found,) = read_collectives(lowered.compile().as_text(), (8, 1, 1))
    assert (found.operation, found.axes) == ("reduce-scatter", ("member",))
    assert found.count <= len(jax.tree.leaves(ensemble.state))


def test_a_host_function_sees_every_mixture():
    tree = {"w": np.array([[1.0, 2.0], [3.0, 4.0]], np.float32), "n": np.array([7, 8])}
    seen = []

    def evaluate(weights):
        assert isinstance(weights["w"], np.ndarray)
        seen.append(int(weights["n"]))
        return {"sum": weights["w"].sum()}

    found = sweep(tree, alpha_path(3), evaluate=evaluate, keep=1)
    np.testing.assert_allclose(found.values["weights"]["evaluate"]["sum"], [3, 5, 7])
    assert seen == [8, 8, 8] and found.best("evaluate", "sum", largest=True) == 2


def test_a_second_sweep_on_the_host_compiles_nothing(compilations):
    tree = {"w": np.ones((2, 3), np.float32), "n": np.array([7, 8])}

    def run(step):
        return sweep(
            tree,
            alpha_path(3)[::step],
            evaluate=lambda t: {"sum": t["w"].sum()},
            per_leaf={"w": np.ones((3, 2))},
        )

    run(1)
    del compilations[:]
    run(1)
    assert compilations == []
    with pytest.raises(ValueError, match="keep is a member, 0 to 1; got 2"):
        sweep(tree, alpha_path(3), evaluate=lambda t: {}, keep=2)


def test_a_score_that_is_nan_is_never_best():
    """Neither in weight space nor of outputs; the argmax of NaN would be class 0."""
    stack = {"w": np.arange(12.0, dtype=np.float32).reshape(3, 2, 2)}
    stack["w"][0] = np.nan
    ensemble = ensjax.Ensemble.from_apply(lambda p, x: x @ p["w"], stack)
    rows = np.ones((6, 2), np.float32), np.array([0, 0, 0, 0, 0, 1])
    found = sweep(
        ensemble,
        np.eye(3),
        {"all": rows},
        scores=("accuracy", "error", "nll", "brier", "confidence"),
        output_space=("predictive", "geometric_mean"),
    )
    for space in found.values.values():
        for values in space["all"].values():
            assert np.isnan(values).tolist() == [True, False, False]
    assert found.best("all", "accuracy") == 1
    assert found.best("all", "nll") == 1
    values = {"weights": {"all": {"accuracy": np.full(3, np.nan)}}}
    with pytest.raises(ValueError, match="'accuracy' on 'all' is NaN for all 3"):
        dataclasses.replace(found, values=values).best("all", "accuracy")


def test_every_score_of_a_row_that_is_nan_is_nan():
    outputs = jnp.array([[0.0, 1.0], [jnp.nan, 1.0], [1.0, jnp.nan], [-jnp.inf, 1.0]])
    for name, score in ROW_SCORES.items():
        targets = outputs * 0 if name == "squared_error" else jnp.ones(4, jnp.int32)
        found = score(outputs, jnp.nan_to_num(targets))
        expected = [False, True, True, False]  # -inf: a class that is ruled out
        assert np.isnan(found).tolist() == expected, name


def test_the_best_is_by_the_name_of_the_score():
    """Of a loss the least: the mixture that the accuracy has too."""
    stack = {"w": np.array([[[0.0, 3.0]], [[3.0, 0.0]], [[1.0, 1.1]]], np.float32)}
    ensemble = ensjax.Ensemble.from_apply(lambda p, x: x @ p["w"], stack)
    rows = np.ones((4, 1), np.float32), np.array([0, 0, 0, 0])
    names = ("accuracy", "error", "nll", "brier", "confidence")
    found = sweep(ensemble, np.eye(3), {"all": rows}, scores=names)
    values = found.values["weights"]["all"]
    np.testing.assert_array_equal(values["error"], 1 - values["accuracy"])
    for name in names[:4]:
        assert found.best("all", name) == 1, name
    assert found.best("all", "nll", largest=True) == 0
    with pytest.raises(ValueError, match="'confidence' is better large or small"):
        found.best("all", "confidence")
    own = sweep(ensemble, np.eye(3), {"all": rows}, scores={"own": ROW_SCORES["nll"]})
    with pytest.raises(ValueError, match="give largest=True"):
        own.best("all", "own")
    assert own.best("all", "own", largest=False) == 1


def test_a_barrier_is_of_what_is_to_be_small(rows):
    ensemble = ensemble_on(1, 1)
    for score in ("accuracy", "confidence", ROW_SCORES["accuracy"]):
        with pytest.raises(ValueError, match="a barrier is of a score that is to be"):
            connectivity(ensemble, {"all": rows}, score=score)


@pytest.mark.parametrize("label", [-1, 2, 255])
def test_a_label_that_is_no_class_has_no_score(label):
    logits = jnp.array([[0.0, 1.0], [1.0, 0.0]])
    labels = jnp.array([label, 0], jnp.uint8 if label == 255 else jnp.int32)
    for name in ("accuracy", "error", "nll", "brier"):
        found = ROW_SCORES[name](logits, labels)
        assert np.isnan(found).tolist() == [True, False], name


@pytest.mark.parametrize("member, data", [(1, 1), (2, 2)])
def test_a_class_that_is_ruled_out_and_a_bad_row_stay_where_they_are(member, data):
    """Also in output space: neither spoils other classes, rows or members."""
    rng = np.random.default_rng(0)
    stack = {"w": rng.normal(size=(2, 3, 3)).astype(np.float32)}
    stack["ruled"] = np.array([[0.0, -np.inf, 0.0], [0.0, 0.0, 0.0]], np.float32)
    mesh = ensjax.make_mesh(
        member=member, data=data, devices=jax.devices()[: member * data]
    )
    ensemble = ensjax.Ensemble.from_apply(
        lambda p, x: x @ p["w"] + p["ruled"][None], stack, mesh=mesh
    )
    x = rng.normal(size=(8, 3)).astype(np.float32)
    x[3] = np.nan
    y = np.array([0, 2, 0, 0, 2, 2, 0, 0])
    path = alpha_path(3)
    found = sweep(
        ensemble,
        path,
        {"all": (x, y)},
        output_space=("predictive", "geometric_mean"),
        per_row=True,
        batch_size=4,
    )
    logits = np.asarray(ensemble(x))
    # By hand, a class at a time; 0 times -inf is 0.
    terms = np.asarray(path)[:, :, None, None] * np.where(
        np.isneginf(logits), 0, logits
    )
    mean = terms.sum(axis=1)
    mean[:2, :, 1] = -np.inf  # of the mixtures that hold member 0
    probs = np.asarray(jax.nn.softmax(logits, axis=-1))
    with np.errstate(divide="ignore"):
        mixed = np.log(np.einsum("km,mnc->knc", path, probs))
    for rule, expected in (("geometric_mean", mean), ("predictive", mixed)):
        own = found.rows[rule]["all"]
        log_probs = jax.nn.log_softmax(expected, axis=-1)
        nll = -np.asarray(log_probs)[:, np.arange(8), y]
        np.testing.assert_allclose(own["nll"], nll, rtol=1e-5)
        assert np.isnan(own["nll"]).sum() == 3  # the bad row of three mixtures
        right = np.where(np.arange(8) == 3, np.nan, expected.argmax(axis=-1) == y)
        np.testing.assert_array_equal(own["accuracy"], right)


@pytest.mark.parametrize(
    "option",
    [
        dict(scores=("nll",)),
        dict(scores={"own": ROW_SCORES["nll"]}),
        dict(output_space=("nonsense",)),
        dict(statistics=np.ones((2, 3))),
        dict(per_row=True),
        dict(batch_size=8),
        dict(block=1),
    ],
    ids=lambda option: next(iter(option)),
)
def test_a_host_function_goes_with_nothing_that_it_would_not_use(option):
    tree = {"w": np.ones((2, 3), np.float32)}
    with pytest.raises(ValueError, match=f"^{next(iter(option))} would play no part"):
        sweep(tree, alpha_path(3), evaluate=lambda t: {"a": 1.0}, **option)


def test_padding_of_mixtures_and_blocks_changes_nothing(rows, alone):
    path, expected = alone
    for block in (1, 2, 5):
        found = sweep(ensemble_on(2, 1), path, {"all": rows}, block=block)
        np.testing.assert_allclose(
            found.values["weights"]["all"]["nll"], expected["weights"]["nll"], atol=3e-6
        )


def test_own_scores_and_regression():
    params = {"w": jnp.array([1.0, 3.0])}
    ensemble = ensjax.Ensemble.from_apply(lambda p, x: p["w"] * x, params)
    x = np.arange(1.0, 5.0, dtype=np.float32)
    found = sweep(
        ensemble,
        alpha_path(3),
        {"line": (x, 2 * x)},
        scores={"error": lambda outputs, targets: jnp.abs(outputs - targets)},
        output_space=("geometric_mean",),
    )
    for space in ("weights", "geometric_mean"):  # a linear model: both are the same
        np.testing.assert_allclose(found.values[space]["line"]["error"], [2.5, 0, 2.5])


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(datasets=None), "either datasets or evaluate"),
        (dict(scores=("acuracy",)), "'acuracy' is no score; there are accuracy"),
        (dict(output_space="predictive"), "a sequence of predictive"),
        (dict(output_space=("mean",)), "got \\('mean',\\)"),
        (dict(datasets={"a": np.ones(3)}), "datasets\\['a'\\] must be a pair"),
        (
            dict(datasets={"a": (np.ones((0, 8, 8, 1)), np.ones(0, int))}),
            "holds no row",
        ),
        (
            dict(datasets={"a": (np.ones((2, 8, 8, 1)), np.ones(3, int))}),
            "equal length",
        ),
        (dict(datasets={}), r'datasets is empty.*\{"test": \(x, y\)\}'),
        (dict(scores=()), "at least one score"),
        (dict(block=0), "block must be at least 1"),
        (dict(batch_size=0), "batch_size be at least 1"),
    ],
)
def test_mistakes_are_named_before_anything_is_compiled(rows, change, words):
    arguments = dict(datasets={"all": rows}) | change
    with pytest.raises(ValueError, match=words):
        sweep(ensemble_on(1, 1), alpha_path(2, num_members=3), **arguments)


@pytest.mark.parametrize("measure", [sweep, connectivity])
def test_datasets_without_names_are_refused(rows, measure):
    path = () if measure is connectivity else (alpha_path(2, num_members=3),)
    with pytest.raises(TypeError, match=r'got tuple.*as \{"test": \(x, y\)\}'):
        measure(ensemble_on(1, 1), *path, rows)


def test_the_best_of_what_is_not_there_says_what_there_is():
    values = {"weights": {"test": {"accuracy": np.ones(2), "nll": np.ones(2)}}}
    found = Sweep(jnp.eye(2), values)
    with pytest.raises(ValueError, match="'q' is no dataset .*; there are 'test'"):
        found.best("q", "nll")
    with pytest.raises(ValueError, match="'accurcy' .* there are 'accuracy', 'nll'"):
        found.best("test", "accurcy")
    assert found.best("test", "nll") == 0


@pytest.mark.parametrize("value", [0.5, {}])
def test_a_host_function_returns_numbers_by_name(value):
    tree = {"w": np.ones((2, 3), np.float32)}
    with pytest.raises(TypeError, match="numbers by name.* for mixture 0"):
        sweep(tree, alpha_path(3), evaluate=lambda t: value)


def test_models_without_batch_norm_have_no_statistics_to_measure():
    def make_mlp(rngs):
        return ensjax.nn.MLP(in_features=4, num_outputs=2, rngs=rngs)

    ensemble = ensemble_on(1, 1, make_model=make_mlp)
    with pytest.raises(ValueError, match="no nnx.BatchNorm"):
        recompute_statistics(ensemble, np.ones((4, 4), np.float32))
    bare = ensjax.Ensemble.from_apply(lambda p, x: p * x, jnp.ones((2, 1)))
    with pytest.raises(ValueError, match="bare function"):
        recompute_statistics(bare, np.ones((4, 1), np.float32))


def test_a_barrier_is_the_height_above_the_line_between_the_ends():
    losses = jnp.array([[1.0, 3.0, 2.0], [1.0, 1.0, 2.0]])
    np.testing.assert_allclose(barrier(losses), [1.5, 0.0])
    np.testing.assert_allclose(barrier(losses, np.array([0, 0.25, 1])), [1.75, 0.0])
    with pytest.raises(ValueError, match="from 0 to 1"):
        barrier(losses, np.array([0, 0.5, 0.9]))


def test_the_pair_matrix_holds_the_barriers_of_all_paths(rows):
    ensemble = ensemble_on(4, 2)
    found = connectivity(ensemble, {"all": rows}, alphas=np.int64(4))
    matrix = found.matrix["all"]
    np.testing.assert_array_equal(matrix, matrix.T)
    np.testing.assert_array_equal(np.diag(matrix), 0)
    path = alpha_path(4, num_members=3, ends=(1, 2))
    own = sweep(ensemble, path, {"all": rows}).values["weights"]["all"]["nll"]
    np.testing.assert_allclose(matrix[1, 2], barrier(own), atol=2e-6)
    np.testing.assert_allclose(found.losses["all"][2], own, atol=2e-6)


def test_the_plane_keeps_distances_and_goes_through_its_members():
    rng = np.random.default_rng(0)
    tree = {"w": rng.normal(size=(4, 30)), "n": np.arange(4)}
    found = plane(tree, (3, 0, 2), size=5, margin=0.0)
    points = np.asarray(found.coefficients, np.float64) @ tree["w"]
    points = points.reshape(5, 5, 30)
    np.testing.assert_allclose(found.coefficients.sum(axis=1), 1, atol=1e-6)
    distance = np.linalg.norm(points[1, 3] - points[4, 0])
    flat = np.hypot(
        found.horizontal[3] - found.horizontal[0], found.vertical[1] - found.vertical[4]
    )
    np.testing.assert_allclose(distance, flat, rtol=1e-5)
    np.testing.assert_allclose(
        np.linalg.norm(found.corners[2] - found.corners[1]),
        np.linalg.norm(tree["w"][2] - tree["w"][0]),
        rtol=1e-6,
    )
    line = {"w": np.array([[0.0], [1.0], [2.0]])}
    with pytest.raises(ValueError, match="lie on one line"):
        plane(line)
    with pytest.raises(ValueError, match="three of 0 to 2"):
        plane(line, (0, 1, 1))


LINEAR = {"w": np.ones((2, 3, 4), np.float32)}


def linear(stack=None):
    return ensjax.Ensemble.from_apply(lambda p, x: x @ p["w"], stack or LINEAR)


@pytest.mark.parametrize(
    "labels, score, words",
    [
        (np.zeros((6, 1), int), "accuracy", r"'accuracy' on datasets\['one'\].*\[6, 1"),
        (np.zeros((6, 4), np.float32), "nll", r"integers \[row\]; got float32\[6, 4\]"),
        (np.zeros(6, np.float32), "brier", r"'brier' on .* got float32\[6\]"),
        (np.zeros(6, int), lambda z, y: z[:, :1], r"' on .* shape \[6, 1\]"),
        (np.zeros(6, int), lambda z, y: z.mean(), r"' on .* shape \[\] for a batch"),
        (np.zeros((6, 3)), "squared_error", "as many targets as outputs"),
    ],
)
def test_a_score_is_of_labels_that_fit_and_one_number_a_row(labels, score, words):
    """Labels [row, 1] would be compared with every row: accuracies that cannot be."""
    rows = np.ones((6, 3), np.float32), labels
    scores = {"own": score} if callable(score) else (score,)
    for space in ((), ("geometric_mean",)):
        with pytest.raises(ValueError, match=words):
            sweep(linear(), np.eye(2), {"one": rows}, scores=scores, output_space=space)
    with pytest.raises(ValueError, match=r"on datasets\['data'\]"):
        greedy_soup(linear(), rows, score=score, largest=False)
    if score != "accuracy":
        with pytest.raises(ValueError, match=words):
            connectivity(linear(), {"one": rows}, score=score)


def compiled_sweep(stack, rows, output_space=(), mixtures=64):
    """A sweep's program on one device, compiled."""
    calls, call = [], MeshProgram.__call__
    mesh = ensjax.make_mesh(devices=jax.devices()[:1])
    apply = lambda p, x: jnp.tanh(x @ p["v"]) @ p["w"]  # noqa: E731
    ensemble = ensjax.Ensemble.from_apply(apply, stack, mesh=mesh)

    def note(self, *args):
        calls.append((self, args))
        return call(self, *args)

    members = ensemble.num_members
    data = np.ones((rows, 3), np.float32), np.zeros(rows, int)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MeshProgram, "__call__", note)
        sweep(
            ensemble,
            np.full((mixtures, members), 1 / members),
            {"all": data},
            output_space=output_space,
            batch_size=50,
        )
    ((program, args),) = calls
    return program.lower(*args).compile()


def temporary_bytes(*args, **kwargs):
    compiled = compiled_sweep(*args, **kwargs)
    return compiled.memory_analysis().temp_size_in_bytes


def stack_of(members, width, dtype=np.float32):
    shapes = {"v": (members, 3, width), "w": (members, width, 4)}
    return {name: jnp.ones(shape, dtype) for name, shape in shapes.items()}


def test_temporaries_of_a_sweep_do_not_grow_with_the_rows():
    """Nor in output space: 64 mixtures of 2,000 rows are 512 kB a score."""
    found = [
        temporary_bytes(stack_of(2, 8), rows, ("predictive", "geometric_mean"))
        for rows in (200, 2_000)
    ]
    assert found[1] - found[0] < 4_000, found


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_sweep_makes_no_wide_copy_of_the_stack(dtype):
    found = [
        temporary_bytes(stack_of(members, 2_000, dtype), 50, mixtures=16)
        for members in (16, 64)
    ]
    assert found[1] - found[0] < 16_000, found  # 48 members are 2.7 MB


def test_a_sweep_brings_scores_alone_to_the_host():
    """One call whose only outputs are two scores of 16 mixtures; nothing calls back."""
    compiled = compiled_sweep(stack_of(2, 2_000), 50, mixtures=16)
    assert compiled.memory_analysis().output_size_in_bytes <= 16 * 2 * 4 + 64
    text = compiled.as_text()
    for word in ("callback", "outfeed", "infeed", " send(", "xla_ffi_python"):
        assert word not in text, word


def test_measured_variances_are_exact_far_from_zero():
    made = ensjax.Ensemble.init(
        lambda rngs: nnx.Sequential(nnx.BatchNorm(2, rngs=rngs)), num_members=1, seed=0
    )
    rng = np.random.default_rng(0)
    x = (2_000 + rng.normal(size=(64, 2))).astype(np.float32)
    norm = recompute_statistics(made, x)[0].layers[0]
    np.testing.assert_allclose(norm.var[...], x.astype(float).var(0), rtol=1e-4)
