"""`jaxlstm bench`: timing with a simulated clock, and the verb on a tiny run."""

import importlib.util
import json
import subprocess
import sys

import pytest
import tiny
from ruamel.yaml import YAML

import jaxlstm as jl
from jaxlstm import unrolling
from jaxlstm.lab import benchmark, cli
from jaxlstm.lab._util.timing import Spread, measure_alternately
from jaxlstm.lab.benchmark import Row
from jaxlstm.lab.config import schema

pytestmark = pytest.mark.filterwarnings("ignore")  # warnings of torch


class Clock:
    """A simulated clock that advances during runs and sleeps."""

    def __init__(self) -> None:
        self.now, self.ran = 0.0, []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.ran.append("pause")

    def run(self, name: str, *seconds: float):
        """Return a run that takes these times in order, then the last one again."""
        left = list(seconds)

        def run() -> None:
            self.now += left.pop(0) if left[1:] else left[0]
            self.ran.append(name)

        return run


def measure(clock: Clock, runs, **options):
    return measure_alternately(runs, clock=clock, sleep=clock.sleep, **options)


def test_each_round_runs_everything_once_in_a_new_order_after_pauses():
    clock = Clock()
    runs = {name: clock.run(name, 1.0) for name in "abcd"}
    times = measure(clock, runs, seconds=0.0, min_rounds=8, turn_seconds=0.1)
    assert [spread.runs for spread in times.values()] == [8] * 4
    turns = clock.ran[clock.ran.index("pause") :]
    assert turns[::2] == ["pause"] * 32
    rounds = [tuple(turns[n : n + 8 : 2]) for n in range(1, 64, 8)]
    assert {tuple(sorted(order)) for order in rounds} == {tuple("abcd")}
    assert len(set(rounds)) > 4


def test_median_and_quartiles_are_computed_over_the_rounds():
    clock = Clock()
    runs = {
        "steady": clock.run("steady", 2.0),
        "late": clock.run("late", 9.0, 1.0, 2.0, 3.0, 4.0, 5.0),
    }
    times = measure(clock, runs, seconds=0.0, min_rounds=5, turn_seconds=0.1)
    assert times["steady"] == Spread(2.0, 2.0, 2.0, 5)
    assert times["late"] == Spread(3.0, 2.0, 4.0, 5)


def test_a_short_run_is_repeated_within_its_turn_and_averaged():
    clock = Clock()
    runs = {"short": clock.run("short", 0.5, 0.25)}
    times = measure(clock, runs, seconds=0.0, min_rounds=2, turn_seconds=1.0, pause=0.5)
    assert times["short"] == Spread(0.25, 0.25, 0.25, 2)
    assert clock.ran == ["short"] * 2 + (["pause"] + ["short"] * 4) * 2


