"""Look inside a trained run: which units stand for something, what its layers are like.

run ──> text ──> what every unit did ──> findings ──> pictures, findings.md
"""

import contextlib
import io
import itertools
import json
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.text import Text as Line

from jaxlstm.lab._util.errors import BadInput, LabError
from jaxlstm.lab._util.files import reason, sync, write_atomic
from jaxlstm.lab.analysis import features, findings, passages, readings, sentences
from jaxlstm.lab.analysis.features import Feature
from jaxlstm.lab.analysis.findings import Finding, Search, Unit
from jaxlstm.lab.analysis.readings import LayerFacts, Text, Watched
from jaxlstm.lab.analysis.sentences import Page, Picture
from jaxlstm.lab.reports import report as reports
from jaxlstm.lab.runs.trained import Trained, load
from jaxlstm.lab.sinks.formatting import printable
from jaxlstm.lab.tasks.base import Picture as Drawing

Floats = NDArray[np.floating]

WRITTEN = ("findings.md", "findings.json")
LONG_ENOUGH = 3000  # symbols, below which nothing is searched for in a text


class Inspection(NamedTuple):
    """What was found in a run.

    page       `findings.md`, with the pictures and `findings.json` beside it
    search     the units that stand for something, and how many were compared; None
               where there was no text long enough
    switched   gates that a symbol switches
    layers     what each recurrent layer is like
    """

    page: Path
    search: Search | None
    switched: list[Finding]
    layers: list[LayerFacts]


def inspect(
    run: str | Path,
    *,
    input: str | Path | None = None,
    text: str | None = None,
    out: str | Path | None = None,
    report: Callable[[str], object] = warnings.warn,
) -> Inspection:
    """Find out what the units of a trained model do, with pictures and in sentences.

    Units are compared with what can be said of a text (inside brackets, strings,
    comments; the position in the line; after one symbol and before another), chosen
    on one half of it and judged on the other.

    Arguments:
        run: a run directory.
        input: a text file to read instead of the run's validation text.
        text: a text to read. One too short to be searched is what the pictures show,
            and the validation text is searched.
        out: the directory to write to; None for `inspect` in the run directory.
        report: is told what stands in for what could not be used.

    Returns: what was found; `page` is the path of `findings.md`.

    Errors: `BadInput` where there is no run, for input and text together, for a text
    that is too short or has symbols that the model does not know, for data that are
    no longer there while no text is given, and for an `out` that cannot be written;
    `LabError` where every checkpoint is damaged.
    """
    if input is not None and text is not None:
        raise BadInput("inspect: both --input and --text came; give one of them")
    model = load(run, report=report)
    if not hasattr(model.task, "cell"):
        raise BadInput(
            f"inspect: got a run of the task {model.task.name}, expected a language "
            "model: units are compared with the text they read"
        )
    given = _given(model, input, text)
    searched = _to_search(model, given, report)
    place = _writable(model.run / "inspect" if out is None else Path(out))
    watched = readings.watch(model, searched)
    shown = watched
    if given is not None and given is not searched:
        shown = readings.watch(model, given)
    columns = features.of_text(watched.text.symbols, watched.places.ravel())
    search, switched = _search(model, watched, columns)
    layers = readings.layer_facts(model, watched)
    found = Inspection(place / "findings.md", search, switched, layers)
    if shown is not watched:
        columns = features.of_text(shown.text.symbols, shown.places.ravel())
    with _aside(place) as new:
        drawings = _draw(found, watched, shown, columns, new)
        page = _page(model, found, drawings, _read(model, watched, shown))
        _write(new, page, _as_json(model, found, watched))
        _publish(new, place)
    return found


def show(found: Inspection) -> None:
    """Print the page on the screen, without its pictures and definitions."""
    console = Console(markup=False, emoji=False, highlight=False)
    page = found.page.read_text(encoding="utf-8")
    text, _, _ = page.partition(sentences.DEFINITIONS)
    for block in text.strip().split("\n\n"):
        if not re.match(r"!\[|\*[^*]", block):
            console.print(_line(block), Line(), sep="\n")
    pictures = page.count("\n![")
    console.print(f"{found.page}, with {pictures} pictures beside it", soft_wrap=True)


def _line(block: str) -> Line:
    """Markdown as a screen has it: headings and names in bold."""
    if block.startswith("#"):
        return Line(block.lstrip("# "), style="bold")
    line = Line()
    for number, piece in enumerate(printable(block).split("**")):
        line.append(piece, style="bold" if number % 2 else "")
    return line


