"""The `Layer` record, its protocols, and the checks that all layers share.

`make_layer` builds a `Layer` from two functions, `init` and `run`. Its `apply` and
`trace` check the key, the inputs and the step mask once and collect them in a `Call`.
Combinators pass this `Call` to the layers inside with `call_layer`, which skips the
checks that were already made.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from jaxlstm import construction, masking
from jaxlstm.cells.base import (
    Cell,
    InitialState,
    Params,
    State,
    as_batch_shape,
    check_size,
)
from jaxlstm.cells.emit import Trace
from jaxlstm.construction import readable
from jaxlstm.masking import StepMask
from jaxlstm.typing import (
    Features,
    Key,
    as_key,
    as_key_or_none,
    check_options,
    show,
)

OPTIONS = "key", "lengths", "mask", "resets", "reset_state"
"""The options of `apply` and `trace`."""

Traces = dict[str, Trace]
"""The `Trace` of each recurrent layer, by the name of the layer."""


class LayerInit(Protocol):
    """Draw the parameters of a layer for inputs of `input_size` features."""

    def __call__(self, key: Key, input_size: int | None = None) -> tuple[Params, int]:
        """Return the parameters, and the number of features of the outputs.

        Args:
            key: one random key, such as `jax.random.key(0)`.
            input_size: number of input features; None for a layer that reads tokens.
        """
        ...


class Apply(Protocol):
    """Map a sequence `[T, *b, D]` to a sequence `[T, *b, output_size]`.

    `state=None` starts from the initial state. `lengths`, `mask`, `resets` and
    `reset_state` are those of `unroll`, and `mask` may be a `StepMask`. `reset_state`
    has the structure of the state. Without a key, nothing is random.
    """

    def __call__(
        self,
        params: Params,
        xs: ArrayLike,
        state: State | None = None,
        *,
        key: Key | None = None,
        lengths: ArrayLike | None = None,
        mask: ArrayLike | StepMask | None = None,
        resets: ArrayLike | None = None,
        reset_state: State | None = None,
    ) -> tuple[State, Features]:
        """Return the state after the last step, and the outputs.

        Args:
            params: the parameters, as `init` returns them.
            xs: features `[T, *b, D]`, or tokens `[T, *b]`.
            state: the state before the first step.
            key: one random key for noise.
            lengths: integers `[*b]`, the number of steps of each row.
            mask: booleans `[T, *b]`, False where the step is not executed.
            resets: booleans `[T, *b]`, True to reset the state before the step.
            reset_state: the state to reset to; None for the initial state.
        """
        ...


class TraceFn(Protocol):
    """Compute what `apply` computes, and keep the gates and states of every step.

    The traces are a dict with a `Trace` for each recurrent layer inside. The key is the
    path of the layer in the parameters, such as "1/0", "1/0/forward" or "rnn/0", and ""
    if the layer itself is recurrent. State and outputs are bit-identical to those of
    `apply`. Exceptions, in the last bit: `engine="scan"`, zoneout around a GRU, and
    steps whose h has fewer than eight numbers over all rows.
    """

    def __call__(
        self,
        params: Params,
        xs: ArrayLike,
        state: State | None = None,
        *,
        key: Key | None = None,
        lengths: ArrayLike | None = None,
        mask: ArrayLike | StepMask | None = None,
        resets: ArrayLike | None = None,
        reset_state: State | None = None,
    ) -> tuple[State, Features, Traces]:
        """Return the state after the last step, the outputs, and the traces."""
        ...


class Layer(NamedTuple):
    """A function of whole sequences with parameters: a record of pure functions.

    Attributes:
        init: see `LayerInit`.
        apply: see `Apply`.
        trace: see `TraceFn`; None for a layer that reports no traces.
        initial_state: function `(params, batch_shape=(), *, dtype=None) -> state` that
            returns the state from which `apply` starts, for example as the carry of a
            `lax.scan`. `batch_shape` has the axes of the inputs between time and
            features, `dtype` is that of the inputs, by default that of the parameters.

    Example:
        >>> import jax, jax.numpy as jnp, jaxlstm as jl
        >>> model = jl.serial(
        ...     jl.embed(9, 4), jl.stack(jl.lstm(), (5, 3), bidirectional=True)
        ... )
        >>> params, _ = model.init(jax.random.key(0))
        >>> state, ys, traces = model.trace(params, jnp.zeros((7, 2), jnp.int32))
        >>> sorted(traces)
        ['1/0/backward', '1/0/forward', '1/1/backward', '1/1/forward']
        >>> traces["1/0/forward"].gates.f.shape
        (7, 2, 5)
        >>> model.initial_state(params, (2,))[1][0].forward.h.shape
        (2, 5)
    """

    init: LayerInit
    apply: Apply
    trace: TraceFn | None = None
    initial_state: InitialState | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Return the call that makes this layer, for pickle and copy."""
        return construction.reduce(self)

    def __repr__(self) -> str:
        return construction.describe(self)


