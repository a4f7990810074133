"""Infinite networks of `ntk_permutations.py`: curves, the cube, and one long stream."""

import itertools
import time

import jax
import jax.numpy as jnp
import numpy as np

import ensjax
from ensjax import ntk
from ensjax.experiment.fields import load_beside
from ensjax.ntk import two_layer
from ensjax.ntk.accuracy import accuracy_program

theory = load_beside(__file__, "ntk_permutations_theory")

SEED_STRIDE = 2**20  # between ids of draws of two seeds or repetitions
RULES = ("sign", "midpoint")
SPEED = ("members_per_second", "temporary_mib", "output_mib")  # of `speed_of`


def task_of(config, seed, k):
    """The permutation of one seed."""
    return ntk.permutation_task(ntk.draw_permutation(k, seed=config.seed + seed))


def measure_curve(config, k) -> dict[str, np.ndarray]:
    """N at which the rounded mean is right on a share of all inputs with two ones.

    As the published runs, which drew 1,000 of these inputs: networks come one by one.

    Returns:
        "first", "stays" `[kind, target, repetition]`: the first N, and the N from which
        the share is never less; "exact" `[kind, target]`: N with that chance for one
        input; "most" `[kind]`: N that were tried.
    """
    own = config.curve
    inputs = pairs(k)
    overlap = (inputs @ inputs.T).astype(int)
    shape = (len(config.kinds), len(own.targets))
    first = np.zeros((*shape, own.num_repetitions))
    stays, exact, most = np.zeros_like(first), np.zeros(shape), np.zeros(shape[:1])
    for i, kind in enumerate(config.kinds):
        law = two_layer.law(k, 2, kind=kind)
        weights = theory.cube_weights(kind, inputs)
        covariance = two_layer.covariance(k, 2, 2, overlap, kind=kind)
        for j, target in enumerate(own.targets):
            exact[i, j] = ntk.members_for_input(
                weights[:1],
                np.atleast_1d(law.variance),
                inputs[:1] > 0,
                theory.ZERO,
                delta=1 - target,
            )[0]
        most[i] = np.ceil(own.stretch * exact[i, -1])
        for repetition in range(own.num_repetitions):
            task = task_of(config, repetition, k)
            members = ntk.infinite_members(
                np.float32(weights @ task.train_targets), covariance, seed=config.seed
            )
            ids = SEED_STRIDE * repetition + np.arange(int(most[i]), dtype=np.int32)
            found, _ = ntk.accuracy_by_members(
                ntk.sample_member,
                ids,
                task.targets(inputs),
                ntk.sign_thresholds(),
                block=own.block,
                shared=(members,),
            )
            for j, target in enumerate(own.targets):
                first[i, j, repetition], stays[i, j, repetition] = ntk.members_to_reach(
                    found.rows, target
                )
    return {"first": first, "stays": stays, "exact": exact, "most": most}


def pairs(k) -> np.ndarray:
    """All inputs of k bits with two ones, `[row, bit]`."""
    rows = np.array(list(itertools.combinations(range(k), 2)))
    inputs = np.zeros((len(rows), k), np.float32)
    np.put_along_axis(inputs, rows, 1, axis=1)
    return inputs


def measure_cube(config, k) -> dict[str, np.ndarray]:
    """N* of draws of the deviation on all inputs, for each law and rounding rule.

    Returns:
        "needed" `[seed, draw, kind, rule]`.
    """
    inputs = ntk.cube_inputs(k)
    weights = np.stack([theory.cube_weights(kind, inputs) for kind in config.kinds])
    prior = ntk.cube_prior(ntk.FullyConnected(), k)
    needed = []
    for seed in range(config.num_seeds):
        task = task_of(config, seed, k)
        limits = np.stack(
            [
                np.stack(
                    [
                        np.broadcast_to(ntk.sign_thresholds(), inputs.shape),
                        ntk.midpoint_thresholds(w, inputs, task.train_targets),
                    ]
                )
                for w in weights
            ]
        )
        means = (weights @ task.train_targets)[:, None]
        ids = SEED_STRIDE * seed + jnp.arange(config.cube.num_draws, dtype=jnp.int32)
        needed.append(
            ntk.members_for_draws(
                ntk.DrawDeviation(k),
                ids,
                np.broadcast_to(means, limits.shape),
                task.targets(inputs),
                limits,
                shared=(jnp.int32(config.seed), prior, np.float32(weights)[:, None]),
            )
        )
    return {"needed": np.asarray(needed)}


