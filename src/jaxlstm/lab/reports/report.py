"""What a run leaves for reading: `report.md` and its pictures.

All of it is drawn from the run directory (`metrics.jsonl`, `config.yaml`,
`env.json`), so that a report can be written again at any time. What only the
trained model can tell, a sample and a trace over a text, comes as arguments.
"""

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxlstm.lab._util.errors import BadInput, LabError
from jaxlstm.lab._util.files import reason, write_atomic
from jaxlstm.lab.runs import Run, read_metrics
from jaxlstm.lab.sinks.records import Record, printable
from jaxlstm.lab.tasks.base import Artifact, Picture

if TYPE_CHECKING:
    pass


Drawing = Picture


def write_report(
    run: Path,
    *,
    facts: Mapping[str, str] | None = None,
    artifacts: Sequence[Artifact] = (),
) -> Path:
    """Draw the pictures of a run, write its `report.md`, and return its path.

    Args:
        run: a run directory. One without steps gets no pictures.
        facts: rows for the table at the top: parameters, time.
        artifacts: what the task made of the trained model.
    """
    records = read_metrics(Run(run))
    pictures = write_plots(run, artifacts) if records else []
    rows = {**summary(records), **(facts or {})}
    place = Run(run)
    parts = [
        f"# {printable(run.resolve().name)}",
        _markdown_table(rows),
        *pictures,
        *(_section(made.title, made.text, "text") for made in artifacts),
        _section("Configuration", _text(place.config), "yaml"),
        _section("Overrides", _text(place.overrides), "text"),
        _section("Environment", _text(place.environment), "json"),
    ]
    text = "\n\n".join(part for part in parts if part) + "\n"
    _write(place.report, text.encode())
    return place.report


def write_plots(run: Path, artifacts: Sequence[Artifact] = ()) -> list[str]:
    """Write the run's pictures into `plots/`; return the Markdown that shows each.

    Raises `BadInput` where the run has no metrics, `LabError` where the disk refuses.
    """
    records = _metrics(run)
    pictures = [*_of_training(records)]
    pictures += [picture for made in artifacts for picture in made.pictures]
    for picture in pictures:
        save(picture, Run(run).plots / picture.name)
    return [
        f"![{picture.caption}](plots/{picture.name})\n\n{picture.caption}"
        for picture in pictures
    ]


def write_comparison(runs: Sequence[Path], target: Path) -> Path:
    """Draw the validation curves of several runs into the file `target`."""
    from jaxlstm import plots

    records = {str(run): _metrics(run) for run in runs}
    picture = Drawing(
        target.name, "", (8, 4.5), lambda ax: plots.compare_runs(records, ax=ax)
    )
    save(picture, target)
    return target


def summary(records: Sequence[Record]) -> dict[str, str]:
    """What a run came to, as rows for `records.table`.

    >>> summary([{"step": 9, "split": "validation", "loss": 1.5}])
    {'steps': '9', 'best validation': 'loss 1.5000 (step 9)'}
    """
    rows = {"steps": str(max((record["step"] for record in records), default=0))}
    train = _of_split(records, "train")
    validation = _of_split(records, "validation")
    if train:
        rows["last training"] = _score(train[-1])
    if validation:
        rows["best validation"] = _score(min(validation, key=lambda r: r["loss"]))
    if len(validation) > 1:
        rows["last validation"] = _score(validation[-1])
    return rows


def _metrics(run: Path) -> list[dict[str, Any]]:
    """The run's records, of which there must be some."""
    records = read_metrics(Run(run))
    if not records:
        raise BadInput(f"{Run(run).metrics} holds no metrics; train the run first")
    return records


def _of_split(records: Sequence[Record], split: str) -> list[Record]:
    """The records of one split that have a finite loss."""
    return [
        record
        for record in records
        if record.get("split", "train") == split and record.get("loss") is not None
    ]


def _score(record: Record) -> str:
    names = {"bits_per_character": "bits per character", "perplexity": "perplexity"}
    words = [
        f"{record[key]:.4g} {name}" for key, name in names.items() if key in record
    ]
    words.append(f"loss {record['loss']:.4f}")
    return ", ".join(words) + f" (step {record['step']})"


# --- pictures ---------------------------------------------------------------


def _of_training(records: Sequence[Record]) -> list[Drawing]:
    from jaxlstm import plots

    pictures = [
        Drawing(
            "loss.png",
            "Training and validation.",
            (8, 4.5),
            lambda ax: plots.loss_curve(records, ax=ax),
        )
    ]
    if any("gradient_norm" in record for record in records):
        health = Drawing(
            "training_health.png",
            "The gradient's norm before clipping, and the learning rate.",
            (8, 4.5),
            lambda ax: plots.training_health(records, ax=ax),
        )
        pictures.append(health)
    return pictures


def save(picture: Drawing, path: Path) -> None:
    """Draw without a window, and without a trace in pyplot's list of figures."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=picture.size, layout="constrained")
    picture.draw(figure.add_subplot())
    image = io.BytesIO()
    figure.savefig(image, dpi=130)
    _write(path, image.getvalue())


def _write(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(exist_ok=True)
        write_atomic(path, data)
    except OSError as error:
        raise LabError(f"{path} cannot be written ({reason(error)})") from error


# --- words ------------------------------------------------------------------


def _text(path: Path) -> str:
    """The file's text, empty where there is no such file."""
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _markdown_table(rows: Mapping[str, str]) -> str:
    cells = [
        f"| {name} | {printable(value).replace('|', chr(92) + '|')} |"
        for name, value in rows.items()
    ]
    return "\n".join(["| | |", "|---|---|", *cells])


def _section(title: str, text: str, language: str) -> str:
    """A heading and a fence longer than any inside the text; nothing if empty."""
    if not text.strip():
        return ""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    body = printable(text).strip("\n")
    return f"## {title}\n\n{fence}{language}\n{body}\n{fence}"
