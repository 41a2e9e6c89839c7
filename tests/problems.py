"""A small problem for the tests of the contract: params, xs and a non-zero state."""

import jax
import jax.numpy as jnp

import jaxlstm as jl

T, B, D, H = 6, 4, 3, 5
CELL = jl.lstm()


def problem(batch=(B,), time=T, dtype=jnp.float32):
    """Return params, xs and a non-zero state."""
    keys = jax.random.split(jax.random.key(3), 4)
    params = CELL.init(keys[0], D, H, dtype=dtype)
    xs = jax.random.normal(keys[1], (time, *batch, D), dtype)
    wide = jnp.float64 if dtype == jnp.float64 else jnp.float32
    state = jl.LSTMState(
        jax.random.normal(keys[2], (*batch, H), dtype),
        jax.random.normal(keys[3], (*batch, H), wide),
    )
    return params, xs, state
