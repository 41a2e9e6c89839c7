"""Exceptions of `jaxlstm.lab` and their exit codes.

A message says what was got, what was expected and what to do. The command line prints
it and exits with `exit_code`.
"""


class LabError(Exception):
    """Base class of the errors that a user can correct."""

    exit_code = 1


class BadInput(LabError, ValueError):
    """A config, a data file or an argument is invalid."""

    exit_code = 2


class Diverged(LabError):
    """A loss or gradient is not finite; the last finite state was saved."""

    exit_code = 3


class Interrupted(LabError):
    """A signal stopped the run; its state was saved first."""

    exit_code = 130
