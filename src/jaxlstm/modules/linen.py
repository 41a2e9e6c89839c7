"""Layers as modules of `flax.linen`.

They replace

    rnn = nn.RNN(nn.OptimizedLSTMCell(5))
    carry, ys = rnn(xs, initial_carry=carry, seq_lengths=lengths, return_carry=True)

by

    rnn = jl.modules.linen.LSTM(5)
    carry, ys = rnn(xs, initial_carry=carry, seq_lengths=lengths, return_carry=True)

with the differences listed in `jaxlstm.modules.nnx`. The collection `params` holds the
nested dicts of arrays that `flax.serialization.to_state_dict` makes of the parameters.
"""

import dataclasses
from typing import Any, NoReturn, Self

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import serialization
from jax.typing import ArrayLike, DTypeLike

from jaxlstm.cells.base import Cell, Params, State
from jaxlstm.layers.base import Layer
from jaxlstm.masking import StepMask
from jaxlstm.modules import common
from jaxlstm.typing import Features, Key


def __getattr__(name: str) -> NoReturn:
    raise common.no_attribute(__name__, name)


class _Sequence(nn.Module, kw_only=True):
    """Base class of the modules, which define `_layer`."""

    time_major: bool = False
    reverse: bool = False
    keep_order: bool = True
    return_carry: bool = False
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    deterministic: bool | None = None
    rng_collection: str = "dropout"

    def __new__(cls, *_: Any, **options: Any) -> Self:
        """Refuse options of Flax by name."""
        known = {field.name for field in dataclasses.fields(cls)}
        common.refuse_options(cls.__name__, [n for n in options if n not in known])
        return super().__new__(cls)

    @nn.compact
    def __call__(
        self,
        inputs: ArrayLike,
        *,
        initial_carry: State | None = None,
        seq_lengths: ArrayLike | None = None,
        mask: ArrayLike | StepMask | None = None,
        resets: ArrayLike | None = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
        deterministic: bool | None = None,
        init_key: Key | None = None,
        **unknown: Any,
    ) -> Features | tuple[State, Features]:
        """Return the outputs `[*b, T, out_features]`, after the carry if requested.

        Args:
            inputs: `[*b, T, D]`, any number of batch axes.
            initial_carry: the carry before the first step, such as that of an earlier
                window; None for the initial state.
            seq_lengths: integers `[*b]`; the steps after them are padding.
            mask: booleans `[*b, T]`, False where the step is not executed; or a
                `StepMask`, whose fields are always `[T, *b]`.
            resets: booleans `[*b, T]`, True to reset the carry before the step.
            return_carry: overrides the field of that name.
            time_major: likewise.
            reverse: likewise.
            keep_order: likewise.
            deterministic: overrides the field of that name.
            init_key: not read, as initial carries are not random; `nn.Bidirectional`
                passes it.
            unknown: refused with a `TypeError`.
        """
        common.refuse_arguments(type(self).__name__, _Sequence.__call__, unknown)
        layer, feature_axes = self._layer()
        xs = common.input_array(inputs, feature_axes)
        in_features = xs.shape[-1] if feature_axes else None
        carry, outputs = common.apply(
            layer,
            self._params(layer, in_features),
            xs,
            initial_carry,
            feature_axes=feature_axes,
            time_major=common.first(time_major, self.time_major),
            reverse=common.first(reverse, self.reverse),
            keep_order=common.first(keep_order, self.keep_order),
            dtype=self.dtype,
            key=self._key(
                common.draws_noise(layer, in_features, feature_axes), deterministic
            ),
            lengths=seq_lengths,
            mask=mask,
            resets=resets,
        )
        with_carry = common.first(return_carry, self.return_carry)
        return (carry, outputs) if with_carry else outputs

    def initialize_carry(self, inputs: ArrayLike, *flax_arguments: Any) -> State:
        """Return the initial carry for these inputs, in their dtype and sharding.

        Args:
            inputs: `[*b, T, D]`; the values are not read.
            flax_arguments: refused with a `TypeError`.

        Example:
            >>> import jax, jax.numpy as jnp, jaxlstm as jl
            >>> xs = jnp.ones((4, 7, 3))
            >>> model = jl.modules.linen.LSTM(5)
            >>> variables = model.init(jax.random.key(0), xs)
            >>> model.apply(variables, xs, method="initialize_carry")[0].h.shape
            (4, 5)
        """
        common.refuse_shapes(inputs, flax_arguments)
        feature_axes = self._layer()[1]
        empty = common.without_steps(inputs, feature_axes, self.time_major)
        return self(empty, return_carry=True, deterministic=True)[0]

    def _layer(self) -> tuple[Layer, int]:
        """Return the layer, and the number of axes of its inputs after time."""
        raise NotImplementedError

    def _params(self, layer: Layer, in_features: int | None) -> Params:
        def draw(key: Key) -> Params:
            params, _ = layer.init(key, in_features)
            return jax.tree.map(lambda leaf: leaf.astype(self.param_dtype), params)

        def init(key: Key) -> Any:
            return serialization.to_state_dict(draw(key))

        like = jax.eval_shape(draw, jax.eval_shape(jax.random.key, 0))
        return serialization.from_state_dict(like, self.param("layer", init))

    def _key(self, noisy: bool, deterministic: bool | None) -> Key | None:
        silent = self.deterministic if deterministic is None else deterministic
        if noisy and silent is None:
            raise ValueError(
                "deterministic: got None in a module with noise, expected True or "
                "False; pass it to the call or to the constructor."
            )
        return None if silent or not noisy else self.make_rng(self.rng_collection)


