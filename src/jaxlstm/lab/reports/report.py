"""Write `report.md` and its pictures into a run directory.

Everything is read from the run directory (`metrics.jsonl`, `config.yaml`, `env.json`),
so a report can be written again at any time. Results of the trained model, such as a
generated text, are passed as artifacts of the task.
"""

import contextlib
import io
import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxlstm.lab._util.errors import BadInput, LabError
from jaxlstm.lab._util.files import reason, write_atomic
from jaxlstm.lab.runs import Run, read_metrics
from jaxlstm.lab.sinks.formatting import Record, printable
from jaxlstm.lab.tasks.base import Artifact, Metric, Picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LOSS = Metric("loss")


def write_report(
    run: Path,
    *,
    primary: Metric = _LOSS,
    scores: Sequence[str] = (),
    facts: Mapping[str, str] | None = None,
    artifacts: Sequence[Artifact] = (),
    report: Callable[[str], object] | None = None,
) -> Path:
    """Write the pictures and the `report.md` of a run; return the path of the report.

    Args:
        run: a run directory. If it has no metrics, the report has no pictures.
        primary: the task's metric that selects the best validation.
        scores: the task's metrics that are stated before the loss.
        facts: more rows for the table at the top, such as the number of parameters.
        artifacts: results of the task: texts, and pictures.
        report: receives a message about each picture that cannot be drawn; None raises
            the error.
    """
    records, pictures = read_metrics(Run(run)), []
    if records:
        pictures = write_plots(run, artifacts, primary=primary, report=report)
    rows = {**summary(records, primary=primary, scores=scores), **(facts or {})}
    return _write_report(run, rows, pictures, artifacts)


def write_members_report(
    run: Path,
    rows: Mapping[str, str],
    members: Artifact,
    report: Callable[[str], object],
) -> Path:
    """Write the pictures and the `report.md` of a population; return its path.

    Args:
        run: the run directory of the population.
        rows: the table at the top.
        members: the ranking of the members, and the pictures.
        report: receives a message about each picture that cannot be drawn.
    """
    saved = _save_plots(run, members.pictures, report)
    return _write_report(run, rows, saved, [members])


def _write_report(
    run: Path,
    rows: Mapping[str, str],
    pictures: Sequence[str],
    artifacts: Sequence[Artifact],
) -> Path:
    place = Run(run)
    parts = [
        f"# {printable(run.resolve().name)}",
        _markdown_table(rows),
        *pictures,
        *(_section(one.title, one.text, "text") for one in artifacts),
        _section("Configuration", _text(place.config), "yaml"),
        _section("Overrides", _text(place.overrides), "text"),
        _section("Environment", _text(place.environment), "json"),
    ]
    text = "\n\n".join(part for part in parts if part) + "\n"
    _write(place.report, text.encode())
    return place.report


def write_plots(
    run: Path,
    artifacts: Sequence[Artifact] = (),
    *,
    primary: Metric = _LOSS,
    report: Callable[[str], object] | None = None,
) -> list[str]:
    """Write the pictures of a run into `plots/`; return Markdown that shows each.

    Args:
        run: a run directory.
        artifacts: results of the task with pictures.
        primary: the task's metric that selects the best validation.
        report: receives a message about each picture that cannot be drawn; None raises
            the error.

    Raises:
        BadInput: the run has no metrics.
        LabError: a file cannot be written.
    """
    pictures = _training_pictures(_metrics(run), primary)
    pictures += [picture for one in artifacts for picture in one.pictures]
    return _save_plots(run, pictures, report)


def _save_plots(
    run: Path, pictures: Sequence[Picture], report: Callable[[str], object] | None
) -> list[str]:
    """Write pictures into `plots/`; return Markdown that shows those drawn."""
    try:
        _require_matplotlib()
    except LabError as error:
        if report is None:
            raise
        again = shlex.join(["jaxlstm", "plot", str(run)])
        report(f"warning: no pictures were drawn: {error}; then: {again}")
        return []
    saved = [_save_plot(run, picture, report) for picture in pictures]
    return [markdown for markdown in saved if markdown]


def _require_matplotlib() -> None:
    """Raise `LabError` with the extra to install if Matplotlib is missing."""
    try:
        with _without_backend():
            import_module("jaxlstm.plots")
    except ImportError as error:
        raise LabError(str(error)) from None


def _save_plot(
    run: Path, picture: Picture, report: Callable[[str], object] | None
) -> str:
    """Write a picture into `plots/`; return Markdown that shows it, or "" if it failed.

    None as `report` raises the error instead.
    """
    path = Run(run).plots / picture.name
    try:
        save(picture, path)
    except Exception as error:
        if report is None:
            raise
        again = shlex.join(["jaxlstm", "plot", str(run)])
        report(
            f"warning: {path} was not drawn ({reason(error)}); draw it again with: "
            f"{again}"
        )
        return ""
    return f"![{picture.caption}](plots/{picture.name})\n\n{picture.caption}"


def write_comparison(
    runs: Sequence[Path], target: Path, *, primary: Metric = _LOSS
) -> Path:
    """Draw the validation curves of several runs into the file `target`.

    Args:
        runs: run directories.
        target: the image file.
        primary: the metric that selects the best validation of each run.

    Raises:
        BadInput: a run has no metrics.
        LabError: the file cannot be written.
    """
    records = {str(run): _metrics(run) for run in runs}

    def draw(ax: "Axes") -> object:
        from jaxlstm import plots

        return plots.compare_runs(records, best=primary, ax=ax)

    save(Picture(target.name, "", (8.0, 4.5), draw), target)
    return target


