"""The cuDNN engine equals the oracle, with a stand-in for the kernel itself.

`lstm_ref` of `jax.experimental.rnn` is the stand-in. Like cuDNN, it returns NaN for a
row without steps, and garbage in the gradient of padding. The arguments of the real
kernel are checked in the jaxpr, which can be traced without a GPU. Products are taken
in float32, also on a GPU.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import rnn

import jaxlstm as jl
from cases import Answer, Kind, Shape, assert_same, draw, expected, finite
from jaxlstm import unrolling
from jaxlstm.engines import cudnn
from oracle import Gradients, Weights

CELL = jl.lstm()
thorough = pytest.mark.thorough
T, B, D, H = 7, 5, 3, 4
LENGTHS = np.array([0, T, 3, 1, T - 1], np.int32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7, 8, 9, 10))
def kernel(x, h, c, weights, lengths, *sizes):
    results, _ = _forward(x, h, c, weights, lengths, *sizes)
    return results


def _forward(x, h, c, weights, lengths, *sizes):
    assert {a.dtype.name for a in (x, h, c, weights)} == {"float32"}
    assert lengths.dtype == jnp.int32
    *sizes, precision = sizes
    assert precision in (jax.lax.Precision.HIGH, jax.lax.Precision.HIGHEST)

    size, hidden, depth, _, both_ways = sizes

    def run(x, h, c, weights):
        parts = rnn.unpack_lstm_weights(weights, size, hidden, depth, both_ways)
        results = rnn.lstm_ref(x, h, c, *parts, lengths, *sizes)
        return tuple(jnp.where((lengths > 0).all(), a, jnp.nan) for a in results)

    results, pull = jax.vjp(run, x, h, c, weights)
    return results, (pull, lengths)


def _backward(*arguments):
    *_, (pull, lengths), cotangents = arguments
    d_x, *others = pull(cotangents)
    padding = jnp.arange(d_x.shape[1])[None] >= lengths[:, None]
    return jnp.where(padding[..., None], jnp.nan, d_x), *others, None


kernel.defvjp(_forward, _backward)
STAND_IN = cudnn.Kernel(kernel, lambda: None)
REAL = cudnn.Kernel(rnn.lstm, lambda: None)


@pytest.fixture(autouse=True)
def use_stand_in(monkeypatch):
    """Run `engine="cudnn"` with the kernel above."""
    run = functools.partial(cudnn.run, kernel=STAND_IN)
    monkeypatch.setitem(unrolling.ENGINES, "cudnn", run)
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture
def traceable(monkeypatch):
    """Run `engine="cudnn"` with the real kernel, which is traced only."""
    sizes = "compute_rnn_workspace_reserve_space_sizes"
    monkeypatch.setattr(vars(rnn)["gpu_rnn"], sizes, lambda *_: (4, 8), raising=False)
    run = functools.partial(cudnn.run, kernel=REAL)
    monkeypatch.setitem(unrolling.ENGINES, "cudnn", run)


def problem(rows: int = B):
    rng = np.random.default_rng(0)
    shapes = ((D, 4, H), (H, 4, H), (4, H), (T, rows, D), (rows, H), (rows, H))
    *params, xs, h, c = (
        jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes
    )
    return jl.LSTMParams(*params), xs, jl.LSTMState(h, c)


# -- the flat weights ------------------------------------------------------------------


def deep(*sizes: int, bidirectional: bool, dtype: type = np.float32, cell=CELL):
    """Return a stack and random parameters for it."""
    layer = jl.stack(cell, sizes, bidirectional=bidirectional)
    shapes = jax.eval_shape(lambda key: layer.init(key, D)[0], jax.random.key(0))
    rng = np.random.default_rng(3)
    return layer, jax.tree.map(
        lambda leaf: (0.5 * rng.normal(size=leaf.shape)).astype(dtype), shapes
    )


def flat(params) -> list[jl.LSTMParams]:
    return jax.tree.leaves(params, is_leaf=lambda node: isinstance(node, jl.LSTMParams))


@pytest.mark.parametrize(
    ("depth", "bidirectional"),
    [
        (2, True),
        pytest.param(1, False, marks=thorough),
        pytest.param(1, True, marks=thorough),
        pytest.param(3, False, marks=thorough),
    ],
)
def test_packed_weights_equal_those_of_the_jax_reference(depth, bidirectional, x64):
    """In float64, with lengths: values and states to 1e-12."""
    sizes = (H,) * depth
    layer, params = deep(*sizes, bidirectional=bidirectional, dtype=np.float64)
    weights = cudnn.pack(flat(params))
    sizes = (D, H, depth, bidirectional)
    assert len(weights) == rnn.get_num_params_in_lstm(*sizes)
    rng = np.random.default_rng(0)
    xs = rng.normal(size=(T, B, D))
    h, c = rng.normal(size=(2, len(flat(params)), B, H))
    tree = jax.tree.structure(
        params, is_leaf=lambda node: isinstance(node, jl.LSTMParams)
    )
    lengths = np.maximum(LENGTHS, 1)
    parts = rnn.unpack_lstm_weights(weights, *sizes)
    ys, h_n, c_n = rnn.lstm_ref(
        xs.swapaxes(0, 1), h, c, *parts, lengths, D, H, depth, 0.0, bidirectional
    )
    states = tree.unflatten([jl.LSTMState(*pair) for pair in zip(h, c, strict=True)])
    after, reference = layer.apply(params, xs, states, lengths=lengths)
    assert_same(ys.swapaxes(0, 1), reference)
    assert_same(
        [jl.LSTMState(*pair) for pair in zip(h_n, c_n, strict=True)],
        jax.tree.leaves(after, is_leaf=lambda node: isinstance(node, jl.LSTMState)),
    )


def test_gate_order_of_packed_weights():
    _, [params] = deep(H, bidirectional=False)
    parts = rnn.unpack_lstm_weights(cudnn.pack([params]), D, H, 1, False)
    w_ih, w_hh, b_ih, b_hh = (np.asarray(part[0]) for part in parts)
    for k in range(4):
        rows = slice(k * H, (k + 1) * H)
        assert_same(w_ih[rows].T, params.w_x[:, k], 0)
        assert_same(w_hh[rows].T, params.w_h[:, k], 0)
        assert_same(b_ih[rows] + b_hh[rows], params.b[k], 0)


def test_unpack_inverts_pack():
    _, params = deep(H, H, bidirectional=True)
    got = cudnn.unpack(
        cudnn.pack(flat(params)),
        input_size=D,
        hidden_size=H,
        layers=2,
        bidirectional=True,
    )
    assert_same(got, flat(params), 0)
    both = np.arange(16.0, dtype=np.float32)  # the two biases are added
    weights = jnp.concatenate([jnp.zeros(4 * 4 * (D + 4)), both, both])
    [params] = cudnn.unpack(weights, input_size=D, hidden_size=4)
    assert_same(params.b, 2 * both.reshape(4, 4), 0)


# -- values and gradients --------------------------------------------------------------


def answer(case, engine: str = "cudnn") -> Answer:
    """Return values and all gradients in float32."""
    case = jax.tree.map(
        lambda a: a.astype(np.float32) if a.dtype == np.float64 else a,
        case._replace(which=None),
    )._replace(which=case.which)
    weights, xs, h, c, which, d_hs, d_h, d_c = case

    @jax.jit
    def pulled(inputs, steps, cotangents):
        out, pull = jax.vjp(
            lambda *inputs: jl.unroll(
                CELL, *inputs, **steps, reverse=which.reverse, engine=engine
            ),
            *inputs,
        )
        return out, pull(cotangents)

    (state, hs), (d_params, d_xs, d_state) = pulled(
        (jl.LSTMParams(*weights), xs, jl.LSTMState(h, c)),
        {"lengths": which.lengths, "mask": which.mask},
        (jl.LSTMState(d_h, d_c), d_hs),
    )
    gradients = Gradients(Weights(*d_params), d_xs, *d_state)
    return Answer(hs, state.h, state.c, gradients)


@pytest.mark.parametrize(
    ("masking", "reverse"),
    [
        ("lengths", False),
        ("mask", True),
        pytest.param("lengths", True, marks=thorough),
        pytest.param("mask", False, marks=thorough),
        pytest.param("none", False, marks=thorough),
        pytest.param("none", True, marks=thorough),
    ],
)
def test_values_and_gradients_equal_the_oracle(masking, reverse):
    """NaN in padding, rows of length 0 and T, masks with holes, an empty mask."""
    rng = np.random.default_rng(5)
    case = draw(rng, Shape(T, (B,), D, H), Kind("none", False, reverse))
    active = np.ones((T, B), bool)
    if masking == "lengths":
        active = np.arange(T)[:, None] < LENGTHS
        case = case._replace(which=case.which._replace(lengths=LENGTHS))
    elif masking == "mask":
        active = rng.random((T, B)) < 0.7
        active[:, 2] = False
        case = case._replace(which=case.which._replace(mask=active))
    case.xs[~active] = np.nan
    got = answer(case)
    assert finite(got)
    assert_same(got, expected(case), 3e-5)


@pytest.mark.parametrize(
    ("frame", "masking"),
    [
        ((2, 2, 3), "lengths"),
        ((0, B), "none"),
        ((0, B), "lengths"),
        ((T, 0), "none"),
        ((0, 2, 0), "mask"),
        pytest.param((T,), "none", marks=thorough),
        pytest.param((T,), "lengths", marks=thorough),
        pytest.param((T, 2, 3), "none", marks=thorough),
        pytest.param((T, 2, 1, 3), "mask", marks=thorough),
        pytest.param((1, B), "none", marks=thorough),
        pytest.param((1, B), "mask", marks=thorough),
    ],
)
def test_batch_shapes(frame, masking):
    """No, one or several batch axes; one step; no steps; no rows."""
    time, *batch = frame
    shape = Shape(time, tuple(batch), D, H)
    case = draw(np.random.default_rng(6), shape, Kind(masking, False, True))
    assert_same(answer(case), expected(case), 3e-5)


def test_row_without_steps_keeps_the_bits_of_its_state(x64):
    """Also with 64-bit integers."""
    params, xs, state = problem()
    after, hs = jl.unroll(CELL, params, xs, state, lengths=LENGTHS, engine="cudnn")
    assert_same(after.h[0], state.h[0], 0)
    assert_same(after.c[0], state.c[0], 0)
    assert not hs[:, 0].any()


def test_nan_state_of_an_empty_row_has_no_effect():
    """No step reads it, so the gradients of the weights stay finite."""
    params, xs, state = problem()
    state = jax.tree.map(lambda leaf: leaf.at[0].set(jnp.nan), state)

    def loss(params):
        _, hs = jl.unroll(CELL, params, xs, state, lengths=LENGTHS, engine="cudnn")
        return hs.sum()

    assert finite(jax.grad(loss)(params))


def test_traced_lengths_out_of_range_are_nan():
    params, xs, state = problem()
    lengths = jnp.array([T + 1, -1, 3, 0, T], jnp.int32)
    run = functools.partial(jl.unroll, CELL, params, xs, state, engine="cudnn")
    after, hs = jax.jit(lambda lengths: run(lengths=lengths))(lengths)
    assert np.isnan(after.c[:2]).all()
    assert np.isnan(hs[:, :2]).all()
    assert finite((after.h[2:], hs[:, 2:]))


def test_emit_nothing():
    params, xs, state = problem()
    after, nothing = jl.unroll(
        CELL, params, xs, state, emit=jl.emit.nothing, engine="cudnn"
    )
    assert nothing is None
    assert_same(after, jl.unroll(CELL, params, xs, state)[0], 1e-5)


def test_parameters_of_other_dtypes_are_cast_to_float32():
    params, xs, state = problem()
    short = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    got = jl.unroll(CELL, short, xs, state, engine="cudnn")
    assert_same(got, jl.unroll(CELL, short, xs, state), 1e-5)


# -- many layers in one call -----------------------------------------------------------


@pytest.mark.parametrize(
    ("depth", "bidirectional", "lengths"),
    [
        (1, True, LENGTHS),
        pytest.param(2, True, LENGTHS, marks=thorough),
        pytest.param(2, True, None, marks=thorough),
        pytest.param(3, False, LENGTHS, marks=thorough),
        pytest.param(3, False, None, marks=thorough),
    ],
)
def test_stack_equals_jl_stack(depth, bidirectional, lengths):
    """Values, states and gradients, with NaN in padding."""
    layer, params = deep(*(H,) * depth, bidirectional=bidirectional)
    xs = np.random.default_rng(1).normal(size=(T, B, D)).astype(np.float32)
    begin = jax.tree.map(lambda leaf: leaf - 0.3, layer.apply(params, xs)[0])
    if lengths is not None:
        xs[np.arange(T)[:, None] >= lengths] = np.nan
    rng = np.random.default_rng(2)

    def stacked(params, xs, state):
        return cudnn.run_stack(params, xs, state, lengths=lengths, kernel=STAND_IN)

    def ours(params, xs, state):
        return layer.apply(params, xs, state, lengths=lengths)

    cotangents = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32),
        jax.eval_shape(ours, params, xs, begin),
    )

    @functools.partial(jax.jit, static_argnums=0)
    def pulled(run, *inputs):
        out, pull = jax.vjp(run, *inputs)
        return out, pull(cotangents)

    got, reference = (pulled(run, params, xs, begin) for run in (stacked, ours))
    assert jax.tree.structure(got) == jax.tree.structure(reference)
    assert finite(got)
    assert_same(got, reference, 3e-5)


def test_stack_starts_from_zeros_by_default():
    layer, params = deep(H, bidirectional=False)
    xs = problem()[1]
    run = functools.partial(cudnn.run_stack, kernel=STAND_IN)
    assert_same(jax.jit(run)(params, xs), layer.apply(params, xs), 1e-5)


def test_unsupported_stacks_are_refused():
    xs = problem()[1]
    for sizes in ((H, H + 1), (H + 1, H)):
        _, params = deep(*sizes, bidirectional=False)
        with pytest.raises(NotImplementedError, match=r"\[4, 5\].*all of one size"):
            cudnn.run_stack(params, xs, kernel=STAND_IN)
    _, params = deep(H, bidirectional=False, cell=jl.gru())
    with pytest.raises(NotImplementedError, match="expected LSTMParams"):
        cudnn.run_stack(params, xs, kernel=STAND_IN)
    _, params = deep(H, H, bidirectional=True)
    with pytest.raises(ValueError, match=r"\[4, 4, 8, 8\] features.*\[3, 3, 8, 8\]"):
        cudnn.run_stack(params, jnp.ones((T, B, 4)), kernel=STAND_IN)
    one, both = (deep(H, bidirectional=two)[1] for two in (False, True))
    with pytest.raises(NotImplementedError, match="expected LSTMParams"):
        cudnn.run_stack((*one, *both), xs, kernel=STAND_IN)


# -- supported and unsupported calls ---------------------------------------------------


def reason(cell, params, xs, **options) -> str:
    found = jl.explain(cell, params, xs, engine="cudnn", **options)
    return found.reasons["cudnn"]


def test_the_lstm_is_recognized_by_its_step():
    xs = problem()[1]
    for cell in (
        jl.lstm(init="keras"),
        jl.lstm(forget_bias=0.0),
        jl.weight_drop(CELL, 0.5),
        CELL._replace(init=jl.gru().init, step=lambda *inputs: CELL.step(*inputs)),
        jl.lstm(gate_activation=lambda z: jax.nn.sigmoid(z)),
    ):
        assert reason(cell, problem()[0], xs) == "serves"


def slightly_different_step(params, state, z):
    after, gates = CELL.step(params, state, z)
    return after._replace(c=after.c + 1e-30), gates


def project_sum(params, x, per_step=None):
    return CELL.project(params, x if per_step is None else x + per_step)


@pytest.mark.parametrize(
    "cell",
    [
        CELL._replace(
            prepare=lambda params, xs, key=None: (params, xs), project=project_sum
        ),
        jl.gru(),
        jl.peephole_lstm(),
        jl.coupled_lstm(),
        jl.lstm(candidate_activation="softsign"),
        jl.lstm(gate_activation="hard_sigmoid"),
        jl.clip_cell(CELL, 1e6),
        jl.zoneout(CELL, h_rate=0.0, c_rate=0.1),
        jl.variational_dropout(CELL, x_rate=0.1, h_rate=0.0),
        jl.learned_initial_state(CELL),
        CELL._replace(step=slightly_different_step),
        CELL._replace(project=lambda params, x: CELL.project(params, 2 * x)),
    ],
)
def test_other_cells_are_refused(cell):
    params = cell.init(jax.random.key(0), D, H)
    message = reason(cell, params, problem()[1])
    assert message.startswith(
        "cudnn: got a cell whose step or whose initial state is not"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"emit": jl.emit.trace}, "cudnn: emit: got trace, expected jl.emit.hidden"),
        ({"emit": jl.emit.states}, "cudnn: emit: got states"),
        ({"resets": np.zeros((T, B), bool)}, "cudnn: resets: got an array"),
        ({"checkpoint_every": "sqrt"}, "cudnn: checkpoint_every: got 'sqrt'"),
    ],
)
def test_unsupported_options_are_refused(options, message):
    params, xs, _ = problem()
    assert reason(CELL, params, xs, **options).startswith(message)
    with pytest.raises(NotImplementedError, match=message):
        jl.unroll(CELL, params, xs, engine="cudnn", **options)


def test_other_dtypes_are_refused(x64):
    params, xs, _ = problem()
    for dtype in (jnp.bfloat16, jnp.float16, jnp.float64):
        message = reason(CELL, params, xs.astype(dtype))
        expected_message = f"cudnn: xs: got dtype {jnp.dtype(dtype)}, expected float32"
        assert message.startswith(expected_message)


def test_meshes_are_refused():
    params, xs, _ = problem(8)
    rows, devices = jax.P(None, "rows"), jax.devices("cpu")[:8]
    explicit = jax.make_mesh(
        (8,), ("rows",), (jax.sharding.AxisType.Explicit,), devices=devices
    )
    with jax.set_mesh(explicit):
        message = reason(CELL, params, jax.device_put(xs, rows))
    assert message.startswith("cudnn: got arrays on a mesh")

    automatic = jax.make_mesh(
        (8,), ("rows",), (jax.sharding.AxisType.Auto,), devices=devices
    )
    run = jax.shard_map(
        lambda xs: jl.unroll(CELL, params, xs, engine="cudnn")[1],
        mesh=automatic,
        in_specs=rows,
        out_specs=rows,
    )
    with pytest.raises(NotImplementedError, match="got arrays on a mesh"):
        jax.eval_shape(run, xs)


@pytest.mark.parametrize("number", [0, 3])
def test_missing_gpu_is_reported(number, monkeypatch):
    monkeypatch.setitem(unrolling.ENGINES, "cudnn", cudnn.run)
    params, xs, _ = problem()
    device = jax.devices("cpu")[number]
    message = (
        f"cudnn: no GPU: got {device} as JAX's default device, expected a CUDA device; "
        'use engine="adjoint".'
    )
    with jax.default_device(device):
        found = jl.explain(CELL, params, xs, engine=("cudnn", "scan"))
        assert (found.engine, found.reasons["cudnn"]) == ("scan", message)
        for call in (
            lambda: jl.unroll(CELL, params, xs, engine="cudnn"),
            lambda: cudnn.run_stack((params,), xs),
        ):
            with pytest.raises(NotImplementedError) as refusal:
                call()
            assert str(refusal.value) == message
    with jax.default_device("cpu"):
        assert "no GPU" in reason(CELL, params, xs)


def test_any_cuda_device_is_accepted(monkeypatch):
    class Device:
        platform_version = "PJRT C API\nCUDA 13000"
        client = property(lambda self: self)

    for version, is_cuda in ((Device.platform_version, True), ("rocm 60000", False)):
        monkeypatch.setattr(Device, "platform_version", version)
        monkeypatch.setattr(jax, "devices", lambda *_: [Device()])
        assert (cudnn.no_cuda() is None) == is_cuda


# -- arguments of the real kernel ------------------------------------------------------


def primitives(jaxpr) -> dict[str, list]:
    """Return the parameters of the cuDNN primitives in a jaxpr."""
    found: dict[str, list] = {"rnn_fwd": [], "rnn_bwd": []}

    def walk(jaxpr):
        for eqn in jaxpr.eqns:
            if eqn.primitive.name in found:
                found[eqn.primitive.name].append(eqn.params)
            for value in jax.tree.leaves(list(eqn.params.values())):
                inner = getattr(value, "jaxpr", value)
                if hasattr(inner, "eqns"):
                    walk(inner)

    walk(jaxpr.jaxpr)
    return found


@pytest.mark.parametrize(
    "precision", [None, "tensorfloat32", "highest", "float32", "F32_F32_F32"]
)
def test_one_call_per_pass_in_the_configured_precision(precision, traceable):
    """Also for the backward pass, which may be traced under another precision."""
    params, xs, state = problem()

    def pulled(params, xs, state):
        def loss(*inputs):
            after, hs = jl.unroll(CELL, *inputs, lengths=LENGTHS, engine="cudnn")
            return hs.sum() + after.c.sum()

        with jax.default_matmul_precision(precision):
            loss, pull = jax.vjp(loss, params, xs, state)
        return loss, pull(jnp.ones(()))

    found = primitives(jax.make_jaxpr(pulled)(params, xs, state))
    reference = {
        "input_size": D,
        "hidden_size": H,
        "num_layers": 1,
        "dropout": 0.0,
        "bidirectional": False,
        "cudnn_allow_tf32": precision in (None, "tensorfloat32"),
    }
    assert found == {"rnn_fwd": [reference], "rnn_bwd": [reference]}


def test_unsupported_precisions_are_refused(traceable):
    params, xs, _ = problem()
    for name in ("bfloat16", "BF16_BF16_F32"):
        with jax.default_matmul_precision(name):
            assert f"jax_default_matmul_precision: got '{name}'" in reason(
                CELL, params, xs
            )


def test_stack_is_one_call(traceable):
    _, params = deep(H, H, H, bidirectional=True)
    run = functools.partial(cudnn.run_stack, kernel=REAL)
    found = primitives(jax.make_jaxpr(run)(params, problem()[1]))
    [call] = found["rnn_fwd"]
    assert (call["num_layers"], call["bidirectional"]) == (3, True)


def test_vmap_falls_back_to_the_next_engine(traceable):
    params, xs, _ = problem()

    def run(engine):
        return jax.vmap(
            lambda xs: jl.unroll(CELL, params, xs, engine=engine)[1], in_axes=1
        )(xs)

    assert_same(run(("cudnn", "scan")), run("scan"), 0)
    with pytest.raises(NotImplementedError, match="rnn_fwd"):
        run("cudnn")
