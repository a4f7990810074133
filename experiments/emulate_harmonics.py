"""Ways of `bench_emulate` to take spherical harmonics of fields and go back.

Fields are on Gaussian latitudes from the north, as many degrees as latitudes and twice
as many longitudes less one, which all packages take. A way gives what is timed, how
many values it transforms there and back, and the first field that comes back.
"""

import importlib.util

import numpy as np

from ensjax.experiment.fields import load_beside

calls = load_beside(__file__, "emulate_calls")


def make_fields(count, size):
    """Fields `[field, lat, lon]` that the harmonics hold exactly, float32."""
    from ensjax.ops import sphere

    grid = sphere.SphericalGrid(size, 2 * size - 1, northward=False)
    rng = np.random.default_rng(0)
    waves = rng.standard_normal((count, *grid.wave_shape)) * sphere.harmonic_mask(grid)
    return np.asarray(sphere.from_real_harmonics(waves, grid), np.float32), grid


def _timed(run, fields):
    made = fields.size * calls.num_repeats()
    return run, made, lambda found: np.asarray(found)[0].ravel()[:512]


def with_ensjax(count, size):
    """`ops.sphere`: dense matrices, real waves."""
    import jax

    from ensjax.ops import sphere

    fields, grid = make_fields(count, size)
    given = jax.device_put(fields)

    @jax.jit
    def there_and_back(fields):
        return sphere.from_real_harmonics(sphere.to_real_harmonics(fields, grid), grid)

    return _timed(lambda: calls.repeat(there_and_back, given), fields)


def with_s2fft(count, size):
    """s2fft's JAX transform with matrices made beforehand, mapped over the fields."""
    if importlib.util.find_spec("s2fft") is None:
        raise ImportError("s2fft is not installed")
    import jax
    import jax.numpy as jnp
    from s2fft import precompute_transforms as tables

    fields, _ = make_fields(count, size)
    # The package's own JAX way of making them takes minutes.
    there, back = (
        jnp.asarray(
            tables.construct.spin_spherical_kernel(
                size, sampling="gl", reality=True, forward=forward
            ),
            jnp.float32,
        )
        for forward in (True, False)
    )
    given = jax.device_put(fields)

    @jax.jit
    def there_and_back(fields, there, back):
        def of_field(field):
            waves = tables.spherical.forward_transform_jax(
                field, there, size, "gl", True, 0, None
            )
            return tables.spherical.inverse_transform_jax(
                waves, back, size, "gl", True, 0, None
            ).real

        return jax.vmap(of_field)(fields)

    def run():
        return calls.repeat(there_and_back, given, there, back)

    return _timed(run, fields)


def with_torch_harmonics(count, size):
    """torch-harmonics' RealSHT and InverseRealSHT on its Gaussian grid."""
    for name in ("torch_harmonics", "torch"):
        if importlib.util.find_spec(name) is None:
            raise ImportError(f"{name} is not installed")
    import torch
    import torch_harmonics

    fields, _ = make_fields(count, size)
    options = dict(lmax=size, mmax=size, grid="legendre-gauss")
    there = torch_harmonics.RealSHT(size, 2 * size - 1, **options)
    back = torch_harmonics.InverseRealSHT(size, 2 * size - 1, **options)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    there, back, given = (
        x.float().to(device) for x in (there, back, torch.from_numpy(fields))
    )

    def run():
        with torch.no_grad():
            for _ in range(calls.num_repeats() if device == "cuda" else 1):
                found = back(there(given))
        if device == "cuda":
            torch.cuda.synchronize()
        return found

    made = fields.size * (calls.num_repeats() if device == "cuda" else 1)
    return run, made, lambda found: found.cpu().numpy()[0].ravel()[:512]


WAYS = {
    "ensjax": with_ensjax,
    "s2fft jax": with_s2fft,
    "torch-harmonics": with_torch_harmonics,
}
