"""Parameters of Flax: names of linen and nnx, wrappers around cells, live modules."""

import itertools

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from safetensors.numpy import save_file

import jaxlstm as jl
from jaxlstm.interop import files
from jaxlstm.interop import flax as interop
from random_models import MODELS, Options, assert_same_bits, draw, ones

OPTIONS = Options(("lstm", "gru", "rnn"))
APIS = pytest.mark.parametrize(
    "options", [{"api": "linen"}, {"api": "nnx"}, {"api": "nnx", "fused": False}]
)


@MODELS
@APIS
def test_loading_what_was_dumped_returns_the_same_bits(options, count):
    """Random models; the GRU of nnx has no recurrent bias, so that b_h is zero."""
    rng = np.random.default_rng(66)
    for _ in range(count):
        model, params = draw(rng, OPTIONS)
        if options["api"] == "nnx":
            params = without_b_h(params)
        prefix = tuple(params) if isinstance(params, dict) else ""
        got, same = interop.load(interop.dump(model, params, **options), prefix=prefix)
        assert_same_bits(got, params)
        assert same == model


def without_b_h(params):
    def zero(record):
        if getattr(record, "b_h", None) is None:
            return record
        return record._replace(b_h=np.zeros_like(record.b_h))

    is_record = lambda node: hasattr(node, "w_h") or hasattr(node, "table")  # noqa: E731
    mapped = jax.tree.map(zero, params, is_leaf=is_record)
    return (
        {name: mapped[name] for name in params} if isinstance(params, dict) else mapped
    )


def initialised(module, features=3):
    """Variables of a linen module with random biases."""
    variables = module.init(jax.random.key(0), jnp.ones((7, 2, features)))
    rng = np.random.default_rng(67)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) / 2, jnp.float32),
        variables,
    )


CELLS = {
    "LSTMCell": jl.lstm(),
    "OptimizedLSTMCell": jl.lstm(),
    "GRUCell": jl.gru(),
    "SimpleCell": jl.simple_rnn(),
}
KINDS = ("RNN", "Bidirectional", "Sequential")
FAST = {("OptimizedLSTMCell", "Bidirectional"), ("GRUCell", "RNN")}
LIVE = pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param(*c, marks=[] if c in FAST else [pytest.mark.thorough])
        for c in itertools.product(CELLS, KINDS)
    ],
)
XS = np.random.default_rng(68).normal(size=(7, 2, 3)).astype(np.float32)


def assert_equal_outputs(model, params, theirs) -> None:
    np.testing.assert_allclose(model.apply(params, XS)[1], theirs, atol=2e-6)


@LIVE
def test_linen_in_and_out(name, kind, relaxed):
    cell = getattr(linen, name)

    def rnn():
        return linen.RNN(cell(4), time_major=True)

    peer = {
        "RNN": rnn(),
        "Bidirectional": linen.Bidirectional(rnn(), rnn(), time_major=True),
        "Sequential": linen.Sequential([rnn(), rnn()]),
    }[kind]
    variables = initialised(peer)
    params, model = interop.load(variables)
    both = kind == "Bidirectional"
    sizes = (4, 4) if kind == "Sequential" else (4,)
    expected = jl.stack(CELLS[name], sizes, bidirectional=both)
    assert model == (jl.recurrent(CELLS[name], 4) if kind == "RNN" else expected)
    assert_equal_outputs(model, params, peer.apply(variables, XS))
    assert_same_bits({"params": interop.dump(model, params)}, variables)


@LIVE
def test_nnx_in_and_out(name, kind, relaxed):
    """A module, its state and the dict of it give the same; `update` writes it back."""
    rngs = nnx.Rngs(0)

    def rnn(features=3):
        cell = getattr(nnx, name)(features, 4, rngs=rngs)
        return nnx.RNN(cell, time_major=True, rngs=rngs)

    peer = {
        "RNN": rnn,
        "Bidirectional": lambda: nnx.Bidirectional(
            rnn(), rnn(), time_major=True, rngs=rngs
        ),
        "Sequential": lambda: nnx.Sequential(rnn(), rnn(4)),
    }[kind]()
    params, model = interop.load(peer)
    assert_same_bits(interop.load(nnx.state(peer))[0], params)
    assert_same_bits(interop.load(nnx.to_pure_dict(nnx.state(peer)))[0], params)
    assert_equal_outputs(model, params, peer(XS))
    other = jax.tree.map(lambda leaf: leaf / 2, params)
    fused = name != "LSTMCell"
    nnx.update(peer, interop.dump(model, other, api="nnx", fused=fused))
    assert_equal_outputs(model, other, peer(XS))


