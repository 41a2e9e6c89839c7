"""Models as StableHLO programs that run without this package, by `jax.export`.

The parameters are constants of the program. Batch size and number of steps are free,
and one program runs on CPUs, CUDA devices and TPUs. Two forms are written; each takes
and returns plain arrays and dicts of arrays:

    whole     state, outputs = exported.call(xs, lengths)
    stream    state, outputs = exported.call(x, reset, state)

    xs        `[T, B, D]`, or tokens `[T, B]`
    lengths   int32 `[B]`; row b has lengths[b] steps, T for all of them
    x         one step of xs, `[B, D]` or `[B]`
    reset     bool `[B]`, True for a row that starts a new sequence: its state is not
              read, and the initial state is used
    state     dict of arrays `[B, H]` by their path in the state, such as "rnn/0/h"

A process without this package reads a file by

    exported = jax.export.deserialize(bytearray(open(path, "rb").read()))
    run = jax.jit(exported.call)  # compiled once for each size of its arguments

Writing and reading files needs the package flatbuffers.
"""

import contextlib
import importlib.util
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, export

from jaxlstm.cells.base import Params, State
from jaxlstm.interop.inputs import Inputs, example, inputs_of, reads_ahead
from jaxlstm.interop.trees import named_leaves
from jaxlstm.interop.writing import write_atomic
from jaxlstm.layers.base import Layer
from jaxlstm.typing import show

PLATFORMS = ("cpu", "cuda", "tpu")
SPACE = ("X", "Y", "Z")

# Largest difference from the model, by the item size of a dtype, relative to the
# largest output or 1.
TOLERANCE = {8: 1e-12, 4: 1e-5, 2: 1e-1}

# `jax.export` checks the symbols of a shape by this call. Others could run code of the
# process that loads the program, such as a Python callback by its address.
CUSTOM_CALL = "stablehlo.custom_call"
ALLOWED_CALL = re.compile(re.escape(CUSTOM_CALL) + r" @shape_assertion\(")

MAX_BYTES = 2**31  # flatbuffers cannot address more

NEEDS_FLATBUFFERS = 'StableHLO files need flatbuffers: pip install "jaxlstm[stablehlo]"'


def dump(
    model: Layer,
    params: Params,
    *,
    stream: bool = False,
    platforms: Sequence[str] = PLATFORMS,
    inputs: Inputs | None = None,
) -> export.Exported:
    """Return a model as a program for any number of rows and steps.

    Args:
        model: the model.
        params: its parameters, which become constants of the program.
        stream: return the program of one step, with the state as argument and result.
        platforms: where the program runs.
        inputs: the inputs of the model; None to read them from its parameters.

    Raises:
        ValueError: the inputs are not known; or a stream of a model that reads later
            steps, such as a bidirectional one.
        NotImplementedError: an engine that the model asks for cannot be exported.

    Example:
        >>> import jax, jax.numpy as jnp, jaxlstm as jl
        >>> model = jl.serial(rnn=jl.recurrent(jl.lstm(), 5), head=jl.linear(2))
        >>> params, _ = model.init(jax.random.key(0), 3)
        >>> exported = jl.interop.stablehlo.dump(model, params)
        >>> lengths = jnp.array([7, 4], jnp.int32)
        >>> state, outputs = exported.call(jnp.ones((7, 2, 3)), lengths)
        >>> outputs.shape, sorted(state)
        ((7, 2, 2), ['rnn/c', 'rnn/h'])
    """
    inputs = inputs_of(model, params) if inputs is None else inputs
    if stream and reads_ahead(model):
        raise ValueError(
            "stablehlo: stream: got a bidirectional or reversed model, whose outputs "
            "depend on later steps; leave stream out to write the whole sequence."
        )
    space = ", ".join(SPACE[: inputs.shape.count(None)])
    time, rows, *sizes = export.symbolic_shape(f"T, B, {space}".rstrip(", "))
    symbols = iter(sizes)
    step = [next(symbols) if size is None else size for size in inputs.shape]

    def struct(dtype: Any, *shape: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)

    if stream:
        x, reset = struct(inputs.dtype, rows, *step), struct(bool, rows)
        like = jax.eval_shape(_first_state(model, params), x)
        program, arguments = (
            _stream(model, params, like),
            (x, reset, named_leaves(like)),
        )
    else:
        xs = struct(inputs.dtype, time, rows, *step)
        program, arguments = _whole(model, params), (xs, struct(jnp.int32, rows))
    with _without_source_paths():
        return export.export(jax.jit(program), platforms=list(platforms))(*arguments)


@contextlib.contextmanager
def _without_source_paths() -> Iterator[None]:
    """Leave the paths of source files on this machine out of programs."""
    option = "jax_traceback_in_locations_limit"
    before = jax.config.values[option]
    jax.config.update(option, 0)
    try:
        yield
    finally:
        jax.config.update(option, before)


def _whole(model: Layer, params: Params) -> Callable[..., Any]:
    def whole(xs: Array, lengths: Array) -> tuple[dict[str, Array], Array]:
        state, outputs = model.apply(params, xs, lengths=lengths)
        return named_leaves(state), outputs

    return whole


def _stream(model: Layer, params: Params, like: State) -> Callable[..., Any]:
    tree = jax.tree.structure(like)

    def stream(
        x: Array, reset: Array, state: dict[str, Array]
    ) -> tuple[dict[str, Array], Array]:
        before = jax.tree.unflatten(tree, [state[name] for name in named_leaves(like)])
        after, outputs = model.apply(params, x[None], before, resets=reset[None])
        return named_leaves(after), outputs[0]

    return stream


def _first_state(model: Layer, params: Params) -> Callable[[Array], State]:
    """Return a function of one step's input to the state after it."""
    return lambda x: model.apply(params, x[None])[0]


