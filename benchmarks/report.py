"""Write results/*.json as tables and plots into README.md, between its two markers."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import pictures, tables
from benchmarks.tables import Result

PAGE = Path(__file__).resolve().parent / "README.md"
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
MODELS = {  # the title of each group of cases with a table of its own
    "grid": "the grid",
    "stacked": "two layers",
    "gru": "GRU",
    "bidirectional": "two bidirectional layers",
    "ragged": "ragged rows, half padding",
    "layer_norm": "layer norm",
    "zoneout": "zoneout",
}


def write(results: Sequence[Path], *, page: Path = PAGE) -> list[Path]:
    """Write the results into the page, and their plots next to the JSON files.

    Returns:
        The files that were written.

    Raises:
        ValueError: no results, or a page without its markers.
    """
    if not results:
        raise ValueError(
            "results: got none; measure first with python -m benchmarks run"
        )
    text = page.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{page}: expected the lines {BEGIN} and {END}, once each")
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
    """Return the section of one result."""
    with_memory = [
        case for group in (*MODELS, "growth", "long") for case in result.cases(group)
    ]
    parts = [
        f"## {name}",
        machine(result.plain),
        *(f"![{_alt(link)}]({link})" for link in links),
        *(
            part
            for group, title in MODELS.items()
            for what, words in (("training", "Training step"), ("forward", "Forward"))
            for part in _titled(
                f"{words}, {title}", _times(result, result.cases(group), what)
            )
        ),
        *_titled(
            "A training step of 16 members, by `vmap` and one after another",
            tables.populations(result),
        ),
        *_titled(
            "Share of the machine's limit, training step",
            tables.limits(result, "training"),
        ),
        *_titled(
            "Share of the machine's limit, forward", tables.limits(result, "forward")
        ),
        *_titled(
            "One step at a time",
            _times(result, result.cases("stream"), "step", tables.US),
        ),
        *_titled("Growth with T", tables.growth(result)),
        *_titled("Compiling a gradient", tables.compiling(result)),
        *_titled("Tracing and compiling a stack", tables.tracing(result)),
        *_titled(
            "Temporary memory of a training step, MB, by XLA",
            tables.memory(result, with_memory, "temp training"),
        ),
        *_titled(
            "Peak growth of the process in its first training step, MB",
            tables.memory(result, with_memory, "peak training"),
        ),
        *_titled(
            "Memory including arguments and results, for long sequences, MB, by XLA",
            tables.memory(result, result.cases("long"), "total training"),
        ),
        *_titled("Engine chosen by `unroll`", tables.engine_choice(result)),
        *_titled(
            "Cost of a trace, relative to the forward pass", tables.traces(result)
        ),
        "### Where something else is faster",
        _list(tables.losses(result)) or "Nowhere in these measurements.",
        "### Too noisy to use",
        _list(tables.noisy(result))
        or "None: half the interquartile range is below 15 % of each median.",
        "### Not measured",
        _list(_absences(result.plain)) or "Everything was measured.",
    ]
    return "\n\n".join(parts)


def machine(plain: Mapping[str, Any]) -> str:
    """Return a line about date, machine, versions and settings."""
    on, seconds = plain["machine"], plain["seconds"]
    versions = [f"{name} {v}" for name, v in on["versions"].items() if v]
    settings = [f"`{name}={value}`" for name, value in on["settings"].items()]
    return (
        f"{on['date']}, {on['cores']} of {on['cores_of_machine']} cores of "
        f"{on['cpu']} ({', '.join(on['vectors'])}), {on['memory_gb']} GB, "
        f"{on['system']}, Python {on['python']}. {', '.join(versions)}; "
        f"commit {on['commit']}. Settings: {', '.join(settings) or 'none'}. "
        f"float32, {seconds:g} s per contender of a case."
    )


def _times(
    result: Result, cases: Sequence[str], what: str, unit: tables.Unit = tables.MS
) -> str:
    measured = [case for case in cases if result.at(case, what)]
    return tables.times(result, measured, what, unit)


def _titled(title: str, table: str) -> list[str]:
    """Return a heading and its table, or nothing if the table has no rows."""
    return [f"### {title}", table] if table.count("\n") > 1 else []


def _alt(link: str) -> str:
    if link.endswith("-growth.png"):
        return "Time per step of a training step as sequences grow"
    group = next((g for g in pictures.GROUPS if link.endswith(f"-{g}-ratio.png")), "")
    model = f", {MODELS[group]}" if group else ""
    return f"Speed relative to torch at each size of the grid{model}"


def _list(sentences: Sequence[str]) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences)


def _absences(plain: Mapping[str, Any]) -> list[str]:
    """Return a line for each reason, with its contenders and cases."""
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
