"""The benchmark harness: cases, contenders, rows, tables and plots."""

import doctest
import functools
import importlib
import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import (  # noqa: E402
    __main__,
    cases,
    harness,
    machine,
    measure,
    peers,
    pictures,
    report,
    tables,
)
from benchmarks.cases import Case  # noqa: E402
from benchmarks.peers.base import Contender, Prepared, Program  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # other libraries warn

SMALL = Case("tiny", 6, 8, 3, 5)
STEPS_ONLY = "C loop"
PEERS = tuple(
    name
    for name in peers.FILES
    if not name.startswith("jaxlstm") and name not in peers.LIMITS
)


@pytest.fixture
def relaxed():
    """Use the default promotion rules of JAX, which the other libraries need."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


# -- cases --------------------------------------------------------------------


@pytest.mark.parametrize("module", [cases, harness, machine, peers, tables])
def test_examples(module):
    found = doctest.testmod(module)
    assert found.attempted > 0
    assert found.failed == 0


def test_case_names_are_unique():
    names = [case.name for case in cases.CASES]
    assert len(set(names)) == len(names)
    assert [c.name for c in cases.select(["stream", "grid-512-8-64-64"])] == [
        "grid-512-8-64-64",
        *(f"stream-1-1-{h}-{h}" for h in (64, 128, 256, 512)),
        "stream-1-64-128-128",
    ]
    assert cases.select([]) == list(cases.CASES)
    with pytest.raises(ValueError, match="cases: got 'gird', expected one of"):
        cases.select(["gird"])


def test_the_grid_has_seven_sizes():
    sizes = [case[1:5] for case in cases.select(["grid"])]
    assert len(sizes) == 7
    assert (1000, 1, 64, 64) in sizes
    assert (64, 16, 512, 1024) in sizes


def test_flops_count_layers_directions_and_steps():
    plain, both = SMALL, SMALL._replace(layers=2, bidirectional=True)
    assert plain.flops_forward == 8 * 6 * 8 * 5 * (3 + 5)
    assert both.flops_forward == 2 * 8 * 6 * 8 * 5 * ((3 + 5) + (10 + 5))
    assert plain.flops("training") == 3 * plain.flops("forward")
    ragged = SMALL._replace(ragged=True)
    assert ragged.flops_forward * 2 == plain.flops_forward
    assert SMALL._replace(members=16).flops_forward == 16 * plain.flops_forward
    assert SMALL._replace(cell="gru").flops_forward * 4 == 3 * plain.flops_forward


@pytest.mark.parametrize("group", cases.MODELS)
def test_each_model_is_measured_at_every_size_of_the_grid(group):
    assert [c[1:5] for c in cases.select([group])] == list(cases.GRID)


def test_each_member_has_its_own_weights_and_inputs():
    inputs = cases.draw(SMALL._replace(members=2))
    for array in (inputs.xs, inputs.d_hs, *inputs.layers[0][0]):
        assert array.shape[0] == 2
        assert (array[0] != array[1]).any()


def test_half_of_a_ragged_case_is_padding_with_zero_cotangents():
    inputs = cases.draw(SMALL._replace(ragged=True))
    assert inputs.lengths.sum() * 2 == 6 * 8
    assert 1 <= inputs.lengths.min() <= inputs.lengths.max() <= 5
    active = np.arange(6)[:, None] < inputs.lengths
    assert (inputs.d_hs[~active] == 0).all()
    assert (inputs.d_hs[active] != 0).all()


# -- contenders ---------------------------------------------------------------

VARIANTS = {
    "plain": {},
    "gru": {"cell": "gru"},
    "stacked": {"layers": 2},
    "bidirectional": {"layers": 2, "bidirectional": True},
    "ragged": {"ragged": True},
    "layer_norm": {"cell": "layer_norm"},
    "zoneout": {"cell": "zoneout"},
}


@functools.cache
def results(name: str, case: Case):
    """Return outputs and input gradient, time first; None if unsupported."""
    inputs, contender = cases.draw(case), peers.find(name)
    forward = contender.forward(case, inputs)
    hs = np.swapaxes(np.asarray(forward.compile().run()), 0, forward.time_axis)
    if inputs.lengths is not None:  # libraries differ in padding
        hs = hs * (np.arange(case.time)[:, None] < inputs.lengths)[..., None]
    if contender.training_step is None:
        return hs, None
    training = contender.training_step(case, inputs)
    d_params, d_xs = training.compile().run()
    for leaf in jax.tree.leaves(d_params):
        assert np.isfinite(np.asarray(leaf)).all()
        assert (np.asarray(leaf) != 0).any()
    return hs, np.swapaxes(np.asarray(d_xs), 0, training.time_axis)


def assert_agree(name: str, case: Case) -> None:
    """Assert that a contender computes the numbers of the reference engine."""
    expected, found = results("jaxlstm scan", case), results(name, case)
    assert found[0].shape == (case.time, case.batch, case.output_size)
    for one, other in zip(found, expected, strict=True):
        if one is not None:
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["jaxlstm", "jaxlstm split"])
def test_engines_agree(name, relaxed):
    assert peers.find(name).supports(SMALL) is None
    assert_agree(name, SMALL)


def test_checkpoints_agree(relaxed):
    case = SMALL._replace(group="growth", time=9)
    assert peers.find("jaxlstm sqrt").supports(SMALL) is not None
    assert peers.find("jaxlstm sqrt").supports(case) is None
    assert_agree("jaxlstm sqrt", case)


@pytest.mark.thorough
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", [n for n in ("jaxlstm", *PEERS) if n != STEPS_ONLY])
def test_all_libraries_compute_the_same_numbers(name, variant, relaxed):
    """Compares outputs, and the gradient of the inputs, which uses every weight."""
    pytest.importorskip(peers.FILES[name][1])
    case = SMALL._replace(**VARIANTS[variant])
    reason = peers.find(name).supports(case)
    if reason is None:
        assert_agree(name, case)
    elif name == "lax.scan":
        assert variant not in ("layer_norm", "zoneout")
    else:
        assert variant in ("layer_norm", "zoneout", "ragged", "gru"), reason
        assert (variant == "gru") == (name == "haiku" and "reset gate" in reason)
        assert name != "jaxlstm"


@pytest.mark.thorough
@pytest.mark.parametrize("name", PEERS)
def test_single_steps_of_all_libraries_agree(name, relaxed):
    """Compares the third output, with the state fed back."""
    pytest.importorskip(peers.FILES[name][1])
    case = Case("stream", 1, 2, 3, 5, measures=("step",))
    if name == "lax.scan":
        assert peers.find(name).supports(case) is not None
        return
    thirds = []
    for one in ("jaxlstm", name):
        run = peers.find(one).step(case, cases.draw(case)).compile().run
        thirds.append([np.asarray(run()) for _ in range(3)][-1])
    np.testing.assert_allclose(*thirds, rtol=1e-4, atol=1e-5)


def test_a_population_has_the_gradients_of_its_members(relaxed):
    case = SMALL._replace(members=3)
    inputs = cases.draw(case)
    mapped, in_turn = (
        peers.find(name).training_step(case, inputs).compile().run()
        for name in ("jaxlstm", "jaxlstm in turn")
    )
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *in_turn)
    for one, other in zip(*map(jax.tree.leaves, (mapped, stacked)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    assert peers.find("jaxlstm in turn").supports(SMALL) is not None
    assert peers.find("jaxlstm in turn").supports(case) is None


@pytest.mark.parametrize("name", peers.LIMITS)
def test_limits_are_measured_in_a_group_of_their_own(name):
    pytest.importorskip("torch")
    limit, case = peers.find(name), SMALL._replace(group="limits")
    assert limit.supports(SMALL) is not None
    assert limit.supports(case) is None
    for make in (limit.forward, limit.training_step):
        found = make(case, cases.draw(case)).compile().run()
        assert found.isfinite().all()


def test_each_mode_is_a_contender():
    for mode in peers.MODES:
        name = f"jaxlstm {mode}"
        assert name in peers.FILES
        assert peers.find(name).name == name
    assert peers.select(["torch"]) == ["jaxlstm", "torch"]
    with pytest.raises(ValueError, match="peers: got 'tourch', expected"):
        peers.select(["tourch"])


def test_missing_packages_are_reported(monkeypatch):
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "torch" else object()
    )
    needing = ("torch", *peers.LIMITS)
    assert peers.absent() == dict.fromkeys(needing, "not installed (no package torch)")


# -- measuring ----------------------------------------------------------------


class Clock:
    """A simulated clock that advances when a program runs or is compiled."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def contender(
        self, name: str, *, run: float = 1.0, compile: float = 4.0, fails: str = ""
    ) -> Contender:
        def ran() -> None:
            self.now += run
            if fails == "run":
                raise MemoryError("too much\nof it")

        def compiled() -> Program:
            self.now += compile
            if fails == "compile":
                raise RuntimeError("no such program")
            return Program(ran, temp_bytes=7, trace_seconds=run / 2)

        def prepared(case, inputs) -> Prepared:
            if fails == "prepare":
                raise TypeError("no such case")
            return Prepared(compiled, compiled=name != "eager")

        refused = "not for me" if fails == "supports" else None
        training = None if fails == "training" else prepared
        return Contender(name, name, lambda case: refused, prepared, training)


