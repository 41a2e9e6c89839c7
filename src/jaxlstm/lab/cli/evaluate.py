"""`jaxlstm evaluate`: compute the validation scores of a trained model."""

import argparse
import json
import math

from jaxlstm.lab._util.errors import Diverged
from jaxlstm.lab.cli import common
from jaxlstm.lab.cli.common import Arguments, Verb


def _declare(parser: argparse.ArgumentParser) -> None:
    common.declare_run(parser)
    common.declare_moved_data(parser)
    common.declare_json(parser)


def _run(arguments: Arguments) -> None:
    from jaxlstm.lab.runs import trained
    from jaxlstm.lab.sinks import formatting

    model = trained.load(
        arguments.run, overrides=arguments.overrides, report=common.warn
    )
    scores = {"step": model.step, "split": "validation"} | model.evaluate()
    bad = [name for name, score in scores.items() if _is_bad(score)]
    if arguments.json:
        finite = {k: None if k in bad else score for k, score in scores.items()}
        print(json.dumps(finite, allow_nan=False))
    else:
        print(formatting.line(scores, model.config.training.steps))
    if bad:
        raise Diverged(
            f"{arguments.run}: got a {bad[0]} that is not finite; the parameters of "
            f"step {model.step} cannot be used"
        )


def _is_bad(score: object) -> bool:
    return isinstance(score, float) and not math.isfinite(score)


VERB = Verb(
    help="evaluate a trained model on the whole validation set",
    example="jaxlstm evaluate runs/a",
    declare=_declare,
    run=_run,
)
