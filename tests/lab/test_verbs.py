"""Any sequence of verbs, kills, faults, moves and edits keeps a run right, or says why.

A state machine trains a run of 8 steps, kills it, fails its file operations, copies,
moves, edits and reads it. As long as nothing is edited, each verb works and the final
bits are those of an uninterrupted run. After an edit, other numbers need an error or a
message. `JAXLSTM_EXAMPLES=5000` sets the number of sequences.
"""

import contextlib
import errno
import functools
import itertools
import os
import random
import shutil
import signal
import stat
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
from helpers import results
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
)
from warm import warm

import jaxlstm as jl
from faults import Killed, counted, failing, killed
from jaxlstm.lab import checkpoints, runs
from jaxlstm.lab._util.errors import LabError

EXAMPLES = int(os.environ.get("JAXLSTM_EXAMPLES", "5"))
CPU_SECONDS = 5.0
WALL_SECONDS = 60

FILES = [
    "config.yaml",
    "state.json",
    "metrics.jsonl",
    "weights.safetensors",
    "overrides.txt",
    "env.json",
    "log.txt",
    "report.md",
    "checkpoints/best",
    *(f"checkpoints/{step:06d}/manifest.json" for step in (2, 4, 6, 8)),
    *(f"checkpoints/{step:06d}/arrays.safetensors" for step in (2, 4, 6, 8)),
]
FAULTS = st.one_of(
    st.none(),
    st.tuples(st.just("kill"), st.integers(0, 430)),
    st.tuples(st.just("kill"), st.integers(0, 430)),
    st.tuples(
        st.sampled_from([errno.ENOSPC, errno.EIO]), st.integers(0, 430), st.booleans()
    ),
)


def config(book: Path, steps: int) -> dict[str, Any]:
    """Return a config whose runs take a tenth of a second."""
    training = {"batch_size": 2, "window": 8, "steps_per_dispatch": 2}
    every = {"log_every": 2, "validate_every": 4, "checkpoint_every": 2}
    given = tiny.config(
        book,
        **{**training, **every},
        steps=steps,
        validation_streams=2,
        keep_checkpoints=2,
    )
    model = {"embedding_size": 3, "hidden_size": 4, "output_dropout": 0.2}
    return given | {"model": model}


class Whole:
    """An uninterrupted run of each number of steps, and what it says."""

    def __init__(self) -> None:
        memory = Path("/dev/shm")  # syncs of a disk take longer than the runs
        folder = memory if os.access(memory, os.W_OK) else None
        self.place = Path(tempfile.mkdtemp(prefix="verbs-", dir=folder))
        self.book = self.place / "book.txt"
        self.book.write_text(tiny.text(words=60))
        self.results: dict[int, dict[str, bytes]] = {}
        self.usual: set[str] = set()
        for steps in (8, 12):
            run = self.place / str(steps)
            with counted(run) as operations:
                self.record(lambda run=run, n=steps: train(config(self.book, n), run))
            self.operations = operations.count
            self.record(lambda run=run: resume(run))
            self.results[steps] = results(run)
        self.evaluated: dict[int, dict[str, float]] = {}
        self.foreign = self.place / "foreign"
        train(config(self.book, 8) | {"seed": 7}, self.foreign)

    def record(self, act: Callable[[], list[str]]) -> None:
        self.usual |= {plain(message) for message in act()}


def plain(message: str) -> str:
    """Return the first words of a message, without digits and paths."""
    words = "".join("0" if c.isdigit() else c for c in message).split()
    return " ".join(word for word in words[:6] if "/" not in word)


def train(given: Any, run: Path) -> list[str]:
    sink = tiny.RecordingSink()
    jl.lab.train(given, run=run, resume="auto", sink=sink)
    return sink.messages


def resume(run: Path, *overrides: str, sink: Any = None) -> list[str]:
    sink = sink or tiny.RecordingSink()
    jl.lab.resume(run, overrides=overrides, sink=sink)
    return sink.messages


class StoppingSink(tiny.RecordingSink):
    """A sink that sends SIGTERM to the process at its first record."""

    def log(self, record: Any) -> None:
        """Record it."""
        if not self.records and signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
            os.kill(os.getpid(), signal.SIGTERM)
        super().log(record)


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Fail a block that takes too much CPU time, or hangs."""

    def hang(*args: Any) -> None:
        raise TimeoutError(f"the call took {WALL_SECONDS} s")

    before, begun = signal.signal(signal.SIGALRM, hang), time.process_time()
    signal.alarm(WALL_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert time.process_time() - begun < CPU_SECONDS


def when(condition: Callable[[Any], bool]) -> Callable[..., Any]:
    """Skip a rule if the condition fails.

    Conditions read the disk, where a kill leaves what the threads of a save had done.
    `hypothesis.stateful.precondition` would have to hold at each repetition.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def run(self: Any, **drawn: Any) -> None:
            if condition(self):
                function(self, **drawn)

        return run

    return decorate


