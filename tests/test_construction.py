"""Cells and layers pickle, copy and compare by the call that constructed them."""

import concurrent.futures
import copy
import functools
import gc
import inspect
import multiprocessing
import pickle
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxlstm as jl
from jaxlstm.construction import Construction, construction_of

CELL = jl.lstm()
LAYER = jl.recurrent(CELL, 3)
PRESET = jl.initializers.Preset(
    w_x=jl.initializers.glorot_fused(),
    w_h=jl.initializers.orthogonal_per_gate(),
    b=jl.initializers.forget_bias(2),
    b_single=jl.initializers.uniform(),
)


def swish(x):
    return x * jax.nn.sigmoid(x)


# For each public constructor, calls with unequal results.
CALLS = {
    "lstm": [
        lambda: jl.lstm(),
        lambda: jl.lstm(forget_bias=2),
        lambda: jl.lstm(gate_activation="hard_sigmoid", init="torch"),
        lambda: jl.lstm(candidate_activation=swish, output_activation="identity"),
        lambda: jl.lstm(init=jl.initializers.chrono(784)),
        lambda: jl.lstm(init=PRESET),
    ],
    "classic_lstm": [jl.classic_lstm, lambda: jl.classic_lstm(init="keras")],
    "peephole_lstm": [jl.peephole_lstm, lambda: jl.peephole_lstm(init="chrono")],
    "coupled_lstm": [jl.coupled_lstm, lambda: jl.coupled_lstm(peepholes=True)],
    "projected_lstm": [lambda: jl.projected_lstm(2), lambda: jl.projected_lstm(3)],
    "layer_norm_lstm": [jl.layer_norm_lstm, lambda: jl.layer_norm_lstm(forget_bias=0)],
    "conv_lstm": [lambda: jl.conv_lstm(3), lambda: jl.conv_lstm((3, 3))],
    "gru": [jl.gru, lambda: jl.gru(reset_after=False)],
    "simple_rnn": [jl.simple_rnn, lambda: jl.simple_rnn(activation="relu")],
    "clip_cell": [lambda: jl.clip_cell(CELL, 1), lambda: jl.clip_cell(CELL, 2)],
    "learned_initial_state": [
        lambda: jl.learned_initial_state(CELL),
        lambda: jl.learned_initial_state(jl.gru()),
    ],
    "recurrent_dropout": [
        lambda: jl.recurrent_dropout(CELL, 0.1),
        lambda: jl.recurrent_dropout(CELL, 0.2),
    ],
    "taps": [lambda: jl.taps(CELL), lambda: jl.taps(jl.taps(CELL))],
    "variational_dropout": [
        lambda: jl.variational_dropout(CELL, x_rate=0.1),
        lambda: jl.variational_dropout(CELL, h_rate=0.1),
    ],
    "weight_drop": [
        lambda: jl.weight_drop(CELL, 0.1),
        lambda: jl.weight_drop(jl.zoneout(CELL), 0.1),
    ],
    "zoneout": [
        lambda: jl.zoneout(CELL, h_rate=0.1),
        lambda: jl.zoneout(CELL, c_rate=0.1),
    ],
    "bidirectional": [
        lambda: jl.bidirectional(LAYER, jl.recurrent(CELL, 3, reverse=True)),
        lambda: jl.bidirectional(LAYER, LAYER),
    ],
    "dropout": [lambda: jl.dropout(0), lambda: jl.dropout(0.5)],
    "embed": [
        lambda: jl.embed(9, 4),
        lambda: jl.embed(9, 4, dtype=jnp.bfloat16),
    ],
    "linear": [lambda: jl.linear(1), lambda: jl.linear(2)],
    "recurrent": [
        lambda: jl.recurrent(CELL, 3),
        lambda: jl.recurrent(CELL, 3, reverse=True),
        lambda: jl.recurrent(CELL, 3, checkpoint_every="sqrt"),
        lambda: jl.recurrent(CELL, 3, engine=["adjoint", "scan"]),
        lambda: jl.recurrent(jl.gru(), 3),
    ],
    "residual": [
        lambda: jl.residual(LAYER),
        lambda: jl.residual(jl.recurrent(CELL, 4)),
    ],
    "serial": [
        lambda: jl.serial(LAYER, jl.linear(2)),
        lambda: jl.serial(jl.linear(2), LAYER),
        lambda: jl.serial(rnn=LAYER, head=jl.linear(2)),
        lambda: jl.serial(head=jl.linear(2), rnn=LAYER),
    ],
    "stack": [
        lambda: jl.stack(CELL, (5,)),
        lambda: jl.stack(CELL, (5, 5), dropout=0.1),
        lambda: jl.stack(CELL, (5, 5), bidirectional=True),
        lambda: jl.stack(CELL, (5, 5), residual=True),
    ],
}
EVERY_CALL = [
    pytest.param(call, id=f"{name}-{place}")
    for name, calls in CALLS.items()
    for place, call in enumerate(calls)
]


