"""Where a recurrent network begins: random matrices and biases, gate by gate.

An initialiser is a function `(key, shape, dtype) -> array`, as in
`jax.nn.initializers`. Matrices have the shape `[fan_in, 4, H]` and biases `[4, H]`,
with the gates in the order input, forget, candidate, output. A preset is the record
of the three initialisers that a cell needs; the same preset is the same object.
"""

import functools
import math
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.nn import initializers as jax_initializers
from jax.typing import DTypeLike

from jaxlstm.typing import Key, accumulator_dtype

INPUT, FORGET, CANDIDATE, OUTPUT = range(4)


class Initializer(Protocol):
    """Draws an array: `(key, shape, dtype) -> array`."""

    def __call__(self, key: Key, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """The array."""
        ...


class Preset(NamedTuple):
    """The initialisers of one kind of cell: `w_x` input, `w_h` recurrent, `b` bias.

    `b_alone` draws a bias that is not the sum of two where `b` is, as the two of a
    GRU's candidate are not; None for as `b`.
    """

    w_x: Initializer
    w_h: Initializer
    b: Initializer
    b_alone: Initializer | None = None


def orthogonal_per_gate() -> Initializer:
    """Each gate's matrix is orthogonal on its own: `W_kᵀ W_k = I`.

    An orthogonal matrix keeps the length of what it multiplies, so that neither the
    state nor its gradient shrinks or grows at the first steps of training.

    >>> import jax, jax.numpy as jnp
    >>> w = orthogonal_per_gate()(jax.random.key(0), (3, 4, 3), jnp.float32)
    >>> bool(jnp.allclose(w[:, 1].T @ w[:, 1], jnp.eye(3), atol=1e-6))
    True

    Reference: Saxe et al., "Exact solutions to the nonlinear dynamics of learning in
    deep linear neural networks", 2014, https://arxiv.org/abs/1312.6120
    """

    def draw(key: Key, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        rows, gates, units = shape
        one = jax_initializers.orthogonal()
        exact = accumulator_dtype(dtype)  # there is no 16-bit QR
        keys = jax.random.split(key, gates)
        each = jax.vmap(lambda key: one(key, (rows, units), exact))(keys)
        return jnp.moveaxis(each, 0, 1).astype(dtype)

    return draw


def orthogonal_fused() -> Initializer:
    """One orthogonal matrix over all gates, `[fan_in, 4H]`: what Keras draws."""

    def draw(key: Key, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        rows, gates, units = shape
        exact = accumulator_dtype(dtype)
        fused = jax_initializers.orthogonal()(key, (rows, gates * units), exact)
        return fused.reshape(shape).astype(dtype)

    return draw


def lecun_per_gate() -> Initializer:
    """Truncated normal of variance `1 / fan_in`, the gates counted apart."""
    return jax_initializers.lecun_normal(in_axis=0, out_axis=2, batch_axis=1)


def glorot_fused() -> Initializer:
    """U(±√(6 / (fan_in + 4H))), the gates counted as outputs: what Keras draws."""

    def draw(key: Key, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        rows, gates, units = shape
        limit = math.sqrt(6.0 / (rows + gates * units))
        return jax.random.uniform(key, shape, dtype, -limit, limit)

    return draw


def uniform(*, draws: int = 1) -> Initializer:
    """The sum of `draws` draws of U(±1/√H), H the last axis: what torch draws.

    torch keeps two biases that are only ever added; `draws=2` is their sum.
    """

    def draw(key: Key, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        limit = 1.0 / math.sqrt(shape[-1])
        return jax.random.uniform(key, (draws, *shape), dtype, -limit, limit).sum(0)

    return draw


def forget_bias(value: float) -> Initializer:
    """Zero for every gate but the forget gate, which gets `value`.

    At 1 a gate begins at σ(1) = 0.73: what a unit holds fades by a half in two steps
    rather than in one, and its gradient likewise.

    Reference: Gers, Schmidhuber and Cummins, "Learning to forget", 2000; the value 1
    from Jozefowicz et al., "An empirical exploration of recurrent network
    architectures", 2015.
    """

    def draw(key: Key, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        return jnp.zeros(shape, dtype).at[FORGET].set(value)

    return draw


def chrono_bias(max_timescale: float) -> Initializer:
    """Forget biases that spread the units' memories from 1 to `max_timescale` steps.

    b_f = log u, u ~ U(1, T_max - 1)        b_i = -b_f        b_g = b_o = 0

    Reference: Tallec and Ollivier, "Can recurrent neural networks warp time?", 2018,
    https://arxiv.org/abs/1804.11188
    """

    def draw(key: Key, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        steps = jax.random.uniform(key, shape[-1:], dtype, 1.0, max_timescale - 1.0)
        zeros = jnp.zeros(shape, dtype)
        return zeros.at[FORGET].set(jnp.log(steps)).at[INPUT].set(-jnp.log(steps))

    return draw


def default(forget: float = 1.0) -> Preset:
    """LeCun input matrix, orthogonal recurrent matrix per gate, forget bias.

    >>> import jaxlstm as jl
    >>> jl.lstm() is jl.lstm(init=jl.initializers.default(1))
    True
    """
    return _cached("default", float(forget))


def torch() -> Preset:
    """U(±1/√H) throughout, the bias the sum of torch's two; no forget bias."""
    return _cached("torch", 0.0)


def keras(forget: float = 1.0) -> Preset:
    """Glorot and orthogonal over the fused gates, forget bias: Keras's defaults."""
    return _cached("keras", float(forget))


def chrono(max_timescale: float = 1000.0) -> Preset:
    """The default matrices with chrono biases for memories up to `max_timescale`.

    Errors: `ValueError` where `max_timescale` is not above 2.

    >>> import jaxlstm as jl
    >>> cell = jl.lstm(init=jl.initializers.chrono(784))
    """
    if not max_timescale > 2:
        raise ValueError(
            f"chrono: max_timescale is {max_timescale}; it must be above 2 steps."
        )
    return _cached("chrono", float(max_timescale))


TAKES_FORGET = {"default": default, "keras": keras}


@functools.cache
def _cached(kind: str, number: float) -> Preset:
    """One object for each preset, however it was asked for."""
    if kind == "torch":
        return Preset(uniform(), uniform(), uniform(draws=2), uniform())
    if kind == "keras":
        return Preset(glorot_fused(), orthogonal_fused(), forget_bias(number))
    bias = chrono_bias(number) if kind == "chrono" else forget_bias(number)
    return Preset(lecun_per_gate(), orthogonal_per_gate(), bias)


NO_FORGET_BIAS: Any = object()


def chosen_preset(init: str | Preset, forget: float) -> Preset:
    """The preset that a cell's options `init` and `forget_bias` choose.

    `NO_FORGET_BIAS` is for a cell without one: zero where the preset asks for one.

    Errors: `ValueError` for what is no preset, and for a forget bias that would have
    no effect.
    """
    if forget is NO_FORGET_BIAS:
        forget = 0.0 if isinstance(init, str) and init in TAKES_FORGET else 1.0
    real = int | float | np.integer | np.floating
    number = isinstance(forget, real) and not isinstance(forget, bool)
    if not number or not math.isfinite(forget):
        raise ValueError(f"forget_bias is {forget!r}; a finite number is needed.")
    if isinstance(init, str):
        return preset(init, float(forget))
    if not isinstance(init, Preset):
        raise ValueError(f"init is {init!r}; a preset or its name is needed.")
    if forget != 1.0:
        raise ValueError(
            f"init is a preset with biases of its own, so forget_bias={forget} would "
            "have no effect; give it to the preset."
        )
    return init


def preset(name: str, forget: float) -> Preset:
    """The preset of that name; `forget` is the forget bias of those that have one.

    Errors: `ValueError` for an unknown name, and where a forget bias other than the
    usual 1 is asked of a preset that draws its own.
    """
    brings_its_own = {"torch": torch, "chrono": chrono}
    if name in TAKES_FORGET:
        return TAKES_FORGET[name](forget)
    if name not in brings_its_own:
        names = ", ".join(sorted(TAKES_FORGET | brings_its_own))
        raise ValueError(f"init={name!r} is not a preset; the presets are {names}.")
    if forget != 1.0:
        raise ValueError(
            f"init={name!r} draws its own biases, so forget_bias={forget} would have "
            'no effect; leave it out, or use init="default".'
        )
    return brings_its_own[name]()
