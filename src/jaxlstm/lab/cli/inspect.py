"""`jaxlstm inspect`: describe what the units of a trained model respond to."""

import argparse

from jaxlstm.lab.cli import common
from jaxlstm.lab.cli.common import Arguments, Verb


def _declare(parser: argparse.ArgumentParser) -> None:
    common.declare_run(parser)
    common.declare_moved_data(parser)
    parser.add_argument("--input", metavar="FILE", help="a text file to run on")
    parser.add_argument("--text", metavar="TEXT", help="a text to run on")
    parser.add_argument("--out", metavar="DIR", help="default: RUN/inspect")


def _run(arguments: Arguments) -> None:
    from jaxlstm.lab.analysis import inspection

    found = inspection.inspect(
        arguments.run,
        overrides=arguments.overrides,
        input=arguments.input,
        text=arguments.text,
        out=arguments.out,
        report=common.warn,
    )
    inspection.show(found)


VERB = Verb(
    help="describe what the units of a trained model respond to, with plots",
    example="jaxlstm inspect runs/a --text 'print(a[0], \"b\")'",
    declare=_declare,
    run=_run,
)
