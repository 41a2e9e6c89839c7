"""Layers: functions of whole sequences, and how they are put together.

A layer is a record of two pure functions. A combinator takes layers and gives one
back, so that a deep network is a layer too:

>>> import jax, jax.numpy as jnp, jaxlstm as jl
>>> model = jl.serial(
...     jl.embed(65, 16), jl.stack(jl.lstm(), (32, 32), dropout=0.1), jl.linear(65)
... )
>>> params, size = model.init(jax.random.key(0))
>>> state, logits = model.apply(params, jnp.zeros((7, 2), jnp.int32))
>>> logits.shape, size
((7, 2, 65), 65)

Every layer means the same by a step that does not happen: what stands there in its
input never matters, and what it puts there is zero. No key, no noise.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.nn import initializers
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike, DTypeLike

from jaxlstm import masking
from jaxlstm.cells import emit
from jaxlstm.cells.base import Cell, Params, State, check_size
from jaxlstm.cells.emit import Trace
from jaxlstm.cells.products import affine
from jaxlstm.masking import StepMask
from jaxlstm.typing import (
    Features,
    Key,
    as_key,
    as_key_or_none,
    is_explicit,
    reshard_like,
    show,
)
from jaxlstm.unrolling import unroll

Tape = dict[str, Trace]


class LayerInit(Protocol):
    """Draws the parameters of a layer for inputs of `input_size` features.

    Returns: the parameters, and the number of features of the outputs.
    """

    def __call__(self, key: Key, input_size: int | None = None) -> tuple[Params, int]:
        """Draw them from the key."""
        ...


class Apply(Protocol):
    """Maps a sequence `[T, *b, D]` to one `[T, *b, output_size]`, carry first.

    `state=None` begins anew. `lengths`, `mask` and `resets` mean what they mean in
    `unroll`. Without a key, nothing is random.
    """

    def __call__(
        self,
        params: Params,
        xs: ArrayLike,
        state: State | None = None,
        *,
        key: Key | None = None,
        lengths: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        resets: ArrayLike | None = None,
    ) -> tuple[State, Features]:
        """The state after the last step, and the outputs."""
        ...


class Watch(Protocol):
    """What `Apply` does, and the gates and states that led to it.

    Returns: the state, the outputs, and the tape: a `Trace` of every recurrent layer
    within, by its place in the parameters ("1/0", "1/0/forward", or "" where the layer
    itself is recurrent). State and outputs are those of `apply`, in the plain cells bit
    for bit (see `emit.trace`); of `engine="scan"` the last bit may differ.
    """

    def __call__(
        self,
        params: Params,
        xs: ArrayLike,
        state: State | None = None,
        *,
        key: Key | None = None,
        lengths: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        resets: ArrayLike | None = None,
    ) -> tuple[State, Features, Tape]:
        """The state after the last step, the outputs, and the tape."""
        ...


class Layer(NamedTuple):
    """A function of whole sequences: `init` draws its parameters, `apply` is it.

    `trace` is `apply` with a tape of the gates. A layer of your own may leave it out:
    what it does inside is then on no tape.

    >>> import jax, jax.numpy as jnp, jaxlstm as jl
    >>> model = jl.serial(
    ...     jl.embed(9, 4), jl.stack(jl.lstm(), (5, 3), bidirectional=True)
    ... )
    >>> params, _ = model.init(jax.random.key(0))
    >>> state, ys, tape = model.trace(params, jnp.zeros((7, 2), jnp.int32))
    >>> sorted(tape)
    ['1/0/backward', '1/0/forward', '1/1/backward', '1/1/forward']
    >>> tape["1/0/forward"].gates.f.shape
    (7, 2, 5)
    """

    init: LayerInit
    apply: Apply
    trace: Watch | None = None


class Pair(NamedTuple):
    """What belongs to the two directions of a bidirectional layer."""

    forward: Any
    backward: Any


class LinearParams(NamedTuple):
    """`w [D, size]` and `b [size]`."""

    w: jax.Array
    b: jax.Array


class EmbedParams(NamedTuple):
    """`table [vocabulary, size]`: one row for each token."""

    table: jax.Array


def recurrent(
    cell: Cell,
    hidden_size: int,
    *,
    reverse: bool = False,
    checkpoint_every: int | str | None = None,
    engine: str | Sequence[str] | None = None,
) -> Layer:
    """A cell carried through time by `unroll`; its state is the cell's state.

    >>> import jax, jax.numpy as jnp, jaxlstm as jl
    >>> layer = jl.recurrent(jl.lstm(), 5)
    >>> params, size = layer.init(jax.random.key(0), 3)
    >>> state, ys = layer.apply(params, jnp.ones((7, 2, 3)))
    >>> ys.shape
    (7, 2, 5)
    """

    if not isinstance(cell, Cell):
        raise ValueError(
            f"recurrent: cell is {cell!r:.60}; a Cell is needed, such as jl.lstm() "
            "gives or Cell(init, initial_state, project, step)."
        )
    _check_size("recurrent", "hidden_size", hidden_size)

    def init(key: Key, input_size: int | None = None) -> tuple[Params, int]:
        with masking.error_prefix("recurrent"):
            params = cell.init(key, _known("recurrent", input_size), hidden_size)
            state = jax.eval_shape(cell.initial_state, params)
            return params, emit.hidden(state, None).shape[-1]

    def run(params: Params, xs: ArrayLike, state: State, call: _Call) -> Result:
        state, seen = unroll(
            cell,
            params,
            xs,
            state,
            lengths=call.lengths,
            mask=call.mask,
            resets=call.resets,
            reverse=reverse,
            emit=emit.trace if call.watched else emit.hidden,
            key=call.key,
            checkpoint_every=checkpoint_every,
            engine=engine,
        )
        if not call.watched:
            return state, seen, {}
        return state, emit.hidden(*seen), {"": seen}

    return _layer(init, run)


def serial(*layers: Layer, **named: Layer) -> Layer:
    """Return the composition of layers, the first one applied first.

        y = layer_n(... layer_2(layer_1(x)))

    Layers that are given by position have params and state in tuples. Layers that are
    given by name have them in dicts, and their traces and weights are called by name,
    as in `rnn/0/w_x`. JAX flattens a dict in alphabetical order; layers are applied,
    and random keys are split, in the order in which they are given.

    Lengths, mask and resets go to every layer.

    Args:
        layers: the layers by position.
        named: the layers by name, in place of positions.

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
    layers, names = (*layers, *named.values()), tuple(named)
    if not layers:
        raise ValueError("serial: got no layers, expected at least one")
    _check_layers("serial", *layers)

    def init(key: Key, input_size: int | None = None) -> tuple[Params, int]:
        params, size = [], input_size
        for layer, own in zip(layers, jax.random.split(key, len(layers)), strict=True):
            drawn, size = layer.init(own, size)
            params.append(drawn)
        return _by_name(names, params), _known("serial", size)

    def run(params: Params, xs: Any, state: State, call: _Call) -> Result:
        after, tape = [], {}
        params = _by_position("params", names, params)
        state = None if state is None else _by_position("state", names, state)
        each = _each("serial", len(layers), params, state, call)
        for place, (layer, own) in enumerate(zip(layers, each, strict=True)):
            left, xs, seen = _through(layer, xs, *own)
            after.append(left)
            tape |= _within(names[place] if names else str(place), seen)
        return _by_name(names, after), xs, tape

    return _layer(init, run)


