"""Wrappers of cells: statistics of noise, equations, composition, errors, meshes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxlstm as jl
from cases import assert_same, finite, same_bits

pytestmark = pytest.mark.thorough

KEY = jax.random.key(5)
XS = jax.random.normal(jax.random.key(6), (6, 4, 3))
STOCHASTIC = {
    "zoneout": lambda cell: jl.zoneout(cell, h_rate=0.3, c_rate=0.4),
    "variational": lambda cell: jl.variational_dropout(cell, x_rate=0.3, h_rate=0.4),
    "recurrent": lambda cell: jl.recurrent_dropout(cell, 0.3),
    "weights": lambda cell: jl.weight_drop(cell, 0.3),
}
WRAPPERS = STOCHASTIC | {
    "clip": lambda cell: jl.clip_cell(cell, 0.1),
    "learned": jl.learned_initial_state,
    "taps": jl.taps,
}
over = pytest.mark.parametrize


class Echo(NamedTuple):
    """The state of the cell `ECHO`."""

    h: jax.Array
    c: jax.Array


def echo_cell():
    """Return a cell with h_t = x_t + 10 h_{t-1}, g = 1, c_t = c_{t-1} + g."""

    def step(params, state, z, *, edit=jl.cells.base.UNEDITED):
        read = jl.cells.base.apply_edit(edit.hidden, state.h)
        g = jl.cells.base.apply_edit(edit.candidate, jnp.ones_like(state.c))
        c = jl.cells.base.apply_edit(edit.cell, state.c + g)
        return Echo(z + 10 * read, c), (read, g)

    def initial_state(params, batch_shape=(), *, dtype=None):
        zeros = jnp.zeros((*batch_shape, params["n"].size), dtype)
        return Echo(zeros, zeros)

    def init(key, input_size, hidden_size, *, dtype=jnp.float32):
        return {"n": jnp.zeros(hidden_size, dtype)}

    return jl.Cell(init, initial_state, lambda params, x: x, step)


ECHO = echo_cell()


def plain_cell():
    """Return a minimal cell of a user: without edit and without c."""

    def step(params, state, z):
        after = jl.cells.base.HiddenState(jnp.tanh(z + state.h))
        return after, None

    return ECHO._replace(
        step=step,
        initial_state=lambda params, batch_shape=(), *, dtype=None: (
            jl.cells.base.HiddenState(
                jnp.zeros((*batch_shape, params["n"].size), dtype)
            )
        ),
    )


def everything(cell, params, xs, **options):
    """Return the last state, and states and gates of each step."""
    return jl.unroll(cell, params, xs, emit=jl.emit.trace, **options)


def drawn(cell, hidden_size=4):
    return cell.init(KEY, XS.shape[-1], hidden_size)


def at(states, t):
    """Return one step of stacked arrays."""
    return jax.tree.map(lambda leaf: leaf[t], states)


# -- statistics ------------------------------------------------------------------


def test_zoneout_keeps_old_values_at_its_rates():
    xs = jax.random.normal(KEY, (40, 20, 50))
    cell = jl.zoneout(ECHO, h_rate=0.2, c_rate=0.7)
    _, trace = everything(cell, drawn(ECHO, 50), xs, key=KEY)
    kept_c = trace.state.c[1:] == trace.state.c[:-1]
    kept_h = trace.state.h[1:] == trace.state.h[:-1]
    assert abs(kept_c.mean() - 0.7) < 0.02
    assert abs(kept_h.mean() - 0.2) < 0.02
    assert abs((kept_c & kept_h).mean() - 0.14) < 0.02
    for axis in range(3):  # no two steps, rows or units share a mask
        assert 0 < kept_c.mean(axis).min() < kept_c.mean(axis).max() < 1


def test_recurrent_dropout_drops_the_candidate_of_each_step():
    xs = jnp.zeros((40, 20, 50))
    cell = jl.recurrent_dropout(ECHO, 0.2)
    state, trace = everything(cell, drawn(ECHO, 50), xs, key=KEY)
    _, g = trace.gates
    assert set(np.unique(g).tolist()) == {0.0, 1.25}
    assert abs(g.mean() - 1) < 0.02
    assert (g.std(0) > 0).mean() > 0.99  # one unit in 7500 is never dropped
    assert abs(np.corrcoef(g[:, 0].ravel(), g[:, 1].ravel())[0, 1]) < 0.1
    np.testing.assert_allclose(state.c, g.sum(0), rtol=1e-5)  # nothing is forgotten


def test_variational_dropout_has_one_mask_per_row_and_sequence():
    xs = jnp.ones((5, 60, 50))
    cell = jl.variational_dropout(ECHO, x_rate=0.2, h_rate=0.5)
    _, trace = everything(cell, drawn(ECHO, 50), xs, key=KEY)
    hs, read = np.asarray(trace.state.h), np.asarray(trace.gates[0])
    first = hs[0]
    assert set(np.unique(first).tolist()) == {0.0, 1.25}
    assert abs((first == 0).mean() - 0.2) < 0.02
    h = hs[:-1]
    dropped = (read[1:] == 0) | (h == 0)
    assert (dropped == dropped[0]).all()
    factors = read[1:][h != 0] / h[h != 0]
    np.testing.assert_allclose(np.unique(factors.round(4)), [0, 2])
    assert abs((factors == 0).mean() - 0.5) < 0.03
    assert not (dropped[0, 0] == dropped[0, 1]).all()


def test_weight_drop_masks_w_h_alone_and_once():
    cell, xs = jl.weight_drop(jl.lstm(), 0.2), XS
    params = drawn(cell, 40)
    dropped, each = cell.prepare(params, xs, key=KEY)
    assert each is None
    assert abs((dropped.w_h == 0).mean() - 0.2) < 0.02
    kept = dropped.w_h != 0
    np.testing.assert_allclose(dropped.w_h[kept], params.w_h[kept] / 0.8, rtol=1e-6)
    assert same_bits((dropped.w_x, dropped.b), (params.w_x, params.b))
    expected = jl.unroll(jl.lstm(), dropped, xs)
    assert same_bits(jl.unroll(cell, params, xs, key=KEY), expected)


def test_two_leaves_named_w_h_have_different_masks():
    init = jl.lstm().init

    def two(*sizes, **options):
        params = init(*sizes, **options)
        return {"a": params, "b": params, "w_x": params.w_x}

    cell = jl.weight_drop(jl.lstm()._replace(init=two), 0.5)
    params, _ = cell.prepare(drawn(cell, 9), XS, key=KEY)
    zeros = [params[name].w_h == 0 for name in "ab"]
    assert 0.3 < (zeros[0] == zeros[1]).mean() < 0.7


@over("name", STOCHASTIC)
def test_noise_depends_on_the_key_only(name):
    """checkpoint_every, values, dtypes and other code have no influence."""
    cell = STOCHASTIC[name](jl.lstm())
    params = drawn(cell)
    state, hs = jl.unroll(cell, params, XS, key=KEY)
    again = jl.unroll(cell, params, XS, key=KEY, checkpoint_every=2)
    assert_same(again, (state, hs), 1e-6)
    other = jl.unroll(cell, params, XS, key=jax.random.key(9))[1]
    assert not np.allclose(other, hs)
    keys = jax.random.split(KEY, 3)
    many = jax.vmap(lambda key: jl.unroll(cell, params, XS, key=key)[1])(keys)
    assert_same(many[1], jl.unroll(cell, params, XS, key=keys[1])[1], 1e-6)
    with jax.enable_x64(True):
        wide = jl.unroll(
            cell,
            jax.tree.map(lambda p: p.astype(jnp.float64), params),
            XS.astype(jnp.float64),
            key=KEY,
        )
    assert_same(wide[1], hs, 1e-5)


# -- without a key ---------------------------------------------------------------


def test_zoneout_without_a_key_uses_the_expectation():
    cell = jl.zoneout(jl.lstm(), h_rate=0.25, c_rate=0.5)
    params = drawn(cell)
    _, trace = everything(cell, params, XS)
    h, c = jnp.zeros((2, 4, 4))
    for t in range(len(XS)):
        (new_h, new_c), _ = jl.lstm().step(
            params, jl.LSTMState(h, c), jl.lstm().project(params, XS[t])
        )
        h, c = 0.25 * h + 0.75 * new_h, 0.5 * c + 0.5 * new_c
        assert_same((trace.state.h[t], trace.state.c[t]), (h, c), 1e-6)


@over("name", ["variational", "recurrent", "weights", "taps"])
def test_without_a_key_the_cell_is_unchanged(name):
    cell = WRAPPERS[name](jl.lstm())
    params = drawn(jl.lstm())
    expected = everything(jl.lstm(), params, XS)
    own = jl.cells.wrappers.Tapped(params, None) if name == "taps" else params
    assert same_bits(everything(cell, own, XS), expected)


def test_rates_of_zero_leave_the_cell_unchanged():
    params, expected = drawn(jl.lstm()), jl.unroll(jl.lstm(), drawn(jl.lstm()), XS)
    for cell in (
        jl.zoneout(jl.lstm()),
        jl.variational_dropout(jl.lstm()),
        jl.recurrent_dropout(jl.lstm(), 0),
        jl.weight_drop(jl.lstm(), 0),
    ):
        assert same_bits(jl.unroll(cell, params, XS, key=KEY), expected)


# -- composition -------------------------------------------------------------


@over(
    ("outer", "inner"), [("zoneout", "clip"), ("taps", "zoneout"), ("zoneout", "taps")]
)
def test_the_inner_wrapper_acts_first(outer, inner):
    """The reference is a loop: clip within the step, then zoneout and taps in order."""
    cell = WRAPPERS[outer](WRAPPERS[inner](jl.lstm()))
    params = drawn(jl.lstm())
    taps = jl.LSTMState(*0.5 * jax.random.normal(KEY, (2, 6, 4, 4)))
    own = jl.cells.wrappers.Tapped(params, taps) if "taps" in (outer, inner) else params
    _, trace = everything(cell, own, XS)
    base = jl.clip_cell(jl.lstm(), 0.1) if inner == "clip" else jl.lstm()

    def tap(old, new, t):
        return jax.tree.map(lambda new, tap: new + tap[t], new, taps)

    def zone(old, new, t):
        h, c = 0.3 * old.h + 0.7 * new.h, 0.4 * old.c + 0.6 * new.c
        return jl.LSTMState(h, c)

    after = {"taps": tap, "zoneout": zone, "clip": lambda old, new, t: new}
    state = base.initial_state(params, (4,))
    for t in range(len(XS)):
        new, _ = base.step(params, state, base.project(params, XS[t]))
        state = after[outer](state, after[inner](state, new, t), t)
        assert_same(at(trace.state, t), state, 1e-6)


def test_edits_reach_the_innermost_cell():
    one = jl.zoneout(jl.clip_cell(jl.lstm(), 0.1), c_rate=0.3)
    other = jl.clip_cell(jl.zoneout(jl.lstm(), c_rate=0.3), 0.1)
    params = drawn(one)
    for key in (None, KEY):
        got, expected = (jl.unroll(cell, params, XS, key=key) for cell in (one, other))
        assert same_bits(got, expected)


@over("name", ["zoneout", "variational", "recurrent", "weights"])
def test_a_wrapper_applied_twice_draws_twice(name):
    """A value is unchanged if both leave it unchanged: one half of one half."""
    rate = {
        "zoneout": lambda cell: jl.zoneout(cell, c_rate=0.5),
        "variational": lambda cell: jl.variational_dropout(cell, x_rate=0.5),
        "recurrent": lambda cell: jl.recurrent_dropout(cell, 0.5),
        "weights": lambda cell: jl.weight_drop(cell, 0.5),
    }[name]
    if name == "weights":
        cell = rate(rate(jl.lstm()._replace(prepare=lambda p, xs, key=None: (p, None))))
        params = drawn(jl.lstm(), 40)
        seen = cell.prepare(params, XS, key=KEY)[0].w_h == 0
    else:
        cell = rate(rate(ECHO))
        state, trace = everything(
            cell, drawn(ECHO, 400), jnp.ones((1, 4, 400)), key=KEY
        )
        seen = {
            "zoneout": state.c == 0,
            "variational": state.h == 0,
            "recurrent": trace.gates[1] == 0,
        }[name]
    assert abs(seen.mean() - 0.75) < 0.04


def test_wrappers_without_noise_do_not_change_the_noise_inside():
    inner = STOCHASTIC["zoneout"](jl.lstm())
    params = drawn(inner)
    expected = jl.unroll(inner, params, XS, key=KEY)
    assert same_bits(
        jl.unroll(jl.taps(inner), jl.cells.wrappers.Tapped(params, None), XS, key=KEY),
        expected,
    )
    learned = jl.cells.wrappers.Learned(params, inner.initial_state(params))
    got = jl.unroll(jl.learned_initial_state(inner), learned, XS, key=KEY)
    assert same_bits(got, expected)


@over(
    "cell",
    [jl.conv_lstm((3,)), jl.gru(), jl.simple_rnn(), plain_cell(), jl.projected_lstm(2)],
)
def test_wrappers_of_other_cells(cell):
    """All wrappers that the cell allows, composed, with finite gradients."""
    space = (5,) * cell.spatial_axes
    xs = jax.random.normal(KEY, (3, 2, *space, 4))
    wrapped = jl.zoneout(jl.variational_dropout(cell, x_rate=0.5), h_rate=0.5)
    wrapped = jl.taps(jl.learned_initial_state(wrapped))
    if "n" not in drawn(cell):
        wrapped = jl.weight_drop(wrapped, 0.5)
        wrapped = jl.variational_dropout(wrapped, h_rate=0.5)
    assert wrapped.spatial_axes == cell.spatial_axes
    params = wrapped.init(KEY, 4, 4)

    def loss(params):
        return (jl.unroll(wrapped, params, xs, key=KEY)[1] ** 2).sum()

    value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    assert value > 0
    assert finite(gradient)


@over("cell", [jl.lstm(), jl.conv_lstm((3,))])
@over("frame", [(0, 2), (3, 0), (3,), (3, 2, 2)])
def test_all_wrappers_composed_on_shapes_with_and_without_steps(cell, frame):
    for wrap in WRAPPERS.values():
        cell = wrap(cell)
    xs = jnp.ones((*frame, *(5,) * cell.spatial_axes, 3), jnp.bfloat16)
    params = drawn(cell)
    state, hs = jl.unroll(cell, params, xs, key=KEY)
    assert hs.dtype == state.h.dtype == jnp.bfloat16
    assert state.c.dtype == jnp.float32
    assert hs.shape == (*xs.shape[:-1], 4)
    again = jl.unroll(cell, params, xs, key=KEY, checkpoint_every="sqrt", reverse=True)
    assert again[1].shape == hs.shape


# -- initial states, clipping, gradients -----------------------------------------


def test_the_learned_state_is_used_at_the_start_and_after_resets(x64):
    cell, xs = jl.learned_initial_state(jl.lstm()), XS.astype(jnp.float64)
    params = cell.init(KEY, 3, 4, dtype=jnp.float64)
    assert not any(np.any(leaf) for leaf in params.state)
    params = params._replace(state=jl.LSTMState(*jnp.arange(8.0).reshape(2, 4) / 8))
    resets = jnp.zeros((6, 4), bool).at[4, 1].set(True)

    def loss(params):
        return (jl.unroll(cell, params, xs, resets=resets)[1] ** 2).sum()

    def by_hand(params):
        start = jax.tree.map(lambda leaf: jnp.tile(leaf, (4, 1)), params.state)
        _, hs = jl.unroll(jl.lstm(), params.params, xs, start)
        _, late = jl.unroll(jl.lstm(), params.params, xs[4:], start)
        return (hs**2).sum() - (hs[4:, 1] ** 2).sum() + (late[:, 1] ** 2).sum()

    got, expected = (jax.value_and_grad(f)(params) for f in (loss, by_hand))
    assert_same(got, expected, 1e-12)
    assert np.all(got[1].state.c != 0)


def test_a_given_state_replaces_the_learned_one():
    cell = jl.learned_initial_state(jl.lstm())
    params = drawn(cell)._replace(state=jl.LSTMState(jnp.ones(4), jnp.ones(4)))
    zeros = jl.lstm().initial_state(params.params, (4,))
    expected = jl.unroll(jl.lstm(), params.params, XS)
    assert same_bits(jl.unroll(cell, params, XS, zeros), expected)


@over("options", [{}, {"lengths": np.array([6, 4, 1, 0])}, {"reverse": True}])
def test_gradients_of_taps_are_those_of_the_states(options, x64):
    """The reference is the gradient of all later steps by the state at t."""
    cell, xs = jl.taps(jl.lstm()), XS.astype(jnp.float64)
    params = cell.init(KEY, 3, 4, dtype=jnp.float64)
    zeros = jl.LSTMState(*jnp.zeros((2, 6, 4, 4)))

    def loss(taps):
        state, hs = jl.unroll(cell, params._replace(taps=taps), xs, **options)
        return (hs**2).sum() + (state.c**3).sum()

    @jax.jit
    @jax.grad
    def after(state, late):
        last, hs = jl.unroll(
            jl.lstm(), params.params, xs, state, mask=late, reverse="reverse" in options
        )
        return (state.h**2).sum() + (hs**2).sum() + (last.c**3).sum()

    flow = jax.grad(loss)(zeros)
    _, states = jl.unroll(jl.lstm(), params.params, xs, emit=jl.emit.states, **options)
    active = np.arange(6)[:, None] < options.get("lengths", np.full(4, 6))
    for t in range(6):
        later = np.arange(6) < t if "reverse" in options else np.arange(6) > t
        expected = after(at(states, t), later[:, None] & active)
        silent = ~active[t]
        expected = jax.tree.map(lambda leaf, off=silent: leaf.at[off].set(0), expected)
        assert_same(at(flow, t), expected, 1e-12)


def test_clipping_applies_before_h_and_the_carried_state():
    cell = jl.clip_cell(jl.lstm(), 0.05)
    _, (state, gates) = everything(cell, drawn(cell), XS)
    before = jnp.concatenate([jnp.zeros((1, 4, 4)), state.c[:-1]])
    c = jnp.clip(gates.f * before + gates.i * gates.g, -0.05, 0.05)
    assert (abs(c) == jnp.float32(0.05)).any()
    assert_same((state.c, state.h), (c, gates.o * jnp.tanh(c)), 1e-6)


# -- refusals ----------------------------------------------------------------------


@over("rate", [-0.1, 1.0, 1.5, float("nan"), "0.5", None])
@over(
    "wrap",
    [
        lambda r: jl.zoneout(jl.lstm(), h_rate=r),
        lambda r: jl.zoneout(jl.lstm(), c_rate=r),
        lambda r: jl.variational_dropout(jl.lstm(), x_rate=r),
        lambda r: jl.variational_dropout(jl.lstm(), h_rate=r),
        lambda r: jl.recurrent_dropout(jl.lstm(), r),
        lambda r: jl.weight_drop(jl.lstm(), r),
    ],
)
def test_rates_outside_0_to_1_are_refused(wrap, rate):
    with pytest.raises(
        ValueError, match=r"rate: got .*, expected a number with 0 <= \w+ < 1"
    ):
        wrap(rate)


@over("limit", [0, -1.0, float("inf"), float("nan"), "1"])
def test_limits_that_are_not_positive_and_finite_are_refused(limit):
    with pytest.raises(ValueError, match=r"clip_cell: limit: got .* positive, finite"):
        jl.clip_cell(jl.lstm(), limit)


@over("name", WRAPPERS)
def test_a_factory_in_place_of_a_cell_is_refused(name):
    with pytest.raises(ValueError, match=r": cell: got <function lstm.*jl.lstm\(\)"):
        WRAPPERS[name](jl.lstm)


@over("name", ["variational", "recurrent", "clip"])
def test_a_step_without_edit_is_refused(name):
    """At any depth; wrappers that do not edit the step accept it."""
    for cell in (plain_cell(), jl.taps(jl.zoneout(plain_cell(), h_rate=0.5))):
        with pytest.raises(ValueError, match="takes no edit"):
            WRAPPERS[name](cell)
    jl.variational_dropout(plain_cell(), x_rate=0.5)


@over(
    ("cell", "message"),
    [
        (
            jl.zoneout(jl.gru(), c_rate=0.5),
            r"zoneout: c_rate: got .* HiddenState\(h\)",
        ),
        (jl.recurrent_dropout(jl.simple_rnn(), 0.5), "candidate"),
        (jl.clip_cell(jl.gru(), 1.0), "cell"),
    ],
)
@over("key", [None, KEY])
def test_a_cell_without_the_target_is_refused(cell, message, key):
    with pytest.raises(ValueError, match=message):
        jl.unroll(cell, drawn(cell), XS, key=key)


def test_weight_drop_without_w_h_is_refused():
    cell = jl.weight_drop(ECHO, 0.5)
    with pytest.raises(ValueError, match="without a leaf named w_h"):
        drawn(cell)
    with pytest.raises(ValueError, match="without a leaf named w_h"):
        jl.unroll(cell, drawn(ECHO, 3), XS)


@over(
    ("wrap", "record"),
    [(jl.learned_initial_state, "Learned"), (jl.taps, "Tapped")],
)
def test_params_of_the_inner_cell_are_refused(wrap, record):
    message = rf"unroll: params: got LSTMParams, expected {record}\(params, "
    with pytest.raises(ValueError, match=message):
        jl.unroll(wrap(jl.lstm()), drawn(jl.lstm()), XS)


def test_states_of_a_wrong_shape_are_refused():
    params, state = drawn(jl.lstm()), jl.LSTMState(jnp.ones(4), jnp.ones((4, 4)))
    message = (
        r"params.state: got LSTMState\(h \[4\], c \[4, 4\]\), expected .* c \[4\]\)"
    )
    with pytest.raises(ValueError, match=message):
        jl.unroll(
            jl.learned_initial_state(jl.lstm()),
            jl.cells.wrappers.Learned(params, state),
            XS,
        )
    message = r"taps: got LSTMState\(h \[4\], .*, expected LSTMState\(h \[6, 4, 4\], c"
    with pytest.raises(ValueError, match=message):
        jl.unroll(jl.taps(jl.lstm()), jl.cells.wrappers.Tapped(params, state), XS)


@over("name", WRAPPERS)
def test_equal_arguments_return_the_same_object(name):
    assert WRAPPERS[name](jl.lstm()) is WRAPPERS[name](jl.lstm())
    assert jl.zoneout(jl.lstm(), h_rate=0.5) is jl.zoneout(
        jl.lstm(), c_rate=0, h_rate=np.float32(0.5)
    )


# -- transformations and meshes ----------------------------------------------------


def full_cell():
    cell = jl.lstm()
    for wrap in WRAPPERS.values():
        cell = wrap(cell)
    return cell


def test_hessian_vector_products(x64):
    cell, xs = full_cell(), XS.astype(jnp.float64)
    params = cell.init(KEY, 3, 4, dtype=jnp.float64)
    along = jax.tree.map(jnp.ones_like, params)

    def loss(params):
        return (jl.unroll(cell, params, xs, key=KEY)[1] ** 2).sum()

    _, hvp = jax.jvp(jax.grad(loss), (params,), (along,))
    shift = jax.tree.map(lambda p, v: p + 1e-6 * v, params, along)
    back = jax.tree.map(lambda p, v: p - 1e-6 * v, params, along)
    up, down = jax.grad(loss)(shift), jax.grad(loss)(back)
    assert_same(hvp, jax.tree.map(lambda a, b: (a - b) / 2e-6, up, down), 1e-6)


@over("kind", [AxisType.Auto, AxisType.Explicit])
def test_on_a_mesh(kind):
    """Values and gradients of all wrappers composed are those on one device."""
    cell = full_cell()
    params, xs = drawn(cell), jnp.concatenate([XS, XS], axis=1)

    def loss(params, xs):
        return (jl.unroll(cell, params, xs, key=KEY)[1] ** 2).sum()

    expected = jax.value_and_grad(loss)(params, xs)
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind, kind))
    with jax.set_mesh(mesh):
        xs = jax.device_put(xs, NamedSharding(mesh, P(None, "data")))
        params = jax.device_put(params, NamedSharding(mesh, P()))
        got = jax.jit(jax.value_and_grad(loss))(params, xs)
    assert_same(jax.device_get(got), expected, 1e-5)


def test_noise_under_shard_map_depends_on_the_key():
    cell, mesh = full_cell(), jax.make_mesh((2,), ("data",), (AxisType.Auto,))
    params = drawn(cell)
    rows = P(None, "data")

    def run(params, xs, fold):
        own = jax.random.fold_in(KEY, jax.lax.axis_index("data"))
        return jl.unroll(cell, params, xs, key=own if fold else KEY)[1]

    for fold in (False, True):
        mapped = jax.shard_map(
            lambda params, xs, fold=fold: run(params, xs, fold),
            mesh=mesh,
            in_specs=(P(), rows),
            out_specs=rows,
        )
        halves = [jax.random.fold_in(KEY, i) if fold else KEY for i in range(2)]
        expected = [
            jl.unroll(cell, params, xs, key=key)[1]
            for xs, key in zip(jnp.split(XS, 2, axis=1), halves, strict=True)
        ]
        assert_same(jax.jit(mapped)(params, XS), jnp.concatenate(expected, 1), 1e-6)
