"""Trained emulators: members of many cases, kept, reduced as a stream, or judged."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.emulate.diffusion.denoisers import NetworkDenoiser
from ensjax.emulate.diffusion.likelihood import FlowLikelihood, log_likelihoods_each
from ensjax.emulate.diffusion.sampling import (
    SampleCases,
    checked_ids,
    ids_of_cases,
    sample_each,
)
from ensjax.emulate.seeds.drawing import DrawSeeds
from ensjax.ensemble import Ensemble
from ensjax.reduce import fold_members
from ensjax.train.noise_members import WhiteNoise


@dataclasses.dataclass(frozen=True)
class OneCall:
    """A network with noise inside, in the place of a denoiser and of its sampler.

    As a parametrisation it calls `network(noise, condition)`; as a sampler it draws the
    noise and asks once.

    Attributes:
        noise: what the network was trained with (`NoiseCrps.noise`).
    """

    noise: Callable[[jax.Array, tuple[int, ...]], jax.Array] = WhiteNoise()

    def denoise(self, network: Any, x: Any, sigma: Any, condition: Any) -> jax.Array:
        """The member that is made of the noise `x`; there is no level."""
        del sigma
        return network(x, condition)

    def __call__(
        self, denoise: Callable[..., jax.Array], key: Any, shape: tuple[int, ...]
    ) -> jax.Array:
        """One member `[*shape]`."""
        return denoise(self.noise(key, tuple(shape)), 1.0)


@dataclasses.dataclass(frozen=True)
class SeedsEmulators:
    """Trained networks, one for each task, and how seeds are told to them.

    Attributes:
        ensemble: the networks, with averaged weights.
        tasks: int `[model]`, the task of each.
        draw: what they were trained with.
        parametrisation: of denoisers; `OneCall` for networks with noise inside.
    """

    ensemble: Ensemble
    tasks: np.ndarray
    draw: DrawSeeds
    parametrisation: Any

    @property
    def denoisers(self) -> NetworkDenoiser:
        """Stacked, leaves `[model, ...]`."""
        return NetworkDenoiser(
            self.ensemble.state, self.ensemble.graph, self.parametrisation
        )

    def conditions(self, seeds: jax.Array, base: jax.Array | None = None) -> Any:
        """What the networks are given, leaves `[model, case, ...]`.

        Args:
            seeds: `[model, case, seed, *space, channel]`.
            base: `[model, case, *space, more]`.

        Raises:
            ValueError: for another number of seeds than in training, or of models.
        """
        seeds = jnp.asarray(seeds)
        if seeds.ndim < 4 or seeds.shape[2] != self.draw.num_seeds:
            raise ValueError(
                f"seeds must be [model, case, {self.draw.num_seeds}, *space, channel];"
                f" got shape {seeds.shape}."
            )
        if seeds.shape[0] != self.ensemble.num_members:
            raise ValueError(
                f"seeds are of {seeds.shape[0]} models, but there are"
                f" {self.ensemble.num_members}."
            )
        encode = jax.vmap(jax.vmap(self.draw.encode))
        return encode(seeds) if base is None else encode(seeds, jnp.asarray(base))

    def sample(
        self,
        seeds: jax.Array,
        member_ids: Any,
        *,
        sampler: Any = None,
        base: jax.Array | None = None,
        case_ids: Any = None,
        seed: int = 0,
        block: int | str | None = "auto",
        member_block: int | str | None = "auto",
        case_block: int | None = None,
    ) -> jax.Array:
        """Members of every case for every model (compiled; see `sample_each`).

        Args:
            seeds: `[model, case, seed, *space, channel]`, standardised as in training.
            member_ids: integers `[member]`, any number.
            sampler: such as `Heun(rho_levels(24))`; None for networks with noise
                inside, which need none.
            base: `[model, case, *space, more]`, where training had it.
            case_ids, seed, block, member_block, case_block: as in `sample_each`.

        Returns:
            `[model, member, case, *space, channel]`, float32.

        Raises:
            ValueError: as `conditions` and `sample_each`; or if there is a sampler and
                none is needed, or none where it is.
        """
        return sample_each(
            self.denoisers,
            member_ids,
            self.conditions(seeds, base),
            shape=np.shape(seeds)[3:],
            sampler=self._sampler(sampler),
            case_ids=case_ids,
            seed=seed,
            block=block,
            member_block=member_block,
            case_block=case_block,
            mesh=self.ensemble.mesh,
        )

    def reduce(
        self,
        seeds: jax.Array,
        member_ids: Any,
        states: dict[str, Any],
        *,
        sampler: Any = None,
        base: jax.Array | None = None,
        case_ids: Any = None,
        seed: int = 0,
        block: int = 64,
        case_block: int | None = None,
    ) -> dict[str, Any]:
        """`states` with members folded in that never exist together (compiled).

        The members are those of `sample`. They are split over the devices, and each
        device makes `block` of them, folds them into all states and forgets them: the
        memory does not depend on how many there are.

        Args:
            seeds: as for `sample`.
            member_ids: integers `[member]`, any number.
            states: of reductions over values `[model, case, *space, channel]`, by name:
                `reduce.init_moments` and so on, or `verification.member_states`.
                Empty, or those of an earlier call.
            sampler, base, case_ids, seed: as for `sample`.
            block: members of a device whose values exist together.
            case_block: cases of a member that run at once; None: all.

        Returns:
            The new states by name, whole on every device.

        Raises:
            ValueError: as `sample`, and if states are for other shapes.
            TypeError: if a state is of no known reduction.

        Example::

            states = {
                "moments": reduce.init_moments(truth),  # [model, case, *space, channel]
                "crps": reduce.init_crps(truth, max_members=16_384),
            }
            ids = jnp.arange(16_384)
            states = emulators.reduce(seeds, ids, states, sampler=sampler)
            mean, variance = reduce.finish_moments(states["moments"], ddof=1)
        """
        conditions = self.conditions(seeds, base)
        count = jax.tree.leaves(conditions)[0].shape[1]
        shape = np.shape(seeds)[3:]
        one = SampleCases(self._sampler(sampler), tuple(shape), case_block)
        return fold_members(
            _EveryModel(one),
            checked_ids("member_ids", member_ids),
            states,
            block=block,
            shared=(
                self.denoisers,
                conditions,
                ids_of_cases(case_ids, count),
                jnp.int32(seed),
            ),
            mesh=self.ensemble.mesh,
        )

    def log_likelihoods(
        self,
        seeds: jax.Array,
        x: jax.Array,
        *,
        likelihood: FlowLikelihood | None = None,
        base: jax.Array | None = None,
        case_ids: Any = None,
        seed: int = 0,
        block: int | str | None = "auto",
        member_block: int | str | None = "auto",
        case_block: int | None = None,
    ) -> jax.Array:
        """How likely each denoiser holds given members of given cases, in nats.

        Args:
            seeds: as for `sample`.
            x: `[model, member, case, *space, channel]`, as `sample` returns them:
                members of the simulator, the truth (one member), or samples.
            likelihood: `FlowLikelihood()` by default.
            base, block, member_block, case_block: as for `sample`.
            case_ids, seed: of the probes, which differ by member and case.

        Returns:
            `[model, member, case]`, of standardised values; see
            `diffusion.bits_per_dimension`.

        Raises:
            ValueError: if shapes do not fit.
            TypeError: for networks with noise inside, which have no density.
        """
        self.check_denoisers("log_likelihoods")
        return log_likelihoods_each(
            self.denoisers,
            x,
            self.conditions(seeds, base),
            likelihood=FlowLikelihood() if likelihood is None else likelihood,
            case_ids=case_ids,
            seed=seed,
            block=block,
            member_block=member_block,
            case_block=case_block,
            mesh=self.ensemble.mesh,
        )

    def check_denoisers(self, name: str) -> None:
        """Raises `TypeError` for networks with noise inside; `name` needs denoisers."""
        if isinstance(self.parametrisation, OneCall):
            raise TypeError(
                f"{name} needs denoisers; these networks make a member of noise in one"
                " call and have neither levels nor a density."
            )

    def _sampler(self, sampler):
        is_one_call = isinstance(self.parametrisation, OneCall)
        if is_one_call and sampler not in (None, self.parametrisation):
            raise ValueError(
                "these networks make a member of noise in one call: leave sampler out;"
                f" got {type(sampler).__name__}."
            )
        if not is_one_call and sampler is None:
            raise ValueError(
                "denoisers need a sampler, such as Heun(rho_levels(24)); got None."
            )
        return self.parametrisation if is_one_call else sampler


@dataclasses.dataclass(frozen=True)
class _EveryModel:
    """One member of all models, `[model, case, *shape]`."""

    one: SampleCases

    def __call__(self, member_id, denoisers, conditions, case_ids, seed):
        def of_model(models):
            denoiser, conditions = models
            return self.one(member_id, denoiser, conditions, case_ids, seed)

        models = (denoisers, conditions)
        if jax.tree.leaves(conditions)[0].shape[0] == 1:
            # As `map_local` runs a single model: its products stay plain ones.
            return of_model(jax.tree.map(lambda x: x[0], models))[None]
        return jax.vmap(of_model)(models)
