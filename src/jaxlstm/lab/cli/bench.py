"""`jaxlstm bench`: time the training step of a config with each engine."""

import argparse
import json

from jaxlstm.lab.cli import common
from jaxlstm.lab.cli.common import Arguments, Verb


def _declare(parser: argparse.ArgumentParser) -> None:
    common.declare_config(parser)
    parser.add_argument(
        "--seconds",
        type=float,
        default=5.0,
        metavar="S",
        help="measuring time per engine; default: 5",
    )
    common.declare_json(parser)


def _run(arguments: Arguments) -> None:
    from jaxlstm.lab import benchmark

    config, overrides = common.config_and_overrides(arguments)
    rows = benchmark.bench(
        config, overrides=overrides, seconds=arguments.seconds, report=common.warn
    )
    if arguments.json:
        print(json.dumps(benchmark.as_json(rows)))
    else:
        benchmark.show(rows)


VERB = Verb(
    help="time the training step of a config with each engine and with torch",
    example="jaxlstm bench configs/quickstart.yaml model.hidden_size=512 --seconds 10",
    declare=_declare,
    run=_run,
)
