"""The models of classify, tag and ctc.

    inputs -> noise -> [convolution ->] recurrent layers -> [pooling ->] dropout -> head
                    └─ convolution -> mean ──────────────────────┘     (parallel)

Parameters are a dict by the name of the part, with only the parts that a config has:
`convolution`, `rnn`, `attention`, `head`, and the `transitions` of a random field.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

import jaxlstm as jl
from jaxlstm.lab.config.classification import ClassifyModel, SequenceModel, TagModel
from jaxlstm.lab.tasks import recurrent
from jaxlstm.lab.tasks.classification import convolution, crf, pooling
from jaxlstm.layers.base import Layer, Traces

Params = Any


def build(section: SequenceModel, *, inputs: int, outputs: int) -> Layer:
    """Return the model.

    Its `apply(params, xs, lengths=, key=)` maps `[T, B, inputs]` to logits of `outputs`
    classes in float32: `[B, outputs]` for a classifier, else `[T', B, outputs]`. It has
    no state, and returns the number of valid steps of the logits, `[B]`, in its place.
    `trace` also returns gates and states of the recurrent layers.

    Args:
        section: the `model` section of a config.
        inputs: number of features.
        outputs: number of classes.
    """
    rnn = recurrent.rnn(section, bidirectional=section.bidirectional)
    head, dropout = jl.linear(outputs), jl.dropout(section.output_dropout)
    pooled = section.pooling if isinstance(section, ClassifyModel) else None
    conv = section.convolution
    front = conv is not None and conv.arrangement == "front"

    def init(key: Array, input_size: int | None = None) -> tuple[Params, int]:
        conv_key, rnn_key, attention_key, head_key = jax.random.split(key, 4)
        params: dict[str, Any] = {}
        size, beside = inputs, 0
        if conv is not None:
            params["convolution"] = convolution.init(
                conv_key, inputs, conv.channels, conv.kernels
            )
            size, beside = (
                (conv.channels[-1], 0) if front else (inputs, conv.channels[-1])
            )
        params["rnn"], features = rnn.init(rnn_key, size)
        if isinstance(section, ClassifyModel) and pooled == "attention":
            params["attention"] = pooling.attention_params(
                attention_key, features, section.attention_size
            )
        params["head"], _ = head.init(head_key, features + beside)
        if isinstance(section, TagModel) and section.crf:
            params["transitions"] = crf.no_transitions(outputs)
        return params, outputs

    def trace(
        params: Params,
        xs: Any,
        state: Any = None,
        *,
        key: Array | None = None,
        lengths: Any = None,
        with_trace: bool = True,
        **_: Any,
    ) -> tuple[Any, Array, Traces]:
        keys = (None,) * 3 if key is None else tuple(jax.random.split(key, 3))
        xs = jnp.asarray(xs)
        steps = jnp.full(xs.shape[1], len(xs)) if lengths is None else lengths
        xs = jnp.where(pooling.active(xs, steps)[..., None], xs, 0.0)
        if keys[0] is not None and section.input_noise:
            xs += section.input_noise * jax.random.normal(keys[0], xs.shape)
        xs, branch = xs.astype(section.dtype), []
        if conv is not None:
            convolved, after = convolution.apply(
                params["convolution"], xs, steps, stride=conv.stride
            )
            if front:
                xs, steps = convolved, after
            else:
                branch = [
                    pooling.pool("mean", convolved, after) if pooled else convolved
                ]
        run: Any = rnn.trace if with_trace else rnn.apply
        _, ys, *traces = run(params["rnn"], xs, lengths=steps, key=keys[1])
        if pooled is not None:
            ys = pooling.pool(
                pooled,
                ys.astype(jnp.float32),
                steps,
                params=params.get("attention"),
                bidirectional=section.bidirectional,
            )
        ys = jnp.concatenate([part.astype(jnp.float32) for part in (ys, *branch)], -1)
        _, ys = dropout.apply((), ys, key=keys[2])
        _, logits = head.apply(params["head"], ys)
        return steps, logits, {f"rnn/{k}": v for k, v in (traces or [{}])[0].items()}

    def apply(
        params: Params, xs: Any, state: Any = None, **options: Any
    ) -> tuple[Any, Array]:
        return trace(params, xs, state, with_trace=False, **options)[:2]

    return Layer(init, apply, trace)


def output_lengths(section: SequenceModel, lengths: Any) -> Any:
    """Return the number of steps that the logits have, which a stride reduces."""
    conv = section.convolution
    if conv is not None and conv.arrangement == "front":
        for _ in conv.channels:
            lengths = -(-lengths // conv.stride)
    return lengths
