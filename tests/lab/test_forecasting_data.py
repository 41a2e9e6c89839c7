"""Windows of forecasts lie in their part, and scalers see the training part only."""

import jax
import numpy as np
import pytest

from jaxlstm.lab import config as configs
from jaxlstm.lab._util.errors import BadInput
from jaxlstm.lab.config.forecasting import Split
from jaxlstm.lab.data import series as readers
from jaxlstm.lab.tasks.forecasting import data
from jaxlstm.lab.tasks.forecasting.data import ForecastDataset, Origins, WindowSource

GENERATED = {"source": "generated", "series": 3, "length": 120}


def config(**changes):
    given = {
        "task": "forecast",
        "data": GENERATED,
        "windows": {"context": 8, "horizon": 4},
        "model": {"segment": 4, "hidden_size": 4},
        "training": {"batch_size": 16},
    }
    return configs.load(given | changes)


def dataset(**changes):
    return ForecastDataset(config(**changes))


@pytest.fixture(scope="module")
def ready():
    return dataset()


# -- split --------------------------------------------------------------------


def test_parts_are_fractions_numbers_or_times():
    days = np.arange("2024-01-01", "2024-01-11", dtype="M8[D]").astype("M8[us]")
    ends = data.part_ends(days, Split(train=0.5, validation=2, test="2024-01-10"))
    assert [str(end)[:10] for end in ends] == ["2024-01-06", "2024-01-08", "2024-01-10"]
    ends = data.part_ends(days, Split(train="2024-01-03", validation=0.1))
    assert [str(end)[:10] for end in ends] == ["2024-01-03", "2024-01-04", "2024-01-11"]


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ({"train": 11}, r"windows\.split\.train: got 11, which ends 1 times after"),
        ({"train": 0.5, "validation": 6}, "validation: got 6, which ends 1 times"),
        ({"train": 9, "validation": 1}, "test: got null, which leaves no times"),
        ({"train": "soon"}, 'train: got "soon", expected a fraction, a number of'),
        ({"train": 5, "validation": "2024-01-02"}, "leaves no times from 2024-01-06"),
    ],
)
def test_parts_that_do_not_fit_are_refused(split, message):
    days = np.arange("2024-01-01", "2024-01-11", dtype="M8[D]").astype("M8[us]")
    with pytest.raises(BadInput, match=message):
        data.part_ends(days, Split(**split))


def test_windows_of_etth1_are_the_published_ones():
    rows = np.array([[14400 * k, 0, 0, 0] for k in range(7)])
    rows[:, 1:] = rows[:, :1] + [8640, 11520, 14400]
    count = {p: data.origins(rows, p, context=720, horizon=96) for p in data.PARTS}
    assert {part: len(found.row) for part, found in count.items()} == {
        "train": 7 * 7825,
        "validation": 7 * 2785,
        "test": 7 * 2785,
    }


def test_each_window_lies_in_its_part_and_none_is_left_out(ready):
    horizon, context = 4, 8
    for place, part in enumerate(data.PARTS):
        found = set(zip(*(a.tolist() for a in ready.parts[part]), strict=True))
        expected = set()
        for k, row in enumerate(ready.rows):
            for at in range(ready.series.offsets[k], ready.series.offsets[k + 1]):
                inside = row[place] <= at and at + horizon <= row[place + 1]
                if inside and at - context >= row[0]:
                    expected.add((k, at))
        assert found == expected
        assert len(found) == len(ready.parts[part].row)


def test_windows_hold_the_scaled_values_around_an_origin(ready):
    chosen = Origins(np.array([1]), np.array([ready.rows[1, 1] + 2]))
    found = ready.source.cut(chosen)
    row = int(chosen.row[0])
    raw = ready.series.target[row - 8 : row + 4]
    expected = (raw - ready.spec.center[1]) / ready.spec.scale[1]
    np.testing.assert_allclose(found.target[:, 0], expected, rtol=1e-5)
    assert found.past.shape == (8, 1, 0)
    assert found.future.shape == (12, 1, 1)
    assert found.observed.all()
    assert found.series.tolist() == [1]


# -- scaling ------------------------------------------------------------------


