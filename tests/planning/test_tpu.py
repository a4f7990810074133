"""Plans for a TPU slice that is not there, by its own compiler.

Run as a script, `python tests/planning/test_tpu.py plan MODEL MEMBER DATA ...` prints
plans as JSON; `... write MODEL ...` puts their numbers into the file of benchmarks, and
`... add REPORT MODEL` those of a report that `ensjax plan --json` wrote.
"""

import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ensjax import losses, make_mesh, nn
from ensjax.planning import NoTopology, Plan, plan, topology_devices
from ensjax.train import TrainingJob, lower_step

MODELS = {
    "MLP": (lambda rngs: nn.MLP(in_features=784, hidden=(256, 256), rngs=rngs), 128),
    "CNN": (lambda rngs: nn.CNN(rngs=rngs), 64),
    "ResNet-20": (lambda rngs: nn.ResNet(depth=20, rngs=rngs), 32),
    "ViT": (lambda rngs: nn.ViT(rngs=rngs), 64),
}
SHAPES = {"MLP": (784,), "ResNet-20": (32, 32, 3)}
MESHES = ((64, 1), (32, 2))
FILE = pathlib.Path(__file__).parents[2] / "experiments/benchmarks/plan-v5e-8x8.json"
TOPOLOGY, NUM_MEMBERS, STEPS_PER_CALL = "v5e:8x8", 64, 50


def examples(name, count):
    shape = SHAPES.get(name, (28, 28, 1))
    return (
        jax.ShapeDtypeStruct((count, *shape), jnp.float32),
        jax.ShapeDtypeStruct((count,), jnp.int32),
    )


def job_of(name):
    make_model, batch_size = MODELS[name]
    return TrainingJob(
        make_model=make_model,
        member_ids=tuple(range(NUM_MEMBERS)),
        init_seed=0,
        data=examples(name, 5000),
        hyper=np.full(NUM_MEMBERS, 1e-3, np.float32),
        mesh_sizes=dict(member=-1),
        options=dict(
            loss=losses.cross_entropy,
            make_tx=optax.adam,
            steps=1000,
            batch_size=batch_size,
            steps_per_call=STEPS_PER_CALL,
            evaluation=examples(name, 1000),
            evaluate_every_steps=100,
        ),
    )


def plan_for_tpu(requests):
    """The plan for each `(model, member, data)`, and the peak of the same program.

    That one is lowered and compiled apart from planning, as `fit` would compile it.
    """
    devices, found = topology_devices(TOPOLOGY), []
    for name, member, data in requests:
        job = job_of(name)
        mesh = make_mesh(member=member, data=data, devices=devices[: member * data])
        planned = plan(job, mesh=mesh, say=lambda text: print(text, file=sys.stderr))
        program = lower_step(
            job.abstract_ensemble(mesh),
            job.data,
            loss=losses.cross_entropy,
            make_tx=optax.adam,
            hyper=job.hyper,
            batch_size=job.options["batch_size"],
            steps_per_call=STEPS_PER_CALL,
            mesh=mesh,
        ).compile()
        peak = program.memory_analysis().peak_memory_in_bytes
        found.append({"plan": planned.to_json(), "training_peak_bytes": peak})
    return found


def test_without_libtpu_one_line_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    with pytest.raises(NoTopology, match="needs one GPU of that kind here"):
        topology_devices("gpu:2x8")
    with pytest.raises(NoTopology, match="hosts and GPUs of each, such as gpu:2x8"):
        topology_devices("gpu:16")
    with pytest.raises(NoTopology, match=r"pip install 'ensjax\[tpu-plan\]'"):
        topology_devices(TOPOLOGY)


@pytest.mark.slow
@pytest.mark.parametrize("name, mesh", [("MLP", (32, 2)), ("CNN", (64, 1))])
def test_the_peak_is_that_of_the_tpu_compiler(name, mesh, in_tpu_process):
    (found,) = in_tpu_process("plan", name, *mesh)
    planned = Plan.from_json(found["plan"])
    assert planned.platform == "tpu" and planned.num_devices == 64
    training = planned.programs[0]
    compiled = found["training_peak_bytes"]
    assert training.program_peak_bytes == pytest.approx(compiled, rel=0.05)
    held = ("members as given", "members as padded", "evaluation data")
    beside = sum(planned.arrays[key] for key in held)
    assert planned.peak_bytes >= training.program_peak_bytes + beside
    # The committed numbers; compilers differ a little.
    stated = {
        (r["model"], *r["mesh"][:2]): r for r in json.loads(FILE.read_text())["rows"]
    }
    row = stated[name, *mesh]
    assert planned.peak_bytes == pytest.approx(row["peak_bytes"], rel=0.1)
    assert planned.step.flops == pytest.approx(row["flops_per_step"], rel=0.02)
    axes = {c.axes for c in planned.step.collectives}
    assert axes == ({("data",)} if mesh[1] > 1 else set())


def row_of(name, planned, others):
    """What the file of benchmarks holds of a plan."""
    return {
        "model": name,
        "members": planned.num_members,
        "batch": planned.batch_size,
        "mesh": list(planned.mesh.values()),
        "steps_per_call": planned.steps_per_call,
        "parameters": planned.member.parameters,
        "peak_bytes": planned.peak_bytes,
        "programs": {
            p.name: {
                "argument_bytes": p.argument_bytes,
                "temporary_bytes": p.temporary_bytes,
                "program_peak_bytes": p.program_peak_bytes,
                "beside_bytes": p.beside_bytes,
                "compile_seconds": round(p.compile_seconds, 1),
            }
            for p in planned.programs
        },
        "flops_per_step": planned.step.flops,
        "bytes_per_step": planned.step.bytes_moved,
        "collectives": [
            [c.operation, "+".join(c.axes), c.count, c.result_bytes]
            for c in planned.step.collectives
        ],
        "checkpoint_bytes": planned.checkpoint_bytes,
        **others,
    }


def write_rows(rows):
    """Puts rows into the file, in place of those of the same model and mesh."""
    from ensjax.experiment.versions import package_version

    versions = {name: package_version(name) for name in ("jax", "libtpu")}
    stored = json.loads(FILE.read_text())["rows"] if FILE.exists() else []
    key = lambda row: (row["model"], row["batch"], *row["mesh"])  # noqa: E731
    merged = {key(row): row for row in stored} | {key(row): row for row in rows}
    about = {
        "topology": TOPOLOGY,
        "per": "device; compiled, not run; compilation on a busy machine of two cores",
        "versions": versions,
    }
    text = json.dumps({**about, "rows": list(merged.values())}, indent=1)
    FILE.write_text(text + "\n")


def main(command, *arguments):
    if command == "plan":
        requests = [arguments[i : i + 3] for i in range(0, len(arguments), 3)]
        print(json.dumps(plan_for_tpu([(n, int(m), int(d)) for n, m, d in requests])))
    elif command == "write":
        for name in arguments:
            requests = [(name, *mesh) for mesh in MESHES]
            for found in plan_for_tpu(requests):
                others = {"training_peak_bytes": found["training_peak_bytes"]}
                write_rows([row_of(name, Plan.from_json(found["plan"]), others)])
    else:
        path, name = arguments
        report = json.loads(pathlib.Path(path).read_text())
        write_rows([row_of(name, Plan.from_json(report["plan"]), {})])


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    main(*sys.argv[1:])