class Recurrent(_Sequence):
    """Any layer of `jaxlstm.layers`.

    Attributes:
        layer: such as `jl.stack(...)`, `jl.serial(...)` or `jl.recurrent(...)`.
        feature_axes: number of axes of the inputs after time: 1 for features, 0 for
            tokens, 1 + n for a convolution over n axes.
        time_major: inputs are `[T, *b, D]` instead of `[*b, T, D]`.
        reverse: run from the last step to the first.
        keep_order: with `reverse`, outputs stay at their own steps, unlike the default
            of Flax; False for the order of execution, with padding at the end.
        return_carry: return `(carry, outputs)` instead of the outputs.
        dtype: dtype of the computation, that features are cast to; None for theirs.
        param_dtype: dtype of the parameters.
        deterministic: True for no noise. A layer with noise needs True or False, here
            or in the call.
        rng_collection: the stream that noise is drawn from.

    Raises:
        ValueError: layer and inputs do not match, or deterministic is not set for a
            layer with noise.
        flax.errors.InvalidRngError: the stream is missing.

    Example:
        >>> import jax, jax.numpy as jnp, jaxlstm as jl
        >>> layer = jl.serial(jl.embed(10, 3), jl.recurrent(jl.lstm(), 5))
        >>> model = jl.modules.linen.Recurrent(layer, feature_axes=0)
        >>> tokens = jnp.zeros((4, 7), int)
        >>> variables = model.init(jax.random.key(0), tokens)
        >>> model.apply(variables, tokens).shape
        (4, 7, 5)
        >>> sorted(variables["params"]["layer"]["1"])
        ['b', 'w_h', 'w_x']
    """

    layer: Layer
    feature_axes: int = 1

    def _layer(self) -> tuple[Layer, int]:
        return common.check_layer(self.layer), self.feature_axes


class LSTM(_Sequence):
    """Several recurrent layers of one cell: `jl.stack` as a module.

    The carry is a tuple with one entry per layer, also for a single layer.

    Attributes:
        hidden_features: number of hidden units of each layer.
        num_layers: number of layers.
        bidirectional: each layer runs in both directions and has twice its size of
            output features.
        residual: each layer after the first adds its input to its output.
        dropout: rate of the dropout between layers; none after the last.
        cell: the cell; None for `jl.lstm()`.
        time_major: as for `Recurrent`.
        reverse: as for `Recurrent`.
        keep_order: as for `Recurrent`.
        return_carry: as for `Recurrent`.
        dtype: as for `Recurrent`.
        param_dtype: as for `Recurrent`.
        deterministic: as for `Recurrent`.
        rng_collection: as for `Recurrent`.

    Example:
        >>> import jax, jax.numpy as jnp, jaxlstm as jl
        >>> model = jl.modules.linen.LSTM(5, num_layers=2, dropout=0.1)
        >>> xs = jnp.ones((4, 7, 3))
        >>> variables = model.init(jax.random.key(0), xs, deterministic=True)
        >>> carry, ys = model.apply(
        ...     variables,
        ...     xs,
        ...     seq_lengths=jnp.array([7, 2, 0, 5]),
        ...     return_carry=True,
        ...     deterministic=False,
        ...     rngs={"dropout": jax.random.key(1)},
        ... )
        >>> ys.shape, carry[1].c.shape
        ((4, 7, 5), (4, 5))
    """

    hidden_features: int
    num_layers: int = 1
    bidirectional: bool = False
    residual: bool = False
    dropout: float = 0.0
    cell: Cell | None = None

    def _layer(self) -> tuple[Layer, int]:
        layer = common.build_stack(
            self.cell,
            self.hidden_features,
            num_layers=self.num_layers,
            bidirectional=self.bidirectional,
            residual=self.residual,
            dropout=self.dropout,
        )
        return layer, common.feature_axes(self.cell)
