"""Plots of runs, gates and units: what they show, and which arguments they refuse."""

import itertools

import numpy as np
import pytest
from matplotlib.figure import Figure

from jaxlstm import diagnostics, plots
from jaxlstm.cells.base import Gates, LSTMState
from jaxlstm.cells.emit import Trace
from plotting import drawn, new_axes, no_window, trace, words  # noqa: F401  (fixtures)


def record(step, loss, split="train", **more):
    return {"step": step, "split": split, "loss": loss, **more}


def test_the_best_validation_is_marked(ax):
    records = [record(n, loss, "validation") for n, loss in ((1, 3), (2, 1.5), (3, 2))]
    assert "best 1.500\nat step 2" in words(drawn(plots.loss_curve(records, ax=ax)))


@pytest.mark.parametrize(
    ("best", "text"),
    [
        (("accuracy", "max"), "best accuracy 0.9\nat step 1"),
        (("accuracy", "min"), "best accuracy 0.5\nat step 2"),
        (("loss", "min"), "best 2.000 bits\nat step 2"),
    ],
)
def test_the_marked_validation_is_the_best_of_a_given_metric(ax, best, text):
    """The star is on the plotted curve at that step; other records do not count."""
    values = ((1, 3.0, 0.9), (2, 1.5, 0.5), (3, 2.0, 0.7), (4, 9.0, None))
    records = [
        record(n, loss, "validation", bits_per_character=loss + 0.5, accuracy=accuracy)
        for n, loss, accuracy in values
    ]
    records.append(record(5, 0.1, bits_per_character=0.1, accuracy=1.0))
    assert text in words(drawn(plots.loss_curve(records, best=best, ax=ax)))
    (star,) = [line for line in ax.lines if line.get_marker() == "*"]
    step = int(text[-1])
    assert star.get_xydata().tolist() == [[step, values[step - 1][1] + 0.5]]


def test_a_best_validation_without_a_plotted_value_has_no_mark(ax):
    records = [
        record(1, 1.5, "validation", accuracy=0.5),
        record(2, None, "validation", accuracy=0.9),
    ]
    shown = words(drawn(plots.loss_curve(records, best=("accuracy", "max"), ax=ax)))
    assert "best" not in shown


@pytest.mark.parametrize(
    ("more", "label"),
    [
        ({}, "loss"),
        ({"perplexity": 4.0}, "perplexity per token"),
        ({"bits_per_character": 2.0}, "bits per character"),
    ],
)
def test_the_metric_is_the_first_one_in_the_records(ax, more, label):
    records = [record(1, 1.4, **more), record(1, 1.5, "validation", **more)]
    assert drawn(plots.loss_curve(records, ax=ax)).get_ylabel() == label


def test_the_caller_names_the_loss_where_it_is_plotted(ax):
    records = [record(1, 1.5, "validation")]
    text = [record(1, 1.5, "validation", perplexity=4.5)]
    for found, label in ((records, "error (m)"), (text, "perplexity per token")):
        ax.clear()
        plots.loss_curve(found, label="error (m)", ax=ax)
        assert ax.get_ylabel() == label
        ax.clear()
        plots.compare_runs({"a": found}, label="error (m)", ax=ax)
        assert ax.get_ylabel() == f"validation {label}"


def test_a_single_training_loss_is_visible(ax):
    line = plots.loss_curve([record(1, 2.0, "train")], ax=ax).get_lines()[0]
    assert line.get_marker() == "."


def test_a_steep_first_descent_is_cut_off_and_its_value_written(ax):
    records = [record(n, 9.0 if n == 1 else 2 + 1 / n) for n in range(1, 101)]
    plots.loss_curve(records, ax=ax)
    assert ax.get_ylim()[1] < 3
    assert "first value 9" in words(drawn(ax))


def test_a_slow_descent_is_not_cut_off(ax):
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
def test_records_with_missing_and_infinite_values_can_be_drawn(records):
    drawn(plots.loss_curve(records, ax=Figure().add_subplot()))
    drawn(plots.training_health(records, ax=Figure().add_subplot()))


def test_training_health_has_two_panels_with_the_same_steps(ax):
    records = [record(n, 1.0, gradient_norm=n, learning_rate=1e-3) for n in (1, 2, 3)]
    top = drawn(plots.training_health(records, ax=ax))
    bottom = ax.figure.axes[1]
    assert (top.get_ylabel(), bottom.get_ylabel()) == ("gradient norm", "learning rate")
    assert top.get_xlim() == bottom.get_xlim()


def test_runs_are_compared_in_a_metric_that_all_have(ax):
    both = [record(1, 1.5, "validation", bits_per_character=2.1)]
    plain = [record(1, 1.4, "validation")]
    drawn(plots.compare_runs({"a": both, "b": plain, "empty": []}, ax=ax))
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names == ["a: best 1.5", "b: best 1.4", "empty"]
    assert ax.get_ylabel() == "validation loss"


