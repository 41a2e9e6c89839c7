"""Combinators: functions that take layers and return one layer."""

import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from jaxlstm import masking, unrolling
from jaxlstm.cells.base import Cell, Params, State
from jaxlstm.cells.wrappers.base import check_rate
from jaxlstm.construction import Arguments, constructor
from jaxlstm.layers import pointwise
from jaxlstm.layers.base import (
    Call,
    Layer,
    Result,
    begin_layer,
    call_layer,
    check_layers,
    definition_of,
    feature_inputs,
    input_check_of,
    inside,
    make_layer,
    prefix_names,
    recurrence_of,
    require_input_size,
    step_of,
)
from jaxlstm.layers.recurrent import checked_unroll, recurrent, result_of
from jaxlstm.masking import StepMask
from jaxlstm.typing import Features, Key, exportable


@exportable
class Pair(NamedTuple):
    """Parameters or states of the two directions of a bidirectional layer."""

    forward: Any
    backward: Any


Member = Layer | Callable[[Any], Any] | str


def _functions_by_name(arguments: Arguments) -> Arguments:
    """Return the arguments of `serial` with names in place of functions of jax.nn."""
    names: dict[Any, str] = {f: name for name, f in pointwise.FUNCTIONS.items()}

    def name_of(layer: Member) -> Any:
        is_function = callable(layer) and isinstance(layer, Hashable)
        return names.get(layer, layer) if is_function else layer

    named = {key: name_of(layer) for key, layer in arguments.get("named", {}).items()}
    layers = tuple(map(name_of, arguments.get("layers", ())))
    return {key: named if key == "named" else layers for key in arguments}


@functools.partial(constructor, canonical=_functions_by_name)
def serial(*layers: Member, **named: Member) -> Layer:
    """Return the composition of layers, the first one applied first.

        y = layer_n(... layer_2(layer_1(x)))

    A function such as `jax.nn.relu` is a layer without parameters and state. It maps
    one step `[*b, D]` to `[*b, size]`, and is applied to every step. Functions of
    `jax.nn` may be given by name, as in "relu", and are saved by it.

    Layers that are given by position have params and state in tuples. Layers that are
    given by name have them in dicts, and the names appear in the names of traces and
    saved weights, as in `rnn/0/w_x`. JAX flattens a dict in alphabetical order; layers
    are applied, and random keys are split, in the order in which they are given.

    Lengths, mask and resets are passed to every layer.

    Args:
        layers: the layers and functions by position.
        named: the layers and functions by name, in place of positions.

    Raises:
        ValueError: no layers, both positions and names, or a name that is not an
            identifier; when applied, params or a state with other entries than the
            layers.

    Example:
        >>> import jax, jaxlstm as jl
        >>> model = jl.serial(rnn=jl.recurrent(jl.lstm(), 5), head=jl.linear(2))
        >>> params, size = model.init(jax.random.key(0), 3)
        >>> params["rnn"].w_h.shape, params["head"].w.shape, size
        ((5, 4, 5), (5, 2), 2)
        >>> mlp = jl.serial(jl.linear(8), jax.nn.relu, jl.linear(2))
    """
    if layers and named:
        raise ValueError(
            f"serial: got {len(layers)} layers by position and {', '.join(named)} by "
            "name; expected either positions or names"
        )
    for name in named:
        if not name.isidentifier():
            raise ValueError(
                f"serial: got the layer name {name!r}, expected a Python identifier, "
                "such as rnn"
            )
    layers = (*layers, *named.values())
    if not layers:
        raise ValueError("serial: got no layers, expected at least one")
    if (kind := type(layers[0])) in (list, tuple, dict):
        stars = "**" if kind is dict else "*"
        raise ValueError(
            f"serial: got a {kind.__name__}, expected layers as arguments; write "
            f"serial({stars}layers)."
        )
    members = [
        pointwise.of_function(layer)
        if callable(layer) or isinstance(layer, str)
        else layer
        for layer in layers
    ]
    check_layers("serial", *members)
    return _serial("serial", members, tuple(named))


