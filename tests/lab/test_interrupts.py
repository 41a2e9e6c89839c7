"""Tests that SIGINT exits the process when no run is being trained."""

import subprocess
import sys

import pytest

PROGRAM = """
import gc, os, signal, time
from jaxlstm.lab._util import interrupts

def interrupt(*_):
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.1)  # an exception raised here would be lost

with interrupts.exit_on_interrupt():
    {where}
    time.sleep(20)
print("not interrupted")
"""


@pytest.mark.parametrize(
    "where", ["interrupt()", "gc.callbacks.append(interrupt); gc.collect()"]
)
def test_interrupt_exits_the_process(where):
    program = [sys.executable, "-c", PROGRAM.format(where=where)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=30)
    assert done.returncode == 130
    assert done.stderr.strip() == "jaxlstm: interrupted"
    assert done.stdout == ""
