"""Votes against networks on few rows, in `hybrid_voting.py`: accuracy and seconds.

The networks of all splits, row counts and members are one stack; each draws its batches
from its own few rows.
"""

import functools
import time
from typing import NamedTuple

import jax
import numpy as np
import optax

import ensjax
from ensjax import combine, data, losses, nn
from ensjax.experiment.fields import load_beside
from ensjax.graphs import Forward
from ensjax.mapping import map_members
from ensjax.train import TrainingJob

images = load_beside(__file__, "hybrid_voting_images")
members = load_beside(__file__, "hybrid_voting_members")

SEED_STRIDE, COUNT_STRIDE = 2**16, 2**8
NUM_FEATURES = 13
STAGE = "small-data"


def draw_tasks(config, described) -> list[dict[str, np.ndarray]]:
    """Training and test rows of every split and row count, scaled by the former.

    Row counts that leave too few rows are cut to what there is. A smaller training set
    lies within the larger ones of its split.
    """
    labels, tasks = described["labels"], []
    for seed in range(config.num_image_sets):
        train, test = images.split_patients(described, config, seed)
        for count in config.row_counts:
            own = train
            if count < len(train):
                kept = len(train) - count
                own = train[
                    data.train_test_split(
                        len(train),
                        test_size=kept,
                        seed=config.seed + seed,
                        labels=labels[train],
                    )[0]
                ]
            texture = described["texture"]
            x_train, x_test = members.scale(texture[own], texture[test])
            tasks.append(
                {
                    "x_train": x_train.astype(np.float32),
                    "x_test": x_test.astype(np.float32),
                    "y_train": labels[own],
                    "y_test": labels[test],
                }
            )
    return tasks


class Training(NamedTuple):
    """The training rows of all tasks behind each other, and how many each task has."""

    x: np.ndarray
    y: np.ndarray
    sizes: list[int]


def join_tasks(tasks) -> Training:
    """The training rows of tasks."""
    return Training(
        np.concatenate([task["x_train"] for task in tasks]),
        np.concatenate([task["y_train"] for task in tasks]).astype(np.int32),
        [len(task["y_train"]) for task in tasks],
    )


def task_shapes(config) -> Training:
    """Shapes of the rows of `num_images` slices that are not at hand."""
    left = config.num_images - round(config.test_share * config.num_images)
    sizes = [min(count, left) for count in config.row_counts] * config.num_image_sets
    return Training(
        jax.ShapeDtypeStruct((sum(sizes), NUM_FEATURES), np.float32),
        jax.ShapeDtypeStruct((sum(sizes),), np.int32),
        sizes,
    )


def training_job(config, training: Training) -> TrainingJob:
    """All networks: splits x row counts x members."""
    sizes = training.sizes
    starts = np.concatenate([[0], np.cumsum(sizes)])
    weights = np.zeros((len(sizes), starts[-1]), np.float32)
    for number, size in enumerate(sizes):
        weights[number, starts[number] : starts[number] + size] = 1.0
    ids = [
        SEED_STRIDE * seed + COUNT_STRIDE * count + member
        for seed in range(config.num_image_sets)
        for count in range(len(config.row_counts))
        for member in range(config.num_members)
    ]
    return TrainingJob(
        make_model=functools.partial(make_model, config),
        member_ids=tuple(ids),
        init_seed=config.seed,
        data=(training.x, training.y),
        hyper=np.full(len(ids), config.learning_rate, np.float32),
        mesh_sizes=config.mesh.to_dict(),
        options=dict(
            loss=losses.cross_entropy,
            make_tx=optax.adam,
            steps=config.total_steps,
            batch_size=config.batch_size,
            seed=config.seed,
            sampling="weighted",
            weights=np.repeat(weights, config.num_members, axis=0),
            steps_per_call=config.steps_per_call,
            log_every_steps=config.steps_per_call,
        ),
        stage=STAGE,
    )


def make_model(config, rngs):
    """One network on the thirteen texture features."""
    return nn.MLP(
        in_features=NUM_FEATURES,
        hidden=tuple(config.hidden),
        num_outputs=2,
        rngs=rngs,
    )


def measure(config, described, run_dir) -> dict[str, np.ndarray]:
    """Accuracies `[split, row count]` of the vote, its members and the networks.

    "network" is the mean network alone, "ensemble" the mean of five's probabilities.
    "vote_seconds" `[split, row count]` fit three classifiers; "ensemble_seconds" is the
    stack's training divided by its ensembles, compilation included.
    """
    tasks = draw_tasks(config, described)
    start = time.perf_counter()
    job = training_job(config, join_tasks(tasks))
    ensemble, _ = job.fit(
        checkpoint_dir=run_dir.checkpoints / STAGE,
        logger=run_dir.logger(STAGE),
        save_every_steps=config.total_steps,
        members_from=[others / STAGE for others in run_dir.members_from],
    )
    seconds = (time.perf_counter() - start) / len(tasks)
    # Test sets of a folder differ in size; padded rows are cut off again.
    longest = max(len(task["y_test"]) for task in tasks)
    x_test = np.zeros((len(tasks), longest, NUM_FEATURES), np.float32)
    for number, task in enumerate(tasks):
        x_test[number, : len(task["y_test"])] = task["x_test"]
    forward = map_members(
        Forward(ensemble.graph),
        kinds=("member", "member_batch"),
        out="member_batch",
        mesh=ensemble.mesh,
    )
    repeated = np.repeat(x_test, config.num_members, axis=0)
    logits = ensjax.mesh.fetch(forward(ensemble.state, repeated))
    logits = logits.reshape(len(tasks), config.num_members, longest, 2)
    found = {k: [] for k in ("vote", "mean_member", "network", "ensemble", "seconds")}
    for number, (task, own) in enumerate(zip(tasks, logits)):
        labels = task["y_test"]
        own = own[:, : len(labels)]
        pooled = np.asarray(combine.mean_probs(own))
        seed = config.seed + number // len(config.row_counts)
        said = members.vote(
            members.make_members(config, seed),
            task["x_train"],
            task["y_train"],
            task["x_test"],
        )
        accuracy = members.accuracies(said, labels)
        found["vote"].append(accuracy["hard"])
        found["mean_member"].append(accuracy["members"].mean())
        found["network"].append((own.argmax(-1) == labels).mean())
        found["ensemble"].append((pooled.argmax(-1) == labels).mean())
        found["seconds"].append(said.seconds)
    shape = config.num_image_sets, len(config.row_counts)
    arrays = {name: np.reshape(values, shape) for name, values in found.items()}
    arrays["vote_seconds"] = arrays.pop("seconds")
    return arrays | {"ensemble_seconds": np.asarray(seconds)}
