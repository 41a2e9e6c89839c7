"""Engine that runs recurrent steps in a compiled CPU kernel.

`loop.cpp` is the kernel, `compiling` compiles it when the package is installed, `build`
loads it, and `engine` calls it through `jax.ffi`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
