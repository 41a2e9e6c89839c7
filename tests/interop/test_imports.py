"""Converting arrays imports no other library."""

import subprocess
import sys

import fast_compilation

CODE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {
            "torch", "keras", "flax", "haiku", "equinox", "h5py", "onnx", "safetensors"
        }:
            raise ImportError("imported " + name)

sys.meta_path.insert(0, Refuse())
import jax
import jaxlstm as jl

model = jl.recurrent(jl.lstm(), 3)
params, _ = model.init(jax.random.key(0), 2)
for library in "torch", "keras", "flax", "haiku":
    module = getattr(jl.interop, library)
    got, same = module.load(module.dump(model, params))
    assert same == model, library
    assert all((a == b).all() for a, b in zip(got, params)), library
jl.interop.equinox.dump(model, params)
buffer = jl.interop.cudnn.dump(model, params)
jl.interop.cudnn.load(buffer, input_size=2, hidden_size=3)
try:
    jl.interop.flax.load(model)
except ImportError as error:
    print(error)
"""


def test_arrays_are_converted_without_other_libraries():
    """The Flax module at the end proves that the import hook refuses."""
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        env=fast_compilation.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "imported flax\n", done.stderr
