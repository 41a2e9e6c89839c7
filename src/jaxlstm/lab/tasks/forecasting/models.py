"""Models of forecasts: layers from windows to the parameters of a head.

    direct           h = rnn(x_1 ... x_L)     ŷ_1 ... ŷ_H = W [h, future]
    patched          h = rnn(segments of x)   ŷ of segment j = W rnn(h; j)
    encoder_decoder  h = rnn(x_1 ... x_L)     ŷ_j = W rnn(h; future_1 ... future_j)
    autoregressive   p(y_t | y_<t) = head(rnn(y_t-1, future_t)), drawn step by step

The state is what is known of a series after its last row. A forecast goes on from a
state when more rows arrive: `model.apply(params, rows, state)`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

import jaxlstm as jl
from jaxlstm.lab.config.forecasting import ForecastModel
from jaxlstm.lab.tasks import recurrent
from jaxlstm.lab.tasks.forecasting import heads
from jaxlstm.lab.tasks.forecasting.heads import Head
from jaxlstm.layers.base import Call, Layer, make_layer

SMALLEST_WIDTH = 1e-2  # of a window, in units of the scaled series


class Windows(NamedTuple):
    """Windows of B series: L steps of context, and H steps of horizon.

    Attributes:
        target: `[L + H, B]`, scaled; 0 where it is not observed.
        observed: `[L + H, B]`, False where the target is missing. A model reads the
            horizon's targets only if it is autoregressive.
        past: `[L, B, P]`, covariates known up to the present.
        future: `[L + H, B, F]`, covariates known ahead.
        static: `[B, S]`, covariates of the series.
        series: `[B]`, number of the series.
    """

    target: Any
    observed: Any
    past: Any
    future: Any
    static: Any
    series: Any


class State(NamedTuple):
    """A series after its last row.

    Attributes:
        rnn: state of the recurrent layers.
        center: `[B]`, subtracted from the target.
        width: `[B]`, by which it is divided.
        last: `[B, 2]`, the last scaled target, and whether it was observed.
    """

    rnn: Any
    center: Array
    width: Array
    last: Array


class ForecastLayer(NamedTuple):
    """A `Layer` from `Windows` to the parameters of a head, with the head.

    Attributes:
        init: as of a `Layer`; it needs no input size.
        apply: `(params, windows, state=None, *, key=None)` returns the `State` after
            the context and the parameters `[H, B, K]`.
        trace: as of a `Layer`, without traces.
        head: the head.
    """

    init: Any
    apply: Any
    trace: Any
    head: Head


class Sizes(NamedTuple):
    """Sizes of the inputs and outputs of a model.

    Attributes:
        horizon: H.
        past: P.
        future: F.
        static: S.
        series: number of series.
        missing: whether targets are missing, so that a model reads `observed`.
    """

    horizon: int
    past: int = 0
    future: int = 0
    static: int = 0
    series: int = 1
    missing: bool = False


def build(section: ForecastModel, sizes: Sizes) -> ForecastLayer:
    """Return the model `windows -> parameters of the head [H, B, K]`.

    Args:
        section: the `model` section of a config.
        sizes: of the inputs and outputs.
    """
    parts = _Parts(section, sizes)
    return {
        "direct": _direct,
        "patched": _patched,
        "encoder_decoder": _encoder_decoder,
        "autoregressive": _autoregressive,
    }[section.kind](parts)


Encode = Callable[[Any, Any, Any, Any, Any], Any]
Decode = Callable[[Any, Any, Any, Any], Array]


class _Parts:
    """Parts that all kinds of model have: window scaling, layers and head."""

    def __init__(self, section: ForecastModel, sizes: Sizes) -> None:
        self.section, self.sizes = section, sizes
        self.units = section.hidden_size
        self.head: Head = heads.build(section.head)
        self.rnn = recurrent.rnn(section)
        self.dropout = jl.dropout(section.output_dropout)
        # Numbers that are the same at each step of a window.
        self.fixed = sizes.static + section.series_embedding

    def context_size(self) -> int:
        """Return the features of one step of the context."""
        return 1 + self.sizes.missing + self.sizes.past + self.sizes.future

    def state(self, windows: Windows, length: int) -> State:
        """Return the state before the first row: center and width of the context."""
        y, seen = windows.target[:length], windows.observed[:length]
        kind, zeros = self.section.window_scaling, jnp.zeros(y.shape[1:], y.dtype)
        weight, center, width = seen.astype(y.dtype), zeros, zeros + 1.0
        count = jnp.maximum(weight.sum(0), 1.0)
        if kind == "last":
            at = length - 1 - jnp.argmax(seen[::-1], axis=0)
            center = jnp.take_along_axis(y * weight, at[None], axis=0)[0]
        elif kind == "standard":
            center = (y * weight).sum(0) / count
            variance = ((y - center[None]) ** 2 * weight).sum(0) / count
            width = jnp.maximum(jnp.sqrt(variance + 1e-12), SMALLEST_WIDTH)
        elif kind == "mean":
            width = jnp.maximum(jnp.abs(y * weight).sum(0) / count, SMALLEST_WIDTH)
        return State(None, center, width, jnp.zeros((*y.shape[1:], 2), y.dtype))

    def scaled(self, state: State, y: Array, seen: Array) -> Array:
        """Return the target without center and width, 0 where it is missing."""
        return jnp.where(seen, (y - state.center[None]) / state.width[None], 0.0)

    def context(self, state: State, windows: Windows, length: int) -> Array:
        """Return the features `[L, B, C]` of the context."""
        seen = windows.observed[:length]
        y = self.scaled(state, windows.target[:length], seen)
        columns = [y[..., None]]
        if self.sizes.missing:
            columns.append(seen[..., None].astype(y.dtype))
        if self.sizes.past:
            columns.append(windows.past[:length])
        if self.sizes.future:
            columns.append(windows.future[:length])
        return jnp.concatenate(columns, -1)

    def constant(self, params: Any, windows: Windows) -> Array:
        """Return static covariates and the embedding of the series `[B, S + E]`."""
        columns = [windows.static] if self.sizes.static else []
        if self.section.series_embedding:
            columns.append(params["series"][windows.series])
        if not columns:
            return jnp.zeros((*windows.series.shape, 0), jnp.float32)
        return jnp.concatenate(columns, -1)

    def series_table(self, key: Array) -> dict[str, Array]:
        """Return the parameters of the embedding of series."""
        size = self.section.series_embedding
        if not size:
            return {}
        return {"series": jax.random.normal(key, (self.sizes.series, size))}

    def layer(self, init: Any, encode: Encode, decode: Decode) -> ForecastLayer:
        """Return the layer of an encoder and a decoder of rows `[L + H, B]`."""
        horizon = self.sizes.horizon

        def init_all(key: Array, input_size: int | None = None) -> Any:
            first, second = jax.random.split(key)
            return init(first) | self.series_table(second), self.head.size

        def run(params: Any, windows: Windows, state: Any, call: Call) -> Any:
            length = windows.target.shape[0] - horizon
            keys = (None,) * 2 if call.key is None else jax.random.split(call.key)
            state = self.state(windows, length) if state is None else state
            state = encode(params, windows, state, length, keys[0])
            raw = decode(params, windows, state, keys[1])
            center = jnp.broadcast_to(state.center, raw.shape[:-1])
            width = jnp.broadcast_to(state.width, raw.shape[:-1])
            return state, self.head.parameters(raw, center, width), {}

        layer = make_layer("forecast", init_all, run, None)
        return ForecastLayer(layer.init, layer.apply, layer.trace, self.head)


def _over(constant: Array, steps: int) -> Array:
    """Repeat `[B, S]` as `[T, B, S]`."""
    return jnp.broadcast_to(constant, (steps, *constant.shape))


def _apply(layer: Layer, params: Any, xs: Array, **options: Any) -> Array:
    return layer.apply(params, xs, **options)[1]


def _by_horizon(raw: Array, horizon: int, size: int) -> Array:
    """Turn `[B, H * K]` into `[H, B, K]`."""
    return jnp.moveaxis(raw.reshape(*raw.shape[:-1], horizon, size), -2, 0)


# -- direct -------------------------------------------------------------------


def _direct(parts: _Parts) -> ForecastLayer:
    """Return the model that reads all steps of the horizon from the last state."""
    sizes, horizon, size = parts.sizes, parts.sizes.horizon, parts.head.size
    read_out = jl.linear(horizon * size)

    def init(key: Array) -> dict[str, Any]:
        first, second = jax.random.split(key)
        inputs = parts.context_size() + parts.fixed
        rnn, units = parts.rnn.init(first, inputs)
        known = units + parts.fixed + horizon * sizes.future
        return {"rnn": rnn, "read_out": read_out.init(second, known)[0]}

    def encode(
        params: Any, windows: Windows, state: State, length: int, key: Any
    ) -> State:
        xs = parts.context(state, windows, length)
        xs = jnp.concatenate([xs, _over(parts.constant(params, windows), length)], -1)
        rnn, ys = parts.rnn.apply(params["rnn"], xs, state.rnn, key=key)
        return state._replace(rnn=(rnn, ys[-1]))

    def decode(params: Any, windows: Windows, state: State, key: Any) -> Array:
        last = _apply(parts.dropout, (), state.rnn[1][None], key=key)
        columns = [last, parts.constant(params, windows)[None]]
        if sizes.future:
            known = jnp.moveaxis(windows.future[-horizon:], 0, -2)
            columns.append(known.reshape(1, known.shape[0], -1))
        raw = _apply(read_out, params["read_out"], jnp.concatenate(columns, -1))
        return _by_horizon(raw[0], horizon, size)

    def resumed(
        params: Any, windows: Windows, state: State, length: int, key: Any
    ) -> State:
        inner = None if state.rnn is None else state.rnn[0]
        return encode(params, windows, state._replace(rnn=inner), length, key)

    return parts.layer(init, resumed, decode)


# -- patched ------------------------------------------------------------------


def _patched(parts: _Parts) -> ForecastLayer:
    """Return the model whose steps are segments of the context.

    All segments of the horizon are decoded in parallel, each by one step from the last
    state whose input is a learned position, the embedding of the series and the known
    future.

    Reference:
        Lin et al., "SegRNN: segment recurrent neural network for long-term time series
        forecasting", 2023, https://arxiv.org/abs/2308.11200
    """
    sizes, section = parts.sizes, parts.section
    horizon, size, segment = sizes.horizon, parts.head.size, section.segment
    count = -(-horizon // segment)
    position_size = parts.units - section.series_embedding
    embed, read_out = jl.linear(parts.units), jl.linear(segment * size)
    known_size = segment * sizes.future + sizes.static
    known = jl.linear(parts.units)

    def init(key: Array) -> dict[str, Any]:
        keys = jax.random.split(key, 5)
        inputs = segment * parts.context_size() + sizes.static
        rnn, units = parts.rnn.init(keys[1], parts.units)
        params = {
            "embed": embed.init(keys[0], inputs)[0],
            "rnn": rnn,
            "position": jax.random.normal(keys[2], (count, position_size)),
            "read_out": read_out.init(keys[3], units)[0],
        }
        if known_size:
            params["known"] = known.init(keys[4], known_size)[0]
        return params

    def encode(
        params: Any, windows: Windows, state: State, length: int, key: Any
    ) -> State:
        if length % segment:
            raise ValueError(
                f"forecast: got {length} rows, expected a multiple of the segment "
                f"({segment})."
            )
        xs = _segments(parts.context(state, windows, length), segment)
        if sizes.static:
            xs = jnp.concatenate([xs, _over(windows.static, len(xs))], -1)
        xs = jax.nn.relu(_apply(embed, params["embed"], xs))
        rnn, _ = parts.rnn.apply(params["rnn"], xs, state.rnn, key=key)
        return state._replace(rnn=rnn)

    def decode(params: Any, windows: Windows, state: State, key: Any) -> Array:
        rows = windows.series.shape[0]
        keys = (None,) * 2 if key is None else jax.random.split(key)
        xs = params["position"][:, None]
        xs = jnp.broadcast_to(xs, (count, rows, position_size))
        if section.series_embedding:
            series = params["series"][windows.series]
            xs = jnp.concatenate([xs, _over(series, count)], -1)
        if known_size:
            xs = xs + _apply(known, params["known"], ahead(windows))
        xs = xs.reshape(1, count * rows, parts.units)
        states = jax.tree.map(
            lambda leaf: jnp.concatenate([leaf] * count, axis=0), state.rnn
        )
        _, ys = parts.rnn.apply(params["rnn"], xs, states, key=keys[0])
        ys = _apply(parts.dropout, (), ys, key=keys[1])
        raw = _apply(read_out, params["read_out"], ys)
        raw = raw.reshape(count, rows, segment, size)
        return jnp.moveaxis(raw, 1, 2).reshape(count * segment, rows, size)[:horizon]

    def ahead(windows: Windows) -> Array:
        """Return the known covariates of each segment of the horizon."""
        columns = []
        if sizes.future:
            future = windows.future[-horizon:]
            padding = ((0, count * segment - horizon), (0, 0), (0, 0))
            columns.append(_segments(jnp.pad(future, padding, "edge"), segment))
        if sizes.static:
            columns.append(_over(windows.static, count))
        return jnp.concatenate(columns, -1)

    return parts.layer(init, encode, decode)


def _segments(xs: Array, segment: int) -> Array:
    """Turn `[n * S, B, C]` into `[n, B, S * C]`."""
    steps, rows, features = xs.shape
    parts = xs.reshape(steps // segment, segment, rows, features)
    return jnp.moveaxis(parts, 1, 2).reshape(steps // segment, rows, segment * features)


# -- encoder and decoder ------------------------------------------------------


def _encoder_decoder(parts: _Parts) -> ForecastLayer:
    """Return the model that decodes the horizon step by step from known covariates."""
    sizes, horizon, size = parts.sizes, parts.sizes.horizon, parts.head.size
    decoder, read_out = recurrent.rnn(parts.section), jl.linear(size)
    position_size = 8

    def init(key: Array) -> dict[str, Any]:
        keys = jax.random.split(key, 4)
        rnn, units = parts.rnn.init(keys[0], parts.context_size() + parts.fixed)
        inputs = position_size + sizes.future + parts.fixed
        return {
            "rnn": rnn,
            "decoder": decoder.init(keys[1], inputs)[0],
            "position": jax.random.normal(keys[2], (horizon, position_size)),
            "read_out": read_out.init(keys[3], units)[0],
        }

    def encode(
        params: Any, windows: Windows, state: State, length: int, key: Any
    ) -> State:
        xs = parts.context(state, windows, length)
        xs = jnp.concatenate([xs, _over(parts.constant(params, windows), length)], -1)
        rnn, _ = parts.rnn.apply(params["rnn"], xs, state.rnn, key=key)
        return state._replace(rnn=rnn)

    def decode(params: Any, windows: Windows, state: State, key: Any) -> Array:
        rows = windows.series.shape[0]
        keys = (None,) * 2 if key is None else jax.random.split(key)
        position = params["position"][:, None]
        columns = [jnp.broadcast_to(position, (horizon, rows, position_size))]
        if sizes.future:
            columns.append(windows.future[-horizon:])
        columns.append(_over(parts.constant(params, windows), horizon))
        xs = jnp.concatenate(columns, -1)
        _, ys = decoder.apply(params["decoder"], xs, state.rnn, key=keys[0])
        ys = _apply(parts.dropout, (), ys, key=keys[1])
        return _apply(read_out, params["read_out"], ys)

    return parts.layer(init, encode, decode)


# -- autoregressive -----------------------------------------------------------


def _autoregressive(parts: _Parts) -> ForecastLayer:
    """Return the model of each value given the values before it.

    `apply` returns the distributions given the horizon's true values before each step;
    `sample_paths` draws them instead.

    Reference:
        Salinas et al., "DeepAR: probabilistic forecasting with autoregressive recurrent
        networks", 2020, https://arxiv.org/abs/1704.04110
    """
    sizes, horizon = parts.sizes, parts.sizes.horizon
    read_out = jl.linear(parts.head.size)

    def init(key: Array) -> dict[str, Any]:
        first, second = jax.random.split(key)
        rnn, units = parts.rnn.init(first, 2 + sizes.future + parts.fixed)
        return {"rnn": rnn, "read_out": read_out.init(second, units)[0]}

    def inputs(params: Any, windows: Windows, before: Array, steps: slice) -> Array:
        """Return the inputs of some steps: the values before them and covariates."""
        columns = [before]
        if sizes.future:
            columns.append(windows.future[steps])
        columns.append(_over(parts.constant(params, windows), len(before)))
        return jnp.concatenate(columns, -1)

    def values(state: State, windows: Windows, steps: slice) -> Array:
        seen = windows.observed[steps]
        y = parts.scaled(state, windows.target[steps], seen)
        return jnp.stack([y, seen.astype(y.dtype)], -1)

    def encode(
        params: Any, windows: Windows, state: State, length: int, key: Any
    ) -> State:
        found = values(state, windows, slice(0, length))
        before = jnp.concatenate([state.last[None], found[:-1]])
        xs = inputs(params, windows, before, slice(0, length))
        rnn, _ = parts.rnn.apply(params["rnn"], xs, state.rnn, key=key)
        return state._replace(rnn=rnn, last=found[-1])

    def decode(params: Any, windows: Windows, state: State, key: Any) -> Array:
        keys = (None,) * 2 if key is None else jax.random.split(key)
        total = len(windows.target)
        truth = values(state, windows, slice(total - horizon, total - 1))
        before = jnp.concatenate([state.last[None], truth])
        xs = inputs(params, windows, before, slice(total - horizon, total))
        _, ys = parts.rnn.apply(params["rnn"], xs, state.rnn, key=keys[0])
        ys = _apply(parts.dropout, (), ys, key=keys[1])
        return _apply(read_out, params["read_out"], ys)

    return parts.layer(init, encode, decode)


def sample_paths(
    section: ForecastModel,
    sizes: Sizes,
    params: Any,
    windows: Windows,
    key: Array,
) -> Array:
    """Draw one path `[H, B]` of an autoregressive model, each value from the last.

    Args:
        section: the `model` section of a config.
        sizes: of the inputs and outputs.
        params: parameters of `build(section, sizes)`.
        windows: the windows; the targets of the horizon are not read.
        key: key of the draws.
    """
    horizon, head = sizes.horizon, heads.build(section.head)
    if head.sample is None:
        raise ValueError("sample_paths: got a head without a distribution.")
    draw = head.sample
    one_step = build(section, sizes._replace(horizon=1))
    length = windows.target.shape[0] - horizon

    def rows(start: Any, count: int, y: Any, seen: Any) -> Windows:
        """Return windows with some rows as context and the next one as horizon."""
        future = jax.lax.dynamic_slice_in_dim(windows.future, start, count + 1, 0)
        return windows._replace(
            target=jnp.concatenate([y, jnp.zeros_like(y[:1])]),
            observed=jnp.concatenate([seen, jnp.zeros_like(seen[:1])]),
            future=future,
        )

    first = rows(0, length, windows.target[:length], windows.observed[:length])
    state, found = one_step.apply(params, first)

    def step(carry: Any, at: Any) -> Any:
        state, found = carry
        y = draw(jax.random.fold_in(key, at), found[0])
        now = rows(length + at, 1, y[None], jnp.ones((1, *y.shape), bool))
        return one_step.apply(params, now, state), y

    # The last value needs no further step of the model.
    (_, found), drawn = jax.lax.scan(step, (state, found), jnp.arange(horizon - 1))
    last = draw(jax.random.fold_in(key, horizon - 1), found[0])
    return jnp.concatenate([drawn, last[None]])