def test_a_case_returns_rows_and_refusals():
    clock = Clock()
    fail = ("supports", "prepare", "compile", "run", "training")
    entered = [
        clock.contender("fast", run=1.0),
        clock.contender("eager", run=2.0),
        *(clock.contender(f"no {what}", fails=what) for what in fail),
    ]
    case = SMALL._replace(compiles=3)
    rows, refusals = measure.measure([case], entered, seconds=0.0, clock=clock)
    found = {(row.contender, row.what): row[3:] for row in rows}
    assert found["fast", "forward"] == (1.0, 1.0, 1.0, 3)
    assert found["fast", "training"] == (1.0, 1.0, 1.0, 3)
    assert found["eager", "training"] == (2.0, 2.0, 2.0, 3)
    assert found["fast", "compile training"] == (4.0, 4.0, 4.0, 3)
    assert found["fast", "trace training"] == (0.5, 0.5, 0.5, 3)
    assert found["fast", "temp training"] == (7, 7, 7, 1)
    assert ("eager", "compile training") not in found
    assert ("no run", "training") not in found
    reasons = {(r.contender, r.what): r.reason for r in refusals}
    assert reasons == {
        **{("no supports", w): "not for me" for w in ("forward", "training")},
        **{
            (f"no {where}", what): f"failed: {reason}"
            for what in ("forward", "training")
            for where, reason in (
                ("prepare", "TypeError: no such case"),
                ("compile", "RuntimeError: no such program"),
                ("run", "MemoryError: too much"),
            )
        },
        ("no training", "training"): "no training computes no gradients",
    }


