"""`jaxlstm doctor`: report versions and devices."""

import argparse

from jaxlstm.lab.cli import common
from jaxlstm.lab.cli.common import Arguments, Verb


def _declare(parser: argparse.ArgumentParser) -> None:
    pass  # takes no arguments


def _run(arguments: Arguments) -> None:
    from jaxlstm.lab import doctor
    from jaxlstm.lab.sinks import formatting

    print(formatting.table(doctor.examine(), width=common.terminal_width()))


VERB = Verb(
    help="report versions and devices, and why no GPU is available",
    example="jaxlstm doctor",
    declare=_declare,
    run=_run,
)
