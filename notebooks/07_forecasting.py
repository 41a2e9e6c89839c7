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
# Daily sales of shops, four weeks ahead. Promotions are known ahead, and the day of the
# week is a feature of the calendar. The data is generated, so what a model can learn is
# known.

# %%
import os
import tempfile
from pathlib import Path

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
# The time axis is split once, at the same times for all shops. Scalers see the training
# part only, and the test part is scored once, at the end.

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
# The table at the end has the scores of the model, of seasonal naive (last week again)
# and of drift (a line through the first and the last value) on the same windows. Lower
# is better, except for the share of values inside the 80 % interval, which should be
# 80. CRPS, the continuous ranked probability score, compares all quantiles with the
# value; it has the unit of the data.

# %%
trained = jl.lab.train(SALES, run=PLACE / "sales")

# %% [markdown]
# ## What the promotions are worth
#
# The generator multiplies sales by exp(0.5) = 1.65 in a promotion, with a factor that
# varies around it from shop to shop. The model has learned it if its forecasts with a
# promotion on every day and on none differ by this factor.

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
# `predict` continues each series after its last value, for the times and with the
# promotions that are known. The columns are a table: ids, dates, intervals.

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
# %% [markdown]
# ## A backtest
#
# The scores from several origins, a horizon apart, show whether one number hides a bad
# month. All origins lie in the test part.

# %%
print(jl.lab.backtest(PLACE / "sales", windows=3))
