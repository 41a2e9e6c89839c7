"""Bad inputs B001 to B069: the error or result of each, by its number.

An invalid input raises an error that names the argument, the value and the expectation,
before an engine is called. Valid inputs of unusual kinds give the result of the plain
input.
"""

import re
import warnings
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxlstm as jl
from cases import assert_same, finite, same_bits
from jaxlstm import masking, unrolling
from jaxlstm.lab import config as configs
from jaxlstm.lab.data import Batch
from jaxlstm.lab.tasks import get as get_task
from jaxlstm.lab.training.diagnosis import diagnose
from jaxlstm.lab.training.state import initial_state, train_step
from problems import CELL, B, D, H, T, problem

TASK = get_task("language_modelling")

CELLS = {
    "lstm": jl.lstm(),
    "classic_lstm": jl.classic_lstm(),
    "peephole_lstm": jl.peephole_lstm(),
    "coupled_lstm": jl.coupled_lstm(peepholes=True),
    "projected_lstm": jl.projected_lstm(2),
    "layer_norm_lstm": jl.layer_norm_lstm(),
    "conv_lstm": jl.conv_lstm((3,)),
    "simple_rnn": jl.simple_rnn(),
    "gru": jl.gru(),
}
LENGTHS = jnp.array([0, 2, T, 5])
MASK = np.arange(T)[:, None] < np.asarray(LENGTHS)


def run(**changes):
    """Run `unroll` on the small problem with some arguments changed."""
    params, xs, state = problem()
    return jl.unroll(
        **({"cell": CELL, "params": params, "xs": xs, "state": state} | changes)
    )


def zeros(rows: int, units: int = H) -> jl.LSTMState:
    return jl.LSTMState(jnp.zeros((rows, units)), jnp.zeros((rows, units)))


def deleted(tree):
    """Return the tree with deleted arrays."""
    copy = jax.tree.map(jnp.array, tree)
    for leaf in jax.tree.leaves(copy):
        leaf.delete()
    return copy


# -- what `unroll` and `explain` refuse ----------------------------------------


