"""Facts about the package's structure, read from its source without importing it.

`python tests/architecture.py` prints each fact, and exits with 1 if one is violated.
`test_architecture.py` runs the same checks.
"""

import ast
import functools
import itertools
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Set
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "jaxlstm"
TESTS = ROOT / "tests"
KEYWORD_ONLY_SHARE = 0.9
LONGEST_CHAIN = 12

QUESTION = re.compile(r"(What|Whether|How|Which)\b")
MESSAGE = re.compile(r"\bcame\b|\b(is|are|was|were) wanted\b|\b(was|were) made for\b")

Function = ast.FunctionDef | ast.AsyncFunctionDef

parse = functools.cache(ast.parse)  # tests read the package once per planted line


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


def executed_imports() -> dict[str, set[str]]:
    """Return, for each module, the modules that its import statements import.

    Imports in functions count. Not counted are imports under `if TYPE_CHECKING:`, names
    that `lazy_loader` resolves on first use, and packages around an imported module.
    """
    paths = {
        ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts): path
        for path in sorted(SOURCE.rglob("*.py"))
    }
    paths = {name.removesuffix(".__init__"): path for name, path in paths.items()}
    return {
        module: _imported(parse(path.read_text()).body, paths.keys())
        for module, path in paths.items()
    }


def _imported(body: Iterable[ast.AST], modules: Set[str]) -> set[str]:
    """Return those of the modules that statements import."""
    found: set[str] = set()
    for node in body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names} & modules
        elif isinstance(node, ast.ImportFrom):
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= members & modules
            if members - modules:  # a name that is defined in the module itself
                found |= {node.module or ""} & modules
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            found |= _imported(node.orelse, modules)
        else:
            found |= _imported(ast.iter_child_nodes(node), modules)
    return found


def longest_chain(graph: Mapping[str, Collection[str]]) -> list[str]:
    """Return the longest chain of imports in a graph without cycles, importer first."""

    @functools.cache
    def chain(module: str) -> tuple[str, ...]:
        return (module, *max(map(chain, sorted(graph[module])), key=len, default=()))

    return list(max(map(chain, sorted(graph)), key=len))


def misphrased_strings() -> list[str]:
    """Return docstrings and messages in a phrasing that the package does not use.

    A docstring begins with a verb or a noun phrase, not with a question word. A message
    says what it got and what it expected, not what came and what is wanted.
    """
    return [
        f"{path.relative_to(SOURCE)}:{line}: {text:.60}"
        for path in sorted(SOURCE.rglob("*.py"))
        for line, text, is_docstring in _strings(path.read_text())
        if MESSAGE.search(text) or (is_docstring and QUESTION.match(text))
    ]


@functools.cache
def _strings(source: str) -> list[tuple[int, str, bool]]:
    """Return line and text of every string, and whether it is a docstring."""
    tree = parse(source)
    statements = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)
    }
    return [
        (node.lineno, node.value.strip(), id(node) in statements)
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]


def imports_of_test_modules() -> list[str]:
    """Return the test modules that import from another one, and what they import."""
    modules = {path.stem for path in TESTS.rglob("test_*.py")}
    return [
        f"{path.relative_to(TESTS)}: {name}"
        for path in sorted(TESTS.rglob("*.py"))
        for name in sorted(_imported(parse(path.read_text()).body, modules))
    ]


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


def _public_functions() -> Iterator[tuple[str, Function]]:
    """Yield the functions and methods of public modules, as far as they are public."""
    for path in sorted(SOURCE.rglob("*.py")):
        if path.name.startswith("_"):
            continue
        for node in parse(path.read_text()).body:
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
    """Print every fact; return 1 if one is violated.

    A chain is printed with its length and its modules, the importer first. At most
    `LONGEST_CHAIN` modules may be on a chain.
    """
    imports = graph()
    cycles, unannotated = import_cycles(imports), unannotated_signatures()
    print(f"modules in import cycles: {len(cycles)} {', '.join(cycles)}")
    chain: list[str] = []
    if not cycles:
        chain = longest_chain(executed_imports())
        print(f"longest chain of imports: {len(chain)}: {' -> '.join(chain)}")
    share, misphrased = keyword_only_share(), misphrased_strings()
    print(f"unannotated signatures: {len(unannotated)} {', '.join(unannotated)}")
    print(f"keyword-only share of optional arguments: {share:.3f}")
    print(f"misphrased strings: {len(misphrased)} {', '.join(misphrased)}")
    violated = cycles or unannotated or misphrased or len(chain) > LONGEST_CHAIN
    return int(bool(violated) or share < KEYWORD_ONLY_SHARE)


if __name__ == "__main__":
    sys.exit(main())
