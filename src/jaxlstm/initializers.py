"""Initializers of recurrent cells, and presets of them.

An initializer is a function `(key, shape, dtype) -> array`, as in
`jax.nn.initializers`. Matrices have the shape `[fan_in, 4, H]` and biases `[4, H]`,
with the gates in the order input, forget, candidate, output. A preset is a record of
the initializers of a cell. Equal options return the same preset object. Initializers
are frozen dataclasses, so that they are equal if their options are, and can be pickled.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer
from jax.nn import initializers as jax_initializers
from jax.typing import ArrayLike, DTypeLike

from jaxlstm.construction import as_floats
from jaxlstm.typing import Key, accumulator_dtype, show

INPUT, FORGET, CANDIDATE, OUTPUT = range(4)

Bias = ArrayLike | tuple[float, ...]  # a number, or one for each unit


class Initializer(Protocol):
    """A function `(key, shape, dtype) -> array`."""

    def __call__(self, key: Key, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """Return the array."""
        ...


class Preset(NamedTuple):
    """Initializers of the parameters of a cell.

    Attributes:
        w_x: initializer of the input matrix.
        w_h: initializer of the recurrent matrix.
        b: initializer of the bias.
        b_single: initializer of a bias that is not the sum of two, such as the two of
            a GRU's candidate; None to use `b`.
    """

    w_x: Initializer
    w_h: Initializer
    b: Initializer
    b_single: Initializer | None = None


@dataclasses.dataclass(frozen=True)
class OrthogonalPerGate:
    """Initializer that `orthogonal_per_gate` returns."""

    def __call__(self, key: Key, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """Return the array."""
        rows, gates, units = shape
        orthogonal = jax_initializers.orthogonal()
        wide = accumulator_dtype(dtype)  # XLA has no 16-bit QR decomposition
        keys = jax.random.split(key, gates)
        per_gate = jax.vmap(lambda key: orthogonal(key, (rows, units), wide))(keys)
        return jnp.moveaxis(per_gate, 0, 1).astype(dtype)


@dataclasses.dataclass(frozen=True)
class OrthogonalFused:
    """Initializer that `orthogonal_fused` returns."""

    def __call__(self, key: Key, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """Return the array."""
        rows, gates, units = shape
        wide = accumulator_dtype(dtype)
        fused = jax_initializers.orthogonal()(key, (rows, gates * units), wide)
        return fused.reshape(shape).astype(dtype)


@dataclasses.dataclass(frozen=True)
class LecunPerGate:
    """Initializer that `lecun_per_gate` returns."""

    def __call__(self, key: Key, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """Return the array."""
        draw = jax_initializers.lecun_normal(in_axis=0, out_axis=2, batch_axis=1)
        return draw(key, shape, dtype)


@dataclasses.dataclass(frozen=True)
class GlorotFused:
    """Initializer that `glorot_fused` returns."""

    def __call__(self, key: Key, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """Return the array."""
        rows, gates, units = shape
        limit = math.sqrt(6.0 / (rows + gates * units))
        return jax.random.uniform(key, shape, dtype, -limit, limit)


@dataclasses.dataclass(frozen=True)
class Uniform:
    """Initializer that `uniform` returns."""

    draws: int

    def __call__(self, key: Key, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """Return the array."""
        limit, shape = 1.0 / math.sqrt(shape[-1]), (self.draws, *shape)
        return jax.random.uniform(key, shape, dtype, -limit, limit).sum(0)


@dataclasses.dataclass(frozen=True)
class ForgetBias:
    """Initializer that `forget_bias` returns."""

    value: float | tuple[float, ...]

    def __call__(self, key: Key, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """Return the array."""
        return _with_forget_bias(jnp.asarray(self.value, dtype), shape)


def _with_forget_bias(value: Array, shape: tuple[int, ...]) -> Array:
    """Return a bias `[4, H]` with a value, or one for each unit, at the forget gate."""
    if value.shape not in ((), shape[-1:]):
        raise ValueError(
            f"forget_bias: got shape {show(value.shape)}, expected one number or "
            f"{show(shape[-1:])}, one for each unit."
        )
    return jnp.zeros(shape, value.dtype).at[FORGET].set(value)


@dataclasses.dataclass(frozen=True)
class ChronoBias:
    """Initializer that `chrono_bias` returns."""

    max_timescale: float

    def __call__(self, key: Key, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """Return the array."""
        longest = self.max_timescale - 1.0
        steps = jax.random.uniform(key, shape[-1:], dtype, 1.0, longest)
        zeros = jnp.zeros(shape, dtype)
        return zeros.at[FORGET].set(jnp.log(steps)).at[INPUT].set(-jnp.log(steps))


def orthogonal_per_gate() -> Initializer:
    """Return an initializer of one orthogonal matrix per gate: `W_kᵀ W_k = I`.

    An orthogonal matrix preserves norms, so that neither the state nor its gradient
    shrinks or grows at the start of training.

    Reference:
        Saxe et al., "Exact solutions to the nonlinear dynamics of learning in deep
        linear neural networks", 2014, https://arxiv.org/abs/1312.6120

    Example:
        >>> import jax, jax.numpy as jnp
        >>> w = orthogonal_per_gate()(jax.random.key(0), (3, 4, 3), jnp.float32)
        >>> bool(jnp.allclose(w[:, 1].T @ w[:, 1], jnp.eye(3), atol=1e-6))
        True
    """
    return OrthogonalPerGate()


def orthogonal_fused() -> Initializer:
    """Return an initializer of one orthogonal `[fan_in, 4H]` matrix, as in Keras."""
    return OrthogonalFused()


def lecun_per_gate() -> Initializer:
    """Return a truncated normal initializer with variance `1 / fan_in` per gate."""
    return LecunPerGate()


def glorot_fused() -> Initializer:
    """Return an initializer U(±√(6 / (fan_in + 4H))), as in Keras."""
    return GlorotFused()


def uniform(*, draws: int = 1) -> Initializer:
    """Return an initializer of the sum of `draws` samples of U(±1/√H), as in torch.

    H is the size of the last axis. torch has two biases that are only ever added;
    `draws=2` draws their sum.
    """
    return Uniform(draws)


def forget_bias(value: Bias) -> Initializer:
    """Return an initializer of biases: `value` for the forget gate, 0 for the others.

    The value is a number or an array `[H]`, and may be traced.

    With 1 the initial forget gate is σ(1) = 0.73, so that the cell state and its
    gradient halve in two steps; with 0 they halve in one.

    Reference:
        Gers, Schmidhuber and Cummins, "Learning to forget", 2000.

        Jozefowicz et al., "An empirical exploration of recurrent network
        architectures" (the value 1), 2015.
    """
    bias = _as_bias(value)
    if not isinstance(bias, Tracer):
        return ForgetBias(bias)

    # A function, and no dataclass: a traced value can be neither compared nor hashed.
    def traced_forget_bias(key: Key, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        return _with_forget_bias(bias.astype(dtype), shape)

    return traced_forget_bias


def chrono_bias(max_timescale: float) -> Initializer:
    """Return an initializer of biases with timescales from 1 to `max_timescale` steps:

        b_f = log u, u ~ U(1, T_max - 1)        b_i = -b_f        b_g = b_o = 0

    Reference:
        Tallec and Ollivier, "Can recurrent neural networks warp time?", 2018,
        https://arxiv.org/abs/1804.11188
    """
    return ChronoBias(float(max_timescale))


def default(forget: Bias = 1.0) -> Preset:
    """Return LeCun input matrix, orthogonal recurrent matrix per gate, forget bias.

    Example:
        >>> import jaxlstm as jl
        >>> jl.lstm() is jl.lstm(init=jl.initializers.default(1))
        True
    """
    return _preset("default", _as_bias(forget))


def torch() -> Preset:
    """Return torch's defaults: U(±1/√H), the bias a sum of two; no forget bias."""
    return _preset("torch", 0.0)


