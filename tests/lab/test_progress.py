"""Sinks: output on a terminal, in a pipe, in a notebook, in files; formatting."""

import io
import os
import pty
import re
import subprocess
import sys
import time

import pytest

from jaxlstm.lab._util.errors import LabError
from jaxlstm.lab.sinks import base
from jaxlstm.lab.sinks.base import combine, progress
from jaxlstm.lab.sinks.console import Outlet, TerminalSink
from jaxlstm.lab.sinks.formatting import clock, duration, line, printable
from jaxlstm.lab.sinks.notebook import NotebookSink
from jaxlstm.lab.sinks.tensorboard import TensorBoardSink
from jaxlstm.lab.sinks.text import TextSink

TRAIN = {
    "step": 300,
    "total": 900,
    "split": "train",
    "loss": 1.41239,
    "bits_per_character": 2.0376,
    "learning_rate": 4e-3,
    "gradient_norm": 0.4321,
    "tokens_per_second": 98212.3,
    "milliseconds_per_step": 41.73,
    "data_wait_share": 0.0031,
    "eta_seconds": 72.4,
}
VALID = {"step": 300, "split": "validation", "loss": 1.5, "bits_per_character": 2.164}
NASTY = "\x1b[2J\x07\x9b31m\u202e\ud83d\r[red]ok[/red]"

SCRIPT = f"""
from jaxlstm.lab.sinks.base import progress
sink = progress()
sink.start(900, title="quickstart")
sink.message({NASTY!r})
for step in range(300, 0, -1):
    sink.log({TRAIN!r} | {{"step": 301 - step}})
sink.log({VALID!r})
sink.finish()
"""


class Tty(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self):
        return True


def send(sink):
    """Send the progress of a short run to a sink."""
    sink.start(900, step=250, title="quickstart")
    sink.log(TRAIN)
    sink.log(VALID)
    sink.message("saved step 300")
    sink.finish()
    sink.finish()


def test_a_line_contains_every_number():
    assert line(TRAIN, 900) == (
        "step 300/900  loss 1.4124  bits/char 2.038  lr 4.00e-03  grad 0.432  "
        "tokens/s 98.2k  ms/step 41.7  data wait 0.3%  eta 1:12"
    )


def test_a_line_contains_every_metric_of_a_task_in_the_order_of_the_record():
    record = {"step": 9, "split": "validation", "top_1": 0.75, "loss": 2.0, "auc": 0.5}
    expected = "step 9/9  validation  top 1 0.75  loss 2.0000  auc 0.5"
    assert line(record, 9) == expected


@pytest.mark.parametrize("bad", [None, float("nan"), float("inf")])
def test_missing_and_infinite_numbers_are_shown(bad):
    lines, stream = [], Tty()
    for sink in (TextSink(lines.append), TerminalSink(Outlet(stream))):
        sink.start(900)
        for record in (TRAIN, VALID):
            numbers = {key: bad for key in record if key not in ("step", "split")}
            sink.log(record | numbers)
        sink.finish()
    number = "" if bad is None else f"  loss {bad}  bits/char {bad}"
    assert lines[2] == f"step 300/900  validation{number}"
    assert lines[2] in stream.getvalue()


@pytest.mark.parametrize(
    ("seconds", "words", "digits"),
    [
        (0, "0.0 s", "0:00"),
        (59.96, "1 min 00 s", "1:00"),
        (3599.7, "1 h 00 min", "1:00:00"),
        (90061, "25 h 01 min", "25:01:01"),
    ],
)
def test_durations(seconds, words, digits):
    assert (duration(seconds), clock(seconds)) == (words, digits)


def test_control_characters_are_escaped():
    safe = printable(NASTY + "".join(map(chr, [*range(32), 127, 0x2028, 0xFEFF])))
    assert (
        re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\u2028\ufeff\ud83d]", safe)
        is None
    )
    assert (
        printable("naïve 漢\u3000字 नमस्\u200dते\n\tx")
        == "naïve 漢\u3000字 नमस्\u200dते\n\tx"
    )


def test_a_pipe_receives_plain_lines():
    stream = io.StringIO()
    sink = progress(stream=stream)
    send(sink)
    assert stream.getvalue().splitlines() == [
        "quickstart: step 250 of 900",
        line(TRAIN, 900),
        "step 300/900  validation  loss 1.5000  bits/char 2.164",
        "saved step 300",
    ]


@pytest.mark.parametrize("kind", ["xterm-256color", "dumb", ""])
def test_a_terminal_without_cursor_control_receives_lines(monkeypatch, kind):
    monkeypatch.setenv("TERM", kind)
    expected = TerminalSink if kind == "xterm-256color" else TextSink
    assert isinstance(progress(stream=Tty()), expected)


def test_characters_outside_the_encoding_are_escaped():
    raw = io.BytesIO()
    sink = progress(stream=io.TextIOWrapper(raw, encoding="ascii", write_through=True))
    sink.message("ünï ☃")
    assert raw.getvalue() == b"\\xfcn\\xef \\u2603\n"


