"""`jaxlstm sweep`: search the best config with Optuna."""

import argparse

from jaxlstm.lab._util.errors import Interrupted
from jaxlstm.lab.cli import common
from jaxlstm.lab.cli.common import Arguments, Verb


def _declare(parser: argparse.ArgumentParser) -> None:
    common.declare_config(parser)
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="the directory of the sweep, to start it or go on; default: sweeps/NAME",
    )
    parser.add_argument("--storage", metavar="URL", help="Optuna's storage; SQLite")
    parser.add_argument(
        "--trials", type=int, metavar="N", help="number of trials of the whole sweep"
    )


def _run(arguments: Arguments) -> None:
    from jaxlstm.lab import api

    config, overrides = common.config_and_overrides(arguments)
    try:
        api.sweep(
            config,
            overrides=overrides,
            out=arguments.out,
            storage=arguments.storage,
            trials=arguments.trials,
        )
    except Interrupted:  # of a trial, which names the run of the trial only
        raise Interrupted(f"the sweep was interrupted; {_CONTINUE}") from None


_CONTINUE = "the same command continues it"

VERB = Verb(
    help="search the best config with Optuna",
    example="jaxlstm sweep my.yaml --out sweeps/a --trials 50",
    declare=_declare,
    run=_run,
    after_interrupt=_CONTINUE,
)