def keras(forget: Bias = 1.0) -> Preset:
    """Return Keras's defaults: Glorot, orthogonal over the fused gates, forget bias."""
    return _preset("keras", _as_bias(forget))


def chrono(max_timescale: float = 1000.0) -> Preset:
    """Return the default matrices with chrono biases up to `max_timescale`.

    Raises:
        ValueError: `max_timescale` is not above 2.

    Example:
        >>> import jaxlstm as jl
        >>> cell = jl.lstm(init=jl.initializers.chrono(784))
    """
    if not max_timescale > 2:
        raise ValueError(
            f"chrono: max_timescale: got {max_timescale}, expected more than 2 steps."
        )
    return _preset("chrono", float(max_timescale))


TAKES_FORGET = {"default": default, "keras": keras}
DRAWS_BIASES = {"torch": torch, "chrono": chrono}


def _preset(kind: str, number: Any) -> Preset:
    """Return the preset; one object for each kind and number that is not traced."""
    return _build(kind, number) if isinstance(number, Tracer) else _cached(kind, number)


@functools.cache
def _cached(kind: str, number: float | tuple[float, ...]) -> Preset:
    return _build(kind, number)


def _build(kind: str, number: Any) -> Preset:
    if kind == "torch":
        return Preset(uniform(), uniform(), uniform(draws=2), uniform())
    if kind == "keras":
        return Preset(glorot_fused(), orthogonal_fused(), forget_bias(number))
    bias = chrono_bias(number) if kind == "chrono" else forget_bias(number)
    return Preset(lecun_per_gate(), orthogonal_per_gate(), bias)


