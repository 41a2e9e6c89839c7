"""Long runs of faults, for a person to start; short forms are in the tests.

    export PYTHONPATH=src:tests
    python tests/lab/fault_runs.py kills 200         kill -9 at random instants
    python tests/lab/fault_runs.py operations 1      each file operation of a save
    python tests/lab/fault_runs.py flips 2000        random single-bit flips
    python tests/lab/fault_runs.py loop 30           train, kill, read, for 30 minutes

Each prints what it found and exits with 1 if a promise was broken. `--seed` repeats a
run. `operations N` takes every N-th operation. Sequences of verbs are in test_verbs.
"""

import argparse
import collections
import contextlib
import errno
import gc
import io
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tiny
from helpers import results
from warm import warm

import jaxlstm as jl
from faults import ForkServer, Killed, counted, failing, killed
from jaxlstm.interop.trees import named_leaves
from jaxlstm.lab import checkpoints, runs
from jaxlstm.lab._util.errors import LabError


def configs(book: Path) -> dict[str, dict[str, Any]]:
    """Return configs: layers with dropout, a GRU with zoneout, and a population."""
    one = tiny.config(book, keep_checkpoints=2)
    layers = {"layers": 2, "dropout": 0.3, "embedding_size": 6, "hidden_size": 10}
    gru = {"cell": {"name": "gru"}, "zoneout_h": 0.1, "hidden_size": 10}
    return {
        "one layer": one,
        "two layers": one | {"model": layers},
        "gru": one | {"model": gru | {"embedding_size": 6}},
        "population": one | {"population": {"seeds": 2}},
    }


def train(config: dict[str, Any], run: Path) -> None:
    jl.lab.train(config, run=run, sink=tiny.RecordingSink())


def resume(run: Path, *overrides: str) -> list[str]:
    """Resume a run and return the messages."""
    sink = tiny.RecordingSink()
    jl.lab.resume(run, overrides=overrides, sink=sink)
    return sink.messages


def attempt(act: Callable[[], object]) -> str:
    """Return "" if a call succeeds, or the message of its `LabError`."""
    try:
        act()
    except LabError as error:
        return str(error) or "an error without a message"
    return ""


def leftovers(run: Path) -> list[str]:
    """Return the hidden files of a run besides its lock, which should not remain."""
    hidden = [path for path in run.rglob(".*") if path.name != ".lock"]
    return [str(path.relative_to(run)) for path in hidden]


def readings(run: Path) -> dict[str, Any]:
    """Return what each verb reads from a finished run, or its error."""
    messages: list[str] = []

    def report(text: str) -> None:
        if "is its best member" not in text and "is a population" not in text:
            messages.append(text.replace(str(run), "RUN"))

    def weights(trained: Any) -> Any:
        path = trained.run / "weights.safetensors"
        return named_bytes(runs.load_weights(path, trained.params))

    readers: dict[str, Callable[[Any], Any]] = {
        "params": lambda trained: (trained.step, named_bytes(trained.params)),
        "metrics": lambda trained: trained.metrics(),
        "weights": weights,
        "evaluate": lambda trained: trained.evaluate(),
        "sample": lambda trained: trained.sample("the ", length=20),
    }
    found: dict[str, Any] = {}
    for name, read in readers.items():
        try:
            found[name] = read(jl.lab.load(run, report=report))
        except LabError as error:
            found[name] = error
    return found | {"messages": set(messages)}


def named_bytes(tree: Any) -> dict[str, bytes]:
    """Return the bytes of each leaf by its path."""
    leaves = named_leaves(tree).items()
    return {path: np.asarray(leaf).tobytes() for path, leaf in leaves}


def compared(found: dict[str, Any], expected: dict[str, Any], label: str) -> str:
    """Return "refused", "told" or "same" for what was read of a damaged run.

    Raises:
        AssertionError: a value differs and no message says so.
    """
    errors = [value for value in found.values() if isinstance(value, LabError)]
    assert all(len(str(error)) > 20 for error in errors), f"{label}: {errors}"
    told = found["messages"] - expected["messages"]
    for name in found.keys() - {"messages"}:
        same = isinstance(found[name], LabError) or found[name] == expected[name]
        assert same or told, f"{label}: {name} differs without a word"
    return "refused" if errors else "told" if told else "same"


