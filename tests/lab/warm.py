"""Thousands of tiny runs in one process, without compiling equal programs again.

Compiling takes most of the time of a tiny run, then plots, then parsing of YAML. Runs
with the same model and optimizer share their compiled steps here, and equal files are
parsed once; everything else is as for users.
"""

import contextlib
import copy
import functools
from collections.abc import Iterator
from typing import Any

import jax
import pytest

from jaxlstm.lab.config import loading, yaml_source
from jaxlstm.lab.reports import report as reports
from jaxlstm.lab.training import loop, programs
from jaxlstm.lab.training import optimizer as optimizers

_compiled: dict[Any, Any] = {}
_optimizers: dict[str, Any] = {}
_build = optimizers.build
_read = functools.lru_cache(maxsize=500)(yaml_source.read)


class _SharedPrograms(programs.Programs):
    """Programs that all runs with an equal task, model and optimizer share."""

    def __init__(self, job: Any) -> None:
        super().__init__(job)
        self._parts = (job.task, job.model, job.optimizer)

    def get(self, state: Any, batches: Any) -> Any:
        leaves = jax.tree.leaves((state, batches))
        key = (self._parts, tuple((leaf.shape, leaf.dtype) for leaf in leaves))
        if key not in _compiled:
            _compiled[key] = super().get(state, batches)
        return _compiled[key]


def _shared_optimizer(config: Any, **options: Any) -> Any:
    """Return the same optimizer for equal configs, so that its programs are found."""
    if options.get("varied") is not None:
        return _build(config, **options)
    key = f"{config!r} {options!r}"
    if key not in _optimizers:
        _optimizers[key] = _build(config, **options)
    return _optimizers[key]


def _read_once(text: str, name: str) -> Any:
    """Parse an equal text of an equal name once: it takes a third of a tiny run."""
    return copy.deepcopy(_read(text, name))


@contextlib.contextmanager
def warm() -> Iterator[None]:
    """Share compiled steps and parsed configs of equal runs, and draw no plots."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(yaml_source, "read", _read_once)
        patch.setattr(loading, "read", _read_once)
        patch.setattr(loop, "Programs", _SharedPrograms)
        patch.setattr(optimizers, "build", _shared_optimizer)
        patch.setattr(reports, "write_plots", lambda *args, **options: [])
        yield
