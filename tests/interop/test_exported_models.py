"""A language model in onnxruntime and StableHLO has the probabilities of the model."""

import sys
from pathlib import Path

import jax
import pytest

import jaxlstm as jl

pytestmark = pytest.mark.thorough

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

VOCABULARY = 23


def model(*, bidirectional=False):
    layer = jl.serial(
        embed=jl.embed(VOCABULARY, 6),
        rnn=jl.stack(jl.lstm(), (8, 8), bidirectional=bidirectional),
        head=jl.linear(VOCABULARY),
    )
    params, _ = layer.init(jax.random.key(0))
    return layer, jax.tree.map(lambda leaf: 2 * leaf, params)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_whole_sequences(bidirectional, tmp_path):
    """Batch 1 and 17, one step and 200, and rows of different lengths."""
    pytest.importorskip("onnxruntime")
    from benchmarks import exports

    layer, params = model(bidirectional=bidirectional)
    found = dict(exports.whole_differences(layer, params, VOCABULARY, tmp_path))
    assert len(found) == 12
    assert max(found.values()) < 1e-5


def test_one_token_at_a_time(tmp_path):
    pytest.importorskip("onnxruntime")
    from benchmarks import exports

    found = dict(exports.streamed_differences(*model(), VOCABULARY, tmp_path))
    assert len(found) == 3
    assert max(found.values()) < 1e-5
