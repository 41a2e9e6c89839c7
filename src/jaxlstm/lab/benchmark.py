"""Time the training step of a config on this machine, with each engine and with torch.

The training steps alternate, as described in `timing`. A row reports the median over
the rounds and half of the interquartile range. Compilation is timed separately.

GFLOP/s count the products with weight matrices only: 2 operations per matrix element
and token in the forward pass, and three times that in a training step. For an LSTM
layer with D inputs and H units, the forward pass takes 8 (D + H) H per token.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import jax
from rich.console import Console
from rich.table import Table

from jaxlstm.lab import native, tasks
from jaxlstm.lab._util.errors import BadInput
from jaxlstm.lab._util.timing import Run, Spread, measure_alternately
from jaxlstm.lab.config import loading as configs
from jaxlstm.lab.config import schema
from jaxlstm.lab.config.base import RunConfig
from jaxlstm.lab.config.cells import LSTM
from jaxlstm.lab.data.streams import Batch
from jaxlstm.lab.parallel import devices, shards, splits
from jaxlstm.lab.training import programs
from jaxlstm.lab.training.experiment import Experiment
from jaxlstm.lab.training.state import TrainState, train_steps

STEPS = 5  # training steps per measured call


class Row(NamedTuple):
    """The measurements of one implementation.

    Attributes:
        name: the name of an engine, or "torch".
        step_seconds: time of one training step; None if it was not measured.
        compile_seconds: time to compile the step; None for torch.
        memory_bytes: memory of state, gradients and temporaries by XLA's analysis;
            None for torch, and for several shards, which are separate programs.
        tokens_per_second: throughput at the median time.
        flops_per_second: operations at the median time; see the module for the count.
        reason: why it was not measured, or an empty string.
    """

    name: str
    step_seconds: Spread | None = None
    compile_seconds: float | None = None
    memory_bytes: int | None = None
    tokens_per_second: float | None = None
    flops_per_second: float | None = None
    reason: str = ""


def bench(
    config: str | Path | Mapping[str, Any] | RunConfig | None = None,
    *,
    overrides: Sequence[str] = (),
    seconds: float = 5.0,
    report: Callable[[str], object] = lambda text: None,
) -> list[Row]:
    """Time the training step of a config with each engine and with torch.

    One step updates all parameters as in a run, with the same shards and the first
    batches of the config's data: embedding, recurrent layers, output layer, loss,
    gradient and optimizer. If torch is installed, its step uses `torch.nn.LSTM` of the
    same size and Adam.

    Args:
        config: as for `jl.lab.train`; `model.engine` is ignored.
        overrides: as for `jl.lab.train`.
        seconds: measuring time per row.
        report: receives progress messages, one line each.

    Returns:
        One row for each engine and one for torch.

    Raises:
        BadInput: the config or its data cannot be used, or its model section is not
            that of language models.
    """
    if not 0 <= seconds < math.inf:
        raise BadInput(
            f"bench: seconds: got {seconds:g}, expected a finite number of at least 0"
        )
    loaded: RunConfig = configs.load(config, overrides=overrides)
    if not isinstance(loaded.model, schema.Model):
        raise BadInput(
            f"bench: got the task {loaded.task}, whose model section has no engine, "
            "expected a task with the model section of language models"
        )
    without_engine = _with_engine(loaded, None)
    cost = tasks.get(loaded.task).step_cost(without_engine)
    resolved = splits.resolve_shards(without_engine, cost)
    cpu_devices = splits.shard_count(resolved.training)
    with contextlib.suppress(BadInput):  # the row of the engine reports the error
        native.load_kernel()
    with devices.default_device(resolved.device, cpu_devices=cpu_devices) as device:
        experiment = Experiment.build(resolved)
        report(_describe_work(experiment, device))
        prepared = [_prepare_engine(experiment, name, report) for name in engines()]
        prepared.append(_prepare_torch(experiment, device))
        runs = {row.name: run for row, run in prepared if run is not None}
        if runs:
            report(f"timing {', '.join(runs)}: {seconds * len(runs):.0f} s in total")
        times = measure_alternately(runs, seconds=seconds * len(runs))
    return [_with_times(experiment, row, times.get(row.name)) for row, _ in prepared]


def engines() -> tuple[str, ...]:
    """Return the engines that a config accepts.

    The variants `adjoint/*_first` are left out: adjoint chooses between them itself.
    """
    kinds = get_args(schema.Model.model_fields["engine"].annotation)
    return tuple(name for name in get_args(kinds[0]) if not name.endswith("_first"))


def _with_engine(config: RunConfig, engine: str | None) -> RunConfig:
    model = config.model.model_copy(update={"engine": engine})
    return config.model_copy(update={"model": model})


def _prepare_engine(
    experiment: Experiment, engine: str, report: Callable[[str], object]
) -> tuple[Row, Run | None]:
    """Compile the steps of an engine; return its row and a function that runs them.

    The function is None if the engine does not support the model.
    """
    config = _with_engine(experiment.config, engine)
    model = experiment.task.model(config, experiment.dataset.spec)
    experiment = dataclasses.replace(experiment, config=config, model=model)
    batches = experiment.dataset.batches(0, STEPS)
    try:
        state = experiment.initial_state()
        start = time.perf_counter()
        program, memory = _compile(experiment, state, batches)
    except NotImplementedError as error:
        return Row(engine, reason=str(error)), None
    compile_seconds = time.perf_counter() - start
    report(f"{engine}: compiled in {compile_seconds:.1f} s")

    def run() -> None:
        nonlocal state
        state, _ = jax.block_until_ready(program(state, batches))

    return Row(engine, None, compile_seconds, memory), run


def _compile(
    experiment: Experiment, state: TrainState, batches: Batch
) -> tuple[shards.Dispatch, int | None]:
    """Compile `STEPS` training steps as in a run; return the program and its memory."""
    count = splits.shard_count(experiment.config.training)
    parts = (experiment.task, experiment.model, experiment.optimizer)
    if count > 1:
        step_parts, axes = programs.step_parts(*parts), experiment.dataset.batch_axes
        program = shards.compile_steps(
            step_parts, state, batches, batch_axes=axes, shards=count
        )
        return program, None
    steps = jax.jit(functools.partial(train_steps, *parts), donate_argnums=0)
    compiled = steps.lower(state, batches).compile()
    return compiled, _memory(compiled)


def _memory(program: jax.stages.Compiled) -> int | None:
    """Return the bytes of arguments, results and temporaries; aliases count once."""
    analysis = program.memory_analysis()
    if analysis is None:
        return None
    size = analysis.argument_size_in_bytes + analysis.output_size_in_bytes
    return size + analysis.temp_size_in_bytes - analysis.alias_size_in_bytes


def _with_times(experiment: Experiment, row: Row, times: Spread | None) -> Row:
    """Return the row with its times and rates."""
    if times is None:
        return row
    if row.name in engines():
        times = times.divided(STEPS)
    tokens, step = _tokens(experiment), times.median
    return row._replace(
        step_seconds=times,
        tokens_per_second=tokens / step,
        flops_per_second=6 * _matrix_elements(experiment) * tokens / step,
    )


def _tokens(experiment: Experiment) -> int:
    return experiment.config.training.batch_size * experiment.config.training.window


def _matrix_elements(experiment: Experiment) -> int:
    """Count the elements of weight matrices, without the embedding's lookup table."""
    shapes = experiment.state_like.params
    return sum(
        leaf.size
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
        if getattr(path[-1], "name", "").startswith("w")
    )


