"""Measurements on a GPU, in three sections.

    python benchmarks/gpu.py --name h100           all sections, at most half an hour
    python benchmarks/gpu.py --name h100 --resume  continue after the time limit
    python benchmarks/gpu.py --smoke               tiny sizes, on any device

    contract    the tests of the public contract, on the GPU
    baselines   torch, `jax.experimental.rnn`, Flax and our engines, in alternation
    parity      the cuDNN engine against the reference in float64

Set PYTHONPATH=src if the package is not installed. `--sections` and `--minutes` limit
the run to the time that is available on the device.

Each section runs in its own process with a time limit, and its rows are saved as they
are measured, so that a failure loses nothing else. Results are in
`benchmarks/results/gpu/NAME.json`, with the machine, the versions and the date.
"""

import argparse
import contextlib
import datetime
import importlib.metadata
import importlib.util
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import xml.etree.ElementTree
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import rnn

import jaxlstm as jl
from jaxlstm.engines import cudnn

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "gpu"

Row = dict[str, Any]


# -- 1: the contract -------------------------------------------------------------------

CONTRACT = (
    "tests/test_cudnn.py",
    "tests/test_lstm_oracle.py",
    "tests/test_unroll_lengths.py",
    "tests/test_unroll_contract.py",
    "tests/test_ragged.py",
    "tests/test_segments.py",
    "tests/test_engines.py",
    "tests/test_unroll_engines.py",
    "tests/test_transforms.py",
)
SMOKE_CONTRACT = ("tests/test_unroll_engines.py::test_factories_are_cached",)


def contract(smoke: bool, known: Sequence[Row], minutes: float) -> Iterator[Row]:
    """Yield a row for each test file: the number of tests, and those that failed."""
    for target in SMOKE_CONTRACT if smoke else CONTRACT:
        if target not in [row["tests"] for row in known]:
            yield {"tests": target, **_tested(target, 60 * minutes)}


