"""The compiled CPU kernel equals the reference, and its errors say what to do.

Tests that run the kernel are skipped on a machine without a C++ compiler.
"""

import functools
import re
import shutil
import subprocess
import sys
import textwrap
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlstm as jl
from cases import assert_same
from jaxlstm.cells.base import LSTMParams
from jaxlstm.engines import native
from jaxlstm.engines.native import build
from jaxlstm.engines.native import kernel as kernel_state
from jaxlstm.engines.native.session import Session

CELL = jl.lstm()
COMPILER = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler here")

CELLS = {
    "lstm": CELL,
    "lstm of other activations": jl.lstm(
        gate_activation="hard_sigmoid",
        candidate_activation="softsign",
        output_activation="relu",
    ),
    "classic": jl.classic_lstm(),
    "coupled": jl.coupled_lstm(),
    "peephole": jl.peephole_lstm(),
    "projected": jl.projected_lstm(3),
    "layer norm": jl.layer_norm_lstm(),
    "gru": jl.gru(),
    "gru, reset before": jl.gru(reset_after=False),
    "simple rnn": jl.simple_rnn(activation="softplus"),
    "zoneout": jl.zoneout(CELL, h_rate=0.2, c_rate=0.3),
    "clip": jl.clip_cell(CELL, 0.3),
    "variational dropout": jl.variational_dropout(CELL, x_rate=0.2, h_rate=0.3),
    "recurrent dropout": jl.recurrent_dropout(jl.gru(), 0.3),
    "weight drop": jl.weight_drop(CELL, 0.3),
    "learned state": jl.learned_initial_state(jl.peephole_lstm()),
}
STEPS = {
    "all steps": {},
    "lengths": {"lengths": (7, 0, 4)},
    "lengths, resets, reverse": {
        "lengths": (7, 2, 5), "resets": True, "reverse": True
    },
}  # fmt: skip


@pytest.fixture
def kernel():
    """Load the kernel."""
    native.load()


def problem(cell, *, time=7, rows=(3,), size=4, units=20, dtype=jnp.float32):
    """Return parameters, none of them zero, and inputs."""
    rng = np.random.default_rng(0)
    params = cell.init(jax.random.key(0), size, units, dtype=dtype)
    params = jax.tree.map(
        lambda a: a + jnp.asarray(rng.normal(size=a.shape) / 8, a.dtype), params
    )
    return params, jnp.asarray(rng.normal(size=(time, *rows, size)), dtype)


def options(kind, time=7, rows=(3,)):
    chosen = dict(STEPS[kind])
    if "lengths" in chosen:
        chosen["lengths"] = jnp.asarray(chosen["lengths"])
    if "resets" in chosen:
        chosen["resets"] = jax.random.bernoulli(jax.random.key(1), 0.3, (time, *rows))
    return chosen


def results(cell, params, xs, **chosen):
    """Return the results and the gradients with respect to parameters and inputs."""

    def total(params, xs):
        out = jl.unroll(cell, params, xs, **chosen)
        leaves = [jnp.sin(3 * leaf) for leaf in jax.tree.leaves(out)]
        wide = jnp.float64 if xs.dtype == jnp.float64 else jnp.float32
        return sum(jnp.sum(leaf, dtype=wide) for leaf in leaves), out

    gradient = jax.value_and_grad(total, (0, 1), has_aux=True)
    (_, out), gradients = jax.jit(gradient)(params, xs)
    return out, gradients


def calls(function, *arguments):
    """Return how often a compiled function calls the kernel, and its other loops."""
    text = jax.jit(function).lower(*arguments).as_text()
    return text.count("@jaxlstm_loop"), text.count("stablehlo.while")


def most(name):
    """Leave cells other than the LSTM to the combinations and the thorough tests."""
    few = name in ("gru, reset before", "layer norm", "zoneout")
    mark = pytest.mark.combinations if few else pytest.mark.thorough
    return pytest.param(name, marks=[] if name == "lstm" else [mark])


class OnlyH(NamedTuple):
    h: jax.Array


