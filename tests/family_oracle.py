"""All cells and wrappers in NumPy: one row and one step at a time, from the papers.

It shares no code with the library, and has no batches, mask arithmetic or loop
primitives: a row is a Python loop, an inactive step is a `continue`, a length is the
end of a `range`, and a convolution is a loop over its kernel. No function depends on a
dtype, so complex numbers work, and `along` computes derivatives by the complex step:
Im f(a + i h v) / h, with h = 1e-30, which has no cancellation.

Parameters, states and gates are dicts with the names of the library's records. Wrappers
have their behaviour without a key.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from oracle import Which

Named = dict[str, Any]
Change = Callable[[np.ndarray], np.ndarray]


class Model(NamedTuple):
    """A cell, perhaps wrapped.

    begin   (params, space) -> the state of one row before its first step
    step    (params, state, x, at, shown) -> (state, gates): one step of one row; `at`
            is (t, *row), and `shown` changes c_t before anybody sees it
    """

    begin: Callable[[Named, tuple[int, ...]], Named]
    step: Callable[..., tuple[Named, Named]]


def same(value):
    return value


def sigmoid(z):
    """Return 1 / (1 + exp(-z)) = (1 + tanh(z / 2)) / 2, which cannot overflow."""
    return 0.5 + 0.5 * np.tanh(0.5 * z)


# --- cells: step(p, h, c, x, shown) -> (h, c, gates), of one row ----------------------


def sums(p: Named, x, h) -> list:
    """Return `W_x x + W_h h + b` of each gate."""
    gates = range(len(p["b"]))
    return [x @ p["w_x"][:, k] + h @ p["w_h"][:, k] + p["b"][k] for k in gates]


def lstm(p, h, c, x, shown):
    """Hochreiter and Schmidhuber 1997 with the forget gate of Gers et al. 2000."""
    return written(*sums(p, x, h), c, shown)


def written(z_i, z_f, z_g, z_o, c, shown):
    i, f, g, o = sigmoid(z_i), sigmoid(z_f), np.tanh(z_g), sigmoid(z_o)
    c = shown(f * c + i * g)
    return o * np.tanh(c), c, {"i": i, "f": f, "g": g, "o": o}


def classic(p, h, c, x, shown):
    """Hochreiter and Schmidhuber 1997, without a forget gate."""
    z_i, z_g, z_o = sums(p, x, h)
    i, g, o = sigmoid(z_i), np.tanh(z_g), sigmoid(z_o)
    c = shown(c + i * g)
    return o * np.tanh(c), c, {"i": i, "f": np.ones(i.shape), "g": g, "o": o}


def peephole(p, h, c, x, shown):
    """Gers and Schmidhuber 2000: o reads the new c, i and f the old."""
    z_i, z_f, z_g, z_o = sums(p, x, h)
    i, f = sigmoid(z_i + p["p_i"] * c), sigmoid(z_f + p["p_f"] * c)
    g = np.tanh(z_g)
    c = shown(f * c + i * g)
    o = sigmoid(z_o + p["p_o"] * c)
    return o * np.tanh(c), c, {"i": i, "f": f, "g": g, "o": o}


def coupled(p, h, c, x, shown):
    """Greff et al. 2017, CIFG: i = 1 - f."""
    z_f, z_g, z_o = sums(p, x, h)
    f = sigmoid(z_f if p["p_f"] is None else z_f + p["p_f"] * c)
    g = np.tanh(z_g)
    c = shown(f * c + (1.0 - f) * g)
    o = sigmoid(z_o if p["p_o"] is None else z_o + p["p_o"] * c)
    return o * np.tanh(c), c, {"i": 1.0 - f, "f": f, "g": g, "o": o}


def projected(p, h, c, x, shown):
    """Sak et al. 2014: h is a projection to fewer units."""
    h, c, gates = lstm(p, h, c, x, shown)
    return h @ p["w_p"], c, gates


def layer_norm(p, h, c, x, shown):
    """Ba et al. 2016, eq. 20 to 22; each sum normalised over all gates together."""
    of_x = np.stack([x @ p["w_x"][:, k] for k in range(4)])
    of_h = np.stack([h @ p["w_h"][:, k] for k in range(4)])
    z = normal(of_x) * p["s_x"] + normal(of_h) * p["s_h"] + p["b"]
    _, c, gates = written(*z, c, shown)
    return gates["o"] * np.tanh(normal(c) * p["s_c"] + p["b_c"]), c, gates


def normal(values):
    centred = values - np.mean(values)
    return centred / np.sqrt(np.mean(centred * centred) + 1e-5)


def conv_lstm(p, h, c, x, shown):
    """Shi et al. 2015 without peepholes: every product is a convolution."""
    z = convolved(x, p["w_x"]) + convolved(h, p["w_h"]) + p["b"]
    return written(*(z[..., k, :] for k in range(4)), c, shown)


def convolved(x, w):
    """Convolve [*space, K] with [*kernel, K, G, H] to [*space, G, H], zero-padded."""
    space, kernel = x.shape[:-1], w.shape[:-3]
    rows = []
    for place in np.ndindex(space):
        total = np.zeros(w.shape[-2:])
        for offset in np.ndindex(kernel):
            seen = tuple(
                p + o - (k - 1) // 2
                for p, o, k in zip(place, offset, kernel, strict=True)
            )
            if all(0 <= s < size for s, size in zip(seen, space, strict=True)):
                total = total + np.tensordot(x[seen], w[offset], 1)
        rows.append(total)
    return np.array(rows).reshape(*space, *w.shape[-2:])


def simple_rnn(p, h, c, x, shown):
    """Elman 1990."""
    g = np.tanh(x @ p["w_x"] + h @ p["w_h"] + p["b"])
    return g, None, {"g": g}


def gru(p, h, c, x, shown):
    """Cho et al. 2014; with b_h the form of cuDNN, which resets after the product."""
    w_h = p["w_h"]
    of_x = [x @ p["w_x"][:, k] + p["b"][k] for k in range(3)]
    r, z = (sigmoid(of_x[k] + h @ w_h[:, k]) for k in range(2))
    if p["b_h"] is None:
        n = np.tanh(of_x[2] + (r * h) @ w_h[:, 2])
    else:
        n = np.tanh(of_x[2] + r * (h @ w_h[:, 2] + p["b_h"]))
    return (1.0 - z) * n + z * h, None, {"r": r, "z": z, "n": n}


def model(equations) -> Model:
    """Return the model of these equations, with zeros as its initial state."""

    def begin(p: Named, space: tuple[int, ...]) -> Named:
        hidden = p["b"].shape[-1]
        shown = p["w_p"].shape[1] if "w_p" in p else hidden
        state = {"h": np.zeros((*space, shown)), "c": np.zeros((*space, hidden))}
        return {"h": state["h"]} if equations in (simple_rnn, gru) else state

    def step(p: Named, state: Named, x, at, shown: Change = same):
        h, c, gates = equations(p, state["h"], state.get("c"), x, shown)
        return ({"h": h} if c is None else {"h": h, "c": c}), gates

    return Model(begin, step)


# --- wrappers: model -> model ---------------------------------------------------------


def zoneout(inner: Model, rates: dict[str, float]) -> Model:
    """Krueger et al. 2017: the expectation of the mixture of old and new state."""

    def step(p, state, x, at, shown=same):
        after, gates = inner.step(p, state, x, at, shown)
        return {
            k: rates[k] * state[k] + (1.0 - rates[k]) * after[k] for k in after
        }, gates

    return Model(inner.begin, step)


def clip_cell(inner: Model, limit: float) -> Model:
    """Clip c_t to ±limit, by its real part."""

    def clip(c):
        size = np.real(c)
        return np.where(size > limit, limit, np.where(size < -limit, -limit, c))

    def step(p, state, x, at, shown=same):
        return inner.step(p, state, x, at, lambda c: shown(clip(c)))

    return Model(inner.begin, step)


def learned_initial_state(inner: Model) -> Model:
    """Make the initial state, also after resets, a parameter."""

    def begin(p, space):
        state = p["state"]
        return {k: np.zeros((*space, 1)) + leaf for k, leaf in state.items()}

    def step(p, state, x, at, shown=same):
        return inner.step(p["params"], state, x, at, shown)

    return Model(begin, step)


def taps(inner: Model) -> Model:
    """Add a tap to the state after every step."""

    def begin(p, space):
        return inner.begin(p["params"], space)

    def step(p, state, x, at, shown=same):
        after, gates = inner.step(p["params"], state, x, at, shown)
        if p["taps"] is None:
            return after, gates
        return {k: leaf + p["taps"][k][at] for k, leaf in after.items()}, gates

    return Model(begin, step)


# --- whole sequences ------------------------------------------------------------------


class Question(NamedTuple):
    """params, xs [T, *b, *space, D], state of leaves [*b, *space, H], or None."""

    params: Named
    xs: np.ndarray
    state: Named | None


def plain(tree):
    """Return dicts of NumPy arrays in place of records of JAX arrays."""
    if tree is None:
        return None
    if isinstance(tree, tuple) and hasattr(tree, "_asdict"):
        return {name: plain(leaf) for name, leaf in tree._asdict().items()}
    return np.asarray(tree)


def forward(
    model: Model, question: Question, which: Which, spatial_axes: int = 0
) -> tuple[Named, Named]:
    """Return the last state, and {state, gates} of each step, zero if inactive."""
    params, xs, state = question
    axes = xs.ndim - 1 - spatial_axes
    batch, space = xs.shape[1:axes], xs.shape[axes:-1]
    kind = np.result_type(*leaves(tuple(question)))
    begin = functools.partial(model.begin, params, space)
    nothing = model.step(params, begin(), np.zeros(xs.shape[axes:]), (0,) * axes)
    last = filled(begin(), batch, kind)
    emitted = [filled(one, xs.shape[:axes], kind) for one in nothing]
    for row in np.ndindex(batch):
        now = begin() if state is None else {k: v[row] for k, v in state.items()}
        for t in order(which, len(xs), row):
            if which.mask is not None and not which.mask[(t, *row)]:
                continue
            if which.resets is not None and which.resets[(t, *row)]:
                now = begin()
            now, gates = model.step(params, now, xs[(t, *row)], (t, *row))
            for into, values in zip(emitted, (now, gates), strict=True):
                for name in values:
                    into[name][(t, *row)] = values[name]
        for name in now:
            last[name][row] = now[name]
    return last, dict(zip(("state", "gates"), emitted, strict=True))


def order(which: Which, time: int, row: tuple[int, ...]) -> range:
    """Return the steps of a row in the order of the run."""
    end = time if which.lengths is None else int(which.lengths[row])
    return range(end)[::-1] if which.reverse else range(end)


def filled(like: Named, axes: tuple[int, ...], kind) -> Named:
    """Return zeros of these shapes with additional leading axes."""
    return {k: np.zeros((*axes, *np.shape(v)), kind) for k, v in like.items()}


def leaves(tree) -> list[np.ndarray]:
    """Return all arrays of nested dicts and tuples, in the order of names."""
    if tree is None:
        return []
    if isinstance(tree, dict):
        tree = [tree[name] for name in sorted(tree)]
    if isinstance(tree, tuple | list):
        return [leaf for branch in tree for leaf in leaves(branch)]
    return [np.asarray(tree)]


def moved(question, direction, size):
    """Return `question + size * direction`, leaf by leaf."""
    if question is None:
        return None
    if isinstance(question, dict):
        return {k: moved(v, direction[k], size) for k, v in question.items()}
    if isinstance(question, tuple):
        pairs = zip(question, direction, strict=True)
        return Question(*(moved(a, v, size) for a, v in pairs))
    return question + size * direction


def dot(one, other):
    """Return the inner product of all leaves."""
    pairs = zip(leaves(one), leaves(other), strict=True)
    return sum(np.sum(a * b) for a, b in pairs)


def along(
    model: Model,
    question: Question,
    direction: Question,
    cotangents,
    which: Which,
    spatial_axes: int = 0,
) -> tuple[tuple[Named, Named], float]:
    """Return the answer, and d<cotangents, answer> along the direction.

    By a complex step, exact to rounding: the answer is the real part.
    """
    tiny = 1e-30
    stepped = moved(question, direction, 1j * tiny)
    answer = forward(model, stepped, which, spatial_axes)
    return real(answer), np.imag(dot(answer, cotangents)) / tiny


def real(tree):
    if isinstance(tree, dict):
        return {name: real(leaf) for name, leaf in tree.items()}
    if isinstance(tree, tuple):
        return tuple(map(real, tree))
    return np.real(tree)
