"""The command line: `main` parses it and runs a verb; each verb has one file."""

from jaxlstm.lab.cli.app import VERBS as VERBS
from jaxlstm.lab.cli.app import main as main
