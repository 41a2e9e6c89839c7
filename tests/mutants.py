"""Plausible bugs as patches of the source, and a copy of the package that has one.

Each mutant replaces one snippet of source, which must occur exactly once; a mutant
that does not fit the source is an error. The mutated copy is imported under the
library's own name, so that its modules find each other.
"""

import importlib
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

NAME = "jaxlstm"
LSTM, TYPING, INITIALIZERS = "cells/lstm.py", "typing.py", "initializers.py"
MASKING, SCAN, REGISTRY = "masking.py", "engines/scan.py", "engines/registry.py"
VALIDATION, LOOPS = "validation.py", "engines/loops.py"
ADJOINT, PARTITION = "engines/adjoint/engine.py", "engines/adjoint/partition.py"
ADJOINT_STEPS = "engines/adjoint/steps.py"
MATMUL = "engines/matmul.py"


class Mutant(NamedTuple):
    """Replace `old` by `new` in `file`; the checks run with `engine`."""

    name: str
    file: str
    old: str
    new: str
    engine: str | None = None


# The cell.
CELL = [
    Mutant("i and f exchanged", LSTM, "(i=z[..., 0, :], f=z[..., 1, :]",
           "(i=z[..., 1, :], f=z[..., 0, :]"),
    Mutant("g and o exchanged", LSTM, "g=z[..., 2, :], o=z[..., 3, :]",
           "g=z[..., 3, :], o=z[..., 2, :]"),
    Mutant("f and g exchanged", LSTM, "f=z[..., 1, :], g=z[..., 2, :]",
           "f=z[..., 2, :], g=z[..., 1, :]"),
    Mutant("bias counted twice", LSTM, "params.w_x, params.b)",
           "params.w_x, 2 * params.b)"),
    Mutant("bias dropped", LSTM, "params.w_x, params.b)", "params.w_x, 0 * params.b)"),
    Mutant("recurrence dropped", LSTM, "z = z + product(h,", "z = z + 0 * product(h,"),
    Mutant("input dropped", LSTM, "z = z + product(h,", "z = product(h,"),
    Mutant("w_h transposed", LSTM, "product(h, params.w_h,",
           "product(h, params.w_h.transpose(2, 1, 0),"),
    Mutant("w_x read gate last", LSTM, "affine(x, params.w_x,",
           "affine(x, params.w_x.swapaxes(1, 2).reshape(params.w_x.shape),"),
    Mutant("h and c exchanged", LSTM, "h=gates.o * output(c), c=c",
           "h=c, c=gates.o * output(c)"),
    Mutant("tanh of c forgotten", LSTM, "gates.o * output(c)", "gates.o * c"),
    Mutant("h of the old c", LSTM,
           "    c = apply_edit(edit, gates.f * c + gates.i * gates.g)\n",
           "    old, c = c, gates.f * c + gates.i * gates.g\n"
           "    return LSTMState(h=gates.o * output(old), c=c)\n"),
    Mutant("tanh of o, not of c", LSTM, "gates.o * output(c)", "output(gates.o) * c"),
    Mutant("sigmoid for the candidate", LSTM, "g=candidate(gates.g)",
           "g=gate(gates.g)"),
    Mutant("tanh for the output gate", LSTM, "o=gate(gates.o)", "o=candidate(gates.o)"),
    Mutant("tanh for the input gate", LSTM, "i=gate(gates.i)", "i=candidate(gates.i)"),
    Mutant("forget bias in the forward pass", LSTM, "f=gate(gates.f)",
           "f=gate(gates.f + 1)"),
    Mutant("f forgets the new as well", LSTM, "gates.f * c + gates.i * gates.g",
           "gates.f * (c + gates.i * gates.g)"),
    Mutant("f and i coupled", LSTM, "gates.f * c + gates.i * gates.g",
           "(1 - gates.i) * c + gates.i * gates.g"),
    Mutant("c not carried", LSTM, "gates.f * c + gates.i * gates.g",
           "gates.f * c * 0 + gates.i * gates.g"),
    Mutant("no gradient through h", LSTM, "product(h, params.w_h",
           "product(jax.lax.stop_gradient(h), params.w_h"),
    Mutant("no gradient through c", LSTM, "gates.f * c +",
           "gates.f * jax.lax.stop_gradient(c) +"),
    Mutant("c carried in 16 bits", TYPING, "itemsize >= 4", "itemsize >= 2"),
    Mutant("initial state of ones", LSTM, "h=jnp.zeros(", "h=jnp.ones("),
    Mutant("forget bias on the input gate", INITIALIZERS, ".at[FORGET].set(value)",
           ".at[INPUT].set(value)"),
    Mutant("output activation for the candidate", LSTM,
           'activation("candidate_activation", candidate_activation)',
           'activation("candidate_activation", output_activation)'),
    Mutant("gate activation ignored", LSTM,
           'activation("gate_activation", gate_activation)',
           'activation("gate_activation", "sigmoid")'),
    Mutant("factory not cached", LSTM, "@cached\n", ""),
]  # fmt: skip

