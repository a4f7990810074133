"""How `bootstrap_regression.py` trains: all jobs of a data set as one stack."""

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from ensjax import data, losses, nn
from ensjax.experiment.fields import load_beside
from ensjax.train import TrainingJob

rows = load_beside(__file__, "bootstrap_regression_rows")


class Statistics(nnx.Variable):
    """Means and scales of a member's training rows; fixed while it trains."""


class ScaledMLP(nnx.Module):
    """An MLP of standardised features that predicts in the target's own units."""

    def __init__(self, num_features: int, hidden: tuple[int, ...], *, rngs: nnx.Rngs):
        self.net = nn.MLP(
            in_features=num_features,
            hidden=hidden,
            num_outputs=1,
            activation=nnx.elu,
            rngs=rngs,
        )
        self.center = Statistics(jnp.zeros(num_features))
        # 1 / sd, and 0 for a feature that the member does not see.
        self.inverse_scale = Statistics(jnp.ones(num_features))
        self.target_center = Statistics(jnp.zeros(()))
        self.target_scale = Statistics(jnp.ones(()))

    def __call__(self, x):
        scaled = (x - self.center[...][None]) * self.inverse_scale[...][None]
        return self.target_center[...] + self.target_scale[...] * self.net(scaled)[:, 0]


def member_statistics(table, jobs) -> dict[str, np.ndarray]:
    """What every member knows of its job's training rows, leaves `[member, ...]`."""
    found = {name: [] for name in ("center", "inverse_scale", "target_center")}
    found["target_scale"] = []
    for job in jobs:
        x, y = table.x[job.train_rows], table.y[job.train_rows]
        sd = x.std(axis=0, dtype=np.float64)
        inverse = 1 / np.where(sd == 0, 1.0, sd)
        if job.features is not None:
            inverse = inverse * job.features
        values = (x.mean(axis=0, dtype=np.float64), inverse, y.mean(), y.std())
        for name, value in zip(found, values, strict=True):
            found[name] += [value] * job.num_members
    return {name: np.asarray(v, np.float32) for name, v in found.items()}


def member_weights(config, table, jobs) -> np.ndarray:
    """The weight of every row in every member's loss, `[member, row]`; 0: not seen."""
    weights = np.zeros((sum(job.num_members for job in jobs), len(table.y)), np.float32)
    starts = np.cumsum([0, *(job.num_members for job in jobs)])
    # Jobs of equally many rows are drawn together: a program for each length.
    lengths = sorted({len(job.train_rows) for job in jobs if job.is_resampled})
    drawn = {}
    for length in lengths:
        own = [j for j in jobs if j.is_resampled and len(j.train_rows) == length]
        ids = np.concatenate([job.member_ids for job in own])
        found = np.asarray(_draw(config.seed, ids, length))
        drawn |= dict(zip(ids.tolist(), found, strict=True))
    for start, job in zip(starts, jobs):
        for place, member_id in enumerate(job.member_ids.tolist()):
            own = drawn[member_id] if job.is_resampled else 1.0
            weights[start + place, job.train_rows] = own
    return weights


_draw = jax.jit(data.bootstrap_weights, static_argnums=2)


def make_tx(hyper):
    """Adam with decoupled weight decay, of one member."""
    return optax.adamw(hyper["learning_rate"], weight_decay=hyper["weight_decay"])


@dataclasses.dataclass(frozen=True)
class BootstrapJob(TrainingJob):
    """Members that begin with the statistics of their own training rows.

    Attributes:
        statistics: of `member_statistics`.
    """

    statistics: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def ensemble(self, mesh=None):
        """The members with their initial weights and statistics."""
        ensemble = super().ensemble(mesh)
        rest = nnx.from_flat_state(
            [
                (path, variable.replace(jnp.asarray(self.statistics[path[-1]])))
                for path, variable in nnx.to_flat_state(ensemble.state["rest"])
            ]
        )
        state = {**ensemble.state, "rest": rest}
        return dataclasses.replace(ensemble, state=state).on_mesh(ensemble.mesh)

    def select(self, member_ids):
        """The same training of some of the members, by id."""
        chosen = super().select(member_ids)
        places = [self.member_ids.index(id_) for id_ in member_ids]
        own = {name: values[places] for name, values in self.statistics.items()}
        return dataclasses.replace(chosen, statistics=own)


def make_job(config, table, jobs) -> BootstrapJob:
    """The training of all members of all jobs, as one stack."""
    repeat = [job.num_members for job in jobs]
    return BootstrapJob(
        make_model=functools.partial(
            _make_model, num_features=table.x.shape[1], hidden=tuple(config.hidden)
        ),
        member_ids=tuple(np.concatenate([job.member_ids for job in jobs]).tolist()),
        init_seed=config.seed,
        data=(table.x, table.y),
        hyper={
            name: np.repeat(np.float32([getattr(job, name) for job in jobs]), repeat)
            for name in ("learning_rate", "weight_decay")
        },
        mesh_sizes=config.mesh.to_dict(),
        options=dict(
            loss=losses.mean_absolute_error,
            make_tx=make_tx,
            steps=config.total_steps,
            batch_size=config.rows_per_step or len(table.y),
            seed=config.seed,
            sampling="shared",
            loss_weights=member_weights(config, table, jobs),
            steps_per_call=config.steps_per_call,
            log_every_steps=config.steps_per_call,
            block=block_of(config),
        ),
        statistics=member_statistics(table, jobs),
    )


def _make_model(rngs, *, num_features, hidden):
    return ScaledMLP(num_features, hidden, rngs=rngs)


def block_of(config):
    """`config.block` as the engine takes it."""
    return None if config.block == "all" else config.block
