"""Exported programs compute what the model computes, also without this package."""

import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import jaxlstm as jl
from jaxlstm.interop import stablehlo
from jaxlstm.interop.inputs import Inputs, inputs_of
from registry import CELLS

KEY = jax.random.key(0)
CELL = jl.lstm()
WRITER = jl.serial(
    embed=jl.embed(9, 4),
    noise=jl.dropout(0.1),
    rnn=jl.stack(jl.learned_initial_state(CELL), (5,)),
    head=jl.linear(9),
)
HEAD = jl.linear(2)
TAGGER = jl.serial(jl.stack(CELL, (4, 4), bidirectional=True), jl.linear(2))
SIZES = [(7, 4), (1, 1), (1, 17), (50, 1)]


def drawn(model, size=3):
    params, _ = model.init(KEY, size)
    return jax.tree.map(lambda a: a + 0.1, params)  # no zeros, also in learned states


CALLBACK = "xla_ffi_python_cpu_callback"


def ragged(time, rows):
    lengths = np.random.default_rng(0).integers(0, time + 1, rows)
    return jnp.asarray(lengths, jnp.int32)


@pytest.mark.parametrize(
    "sizes", [SIZES[:1], pytest.param(SIZES[1:], marks=pytest.mark.thorough)]
)
def test_a_program_of_whole_sequences_is_the_model(sizes):
    params = drawn(TAGGER)
    exported = stablehlo.dump(TAGGER, params)
    assert exported.platforms == ("cpu", "cuda", "tpu")
    assert b".py" not in exported.mlir_module_serialized
    for time, rows in sizes:
        xs, lengths = jax.random.normal(KEY, (time, rows, 3)), ragged(time, rows)
        state, outputs = exported.call(xs, lengths)
        expected_state, expected = TAGGER.apply(params, xs, lengths=lengths)
        np.testing.assert_allclose(outputs, expected, atol=1e-6)
        last = expected_state[0][1].backward.c
        np.testing.assert_allclose(state["0/1/backward/c"], last, atol=1e-6)


def test_a_streaming_program_is_the_model_with_a_reset_for_each_row():
    params, rows = drawn(WRITER), 3
    exported = stablehlo.dump(WRITER, params, stream=True)
    xs = jax.random.randint(KEY, (4, rows), 0, 9)
    resets = jnp.zeros(xs.shape, bool).at[0].set(True).at[2, 1].set(True)
    # Not read, as every row is reset before its first step.
    state = {name: jnp.full((rows, 5), jnp.nan) for name in ("rnn/0/h", "rnn/0/c")}
    outputs = []
    for x, reset in zip(xs, resets, strict=True):
        state, output = exported.call(x, reset, state)
        outputs.append(output)
    last, expected = WRITER.apply(params, xs, resets=resets)
    np.testing.assert_allclose(jnp.stack(outputs), expected, atol=1e-6)
    np.testing.assert_allclose(state["rnn/0/c"], last["rnn"][0].c, atol=1e-6)


@pytest.mark.thorough
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("row", CELLS, ids=[row.name for row in CELLS])
def test_every_cell_is_exported(row, stream):
    model = jl.recurrent(row.make(), 3)
    params = drawn(model, 2)
    inputs = inputs_of(model, params)
    exported = stablehlo.dump(model, params, stream=stream)
    difference = stablehlo.compare(
        exported, model, params, stream=stream, inputs=inputs
    )
    assert difference < 1e-6


def test_a_stream_of_a_model_that_reads_ahead_is_an_error():
    backward = jl.recurrent(CELL, 3, reverse=True)
    for model in TAGGER, jl.serial(jl.residual(backward)):
        with pytest.raises(ValueError, match="stream: got a bidirectional or reversed"):
            stablehlo.dump(model, drawn(model), stream=True)