class Call(NamedTuple):
    """Options of one call of `apply` or `trace`.

    Attributes:
        key: a checked key; None for no noise.
        lengths: as the caller passed them, for layers that `make_layer` did not build.
        mask: likewise.
        resets: likewise.
        steps: the checked step mask; None if the shape `[T, *b]` is not known yet.
        reset_state: the state to reset to; None for the initial state.
        with_trace: whether to return the traces of recurrent layers.
    """

    key: Key | None = None
    lengths: ArrayLike | None = None
    mask: ArrayLike | StepMask | None = None
    resets: ArrayLike | None = None
    steps: StepMask | None = None
    reset_state: State | None = None
    with_trace: bool = False

    def step_mask(self, frame: tuple[int, ...]) -> StepMask:
        """Return the checked step mask for steps of the shape `[T, *b]`."""
        if self.steps is not None:
            return self.steps
        return masking.steps(
            frame, lengths=self.lengths, mask=self.mask, resets=self.resets
        )


Result = tuple[State, Features, Traces]
Run = Callable[[Any, Any, State, Call], Result]
CheckInputs = Callable[[ArrayLike], tuple[Any, tuple[int, ...]]]
Step = Callable[[Any, State, Any], tuple[State, Any]]
Begin = Callable[
    [Any, tuple[int, ...], DTypeLike | None], tuple[State, DTypeLike | None]
]


def feature_inputs(xs: ArrayLike, spatial_axes: int = 0) -> tuple[Features, Any]:
    """Return xs as features `[T, *b, *space, D]`, and their shape `[T, *b]`."""
    xs = masking.features("xs", xs, spatial_axes=spatial_axes)
    return xs, xs.shape[: xs.ndim - 1 - spatial_axes]


class Recurrence(NamedTuple):
    """The arguments of `recurrent`."""

    cell: Cell
    hidden_size: int
    reverse: bool
    checkpoint_every: int | str | None
    engine: str | Sequence[str] | None


class Definition(NamedTuple):
    """A layer as `make_layer` received it.

    Attributes:
        name: prefix of error messages.
        run: function `(params, xs, state, call) -> (state, ys, traces)`.
        check_inputs: function `xs -> (xs, [T, *b])` that raises for wrong inputs; None
            if a layer that `make_layer` did not build reads the inputs.
        begin: function `(params, batch_shape, dtype) -> (state, dtype)` from the dtype
            of the inputs to the initial state and the dtype of the outputs, where None
            is a dtype that the parameters determine; None for a layer without one.
        step: function `(params, state, x) -> (state, y)` of one step without noise;
            None if outputs depend on later steps.
        recurrence: the cell and its options, if the layer only runs a cell.
    """

    name: str
    run: Run
    check_inputs: CheckInputs | None
    begin: Begin | None = None
    step: Step | None = None
    recurrence: Recurrence | None = None

    def __call__(self, params: Params, xs: Any, state: State, call: Call) -> Result:
        """Check the inputs, and the step mask unless it is checked, then run."""
        if self.check_inputs is not None:
            with masking.error_prefix(self.name):
                xs, frame = self.check_inputs(xs)
                call = call._replace(steps=call.step_mask(frame))
        return self.run(params, xs, state, call)


