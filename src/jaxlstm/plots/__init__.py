"""One function per picture. Numbers in, a Matplotlib `Axes` out.

    learning   loss curves, runs and seeds compared, the gradient's norm
    gates      a gate over a text or a signal, timescales, saturation
    units      one unit's life over a text
    cells      the unrolled cell as a diagram, with its real values
    flow       gradients through time, the carousel, spectra of Jacobians
    scores     a confusion matrix, a fan of forecasts

Each draws into `ax`, or into a new figure where it is None, and returns the axes.
A picture of several panels splits `ax` and returns the top panel. The colours are
told apart by a colour-blind reader, and line style or lightness tells them apart
in black and white.

In `gradient_flow`, `carousel`, `lyapunov_exponents` and `loss_bands` what is no number
(NaN), infinite, or 0 on a logarithmic axis is marked at the edge, and the legend says
so. `timescales` says how many units are without a number; elsewhere a NaN is a gap.
"""

from importlib import import_module as _import_module

try:
    _import_module("matplotlib.axes")
except ImportError as error:
    raise ImportError(
        'jaxlstm.plots needs Matplotlib: pip install "jaxlstm[plot]"'
    ) from error

from jaxlstm.plots.cells import unrolled_cell as unrolled_cell
from jaxlstm.plots.flow import carousel as carousel
from jaxlstm.plots.flow import gradient_flow as gradient_flow
from jaxlstm.plots.flow import lyapunov_exponents as lyapunov_exponents
from jaxlstm.plots.flow import spectrum as spectrum
from jaxlstm.plots.gates import gate_heatmap as gate_heatmap
from jaxlstm.plots.gates import saturation as saturation
from jaxlstm.plots.gates import signal_heatmap as signal_heatmap
from jaxlstm.plots.gates import timescales as timescales
from jaxlstm.plots.learning import compare_runs as compare_runs
from jaxlstm.plots.learning import loss_bands as loss_bands
from jaxlstm.plots.learning import loss_curve as loss_curve
from jaxlstm.plots.learning import training_health as training_health
from jaxlstm.plots.scores import confusion_matrix as confusion_matrix
from jaxlstm.plots.scores import forecast_fan as forecast_fan
from jaxlstm.plots.units import unit_trace as unit_trace
