"""Programs of the CPU kernel, written from the nodes of a step.

The nodes are ordered in segments, which the kernel runs one after another: first the
products of a segment, then its instructions. A node is kept in a register, unless it is
a result, part of a carry, or read by a later segment. `loop.cpp` describes the format.
"""

import itertools
from typing import Any, NamedTuple

import numpy as np

from jaxlstm.engines._jaxpr import ClosedJaxpr
from jaxlstm.engines.native.values import (
    MEMORY,
    OPERATIONS,
    Evaluator,
    Layout,
    Matrix,
    Node,
    Unsupported,
    Value,
    reachable,
)

ARGUMENT, BYTES, RESULT, CARRY_IN, CARRY_OUT, SHARED, LOCAL, REGISTER, CONSTANT = range(
    9
)
NOWHERE = (-1, 0)
MOST_VECTORS = 4  # of a product that the kernel computes together

Place = tuple[int, int]  # a slot and an offset


class Program(NamedTuple):
    """A step for `loop.cpp`.

    Attributes:
        integers: the program.
        constants: the numbers that it refers to.
        broadcast: the inputs that have some of the axes of rows, and these; they must
            be broadcast to all.
        member_axes: how many of the axes of rows are those of a population.
        members_first: the inputs `[T, *members, ...]` that the kernel reads as
            `[*members, T, ...]`. It writes all results so.
    """

    integers: np.ndarray
    constants: np.ndarray
    broadcast: tuple[tuple[int, tuple[int, ...]], ...]
    member_axes: int
    members_first: tuple[int, ...]


class Group:
    """Vectors of one product that are computed together."""

    def __init__(self, nodes: list[Node], step: int, first_slot: int) -> None:
        self.nodes, self.step, self.first_slot = nodes, step, first_slot
        assert nodes[0].product is not None
        self.product = nodes[0].product
        self.init: Place = NOWHERE
        self.operand: Place = NOWHERE
        self.init_step, self.stage, self.ahead = 0, 0, False


def write(
    closed: ClosedJaxpr,
    layout: Layout,
    *,
    length: int,
    reverse: bool,
    active: int | None = None,
) -> Program:
    """Return the program of a loop.

    Args:
        closed: the step: `[*consts, *carry, *inputs] -> [*carry, *results]`.
        layout: what these are.
        length: the number of steps.
        reverse: whether they are run from the last to the first.
        active: the number of an argument `[T, *rows]` that is False where a row has no
            step and products can be taken as 0; None for nowhere.

    Raises:
        Unsupported: the step does something that the kernel cannot do.
    """
    evaluator = Evaluator(closed, layout)
    return _Writer(evaluator, layout, length, reverse, active).program()


