"""Statistics of recurrent layers: saturation, time constants, reach of gradients."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxlstm as jl
from jaxlstm.lab.analysis import traces
from jaxlstm.lab.analysis.facts import ROWS, SHARE, LayerFacts
from jaxlstm.lab.analysis.traces import Traces
from jaxlstm.lab.runs.trained import Trained

STEPS, DIRECTIONS = 512, 16


def facts_of_layers(trained: Trained, seen: Traces) -> list[LayerFacts]:
    """Return the statistics of each recurrent layer over a text."""
    positions = seen.positions[:ROWS, -STEPS - 1 :]
    tokens = jnp.asarray(seen.text.tokens[positions].T)
    resets = traces.resets(trained, tokens)[:-1]
    found = []
    for layer, trace in enumerate(seen.layers):
        measure = jax.jit(functools.partial(_sensitivity, trained, layer))
        norms, spans = measure(trained.params, tokens, resets)
        sizes = np.asarray(norms, np.float32).T
        gates, h = traces.gates(trace), trace.state.h
        has_memory = any(letter in gates for letter in "fz")
        pairs = np.argwhere(np.asarray(jl.diagnostics.duplicate_units(h).pairs))
        facts = LayerFacts(
            traces.memory(trace)[1].shape[-1],
            jl.diagnostics.saturation(gates) if gates else None,
            np.asarray(jl.diagnostics.timescales(trace.gates)) if has_memory else None,
            np.flatnonzero(jl.diagnostics.dead_units(h)).tolist(),
            [(int(one), int(other)) for one, other in pairs],
            sizes / np.maximum(sizes.max(1, keepdims=True), 1e-30),
            int(np.median(spans)),
        )
        found.append(facts)
    return found


def _sensitivity(
    trained: Trained, layer: int, params: Any, tokens: jax.Array, resets: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return gradient norms `[T - 1, rows]` and the memory span `[rows]` of a layer.

    The loss is that of the last token, predicted from those before it.
    """
    task: Any = trained.task
    model, rnn, table = trained.config.model, params["rnn"], params["embed"].table
    cell = task.cell(model)

    def apply(number: int, xs: jax.Array) -> jax.Array:
        _, hs = jl.unroll(cell, rnn[number], xs, resets=resets)
        return xs + hs if model.residual and number else hs

    _, xs = jl.embed(*table.shape, dtype=model.dtype).apply(
        params["embed"], tokens[:-1]
    )
    for below in range(layer):
        xs = apply(below, xs)

    def loss(state: Any, hs: jax.Array) -> jax.Array:
        ys = xs + hs if model.residual and layer else hs
        for above in range(layer + 1, len(rnn)):
            ys = apply(above, ys)
        _, logits = jl.linear(len(table)).apply(params["unembed"], ys[-1:])
        return task.cross_entropy(logits[0], tokens[-1]).sum()

    def projections(state: Any) -> jax.Array:
        """Project h on random directions; each takes one backward pass."""
        shape = state.h.shape[-1], DIRECTIONS
        return state.h @ jax.random.normal(jax.random.key(0), shape, state.h.dtype)

    own = rnn[layer]
    norm = jl.diagnostics.gradient_flow(cell, own, xs, loss=loss, resets=resets).norm
    span = jl.diagnostics.memory_span(
        cell, own, xs, output=projections, share=SHARE, resets=resets
    ).span
    return getattr(norm, "c", norm.h)[:-1], span
