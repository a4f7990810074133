"""Finite networks of `ntk_permutations.py`: means, variances, and how they add."""

import time

import jax.numpy as jnp
import numpy as np

import ensjax
from ensjax import ntk
from ensjax.experiment import ConfigError
from ensjax.experiment.fields import load_beside
from ensjax.mesh import fetch
from ensjax.ntk import two_layer
from ensjax.planning import MappedJob

draws = load_beside(__file__, "ntk_permutations_draws")
theory = load_beside(__file__, "ntk_permutations_theory")

SEED_STRIDE = 10_000  # between ids of members of two seeds
TOLERANCE = 10  # of the sign rule for trained networks, in residuals of their training


def spec_of(parameterisation):
    """The network of the paper: two layers, ReLU, no biases."""
    return ntk.FullyConnected(parameterisation=parameterisation)


def schedule_of(config, parameterisation, k, width, fraction=None):
    """Learning rate and steps of one architecture, from its kernel."""
    return ntk.training_schedule(
        spec_of(parameterisation),
        np.eye(k),
        residual=config.networks.residual,
        fraction=config.networks.rate_fraction if fraction is None else fraction,
        width=width if parameterisation == "standard" else None,
    )


def mapped_job(config, kind=None, k=None) -> MappedJob:
    """The networks of all seeds, of one law and k, as one program: what runs.

    By default of the first law and the largest k, which `ensjax plan` shows: with the
    NTK all layers learn, and a step costs most.
    """
    own, kind = config.networks, config.kinds[0] if kind is None else kind
    k = max(own.num_bits) if k is None else k
    schedule = schedule_of(config, kind, k, own.width)
    train = ntk.TrainNetwork(spec_of(kind), own.width, schedule.steps)
    targets = [
        draws.task_of(config, s, k).train_targets for s in range(config.num_seeds)
    ]
    return MappedJob(
        fn=train,
        kinds=("member", *("shared",) * 3, "member", "shared"),
        arguments=(
            member_ids(config),
            np.int32(config.seed),
            np.float32(schedule.learning_rate),
            np.eye(k, dtype=np.float32),
            np.repeat(np.stack(targets), own.num_members, axis=0),
            inputs_of(config, k),
        ),
        mesh_sizes=config.mesh.to_dict(),
        block=block_of(config),
        params=train.abstract_params(k, k),
        steps=schedule.steps,
        written_out=train.written_out,
        block_field="networks.block",
    )


def member_ids(config) -> np.ndarray:
    """Ids of the networks of all seeds, int32 `[seed * member]`."""
    first = SEED_STRIDE * np.arange(config.num_seeds)
    own = np.arange(config.networks.num_members)
    return (first[:, None] + own[None]).reshape(-1).astype(np.int32)


def block_of(config):
    """Members of a device that run at once, as `map_members` takes it.

    Raises:
        ConfigError: if the field is neither "auto", "all" nor a number above 0.
    """
    block = config.networks.block
    if block in ("auto", "all"):
        return None if block == "all" else "auto"
    if not str(block).isdecimal() or int(block) < 1:
        raise ConfigError(
            'config.networks.block is "auto", "all" (members of a device at once), or'
            f" how many, at least 1; got {block!r}."
        )
    return int(block)


def inputs_of(config, k) -> np.ndarray:
    """The whole cube where it is small, else draws with two ones, as published."""
    return ntk.inputs_to_try(
        k,
        num_rows=config.networks.num_inputs,
        seed=config.seed,
        num_ones=2,
        max_cube_bits=config.networks.cube_bits,
    )


def stage(config, run_dir, k):
    """All networks of one k: those of all seeds are one program for each law."""

    def compute(done):
        del done
        own = config.networks
        inputs = inputs_of(config, k)
        tasks = [draws.task_of(config, seed, k) for seed in range(config.num_seeds)]
        found, speeds = {}, {}
        for kind in config.kinds:
            job = mapped_job(config, kind, k)
            mesh = job.mesh()
            program, arguments = job.compile(mesh), job.placed_arguments(mesh)
            start = time.perf_counter()
            outputs = fetch(program(*arguments))
            speed = draws.speed_of(
                run_dir,
                f"networks-{k}-{kind}",
                job.num_members,
                time.perf_counter() - start,
                program.memory_analysis(),
            )
            for name, value in speed.items():
                speeds.setdefault(name, []).append(value)
            outputs = outputs.reshape(
                config.num_seeds, own.num_members, *outputs.shape[1:]
            )
            for seed, task in enumerate(tasks):
                values = _measure(config, kind, task, inputs, outputs[seed])
                for name, value in values.items():
                    found.setdefault(name, []).append(value)
        shape = (len(config.kinds), config.num_seeds)
        return {
            name: np.reshape(values, (*shape, *np.shape(values)[1:]))
            for name, values in found.items()
        } | {name: np.array(values) for name, values in speeds.items()}

    return compute


