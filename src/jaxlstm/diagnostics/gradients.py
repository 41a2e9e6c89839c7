"""What flows back through time: gradients, and how far back they reach."""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jaxlstm import masking
from jaxlstm.cells import emit as emits
from jaxlstm.cells.base import Cell, Params, State
from jaxlstm.cells.emit import Emit, Trace
from jaxlstm.cells.wrappers import Tapped, taps
from jaxlstm.diagnostics.gates import forget_products, number
from jaxlstm.masking import StepMask
from jaxlstm.typing import Features, Hidden, accumulator_dtype, show
from jaxlstm.unrolling import unroll
from jaxlstm.validation import check_function

# Of what `unroll` returns, the final state and what was emitted: one number.
Loss = Callable[[State, Any], Array]


class GradientFlow(NamedTuple):
    """The gradient of a loss with respect to the state after each step.

    gradient   dL/dh_t, dL/dc_t: a state of `[T, *b, H]`
    norm       its Euclidean norm over the units, a state of `[T, *b]`, in float32 or
               wider, as are all norms here
    """

    gradient: State
    norm: State


class Carousel(NamedTuple):
    """How much of a cell state arrives at the end, by its gates and in truth.

    product      `[T, *b, H]`, the forget gates that follow multiplied, unit by unit
    derivative   `[T, *b, H]`, dc_T[k] / dc_t[k], the diagonal of the Jacobian
    norm         `[T, *b]`, the Frobenius norm of the whole Jacobian `[H, H]`
    """

    product: Hidden
    derivative: Hidden
    norm: Array


class MemorySpan(NamedTuple):
    """How much an input still changes the output, by how long ago it came.

    sensitivity   `[T, *b]`, the Frobenius norm of dy / dx at each lag; lag 0 is the
                  last step of the row, and lags before its first one are 0
    span          whole numbers `[*b]`, the largest lag at which the sensitivity is
                  above the share of its maximum; -1 where no input changes anything,
                  and where the sensitivity is not a number
    """

    sensitivity: Array
    span: Array


def gradient_flow(
    cell: Cell,
    params: Params,
    xs: ArrayLike,
    state: State | None = None,
    *,
    loss: Loss,
    emit: Emit = emits.hidden,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    resets: ArrayLike | None = None,
) -> GradientFlow:
    """The gradient of any loss with respect to h_t and c_t for every t, in one pass:

        dL/dh_t, dL/dc_t        of the state as step t hands it on

    What reaches c_t by way of h_t, which was made before, counts in dL/dh_t; see
    `jl.taps`. 0 at a step that does not happen.

    Arguments:
        loss: `(state, emitted) -> number`, of what `unroll` returns.
        emit: what the loss gets to see of each step.
        others: as in `unroll`.

    Errors: `ValueError` as `unroll`, for a loss that is not one floating point number,
    and for a state that has no derivative.

    Reference: Hochreiter, "The vanishing gradient problem during learning recurrent
    neural nets", 1998, https://doi.org/10.1142/S0218488598000094

    >>> import jax, jax.numpy as jnp, jaxlstm as jl
    >>> cell = jl.lstm()
    >>> params = cell.init(jax.random.key(0), input_size=3, hidden_size=5)
    >>> flow = gradient_flow(
    ...     cell, params, jnp.ones((7, 2, 3)), loss=lambda state, hs: hs[-1].sum()
    ... )
    >>> flow.gradient.c.shape, flow.norm.h.shape, bool((flow.gradient.h[-1] == 1).all())
    ((7, 2, 5), (7, 2), True)
    """
    with masking.error_prefix("gradient_flow"):
        example = "lambda state, hs: hs[-1].sum()"
        check_function("loss", loss, "state", "emitted", such_as=example)
        through = functools.partial(
            unroll, taps(cell), lengths=lengths, mask=mask, resets=resets
        )

        def run(own: State | None, emit: Emit) -> tuple[State, Any]:
            return through(Tapped(params, own), xs, state, emit=emit)

        def loss_of(own: State) -> Array:
            return _one_number("loss", loss(*run(own, emit)))

        _, states = run(None, emits.states)
        check_differentiable(states)
        zeros = jax.tree.map(jnp.zeros_like, states)  # split over devices as these are
        steps = _steps(cell, xs, lengths, mask, resets)
        gradient = masking.mask_outputs(jax.grad(loss_of)(zeros), steps)
        frame = jnp.ndim(xs) - 1 - cell.spatial_axes
        norm = jax.tree.map(lambda d: _norm(d, range(frame, d.ndim)), gradient)
        return GradientFlow(gradient, norm)


