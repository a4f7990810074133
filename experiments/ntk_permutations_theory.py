"""What is exact of `ntk_permutations.py`: closed forms, one input, bounds, other tasks.

Float64 on the host, but for the algebra of kernels that the closed forms are held
against.
"""

import jax
import numpy as np
from scipy.special import gammaln

from ensjax import ntk
from ensjax.ntk import two_layer

ZERO = ntk.sign_thresholds(0.0)
SURE = (0.5, 0.1, 0.01, 0.001)  # chances of an error of N from the union bound


def measure(config) -> dict[str, np.ndarray]:
    """Errors of the closed forms, and the numbers for one input and for bounds.

    Returns:
        "form_errors" `[kind, k, quantity]` of f1 and f0, of the variance and of the
        covariance; "least_one", "largest_zero" `[kind]`: the extremes of f1 and k f0
        over all m >= 2 and k; "one" and "one_large" `[kind, delta, k]`, "hardest" and
        "hardest_large" alike (m); "cube_sure" `[kind, delta, k]`: N at which all inputs
        are right but for a chance of at most delta; "cube_bound",
        "cube_textbook", "one_textbook" `[kind, k]` for k = 2, ..., 30.
    """
    bound_bits = np.arange(2, 31)
    return {
        "form_errors": _for_each(config, config.forms.num_bits, _form_errors),
        **_extremes(config),
        **_for_one_input(config, config.growth.num_bits, ""),
        **_for_one_input(config, config.growth.large_bits, "_large"),
        "cube_sure": np.stack(
            [
                _for_each(config, config.cube.num_bits, _cube_bound, delta)
                for delta in SURE
            ],
            axis=1,
        ),
        "bound_bits": bound_bits,
        "cube_bound": _for_each(config, bound_bits, _cube_bound, config.delta),
        "cube_textbook": _for_each(config, bound_bits, _cube_textbook, config.delta),
        "one_textbook": _for_each(config, bound_bits, _one_textbook, config.delta),
    }


def _for_each(config, sizes, function, *arguments):
    """`function(kind, k, ...)` for every law and k, `[kind, k, ...]`."""
    return np.array(
        [[function(kind, k, *arguments) for k in sizes] for kind in config.kinds]
    )


def _form_errors(kind, k):
    """Largest absolute differences of closed forms and kernel algebra, `[quantity]`."""
    ones = np.arange(1, k + 1)
    inputs = (np.arange(k)[None] < ones[:, None]).astype(np.float64)  # nested
    spec = ntk.FullyConnected(parameterisation=kind)
    with jax.enable_x64(True):
        predictor = ntk.predictor(spec, np.eye(k), inputs)
        weights = np.asarray(ntk.weights(predictor))
        covariance = np.asarray(ntk.covariance(predictor))
    law = two_layer.law(k, ones, kind=kind)
    expected = np.where(inputs > 0, law.on_one[:, None], law.on_zero[:, None])
    overlap = np.minimum(ones[:, None], ones[None])
    closed = two_layer.covariance(k, ones[:, None], ones[None], overlap, kind=kind)
    return (
        np.abs(weights - expected).max(),
        np.abs(np.diag(covariance) - law.variance).max(),
        np.abs(covariance - closed).max(),
    )


def _extremes(config):
    least, largest = [], []
    for kind in config.kinds:
        laws = [
            two_layer.law(k, np.arange(2, k + 1), kind=kind)
            for k in range(2, config.forms.max_bits + 1)
        ]
        least.append(min(law.on_one.min() for law in laws))
        largest.append(max((law.num_bits * law.on_zero).max() for law in laws))
    return {"least_one": np.array(least), "largest_zero": np.array(largest)}


def _for_one_input(config, sizes, suffix):
    """N of the input that needs most, for each kernel, delta and k."""
    shape = (len(config.kinds), len(config.growth.deltas), len(sizes))
    numbers, hardest = np.zeros(shape), np.zeros(shape)
    for i, kind in enumerate(config.kinds):
        for place, k in enumerate(sizes):
            ones = np.arange(2, k + 1)
            law, mean, targets, counts = _classes(kind, k, ones)
            for j, delta in enumerate(config.growth.deltas):
                needed = ntk.members_for_input(
                    mean, law.variance, targets, ZERO, delta=delta, counts=counts
                )
                numbers[i, j, place] = needed.max()
                hardest[i, j, place] = ones[needed.argmax()]
    return {f"one{suffix}": numbers, f"hardest{suffix}": hardest}


