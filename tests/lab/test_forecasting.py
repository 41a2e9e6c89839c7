"""Forecast models learn, resume exactly, and predict the times after the data."""

import csv
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlstm as jl
from jaxlstm.lab import cli, predictions, tasks
from jaxlstm.lab import config as configs
from jaxlstm.lab._util.errors import BadInput
from jaxlstm.lab.tasks.forecasting import models, prediction
from jaxlstm.lab.tasks.forecasting.data import ForecastDataset, Origins
from jaxlstm.lab.tasks.forecasting.forecaster import Forecaster
from jaxlstm.lab.training import optimizer as optimizers
from jaxlstm.lab.training import state

PICTURES = True  # those of the task are drawn in full

TASK = tasks.get("forecast")
KINDS = {
    "patched": "quantiles",
    "direct": "point",
    "encoder_decoder": "normal",
    "autoregressive": "student_t",
}


def config(kind="patched", **changes):
    given = {
        "task": "forecast",
        "name": "sales",
        "data": {
            "source": "generated",
            "series": 3,
            "length": 150,
            "ahead": 4,
            "calendar": ["day_of_week"],
        },
        "windows": {"context": 8, "horizon": 4, "samples": 20},
        "model": {
            "kind": kind,
            "segment": 4,
            "hidden_size": 6,
            "series_embedding": 2,
            "head": {"name": KINDS[kind]},
            "engine": "adjoint",
        },
        "optimizer": [{"adam": {"learning_rate": 0.02}}],
        "training": {
            "steps": 40,
            "batch_size": 16,
            "shards": 1,
            "steps_per_dispatch": 10,
            "log_every": 20,
            "validate_every": 20,
            "checkpoint_every": 10,
        },
    }
    return given | changes


def build(kind):
    loaded = configs.load(config(kind))
    dataset = TASK.data(loaded)
    return loaded, dataset, TASK.model(loaded, dataset.spec)


@pytest.mark.parametrize(
    "kind",
    [
        "patched",
        *(pytest.param(k, marks=pytest.mark.thorough) for k in list(KINDS)[1:]),
    ],
)
def test_each_kind_learns_and_does_not_read_the_horizon(kind):
    loaded, dataset, model = build(kind)
    optimizer = optimizers.build(loaded.optimizer)
    start = state.initial_state(
        TASK, model, optimizer, TASK.batch_like(loaded, dataset.spec), seed=0
    )
    train = jax.jit(lambda now, xs: state.train_steps(TASK, model, optimizer, now, xs))
    end, steps = train(start, dataset.batches(0, 60))
    assert bool(end.healthy)
    assert steps.loss[-10:].mean() < steps.loss[:10].mean()
    forecaster = Forecaster(loaded, dataset.spec, model, end.params)
    tests = dataset.parts["test"]
    windows = dataset.source.cut(Origins(tests.series[:5], tests.row[:5]))
    levels = (0.1, 0.9) if forecaster.has_quantiles else ()
    found = forecaster(windows, levels=levels)
    other = windows.target.copy()
    other[8:] = 1e3
    again = forecaster(windows._replace(target=other), levels=levels)
    np.testing.assert_array_equal(found.point, again.point)
    assert found.point.shape == (4, 5)
    if levels:
        assert found.quantiles is not None
        assert (found.quantiles[..., 0] < found.quantiles[..., 1]).all()


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["patched", "direct", "encoder_decoder"])
def test_a_forecast_goes_on_from_a_state(kind):
    loaded, dataset, model = build(kind)
    params, _ = model.init(jax.random.key(0))
    tests = dataset.parts["test"]
    origins = Origins(tests.series[:2], tests.row[:2])
    whole = dataset.source.cut(origins)
    window = whole._replace(target=whole.target, observed=whole.observed)
    forecaster = Forecaster(loaded, dataset.spec, model, params)
    first = _rows(window, 0, 4)
    begun = forecaster.encode(first)
    _, resumed = forecaster.go_on(begun, _rows(window, 4, 4))
    at_once, _ = model.apply(params, window, None)
    # The same center: that of the first rows.
    scaled = model.apply(params, window, begun._replace(rnn=None))[1]
    expected = np.asarray(model.head.point(scaled))
    center, scale = np.array(dataset.spec.center), np.array(dataset.spec.scale)
    expected = expected * scale[window.series] + center[window.series]
    np.testing.assert_allclose(resumed.point, expected, rtol=1e-4)
    assert jax.tree.structure(at_once) == jax.tree.structure(begun)