def is_constructor(function):
    returned = getattr(function, "__annotations__", {}).get("return")
    return returned in (jl.Cell, jl.Layer)


def test_every_public_constructor_has_calls_here():
    public = {name for name in jl.__all__ if is_constructor(getattr(jl, name))}
    assert public == CALLS.keys()


@pytest.mark.parametrize("call", EVERY_CALL)
def test_the_construction_names_every_argument_and_builds_an_equal_record(call):
    record = call()
    construction = construction_of(record)
    assert construction.function in vars(jl).values()
    assert construction.build() == record


@pytest.mark.parametrize("call", EVERY_CALL)
def test_functions_have_the_names_and_texts_of_their_fields(call):
    """Those of a user and those of modules keep their own."""
    record = call()
    for field, function in record._asdict().items():
        if callable(function):
            assert function.__doc__, field
            assert inspect.signature(function).parameters
            if function.__qualname__ != function.__name__:  # a local function
                assert function.__name__ == field


def test_functions_of_a_user_keep_their_names():
    def draw(key, input_size, hidden_size, dtype=jnp.float32):
        return CELL.init(key, input_size, hidden_size, dtype=dtype)

    cell = jl.learned_initial_state(CELL._replace(init=draw))
    jl.clip_cell(CELL._replace(init=draw), 1)
    assert (draw.__name__, draw.__doc__) == ("draw", None)
    assert cell.init.__name__ == "init"
    with pytest.raises(TypeError, match=r"\.init\(\) missing .* 'hidden_size'"):
        CELL.init(jax.random.key(0), 3)


@pytest.mark.parametrize("call", EVERY_CALL)
def test_equal_calls_are_equal_and_copies_too(call):
    record = call()
    assert call() == record
    assert hash(call()) == hash(record)
    assert copy.deepcopy(record) == copy.copy(record) == record
    assert pickle.loads(pickle.dumps(record)) == record


@pytest.mark.parametrize("calls", CALLS.values(), ids=CALLS)
def test_unequal_options_are_unequal(calls):
    records = [call() for call in calls]
    assert len(set(records)) == len(records)


def test_every_record_survives_a_pickle_to_another_process():
    records = [parameter.values[0]() for parameter in EVERY_CALL]
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
        assert pool.submit(copy.copy, records).result() == records


def test_arguments_of_equal_meaning_are_recorded_alike():
    def arguments(record):
        return construction_of(record).arguments

    assert arguments(jl.lstm(init=jl.initializers.default(2))) == {
        "forget_bias": 2.0,
        "candidate_activation": "tanh",
        "output_activation": "tanh",
        "gate_activation": "sigmoid",
        "init": "default",
    }
    assert arguments(jl.gru(init=jl.initializers.keras(0)))["init"] == "keras"
    assert arguments(jl.lstm(gate_activation=jnp.tanh))["gate_activation"] == "tanh"
    assert arguments(jl.conv_lstm(3))["kernel_shape"] == (3,)
    assert arguments(jl.embed(9, 4, dtype="bfloat16"))["dtype"] == jnp.bfloat16
    sizes = arguments(jl.stack(CELL, [np.int64(5), 5]))["sizes"]
    assert list(map(type, sizes)) == [int, int]
    positions, names = jl.serial(LAYER), jl.serial(rnn=LAYER)
    assert arguments(positions) == {"layers": (LAYER,), "named": {}}
    assert arguments(names) == {"layers": (), "named": {"rnn": LAYER}}


