"""`jaxlstm export`: write the model of a run for another library or runtime."""

import argparse

from jaxlstm.lab.cli.common import Arguments, Verb, declare_check


def _declare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="RUN", help="a run directory or a model file")
    parser.add_argument(
        "--to",
        required=True,
        metavar="TARGET",
        help="onnx, stablehlo, torch, ...; another name lists all of them",
    )
    parser.add_argument(
        "--stream",
        action="store_true",
        help="one step, with the state as input and output (onnx, stablehlo)",
    )
    parser.add_argument("--out", metavar="FILE", help="default: RUN/export/model.*")
    declare_check(parser)


def _run(arguments: Arguments) -> None:
    from jaxlstm.lab import conversion

    print(
        conversion.export(
            arguments.source,
            arguments.to,
            out=arguments.out,
            stream=arguments.stream,
            tolerance=arguments.check,
        )
    )


VERB = Verb(
    help="write a trained model for another library or runtime",
    example="jaxlstm export runs/a --to onnx --stream",
    declare=_declare,
    run=_run,
)
