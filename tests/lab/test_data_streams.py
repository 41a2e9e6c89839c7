"""Tests of training streams and validation windows: coverage, order and resets."""

import timeit

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlstm.lab._util.errors import BadInput
from jaxlstm.lab.data import Batch, Streams, validation_windows

small = st.integers(1, 7)
seeds = st.integers(0, 2**32 - 1)


@st.composite
def streams_of_positions(draw) -> Streams:
    """Streams over tokens whose ids are their positions."""
    batch_size, window = draw(small), draw(small)
    count = draw(st.integers(batch_size * window + 1, 400))
    token = draw(st.none() | st.integers(0, count - 1))
    return Streams(
        np.arange(count, dtype=draw(st.sampled_from([np.uint16, np.int32, np.int64]))),
        batch_size=batch_size,
        window=window,
        seed=draw(seeds),
        document_token=token,
    )


def epoch_of(streams: Streams, epoch: int) -> Batch:
    """Return an epoch as one window, `[steps T, B]`."""
    count = streams.steps_per_epoch
    batches = streams.batches(epoch * count, count)
    return Batch(*(np.concatenate(field) for field in batches))


@given(streams_of_positions(), st.integers(0, 10**6))
def test_epoch_has_every_target_once_except_the_remainder(streams, epoch):
    targets = epoch_of(streams, epoch).targets.ravel()
    assert len(set(targets.tolist())) == targets.size
    assert targets.size == streams.pairs - streams.remainder
    assert 0 <= streams.remainder < streams.batch_size * streams.window
    assert targets.min() >= 1
    assert targets.max() < len(streams.tokens)


@given(streams_of_positions(), st.integers(0, 10**6))
def test_target_is_the_token_after_its_input(streams, step):
    inputs, targets, _ = streams.batch(step)
    assert inputs.shape == (streams.window, streams.batch_size)
    assert (targets == inputs + 1).all()


@given(streams_of_positions(), st.integers(0, 1000))
def test_streams_are_contiguous_across_windows(streams, epoch):
    inputs, targets, _ = epoch_of(streams, epoch)
    follows = inputs[1:] == targets[:-1]
    closes = (inputs[1:] == 0) & (targets[:-1] == streams.pairs)
    assert (follows | closes).all()


@given(streams_of_positions(), st.integers(0, 1000))
def test_each_stream_begins_where_the_previous_one_ends(streams, epoch):
    inputs = epoch_of(streams, epoch).inputs.T.ravel().astype(int)
    assert ((inputs - inputs[0]) % streams.pairs == np.arange(inputs.size)).all()


@given(streams_of_positions(), st.integers(0, 1000))
def test_resets_at_epochs_documents_and_the_end_of_the_text(streams, epoch):
    inputs, _, resets = epoch_of(streams, epoch)
    expected = inputs == 0
    expected |= inputs == streams.document_token
    expected[0] = True
    assert (resets == expected).all()


@given(streams_of_positions(), st.lists(st.integers(0, 500), max_size=5))
def test_batch_is_a_pure_function_of_the_step(streams, steps):
    again = Streams(
        streams.tokens.copy(),
        batch_size=streams.batch_size,
        window=streams.window,
        seed=streams.seed,
        document_token=streams.document_token,
    )
    first = [streams.batch(step) for step in steps]
    second = [again.batch(step) for step in reversed(steps)]
    for one, other in zip(first, reversed(second), strict=True):
        assert all(map(np.array_equal, one, other))


@given(streams_of_positions(), st.integers(0, 500), st.integers(1, 12))
def test_batches_equal_stacked_single_batches(streams, first, count):
    stacked = streams.batches(first, count)
    for k in range(count):
        one = streams.batch(first + k)
        assert all(np.array_equal(a[k], b) for a, b in zip(stacked, one, strict=True))


def test_dtypes_of_a_batch():
    streams = Streams(np.arange(99, dtype=np.uint8), batch_size=3, window=4)
    dtypes = [field.dtype for field in streams.batches(0, 2)]
    assert dtypes == [np.int32, np.int32, np.bool_]


def test_epochs_and_seeds_begin_at_different_positions():
    def begins(seed: int) -> list[int]:
        streams = Streams(np.arange(10_001), batch_size=1, window=100, seed=seed)
        return [int(streams.batch(100 * epoch).inputs[0, 0]) for epoch in range(50)]

    zero, one = begins(0), begins(1)
    assert len({*zero, *one}) > 95
    assert 3000 < np.mean(zero) < 7000


