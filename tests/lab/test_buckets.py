"""Tests that buckets have little padding and give each sequence once an epoch."""

import itertools
from collections import Counter

import numpy as np
import pytest

from jaxlstm.lab.data import buckets


def order(groups, seed=0, batch_size=4, steps_per_dispatch=3):
    return buckets.Order(
        groups, batch_size=batch_size, steps_per_dispatch=steps_per_dispatch, seed=seed
    )


def test_padding_by_hand():
    lengths = np.array([2, 4, 3, 10])
    groups = (
        buckets.Bucket(np.array([0, 1, 2]), 4),
        buckets.Bucket(np.array([3]), 10),
    )
    assert buckets.padding(lengths, groups) == pytest.approx(1 - 19 / 22)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_cuts_have_the_least_padding_of_all(count):
    lengths = np.random.default_rng(count).integers(1, 30, 12)
    found = buckets.choose(lengths, smallest=2, count=count)
    ordered = np.sort(lengths)
    costs = []
    for cuts in itertools.combinations(range(1, 12), count - 1):
        parts = np.split(ordered, cuts)
        if min(map(len, parts)) >= 2:
            costs.append(sum(len(part) * part[-1] for part in parts))
    padded = sum(len(group.members) * group.length for group in found)
    assert padded == min(costs)
    members = np.concatenate([group.members for group in found])
    assert sorted(members) == list(range(12))
    assert all((lengths[g.members] <= g.length).all() for g in found)


def test_equal_lengths_and_few_sequences_make_one_bucket():
    assert len(buckets.choose(np.full(1000, 7), smallest=10)) == 1
    (only,) = buckets.choose(np.array([1, 100]), smallest=640)
    assert only.length == 100


def test_each_sequence_is_there_once_an_epoch():
    groups = (
        buckets.Bucket(np.arange(10), 5),
        buckets.Bucket(np.arange(10, 17), 9),
    )
    drawn = order(groups)
    seen = {5: [], 9: []}
    for step in range(300):
        members, length = drawn.batch(step)
        assert len(members) == 4
        seen[length] += members.tolist()
    for group in groups:
        stream, size = seen[group.length], len(group.members)
        epochs = [stream[k : k + size] for k in range(0, len(stream) - size + 1, size)]
        assert len(epochs) > 10
        assert all(sorted(epoch) == group.members.tolist() for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) > 1
    share = len(seen[5]) / (len(seen[5]) + len(seen[9]))
    assert share == pytest.approx(10 / 17, abs=0.02)


def test_a_batch_depends_on_seed_and_step_alone():
    groups = buckets.choose(np.arange(1, 61), smallest=12, count=3)
    forwards = [order(groups).batch(step) for step in range(60)]
    again = order(groups)
    for step in reversed(range(60)):
        members, length = again.batch(step)
        assert members.tolist() == forwards[step][0].tolist()
        assert length == forwards[step][1]
    other = [order(groups, seed=1).batch(step) for step in range(60)]
    assert [length for _, length in other] == [length for _, length in forwards]
    assert any((a[0] != b[0]).any() for a, b in zip(other, forwards, strict=True))


def test_all_batches_of_a_dispatch_have_one_length():
    groups = buckets.choose(np.arange(1, 61), smallest=12, count=3)
    drawn = order(groups, steps_per_dispatch=5)
    lengths = [drawn.batch(step)[1] for step in range(100)]
    assert len(set(lengths)) == 3
    for dispatch in range(20):
        assert len(set(lengths[5 * dispatch : 5 * dispatch + 5])) == 1


def test_a_batch_may_be_larger_than_the_data():
    drawn = order((buckets.Bucket(np.arange(3), 2),), batch_size=7)
    members = np.concatenate([drawn.batch(step)[0] for step in range(3)])
    assert Counter(members.tolist()) == {0: 7, 1: 7, 2: 7}
