"""Faults where they happen: file operations that fail, and processes that die.

Python reports every open, rename, mkdir and remove to an audit hook before it is done,
whoever asks for it; fsync is wrapped. So the operations of a block can be counted, and
any one of them can be made to fail or be the last thing that its process does.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

_EVENTS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.symlink"}


def numbered(step: int) -> dict[str, np.ndarray]:
    """A small tree whose values tell which step it is of."""
    return {f"w{i}": np.full((40, 50), step + i, np.float32) for i in range(6)}


class Operations:
    """Counts the file operations below `root` and acts from the one numbered `at`."""

    def __init__(self, root: Path, at: int, act: Callable[[], None], *, once: bool):
        self.root, self.at, self.act, self.once = str(root), at, act, once
        self.count = 0

    def see(self, path: object) -> None:
        name = os.fsdecode(path) if isinstance(path, str | bytes) else ""
        if name.startswith(os.sep) and not name.startswith(self.root):
            return
        self.count += 1
        if self.count - 1 == self.at or (self.count > self.at and not self.once):
            self.act()


_watching: Operations | None = None


def _hook(event: str, arguments: tuple) -> None:
    if _watching is not None and event in _EVENTS:
        _watching.see(arguments[0])


sys.addaudithook(_hook)


@contextmanager
def _watched(operations: Operations) -> Iterator[Operations]:
    global _watching
    fsync = os.fsync

    def watched_fsync(descriptor: int) -> None:
        operations.see("")
        fsync(descriptor)

    _watching, os.fsync = operations, watched_fsync
    try:
        yield operations
    finally:
        _watching, os.fsync = None, fsync


def counted(root: Path):
    """Count the operations of a block, disturbing none."""
    return _watched(Operations(root, sys.maxsize, lambda: None, once=True))


def failing(root: Path, at: int, code: int, *, once: bool):
    """Let operation `at` of a block fail with `code`, or all from there on."""

    def fail() -> None:
        raise OSError(code, os.strerror(code))

    return _watched(Operations(root, at, fail, once=once))


def dying(root: Path, at: int):
    """Let the process be killed before operation `at` of a block."""
    kill = lambda: os.kill(os.getpid(), signal.SIGKILL)  # noqa: E731
    return _watched(Operations(root, at, kill, once=True))


class Nursery:
    """A process that has imported everything and forks a child for each call.

    The children run `setup.call(argument)` where `setup` is Python source that defines
    `call`. They may die as they like: JAX is never started in the nursery itself.
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
        """Fork a child that calls with `argument`; its process id."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f"{argument!r}\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def wait(self) -> int:
        """The exit code of the child started last; negative for a signal."""
        assert self.process.stdout
        return int(self.process.stdout.readline())

    def close(self) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