def _refusals():
    """Yield (id and case, changes to the arguments, pieces of the message)."""
    params = problem()[0]
    gates3 = params._replace(w_h=params.w_h[:, :3])
    fused = params._replace(b=jnp.zeros(4 * H))
    steps = jnp.ones((T, B), bool)
    masked_lengths = np.ma.array([1, 2, 3, 4], mask=[0, 1, 0, 0])
    masked_steps = np.ma.array(np.ones((T, B), bool), mask=np.eye(T, B))
    masked_state = jl.LSTMState(np.ma.masked_all((B, H), "f4"), np.zeros((B, H), "f4"))
    complexes = jl.LSTMState(*np.ones((2, B, H), np.complex64))
    tensor = type("Tensor", (), {"__array__": _of_no_use})()
    return [
        ("B001 rank 1", {"xs": jnp.ones(T)}, "xs", rf"\[{T}\]", r"\[T, \*b, D\]"),
        ("B001 rank 0", {"xs": jnp.ones(())}, "xs", r"\[\]"),
        ("B003 features", {"xs": jnp.ones((T, B, 7))}, "xs", "7", str(D), "w_x"),
        ("B008 3 rows", {"state": zeros(3)}, r"state\.h", r"\[3, 5\]", r"\[4, 5\]"),
        ("B009 1 row", {"state": zeros(1)}, r"state\.h", r"\[1, 5\]", r"\[4, 5\]"),
        ("B010 a plain tuple", {"state": tuple(zeros(B))}, "tuple", r"LSTMState\(h"),
        ("B010 one array", {"state": jnp.zeros((B, H))}, "state", r"LSTMState\(h, c"),
        ("B010 nothing", {"state": jl.LSTMState(None, None)}, r"state\.h: got None"),
        ("B011 three gates", {"params": gates3}, "w_h", r"\[5, 3, 5\]"),
        ("B011 fused gates", {"params": fused}, r"b \[20\]", r"b \[4, H\]"),
        ("B011 6 units", {"state": zeros(B, H + 1)}, r"state\.h", "6", str(H)),
        ("B016 length 7", {"lengths": jnp.array([1, 2, 3, 7])}, r"lengths\[3\]: got 7"),
        ("B016 length 2**40", {"lengths": np.array([1, 2, 3, 2**40])}, str(2**40)),
        ("B017 -1", {"lengths": jnp.array([-1, 2, 3, 4])}, r"lengths\[0\]: got -1"),
        ("B018 2.0", {"lengths": jnp.full(B, 2.0)}, "lengths", "float32", "integers"),
        ("B018 2.5", {"lengths": [2.5, 1, 1, 1]}, "lengths", "float"),
        ("B019 booleans", {"lengths": jnp.ones(B, bool)}, "lengths", "bool"),
        ("B020 a column", {"lengths": jnp.ones((B, 1), int)}, "lengths", r"\[4, 1\]"),
        ("B020 a row", {"lengths": jnp.ones((1, B), int)}, "lengths", r"\[1, 4\]"),
        ("B021 2 of 4", {"lengths": jnp.array([1, 2])}, "lengths", r"\[2\]", r"\[4\]"),
        ("B021 masked", {"lengths": masked_lengths}, "lengths: got a masked array"),
        ("B025 both", {"mask": steps, "lengths": jnp.ones(B, int)}, "lengths and mask"),
        ("B029 0.5", {"mask": jnp.full((T, B), 0.5)}, "mask", "float32", "boolean"),
        ("B029 integers", {"mask": jnp.ones((T, B), int)}, "mask", "int32", "boolean"),
        ("B029 masked", {"mask": masked_steps}, "mask: got a masked array"),
        ("B030 5 steps", {"mask": steps[1:]}, "mask", r"\[5, 4\]", r"\[6, 4\]"),
        ("B030 3 rows", {"mask": steps[:, 1:]}, "mask", r"\[6, 3\]", r"\[6, 4\]"),
        ("B030 resets", {"resets": steps[1:]}, "resets", r"\[5, 4\]", r"\[6, 4\]"),
        ("B041 int32", {"xs": jnp.ones((T, B, D), jnp.int32)}, "xs", "int32"),
        ("B041 uint8", {"xs": np.ones((T, B, D), np.uint8)}, "xs", "uint8"),
        ("B041 bool", {"xs": jnp.ones((T, B, D), bool)}, "xs", "bool"),
        ("longdouble", {"xs": np.ones((T, B, D), np.longdouble)}, "xs", "float64"),
        (
            "longdouble params",
            {"params": params._replace(b=np.ones((4, H), np.longdouble))},
            r"params\.b",
            "float64",
        ),
        (
            "params and xs swapped",
            {"params": np.zeros((T, B, D)), "xs": params},
            r"params: got an array \[\d+, \d+, \d+\]",
            "cell, params, xs",
        ),
        (
            "object params",
            {"params": params._replace(b=np.full((4, H), None))},
            r"params\.b",
            "dtype object",
        ),
        ("B045 complex", {"xs": jnp.ones((T, B, D), jnp.complex64)}, "xs", "complex64"),
        ("B045 complex state", {"state": complexes}, r"state\.h", "complex64"),
        ("B046 objects", {"xs": np.full((T, B, D), None)}, "xs", "object"),
        ("B046 strings", {"xs": np.full((T, B, D), "a")}, "xs", "<U1"),
        ("B046 dates", {"xs": np.zeros((T, B, D), "datetime64[s]")}, "xs", "datetime"),
        ("B046 nothing", {"xs": None}, "xs: got None"),
        ("B047 unequal", {"xs": [[[1.0] * D], [[1.0] * D] * 2]}, "xs", "inhomogeneous"),
        ("B048 masked", {"xs": np.ma.masked_all((T, B), "f4")}, "got a masked", "="),
        ("B048 masked state", {"state": masked_state}, r"state\.h: got a masked"),
        ("B048 tensor", {"xs": tensor}, "xs", "requires grad"),
        ("B051 xs", {"xs": deleted(problem()[1])}, "xs: got a deleted array"),
        ("B051 params", {"params": deleted(params)}, r"params\.w_x: got a deleted"),
        ("B051 state", {"state": deleted(zeros(B))}, r"state\.h: got a deleted"),
        ("B066 0", {"checkpoint_every": 0}, "checkpoint_every: got 0", "sqrt"),
        ("B066 -1", {"checkpoint_every": -1}, "checkpoint_every: got -1"),
        ("B066 2.5", {"checkpoint_every": 2.5}, r"checkpoint_every: got 2\.5"),
        ("B066 a word", {"checkpoint_every": "log"}, "checkpoint_every: got 'log'"),
        ("B064 engine", {"engine": "warp"}, "engine: got 'warp'", "scan"),
        ("B064 no name", {"engine": 3}, "engine: got 3", "scan"),
        ("B064 emit", {"emit": "hidden"}, "emit: got 'hidden'", r"jl\.emit"),
        ("B064 of h", {"emit": lambda h: h}, r"called as emit\(state, gates\)", "too"),
        ("B064 unhashable", {"emit": _Unhashable()}, "emit: got .* not hashable"),
        ("B064 factory", {"cell": jl.lstm}, "cell: got", r"jl\.lstm\(\)"),
    ]  # fmt: skip


def _of_no_use(self, dtype=None, copy=None):
    raise RuntimeError("Can't call numpy() on Tensor that requires grad.")


class _Unhashable:
    __hash__ = None  # type: ignore[assignment]

    def __call__(self, state, gates):
        return state.h


REFUSALS = _refusals()


@pytest.mark.parametrize(
    ("changes", "pieces"),
    [pytest.param(changes, pieces, id=name) for name, changes, *pieces in REFUSALS],
)
@pytest.mark.parametrize("function", [jl.unroll, jl.explain], ids=["unroll", "explain"])
def test_refusals(function, changes, pieces, monkeypatch):
    """The message is ours, and no engine is called."""
    monkeypatch.setitem(unrolling.ENGINES, "scan", _not_to_be_entered)
    params, xs, _ = problem()
    with pytest.raises(ValueError, match=rf"^{function.__name__}: ") as error:
        function(**({"cell": CELL, "params": params, "xs": xs} | changes))
    sentence = str(error.value)
    for piece in pieces:
        assert re.search(piece, sentence), sentence
    assert len(sentence) < 300
    assert not re.search("dot_general|Tracer|jaxpr|static", sentence)


