"""Engine that runs the LSTM in a CPU kernel compiled on the user's machine.

`lstm_loop.cpp` is the kernel, `build` compiles and loads it, and `engine` calls it
through `jax.ffi`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
