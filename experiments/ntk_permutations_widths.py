"""What width does to the means and kernels of `ntk_permutations.py`."""

import dataclasses

import jax.numpy as jnp
import numpy as np

import ensjax
from ensjax import ntk
from ensjax.experiment.fields import load_beside

draws = load_beside(__file__, "ntk_permutations_draws")
networks = load_beside(__file__, "ntk_permutations_networks")
theory = load_beside(__file__, "ntk_permutations_theory")


@dataclasses.dataclass(frozen=True)
class TrainedAndNew:
    """Outputs of one network after its training, and of the same before it.

    Attributes:
        train: of the network.
    """

    train: ntk.TrainNetwork

    def __call__(self, *arguments):
        """Both, `[row, output]`; arguments as of `ntk.TrainNetwork`."""
        untrained = dataclasses.replace(self.train, steps=0)
        return self.train(*arguments), untrained(*arguments)


def measure_widths(config) -> dict[str, np.ndarray]:
    """How mean and kernel depend on the width, and the kernel matrix itself.

    Returns:
        "mean", "error" `[width, bit value]` at two ones, with the NTK; "bias",
        "bias_error" alike: the mean minus the law's, over the same networks but without
        what their first outputs explain of it, and so far more precise; "drift"
        `[parameterisation, width, member]`: |K - K_0| / |K_0| over training; "theory",
        "empirical" `[row, row']`: tangent kernels of all inputs, sorted by number of
        ones; "matrix_ones" `[row]`.
    """
    own = config.widths
    task = draws.task_of(config, 0, own.num_bits)
    inputs = draws.pairs(own.num_bits)
    asked = np.concatenate([task.train_inputs, inputs])
    weights = theory.cube_weights("ntk", inputs)
    targets = task.targets(inputs)
    means, errors, biases, bias_errors, drifts = [], [], [], [], []
    for width in own.sizes:
        schedule = networks.schedule_of(config, "ntk", own.num_bits, width)
        train = ensjax.map_members(
            TrainedAndNew(
                ntk.TrainNetwork(networks.spec_of("ntk"), width, schedule.steps)
            ),
            kinds=("member", *("shared",) * 5),
            out=("member", "member"),
        )
        outputs, initial = map(
            np.asarray,
            train(
                np.arange(own.num_members, dtype=np.int32),
                jnp.int32(config.seed),
                np.float32(schedule.learning_rate),
                task.train_inputs,
                task.train_targets,
                asked,
            ),
        )
        known, outputs = len(task.train_inputs), outputs[:, len(task.train_inputs) :]
        # What a network of infinite width would keep of its first outputs, whose mean
        # is 0: nearly all of the spread over networks.
        kept = initial[:, known:] - np.einsum(
            "ri,mio->mro", weights, initial[:, :known]
        )
        away = outputs - kept - weights @ task.train_targets
        for values, means_of, errors_of in (
            (outputs, means, errors),
            (away, biases, bias_errors),
        ):
            by_member = np.array(
                [values[:, targets == value].mean(axis=1) for value in (0, 1)]
            )
            means_of.append(by_member.mean(axis=1))
            spread = by_member.std(axis=1, ddof=1)
            errors_of.append(spread / np.sqrt(len(values)))
    for parameterisation in own.parameterisations:
        drifts.append(
            [_drift(config, task, parameterisation, width) for width in own.sizes]
        )
    return {
        "mean": np.array(means),
        "error": np.array(errors),
        "bias": np.array(biases),
        "bias_error": np.array(bias_errors),
        "drift": np.array(drifts),
        **_matrices(config),
    }


def _drift(config, task, parameterisation, width):
    """How far the kernels of some networks move while they train, `[member]`."""
    own = config.widths
    fraction = own.mup_fraction if parameterisation == "mup" else None
    schedule = networks.schedule_of(
        config, parameterisation, own.num_bits, width, fraction
    )
    job = ntk.network_job(
        networks.spec_of(parameterisation),
        (task.train_inputs, task.train_targets),
        width=width,
        member_ids=range(own.num_drift_members),
        schedule=schedule,
        seed=config.seed,
    )
    initial = job.ensemble()
    trained, _ = job.fit(progress=False)
    return np.asarray(ntk.kernel_drift(initial, trained, task.train_inputs).change)


def _matrices(config):
    own = config.widths
    inputs = ntk.cube_inputs(own.matrix_bits)
    order = np.argsort(inputs.sum(axis=1), kind="stable")
    inputs = inputs[order]
    job = ntk.network_job(
        networks.spec_of("ntk"),
        (inputs, np.zeros((len(inputs), 2), np.float32)),
        width=own.matrix_width,
        member_ids=range(own.matrix_members),
        schedule=ntk.Schedule(1.0, 1, 1.0),
        seed=config.seed,
    )
    empirical = ntk.empirical_ntk(job.ensemble(), inputs)
    return {
        "theory": np.asarray(ntk.kernel(networks.spec_of("ntk"), inputs).ntk),
        "empirical": np.asarray(empirical).mean(axis=0),
        "empirical_sd": np.asarray(empirical).std(axis=0, ddof=1),
        "matrix_ones": inputs.sum(axis=1).astype(int),
    }
