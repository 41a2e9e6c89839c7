"""The house numbers, counted: `python tests/house.py` prints them and their limits.

Nothing here imports the library; everything is read from its source.
"""

import ast
import itertools
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import grimp

ROOT = Path(__file__).resolve().parents[1]
SOURCE, TESTS = ROOT / "src" / "jaxlstm", ROOT / "tests"

Function = ast.FunctionDef | ast.AsyncFunctionDef
Documented = ast.Module | ast.ClassDef | Function


class Number(NamedTuple):
    """One house number: what is counted, the count, and what is wanted of it."""

    name: str
    value: float
    wanted: str
    kept: bool


def numbers() -> list[Number]:
    """All of them, in the order of CONTRIBUTING.md."""
    trees = {path: ast.parse(path.read_text()) for path in sorted(SOURCE.rglob("*.py"))}
    functions = [node for tree in trees.values() for node in _functions(tree)]
    public = [node for tree in trees.values() for node in _public(tree)]
    bodies = [_body_lines(node) for node in functions]
    files = [_lines(path) for path in trees if path.name != "__init__.py"]
    optional = [_optional(node) for node in public]
    keyword_only = sum(only for only, _ in optional) / sum(all_ for _, all_ in optional)
    core = {p: t for p, t in trees.items() if SOURCE / "lab" not in p.parents}
    source = sum(_lines(path) for path in trees)
    tests = sum(_lines(path) for path in TESTS.rglob("*.py"))
    graph = grimp.build_graph("jaxlstm")
    return [
        _at_most("import cycles", _cycles(graph), 0),
        _at_most("import depth, in floors", _depth(_floors(graph)), 8),
        _at_most("public names at the top", _public_names(), 47),
        _at_least("public signatures annotated", _share(_is_annotated, public), 1),
        _at_least("optional arguments keyword-only", keyword_only, 0.9),
        _at_most("median function body, lines", statistics.median(bodies), 10),
        _at_most("functions above 45 lines", sum(size > 45 for size in bodies), 4),
        _at_most("median file, lines", statistics.median(files), 200),
        _at_most("files above 400 lines", sum(size > 400 for size in files), 4),
        _between(
            "docstrings below lab, share of lines", _documented(core), 0.25, 1 / 3
        ),
        _at_least("docstrings in all, share of lines", _documented(trees), 0.2),
        _at_least("tests, share of the source", tests / source, 0.8),
    ]


def table() -> str:
    """The numbers as the rows of a Markdown table."""
    rows = [f"| {n.name} | {n.value:.3g} | {n.wanted} |" for n in numbers()]
    return "\n".join(
        ["| house number | counted | wanted |", "| --- | --- | --- |", *rows]
    )


def _at_most(name: str, value: float, limit: float) -> Number:
    return Number(name, value, f"at most {limit:g}", value <= limit)


def _at_least(name: str, value: float, limit: float) -> Number:
    return Number(name, value, f"at least {limit:g}", value >= limit)


def _between(name: str, value: float, low: float, high: float) -> Number:
    return Number(name, value, f"{low:.2g} to {high:.2g}", low <= value <= high)


def _functions(tree: ast.Module) -> Iterator[Function]:
    """All functions but the empty ones of protocols and overloads."""
    for node in ast.walk(tree):
        if isinstance(node, Function) and _body_lines(node):
            yield node


def _public(tree: ast.Module) -> Iterator[Function]:
    """The functions and methods that a user can name."""
    for node in tree.body:
        inside = node.body if isinstance(node, ast.ClassDef) else [node]
        for one in inside:
            if isinstance(one, Function) and not one.name.startswith("_"):
                yield one


def _body_lines(node: Function) -> int:
    """The lines of a body without its docstring; 0 for a lone ellipsis."""
    body = node.body[1:] if ast.get_docstring(node) else node.body
    if not body or ast.unparse(body[0]) == "...":
        return 0
    return (body[-1].end_lineno or 0) - body[0].lineno + 1


def _docstring_lines(tree: ast.Module) -> int:
    documented = (node for node in ast.walk(tree) if isinstance(node, Documented))
    found = (ast.get_docstring(node, clean=False) for node in documented)
    return sum(text.count("\n") + 1 for text in found if text)


def _documented(trees: dict[Path, ast.Module]) -> float:
    """The share of docstrings in the lines of these files."""
    return sum(map(_docstring_lines, trees.values())) / sum(map(_lines, trees))


def _lines(path: Path) -> int:
    return path.read_text().count("\n")


def _share(test: Callable[[Function], bool], functions: list[Function]) -> float:
    return sum(map(test, functions)) / len(functions)


def _is_annotated(node: Function) -> bool:
    named = itertools.chain(node.args.posonlyargs, node.args.args, node.args.kwonlyargs)
    own = [argument for argument in named if argument.arg not in ("self", "cls")]
    return all(argument.annotation for argument in own) and (
        node.returns is not None or node.name == "__init__"
    )


def _optional(node: Function) -> tuple[int, int]:
    """(keyword-only, all) of the optional arguments."""
    only = sum(default is not None for default in node.args.kw_defaults)
    return only, only + len(node.args.defaults)


def _public_names() -> int:
    tree = ast.parse((SOURCE / "__init__.pyi").read_text())
    return sum(
        len(node.names) for node in tree.body if isinstance(node, ast.ImportFrom)
    )


def _cycles(graph: grimp.ImportGraph) -> int:
    """Modules that can reach themselves through what they import."""
    return sum(
        any(
            graph.find_shortest_chain(imported, module)
            for imported in graph.find_modules_directly_imported_by(module)
        )
        for module in graph.modules
    )


def _floors(graph: grimp.ImportGraph) -> dict[str, set[str]]:
    """Which part of the package imports which: `lab`, `cells`, `layers`, ..."""

    def part(module: str) -> str:
        return (*module.split("."), "")[1]

    floors: dict[str, set[str]] = {part(module): set() for module in graph.modules}
    for module in graph.modules - {"jaxlstm.__main__"}:
        for imported in graph.find_modules_directly_imported_by(module):
            if part(imported) != part(module):
                floors[part(module)].add(part(imported))
    return floors


def _depth(floors: dict[str, set[str]]) -> int:
    """The number of parts on the longest chain of imports."""

    def below(part: str) -> int:
        return 1 + max(map(below, floors[part]), default=0)

    return max(map(below, floors))


if __name__ == "__main__":
    print(table())
    sys.exit(not all(number.kept for number in numbers()))
