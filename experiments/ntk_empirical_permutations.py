"""Permutations learned by finite networks, for `ntk_empirical.py`, and the oracle.

Networks see the k basis vectors alone and are asked about inputs that they have not
seen. The oracle draws networks of infinite width from their exact law.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

import ensjax
from ensjax import map_members, ntk
from ensjax.experiment import ConfigError
from ensjax.experiment.fields import check_numbers

LAWS = ("readout", "ntk")
# Ids of one seed's members begin at its number times this.
SEED_STRIDE = 1_000_000


@dataclasses.dataclass(frozen=True)
class Case:
    """Networks of one parameterisation that learn permutations of k bits."""

    law: str
    num_bits: int
    num_members: int

    @property
    def name(self) -> str:
        """Of its stage."""
        return f"{self.law}-{self.num_bits}"


def cases(config) -> list[Case]:
    """All cases of the config."""
    return [Case(*case) for case in config.permutations.cases]


def check_config(config) -> None:
    """Raises `ConfigError` for what could not be trained or compared."""
    own = config.permutations
    names = ["num_seeds", "width", "max_rows", "oracle_draws", "block_members"]
    check_numbers(config, [f"permutations.{name}" for name in names], at_least=1)
    for name, bounds in (
        ("fraction", dict(above=0, at_most=1)),
        ("residual", dict(above=0, below=1)),
        ("target", dict(above=0, below=1)),
    ):
        check_numbers(config, (f"permutations.{name}",), **bounds)
    for case in own.cases:
        is_case = len(case) == 3 and case[0] in LAWS
        if not is_case or min(case[1:]) < 3 or case[2] >= SEED_STRIDE:
            raise ConfigError(
                "config.permutations.cases are (parameterisation, k, members) with one"
                f" of {', '.join(LAWS)}, k at least 3 and 3 to {SEED_STRIDE - 1:,}"
                f" members; got {case!r}."
            )
    if len({case[:2] for case in own.cases}) < len(own.cases):
        raise ConfigError("config.permutations.cases must differ in more than members.")


def unseen_inputs(config, num_bits: int) -> np.ndarray:
    """Inputs with two ones and more, `[row, bit]`: all, or as many as are drawn.

    Where they are drawn the first half has two ones, which are the hardest.
    """
    most = config.permutations.max_rows
    if 2**num_bits - 1 - num_bits <= most:
        rows = ntk.cube_inputs(num_bits)
        return rows[rows.sum(axis=1) > 1]
    hardest = ntk.sample_inputs(num_bits, most // 2, seed=config.seed, num_ones=2)
    others = ntk.sample_inputs(num_bits, most, seed=config.seed)
    others = others[others.sum(axis=1) > 1][: most - len(hardest)]
    return np.concatenate([hardest, others])


def spec_of(law: str) -> ntk.FullyConnected:
    """The networks: one hidden layer of ReLU, no biases."""
    return ntk.FullyConnected(parameterisation=law)


def schedule_of(config, case: Case) -> ntk.Schedule:
    """Rate and steps, from the kernel."""
    own = config.permutations
    return ntk.training_schedule(
        spec_of(case.law),
        np.eye(case.num_bits, dtype=np.float32),
        residual=own.residual,
        fraction=own.fraction,
    )


def largest_job(config):
    """Training of the members of one seed of the case with most weights, to plan."""
    case = max(cases(config), key=lambda case: case.num_bits * case.num_members)
    rows = np.eye(case.num_bits, dtype=np.float32)
    return ntk.network_job(
        spec_of(case.law),
        (rows, rows),
        width=config.permutations.width,
        member_ids=range(case.num_members),
        schedule=schedule_of(config, case),
        seed=config.seed,
        mesh_sizes=config.mesh.to_dict(),
        block=1,
    )


def _stored(outputs):
    """A member whose outputs are there already."""
    return outputs


def measure(config, case: Case) -> dict[str, np.ndarray]:
    """Accuracy against the number of members, trained and by the oracle.

    Returns:
        "rows" row accuracy on unseen inputs for N = 1, 2, ... `[seed, member]`, "hard"
        the same on inputs with two ones; "oracle_rows" and "oracle_hard" likewise of
        ensembles of infinite width, `[draw, member]`; "f" `[seed, 2]`: what zeros and
        ones get at two ones, mean over members, and "variance" `[seed]` over members;
        "law" `[3]`: what both are at infinite width; "steps", "num_rows".
    """
    own = config.permutations
    mesh = ensjax.make_mesh(**config.mesh)
    x = unseen_inputs(config, case.num_bits)
    x_train = np.eye(case.num_bits, dtype=np.float32)
    schedule = schedule_of(config, case)
    outputs_of = map_members(
        ntk.TrainNetwork(spec_of(case.law), own.width, schedule.steps),
        kinds=("member", *("shared",) * 5),
        mesh=mesh,
        block=min(own.block_members, case.num_members),
    )
    is_hard = x.sum(axis=1) == 2
    found = {"steps": schedule.steps, "num_rows": len(x), "num_hard": is_hard.sum()}
    each = []
    for seed in range(own.num_seeds):
        task = _task(config, case, seed)
        outputs = outputs_of(
            jnp.asarray(_ids(case, seed)),
            jnp.uint32(config.seed),
            jnp.float32(schedule.learning_rate),
            x_train,
            jnp.asarray(task.train_targets),
            x,
        )
        curves = {
            name: _curve(config, case, mesh, _stored, outputs[:, rows], task, x[rows])
            for name, rows in (("rows", slice(None)), ("hard", is_hard))
        }
        hard = np.asarray(outputs)[:, is_hard]
        each.append(curves | _moments(hard, task.targets(x[is_hard])))
    found |= {name: np.stack([one[name] for one in each]) for name in each[0]}
    laws = {"readout": ntk.readout_law, "ntk": ntk.ntk_law}
    law = laws[case.law](case.num_bits, 2)
    found["law"] = np.array([law.on_zero, law.on_one, law.variance], float)
    return found | _oracle(config, case, mesh, x, is_hard)


def _task(config, case, seed):
    places = ntk.draw_permutation(case.num_bits, seed=SEED_STRIDE * config.seed + seed)
    return ntk.permutation_task(places)


def _ids(case, number):
    return SEED_STRIDE * number + np.arange(case.num_members, dtype=np.int32)


def _curve(config, case, mesh, fn, stacked, task, x, shared=()):
    """Row accuracy of the rounded mean of the first N members, `[member]`."""
    accuracy, _ = ntk.accuracy_by_members(
        fn,
        stacked,
        task.targets(x),
        ntk.sign_thresholds(),
        block=min(config.permutations.block_members, case.num_members),
        shared=shared,
        mesh=mesh,
    )
    return np.asarray(accuracy.rows)


def _moments(outputs, targets):
    """Mean over members, rows and bits of zeros and ones, and variance over members."""
    mean = outputs.mean(axis=0)
    return {
        "f": np.array([mean[~targets].mean(), mean[targets].mean()]),
        "variance": outputs.var(axis=0, ddof=1).mean(),
    }


def _oracle(config, case, mesh, x, is_hard):
    """The same curves of ensembles of infinite width."""
    own = config.permutations
    task = _task(config, case, 0)
    with jax.enable_x64(True):
        predictor = ntk.predictor(
            spec_of(case.law), np.eye(case.num_bits), np.asarray(x, np.float64)
        )
        mean = np.asarray(ntk.mean(predictor, task.train_targets), np.float32)
        covariance = np.asarray(ntk.covariance(predictor))
    members = ntk.infinite_members(mean, covariance, seed=config.seed)
    # The same draws, on some rows alone.
    hard = members._replace(mean=members.mean[is_hard], factor=members.factor[is_hard])
    found = {"oracle_rows": [], "oracle_hard": []}
    for draw in range(own.oracle_draws):
        ids = _ids(case, draw)
        for name, law, rows in (
            ("oracle_rows", members, x),
            ("oracle_hard", hard, x[is_hard]),
        ):
            curve = _curve(
                config, case, mesh, ntk.sample_member, ids, task, rows, (law,)
            )
            found[name].append(curve)
    return {name: np.stack(curves) for name, curves in found.items()}