def test_a_case_may_select_contenders_and_skip_running():
    clock = Clock()
    entered = [clock.contender("a"), clock.contender("b")]
    case = SMALL._replace(contenders=("a",), runs=False, measures=("training",))
    rows, refusals = measure.measure([case], entered, seconds=0.0, clock=clock)
    figures = ("compile", "trace", "temp")
    assert {row.what for row in rows} == {f"{what} training" for what in figures}
    assert [refusal.reason for refusal in refusals] == ["measured for a only"]


def test_compared_cases_run_in_alternation():
    """The runs of both cases alternate."""
    clock, order = Clock(), []

    def contender(name: str) -> Contender:
        def prepared(case, inputs) -> Prepared:
            def run() -> None:
                clock.now += case.time
                order.append(case.time)

            return Prepared(lambda: Program(run), compiled=False)

        return Contender(name, name, lambda case: None, prepared, prepared)

    short, long = (
        SMALL._replace(time=t, measures=("training",), compiles=n)
        for t, n in ((7, 1), (9, 2))
    )
    rows, _ = measure.measure([short, long], [contender("a")], seconds=0.0, clock=clock)
    found = {(row.case, row.what): row[3:] for row in rows}
    assert found == {
        (short.name, "training"): (7.0, 7.0, 7.0, 3),
        (long.name, "training"): (9.0, 9.0, 9.0, 3),
    }
    rounds = [tuple(sorted(order[-6:][n : n + 2])) for n in (0, 2, 4)]
    assert rounds == [(7, 9)] * 3


