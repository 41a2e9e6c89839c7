"""The other libraries' own modules for a converted model, to compare it with.

    reference("torch", model, params)   runs modules that hold torch.dump(model, params)

Each layer of the model becomes one module of the library, called one after another, so
that forward passes are computed by the library alone.
"""

import importlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlstm import interop
from jaxlstm.cells import base
from jaxlstm.cells.base import Params
from jaxlstm.interop import parts
from jaxlstm.interop.layout import kind_of
from jaxlstm.interop.parts import Part, Recurrent
from jaxlstm.layers.base import Layer
from jaxlstm.layers.pointwise import EmbedParams, LinearParams

Call = Callable[[Any, Any], Any]
"""A function of xs `[T, b, D]`, or tokens `[T, b]`, and lengths `[b]`; returns ys."""


def reference(library: str, model: Layer, params: Params) -> Call:
    """Return a function that runs a model in another library.

    Args:
        library: one of `LIBRARIES`.
        model: a layer made of `jl.recurrent`, `stack`, `bidirectional`, `serial`,
            `linear` and `embed`. Dropout is left out.
        params: its parameters.

    Returns:
        A function `(xs [T, b, D], lengths [b]) -> ys [T, b, K]`, an argument of
        `jaxlstm.interop.compare`. Values in padding are unspecified.

    Raises:
        ImportError: the library is not installed.
        ValueError: the library has no such layer or cell.

    Example:
        >>> import jax, jaxlstm as jl
        >>> model = jl.serial(rnn=jl.stack(jl.lstm(), (5, 4)), head=jl.linear(2))
        >>> params, _ = model.init(jax.random.key(0), 3)
        >>> theirs = reference("flax", model, params)
        >>> jl.interop.compare(model, params, theirs).largest < 1e-6
        True
    """
    if library == "keras":  # Keras reads this when it is imported.
        os.environ.setdefault("KERAS_BACKEND", "jax")
    importlib.import_module(library)
    parts.refuse_functions(model)
    make = _MAKERS[library]
    calls = [make(part) for part in _single(parts.parts_of(model, params).values())]

    def run(xs: Any, lengths: Any) -> Any:
        for call in calls:
            xs = call(xs, lengths)
        return xs

    return run


def version(library: str) -> str:
    """Return name and version of an installed library, such as "torch 2.13.0"."""
    return f"{library} {importlib.import_module(library).__version__}"


def _single(found: Any) -> Iterator[Part]:
    """Yield the parts, with stacks taken apart into single layers."""
    for part in found:
        if not isinstance(part, Recurrent):
            yield part
            continue
        for directions in part.layers:
            yield part._replace(layers=(directions,))


def _arrays(library: str, part: Part, **options: Any) -> Any:
    """Return what the library's `dump` writes for a part."""
    params, layer = parts.build(part)
    return getattr(interop, library).dump(layer, params, **options)


def _size(part: Recurrent) -> int:
    """Return the number of hidden units."""
    return part.layers[0][0].b.shape[-1]


def _kind(part: Recurrent) -> str:
    return kind_of(part.layers[0][0])


# -- torch -----------------------------------------------------------------------------


def _torch(part: Part) -> Call:
    import torch  # pyright: ignore[reportMissingImports]

    tensors = {
        name: torch.from_numpy(np.array(array))
        for name, array in _arrays("torch", part).items()
    }
    module = _torch_module(torch.nn, part).to(next(iter(tensors.values())).dtype)
    module.load_state_dict(tensors)
    pack = torch.nn.utils.rnn

    @torch.no_grad()
    def call(xs: Any, lengths: Any) -> Any:
        xs = torch.as_tensor(xs)
        if not isinstance(part, Recurrent) or lengths is None:
            found = module(xs)
            return found[0] if isinstance(found, tuple) else found
        counts = torch.as_tensor(np.asarray(lengths, np.int64))
        packed = pack.pack_padded_sequence(xs, counts, enforce_sorted=False)
        return pack.pad_packed_sequence(module(packed)[0], total_length=len(xs))[0]

    return call


def _torch_module(nn: Any, part: Part) -> Any:
    if isinstance(part, EmbedParams):
        return nn.Embedding(*part.table.shape)
    if isinstance(part, LinearParams):
        return nn.Linear(*part.w.shape)
    assert isinstance(part, Recurrent)
    sizes = (parts.input_size(part), _size(part))
    both = {"bidirectional": parts.is_bidirectional(part)}
    kind = _kind(part)
    if kind == "lstm":
        projected = getattr(part.layers[0][0], "w_p", None)
        proj_size = 0 if projected is None else projected.shape[1]
        return nn.LSTM(*sizes, proj_size=proj_size, **both)
    if kind == "rnn":
        activation = part.options.get("activation", "tanh")
        return nn.RNN(*sizes, nonlinearity=activation, **both)
    return nn.GRU(*sizes, **both)


# -- Keras -----------------------------------------------------------------------------


def _keras(part: Part) -> Call:
    import keras  # pyright: ignore[reportMissingImports]

    layer = _keras_layer(keras.layers, part)
    features = () if isinstance(part, EmbedParams) else (parts.input_size(part),)
    layer.build((None, None, *features))
    layer.set_weights(_arrays("keras", part))

    def call(xs: Any, lengths: Any) -> Any:
        options = {}
        if isinstance(part, Recurrent) and lengths is not None:
            steps = np.arange(len(xs))
            options["mask"] = steps < np.asarray(lengths)[:, None]
        ys = layer(xs.swapaxes(0, 1), **options)
        if not isinstance(ys, jax.Array):  # another backend of Keras
            ys = keras.ops.convert_to_numpy(ys)
        ys = ys.swapaxes(0, 1)
        return ys[::-1] if isinstance(part, Recurrent) and part.reverse else ys

    return call


