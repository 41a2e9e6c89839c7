"""Single steps of the compiled kernel on NumPy arrays, without dispatch by JAX.

A `Session` owns the memory that a step reads and writes, and the packed weights. A call
copies the state and the input there, runs the step in the calling thread, and returns
copies of the results.

Dispatch by JAX takes tens of microseconds, a step of one row of 128 units a few.
"""

import ctypes
import math
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlstm.engines.native.kernel import LOADED_KERNELS, SESSIONS
from jaxlstm.engines.native.primitive import broadcast_rows, trace_loop, write_program

ALIGNMENT = 64  # bytes, a vector of AVX-512


class Session:
    """One step of a loop on fixed memory.

    Attributes:
        work: about the number of multiplications of a step.

    Raises:
        Unsupported: the kernel cannot run the step.
        MemoryError: there is no memory for the packed weights.
    """

    def __init__(
        self,
        step: Callable[..., tuple[Any, Any]],
        consts: Any,
        carry: Any,
        inputs: Any,
        *,
        row_axes: int,
    ) -> None:
        """Open a session; see `compiled_scan` for the arguments.

        Args:
            inputs: those of the only step, with a leading axis [1]. The first leaf is
                the x that is given to each call, the others stay as they are.
        """
        given = jax.tree.leaves((consts, carry, inputs))
        options, used, shapes = trace_loop(
            step, consts, carry, inputs, length=1, reverse=False, row_axes=row_axes
        )
        kept = [n for n, use in enumerate(used) if use]
        program = write_program(options, [jax.typeof(given[n]) for n in kept])
        rows = jax.tree.leaves(carry)[0].shape[:row_axes]
        read = [np.asarray(given[n]) for n in kept]
        for n, axes in program.broadcast:
            is_input = n >= options.consts + options.carry
            array = jnp.asarray(read[n])
            read[n] = np.asarray(broadcast_rows(array, axes, rows, first=int(is_input)))
        read = [_aligned_copy(array) for array in read]
        weights = sum(array.size for array in read[: options.consts])
        self.work = math.prod(rows) * weights
        first = options.consts
        self._carry = read[first : first + options.carry]
        x = len(given) - len(jax.tree.leaves(inputs))
        self._x = read[kept.index(x)][0] if x in kept else np.empty(given[x].shape[1:])
        structs = jax.tree.leaves(shapes)
        written = [
            _aligned_copy(np.zeros((*[1] * (n >= options.carry), *s.shape), s.dtype))
            for n, s in enumerate(structs)
        ]
        self._results = [
            array if n < options.carry else array[0] for n, array in enumerate(written)
        ]
        self._memory = program, read, written  # that the kernel reads and writes
        self._lock = threading.Lock()
        (kernel,) = LOADED_KERNELS
        open_session = getattr(kernel, SESSIONS[written[0].dtype.name])
        open_session.restype = ctypes.c_void_p
        self._step = kernel.jaxlstm_step
        self._handle = ctypes.c_void_p(
            open_session(
                _pointer(program.integers),
                _pointer(program.constants),
                *_pointers(read),
                *_pointers(written),
            )
        )
        if not self._handle:
            raise MemoryError("stream: no memory for the packed weights.")
        weakref.finalize(self, kernel.jaxlstm_close, self._handle)

    def __call__(self, carry: Sequence[np.ndarray], x: np.ndarray) -> list[np.ndarray]:
        """Return the leaves of the carry after the step, and of its results."""
        with self._lock:
            self._x[...] = x
            for own, leaf in zip(self._carry, carry):  # noqa: B905 (checked before)
                own[...] = leaf
            self._step(self._handle)
            return [result.copy() for result in self._results]


def _aligned_copy(array: np.ndarray) -> np.ndarray:
    """Return a copy that begins at a multiple of the size of a vector."""
    memory = np.zeros(array.nbytes + ALIGNMENT, np.uint8)
    first = -memory.ctypes.data % ALIGNMENT
    copy = memory[first : first + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def _pointer(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def _pointers(arrays: Sequence[np.ndarray]) -> tuple[Any, ctypes.c_int64]:
    """Return a C array of pointers, and its length."""
    every = (ctypes.c_void_p * len(arrays))(*(a.ctypes.data for a in arrays))
    return every, ctypes.c_int64(len(arrays))
