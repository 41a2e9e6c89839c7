"""Records of a run, and their numbers as text.

A record is one line of `metrics.jsonl`, with values that depend on the clock added:
`step`, `split` ("train" if missing), the metrics of the task, such as `loss` and
`bits_per_character`, and any of `learning_rate`, `gradient_norm`,
`tokens_per_second` or `sequences_per_second`, `milliseconds_per_step`,
`data_wait_share` (0 to 1) and `eta_seconds`. The metrics are shown in the order of the
record. Fields that are missing or None are not shown.

A record of a population has means over its `members`, a number, and in `spread` the
half width of the 95 % confidence interval of each.
"""

import math
import textwrap
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

Record = Mapping[str, Any]


def printable(text: str) -> str:
    r"""Escape the control characters of a text, so that none reaches a terminal.

    New lines and tabs are kept, and the joiners that some scripts need.

    Example:
        >>> print(printable("a\x1b[31mb"))
        a\x1b[31mb
    """
    return "".join(map(_escaped, text))


def _escaped(character: str) -> str:
    if character.isprintable() or character in "\n\t\u200c\u200d":
        return character
    if unicodedata.category(character) == "Zs":  # spaces of any width
        return character
    return character.encode("unicode_escape").decode("ascii")


def duration(seconds: float) -> str:
    """Format a duration with units.

    Example:
        >>> duration(4.25), duration(112), duration(7500)
        ('4.2 s', '1 min 52 s', '2 h 05 min')
    """
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def clock(seconds: float) -> str:
    """Format a duration as on a clock.

    Example:
        >>> clock(32), clock(725), clock(7500)
        ('0:32', '12:05', '2:05:00')
    """
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _count(value: float) -> str:
    """Format with a suffix: 812, 98.2k or 1.25M."""
    for limit, divisor, unit in ((1e3, 1, ""), (1e6, 1e3, "k"), (1e9, 1e6, "M")):
        if value < limit * 0.9995:
            return f"{value / divisor:.3g}{unit}"
    return f"{value / 1e9:.3g}G"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _milliseconds(value: float) -> str:
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


class Field(NamedTuple):
    """The key of a number in a record, its label, and its format."""

    key: str
    name: str
    write: Callable[[float], str]


SCORES = (
    Field("loss", "loss", "{:.4f}".format),
    Field("perplexity", "perplexity", "{:.4g}".format),
    Field("bits_per_byte", "bits/byte", "{:.3f}".format),
    Field("bits_per_character", "bits/char", "{:.3f}".format),
)
PACE = (
    Field("learning_rate", "lr", "{:.2e}".format),
    Field("gradient_norm", "grad", "{:.3g}".format),
    Field("tokens_per_second", "tokens/s", _count),
    Field("sequences_per_second", "sequences/s", _count),
    Field("milliseconds_per_step", "ms/step", _milliseconds),
    Field("data_wait_share", "data wait", _percent),
)
ETA = Field("eta_seconds", "eta", clock)
_NO_METRICS = {
    "step",
    "split",
    "total",
    "members",
    "spread",
    ETA.key,
    *(field.key for field in PACE),
}


def format_fields(
    record: Record, fields: tuple[Field, ...] = PACE
) -> list[tuple[str, str]]:
    """Return (label, text) of each field that the record has."""
    spread = record.get("spread", {})
    return [
        (field.name, _number(record[field.key], field.write, spread.get(field.key)))
        for field in fields
        if record.get(field.key) is not None
    ]


def format_metrics(record: Record) -> list[tuple[str, str]]:
    """Return (label, text) of each metric, in the order of the record.

    Example:
        >>> format_metrics({"step": 9, "top_1": 0.75, "loss": 1.5, "eta_seconds": 4.0})
        [('top 1', '0.75'), ('loss', '1.5000')]
    """
    known = {field.key: field for field in SCORES}
    metrics = [key for key in record if key not in _NO_METRICS]
    return format_fields(record, tuple(known.get(k) or _field(k) for k in metrics))


def _field(metric: str) -> Field:
    """Return the field of a metric that is not one of `SCORES`."""
    return Field(metric, metric.replace("_", " "), "{:.4g}".format)


def format_score(record: Record, metric: str) -> str:
    """Format the metric that selects the best validation.

    The loss is shown in its last unit of `SCORES` that the record has; a metric that
    is not one of `SCORES` is shown with its name.

    Example:
        >>> format_score({"loss": 1.5, "bits_per_character": 2.164}, "loss")
        '2.164'
        >>> format_score({"loss": 1.5, "top_1": 0.75}, "top_1")
        '0.75 top 1'
    """
    if any(field.key == metric for field in SCORES):
        return format_fields(record, SCORES)[-1][1]
    name, text = format_fields(record, (_field(metric),))[0]
    return f"{text} {name}"


def _number(
    value: float, write: Callable[[float], str], spread: float | None = None
) -> str:
    text = write(value) if math.isfinite(value) else str(value)
    return f"{text} ± {spread:.2g}" if spread else text


def line(record: Record, total: int) -> str:
    """Format a record as one line of plain text.

    Args:
        record: numbers of one step.
        total: the number of steps of the run.

    Example:
        >>> line({"step": 50, "loss": 1.6, "eta_seconds": 32}, 900)
        'step  50/900  loss 1.6000  eta 0:32'
    """
    split = record.get("split", "train")
    words = [f"step {record['step']:>{len(str(total))}}/{total}"]
    words += [] if split == "train" else [split]
    words += [f"{record['members']} members"] if "members" in record else []
    numbers = format_metrics(record) + format_fields(record, (*PACE, ETA))
    return "  ".join(words + [f"{name} {value}" for name, value in numbers])


def table(rows: Mapping[str, str], *, width: int | None = None) -> str:
    """Format names and values in two aligned columns.

    Args:
        rows: values by name.
        width: columns of the terminal, at which values are continued on the next line,
            between words; None does not break lines.

    Example:
        >>> print(table({"steps": "900", "best validation": "2.18 bits/char"}))
        steps            900
        best validation  2.18 bits/char
    """
    names = max(map(len, rows), default=0) + 2
    lines = [f"{name:<{names}}{value}" for name, value in rows.items()]
    if width is None:
        return "\n".join(lines)
    indent = " " * min(names, width // 2)
    return "\n".join(fill(text, width, indent=indent) for text in lines)


def fill(text: str, width: int, *, indent: str = "") -> str:
    """Break each line of a text between words, where it is longer than `width`.

    Example:
        >>> print(fill("steps   900, 1.2 epochs", 15, indent="        "))
        steps   900,
                1.2
                epochs
    """
    wrapper = textwrap.TextWrapper(
        width,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
        replace_whitespace=False,
        drop_whitespace=True,
    )
    return "\n".join(
        "\n".join(wrapper.wrap(line)) if len(line) > width else line
        for line in text.split("\n")
    )