def _not_to_be_entered(*arguments, **options):
    raise AssertionError("an engine was entered")


TRACED = [
    "B003",
    "B008",
    "B018 2.0",
    "B020 a row",
    "B021 2",
    "B025",
    "B029 0.5",
    "B030",
]


@pytest.mark.parametrize(
    ("changes", "pieces"),
    [
        pytest.param(changes, pieces, id=name)
        for name, changes, *pieces in REFUSALS
        if name.startswith(tuple(TRACED))
    ],
)
def test_refusals_under_jit(changes, pieces):
    """Shapes and dtypes are also known of tracers."""
    with pytest.raises(ValueError, match=pieces[0]):
        jax.jit(lambda changes: run(**changes))(changes)


# -- shapes: B002, B004 to B007, B010, B012, B013 --------------------------------


def test_b002_two_batch_axes():
    params, xs, state = problem()
    cut = jax.tree.map(lambda leaf: leaf.reshape(2, 2, H), state)
    last, hs = jl.unroll(CELL, params, xs.reshape(T, 2, 2, D), cut)
    flat, flat_hs = jl.unroll(CELL, params, xs, state)
    assert_same((last.c.reshape(B, H), hs.reshape(T, B, H)), (flat.c, flat_hs), 1e-6)


def test_b004_the_error_for_a_missing_axis_says_time_first():
    """A batch-major array with T = B cannot be detected, so the message mentions it."""
    with pytest.raises(ValueError, match="time first"):
        run(xs=jnp.ones(T))


@pytest.mark.parametrize(("rows", "time"), [(0, T), (B, 0)], ids=["B005", "B006"])
def test_b005_no_rows_and_b006_no_steps(rows, time):
    params, xs, state = problem((rows,), time)
    (last, hs), pull = jax.vjp(lambda p: jl.unroll(CELL, p, xs, state), params)
    assert hs.shape == (time, rows, H)
    assert hs.dtype == xs.dtype
    assert same_bits(last, state)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(pull((last, hs))))


def test_b007_one_of_everything():
    params = CELL.init(jax.random.key(0), 1, 1)
    xs = jnp.full((1, 1, 1), 0.5)
    zero = CELL.initial_state(params, (1,))
    one, _ = CELL.step(params, zero, CELL.project(params, xs[0]))
    assert_same(jl.unroll(CELL, params, xs)[0], one, 1e-6)


def test_b010_the_state_has_named_fields():
    """Swapping h and c by name is valid; swapping by position is refused."""
    _, _, state = problem()
    swapped = run(state=jl.LSTMState(h=state.c, c=state.h))
    assert not same_bits(swapped, run(state=state))


def test_b012_a_carry_of_another_depth_is_refused():
    layer = jl.stack(CELL, (3, 3, 3))
    params, _ = layer.init(jax.random.key(0), D)
    xs = problem()[1]
    state, _ = layer.apply(params, xs)
    for given, piece in [
        (state[:2], r"state: got 2 entries, expected 3, one per layer"),
        (state[0], r"state: got LSTMState, expected a tuple of 3 entries"),
        (jnp.zeros((3, B, 3)), r"state: got ArrayImpl, expected a tuple of 3 entries"),
    ]:
        with pytest.raises(ValueError, match=f"^stack: {piece}"):
            layer.apply(params, xs, given)
    with pytest.raises(ValueError, match=r"^stack: params: got 2 entries, expected 3"):
        layer.apply(params[:2], xs)
    both = jl.stack(CELL, (3,), bidirectional=True)
    params, _ = both.init(jax.random.key(0), D)
    with pytest.raises(
        ValueError,
        match=r"^0: bidirectional: state: got LSTMState, expected a tuple of 2",
    ):
        both.apply(params, xs, (state[0],))


@pytest.mark.parametrize("size", [0, -1, 2.0, "3", True, None])
def test_b013_invalid_sizes_are_refused(size):
    for build in (
        lambda: CELL.init(jax.random.key(0), 3, size),
        lambda: CELL.init(jax.random.key(0), size, 3),
        lambda: jl.recurrent(CELL, size),
        lambda: jl.stack(CELL, (3, size)),
        lambda: jl.linear(size),
        lambda: jl.embed(size, 3),
        lambda: jl.embed(3, size),
        lambda: jl.projected_lstm(size),
    ):
        with pytest.raises(ValueError, match=re.escape(repr(size))):
            build()


# -- lengths and masks: B014 to B032 ---------------------------------------------


@pytest.mark.parametrize("lengths", [LENGTHS, jnp.zeros(B, int)], ids=["B014", "B015"])
def test_b014_length_0_and_b015_all_lengths_0(lengths):
    params, xs, state = problem()

    def loss(params, xs, state):
        last, hs = jl.unroll(CELL, params, xs, state, lengths=lengths)
        return (hs**2).sum() + last.c.sum(), (last, hs)

    look = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)
    (_, (last, hs)), gradients = look(params, xs, state)
    assert same_bits((last.h[0], last.c[0]), (state.h[0], state.c[0]))
    assert not hs[:, 0].any()
    assert finite(gradients)


