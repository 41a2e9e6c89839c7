"""All cells except the plain LSTM: equations against NumPy, shapes, errors.

`test_registry` tests properties of whole sequences that all cells share. Here single
steps are tested, and the features of each cell.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlstm as jl
from cases import assert_same, finite
from jaxlstm.cells.classic import ClassicLSTMParams
from jaxlstm.cells.convolutional import ConvLSTMParams
from jaxlstm.cells.coupled import CoupledLSTMParams
from jaxlstm.cells.gru import GRUGates, GRUParams
from jaxlstm.cells.normalized import LayerNormLSTMParams
from jaxlstm.cells.peephole import PeepholeLSTMParams
from jaxlstm.cells.projected import ProjectedLSTMParams
from jaxlstm.cells.simple import RNNGates, RNNParams
from oracle import sigmoid

pytestmark = pytest.mark.thorough

KEY = jax.random.key(3)
FACTORIES = {
    "lstm": jl.lstm,
    "classic": jl.classic_lstm,
    "peephole": jl.peephole_lstm,
    "coupled": jl.coupled_lstm,
    "coupled, peepholes": partial(jl.coupled_lstm, peepholes=True),
    "projected": partial(jl.projected_lstm, 2),
    "layer norm": jl.layer_norm_lstm,
    "conv 1-D": partial(jl.conv_lstm, 3),
    "conv 2-D": partial(jl.conv_lstm, (3, 2)),
    "conv 3-D": partial(jl.conv_lstm, (1, 2, 3)),
    "rnn": jl.simple_rnn,
    "gru": jl.gru,
    "gru, paper": partial(jl.gru, reset_after=False),
}
EVERY = pytest.mark.parametrize("name", FACTORIES)
FEATURES, HIDDEN = 3, 4


def drawn(cell, seed=0):
    """Return random params, x and a state of two rows, in float64."""
    rng = np.random.default_rng(seed)
    space = (5, 4, 3)[: cell.spatial_axes]
    params = cell.init(KEY, FEATURES, HIDDEN, dtype=jnp.float64)
    state = cell.initial_state(params, (2, *space), dtype=jnp.float64)
    params, state = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), (params, state)
    )
    return params, jnp.asarray(rng.normal(size=(2, *space, FEATURES))), state


def one_step(cell):
    """Return params, x and the state before as NumPy arrays, and (after, gates)."""
    params, x, state = drawn(cell)
    after = cell.step(params, state, cell.project(params, x))
    return (*jax.tree.map(np.asarray, (params, x, state)), after)


def gates_of(params, x, h):
    """Return W_x x + W_h h + b of each gate."""
    z = np.einsum("bd,dkh->kbh", x, params.w_x) + np.einsum(
        "bd,dkh->kbh", h, params.w_h
    )
    return z + params.b[:, None]


# -- the equations ---------------------------------------------------------------


def test_classic(x64):
    p, x, (h, c), got = one_step(jl.classic_lstm())
    z_i, z_g, z_o = gates_of(p, x, h)
    i, g, o = sigmoid(z_i), np.tanh(z_g), sigmoid(z_o)
    c = c + i * g
    assert_same(got, ((o * np.tanh(c), c), (i, np.ones_like(i), g, o)))


def test_peephole(x64):
    p, x, (h, c), got = one_step(jl.peephole_lstm())
    z_i, z_f, z_g, z_o = gates_of(p, x, h)
    i, f = sigmoid(z_i + p.p_i * c), sigmoid(z_f + p.p_f * c)
    g = np.tanh(z_g)
    c = f * c + i * g
    o = sigmoid(z_o + p.p_o * c)
    assert_same(got, ((o * np.tanh(c), c), (i, f, g, o)))


@pytest.mark.parametrize("peepholes", [False, True])
def test_coupled(peepholes, x64):
    p, x, (h, c), got = one_step(jl.coupled_lstm(peepholes=peepholes))
    p_f, p_o = (p.p_f, p.p_o) if peepholes else (0, 0)
    z_f, z_g, z_o = gates_of(p, x, h)
    f, g = sigmoid(z_f + p_f * c), np.tanh(z_g)
    c = f * c + (1 - f) * g
    o = sigmoid(z_o + p_o * c)
    assert_same(got, ((o * np.tanh(c), c), (1 - f, f, g, o)))


def test_projected(x64):
    p, x, (h, c), got = one_step(jl.projected_lstm(2))
    z_i, z_f, z_g, z_o = gates_of(p, x, h)
    i, f, g, o = sigmoid(z_i), sigmoid(z_f), np.tanh(z_g), sigmoid(z_o)
    c = f * c + i * g
    assert_same(got, (((o * np.tanh(c)) @ p.w_p, c), (i, f, g, o)))


def test_layer_norm(x64):
    def norm(a, s):
        """Return the values normalised over all axes but the rows."""
        rows = a.reshape(len(a), -1)
        mean, var = rows.mean(1, keepdims=True), rows.var(1, keepdims=True)
        return s * ((rows - mean) / np.sqrt(var + 1e-5)).reshape(a.shape)

    p, x, (h, c), got = one_step(jl.layer_norm_lstm())
    read_x, read_h = np.tensordot(x, p.w_x, 1), np.tensordot(h, p.w_h, 1)
    z = norm(read_x, p.s_x) + norm(read_h, p.s_h) + p.b
    i, f, g, o = sigmoid(z[:, 0]), sigmoid(z[:, 1]), np.tanh(z[:, 2]), sigmoid(z[:, 3])
    c = f * c + i * g
    assert_same(got, ((o * np.tanh(norm(c, p.s_c) + p.b_c), c), (i, f, g, o)))


@pytest.mark.parametrize("kernel", [(3,), (2,), (3, 2), (1, 4, 3)])
def test_convolutional(kernel, x64):
    """The reference loops over places, zero-padded, with one more zero at the end."""

    def slide(a, w):
        around = [((k - 1) // 2, k // 2) for k in kernel]
        padded = np.pad(a, [(0, 0), *around, (0, 0)])
        z = np.zeros((*a.shape[:-1], *w.shape[-2:]))
        for at in np.ndindex(a.shape[1:-1]):
            for offset in np.ndindex(kernel):
                there = (slice(None), *np.add(at, offset))
                z[(slice(None), *at)] += np.tensordot(padded[there], w[offset], 1)
        return z

    p, x, (h, c), got = one_step(jl.conv_lstm(kernel))
    z = np.moveaxis(slide(x, p.w_x) + slide(h, p.w_h) + p.b, -2, 0)
    i, f, g, o = sigmoid(z[0]), sigmoid(z[1]), np.tanh(z[2]), sigmoid(z[3])
    c = f * c + i * g
    assert_same(got, ((o * np.tanh(c), c), (i, f, g, o)))


def test_simple_rnn(x64):
    p, x, (h,), got = one_step(jl.simple_rnn())
    h = np.tanh(x @ p.w_x + h @ p.w_h + p.b)
    assert_same(got, ((h,), (h,)))


@pytest.mark.parametrize("after", [True, False])
def test_gru(after, x64):
    p, x, (h,), got = one_step(jl.gru(reset_after=after))
    x_r, x_z, x_n = np.einsum("bd,dkh->kbh", x, p.w_x) + p.b[:, None]
    u_r, u_z, u_n = np.einsum("bd,dkh->kbh", h, p.w_h)
    r, z = sigmoid(x_r + u_r), sigmoid(x_z + u_z)
    read = r * (u_n + p.b_h) if after else (r * h) @ p.w_h[:, 2]
    n = np.tanh(x_n + read)
    assert_same(got, ((z * h + (1 - z) * n,), (r, z, n)))


def test_values_with_zero_weights():
    """Every gate is 1/2 and every candidate tanh(b)."""
    b = float(np.arctanh(0.5))

    def ran(cell, bias):
        params = cell.init(KEY, 1, 1)
        zeros = jax.tree.map(jnp.zeros_like, params)._replace(b=jnp.asarray(bias))
        return jl.unroll(cell, zeros, jnp.ones((2, 1)))[0]

    assert ran(jl.classic_lstm(), [[0.0], [b], [0.0]]).c == pytest.approx(0.5)
    assert ran(jl.peephole_lstm(), [[0.0], [0.0], [b], [0.0]]).c == pytest.approx(0.375)
    assert ran(jl.coupled_lstm(), [[0.0], [b], [0.0]]).c == pytest.approx(0.375)
    assert ran(jl.simple_rnn(), [b]).h == pytest.approx(0.5)
    assert ran(jl.gru(), [[0.0], [0.0], [b]]).h == pytest.approx(0.375)


# -- special cases that are the LSTM --------------------------------------


def test_the_identity_projection_is_the_lstm(x64):
    params, x, state = drawn(jl.lstm())
    projected = ProjectedLSTMParams(*params, w_p=jnp.eye(HIDDEN))
    xs = jnp.stack([x, -x])
    got = jl.unroll(jl.projected_lstm(HIDDEN), projected, xs, state)
    assert_same(got, jl.unroll(jl.lstm(), params, xs, state))


def test_zero_peepholes_are_the_lstm(x64):
    params, x, state = drawn(jl.lstm())
    blind = PeepholeLSTMParams(*params, *jnp.zeros((3, HIDDEN)))
    xs = jnp.stack([x, -x])
    got = jl.unroll(jl.peephole_lstm(), blind, xs, state)
    assert_same(got, jl.unroll(jl.lstm(), params, xs, state))


def test_a_kernel_of_size_one_is_the_lstm_at_every_place(x64):
    params, _, _ = drawn(jl.lstm())
    xs = jax.random.normal(KEY, (5, 2, 4, 6, FEATURES), jnp.float64)
    conv = ConvLSTMParams(params.w_x[None, None], params.w_h[None, None], params.b)
    got = jl.unroll(jl.conv_lstm((1, 1)), conv, xs)
    assert_same(got, jl.unroll(jl.lstm(), params, xs))


def test_any_batch_axes_precede_the_spatial_axes(x64):
    cell = jl.conv_lstm((3, 3))
    params, _, _ = drawn(cell)
    xs = jax.random.normal(KEY, (5, 2, 3, 4, 6, FEATURES), jnp.float64)
    together = cell.project(params, xs)
    assert together.shape == (5, 2, 3, 4, 6, 4, HIDDEN)
    assert_same(together[3, 1, 2], cell.project(params, xs[3, 1, 2]))
    _, hs = jl.unroll(cell, params, xs)
    _, alone = jl.unroll(cell, params, xs[:, 1, 2])
    assert_same(hs[:, 1, 2], alone)


# -- records, initialisation, dtypes ----------------------------------------------


def test_records():
    three, four = ("w_x", "w_h", "b"), ("w_x", "w_h", "b")
    assert jl.cells.base.HiddenState._fields == ("h",)
    assert ClassicLSTMParams._fields == three
    assert PeepholeLSTMParams._fields == (*four, "p_i", "p_f", "p_o")
    assert CoupledLSTMParams._fields == (*three, "p_f", "p_o")
    assert ProjectedLSTMParams._fields == (*four, "w_p")
    assert LayerNormLSTMParams._fields == (*four, "s_x", "s_h", "s_c", "b_c")
    assert ConvLSTMParams._fields == four
    assert RNNParams._fields == three
    assert GRUParams._fields == (*three, "b_h")
    assert (RNNGates._fields, GRUGates._fields) == (("g",), ("r", "z", "n"))


@EVERY
def test_equal_options_return_the_same_object(name):
    factory = FACTORIES[name]
    assert factory() is factory()
    assert factory() is not factory(init="torch")


def test_equal_kernel_shapes_return_the_same_object():
    assert jl.conv_lstm(3) is jl.conv_lstm((3,)) is jl.conv_lstm([np.int64(3)])
    assert jl.projected_lstm(np.int64(2)) is jl.projected_lstm(2)


@EVERY
@pytest.mark.parametrize("init", ["default", "torch", "keras", "chrono"])
def test_every_preset_draws(name, init):
    cell = FACTORIES[name](init=init)
    params = cell.init(KEY, FEATURES, HIDDEN)
    assert finite(params)
    leaves = jax.tree.leaves(cell.init(KEY, FEATURES, HIDDEN, dtype=jnp.bfloat16))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("bfloat16")}


def test_initial_biases_of_each_gate():
    hidden = np.zeros(HIDDEN)
    peephole = jl.peephole_lstm(forget_bias=2.0).init(KEY, FEATURES, HIDDEN)
    coupled = jl.coupled_lstm(forget_bias=2.0).init(KEY, FEATURES, HIDDEN)
    assert_same(peephole.b, np.stack([hidden, hidden + 2, hidden, hidden]))
    assert_same(coupled.b, np.stack([hidden + 2, hidden, hidden]))
    assert not any(map(np.any, peephole[3:]))
    for cell in jl.classic_lstm(), jl.simple_rnn(), jl.gru(), jl.gru(init="keras"):
        assert not np.any(cell.init(KEY, FEATURES, HIDDEN).b)
    r, z, n = jl.gru(init="chrono").init(KEY, FEATURES, HIDDEN).b
    assert not np.any([r, n])
    assert (np.exp(z) >= 1).all()


def test_initial_weights_scale_with_the_fan_in():
    """LeCun's variance is one over kernel x channels, torch's limit is 1/√H."""
    w_x = jl.conv_lstm((5, 5)).init(KEY, 20, 16).w_x
    np.testing.assert_allclose(w_x.std(), 500**-0.5, rtol=0.03)
    w_p = jl.projected_lstm(4, init="torch").init(KEY, FEATURES, 64).w_p
    assert 0.9 / 8 < abs(w_p).max() < 1 / 8


def test_torch_biases_are_sums_where_torch_adds_two():
    """The two of a GRU's candidate stay separate, U(±1/√H) with variance 1/(3 H)."""
    units = 400
    params = jl.gru(init="torch").init(KEY, FEATURES, units)
    (r, z, n), limit = params.b, units**-0.5
    for alone in n, params.b_h:
        assert abs(alone).max() <= limit
        np.testing.assert_allclose(alone.var(), limit**2 / 3, rtol=0.15)
    for sum_of_two in r, z:
        np.testing.assert_allclose(sum_of_two.var(), 2 * limit**2 / 3, rtol=0.15)
    assert abs(np.corrcoef(n, params.b_h)[0, 1]) < 0.2


