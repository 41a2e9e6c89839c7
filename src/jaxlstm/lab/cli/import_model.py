"""`jaxlstm import`: read a model of another library and write it as a model file."""

import argparse

from jaxlstm.lab.cli.common import Arguments, Verb, declare_check


def _declare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="weights or a model")
    parser.add_argument(
        "--from",
        dest="library",
        metavar="LIBRARY",
        help="torch, keras, onnx, ...; another name lists all; default: by the suffix",
    )
    parser.add_argument(
        "--prefix",
        default="",
        metavar="NAMES",
        help="layers of the file in the order of the model, for example embed,lstm,fc",
    )
    parser.add_argument(
        "--out", metavar="FILE", help="default: FILE with .jaxlstm.safetensors"
    )
    declare_check(parser)


def _run(arguments: Arguments) -> None:
    from jaxlstm.lab import conversion

    names = tuple(name for name in arguments.prefix.split(",") if name)
    print(
        conversion.import_model(
            arguments.file,
            arguments.library,
            prefix=names[0] if len(names) == 1 else names,
            out=arguments.out,
            tolerance=arguments.check,
        )
    )


VERB = Verb(
    help="read a model of another library and write it as a model file",
    example="jaxlstm import net.pt --prefix embed,lstm,fc",
    declare=_declare,
    run=_run,
)
