"""Layers as modules of `flax.nnx`.

They replace

    rnn = nnx.RNN(nnx.OptimizedLSTMCell(3, 5, rngs=rngs))
    carry, ys = rnn(xs, initial_carry=carry, seq_lengths=lengths, return_carry=True)

by

    rnn = jl.modules.nnx.LSTM(3, 5, rngs=rngs)
    carry, ys = rnn(xs, initial_carry=carry, seq_lengths=lengths, return_carry=True)

Intended differences: the carry is the state of the layer, with fields h and c, where
Flax has the tuple (c, h); outputs at masked and padded steps are zero; outputs have the
dtype of the inputs unless `dtype` is given; the outputs of a reversed run stay at their
own steps unless `keep_order=False`, which is the default of Flax. Initializers and
activations are options of the cell. The forget bias starts at 1, in Flax at 0.
"""

import inspect
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike, DTypeLike

from jaxlstm.cells.base import Cell, State
from jaxlstm.layers.base import Layer
from jaxlstm.masking import StepMask
from jaxlstm.modules import common
from jaxlstm.typing import Features, Key


def __getattr__(name: str) -> NoReturn:
    raise common.no_attribute(__name__, name)


class Recurrent(nnx.Module):
    """Any layer of `jaxlstm.layers`, with its parameters.

    `params` is the pytree of the layer with an `nnx.Param` at each leaf, as in
    `params[0].w_x`. A layer without noise keeps no stream and draws no key, so it runs
    in any trace.

    Args:
        layer: such as `jl.stack(...)`, `jl.serial(...)` or `jl.recurrent(...)`.
        in_features: number of input features; None for a layer that reads tokens.
        feature_axes: number of axes of the inputs after time: 1 for features, 0 for
            tokens, 1 + n for a convolution over n axes.
        time_major: inputs are `[T, *b, D]` instead of `[*b, T, D]`.
        reverse: run from the last step to the first.
        keep_order: with `reverse`, outputs stay at their own steps, unlike the default
            of Flax; False for the order of execution, with padding at the end.
        return_carry: return `(carry, outputs)` instead of the outputs.
        dtype: dtype of the computation, that features are cast to; None for theirs.
        param_dtype: dtype of the parameters.
        deterministic: no noise; `train()`, `eval()` and `nnx.view` set it.
        rng_collection: the stream that noise is drawn from.
        rngs: draws the parameters; if it has the stream, the module keeps a fork.

    Raises:
        ValueError: layer and sizes do not match; when called, noise without a stream.

    Example:
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
        reverse: bool = False,
        keep_order: bool = True,
        return_carry: bool = False,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        deterministic: bool = False,
        rng_collection: str = "dropout",
        rngs: nnx.Rngs,
        **flax_options: Any,
    ):
        common.refuse_options(type(self).__name__, flax_options)
        layer = common.check_layer(layer)
        if not isinstance(rngs, nnx.Rngs):
            raise TypeError(
                f"{type(self).__name__}: rngs: got {type(rngs).__name__}, expected "
                "nnx.Rngs; write rngs=nnx.Rngs(key), where key is a key or a seed."
            )
        params, self.out_features = layer.init(rngs.params(), in_features)
        params = jax.tree.map(lambda leaf: leaf.astype(param_dtype), params)
        self.params = nnx.data(jax.tree.map(nnx.Param, params))
        self.layer, self.in_features = layer, in_features
        self.feature_axes, self.time_major = feature_axes, time_major
        self.reverse, self.keep_order, self.dtype = reverse, keep_order, dtype
        self.return_carry, self.deterministic = return_carry, deterministic
        self.rng_collection = rng_collection
        self.noisy = common.draws_noise(layer, in_features, feature_axes)
        known = rng_collection in rngs or "default" in rngs
        stream = rngs[rng_collection].fork() if self.noisy and known else None
        self.rngs = nnx.data(stream)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        _show_arguments(cls)

    def set_view(self, deterministic: bool | None = None) -> None:
        """Set the options of `nnx.view(model, deterministic=True)`."""
        if deterministic is not None:
            self.deterministic = deterministic

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
        rngs: nnx.Rngs | nnx.RngStream | Key | None = None,
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
            return_carry: overrides the attribute of that name.
            time_major: likewise.
            reverse: likewise.
            keep_order: likewise.
            deterministic: overrides the attribute of that name.
            rngs: draws the noise of this call instead of the module's stream. A key
                also works inside a trace that does not contain the stream.
            unknown: refused with a `TypeError`.
        """
        common.refuse_arguments(type(self).__name__, Recurrent.__call__, unknown)
        carry, outputs = common.apply(
            self.layer,
            jax.tree.map(_value, self.params, is_leaf=_is_variable),
            inputs,
            initial_carry,
            feature_axes=self.feature_axes,
            time_major=common.first(time_major, self.time_major),
            reverse=common.first(reverse, self.reverse),
            keep_order=common.first(keep_order, self.keep_order),
            dtype=self.dtype,
            key=self._key(deterministic, rngs),
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
            >>> import jax.numpy as jnp, jaxlstm as jl
            >>> from flax import nnx
            >>> model = jl.modules.nnx.LSTM(3, 5, rngs=nnx.Rngs(0))
            >>> model.initialize_carry(jnp.ones((4, 7, 3)))[0].h.shape
            (4, 5)
        """
        common.refuse_shapes(inputs, flax_arguments)
        empty = common.without_steps(inputs, self.feature_axes, self.time_major)
        return self(empty, return_carry=True, deterministic=True)[0]

    def _key(
        self,
        deterministic: bool | None,
        rngs: nnx.Rngs | nnx.RngStream | Key | None,
    ) -> Key | None:
        silent = self.deterministic if deterministic is None else deterministic
        if silent or not self.noisy:
            return None
        source = self.rngs if rngs is None else rngs
        if source is None:
            raise ValueError(
                f"rngs: got no stream {self.rng_collection!r} in a module with noise; "
                "pass rngs= to the call or to the constructor, or deterministic=True."
            )
        if isinstance(source, nnx.Rngs):
            source = source[self.rng_collection]
        return source() if isinstance(source, nnx.RngStream) else source


def _show_arguments(cls: type[Recurrent]) -> None:
    """Let `help` show the arguments; that of Flax shows `*args, **kwargs`."""
    init = inspect.signature(cls.__init__)
    shown = [
        parameter.replace(annotation=parameter.empty)
        for name, parameter in init.parameters.items()
        if name not in ("self", "flax_options")
    ]
    signature = init.replace(parameters=shown, return_annotation=init.empty)
    setattr(cls, "__signature__", signature)  # noqa: B010


_show_arguments(Recurrent)


def _is_variable(leaf: Any) -> bool:
    return isinstance(leaf, nnx.Variable)


def _value(variable: nnx.Variable) -> jax.Array:
    return variable[...]


class LSTM(Recurrent):
    """Several recurrent layers of one cell: `jl.stack` as a module.

    The carry is a tuple with one entry per layer, also for a single layer.

    Args:
        in_features: number of input features.
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
        rngs: as for `Recurrent`.

    Raises:
        ValueError: a size or a rate is out of range.

    Example:
        >>> import jax, jax.numpy as jnp, jaxlstm as jl
        >>> from flax import nnx
        >>> rngs = nnx.Rngs(0)
        >>> model = jl.modules.nnx.LSTM(3, 5, num_layers=2, dropout=0.1, rngs=rngs)
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
        reverse: bool = False,
        keep_order: bool = True,
        return_carry: bool = False,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        deterministic: bool = False,
        rng_collection: str = "dropout",
        rngs: nnx.Rngs,
        **flax_options: Any,
    ):
        layer = common.build_stack(
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
            reverse=reverse,
            keep_order=keep_order,
            return_carry=return_carry,
            dtype=dtype,
            param_dtype=param_dtype,
            deterministic=deterministic,
            rng_collection=rng_collection,
            rngs=rngs,
            **flax_options,
        )
