"""Evaluation of the jaxpr of a step on symbolic vectors.

    jaxpr of a step -> axes:   which axes of each variable are rows, which are units
                    -> values: the vectors of each variable
                    -> nodes:  the operations on vectors, equal ones only once

A variable has axes of rows, which all rows of the batch have in common, and inner axes,
whose numbers are cut into vectors of units: the pre-activations `[B, 4, H]` of an LSTM
are 4 vectors of H units for each row. The kernel can run a step that multiplies rows by
matrices which are the same at all steps, computes functions element by element, and
sums over the units of a row.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxlstm.engines._jaxpr import ClosedJaxpr, Literal
from jaxlstm.engines.matmul import product_dimensions

# In the order of `kInstructions` of loop.cpp.
OPERATIONS = (
    "copy", "add", "sub", "mul", "div", "max", "min", "neg", "abs", "sign", "sqrt",
    "rsqrt", "exp", "log", "log1p", "expm1", "tanh", "logistic", "eq", "ne", "lt", "le",
    "gt", "ge", "select_n", "and", "or", "not", "round", "sum_row", "spread_row",
    "spread_bytes", "store_row", "read_bytes",
)  # fmt: skip
ELEMENTWISE = frozenset(OPERATIONS[: OPERATIONS.index("sum_row")])
MEMORY = frozenset({"argument", "carry", "bytes", "constant"})

RENAMED = {"add_any": "add"}
UNCHANGED = {"optimization_barrier", "copy", "copy_p", "pvary", "pcast"}
MOVED = {
    "broadcast_in_dim", "reshape", "squeeze", "slice", "transpose", "concatenate",
    "expand_dims", "split", "pad", "select_n", "neg", *UNCHANGED,
}  # fmt: skip
"""Operations whose results are numbers that they were given."""

PRODUCTS = {"rows_first", "weights_first"}  # of `matmul`

INNER = -1  # an axis of units or gates; axes of rows have numbers from 0


class Unsupported(NotImplementedError):
    """The kernel cannot run this step."""


class Matrix(NamedTuple):
    """A matrix: the number of the argument, and the distances of its elements."""

    argument: int
    inner: int
    outer: int
    has_members: bool


class Multiplication(NamedTuple):
    """A product of `size` numbers of a row and a matrix."""

    operand: tuple["Node", ...]
    matrix: Matrix
    size: int


@dataclasses.dataclass(frozen=True, eq=False)
class Node:
    """A vector of `width` units for each row, or one number for each row.

    Attributes:
        operation: an instruction; "argument", "carry", "bytes" or "constant" for what
            is in memory; "product" for a vector of a product.
        inputs: what an instruction reads.
        width: the number of units; None for a number in memory that units share.
        uniform: whether all units are equal.
        argument: the number of the argument or of the carry.
        offset: of the first number in a row of it, or of the first column of W.
        value: of a constant.
        product: the product.
    """

    operation: str
    inputs: tuple["Node", ...] = ()
    width: int | None = None
    uniform: bool = False
    argument: int = -1
    offset: int = 0
    value: float = 0.0
    product: Multiplication | None = None


class Value(NamedTuple):
    """The vectors of a variable.

    Attributes:
        shape: the shape of the variable.
        rows: its axes of rows, which come first.
        nodes: an array in the shape of the inner axes, with the last axis cut into
            vectors; uniform nodes stand for all of the last axis.
        argument: the number of the argument that it is, or -1.
    """

    shape: tuple[int, ...]
    rows: tuple[int, ...]
    nodes: Any
    argument: int = -1

    @property
    def inner(self) -> tuple[int, ...]:
        """The sizes of the inner axes."""
        return self.shape[len(self.rows) :]

    @property
    def width(self) -> int | None:
        """The number of units of its vectors; None if all are uniform."""
        widths = {node.width for node in self.nodes.flat if not node.uniform}
        if len(widths) > 1:
            raise Unsupported("vectors of several widths in one array")
        return next(iter(widths), None)


class Layout(NamedTuple):
    """The rows of a step, and the order of its inputs.

    Attributes:
        rows: the sizes of the axes of rows, which every carry has.
        consts: the number of inputs that are the same at all steps.
        carry: the number of inputs, and of outputs, that are carried.
        exact: numbers of float32 inputs whose conversion to bfloat16 is exact.
    """

    rows: tuple[int, ...]
    consts: int
    carry: int
    exact: tuple[int, ...] = ()


# -- a flat list of operations -----------------------------------------------------


class Equation(NamedTuple):
    """An operation on variables, which are numbered; a literal is an array."""

    name: str
    params: dict[str, Any]
    inputs: list[Any]
    outputs: list[int]


class Flat:
    """The operations of a jaxpr in order, with the functions that it calls inlined."""

    def __init__(self, closed: ClosedJaxpr) -> None:
        self.equations: list[Equation] = []
        self.avals: list[Any] = []
        self.inputs = [self._new(v.aval) for v in closed.jaxpr.invars]
        self.outputs = self._inline(closed.jaxpr, closed.consts, self.inputs)

    def _new(self, aval: Any) -> int:
        self.avals.append(aval)
        return len(self.avals) - 1

    def _inline(
        self, jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Any]
    ) -> list[Any]:
        known: dict[Any, Any] = {}
        known.update(zip(jaxpr.constvars, map(np.asarray, consts), strict=True))
        known.update(zip(jaxpr.invars, inputs, strict=True))

        def read(atom: Any) -> Any:
            return np.asarray(atom.val) if isinstance(atom, Literal) else known[atom]

        for eqn in jaxpr.eqns:
            operands = [read(atom) for atom in eqn.invars]
            called = eqn.params.get("jaxpr") or eqn.params.get("call_jaxpr")
            if called is not None and eqn.primitive.name not in ("scan", "while"):
                inner = getattr(called, "jaxpr", called)
                results = self._inline(inner, getattr(called, "consts", ()), operands)
            elif eqn.primitive.name in UNCHANGED:
                results = operands
            elif eqn.primitive.name == "split":
                results = [self._new(v.aval) for v in eqn.outvars]
                for params, result in zip(_slices(eqn), results, strict=True):
                    found = Equation("slice", params, operands, [result])
                    self.equations.append(found)
            else:
                results = [self._new(v.aval) for v in eqn.outvars]
                name = RENAMED.get(eqn.primitive.name, eqn.primitive.name)
                found = Equation(name, eqn.params, operands, results)
                self.equations.append(found)
            known.update(zip(eqn.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]


def _slices(split: Any) -> Iterator[dict[str, Any]]:
    """Yield the parameters of the slices that a split returns."""
    shape, axis = split.invars[0].aval.shape, split.params["axis"]
    start = 0
    for size in split.params["sizes"]:
        starts, limits = [0] * len(shape), list(shape)
        starts[axis], limits[axis] = start, start + size
        start += size
        yield {
            "start_indices": tuple(starts),
            "limit_indices": tuple(limits),
            "strides": None,
        }


# -- which axes are rows -----------------------------------------------------------


class Axes:
    """Infers the kind of each axis of each variable from those of carry and results."""

    def __init__(self, flat: Flat, layout: Layout) -> None:
        self.flat = flat
        self.parent: dict[tuple[int, int], tuple[int, int]] = {}
        self.kinds: dict[tuple[int, int], int] = {}
        first, rows = layout.consts, layout.rows
        for variable in [*flat.inputs[first : first + layout.carry], *flat.outputs]:
            if isinstance(variable, int) and (
                flat.avals[variable].shape[: len(rows)] == rows
            ):
                for axis in range(len(flat.avals[variable].shape)):
                    self._mark(
                        variable, axis, axis if axis < len(layout.rows) else INNER
                    )
        for equation in flat.equations:
            self._relate(equation)

    def of(self, variable: int) -> tuple[int, ...]:
        """Return the kinds of the axes of a variable."""
        axes = range(len(self.flat.avals[variable].shape))
        return tuple(self.kinds.get(self._root((variable, n)), INNER) for n in axes)

    def _root(self, key: tuple[int, int]) -> tuple[int, int]:
        while (parent := self.parent.get(key, key)) != key:
            self.parent[key] = self.parent.get(parent, parent)
            key = parent
        return key

    def _mark(self, variable: int, axis: int, kind: int) -> None:
        root = self._root((variable, axis))
        if self.kinds.setdefault(root, kind) != kind:
            raise Unsupported("rows and units of two arrays do not match")

    def _join(self, one: tuple[int, int], other: tuple[int, int]) -> None:
        one, other = self._root(one), self._root(other)
        if one == other:
            return
        self.parent[one] = other
        if one in self.kinds:
            kind = self.kinds.pop(one)
            if self.kinds.setdefault(other, kind) != kind:
                raise Unsupported("rows and units of two arrays do not match")

    def _relate(self, equation: Equation) -> None:
        """Join the axes that an operation keeps."""
        name, params, inputs, outputs = equation
        shape = self.flat.avals[outputs[0]].shape
        variables = [v for v in inputs if isinstance(v, int)]

        def same(variable: int, pairs: Any) -> None:
            for axis, result in pairs:
                self._join((variable, axis), (outputs[0], result))

        if name == "dot_general" or name in PRODUCTS:
            if len(variables) < 2:
                raise Unsupported("a product of constants")
            self._relate_product(equation, *variables[:2])
        elif name == "broadcast_in_dim":
            for v in variables:
                old = self.flat.avals[v].shape
                pairs = enumerate(params["broadcast_dimensions"])
                same(v, [(n, m) for n, m in pairs if old[n] == shape[m]])
        elif name == "squeeze":
            for v in variables:
                size = len(self.flat.avals[v].shape)
                removed = {d % size for d in params["dimensions"]}
                kept = [n for n in range(size) if n not in removed]
                same(v, zip(kept, range(len(kept)), strict=True))
        elif name == "reduce_sum":
            for v in variables:
                size = len(self.flat.avals[v].shape)
                kept = [n for n in range(size) if n not in params["axes"]]
                same(v, zip(kept, range(len(kept)), strict=True))
                for axis in params["axes"]:
                    self._mark(v, axis, INNER)
        elif name == "reshape":
            for v in variables:
                self._relate_reshape(v, outputs[0])
        elif name == "transpose":
            for v in variables:
                same(v, ((old, n) for n, old in enumerate(params["permutation"])))
        else:
            for v in variables:
                if len(self.flat.avals[v].shape) == len(shape):
                    same(v, zip(range(len(shape)), range(len(shape)), strict=True))

    def _relate_product(self, equation: Equation, x: int, w: int) -> None:
        if equation.name in PRODUCTS:
            shapes = (self.flat.avals[v].shape for v in (x, w))
            dimensions = product_dimensions(*map(len, shapes))
        else:
            dimensions = equation.params["dimension_numbers"]
        (of_x, of_w), (batch_x, batch_w) = dimensions
        result = equation.outputs[0]
        for n, (one, other) in enumerate(zip(batch_x, batch_w, strict=True)):
            self._join((x, one), (result, n))
            self._join((w, other), (result, n))
        position = len(batch_x)
        for variable, used in ((x, (*of_x, *batch_x)), (w, (*of_w, *batch_w))):
            for axis in range(len(self.flat.avals[variable].shape)):
                if axis not in used:
                    self._join((variable, axis), (result, position))
                    if variable == w:
                        self._mark(w, axis, INNER)
                    position += 1
        for variable, axes in ((x, of_x), (w, of_w)):
            for axis in axes:
                self._mark(variable, axis, INNER)

    def _relate_reshape(self, variable: int, result: int) -> None:
        old, new = self.flat.avals[variable].shape, self.flat.avals[result].shape
        same = list(itertools.takewhile(lambda s: s[0] == s[1], zip(old, new)))  # noqa: B905
        for axis in range(len(same)):
            self._join((variable, axis), (result, axis))
        for v, shape in ((variable, old), (result, new)):
            for axis in range(len(same), len(shape)):
                if shape[axis] != 1:
                    self._mark(v, axis, INNER)


# -- values ------------------------------------------------------------------------


class Evaluator:
    """Evaluates the operations of a step on values."""

    def __init__(self, closed: ClosedJaxpr, layout: Layout) -> None:
        self.layout = layout
        self.flat = Flat(closed)
        self.axes = Axes(self.flat, layout)
        self.nodes: dict[Any, Node] = {}
        known: list[Any] = [None] * len(self.flat.avals)
        for number, variable in enumerate(self.flat.inputs):
            known[variable] = functools.partial(self._argument, number, variable)

        def read(atom: Any) -> Value:
            if not isinstance(atom, int):
                return self._constant(atom)
            if callable(known[atom]):
                known[atom] = known[atom]()
            return known[atom]

        self.inputs = [functools.partial(read, v) for v in self.flat.inputs]
        for equation in self.flat.equations:
            result = self._run(equation, [read(atom) for atom in equation.inputs])
            known[equation.outputs[0]] = result
        self.outputs = [read(atom) for atom in self.flat.outputs]

    def rows_of(self, variable: int) -> tuple[int, ...]:
        """Return the axes of rows of a variable, which must come first, in any order.

        The order is of no effect on the value of a row. It matters in memory only.
        """
        kinds = self.axes.of(variable)
        rows = tuple(kind for kind in kinds if kind != INNER)
        if kinds[: len(rows)] != rows or len(rows) != len(set(rows)):
            raise Unsupported("an array whose axes of rows do not come first")
        return rows

    # nodes

    def node(self, operation: str, *inputs: Node, **fields: Any) -> Node:
        """Return the node with these fields, one object for equal ones."""
        key = (operation, inputs, *fields.values())
        if key not in self.nodes:
            self.nodes[key] = Node(operation, inputs, **fields)
        return self.nodes[key]

    def number(self, value: float) -> Node:
        """Return the node of a constant."""
        return self.node("constant", value=float(value), uniform=True)

    def apply(self, operation: str, *inputs: Node) -> Node:
        """Return the node of an instruction."""
        if operation == "add":
            for zero, other in (inputs, inputs[::-1]):
                if zero.operation == "constant" and zero.value == 0:
                    return other
        widths = {node.width for node in inputs if not node.uniform}
        widths = widths or {node.width for node in inputs} - {None}
        if len(widths) > 1:
            raise Unsupported("vectors of several widths in one operation")
        width = next(iter(widths), None)
        if width is not None:
            inputs = tuple(self.widen(node, width) for node in inputs)
        uniform = all(node.uniform for node in inputs)
        return self.node(operation, *inputs, width=width, uniform=uniform)

    def widen(self, node: Node, width: int) -> Node:
        """Return a number that units share as a vector."""
        if node.width == width or node.operation == "constant":
            return node
        if node.width is not None:
            raise Unsupported("a sum over units is used with another number of units")
        if node.operation == "bytes":
            return self.node("spread_bytes", node, width=width, uniform=True)
        if node.operation in MEMORY:
            return self.node("spread_row", node, width=width, uniform=True)
        inputs = [self.widen(each, width) for each in node.inputs]
        return self.node(node.operation, *inputs, width=width, uniform=True)

    def cut(self, node: Node, offset: int, width: int) -> Node:
        """Return some units of a vector."""
        if node.uniform or node.width == width:
            return node
        if node.operation in MEMORY or node.operation == "product":
            return self.node(
                node.operation,
                width=width,
                argument=node.argument,
                offset=node.offset + offset,
                product=node.product,
            )
        if node.operation not in ELEMENTWISE and node.operation != "read_bytes":
            raise Unsupported(f"a part of the result of {node.operation}")
        inputs = [self.cut(each, offset, width) for each in node.inputs]
        return self.node(node.operation, *inputs, width=width, uniform=False)

    # values

    def _argument(self, number: int, variable: int) -> Value:
        aval, rows = self.flat.avals[variable], self.rows_of(variable)
        if list(rows) != sorted(rows):
            raise Unsupported("an array with its axes of rows in another order")
        inner = aval.shape[len(rows) :]
        carry = number - self.layout.consts
        is_carry = 0 <= carry < self.layout.carry
        if is_carry and aval.dtype == bool:
            raise Unsupported("a carry of booleans")
        is_bytes = aval.dtype == bool
        kind = "bytes" if is_bytes else "carry" if is_carry else "argument"
        width = inner[-1] if inner else None
        nodes = _empty((*inner[:-1], 1) if inner else ())
        for at, index in enumerate(np.ndindex(nodes.shape)):
            node = self.node(
                kind,
                width=width,
                uniform=width is None,
                argument=carry if is_carry else number,
                offset=at * (width or 0),
            )
            if is_bytes and width is not None:
                node = self.node("read_bytes", node, width=width, uniform=False)
            nodes[index] = node
        return Value(aval.shape, rows, nodes, number)

    def _constant(self, array: Any) -> Value:
        if array.ndim:
            raise Unsupported("an array of constants")
        nodes = _empty(())
        nodes[()] = self.number(float(array))
        return Value((), (), nodes)

    def refine(self, value: Value, width: int) -> Value:
        """Return the value cut into vectors of `width` units."""
        if value.width in (None, width):
            return value
        parts = value.width // width
        nodes = _empty((*value.nodes.shape, parts))
        for index in np.ndindex(nodes.shape):
            nodes[index] = self.cut(value.nodes[index[:-1]], index[-1] * width, width)
        return Value(
            value.shape, value.rows, nodes.reshape(*value.nodes.shape[:-1], -1)
        )

    # operations

    def _run(self, equation: Equation, values: list[Value]) -> Value:
        name = equation.name
        if name in PRODUCTS:
            name = "dot_general"
        aval = self.flat.avals[equation.outputs[0]]
        rule = getattr(self, f"_{name}", None)
        if rule is not None:
            result = rule(equation, *values)
        elif name in ELEMENTWISE:
            rows = self.rows_of(equation.outputs[0])
            result = self._elementwise(name, values, aval.shape, rows)
        else:
            raise Unsupported(f"the operation {name}")
        is_new = name not in MOVED and name != "convert_element_type"
        rounds = aval.dtype.name == "bfloat16" and is_new
        return self._rounded(result) if rounds else result

    def _elementwise(
        self,
        operation: str,
        values: Sequence[Value],
        shape: tuple[int, ...],
        rows: tuple[int, ...],
    ) -> Value:
        widths = {v.width for v in values} - {None}
        if widths:
            width = math.gcd(*(width or 0 for width in widths))
            values = [self.refine(v, width) for v in values]
        nodes = _empty(np.broadcast_shapes(*(v.nodes.shape for v in values)))
        arrays: list[Any] = [np.broadcast_to(v.nodes, nodes.shape) for v in values]
        for index in np.ndindex(nodes.shape):
            nodes[index] = self.apply(operation, *(a[index] for a in arrays))
        return Value(shape, rows, nodes)

    def _same(self, operation: str, *values: Value) -> Value:
        like = max(values, key=lambda v: len(v.shape))
        return self._elementwise(operation, values, like.shape, like.rows)

    def _square(self, equation: Equation, x: Value) -> Value:
        return self._same("mul", x, x)

    def _clamp(self, equation: Equation, low: Value, x: Value, high: Value) -> Value:
        return self._same("min", self._same("max", x, low), high)

    def _integer_pow(self, equation: Equation, x: Value) -> Value:
        power = equation.params["y"]
        if power == 0:
            raise Unsupported("the power 0")
        result, square = None, x
        for bit in reversed(f"{abs(power):b}"):
            if bit == "1":
                result = square if result is None else self._same("mul", result, square)
            square = self._same("mul", square, square)
        assert result is not None
        if power > 0:
            return result
        return self._same("div", self._constant(np.asarray(1.0)), result)

    def _convert_element_type(self, equation: Equation, x: Value) -> Value:
        atom = equation.inputs[0]
        old = self.flat.avals[atom].dtype if isinstance(atom, int) else atom.dtype
        new = equation.params["new_dtype"]
        if new == old or (old.kind == "b" and new.kind == "f") or not x.shape:
            return x
        if (old.name, new.name) == ("bfloat16", "float32"):
            return x
        if (old.name, new.name) == ("float32", "bfloat16"):
            return x if x.argument in self.layout.exact else self._rounded(x)
        raise Unsupported(f"a conversion from {old} to {new}")

    def _rounded(self, x: Value) -> Value:
        """Return the value rounded to bfloat16."""
        return self._elementwise("round", (x,), x.shape, x.rows)

    def _broadcast_in_dim(self, equation: Equation, x: Value) -> Value:
        result = equation.outputs[0]
        shape, rows = self.flat.avals[result].shape, self.rows_of(result)
        inner = shape[len(rows) :]
        kept = [
            (new - len(rows), n - len(x.rows))
            for n, new in enumerate(equation.params["broadcast_dimensions"])
            if n >= len(x.rows) and new >= len(rows)
        ]
        if len(kept) < len(x.inner) and math.prod(x.inner) != math.prod(
            x.inner[old] for _, old in kept
        ):
            raise Unsupported("units that become rows")
        if not inner:
            return Value(shape, rows, x.nodes.reshape(()))
        nodes = x.nodes
        if kept and nodes.ndim:
            dropped = [n for n in range(nodes.ndim) if n not in {o for _, o in kept}]
            nodes = nodes.squeeze(tuple(dropped))
        sizes = [1] * len(inner)
        for (new, _), size in zip(kept, nodes.shape, strict=False):
            sizes[new] = size
        nodes = nodes.reshape(sizes)
        vectors = [n for n in nodes.flat if not n.uniform]
        if vectors and (sizes[-1] * vectors[0].width != inner[-1]):
            raise Unsupported("units that are broadcast")
        return Value(
            shape, rows, np.broadcast_to(nodes, (*inner[:-1], nodes.shape[-1]))
        )

    def _reshape(self, equation: Equation, x: Value) -> Value:
        result = equation.outputs[0]
        value = self._reshaped(x, self.flat.avals[result].shape, self.rows_of(result))
        return value._replace(argument=x.argument)  # its numbers are in the same order

    def _squeeze(self, equation: Equation, x: Value) -> Value:
        return self._reshape(equation, x)

    def _reshaped(
        self, x: Value, shape: tuple[int, ...], rows: tuple[int, ...]
    ) -> Value:
        inner = shape[len(rows) :]
        if math.prod(inner) != math.prod(x.inner):
            raise Unsupported("a reshape that mixes rows and units")
        if not inner:
            return Value(shape, rows, x.nodes.reshape(()))
        if x.width is None:
            if x.nodes.size != math.prod(inner[:-1]):
                if len(set(x.nodes.flat)) > 1:
                    raise Unsupported("a reshape of uniform units")
                node = next(iter(x.nodes.flat))
                nodes = _empty((*inner[:-1], 1))
                nodes.fill(node)
                return Value(shape, rows, nodes)
            return Value(shape, rows, x.nodes.reshape(*inner[:-1], 1))
        width = math.gcd(x.width, inner[-1])
        nodes = self.refine(x, width).nodes
        if nodes.size * width != math.prod(inner):
            full = (*x.inner[:-1], x.inner[-1] // width)
            nodes = np.broadcast_to(nodes, full)
        return Value(shape, rows, nodes.reshape(*inner[:-1], inner[-1] // width))

    def _transpose(self, equation: Equation, x: Value) -> Value:
        """Return the value with its axes of rows in another order."""
        order, number = equation.params["permutation"], len(x.rows)
        if list(order[number:]) != list(range(number, len(x.shape))):
            raise Unsupported("a transpose of units")
        if list(order) == sorted(order):
            return x
        (result,) = equation.outputs
        return Value(self.flat.avals[result].shape, self.rows_of(result), x.nodes)

    def _slice(self, equation: Equation, x: Value) -> Value:
        params, number = equation.params, len(x.rows)
        starts, limits = params["start_indices"], params["limit_indices"]
        if any(stride != 1 for stride in params["strides"] or ()):
            raise Unsupported("a slice with strides")
        if starts[:number] != (0,) * number or limits[:number] != x.shape[:number]:
            raise Unsupported("a slice of the rows")
        shape = tuple(limit - s for s, limit in zip(starts, limits, strict=True))
        inner = list(zip(starts[number:], limits[number:], strict=True))
        if not inner:
            return x
        if x.width is None:
            inner[-1] = (0, x.nodes.shape[-1])
        else:
            width = functools.reduce(math.gcd, (x.width, *inner[-1]))
            x = self.refine(x, width)
            inner[-1] = (inner[-1][0] // width, inner[-1][1] // width)
        return Value(shape, x.rows, x.nodes[tuple(slice(*ends) for ends in inner)])

    def _pad(self, equation: Equation, x: Value, fill: Value) -> Value:
        config = equation.params["padding_config"]
        number = len(x.rows)
        if any(low < 0 or high < 0 or between for low, high, between in config) or any(
            low or high for low, high, _ in config[:number]
        ):
            raise Unsupported("a pad of this kind")
        shape = tuple(
            size + low + high
            for size, (low, high, _) in zip(x.shape, config, strict=True)
        )
        ends = [(low, high) for low, high, _ in config[number:]]
        if ends and ends[-1] != (0, 0):
            if x.width is None:
                raise Unsupported("a pad of uniform units")
            width = functools.reduce(math.gcd, (x.width, *ends[-1]))
            x = self.refine(x, width)
            ends[-1] = (ends[-1][0] // width, ends[-1][1] // width)
        sizes = x.nodes.shape
        padded = _empty([n + sum(e) for n, e in zip(sizes, ends, strict=True)])
        padded.fill(fill.nodes[()])
        inside = [slice(e[0], e[0] + n) for n, e in zip(sizes, ends, strict=True)]
        padded[tuple(inside)] = x.nodes
        return Value(shape, x.rows, padded)

    def _concatenate(self, equation: Equation, *values: Value) -> Value:
        result = equation.outputs[0]
        rows = self.rows_of(result)
        axis = equation.params["dimension"] - len(rows)
        last = len(self.flat.avals[result].shape) - len(rows) - 1
        if axis < 0 or any(v.rows != rows for v in values):
            raise Unsupported("a concatenation of rows")
        if axis == last:
            values = tuple(self._vectors_of(v) for v in values)
        widths = {v.width for v in values} - {None}
        if widths:
            width = math.gcd(*(width or 0 for width in widths))
            values = tuple(self.refine(v, width) for v in values)
            full = max(v.nodes.shape[-1] for v in values)
            if axis != last:
                values = tuple(
                    v._replace(
                        nodes=np.broadcast_to(v.nodes, (*v.nodes.shape[:-1], full))
                    )
                    for v in values
                )
        nodes = np.concatenate([v.nodes for v in values], axis)
        return Value(self.flat.avals[result].shape, rows, nodes)

    def _vectors_of(self, value: Value) -> Value:
        """Return the value with numbers that units share written as vectors."""
        if value.width is not None:
            return value
        width = value.inner[-1]
        nodes = _empty(value.nodes.shape)
        for index in np.ndindex(nodes.shape):
            shared = self.widen(value.nodes[index], width)
            nodes[index] = self.node("copy", shared, width=width, uniform=False)
        return value._replace(nodes=nodes)

    def _reduce_sum(self, equation: Equation, x: Value) -> Value:
        result = equation.outputs[0]
        shape, rows = self.flat.avals[result].shape, self.rows_of(result)
        axes = sorted(axis - len(x.rows) for axis in equation.params["axes"])
        if axes and axes[0] < 0:
            raise Unsupported("a sum over rows")
        last = len(x.inner) - 1
        nodes = x.nodes
        if nodes.ndim and any(n.uniform for n in nodes.flat):
            sizes = [x.inner[axis] for axis in axes]
            if x.width is not None or any(size != 1 for size in sizes):
                raise Unsupported("a sum over uniform units")
        for axis in reversed(axes):
            parts = np.moveaxis(nodes, axis, 0)
            nodes = parts[0] if parts.ndim > 1 else _scalar(parts[0])
            for part in parts[1:]:
                part = part if parts.ndim > 1 else _scalar(part)
                total = _empty(nodes.shape)
                for index in np.ndindex(total.shape):
                    total[index] = self.apply("add", nodes[index], part[index])
                nodes = total
            if axis == last:
                total = _empty(nodes.shape)
                for index in np.ndindex(total.shape):
                    node = nodes[index]
                    if not node.uniform:
                        width = node.width
                        node = self.node("sum_row", node, width=width, uniform=True)
                    total[index] = node
                nodes = total
                if last - len(axes) >= 0 and len(shape) > len(rows):
                    nodes = nodes[..., None]
        return Value(shape, rows, nodes)

    def _dot_general(self, equation: Equation, x: Value, w: Value, *_: Value) -> Value:
        result = equation.outputs[0]
        if equation.name in PRODUCTS:
            (of_x, of_w), batch = product_dimensions(len(x.shape), len(w.shape))
        else:
            (of_x, of_w), batch = equation.params["dimension_numbers"]
        avals = [self.flat.avals[v] for v in (*equation.inputs[:2], result)]
        dtypes = {aval.dtype.name for aval in avals}
        if len(dtypes) > 1 and not dtypes <= {"float32", "bfloat16"}:
            raise Unsupported("a product of several dtypes")
        if not 0 <= w.argument < self.layout.consts:
            raise Unsupported("a product with a matrix that changes from step to step")
        members = len(w.rows)
        of_rows = [x.rows[n] for n in batch[0] if n < len(x.rows)]
        if w.rows != tuple(range(members)) or of_rows != list(range(members)):
            raise Unsupported("a product with a matrix for each row")
        if list(batch[1]) != list(range(members)):
            raise Unsupported("a product with a matrix for each row")
        if list(of_x) != list(range(len(x.rows), len(x.shape))):
            raise Unsupported("a product over rows")
        distances = [math.prod(w.shape[n + 1 :]) for n in range(len(w.shape))]
        kept = [n for n in range(members, len(w.shape)) if n not in of_w]

        def distance(axes: Sequence[int]) -> int:
            axes = [n for n in axes if w.shape[n] != 1] or list(axes)[-1:]
            for one, other in itertools.pairwise(axes):
                if distances[one] != distances[other] * w.shape[other]:
                    raise Unsupported("a product over axes that are not adjacent")
            return distances[axes[-1]]

        if not kept or not of_w:
            raise Unsupported("a product with a vector")
        matrix = Matrix(w.argument, distance(of_w), distance(kept), members > 0)
        operand = tuple(x.nodes.flat)
        if any(node.width is None for node in operand) or sum(
            node.width or 0 for node in operand
        ) != math.prod(x.inner):
            raise Unsupported("a product of uniform units")
        product = Multiplication(operand, matrix, math.prod(x.inner))
        inner = tuple(w.shape[n] for n in kept)
        nodes = _empty((*inner[:-1], 1))
        for at, index in enumerate(np.ndindex(nodes.shape)):
            nodes[index] = self.node(
                "product",
                width=inner[-1],
                uniform=False,
                argument=-1,
                offset=at * inner[-1],
                product=product,
            )
        return Value(self.flat.avals[result].shape, self.rows_of(result), nodes)


def reachable(outputs: Iterator[Node]) -> list[Node]:
    """Return the nodes that these are computed from, inputs first."""
    found: dict[Node, None] = {}
    stack = [(node, False) for node in reversed(list(outputs))]
    while stack:
        node, ready = stack.pop()
        if node in found:
            continue
        if ready:
            found[node] = None
            continue
        stack.append((node, True))
        below = [*node.inputs, *(node.product.operand if node.product else ())]
        stack += [(each, False) for each in reversed(below)]
    return list(found)


def _empty(shape: Sequence[int]) -> Any:
    return np.empty(tuple(shape), object)


def _scalar(node: Node) -> Any:
    array = _empty(())
    array[()] = node
    return array
