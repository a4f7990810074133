"""Noise on the sphere that is smooth in space and remembers in time, one member each.

Every wave of degree l > 0 is an autoregressive process of its own,

    eta_(t+1) = phi eta_t + sqrt(1 - phi^2) sigma_l xi,   phi = exp(-lambda),
    sigma_l^2 = 4 pi sigma^2 exp(-kT l (l + 1)) / F
    F = sum_(l>=1) (2 l + 1) exp(-kT l (l + 1))

which diffusion on the sphere makes of white noise: kT = (L / R)^2 / 2 for a length L.
At every place the field has mean 0 and standard deviation sigma, exactly: the sum runs
over the degrees that there are. The wave of degree 0 is 0, so that the global mean of
the noise is 0 as well; the published code leaves it a small one.

Source: Bonev et al. 2025, arXiv:2507.12144 (FourCastNet 3), and the code that belongs
to it; Palmer et al. 2009, ECMWF Technical Memorandum 598, for such a spectrum.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.ops.sphere import SphericalGrid, from_real_harmonics, harmonic_mask

EARTH_RADIUS_KM = 6370.0  # of the published length scales


def diffusion_time(
    lengths_km: Sequence[float], *, radius_km: float = EARTH_RADIUS_KM
) -> tuple[float, ...]:
    """kT = (L / R)^2 / 2 of length scales in km.

    Raises:
        ValueError: if a length or the radius is not positive.
    """
    lengths = tuple(float(length) for length in lengths_km)
    if not radius_km > 0 or any(not length > 0 for length in lengths):
        raise ValueError(
            f"lengths and the radius must be positive; got {lengths} and {radius_km}."
        )
    return tuple(0.5 * (length / radius_km) ** 2 for length in lengths)


@dataclasses.dataclass(frozen=True)
class SphericalNoise:
    """The process of one member: `init`, `step`, and `to_grid`, which are pure.

    A state is the waves `[channel, part 2, l, m]`. Channels are independent; those of a
    member come from its key, so that any member can be made alone. Centred members come
    in pairs, see `of_pair`.

    It is a noise of `train.RolloutLoss` and of `NetworkStep` as well, where a member's
    steps are steps of the process; called with a key and the shape of a state, as
    `NoiseCrps` does for one step, it gives a draw of the stationary law on the grid.

    Attributes:
        grid: of the fields, whose degree ends the spectrum (lmax).
        kt: of each channel, 0 or more; 0 is white noise of the degrees that there are.
        lambd: decay in a step, of each channel or of all: the correlation of one step
            with the next is exp(-lambd). `inf` forgets at once.
        sigma: standard deviation at a place, of each channel or of all.

    Raises:
        ValueError: if there is no channel, numbers are out of range, or `lambd` or
            `sigma` have another number of channels.

    Example:
        >>> import jax
        >>> from ensjax.emulate import SphericalNoise
        >>> from ensjax.verification import SphericalGrid
        >>> noise = SphericalNoise(SphericalGrid(16, 32), kt=(0.01, 0.1))
        >>> state = noise.init(jax.random.key(0))
        >>> state = noise.step(state, jax.random.key(1))
        >>> noise.to_grid(state).shape  # [lat, lon, channel]
        (16, 32, 2)
    """

    grid: SphericalGrid
    kt: tuple[float, ...]
    lambd: float | tuple[float, ...] = 1.0
    sigma: float | tuple[float, ...] = 1.0

    def __post_init__(self):
        object.__setattr__(self, "kt", tuple(float(kt) for kt in self.kt))
        if not self.kt or not all(0 <= kt < np.inf for kt in self.kt):
            raise ValueError(f"kt must hold numbers of 0 or more; got {self.kt}.")
        for name in ("lambd", "sigma"):
            value = getattr(self, name)
            if isinstance(value, Sequence):
                value = tuple(float(x) for x in value)
                object.__setattr__(self, name, value)
                if len(value) != self.num_channels:
                    raise ValueError(
                        f"{name} has {len(value)} numbers for {self.num_channels}"
                        " channels."
                    )
            if not np.all(np.asarray(value, np.float64) >= 0):
                raise ValueError(f"{name} must not be negative; got {value}.")

    @classmethod
    def of_lengths(
        cls,
        grid: SphericalGrid,
        lengths_km: Sequence[float],
        *,
        lambd: float | tuple[float, ...] = 1.0,
        sigma: float | tuple[float, ...] = 1.0,
        radius_km: float = EARTH_RADIUS_KM,
    ) -> "SphericalNoise":
        """A channel for each length scale in km; FourCastNet 3 has 50 to 6,400."""
        return cls(grid, diffusion_time(lengths_km, radius_km=radius_km), lambd, sigma)

    @property
    def num_channels(self) -> int:
        return len(self.kt)

    @property
    def memory(self) -> np.ndarray:
        """phi, the correlation of one step with the next, float64 `[channel]`."""
        return np.exp(-self._of_channels(self.lambd))

    def wave_sd(self) -> np.ndarray:
        """sigma_l, the deviation of a wave, float64 `[channel, l]`; 0 for l = 0."""
        degree = np.arange(self.grid.degree + 1)
        kt = np.asarray(self.kt)[:, None]
        # Against the first degree, so that a large kT does not underflow altogether.
        shape = np.exp(-kt * np.maximum(degree * (degree + 1) - 2.0, 0.0))
        shape[:, 0] = 0.0
        total = ((2 * degree + 1) * shape).sum(axis=1, keepdims=True)
        variance = 4 * np.pi * self._of_channels(self.sigma)[:, None] ** 2
        return np.sqrt(variance * shape / total)

    def power(self) -> np.ndarray:
        """Expected power of each degree, `[channel, l]`; its sum is sigma^2."""
        degree = np.arange(self.grid.degree + 1)
        return (2 * degree + 1) * self.wave_sd() ** 2 / (4 * np.pi)

    def init(self, key: jax.Array) -> jax.Array:
        """A state of the stationary law, float32 `[channel, part 2, l, m]`."""
        return self._fresh(key)

    def step(self, state: jax.Array, key: jax.Array) -> jax.Array:
        """The state one step later, with a key of its own.

        Raises:
            ValueError: if the state has another shape.
        """
        self._check(state)
        phi = self.memory
        kept, new = (
            jnp.asarray(share, jnp.float32).reshape(-1, 1, 1, 1)
            for share in (phi, np.sqrt(1 - phi**2))
        )
        return kept * state + new * self._fresh(key)

    def to_grid(self, state: jax.Array) -> jax.Array:
        """The fields of a state, float32 `[lat, lon, channel]`.

        Raises:
            ValueError: if the state has another shape.
        """
        self._check(state)
        return jnp.moveaxis(from_real_harmonics(state, self.grid), 0, -1)

    def __call__(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """A draw of the stationary law for a state of shape `[lat, lon, channel]`."""
        return self.of_steps(key, shape, 1)[0]

    def of_steps(
        self, key: jax.Array, shape: tuple[int, ...], num_steps: int
    ) -> jax.Array:
        """The process at so many steps, `[step, lat, lon, noise channel]`.

        Args:
            key: of the member; step 0 is `init` of `fold_in(key, 0)`, and step i `step`
                with `fold_in(key, i)`.
            shape: of the emulator's state, `[lat, lon, channel]`, on the same grid.
            num_steps: one or more.

        Raises:
            ValueError: if the shape is not of the grid.
        """
        if tuple(shape[:2]) != self.grid.shape or num_steps < 1:
            raise ValueError(
                f"the noise is on a grid of {self.grid.shape}, for one step or more;"
                f" got a state of shape {tuple(shape)} and {num_steps} steps."
            )
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(num_steps))
        state = self.init(keys[0])

        def advance(state, key):
            state = self.step(state, key)
            return state, state

        if num_steps == 1:
            return self.to_grid(state)[None]
        later = jax.lax.scan(advance, state, keys[1:])[1]
        return jax.vmap(self.to_grid)(jnp.concatenate([state[None], later]))

    def _fresh(self, key):
        """An independent draw of the stationary law."""
        mask = harmonic_mask(self.grid)
        sd = self.wave_sd()[:, None, :, None] * mask
        return jax.random.normal(key, sd.shape) * jnp.asarray(sd, jnp.float32)

    def _of_channels(self, value):
        return np.broadcast_to(np.asarray(value, np.float64), (self.num_channels,))

    def _check(self, state):
        expected = (self.num_channels, *self.grid.wave_shape)
        if jnp.shape(state) != expected:
            raise ValueError(
                f"state must be [channel, part, l, m] = {expected}; got"
                f" {jnp.shape(state)}."
            )


def of_pair(member_id: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Whose key a centred member draws with, and its sign, +1 or -1.

    Members 2k and 2k + 1 have the key of pair k: their states are the same, and their
    fields, `sign * noise.to_grid(state)`, add to 0 at every step, bit for bit. Pairs
    must stay together where members are sampled: one of each is not centred.

    Example:
        >>> from ensjax.emulate.spherical_noise import of_pair
        >>> [tuple(map(int, of_pair(i))) for i in range(4)]
        [(0, 1), (0, -1), (1, 1), (1, -1)]
    """
    return member_id // 2, 1 - 2 * (member_id % 2)
