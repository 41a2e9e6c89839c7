from .build import describe as describe
from .build import load as load
from .build import load_built as load_built
from .compiling import BuildError as BuildError
from .engine import run as run