def test_the_peak_includes_the_memory_of_a_run(monkeypatch):
    size = 100_000_000

    def run() -> np.ndarray:
        return np.ones(size, np.uint8)

    prepared = Prepared(lambda: Program(run))
    one = Contender("one", "one", lambda case: None, lambda *_: prepared, None)
    monkeypatch.setattr(peers, "find", lambda name: one)
    row = measure.peak(SMALL, "one", "forward")
    assert row.what == "peak forward"
    assert size <= row.median < 1.5 * size


def test_a_request_in_json_is_measured(relaxed, monkeypatch):
    """The case is read from JSON, and the rows are returned, without a process."""
    case = SMALL._replace(group="grid", measures=("training",))
    asked = {"cases": [case._asdict()], "contenders": ["jaxlstm scan"]}
    asked |= {"seconds": 0.0, "peak": None}
    monkeypatch.setattr(measure, "cores", lambda: 1)  # the devices stay as they are
    answer = measure.run_request(json.loads(json.dumps(asked)))
    assert answer["refusals"] == []
    assert answer["chosen"][case.name] in peers.MODES
    rows = {row["what"]: row for row in answer["rows"]}
    assert rows["training"]["contender"] == "jaxlstm scan"
    assert rows["training"]["runs"] >= 3
    assert rows["compile training"]["median"] > 0
    assert rows["total training"]["median"] > rows["temp training"]["median"]


# -- the harness --------------------------------------------------------------


def row(case: str, contender: str, what: str, median: float, half: float = 0.0):
    return {
        "case": case,
        "contender": contender,
        "what": what,
        "median": median,
        "low": median - half,
        "high": median + half,
        "runs": 9,
    }


def test_cases_and_peaks_run_in_separate_processes(monkeypatch):
    requests, saved = [], []

    def measure_in_process(group, names, *, seconds=0.0, peak=None):
        requests.append(([case.name for case in group], names, seconds, peak))
        if peak is not None:
            found = row(group[0].name, names[0], f"peak {peak}", 5.0)
            return {"rows": [found], "refusals": []}
        rows = [
            row(case.name, name, "training", 1.0)
            for case in group
            for name in names
            if name != "haiku" and case.runs
        ]
        return {"rows": rows, "refusals": [], "chosen": {group[0].name: "scan"}}

    monkeypatch.setattr(harness, "measure_in_process", measure_in_process)
    monkeypatch.setattr(peers, "absent", lambda: {"torch": "not installed"})
    compiled = [
        SMALL._replace(group="compile", time=t, runs=False, contenders=("haiku",))
        for t in (7, 9)
    ]
    lines: list[str] = []
    result = harness.run(
        [SMALL, *compiled],
        ["jaxlstm", "torch", "haiku"],
        seconds=2.0,
        cores=2,
        peaks=True,
        log=lines.append,
        save=lambda result: saved.append(json.dumps(result)),
    )
    assert requests == [
        ([SMALL.name], ["jaxlstm", "haiku"], 2.0, None),
        ([SMALL.name], ["jaxlstm"], 0.0, "training"),
        ([case.name for case in compiled], ["haiku"], 2.0, None),
    ]
    assert lines[0] == "torch: not installed"
    assert result["absent"] == {"torch": "not installed"}
    assert [r["what"] for r in result["rows"]].count("peak training") == 1
    assert result["chosen"] == {SMALL.name: "scan", compiled[0].name: "scan"}
    assert result["machine"]["cores"] == 2
    assert len(saved) == 2
    assert json.loads(saved[-1]) == json.loads(json.dumps(result))
    assert json.loads(harness.to_json(result)) == json.loads(saved[-1])


