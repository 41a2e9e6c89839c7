"""The reference engine: `lax.scan` and automatic differentiation.

Every other engine is judged by this one, so it is the plainest program that keeps
the contract. It serves every cell and every transformation.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from jaxlstm.cells.base import Cell, Params, State
from jaxlstm.cells.emit import Emit
from jaxlstm.sequences import Steps, select
from jaxlstm.shapes import Features, Happens, is_explicit

Rows = tuple[Features, Happens | None, Happens | None]
Block = Callable[[State, Rows], tuple[State, Any]]


def run(
    cell: Cell,
    params: Params,
    xs: Features,
    state: State,
    steps: Steps,
    *,
    reverse: bool,
    emit: Emit,
    checkpoint_every: int | Literal["sqrt"] | None,
) -> tuple[State, Any]:
    """Carry the state through the steps; stack what `emit` makes of each.

    The projection of the inputs, which does not wait for the past, is one product
    over all the steps of a block. Without `checkpoint_every` there is one block.
    """
    initial = cell.initial_state(params, xs.shape[1:-1], dtype=xs.dtype)

    def step(initial: State, state: State, row: Any) -> tuple[State, Any]:
        z, happens, resets = row
        begun = state if resets is None else select(resets, initial, state)
        after, gates = cell.step(params, begun, z)
        emitted = emit(after, gates)
        return (after if happens is None else select(happens, after, state)), emitted

    def project(rows: Rows) -> Any:
        xs, happens, resets = rows
        return cell.project(params, xs), happens, resets

    rows = (xs, steps.happens, steps.resets)
    after = jax.eval_shape(
        lambda rows: step(initial, state, _any_row(project(rows)))[0], rows
    )
    state, initial = _typed_like(after, state), _typed_like(after, initial)

    def block(state: State, rows: Rows) -> tuple[State, Any]:
        body = functools.partial(step, initial)
        return lax.scan(body, state, project(rows), reverse=reverse)

    if checkpoint_every is None:
        return block(state, rows)
    size = math.isqrt(len(xs)) if checkpoint_every == "sqrt" else checkpoint_every
    return _in_blocks(block, state, rows, size=max(size, 1), reverse=reverse)


def _in_blocks(
    block: Block, state: State, rows: Rows, *, size: int, reverse: bool
) -> tuple[State, Any]:
    """`block` over `size` steps at a time, each computed again on the way back.

    The backward pass then remembers the T/k states between the blocks and, while it
    is in one of them, the k steps of that block.
    """
    whole = len(rows[0]) // size * size
    many = jax.tree.map(
        lambda a: a[:whole].reshape(whole // size, size, *a.shape[1:]), rows
    )
    rest = jax.tree.map(lambda a: a[whole:], rows)
    again = jax.checkpoint(block, prevent_cse=False)  # a scan keeps them apart
    if reverse:
        state, tail = jax.checkpoint(block)(state, rest)
        state, head = lax.scan(again, state, many, reverse=True)
    else:
        state, head = lax.scan(again, state, many)
        state, tail = jax.checkpoint(block)(state, rest)
    flat = jax.tree.map(lambda a: a.reshape(whole, *a.shape[2:]), head)
    return state, jax.tree.map(lambda a, b: jnp.concatenate([a, b]), flat, tail)


def _any_row(rows: Any) -> Any:
    """Something of the type of one row, also where there are none; never computed."""
    return jax.tree.map(lambda a: a.sum(0, dtype=a.dtype), rows)


def _typed_like(after: State, state: State) -> State:
    """The state with the sharding and the mesh axes that a step will give it.

    A loop's carry has one type. Zeros made from nothing belong to no mesh axis, while
    the state after a step varies over those of the inputs: under `shard_map` and on
    an explicit mesh the two must be made alike before the loop.
    """

    def one(after: Any, leaf: Any) -> Any:
        if is_explicit(after.sharding):
            leaf = jax.sharding.reshard(leaf, after.sharding)
        varying = after.manual_axis_type.varying if after.manual_axis_type else set()
        missing = varying - jax.typeof(leaf).manual_axis_type.varying
        return lax.pcast(leaf, tuple(missing), to="varying") if missing else leaf

    return jax.tree.map(one, after, state)
