"""Time series are regular and complete, and what was changed is said."""

import numpy as np
import pytest

pl = pytest.importorskip("polars")

from jaxlstm.lab._util.errors import BadInput  # noqa: E402
from jaxlstm.lab.config.tables import (  # noqa: E402
    GeneratedSeries,
    PackagedSeries,
    SeriesFiles,
)
from jaxlstm.lab.data.calendar import calendar_features  # noqa: E402
from jaxlstm.lab.data.frequency import frequency, infer  # noqa: E402
from jaxlstm.lab.data.series import (  # noqa: E402
    fill,
    read_series,
    select,
    with_future,
)


def read(folder, text, *, like=None, **fields):
    path = folder / "a.csv"
    path.write_text(text)
    return read_series(SeriesFiles(path=str(path), **fields), like=like)


def of(series, k):
    """Return the targets of a series."""
    return series.target[series.offsets[k] : series.offsets[k + 1]].tolist()


LONG = """unique_id,ds,y,x,size,region
b,2024-01-01,1,10,5,north
a,2024-01-01,2,20,6,south
b,2024-01-02,3,30,5,north
a,2024-01-02,4,40,6,south
a,2024-01-03,5,50,6,south
"""


def test_long_form(tmp_path):
    series = read(
        tmp_path,
        LONG,
        past=("x",),
        static=("size",),
        static_categories=("region",),
        calendar=("weekend",),
    )
    assert series.ids == ("b", "a")
    assert series.offsets.tolist() == [0, 2, 5]
    assert series.target_lengths.tolist() == [2, 3]
    assert series.target.tolist() == [1, 3, 2, 4, 5]
    assert series.past[:, 0].tolist() == [10, 30, 20, 40, 50]
    assert series.static.tolist() == [[5, 1, 0], [6, 0, 1]]
    assert series.names.static == ("size", "region=north", "region=south")
    assert series.names.categories == {"region": ("north", "south")}
    assert series.future.shape == (5, 1)
    assert series.frequency.name == "D"
    assert series.notes == ("frequency D (inferred)",)
    assert all(a.dtype == np.float32 for a in series[3:4] + series[5:8])


def test_wide_form_gives_the_same_series(tmp_path):
    wide = read(
        tmp_path,
        "date,x,b,a\n2024-01-01,10,1,2\n2024-01-02,20,3,4\n2024-01-03,30,,5\n",
        id=None,
        time="date",
        past=("x",),
    )
    assert wide.ids == ("b", "a")
    assert (of(wide, 0), of(wide, 1)) == ([1, 3], [2, 4, 5])
    assert wide.past[:, 0].tolist() == [10, 20, 10, 20, 30]
    assert 'each of 2 columns is a series: "b" and "a"' in wide.notes
    assert 'left out 1 rows of 1 series after their last target, first of "b"' in (
        wide.notes
    )


def test_frames_of_pandas_and_polars_are_read(tmp_path):
    data = SeriesFiles(path="unused", past=("x",))
    path = tmp_path / "a.csv"
    path.write_text(LONG)
    frame = pl.read_csv(path, try_parse_dates=True)
    expected = read(tmp_path, LONG, past=("x",))
    frames = [frame]
    try:
        import pandas
    except ImportError:
        pass
    else:
        frames.append(pandas.read_csv(path, parse_dates=["ds"]))
    for one in frames:
        series = read_series(data, frame=one)
        assert series.ids == expected.ids
        np.testing.assert_array_equal(series.target, expected.target)
        np.testing.assert_array_equal(series.times, expected.times)
        assert series.times.dtype == expected.times.dtype


def test_rows_are_sorted_if_the_config_says_so(tmp_path):
    series = read(
        tmp_path,
        "unique_id,ds,y\nb,3,1\na,2,2\nb,1,3\nb,2,4\na,1,5\n",
        sort=True,
    )
    assert (of(series, 0), of(series, 1)) == ([3, 4, 1], [5, 2])
    assert "sorted the rows by time" in series.notes


GAPS = "unique_id,ds,y,x\na,1,1,1\na,2,,2\na,3,3,\na,6,6,6\na,7,7,7\n"


