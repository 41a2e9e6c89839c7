"""The verbs of the command line. Each is a Python function too; this file only asks.

A mistake is one sentence on standard error and an exit code: 0 done, 1 failed, 2 bad
input, 3 diverged, 130 interrupted and saved. JAX is imported by the verbs that
compute, when they are carried out, so that the others answer at once.
"""

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxlstm.lab._util import interrupts
from jaxlstm.lab._util.errors import BadInput, LabError

Arguments = argparse.Namespace


class Verb(NamedTuple):
    """A verb: what it does, one example, its arguments, and the doing."""

    help: str
    example: str
    declare: Callable[[argparse.ArgumentParser], None]
    carry_out: Callable[[Arguments], None]


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out a command line and return its exit code."""
    arguments = _parse(argv)
    try:
        with contextlib.nullcontext() if arguments.debug else interrupts.at_once():
            VERBS[arguments.verb].carry_out(arguments)
            _flush()
    except LabError as error:
        return _fail(arguments, error, str(error), error.exit_code)
    except KeyboardInterrupt as error:
        return _fail(arguments, error, "interrupted", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        said = (
            f"{error.filename or 'standard output'} cannot be used ({error.strerror})"
        )
        return _fail(arguments, error, said, 1)
    except MemoryError as error:
        return _fail(arguments, error, "out of memory; lower training.batch_size", 1)
    except Exception as error:
        said = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        hint = "this should not happen; --debug shows where it did"
        return _fail(arguments, error, f"{said} ({hint})", 1)
    return 0


def _flush() -> None:
    if sys.stdout is not None:
        sys.stdout.flush()


def _parse(argv: Sequence[str] | None) -> Arguments:
    """The arguments, with `key=value` wherever it stands."""
    parser = _parser()
    arguments, more = parser.parse_known_args(argv)
    takes = "overrides" in arguments
    strange = [word for word in more if not takes or word[0] == "-" or "=" not in word]
    if strange:
        parser.error(f"{arguments.verb} does not know what to do with {strange[0]!r}")
    if more:
        arguments.overrides = [*arguments.overrides, *more]
    return arguments


def _fail(arguments: Arguments, error: BaseException, said: str, code: int) -> int:
    if arguments.debug:
        raise error
    print(f"jaxlstm: {said}", file=sys.stderr)
    return code


# -- train, resume ------------------------------------------------------------


def _declare_train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "config", nargs="?", help="a YAML file; without one, the quickstart"
    )
    _declare_overrides(parser)
    parser.add_argument("--run", metavar="DIR", help="the run directory")
    parser.add_argument(
        "--resume",
        choices=["never", "auto"],
        default="never",
        help="auto: start, continue or be done, whatever DIR calls for",
    )
    _declare_sinks(parser)


def _train(arguments: Arguments) -> None:
    from jaxlstm.lab import api as experiments

    config, overrides = _config_and_overrides(arguments)
    if arguments.resume == "auto" and arguments.run is None:
        raise BadInput("--resume auto needs --run DIR, the directory to look at")
    experiments.train(
        config,
        overrides=overrides,
        run=arguments.run,
        resume=arguments.resume,
        tensorboard=arguments.tensorboard,
    )


def _declare_resume(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="a run directory")
    _declare_overrides(parser)
    _declare_sinks(parser)


def _resume(arguments: Arguments) -> None:
    from jaxlstm.lab import api as experiments

    experiments.resume(
        arguments.run,
        overrides=arguments.overrides,
        tensorboard=arguments.tensorboard,
    )


# -- evaluate, sample, inspect, plot ---------------------------------------------------


def _declare_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="a run directory")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _evaluate(arguments: Arguments) -> None:
    from jaxlstm.lab.runs import trained
    from jaxlstm.lab.sinks import records

    model = trained.load(arguments.run, report=_warn)
    scores = {"step": model.step, "split": "validation"} | model.evaluate()
    if arguments.json:
        print(json.dumps(scores))
    else:
        print(records.line(scores, model.config.training.steps))


def _declare_sample(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="a run directory")
    parser.add_argument("--prompt", metavar="TEXT", help="what the text begins with")
    parser.add_argument("--length", type=int, metavar="N", help="tokens to draw")
    parser.add_argument("--temperature", type=float, metavar="T", help="0 is greedy")
    parser.add_argument("--top-k", type=int, metavar="K", help="the K likeliest only")
    parser.add_argument("--top-p", type=float, metavar="P", help="the nucleus only")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default 0")


def _sample(arguments: Arguments) -> None:
    from jaxlstm.lab.runs import trained
    from jaxlstm.lab.sinks import records

    model = trained.load(arguments.run, report=_warn)
    prompt = arguments.prompt
    text = model.sample(
        prompt,
        length=arguments.length,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        seed=arguments.seed,
    )
    prompt = model.config.sample.prompt if prompt is None else prompt
    if strange := model.vocabulary.unknown(prompt):
        _warn(f"the prompt has {strange!r:.60}, which this model read as unknown")
    print(records.printable(prompt + text))


def _declare_inspect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="a run directory")
    parser.add_argument("--input", metavar="FILE", help="a text file to read")
    parser.add_argument("--text", metavar="TEXT", help="a text to read")
    parser.add_argument("--out", metavar="DIR", help="default RUN/inspect")


def _inspect(arguments: Arguments) -> None:
    from jaxlstm.lab.analysis import inspection

    found = inspection.inspect(
        arguments.run,
        input=arguments.input,
        text=arguments.text,
        out=arguments.out,
        report=_warn,
    )
    inspection.show(found)


def _declare_plot(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run directories")
    parser.add_argument("--out", metavar="PNG", help="where to draw several runs")


def _plot(arguments: Arguments) -> None:
    from jaxlstm.lab import api as experiments

    for path in experiments.plot(arguments.runs, out=arguments.out):
        print(path)


# -- bench, check, new, schema, doctor ----------------------------------------


def _declare_bench(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "config", nargs="?", help="a YAML file; without one, the quickstart"
    )
    _declare_overrides(parser)
    parser.add_argument(
        "--seconds", type=float, default=5.0, metavar="S", help="for each; default 5"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _bench(arguments: Arguments) -> None:
    from jaxlstm.lab import benchmark

    config, overrides = _config_and_overrides(arguments)
    rows = benchmark.bench(
        config, overrides=overrides, seconds=arguments.seconds, report=_warn
    )
    if arguments.json:
        print(json.dumps(benchmark.as_json(rows)))
    else:
        benchmark.show(rows)


def _declare_check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", nargs="?", help="a YAML file")
    _declare_overrides(parser)
    parser.add_argument(
        "--no-data", action="store_true", help="the config alone; needs no JAX"
    )


def _check(arguments: Arguments) -> None:
    from jaxlstm.lab import config

    checked = config.load(arguments.config, overrides=arguments.overrides)
    facts = ""
    if not arguments.no_data:
        from jaxlstm.lab import checks
        from jaxlstm.lab.sinks import records

        facts = "\n" + records.table(checks.check(checked))
    print(f"{arguments.config or 'the quickstart'}: sound{facts}")


def _declare_new(parser: argparse.ArgumentParser) -> None:
    from jaxlstm.lab.config.starters import TASKS

    parser.add_argument("task", help=f"one of: {', '.join(TASKS)}")
    parser.add_argument("--out", metavar="FILE", help="write it there")


def _new(arguments: Arguments) -> None:
    from jaxlstm.lab.config import starters

    _give_out(starters.starter(arguments.task), arguments.out)


def _declare_schema(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", metavar="FILE", help="write it there")


def _schema(arguments: Arguments) -> None:
    from jaxlstm.lab import config

    text = json.dumps(config.json_schema(), indent=2, ensure_ascii=False) + "\n"
    _give_out(text, arguments.out)


def _declare_doctor(parser: argparse.ArgumentParser) -> None:
    pass


def _doctor(arguments: Arguments) -> None:
    from jaxlstm.lab import doctor
    from jaxlstm.lab.sinks import records

    print(records.table(doctor.examine()))


# -- what the verbs share -----------------------------------------------------


def _config_and_overrides(arguments: Arguments) -> tuple[str | None, list[str]]:
    """The config, None where the first word is an override already."""
    config, overrides = arguments.config, arguments.overrides
    if config is not None and "=" in config and not Path(config).exists():
        return None, [config, *overrides]
    return config, overrides


def _declare_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="KEY=VALUE",
        help="change the config, for example model.hidden_size=256",
    )


def _declare_sinks(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tensorboard",
        action="store_true",
        help="write event files into the run directory too",
    )


def _warn(text: str) -> None:
    print(f"jaxlstm: {text}", file=sys.stderr)


def _give_out(text: str, out: str | None) -> None:
    """Print the text, or write it into a file that is not there yet."""
    if out is None:
        print(text, end="")
        return
    try:
        with open(out, "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise BadInput(f"{out} is there already; choose another --out") from None
    except OSError as error:
        raise BadInput(f"{out} cannot be written ({error.strerror})") from None
    print(f"wrote {out}")


VERBS = {
    "train": Verb(
        "train a model as a config says",
        "jaxlstm train configs/quickstart.yaml model.hidden_size=256 --run runs/big",
        _declare_train,
        _train,
    ),
    "resume": Verb(
        "continue a run from its newest checkpoint",
        "jaxlstm resume runs/big training.steps=2000",
        _declare_resume,
        _resume,
    ),
    "evaluate": Verb(
        "measure a trained model on its whole validation part",
        "jaxlstm evaluate runs/big",
        _declare_evaluate,
        _evaluate,
    ),
    "sample": Verb(
        "let a trained model write",
        'jaxlstm sample runs/big --prompt "class " --temperature 0.7 --top-p 0.95',
        _declare_sample,
        _sample,
    ),
    "inspect": Verb(
        "find out what the units of a trained model do, in pictures and sentences",
        "jaxlstm inspect runs/big --text 'print(a[0], \"b\")'",
        _declare_inspect,
        _inspect,
    ),
    "plot": Verb(
        "draw the pictures of a run again, or several runs in one picture",
        "jaxlstm plot runs/small runs/big --out compared.png",
        _declare_plot,
        _plot,
    ),
    "bench": Verb(
        "time a training step of a config, for each engine and for torch",
        "jaxlstm bench configs/quickstart.yaml model.hidden_size=512 --seconds 10",
        _declare_bench,
        _bench,
    ),
    "check": Verb(
        "find the mistakes of a config without training",
        "jaxlstm check configs/quickstart.yaml --no-data",
        _declare_check,
        _check,
    ),
    "new": Verb(
        "print a commented config to start from",
        "jaxlstm new language_modelling --out my.yaml",
        _declare_new,
        _new,
    ),
    "schema": Verb(
        "print the JSON schema of configs, for editors",
        "jaxlstm schema --out schema.json",
        _declare_schema,
        _schema,
    ),
    "doctor": Verb(
        "say what is installed, what JAX sees, and why not the GPU",
        "jaxlstm doctor",
        _declare_doctor,
        _doctor,
    ),
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="jaxlstm",
        description="LSTMs in JAX, from a config file to a trained model.",
        epilog='"jaxlstm VERB --help" says more, with an example.',
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, verb in VERBS.items():
        one = verbs.add_parser(
            name,
            help=verb.help,
            description=f"{verb.help[0].upper()}{verb.help[1:]}.",
            epilog=f"example: {verb.example}",
        )
        verb.declare(one)
        one.add_argument(
            "--debug", action="store_true", help="show the traceback of a failure"
        )
    return parser