def _keras_layer(layers: Any, part: Part) -> Any:
    if isinstance(part, EmbedParams):
        return layers.Embedding(*part.table.shape, dtype=part.table.dtype.name)
    if isinstance(part, LinearParams):
        return layers.Dense(part.w.shape[1], dtype=part.w.dtype.name)
    assert isinstance(part, Recurrent)
    kind, options = _kind(part), dict(part.options)
    given: dict[str, Any] = {
        "return_sequences": True,
        "go_backwards": part.reverse,
        "dtype": part.layers[0][0].b.dtype.name,
    }
    if kind == "rnn":
        layer = layers.SimpleRNN(_size(part), **given, **options)
    else:
        for name, keras_name in _KERAS_ACTIVATIONS.items():
            if name in options:
                given[keras_name] = options[name]
        if kind == "lstm":
            layer = layers.LSTM(_size(part), **given)
        else:
            after = part.layers[0][0].b_h is not None
            layer = layers.GRU(_size(part), reset_after=after, **given)
    return layers.Bidirectional(layer) if parts.is_bidirectional(part) else layer


_KERAS_ACTIVATIONS = {
    "candidate_activation": "activation",
    "gate_activation": "recurrent_activation",
}


# -- Flax ------------------------------------------------------------------------------


def _flax(part: Part) -> Call:
    from flax import linen as flax_linen

    linen: Any = flax_linen  # its annotations are those of dataclass fields
    variables = {"params": _arrays("flax", part)}
    if isinstance(part, EmbedParams):
        module = linen.Embed(*part.table.shape)
        return lambda xs, lengths: module.apply(variables, jnp.asarray(xs))
    if isinstance(part, LinearParams):
        dense = linen.Dense(part.w.shape[1])
        return lambda xs, lengths: dense.apply(variables, jnp.asarray(xs))
    assert isinstance(part, Recurrent)

    if parts.is_bidirectional(part):
        both = (linen.RNN(_flax_cell(linen, part)) for _ in range(2))
        module = linen.Bidirectional(*both, time_major=True)
    else:
        backward = {"reverse": part.reverse, "keep_order": part.reverse}
        module = linen.RNN(_flax_cell(linen, part), time_major=True, **backward)
    return lambda xs, lengths: module.apply(
        variables, jnp.asarray(xs), seq_lengths=lengths
    )


def _flax_cell(linen: Any, part: Recurrent) -> Any:
    kind = _kind(part)
    if kind == "lstm":
        return linen.OptimizedLSTMCell(_size(part))
    if kind == "rnn":
        name = part.options.get("activation", "tanh")
        return linen.SimpleCell(_size(part), activation_fn=base.activation("", name))
    return linen.GRUCell(_size(part))


# -- Haiku -----------------------------------------------------------------------------


def _haiku(part: Part) -> Call:
    import haiku as hk  # pyright: ignore[reportMissingImports]

    def network(xs: Any) -> Any:
        if isinstance(part, EmbedParams):
            return hk.Embed(*part.table.shape)(xs)
        if isinstance(part, LinearParams):
            return hk.Linear(part.w.shape[1])(xs)
        assert isinstance(part, Recurrent)
        cores = {"lstm": hk.LSTM, "rnn": hk.VanillaRNN}
        core = cores.get(_kind(part), hk.GRU)(_size(part))
        return hk.dynamic_unroll(core, xs, core.initial_state(xs.shape[1]))[0]

    arrays = _arrays("haiku", part)
    apply = hk.without_apply_rng(hk.transform(network)).apply
    return lambda xs, lengths: apply(arrays, jnp.asarray(xs))


# -- Equinox ---------------------------------------------------------------------------


def _equinox(part: Part) -> Call:
    import equinox as eqx  # pyright: ignore[reportMissingImports]

    key = jax.random.key(0)
    if isinstance(part, EmbedParams):
        made: Any = eqx.nn.Embedding(*part.table.shape, key=key)
    elif isinstance(part, LinearParams):
        made = eqx.nn.Linear(*part.w.shape, key=key)
    else:
        assert isinstance(part, Recurrent)
        cell = eqx.nn.LSTMCell if _kind(part) == "lstm" else eqx.nn.GRUCell
        made = cell(parts.input_size(part), _size(part), key=key)
    filled = _arrays("equinox", part, into=made)
    module: Any = jax.tree.map(jnp.asarray, filled)
    if not isinstance(part, Recurrent):
        return lambda xs, lengths: jax.vmap(jax.vmap(module))(jnp.asarray(xs))

    def call(xs: Any, lengths: Any) -> Any:
        xs = jnp.asarray(xs)
        zeros = jnp.zeros((xs.shape[1], _size(part)), xs.dtype)

        def step(state: Any, x: Any) -> tuple[Any, Any]:
            state = jax.vmap(module)(x, state)
            return state, state[0] if isinstance(state, tuple) else state

        state = (zeros, zeros) if _kind(part) == "lstm" else zeros
        return jax.lax.scan(step, state, xs)[1]

    return call


_MAKERS: dict[str, Callable[[Part], Call]] = {
    "torch": _torch,
    "keras": _keras,
    "flax": _flax,
    "haiku": _haiku,
    "equinox": _equinox,
}

LIBRARIES = tuple(_MAKERS)