def gated_by_split():
    """Return a GRU as many people write it, with `jnp.split`."""

    def init(key, input_size, hidden_size, *, dtype=jnp.float32):
        keys, draw = jax.random.split(key), jax.nn.initializers.normal(0.3)
        w = draw(keys[0], (input_size, 3 * hidden_size), dtype)
        return {"w": w, "u": draw(keys[1], (hidden_size, 3 * hidden_size), dtype)}

    def initial_state(params, batch_shape=(), *, dtype=None):
        return OnlyH(jnp.zeros((*batch_shape, len(params["u"])), dtype))

    def step(params, state, z):
        x_r, x_u, x_n = jnp.split(z, 3, axis=-1)
        h_r, h_u, h_n = jnp.split(state.h @ params["u"], 3, axis=-1)
        r, u = jax.nn.sigmoid(x_r + h_r), jax.nn.sigmoid(x_u + h_u)
        n = jnp.tanh(x_n + r * h_n)
        return OnlyH((1 - u) * n + u * state.h), u

    return jl.Cell(init, initial_state, lambda params, x: x @ params["w"], step)


@needs_compiler
def test_a_step_may_split_its_arrays(kernel):
    cell = gated_by_split()
    params, xs = problem(cell)
    found, expected = (results(cell, params, xs, engine=e) for e in ("native", "scan"))
    assert_same(found, expected, 2e-5)


@needs_compiler
@pytest.mark.parametrize("kind", STEPS)
@pytest.mark.parametrize("name", [most(name) for name in CELLS])
def test_the_kernel_equals_the_reference(name, kind, kernel, x64):
    """In float64, with all gradients, also those of the gates."""
    cell, chosen = CELLS[name], options(kind)
    inputs = problem(cell, dtype=jnp.float64)
    chosen["emit"] = jl.emit.trace
    chosen["key"] = jax.random.key(3)
    got, expected = (
        results(cell, *inputs, engine=each, **chosen) for each in ("native", "scan")
    )
    assert_same(got, expected, 1e-12)


@needs_compiler
@pytest.mark.thorough
@pytest.mark.parametrize("name", CELLS)
def test_float32_is_no_worse_than_automatic_differentiation(name, kernel, x64):
    """Error against float64 at most 4 times that of the reference in float32."""
    cell = CELLS[name]
    for rows, units in (((), 5), ((12,), 16), ((2, 2), 33), ((17,), 130)):
        inputs = problem(cell, time=19, rows=rows, units=units)
        doubled = jax.tree.map(lambda a: a.astype(jnp.float64), inputs)
        exact = results(cell, *doubled, engine="scan")
        got, same = (results(cell, *inputs, engine=e) for e in ("native", "scan"))
        for leaves in zip(*map(jax.tree.leaves, (got, same, exact)), strict=True):
            a, b, c = (np.asarray(leaf, np.float64) for leaf in leaves)
            scale = 1 + np.abs(c).max(initial=0)
            ours, theirs = (np.abs(x - c).max(initial=0) for x in (a, b))
            assert ours <= 4 * theirs + 2e-6 * scale


@needs_compiler
@pytest.mark.parametrize("name", [most(name) for name in CELLS])
def test_both_loops_of_a_gradient_run_in_the_kernel(name, kernel):
    cell = CELLS[name]
    inputs = problem(cell)
    assert calls(lambda p, x: results(cell, p, x)[1], *inputs) == (2, 0)


@needs_compiler
@pytest.mark.parametrize(
    "name",
    ["lstm", *(pytest.param(n, marks=pytest.mark.thorough) for n in CELLS)],
)
def test_one_input_feature(name, kernel, x64):
    """Products of inputs with one feature are computed with a second one, zero."""
    cell = CELLS[name]
    inputs = problem(cell, size=1, dtype=jnp.float64)
    assert calls(lambda p, x: results(cell, p, x)[1], *inputs) == (2, 0)
    got, expected = (results(cell, *inputs, engine=e) for e in ("native", "scan"))
    assert_same(got, expected, 1e-12)


def distance(got, expected):
    """Return the largest difference, relative to the largest number of each leaf."""
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True)
    return max(
        np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max()
        / (1e-3 + np.abs(np.asarray(b, np.float64)).max())
        for a, b in pairs
    )


