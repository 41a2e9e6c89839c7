"""The memory problems follow their sources, and a run states when it succeeded."""

from pathlib import Path

import numpy as np
import pytest

from jaxlstm import lab
from jaxlstm.lab import config, tasks
from jaxlstm.lab.tasks.memory import problems


@pytest.fixture
def draw():
    return np.random.default_rng(0)


def last(batch):
    return batch.weights.argmax(0)


def test_target_of_adding_is_the_sum_of_the_marked_values(draw):
    batch = problems.adding(draw, 40, 200)
    assert batch.inputs.shape == (44, 200, 2)
    ends = last(batch)
    assert set(ends) <= set(range(39, 44))
    assert len(set(ends)) == 5
    for row, end in enumerate(ends):
        values, markers = batch.inputs[:, row].T
        marked = np.flatnonzero(markers == 1)
        # A marker of the first step is -1 and its value counts as 0.
        assert len(marked) in (1, 2)
        assert marked.max() < 20
        assert markers[0] == markers[end] == -1
        expected = 0.5 + values[marked].sum() / 4
        assert batch.targets[end, row] == pytest.approx(expected, abs=1e-6)
        assert not batch.inputs[end + 1 :, row].any()
        assert batch.active[:, row].sum() == end + 1


def test_class_of_temporal_order_is_the_order_of_two_symbols(draw):
    batch = problems.temporal_order(draw, 100, 50)
    for row, end in enumerate(last(batch)):
        symbols = batch.inputs[: end + 1, row].argmax(-1)
        assert (symbols[0], symbols[end]) == (6, 7)
        (first, second) = np.flatnonzero(np.isin(symbols, (4, 5)))
        assert 10 <= first <= 20
        assert 50 <= second <= 60
        expected = 2 * (symbols[first] == 5) + (symbols[second] == 5)
        assert batch.targets[end, row] == expected


def test_copying_asks_for_the_symbols_in_their_order(draw):
    batch = problems.copying(draw, 30, 5)
    symbols = batch.inputs.argmax(-1)
    assert (batch.targets[-10:] == symbols[:10]).all()
    assert (symbols[10:-11] == 8).all()
    assert (symbols[-11] == 9).all()
    assert batch.weights.sum() == 50


def test_batches_depend_on_seed_and_step_only():
    task = tasks.get("memory")
    data = task.data(config.load({"task": "memory"}))
    other = data.with_seed(1)
    assert (data.batch(3).inputs == data.batches(2, 2).inputs[1]).all()
    assert (data.batch(3).inputs != other.batch(3).inputs).any()
    tests = [list(each.eval_batches()) for each in (data, other)]
    assert len(tests[0]) == 125  # 2,000 sequences in batches of 16
    assert (tests[0][7].inputs == tests[1][7].inputs).all()


def test_success_is_counted_in_training_sequences():
    given = config.load({"task": "memory", "training": {"batch_size": 20}})
    solved = [{"step": 100, "solved": 0.9}, {"step": 200, "solved": 1.0}]
    never = [{"step": 200, "solved": 0.99}]
    assert tasks.get("memory").compare(given, [solved, never]) == {
        "all sequences solved by": "1 of 2 runs",
        "sequences until success": "4,000",
        "published": "74,000",
    }


def test_the_starter_config_is_the_shipped_one_with_defaults(tmp_path):
    path = tmp_path / "adding.yaml"
    path.write_text(lab.starter("memory"))
    shipped = Path(__file__).parents[2] / "configs" / "adding.yaml"
    assert config.load(path) == config.load(shipped)