def test_a_module_of_ours_takes_the_place_of_theirs():
    model = jl.stack(jl.lstm(), (4, 4), bidirectional=True)
    ours = jl.modules.nnx.Recurrent(model, 3, rngs=nnx.Rngs(0))
    params, same = interop.load(ours)
    assert same == model
    written = interop.dump(model, params, api="nnx")
    assert_same_bits(interop.load(written)[0], params)


def test_a_model_around_the_cells(tmp_path):
    class Model(linen.Module):
        @linen.compact
        def __call__(self, tokens):
            xs = linen.Embed(9, 3)(tokens)
            xs = linen.RNN(linen.OptimizedLSTMCell(4))(xs)
            return linen.Dense(2)(linen.LayerNorm()(xs))

    variables = Model().init(jax.random.key(0), jnp.ones((2, 5), int))
    message = (
        r"got 3 layers: .*Embed_0: Embedding \[9, 3\]; .*; other arrays: "
        r"LayerNorm_0/bias, LayerNorm_0/scale; pass prefix='OptimizedLSTMCell_0' for "
    )
    with pytest.raises(ValueError, match=message):
        interop.load(variables)
    _, model = interop.load(variables, prefix="OptimizedLSTMCell_0")
    assert model == jl.recurrent(jl.lstm(), 4)
    names = ("Embed_0", "OptimizedLSTMCell_0", "Dense_0")
    params, model = interop.load(variables, prefix=names)
    assert list(params) == list(names)
    assert model.apply(params, np.zeros((5, 2), int))[1].shape == (5, 2, 2)
    path = tmp_path / "weights.safetensors"
    flat = files.flatten(flax.core.unfreeze(variables), "/")
    save_file({name: np.asarray(leaf) for name, leaf in flat.items()}, path)
    assert_same_bits(interop.load(path, prefix=names)[0], params)


def lstm(**changes):
    tree = {f"i{gate}": {"kernel": np.ones((3, 4))} for gate in "ifgo"}
    tree |= {
        f"h{gate}": {"kernel": np.ones((4, 4)), "bias": np.ones(4)} for gate in "ifgo"
    }
    return tree | changes


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (lstm(ii={"kernel": np.ones(3)}), "params: ii: expected a kernel of two axes"),
        (lstm(ii={"kernel": np.ones((3, 5))}), "w_x and w_h: got 17 and 16 for the"),
        (
            lstm(hf={"kernel": np.ones((4, 4))}),
            "got biases in hi, hg, ho, expected them",
        ),
        (
            lstm(ii={"kernel": np.ones((3, 4)), "bias": np.ones(4)}),
            "got biases in ii, expected them in none",
        ),
        ({"rnn": {"x": np.ones(3)}}, "got rnn/x; expected the weights of an LSTM"),
        (
            {k: {"kernel": np.ones((3, 3))} for k in ("if", "in", "hf", "hn")},
            "params: got an MGUCell, expected an LSTM",
        ),
        (
            {k: {"kernel": np.ones((3, 7))} for k in ("dense_i", "dense_h")},
            "dense_h: got a kernel of 7 columns, expected 4, 3 or 1 times its 3 rows",
        ),
        (
            {"a": {"forward_rnn": {"cell": lstm()}}},
            "a/forward_rnn: expected both forward_rnn and backward_rnn",
        ),
    ],
)
def test_wrong_parameters_are_named(tree, message):
    with pytest.raises(ValueError, match=rf"^flax\.load: .*{message}"):
        interop.load(tree)


def test_what_flax_does_not_have_is_refused():
    def refused(model, message, **options):
        params = ones(model)
        with pytest.raises(ValueError, match=rf"^flax\.dump: .*{message}"):
            interop.dump(model, params, **options)

    refused(jl.recurrent(jl.projected_lstm(2), 4), "got an LSTM with a projection")
    refused(jl.recurrent(jl.gru(reset_after=False), 4), "got a GRU with the reset gate")
    refused(jl.recurrent(jl.gru(), 4), "the cell has no bias b_h", api="nnx")
    refused(jl.recurrent(jl.lstm(), 4, reverse=True), r"got jl\.recurrent\(reverse=Tr")
    refused(jl.recurrent(jl.lstm(), 4), "api: got 'haiku', expected", api="haiku")
    with pytest.raises(
        ValueError, match="got int, expected params of linen, an nnx mod"
    ):
        interop.load(3)
