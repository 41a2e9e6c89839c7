"""What happens inside a network: arrays in, arrays out, under `jit` and `vmap` too.

    gates         saturation, timescales, fractions, closed intervals: of a trace
    units         which units are dead, and which say the same
    gradients     gradient flow, the carousel, memory span, cells side by side
    dynamics      Jacobians of the steps, their spectra, Lyapunov exponents
    attribution   what each input contributed to an output

Time is counted in steps. A step that does not happen counts nowhere: hand over the
lengths, mask and resets that `unroll` was given. Statistics are over all steps of all
rows; for each row apart, `jax.vmap` them over the batch axis. Of a cell with spatial
axes, they are over all places too.

Time runs forward. Of what ran backward, `closed_intervals` and `forget_products` take
the resets of that run and the `reverse=True` that `unroll` was given, or those of
`backward_resets` for the backward part of a bidirectional layer; for the other
statistics it is all one. Those that run a cell themselves, such as `gradient_flow`,
`carousel` and `memory_span`, take no reverse: flip the inputs.
"""

from jaxlstm.diagnostics import attribution as attribution
from jaxlstm.diagnostics import dynamics as dynamics
from jaxlstm.diagnostics import gates as gates
from jaxlstm.diagnostics import gradients as gradients
from jaxlstm.diagnostics import units as units
from jaxlstm.diagnostics.attribution import Attribution as Attribution
from jaxlstm.diagnostics.attribution import integrated_gradients as integrated_gradients
from jaxlstm.diagnostics.dynamics import Spectrum as Spectrum
from jaxlstm.diagnostics.dynamics import jacobian_spectrum as jacobian_spectrum
from jaxlstm.diagnostics.dynamics import lyapunov_exponents as lyapunov_exponents
from jaxlstm.diagnostics.dynamics import step_jacobians as step_jacobians
from jaxlstm.diagnostics.gates import ClosedIntervals as ClosedIntervals
from jaxlstm.diagnostics.gates import Fractions as Fractions
from jaxlstm.diagnostics.gates import Saturation as Saturation
from jaxlstm.diagnostics.gates import backward_resets as backward_resets
from jaxlstm.diagnostics.gates import closed_intervals as closed_intervals
from jaxlstm.diagnostics.gates import forget_products as forget_products
from jaxlstm.diagnostics.gates import fractions as fractions
from jaxlstm.diagnostics.gates import saturation as saturation
from jaxlstm.diagnostics.gates import timescales as timescales
from jaxlstm.diagnostics.gradients import Carousel as Carousel
from jaxlstm.diagnostics.gradients import GradientFlow as GradientFlow
from jaxlstm.diagnostics.gradients import MemorySpan as MemorySpan
from jaxlstm.diagnostics.gradients import carousel as carousel
from jaxlstm.diagnostics.gradients import compare as compare
from jaxlstm.diagnostics.gradients import gradient_flow as gradient_flow
from jaxlstm.diagnostics.gradients import memory_span as memory_span
from jaxlstm.diagnostics.units import Duplicates as Duplicates
from jaxlstm.diagnostics.units import dead_units as dead_units
from jaxlstm.diagnostics.units import duplicate_units as duplicate_units
