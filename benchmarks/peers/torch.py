"""torch: `nn.LSTM` and `nn.GRU`, `nn.LSTMCell` for single steps, time first."""

import os
from typing import Any

import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from benchmarks.cases import Case, Inputs, Weights
from benchmarks.peers.base import Contender, Prepared, Program, merge_gate_axis

if hasattr(os, "sched_getaffinity"):
    torch.set_num_threads(len(os.sched_getaffinity(0)))
THREADS = torch.get_num_threads()


def supports(case: Case) -> str | None:
    """Return why a case is not supported: plain LSTMs and GRUs only."""
    missing = {
        "layer_norm": "nn.LSTM has no layer norm",
        "zoneout": "nn.LSTM has no zoneout",
    }
    return missing.get(case.cell)


def _load(module: torch.nn.Module, weights: Weights, suffix: str) -> None:
    """Load the weights; torch has two biases, and the second one is set to 0."""
    own = {
        "weight_ih": merge_gate_axis(weights.w_x).T,
        "weight_hh": merge_gate_axis(weights.w_h).T,
        "bias_ih": merge_gate_axis(weights.b),
        "bias_hh": 0 * merge_gate_axis(weights.b),
    }
    with torch.no_grad():
        for name, value in own.items():
            getattr(module, name + suffix).copy_(torch.tensor(value))


def _rnn(case: Case, inputs: Inputs) -> torch.nn.RNNBase:
    kind = torch.nn.GRU if case.cell == "gru" else torch.nn.LSTM
    rnn = kind(case.features, case.units, case.layers, bidirectional=case.bidirectional)
    for depth, directions in enumerate(inputs.layers):
        for direction, weights in enumerate(directions):
            _load(rnn, weights, f"_l{depth}" + "_reverse" * direction)
    return rnn


def _hs(rnn: torch.nn.RNNBase, xs: torch.Tensor, lengths: Any) -> torch.Tensor:
    """Run the layers; rows of unequal length are packed before and padded after."""
    if lengths is None:
        return rnn(xs)[0]
    packed = pack_padded_sequence(xs, lengths, enforce_sorted=False)
    return pad_packed_sequence(rnn(packed)[0], total_length=len(xs))[0]


def _lengths(inputs: Inputs) -> torch.Tensor | None:
    return None if inputs.lengths is None else torch.tensor(inputs.lengths).long()


def forward(case: Case, inputs: Inputs) -> Prepared:
    """Return the program of the outputs, without autograd."""
    rnn, xs, lengths = _rnn(case, inputs), torch.tensor(inputs.xs), _lengths(inputs)

    def run() -> torch.Tensor:
        with torch.no_grad():
            return _hs(rnn, xs, lengths)

    return Prepared(lambda: Program(run), compiled=False)


def training_step(case: Case, inputs: Inputs) -> Prepared:
    """Return the program of the gradients of parameters and inputs."""
    rnn, lengths = _rnn(case, inputs), _lengths(inputs)
    xs, d_hs = torch.tensor(inputs.xs, requires_grad=True), torch.tensor(inputs.d_hs)

    def run() -> tuple[list[Any], Any]:
        rnn.zero_grad()
        xs.grad = None
        _hs(rnn, xs, lengths).backward(d_hs)
        return [p.grad for p in rnn.parameters()], xs.grad

    return Prepared(lambda: Program(run), compiled=False)


def step(case: Case, inputs: Inputs) -> Prepared:
    """Return the program of one step of `nn.LSTMCell`, without autograd."""
    cell = torch.nn.LSTMCell(case.features, case.units)
    _load(cell, inputs.layers[0][0], "")
    x, zeros = torch.tensor(inputs.xs[0]), torch.zeros(case.batch, case.units)

    def compiled() -> Program:
        state = (zeros, zeros)

        def run() -> torch.Tensor:
            nonlocal state
            with torch.no_grad():
                state = cell(x, state)
            return state[0]

        return Program(run)

    return Prepared(compiled, compiled=False)


CONTENDERS = (Contender("torch", "torch", supports, forward, training_step, step),)
