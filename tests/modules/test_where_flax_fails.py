"""Cases that the `RNN` of Flax gets wrong or refuses, in nnx and in linen.

Each case has a test of these modules, and one that shows the behaviour of Flax up to
the version `TRIED`.
"""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import ragged
from flax import nnx
from flax.errors import TraceContextError
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from ragged import FEATURES, HIDDEN, LENGTHS, ROWS, TIME, ours, theirs

TRIED = (0, 12, 12)
BATCH = ragged.draw()
CLEAN = np.nan_to_num(BATCH.xs, nan=1.0)

pytestmark = [pytest.mark.thorough, pytest.mark.parametrize("kind", ragged.KINDS)]


@pytest.fixture
def flax_as_tried():
    """Skip newer versions of Flax, and use the default promotion rules of JAX."""
    if tuple(map(int, flax.__version__.split(".")[:3])) > TRIED:
        pytest.skip("a newer Flax may have fixed this")
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def test_a_row_without_steps_keeps_its_carry(kind):
    begin = ours(kind)(CLEAN, return_carry=True)[0]
    carry, ys = ours(kind)(
        BATCH.xs, initial_carry=begin, seq_lengths=LENGTHS, return_carry=True
    )
    assert np.array_equal(carry[0].h[0], begin[0].h[0])
    assert np.array_equal(carry[0].c[0], begin[0].c[0])
    assert (ys[0] == 0).all()


def test_a_row_without_steps_in_flax(kind, flax_as_tried):
    carry, _ = theirs(kind)(CLEAN, seq_lengths=LENGTHS, return_carry=True)
    assert all((leaf[0] != 0).any() for leaf in jax.tree.leaves(carry))


@pytest.mark.parametrize("length", [-1, TIME + 1])
def test_an_invalid_length(kind, length):
    """An error if concrete, NaN in its row if traced."""
    model, lengths = ours(kind), jnp.asarray(LENGTHS).at[1].set(length)
    with pytest.raises(
        ValueError, match=rf"lengths\[1\]: got {length}, expected 0 to 6"
    ):
        model(CLEAN, seq_lengths=lengths)
    ys = jax.jit(lambda lengths: model(CLEAN, seq_lengths=lengths))(lengths)
    assert np.isnan(ys[1]).all()
    assert np.isfinite(np.delete(ys, 1, axis=0)).all()


def test_an_invalid_length_in_flax(kind, flax_as_tried):
    """It is clamped silently."""
    rnn, lengths = theirs(kind), jnp.asarray(LENGTHS)
    (_, right), _ = rnn(CLEAN, seq_lengths=lengths, return_carry=True)
    wrong = lengths.at[1].set(99)
    (_, clamped), _ = rnn(CLEAN, seq_lengths=wrong, return_carry=True)
    assert np.array_equal(clamped, right)


def padding(ys):
    return np.asarray(ys)[np.arange(TIME) >= LENGTHS[:, None]]


def test_outputs_in_padding_are_zero(kind):
    assert (padding(ours(kind)(BATCH.xs, seq_lengths=LENGTHS)) == 0).all()


def test_outputs_in_padding_in_flax(kind, flax_as_tried):
    assert (padding(theirs(kind)(CLEAN, seq_lengths=LENGTHS)) != 0).all()


def gradient(model):
    """Return the gradient of the active outputs, for inputs with NaN in the padding."""
    active = (np.arange(TIME) < LENGTHS[:, None])[..., None]

    def loss(xs):
        return jnp.where(active, model(xs, seq_lengths=LENGTHS), 0.0).sum()

    return jax.jit(jax.grad(loss))(BATCH.xs)


def test_nan_in_padding_leaves_gradients_finite(kind):
    d_xs = gradient(ours(kind))
    assert (padding(d_xs) == 0).all()
    assert np.isfinite(d_xs).all()
    assert (d_xs[1] != 0).all()


