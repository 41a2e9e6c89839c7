"""The layers as modules of `flax.nnx`.

Where code has

    rnn = nnx.RNN(nnx.OptimizedLSTMCell(3, 5, rngs=rngs))
    carry, ys = rnn(xs, initial_carry=carry, seq_lengths=lengths, return_carry=True)

it may have

    rnn = jl.modules.nnx.LSTM(3, 5, rngs=rngs)
    carry, ys = rnn(xs, initial_carry=carry, seq_lengths=lengths, return_carry=True)

Differences, all on purpose: the carry is the state of the layer, `(h, c)` by name; an
output at a step that does not happen is zero; outputs have the dtype of the inputs; a
reversed layer, `jl.recurrent(cell, size, reverse=True)`, gives each output at its own
step, which Flax calls `keep_order`.
"""

from typing import Any

import jax
from flax import nnx
from jax.typing import ArrayLike

from jaxlstm.cells.base import Cell, State
from jaxlstm.layers import Layer
from jaxlstm.modules import common
from jaxlstm.typing import Features, Key


class Recurrent(nnx.Module):
    """Any layer of `jaxlstm.layers`, holding its parameters.

    Arguments:
        layer: such as `jl.stack(...)`, `jl.serial(...)` or `jl.recurrent(...)`.
        in_features: of the inputs; None for a layer that reads tokens.
        feature_axes: how many axes of the inputs stand behind time: 1 for features,
            0 for tokens, 1 + n for a convolution over n axes.
        time_major: inputs are `[T, *b, D]` and not `[*b, T, D]`.
        return_carry: give `(carry, outputs)` and not the outputs alone.
        deterministic: no noise; `train()`, `eval()` and `nnx.view` set it.
        rng_collection: the stream that noise is drawn from.
        rngs: draws the parameters; if it has the stream, the module keeps a fork.

    `params` is the pytree of the layer with an `nnx.Param` at each leaf, so that a
    path reads `params[0].w_x`. A layer without noise keeps no stream and draws no key,
    and so runs in any trace.

    Errors: `ValueError` where layer and sizes do not fit, and for a call with noise
    that has no stream to draw it from.

    >>> import jax, jax.numpy as jnp, jaxlstm as jl
    >>> from flax import nnx
    >>> layer = jl.serial(jl.recurrent(jl.lstm(), 5, reverse=True), jl.linear(2))
    >>> model = jl.modules.nnx.Recurrent(layer, 3, rngs=nnx.Rngs(0))
    >>> model(jnp.ones((4, 7, 3)), seq_lengths=jnp.array([7, 2, 0, 5])).shape
    (4, 7, 2)
    >>> [path for path, _ in nnx.to_flat_state(nnx.state(model))][-1]
    ('params', 1, 'w')
    """

    def __init__(
        self,
        layer: Layer,
        in_features: int | None = None,
        *,
        feature_axes: int = 1,
        time_major: bool = False,
        return_carry: bool = False,
        deterministic: bool = False,
        rng_collection: str = "dropout",
        rngs: nnx.Rngs,
    ):
        layer = common.checked(layer)
        params, self.out_features = layer.init(rngs.params(), in_features)
        self.params = nnx.data(jax.tree.map(nnx.Param, params))
        self.layer, self.in_features = layer, in_features
        self.feature_axes, self.time_major = feature_axes, time_major
        self.return_carry, self.deterministic = return_carry, deterministic
        self.rng_collection = rng_collection
        self.noisy = common.draws(layer, in_features, feature_axes)
        known = rng_collection in rngs or "default" in rngs
        stream = rngs[rng_collection].fork() if self.noisy and known else None
        self.rngs = nnx.data(stream)

    def set_view(self, deterministic: bool | None = None) -> None:
        """What `nnx.view(model, deterministic=True)` sets, as for `nnx.Dropout`."""
        if deterministic is not None:
            self.deterministic = deterministic

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
        rngs: nnx.Rngs | nnx.RngStream | Key | None = None,
    ) -> Features | tuple[State, Features]:
        """The outputs `[*b, T, out_features]`, after the carry if that is wanted.

        Arguments:
            inputs: `[*b, T, D]`, any number of batch axes.
            initial_carry: where to begin, such as the carry of an earlier window.
            seq_lengths: integers `[*b]`; the steps from there on are padding.
            mask: booleans `[*b, T]`; False where the step does not happen.
            resets: booleans `[*b, T]`; True to begin again before the step.
            return_carry, deterministic: in place of the attributes of these names.
            rngs: draws the noise of this call in place of the module's own stream; a
                key will do, also inside a trace that the stream is outside of.
        """
        carry, outputs = common.apply(
            self.layer,
            jax.tree.map(_value, self.params, is_leaf=_is_variable),
            inputs,
            initial_carry,
            feature_axes=self.feature_axes,
            time_major=self.time_major,
            key=self._key(deterministic, rngs),
            lengths=seq_lengths,
            mask=mask,
            resets=resets,
        )
        wanted = self.return_carry if return_carry is None else return_carry
        return (carry, outputs) if wanted else outputs

    def initialize_carry(self, inputs: ArrayLike) -> State:
        """The carry before the first step of such inputs, in their dtype and sharding.

        >>> import jax.numpy as jnp, jaxlstm as jl
        >>> from flax import nnx
        >>> model = jl.modules.nnx.LSTM(3, 5, rngs=nnx.Rngs(0))
        >>> model.initialize_carry(jnp.ones((4, 7, 3)))[0].h.shape
        (4, 5)
        """
        none = common.no_steps(inputs, self.feature_axes, self.time_major)
        return self(none, return_carry=True, deterministic=True)[0]

    def _key(
        self,
        deterministic: bool | None,
        rngs: nnx.Rngs | nnx.RngStream | Key | None,
    ) -> Key | None:
        quiet = self.deterministic if deterministic is None else deterministic
        if quiet or not self.noisy:
            return None
        source = self.rngs if rngs is None else rngs
        if source is None:
            raise ValueError(
                f"this module draws noise and has no stream {self.rng_collection!r}; "
                "pass rngs= here or when it is made, or deterministic=True."
            )
        if isinstance(source, nnx.Rngs):
            source = source[self.rng_collection]
        return source() if isinstance(source, nnx.RngStream) else source


