"""Facts about the package's structure, read from its source without importing it.

`python tests/architecture.py` prints each fact, and exits with 1 if one is violated.
`test_architecture.py` runs the same checks.
"""

import ast
import functools
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "jaxlstm"
PARTS = "core", "lab"
KEYWORD_ONLY_SHARE = 0.9

Function = ast.FunctionDef | ast.AsyncFunctionDef


def import_cycles(graph: grimp.ImportGraph) -> list[str]:
    """Return the modules that import themselves through other modules."""
    return sorted(
        module
        for module in graph.modules
        if any(
            graph.find_shortest_chain(imported, module)
            for imported in graph.find_modules_directly_imported_by(module)
        )
    )


def longest_chain(graph: grimp.ImportGraph, part: str) -> list[str]:
    """Return the longest chain of imports inside `"lab"` or `"core"`, importer first.

    `lab` is counted apart from the core, which it imports through few modules. The
    graph must have no cycles.
    """
    modules = {module for module in graph.modules if _part(module) == part}

    @functools.cache
    def chain(module: str) -> tuple[str, ...]:
        imported = graph.find_modules_directly_imported_by(module) & modules
        return (module, *max(map(chain, sorted(imported)), key=len, default=()))

    return list(max(map(chain, sorted(modules)), key=len))


def unannotated_signatures() -> list[str]:
    """Return the public functions with an argument or a result without annotation."""
    return [name for name, node in _public_functions() if not _is_annotated(node)]


def keyword_only_share() -> float:
    """Return the share of optional public arguments that are keyword-only."""
    arguments = [node.args for _, node in _public_functions()]
    keyword_only = sum(
        default is not None for args in arguments for default in args.kw_defaults
    )
    positional = sum(len(args.defaults) for args in arguments)
    return keyword_only / (keyword_only + positional)


def graph() -> grimp.ImportGraph:
    """Return the graph of the imports between the package's modules."""
    return grimp.build_graph("jaxlstm")


def _part(module: str) -> str:
    in_lab = module.startswith("jaxlstm.lab") or module == "jaxlstm.__main__"
    return "lab" if in_lab else "core"


def _public_functions() -> Iterator[tuple[str, Function]]:
    """Yield the functions and methods of public modules, as far as they are public."""
    for path in sorted(SOURCE.rglob("*.py")):
        if path.name.startswith("_"):
            continue
        for node in ast.parse(path.read_text()).body:
            members = node.body if isinstance(node, ast.ClassDef) else [node]
            for member in members:
                if isinstance(member, Function) and not member.name.startswith("_"):
                    yield f"{path.relative_to(SOURCE)}:{member.name}", member


def _is_annotated(node: Function) -> bool:
    named = itertools.chain(node.args.posonlyargs, node.args.args, node.args.kwonlyargs)
    own = [argument for argument in named if argument.arg not in ("self", "cls")]
    return all(argument.annotation for argument in own) and (
        node.returns is not None or node.name == "__init__"
    )


def main() -> int:
    """Print every fact; return 1 if one is violated."""
    imports = graph()
    cycles, unannotated = import_cycles(imports), unannotated_signatures()
    chains = [] if cycles else [longest_chain(imports, part) for part in PARTS]
    share = keyword_only_share()
    print(f"modules in import cycles: {len(cycles)} {', '.join(cycles)}")
    for chain in chains:
        print(f"longest import chain: {len(chain)}: {' -> '.join(chain)}")
    print(f"unannotated signatures: {len(unannotated)} {', '.join(unannotated)}")
    print(f"keyword-only share of optional arguments: {share:.3f}")
    return int(bool(cycles or unannotated) or share < KEYWORD_ONLY_SHARE)


if __name__ == "__main__":
    sys.exit(main())
