"""Models from ONNX files, and ONNX files from models."""

from jaxlstm.interop.onnx.reader import load as load