def test_a_crash_is_reported_for_each_contender_of_the_process(monkeypatch):
    dies = "import sys; print('out of memory', file=sys.stderr); sys.exit(7)"
    process = harness.run_command
    monkeypatch.setattr(
        harness, "run_command", lambda command: process([sys.executable, "-c", dies])
    )
    answer = harness.measure_in_process([SMALL], ["a", "b"], peak="training")
    assert answer["rows"] == []
    assert [r["contender"] for r in answer["refusals"]] == ["a", "b"]
    for refusal in answer["refusals"]:
        assert refusal["what"] == "peak training"
        assert refusal["reason"] == (
            "failed: the process ended with code 7: out of memory"
        )


def test_a_process_over_the_time_limit_is_stopped(monkeypatch):
    monkeypatch.setattr(harness, "TIMEOUT", 0.2)
    failure = harness.run_command([sys.executable, "-c", "import time; time.sleep(60)"])
    assert failure == "the process did not end within 0 s"


@pytest.mark.thorough
def test_the_command_measures_one_case(tmp_path, monkeypatch, capsys):
    """Includes the processes, the JSON file and the peak memory."""
    monkeypatch.setattr(cases, "CASES", (SMALL,))
    out = tmp_path / "result.json"
    words = ["run", "--peers", "jaxlstm scan", "--seconds", "0", "--out", str(out)]
    assert __main__.main(words) == 0
    assert f"wrote {out}" in capsys.readouterr().out
    result = json.loads(out.read_text())
    whats = {row["what"] for row in result["rows"]}
    assert {"forward", "training", "compile training", "peak training"} <= whats
    assert result["refusals"] == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "--cases", "gird"], "cases: got 'gird', expected one of grid"),
        (["run", "--peers", "tourch"], "peers: got 'tourch', expected one of"),
        (["run", "--seconds", "-1"], "--seconds: got -1, expected 0 or more"),
        (["run", "--cores", "0"], "--cores: got 0, expected 1 to"),
        (
            ["run", "--out", "nowhere/a.json"],
            "--out: got nowhere/a.json, expected an existing",
        ),
    ],
)
def test_an_invalid_command_line_prints_one_line(words, message, capsys):
    assert __main__.main(words) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_the_list_names_every_case_and_contender(capsys):
    assert __main__.main(["list"]) == 0
    out = capsys.readouterr().out
    for name in [*peers.FILES, *(case.name for case in cases.CASES)]:
        assert name in out


# -- the report ---------------------------------------------------------------

FIRST, SECOND = Case("grid", 10, 2, 3, 4), Case("grid", 20, 2, 3, 4)
SHORT, LONG = Case("growth", 10, 2, 3, 4), Case("growth", 1000, 2, 3, 4)
QUICK, SLOW = Case("compile", 10, 2, 3, 4), Case("compile", 1000, 2, 3, 4)