@pytest.mark.parametrize(
    ("policy", "y", "x"),
    [
        ("zero", [1, 0, 3, 0, 0, 6, 7], [1, 2, 0, 0, 0, 6, 7]),
        ("forward_fill", [1, 1, 3, 3, 3, 6, 7], [1, 2, 2, 2, 2, 6, 7]),
        ("interpolate", [1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_missing_values_and_rows_follow_the_policy(tmp_path, policy, y, x):
    series = read(tmp_path, GAPS, past=("x",), missing=policy)
    assert series.target.tolist() == y
    assert series.past[:, 0].tolist() == x
    assert series.times.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert series.notes == (
        "frequency 1 (inferred)",
        'filled in 2 missing rows in 1 gap, the first series "a" between 3 and 6 '
        "(row 5)",
        f'column "y": 3 missing values ({policy})',
        f'column "x": 3 missing values ({policy})',
    )


def test_flagged_values_are_zero_with_a_column_that_says_so(tmp_path):
    series = read(tmp_path, GAPS, past=("x",), missing={"*": "flag"})
    gone = [0, 1, 0, 1, 1, 0, 0]
    np.testing.assert_array_equal(np.isnan(series.target), gone)
    assert series.names.past == ("y_missing", "x", "x_missing")
    assert series.past[:, 0].tolist() == gone
    assert series.past[:, 1].tolist() == [1, 2, 0, 0, 0, 6, 7]
    assert series.past[:, 2].tolist() == [0, 0, 1, 1, 1, 0, 0]


def test_a_policy_can_differ_by_column(tmp_path):
    missing = {"y": "interpolate", "x": "forward_fill"}
    series = read(tmp_path, GAPS, past=("x",), missing=missing)
    assert series.target.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert series.past[:, 0].tolist() == [1, 2, 2, 2, 2, 6, 7]


def test_filling_stays_inside_each_series_and_agrees_with_pandas():
    pandas = pytest.importorskip("pandas")
    rng = np.random.default_rng(0)
    offsets = np.array([0, 7, 8, 40, 60])
    values = rng.normal(size=60).astype(np.float32)
    values[rng.random(60) < 0.5] = np.nan
    inside = np.ones(60, bool)
    parts = [pandas.Series(values[a:b]) for a, b in zip(offsets, offsets[1:])]  # noqa: B905, RUF007
    np.testing.assert_array_equal(
        fill(values, offsets, inside, "forward_fill"),
        np.concatenate([part.ffill() for part in parts]),
    )
    np.testing.assert_allclose(
        fill(values, offsets, inside, "interpolate"),
        np.concatenate([part.interpolate(limit_area="inside") for part in parts]),
        rtol=1e-5,
    )


def test_a_series_goes_from_its_first_to_its_last_target(tmp_path):
    text = "unique_id,ds,y\na,1,\na,2,2\na,3,3\na,4,\nb,1,5\nb,2,6\n"
    series = read(tmp_path, text)
    assert (of(series, 0), of(series, 1)) == ([2, 3], [5, 6])
    assert series.times.tolist() == [2, 3, 1, 2]
    assert [note for note in series.notes if note.startswith("left out")] == [
        'left out 1 rows of 1 series before their first target, first of "a"',
        'left out 1 rows of 1 series after their last target, first of "a"',
    ]


FUTURE = "unique_id,ds,y,x\na,1,1,1\na,2,2,0\na,3,,1\nb,1,5,0\nb,2,,1\nb,3,,0\n"


def test_rows_after_the_last_target_hold_future_covariates(tmp_path):
    series = read(tmp_path, FUTURE, future=("x",))
    assert series.target_lengths.tolist() == [2, 1]
    assert series.offsets.tolist() == [0, 3, 6]
    assert series.future[:, 0].tolist() == [1, 0, 1, 0, 1, 0]
    assert np.isnan(series.target).tolist() == [False, False, True, False, True, True]


def test_future_covariates_in_a_file_of_their_own(tmp_path):
    later = tmp_path / "later.csv"
    later.write_text("unique_id,ds,x\nb,2,1\nb,3,0\na,3,1\n")
    history = "unique_id,ds,y,x\na,1,1,1\na,2,2,0\nb,1,5,0\n"
    series = read(tmp_path, history, future=("x",), future_path=str(later))
    together = read(tmp_path, FUTURE, future=("x",))
    np.testing.assert_array_equal(series.target, together.target)
    np.testing.assert_array_equal(series.future, together.future)
    assert len(series.description["sha256"]) == 2
    later.write_text("unique_id,ds,x\nc,2,1\n")
    with pytest.raises(
        BadInput, match=r'row 2, column "unique_id": got the series "c"'
    ):
        read(tmp_path, history, future=("x",), future_path=str(later))


def test_the_calendar_goes_on_after_the_last_row(tmp_path):
    text = "unique_id,ds,y\na,2024-01-30,1\na,2024-01-31,2\nb,2024-01-30,3\n"
    longer = with_future(read(tmp_path, text, calendar=("month", "year")), 3)
    assert longer.offsets.tolist() == [0, 5, 9]
    assert longer.target_lengths.tolist() == [2, 1]
    assert str(longer.times[4]).startswith("2024-02-03")
    assert str(longer.times[8]).startswith("2024-02-02")
    assert np.isnan(longer.target).sum() == 6
    expected = calendar_features(longer.times, ("month", "year")).values
    np.testing.assert_array_equal(longer.future, expected)
    assert with_future(longer, 3) is longer


def test_categories_of_a_trained_model_are_kept(tmp_path):
    like = read(tmp_path, LONG, static_categories=("region",)).names
    new = "unique_id,ds,y,region\nc,1,1,south\nc,2,2,south\n"
    series = read(tmp_path, new, static_categories=("region",), like=like)
    assert series.static.tolist() == [[0, 1]]
    new = new.replace("south", "west")
    with pytest.raises(BadInput, match=r'row 2, column "region": got "west", expected'):
        read(tmp_path, new, static_categories=("region",), like=like)


def test_a_selection_has_the_rows_of_its_series(tmp_path):
    series = read(tmp_path, LONG, past=("x",), static=("size",))
    chosen = select(series, np.array([1]))
    assert chosen.ids == ("a",)
    assert chosen.offsets.tolist() == [0, 3]
    assert chosen.past[:, 0].tolist() == [20, 40, 50]
    assert chosen.static.tolist() == [[6]]


# -- frequency and calendar -------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["s", "15min", "h", "6h", "D", "2D", "B", "W", "MS", "ME", "QS", "QE", "YS", "YE"],
)
def test_frequencies_agree_with_pandas(name):
    pandas = pytest.importorskip("pandas")
    start = "2021-01-04 05:00" if name == "B" else "2020-12-31 05:00"
    times = pandas.date_range(start, periods=40, freq=name).to_numpy().astype("M8[us]")
    step = infer(times, np.arange(39))
    assert step is not None
    assert step.name == name
    assert step == frequency(name)
    np.testing.assert_array_equal(step.after(times[0], 39), times[1:])
    assert (step.steps(times[:-3], times[3:]) == 3).all()


def test_gaps_of_months_and_business_days_are_counted():
    month = frequency("MS")
    days = np.array(["2024-01-01", "2024-04-01", "2024-04-02"], "M8[us]")
    assert month.steps(days[:1], days[1:2]).tolist() == [3]
    assert month.steps(days[1:2], days[2:]).tolist() == [0]
    friday, monday = np.array(["2024-01-05", "2024-01-08"], "M8[us]")
    assert frequency("B").after(friday, 1)[0] == monday
    assert frequency("B").steps(np.array([friday]), np.array([monday])).tolist() == [1]


def test_weekends_without_rows_are_not_gaps(tmp_path):
    days = [f"2024-01-{k:02d}" for k in (1, 2, 3, 4, 5, 8, 9, 10, 12, 15)]
    text = "unique_id,ds,y\n" + "".join(f"a,{day},{k}\n" for k, day in enumerate(days))
    series = read(tmp_path, text, missing="interpolate")
    assert series.frequency.name == "B"
    assert len(series.target) == 11
    assert series.target[8] == 7.5  # Thursday the 11th


def test_the_calendar_is_that_of_python():
    times = np.arange("2023-12-25", "2025-01-05", 35 * 3600, "M8[s]").astype("M8[us]")
    names = ("hour", "day_of_week", "month", "day_of_year", "year", "weekend")
    values, labels = calendar_features(times, names)
    assert labels[:2] == ("hour_sin", "hour_cos")
    for row, time in zip(values, times.tolist(), strict=True):
        angles = [
            (time.hour + time.minute / 60) / 24,
            time.weekday() / 7,
            (time.month - 1) / 12,
            (time.timetuple().tm_yday - 1) / 365.25,
        ]
        for k, angle in enumerate(angles):
            expected = [np.sin(2 * np.pi * angle), np.cos(2 * np.pi * angle)]
            np.testing.assert_allclose(row[2 * k : 2 * k + 2], expected, atol=1e-6)
        assert row[8] == np.float32((time.year - 2000) / 10)
        assert row[9] == (time.weekday() >= 5)


def test_hours_of_a_time_zone_are_regular_across_the_change_of_clocks(tmp_path):
    times = ["00:00+01:00", "01:00+01:00", "03:00+02:00", "04:00+02:00"]
    text = "unique_id,ds,y\n" + "".join(f"a,2024-03-31T{t},1\n" for t in times)
    series = read(tmp_path, text, time_zone="Europe/Berlin", calendar=("hour",))
    assert len(series.target) == 4
    assert series.frequency.zone == "Europe/Berlin"
    local = np.round(np.arctan2(*series.future.T) * 24 / 2 / np.pi) % 24
    assert local.tolist() == [0, 1, 3, 4]


def test_days_of_a_time_zone_stay_dates(tmp_path):
    text = "unique_id,ds,y\n" + "".join(
        f"a,2024-{day}T00:00:00{offset}:00,1\n"
        for day, offset in [("03-30", "+01"), ("03-31", "+01"), ("04-01", "+02")]
    )
    series = read(tmp_path, text, time_zone="Europe/Berlin")
    assert str(series.times[2]).startswith("2024-04-01T00:00")
    assert series.frequency.name == "D"
    assert series.frequency.zone is None


# -- built-in data ----------------------------------------------------------------


def test_generated_sales_have_the_seasons_they_are_made_of():
    data = GeneratedSeries(series=30, length=730, ahead=14, seed=3)
    series = read_series(data)
    assert series.offsets.tolist() == (np.arange(31) * 744).tolist()
    assert (series.target_lengths == 730).all()
    assert series.names.future == ("promotion",)
    sales = series.target.reshape(30, 744)
    assert np.isnan(sales[:, 730:]).all()
    promoted = series.future.reshape(30, 744)[:, :730] == 1
    log = np.log(np.maximum(sales[:, :730], 1))
    lift = [log[k][promoted[k]].mean() - log[k][~promoted[k]].mean() for k in range(30)]
    assert 0.3 < np.mean(lift) < 0.7
    size = np.corrcoef(np.log(series.static[:, 0]), log.mean(1))[0, 1]
    assert size > 0.95
    np.testing.assert_array_equal(read_series(data).target, series.target)
    other = read_series(data.model_copy(update={"seed": 4}))
    assert not np.array_equal(other.target[:730], series.target[:730])
    assert other.description["sha256"] != series.description["sha256"]


@pytest.mark.parametrize(
    ("name", "rows", "step"),
    [
        ("co2", 2284, "W"),
        ("sunspots", 309, "YS"),
        ("elnino", 732, "MS"),
        ("nile", 100, "YS"),
    ],
)
def test_series_of_statsmodels(name, rows, step):
    pytest.importorskip("statsmodels")
    series = read_series(PackagedSeries(name=name))
    assert len(series.target) == rows
    assert series.frequency.name == step
    assert np.isfinite(series.target).all()
    inferred = infer(series.times, np.arange(rows - 1))
    assert inferred is not None
    assert inferred.name == step
