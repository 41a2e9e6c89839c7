"""A small problem for the tests of the contract: params, xs and a non-zero state."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import jaxlstm as jl

T, B, D, H = 6, 4, 3, 5
CELL = jl.lstm()


def problem(batch=(B,), time=T, dtype=jnp.float32):
    """Return params, xs and a non-zero state, drawn by NumPy to compile nothing."""
    rng = np.random.default_rng(3)
    wide = jnp.float64 if dtype == jnp.float64 else jnp.float32

    def normal(shape, dtype):
        return jnp.asarray(rng.standard_normal(shape), dtype)

    init = functools.partial(CELL.init, input_size=D, hidden_size=H, dtype=dtype)
    params = jax.tree.map(
        lambda leaf: normal(leaf.shape, leaf.dtype) / H**0.5,
        jax.eval_shape(init, jax.random.key(0)),
    )
    xs = normal((time, *batch, D), dtype)
    state = jl.LSTMState(normal((*batch, H), dtype), normal((*batch, H), wide))
    return params, xs, state