def _by_name(names: tuple[str, ...], values: list[Any]) -> Any:
    """Return the values of all layers as a dict, or as a tuple without names."""
    return dict(zip(names, values, strict=True)) if names else tuple(values)


def _by_position(what: str, names: tuple[str, ...], values: Any) -> Any:
    """Return the values in the order of the layers.

    Raises:
        ValueError: they are no mapping of just these names.
    """
    if not names:
        return values
    if not isinstance(values, Mapping):
        raise ValueError(
            f"serial: got {what} of type {type(values).__name__}, expected a dict with "
            f"the keys {', '.join(names)}"
        )
    missing = [name for name in names if name not in values]
    unknown = [str(name) for name in values if name not in names]
    if missing or unknown:
        wrong = [f"no {', '.join(missing)}"] * bool(missing)
        wrong += [f"unknown {', '.join(unknown)}"] * bool(unknown)
        raise ValueError(
            f"serial: {what} has {' and '.join(wrong)}; expected the keys "
            f"{', '.join(names)}"
        )
    return tuple(values[name] for name in names)


def bidirectional(forward: Layer, backward: Layer) -> Layer:
    """Both layers over the same inputs, their outputs side by side.

    The backward layer is one built with `reverse=True`. Parameters and state are a
    `Pair`. A reset at step t keeps apart what comes before it and what comes after,
    in both directions: the backward layer begins again at the step before t.

    >>> import jax, jax.numpy as jnp, jaxlstm as jl
    >>> cell = jl.lstm()
    >>> both = jl.bidirectional(
    ...     jl.recurrent(cell, 5), jl.recurrent(cell, 5, reverse=True)
    ... )
    >>> params, size = both.init(jax.random.key(0), 3)
    >>> size
    10
    """
    _check_layers("bidirectional", forward, backward)
    two = Pair(forward, backward)

    def init(key: Key, input_size: int | None = None) -> tuple[Params, int]:
        keys = jax.random.split(key)
        drawn = [
            layer.init(own, input_size) for layer, own in zip(two, keys, strict=True)
        ]
        return Pair(*(params for params, _ in drawn)), sum(size for _, size in drawn)

    def run(params: Params, xs: ArrayLike, state: State, call: _Call) -> Result:
        there, back = _each("bidirectional", 2, params, state, call)
        last, ys, seen = _through(forward, xs, *there)
        first, zs, seen_back = _through(
            backward, xs, *back[:2], _reverse_resets(back[2])
        )
        tape = _within("forward", seen) | _within("backward", seen_back)
        return Pair(last, first), jnp.concatenate([ys, zs], axis=-1), tape

    return _layer(init, run)


