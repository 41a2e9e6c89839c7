"""Engine that runs recurrent steps in a compiled CPU kernel.

`loop.cpp` is the kernel, `compiling` compiles it when the package is installed, `build`
loads it, and `engine` calls it through `jax.ffi`.
"""

from jaxlstm import _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
