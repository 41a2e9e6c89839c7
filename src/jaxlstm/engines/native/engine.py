"""Engine that runs the loops of the adjoint engine in a compiled kernel, on a CPU.

The derivative is that of `jaxlstm.engines.adjoint`. The loop of the forward pass and
that of the backward pass, the transpose of the linear tangent, are programs that the
kernel runs; gradients of weights and inputs are products over all steps, by XLA.
"""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from jaxlstm.cells.base import Cell, Params, PerStep, State
from jaxlstm.cells.emit import Emit
from jaxlstm.engines.adjoint import engine as adjoint
from jaxlstm.engines.native import build
from jaxlstm.engines.native.primitive import compiled_scan
from jaxlstm.engines.native.values import Unsupported
from jaxlstm.masking import StepMask
from jaxlstm.typing import Features, is_explicit, is_symbolic, show


def run(
    cell: Cell,
    params: Params,
    xs: Features,
    per_step: PerStep,
    state: State,
    steps: StepMask,
    *,
    reverse: bool,
    emit: Emit,
    checkpoint_every: int | Literal["sqrt"] | None,
    **mode: Any,
) -> tuple[State, Any]:
    """Run the steps; see `Engine` for the arguments, and `adjoint.run` for the mode.

    Raises:
        NotImplementedError: the kernel is not loaded; the backend is not a CPU; the
            dtypes are neither float32 and bfloat16 nor all float64; arrays are on an
            explicit mesh; or the step has operations that the kernel does not have.
    """
    _check_arrays(cell, params, xs, state)
    scan = _loops(row_axes=xs.ndim - 2)
    is_empty = any(leaf.size == 0 for leaf in jax.tree.leaves((xs, state)))
    try:
        return adjoint.run(
            cell,
            params,
            xs,
            per_step,
            state,
            steps,
            reverse=reverse,
            emit=emit,
            checkpoint_every=checkpoint_every,
            scan=None if is_empty else scan,
            **mode,
        )
    except Unsupported as reason:
        raise NotImplementedError(
            f'native: the kernel cannot run a step with {reason}; use engine="adjoint".'
        ) from None


def _loops(row_axes: int) -> adjoint.CompiledScan:
    """Return a loop that the kernel runs.

    It raises `Unsupported` if the kernel cannot run the first one, the forward pass.
    The derivative may be traced later, when no other engine can be chosen any more:
    `lax.scan` runs its loops if the kernel cannot.
    """
    has_run = False

    def run(step: Any, consts: Any, carry: Any, inputs: Any, **options: Any) -> Any:
        nonlocal has_run
        try:
            results = compiled_scan(
                step, consts, carry, inputs, row_axes=row_axes, **options
            )
        except Unsupported:
            if not has_run:
                raise
            del options["active"]
            body = jax.checkpoint(functools.partial(step, consts), prevent_cse=False)
            results = lax.scan(body, carry, inputs, **options)
        has_run = True
        return results

    return run


def _check_arrays(cell: Cell, params: Params, xs: Features, state: State) -> None:
    """Raise `NotImplementedError` for arrays that the kernel cannot be called with."""
    if (reason := build.load_built()) is not None:
        raise NotImplementedError(reason)
    if jax.default_backend() != "cpu":
        raise NotImplementedError(
            f"native: got the backend {jax.default_backend()}, expected cpu; use "
            'engine="adjoint".'
        )
    if cell.spatial_axes:
        raise NotImplementedError(
            "native: got a cell with spatial axes, expected one without; use "
            'engine="adjoint".'
        )
    if is_symbolic(xs.shape):
        raise NotImplementedError(
            f"native: got xs of symbolic shape {show(xs.shape)}, expected integers, as "
            'the kernel is written for one shape; use engine="adjoint".'
        )
    leaves = jax.tree.leaves((params, xs, state))
    kinds = {leaf.dtype for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.inexact)}
    dtypes = {kind.name for kind in kinds}
    if not (dtypes <= {"float32", "bfloat16"} or dtypes == {"float64"}):
        raise NotImplementedError(
            f"native: got {', '.join(sorted(dtypes))}, expected float32, bfloat16 or "
            "both, or float64 alone, for params, xs and state; use "
            'engine="adjoint" for other dtypes.'
        )
    for leaf in leaves:
        if is_explicit(jax.typeof(leaf).sharding):
            raise NotImplementedError(
                "native: got arrays on an explicit mesh, which the kernel does not "
                'support; use engine="adjoint".'
            )
