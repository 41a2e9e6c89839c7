"""The parser of the command line, its error handling and its exit codes.

An error is one sentence on standard error and an exit code: 0 done, 1 failed, 2 bad
input, 3 diverged, 130 interrupted and saved. Verbs import JAX when they run and not
before, so that `--help` and the verbs that only read configs start quickly.
"""

import argparse
import contextlib
import io
import os
import sys
import warnings
from collections.abc import Iterator, Sequence

from jaxlstm.lab._util import interrupts
from jaxlstm.lab._util.errors import BadInput, LabError
from jaxlstm.lab.cli import (
    backtest,
    bench,
    check,
    doctor,
    evaluate,
    export,
    import_model,
    inspect,
    meant,
    new,
    plot,
    predict,
    resume,
    sample,
    schema,
    sweep,
    train,
)
from jaxlstm.lab.cli.common import Arguments, Verb, warn
from jaxlstm.version import __version__

_EPILOG = """\
"jaxlstm VERB --help" lists the options of a verb, with an example.

exit codes:
  0    done
  1    failed, for example because a disk is full
  2    invalid config, data or argument
  3    diverged: a loss or gradient is not finite; the last good state is saved
  130  interrupted by a signal; a training run is saved and can be resumed
"""

VERBS: dict[str, Verb] = {
    "train": train.VERB,
    "resume": resume.VERB,
    "sweep": sweep.VERB,
    "evaluate": evaluate.VERB,
    "predict": predict.VERB,
    "backtest": backtest.VERB,
    "sample": sample.VERB,
    "inspect": inspect.VERB,
    "plot": plot.VERB,
    "export": export.VERB,
    "import": import_model.VERB,
    "bench": bench.VERB,
    "check": check.VERB,
    "new": new.VERB,
    "schema": schema.VERB,
    "doctor": doctor.VERB,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code.

    Args:
        argv: the words after `jaxlstm`; None for those of this process.

    Returns:
        0 done, 1 failed, 2 bad input, 3 diverged, 130 interrupted.
    """
    _escape_unencodable()
    arguments = _parse(argv)
    try:
        with (
            _warnings_as_messages(),
            contextlib.nullcontext()
            if arguments.debug
            else interrupts.exit_on_signal(
                remedy=VERBS[arguments.verb].after_interrupt
            ),
        ):
            _require_kind(arguments)
            VERBS[arguments.verb].run(arguments)
            _flush()
    except LabError as error:
        return _fail(arguments, error, str(error), error.exit_code)
    except KeyboardInterrupt as error:
        return _fail(arguments, error, "interrupted", 130)
    except BrokenPipeError:
        # The reader closed the pipe, as `head` does. Redirecting standard output keeps
        # Python from raising the same error again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        file = error.filename or "standard output"
        return _fail(arguments, error, f"{file}: cannot be used ({error.strerror})", 1)
    except MemoryError as error:
        return _fail(arguments, error, "out of memory; lower training.batch_size", 1)
    except Exception as error:
        summary = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        hint = "unexpected error; --debug shows the traceback"
        return _fail(arguments, error, f"{summary} ({hint})", 1)
    return 0


def _escape_unencodable() -> None:
    """Escape characters that the encoding of standard output lacks.

    A sample may hold any character on a terminal of ASCII, and a path bytes that are
    not UTF-8. Standard error already escapes them.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def _warnings_as_messages() -> Iterator[None]:
    """Print warnings as sentences, without the line of code that raised them."""

    def show(message: Warning | str, *_: object) -> None:
        warn(str(message))

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def _flush() -> None:
    if sys.stdout is not None:  # None if the process was started without one
        sys.stdout.flush()


def _fail(arguments: Arguments, error: BaseException, message: str, code: int) -> int:
    if arguments.debug:
        raise error
    warn(message)
    return code


def _parse(argv: Sequence[str] | None) -> Arguments:
    """Parse the arguments, accepting `key=value` before and after options."""
    parser = _parser()
    words = list(sys.argv[1:] if argv is None else argv)
    if problem := meant.verb(words, VERBS):
        parser.error(problem)
    arguments, extra = parser.parse_known_args(words)
    has_overrides = "overrides" in arguments
    if problem := meant.instead_of_a_prompt(arguments):
        parser.error(problem)
    unknown = [
        word
        for word in extra
        if not has_overrides or word[:1] in ("", "-") or "=" not in word
    ]
    if unknown:
        expected = "KEY=VALUE or an option" if has_overrides else "an option"
        changes_config = has_overrides and "config" in arguments
        instead = meant.option(unknown[0], words) if changes_config else ""
        parser.error(
            f"{arguments.verb}: got {unknown[0]!r}, expected {expected}{instead}; see "
            f'"jaxlstm {arguments.verb} --help"'
        )
    if extra:
        arguments.overrides = [*arguments.overrides, *extra]
    return arguments


def _require_kind(arguments: Arguments) -> None:
    """Raise `BadInput` for a config given as a run, and for a run given as a config."""
    run, config = getattr(arguments, "run", None), getattr(arguments, "config", None)
    if arguments.verb != "train" and isinstance(run, str) and meant.is_config(run):
        raise BadInput(meant.instead_of_a_run(run))
    if arguments.verb == "train" and isinstance(config, str) and meant.is_run(config):
        raise BadInput(meant.instead_of_a_config(config))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="jaxlstm",
        description="Train and use LSTMs in JAX from a config file.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"jaxlstm {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, verb in VERBS.items():
        subparser = verbs.add_parser(
            name,
            help=verb.help,
            description=f"{verb.help[0].upper()}{verb.help[1:]}.",
            epilog=f"example: {verb.example}",
        )
        verb.declare(subparser)
        subparser.add_argument(
            "--debug", action="store_true", help="show the traceback of an error"
        )
    return parser
