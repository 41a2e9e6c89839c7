"""The layers as modules of `flax.linen`.

Where code has

    rnn = nn.RNN(nn.OptimizedLSTMCell(5))
    carry, ys = rnn(xs, initial_carry=carry, seq_lengths=lengths, return_carry=True)

it may have

    rnn = jl.modules.linen.LSTM(5)
    carry, ys = rnn(xs, initial_carry=carry, seq_lengths=lengths, return_carry=True)

with the differences that `jaxlstm.modules.nnx` names. The collection `params` holds
nested dicts of arrays, as Flax has it: those of `serialization.to_state_dict`.
"""

from typing import Any

import jax
from flax import linen as nn
from flax import serialization
from jax.typing import ArrayLike

from jaxlstm.cells.base import Cell, Params, State
from jaxlstm.layers import Layer
from jaxlstm.modules import common
from jaxlstm.typing import Features, Key


class _Sequence(nn.Module, kw_only=True):
    """What the modules of this file have in common; they say what `_layer` is."""

    time_major: bool = False
    return_carry: bool = False
    deterministic: bool | None = None
    rng_collection: str = "dropout"

    @nn.compact
    def __call__(
        self,
        inputs: ArrayLike,
        *,
        initial_carry: State | None = None,
        seq_lengths: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        resets: ArrayLike | None = None,
        return_carry: bool | None = None,
        deterministic: bool | None = None,
    ) -> Features | tuple[State, Features]:
        """The outputs `[*b, T, out_features]`, after the carry if that is wanted.

        Arguments:
            inputs: `[*b, T, D]`, any number of batch axes.
            initial_carry: where to begin, such as the carry of an earlier window.
            seq_lengths: integers `[*b]`; the steps from there on are padding.
            mask: booleans `[*b, T]`; False where the step does not happen.
            resets: booleans `[*b, T]`; True to begin again before the step.
            return_carry, deterministic: in place of the fields of these names.
        """
        layer, feature_axes = self._layer()
        xs = common.features(inputs, feature_axes)
        in_features = xs.shape[-1] if feature_axes else None
        carry, outputs = common.apply(
            layer,
            self._params(layer, in_features),
            xs,
            initial_carry,
            feature_axes=feature_axes,
            time_major=self.time_major,
            key=self._key(
                common.draws(layer, in_features, feature_axes), deterministic
            ),
            lengths=seq_lengths,
            mask=mask,
            resets=resets,
        )
        wanted = self.return_carry if return_carry is None else return_carry
        return (carry, outputs) if wanted else outputs

    def initialize_carry(self, inputs: ArrayLike) -> State:
        """The carry before the first step of such inputs, in their dtype and sharding.

        >>> import jax, jax.numpy as jnp, jaxlstm as jl
        >>> xs = jnp.ones((4, 7, 3))
        >>> model = jl.modules.linen.LSTM(5)
        >>> variables = model.init(jax.random.key(0), xs)
        >>> model.apply(variables, xs, method="initialize_carry")[0].h.shape
        (4, 5)
        """
        feature_axes = self._layer()[1]
        none = common.no_steps(inputs, feature_axes, self.time_major)
        return self(none, return_carry=True, deterministic=True)[0]

    def _layer(self) -> tuple[Layer, int]:
        """The layer, and how many axes of its inputs stand behind time."""
        raise NotImplementedError

    def _params(self, layer: Layer, in_features: int | None) -> Params:
        def init(key: Key) -> Any:
            return serialization.to_state_dict(layer.init(key, in_features)[0])

        like = jax.eval_shape(
            lambda key: layer.init(key, in_features)[0],
            jax.eval_shape(jax.random.key, 0),
        )
        return serialization.from_state_dict(like, self.param("layer", init))

    def _key(self, noisy: bool, deterministic: bool | None) -> Key | None:
        quiet = self.deterministic if deterministic is None else deterministic
        if noisy and quiet is None:
            raise ValueError(
                "this module draws noise: pass deterministic=False to have it, or "
                "deterministic=True, here or when the module is made."
            )
        return None if quiet or not noisy else self.make_rng(self.rng_collection)


class Recurrent(_Sequence):
    """Any layer of `jaxlstm.layers`.

    Fields:
        layer: such as `jl.stack(...)`, `jl.serial(...)` or `jl.recurrent(...)`.
        feature_axes: how many axes of the inputs stand behind time: 1 for features,
            0 for tokens, 1 + n for a convolution over n axes.
        time_major: inputs are `[T, *b, D]` and not `[*b, T, D]`.
        return_carry: give `(carry, outputs)` and not the outputs alone.
        deterministic: no noise. A layer with noise must be told, here or in the call.
        rng_collection: the stream that noise is drawn from.

    Errors: `ValueError` where layer and inputs do not fit, and for a layer with noise
    that is not told whether to have it; Flax's own where the stream is missing.

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
        return common.checked(self.layer), self.feature_axes


class LSTM(_Sequence):
    """Layers of one cell, one on the other: `jl.stack` as a module.

    Fields:
        hidden_features: of each layer.
        num_layers: how many.
        bidirectional: each runs both ways, and gives twice its features.
        residual: from the second layer on, each adds its input to its output.
        dropout: between the layers, not after the last.
        cell: None for `jl.lstm()`; any other, such as one with noise in its steps.
        time_major, return_carry, deterministic, rng_collection: as for `Recurrent`.

    The carry is a tuple with an entry for each layer, of one layer too.

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
        layer = common.stacked(
            self.cell,
            self.hidden_features,
            num_layers=self.num_layers,
            bidirectional=self.bidirectional,
            residual=self.residual,
            dropout=self.dropout,
        )
        return layer, common.feature_axes(self.cell)