def _classes(kind, k, ones):
    """Law, means, targets and counts of the ones and zeros of an input, `[ones, 2]`."""
    law = two_layer.law(k, ones, kind=kind)
    mean = np.stack([law.on_one, law.on_zero], axis=1)
    counts = np.stack([ones, k - ones], axis=1)
    return law, mean, np.broadcast_to([1, 0], mean.shape), counts


def _cube_bound(kind, k, delta):
    """Union bound over all bits of all inputs but the training rows."""
    ones = np.arange(2, k + 1)
    law, mean, targets, counts = _classes(kind, k, ones)
    inputs = gammaln(k + 1) - gammaln(ones + 1) - gammaln(k - ones + 1)
    with np.errstate(divide="ignore"):  # an input of ones alone has no zero
        log_counts = inputs[:, None] + np.log(counts)
    return ntk.union_bound(
        mean, law.variance, targets, ZERO, delta=delta, log_counts=log_counts
    )


def _one_textbook(kind, k, delta):
    return _textbook(kind, k, delta, k)


def _cube_textbook(kind, k, delta):
    return _textbook(kind, k, delta, k * (2.0**k - 1))


def _textbook(kind, k, delta, events):
    """The textbook bound, of the number of ones for which it is largest."""
    ones = np.arange(2, k + 1)
    law = two_layer.law(k, ones, kind=kind)
    gap = np.where(ones < k, np.minimum(law.on_one, -law.on_zero), law.on_one)
    return ntk.members_by_worst_bit(gap, law.variance, events, delta=delta).max()


def cube_weights(kind, inputs) -> np.ndarray:
    """The predictor's weights on the basis vectors, `[row, bit]`."""
    law = two_layer.law(inputs.shape[1], inputs.sum(axis=1).astype(int), kind=kind)
    return np.where(inputs > 0, law.on_one[:, None], law.on_zero[:, None])


def make_tasks(config):
    """Tasks that are more than a permutation, and all their operands."""
    own = config.tasks
    add = ntk.addition_task(own.addition_bits, num_padding=own.num_padding)
    multiply = ntk.multiplication_task(
        own.multiplication_bits, num_padding=own.num_padding
    )
    single = np.arange(1, 2**own.copy_bits)
    return [
        (ntk.copy_task(own.copy_bits), (single,)),
        (add, _pairs(own.addition_bits)),
        (multiply, _pairs(own.multiplication_bits)),
    ]


def _pairs(num_bits):
    numbers = np.arange(2**num_bits)
    return np.repeat(numbers, len(numbers)), np.tile(numbers, len(numbers))


def measure_tasks(config) -> dict[str, np.ndarray]:
    """How the infinite ensemble's rounded mean does on other tasks, step by step.

    Returns:
        "right" `[task, kind]`: share of operands with the right answer;
        "members" `[task, kind]`: N that the hardest state on the way needs, at delta;
        "features", "operands", "steps" `[task]`.
    """
    tasks = make_tasks(config)
    found = {
        name: np.zeros((len(tasks), len(config.kinds))) for name in ("right", "members")
    }
    for i, (task, operands) in enumerate(tasks):
        for j, kind in enumerate(config.kinds):
            needed = []

            def predict(inputs, task=task, kind=kind, needed=needed):
                mean = np.zeros((len(inputs), task.num_bits))
                some = inputs.any(axis=1)  # the input 0 has output 0 in any network
                weights = cube_weights(kind, inputs[some])
                mean[some] = weights @ task.train_targets
                unseen = inputs.sum(axis=1) > 1
                if unseen.any():
                    needed.append(
                        members_of_hardest(config, kind, task, inputs[unseen])
                    )
                return np.asarray(ntk.round_bits(mean, ntk.sign_thresholds()))

            answers = task.read(task.execute(task.start(*operands), predict))
            found["right"][i, j] = np.mean(answers == task.solve(*operands))
            found["members"][i, j] = max(needed)
    return found | {
        "features": np.array([task.num_features for task, _ in tasks]),
        "operands": np.array([len(values[0]) for _, values in tasks]),
        "steps": np.array([task.num_steps for task, _ in tasks]),
    }


def members_of_hardest(config, kind, task, inputs) -> float:
    """N of the hardest of some inputs, for outputs that some rule sets.

    Others are 0 by the definition of the task (`Task.set_outputs`), and executed so:
    their mean is exactly 0, which no number of networks tells from above.
    """
    inputs = np.unique(inputs, axis=0)
    used = task.set_outputs
    law = two_layer.law(inputs.shape[1], inputs.sum(axis=1).astype(int), kind=kind)
    mean = cube_weights(kind, inputs) @ task.train_targets
    return ntk.members_for_input(
        mean[:, used],
        law.variance,
        task.targets(inputs)[:, used],
        ntk.sign_thresholds(),
        delta=config.delta,
    ).max()