# -- kill -9 at random instants -----------------------------------------------

_CHILD = """
import sys, tiny
from pathlib import Path
import jaxlstm as jl
from jaxlstm.lab.reports import report
report.write_plots = lambda *a, **k: []
jl.lab.train(eval(sys.argv[1]), run=sys.argv[2], resume="auto",
             sink=tiny.RecordingSink())
"""


def kills(place: Path, count: int, seed: int) -> None:
    """Kill trainings until `count` were killed; compare each with an unkilled one.

    Raises:
        AssertionError: the bits differ, a run directory cannot be read, or temporary
            files remain.
    """
    draw, done = random.Random(seed), 0
    (place / "book.txt").write_text(tiny.text())
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "JAX_COMPILATION_CACHE_DIR": str(place / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }

    def start(config: dict[str, Any], run: Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-c", _CHILD, repr(config), str(run)],
            env=environment,
            stderr=subprocess.PIPE,
        )

    def bits(run: Path) -> dict[str, Any]:
        """Return the results of a run, and of each member of a population."""
        members = sorted((run / "members").glob("*"))
        return {"run": results(run)} | {path.name: results(path) for path in members}

    expected, seconds = {}, {}
    for name, config in configs(place / "book.txt").items():
        for attempt in ("first", "cached"):  # the second one has a warm compile cache
            run, begun = place / f"{name} {attempt}", time.monotonic()
            process = start(config, run)
            _, error = process.communicate()
            assert process.returncode == 0, error.decode()
            seconds[name] = time.monotonic() - begun
            expected.setdefault(name, bits(run))
            assert bits(run) == expected[name], f"{name}: two runs differ"
    print(f"seconds of a run: {seconds}", flush=True)
    where = collections.Counter()
    while done < count:
        name, config = draw.choice(list(configs(place / "book.txt").items()))
        run = place / "killed"
        shutil.rmtree(run, ignore_errors=True)
        while True:
            process = start(config, run)
            with contextlib.suppress(subprocess.TimeoutExpired):
                # Half of the first second is Python's start; kills there prove little.
                limit = draw.uniform(0.3, 1.1) * seconds[name]
                process.wait(limit if done < count else None)
            if process.poll() is not None:
                break
            process.send_signal(signal.SIGKILL)
            process.communicate()
            done += 1
            if done % 20 == 0:
                print(f"{done} kills", flush=True)
            steps = checkpoints.steps(run / "checkpoints") if run.exists() else []
            where[f"{name}, newest checkpoint {max(steps, default=None)}"] += 1
        _, error = process.communicate()
        label = f"seed {seed}, kill {done}, {name}"
        assert process.returncode == 0, f"{label}: {error.decode()}"
        assert bits(run) == expected[name], f"{label}: other bits"
        assert not leftovers(run), f"{label}: {leftovers(run)}"
        assert len(checkpoints.steps(run / "checkpoints")) <= 3
    for line, times in sorted(where.items()):
        print(f"{times:4d} kills: {line}")
    print(f"{done} kills: all digests equal")


# -- each file operation of a save --------------------------------------------

_SAVE = """
import os
from pathlib import Path
from faults import dying, numbered
from jaxlstm.lab import checkpoints, runs
from jaxlstm.lab.checkpoints import store
def call(task):
    root, at = task
    with dying(Path(root), at):
        save(Path(root))
def save(root):
    log = runs.MetricsLog(runs.Run(root))
    log.append({"step": 3, "split": "train", "loss": 1.0})
    meta = {"step": 3, "best": 3, "log": log.mark._asdict()}
    checkpoints.save(root / "checkpoints", 3, numbered(3), meta)
    checkpoints.prune(root / "checkpoints", 1)
    checkpoints.link_best(root / "checkpoints", 3)
    runs.export_weights(root / "weights.safetensors", numbered(3))
    state = runs.state.read_state(runs.Run(root))
    runs.write_config(runs.Run(root), "seed: 1", overrides=[], total_steps=9)
    runs.finish(runs.Run(root), 3)
"""