def made_up():
    """Return a result twice as fast as torch in one case, half as fast in another."""
    a, b = FIRST.name, SECOND.name
    rows = [
        row(a, "jaxlstm", "training", 0.001, 0.0001),
        row(a, "jaxlstm scan", "training", 0.0008),
        row(a, "jaxlstm adjoint", "training", 0.00102),
        row(a, "torch", "training", 0.002),
        row(a, "haiku", "training", 0.004),
        row(a, "keras", "training", 0.003),
        row(b, "jaxlstm", "training", 0.012345, 0.0005),
        row(b, "jaxlstm scan", "training", 0.0125),
        row(b, "torch", "training", 0.0061725),
        row(a, "jaxlstm", "peak training", 2_500_000),
        row(SHORT.name, "jaxlstm", "training", 0.0001),
        row(LONG.name, "jaxlstm", "training", 0.0105),
        row(QUICK.name, "jaxlstm", "compile training", 1.0, 0.25),
        row(SLOW.name, "jaxlstm", "compile training", 1.25),
    ]
    refusal = {"case": a, "contender": "haiku", "what": "training", "reason": "why"}
    return {
        "machine": {
            "date": "2026-11-22",
            "cpu": "A Processor",
            "vectors": ["avx2"],
            "cores": 2,
            "cores_of_machine": 4,
            "memory_gb": 25.3,
            "system": "Linux 6",
            "python": "3.11.7",
            "commit": "abc1234",
            "versions": {"jaxlstm": "0.1.0", "keras": None},
            "settings": {"XLA_FLAGS": "--x"},
        },
        "seconds": 4.0,
        "contenders": [
            *("jaxlstm", "jaxlstm adjoint", "jaxlstm scan"),
            *("torch", "haiku", "keras", "onnxruntime"),
        ],
        "absent": {"onnxruntime": "not installed"},
        "cases": {
            case.name: harness.case_to_json(case)
            for case in (FIRST, SECOND, SHORT, LONG, QUICK, SLOW)
        },
        "chosen": {a: "adjoint", b: "scan"},
        "rows": rows,
        "refusals": [refusal, {**refusal, "case": b}],
    }


@pytest.fixture
def made():
    return tables.Result.of(made_up())


def test_the_table_of_times(made):
    assert tables.times(made, made.cases("grid"), "training") == (
        "| case | GFLOP/s | to torch | to best JAX peer | jaxlstm, ms "
        "| jaxlstm adjoint, ms | jaxlstm scan, ms | torch, ms | haiku, ms "
        "| keras, ms |\n"
        "| :--- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"
        "| grid-10-2-3-4 | 0.0 | 2.00x | 3.00x | 1.00 ± 0.10 | 1.02 ± 0.00 "
        "| 0.800 ± 0.000 | 2.00 ± 0.00 | 4.00 ± 0.00 | 3.00 ± 0.00 |\n"
        "| grid-20-2-3-4 | 0.0 | 0.50x | - | 12.3 ± 0.5 | - | 12.5 ± 0.0 "
        "| 6.17 ± 0.00 | - | - |\n"
        "| geometric mean |  | 1.00x | 3.00x |  |  |  |  |  |  |"
    )


def with_native():
    """Return the result of `made_up` with rows of the native engine and of traces."""
    a, plain = FIRST.name, made_up()
    more = ["jaxlstm native", "jaxlstm trace", "jaxlstm native trace"]
    plain["contenders"] = [*plain["contenders"], *more]
    plain["rows"] += [
        row(a, "jaxlstm native", "training", 0.0005),
        row(a, "jaxlstm", "forward", 0.001),
        row(a, "jaxlstm trace", "forward", 0.0012),
        row(a, "jaxlstm native", "forward", 0.0004),
        row(a, "jaxlstm native trace", "forward", 0.0006),
    ]
    return tables.Result.of(plain)


def test_native_has_its_own_ratios_and_is_one_of_the_engines_to_choose():
    result = with_native()
    heads, _, first, *_ = tables.times(result, [FIRST.name], "training").splitlines()
    assert "| to best JAX peer | native to torch | native to best JAX peer |" in heads
    assert "| 2.00x | 3.00x | 4.00x | 6.00x |" in first
    assert "grid-10-2-3-4 training | adjoint | native | 2.00" in tables.engine_choice(
        result
    )


def test_the_table_of_traces(made):
    assert tables.traces(with_native()) == (
        "| trace to forward | jaxlstm | jaxlstm native |\n"
        "| :--- | ---: | ---: |\n"
        "| grid-10-2-3-4 | 1.20x | 1.50x |"
    )
    assert tables.traces(made).count("\n") == 1  # only the header, so the page omits it