# -- files -----------------------------------------------------------------------------


def save(
    path: str | os.PathLike[str],
    model: Layer,
    params: Params,
    *,
    stream: bool = False,
    platforms: Sequence[str] = PLATFORMS,
    inputs: Inputs | None = None,
    tolerance: float | None = None,
) -> float:
    """Write a model as a program, after it was compared with the model.

    The program runs on this machine on random rows of several lengths, and the file is
    written only if its results are those of `model.apply`.

    Args:
        path: the file; an existing one is replaced.
        model: as in `dump`.
        params: as in `dump`.
        stream: as in `dump`.
        platforms: as in `dump`.
        inputs: as in `dump`.
        tolerance: the largest difference that is accepted; None chooses it by the
            dtype.

    Returns:
        The largest difference from the outputs and states of the model.

    Raises:
        ValueError: as `dump`; or the results differ.
        ImportError: flatbuffers is not installed.
        OSError: the file cannot be written.
    """
    _require_flatbuffers()
    inputs = inputs_of(model, params) if inputs is None else inputs
    exported = dump(model, params, stream=stream, platforms=platforms, inputs=inputs)
    checked = exported
    if (here := export.default_export_platform()) not in platforms:
        checked = dump(model, params, stream=stream, platforms=[here], inputs=inputs)
    difference = compare(
        checked, model, params, stream=stream, inputs=inputs, tolerance=tolerance
    )
    write_atomic(Path(path), bytes(exported.serialize()))
    return difference


def compare(
    exported: export.Exported,
    model: Layer,
    params: Params,
    *,
    stream: bool,
    inputs: Inputs,
    tolerance: float | None = None,
) -> float:
    """Return the largest difference between a program and a model on random inputs.

    Raises:
        ValueError: it exceeds `tolerance`, or, without one, the rounding of the model's
            dtype.
    """
    rounding = TOLERANCE[max(2, _item_size(params))]
    limit, largest = rounding if tolerance is None else tolerance, 0.0
    for time, rows in ((1, 1), (6, 3)):
        xs = example(inputs, time, rows)
        run = _run_stream if stream else _run_whole
        pairs = run(exported, model, params, xs)
        for name, got, expected in pairs:
            got, expected = (np.asarray(a, np.float64) for a in (got, expected))
            scale = max(1.0, np.abs(expected).max(initial=0.0))
            difference = np.abs(got - expected).max(initial=0.0) / scale
            if not difference <= limit:
                raise ValueError(
                    f"stablehlo: {name}: got a difference of {difference:.2g} between "
                    f"program and model for inputs {show(xs.shape)}, expected at most "
                    f"{limit:.0e}; nothing was written."
                )
            largest = max(largest, float(difference))
    return largest


Pairs = list[tuple[str, Any, Any]]


def _run_whole(
    exported: export.Exported, model: Layer, params: Params, xs: Array
) -> Pairs:
    lengths = jnp.maximum(xs.shape[0] - jnp.arange(xs.shape[1]), 0).astype(jnp.int32)
    got, outputs = exported.call(xs, lengths)
    state, expected = jax.jit(_whole(model, params))(xs, lengths)
    return [("outputs", outputs, expected), *_states(got, state)]


def _run_stream(
    exported: export.Exported, model: Layer, params: Params, xs: Array
) -> Pairs:
    """Compare steps with a run of the whole sequence, with one row reset in between."""
    resets = jnp.zeros(xs.shape[:2], bool).at[0].set(True).at[-1, 0].set(True)
    like = named_leaves(jax.eval_shape(_first_state(model, params), xs[0]))
    state: Any = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)
    outputs = []
    for x, reset in zip(xs, resets, strict=True):
        state, output = exported.call(x, reset, state)
        outputs.append(output)
    apply = jax.jit(lambda xs, resets: model.apply(params, xs, resets=resets))
    expected_state, expected = apply(xs, resets)
    pairs: Pairs = [("outputs", jnp.stack(outputs), expected)]
    return [*pairs, *_states(state, named_leaves(expected_state))]


def _states(got: dict[str, Array], expected: dict[str, Array]) -> Pairs:
    return [(name, got[name], value) for name, value in expected.items()]


def _item_size(params: Params) -> int:
    """Return the bytes of a number in the parameters."""
    leaves = jax.tree.leaves(params)
    return min((leaf.dtype.itemsize for leaf in leaves), default=4)


def load(path: str | os.PathLike[str]) -> export.Exported:
    """Return the program in a file; nothing is run.

    Raises:
        ValueError: the file is damaged, or calls an operation that is not part of
            StableHLO and could run code of this process.
        ImportError: flatbuffers is not installed.
        OSError: the file cannot be opened.
    """
    _require_flatbuffers()
    path = Path(path)
    if (size := path.stat().st_size) > MAX_BYTES:
        raise ValueError(
            f"{path}: got {size:,} bytes, expected a program of at most {MAX_BYTES:,}."
        )
    data = bytearray(path.read_bytes())
    try:
        exported = export.deserialize(data)
        text = str(exported.mlir_module())
    except Exception as error:  # the readers raise many types
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise ValueError(
            f"{path}: got no program of jax.export ({reason}); expected a file that "
            "jaxlstm.interop.stablehlo.save wrote."
        ) from None
    if text.count(CUSTOM_CALL) > len(ALLOWED_CALL.findall(text)):
        raise ValueError(
            f"{path}: got a program with a custom call, which could run any code, "
            "expected operations of StableHLO only."
        )
    return exported


def _require_flatbuffers() -> None:
    if importlib.util.find_spec("flatbuffers") is None:
        raise ImportError(NEEDS_FLATBUFFERS)