def residual(layer: Layer) -> Layer:
    """`y = x + layer(x)`: the gradient has a way past the layer.

    Errors: `ValueError` at `init` where the layer changes the number of features.

    Reference: He et al., "Deep residual learning for image recognition", 2016,
    https://arxiv.org/abs/1512.03385

    >>> import jax, jaxlstm as jl
    >>> jl.residual(jl.recurrent(jl.lstm(), 5)).init(jax.random.key(0), 3)
    Traceback (most recent call last):
    ValueError: residual: the layer maps 3 features to 5; a residual layer must keep \
    their number.
    """

    _check_layers("residual", layer)

    def init(key: Key, input_size: int | None = None) -> tuple[Params, int]:
        params, size = layer.init(key, input_size)
        if size != input_size:
            raise ValueError(
                f"residual: the layer maps {input_size} features to {size}; a "
                "residual layer must keep their number."
            )
        return params, size

    def run(params: Params, xs: ArrayLike, state: State, call: _Call) -> Result:
        with masking.error_prefix("residual"):
            xs = masking.features("xs", xs)
            steps = _steps(xs, call)
        state, ys, tape = _through(layer, xs, params, state, call)
        return state, masking.zero_inactive(xs, steps) + ys, tape

    return _layer(init, run)


def dropout(rate: float) -> Layer:
    """Zero each value with probability `rate`, scale the rest by 1 / (1 - rate).

    Each step has a mask of its own. Without a key this is the identity.

    Errors: `ValueError` for a rate outside 0 <= rate < 1.

    Reference: Srivastava et al., "Dropout", 2014; between layers and not in time, as
    Zaremba et al., 2014, https://arxiv.org/abs/1409.2329

    >>> import jax, jax.numpy as jnp, jaxlstm as jl
    >>> _, same = jl.dropout(0.5).apply((), jnp.ones((2, 3)))
    >>> _, noisy = jl.dropout(0.5).apply((), jnp.ones((2, 3)), key=jax.random.key(0))
    >>> bool((same == 1).all()), sorted(set(noisy.ravel().tolist()))
    (True, [0.0, 2.0])
    """
    if not isinstance(rate, int | float | np.number) or not 0 <= rate < 1:
        raise ValueError(f"dropout: rate is {rate!r}; 0 <= rate < 1 is needed.")

    def init(key: Key, input_size: int | None = None) -> tuple[Params, int]:
        return (), _known("dropout", input_size)

    def transform(params: Params, xs: Features, key: Key | None) -> Features:
        if key is None or rate == 0:
            return xs
        kept = reshard_like(xs, jax.random.bernoulli(key, 1 - rate, xs.shape))
        return jnp.where(kept, xs / (1 - rate), 0.0)

    return _stepwise("dropout", init, transform)