def test_the_tables_of_growth_and_compile_time(made):
    assert tables.growth(made) == (
        "| µs per step | T = 10 | T = 1,000 | last to first |\n"
        "| :--- | ---: | ---: | ---: |\n"
        "| jaxlstm | 10.0 | 10.5 | 1.05 |"
    )
    assert tables.compiling(made) == (
        "| gradient | T = 10, s | T = 1,000, s | last to first |\n"
        "| :--- | ---: | ---: | ---: |\n"
        "| jaxlstm | 1.00 ± 0.25 | 1.25 ± 0.00 | 1.25 |"
    )


def test_the_chosen_engine_is_compared_with_the_best_one(made):
    assert tables.engine_choice(made) == (
        "|  | chosen | best | chosen to best | within 10 % | same twice |\n"
        "| :--- | ---: | ---: | ---: | ---: | ---: |\n"
        "| grid-10-2-3-4 training | adjoint | scan | 1.25 | NO | 1.02 |\n"
        "| grid-20-2-3-4 training | scan | scan | 0.99 | yes | 1.01 |"
    )


def test_losses_are_listed(made):
    assert tables.losses(made) == ["grid-20-2-3-4, training: torch is 2.00x faster"]


POPULATION = Case("population", 10, 2, 3, 4, members=16)
STACK = Case("compile_stack", 10, 2, 3, 4, layers=4)
LIMITED = Case("limits", 10, 2, 3, 4)


def with_other_groups():
    """Return the result of `made_up` with limits, a population and a stack."""
    plain, a, stack = made_up(), LIMITED.name, STACK.name
    plain["cases"] |= {
        case.name: harness.case_to_json(case) for case in (LIMITED, POPULATION, STACK)
    }
    plain["contenders"] += ["jaxlstm scan in turn", "jaxlstm in turn"]
    plain["contenders"] += ["GEMM", "GEMM one thread", "copy"]
    plain["rows"] += [
        row(a, "jaxlstm", "training", 0.001),
        row(a, "GEMM", "training", 0.0004),
        row(a, "GEMM one thread", "training", 0.0008),
        row(a, "copy", "training", 0.0001),
        row(POPULATION.name, "jaxlstm", "training", 0.002),
        row(POPULATION.name, "jaxlstm in turn", "training", 0.001),
        row(POPULATION.name, "jaxlstm scan in turn", "training", 0.004),
        row(stack, "jaxlstm", "trace forward", 0.1),
        row(stack, "jaxlstm", "compile forward", 0.2),
        row(stack, "jaxlstm", "trace training", 0.3),
        row(stack, "jaxlstm", "compile training", 0.4),
        row(stack, "jaxlstm scan", "trace training", 0.2),
        row(stack, "jaxlstm scan", "compile training", 0.5),
    ]
    return tables.Result.of(plain)


def test_the_table_of_limits():
    result = with_other_groups()
    assert tables.limits(result, "training") == (
        "| case | share of limit | jaxlstm, ms | GEMM, ms | GEMM one thread, ms "
        "| copy, ms |\n"
        "| :--- | ---: | ---: | ---: | ---: | ---: |\n"
        "| limits-10-2-3-4 | 40 % | 1.00 ± 0.00 | 0.400 ± 0.000 "
        "| 0.800 ± 0.000 | 0.100 ± 0.000 |"
    )


def test_the_table_of_populations():
    result = with_other_groups()
    assert tables.populations(result) == (
        "| 16 members | vmap to best in turn | jaxlstm by vmap, ms "
        "| jaxlstm scan in turn, ms | jaxlstm in turn, ms |\n"
        "| :--- | ---: | ---: | ---: | ---: |\n"
        "| population-10-2-3-4 | 0.50x | 2.00 ± 0.00 | 4.00 ± 0.00 | 1.00 ± 0.00 |"
    )
    assert (
        "population-10-2-3-4, training: jaxlstm in turn is 2.00x faster"
        in tables.losses(result)
    )
    assert not any("GEMM" in line for line in tables.losses(result))