def test_rows_of_a_projection_are_orthonormal():
    w_p = jl.projected_lstm(4).init(KEY, FEATURES, 16).w_p
    np.testing.assert_allclose(w_p.T @ w_p, np.eye(4), atol=1e-5)


@EVERY
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_c_is_carried_in_float32_and_h_as_x(name, dtype):
    cell = FACTORIES[name]()
    space = (5, 4, 3)[: cell.spatial_axes]
    params = cell.init(KEY, FEATURES, HIDDEN)
    xs = jax.random.normal(KEY, (3, 2, *space, FEATURES), dtype)

    def loss(params, xs):
        state, hs = jl.unroll(cell, params, xs)
        return hs.astype(jnp.float32).sum(), (state, hs)

    gradients, (state, hs) = jax.grad(loss, (0, 1), has_aux=True)(params, xs)
    assert hs.dtype == state.h.dtype == dtype
    assert getattr(state, "c", jnp.zeros(())).dtype == "float32"
    assert finite(gradients)
    gates = jl.unroll(cell, params, xs, emit=jl.emit.trace)[1].gates
    assert {leaf.dtype.name for leaf in gates} == {"float32"}


# -- errors ---------------------------------------------------------------


@EVERY
def test_params_with_inconsistent_shapes_are_refused(name):
    """Each leaf in turn is one unit too large, and is named in the message."""
    cell = FACTORIES[name]()
    params = cell.init(KEY, FEATURES, HIDDEN)
    x = jnp.ones((2, *(5, 4, 3)[: cell.spatial_axes], FEATURES))
    for field, leaf in params._asdict().items():
        if leaf is None:
            continue
        wrong = params._replace(**{field: jnp.zeros((*leaf.shape[:-1], 9))})
        with pytest.raises(ValueError, match=rf"params: got shapes .*{field} \[.*9"):
            cell.project(wrong, x)
        with pytest.raises(ValueError, match="params: got shapes"):
            cell.initial_state(wrong, (2,))