@pytest.mark.parametrize("length", [T + 1, -1], ids=["B016", "B017"])
def test_b016_b017_a_traced_length_out_of_range_gives_nan(length):
    last, hs = jax.jit(lambda lengths: run(lengths=lengths))(LENGTHS.at[1].set(length))
    assert np.isnan(hs[:, 1]).all()
    assert np.isnan(last.c[1]).all()
    assert finite((hs[:, [0, 2, 3]], last.c[jnp.array([0, 2, 3])]))


def test_b022_no_length_reaches_t():
    assert run(lengths=jnp.array([1, 2, 2, 0]))[1].shape == (T, B, H)


def test_b023_integers_of_any_width(x64):
    expected = run(lengths=LENGTHS)
    for dtype in (np.int8, np.uint8, np.int16, np.int64, np.uint64, ">i4"):
        assert same_bits(run(lengths=np.asarray(LENGTHS).astype(dtype)), expected)
    assert same_bits(run(lengths=LENGTHS.tolist()), expected)


def test_b024_every_length_t():
    assert same_bits(run(lengths=jnp.full(B, T)), run())


@pytest.mark.parametrize("kept", [[1, 0, 1, 1, 0, 1], [0, 0, 1, 1, 1, 1]])
def test_b026_a_hole_and_b027_padding_on_the_left_are_skipped(kept):
    params, xs, state = problem()
    kept = np.array(kept, bool)
    mask = np.repeat(kept[:, None], B, 1)
    last, hs = jl.unroll(CELL, params, xs, state, mask=mask)
    short, short_hs = jl.unroll(CELL, params, xs[kept], state)
    assert_same((last, hs[kept]), (short, short_hs), 1e-6)
    assert not hs[~kept].any()


def test_b028_a_row_of_no_steps():
    masked = run(mask=np.ones((T, B), bool) & (np.arange(B) != 1))
    assert_same(masked, run(lengths=jnp.full(B, T).at[1].set(0)), 1e-6)


def test_b031_reverse_runs_over_the_valid_prefix():
    params, xs, state = problem()
    last, hs = jl.unroll(CELL, params, xs, state, lengths=LENGTHS, reverse=True)
    for row, n in enumerate(LENGTHS.tolist()):
        alone = jax.tree.map(lambda leaf, row=row: leaf[row], state)
        end, back = jl.unroll(CELL, params, xs[:n, row][::-1], alone)
        assert_same((last.c[row], hs[:n, row]), (end.c, back[::-1]), 1e-6)


def test_b032_the_backward_state_of_a_bidirectional_layer():
    layer = jl.stack(CELL, (H,), bidirectional=True)
    params, _ = layer.init(jax.random.key(0), D)
    xs = problem()[1]
    (state,), _ = layer.apply(params, xs, lengths=LENGTHS)
    for row, n in enumerate(LENGTHS.tolist()):
        end, _ = jl.unroll(CELL, params[0].backward, xs[:n, row][::-1])
        assert_same(state.backward.c[row], end.c, 1e-6)


# -- values: B033 to B040 --------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_b033_nan_in_padding(value):
    params, xs, state = problem()

    def loss(params, xs, state):
        last, hs = jl.unroll(CELL, params, xs, state, lengths=LENGTHS)
        return (hs**2).sum() + last.c.sum()

    look = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))
    got = look(params, jnp.where(MASK[..., None], xs, value), state)
    assert finite(got)
    assert same_bits(got, look(params, jnp.where(MASK[..., None], xs, 0.0), state))


def test_b034_nan_in_a_valid_step():
    """It stays in its row, and training names the step and the row."""
    _, xs, _ = problem()
    touched = np.zeros((T, B), bool)
    touched[2:, 1] = True
    hs = run(xs=xs.at[2, 1].set(jnp.nan))[1]
    assert np.array_equal(np.isnan(hs).any(-1), touched)
    assert np.array_equal(np.asarray(hs)[~touched], np.asarray(run()[1])[~touched])

    model, _, state, batch = small_training()
    table = state.params[0].table.at[4].set(jnp.nan)
    embedding = state.params[0]._replace(table=table)
    state = state._replace(params=(embedding, *state.params[1:]))
    batch = batch._replace(inputs=4 * np.eye(3, 2, k=-1, dtype=np.int32))
    dataset = SimpleNamespace(batch=lambda step: batch, batch_axes=Batch(1, 1, 1))
    job = SimpleNamespace(task=TASK, model=model, shards=1, dataset=dataset)
    message = diagnose(job, state)
    assert "step 1: the loss is not finite" in message
    assert "batch rows 0, 1" in message


def small_training(*layers):
    """Return a model of 5 tokens, its optimizer, the initial state and a batch."""
    model = jl.serial(
        jl.embed(5, 3), *(layers or [jl.recurrent(CELL, 4)]), jl.linear(5)
    )
    optimizer = optax.sgd(0.1)
    tokens = np.random.default_rng(0).integers(0, 4, (2, 3, 2), np.int32)
    batch = Batch(*tokens, np.zeros((3, 2), bool))
    state = initial_state(TASK, model, optimizer, batch, seed=0)
    return model, optimizer, state, batch


