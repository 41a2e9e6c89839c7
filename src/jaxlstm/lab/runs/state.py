"""`state.json`: the identity, the config and the progress of a run, with a hash.

It is replaced atomically. A change of the config takes three writes, each of which
leaves a consistent run:

    state.json   accepts the old and the new config
    config.yaml  the new config
    state.json   accepts the new config only
"""

import hashlib
import json
import secrets
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxlstm.lab._util.errors import LabError
from jaxlstm.lab._util.files import read_bytes, reason
from jaxlstm.lab.runs.paths import Run, write_text


class State(NamedTuple):
    """The content of `state.json`.

    Attributes:
        run: the random identity of the run, which its checkpoints repeat; None in runs
            of earlier versions, and if the file is missing.
        configs: hashes of the accepted contents of `config.yaml`; empty as above.
        total_steps: the requested number of steps.
        finished: the step at which the run finished, None before.
        continued_from: the step at which the number of steps was raised last. A run
            that had stopped early there trains on.
        log_from: the step after which `metrics.jsonl` begins, if it was deleted.
    """

    run: str | None = None
    configs: tuple[str, ...] = ()
    total_steps: int | None = None
    finished: int | None = None
    continued_from: int | None = None
    log_from: int | None = None


def new_identity() -> str:
    """Return a random identity."""
    return secrets.token_hex(8)


def read_state(run: Run) -> State:
    """Return the content of `state.json`, or the initial state if it is missing.

    Raises:
        LabError: the file cannot be read, or has changed since it was written.
    """
    try:
        fields = json.loads(read_bytes(run.state))
        return _parse(fields)
    except FileNotFoundError:
        return State()
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise LabError(
            f"{run.state}: cannot be read ({reason(error)}); delete it to continue "
            "from the last checkpoint"
        ) from error


def write_state(run: Run, state: State) -> None:
    """Replace `state.json`.

    Raises:
        LabError: the file cannot be written.
    """
    fields = state._asdict()
    text = json.dumps(fields | {"sha256": _digest(fields)}, indent=2)
    write_text(run.state, text + "\n")


def _parse(fields: Any) -> State:
    if not isinstance(fields, dict):
        raise TypeError("it is not a JSON object")
    if fields.keys() == {"total_steps", "finished"}:  # written by an earlier version
        return State(total_steps=fields["total_steps"], finished=fields["finished"])
    claimed = fields.pop("sha256", None)
    if claimed != _digest(fields):
        raise ValueError("it has changed since it was written")
    return State(**fields)._replace(configs=tuple(fields["configs"]))


def _digest(fields: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
