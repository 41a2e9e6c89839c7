"""Functions of a user, and all that they close over, are freed with their last use.

`unroll` keeps compiled programs for equal arguments, and constructors return the same
object for equal options. Neither may keep a function that the caller has dropped.
"""

import functools
import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlstm as jl
from jaxlstm.engines.functions import operations_of

CELL = jl.lstm()
PARAMS = CELL.init(jax.random.key(0), input_size=3, hidden_size=4)
XS = jnp.ones((5, 2, 3))


def alive(make, use) -> int:
    """Return how many of 5 functions exist after their only use."""
    functions = []
    for _ in range(5):
        made, function = make()
        functions.append(weakref.ref(function))
        use(made)
        del made, function
    gc.collect()
    return sum(function() is not None for function in functions)


def own_step():
    def step(params, state, z, *, edit=None):
        return CELL.step(params, state, z)

    return CELL._replace(step=step), step


def own_prepare():
    def prepare(params, xs, *, key=None):
        return params, None

    return CELL._replace(prepare=prepare), prepare


def own_init():
    def init(key, input_size, hidden_size, *, dtype=jnp.float32):
        return CELL.init(key, input_size, hidden_size, dtype=dtype)

    return CELL._replace(init=init), init


def own_activation():
    def activation(x):
        return jnp.tanh(x)

    return jl.lstm(candidate_activation=activation), activation


def wrapped(wrapper):
    def make():
        cell, function = own_step()
        return wrapper(cell), function

    return make


CELLS = {
    "step": own_step,
    "prepare": own_prepare,
    "init": own_init,
    "activation": own_activation,
    "zoneout": wrapped(lambda cell: jl.zoneout(cell, h_rate=0.1)),
    "weight_drop": wrapped(lambda cell: jl.weight_drop(cell, 0.1)),
    "variational": wrapped(lambda cell: jl.variational_dropout(cell, h_rate=0.1)),
    "recurrent_dropout": wrapped(lambda cell: jl.recurrent_dropout(cell, 0.1)),
    "clip": wrapped(lambda cell: jl.clip_cell(cell, 1.0)),
    "initial_state": wrapped(jl.learned_initial_state),
}


DEFAULT = ("step", "activation", "zoneout")


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(
            make, id=name, marks=() if name in DEFAULT else pytest.mark.combinations
        )
        for name, make in CELLS.items()
    ],
)
def test_cells_are_freed(make):
    def use(cell):
        params = cell.init(jax.random.key(0), 3, 4)
        jl.unroll(cell, params, XS, engine="scan")

    assert alive(make, use) == 0


@pytest.mark.parametrize(
    "engine",
    [
        "native",
        *(pytest.param(e, marks=pytest.mark.combinations) for e in ("adjoint", "scan")),
    ],
)
def test_emit_functions_and_their_arrays_are_freed(engine):
    arrays = []

    def make():
        w = jnp.ones((4, 2))
        arrays.append(weakref.ref(w))
        emit = lambda state, gates: state.h @ w  # noqa: E731
        return emit, emit

    def use(emit):
        _, ys = jl.unroll(CELL, PARAMS, XS, emit=emit, engine=engine)
        assert ys.shape == (5, 2, 2)

    assert alive(make, use) == 0
    assert not any(array() is not None for array in arrays)


def test_emit_functions_of_the_same_operations_share_a_program():
    traced = []

    def own(scale):
        def emit(state, gates):
            return state.h * jnp.broadcast_to(scale, state.h.shape)

        return emit

    def step(params, state, z, *, edit=None):
        traced.append(1)
        return CELL.step(params, state, z)

    cell = CELL._replace(step=step)
    for scale in jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0]):
        start = len(traced)
        emit = own(jnp.tile(scale, 2))
        _, ys = jl.unroll(cell, PARAMS, XS, emit=emit, engine="scan")
        _, hs = jl.unroll(CELL, PARAMS, XS, engine="scan")
        np.testing.assert_array_equal(ys, np.asarray(hs) * np.tile(scale, 2))
    assert len(traced) - start <= 1  # for the types of the gates alone


LEAKS = [(e, f) for e in ("native", "adjoint", "scan") for f in ("emit", "cell")]


@pytest.mark.parametrize(
    ("engine", "of"),
    [
        LEAKS[0],  # `checking_leaks` searches all objects of the process
        *(pytest.param(*case, marks=pytest.mark.combinations) for case in LEAKS[1:]),
    ],
)
def test_no_tracer_is_kept(engine, of):
    run = functools.partial(jl.unroll, xs=XS, engine=engine)

    def of_emit(w):
        return run(CELL, PARAMS, emit=lambda state, gates: state.h @ w)[1].sum()

    def of_cell(w):
        def step(params, state, z, *, edit=None):
            state, gates = CELL.step(params, state, z)
            return state._replace(h=state.h * w.sum()), gates

        return run(CELL._replace(step=step), PARAMS)[1].sum()

    with jax.checking_leaks():
        function = of_emit if of == "emit" else of_cell
        gradient = jax.jit(jax.grad(function))(jnp.ones((4, 2)))
    assert bool((gradient != 0).all())


def test_operations_differ_where_the_functions_do():
    x = jnp.ones(3)
    one, _ = operations_of(lambda x: x + 0.0, x)
    assert one == operations_of(lambda x: x + 0.0, x)[0]
    others = [
        (lambda x: x + -0.0, x),
        (lambda x: x - 0.0, x),
        (lambda x: x + 0.0, jnp.ones(4)),
        (lambda x: x + 0.0, jnp.ones(3, jnp.bfloat16)),
        (lambda x: (x + 0.0,), x),
        (lambda x: x + 0.0 + x, x),
        (lambda x: jnp.where(x > 0, x, 0.0), x),
    ]
    assert all(one != operations_of(function, arg)[0] for function, arg in others)
    swapped, _ = operations_of(lambda x, y: x - y, x, x)
    assert swapped != operations_of(lambda x, y: y - x, x, x)[0]
    assert hash(one) == hash(operations_of(lambda x: x + 0.0, x)[0])
