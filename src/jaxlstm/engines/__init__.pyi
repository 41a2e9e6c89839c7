from . import adjoint as adjoint
from . import memory as memory
from . import native as native
from . import scan as scan
