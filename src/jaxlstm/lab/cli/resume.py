"""`jaxlstm resume`: resume a run from its newest checkpoint."""

import argparse

from jaxlstm.lab.cli import common
from jaxlstm.lab.cli.common import Arguments, Verb


def _declare(parser: argparse.ArgumentParser) -> None:
    common.declare_run(parser)
    common.declare_overrides(parser)
    common.declare_sinks(parser)


def _run(arguments: Arguments) -> None:
    from jaxlstm.lab import api

    api.resume(
        arguments.run,
        overrides=arguments.overrides,
        tensorboard=arguments.tensorboard,
    )


VERB = Verb(
    help="resume a run from its newest checkpoint",
    example="jaxlstm resume runs/a training.steps=2000",
    declare=_declare,
    run=_run,
)
