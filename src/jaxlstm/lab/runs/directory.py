"""The run directory: creating and opening it, its config, its log and its progress.

    runs/quickstart-20261101-101500/
      config.yaml  overrides.txt  env.json  state.json  log.txt  metrics.jsonl
      checkpoints/000500/ ...  best -> 000400     weights.safetensors
      plots/*.png   report.md

A directory is a run once it holds `config.yaml`, which `create` writes last. Nothing in
`metrics.jsonl` depends on the clock. See `binding` for what ties the files together.
"""

import difflib
import os
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxlstm.lab._util.errors import BadInput
from jaxlstm.lab._util.files import reason
from jaxlstm.lab.checkpoints.retention import steps
from jaxlstm.lab.checkpoints.weights import export_weights as export_weights
from jaxlstm.lab.checkpoints.weights import load_weights as load_weights
from jaxlstm.lab.config.sections import expanded
from jaxlstm.lab.runs.binding import write_config
from jaxlstm.lab.runs.environment import write_environment
from jaxlstm.lab.runs.locking import lock
from jaxlstm.lab.runs.paths import Run, append_text
from jaxlstm.lab.runs.state import read_state


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
    """Create a new run directory and check that it is writable.

    Args:
        path: the directory; None for a new directory `parent/name-YYYYmmdd-HHMMSS`.
        name: start of the directory's name when `path` is None.
        config: the resolved config as YAML.
        total_steps: the requested number of training steps.
        overrides: the overrides from the command line, to be recorded.
        environment: the result of `describe_environment`.
        parent: directory that holds the runs created without a path.

    Returns:
        The new run.

    Raises:
        BadInput: the directory is not empty, or cannot be made or written.
        LabError: the disk fails later, or another process is creating the run.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "x")
        >>> run = create(path, name="x", config="seed: 0", total_steps=900)
        >>> open(path) == run, read_config(run), progress(run)
        (True, 'seed: 0', 'step 0 of 900')
    """
    try:
        run = Run(_make_directory(path) if path else _make_fresh(parent, name))
        run.checkpoints.mkdir(exist_ok=True)
    except OSError as error:
        raise BadInput(
            f"{path or parent}: cannot be written ({reason(error)}); choose another "
            "directory with --run"
        ) from error
    with lock(run):
        # Checked again under the lock: another process may have created the run.
        _require_unused(run)
        write_environment(run, environment or {})
        write_config(run, config, overrides=overrides, total_steps=total_steps)
    return run


def open(path: Path) -> Run:
    """Return the run in an existing directory.

    Raises:
        BadInput: the path is not a run directory, or one of its files is a directory
            or a pipe. The message suggests runs with a similar name, or the command
            that trains a config file.
    """
    run = Run(expanded(path))
    try:
        if run.config.is_file():
            _require_kinds(run)
            return run
        problem = _why_not_a_run(run.path)
    except (OSError, ValueError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"{path}: cannot be read ({reason(error)})") from error
    raise BadInput(f"{path}: {problem}")


def _require_kinds(run: Run) -> None:
    """Raise `BadInput` if a directory or a pipe is in the place of a file.

    Reading a pipe may not end, and a directory would be found after training only.
    """
    for path in run.files:
        if path.exists() and not path.is_file():
            got = "a directory" if path.is_dir() else "a pipe or a device"
            raise BadInput(f"{path}: got {got}, expected a file; move it away")
    for path in run.directories:
        if os.path.lexists(path) and not path.is_dir():
            raise BadInput(f"{path}: got a file, expected a directory; move it away")


def is_run(path: Path) -> bool:
    """Return whether `open` would return the run in `path`."""
    try:
        return Run(expanded(path)).config.is_file()
    except (OSError, ValueError):
        return False


def read_config(run: Run) -> str:
    """Return the resolved config of a run as YAML.

    Raises:
        BadInput: the file cannot be read as text.
    """
    try:
        return run.config.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{run.config}: cannot be read ({reason(error)})") from error


def read_overrides(run: Run) -> list[str]:
    """Return the recorded overrides, or an empty list if there is no record."""
    if not run.overrides.exists():
        return []
    return run.overrides.read_text(encoding="utf-8", errors="replace").splitlines()


def log(run: Run, message: str) -> None:
    """Append `message` to the log with the date and time.

    Raises:
        LabError: the file cannot be written.
    """
    append_text(run.log, f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {message}\n")


def finished(run: Run) -> int | None:
    """Return the step at which the run finished, or None if it has not."""
    return read_state(run).finished


def progress(run: Run) -> str:
    """Return the step of the newest checkpoint and the requested number of steps."""
    done = finished(run)
    reached = max([*steps(run.checkpoints), done or 0], default=0)
    total = read_state(run).total_steps
    return f"step {reached}" + (f" of {total}" if total is not None else "")


def _make_directory(path: Path) -> Path:
    """Create `path`, or accept an existing directory without a run in it."""
    if "\0" in str(path):
        raise BadInput(
            f"run directory: got {str(path)!r}, expected a path without null "
            "characters; choose another --run"
        )
    path.mkdir(parents=True, exist_ok=True)
    _require_unused(Run(path))
    return path


def _require_unused(run: Run) -> None:
    """Raise unless the directory is empty or holds only an interrupted `create`."""
    if is_run(run.path):
        again = shlex.join(["jaxlstm", "resume", str(run.path)])
        raise BadInput(
            f"{run.path}: got the directory of a run ({progress(run)}), expected an "
            f'empty one; resume the run with "{again}" or choose another --run'
        )
    names = sorted(item.name for item in run.path.iterdir())
    created = (run.checkpoints, run.state, run.overrides, run.environment)
    own = {path.name for path in created}
    foreign = [name for name in names if name[0] != "." and name not in own]
    if foreign or steps(run.checkpoints):
        raise BadInput(
            f"{run.path}: got a directory with {', '.join(names[:3])}, expected an "
            "empty one; choose another --run"
        )


def _make_fresh(parent: Path, name: str) -> Path:
    """Create a new directory named after `name` and the current time."""
    if not name or os.sep in name or name.startswith("."):
        raise BadInput(
            f"name: got {name!r}, expected the start of the name of a directory; use "
            'letters, digits, "-" and "_"'
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
    raise BadInput(
        f"{parent}: got 999 directories named {stem}, expected fewer; choose another "
        "name with --run"
    )


def _why_not_a_run(path: Path) -> str:
    if not path.exists():
        return f"does not exist{_similar_runs(path)}"
    if path.suffix in (".yaml", ".yml") and path.is_file():
        command = shlex.join(["jaxlstm", "train", str(path)])
        return f"got a config file, expected a run directory; train it with: {command}"
    got = "a directory without config.yaml" if path.is_dir() else "a file"
    return f"got {got}, expected a run directory{_similar_runs(path)}"


def _similar_runs(path: Path) -> str:
    """Return a suggestion of runs in the same folder with a similar name, or ""."""
    parent = path.parent
    names = [item.name for item in parent.iterdir()] if parent.is_dir() else []
    runs = [name for name in names if is_run(parent / name)]
    near = difflib.get_close_matches(path.name, runs, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(str(parent / n) for n in near)}?" * bool(near)
