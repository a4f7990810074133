"""What the compiled training program is: collectives, operations, size and memory.

The programs are those of `fit`, through `ensjax.train.lower_step`, and are not run. Run
as a script, `python tests/test_structure.py MODEL MEMBER DATA M ...` compiles them for
a TPU slice and prints what it found as JSON; `python tests/test_structure.py write`
writes the file with peak memory that the tests compare with.
"""

import importlib.metadata
import importlib.util
import json
import pathlib
import re
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ensjax
from ensjax import Ensemble, losses, make_mesh, nn
from ensjax.mapping import MeshProgram
from ensjax.planning import read_collectives
from ensjax.train import lower_step

# Half the time to compile: the program before machine code is the same.
QUICK = {"xla_backend_optimization_level": 0}


def mlp(rngs):
    return nn.MLP(in_features=16, hidden=(32, 32), num_outputs=3, rngs=rngs)


def cnn(rngs):
    return nn.CNN(image_shape=(8, 8, 1), features=(8, 8), num_outputs=3, rngs=rngs)


def resnet20(rngs):
    return nn.ResNet(depth=20, num_outputs=3, rngs=rngs)


def vit(rngs):
    return nn.ViT(
        image_shape=(8, 8, 1), width=16, depth=1, num_heads=2, num_outputs=3, rngs=rngs
    )


def bench_mlp(rngs):
    return nn.MLP(in_features=64, hidden=(64, 64), rngs=rngs)


MODELS = {
    "MLP": (mlp, (16,)),
    "MLP 64-64-64-10": (bench_mlp, (64,)),
    "CNN": (cnn, (8, 8, 1)),
    "ResNet-20": (resnet20, (8, 8, 3)),
    "ViT": (vit, (8, 8, 1)),
}


def examples(shape, count=64):
    return (
        jax.ShapeDtypeStruct((count, *shape), jnp.float32),
        jax.ShapeDtypeStruct((count,), jnp.int32),
    )


def shapes_of(make_model, members):
    return jax.eval_shape(lambda: Ensemble.init(make_model, num_members=members))


def lowered(name, members, mesh, **options):
    make_model, shape = MODELS[name]
    return lower_step(
        shapes_of(make_model, members),
        options.pop("data", examples(shape)),
        loss=losses.cross_entropy,
        make_tx=optax.adam,
        hyper=1e-3,
        batch_size=options.pop("batch_size", 8),
        mesh=mesh,
        **options,
    )


def collective_axes(text, sizes):
    """`(operation, axes)` of every collective that joins more than one device.

    Args:
        text: of a compiled program.
        sizes: devices along "member", "data" and "model"; devices are numbered through.
    """
    return [
        (c.operation, c.axes)
        for c in read_collectives(text, sizes)
        for _ in range(c.count)
    ]


def test_the_reader_finds_a_collective_over_members():
    mesh = make_mesh(member=4, data=2)
    sharded = jax.NamedSharding(mesh, jax.P("member"))
    x = jax.ShapeDtypeStruct((8, 2), jnp.float32, sharding=sharded)
    text = jax.jit(lambda x: x.mean(axis=0)).lower(x).compile().as_text()
    assert [axes for _, axes in collective_axes(text, (4, 2, 1))] == [("member",)]


# Gradients, loss and metrics are one reduction. Batch norm adds two for each of the 19
# layers: its statistics, and their cotangents.
REDUCTIONS_OVER_DATA = {"MLP": 1, "CNN": 1, "ViT": 1, "ResNet-20": 39}
SLOW = pytest.mark.slow


def step_cases():
    found = []
    for name in REDUCTIONS_OVER_DATA:
        for sizes in [(1, 1), (2, 1), (4, 1), (8, 1), (4, 2)]:
            quick = name in ("MLP", "CNN") and sizes == (4, 2)
            found.append(pytest.param(name, *sizes, marks=() if quick else SLOW))
    return found


