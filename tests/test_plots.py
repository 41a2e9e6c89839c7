"""The pictures: what they show, what they refuse, and that they can be drawn."""

import itertools
import warnings

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from jaxlstm import diagnostics, plots
from jaxlstm.cells.base import Gates, LSTMState
from jaxlstm.cells.emit import Trace


@pytest.fixture(autouse=True)
def no_window():
    """Draw without a screen, and leave no figure behind."""
    from matplotlib import pyplot

    with matplotlib.rc_context({"backend": "agg"}):
        yield
    pyplot.close("all")


@pytest.fixture
def ax():
    return Figure(figsize=(8, 5), layout="constrained").add_subplot()


def drawn(ax):
    """Draw for real, with every warning an error; give the axes back."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ax.figure.draw_without_rendering()
    return ax


def words(ax):
    return " ".join(text.get_text() for text in ax.texts)


def record(step, loss, split="train", **more):
    return {"step": step, "split": split, "loss": loss, **more}


def trace(steps, units, seed=0):
    draw = np.random.default_rng(seed).random
    shape = (steps, units)
    gates = Gates(draw(shape), draw(shape), draw(shape) * 2 - 1, draw(shape))
    return Trace(LSTMState(draw(shape) - 0.5, draw(shape) * 4), gates)


def test_the_best_validation_is_marked_not_the_last(ax):
    records = [record(n, loss, "validation") for n, loss in ((1, 3), (2, 1.5), (3, 2))]
    assert "best 1.500 nats\nat step 2" in words(
        drawn(plots.loss_curve(records, ax=ax))
    )


@pytest.mark.parametrize(
    ("more", "label"),
    [
        ({}, "loss (nats per token)"),
        ({"perplexity": 4.0}, "perplexity per token"),
        ({"bits_per_character": 2.0}, "bits per character"),
    ],
)
def test_the_score_is_the_one_the_records_have(ax, more, label):
    records = [record(1, 1.4, **more), record(1, 1.5, "validation", **more)]
    assert drawn(plots.loss_curve(records, ax=ax)).get_ylabel() == label


def test_the_first_descent_is_cut_and_named(ax):
    records = [record(n, 9.0 if n == 1 else 2 + 1 / n) for n in range(1, 101)]
    plots.loss_curve(records, ax=ax)
    assert ax.get_ylim()[1] < 3
    assert "from 9" in words(drawn(ax))


def test_a_slow_descent_is_shown_whole(ax):
    plots.loss_curve([record(n, 5 - n / 50) for n in range(1, 101)], ax=ax)
    assert ax.get_ylim()[1] > 4.98


@pytest.mark.parametrize(
    "records",
    [
        [record(1, None)],
        [record(1, None, "validation")],
        [record(n, None if n % 7 == 0 else 1.0 / n) for n in range(1, 50)],
        [record(1, float("inf")), record(2, 1.0, "validation")],
        [record(1, 1.0, gradient_norm=0.0, learning_rate=0.0)],
        [record(1, 1.0, gradient_norm=None, learning_rate=1e-3)],
    ],
)
def test_few_missing_and_infinite_numbers_can_be_drawn(records):
    drawn(plots.loss_curve(records, ax=Figure().add_subplot()))
    drawn(plots.training_health(records, ax=Figure().add_subplot()))


def test_training_health_has_two_panels_over_the_same_steps(ax):
    records = [record(n, 1.0, gradient_norm=n, learning_rate=1e-3) for n in (1, 2, 3)]
    top = drawn(plots.training_health(records, ax=ax))
    bottom = ax.figure.axes[1]
    assert (top.get_ylabel(), bottom.get_ylabel()) == ("gradient norm", "learning rate")
    assert top.get_xlim() == bottom.get_xlim()


def test_runs_are_compared_in_a_unit_that_all_have(ax):
    both = [record(1, 1.5, "validation", bits_per_character=2.1)]
    plain = [record(1, 1.4, "validation")]
    drawn(plots.compare_runs({"a": both, "b": plain, "empty": []}, ax=ax))
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names == ["a: best 1.5", "b: best 1.4", "empty"]
    assert ax.get_ylabel() == "validation loss (nats per token)"


def test_more_runs_than_styles_stay_distinct(ax):
    run = [record(1, 1.5, "validation")]
    plots.compare_runs({str(n): run for n in range(12)}, ax=ax)
    looks = {(line.get_color(), line.get_linestyle()) for line in drawn(ax).lines}
    assert len(looks) == 12


def test_the_heatmap_sorts_units_by_their_mean(ax):
    values = np.array([[0.1, 0.9, 0.5], [0.2, 0.8, 0.5]])
    plots.gate_heatmap("ab", values, "forget gate f", ax=ax)
    shown = np.asarray(drawn(ax).images[0].get_array())
    np.testing.assert_array_equal(shown, [[0.9, 0.8], [0.5, 0.5], [0.1, 0.2]])


def test_symbols_are_written_as_they_are_or_with_a_stand_in(ax):
    symbols = ["$", "$", "\n", "\t", " ", "\x1b", "漢", "\U000f0000"]
    plots.gate_heatmap(symbols, np.zeros((8, 2)), "f", ax=ax)
    labels = [label.get_text() for label in drawn(ax).get_xticklabels()]
    assert labels[:6] == ["$", "$", "↵", "→", " ", "□"]
    assert labels[-1] == "□"


def test_words_stand_upright(ax):
    plots.gate_heatmap(["the", "cat"], np.zeros((2, 2)), "f", ax=ax)
    assert drawn(ax).get_xticklabels()[0].get_rotation() == 90


def test_a_unit_shows_its_gates_its_cell_and_its_output(ax):
    plots.unit_trace("abcd", trace(4, 3), 1, ax=ax)
    names = [panel.get_ylabel() for panel in drawn(ax).figure.axes]
    wanted = ["input i", "forget f", "output o", "candidate g", "cell c", "output h"]
    assert names == wanted


def test_a_silent_unit_can_be_drawn(ax):
    zeros = np.zeros((3, 2))
    still = Trace(LSTMState(zeros, zeros), Gates(zeros, zeros, zeros, zeros))
    drawn(plots.unit_trace("abc", still, 0, ax=ax))


def test_a_nan_in_a_unit_is_a_gap_and_hides_nothing_else(ax):
    values = np.where(np.arange(6)[:, None] < 3, -2.0, np.nan) * np.ones((6, 2))
    gate = np.full((6, 2), 0.5)
    broken = Trace(LSTMState(values, values), Gates(gate, gate, values, gate))
    drawn(plots.unit_trace("abcdef", broken, 1, ax=ax))
    for panel in ax.figure.axes[3:]:
        assert panel.get_ylim()[0] < -2


def test_rows_keep_their_order_where_some_values_are_not_numbers(ax):
    values = np.array(
        [[0.1, 0.9, np.nan], [np.nan, 0.8, np.nan], [0.2, np.nan, np.nan]]
    )
    drawn(plots.gate_heatmap("abc", values, "forget gate f", ax=ax))
    (image,) = ax.images
    rows = np.ma.filled(image.get_array(), np.nan)
    np.testing.assert_array_equal(rows, values.T[[1, 0, 2]])
    assert ax.figure.axes[-1].get_ylabel() == "share that passes"


def test_a_text_too_long_to_be_read_has_its_steps_numbered(ax):
    drawn(plots.gate_heatmap("ab" * 1000, np.zeros((2000, 2)), "f", ax=ax))
    assert len(ax.get_xticks()) < 20
    assert ax.get_xlabel() == "step, one symbol each"
    drawn(plots.gate_heatmap("ab", np.zeros((2, 2)), "f", ax=ax))
    assert [label.get_text() for label in ax.get_xticklabels()] == ["a", "b"]


def test_a_time_constant_is_that_of_the_mean_logarithm(ax):
    forget = np.stack([np.full(6, 0.5), np.tile([0.9, 0.4], 3)], axis=1)
    plots.timescales(forget, ax=ax)
    tau = [1 / np.log(2), -2 / np.log(0.36)]
    assert f"median {np.median(tau):.3g} steps" in words(drawn(ax))


def test_time_constants_of_ragged_rows_are_those_of_the_diagnostic(ax):
    """0, inf and NaN, which it may give, are drawn as well."""
    gates = np.full((6, 2, 3), 0.5, np.float32)
    gates[:, :, 1] = 0.9
    gates[3:, 1] = 0.0  # padding
    tau = diagnostics.timescales({"f": gates}, lengths=[6, 3])
    plots.timescales(tau, ax=ax)
    assert f"median {-1 / np.log(0.5):.3g} steps" in words(drawn(ax))
    ax.clear()
    plots.timescales([0.0, 3.0, np.inf, np.nan], ax=ax)
    assert sum(bar.get_height() for bar in drawn(ax).patches) == 3


@pytest.mark.parametrize("value", [0.0, 1e-30, 1.0])
def test_gates_that_are_shut_or_open_for_ever_are_counted(ax, value):
    plots.timescales(np.full((5, 2, 4), value), ax=ax)
    assert sum(bar.get_height() for bar in drawn(ax).patches) == 4


def test_units_without_a_number_are_left_out_and_counted(ax):
    forget = np.full((5, 4), 0.5)
    forget[2, 1] = np.nan
    plots.timescales(forget, ax=ax)
    assert sum(bar.get_height() for bar in drawn(ax).patches) == 3
    assert words(ax) == "median 1.44 steps\n1 unit without a number"


@pytest.mark.parametrize("longest", [0.9, 0.99999])
def test_labels_of_timescales_do_not_overlap(longest):
    ax = Figure(figsize=(4, 3), layout="constrained").add_subplot()
    drawn(plots.timescales([[0.01, longest]], ax=ax))
    boxes = [label.get_window_extent() for label in ax.get_xticklabels()]
    shown = [box for box in boxes if box.x0 >= 0 and box.x1 <= ax.bbox.x1]
    assert len(shown) >= 3
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(shown))


def test_a_single_unit_has_a_whole_number(ax):
    plots.gate_heatmap("ab", [[0.1], [0.2]], "$ one _ and $", ax=ax)
    shown = [tick for tick in drawn(ax).get_yticks() if abs(tick) < 0.5]
    assert shown == [0]
    assert not ax.title.get_parse_math()


def test_many_runs_are_named_beside_the_axes(ax):
    run = [record(1, 1.5, "validation"), record(2, 1.4, "validation")]
    drawn(plots.compare_runs({str(n): run for n in range(7)}, ax=ax))
    assert ax.get_legend().get_window_extent().x0 >= ax.bbox.x1


@pytest.mark.parametrize(
    ("draw", "sentence"),
    [
        (
            lambda: plots.gate_heatmap("abc", np.zeros((2, 4)), "f"),
            "each of the 3 symbols",
        ),
        (
            lambda: plots.gate_heatmap("ab", np.zeros((2, 1, 4)), "f"),
            "one text of a batch",
        ),
        (lambda: plots.gate_heatmap("", np.zeros((0, 4)), "f"), "at least one symbol"),
        (lambda: plots.unit_trace("abc", trace(3, 2), 2), "0 to 1, but is 2"),
        (lambda: plots.unit_trace("ab", trace(3, 2), 1), "each of the 2 symbols"),
        (lambda: plots.gate_heatmap("a", [[0.5]], "f", limits=(1, 0)), "low < high"),
        (lambda: plots.gate_heatmap("a", [[0.5]], "f", limits=(1, 1)), "low < high"),
        (lambda: plots.unit_trace("abc", trace(3, 2), 1.0), "0 to 1, but is 1.0"),
        (
            lambda: plots.unit_trace("abc", trace(3, 2)._replace(state=()), 1),
            "without c, h; the trace of an LSTM",
        ),
        (lambda: plots.timescales(np.zeros((0, 4))), r"shape \[0, 4\]; a forget gate"),
        (
            lambda: plots.timescales([0.5, -2.0]),
            "holds -2; a time constant is at least",
        ),
        (lambda: plots.timescales([np.nan]), "NaN in every unit"),
        (lambda: plots.timescales(0.5), r"shape \[\]"),
        (lambda: plots.timescales([[0.5, 1.5]]), "holds 1.5; a gate is between"),
        (lambda: plots.timescales([[np.nan, np.nan]]), "NaN in every unit"),
        (lambda: plots.loss_curve([]), "0 in all, hold no loss"),
        (lambda: plots.compare_runs({}), "runs is {}; a dict such as"),
        (
            lambda: plots.training_health([], ax=Figure().add_axes((0, 0, 1, 1))),
            "must come from subplots",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_a_sentence(draw, sentence):
    with pytest.raises(ValueError, match=sentence):
        draw()


def test_a_picture_is_drawn_beside_others():
    figure = Figure(layout="constrained")
    left, right = figure.subplots(1, 2)
    plots.unit_trace("abc", trace(3, 2), 0, ax=left)
    plots.timescales(trace(3, 2).gates.f, ax=right)
    drawn(left)
    assert left.get_position().x1 < right.get_position().x0