def _describe_work(experiment: Experiment, device: Any) -> str:
    """Describe the model, the work of a step and the hardware in one line."""
    model, training = experiment.config.model, experiment.config.training
    split = splits.describe(experiment.config, device)
    flops = 6 * _matrix_elements(experiment) * _tokens(experiment)
    return (
        f"{experiment.config.name}: {training.batch_size} x {training.window} tokens "
        f"per step, {model.layers} x {model.hidden_size} {model.cell.name}, "
        f"{experiment.parameters():,} parameters, {flops / 1e9:.3g} GFLOP per step; "
        f"{device.device_kind}, cores: {devices.cores()}, shards: {split}"
    )


# -- torch --------------------------------------------------------------------


def _prepare_torch(experiment: Experiment, device: Any) -> tuple[Row, Run | None]:
    """Return the row of torch and a function that runs one step.

    The function is None if torch cannot be compared.
    """
    reason = torch_unsupported(experiment.config.model, device)
    if not hasattr(experiment.task, "sample"):
        reason = "compared for language models only"
    if reason:
        return Row("torch", reason=reason), None
    size = experiment.dataset.spec.size
    return Row("torch"), _torch_step(
        experiment.config, size, experiment.dataset.batch(0)
    )


def torch_unsupported(model: schema.Model, device: Any) -> str:
    """Return why `torch.nn.LSTM` cannot be compared, or an empty string."""
    wrappers = [key for key in schema.WRAPPERS if getattr(model, key)]
    standard = LSTM(init=model.cell.init, forget_bias=1.0).model_dump()
    actual = model.cell.model_dump() | {"forget_bias": 1.0}
    if importlib.util.find_spec("torch") is None:
        return "not installed"
    if device.platform != "cpu":
        return "compared on CPU only"
    if actual != standard:
        return f"torch.nn.LSTM does not compute this {model.cell.name}"
    if wrappers or model.residual:
        return f"torch.nn.LSTM has no {(*wrappers, 'residual')[0]}"
    if model.dtype != "float32":
        return f"compared in float32 only; model.dtype is {model.dtype}"
    return ""


