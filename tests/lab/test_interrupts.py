"""A signal exits the process, or stops a run; one that is ignored stays ignored."""

import os
import signal
import subprocess
import sys

import pytest

from jaxlstm.lab._util import interrupts

PROGRAM = """
import gc, os, signal, time
from jaxlstm.lab._util import interrupts

def interrupt(*_):
    os.kill(os.getpid(), signal.{name})
    time.sleep(0.1)  # an exception raised here would be lost

with interrupts.exit_on_signal(remedy="{remedy}"):
    {where}
    time.sleep(20)
print("not interrupted")
"""


@pytest.mark.parametrize(
    ("where", "name", "message"),
    [
        ("interrupt()", "SIGINT", "interrupted"),
        ("gc.callbacks.append(interrupt); gc.collect()", "SIGINT", "interrupted"),
        ("interrupt()", "SIGTERM", "interrupted by SIGTERM; go on"),
        ("interrupt()", "SIGHUP", "interrupted by SIGHUP; go on"),
    ],
)
def test_a_signal_exits_the_process(where, name, message):
    remedy = "" if name == "SIGINT" else "go on"
    text = PROGRAM.format(where=where, name=name, remedy=remedy)
    program = [sys.executable, "-c", text]
    done = subprocess.run(program, capture_output=True, text=True, timeout=30)
    assert done.returncode == 130
    assert done.stderr.strip() == f"jaxlstm: {message}"
    assert done.stdout == ""


FIRST_SECOND = """
import os, signal, sys
from jaxlstm.lab import cli

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "jax":
            os.kill(os.getpid(), signal.SIGTERM)

sys.meta_path.insert(0, Finder())
sys.exit(cli.main(["train"]))
"""


def test_a_signal_while_jax_is_imported_exits_with_a_message(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FIRST_SECOND],
        capture_output=True,
        text=True,
        timeout=30,
        cwd=tmp_path,
    )
    assert done.returncode == 130
    assert done.stderr.strip() == "jaxlstm: interrupted by SIGTERM"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", interrupts.SIGNALS)
def test_the_first_signal_requests_a_stop(number, capfd):
    before = signal.getsignal(number)
    with interrupts.stop_on_signal() as requested:
        assert not requested()
        os.kill(os.getpid(), number)
        assert requested()
    assert "stopping and saving" in capfd.readouterr().err
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("number", interrupts.SIGNALS)
def test_a_signal_that_is_ignored_stays_ignored(number):
    """`nohup` ignores SIGHUP, and a script ignores SIGINT for a background job."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        for block in (interrupts.stop_on_signal, interrupts.exit_on_signal):
            with block() as requested:
                os.kill(os.getpid(), number)
                assert requested is None or not requested()
    finally:
        signal.signal(number, before)


def test_a_handler_of_another_program_for_sigusr1_stays():
    received = []
    before = signal.signal(signal.SIGUSR1, lambda *_: received.append(1))
    try:
        with interrupts.stop_on_signal() as requested:
            os.kill(os.getpid(), signal.SIGUSR1)
            assert not requested()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert received == [1]
