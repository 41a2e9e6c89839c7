"""`jaxlstm new`: print a commented starter config."""

import argparse

from jaxlstm.lab.cli import common
from jaxlstm.lab.cli.common import Arguments, Verb


def _declare(parser: argparse.ArgumentParser) -> None:
    # Listing the tasks here would import pydantic for the help of every verb.
    parser.add_argument(
        "task", help="for example language_modelling; an unknown name lists all tasks"
    )
    parser.add_argument("--out", metavar="FILE", help="write to a new file")


def _run(arguments: Arguments) -> None:
    from jaxlstm.lab.config import starters

    common.print_or_write(starters.starter(arguments.task), arguments.out)


VERB = Verb(
    help="print a commented starter config",
    example="jaxlstm new language_modelling --out my.yaml",
    declare=_declare,
    run=_run,
)