def test_changing_the_arguments_that_were_returned_changes_nothing():
    model = jl.serial(rnn=LAYER)
    construction_of(model).arguments["named"]["rnn"] = None
    assert construction_of(model).build() == model


@pytest.mark.parametrize("record", [CELL, LAYER, jl.taps(CELL)])
def test_a_record_with_another_function_has_no_construction(record):
    first = record._fields[0]
    changed = record._replace(**{first: swish})
    assert construction_of(changed) is None
    assert construction_of(record) is not None
    assert changed != record


def test_true_is_not_taken_for_one():
    jl.linear(1)
    with pytest.raises(ValueError, match="size: got True"):
        jl.linear(True)


def init(key, input_size, hidden_size, *, dtype=jnp.float32):
    return jl.LSTMParams(*CELL.init(key, input_size, hidden_size, dtype=dtype))


def test_an_own_cell_of_named_functions_pickles():
    own = jl.Cell(init, jl.cells.lstm.initial_state, jl.cells.lstm.project, swish)
    model = jl.stack(jl.zoneout(own), (5,))
    assert construction_of(own) is None
    assert pickle.loads(pickle.dumps(model)) == model == copy.deepcopy(model)


@pytest.mark.parametrize(
    "record",
    [
        jl.lstm(gate_activation=lambda x: x),
        jl.recurrent(CELL._replace(init=lambda *_: None), 3),
    ],
)
def test_a_function_without_a_name_fails_with_the_error_of_pickle(record):
    assert copy.deepcopy(record) == record
    with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
        pickle.dumps(record)


def test_a_cell_that_cannot_be_hashed_gives_layers_as_before():
    class Unhashable:
        __hash__ = None

        def __call__(self, *args, **kwargs):
            return CELL.init(*args, **kwargs)

    cell = CELL._replace(init=Unhashable())
    assert construction_of(cell) is None
    layer = jl.recurrent(cell, 3)
    assert construction_of(layer).arguments["cell"] is cell


def test_layers_are_freed():
    alive = weakref.ref(jl.serial(jl.linear(717), jl.linear(718)).apply)
    gc.collect()
    assert alive() is None


def test_threads_get_the_same_layer():
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        made = set(pool.map(lambda _: jl.stack(CELL, (5, 6, 7)), range(64)))
    assert len(made) == 1


def test_jit_does_not_trace_an_equal_model_again():
    traces = []

    @functools.partial(jax.jit, static_argnums=0)
    def last(model, params, xs):
        traces.append(model)
        return model.apply(params, xs)[1][-1]

    def build(size):
        return jl.serial(rnn=jl.stack(jl.lstm(), [size, size]), head=jl.linear(2))

    params, _ = build(4).init(jax.random.key(0), 3)
    xs = jnp.ones((2, 3))
    models = [build(4), pickle.loads(pickle.dumps(build(4))), copy.deepcopy(build(4))]
    results = [last(model, params, xs) for model in models]
    assert len(traces) == 1
    assert all((result == results[0]).all() for result in results)
    with pytest.raises(ValueError, match=r"entries|shape|features"):
        last(build(5), {"rnn": (), "head": ()}, xs)
    assert len(traces) == 2


def test_modules_pickle_and_copy():
    model = jl.modules.nnx.LSTM(3, 4, num_layers=2, dropout=0.1, rngs=nnx.Rngs(0))
    model.eval()
    xs = jnp.ones((2, 5, 3))
    for twin in copy.deepcopy(model), pickle.loads(pickle.dumps(model)):
        assert nnx.graphdef(twin) == nnx.graphdef(model)
        assert (twin(xs) == model(xs)).all()
    module = jl.modules.linen.Recurrent(jl.stack(CELL, (4,)))
    twin = pickle.loads(pickle.dumps(module))
    assert twin == module == jl.modules.linen.Recurrent(jl.stack(CELL, (4,)))
    assert hash(twin) == hash(module)


def test_a_construction_can_be_changed_and_built():
    construction = construction_of(jl.stack(CELL, (5,)))
    arguments = construction.arguments | {"sizes": (6,)}
    assert Construction(construction.function, arguments).build() == jl.stack(
        CELL, (6,)
    )


