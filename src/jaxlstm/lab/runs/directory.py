"""The run directory: what one training run leaves behind, and who may write to it.

    runs/quickstart-20261101-101500/
      config.yaml  overrides.txt  env.json  state.json  log.txt  metrics.jsonl
      checkpoints/000500/ ...  best -> 000400     weights.safetensors
      plots/*.png   report.md

`config.yaml` makes a directory a run and appears whole. `state.json` says how long
the run is to be and, at the end, that it is finished. Nothing in `metrics.jsonl`
depends on the clock. Importing this module does not import JAX.
"""

import difflib
import fcntl
import importlib.metadata
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jaxlstm.lab._util.errors import BadInput, LabError
from jaxlstm.lab._util.files import reason
from jaxlstm.lab.runs.metrics import append as append
from jaxlstm.lab.runs.metrics import read_metrics as read_metrics
from jaxlstm.lab.runs.metrics import truncate_metrics as truncate_metrics
from jaxlstm.lab.runs.paths import Run as Run
from jaxlstm.lab.runs.paths import append_text, write_text
from jaxlstm.lab.checkpoints.retention import steps
from jaxlstm.lab.checkpoints.weights import export_weights as export_weights
from jaxlstm.lab.checkpoints.weights import load_weights as load_weights

_VERSIONS = ("jaxlstm", "jax", "jaxlib", "numpy", "optax", "orbax-checkpoint")


def create(
    path: Path | None,
    *,
    name: str,
    config: str,
    total_steps: int,
    overrides: Sequence[str] = (),
    environment: Mapping[str, Any] | None = None,
    parent: Path = Path("runs"),
) -> Run:
    """Make a new run directory and find out at once whether it can be written.

    Args:
        path: where; None for `parent/name-YYYYmmdd-HHMMSS`, never one that exists.
        name: the beginning of the directory's name when `path` is None.
        config: the resolved config as YAML.
        total_steps: how long the run is to be.
        overrides: what the command line changed, for the record.
        environment: what `describe_environment` gave.
        parent: where runs without a path are gathered.

    Raises:
        BadInput: the directory holds something already, or cannot be made or written.
        LabError: the disk refuses later, or another process has just taken it.

    >>> import tempfile
    >>> place = Path(tempfile.mkdtemp(), "x")
    >>> run = create(place, name="x", config="seed: 0", total_steps=900)
    >>> open(place) == run, read_config(run), progress(run)
    (True, 'seed: 0', 'step 0 of 900')
    """
    try:
        run = Run(_claim(path) if path else _claim_fresh(parent, name))
        run.checkpoints.mkdir(exist_ok=True)
    except OSError as error:
        raise BadInput(
            f"{path or parent} cannot be written ({reason(error)}); choose another "
            "place with --run"
        ) from error
    with lock(run):
        _refuse_if_taken(run)
        write_config(run, config, overrides=overrides, total_steps=total_steps)
        write_environment(run, environment or {})
    return run


def open(path: Path) -> Run:
    """The run in a directory that `create` made.

    Raises:
        BadInput: there is none; runs of a similar name are suggested.
    """
    run = Run(Path(path))
    try:
        if run.config.is_file():
            return run
        near = _near_misses(run.path)
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} cannot be read ({reason(error)})") from error
    what = (
        "is no run (it has no config.yaml)" if run.path.exists() else "does not exist"
    )
    raise BadInput(f"{path} {what}{near}")


def is_run(path: Path) -> bool:
    """Whether `open` would find a run there."""
    try:
        return Run(Path(path)).config.is_file()
    except (OSError, ValueError):
        return False


@contextmanager
def lock(run: Run) -> Iterator[None]:
    """Be the only writer of a run until the block ends or the process dies.

    Raises:
        LabError: another process writes to it, or the directory is read-only.
    """
    descriptor = _open_lock(run)
    try:
        _take_lock(run, descriptor)
        yield
    finally:
        os.close(descriptor)


def read_config(run: Run) -> str:
    """The resolved config of a run, as YAML.

    Raises:
        BadInput: it cannot be read as text.
    """
    try:
        return run.config.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{run.config} cannot be read ({reason(error)})") from error


def write_config(
    run: Run, config: str, *, overrides: Sequence[str], total_steps: int
) -> None:
    """Record the config that the run follows from now on; it is not finished now.

    Raises:
        LabError: the disk refuses.
    """
    write_text(run.config, config)
    write_text(run.overrides, "".join(f"{line}\n" for line in overrides))
    write_text(run.state, _render({"total_steps": total_steps, "finished": None}))


