"""Statistics of recurrent layers: saturation, timescales, reach of gradients."""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

import jaxlstm as jl
from jaxlstm.diagnostics.gates import Saturation
from jaxlstm.lab.analysis import traces
from jaxlstm.lab.analysis.traces import Floats, Traces

if TYPE_CHECKING:
    from jaxlstm.lab.runs.trained import Trained

STEPS, DIRECTIONS = 512, 16
ROWS = 8  # passages that gradients are taken of
SHARE = 0.01  # of the largest gradient; smaller ones are ignored
GATES = {"i": "input", "f": "forget", "o": "output", "r": "reset", "z": "update"}


class LayerFacts(NamedTuple):
    """Statistics of one layer.

    Attributes:
        units: The number of units.
        saturation: Shares of steps at which each gate is closed and open, `[H]` by
            letter; None for a cell without gates.
        timescales: Timescales `[H]` in steps; None without a forget or update gate.
        dead: Units whose h never changes.
        duplicates: Pairs of units whose h is the same up to scale.
        flow: `[rows, T - 1]`, norm of the gradient of the last loss with respect to c,
            or h, after each step but the last, as a share of its maximum.
        reach: For how many steps back the gradient stays above `SHARE`, `[rows]`; 0 in
            passages without a gradient.
        span: The largest lag at which an input of the layer changes its output by
            `SHARE` of the largest change, as the median over rows; -1 for nowhere.
    """

    units: int
    saturation: Saturation | None
    timescales: Floats | None
    dead: list[int]
    duplicates: list[tuple[int, int]]
    flow: Floats
    reach: NDArray[np.int64]
    span: int


def facts_of_layers(trained: "Trained", seen: Traces) -> list[LayerFacts]:
    """Return the statistics of each recurrent layer over a text."""
    positions = seen.positions[:ROWS, -STEPS - 1 :]
    tokens = jnp.asarray(seen.text.tokens[positions].T)
    resets = traces.resets(trained, tokens)[:-1]
    found = []

    def steps_first(values: Floats) -> Floats:
        return values.reshape(*seen.positions.shape, -1).swapaxes(0, 1)

    for layer, units in enumerate(seen.layers):
        measure = jax.jit(functools.partial(_sensitivity, trained, layer))
        norms, spans = measure(trained.params, tokens, resets)
        sizes = np.asarray(norms, np.float32).T
        flow = sizes / np.maximum(sizes.max(1, keepdims=True), 1e-30)
        h = steps_first(units["h"])
        gates = {name: steps_first(v) for name, v in traces.gates(units).items()}
        has_memory = any(letter in gates for letter in "fz")
        pairs = np.argwhere(np.asarray(jl.diagnostics.duplicate_units(h).pairs))
        facts = LayerFacts(
            units[traces.memory(units)].shape[-1],
            jl.diagnostics.saturation(gates) if gates else None,
            np.asarray(jl.diagnostics.timescales(gates)) if has_memory else None,
            np.flatnonzero(jl.diagnostics.dead_units(h)).tolist(),
            [(int(one), int(other)) for one, other in pairs],
            flow,
            reach(flow),
            int(np.median(spans)),
        )
        found.append(facts)
    return found


def reach(flow: Floats) -> NDArray[np.int64]:
    """Return for how many steps back each row stays above `SHARE`.

    Counted from the last step to the first one, before the maximum, that is below
    `SHARE`; 0 for a row of zeros.

    Args:
        flow: `[rows, T - 1]`, as in `LayerFacts`.

    Example:
        >>> reach(np.array([[0.02, 0.002, 0.02, 1.0], [0.0, 0.0, 0.0, 0.0]])).tolist()
        [2, 0]
    """
    size = flow.shape[1]
    at = np.arange(size)
    before_maximum = at <= flow.argmax(1)[:, None]
    below = np.where(before_maximum & (flow < SHARE), at, -1).max(1)
    return np.where(flow.any(1), size - 1 - below, 0)


def _sensitivity(
    trained: "Trained", layer: int, params: Any, tokens: jax.Array, resets: jax.Array
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


# -- output ------------------------------------------------------------------


def sentences(number: int, facts: LayerFacts) -> list[str]:
    """Return the statistics of a layer in words."""
    closed, opened = facts.saturation or ({}, {})
    found = [
        f"The {name} gates of layer {number} are closed (below 0.1) at "
        f"{100 * float(np.mean(closed[letter])):.0f} % of the steps and open (above "
        f"0.9) at {100 * float(np.mean(opened[letter])):.0f} %."
        for letter, name in GATES.items()
        if letter in opened
    ]
    if (taus := facts.timescales) is not None:
        longest = ", ".join(
            f"unit {unit} ({_steps(float(taus[unit]))})"
            for unit in np.argsort(-taus)[:3].tolist()
        )
        median = float(np.median(taus))
        kept = 100 * np.exp(-1 / max(median, 1e-9))
        found.append(
            f"The median timescale is {_steps(median)}: half of the units keep at most "
            f"{kept:.0f} % of their state from one step to the next. The longest are "
            f"{longest}."
        )
    pairs = [f"{one} and {other}" for one, other in facts.duplicates]
    found.append(
        f"Dead units, whose h never changes: {_some(facts.dead)}. Duplicates, pairs of "
        f"units with the same h up to scale: {_some(pairs)}."
    )
    if not facts.reach.any() or facts.span < 0:
        return [*found, "All gradients are 0."]
    most, rows, share = facts.flow.shape[1], facts.reach, f"{100 * SHARE:.0f} %"
    passages = f"median of {len(rows)} passages" if len(rows) > 1 else "one passage"
    spread = f", {rows.min()} to {rows.max()}" if rows.min() < rows.max() else ""
    found.append(
        f"The gradient of the last loss stays above {share} of its maximum for "
        f"{_at_most(int(np.median(rows)), most)} steps back ({passages}{spread})."
    )
    found.append(
        f"An input still changes the output of the layer, by {share} of the largest "
        f"change, {_at_most(facts.span, most)} steps later ({passages})."
    )
    return found


def _at_most(steps: int, most: int) -> str:
    """Return a number of steps, which is a lower bound if all steps were reached."""
    return f"{steps} or more" if steps >= most else f"{steps}"


def _steps(tau: float) -> str:
    if tau > traces.STRETCH:
        return f"more than {traces.STRETCH:,} steps"
    digits = 2 if tau < 1 else 1 if tau < 10 else 0
    return f"{tau:.{digits}f} steps"


def _some(names: Sequence[object]) -> str:
    if not names:
        return "none"
    more = ", ..." if len(names) > 5 else ""
    return f"{len(names)} ({', '.join(map(str, names[:5]))}{more})"


def to_json(facts: LayerFacts) -> dict[str, Any]:
    """Return the statistics of a layer as values that JSON can represent."""
    taus, (closed, opened) = facts.timescales, facts.saturation or ({}, {})
    if taus is not None:  # JSON has no infinity, which a gate that is always 1 gives
        taus = [tau if np.isfinite(tau) else None for tau in taus.tolist()]
    return {
        "units": facts.units,
        "saturated": {
            name: {"shut": float(low.mean()), "open": float(opened[name].mean())}
            for name, low in closed.items()
        },
        "timescales": taus,
        "dead": facts.dead,
        "duplicates": facts.duplicates,
        "gradient_reach": int(np.median(facts.reach)),
        "memory_span": facts.span,
        "steps": facts.flow.shape[1] + 1,
    }