def test_scalers_are_mean_and_deviation_of_the_training_part():
    target = np.array([1, 2, np.nan, 6, 1000, 5, 5, 5, 5, -1000], np.float32)
    rows = np.array([[0, 4, 5, 5], [5, 9, 10, 10]])
    center, scale = data.fit_scaler(target, rows, "standard")
    np.testing.assert_allclose(center, [3, 5])
    np.testing.assert_allclose(scale, [np.std([1, 2, 6]), 1.0])
    np.testing.assert_allclose(data.fit_scaler(target, rows, "mean")[1], [3, 5])
    assert data.fit_scaler(target, rows, "none")[1].tolist() == [1, 1]


def test_test_rows_change_no_scaler_and_no_training_or_validation_batch(
    ready, monkeypatch
):
    read = readers.read_series

    def with_other_test_part(section, **options):
        found = read(section, **options)
        changed = found.target.copy()
        future = found.future.copy()
        for row in ready.rows:
            changed[row[2] : row[3]] = 1e6
            future[row[2] : row[3]] = -50.0
        return found._replace(target=changed, future=future)

    monkeypatch.setattr(data, "read_series", with_other_test_part)
    other = dataset()
    assert other.spec == ready.spec
    pairs = [(ready.batch(3), other.batch(3))]
    pairs += zip(ready.eval_batches(), other.eval_batches(), strict=True)
    for before, after in pairs:
        jax.tree.map(np.testing.assert_array_equal, before, after)
    assert not np.array_equal(
        ready.source.cut(ready.parts["test"]).target,
        other.source.cut(other.parts["test"]).target,
    )


# -- batches ------------------------------------------------------------------


def test_an_epoch_has_every_training_window_once_in_an_order_of_the_seed(ready):
    steps = ready.steps_per_epoch
    target = ready.source.cut(ready.parts["train"]).target
    windows = {column.tobytes() for column in target.T}
    drawn = [
        column.tobytes()
        for step in range(steps)
        for column in ready.batch(step).windows.target.T
    ]
    assert len(drawn) == len(set(drawn)) == steps * 16
    assert set(drawn) <= windows
    again = dataset()
    jax.tree.map(np.testing.assert_array_equal, again.batch(steps), ready.batch(steps))
    first, other = ready.batch(0).windows.target, dataset(seed=1).batch(0)
    assert not np.array_equal(first, other.windows.target)


def test_validation_scores_every_window_once(ready):
    found = ready.parts["validation"]
    weights = np.concatenate([batch.weights for batch in ready.eval_batches()])
    assert weights.sum() == len(found.row)
    few = list(
        dataset(training={"batch_size": 16, "validation_windows": 5}).eval_batches(
            full=False
        )
    )
    assert [batch.weights.sum() for batch in few] == [5.0]


def test_the_last_batch_is_filled_up_at_weight_zero(ready):
    some = Origins(*(part[:7] for part in ready.parts["test"]))
    found = list(ready.source.batches(some, 4))
    assert [len(chosen.row) for chosen, _ in found] == [4, 3]
    assert found[1][1].weights.tolist() == [1, 1, 1, 0]
    assert found[1][1].windows.target.shape == (12, 4)


def test_a_spec_survives_json(ready):
    written = data.spec_to_json(ready.spec)
    again = data.spec_from_json(written)
    assert data.spec_to_json(again) == written
    assert again.sizes(4) == ready.spec.sizes(4)
    with pytest.raises(BadInput, match="spec: got"):
        data.spec_from_json({"ids": []})


def test_missing_targets_are_zero_and_not_observed(ready):
    series = ready.series
    target = series.target.copy()
    target[5] = np.nan
    source = WindowSource(
        series._replace(target=target),
        ready.spec.center,
        ready.spec.scale,
        context=8,
        horizon=4,
    )
    found = source.cut(Origins(np.array([0]), np.array([8])))
    assert found.target[5, 0] == 0.0
    assert found.observed[:, 0].tolist() == [k != 5 for k in range(12)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"windows": {"context": 96, "horizon": 4}}, r"3 series have fewer than 100"),
        ({"windows": {"context": 8, "horizon": 24}}, r"split\.validation: got no wind"),
        (
            {"training": {"batch_size": 4000}},
            r"batch_size: got 4,000, expected at most",
        ),
    ],
)
def test_windows_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(BadInput, match=message):
        dataset(**changes)


def test_a_season_follows_from_the_frequency():
    from jaxlstm.lab.data.frequency import frequency

    names = {"h": 24, "15min": 96, "D": 7, "W": 52, "MS": 12, "QS": 4, "B": 5, "1": 1}
    assert {name: data.season_of(frequency(name)) for name in names} == names
