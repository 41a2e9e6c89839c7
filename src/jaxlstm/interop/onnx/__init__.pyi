from .activations import NodeActivation as NodeActivation
from .reader import load as load