def _rows(windows, first, count):
    """Return `count` rows as context, with the horizon of the whole window."""
    rows = slice(first, first + count)

    def joined(values):
        return np.concatenate([values[rows], values[8:]])

    return windows._replace(
        target=joined(windows.target),
        observed=joined(windows.observed),
        past=windows.past[rows],
        future=joined(windows.future),
    )


def test_losses_of_missing_targets_have_no_effect():
    _, dataset, model = build("direct")
    params, _ = model.init(jax.random.key(0))
    batch = dataset.batch(0)
    hidden = batch.windows.observed.copy()
    hidden[8:10, 0] = False
    hidden[8:, 1] = False
    target = np.where(hidden, batch.windows.target, np.float32(9e9))
    masked = batch._replace(
        windows=batch.windows._replace(observed=hidden, target=target)
    )
    losses, _ = TASK.loss(model, params, (), masked)
    assert losses.weights.tolist()[:3] == [0.5, 0.0, 1.0]
    _, outputs = model.apply(params, batch.windows)
    error = np.abs(np.asarray(outputs)[2:, 0, 0] - batch.windows.target[10:, 0])
    np.testing.assert_allclose(losses.values[0], error.mean(), rtol=1e-5)


def test_the_loss_of_members_is_that_of_each():
    _, dataset, model = build("patched")
    keys = jax.random.split(jax.random.key(0), 3)
    members = jax.vmap(lambda key: model.init(key)[0])(keys)
    batches = dataset.batches(0, 3)

    def loss(params, batch):
        return TASK.loss(model, params, (), batch)[0].mean()

    together = jax.vmap(loss)(members, jax.tree.map(jnp.asarray, batches))
    for k in range(3):
        params = jax.tree.map(operator.itemgetter(k), members)
        alone = loss(params, dataset.batch(k))
        np.testing.assert_allclose(together[k], alone, rtol=1e-5)


# -- runs ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    place = tmp_path_factory.mktemp("forecast")
    jl.lab.train(config(), run=place / "run")
    return place / "run"


@pytest.mark.combinations
def test_a_run_that_died_resumes_with_the_same_bits(run, tmp_path, monkeypatch):
    batches = ForecastDataset.batches

    def dying(self, first_step, count):
        if first_step >= 20:
            raise MemoryError
        return batches(self, first_step, count)

    monkeypatch.setattr(ForecastDataset, "batches", dying)
    with pytest.raises(MemoryError):
        jl.lab.train(config(), run=tmp_path / "run")
    monkeypatch.undo()
    again, whole = jl.lab.resume(tmp_path / "run"), jl.lab.load(run)
    jax.tree.map(np.testing.assert_array_equal, again.params, whole.params)
    assert again.spec == whole.spec


def test_the_report_scores_every_test_window_beside_the_baselines(run):
    text = (run / "report.md").read_text()
    dataset = jl.lab.load(run).dataset()
    assert f"Test part: {len(dataset.parts['test'].row)} windows" in text
    for name in ("patched", "seasonal naive", "drift", "MASE", "in 95 %", "CRPS"):
        assert name in text
    assert {path.name for path in (run / "plots").glob("*.png")} >= {
        "forecast_1.png",
        "error_by_horizon.png",
        "residuals.png",
    }


def test_predictions_continue_the_series(run, tmp_path, capsys):
    out = tmp_path / "forecast.csv"
    columns = jl.lab.predict(run, out=out)
    assert list(columns) == [
        "unique_id", "ds", "forecast", "lo-80", "hi-80", "lo-95", "hi-95",
    ]  # fmt: skip
    dataset = jl.lab.load(run).dataset()
    last = dataset.series.times[dataset.series.target_lengths[0] - 1]
    days = last + np.arange(1, 5) * np.timedelta64(1, "D")
    assert (columns["ds"][:4] == days).all()
    assert columns["unique_id"][::4].tolist() == list(dataset.spec.ids)
    assert (columns["lo-95"] <= columns["lo-80"]).all()
    assert (columns["lo-80"] < columns["hi-80"]).all()
    with out.open() as file:
        rows = list(csv.reader(file))
    assert len(rows) == 13
    assert rows[1][:2] == ["shop_001", str(days[0])[:10]]
    assert cli.main(["predict", str(run)]) == 0
    assert "... 12 rows" in capsys.readouterr().out
    with pytest.raises(BadInput, match="already exists"):
        jl.lab.predict(run, out=out)