def _measure(config, kind, task, inputs, outputs):
    """Means and variances by number of ones, and accuracy for every N, of one seed.

    Args:
        kind: of the law.
        task: of the seed.
        inputs: `[row, bit]`.
        outputs: of its networks, `[member, row, output]`.

    Returns:
        "mean", "error" `[ones, bit value]` (0, then 1; error is standard), "variance"
        `[ones]`, "rows" and "bits" `[member]`: accuracy of the first N; "oracle"
        `[member]`: share of rows that the law says are right at N, on average.
    """
    targets, ones = task.targets(inputs), inputs.sum(axis=1).astype(int)
    means, errors, variances = [], [], []
    for count in config.networks.ones:
        rows = ones == count
        if not rows.any():
            means.append((np.nan, np.nan))
            errors.append((np.nan, np.nan))
            variances.append(np.nan)
            continue
        # Inputs and outputs of one network go together: its own mean is one number.
        by_member = np.array(
            [
                outputs[:, rows][:, targets[rows] == value].mean(axis=1)
                for value in (0, 1)
            ]
        )
        means.append(by_member.mean(axis=1))
        errors.append(by_member.std(axis=1, ddof=1) / np.sqrt(len(outputs)))
        variances.append(outputs[:, rows].var(axis=0, ddof=1).mean())
    # Training rows' zeros keep a share of the residual, which is no bit.
    limits = ntk.sign_thresholds(TOLERANCE * config.networks.residual)
    accuracy, _ = ntk.accuracy_by_members(
        _same, outputs, targets, limits, block=len(outputs)
    )
    law = two_layer.law(inputs.shape[1], ones, kind=kind)
    mean = theory.cube_weights(kind, inputs) @ task.train_targets
    oracle = [
        np.exp(ntk.log_probability(mean, law.variance, targets, limits, number)).mean()
        for number in range(1, len(outputs) + 1)
    ]
    return {
        "mean": np.array(means),
        "error": np.array(errors),
        "variance": np.array(variances),
        "rows": np.asarray(accuracy.rows),
        "bits": np.asarray(accuracy.bits),
        "oracle": np.array(oracle),
    }


def _same(outputs):
    return outputs


def measure_task(config) -> dict[str, np.ndarray]:
    """Finite networks that add, against the law: theory's other tasks, trained.

    They are asked for every input that occurs while all pairs of numbers are added.

    Returns:
        `[kind]`: "largest", "rms" of the means' distances from the law in standard
        errors, over unseen inputs and outputs that some rule sets; "variance": over
        the law's, mean; "right": share of sums that the rounded mean of all networks
        has right at every step; "stays": N from which all are; "members": N of the
        hardest input by the law; "inputs": how many.
    """
    own = config.tasks
    task, operands = theory.make_tasks(config)[1]
    met = []

    def right(inputs):
        met.append(inputs)
        return task.targets(inputs)

    task.execute(task.start(*operands), right)
    rows, place = np.unique(np.concatenate(met), axis=0, return_inverse=True)
    place = place.reshape(len(met), -1)  # [step, operand]
    some, unseen, used = rows.any(axis=1), rows.sum(axis=1) > 1, task.set_outputs
    expected, found = task.targets(rows), {}
    for kind in config.kinds:
        schedule = ntk.training_schedule(
            spec_of(kind),
            task.train_inputs,
            residual=config.networks.residual,
            fraction=config.networks.rate_fraction,
        )
        train = ensjax.map_members(
            ntk.TrainNetwork(spec_of(kind), own.width, schedule.steps),
            kinds=("member", *("shared",) * 5),
            mesh=ensjax.make_mesh(**config.mesh.to_dict()),
        )
        outputs = fetch(
            train(
                np.arange(own.num_networks, dtype=np.int32),
                jnp.int32(config.seed),
                np.float32(schedule.learning_rate),
                task.train_inputs,
                task.train_targets,
                rows,
            )
        )
        mean = np.zeros(expected.shape)
        mean[some] = theory.cube_weights(kind, rows[some]) @ task.train_targets
        law = two_layer.law(
            rows.shape[1], rows[unseen].sum(axis=1).astype(int), kind=kind
        )
        chosen = outputs[:, unseen][:, :, used]
        error = chosen.std(axis=0, ddof=1) / np.sqrt(len(chosen))
        away = (chosen.mean(axis=0) - mean[unseen][:, used]) / error
        limits = ntk.sign_thresholds(TOLERANCE * config.networks.residual)
        counts = np.arange(1, len(outputs) + 1)[:, None, None]
        bits = np.asarray(ntk.round_bits(np.cumsum(outputs, axis=0) / counts, limits))
        is_right = (bits == expected)[:, :, used].all(axis=2)  # [N, row]
        sums = is_right[:, place].all(axis=1)  # [N, operand]
        _, stays = ntk.members_to_reach(sums.all(axis=1), 1.0)
        values = {
            "largest": np.abs(away).max(),
            "rms": np.sqrt(np.mean(away**2)),
            "variance": (chosen.var(axis=0, ddof=1) / law.variance[:, None]).mean(),
            "right": sums[-1].mean(),
            "stays": stays,
            "members": theory.members_of_hardest(config, kind, task, rows[unseen]),
        }
        for name, value in values.items():
            found.setdefault(name, []).append(value)
    return {name: np.array(value) for name, value in found.items()} | {
        "inputs": np.array(len(rows))
    }
