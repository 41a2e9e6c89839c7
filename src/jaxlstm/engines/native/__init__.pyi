from .build import BuildError as BuildError
from .build import load as load
from .engine import run as run
