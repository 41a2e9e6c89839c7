"""Gradients with respect to states and inputs, and how far back in time they reach."""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, overload

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jaxlstm import masking
from jaxlstm.cells import emit as emits
from jaxlstm.cells.base import Cell, Params, State
from jaxlstm.cells.emit import Emit, Trace
from jaxlstm.cells.wrappers import Tapped, taps
from jaxlstm.diagnostics._common import as_number
from jaxlstm.diagnostics.intervals import forget_products
from jaxlstm.diagnostics.tapped_models import Recurrent, tapped_params, with_taps
from jaxlstm.layers.base import Layer
from jaxlstm.masking import StepMask
from jaxlstm.typing import Features, Hidden, accumulator_dtype, show
from jaxlstm.unrolling import unroll
from jaxlstm.validation import check_function

# (final state, emitted) -> one number, on the results of `unroll`.
Loss = Callable[[State, Any], Array]


class GradientFlow(NamedTuple):
    """Gradient of a loss with respect to the state after each step.

    Attributes:
        gradient: dL/dh_t and dL/dc_t, a state with leaves `[T, *b, H]`.
        norm: Euclidean norm over the units, a state with leaves `[T, *b]`, in float32
            or wider.
    """

    gradient: State
    norm: State


class Carousel(NamedTuple):
    """Derivative of the last cell state with respect to each earlier one.

    Attributes:
        product: `[T, *b, H]`, the product of the forget gates after the step.
        derivative: `[T, *b, H]`, dc_T[k] / dc_t[k], the diagonal of the Jacobian.
        norm: `[T, *b]`, the Frobenius norm of the whole Jacobian `[H, H]`, in float32
            or wider.
    """

    product: Hidden
    derivative: Hidden
    norm: Array


class MemorySpan(NamedTuple):
    """Sensitivity of an output to the inputs, by their distance from the last step.

    Attributes:
        sensitivity: `[T, *b]`, the Frobenius norm of dy / dx at each lag. Lag 0 is the
            last executed step of the row; lags before its first step have 0.
        span: integers `[*b]`, the largest lag, in steps, whose sensitivity exceeds the
            given share of the maximum; -1 if no input has an effect, or if the
            sensitivity is NaN.
    """

    sensitivity: Array
    span: Array


@overload
def gradient_flow(
    cell: Cell,
    params: Params,
    xs: ArrayLike,
    state: State | None = None,
    *,
    loss: Loss,
    emit: Emit = emits.hidden,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | StepMask | None = None,
    resets: ArrayLike | None = None,
) -> GradientFlow: ...
@overload
def gradient_flow(
    cell: Layer,
    params: Params,
    xs: ArrayLike,
    state: State | None = None,
    *,
    loss: Loss,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | StepMask | None = None,
    resets: ArrayLike | None = None,
) -> dict[str, GradientFlow]: ...