def linear(size: int) -> Layer:
    """`y = x W + b` at every step; W is LeCun normal, b is zero.

    Parameters are `LinearParams(w [D, size], b [size])`, in float32; products are
    taken in the dtype of x.

    Errors: `ValueError` for a size below 1, and where x has other features than w.

    >>> import jax, jax.numpy as jnp, jaxlstm as jl
    >>> layer = jl.linear(2)
    >>> params, size = layer.init(jax.random.key(0), 3)
    >>> layer.apply(params, jnp.ones((7, 3)))[1].shape
    (7, 2)
    """
    _check_size("linear", "size", size)

    def init(key: Key, input_size: int | None = None) -> tuple[LinearParams, int]:
        shape = (_known("linear", input_size), size)
        w = initializers.lecun_normal()(key, shape, jnp.float32)
        return LinearParams(w, jnp.zeros(size, jnp.float32)), size

    def transform(params: LinearParams, xs: Features, key: Key | None) -> Features:
        _check_params(params, LinearParams)
        if xs.shape[-1] != params.w.shape[0]:
            raise ValueError(
                f"xs: got {xs.shape[-1]} features, expected {params.w.shape[0]} "
                f"(w is {show(params.w.shape)})."
            )
        return affine(xs, params.w, params.b).astype(xs.dtype)

    return _stepwise("linear", init, transform)


def embed(vocabulary: int, size: int, *, dtype: DTypeLike = jnp.float32) -> Layer:
    """A row of a table for each token: integers `[T, *b]` to `[T, *b, size]`.

    A token outside 0..vocabulary-1 is an error where it can be seen, and NaN where it
    is traced; it is never clamped. Rows are drawn from N(0, 1) and given out in
    `dtype`, which is what the layers after this one compute in.

    >>> import jax, jax.numpy as jnp, jaxlstm as jl
    >>> layer = jl.embed(10, 4)
    >>> params, size = layer.init(jax.random.key(0))
    >>> state, xs = layer.apply(params, jnp.array([[3], [9]]))
    >>> xs.shape
    (2, 1, 4)
    """
    _check_size("embed", "vocabulary", vocabulary)
    _check_size("embed", "size", size)

    def init(key: Key, input_size: int | None = None) -> tuple[EmbedParams, int]:
        return EmbedParams(
            jax.random.normal(key, (vocabulary, size), jnp.float32)
        ), size

    def run(params: EmbedParams, xs: ArrayLike, state: State, call: _Call) -> Result:
        with masking.error_prefix("embed"):
            _check_params(params, EmbedParams)
            tokens, steps = _tokens(xs, len(params.table), call)
        rows = _rows(params.table, tokens).astype(dtype)
        return (), masking.mask_outputs(rows, steps), {}

    return _layer(init, run)


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
    """Recurrent layers of these sizes, one on the other.

    Arguments:
        dropout: between the layers, not after the last, as in torch.
        bidirectional: each layer runs both ways, and gives twice its size.
        residual: from the second layer on, each adds its input to its output.

    Parameters and state are tuples with an entry for each size, whatever the dropout.

    Errors: `ValueError` for no sizes, and for residual layers of unequal sizes.

    >>> import jax, jax.numpy as jnp, jaxlstm as jl
    >>> deep = jl.stack(jl.lstm(), (5, 4), bidirectional=True)
    >>> params, size = deep.init(jax.random.key(0), 3)
    >>> state, ys = deep.apply(params, jnp.ones((7, 2, 3)))
    >>> ys.shape, state[0].forward.h.shape
    ((7, 2, 8), (2, 5))
    """
    if not isinstance(sizes, Sequence) or not sizes:
        raise ValueError(
            f"stack: sizes is {sizes!r}; a tuple with the size of each layer is needed."
        )
    if residual and len(set(sizes)) > 1:
        raise ValueError(
            f"stack: residual layers must be of one size; sizes is {tuple(sizes)}."
        )
    _drop(dropout)  # a rate that cannot be is refused for one layer too
    one = functools.partial(
        recurrent, cell, checkpoint_every=checkpoint_every, engine=engine
    )
    layers: list[Layer] = []
    for depth, size in enumerate(sizes):
        layer = (
            _both_ways(one(size), one(size, reverse=True))
            if bidirectional
            else one(size)
        )
        if depth > 0:
            layer = _noisy(_drop(dropout), layer)
            layer = _past(layer) if residual else layer
        layers.append(layer)
    return serial(*layers)


