"""Engine that computes each weight gradient as one product after the backward loop.

`partition` sorts the operations of a step, `steps` and `tangents` build its derivative,
and `engine` runs the loops.
"""

from jaxlstm.engines.adjoint.engine import Mode as Mode
from jaxlstm.engines.adjoint.engine import mode as mode
from jaxlstm.engines.adjoint.engine import run as run