def operations(place: Path, stride: int, seed: int) -> None:
    """Kill, or fail with ENOSPC and EIO, at each file operation of a save.

    Raises:
        AssertionError: a checkpoint is lost or half, a message lacks the reason, or the
            next writer leaves temporary files.
    """
    from faults import numbered

    namespace: dict[str, Any] = {}
    exec(_SAVE, namespace)
    save, root = namespace["save"], place / "run"
    draw = random.Random(seed)

    def fresh() -> None:
        shutil.rmtree(root, ignore_errors=True)
        runs.create(root, name="x", config="seed: 0", total_steps=3)
        for step in (1, 2):
            meta = {"step": step, "best": 1}
            checkpoints.save(root / "checkpoints", step, numbered(step), meta)

    def check(label: str) -> None:
        run = runs.open(root)
        run.clean()
        checkpoints.clean(run.checkpoints)
        assert not leftovers(root), f"{label}: {leftovers(root)}"
        newest = checkpoints.latest(run.checkpoints, numbered(0), lambda text: None)
        assert newest is not None, label
        assert newest[0] in (2, 3), label
        for step in checkpoints.steps(run.checkpoints):
            restored, _ = checkpoints.restore(run.checkpoints, step, numbered(0))
            assert all((restored[k] == v).all() for k, v in numbered(step).items())
        best = checkpoints.best(run.checkpoints)
        assert best == (3 if newest[0] == 3 else 1), f"{label}: best {best}"
        digest = runs.state.read_state(run).configs
        content = jl.lab.config.loading.content(run.config)
        assert runs.binding._digest(content) in digest, f"{label}: config"

    fresh()
    with counted(root) as all_operations:
        save(root)
    server, found = ForkServer(_SAVE), collections.Counter()
    for at in range(draw.randrange(stride), all_operations.count, stride):
        fresh()
        server.start((str(root), at))
        found[f"killed ({server.wait()})"] += 1
        check(f"operation {at} killed")
        for code in (errno.ENOSPC, errno.EIO):
            for once in (True, False):
                fresh()
                label = f"operation {at}, {os.strerror(code)}, once: {once}"
                noise = io.StringIO()
                with (
                    contextlib.redirect_stderr(noise),
                    failing(root, at, code, once=once),
                ):
                    message = attempt(lambda: save(root))
                assert not message or os.strerror(code) in message, label
                assert not noise.getvalue(), f"{label}: {noise.getvalue()}"
                outcome = "refused" if message else "no effect"
                found[f"{errno.errorcode[code]} {outcome}"] += 1
                check(label)
    server.close()
    print(
        f"{all_operations.count} operations; every {stride}. was tried: {dict(found)}"
    )


# -- flipped bits -------------------------------------------------------------


def unfinished(whole: Path) -> None:
    """Remove the last checkpoint of a finished run, as if it had been killed."""
    shutil.rmtree(max((whole / "checkpoints").glob("[0-9]*")))
    run = runs.open(whole)
    runs.state.write_state(run, runs.state.read_state(run)._replace(finished=None))


def flip(run: Path, draw: random.Random) -> tuple[Path, int]:
    """Flip one random bit; each file or folder at the top is as likely as another.

    Returns:
        The relative path of the file, and the number of the bit.
    """
    files = [path for path in run.rglob("*") if path.is_file()]
    files = sorted(p for p in files if p.stat().st_size and not p.is_symlink())
    top = draw.choice(sorted({path.relative_to(run).parts[0] for path in files}))
    path = draw.choice([p for p in files if p.relative_to(run).parts[0] == top])
    bit = draw.randrange(8 * path.stat().st_size)
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)
    return path.relative_to(run), bit


