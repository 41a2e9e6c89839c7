"""Weights from and to other libraries, and other files that describe models.

    torch, keras, flax, haiku, equinox, cudnn   `load` and `dump`
    onnx                                        models from and to ONNX files
    stablehlo                                   programs that run without this package
    model_file                                  a model and its parameters in one file
    rtneural                                    models of audio plugins
    layout                                      one table of all layouts
    compare                                     differences between two models
    reference                                   a model, run by another library

`load(source)` returns `(params, model)`; `dump(model, params)` returns arrays under the
names of the library. Arrays are converted without importing the library.
"""

from jaxlstm import _lazy

SYNONYMS = {
    "dump": "torch.dump",
    "linen": "flax",
    "load": "torch.load",
    "nnx": "flax",
    "pytorch": "torch",
    "safetensors": "model_file",
    "save": "model_file.save",
    "tensorflow": "keras",
}

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__, SYNONYMS)
