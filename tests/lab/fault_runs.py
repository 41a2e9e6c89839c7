"""Long runs of faults, for a person to start; short forms are in the tests.

    export PYTHONPATH=src:tests
    python tests/lab/fault_runs.py kills 200         kill -9 at random instants
    python tests/lab/fault_runs.py operations 1      each file operation of a save
    python tests/lab/fault_runs.py flips 2000        random single-bit flips
    python tests/lab/fault_runs.py verbs 200         random verbs on one run

Each prints what it found and exits with 1 if a promise was broken. `--seed` repeats a
run. `operations N` takes every N-th operation.
"""

import argparse
import collections
import contextlib
import errno
import io
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tiny
from helpers import results

import jaxlstm as jl
from faults import ForkServer, counted, failing
from jaxlstm.lab import checkpoints, runs
from jaxlstm.lab._util.errors import LabError
from jaxlstm.lab.reports import report as reports


def configs(book: Path) -> dict[str, dict[str, Any]]:
    """Return three configs: one and two layers with dropout, and a GRU with zoneout."""
    one = tiny.config(book, keep_checkpoints=2)
    layers = {"layers": 2, "dropout": 0.3, "embedding_size": 6, "hidden_size": 10}
    gru = {"cell": {"name": "gru"}, "zoneout_h": 0.1, "hidden_size": 10}
    return {
        "one layer": one,
        "two layers": one | {"model": layers},
        "gru": one | {"model": gru | {"embedding_size": 6}},
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


@contextlib.contextmanager
def without_pictures() -> Iterator[None]:
    """Draw no plots, which take most of the time of a tiny run."""
    before, reports.write_plots = reports.write_plots, lambda *a, **k: []
    try:
        yield
    finally:
        reports.write_plots = before


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

    expected, seconds = {}, {}
    for name, config in configs(place / "book.txt").items():
        for attempt in ("first", "cached"):  # the second one has a warm compile cache
            run, begun = place / f"{name} {attempt}", time.monotonic()
            process = start(config, run)
            _, error = process.communicate()
            assert process.returncode == 0, error.decode()
            seconds[name] = time.monotonic() - begun
            expected.setdefault(name, results(run))
            assert results(run) == expected[name], f"{name}: two runs differ"
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
            steps = checkpoints.steps(run / "checkpoints") if run.exists() else []
            where[f"{name}, newest checkpoint {max(steps, default=None)}"] += 1
        _, error = process.communicate()
        label = f"seed {seed}, kill {done}, {name}"
        assert process.returncode == 0, f"{label}: {error.decode()}"
        assert results(run) == expected[name], f"{label}: other bits"
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


def flips(place: Path, count: int, seed: int) -> dict[str, int]:
    """Flip one random bit of a random file of an unfinished run, and resume it.

    Returns:
        How often the run was refused, or finished with the same numbers.

    Raises:
        AssertionError: it finished with other numbers, or a sentence is missing.
    """
    draw, found = random.Random(seed), collections.Counter()
    place.mkdir(exist_ok=True)
    (place / "book.txt").write_text(tiny.text())
    train(configs(place / "book.txt")["one layer"], place / "whole")
    expected = results(place / "whole")
    unfinished(place / "whole")
    for number in range(count):
        run = Path(shutil.copytree(place / "whole", place / "flipped", symlinks=True))
        files = [path for path in run.rglob("*") if path.is_file()]
        files = sorted(p for p in files if p.stat().st_size and not p.is_symlink())
        top = draw.choice(sorted({path.relative_to(run).parts[0] for path in files}))
        path = draw.choice([p for p in files if p.relative_to(run).parts[0] == top])
        bit = draw.randrange(8 * path.stat().st_size)
        data = bytearray(path.read_bytes())
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        name = path.relative_to(run)
        label = f"seed {seed}, flip {number}: bit {bit} of {name}"
        if message := attempt(lambda run=run: resume(run)):
            assert len(message) > 20, f"{label}: {message}"
            outcome = "refused"
        else:
            assert results(run) == expected, f"{label}: other numbers"
            outcome = "same numbers"
        found[f"{name.parts[0]}: {outcome}"] += 1
        shutil.rmtree(run)
    return dict(found)


# -- sequences of verbs -------------------------------------------------------


def verbs(place: Path, count: int, seed: int) -> dict[str, int]:
    """Apply random verbs and changes to one run; each works or says why it does not.

    Raises:
        AssertionError: a run that was not edited ends with other numbers.
        Exception: an error that is no `LabError`.
    """
    draw, found = random.Random(seed), collections.Counter()
    place.mkdir(exist_ok=True)
    book = place / "book.txt"
    book.write_text(tiny.text())
    config = configs(book)["one layer"]
    train(config, place / "whole")
    expected, run = results(place / "whole"), place / "run"

    def restart() -> None:
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(place / "whole", run, symlinks=draw.random() < 0.5)
        unfinished(run)

    def move() -> None:
        run.rename(place / "elsewhere")
        shutil.copytree(place / "elsewhere", run, ignore_dangling_symlinks=True)
        shutil.rmtree(place / "elsewhere")

    def move_data() -> None:
        other = place / f"book{draw.randrange(3)}.txt"
        shutil.copy(book, other)
        resume(run, f"data.path={other}")

    def delete() -> None:
        names = [
            "state.json",
            "metrics.jsonl",
            "log.txt",
            "env.json",
            "checkpoints/best",
        ]
        (run / draw.choice(names)).unlink(missing_ok=True)

    def edit() -> None:
        path = run / draw.choice(["config.yaml", "metrics.jsonl", "state.json"])
        if path.exists():
            path.write_bytes(path.read_bytes().replace(b"0", b"1", 1))

    acts: dict[str, Callable[[], object]] = {
        "restart": restart,
        "resume": lambda: resume(run),
        "move": move,
        "move data": move_data,
        "delete": delete,
        "edit": edit,
        "load": lambda: jl.lab.load(run, report=lambda text: None).evaluate(),
        "sample": lambda: jl.lab.load(run, report=lambda text: None).sample("the "),
        "more": lambda: resume(run, "training.steps=50"),
    }
    restart()
    touched = False
    for _ in range(count):
        name = draw.choice(list(acts))
        message = attempt(acts[name])
        assert touched or not message, f"seed {seed}: {name}: {message}"
        found[f"{name}: {'refused' if message else 'done'}"] += 1
        touched = name != "restart" and (touched or name in ("delete", "edit", "more"))
        if name == "resume" and not touched:
            assert results(run) == expected, f"seed {seed}: other numbers"
    return dict(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("what", choices=["kills", "operations", "flips", "verbs"])
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    chosen = parser.parse_args()
    print(f"seed {chosen.seed}", flush=True)
    act = globals()[chosen.what]
    with tempfile.TemporaryDirectory() as place, without_pictures():
        begun = time.monotonic()
        found = act(Path(place), chosen.count, chosen.seed)
        print(found or "", f"{time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    main()
