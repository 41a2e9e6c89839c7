"""The modules of `flax.nnx`: transformations, state, noise and layouts."""

import inspect
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import ragged
from flax import nnx
from flax.errors import TraceContextError
from ragged import FEATURES, HIDDEN, ROWS, TIME, assert_close, assert_equal, pure

import jaxlstm as jl

Recurrent, LSTM = jl.modules.nnx.Recurrent, jl.modules.nnx.LSTM
LAYER = ragged.noisy()
BATCH = ragged.draw()
XS = np.nan_to_num(BATCH.xs)


def build(seed: int = 0, **options) -> Recurrent:
    return Recurrent(LAYER, FEATURES, rngs=nnx.Rngs(seed), **options)


# --- transformations ------------------------------------------------------------------


def test_scan_over_windows_carries_the_state():
    """`nnx.scan` over two windows equals one call over both."""
    model = LSTM(FEATURES, HIDDEN, num_layers=2, rngs=nnx.Rngs(0), return_carry=True)
    windows = XS.reshape(ROWS, 2, TIME // 2, FEATURES)

    @nnx.scan(in_axes=(None, nnx.Carry, 1), out_axes=(nnx.Carry, 1))
    def scanned(model, carry, xs):
        return model(xs, initial_carry=carry)

    carry, ys = scanned(model, model.initialize_carry(XS), windows)
    expected, whole = model(XS)
    assert_close((carry, ys.reshape(whole.shape)), (expected, whole))


def test_scan_over_windows_draws_new_noise():
    """The stream is carried, so each window has different noise."""
    model = LSTM(
        FEATURES, HIDDEN, num_layers=2, dropout=0.5, rngs=nnx.Rngs(0), return_carry=True
    )
    axes = nnx.StateAxes({nnx.RngState: nnx.Carry, ...: None})

    @nnx.scan(in_axes=(axes, nnx.Carry, None), out_axes=(nnx.Carry, 0), length=2)
    def scanned(model, carry, xs):
        return carry, model(xs, initial_carry=carry)[1]

    _, ys = scanned(model, model.initialize_carry(XS), XS)
    assert (ys[0, 1] != ys[1, 1]).any()
    assert model.rngs.count[...] == 2


def test_ensemble_by_vmap():
    """Three models in one, each with its own parameters and stream."""

    @nnx.split_rngs(splits=3)
    @nnx.vmap
    def make(rngs):
        return Recurrent(LAYER, FEATURES, rngs=rngs)

    @nnx.vmap(in_axes=(0, None))
    def call(model, batch):
        return model(batch.xs, seq_lengths=batch.lengths, resets=batch.resets)

    models = make(nnx.Rngs(0))
    assert models.params[0].w_x.shape == (3, FEATURES, 4, HIDDEN)
    assert models.rngs.key.shape == (3,)
    models.eval()
    together = call(models, BATCH)
    for n in range(3):
        own = jax.tree.map(lambda leaf, n=n: leaf[n], pure(models))
        one = ragged.core_loss(LAYER, own, BATCH)
        assert_close(ragged.error(together[n], BATCH.targets), one)
    assert (together[0] != together[1]).any()


def test_traced_once():
    model, calls = build(deterministic=True), []

    @nnx.jit
    def call(model, xs):
        calls.append(xs)
        return model(xs)

    for _ in range(3):
        call(model, XS)
    call(build(1, deterministic=True), XS)  # another model of the same layer
    assert len(calls) == 1


def test_modules_of_equal_options_share_a_graph_definition():
    one, other = (
        nnx.graphdef(LSTM(FEATURES, HIDDEN, num_layers=2, rngs=nnx.Rngs(seed)))
        for seed in (0, 1)
    )
    assert one == other
    assert hash(one) == hash(other)


# --- state ----------------------------------------------------------------------------


def test_paths_are_those_of_the_layer():
    model = LSTM(FEATURES, HIDDEN, num_layers=2, bidirectional=True, rngs=nnx.Rngs(0))
    paths = [path for path, _ in nnx.to_flat_state(nnx.state(model))]
    assert paths == [
        ("params", depth, way, name)
        for depth in (0, 1)
        for way in ("backward", "forward")
        for name in ("b", "w_h", "w_x")
    ]
    assert isinstance(model.params[1].forward.w_x, nnx.Param)


def test_the_signature_is_that_of_the_constructor():
    class Mine(LSTM):
        def __init__(self, size, *, rngs):
            super().__init__(size, size, rngs=rngs)

    for kind, first in ((Recurrent, "layer"), (LSTM, "in_features"), (Mine, "size")):
        names = list(inspect.signature(kind).parameters)
        assert (names[0], names[-1]) == (first, "rngs")
    assert Mine(3, rngs=nnx.Rngs(0))(XS).shape == (ROWS, TIME, 3)


def test_split_and_merge_restore_the_model():
    model = build()
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    again = nnx.merge(graph, params, rest)
    assert_equal(pure(again), pure(model))
    assert type(again.params[0]) is jl.LSTMParams
    one, other = (m(XS, rngs=nnx.Rngs(dropout=1)) for m in (again, model))
    assert_equal(one, other)


def test_a_checkpoint_restores_the_parameters(tmp_path):
    model = build()
    saved = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "step", saved)
    other = build(1)
    state = nnx.state(other, nnx.Param)
    with ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(tmp_path / "step", nnx.to_pure_dict(state))
    nnx.replace_by_pure_dict(state, restored)
    nnx.update(other, state)
    assert_equal(pure(other), pure(model))