class Verbs(RuleBasedStateMachine):
    """One run directory, and what is known of it."""

    whole: Whole
    total_rules = itertools.count()

    def __init__(self) -> None:
        super().__init__()
        self.place = self.whole.place / "example"
        self.place.mkdir()
        self.run, self.names = self.place / "run", itertools.count()
        self.book, self.steps = self.whole.book, 8
        self.edits, self.backup = 0, self.place / "backup"

    def teardown(self) -> None:
        shutil.rmtree(self.place)

    # -- calls --------------------------------------------------------------------

    def call(self, act: Callable[[], list[str]], fault: Any = None) -> str | None:
        """Call a verb, with a fault; return its error, or None after a success."""
        next(self.total_rules)
        copy = self.place / "killed"
        block: Any = contextlib.nullcontext()
        if fault and fault[0] == "kill":
            block = killed(self.run, fault[1], copy)
        elif fault:
            block = failing(self.run, fault[1], fault[0], once=fault[2])
        try:
            with limited(), block:
                self.messages = act()
        except Killed:
            shutil.rmtree(self.run, ignore_errors=True)
            if copy.exists():
                copy.rename(self.run)
            self.read_config()
            return "killed"
        except LabError as caught:
            error = str(caught)
        else:
            return None
        assert len(error) > 20, error
        self.read_config()
        return error

    def read_config(self) -> None:
        """Read how many steps the run has to make: a change may have been refused."""
        if not self.edits and runs.is_run(self.run):
            self.steps = jl.lab.config.load(self.run / "config.yaml").training.steps

    def check_finished(self, error: str | None) -> None:
        """Check a verb that trains to the end, without a fault."""
        if not self.edits:
            assert error is None, error
        if error is not None:
            return
        hidden = [p.name for p in self.run.rglob(".*") if p.name != ".lock"]
        assert not hidden, hidden
        assert runs.finished(runs.open(self.run)) is not None
        expected = self.whole.results.get(self.steps)
        if results(self.run) != expected:
            assert self.edits
            assert self.told(), "other numbers without a message"

    def told(self) -> set[str]:
        """Return the messages that an undamaged run does not give."""
        return {plain(message) for message in self.messages} - self.whole.usual

    # -- verbs --------------------------------------------------------------------

    @initialize(fault=FAULTS)
    def begin(self, fault: Any) -> None:
        self.train(fault)

    @rule(fault=FAULTS)
    def train(self, fault: Any) -> None:
        given = config(self.book, self.steps)
        error = self.call(lambda: train(given, self.run), fault)
        if fault is None:
            self.check_finished(error)

    @rule(fault=FAULTS)
    @when(lambda self: runs.is_run(self.run))
    def resume(self, fault: Any) -> None:
        error = self.call(lambda: resume(self.run), fault)
        if fault is None:
            self.check_finished(error)

    @rule(fault=FAULTS)
    @when(lambda self: runs.is_run(self.run) and not self.edits)
    def more_steps(self, fault: Any) -> None:
        self.steps = 12
        error = self.call(lambda: resume(self.run, "training.steps=12"), fault)
        if fault is None:
            self.check_finished(error)

    @rule()
    @when(lambda self: runs.is_run(self.run))
    def interrupt(self) -> None:
        error = self.call(lambda: resume(self.run, sink=StoppingSink()))
        if not self.edits and error is not None:
            assert "was stopped and saved" in error

    @rule()
    @when(lambda self: runs.is_run(self.run) and not self.edits)
    def resume_beside_a_writer(self) -> None:
        finished = runs.finished(runs.open(self.run))
        with runs.lock(runs.open(self.run)):
            error = self.call(lambda: resume(self.run))
        assert finished is not None or "is writing to this run" in str(error)

    @rule(verb=st.sampled_from(["evaluate", "sample", "metrics", "plot"]))
    @when(lambda self: runs.is_run(self.run))
    def read(self, verb: str) -> None:
        messages: list[str] = []

        def act() -> list[str]:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                read()
            return messages + [str(each.message) for each in caught]

        def read() -> None:
            if verb == "plot":
                jl.lab.plot([self.run])
                return
            trained = jl.lab.load(self.run, report=messages.append)
            found = getattr(trained, verb)()
            if verb == "evaluate":
                known = self.whole.evaluated.setdefault(trained.step, found)
                assert found == known or (self.edits and messages)

        kept = checkpoints.steps(self.run / "checkpoints")
        error = self.call(act)
        assert self.edits or not kept or error is None, error
        assert checkpoints.steps(self.run / "checkpoints") == kept

    @rule()
    @when(lambda self: runs.is_run(self.run) and not self.edits)
    def refused_change(self) -> None:
        """A refused call changes no file but the log."""
        other = self.place / "other.txt"
        other.write_text(tiny.text(seed=1, words=60))
        before = self.contents()
        changes = ["seed=3", "training.steps=some"]
        # Checkpoints have the hash of the data.
        if checkpoints.steps(self.run / "checkpoints"):
            changes.append(f"data.path={other}")
        for change in changes:
            overrides = "training.steps=24", change
            assert self.call(lambda o=overrides: resume(self.run, *o)), change
            assert self.contents() == before

    def contents(self) -> dict[str, bytes]:
        names = ("config.yaml", "state.json", "overrides.txt", "metrics.jsonl")
        paths = [self.run / name for name in names]
        return {path.name: path.read_bytes() for path in paths if path.exists()}

    # -- changes from outside -----------------------------------------------------

    @rule(links=st.booleans(), keep=st.booleans())
    @when(lambda self: self.run.exists())
    def copy(self, links: bool, keep: bool) -> None:
        old, self.run = self.run, self.place / f"copy{next(self.names)}"
        shutil.copytree(
            old,
            self.run,
            symlinks=links,
            ignore=lambda folder, names: [n for n in names if is_pipe(folder, n)],
            ignore_dangling_symlinks=True,
        )
        if not keep:
            shutil.rmtree(old)

    @rule()
    @when(lambda self: self.run.exists())
    def move(self) -> None:
        old, self.run = self.run, self.place / f"moved{next(self.names)}"
        old.rename(self.run)

    @rule(fault=FAULTS)
    @when(lambda self: runs.is_run(self.run) and not self.edits)
    def move_data(self, fault: Any) -> None:
        self.book = self.place / f"book{next(self.names)}.txt"
        shutil.copy(self.whole.book, self.book)
        override = f"data.path={self.book}"
        error = self.call(lambda: resume(self.run, override), fault)
        if fault is None:
            self.check_finished(error)
        elif error is not None:
            # The path that the run has recorded is the old or the new one.
            found = (
                jl.lab.config.load(self.run / "config.yaml")
                if runs.is_run(self.run)
                else None
            )
            self.book = Path(found.data.path) if found else self.whole.book

    @rule(
        name=st.sampled_from(FILES),
        kind=st.sampled_from(
            ["flip", "digit", "cut", "delete", "repeat", "foreign", "pipe", "folder"]
        ),
        seed=st.integers(0, 2**16),
    )
    @when(lambda self: runs.is_run(self.run) and self.edits < 2)
    def edit(self, name: str, kind: str, seed: int) -> None:
        path = self.run / name
        if not path.is_file():
            return
        if not self.edits:
            shutil.rmtree(self.backup, ignore_errors=True)
            shutil.copytree(self.run, self.backup, symlinks=True)
        self.edits += 1
        self.had_checkpoints = bool(checkpoints.steps(self.run / "checkpoints"))
        damage(path, kind, random.Random(seed), self.whole.foreign / name)

    @rule()
    @when(lambda self: self.edits)
    def undo(self) -> None:
        shutil.rmtree(self.run)
        self.backup.rename(self.run)
        self.edits = 0
        self.read_config()


