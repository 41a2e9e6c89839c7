"""Comparison of a model with a model of another library on random ragged sequences."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlstm import interop
from jaxlstm.cells.base import Params
from jaxlstm.interop import parts
from jaxlstm.interop.parts import Part
from jaxlstm.layers.base import Layer
from jaxlstm.layers.pointwise import EmbedParams
from jaxlstm.masking import error_prefix
from jaxlstm.typing import show


class Difference(NamedTuple):
    """The largest difference of one result.

    Attributes:
        name: "outputs"; "final" and the path of a state, such as "final h" or
            "final 1/backward/c"; "gradient of inputs", or "gradient of" and the name of
            a weight.
        shape: the shape of the result.
        difference: the largest absolute difference.
        largest: the largest absolute value of the other library.
    """

    name: str
    shape: tuple[int, ...]
    difference: float
    largest: float

    @property
    def relative(self) -> float:
        """The difference, relative to the largest value if that is above 1."""
        return self.difference / max(1.0, self.largest)


class Comparison(NamedTuple):
    """Differences between a model and a model of another library; prints as a table."""

    differences: tuple[Difference, ...]

    @property
    def largest(self) -> float:
        """The largest of all relative differences; NaN if one is NaN."""
        return float(np.max([d.relative for d in self.differences]))

    def __str__(self) -> str:
        rows = [
            (d.name, show(d.shape), f"{d.difference:.1e}", f"{d.largest:.3g}")
            for d in self.differences
        ]
        rows.insert(0, ("result", "shape", "difference", "largest value"))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join(
                text.ljust(n) for text, n in zip(row, widths, strict=True)
            ).rstrip()
            for row in rows
        )


class Results(NamedTuple):
    """Results of a model.

    Attributes:
        ys: `[T, b, K]`.
        states: h, or h and c, of each layer and direction, each `[b, H]`; None if they
            are unknown.
        d_xs: the gradient of the inputs; None for tokens or if it is unknown.
        d_params: gradients of the parameters by name; None if they are unknown.
    """

    ys: Any
    states: list[Any] | None = None
    d_xs: Any = None
    d_params: dict[str, Any] | None = None


class Question(NamedTuple):
    """Inputs, and cotangents of the results.

    Attributes:
        xs: `[T, b, D]`, or tokens `[T, b]`.
        lengths: `[b]`; None for full sequences.
        d_ys: `[T, b, K]`, zero in padding.
        d_states: those of `Results.states`.
        state_names: the names of the states.
    """

    xs: np.ndarray
    lengths: np.ndarray | None
    d_ys: np.ndarray
    d_states: list[np.ndarray]
    state_names: list[str]

    @property
    def active(self) -> np.ndarray | None:
        """Booleans `[T, b]`, False in padding; None without lengths."""
        if self.lengths is None:
            return None
        return np.arange(len(self.xs))[:, None] < self.lengths

    @property
    def has_tokens(self) -> bool:
        """True if the inputs are tokens, which have no gradient."""
        return self.xs.dtype.kind == "i"


def compare(
    model: Layer,
    params: Params,
    other: Any,
    *,
    steps: int = 12,
    rows: int = 5,
    ragged: bool = True,
    seed: int = 0,
) -> Comparison:
    """Return the largest differences between a model and one of another library.

    Both run on the same random inputs. Compared are the outputs of all steps, the final
    states, the gradient of the inputs and, for torch, those of the parameters.

    Args:
        model: the model.
        params: its parameters, such as `load` returned them.
        other: one of

            - `torch.nn.LSTM`, `GRU` or `RNN`;
            - a Keras layer or model with `return_sequences=True`;
            - `(module, variables)` of linen, or an nnx module, with `RNN` or
              `Bidirectional` outside;
            - an Equinox cell, or a list of cells;
            - a function `(xs [T, b, D], lengths [b]) -> ys [T, b, K]` for anything
              else. `xs` is an array of NumPy, or tokens `[T, b]`; `ys` may be a tensor.
              The gradient is compared if `ys` is an array of JAX.
        steps: T, the number of steps.
        rows: b, the number of sequences.
        ragged: whether sequences have different lengths, from 1 to T.
        seed: of the random numbers.

    Raises:
        ValueError: `other` is of an unknown type, or returns other shapes.

    Example:
        >>> import jax, jaxlstm as jl
        >>> from flax import linen as nn
        >>> rnn = nn.RNN(nn.OptimizedLSTMCell(5))
        >>> variables = rnn.init(jax.random.key(0), jax.numpy.ones((1, 1, 3)))
        >>> params, model = jl.interop.flax.load(variables)
        >>> report = jl.interop.compare(model, params, (rnn, variables))
        >>> print(report)
        result              shape       difference  largest value
        outputs             [12, 5, 5]  ...
        final h             [5, 5]      ...
        final c             [5, 5]      ...
        gradient of inputs  [12, 5, 3]  ...
        >>> report.largest < 1e-6
        True
    """
    with error_prefix("compare"):
        question = _ask(model, params, steps, rows, ragged, seed)
        theirs = _runner(other)(question)
        if theirs.states is None:  # the gradient is then of the outputs only
            question = question._replace(d_states=[0 * d for d in question.d_states])
        ours = _ours(model, params, question)
        return Comparison(tuple(_differences(question, ours, theirs)))


# -- the question ----------------------------------------------------------------------


def _ask(
    model: Layer, params: Params, steps: int, rows: int, ragged: bool, seed: int
) -> Question:
    first: Part = next(iter(parts.parts_of(model, params).values()))
    rng = np.random.default_rng(seed)
    dtype = np.result_type(
        np.float32, *(leaf.dtype for leaf in jax.tree.leaves(params))
    )
    if isinstance(first, EmbedParams):
        xs = rng.integers(len(first.table), size=(steps, rows)).astype(np.int32)
    else:
        features = parts.input_size(first) or 1
        xs = rng.normal(size=(steps, rows, features)).astype(dtype)
    lengths = None
    if ragged:
        lengths = rng.integers(1, steps + 1, rows).astype(np.int32)
        lengths[rng.integers(rows)] = steps
    state, ys = jax.eval_shape(lambda p, x: model.apply(p, x), params, xs)
    states = jax.tree_util.tree_leaves_with_path(state)
    question = Question(
        xs,
        lengths,
        rng.normal(size=ys.shape).astype(ys.dtype),
        [rng.normal(size=s.shape).astype(s.dtype) for _, s in states],
        [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in states],
    )
    if question.active is not None:
        question.d_ys[~question.active] = 0
    return question


def _ours(model: Layer, params: Params, question: Question) -> Results:
    def run(params: Params, xs: Any) -> tuple[Any, list[Any]]:
        state, ys = model.apply(params, xs, lengths=question.lengths)
        return ys, jax.tree.leaves(state)

    @jax.jit
    def results(params: Params, xs: Any, cotangents: Any) -> tuple[Any, ...]:
        if question.has_tokens:
            out, pull = jax.vjp(lambda params: run(params, xs), params)
            return *out, *pull(cotangents), None
        out, pull = jax.vjp(run, params, xs)
        return *out, *pull(cotangents)

    cotangents = (question.d_ys, question.d_states)
    ys, states, d_params, d_xs = results(params, question.xs, cotangents)
    try:
        named = interop.torch.dump(model, d_params)
    except ValueError:  # torch has no such model, and none is compared
        named = None
    return Results(ys, states, d_xs, named)


def _differences(
    question: Question, ours: Results, theirs: Results
) -> list[Difference]:
    ys = np.asarray(theirs.ys)
    _check_outputs(question, ys)
    if question.active is not None:
        ys = np.where(question.active[..., None], ys, 0)
    pairs = [("outputs", ours.ys, ys)]
    if theirs.states is not None and ours.states is not None:
        if len(theirs.states) != len(ours.states):
            raise ValueError(
                f"other: got {len(theirs.states)} arrays of final states, expected "
                f"{len(ours.states)}: {', '.join(question.state_names)}."
            )
        names = (f"final {name}" for name in question.state_names)
        pairs += zip(names, ours.states, theirs.states, strict=True)
    if theirs.d_xs is not None and ours.d_xs is not None:
        pairs.append(("gradient of inputs", ours.d_xs, theirs.d_xs))
    if theirs.d_params is not None and ours.d_params is not None:
        pairs += _parameter_pairs(ours.d_params, theirs.d_params)
    return [_difference(name, one, other) for name, one, other in pairs]


def _check_outputs(question: Question, ys: Any) -> None:
    if ys.shape != question.d_ys.shape:
        raise ValueError(
            f"other: got outputs of shape {show(ys.shape)}, expected "
            f"{show(question.d_ys.shape)}, [T, b, K]."
        )


def _parameter_pairs(
    ours: dict[str, Any], theirs: dict[str, Any]
) -> list[tuple[str, Any, Any]]:
    """Pair gradients by name.

    Both biases of torch have the gradient of our b, except that the candidate's part of
    `bias_hh` in a GRU has that of our b_h.
    """
    pairs = []
    for name, gradient in theirs.items():
        own = np.asarray(ours[name])
        if "bias_hh" in name:
            b = np.asarray(ours[name.replace("_hh", "_ih")])
            candidate = len(own) // 3
            own = np.concatenate([b[:-candidate], own[-candidate:]]) if own.any() else b
        pairs.append((f"gradient of {name}", own, gradient))
    return pairs


def _difference(name: str, one: Any, other: Any) -> Difference:
    one, other = (np.asarray(array, np.float64) for array in (one, other))
    if one.shape != other.shape:
        raise ValueError(
            f"other: {name}: got shape {show(other.shape)}, expected {show(one.shape)}."
        )
    distance = np.abs(one - other).max(initial=0.0)
    largest = np.abs(other).max(initial=0.0)
    return Difference(name, one.shape, float(distance), float(largest))


# -- other libraries -------------------------------------------------------------------

Run = Callable[[Question], Results]


def _runner(other: Any) -> Run:
    """Return the function that runs a model of another library."""
    if isinstance(other, tuple) and len(other) == 2 and "flax" in _packages(other[0]):
        return functools.partial(_run_linen, *other)
    packages = _packages(other[0] if isinstance(other, list) and other else other)
    for package, run in RUNNERS.items():
        if package in packages:
            return functools.partial(run, other)
    if callable(other):
        return functools.partial(_run_function, other)
    raise ValueError(
        f"other: got {type(other).__name__}, expected a module of torch, Keras, nnx or "
        "Equinox, (module, variables) of linen, or a function (xs, lengths) -> ys."
    )


def _packages(instance: Any) -> set[str]:
    """Return the top-level packages of the classes of an instance."""
    return {cls.__module__.partition(".")[0] for cls in type(instance).__mro__}


def _run_torch(module: Any, question: Question) -> Results:
    import torch  # pyright: ignore[reportMissingImports]

    if not hasattr(module, "weight_ih_l0") or question.has_tokens:
        raise ValueError(
            f"other: got {type(module).__name__}, expected nn.LSTM, nn.GRU or nn.RNN; "
            "pass any other module as a function (xs, lengths) -> ys."
        )
    weights = dict(module.named_parameters())
    like = next(iter(weights.values()))

    def tensor(array: np.ndarray) -> Any:
        return torch.as_tensor(array).to(device=like.device, dtype=like.dtype)

    xs = tensor(question.xs).requires_grad_()
    lengths, batch_first = question.lengths, module.batch_first
    inputs = xs.transpose(0, 1) if batch_first else xs
    pack = torch.nn.utils.rnn
    if lengths is not None:
        counts = torch.as_tensor(lengths.astype(np.int64))
        inputs = pack.pack_padded_sequence(
            inputs, counts, batch_first=batch_first, enforce_sorted=False
        )
    was_training = module.training
    module.eval()  # no dropout
    try:
        ys, state = module(inputs)
    finally:
        module.train(was_training)
    if lengths is not None:
        ys, _ = pack.pad_packed_sequence(
            ys, batch_first=batch_first, total_length=len(question.xs)
        )
    ys = ys.transpose(0, 1) if batch_first else ys
    state = state if isinstance(state, tuple) else (state,)
    states = [part[n] for n in range(len(state[0])) for part in state]
    gradients = torch.autograd.grad(
        [ys, *states],
        [xs, *weights.values()],
        [tensor(array) for array in (question.d_ys, *question.d_states)],
    )
    d_xs, *d_weights = (gradient.cpu().numpy() for gradient in gradients)
    return Results(
        ys.detach().cpu().numpy(),
        [part.detach().cpu().numpy() for part in states],
        d_xs,
        dict(zip(weights, d_weights, strict=True)),
    )


def _run_keras(layer: Any, question: Question) -> Results:
    import keras  # pyright: ignore[reportMissingImports]

    mask = None if question.active is None else question.active.T
    if not layer.built:
        raise ValueError(f"other: {layer.name} is not built; call it once on data.")

    def arrange(outputs: Any) -> tuple[Any, list[Any] | None]:
        ys, *states = outputs if isinstance(outputs, list | tuple) else [outputs]
        if ys.ndim != 3:
            raise ValueError(
                f"other: got outputs of shape {show(ys.shape)}, expected [b, T, K]; "
                "build the layer with return_sequences=True."
            )
        ys = ys.swapaxes(0, 1)
        if getattr(layer, "go_backwards", False):
            ys = ys[::-1]  # Keras returns them in the order of computation
        return ys, states or None

    if keras.backend.backend() != "jax":
        outputs = keras.tree.map_structure(
            keras.ops.convert_to_numpy, layer(question.xs.swapaxes(0, 1), mask=mask)
        )
        return Results(*arrange(outputs))
    trainable = [variable.value for variable in layer.trainable_variables]
    others = [variable.value for variable in layer.non_trainable_variables]

    def run(xs: Any) -> tuple[Any, list[Any] | None]:
        outputs, _ = layer.stateless_call(
            trainable, others, xs.swapaxes(0, 1), mask=mask
        )
        return arrange(outputs)

    return _run_jax(run, question)


def _run_linen(module: Any, variables: Any, question: Question) -> Results:
    def call(xs: Any, **options: Any) -> Any:
        return module.apply(variables, xs, **options)

    return _run_flax(module, call, question)


def _run_nnx(module: Any, question: Question) -> Results:
    from flax import nnx

    def call(xs: Any, **options: Any) -> Any:
        # A call counts random keys in the module, which JAX allows only at the trace
        # level at which the module was made.
        return nnx.clone(module)(xs, **options)

    return _run_flax(module, call, question)


def _run_flax(module: Any, call: Callable[..., Any], question: Question) -> Results:
    if "seq_lengths" not in inspect.signature(type(module).__call__).parameters:
        raise ValueError(
            f"other: got {type(module).__name__}, expected an RNN or Bidirectional; "
            "pass any other module as a function (xs, lengths) -> ys."
        )

    def run(xs: Any) -> tuple[Any, list[Any]]:
        carry, ys = call(
            xs, seq_lengths=question.lengths, return_carry=True, time_major=True
        )
        both = hasattr(module, "forward_rnn")
        states = [_of_carry(one) for one in (carry if both else (carry,))]
        return ys, [state for pair in states for state in pair]

    return _run_jax(run, question)


def _of_carry(carry: Any) -> list[Any]:
    """Return [h, c] of Flax's (c, h), or [h]."""
    return list(reversed(carry)) if isinstance(carry, tuple) else [carry]


