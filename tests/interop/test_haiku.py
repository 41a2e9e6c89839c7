"""Parameters of Haiku: i g f o, the forget bias, 1 - z, and modules by their names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlstm as jl
from jaxlstm.interop import haiku as interop
from random_models import MODELS, Options, assert_same_bits, draw, ones

OPTIONS = Options(
    ("lstm", "gru_reset_before", "rnn"), bidirectional=False, activation="relu"
)


@MODELS
def test_loading_what_was_dumped_returns_the_same_bits(count):
    """Random models whose forget biases Haiku can represent; see `test_layout`."""
    rng = np.random.default_rng(69)
    for _ in range(count):
        model, params = draw(rng, OPTIONS)
        for record in jax.tree.leaves(params, is_leaf=is_lstm):
            if is_lstm(record):
                forget = record.b[1]
                forget[:] = rng.integers(8, 32, forget.shape) / 16
        prefix = tuple(params) if isinstance(params, dict) else ""
        got, same = interop.load(interop.dump(model, params), prefix=prefix)
        assert_same_bits(got, params)
        assert same == model


def is_lstm(node) -> bool:
    return isinstance(node, jl.LSTMParams)


def test_the_forget_bias_includes_the_one_that_haiku_adds():
    tree = {"lstm/linear": {"w": np.ones((8, 20), np.float32), "b": np.zeros(20)}}
    params, model = interop.load(tree)
    assert model == jl.recurrent(jl.lstm(), 5)
    assert params.b[:, 0].tolist() == [0, 1, 0, 0]
    assert_same_bits(
        interop.dump(model, params)["lstm/linear"]["b"], 0 * params.b.ravel()
    )


def test_modules_are_told_apart_by_their_names():
    weights = {"w": np.ones((8, 20), np.float32), "b": np.zeros(20, np.float32)}
    assert interop.load({"net/linear": weights})[1] == jl.linear(20)
    assert interop.load({"net/linear": weights}, kind="lstm")[1] == jl.recurrent(
        jl.lstm(), 5
    )
    assert interop.load({"my_lstm/linear": weights})[1] == jl.recurrent(jl.lstm(), 5)
    both = {"a/linear": weights, "a/linear_1": weights}
    with pytest.raises(
        ValueError, match="got 2 layers: a/linear: Linear 8 -> 20; a/lin"
    ):
        interop.load(both)
    with pytest.raises(ValueError, match=r"kind: got 'gru', expected \"lstm\" or"):
        interop.load(both, kind="gru")
    with pytest.raises(ValueError, match=r"w: got shape \[4, 20\], expected \[D \+ H"):
        interop.load({"lstm/linear": {"w": np.ones((4, 20)), "b": np.ones(20)}})
    with pytest.raises(
        ValueError, match="got int, expected the params of a transformed"
    ):
        interop.load(3)


def test_what_haiku_does_not_have_is_refused():
    def refused(model, message):
        params = ones(model)
        with pytest.raises(ValueError, match=rf"^haiku\.dump: .*{message}"):
            interop.dump(model, params)

    refused(jl.recurrent(jl.gru(), 4), "got a GRU with the reset gate after")
    refused(jl.recurrent(jl.simple_rnn(), 4), "got activation='tanh', expected relu")
    refused(jl.stack(jl.lstm(), (4,), bidirectional=True), "runs from the last step")
    refused(jl.recurrent(jl.lstm(), 4, reverse=True), "runs from the last step")


CORES = {
    "LSTM": jl.lstm(),
    "GRU": jl.gru(reset_after=False),
    "VanillaRNN": jl.simple_rnn(activation="relu"),
}


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CORES)
def test_live_cores_in_and_out(name, relaxed):
    haiku = pytest.importorskip("haiku")

    def network(xs):
        xs = haiku.Linear(3)(xs)
        core = haiku.DeepRNN([getattr(haiku, name)(4), getattr(haiku, name)(5)])
        ys, _ = haiku.dynamic_unroll(core, xs, core.initial_state(xs.shape[1]))
        return haiku.Linear(2, name="head")(ys)

    peer = haiku.without_apply_rng(haiku.transform(network))
    xs = jnp.asarray(np.random.default_rng(70).normal(size=(7, 2, 6)), jnp.float32)
    weights = jax.tree.map(lambda w: w + 0.1, peer.init(jax.random.key(0), xs))
    names = {"LSTM": "lstm", "GRU": "gru", "VanillaRNN": "vanilla_rnn"}
    first, second = names[name], f"{names[name]}_1"
    params, model = interop.load(weights, prefix=("linear", first, second, "head"))
    np.testing.assert_allclose(
        model.apply(params, xs)[1], peer.apply(weights, xs), atol=2e-6
    )
    cores = {n: w for n, w in weights.items() if n not in ("linear", "head")}
    stacked, model = interop.load(cores)
    assert model == jl.stack(CORES[name], (4, 5))
    written = interop.dump(model, stacked)
    assert jax.tree.map(jnp.shape, written) == jax.tree.map(jnp.shape, cores)
    assert_same_bits(interop.load(written)[0], stacked)
