"""How fast a config trains on this machine: each engine in turn, and torch beside it.

All run in alternation, as `timing` says; what is told is the median of the rounds and
half the distance of their quartiles. Compiling is timed apart.

GFLOP/s count the products with weights only: 2 for each number of a weight matrix and
each token on the way forward, three times that for a training step. For an LSTM layer
with D inputs and H units these are 8 (D + H) H a token on the way forward.
"""

import contextlib
import functools
import importlib.util
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import jax
from rich.console import Console
from rich.table import Table

from jaxlstm.lab import config as configs
from jaxlstm.lab import native
from jaxlstm.lab._util.errors import BadInput
from jaxlstm.lab._util.timing import Run, Spread, alternate
from jaxlstm.lab.config import Config, schema
from jaxlstm.lab.config.cells import LSTM
from jaxlstm.lab.data import Batch
from jaxlstm.lab.parallel import devices, shards, splits
from jaxlstm.lab.training import programs
from jaxlstm.lab.training.experiment import Experiment
from jaxlstm.lab.training.state import TrainState, train_steps

STEPS = 5  # to a dispatch; a run has as many as `training.steps_per_dispatch`


class Row(NamedTuple):
    """What was measured of one contender: a training step of the whole model.

    contender           an engine, or torch
    step_seconds        of one step, None where it does not run
    compile_seconds     of the program of a step, None where nothing is compiled
    memory_bytes        state, gradients and all between, by XLA's own analysis; None
                        for shards, which are programs of their own
    tokens_per_second   from the median
    flops_per_second    from the median; the head of this module says what is counted
    reason              why it does not run, empty where it does
    """

    contender: str
    step_seconds: Spread | None = None
    compile_seconds: float | None = None
    memory_bytes: int | None = None
    tokens_per_second: float | None = None
    flops_per_second: float | None = None
    reason: str = ""


def bench(
    config: str | Path | Mapping[str, Any] | Config | None = None,
    *,
    overrides: Sequence[str] = (),
    seconds: float = 5.0,
    report: Callable[[str], object] = lambda text: None,
) -> list[Row]:
    """Time a training step of a config's model, for each engine and for torch.

    One step is one update of all parameters as a run takes it, in its shards, from the
    first batches of the config's data: embedding, recurrent layers, read-out, loss,
    gradient, optimizer. torch, where it is installed, takes the same step with
    `torch.nn.LSTM` of the same size and Adam.

    Arguments:
        config, overrides: as for `jl.lab.train`. `model.engine` is left aside.
        seconds: of measuring, for each contender.
        report: is told what is going on, a line at a time.

    Returns: a row for each contender; one that cannot run says why.

    Errors: `BadInput` for a config or data that cannot be used.
    """
    if not 0 <= seconds < math.inf:
        raise BadInput(f"bench: seconds is {seconds:g}; 0 or more is needed")
    wanted = configs.load(config, overrides=overrides)
    wanted = splits.settled(_with_engine(wanted, None))
    hosts = splits.number(wanted.training)
    with contextlib.suppress(BadInput):  # without a compiler, the engine says so
        native.load()
    with devices.using(wanted.device, hosts=hosts) as device:
        built = Experiment.build(wanted)
        report(_work(built, device))
        prepared = [_engine(built, name, report) for name in engines()]
        prepared.append(_torch(built, device))
        runs = {row.contender: run for row, run in prepared if run is not None}
        if runs:
            report(f"measuring {', '.join(runs)}, {seconds * len(runs):.0f} s in all")
        spreads = alternate(runs, seconds=seconds * len(runs))
    return [_completed(built, row, spreads.get(row.contender)) for row, _ in prepared]


def engines() -> tuple[str, ...]:
    """The engines that a config may name; of the modes of one, those that differ in
    what they remember.
    """
    kinds = get_args(schema.Model.model_fields["engine"].annotation)
    return tuple(name for name in get_args(kinds[0]) if not name.endswith("_first"))