def test_a_backtest_stays_in_the_test_part(run, monkeypatch):
    text = predictions.backtest(run, windows=2)
    assert text.splitlines()[0] == "Backtest: 2 origins, 4 steps each"
    assert text.count("seasonal naive") == 2
    with pytest.raises(BadInput, match="got 20, expected at most 5"):
        predictions.backtest(run, windows=20)
    monkeypatch.setattr("jaxlstm.lab.tasks.forecasting.prediction._MOST_ORIGINS", 7)
    assert predictions.backtest(run).startswith("Backtest: 5 origins")


def test_times_of_predictions_cross_months_and_changes_of_the_clock():
    from jaxlstm.lab.data.frequency import frequency

    month = frequency("ME").after(np.datetime64("2023-12-31", "us"), 3)
    assert [str(day)[:10] for day in month] == [
        "2024-01-31",
        "2024-02-29",
        "2024-03-31",
    ]
    hours = frequency("h").after(np.datetime64("2024-10-26T23:00", "us"), 3)
    assert prediction.shown_times(hours, "Europe/Berlin").tolist() == [
        "2024-10-27 02:00:00+02:00",
        "2024-10-27 02:00:00+01:00",
        "2024-10-27 03:00:00+01:00",
    ]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"kind": "autoregressive"}, r'model\.head: got "quantiles", expected normal'),
        ({"segment": 3}, r"windows: got the context 64, expected a multiple of model"),
        ({"head": {"name": "negative_binomial"}}, "counts cannot be shifted"),
        ({"head": {"name": "quantiles", "levels": [0.9, 0.5]}}, "increasing levels"),
    ],
)
def test_models_that_do_not_fit_are_refused(model, message):
    with pytest.raises(configs.ConfigError, match=message):
        configs.load({"task": "forecast", "model": model})


@pytest.mark.thorough
def test_sampled_paths_follow_the_distribution_of_the_first_step():
    loaded, dataset, model = build("autoregressive")
    params, _ = model.init(jax.random.key(1))
    tests = dataset.parts["test"]
    windows = dataset.source.cut(Origins(tests.series[:2], tests.row[:2]))
    _, parameters = model.apply(params, windows)
    sizes = dataset.spec.sizes(4)
    keys = jax.random.split(jax.random.key(0), 600)
    paths = jax.vmap(
        lambda key: models.sample_paths(loaded.model, sizes, params, windows, key)
    )(keys)
    assert paths.shape == (600, 4, 2)
    median = np.median(np.asarray(paths)[:, 0], axis=0)
    np.testing.assert_allclose(median, parameters[0, :, 0], atol=0.25)


@pytest.mark.thorough
def test_predictions_have_the_column_names_of_the_data(tmp_path):
    days = np.arange("2024-01-01", "2024-06-01", dtype="M8[D]")
    rows = [
        f"{shop},{day},{k % 7 + n}"
        for n, shop in enumerate("ab")
        for k, day in enumerate(days)
    ]
    (tmp_path / "sales.csv").write_text("shop,date,sold\n" + "\n".join(rows) + "\n")
    names = {"id": "shop", "time": "date", "target": "sold"}
    data = {"source": "files", "path": str(tmp_path / "sales.csv"), **names}
    given = {
        "task": "forecast",
        "data": data,
        "windows": {"context": 16, "horizon": 8},
        "model": {"hidden_size": 4},
        "training": {"steps": 20, "validate_every": 20, "checkpoint_every": 20},
    }
    jl.lab.train(given, run=tmp_path / "run", sink=None)
    columns = jl.lab.predict(tmp_path / "run")
    assert list(columns)[:3] == ["shop", "date", "forecast"]
    assert columns["shop"].tolist() == ["a"] * 8 + ["b"] * 8
    assert columns["date"][0] == np.datetime64("2024-06-01")