def gradient_flow(
    cell: Cell | Layer,
    params: Params,
    xs: ArrayLike,
    state: State | None = None,
    *,
    loss: Loss,
    emit: Emit = emits.hidden,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | StepMask | None = None,
    resets: ArrayLike | None = None,
) -> GradientFlow | dict[str, GradientFlow]:
    """Compute the gradient of a loss with respect to every state, in one pass:

        dL/dh_t, dL/dc_t        of the state that step t returns

    Both are partial derivatives: h_t is computed before c_t can be changed, so its
    dependence on c_t counts in dL/dh_t only; see `jl.taps`. The gradient is 0 at
    masked and padded steps.

    Args:
        cell: the cell, or a model.
        params: its parameters.
        xs: `[T, *b, D]`, or tokens `[T, *b]` of a model.
        state: the state before the first step; None for the initial state.
        loss: `(state, emitted) -> number`, called with the results of `unroll`, or
            `(state, ys) -> number` with those of the model.
        emit: what is stacked for the loss of a cell; see `jl.emit`.
        lengths: as in `unroll`.
        mask: as in `unroll`.
        resets: as in `unroll`.

    Returns:
        The gradients; for a model those of each recurrent layer by its path, as in
        `model.trace`. Layers of your own are left out.

    Raises:
        ValueError: as in `unroll`; the loss is not one floating point number; the
            state has a leaf without a derivative; or a model has no recurrent layer.

    Example:
        >>> import jax, jax.numpy as jnp, jaxlstm as jl
        >>> cell = jl.lstm()
        >>> params = cell.init(jax.random.key(0), input_size=3, hidden_size=5)
        >>> flow = gradient_flow(
        ...     cell, params, jnp.ones((7, 2, 3)), loss=lambda state, hs: hs[-1].sum()
        ... )
        >>> flow.gradient.c.shape, flow.norm.h.shape
        ((7, 2, 5), (7, 2))
        >>> bool((flow.gradient.h[-1] == 1).all())
        True
        >>> model = jl.serial(rnn=jl.stack(cell, (5, 4)), head=jl.linear(1))
        >>> params, _ = model.init(jax.random.key(0), 3)
        >>> flows = gradient_flow(
        ...     model, params, jnp.ones((7, 2, 3)), loss=lambda state, ys: ys[-1].sum()
        ... )
        >>> {path: flow.norm.h.shape for path, flow in flows.items()}
        {'rnn/0': (7, 2), 'rnn/1': (7, 2)}

    Reference:
        Hochreiter, "The vanishing gradient problem during learning recurrent neural
        nets", 1998, https://doi.org/10.1142/S0218488598000094
    """
    with masking.error_prefix("gradient_flow"):
        example = "lambda state, hs: hs[-1].sum()"
        check_function("loss", loss, "state", "emitted", such_as=example)
        if isinstance(cell, Layer):
            steps = {"lengths": lengths, "mask": mask, "resets": resets}
            return _flows_of_model(cell, params, xs, state, loss, emit, steps)
        unroll_tapped = functools.partial(
            unroll, taps(cell), lengths=lengths, mask=mask, resets=resets
        )

        def run(added: State | None, emit: Emit) -> tuple[State, Any]:
            return unroll_tapped(Tapped(params, added), xs, state, emit=emit)

        def loss_of(added: State) -> Array:
            return _one_number("loss", loss(*run(added, emit)))

        _, states = run(None, emits.states)
        check_differentiable(states)
        zeros = jax.tree.map(jnp.zeros_like, states)  # has the sharding of the states
        steps = _step_mask(cell, xs, lengths, mask, resets)
        gradient = masking.mask_outputs(jax.grad(loss_of)(zeros), steps)
        frame = jnp.ndim(xs) - 1 - cell.spatial_axes
        norm = jax.tree.map(lambda d: _norm(d, range(frame, d.ndim)), gradient)
        return GradientFlow(gradient, norm)


def _flows_of_model(
    model: Layer,
    params: Params,
    xs: ArrayLike,
    state: State | None,
    loss: Loss,
    emit: Emit,
    steps: Mapping[str, Any],
) -> dict[str, GradientFlow]:
    """Return the gradient flow of each recurrent layer of a model."""
    if emit is not emits.hidden:
        raise ValueError("emit: got a model, expected a cell; its loss reads ys.")
    tapped = with_taps(model)
    without, layers = tapped_params(model, params, {})
    if not layers:
        raise ValueError(f"got {model!r:.60}, expected a model with recurrent layers.")
    traces = tapped.trace(without, xs, state, **steps)[2]
    zeros = {}
    for layer in layers:
        check_differentiable(traces[layer.path].state)
        zeros[layer.path] = jax.tree.map(jnp.zeros_like, traces[layer.path].state)

    def loss_of(added: dict[str, State]) -> Array:
        params_, _ = tapped_params(model, params, added)
        return _one_number("loss", loss(*tapped.apply(params_, xs, state, **steps)))

    def flow(layer: Recurrent, gradient: State) -> GradientFlow:
        units = layer.cell.spatial_axes + 1
        norm = jax.tree.map(lambda d: _norm(d, range(d.ndim - units, d.ndim)), gradient)
        return GradientFlow(gradient, norm)

    gradients = jax.grad(loss_of)(zeros)
    return {layer.path: flow(layer, gradients[layer.path]) for layer in layers}