def flips(place: Path, count: int, seed: int) -> dict[str, int]:
    """Flip one random bit of a random file of a run; then resume or read the run.

    Half of the runs are unfinished, and are resumed and then read. The others are
    finished, every sixth of all a population, and are read. Everything that is read
    must equal what is read of the undamaged run, or an error or a message must say so.

    Returns:
        How often the damage was refused, told, or had no effect, for each file.

    Raises:
        AssertionError: a number differs without a word, or a sentence is missing.
    """
    draw, found = random.Random(seed), collections.Counter()
    place.mkdir(exist_ok=True)
    (place / "book.txt").write_text(tiny.text())
    given = configs(place / "book.txt")
    train(given["one layer"], place / "finished")
    train(given["population"], place / "population")
    expected = {name: readings(place / name) for name in ("finished", "population")}
    shutil.copytree(place / "finished", place / "unfinished", symlinks=True)
    unfinished(place / "unfinished")
    kinds = ("unfinished", "finished") * 2 + ("unfinished", "population")
    for number in range(count):
        kind = kinds[number % len(kinds)]
        run = Path(shutil.copytree(place / kind, place / "run", symlinks=True))
        name, bit = flip(run, draw)
        label = f"seed {seed}, flip {number}: bit {bit} of {name} of {kind}"
        if kind == "unfinished":
            # What a resumed run says is compared with what an undamaged one says.
            message, outcome = attempt(lambda run=run: resume(run)), "refused"
            assert not message or len(message) > 20, f"{label}: {message}"
            if not message:
                same = results(run) == results(place / "finished")
                assert same, f"{label}: other numbers"
                outcome = compared(readings(run), expected["finished"], label)
        else:
            outcome = compared(readings(run), expected[kind], label)
        found[f"{kind} {name.parts[0]}: {outcome}"] += 1
        shutil.rmtree(run)
        if number % 100 == 99:
            print(f"{number + 1} flips: none silent", flush=True)
    return dict(sorted(found.items()))


# -- leaks ---------------------------------------------------------------------


def loop(place: Path, minutes: float, seed: int) -> dict[str, int]:
    """Train, kill, resume, evaluate and sample in one process for some minutes.

    Each minute prints the memory of the process, its open files, and the files that
    the runs have left.

    Raises:
        AssertionError: one of them grows, or a resumed run has other bits.
    """
    draw, begun, cycles = random.Random(seed), time.monotonic(), 0
    (place / "book.txt").write_text(tiny.text())
    expected, operations = {}, {}
    given = configs(place / "book.txt")
    del given["population"]
    for name, config in given.items():
        with counted(place / "run") as all_operations:
            train(config, place / "run")
        expected[name] = results(place / "run")
        operations[name] = all_operations.count
        shutil.rmtree(place / "run")
    rows: list[tuple[int, int, int]] = []
    while time.monotonic() - begun < 60 * minutes:
        name = draw.choice(list(given))
        run, copy = place / "run", place / "copy"

        def act(name: str = name, run: Path = run) -> None:
            sink = tiny.RecordingSink()
            jl.lab.train(given[name], run=run, resume="auto", sink=sink)

        while draw.random() < 0.7:
            try:
                with killed(run, draw.randrange(operations[name]), copy):
                    act()
            except Killed:
                shutil.rmtree(run, ignore_errors=True)
                if copy.exists():
                    copy.rename(run)
        act()
        assert results(run) == expected[name], f"seed {seed}, {name}: other bits"
        assert not leftovers(run), f"seed {seed}, {name}: {leftovers(run)}"
        read = readings(run)
        errors = [value for value in read.values() if isinstance(value, LabError)]
        assert not errors, errors
        shutil.rmtree(run)
        cycles += 1
        if time.monotonic() - begun >= 60 * (len(rows) + 1):
            files = [*place.rglob("*"), *Path(tempfile.gettempdir()).glob("*jaxlstm*")]
            handles = len(list(Path("/proc/self/fd").iterdir()))
            rows.append((resident(), handles, len(files)))
            memory, handles, left = rows[-1]
            print(
                f"minute {len(rows):2d}: {cycles} cycles, {memory} MB resident, "
                f"{handles} open files, {left} files on disk",
                flush=True,
            )
    if len(rows) >= 10:
        third = len(rows) // 3  # the first ones fill the caches of compiled programs
        early, late = rows[third], rows[-1]
        assert late[0] <= early[0] * 1.05 + 10, f"memory grows: {early} to {late} MB"
        assert late[1:] <= early[1:], f"files remain: {early} to {late}"
    return {"cycles": cycles}


def resident() -> int:
    """Return the resident memory of this process in MB, after a garbage collection."""
    gc.collect()
    text = Path("/proc/self/statm").read_text()
    return int(text.split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("what", choices=["kills", "operations", "flips", "loop"])
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    chosen = parser.parse_args()
    print(f"seed {chosen.seed}", flush=True)
    act = globals()[chosen.what]
    with tempfile.TemporaryDirectory() as place, warm():
        begun = time.monotonic()
        found = act(Path(place), chosen.count, chosen.seed)
        print(found or "", f"{time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    main()
