"""The compiled CPU kernel in training runs, and its deprecated public name."""

import warnings

import jaxlstm as jl
from jaxlstm.lab._util.errors import BadInput


def load_kernel() -> None:
    """Load the kernel of `engine="native"`, compiling it on first use.

    Raises:
        BadInput: the kernel cannot be built.
    """
    try:
        jl.engines.native.load()
    except jl.engines.native.BuildError as error:
        raise BadInput(str(error)) from error


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
