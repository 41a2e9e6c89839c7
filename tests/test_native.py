"""The compiled CPU kernel equals the reference, and its errors say what to do.

Tests that run the kernel are skipped on a machine without a C++ compiler.
"""

import shutil
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlstm as jl
from cases import assert_same
from jaxlstm.engines import native
from jaxlstm.engines.native import build, engine
from jaxlstm.lab import native as lab_native

CELL = jl.lstm()
COMPILER = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")


def problem(time, rows, size, units, seed=0):
    keys = jax.random.split(jax.random.key(seed), 4)
    params = CELL.init(keys[0], size, units, dtype=jnp.float32)
    xs = jax.random.normal(keys[1], (time, *rows, size), jnp.float32)
    shape, half = (*rows, units), jnp.float32(0.5)
    state = jl.LSTMState(
        *(half * jax.random.normal(key, shape, jnp.float32) for key in keys[2:])
    )
    return params, xs, state


def options(kind, time, rows):
    """Return random lengths, masks and resets, including rows without steps."""
    rng = np.random.default_rng(3)
    resets = jnp.asarray(rng.random((time, *rows)) < 0.2)
    lengths = jnp.asarray(rng.integers(0, time + 1, rows))
    mask = jnp.asarray(rng.random((time, *rows)) < 0.7)
    return {
        "nothing": {},
        "lengths, resets": {"lengths": lengths, "resets": resets},
        "mask, reverse": {"mask": mask, "reverse": True},
        "lengths, resets, reverse": {
            "lengths": lengths, "resets": resets, "reverse": True
        },
    }[kind]  # fmt: skip


def answer(inputs, name, chosen):
    """Return the results and the gradients with respect to all inputs."""

    def total(params, xs, state):
        out = jl.unroll(CELL, params, xs, state, engine=name, **chosen)
        return sum(jnp.sum(jnp.sin(3 * leaf)) for leaf in jax.tree.leaves(out)), out

    (_, out), gradients = jax.value_and_grad(total, (0, 1, 2), has_aux=True)(*inputs)
    return out, gradients


@pytest.mark.thorough
@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler here")
@pytest.mark.parametrize(
    "kind",
    ["nothing", "lengths, resets", "mask, reverse", "lengths, resets, reverse"],
)
@pytest.mark.parametrize(
    ("time", "rows", "units"),
    [
        (9, (), 5),
        (12, (3,), 16),
        (7, (2, 2), 33),
        (5, (32,), 64),
        (20, (17,), 130),
        (37, (2,), 18),
    ],
)
def test_the_kernel_equals_the_reference(time, rows, units, kind, x64):
    """Error against float64 at most 4 times that of the reference in float32."""
    native.load()
    inputs = problem(time, rows, 4, units)
    chosen = options(kind, time, rows)
    got, same = (answer(inputs, name, chosen) for name in ("native", "scan"))
    doubled = jax.tree.map(lambda a: a.astype(jnp.float64), inputs)
    exact = answer(doubled, "scan", chosen)
    for leaves in zip(*map(jax.tree.leaves, (got, same, exact)), strict=True):
        a, b, c = (np.asarray(leaf, np.float64) for leaf in leaves)
        scale = 1 + np.abs(c).max(initial=0)
        ours, theirs = (np.abs(x - c).max(initial=0) for x in (a, b))
        assert ours <= 4 * theirs + 2e-6 * scale


@pytest.mark.thorough
@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler here")
@pytest.mark.parametrize("rows", [(2,), (3, 7)])
@pytest.mark.parametrize("kind", ["nothing", "lengths, resets, reverse"])
def test_trace_equals_the_reference_and_changes_no_bit(kind, rows):
    native.load()
    inputs, chosen = problem(21, rows, 4, 18), options(kind, 21, rows)

    def run(name, emit):
        return jl.unroll(CELL, *inputs, engine=name, emit=emit, **chosen)

    state, trace = run("native", jl.emit.trace)
    assert_same((state, trace.state.h), run("native", jl.emit.hidden), 0)
    assert_same((state, trace), run("scan", jl.emit.trace), 1e-6)


@pytest.mark.thorough
@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler here")
def test_gradient_of_a_trace_is_refused():
    native.load()
    params, xs, state = problem(5, (2,), 4, 8)

    def mean_forget_gate(xs):
        _, trace = jl.unroll(
            CELL, params, xs, state, engine="native", emit=jl.emit.trace
        )
        return trace.gates.f.sum()

    with pytest.raises(NotImplementedError, match=r'no gradient.*use engine="adjoint"'):
        jax.grad(mean_forget_gate)(xs)


@pytest.mark.thorough
@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler here")
@pytest.mark.parametrize("rows", [(2,), (9,)])
def test_split_sequence_gives_the_bits_of_the_whole(rows):
    native.load()
    params, xs, state = problem(23, rows, 4, 18)
    whole, hs = jl.unroll(CELL, params, xs, state, engine="native")
    parts = []
    for part in jnp.split(xs, [1, 2, 19]):
        state, ys = jl.unroll(CELL, params, part, state, engine="native")
        parts.append(ys)
    assert_same((state, jnp.concatenate(parts)), (whole, hs), 0)


@pytest.mark.thorough
@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler here")
def test_padding_values_have_no_effect():
    native.load()
    params, xs, state = problem(6, (3,), 4, 8)
    lengths = jnp.array([0, 6, 2])
    padding = jnp.arange(6)[:, None] >= lengths[None]
    with_nan = jnp.where(padding[..., None], jnp.nan, xs)
    chosen = {"lengths": lengths}
    got = answer((params, with_nan, state), "native", chosen)
    assert_same(got, answer((params, xs, state), "native", chosen), 0)
    assert jax.tree.all(jax.tree.map(lambda a: jnp.isfinite(a).all(), got))


