"""`export` and `import`: runs to the files of other libraries, and models from them."""

import importlib.util
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file

import jaxlstm as jl
from cases import assert_same
from jaxlstm.lab import cli, conversion
from jaxlstm.lab._util.errors import BadInput

ORDER = "embed,rnn,unembed"  # the layers of a language model with parameters


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Train a tiny run."""
    folder = tmp_path_factory.mktemp("conversion")
    book = folder / "book.txt"
    book.write_text(tiny.text())
    config = tiny.config(book, steps=10)
    config = tiny.config(book, steps=10)
    return jl.lab.train(config, run=folder / "run", sink=tiny.RecordingSink())


def thorough(value):
    return pytest.param(value, marks=pytest.mark.thorough)


def needs(*modules):
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")


def outputs(params, model):
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 9, (7, 3)))
    return model.apply(params, tokens)


@pytest.mark.parametrize(
    "library", ["torch", *map(thorough, ("flax", "haiku", "equinox", "keras"))]
)
def test_weights_are_those_of_dump(library, run, tmp_path):
    path = tmp_path / f"weights.{library}.safetensors"
    found = conversion.export(run.run, library, out=path)
    written = getattr(jl.interop, library).dump(run.model, run.params)
    expected = [np.asarray(leaf) for leaf in jax.tree.leaves(written)]
    arrays = list(load_file(path).values())
    assert len(arrays) == len(expected)
    for array in expected:
        assert any(np.array_equal(array, other) for other in arrays)
    assert found.shapes["rnn/0/w_h"] == (12, 4, 12)


def test_a_model_file_has_the_model_and_the_vocabulary(run, tmp_path):
    path = tmp_path / "a.jaxlstm.safetensors"
    conversion.export(run.run, "safetensors", out=path)
    params, model = jl.interop.model_file.load(path)
    assert_same(outputs(params, model), outputs(run.params, run.model), 1e-6)
    spec = json.loads((tmp_path / "a.jaxlstm.safetensors.spec.json").read_text())
    assert spec["symbols"] == list(run.vocabulary.symbols)


def test_no_file_beside_an_export_is_replaced(run, tmp_path):
    spec = tmp_path / "a.torch.safetensors.spec.json"
    spec.write_text("mine")
    with pytest.raises(BadInput, match="already exists"):
        conversion.export(run.run, "torch", out=tmp_path / "a.torch.safetensors")
    assert spec.read_text() == "mine"
    assert sorted(tmp_path.iterdir()) == [spec]


def test_weights_come_back_as_a_model_file(run, tmp_path, capsys):
    """By the command line, under the names of torch."""
    weights = tmp_path / "net.torch.safetensors"
    assert (
        cli.main(["export", str(run.run), "--to", "torch", "--out", str(weights)]) == 0
    )
    words = ["import", str(weights), "--from", "torch", "--prefix", ORDER]
    assert cli.main(words) == 0
    assert "rnn/w_h" in capsys.readouterr().out
    params, _ = jl.interop.model_file.load(tmp_path / "net.torch.jaxlstm.safetensors")
    assert np.array_equal(params["rnn"].w_h, run.params["rnn"][0].w_h)
    assert np.array_equal(params["embed"].table, run.params["embed"].table)


@needs("onnx", "onnxruntime")
@pytest.mark.parametrize("stream", [False, True])
def test_onnx_files_are_compared(stream, run, tmp_path):
    path = tmp_path / "model.onnx"
    found = conversion.export(run.run, "onnx", out=path, stream=stream)
    assert "differs by" in found.check
    if not stream:
        conversion.import_model(path, out=tmp_path / "b.safetensors")
        params, model = jl.interop.model_file.load(tmp_path / "b.safetensors")
        assert_same(outputs(params, model)[1], outputs(run.params, run.model)[1], 1e-6)


@needs("flatbuffers")
@pytest.mark.parametrize("stream", [True, thorough(False)])
def test_programs_are_compared(stream, run, tmp_path):
    path = tmp_path / "model.stablehlo"
    found = conversion.export(run.run, "stablehlo", out=path, stream=stream)
    assert "differs by" in found.check
    assert path.stat().st_size > 0


def test_exports_go_into_the_run_or_beside_a_model_file(run, tmp_path):
    found = conversion.export(run.run, "safetensors")
    assert found.path == run.run / "export" / "model.jaxlstm.safetensors"
    again = conversion.export(found.path, "torch")
    assert again.path == run.run / "export" / "model.torch.safetensors"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["export", "RUN", "--to", "caffe"], "--to: got 'caffe', expected one of onnx"),
        (["export", "RUN", "--to", "torch", "--stream"], "expected onnx or stablehlo"),
        (["export", "RUN", "--to", "torch", "--out", "w.bin"], "ends in .safetensors"),
        (["export", "RUN", "--to", "torch", "--out", "old.torch.safetensors"],
         "old.torch.safetensors: already exists; choose another --out"),
        (["export", "RUN", "--to", "rtneural"], "RTNeural has no embedding"),
        (["export", "nothing", "--to", "torch"], "nothing"),
        (["export", "broken.safetensors", "--to", "torch"], "broken.safetensors"),
        (["import", "nothing.pt"], "nothing.pt"),
        (["import", "old.txt"], "pass --from torch, keras"),
        (["import", "broken.safetensors"], "pass --from torch, keras"),
        (["import", "old.torch.safetensors"], "torch.load: old.torch.safetensors"),
        (["import", "old.jaxlstm.safetensors"], "which needs no import"),
        (["import", "old.txt", "--from", "caffe"], "--from: got 'caffe'"),
        (["import", "broken.safetensors", "--from", "torch"], "broken.safetensors"),
    ],
)  # fmt: skip
def test_mistakes_are_one_sentence(words, message, run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in "old.torch.safetensors", "old.txt", "broken.safetensors":
        (tmp_path / name).write_bytes(b"\xff" * 64)
    words = [str(run.run) if word == "RUN" else word for word in words]
    assert cli.main(words) == 2
    found = capsys.readouterr().err
    assert message in found
    assert found.count("\n") == 1


def test_the_library_is_known_by_the_suffix(tmp_path):
    for name, library in ("a.pt", "torch"), ("a.h5", "keras"), ("a.onnx", "onnx"):
        with pytest.raises(BadInput, match=rf"{name}|{library}"):
            conversion.import_model(tmp_path / name)


def flax_weights(run, path):
    conversion.export(run.run, "flax", out=path)
    return path


def test_a_conversion_is_compared_in_its_library(run, tmp_path, capsys):
    """Flax is always installed; the other libraries are thorough tests of `interop`."""
    weights = flax_weights(run, tmp_path / "net.flax.safetensors")
    words = ["import", str(weights), "--from", "flax", "--prefix", ORDER, "--check"]
    assert cli.main(words) == 0
    assert re.search(
        r"differs by \d\.\de-0[789] from flax \d.*in outputs", (capsys.readouterr().out)
    )


def test_a_conversion_that_differs_is_refused_with_check(run, tmp_path, monkeypatch):
    weights = flax_weights(run, tmp_path / "net.flax.safetensors")
    load = jl.interop.flax.load

    def wrong(source, **options):
        params, model = load(source, **options)
        first = params["rnn"]
        return params | {"rnn": first._replace(b=first.b + 0.1)}, model

    # The weights are those of the file, the model that was made of them is not.
    source = conversion.SOURCES["flax"]
    right, _ = load(weights, prefix=ORDER.split(","))

    def compare(path, model, params):
        theirs = jl.interop.reference("flax", model, right)
        return jl.interop.compare(model, params, theirs), "flax"

    changed = source._replace(load=wrong, compare=compare)
    monkeypatch.setitem(conversion.SOURCES, "flax", changed)
    out = tmp_path / "new.safetensors"
    given = {"prefix": ORDER.split(","), "out": out}
    with pytest.raises(conversion.Differs, match=r"differs by .* expected at most 1"):
        conversion.import_model(weights, "flax", **given, tolerance=1e-5)
    assert not out.exists()
    assert "differs by" in conversion.import_model(weights, "flax", **given).check


def test_check_needs_a_library_that_runs(run, tmp_path, capsys):
    words = ["export", str(run.run), "--to", "rtneural", "--check"]
    assert cli.main(words) == 2
    assert "which no other library runs in Python" in capsys.readouterr().err
    words = ["export", str(run.run), "--to", "flax", "--check", "1e-20"]
    assert cli.main([*words, "--out", str(tmp_path / "a.flax.safetensors")]) == 1
    assert "expected at most 1.0e-20; nothing was written" in capsys.readouterr().err


def test_layers_to_choose_from_are_named_as_options(run, tmp_path, capsys):
    weights = flax_weights(run, tmp_path / "net.flax.safetensors")
    assert cli.main(["import", str(weights), "--from", "flax"]) == 2
    said = capsys.readouterr().err
    assert "pass --prefix rnn for one of them, or --prefix rnn,embed," in said


def test_files_beside_a_model_file_have_its_name(run, tmp_path):
    path = tmp_path / "a.jaxlstm.safetensors"
    conversion.export(run.run, "safetensors", out=path)
    assert conversion.export(path, "torch").path.name == "a.torch.safetensors"
