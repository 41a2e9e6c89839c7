"""Fault injection: file operations that fail, and processes that are killed.

Python reports every open, rename, mkdir, remove and link to an audit hook before the
operation; write and fsync are wrapped. The operations of a block can therefore be
counted, and any one of them can be made to fail or to kill the process. The trainer
uses no other way to write a file: checkpoints, too, are written by `os.write`.
"""

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

_EVENTS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.symlink"}


def numbered(step: int) -> dict[str, np.ndarray]:
    """Return a small tree whose values depend on `step`."""
    return {f"w{i}": np.full((40, 50), step + i, np.float32) for i in range(6)}


class Operations:
    """Counts the file operations below `root`, and calls `act` at number `at`.

    Other threads wait at their next operation until `act` has ended.
    """

    def __init__(self, root: Path, at: int, act: Callable[[], None], *, once: bool):
        self.root, self.at, self.act, self.once = str(root), at, act, once
        self.count = 0
        self._lock, self._acting = threading.RLock(), False

    def record(self, path: object) -> None:
        name = os.fsdecode(path) if isinstance(path, str | bytes) else ""
        if name.startswith(os.sep) and not name.startswith(self.root):
            return
        with self._lock:
            if self._acting:  # an operation of `act` itself
                return
            self.count += 1
            if self.count - 1 == self.at or (self.count > self.at and not self.once):
                self._acting = True
                try:
                    self.act()
                finally:
                    self._acting = False


_active: Operations | None = None


def _hook(event: str, arguments: tuple) -> None:
    if _active is not None and event in _EVENTS:
        _active.record(arguments[0])


sys.addaudithook(_hook)


@contextmanager
def _installed(operations: Operations) -> Iterator[Operations]:
    global _active
    fsync, write = os.fsync, os.write

    def recorded_fsync(descriptor: int) -> None:
        operations.record("")
        fsync(descriptor)

    def recorded_write(descriptor: int, data: object) -> int:
        if descriptor > 2:
            operations.record("")
        return write(descriptor, data)  # pyright: ignore[reportArgumentType]

    _active, os.fsync, os.write = operations, recorded_fsync, recorded_write
    try:
        yield operations
    finally:
        _active, os.fsync, os.write = None, fsync, write


def counted(root: Path):
    """Count the operations of a block without changing any."""
    return _installed(Operations(root, sys.maxsize, lambda: None, once=True))


def failing(root: Path, at: int, code: int, *, once: bool):
    """Make operation `at` of a block fail with `code`, or all from `at` on."""

    def fail() -> None:
        raise OSError(code, os.strerror(code))

    return _installed(Operations(root, at, fail, once=once))


def dying(root: Path, at: int):
    """Kill the process before operation `at` of a block."""
    kill = lambda: os.kill(os.getpid(), signal.SIGKILL)  # noqa: E731
    return _installed(Operations(root, at, kill, once=True))


class Killed(BaseException):
    """Ends a call as SIGKILL ends a process: no handler of errors catches it."""


def killed(root: Path, at: int, copy: Path):
    """End a block at operation `at` by `Killed`, and copy what SIGKILL would leave.

    No later operation of the block takes place, but locks are released. It takes a
    thousandth of the time of a process that is killed and started again.
    """

    def end() -> None:
        if not copy.exists() and root.exists():
            shutil.copytree(root, copy, symlinks=True)
        raise Killed

    return _installed(Operations(root, at, end, once=False))


class ForkServer:
    """A process that imports all modules once and forks a child for each call.

    A child runs `call(argument)`, where `call` is defined by the Python source `setup`.
    Only children run JAX computations, because JAX does not survive a fork.
    """

    _LOOP = """
import os, sys, warnings
warnings.simplefilter("ignore")
{setup}
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        call(eval(line))
        os._exit(0)
    print(child, flush=True)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""

    def __init__(self, setup: str):
        self.process = subprocess.Popen(
            [sys.executable, "-c", self._LOOP.format(setup=setup)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )

    def start(self, argument: object) -> int:
        """Fork a child that runs `call(argument)`, and return its process id."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f"{argument!r}\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def wait(self) -> int:
        """Return the exit code of the last child; negative for a signal."""
        assert self.process.stdout
        return int(self.process.stdout.readline())

    def close(self) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
