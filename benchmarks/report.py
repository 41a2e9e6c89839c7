"""results/*.json -> the tables and pictures of README.md, between its two markers."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import pictures, tables
from benchmarks.tables import Result

PAGE = Path(__file__).resolve().parent / "README.md"
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
BESIDE = ("stacked", "bidirectional", "ragged", "layer_norm", "zoneout")


def write(results: Sequence[Path], *, page: Path = PAGE) -> list[Path]:
    """Put the results into the page, and their pictures beside them.

    Returns: the files that were written.

    Errors: `ValueError` for no results, and for a page without its markers.
    """
    if not results:
        raise ValueError("there are no results yet; python -m benchmarks run")
    text = page.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{page} needs the lines {BEGIN} and {END}, once each")
    sections, written = [], [page]
    for path in results:
        result = Result.of(json.loads(path.read_text()))
        drawn = pictures.draw(result, path.with_suffix(""))
        links = [os.path.relpath(picture, page.parent) for picture in drawn]
        sections.append(section(path.stem, result, links))
        written += drawn
    head, tail = text.split(BEGIN)[0], text.split(END)[1]
    page.write_text("\n\n".join([head + BEGIN, *sections, END]) + tail)
    return written


def section(name: str, result: Result, links: Sequence[str]) -> str:
    """All that is said of one result."""
    grid, streams = result.cases("grid"), result.cases("stream")
    beside = [case for group in BESIDE for case in result.cases(group)]
    kept = [*grid, *beside, *result.cases("growth"), *result.cases("long")]
    parts = [
        f"## {name}",
        machine(result.plain),
        *(f"![{_alt(link)}]({link})" for link in links),
        *_titled("Training step, the grid", _times(result, grid, "training")),
        *_titled("Forward, the grid", _times(result, grid, "forward")),
        *_titled("Training step, beside it", _times(result, beside, "training")),
        *_titled("Forward, beside it", _times(result, beside, "forward")),
        *_titled("One step at a time", _times(result, streams, "step", tables.US)),
        *_titled("Growth with T", tables.growth(result)),
        *_titled("Compiling a gradient", tables.compiling(result)),
        *_titled(
            "Memory between arguments and results of a training step, MB, by XLA",
            tables.memory(result, kept, "temp training"),
        ),
        *_titled(
            "Growth of the process in its first training step, at its highest, MB",
            tables.memory(result, kept, "peak training"),
        ),
        *_titled(
            "The same with arguments and results, for long sequences, MB, by XLA",
            tables.memory(result, result.cases("long"), "total training"),
        ),
        *_titled("What `unroll` chooses by itself", tables.rule(result)),
        *_titled("The gate tape, beside the forward pass", tables.tape(result)),
        "### Where we lose",
        _list(tables.losses(result)) or "Nowhere, of what was measured here.",
        "### Too noisy to be read",
        _list(tables.noisy(result)) or "None: all quartiles lie within 15 %.",
        "### Who did not take part",
        _list(_absences(result.plain)) or "All did.",
    ]
    return "\n\n".join(parts)


def machine(plain: Mapping[str, Any]) -> str:
    """On what, with what, when."""
    on, seconds = plain["machine"], plain["seconds"]
    versions = [f"{name} {v}" for name, v in on["versions"].items() if v]
    settings = [f"`{name}={value}`" for name, value in on["settings"].items()]
    return (
        f"{on['date']}, {on['cores']} of {on['cores_of_machine']} cores of "
        f"{on['cpu']} ({', '.join(on['vectors'])}), {on['memory_gb']} GB, "
        f"{on['system']}, Python {on['python']}. {', '.join(versions)}; "
        f"commit {on['commit']}. Settings: {', '.join(settings) or 'none'}. "
        f"float32, {seconds:g} s of measuring for each contender of a case."
    )


def _times(
    result: Result, cases: Sequence[str], what: str, unit: tables.Unit = tables.MS
) -> str:
    measured = [case for case in cases if result.at(case, what)]
    return tables.times(result, measured, what, unit)


def _titled(title: str, table: str) -> list[str]:
    """A table below its title; nothing where the table has no rows."""
    return [f"### {title}", table] if table.count("\n") > 1 else []


def _alt(link: str) -> str:
    if link.endswith("-growth.png"):
        return "Time per step of a training step as sequences grow"
    return "Speed beside torch at each point of the grid"


def _list(sentences: Sequence[str]) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences)


def _absences(plain: Mapping[str, Any]) -> list[str]:
    """A line for each reason: who, why, and in which cases."""
    found = [(name, reason, "") for name, reason in plain["absent"].items()]
    found += [
        (row["contender"], row["reason"], f"{row['case']} {row['what']}")
        for row in plain["refusals"]
    ]
    lines = []
    for reason in dict.fromkeys(reason for _, reason, _ in found):
        about = [(name, where) for name, why, where in found if why == reason]
        names = list(dict.fromkeys(name for name, _ in about))
        cases = list(dict.fromkeys(where for _, where in about))
        where = f" ({_shortened(cases)})" if any(cases) else ""
        lines.append(f"{', '.join(names)}: {reason}{where}")
    return sorted(lines)


def _shortened(where: Sequence[str], limit: int = 4) -> str:
    more = len(where) - limit
    return ", ".join(where[:limit]) + (f" and {more} more" if more > 0 else "")
