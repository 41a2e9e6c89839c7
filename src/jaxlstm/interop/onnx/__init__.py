"""Models from and to ONNX files.

    load      params and model of a file with LSTM, GRU or RNN nodes
    dump      the `onnx.ModelProto` of a model
    save      a file of a model, compared with onnxruntime before it is kept
    ports     inputs and output of a file, and the order of their axes
    compare   the difference between a file and the model read from it

The names are listed in `__init__.pyi` and imported on first use.
"""

from jaxlstm import _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
