"""`jaxlstm evaluate`: compute the validation scores of a trained model."""

import argparse
import json

from jaxlstm.lab.cli import common
from jaxlstm.lab.cli.common import Arguments, Verb


def _declare(parser: argparse.ArgumentParser) -> None:
    common.declare_run(parser)
    common.declare_json(parser)


def _run(arguments: Arguments) -> None:
    from jaxlstm.lab.runs import trained
    from jaxlstm.lab.sinks import formatting

    model = trained.load(arguments.run, report=common.warn)
    scores = {"step": model.step, "split": "validation"} | model.evaluate()
    if arguments.json:
        print(json.dumps(scores))
    else:
        print(formatting.line(scores, model.config.training.steps))


VERB = Verb(
    help="evaluate a trained model on the whole validation set",
    example="jaxlstm evaluate runs/a",
    declare=_declare,
    run=_run,
)