def optional() -> jl.Layer:
    """Return a layer with a parameter that is None."""

    def init(key, input_size=None):
        return jl.layers.LinearParams(jax.random.normal(key, (input_size, 2)), None), 2

    def apply(
        params, xs, state=None, *, key=None, lengths=None, mask=None, resets=None
    ):
        return (), xs @ params.w

    return jl.Layer(init, apply)


def test_a_parameter_may_be_none():
    model = Recurrent(optional(), FEATURES, rngs=nnx.Rngs(0))
    assert [path for path, _ in nnx.to_flat_state(nnx.state(model))] == [
        ("params", "w")
    ]
    again = nnx.merge(*nnx.split(model))
    assert_equal(nnx.jit(lambda m, xs: m(xs))(again, XS), jax.jit(model)(XS))


def test_the_module_is_a_pytree():
    """A module without noise holds only parameters, so `jax.grad` applies."""
    model = LSTM(FEATURES, HIDDEN, rngs=nnx.Rngs(0))
    gradients = jax.jit(jax.grad(lambda model: model(XS).sum()))(model)
    assert (gradients.params[0].w_h[...] != 0).all()


def test_abstract_construction():
    model = nnx.eval_shape(lambda: build())
    assert model.params[2].w.shape == (HIDDEN, 2)


# --- noise ----------------------------------------------------------------------------


def test_train_and_eval():
    lstm = LSTM(FEATURES, HIDDEN, num_layers=2, dropout=0.5, rngs=nnx.Rngs(0))
    model = nnx.Sequential(lstm, nnx.Linear(HIDDEN, 2, rngs=nnx.Rngs(1)))
    one, other = lstm(XS), lstm(XS)
    assert (one != other).any()
    model.eval()
    assert_equal(lstm(XS), lstm(XS))
    plain = LSTM(FEATURES, HIDDEN, num_layers=2, rngs=nnx.Rngs(0))
    assert_equal(lstm(XS), plain(XS))
    assert (lstm(XS, deterministic=False) != lstm(XS)).any()
    model.train()
    assert (lstm(XS) != plain(XS)).any()
    assert_equal(lstm(XS, deterministic=True), plain(XS))


def test_the_same_stream_gives_the_same_noise():
    first, second = build(), build()
    assert_equal([first(XS) for _ in range(3)], [second(XS) for _ in range(3)])
    given = [build()(XS, rngs=nnx.Rngs(dropout=7)) for _ in range(2)]
    assert_equal(*given)
    key = nnx.Rngs(dropout=7).dropout()
    assert_equal(build()(XS, rngs=key), given[0])
    assert_equal(build()(XS, rngs=nnx.Rngs(dropout=7).dropout), given[0])
    assert (given[0] != first(XS)).any()


def test_a_key_works_if_the_stream_is_outside_the_trace():
    model, keys = build(), jax.random.split(jax.random.key(0), 2)
    with pytest.raises(TraceContextError):
        jax.jit(lambda xs: model(xs))(XS)
    one, other = jax.jit(jax.vmap(lambda key: model(XS, rngs=key)))(keys)
    assert (one != other).any()
    assert_close(one, model(XS, rngs=keys[0]))


def test_a_stream_of_another_name():
    model = build(rng_collection="noise")
    one = model(XS, rngs=nnx.Rngs(noise=1, dropout=2))
    assert_equal(one, model(XS, rngs=nnx.Rngs(noise=1, dropout=3)))


