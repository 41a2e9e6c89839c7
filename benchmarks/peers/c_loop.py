"""A plain C loop for single steps on one thread, compiled by the system's `cc`."""

import ctypes
import functools
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.cases import Case, Inputs
from benchmarks.peers.base import Contender, Prepared, Program, merge_gate_axis

SOURCE = Path(__file__).with_name("lstm_step.c")
COMMAND = ("cc", "-O3", "-march=native", "-ffast-math", "-shared", "-fPIC")


def supports(case: Case) -> str | None:
    """Return why a case is not supported: single steps of one plain layer only."""
    if case.measures != ("step",):
        return "the C loop is written for single steps"
    return None


@functools.cache
def _library() -> ctypes.CDLL:
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder, "lstm_step.so")
        subprocess.run([*COMMAND, str(SOURCE), "-o", str(built), "-lm"], check=True)
        return ctypes.CDLL(str(built))


def step(case: Case, inputs: Inputs) -> Prepared:
    """Return the program of one step from the last state, which is kept in place."""
    weights = map(merge_gate_axis, inputs.layers[0][0])
    constants = [np.ascontiguousarray(leaf) for leaf in (*weights, inputs.xs[0])]

    def compiled() -> Program:
        h, c = (np.zeros((case.batch, case.units), np.float32) for _ in range(2))
        arrays = (*constants, h, c, np.zeros(4 * case.units, np.float32))
        function = _library().lstm_step
        function.restype = None
        arguments = [
            *map(ctypes.c_int, (case.batch, case.features, case.units)),
            *(ctypes.c_void_p(array.ctypes.data) for array in arrays),
        ]

        def run() -> np.ndarray:
            function(*arguments)
            return arrays[4]  # also keeps the memory of all arrays allocated

        return Program(run)

    return Prepared(compiled, compiled=False)


CONTENDERS = (Contender("C loop", "ctypes", supports, None, None, step),)
