"""One run of `fit` as a program of its own, for tests that kill it or start it twice.

python job.py DIRECTORY RESULT '{"steps": 20}' [PORT PROCESS_ID]
"""

import json
import sys
import time

import jax

if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 4 if len(sys.argv) < 5 else 2)
    if len(sys.argv) > 4:
        jax.distributed.initialize(
            f"localhost:{sys.argv[4]}", num_processes=2, process_id=int(sys.argv[5])
        )

import numpy as np
import optax

import ensjax
from ensjax.mesh import fetch

_rng = np.random.default_rng(0)
X = _rng.normal(size=(32, 16)).astype(np.float32)
Y = _rng.integers(0, 3, 32)


class Lines:
    """A logger that writes lines to a file, slowly if it is told."""

    def __init__(self, path, seconds):
        self._path, self._seconds = path, seconds

    def write(self, step, metrics):
        with open(self._path, "a") as file:
            file.write(json.dumps({"step": step, "loss": metrics["loss"]}) + "\n")
        time.sleep(self._seconds)


def make_model(rngs):
    """A member that takes a while to save."""
    return ensjax.nn.MLP(
        in_features=16, hidden=(128, 64), num_outputs=3, dropout=0.1, rngs=rngs
    )


def make_plain_model(rngs):
    """A member without draws, which is the same on every mesh."""
    return ensjax.nn.MLP(in_features=16, hidden=(128, 64), num_outputs=3, rngs=rngs)


IMAGE = (4, 4, 1)
IMAGE_MODELS = {
    "cnn": lambda rngs: ensjax.nn.CNN(
        image_shape=IMAGE, features=(4,), num_pools=1, num_outputs=3, rngs=rngs
    ),
    "resnet-8": lambda rngs: ensjax.nn.ResNet(
        depth=8, width=4, in_channels=1, num_outputs=3, rngs=rngs
    ),
    "vit": lambda rngs: ensjax.nn.ViT(
        image_shape=IMAGE,
        patch_size=(2, 2),
        width=8,
        depth=1,
        num_heads=2,
        num_outputs=3,
        rngs=rngs,
    ),
}


def data_across_processes():
    """A mesh of 2 x 2 whose axis "data" goes from one process to the other."""
    devices = jax.devices()[:4]
    return ensjax.make_mesh(
        member=2, data=2, devices=[devices[i] for i in (0, 2, 1, 3)]
    )


def run(
    directory,
    *,
    steps,
    layout="member",
    seconds=0.0,
    checkpoints=True,
    model_name=None,
):
    """Trains on four devices: members split, or members and a stream of data.

    The layout "same rows" streams to members that are split: every process must be fed
    the same batches, and is not.
    """
    options, model, held_out = {}, make_model, (X, Y)
    if layout in ("member", "same rows"):
        mesh = ensjax.make_mesh(member=4, devices=jax.devices()[:4])
        data = (X, Y)
        if layout == "same rows":
            shift = jax.process_index()
            data = ensjax.data.stream((X + shift, Y), batch_size=8, seed=1)
        if model_name:
            model = IMAGE_MODELS[model_name]
            data = held_out = (X.reshape(-1, *IMAGE), Y)
    else:
        mesh, model = data_across_processes(), make_plain_model
        data = ensjax.data.stream(
            (X, Y),
            batch_size=8,
            seed=1,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        options = dict(shard_state=layout == "split state")
    return ensjax.fit(
        # Five members: padded to eight rows, or to six.
        ensjax.Ensemble.init(model, num_members=5, mesh=mesh),
        data,
        loss=ensjax.losses.cross_entropy,
        make_tx=lambda lr: optax.adam(lr, eps=1e-3),
        hyper=1e-3,
        steps=steps,
        batch_size=8,
        steps_per_call=2,
        log_every_steps=2,
        evaluation=held_out,
        early_stopping=ensjax.EarlyStopping(patience=None),
        checkpoint_dir=f"{directory}/checkpoints" if checkpoints else None,
        save_every_steps=2 if checkpoints else None,
        logger=Lines(f"{directory}/lines-{jax.process_index()}.jsonl", seconds),
        progress=False,
        **options,
    )


def main(directory, result, options):
    """Trains, and writes weights and where the run began."""
    options = json.loads(options)
    saves = options.pop("save", False)
    ensemble, log = run(directory, **options)
    if saves:
        ensemble.save(f"{directory}/ensemble")
    leaves = fetch(jax.tree.leaves(ensemble.params))
    if jax.process_index() == 0:
        np.savez(
            result, *leaves, resumed_step=log.resumed_step, loss=log.metrics["loss"]
        )


if __name__ == "__main__":
    main(*sys.argv[1:4])