def test_b035_infinite_inputs_saturate():
    params = CELL.init(jax.random.key(0), 1, H)
    for sign in (1, -1):
        last, hs = jl.unroll(CELL, params, jnp.full((T, 1), sign * jnp.inf))
        assert finite((last, hs))
    wide, _, _ = problem()  # inf - inf is NaN, and is not hidden
    mixed = jl.unroll(CELL, wide, jnp.full((T, D), jnp.inf))[1]
    assert not finite(mixed)


@pytest.mark.parametrize("size", [1e4, 1e38])
def test_b036_large_inputs(size):
    params = CELL.init(jax.random.key(0), 1, H)
    xs = jnp.full((T, 1), size, jnp.float32)

    def loss(params, xs):
        last, hs = jl.unroll(CELL, params, xs)
        return (hs**2).sum() + last.c.sum()

    value, (d_params, d_xs) = jax.value_and_grad(loss, (0, 1))(params, xs)
    assert finite((value, d_params))
    assert not d_xs.any()


def test_b037_subnormals():
    params, xs, _ = problem()
    tiny = xs * 1e-40
    assert_same(jl.unroll(CELL, params, tiny), jl.unroll(CELL, params, xs * 0), 1e-6)


def open_gates(dtype):
    """Return params of one unit whose i, f, g and o are exactly 1."""
    return jl.LSTMParams(
        jnp.zeros((1, 4, 1), dtype), jnp.zeros((1, 4, 1), dtype), jnp.full((4, 1), 60.0)
    )


def test_b038_bfloat16_counts_past_256():
    dtype = jnp.bfloat16
    state, hs = jl.unroll(CELL, open_gates(dtype), jnp.zeros((300, 1), dtype))
    assert (state.c.dtype, float(state.c[0])) == (jnp.float32, 300.0)
    assert hs.dtype == dtype


def test_b039_float16_counts_past_65504():
    start = jl.LSTMState(jnp.zeros(1, jnp.float16), jnp.full(1, 70_000.0))
    xs = jnp.zeros((5, 1), jnp.float16)
    state, hs = jl.unroll(CELL, open_gates(jnp.float16), xs, start)
    assert float(state.c[0]) == 70_005.0
    assert finite(hs)


@pytest.mark.parametrize("token", [10, -1])
def test_b040_tokens_outside_the_vocabulary(token):
    layer = jl.embed(10, 3)
    params, _ = layer.init(jax.random.key(0))
    tokens = jnp.array([[3, token]])
    with pytest.raises(
        ValueError, match=rf"^embed: xs: got the token {token}, expected 0 to 9 "
    ):
        layer.apply(params, tokens)
    _, rows = jax.jit(layer.apply)(params, tokens)
    assert np.isnan(rows[0, 1]).all()
    assert finite(rows[0, 0])


# -- dtypes and arrays: B042 to B051 ----------------------------------------------


def test_b042_float64_without_x64_is_computed_in_float32_with_one_warning():
    _, xs, _ = problem()
    wide = np.asarray(xs, np.float64)
    masking._warn_of_narrowing.cache_clear()
    with pytest.warns(UserWarning, match="xs: got dtype float64 .* float32") as record:
        got = [run(xs=wide) for _ in range(3)]
    assert len(record) == 1
    assert Path(record[0].filename) == Path(__file__)
    assert all(same_bits(one, run()) for one in got)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(xs=wide)
        run(xs=np.asarray(xs).tolist())


def test_b043_float64_features_with_float32_params(x64):
    params, xs, _ = problem()
    state, hs = jl.unroll(CELL, params, xs.astype(jnp.float64))
    assert (hs.dtype, state.h.dtype, state.c.dtype) == (jnp.float64,) * 3


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_b044_16_bit_features_with_float32_params(dtype):
    params, xs, _ = problem()
    state, hs = jl.unroll(CELL, params, xs.astype(dtype))
    assert (hs.dtype, state.h.dtype, state.c.dtype) == (dtype, dtype, jnp.float32)


@pytest.mark.filterwarnings("ignore:the matrix subclass")
def test_b048_other_array_types():
    """Anything that NumPy converts; a masked array if nothing is masked."""
    params, xs, _ = problem(())
    plain = np.asarray(xs)
    expected = jl.unroll(CELL, params, xs)
    frame = type("Frame", (), {"__array__": lambda self, dtype=None, copy=None: plain})
    for other in (np.matrix(plain), np.ma.array(plain), frame(), plain.tolist()):
        assert same_bits(jl.unroll(CELL, params, other), expected)


def test_b048_a_torch_tensor():
    torch = pytest.importorskip("torch")
    _, xs, _ = problem()
    tensor = torch.tensor(np.asarray(xs))
    assert same_bits(run(xs=tensor), run())
    with pytest.raises(ValueError, match=r"^unroll: xs: got no array of numbers.*grad"):
        run(xs=tensor.requires_grad_())


def test_b049_a_weakly_typed_carry():
    """Python numbers in place of arrays or in lists, and weakly typed arrays."""
    zero = run(state=None)
    for value in (
        0.0,
        0,
        [[0.0] * H] * B,
        jnp.full((B, H), 0.0),
        jnp.zeros((B, H)) * 0,
    ):
        assert same_bits(run(state=jl.LSTMState(value, value)), zero)

    params, xs, _ = problem()

    @jax.jit
    def from_zero(params, xs):
        return run(params=params, xs=xs, state=jl.LSTMState(0.0, 0.0))

    @jax.jit
    def from_no_state(params, xs):
        return run(params=params, xs=xs, state=None)

    assert same_bits(from_zero(params, xs), from_no_state(params, xs))