@pytest.mark.parametrize(
    ("record", "text"),
    [
        (jl.lstm(), "lstm()"),
        (jl.lstm(forget_bias=0, init="keras"), "lstm(forget_bias=0.0, init='keras')"),
        (jl.lstm(gate_activation=jax.nn.silu), "lstm(gate_activation=silu)"),
        (jl.projected_lstm(3), "projected_lstm(3)"),
        (jl.zoneout(jl.gru(), h_rate=0.1), "zoneout(gru(), h_rate=0.1)"),
        (jl.embed(9, 4, dtype=jnp.bfloat16), "embed(9, 4, dtype=bfloat16)"),
        (
            jl.serial(jl.linear(4), jax.nn.relu, jl.residual(LAYER)),
            "serial(linear(4), 'relu', residual(recurrent(lstm(), 3)))",
        ),
        (
            jl.serial(rnn=jl.stack(jl.lstm(), [8, 8], dropout=0.1), head=jl.linear(2)),
            "serial(rnn=stack(lstm(), (8, 8), dropout=0.1), head=linear(2))",
        ),
        (jl.Layer(abs, all), "Layer(init=abs, apply=all)"),
    ],
)  # fmt: skip
def test_the_repr_is_the_call(record, text):
    assert repr(record) == text


def test_records_of_arrays_show_shapes_and_dtypes():
    params = jl.lstm().init(jax.random.key(0), 3, 5)
    text = "LSTMParams(w_x=float32[3, 4, 5], w_h=float32[5, 4, 5], b=float32[4, 5])"
    assert repr(params) == text
    assert repr({"rnn": params}) == f"{{'rnn': {text}}}"
    assert repr(jl.taps(jl.lstm()).init(jax.random.key(0), 3, 5)) == (
        f"Tapped(params={text}, taps=None)"
    )
    assert (
        repr(jl.LSTMState(0.0, jax.random.key(0))) == "LSTMState(h=0.0, c=key<fry>[])"
    )
    traced = []
    jax.jit(lambda params: traced.append(repr(params)))(params)
    assert traced == [text]
    assert isinstance(params, tuple)
    assert params._replace(b=None).b is None


@pytest.mark.parametrize(
    ("find", "meant"),
    [
        (lambda: jl.LSTM, "jaxlstm has no LSTM; did you mean lstm?$"),
        (lambda: jl.RNN, "did you mean recurrent?$"),
        (lambda: jl.interop.pytorch, "did you mean torch?$"),
        (lambda: jl.lab.trian, "did you mean train or Trained?$"),
        (lambda: jl.zebra, "jaxlstm has no zebra$"),
    ],
)
def test_unknown_names_are_answered_by_known_ones(find, meant):
    with pytest.raises(AttributeError, match=meant.replace("?", r"\?")):
        find()


@pytest.mark.parametrize("cell", [jl.lstm(), jl.learned_initial_state(jl.gru())])
@pytest.mark.parametrize("batch_shape", [4, (4.0,), "4"])
def test_a_batch_shape_is_a_tuple_of_sizes(cell, batch_shape):
    params = cell.init(jax.random.key(0), 2, 3)
    with pytest.raises(ValueError, match=r"batch_shape: got .*, expected a tup"):
        cell.initial_state(params, batch_shape)


@pytest.mark.parametrize("library", ["torch", "keras", "flax", "cudnn", "rtneural"])
def test_a_model_and_its_parameters_in_the_other_order_are_refused(library):
    model = jl.recurrent(jl.lstm(), 3)
    params, _ = model.init(jax.random.key(0), 2)
    with pytest.raises(ValueError, match=r"got LSTMParams.* model, params, in this"):
        getattr(jl.interop, library).dump(params, model)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: jl.lstm(2, 64), "lstm: too many positional .* cell.init"),
        (lambda: jl.gru(features=64), "gru: got an unknown option 'features'; pass si"),
        (lambda: jl.lstm(forget_bia=2.0), "did you mean forget_bias?"),
        (lambda: jl.zoneout(jl.lstm(), 1), "zoneout: too many .*; expected zoneout"),
        (lambda: jl.recurrent(jl.lstm()), "'hidden_size'; expected recurrent.cell, hi"),
        (lambda: jl.linear(size=3, bias=False), "linear: got an unknown option 'bias'"),
    ],
)
def test_calls_with_other_arguments_are_answered_by_the_right_ones(call, message):
    with pytest.raises(TypeError, match=message):
        call()