def _is_variable(leaf: Any) -> bool:
    return isinstance(leaf, nnx.Variable)


def _value(variable: nnx.Variable) -> jax.Array:
    return variable[...]


class LSTM(Recurrent):
    """Layers of one cell, one on the other: `jl.stack` as a module.

    Arguments:
        in_features, hidden_features: of the inputs, and of each layer.
        num_layers: how many.
        bidirectional: each runs both ways, and gives twice its features.
        residual: from the second layer on, each adds its input to its output.
        dropout: between the layers, not after the last.
        cell: None for `jl.lstm()`; any other, such as one with noise in its steps.
        time_major, return_carry, deterministic, rng_collection, rngs: as for
            `Recurrent`.

    The carry is a tuple with an entry for each layer, of one layer too.

    >>> import jax, jax.numpy as jnp, jaxlstm as jl
    >>> from flax import nnx
    >>> model = jl.modules.nnx.LSTM(3, 5, num_layers=2, dropout=0.1, rngs=nnx.Rngs(0))
    >>> carry, ys = model(jnp.ones((4, 7, 3)), return_carry=True)
    >>> ys.shape, carry[1].c.shape
    ((4, 7, 5), (4, 5))
    >>> model.eval()
    >>> resets = jnp.zeros((4, 7), bool).at[:, 3].set(True)
    >>> again = model(jnp.ones((4, 7, 3)), resets=resets)
    >>> bool((again[:, 3] == again[:, 0]).all())
    True
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        num_layers: int = 1,
        bidirectional: bool = False,
        residual: bool = False,
        dropout: float = 0.0,
        cell: Cell | None = None,
        time_major: bool = False,
        return_carry: bool = False,
        deterministic: bool = False,
        rng_collection: str = "dropout",
        rngs: nnx.Rngs,
    ):
        layer = common.stacked(
            cell,
            hidden_features,
            num_layers=num_layers,
            bidirectional=bidirectional,
            residual=residual,
            dropout=dropout,
        )
        super().__init__(
            layer,
            in_features,
            feature_axes=common.feature_axes(cell),
            time_major=time_major,
            return_carry=return_carry,
            deterministic=deterministic,
            rng_collection=rng_collection,
            rngs=rngs,
        )
