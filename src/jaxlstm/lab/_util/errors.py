"""What can go wrong in the laboratory, and the exit code each is worth.

Every message is one sentence to a colleague: what came, what was wanted, what to
do. The command line prints the message and leaves with `exit_code`; a caller in
Python catches the class.
"""


class LabError(Exception):
    """A run failed for a reason that can be said in a sentence."""

    exit_code = 1


class BadInput(LabError, ValueError):
    """A config, a data file or an argument is not what it should be."""

    exit_code = 2


class Diverged(LabError):
    """A loss or a gradient is not finite; the last good state was kept."""

    exit_code = 3


class Interrupted(LabError):
    """The run was asked to stop, and saved itself first."""

    exit_code = 130
