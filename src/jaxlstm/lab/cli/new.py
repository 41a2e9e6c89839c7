"""`jaxlstm new`: print a commented starter config."""

import argparse

from jaxlstm.lab.cli import common
from jaxlstm.lab.cli.common import Arguments, Verb
from jaxlstm.lab.config import starters


def _declare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("task", help=f"one of: {', '.join(starters.TASKS)}")
    parser.add_argument("--out", metavar="FILE", help="write to a new file")


def _run(arguments: Arguments) -> None:
    common.print_or_write(starters.starter(arguments.task), arguments.out)


VERB = Verb(
    help="print a commented starter config",
    example=f"jaxlstm new {starters.TASKS[0]} --out my.yaml",
    declare=_declare,
    run=_run,
)