def _with_engine(config: Config, engine: str | None) -> Config:
    model = config.model.model_copy(update={"engine": engine})
    return config.model_copy(update={"model": model})


def _engine(
    bench: Experiment, engine: str, report: Callable[[str], object]
) -> tuple[Row, Run | None]:
    """The row of an engine as far as it is known, and a training step to be run."""
    config = _with_engine(bench.config, engine)
    model = bench.task.model(config, bench.dataset.spec)
    bench = bench._replace(config=config, model=model)
    batches = bench.dataset.batches(0, STEPS)
    try:
        state = bench.initial_state()
        began = time.perf_counter()
        program, memory = _program(bench, state, batches)
    except NotImplementedError as refusal:
        return Row(engine, reason=str(refusal)), None
    took = time.perf_counter() - began
    report(f"{engine}: compiled in {took:.1f} s")

    def run() -> None:
        nonlocal state
        state, _ = jax.block_until_ready(program(state, batches))

    return Row(engine, None, took, memory), run


def _program(
    bench: Experiment, state: TrainState, batches: Batch
) -> tuple[shards.Dispatch, int | None]:
    """The program of a dispatch as a run compiles it, and its bytes where XLA tells."""
    count = splits.number(bench.config.training)
    made = (bench.task, bench.model, bench.optimizer)
    if count > 1:
        halves, axes = programs.halves(*made), bench.dataset.batch_axes
        found = shards.program(halves, state, batches, batch_axes=axes, shards=count)
        return found, None
    steps = jax.jit(functools.partial(train_steps, *made), donate_argnums=0)
    compiled = steps.lower(state, batches).compile()
    return compiled, _memory(compiled)


def _memory(program: jax.stages.Compiled) -> int | None:
    """Arguments, results and what lies between; what is written in place once."""
    found = program.memory_analysis()
    if found is None:
        return None
    size = found.argument_size_in_bytes + found.output_size_in_bytes
    return size + found.temp_size_in_bytes - found.alias_size_in_bytes


def _completed(bench: Experiment, row: Row, spread: Spread | None) -> Row:
    """The row with what the clock found."""
    if spread is None:
        return row
    if row.contender in engines():
        spread = spread.divided(STEPS)
    tokens, second = _tokens(bench), spread.median
    return row._replace(
        step_seconds=spread,
        tokens_per_second=tokens / second,
        flops_per_second=6 * _multiplied(bench) * tokens / second,
    )


def _tokens(bench: Experiment) -> int:
    return bench.config.training.batch_size * bench.config.training.window


def _multiplied(bench: Experiment) -> int:
    """Numbers in weight matrices, those of the embedding left out: it looks up."""
    shapes = jax.eval_shape(bench.initial_state).params
    return sum(
        leaf.size
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
        if getattr(path[-1], "name", "").startswith("w")
    )


def _work(bench: Experiment, device: Any) -> str:
    """What is measured, on what, in one line."""
    model, training = bench.config.model, bench.config.training
    split = splits.described(bench.config, device)
    flops = 6 * _multiplied(bench) * _tokens(bench)
    return (
        f"{bench.config.name}: {training.batch_size} x {training.window} tokens a "
        f"step, {model.layers} x {model.hidden_size} {model.cell.name}, "
        f"{bench.parameters():,} parameters, {flops / 1e9:.3g} GFLOP a step; "
        f"{device.device_kind}, cores: {devices.cores()}, shards: {split}"
    )


# -- torch --------------------------------------------------------------------


def _torch(bench: Experiment, device: Any) -> tuple[Row, Run | None]:
    """The row of torch, and a training step of it where it has one."""
    reason = _torch_lacks(bench.config.model, device)
    if not hasattr(bench.task, "sample"):
        reason = "is compared for language models only"
    if reason:
        return Row("torch", reason=reason), None
    size = bench.dataset.spec.size
    return Row("torch"), _torch_step(bench.config, size, bench.dataset.batch(0))