@pytest.mark.parametrize("width", [40, 80, 120])
def test_the_live_display_fits_its_terminal(monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    stream = Tty()
    send(TerminalSink(Outlet(stream)))
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    rows = [row for row in re.split(r"[\r\n]", plain) if "900" in row and "━" in row]
    assert rows
    assert all(len(row) <= width for row in rows)
    if width >= 80:
        assert "2.164 at 300" in plain
        assert "98.2k" in plain
        assert "0.3%" in plain


@pytest.mark.parametrize(
    ("best", "shown"),
    [
        (("loss", "min"), "2.164 at 300"),
        (("top_1", "max"), "0.75 top 1 at 400"),
        (("top_1", "min"), "0.25 top 1 at 500"),
    ],
)
def test_the_live_display_shows_the_best_of_a_given_metric(monkeypatch, best, shown):
    monkeypatch.setenv("COLUMNS", "120")
    stream = Tty()
    sink = TerminalSink(Outlet(stream), best=best)
    sink.start(900, title="quickstart")
    sink.log(TRAIN)
    validations = (
        (300, 1.5, 0.5),
        (400, 3.0, 0.75),
        (500, 2.0, 0.25),
        (600, 1.9, None),
    )
    for step, loss, top_1 in validations:
        sink.log(VALID | {"step": step, "loss": loss, "top_1": top_1})
    sink.finish()
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue()).splitlines()[-1]
    assert shown in last


def test_before_the_first_record_the_display_says_compiling():
    stream = Tty()
    sink = TerminalSink(Outlet(stream))
    sink.start(900)
    sink.finish()
    assert "compiling" in stream.getvalue()


def run_script(stdout):
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        stdout=stdout,
        stderr=subprocess.PIPE,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "100", "PYTHONUTF8": "1"},
    )


def test_a_pseudo_terminal_keeps_a_visible_cursor():
    master, slave = pty.openpty()
    child = run_script(slave)
    os.close(slave)
    seen = read_all(master)
    os.close(master)
    assert child.communicate()[1] == b""
    assert child.returncode == 0
    assert seen.rfind(b"\x1b[?25h") > seen.rfind(b"\x1b[?25l")
    assert b"\x1b[2J" not in seen
    assert rb"\x1b[2J" in seen
    assert b"[red]ok[/red]" in seen


def read_all(descriptor):
    """Read from a pseudo-terminal until its other end is closed."""
    seen, until = b"", time.monotonic() + 60
    while time.monotonic() < until:
        try:
            part = os.read(descriptor, 65536)
        except OSError:  # Linux raises EIO at the end
            break
        if not part:
            break
        seen += part
    return seen


def test_a_pipe_receives_no_control_character():
    child = run_script(subprocess.PIPE)
    seen, errors = child.communicate(timeout=60)
    assert (child.returncode, errors) == (0, b"")
    assert seen.count(b"\n") == 303
    assert re.search(rb"[\x00-\x09\x0b-\x1f\x7f]", seen) is None


def test_a_closed_pipe_does_not_stop_the_run():
    child = run_script(subprocess.PIPE)
    child.stdout.readline()
    child.stdout.close()
    assert child.wait(timeout=60) == 0
    assert child.stderr.read() == b""
    child.stderr.close()


@pytest.mark.parametrize("stream", [None, io.StringIO()])
def test_writing_to_a_closed_stream_does_nothing(stream):
    if stream is not None:
        stream.close()
    outlet = Outlet(stream)
    send(TextSink(outlet.write_line))
    assert not outlet.isatty()


def test_a_notebook_updates_one_line(monkeypatch, capsys):
    shown = []

    class Handle:
        def update(self, bundle, raw):
            shown.append(bundle["text/plain"])

    def display(bundle, raw, display_id):
        shown.append(bundle["text/plain"])
        return Handle()

    monkeypatch.setattr("IPython.display.display", display)
    send(NotebookSink(Outlet(sys.stdout).write_line))
    assert shown == ["quickstart: step 250 of 900", line(TRAIN, 900)]
    assert capsys.readouterr().out.splitlines() == [line(VALID, 900), "saved step 300"]


def test_a_jupyter_kernel_is_detected(monkeypatch):
    class Shell:
        kernel = object()

    monkeypatch.setattr("IPython.get_ipython", Shell)
    assert isinstance(progress(), NotebookSink)
    assert isinstance(progress(stream=io.StringIO()), TextSink)


def test_a_text_sink_writes_one_line_at_a_time():
    lines = []
    sink = TextSink(lines.append)
    send(sink)
    sink.message("two\nlines\x1b")
    assert lines == [
        "quickstart: step 250 of 900",
        line(TRAIN, 900),
        line(VALID, 900),
        "saved step 300",
        "two",
        "lines\\x1b",
    ]


def test_combined_sinks_receive_the_same():
    one, two = io.StringIO(), io.StringIO()
    send(combine(progress(stream=one), progress(stream=two)))
    assert one.getvalue() == two.getvalue() != ""


def test_tensorboard_receives_every_number(tmp_path):
    send(TensorBoardSink(tmp_path))
    written = b"".join(path.read_bytes() for path in tmp_path.glob("events*"))
    for name in (b"train/loss", b"validation/bits_per_character", b"train/eta_seconds"):
        assert name in written
    assert b"train/total" not in written


def test_without_tensorboardx_the_error_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(LabError, match=r'pip install "jaxlstm\[tensorboard\]"'):
        TensorBoardSink(tmp_path)


def test_no_sink_is_quiet_and_auto_is_the_one_of_the_output(capsys):
    quiet = base.choose(None)
    quiet.start(3)
    quiet.log({"step": 1, "loss": 1.0})
    quiet.message("saved")
    quiet.finish()
    assert capsys.readouterr().out == ""
    base.choose("auto").message("saved")
    assert capsys.readouterr().out == "saved\n"
    assert base.choose(quiet) is quiet