# -- which text --------------------------------------------------------------


def _given(model: Trained, input: str | Path | None, text: str | None) -> Text | None:
    if text is not None:
        text = io.StringIO(text, newline=None).read()  # line ends as in a file
        return readings.given_text(model, text, "--text")
    return None if input is None else readings.file_text(model, input)


def _to_search(
    model: Trained, given: Text | None, report: Callable[[str], object]
) -> Text:
    """The user's text where it is long enough, and else the validation text."""
    if given is not None and len(given.symbols) >= LONG_ENOUGH:
        return given
    try:
        return readings.validation_text(model)
    except BadInput as error:
        if given is None:
            raise BadInput(f"{error} (or give a text with --input or --text)") from None
        report(f"{error}; so nothing is searched for, and {given.source} is shown")
        return given


# -- the search --------------------------------------------------------------


def _search(
    model: Trained, watched: Watched, columns: Sequence[Feature]
) -> tuple[Search | None, list[Finding]]:
    """What units stand for and which gates switch; None for a text too short."""
    places = watched.places.ravel()
    if len(places) < LONG_ENOUGH:
        return None, []
    beside = readings.watch(readings.untrained(model), watched.text)
    states, others = (
        [_flat(readings.holds(trace)) for trace in seen.traces]
        for seen in (watched, beside)
    )
    units = [
        Unit(layer, unit)
        for layer, state in enumerate(states)
        for unit in range(state.shape[1])
    ]
    search = findings.search(
        [column for column in columns if column.symbol is None],
        np.concatenate(states, axis=1),
        watched.text.tokens[places],
        units,
        np.concatenate(others, axis=1),
    )
    symbols = [watched.text.symbols[place] for place in places]
    told = [
        sentences.told(finding, _of_unit(watched, finding.place), symbols)
        for finding in search.findings
    ]
    return search._replace(findings=told), _switched(watched, beside, columns)


def _switched(
    watched: Watched, beside: Watched, columns: Sequence[Feature]
) -> list[Finding]:
    single = [column for column in columns if column.symbol is not None]
    found = []
    for layer, traces in enumerate(zip(watched.traces, beside.traces, strict=True)):
        gates, others = (
            {name: _flat(v) for name, v in readings.gates_of(trace).items()}
            for trace in traces
        )
        size = max((gate.shape[1] for gate in gates.values()), default=0)
        units = [Unit(layer, unit) for unit in range(size)]
        found += findings.switched(single, gates, units, others)
    return found


def _of_unit(watched: Watched, place: Unit) -> dict[str, Floats]:
    """All that one unit did, `[N]` each."""
    trace = watched.traces[place.layer]
    held = "c" if hasattr(trace.state, "c") else "h"
    own = {held: readings.holds(trace)} | readings.gates_of(trace)
    return {name: _flat(values)[:, place.unit] for name, values in own.items()}


def _flat(values: Any) -> Floats:
    """`[S, R, H]` as one text of N symbols, `[N, H]`, a stretch after the other."""
    whole = np.asarray(values, np.float32).swapaxes(0, 1)
    return whole.reshape(-1, whole.shape[-1])


# -- what is left behind -------------------------------------------------------


def _writable(place: Path) -> Path:
    """The directory, in which nothing is touched before there is something new."""
    probe = place / ".inspect"
    for name in WRITTEN:
        if (place / name).is_dir():
            raise BadInput(f"{place / name} is a directory; choose another --out")
    try:
        place.mkdir(parents=True, exist_ok=True)
        write_atomic(probe, b"\n")
        probe.unlink()
    except (OSError, ValueError) as error:
        raise BadInput(
            f"{place} cannot be written ({reason(error)}); choose another --out"
        ) from None
    return place


@contextlib.contextmanager
def _aside(place: Path) -> Iterator[Path]:
    """A directory within, for what is not yet whole; nothing is left of it.

    Errors: `LabError` for what cannot be written; before it is published, what was
    there is there still.
    """
    new = place / ".inspect-new"
    try:
        shutil.rmtree(new, ignore_errors=True)  # of one that was killed
        new.mkdir()
        yield new
    except OSError as error:
        raise LabError(f"{place} cannot be written ({reason(error)})") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _publish(new: Path, place: Path) -> None:
    """Put the new in the place of the old: the page goes first and comes last."""
    page, data = WRITTEN
    (place / page).unlink(missing_ok=True)
    for old in place.glob("*.png"):
        if re.fullmatch(r"(finding-\d+|layer-\d+-[a-z-]+)\.png", old.name):
            old.unlink()
    pictures = sorted(path.name for path in new.glob("*.png"))
    for name in (*pictures, data, page):
        (new / name).replace(place / name)
    sync(place)


