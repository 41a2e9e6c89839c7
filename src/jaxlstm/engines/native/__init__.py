"""Engine that runs the LSTM in a CPU kernel compiled on the user's machine.

`lstm_loop.cpp` is the kernel, `build` compiles and loads it, and `engine` calls it
through `jax.ffi`.
"""

from jaxlstm.engines.native.build import BuildError as BuildError
from jaxlstm.engines.native.build import load as load
from jaxlstm.engines.native.engine import run as run
