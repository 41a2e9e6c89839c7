from . import linen as linen
from . import nnx as nnx