def _run_equinox(cells: Any, question: Question) -> Results:
    """Scan and map cells, which take one step of one row."""
    active = question.active
    if active is None:
        active = np.ones(question.xs.shape[:2], bool)

    def run(xs: Any) -> tuple[Any, list[Any]]:
        states: list[Any] = []
        for cell in cells if isinstance(cells, list) else [cells]:
            last, xs = _scan_cell(cell, xs, jnp.asarray(active))
            states += jax.tree.leaves(last)
        return xs, states

    return _run_jax(run, question)


def _scan_cell(cell: Any, xs: Any, active: Any) -> tuple[Any, Any]:
    zeros = jnp.zeros((xs.shape[1], cell.hidden_size), xs.dtype)
    is_lstm = len(cell.weight_hh) == 4 * cell.hidden_size
    state = (zeros, zeros) if is_lstm else zeros

    def step(state: Any, inputs: Any) -> tuple[Any, Any]:
        x, now = inputs
        after = jax.vmap(cell)(x, state)
        state = jax.tree.map(
            lambda new, old: jnp.where(now[:, None], new, old), after, state
        )
        return state, jax.tree.leaves(state)[0]

    return jax.lax.scan(step, state, (xs, active))


def _run_function(function: Callable[..., Any], question: Question) -> Results:
    """Run a function of arrays; its gradient is known if it returns one of JAX."""
    ys: Any = function(question.xs, question.lengths)
    if "torch" in _packages(ys):
        return Results(ys.detach().cpu().numpy())
    if isinstance(ys, jax.Array) and not question.has_tokens:
        return _run_jax(lambda xs: (function(xs, question.lengths), None), question)
    return Results(ys)


def _run_jax(
    run: Callable[[Any], tuple[Any, list[Any] | None]], question: Question
) -> Results:
    """Return the results of a function `xs -> (ys, states)` that JAX can trace."""
    if question.has_tokens:
        return Results(*run(jnp.asarray(question.xs)))

    @jax.jit
    def results(xs: Any) -> tuple[Any, ...]:
        (ys, states), pull = jax.vjp(run, xs)
        _check_outputs(question, ys)
        d_ys = jnp.asarray(question.d_ys, ys.dtype)
        d_states = None
        if states is not None:
            pairs = zip(question.d_states, states, strict=True)
            d_states = [jnp.asarray(array, state.dtype) for array, state in pairs]
        return ys, states, *pull((d_ys, d_states))

    return Results(*results(question.xs))


RUNNERS: dict[str, Callable[[Any, Question], Results]] = {
    "torch": _run_torch,
    "keras": _run_keras,
    "flax": _run_nnx,
    "equinox": _run_equinox,
}
