"""Traces change no bit of programs that are compiled with all optimisations."""

import pytest

from traces import (
    CELLS,
    COMBINATIONS,
    FIRST,
    LAYERS,
    OPTIONS,
    QUICK,
    also,
    check_emit_trace,
    check_trace_of_layers,
)

OPTIMISED = True

EVERY_LAYER = [(name, options) for name in LAYERS for options in OPTIONS]
LAYERS_FIRST = [
    case
    for case in EVERY_LAYER
    if case in FIRST or case[0] == "both" or case[1] == "noisy"
]
LAYERS_REST = [case for case in EVERY_LAYER if case not in LAYERS_FIRST]


@pytest.mark.parametrize(
    ("name", "options"),
    also(*LAYERS_FIRST, mark=COMBINATIONS) + also(*LAYERS_REST),
)
def test_trace_names_every_layer_and_changes_no_bit(name, options):
    check_trace_of_layers(name, options)


SIZES = 12, 64  # 12 is not a multiple of the vector width
MODES = "adjoint", "adjoint/lean"
EVERY = [(name, size, mode) for name in CELLS for size in SIZES for mode in MODES]
# Unoptimised programs with layer normalization differ in the last bits.
CELLS_FIRST = [("lstm", 12, "adjoint"), ("layer norm", 12, "adjoint")]
CELLS_SECOND = [
    case
    for case in EVERY
    if case not in CELLS_FIRST
    and (case[1:] == (12, "adjoint") or case[0] == "lstm" or case in QUICK)
]
CELLS_REST = [case for case in EVERY if case not in CELLS_FIRST + CELLS_SECOND]


@pytest.mark.parametrize(
    ("name", "size", "mode"),
    CELLS_FIRST + also(*CELLS_SECOND, mark=COMBINATIONS) + also(*CELLS_REST),
)
def test_emit_trace_changes_no_bit_of_the_adjoint_engine(name, size, mode):
    check_emit_trace(name, size, mode)
