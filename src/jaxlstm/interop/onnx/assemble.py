"""Layers read from a graph, put together by the names of their nodes.

The last part of a node's name is the operation, the parts before it are the path of the
layer: `rnn/0/LSTM`, `rnn/1/LSTM` and `head/MatMul` give

    serial(rnn=stack(cell, (h, h)), head=linear(n))

Numbers give a `serial` by position. Names that do not name one layer each, in their
order, are not used: the layers are then numbered.
"""

import itertools
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxlstm.cells.base import Cell
from jaxlstm.layers import combine
from jaxlstm.layers.base import Layer
from jaxlstm.layers.combine import Pair


class Entry(NamedTuple):
    """A layer with its parameters.

    Attributes:
        path: names of the layers around it and its own, outermost first.
        layer: the layer, or the name of a function of `jax.nn`.
        params: its parameters.
        cell: the cell of a recurrent layer.
        sizes: units of each direction of a recurrent layer, negative if reversed.
        rate: the rate of a dropout.
        inner: the entries of a residual layer.
    """

    path: tuple[str, ...]
    layer: Layer | str
    params: Any
    cell: Cell | None = None
    sizes: tuple[int, ...] = ()
    rate: float | None = None
    inner: tuple["Entry", ...] = ()

    def below(self, count: int) -> "Entry":
        """Return the entry without the first names of its path and those inside."""
        inner = tuple(entry.below(count) for entry in self.inner)
        return self._replace(path=self.path[count:], inner=inner)


def path_of(name: str) -> tuple[str, ...]:
    """Return the path of the layer that a node belongs to."""
    parts = [part for part in name.split("/") if part]
    return tuple(re.sub(r"\W", "_", part) for part in parts[:-1])


def without_common(entries: Sequence[Entry]) -> list[Entry]:
    """Drop the names of modules around all layers, except the innermost."""
    paths = [entry.path for entry in entries]
    common = 0
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        common += 1
    return [entry.below(max(0, common - 1)) for entry in entries]


def assemble(entries: Sequence[Entry]) -> tuple[Any, Layer]:
    """Return params and layer of the composition of entries, in their order."""
    params, layer = _assemble(entries)
    if isinstance(layer, str):  # a function alone
        return (params,), combine.serial(layer)
    return params, layer


def _assemble(entries: Sequence[Entry]) -> tuple[Any, Any]:
    if len(entries) == 1 and not entries[0].path:
        return _leaf(entries[0])
    groups = [
        (head, tuple(entry.below(1) for entry in group))
        for head, group in itertools.groupby(
            entries, key=lambda entry: (entry.path or ("",))[0]
        )
    ]
    heads = [head for head, _ in groups]
    numbered = heads == [str(n) for n in range(len(heads))]
    named = all(map(str.isidentifier, heads)) and len(set(heads)) == len(heads)
    if not numbered and not named:
        return _flat(entries)
    if numbered:
        found = _stack([group for _, group in groups])
        if found is not None:
            return found
    pairs = [_assemble(group) for _, group in groups]
    layers = [layer for _, layer in pairs]
    if numbered:
        return tuple(params for params, _ in pairs), combine.serial(*layers)
    params = {head: p for head, (p, _) in zip(heads, pairs, strict=True)}
    return params, combine.serial(**dict(zip(heads, layers, strict=True)))


def _flat(entries: Sequence[Entry]) -> tuple[Any, Any]:
    """Return the layers by position, or as a stack if they are one."""
    groups: list[tuple[Entry, ...]] = []
    for entry in entries:
        if groups and groups[-1][-1].rate is not None and entry.cell is not None:
            groups[-1] = (*groups[-1], entry)
        else:
            groups.append((entry,))
    return _stack(groups) or _composed(entries)


def _composed(entries: Sequence[Entry]) -> tuple[Any, Any]:
    """Return a layer, or the composition of several by position."""
    pairs = [_leaf(entry) for entry in entries]
    if len(pairs) == 1:
        return pairs[0]
    return tuple(params for params, _ in pairs), combine.serial(
        *(layer for _, layer in pairs)
    )


def _leaf(entry: Entry) -> tuple[Any, Any]:
    """Return params and layer of one entry; a residual layer's are put together."""
    if not entry.inner:
        return entry.params, entry.layer
    inside = all(e.path[: len(entry.path)] == entry.path for e in entry.inner)
    inner = [e.below(len(entry.path) if inside else 0) for e in entry.inner]
    params, layer = assemble(inner) if inside else _flat(inner)
    return params, combine.residual(layer)


def _stack(groups: Sequence[Sequence[Entry]]) -> tuple[Any, Layer] | None:
    """Return params and layer of a `stack`, if the groups are its layers.

    A group is a recurrent layer with or without dropout before it, inside a residual
    layer or not.
    """
    parts = [_stacked(group) for group in groups]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    first = known[0]
    cell, both = first.recurrent.cell, len(first.recurrent.sizes) == 2
    rate, residual = known[-1].rate, known[-1].residual
    uniform = all(
        part.recurrent.cell == cell
        and part.recurrent.sizes == _sizes(part.recurrent.sizes[0], both)
        and (part.rate, part.residual) == ((rate, residual) if n else (0.0, False))
        for n, part in enumerate(known)
    )
    if cell is None or not uniform:
        return None
    layer = combine.stack(
        cell,
        tuple(part.recurrent.sizes[0] for part in known),
        dropout=rate,
        bidirectional=both,
        residual=residual,
    )
    return tuple(part.recurrent.params for part in known), layer


def _sizes(size: int, both: bool) -> tuple[int, ...]:
    """Return the `sizes` of an entry of a stack."""
    return (abs(size), -abs(size)) if both else (abs(size),)


class _Stacked(NamedTuple):
    """A layer of a stack: the recurrent entry, the dropout before it, and residual."""

    recurrent: Entry
    rate: float
    residual: bool


def _stacked(group: Sequence[Entry]) -> _Stacked | None:
    residual = len(group) == 1 and bool(group[0].inner)
    group = group[0].inner if residual else group
    rate = 0.0
    if len(group) == 2 and group[0].rate is not None:
        rate, group = group[0].rate, group[1:]
    if len(group) != 1 or group[0].cell is None:
        return None
    return _Stacked(group[0], rate, residual)


def both_directions(
    path: tuple[str, ...], forward: Sequence[Entry], backward: Sequence[Entry]
) -> Entry | None:
    """Return the bidirectional entry of two chains over the same inputs.

    Each is a recurrent layer, the second one reversed, and layers without a state.

    Returns:
        The entry, or None if the chains are others.
    """
    first, second = forward[0], backward[0]
    fits = (
        len(first.sizes) == len(second.sizes) == 1
        and first.sizes[0] > 0 > second.sizes[0]
        and not any(entry.sizes or entry.inner for entry in forward[1:])
        and not any(entry.sizes or entry.inner for entry in backward[1:])
    )
    if not fits:
        return None
    (p, layer), (other_p, other_layer) = map(_composed, (forward, backward))
    alone = len(forward) == len(backward) == 1
    return Entry(
        path,
        combine.bidirectional(layer, other_layer),
        Pair(p, other_p),
        # A stack has one cell for both directions.
        first.cell if alone and first.cell == second.cell else None,
        (first.sizes[0], second.sizes[0]),
    )
