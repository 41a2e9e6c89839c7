"""What a run says while it goes: on a terminal, in a pipe, in a notebook, in a log."""

import io
import os
import pty
import re
import subprocess
import sys
import time

import pytest

from jaxlstm.lab._util.errors import LabError
from jaxlstm.lab.sinks.base import TensorBoard, TextLog, progress, together
from jaxlstm.lab.sinks.console import Lines, Notebook, Outlet, Terminal
from jaxlstm.lab.sinks.records import clock, duration, line, printable

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
    """A terminal without a cursor of its own."""

    def isatty(self):
        return True


def told(sink):
    """Tell a sink a short run."""
    sink.start(900, step=250, title="quickstart")
    sink.log(TRAIN)
    sink.log(VALID)
    sink.message("saved step 300")
    sink.finish()
    sink.finish()


def test_one_line_has_every_number():
    assert line(TRAIN, 900) == (
        "step 300/900  loss 1.4124  bits/char 2.038  lr 4.00e-03  grad 0.432  "
        "tokens/s 98.2k  ms/step 41.7  data wait 0.3%  eta 1:12"
    )


@pytest.mark.parametrize("bad", [None, float("nan"), float("inf")])
def test_numbers_that_are_missing_or_not_finite_can_be_written(bad):
    stream = Tty()
    for sink in (Lines(Outlet(io.StringIO())), Terminal(Outlet(stream))):
        sink.start(900)
        for record in (TRAIN, VALID):
            numbers = {key: bad for key in record if key not in ("step", "split")}
            sink.log(record | numbers)
        sink.finish()


@pytest.mark.parametrize(
    ("seconds", "said", "ticked"),
    [
        (0, "0.0 s", "0:00"),
        (59.96, "1 min 00 s", "1:00"),
        (3599.7, "1 h 00 min", "1:00:00"),
        (90061, "25 h 01 min", "25:01:01"),
    ],
)
def test_times(seconds, said, ticked):
    assert (duration(seconds), clock(seconds)) == (said, ticked)


def test_nothing_that_steers_a_terminal_is_left():
    safe = printable(NASTY + "".join(map(chr, [*range(32), 127, 0x2028, 0xFEFF])))
    assert (
        re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\u2028\ufeff\ud83d]", safe)
        is None
    )
    assert (
        printable("naïve 漢\u3000字 नमस्\u200dते\n\tx")
        == "naïve 漢\u3000字 नमस्\u200dते\n\tx"
    )


def test_a_pipe_gets_plain_lines():
    stream = io.StringIO()
    sink = progress(stream=stream)
    told(sink)
    assert stream.getvalue().splitlines() == [
        "quickstart: step 250 of 900",
        line(TRAIN, 900),
        "step 300/900  validation  loss 1.5000  bits/char 2.164",
        "saved step 300",
    ]


@pytest.mark.parametrize("kind", ["xterm-256color", "dumb", ""])
def test_a_terminal_that_cannot_move_its_cursor_gets_lines(monkeypatch, kind):
    monkeypatch.setenv("TERM", kind)
    wanted = Terminal if kind == "xterm-256color" else Lines
    assert isinstance(progress(stream=Tty()), wanted)


def test_a_stream_of_few_characters_gets_the_others_spelled_out():
    raw = io.BytesIO()
    sink = progress(stream=io.TextIOWrapper(raw, encoding="ascii", write_through=True))
    sink.message("ünï ☃")
    assert raw.getvalue() == b"\\xfcn\\xef \\u2603\n"


@pytest.mark.parametrize("width", [40, 80, 120])
def test_the_live_display_fits_its_terminal(monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    stream = Tty()
    told(Terminal(Outlet(stream)))
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    rows = [row for row in re.split(r"[\r\n]", plain) if "900" in row and "━" in row]
    assert rows
    assert all(len(row) <= width for row in rows)
    if width >= 80:
        assert "2.164 at 300" in plain
        assert "98.2k" in plain
        assert "0.3%" in plain


def test_before_the_first_record_the_display_says_what_it_waits_for():
    stream = Tty()
    sink = Terminal(Outlet(stream))
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


def test_a_real_terminal_is_given_back_with_its_cursor():
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
    """All that comes out of a pseudo-terminal until its other end is closed."""
    seen, until = b"", time.monotonic() + 60
    while time.monotonic() < until:
        try:
            part = os.read(descriptor, 65536)
        except OSError:  # Linux says so at the end
            break
        if not part:
            break
        seen += part
    return seen


def test_a_real_pipe_sees_no_control_character():
    child = run_script(subprocess.PIPE)
    seen, complaints = child.communicate(timeout=60)
    assert (child.returncode, complaints) == (0, b"")
    assert seen.count(b"\n") == 303
    assert re.search(rb"[\x00-\x09\x0b-\x1f\x7f]", seen) is None


def test_a_reader_that_leaves_does_not_stop_the_run():
    child = run_script(subprocess.PIPE)
    child.stdout.readline()
    child.stdout.close()
    assert child.wait(timeout=60) == 0
    assert child.stderr.read() == b""
    child.stderr.close()


@pytest.mark.parametrize("stream", [None, io.StringIO()])
def test_a_closed_output_is_silence(stream):
    if stream is not None:
        stream.close()
    told(Lines(Outlet(stream)))


def test_a_notebook_updates_one_line(monkeypatch, capsys):
    shown = []

    class Handle:
        def update(self, bundle, raw):
            shown.append(bundle["text/plain"])

    def display(bundle, raw, display_id):
        shown.append(bundle["text/plain"])
        return Handle()

    monkeypatch.setattr("IPython.display.display", display)
    told(Notebook(Outlet(sys.stdout)))
    assert shown == ["quickstart: step 250 of 900", line(TRAIN, 900)]
    assert capsys.readouterr().out.splitlines() == [line(VALID, 900), "saved step 300"]


def test_a_kernel_is_known_by_its_shell(monkeypatch):
    class Shell:
        kernel = object()

    monkeypatch.setattr("IPython.get_ipython", Shell)
    assert isinstance(progress(), Notebook)
    assert isinstance(progress(stream=io.StringIO()), Lines)


def test_a_log_gets_one_line_at_a_time():
    heard = []
    sink = TextLog(heard.append)
    told(sink)
    sink.message("two\nlines\x1b")
    assert heard == [
        "quickstart: step 250 of 900",
        line(TRAIN, 900),
        line(VALID, 900),
        "saved step 300",
        "two",
        "lines\\x1b",
    ]


def test_several_sinks_are_told_alike():
    one, two = io.StringIO(), io.StringIO()
    told(together(progress(stream=one), progress(stream=two)))
    assert one.getvalue() == two.getvalue() != ""


def test_tensorboard_gets_every_number(tmp_path):
    told(TensorBoard(tmp_path))
    written = b"".join(path.read_bytes() for path in tmp_path.glob("events*"))
    for name in (b"train/loss", b"validation/bits_per_character", b"train/eta_seconds"):
        assert name in written
    assert b"train/total" not in written


def test_a_missing_tensorboard_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(LabError, match=r'pip install "jaxlstm\[tensorboard\]"'):
        TensorBoard(tmp_path)