def test_noise_needs_a_stream():
    model = Recurrent(LAYER, FEATURES, rngs=nnx.Rngs(params=0))
    with pytest.raises(
        ValueError, match=r"^rngs: got no stream 'dropout' in a module with noise"
    ):
        model(XS)
    assert model(XS, deterministic=True).shape == (ROWS, TIME, 2)
    assert model(XS, rngs=nnx.Rngs(dropout=1)).shape == (ROWS, TIME, 2)


@pytest.mark.parametrize(
    "cell",
    [
        jl.zoneout(jl.lstm(), h_rate=0.5, c_rate=0.5),
        jl.variational_dropout(jl.lstm(), x_rate=0.5, h_rate=0.5),
    ],
    ids=["zoneout", "variational"],
)
def test_a_stochastic_cell_draws_from_the_stream(cell):
    model = LSTM(FEATURES, HIDDEN, cell=cell, rngs=nnx.Rngs(0))
    call = nnx.jit(lambda model: model(XS))
    one, other = call(model), call(model)
    assert (one != other).any()
    key = nnx.clone(LSTM(FEATURES, HIDDEN, cell=cell, rngs=nnx.Rngs(0))).rngs()
    expected = jax.jit(model.layer.apply)(pure(model), XS.swapaxes(0, 1), key=key)[1]
    assert_close(one, expected.swapaxes(0, 1))
    model.eval()
    assert_equal(call(model), call(model))


def test_a_cell_without_noise_draws_no_key():
    cell = jl.clip_cell(jl.learned_initial_state(jl.lstm()), 3.0)
    model = LSTM(FEATURES, HIDDEN, cell=cell, rngs=nnx.Rngs(0))
    assert model.rngs is None
    assert ("params", 0, "state", "c") in dict(nnx.to_flat_state(nnx.state(model)))


# --- layouts and errors ---------------------------------------------------------------


def test_time_major_equals_batch_major():
    model = LSTM(FEATURES, HIDDEN, rngs=nnx.Rngs(0))
    other = LSTM(FEATURES, HIDDEN, rngs=nnx.Rngs(0), time_major=True)
    active = np.arange(TIME) < BATCH.lengths[:, None]
    ys = model(XS, mask=active, resets=BATCH.resets)
    zs = other(XS.swapaxes(0, 1), mask=active.T, resets=BATCH.resets.T)
    assert_close(ys, zs.swapaxes(0, 1))
    assert_close(ys, model(XS, seq_lengths=BATCH.lengths, resets=BATCH.resets))
    assert other.initialize_carry(XS.swapaxes(0, 1))[0].h.shape == (ROWS, HIDDEN)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("cell", "space"),
    [(jl.gru(), ()), (jl.projected_lstm(4), ()), (jl.conv_lstm((3, 3)), (4, 2))],
    ids=["gru", "projected", "convolutional"],
)
def test_other_cells(cell, space):
    """Two layers on ragged rows, with time between batch and spatial axes."""
    model = LSTM(FEATURES, HIDDEN, num_layers=2, cell=cell, rngs=nnx.Rngs(0))
    xs = np.random.default_rng(0).normal(size=(2, TIME, *space, FEATURES))
    xs = xs.astype(np.float32)
    carry, ys = model(xs, seq_lengths=np.array([TIME, 2]), return_carry=True)
    params = pure(model)
    expected, hs = model.layer.apply(params, xs[1, :2])
    assert_close(ys[1, :2], hs)
    assert_close(jax.tree.map(lambda leaf: leaf[1], carry), expected)
    assert (ys[1, 2:] == 0).all()


def test_tokens_have_no_features():
    layer = jl.serial(jl.embed(10, FEATURES), jl.recurrent(jl.lstm(), HIDDEN))
    model = Recurrent(layer, feature_axes=0, rngs=nnx.Rngs(0))
    assert model(np.zeros((2, 4, TIME), np.int32)).shape == (2, 4, TIME, HIDDEN)
    assert model.initialize_carry(np.zeros((4, TIME), np.int32))[1].h.shape == (4, 5)


def test_outputs_of_a_reversed_layer_stay_at_their_steps():
    """As with `keep_order` in Flax."""
    layer = jl.recurrent(jl.lstm(), HIDDEN, reverse=True)
    model = Recurrent(layer, FEATURES, rngs=nnx.Rngs(0), return_carry=True)
    carry, ys = model(XS, seq_lengths=BATCH.lengths)
    nonempty = BATCH.lengths > 0
    assert_equal(carry.h[nonempty], ys[nonempty, 0])
    forward = Recurrent(jl.recurrent(jl.lstm(), HIDDEN), FEATURES, rngs=nnx.Rngs(0))
    assert_close(ys[1], forward(XS[1, ::-1])[::-1])