def test_nan_in_padding_in_flax(kind, flax_as_tried):
    assert np.isnan(gradient(theirs(kind))[2, 0]).all()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_16_bit_dtypes_are_kept(kind, dtype):
    carry, ys = ours(kind)(jnp.asarray(CLEAN, dtype), return_carry=True)
    assert ys.dtype == carry[0].h.dtype == dtype
    assert carry[0].c.dtype == jnp.float32  # 16 bits cannot accumulate


def test_16_bit_dtypes_in_flax(kind, flax_as_tried):
    assert theirs(kind)(jnp.asarray(CLEAN, jnp.bfloat16)).dtype == jnp.float32


def on_explicit_mesh(model):
    mesh = ragged.explicit()
    with jax.set_mesh(mesh):
        xs = ragged.split(mesh, BATCH._replace(xs=CLEAN)).xs
        return jax.jit(lambda xs: model(xs))(xs)


def test_an_explicit_mesh(kind):
    ys = on_explicit_mesh(ours(kind))
    assert ys.sharding.spec == P("data", None, None)
    np.testing.assert_allclose(ys, ours(kind)(CLEAN), rtol=1e-5, atol=1e-6)


def test_an_explicit_mesh_in_flax(kind, flax_as_tried):
    with pytest.raises(TypeError, match="carry"):
        on_explicit_mesh(theirs(kind))


def in_shard_map(model):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    mapped = jax.shard_map(
        lambda xs: model(xs), mesh=mesh, in_specs=P("data"), out_specs=P("data")
    )
    return jax.jit(mapped)(CLEAN)


def test_shard_map(kind):
    ys = in_shard_map(ours(kind))
    np.testing.assert_allclose(ys, ours(kind)(CLEAN), rtol=1e-5, atol=1e-6)


def test_shard_map_in_flax(kind, flax_as_tried):
    with pytest.raises(TypeError, match="carry"):
        in_shard_map(theirs(kind))


def test_several_batch_axes(kind):
    """Two batch axes with lengths and the carry, and no batch axis."""
    model = ours(kind, return_carry=True)
    carry, ys = model(BATCH.xs, seq_lengths=LENGTHS)
    many, zs = model(
        BATCH.xs.reshape(2, 4, TIME, -1), seq_lengths=LENGTHS.reshape(2, 4)
    )
    assert np.array_equal(zs.reshape(ys.shape), ys)
    assert np.array_equal(many[0].c.reshape(ROWS, HIDDEN), carry[0].c)
    alone, one = model(CLEAN[1])
    assert one.shape == (TIME, HIDDEN)
    np.testing.assert_allclose(alone[0].h, carry[0].h[1], rtol=1e-5, atol=1e-6)


def test_several_batch_axes_in_flax(kind, flax_as_tried):
    xs, lengths = CLEAN.reshape(2, 4, TIME, -1), LENGTHS.reshape(2, 4)
    with pytest.raises(ValueError, match="broadcasting"):
        theirs(kind)(xs, seq_lengths=lengths, return_carry=True)


def test_jit_with_streams_of_an_outer_trace(kind):
    """Without noise nothing is drawn, so the module runs in any trace."""
    model = ours(kind)
    ys = jax.jit(lambda xs: model(xs))(CLEAN)
    np.testing.assert_allclose(ys, model(CLEAN), rtol=1e-5, atol=1e-6)


def test_jit_with_streams_of_an_outer_trace_in_flax(kind, flax_as_tried):
    """nnx fails; the `RNN` of linen has no streams and works."""
    if kind == "linen":
        assert jax.jit(theirs(kind))(CLEAN).shape == (ROWS, TIME, HIDDEN)
        return
    rngs = nnx.Rngs(0)
    rnn = nnx.RNN(nnx.OptimizedLSTMCell(FEATURES, HIDDEN, rngs=rngs), rngs=rngs)
    with pytest.raises(TraceContextError):
        jax.jit(lambda xs: rnn(xs))(CLEAN)
