"""Look for units of a trained model that follow something in a text.

run -> text -> traces of all units -> findings -> findings.md and pictures
"""

import contextlib
import json
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
from rich.console import Console

from jaxlstm.lab._util.errors import BadInput, LabError
from jaxlstm.lab._util.files import reason, sync, write_atomic
from jaxlstm.lab.analysis import features, results, search, traces, wording
from jaxlstm.lab.analysis import text as texts
from jaxlstm.lab.analysis.layers import facts_of_layers
from jaxlstm.lab.analysis.results import Inspection
from jaxlstm.lab.analysis.search import Finding, Search
from jaxlstm.lab.analysis.traces import Traces
from jaxlstm.lab.reports import report as reports
from jaxlstm.lab.runs.trained import Trained, load
from jaxlstm.lab.sinks.formatting import printable

PAGE, DATA = "findings.md", "findings.json"


def inspect(
    run: str | Path,
    *,
    input: str | Path | None = None,
    text: str | None = None,
    out: str | Path | None = None,
    overrides: Sequence[str] = (),
    report: Callable[[str], object] = warnings.warn,
) -> Inspection:
    """Look for units of a trained language model that follow something in the text.

    Units are compared with features of a text: inside brackets, strings or comments,
    the position in the line, after one symbol and before another. They are chosen on
    one half of the text and tested on the other. Writes a page with pictures. A task
    with the member `inspect` describes its models itself.

    Args:
        run: A run directory.
        input: A text file to read instead of the run's validation text.
        text: A text to read instead. If it is too short to be searched, it is shown in
            the pictures, and the validation text is searched.
        out: The output directory; None for `inspect` in the run directory.
        overrides: New paths of data that was moved, as for `load`.
        report: Receives warnings, such as a damaged checkpoint.

    Returns:
        The findings; `page` is the path of `findings.md`.

    Raises:
        BadInput: There is no run, its task does not describe its models, `input` and
            `text` are both given, the text is too short or mostly not in the
            vocabulary, the validation text is needed and missing, or `out` cannot be
            written.
        LabError: Every checkpoint is damaged, a parameter is not finite, or a file
            cannot be written. An earlier page is then unchanged.
    """
    if input is not None and text is not None:
        raise BadInput("inspect: got both --input and --text, expected one of them")
    trained = load(run, overrides=overrides, report=report)
    trained.require_finite()
    if not hasattr(trained.task, "cell"):
        if input is not None or text is not None:
            raise BadInput(
                f"inspect: got a text for a run of the task {trained.task.name}, "
                "expected none: only language models read text"
            )
        return _inspect_task(trained, out)
    searched, drawn = texts.choose(trained, input, text, report)
    target = trained.run / "inspect" if out is None else Path(out)
    with _replacing(target) as new:
        seen = traces.record(trained, searched)
        shown = seen if drawn is searched else traces.record(trained, drawn)
        layers = facts_of_layers(trained, seen)
        found = Inspection(target / PAGE, *_search(trained, seen), layers)
        _write(new, trained, found, seen, shown)
    return found


def _inspect_task(trained: Trained, out: str | Path | None) -> Inspection:
    """Write the page of a task that describes its models itself."""
    describe = getattr(trained.task, "inspect", None)
    if describe is None:
        raise BadInput(
            f"inspect: got a run of the task {trained.task.name}, which does not "
            f"describe its units; its results are in {trained.run / 'report.md'}"
        )
    target = trained.run / "inspect" if out is None else Path(out)
    page = [f"# Units of {printable(trained.run.resolve().name)}"]
    with _replacing(target) as new:
        for artifact in describe(trained):
            page += [f"## {artifact.title}", artifact.text]
            for picture in artifact.pictures:
                reports.save(picture, new / picture.name)
                shown = f"![{picture.caption}]({picture.name})"
                page += [shown, f"*{picture.caption}*"]
        data = {"run": str(trained.run), "step": trained.step}
        write_atomic(new / PAGE, ("\n\n".join(page) + "\n").encode())
        write_atomic(new / DATA, f"{json.dumps(data, indent=2)}\n".encode())
    return Inspection(target / PAGE, None, [], [])


def show(found: Inspection) -> None:
    """Print the page without pictures and definitions."""
    console = Console(markup=False, emoji=False, highlight=False)
    markdown = found.page.read_text(encoding="utf-8")
    for block in markdown.partition(results.DEFINITIONS)[0].strip().split("\n\n"):
        if not re.match(r"!\[|\*[^*]", block):  # a picture or its caption
            is_bold = block.startswith("#") and not console.no_color
            style = "bold" if is_bold else None
            text = printable(block).lstrip("# ").replace("**", "")
            console.print(text, style=style, end="\n\n")
    number = markdown.count("\n![")
    pictures = "1 picture" if number == 1 else f"{number} pictures"
    console.print(f"{found.page}, with {pictures} beside it", soft_wrap=True)