@pytest.mark.parametrize("name, member, data", step_cases())
def test_an_independent_step_joins_no_members(name, member, data):
    program = lowered(name, 8, make_mesh(member=member, data=data)).compile(QUICK)
    found = collective_axes(program.as_text(), (member, data, 1))
    expected = REDUCTIONS_OVER_DATA[name] if data > 1 else 0
    assert found == [("all-reduce", ("data",))] * expected


WEIGHTS = {"weighted": dict(weights=jax.ShapeDtypeStruct((8, 64), jnp.float32))}


@pytest.mark.parametrize(
    "sampling",
    ["weighted", *(pytest.param(s, marks=SLOW) for s in ("shared", "bootstrap"))],
)
def test_no_sampling_joins_members(sampling):
    mesh = make_mesh(member=4, data=2)
    options = dict(sampling=sampling, block=1) | WEIGHTS.get(sampling, {})
    program = lowered("MLP", 8, mesh, **options).compile(QUICK)
    found = collective_axes(program.as_text(), (4, 2, 1))
    assert found == [("all-reduce", ("data",))]


def test_a_scanned_call_joins_no_members():
    mesh = make_mesh(member=4, data=2)
    program = lowered("CNN", 8, mesh, steps_per_call=10, keep_best=True).compile(QUICK)
    found = collective_axes(program.as_text(), (4, 2, 1))
    assert found == [("all-reduce", ("data",))]


def flops(name, members, devices, **options):
    """Per device, of one step of all its members, as compiled."""
    program = lowered(name, members, make_mesh(member=devices), **options)
    return program.compile(QUICK).cost_analysis()["flops"]