def test_b050_numpy_arrays_of_any_layout():
    _, xs, _ = problem()
    plain = np.asarray(xs)
    expected = run()
    wide = np.zeros((T, B, 2 * D), np.float32)
    wide[..., ::2] = plain
    frozen = plain.copy()
    frozen.flags.writeable = False
    layouts = [
        np.asfortranarray(plain),
        wide[..., ::2],
        plain[::-1].copy()[::-1],
        plain.astype(">f4"),
        frozen,
    ]
    for array in layouts:
        assert same_bits(run(xs=array), expected)
        gradient = jax.grad(lambda xs: run(xs=xs)[1].sum())
        assert same_bits(gradient(jnp.asarray(array.astype("f4"))), gradient(xs))


def test_b051_deleted_lengths_are_refused():
    with pytest.raises(ValueError, match="lengths: got a deleted array"):
        run(lengths=deleted(LENGTHS))


# -- keys: B052 to B059 -------------------------------------------------------------

NOISY = {
    "dropout": jl.dropout(0.5),
    "variational_dropout": jl.recurrent(jl.variational_dropout(CELL, h_rate=0.5), H),
    "zoneout": jl.recurrent(jl.zoneout(CELL, h_rate=0.5), H),
    "recurrent_dropout": jl.recurrent(jl.recurrent_dropout(CELL, 0.5), H),
    "weight_drop": jl.recurrent(jl.weight_drop(CELL, 0.5), H),
}


@pytest.mark.parametrize("layer", NOISY.values(), ids=NOISY)
def test_b052_no_key_no_noise_and_b053_one_key_one_noise(layer):
    _, xs, _ = problem()
    params, _ = layer.init(jax.random.key(0), D)

    def ys(seed=None):
        key = None if seed is None else jax.random.key(seed)
        return layer.apply(params, xs, key=key)[1]

    assert same_bits(ys(), ys())
    assert not same_bits(ys(), ys(0))  # no key is not key(0)
    assert same_bits(ys(0), ys(0))
    assert not same_bits(ys(0), ys(1))


KEYS = [
    0,
    2.0,
    "key",
    np.zeros(3),
    np.zeros(3, np.uint32),
    jnp.ones((2, 2), jnp.uint32),
    [0, 0],
]


@pytest.mark.parametrize("key", [*KEYS, jax.random.split(jax.random.key(0))], ids=repr)
def test_b054_a_seed_in_place_of_a_key_is_refused(key):
    _, xs, _ = problem()
    with pytest.raises(TypeError, match=r"^unroll: key: got .*jax\.random\.key\(0\)"):
        run(key=key)
    with pytest.raises(TypeError, match=r"^explain: key: got "):
        jl.explain(CELL, problem()[0], xs, key=key)
    with pytest.raises(TypeError, match=r"key: got .*jax\.random\.key\(0\)"):
        jl.dropout(0.5).apply((), xs, key=key)


@pytest.mark.parametrize("layer", NOISY.values(), ids=NOISY)
def test_b055_a_legacy_key_gives_the_same_noise(layer):
    _, xs, _ = problem()
    params, _ = layer.init(jax.random.key(0), D)
    typed, legacy = jax.random.key(5), jax.random.PRNGKey(5)
    expected = layer.apply(params, xs, key=typed)
    for key in (legacy, np.asarray(legacy)):
        assert same_bits(layer.apply(params, xs, key=key), expected)
    each = jax.vmap(lambda key: layer.apply(params, xs, key=key)[1])
    assert same_bits(each(legacy[None])[0], each(typed[None])[0])
    assert same_bits(CELL.init(legacy, 3, 5), CELL.init(typed, 3, 5))


def test_b056_without_a_key_there_is_no_dropout():
    _, xs, _ = problem()
    with_, without = (jl.stack(CELL, (4, 4), dropout=rate) for rate in (0.5, 0.0))
    params, _ = with_.init(jax.random.key(0), D)
    assert same_bits(with_.apply(params, xs), without.apply(params, xs))


def test_b057_masks_per_step_and_per_sequence_are_two_functions():
    ones = jnp.ones((50, 1, D))
    _, each_step = jl.dropout(0.5).apply((), ones, key=jax.random.key(0))
    assert len(np.unique(each_step, axis=0)) > 1
    cell = jl.variational_dropout(CELL, x_rate=0.5)
    params = cell.init(jax.random.key(0), D, H)
    assert cell.prepare is not None
    inputs, each = cell.prepare(params, ones, key=jax.random.key(0))
    z = jax.vmap(lambda x, each: cell.project(inputs, x, each))(ones, each)  # type: ignore
    assert all(len(np.unique(leaf, axis=0)) == 1 for leaf in jax.tree.leaves(z))


