"""The rules under which peers run: they promote and broadcast as they like."""

import jax
import pytest


@pytest.fixture
def relaxed(x64):
    """Float64, and JAX's usual rules in place of the strict ones."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
