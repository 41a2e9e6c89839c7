"""Other libraries run with the usual promotion rules of JAX and NumPy."""

import jax
import pytest


@pytest.fixture
def relaxed():
    """Enable JAX's default rules in place of the strict ones."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
