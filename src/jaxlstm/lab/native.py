"""The compiled CPU kernel in training runs, and its deprecated public name."""

import warnings

import jax

import jaxlstm as jl
from jaxlstm.engines.native import build
from jaxlstm.lab._util.errors import BadInput
from jaxlstm.lab.config.base import RunConfig


def load_kernel() -> None:
    """Load the kernel of `engine="native"`, compiling it if it is not compiled yet.

    Raises:
        BadInput: the kernel cannot be built.
    """
    try:
        jl.engines.native.load()
    except jl.engines.native.BuildError as error:
        raise BadInput(str(error)) from error


def is_chosen(config: RunConfig) -> bool:
    """Return whether a config leads to the native engine, on a CPU."""
    engine = getattr(config.model, "engine", "none")
    if engine is not None or config.device not in ("auto", "cpu"):
        return engine == "native"
    in_float = config.model.dtype in ("float32", "float64")
    return in_float and build.load_built() is None


def resolve_engine(config: RunConfig) -> RunConfig:
    """Return the config with `model.engine: null` replaced by the fastest engine.

    It is written into the run, because the engine decides the bits of a run, as the
    number of shards does. Runs of versions that did not write it used `adjoint`.

    Example:
        >>> from jaxlstm.lab.config import Config
        >>> resolve_engine(Config()).model.engine in ("native", "adjoint")
        True
    """
    if getattr(config.model, "engine", "none") is not None:
        return config
    serves = jax.default_backend() == "cpu" and is_chosen(config)
    return _with_engine(config, "native" if serves else "adjoint")


def without_kernel(config: RunConfig) -> RunConfig:
    """Return the config with the engine that runs on every platform."""
    is_native = getattr(config.model, "engine", None) == "native"
    return _with_engine(config, "adjoint") if is_native else config


def that_runs(config: RunConfig) -> RunConfig:
    """Return the config of a trained model with an engine that runs on this machine.

    A run that was trained with the kernel can be used where it cannot be compiled; its
    results then differ by rounding.
    """
    return config if build.load_built() is None else without_kernel(config)


def _with_engine(config: RunConfig, engine: str) -> RunConfig:
    model = config.model.model_copy(update={"engine": engine})
    return config.model_copy(update={"model": model})


def load() -> None:
    """Load the kernel; deprecated, use `jl.engines.native.load`.

    Raises:
        BadInput: the kernel cannot be built.
    """
    warnings.warn(
        "jaxlstm.lab.native.load is deprecated; use jaxlstm.engines.native.load.",
        DeprecationWarning,
        stacklevel=2,
    )
    load_kernel()
