"""State_dicts of torch: names, shapes and sums of biases, and live modules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import jaxlstm as jl
from jaxlstm.interop import torch as interop
from random_models import MODELS, Options, assert_same_bits, draw, ones

OPTIONS = Options(("lstm", "projected", "gru", "rnn"), equal_sizes=True)


def prefix_of(model_params):
    return tuple(model_params) if isinstance(model_params, dict) else ""


@MODELS
def test_loading_what_was_dumped_returns_the_same_bits(count):
    """Random models: stacks, directions, projections, embeddings and heads."""
    rng = np.random.default_rng(61)
    for _ in range(count):
        model, params = draw(rng, OPTIONS)
        prefix = prefix_of(params)
        got, same = interop.load(interop.dump(model, params), prefix=prefix)
        assert_same_bits(got, params)
        assert same == model


def lstm(prefix="", *, inputs=3, hidden=5, layers=1, reverse=False, bias=True):
    """A state_dict of an nn.LSTM."""
    rng, arrays = np.random.default_rng(62), {}
    for n in range(layers):
        for way in ("", "_reverse")[: 1 + reverse]:
            size = hidden * (1 + reverse) if n else inputs
            shapes = {
                "weight_ih": (4 * hidden, size),
                "weight_hh": (4 * hidden, hidden),
            }
            if bias:
                shapes |= {"bias_ih": (4 * hidden,), "bias_hh": (4 * hidden,)}
            for name, shape in shapes.items():
                arrays[f"{prefix}{name}_l{n}{way}"] = rng.normal(size=shape)
    return {name: array.astype(np.float32) for name, array in arrays.items()}


HEAD = {"fc.weight": np.ones((2, 5), np.float32), "fc.bias": np.ones(2, np.float32)}
TABLE = {"embed.weight": np.ones((9, 3), np.float32)}


def test_kind_layers_and_directions_are_read_from_names_and_shapes():
    params, model = interop.load(lstm(layers=2, reverse=True))
    assert model == jl.stack(jl.lstm(), (5, 5), bidirectional=True)
    assert params[1].backward.w_x.shape == (10, 4, 5)
    params, model = interop.load(lstm(bias=False))
    assert model == jl.recurrent(jl.lstm(), 5)
    assert not params.b.any()


def test_a_cell_has_names_without_a_layer():
    arrays = {name.removesuffix("_l0"): array for name, array in lstm().items()}
    params, model = interop.load(arrays)
    assert_same_bits(params, interop.load(lstm())[0])
    assert model == jl.recurrent(jl.lstm(), 5)


def test_files_of_arrays(tmp_path):
    arrays = lstm("rnn.") | HEAD
    expected, _ = interop.load(arrays, prefix=("rnn", "fc"))
    np.savez(tmp_path / "net.npz", **arrays)
    save_file(arrays, tmp_path / "net.safetensors")
    for name in "net.npz", "net.safetensors":
        params, model = interop.load(tmp_path / name, prefix=("rnn", "fc"))
        assert_same_bits(params, expected)
        assert model == jl.serial(rnn=jl.recurrent(jl.lstm(), 5), fc=jl.linear(2))


def test_several_layers_are_listed_and_chosen_by_prefix():
    arrays = TABLE | lstm("lstm.") | HEAD
    message = (
        r"torch\.load: got 3 layers: embed: Embedding, or Linear without bias, \[9, 3\]"
        r"; lstm: LSTM 3 -> 5; fc: Linear 5 -> 2; pass prefix='lstm' for one of them, "
        r"or prefix=\('embed', 'lstm', 'fc'\), in the order of the model, for sev"
    )
    with pytest.raises(ValueError, match=message):
        interop.load(arrays)
    params, model = interop.load(arrays, prefix="lstm")
    assert_same_bits(params, interop.load(lstm())[0])
    params, model = interop.load(arrays, prefix=("embed", "lstm", "fc"))
    assert list(params) == ["embed", "lstm", "fc"]
    assert model == jl.serial(
        embed=jl.embed(9, 3), lstm=jl.recurrent(jl.lstm(), 5), fc=jl.linear(2)
    )
    tokens = np.array([[1], [2]])
    assert model.apply(params, tokens)[1].shape == (2, 1, 2)
    head, layer = interop.load(arrays, prefix="fc.")
    assert layer == jl.linear(2)
    assert head.w.shape == (5, 2)


def test_a_message_names_some_of_many_layers():
    arrays = {f"head{n}.weight": np.ones((2, 5)) for n in range(20)} | lstm("rnn.")
    with pytest.raises(
        ValueError, match=r"got 21 layers: rnn: .*; 13 more; pass prefix"
    ):
        interop.load(arrays)
    with pytest.raises(
        ValueError, match="prefix: got 'rnn' twice, expected each layer"
    ):
        interop.load(arrays, prefix=("rnn", "rnn"))


def test_names_of_layers_are_unique_identifiers():
    arrays = lstm("a.b.", inputs=3) | lstm("a_b.", inputs=5) | lstm("0.", inputs=5)
    params, _ = interop.load(arrays, prefix=("a.b", "a_b", "0"))
    assert list(params) == ["b", "a_b", "layer_0"]
    arrays = lstm("x.rnn.", inputs=3) | lstm("y.rnn.", inputs=5)
    params, _ = interop.load(arrays, prefix=("x.rnn", "y.rnn"))
    assert list(params) == ["x_rnn", "y_rnn"]


def test_a_checkpoint_with_more_than_weights():
    """Nested dicts, numbers and the state of an optimizer are not in the way."""
    state = {0: {"step": 3.0, "exp_avg": np.ones((20, 3))}}
    checkpoint = {"model": lstm("rnn."), "optimizer": {"state": state}, "epoch": 4}
    params, _ = interop.load(checkpoint, prefix="model")
    assert_same_bits(params, interop.load(lstm())[0])
    message = r"other arrays: optimizer\.state\.0\.exp_avg; pass prefix='model\.rnn'\.$"
    with pytest.raises(ValueError, match=message):
        interop.load(checkpoint)
    assert_same_bits(interop.load(checkpoint, prefix="rnn")[0], params)
    with pytest.raises(ValueError, match="prefix: got 'lstm', expected one of: model"):
        interop.load(checkpoint, prefix="lstm")


def test_a_weight_without_bias_is_decided_by_kind_or_neighbours():
    arrays = {"a.weight": np.ones((3, 3), np.float32)}
    with pytest.raises(ValueError, match=r"which may be .* pass kind=\"embedding\" or"):
        interop.load(arrays, prefix="a")
    assert interop.load(arrays, prefix="a", kind="embedding")[1] == jl.embed(3, 3)
    params, model = interop.load(arrays, prefix="a", kind="linear")
    assert model == jl.linear(3)
    assert params.b.tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match="kind: got 'table'"):
        interop.load(arrays, prefix="a", kind="table")
    head = {"out.weight": np.ones((2, 5), np.float32)}
    both = interop.load(TABLE | lstm("rnn.") | head, prefix=("embed", "rnn", "out"))
    assert both[1] == jl.serial(
        embed=jl.embed(9, 3), rnn=jl.recurrent(jl.lstm(), 5), out=jl.linear(2)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight_hh_l0": None}, "weight_hh_l0 is missing"),
        ({"bias_hh_l0": None}, "bias_hh_l0 is missing"),
        ({"weight_hh_l0": np.ones((21, 5))}, r"weight_hh_l0: got shape \[21, 5\], exp"),
        (
            {"weight_hh_l0": np.ones(20)},
            r"weight_hh_l0: got shape \[20\], expected two",
        ),
        ({"weight_ih_l0": np.ones((15, 3))}, "l0: weight_ih and weight_hh: got 15 and"),
        ({"bias_ih_l0": np.ones(5)}, r"l0: bias_ih: got shape \[5\], expected \[20\]"),
        ({"weight_ih_l2": np.ones((20, 5))}, "weight_ih_l1 is missing"),
        ({"weight_ih_l0_reverse": np.ones((20, 3))}, "weight_hh_l0_reverse is missing"),
        ({"weight_hr_l0": np.ones((2, 5))}, r"l0: weight_hr: got shape \[2, 5\], expe"),
        (
            {"weight_ih_l0": np.ones((20, 3), int)},
            "l0: weight_ih: got dtype int64, exp",
        ),
        ({"weight_ih_l999999999": np.ones((20, 5))}, "weight_ih_l1 is missing"),
    ],
)
def test_wrong_arrays_are_named(change, message):
    arrays = {n: a for n, a in (lstm() | change).items() if a is not None}
    with pytest.raises(ValueError, match=f"^torch.load: state_dict: {message}"):
        interop.load(arrays)


def test_a_parametrized_weight_is_explained():
    arrays = lstm("rnn.")
    arrays["rnn.weight_hh_l0_g"] = arrays.pop("rnn.weight_hh_l0")
    message = "rnn: weight_hh_l0 is missing, and rnn.weight_hh_l0_g is there; remove"
    with pytest.raises(ValueError, match=message):
        interop.load(arrays)


def test_layers_that_do_not_fit_are_named():
    arrays = lstm(layers=2) | {"weight_ih_l1": np.ones((20, 4), np.float32)}
    with pytest.raises(ValueError, match="layer 1: got 4 input features, expected 5"):
        interop.load(arrays)


def test_sources_of_other_types_are_refused():
    with pytest.raises(
        ValueError, match="got list, expected a state_dict, a module or"
    ):
        interop.load([])
    with pytest.raises(ValueError, match="got no arrays; expected the weights of"):
        interop.load({})


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (jl.residual(jl.recurrent(jl.lstm(), 3)), r"model: got jl\.residual, expected"),
        (jl.recurrent(jl.zoneout(jl.lstm(), h_rate=0.1), 3), "the cell jl.zoneout"),
        (jl.recurrent(jl.classic_lstm(), 3), "the cell jl.classic_lstm, expected"),
        (jl.recurrent(jl.lstm(), 3, reverse=True), r"jl\.recurrent\(reverse=True\)"),
        (jl.recurrent(jl.gru(reset_after=False), 3), "torch: got a GRU with the reset"),
        (jl.recurrent(jl.peephole_lstm(), 3), "torch: got an LSTM with peepholes"),
        (jl.recurrent(jl.coupled_lstm(), 3), "torch: got an LSTM with coupled gates"),
        (jl.stack(jl.lstm(), (3, 4)), "got layers of 3, 4 hidden units, expected one"),
        (jl.stack(jl.lstm(), (3, 3), residual=True), "expected residual=False"),
        (jl.recurrent(jl.lstm(gate_activation="hard_sigmoid"), 3), "expected sigmoid"),
        (jl.recurrent(jl.simple_rnn(activation="elu"), 3), "expected tanh or relu"),
        (
            jl.bidirectional(jl.recurrent(jl.lstm(), 3), jl.recurrent(jl.lstm(), 3)),
            r"the second with reverse=True",
        ),
    ],
)
def test_models_that_torch_does_not_have_are_refused(model, message):
    params = ones(model)
    with pytest.raises(ValueError, match=rf"^torch\.dump: .*{message}"):
        interop.dump(model, params)


def test_wrappers_that_only_draw_noise_are_left_out():
    cell = jl.variational_dropout(jl.lstm(), x_rate=0.1, h_rate=0.1)
    model = jl.serial(
        jl.stack(cell, (3, 3), dropout=0.1), jl.dropout(0.2), jl.linear(2)
    )
    params = ones(model)
    arrays = interop.dump(model, params)
    assert {name.split(".")[0] for name in arrays} == {"0", "2"}
    got, _ = interop.load(arrays, prefix="0")
    assert_same_bits(got, params[0])


def test_functions_have_no_arrays():
    """Positions count them, as those of `nn.Sequential` do."""
    model = jl.serial(jl.linear(4), "relu", jl.linear(2), jnp.tanh)
    rectified = jl.serial(jl.linear(4), "relu", jl.linear(2))
    params, _ = rectified.init(jax.random.key(0), 3)
    params = (*params, ())
    names = ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert list(interop.dump(model, params)) == names
    for library in "keras", "flax", "haiku", "equinox":
        assert len(getattr(jl.interop, library).dump(model, params)) in (2, 4)
    with pytest.raises(ValueError, match="1: got the function relu, expected layers"):
        jl.interop.rtneural.dump(model, params)
    with pytest.raises(ValueError, match="1: got the function relu, expected layers"):
        jl.interop.reference("flax", model, params)


def test_a_bidirectional_of_two_recurrents_is_one_module():
    one = jl.recurrent(jl.gru(), 4)
    model = jl.bidirectional(one, jl.recurrent(jl.gru(), 4, reverse=True))
    params = ones(model)
    got, _ = interop.load(interop.dump(model, params))
    assert_same_bits(got, (params,))


def test_options_of_dump():
    model = jl.recurrent(jl.lstm(), 3)
    params = ones(model)
    with pytest.raises(ValueError, match="got a bias of 1, expected zeros: the cell"):
        interop.dump(model, params, biases=False)
    params = params._replace(b=0 * params.b)
    arrays = interop.dump(model, params, prefix="net", biases=False)
    assert list(arrays) == ["net.weight_ih_l0", "net.weight_hh_l0"]


@pytest.mark.parametrize(
    ("model", "params", "message"),
    [
        (
            jl.serial(rnn=jl.linear(2)),
            {"head": 1},
            "got dict of head, expected entries f",
        ),
        (jl.serial(jl.linear(2)), (), "got tuple, expected entries for the layers 0"),
        (jl.linear(2), (), "got tuple, expected LinearParams, as init of this model"),
        (
            jl.recurrent(jl.gru(), 3),
            lambda: interop.load(lstm())[0],
            "expected GRUParams",
        ),
        (
            jl.recurrent(jl.lstm(), 3),
            lambda: interop.load(lstm())[0],
            "Params of 3 units",
        ),
        (
            jl.stack(jl.lstm(), (3, 3)),
            (1,),
            "got tuple, expected entries for the layers",
        ),
        (jl.stack(jl.lstm(), (3,)), (1,), "got int, expected LSTMParams of 3 units"),
        (
            jl.stack(jl.lstm(), (3,), bidirectional=True),
            (1,),
            "expected one Pair for bo",
        ),
    ],
)
def test_params_of_another_model_are_refused(model, params, message):
    params = params() if callable(params) else params
    with pytest.raises(ValueError, match=rf"^torch\.dump: .*params: .*{message}"):
        interop.dump(model, params)


def test_params_that_contradict_each_other_are_refused():
    params, model = interop.load(lstm())
    with pytest.raises(
        ValueError, match=r"params: got shapes .* with one size per lett"
    ):
        interop.dump(model, params._replace(w_h=np.ones((4, 4, 5))))