def _serial(caller: str, layers: Sequence[Layer], names: tuple[str, ...]) -> Layer:
    """Return the composition of layers, with names if there are any."""
    paths = names or tuple(map(str, range(len(layers))))

    def init(key: Key, input_size: int | None = None) -> tuple[Params, int]:
        params, size = [], input_size
        keys = jax.random.split(key, len(layers))
        for place, layer in enumerate(layers):
            with inside(paths[place]):
                layer_params, size = layer.init(keys[place], size)
            params.append(layer_params)
        return _by_name(names, params), require_input_size(caller, size)

    def run(params: Params, xs: Any, state: State, call: Call) -> Result:
        all_params = _by_position(caller, "params", layers, names, params)
        states = _states(caller, "state", layers, names, state)
        resets = _states(caller, "reset_state", layers, names, call.reset_state)
        keys = _split_key(call.key, len(layers))
        new_states, traces = [], {}
        for place, layer in enumerate(layers):
            own = call._replace(key=keys[place], reset_state=resets[place])
            with inside(paths[place]):
                layer_state, xs, layer_traces = call_layer(
                    layer, all_params[place], xs, states[place], own
                )
            if definition_of(layer.apply) is None:
                # A layer from elsewhere may change T or *b: check again after it.
                call = call._replace(steps=None)
            new_states.append(layer_state)
            traces |= prefix_names(paths[place], layer_traces)
        return _by_name(names, new_states), xs, traces

    def begin(
        params: Params, batch_shape: tuple[int, ...], dtype: DTypeLike | None
    ) -> tuple[State, DTypeLike | None]:
        states = []
        all_params = _by_position(caller, "params", layers, names, params)
        for place, layer in enumerate(layers):
            with inside(paths[place]):
                own = all_params[place]
                state, dtype = begin_layer(layer, own, batch_shape, dtype)
            states.append(state)
        return _by_name(names, states), dtype

    def step(params: Params, state: State, x: Any) -> tuple[State, Any]:
        states = []
        all_params = _by_position(caller, "params", layers, names, params)
        befores = _by_position(caller, "state", layers, names, state)
        for place, layer in enumerate(layers):
            with inside(paths[place]):
                after, x = step_of(layer)(all_params[place], befores[place], x)
            states.append(after)
        return _by_name(names, states), x

    check_inputs = input_check_of(layers[0])
    return make_layer(caller, init, run, check_inputs, begin=begin, step=step)


@constructor
def bidirectional(forward: Layer, backward: Layer) -> Layer:
    """Return the layer that applies two layers to the same inputs.

    The outputs are concatenated, those of `forward` first. You must pass a backward
    layer that is built with `reverse=True`; this is not checked. Parameters and state
    are a `Pair`. A reset at step t separates the steps before t from the others in both
    directions: the backward layer is reset at the executed step before t.

    Args:
        forward: the layer that runs from the first step to the last.
        backward: the layer that runs from the last step to the first.

    Raises:
        ValueError: an argument is not a `Layer`.

    Example:
        >>> import jax, jax.numpy as jnp, jaxlstm as jl
        >>> cell = jl.lstm()
        >>> layer = jl.bidirectional(
        ...     jl.recurrent(cell, 5), jl.recurrent(cell, 5, reverse=True)
        ... )
        >>> params, size = layer.init(jax.random.key(0), 3)
        >>> size
        10
    """
    layers = Pair(forward, backward)
    check_layers("bidirectional", *layers)
    one, other = map(recurrence_of, layers)
    same_cell = one is not None and other == one._replace(reverse=not one.reverse)

    def init(key: Key, input_size: int | None = None) -> tuple[Params, int]:
        keys = jax.random.split(key)
        drawn = [
            layer.init(layer_key, input_size)
            for layer, layer_key in zip(layers, keys, strict=True)
        ]
        return Pair(*(params for params, _ in drawn)), sum(size for _, size in drawn)

    def run(params: Params, xs: ArrayLike, state: State, call: Call) -> Result:
        params = _by_position("bidirectional", "params", layers, (), params)
        if call.reset_state is not None:
            raise ValueError(
                "bidirectional: reset_state: got a state, expected None: the backward "
                "layer would need the states after each step; pass resets alone."
            )
        states = _states("bidirectional", "state", layers, (), state)
        keys = _split_key(call.key, 2)
        calls = [
            own._replace(key=key)
            for own, key in zip((call, _reverse_resets(call)), keys, strict=True)
        ]
        arguments = list(zip(layers, params, (xs, xs), states, calls, strict=True))
        results = _run_at_once(arguments) if same_cell else _run_in_turn(arguments)
        (last, ys, traces), (first, zs, backward_traces) = results
        traces = prefix_names("forward", traces) | prefix_names(
            "backward", backward_traces
        )
        return Pair(last, first), jnp.concatenate([ys, zs], axis=-1), traces

    def begin(
        params: Params, batch_shape: tuple[int, ...], dtype: DTypeLike | None
    ) -> tuple[State, DTypeLike | None]:
        params = _by_position("bidirectional", "params", layers, (), params)
        begun = [
            begin_layer(layer, params[i], batch_shape, dtype)
            for i, layer in enumerate(layers)
        ]
        return Pair(*(state for state, _ in begun)), begun[0][1]

    check_inputs = input_check_of(forward) or input_check_of(backward)
    return make_layer("bidirectional", init, run, check_inputs, begin=begin)