@pytest.mark.parametrize(
    "name",
    ["MLP", "CNN", "ResNet-20", "ViT"],
)
@SLOW  # the weak scaling of MLP and CNN is not
def test_operations_per_device_are_the_share_of_its_members(name):
    """M/D times one member's; all at once, so that no loop hides any.

    16 members have twice the operations of 8 within 0.5 %, before fusion, and 8 no more
    than 8 alone: a call has some that do not grow with members (as many as 5 % of one
    small member's; what they are was not looked for). Fused on a CPU, many members
    repeat less elementwise work: the compiler may compute an elementwise value in each
    of several fusions, which is 5 % of the operations of one small member, and less
    with eight at once.
    """
    one, eight, more = (
        lowered(name, count, make_mesh(member=1), block=None) for count in (1, 8, 16)
    )
    before = [p.cost_analysis()["flops"] for p in (one, eight, more)]
    assert before[2] == pytest.approx(2 * before[1], rel=5e-3)
    assert 0.92 * 8 * before[0] <= before[1] <= 8 * before[0]
    single = one.compile(QUICK).cost_analysis()["flops"]
    assert eight.compile(QUICK).cost_analysis()["flops"] <= 1.02 * 8 * single
    # A device of D does what one device does with M/D members.
    for devices in (2, 8) if name == "ResNet-20" else (2, 4, 8):
        share = flops(name, 8 // devices, 1, block=None)
        assert flops(name, 8, devices, block=None) == pytest.approx(share, rel=0.02)


@pytest.mark.parametrize(
    "name, block, few",
    [
        pytest.param("MLP", None, 2, marks=SLOW),
        pytest.param("MLP", 1, 2, marks=SLOW),
        # Two members in blocks of four are one padded block; two blocks are the loop.
        pytest.param("MLP", 4, 8, marks=SLOW),
        ("MLP", "auto", 2),
        pytest.param("MLP 64-64-64-10", "auto", 2, marks=SLOW),
        pytest.param("CNN", None, 2, marks=SLOW),
        pytest.param("CNN", 1, 2, marks=SLOW),
        pytest.param("CNN", "auto", 2, marks=SLOW),
    ],
)
def test_the_program_does_not_grow_with_the_members(name, block, few):
    mesh = make_mesh(member=1)
    sizes = []
    for members in (few, 256):
        program = lowered(name, members, mesh, block=block)
        sizes.append((len(program.as_text()), len(program.compile(QUICK).as_text())))
    assert sizes[1][0] <= 1.1 * sizes[0][0]
    assert sizes[1][1] <= 1.1 * sizes[0][1]


@pytest.mark.parametrize(
    "count, batch_size, steps",
    [(60_000, 8, 50), (4_000, 128, 1_000), (60_000, 2_048, 1), (60_000, 8, 1)],
)
def test_data_orders_do_not_split_small_members_into_blocks(count, batch_size, steps):
    """The automatic block is that of the step, however many examples there are."""
    options = dict(data=examples((64,), count), batch_size=batch_size)
    options |= dict(steps_per_call=steps)

    def text(block):
        mesh = make_mesh(member=1)
        return lowered("MLP 64-64-64-10", 16, mesh, block=block, **options).as_text()

    assert (text("auto") == text(None)) == (batch_size < 2_048)
    if batch_size == 2_048:  # its activations are large
        assert text("auto") == text(1)


def test_the_loop_over_blocks_is_all_that_the_automatic_block_adds():
    """A third of a small program: one without a loop is that much shorter."""
    mesh = make_mesh(member=1)
    two, many = (
        len(lowered("MLP", members, mesh, block="auto").as_text())
        for members in (2, 4096)  # all at once; in blocks
    )
    assert two < many <= 1.4 * two


def test_unrolled_programs_are_refused_above_16_members_a_device():
    with pytest.raises(ValueError, match="refused above 16; there are 17"):
        lowered("MLP", 17, make_mesh(member=1), unroll=True)
    lowered("MLP", 17, make_mesh(member=8), unroll=True)


@pytest.mark.parametrize(
    "sampling, block",
    [
        pytest.param("independent", 1, marks=SLOW),
        ("bootstrap", None),
        pytest.param("independent", None, marks=SLOW),
        pytest.param("bootstrap", 1, marks=SLOW),
    ],
)
def test_members_do_not_cost_copies_of_the_data(sampling, block):
    width, count = 784, 20_000
    dataset = 4 * count * width

    def model(rngs):
        return nn.MLP(in_features=width, hidden=(8,), num_outputs=3, rngs=rngs)

    def used(members):
        stats = lower_step(
            shapes_of(model, members),
            examples((width,), count),
            loss=losses.cross_entropy,
            make_tx=optax.adam,
            hyper=1e-3,
            batch_size=32,
            sampling=sampling,
            steps_per_call=10,
            mesh=make_mesh(member=1),
            block=block,
        )
        stats = stats.compile(QUICK).memory_analysis()
        return stats.argument_size_in_bytes + stats.temp_size_in_bytes

    growth = used(16) - used(2)
    # Fourteen copies would be 14 datasets. A member's orders of two epochs and drawing
    # them take 45 to 50 bytes an example, whatever an example holds, for those members
    # that run at once.
    assert growth < 14 * 60 * count
    if block == 1:
        assert growth < 0.05 * dataset


@SLOW
def test_orders_of_many_epochs_cost_bytes_for_each_example():
    """Four for each of 20 epochs a call, and about 35 for the one that is drawn.

    Where an example is narrow that can be more than the example itself.
    """
    count, epochs = 2_048, 20

    def used(members):
        stats = lowered(
            "MLP",
            members,
            make_mesh(member=1),
            data=examples((16,), count),
            batch_size=32,
            steps_per_call=epochs * count // 32,
            block=None,
        )
        stats = stats.compile(QUICK).memory_analysis()
        return stats.argument_size_in_bytes + stats.temp_size_in_bytes

    per_example = (used(16) - used(2)) / 14 / count
    assert per_example < 4 * (epochs + 1) + 45


@pytest.mark.parametrize("steps_per_call", [pytest.param(1, marks=SLOW), 4])
def test_fit_compiles_once_and_donates_its_state(monkeypatch, steps_per_call):
    calls = []
    original = MeshProgram.__call__

    def record(self, *args):
        calls.append((self, args[0]))
        return original(self, *args)

    monkeypatch.setattr(MeshProgram, "__call__", record)
    rng = np.random.default_rng(0)
    data = (rng.normal(size=(64, 16)).astype(np.float32), rng.integers(3, size=64))
    ensemble = Ensemble.init(mlp, num_members=8, seed=0)
    ensjax.fit(
        ensemble,
        data,
        loss=losses.cross_entropy,
        make_tx=optax.adam,
        hyper=1e-3,
        steps=3 * steps_per_call,
        steps_per_call=steps_per_call,
        batch_size=8,
        progress=False,
    )
    steps = [(p, a) for p, a in calls if type(p.job).__name__ == "TrainSteps"]
    assert len(steps) >= 3
    programs = {id(p): p for p, _ in steps}
    assert len(programs) == 1
    assert next(iter(programs.values())).cache_size() == 1
    for _, states in steps:
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(states))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(ensemble.state))