# Lengths and masks.
STEPS = [
    Mutant("one step too many", MASKING, "clock < counts[None]",
           "clock <= counts[None]"),
    Mutant("one step too few", MASKING, "clock < counts[None]",
           "clock + 1 < counts[None]"),
    Mutant("padding on the left", MASKING, "clock < counts[None]",
           "clock >= time - counts[None]"),
    Mutant("no NaN for invalid lengths", MASKING, "(counts > time) if traced else None",
           "(counts > time) if False else None"),
    Mutant("no NaN for lengths below 0", MASKING,
           "invalid_length=(counts < 0) | (counts > time)",
           "invalid_length=(counts > time)"),
    Mutant("no NaN for lengths above T", MASKING,
           "invalid_length=(counts < 0) | (counts > time)",
           "invalid_length=(counts < 0)"),
    Mutant("NaN at length T", MASKING,
           "invalid_length=(counts < 0) | (counts > time)",
           "invalid_length=(counts < 0) | (counts >= time)"),
    Mutant("lengths clamped", MASKING, "itemsize == 8 else jnp.int32)",
           "itemsize == 8 else jnp.int32).clip(0, 4)"),
    Mutant("concrete lengths not checked", MASKING, "    if not traced:\n",
           "    if False:\n"),
    Mutant("negative lengths not checked", MASKING,
           "np.argwhere((counts < 0) | (counts > time))", "np.argwhere(counts > time)"),
    Mutant("float lengths taken", MASKING,
           "if not jnp.issubdtype(counts.dtype, jnp.integer)", "if False"),
    Mutant("lengths of any shape", MASKING, "if counts.shape != batch_shape",
           "if counts.ndim > 1"),
    Mutant("mask and lengths together", MASKING,
           "if lengths is not None and mask is not None", "if False"),
    Mutant("float mask taken", MASKING, "if array.dtype != jnp.bool_", "if False"),
    Mutant("mask inverted", MASKING, 'active=_booleans("mask", mask, frame)',
           'active=~_booleans("mask", mask, frame)'),
    Mutant("resets lost with a mask", MASKING,
           'mask, frame), resets=resets)', 'mask, frame))'),
    Mutant("select by a product", MASKING,
           "jnp.where(chosen.reshape(*chosen.shape, *tail), yes, no)",
           "(lambda w: w * yes + (1 - w) * no)("
           "chosen.reshape(*chosen.shape, *tail).astype(yes.dtype))"),
    Mutant("select the wrong way", MASKING, "*tail), yes, no)", "*tail), no, yes)"),
]  # fmt: skip

