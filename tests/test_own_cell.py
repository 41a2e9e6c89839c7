"""A cell defined by a user works with layers, wrappers, masks and training.

The minimal gated unit, which is not in the library: Zhou, Wu, Zhang and Zhou, "Minimal
gated unit for recurrent neural networks", 2016, https://arxiv.org/abs/1603.09420
"""

import inspect
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import jaxlstm as jl
from cases import assert_same, same_bits
from jaxlstm.lab.config import schema
from jaxlstm.lab.data import Batch, Streams
from jaxlstm.lab.tasks import Losses
from jaxlstm.lab.tasks import get as get_task
from jaxlstm.lab.training import loop as training
from jaxlstm.lab.training import state as training_state

T, B, D, H = 6, 4, 3, 5


@pytest.fixture(autouse=True)
def default_promotion():
    """Use the default promotion rules of JAX, as in a notebook of a user."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


# -- the code of a user ------------------------------------------------------------
#
#    f = σ(W_f x + U_f h + b_f)        g = tanh(W_g x + U_g (f ⊙ h) + b_g)
#    h = (1 - f) ⊙ h + f ⊙ g


class State(NamedTuple):
    h: jax.Array


def init(key, input_size, hidden_size, *, dtype=jnp.float32):
    draw, keys = jax.nn.initializers.lecun_normal(), jax.random.split(key, 4)
    w = [draw(k, (input_size, hidden_size), dtype) for k in keys[:2]]
    u = [draw(k, (hidden_size, hidden_size), dtype) for k in keys[2:]]
    return {"w": w, "u": u, "b": jnp.zeros((2, hidden_size), dtype)}


def initial_state(params, batch_shape=(), *, dtype=None):
    return State(jnp.zeros((*batch_shape, len(params["u"][0])), dtype))


def project(params, x):
    return [x @ w + b for w, b in zip(params["w"], params["b"], strict=True)]


def step(params, state, z):
    f = jax.nn.sigmoid(z[0] + state.h @ params["u"][0])
    g = jnp.tanh(z[1] + (f * state.h) @ params["u"][1])
    return State((1 - f) * state.h + f * g), f


MGU = jl.Cell(init, initial_state, project, step)

# -- end of the code of a user -----------------------------------------------------


def tied(key, input_size, hidden_size, *, dtype=jnp.float32):
    """Return parameters that contain one array twice."""
    params = init(key, input_size, hidden_size, dtype=dtype)
    return params | {"u": [params["u"][0]] * 2}


def problem(dtype=jnp.float32):
    params = MGU.init(jax.random.key(0), D, H, dtype=dtype)
    xs = jax.random.normal(jax.random.key(1), (T, B, D), dtype)
    state = State(jax.random.normal(jax.random.key(2), (B, H), dtype))
    return params, xs, state


def loop(params, xs, state=None):
    """Return the last state and the outputs, computed in NumPy step by step."""
    h = np.zeros(H) if state is None else np.asarray(state)
    (w_f, w_h), (u_f, u_h), (b_f, b_h) = (params[name] for name in "wub")
    hs = []
    for x in xs:
        f = 1 / (1 + np.exp(-(x @ w_f + h @ u_f + b_f)))
        h = (1 - f) * h + f * np.tanh(x @ w_h + (f * h) @ u_h + b_h)
        hs.append(h)
    return h, np.array(hs).reshape(-1, H)


def test_the_cell_has_at_most_twenty_lines():
    sources = [inspect.getsource(part) for part in (State, *MGU[:4])]
    lines = [line for source in sources for line in source.splitlines() if line.strip()]
    assert len(lines) + 1 <= 20  # the +1 is the line that creates the cell


@pytest.mark.parametrize(
    "reverse", [True, pytest.param(False, marks=pytest.mark.combinations)]
)
def test_lengths(reverse, x64):
    params, xs, state = problem(jnp.float64)
    lengths = np.array([0, 2, T, 5])
    poisoned = xs.at[np.arange(T)[:, None] >= lengths].set(jnp.nan)
    last, hs = jl.unroll(MGU, params, poisoned, state, lengths=lengths, reverse=reverse)
    for row, n in enumerate(lengths):
        there = xs[:n, row][::-1] if reverse else xs[:n, row]
        h, expected = loop(params, there, state.h[row])
        assert_same(last.h[row], h)
        assert_same(hs[:n, row], expected[::-1] if reverse else expected)
        assert not hs[n:, row].any()


def test_mask_and_resets(x64):
    params, xs, state = problem(jnp.float64)
    mask = np.array([1, 0, 1, 1, 0, 1], bool)
    resets = np.arange(T) == 3
    each = [np.repeat(row[:, None], B, 1) for row in (mask, resets)]
    last, hs = jl.unroll(MGU, params, xs, state, mask=each[0], resets=each[1])
    for row in range(B):
        _, before = loop(params, xs[[0, 2], row], state.h[row])
        h, after = loop(params, xs[[3, 5], row])
        assert_same(last.h[row], h)
        assert_same(hs[mask, row], np.concatenate([before, after]))


def test_streaming_and_emit():
    params, xs, state = problem()
    last, hs = jl.unroll(MGU, params, xs, state)
    half, first = jl.unroll(MGU, params, xs[:2], state)
    assert same_bits(jl.unroll(MGU, params, xs[2:], half), (last, hs[2:]))
    assert same_bits(first, hs[:2])
    trace = jl.unroll(MGU, params, xs, state, emit=jl.emit.trace)[1]
    assert trace.gates.shape == (T, B, H)
    assert same_bits(trace.state.h, hs)


@pytest.mark.thorough
def test_a_bidirectional_stack():
    layer = jl.stack(MGU, (H, H), bidirectional=True, dropout=0.1)
    params, size = layer.init(jax.random.key(0), D)
    xs = problem()[1]
    lengths = jnp.array([1, 2, 3, 6])
    state, ys = layer.apply(params, xs, lengths=lengths, key=jax.random.key(1))
    assert (ys.shape, size) == ((T, B, 2 * H), 2 * H)
    assert state[0].backward.h.shape == (B, H)
    end, _ = jl.unroll(MGU, params[0].backward, xs, lengths=lengths, reverse=True)
    assert same_bits(state[0].backward, end)


@pytest.mark.thorough
def test_transformations(x64):
    params, xs, state = problem(jnp.float64)
    lengths = jnp.array([0, 2, T, 5])

    def loss(params):
        last, hs = jl.unroll(MGU, params, xs, state, lengths=lengths)
        return (hs**2).sum() + last.h.sum()

    gradient = jax.jit(jax.grad(loss))(params)
    tangent = jax.tree.map(jnp.ones_like, params)
    slope = jax.jvp(loss, (params,), (tangent,))[1]
    assert_same(slope, sum(leaf.sum() for leaf in jax.tree.leaves(gradient)), 1e-10)

    curve = jax.jvp(jax.grad(loss), (params,), (tangent,))[1]
    ahead, behind = (
        jax.grad(loss)(jax.tree.map(lambda leaf, by=by: leaf + by, params))
        for by in (1e-5, -1e-5)
    )
    differences = jax.tree.map(lambda a, b: (a - b) / 2e-5, ahead, behind)
    assert_same(curve, differences, 1e-6)

    rows = jax.vmap(lambda x: jl.unroll(MGU, params, x)[1], 1, 1)(xs)
    assert_same(rows, jl.unroll(MGU, params, xs)[1])
    several = jax.tree.map(lambda leaf: jnp.stack([leaf, -leaf]), params)
    each = jax.vmap(lambda params: jl.unroll(MGU, params, xs)[1])(several)
    assert_same(each[0], jl.unroll(MGU, params, xs)[1])


def test_rows_over_an_explicit_mesh():
    params, xs, _ = problem()
    mesh = jax.make_mesh((4,), ("rows",))

    def loss(params, xs):
        return (jl.unroll(MGU, params, xs)[1] ** 2).sum()

    expected = jax.value_and_grad(loss)(params, xs)
    with jax.set_mesh(mesh):
        placed = jax.device_put(xs, jax.NamedSharding(mesh, P(None, "rows", None)))
        everywhere = jax.device_put(params, jax.NamedSharding(mesh, P()))
        got = jax.jit(jax.value_and_grad(loss))(everywhere, placed)
        hs = jl.unroll(MGU, everywhere, placed)[1]
    assert_same(jax.device_get(got), expected, 1e-5)
    assert jax.typeof(hs).sharding.spec[1] == "rows"


def test_wrappers():
    params, xs, state = problem()
    cell = jl.zoneout(MGU, h_rate=0.5)
    _, hs = jl.unroll(cell, params, xs, state, key=jax.random.key(0))
    kept = np.mean(np.asarray(hs[1:] == hs[:-1]))
    assert 0.3 < kept < 0.7
    learned = jl.learned_initial_state(MGU)
    params_of_learned = learned.init(jax.random.key(0), D, H)._replace(
        state=State(jnp.ones(H))
    )
    start = State(jnp.ones((B, H)))
    expected = jl.unroll(MGU, params_of_learned.params, xs, start)
    assert_same(jl.unroll(learned, params_of_learned, xs), expected, 1e-6)
    with pytest.raises(ValueError, match="takes no edit"):
        jl.variational_dropout(MGU, h_rate=0.5)


def test_training_in_lab():
    """A periodic text is learnt: the loss falls from log(8) nats to almost 0."""
    tokens = np.tile(np.random.default_rng(0).permutation(8), 400).astype(np.int32)
    options = schema.LanguageModelTraining(
        steps=120, batch_size=4, window=16, steps_per_dispatch=20, log_every=20,
        validate_every=60, checkpoint_every=120,
    )  # fmt: skip
    streams = Streams(tokens, batch_size=4, window=16, seed=0)
    cell = jl.zoneout(MGU._replace(init=tied), h_rate=0.05)
    model = jl.serial(jl.embed(8, 6), jl.recurrent(cell, 12), jl.linear(8))
    optimizer = optax.adam(0.03)
    losses = []

    def log(step, loss, numbers, pace):
        losses.append(loss)

    task = get_task("language_modelling")
    dataset = SimpleNamespace(
        batch=streams.batch, batches=streams.batches, batch_axes=Batch(1, 1, 1)
    )
    listener = training.Listener(log, lambda seconds: None, lambda: False)
    losses_like = Losses(np.zeros((16, 4)))
    job = training.Job(
        task, model, optimizer, dataset, options, None, listener, (), print, losses_like
    )
    state = training_state.initial_state(
        task, model, optimizer, streams.batch(0), seed=0
    )
    assert training.fit(job, state, training.LoopState())
    assert losses[-1] < 0.1 < 0.5 < losses[0]


# -- error messages ----------------------------------------------------------------


def test_a_state_without_h_is_refused_unless_emit_is_given():
    Other = NamedTuple("Other", [("s", jax.Array)])  # noqa: UP014

    def begin(params, batch_shape=(), *, dtype=None):
        return Other(initial_state(params, batch_shape, dtype=dtype).h)

    def go(params, state, z):
        after, f = step(params, State(state.s), z)
        return Other(after.h), f

    cell = jl.Cell(init, begin, project, go)
    params, xs, _ = problem()
    with pytest.raises(ValueError, match=r"^unroll: .*Other without a field h.*emit="):
        jl.unroll(cell, params, xs)
    with pytest.raises(ValueError, match=r"^recurrent: .*Other without a field h"):
        jl.recurrent(cell, H).init(jax.random.key(0), D)
    last, ss = jl.unroll(cell, params, xs, emit=lambda state, gates: state.s)
    assert_same((last.s, ss), jl.unroll(MGU, params, xs), 1e-6)


@pytest.mark.parametrize(
    ("after", "sentence"),
    [
        (lambda h: State(h.astype(jnp.bfloat16)), r"state\.h, bfloat16 .*float32"),
        (lambda h: State(h[..., :2]), r"state\.h, float32 \[4, 2\], .*\[4, 5\]"),
        (lambda h: (h,), r"cell\.step: got \(.*without state\.h, expected State\(h\)"),
    ],
)
def test_a_step_that_returns_another_state_is_refused(after, sentence):
    def go(params, state, z):
        return after(step(params, state, z)[0].h), None

    params, xs, _ = problem()
    with pytest.raises(ValueError, match=f"^unroll: .*{sentence}"):
        jl.unroll(MGU._replace(step=go), params, xs)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"step": lambda *a: step(*a)[0]}, r"cell\.step: got State\(h\).*pair"),
        ({"step": lambda *a: None}, r"cell\.step: got None.*return state, gates"),
        ({"step": lambda state: state}, r"called as cell\.step\(params, state, z\)"),
        ({"project": lambda x: x}, r"called as cell\.project\(params, x\)"),
        ({"initial_state": lambda params: 0}, r"cell\.initial_state\(params, batch"),
    ],
)
def test_functions_of_another_form_are_refused(changes, sentence):
    params, xs, _ = problem()
    with pytest.raises(ValueError, match=f"^unroll: .*{sentence}"):
        jl.unroll(MGU._replace(**changes), params, xs)


def test_arguments_may_have_other_names():
    def begin(weights, rows=(), *, dtype=None):
        return initial_state(weights, rows, dtype=dtype)

    params, xs, _ = problem()
    expected = jl.unroll(MGU, params, xs)
    assert_same(jl.unroll(MGU._replace(initial_state=begin), params, xs), expected, 0)


def test_a_key_in_the_state_is_carried():
    class Noisy(NamedTuple):
        h: jax.Array
        key: jax.Array

    def begin(params, batch_shape=(), *, dtype=None):
        h = initial_state(params, batch_shape, dtype=dtype).h
        return Noisy(h, jnp.broadcast_to(jax.random.key(1), batch_shape))

    def go(params, state, z):
        keys = jax.vmap(jax.random.fold_in, (0, None))(state.key, 1)
        noise = jax.vmap(lambda key: jax.random.normal(key, z[0].shape[-1:]))(keys)
        h = step(params, State(state.h), z)[0].h + noise
        return Noisy(h, keys), None

    cell = jl.Cell(init, begin, project, go)
    params, xs, _ = problem()
    whole, hs = jl.unroll(cell, params, xs)
    first, _ = jl.unroll(cell, params, xs[:2])
    last, rest = jl.unroll(cell, params, xs[2:], first)
    assert_same((last.h, rest), (whole.h, hs[2:]), 1e-6)
    assert bool((last.key == whole.key).all())
    with pytest.raises(
        ValueError, match=r"state\.key: got dtype float32, expected key"
    ):
        jl.unroll(cell, params, xs, first._replace(key=jnp.zeros(B)))


def test_16_bit_features_with_32_bit_params_are_explained():
    params, xs, _ = problem()
    message = r"^unroll: .*state\.h, float32.*bfloat16.*astype"
    with pytest.raises(ValueError, match=message):
        jl.unroll(MGU, params, xs.astype(jnp.bfloat16))


def test_a_wrong_number_of_features_is_refused():
    params, xs, _ = problem()
    with pytest.raises((TypeError, ValueError), match="3"):
        jl.unroll(MGU, params, xs[..., :2])
