"""`jaxlstm train`: train a model from a config file."""

import argparse

from jaxlstm.lab._util.errors import BadInput
from jaxlstm.lab.cli import common
from jaxlstm.lab.cli.common import Arguments, Verb


def _declare(parser: argparse.ArgumentParser) -> None:
    common.declare_config(parser)
    parser.add_argument(
        "--run", metavar="DIR", help="the run directory; default: a new one in runs/"
    )
    parser.add_argument(
        "--resume",
        choices=["never", "auto"],
        default="never",
        help="auto: starts a run, resumes it, or exits if it is finished",
    )
    common.declare_sinks(parser)


def _run(arguments: Arguments) -> None:
    from jaxlstm.lab import api

    config, overrides = common.config_and_overrides(arguments)
    if arguments.resume == "auto" and arguments.run is None:
        raise BadInput("--resume auto: got no run directory; add --run DIR")
    api.train(
        config,
        overrides=overrides,
        run=arguments.run,
        resume=arguments.resume,
        tensorboard=arguments.tensorboard,
    )


VERB = Verb(
    help="train a model from a config file",
    example="jaxlstm train configs/quickstart.yaml model.hidden_size=256 --run runs/a",
    declare=_declare,
    run=_run,
)