def _run_in_turn(arguments: Sequence[Any]) -> list[Result]:
    """Run the layers of `Pair` with `(layer, params, xs, state, call)` for each."""
    results = []
    for name, each in zip(Pair._fields, arguments, strict=True):
        with inside(name):
            results.append(call_layer(*each))
    return results


def _run_at_once(arguments: Sequence[Any]) -> list[Result]:
    """Run the two directions of one cell, at once where that is faster."""
    checked = []
    for name, (layer, params, xs, state, call) in zip(
        Pair._fields, arguments, strict=True
    ):
        with inside(name):
            recurrence = recurrence_of(layer)
            assert recurrence is not None
            checked.append(checked_unroll(recurrence, params, xs, state, call))
    with masking.error_prefix("unroll"):
        results = unrolling.run_both_directions("unroll", *checked)
    return [
        result_of(result, call)
        for result, (*_, call) in zip(results, arguments, strict=True)
    ]


def _reverse_resets(call: Call) -> Call:
    """Return the call for a layer that runs from the last step to the first."""
    if isinstance(call.mask, StepMask) and call.resets is None:
        mask, resets = call.mask._replace(resets=None), call.mask.resets
        call = call._replace(mask=mask, resets=resets)
    if call.resets is None:
        return call
    with masking.error_prefix("bidirectional"):
        steps = call.step_mask(masking.as_array("resets", call.resets).shape)
    resets = masking.reverse_resets(steps)
    checked = None if call.steps is None else steps._replace(resets=resets)
    return call._replace(resets=resets, steps=checked)


@constructor
def residual(layer: Layer) -> Layer:
    """Return the layer `y = x + layer(x)`.

    Args:
        layer: a layer with as many output features as input features.

    Raises:
        ValueError: layer is not a `Layer`; at `init`, it changes the number of
            features.

    Example:
        >>> import jax, jaxlstm as jl
        >>> jl.residual(jl.recurrent(jl.lstm(), 5)).init(jax.random.key(0), 3)
        Traceback (most recent call last):
        ValueError: residual: got a layer from 3 features to 5, expected one that \
keeps the number of features.

    Reference:
        He et al., "Deep residual learning for image recognition", 2016,
        https://arxiv.org/abs/1512.03385
    """
    check_layers("residual", layer)

    def init(key: Key, input_size: int | None = None) -> tuple[Params, int]:
        params, size = layer.init(key, input_size)
        if size != input_size:
            raise ValueError(
                f"residual: got a layer from {input_size} features to {size}, expected "
                "one that keeps the number of features."
            )
        return params, size

    def run(params: Params, xs: Features, state: State, call: Call) -> Result:
        with masking.error_prefix("residual"):
            steps = call.step_mask(xs.shape[:-1])
        state, ys, traces = call_layer(layer, params, xs, state, call)
        return state, masking.zero_inactive(xs, steps) + ys, traces

    def step(params: Params, state: State, x: jax.Array) -> tuple[State, jax.Array]:
        state, y = step_of(layer)(params, state, x)
        return state, x + y

    check_inputs = input_check_of(layer) or feature_inputs
    begin = functools.partial(begin_layer, layer)
    return make_layer("residual", init, run, check_inputs, begin=begin, step=step)


