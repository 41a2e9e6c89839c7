"""Estimate the memory of a program from its jaxpr, without compiling it.

Operations are visited in order. A result is live until its last use, and the results
of the program until the end. Two optimizations of XLA are modelled:

    in place   a result reuses the buffer of an operand that is not read again
    fusion     an elementwise result that is read once is never stored

A loop needs what it stacks, what it carries, and the memory of one iteration.

XLA's analysis of a compiled program is exact. It is not used here because `unroll`
compares several modes with a memory budget while it is traced, and each would take
seconds to compile.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax

from jaxlstm.engines._jaxpr import Jaxpr, JaxprEqn, Literal, Var, partial_eval

CALLS = {"jit", "pjit", "closed_call", "checkpoint", "remat2", "custom_jvp_call"}
LOOPS = {"scan", "while", "cond", "compiled_scan"}
PRODUCTS = {"dot_general", "conv_general_dilated", "weights_first", "rows_first"}
WHOLE = {
    "concatenate",
    "pad",
    "sort",
    "scatter",
    "scatter-add",
    "cumsum",
    "random_bits",
}
REDUCTIONS = {"reduce_sum", "reduce_max", "reduce_min", "reduce_and", "reduce_or"}
RANDOM = {"random_bits", "threefry2x32"}
STORED = LOOPS | PRODUCTS | WHOLE | REDUCTIONS | RANDOM
SAME = {
    "reshape",
    "squeeze",
    "expand_dims",
    "optimization_barrier",
    "pvary",
    "copy",
    "dynamic_update_slice",
}


class Memory(NamedTuple):
    """Bytes that a program needs on a device, split as in XLA's own analysis.

    Attributes:
        arguments: size of the arguments.
        results: size of the results.
        temporaries: peak size of all other values.
    """

    arguments: int
    results: int
    temporaries: int

    @property
    def total(self) -> int:
        """The sum of the three."""
        return self.arguments + self.results + self.temporaries

    def __str__(self) -> str:
        return (
            f"{show(self.total)}: arguments {show(self.arguments)}, results "
            f"{show(self.results)}, temporaries {show(self.temporaries)}"
        )


def show(size: float) -> str:
    """Format a number of bytes.

    Example:
        >>> show(512), show(999_900), show(1_234_567)
        ('512 B', '1 MB', '1.23 MB')
    """
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= 0.9995 * unit:  # which has three digits in this unit
            return f"{size / unit:.3g} {name}"
    return f"{size:.0f} B"


def estimate(function: Callable[..., Any], *arguments: Any) -> Memory:
    """Estimate the memory of `function` for arrays or `jax.ShapeDtypeStruct`s.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> x = jax.ShapeDtypeStruct((1000, 1000), jnp.float32)
        >>> print(estimate(lambda x: (x @ x) @ x, x))
        12 MB: arguments 4 MB, results 4 MB, temporaries 4 MB
    """
    closed = jax.make_jaxpr(function)(*arguments)
    given = sum(_size(v) for v in closed.jaxpr.invars + closed.jaxpr.constvars)
    results = sum(_size(v) for v in closed.jaxpr.outvars)
    every = [True] * len(closed.jaxpr.outvars)
    jaxpr, _ = partial_eval.dce_jaxpr(closed.jaxpr, every, instantiate=True)
    return Memory(given, results, max(_peak(jaxpr) - results, 0))


def _size(atom: Any) -> int:
    if isinstance(atom, Literal) or not hasattr(atom.aval, "dtype"):
        return 0
    return math.prod(atom.aval.shape) * getattr(atom.aval.dtype, "itemsize", 8)


class Value:
    """A stored result, compared by identity."""

    def __init__(self, size: int) -> None:
        self.size = size


class Node(NamedTuple):
    """An operation: the values it reads and makes, and its memory while it runs."""

    name: str
    reads: tuple[Value, ...]
    makes: tuple[Value, ...]
    within: int


def _nodes(jaxpr: Jaxpr, values: dict[Var, Value]) -> Iterator[Node]:
    """Yield the operations of a jaxpr, with called functions inlined.

    `values` is filled with the value of each variable. Arguments have none.
    """

    def known(atoms: Sequence[Any]) -> list[Value]:
        return [values[a] for a in atoms if not isinstance(a, Literal) and a in values]

    def same(ours: Sequence[Var], theirs: Sequence[Any], found: dict) -> dict:
        pairs = zip(ours, theirs, strict=False)
        return {
            v: found[a] for v, a in pairs if not isinstance(a, Literal) and a in found
        }

    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        if name in CALLS:
            called = eqn.params.get("jaxpr") or eqn.params["call_jaxpr"]
            called = getattr(called, "jaxpr", called)
            inner = same(called.invars, eqn.invars, values)
            yield from _nodes(called, inner)
            values |= same(eqn.outvars, called.outvars, inner)
        elif name in SAME:
            values |= same(eqn.outvars, eqn.invars, values)
        else:
            reads = tuple(known(eqn.invars))
            values |= same(*_carried(eqn), values)
            made = [v for v in eqn.outvars if v not in values]
            values |= {v: Value(_size(v)) for v in made}
            yield Node(name, reads, tuple(values[v] for v in made), _within(eqn))


def _carried(eqn: JaxprEqn) -> tuple[Sequence[Var], Sequence[Any]]:
    """Return the final and the initial carry of a loop, which share a buffer."""
    if eqn.primitive.name == "compiled_scan":
        first, number = eqn.params["consts"], eqn.params["carry"]
        return eqn.outvars[:number], eqn.invars[first : first + number]
    if eqn.primitive.name != "scan":
        return (), ()
    body = eqn.params["jaxpr"].jaxpr
    made = zip(body.outvars, eqn.outvars, strict=True)
    given = zip(body.invars, eqn.invars, strict=True)
    number, last = (
        sum(_shape(one) == _shape(whole) for one, whole in pairs)
        for pairs in (made, given)
    )
    return eqn.outvars[:number], eqn.invars[last - number : last]


def _shape(atom: Any) -> tuple[int, ...]:
    return atom.aval.shape


def _within(eqn: JaxprEqn) -> int:
    """Return the memory of one iteration of a loop, or of the largest branch."""
    if eqn.primitive.name == "scan":
        body = eqn.params["jaxpr"].jaxpr
        pairs = zip(body.invars, eqn.invars, strict=True)
        return _peak(body, [one for one, many in pairs if _size(one) != _size(many)])
    if eqn.primitive.name == "while":
        return _peak(eqn.params["body_jaxpr"].jaxpr)
    if eqn.primitive.name == "cond":
        return max(_peak(branch.jaxpr) for branch in eqn.params["branches"])
    if eqn.primitive.name in RANDOM:  # two counters and two words of output each
        return 2 * sum(map(_size, eqn.outvars))
    return 0


def _peak(jaxpr: Jaxpr, slices: Sequence[Var] = ()) -> int:
    """Return the peak memory of the results of a jaxpr's operations.

    Args:
        jaxpr: the program.
        slices: the arguments that are slices of a larger array.
    """
    values = {v: Value(_size(v)) for v in slices}
    cuts = [Node("slice", (), (value,), 0) for value in values.values()]
    nodes = [*cuts, *_nodes(jaxpr, values)]
    out = [v for v in jaxpr.outvars if not isinstance(v, Literal)]
    returned = {values[v] for v in out if v in values}
    readers: dict[Value, list[int]] = {}
    for n, node in enumerate(nodes):
        for v in dict.fromkeys(node.reads):
            readers.setdefault(v, []).append(n)

    last = dict.fromkeys(returned, len(nodes))
    fused = set()
    for n in reversed(range(len(nodes))):
        node, until = nodes[n], n
        users = readers.get(node.makes[0], []) if node.makes else []
        if not returned & set(node.makes) and _is_fused(
            node, [nodes[u] for u in users]
        ):
            fused.add(n)
            until = last.get(node.makes[0], n)
        for v in node.reads:
            last[v] = max(last.get(v, n), until)
    return _walk(nodes, fused, last)


def _is_fused(node: Node, users: Sequence[Node]) -> bool:
    """Return whether the result is never stored, as each reader recomputes it."""
    if node.name in STORED or len(node.makes) != 1:
        return False
    if node.name == "transpose":
        return all(user.name not in LOOPS | WHOLE for user in users)
    cheap = not any(v.size for v in node.reads) or node.name.endswith("slice")
    if len(users) > 1 and not cheap:
        return False
    return all(user.name not in STORED or user.name in REDUCTIONS for user in users)


def _walk(nodes: Sequence[Node], fused: set[int], last: dict[Value, int]) -> int:
    """Return the peak of the live memory over all operations."""
    ends: dict[int, int] = {}
    live = most = 0
    for n, node in enumerate(nodes):
        if n in fused:
            continue
        room = ends.pop(n, 0)
        for m in [m for m in ends if m < n]:
            live -= ends.pop(m)
        size = sum(v.size for v in node.makes)
        in_place = 0 if node.name in STORED else min(room, size)
        most = max(most, live + size - in_place + node.within)
        live += size - room
        for v in node.makes:
            ends[last.get(v, n)] = ends.get(last.get(v, n), 0) + v.size
    return most
