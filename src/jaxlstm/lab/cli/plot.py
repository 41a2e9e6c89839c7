"""`jaxlstm plot`: redraw the plots of a run, or compare several runs in one plot."""

import argparse

from jaxlstm.lab.cli.common import Arguments, Verb


def _declare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run directories")
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="image file for a comparison of several runs; default: comparison.png",
    )


def _run(arguments: Arguments) -> None:
    from jaxlstm.lab import api

    for path in api.plot(arguments.runs, out=arguments.out):
        print(path)


VERB = Verb(
    help="redraw the plots of a run, or compare several runs in one plot",
    example="jaxlstm plot runs/a runs/b --out compared.png",
    declare=_declare,
    run=_run,
)
