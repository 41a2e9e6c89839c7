"""`jaxlstm predict`: write the predictions of a trained model as a table."""

import argparse

from jaxlstm.lab.cli import common
from jaxlstm.lab.cli.common import Arguments, Verb


def _declare(parser: argparse.ArgumentParser) -> None:
    common.declare_run(parser)
    parser.add_argument(
        "--data",
        metavar="FILE",
        help="file with the columns of the training data; default: the run's own data",
    )
    parser.add_argument(
        "--out", metavar="FILE", help="write to a new .csv or .parquet file"
    )


def _run(arguments: Arguments) -> None:
    from jaxlstm.lab import predictions

    columns = predictions.predict(arguments.run, arguments.data, out=arguments.out)
    if arguments.out is None:
        print(predictions.head(columns))
        print("keep the whole table with: --out FILE.csv")
    else:
        count = len(next(iter(columns.values())))
        print(f"wrote {count:,} rows to {arguments.out}")


VERB = Verb(
    help="write the predictions of a trained model as a table",
    example="jaxlstm predict runs/a --data new.csv --out forecast.csv",
    declare=_declare,
    run=_run,
)
