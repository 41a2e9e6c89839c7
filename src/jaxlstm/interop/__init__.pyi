from . import files as files
from . import keras as keras
from . import layout as layout
from . import onnx as onnx
from . import stablehlo as stablehlo
from . import torch as torch