@needs_compiler
@pytest.mark.parametrize("name", [most(name) for name in CELLS])
@pytest.mark.parametrize(
    "dtype", [jnp.float32, pytest.param(jnp.bfloat16, marks=pytest.mark.thorough)]
)
def test_bfloat16(name, dtype, kernel):
    """Results equal those of adjoint, and gradients are as close to float32."""
    cell = CELLS[name]
    params, xs = problem(cell, dtype=dtype)
    xs = xs.astype(jnp.bfloat16)
    assert calls(lambda p, x: results(cell, p, x)[1], params, xs)[0] == 2
    got, same = (results(cell, params, xs, engine=e) for e in ("native", "adjoint"))
    for a, b in zip(*map(jax.tree.leaves, (got, same)), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
    wide = jax.tree.map(lambda a: a.astype(jnp.float32), (params, xs))
    exact = results(cell, *wide, engine="adjoint")
    assert distance(got[0], same[0]) < 1e-2
    assert distance(got, exact) < 2 * distance(same, exact)


@needs_compiler
def test_numbers_are_rounded_to_the_nearest_bfloat16(kernel):
    """Halfway numbers to even, also large ones, subnormal ones, infinity and NaN."""
    bits = np.random.default_rng(0).integers(0, 2**32, 4000, dtype=np.uint32)
    bits = np.concatenate([bits, bits & 0xFFFF0000 | 0x8000, bits & 0x807FFFFF])
    few = np.float32([0, -0.0, np.inf, -np.inf, np.nan, 3.4e38] + [1.0] * 74)
    x = np.concatenate([bits.view(np.float32), few]).reshape(1, -1, 80)

    def step(params, state, z):
        rounded = z.astype(jnp.bfloat16).astype(jnp.float32)
        return state._replace(h=rounded), z

    cell = CELL._replace(step=step, project=lambda params, x: x)
    params = CELL.init(jax.random.key(0), 80, 80)
    _, got = jl.unroll(cell, params, x, engine="native")
    assert_same(got, jnp.asarray(x).astype(jnp.bfloat16).astype(jnp.float32), 0)


@needs_compiler
def test_steps_on_numpy_arrays_run_in_the_kernel(kernel, monkeypatch):
    params, xs = problem(CELL, rows=())
    steps = []
    call = Session.__call__

    def counted(session, *arguments):
        steps.append(session)
        return call(session, *arguments)

    monkeypatch.setattr(Session, "__call__", counted)
    step, state = jl.stream(CELL, params, np.asarray(xs[0]))
    for x in np.asarray(xs):
        state, h = step(state, x)
    assert len(steps) == len(xs)
    assert_same(h, jl.unroll(CELL, params, xs, engine="scan")[1][-1], 1e-5)


def members(cell, number=3, dtype=jnp.float32):
    every = [problem(cell, dtype=dtype) for _ in range(number)]
    return jax.tree.map(lambda *a: jnp.stack([n * x for n, x in enumerate(a)]), *every)


@needs_compiler
@pytest.mark.parametrize(
    "axes",
    [
        *(pytest.param(a, marks=pytest.mark.thorough) for a in ((None, 0), (0, None))),
        (0, 0),
    ],
)
@pytest.mark.parametrize("name", [most(name) for name in CELLS])
def test_vmap_is_one_call_for_all_members(name, axes, kernel, x64):
    cell = CELLS[name]
    params, xs = members(cell, dtype=jnp.float64)
    inputs = (
        params if axes[0] == 0 else jax.tree.map(lambda a: a[1], params),
        xs if axes[1] == 0 else xs[1],
    )

    def gradients(engine):
        return jax.vmap(lambda p, x: results(cell, p, x, engine=engine), axes)

    assert calls(gradients("native"), *inputs) == (2, 0)
    assert_same(gradients("native")(*inputs), gradients("scan")(*inputs), 1e-10)


@needs_compiler
def test_a_population_copies_no_sequence(kernel):
    """The kernel reads and writes members first, as the products of gradients do."""
    params, xs = members(CELL)

    def loss(p, x):
        return (jl.unroll(CELL, p, x, engine="native")[1] ** 2).sum()

    def total(p, x):
        return jax.vmap(loss)(p, x).sum()

    for gradient in jax.vmap(jax.grad(loss, (0, 1))), jax.grad(total, (0, 1)):
        program = jax.jit(gradient).lower(params, xs).compile().as_text()
        assert not re.search(r" (transpose|copy)\(", program)


@needs_compiler
@pytest.mark.parametrize("name", [most(name) for name in CELLS])
def test_rows_added_to_a_population_are_in_the_same_call(name, kernel, x64):
    """As for a model with two directions in one call, mapped over its rows."""
    cell = CELLS[name]
    params, xs = members(cell, dtype=jnp.float64)
    xs = jnp.stack([xs, 2 * xs], axis=1)

    def forward(engine):
        def of_row(xs):
            def one(p, x):
                return jl.unroll(cell, p, x, lengths=(7, 0, 4), engine=engine)

            return jax.vmap(one)(params, xs)

        return jax.vmap(of_row, in_axes=1)

    def gradients(engine):
        def of_row(xs):
            def one(p, x):
                return results(cell, p, x, engine=engine)

            return jax.vmap(one)(params, xs)

        return jax.vmap(of_row, in_axes=1)

    assert calls(forward("native"), xs) == (1, 0)
    assert_same(forward("native")(xs), forward("scan")(xs), 1e-10)
    assert calls(gradients("native"), xs) == (2, 0)
    assert_same(gradients("native")(xs), gradients("scan")(xs), 1e-10)


@needs_compiler
def test_vmap_of_vmap_of_ragged_rows(kernel, x64):
    params, xs = members(CELL, dtype=jnp.float64)
    xs = jnp.stack([xs, 2 * xs])
    lengths = jnp.array([[7, 1, 2], [3, 0, 5], [1, 1, 6]])

    def run(engine):
        def one(p, x, n):
            return results(CELL, p, x, lengths=n, engine=engine)

        return jax.vmap(jax.vmap(one, (0, 0, 0)), (None, 0, None))(params, xs, lengths)

    assert_same(run("native"), run("scan"), 1e-10)


@needs_compiler
@pytest.mark.parametrize(
    "name", ["lstm", pytest.param("layer norm", marks=pytest.mark.thorough)]
)
def test_derivatives_of_all_kinds(name, kernel, x64):
    """Forward mode, products with the Hessian, recomputed blocks, linearization."""
    cell = CELLS[name]
    params, xs = problem(cell, dtype=jnp.float64)
    ones = jax.tree.map(jnp.ones_like, params)

    def loss(engine, params, **chosen):
        return (jl.unroll(cell, params, xs, engine=engine, **chosen)[1] ** 2).sum()

    def derivatives(engine):
        run = functools.partial(loss, engine)
        blocks = functools.partial(loss, engine, checkpoint_every=3)
        return (
            jax.jvp(run, (params,), (ones,)),
            jax.jvp(jax.grad(run), (params,), (ones,)),
            jax.grad(jax.checkpoint(run))(params),
            jax.grad(blocks)(params),
            jax.linearize(run, params)[1](ones),
            jax.hessian(lambda b: run(params._replace(b=b)))(params.b),
        )

    assert_same(derivatives("native"), derivatives("scan"), 1e-10)


@needs_compiler
@pytest.mark.thorough
def test_random_ragged_batches_with_nan_in_the_padding(kernel):
    """Values and gradients do not depend on the padding, bit for bit."""
    rng = np.random.default_rng(1)
    gradient = jax.jit(lambda p, x, n: results(CELL, p, x, lengths=n, engine="native"))
    params, xs = problem(CELL, time=9, rows=(5,))
    for _ in range(1000):
        lengths = jnp.asarray(rng.integers(0, 10, 5))
        padding = np.arange(9)[:, None] >= np.asarray(lengths)
        with_nan = jnp.where(padding[..., None], jnp.nan, xs)
        got, expected = (
            gradient(params, with_nan, lengths),
            gradient(params, xs, lengths),
        )
        assert_same(got, expected, 0)
        assert jax.tree.all(jax.tree.map(lambda a: jnp.isfinite(a).all(), got))


@needs_compiler
@pytest.mark.parametrize(
    "name", [most(n) for n in ("lstm", "gru, reset before", "layer norm")]
)
def test_bits_depend_neither_on_the_split_of_a_sequence_nor_on_the_trace(name, kernel):
    cell = CELLS[name]
    for rows, units in (((2,), 18), ((9,), 40)):
        params, xs = problem(cell, time=23, rows=rows, units=units)
        whole, hs = jl.unroll(cell, params, xs, engine="native")
        _, trace = jl.unroll(cell, params, xs, engine="native", emit=jl.emit.trace)
        assert_same(trace.state.h, hs, 0)
        state, parts = None, []
        for part in jnp.split(xs, [1, 2, 19]):
            state, ys = jl.unroll(cell, params, part, state, engine="native")
            parts.append(ys)
        assert_same((state, jnp.concatenate(parts)), (whole, hs), 0)


@needs_compiler
@pytest.mark.parametrize("units", [256, pytest.param(1100, marks=pytest.mark.thorough)])
@pytest.mark.parametrize("kind", STEPS)
def test_units_in_several_tiles_or_threads(kind, units, kernel):
    """A mask has one number for each row, wherever the units of a tile begin."""
    params, xs = problem(CELL, units=units)
    params = params._replace(w_h=params.w_h / 8)
    run = functools.partial(jl.unroll, CELL, params, xs, **options(kind))
    for ours, theirs in zip(
        *(jax.tree.leaves(run(engine=engine)) for engine in ("native", "scan")),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@needs_compiler
@pytest.mark.parametrize(
    "name",
    ["lstm", *(pytest.param(n, marks=pytest.mark.thorough) for n in CELLS)],
)
def test_gradients_of_units_in_several_threads(name, kernel):
    cell, chosen = CELLS[name], options("lengths, resets, reverse")
    inputs = problem(cell, size=2, units=264)
    got, expected = (
        results(cell, *inputs, engine=each, **chosen) for each in ("native", "scan")
    )
    assert distance(got, expected) < 1e-2


@needs_compiler
def test_empty_inputs_and_repeated_calls(kernel):
    for time, rows in [(0, (2,)), (3, (0,))]:
        params, xs = problem(CELL, time=time, rows=rows)
        got, expected = (
            results(CELL, params, xs, engine=e) for e in ("native", "scan")
        )
        assert_same(got, expected, 1e-6)
    params, xs = problem(CELL)
    got, again = (results(CELL, params, xs, engine="native") for _ in range(2))
    assert_same(got, again, 0)


@needs_compiler
def test_export_and_other_platforms_get_the_pure_program(kernel):
    params, xs = problem(CELL)

    def run(w_x, w_h, b, xs):
        return jl.unroll(CELL, LSTMParams(w_x, w_h, b), xs)[1]

    exported = jax.export.export(jax.jit(run), platforms=["cpu", "cuda"])(*params, xs)
    assert "jaxlstm_loop" not in exported.mlir_module()
    assert_same(exported.call(*params, xs), run(*params, xs), 1e-6)


@needs_compiler
@pytest.mark.thorough
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_with_the_kernel(method, tmp_path):
    code = f"""
        import multiprocessing, jax, jax.numpy as jnp, jaxlstm as jl
        def work(_):
            jl.engines.native.load()
            cell = jl.lstm()
            params = cell.init(jax.random.key(0), 8, 64)
            hs = jl.unroll(cell, params, jnp.ones((50, 16, 8)), engine="native")[1]
            return float(hs.sum())
        if __name__ == "__main__":
            context = multiprocessing.get_context({method!r})
            with context.Pool(2) as pool:
                sums = pool.map(work, range(4))
            assert len(set(sums)) == 1, sums
    """
    script = tmp_path / "processes.py"  # spawned processes import it
    script.write_text(textwrap.dedent(code))
    run_code("", str(script))


@needs_compiler
@pytest.mark.thorough
def test_many_steps_do_not_hang(kernel):
    """10,000 training steps in a row, dispatched ahead."""
    params, xs = problem(CELL, time=5, rows=(8,), units=64)

    @jax.jit
    def step(params):
        gradient = results(CELL, params, xs, engine="native")[1][0]
        return jax.tree.map(lambda p, g: p - 1e-4 * g, params, gradient)

    for _ in range(10_000):
        params = step(params)
    assert jnp.isfinite(params.w_h).all()


@needs_compiler
@pytest.mark.thorough
def test_concurrent_callers_do_not_deadlock():
    """Eight threads on four host devices, more than there are cores."""
    run_code("""
        import concurrent.futures, jax, jax.numpy as jnp, jaxlstm as jl
        jax.config.update("jax_num_cpu_devices", 4)
        jl.engines.native.load()
        cell = jl.lstm()
        params = cell.init(jax.random.key(0), 64, 256)
        xs = jax.random.normal(jax.random.key(1), (50, 16, 64))
        total = lambda p, x: jl.unroll(cell, p, x, engine="native")[1].sum()
        step = jax.jit(jax.grad(total))
        places = jax.devices()
        def go(n):
            place = places[n % 4]
            p, x = jax.device_put((params, xs), place)
            return [step(p, x).w_h.sum() for _ in range(25)][-1].block_until_ready()
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            sums = [float(s) for s in pool.map(go, range(16))]
        assert max(sums) - min(sums) <= 1e-3 * abs(sums[0]), sums
    """)


def run_code(code, *arguments):
    done = subprocess.run(
        [sys.executable, *arguments, *(["-c", textwrap.dedent(code)] if code else [])],
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()


@needs_compiler
def test_over_devices(kernel):
    """Gradients of replicated parameters from rows split over two devices."""
    params, xs = problem(CELL, rows=(4,))
    mesh = jax.make_mesh((2,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))

    def gradient(name):
        def total(params, xs):
            return jnp.sum(jnp.sin(jl.unroll(CELL, params, xs, engine=name)[1]))

        return jax.grad(total)

    split = jax.shard_map(
        gradient("native"),
        mesh=mesh,
        in_specs=(jax.P(), jax.P(None, "rows")),
        out_specs=jax.P(),
    )
    assert calls(split, params, xs) == (2, 0)
    assert_same(jax.jit(split)(params, xs), gradient("scan")(params, xs), 1e-5)


def sorted_hidden(state, gates):
    return jnp.sort(state.h)


def two_states(state, gates):
    return state.h.astype(jnp.bfloat16)


@needs_compiler
@pytest.mark.parametrize("emit", [sorted_hidden, two_states])
def test_steps_that_the_kernel_cannot_run(emit, kernel):
    """By name they are refused; by default the adjoint engine serves."""
    params, xs = problem(CELL)
    with pytest.raises(NotImplementedError, match=r"native: the kernel cannot run"):
        jl.unroll(CELL, params, xs, engine="native", emit=emit)
    got = jl.unroll(CELL, params, xs, emit=emit)
    assert_same(got, jl.unroll(CELL, params, xs, engine="adjoint", emit=emit), 0)
    assert jl.explain(CELL, params, xs, emit=emit).engine == "adjoint"


@jax.custom_jvp
def doubled(h):
    return 2 * h


@doubled.defjvp
def doubled_rule(primals, tangents):
    return 2 * primals[0], 2 * jnp.flip(jnp.flip(tangents[0]))


@needs_compiler
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit])
def test_derivatives_that_the_kernel_cannot_run(transform, kernel):
    """Also if the derivative is traced after the forward pass."""
    params, xs = problem(CELL)

    def total(params, engine):
        run = functools.partial(
            jl.unroll, CELL, engine=engine, emit=lambda state, gates: doubled(state.h)
        )
        return jnp.sum(jnp.sin(transform(run)(params, xs)[1]))

    got, expected = (jax.grad(total)(params, each) for each in (None, "scan"))
    assert_same(got, expected, 1e-5)


@needs_compiler
def test_the_step_is_part_of_the_jaxpr(kernel):
    """For tools that count the operations of a traced program."""
    params, xs = problem(CELL)
    program = jax.make_jaxpr(lambda x: jl.unroll(CELL, params, x, engine="native"))(xs)
    assert "compiled_scan" in str(program)
    assert "dot_general" in str(program) or "rows_first" in str(program)


@needs_compiler
def test_the_kernel_is_the_first_choice(kernel):
    params, xs = problem(CELL)
    assert jl.explain(CELL, params, xs).engine == "native"
    assert calls(lambda x: jl.unroll(CELL, params, x), xs) == (1, 0)
    assert "compiled kernel" in str(jl.explain(CELL, params, xs))


@pytest.fixture
def kernel_loaded(monkeypatch):
    """Mark the kernel as loaded, for errors raised before it is called."""
    monkeypatch.setattr(kernel_state, "LOADED_KERNELS", [object()])


def test_other_dtypes_are_refused(kernel_loaded):
    params = CELL.init(jax.random.key(0), 3, 4)
    with pytest.raises(NotImplementedError, match=r"got float16, float32, expected"):
        jl.unroll(CELL, params, jnp.zeros((5, 2, 3), jnp.float16), engine="native")


def test_missing_kernel_names_the_function_that_loads_it(monkeypatch):
    monkeypatch.setattr(kernel_state, "LOADED_KERNELS", [])
    monkeypatch.setattr(build, "REFUSALS", ["native: call jl.engines.native.load()"])
    params = CELL.init(jax.random.key(0), 3, 4)
    with pytest.raises(NotImplementedError, match=r"jl\.engines\.native\.load\(\)"):
        jl.unroll(CELL, params, jnp.zeros((5, 2, 3)), engine="native")