def carousel(
    cell: Cell,
    params: Params,
    xs: ArrayLike,
    state: State | None = None,
    *,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    resets: ArrayLike | None = None,
) -> Carousel:
    """The constant error carousel beside the true derivative:

        ∏ f_s  over t < s <= T        dc_T / dc_t

    The product is the derivative with the gates held fast. The truth also has what
    goes by way of h and the gates after step t; where the two agree, the carousel is
    what carries the gradient. It takes one backward pass for each unit. Of a GRU, c is
    h and f is z. The gates are those of the cell within: what a wrapper keeps or cuts
    off after its step, as zoneout and clip_cell do, is in the derivative only.

    Arguments:
        others: as in `unroll`.

    Errors: `ValueError` as `unroll`, and for a cell without a forget gate or with
    spatial axes.

    Reference: Hochreiter and Schmidhuber, "Long short-term memory", 1997,
    https://doi.org/10.1162/neco.1997.9.8.1735

    >>> import jax, jax.numpy as jnp, jaxlstm as jl
    >>> cell = jl.lstm()
    >>> params = cell.init(jax.random.key(0), input_size=3, hidden_size=5)
    >>> alone = params._replace(w_h=jnp.zeros_like(params.w_h))
    >>> found = carousel(cell, alone, jnp.ones((7, 2, 3)))
    >>> bool(jnp.allclose(found.product, found.derivative))
    True
    """
    with masking.error_prefix("carousel"):
        check_rows_apart(cell)
        through = functools.partial(unroll, lengths=lengths, mask=mask, resets=resets)
        trace: Trace = through(cell, params, xs, state, emit=emits.trace)[1]
        product = forget_products(
            trace.gates, lengths=lengths, mask=mask, resets=resets
        )
        zeros = jax.tree.map(jnp.zeros_like, trace.state)
        name = "c" if hasattr(zeros, "c") else "h"

        def last(own: Hidden) -> Hidden:
            tapped = Tapped(params, zeros._replace(**{name: own}))
            after, _ = through(taps(cell), tapped, xs, state, emit=emits.nothing)
            return getattr(after, name)

        found = _jacobian(last, getattr(zeros, name))
        steps = _steps(cell, xs, lengths, mask, resets)
        return Carousel(product, *masking.mask_outputs(found, steps))


