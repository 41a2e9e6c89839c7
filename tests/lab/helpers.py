"""Helpers that several test modules of `jaxlstm.lab` share."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlstm.lab import checkpoints
from jaxlstm.lab.checkpoints import manifest as manifests
from jaxlstm.lab.training import loop, policies
from jaxlstm.lab.training import state as state_
from jaxlstm.lab.training.experiment import Experiment


def results(run: Path) -> dict[str, bytes]:
    """Return the arrays of the newest checkpoint, and the metrics, as files."""
    latest = max((run / "checkpoints").glob("[0-9]*"))
    files = [latest / "arrays.safetensors", run / "metrics.jsonl"]
    return {p.name: p.read_bytes() if p.is_file() else b"no file" for p in files}


def as_earlier_version(run: Path) -> None:
    """Remove what binds the files of a run, as versions up to 0.1 left it out."""
    state = json.loads((run / "state.json").read_text())
    old = {name: state[name] for name in ("total_steps", "finished")}
    (run / "state.json").write_text(json.dumps(old))
    for step in checkpoints.steps(run / "checkpoints"):
        change_meta(run, step, run=None, config=None, log=None, best=None)


def change_meta(run: Path, step: int, /, **changes: Any) -> None:
    """Change the meta of a checkpoint, and its hash; None removes a key."""
    path = run / f"checkpoints/{step:06d}/manifest.json"
    body = json.loads(path.read_text())
    del body["sha256"]
    meta = body["meta"] | changes
    body["meta"] = {key: value for key, value in meta.items() if value is not None}
    digest = manifests.digest(body)
    path.write_text(manifests.render(body | {"sha256": digest}))


def newest_step(run: Path) -> int:
    """Return the step of the newest checkpoint, -1 if there is none."""
    return max(checkpoints.steps(run / "checkpoints"), default=-1)


def wait_until(
    test: Callable[[], bool], process: Popen[str], seconds: float = 90
) -> None:
    """Wait until `test()` is true; fail if the process ends before."""
    end = time.monotonic() + seconds
    while not test():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


class Recorder:
    """Callbacks and listener of a loop that record their calls.

    The loop is asked to stop at dispatch number `stop`.
    """

    def __init__(self, experiment: Experiment, *, stop: int | None = None) -> None:
        self.experiment, self.stop = experiment, stop
        self.lines: list[tuple] = []
        self.saved: list[tuple[state_.TrainState, loop.LoopState]] = []
        self.losses = iter(())

    def job(self) -> loop.Job:
        def log(step, loss, numbers, pace):
            self.log("train", step, loss, numbers, pace)

        experiment, training = self.experiment, self.experiment.config.training
        return loop.Job(
            experiment.task,
            experiment.model,
            experiment.optimizer,
            experiment.dataset,
            training,
            None,
            loop.Listener(
                log, lambda seconds: None, self.stopping, lambda step, count: None
            ),
            (
                loop.Callback(self.validated, (training.validate_every,)),
                loop.Callback(
                    self.checkpoint,
                    (training.validate_every, training.checkpoint_every),
                    on_stop=True,
                ),
            ),
            self.save,
            experiment.losses_like,
        )

    def validated(self, state, found):
        loss, step = self.validate(state.params), int(state.step)
        self.log("validation", step, loss, {}, {})
        stopping = self.experiment.config.training.early_stopping
        metric = self.experiment.task.primary
        return policies.validated(found, metric, stopping, step=step, value=loss)

    def checkpoint(self, state, found):
        self.save(state, found)
        return found

    def log(self, split, step, nats, numbers, pace):
        self.lines.append((split, step, nats, tuple(sorted(numbers.items()))))
        self.at = step

    def validate(self, params):
        return next(
            self.losses,
            float(sum(jnp.abs(leaf).sum() for leaf in jax.tree.leaves(params))),
        )

    def save(self, state, loop_state):
        self.saved.append((jax.device_get(key_to_data(state)), loop_state))

    def stopping(self):
        self.dispatches = getattr(self, "dispatches", 0) + 1
        return self.stop is not None and self.dispatches == self.stop


def key_to_data(state):
    return state._replace(key=jax.random.key_data(state.key))


def key_from_data(state):
    return jax.tree.map(
        jnp.asarray, state._replace(key=jax.random.wrap_key_data(state.key))
    )


def assert_same_bits(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