def _draw(
    found: Inspection,
    watched: Watched,
    shown: Watched,
    columns: Sequence[Feature],
    new: Path,
) -> tuple[list[Drawing], list[list[Drawing]]]:
    """Draw and save the pictures: one for each finding, some for each layer."""
    held = found.search.findings if found.search else []
    of_units = [
        passages.of_finding(number, finding, shown, columns)
        for number, finding in enumerate(held, 1)
    ]
    of_layers = [
        passages.of_layer(number, facts, watched, shown)
        for number, facts in enumerate(found.layers)
    ]
    for drawing in itertools.chain(of_units, *of_layers):
        reports.save(drawing, new / drawing.name)
    return of_units, of_layers


def _page(
    model: Trained,
    found: Inspection,
    drawings: tuple[list[Drawing], list[list[Drawing]]],
    read: str,
) -> Page:
    of_units, of_layers = drawings
    return Page(
        f"Inside {printable(model.run.resolve().name)}",
        read,
        found.search,
        found.switched,
        found.layers,
        [_on_page(drawing) for drawing in of_units],
        [[_on_page(drawing) for drawing in layer] for layer in of_layers],
    )


def _write(new: Path, page: Page, data: Mapping[str, Any]) -> None:
    texts = sentences.written(page), json.dumps(data, indent=2) + "\n"
    for name, text in zip(WRITTEN, texts, strict=True):
        write_atomic(new / name, text.encode())


def _on_page(drawing: Drawing) -> Picture:
    return Picture(drawing.name, drawing.caption)


def _read(model: Trained, watched: Watched, shown: Watched) -> str:
    """What was read, and by what."""
    layers, (rows, size) = len(watched.traces), watched.places.shape
    source = printable(watched.text.source)
    if len(watched.text.tokens) == readings.LARGEST_TEXT:
        source = f"the first {readings.LARGEST_TEXT:,} symbols of {source}"
    said = [
        f"The model of step {model.step}, {layers} recurrent layer{'s'[: layers > 1]} "
        f"({model.config.model.cell.name}), read {rows * size:,} symbols of {source}"
        + (f", in {rows} stretches spread over it." if rows > 1 else ".")
    ]
    if shown is not watched:
        said.append(f"The pictures are over {printable(shown.text.source)}.")
    if rows * size < LONG_ENOUGH:
        said.append(
            "That is too little to search it for what units stand for: "
            f"{LONG_ENOUGH:,} symbols are needed."
        )
    return " ".join(said)


def _as_json(model: Trained, found: Inspection, watched: Watched) -> dict[str, Any]:
    search = found.search
    return {
        "run": str(model.run),
        "step": model.step,
        "text": {"source": watched.text.source, "symbols": watched.places.size},
        "searched": None
        if search is None
        else {
            "columns": search.columns,
            "units": search.units,
            "candidates": search.candidates,
        },
        "findings": [
            *map(_finding, search.findings if search else []),
            *map(_finding, found.switched),
        ],
        "layers": [_layer(facts) for facts in found.layers],
    }


def _finding(finding: Finding) -> dict[str, Any]:
    beyond = {"memory": finding.memory} if finding.kind == "state" else {}
    return {
        "kind": finding.kind,
        "layer": finding.place.layer + 1,
        "unit": finding.place.unit,
        "feature": finding.feature.phrase,
        "score": finding.score,
        **beyond,
        "chance": finding.chance,
        **finding.facts,
        "sentence": finding.sentence,
    }


def _layer(facts: LayerFacts) -> dict[str, Any]:
    taus, (low, high) = facts.timescales, facts.saturation or ({}, {})
    return {
        "units": facts.units,
        "saturated": {
            name: {"shut": float(low[name].mean()), "open": float(high[name].mean())}
            for name in high
        },
        "timescales": None if taus is None else [_number(tau) for tau in taus.tolist()],
        "dead": facts.dead,
        "duplicates": facts.duplicates,
        "gradient_reach": facts.reach,
        "memory_span": facts.span,
        "steps": facts.steps,
    }


def _number(value: float) -> float | None:
    """None for what JSON has no number for: a unit that never forgets."""
    return value if np.isfinite(value) else None