class Seen(Exception):
    pass


@pytest.mark.parametrize(
    "sampling",
    [
        dict(),
        pytest.param(dict(sampling="weighted", weights=np.arange(64.0)), marks=SLOW),
        pytest.param(dict(sampling="weighted", weights=np.ones((5, 64))), marks=SLOW),
    ],
)
def test_the_lowered_step_is_the_program_that_fit_runs(monkeypatch, sampling):
    original = MeshProgram.__call__

    def record(self, *args):
        if type(self.job).__name__ == "TrainSteps":
            raise Seen(self.lower(*args).as_text())
        return original(self, *args)

    monkeypatch.setattr(MeshProgram, "__call__", record)
    rng = np.random.default_rng(0)
    data = (rng.normal(size=(64, 16)).astype(np.float32), rng.integers(3, size=64))
    options = dict(
        loss=losses.cross_entropy, make_tx=optax.adam, hyper=1e-3, batch_size=8, block=2
    )
    options |= sampling
    ensemble = Ensemble.init(mlp, num_members=5, seed=0, mesh=make_mesh(member=2))
    with pytest.raises(Seen) as seen:
        ensjax.fit(ensemble, data, steps=2, steps_per_call=2, progress=False, **options)
    text = lower_step(ensemble, data, steps_per_call=2, **options).as_text()
    assert text == seen.value.args[0]


# A TPU slice that is not there.

TPU_MODELS = {
    "MLP": (lambda rngs: nn.MLP(in_features=784, hidden=(256, 256), rngs=rngs), 128),
    "CNN": (lambda rngs: nn.CNN(rngs=rngs), 64),
    "ResNet-20": (lambda rngs: nn.ResNet(depth=20, rngs=rngs), 32),
    "ViT": (lambda rngs: nn.ViT(rngs=rngs), 64),
}
TPU_SHAPES = {"MLP": (784,), "ResNet-20": (32, 32, 3)}
TPU_FILE = pathlib.Path(__file__).parents[1] / "experiments/benchmarks/tpu-v5e-8x8.json"


def compile_for_tpu(requests):
    """Facts about the programs of `(model, member, data, num_members)` on v5e:8x8."""
    from jax.experimental import topologies

    devices = topologies.get_topology_desc(
        platform="tpu", topology_name="v5e:8x8"
    ).devices
    facts = []
    for name, member, data, members in requests:
        make_model, batch_size = TPU_MODELS[name]
        count = member * data
        program = lower_step(
            shapes_of(make_model, members),
            examples(TPU_SHAPES.get(name, (28, 28, 1)), 5000),
            loss=losses.cross_entropy,
            make_tx=optax.adam,
            hyper=1e-3,
            batch_size=batch_size,
            mesh=make_mesh(member=member, data=data, devices=devices[:count]),
        )
        # `as_text` cannot read operations of a TPU compiler newer than jaxlib ("Unknown
        # opcode: mulhi"), so the compiler writes its text itself.
        with tempfile.TemporaryDirectory() as folder:
            options = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
            program = program.compile(options)
            (written,) = pathlib.Path(folder).glob(
                "*TrainSteps*after_optimizations.txt"
            )
            text = written.read_text()
        memory = program.memory_analysis()
        facts.append(
            {
                "collectives": collective_axes(text, (member, data, 1)),
                "flops": program.cost_analysis()["flops"],
                "peak_bytes": memory.peak_memory_in_bytes,
                "argument_bytes": memory.argument_size_in_bytes,
            }
        )
    return facts