def make_layer(
    name: str,
    init: LayerInit,
    run: Run,
    check_inputs: CheckInputs | None,
    *,
    begin: Begin | None = None,
    step: Step | None = None,
    recurrence: Recurrence | None = None,
) -> Layer:
    """Return a layer that checks the arguments of every call once.

    Args:
        name: prefix of error messages.
        init: draws the parameters from a checked key.
        run: see `Definition`.
        check_inputs: see `Definition`.
        begin: see `Definition`.
        step: see `Definition`.
        recurrence: see `Definition`.
    """
    definition = Definition(name, run, check_inputs, begin, step, recurrence)

    def checked_init(key: Key, input_size: int | None = None) -> tuple[Params, int]:
        return init(as_key(name, key), input_size)

    def check_arrays(params: Params) -> None:
        with masking.error_prefix(name):
            masking.check_leaves("params", params)

    def apply(
        params: Params,
        xs: ArrayLike,
        state: State | None = None,
        *,
        key: Key | None = None,
        lengths: ArrayLike | None = None,
        mask: ArrayLike | StepMask | None = None,
        resets: ArrayLike | None = None,
        reset_state: State | None = None,
        **unknown: Any,
    ) -> tuple[State, Features]:
        check_options(name, unknown, OPTIONS)
        steps = lengths, mask, resets
        call = Call(as_key_or_none(name, key), *steps, reset_state=reset_state)
        check_arrays(params)
        return definition(params, xs, state, call)[:2]

    def trace(
        params: Params,
        xs: ArrayLike,
        state: State | None = None,
        *,
        key: Key | None = None,
        lengths: ArrayLike | None = None,
        mask: ArrayLike | StepMask | None = None,
        resets: ArrayLike | None = None,
        reset_state: State | None = None,
        **unknown: Any,
    ) -> Result:
        check_options(name, unknown, OPTIONS)
        steps = lengths, mask, resets
        call = Call(as_key_or_none(name, key), *steps, reset_state=reset_state)
        check_arrays(params)
        return definition(params, xs, state, call._replace(with_trace=True))

    for function in apply, trace:
        shown = readable(function, options={})
        setattr(shown, "definition", definition)  # noqa: B010
    initial_state = None if begin is None else _initial_state(name, begin)
    return Layer(readable(checked_init), apply, trace, initial_state)


def _initial_state(name: str, begin: Begin) -> InitialState:
    def initial_state(
        params: Params,
        batch_shape: tuple[int, ...] = (),
        *,
        dtype: DTypeLike | None = None,
    ) -> State:
        with masking.error_prefix(name):
            return begin(params, as_batch_shape(batch_shape), dtype)[0]

    return readable(initial_state)


def definition_of(function: Apply | TraceFn) -> Definition | None:
    """Return the definition behind `apply` or `trace`; None if it has none."""
    return getattr(function, "definition", None)


def begin_layer(
    layer: Layer, params: Params, batch_shape: tuple[int, ...], dtype: DTypeLike | None
) -> tuple[State, DTypeLike | None]:
    """Return the initial state of a layer, and the dtype of its outputs.

    A layer that `make_layer` did not build is taken as one that keeps the dtype.

    Raises:
        ValueError: the layer has no `initial_state`.
    """
    definition = definition_of(layer.apply)
    if definition is not None and definition.begin is not None:
        return definition.begin(params, batch_shape, dtype)
    if layer.initial_state is None:
        raise ValueError(
            "initial_state: got a layer that has none; add it with Layer(init, apply, "
            "initial_state=...), where a layer without a state returns ()."
        )
    return layer.initial_state(params, batch_shape, dtype=dtype), dtype


def step_of(layer: Layer) -> Step:
    """Return the function `(params, state, x) -> (state, y)` of one step of a layer.

    A layer that `make_layer` did not build is taken as one that reads no later steps.

    Raises:
        ValueError: outputs of the layer depend on later steps.
    """
    definition = definition_of(layer.apply)
    if definition is None:

        def one_step(params: Params, state: State, x: Any) -> tuple[State, Any]:
            state, ys = layer.apply(params, x[None], state)
            return state, ys[0]

        return one_step
    if definition.step is None:
        raise ValueError(
            f"{definition.name}: got a layer whose outputs depend on later steps, such "
            "as a bidirectional or reversed one, expected one that can run step by "
            "step; apply it to whole sequences."
        )
    return definition.step


