"""Limits of the machine: matrix products and copies of the size of a plain layer.

They compute no LSTM. The product of a forward pass is [T B, D + H] by [D + H, 4H], all
steps at once; a training step has those of both gradients as well. The copy moves as
many bytes as the arguments and results of the case have.
"""

import functools
from typing import Any

import torch

from benchmarks.cases import Case, Inputs, What
from benchmarks.peers.base import Contender, Prepared, Program
from benchmarks.peers.torch import THREADS


def supports(case: Case) -> str | None:
    """Return why a case is not supported: one plain layer only."""
    if case.group != "limits":
        return "limits are measured in processes of their own"
    return None


def _products(what: What, threads: int, case: Case, inputs: Inputs) -> Prepared:
    rows, width = case.time * case.batch, case.features + case.units
    xs, w, zs = (
        torch.randn(shape)
        for shape in ((rows, width), (width, 4 * case.units), (rows, 4 * case.units))
    )
    d_w, d_xs = torch.empty_like(w), torch.empty_like(xs)

    def run() -> Any:
        torch.set_num_threads(threads)
        torch.mm(xs, w, out=zs)
        if what == "training":
            torch.mm(zs, w.T, out=d_xs)
            torch.mm(xs.T, zs, out=d_w)
        torch.set_num_threads(THREADS)
        return zs

    return Prepared(lambda: Program(run), compiled=False)


def _copy(what: What, case: Case, inputs: Inputs) -> Prepared:
    source = torch.zeros(case.bytes(what) // 8)  # half is read, half is written
    target = torch.empty_like(source)
    return Prepared(lambda: Program(lambda: target.copy_(source)), compiled=False)


def _with_threads(name: str, threads: int) -> Contender:
    return Contender(
        name,
        "torch",
        supports,
        functools.partial(_products, "forward", threads),
        functools.partial(_products, "training", threads),
    )


CONTENDERS = (
    _with_threads("GEMM", THREADS),
    _with_threads("GEMM one thread", 1),
    Contender(
        "copy",
        "torch",
        supports,
        functools.partial(_copy, "forward"),
        functools.partial(_copy, "training"),
    ),
)