def test_the_label_of_a_run_states_its_best_value_of_a_given_metric(ax):
    run = [
        record(n, loss, "validation", top_1=share)
        for n, loss, share in ((1, 1.5, 0.25), (2, 1.4, 0.75), (3, 1.3, 0.5))
    ]
    diverged = [record(1, 1.5, "validation", top_1=None)]
    runs = {"a": run, "b": diverged}
    drawn(plots.compare_runs(runs, best=("top_1", "max"), ax=ax))
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names == ["a: best top 1 0.75", "b: best top 1 nan"]


def test_more_runs_than_styles_are_distinct(ax):
    run = [record(1, 1.5, "validation")]
    plots.compare_runs({str(n): run for n in range(12)}, ax=ax)
    looks = {(line.get_color(), line.get_linestyle()) for line in drawn(ax).lines}
    assert len(looks) == 12


def test_the_heatmap_sorts_units_by_mean(ax):
    values = np.array([[0.1, 0.9, 0.5], [0.2, 0.8, 0.5]])
    plots.gate_heatmap("ab", values, "forget gate f", ax=ax)
    shown = np.asarray(drawn(ax).images[0].get_array())
    np.testing.assert_array_equal(shown, [[0.9, 0.8], [0.5, 0.5], [0.1, 0.2]])


def test_invisible_symbols_are_written_as_visible_ones(ax):
    symbols = ["$", "$", "\n", "\t", " ", "\x1b", "漢", "\U000f0000"]
    plots.gate_heatmap(symbols, np.zeros((8, 2)), "f", ax=ax)
    labels = [label.get_text() for label in drawn(ax).get_xticklabels()]
    assert labels[:6] == ["$", "$", "↵", "→", " ", "□"]
    assert labels[-1] == "□"


def test_words_are_written_vertically(ax):
    plots.gate_heatmap(["the", "cat"], np.zeros((2, 2)), "f", ax=ax)
    assert drawn(ax).get_xticklabels()[0].get_rotation() == 90


def test_a_unit_trace_has_panels_of_gates_cell_and_output(ax):
    plots.unit_trace("abcd", trace(4, 3), 1, ax=ax)
    names = [panel.get_ylabel() for panel in drawn(ax).figure.axes]
    expected = [
        "input gate i",
        "forget gate f",
        "output gate o",
        "candidate g",
        "cell state c",
        "output h",
    ]
    assert names == expected


def test_a_unit_of_zeros_can_be_drawn(ax):
    zeros = np.zeros((3, 2))
    still = Trace(LSTMState(zeros, zeros), Gates(zeros, zeros, zeros, zeros))
    drawn(plots.unit_trace("abc", still, 0, ax=ax))


def test_nan_in_a_unit_is_a_gap(ax):
    values = np.where(np.arange(6)[:, None] < 3, -2.0, np.nan) * np.ones((6, 2))
    gate = np.full((6, 2), 0.5)
    broken = Trace(LSTMState(values, values), Gates(gate, gate, values, gate))
    drawn(plots.unit_trace("abcdef", broken, 1, ax=ax))
    for panel in ax.figure.axes[3:]:
        assert panel.get_ylim()[0] < -2


def test_rows_are_sorted_by_the_mean_of_finite_values(ax):
    values = np.array(
        [[0.1, 0.9, np.nan], [np.nan, 0.8, np.nan], [0.2, np.nan, np.nan]]
    )
    drawn(plots.gate_heatmap("abc", values, "forget gate f", ax=ax))
    (image,) = ax.images
    rows = np.ma.filled(image.get_array(), np.nan)
    np.testing.assert_array_equal(rows, values.T[[1, 0, 2]])
    assert ax.figure.axes[-1].get_ylabel() == "gate value (0: closed, 1: open)"
    assert [label.get_text() for label in ax.get_yticklabels()] == ["1", "0", "2"]


def test_many_units_are_numbered_where_their_labels_fit(ax):
    values = np.random.default_rng(0).random((4, 192))
    drawn(plots.gate_heatmap("abcd", values, "forget gate f", ax=ax))
    labels = [int(label.get_text()) for label in ax.get_yticklabels()]
    order = np.argsort(-values.mean(0))
    assert labels == order[ax.get_yticks().astype(int)].tolist()
    assert (labels[0], labels[-1]) == (order[0], order[-1])
    boxes = [label.get_window_extent() for label in ax.get_yticklabels()]
    assert all(above.y0 > below.y1 for above, below in itertools.pairwise(boxes))


def test_a_long_text_has_step_numbers(ax):
    drawn(plots.gate_heatmap("ab" * 1000, np.zeros((2000, 2)), "f", ax=ax))
    assert len(ax.get_xticks()) < 20
    assert ax.get_xlabel() == "step (one symbol per step)"
    drawn(plots.gate_heatmap("ab", np.zeros((2, 2)), "f", ax=ax))
    assert [label.get_text() for label in ax.get_xticklabels()] == ["a", "b"]


def test_timescales_use_the_mean_logarithm(ax):
    forget = np.stack([np.full(6, 0.5), np.tile([0.9, 0.4], 3)], axis=1)
    plots.timescales(forget, ax=ax)
    tau = [1 / np.log(2), -2 / np.log(0.36)]
    assert f"median {np.median(tau):.3g} steps" in words(drawn(ax))