# Loops.
LOOP = [
    Mutant("gradient through padding", REGISTRY, "masking.zero_inactive(xs, steps),",
           "xs,"),
    Mutant("outputs of padding not zero", REGISTRY,
           "emitted = masking.mask_outputs(emitted, steps)", "emitted = emitted"),
    Mutant("final state not NaN", REGISTRY,
           "state = masking.nan_rows(state, steps.invalid_length)", "state = state"),
    Mutant("given state ignored", VALIDATION,
           "initial_state(params) if state is None else",
           "initial_state(params) if True else"),
    Mutant("state runs on through padding", LOOPS,
           "return after if active is None else select(active, after, state)",
           "return after"),
    Mutant("reset ignored", LOOPS, "    replace = resets\n",
           "    resets = None\n    replace = resets\n"),
    Mutant("reset after the step", SCAN, "cell.step(params, before, project(",
           "cell.step(params, state, project("),
    Mutant("reset at a masked step", SCAN,
           "freeze_inactive(after, state, active)",
           "freeze_inactive(after, before, active)"),
    Mutant("reset to the given state", SCAN,
           "initial = cell.initial_state(params, batch_shape, dtype=xs.dtype)",
           "initial = state"),
    Mutant("reset of h alone", SCAN, "        after, gates = cell.step",
           "        before = before._replace(c=state.c)\n"
           "        after, gates = cell.step"),
    Mutant("reset of the whole batch", LOOPS, "    replace = resets\n",
           "    if resets is not None:\n"
           "        resets = jnp.full_like(resets, resets.any())\n"
           "    replace = resets\n"),
    Mutant("emits the state before", SCAN, "emit(after, gates)", "emit(state, gates)"),
    Mutant("reverse ignored", SCAN, "state, inputs, reverse=reverse)\n\n",
           "state, inputs, reverse=False)\n\n"),
    Mutant("reverse without the mask", SCAN,
           "inputs = (xs, per_step, steps.active,",
           "inputs = (xs, per_step, steps.active[::-1]"
           " if reverse and steps.active is not None else steps.active,"),
    Mutant("resets not reversed", SCAN, "steps.active, steps.resets)",
           "steps.active, steps.resets[::-1] if reverse and steps.resets is not None"
           " else steps.resets)"),
    Mutant("blocks of a reversed run in order", LOOPS,
           "lax.scan(recomputed, state, many, reverse=reverse)",
           "lax.scan(recomputed, state, many)"),
    Mutant("a reversed run begins with the blocks", LOOPS,
           "    state, first = (remainder if reverse else blocks)(state)\n"
           "    state, second = (blocks if reverse else remainder)(state)\n"
           "    head, tail = (second, first) if reverse else (first, second)\n",
           "    state, head = blocks(state)\n    state, tail = remainder(state)\n"),
    Mutant("state after the remainder dropped", LOOPS,
           "    state, second = (blocks if reverse else remainder)(state)",
           "    _, second = (blocks if reverse else remainder)(state)"),
    Mutant("remainder starts from zeros", LOOPS,
           "    state, second = (blocks if reverse else remainder)(state)",
           "    zero = jax.tree.map(jnp.zeros_like, state)\n"
           "    state, second = (blocks if reverse else remainder)(zero)"),
    Mutant("checkpoints ignored by scan", SCAN, "    if checkpoint_every is None:\n",
           "    if True:\n"),
]  # fmt: skip