@EVERY
def test_params_of_another_kind_are_refused(name):
    cell = FACTORIES[name]()
    params = cell.init(KEY, FEATURES, HIDDEN)
    x = jnp.ones((2, *(5, 4, 3)[: cell.spatial_axes], FEATURES))
    for other in (params._asdict(), tuple(params), None):
        with pytest.raises(ValueError, match=rf"params is a .*{type(params).__name__}"):
            cell.project(other, x)


@EVERY
def test_wrong_features_and_sizes_are_refused(name):
    cell = FACTORIES[name]()
    params = cell.init(KEY, FEATURES, HIDDEN)
    space = (5, 4, 3)[: cell.spatial_axes]
    with pytest.raises(ValueError, match=r"got 7 features, expected 3"):
        jl.unroll(cell, params, jnp.ones((6, 2, *space, 7)))
    with pytest.raises(ValueError, match="int32"):
        cell.project(params, jnp.ones((2, *space, FEATURES), jnp.int32))
    for sizes in (0, 4), (4, -1), (2.5, 4), (4, True):
        with pytest.raises(ValueError, match="_size is"):
            cell.init(KEY, *sizes)


@pytest.mark.parametrize(
    ("option", "call"),
    [
        ("gate_activation", partial(jl.classic_lstm, gate_activation="relu ")),
        ("candidate_activation", partial(jl.gru, candidate_activation="Tanh")),
        ("activation", partial(jl.simple_rnn, activation="")),
        ("init", partial(jl.gru, init="orthogonal")),
        ("init", partial(jl.simple_rnn, init={})),
        ("forget_bias", partial(jl.coupled_lstm, init="torch", forget_bias=2.0)),
        ("peepholes", partial(jl.coupled_lstm, peepholes=1)),
        ("reset_after", partial(jl.gru, reset_after="yes")),
        ("projection_size", partial(jl.projected_lstm, 0)),
        ("projection_size", partial(jl.projected_lstm, 2.0)),
        ("kernel_shape", partial(jl.conv_lstm, ())),
        ("kernel_shape", partial(jl.conv_lstm, (3, 3, 3, 3))),
        ("kernel_shape", partial(jl.conv_lstm, (3, 0))),
        ("kernel_shape", partial(jl.conv_lstm, "33")),
    ],
)
def test_invalid_options_are_refused(option, call):
    with pytest.raises(ValueError, match=option):
        call()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (jl.gru(), jl.gru(reset_after=False)),
        (jl.coupled_lstm(), jl.coupled_lstm(peepholes=True)),
    ],
)
def test_params_of_the_other_gru_form_are_refused(one, other):
    for cell, wrong in ((one, other), (other, one)):
        params = wrong.init(KEY, FEATURES, HIDDEN)
        with pytest.raises(ValueError, match="None"):
            jl.unroll(cell, params, jnp.ones((2, FEATURES)))