def lower_for_both():
    """A convolutional member with remat, lowered for the CPU first, then for a TPU."""
    from jax.experimental import topologies

    def model(rngs):
        return nn.CNN(remat=True, rngs=rngs)

    topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:8x8")
    facts = []
    for devices in (jax.devices()[:1], topology.devices[:1]):
        text = lower_step(
            shapes_of(model, 4),
            examples((28, 28, 1)),
            loss=losses.cross_entropy,
            make_tx=optax.sgd,
            hyper=0.1,
            batch_size=8,
            mesh=make_mesh(member=1, devices=devices),
        ).as_text()
        groups = re.findall(r"feature_group_count = (\d+)", text)
        loops = text.count("stablehlo.while")
        facts.append({"groups": sorted(map(int, groups)), "loops": loops})
    return facts


@pytest.mark.slow
@pytest.mark.parametrize("name", TPU_MODELS)
def test_a_tpu_slice_joins_no_members(name, in_tpu_process):
    whole, split, one = in_tpu_process(name, 64, 1, 64, name, 32, 2, 64, name, 1, 1, 1)
    stated = {
        tuple(row["mesh"]): row["peak_bytes"]
        for row in json.loads(TPU_FILE.read_text())["rows"]
        if row["model"] == name
    }
    # Compilers differ a little.
    assert whole["peak_bytes"] == pytest.approx(stated[64, 1], rel=0.1)
    assert split["peak_bytes"] == pytest.approx(stated[32, 2], rel=0.1)
    assert whole["collectives"] == []
    assert all(axes == ["data"] for _, axes in split["collectives"])
    assert all(operation == "all-reduce" for operation, _ in split["collectives"])
    assert 1 <= len(split["collectives"]) <= REDUCTIONS_OVER_DATA[name]
    assert whole["flops"] == pytest.approx(one["flops"], rel=0.02)


@pytest.mark.slow
def test_the_mesh_decides_forms_and_blocks_not_the_default_backend(in_tpu_process):
    cpu, tpu = in_tpu_process("both")
    assert cpu["loops"] > tpu["loops"]  # blocks of one member in a loop
    assert set(cpu["groups"]) == {1}
    assert 4 in tpu["groups"]  # all four members at once, plain


def write_tpu_file():
    """Peak memory of 64 members on a slice, for all models and two meshes."""
    requests = [
        (name, member, data, 64)
        for name in TPU_MODELS
        for member, data in ((64, 1), (32, 2))
    ]
    rows = [
        {
            "model": name,
            "batch": TPU_MODELS[name][1],
            "members": members,
            "mesh": [member, data],
            "peak_bytes": facts["peak_bytes"],
            "argument_bytes": facts["argument_bytes"],
            "flops": facts["flops"],
            "collectives": len(facts["collectives"]),
        }
        for (name, member, data, members), facts in zip(
            requests, compile_for_tpu(requests), strict=True
        )
    ]
    versions = {p: importlib.metadata.version(p) for p in ("jax", "libtpu")}
    about = {"topology": "v5e:8x8", "per": "device and step; compiled, not run"}
    text = json.dumps({**about, "versions": versions, "rows": rows}, indent=1)
    TPU_FILE.write_text(text + "\n")


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write_tpu_file()
    elif sys.argv[1] == "both":
        print(json.dumps(lower_for_both()))
    else:
        rows = [sys.argv[i : i + 4] for i in range(1, len(sys.argv), 4)]
        print(json.dumps(compile_for_tpu([(n, *map(int, r)) for n, *r in rows])))