class _Writer:
    def __init__(
        self,
        evaluator: Evaluator,
        layout: Layout,
        length: int,
        reverse: bool,
        active: int | None,
    ) -> None:
        self.evaluator, self.layout = evaluator, layout
        self.length, self.reverse, self.active = length, reverse, active
        self.slots: list[list[int]] = []
        self.slot_of: dict[Any, int] = {}
        self.constants: list[float] = []
        self.broadcast: dict[int, tuple[int, ...]] = {}
        self.members_first: set[int] = set()
        self.alias: dict[Node, Node] = {}
        self.places: dict[Node, Place] = {}
        self.outputs = self._outputs()
        self.order = reachable(node for *_, node in self.outputs)
        self.members = self._members()
        rows = layout.rows
        self.population = int(np.prod(rows[: self.members], dtype=int))
        self.batch = int(np.prod(rows[self.members :], dtype=int))

    def _outputs(self) -> list[tuple[bool, int, int, Node]]:
        """Return `(is carry, number, offset, node)` of all that a step returns."""
        found = []
        every = tuple(range(len(self.layout.rows)))
        avals = self.evaluator.flat.avals
        self.sizes: list[tuple[bool, int]] = []
        for n, value in enumerate(self.evaluator.outputs):
            is_carry = n < self.layout.carry
            number = n if is_carry else n - self.layout.carry
            output = self.evaluator.flat.outputs[n]
            shape = avals[output].shape if isinstance(output, int) else ()
            if value.rows != every and value.width is not None:
                raise Unsupported("a result without the axes of rows")
            if shape[: len(every)] != self.layout.rows:
                raise Unsupported("a result without the axes of rows")
            inner = shape[len(every) :]
            size = int(np.prod(inner, dtype=int))
            self.sizes.append((is_carry, size))
            found += self._vectors(is_carry, number, value, inner)
        return found

    def _vectors(
        self, is_carry: bool, number: int, value: Value, inner: tuple[int, ...]
    ) -> list[tuple[bool, int, int, Node]]:
        size, width = int(np.prod(inner, dtype=int)), value.width
        if not inner:
            (node,) = value.nodes.flat
            if node.width is None:
                raise Unsupported("a result that is one number for each row")
            width = node.width
            node = self.evaluator.node("store_row", node, width=width, uniform=True)
            return [(is_carry, number, 0, node)]
        full = (*inner[:-1], value.nodes.shape[-1] if value.nodes.ndim else 1)
        nodes = np.broadcast_to(value.nodes, full)
        width = size // nodes.size
        found = []
        for at, node in enumerate(nodes.flat):
            if node.uniform:
                node = self.evaluator.widen(node, width)
            if node.operation == "constant":
                node = self.evaluator.node("copy", node, width=width, uniform=True)
            found.append((is_carry, number, at * width, node))
        return found

    def _members(self) -> int:
        """Return how many axes of rows the matrices have, all of them the same."""
        found = set()
        for node in self.order:
            if node.product is not None:
                matrix = self.evaluator.inputs[node.product.matrix.argument]()
                found.add(len(matrix.rows))
        found -= {0}
        if len(found) > 1:
            raise Unsupported("matrices with different axes of rows")
        return next(iter(found), 0)

    # -- slots -----------------------------------------------------------------------

    def slot(self, kind: int, key: Any, *fields: int) -> int:
        """Return the number of a slot: kind, index, population, time, row, width."""
        if (kind, key) not in self.slot_of:
            self.slot_of[kind, key] = len(self.slots)
            self.slots.append([kind, *fields])
        return self.slot_of[kind, key]

    def strides(self, number: int) -> tuple[int, int, int]:
        """Return the distances of the members, the steps and the rows of an input."""
        value = self.evaluator.inputs[number]()
        size = int(np.prod(value.inner, dtype=int))
        every = tuple(range(len(self.layout.rows)))
        members, batch = every[: self.members], every[self.members :]
        pairs = zip(value.rows, value.shape, strict=False)
        rows = tuple(axis for axis, n in pairs if n == self.layout.rows[axis])
        if rows not in (every, (), members, batch):
            self.broadcast[number] = value.rows
            rows = every
        row = size if rows == every or (batch and set(batch) <= set(rows)) else 0
        step = self.batch * size if row else size
        has_members = bool(members) and set(members) <= set(rows)
        if number < self.layout.consts + self.layout.carry:
            return step if has_members else 0, 0, row
        if not has_members:
            return 0, step, row
        self.members_first.add(number)
        return self.length * step, step, row

    def memory(self, node: Node) -> Place:
        """Return the place of a node that is in memory before the step."""
        if node.operation == "constant":
            index = len(self.constants)
            if ("constant", node.value) not in self.slot_of:
                self.slot_of["constant", node.value] = self.slot(
                    CONSTANT, node.value, index, 0, 0, 0, 0
                )
                self.constants.append(node.value)
            return self.slot_of["constant", node.value], 0
        if node.operation == "carry":
            size = self.sizes[node.argument][1]
            slot = self.slot(CARRY_IN, node.argument, node.argument, 0, 1, size, 0)
            return slot, node.offset
        kind = BYTES if node.operation == "bytes" else ARGUMENT
        strides = self.strides(node.argument)
        return self.slot(kind, node.argument, node.argument, *strides, 0), node.offset

    def result(self, is_carry: bool, number: int) -> int:
        """Return the slot of a carry after the step, or of a result."""
        size = self.sizes[number if is_carry else number + self.layout.carry][1]
        if is_carry:
            return self.slot(CARRY_OUT, number, number, 0, 1, size, 0)
        rows = self.batch * size
        index = self.layout.carry + number
        return self.slot(RESULT, number, index, self.length * rows, rows, size, 0)

    def fresh(self, kind: int, row: int, width: int) -> int:
        """Return a new slot of memory that only this step uses."""
        self.slots.append([kind, 0, 0, 0, row, width])
        return len(self.slots) - 1

    # -- products --------------------------------------------------------------------

    def find(self, node: Node) -> Node:
        """Return the node whose place holds a node."""
        while node in self.alias:
            node = self.alias[node]
        return node

    def _groups(self) -> list[Group]:
        """Return the products, in order, each for up to `MOST_VECTORS` vectors."""
        found: dict[Any, list[Node]] = {}
        for node in self.order:
            if node.product is not None:
                key = node.product.operand, node.product.matrix, node.width
                found.setdefault(key, []).append(node)
        groups = []
        for nodes in found.values():
            nodes.sort(key=lambda node: node.offset)
            while nodes:
                step = nodes[1].offset - nodes[0].offset if len(nodes) > 1 else 0
                count = 1
                while (
                    count < min(len(nodes), MOST_VECTORS)
                    and nodes[count].offset == nodes[0].offset + count * step
                ):
                    count += 1
                first = len(self.slots)
                for node in nodes[:count]:
                    slot = self.fresh(LOCAL, 0, node.width or 0)
                    self.places[node] = slot, 0
                groups.append(Group(nodes[:count], step, first))
                nodes = nodes[count:]
        return groups

    def _add_inits(self, groups: list[Group]) -> None:
        """Begin the sums of products with what is added to them, where possible."""
        readers: dict[Node, list[Node]] = {}
        for node in self.order:
            for each in {*node.inputs, *(node.product.operand if node.product else ())}:
                readers.setdefault(each, []).append(node)
        returned = {node for *_, node in self.outputs}
        group_of = {node: group for group in groups for node in group.nodes}
        done: list[Group] = []
        for group in sorted(groups, key=lambda group: not group.ahead):
            while True:  # both a bias and another product may be added
                adds, others = [], []
                for node in group.nodes:
                    last = self._last_alias(node)
                    users = readers.get(last, [])
                    if len(users) != 1 or last in returned:
                        break
                    (add,) = users
                    if add.operation != "add" or add.inputs[0] is add.inputs[1]:
                        break
                    (other,) = (i for i in add.inputs if i is not last)
                    adds.append(add)
                    others.append(self.find(other))
                init = self._init(group, others, group_of, done)
                if init is None or len(adds) < len(group.nodes):
                    break
                group.init, group.init_step = init
                for node, add in zip(group.nodes, adds, strict=True):
                    self.alias[add] = node
                break
            done.append(group)

    def _last_alias(self, node: Node) -> Node:
        for add, of in self.alias.items():
            if of is node:
                return self._last_alias(add)
        return node

    def _init(
        self, group: Group, others: list[Node], group_of: Any, done: list[Group]
    ) -> tuple[Place, int] | None:
        """Return where the sums of a group can begin: a place and a distance."""
        if len(others) < len(group.nodes):
            return None
        first = others[0]
        if all(o.operation == "argument" and not o.uniform for o in others):
            offsets = [o.offset for o in others]
            steps = {b - a for a, b in itertools.pairwise(offsets)} or {0}
            is_const = first.argument < self.layout.consts
            if len({o.argument for o in others}) > 1 or len(steps) > 1:
                return None
            if group.ahead and not is_const:
                return None
            return self.memory(first), steps.pop()
        other = group_of.get(first)
        if other is None or other not in done or group.ahead:
            return None
        if others != other.nodes or other.stage > group.stage:
            return None
        return (other.first_slot, 0), 0

    # -- the program -----------------------------------------------------------------

    def program(self) -> Program:
        groups = self._groups()
        stages: dict[Node, int] = {}
        group_of = {node: group for group in groups for node in group.nodes}
        for node in self.order:
            if node.product is None:
                stages[node] = max((stages[i] for i in node.inputs), default=0)
                continue
            group = group_of[node]
            operand = node.product.operand
            if self._in_memory(operand):
                first = operand[0].argument
                is_input = first >= self.layout.consts + self.layout.carry
                group.ahead = operand[0].operation == "argument" and is_input
            else:
                group.stage = max(stages[each] for each in operand) + 1
            stages[node] = group.stage
        self._add_inits(groups)
        for node in self.order:  # sums that begin with what is added take its stage
            target = self.find(node)
            if target is not node:
                stages[node] = stages[target]
        for node in self.order:
            if node.product is None and node not in self.alias:
                below = (stages[self.find(i)] for i in node.inputs)
                stages[node] = max(below, default=0)
        steps = [
            node
            for node in self.order
            if node.product is None
            and node.operation not in MEMORY
            and node not in self.alias
        ]
        aliases = self._carry_results()
        copies = self._place(steps, stages, groups, aliases)
        keys = {(stages[node], node.width) for node in steps}
        keys |= {(stage, width) for stage, width, *_ in copies}
        keys |= {(group.stage, None) for group in groups if not group.ahead}
        return self._assemble(keys, steps, copies, stages, groups, aliases)

    def _in_memory(self, operand: tuple[Node, ...]) -> bool:
        first, offset = operand[0], operand[0].offset
        for node in operand:
            if node.operation not in ("argument", "carry") or node.uniform:
                return False
            if (node.operation, node.argument) != (first.operation, first.argument):
                return False
            if node.offset != offset:
                return False
            offset += node.width or 0
        return first.operation == "carry" or self.strides(first.argument)[2] > 0

    def _carry_results(self) -> dict[int, int]:
        """Return for each carry the result that also holds it at every step, if any."""
        vectors: dict[Any, list[tuple[int, Node]]] = {}
        for is_carry, number, offset, node in self.outputs:
            vectors.setdefault((is_carry, number), []).append((offset, self.find(node)))
        found = {}
        for carry in range(self.layout.carry):
            own = vectors[True, carry]
            if any(node.operation in MEMORY for _, node in own):
                continue
            for key, others in vectors.items():
                if not key[0] and others == own:
                    found[carry] = key[1]
                    break
        return found

    def _place(
        self,
        steps: list[Node],
        stages: dict[Node, int],
        groups: list[Group],
        aliases: dict[int, int],
    ) -> list[tuple[int, int, Place, Node]]:
        """Give each node a place; return copies `(stage, width, to, from)`."""
        targets: dict[Node, list[Place]] = {}
        where: dict[Any, Place] = {}
        for is_carry, number, offset, node in self.outputs:
            if is_carry and number in aliases:
                continue
            place = self.result(is_carry, number), offset
            targets.setdefault(self.find(node), []).append(place)
            where[self.find(node), place[0], offset] = place
        for group in groups:
            operand = tuple(self.find(n) for n in group.product.operand)
            group.operand = self._operand_place(operand, targets, where)
        copies = []
        for node, places in targets.items():
            own = node if node in self.places or node.operation in MEMORY else None
            rest = places
            if own is None:
                self.places[node], *rest = places
            stage = 0 if node.operation in MEMORY else stages[node]
            copies += [(stage, node.width, place, node) for place in rest]
        last: dict[Node, tuple[int, Any]] = {}
        for node in steps:
            for each in node.inputs:
                read = self.find(each)
                if stages.get(read, 0) != stages[node] or read.width != node.width:
                    last[read] = (stages[node], node.width)
        for stage, width, _, node in copies:
            if node not in self.places and node.operation not in MEMORY:
                last[node] = (stage, width)
        for node in steps:
            if node in last and node not in self.places:
                self.places[node] = self.fresh(LOCAL, 0, node.width or 0), 0
        return copies

    def _operand_place(
        self,
        operand: tuple[Node, ...],
        targets: dict[Node, list[Place]],
        where: dict[Any, Place],
    ) -> Place:
        """Return where the operand of a product is, one number after another."""
        if operand[0].operation in MEMORY and self._in_memory(operand):
            return self.memory(operand[0])
        for slot, begin in targets.get(operand[0], []):
            offset = begin
            for node in operand:
                if (node, slot, offset) not in where:
                    break
                offset += node.width or 0
            else:
                return slot, begin
        size = sum(node.width or 0 for node in operand)
        slot, offset = self.fresh(SHARED, size, 0), 0
        for node in operand:
            targets.setdefault(node, []).append((slot, offset))
            where[node, slot, offset] = slot, offset
            offset += node.width or 0
        return slot, 0

    def _assemble(
        self,
        keys: set[tuple[int, int | None]],
        steps: list[Node],
        copies: list[tuple[int, int, Place, Node]],
        stages: dict[Node, int],
        groups: list[Group],
        aliases: dict[int, int],
    ) -> Program:
        registers = _Registers(self)
        products: list[list[int]] = []
        code: list[list[int]] = []
        segments: list[list[int]] = []
        for group in groups:
            if group.ahead:
                products.append(self._product(group))
        for stage in sorted({stage for stage, _ in keys}):
            widths = sorted({w for s, w in keys if s == stage and w is not None})
            own = [g for g in groups if g.stage == stage and not g.ahead]
            for at, width in enumerate(widths or [1]):
                begin = len(products), len(code)
                for group in own if at == 0 else ():
                    products.append(self._product(group))
                here = [n for n in steps if stages[n] == stage and n.width == width]
                moved = [c for c in copies if c[:2] == (stage, width)]
                code += registers.segment(here, moved)
                segments.append(
                    [
                        int(bool(own) and at == 0),
                        width,
                        begin[0],
                        len(products),
                        begin[1],
                        len(code),
                    ]
                )
        carries = []
        for number in range(self.layout.carry):
            argument = self.layout.consts + number
            population, _, _ = self.strides(argument)
            size = self.sizes[number][1]
            slot = self.result(False, aliases[number]) if number in aliases else -1
            carries.append([argument, population, number, size, slot])
        whole_rows = any(node.operation == "sum_row" for node in steps)
        header = [self.length, self.population, self.batch, int(self.reverse)]
        header += [int(whole_rows), registers.most]
        tables = [self.slots, carries, products, segments, code]
        header += [len(table) for table in tables]
        header += [-1, 0, 0, 0]
        if self.active is not None:
            header[-4:] = [self.active, self.length * self.batch, self.batch, 1]
            if self.members:
                self.members_first.add(self.active)
        numbers = [*header, *itertools.chain(*itertools.chain(*tables))]
        return Program(
            np.asarray(numbers, np.int64),
            np.asarray(self.constants or [0.0], np.float64),
            tuple(sorted(self.broadcast.items())),
            self.members,
            tuple(sorted(self.members_first)),
        )

    def _product(self, group: Group) -> list[int]:
        node, matrix = group.nodes[0], group.product.matrix
        if group.ahead:
            for slot in range(group.first_slot, group.first_slot + len(group.nodes)):
                self.slots[slot][3] = 1
        return [
            *group.operand,
            group.product.size,
            matrix.argument,
            self._matrix_population(matrix),
            matrix.inner,
            matrix.outer,
            node.offset * matrix.outer,
            group.step * matrix.outer,
            len(group.nodes),
            node.width or 0,
            group.first_slot,
            *group.init,
            group.init_step,
            int(group.ahead),
        ]

    def _matrix_population(self, matrix: Matrix) -> int:
        value = self.evaluator.inputs[matrix.argument]()
        return int(np.prod(value.inner, dtype=int)) if value.rows else 0