def test_the_table_of_tracing():
    assert tables.tracing(with_other_groups()) == (
        "| four layers | trace forward, ms | compile forward, ms "
        "| trace gradient, ms | compile gradient, ms | trace to scan |\n"
        "| :--- | ---: | ---: | ---: | ---: | ---: |\n"
        "| jaxlstm | 100 ± 0 | 200 ± 0 | 300 ± 0 | 400 ± 0 | 1.50x |\n"
        "| jaxlstm scan | - | - | 200 ± 0 | 500 ± 0 | 1.00x |"
    )


def with_torch_spread(half):
    """Return the result of `made_up` with this half-width of torch's first time."""
    a, plain = FIRST.name, made_up()
    plain["rows"] = [
        r for r in plain["rows"] if (r["case"], r["contender"]) != (a, "torch")
    ]
    plain["rows"].append(row(a, "torch", "training", 0.002, half))
    return tables.Result.of(plain)


def test_noisy_times_are_listed(made):
    assert tables.noisy(made) == []
    assert tables.noisy(with_torch_spread(0.0004)) == [
        "grid-10-2-3-4, training: torch by 20 %"
    ]


def test_stalled_times_have_no_ratio():
    """They would exaggerate our speed; the time itself is still in the table."""
    noisy, stalled = (with_torch_spread(half) for half in (0.0005, 0.0007))
    assert "| 2.00x | 3.00x |" in tables.times(noisy, [FIRST.name], "training")
    lines = tables.times(stalled, stalled.cases("grid"), "training").splitlines()
    assert "| - | 3.00x |" in lines[2]
    assert "| 2.00 ± 0.70 |" in lines[2]
    assert "| 0.50x | 3.00x |" in lines[-1]  # the mean of the known ratios
    assert pictures._to_torch(noisy, FIRST.name, "training", "jaxlstm") == 2.0
    assert pictures._to_torch(stalled, FIRST.name, "training", "jaxlstm") == 0.0


def test_text_outside_of_the_markers_is_kept(tmp_path):
    page, place = tmp_path / "README.md", tmp_path / "results"
    place.mkdir()
    (place / "two.json").write_text(json.dumps(made_up()))
    page.write_text(f"before\n\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    for _ in range(2):  # the second time finds its own page
        to_json = report.write([place / "two.json"], page=page)
    text = page.read_text()
    assert text.startswith(f"before\n\n{report.BEGIN}\n\n## two\n\n2026-11-22, 2 of 4 ")
    assert text.endswith(f"\n\n{report.END}\nafter\n")
    assert "old" not in text
    for expected in (
        "A Processor (avx2), 25.3 GB, Linux 6, Python 3.11.7. jaxlstm 0.1.0; commit",
        "Settings: `XLA_FLAGS=--x`.",
        "- grid-20-2-3-4, training: torch is 2.00x faster",
        "- onnxruntime: not installed",
        "- haiku: why (grid-10-2-3-4 training, grid-20-2-3-4 training)",
        "| grid-10-2-3-4 | 2.5 |",
        "(results/two-ratio.png)",
        "(results/two-growth.png)",
    ):
        assert expected in text
    assert "keras None" not in text
    assert "Forward" not in text  # nothing was measured of it
    pictures = {place / "two-ratio.png", place / "two-growth.png"}
    assert set(to_json) == {page, *pictures}
    for picture in pictures:
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert picture.stat().st_size < 100_000


def test_a_report_needs_results_and_markers(tmp_path):
    page = tmp_path / "README.md"
    page.write_text("no markers")
    with pytest.raises(ValueError, match="results: got none"):
        report.write([], page=page)
    with pytest.raises(ValueError, match="expected the lines"):
        report.write([tmp_path / "a.json"], page=page)


def test_the_page_of_the_repository_has_its_markers():
    text = report.PAGE.read_text()
    assert text.count(report.BEGIN) == text.count(report.END) == 1
    assert text.index(report.BEGIN) < text.index(report.END)
