from . import files as files
from . import layout as layout
from . import torch as torch