def _tested(target: str, seconds: float) -> Row:
    """Return the result of pytest on the default device of JAX.

    Products are computed in full float32, which the tolerances assume.
    """
    environment = dict(os.environ, JAX_DEFAULT_MATMUL_PRECISION="highest")
    environment.pop("JAX_PLATFORMS", None)
    environment["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    options = ["-q", "-o", "addopts=--import-mode=importlib", "-W", "default"]
    options += ["-m", "not slow and not registry and not mutants and not thorough"]
    options += ["-n4"] if importlib.util.find_spec("xdist") else []
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", *options, f"--junitxml={report}"]
        try:
            ran = subprocess.run(
                [*command, target],
                cwd=ROOT,
                env=environment,
                capture_output=True,
                text=True,
                timeout=seconds,
            )
        except subprocess.TimeoutExpired as late:
            output = (late.stdout or b"").decode(errors="replace")[-6000:]
            return {"failed": f"not finished within {seconds:.0f} s", "output": output}
        counted = counts(report.read_text()) if report.exists() else {}
    tail = {} if ran.returncode == 0 else {"output": ran.stdout[-6000:]}
    return {"exit": ran.returncode, **counted, **tail}


def counts(report: str) -> Row:
    """Return the counts and failures of a JUnit XML report."""
    suites = xml.etree.ElementTree.fromstring(report).iter("testsuite")
    found: Row = {"tests_run": 0, "failures": 0, "errors": 0, "skipped": 0, "names": []}
    for suite in suites:
        found["tests_run"] += int(suite.attrib["tests"])
        for name in ("failures", "errors", "skipped"):
            found[name] += int(suite.attrib[name])
        for case in suite.iter("testcase"):
            if case.find("failure") is not None or case.find("error") is not None:
                found["names"].append(case.attrib["name"])
    return found


# -- 2: the baselines ------------------------------------------------------------------


class Point(NamedTuple):
    """T steps, B rows, H units and H features."""

    time: int
    batch: int
    hidden: int


# The most important sizes come first, because the time limit may end the run early.
GRID = [
    Point(time, batch, hidden)
    for time in (1024, 128)
    for batch in (16, 64, 1, 128)
    for hidden in (256, 512, 1024, 128, 768, 64, 640)
]
SMOKE_GRID = [Point(4, 2, 8)]


class Calls(NamedTuple):
    """Functions that run once and return when the device has finished.

    Attributes:
        forward: Computes the outputs.
        training: Computes the gradient of the mean square of the outputs.
    """

    forward: Callable[[], Any]
    training: Callable[[], Any]


Contender = Callable[[Point], Calls]


def jitted(
    run: Callable[[Any, jax.Array], jax.Array], params: Any, xs: jax.Array
) -> Calls:
    """Return the calls of a function `(params, xs) -> outputs`."""

    def loss(params: Any, xs: jax.Array) -> jax.Array:
        return jnp.mean(jnp.square(run(params, xs).astype(jnp.float32)))

    forward, gradient = jax.jit(run), jax.jit(jax.grad(loss, argnums=(0, 1)))
    return Calls(
        lambda: jax.block_until_ready(forward(params, xs)),
        lambda: jax.block_until_ready(gradient(params, xs)),
    )


def draw_inputs(point: Point) -> np.ndarray:
    """Return the inputs, `[T, B, D]`."""
    shape = (point.time, point.batch, point.hidden)
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def ours(engine: str, dtype: str) -> Contender:
    """Return the calls of one engine of jaxlstm."""

    def make(point: Point) -> Calls:
        cell = jl.lstm()
        params = cell.init(jax.random.key(0), point.hidden, point.hidden)
        return jitted(
            lambda params, xs: jl.unroll(cell, params, xs, engine=engine)[1],
            params,
            jnp.asarray(draw_inputs(point), dtype),
        )

    return make


def vendor(point: Point) -> Calls:
    """Return the calls of `jax.experimental.rnn`, batch first."""
    if missing := cudnn.no_cuda():
        raise NotImplementedError(missing)
    size, rows = point.hidden, point.batch
    weights = rnn.init_lstm_weight(jax.random.key(0), size, size, 1, False)
    state = jnp.zeros((1, rows, size))
    lengths = jnp.full(rows, point.time, jnp.int32)

    def run(weights: jax.Array, xs: jax.Array) -> jax.Array:
        sizes: Any = (size, size, 1, 0.0, False, None)
        ys, *_ = cudnn.CUDNN.lstm(xs, state, state, weights, lengths, *sizes)
        return ys

    return jitted(run, weights, jnp.asarray(draw_inputs(point).swapaxes(0, 1)))


def flax(point: Point) -> Calls:
    """Return the calls of Flax's `linen.RNN` over `OptimizedLSTMCell`."""
    from flax import linen

    layer = linen.RNN(linen.OptimizedLSTMCell(point.hidden), time_major=True)
    xs = jnp.asarray(draw_inputs(point))
    params = jax.jit(layer.init)(jax.random.key(0), xs)
    run: Any = layer.apply
    return jitted(run, params, xs)


def torch_lstm(dtype: str) -> Contender:
    """Return the calls of torch's `nn.LSTM`, which uses cuDNN on CUDA."""

    def make(point: Point) -> Calls:
        import torch

        on_gpu = torch.cuda.is_available()
        if dtype != "float32" and not on_gpu:
            raise NotImplementedError(
                f"no GPU: torch is measured with {dtype} on CUDA only"
            )
        wait = torch.cuda.synchronize if on_gpu else (lambda: None)
        kind = {"device": "cuda" if on_gpu else "cpu", "dtype": getattr(torch, dtype)}
        layer = torch.nn.LSTM(point.hidden, point.hidden, **kind)
        xs = torch.asarray(draw_inputs(point)).to(**kind).requires_grad_()

        def forward() -> None:
            with torch.no_grad():
                layer(xs)
            wait()

        def training() -> None:
            ys, _ = layer(xs)
            loss = ys.float().square().mean()
            torch.autograd.grad(loss, [xs, *layer.parameters()])
            wait()

        return Calls(forward, training)

    return make


# Ratios are relative to torch in the same dtype.
CONTENDERS: dict[str, Contender] = {
    "torch float32": torch_lstm("float32"),
    "torch bfloat16": torch_lstm("bfloat16"),
    "torch float16": torch_lstm("float16"),
    "jax.experimental.rnn float32": vendor,
    "flax float32": flax,
    "scan float32": ours("scan", "float32"),
    "adjoint float32": ours("adjoint", "float32"),
    "adjoint bfloat16": ours("adjoint", "bfloat16"),
    "adjoint float16": ours("adjoint", "float16"),
    "cudnn float32": ours("cudnn", "float32"),
}


def baselines(smoke: bool, known: Sequence[Row], minutes: float) -> Iterator[Row]:
    """Yield a row for each size, with the figures of every contender."""
    done = [tuple(row[name] for name in Point._fields) for row in known]
    for point in SMOKE_GRID if smoke else GRID:
        if tuple(point) not in done:
            contenders = measure_point(point, rounds=2 if smoke else 11)
            yield {**point._asdict(), "contenders": contenders}
            jax.clear_caches()  # other sizes use other programs


def measure_point(point: Point, *, rounds: int) -> dict[str, Row]:
    """Return medians of alternating runs in µs per step, or reasons for no figure."""
    found: dict[str, Row] = {}
    ready: dict[str, Calls] = {}
    for name, make in CONTENDERS.items():
        start = time.perf_counter()
        try:
            calls = make(point)
            for call in calls:
                call()  # compiles
        except Exception as error:
            found[name] = failure_row(error)
        else:
            ready[name], found[name] = calls, {"first_s": time.perf_counter() - start}
    samples = {(name, kind): [] for name in ready for kind in Calls._fields}
    for turn in range(rounds):
        for name in rotate(list(ready), turn):
            for kind, call in ready[name]._asdict().items():
                start = time.perf_counter()
                call()
                samples[name, kind].append(time.perf_counter() - start)
    for (name, kind), seconds in samples.items():
        found[name][f"{kind}_us"] = 1e6 * statistics.median(seconds) / point.time
    return found


def rotate(names: list[str], turn: int) -> list[str]:
    """Return the names in cyclic order, starting at another one each turn."""
    start = turn % max(len(names), 1)
    return names[start:] + names[:start]


def failure_row(error: Exception) -> Row:
    """Return the reason for a missing figure: a refusal, or an error and traceback."""
    if isinstance(error, NotImplementedError | ImportError):
        return {"refused": str(error)}
    return {"failed": f"{type(error).__name__}: {error}"[:400], "where": _trace(error)}


def _trace(error: Exception) -> str:
    return "".join(traceback.format_exception(error))[-4000:]


# -- 3: parity -------------------------------------------------------------------------


class ParityCase(NamedTuple):
    """One sequence, or a stack.

    Attributes:
        lengths: Lengths of the first rows; all others are T. None for no lengths, `()`
            for traced lengths that are all T.
    """

    name: str
    time: int = 33
    batch: int = 6
    features: int = 17
    hidden: int = 32
    lengths: tuple[int, ...] | None = None
    holes: bool = False
    reverse: bool = False
    layers: int = 0
    bidirectional: bool = False


PARITY_CASES = [
    ParityCase("plain"),
    ParityCase("reverse", reverse=True),
    ParityCase("full lengths", lengths=()),
    ParityCase("lengths 0, 1 and T", lengths=(0, 1, 33, 32, 7, 0)),
    ParityCase("lengths, reverse", lengths=(0, 1, 33, 32, 7, 0), reverse=True),
    ParityCase("no steps at all", lengths=(0,) * 6),
    ParityCase("a mask with holes", holes=True),
    ParityCase("a mask with holes, reverse", holes=True, reverse=True),
    ParityCase("one step", time=1),
    ParityCase("one row", batch=1),
    ParityCase("one feature, one unit", features=1, hidden=1, lengths=(0, 5)),
    ParityCase("large", 256, 64, 256, 512, lengths=(0, 1, 256, 100)),
    ParityCase("stack of 3", layers=3),
    ParityCase("stack of 3, lengths", layers=3, lengths=(0, 1, 33, 7)),
    ParityCase("bidirectional", layers=1, bidirectional=True),
    ParityCase("bidirectional stack", layers=2, bidirectional=True, lengths=(0, 1, 33)),
]
SMOKE_PARITY_CASES = [
    ParityCase("lengths", 3, 2, 2, 2, lengths=(0, 3)),
    ParityCase("bidirectional", 2, 2, 2, 2, layers=1, bidirectional=True),
]
RESULT_NAMES = ("ys", "state", "d_params", "d_xs", "d_state")
TOLERANCES = {"highest": 1e-4, "tensorfloat32": 3e-2}  # the largest allowed errors


def parity(smoke: bool, known: Sequence[Row], minutes: float) -> Iterator[Row]:
    """Yield the largest errors of each case, engine and precision.

    The engine `adjoint` is included to show the errors of float32 itself.
    """
    done = {(row["case"], row["engine"], row["precision"]) for row in known}
    for case in SMOKE_PARITY_CASES if smoke else PARITY_CASES:
        with jax.enable_x64(True):
            expected = compute_results(case, "scan", np.float64)
        for engine, precision in itertools.product(("cudnn", "adjoint"), TOLERANCES):
            row = {"case": case.name, "engine": engine, "precision": precision}
            if tuple(row.values()) in done:
                continue
            try:
                with jax.default_matmul_precision(precision):
                    got = compute_results(case, engine, np.float32)
                yield row | errors(got, expected, TOLERANCES[precision])
            except Exception as error:
                yield row | failure_row(error)


def compute_results(case: ParityCase, engine: str, dtype: type) -> dict[str, Any]:
    """Return outputs, last state, and gradients of parameters, inputs and state."""
    rng = np.random.default_rng(0)
    frame = (case.time, case.batch)
    steps = step_options(case, rng)
    run, params = _program(case, engine)
    xs = rng.normal(size=(*frame, case.features))
    if "lengths" in steps:
        xs[np.arange(case.time)[:, None] >= steps["lengths"]] = np.nan
    elif steps:
        xs[~steps["mask"]] = np.nan

    def random(tree: Any, scale: float) -> Any:
        return jax.tree.map(
            lambda leaf: jnp.asarray(scale * rng.normal(size=leaf.shape), dtype), tree
        )

    params = random(params, 1 / np.sqrt(case.hidden))
    xs = jnp.asarray(xs, dtype)
    state = random(jax.eval_shape(run, params, xs, None, steps)[0], 1.0)

    @jax.jit
    def value_and_vjp(inputs: Any, steps: Row, cotangents: Any) -> Any:
        out, pull = jax.vjp(lambda *inputs: run(*inputs, steps), *inputs)
        return out, pull(cotangents)

    inputs = (params, xs, state)
    cotangents = random(jax.eval_shape(run, *inputs, steps), 1.0)
    (state, ys), gradients = value_and_vjp(inputs, steps, cotangents)
    found = dict(zip(RESULT_NAMES, (ys, state, *gradients), strict=True))
    return jax.tree.map(np.asarray, found)


def step_options(case: ParityCase, rng: np.random.Generator) -> Row:
    """Return `lengths` or `mask` as keyword arguments, or neither."""
    if case.holes:
        mask = rng.random((case.time, case.batch)) < 0.6
        mask[:, 0] = False
        return {"mask": mask}
    if case.lengths is None:
        return {}
    lengths = np.full(case.batch, case.time, np.int32)
    lengths[: len(case.lengths)] = case.lengths
    return {"lengths": lengths}


def _program(case: ParityCase, engine: str) -> tuple[Callable[..., Any], Any]:
    """Return `(params, xs, state, steps) -> (state, outputs)` and parameter shapes."""
    cell, sizes = jl.lstm(), (case.hidden,) * max(case.layers, 1)
    stack = jl.stack(
        cell,
        sizes,
        bidirectional=case.bidirectional,
        engine=engine if case.layers and engine != "cudnn" else None,
    )

    def one(params: Any, xs: Any, state: Any, steps: Row) -> Any:
        options: Any = {**steps, "reverse": case.reverse, "engine": engine}
        return jl.unroll(cell, params[0], xs, state, **options)

    def many(params: Any, xs: Any, state: Any, steps: Row) -> Any:
        apply: Any = cudnn.run_stack if engine == "cudnn" else stack.apply
        return apply(params, xs, state, **steps)

    shapes = jax.eval_shape(
        lambda key: stack.init(key, case.features)[0], jax.random.key(0)
    )
    return many if case.layers else one, shapes


def errors(got: dict[str, Any], expected: dict[str, Any], limit: float) -> Row:
    """Return the largest relative error of each kind, and whether all are small."""

    def error(one: Any, other: Any) -> float:
        largest = np.max(np.abs(other), initial=1e-6)
        return float(np.max(np.abs(np.subtract(one, other)) / largest, initial=0.0))

    row: Row = {
        name: max(
            jax.tree.leaves(jax.tree.map(error, got[name], expected[name])),
            key=_nan_as_inf,
        )
        for name in got
    }
    return row | {"right": all(value <= limit for value in row.values())}


def _nan_as_inf(error: float) -> float:
    """Return the error, or infinity for NaN, so that NaN is the largest."""
    return np.inf if np.isnan(error) else error


# -- running the sections --------------------------------------------------------------


class Section(NamedTuple):
    """A function that yields rows, and its time limit in minutes."""

    rows: Callable[[bool, Sequence[Row], float], Iterator[Row]]
    minutes: float


SECTIONS = {
    "contract": Section(contract, 8),
    "baselines": Section(baselines, 15),
    "parity": Section(parity, 4),
}
NOT_WRITTEN = {
    "probes": "probes for a persistent kernel in Pallas Mosaic GPU",
    "kernels": "the kernels",
}


def machine() -> Row:
    """Return device, versions and date."""
    packages = ("jax", "jaxlib", "numpy", "flax", "torch", "jaxlstm")
    found: Row = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": jax.devices()[0].device_kind,
        "platform": jax.devices()[0].client.platform_version,
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    if importlib.util.find_spec("torch"):
        import torch

        found["torch_cuda"] = torch.version.cuda
        found["torch_cudnn"] = torch.backends.cudnn.version()
        found["torch_tf32"] = torch.backends.cudnn.allow_tf32
    return found


def work(name: str, path: Path, *, smoke: bool, minutes: float) -> None:
    """Run one section in this process and save each row as it is measured."""
    record = json.loads(path.read_text())
    section = record["sections"].setdefault(name, {"rows": []})
    start, section["status"] = time.monotonic(), "running"
    record.setdefault("machine", machine())
    for row in SECTIONS[name].rows(smoke, section["rows"].copy(), minutes):
        section["rows"].append(row)
        save(path, record)
        if time.monotonic() - start > 60 * minutes:
            section["status"] = f"stopped after the limit of {minutes:g} minutes"
            break
    else:
        section["status"] = "finished"
    save(path, record)


def save(path: Path, record: Row) -> None:
    """Write a file atomically."""
    whole = path.with_suffix(".part")
    whole.write_text(json.dumps(record, indent=1) + "\n")
    whole.replace(path)


def run_in_process(name: str, path: Path, *, smoke: bool, minutes: float) -> None:
    """Run one section in its own process; record the failure if it crashes."""
    command = [sys.executable, __file__, "--child", name, "--path", str(path)]
    command += ["--minutes", str(minutes), *(["--smoke"] if smoke else [])]
    environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    try:
        ran = subprocess.run(
            command,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60 * minutes + 120,
        )
        failure = ran.stderr[-6000:] if ran.returncode else None
    except subprocess.TimeoutExpired:
        failure = f"still running 2 minutes after its limit of {minutes:g} minutes"
    if failure is not None:
        record = json.loads(path.read_text())
        section = record["sections"].setdefault(name, {"rows": []})
        save(path, (section.update(status="failed", failure=failure), record)[1])


def table(record: Row) -> str:
    """Return the results as lines."""
    sections = record["sections"]
    lines = [f"{name}: {found['status']}" for name, found in sections.items()]
    lines += [f"{name}: not written yet ({what})" for name, what in NOT_WRITTEN.items()]
    for name, show in SHOWN.items():
        if rows := sections.get(name, {}).get("rows"):
            lines += ["", name, *show(rows)]
    return "\n".join(lines)


def _contract_lines(rows: list[Row]) -> list[str]:
    return [
        f"{row['tests']:48} {row.get('tests_run', 0):4} run, not passed: "
        + (", ".join(row.get("names", [])) or _failure_reason(row) or "none")
        for row in rows
    ]


def _baseline_lines(rows: list[Row]) -> list[str]:
    """Return µs per step, and the ratio to torch in the same dtype."""
    lines = [
        f"{'T':>5} {'B':>4} {'H':>5}  {'contender':28} {'forward':>16} {'training':>16}"
    ]
    for row in rows:
        for name, found in row["contenders"].items():
            baseline = row["contenders"].get(f"torch {name.split()[-1]}", {})
            figures = [
                f"{found[kind]:8.2f} {_times(baseline.get(kind), found[kind]):>7}"
                for kind in ("forward_us", "training_us")
                if kind in found
            ] or [_failure_reason(found)]
            point = f"{row['time']:5} {row['batch']:4} {row['hidden']:5}"
            lines.append(f"{point}  {name:28} {' '.join(figures)}")
    return lines


def _failure_reason(found: Row) -> str:
    return found.get("refused", found.get("failed", ""))[:78]


def _times(baseline: float | None, own: float) -> str:
    return "" if baseline is None else f"{baseline / own:.2f}x"


def _parity_lines(rows: list[Row]) -> list[str]:
    def figures(row: Row) -> str:
        if "right" not in row:
            return _failure_reason(row)
        shown = (f"{kind} {row[kind]:.1e}" for kind in RESULT_NAMES)
        return f"{'right' if row['right'] else 'WRONG'}  {' '.join(shown)}"

    return [
        f"{row['case']:28} {row['engine']:8} {row['precision']:14} {figures(row)}"
        for row in rows
    ]


SHOWN = {
    "contract": _contract_lines,
    "baselines": _baseline_lines,
    "parity": _parity_lines,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the selected sections and print one table."""
    parser = argparse.ArgumentParser(
        description="Measure jaxlstm and other libraries on a GPU."
    )
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, any device")
    parser.add_argument("--name", default=None, help="name of the results file")
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="folder of the results file"
    )
    parser.add_argument(
        "--resume", action="store_true", help="keep the rows of the results file"
    )
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=[*SECTIONS])
    parser.add_argument("--minutes", type=float, help="time limit of each section")
    parser.add_argument("--child", choices=SECTIONS, help=argparse.SUPPRESS)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    parsed = parser.parse_args(arguments)
    if parsed.child:
        work(parsed.child, parsed.path, smoke=parsed.smoke, minutes=parsed.minutes)
        return
    name = parsed.name or ("smoke" if parsed.smoke else f"{datetime.date.today()}")
    parsed.results.mkdir(parents=True, exist_ok=True)
    path = parsed.results / f"{name}.json"
    if not (parsed.resume and path.exists()):
        not_yet = {"not_written_yet": NOT_WRITTEN, "smoke": parsed.smoke}
        save(path, {**not_yet, "sections": {}})
    for section in parsed.sections:
        minutes = parsed.minutes or SECTIONS[section].minutes
        run_in_process(section, path, smoke=parsed.smoke, minutes=minutes)
    print(table(json.loads(path.read_text())))
    print(f"\n{path}")


if __name__ == "__main__":
    main()
