"""Numbers about gates, gradients and dynamics; arrays in, arrays out.

    gates         saturation, mean fractions and timescales of gates
    intervals     intervals of closed gates, products of forget gates
    units         constant units, duplicate units
    gradients     gradient flow, the constant error carousel, memory span
    dynamics      Jacobians of the steps, their spectra, Lyapunov exponents
    attribution   contributions of the inputs to an output

All functions work under `jit` and `vmap`. Time is counted in steps. Pass the lengths,
mask and resets that were passed to `unroll`: masked and padded steps are left out.
Statistics are over all executed steps of all rows, and over all positions of a cell
with spatial axes; use `jax.vmap` over the batch axis for statistics of each row.

For a reversed run, pass `reverse=True` and the resets of that run to
`closed_intervals` and `forget_products`; `backward_resets` returns the resets of the
backward part of a bidirectional layer. The other statistics do not depend on the
direction. Functions that run the cell themselves, such as `gradient_flow`, `carousel`
and `memory_span`, run forward only: flip the inputs instead. `gradient_flow` also takes
a model, whose layers may run in any direction.
"""

from jaxlstm.diagnostics import attribution as attribution
from jaxlstm.diagnostics import dynamics as dynamics
from jaxlstm.diagnostics import gates as gates
from jaxlstm.diagnostics import gradients as gradients
from jaxlstm.diagnostics import intervals as intervals
from jaxlstm.diagnostics import units as units
from jaxlstm.diagnostics.attribution import Attribution as Attribution
from jaxlstm.diagnostics.attribution import integrated_gradients as integrated_gradients
from jaxlstm.diagnostics.dynamics import Spectrum as Spectrum
from jaxlstm.diagnostics.dynamics import jacobian_spectrum as jacobian_spectrum
from jaxlstm.diagnostics.dynamics import lyapunov_exponents as lyapunov_exponents
from jaxlstm.diagnostics.dynamics import step_jacobians as step_jacobians
from jaxlstm.diagnostics.gates import Fractions as Fractions
from jaxlstm.diagnostics.gates import Saturation as Saturation
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
from jaxlstm.diagnostics.intervals import ClosedIntervals as ClosedIntervals
from jaxlstm.diagnostics.intervals import backward_resets as backward_resets
from jaxlstm.diagnostics.intervals import closed_intervals as closed_intervals
from jaxlstm.diagnostics.intervals import forget_products as forget_products
from jaxlstm.diagnostics.units import Duplicates as Duplicates
from jaxlstm.diagnostics.units import dead_units as dead_units
from jaxlstm.diagnostics.units import duplicate_units as duplicate_units
