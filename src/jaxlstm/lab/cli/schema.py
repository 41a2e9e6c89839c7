"""`jaxlstm schema`: print the JSON schema of config files."""

import argparse
import json

from jaxlstm.lab.cli import common
from jaxlstm.lab.cli.common import Arguments, Verb


def _declare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", metavar="FILE", help="write to a new file")


def _run(arguments: Arguments) -> None:
    from jaxlstm.lab import config as configs

    text = json.dumps(configs.json_schema(), indent=2, ensure_ascii=False) + "\n"
    common.print_or_write(text, arguments.out)


VERB = Verb(
    help="print the JSON schema of config files, for editors",
    example="jaxlstm schema --out schema.json",
    declare=_declare,
    run=_run,
)
