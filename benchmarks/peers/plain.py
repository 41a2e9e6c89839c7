"""Layer norm and zoneout in a plain `lax.scan`, because no library has these cells.

It is what a user would write: the inputs are projected before the loop, one product is
left in it, and JAX differentiates it.
"""

from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.cases import C_RATE, H_RATE, Case, Inputs
from benchmarks.peers import jitted
from benchmarks.peers.base import Contender, merge_gate_axis

Array = jax.Array


def supports(case: Case) -> str | None:
    """Return why a case is not supported: other libraries have the other cells."""
    if case.cell not in ("layer_norm", "zoneout"):
        return "lax.scan is measured for the cells that other libraries do not have"
    return None


def model(case: Case, inputs: Inputs) -> jitted.Model:
    """Return the model of a case, time first."""
    apply = _layer_norm if case.cell == "layer_norm" else _zoneout
    w_x, w_h, b = (jnp.asarray(merge_gate_axis(leaf)) for leaf in inputs.layers[0][0])
    params = {"w_x": w_x, "w_h": w_h, "b": b}
    if case.cell == "layer_norm":
        one = jnp.ones(case.units)
        params |= {"s_x": jnp.tile(one, 4), "s_h": jnp.tile(one, 4)}
        params |= {"s_c": one, "b_c": 0 * one}
    extra = (jax.random.key(0),) if case.cell == "zoneout" else ()
    xs, d_hs = jnp.asarray(inputs.xs), jnp.asarray(inputs.d_hs)
    return jitted.Model(apply, params, xs, d_hs, extra)


def _layer_norm(params: dict[str, Array], xs: Array) -> Array:
    def step(state: Any, z: Array) -> tuple[Any, Array]:
        h, c = state
        z = z + _normalized(h @ params["w_h"]) * params["s_h"]
        i, f, g, o = jnp.split(z, 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        read = _normalized(c) * params["s_c"] + params["b_c"]
        h = jax.nn.sigmoid(o) * jnp.tanh(read)
        return (h, c), h

    zs = _normalized(xs @ params["w_x"]) * params["s_x"] + params["b"]
    return jax.lax.scan(step, _start(params, xs), zs)[1]


def _normalized(a: Array) -> Array:
    centred = a - a.mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-5)


def _zoneout(params: dict[str, Array], xs: Array, key: Array) -> Array:
    def step(state: Any, inputs: Any) -> tuple[Any, Array]:
        (h, c), (z, update_h, update_c) = state, inputs
        i, f, g, o = jnp.split(z + h @ params["w_h"], 4, axis=-1)
        new_c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        new_h = jax.nn.sigmoid(o) * jnp.tanh(new_c)
        h, c = jnp.where(update_h, new_h, h), jnp.where(update_c, new_c, c)
        return (h, c), h

    start = _start(params, xs)
    # Drawn as `jaxlstm.zoneout` draws them, so that both compute the same numbers.
    h_key, c_key, _ = jax.random.split(key, 3)
    shape = (len(xs), *start[0].shape)
    updates = (
        jax.random.uniform(h_key, shape) >= H_RATE,
        jax.random.uniform(c_key, shape) >= C_RATE,
    )
    zs = xs @ params["w_x"] + params["b"]
    return jax.lax.scan(step, start, (zs, *updates))[1]


def _start(params: dict[str, Array], xs: Array) -> tuple[Array, Array]:
    zeros = jnp.zeros((xs.shape[1], len(params["w_h"])))
    return zeros, zeros


CONTENDERS = (
    Contender(
        "lax.scan",
        "jax",
        supports,
        lambda case, inputs: jitted.forward(model(case, inputs)),
        lambda case, inputs: jitted.training(model(case, inputs)),
    ),
)
