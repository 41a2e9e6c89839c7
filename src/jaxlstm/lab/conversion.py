"""Models between runs and the files of other libraries.

    export           a run, or a model file  ->  a file for another library or runtime
    import_model     a file of another library  ->  a model file

A model file holds the parameters and the description of the model; see
`jaxlstm.interop.model_file`.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxlstm.lab._util.errors import BadInput, LabError
from jaxlstm.lab._util.files import reason, write_atomic
from jaxlstm.lab.native import without_kernel
from jaxlstm.lab.runs import trained

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

    from jaxlstm.interop.comparison import Comparison
    from jaxlstm.layers.base import Layer


class Target(NamedTuple):
    """A form in which models are exported.

    Attributes:
        suffix: of the name of the file.
        write: writes `(path, model, params, stream=..., tolerance=...)` and returns a
            sentence on what was written. It raises a `ValueError` for a program that
            differs from the model by more than the tolerance.
        streams: whether the program of a single step can be written.
        library: the library that runs the model for a comparison, if weights are
            written.
    """

    suffix: str
    write: Callable[..., str]
    streams: bool = False
    library: str | None = None


class Source(NamedTuple):
    """A library whose files are imported.

    Attributes:
        suffixes: of the names of its files.
        load: `(path, prefix=...) -> (params, model)`.
        compare: `(path, model, params) -> Comparison` with the other library.
    """

    suffixes: tuple[str, ...]
    load: Callable[..., tuple[Any, Any]]
    compare: "Callable[[Path, Layer, Any], tuple[Comparison, str]] | None" = None


class Converted(NamedTuple):
    """A file that was written.

    Attributes:
        path: the file.
        shapes: the shape of each parameter of the model, by name.
        check: a sentence on what was written and how it was compared.
        spec: a file beside it on what the model's numbers mean, such as the vocabulary
            of its tokens; None if that is not known.
    """

    path: Path
    shapes: dict[str, tuple[int, ...]]
    check: str
    spec: Path | None = None

    def __str__(self) -> str:
        """Return a table of the parameters, and the path of the file."""
        width = max(map(len, self.shapes), default=0)
        lines = [
            f"{name:{width}}  {' x '.join(map(str, shape)) or 'scalar'}"
            for name, shape in self.shapes.items()
        ]
        lines.append(f"wrote {self.path}: {self.check}")
        if self.spec is not None:
            lines.append(f"wrote {self.spec}: the meaning of inputs and outputs")
        return "\n".join(lines)


def export(
    source: str | Path,
    to: str,
    *,
    out: str | Path | None = None,
    stream: bool = False,
    tolerance: float | None = None,
) -> Converted:
    """Write the model of a run for another library or runtime.

    Programs are run on random sequences and compared with the model; one that differs
    is not kept. Weights are run in modules of their library if it is installed.

    Args:
        source: a run directory, or a model file.
        to: a key of `TARGETS`.
        out: the file to write; default: `export/model` and the suffix of the target in
            the run directory, or the name of the model file with this suffix. It must
            not exist.
        stream: write the program of one step, with the state as input and output.
        tolerance: the largest difference that is accepted, relative to the largest
            output if that exceeds 1; None reports the difference only.

    Raises:
        Differs: the difference exceeds the tolerance; nothing is written.
        BadInput: the source, the target or the file is wrong, or the target has no
            counterpart of a layer of the model.
    """
    target = TARGETS.get(to)
    if target is None:
        raise BadInput(f"--to: got {to!r}, expected one of {', '.join(TARGETS)}")
    if stream and not target.streams:
        streams = [name for name, each in TARGETS.items() if each.streams]
        raise BadInput(
            f"--stream: got the target {to}, which holds weights and no program; "
            f"expected {' or '.join(streams)}"
        )
    if tolerance is not None and not (target.streams or target.library):
        others = [n for n, each in TARGETS.items() if each.streams or each.library]
        raise BadInput(
            f"--check: got the target {to}, which no other library runs in Python; "
            f"expected one of {', '.join(others)}"
        )
    source = Path(source)
    spec = None
    if source.is_file():
        with _as_bad_input():
            params, model = _interop().model_file.load(source)
        folder = source.parent
        name = source.name.partition(".")[0] + (".stream" if stream else "")
    else:
        run = trained.load(source)
        model = run.task.model(without_kernel(run.config), run.spec)
        params, folder = run.params, run.run / "export"
        name = "stream" if stream else "model"
        spec = run.task.spec_to_json(run.spec)
    path = folder / (name + target.suffix) if out is None else Path(out)
    _prepare(path, Path(target.suffix).suffix)
    spec_path = None if spec is None else path.with_name(f"{path.name}.spec.json")
    if spec_path is not None:
        _prepare(spec_path, ".json")
    compared = ""
    if target.library is not None:
        compare = _in_library(target.library)
        compared = _compared(compare, path, model, params, tolerance)
    with _as_bad_input():
        limit = {} if tolerance is None else {"tolerance": tolerance}
        check = target.write(path, model, params, stream=stream, **limit) + compared
        if spec_path is not None:
            write_atomic(spec_path, json.dumps(spec, indent=1).encode())
    return Converted(path, _shapes(params), check, spec_path)


def import_model(
    file: str | Path,
    library: str | None = None,
    *,
    prefix: str | Sequence[str] = "",
    out: str | Path | None = None,
    tolerance: float | None = None,
) -> Converted:
    """Read a model of another library and write it as a model file.

    If the library is installed, the model is run there and here on random ragged
    sequences, and the largest difference is reported.

    Args:
        file: the file; nothing in it is executed.
        library: a key of `SOURCES`; None for the one whose files have this suffix.
        prefix: the name of one layer, or of several in the order of the model.
        out: the model file; default: the name of the file with the suffix
            `.jaxlstm.safetensors`. It must not exist.
        tolerance: the largest difference that is accepted, relative to the largest
            output if that exceeds 1; None reports the difference only.

    Raises:
        Differs: the difference exceeds the tolerance; nothing is written.
        BadInput: the file cannot be read, or holds no model that can be built here.
    """
    file = Path(file)
    source = SOURCES[_library(file, library)]
    try:
        with _as_bad_input():
            params, model = source.load(file, prefix=prefix)
    except BadInput as error:
        message = _interop().parts.as_options(str(error))
        raise BadInput(message) from error
    path = file.with_suffix(".jaxlstm.safetensors") if out is None else Path(out)
    _prepare(path, ".safetensors")
    compared = _compared(source.compare, file, model, params, tolerance)
    with _as_bad_input():
        _interop().model_file.save(path, model, params)
    return Converted(path, _shapes(params), f"from {file}{compared}")


def _library(file: Path, library: str | None) -> str:
    if library is not None:
        if library in SOURCES:
            return library
        raise BadInput(f"--from: got {library!r}, expected one of {', '.join(SOURCES)}")
    if file.name.endswith(TARGETS["safetensors"].suffix):
        raise BadInput(
            f"{file}: got a model file of jaxlstm, which needs no import; pass it to "
            "jaxlstm export, or to jl.interop.model_file.load"
        )
    suffix = file.suffix.lower()
    for name, each in SOURCES.items():
        exported = name in TARGETS and file.name.endswith(TARGETS[name].suffix)
        if suffix in each.suffixes or exported:
            return name
    raise BadInput(
        f"{file}: got a file named {suffix or 'without a suffix'}, which does not tell "
        f"the library; pass --from {', '.join(SOURCES)}"
    )


def _prepare(path: Path, suffix: str) -> None:
    """Make the folder of a file that is written.

    Raises:
        BadInput: the file exists, has another suffix, or cannot be written.
    """
    if not path.name.endswith(suffix):
        raise BadInput(f"{path}: got another name, expected one that ends in {suffix}")
    if path.exists():
        raise BadInput(f"{path}: already exists; choose another --out")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(
            f"{path}: cannot be written ({reason(error)}); choose another --out"
        ) from error


@contextmanager
def _as_bad_input() -> "Iterator[None]":
    """Raise errors of `jaxlstm.interop` as the errors of a run."""
    try:
        yield
    except (ValueError, NotImplementedError, ImportError) as error:
        raise BadInput(str(error)) from error
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        raise BadInput(f"{place}{reason(error)}") from error


def _interop() -> Any:
    from jaxlstm import interop

    return interop


def _shapes(params: Any) -> dict[str, tuple[int, ...]]:
    from jaxlstm.interop.trees import named_leaves

    return {name: leaf.shape for name, leaf in named_leaves(params).items()}


# -- comparison ------------------------------------------------------------------------


class Differs(LabError):
    """A converted model computes other numbers than its library, or is not compared."""


def _compared(
    compare: "Callable[[Path, Layer, Any], tuple[Comparison, str]] | None",
    path: Path,
    model: "Layer",
    params: Any,
    tolerance: float | None,
) -> str:
    """Compare a model with another library, and return the end of a sentence.

    Raises:
        Differs: the difference exceeds `tolerance`, or there is a tolerance and the
            model cannot be compared.
    """
    try:
        if compare is None:
            raise ValueError("its library does not run in Python")
        found, library = compare(path, model, params)
    except (ImportError, ValueError, NotImplementedError) as error:
        if tolerance is None:
            return f"; not compared: {error}"
        raise Differs(f"{path}: --check: cannot be compared: {error}") from error
    if tolerance is not None and not found.largest <= tolerance:
        raise Differs(
            f"{path}: differs by {found.largest:.1e} from {library}, expected at most "
            f"{tolerance:.1e}; nothing was written\n{found}"
        )
    names = " and ".join(dict.fromkeys(d.name for d in found.differences))
    return f"; differs by {found.largest:.1e} from {library} in {names}"


def _in_library(name: str) -> "Callable[[Path, Layer, Any], tuple[Comparison, str]]":
    """Return the comparison of a model with the modules of a library."""

    def compare(path: Path, model: "Layer", params: Any) -> "tuple[Comparison, str]":
        interop = _interop()
        try:
            theirs = interop.reference(name, model, params)
        except ImportError as error:
            raise ImportError(f"{name} is not installed") from error
        version = interop.references.version(name)
        return interop.compare(model, params, theirs), version

    return compare


def _in_onnxruntime(
    path: Path, model: "Layer", params: Any
) -> "tuple[Comparison, str]":
    """Return the comparison of a model with the file that it was read from."""
    try:
        import onnxruntime
    except ImportError as error:
        advice = 'onnxruntime is not installed: pip install "jaxlstm[onnx]"'
        raise ImportError(advice) from error
    found = _interop().onnx.compare(path, model, params)
    return found, f"onnxruntime {onnxruntime.__version__}"


# -- targets ---------------------------------------------------------------------------


def _weights(library: str, flat: Callable[[Any], Mapping[str, "np.ndarray"]]) -> Any:
    """Return the function that writes the arrays of a library."""

    def write(path: Path, model: "Layer", params: Any, **options: Any) -> str:
        from safetensors.numpy import save

        arrays = dict(flat(getattr(_interop(), library).dump(model, params)))
        write_atomic(path, save(arrays))
        return f"{len(arrays)} arrays of {library}"

    return write


def _joined(separator: str) -> Callable[[Any], Mapping[str, "np.ndarray"]]:
    return lambda tree: _interop().files.flatten(tree, separator)


def _numbered(arrays: Sequence["np.ndarray"]) -> Mapping[str, "np.ndarray"]:
    return {f"{n:03d}": array for n, array in enumerate(arrays)}


def _write_onnx(path: Path, model: "Layer", params: Any, **options: Any) -> str:
    report = _interop().onnx.save(path, model, params, **options)
    return str(report).removeprefix(f"{path}: ")


def _write_stablehlo(path: Path, model: "Layer", params: Any, **options: Any) -> str:
    found = _interop().stablehlo.save(path, model, params, **options)
    return f"differs by {found:.1e} from the model"


def _write_model(path: Path, model: "Layer", params: Any, **options: Any) -> str:
    _interop().model_file.save(path, model, params)
    return "model and weights"


def _write_rtneural(path: Path, model: "Layer", params: Any, **options: Any) -> str:
    _interop().rtneural.save(path, model, params)
    return "layers and weights"


TARGETS = {
    "onnx": Target(".onnx", _write_onnx, streams=True),
    "stablehlo": Target(".stablehlo", _write_stablehlo, streams=True),
    "safetensors": Target(".jaxlstm.safetensors", _write_model),
    "torch": Target(".torch.safetensors", _weights("torch", dict), library="torch"),
    "keras": Target(
        ".keras.safetensors", _weights("keras", _numbered), library="keras"
    ),
    "flax": Target(".flax.safetensors", _weights("flax", _joined("/")), library="flax"),
    "haiku": Target(
        ".haiku.safetensors", _weights("haiku", _joined("/")), library="haiku"
    ),
    "equinox": Target(
        ".equinox.safetensors", _weights("equinox", dict), library="equinox"
    ),
    "rtneural": Target(".json", _write_rtneural),
}


def _loader(library: str) -> Callable[..., tuple[Any, Any]]:
    def load(path: Path, *, prefix: str | Sequence[str]) -> tuple[Any, Any]:
        options = {"prefix": prefix} if prefix else {}
        return getattr(_interop(), library).load(path, **options)

    return load


SOURCES = {
    "torch": Source(
        (".pt", ".pth", ".ckpt", ".bin"), _loader("torch"), _in_library("torch")
    ),
    "keras": Source((".h5", ".keras"), _loader("keras"), _in_library("keras")),
    "onnx": Source((".onnx",), _loader("onnx"), _in_onnxruntime),
    "rtneural": Source((".json",), _loader("rtneural")),
    "flax": Source((), _loader("flax"), _in_library("flax")),
    "haiku": Source((), _loader("haiku"), _in_library("haiku")),
}
