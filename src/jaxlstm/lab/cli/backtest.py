"""`jaxlstm backtest`: score forecasts from several origins at the end of the data."""

import argparse

from jaxlstm.lab.cli import common
from jaxlstm.lab.cli.common import Arguments, Verb


def _declare(parser: argparse.ArgumentParser) -> None:
    common.declare_run(parser)
    parser.add_argument(
        "--windows",
        type=int,
        metavar="K",
        help="number of origins, a horizon apart; default: 5, or as many as the test "
        "part has",
    )


def _run(arguments: Arguments) -> None:
    from jaxlstm.lab import predictions

    print(predictions.backtest(arguments.run, windows=arguments.windows))


VERB = Verb(
    help="score forecasts from several origins at the end of the data",
    example="jaxlstm backtest runs/a --windows 8",
    declare=_declare,
    run=_run,
)
