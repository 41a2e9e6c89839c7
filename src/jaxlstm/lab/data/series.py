"""Time series of every source: files, a generator, and data of packages."""

from collections.abc import Callable
from typing import Any

from jaxlstm.lab.data.frequency import Frequency as Frequency
from jaxlstm.lab.data.generated import packaged_series, retail_series
from jaxlstm.lab.data.series_files import SeriesReader
from jaxlstm.lab.data.series_set import SeriesNames as SeriesNames
from jaxlstm.lab.data.series_set import SeriesSet as SeriesSet
from jaxlstm.lab.data.series_set import enough_rows as enough_rows
from jaxlstm.lab.data.series_set import fill as fill
from jaxlstm.lab.data.series_set import require_future as require_future
from jaxlstm.lab.data.series_set import select as select
from jaxlstm.lab.data.series_set import time_text as time_text
from jaxlstm.lab.data.series_set import with_future as with_future


def read_series(
    data: Any,
    *,
    key: str = "data",
    frame: Any = None,
    like: SeriesNames | None = None,
    report: Callable[[int, int], None] | None = None,
) -> SeriesSet:
    """Read the time series of a `data` section.

    Args:
        data: `SeriesFiles`, `GeneratedSeries` or `PackagedSeries`.
        key: name of the section, for error messages.
        frame: a pandas or polars frame that is read in place of `data.path`.
        like: names of the series that a model was trained on. Their categories are
            used, and others are an error.
        report: function that receives the bytes read so far, and of the file.

    Raises:
        BadInput: a file cannot be read, or its series cannot be used; the message
            names file, row and column, and the remedy.
    """
    if data.source == "files":
        return SeriesReader(data, key, like).read(frame, report)
    return retail_series(data) if data.source == "generated" else packaged_series(data)
