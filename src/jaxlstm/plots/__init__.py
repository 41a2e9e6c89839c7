"""Plots: one function per plot, from numbers to a Matplotlib `Axes`.

    learning   loss curves, comparisons of runs and seeds, gradient norms
    gates      a gate over a text or a signal, timescales, saturation
    units      one unit over a text
    cells      a diagram of the unrolled cell with its values
    flow       gradients through time, the carousel, spectra of Jacobians
    scores     a confusion matrix, quantile forecasts
    classification   the probability of the right class while a sequence is read
    forecasts  errors by horizon, residuals

Each function draws into `ax`, or into a new figure if it is None, and returns the axes.
A plot of several panels splits `ax` and returns the top panel. Curves remain
distinguishable for colour-blind readers, and in greyscale by line style or lightness.

`gradient_flow`, `carousel`, `lyapunov_exponents` and `loss_bands` mark values that the
axis cannot show at its edge: NaN, infinities, and 0 on a logarithmic axis; the legend
names the marks. `timescales` writes the number of units with NaN. Elsewhere NaN is a
gap.
"""

from importlib import import_module as _import_module

try:
    _import_module("matplotlib.axes")
except ImportError as error:
    raise ImportError(
        'jaxlstm.plots needs Matplotlib: pip install "jaxlstm[plot]"'
    ) from error

from jaxlstm.plots.cells import unrolled_cell as unrolled_cell
from jaxlstm.plots.classification import decision_curves as decision_curves
from jaxlstm.plots.flow import carousel as carousel
from jaxlstm.plots.flow import gradient_flow as gradient_flow
from jaxlstm.plots.flow import lyapunov_exponents as lyapunov_exponents
from jaxlstm.plots.flow import spectrum as spectrum
from jaxlstm.plots.forecasts import error_by_horizon as error_by_horizon
from jaxlstm.plots.forecasts import residuals as residuals
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