# `stack` has options of the same names.
_both_ways, _drop, _past = bidirectional, dropout, residual


# -- what the layers share ----------------------------------------------------


class _Call(NamedTuple):
    """What a call of `apply` or `trace` says besides parameters, inputs and state."""

    key: Key | None
    lengths: ArrayLike | None
    mask: ArrayLike | StepMask | None
    resets: ArrayLike | None
    watched: bool


Result = tuple[State, Features, Tape]
Run = Callable[[Any, Any, State, _Call], Result]
Transform = Callable[[Any, Features, Key | None], Features]


def _layer(init: LayerInit, run: Run) -> Layer:
    """The layer whose `apply` and `trace` are `run`, the options in one record."""

    def drawn(key: Key, input_size: int | None = None) -> tuple[Params, int]:
        return init(as_key("init", key), input_size)

    def apply(
        params: Params,
        xs: ArrayLike,
        state: State | None = None,
        *,
        key: Key | None = None,
        lengths: ArrayLike | None = None,
        mask: ArrayLike | StepMask | None = None,
        resets: ArrayLike | None = None,
    ) -> tuple[State, Features]:
        key = as_key_or_none("apply", key)
        return run(params, xs, state, _Call(key, lengths, mask, resets, False))[:2]

    def trace(
        params: Params,
        xs: ArrayLike,
        state: State | None = None,
        *,
        key: Key | None = None,
        lengths: ArrayLike | None = None,
        mask: ArrayLike | StepMask | None = None,
        resets: ArrayLike | None = None,
    ) -> Result:
        key = as_key_or_none("trace", key)
        return run(params, xs, state, _Call(key, lengths, mask, resets, True))

    return Layer(drawn, apply, trace)


def _through(
    layer: Layer, xs: ArrayLike, params: Params, state: State, call: _Call
) -> Result:
    said: dict[str, Any] = {
        "key": call.key,
        "lengths": call.lengths,
        "mask": call.mask,
        "resets": call.resets,
    }
    if call.watched and layer.trace is not None:
        return layer.trace(params, xs, state, **said)
    return *layer.apply(params, xs, state, **said), {}


def _within(place: str, tape: Tape) -> Tape:
    """The tape of a layer as the layer around it sees it, by longer names."""
    return {f"{place}/{name}".rstrip("/"): seen for name, seen in tape.items()}


def _reverse_resets(call: _Call) -> _Call:
    """The call as it is for a layer that runs from the last step to the first."""
    if isinstance(call.mask, StepMask) and call.resets is None:
        mask, resets = call.mask._replace(resets=None), call.mask.resets
        call = call._replace(mask=mask, resets=resets)
    if call.resets is None:
        return call
    with masking.error_prefix("bidirectional"):
        frame = masking.as_array("resets", call.resets).shape
        steps = masking.steps(
            frame, lengths=call.lengths, mask=call.mask, resets=call.resets
        )
    return call._replace(resets=masking.reverse_resets(steps))


def _noisy(noise: Layer, layer: Layer) -> Layer:
    """The layer with noise on its inputs, which has no entry of its own."""

    def run(params: Params, xs: ArrayLike, state: State, call: _Call) -> Result:
        keys = (None, None) if call.key is None else jax.random.split(call.key)
        _, xs = noise.apply((), xs, key=keys[0])  # the layer ignores its padding
        return _through(layer, xs, params, state, call._replace(key=keys[1]))

    return _layer(layer.init, run)