def name_and_forget_bias(preset: Preset) -> tuple[str | None, Bias]:
    """Return the options `init` and `forget_bias` of a cell that mean this preset.

    The name is None if there is none, as for `chrono(784)`.
    """
    bias = preset.b.value if isinstance(preset.b, ForgetBias) else 1.0
    for name, function in TAKES_FORGET.items():
        if preset == function(bias):
            return name, bias
    for name, function in DRAWS_BIASES.items():
        if preset == function():
            return name, 1.0
    return None, 1.0


NO_FORGET_BIAS: Any = object()


def _as_bias(value: Any) -> Any:
    """Return a forget bias as a float, a tuple of floats, or a traced array.

    Raises:
        ValueError: it is neither a finite number nor an array of them.
    """
    if isinstance(value, Tracer):
        return value
    bias = as_floats(value)
    numbers = bias if isinstance(bias, tuple) else (bias,)
    if not all(type(number) is float and math.isfinite(number) for number in numbers):
        raise ValueError(
            f"forget_bias: got {value!r:.60}, expected a finite number, or an array "
            "[H] of them."
        )
    return bias


def resolve_preset(init: str | Preset, forget: Any) -> Preset:
    """Return the preset for a cell's options `init` and `forget_bias`.

    Args:
        init: a preset or its name.
        forget: the forget bias, or `NO_FORGET_BIAS` for a cell without a forget gate,
            whose bias is then zero.

    Raises:
        ValueError: `init` is not a preset, or the forget bias would have no effect.
    """
    if forget is NO_FORGET_BIAS:
        forget = 0.0 if isinstance(init, str) and init in TAKES_FORGET else 1.0
    forget = _as_bias(forget)
    if isinstance(init, str):
        return preset(init, forget)
    if not isinstance(init, Preset):
        raise ValueError(f"init: got {init!r}, expected a Preset or its name.")
    if not _is_default(forget):
        raise ValueError(
            f"forget_bias: got {forget} together with a Preset, which draws its own "
            "biases; pass the forget bias to the preset instead."
        )
    return init


def _is_default(forget: Any) -> bool:
    return isinstance(forget, float) and forget == 1.0


def preset(name: str, forget: Any) -> Preset:
    """Return the preset of that name, with the given forget bias.

    Raises:
        ValueError: the name is unknown, or the preset draws its own biases and
            `forget` is not the default 1.
    """
    if name in TAKES_FORGET:
        return TAKES_FORGET[name](forget)
    if name not in DRAWS_BIASES:
        names = ", ".join(sorted(TAKES_FORGET | DRAWS_BIASES))
        raise ValueError(f"init: got {name!r}, expected one of {names}.")
    if not _is_default(forget):
        raise ValueError(
            f"forget_bias: got {forget} with init={name!r}, which draws biases; leave "
            'it out, or use init="default".'
        )
    return DRAWS_BIASES[name]()