def memory_span(
    cell: Cell,
    params: Params,
    xs: ArrayLike,
    state: State | None = None,
    *,
    output: Callable[[State], Array] | None = None,
    share: float = 0.01,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    resets: ArrayLike | None = None,
) -> MemorySpan:
    """How far back an input still changes the output:

        sensitivity at lag k = ‖dy / dx_{T-k}‖        y by default h_T

    along the trajectory of xs; lags count the steps that happen. It takes one backward
    pass for each number in y.

    Arguments:
        output: `(state) -> [*b, K]`, a function of the final state; rows apart.
        share: of the maximum, below which a sensitivity does not count.
        others: as in `unroll`.

    Errors: `ValueError` as `unroll`, for a share outside 0 <= share < 1, for an output
    of another shape, and for a cell with spatial axes.

    >>> import jax, jax.numpy as jnp, jaxlstm as jl
    >>> cell = jl.simple_rnn(activation="identity")
    >>> params = cell.init(jax.random.key(0), input_size=1, hidden_size=1)
    >>> half = params._replace(w_x=jnp.ones((1, 1)), w_h=jnp.full((1, 1), 0.5))
    >>> found = memory_span(cell, half, jnp.ones((9, 1)), share=0.1)
    >>> found.sensitivity[:4].tolist(), int(found.span)
    ([1.0, 0.5, 0.25, 0.125], 3)
    """
    with masking.error_prefix("memory_span"):
        check_rows_apart(cell)
        share = number("share", share)
        if not 0 <= share < 1:
            raise ValueError(f"share is {share!r}; a number 0 <= share < 1 is needed.")
        if output is not None:
            check_function("output", output, "state", such_as="lambda state: state.c")
        xs = masking.features("xs", xs)
        through = functools.partial(unroll, lengths=lengths, mask=mask, resets=resets)

        def last(xs: Features) -> Array:
            after, _ = through(cell, params, xs, state, emit=emits.nothing)
            return emits.hidden(after, None) if output is None else output(after)

        shape = _one_array("output", jax.eval_shape(last, xs), "state.h").shape
        if shape[:-1] != xs.shape[1:-1] or not shape:
            raise ValueError(
                f"output gives {show(shape)}; a vector for each of the rows "
                f"{show(xs.shape[1:-1])} is needed."
            )
        norm = _jacobian(last, xs)[1]
        steps = _steps(cell, xs, lengths, mask, resets)
        norm = _by_lag(masking.zero_inactive(norm, steps), steps)
        counts = norm > share * norm.max(0, initial=0.0, keepdims=True)
        lags = jnp.arange(len(xs)).reshape(-1, *(1,) * (norm.ndim - 1))
        span = jnp.where(counts, jnp.broadcast_to(lags, norm.shape), -1)
        if steps.invalid_length is not None:
            norm = masking.nan_rows(
                norm, jnp.broadcast_to(steps.invalid_length, norm.shape)
            )
        return MemorySpan(norm, span.max(0, initial=-1))


def compare(
    cells: Mapping[str, tuple[Cell, Params]],
    xs: ArrayLike,
    *,
    loss: Loss,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    resets: ArrayLike | None = None,
) -> dict[str, GradientFlow]:
    """The gradient flow of several cells on the same data, by name.

    Each begins from its own initial state; the loss sees h of every step.

    Arguments:
        cells: for each name a cell and its parameters.
        others: as in `gradient_flow`.

    Errors: `ValueError` for no cells and as `gradient_flow`, with the name.

    >>> import jax, jax.numpy as jnp, jaxlstm as jl
    >>> cells = {"LSTM": jl.lstm(), "RNN": jl.simple_rnn()}
    >>> key = jax.random.key(0)
    >>> trained = {name: (cell, cell.init(key, 3, 5)) for name, cell in cells.items()}
    >>> flows = compare(trained, jnp.ones((20, 3)), loss=lambda state, hs: hs[-1].sum())
    >>> {name: flow.norm.h.shape for name, flow in flows.items()}
    {'LSTM': (20,), 'RNN': (20,)}
    """
    if not isinstance(cells, Mapping) or not cells:
        raise ValueError(
            f"compare: cells is {cells!r:.60}; a dict such as "
            '{"LSTM": (cell, params)} is needed.'
        )
    flow = functools.partial(
        gradient_flow, loss=loss, lengths=lengths, mask=mask, resets=resets
    )
    flows = {}
    for name, pair in cells.items():
        with masking.error_prefix(f'compare: cells["{name}"]'):
            if not isinstance(pair, tuple) or isinstance(pair, Cell) or len(pair) != 2:
                raise ValueError(
                    f"a {type(pair).__name__} came; a pair (cell, params) is needed."
                )
            try:
                flows[name] = flow(*pair, xs)
            except AttributeError as error:  # a loss that reads what not all cells have
                error.add_note(f'compare: this came of cells["{name}"].')
                raise
    return flows