def carousel(
    cell: Cell,
    params: Params,
    xs: ArrayLike,
    state: State | None = None,
    *,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | StepMask | None = None,
    resets: ArrayLike | None = None,
) -> Carousel:
    """Compute the constant error carousel and the exact derivative:

        ∏ f_s  over t < s <= T        dc_T / dc_t

    The product is the derivative if the gates are held constant. The exact derivative
    also includes the paths through h and the gates of later steps; where the two
    agree, the carousel carries the gradient. For a GRU, c is h and f is z.

    Changes that a wrapper makes after the step, such as `zoneout` and `clip_cell`, are
    included in the derivative, but not in the product. The cost is one backward pass
    per unit.

    Args:
        cell: a cell with a forget gate.
        params: its parameters.
        xs: `[T, *b, D]`.
        state: the state before the first step; None for the cell's initial state.
        lengths: as in `unroll`.
        mask: as in `unroll`.
        resets: as in `unroll`.

    Raises:
        ValueError: as in `unroll`; or the cell has no forget gate, or spatial axes.

    Example:
        >>> import jax, jax.numpy as jnp, jaxlstm as jl
        >>> cell = jl.lstm()
        >>> params = cell.init(jax.random.key(0), input_size=3, hidden_size=5)
        >>> no_recurrence = params._replace(w_h=jnp.zeros_like(params.w_h))
        >>> result = carousel(cell, no_recurrence, jnp.ones((7, 2, 3)))
        >>> bool(jnp.allclose(result.product, result.derivative))
        True

    Reference:
        Hochreiter and Schmidhuber, "Long short-term memory", 1997,
        https://doi.org/10.1162/neco.1997.9.8.1735
    """
    with masking.error_prefix("carousel"):
        check_no_spatial_axes(cell)
        run = functools.partial(unroll, lengths=lengths, mask=mask, resets=resets)
        trace: Trace = run(cell, params, xs, state, emit=emits.trace)[1]
        product = forget_products(
            trace.gates, lengths=lengths, mask=mask, resets=resets
        )
        zeros = jax.tree.map(jnp.zeros_like, trace.state)
        name = "c" if hasattr(zeros, "c") else "h"

        def last(added: Hidden) -> Hidden:
            tapped = Tapped(params, zeros._replace(**{name: added}))
            after, _ = run(taps(cell), tapped, xs, state, emit=emits.nothing)
            return getattr(after, name)

        jacobian = _jacobian(last, getattr(zeros, name))
        steps = _step_mask(cell, xs, lengths, mask, resets)
        return Carousel(product, *masking.mask_outputs(jacobian, steps))