def _torch_lacks(model: schema.Model, device: Any) -> str:
    """What keeps `torch.nn.LSTM` from being compared, or nothing."""
    around = [key for key in schema.WRAPPERS if getattr(model, key)]
    usual = LSTM(init=model.cell.init, forget_bias=1.0).model_dump()
    asked = model.cell.model_dump() | {"forget_bias": 1.0}
    if importlib.util.find_spec("torch") is None:
        return "not installed"
    if device.platform != "cpu":
        return "is compared on a CPU only"
    if asked != usual:
        return f"torch.nn.LSTM is not this {model.cell.name}"
    if around or model.residual:
        return f"torch.nn.LSTM has no {(*around, 'residual')[0]}"
    if model.dtype != "float32":
        return f"is compared in float32 only, and model.dtype is {model.dtype}"
    return ""


def _torch_step(config: Config, vocabulary: int, batch: Batch) -> Run:
    """Embedding, LSTM, read-out, loss, gradient and Adam, as a user writes them."""
    import torch  # pyright: ignore[reportMissingImports]

    nn, model = torch.nn, config.model
    embedding = nn.Embedding(vocabulary, model.embedding_size)
    lstm = nn.LSTM(
        model.embedding_size, model.hidden_size, model.layers, dropout=model.dropout
    )
    readout = nn.Linear(model.hidden_size, vocabulary)
    parts = nn.ModuleList([embedding, lstm, readout])
    before, after = (
        nn.Dropout(model.embedding_dropout),
        nn.Dropout(model.output_dropout),
    )
    optimizer = torch.optim.Adam(parts.parameters())
    inputs, targets = (torch.tensor(part).long() for part in batch[:2])

    def run() -> None:
        optimizer.zero_grad()
        hs, _ = lstm(before(embedding(inputs)))
        logits = readout(after(hs)).flatten(0, 1)
        nn.functional.cross_entropy(logits, targets.flatten()).backward()
        optimizer.step()

    return run


# -- what is shown ------------------------------------------------------------


def as_json(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """The rows by contender, as plain JSON."""
    plain = {row.contender: row._asdict() for row in rows}
    for row in plain.values():
        spread = row["step_seconds"]
        row["step_seconds"] = None if spread is None else spread._asdict()
    return plain


HEADS = ("", "ms/step", "tokens/s", "GFLOP/s", "compile", "memory")


def show(rows: Sequence[Row]) -> None:
    """Print the rows: a table on a terminal, aligned lines in a pipe."""
    reasons = [row for row in rows if row.reason]
    cells = [_cells(row) for row in rows if not row.reason]
    if cells and sys.stdout.isatty():
        Console(highlight=False).print(_table(cells))
    elif cells:
        print(_lines(cells))
    for row in reasons:
        print(f"{row.contender}: {row.reason}")


def _cells(row: Row) -> tuple[str, ...]:
    spread = row.step_seconds or Spread(math.nan, math.nan, math.nan, 0)
    half = (spread.high - spread.low) / 2
    return (
        row.contender,
        f"{1e3 * spread.median:.2f} ± {1e3 * half:.2f}",
        f"{row.tokens_per_second or math.nan:,.0f}",
        f"{(row.flops_per_second or math.nan) / 1e9:.1f}",
        "-" if row.compile_seconds is None else f"{row.compile_seconds:.1f} s",
        "-" if row.memory_bytes is None else f"{row.memory_bytes / 1e6:,.0f} MB",
    )


def _table(cells: Sequence[Sequence[str]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for head in HEADS:
        table.add_column(head, justify="right" if head else "left", no_wrap=True)
    for row in cells:
        table.add_row(*row)
    return table


def _lines(cells: Sequence[Sequence[str]]) -> str:
    """The cells below their heads, the numbers to the right.

    >>> print(_lines([("scan", "1.50 ± 0.02", "9,000", "12.1", "0.4 s", "20 MB")]))
              ms/step  tokens/s  GFLOP/s  compile  memory
    scan  1.50 ± 0.02     9,000     12.1    0.4 s   20 MB
    """
    rows = [HEADS, *cells]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            word.rjust(width) if n else word.ljust(width)
            for n, (word, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