@constructor
def stack(
    cell: Cell,
    sizes: Sequence[int],
    *,
    dropout: float = 0.0,
    bidirectional: bool = False,
    residual: bool = False,
    checkpoint_every: int | str | None = None,
    engine: str | Sequence[str] | None = None,
) -> Layer:
    """Return several recurrent layers of one cell, each reading the previous outputs.

    Parameters and state are tuples with one entry per size, with and without dropout.

    Args:
        cell: the cell of all layers.
        sizes: the number of hidden units of each layer.
        dropout: rate of the dropout between layers; none after the last, as in torch.
        bidirectional: each layer runs in both directions and has twice its size of
            output features.
        residual: each layer after the first adds its input to its output.
        checkpoint_every: see `unroll`.
        engine: see `unroll`.

    Raises:
        ValueError: no sizes, a size or a rate out of range, or residual layers of
            unequal sizes.

    Example:
        >>> import jax, jax.numpy as jnp, jaxlstm as jl
        >>> deep = jl.stack(jl.lstm(), (5, 4), bidirectional=True)
        >>> params, size = deep.init(jax.random.key(0), 3)
        >>> state, ys = deep.apply(params, jnp.ones((7, 2, 3)))
        >>> ys.shape, state[0].forward.h.shape
        ((7, 2, 8), (2, 5))
    """
    if not isinstance(sizes, Sequence) or not sizes:
        raise ValueError(
            f"stack: sizes: got {sizes!r}, expected a tuple with a size per layer."
        )
    if residual and len(set(sizes)) > 1:
        raise ValueError(
            f"stack: sizes: got {tuple(sizes)}, expected equal sizes for residual "
            "layers."
        )
    noise = pointwise.dropout(check_rate("stack", "dropout", dropout))
    build = functools.partial(
        _both_directions if bidirectional else recurrent,
        cell,
        checkpoint_every=checkpoint_every,
        engine=engine,
    )
    layers: list[Layer] = []
    for size in sizes:
        layer = build(size)
        if layers:
            layer = _with_noise(noise, layer)
            layer = _add_input(layer) if residual else layer
        layers.append(layer)
    return _serial("stack", layers, ())


_add_input = residual  # `stack` has an option named residual


def _both_directions(cell: Cell, size: int, **options: Any) -> Layer:
    return bidirectional(
        recurrent(cell, size, **options), recurrent(cell, size, reverse=True, **options)
    )


def _with_noise(noise: Layer, layer: Layer) -> Layer:
    """Return the layer with noise added to its inputs, with the params of the layer."""

    def run(params: Params, xs: ArrayLike, state: State, call: Call) -> Result:
        keys = (None, None) if call.key is None else jax.random.split(call.key)
        # The layer ignores inactive steps, so the noise needs no step mask.
        unmasked = Call(key=keys[0], steps=StepMask())
        _, xs, _ = call_layer(noise, (), xs, None, unmasked)
        return call_layer(layer, params, xs, state, call._replace(key=keys[1]))

    return make_layer(
        "stack",
        layer.init,
        run,
        input_check_of(layer),
        begin=functools.partial(begin_layer, layer),
        step=lambda params, state, x: step_of(layer)(params, state, x),
    )


def _split_key(key: Key | None, count: int) -> Sequence[Key | None]:
    return (None,) * count if key is None else list(jax.random.split(key, count))


def _by_name(names: tuple[str, ...], values: list[Any]) -> Any:
    """Return the values of all layers as a dict, or as a tuple without names."""
    return dict(zip(names, values, strict=True)) if names else tuple(values)


def _states(
    caller: str,
    what: str,
    layers: Sequence[Layer],
    names: tuple[str, ...],
    state: State | None,
) -> Sequence[State | None]:
    """Return the state of each layer; None for each if the state is None."""
    if state is None:
        return (None,) * len(layers)
    return _by_position(caller, what, layers, names, state)


def _by_position(
    caller: str,
    what: str,
    layers: Sequence[Layer],
    names: tuple[str, ...],
    values: Any,
) -> Sequence[Any]:
    """Return the params or the state of each layer, in the order of the layers.

    Raises:
        ValueError: values are not a dict of these names or, without names, not a tuple
            with an entry for each layer.
    """
    if names:
        _check_names(caller, what, names, values)
        return tuple(values[name] for name in names)
    is_record = hasattr(values, "_fields") and not isinstance(values, Pair)
    if is_record or not isinstance(values, tuple | list):
        raise ValueError(
            f"{caller}: {what}: got {type(values).__name__}, expected a tuple of "
            f"{len(layers)} entries, one per layer."
        )
    if len(values) != len(layers):
        raise ValueError(
            f"{caller}: {what}: got {len(values)} entries, expected {len(layers)}, one "
            "per layer."
        )
    return values


def _check_names(caller: str, what: str, names: tuple[str, ...], values: Any) -> None:
    """Raise a `ValueError` if values are not a mapping of exactly these names."""
    if not isinstance(values, Mapping):
        raise ValueError(
            f"{caller}: {what}: got {type(values).__name__}, expected a dict with the "
            f"keys {', '.join(names)}."
        )
    if set(values) != set(names):
        keys = f"the keys {', '.join(map(str, values))}" if values else "an empty dict"
        expected = ", ".join(names) if values else f"the keys {', '.join(names)}"
        raise ValueError(f"{caller}: {what}: got {keys}, expected {expected}.")
