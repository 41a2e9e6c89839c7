"""The strict world of the tests: eight CPU devices, no silent promotion."""

import jax
import pytest
from hypothesis import settings

settings.register_profile("house", deadline=None)  # machines differ
settings.load_profile("house")

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def x64():
    """Float64 for the length of one test."""
    with jax.enable_x64(True):
        yield
