"""Suggestions of the command that was meant, for a command line that is not valid.

jaxlstm my.yaml                     ->  jaxlstm train my.yaml
jaxlstm eval runs/a                 ->  jaxlstm evaluate runs/a
jaxlstm resume my.yaml              ->  jaxlstm train my.yaml
jaxlstm train --hidden-size 64      ->  jaxlstm train model.hidden_size=64
"""

import argparse
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from jaxlstm.lab._util.wording import did_you_mean, shown

_SYNONYMS = {
    "continue": "resume",
    "eval": "evaluate",
    "fit": "train",
    "forecast": "predict",
    "generate": "sample",
    "init": "new",
    "run": "train",
    "test": "evaluate",
    "tune": "sweep",
    "validate": "check",
}
_OPTION_SYNONYMS = {"lr": "learning_rate", "epochs": "steps"}


def verb(words: Sequence[str], verbs: Iterable[str]) -> str | None:
    """Return the error of a first word that is not a verb, None if it is one."""
    if not words or words[0].startswith("-") or words[0] in verbs:
        return None
    first, rest = words[0], list(words[1:])
    if is_config(first) or ("=" in first and not first.startswith("=")):
        meant = _command("train", *words)
    elif is_run(first):
        meant = _command("resume", *words)
    elif first.casefold() in _SYNONYMS:
        meant = _command(_SYNONYMS[first.casefold()], *rest)
    else:
        similar = did_you_mean(first, verbs) or f"; expected {', '.join(verbs)}"
        return f'got "{shown(first)}", expected a verb{similar}'
    return f'got "{shown(first)}", expected a verb first; write: {meant}'


def option(name: str, words: Sequence[str]) -> str:
    """Return the override that an unknown option stands for, as a suffix of a message.

    Args:
        name: the unknown word, such as `--hidden-size` or `--hidden-size=64`.
        words: the command line that has it.
    """
    from jaxlstm.lab.config.loading import keys_named

    bare, equals, value = name.lstrip("-").partition("=")
    key = bare.replace("-", "_")
    keys = keys_named(_OPTION_SYNONYMS.get(key, key))
    if not name.startswith("--") or not keys:
        return ""
    following = list(words[list(words).index(name) + 1 :])
    if not equals and following and following[0][:1] != "-":
        value = following[0]
    return f"; write {keys[0]}={shown(value) or 'VALUE'}"


def instead_of_a_prompt(arguments: argparse.Namespace) -> str | None:
    """Return the error of `jaxlstm sample RUN TEXT`, whose text has no `=`."""
    if arguments.verb != "sample":
        return None
    text = next((word for word in arguments.overrides if "=" not in word), None)
    if text is None:
        return None
    return (
        f'sample: got "{shown(text)}", expected KEY=PATH or an option; write --prompt '
        f"{shown(shlex.quote(text))}"
    )


def is_config(word: str) -> bool:
    """Return whether a word names a config file."""
    return word.endswith((".yaml", ".yml")) and not Path(word).is_dir()


def is_run(word: str) -> bool:
    """Return whether a word names a run directory."""
    return (Path(word) / "config.yaml").is_file()


def instead_of_a_run(file: str) -> str:
    """Return the error of a config file that was given as a run."""
    if Path(file).name == "config.yaml" and is_run(str(Path(file).parent)):
        found = Path(file).parent
        return f"{file}: got a file of a run, expected its directory; write {found}"
    return (
        f"{file} is a config file, expected a run directory; train it with: "
        f"{_command('train', file)}"
    )


def instead_of_a_config(run: str) -> str:
    """Return the error of a run directory that was given as a config."""
    return (
        f"{run} is a run directory, expected a config file; continue it with: "
        f"{_command('resume', run)}"
    )


def _command(*words: str) -> str:
    return shown(shlex.join(["jaxlstm", *words]))