def test_invalid_arguments_are_errors():
    model = LSTM(FEATURES, HIDDEN, rngs=nnx.Rngs(0))
    frame = np.zeros((TIME, ROWS), bool)
    with pytest.raises(
        ValueError, match=r"resets: got shape \[6, 8\], expected \[8, 6\]"
    ):
        model(XS, resets=frame)
    with pytest.raises(
        ValueError, match=r"mask: got shape \[6, 8\], expected \[8, 6\]"
    ):
        model(XS, mask=frame)
    with pytest.raises(
        ValueError, match=r"inputs: got shape \[3\], expected at least 2"
    ):
        model(XS[0, 0])
    with pytest.raises(
        ValueError, match=r"inputs: got shape \[3\], expected at least 2"
    ):
        model.initialize_carry(XS[0, 0])
    with pytest.raises(ValueError, match="xs: got 2 features, expected"):
        model(XS[..., :2])
    with pytest.raises(ValueError, match="xs: got a masked array"):
        model(np.ma.masked_invalid(BATCH.xs))
    with pytest.raises(ValueError, match="inputs: got no array of numbers"):
        model([[[1.0]], [[1.0], [2.0]]])
    with pytest.raises(ValueError, match=r"layer: got lstm\(\), expected a Layer"):
        Recurrent(jl.lstm(), FEATURES, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="num_layers: got 0, expected an integer"):
        LSTM(FEATURES, HIDDEN, num_layers=0, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="hidden_size: got 0, expected an integer"):
        LSTM(FEATURES, 0, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"^stack: dropout: got 1\.0"):
        LSTM(FEATURES, HIDDEN, dropout=1.0, rngs=nnx.Rngs(0))


def test_the_library_does_not_import_flax():
    code = """if True:
        import sys, jaxlstm as jl
        jl.stack(jl.lstm(), (3,))
        assert "flax" not in sys.modules
        jl.modules.nnx.LSTM, jl.modules.linen.LSTM
        """
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize("noise", [{"dropout": 0.5}, {"cell": "zoneout"}])
def test_view_sets_deterministic_as_for_the_dropout_of_flax(noise):
    if "cell" in noise:
        noise = {"cell": jl.zoneout(jl.lstm(), h_rate=0.5)}

    class Model(nnx.Module):
        def __init__(self):
            self.rnn = jl.modules.nnx.LSTM(
                3, 5, num_layers=2, rngs=nnx.Rngs(0), **noise
            )
            self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))

        def __call__(self, xs):
            return self.dropout(self.rnn(xs))

    view, xs = nnx.view(Model(), deterministic=True), jnp.ones((4, 7, 3))
    assert np.array_equal(view(xs), view(xs))
    assert view.rnn.deterministic


def test_paths_of_named_layers_contain_the_names():
    layer = jl.serial(rnn=jl.stack(jl.lstm(), (5, 4)), head=jl.linear(2))
    model = jl.modules.nnx.Recurrent(layer, 3, rngs=nnx.Rngs(0))
    paths = [path for path, _ in nnx.to_flat_state(nnx.state(model))]
    assert ("params", "head", "w") in paths
    assert ("params", "rnn", 0, "w_x") in paths
    xs = jax.random.normal(jax.random.key(1), (4, 7, 3))
    carry, ys = model(xs, return_carry=True)
    assert carry["rnn"][1].h.shape == (4, 4)
    params, _ = layer.init(nnx.Rngs(0).params(), 3)
    expected = jnp.moveaxis(layer.apply(params, jnp.moveaxis(xs, 1, 0))[1], 0, 1)
    np.testing.assert_array_equal(ys, expected)
    gradients = nnx.grad(lambda model: jnp.sum(model(xs) ** 2))(model)
    assert float(jnp.abs(gradients["params"]["head"]["w"][...]).max()) > 0


def test_a_step_mask_has_time_first():
    model = LSTM(FEATURES, HIDDEN, rngs=nnx.Rngs(0))
    call = model
    mask = jl.StepMask.from_lengths(BATCH.lengths, TIME)
    mask = mask._replace(resets=jnp.asarray(BATCH.resets.T))
    expected = call(XS, seq_lengths=BATCH.lengths, resets=BATCH.resets)
    assert_equal(call(XS, mask=mask), expected)
    with pytest.raises(ValueError, match=r"mask\.active: got shape \[8, 6\], expected"):
        call(XS, mask=jl.StepMask(active=mask.active.T))
