"""The command line, one file a verb."""

from jaxlstm.lab.cli.main import main as main