def is_pipe(folder: str, name: str) -> bool:
    return stat.S_ISFIFO(Path(folder, name).lstat().st_mode)


def damage(path: Path, kind: str, draw: random.Random, foreign: Path) -> None:
    """Change a file as a disk, an editor or a wrong copy would."""
    data = bytearray(path.read_bytes())
    if kind == "flip" and data:
        bit = draw.randrange(8 * len(data))
        data[bit // 8] ^= 1 << bit % 8
    elif kind == "digit":
        places = [k for k, byte in enumerate(data) if chr(byte).isdigit()]
        if places:
            data[draw.choice(places)] = ord(draw.choice("0123456789"))
    elif kind == "cut":
        data = data[: draw.randrange(len(data) + 1)]
    elif kind == "repeat":
        lines = data.splitlines(keepends=True)
        data = b"".join([*lines, draw.choice(lines)] if lines else lines)
    elif kind == "foreign" and foreign.is_file():
        data = foreign.read_bytes()
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind != "delete":
        path.write_bytes(data)


@pytest.fixture(scope="module", autouse=True)
def whole():
    """The uninterrupted runs; each later call finds its program compiled."""
    with warm():
        Verbs.whole = Whole()
        yield
        shutil.rmtree(Verbs.whole.place)
    print(f"{next(Verbs.total_rules)} calls of verbs")


@pytest.mark.thorough
class TestVerbs(Verbs.TestCase):
    """Run the state machine."""

    settings = settings(
        max_examples=EXAMPLES,
        stateful_step_count=10,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