# The adjoint engine, whose derivative is written by hand.
DERIVATIVE = [
    Mutant("slope of tanh", PARTITION, "(1 - y) * (1 + y)", "(1 - y)"),
    Mutant("slope of the sigmoid", PARTITION, "lambda y: y * (1 - y)", "lambda y: y"),
    Mutant("shared weight treated as of one product", PARTITION,
           "        if any(id(user) not in weights", "        if False and any(True"),
    Mutant("addend used twice is tapped", PARTITION, "if len(uses[other]) == 1:",
           "if True:"),
    Mutant("tangent of the input lost", ADJOINT,
           "return omega if d_addend is None else omega + d_addend", "return omega"),
    Mutant("tangent of the weight lost", ADJOINT, "    if d_weight is None:\n",
           "    if d_addend is not None:\n"),
    Mutant("tangent of the first state lost", ADJOINT,
           "[instantiate(s, d) for s, d in",
           "[instantiate(s, None) for s, d in"),
    Mutant("tangent of the reset state lost", ADJOINT,
           "    d_steps = StepInputs(d_params_only, d_xs, d_initial, d_state, [])",
           "    d_initial = [None] * len(initial)\n"
           "    d_steps = StepInputs(d_params_only, d_xs, d_initial, d_state, [])"),
    Mutant("params-only tangents lost", ADJOINT_STEPS,
           "keep_needed(d_params_only, of_params),",
           "[None] * len(d_params_only),", "adjoint"),
    Mutant("tangents in the order of time", ADJOINT,
           "lax.scan(body, tangents.state, inputs, length=known, reverse=reverse)",
           "lax.scan(body, tangents.state, inputs, length=known)"),
    Mutant("stores the state after the step", ADJOINT,
           "(emitted, keep(state, activations))",
           "(emitted, keep(after, activations))"),
    Mutant("checkpoints ignored by adjoint", ADJOINT,
           "    if checkpoint_every is None:\n", "    if True:\n"),
]  # fmt: skip

LEAN, FIRST = "adjoint/lean", "adjoint/weights_first"

# Other modes of the adjoint engine.
MODES = [
    Mutant("activations of another step", ADJOINT,
           "activations = at_all_steps(plan.recompute, [])",
           "activations = [a[::-1] for a in at_all_steps(plan.recompute, [])]", LEAN),
    Mutant("recomputed activations without resets", ADJOINT,
           "        rows_first = NonDiffInputs(\n"
           "            active, resets, activations,",
           "        none = None if resets is None else resets & False\n"
           "        rows_first = NonDiffInputs(\n"
           "            active, none, activations,",
           LEAN),
    Mutant("blocks in the order of time", ADJOINT,
           'block, d_state, inputs, every="sqrt", reverse=reverse',
           'block, d_state, inputs, every="sqrt", reverse=False', LEAN),
    Mutant("wrong weights in the backward pass", MATMUL,
           "return weights_first(ct, w_transposed, w), None, None",
           "return weights_first(ct, w_transposed, 2 * w), None, None", FIRST),
    Mutant("rows in another order", MATMUL,
           "columns = lax.optimization_barrier(_flatten_rows(x).T)",
           "columns = lax.optimization_barrier(_flatten_rows(x)[::-1].T)",
           FIRST),
]  # fmt: skip

MUTANTS = [*CELL, *STEPS, *LOOP, *DERIVATIVE, *MODES]
UNMUTATED = Mutant("none", LSTM, "", "")


def plant(mutant: Mutant, folder: Path) -> None:
    """Write a copy of the library, without `lab`, that has the bug."""
    package = Path(importlib.import_module(NAME).__path__[0])
    unwanted = shutil.ignore_patterns("lab", "__pycache__")
    shutil.copytree(package, folder / NAME, ignore=unwanted)
    file = folder / NAME / mutant.file
    text = file.read_text(encoding="utf-8")
    if mutant is UNMUTATED:
        return
    found = text.count(mutant.old)
    if found != 1:
        raise LookupError(
            f"mutant {mutant.name!r}: {mutant.old!r} occurs {found} times in "
            f"{mutant.file}, expected 1; update the mutant to the current source."
        )
    file.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")


@contextmanager
def imported_from(folder: Path) -> Iterator:
    """Import the library from `folder` in place of the installed one."""
    genuine = {name: sys.modules.pop(name) for name in _loaded()}
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield importlib.import_module(NAME)
    finally:
        sys.path.remove(str(folder))
        for name in _loaded():
            del sys.modules[name]
        sys.modules.update(genuine)


def _loaded() -> list[str]:
    return [name for name in sys.modules if name.split(".")[0] == NAME]