def summary(
    records: Sequence[Record],
    *,
    primary: Metric = _LOSS,
    scores: Sequence[str] = (),
) -> dict[str, str]:
    """Return the final scores of a run, as rows for `formatting.table`.

    Args:
        records: the metrics of the run.
        primary: the task's metric that selects the best validation. Records in which
            it is missing or not finite are ignored.
        scores: the task's metrics that are stated before the loss.

    Example:
        >>> summary([{"step": 9, "split": "validation", "loss": 1.5}])
        {'steps': '9', 'best validation': 'loss 1.5000 (step 9)'}
    """
    rows = {"steps": str(max((record["step"] for record in records), default=0))}
    train = _of_split(records, "train", "loss")
    validation = _of_split(records, "validation", primary.name)
    names = list(dict.fromkeys((primary.name, *scores)))
    if train:
        rows["last training"] = _score(train[-1], names)
    if validation:
        choose = min if primary.mode == "min" else max
        best = choose(validation, key=lambda record: record[primary.name])
        rows["best validation"] = _score(best, names)
    if len(validation) > 1:
        rows["last validation"] = _score(validation[-1], names)
    return rows


def _metrics(run: Path) -> list[dict[str, Any]]:
    """Read the records of a run.

    Raises:
        BadInput: there are none.
    """
    records = read_metrics(Run(run))
    if not records:
        raise BadInput(
            f"{Run(run).metrics}: got no metrics, expected at least one record; train "
            "the run first"
        )
    return records


def _of_split(records: Sequence[Record], split: str, key: str) -> list[Record]:
    """Return the records of one split that have a finite number under a key."""
    return [
        record
        for record in records
        if record.get("split", "train") == split and record.get(key) is not None
    ]


def _score(record: Record, names: Sequence[str]) -> str:
    """Return the metrics of a record in words, the loss last."""
    words = [
        f"{record[name]:.4g} {name.replace('_', ' ')}"
        for name in names
        if name != "loss" and record.get(name) is not None
    ]
    if record.get("loss") is not None:
        words.append(f"loss {record['loss']:.4f}")
    return ", ".join(words) + f" (step {record['step']})"


def _training_pictures(records: Sequence[Record], primary: Metric) -> list[Picture]:
    """Return the pictures of the metrics; `jaxlstm.plots` is imported to draw them."""

    def loss_curve(ax: "Axes") -> object:
        from jaxlstm import plots

        return plots.loss_curve(records, best=primary, ax=ax)

    def training_health(ax: "Axes") -> object:
        from jaxlstm import plots

        return plots.training_health(records, ax=ax)

    size = (8.0, 4.5)
    caption = (
        "Training and validation loss. Training: the mean loss of the steps since the "
        "previous logged step, each computed before its update. It also depends on how "
        "hard the batches are, so that it may rise while the model improves. "
        "Validation: always the same data, which is not trained on."
    )
    pictures = [Picture("loss.png", caption, size, loss_curve)]
    if any("gradient_norm" in record for record in records):
        caption = "Gradient norm before clipping (logarithmic), and learning rate."
        health = Picture("training_health.png", caption, size, training_health)
        pictures.append(health)
    return pictures


def save(picture: Picture, path: Path) -> None:
    """Draw a picture into a file of the type of its suffix, without pyplot.

    Raises:
        LabError: Matplotlib is missing, or the file cannot be written.
    """
    _require_matplotlib()
    image = io.BytesIO()
    with _default_style():
        from matplotlib.figure import Figure

        figure = Figure(figsize=picture.size, layout="constrained")
        picture.draw(figure.add_subplot())
        figure.savefig(image, dpi=130, format=path.suffix[1:] or "png")
    _write(path, image.getvalue())


@contextlib.contextmanager
def _default_style() -> Iterator[None]:
    """Use Matplotlib's own defaults, without the user's backend and matplotlibrc.

    A backend of a notebook may not exist here, and a setting such as `text.usetex`
    needs programs that may be missing.
    """
    with _without_backend():
        import matplotlib as mpl
    with mpl.rc_context():
        mpl.rcdefaults()
        yield


@contextlib.contextmanager
def _without_backend() -> Iterator[None]:
    """Import Matplotlib without the backend of the environment, which may not exist."""
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        yield
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend


def _write(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(exist_ok=True)
        write_atomic(path, data)
    except OSError as error:
        raise LabError(f"{path}: cannot be written ({reason(error)})") from error


def _text(path: Path) -> str:
    """Return the text of a file, or "" if it does not exist."""
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _markdown_table(rows: Mapping[str, str]) -> str:
    cells = [
        f"| {name} | {printable(value).replace('|', chr(92) + '|')} |"
        for name, value in rows.items()
    ]
    return "\n".join(["| | |", "|---|---|", *cells])


def _section(title: str, text: str, language: str) -> str:
    """Return a heading and a code block, or "" for an empty text.

    The fence is longer than any run of backticks in the text.
    """
    if not text.strip():
        return ""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    body = printable(text).strip("\n")
    return f"## {title}\n\n{fence}{language}\n{body}\n{fence}"
