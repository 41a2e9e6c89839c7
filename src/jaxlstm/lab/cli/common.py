"""The record that describes a verb, and the arguments and output that verbs share."""

import argparse
import shutil
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from jaxlstm.lab._util.errors import BadInput

Arguments = argparse.Namespace


class Verb(NamedTuple):
    """A verb of the command line.

    Attributes:
        help: one line in the imperative, lower case, without a full stop.
        example: a complete command line.
        declare: adds the verb's arguments to its parser.
        run: carries out the verb.
        after_interrupt: how to continue after an interruption; "" if there is no way.
    """

    help: str
    example: str
    declare: Callable[[argparse.ArgumentParser], None]
    run: Callable[[Arguments], None]
    after_interrupt: str = ""


def declare_run(parser: argparse.ArgumentParser) -> None:
    """Add the positional argument RUN."""
    parser.add_argument("run", help="a run directory")


def declare_moved_data(parser: argparse.ArgumentParser) -> None:
    """Add the positional arguments KEY=VALUE for the paths of data that was moved."""
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="KEY=PATH",
        help="new path of data that was moved, for example data.path=/mnt/book.txt",
    )


def declare_config(parser: argparse.ArgumentParser) -> None:
    """Add the optional positional argument CONFIG, followed by overrides."""
    parser.add_argument(
        "config", nargs="?", help="a YAML file; default: the quickstart config"
    )
    declare_overrides(parser)


def declare_overrides(parser: argparse.ArgumentParser) -> None:
    """Add the positional arguments KEY=VALUE."""
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="KEY=VALUE",
        help="change a config value, for example model.hidden_size=256",
    )


def declare_sinks(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose where progress is written besides the terminal."""
    parser.add_argument(
        "--tensorboard",
        action="store_true",
        help="also write TensorBoard event files into the run directory",
    )


def declare_check(parser: argparse.ArgumentParser) -> None:
    """Add the option --check [TOLERANCE] of conversions."""
    parser.add_argument(
        "--check",
        nargs="?",
        type=float,
        const=1e-5,
        metavar="TOLERANCE",
        help="write nothing if the other library computes numbers that differ by more "
        "than TOLERANCE (1e-5 if it is left out), or is not installed",
    )


def declare_json(parser: argparse.ArgumentParser) -> None:
    """Add the option --json."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def config_and_overrides(arguments: Arguments) -> tuple[str | None, list[str]]:
    """Return the config and the overrides of a command line.

    The config is None if the first positional argument is an override. argparse cannot
    distinguish the two, because CONFIG is optional.
    """
    config, overrides = arguments.config, arguments.overrides
    if config is not None and "=" in config and not Path(config).exists():
        return None, [config, *overrides]
    return config, overrides


def warn(text: str) -> None:
    """Print a message to standard error, on a terminal without a word that is cut."""
    text = f"jaxlstm: {text}"
    if sys.stderr is not None and sys.stderr.isatty():
        width = max(20, shutil.get_terminal_size().columns - 1)
        wrapper = textwrap.TextWrapper(
            width, break_long_words=False, break_on_hyphens=False
        )
        text = "\n".join(wrapper.fill(line) for line in text.split("\n"))
    print(text, file=sys.stderr)


def terminal_width() -> int | None:
    """Return the columns of the terminal, None if standard output is not one."""
    if sys.stdout is None or not sys.stdout.isatty():
        return None
    return max(20, shutil.get_terminal_size().columns)


def print_or_write(text: str, out: str | None) -> None:
    """Print the text, or write it to a new file.

    Raises:
        BadInput: the file exists or cannot be written.
    """
    if out is None:
        print(text, end="")
        return
    try:
        with open(out, "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise BadInput(f"{out}: already exists; choose another --out") from None
    except OSError as error:
        raise BadInput(
            f"{out}: cannot be written ({error.strerror}); choose another --out"
        ) from None
    print(f"wrote {out}")