def memory_span(
    cell: Cell,
    params: Params,
    xs: ArrayLike,
    state: State | None = None,
    *,
    output: Callable[[State], Array] | None = None,
    share: float = 0.01,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | StepMask | None = None,
    resets: ArrayLike | None = None,
) -> MemorySpan:
    """Compute how far back an input still changes the output:

        sensitivity at lag k = ‖dy / dx_{T-k}‖        y by default h_T

    The derivative is taken along the trajectory of xs, and lags count executed steps.
    The cost is one backward pass per element of y.

    Args:
        cell: the cell.
        params: its parameters.
        xs: `[T, *b, D]`.
        state: the state before the first step; None for the cell's initial state.
        output: `(state) -> [*b, K]`, a function of the final state that keeps rows
            independent.
        share: fraction of the maximum, in 0..1, that a sensitivity must exceed to
            count in the span.
        lengths: as in `unroll`.
        mask: as in `unroll`.
        resets: as in `unroll`.

    Raises:
        ValueError: as in `unroll`; not 0 <= share < 1; the output has another shape;
            or the cell has spatial axes.

    Example:
        >>> import jax, jax.numpy as jnp, jaxlstm as jl
        >>> cell = jl.simple_rnn(activation="identity")
        >>> params = cell.init(jax.random.key(0), input_size=1, hidden_size=1)
        >>> half = params._replace(w_x=jnp.ones((1, 1)), w_h=jnp.full((1, 1), 0.5))
        >>> memory = memory_span(cell, half, jnp.ones((9, 1)), share=0.1)
        >>> memory.sensitivity[:4].tolist(), int(memory.span)
        ([1.0, 0.5, 0.25, 0.125], 3)
    """
    with masking.error_prefix("memory_span"):
        check_no_spatial_axes(cell)
        share = as_number("share", share)
        if not 0 <= share < 1:
            raise ValueError(f"share: got {share!r}, expected 0 <= share < 1.")
        if output is not None:
            check_function("output", output, "state", such_as="lambda state: state.c")
        xs = masking.features("xs", xs)
        run = functools.partial(unroll, lengths=lengths, mask=mask, resets=resets)

        def last(xs: Features) -> Array:
            after, _ = run(cell, params, xs, state, emit=emits.nothing)
            return emits.hidden(after, None) if output is None else output(after)

        shape = _one_array("output", jax.eval_shape(last, xs), "state.h").shape
        if shape[:-1] != xs.shape[1:-1] or not shape:
            raise ValueError(
                f"output: got a result of shape {show(shape)}, expected one vector for "
                f"each of the rows {show(xs.shape[1:-1])}."
            )
        norm = _jacobian(last, xs)[1]
        steps = _step_mask(cell, xs, lengths, mask, resets)
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
    mask: ArrayLike | StepMask | None = None,
    resets: ArrayLike | None = None,
) -> dict[str, GradientFlow]:
    """Compute the gradient flow of several cells on the same data.

    Each cell starts from its own initial state. The loss gets h of every step.

    Args:
        cells: a cell and its parameters by name.
        xs: `[T, *b, D]`.
        loss: as in `gradient_flow`.
        lengths: as in `unroll`.
        mask: as in `unroll`.
        resets: as in `unroll`.

    Returns:
        The result of `gradient_flow` for each name.

    Raises:
        ValueError: there are no cells; or as in `gradient_flow`, with the name of the
            cell.

    Example:
        >>> import jax, jax.numpy as jnp, jaxlstm as jl
        >>> cells = {"LSTM": jl.lstm(), "RNN": jl.simple_rnn()}
        >>> key = jax.random.key(0)
        >>> pairs = {name: (cell, cell.init(key, 3, 5)) for name, cell in cells.items()}
        >>> flows = compare(
        ...     pairs, jnp.ones((20, 3)), loss=lambda state, hs: hs[-1].sum()
        ... )
        >>> {name: flow.norm.h.shape for name, flow in flows.items()}
        {'LSTM': (20,), 'RNN': (20,)}
    """
    if not isinstance(cells, Mapping) or not cells:
        raise ValueError(
            f"compare: cells: got {cells!r:.60}, expected a dict such as "
            '{"LSTM": (cell, params)}.'
        )
    flow = functools.partial(
        gradient_flow, loss=loss, lengths=lengths, mask=mask, resets=resets
    )
    flows = {}
    for name, pair in cells.items():
        with masking.error_prefix(f'compare: cells["{name}"]'):
            if not isinstance(pair, tuple) or isinstance(pair, Cell) or len(pair) != 2:
                raise ValueError(
                    f"got {masking.described(pair)}, expected a pair (cell, params)."
                )
            try:
                flows[name] = flow(*pair, xs)
            except AttributeError as error:  # the loss reads a field of other cells
                error.add_note(f'compare: raised for cells["{name}"].')
                raise
    return flows


def check_no_spatial_axes(cell: Cell) -> None:
    """Raise a `ValueError` for a cell with spatial axes, such as `conv_lstm`."""
    if isinstance(cell, Cell) and cell.spatial_axes:
        raise ValueError(
            f"cell: got {cell.spatial_axes} spatial axes, expected none, because the "
            "Jacobian is computed for each row alone; gradient_flow supports every "
            "cell."
        )