def recurrence_of(layer: Layer) -> Recurrence | None:
    """Return the recurrence of a layer that `recurrent` built; None for others."""
    definition = definition_of(layer.apply)
    return None if definition is None else definition.recurrence


def input_check_of(layer: Layer) -> CheckInputs | None:
    """Return the function that checks the layer's inputs; None if it has none."""
    definition = definition_of(layer.apply)
    return None if definition is None else definition.check_inputs


@contextlib.contextmanager
def inside(name: str) -> Iterator[None]:
    """Name an inner layer in the errors of its functions, as in "rnn/0: xs: got ...".

    The message is changed in place: another exception would add a second traceback.
    """
    try:
        yield
    except (TypeError, ValueError) as error:
        if type(error) in (TypeError, ValueError):
            path, text = getattr(error, "in_layer", ("", str(error)))
            path = f"{name}/{path}".rstrip("/")
            error.args = (f"{path}: {text}",)
            setattr(error, "in_layer", (path, text))  # noqa: B010
        raise


def call_layer(
    layer: Layer, params: Params, xs: Any, state: State, call: Call
) -> Result:
    """Apply a layer, without a second check of what has been checked.

    A layer that `make_layer` did not build gets the options as the caller passed them.
    """
    traced = call.with_trace and layer.trace is not None
    function: Any = layer.trace if traced else layer.apply
    definition = definition_of(function)
    if definition is not None:
        return definition(params, xs, state, call._replace(with_trace=traced))
    has_reset_state = bool(jax.tree.leaves(call.reset_state))
    given = {"reset_state": call.reset_state} if has_reset_state else {}
    result = function(
        params,
        xs,
        state,
        key=call.key,
        lengths=call.lengths,
        mask=call.mask,
        resets=call.resets,
        **given,
    )
    return result if traced else (*result, {})


def prefix_names(prefix: str, traces: Traces) -> Traces:
    """Return the traces of an inner layer under the names of the outer layer."""
    return {f"{prefix}/{name}".rstrip("/"): trace for name, trace in traces.items()}


def require_input_size(layer: str, input_size: int | None) -> int:
    """Return the number of input features.

    Raises:
        ValueError: it is None, or not an integer >= 1.
    """
    if input_size is None:
        raise ValueError(
            f"{layer}: input_size: got None, expected the number of input features; "
            "pass it to init."
        )
    check_layer_size(layer, "input_size", input_size)
    return input_size


def check_layer_size(layer: str, name: str, size: int) -> None:
    """Raise a `ValueError` with the layer's name if size is not an integer >= 1."""
    with masking.error_prefix(layer):
        check_size(name, size)


def check_layers(combinator: str, *layers: Layer) -> None:
    """Raise a `ValueError` if one of the layers is not a `Layer`."""
    for layer in layers:
        if not isinstance(layer, Layer):
            is_cell = isinstance(layer, Cell)
            remedy = "; write jl.recurrent(cell, size)" if is_cell else ""
            raise ValueError(
                f"{combinator}: got {layer!r:.60}, expected a Layer{remedy}."
            )


def check_model(model: Layer) -> None:
    """Raise a `ValueError` if the model is not a `Layer`, such as its parameters."""
    if isinstance(model, Cell):
        remedy = "write jl.recurrent(cell, size)"
    else:
        remedy = "the arguments are model, params, in this order"
    if not isinstance(model, Layer):
        got = masking.described(model)
        raise ValueError(f"model: got {got}, expected a Layer; {remedy}.")


def check_shape(name: str, array: ArrayLike, expected: tuple[int, ...]) -> None:
    """Raise a `ValueError` if an array of parameters has another shape."""
    if (shape := jnp.shape(array)) != expected:
        raise ValueError(
            f"{name}: got shape {show(shape)}, expected {show(expected)}; these are "
            "the parameters of a layer of another size."
        )


def check_params(params: Params, record: type) -> None:
    """Raise a `ValueError` if the params are not an instance of the record."""
    if not isinstance(params, record):
        fields = ", ".join(getattr(record, "_fields", ()))
        raise ValueError(
            f"params: got {type(params).__name__}, expected "
            f"{record.__name__}({fields}), as init returns it."
        )
