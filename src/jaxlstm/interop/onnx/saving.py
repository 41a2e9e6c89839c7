"""ONNX files that are kept only if onnxruntime computes what the model computes."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlstm.interop.onnx import writer
from jaxlstm.interop.onnx.graph import import_onnx
from jaxlstm.interop.onnx.writer import OLDEST_OPSET, Ports
from jaxlstm.interop.writing import write_atomic
from jaxlstm.layers.base import Layer

SHAPES = ((17, 5), (1, 1), (4, 3))  # T and B of the comparison, the largest first


class Report(NamedTuple):
    """Comparison of an ONNX file with the model that it was written from.

    Attributes:
        path: the file.
        size: its size in bytes.
        outputs: largest difference of an output, relative to the largest output if that
            exceeds 1; None if onnxruntime is not installed.
        states: likewise, of the final states.
        runtime: name and version of the runtime; "" if none is installed.

    Example:
        >>> print(Report("lstm.onnx", 4096, 2.4e-07, 1.2e-07, "onnxruntime 1.32.0"))
        lstm.onnx: 4096 bytes; onnxruntime 1.32.0 differs by 2.4e-07 in outputs and \
1.2e-07 in final states
    """

    path: str
    size: int
    outputs: float | None
    states: float | None
    runtime: str

    def __str__(self) -> str:
        """Return the report as one line."""
        start = f"{self.path}: {self.size} bytes; "
        if self.outputs is None:
            return start + 'not compared: pip install "jaxlstm[onnx]"'
        return start + (
            f"{self.runtime} differs by {self.outputs:.1e} in outputs and "
            f"{self.states:.1e} in final states"
        )


def save(
    path: str | os.PathLike[str],
    model: Layer,
    params: Any,
    *,
    stream: bool = False,
    lengths: bool = False,
    initial_state: bool = False,
    opset: int = OLDEST_OPSET,
    tolerance: float = 1e-5,
) -> Report:
    """Write a layer to an ONNX file, and compare it with the layer.

    The file is checked by onnx and, if onnxruntime is installed, run on random data:
    ragged ones with `lengths`, step after step with `stream`. It replaces `path` only
    if outputs and states agree.

    Args:
        path: the file to write.
        model: see `dump`.
        params: see `dump`.
        stream: see `dump`.
        lengths: see `dump`.
        initial_state: see `dump`.
        opset: see `dump`.
        tolerance: largest difference that is accepted, relative to the largest output
            if that exceeds 1.

    Returns:
        A `Report` of the comparison.

    Raises:
        ValueError: ONNX has no counterpart of a layer or cell, or the numbers differ.
        ImportError: onnx is not installed.

    Example:
        >>> import jax, jaxlstm as jl
        >>> model = jl.stack(jl.lstm(), (5, 5), bidirectional=True)
        >>> params, _ = model.init(jax.random.key(0), 3)
        >>> report = jl.interop.onnx.save(
        ...     "lstm.onnx", model, params, lengths=True
        ... )  # doctest: +SKIP
    """
    onnx, path = import_onnx(), Path(path)
    proto, ports = writer.write(
        model,
        params,
        stream=stream,
        lengths=lengths,
        initial_state=initial_state,
        opset=opset,
    )
    onnx.checker.check_model(proto, full_check=True)
    content = proto.SerializeToString()
    report = _compared(path, content, model, params, ports)
    for what in "outputs", "states":
        found = getattr(report, what)
        if found is not None and not found <= tolerance:
            raise ValueError(
                f"onnx.save: {path}: got {what} that differ by {found:.1e} in "
                f"{report.runtime}, expected at most {tolerance:.1e}; the file was not "
                "written."
            )
    write_atomic(path, content)
    return report


def _compared(
    path: Path, content: bytes, model: Layer, params: Any, ports: Ports
) -> Report:
    try:
        import onnxruntime
    except ImportError:
        return Report(str(path), len(content), None, None, "")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        content, options, providers=["CPUExecutionProvider"]
    )
    outputs, states = [0.0], [0.0]
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    apply = jax.jit(
        lambda params, xs, state, lengths: model.apply(
            params, xs, state, lengths=lengths
        )
    )
    with jax.default_matmul_precision("highest"):
        for case in _cases(model, params, ports):
            y, after = _run(session, ports, case)
            # Padded to the largest case, every case is the same compiled program.
            padded = _padded(case)
            state, expected = apply(params, padded.xs, padded.state, padded.lengths)
            time, rows = case.xs.shape[:2]
            outputs.append(_difference(y, expected[:time, :rows]))
            pairs = zip(after, jax.tree.leaves(state), strict=True)
            states += [_difference(got, leaf[:rows]) for got, leaf in pairs]
    runtime = f"onnxruntime {onnxruntime.__version__}"
    return Report(str(path), len(content), max(outputs), max(states), runtime)


class _Case(NamedTuple):
    """Random arguments of one call."""

    xs: np.ndarray
    state: Any
    lengths: np.ndarray | None


def _cases(model: Layer, params: Any, ports: Ports) -> Iterator[_Case]:
    """Draw arguments of several shapes; with lengths, the first row has none."""
    rng = np.random.default_rng(0)
    for time, rows in SHAPES:
        if ports.features is None:
            xs = rng.integers(0, ports.vocabulary or 1, (time, rows))
        else:
            shape = (time, rows, ports.features)
            xs = rng.normal(size=shape).astype(np.float32)
        lengths = None
        if ports.lengths is not None:
            lengths = rng.integers(0, time + 1, rows).astype(np.int32)
            lengths[0] = 0
        state = None
        if ports.takes_states:
            struct = jax.eval_shape(model.apply, params, xs)[0]
            state = jax.tree.map(
                lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), struct
            )
        yield _Case(xs, state, lengths)


def _padded(case: _Case) -> _Case:
    """Return the case with more steps and rows, and with lengths."""
    time, rows = case.xs.shape[:2]
    more = (SHAPES[0][0] - time, SHAPES[0][1] - rows)
    lengths = np.full(rows, time, np.int32) if case.lengths is None else case.lengths
    rest = [(0, 0)] * (case.xs.ndim - 2)
    return _Case(
        np.pad(case.xs, [(0, more[0]), (0, more[1]), *rest]),
        jax.tree.map(lambda leaf: np.pad(leaf, [(0, more[1]), (0, 0)]), case.state),
        np.pad(lengths, (0, more[1])),
    )


def _run(session: Any, ports: Ports, case: _Case) -> tuple[np.ndarray, list]:
    """Return the outputs and final states of the file, step by step if it is a step."""
    names = jax.tree.leaves(ports.states)
    wanted = [ports.y, *(f"{name}_out" for name in names)]
    feed = {}
    if ports.takes_states:
        feed = dict(
            zip(names, map(np.asarray, jax.tree.leaves(case.state)), strict=True)
        )
    if case.lengths is not None:
        assert ports.lengths is not None
        feed[ports.lengths] = case.lengths
    if ports.y == "ys":
        y, *after = session.run(wanted, feed | {ports.x: case.xs})
        return y, after
    ys, after = [], []
    for x in case.xs:
        y, *after = session.run(wanted, feed | {ports.x: x})
        feed = dict(zip(names, after, strict=True))
        ys.append(y)
    return np.stack(ys), after


def _difference(got: np.ndarray, expected: Any) -> float:
    """Return the largest difference, relative to the largest number above 1."""
    expected = np.asarray(expected)
    if got.shape != expected.shape:
        return float("inf")
    if not expected.size:
        return 0.0
    scale = max(1.0, float(np.abs(expected).max()))
    return float(np.abs(got - expected).max()) / scale
