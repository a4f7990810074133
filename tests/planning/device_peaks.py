"""Plans against the peaks that a device counts itself, where it counts: on GPUs.

    python tests/planning/device_peaks.py --json peaks.json

Every job runs in a process of its own, since a device's peak is that of its process:
the plan first, from shapes, then a short `fit`, then the allocator's own number. All
run twice with a compilation cache, and the second time counts: a GPU's compiler tries
variants of kernels on the device, which takes memory that no program needs. A plan that
is off by more than 5 % is a failure; the exit code says so.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np

MOST_OFF = 0.05
STEPS = 4

# Members, examples of a batch and of the data, one input, block.
JOBS = {
    "wrn-28-10": (8, 64, 1024, (32, 32, 3), 1),
    "mlp": (256, 128, 4000, (784,), "auto"),
    "cnn": (64, 64, 4000, (28, 28, 1), "auto"),
    "vit": (64, 32, 4000, (28, 28, 1), "auto"),
    "resnet-20": (64, 32, 1024, (32, 32, 3), "auto"),
    "resnet-20 by one": (64, 32, 1024, (32, 32, 3), 1),
}


def _make_model(name):
    from ensjax import nn

    kind = name.split()[0]
    makers = {
        "mlp": lambda rngs: nn.MLP(in_features=784, hidden=(256, 256), rngs=rngs),
        "cnn": lambda rngs: nn.CNN(features=(16, 32, 32), rngs=rngs),
        "vit": lambda rngs: nn.ViT(patch_size=(7, 7), width=64, depth=2, rngs=rngs),
        "resnet-20": lambda rngs: nn.ResNet(depth=20, rngs=rngs),
        "wrn-28-10": lambda rngs: nn.wide_resnet(depth=28, width=10, rngs=rngs),
    }
    return makers[kind]


def measure(name: str) -> dict:
    """The plan of a job and the device's own peak, in this process."""
    import jax
    import optax

    from ensjax import losses, make_mesh
    from ensjax.planning import plan
    from ensjax.train import TrainingJob

    num_members, batch_size, num_examples, shape, block = JOBS[name]
    rng = np.random.default_rng(0)
    held_out = num_examples // 4

    def examples(count):
        x = rng.normal(size=(count, *shape)).astype(np.float32)
        return x, rng.integers(0, 10, count).astype(np.int32)

    job = TrainingJob(
        make_model=_make_model(name),
        member_ids=tuple(range(num_members)),
        init_seed=0,
        data=examples(num_examples),
        hyper=np.full(num_members, 1e-3, np.float32),
        mesh_sizes=dict(member=1),
        options=dict(
            loss=losses.cross_entropy,
            make_tx=optax.adam,
            steps=STEPS,
            batch_size=batch_size,
            block=block,
            evaluation=examples(held_out),
        ),
    )
    mesh = make_mesh(member=1, devices=jax.devices()[:1])
    device = jax.devices()[0]
    planned = plan(job, mesh=mesh, costs=False)
    after_plan = (device.memory_stats() or {}).get("peak_bytes_in_use")
    rises = _watch_rises(device)
    job.fit()
    stats = device.memory_stats() or {}
    return {
        "job": name,
        "members": num_members,
        "batch": batch_size,
        "block": block,
        "device": device.device_kind,
        "jax": jax.__version__,
        "planned_bytes": planned.peak_bytes,
        "programs": {p.name: p.peak_bytes for p in planned.programs},
        "arrays": planned.arrays,
        "device_bytes": stats.get("peak_bytes_in_use"),
        # Nothing, where all programs came from the cache.
        "device_bytes_after_plan": after_plan,
        "compile_seconds": planned.compile_seconds,
        # Programs that raised the peak: in use before them, and the peak after.
        "rises": rises,
    }


def _watch_rises(device):
    import jax

    from ensjax.mapping import MeshProgram

    rises, call = [], MeshProgram.__call__

    def watched(self, *args):
        before = device.memory_stats() or {}
        result = jax.block_until_ready(call(self, *args))
        after = device.memory_stats() or {}
        if after.get("peak_bytes_in_use") != before.get("peak_bytes_in_use"):
            name = type(self.job).__name__
            keys = (before["bytes_in_use"], before["peak_bytes_in_use"])
            rises.append((name, *keys, after["peak_bytes_in_use"]))
        return result

    MeshProgram.__call__ = watched
    return rises


def _in_process(name, cache, at_once):
    environment = {
        # Taken in one piece, as by default: an allocator that grows leaves gaps.
        "XLA_PYTHON_CLIENT_MEM_FRACTION": f"{0.8 / at_once:.3f}",
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    command = [sys.executable, __file__, "--one", name]
    done = subprocess.run(command, env=environment, text=True, capture_output=True)
    if done.returncode:
        return {"job": name, "error": done.stderr[-2000:]}
    return json.loads(done.stdout.splitlines()[-1])


def main() -> int:
    """Measures all jobs; returns 1 if a plan is off, 3 if the device does not count."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", default=",".join(JOBS))
    parser.add_argument("--one", help="measure one job in this process")
    parser.add_argument("--at-once", type=int, default=1, help="processes at a time")
    parser.add_argument("--cache", help="a compilation cache to go on with")
    parser.add_argument("--json", help="write the rows here")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one)))
        return 0
    code, rows, names = 0, [], options.jobs.split(",")
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(options.at_once))
        cache = options.cache or stack.enter_context(tempfile.TemporaryDirectory())

        def run(name):
            return _in_process(name, cache, options.at_once)

        list(pool.map(run, names))  # fills the cache
        for row in pool.map(run, names):
            rows.append(row)
            code = max(code, _judge(row))
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"rows": rows}, file, indent=1)
            file.write("\n")
    return code


def _judge(row):
    if "error" in row:
        print(f"{row['job']}: failed\n{row['error']}")
        return 1
    if row["device_bytes"] is None:
        print(f"{row['job']}: {row['device']} does not count its memory")
        return 3
    ratio = row["planned_bytes"] / row["device_bytes"]
    row["ratio"] = ratio
    is_off = abs(ratio - 1) > MOST_OFF
    print(
        f"{row['job']}, M = {row['members']}, batch {row['batch']}, block"
        f" {row['block']}: planned {row['planned_bytes'] / 2**20:,.1f} MiB, device"
        f" {row['device_bytes'] / 2**20:,.1f} MiB, ratio {ratio:.3f}"
        f" ({'OFF' if is_off else 'ok'})",
        flush=True,
    )
    return int(is_off)


if __name__ == "__main__":
    sys.exit(main())