def test_b058_noise_continues_after_a_resume():
    """A run that is stopped after two steps and resumed ends with the same bits."""
    cell = jl.zoneout(CELL, h_rate=0.5)
    layers = jl.dropout(0.5), jl.recurrent(cell, 4)
    model, optimizer, state, batch = small_training(*layers)
    step = jax.jit(lambda s: train_step(TASK, model, optimizer, s, batch)[0])
    halfway = step(step(state))
    put_down = jax.device_get(halfway._replace(key=jax.random.key_data(halfway.key)))
    taken_up = put_down._replace(key=jax.random.wrap_key_data(put_down.key))
    ends = [step(step(start)) for start in (halfway, taken_up)]
    one, other = (end._replace(key=jax.random.key_data(end.key)) for end in ends)
    assert same_bits(one, other)


@pytest.mark.parametrize("seed", [2**32, 2**63, -1, 1.5])
def test_b059_seeds_outside_the_documented_range(seed):
    with pytest.raises(ValueError, match=r"^seed: "):
        configs.load({"seed": seed})
    assert configs.load({"seed": 2**32 - 1}).seed == 2**32 - 1


# -- sizes: B060 to B063 ---------------------------------------------------------


@pytest.mark.parametrize(
    "time", [65_536, pytest.param(1_000_000, marks=pytest.mark.combinations)]
)
def test_b060_long_sequences(time):
    params = CELL.init(jax.random.key(0), 1, 8)
    xs = jnp.sin(jnp.arange(time, dtype=jnp.float32))[:, None]
    whole = jl.unroll(CELL, params, xs, emit=jl.emit.nothing)[0]
    half = jl.unroll(CELL, params, xs[: time // 2], emit=jl.emit.nothing)[0]
    end = jl.unroll(CELL, params, xs[time // 2 :], half, emit=jl.emit.nothing)[0]
    assert same_bits(whole, end)


def test_b061_more_than_2_to_the_31_preactivations_are_never_stored_at_once():
    """B T 4H = 2**33; the program stores one step of them."""
    time, rows, units = 2**17, 2**8, 2**6
    params = jax.eval_shape(lambda: CELL.init(jax.random.key(0), 1, units))
    xs = jax.ShapeDtypeStruct((time, rows, 1), jnp.float32)

    def last(params, xs):
        return jl.unroll(CELL, params, xs, emit=jl.emit.nothing)[0]

    program = jax.jit(last).lower(params, xs).compile().memory_analysis()
    assert program is not None
    assert program.temp_size_in_bytes < 2**24 + 4 * time * rows


@pytest.mark.slow
def test_b061_a_sequence_of_more_than_2_to_the_31_preactivations():
    time, rows, units = 2**14, 2**13, 4
    params = CELL.init(jax.random.key(0), 1, units)
    row = jnp.sin(jnp.arange(time, dtype=jnp.float32))
    xs = jnp.broadcast_to(row[:, None, None], (time, rows, 1))
    last, _ = jl.unroll(CELL, params, xs, emit=jl.emit.nothing)
    one, _ = jl.unroll(CELL, params, row[:, None], emit=jl.emit.nothing)
    assert_same(last.c[-1], one.c, 1e-5)


def test_b062_out_of_memory_names_the_options_that_save_memory(monkeypatch):
    def exhausted(*arguments, **options):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setitem(unrolling.ENGINES, "adjoint", exhausted)
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE") as error:
        run(engine="adjoint")
    assert any('checkpoint_every="sqrt"' in note for note in error.value.__notes__)
    assert configs.load(overrides=["model.checkpoint_every=sqrt"])


def test_b063_a_size_beyond_any_memory_is_refused_with_its_bytes():
    with pytest.raises(ValueError, match=r"hidden_size: got 10000000, .*400,000 GB"):
        configs.load({"model": {"hidden_size": 10_000_000}})


# -- the rest of the API: B064 to B069 ----------------------------------------------


@pytest.mark.parametrize("name", ["relu ", "Tanh", "", None, 3])
def test_b064_unknown_activations(name):
    options = ["candidate_activation", "output_activation", "gate_activation"]
    for option in options:
        with pytest.raises(ValueError, match=f"{option}.*hard_sigmoid.*tanh"):
            jl.lstm(**{option: name})
    with pytest.raises(ValueError, match=r"activation.*tanh"):
        jl.simple_rnn(activation=name)


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5, float("nan"), "0.5", None])
def test_b065_rates_outside_0_to_1_are_refused(rate):
    for build in (
        lambda: jl.dropout(rate),
        lambda: jl.stack(CELL, (3,), dropout=rate),
        lambda: jl.zoneout(CELL, h_rate=rate),
        lambda: jl.zoneout(CELL, c_rate=rate),
        lambda: jl.variational_dropout(CELL, x_rate=rate),
        lambda: jl.variational_dropout(CELL, h_rate=rate),
        lambda: jl.recurrent_dropout(CELL, rate),
        lambda: jl.weight_drop(CELL, rate),
    ):
        message = rf"(rate|dropout): got {re.escape(repr(rate))}, expected a number"
        with pytest.raises(ValueError, match=message):
            build()


@pytest.mark.parametrize("every", [T + 1, 1000])
def test_b066_checkpoint_blocks_longer_than_the_sequence(every):
    assert_same(run(checkpoint_every=every), run(), 1e-6)


def test_b067_every_transformation():
    params, xs, state = problem()

    def hs(xs):
        return jl.unroll(CELL, params, xs, lengths=LENGTHS)[1]

    def row(x):
        return jl.unroll(CELL, params, x)[1]

    def part(state, xs):
        return jl.unroll(CELL, params, xs, state)

    expected = hs(xs)
    slope = jax.jvp(hs, (xs,), (xs,))[1]
    assert jax.eval_shape(hs, xs).shape == expected.shape
    with jax.checking_leaks():
        assert_same(jax.jit(hs)(xs), expected, 1e-6)
    assert_same(jax.checkpoint(hs)(xs), expected, 1e-6)
    assert_same(jax.vmap(row, 1, 1)(xs), jl.unroll(CELL, params, xs)[1], 1e-6)
    gradient = jax.grad(lambda xs: hs(xs).sum())(xs)
    assert_same((gradient * xs).sum(), slope.sum(), 1e-4)
    halves = xs.reshape(2, T // 2, B, D)
    assert_same(jax.lax.scan(part, state, halves)[1].reshape(T, B, H), run()[1], 1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pmap is on its way out
        each = jax.pmap(row, in_axes=1, out_axes=1)(xs)
    assert_same(np.asarray(each), jl.unroll(CELL, params, xs)[1], 1e-6)


@pytest.mark.parametrize("name", CELLS)
def test_b068_params_of_another_structure_are_refused(name):
    """A leaf that is missing, extra, renamed or no array is named."""
    cell = CELLS[name]
    params = cell.init(jax.random.key(0), D, H)
    xs = jnp.ones((T, B, 4, D) if name == "conv_lstm" else (T, B, D))
    leaves = {
        field: leaf for field, leaf in params._asdict().items() if leaf is not None
    }
    gone = sorted(leaves)[0]
    rest = {field: leaf for field, leaf in leaves.items() if field != gone}
    grown = jnp.zeros((7, *leaves[gone].shape))
    wrong = {
        f"without {gone}": rest,
        "with w_q": params._asdict() | {"w_q": leaves[gone]},
        f"without {gone} with {gone}_0": {**rest, f"{gone}_0": leaves[gone]},
        rf"{gone} \[7,": params._replace(**{gone: grown}),
        rf"got shapes .*{gone} None": params._replace(**{gone: None}),
        rf"params\.{gone}: got dtype <U1": params._replace(**{gone: "a"}),
        "params: got tuple": tuple(params),
    }
    for sentence, given in wrong.items():
        with pytest.raises(ValueError, match=rf"^unroll: .*{sentence}"):
            jl.unroll(cell, given, xs)
    for wrap in (jl.learned_initial_state, jl.taps):
        with pytest.raises(ValueError, match=r"^unroll: .*(Learned|Tapped)\(params"):
            jl.unroll(wrap(cell), params, xs)


def test_b068_params_of_layers():
    _, xs, _ = problem()
    lstm = CELL.init(jax.random.key(0), D, H)
    with pytest.raises(ValueError, match=r"^linear: params: got LSTMParams.*w, b"):
        jl.linear(3).apply(lstm, xs)
    with pytest.raises(ValueError, match=r"^embed: params: got tuple.*table"):
        jl.embed(3, 3).apply((), jnp.zeros((T, B), int))


def test_b069_another_gate_order_cannot_be_detected():
    """The order is documented in the record; a fused matrix is refused."""
    assert jl.Gates._fields == ("i", "f", "g", "o")
    params, xs, _ = problem()
    turned = jax.tree.map(lambda leaf: leaf[..., jnp.array([0, 3, 1, 2]), :], params)
    got, expected = (jl.unroll(CELL, p, xs)[1] for p in (turned, params))
    assert not np.allclose(got, expected, atol=1e-3)
    with pytest.raises(ValueError, match=r"got shapes w_x \[3, 20\].*w_x \[D, 4, H\]"):
        jl.unroll(CELL, params._replace(w_x=params.w_x.reshape(D, -1)), xs)


# -- errors raised within a step ---------------------------------------------------


def test_errors_of_a_step_name_the_caller():
    _, xs, _ = problem()
    clipped = jl.clip_cell(jl.gru(), 1.0)
    params = clipped.init(jax.random.key(0), D, H)
    for function in (jl.unroll, jl.explain):
        with pytest.raises(ValueError, match=f"^{function.__name__}: .*cell state c"):
            function(clipped, params, xs)


def test_a_step_that_changes_its_state_is_described():
    def widened(params, state, z):
        after, gates = CELL.step(params, state, z)
        return after._replace(h=after.h.astype(jnp.float32)), gates

    params, xs, _ = problem(dtype=jnp.bfloat16)
    with pytest.raises(ValueError, match=r"^unroll: .*state\.h, float32.*bfloat16"):
        jl.unroll(CELL._replace(step=widened), params, xs)


def test_every_number_has_a_test():
    text = Path(__file__).read_text("utf-8")
    there = {int(number) for number in re.findall(r"[bB](0\d\d)\b|_b(0\d\d)_", text)
             for number in number if number}  # fmt: skip
    assert there == set(range(1, 70))


def test_a_list_for_one_step_is_refused_with_a_hint():
    cell = jl.lstm()
    params = cell.init(jax.random.key(0), 3, 5)
    with pytest.raises(ValueError, match=r"x: got list, expected an array with 3"):
        cell.project(params, [1.0, 0.0, -1.0])