def _search(trained: Trained, seen: Traces) -> tuple[Search | None, list[Finding]]:
    """Search states and gates; return None and no gates for a short text."""
    positions, text = seen.positions.ravel(), seen.text
    if len(positions) < texts.SEARCHABLE:
        return None, []
    other_seed = jax.random.key(trained.config.seed + 1)
    initial, _ = trained.model.init(other_seed)
    untrained = traces.record(trained, text, params=initial)
    states, other_states = (
        [units[traces.memory(units)] for units in one.layers]
        for one in (seen, untrained)
    )
    columns, tokens = features.of_text(text.symbols, positions), text.tokens[positions]
    result = search.search(columns, states, tokens, other_states)
    symbols = [text.symbols[at] for at in positions]
    findings = []
    for finding in result.findings:
        layer, unit = finding.unit
        values = traces.gates_and_memory(seen.layers[layer])
        own = {name: value[:, unit] for name, value in values.items()}
        findings.append(wording.with_sentence(finding, own, symbols))
    gates, other_gates = (
        [traces.gates(units) for units in one.layers] for one in (seen, untrained)
    )
    single = features.of_symbols(text.symbols, positions)
    switches = search.gate_switches(single, gates, other_gates)
    return result._replace(findings=findings), switches


@contextlib.contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """Yield a temporary directory, whose files replace those of an earlier inspection.

    Raises:
        BadInput: `target` cannot be written; raised before the block is entered.
        LabError: A file cannot be written; `target` is unchanged.
    """
    new = target / ".inspect-new"
    for name in PAGE, DATA:
        if (target / name).is_dir():
            raise BadInput(f"{target / name}: is a directory; choose another --out")
    try:
        target.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(new, ignore_errors=True)  # of an interrupted inspection
        new.mkdir()
    except (OSError, ValueError) as error:
        raise BadInput(
            f"{target}: cannot be written ({reason(error)}); choose another --out"
        ) from None
    try:
        yield new
        # The page is removed first and moved last: while it exists, all is complete.
        (target / PAGE).unlink(missing_ok=True)
        for old in target.glob("*.png"):
            if re.fullmatch(r"(finding-\d+|layer-\d+-[a-z-]+|decision)\.png", old.name):
                old.unlink()
        for name in (*sorted(path.name for path in new.glob("*.png")), DATA, PAGE):
            (new / name).replace(target / name)
        sync(target)
    except OSError as error:
        raise LabError(f"{target}: cannot be written ({reason(error)})") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _write(
    new: Path, trained: Trained, found: Inspection, seen: Traces, shown: Traces
) -> None:
    """Draw the pictures; write the page and its numbers."""
    columns = [one.feature for one in found.search.findings] if found.search else []
    if columns and shown is not seen:
        columns = features.of_text(shown.text.symbols, shown.positions.ravel())
    marks = {feature.phrase: feature.values for feature in columns}
    title = f"# Units of {printable(trained.run.resolve().name)}"
    introduction = _introduction(trained, seen, shown)
    blocks = [title, introduction, *results.blocks(found, shown, marks)]
    for block in blocks:
        if not isinstance(block, str):
            reports.save(block, new / block.name)
    markdown = "\n\n".join(map(results.show, blocks)) + "\n"
    text = {"source": seen.text.source, "symbols": seen.positions.size}
    data = {"run": str(trained.run), "step": trained.step, "text": text}
    data |= results.to_json(found)
    write_atomic(new / PAGE, markdown.encode())
    write_atomic(new / DATA, f"{json.dumps(data, indent=2)}\n".encode())


def _introduction(trained: Trained, seen: Traces, shown: Traces) -> str:
    layers, (rows, size) = len(seen.layers), seen.positions.shape
    source = printable(seen.text.source)
    if len(seen.text.tokens) == texts.LONGEST:
        source = f"the first {texts.LONGEST:,} symbols of {source}"
    sentences = [
        f"The model of step {trained.step}, {layers} recurrent "
        f"layer{'s'[: layers > 1]} ({trained.config.model.cell.name}), read "
        f"{rows * size:,} symbols of {source}"
        + (f", in {rows} evenly spaced passages." if rows > 1 else ".")
    ]
    if shown is not seen:
        sentences.append(f"The pictures show {printable(shown.text.source)}.")
    if rows * size < texts.SEARCHABLE:
        sentences.append(
            "The text is too short to search for units that follow it: "
            f"{texts.SEARCHABLE:,} symbols are needed."
        )
    return " ".join(sentences)