def test_timescales_of_the_diagnostic_can_be_drawn(ax):
    """The diagnostic may return 0, inf and NaN."""
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
def test_gates_that_are_always_closed_or_open_are_counted(ax, value):
    plots.timescales(np.full((5, 2, 4), value), ax=ax)
    assert sum(bar.get_height() for bar in drawn(ax).patches) == 4


def test_units_with_nan_are_left_out_and_their_number_written(ax):
    forget = np.full((5, 4), 0.5)
    forget[2, 1] = np.nan
    plots.timescales(forget, ax=ax)
    assert sum(bar.get_height() for bar in drawn(ax).patches) == 3
    assert words(ax) == "median 1.44 steps\n1 unit with NaN"


@pytest.mark.parametrize("longest", [0.9, 0.99999])
def test_labels_of_timescales_do_not_overlap(longest):
    ax = Figure(figsize=(4, 3), layout="constrained").add_subplot()
    drawn(plots.timescales([[0.01, longest]], ax=ax))
    boxes = [label.get_window_extent() for label in ax.get_xticklabels()]
    shown = [box for box in boxes if box.x0 >= 0 and box.x1 <= ax.bbox.x1]
    assert len(shown) >= 3
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(shown))


def test_a_single_unit_has_an_integer_tick(ax):
    plots.gate_heatmap("ab", [[0.1], [0.2]], "$ one _ and $", ax=ax)
    shown = [tick for tick in drawn(ax).get_yticks() if abs(tick) < 0.5]
    assert shown == [0]
    assert not ax.title.get_parse_math()


def test_the_legend_of_many_runs_is_beside_the_axes(ax):
    run = [record(1, 1.5, "validation"), record(2, 1.4, "validation")]
    drawn(plots.compare_runs({str(n): run for n in range(7)}, ax=ax))
    assert ax.get_legend().get_window_extent().x0 >= ax.bbox.x1


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (
            lambda: plots.gate_heatmap("abc", np.zeros((2, 4)), "f"),
            "each of the 3 symbols",
        ),
        (
            lambda: plots.gate_heatmap("ab", np.zeros((2, 1, 4)), "f"),
            "one row of a batch",
        ),
        (
            lambda: plots.gate_heatmap("", np.zeros((0, 4)), "f"),
            "0 symbols, at least one",
        ),
        (
            lambda: plots.unit_trace("abc", trace(3, 2), 2),
            "unit: got 2, expected 0 to 1",
        ),
        (lambda: plots.unit_trace("ab", trace(3, 2), 1), "each of the 2 symbols"),
        (lambda: plots.gate_heatmap("a", [[0.5]], "f", limits=(1, 0)), "low < high"),
        (lambda: plots.gate_heatmap("a", [[0.5]], "f", limits=(1, 1)), "low < high"),
        (
            lambda: plots.unit_trace("abc", trace(3, 2), 1.0),
            "unit: got 1.0, expected 0 to 1",
        ),
        (
            lambda: plots.unit_trace("abc", trace(3, 2)._replace(state=()), 1),
            "trace.state: got tuple without c, h, expected the trace of an LSTM",
        ),
        (
            lambda: plots.timescales(np.zeros((0, 4))),
            r"got shape \[0, 4\], expected a forget",
        ),
        (
            lambda: plots.timescales([0.5, -2.0]),
            "values: got -2, expected timescales >= 0",
        ),
        (lambda: plots.timescales([np.nan]), "NaN in every unit"),
        (lambda: plots.timescales(0.5), r"shape \[\]"),
        (
            lambda: plots.timescales([[0.5, 1.5]]),
            "values: got 1.5, expected gates in 0",
        ),
        (lambda: plots.timescales([[np.nan, np.nan]]), "NaN in every unit"),
        (lambda: plots.loss_curve([]), "records: got 0 without loss"),
        (
            lambda: plots.loss_curve([record(1, 1.0)], best=("loss", "most")),
            r"best: got \('loss', 'most'\), expected a pair such as",
        ),
        (
            lambda: plots.compare_runs({}),
            "compare_runs: runs: got {}, expected a dict such as",
        ),
        (
            lambda: plots.training_health([], ax=Figure().add_axes((0, 0, 1, 1))),
            "training_health: ax: got axes that cannot be split",
        ),
    ],
)
def test_wrong_arguments_raise(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


def test_plots_can_share_a_figure():
    figure = Figure(layout="constrained")
    left, right = figure.subplots(1, 2)
    plots.unit_trace("abc", trace(3, 2), 0, ax=left)
    plots.timescales(trace(3, 2).gates.f, ax=right)
    drawn(left)
    assert left.get_position().x1 < right.get_position().x0


def test_the_legend_of_a_loss_curve_is_above_the_axes():
    """A curve that rises would run into a legend inside them."""
    rising = [{"step": n, "split": "train", "loss": 1.0 + n} for n in range(1, 9)]
    ax = plots.loss_curve(rising)
    ax.figure.canvas.draw()
    legend = ax.get_legend().get_window_extent()
    assert legend.y0 >= ax.get_window_extent().y1 - 1