def stream_stage(config, run_dir):
    """Accuracy of one long stream of infinite networks on the whole cube."""

    def compute(done):
        del done
        own, kind = config.stream, config.kinds[0]
        inputs = ntk.cube_inputs(own.num_bits)
        ones = inputs.sum(axis=1).astype(int)
        overlap = (inputs @ inputs.T).astype(int)
        task = task_of(config, 0, own.num_bits)
        weights = theory.cube_weights(kind, inputs)
        covariance = two_layer.covariance(
            own.num_bits, ones[:, None], ones[None], overlap, kind=kind
        )
        members = ntk.infinite_members(
            np.float32(weights @ task.train_targets), covariance, seed=config.seed
        )
        ids = jnp.arange(own.num_members, dtype=jnp.int32)
        grid = np.unique(np.geomspace(1, own.num_members, 400).astype(int)) - 1
        found = {"grid": grid + 1}
        limits = {
            "sign": ntk.sign_thresholds(),
            "midpoint": ntk.midpoint_thresholds(weights, inputs, task.train_targets),
        }
        for rule in RULES:
            # Few are enough where N is small.
            some = ids if rule == "sign" else ids[: max(1_000, 4 * own.block)]
            program, arguments = accuracy_program(
                ntk.sample_member,
                some,
                task.targets(inputs),
                limits[rule],
                block=own.block,
                shared=(members,),
            )
            compiled = program.lower(*arguments).compile()
            start = time.perf_counter()
            accuracy, moments = compiled(*arguments)
            accuracy = jax.device_get(accuracy)
            seconds = time.perf_counter() - start
            own_grid = grid[grid < len(some)]
            found[f"{rule}_rows"] = accuracy.rows[own_grid]
            found[f"{rule}_exact"] = accuracy.is_exact[own_grid]
            found[f"{rule}_first"] = np.array(
                [*ntk.members_to_reach(accuracy.is_exact, 1)]
            )
            if rule == "sign":
                memory = compiled.memory_analysis()
                found |= speed_of(run_dir, "stream", own.num_members, seconds, memory)
                mean, variance = ensjax.reduce.finish_moments(moments)
                found["mean_error"] = _largest_in_errors(
                    mean, weights @ task.train_targets, covariance, own.num_members
                )
                unseen = ones > 1
                expected = np.diag(covariance)[unseen, None]
                found["variance_ratio"] = np.asarray(variance)[unseen] / expected
        return found

    return compute


def _largest_in_errors(mean, expected, covariance, number):
    """Largest error of a mean over members in its standard errors, rows not trained."""
    variance = np.maximum(np.diag(covariance), 0)
    sd = np.sqrt(variance / number)[:, None]
    unseen = sd[:, 0] > 1e-6
    return np.max(np.abs(np.asarray(mean) - expected)[unseen] / sd[unseen])


def speed_of(run_dir, phase, members, seconds, memory) -> dict[str, float]:
    """Logs and returns members per second, and the bytes that the program takes.

    The process's own peak would be that of all stages before; a program says itself
    what it holds beside its arguments.

    Args:
        run_dir: whose log is written.
        phase: of the log.
        members: how many.
        seconds: that they took.
        memory: `memory_analysis()` of the compiled program.
    """
    found = {
        "members_per_second": members / seconds,
        "temporary_mib": memory.temp_size_in_bytes / 2**20,
        "output_mib": memory.output_size_in_bytes / 2**20,
    }
    run_dir.logger(phase).write(members, {"seconds": seconds, **found})
    return found