def test_epoch_positions_are_stable_across_releases():
    streams = Streams(np.arange(1_000_001), batch_size=1, window=1000, seed=7)
    begins = [int(streams.batch(1000 * epoch).inputs[0, 0]) for epoch in range(3)]
    assert begins == [661272, 577688, 952437]


def test_smallest_text_has_one_step_per_epoch():
    streams = Streams(np.arange(13), batch_size=3, window=4, seed=5)
    assert streams.steps_per_epoch == 1
    assert sorted(streams.batch(9).targets.ravel()) == list(range(1, 13))


def test_memmap_equals_array(tmp_path):
    tokens = np.arange(5000, dtype="<u2") * 7 % 311
    tokens.tofile(tmp_path / "a.bin")
    mapped = np.memmap(tmp_path / "a.bin", "<u2", mode="r")
    options = {"batch_size": 4, "window": 16, "seed": 3, "document_token": 7}
    one, other = Streams(tokens, **options), Streams(mapped, **options)
    assert all(map(np.array_equal, one.batches(60, 30), other.batches(60, 30)))
    assert type(other.batch(0).inputs) is np.ndarray


@pytest.mark.parametrize(
    ("count", "options", "words"),
    [
        (12, {}, ["got 12 ", "training.batch_size 3", "training.window 4", "least 13"]),
        (0, {}, ["got 0 training tokens", "more text"]),
        (99, {"window": 0}, ["window: got 0"]),
        (99, {"batch_size": -1}, ["batch_size: got -1"]),
        (99, {"seed": -1}, ["seed: got -1"]),
    ],
)
def test_invalid_streams_are_refused(count, options, words):
    with pytest.raises(BadInput) as caught:
        Streams(np.arange(count), **{"batch_size": 3, "window": 4} | options)
    assert all(word in str(caught.value) for word in words)


def test_negative_step_is_refused():
    with pytest.raises(BadInput, match="step: got -1"):
        Streams(np.arange(50), batch_size=3, window=4).batch(-1)


def test_batch_takes_less_than_200_microseconds():
    tokens = np.arange(4_000_000, dtype=np.uint16)
    streams = Streams(tokens, batch_size=32, window=128, document_token=1)
    assert min(timeit.repeat(lambda: streams.batch(77), number=1, repeat=200)) < 2e-4


# -- validation -----------------------------------------------------------------


@st.composite
def validation_cases(draw):
    count, streams, window = draw(st.integers(2, 300)), draw(small), draw(small)
    limit = draw(st.none() | st.integers(1, 400))
    token = draw(st.none() | st.integers(0, count - 1))
    windows = validation_windows(
        np.arange(count),
        streams=streams,
        window=window,
        limit=limit,
        document_token=token,
    )
    return count, streams, window, limit, token, list(windows)


@given(validation_cases())
def test_validation_has_every_target_once(case):
    count, streams, window, limit, _, windows = case
    targets = np.concatenate([part.targets[part.weights] for part in windows])
    end = count if limit is None else min(count, limit + 1)
    assert sorted(targets.tolist()) == list(range(1, end))
    assert {part.inputs.shape for part in windows} == {(window, streams)}


@given(validation_cases())
def test_validation_streams_are_contiguous(case):
    windows = case[-1]
    inputs, targets, resets, weights = (
        np.concatenate(f) for f in zip(*windows, strict=True)
    )
    assert (inputs[weights] + 1 == targets[weights]).all()
    assert (inputs[1:] == targets[:-1])[weights[1:]].all()
    assert (weights[1:] <= weights[:-1]).all()
    expected = inputs == case[4]
    expected[0] = True
    assert (resets == expected & weights).all()
    assert (inputs[~weights] == 0).all()
    assert (targets[~weights] == 0).all()


@pytest.mark.parametrize("count", [0, 1])
def test_empty_validation_part_is_refused_before_iteration(count):
    with pytest.raises(BadInput, match=f"{count} validation tokens"):
        validation_windows(np.arange(count), streams=2, window=3)


def test_limit_of_zero_is_refused():
    with pytest.raises(BadInput, match="a limit of 0"):
        validation_windows(np.arange(9), streams=2, window=3, limit=0)


def test_training_batches_have_no_validation_token():
    tokens = np.arange(1000)
    streams = Streams(tokens[:900], batch_size=4, window=10, seed=1)
    seen = streams.batches(0, 5 * streams.steps_per_epoch)
    assert max(seen.inputs.max(), seen.targets.max()) < 900
