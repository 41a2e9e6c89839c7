"""The files of a run that determine its numbers, and how each is bound to the run.

    state.json           identity of the run, hash of config.yaml, hash of itself
    config.yaml          its values have the hash in state.json
    checkpoints/000500/  meta: identity, config, best step, size and hash of the log;
                         every file has a hash
    metrics.jsonl        begins with the bytes whose hash the newest checkpoint has
    weights.safetensors  a hash of itself; written anew from the best checkpoint
    tokenizer.json       written anew from the newest checkpoint, which contains it

A difference is an error that names it. Nothing is determined by the other files, which
may be edited and deleted: log.txt, overrides.txt, env.json, report.md, plots/, the link
`best`, and the comments and the layout of config.yaml. The config is changed with
`jaxlstm resume RUN KEY=VALUE`.

Each of these may be deleted: state.json (identity and config are then those of the
newest checkpoint), metrics.jsonl (the log begins anew), a checkpoint (the one before it
is used). Runs of earlier versions have no identity; it is added when they are resumed.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jaxlstm.lab import config as configs
from jaxlstm.lab._util.errors import BadInput
from jaxlstm.lab.checkpoints.manifest import DamagedCheckpoint, read
from jaxlstm.lab.checkpoints.retention import directory_of, steps
from jaxlstm.lab.runs.metrics import Mark, begins_with, is_complete
from jaxlstm.lab.runs.paths import Run, write_bytes, write_text
from jaxlstm.lab.runs.state import State, new_identity, read_state, write_state

if TYPE_CHECKING:
    from jaxlstm.lab.config.base import RunConfig

Meta = Mapping[str, Any]


def bound_config(run: Run, report: Callable[[str], object]) -> "RunConfig":
    """Return the config of a run, after comparing it with what was recorded.

    Args:
        run: the run.
        report: receives a message if the file differs and cannot be verified.

    Raises:
        BadInput: the file is invalid, or was edited. The message names the keys.
    """
    config = configs.load(run.config)
    state, recorded = read_state(run), newest_config(run)
    if state.configs:
        if _digest(configs.content(run.config)) in state.configs:
            return config
        lines = configs.described(recorded or {}, config)
        raise BadInput(
            f"{run.config}: was edited after it was written ("
            f"{'; '.join(lines) or 'other values'}); undo the edit, and change the "
            "config with: jaxlstm resume RUN KEY=VALUE"
        )
    if recorded is None:
        return config
    lines = configs.described(recorded, config)
    if edited := configs.fixed(config, [line.partition(":")[0] for line in lines]):
        raise BadInput(
            f"{run.config}: differs from the newest checkpoint in {', '.join(edited)} "
            f"({'; '.join(lines)}); undo the edit"
        )
    if lines:
        report(f"{run.config}: differs from the newest checkpoint: {'; '.join(lines)}")
    return config


def write_config(
    run: Run,
    config: str,
    *,
    overrides: Sequence[str],
    total_steps: int,
    continued_from: int | None = None,
) -> None:
    """Record the config that the run follows from now on, and mark it unfinished.

    Args:
        run: the run.
        config: the resolved config as YAML.
        overrides: the overrides that led to it, to be recorded.
        total_steps: the requested number of steps.
        continued_from: the current step if the number of steps was raised.

    Raises:
        LabError: a file cannot be written.
    """
    state, digest = read_state(run), _digest(configs.content_of(config))
    state = state._replace(
        run=state.run or newest_identity(run) or new_identity(),
        configs=(*state.configs, digest) if run.config.exists() else (digest,),
        total_steps=total_steps,
        finished=None,
        continued_from=continued_from or state.continued_from,
    )
    write_state(run, state)
    write_text(run.overrides, "".join(f"{line}\n" for line in overrides))
    write_text(run.config, config)
    write_state(run, state._replace(configs=(digest,)))


def settle(run: Run, config: "RunConfig", *, log_from: int | None = None) -> State:
    """Complete the record of a run that was interrupted or deleted, and return it.

    Args:
        run: the run.
        config: its config.
        log_from: the current step if the log was deleted.

    Raises:
        LabError: the file cannot be written.
    """
    state = read_state(run)
    settled = state._replace(
        run=state.run or newest_identity(run) or new_identity(),
        configs=(_digest(configs.content(run.config)),),
        total_steps=config.training.steps,
        log_from=state.log_from if log_from is None else log_from,
    )
    if settled != state:
        write_state(run, settled)
    return settled


def write_files(
    run: Run, files: Mapping[str, str], report: Callable[[str], object]
) -> None:
    """Write the files that a task has for other programs, such as a tokenizer.

    Args:
        run: the run, whose checkpoints contain what these files say.
        files: texts by file name.
        report: receives a message about a file that was edited.

    Raises:
        LabError: a file cannot be written.
    """
    for name, text in files.items():
        path, content = run.path / name, text.encode()
        if path.is_file():
            if path.read_bytes() == content:
                continue
            report(f"{path}: was edited; it is written anew, as the run used it")
        write_bytes(path, content)


def finish(run: Run, step: int) -> None:
    """Mark the run as finished at `step`; call it after everything else is written.

    Raises:
        LabError: the file cannot be written.
    """
    write_state(run, read_state(run)._replace(finished=step))


def require_own_checkpoints(run: Run, config: "RunConfig") -> None:
    """Check that all readable checkpoints are those of this run.

    Raises:
        BadInput: one is of another run, or of a config that the run cannot have had.
    """
    identity = read_state(run).run or newest_identity(run)
    for step, meta in readable_meta(run):
        place, theirs = directory_of(run.checkpoints, step), meta.get("run")
        if theirs is not None and theirs != identity:
            raise BadInput(
                f"{place}: got a checkpoint of another run ({theirs}), expected one "
                f"of {run.path} ({identity}); move it away"
            )
        lines = configs.described(meta.get("config", {}), config)
        if other := configs.fixed(config, [line.partition(":")[0] for line in lines]):
            raise BadInput(
                f"{place}: got a checkpoint of another config ({', '.join(other)} "
                f"differ: {'; '.join(lines)}), expected one of {run.config}"
            )


def require_own_log(run: Run, step: int | None = None) -> Mark | None:
    """Check that the metrics are those that a checkpoint has recorded.

    Args:
        run: the run.
        step: the step of the checkpoint; None for the newest readable one.

    Returns:
        The size and hash of the log at the checkpoint; None if an earlier version wrote
        the checkpoint, or if the log was deleted.

    Raises:
        BadInput: the log was edited, shortened or reordered.
    """
    state = read_state(run)
    first = -1 if state.log_from is None else state.log_from
    marks = {
        found: Mark(**meta["log"])
        for found, meta in readable_meta(run)
        if "log" in meta and found > first and (step is None or found <= step)
    }
    if not marks or not run.metrics.exists():
        return None
    newest = max(marks) if step is None else step
    if newest not in marks:
        return None
    finished = step is None and state.finished is not None
    matches = is_complete if finished else begins_with
    if matches(run, marks[newest]):
        return marks[newest]
    same = max((s for s, mark in marks.items() if begins_with(run, mark)), default=0)
    raise BadInput(
        f"{run.metrics}: was edited: it differs from the log of checkpoint "
        f"{newest:06d} after step {same}; undo the edit, or delete the file to go on "
        "with a new log"
    )


def deleted_log(run: Run) -> str | None:
    """Return a message if the checkpoints record a log that was deleted."""
    recorded = any(meta.get("log", {}).get("size") for _, meta in readable_meta(run))
    if run.metrics.exists() or not recorded:
        return None
    return (
        f"{run.metrics} was deleted: the losses of this run are lost; its checkpoints "
        "and weights are complete"
    )


def newest_identity(run: Run) -> str | None:
    """Return the identity in the newest readable checkpoint that has one."""
    found = [meta["run"] for _, meta in readable_meta(run) if "run" in meta]
    return found[-1] if found else None


def newest_config(run: Run) -> dict[str, Any] | None:
    """Return the config in the newest readable checkpoint that has one."""
    found = [meta["config"] for _, meta in readable_meta(run) if "config" in meta]
    return found[-1] if found else None


def readable_meta(run: Run) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield step and meta of each checkpoint that can be read, ascending."""
    for step in steps(run.checkpoints):
        try:
            yield step, read(directory_of(run.checkpoints, step)).meta
        except (DamagedCheckpoint, OSError):
            continue


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