def check_differentiable(state: State) -> None:
    """Raise a `ValueError` if a leaf of the state is not floating point."""
    for path, leaf in jax.tree.leaves_with_path(state):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            raise ValueError(
                f"state{jax.tree_util.keystr(path)}: got dtype {leaf.dtype}, expected "
                "floating point numbers, which have a derivative."
            )


def _jacobian(function: Callable[[Array], Array], at: Array) -> tuple[Array, Array]:
    """Return the diagonal and the norm of the Jacobian of every step.

    One backward pass runs after the other, so that only one is in memory.

    Args:
        function: `[T, *b, N] -> [*b, K]`, which keeps rows independent.
        at: `[T, *b, N]`.

    Returns:
        The diagonal `[T, *b, K]`, which is meaningful if N is K, and the Frobenius norm
        `[T, *b]`.
    """
    values, pull = jax.vjp(function, at)
    size = values.shape[-1]

    def row(unit: Array) -> tuple[Array, Array]:
        basis = jax.nn.one_hot(unit, size, dtype=values.dtype)
        (row,) = pull(jnp.ones_like(values) * jnp.broadcast_to(basis, values.shape))
        own = jnp.take(row, jnp.minimum(unit, row.shape[-1] - 1), axis=-1)
        return own, _norm(row, [row.ndim - 1])

    diagonal, norms = lax.map(row, jnp.arange(size))
    return jnp.moveaxis(diagonal, 0, -1), _norm(norms, [0])


def _by_lag(values: Array, steps: StepMask) -> Array:
    """Return values `[T, *b]` of executed steps from the last to the first."""
    if steps.active is None:
        return values[::-1]
    order = jnp.argsort(~steps.active[::-1], axis=0, stable=True)
    return jnp.take_along_axis(values[::-1], order, axis=0)


def _step_mask(
    cell: Cell,
    xs: ArrayLike,
    lengths: ArrayLike | None,
    mask: ArrayLike | StepMask | None,
    resets: ArrayLike | None,
) -> StepMask:
    shape = jnp.shape(xs)
    frame = shape[: len(shape) - 1 - cell.spatial_axes]
    return masking.steps(frame, lengths=lengths, mask=mask, resets=resets)


def _norm(values: Array, axes: Iterable[int]) -> Array:
    """Return the Euclidean norm over the axes, in float32 or wider.

    Values are divided by the largest one first, so that squares neither overflow nor
    underflow. The derivative at 0 is 0.
    """
    axes = tuple(axes)
    values = values.astype(accumulator_dtype(values.dtype))
    top = lax.stop_gradient(jnp.abs(values).max(axes, keepdims=True, initial=0.0))
    top = jnp.where((top > 0) & jnp.isfinite(top), top, 1.0)
    squares = ((values / top) ** 2).sum(axes, keepdims=True)
    is_zero = squares == 0
    root = jnp.where(is_zero, 0.0, jnp.sqrt(jnp.where(is_zero, 1.0, squares)))
    return jnp.squeeze(top * root, axes)


def _one_number(name: str, value: Any) -> Array:
    value = _one_array(name, value, "its .sum()")
    if jnp.shape(value) != ():
        raise ValueError(
            f"{name}: got a result of shape {show(jnp.shape(value))}, expected one "
            "number, such as its .sum()."
        )
    return jnp.asarray(value)


def _one_array(name: str, value: Any, example: str) -> Any:
    """Return value.

    Raises:
        ValueError: it is not one floating point array.
    """
    if not hasattr(value, "shape") and not isinstance(value, float):
        raise ValueError(
            f"{name}: got a result {type(value).__name__}, expected one array, such as "
            f"{example}."
        )
    if not jnp.issubdtype(jnp.result_type(value), jnp.floating):
        raise ValueError(
            f"{name}: got a result of dtype {jnp.result_type(value)}, expected "
            "floating point numbers."
        )
    return value
