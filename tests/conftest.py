"""Eight CPU devices for every test, and no silent broadcasting of ranks."""

import jax
import pytest

jax.config.update("jax_platforms", "cpu")  # else libtpu, where installed, is locked
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="module", autouse=True)
def _forget_compiled_programs():
    """Compiled programs map memory, and all tests together run out of mappings."""
    yield
    jax.clear_caches()