def _torch_step(config: RunConfig, vocabulary: int, batch: Batch) -> Run:
    """Return a step of embedding, LSTM, output layer, loss, gradient and Adam."""
    import torch  # pyright: ignore[reportMissingImports]

    nn, model = torch.nn, config.model
    embedding = nn.Embedding(vocabulary, model.embedding_size)
    lstm = nn.LSTM(
        model.embedding_size, model.hidden_size, model.layers, dropout=model.dropout
    )
    head = nn.Linear(model.hidden_size, vocabulary)
    parts = nn.ModuleList([embedding, lstm, head])
    before, after = (
        nn.Dropout(model.embedding_dropout),
        nn.Dropout(model.output_dropout),
    )
    optimizer = torch.optim.Adam(parts.parameters())
    inputs, targets = (torch.tensor(part).long() for part in batch[:2])

    def run() -> None:
        optimizer.zero_grad()
        hs, _ = lstm(before(embedding(inputs)))
        logits = head(after(hs)).flatten(0, 1)
        nn.functional.cross_entropy(logits, targets.flatten()).backward()
        optimizer.step()

    return run


# -- output ------------------------------------------------------------


def as_json(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Return the rows by name as values that JSON can represent."""
    plain = {row.name: row._asdict() for row in rows}
    for row in plain.values():
        times = row["step_seconds"]
        row["step_seconds"] = None if times is None else times._asdict()
    return plain


HEADERS = ("", "ms/step", "tokens/s", "GFLOP/s", "compile", "memory")


def show(rows: Sequence[Row]) -> None:
    """Print the rows as a table on a terminal, and as aligned lines otherwise."""
    reasons = [row for row in rows if row.reason]
    cells = [_cells(row) for row in rows if not row.reason]
    if cells and sys.stdout.isatty() and not os.environ.get("NO_COLOR"):
        Console(highlight=False).print(_table(cells))
    elif cells:
        print(_lines(cells))
    for row in reasons:
        print(f"{row.name}: {row.reason}")


def _cells(row: Row) -> tuple[str, ...]:
    times = row.step_seconds or Spread(math.nan, math.nan, math.nan, 0)
    half = (times.high - times.low) / 2
    return (
        row.name,
        f"{1e3 * times.median:.2f} ± {1e3 * half:.2f}",
        f"{row.tokens_per_second or math.nan:,.0f}",
        f"{(row.flops_per_second or math.nan) / 1e9:.1f}",
        "-" if row.compile_seconds is None else f"{row.compile_seconds:.1f} s",
        "-" if row.memory_bytes is None else f"{row.memory_bytes / 1e6:,.0f} MB",
    )


def _table(cells: Sequence[Sequence[str]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for header in HEADERS:
        table.add_column(header, justify="right" if header else "left", no_wrap=True)
    for row in cells:
        table.add_row(*row)
    return table


def _lines(cells: Sequence[Sequence[str]]) -> str:
    """Return the cells as lines below their headers, numbers aligned to the right.

    Example:
        >>> print(_lines([("scan", "1.50 ± 0.02", "9,000", "12.1", "0.4 s", "20 MB")]))
                  ms/step  tokens/s  GFLOP/s  compile  memory
        scan  1.50 ± 0.02     9,000     12.1    0.4 s   20 MB
    """
    rows = [HEADERS, *cells]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            word.rjust(width) if n else word.ljust(width)
            for n, (word, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