def test_the_inputs_of_an_own_layer_are_passed():
    own = HEAD._replace(trace=None)
    params = drawn(HEAD)
    with pytest.raises(ValueError, match=r"^inputs: the size .* pass inputs="):
        stablehlo.dump(own, params)
    inputs = Inputs((3,), jnp.dtype("float32"))
    exported = stablehlo.dump(own, params, inputs=inputs)
    xs = jnp.ones((2, 1, 3))
    state, outputs = exported.call(xs, ragged(2, 1))
    assert not state
    np.testing.assert_allclose(
        outputs, HEAD.apply(params, xs, lengths=ragged(2, 1))[1], atol=1e-6
    )


def test_a_program_of_another_model_is_found_and_nothing_is_written(
    tmp_path, monkeypatch
):
    pytest.importorskip("flatbuffers")
    model = jl.recurrent(CELL, 3)
    params = drawn(model)
    other = jax.tree.map(lambda a: a * 1.01, params)
    program = stablehlo.dump(model, other)
    monkeypatch.setattr(stablehlo, "dump", lambda *_, **__: program)
    path = tmp_path / "model.stablehlo"
    path.write_text("before")
    with pytest.raises(ValueError, match=r"outputs: got a difference of .*; nothing"):
        stablehlo.save(path, model, params)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


WITHOUT_JAXLSTM = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("jaxlstm", "flax", "optax"):
            raise ImportError("imported " + name)

sys.meta_path.insert(0, Refuse())
import jax, numpy as np

exported = jax.export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
with np.load(sys.argv[2]) as file:
    arrays = dict(file)
state = {name: a for name, a in arrays.items() if name.startswith("rnn")}
outputs = []
step = jax.jit(exported.call)
for x, reset in zip(arrays["xs"], arrays["resets"]):
    state, output = step(x, reset, state)
    outputs.append(output)
np.save(sys.argv[3], np.stack(outputs))
"""


@pytest.mark.combinations
def test_a_file_runs_in_a_process_without_jaxlstm(tmp_path):
    pytest.importorskip("flatbuffers")
    model, rows = jl.serial(rnn=jl.recurrent(CELL, 3)), 2
    params, path = drawn(model), tmp_path / "model.stablehlo"
    assert stablehlo.save(path, model, params, stream=True) < 1e-6
    xs = np.random.default_rng(0).normal(size=(4, rows, 3)).astype(np.float32)
    resets = np.zeros(xs.shape[:2], bool)
    resets[2, 1] = True
    state = {name: np.zeros((rows, 3), np.float32) for name in ("rnn/h", "rnn/c")}
    given, results = tmp_path / "given.npz", tmp_path / "outputs.npy"
    np.savez(given, xs=xs, resets=resets, **state)
    subprocess.run([sys.executable, "-c", WITHOUT_JAXLSTM, path, given, results],
                   check=True)  # fmt: skip
    expected = model.apply(params, xs, resets=resets)[1]
    np.testing.assert_allclose(np.load(results), expected, atol=1e-6)


def test_damaged_and_hostile_files_are_errors_of_one_sentence(tmp_path):
    pytest.importorskip("flatbuffers")
    path = tmp_path / "model.stablehlo"

    def refusal(data):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: got ") as error:
            stablehlo.load(path)
        message = str(error.value)
        assert "\n" not in message
        return message

    def program(function):
        check = export.DisabledSafetyCheck.custom_call(CALLBACK)
        exporter = export.export(jax.jit(function), disabled_checks=[check])
        return bytes(exporter(jax.ShapeDtypeStruct((2,), jnp.float32)).serialize())

    def callback(x):  # would read a Python function from an address in the file
        struct = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return jax.ffi.ffi_call(CALLBACK, struct)(x, index=np.uint64(0))

    written = program(jnp.sin)
    path.write_bytes(written)
    assert stablehlo.load(path).platforms == ("cpu",)
    for damaged in b"", b"no program", written[:50], written[: len(written) // 2]:
        refusal(damaged)
    assert "custom call" in refusal(program(callback))


def test_a_missing_library_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    model = jl.recurrent(CELL, 3)
    message = r'pip install "jaxlstm\[stablehlo\]"'
    with pytest.raises(ImportError, match=message):
        stablehlo.save(tmp_path / "file", model, drawn(model))
    with pytest.raises(ImportError, match=message):
        stablehlo.load(tmp_path / "file")