def test_a_kernel_of_a_wrong_shape_is_refused():
    params = jl.conv_lstm((3, 3)).init(KEY, FEATURES, HIDDEN)
    with pytest.raises(ValueError, match=r"kernel shape \[3, 3\]"):
        jl.unroll(jl.conv_lstm((3, 5)), params, jnp.ones((2, 4, 4, FEATURES)))
    with pytest.raises(ValueError, match="spatial"):
        jl.unroll(jl.conv_lstm((3, 3)), params, jnp.ones((2, 4, FEATURES)))


# -- edits ------------------------------------------------------------------------

LACKS = {"rnn": ("candidate", "cell"), "gru": ("cell",), "gru, paper": ("cell",)}


@EVERY
@pytest.mark.parametrize("part", ["hidden", "candidate", "cell"])
def test_edits_are_applied_or_refused(name, part, x64):
    cell = FACTORIES[name]()
    params, x, state = drawn(cell)
    z = cell.project(params, x)
    edit = jl.cells.base.Edit(**{part: jnp.zeros_like})
    if part in LACKS.get(name, ()):
        with pytest.raises(ValueError, match=rf"{name.split(',')[0]} has no"):
            cell.step(params, state, z, edit=edit)
        return
    after, gates = cell.step(params, state, z, edit=edit)
    if part == "cell":
        assert not np.any(after.c)
        if name != "layer norm":  # its normalisation of c adds a bias
            assert not np.any(after.h)
    if part == "candidate":
        assert not np.any(gates.n if name.startswith("gru") else gates.g)
    if part == "hidden":
        forgot = state._replace(h=jnp.zeros_like(state.h))
        expected, same = cell.step(params, forgot, z)
        assert_same(gates, same)
        if not name.startswith("gru"):  # because a GRU also keeps h directly
            assert_same(after, expected)


@pytest.mark.parametrize("name", ["peephole", "coupled, peepholes"])
def test_the_output_gate_reads_the_edited_cell_state(name, x64):
    cell = FACTORIES[name]()
    params, x, state = drawn(cell)
    z = cell.project(params, x)
    _, gates = cell.step(params, state, z, edit=jl.cells.base.Edit(cell=jnp.zeros_like))
    blind = params._replace(p_o=jnp.zeros_like(params.p_o))
    assert_same(gates.o, cell.step(blind, state, z)[1].o)
