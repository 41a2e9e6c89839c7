"""A run as ONNX and StableHLO: the same probabilities, file sizes, time of a step.

    python -m benchmarks.exports runs/quickstart

A bidirectional model of the same sizes with random parameters is compared too. With
torch, its step is timed beside.
"""

import argparse
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime

import jaxlstm as jl
from jaxlstm.layers.base import Layer

SHAPES = [(1, 1), (1, 17), (200, 1), (200, 17)]  # T, B


def probabilities(logits: Any) -> np.ndarray:
    """Return softmax(logits) in float64."""
    shifted = np.asarray(logits, np.float64)
    exponentials = np.exp(shifted - shifted.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def whole_differences(
    model: Layer, params: Any, vocabulary: int, folder: Path
) -> Iterator[tuple[str, float]]:
    """Yield the largest difference of probabilities of whole sequences, by case.

    Padding is not compared.
    """
    path = folder / "whole.onnx"
    jl.interop.onnx.save(path, model, params, lengths=True)
    session = onnxruntime.InferenceSession(path)
    exported = jl.interop.stablehlo.dump(model, params)
    random = np.random.default_rng(0)
    for steps, rows in SHAPES:
        tokens = random.integers(0, vocabulary, (steps, rows))
        for ragged in (False, True)[: 1 + (steps > 1)]:
            lengths = np.full(rows, steps, np.int32)
            if ragged:
                lengths = random.integers(1, steps, rows).astype(np.int32)
            active = np.arange(steps)[:, None] < lengths
            _, logits = model.apply(params, jnp.asarray(tokens), lengths=lengths)
            expected = probabilities(logits)[active]
            _, logits = exported.call(jnp.asarray(tokens, jnp.int32), lengths)
            case = f"T {steps}, B {rows}{', ragged' if ragged else ''}"
            yield f"StableHLO, {case}", differ(logits, active, expected)
            inputs = dict(
                zip(
                    [i.name for i in session.get_inputs()],
                    (tokens, lengths),
                    strict=True,
                )
            )
            yield (
                f"ONNX, {case}",
                differ(session.run(["ys"], inputs)[0], active, expected),
            )


def differ(logits: Any, active: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference from the expected probabilities."""
    return float(abs(probabilities(logits)[active] - expected).max())


def steps_of(
    model: Layer, params: Any, folder: Path, *, rows: int
) -> dict[str, Callable[[Any, Any], tuple[Any, Any]]]:
    """Return steps `(state, tokens [B]) -> (state, logits)`; None begins."""
    path = folder / "step.onnx"
    if not path.exists():
        jl.interop.onnx.save(path, model, params, stream=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options)
    token, *states = session.get_inputs()
    zeros = {s.name: np.zeros((rows, s.shape[1]), np.float32) for s in states}

    def onnx(state: Any, tokens: Any) -> tuple[Any, Any]:
        logits, *after = session.run(
            None, {token.name: tokens.astype(np.int64), **(state or zeros)}
        )
        return dict(zip(zeros, after, strict=True)), logits

    exported = jl.interop.stablehlo.dump(model, params, stream=True)
    call, never = jax.jit(exported.call), np.zeros(rows, bool)

    def stablehlo(state: Any, tokens: Any) -> tuple[Any, Any]:
        after, logits = call(tokens, never, state or zeros)
        return after, np.asarray(logits)

    return {
        "onnxruntime": onnx,
        "StableHLO": stablehlo,
        "Stream": _slots(model, params, rows),
    }


def _slots(model: Layer, params: Any, rows: int) -> Callable[..., tuple[Any, Any]]:
    stream = jl.lab.serving.Stream(model, params, slots=rows)

    def step(state: Any, tokens: Any) -> tuple[Any, Any]:
        if state is None:
            stream.reset(*range(rows))
        return stream, stream.step(tokens)

    return step


def streamed_differences(
    model: Layer, params: Any, vocabulary: int, folder: Path
) -> Iterator[tuple[str, float]]:
    """Yield the largest difference when 200 tokens are read one at a time."""
    tokens = np.random.default_rng(1).integers(0, vocabulary, (200, 2), np.int32)
    expected = probabilities(model.apply(params, jnp.asarray(tokens))[1])
    active = np.ones(tokens.shape, bool)
    for name, step in steps_of(model, params, folder, rows=2).items():
        state, found = None, []
        for now in tokens:
            state, logits = step(state, now)
            found.append(logits)
        yield (
            f"{name}, one token at a time",
            differ(found, active, expected.reshape(-1, vocabulary)),
        )


def with_torch(params: Any) -> Callable[[Any, Any], tuple[Any, Any]] | None:
    """Return the step in torch of a model with one LSTM layer; None without torch."""
    if importlib.util.find_spec("torch") is None or len(params["rnn"]) > 1:
        return None
    import torch

    torch.set_num_threads(1)
    table, head = np.asarray(params["embed"].table), params["unembed"]
    embed = torch.nn.Embedding.from_pretrained(torch.from_numpy(table.copy()))
    rnn = torch.nn.LSTM(table.shape[1], head.w.shape[0])
    linear = torch.nn.Linear(*head.w.shape)

    def step(state: Any, tokens: Any) -> tuple[Any, Any]:
        with torch.inference_mode():
            hs, state = rnn(embed(torch.from_numpy(tokens).long())[None], state)
            return state, linear(hs[0]).numpy()

    return step


def microseconds(step: Callable[..., Any], rows: int, *, count: int = 300) -> float:
    """Return the median time of a step."""
    tokens, state, times = np.ones(rows, np.int32), None, []
    for _ in range(count):
        began = time.perf_counter()
        state, _ = step(state, tokens)
        times.append(time.perf_counter() - began)
    return 1e6 * statistics.median(times)


def main() -> None:
    """Print the differences, sizes and times of a run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    trained = jl.lab.load(parser.parse_args().run)
    model = trained.task.model(
        jl.lab.native.without_kernel(trained.config), trained.spec
    )
    params, size = trained.params, trained.spec.size
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cases = [
            *whole_differences(model, params, size, folder),
            *streamed_differences(model, params, size, folder),
        ]
        (folder / "step.stablehlo").write_bytes(
            jl.interop.stablehlo.dump(model, params, stream=True).serialize()
        )
        sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
        both = jl.serial(
            embed=jl.embed(size, 64),
            rnn=jl.stack(jl.lstm(), (192,), bidirectional=True),
            head=jl.linear(size),
        )
        both_params, _ = both.init(jax.random.key(0))
        cases += [
            (f"bidirectional: {case}", value)
            for case, value in whole_differences(both, both_params, size, folder)
        ]
        for case, value in cases:
            print(f"{value:.1e}  {case}")
        print(f"{max(value for _, value in cases):.1e}  largest difference")
        for file, count in sizes.items():
            print(f"{count:,} bytes  {file}")
        for rows in 1, 16:
            steps = steps_of(model, params, folder, rows=rows)
            if torch_step := with_torch(params):
                steps["torch"] = torch_step
            for name, step in steps.items():
                print(f"{microseconds(step, rows):,.0f} us  {name}, B {rows}")


if __name__ == "__main__":
    main()
