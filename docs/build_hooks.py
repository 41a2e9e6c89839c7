"""Hooks of the documentation build: everything on the pages that is generated.

A page asks for generated text with an HTML comment on a line of its own:

    <!-- generated: configuration -->
    <!-- generated: speed training -->
    <!-- generated: speed forward -->

Pictures are not kept twice: `images/NAME.png` on a page is a file of `notebooks/` or
`benchmarks/results/`.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PICTURES = (
    ROOT / "notebooks" / "forget_gate.png",
    ROOT / "notebooks" / "bracket_unit.png",
    RESULTS / "cpu-4-cores-growth-growth.png",
)
JAX_PEERS = ("flax linen", "flax nnx", "haiku", "equinox", "keras")
# Above this spread a library stalled in the run, and no ratio is computed with it.
STALLED = 0.3
SELECTS = "Selects this section."  # the keys whose only value is the section's name
GENERATED = re.compile(r"^<!-- generated: (.+) -->$", re.MULTILINE)


def on_files(files, config):
    """Add the pictures that other folders keep."""
    for picture in PICTURES:
        files.append(
            File.generated(config, f"images/{picture.name}", abs_src_path=str(picture))
        )
    return files


def on_page_markdown(markdown, **_):
    """Replace each request for generated text."""
    return GENERATED.sub(lambda match: _generate(*match[1].split()), markdown)


def on_page_content(html, page, **_):
    """Check that all fences became code blocks; in docstrings they may not.

    Raises:
        PluginError: the page shows a fence.
    """
    if "```" in html:
        raise PluginError(f"{page.file.src_path}: a code block is not rendered")
    return html


def _generate(topic: str, *arguments: str) -> str:
    makers = {"configuration": configuration, "speed": speed}
    return makers[topic](*arguments)


def configuration() -> str:
    """Return the tables of every key of a config, from its JSON schema."""
    from jaxlstm.lab import json_schema

    schema = json_schema()
    models = schema.get("$defs", {})
    roots = {"The whole file": schema} if "properties" in schema else {}
    lines: list[str] = []
    for title, model in {**roots, **models}.items():
        if "properties" not in model:
            continue
        lines += [f"## {title}", ""]
        if title in models and model.get("description"):
            lines += [_cell(model["description"]), ""]
        lines += ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
        required = model.get("required", [])
        for key, field in model["properties"].items():
            default = "required" if key in required else _default(field)
            lines.append(
                f"| `{key}` | {_type(field)} | {default} "
                f"| {_cell(field.get('description', SELECTS))} |"
            )
        lines.append("")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _default(field: Mapping[str, Any]) -> str:
    if "default" not in field:
        return ""
    value = field["default"]
    if isinstance(value, (dict, list)) and value:
        return "see the section" if isinstance(value, dict) else "see quickstart.yaml"
    return f"`{json.dumps(value)}`"


def _type(field: Mapping[str, Any]) -> str:
    """Return the type, with links to the sections that describe it."""
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "const" in field:
        return f"`{json.dumps(field['const'])}`"
    if "enum" in field:
        return ", ".join(f"`{json.dumps(value)}`" for value in field["enum"])
    for union in ("oneOf", "anyOf"):
        if union in field:
            return " or ".join(dict.fromkeys(map(_type, field[union])))
    kind = field.get("type", "any")
    kind = " or ".join(kind) if isinstance(kind, list) else kind
    return f"{kind}{_limits(field)}"


def _limits(field: Mapping[str, Any]) -> str:
    limits = {
        "minimum": "≥\N{NO-BREAK SPACE}{}",
        "exclusiveMinimum": ">\N{NO-BREAK SPACE}{}",
        "maximum": "≤\N{NO-BREAK SPACE}{}",
        "exclusiveMaximum": "<\N{NO-BREAK SPACE}{}",
    }
    # The largest 32-bit integers and the like are limits of storage, not of meaning.
    found = [
        words.format(f"{field[name]:g}")
        for name, words in limits.items()
        if name in field and abs(field[name]) < 1e6
    ]
    return f", {', '.join(found)}" if found else ""


def speed(what: str) -> str:
    """Return the table of ratios to torch and to the fastest JAX peer.

    In these results the contender "jaxlstm" is `adjoint`, the default engine then.
    torch is measured beside jaxlstm alone, because its threads stall with ten other
    libraries in the process.
    """
    peers, torch = _result("cpu-4-cores"), _result("cpu-4-cores-torch")
    columns: list[list[float]] = [[], [], [], []]
    rows = []
    for case, size in _grid(peers):
        ratios = []
        for ours in ("jaxlstm native", "jaxlstm"):
            ratios.append(_ratio(torch, case, what, ours, ("torch",)))
            ratios.append(_ratio(peers, case, what, ours, JAX_PEERS))
        for column, ratio in zip(columns, ratios, strict=True):
            column.append(ratio)
        rows.append(f"| {size} | {' | '.join(map(_short, ratios))} |")
    means = [math.exp(sum(map(math.log, column)) / len(column)) for column in columns]
    machine = peers["machine"]
    versions = machine["versions"]
    return "\n".join(
        [
            "| T, B, D, H | `native` / torch | `native` / best JAX peer "
            "| `adjoint` / torch | `adjoint` / best JAX peer |",
            "| --- | ---: | ---: | ---: | ---: |",
            *rows,
            f"| geometric mean | {' | '.join(map(_short, means))} |",
            "",
            f"{machine['cpu']}, {machine['cores']} cores "
            f"({', '.join(machine['vectors'])}), {machine['date']}, jax "
            f"{versions['jax']}, torch {versions['torch']}, Flax {versions['flax']}, "
            f"Haiku {versions['dm-haiku']}, Equinox {versions['equinox']}, Keras "
            f"{versions['keras']}.",
        ]
    )


def _result(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text())


def _grid(result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, case in result["cases"].items():
        if case["group"] == "grid":
            sizes = (case[key] for key in ("time", "batch", "features", "units"))
            # No-break spaces keep the sizes on one line of a narrow table.
            yield name, ",\N{NO-BREAK SPACE}".join(map(str, sizes))


def _ratio(
    result: Mapping[str, Any], case: str, what: str, ours: str, others: tuple[str, ...]
) -> float:
    """Return how many times faster `ours` is than the fastest of the others."""
    rows = {
        row["contender"]: row
        for row in result["rows"]
        if (row["case"], row["what"]) == (case, what)
        and (row["high"] - row["low"]) / 2 / row["median"] <= STALLED
    }
    fastest = min(rows[name]["median"] for name in others if name in rows)
    return fastest / rows[ours]["median"]


def _short(ratio: float) -> str:
    """Return a ratio with two digits below 1.2, and with one digit above."""
    return f"{ratio:.2f}" if ratio < 1.2 else f"{ratio:.1f}"