@pytest.mark.thorough
@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler here")
def test_empty_inputs_vmap_and_repeated_calls():
    """No steps, no rows; `vmap` equals a batch; two calls give the same bits."""
    native.load()
    for time, rows in [(0, (2,)), (3, (0,))]:
        inputs = problem(time, rows, 4, 8)
        assert_same(answer(inputs, "native", {}), answer(inputs, "scan", {}), 1e-6)
    params, xs, _ = problem(5, (4, 3), 4, 8)

    def run(xs):
        return jl.unroll(CELL, params, xs, engine="native")[1]

    one_by_one = jax.vmap(run, 1, 1)(xs)
    assert_same(one_by_one, run(xs), 1e-6)
    assert (run(xs) == run(xs)).all()


@pytest.mark.thorough
@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler here")
def test_concurrent_callers_do_not_deadlock():
    """Eight threads on four host devices, more than there are cores."""
    code = """
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
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.thorough
@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler here")
def test_over_devices():
    """Gradients of replicated parameters from rows split over two devices."""
    native.load()
    params, xs, _ = problem(6, (4,), 3, 8)
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
    assert_same(jax.jit(split)(params, xs), gradient("scan")(params, xs), 1e-5)


def initial_state_of_halves(params, batch_shape=(), *, dtype=None):
    half = jnp.full((*batch_shape, 4), 0.5, dtype)
    return jl.LSTMState(half, half)


@pytest.fixture
def kernel_loaded(monkeypatch):
    """Mark the kernel as loaded, for errors raised before it is called."""
    monkeypatch.setattr(engine, "LOADED_KERNELS", [object()])


@pytest.mark.parametrize(
    ("message", "cell", "chosen"),
    [
        ("not that of jl.lstm", jl.gru(), {}),
        ("not that of jl.lstm", jl.zoneout(CELL, h_rate=0.1), {}),
        (
            "whose initial state is not",
            CELL._replace(initial_state=initial_state_of_halves),
            {},
        ),
        ("emit: got states", CELL, {"emit": jl.emit.states}),
        ("does not recompute", CELL, {"checkpoint_every": "sqrt"}),
    ],
)
def test_unsupported_calls_are_refused(kernel_loaded, message, cell, chosen):
    params = cell.init(jax.random.key(0), 3, 4)
    xs = jnp.zeros((5, 2, 3))
    with pytest.raises(NotImplementedError, match=f"native: .*{message}"):
        jl.unroll(cell, params, xs, engine="native", **chosen)


def test_other_dtypes_are_refused(kernel_loaded):
    params = CELL.init(jax.random.key(0), 3, 4)
    with pytest.raises(NotImplementedError, match=r"got bfloat16, expected float32"):
        jl.unroll(CELL, params, jnp.zeros((5, 2, 3), jnp.bfloat16), engine="native")


def test_missing_kernel_names_the_function_that_loads_it(monkeypatch):
    monkeypatch.setattr(engine, "LOADED_KERNELS", [])
    params = CELL.init(jax.random.key(0), 3, 4)
    with pytest.raises(NotImplementedError, match=r"jl\.engines\.native\.load\(\)"):
        jl.unroll(CELL, params, jnp.zeros((5, 2, 3)), engine="native")


def test_missing_compiler_says_how_to_get_one(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(native.BuildError, match=r"no C\+\+ compiler found; install"):
        build.library()


def test_cxx_is_used_or_reported(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler -O1")
    with pytest.raises(native.BuildError, match=r"\$CXX: got 'no-such-compiler'"):
        build.library()
    monkeypatch.setenv("CXX", "env LANG=C c++")
    assert build.compiler() == ["env", "LANG=C", "c++"]


def test_damaged_library_is_compiled_again(monkeypatch, tmp_path):
    """With a stand-in compiler that counts its calls and writes its output file."""
    counting = tmp_path / "c++"
    counting.write_text(
        f"#!/bin/sh\necho called >> {tmp_path}/calls\n"
        'while [ $# -gt 1 ]; do [ "$1" = -o ] && echo kernel > "$2"; shift; done\n'
    )
    counting.chmod(0o755)
    monkeypatch.setenv("CXX", str(counting))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def calls():
        return (tmp_path / "calls").read_text().count("called")

    first = build.library()
    assert first.read_text() == "kernel\n"
    assert calls() == 2  # one for the macros, one for the kernel
    assert build.library() == first
    assert calls() == 3
    first.write_text("kerne")
    assert build.library() == first
    assert first.read_text() == "kernel\n"
    assert calls() == 5


def test_compiler_errors_are_quoted(monkeypatch, tmp_path):
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\necho no such header >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    with pytest.raises(
        native.BuildError, match="cannot compile the kernel:\nno such header"
    ):
        build.library()


def test_cache_that_cannot_be_written_is_named(monkeypatch, tmp_path):
    idle = tmp_path / "c++"
    idle.write_text("#!/bin/sh\nexit 0\n")
    idle.chmod(0o755)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CXX", str(idle))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(
        native.BuildError, match=r"cannot write the kernel to .*XDG_CACHE_HOME"
    ):
        build.library()


def test_lab_reports_a_missing_compiler_as_bad_input(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(jl.lab.BadInput, match=r"native: no C\+\+ compiler found"):
        lab_native.load_kernel()


def test_the_old_name_warns(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with (
        pytest.warns(DeprecationWarning, match=r"jaxlstm\.engines\.native\.load"),
        pytest.raises(jl.lab.BadInput),
    ):
        jl.lab.native.load()
