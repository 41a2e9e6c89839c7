from .activations import NodeActivation as NodeActivation
from .reader import load as load
from .reader import ports as ports
from .running import compare as compare
from .saving import Report as Report
from .saving import save as save
from .writer import dump as dump