def _each(
    layer: str, count: int, params: Params, state: State, call: _Call
) -> Iterator[tuple[Params, State, _Call]]:
    """Parameters, state and call of each of so many layers, no two with one key."""
    states = (None,) * count if state is None else state
    for name, values in ("params", params), ("state", states):
        record = hasattr(values, "_fields") and not isinstance(values, Pair)
        if record or not isinstance(values, tuple | list):
            raise ValueError(
                f"{layer}: {name} is a {type(values).__name__}; a tuple with an entry "
                f"for each of the {count} layers is needed."
            )
        if len(values) != count:
            raise ValueError(
                f"{layer}: {name} has {len(values)} entries for {count} layers; one "
                "each is needed."
            )
    keys = (None,) * count if call.key is None else jax.random.split(call.key, count)
    calls = (call._replace(key=key) for key in keys)
    return zip(params, states, calls, strict=True)


def _stepwise(name: str, init: LayerInit, transform: Transform) -> Layer:
    """A layer without a state that treats each step apart, and padding as no step."""

    def run(params: Params, xs: ArrayLike, state: State, call: _Call) -> Result:
        with masking.error_prefix(name):
            xs = masking.features("xs", xs)
            steps = _steps(xs, call)
            ys = transform(params, masking.zero_inactive(xs, steps), call.key)
        return (), masking.mask_outputs(ys, steps), {}

    return _layer(init, run)


def _steps(xs: Features, call: _Call) -> StepMask:
    return masking.steps(
        xs.shape[:-1], lengths=call.lengths, mask=call.mask, resets=call.resets
    )


def _rows(table: jax.Array, tokens: jax.Array) -> Features:
    """A row for each token, split over a mesh as the tokens are; NaN for no token."""
    last = len(table) - 1
    kind = jax.typeof(tokens).sharding
    placed = P(*kind.spec, None) if is_explicit(kind) else None
    rows = table.at[jnp.clip(tokens, 0, last)].get(
        mode="promise_in_bounds", out_sharding=placed
    )
    known = (tokens >= 0) & (tokens <= last)
    return jnp.where(known[..., None], rows, jnp.nan)


def _known(layer: str, input_size: int | None) -> int:
    if input_size is None:
        raise ValueError(f"{layer}: init needs the number of input features.")
    _check_size(layer, "input_size", input_size)
    return input_size


def _check_size(layer: str, name: str, size: int) -> None:
    with masking.error_prefix(layer):
        check_size(name, size)


def _check_layers(combinator: str, *layers: Layer) -> None:
    for layer in layers:
        if not isinstance(layer, Layer):
            raise ValueError(
                f"{combinator}: {layer!r:.60} is no Layer; jl.recurrent(cell, size) "
                "makes one of a cell."
            )


def _check_params(params: Params, record: type) -> None:
    if not isinstance(params, record):
        fields = ", ".join(getattr(record, "_fields", ()))
        raise ValueError(
            f"params is a {type(params).__name__}; {record.__name__}({fields}) is "
            "needed, such as init draws."
        )


def _tokens(xs: ArrayLike, vocabulary: int, call: _Call) -> tuple[jax.Array, StepMask]:
    """Tokens in 32 bits or more, 0 where no step happens, and the steps."""
    tokens = masking.as_array("xs", xs)
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(f"xs has dtype {tokens.dtype}; tokens are integers.")
    if tokens.ndim == 0:
        raise ValueError("xs is one number; tokens [T, *b] are needed.")
    steps = _steps(tokens[..., None], call)
    if steps.active is None:
        _check_tokens(xs, vocabulary)
    tokens = masking.zero_inactive(tokens, steps)
    tokens = tokens if tokens.dtype.itemsize >= 4 else tokens.astype(jnp.int32)
    _check_tokens(tokens, vocabulary)
    return tokens, steps


def _check_tokens(tokens: ArrayLike, vocabulary: int) -> None:
    if isinstance(tokens, Tracer):
        return
    host = np.asarray(tokens)
    wrong = host[(host < 0) | (host >= vocabulary)]
    if wrong.size:
        raise ValueError(
            f"xs holds the token {wrong[0]}; the vocabulary of {vocabulary} has "
            f"tokens from 0 to {vocabulary - 1}."
        )