def test_the_seconds_are_a_total_for_all_runs():
    clock = Clock()
    runs = {"a": clock.run("a", 1.0), "b": clock.run("b", 3.0)}
    times = measure(clock, runs, seconds=10.0, pause=0.0, turn_seconds=1.0)
    assert [spread.runs for spread in times.values()] == [3, 3]
    times = measure(clock, runs, seconds=21.0, pause=0.0, turn_seconds=1.0)
    assert [spread.runs for spread in times.values()] == [6, 6]
    assert measure(clock, {}, seconds=10.0) == {}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Write the config file of a tiny run."""
    place = tmp_path_factory.mktemp("bench")
    book, path = place / "book.txt", place / "tiny.yaml"
    book.write_text(tiny.text())
    with path.open("w") as file:
        YAML(typ="safe").dump(tiny.config(book), file)
    return path


@pytest.fixture(scope="module")
def measured(config):
    """Run `bench` once; return its rows by name and its messages."""
    messages: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "engines", lambda: ("scan",))  # one engine suffices
        rows = jl.lab.bench(config, seconds=0.0, report=messages.append)
    return {row.name: row for row in rows}, messages


def test_every_engine_is_accepted_by_the_config():
    assert {"adjoint", "scan"} <= set(benchmark.engines())
    for engine in benchmark.engines():
        assert schema.Model(engine=engine).engine == engine


@pytest.mark.combinations
def test_every_engine_and_torch_have_a_row(measured):
    rows, messages = measured
    assert list(rows) == ["scan", "torch"]
    for row in rows.values():
        if row.name == "torch":
            continue
        assert row.reason == ""
        assert row.step_seconds.runs == 3
        assert 0 < row.step_seconds.low <= row.step_seconds.high
        assert row.compile_seconds > 0
        assert row.memory_bytes > 0
    assert messages[0].startswith("tiny: 4 x 16 tokens per step, 1 x 12 lstm, ")


def test_the_work_counts_the_matrix_products(config, measured):
    """Per token 8 (D + H) H for the layer and 2 H V for the output layer, times 3."""
    rows, messages = measured
    vocabulary = jl.lab.data.read(jl.lab.config.load(config).data).vocabulary.size
    parameters = vocabulary * 6 + 4 * 12 * (6 + 12 + 1) + vocabulary * (12 + 1)
    assert f" {parameters:,} parameters" in messages[0]
    flops = 3 * (8 * (6 + 12) * 12 + 2 * 12 * vocabulary) * 4 * 16
    for row in rows.values():
        if row.reason == "":
            seconds = row.step_seconds.median
            assert row.tokens_per_second == pytest.approx(4 * 16 / seconds)
            assert row.flops_per_second == pytest.approx(flops / seconds)


def test_torch_is_measured_if_it_is_installed(measured):
    rows, _ = measured
    if importlib.util.find_spec("torch") is None:
        assert rows["torch"] == Row("torch", reason="not installed")
    else:
        assert rows["torch"].step_seconds.runs == 3
        assert rows["torch"].memory_bytes is None


def test_shards_are_measured_as_in_a_run(config, monkeypatch):
    monkeypatch.setattr(benchmark, "engines", lambda: ("scan",))
    monkeypatch.setattr(benchmark, "torch_unsupported", lambda *_: "not installed")
    messages: list[str] = []
    overrides = ["training.shards=2"]
    row, _ = jl.lab.bench(
        config, overrides=overrides, seconds=0.0, report=messages.append
    )
    assert "shards: 2 of 2 sequences" in messages[0]
    assert row.step_seconds.runs == 3
    assert row.memory_bytes is None


class Device:
    """A device of the given platform."""

    def __init__(self, platform: str) -> None:
        self.platform = platform


@pytest.mark.parametrize(
    ("model", "platform", "reason"),
    [
        ({}, "cpu", ""),
        ({"cell": {"forget_bias": 3.0, "init": "keras"}}, "cpu", ""),
        ({"cell": {"name": "gru"}}, "cpu", "torch.nn.LSTM does not compute this gru"),
        ({"cell": {"output_activation": "relu"}}, "cpu", "does not compute this lstm"),
        ({"zoneout_c": 0.1}, "cpu", "torch.nn.LSTM has no zoneout_c"),
        ({"residual": True}, "cpu", "torch.nn.LSTM has no residual"),
        ({"dtype": "bfloat16"}, "cpu", "model.dtype is bfloat16"),
        ({}, "gpu", "compared on CPU only"),
    ],
)
def test_models_that_torch_does_not_support_have_a_reason(
    model, platform, reason, monkeypatch
):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    if "cell" in model:
        model = {**model, "cell": {"name": "lstm", **model["cell"]}}
    found = benchmark.torch_unsupported(schema.Model(**model), Device(platform))
    assert reason in found
    assert bool(found) == bool(reason)


def test_the_row_of_an_unsupported_engine_has_its_reason(config, monkeypatch):
    def refuse(*arguments, **options):
        raise NotImplementedError("adjoint: no.")

    monkeypatch.setitem(unrolling.ENGINES, "adjoint", refuse)
    monkeypatch.setattr(benchmark, "torch_unsupported", lambda *_: "not installed")
    monkeypatch.setattr(benchmark, "engines", lambda: ("adjoint",))
    overrides = ["model.engine=adjoint"]  # bench ignores the engine of the config
    rows = jl.lab.bench(config, overrides=overrides, seconds=0.0)
    assert rows[0] == Row("adjoint", reason="adjoint: no.")
    assert rows[1] == Row("torch", reason="not installed")


ROWS = [
    Row("adjoint", Spread(0.012, 0.0118, 0.0124, 9), 1.25, 20_600_000, 85_333.0, 6e10),
    Row("torch", Spread(0.0165, 0.016, 0.018, 9), None, None, 62_060.0, 4.36e10),
    Row("scan", reason="scan: no."),
]


def test_rows_are_aligned_lines_in_a_pipe(capsys):
    benchmark.show(ROWS)
    assert capsys.readouterr().out == (
        "              ms/step  tokens/s  GFLOP/s  compile  memory\n"
        "adjoint  12.00 ± 0.30    85,333     60.0    1.2 s   21 MB\n"
        "torch    16.50 ± 1.00    62,060     43.6        -       -\n"
        "scan: scan: no.\n"
    )


def test_rows_are_a_table_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    benchmark.show(ROWS)
    out = capsys.readouterr().out
    for word in ("ms/step", "12.00 ± 0.30", "62,060", "21 MB", "no."):
        assert word in out


def test_the_verb_prints_what_the_function_returns(config, capsys, monkeypatch):
    given = {}

    def bench(config, **options):
        given.update(config=config, **options)
        return ROWS

    monkeypatch.setattr(benchmark, "bench", bench)
    words = ["bench", str(config), "model.layers=2", "--seconds", "0.5"]
    assert cli.main(words) == 0
    assert "12.00 ± 0.30" in capsys.readouterr().out
    assert given["config"] == str(config)
    assert given["overrides"] == ["model.layers=2"]
    assert given["seconds"] == 0.5
    assert cli.main([*words, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["adjoint"]["step_seconds"]["median"] == 0.012
    assert printed["scan"] == Row("scan", reason="scan: no.")._asdict()
    assert cli.main(["bench", "model.layers=2"]) == 0
    assert given["config"] is None
    assert given["overrides"] == ["model.layers=2"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--seconds", "-1"],
            "seconds: got -1, expected a finite number of at least 0",
        ),
        (["--seconds", "nan"], "seconds: got nan"),
        (["model.hiden_size=8"], 'did you mean "hidden_size"?'),
    ],
)
def test_an_error_is_one_line_and_exit_code_2(words, message, config, capsys):
    assert cli.main(["bench", str(config), *words]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_help_does_not_import_jax_or_torch():
    code = (
        "import sys\nfrom jaxlstm.lab.cli import main\n"
        "try:\n    main(['bench', '--help'])\nexcept SystemExit:\n    pass\n"
        "sys.exit('jax' in sys.modules or 'torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=False
    )
    assert done.returncode == 0
    assert b"--seconds" in done.stdout
