"""Fixtures and helpers of the tests of plots."""

import warnings

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from jaxlstm.cells.base import Gates, LSTMState
from jaxlstm.cells.emit import Trace


@pytest.fixture(autouse=True)
def no_window():
    """Draw without a screen, and close all figures afterwards."""
    from matplotlib import pyplot

    with matplotlib.rc_context({"backend": "agg"}):
        yield
    pyplot.close("all")


@pytest.fixture(name="ax")
def new_axes():
    return Figure(figsize=(8, 5), layout="constrained").add_subplot()


def drawn(ax):
    """Draw the figure, with every warning an error, and return the axes."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ax.figure.draw_without_rendering()
    return ax


def words(ax):
    """Return all text in the axes."""
    return " ".join(text.get_text() for text in ax.texts)


def trace(steps, units, seed=0):
    """Return a random trace of an LSTM."""
    draw = np.random.default_rng(seed).random
    shape = (steps, units)
    gates = Gates(draw(shape), draw(shape), draw(shape) * 2 - 1, draw(shape))
    return Trace(LSTMState(draw(shape) - 0.5, draw(shape) * 4), gates)