def check_rows_apart(cell: Cell) -> None:
    """Errors: `ValueError` for a cell in which places of an image touch each other."""
    if isinstance(cell, Cell) and cell.spatial_axes:
        raise ValueError(
            f"cell has {cell.spatial_axes} spatial axes, over which its Jacobian is "
            "not taken; gradient_flow serves every cell."
        )


def check_differentiable(state: State) -> None:
    """Errors: `ValueError` for a state with a leaf that has no derivative."""
    for path, leaf in jax.tree.leaves_with_path(state):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            raise ValueError(
                f"the state's leaf {jax.tree_util.keystr(path)} is {leaf.dtype}, by "
                "which there is no derivative; floating point numbers are needed."
            )


# -- what these share --------------------------------------------------------------


def _jacobian(function: Callable[[Array], Array], at: Array) -> tuple[Array, Array]:
    """Of a function `[T, *b, N] -> [*b, K]` that keeps rows apart: the diagonal of
    its Jacobian, `[T, *b, K]`, and the Frobenius norm, `[T, *b]`.

    One backward pass after the other, so that no more than one is in memory. The
    diagonal stands for something where N is K.
    """
    values, pull = jax.vjp(function, at)
    size = values.shape[-1]

    def one(unit: Array) -> tuple[Array, Array]:
        basis = jax.nn.one_hot(unit, size, dtype=values.dtype)
        (row,) = pull(jnp.ones_like(values) * jnp.broadcast_to(basis, values.shape))
        own = jnp.take(row, jnp.minimum(unit, row.shape[-1] - 1), axis=-1)
        return own, _norm(row, [row.ndim - 1])

    diagonal, norms = lax.map(one, jnp.arange(size))
    return jnp.moveaxis(diagonal, 0, -1), _norm(norms, [0])


def _by_lag(values: Array, steps: StepMask) -> Array:
    """Values `[T, *b]` in the order of the steps that happen, the last one first."""
    if steps.active is None:
        return values[::-1]
    order = jnp.argsort(~steps.active[::-1], axis=0, stable=True)
    return jnp.take_along_axis(values[::-1], order, axis=0)


def _steps(
    cell: Cell,
    xs: ArrayLike,
    lengths: ArrayLike | None,
    mask: ArrayLike | None,
    resets: ArrayLike | None,
) -> StepMask:
    shape = jnp.shape(xs)
    frame = shape[: len(shape) - 1 - cell.spatial_axes]
    return masking.steps(frame, lengths=lengths, mask=mask, resets=resets)


def _norm(values: Array, axes: Iterable[int]) -> Array:
    """The Euclidean norm over the axes, in float32 or wider.

    Taken of shares of the largest, so that no square is lost that counts; at 0 its
    derivative is 0.
    """
    axes = tuple(axes)
    values = values.astype(accumulator_dtype(values.dtype))
    top = lax.stop_gradient(jnp.abs(values).max(axes, keepdims=True, initial=0.0))
    top = jnp.where((top > 0) & jnp.isfinite(top), top, 1.0)
    squares = ((values / top) ** 2).sum(axes, keepdims=True)
    nothing = squares == 0
    root = jnp.where(nothing, 0.0, jnp.sqrt(jnp.where(nothing, 1.0, squares)))
    return jnp.squeeze(top * root, axes)


def _one_number(name: str, value: Any) -> Array:
    value = _one_array(name, value, "its .sum()")
    if jnp.shape(value) != ():
        raise ValueError(
            f"{name} gives an array of shape {show(jnp.shape(value))}; one number is "
            "needed, such as the .sum() of it."
        )
    return jnp.asarray(value)


def _one_array(name: str, value: Any, example: str) -> Any:
    """Errors: `ValueError` for what is not one array of floating point numbers."""
    if not hasattr(value, "shape") and not isinstance(value, float):
        raise ValueError(
            f"{name} gives a {type(value).__name__}; one array is needed, such as "
            f"{example}."
        )
    if not jnp.issubdtype(jnp.result_type(value), jnp.floating):
        raise ValueError(
            f"{name} gives {jnp.result_type(value)}; floating point numbers are needed."
        )
    return value
