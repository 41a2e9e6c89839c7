# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Forecasting with covariates, and a backtest
#
# We forecast the daily sales of shops four weeks ahead. *Covariates* are inputs beside
# the sales: here promotions, which are known ahead, the day of the week (two numbers),
# and the size of the shop. A *backtest* makes forecasts from several past dates and
# compares them with the values that followed. The data is generated, so what a model
# can learn is known.

# %%
import os
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import jaxlstm as jl
from jaxlstm import plots
from jaxlstm.lab import config, predictions, tasks
from jaxlstm.lab.tasks.forecasting import Forecaster
from jaxlstm.lab.tasks.forecasting.data import Origins

FAST = os.environ.get("FAST") == "1"
PLACE = Path(tempfile.mkdtemp())

# %% [markdown]
# ## The data and its split
#
# The time axis is split once, at the same times for all shops. Sales are scaled by
# numbers that are computed from the training part only. The test part is not used for
# training or for choosing the best parameters. A *window* is 28 days of context, which
# the model reads, and the 28 days after it, the *horizon*, which it forecasts.

# %%
SALES = {
    "task": "forecast",
    "name": "sales",
    "data": {
        "source": "generated",
        "series": 8,
        "length": 800,
        "ahead": 28,
        "calendar": ["day_of_week"],
    },
    "windows": {"context": 28, "horizon": 28},
    "model": {
        "kind": "encoder_decoder",
        "hidden_size": 32,
        "series_embedding": 4,
        "window_scaling": "standard",
        "head": {"name": "quantiles"},
        "engine": "adjoint",
    },
    "optimizer": [
        {
            "adam": {
                "learning_rate": {
                    "cosine_decay_schedule": {"init_value": 5e-3, "decay_steps": 600}
                }
            }
        }
    ],
    "training": {
        "steps": 100 if FAST else 600,
        "batch_size": 64,
        "shards": 1,
        "log_every": 100,
        "validate_every": 100,
        "checkpoint_every": 100,
    },
}
task = tasks.get("forecast")
loaded = config.load(SALES)
dataset = task.data(loaded)
task.facts(loaded, dataset)

# %% [markdown]
# ## Training
#
# While the model trains, `mae` and `mse` are the mean absolute and squared errors of
# scaled sales. The table at the end has scores on the test part: of the model, of
# seasonal naive (last week again) and of drift (a line through the first and the last
# value), on the same windows. Lower is better, except for "in 80 %" and "in 95 %", the
# shares of the values that lie inside these intervals, which should be 80 and 95.
#
# - MAE and RMSE, the mean absolute error and the root of the mean squared error, have
#   the unit of the data. MSE (scaled) is the mean squared error of scaled sales.
# - MASE is MAE divided by that of seasonal naive in the training part.
# - sMAPE is the mean of 200 % of the absolute error over the sum of the absolute values
#   of forecast and truth.
# - CRPS, the continuous ranked probability score, compares the value with the whole
#   forecast distribution; it has the unit of the data.

# %%
trained = jl.lab.train(SALES, run=PLACE / "sales")

# %% [markdown]
# ## What the promotions are worth
#
# In a promotion the generator multiplies the sales of a shop by a factor, which differs
# from shop to shop and is about exp(0.5) = 1.65. We forecast the same windows twice,
# with a promotion on every day and with no promotion. If the model has learned the
# factor, it is the ratio of the two forecasts.

# %%
tests = dataset.parts["test"]
some = Origins(tests.series[::40], tests.row[::40])
windows = dataset.source.cut(some)
column = dataset.spec.names["future"].index("promotion")
centers, scales = dataset.spec.covariates["future"]
forecaster = Forecaster(loaded, trained.spec, trained.model, trained.params)


def forecast_with(promotion):
    future = windows.future.copy()
    future[-28:, :, column] = (promotion - centers[column]) / scales[column]
    return forecaster(windows._replace(future=future)).point


lift = forecast_with(1.0) / forecast_with(0.0)
print(f"sales with promotions / without: {np.median(lift):.2f}, true: about 1.65")

# %% [markdown]
# ## A forecast
#
# `predict` forecasts the 28 days after the last value of each series, whose promotions
# are known. It returns a table as a dict of columns: ids, dates, forecasts and the ends
# of the intervals. In the plot of the first shop the high sales of the history, 59 to
# 50 and 29 to 23 days before its last day, are promotions. The next promotion
# covers the last two days of the forecast.

# %%
columns = jl.lab.predict(PLACE / "sales")
print(predictions.head(columns, rows=5))

# %%
first = columns["unique_id"] == "shop_001"
levels = {0.025: "lo-95", 0.1: "lo-80", 0.5: "forecast", 0.9: "hi-80", 0.975: "hi-95"}
begin = dataset.series.offsets[0]
sales = dataset.series.target[begin : begin + dataset.series.target_lengths[0]]
plots.forecast_fan(
    sales[-84:],
    {level: columns[name][first] for level, name in levels.items()},
    label="sales of shop_001",
)
plt.show()

# %% [markdown]
# ## A backtest
#
# The backtest forecasts from three start dates (*origins*), 28 days apart, and scores
# each of them, so that a bad month is not hidden in a good mean. All origins lie in the
# test part.

# %%
print(jl.lab.backtest(PLACE / "sales", windows=3))