class _Registers:
    """Writes the instructions of segments, and assigns registers to their nodes."""

    def __init__(self, writer: _Writer) -> None:
        self.writer = writer
        self.most = 0

    def segment(
        self, nodes: list[Node], copies: list[tuple[int, int, Place, Node]]
    ) -> list[list[int]]:
        writer = self.writer
        last: dict[Node, int] = {}
        for at, node in enumerate(nodes):
            for each in node.inputs:
                last[writer.find(each)] = at
        free: list[int] = []
        count, assigned, code = 0, {}, []

        def place(node: Node) -> Place:
            node = writer.find(node)
            if node.operation in MEMORY:
                return writer.memory(node)
            return assigned.get(node) or writer.places[node]

        for at, node in enumerate(nodes):
            inputs = [place(each) for each in node.inputs]
            if node not in writer.places:
                if not free:
                    free.append(count)
                    count += 1
                number = free.pop()
                assigned[node] = (writer.slot(REGISTER, number, number, 0, 0, 0, 0), 0)
            for each in {writer.find(i) for i in node.inputs}:
                if each in assigned and last[each] == at:
                    free.append(writer.slots[assigned[each][0]][1])
            to = place(node)
            code.append(_instruction(node.operation, to, *inputs))
            if node not in last and node in assigned:
                free.append(writer.slots[to[0]][1])
        for _, _, to, node in copies:
            code.append(_instruction("copy", to, place(node)))
        self.most = max(self.most, count)
        return code


def _instruction(operation: str, to: Place, *inputs: Place) -> list[int]:
    operands = [*inputs, *[NOWHERE] * (3 - len(inputs))]
    return [OPERATIONS.index(operation), *to, *itertools.chain(*operands)]
