"""The compiled kernel: against the reference, and how it refuses; where there is a
compiler, which a machine that builds Python packages has.
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
from jaxlstm.engines import native as engine
from jaxlstm.lab import native

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
    """Steps that happen and rows that begin anew, with all that can be awkward."""
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
    """Results and the gradients of everything, weighed."""

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
def test_the_kernel_is_the_reference(time, rows, units, kind, x64):
    """Float32 against float64: no worse than twice what the reference in float32 is."""
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
def test_trace_is_that_of_the_reference_and_changes_no_bit(kind, rows):
    native.load()
    inputs, chosen = problem(21, rows, 4, 18), options(kind, 21, rows)

    def run(name, emit):
        return jl.unroll(CELL, *inputs, engine=name, emit=emit, **chosen)

    state, trace = run("native", jl.emit.trace)
    assert_same((state, trace.state.h), run("native", jl.emit.hidden), 0)
    assert_same((state, trace), run("scan", jl.emit.trace), 1e-6)


@pytest.mark.thorough
@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler here")
def test_gradient_of_a_trace_is_refused_with_who_has_it():
    native.load()
    params, xs, state = problem(5, (2,), 4, 8)

    def openness(xs):
        _, trace = jl.unroll(
            CELL, params, xs, state, engine="native", emit=jl.emit.trace
        )
        return trace.gates.f.sum()

    with pytest.raises(NotImplementedError, match=r'no gradient.*engine="adjoint" has'):
        jax.grad(openness)(xs)


@pytest.mark.thorough
@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler here")
@pytest.mark.parametrize("rows", [(2,), (9,)])
def test_a_sequence_in_parts_is_the_whole_to_the_bit(rows):
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
def test_what_stands_in_padding_never_matters():
    native.load()
    params, xs, state = problem(6, (3,), 4, 8)
    lengths = jnp.array([0, 6, 2])
    padding = jnp.arange(6)[:, None] >= lengths[None]
    spoilt = jnp.where(padding[..., None], jnp.nan, xs)
    chosen = {"lengths": lengths}
    got = answer((params, spoilt, state), "native", chosen)
    assert_same(got, answer((params, xs, state), "native", chosen), 0)
    assert jax.tree.all(jax.tree.map(lambda a: jnp.isfinite(a).all(), got))


@pytest.mark.thorough
@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler here")
def test_nothing_and_many():
    """No steps, no rows; `vmap`; and the same bits each time."""
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
def test_many_callers_at_once_all_come_to_an_end():
    """On four host devices and from four threads, more than there are cores."""
    code = """
        import concurrent.futures, jax, jax.numpy as jnp, jaxlstm as jl
        jax.config.update("jax_num_cpu_devices", 4)
        jl.lab.native.load()
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
    """Gradients of what is the same everywhere, of rows here and there."""
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


def at_a_half(params, batch_shape=(), *, dtype=None):
    half = jnp.full((*batch_shape, 4), 0.5, dtype)
    return jl.LSTMState(half, half)


@pytest.fixture
def pretended(monkeypatch):
    """As if the kernel were there, for what is refused before it is called."""
    monkeypatch.setattr(engine, "_loaded", [object()])


@pytest.mark.parametrize(
    ("said", "cell", "chosen"),
    [
        ("knows no other", jl.gru(), {}),
        ("knows no other", jl.zoneout(CELL, h_rate=0.1), {}),
        ("begins from another state", CELL._replace(initial_state=at_a_half), {}),
        ("does not know", CELL, {"emit": jl.emit.states}),
        ("computes nothing again", CELL, {"checkpoint_every": "sqrt"}),
    ],
)
def test_what_is_refused(pretended, said, cell, chosen):
    params = cell.init(jax.random.key(0), 3, 4)
    xs = jnp.zeros((5, 2, 3))
    with pytest.raises(NotImplementedError, match=f"native: .*{said}"):
        jl.unroll(cell, params, xs, engine="native", **chosen)


def test_other_dtypes_are_refused(pretended):
    params = CELL.init(jax.random.key(0), 3, 4)
    with pytest.raises(NotImplementedError, match=r"bfloat16.* float32 only"):
        jl.unroll(CELL, params, jnp.zeros((5, 2, 3), jnp.bfloat16), engine="native")


def test_a_kernel_that_is_not_loaded_is_refused_with_what_loads_it(monkeypatch):
    monkeypatch.setattr(engine, "_loaded", [])
    params = CELL.init(jax.random.key(0), 3, 4)
    with pytest.raises(NotImplementedError, match=r"jl\.lab\.native\.load\(\)"):
        jl.unroll(CELL, params, jnp.zeros((5, 2, 3)), engine="native")


def test_no_compiler_is_told_with_the_remedy(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(jl.lab.BadInput, match=r"no C\+\+ compiler found. Install"):
        native.library()


def test_a_compiler_that_is_asked_for_is_not_passed_over(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler -O1")
    with pytest.raises(jl.lab.BadInput, match=r"\$CXX asks for 'no-such-compiler'"):
        native.library()
    monkeypatch.setenv("CXX", "env LANG=C c++")
    assert native.compiler() == ["env", "LANG=C", "c++"]


def test_a_damaged_kernel_is_compiled_anew_and_not_loaded(monkeypatch, tmp_path):
    """By a compiler that counts its calls and writes what was asked of it."""
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

    first = native.library()
    assert first.read_text() == "kernel\n"
    assert calls() == 2  # for its macros, and for the kernel
    assert native.library() == first
    assert calls() == 3
    first.write_text("kerne")
    assert native.library() == first
    assert first.read_text() == "kernel\n"
    assert calls() == 5


def test_a_compiler_that_fails_is_quoted(monkeypatch, tmp_path):
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\necho no such header >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    with pytest.raises(jl.lab.BadInput, match="does not compile it:\nno such header"):
        native.library()


def test_a_cache_that_cannot_be_written_is_named(monkeypatch, tmp_path):
    idle = tmp_path / "c++"
    idle.write_text("#!/bin/sh\nexit 0\n")
    idle.chmod(0o755)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CXX", str(idle))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(jl.lab.BadInput, match=r"cannot be kept in .*XDG_CACHE_HOME"):
        native.library()