def read_overrides(run: Run) -> list[str]:
    """What the command line changed; nothing if that was not recorded."""
    if not run.overrides.exists():
        return []
    return run.overrides.read_text(encoding="utf-8", errors="replace").splitlines()


def describe_environment(devices: Sequence[str]) -> dict[str, Any]:
    """Versions, Python and platform, to be kept beside the results.

    >>> describe_environment(["cpu:0"])["devices"]
    ['cpu:0']
    """
    installed = {}
    for name in _VERSIONS:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            installed[name] = None
    return {
        "versions": installed,
        "devices": list(devices),
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
    }


def write_environment(run: Run, environment: Mapping[str, Any]) -> None:
    """Write `env.json`.

    Raises:
        LabError: the disk refuses.
    """
    write_text(run.environment, _render(environment))


def log(run: Run, message: str) -> None:
    """Append `message` to the log, after the time of day.

    Raises:
        LabError: the disk refuses.
    """
    append_text(run.log, f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {message}\n")


def finish(run: Run, step: int) -> None:
    """Mark the run as complete at `step`; do it when everything else is written.

    Raises:
        LabError: the disk refuses.
    """
    write_text(run.state, _render(_read_state(run) | {"finished": step}))


def finished(run: Run) -> int | None:
    """The step at which the run was completed, or None while it is not."""
    return _read_state(run)["finished"]


def progress(run: Run) -> str:
    """How far the run came, in words: what its last checkpoint says."""
    done = finished(run)
    reached = max([*steps(run.checkpoints), done or 0], default=0)
    total = _read_state(run)["total_steps"]
    return f"step {reached}" + (f" of {total}" if total is not None else "")


def _claim(path: Path) -> Path:
    """Make `path`, or take it if it is an empty directory."""
    if "\0" in str(path):
        raise BadInput(f"{str(path)!r} is no path: it holds a null character")
    path.mkdir(parents=True, exist_ok=True)
    _refuse_if_taken(Run(path))
    return path


def _refuse_if_taken(run: Run) -> None:
    """Raise if a run is there already, or anything but a beginning of one."""
    if is_run(run.path):
        again = shlex.join(["jaxlstm", "resume", str(run.path)])
        raise BadInput(
            f"{run.path} already holds a run ({progress(run)}); resume it with "
            f'"{again}" or choose another --run'
        )
    names = sorted(item.name for item in run.path.iterdir())
    strange = [name for name in names if name[0] != "." and name != "checkpoints"]
    if strange or steps(run.checkpoints):
        raise BadInput(
            f"{run.path} is not empty (it holds {', '.join(names[:3])}); choose "
            "another --run"
        )


def _claim_fresh(parent: Path, name: str) -> Path:
    """Make a directory that nobody has, named after `name` and the time."""
    if not name or os.sep in name or name.startswith("."):
        raise BadInput(
            f"name {name!r} cannot begin the name of a directory; use letters, digits, "
            '"-" and "_"'
        )
    parent.mkdir(parents=True, exist_ok=True)
    stem = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    for number in range(1, 1000):
        path = parent / (stem if number == 1 else f"{stem}-{number}")
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path
    raise BadInput(f"{parent} has too many runs called {stem}; choose one with --run")


def _near_misses(path: Path) -> str:
    parent = path.parent
    there = [item.name for item in parent.iterdir()] if parent.is_dir() else []
    runs = [name for name in there if is_run(parent / name)]
    near = difflib.get_close_matches(path.name, runs, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(str(parent / n) for n in near)}?" * bool(near)


def _open_lock(run: Run) -> int:
    try:
        return os.open(run.path / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise LabError(
            f"{run.path} cannot be written ({reason(error)}), so it cannot be trained "
            "further; evaluate and sample only read it"
        ) from error


def _take_lock(run: Run, descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        writer = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip() or "?"
        raise LabError(
            f"{run.path} is being written by process {writer}; wait until that ends, "
            "or choose another --run"
        ) from None
    except OSError as error:
        raise LabError(
            f"{run.path} cannot be locked ({reason(error)}); its file system has no "
            "locks, so choose a --run on a local disk"
        ) from error
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)


def _read_state(run: Run) -> dict[str, Any]:
    """The state, or that of a run that has just begun if there is none."""
    unknown = {"total_steps": None, "finished": None}
    try:
        return unknown | json.loads(run.state.read_bytes())
    except FileNotFoundError:
        return unknown
    except (OSError, ValueError, TypeError) as error:
        raise LabError(
            f"{run.state} cannot be read ({reason(error)}); delete it to go on from "
            "the last checkpoint"
        ) from error


def _render(data: Mapping[str, Any]) -> str:
    return json.dumps(data, indent=2) + "\n"
