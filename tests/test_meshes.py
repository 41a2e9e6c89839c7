"""`unroll` over many devices: `shard_map`, automatic and explicit meshes.

Eight virtual CPU devices, rows over "data"; the judge is the call on one of them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxlstm as jl
from cases import Kind, Shape, assert_same, draw

CELL = jl.lstm()
ROWS, STATES = P(None, "data"), P("data")
COMBINATIONS = pytest.mark.parametrize(
    ("option", "every", "given_state"),
    [
        ("none", None, False),
        ("lengths", None, True),
        ("lengths", 2, False),
        ("mask", None, False),
        ("mask", 2, True),
    ],
)


class Problem(NamedTuple):
    """Arguments of unroll, and a spec for each of them."""

    params: jl.LSTMParams
    xs: np.ndarray
    state: jl.LSTMState | None
    steps: dict[str, np.ndarray]


def problem(option: str, given_state: bool) -> tuple[Problem, Problem]:
    """Eight rows for four devices, NaN in their padding, and resets."""
    case = draw(np.random.default_rng(17), Shape(5, (8,), 3, 4), Kind(option, True))
    which = case.which._asdict()
    steps = {name: which[name] for name in {option, "resets"} - {"none"}}
    state = jl.LSTMState(case.h, case.c) if given_state else None
    values = Problem(jl.LSTMParams(*case.weights), case.xs, state, steps)
    specs = Problem(
        jl.LSTMParams(P(), P(), P()),
        ROWS,
        jl.LSTMState(STATES, STATES) if given_state else None,
        {name: STATES if name == "lengths" else ROWS for name in steps},
    )
    return values, specs


def runner(every: int | None = None):
    def run(params, xs, state, steps):
        return jl.unroll(CELL, params, xs, state, **steps, checkpoint_every=every)

    return run


def gradients(run, values: Problem):
    """Of a scalar of hs, h_T and c_T, for everything but the steps."""

    def loss(params, xs, state):
        last, hs = run(params, xs, state, values.steps)
        return jnp.sum(hs**2) + jnp.sum(last.h**2) + jnp.sum(last.c)

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*values[:3])


def make_mesh(kind: AxisType):
    return jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind, kind))


def put(mesh, values, specs):
    def one(spec, value):
        return jax.device_put(value, NamedSharding(mesh, spec))

    return jax.tree.map(one, specs, values)


def test_there_are_eight_devices():
    assert len(jax.devices()) == 8


@pytest.mark.parametrize("check_vma", [True, False])
@COMBINATIONS
def test_shard_map(option, every, given_state, check_vma, x64):
    """Values, and gradients of replicated params by the sum over devices."""
    values, specs = problem(option, given_state)
    mapped = jax.shard_map(
        runner(every),
        mesh=make_mesh(AxisType.Auto),
        in_specs=tuple(specs),
        out_specs=(jl.LSTMState(STATES, STATES), ROWS),
        check_vma=check_vma,
    )
    assert_same(jax.jit(mapped)(*values), runner()(*values))
    assert_same(gradients(mapped, values), gradients(runner(), values))


def test_gradient_inside_shard_map(x64):
    """`grad` within the mapped function, of the sum over the devices."""
    values, specs = problem("none", False)

    def loss(params, xs):
        return jnp.sum(jl.unroll(CELL, params, xs)[1] ** 2)

    def total(params, xs):
        return jax.lax.psum(loss(params, xs), "data")

    mapped = jax.shard_map(
        jax.grad(total),
        mesh=make_mesh(AxisType.Auto),
        in_specs=tuple(specs[:2]),
        out_specs=specs.params,
    )
    wanted = jax.grad(loss)(*values[:2])
    assert_same(jax.jit(mapped)(*values[:2]), wanted)


@pytest.mark.parametrize("jit", [False, True])
@COMBINATIONS
def test_explicit_mesh(option, every, given_state, jit, x64):
    """`jax.make_mesh`'s default axes: the sharding is part of the type."""
    values, specs = problem(option, given_state)
    run = runner(every)
    mesh = make_mesh(AxisType.Explicit)
    with jax.set_mesh(mesh):
        arguments = put(mesh, values, specs)
        last, hs = (jax.jit(run) if jit else run)(*arguments)
        assert hs.sharding.spec == P(None, "data", None)
        assert last.h.sharding.spec == last.c.sharding.spec == P("data", None)
        got = jax.device_get(gradients(run, arguments)) if jit else None
    assert_same((last, hs), runner()(*values))
    if jit:
        assert_same(got, gradients(runner(), values))


@pytest.mark.parametrize("option", ["none", "lengths", "mask"])
def test_automatic_mesh(option, x64):
    """Units over "model" as well: the four gates of a unit stay together."""
    values, specs = problem(option, True)
    units = jl.LSTMParams(
        P(None, None, "model"), P(None, None, "model"), P(None, "model")
    )
    arguments = put(make_mesh(AxisType.Auto), values, specs._replace(params=units))
    assert_same(jax.jit(runner())(*arguments), runner()(*values))
    assert_same(gradients(runner(), arguments), gradients(runner(), values))
