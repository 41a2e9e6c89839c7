"""`jaxlstm check`: validate a config without training."""

import argparse

from jaxlstm.lab.cli import common
from jaxlstm.lab.cli.common import Arguments, Verb


def _declare(parser: argparse.ArgumentParser) -> None:
    common.declare_config(parser)
    parser.add_argument(
        "--no-data",
        action="store_true",
        help="validate the config only; does not read the data or import JAX",
    )


def _run(arguments: Arguments) -> None:
    from jaxlstm.lab import config as configs

    path, overrides = common.config_and_overrides(arguments)
    config = configs.load(path, overrides=overrides)
    facts = ""
    if not arguments.no_data:
        from jaxlstm.lab import checks
        from jaxlstm.lab.sinks import formatting

        width = common.terminal_width()
        facts = "\n" + formatting.table(checks.check(config), width=width)
    print(f"{path or 'the quickstart config'}: valid{facts}")


VERB = Verb(
    help="validate a config, count parameters and estimate memory, without training",
    example="jaxlstm check configs/quickstart.yaml --no-data",
    declare=_declare,
    run=_run,
)
